//! Pods and nodes as scheduling sees them: compiled once, compact, compared without parsing.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::quantity::Quantity;
use apimachinery::selector::{LabelSelector, Operator, Requirement};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

pub type Labels = BTreeMap<String, String>;

/// What a container without a request counts as when nodes are scored, as in Kubernetes.
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts of resources: CPU in thousandths, memory and ephemeral storage in bytes, all others in units.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral: i64,
    /// Extended resources, few if any.
    pub others: Vec<(Arc<str>, i64)>,
}

impl Resources {
    pub fn other(&self, name: &str) -> i64 {
        self.others
            .iter()
            .find(|(n, _)| n.as_ref() == name)
            .map_or(0, |(_, amount)| *amount)
    }

    fn combine(&mut self, more: &Resources, f: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = f(self.milli_cpu, more.milli_cpu);
        self.memory = f(self.memory, more.memory);
        self.ephemeral = f(self.ephemeral, more.ephemeral);
        for (name, amount) in &more.others {
            match self.others.iter_mut().find(|(n, _)| n == name) {
                Some((_, have)) => *have = f(*have, *amount),
                None => self.others.push((name.clone(), f(0, *amount))),
            }
        }
    }

    pub fn add(&mut self, more: &Resources) {
        self.combine(more, |a, b| a.saturating_add(b));
    }

    pub fn subtract(&mut self, less: &Resources) {
        self.combine(less, |a, b| a - b);
    }

    fn max(&mut self, other: &Resources) {
        self.combine(other, i64::max);
    }

    fn parse(list: Option<&BTreeMap<String, ApiQuantity>>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in list.into_iter().flatten() {
            // What does not parse has not passed validation.
            let quantity = Quantity::parse(&quantity.0).unwrap_or_default();
            match name.as_str() {
                "cpu" => resources.milli_cpu = quantity.milli_value(),
                "memory" => resources.memory = quantity.value(),
                "ephemeral-storage" => resources.ephemeral = quantity.value(),
                "pods" => {}
                other => resources.others.push((other.into(), quantity.value())),
            }
        }
        resources
    }

    pub fn is_zero(&self) -> bool {
        self.milli_cpu == 0
            && self.memory == 0
            && self.ephemeral == 0
            && self.others.iter().all(|(_, n)| *n == 0)
    }
}

/// A port on the node that a pod wants for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    pub ip: Arc<str>,
    pub protocol: Arc<str>,
    pub port: i32,
}

impl HostPort {
    /// The unspecified address claims the port on all.
    pub fn conflicts(&self, other: &HostPort) -> bool {
        let everywhere = |ip: &str| ip == "0.0.0.0" || ip == "::";
        let same_ip = self.ip == other.ip || everywhere(&self.ip) || everywhere(&other.ip);
        self.port == other.port && self.protocol == other.protocol && same_ip
    }
}

/// A term of a node selector: all of it must match.
#[derive(Debug, Clone)]
pub struct NodeTerm {
    labels: LabelSelector,
    /// On `metadata.name`: whether it must be one of these, or must not.
    names: Vec<(bool, Vec<String>)>,
}

impl NodeTerm {
    fn compile(term: &core::NodeSelectorTerm) -> Self {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        // A term without anything, or with something invalid, matches nothing.
        if expressions.is_empty() && fields.is_empty() {
            return Self {
                labels: LabelSelector::nothing(),
                names: Vec::new(),
            };
        }
        let requirement = |e: &core::NodeSelectorRequirement| {
            let operator = match e.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                "Gt" => Operator::GreaterThan,
                "Lt" => Operator::LessThan,
                _ => return None,
            };
            let values: Vec<&str> = e.values.iter().flatten().map(String::as_str).collect();
            Requirement::new(&e.key, operator, &values).ok()
        };
        let requirements: Option<Vec<_>> = expressions.iter().map(requirement).collect();
        let names = fields
            .iter()
            .map(|f| (f.operator == "In", f.values.clone().unwrap_or_default()));
        Self {
            labels: requirements.map_or_else(LabelSelector::nothing, LabelSelector::new),
            names: names.collect(),
        }
    }

    pub fn matches(&self, node: &NodeInfo) -> bool {
        self.labels.matches(&node.labels)
            && self
                .names
                .iter()
                .all(|(is, names)| names.iter().any(|n| **n == *node.name) == *is)
    }
}

/// A term of pod affinity or anti-affinity: which pods, and what counts as the same place.
#[derive(Debug, Clone)]
pub struct PodTerm {
    selector: LabelSelector,
    namespaces: Vec<String>,
    /// Selects namespaces by their labels, beyond those named.
    namespace_selector: Option<LabelSelector>,
    pub topology_key: String,
    pub weight: i64,
}

impl PodTerm {
    fn compile(term: &core::PodAffinityTerm, weight: i32, namespace: &str, own: &Labels) -> Self {
        let mut selector = term.label_selector.clone();
        if let Some(selector) = &mut selector {
            let keys = |keys: &Option<Vec<String>>| keys.clone().unwrap_or_default();
            for (keys, operator) in [
                (keys(&term.match_label_keys), "In"),
                (keys(&term.mismatch_label_keys), "NotIn"),
            ] {
                require_own_labels(selector, &keys, operator, own);
            }
        }
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(namespace.to_owned());
        }
        Self {
            selector: selector.map_or_else(LabelSelector::nothing, |s| compile_selector(&s)),
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().map(compile_selector),
            topology_key: term.topology_key.clone(),
            weight: i64::from(weight),
        }
    }

    /// Whether the term is about `pod`. `namespace_labels` are those of the pod's namespace.
    pub fn matches(&self, pod: &PodInfo, namespace_labels: &Labels) -> bool {
        let here = self.namespaces.iter().any(|n| **n == *pod.namespace)
            || self
                .namespace_selector
                .as_ref()
                .is_some_and(|s| s.matches(namespace_labels));
        here && self.selector.matches(&pod.labels)
    }
}

/// Adds to `selector` that these labels are (not) as the pod's own.
fn require_own_labels(
    selector: &mut meta::LabelSelector,
    keys: &[String],
    operator: &str,
    own: &Labels,
) {
    for key in keys {
        if let Some(value) = own.get(key) {
            selector.match_expressions.get_or_insert_default().push(
                meta::LabelSelectorRequirement {
                    key: key.clone(),
                    operator: operator.to_owned(),
                    values: Some(vec![value.clone()]),
                },
            );
        }
    }
}

fn compile_selector(selector: &meta::LabelSelector) -> LabelSelector {
    serde_json::to_value(selector)
        .ok()
        .and_then(|value| LabelSelector::from_value(&value).ok())
        .unwrap_or_else(LabelSelector::nothing)
}

/// How evenly a pod and its like are to be spread.
#[derive(Debug, Clone)]
pub struct Spread {
    pub selector: LabelSelector,
    pub topology_key: String,
    pub max_skew: i64,
    pub min_domains: i64,
    /// DoNotSchedule, rather than a preference.
    pub hard: bool,
    pub honor_affinity: bool,
    pub honor_taints: bool,
}

impl Spread {
    fn compile(constraint: &core::TopologySpreadConstraint, own: &Labels) -> Self {
        let mut selector = constraint.label_selector.clone().unwrap_or_default();
        require_own_labels(
            &mut selector,
            constraint.match_label_keys.as_deref().unwrap_or_default(),
            "In",
            own,
        );
        Self {
            selector: constraint
                .label_selector
                .as_ref()
                .map_or_else(LabelSelector::nothing, |_| compile_selector(&selector)),
            topology_key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
            hard: constraint.when_unsatisfiable != "ScheduleAnyway",
            honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

/// Affinities of one pod; boxed, for most pods have none.
#[derive(Debug, Clone, Default)]
pub struct PodAffinity {
    pub required: Vec<PodTerm>,
    pub required_anti: Vec<PodTerm>,
    pub preferred: Vec<PodTerm>,
    pub preferred_anti: Vec<PodTerm>,
}

/// A pod as scheduling sees it.
#[derive(Debug, Clone)]
pub struct PodInfo {
    pub uid: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub labels: Labels,
    pub scheduler_name: String,
    pub node_name: Option<String>,
    pub nominated_node: Option<String>,
    pub priority: i32,
    pub never_preempts: bool,
    pub created: Timestamp,
    pub deleting: bool,
    pub gated: bool,
    /// The uid of its controller: pods with the same one are its like.
    pub owner: Option<Arc<str>>,
    pub requests: Resources,
    /// CPU and memory with defaults for containers that request none; for scoring only.
    pub scored_cpu: i64,
    pub scored_memory: i64,
    pub host_ports: Vec<HostPort>,
    pub node_selector: Labels,
    /// Any of these; `None` where nothing is required.
    pub required_nodes: Option<Vec<NodeTerm>>,
    pub preferred_nodes: Vec<(i64, NodeTerm)>,
    pub tolerations: Vec<core::Toleration>,
    pub spread: Vec<Spread>,
    pub affinity: Option<Box<PodAffinity>>,
    pub images: Vec<String>,
    /// The message of its PodScheduled=False condition, if it has one.
    pub unschedulable_message: Option<String>,
}

impl PodInfo {
    pub fn new(pod: &core::Pod) -> Self {
        let meta = &pod.metadata;
        let text = |s: &Option<String>| s.clone().unwrap_or_default();
        let namespace = text(&meta.namespace);
        let labels = meta.labels.clone().unwrap_or_default();
        let empty = core::PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let affinity = spec.affinity.clone().unwrap_or_default();
        let node_affinity = affinity.node_affinity.clone().unwrap_or_default();
        let (scored_cpu, scored_memory) = scored_requests(spec);
        let conditions = pod
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten());
        let scheduled = conditions
            .into_iter()
            .find(|c| c.type_ == "PodScheduled" && c.status == "False");
        let owner = meta
            .owner_references
            .iter()
            .flatten()
            .find(|o| o.controller == Some(true));
        let containers = spec
            .containers
            .iter()
            .chain(spec.init_containers.iter().flatten());
        Self {
            uid: text(&meta.uid).into(),
            name: text(&meta.name).into(),
            scheduler_name: spec
                .scheduler_name
                .clone()
                .unwrap_or_else(|| "default-scheduler".into()),
            node_name: spec.node_name.clone().filter(|n| !n.is_empty()),
            nominated_node: pod
                .status
                .as_ref()
                .and_then(|s| s.nominated_node_name.clone())
                .filter(|n| !n.is_empty()),
            priority: spec.priority.unwrap_or(0),
            never_preempts: spec.preemption_policy.as_deref() == Some("Never"),
            created: meta
                .creation_timestamp
                .as_ref()
                .map_or(Timestamp::MIN, |t| t.0),
            deleting: meta.deletion_timestamp.is_some(),
            gated: spec
                .scheduling_gates
                .as_ref()
                .is_some_and(|g| !g.is_empty()),
            owner: owner.map(|o| o.uid.as_str().into()),
            requests: requests(spec),
            scored_cpu,
            scored_memory,
            host_ports: host_ports(spec),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            required_nodes: node_affinity
                .required_during_scheduling_ignored_during_execution
                .map(|s| {
                    s.node_selector_terms
                        .iter()
                        .map(NodeTerm::compile)
                        .collect()
                }),
            preferred_nodes: node_affinity
                .preferred_during_scheduling_ignored_during_execution
                .iter()
                .flatten()
                .map(|p| (i64::from(p.weight), NodeTerm::compile(&p.preference)))
                .collect(),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            spread: spec
                .topology_spread_constraints
                .iter()
                .flatten()
                .map(|c| Spread::compile(c, &labels))
                .collect(),
            affinity: pod_affinity(&affinity, &namespace, &labels),
            images: containers.filter_map(|c| c.image.clone()).collect(),
            unschedulable_message: scheduled.and_then(|c| c.message.clone()),
            namespace: namespace.into(),
            labels,
        }
    }

    pub fn tolerates(&self, taint: &core::Taint) -> bool {
        self.tolerations.iter().any(|t| tolerates(t, taint))
    }

    /// Whether nodeSelector and required node affinity accept the node.
    pub fn accepts(&self, node: &NodeInfo) -> bool {
        self.node_selector
            .iter()
            .all(|(k, v)| node.labels.get(k) == Some(v))
            && self
                .required_nodes
                .as_ref()
                .is_none_or(|terms| terms.iter().any(|t| t.matches(node)))
    }

    /// The first taint that keeps it off the node.
    pub fn repelled_by<'n>(&self, node: &'n NodeInfo) -> Option<&'n core::Taint> {
        node.taints
            .iter()
            .find(|t| t.effect != "PreferNoSchedule" && !self.tolerates(t))
    }
}

fn tolerates(toleration: &core::Toleration, taint: &core::Taint) -> bool {
    let set = |s: &Option<String>| s.clone().filter(|s| !s.is_empty());
    let effect = set(&toleration.effect).is_none_or(|e| e == taint.effect);
    let key = set(&toleration.key).is_none_or(|k| k == taint.key);
    let value = match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => {
            toleration.value.as_deref().unwrap_or_default()
                == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    };
    effect && key && value
}

fn is_sidecar(container: &core::Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn container_requests(container: &core::Container) -> Resources {
    Resources::parse(
        container
            .resources
            .as_ref()
            .and_then(|r| r.requests.as_ref()),
    )
}

/// What a pod takes of a node: the larger of its containers together and each init container (with the sidecars
/// started before it), or what the pod itself asks for, plus overhead.
fn requests(spec: &core::PodSpec) -> Resources {
    let mut total = Resources::default();
    spec.containers
        .iter()
        .for_each(|c| total.add(&container_requests(c)));
    let (mut sidecars, mut peak) = (Resources::default(), Resources::default());
    for container in spec.init_containers.iter().flatten() {
        let mut need = container_requests(container);
        if is_sidecar(container) {
            sidecars.add(&need);
            need = sidecars.clone();
        } else {
            need.add(&sidecars);
        }
        peak.max(&need);
    }
    total.add(&sidecars);
    total.max(&peak);
    if let Some(own) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let parsed = Resources::parse(Some(own));
        if own.contains_key("cpu") {
            total.milli_cpu = parsed.milli_cpu;
        }
        if own.contains_key("memory") {
            total.memory = parsed.memory;
        }
    }
    total.add(&Resources::parse(spec.overhead.as_ref()));
    total
}

fn scored_requests(spec: &core::PodSpec) -> (i64, i64) {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| is_sidecar(c));
    let (mut cpu, mut memory) = (0, 0);
    for container in spec.containers.iter().chain(sidecars) {
        let requests = container
            .resources
            .as_ref()
            .and_then(|r| r.requests.as_ref());
        let parsed = Resources::parse(requests);
        let has = |name: &str| requests.is_some_and(|r| r.contains_key(name));
        cpu += if has("cpu") {
            parsed.milli_cpu
        } else {
            DEFAULT_MILLI_CPU
        };
        memory += if has("memory") {
            parsed.memory
        } else {
            DEFAULT_MEMORY
        };
    }
    let overhead = Resources::parse(spec.overhead.as_ref());
    (cpu + overhead.milli_cpu, memory + overhead.memory)
}

fn host_ports(spec: &core::PodSpec) -> Vec<HostPort> {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| is_sidecar(c));
    let ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten());
    let wanted = ports
        .filter(|p| p.host_port.is_some_and(|p| p > 0))
        .map(|p| HostPort {
            ip: p
                .host_ip
                .as_deref()
                .filter(|ip| !ip.is_empty())
                .unwrap_or("0.0.0.0")
                .into(),
            protocol: p.protocol.as_deref().unwrap_or("TCP").into(),
            port: p.host_port.unwrap_or(0),
        });
    wanted.collect()
}

fn pod_affinity(
    affinity: &core::Affinity,
    namespace: &str,
    labels: &Labels,
) -> Option<Box<PodAffinity>> {
    let required = |terms: &Option<Vec<core::PodAffinityTerm>>| -> Vec<PodTerm> {
        terms
            .iter()
            .flatten()
            .map(|t| PodTerm::compile(t, 0, namespace, labels))
            .collect()
    };
    let preferred = |terms: &Option<Vec<core::WeightedPodAffinityTerm>>| -> Vec<PodTerm> {
        terms
            .iter()
            .flatten()
            .map(|t| PodTerm::compile(&t.pod_affinity_term, t.weight, namespace, labels))
            .collect()
    };
    let mut all = PodAffinity::default();
    if let Some(affinity) = &affinity.pod_affinity {
        all.required = required(&affinity.required_during_scheduling_ignored_during_execution);
        all.preferred = preferred(&affinity.preferred_during_scheduling_ignored_during_execution);
    }
    if let Some(anti) = &affinity.pod_anti_affinity {
        all.required_anti = required(&anti.required_during_scheduling_ignored_during_execution);
        all.preferred_anti = preferred(&anti.preferred_during_scheduling_ignored_during_execution);
    }
    let any = !(all.required.is_empty()
        && all.required_anti.is_empty()
        && all.preferred.is_empty()
        && all.preferred_anti.is_empty());
    any.then(|| Box::new(all))
}

/// A node as scheduling sees it, without the pods on it.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    pub name: Arc<str>,
    pub labels: Labels,
    pub taints: Vec<core::Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    pub max_pods: i64,
    /// Bytes of each image that the node has.
    pub images: BTreeMap<String, i64>,
}

impl NodeInfo {
    pub fn new(node: &core::Node) -> Self {
        let spec = node.spec.clone().unwrap_or_default();
        let status = node.status.as_ref();
        let allocatable = status.and_then(|s| s.allocatable.as_ref());
        let pods = allocatable
            .and_then(|a| a.get("pods"))
            .and_then(|q| Quantity::parse(&q.0).ok());
        let images = status.iter().flat_map(|s| s.images.iter().flatten());
        let images = images.flat_map(|i| {
            i.names
                .iter()
                .flatten()
                .map(|n| (n.clone(), i.size_bytes.unwrap_or(0)))
        });
        Self {
            name: node.metadata.name.as_deref().unwrap_or_default().into(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.taints.unwrap_or_default(),
            unschedulable: spec.unschedulable == Some(true),
            allocatable: Resources::parse(allocatable),
            max_pods: pods.map_or(0, Quantity::value),
            images: images.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn requests_of(spec: serde_json::Value) -> (i64, i64) {
        let pod: core::Pod =
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        let requests = PodInfo::new(&pod).requests;
        (requests.milli_cpu, requests.memory)
    }

    #[test]
    fn requests_of_pods() {
        let c = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu, "memory": "1Ki"}}});
        let side = |cpu: &str| json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
        for (why, spec, want) in [
            (
                "sum of containers",
                json!({"containers": [c("1"), c("500m")]}),
                (1500, 2048),
            ),
            (
                "the largest init container",
                json!({"containers": [c("1")], "initContainers": [c("2"), c("3")]}),
                (3000, 1024),
            ),
            (
                "sidecars run along",
                json!({"containers": [c("1")], "initContainers": [side("2"), c("500m")]}),
                (3000, 1024),
            ),
            (
                "init after a sidecar",
                json!({"containers": [c("1")], "initContainers": [side("1"), c("4")]}),
                (5000, 1024),
            ),
            (
                "overhead",
                json!({"containers": [c("1")], "overhead": {"cpu": "250m"}}),
                (1250, 1024),
            ),
            (
                "the pod's own",
                json!({"containers": [c("1")], "resources": {"requests": {"cpu": "3"}}}),
                (3000, 1024),
            ),
        ] {
            assert_eq!(requests_of(spec), want, "{why}");
        }
    }

    #[test]
    fn tolerations() {
        let taint = |key: &str, value: &str, effect: &str| core::Taint {
            key: key.into(),
            value: Some(value.into()),
            effect: effect.into(),
            time_added: None,
        };
        for (toleration, taint, want) in [
            (
                json!({"operator": "Exists"}),
                taint("a", "b", "NoSchedule"),
                true,
            ),
            (
                json!({"key": "a", "operator": "Exists"}),
                taint("a", "b", "NoExecute"),
                true,
            ),
            (
                json!({"key": "a", "value": "b"}),
                taint("a", "b", "NoSchedule"),
                true,
            ),
            (
                json!({"key": "a", "value": "c"}),
                taint("a", "b", "NoSchedule"),
                false,
            ),
            (
                json!({"key": "a", "value": "b", "effect": "NoExecute"}),
                taint("a", "b", "NoSchedule"),
                false,
            ),
            (
                json!({"key": "b", "operator": "Exists"}),
                taint("a", "b", "NoSchedule"),
                false,
            ),
        ] {
            let t: core::Toleration = serde_json::from_value(toleration.clone()).unwrap();
            assert_eq!(tolerates(&t, &taint), want, "{toleration}");
        }
    }
}
