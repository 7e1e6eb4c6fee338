//! The node's own presence in the API: the Node object and its status, and the Lease
//! that says every ten seconds that the node is alive.

pub mod facts;
pub mod lease;
pub mod status;

use std::sync::Arc;
use std::time::Duration;

use client::CancellationToken;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node as ApiNode, ObjectReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::context::{Node, RuntimeState};
use crate::cri::Runtime;

/// With nothing to say, the status is written again so often.
const REPORT: SignedDuration = SignedDuration::from_secs(300);
/// How often a runtime that is ready is asked whether it still is.
const CHECK: Duration = Duration::from_secs(10);

/// Registers the node and keeps its status true until the shutdown.
pub async fn run(node: Arc<Node>, info: facts::NodeInfo, shutdown: CancellationToken) {
    let api = Api::<ApiNode>::all(node.client.clone());
    let mut delay = Duration::from_millis(50);
    let mut current = loop {
        match register(&node, &api, &info).await {
            Ok(current) => break current,
            Err(error) => tracing::warn!(%error, "the node could not be registered yet"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(delay) => delay = (delay * 2).min(Duration::from_secs(5)),
        }
    };
    tracing::info!(node = node.name, "registered");
    event(
        &node,
        "Starting",
        "Starting kubelet.",
        client::EventType::Normal,
    );
    let mut state = node.state.subscribe();
    let mut reported: Option<Timestamp> = None;
    loop {
        let now = Timestamp::now();
        let ready = state.borrow_and_update().clone();
        let wanted = status::node_status(&info, &ready, current.status.as_ref(), now);
        let due = reported.is_none_or(|at| now.duration_since(at) >= REPORT);
        let mut wait = REPORT
            - reported.map_or(SignedDuration::ZERO, |at| {
                now.duration_since(at).min(REPORT)
            });
        if due || status::differs(current.status.as_ref(), &wanted) {
            let patch = json!({ "status": wanted });
            match api
                .patch_status(
                    &node.name,
                    &PatchParams::default(),
                    &Patch::Strategic(&patch),
                )
                .await
            {
                Ok(next) => {
                    announce(&node, &current, &next);
                    current = next;
                    reported = Some(now);
                    wait = REPORT;
                }
                Err(kube::Error::Api(e)) if e.code == 404 => {
                    // Somebody deleted the node under us: it comes back.
                    if let Ok(fresh) = register(&node, &api, &info).await {
                        current = fresh;
                    }
                    wait = SignedDuration::from_secs(1);
                }
                Err(error) => {
                    tracing::warn!(%error, "the node's status was not taken");
                    wait = SignedDuration::from_secs(1);
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = state.changed() => {}
            () = tokio::time::sleep(wait.unsigned_abs()) => {}
        }
    }
}

/// Creates the node, or takes over the one that is there and brings its labels up to date.
async fn register(
    node: &Node,
    api: &Api<ApiNode>,
    info: &facts::NodeInfo,
) -> Result<ApiNode, kube::Error> {
    let mut fresh = status::registration(&node.name, &node.flags);
    let ready = node.state.borrow().clone();
    fresh.status = Some(status::node_status(info, &ready, None, Timestamp::now()));
    match api.create(&PostParams::default(), &fresh).await {
        Err(kube::Error::Api(e)) if e.code == 409 => {}
        other => return other,
    }
    let found = api.get(&node.name).await?;
    let labels = fresh.metadata.labels.unwrap_or_default();
    let has = found.metadata.labels.clone().unwrap_or_default();
    if labels.iter().all(|(k, v)| has.get(k) == Some(v)) {
        return Ok(found);
    }
    let patch = json!({"metadata": {"labels": labels}});
    api.patch(
        &node.name,
        &PatchParams::default(),
        &Patch::Strategic(&patch),
    )
    .await
}

fn announce(node: &Node, before: &ApiNode, after: &ApiNode) {
    let was = status::is_ready(before.status.as_ref());
    let is = status::is_ready(after.status.as_ref());
    if was != is {
        let reason = if is { "NodeReady" } else { "NodeNotReady" };
        event(
            node,
            reason,
            &format!("Node {} status is now: {reason}", node.name),
            client::EventType::Normal,
        );
    }
}

fn event(node: &Node, reason: &str, message: &str, kind: client::EventType) {
    let about = ObjectReference {
        kind: Some("Node".into()),
        name: Some(node.name.clone()),
        uid: Some(node.name.clone()),
        ..Default::default()
    };
    node.recorder.event(&about, kind, reason, message);
}

/// Keeps an eye on the runtime: often while it is not ready, so that the node becomes ready
/// within moments of it; rarely afterwards, because its event stream tells of its death.
pub async fn watch_runtime(
    runtime: Runtime,
    state: tokio::sync::watch::Sender<RuntimeState>,
    shutdown: CancellationToken,
) {
    let mut changes = state.subscribe();
    let mut wait = Duration::from_millis(20);
    loop {
        let seen = ask(&runtime).await;
        let ready = seen.runtime_ready && seen.network_ready;
        state.send_if_modified(|s| std::mem::replace(s, seen.clone()) != seen);
        changes.mark_unchanged();
        wait = if ready {
            CHECK
        } else if wait >= CHECK {
            Duration::from_millis(20)
        } else {
            (wait + wait / 8).min(Duration::from_millis(500))
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            _ = changes.changed() => wait = Duration::from_millis(20),
        }
    }
}

async fn ask(runtime: &Runtime) -> RuntimeState {
    let conditions = match runtime.status().await {
        Ok(conditions) => conditions,
        Err(error) => {
            return RuntimeState {
                message: format!("container runtime is down: {}", error.message()),
                ..Default::default()
            };
        }
    };
    let find = |name: &str| conditions.iter().find(|c| c.r#type == name);
    let is = |name: &str| find(name).is_some_and(|c| c.status);
    let mut message = String::new();
    for (name, text) in [
        ("RuntimeReady", "container runtime not ready"),
        ("NetworkReady", "container runtime network not ready"),
    ] {
        if let Some(c) = find(name).filter(|c| !c.status) {
            message = format!(
                "{text}: {name}=false reason:{} message:{}",
                c.reason, c.message
            );
            break;
        }
    }
    RuntimeState {
        runtime_ready: is("RuntimeReady"),
        network_ready: is("NetworkReady"),
        message,
    }
}
