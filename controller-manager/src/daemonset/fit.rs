//! Whether a DaemonSet's pod belongs on a node: by name, labels and taints, not by what is free there.

use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod,
    PodSpec, Toleration,
};
use kube::ResourceExt;

use crate::pods;
use crate::tainteviction::tolerates;

const NAME: &str = "metadata.name";

/// Whether a pod should be made on a node, and whether one that is there may stay.
pub fn fits(spec: &PodSpec, node: &Node) -> (bool, bool) {
    let name = node.name_any();
    let named = spec.node_name.as_deref().filter(|n| !n.is_empty());
    if named.is_some_and(|n| n != name) || !is_selected(spec, node) {
        return (false, false);
    }
    let mut tolerations = spec.tolerations.clone().unwrap_or_default();
    tolerations.extend(own_tolerations(spec));
    let taints = node.spec.as_ref().and_then(|s| s.taints.clone());
    let repelled = |effect: &str| {
        let mut taints = taints.iter().flatten().filter(|t| t.effect == effect);
        taints.any(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
    };
    let evicted = repelled("NoExecute");
    (!evicted && !repelled("NoSchedule"), !evicted)
}

fn is_selected(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.labels();
    let wanted = spec.node_selector.iter().flatten();
    if !wanted.into_iter().all(|(k, v)| labels.get(k) == Some(v)) {
        return false;
    }
    let affinity = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| {
        a.required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    required.is_none_or(|r| r.node_selector_terms.iter().any(|t| meets_term(t, node)))
}

fn meets_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name = node.name_any();
    // A term without conditions is met by nothing.
    !(labels.is_empty() && fields.is_empty())
        && labels
            .iter()
            .all(|r| meets(r, node.labels().get(&r.key).map(String::as_str)))
        && fields
            .iter()
            .all(|r| r.key == NAME && meets(r, Some(&name)))
}

fn meets(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|v| values.iter().any(|w| w == v));
    let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok());
    let compare = |over: fn(&i64, &i64) -> bool| {
        let limit = number(values.first().map(String::as_str));
        number(value).zip(limit).is_some_and(|(v, l)| over(&v, &l))
    };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

/// What daemons put up with that other pods do not: they have to run where a node is in trouble.
pub fn own_tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let tolerate = |name: &str, effect: &str| Toleration {
        key: Some(format!("node.kubernetes.io/{name}")),
        operator: Some("Exists".into()),
        effect: Some(effect.into()),
        ..Default::default()
    };
    let mut tolerations = vec![
        tolerate("not-ready", "NoExecute"),
        tolerate("unreachable", "NoExecute"),
        tolerate("disk-pressure", "NoSchedule"),
        tolerate("memory-pressure", "NoSchedule"),
        tolerate("pid-pressure", "NoSchedule"),
        tolerate("unschedulable", "NoSchedule"),
    ];
    if spec.host_network == Some(true) {
        tolerations.push(tolerate("network-unavailable", "NoSchedule"));
    }
    tolerations
}

/// Ties a pod to a node, but leaves the binding to the scheduler.
pub fn tie(spec: &mut PodSpec, node: &str) {
    let requirement = NodeSelectorRequirement {
        key: NAME.into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    // The set was looked at with the pod's own terms already; they would be alternatives to this one.
    let selector = NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_expressions: None,
            match_fields: Some(vec![requirement]),
        }],
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    affinity.required_during_scheduling_ignored_during_execution = Some(selector);
}

/// The node that a pod is on or tied to.
pub fn target(pod: &Pod) -> Option<&str> {
    match pods::node_name(pod) {
        "" => tied_to(pod),
        bound => Some(bound),
    }
}

fn tied_to(pod: &Pod) -> Option<&str> {
    let affinity = pod
        .spec
        .as_ref()?
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?;
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let fields = required
        .node_selector_terms
        .iter()
        .flat_map(|t| t.match_fields.iter().flatten());
    let found = fields
        .into_iter()
        .find(|r| r.key == NAME && r.operator == "In")?;
    found.values.as_ref()?.first().map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn where_daemons_run() {
        let node = |taints: Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"zone": "a", "cores": "8"}}, "spec": {"taints": taints}})).unwrap()
        };
        let term = |key: &str, operator: &str, values: Value| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]}}}})
        };
        let taint = |key: &str, effect: &str| json!([{"key": key, "effect": effect}]);
        let none = json!([]);
        for (spec, taints, want) in [
            (json!({}), none.clone(), (true, true)),
            (json!({"nodeName": "m"}), none.clone(), (false, false)),
            (
                json!({"nodeSelector": {"zone": "a"}}),
                none.clone(),
                (true, true),
            ),
            (
                json!({"nodeSelector": {"zone": "b"}}),
                none.clone(),
                (false, false),
            ),
            (
                term("zone", "In", json!(["a", "b"])),
                none.clone(),
                (true, true),
            ),
            (
                term("zone", "NotIn", json!(["a"])),
                none.clone(),
                (false, false),
            ),
            (
                term("gpu", "DoesNotExist", json!([])),
                none.clone(),
                (true, true),
            ),
            (
                term("cores", "Gt", json!(["4"])),
                none.clone(),
                (true, true),
            ),
            (term("cores", "Lt", json!(["4"])), none, (false, false)),
            (json!({}), taint("x", "NoSchedule"), (false, true)),
            (json!({}), taint("x", "NoExecute"), (false, false)),
            (json!({}), taint("x", "PreferNoSchedule"), (true, true)),
            (
                json!({}),
                taint("node.kubernetes.io/unschedulable", "NoSchedule"),
                (true, true),
            ),
            (
                json!({}),
                taint("node.kubernetes.io/network-unavailable", "NoSchedule"),
                (false, true),
            ),
            (
                json!({"hostNetwork": true}),
                taint("node.kubernetes.io/network-unavailable", "NoSchedule"),
                (true, true),
            ),
        ] {
            let mut value = json!({"containers": []});
            spec.as_object()
                .unwrap()
                .iter()
                .for_each(|(k, v)| value[k] = v.clone());
            let spec: PodSpec = serde_json::from_value(value.clone()).unwrap();
            assert_eq!(fits(&spec, &node(taints.clone())), want, "{value} {taints}");
        }
        let mut pod = Pod {
            spec: Some(PodSpec::default()),
            ..Default::default()
        };
        assert_eq!(target(&pod), None);
        tie(pod.spec.as_mut().unwrap(), "n");
        assert_eq!(target(&pod), Some("n"));
    }
}
