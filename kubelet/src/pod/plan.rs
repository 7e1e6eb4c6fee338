//! What to do next for one pod: a pure function of the pod, the runtime's view,
//! the worker's memory and the clock. The worker carries the actions out, looks
//! again and asks again; a pass that plans nothing means that the pod is as it should be.
//!
//! The rules are those of Kubernetes' kubelet: volumes, then the sandbox, then init
//! containers in order, then the containers; restarts by policy with back-off; on the
//! way out containers first (sidecars last, in reverse order), then the sandbox, then all
//! that the node holds for the pod, and the API object at the very end.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::memory::{Memory, Setup};
use super::{resize, status};
use crate::model::{self, ContainerView, PodView, RunState};

#[derive(Debug)]
pub struct Observed<'a> {
    pub pod: &'a Pod,
    /// The API no longer has the pod.
    pub gone: bool,
    pub view: &'a PodView,
    pub memory: &'a Memory,
    pub now: Timestamp,
    pub network_ready: bool,
    /// Why the pod has not got the resources that its spec asks for.
    pub resize_pending: Option<&'a resize::Pending>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    Liveness,
    Startup,
    PodEnds,
    SandboxChanged,
    Resize,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    MountVolumes,
    CreateSandbox {
        attempt: u32,
    },
    /// Start (pull, create, start, post-start hook) a container; `restart_of` is when its predecessor ended.
    Start {
        name: String,
        attempt: u32,
        restart_of: Option<Timestamp>,
    },
    /// Give running containers (id and name) the resources of the pod's spec.
    Resize {
        updates: Vec<(String, String)>,
    },
    /// Break off the operation that prepares the pod, as far as it can be.
    CancelSetup,
    Kill {
        id: String,
        name: String,
        grace: i64,
        reason: KillReason,
        message: String,
    },
    StopSandbox {
        id: String,
    },
    RemoveSandbox {
        id: String,
    },
    RemoveContainer {
        id: String,
    },
    /// Free volumes, cgroup and directories.
    CleanUp {
        keep_logs: bool,
    },
    DeleteFromApi,
    /// Nothing is left: the worker ends.
    Forget,
    /// Tell as an event that a container waits in back-off.
    ReportBackoff {
        name: String,
        key: String,
        image: bool,
    },
    WakeAt(Timestamp),
}

/// What the pod is heading for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Active,
    /// Ran to its end (or past its deadline), was refused or preempted, but not deleted: kept for its logs and status.
    Finished,
    Deleting,
    Gone,
}

pub fn stage(o: &Observed) -> Stage {
    if o.gone {
        Stage::Gone
    } else if o.pod.metadata.deletion_timestamp.is_some() {
        Stage::Deleting
    } else if o.memory.rejection.is_some()
        || o.memory.preempted
        || model::is_finished(o.pod)
        || status::deadline_exceeded(o)
        || matches!(status::natural_phase(o), "Succeeded" | "Failed")
    {
        Stage::Finished
    } else {
        Stage::Active
    }
}

pub fn plan(o: &Observed) -> Vec<Action> {
    match stage(o) {
        Stage::Active => plan_active(o),
        stage => plan_end(o, stage),
    }
}

fn plan_active(o: &Observed) -> Vec<Action> {
    let mut actions = Vec::new();
    if let Some(at) = status::deadline(o.pod) {
        actions.push(Action::WakeAt(at));
    }
    actions.extend(probe_kills(o));
    if o.memory.setup.is_some() || o.memory.teardown {
        return actions;
    }
    if let Some(wait) = o.memory.setup_failure.filter(|b| o.now < b.until()) {
        actions.push(Action::WakeAt(wait.until()));
        return actions;
    }
    if !o.memory.volumes_ready {
        actions.push(Action::MountVolumes);
        return actions;
    }
    let Some(sandbox) = o.view.live_sandbox() else {
        plan_sandbox(o, &mut actions);
        return actions;
    };
    if let Some(old) = o.view.sandboxes.iter().find(|s| s.id != sandbox.id) {
        actions.push(Action::RemoveSandbox { id: old.id.clone() });
        return actions;
    }
    if let Some(old) = surplus(o) {
        actions.push(Action::RemoveContainer { id: old.id.clone() });
    }
    resize::plan(o, &mut actions);
    plan_ephemeral(o, &mut actions);
    if plan_init(o, &mut actions) {
        for container in &model::spec(o.pod).containers {
            if wants_start(o, container) {
                plan_start(o, container, o.view.latest(&container.name), &mut actions);
            }
        }
    }
    first_start_only(&mut actions);
    actions
}

/// Debug containers start once, even where init containers fail; they never restart.
fn plan_ephemeral(o: &Observed, actions: &mut Vec<Action>) {
    for e in model::ephemeral_containers(o.pod) {
        let last = o.view.latest(&e.name);
        if last.is_none_or(|c| c.state == RunState::Created) {
            plan_start(o, &model::from_ephemeral(e), last, actions);
        }
    }
}

/// Only one container starts at a time, in the order of the spec: a post-start hook holds up the next.
fn first_start_only(actions: &mut Vec<Action>) {
    let mut seen = false;
    actions.retain(|a| !matches!(a, Action::Start { .. }) || !std::mem::replace(&mut seen, true));
}

/// Per container the runtime keeps the running one and the last that ended; older ones go.
fn surplus<'a>(o: &'a Observed) -> Option<&'a ContainerView> {
    o.view.containers.iter().find(|c| {
        let newer = o
            .view
            .containers
            .iter()
            .filter(|n| n.name == c.name && n.created_at > c.created_at)
            .count();
        newer >= 2 && c.state == RunState::Exited
    })
}

fn plan_sandbox(o: &Observed, actions: &mut Vec<Action>) {
    // The old sandbox is dead, and its containers have lost their network: they go first.
    for c in o
        .view
        .alive()
        .filter(|c| !o.memory.killing.contains_key(&c.id))
    {
        actions.push(kill(
            c,
            grace_of(o.pod, None),
            KillReason::SandboxChanged,
            stopping(c),
        ));
    }
    if o.view.alive().next().is_some() {
        return;
    }
    if let Some(dead) = o
        .view
        .sandboxes
        .first()
        .filter(|s| !o.memory.stopped.contains(&s.id))
    {
        actions.push(Action::StopSandbox {
            id: dead.id.clone(),
        });
        return;
    }
    if o.network_ready || model::is_host_network(o.pod) {
        let attempt = o
            .view
            .sandboxes
            .iter()
            .map(|s| s.attempt + 1)
            .max()
            .unwrap_or(0);
        actions.push(Action::CreateSandbox { attempt });
    }
}

/// Plans init containers; true once the pod's own containers may run.
fn plan_init(o: &Observed, actions: &mut Vec<Action>) -> bool {
    let spec = model::spec(o.pod);
    let initialized = spec
        .containers
        .iter()
        .any(|c| o.view.current(&c.name).is_some());
    for container in model::init_containers(o.pod) {
        let sidecar = model::is_sidecar(container);
        if initialized && !sidecar {
            continue;
        }
        let current = o.view.current(&container.name);
        let done = match current.map(|c| c.state) {
            Some(RunState::Running) if sidecar => status::is_started(o, container, current),
            Some(RunState::Running | RunState::Unknown) => false,
            Some(RunState::Exited) if !sidecar && current.is_some_and(|c| c.exit_code == 0) => true,
            _ => {
                plan_start(o, container, o.view.latest(&container.name), actions);
                false
            }
        };
        if !done && !initialized {
            return false;
        }
    }
    true
}

fn wants_start(o: &Observed, container: &Container) -> bool {
    match o.view.latest(&container.name) {
        None => true,
        Some(c) => match c.state {
            RunState::Running | RunState::Unknown => false,
            RunState::Created => true,
            RunState::Exited => will_restart(o, container, c.exit_code),
        },
    }
}

/// The restart policy of the pod, or the container's own, after an exit with `code`.
pub fn should_restart(pod: &Pod, container: &Container, code: i32) -> bool {
    for rule in container.restart_policy_rules.iter().flatten() {
        if let Some(codes) = &rule.exit_codes {
            let hit = codes.values.iter().flatten().any(|v| *v == code);
            if hit == (codes.operator == "In") {
                return rule.action == "Restart";
            }
        }
    }
    match container
        .restart_policy
        .as_deref()
        .or(model::spec(pod).restart_policy.as_deref())
    {
        Some("Never") => false,
        Some("OnFailure") => code != 0,
        _ => true,
    }
}

/// As [`should_restart`], and after a stop for the sake of a resize in any case.
pub fn will_restart(o: &Observed, container: &Container, code: i32) -> bool {
    let resized = |c: &ContainerView| o.memory.resize_restarts.contains(&c.id);
    o.view.latest(&container.name).is_some_and(resized) || should_restart(o.pod, container, code)
}

fn plan_start(
    o: &Observed,
    container: &Container,
    last: Option<&ContainerView>,
    actions: &mut Vec<Action>,
) {
    let name = container.name.clone();
    if let Some(failure) = o.memory.failures.get(&name)
        && o.now < failure.backoff.until()
    {
        let image = failure.reason == "ErrImagePull";
        if image && !failure.shown_as_backoff(o.now) {
            actions.push(Action::WakeAt(failure.settles_at()));
        } else if image && !o.memory.reported.contains(&name) {
            actions.push(Action::ReportBackoff {
                key: name.clone(),
                name,
                image: true,
            });
        }
        actions.push(Action::WakeAt(failure.backoff.until()));
        return;
    }
    let exited = last.filter(|c| c.state == RunState::Exited);
    let restart_of = exited.map(|c| model::timestamp_of_nanos(c.finished_at));
    if let (Some(c), Some(finished)) = (exited, restart_of)
        && let Some(until) = o.memory.crash_wait(&name, finished, o.now)
    {
        if !o.memory.reported.contains(&c.id) {
            actions.push(Action::ReportBackoff {
                key: c.id.clone(),
                name,
                image: false,
            });
        }
        actions.push(Action::WakeAt(until));
        return;
    }
    let attempt = match last {
        Some(c) if c.state == RunState::Created => c.attempt,
        Some(c) => c.attempt + 1,
        None => status::known_restarts(o.pod, &name),
    };
    actions.push(Action::Start {
        name,
        attempt,
        restart_of,
    });
}

fn probe_kills(o: &Observed) -> Vec<Action> {
    let mut actions = Vec::new();
    for (container, c) in containers_with_views(o) {
        let (Some(p), RunState::Running) = (o.memory.probes.get(&c.id), c.state) else {
            continue;
        };
        if o.memory.killing.contains_key(&c.id) || !(p.liveness_failed || p.startup_failed) {
            continue;
        }
        let (reason, what, probe) = if p.liveness_failed {
            (KillReason::Liveness, "liveness", &container.liveness_probe)
        } else {
            (KillReason::Startup, "startup", &container.startup_probe)
        };
        let restart = if should_restart(o.pod, container, 137) {
            ", will be restarted"
        } else {
            ""
        };
        let message = format!("Container {} failed {what} probe{restart}", container.name);
        let own = probe
            .as_ref()
            .and_then(|p| p.termination_grace_period_seconds);
        actions.push(kill(c, grace_of(o.pod, own), reason, message));
    }
    actions
}

fn containers_with_views<'a>(
    o: &'a Observed,
) -> impl Iterator<Item = (&'a Container, &'a ContainerView)> {
    model::init_containers(o.pod)
        .iter()
        .chain(&model::spec(o.pod).containers)
        .filter_map(|c| o.view.latest(&c.name).map(|v| (c, v)))
}

/// The way out, in order; each step waits until the one before it shows in the view.
fn plan_end(o: &Observed, stage: Stage) -> Vec<Action> {
    let mut actions = Vec::new();
    if o.memory.setup.is_some() {
        actions.push(Action::CancelSetup);
    }
    plan_kills(o, stage, &mut actions);
    if o.view.alive().next().is_some() || o.memory.setup.is_some() || o.memory.teardown {
        return actions;
    }
    if let Some(s) = o
        .view
        .sandboxes
        .iter()
        .find(|s| s.ready || !o.memory.stopped.contains(&s.id))
    {
        actions.push(Action::StopSandbox { id: s.id.clone() });
        return actions;
    }
    let keep_logs = stage == Stage::Finished;
    if !o.memory.cleaned || !(keep_logs || o.memory.purged) {
        match o.memory.setup_failure.filter(|b| o.now < b.until()) {
            Some(wait) => actions.push(Action::WakeAt(wait.until())),
            None => actions.push(Action::CleanUp { keep_logs }),
        }
        return actions;
    }
    let status_told = model::is_finished(o.pod);
    if stage == Stage::Finished || (stage == Stage::Deleting && !status_told) {
        return actions;
    }
    if let Some(s) = o.view.sandboxes.first() {
        actions.push(Action::RemoveSandbox { id: s.id.clone() });
        return actions;
    }
    if stage == Stage::Gone {
        actions.push(Action::Forget);
        return actions;
    }
    match o.memory.delete_failure.filter(|b| o.now < b.until()) {
        Some(wait) => actions.push(Action::WakeAt(wait.until())),
        None => actions.push(Action::DeleteFromApi),
    }
    actions
}

fn plan_kills(o: &Observed, stage: Stage, actions: &mut Vec<Action>) {
    let is_side = |c: &ContainerView| {
        model::init_containers(o.pod)
            .iter()
            .any(|i| i.name == c.name && model::is_sidecar(i))
    };
    let grace = match stage {
        Stage::Gone => 1,
        Stage::Deleting => o
            .pod
            .metadata
            .deletion_grace_period_seconds
            .unwrap_or_else(|| grace_of(o.pod, None)),
        _ => grace_of(o.pod, None),
    };
    let mains: Vec<_> = o.view.alive().filter(|c| !is_side(c)).collect();
    let victims = if mains.is_empty() {
        // Sidecars leave in reverse order, one after the other, within what is left of the grace.
        let order = |c: &&ContainerView| {
            model::init_containers(o.pod)
                .iter()
                .position(|i| i.name == c.name)
        };
        o.view.alive().max_by_key(order).into_iter().collect()
    } else {
        mains
    };
    let left = match (&o.pod.metadata.deletion_timestamp, stage) {
        (Some(t), Stage::Deleting) => t.0.duration_since(o.now).as_secs().clamp(0, grace),
        _ => grace,
    };
    for c in victims {
        let grace = if is_side(c) {
            left.max(2).min(grace.max(2))
        } else {
            grace
        };
        let deadline = o.now + SignedDuration::from_secs(grace);
        // A shorter grace than the one under way kills sooner; a longer one changes nothing.
        let shorter = |under_way: &Timestamp| {
            under_way.duration_since(deadline) > SignedDuration::from_secs(1)
        };
        if o.memory.killing.get(&c.id).is_none_or(shorter) {
            actions.push(kill(c, grace, KillReason::PodEnds, stopping(c)));
        }
    }
}

fn stopping(c: &ContainerView) -> String {
    format!("Stopping container {}", c.name)
}

pub fn kill(c: &ContainerView, grace: i64, reason: KillReason, message: String) -> Action {
    Action::Kill {
        id: c.id.clone(),
        name: c.name.clone(),
        grace,
        reason,
        message,
    }
}

/// The grace that a container gets: a probe's own, else the pod's, else 30 s.
pub fn grace_of(pod: &Pod, probe: Option<i64>) -> i64 {
    probe
        .or(model::spec(pod).termination_grace_period_seconds)
        .unwrap_or(30)
}

/// Whether an operation in flight concerns the container.
pub fn is_starting(memory: &Memory, name: &str) -> bool {
    matches!(&memory.setup, Some(Setup::Start(n)) if n == name)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
