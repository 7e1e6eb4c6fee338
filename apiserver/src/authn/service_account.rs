//! Service-account tokens: JWTs that are bound to live objects.
//!
//! A token is good while its signature, issuer, audience and times hold and while the service account, and the pod,
//! node or secret it was bound to, still exist under the same uid.

use std::sync::Weak;

use futures::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::keys::{PublicKey, verify};
use super::oidc::unverified;
use super::tokens::{Verified, Verifier};
use super::{AUTHENTICATED, UserInfo};
use crate::registry::Registry;

const USER_PREFIX: &str = "system:serviceaccount:";
pub const ALL_GROUP: &str = "system:serviceaccounts";
/// Clocks may differ by so many seconds.
const LEEWAY: i64 = 60;

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    #[serde(
        default,
        deserialize_with = "one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub aud: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iat: Option<i64>,
    #[serde(default)]
    pub iss: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub jti: String,
    #[serde(default, rename = "kubernetes.io")]
    pub kubernetes: Bound,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    #[serde(default)]
    pub sub: String,
}

/// What a token speaks for, and what it lives and dies with.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    #[serde(default)]
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    #[serde(default)]
    pub serviceaccount: Reference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(d)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    })
}

#[must_use]
pub fn user_name(namespace: &str, name: &str) -> String {
    format!("{USER_PREFIX}{namespace}:{name}")
}

#[must_use]
pub fn group_names(namespace: &str) -> Vec<String> {
    vec![ALL_GROUP.to_owned(), format!("{ALL_GROUP}:{namespace}")]
}

/// Namespace and name in a service account's user name.
#[must_use]
pub fn split_username(user: &str) -> Option<(&str, &str)> {
    use apimachinery::names::{dns1123_label, dns1123_subdomain};
    let (namespace, name) = user.strip_prefix(USER_PREFIX)?.split_once(':')?;
    (dns1123_label(namespace).is_empty() && dns1123_subdomain(name).is_empty())
        .then_some((namespace, name))
}

/// Checks service-account tokens.
pub struct ServiceAccounts {
    pub keys: Vec<PublicKey>,
    pub issuers: Vec<String>,
    /// What the API server itself answers to.
    pub api_audiences: Vec<String>,
    pub registry: Weak<Registry>,
}

impl ServiceAccounts {
    /// The identity in a token, and which of the wanted audiences it is for. No audiences wanted: the API server's.
    pub async fn authenticate(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(UserInfo, Vec<String>), String> {
        let claims = verify(&self.keys, token).map_err(|e| format!("invalid signature: {e}"))?;
        let claims: Claims =
            serde_json::from_value(claims).map_err(|e| format!("invalid claims: {e}"))?;
        if !self.issuers.contains(&claims.iss) {
            return Err(format!("token issuer {:?} is invalid", claims.iss));
        }
        let wanted = if audiences.is_empty() {
            &self.api_audiences
        } else {
            audiences
        };
        let matching: Vec<String> = wanted
            .iter()
            .filter(|a| claims.aud.contains(a))
            .cloned()
            .collect();
        if matching.is_empty() {
            return Err(format!(
                "token audiences {:?} is invalid for the target audiences {wanted:?}",
                claims.aud
            ));
        }
        check_times(&claims, Timestamp::now().as_second())?;
        self.check_live(&claims).await?;
        Ok((user_of(&claims), matching))
    }

    async fn check_live(&self, claims: &Claims) -> Result<(), String> {
        let registry = self.registry.upgrade().ok_or("shutting down")?;
        let bound = &claims.kubernetes;
        let account = &bound.serviceaccount;
        let namespace = bound.namespace.as_str();
        let live = |plural, namespace, name| registry.get("", plural, namespace, name);
        let object = live("serviceaccounts", namespace, &account.name)
            .await
            .map_err(|e| e.message)?;
        check_object("service account", "claim", account, &object.value())?;
        for (plural, what, reference) in [
            ("secrets", "secret", &bound.secret),
            ("pods", "pod", &bound.pod),
        ] {
            let Some(reference) = reference else { continue };
            let found = live(plural, namespace, &reference.name).await;
            let object = found.map_err(|_| "service account token has been invalidated")?;
            check_object(
                what,
                &format!("service account {what} ref claim"),
                reference,
                &object.value(),
            )?;
        }
        if let (Some(node), None) = (&bound.node, &bound.pod) {
            let found = live("nodes", "", &node.name).await;
            let object = found.map_err(|_| "service account token has been invalidated")?;
            check_object(
                "node",
                "service account node ref claim",
                node,
                &object.value(),
            )?;
        }
        Ok(())
    }
}

/// The object must be the one that was meant, and not deleted a while ago.
fn check_object(
    what: &str,
    claim: &str,
    reference: &Reference,
    object: &Value,
) -> Result<(), String> {
    let uid = apimachinery::object::uid(object);
    if uid != reference.uid {
        let what = if what == "service account" {
            "service account UID".into()
        } else {
            format!("{what} UID")
        };
        return Err(format!(
            "{what} ({uid}) does not match {claim} ({})",
            reference.uid
        ));
    }
    let deleted =
        apimachinery::object::deletion_timestamp(object).and_then(apimachinery::time::parse);
    if deleted.is_some_and(|at| at.as_second() < Timestamp::now().as_second() - LEEWAY) {
        return Err("service account token has been invalidated".into());
    }
    Ok(())
}

fn check_times(claims: &Claims, now: i64) -> Result<(), String> {
    if claims.nbf.is_some_and(|nbf| now + LEEWAY < nbf) {
        return Err("service account token is not valid yet".into());
    }
    if claims.exp.is_none_or(|exp| now - LEEWAY > exp) {
        return Err("service account token has expired".into());
    }
    if claims.iat.is_some_and(|iat| now + LEEWAY < iat) {
        return Err("service account token is issued in the future".into());
    }
    Ok(())
}

/// Whom a service account is let in as.
#[must_use]
pub fn user(namespace: &str, name: &str, uid: &str) -> UserInfo {
    let mut groups = group_names(namespace);
    groups.push(AUTHENTICATED.to_owned());
    UserInfo {
        name: user_name(namespace, name),
        uid: uid.to_owned(),
        groups,
        ..UserInfo::default()
    }
}

fn user_of(claims: &Claims) -> UserInfo {
    let bound = &claims.kubernetes;
    let account = &bound.serviceaccount;
    let mut user = user(&bound.namespace, &account.name, &account.uid);
    let mut extra = |key: &str, value: String| {
        if !value.is_empty() {
            user.extra
                .insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        }
    };
    for (what, reference) in [("pod", &bound.pod), ("node", &bound.node)] {
        if let Some(reference) = reference {
            extra(&format!("{what}-name"), reference.name.clone());
            extra(&format!("{what}-uid"), reference.uid.clone());
        }
    }
    if !claims.jti.is_empty() {
        extra("credential-id", format!("JTI={}", claims.jti));
    }
    user
}

impl Verifier for ServiceAccounts {
    fn verify<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<Verified>, String>> {
        Box::pin(async move {
            let issuer = unverified(token).map(|claims| claims["iss"].as_str().map(str::to_owned));
            match issuer.flatten() {
                Some(issuer) if self.issuers.contains(&issuer) => {
                    self.authenticate(token, audiences).await.map(Some)
                }
                _ => Ok(None),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names() {
        assert_eq!(
            split_username("system:serviceaccount:ns:sa.x"),
            Some(("ns", "sa.x"))
        );
        for bad in [
            "system:serviceaccount:ns",
            "system:serviceaccount:n.s:sa",
            "system:serviceaccount::x",
            "jane",
            "system:serviceaccount:a:b:c",
        ] {
            assert_eq!(split_username(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_have_a_leeway() {
        let claims = |nbf, exp| Claims {
            nbf: Some(nbf),
            iat: Some(nbf),
            exp: Some(exp),
            ..Claims::default()
        };
        for (nbf, exp, want) in [
            (0, 2000, ""),
            (1050, 2000, ""),
            (1061, 2000, "service account token is not valid yet"),
            (0, 950, ""),
            (0, 939, "service account token has expired"),
        ] {
            assert_eq!(
                check_times(&claims(nbf, exp), 1000)
                    .err()
                    .unwrap_or_default(),
                want,
                "{nbf} {exp}"
            );
        }
        assert!(
            check_times(&Claims::default(), 1000).is_err(),
            "a token has to end"
        );
    }

    #[test]
    fn claims_become_a_user() {
        let claims: Claims = serde_json::from_value(json!({
            "aud": "one", "exp": 9, "iss": "i", "jti": "j", "sub": "system:serviceaccount:ns:sa",
            "kubernetes.io": {"namespace": "ns", "serviceaccount": {"name": "sa", "uid": "u"}, "pod": {"name": "p", "uid": "pu"}, "node": {"name": "n"}},
        }))
        .unwrap();
        assert_eq!(claims.aud, ["one"]);
        let user = user_of(&claims);
        assert_eq!(
            (user.name.as_str(), user.uid.as_str()),
            ("system:serviceaccount:ns:sa", "u")
        );
        assert_eq!(
            user.groups,
            [
                "system:serviceaccounts",
                "system:serviceaccounts:ns",
                "system:authenticated"
            ]
        );
        let extra = |k: &str| {
            user.extra
                .get(&format!("authentication.kubernetes.io/{k}"))
                .map(|v| v[0].as_str())
        };
        assert_eq!(
            [
                extra("pod-name"),
                extra("pod-uid"),
                extra("node-name"),
                extra("node-uid"),
                extra("credential-id")
            ],
            [Some("p"), Some("pu"), Some("n"), None, Some("JTI=j")]
        );
    }

    #[test]
    fn the_object_must_be_the_same_one() {
        let reference = Reference {
            name: "x".into(),
            uid: "1".into(),
        };
        let object = |uid: &str, deleted: Option<&str>| json!({"metadata": {"uid": uid, "deletionTimestamp": deleted}});
        assert!(check_object("pod", "claim", &reference, &object("1", None)).is_ok());
        assert_eq!(
            check_object("pod", "claim", &reference, &object("2", None)).unwrap_err(),
            "pod UID (2) does not match claim (1)"
        );
        assert!(
            check_object(
                "pod",
                "claim",
                &reference,
                &object("1", Some("2020-01-01T00:00:00Z"))
            )
            .is_err()
        );
    }
}
