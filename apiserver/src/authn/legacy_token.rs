//! Tokens that live in Secrets of the type `kubernetes.io/service-account-token`, without an end and for no audience in
//! particular. A token controller signs them; they are good while their Secret holds them and their service account lives.
//!
//! A label on the Secret says on which day the token was last used, and a ConfigMap since when that is tracked: with both,
//! Kubernetes' controller manager marks as invalid what nobody has used for a year, and then removes it.

use std::sync::Weak;

use apimachinery::object;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;

use super::keys::{PublicKey, verify};
use super::oidc::unverified;
use super::service_account::{self, split_username};
use super::tokens::{Verified, Verifier, ignoring_audiences};
use super::{UserInfo, same};
use crate::registry::Registry;

const ISSUER: &str = "kubernetes/serviceaccount";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

#[derive(Debug, Default, Deserialize)]
struct Claims {
    #[serde(default)]
    sub: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/service-account.name")]
    account: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: String,
}

/// Checks tokens against the Secrets that hold them.
pub struct LegacyTokens {
    pub keys: Vec<PublicKey>,
    pub audiences: Vec<String>,
    pub registry: Weak<Registry>,
}

impl LegacyTokens {
    async fn user(&self, token: &str) -> Result<UserInfo, String> {
        let claims = verify(&self.keys, token).map_err(|e| format!("invalid signature: {e}"))?;
        let claims: Claims =
            serde_json::from_value(claims).map_err(|e| format!("invalid claims: {e}"))?;
        claims.check()?;
        let registry = self.registry.upgrade().ok_or("shutting down")?;
        let key = (claims.namespace.as_str(), claims.secret.as_str());
        let secret = registry.get("", "secrets", key.0, key.1).await;
        let secret = secret.map_err(|_| "Token has been invalidated")?.value();
        holds(&secret, token)?;
        let account = registry.get("", "serviceaccounts", &claims.namespace, &claims.account);
        claims.check_account(&account.await.map_err(|e| e.message)?.value())?;

        let now = Timestamp::now();
        if due(&secret, now) {
            let today = day(now);
            let label = |object: &mut Value| {
                object["metadata"]["labels"][LAST_USED] = today.as_str().into();
                Ok(())
            };
            let labelled = registry.update_as_server("", "secrets", key, label).await;
            if let Err(error) = labelled {
                tracing::warn!(namespace = key.0, secret = key.1, error = %error.message, "the day of a token's last use is not recorded");
            }
        }
        let invalid = &secret["metadata"]["labels"][INVALID_SINCE];
        if invalid.as_str().is_some_and(|since| !since.is_empty()) {
            return Err(format!(
                "the token in secret {0}/{1} for service account {0}/{2} has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the '{INVALID_SINCE}' label from the secret to temporarily allow use of this token",
                claims.namespace, claims.secret, claims.account
            ));
        }
        let Claims {
            namespace,
            account,
            uid,
            ..
        } = &claims;
        Ok(service_account::user(namespace, account, uid))
    }
}

impl Claims {
    fn check(&self) -> Result<(), String> {
        for (value, name) in [
            (&self.sub, "sub"),
            (&self.namespace, "namespace"),
            (&self.secret, "secretName"),
            (&self.account, "serviceAccountName"),
            (&self.uid, "serviceAccountUID"),
        ] {
            if value.is_empty() {
                return Err(format!("{name} claim is missing"));
            }
        }
        match split_username(&self.sub) {
            Some(parts) if parts == (&self.namespace, &self.account) => Ok(()),
            _ => Err("sub claim is invalid".into()),
        }
    }

    fn check_account(&self, account: &Value) -> Result<(), String> {
        if object::deletion_timestamp(account).is_some() {
            return Err(format!(
                "ServiceAccount {}/{} has been deleted",
                self.namespace, self.account
            ));
        }
        let uid = object::uid(account);
        if uid != self.uid {
            return Err(format!(
                "ServiceAccount UID ({uid}) does not match claim ({})",
                self.uid
            ));
        }
        Ok(())
    }
}

/// Whoever deletes the Secret or puts another token into it takes the old one away.
fn holds(secret: &Value, token: &str) -> Result<(), String> {
    if object::deletion_timestamp(secret).is_some() {
        return Err("Token has been invalidated".into());
    }
    let held = super::decoded(&secret["data"], "token").unwrap_or_default();
    match same(&held, token) {
        true => Ok(()),
        false => Err("Token does not match server's copy".into()),
    }
}

/// A day as labels and the tracking ConfigMap have it.
#[must_use]
pub fn day(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d").to_string()
}

/// Whether the day of the last use has to be written. Another server's clock may have reached tomorrow.
fn due(secret: &Value, now: Timestamp) -> bool {
    let last = secret["metadata"]["labels"][LAST_USED].as_str();
    let known = [0, 24].map(|hours| day(now + SignedDuration::from_hours(hours)));
    last.is_none_or(|last| !known.iter().any(|day| day == last))
}

impl Verifier for LegacyTokens {
    fn verify<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<Verified>, String>> {
        Box::pin(async move {
            if unverified(token).is_none_or(|claims| claims["iss"] != ISSUER) {
                return Ok(None);
            }
            let user = self.user(token).await?;
            Ok(ignoring_audiences(user, audiences, &self.audiences))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claims() -> Claims {
        serde_json::from_value(json!({
            "iss": ISSUER,
            "sub": "system:serviceaccount:ns:robot",
            "kubernetes.io/serviceaccount/namespace": "ns",
            "kubernetes.io/serviceaccount/secret.name": "robot-token",
            "kubernetes.io/serviceaccount/service-account.name": "robot",
            "kubernetes.io/serviceaccount/service-account.uid": "u",
        }))
        .unwrap()
    }

    #[test]
    fn claims_name_one_account() {
        assert_eq!(claims().check(), Ok(()));
        type Spoil = fn(&mut Claims);
        let cases: [(Spoil, &str); 6] = [
            (|c| c.sub.clear(), "sub claim is missing"),
            (|c| c.namespace.clear(), "namespace claim is missing"),
            (|c| c.secret.clear(), "secretName claim is missing"),
            (|c| c.account.clear(), "serviceAccountName claim is missing"),
            (|c| c.uid.clear(), "serviceAccountUID claim is missing"),
            (|c| c.account = "other".into(), "sub claim is invalid"),
        ];
        for (spoil, why) in cases {
            let mut claims = claims();
            spoil(&mut claims);
            assert_eq!(claims.check().unwrap_err(), why);
        }
    }

    #[test]
    fn secret_and_account_must_live() {
        let secret = json!({"data": {"token": "dG9r"}});
        assert_eq!(holds(&secret, "tok"), Ok(()));
        assert!(holds(&secret, "other").is_err());
        assert!(holds(&json!({}), "tok").is_err());
        let mut gone = secret;
        gone["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert!(holds(&gone, "tok").is_err());
        assert_eq!(
            claims().check_account(&json!({"metadata": {"uid": "u"}})),
            Ok(())
        );
        for account in [
            json!({"metadata": {"uid": "another"}}),
            json!({"metadata": {"uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"}}),
        ] {
            assert!(claims().check_account(&account).is_err());
        }
    }

    #[test]
    fn a_use_is_recorded_once_a_day() {
        let now: Timestamp = "2026-02-28T23:00:00Z".parse().unwrap();
        for (label, expected) in [
            (json!(null), true),
            (json!("2026-02-27"), true),
            (json!("2026-02-28"), false),
            (json!("2026-03-01"), false),
            (json!("2026-03-02"), true),
        ] {
            let secret = json!({"metadata": {"labels": {LAST_USED: label}}});
            assert_eq!(due(&secret, now), expected, "{label}");
        }
    }
}
