//! Decisions, as tables: a cluster, a pod, and where it goes or why not.

use super::*;
use crate::model::NodeInfo;
use crate::plugins::default_plugins;
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

/// Pods with the nodes that they are on.
pub type Placed<'a> = Vec<(&'a str, Arc<PodInfo>)>;

pub fn node(name: &str, extra: Value) -> NodeInfo {
    let mut value = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}
    });
    merge(&mut value, extra);
    NodeInfo::new(&serde_json::from_value::<core::Node>(value).unwrap())
}

pub fn pod(name: &str, extra: Value) -> Arc<PodInfo> {
    let mut value = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {}},
        "spec": {"containers": [{"name": "c"}]}
    });
    merge(&mut value, extra);
    Arc::new(PodInfo::new(
        &serde_json::from_value::<core::Pod>(value).unwrap(),
    ))
}

fn merge(into: &mut Value, from: Value) {
    match from {
        Value::Object(map) => map.into_iter().for_each(|(k, v)| merge(&mut into[k], v)),
        other => *into = other,
    }
}

pub fn cpu(amount: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]}})
}

pub fn cluster(nodes: Vec<NodeInfo>, pods: Vec<(&str, Arc<PodInfo>)>) -> Cluster {
    let mut cluster = Cluster::default();
    nodes.into_iter().for_each(|n| drop(cluster.set_node(n)));
    pods.into_iter()
        .for_each(|(node, pod)| cluster.place(pod, node, false));
    cluster
}

fn place(cluster: &Cluster, pod: &PodInfo) -> String {
    match schedule(&default_plugins(), pod, cluster, Start::default()) {
        Ok(placement) => placement.node.to_string(),
        Err(failure) => failure.message(),
    }
}

fn zone(name: &str) -> Value {
    json!({"metadata": {"labels": {"topology.kubernetes.io/zone": name}}})
}

/// Name, nodes, pods that are placed already, the pod, and where it goes or why nowhere.
type Case = (
    &'static str,
    Vec<NodeInfo>,
    Placed<'static>,
    Arc<PodInfo>,
    &'static str,
);

#[test]
fn filters_and_their_words() {
    let taint = json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}});
    let port = |n: i32| json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": n}]}]}});
    let affinity = |expression: Value| {
        json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}}}})
    };
    #[rustfmt::skip]
    let cases: Vec<Case> = vec![
        ("no nodes", vec![], vec![], pod("p", json!({})), "no nodes available to schedule pods"),
        ("fits", vec![node("a", json!({}))], vec![], pod("p", cpu("4")), "a"),
        ("cordoned", vec![node("a", json!({"spec": {"unschedulable": true}}))], vec![], pod("p", json!({})), "0/1 nodes are available: 1 node(s) were unschedulable."),
        ("several reasons", vec![node("a", taint.clone()), node("b", json!({})), node("c", json!({}))], vec![], pod("p", cpu("5")),
            "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient cpu."),
        ("tolerated", vec![node("a", taint.clone())], vec![], pod("p", json!({"spec": {"tolerations": [{"key": "k", "operator": "Exists"}]}})), "a"),
        ("in use", vec![node("a", json!({}))], vec![("a", pod("q", cpu("3")))], pod("p", cpu("2")), "0/1 nodes are available: 1 Insufficient cpu."),
        ("too many", vec![node("a", json!({"status": {"allocatable": {"pods": "1"}}}))], vec![("a", pod("q", json!({})))], pod("p", json!({})), "0/1 nodes are available: 1 Too many pods."),
        ("extended resource", vec![node("a", json!({}))], vec![], pod("p", json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"x.io/gpu": "1"}}}]}})), "0/1 nodes are available: 1 Insufficient x.io/gpu."),
        ("host port taken", vec![node("a", json!({}))], vec![("a", pod("q", port(80)))], pod("p", port(80)), "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."),
        ("another host port", vec![node("a", json!({}))], vec![("a", pod("q", port(80)))], pod("p", port(81)), "a"),
        ("node selector", vec![node("a", json!({})), node("b", json!({"metadata": {"labels": {"disk": "ssd"}}}))], vec![], pod("p", json!({"spec": {"nodeSelector": {"disk": "ssd"}}})), "b"),
        ("affinity NotIn", vec![node("a", zone("z1")), node("b", zone("z2"))], vec![], pod("p", affinity(json!({"key": "topology.kubernetes.io/zone", "operator": "NotIn", "values": ["z1"]}))), "b"),
        ("no match", vec![node("a", json!({}))], vec![], pod("p", affinity(json!({"key": "x", "operator": "Exists"}))), "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."),
        ("node that is only heard of", vec![], vec![("ghost", pod("q", json!({})))], pod("p", json!({})), "no nodes available to schedule pods"),
    ];
    for (why, nodes, pods, pod, want) in cases {
        assert_eq!(place(&cluster(nodes, pods), &pod), want, "{why}");
    }
}

#[test]
fn the_better_node_wins() {
    let prefer = json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 50, "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}}]}}}});
    let avoid = json!({"spec": {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}});
    let owned = json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]}});
    let cases = vec![
        (
            "the emptier",
            vec![node("a", json!({})), node("b", json!({}))],
            vec![("a", pod("q", cpu("2")))],
            pod("p", cpu("1")),
            "b",
        ),
        (
            "the preferred",
            vec![
                node("a", json!({})),
                node("b", json!({"metadata": {"labels": {"disk": "ssd"}}})),
            ],
            vec![("b", pod("q", cpu("2")))],
            pod("p", prefer),
            "b",
        ),
        (
            "not the avoided",
            vec![node("a", avoid), node("b", json!({}))],
            vec![("b", pod("q", cpu("1")))],
            pod("p", json!({})),
            "b",
        ),
        (
            "away from its like",
            vec![node("a", json!({})), node("b", json!({}))],
            vec![
                ("a", pod("q", owned.clone())),
                ("b", pod("other", json!({}))),
            ],
            pod("p", owned),
            "b",
        ),
    ];
    for (why, nodes, pods, pod, want) in cases {
        assert_eq!(place(&cluster(nodes, pods), &pod), want, "{why}");
    }
}

#[test]
fn spreading() {
    let spread = |skew: i32, when: &str| {
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"topologySpreadConstraints": [{"maxSkew": skew,
            "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": when, "labelSelector": {"matchLabels": {"app": "web"}}}]}})
    };
    let web = |name: &str| pod(name, json!({"metadata": {"labels": {"app": "web"}}}));
    let nodes = || {
        vec![
            node("a", zone("z1")),
            node("b", zone("z1")),
            node("c", zone("z2")),
        ]
    };
    let p = |v| pod("p", v);
    assert_eq!(
        place(
            &cluster(nodes(), vec![("a", web("1"))]),
            &p(spread(1, "DoNotSchedule"))
        ),
        "c"
    );
    assert_eq!(
        place(
            &cluster(nodes(), vec![("c", web("1")), ("c", web("2"))]),
            &p(spread(1, "ScheduleAnyway"))
        ),
        "a"
    );
    let full = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "z2"}}, "status": {"allocatable": {"cpu": "0"}}});
    let nodes = vec![node("a", zone("z1")), node("c", full), node("d", json!({}))];
    let mut want_cpu = spread(1, "DoNotSchedule");
    want_cpu["spec"]["containers"] = cpu("1")["spec"]["containers"].clone();
    assert_eq!(
        place(&cluster(nodes, vec![("a", web("1"))]), &p(want_cpu)),
        "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match pod topology spread constraints, \
         1 node(s) didn't match pod topology spread constraints (missing required label)."
    );
}

#[test]
fn affinity_between_pods() {
    let term = |app: &str, key: &str| json!([{"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key}]);
    let wants = |kind: &str, app: &str, own: &str, key: &str| json!({"metadata": {"labels": {"app": own}}, "spec": {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": term(app, key)}}}});
    let (host, z) = ("kubernetes.io/hostname", "topology.kubernetes.io/zone");
    let app = |name: &str, app: &str| pod(name, json!({"metadata": {"labels": {"app": app}}}));
    let nodes = || vec![node("a", zone("z1")), node("b", zone("z2"))];
    #[rustfmt::skip]
    let cases = vec![
        ("near", vec![("b", app("1", "db"))], pod("p", wants("podAffinity", "db", "web", z)), "b"),
        ("nobody to be near", vec![], pod("p", wants("podAffinity", "db", "web", z)), "0/2 nodes are available: 2 node(s) didn't match pod affinity rules."),
        ("the first of its kind", vec![("a", app("1", "x"))], pod("p", wants("podAffinity", "web", "web", host)), "b"),
        ("away", vec![("a", app("1", "web"))], pod("p", wants("podAntiAffinity", "web", "web", host)), "b"),
        ("nowhere to be away", vec![("a", app("1", "web")), ("b", app("2", "web"))], pod("p", wants("podAntiAffinity", "web", "web", host)), "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules."),
        ("kept out", vec![("a", pod("1", wants("podAntiAffinity", "web", "db", z)))], app("p", "web"), "b"),
        ("kept out of all", vec![("a", pod("1", wants("podAntiAffinity", "web", "db", host))), ("b", pod("2", wants("podAntiAffinity", "web", "db", host)))], app("p", "web"), "0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules."),
    ];
    for (why, pods, pod, want) in cases {
        assert_eq!(place(&cluster(nodes(), pods), &pod), want, "{why}");
    }
}

#[test]
fn nominated_pods_keep_their_room() {
    let mut c = cluster(vec![node("a", json!({}))], vec![]);
    let mut important = cpu("3");
    important["spec"]["priority"] = json!(10);
    c.nominate(pod("important", important), "a");
    assert_eq!(
        place(&c, &pod("p", cpu("2"))),
        "0/1 nodes are available: 1 Insufficient cpu."
    );
    assert_eq!(place(&c, &pod("p", cpu("1"))), "a");
    let mut more = cpu("2");
    more["spec"]["priority"] = json!(11);
    assert_eq!(place(&c, &pod("p", more)), "a");
}

#[test]
fn large_clusters_are_sampled() {
    for (nodes, want) in [
        (10, 10),
        (99, 99),
        (100, 100),
        (1000, 420),
        (5000, 500),
        (15000, 750),
    ] {
        assert_eq!(enough(nodes), want, "{nodes}");
    }
}

#[test]
fn the_clusters_books_balance() {
    let mut c = cluster(vec![node("a", json!({}))], vec![]);
    let p = pod("p", cpu("2"));
    c.place(p.clone(), "a", true);
    assert!(c.is_assumed("p"));
    c.place(p.clone(), "a", false);
    assert!(!c.is_assumed("p"));
    assert_eq!(
        c.node("a").unwrap().requested.milli_cpu,
        2000,
        "counted once"
    );
    c.remove_node("a");
    assert_eq!(c.nodes().len(), 1, "kept for the pod on it");
    c.remove_pod("p");
    assert!(c.nodes().is_empty());
}
