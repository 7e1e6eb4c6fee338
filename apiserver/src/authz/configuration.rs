//! `--authorization-config`, and the flags that say the same: who decides, in which order.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::webhook::Options;
use crate::config::{Config, duration};
use crate::strategy::check::{given, list, text};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Who decides.
#[derive(Debug, Clone)]
pub enum Mode {
    Node,
    Rbac,
    AlwaysAllow,
    AlwaysDeny,
    Webhook(PathBuf, Options),
}

/// The modes of the file, or of the flags.
pub fn modes(config: &Config) -> Result<Vec<Mode>> {
    let Some(path) = &config.authorization_config else {
        return config
            .authorization_mode
            .iter()
            .map(|name| from_flag(config, name))
            .collect();
    };
    ensure!(
        config.authorization_webhook_config_file.is_none(),
        "authorization-config and authorization-webhook-* flags are mutually exclusive"
    );
    let content =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let document: Value =
        serde_saphyr::from_str(&content).with_context(|| format!("reading {}", path.display()))?;
    let directory = path.parent().unwrap_or(Path::new("."));
    from_document(&document, directory).with_context(|| format!("in {}", path.display()))
}

fn plain(name: &str) -> Option<Mode> {
    Some(match name {
        "Node" => Mode::Node,
        "RBAC" => Mode::Rbac,
        "AlwaysAllow" => Mode::AlwaysAllow,
        "AlwaysDeny" => Mode::AlwaysDeny,
        _ => return None,
    })
}

fn from_flag(config: &Config, name: &str) -> Result<Mode> {
    if name != "Webhook" {
        return plain(name)
            .with_context(|| format!("unknown authorization mode {name:?} specified"));
    }
    let path = config.authorization_webhook_config_file.clone();
    let path = path.context(
        "authorization-mode Webhook's authorization config file not passed (--authorization-webhook-config-file)",
    )?;
    Ok(Mode::Webhook(
        path,
        Options {
            version: config.authorization_webhook_version.clone(),
            allowed_ttl: config.authorization_webhook_cache_authorized_ttl,
            refused_ttl: config.authorization_webhook_cache_unauthorized_ttl,
            timeout: TIMEOUT,
            deny_on_failure: false,
        },
    ))
}

fn from_document(document: &Value, directory: &Path) -> Result<Vec<Mode>> {
    ensure!(
        text(document, "kind") == "AuthorizationConfiguration"
            && text(document, "apiVersion").starts_with("apiserver.config.k8s.io/v1"),
        "not an AuthorizationConfiguration of apiserver.config.k8s.io"
    );
    let authorizers = list(document, "authorizers");
    ensure!(
        !authorizers.is_empty(),
        "authorizers: at least one authorization mode must be defined"
    );
    let read =
        |(i, authorizer)| one(authorizer, directory).with_context(|| format!("authorizers[{i}]"));
    authorizers.iter().enumerate().map(read).collect()
}

fn one(authorizer: &Value, directory: &Path) -> Result<Mode> {
    let kind = text(authorizer, "type");
    ensure!(!text(authorizer, "name").is_empty(), "name: required");
    if kind != "Webhook" {
        ensure!(
            given(authorizer, "webhook").is_none(),
            "webhook: may only be set for type Webhook"
        );
        return plain(kind).with_context(|| format!("type: unsupported value: {kind:?}"));
    }
    let webhook = &authorizer["webhook"];
    let time = |field: &str, default: Duration| match text(webhook, field) {
        "" => Ok(default),
        written => duration(written)
            .map_err(anyhow::Error::msg)
            .with_context(|| field.to_owned()),
    };
    if !list(webhook, "matchConditions").is_empty() {
        // A request that the conditions leave out would be asked about all the same.
        bail!("webhook.matchConditions: CEL expressions are not supported");
    }
    let connection = &webhook["connectionInfo"];
    let file = match text(connection, "type") {
        "KubeConfigFile" => text(connection, "kubeConfigFile"),
        other => bail!("webhook.connectionInfo.type: unsupported value: {other:?}"),
    };
    ensure!(
        !file.is_empty(),
        "webhook.connectionInfo.kubeConfigFile: required"
    );
    let options = Options {
        version: text(webhook, "subjectAccessReviewVersion").to_owned(),
        allowed_ttl: time("authorizedTTL", Duration::from_secs(300))?,
        refused_ttl: time("unauthorizedTTL", TIMEOUT)?,
        timeout: time("timeout", TIMEOUT)?,
        deny_on_failure: match text(webhook, "failurePolicy") {
            "Deny" => true,
            "NoOpinion" => false,
            other => bail!("webhook.failurePolicy: unsupported value: {other:?}"),
        },
    };
    Ok(Mode::Webhook(directory.join(file), options))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn files_are_read() {
        let webhook = json!({
            "subjectAccessReviewVersion": "v1", "timeout": "3s", "failurePolicy": "Deny",
            "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": "hook.conf"},
        });
        let document = |webhook: Value| {
            json!({
                "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",
                "authorizers": [{"type": "Node", "name": "node"}, {"type": "Webhook", "name": "hook", "webhook": webhook}],
            })
        };
        let modes = from_document(&document(webhook.clone()), Path::new("/etc")).unwrap();
        let [Mode::Node, Mode::Webhook(path, options)] = modes.as_slice() else {
            panic!("{modes:?}");
        };
        assert_eq!(path, Path::new("/etc/hook.conf"));
        assert_eq!(options.timeout, Duration::from_secs(3));
        assert!(options.deny_on_failure);
        for (field, bad) in [
            ("failurePolicy", json!("Maybe")),
            ("timeout", json!("soon")),
            ("connectionInfo", json!({"type": "Other"})),
            ("matchConditions", json!([{"expression": "true"}])),
        ] {
            let mut webhook = webhook.clone();
            webhook[field] = bad;
            assert!(
                from_document(&document(webhook), Path::new("/")).is_err(),
                "{field}"
            );
        }
    }
}
