//! What a pod looks like from the runtime's side, in the few words that the plan
//! needs. The view is rebuilt from CRI on every pass, so it survives a kubelet
//! restart: everything that must be remembered about a container rides on the
//! labels and annotations that the kubelet gave it.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Labels and annotations that Kubernetes puts on sandboxes and containers.
pub mod keys {
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    pub const HASH: &str = "io.kubernetes.container.hash";
    pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    pub const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    pub const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct SandboxView {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub created_at: i64,
    pub ips: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunState {
    Created,
    Running,
    Exited,
    #[default]
    Unknown,
}

/// What the kernel holds a container to: cpu shares, cpu quota per 100 ms in microseconds, bytes of memory; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub shares: i64,
    pub quota: i64,
    pub memory: i64,
}

/// One container as CRI reports it; times are nanoseconds since the epoch, 0 for never.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerView {
    pub id: String,
    pub sandbox: String,
    pub name: String,
    pub attempt: u32,
    pub state: RunState,
    pub created_at: i64,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub image: String,
    pub image_ref: String,
    pub log_path: String,
    /// If the runtime tells.
    pub limits: Option<Limits>,
}

/// Everything that the runtime holds for one pod, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodView {
    pub sandboxes: Vec<SandboxView>,
    pub containers: Vec<ContainerView>,
}

impl PodView {
    pub fn sort(&mut self) {
        self.sandboxes
            .sort_by_key(|s| std::cmp::Reverse((s.created_at, s.attempt)));
        self.containers
            .sort_by_key(|c| std::cmp::Reverse((c.created_at, c.attempt)));
    }

    /// The sandbox that new containers go into: the newest, if it still runs.
    pub fn live_sandbox(&self) -> Option<&SandboxView> {
        self.sandboxes.first().filter(|s| s.ready)
    }

    pub fn latest(&self, name: &str) -> Option<&ContainerView> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// Older instances of the same container, newest first.
    pub fn previous(&self, name: &str) -> Option<&ContainerView> {
        self.containers.iter().filter(|c| c.name == name).nth(1)
    }

    /// As [`latest`](Self::latest), but only within the live sandbox: a new sandbox starts
    /// from the initial state, whatever ran in the one before.
    pub fn current(&self, name: &str) -> Option<&ContainerView> {
        let sandbox = self.live_sandbox()?;
        self.containers
            .iter()
            .find(|c| c.name == name && c.sandbox == sandbox.id)
    }

    pub fn alive(&self) -> impl Iterator<Item = &ContainerView> {
        self.containers
            .iter()
            .filter(|c| matches!(c.state, RunState::Running | RunState::Unknown))
    }
}

pub fn sandbox_view(s: &cri::PodSandbox) -> SandboxView {
    SandboxView {
        id: s.id.clone(),
        attempt: s.metadata.as_ref().map_or(0, |m| m.attempt),
        ready: s.state == cri::PodSandboxState::SandboxReady as i32,
        created_at: s.created_at,
        ips: Vec::new(),
    }
}

/// Addresses from a sandbox's status, the primary one first.
pub fn sandbox_ips(status: &cri::PodSandboxStatus) -> Vec<String> {
    let Some(network) = &status.network else {
        return Vec::new();
    };
    std::iter::once(&network.ip)
        .chain(network.additional_ips.iter().map(|ip| &ip.ip))
        .filter(|ip| !ip.is_empty())
        .cloned()
        .collect()
}

pub fn run_state(state: i32) -> RunState {
    match cri::ContainerState::try_from(state) {
        Ok(cri::ContainerState::ContainerCreated) => RunState::Created,
        Ok(cri::ContainerState::ContainerRunning) => RunState::Running,
        Ok(cri::ContainerState::ContainerExited) => RunState::Exited,
        _ => RunState::Unknown,
    }
}

pub fn container_view(sandbox: &str, s: &cri::ContainerStatus) -> ContainerView {
    let restarts = s
        .annotations
        .get(keys::RESTART_COUNT)
        .and_then(|v| v.parse().ok());
    ContainerView {
        id: s.id.clone(),
        sandbox: sandbox.to_string(),
        name: label(&s.labels, keys::CONTAINER_NAME),
        attempt: restarts.unwrap_or_else(|| s.metadata.as_ref().map_or(0, |m| m.attempt)),
        state: run_state(s.state),
        created_at: s.created_at,
        started_at: s.started_at,
        finished_at: s.finished_at,
        exit_code: s.exit_code,
        reason: s.reason.clone(),
        message: s.message.clone(),
        image: s
            .image
            .as_ref()
            .map(|i| i.image.clone())
            .unwrap_or_default(),
        image_ref: s.image_ref.clone(),
        log_path: s.log_path.clone(),
        limits: s
            .resources
            .as_ref()
            .and_then(|r| r.linux.as_ref())
            .map(limits),
    }
}

fn limits(r: &cri::LinuxContainerResources) -> Limits {
    Limits {
        shares: r.cpu_shares,
        quota: r.cpu_quota.max(0),
        memory: r.memory_limit_in_bytes.max(0),
    }
}

pub fn label(labels: &HashMap<String, String>, key: &str) -> String {
    labels.get(key).cloned().unwrap_or_default()
}

/// Whole seconds, as Kubernetes stores times.
pub fn time_of_nanos(nanos: i64) -> Option<Time> {
    if nanos <= 0 {
        return None;
    }
    Timestamp::from_second(nanos / 1_000_000_000).ok().map(Time)
}

pub fn seconds(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

pub fn timestamp_of_nanos(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(nanos as i128).unwrap_or(Timestamp::UNIX_EPOCH)
}

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

static NO_SPEC: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);

/// The spec, or an empty one: the API server never hands out a pod without.
pub fn spec(pod: &Pod) -> &PodSpec {
    pod.spec.as_ref().unwrap_or(&NO_SPEC)
}

pub fn init_containers(pod: &Pod) -> &[Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}

/// An init container that keeps running beside the pod's own containers.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// A debug container as any other; what it must not have (probes, hooks, ports) it has not.
pub fn from_ephemeral(e: &EphemeralContainer) -> Container {
    let e = e.clone();
    Container {
        name: e.name,
        image: e.image,
        command: e.command,
        args: e.args,
        working_dir: e.working_dir,
        env: e.env,
        env_from: e.env_from,
        resources: e.resources,
        volume_mounts: e.volume_mounts,
        volume_devices: e.volume_devices,
        image_pull_policy: e.image_pull_policy,
        security_context: e.security_context,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        tty: e.tty,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        ..Container::default()
    }
}

pub fn ephemeral_containers(pod: &Pod) -> &[EphemeralContainer] {
    spec(pod)
        .ephemeral_containers
        .as_deref()
        .unwrap_or_default()
}

/// As [`find_container`], debug containers included.
pub fn any_container(pod: &Pod, name: &str) -> Option<Container> {
    let ephemeral = || ephemeral_containers(pod).iter().find(|e| e.name == name);
    find_container(pod, name)
        .cloned()
        .or_else(|| ephemeral().map(from_ephemeral))
}

pub fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    init_containers(pod)
        .iter()
        .chain(&spec(pod).containers)
        .find(|c| c.name == name)
}

pub fn is_host_network(pod: &Pod) -> bool {
    spec(pod).host_network == Some(true)
}

/// Whether the API already says that the pod is done; a phase never goes back from there.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), Some("Succeeded" | "Failed"))
}

pub fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}
