//! Keeps the status of ValidatingAdmissionPolicies: which generation has been looked at, and what its type check found.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::status::Result;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::GROUP;
use super::typecheck;
use crate::cache::Selection;
use crate::registry::Registry;

const POLICIES: &str = "validatingadmissionpolicies";
const RETRY: Duration = Duration::from_secs(1);

/// Follows the policies until `shutdown`.
pub async fn run(registry: Arc<Registry>, shutdown: CancellationToken) {
    let follow = async {
        loop {
            if let Err(error) = follow(&registry).await {
                tracing::warn!(%error, "checking the types of admission policies failed; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    tokio::select! {
        () = follow => {}
        () = shutdown.cancelled() => {}
    }
}

async fn follow(registry: &Registry) -> Result<()> {
    let cache = registry.cache_of(GROUP, POLICIES)?;
    let reached = cache.loaded().await?;
    let mut changes = cache.subscribe(Selection::default(), true, reached);
    let initial = std::mem::take(&mut changes.initial);
    for change in initial {
        check(registry, &change.object.value()).await?;
    }
    // It ends when this was too slow for it, or the cache had to start over.
    while let Some(change) = changes.receiver.recv().await {
        if change.kind != crate::cache::ChangeKind::Deleted {
            check(registry, &change.object.value()).await?;
        }
    }
    Ok(())
}

fn generation(policy: &Value) -> i64 {
    policy["metadata"]["generation"].as_i64().unwrap_or(0)
}

fn is_checked(policy: &Value) -> bool {
    policy["status"]["observedGeneration"].as_i64().unwrap_or(0) >= generation(policy)
}

async fn check(registry: &Registry, policy: &Value) -> Result<()> {
    if is_checked(policy) {
        return Ok(());
    }
    let (seen, table) = (generation(policy), registry.table());
    let warnings = typecheck::warnings(policy, &table);
    let change = |object: &mut Value| {
        // A newer one comes by itself.
        if generation(object) == seen && !is_checked(object) {
            let checking = match warnings.is_empty() {
                true => json!({}),
                false => json!({"expressionWarnings": warnings}),
            };
            object["status"]["observedGeneration"] = seen.into();
            object["status"]["typeChecking"] = checking;
        }
        Ok(())
    };
    let name = apimachinery::object::name(policy);
    match registry
        .update_status_as_server(GROUP, POLICIES, ("", name), change)
        .await
    {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}
