//! Decides how many pods of a PodDisruptionBudget may be disrupted now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::events::EventType::{self, Normal, Warning};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{
    PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::meta::scaled;
use crate::pods;

/// A pod whose eviction was allowed is counted as gone for so long, until it is seen to go.
const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_mins(2);
/// A pod that is to be disrupted and does not go within this time is not to be any more.
const STALE_AFTER: SignedDuration = SignedDuration::from_mins(2);

/// How many pods their controllers want, in all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scale {
    pub wanted: i32,
    /// Whether there are pods that no one controls.
    pub unmanaged: bool,
}

/// Everything a pass looks at.
pub struct Observed<'a> {
    pub budget: &'a PodDisruptionBudget,
    /// Those that it selects.
    pub pods: &'a [Arc<Pod>],
    /// What [`needs_scale`] asks for, or why it cannot be told.
    pub scale: Result<Scale, String>,
    pub now: Timestamp,
}

/// What a pass comes to.
#[derive(Debug, PartialEq)]
pub struct Plan {
    pub events: Vec<(EventType, &'static str, String)>,
    /// Pods that were to go and did not.
    pub not_deleted: Vec<Arc<Pod>>,
    pub status: PodDisruptionBudgetStatus,
    pub again: Option<Duration>,
}

/// Whether a budget is a share of what should be there, rather than a number.
pub fn needs_scale(spec: &PodDisruptionBudgetSpec) -> bool {
    let share = matches!(spec.min_available, Some(IntOrString::String(_)));
    spec.max_unavailable.is_some() || share
}

/// Decides about one budget.
pub fn plan(observed: &Observed) -> Plan {
    let budget = observed.budget;
    let mut plan = Plan {
        events: Vec::new(),
        not_deleted: Vec::new(),
        status: budget.status.clone().unwrap_or_default(),
        again: None,
    };
    if observed.pods.is_empty() {
        let message = "No matching pods found".to_owned();
        plan.events.push((Normal, "NoPods", message));
    }
    let scale = match &observed.scale {
        Ok(scale) => scale,
        Err(why) => {
            let message = format!("Failed to calculate the number of expected pods: {why}");
            plan.events
                .push((Warning, "CalculateExpectedPodCountFailed", message));
            fail_safe(&mut plan.status, why, observed.now);
            return plan;
        }
    };
    if scale.unmanaged {
        plan.events
            .push((Warning, "UnmanagedPods", unmanaged(budget)));
    }
    let spec = budget.spec.clone().unwrap_or_default();
    let (expected, desired) = expectation(&spec, observed.pods.len(), scale);
    disrupted(&mut plan, observed);
    let status = &mut plan.status;
    let gone = status.disrupted_pods.clone().unwrap_or_default();
    let healthy = observed.pods.iter().filter(|pod| {
        pod.metadata.deletion_timestamp.is_none()
            && !gone.contains_key(&pod.name_any())
            && pods::is_ready(pod)
    });
    let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
    // Without pods nothing is allowed: the first ones may be there before we look again.
    let allowed = match expected > 0 {
        true => healthy.saturating_sub(desired).max(0),
        false => 0,
    };
    status.current_healthy = Some(healthy);
    status.desired_healthy = Some(desired);
    status.expected_pods = Some(expected);
    status.disruptions_allowed = Some(allowed);
    status.observed_generation = budget.metadata.generation;
    let (value, reason) = match allowed > 0 {
        true => ("True", "SufficientPods"),
        false => ("False", "InsufficientPods"),
    };
    set_condition(status, value, reason, "", observed.now);
    plan
}

/// How many pods there should be, and how many of them healthy. Shares are rounded up, in favour of the pods where
/// they say how many must stay, and of the disruption where they say how many may go.
fn expectation(spec: &PodDisruptionBudgetSpec, pods: usize, scale: &Scale) -> (i32, i32) {
    let pods = i32::try_from(pods).unwrap_or(i32::MAX);
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => {
            let desired = scale
                .wanted
                .saturating_sub(scaled(most, scale.wanted, true));
            (scale.wanted, desired.max(0))
        }
        (None, Some(IntOrString::Int(least))) => (pods, *least),
        (None, Some(share)) => (scale.wanted, scaled(share, scale.wanted, true)),
        (None, None) => (0, 0),
    }
}

/// Keeps of the list of pods that are to go those that still may.
fn disrupted(plan: &mut Plan, observed: &Observed) {
    let listed = plan.status.disrupted_pods.take().unwrap_or_default();
    let mut left = BTreeMap::new();
    for pod in observed.pods {
        if pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let name = pod.name_any();
        let Some(since) = listed.get(&name) else {
            continue;
        };
        let deadline = since.0.checked_add(DELETION_TIMEOUT);
        let wait = deadline
            .unwrap_or(Timestamp::MAX)
            .duration_since(observed.now);
        match Duration::try_from(wait) {
            Ok(wait) if !wait.is_zero() => {
                plan.again = [plan.again, Some(wait)].into_iter().flatten().min();
                left.insert(name, since.clone());
            }
            _ => plan.not_deleted.push(pod.clone()),
        }
    }
    plan.status.disrupted_pods = (!left.is_empty()).then_some(left);
}

/// When nothing can be told, nothing is allowed.
fn fail_safe(status: &mut PodDisruptionBudgetStatus, why: &str, now: Timestamp) {
    for count in [
        &mut status.current_healthy,
        &mut status.desired_healthy,
        &mut status.expected_pods,
    ] {
        count.get_or_insert(0);
    }
    status.disruptions_allowed = Some(0);
    set_condition(status, "False", "SyncFailed", why, now);
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    const ALLOWED: &str = "DisruptionAllowed";
    let conditions = status.conditions.get_or_insert_default();
    let at = conditions.iter().position(|c| c.type_ == ALLOWED);
    let since = at.map(|at| &conditions[at]).filter(|c| c.status == value);
    let condition = Condition {
        type_: ALLOWED.into(),
        status: value.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: status.observed_generation,
        last_transition_time: since.map_or(Time(now), |c| c.last_transition_time.clone()),
    };
    match at {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
}

fn unmanaged(budget: &PodDisruptionBudget) -> String {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    let selector = serde_json::to_string(&selector).unwrap_or_default();
    format!(
        "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
    )
}

/// How long until a pod's condition `DisruptionTarget` is stale: it says that the pod goes, but no one deletes it. What
/// the kubelet ends it will end, however long that takes.
pub fn stale(pod: &Pod, now: Timestamp) -> Option<Duration> {
    if pod.metadata.deletion_timestamp.is_some() || pods::is_terminated(pod) {
        return None;
    }
    let condition = pods::condition(pod, "DisruptionTarget").filter(|c| c.status == "True")?;
    if condition.reason.as_deref() == Some("TerminationByKubelet") {
        return None;
    }
    let since = condition.last_transition_time.as_ref();
    let since = since.map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    let end = since.checked_add(STALE_AFTER).unwrap_or(Timestamp::MAX);
    Some(Duration::try_from(end.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: &str = "2026-01-01T12:00:00Z";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        let mut whole = json!({"currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0, "disruptionsAllowed": 0});
        for (key, value) in status.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let metadata = json!({"name": "b", "namespace": "ns", "generation": 3});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": whole}))
            .unwrap()
    }

    fn pod(name: &str, ready: bool, extra: Value) -> Arc<Pod> {
        let mut metadata = json!({"name": name, "namespace": "ns"});
        for (key, value) in extra.as_object().unwrap() {
            metadata[key] = value.clone();
        }
        let ready = if ready { "True" } else { "False" };
        let status =
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]});
        Arc::new(serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap())
    }

    fn pods(ready: usize, unready: usize) -> Vec<Arc<Pod>> {
        let all = (0..ready + unready).map(|n| pod(&format!("p{n}"), n < ready, json!({})));
        all.collect()
    }

    fn planned(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], wanted: i32) -> Plan {
        plan(&Observed {
            budget,
            pods,
            scale: Ok(Scale {
                wanted,
                unmanaged: false,
            }),
            now: at(NOW),
        })
    }

    #[test]
    fn numbers_and_shares() {
        for (spec, ready, unready, wanted, want) in [
            // (healthy, desired, expected, allowed)
            (json!({"minAvailable": 2}), 3, 0, 0, (3, 2, 3, 1)),
            (json!({"minAvailable": 2}), 2, 1, 0, (2, 2, 3, 0)),
            (json!({"minAvailable": 2}), 1, 0, 0, (1, 2, 1, 0)),
            (json!({"minAvailable": 0}), 0, 0, 0, (0, 0, 0, 0)),
            (json!({"minAvailable": "30%"}), 10, 0, 10, (10, 3, 10, 7)),
            // 28 % of 10 are 3 at least.
            (json!({"minAvailable": "28%"}), 10, 0, 10, (10, 3, 10, 7)),
            (json!({"minAvailable": "100%"}), 3, 0, 3, (3, 3, 3, 0)),
            (json!({"minAvailable": "50%"}), 3, 0, 7, (3, 4, 7, 0)),
            (json!({"maxUnavailable": 1}), 5, 0, 5, (5, 4, 5, 1)),
            (json!({"maxUnavailable": 1}), 4, 1, 5, (4, 4, 5, 0)),
            (json!({"maxUnavailable": 9}), 5, 0, 5, (5, 0, 5, 5)),
            // 25 % of 5 may be 2.
            (json!({"maxUnavailable": "25%"}), 5, 0, 5, (5, 3, 5, 2)),
            (json!({"maxUnavailable": "0%"}), 5, 0, 5, (5, 5, 5, 0)),
            // Pods that are not made yet are missed too.
            (json!({"maxUnavailable": 1}), 3, 0, 5, (3, 4, 5, 0)),
            (json!({}), 3, 0, 0, (3, 0, 0, 0)),
        ] {
            let plan = planned(
                &budget(spec.clone(), json!({})),
                &pods(ready, unready),
                wanted,
            );
            let s = &plan.status;
            let got = [
                s.current_healthy,
                s.desired_healthy,
                s.expected_pods,
                s.disruptions_allowed,
            ];
            assert_eq!(
                got,
                <[i32; 4]>::from(want).map(Some),
                "{spec} {ready}+{unready} of {wanted}"
            );
            let (allowed, reason) = match want.3 > 0 {
                true => ("True", "SufficientPods"),
                false => ("False", "InsufficientPods"),
            };
            let condition = &s.conditions.as_ref().unwrap()[0];
            assert_eq!(
                (condition.status.as_str(), condition.reason.as_str()),
                (allowed, reason)
            );
            assert_eq!(
                (s.observed_generation, condition.observed_generation),
                (Some(3), Some(3))
            );
            let events: Vec<_> = plan.events.iter().map(|(_, reason, _)| *reason).collect();
            let none = if ready + unready == 0 {
                &["NoPods"][..]
            } else {
                &[]
            };
            assert_eq!(events, none);
        }
    }

    #[test]
    fn which_budgets_need_the_scale() {
        for (spec, want) in [
            (json!({"minAvailable": 2}), false),
            (json!({"minAvailable": "20%"}), true),
            (json!({"maxUnavailable": 2}), true),
            (json!({"maxUnavailable": "20%"}), true),
            (json!({}), false),
        ] {
            let spec_of = serde_json::from_value(spec.clone()).unwrap();
            assert_eq!(needs_scale(&spec_of), want, "{spec}");
        }
    }

    #[test]
    fn pods_that_are_about_to_go() {
        let since = |time: &str| json!({"disruptedPods": {"p0": time, "other": time}});
        for (status, extra, healthy, listed, not_deleted, again) in [
            (json!({}), json!({}), 2, 0, 0, None),
            (since("2026-01-01T11:59:30Z"), json!({}), 1, 1, 0, Some(90)),
            (since("2026-01-01T11:58:00Z"), json!({}), 2, 0, 1, None),
            (
                since("2026-01-01T11:59:30Z"),
                json!({"deletionTimestamp": NOW}),
                1,
                0,
                0,
                None,
            ),
        ] {
            let budget = budget(json!({"minAvailable": 1}), status.clone());
            let pods = [pod("p0", true, extra.clone()), pod("p1", true, json!({}))];
            let plan = planned(&budget, &pods, 0);
            assert_eq!(
                plan.status.current_healthy,
                Some(healthy),
                "{status} {extra}"
            );
            let names = plan.status.disrupted_pods.as_ref();
            assert_eq!(names.map_or(0, BTreeMap::len), listed, "{status} {extra}");
            assert_eq!(names.is_some(), listed > 0, "none is no list at all");
            assert_eq!(plan.not_deleted.len(), not_deleted, "{status} {extra}");
            assert_eq!(
                plan.again,
                again.map(Duration::from_secs),
                "{status} {extra}"
            );
        }
    }

    #[test]
    fn when_nothing_can_be_told() {
        let allowed = json!([{"type": "DisruptionAllowed", "status": "True", "reason": "SufficientPods", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 2}]);
        let status = json!({"disruptionsAllowed": 2, "currentHealthy": 3, "observedGeneration": 2, "conditions": allowed});
        let budget = budget(json!({"maxUnavailable": 2}), status);
        let plan = plan(&Observed {
            budget: &budget,
            pods: &pods(3, 0),
            scale: Err("jobs.batch does not implement the scale subresource".into()),
            now: at(NOW),
        });
        let message = "Failed to calculate the number of expected pods: jobs.batch does not implement the scale subresource";
        assert_eq!(
            plan.events,
            [(
                Warning,
                "CalculateExpectedPodCountFailed",
                message.to_owned()
            )]
        );
        let status = plan.status;
        assert_eq!(
            (
                status.disruptions_allowed,
                status.current_healthy,
                status.observed_generation
            ),
            (Some(0), Some(3), Some(2))
        );
        let condition = &status.conditions.unwrap()[0];
        assert_eq!(
            (condition.status.as_str(), condition.reason.as_str()),
            ("False", "SyncFailed")
        );
        assert_eq!(condition.last_transition_time.0, at(NOW));
    }

    #[test]
    fn a_condition_keeps_its_time() {
        let old = json!([{"type": "DisruptionAllowed", "status": "True", "reason": "SufficientPods", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 2}]);
        for (ready, since) in [(3, "2026-01-01T00:00:00Z"), (2, NOW)] {
            let budget = budget(json!({"minAvailable": 2}), json!({"conditions": old}));
            let plan = planned(&budget, &pods(ready, 0), 0);
            let conditions = plan.status.conditions.unwrap();
            assert_eq!(
                (conditions.len(), conditions[0].last_transition_time.0),
                (1, at(since))
            );
            // The second pass has nothing to write.
            let mut done = budget.clone();
            done.status = Some(PodDisruptionBudgetStatus {
                conditions: Some(conditions),
                ..plan.status
            });
            assert_eq!(
                planned(&done, &pods(ready, 0), 0).status,
                done.status.unwrap()
            );
        }
    }

    #[test]
    fn unmanaged_pods_are_told() {
        let spec = json!({"maxUnavailable": 1, "selector": {"matchLabels": {"a": "b"}}});
        let plan = plan(&Observed {
            budget: &budget(spec, json!({})),
            pods: &pods(1, 0),
            scale: Ok(Scale {
                wanted: 0,
                unmanaged: true,
            }),
            now: at(NOW),
        });
        assert_eq!(
            (plan.events[0].1, plan.status.disruptions_allowed),
            ("UnmanagedPods", Some(0))
        );
        assert!(
            plan.events[0].2.contains(r#"{"matchLabels":{"a":"b"}}"#),
            "{:?}",
            plan.events
        );
    }

    #[test]
    fn stale_conditions() {
        let target = |status: &str, reason: &str, since: &str| json!({"type": "DisruptionTarget", "status": status, "reason": reason, "lastTransitionTime": since});
        let recent = "2026-01-01T11:59:00Z";
        for (condition, phase, deleting, want) in [
            (
                target("True", "PreemptionByScheduler", recent),
                "Running",
                false,
                Some(60),
            ),
            (
                target("True", "EvictionByEvictionAPI", "2026-01-01T11:00:00Z"),
                "Pending",
                false,
                Some(0),
            ),
            (
                target("False", "PreemptionByScheduler", recent),
                "Running",
                false,
                None,
            ),
            (
                target("True", "TerminationByKubelet", recent),
                "Running",
                false,
                None,
            ),
            (
                target("True", "PreemptionByScheduler", recent),
                "Failed",
                false,
                None,
            ),
            (
                target("True", "PreemptionByScheduler", recent),
                "Running",
                true,
                None,
            ),
            (
                json!({"type": "Ready", "status": "True"}),
                "Running",
                false,
                None,
            ),
        ] {
            let deletion = deleting.then_some(NOW);
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": "p", "deletionTimestamp": deletion},
                "status": {"phase": phase, "conditions": [condition]},
            }))
            .unwrap();
            assert_eq!(
                stale(&pod, at(NOW)),
                want.map(Duration::from_secs),
                "{condition} {phase} {deleting}"
            );
        }
    }
}
