//! The pod's status as the API shows it: a pure function of what was observed.
//! Phases, conditions, container states, reasons and messages follow Kubernetes'
//! kubelet to the letter, because controllers and people read them.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
    VolumeMountStatus,
};

use super::memory::StartFailure;
use super::plan::{self, Observed};
use super::{preemption, resize};
use crate::model::{self, ContainerView, RunState};
use crate::resources;

/// What a status needs to know about the node.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    pub ips: Vec<String>,
    /// The prefix of container ids: `containerd`.
    pub runtime: String,
}

pub fn pod_status(o: &Observed, node: &NodeFacts) -> PodStatus {
    let old = o.pod.status.clone().unwrap_or_default();
    if let Some(rejected) = rejected(o, &old) {
        return rejected;
    }
    let mut inits = statuses(
        o,
        node,
        model::init_containers(o.pod),
        old.init_container_statuses.as_deref(),
    );
    let mut mains = statuses(
        o,
        node,
        &model::spec(o.pod).containers,
        old.container_statuses.as_deref(),
    );
    let ephemeral = ephemeral_statuses(o, node, old.ephemeral_container_statuses.as_deref());
    let phase = phase(o, &inits, &mains);
    let ended = matches!(phase, "Succeeded" | "Failed");
    if ended && o.pod.metadata.deletion_timestamp.is_some() {
        close(&mut mains);
        close(&mut inits);
    }
    let mut status = PodStatus {
        phase: Some(phase.to_string()),
        ..old.clone()
    };
    status.start_time = old
        .start_time
        .clone()
        .or_else(|| Some(model::seconds(o.now)));
    status.qos_class = old
        .qos_class
        .clone()
        .or_else(|| Some(resources::qos(o.pod).to_string()));
    status.observed_generation = o.pod.metadata.generation;
    set_addresses(&mut status, o, node);
    if deadline_exceeded(o) && !model::is_finished(o.pod) {
        status.reason = Some("DeadlineExceeded".into());
        status.message =
            Some("Pod was active on the node longer than the specified deadline".into());
    }
    if o.memory.preempted && phase == "Failed" && !model::is_finished(o.pod) {
        status.reason = Some(preemption::REASON.into());
        status.message = Some(preemption::MESSAGE.into());
    }
    status.conditions = Some(conditions(o, &old, phase, &inits, &mains));
    status.container_statuses = Some(mains);
    status.ephemeral_container_statuses = (!ephemeral.is_empty()).then_some(ephemeral);
    status.init_container_statuses = (!inits.is_empty()).then_some(inits);
    status
}

/// The status of a pod that was refused, now or before this kubelet started: nothing of it was ever made, so nothing is
/// told but why.
fn rejected(o: &Observed, old: &PodStatus) -> Option<PodStatus> {
    let untouched = old.container_statuses.is_none() && o.view.containers.is_empty();
    let Some(rejection) = &o.memory.rejection else {
        return (model::is_finished(o.pod) && untouched).then(|| PodStatus {
            observed_generation: o.pod.metadata.generation,
            ..old.clone()
        });
    };
    let started = || Some(model::seconds(o.now));
    let qos = || Some(resources::qos(o.pod).to_string());
    Some(PodStatus {
        phase: Some("Failed".into()),
        reason: Some(rejection.reason.clone()),
        message: Some(format!("Pod was rejected: {}", rejection.message)),
        start_time: old.start_time.clone().or_else(started),
        qos_class: old.qos_class.clone().or_else(qos),
        observed_generation: o.pod.metadata.generation,
        ..old.clone()
    })
}

fn set_addresses(status: &mut PodStatus, o: &Observed, node: &NodeFacts) {
    status.host_ip = node.ips.first().cloned();
    status.host_ips = Some(
        node.ips
            .iter()
            .map(|ip| HostIP { ip: ip.clone() })
            .collect(),
    );
    let ips = match o.view.sandboxes.first() {
        Some(_) if model::is_host_network(o.pod) => node.ips.clone(),
        Some(s) if s.ready => s.ips.clone(),
        _ => Vec::new(),
    };
    // A finished pod keeps showing the address that it had.
    if let Some(first) = ips.first() {
        status.pod_ip = Some(first.clone());
        status.pod_ips = Some(ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect());
    }
}

pub fn deadline(pod: &Pod) -> Option<Timestamp> {
    let seconds = model::spec(pod).active_deadline_seconds?;
    Some(pod.status.as_ref()?.start_time.as_ref()?.0 + SignedDuration::from_secs(seconds))
}

/// Whether `activeDeadlineSeconds` has run out on a pod that had not ended by itself.
pub fn deadline_exceeded(o: &Observed) -> bool {
    let told = |p: &Pod| {
        p.status
            .as_ref()
            .is_some_and(|s| s.reason.as_deref() == Some("DeadlineExceeded"))
    };
    told(o.pod) || (!model::is_finished(o.pod) && deadline(o.pod).is_some_and(|at| o.now >= at))
}

/// The phase that the containers alone lead to, deletion left aside.
pub fn natural_phase(o: &Observed) -> &'static str {
    let node = NodeFacts::default();
    let old = o.pod.status.as_ref();
    let inits = statuses(
        o,
        &node,
        model::init_containers(o.pod),
        old.and_then(|s| s.init_container_statuses.as_deref()),
    );
    let mains = statuses(
        o,
        &node,
        &model::spec(o.pod).containers,
        old.and_then(|s| s.container_statuses.as_deref()),
    );
    container_phase(o, &inits, &mains, false)
}

fn phase(o: &Observed, inits: &[ContainerStatus], mains: &[ContainerStatus]) -> &'static str {
    let ending = o.pod.metadata.deletion_timestamp.is_some();
    let still = o.view.alive().next().is_some() || o.memory.setup.is_some();
    match model::phase(o.pod) {
        Some("Succeeded") => "Succeeded",
        Some("Failed") => "Failed",
        // Told only when all is over: until then the pod still uses its resources.
        _ if deadline_exceeded(o) => "Failed",
        _ if o.memory.preempted && !still => "Failed",
        _ if ending && !still => match container_phase(o, inits, mains, true) {
            "Succeeded" => "Succeeded",
            _ => "Failed",
        },
        _ => match container_phase(o, inits, mains, false) {
            "Succeeded" if still => "Running",
            other => other,
        },
    }
}

/// Kubernetes' rules for the phase, from the states of all containers.
fn container_phase(
    o: &Observed,
    inits: &[ContainerStatus],
    mains: &[ContainerStatus],
    terminal: bool,
) -> &'static str {
    let spec = model::spec(o.pod);
    let (mut pending_init, mut waiting, mut running, mut stopped, mut succeeded, mut final_stops) =
        (0, 0, 0, 0, 0, 0);
    let initialized = mains.iter().any(has_run);
    for container in model::init_containers(o.pod) {
        let Some(s) = find(inits, &container.name) else {
            pending_init += 1;
            continue;
        };
        if model::is_sidecar(container) {
            match kind(s) {
                State::Running => {
                    running += 1;
                    pending_init += usize::from(!initialized && s.started != Some(true));
                }
                State::Waiting => {
                    pending_init += usize::from(!initialized);
                    waiting += usize::from(!initialized);
                }
                _ => {}
            }
            continue;
        }
        match kind(s) {
            State::Terminated(0) => {}
            State::Terminated(code) | State::Restarting(code) => {
                if code != 0 && !plan::will_restart(o, container, code) {
                    return "Failed";
                }
                pending_init += usize::from(!initialized && code != 0);
            }
            _ => pending_init += usize::from(!initialized),
        }
    }
    for container in &spec.containers {
        let Some(s) = find(mains, &container.name) else {
            continue;
        };
        match kind(s) {
            State::Running => running += 1,
            State::Waiting => waiting += 1,
            State::Terminated(code) | State::Restarting(code) => {
                stopped += 1;
                succeeded += usize::from(code == 0 && matches!(kind(s), State::Terminated(_)));
                final_stops += usize::from(!plan::will_restart(o, container, code));
            }
        }
    }
    if pending_init > 0 || waiting > 0 {
        return "Pending";
    }
    let own_running = spec
        .containers
        .iter()
        .any(|c| find(mains, &c.name).is_some_and(|s| matches!(kind(s), State::Running)));
    if own_running || (running > 0 && stopped != final_stops) {
        return "Running";
    }
    if stopped == 0 {
        return "Pending";
    }
    if !terminal && stopped != final_stops {
        return "Running";
    }
    if stopped == succeeded {
        "Succeeded"
    } else {
        "Failed"
    }
}

enum State {
    Waiting,
    Running,
    Terminated(i32),
    /// Waiting to run again; the code is that of the last exit.
    Restarting(i32),
}

fn kind(s: &ContainerStatus) -> State {
    let state = s.state.clone().unwrap_or_default();
    if state.running.is_some() {
        return State::Running;
    }
    if let Some(t) = state.terminated {
        return State::Terminated(t.exit_code);
    }
    match s.last_state.as_ref().and_then(|l| l.terminated.as_ref()) {
        Some(t) => State::Restarting(t.exit_code),
        None => State::Waiting,
    }
}

fn has_run(s: &ContainerStatus) -> bool {
    !matches!(kind(s), State::Waiting)
}

fn find<'a>(all: &'a [ContainerStatus], name: &str) -> Option<&'a ContainerStatus> {
    all.iter().find(|s| s.name == name)
}

/// How often the API says that a container was started anew; used when the runtime has forgotten it.
pub fn known_restarts(pod: &Pod, name: &str) -> u32 {
    let Some(status) = &pod.status else { return 0 };
    let all = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .flatten();
    let Some(s) = all.into_iter().find(|s| s.name == name) else {
        return 0;
    };
    let ran = s
        .state
        .as_ref()
        .is_some_and(|st| st.running.is_some() || st.terminated.is_some());
    u32::try_from(s.restart_count).unwrap_or(0) + u32::from(ran)
}

/// Whether a running container counts as started: its startup probe has succeeded, or it has none.
pub fn is_started(o: &Observed, container: &Container, view: Option<&ContainerView>) -> bool {
    let Some(c) = view.filter(|c| c.state == RunState::Running) else {
        return false;
    };
    if plan::is_starting(o.memory, &container.name) {
        return false;
    }
    match o.memory.probes.get(&c.id) {
        Some(p) => p.started,
        None => container.startup_probe.is_none(),
    }
}

fn is_ready(o: &Observed, container: &Container, view: Option<&ContainerView>) -> bool {
    let Some(c) = view.filter(|c| c.state == RunState::Running) else {
        return false;
    };
    is_started(o, container, view)
        && match o.memory.probes.get(&c.id) {
            Some(p) => p.ready,
            None => container.readiness_probe.is_none(),
        }
}

fn statuses(
    o: &Observed,
    node: &NodeFacts,
    containers: &[Container],
    old: Option<&[ContainerStatus]>,
) -> Vec<ContainerStatus> {
    containers
        .iter()
        .map(|c| {
            let before = old.unwrap_or_default().iter().find(|s| s.name == c.name);
            container_status(o, node, c, before)
        })
        .collect()
}

/// Debug containers are never ready: nothing waits for them.
fn ephemeral_statuses(
    o: &Observed,
    node: &NodeFacts,
    old: Option<&[ContainerStatus]>,
) -> Vec<ContainerStatus> {
    let containers = model::ephemeral_containers(o.pod).iter();
    let containers: Vec<Container> = containers.map(model::from_ephemeral).collect();
    let mut all = statuses(o, node, &containers, old);
    for s in &mut all {
        s.ready = false;
        s.started = None;
    }
    all
}

fn container_status(
    o: &Observed,
    node: &NodeFacts,
    container: &Container,
    old: Option<&ContainerStatus>,
) -> ContainerStatus {
    let view = o.view.latest(&container.name);
    let regular_init = model::init_containers(o.pod)
        .iter()
        .any(|i| i.name == container.name && !model::is_sidecar(i));
    let mut s = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        started: Some(is_started(o, container, view)),
        ready: is_ready(o, container, view),
        volume_mounts: volume_mounts(container),
        ..Default::default()
    };
    match view {
        Some(c) => {
            s.resources = Some(resize::shown(o, container, c, old));
            from_view(o, node, container, c, &mut s);
        }
        None => from_history(o, old, &mut s),
    }
    if let Some(old_last) = old.and_then(|old| old.last_state.clone())
        && s.last_state.is_none()
        && s.restart_count > 0
    {
        s.last_state = Some(old_last);
    }
    if regular_init {
        s.ready = s
            .state
            .as_ref()
            .and_then(|st| st.terminated.as_ref())
            .is_some_and(|t| t.exit_code == 0);
    }
    s
}

/// The state when the runtime knows the container.
fn from_view(
    o: &Observed,
    node: &NodeFacts,
    container: &Container,
    c: &ContainerView,
    s: &mut ContainerStatus,
) {
    s.restart_count = i32::try_from(c.attempt).unwrap_or(i32::MAX);
    s.image_id = c.image_ref.clone();
    s.container_id = Some(format!("{}://{}", node.runtime, c.id));
    if !c.image.is_empty() && !c.image.starts_with("sha256:") {
        s.image = c.image.clone();
    }
    s.allocated_resources = container
        .resources
        .as_ref()
        .and_then(|r| r.requests.clone());
    let previous = o
        .view
        .previous(&container.name)
        .filter(|p| p.state == RunState::Exited);
    s.last_state = previous.map(|p| terminated(node, p));
    let active = o.pod.metadata.deletion_timestamp.is_none()
        && !model::is_finished(o.pod)
        && !o.memory.preempted
        && !deadline_exceeded(o);
    let failure = o.memory.failures.get(&container.name).filter(|_| active);
    s.state = Some(match c.state {
        RunState::Running | RunState::Unknown => ContainerState {
            running: Some(ContainerStateRunning {
                started_at: model::time_of_nanos(c.started_at),
            }),
            ..Default::default()
        },
        RunState::Created => waiting(
            failure.map_or("ContainerCreating", |f| f.reason),
            failure.map(|f| f.message.clone()),
        ),
        RunState::Exited => {
            let wait = o.memory.crash_wait(
                &container.name,
                model::timestamp_of_nanos(c.finished_at),
                o.now,
            );
            let again = active && restarts(o, container, c);
            match (failure, wait) {
                (Some(f), _) if again => {
                    s.last_state = Some(terminated(node, c));
                    failed_start(f, o.now)
                }
                (None, Some(_)) if again => {
                    s.last_state = Some(terminated(node, c));
                    crash_loop(o, container)
                }
                _ => terminated(node, c),
            }
        }
    });
}

fn restarts(o: &Observed, container: &Container, c: &ContainerView) -> bool {
    let init = model::init_containers(o.pod)
        .iter()
        .any(|i| i.name == container.name);
    if init && !model::is_sidecar(container) && c.exit_code == 0 {
        return false;
    }
    plan::will_restart(o, container, c.exit_code)
}

fn crash_loop(o: &Observed, container: &Container) -> ContainerState {
    let delay = o
        .memory
        .crashes
        .get(&container.name)
        .map_or(0, |b| b.delay.as_secs());
    waiting(
        "CrashLoopBackOff",
        Some(crash_message(o.pod, &container.name, delay)),
    )
}

pub fn crash_message(pod: &Pod, container: &str, delay: i64) -> String {
    let delay = if delay < 60 {
        format!("{delay}s")
    } else {
        format!("{}m{}s", delay / 60, delay % 60)
    };
    format!(
        "back-off {delay} restarting failed container={container} pod={}_{}({})",
        model::name(pod),
        model::namespace(pod),
        model::uid(pod)
    )
}

/// The state when the runtime has no such container: not yet made, or lost.
fn from_history(o: &Observed, old: Option<&ContainerStatus>, s: &mut ContainerStatus) {
    let has_init = !model::init_containers(o.pod).is_empty();
    let default = if has_init {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    s.state = Some(match o.memory.failures.get(&s.name) {
        Some(f) => failed_start(f, o.now),
        None => waiting(default, None),
    });
    let Some(old) = old else { return };
    s.restart_count = old.restart_count;
    s.last_state = old.last_state.clone();
    let state = old.state.clone().unwrap_or_default();
    if state.terminated.is_some() {
        *s = ContainerStatus {
            started: Some(false),
            ready: s.ready,
            ..old.clone()
        };
    } else if state.running.is_some() {
        // It ran, and nobody saw it end: still an end, or the pod would fall back to Pending.
        s.last_state = Some(lost(
            "The container could not be located when the pod was deleted.  The container used to be Running",
        ));
        s.restart_count += i32::from(o.pod.metadata.deletion_timestamp.is_none());
    }
}

fn failed_start(f: &StartFailure, now: Timestamp) -> ContainerState {
    match f.shown_as_backoff(now) {
        true => waiting("ImagePullBackOff", Some(f.message.clone())),
        false => waiting(f.reason, Some(f.message.clone())),
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    let waiting = ContainerStateWaiting {
        reason: Some(reason.to_string()),
        message,
    };
    ContainerState {
        waiting: Some(waiting),
        ..Default::default()
    }
}

fn lost(message: &str) -> ContainerState {
    let end = ContainerStateTerminated {
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".into()),
        message: Some(message.into()),
        ..Default::default()
    };
    ContainerState {
        terminated: Some(end),
        ..Default::default()
    }
}

fn terminated(node: &NodeFacts, c: &ContainerView) -> ContainerState {
    let reason = match (c.reason.as_str(), c.exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    let end = ContainerStateTerminated {
        exit_code: c.exit_code,
        reason: Some(reason.to_string()),
        message: (!c.message.is_empty()).then(|| c.message.clone()),
        started_at: model::time_of_nanos(c.started_at),
        finished_at: model::time_of_nanos(c.finished_at),
        container_id: Some(format!("{}://{}", node.runtime, c.id)),
        signal: None,
    };
    ContainerState {
        terminated: Some(end),
        ..Default::default()
    }
}

/// A deleted pod's last status shows every container as ended.
fn close(all: &mut [ContainerStatus]) {
    for s in all {
        s.ready = s.ready && matches!(kind(s), State::Terminated(0));
        s.started = Some(false);
        if s.state.as_ref().is_none_or(|st| st.terminated.is_none()) {
            s.state = Some(lost(
                "The container could not be located when the pod was terminated",
            ));
        }
    }
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref().filter(|m| !m.is_empty())?;
    let status = |m: &k8s_openapi::api::core::v1::VolumeMount| VolumeMountStatus {
        name: m.name.clone(),
        mount_path: m.mount_path.clone(),
        read_only: m.read_only.filter(|ro| *ro),
        recursive_read_only: (m.read_only == Some(true)).then(|| "Disabled".to_string()),
        ..Default::default()
    };
    Some(mounts.iter().map(status).collect())
}

fn conditions(
    o: &Observed,
    old: &PodStatus,
    phase: &str,
    inits: &[ContainerStatus],
    mains: &[ContainerStatus],
) -> Vec<PodCondition> {
    let sandbox_up = o
        .view
        .live_sandbox()
        .is_some_and(|s| !s.ips.is_empty() || model::is_host_network(o.pod));
    let containers = containers_ready(o.pod, phase, inits, mains);
    let ready = pod_ready(o.pod, old, &containers);
    let computed = [
        ("PodReadyToStartContainers", (sandbox_up, "", String::new())),
        ("Initialized", pod_initialized(o.pod, phase, inits, mains)),
        ("Ready", ready),
        ("ContainersReady", containers),
        ("PodScheduled", (true, "", String::new())),
    ];
    let before = old.conditions.as_deref().unwrap_or_default();
    let pending = o.resize_pending.map(|p| (p.reason, p.message.clone()));
    let resize = [(PENDING, pending), (IN_PROGRESS, resize::in_progress(o))];
    let resize = resize.into_iter().filter_map(|(type_, found)| {
        found.map(|(reason, message)| (type_, (true, reason, message)))
    });
    let preempted = o.memory.preempted.then(|| {
        let message = "Pod was preempted by Kubelet to accommodate a critical pod.";
        let verdict = (true, "TerminationByKubelet", message.to_owned());
        ("DisruptionTarget", verdict)
    });
    let ours: Vec<PodCondition> = computed
        .into_iter()
        .chain(resize)
        .chain(preempted)
        .map(|(type_, (ok, reason, message))| condition(o, before, type_, ok, reason, message))
        .collect();
    let foreign = before
        .iter()
        .filter(|c| !ours.iter().any(|n| n.type_ == c.type_))
        .filter(|c| ![PENDING, IN_PROGRESS].contains(&c.type_.as_str()))
        .cloned();
    ours.iter().cloned().chain(foreign).collect()
}

/// Conditions that are there only while they hold.
const PENDING: &str = "PodResizePending";
const IN_PROGRESS: &str = "PodResizeInProgress";

fn condition(
    o: &Observed,
    before: &[PodCondition],
    type_: &str,
    ok: bool,
    reason: &str,
    message: String,
) -> PodCondition {
    let status = if ok { "True" } else { "False" };
    let same = before
        .iter()
        .find(|c| c.type_ == type_ && c.status == status);
    PodCondition {
        type_: type_.to_string(),
        status: status.to_string(),
        reason: (!reason.is_empty()).then(|| reason.to_string()),
        message: (!message.is_empty()).then_some(message),
        last_transition_time: same
            .and_then(|c| c.last_transition_time.clone())
            .or_else(|| Some(model::seconds(o.now))),
        observed_generation: o.pod.metadata.generation,
        last_probe_time: None,
    }
}

type Verdict = (bool, &'static str, String);

fn containers_ready(
    pod: &Pod,
    phase: &str,
    inits: &[ContainerStatus],
    mains: &[ContainerStatus],
) -> Verdict {
    match phase {
        "Succeeded" => return (false, "PodCompleted", String::new()),
        "Failed" => return (false, "PodFailed", String::new()),
        _ => {}
    }
    let sidecars = model::init_containers(pod)
        .iter()
        .filter(|c| model::is_sidecar(c))
        .filter_map(|c| find(inits, &c.name));
    let unready: Vec<&str> = sidecars
        .chain(mains)
        .filter(|s| !s.ready)
        .map(|s| s.name.as_str())
        .collect();
    if unready.is_empty() {
        return (true, "", String::new());
    }
    (
        false,
        "ContainersNotReady",
        format!("containers with unready status: [{}]", unready.join(" ")),
    )
}

fn pod_ready(pod: &Pod, old: &PodStatus, containers: &Verdict) -> Verdict {
    if !containers.0 {
        return containers.clone();
    }
    let mut messages = Vec::new();
    for gate in model::spec(pod).readiness_gates.iter().flatten() {
        let type_ = &gate.condition_type;
        match old.conditions.iter().flatten().find(|c| &c.type_ == type_) {
            Some(c) if c.status == "True" => {}
            Some(c) => messages.push(format!(
                "the status of pod readiness gate \"{type_}\" is not \"True\", but {}",
                c.status
            )),
            None => messages.push(format!(
                "corresponding condition of pod readiness gate \"{type_}\" does not exist."
            )),
        }
    }
    match messages.is_empty() {
        true => (true, "", String::new()),
        false => (false, "ReadinessGatesNotReady", messages.join(", ")),
    }
}

fn pod_initialized(
    pod: &Pod,
    phase: &str,
    inits: &[ContainerStatus],
    mains: &[ContainerStatus],
) -> Verdict {
    if phase == "Succeeded" {
        return (true, "PodCompleted", String::new());
    }
    if mains.iter().any(|s| has_run(s) || s.started == Some(true)) {
        return (true, "", String::new());
    }
    let incomplete: Vec<&str> = model::init_containers(pod)
        .iter()
        .filter(|c| {
            find(inits, &c.name).is_none_or(|s| {
                if model::is_sidecar(c) {
                    s.started != Some(true)
                } else {
                    !s.ready
                }
            })
        })
        .map(|c| c.name.as_str())
        .collect();
    if incomplete.is_empty() {
        return (true, "", String::new());
    }
    (
        false,
        "ContainersNotInitialized",
        format!(
            "containers with incomplete status: [{}]",
            incomplete.join(" ")
        ),
    )
}
