//! Plugins that look at a node itself: is it open, is it the one asked for, its taints, labels, ports and images.

use k8s_openapi::api::core::v1::Taint;

use crate::cluster::{Cluster, Node};
use crate::framework::{Change, Filter, MAX_SCORE, Plugin, Reason, Score, Verdict, normalize};
use crate::model::PodInfo;

/// Keeps pods off cordoned nodes, unless they tolerate that.
pub struct NodeUnschedulable;

struct Open;

impl Filter for Open {
    fn check(&self, node: &Node) -> Verdict {
        if node.info.unschedulable {
            Verdict::never(Reason::Unschedulable)
        } else {
            Verdict::fits()
        }
    }
}

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn filter<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        let cordon = Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Default::default()
        };
        if pod.tolerates(&cordon) {
            None
        } else {
            Some(Box::new(Open))
        }
    }

    fn helps(&self, change: &Change, _: &PodInfo) -> bool {
        matches!(
            change,
            Change::NodeAdded
                | Change::NodeUpdated {
                    unschedulable: true,
                    ..
                }
                | Change::NodeUpdated { taints: true, .. }
        )
    }
}

/// A pod that names its node goes there or nowhere.
pub struct NodeName;

struct Named<'a>(&'a str);

impl Filter for Named<'_> {
    fn check(&self, node: &Node) -> Verdict {
        if *node.info.name == *self.0 {
            Verdict::fits()
        } else {
            Verdict::never(Reason::NodeName)
        }
    }
}

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn filter<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        pod.node_name
            .as_deref()
            .map(|name| Box::new(Named(name)) as Box<dyn Filter>)
    }

    fn helps(&self, change: &Change, _: &PodInfo) -> bool {
        matches!(change, Change::NodeAdded)
    }
}

/// Taints repel what does not tolerate them: NoSchedule and NoExecute altogether, PreferNoSchedule where possible.
pub struct TaintToleration;

struct Taints<'a>(&'a PodInfo);

impl Filter for Taints<'_> {
    fn check(&self, node: &Node) -> Verdict {
        if node.info.taints.is_empty() || self.0.repelled_by(&node.info).is_none() {
            return Verdict::fits();
        }
        Verdict::never(Reason::Taint)
    }
}

impl Score for Taints<'_> {
    fn score(&self, node: &Node) -> i64 {
        let repelling = |t: &&Taint| t.effect == "PreferNoSchedule" && !self.0.tolerates(t);
        node.info.taints.iter().filter(repelling).count() as i64
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize(scores, true);
    }
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn filter<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        Some(Box::new(Taints(pod)))
    }

    fn score<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Score + 'a>> {
        Some(Box::new(Taints(pod)))
    }

    fn weight(&self) -> i64 {
        3
    }

    fn helps(&self, change: &Change, _: &PodInfo) -> bool {
        matches!(
            change,
            Change::NodeAdded | Change::NodeUpdated { taints: true, .. }
        )
    }
}

/// nodeSelector and node affinity.
pub struct NodeAffinity;

struct Wanted<'a>(&'a PodInfo);

impl Filter for Wanted<'_> {
    fn check(&self, node: &Node) -> Verdict {
        if self.0.accepts(&node.info) {
            Verdict::fits()
        } else {
            Verdict::never(Reason::NodeAffinity)
        }
    }
}

impl Score for Wanted<'_> {
    fn score(&self, node: &Node) -> i64 {
        self.0
            .preferred_nodes
            .iter()
            .filter(|(_, term)| term.matches(&node.info))
            .map(|(weight, _)| weight)
            .sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize(scores, false);
    }
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn filter<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        let any = !pod.node_selector.is_empty() || pod.required_nodes.is_some();
        any.then(|| Box::new(Wanted(pod)) as Box<dyn Filter>)
    }

    fn score<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Score + 'a>> {
        (!pod.preferred_nodes.is_empty()).then(|| Box::new(Wanted(pod)) as Box<dyn Score>)
    }

    fn weight(&self) -> i64 {
        2
    }

    fn helps(&self, change: &Change, _: &PodInfo) -> bool {
        matches!(
            change,
            Change::NodeAdded | Change::NodeUpdated { labels: true, .. }
        )
    }
}

/// Host ports are given once.
pub struct NodePorts;

struct Ports<'a>(&'a PodInfo);

impl Filter for Ports<'_> {
    fn check(&self, node: &Node) -> Verdict {
        let taken = self
            .0
            .host_ports
            .iter()
            .any(|p| node.host_ports.iter().any(|q| p.conflicts(q)));
        if taken {
            Verdict::no(Reason::HostPorts)
        } else {
            Verdict::fits()
        }
    }
}

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn filter<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        (!pod.host_ports.is_empty()).then(|| Box::new(Ports(pod)) as Box<dyn Filter>)
    }

    fn helps(&self, change: &Change, pod: &PodInfo) -> bool {
        match change {
            Change::PodRemoved(gone) => gone
                .host_ports
                .iter()
                .any(|p| pod.host_ports.iter().any(|q| p.conflicts(q))),
            change => matches!(change, Change::NodeAdded),
        }
    }
}

/// Prefers nodes that have the pod's images, the more bytes the better, less so images that few nodes have.
pub struct ImageLocality;

const MIN_BYTES: i64 = 23 * 1024 * 1024;
const MAX_BYTES_PER_IMAGE: i64 = 1000 * 1024 * 1024;

struct Images<'a> {
    /// Full names, and how widespread they are.
    images: Vec<(String, f64)>,
    pod: &'a PodInfo,
}

impl Score for Images<'_> {
    fn score(&self, node: &Node) -> i64 {
        let bytes = |(name, spread): &(String, f64)| {
            node.info
                .images
                .get(name)
                .map_or(0.0, |size| *size as f64 * spread)
        };
        let sum = self.images.iter().map(bytes).sum::<f64>() as i64;
        let max = MAX_BYTES_PER_IMAGE * self.pod.images.len().max(1) as i64;
        MAX_SCORE * (sum.clamp(MIN_BYTES, max) - MIN_BYTES) / (max - MIN_BYTES)
    }
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn score<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Score + 'a>> {
        let total = cluster.nodes().len().max(1) as f64;
        let full = |image: &String| {
            let tagged = image
                .rsplit('/')
                .next()
                .is_some_and(|last| last.contains(':') || last.contains('@'));
            if tagged {
                image.clone()
            } else {
                format!("{image}:latest")
            }
        };
        let known = pod
            .images
            .iter()
            .map(full)
            .map(|i| (cluster.nodes_with_image(&i), i));
        let images: Vec<_> = known
            .filter(|(n, _)| *n > 0)
            .map(|(n, i)| (i, n as f64 / total))
            .collect();
        (!images.is_empty()).then(|| Box::new(Images { images, pod }) as Box<dyn Score>)
    }

    fn helps(&self, _: &Change, _: &PodInfo) -> bool {
        false
    }
}
