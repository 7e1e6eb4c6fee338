//! Tokens of OpenID Connect issuers.
//!
//! An issuer's keys are fetched when a token of it first comes, kept, and fetched again when one comes with a key that is
//! not among them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::future::BoxFuture;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;
use tokio::sync::Mutex;

use super::UserInfo;
use super::tokens::{Verified, Verifier, ignoring_audiences};
use crate::outbound::Client;
use crate::strategy::check::{list, text};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Tokens with unknown keys make us ask the issuer no more often than this.
const PAUSE: Duration = Duration::from_secs(1);

/// What is expected of an issuer's tokens, and how they become users.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Issuer {
    pub url: String,
    /// Where its configuration is, if not below the URL.
    pub discovery_url: String,
    /// A token has to be for one of these.
    pub audiences: Vec<String>,
    pub username: Mapping,
    pub groups: Option<Mapping>,
    /// The claim that is the user's uid.
    pub uid: Option<String>,
    pub required: BTreeMap<String, String>,
    pub algorithms: Vec<Algorithm>,
}

/// A claim, and what is put before its value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapping {
    pub claim: String,
    pub prefix: String,
}

pub struct Oidc {
    issuer: Issuer,
    client: Client,
    /// The audiences of the API server: what a token is good for does not say which of them is meant.
    audiences: Vec<String>,
    keys: Mutex<Keys>,
}

#[derive(Default)]
struct Keys {
    set: Option<JwkSet>,
    fetched: Option<Instant>,
}

/// The claims of a token that nobody has checked: only to see whose it is.
#[must_use]
pub fn unverified(token: &str) -> Option<Value> {
    let mut parts = token.split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?).ok()
}

impl Oidc {
    #[must_use]
    pub fn new(issuer: Issuer, client: Client, audiences: Vec<String>) -> Self {
        Self {
            issuer,
            client,
            audiences,
            keys: Mutex::default(),
        }
    }

    async fn claims(&self, token: &str) -> Result<Value, String> {
        let mut keys = self.keys.lock().await;
        if let Some(set) = &keys.set
            && let Ok(claims) = self.check(token, set)
        {
            return Ok(claims);
        }
        let rested = keys.fetched.is_none_or(|at| at.elapsed() > PAUSE);
        if keys.set.is_none() || rested {
            if !rested {
                return Err("oidc: authenticator not initialized".into());
            }
            keys.fetched = Some(Instant::now());
            keys.set = Some(self.fetch().await?);
        }
        match &keys.set {
            Some(set) => self.check(token, set),
            None => Err("oidc: authenticator not initialized".into()),
        }
    }

    async fn fetch(&self) -> Result<JwkSet, String> {
        let failed = |error: &dyn std::fmt::Display| format!("oidc: fetching keys: {error}");
        let base = self.issuer.url.trim_end_matches('/');
        let configuration = match self.issuer.discovery_url.as_str() {
            "" => format!("{base}/.well-known/openid-configuration"),
            url => url.to_owned(),
        };
        let document = self
            .client
            .get(&configuration, TIMEOUT)
            .await
            .map_err(|error| failed(&error))?;
        let said = text(&document, "issuer");
        if said != self.issuer.url {
            return Err(format!(
                "oidc: issuer did not match the issuer returned by provider, expected {:?} got {said:?}",
                self.issuer.url
            ));
        }
        let keys = self
            .client
            .get(text(&document, "jwks_uri"), TIMEOUT)
            .await
            .map_err(|error| failed(&error))?;
        // Keys of kinds that are not known here are left out, not refused: others may still hold.
        let known = list(&keys, "keys")
            .iter()
            .filter_map(|key| serde_json::from_value(key.clone()).ok());
        Ok(JwkSet {
            keys: known.collect(),
        })
    }

    /// The claims, if a key of the set has signed them and it is neither too early nor too late.
    fn check(&self, token: &str, set: &JwkSet) -> Result<Value, String> {
        let header = jsonwebtoken::decode_header(token).map_err(|error| error.to_string())?;
        if !self.issuer.algorithms.contains(&header.alg) {
            return Err(format!(
                "oidc: id token signed with unsupported algorithm, expected {:?} got {:?}",
                self.issuer.algorithms, header.alg
            ));
        }
        let named =
            |key: &&jsonwebtoken::jwk::Jwk| header.kid.is_none() || key.common.key_id == header.kid;
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[&self.issuer.url]);
        validation.set_audience(&self.issuer.audiences);
        validation.validate_nbf = true;
        validation.leeway = 0;
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let mut last = "failed to verify id token signature".to_owned();
        for key in set.keys.iter().filter(named) {
            let decoded = DecodingKey::from_jwk(key)
                .and_then(|key| jsonwebtoken::decode::<Value>(token, &key, &validation));
            match decoded {
                Ok(data) => return Ok(data.claims),
                Err(error) => last = error.to_string(),
            }
        }
        Err(format!("oidc: verify token: {last}"))
    }
}

impl Issuer {
    fn user(&self, claims: &Value) -> Result<UserInfo, String> {
        let claim = &self.username.claim;
        let Some(name) = claims[claim].as_str().filter(|name| !name.is_empty()) else {
            return Err(format!(
                "oidc: parse username claims {claim:?}: claim not present"
            ));
        };
        if claim == "email" && claims.get("email_verified").is_some_and(|v| v != true) {
            return Err("oidc: email not verified".into());
        }
        let mut user = UserInfo::new(format!("{}{name}", self.username.prefix), &[]);
        if let Some(Mapping { claim, prefix }) = &self.groups {
            let named: Vec<&str> = match &claims[claim] {
                Value::Null => Vec::new(),
                Value::String(one) => vec![one],
                Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
                _ => {
                    return Err(format!(
                        "oidc: parse groups claim {claim:?}: not a list of strings"
                    ));
                }
            };
            user.groups = named
                .iter()
                .map(|group| format!("{prefix}{group}"))
                .collect();
        }
        if let Some(claim) = &self.uid {
            user.uid = text(claims, claim).to_owned();
        }
        for (claim, wanted) in &self.required {
            match claims[claim].as_str() {
                None => {
                    return Err(format!(
                        "oidc: required claim {claim} not present in ID token"
                    ));
                }
                Some(found) if found != wanted => {
                    return Err(format!(
                        "oidc: required claim {claim} value does not match. Got = {found}, want = {wanted}"
                    ));
                }
                Some(_) => {}
            }
        }
        let jti = text(claims, "jti");
        if !jti.is_empty() {
            let id = "authentication.kubernetes.io/credential-id";
            user.extra.insert(id.into(), vec![format!("JTI={jti}")]);
        }
        Ok(user)
    }
}

impl Verifier for Oidc {
    fn verify<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<Verified>, String>> {
        Box::pin(async move {
            let ours =
                unverified(token).is_some_and(|claims| text(&claims, "iss") == self.issuer.url);
            if !ours {
                return Ok(None);
            }
            let user = self.issuer.user(&self.claims(token).await?)?;
            Ok(ignoring_audiences(user, audiences, &self.audiences))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn issuer() -> Issuer {
        Issuer {
            url: "https://issuer.example.com".into(),
            username: Mapping {
                claim: "email".into(),
                prefix: String::new(),
            },
            groups: Some(Mapping {
                claim: "groups".into(),
                prefix: "oidc:".into(),
            }),
            required: [("hd".to_owned(), "example.com".to_owned())].into(),
            ..Issuer::default()
        }
    }

    #[test]
    fn claims_become_a_user() {
        let good = json!({"email": "jane@example.com", "email_verified": true, "groups": ["dev"], "hd": "example.com", "jti": "x"});
        let user = issuer().user(&good).unwrap();
        assert_eq!(user.name, "jane@example.com");
        assert_eq!(user.groups, ["oidc:dev"]);
        let with = |key: &str, value: Value| {
            let mut claims = good.clone();
            claims[key] = value;
            issuer().user(&claims)
        };
        assert_eq!(with("groups", json!("ops")).unwrap().groups, ["oidc:ops"]);
        for (key, value) in [
            ("email", Value::Null),
            ("email_verified", json!(false)),
            ("groups", json!(5)),
            ("hd", json!("other")),
            ("hd", Value::Null),
        ] {
            assert!(with(key, value.clone()).is_err(), "{key} {value}");
        }
    }

    #[test]
    fn claims_can_be_looked_at() {
        let token = format!("h.{}.s", URL_SAFE_NO_PAD.encode(r#"{"iss":"i"}"#));
        assert_eq!(unverified(&token), Some(json!({"iss": "i"})));
        for bad in ["", "a.b", "a.b.c", "abcdef.0123456789abcdef"] {
            assert_eq!(unverified(bad), None, "{bad}");
        }
    }
}
