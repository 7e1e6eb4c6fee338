//! What a plugin is: it looks at a pod once, and then, if it has anything to say, at nodes.
//!
//! `prepare` is Kubernetes' PreFilter: a plugin that returns no [`Filter`] for a pod costs nothing per node. A filter
//! answers with a [`Verdict`] whose reasons are small numbers, so that counting them allocates nothing. Scores are
//! per node, then normalized to 0..=100 over the nodes that passed.

use std::sync::Arc;

use crate::cluster::{Cluster, Node};
use crate::model::PodInfo;

pub const MAX_SCORE: i64 = 100;

/// A plugin, by the name that Kubernetes' configuration knows it by.
pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;

    /// What has to be checked of nodes for this pod, if anything.
    fn filter<'a>(&self, _pod: &'a PodInfo, _cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        None
    }

    /// What makes one node better than another for this pod, if anything.
    fn score<'a>(&self, _pod: &'a PodInfo, _cluster: &'a Cluster) -> Option<Box<dyn Score + 'a>> {
        None
    }

    /// How much its score counts.
    fn weight(&self) -> i64 {
        1
    }

    /// Whether `change` may make a pod schedulable that this plugin turned away.
    fn helps(&self, change: &Change, pod: &PodInfo) -> bool;
}

pub trait Filter {
    fn check(&self, node: &Node) -> Verdict;
}

pub trait Score {
    fn score(&self, node: &Node) -> i64;

    /// Brings the scores of all nodes to 0..=100.
    fn normalize(&self, _scores: &mut [i64]) {}
}

/// Scales to 0..=100 by the highest, in reverse if less is better.
pub fn normalize(scores: &mut [i64], reverse: bool) {
    let highest = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if highest == 0 {
            0
        } else {
            *score * MAX_SCORE / highest
        };
        *score = if reverse { MAX_SCORE - scaled } else { scaled };
    }
}

/// Something that changed in the cluster, for deciding which waiting pods to try again.
#[derive(Debug)]
pub enum Change {
    NodeAdded,
    /// Which aspects of a node changed.
    NodeUpdated {
        allocatable: bool,
        labels: bool,
        taints: bool,
        unschedulable: bool,
    },
    /// A pod left its node, or its node's resources.
    PodRemoved(Arc<PodInfo>),
    /// A pod came to a node, or its labels changed.
    PodPlaced(Arc<PodInfo>),
    Namespace,
}

/// Why a node is out of the question. The texts are Kubernetes', and users look for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    Unschedulable,
    NodeName,
    Taint,
    NodeAffinity,
    HostPorts,
    TooManyPods,
    Cpu,
    Memory,
    Ephemeral,
    Spread,
    SpreadLabel,
    Affinity,
    AntiAffinity,
    ExistingAntiAffinity,
}

impl Reason {
    pub const ALL: [(Reason, &'static str); 14] = [
        (Reason::Unschedulable, "node(s) were unschedulable"),
        (
            Reason::NodeName,
            "node(s) didn't match the requested node name",
        ),
        (Reason::Taint, "node(s) had untolerated taint(s)"),
        (
            Reason::NodeAffinity,
            "node(s) didn't match Pod's node affinity/selector",
        ),
        (
            Reason::HostPorts,
            "node(s) didn't have free ports for the requested pod ports",
        ),
        (Reason::TooManyPods, "Too many pods"),
        (Reason::Cpu, "Insufficient cpu"),
        (Reason::Memory, "Insufficient memory"),
        (Reason::Ephemeral, "Insufficient ephemeral-storage"),
        (
            Reason::Spread,
            "node(s) didn't match pod topology spread constraints",
        ),
        (
            Reason::SpreadLabel,
            "node(s) didn't match pod topology spread constraints (missing required label)",
        ),
        (Reason::Affinity, "node(s) didn't match pod affinity rules"),
        (
            Reason::AntiAffinity,
            "node(s) didn't match pod anti-affinity rules",
        ),
        (
            Reason::ExistingAntiAffinity,
            "node(s) didn't satisfy existing pods anti-affinity rules",
        ),
    ];
}

/// What a filter thinks of a node: fit if there are no reasons against it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    reasons: u32,
    /// Extended resources of which there is not enough.
    pub lacking: Vec<Arc<str>>,
    /// Evicting pods would not change it.
    pub unresolvable: bool,
}

impl Verdict {
    pub fn fits() -> Self {
        Self::default()
    }

    /// Out of the question as long as other pods are there.
    pub fn no(reason: Reason) -> Self {
        Self {
            reasons: 1 << reason as u8,
            ..Self::default()
        }
    }

    /// Out of the question whatever pods are there.
    pub fn never(reason: Reason) -> Self {
        Self {
            unresolvable: true,
            ..Self::no(reason)
        }
    }

    pub fn add(&mut self, reason: Reason, unresolvable: bool) {
        self.reasons |= 1 << reason as u8;
        self.unresolvable |= unresolvable;
    }

    pub fn fit(&self) -> bool {
        self.reasons == 0 && self.lacking.is_empty()
    }

    pub fn has(&self, reason: Reason) -> bool {
        self.reasons & (1 << reason as u8) != 0
    }
}
