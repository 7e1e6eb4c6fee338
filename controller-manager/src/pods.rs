//! What controllers need to know about pods: are they ready, are they done, who goes first.

use std::cmp::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;

use crate::meta::annotation;

/// The annotation by which users say whose loss costs less.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or_default()
}

pub fn node_name(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|s| s.node_name.as_deref())
        .unwrap_or_default()
}

/// Failed or succeeded: its containers will not run again.
pub fn is_terminated(pod: &Pod) -> bool {
    matches!(phase(pod), "Failed" | "Succeeded")
}

/// Neither terminated nor on its way out: a replica that counts.
pub fn is_active(pod: &Pod) -> bool {
    !is_terminated(pod) && pod.metadata.deletion_timestamp.is_none()
}

pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|c| c.type_ == kind)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|c| c.status == "True")?;
    ready.last_transition_time.as_ref().map(|t| t.0)
}

/// Whether a pod is available (ready for `min_ready_seconds`), and if it is ready only, when it will be.
pub fn availability(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> (bool, Option<Duration>) {
    if !is_ready(pod) {
        return (false, None);
    }
    if min_ready_seconds <= 0 {
        return (true, None);
    }
    let Some(since) = ready_since(pod) else {
        return (false, None);
    };
    let age = now.duration_since(since).as_secs_f64();
    let left = f64::from(min_ready_seconds) - age;
    if left <= 0.0 {
        (true, None)
    } else {
        (false, Some(Duration::from_secs_f64(left)))
    }
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|s| s.container_statuses.as_deref())
        .unwrap_or_default();
    statuses.iter().map(|s| s.restart_count).max().unwrap_or(0)
}

fn deletion_cost(pod: &Pod) -> i32 {
    annotation(pod, DELETION_COST)
        .and_then(|c| c.parse().ok())
        .unwrap_or(0)
}

/// Ages are compared by the power of two of their seconds, so that among pods of about the same age chance decides.
fn age_rank(since: Timestamp, now: Timestamp) -> i64 {
    let seconds = now.duration_since(since).as_secs();
    if seconds <= 0 {
        -1
    } else {
        i64::from(seconds.ilog2())
    }
}

/// Which pod is the lesser loss when replicas have to go; the lesser one comes first. `neighbours` is the number of
/// ready pods of the same owner on the same node. The order of the criteria is Kubernetes'.
pub fn by_loss(a: (&Pod, usize), b: (&Pod, usize), now: Timestamp) -> Ordering {
    let ((a, a_neighbours), (b, b_neighbours)) = (a, b);
    let phase_rank = |p: &Pod| match phase(p) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let by_age = |x: Option<Timestamp>, y: Option<Timestamp>| match (x, y) {
        (Some(x), Some(y)) if x == y => Ordering::Equal,
        (Some(x), Some(y)) => age_rank(x, now)
            .cmp(&age_rank(y, now))
            .then_with(|| a.uid().cmp(&b.uid())),
        (x, y) => x.is_some().cmp(&y.is_some()),
    };
    let created = |p: &Pod| p.metadata.creation_timestamp.as_ref().map(|t| t.0);
    (!node_name(a).is_empty())
        .cmp(&!node_name(b).is_empty())
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| b_neighbours.cmp(&a_neighbours))
        .then_with(|| {
            if is_ready(a) && is_ready(b) {
                by_age(ready_since(a), ready_since(b))
            } else {
                Ordering::Equal
            }
        })
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| by_age(created(a), created(b)))
}

/// A pod as its template says, controlled by `owner`.
pub fn from_template(template: &PodTemplateSpec, namespace: &str, owner: OwnerReference) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_owned()),
            // Longer prefixes are cut by the API server when it adds the suffix.
            generate_name: Some(format!("{}-", owner.name)),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    fn ready(since: &str) -> Value {
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": since}]})
    }

    #[test]
    fn who_goes_first() {
        let now: Timestamp = "2026-01-01T10:00:00Z".parse().unwrap();
        let node = json!({"containers": [], "nodeName": "n"});
        let (old, new) = (ready("2026-01-01T00:00:00Z"), ready("2026-01-01T09:59:00Z"));
        // In every pair the first is the lesser loss.
        let pairs = [
            (
                "unassigned",
                json!({"status": old}),
                json!({"spec": node, "status": {"phase": "Pending"}}),
            ),
            (
                "pending",
                json!({"spec": node, "status": {"phase": "Pending"}}),
                json!({"spec": node, "status": {"phase": "Running"}}),
            ),
            (
                "not ready",
                json!({"spec": node, "status": {"phase": "Running"}}),
                json!({"spec": node, "status": new}),
            ),
            (
                "cheaper",
                json!({"metadata": {"annotations": {DELETION_COST: "-5"}}, "spec": node, "status": old}),
                json!({"spec": node, "status": new}),
            ),
            (
                "ready for less time",
                json!({"spec": node, "status": new}),
                json!({"spec": node, "status": old}),
            ),
            (
                "restarted more",
                json!({"spec": node, "status": {"phase": "Running", "containerStatuses": [
                    {"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 3}]}}),
                json!({"spec": node, "status": {"phase": "Running"}}),
            ),
            (
                "younger",
                json!({"metadata": {"creationTimestamp": "2026-01-01T09:59:00Z"}, "spec": node}),
                json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": node}),
            ),
        ];
        for (why, first, second) in pairs {
            let (first, second) = (pod(first), pod(second));
            assert_eq!(
                by_loss((&first, 0), (&second, 0), now),
                Ordering::Less,
                "{why}"
            );
            assert_eq!(
                by_loss((&second, 0), (&first, 0), now),
                Ordering::Greater,
                "{why}, the other way round"
            );
        }
        let p = pod(json!({"spec": node, "status": old}));
        assert_eq!(
            by_loss((&p, 2), (&p, 1), now),
            Ordering::Less,
            "more neighbours"
        );
    }

    #[test]
    fn available_after_min_ready_seconds() {
        let now: Timestamp = "2026-01-01T00:00:20Z".parse().unwrap();
        let p = pod(json!({"status": ready("2026-01-01T00:00:10Z")}));
        assert_eq!(availability(&p, 0, now), (true, None));
        assert_eq!(availability(&p, 10, now), (true, None));
        assert_eq!(
            availability(&p, 15, now),
            (false, Some(Duration::from_secs(5)))
        );
        assert_eq!(availability(&pod(json!({})), 0, now), (false, None));
    }
}
