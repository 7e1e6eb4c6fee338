//! One pod, one decision: filter nodes, score what is left, pick the best.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cluster::{Cluster, Node};
use crate::framework::{Filter, Plugin, Reason, Score, Verdict};
use crate::model::PodInfo;

/// With fewer nodes than this all are looked at.
const MIN_FEASIBLE: usize = 100;
const MIN_PERCENTAGE: usize = 5;

/// Where a search over nodes begins, so that the same nodes are not always the first, and how ties are broken.
#[derive(Debug, Clone, Copy, Default)]
pub struct Start {
    pub node: usize,
    pub tie: usize,
}

/// A pod's place.
#[derive(Debug, PartialEq)]
pub struct Placement {
    pub node: Arc<str>,
    /// Where the next search should begin.
    pub next: usize,
}

/// Why there is no place.
#[derive(Debug, Default)]
pub struct Failure {
    pub nodes: usize,
    /// How many nodes each reason counts against, by its text.
    pub reasons: BTreeMap<String, usize>,
    /// Plugins (by index) that turned a node away.
    pub plugins: u32,
    /// Nodes that evicting pods could open.
    pub resolvable: Vec<Arc<str>>,
}

/// How many feasible nodes are enough to choose from: all of a small cluster, from 50 % down to 5 % of a large one.
pub fn enough(nodes: usize) -> usize {
    if nodes < MIN_FEASIBLE {
        return nodes;
    }
    let percentage = 50usize.saturating_sub(nodes / 125).max(MIN_PERCENTAGE);
    (nodes * percentage / 100).max(MIN_FEASIBLE)
}

/// The filters that have something to say about a pod, with their plugins' indexes.
pub fn filters<'a>(
    plugins: &[Box<dyn Plugin>],
    pod: &'a PodInfo,
    cluster: &'a Cluster,
) -> Vec<(usize, Box<dyn Filter + 'a>)> {
    plugins
        .iter()
        .enumerate()
        .filter_map(|(at, p)| Some((at, p.filter(pod, cluster)?)))
        .collect()
}

/// The first objection to a node, and whose it is.
pub fn objection(
    filters: &[(usize, Box<dyn Filter + '_>)],
    node: &Node,
) -> Option<(usize, Verdict)> {
    filters
        .iter()
        .map(|(at, filter)| (*at, filter.check(node)))
        .find(|(_, verdict)| !verdict.fit())
}

/// As [`objection`], with room left for pods that wait for this node.
fn objection_with_nominated(
    filters: &[(usize, Box<dyn Filter + '_>)],
    node: &Node,
    pod: &PodInfo,
    cluster: &Cluster,
) -> Option<(usize, Verdict)> {
    if cluster.has_nominations() && cluster.nominated(&node.info.name, pod).next().is_some() {
        let mut crowded = node.clone();
        cluster
            .nominated(&node.info.name, pod)
            .for_each(|p| crowded.add(p));
        if let Some(objection) = objection(filters, &crowded) {
            return Some(objection);
        }
    }
    objection(filters, node)
}

/// Decides where `pod` goes.
pub fn schedule(
    plugins: &[Box<dyn Plugin>],
    pod: &PodInfo,
    cluster: &Cluster,
    start: Start,
) -> Result<Placement, Failure> {
    let filters = filters(plugins, pod, cluster);
    let nodes = cluster.nodes();
    let wanted = enough(nodes.len());
    let mut failure = Failure::default();
    let mut counts = [0usize; Reason::ALL.len()];
    let mut feasible: Vec<&Node> = Vec::with_capacity(wanted);
    let mut visited = 0;
    // A pod that pods were evicted for tries that node first.
    let nominated = pod
        .nominated_node
        .as_deref()
        .and_then(|n| cluster.node(n))
        .filter(|n| n.exists);
    if let Some(node) =
        nominated.filter(|n| objection_with_nominated(&filters, n, pod, cluster).is_none())
    {
        return Ok(Placement {
            node: node.info.name.clone(),
            next: start.node,
        });
    }
    while visited < nodes.len() && feasible.len() < wanted {
        let node = &nodes[(start.node + visited) % nodes.len()];
        visited += 1;
        if !node.exists {
            continue;
        }
        failure.nodes += 1;
        match objection_with_nominated(&filters, node, pod, cluster) {
            None => feasible.push(node),
            Some((plugin, verdict)) => failure.count(plugin, verdict, node, &mut counts),
        }
    }
    if feasible.is_empty() {
        for (reason, text) in Reason::ALL {
            if counts[reason as usize] > 0 {
                failure
                    .reasons
                    .insert(text.to_owned(), counts[reason as usize]);
            }
        }
        return Err(failure);
    }
    let best = best(plugins, pod, cluster, &feasible, start.tie);
    Ok(Placement {
        node: best.info.name.clone(),
        next: (start.node + visited) % nodes.len(),
    })
}

impl Failure {
    fn count(
        &mut self,
        plugin: usize,
        verdict: Verdict,
        node: &Node,
        counts: &mut [usize; Reason::ALL.len()],
    ) {
        self.plugins |= 1 << plugin;
        for (reason, _) in Reason::ALL {
            counts[reason as usize] += usize::from(verdict.has(reason));
        }
        for resource in &verdict.lacking {
            *self
                .reasons
                .entry(format!("Insufficient {resource}"))
                .or_default() += 1;
        }
        if !verdict.unresolvable {
            self.resolvable.push(node.info.name.clone());
        }
    }

    /// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s).`, in Kubernetes' words.
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut reasons: Vec<String> = self
            .reasons
            .iter()
            .map(|(reason, n)| format!("{n} {reason}"))
            .collect();
        reasons.sort();
        format!(
            "0/{} nodes are available: {}.",
            self.nodes,
            reasons.join(", ")
        )
    }
}

fn best<'n>(
    plugins: &[Box<dyn Plugin>],
    pod: &PodInfo,
    cluster: &Cluster,
    feasible: &[&'n Node],
    tie: usize,
) -> &'n Node {
    if let [only] = feasible {
        return only;
    }
    let mut totals = vec![0i64; feasible.len()];
    let mut scores = vec![0i64; feasible.len()];
    for plugin in plugins {
        let scorer: Option<Box<dyn Score>> = plugin.score(pod, cluster);
        let Some(scorer) = scorer else { continue };
        for (score, node) in scores.iter_mut().zip(feasible) {
            *score = scorer.score(node);
        }
        scorer.normalize(&mut scores);
        for (total, score) in totals.iter_mut().zip(&scores) {
            *total += score * plugin.weight();
        }
    }
    let highest = totals.iter().copied().max().unwrap_or(0);
    let equals = totals.iter().filter(|t| **t == highest).count();
    let winners = feasible
        .iter()
        .zip(&totals)
        .filter(|(_, t)| **t == highest)
        .map(|(n, _)| n);
    winners
        .into_iter()
        .nth(tie % equals.max(1))
        .unwrap_or(&feasible[0])
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
pub(crate) mod tests;
