//! Bootstrap tokens: what a machine joins a cluster with, kept as a Secret each.

use std::sync::Weak;

use futures::future::BoxFuture;
use serde_json::Value;

use super::tokens::{Verified, Verifier, ignoring_audiences};
use super::{UserInfo, same};
use crate::registry::Registry;
use crate::strategy::check::text;

const NAMESPACE: &str = "kube-system";
const KIND: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";

/// Checks bootstrap tokens against their Secrets.
pub struct BootstrapTokens {
    pub registry: Weak<Registry>,
    pub audiences: Vec<String>,
}

/// Id and secret of a token that looks like `abcdef.0123456789abcdef`.
fn split(token: &str) -> Option<(&str, &str)> {
    let plain = |text: &str, length: usize| {
        text.len() == length
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    let (id, secret) = token.split_once('.')?;
    (plain(id, 6) && plain(secret, 16)).then_some((id, secret))
}

/// Who the token is; `None` where the Secret does not let it in.
fn user(object: &Value, id: &str, secret: &str, now: jiff::Timestamp) -> Option<UserInfo> {
    let data = |key: &str| crate::authn::decoded(&object["data"], key).unwrap_or_default();
    if text(object, "type") != KIND || apimachinery::object::deletion_timestamp(object).is_some() {
        return None;
    }
    if !same(&data("token-secret"), secret) || data("token-id") != id {
        return None;
    }
    let expiration = data("expiration");
    if !expiration.is_empty() && apimachinery::time::parse(&expiration).is_none_or(|at| at <= now) {
        return None;
    }
    if data("usage-bootstrap-authentication") != "true" {
        return None;
    }
    let mut user = UserInfo::new(format!("system:bootstrap:{id}"), &[GROUP]);
    for group in data("auth-extra-groups")
        .split(',')
        .filter(|group| !group.is_empty())
    {
        // Any other group could be one that has power.
        if !group.starts_with("system:bootstrappers:") {
            return None;
        }
        user.groups.push(group.to_owned());
    }
    Some(user)
}

impl Verifier for BootstrapTokens {
    fn verify<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<Verified>, String>> {
        Box::pin(async move {
            let Some((id, secret)) = split(token) else {
                return Ok(None);
            };
            let registry = self.registry.upgrade().ok_or("shutting down")?;
            let name = format!("bootstrap-token-{id}");
            let object = match registry.get("", "secrets", NAMESPACE, &name).await {
                Ok(object) => object.value(),
                Err(error) if error.is_not_found() => return Ok(None),
                Err(error) => return Err(error.message),
            };
            let user = user(&object, id, secret, jiff::Timestamp::now());
            Ok(user.and_then(|user| ignoring_audiences(user, audiences, &self.audiences)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    #[test]
    fn secrets_let_their_token_in() {
        let secret = |changes: &[(&str, &str)]| {
            let mut object = json!({"type": KIND, "data": {}});
            let defaults = [
                ("token-id", "abcdef"),
                ("token-secret", "0123456789abcdef"),
                ("usage-bootstrap-authentication", "true"),
                ("auth-extra-groups", "system:bootstrappers:workers"),
            ];
            for (key, value) in defaults.iter().chain(changes) {
                object["data"][key] = STANDARD.encode(value).into();
            }
            object
        };
        let now = jiff::Timestamp::now();
        let check = |object: &Value| user(object, "abcdef", "0123456789abcdef", now);
        let known = check(&secret(&[])).unwrap();
        assert_eq!(known.name, "system:bootstrap:abcdef");
        assert_eq!(known.groups, [GROUP, "system:bootstrappers:workers"]);
        for change in [
            ("token-secret", "other"),
            ("token-id", "other"),
            ("usage-bootstrap-authentication", "false"),
            ("expiration", "2020-01-01T00:00:00Z"),
            ("expiration", "whenever"),
            ("auth-extra-groups", "system:masters"),
        ] {
            assert_eq!(check(&secret(&[change])), None, "{change:?}");
        }
        assert!(check(&secret(&[("expiration", "2999-01-01T00:00:00Z")])).is_some());
        let mut other = secret(&[]);
        other["type"] = "Opaque".into();
        assert_eq!(check(&other), None);
    }

    #[test]
    fn tokens_have_a_form() {
        assert_eq!(
            split("abcdef.0123456789abcdef"),
            Some(("abcdef", "0123456789abcdef"))
        );
        for bad in [
            "abcdef",
            "abcdef.0123",
            "ABCDEF.0123456789abcdef",
            "abcde.0123456789abcdef1",
        ] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }
}
