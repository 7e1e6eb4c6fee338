//! Evicts pods from nodes with NoExecute taints, as soon as their tolerations run out.

use std::sync::Arc;
use std::time::Duration;

use client::events::{EventType, reference};
use client::{CancellationToken, Next, WorkQueue, key_of};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::DeleteParams;
use serde_json::json;

use crate::frame::{Context, Result, WORKERS, work};
use crate::informers::NODE;
use crate::pods;

/// What is to become of a pod.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    Stay,
    /// Tolerated for so long yet.
    EvictAfter(Duration),
    Evict,
}

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let set = |s: &Option<String>| s.clone().filter(|s| !s.is_empty());
    let effect = set(&toleration.effect).is_none_or(|e| e == taint.effect);
    let key = set(&toleration.key).is_none_or(|k| k == taint.key);
    let exists = toleration.operator.as_deref() == Some("Exists");
    let same = toleration.value.as_deref().unwrap_or_default()
        == taint.value.as_deref().unwrap_or_default();
    effect && key && (exists || same)
}

/// Decides about a pod on a node with these taints: every NoExecute taint has to be tolerated, and the shortest
/// `tolerationSeconds` counts from when the first of them was added.
pub fn plan(tolerations: &[Toleration], taints: &[Taint], now: Timestamp) -> Plan {
    let executing: Vec<&Taint> = taints.iter().filter(|t| t.effect == "NoExecute").collect();
    let mut shortest: Option<i64> = None;
    for taint in &executing {
        let matching: Vec<&Toleration> =
            tolerations.iter().filter(|t| tolerates(t, taint)).collect();
        if matching.is_empty() {
            return Plan::Evict;
        }
        let limit = matching.iter().filter_map(|t| t.toleration_seconds).min();
        shortest = [shortest, limit].into_iter().flatten().min();
    }
    let Some(seconds) = shortest else {
        return Plan::Stay;
    };
    let since = executing
        .iter()
        .filter_map(|t| t.time_added.as_ref().map(|t| t.0))
        .min()
        .unwrap_or(now);
    let left = (since + SignedDuration::from_secs(seconds.max(0))).duration_since(now);
    match Duration::try_from(left) {
        Ok(left) if !left.is_zero() => Plan::EvictAfter(left),
        _ => Plan::Evict,
    }
}

fn taints(node: &Node) -> &[Taint] {
    node.spec
        .as_ref()
        .and_then(|s| s.taints.as_deref())
        .unwrap_or_default()
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let (nodes, pods) = (
        &context.informers().nodes().informer,
        &context.informers().pods().informer,
    );
    let (q, copy) = (queue.clone(), pods.clone());
    nodes.on_change(move |old, new| {
        let Some(node) = new.filter(|n| old.map(|o| taints(o)) != Some(taints(n))) else {
            return;
        };
        if taints(node).iter().any(|t| t.effect == "NoExecute") {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            copy.by_index(NODE, name)
                .iter()
                .for_each(|p| q.add(key_of(p.as_ref())));
        }
    });
    let (q, copy) = (queue.clone(), nodes.clone());
    pods.on_change(move |old, new| {
        let Some(pod) = new else { return };
        let settled = old.is_some_and(|o| {
            let tolerations = |p: &Pod| p.spec.as_ref().and_then(|s| s.tolerations.clone());
            pods::node_name(o) == pods::node_name(pod) && tolerations(o) == tolerations(pod)
        });
        let node = copy.get(pods::node_name(pod)).filter(|_| !settled);
        if node.is_some_and(|n| taints(&n).iter().any(|t| t.effect == "NoExecute")) {
            q.add(key_of(pod.as_ref()));
        }
    });
    nodes.synced().await;
    pods.synced().await;
    work(&queue, WORKERS, &token, |key| reconcile(&context, key)).await;
}

async fn reconcile(context: &Context, key: String) -> Result<Next> {
    let pods = context.informers().pods();
    let Some(pod) = pods
        .informer
        .get(&key)
        .filter(|p| p.metadata.deletion_timestamp.is_none())
    else {
        return Ok(Next::Done);
    };
    let Some(node) = context
        .informers()
        .nodes()
        .informer
        .get(pods::node_name(&pod))
    else {
        return Ok(Next::Done);
    };
    let tolerations = pod
        .spec
        .as_ref()
        .and_then(|s| s.tolerations.clone())
        .unwrap_or_default();
    let now = Timestamp::now();
    match plan(&tolerations, taints(&node), now) {
        Plan::Stay => Ok(Next::Done),
        Plan::EvictAfter(left) => Ok(Next::After(left)),
        Plan::Evict => {
            let message = format!("Marking for deletion Pod {key}");
            context.recorder("taint-eviction-controller").event(
                &reference(pod.as_ref()),
                EventType::Normal,
                "TaintManagerEviction",
                message,
            );
            let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": Time(now)});
            match pods
                .patch_status_strategic(&pod, json!({"conditions": [condition]}))
                .await
            {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
            pods.delete_with(&pod, DeleteParams::default()).await?;
            Ok(Next::Done)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn who_stays_and_for_how_long() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let lost =
            json!({"key": "lost", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"});
        let other = json!({"key": "other", "effect": "NoExecute"});
        let no_schedule = json!({"key": "x", "effect": "NoSchedule"});
        let tolerate = |key: &str, seconds: Value| json!({"key": key, "operator": "Exists", "tolerationSeconds": seconds});
        let secs = Duration::from_secs;
        for (tolerations, taints, want) in [
            (json!([]), json!([no_schedule]), Plan::Stay),
            (json!([]), json!([lost]), Plan::Evict),
            (
                json!([tolerate("lost", json!(null))]),
                json!([lost]),
                Plan::Stay,
            ),
            (
                json!([tolerate("lost", json!(300))]),
                json!([lost]),
                Plan::EvictAfter(secs(240)),
            ),
            (
                json!([tolerate("lost", json!(30))]),
                json!([lost]),
                Plan::Evict,
            ),
            (
                json!([tolerate("lost", json!(300))]),
                json!([lost, other]),
                Plan::Evict,
            ),
            (
                json!([tolerate("lost", json!(300)), tolerate("other", json!(90))]),
                json!([lost, other]),
                Plan::EvictAfter(secs(30)),
            ),
        ] {
            let t: Vec<Toleration> = serde_json::from_value(tolerations.clone()).unwrap();
            let taints: Vec<Taint> = serde_json::from_value(taints.clone()).unwrap();
            assert_eq!(plan(&t, &taints, now), want, "{tolerations}");
        }
    }
}
