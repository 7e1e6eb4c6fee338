//! Pods that want to be near others, or far from them.

use std::collections::HashMap;

use crate::cluster::{Cluster, Node};
use crate::framework::{Change, Filter, MAX_SCORE, Plugin, Reason, Score, Verdict};
use crate::model::{PodAffinity, PodInfo, PodTerm};

/// What a required affinity of a pod already there is worth to one that it likes.
const HARD_AFFINITY_WEIGHT: i64 = 1;

/// podAffinity and podAntiAffinity, required and preferred, of the pod and of those already there.
pub struct InterPodAffinity;

/// A place: a node label and its value.
type Domain<'a> = (&'a str, &'a str);

fn domain<'a>(term: &'a PodTerm, node: &'a Node) -> Option<Domain<'a>> {
    node.info
        .labels
        .get(&term.topology_key)
        .map(|value| (term.topology_key.as_str(), value.as_str()))
}

struct Rules<'a> {
    own: Option<&'a PodAffinity>,
    /// Where pods are that match all terms of the pod's affinity.
    near: HashMap<Domain<'a>, i64>,
    /// Where pods are that its anti-affinity is about.
    far: HashMap<Domain<'a>, i64>,
    /// Places that pods already there want to keep it out of.
    unwelcome: HashMap<Domain<'a>, i64>,
    first_of_its_kind: bool,
}

impl<'a> Rules<'a> {
    fn new(pod: &'a PodInfo, cluster: &'a Cluster) -> Self {
        let own = pod.affinity.as_deref();
        let mut rules = Rules {
            own,
            near: HashMap::new(),
            far: HashMap::new(),
            unwelcome: HashMap::new(),
            first_of_its_kind: false,
        };
        let labels = cluster.namespace_labels(&pod.namespace);
        for (node, other) in cluster.pods_with_affinity() {
            for term in other
                .affinity
                .iter()
                .flat_map(|a| &a.required_anti)
                .filter(|t| t.matches(pod, labels))
            {
                if let Some(place) = domain(term, node) {
                    *rules.unwelcome.entry(place).or_default() += 1;
                }
            }
        }
        let Some(own) = own.filter(|o| !o.required.is_empty() || !o.required_anti.is_empty())
        else {
            return rules;
        };
        for (node, other) in cluster.pods() {
            let labels = cluster.namespace_labels(&other.namespace);
            if !own.required.is_empty() && own.required.iter().all(|t| t.matches(other, labels)) {
                for place in own.required.iter().filter_map(|t| domain(t, node)) {
                    *rules.near.entry(place).or_default() += 1;
                }
            }
            for term in own
                .required_anti
                .iter()
                .filter(|t| t.matches(other, labels))
            {
                if let Some(place) = domain(term, node) {
                    *rules.far.entry(place).or_default() += 1;
                }
            }
        }
        // The first of a group that wants to be together has nobody to be with.
        let labels = cluster.namespace_labels(&pod.namespace);
        rules.first_of_its_kind =
            rules.near.is_empty() && own.required.iter().all(|t| t.matches(pod, labels));
        rules
    }

    fn says_anything(&self) -> bool {
        !self.unwelcome.is_empty()
            || self
                .own
                .is_some_and(|o| !o.required.is_empty() || !o.required_anti.is_empty())
    }

    fn near_enough(&self, node: &Node, terms: &[PodTerm]) -> bool {
        let mut all = true;
        for term in terms {
            let Some(place) = domain(term, node) else {
                return false;
            };
            all &= self.near.contains_key(&place);
        }
        all || self.first_of_its_kind
    }
}

impl Filter for Rules<'_> {
    fn check(&self, node: &Node) -> Verdict {
        if let Some(own) = self.own {
            if !self.near_enough(node, &own.required) {
                return Verdict::never(Reason::Affinity);
            }
            if own
                .required_anti
                .iter()
                .filter_map(|t| domain(t, node))
                .any(|place| self.far.contains_key(&place))
            {
                return Verdict::no(Reason::AntiAffinity);
            }
        }
        let unwelcome =
            |(key, value): &Domain| node.info.labels.get(*key).is_some_and(|v| v == value);
        if self.unwelcome.keys().any(unwelcome) {
            return Verdict::no(Reason::ExistingAntiAffinity);
        }
        Verdict::fits()
    }
}

/// The sum of what pods in each place are worth to the pod.
struct Likes<'a>(HashMap<Domain<'a>, i64>);

impl<'a> Likes<'a> {
    fn new(pod: &'a PodInfo, cluster: &'a Cluster) -> Self {
        let mut likes = Likes(HashMap::new());
        let labels = cluster.namespace_labels(&pod.namespace);
        if let Some(own) = pod
            .affinity
            .as_deref()
            .filter(|o| !o.preferred.is_empty() || !o.preferred_anti.is_empty())
        {
            for (node, other) in cluster.pods() {
                let theirs = cluster.namespace_labels(&other.namespace);
                likes.add(&own.preferred, 1, node, |t| t.matches(other, theirs));
                likes.add(&own.preferred_anti, -1, node, |t| t.matches(other, theirs));
            }
        }
        for (node, other) in cluster.pods_with_affinity() {
            let Some(theirs) = other.affinity.as_deref() else {
                continue;
            };
            likes.add(&theirs.preferred, 1, node, |t| t.matches(pod, labels));
            likes.add(&theirs.preferred_anti, -1, node, |t| t.matches(pod, labels));
            for term in theirs.required.iter().filter(|t| t.matches(pod, labels)) {
                if let Some(place) = domain(term, node) {
                    *likes.0.entry(place).or_default() += HARD_AFFINITY_WEIGHT;
                }
            }
        }
        likes
    }

    fn add(
        &mut self,
        terms: &'a [PodTerm],
        sign: i64,
        node: &'a Node,
        matches: impl Fn(&PodTerm) -> bool,
    ) {
        for term in terms.iter().filter(|t| matches(t)) {
            if let Some(place) = domain(term, node) {
                *self.0.entry(place).or_default() += sign * term.weight;
            }
        }
    }
}

impl Score for Likes<'_> {
    fn score(&self, node: &Node) -> i64 {
        let here = |((key, value), _): &(&Domain, &i64)| {
            node.info.labels.get(*key).is_some_and(|v| v == value)
        };
        self.0.iter().filter(here).map(|(_, worth)| worth).sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        let (least, most) = (
            scores.iter().copied().min().unwrap_or(0),
            scores.iter().copied().max().unwrap_or(0),
        );
        for score in scores {
            *score = if most == least {
                0
            } else {
                MAX_SCORE * (*score - least) / (most - least)
            };
        }
    }
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn filter<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        let rules = Rules::new(pod, cluster);
        rules
            .says_anything()
            .then(|| Box::new(rules) as Box<dyn Filter>)
    }

    fn score<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Score + 'a>> {
        let likes = Likes::new(pod, cluster);
        (!likes.0.is_empty()).then(|| Box::new(likes) as Box<dyn Score>)
    }

    fn weight(&self) -> i64 {
        2
    }

    fn helps(&self, change: &Change, _: &PodInfo) -> bool {
        match change {
            Change::NodeAdded
            | Change::PodRemoved(_)
            | Change::PodPlaced(_)
            | Change::Namespace => true,
            Change::NodeUpdated { labels, .. } => *labels,
        }
    }
}
