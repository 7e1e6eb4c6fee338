//! `--encryption-provider-config`: an EncryptionConfiguration.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use apimachinery::resource::builtin;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

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
}

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
                self::provider(provider).with_context(|| format!("resources[{i}].providers[{j}]"))
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

fn provider(value: &Value) -> Result<Provider> {
    let map = value.as_object().context("not an object")?;
    let (Some((name, settings)), 1) = (map.iter().next(), map.len()) else {
        bail!("exactly one provider is required");
    };
    let cipher = match name.as_str() {
        "identity" => return Ok(Provider::Identity),
        "aescbc" => Cipher::AesCbc,
        "aesgcm" => Cipher::AesGcm,
        "secretbox" => Cipher::SecretBox,
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
            ("secrets", "kms: {name: x}".into()),
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
}
