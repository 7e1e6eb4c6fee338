//! `--encryption-provider-config`: an EncryptionConfiguration.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use apimachinery::resource::builtin;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::kms::{Kms, Settings};
use super::provider::{Cipher, Key, Provider, Providers};
use crate::strategy::check::{list, text};

/// Which keys of the store are sealed, and how.
#[derive(Default, PartialEq, Eq)]
pub struct Rules {
    /// The first prefix that fits counts.
    prefixes: Vec<(String, Providers)>,
}

impl Rules {
    #[must_use]
    pub fn of(&self, key: &str) -> Option<&Providers> {
        self.prefixes
            .iter()
            .find(|(prefix, _)| key.starts_with(prefix.as_str()))
            .filter(|_| !INTERNAL.iter().any(|prefix| key.starts_with(prefix)))
            .map(|(_, providers)| providers)
    }

    /// The key management services that are in use.
    pub(super) fn services(&self) -> Vec<&Arc<Kms>> {
        let all = self.prefixes.iter().flat_map(|(_, providers)| &providers.0);
        let mut found: Vec<&Arc<Kms>> = Vec::new();
        for provider in all {
            if let Provider::Kms(kms) = provider
                && !found.iter().any(|known| Arc::ptr_eq(known, kms))
            {
                found.push(kms);
            }
        }
        found
    }

    #[must_use]
    pub fn has_services(&self) -> bool {
        !self.services().is_empty()
    }

    /// Reaches the key management services, and follows them from then on. The first failure is told.
    pub async fn start(&self) -> Result<()> {
        let mut answers = Vec::new();
        for kms in self.services() {
            answers.push(kms.start().await);
        }
        let first = answers.into_iter().find_map(Result::err);
        first.map_or(Ok(()), |error| Err(anyhow::anyhow!(error)))
    }
}

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3);

pub fn read(path: &Path) -> Result<Rules> {
    let content =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&content).with_context(|| format!("in {}", path.display()))
}

/// What API servers keep for themselves, which belongs to no resource and is never sealed.
const INTERNAL: [&str; 3] = [
    "/registry/masterleases/",
    "/registry/peerserverleases/",
    "/registry/ranges/",
];

pub(super) fn parse(content: &str) -> Result<Rules> {
    let document: Value = serde_saphyr::from_str(content)?;
    ensure!(
        text(&document, "kind") == "EncryptionConfiguration"
            && text(&document, "apiVersion") == "apiserver.config.k8s.io/v1",
        "not an EncryptionConfiguration of apiserver.config.k8s.io/v1"
    );
    let entries = list(&document, "resources");
    ensure!(!entries.is_empty(), "resources: at least one is required");
    let mut rules = Rules::default();
    let mut services = BTreeSet::new();
    for (i, entry) in entries.iter().enumerate() {
        let providers = list(entry, "providers");
        ensure!(
            !providers.is_empty(),
            "resources[{i}].providers: at least one is required"
        );
        let providers = providers
            .iter()
            .enumerate()
            .map(|(j, provider)| {
                self::provider(provider, &mut services)
                    .with_context(|| format!("resources[{i}].providers[{j}]"))
            })
            .collect::<Result<Vec<_>>>()?;
        let names = list(entry, "resources");
        ensure!(
            !names.is_empty(),
            "resources[{i}].resources: at least one is required"
        );
        for name in names {
            let name = name.as_str().unwrap_or_default();
            let prefixes = prefixes(name);
            ensure!(
                !prefixes.is_empty(),
                "resources[{i}].resources: {name:?} is no resource"
            );
            for prefix in prefixes {
                rules.prefixes.push((prefix, Providers(providers.clone())));
            }
        }
    }
    Ok(rules)
}

/// Where the objects of `secrets`, `deployments.apps`, `*.apps`, `*.` (the core group) or `*.*` are.
fn prefixes(name: &str) -> Vec<String> {
    let (plural, group) = match name.split_once('.') {
        Some((plural, group)) => (plural, group),
        None => (name, ""),
    };
    match (plural, group) {
        ("*", "*") => return vec!["/registry/".into()],
        ("" | "*", _) if name == "*" || plural.is_empty() => return Vec::new(),
        _ => {}
    }
    let known = builtin()
        .iter()
        .filter(|r| r.is_stored() && r.group == group && (plural == "*" || r.plural == plural));
    let mut prefixes: Vec<String> = known.map(|r| r.storage_range("")).collect();
    // Custom resources are kept by their group.
    match (plural, group) {
        (_, "") => {}
        ("*", group) => prefixes.push(format!("/registry/{group}/")),
        (plural, group) if prefixes.is_empty() => {
            prefixes.push(format!("/registry/{group}/{plural}/"))
        }
        _ => {}
    }
    prefixes
}

fn provider(value: &Value, services: &mut BTreeSet<String>) -> Result<Provider> {
    let map = value.as_object().context("not an object")?;
    let (Some((name, settings)), 1) = (map.iter().next(), map.len()) else {
        bail!("exactly one provider is required");
    };
    let cipher = match name.as_str() {
        "identity" => return Ok(Provider::Identity),
        "aescbc" => Cipher::AesCbc,
        "aesgcm" => Cipher::AesGcm,
        "secretbox" => Cipher::SecretBox,
        "kms" => {
            let settings = kms(settings)?;
            let name = &settings.name;
            ensure!(
                services.insert(name.clone()),
                "kms.name: duplicate KMS provider name {name}, names must be unique"
            );
            return Ok(Provider::Kms(Arc::new(Kms::new(settings))));
        }
        other => bail!("provider {other:?} is not supported"),
    };
    let mut keys: Vec<Key> = Vec::new();
    for (i, key) in list(settings, "keys").iter().enumerate() {
        let name = text(key, "name").to_owned();
        ensure!(!name.is_empty(), "{name}.keys[{i}].name: required");
        ensure!(
            !name.contains(':'),
            "keys[{i}].name: a colon ends a key's name in what is stored"
        );
        ensure!(
            !keys.iter().any(|known| known.name == name),
            "keys[{i}].name: duplicate value: {name:?}"
        );
        // The text of a decoding error could hold the secret.
        let secret = STANDARD
            .decode(text(key, "secret"))
            .map_err(|_| anyhow::anyhow!("keys[{i}].secret: not base64"))?;
        ensure!(
            cipher.key_lengths().contains(&secret.len()),
            "keys[{i}].secret: secret is not of the expected length, got {}, expected one of {:?}",
            secret.len(),
            cipher.key_lengths()
        );
        keys.push(Key { name, secret });
    }
    ensure!(!keys.is_empty(), "keys: at least one is required");
    Ok(Provider::Sealed(cipher, keys))
}

fn kms(value: &Value) -> Result<Settings> {
    match text(value, "apiVersion") {
        "" | "v1" => bail!(
            "KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead.  Set --feature-gates=KMSv1=true to use the deprecated KMSv1 feature."
        ),
        "v2" => {}
        other => bail!(
            "kms.apiVersion: {other:?}: unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported"
        ),
    }
    let name = text(value, "name");
    ensure!(
        !name.is_empty(),
        "kms.name: name is a mandatory field for a provider"
    );
    ensure!(
        !name.contains(':'),
        "kms.name: invalid KMS provider name {name}, must not contain ':'"
    );
    ensure!(
        value.get("cachesize").is_none_or(Value::is_null),
        "kms.cachesize: cachesize is not supported in v2"
    );
    let timeout = match text(value, "timeout") {
        "" => DEFAULT_TIMEOUT,
        timeout => crate::config::duration(timeout)
            .map_err(|error| anyhow::anyhow!("kms.timeout: {error}"))?,
    };
    ensure!(
        !timeout.is_zero(),
        "kms.timeout: timeout should be a positive value"
    );
    let endpoint = text(value, "endpoint");
    ensure!(
        !endpoint.is_empty(),
        "kms.endpoint: endpoint is a mandatory field for a kms"
    );
    let path = endpoint.strip_prefix("unix://").with_context(|| {
        let scheme = endpoint.split_once(':').map_or("", |(scheme, _)| scheme);
        format!(
            "kms.endpoint: unsupported scheme {scheme:?} for KMS provider, only unix is supported"
        )
    })?;
    Ok(Settings {
        name: name.to_owned(),
        // An abstract socket is written with an at sign.
        path: match path.strip_prefix("/@") {
            Some(name) => format!("\0{name}"),
            None => path.to_owned(),
        },
        timeout,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(resource: &str, provider: &str) -> Result<Rules> {
        parse(&format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [\"{resource}\"]\n  providers:\n  - {provider}\n"
        ))
    }

    #[test]
    fn resources_are_found_in_the_store() {
        for (resource, key, wanted) in [
            ("secrets", "/registry/secrets/n/s", true),
            ("secrets", "/registry/configmaps/n/s", false),
            ("deployments.apps", "/registry/deployments/n/d", true),
            (
                "widgets.example.com",
                "/registry/example.com/widgets/n/w",
                true,
            ),
            ("*.apps", "/registry/statefulsets/n/s", true),
            ("*.example.com", "/registry/example.com/widgets/n/w", true),
            ("*.", "/registry/services/specs/n/s", true),
            ("*.", "/registry/deployments/n/d", false),
            ("*.*", "/registry/anything/n/d", true),
            ("*.*", "/registry/masterleases/10.0.0.1", false),
        ] {
            let rules = config(resource, "identity: {}").unwrap();
            assert_eq!(rules.of(key).is_some(), wanted, "{resource} {key}");
        }
    }

    #[test]
    fn bad_configurations_are_refused() {
        let key = |secret: &str| format!("aescbc: {{keys: [{{name: a, secret: {secret:?}}}]}}");
        let good = STANDARD.encode([0; 32]);
        assert!(config("secrets", &key(&good)).is_ok());
        for (resource, provider) in [
            ("secrets", key("not base64!")),
            ("secrets", key(&STANDARD.encode([0; 5]))),
            ("secrets", "aescbc: {keys: []}".into()),
            ("secrets", "kms: {name: x, apiVersion: v2}".into()),
            ("secrets", "kms: {name: x, apiVersion: v2, endpoint: \"http://x\"}".into()),
            ("secrets", "kms: {name: \"x:y\", apiVersion: v2, endpoint: \"unix:///x\"}".into()),
            ("secrets", "kms: {name: x, apiVersion: v3, endpoint: \"unix:///x\"}".into()),
            ("secrets", "kms: {name: x, apiVersion: v2, endpoint: \"unix:///x\", timeout: 0s}".into()),
            ("secrets", "kms: {name: x, apiVersion: v2, endpoint: \"unix:///x\", cachesize: 5}".into()),
            (
                "secrets",
                "kms: {name: x, apiVersion: v2, endpoint: \"unix:///x\"}\n  - kms: {name: x, apiVersion: v2, endpoint: \"unix:///y\"}"
                    .into(),
            ),
            (
                "secrets",
                format!("aesgcm: {{keys: [{{name: \"a:b\", secret: {good:?}}}]}}"),
            ),
            ("nothing", "identity: {}".into()),
            ("*", "identity: {}".into()),
        ] {
            assert!(
                config(resource, &provider).is_err(),
                "{resource} {provider}"
            );
        }
    }

    #[test]
    fn services() {
        let kms = "kms: {name: x, apiVersion: v2, endpoint: \"unix:///run/kms.sock\"}";
        let rules = config("secrets", kms).unwrap();
        assert!(rules.has_services());
        // A service is the same one for all that it seals.
        assert_eq!(config("*.", kms).unwrap().services().len(), 1);
        assert!(rules == config("secrets", kms).unwrap());
        assert!(rules != config("secrets", &kms.replace("kms.sock", "other")).unwrap());
        let version_1 = config("secrets", "kms: {name: x, endpoint: \"unix:///x\"}");
        let error = format!("{:#}", version_1.err().unwrap());
        assert!(error.contains("KMSv1 is deprecated"), "{error}");
    }
}
