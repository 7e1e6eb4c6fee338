//! Which pods of a DaemonSet to make and which to remove, node by node.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use client::EventType;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use kube::ResourceExt;

use super::fit::{fits, target};
use crate::history::REVISION_HASH;
use crate::meta::{self, annotation, created};
use crate::pods;

const BURST: usize = 250;
const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";
pub const GENERATION_LABEL: &str = "pod-template-generation";

/// Everything a pass looks at.
pub struct Observed<'a> {
    pub set: &'a DaemonSet,
    /// The set's own.
    pub pods: &'a [Arc<Pod>],
    pub nodes: &'a [Arc<Node>],
    /// The hash of the present template.
    pub hash: &'a str,
    /// How long a failed pod has to be left alone yet, by node.
    pub backoff: &'a HashMap<String, Duration>,
    pub now: Timestamp,
}

/// What a pass comes to.
#[derive(Debug, Default)]
pub struct Plan {
    /// Names of nodes.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Nodes whose failed pod is among the deleted.
    pub failed: Vec<String>,
    pub events: Vec<(EventType, &'static str, String)>,
    pub status: DaemonSetStatus,
    pub again: Option<Duration>,
}

/// The generation of the template, as older releases tell templates apart.
pub fn generation(set: &DaemonSet) -> Option<i64> {
    annotation(set, GENERATION_ANNOTATION)?.parse().ok()
}

/// The new and the old pod of a node.
type Pair = (Option<Arc<Pod>>, Option<Arc<Pod>>);

struct Pass<'a> {
    observed: &'a Observed<'a>,
    spec: &'a DaemonSetSpec,
    by_node: BTreeMap<String, Vec<Arc<Pod>>>,
    /// Whether each node should have a pod, and whether it may keep one.
    fits: BTreeMap<String, (bool, bool)>,
    plan: Plan,
}

/// Decides about one DaemonSet.
pub fn plan(observed: &Observed) -> Plan {
    let spec = observed.set.spec.clone().unwrap_or_default();
    let template = spec.template.spec.clone().unwrap_or_default();
    let mut pass = Pass::new(observed, &spec, &template);
    pass.manage();
    let rolling = spec
        .update_strategy
        .as_ref()
        .and_then(|s| s.type_.as_deref())
        != Some("OnDelete");
    // What is being made or removed has to be seen before the next step of an update.
    if rolling && pass.plan.create.is_empty() && pass.plan.delete.is_empty() {
        match pass.limits() {
            (0, unavailable) => pass.replace(unavailable),
            (surge, _) => pass.surge(surge),
        }
    }
    pass.plan.create.truncate(BURST);
    pass.plan.delete.truncate(BURST);
    pass.count();
    pass.plan
}

impl<'a> Pass<'a> {
    fn new(observed: &'a Observed<'a>, spec: &'a DaemonSetSpec, template: &PodSpec) -> Self {
        let mut by_node: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in observed.pods {
            if let Some(node) = target(pod) {
                by_node
                    .entry(node.to_owned())
                    .or_default()
                    .push(pod.clone());
            }
        }
        // Bound ones first, then by age.
        for pods in by_node.values_mut() {
            pods.sort_by_key(|p| {
                (
                    pods::node_name(p).is_empty(),
                    created(p.as_ref()),
                    p.name_any(),
                )
            });
        }
        let fits = observed
            .nodes
            .iter()
            .map(|n| (n.name_any(), fits(template, n)));
        Self {
            observed,
            spec,
            by_node,
            fits: fits.collect(),
            plan: Plan::default(),
        }
    }

    fn is_available(&self, pod: &Pod) -> bool {
        let seconds = self.spec.min_ready_seconds.unwrap_or(0);
        pods::availability(pod, seconds, self.observed.now).0
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        let label = |key: &str| pod.labels().get(key).cloned();
        let generation = generation(self.observed.set).map(|g| g.to_string());
        label(REVISION_HASH).as_deref() == Some(self.observed.hash)
            || (generation.is_some() && label(GENERATION_LABEL) == generation)
    }

    fn desired(&self) -> usize {
        self.fits.values().filter(|(run, _)| *run).count()
    }

    /// How many extra pods an update may make, and how many may be missing meanwhile.
    fn limits(&self) -> (usize, usize) {
        let strategy = self.spec.update_strategy.as_ref();
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let total = self.desired() as i32;
        let surge = rolling.and_then(|r| r.max_surge.as_ref());
        let surge = surge.map_or(0, |v| meta::scaled(v, total, true));
        let unavailable = rolling.and_then(|r| r.max_unavailable.as_ref());
        let unavailable =
            unavailable.map_or(i32::from(surge == 0), |v| meta::scaled(v, total, true));
        match (surge.max(0) as usize, unavailable.max(0) as usize) {
            (0, 0) => (0, 1),
            other => other,
        }
    }

    /// One pod on every node that should have one, none elsewhere.
    fn manage(&mut self) {
        let surging = self.limits().0 > 0;
        for (node, (run, stay)) in self.fits.clone() {
            let there = self.by_node.get(&node).cloned().unwrap_or_default();
            if run && there.is_empty() {
                self.plan.create.push(node);
            } else if stay {
                let running = self.sort_out(&node, &there);
                match surging {
                    true if running.is_empty() && run => self.plan.create.push(node),
                    true => self.thin_out(&running),
                    false => self.plan.delete.extend(running.into_iter().skip(1)),
                }
            } else {
                let left = there
                    .into_iter()
                    .filter(|p| p.metadata.deletion_timestamp.is_none());
                self.plan.delete.extend(left);
            }
        }
        // Nobody else removes what waits for a node that is gone.
        let lost = self
            .by_node
            .iter()
            .filter(|(node, _)| !self.fits.contains_key(*node));
        let lost = lost
            .flat_map(|(_, pods)| pods)
            .filter(|p| pods::node_name(p).is_empty() && p.metadata.deletion_timestamp.is_none());
        let lost: Vec<_> = lost.cloned().collect();
        self.plan.delete.extend(lost);
    }

    /// Condemns the pods of a node that have ended; returns those that go on.
    fn sort_out(&mut self, node: &str, there: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let mut running = Vec::new();
        for pod in there
            .iter()
            .filter(|p| p.metadata.deletion_timestamp.is_none())
        {
            let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
            match pods::phase(pod) {
                "Failed" => {
                    if let Some(wait) = self.observed.backoff.get(node) {
                        self.look_again(*wait);
                        continue;
                    }
                    let message = format!(
                        "Found failed daemon pod {name} on node {node}, will try to kill it"
                    );
                    self.plan
                        .events
                        .push((EventType::Warning, "FailedDaemonPod", message));
                    self.plan.failed.push(node.to_owned());
                    self.plan.delete.push(pod.clone());
                }
                "Succeeded" => {
                    let message = format!(
                        "Found succeeded daemon pod {name} on node {node}, will try to delete it"
                    );
                    self.plan
                        .events
                        .push((EventType::Normal, "SucceededDaemonPod", message));
                    self.plan.delete.push(pod.clone());
                }
                _ => running.push(pod.clone()),
            }
        }
        running
    }

    /// During a surge a node has two pods, the oldest of each template, until the new one can do without the old.
    fn thin_out(&mut self, running: &[Arc<Pod>]) {
        let (mut new, mut old): (Option<&Arc<Pod>>, Option<&Arc<Pod>>) = (None, None);
        for pod in running {
            let slot = match pod.labels().get(REVISION_HASH).map(String::as_str) {
                Some(hash) if hash == self.observed.hash => &mut new,
                _ => &mut old,
            };
            match slot {
                Some(_) => self.plan.delete.push(pod.clone()),
                None => *slot = Some(pod),
            }
        }
        if let (Some(new), Some(old)) = (new, old)
            && (!pods::is_ready(old) || self.is_available(new))
        {
            self.plan.delete.push(old.clone());
        }
    }

    /// The pods of a node that stay, new and old; `None` if there are too many to tell.
    fn pair(&self, node: &str) -> Option<Pair> {
        let there = self.by_node.get(node).into_iter().flatten();
        let there = there.filter(|p| p.metadata.deletion_timestamp.is_none());
        let (new, old): (Vec<_>, Vec<_>) = there.cloned().partition(|p| self.is_updated(p));
        (new.len() <= 1 && old.len() <= 1).then(|| (new.into_iter().next(), old.into_iter().next()))
    }

    fn nodes(&self) -> Vec<String> {
        let running = self.fits.iter().filter(|(_, (run, _))| *run);
        let mut nodes: Vec<String> = running.map(|(node, _)| node.clone()).collect();
        nodes.extend(
            self.by_node
                .keys()
                .filter(|n| !self.fits.get(*n).is_some_and(|f| f.0))
                .cloned(),
        );
        nodes
    }

    /// An update without extra pods: removes old ones, as many as may be missing; the next pass makes new ones.
    fn replace(&mut self, max_unavailable: usize) {
        let (mut unavailable, mut broken, mut candidates) = (0, Vec::new(), Vec::new());
        for node in self.nodes() {
            match self.pair(&node) {
                Some((Some(new), None)) => unavailable += usize::from(!self.is_available(&new)),
                Some((None, Some(old))) if self.is_available(&old) => candidates.push(old),
                Some((None, Some(old))) => {
                    broken.push(old);
                    unavailable += 1;
                }
                _ => unavailable += 1,
            }
        }
        let more = max_unavailable.saturating_sub(unavailable);
        self.plan.delete.extend(broken);
        self.plan.delete.extend(candidates.into_iter().take(more));
    }

    /// An update with extra pods: new ones beside the old, which go when the new ones are available.
    fn surge(&mut self, max_surge: usize) {
        let (mut surging, mut available) = (0, 0);
        let (mut misplaced, mut candidates) = (Vec::new(), Vec::new());
        for node in self.nodes() {
            let Some((new, old)) = self.pair(&node) else {
                surging += 1;
                continue;
            };
            let run = self.fits.get(&node).is_some_and(|f| f.0);
            if let Some(first) = old.as_ref().or(new.as_ref()) {
                available += usize::from(self.is_available(first));
            }
            match (new, old) {
                (_, None) => {}
                (None, Some(old)) => match (self.is_available(&old), run) {
                    (false, true) => self.plan.create.push(node),
                    (false, false) => self.plan.delete.push(old),
                    (true, true) => candidates.push(node),
                    (true, false) => misplaced.push(old),
                },
                (Some(new), Some(old)) => match self.is_available(&new) {
                    true => self.plan.delete.push(old),
                    false => surging += 1,
                },
            }
        }
        let spare = available.saturating_sub(self.desired());
        self.plan.delete.extend(misplaced.into_iter().take(spare));
        let more = max_surge.saturating_sub(surging);
        self.plan.create.extend(candidates.into_iter().take(more));
    }

    fn look_again(&mut self, after: Duration) {
        self.plan.again = Some(self.plan.again.map_or(after, |earlier| earlier.min(after)));
    }

    fn count(&mut self) {
        let (mut desired, mut current, mut misplaced) = (0, 0, 0);
        let (mut ready, mut available, mut updated) = (0, 0, 0);
        for (node, (run, _)) in self.fits.clone() {
            let first = self
                .by_node
                .get(&node)
                .and_then(|pods| pods.first())
                .cloned();
            desired += i32::from(run);
            let Some(pod) = first else { continue };
            if !run {
                misplaced += 1;
                continue;
            }
            current += 1;
            updated += i32::from(self.is_updated(&pod));
            ready += i32::from(pods::is_ready(&pod));
            let seconds = self.spec.min_ready_seconds.unwrap_or(0);
            let (is, until) = pods::availability(&pod, seconds, self.observed.now);
            available += i32::from(is);
            if let Some(until) = until {
                self.look_again(until);
            }
        }
        let some = |n: i32| (n != 0).then_some(n);
        let old = self.observed.set.status.clone().unwrap_or_default();
        self.plan.status = DaemonSetStatus {
            current_number_scheduled: current,
            desired_number_scheduled: desired,
            number_misscheduled: misplaced,
            number_ready: ready,
            number_available: some(available),
            number_unavailable: some(desired - available),
            updated_number_scheduled: some(updated),
            observed_generation: self.observed.set.metadata.generation,
            collision_count: old.collision_count,
            conditions: old.conditions,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(update: Value) -> DaemonSet {
        serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "d", "generation": 3},
            "spec": {"selector": {}, "template": {"spec": {"containers": [], "nodeSelector": {"run": "yes"}}}, "updateStrategy": update}}))
        .unwrap()
    }

    /// A node is named for what it is: `x...` is not selected.
    fn node(name: &str) -> Arc<Node> {
        let run = if name.starts_with('x') { "no" } else { "yes" };
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"run": run}}}))
                .unwrap(),
        )
    }

    /// `name@node`, states: `n`ew or `o`ld template; `r`eady, `u`nready, `f`ailed, `d`eleting.
    fn pod(name: &str, state: &str) -> Arc<Pod> {
        let (name, node) = name.split_once('@').unwrap();
        let hash = if state.contains('n') { "new" } else { "old" };
        let ready = if state.contains('r') { "True" } else { "False" };
        let phase = if state.contains('f') {
            "Failed"
        } else {
            "Running"
        };
        let mut value = json!({"metadata": {"namespace": "ns", "name": name, "labels": {REVISION_HASH: hash}}, "spec": {"containers": [], "nodeName": node},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        if state.contains('d') {
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn run(update: Value, nodes: &[&str], pods: &[(&str, &str)]) -> Plan {
        let set = set(update);
        let nodes: Vec<_> = nodes.iter().map(|n| node(n)).collect();
        let pods: Vec<_> = pods.iter().map(|(n, s)| pod(n, s)).collect();
        plan(&Observed {
            set: &set,
            pods: &pods,
            nodes: &nodes,
            hash: "new",
            backoff: &HashMap::from([("bad".to_owned(), Duration::from_secs(7))]),
            now: "2026-01-01T01:00:00Z".parse().unwrap(),
        })
    }

    fn show(plan: &Plan) -> String {
        let names: Vec<String> = plan.delete.iter().map(|p| p.name_any()).collect();
        format!("+{} -{}", plan.create.join(" "), names.join(" "))
    }

    #[test]
    fn plans() {
        let one = || json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}});
        let surge = || json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}});
        #[rustfmt::skip]
        let cases: Vec<(&str, Value, Vec<&str>, Vec<(&str, &str)>, &str)> = vec![
            ("one on every node that is selected", one(), vec!["a", "b", "x"], vec![], "+a b -"),
            ("none where it is not", one(), vec!["a", "x"], vec![("p@a", "nr"), ("q@x", "nr")], "+ -q"),
            ("no second one", one(), vec!["a"], vec![("p@a", "nr"), ("q@a", "nr")], "+ -q"),
            ("a failed one is removed", one(), vec!["a"], vec![("p@a", "nf")], "+ -p"),
            ("but not again at once", one(), vec!["bad"], vec![("p@bad", "nf")], "+ -"),
            ("one that is being deleted keeps its place", one(), vec!["a"], vec![("p@a", "od")], "+ -"),
            ("an update, one by one", one(), vec!["a", "b"], vec![("p@a", "or"), ("q@b", "or")], "+ -p"),
            ("it waits for the new one", one(), vec!["a", "b"], vec![("p@a", "nu"), ("q@b", "or")], "+ -"),
            ("what does not work can go at once", one(), vec!["a", "b"], vec![("p@a", "nu"), ("q@b", "ou")], "+ -q"),
            ("only when deleted", json!({"type": "OnDelete"}), vec!["a"], vec![("p@a", "or")], "+ -"),
            ("a surge makes the new one first", surge(), vec!["a", "b"], vec![("p@a", "or"), ("q@b", "or")], "+a -"),
            ("and waits for it", surge(), vec!["a", "b"], vec![("p@a", "or"), ("n@a", "nu"), ("q@b", "or")], "+ -"),
            ("then the old one goes", surge(), vec!["a"], vec![("p@a", "or"), ("n@a", "nr")], "+ -p"),
        ];
        for (why, update, nodes, pods, want) in cases {
            assert_eq!(show(&run(update, &nodes, &pods)), want, "{why}");
        }
    }

    #[test]
    fn status() {
        let plan = run(
            json!({"type": "OnDelete"}),
            &["a", "b", "c", "x"],
            &[("p@a", "nr"), ("q@b", "ou"), ("r@x", "nr")],
        );
        let s = plan.status;
        assert_eq!(
            (
                s.desired_number_scheduled,
                s.current_number_scheduled,
                s.number_misscheduled
            ),
            (3, 2, 1)
        );
        assert_eq!(
            (s.number_ready, s.number_available, s.number_unavailable),
            (1, Some(1), Some(2))
        );
        assert_eq!(
            (s.updated_number_scheduled, s.observed_generation),
            (Some(1), Some(3))
        );
        assert_eq!(
            run(json!({}), &["bad"], &[("p@bad", "nf")]).again,
            Some(Duration::from_secs(7))
        );
    }
}
