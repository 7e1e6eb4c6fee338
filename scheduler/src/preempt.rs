//! Preemption: which less important pods must go so that a pod fits.

use std::sync::Arc;

use crate::cluster::{Cluster, Node};
use crate::framework::Plugin;
use crate::model::PodInfo;
use crate::schedule::{Failure, filters, objection};

/// A node that would have room, and who would have to leave it.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    pub node: Arc<str>,
    pub victims: Vec<(Arc<str>, i32)>,
}

/// What became of the attempt: a choice, or the second half of the pod's FailedScheduling message.
#[derive(Debug)]
pub enum Outcome {
    Evict {
        node: Arc<str>,
        victims: Vec<Arc<PodInfo>>,
    },
    No(String),
}

/// Nodes looked at in detail: a tenth of all, but at least a hundred, as in Kubernetes.
fn limit(nodes: usize) -> usize {
    (nodes / 10).max(100)
}

/// Decides whom to evict for `pod`, which `failure` says fits nowhere. The cluster is as before when this returns.
pub fn preempt(
    plugins: &[Box<dyn Plugin>],
    pod: &PodInfo,
    cluster: &mut Cluster,
    failure: &Failure,
) -> Outcome {
    if pod.never_preempts {
        return Outcome::No("preemption: not eligible due to preemptionPolicy=Never.".to_owned());
    }
    let terminating = |n: &Node| {
        n.pods
            .iter()
            .any(|p| p.deleting && p.priority < pod.priority)
    };
    let nominated = pod
        .nominated_node
        .as_deref()
        .filter(|n| failure.resolvable.iter().any(|r| **r == **n));
    if nominated
        .and_then(|n| cluster.node(n))
        .is_some_and(terminating)
    {
        return Outcome::No(
            "preemption: not eligible due to a terminating pod on the nominated node.".to_owned(),
        );
    }
    let mut candidates = Vec::new();
    for node in failure.resolvable.iter().take(limit(failure.nodes)) {
        candidates.extend(victims(plugins, pod, cluster, node));
    }
    match choose(candidates) {
        Some(best) => {
            let on_node = cluster
                .node(&best.node)
                .map(|n| n.pods.clone())
                .unwrap_or_default();
            let victims = on_node
                .into_iter()
                .filter(|p| best.victims.iter().any(|(uid, _)| *uid == p.uid));
            Outcome::Evict {
                node: best.node,
                victims: victims.collect(),
            }
        }
        None => Outcome::No(explain(failure)),
    }
}

/// The smallest set of less important pods without which the pod fits on the node. Takes them out of the cluster to
/// see, and puts them back.
fn victims(
    plugins: &[Box<dyn Plugin>],
    pod: &PodInfo,
    cluster: &mut Cluster,
    node: &str,
) -> Option<Candidate> {
    let fits = |cluster: &Cluster| {
        let node = cluster.node(node)?;
        objection(&filters(plugins, pod, cluster), node)
            .is_none()
            .then_some(())
    };
    let mut lesser: Vec<Arc<PodInfo>> = cluster
        .node(node)?
        .pods
        .iter()
        .filter(|p| p.priority < pod.priority)
        .cloned()
        .collect();
    if lesser.is_empty() {
        return None;
    }
    // The most important are the first to be spared, and among equals those that have been there longest.
    lesser.sort_by(|a, b| {
        b.priority
            .cmp(&a.priority)
            .then_with(|| a.created.cmp(&b.created))
    });
    let assumed: Vec<bool> = lesser.iter().map(|p| cluster.is_assumed(&p.uid)).collect();
    lesser.iter().for_each(|p| drop(cluster.remove_pod(&p.uid)));
    let mut victims = None;
    if fits(cluster).is_some() {
        let mut chosen = Vec::new();
        for (victim, assumed) in lesser.iter().zip(&assumed) {
            cluster.place(victim.clone(), node, *assumed);
            if fits(cluster).is_none() {
                cluster.remove_pod(&victim.uid);
                chosen.push((victim.uid.clone(), victim.priority));
            }
        }
        victims = Some(chosen);
    }
    for (pod, assumed) in lesser.iter().zip(assumed) {
        cluster.place(pod.clone(), node, assumed);
    }
    victims.map(|victims| Candidate {
        node: node.into(),
        victims,
    })
}

/// The least harm: the lowest most important victim, then the lowest sum of priorities, then the fewest victims.
fn choose(candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.into_iter().min_by_key(|c| {
        let highest = c
            .victims
            .iter()
            .map(|(_, p)| i64::from(*p))
            .max()
            .unwrap_or(i64::MIN);
        // Shifted to be positive, so that many victims never look better than few.
        let sum: i64 = c
            .victims
            .iter()
            .map(|(_, p)| i64::from(*p) - i64::from(i32::MIN))
            .sum();
        (highest, sum, c.victims.len())
    })
}

fn explain(failure: &Failure) -> String {
    let hopeless = failure.nodes - failure.resolvable.len();
    let mut parts = Vec::new();
    for (count, text) in [
        (
            failure.resolvable.len(),
            "No preemption victims found for incoming pod",
        ),
        (hopeless, "Preemption is not helpful for scheduling"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {text}"));
        }
    }
    parts.sort();
    format!(
        "preemption: 0/{} nodes are available: {}.",
        failure.nodes,
        parts.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::default_plugins;
    use crate::schedule::tests::{Placed, cluster, cpu, node, pod};
    use crate::schedule::{Start, schedule};
    use serde_json::{Value, json};

    fn with_priority(name: &str, amount: &str, priority: i32, extra: Value) -> Arc<PodInfo> {
        let mut value = cpu(amount);
        value["spec"]["priority"] = json!(priority);
        extra
            .as_object()
            .into_iter()
            .flatten()
            .for_each(|(k, v)| value["spec"][k] = v.clone());
        pod(name, value)
    }

    fn run(cluster: &mut Cluster, pod: &PodInfo) -> String {
        let plugins = default_plugins();
        let failure = schedule(&plugins, pod, cluster, Start::default()).unwrap_err();
        match preempt(&plugins, pod, cluster, &failure) {
            Outcome::Evict { node, victims } => {
                let mut names: Vec<_> = victims.iter().map(|p| p.name.to_string()).collect();
                names.sort();
                format!("{node}: {}", names.join(" "))
            }
            Outcome::No(message) => message,
        }
    }

    #[test]
    fn the_least_harm_is_done() {
        let nodes = || vec![node("a", json!({})), node("b", json!({}))];
        let p = |name, amount, priority| with_priority(name, amount, priority, json!({}));
        let important = p("p", "2", 100);
        #[rustfmt::skip]
        let cases: Vec<(&str, Placed, &str)> = vec![
            ("the less important victim", vec![("a", p("x", "3", 50)), ("b", p("y", "3", 10))], "b: y"),
            ("no more than needed", vec![("a", p("x", "2", 1)), ("a", p("y", "2", 2)), ("b", p("z", "4", 100))], "a: x"),
            ("fewer victims", vec![("a", p("x", "2", 1)), ("a", p("y", "2", 1)), ("b", p("z", "4", 1))], "a: y"),
            ("only the less important", vec![("a", p("x", "4", 100)), ("b", p("y", "4", 200))],
                "preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod."),
        ];
        for (why, pods, want) in cases {
            assert_eq!(run(&mut cluster(nodes(), pods), &important), want, "{why}");
        }
    }

    #[test]
    fn what_cannot_help_is_told() {
        let nodes = vec![
            node("a", json!({"spec": {"unschedulable": true}})),
            node("b", json!({})),
        ];
        let p = with_priority("p", "3", 0, json!({}));
        let mut c = cluster(nodes, vec![("b", with_priority("x", "3", 0, json!({})))]);
        assert_eq!(
            run(&mut c, &p),
            "preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling."
        );
        let never = with_priority("p", "3", 10, json!({"preemptionPolicy": "Never"}));
        assert_eq!(
            run(&mut c, &never),
            "preemption: not eligible due to preemptionPolicy=Never."
        );
        assert_eq!(
            c.node("b").unwrap().pods.len(),
            1,
            "the cluster is as before"
        );
    }
}
