//! Tokens that another service knows: it is sent a TokenReview.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::UserInfo;
use super::tokens::{Verified, Verifier};
use crate::outbound::{CallError, Client};
use crate::strategy::check::{entries, flag, list, text};

const TIMEOUT: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_millis(500);
const MAX_CACHED: usize = 4096;

/// Asks a webhook, again where it fails for the moment.
pub async fn ask(client: &Client, review: &Value, timeout: Duration) -> Result<Value, CallError> {
    let mut wait = FIRST_WAIT;
    let mut attempt = 1;
    loop {
        match client.post(review, timeout).await {
            Err(CallError::Failed(error)) if attempt < ATTEMPTS => {
                tracing::debug!(error, "a webhook did not answer; asking again");
                tokio::time::sleep(wait).await;
                wait *= 2;
                attempt += 1;
            }
            answer => return answer,
        }
    }
}

pub struct Webhook {
    client: Client,
    version: String,
    ttl: Duration,
    /// The audiences of the API server, for a webhook that knows none.
    audiences: Vec<String>,
    known: Mutex<HashMap<u64, (Instant, Option<Verified>)>>,
    hasher: RandomState,
}

impl Webhook {
    /// The service that a kubeconfig file names, asked in a version of `authentication.k8s.io`.
    pub fn new(
        config: &Path,
        version: &str,
        ttl: Duration,
        audiences: Vec<String>,
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(
            matches!(version, "v1" | "v1beta1"),
            "unsupported authentication webhook version {version:?}, supported versions are \"v1\" and \"v1beta1\""
        );
        Ok(Self {
            client: Client::from_kubeconfig(config)?,
            version: version.to_owned(),
            ttl,
            audiences,
            known: Mutex::default(),
            hasher: RandomState::new(),
        })
    }

    async fn review(&self, token: &str, audiences: &[String]) -> Result<Option<Verified>, String> {
        let wanted = if audiences.is_empty() {
            &self.audiences
        } else {
            audiences
        };
        let review = json!({
            "apiVersion": format!("authentication.k8s.io/{}", self.version), "kind": "TokenReview",
            "metadata": {"creationTimestamp": null},
            "spec": {"token": token, "audiences": wanted},
        });
        let answer = ask(&self.client, &review, TIMEOUT)
            .await
            .map_err(|error| error.to_string())?;
        read(&answer["status"], wanted, &self.audiences)
    }
}

fn read(
    status: &Value,
    wanted: &[String],
    implicit: &[String],
) -> Result<Option<Verified>, String> {
    let error = text(status, "error");
    if !flag(status, "authenticated") {
        return if error.is_empty() {
            Ok(None)
        } else {
            Err(error.to_owned())
        };
    }
    let words = |value: &Value, key: &str| -> Vec<String> {
        list(value, key)
            .iter()
            .filter_map(|word| word.as_str().map(str::to_owned))
            .collect()
    };
    let told = words(status, "audiences");
    let audiences = if told.is_empty() { implicit } else { &told };
    let matching: Vec<String> = wanted
        .iter()
        .filter(|audience| audiences.contains(audience))
        .cloned()
        .collect();
    if matching.is_empty() {
        return Ok(None);
    }
    let user = &status["user"];
    let extra: BTreeMap<String, Vec<String>> = entries(user, "extra")
        .map(|(key, _)| (key.to_owned(), words(&user["extra"], key)))
        .collect();
    let user = UserInfo {
        name: text(user, "username").to_owned(),
        uid: text(user, "uid").to_owned(),
        groups: words(user, "groups"),
        extra,
    };
    Ok(Some((user, matching)))
}

impl Verifier for Webhook {
    fn verify<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<Verified>, String>> {
        Box::pin(async move {
            let key = self.hasher.hash_one((token, audiences));
            let now = Instant::now();
            if let Some((until, known)) = self.known.lock().get(&key)
                && *until > now
            {
                return Ok(known.clone());
            }
            let answer = self.review(token, audiences).await?;
            let mut known = self.known.lock();
            if known.len() >= MAX_CACHED {
                known.clear();
            }
            known.insert(key, (now + self.ttl, answer.clone()));
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reviews_are_read() {
        let words =
            |list: &[&str]| -> Vec<String> { list.iter().map(ToString::to_string).collect() };
        let api = words(&["api"]);
        let status = json!({"authenticated": true, "user": {"username": "jane", "uid": "1", "groups": ["dev"], "extra": {"k": ["v"]}}});
        let (user, audiences) = read(&status, &api, &api).unwrap().unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("jane", "1"));
        assert_eq!(
            (user.groups, user.extra["k"].clone()),
            (words(&["dev"]), words(&["v"]))
        );
        assert_eq!(audiences, api);
        assert_eq!(read(&json!({"authenticated": false}), &api, &api), Ok(None));
        let other = json!({"authenticated": true, "audiences": ["other"]});
        assert_eq!(read(&other, &api, &api), Ok(None));
        let failed = json!({"error": "no"});
        assert_eq!(read(&failed, &api, &api), Err("no".into()));
    }
}
