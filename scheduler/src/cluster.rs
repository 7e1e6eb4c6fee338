//! The scheduler's picture of the cluster: nodes with the pods on them, those assumed to be there included.
//!
//! It is changed by watch events and by decisions, in place, by the one task that owns it. There is no snapshot to
//! copy: a decision borrows it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::model::{HostPort, Labels, NodeInfo, PodInfo, Resources};

/// A node and what is on it.
#[derive(Debug, Clone, Default)]
pub struct Node {
    pub info: NodeInfo,
    pub pods: Vec<Arc<PodInfo>>,
    pub requested: Resources,
    pub scored_cpu: i64,
    pub scored_memory: i64,
    pub host_ports: Vec<HostPort>,
    /// False for a node that is known only from pods bound to it.
    pub exists: bool,
}

impl Node {
    pub fn add(&mut self, pod: &Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.scored_cpu += pod.scored_cpu;
        self.scored_memory += pod.scored_memory;
        self.host_ports.extend(pod.host_ports.iter().cloned());
        self.pods.push(pod.clone());
    }

    pub fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let at = self.pods.iter().position(|p| *p.uid == *uid)?;
        let pod = self.pods.swap_remove(at);
        self.requested.subtract(&pod.requests);
        self.scored_cpu -= pod.scored_cpu;
        self.scored_memory -= pod.scored_memory;
        for port in &pod.host_ports {
            if let Some(at) = self.host_ports.iter().position(|p| p == port) {
                self.host_ports.swap_remove(at);
            }
        }
        Some(pod)
    }
}

/// Where a pod is.
#[derive(Debug, Clone)]
struct Place {
    node: Arc<str>,
    /// Decided, but not yet seen to be so in the API.
    assumed: bool,
}

/// Nodes, pods and namespaces.
#[derive(Debug, Default)]
pub struct Cluster {
    nodes: Vec<Node>,
    by_name: HashMap<Arc<str>, usize>,
    placed: HashMap<Arc<str>, Place>,
    namespaces: HashMap<String, Labels>,
    /// Pods that wait for victims on a node to end.
    nominated: HashMap<Arc<str>, (Arc<str>, Arc<PodInfo>)>,
    /// Per controller, the number of its pods on each node.
    spread: HashMap<Arc<str>, HashMap<Arc<str>, i64>>,
    /// Pods with any (anti-)affinity to other pods.
    with_affinity: HashSet<Arc<str>>,
    /// Nodes that have an image.
    images: HashMap<String, usize>,
}

impl Cluster {
    /// Nodes that exist are found by [`existing`](Self::existing); this includes those only heard of.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn existing(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|n| n.exists)
    }

    pub fn node(&self, name: &str) -> Option<&Node> {
        self.by_name.get(name).map(|at| &self.nodes[*at])
    }

    pub fn pods(&self) -> impl Iterator<Item = (&Node, &Arc<PodInfo>)> {
        self.nodes
            .iter()
            .flat_map(|n| n.pods.iter().map(move |p| (n, p)))
    }

    /// Pods that have a say in where others go.
    pub fn pods_with_affinity(&self) -> impl Iterator<Item = (&Node, &Arc<PodInfo>)> {
        self.with_affinity.iter().filter_map(|uid| {
            let node = self.node(&self.placed.get(uid)?.node)?;
            node.pods.iter().find(|p| p.uid == *uid).map(|p| (node, p))
        })
    }

    pub fn namespace_labels(&self, namespace: &str) -> &Labels {
        static NONE: Labels = Labels::new();
        self.namespaces.get(namespace).unwrap_or(&NONE)
    }

    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
    }

    /// How many pods of a controller each node has.
    pub fn likes(&self, owner: &str) -> Option<&HashMap<Arc<str>, i64>> {
        self.spread.get(owner)
    }

    pub fn nodes_with_image(&self, image: &str) -> usize {
        self.images.get(image).copied().unwrap_or(0)
    }

    fn entry(&mut self, name: &Arc<str>) -> &mut Node {
        let next = self.nodes.len();
        let at = *self.by_name.entry(name.clone()).or_insert(next);
        if at == next {
            let info = NodeInfo {
                name: name.clone(),
                ..Default::default()
            };
            self.nodes.push(Node {
                info,
                ..Default::default()
            });
        }
        &mut self.nodes[at]
    }

    /// Adds or changes a node. Returns what it was.
    pub fn set_node(&mut self, info: NodeInfo) -> Option<NodeInfo> {
        let node = self.entry(&info.name.clone());
        let existed = std::mem::replace(&mut node.exists, true);
        let old = std::mem::replace(&mut node.info, info.clone());
        self.count_images(&old, false);
        self.count_images(&info, true);
        existed.then_some(old)
    }

    fn count_images(&mut self, node: &NodeInfo, up: bool) {
        for image in node.images.keys() {
            let count = self.images.entry(image.clone()).or_default();
            *count = if up {
                *count + 1
            } else {
                count.saturating_sub(1)
            };
            if *count == 0 {
                self.images.remove(image);
            }
        }
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(at) = self.by_name.get(name).copied() else {
            return;
        };
        let info = NodeInfo {
            name: name.into(),
            ..Default::default()
        };
        let old = std::mem::replace(&mut self.nodes[at].info, info);
        self.count_images(&old, false);
        self.nodes[at].exists = false;
        self.drop_if_unused(at);
    }

    fn drop_if_unused(&mut self, at: usize) {
        if self.nodes[at].exists || !self.nodes[at].pods.is_empty() {
            return;
        }
        let gone = self.nodes.swap_remove(at);
        self.by_name.remove(&gone.info.name);
        if let Some(moved) = self.nodes.get(at) {
            self.by_name.insert(moved.info.name.clone(), at);
        }
    }

    /// Puts a pod on a node: `assumed` by decision, else because the API says so. Replaces what was known of it.
    pub fn place(&mut self, pod: Arc<PodInfo>, node: &str, assumed: bool) {
        self.remove_pod(&pod.uid);
        let name: Arc<str> = self
            .by_name
            .get_key_value(node)
            .map_or_else(|| node.into(), |(name, _)| name.clone());
        self.entry(&name).add(&pod);
        if let Some(owner) = &pod.owner {
            *self
                .spread
                .entry(owner.clone())
                .or_default()
                .entry(name.clone())
                .or_default() += 1;
        }
        if pod.affinity.is_some() {
            self.with_affinity.insert(pod.uid.clone());
        }
        self.nominated.remove(&pod.uid);
        self.placed.insert(
            pod.uid.clone(),
            Place {
                node: name,
                assumed,
            },
        );
    }

    /// Takes a pod off its node. Returns it if it was on one.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let place = self.placed.remove(uid)?;
        self.with_affinity.remove(uid);
        let at = self.by_name.get(&place.node).copied()?;
        let pod = self.nodes[at].remove(uid)?;
        if let Some(owner) = &pod.owner
            && let Some(counts) = self.spread.get_mut(owner)
        {
            let count = counts.entry(place.node.clone()).or_default();
            *count -= 1;
            if *count <= 0 {
                counts.remove(&place.node);
            }
            if counts.is_empty() {
                self.spread.remove(owner);
            }
        }
        self.drop_if_unused(at);
        Some(pod)
    }

    pub fn is_assumed(&self, uid: &str) -> bool {
        self.placed.get(uid).is_some_and(|p| p.assumed)
    }

    pub fn is_placed(&self, uid: &str) -> bool {
        self.placed.contains_key(uid)
    }

    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.nominated.insert(pod.uid.clone(), (node.into(), pod));
    }

    pub fn clear_nomination(&mut self, uid: &str) {
        self.nominated.remove(uid);
    }

    /// Pods that others must leave room for on a node: nominated there, and not less important than `pod`.
    pub fn nominated<'a>(
        &'a self,
        node: &'a str,
        pod: &'a PodInfo,
    ) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        let here = self.nominated.values().filter(move |(n, _)| **n == *node);
        here.map(|(_, p)| p)
            .filter(move |p| p.uid != pod.uid && p.priority >= pod.priority)
    }

    pub fn has_nominations(&self) -> bool {
        !self.nominated.is_empty()
    }
}
