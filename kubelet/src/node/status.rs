//! The Node object, as a pure function of the machine and the runtime's state.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus,
    Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::ObjectMeta;

use super::facts::{self, NodeInfo};
use crate::context::RuntimeState;
use crate::flags::Flags;
use crate::model;
use crate::resources::Amounts;

/// Kept free for the system, as the default eviction threshold would.
const MEMORY_KEPT: i64 = 100 << 20;

fn capacity(info: &NodeInfo) -> Amounts {
    let amounts = [
        ("cpu", i64::try_from(info.cpus).unwrap_or(1) * 1000),
        ("memory", info.memory),
        ("ephemeral-storage", info.storage),
        ("pods", info.max_pods),
    ];
    amounts
        .map(|(name, amount)| (name.to_owned(), amount))
        .into()
}

/// What pods may ask for.
pub fn allocatable(info: &NodeInfo) -> Amounts {
    let mut amounts = capacity(info);
    amounts.insert("memory".into(), (info.memory - MEMORY_KEPT).max(0));
    amounts.insert("ephemeral-storage".into(), info.storage / 10 * 9);
    amounts
}

fn quantities(amounts: Amounts) -> BTreeMap<String, Quantity> {
    let text = |name: &str, amount: i64| match name {
        "cpu" => (amount / 1000).to_string(),
        "memory" => format!("{}Ki", amount / 1024),
        _ => amount.to_string(),
    };
    let named = amounts.into_iter().map(|(name, amount)| {
        let quantity = Quantity(text(&name, amount));
        (name, quantity)
    });
    named.collect()
}

/// The node as it registers: name, labels, taints.
pub fn registration(name: &str, flags: &Flags) -> Node {
    let arch = facts::architecture();
    let mut labels = BTreeMap::from(
        [
            ("kubernetes.io/hostname", name),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", arch),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", arch),
        ]
        .map(|(k, v)| (k.to_string(), v.to_string())),
    );
    labels.extend(
        flags
            .node_labels
            .iter()
            .filter_map(|l| l.split_once('='))
            .map(|(k, v)| (k.to_string(), v.to_string())),
    );
    let taints: Vec<Taint> = flags
        .register_with_taints
        .iter()
        .filter_map(|t| taint(t))
        .collect();
    Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels),
            ..Default::default()
        },
        spec: Some(NodeSpec {
            taints: (!taints.is_empty()).then_some(taints),
            ..Default::default()
        }),
        status: None,
    }
}

/// `key=value:effect` or `key:effect`.
pub fn taint(text: &str) -> Option<Taint> {
    let (head, effect) = text.rsplit_once(':')?;
    let (key, value) = head.split_once('=').unwrap_or((head, ""));
    Some(Taint {
        key: key.into(),
        value: (!value.is_empty()).then(|| value.into()),
        effect: effect.into(),
        time_added: None,
    })
}

pub fn node_status(
    info: &NodeInfo,
    runtime: &RuntimeState,
    old: Option<&NodeStatus>,
    now: Timestamp,
) -> NodeStatus {
    let mut addresses: Vec<NodeAddress> = info
        .ips
        .iter()
        .map(|ip| NodeAddress {
            address: ip.clone(),
            type_: "InternalIP".into(),
        })
        .collect();
    addresses.push(NodeAddress {
        address: info.name.clone(),
        type_: "Hostname".into(),
    });
    NodeStatus {
        addresses: Some(addresses),
        allocatable: Some(quantities(allocatable(info))),
        capacity: Some(quantities(capacity(info))),
        conditions: Some(conditions(runtime, old, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(info.port),
            }),
        }),
        images: Some(info.images.clone()),
        node_info: Some(info.system.clone()),
        ..Default::default()
    }
}

fn conditions(
    runtime: &RuntimeState,
    old: Option<&NodeStatus>,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let ready = runtime.runtime_ready && runtime.network_ready;
    let message = if ready {
        "kubelet is posting ready status"
    } else {
        runtime.message.as_str()
    };
    let table = [
        (
            "MemoryPressure",
            false,
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        (
            "DiskPressure",
            false,
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure",
        ),
        (
            "PIDPressure",
            false,
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
        (
            "Ready",
            ready,
            if ready {
                "KubeletReady"
            } else {
                "KubeletNotReady"
            },
            message,
        ),
    ];
    let before = old
        .and_then(|s| s.conditions.as_deref())
        .unwrap_or_default();
    table
        .into_iter()
        .map(|(type_, value, reason, message)| {
            let status = if value { "True" } else { "False" };
            let same = before
                .iter()
                .find(|c| c.type_ == type_ && c.status == status);
            NodeCondition {
                type_: type_.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message.into()),
                last_heartbeat_time: Some(model::seconds(now)),
                last_transition_time: same
                    .and_then(|c| c.last_transition_time.clone())
                    .or_else(|| Some(model::seconds(now))),
            }
        })
        .collect()
}

/// Whether anything but the heartbeat differs from what the API has.
pub fn differs(old: Option<&NodeStatus>, new: &NodeStatus) -> bool {
    let Some(old) = old else { return true };
    let brief = |s: &NodeStatus, type_: &str| {
        let c = s
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == type_)
            .cloned();
        c.map(|c| (c.status, c.reason, c.message))
    };
    let conditions = new
        .conditions
        .iter()
        .flatten()
        .any(|c| brief(old, &c.type_) != brief(new, &c.type_));
    conditions
        || old.addresses != new.addresses
        || old.capacity != new.capacity
        || old.allocatable != new.allocatable
        || old.node_info != new.node_info
        || old.daemon_endpoints != new.daemon_endpoints
}

pub fn is_ready(status: Option<&NodeStatus>) -> bool {
    status
        .and_then(|s| s.conditions.as_ref())
        .into_iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> NodeInfo {
        NodeInfo {
            name: "n1".into(),
            ips: vec!["10.0.0.1".into()],
            cpus: 2,
            memory: 4 << 30,
            storage: 1000,
            max_pods: 110,
            port: 10250,
            system: Default::default(),
            images: Vec::new(),
        }
    }

    #[test]
    fn readiness_follows_the_runtime_and_heartbeats_are_no_change() {
        let down = RuntimeState {
            message: "container runtime is down".into(),
            ..Default::default()
        };
        let up = RuntimeState {
            runtime_ready: true,
            network_ready: true,
            message: String::new(),
        };
        let at = |s| Timestamp::from_second(s).unwrap();
        let first = node_status(&info(), &down, None, at(100));
        assert!(!is_ready(Some(&first)) && differs(None, &first));
        let again = node_status(&info(), &down, Some(&first), at(200));
        assert!(!differs(Some(&first), &again));
        let ready = node_status(&info(), &up, Some(&again), at(300));
        assert!(differs(Some(&again), &ready) && is_ready(Some(&ready)));
        let transition = |s: &NodeStatus, t: &str| {
            s.conditions
                .iter()
                .flatten()
                .find(|c| c.type_ == t)
                .and_then(|c| c.last_transition_time.clone())
                .unwrap()
                .0
        };
        assert_eq!(transition(&ready, "Ready"), at(300));
        assert_eq!(transition(&ready, "DiskPressure"), at(100));
    }

    #[test]
    fn taints() {
        let t = taint("a.b/c=d:NoSchedule").unwrap();
        assert_eq!(
            (t.key.as_str(), t.value.as_deref(), t.effect.as_str()),
            ("a.b/c", Some("d"), "NoSchedule")
        );
        assert_eq!(taint("k:NoExecute").unwrap().value, None);
        assert!(taint("k").is_none());
    }
}
