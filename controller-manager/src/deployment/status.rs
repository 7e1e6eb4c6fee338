//! What a Deployment says about itself: counts, and the conditions Available, Progressing and ReplicaFailure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::plan::{max_unavailable, wanted};
use super::sets::Set;

/// The seconds within which a rollout has to show progress. i32::MAX means no deadline.
pub fn progress_deadline(deployment: &Deployment) -> Option<i32> {
    deployment
        .spec
        .as_ref()?
        .progress_deadline_seconds
        .filter(|s| *s != i32::MAX)
}

pub fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Sets a condition unless it is there with this status and reason; its transition time changes with its status only.
pub fn set_condition(
    status: &mut DeploymentStatus,
    kind: &str,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let old = condition(status, kind);
    if old.is_some_and(|c| c.status == value && c.reason.as_deref() == Some(reason)) {
        return;
    }
    let transition = old
        .filter(|c| c.status == value)
        .and_then(|c| c.last_transition_time.clone());
    let new = DeploymentCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(Time(now)),
        last_transition_time: transition.or(Some(Time(now))),
    };
    remove_condition(status, kind);
    status.conditions.get_or_insert_default().push(new);
}

fn remove_condition(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_ != kind);
        if conditions.is_empty() {
            status.conditions = None;
        }
    }
}

/// Zero counts are left out, as in Kubernetes' JSON.
fn count(n: i32) -> Option<i32> {
    (n != 0).then_some(n)
}

/// Counts and availability. `conditions` are those so far.
pub fn calculate(
    deployment: &Deployment,
    sets: &[&Set],
    new: Option<&Set>,
    before: &DeploymentStatus,
    now: Timestamp,
) -> DeploymentStatus {
    let sum = |f: fn(&Set) -> i32| sets.iter().map(|s| f(s)).sum::<i32>();
    let available = sum(Set::available);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: count(sum(Set::actual)),
        updated_replicas: count(new.map_or(0, Set::actual)),
        ready_replicas: count(sum(Set::ready)),
        available_replicas: count(available),
        unavailable_replicas: count((sum(|s| s.replicas) - available).max(0)),
        terminating_replicas: sets.iter().map(|s| s.terminating()).sum(),
        collision_count: before.collision_count,
        conditions: before.conditions.clone(),
    };
    if available >= wanted(deployment) - max_unavailable(deployment) {
        let message = "Deployment has minimum availability.";
        set_condition(
            &mut status,
            "Available",
            "True",
            "MinimumReplicasAvailable",
            message,
            now,
        );
    } else {
        let message = "Deployment does not have minimum availability.";
        set_condition(
            &mut status,
            "Available",
            "False",
            "MinimumReplicasUnavailable",
            message,
            now,
        );
    }
    status
}

/// All replicas are of the newest template and available, and no others are left.
pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let all = |n: Option<i32>| n.unwrap_or(0) == wanted(deployment);
    all(status.updated_replicas)
        && all(status.replicas)
        && all(status.available_replicas)
        && status.observed_generation >= deployment.metadata.generation
}

/// Adds to `status` how the rollout is getting on.
pub fn add_progress(
    deployment: &Deployment,
    sets: &[&Set],
    new: Option<&Set>,
    status: &mut DeploymentStatus,
    now: Timestamp,
) {
    match progress_deadline(deployment) {
        None => remove_condition(status, "Progressing"),
        Some(deadline) => judge_progress(deployment, new, deadline, status, now),
    }
    // Of several failing sets the newest is of most interest.
    let failing = new.into_iter().chain(sets.iter().copied()).find_map(|set| {
        let conditions = set.object.as_ref()?.status.as_ref()?.conditions.as_ref()?;
        conditions
            .iter()
            .find(|c| c.type_ == "ReplicaFailure")
            .cloned()
    });
    match failing {
        None => remove_condition(status, "ReplicaFailure"),
        Some(c) => {
            let (reason, message) = (c.reason.unwrap_or_default(), c.message.unwrap_or_default());
            set_condition(status, "ReplicaFailure", &c.status, &reason, &message, now);
        }
    }
}

fn judge_progress(
    deployment: &Deployment,
    new: Option<&Set>,
    deadline: i32,
    status: &mut DeploymentStatus,
    now: Timestamp,
) {
    let old = deployment.status.clone().unwrap_or_default();
    let current = condition(status, "Progressing").cloned();
    let reason = current
        .as_ref()
        .and_then(|c| c.reason.as_deref())
        .unwrap_or_default()
        .to_owned();
    if status.replicas == status.updated_replicas && reason == "NewReplicaSetAvailable" {
        return;
    }
    let who = match new {
        Some(set) => format!("ReplicaSet \"{}\"", set.name),
        None => format!("Deployment \"{}\"", deployment.name_any()),
    };
    if is_complete(deployment, status) {
        let message = format!("{who} has successfully progressed.");
        set_condition(
            status,
            "Progressing",
            "True",
            "NewReplicaSetAvailable",
            &message,
            now,
        );
    } else if has_progressed(&old, status) {
        let message = format!("{who} is progressing.");
        // Progress for the same reason counts as news: the deadline starts again.
        let since = current
            .filter(|c| c.status == "True")
            .and_then(|c| c.last_transition_time);
        remove_condition(status, "Progressing");
        set_condition(
            status,
            "Progressing",
            "True",
            "ReplicaSetUpdated",
            &message,
            now,
        );
        if let (Some(since), Some(c)) =
            (since, status.conditions.as_mut().and_then(|c| c.last_mut()))
        {
            c.last_transition_time = Some(since);
        }
    } else if let Some(current) = current {
        let updated = current.last_update_time.map_or(Timestamp::MIN, |t| t.0);
        let late = now.duration_since(updated) > SignedDuration::from_secs(i64::from(deadline));
        if reason != "NewReplicaSetAvailable" && late {
            let message = format!("{who} has timed out progressing.");
            set_condition(
                status,
                "Progressing",
                "False",
                "ProgressDeadlineExceeded",
                &message,
                now,
            );
        }
    }
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |count: Option<i32>| count.unwrap_or(0);
    let outdated = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || outdated(new) < outdated(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

/// When to look again whether the rollout has run out of time.
pub fn deadline_check(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let deadline = progress_deadline(deployment)?;
    let current = condition(status, "Progressing")?;
    if is_complete(deployment, status)
        || matches!(
            current.reason.as_deref(),
            Some("ProgressDeadlineExceeded" | "NewReplicaSetAvailable")
        )
    {
        return None;
    }
    let due =
        current.last_update_time.as_ref()?.0 + SignedDuration::from_secs(i64::from(deadline) + 1);
    Some(Duration::try_from(due.duration_since(now)).unwrap_or(Duration::ZERO))
}
