//! Signs `cluster-info` with every bootstrap token that is for signing.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use client::{CancellationToken, Next, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use ring::hmac;
use serde_json::{Map, Value, json};

use super::{expiration, text};
use crate::frame::{Context, Result, work};

/// The ConfigMap, and its two kinds of keys.
const CLUSTER_INFO: &str = "kube-public/cluster-info";
const KUBECONFIG: &str = "kubeconfig";
const SIGNATURE: &str = "jws-kubeconfig-";

/// The changes of the ConfigMap's data that bring its signatures up to date; empty if they are.
pub fn plan(map: &ConfigMap, tokens: &[Arc<Secret>], now: Timestamp) -> Map<String, Value> {
    let empty = BTreeMap::new();
    let data = map.data.as_ref().unwrap_or(&empty);
    let mut changes = Map::new();
    let Some(content) = data.get(KUBECONFIG) else {
        return changes;
    };
    let mut wanted: BTreeMap<String, String> = BTreeMap::new();
    for (id, secret) in tokens.iter().filter_map(|secret| signing(secret, now)) {
        wanted.insert(format!("{SIGNATURE}{id}"), signature(content, id, secret));
    }
    for key in data.keys().filter(|key| key.starts_with(SIGNATURE)) {
        if !wanted.contains_key(key) {
            changes.insert(key.clone(), Value::Null);
        }
    }
    for (key, value) in wanted {
        if data.get(&key) != Some(&value) {
            changes.insert(key, value.into());
        }
    }
    changes
}

/// The id and secret of a token that may sign.
fn signing(secret: &Secret, now: Timestamp) -> Option<(&str, &str)> {
    let named = secret
        .metadata
        .name
        .as_deref()?
        .strip_prefix("bootstrap-token-")?;
    let (id, value) = (text(secret, "token-id"), text(secret, "token-secret"));
    let is_id = id.len() == 6
        && id
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let usable = is_id
        && id == named
        && !value.is_empty()
        && text(secret, "usage-bootstrap-signing") == "true"
        && expiration(secret).is_none_or(|end| end > now);
    usable.then_some((id, value))
}

/// A compact JWS without its content, which stands beside it.
fn signature(content: &str, id: &str, secret: &str) -> String {
    // kubeadm compares the whole text, so the fields are in the order that Go gives them.
    let header = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "kid": id}).to_string());
    let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes()));
    format!("{header}..{signature}")
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let secrets = context.informers().bootstrap_tokens();
    let maps = context.informers().cluster_info();
    let q = queue.clone();
    maps.informer.on_change(move |_, _| q.add(()));
    let q = queue.clone();
    secrets.informer.on_change(move |_, _| q.add(()));
    maps.informer.synced().await;
    secrets.informer.synced().await;
    work(&queue, 1, &token, |()| reconcile(&context)).await;
}

async fn reconcile(context: &Context) -> Result<Next> {
    let maps = context.informers().cluster_info();
    let Some(map) = maps.informer.get(CLUSTER_INFO) else {
        return Ok(Next::Done);
    };
    let tokens = context.informers().bootstrap_tokens().informer.list();
    let changes = plan(&map, &tokens, Timestamp::now());
    if !changes.is_empty() {
        maps.patch_exact(&map, json!({"data": changes})).await?;
    }
    Ok(Next::Done)
}

#[cfg(test)]
mod tests {
    use super::super::token;
    use super::*;

    fn map(data: Value) -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"name": "cluster-info"}, "data": data})).unwrap()
    }

    #[test]
    fn signatures_follow_the_tokens() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let good = Arc::new(token("abcdef", &[]));
        let signed = signature("config", "abcdef", "0123456789abcdef");
        let key = "jws-kubeconfig-abcdef";
        let fresh = map(json!({"kubeconfig": "config"}));
        let changes =
            |map: &ConfigMap, tokens: &[Arc<Secret>]| Value::Object(plan(map, tokens, now));
        assert_eq!(
            changes(&fresh, std::slice::from_ref(&good)),
            json!({key: signed})
        );
        let done = map(json!({"kubeconfig": "config", key: signed}));
        assert_eq!(changes(&done, std::slice::from_ref(&good)), json!({}));
        assert_eq!(changes(&done, &[]), json!({key: null}));
        let changed = map(json!({"kubeconfig": "other", key: signed}));
        assert_ne!(changes(&changed, std::slice::from_ref(&good)), json!({}));
        assert_eq!(
            changes(&map(json!({})), std::slice::from_ref(&good)),
            json!({})
        );
        for more in [
            ("usage-bootstrap-signing", "false"),
            ("expiration", "2025-01-01T00:00:00Z"),
            ("token-id", "other1"),
            ("token-secret", ""),
        ] {
            let bad = Arc::new(token("abcdef", &[more]));
            assert_eq!(changes(&fresh, &[bad]), json!({}), "{more:?}");
        }
    }

    /// The expected signature was made with openssl.
    #[test]
    fn the_signature_is_one_of_hs256() {
        let signed = signature("config", "abcdef", "0123456789abcdef");
        let (header, rest) = signed.split_once("..").unwrap();
        assert_eq!(header, "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9");
        assert_eq!(rest, "bTeHbksnlLJBm7Vi0Ei2oppeiyS8yaqjp8xiz72--Bs");
    }
}
