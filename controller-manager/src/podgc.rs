//! Removes pods that nobody else will: of nodes that are gone, deleted before they had a node, and finished ones
//! beyond a number.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use client::{CancellationToken, Next, WorkQueue};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PropagationPolicy};
use serde_json::json;

use crate::frame::{Context, Result, work};
use crate::meta::created;
use crate::pods;

/// A node that is gone may be back in a moment under the same name.
const QUARANTINE: Duration = Duration::from_secs(40);

/// The pods to remove, and whether each has to be marked as failed first.
pub fn plan(all: &[Arc<Pod>], nodes: &HashSet<String>, threshold: usize) -> Vec<(Arc<Pod>, bool)> {
    let mut doomed = Vec::new();
    let mut terminated = Vec::new();
    for pod in all {
        let node = pods::node_name(pod);
        if node.is_empty() {
            if pod.metadata.deletion_timestamp.is_some() {
                doomed.push((pod.clone(), !pods::is_terminated(pod)));
            }
        } else if !nodes.contains(node) {
            doomed.push((pod.clone(), !pods::is_terminated(pod)));
        } else if pods::is_terminated(pod) {
            terminated.push(pod);
        }
    }
    if threshold > 0 && terminated.len() > threshold {
        terminated.sort_by_key(|p| created(p.as_ref()));
        let excess = terminated.len() - threshold;
        doomed.extend(
            terminated
                .into_iter()
                .take(excess)
                .map(|p| (p.clone(), false)),
        );
    }
    doomed
}

/// Runs the controller: one key stands for all pods.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let (nodes, pods) = (
        &context.informers().nodes().informer,
        &context.informers().pods().informer,
    );
    let q = queue.clone();
    nodes.on_change(move |_, new| {
        if new.is_none() {
            q.add_after("pods".to_owned(), QUARANTINE);
        }
    });
    let (q, copy) = (queue.clone(), nodes.clone());
    pods.on_change(move |old, new| {
        let Some(pod) = new else { return };
        let finished = pods::is_terminated(pod) && !old.is_some_and(|o| pods::is_terminated(o));
        let node = pods::node_name(pod);
        let astray = if node.is_empty() {
            pod.metadata.deletion_timestamp.is_some()
        } else {
            copy.has_synced() && copy.get(node).is_none()
        };
        if finished || astray {
            q.add_after("pods".to_owned(), QUARANTINE);
        }
    });
    nodes.synced().await;
    pods.synced().await;
    queue.add_after("pods".to_owned(), QUARANTINE);
    work(&queue, 1, &token, |_| reconcile(&context)).await;
}

async fn reconcile(context: &Context) -> Result<Next> {
    let (nodes, pods) = (context.informers().nodes(), context.informers().pods());
    let names: HashSet<String> = nodes
        .informer
        .list()
        .iter()
        .filter_map(|n| n.metadata.name.clone())
        .collect();
    for (pod, fail) in plan(
        &pods.informer.list(),
        &names,
        context.settings.terminated_pod_gc_threshold,
    ) {
        let node = pods::node_name(&pod);
        // The copy may be behind: a node that was just made is not missing.
        if !node.is_empty() && !names.contains(node) && nodes.api("").get_opt(node).await?.is_some()
        {
            continue;
        }
        if fail {
            match pods
                .patch_status_strategic(&pod, json!({"phase": "Failed"}))
                .await
            {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            propagation_policy: Some(PropagationPolicy::Background),
            ..Default::default()
        };
        pods.delete_with(&pod, params).await?;
    }
    Ok(Next::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_removed() {
        let pod = |name: &str, node: &str, phase: &str, deleting: bool| -> Arc<Pod> {
            let deletion = deleting.then_some("2026-01-01T00:00:00Z");
            Arc::new(serde_json::from_value(json!({
                "metadata": {"name": name, "deletionTimestamp": deletion, "creationTimestamp": format!("2026-01-0{}T00:00:00Z", name.len())},
                "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase}
            })).unwrap())
        };
        let pods = [
            pod("running", "n", "Running", false),
            pod("orphan", "gone", "Running", false),
            pod("unbound", "", "Pending", true),
            pod("waiting", "", "Pending", false),
            pod("o", "n", "Succeeded", false),
            pod("on", "n", "Failed", false),
        ];
        let nodes = HashSet::from(["n".to_owned()]);
        let show = |threshold| -> Vec<(String, bool)> {
            plan(&pods, &nodes, threshold)
                .iter()
                .map(|(p, f)| (p.metadata.name.clone().unwrap(), *f))
                .collect()
        };
        let lost = [("orphan".to_owned(), true), ("unbound".to_owned(), true)];
        assert_eq!(show(0), lost);
        assert_eq!(show(2), lost);
        assert_eq!(
            show(1),
            [lost.as_slice(), &[("o".to_owned(), false)]].concat()
        );
    }
}
