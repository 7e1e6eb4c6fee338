//! Notices nodes that fell silent, and says so: in their conditions, taints, and the readiness of their pods.
//!
//! A node is alive as long as its Lease is renewed or its status written. Clocks of nodes are not trusted: what counts
//! is when a change was seen here. Nothing is polled: a node is looked at when something about it changes, and when
//! its grace period would end. Pods are evicted by [`crate::tainteviction`], which follows the taints.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::events::{EventType, Recorder, reference};
use client::{CancellationToken, Next, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::frame::{Context, Result, work};
use crate::informers::NODE;
use crate::pods;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Conditions that become taints of effect NoSchedule: type, the status that does, and the key.
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    (
        "MemoryPressure",
        "True",
        "node.kubernetes.io/memory-pressure",
    ),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    (
        "NetworkUnavailable",
        "True",
        "node.kubernetes.io/network-unavailable",
    ),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];
/// Conditions that only the kubelet can know.
const KUBELET_CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Everything a pass looks at.
pub struct Observed<'a> {
    pub node: &'a Node,
    /// How long nothing was heard of it.
    pub silent: Duration,
    pub grace: Duration,
    /// Whether any other node is well: if none is, it may be us who are cut off, and nobody is evicted.
    pub others_ready: bool,
    pub now: Timestamp,
}

/// What is to be done about a node.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Conditions to write (of these types), because the kubelet does not.
    pub conditions: Vec<NodeCondition>,
    /// All taints that the node should have, if they differ from those it has.
    pub taints: Option<Vec<Taint>>,
    /// Its pods are not to be counted on.
    pub pods_unready: bool,
}

pub fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|c| c.type_ == kind)
}

fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|c| c.status == "True")
}

/// Decides about one node.
pub fn plan(observed: &Observed) -> Plan {
    let node = observed.node;
    let silent = observed.silent >= observed.grace;
    let mut conditions = Vec::new();
    if silent {
        for kind in KUBELET_CONDITIONS {
            conditions.extend(unknown(node, kind, observed.now));
        }
    }
    let status = |kind: &str| {
        let planned = conditions
            .iter()
            .find(|c| c.type_ == kind)
            .or(condition(node, kind));
        planned.map(|c| c.status.clone()).unwrap_or_default()
    };
    let taints = taints(node, &status, observed.others_ready, observed.now);
    let current = node
        .spec
        .as_ref()
        .and_then(|s| s.taints.clone())
        .unwrap_or_default();
    let changed = taints != current;
    // A node that has never said anything has no pods to speak of.
    let pods_unready = !matches!(status("Ready").as_str(), "True" | "");
    Plan {
        conditions,
        taints: changed.then_some(taints),
        pods_unready,
    }
}

/// The condition as unknown, unless it is already.
fn unknown(node: &Node, kind: &str, now: Timestamp) -> Option<NodeCondition> {
    let (reason, message) = ("NodeStatusUnknown", "Kubelet stopped posting node status.");
    match condition(node, kind) {
        Some(c) if c.status == "Unknown" => None,
        Some(c) => Some(NodeCondition {
            status: "Unknown".into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_transition_time: Some(Time(now)),
            ..c.clone()
        }),
        None => Some(NodeCondition {
            type_: kind.into(),
            status: "Unknown".into(),
            reason: Some("NodeStatusNeverUpdated".into()),
            message: Some("Kubelet never posted node status.".into()),
            last_heartbeat_time: node.metadata.creation_timestamp.clone(),
            last_transition_time: Some(Time(now)),
        }),
    }
}

/// All taints that the node should have: those that are none of our business first, as they are.
fn taints(node: &Node, status: &dyn Fn(&str) -> String, evict: bool, now: Timestamp) -> Vec<Taint> {
    let current = node
        .spec
        .as_ref()
        .and_then(|s| s.taints.clone())
        .unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = CONDITION_TAINTS
        .iter()
        .filter(|(kind, when, _)| status(kind) == *when)
        .map(|(_, _, key)| (*key, "NoSchedule"))
        .collect();
    if condition(node, "Ready").is_none() && status("Ready").is_empty() {
        // Not heard of yet: as the API server tainted it when it was made.
        wanted.extend(has(&current, NOT_READY, "NoSchedule").then_some((NOT_READY, "NoSchedule")));
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    for (key, when) in [(NOT_READY, "False"), (UNREACHABLE, "Unknown")] {
        // Once begun, eviction goes on until the node is back.
        if status("Ready") == when && (evict || has(&current, key, "NoExecute")) {
            wanted.push((key, "NoExecute"));
        }
    }
    let managed = |t: &Taint| {
        let by_condition =
            CONDITION_TAINTS.iter().any(|(_, _, key)| *key == t.key) || t.key == UNSCHEDULABLE;
        let evicting =
            [NOT_READY, UNREACHABLE].contains(&t.key.as_str()) && t.effect == "NoExecute";
        (by_condition && t.effect == "NoSchedule") || evicting
    };
    let keep = |t: &Taint| !managed(t) || wanted.contains(&(t.key.as_str(), t.effect.as_str()));
    let mut taints: Vec<Taint> = current.iter().filter(|t| keep(t)).cloned().collect();
    for (key, effect) in wanted {
        if !has(&current, key, effect) {
            let time_added = Some(Time(now));
            taints.push(Taint {
                key: key.into(),
                effect: effect.into(),
                value: None,
                time_added,
            });
        }
    }
    taints
}

fn has(taints: &[Taint], key: &str, effect: &str) -> bool {
    taints.iter().any(|t| t.key == key && t.effect == effect)
}

/// The last sign of life of a node, and when it was seen.
struct Heartbeat {
    sign: String,
    seen: Instant,
}

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
    heartbeats: Arc<Mutex<HashMap<String, Heartbeat>>>,
}

fn sign(node: Option<&Arc<Node>>, lease: Option<&Arc<Lease>>) -> String {
    let status = node.and_then(|n| {
        condition(n, "Ready")?
            .last_heartbeat_time
            .as_ref()
            .map(|t| t.0.to_string())
    });
    let renewed = lease.and_then(|l| {
        l.spec
            .as_ref()?
            .renew_time
            .as_ref()
            .map(|t| t.0.to_string())
    });
    format!("{status:?} {renewed:?}")
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let (nodes, leases) = (
        &context.informers().nodes().informer,
        &context.informers().node_leases().informer,
    );
    let heartbeats: Arc<Mutex<HashMap<String, Heartbeat>>> = Arc::default();
    let (q, beats, copy) = (queue.clone(), heartbeats.clone(), leases.clone());
    nodes.on_change(move |old, new| {
        let Some(node) = new.or(old) else { return };
        let name = node.name_any();
        match new {
            Some(_) => beat(
                &beats,
                &name,
                sign(new, copy.get(&format!("kube-node-lease/{name}")).as_ref()),
            ),
            None => drop(beats.lock().remove(&name)),
        };
        // A heartbeat alone asks for nothing.
        let relevant = |n: &Node| {
            let conditions = n.status.iter().flat_map(|s| s.conditions.iter().flatten());
            let conditions: Vec<_> = conditions
                .map(|c| (c.type_.clone(), c.status.clone()))
                .collect();
            (n.spec.clone(), conditions)
        };
        if old.map(|n| relevant(n)) != new.map(|n| relevant(n)) {
            q.add(name);
        }
    });
    let (q, beats, copy) = (queue.clone(), heartbeats.clone(), nodes.clone());
    leases.on_change(move |_, new| {
        let Some(lease) = new else { return };
        let (name, node) = (lease.name_any(), copy.get(&lease.name_any()));
        beat(&beats, &name, sign(node.as_ref(), new));
        // Back from silence: the kubelet will write its status, but a node known as lost is looked at now.
        if node.is_some_and(|n| condition(&n, "Ready").is_some_and(|c| c.status == "Unknown")) {
            q.add(name);
        }
    });
    // A pod that comes to, or turns ready on, a node that is not well.
    let (q, copy) = (queue.clone(), nodes.clone());
    context
        .informers()
        .pods()
        .informer
        .on_change(move |_, new| {
            let Some(pod) = new.filter(|p| pods::is_ready(p)) else {
                return;
            };
            if copy
                .get(pods::node_name(pod))
                .is_some_and(|n| !is_ready(&n))
            {
                q.add(pods::node_name(pod).to_owned());
            }
        });
    nodes.synced().await;
    leases.synced().await;
    context.informers().pods().informer.synced().await;
    let controller = Controller {
        recorder: context.recorder("node-controller"),
        context: context.clone(),
        heartbeats,
    };
    work(&queue, 2, &token, |name| controller.reconcile(name)).await;
}

fn beat(heartbeats: &Mutex<HashMap<String, Heartbeat>>, name: &str, sign: String) {
    let mut heartbeats = heartbeats.lock();
    let fresh = heartbeats.get(name).is_none_or(|h| h.sign != sign);
    if fresh {
        heartbeats.insert(
            name.to_owned(),
            Heartbeat {
                sign,
                seen: Instant::now(),
            },
        );
    }
}

impl Controller {
    async fn reconcile(&self, name: String) -> Result<Next> {
        let nodes = self.context.informers().nodes();
        let Some(node) = nodes.informer.get(&name) else {
            return Ok(Next::Done);
        };
        let grace = self.context.settings.node_monitor_grace_period;
        let silent = self
            .heartbeats
            .lock()
            .get(&name)
            .map_or(Duration::ZERO, |h| h.seen.elapsed());
        let others_ready = nodes
            .informer
            .list()
            .iter()
            .any(|n| n.name_any() != name && is_ready(n));
        let now = Timestamp::now();
        let plan = plan(&Observed {
            node: &node,
            silent,
            grace,
            others_ready,
            now,
        });
        if !plan.conditions.is_empty() {
            nodes
                .patch_status_strategic(&node, json!({"conditions": plan.conditions}))
                .await?;
            if plan.conditions.iter().any(|c| c.type_ == "Ready") {
                let message = format!("Node {name} status is now: NodeNotReady");
                self.recorder.event(
                    &reference(node.as_ref()),
                    EventType::Normal,
                    "NodeNotReady",
                    message,
                );
            }
        }
        if let Some(taints) = &plan.taints {
            // The list is replaced as a whole, so nobody may have changed it meanwhile.
            let newest = nodes
                .informer
                .get(&name)
                .filter(|n| n.spec == node.spec)
                .unwrap_or(node);
            nodes
                .patch_exact(&newest, json!({"spec": {"taints": taints}}))
                .await?;
        }
        if plan.pods_unready {
            self.mark_unready(&name, now).await?;
        }
        match grace.checked_sub(silent).filter(|left| !left.is_zero()) {
            Some(left) => Ok(Next::After(left + Duration::from_millis(10))),
            None => Ok(Next::Done),
        }
    }

    /// Takes the node's pods out of Services.
    async fn mark_unready(&self, node: &str, now: Timestamp) -> Result<()> {
        let pods = self.context.informers().pods();
        for pod in pods
            .informer
            .by_index(NODE, node)
            .iter()
            .filter(|p| pods::is_ready(p))
        {
            let condition =
                json!({"type": "Ready", "status": "False", "lastTransitionTime": Time(now)});
            let status = json!({"conditions": [condition]});
            match pods.patch_status_strategic(pod, status).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                _ => {}
            }
            let about = reference::<Pod>(pod);
            self.recorder.event(
                &about,
                EventType::Warning,
                "NodeNotReady",
                "Node is not ready",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, taints: &[(&str, &str)], unschedulable: bool) -> Node {
        let taints: Vec<_> = taints
            .iter()
            .map(|(k, e)| json!({"key": k, "effect": e}))
            .collect();
        let conditions = if ready.is_empty() {
            json!([])
        } else {
            json!([{"type": "Ready", "status": ready}])
        };
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints, "unschedulable": unschedulable},
            "status": {"conditions": conditions}}))
        .unwrap()
    }

    fn show(plan: &Plan) -> Vec<String> {
        let conditions = plan
            .conditions
            .iter()
            .map(|c| format!("{}={}", c.type_, c.status));
        let taints = plan.taints.iter().flatten().map(|t| {
            format!(
                "{}:{}",
                t.key.trim_start_matches("node.kubernetes.io/"),
                t.effect
            )
        });
        conditions.chain(taints).collect()
    }

    #[test]
    fn nodes() {
        let (s, e) = ("NoSchedule", "NoExecute");
        let lost = [(UNREACHABLE, s), (UNREACHABLE, e)];
        let all_unknown = [
            "Ready=Unknown",
            "MemoryPressure=Unknown",
            "DiskPressure=Unknown",
            "PIDPressure=Unknown",
        ];
        let silent_plan: Vec<&str> = all_unknown
            .into_iter()
            .chain(["unreachable:NoSchedule", "unreachable:NoExecute"])
            .collect();
        let alone_plan: Vec<&str> = all_unknown
            .into_iter()
            .chain(["unreachable:NoSchedule"])
            .collect();
        #[rustfmt::skip]
        let cases: Vec<(&str, Node, u64, bool, Vec<&str>, bool)> = vec![
            ("well", node("True", &[], false), 10, true, vec![], false),
            ("becomes well", node("True", &[(NOT_READY, s), ("mine", e)], false), 10, true, vec!["mine:NoExecute"], false),
            ("just made", node("", &[(NOT_READY, s)], false), 10, true, vec![], false),
            ("not ready", node("False", &[], false), 10, true, vec!["not-ready:NoSchedule", "not-ready:NoExecute"], true),
            ("silent", node("True", &[], false), 50, true, silent_plan, true),
            ("silent, like all others", node("True", &[], false), 50, false, alone_plan, true),
            ("known to be silent", { let mut n = node("Unknown", &lost, false);
                n.status.as_mut().unwrap().conditions.as_mut().unwrap().extend(KUBELET_CONDITIONS[1..].iter().map(|k| NodeCondition { type_: k.to_string(), status: "Unknown".into(), ..Default::default() })); n },
                60, false, vec![], true),
            ("cordoned", node("True", &[], true), 0, true, vec!["unschedulable:NoSchedule"], false),
        ];
        for (why, node, silent, others_ready, want, unready) in cases {
            let plan = plan(&Observed {
                node: &node,
                silent: Duration::from_secs(silent),
                grace: Duration::from_secs(50),
                others_ready,
                now: Timestamp::UNIX_EPOCH,
            });
            assert_eq!(show(&plan), want, "{why}");
            assert_eq!(plan.pods_unready, unready, "{why}");
        }
        let back = plan(&Observed {
            node: &node("True", &lost, false),
            silent: Duration::ZERO,
            grace: Duration::from_secs(50),
            others_ready: true,
            now: Timestamp::UNIX_EPOCH,
        });
        assert_eq!(back.taints, Some(vec![]), "all of it is taken back");
    }
}
