//! What a Job asks of its pods one by one: is it done, failed, which index is it, when did it end.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::policy::{Verdict, judge};
use crate::meta::annotation;
use crate::pods;

pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
pub const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
pub const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

const BACKOFF: Duration = Duration::from_secs(10);
const MAX_BACKOFF: Duration = Duration::from_secs(600);

pub fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

pub fn is_suspended(spec: &JobSpec) -> bool {
    spec.suspend == Some(true)
}

/// Whether only pods that have really failed are replaced, not those that are on their way out.
pub fn replaces_failed_only(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// A condition that is true.
pub fn has_condition(job: &Job, kind: &str) -> bool {
    let conditions = job
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|c| c.type_ == kind && c.status == "True")
}

pub fn is_finished(job: &Job) -> bool {
    has_condition(job, "Complete") || has_condition(job, "Failed")
}

pub fn is_tracked(pod: &Pod) -> bool {
    pod.metadata
        .finalizers
        .iter()
        .flatten()
        .any(|f| f == FINALIZER)
}

pub fn index(pod: &Pod) -> Option<i32> {
    annotation(pod, INDEX)?.parse().ok().filter(|i| *i >= 0)
}

fn count(pod: &Pod, key: &str) -> i32 {
    annotation(pod, key)
        .and_then(|c| c.parse().ok())
        .filter(|c| *c >= 0)
        .unwrap_or(0)
}

pub fn is_failed(pod: &Pod, spec: &JobSpec) -> bool {
    pods::phase(pod) == "Failed"
        || (!replaces_failed_only(spec)
            && pod.metadata.deletion_timestamp.is_some()
            && pods::phase(pod) != "Succeeded")
}

/// Whether a pod's failure is its index's last.
pub fn fails_index(pod: &Pod, spec: &JobSpec) -> bool {
    let Some(limit) = spec.backoff_limit_per_index else {
        return false;
    };
    is_failed(pod, spec)
        && match judge(spec.pod_failure_policy.as_ref(), pod) {
            Verdict::FailIndex => true,
            Verdict::Ignore => false,
            Verdict::Count | Verdict::FailJob(_) => count(pod, FAILURES) >= limit,
        }
}

/// How often the pods of an index failed before this one, counted or not.
pub fn earlier_failures(pod: &Pod) -> i32 {
    count(pod, FAILURES) + count(pod, IGNORED_FAILURES)
}

/// Counted and ignored failures that the successor of a failed pod starts with.
pub fn failures_after(pod: Option<&Pod>, spec: &JobSpec) -> (i32, i32) {
    let Some(pod) = pod else { return (0, 0) };
    let (counted, ignored) = (count(pod, FAILURES), count(pod, IGNORED_FAILURES));
    match judge(spec.pod_failure_policy.as_ref(), pod) {
        Verdict::Ignore => (counted, ignored + 1),
        _ => (counted + 1, ignored),
    }
}

/// When a pod ended, as far as can be told.
pub fn finished_at(pod: &Pod) -> Timestamp {
    let end = |s: &ContainerStatus| -> Option<Timestamp> {
        let terminated = s.state.as_ref()?.terminated.as_ref()?;
        terminated.finished_at.as_ref().map(|t| t.0)
    };
    let statuses = pod
        .status
        .as_ref()
        .and_then(|s| s.container_statuses.as_deref())
        .unwrap_or_default();
    let ends: Option<Vec<Timestamp>> = statuses.iter().map(end).collect();
    if let Some(last) = ends.and_then(|e| e.into_iter().max()) {
        return last;
    }
    let unready = pods::condition(pod, "Ready").filter(|c| c.status == "False");
    if let Some(since) = unready.and_then(|c| c.last_transition_time.as_ref()) {
        return since.0;
    }
    match &pod.metadata.deletion_timestamp {
        Some(deadline) => {
            let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
            let began = deadline.0.checked_sub(SignedDuration::from_secs(grace));
            began.unwrap_or(deadline.0)
        }
        None => crate::meta::created(pod),
    }
}

/// How long to wait after the last of so many failures in a row.
pub fn backoff(failures: i32, last: Timestamp, now: Timestamp) -> Duration {
    if failures <= 0 {
        return Duration::ZERO;
    }
    let factor = 1u32.checked_shl(failures as u32 - 1).unwrap_or(u32::MAX);
    let delay = BACKOFF
        .checked_mul(factor)
        .map_or(MAX_BACKOFF, |d| d.min(MAX_BACKOFF));
    let passed = Duration::try_from(now.duration_since(last)).unwrap_or_default();
    delay.saturating_sub(passed)
}

/// How long the Job has to wait before it makes pods again: by the failures since its last success.
pub fn remaining_backoff(pods: &[Arc<Pod>], spec: &JobSpec, now: Timestamp) -> Duration {
    let succeeded = pods.iter().filter(|p| pods::phase(p) == "Succeeded");
    let success = succeeded.map(|p| finished_at(p)).max();
    let failed = pods.iter().filter(|p| is_failed(p, spec));
    let failed: Vec<Timestamp> = failed
        .map(|p| finished_at(p))
        .filter(|at| success.is_none_or(|s| *at > s))
        .collect();
    match failed.iter().max() {
        Some(last) => backoff(failed.len() as i32, *last, now),
        None => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn backoff_doubles() {
        let at = |s| Timestamp::from_second(s).unwrap();
        for (failures, passed, want) in [
            (0, 0, 0),
            (1, 0, 10),
            (1, 4, 6),
            (1, 11, 0),
            (3, 0, 40),
            (7, 0, 600),
            (99, 100, 500),
        ] {
            assert_eq!(
                backoff(failures, at(0), at(passed)),
                Duration::from_secs(want),
                "{failures} {passed}"
            );
        }
    }

    #[test]
    fn ends() {
        let pod = |value| -> Pod { serde_json::from_value(value).unwrap() };
        let container = |at: Option<&str>| {
            json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": at.map(|at| json!({"terminated": {"exitCode": 1, "finishedAt": at}}))})
        };
        let (early, late) = ("2026-01-01T00:00:01Z", "2026-01-01T00:00:09Z");
        for (value, want) in [
            (
                json!({"status": {"containerStatuses": [container(Some(early)), container(Some(late))]}}),
                late,
            ),
            (
                json!({"status": {"containerStatuses": [container(None)], "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": early}]}}),
                early,
            ),
            (
                json!({"metadata": {"deletionTimestamp": late, "deletionGracePeriodSeconds": 8}}),
                early,
            ),
            (json!({"metadata": {"creationTimestamp": late}}), late),
        ] {
            assert_eq!(finished_at(&pod(value)), want.parse::<Timestamp>().unwrap());
        }
    }
}
