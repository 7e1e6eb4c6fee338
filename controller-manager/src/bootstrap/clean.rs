//! Deletes bootstrap tokens when they expire.

use std::sync::Arc;
use std::time::Duration;

use client::{CancellationToken, Next, WorkQueue, key_of};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PropagationPolicy;

use super::expiration;
use crate::frame::{Context, Result, work};

/// How long a token has yet; `None` if it stays.
pub fn plan(secret: &Secret, now: Timestamp) -> Option<Duration> {
    let left = expiration(secret)?.duration_since(now);
    Some(Duration::try_from(left).unwrap_or_default())
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let secrets = context.informers().bootstrap_tokens();
    let q = queue.clone();
    secrets
        .informer
        .on_change(move |_, new| new.into_iter().for_each(|s| q.add(key_of(s.as_ref()))));
    secrets.informer.synced().await;
    work(&queue, 1, &token, |key| reconcile(&context, key)).await;
}

async fn reconcile(context: &Context, key: String) -> Result<Next> {
    let secrets = context.informers().bootstrap_tokens();
    let Some(secret) = secrets.informer.get(&key) else {
        return Ok(Next::Done);
    };
    match plan(&secret, Timestamp::now()) {
        None => Ok(Next::Done),
        Some(left) if !left.is_zero() => Ok(Next::After(left)),
        Some(_) => {
            secrets
                .delete(&secret, PropagationPolicy::Background)
                .await?;
            Ok(Next::Done)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::token;
    use super::*;

    #[test]
    fn when_tokens_go() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        for (expiration, wanted) in [
            ("", None),
            ("2026-01-01T01:00:00Z", Some(3600)),
            ("2026-01-01T02:00:00+01:00", Some(3600)),
            ("2026-01-01T00:00:00Z", Some(0)),
            ("2025-01-01T00:00:00Z", Some(0)),
            ("tomorrow", Some(0)),
        ] {
            let secret = token("abcdef", &[("expiration", expiration)]);
            let left = plan(&secret, now).map(|left| left.as_secs());
            assert_eq!(left, wanted, "{expiration:?}");
        }
    }
}
