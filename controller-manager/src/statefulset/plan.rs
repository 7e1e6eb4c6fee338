//! Which replicas of a StatefulSet to make, remove and replace, and in which order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::identity::{ordinal, start};
use crate::history::REVISION_HASH;
use crate::meta;
use crate::pods;

/// Everything a pass looks at.
pub struct Observed<'a> {
    pub set: &'a StatefulSet,
    /// The set's own.
    pub pods: &'a [Arc<Pod>],
    /// Names of the revision that replicas had before an update and of the present one.
    pub current: &'a str,
    pub update: &'a str,
    pub collisions: i32,
    pub now: Timestamp,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Create {
        ordinal: i32,
        /// With the present template, or with the one from before the update.
        updated: bool,
    },
    Delete(Arc<Pod>),
}

/// What a pass comes to.
#[derive(Debug)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub status: StatefulSetStatus,
    pub again: Option<Duration>,
}

struct Pass<'a> {
    observed: &'a Observed<'a>,
    spec: StatefulSetSpec,
    /// Whether one thing is done after the other.
    ordered: bool,
    replicas: BTreeMap<i32, Option<Arc<Pod>>>,
    /// Beyond the wanted number, highest ordinal first.
    condemned: Vec<Arc<Pod>>,
    actions: Vec<Action>,
    again: Option<Duration>,
}

/// Decides about one StatefulSet.
pub fn plan(observed: &Observed) -> Plan {
    let mut pass = Pass::new(observed);
    if observed.set.metadata.deletion_timestamp.is_none() && pass.keep() && pass.shrink() {
        pass.roll();
    }
    let status = pass.status();
    Plan {
        actions: pass.actions,
        status,
        again: pass.again,
    }
}

fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn revision(pod: &Pod) -> &str {
    pod.labels().get(REVISION_HASH).map_or("", String::as_str)
}

fn is_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

/// Whether a pod of `set` with this ordinal is wanted.
pub fn in_range(spec: &StatefulSetSpec, ordinal: i32) -> bool {
    let start = start(spec);
    (start..start.saturating_add(spec.replicas.unwrap_or(1))).contains(&ordinal)
}

impl<'a> Pass<'a> {
    fn new(observed: &'a Observed<'a>) -> Self {
        let spec = observed.set.spec.clone().unwrap_or_default();
        let name = observed.set.name_any();
        let (start, count) = (start(&spec), spec.replicas.unwrap_or(1).max(0));
        let mut replicas: BTreeMap<i32, Option<Arc<Pod>>> = (start..start.saturating_add(count))
            .map(|n| (n, None))
            .collect();
        let mut condemned = BTreeMap::new();
        for pod in observed.pods {
            let Some(ordinal) = ordinal(&name, pod) else {
                continue;
            };
            match replicas.get_mut(&ordinal) {
                Some(place) => *place = Some(pod.clone()),
                None => drop(condemned.insert(ordinal, pod.clone())),
            }
        }
        Self {
            observed,
            ordered: spec.pod_management_policy.as_deref() != Some("Parallel"),
            spec,
            replicas,
            condemned: condemned.into_values().rev().collect(),
            actions: Vec::new(),
            again: None,
        }
    }

    fn is_available(&mut self, pod: &Pod) -> bool {
        let seconds = self.spec.min_ready_seconds.unwrap_or(0);
        let (is, until) = pods::availability(pod, seconds, self.observed.now);
        self.again = [self.again, until].into_iter().flatten().min();
        is
    }

    fn is_healthy(&mut self, pod: &Pod) -> bool {
        !is_terminating(pod) && is_ready(pod) && self.is_available(pod)
    }

    fn rolls(&self) -> bool {
        let strategy = self.spec.update_strategy.as_ref();
        strategy.and_then(|s| s.type_.as_deref()) != Some("OnDelete")
    }

    fn partition(&self) -> Option<i32> {
        let strategy = self.spec.update_strategy.as_ref()?;
        Some(strategy.rolling_update.as_ref()?.partition.unwrap_or(0))
    }

    /// Whether a new replica gets the present template.
    fn is_updated(&self, ordinal: i32) -> bool {
        let before = match (self.rolls(), self.partition()) {
            // What a person deletes comes back as what the set is now.
            (false, None) => 0,
            (_, Some(partition)) => partition,
            (true, None) => {
                let status = self.observed.set.status.as_ref();
                status.and_then(|s| s.current_replicas).unwrap_or(0)
            }
        };
        ordinal >= start(&self.spec).saturating_add(before)
    }

    /// Makes what is missing. Says whether all is well enough to go on.
    fn keep(&mut self) -> bool {
        for (ordinal, pod) in self.replicas.clone() {
            let Some(pod) = pod else {
                let updated = self.is_updated(ordinal);
                self.actions.push(Action::Create { ordinal, updated });
                if self.ordered {
                    return false;
                }
                continue;
            };
            if pods::is_terminated(&pod) {
                if !is_terminating(&pod) {
                    self.actions.push(Action::Delete(pod));
                }
                if self.ordered {
                    return false;
                }
                continue;
            }
            if self.ordered && !self.is_healthy(&pod) {
                return false;
            }
        }
        true
    }

    /// Removes what is too much. Says whether to go on.
    fn shrink(&mut self) -> bool {
        let unhealthy = self.first_unhealthy();
        for pod in self.condemned.clone() {
            if is_terminating(&pod) {
                if self.ordered {
                    return false;
                }
                continue;
            }
            // Of those in trouble only the first may go: with the others something may still be going on.
            if self.ordered && !self.is_healthy(&pod) && unhealthy != pod.uid() {
                return false;
            }
            self.actions.push(Action::Delete(pod));
            if self.ordered {
                return false;
            }
        }
        true
    }

    fn first_unhealthy(&mut self) -> Option<String> {
        let replicas = self.replicas.values().flatten().cloned();
        let all: Vec<Arc<Pod>> = replicas
            .chain(self.condemned.iter().rev().cloned())
            .collect();
        all.into_iter()
            .find(|p| !self.is_healthy(p))
            .and_then(|p| p.uid())
    }

    /// Removes replicas with an earlier template, the highest first; the next pass makes them anew.
    fn roll(&mut self) {
        if !self.rolls() {
            return;
        }
        let total = self.spec.replicas.unwrap_or(1);
        let rolling = self
            .spec
            .update_strategy
            .as_ref()
            .and_then(|s| s.rolling_update.as_ref());
        let most = rolling.and_then(|r| r.max_unavailable.as_ref());
        let most = most.map_or(1, |v| meta::scaled(v, total, false)).max(1) as usize;
        let replicas: Vec<(i32, Option<Arc<Pod>>)> = self.replicas.clone().into_iter().collect();
        let unavailable = replicas
            .iter()
            .filter(|(_, pod)| !pod.as_ref().is_some_and(|p| self.is_healthy(p)))
            .count();
        let first = start(&self.spec).saturating_add(self.partition().unwrap_or(0));
        let outdated = replicas.into_iter().rev().filter_map(|(ordinal, pod)| {
            pod.filter(|p| {
                ordinal >= first && revision(p) != self.observed.update && !is_terminating(p)
            })
        });
        let goes: Vec<Action> = outdated
            .map(Action::Delete)
            .take(most.saturating_sub(unavailable))
            .collect();
        // Those that ended by themselves are replaced already.
        for action in goes {
            if !self.actions.contains(&action) {
                self.actions.push(action);
            }
        }
    }

    fn status(&mut self) -> StatefulSetStatus {
        let (mut ready, mut available, mut current, mut updated) = (0, 0, 0, 0);
        let (observed, pods) = (self.observed, self.observed.pods);
        for pod in pods {
            if is_ready(pod) {
                ready += 1;
                available += i32::from(self.is_available(pod));
            }
            if !is_terminating(pod) {
                current += i32::from(revision(pod) == observed.current);
                updated += i32::from(revision(pod) == observed.update);
            }
        }
        let (replicas, wanted) = (pods.len() as i32, self.spec.replicas.unwrap_or(1));
        let mut revision = observed.current;
        if self.rolls() && updated == wanted && ready == wanted && replicas == wanted {
            (current, revision) = (updated, observed.update);
        }
        let some = |n: i32| (n != 0).then_some(n);
        StatefulSetStatus {
            observed_generation: observed.set.metadata.generation,
            replicas,
            ready_replicas: some(ready),
            available_replicas: Some(available),
            current_replicas: some(current),
            updated_replicas: some(updated),
            current_revision: Some(revision.to_owned()),
            update_revision: Some(observed.update.to_owned()),
            collision_count: Some(observed.collisions),
            conditions: observed
                .set
                .status
                .as_ref()
                .and_then(|s| s.conditions.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(replicas: i32, more: Value) -> StatefulSet {
        let mut spec = json!({"replicas": replicas, "selector": {}, "serviceName": "s", "template": {},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}});
        more.as_object()
            .unwrap()
            .iter()
            .for_each(|(k, v)| spec[k] = v.clone());
        serde_json::from_value(json!({"metadata": {"name": "w", "generation": 2}, "spec": spec}))
            .unwrap()
    }

    /// `0o` is replica 0 of the old template: `o`ld or `n`ew, `u`nready, `f`ailed, `d`eleting.
    fn pod(text: &str) -> Arc<Pod> {
        let digits = text.trim_end_matches(|c: char| c.is_alphabetic());
        let state = &text[digits.len()..];
        let revision = if state.contains('o') { "old" } else { "new" };
        let ready = if state.contains('u') { "False" } else { "True" };
        let phase = if state.contains('f') {
            "Failed"
        } else {
            "Running"
        };
        let deleted = state.contains('d').then_some("2026-01-01T00:00:00Z");
        Arc::new(serde_json::from_value(json!({"metadata": {"name": format!("w-{digits}"), "uid": text, "labels": {REVISION_HASH: revision}, "deletionTimestamp": deleted},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})).unwrap())
    }

    fn run(set: &StatefulSet, pods: &[&str]) -> Plan {
        let pods: Vec<_> = pods.iter().map(|p| pod(p)).collect();
        plan(&Observed {
            set,
            pods: &pods,
            current: "old",
            update: "new",
            collisions: 0,
            now: "2026-01-01T01:00:00Z".parse().unwrap(),
        })
    }

    fn show(plan: &Plan) -> String {
        let one = |action: &Action| match action {
            Action::Create { ordinal, updated } => {
                format!("+{ordinal}{}", if *updated { "n" } else { "o" })
            }
            Action::Delete(pod) => format!("-{}", pod.name_any().trim_start_matches("w-")),
        };
        plan.actions.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn plans() {
        let parallel = || json!({"podManagementPolicy": "Parallel"});
        let partition = |n: i32| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": n}}});
        #[rustfmt::skip]
        let cases: Vec<(&str, StatefulSet, Vec<&str>, &str)> = vec![
            ("the first", set(3, json!({})), vec![], "+0n"),
            ("the next, when the first is ready", set(3, json!({})), vec!["0n"], "+1n"),
            ("not before", set(3, json!({})), vec!["0nu"], ""),
            ("all at once", set(3, parallel()), vec!["1nu"], "+0n +2n"),
            ("from another start", set(2, json!({"ordinals": {"start": 5}})), vec![], "+5n"),
            ("one that failed is replaced", set(2, json!({})), vec!["0nf", "1n"], "-0"),
            ("one that is going is waited for", set(2, json!({})), vec!["0nd"], ""),
            ("the highest goes first", set(1, json!({})), vec!["0n", "1n", "2n"], "-2"),
            ("one after the other", set(1, json!({})), vec!["0n", "1n", "2nd"], ""),
            ("all at once", set(1, parallel()), vec!["0n", "1n", "2n"], "-2 -1"),
            ("not while a lower one is in trouble", set(1, json!({})), vec!["0nu", "1n"], ""),
            ("nor while another condemned one is", set(0, json!({})), vec!["0nu", "1nu"], ""),
            ("but the one in trouble itself may go", set(0, json!({})), vec!["0n", "1nu"], "-1"),
            ("an update begins at the end", set(3, json!({})), vec!["0o", "1o", "2o"], "-2"),
            ("and waits", set(3, json!({})), vec!["0o", "1o", "2nu"], ""),
            ("and goes on", set(3, json!({})), vec!["0o", "1o", "2n"], "-1"),
            ("down to its partition", set(3, partition(2)), vec!["0o", "1o", "2n"], ""),
            ("below which the old template lives", set(3, partition(2)), vec!["1o", "2n"], "+0o"),
            ("several at once", set(3, json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0, "maxUnavailable": 2}}})), vec!["0o", "1o", "2o"], "-2 -1"),
            ("only when deleted", set(2, json!({"updateStrategy": {"type": "OnDelete"}})), vec!["0o", "1o"], ""),
            ("with the new template then", set(2, json!({"updateStrategy": {"type": "OnDelete"}})), vec!["0o"], "+1n"),
        ];
        for (why, set, pods, want) in cases {
            assert_eq!(show(&run(&set, &pods)), want, "{why}: {pods:?}");
        }
        let mut deleted = set(3, json!({}));
        deleted.metadata.deletion_timestamp = Some(
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH),
        );
        assert_eq!(show(&run(&deleted, &["0o"])), "");
    }

    #[test]
    fn status() {
        let s = run(&set(3, json!({})), &["0o", "1nu", "2nd"]).status;
        assert_eq!(
            (s.replicas, s.ready_replicas, s.available_replicas),
            (3, Some(2), Some(2))
        );
        assert_eq!((s.current_replicas, s.updated_replicas), (Some(1), Some(1)));
        assert_eq!(
            (s.current_revision.as_deref(), s.update_revision.as_deref()),
            (Some("old"), Some("new"))
        );
        let s = run(&set(2, json!({})), &["0n", "1n"]).status;
        assert_eq!(
            (s.current_revision.as_deref(), s.current_replicas),
            (Some("new"), Some(2)),
            "the update is complete"
        );
    }
}
