//! Whether a pod that is bound to this node may run here: the predicates of Kubernetes' kubelet. The scheduler has
//! checked them for what it binds, but a pod may name its node itself, or have been bound to a node that has changed since.

use std::collections::BTreeMap;

use apimachinery::selector::{LabelSelector, Operator, Requirement};
use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration,
};

use super::allocation::{Held, one_pod};
use crate::model;
use crate::resources::{self, Amounts, Insufficient};

const OS_LABEL: &str = "kubernetes.io/os";
const OS: &str = "linux";

/// Why a pod may not run here, as its status and an event tell it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    pub reason: String,
    pub message: String,
}

/// One thing that stands against a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// The node cannot run such a pod at all; nothing else is looked at.
    Unsupported {
        reason: &'static str,
        message: &'static str,
    },
    Insufficient(Insufficient),
    /// A predicate by its name, and what it says.
    Predicate(&'static str, &'static str),
    /// No room could be made for a critical pod.
    NoRoom(String),
}

pub const NODE_AFFINITY: Failure = Failure::Predicate(
    "NodeAffinity",
    "node(s) didn't match Pod's node affinity/selector",
);
const NODE_PORTS: Failure = Failure::Predicate(
    "NodePorts",
    "node(s) didn't have free ports for the requested pod ports",
);
const TAINTS: Failure = Failure::Predicate(
    "TaintToleration",
    "node(s) had taints that the pod didn't tolerate",
);

impl Failure {
    pub fn rejection(&self) -> Rejection {
        let (reason, message) = match self {
            Failure::Unsupported { reason, message } => (reason.to_string(), message.to_string()),
            Failure::Insufficient(r) => (format!("OutOf{}", r.name), r.to_string()),
            Failure::NoRoom(why) => (
                "UnexpectedAdmissionError".to_string(),
                format!(
                    "Unexpected error while attempting to recover from admission failure: {why}"
                ),
            ),
            Failure::Predicate(name, says) => {
                (name.to_string(), format!("Predicate {name} failed: {says}"))
            }
        };
        Rejection { reason, message }
    }
}

/// A port on the node that a pod has for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    ip: String,
    protocol: String,
    port: i32,
}

impl HostPort {
    /// The unspecified address claims the port on all.
    fn conflicts(&self, other: &HostPort) -> bool {
        let everywhere = |ip: &str| ip == "0.0.0.0" || ip == "::";
        let same_ip = self.ip == other.ip || everywhere(&self.ip) || everywhere(&other.ip);
        self.port == other.port && self.protocol == other.protocol && same_ip
    }
}

/// Those of the pod's containers and sidecars: nothing else runs for the whole of its life.
pub fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let sidecars = model::init_containers(pod)
        .iter()
        .filter(|c| model::is_sidecar(c));
    let all = model::spec(pod).containers.iter().chain(sidecars);
    let ports = all.flat_map(|c| c.ports.iter().flatten());
    let wanted = ports.filter_map(|p| {
        let set = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
        Some(HostPort {
            ip: set(&p.host_ip).unwrap_or_else(|| "0.0.0.0".into()),
            protocol: set(&p.protocol).unwrap_or_else(|| "TCP".into()),
            port: p.host_port.filter(|port| *port > 0)?,
        })
    });
    wanted.collect()
}

/// The node, as far as it decides on pods.
pub struct Host {
    name: String,
    labels: BTreeMap<String, String>,
    taints: Vec<Taint>,
    allocatable: Amounts,
}

impl Host {
    /// `own` is what the machine has; the API may know of resources beyond that.
    pub fn new(node: &Node, own: &Amounts) -> Self {
        let told = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
        let mut allocatable = resources::amounts(told);
        allocatable.extend(own.clone());
        Host {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: node
                .spec
                .as_ref()
                .and_then(|s| s.taints.clone())
                .unwrap_or_default(),
            allocatable,
        }
    }
}

/// All that stands against the pod on a node on which others hold `held`; the first is what it is told.
pub fn failures(pod: &Pod, host: &Host, held: &Held) -> Vec<Failure> {
    if let Some(unsupported) = unsupported(pod) {
        return vec![unsupported];
    }
    let mut asked = resources::requests(pod);
    // Extended resources that the node has never heard of are the whole cluster's, and somebody else's to count.
    asked.retain(|name, _| host.allocatable.contains_key(name) || !is_extended(name));
    resources::add(&mut asked, &one_pod());
    let insufficient = resources::insufficient(&asked, &held.amounts, &host.allocatable);
    let mut failures: Vec<Failure> = insufficient
        .into_iter()
        .map(Failure::Insufficient)
        .collect();
    if !selects(pod, host) {
        failures.push(NODE_AFFINITY);
    }
    let taken = |p: &HostPort| held.ports.iter().any(|other| p.conflicts(other));
    if host_ports(pod).iter().any(taken) {
        failures.push(NODE_PORTS);
    }
    let tolerations = model::spec(pod).tolerations.as_deref().unwrap_or_default();
    let tolerated = |taint: &Taint| tolerations.iter().any(|t| tolerates(t, taint));
    let evicting = |taint: &&Taint| taint.effect == "NoExecute";
    if !host.taints.iter().filter(evicting).all(tolerated) {
        failures.push(TAINTS);
    }
    failures
}

fn unsupported(pod: &Pod) -> Option<Failure> {
    let label = pod.metadata.labels.as_ref().and_then(|l| l.get(OS_LABEL));
    let spec = model::spec(pod);
    let policy = spec
        .security_context
        .as_ref()
        .and_then(|c| c.supplemental_groups_policy.as_deref());
    let (reason, message) = if label.is_some_and(|os| os != OS) {
        (
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        )
    } else if spec.os.as_ref().is_some_and(|os| os.name != OS) {
        (
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        )
    } else if policy == Some("Strict") {
        // The node's status does not have the feature: Debian's runtime merges in the image's groups in any case.
        (
            "SupplementalGroupsPolicyNotSupported",
            "SupplementalGroupsPolicy=Strict is not supported in this node",
        )
    } else {
        return None;
    };
    Some(Failure::Unsupported { reason, message })
}

/// A resource with a domain of its own, outside Kubernetes'.
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

/// Whether the pod's node selector and required node affinity take the node.
fn selects(pod: &Pod, host: &Host) -> bool {
    let spec = model::spec(pod);
    let affinity = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| {
        a.required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    let mut labels = spec.node_selector.iter().flatten();
    labels.all(|(k, v)| host.labels.get(k) == Some(v))
        && required.is_none_or(|r| r.node_selector_terms.iter().any(|t| meets(t, host)))
}

/// Whether the node meets all of a term; one without conditions, or with an invalid one, is met by nothing.
fn meets(term: &NodeSelectorTerm, host: &Host) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let listed = |f: &NodeSelectorRequirement| f.values.iter().flatten().any(|v| *v == host.name);
    !(labels.is_empty() && fields.is_empty())
        && requires(labels).is_some_and(|s| s.matches(&host.labels))
        && fields
            .iter()
            .all(|f| f.key == "metadata.name" && listed(f) == (f.operator == "In"))
}

fn requires(labels: &[NodeSelectorRequirement]) -> Option<LabelSelector> {
    let requirement = |r: &NodeSelectorRequirement| {
        let operator = match r.operator.as_str() {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => Operator::GreaterThan,
            "Lt" => Operator::LessThan,
            _ => return None,
        };
        let values: Vec<&str> = r.values.iter().flatten().map(String::as_str).collect();
        Requirement::new(&r.key, operator, &values).ok()
    };
    let all: Option<Vec<Requirement>> = labels.iter().map(requirement).collect();
    all.map(LabelSelector::new)
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let set = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    let effect = set(&toleration.effect).is_none_or(|e| e == taint.effect);
    let key = set(&toleration.key).is_none_or(|k| k == taint.key);
    let value = match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => set(&toleration.value) == set(&taint.value),
        _ => false,
    };
    effect && key && value
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(value: Value) -> Pod {
        let mut base = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        merge(&mut base, value);
        serde_json::from_value(base).unwrap()
    }

    fn merge(base: &mut Value, over: Value) {
        match (base, over) {
            (Value::Object(base), Value::Object(over)) => {
                for (key, value) in over {
                    merge(base.entry(key).or_insert(Value::Null), value);
                }
            }
            (base, over) => *base = over,
        }
    }

    fn node() -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n", "labels": {"zone": "a", "cores": "8"}},
            "spec": {"taints": [
                {"key": "out", "value": "now", "effect": "NoExecute"},
                {"key": "quiet", "effect": "NoSchedule"},
            ]},
            // The machine's own figures count, not what an older status says of them.
            "status": {"allocatable": {"cpu": "64", "example.com/gpu": "1"}},
        }))
        .unwrap()
    }

    /// The reasons that stand against the pod, the first being the one it is told.
    fn reasons(pod: &Pod, held: &Held) -> Vec<String> {
        let own = Amounts::from([
            ("pods".to_owned(), 2),
            ("cpu".to_owned(), 2000),
            ("memory".to_owned(), 1000),
        ]);
        let host = Host::new(&node(), &own);
        let found = failures(pod, &host, held);
        found.iter().map(|f| f.rejection().reason).collect()
    }

    const TOLERANT: &str = r#"[{"key": "out", "operator": "Exists"}]"#;

    fn tolerant(spec: Value) -> Pod {
        let tolerations: Value = serde_json::from_str(TOLERANT).unwrap();
        let mut pod_spec = json!({"spec": {"tolerations": tolerations}});
        merge(&mut pod_spec["spec"], spec);
        pod(pod_spec)
    }

    fn asks(requests: Value) -> Value {
        json!({"containers": [{"name": "a", "resources": {"requests": requests}}]})
    }

    #[test]
    fn resources_that_are_left() {
        let table = [
            (json!({"cpu": "1"}), vec![]),
            (json!({"cpu": "1500m"}), vec!["OutOfcpu"]),
            (
                json!({"memory": "1001", "cpu": "3"}),
                vec!["OutOfcpu", "OutOfmemory"],
            ),
            (
                json!({"ephemeral-storage": "1"}),
                vec!["OutOfephemeral-storage"],
            ),
            (json!({"hugepages-2Mi": "2Mi"}), vec!["OutOfhugepages-2Mi"]),
            (json!({"example.com/gpu": "1"}), vec![]),
            (
                json!({"example.com/gpu": "2"}),
                vec!["OutOfexample.com/gpu"],
            ),
            // Nothing on this node counts it.
            (json!({"example.com/licence": "2"}), vec![]),
        ];
        let other = tolerant(asks(json!({"cpu": "600m"})));
        let one = Held::by([&other].into_iter());
        for (requests, want) in table {
            assert_eq!(
                reasons(&tolerant(asks(requests.clone())), &one),
                want,
                "{requests}"
            );
        }
        let two = Held::by([&other, &other].into_iter());
        assert_eq!(reasons(&tolerant(json!({})), &two), ["OutOfpods"]);
    }

    #[test]
    fn ports_that_are_free() {
        let port = |v: Value| json!({"containers": [{"name": "a", "ports": [v]}]});
        let table = [
            (port(json!({"containerPort": 80})), true),
            (port(json!({"containerPort": 80, "hostPort": 80})), false),
            (
                port(json!({"containerPort": 80, "hostPort": 80, "protocol": "UDP"})),
                true,
            ),
            (
                port(json!({"containerPort": 80, "hostPort": 80, "hostIP": "10.0.0.1"})),
                false,
            ),
            (
                port(json!({"containerPort": 81, "hostPort": 81, "hostIP": "10.0.0.1"})),
                true,
            ),
            (
                port(json!({"containerPort": 81, "hostPort": 81, "hostIP": "10.0.0.2"})),
                false,
            ),
            (port(json!({"containerPort": 81, "hostPort": 81})), false),
            (
                json!({"initContainers": [{"name": "i", "ports": [{"containerPort": 80, "hostPort": 80}]}]}),
                true,
            ),
            (
                json!({"initContainers": [{"name": "i", "restartPolicy": "Always", "ports": [{"containerPort": 80, "hostPort": 80}]}]}),
                false,
            ),
        ];
        let other = pod(json!({"spec": {"containers": [{"name": "a", "ports": [
            {"containerPort": 8080, "hostPort": 80},
            {"containerPort": 8081, "hostPort": 81, "hostIP": "10.0.0.2", "protocol": "TCP"}]}]}}));
        let held = Held::by([&other].into_iter());
        for (spec, free) in table {
            let want: &[&str] = if free { &[] } else { &["NodePorts"] };
            assert_eq!(reasons(&tolerant(spec.clone()), &held), want, "{spec}");
        }
    }

    #[test]
    fn labels_and_taints() {
        let term = |term: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}});
        let label = |key: &str, operator: &str, values: Value| {
            term(
                json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]}),
            )
        };
        let field = |name: &str| {
            term(
                json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}),
            )
        };
        let tolerations = |v: Value| json!({"tolerations": v});
        let table: [(Value, &[&str]); 15] = [
            (json!({"nodeSelector": {"zone": "a"}}), &[]),
            (json!({"nodeSelector": {"zone": "b"}}), &["NodeAffinity"]),
            (label("zone", "In", json!(["a", "b"])), &[]),
            (label("zone", "NotIn", json!(["a"])), &["NodeAffinity"]),
            (label("gpu", "DoesNotExist", json!([])), &[]),
            (label("cores", "Gt", json!(["4"])), &[]),
            (label("cores", "Lt", json!(["4"])), &["NodeAffinity"]),
            (label("cores", "About", json!(["8"])), &["NodeAffinity"]),
            (term(json!({})), &["NodeAffinity"]),
            (field("n"), &[]),
            (field("m"), &["NodeAffinity"]),
            (tolerations(json!([])), &["TaintToleration"]),
            (tolerations(json!([{"key": "out", "value": "now"}])), &[]),
            (
                tolerations(json!([{"key": "out", "value": "later"}])),
                &["TaintToleration"],
            ),
            (
                tolerations(json!([{"operator": "Exists", "effect": "NoSchedule"}])),
                &["TaintToleration"],
            ),
        ];
        for (spec, want) in table {
            assert_eq!(
                reasons(&tolerant(spec.clone()), &Held::default()),
                want,
                "{spec}"
            );
        }
    }

    #[test]
    fn pods_that_cannot_run_here_at_all() {
        let table = [
            (
                json!({"metadata": {"labels": {"kubernetes.io/os": "linux"}}, "spec": {"os": {"name": "linux"}}}),
                "TaintToleration",
            ),
            (
                json!({"metadata": {"labels": {"kubernetes.io/os": "windows"}}}),
                "PodOSSelectorNodeLabelDoesNotMatch",
            ),
            (
                json!({"spec": {"os": {"name": "windows"}}}),
                "PodOSNotSupported",
            ),
            (
                json!({"spec": {"securityContext": {"supplementalGroupsPolicy": "Merge"}}}),
                "TaintToleration",
            ),
            (
                json!({"spec": {"securityContext": {"supplementalGroupsPolicy": "Strict"}}}),
                "SupplementalGroupsPolicyNotSupported",
            ),
        ];
        for (value, want) in table {
            assert_eq!(
                reasons(&pod(value.clone()), &Held::default()),
                [want],
                "{value}"
            );
        }
    }

    #[test]
    fn what_the_pod_is_told() {
        let says = |failure: Failure| (failure.rejection().reason, failure.rejection().message);
        let told = |reason: &str, message: &str| (reason.to_owned(), message.to_owned());
        assert_eq!(
            says(NODE_PORTS),
            told(
                "NodePorts",
                "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
            )
        );
        let lacks = Insufficient {
            name: "memory".into(),
            requested: 3,
            used: 1,
            capacity: 2,
        };
        assert_eq!(
            says(Failure::Insufficient(lacks)),
            told(
                "OutOfmemory",
                "Node didn't have enough resource: memory, requested: 3, used: 1, capacity: 2"
            )
        );
    }
}
