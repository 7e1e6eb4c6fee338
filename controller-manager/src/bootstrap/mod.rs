//! What joining machines lean on: bootstrap tokens that end, and a `cluster-info` that a token vouches for.
//!
//! [`clean`] deletes tokens when they expire. [`sign`] signs the kubeconfig in the ConfigMap `kube-public/cluster-info` with
//! every token that may do so, so that who knows a token can trust what anybody may read.

pub mod clean;
pub mod sign;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

/// A value of a token's Secret; empty if there is none.
fn text<'a>(secret: &'a Secret, key: &str) -> &'a str {
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    value
        .and_then(|value| std::str::from_utf8(&value.0).ok())
        .unwrap_or_default()
}

/// When a token ends; `None` if it does not. What cannot be read has ended.
fn expiration(secret: &Secret) -> Option<Timestamp> {
    match text(secret, "expiration") {
        "" => None,
        at => Some(at.parse().unwrap_or(Timestamp::MIN)),
    }
}

#[cfg(test)]
fn token(id: &str, more: &[(&str, &str)]) -> Secret {
    let mut data = serde_json::json!({"token-id": id, "token-secret": "0123456789abcdef", "usage-bootstrap-signing": "true"});
    more.iter()
        .for_each(|(key, value)| data[*key] = (*value).into());
    let mut secret: Secret = serde_json::from_value(serde_json::json!({
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "type": "bootstrap.kubernetes.io/token",
    }))
    .unwrap();
    let texts = data.as_object().unwrap().iter();
    let bytes = texts.map(|(key, value)| {
        let value = value.as_str().unwrap().as_bytes().to_vec();
        (key.clone(), k8s_openapi::ByteString(value))
    });
    secret.data = Some(bytes.collect());
    secret
}
