//! Spreads pods over zones, nodes or whatever a node label distinguishes.

use std::collections::HashMap;

use crate::cluster::{Cluster, Node};
use crate::framework::{Change, Filter, MAX_SCORE, Plugin, Reason, Score, Verdict};
use crate::model::{PodInfo, Spread};

const ZONE: &str = "topology.kubernetes.io/zone";

/// topologySpreadConstraints; and for pods of a controller that have none, a preference for nodes and zones with
/// fewer pods of that controller.
pub struct PodTopologySpread;

/// One constraint with the number of matching pods in each domain.
struct Counted<'a> {
    constraint: &'a Spread,
    domains: HashMap<&'a str, i64>,
    least: i64,
    /// The pod itself will be one more.
    own: i64,
}

struct Spreading<'a> {
    counted: Vec<Counted<'a>>,
}

fn counts_node(constraint: &Spread, pod: &PodInfo, node: &Node) -> bool {
    (!constraint.honor_affinity || pod.accepts(&node.info))
        && (!constraint.honor_taints || pod.repelled_by(&node.info).is_none())
}

fn matching_pods(constraint: &Spread, namespace: &str, node: &Node) -> i64 {
    let matching = |p: &&std::sync::Arc<PodInfo>| {
        !p.deleting && *p.namespace == *namespace && constraint.selector.matches(&p.labels)
    };
    node.pods.iter().filter(matching).count() as i64
}

fn count<'a>(pod: &'a PodInfo, cluster: &'a Cluster, hard: bool) -> Vec<Counted<'a>> {
    let constraints: Vec<&Spread> = pod.spread.iter().filter(|c| c.hard == hard).collect();
    let mut counted: Vec<Counted> = constraints
        .iter()
        .map(|c| Counted {
            constraint: c,
            domains: HashMap::new(),
            least: 0,
            own: i64::from(c.selector.matches(&pod.labels)),
        })
        .collect();
    for node in cluster.existing() {
        // Only nodes with all the labels take part.
        if !constraints
            .iter()
            .all(|c| node.info.labels.contains_key(&c.topology_key))
        {
            continue;
        }
        for entry in &mut counted {
            if counts_node(entry.constraint, pod, node) {
                let domain = node.info.labels[&entry.constraint.topology_key].as_str();
                *entry.domains.entry(domain).or_default() +=
                    matching_pods(entry.constraint, &pod.namespace, node);
            }
        }
    }
    for entry in &mut counted {
        let enough = entry.domains.len() as i64 >= entry.constraint.min_domains;
        entry.least = if enough {
            entry.domains.values().copied().min().unwrap_or(0)
        } else {
            0
        };
    }
    counted
}

impl Filter for Spreading<'_> {
    fn check(&self, node: &Node) -> Verdict {
        for entry in &self.counted {
            let Some(domain) = node.info.labels.get(&entry.constraint.topology_key) else {
                return Verdict::never(Reason::SpreadLabel);
            };
            let there = entry.domains.get(domain.as_str()).copied().unwrap_or(0);
            if there + entry.own - entry.least > entry.constraint.max_skew {
                return Verdict::no(Reason::Spread);
            }
        }
        Verdict::fits()
    }
}

impl Score for Spreading<'_> {
    fn score(&self, node: &Node) -> i64 {
        let cost = |entry: &Counted| match node.info.labels.get(&entry.constraint.topology_key) {
            // Nodes without the label are the last choice.
            None => f64::from(u16::MAX),
            Some(domain) => {
                let there = entry.domains.get(domain.as_str()).copied().unwrap_or(0);
                // More domains make a single pod weigh more.
                let weight = ((entry.domains.len() + 2) as f64).ln();
                there as f64 * weight + (entry.constraint.max_skew - 1) as f64
            }
        };
        self.counted.iter().map(cost).sum::<f64>().round() as i64
    }

    fn normalize(&self, scores: &mut [i64]) {
        fewest_best(scores);
    }
}

/// The least becomes 100, and what has twice the least next to nothing.
fn fewest_best(scores: &mut [i64]) {
    let (least, most) = (
        scores.iter().copied().min().unwrap_or(0),
        scores.iter().copied().max().unwrap_or(0),
    );
    for score in scores {
        *score = if most == 0 {
            MAX_SCORE
        } else {
            MAX_SCORE * (most + least - *score) / most
        };
    }
}

/// The preference that pods of a controller have by default.
struct Siblings<'a> {
    by_node: &'a HashMap<std::sync::Arc<str>, i64>,
    by_zone: HashMap<&'a str, i64>,
}

impl Score for Siblings<'_> {
    fn score(&self, node: &Node) -> i64 {
        let here = self.by_node.get(&node.info.name).copied().unwrap_or(0);
        let zone = node
            .info
            .labels
            .get(ZONE)
            .and_then(|z| self.by_zone.get(z.as_str()))
            .copied()
            .unwrap_or(0);
        // Both count; a zone is worth less than a node as it holds many.
        here * 4 + zone
    }

    fn normalize(&self, scores: &mut [i64]) {
        fewest_best(scores);
    }
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn filter<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        if !pod.spread.iter().any(|c| c.hard) {
            return None;
        }
        Some(Box::new(Spreading {
            counted: count(pod, cluster, true),
        }))
    }

    fn score<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Score + 'a>> {
        if pod.spread.iter().any(|c| !c.hard) {
            return Some(Box::new(Spreading {
                counted: count(pod, cluster, false),
            }));
        }
        if !pod.spread.is_empty() {
            return None;
        }
        let by_node = cluster.likes(pod.owner.as_deref()?)?;
        let mut by_zone: HashMap<&str, i64> = HashMap::new();
        for (node, count) in by_node {
            if let Some(zone) = cluster.node(node).and_then(|n| n.info.labels.get(ZONE)) {
                *by_zone.entry(zone).or_default() += count;
            }
        }
        Some(Box::new(Siblings { by_node, by_zone }))
    }

    fn weight(&self) -> i64 {
        2
    }

    fn helps(&self, change: &Change, pod: &PodInfo) -> bool {
        match change {
            Change::NodeAdded => true,
            Change::NodeUpdated { labels, taints, .. } => *labels || *taints,
            Change::PodRemoved(other) | Change::PodPlaced(other) => {
                let concerns = |c: &Spread| c.selector.matches(&other.labels);
                other.namespace == pod.namespace && pod.spread.iter().any(concerns)
            }
            Change::Namespace => false,
        }
    }
}
