//! In-place resize of a running pod: what the node grants of the resources that the spec asks for, and what has to be done
//! for the containers to have them.
//!
//! The pod's status is the record of what was granted: `allocatedResources` has a container's requests, `resources` what
//! it runs with. A resize that does not fit leaves both as they are, and the pod goes on with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, ResourceRequirements};

use super::plan::{Action, KillReason, Observed, grace_of, kill};
use crate::model::{self, ContainerView, Limits, RunState};
use crate::resources::{self, Amounts, Insufficient};

/// Why a resize has not been granted.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// `Deferred` until other pods leave, or `Infeasible` on this node.
    pub reason: &'static str,
    pub message: String,
}

/// The pod with what the node grants it. `capacity` is what pods may ask for, `used` what the other pods were granted.
pub fn granted(
    pod: &Arc<Pod>,
    capacity: &Amounts,
    used: impl FnOnce() -> Amounts,
) -> (Arc<Pod>, Option<Pending>) {
    let before = as_granted_before(pod);
    let (mut asked, had) = (resources::requests(pod), resources::requests(&before));
    if asked == had || model::is_finished(pod) {
        return (pod.clone(), None);
    }
    // What does not grow stays, even where the node has become too small for it.
    asked.retain(|name, amount| *amount > had.get(name).copied().unwrap_or(0));
    match resources::insufficient(&asked, &used(), capacity).first() {
        None => (pod.clone(), None),
        Some(lacks) => (Arc::new(before), Some(pending(lacks))),
    }
}

fn pending(lacks: &Insufficient) -> Pending {
    let (name, requested, capacity) = (&lacks.name, lacks.requested, lacks.capacity);
    if requested > capacity {
        Pending {
            reason: "Infeasible",
            message: format!(
                "Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}"
            ),
        }
    } else {
        Pending {
            reason: "Deferred",
            message: lacks.to_string(),
        }
    }
}

/// The pod with what its status says that it was granted, whatever it asks for now.
pub fn as_granted_before(pod: &Pod) -> Pod {
    let mut before = pod.clone();
    let Some(spec) = &mut before.spec else {
        return before;
    };
    let inits = spec.init_containers.iter_mut().flatten();
    for container in inits.chain(&mut spec.containers) {
        if let Some(s) = status_of(pod, &container.name)
            && s.allocated_resources.is_some()
        {
            let limits = s.resources.as_ref().and_then(|r| r.limits.clone());
            let resources = container.resources.get_or_insert_default();
            resources.requests = s.allocated_resources.clone();
            resources.limits = limits;
        }
    }
    before
}

fn status_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let inits = status.init_container_statuses.iter().flatten();
    inits
        .chain(status.container_statuses.iter().flatten())
        .find(|s| s.name == name)
}

/// The limits that a running container should have, if it has others. What the runtime has once taken is in force,
/// whatever it tells: an update is not sent over and over.
pub fn difference(
    pod: &Pod,
    container: &Container,
    c: &ContainerView,
    taken: &BTreeMap<String, Limits>,
) -> Option<Limits> {
    let has = c.limits.filter(|_| c.state == RunState::Running)?;
    let wants = resources::limits(pod, container);
    (wants != has && taken.get(&c.id) != Some(&wants)).then_some(wants)
}

/// What the status shows as the container's resources: those of the spec once they are in force.
pub fn shown(
    o: &Observed,
    container: &Container,
    c: &ContainerView,
    old: Option<&ContainerStatus>,
) -> ResourceRequirements {
    let old = old.and_then(|s| s.resources.clone());
    match (difference(o.pod, container, c, &o.memory.resized), old) {
        (Some(_), Some(old)) => old,
        _ => container.resources.clone().unwrap_or_default(),
    }
}

fn changes<'a>(o: &'a Observed) -> impl Iterator<Item = (&'a Container, &'a ContainerView)> {
    let sidecars = model::init_containers(o.pod)
        .iter()
        .filter(|c| model::is_sidecar(c));
    sidecars
        .chain(&model::spec(o.pod).containers)
        .filter_map(|container| {
            let c = o.view.latest(&container.name)?;
            difference(o.pod, container, c, &o.memory.resized).map(|_| (container, c))
        })
}

/// The condition `PodResizeInProgress`: the reason and the message, if containers do not have yet what was granted.
pub fn in_progress(o: &Observed) -> Option<(&'static str, String)> {
    changes(o).next()?;
    Some(match &o.memory.resize_failure {
        Some((_, message)) => ("Error", message.clone()),
        None => ("", String::new()),
    })
}

pub fn plan(o: &Observed, actions: &mut Vec<Action>) {
    if o.memory.resizing {
        return;
    }
    if let Some((wait, _)) = &o.memory.resize_failure
        && o.now < wait.until()
    {
        actions.push(Action::WakeAt(wait.until()));
        return;
    }
    let mut updates = Vec::new();
    for (container, c) in changes(o).filter(|(_, c)| !o.memory.killing.contains_key(&c.id)) {
        if needs_restart(o.pod, container, c) {
            let message = format!("Container {} resize requires restart", container.name);
            actions.push(kill(c, grace_of(o.pod, None), KillReason::Resize, message));
        } else {
            updates.push((c.id.clone(), container.name.clone()));
        }
    }
    if !updates.is_empty() {
        actions.push(Action::Resize { updates });
    }
}

fn needs_restart(pod: &Pod, container: &Container, c: &ContainerView) -> bool {
    let has = c.limits.unwrap_or_default();
    let wants = resources::limits(pod, container);
    let policy = |name: &str| {
        container
            .resize_policy
            .iter()
            .flatten()
            .any(|p| p.resource_name == name && p.restart_policy == "RestartContainer")
    };
    (policy("memory") && has.memory != wants.memory)
        || (policy("cpu") && (has.shares, has.quota) != (wants.shares, wants.quota))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value, status: Value) -> Arc<Pod> {
        let container = json!({"name": "a", "resources": spec});
        let statuses = match status {
            Value::Null => json!([]),
            s => json!([{"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "allocatedResources": s["requests"], "resources": s}]),
        };
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [container]},
            "status": {"containerStatuses": statuses}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn what_does_not_fit_is_not_granted() {
        let cpu = |v: &str| json!({"requests": {"cpu": v}});
        let table = [
            // asked, granted before, used by others, granted now
            (cpu("1"), Value::Null, 2000, None),
            (cpu("1"), cpu("500m"), 1000, None),
            (cpu("2"), cpu("1"), 1000, Some("Deferred")),
            (cpu("3"), cpu("1"), 0, Some("Infeasible")),
            (cpu("1"), cpu("2"), 2000, None),
            (cpu("1000m"), cpu("1"), 2000, None),
        ];
        for (asked, before, used, want) in table {
            let pod = pod(asked.clone(), before.clone());
            let cpu = |amount| Amounts::from([("cpu".to_owned(), amount)]);
            let (granted, pending) = granted(&pod, &cpu(2000), || cpu(used));
            assert_eq!(pending.map(|p| p.reason), want, "{asked} after {before}");
            let expected = if want.is_none() { &asked } else { &before };
            let resources = granted.spec.as_ref().unwrap().containers[0]
                .resources
                .clone();
            assert_eq!(serde_json::to_value(resources).unwrap(), *expected);
        }
    }

    #[test]
    fn a_container_differs_once_the_kernel_sees_other_numbers() {
        let pod = pod(
            json!({"requests": {"cpu": "250m"}, "limits": {"memory": "1Mi"}}),
            Value::Null,
        );
        let container = &model::spec(&pod).containers[0];
        let view = |limits, state| ContainerView {
            limits,
            state,
            ..ContainerView::default()
        };
        let same = Limits {
            shares: 256,
            quota: 0,
            memory: 1 << 20,
        };
        let less = Limits {
            memory: 1 << 19,
            ..same
        };
        for (limits, state, differs) in [
            (Some(same), RunState::Running, false),
            (Some(less), RunState::Running, true),
            (Some(less), RunState::Exited, false),
            // A runtime that does not tell is left alone.
            (None, RunState::Running, false),
        ] {
            let view = view(limits, state);
            let found = difference(&pod, container, &view, &BTreeMap::new());
            assert_eq!(found, differs.then_some(same));
            let taken = BTreeMap::from([(view.id.clone(), same)]);
            assert_eq!(difference(&pod, container, &view, &taken), None);
        }
    }
}
