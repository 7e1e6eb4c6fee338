//! The thin shell around a pod's plan: look, plan, act, wait for something to happen.
//! Operations run beside the loop, so that a pod can be deleted while an image is being
//! pulled; each of them ends in an [`Outcome`], which makes the loop look again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::CancellationToken;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use super::admission::Rejection;
use super::memory::{Backoff, Memory, Setup as SetupKind, StartFailure};
use super::plan::{self, Action, KillReason, Observed, Stage};
use super::{ops, publish, resize, status};
use crate::container::files::VolumePaths;
use crate::context::{Node, Report};
use crate::cri::ViewCache;
use crate::images::Failure;
use crate::model::{self, Limits, PodView, RunState};
use crate::probes::{self, Kind, Probes};
use crate::volumes::{self, projected};

/// What wakes a worker.
#[derive(Debug)]
pub enum Message {
    Pod(Arc<Pod>),
    /// The API has the pod no more.
    Gone,
    Exited(String),
    Probed {
        id: String,
        kind: Kind,
        ok: bool,
    },
    /// An object that a volume shows has changed.
    Refresh,
    /// Something may have been missed, or the node's state has changed.
    Look,
    /// The pod has to end for another, which starts when the sender is dropped.
    Preempt(UnboundedSender<()>),
}

/// How an operation ended.
#[derive(Debug)]
pub enum Outcome {
    Volumes(volumes::Setup, Result<(), String>),
    Refreshed(volumes::Setup, Result<(), String>),
    Sandbox(Result<(), String>),
    Started {
        name: String,
        result: Result<(), Failure>,
    },
    Killed {
        id: String,
    },
    SandboxStopped {
        id: String,
        result: Result<(), String>,
    },
    Removed(Result<(), String>),
    Resized(Result<BTreeMap<String, Limits>, String>),
    Cleaned {
        keep_logs: bool,
        result: Result<(), String>,
    },
    Published(Result<Option<Box<Pod>>, kube::Error>),
    Deleted(Result<(), kube::Error>),
}

pub struct Worker {
    node: Arc<Node>,
    pod: Arc<Pod>,
    /// The pod with the resources that this node grants it.
    granted: Arc<Pod>,
    gone: bool,
    view: PodView,
    cache: ViewCache,
    stale: bool,
    memory: Memory,
    volumes: Arc<VolumePaths>,
    refresh_at: Option<Timestamp>,
    refreshing: bool,
    /// Something has changed since the refresh under way began.
    refresh_again: bool,
    publishing: bool,
    publish_failure: Option<Backoff>,
    /// The last status patch that was sent.
    published: Option<serde_json::Value>,
    ops: JoinSet<Outcome>,
    cancel: CancellationToken,
    probes: HashMap<String, Probes>,
    /// Exits that were announced but do not show yet, with the time to stop waiting for them.
    expected: HashMap<String, Instant>,
    /// Dropped when this pod has ended: others wait for that.
    preemptors: Vec<UnboundedSender<()>>,
    inbox: UnboundedReceiver<Message>,
    handle: UnboundedSender<Message>,
}

/// Where a worker finds its pod.
#[derive(Debug)]
pub enum Beginning {
    Admitted,
    /// As soon as the pods have ended that were preempted for it, and after this time in any case.
    After(UnboundedReceiver<()>, Duration),
    Rejected(Rejection),
    /// Only the runtime still knows the pod.
    Gone,
}

/// Starts a worker; it ends by itself when nothing of the pod is left.
pub fn spawn(
    node: Arc<Node>,
    pod: Arc<Pod>,
    beginning: Beginning,
) -> (UnboundedSender<Message>, tokio::task::JoinHandle<()>) {
    let gone = matches!(beginning, Beginning::Gone);
    let (rejection, room) = match beginning {
        Beginning::Rejected(rejection) => (Some(rejection), None),
        Beginning::After(ended, limit) => (None, Some((ended, limit))),
        Beginning::Admitted | Beginning::Gone => (None, None),
    };
    let (handle, inbox) = unbounded_channel();
    let worker = Worker {
        node,
        granted: pod.clone(),
        pod,
        gone,
        view: PodView::default(),
        cache: ViewCache::default(),
        stale: true,
        memory: Memory {
            rejection,
            ..Memory::default()
        },
        volumes: Arc::default(),
        refresh_at: None,
        refreshing: false,
        refresh_again: false,
        publishing: false,
        publish_failure: None,
        published: None,
        ops: JoinSet::new(),
        cancel: CancellationToken::new(),
        probes: HashMap::new(),
        expected: HashMap::new(),
        preemptors: Vec::new(),
        inbox,
        handle: handle.clone(),
    };
    let task = async move {
        if let Some((mut ended, limit)) = room {
            // Nothing is ever sent: the end of the channel is the news. A pod that does not end is waited for no longer.
            let _ = tokio::time::timeout(limit, ended.recv()).await;
        }
        worker.run().await;
    };
    (handle, tokio::spawn(task))
}

impl Worker {
    async fn run(mut self) {
        loop {
            let blind = self.stale && !self.look().await;
            let wake = if blind {
                Some(Timestamp::now() + SignedDuration::from_millis(500))
            } else {
                self.follow_probes();
                match self.pass() {
                    Some(wake) => wake,
                    None => break,
                }
            };
            self.wait(wake).await;
        }
        self.node
            .routes
            .lock()
            .set(&self.handle, std::iter::empty());
        self.node
            .objects
            .follow(model::uid(&self.pod), &HashSet::new());
    }

    /// Reads the runtime's view; false if the runtime does not answer.
    async fn look(&mut self) -> bool {
        let uid = model::uid(&self.pod).to_string();
        match self.node.runtime.pod_view(&uid, &mut self.cache).await {
            Ok(view) => self.view = view,
            Err(error) => {
                tracing::debug!(pod = model::name(&self.pod), %error, "the runtime does not answer");
                return false;
            }
        }
        self.stale = false;
        let ids = self
            .view
            .sandboxes
            .iter()
            .map(|s| &s.id)
            .chain(self.view.containers.iter().map(|c| &c.id));
        let early = self.node.routes.lock().set(&self.handle, ids);
        let until = Instant::now() + Duration::from_secs(2);
        self.expected
            .extend(early.into_iter().map(|id| (id, until)));
        let view = &self.view;
        let still = |id: &str| {
            view.containers
                .iter()
                .any(|c| c.id == id && c.state == RunState::Running)
                || view.sandboxes.iter().any(|s| s.id == id && s.ready)
        };
        self.expected
            .retain(|id, until| still(id) && Instant::now() < *until);
        self.memory.killing.retain(|id, _| {
            view.containers
                .iter()
                .any(|c| &c.id == id && c.state != RunState::Exited)
        });
        self.memory
            .resized
            .retain(|id, _| view.containers.iter().any(|c| &c.id == id));
        self.memory
            .resize_restarts
            .retain(|id| view.containers.iter().any(|c| &c.id == id));
        self.memory
            .stopped
            .retain(|id| view.sandboxes.iter().any(|s| &s.id == id));
        self.memory
            .reported
            .retain(|key| key.len() < 64 || view.containers.iter().any(|c| &c.id == key));
        true
    }

    /// Plans and acts; the next due time, or `None` at the end of the pod's life.
    fn pass(&mut self) -> Option<Option<Timestamp>> {
        let now = Timestamp::now();
        let pending = self.grant();
        let (pod, memory, view) = (
            self.granted.clone(),
            self.memory.clone(),
            std::mem::take(&mut self.view),
        );
        let observed = Observed {
            pod: &pod,
            gone: self.gone,
            view: &view,
            memory: &memory,
            now,
            network_ready: self.node.network_ready(),
            resize_pending: pending.as_ref(),
        };
        let actions = plan::plan(&observed);
        let stage = plan::stage(&observed);
        let status =
            (stage != Stage::Gone).then(|| status::pod_status(&observed, &self.node.facts));
        self.view = view;
        let mut wake: Option<Timestamp> = None;
        let mut due = |at: Timestamp| wake = Some(wake.map_or(at, |w| w.min(at)));
        if let Some(status) = status {
            // Before it is told: the scheduler gives away at once what an ended pod held.
            if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
                self.node.allocations.lock().release(model::uid(&self.pod));
                self.preemptors.clear();
            }
            self.publish(status, now).into_iter().for_each(&mut due);
        }
        for action in actions {
            tracing::debug!(pod = model::name(&self.pod), ?action, "act");
            match action {
                Action::WakeAt(at) if at > now => due(at),
                Action::WakeAt(_) => {}
                Action::Forget => return None,
                action => self.act(action, now),
            }
        }
        if let Some(at) = self.refresh_at.filter(|_| stage == Stage::Active) {
            if at <= now { self.refresh() } else { due(at) }
        }
        if !self.expected.is_empty() {
            self.stale = true;
            due(now + SignedDuration::from_millis(5));
        }
        Some(wake)
    }

    /// Decides on the resources that the pod asks for.
    fn grant(&mut self) -> Option<resize::Pending> {
        let (granted, pending) = self.node.allocations.lock().grant(&self.pod);
        self.granted = granted;
        pending
    }

    async fn wait(&mut self, wake: Option<Timestamp>) {
        let pause = wake
            .map(|at| Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default());
        tokio::select! {
            message = self.inbox.recv() => if let Some(message) = message { self.hear(message) },
            Some(done) = self.ops.join_next() => match done {
                Ok(outcome) => self.finish(outcome),
                Err(error) => tracing::error!(pod = model::name(&self.pod), %error, "an operation broke off"),
            },
            () = async { match pause { Some(p) => tokio::time::sleep(p).await, None => std::future::pending().await } } => {}
        }
        while let Ok(message) = self.inbox.try_recv() {
            self.hear(message);
        }
        while let Some(Ok(outcome)) = self.ops.try_join_next() {
            self.finish(outcome);
        }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Pod(pod) => self.adopt(pod),
            Message::Gone => self.gone = true,
            Message::Look => self.stale = true,
            Message::Preempt(ended) => {
                self.memory.preempted = true;
                self.preemptors.push(ended);
            }
            Message::Refresh if !self.memory.volumes_ready => self.memory.setup_failure = None,
            Message::Refresh => self.refresh(),
            Message::Exited(id) => {
                self.stale = true;
                self.expected
                    .insert(id, Instant::now() + Duration::from_secs(2));
            }
            Message::Probed { id, kind, ok } => {
                if let Some(state) = self.memory.probes.get_mut(&id) {
                    match kind {
                        Kind::Startup if ok => state.started = true,
                        Kind::Startup => state.startup_failed = true,
                        Kind::Liveness => state.liveness_failed = !ok,
                        Kind::Readiness => state.ready = ok,
                    }
                }
            }
        }
    }

    /// Takes a newer version of the pod; an answer to a patch may be older than what the watch has brought.
    fn adopt(&mut self, pod: Arc<Pod>) {
        let version = |p: &Pod| {
            p.metadata
                .resource_version
                .as_deref()
                .and_then(|v| v.parse::<u64>().ok())
        };
        if version(&pod) >= version(&self.pod) {
            self.node
                .pods
                .lock()
                .insert(model::uid(&pod).to_string(), pod.clone());
            let refresh = projected::shows_change(&pod, &self.pod);
            self.pod = pod;
            if refresh {
                self.refresh();
            }
        }
    }

    fn act(&mut self, action: Action, now: Timestamp) {
        let (node, pod) = (self.node.clone(), self.granted.clone());
        match action {
            Action::MountVolumes => {
                self.memory.setup = Some(SetupKind::Volumes);
                let facts = node.field_facts(&self.pod_ips());
                self.ops.spawn(async move {
                    let (setup, result) = volumes::set_up(&node, &pod, &facts).await;
                    Outcome::Volumes(setup, result)
                });
            }
            Action::CreateSandbox { attempt } => {
                self.memory.setup = Some(SetupKind::Sandbox);
                self.ops.spawn(async move {
                    Outcome::Sandbox(ops::create_sandbox(&node, &pod, attempt).await)
                });
            }
            Action::Start {
                name,
                attempt,
                restart_of,
            } => self.start(name, attempt, restart_of),
            Action::Resize { updates } => {
                self.memory.resizing = true;
                self.ops.spawn(
                    async move { Outcome::Resized(ops::resize(&node, &pod, updates).await) },
                );
            }
            Action::CancelSetup => self.cancel.cancel(),
            Action::Kill {
                id,
                name,
                grace,
                reason,
                message,
            } => {
                self.memory
                    .killing
                    .insert(id.clone(), now + SignedDuration::from_secs(grace));
                Report::container(&node, &pod, &name).normal("Killing", &message);
                if reason == KillReason::Resize {
                    self.memory.resize_restarts.insert(id.clone());
                }
                let ips = self.pod_ips();
                let hook = reason != KillReason::SandboxChanged;
                self.ops.spawn(async move {
                    ops::kill(&node, &pod, &name, id, grace, &ips, hook).await
                });
            }
            Action::StopSandbox { id } => {
                self.memory.teardown = true;
                self.ops.spawn(async move {
                    let result = node
                        .runtime
                        .stop_sandbox(&id)
                        .await
                        .map_err(|e| e.message().to_string());
                    Outcome::SandboxStopped { id, result }
                });
            }
            Action::RemoveSandbox { id } => {
                self.memory.teardown = true;
                self.ops.spawn(async move {
                    Outcome::Removed(
                        node.runtime
                            .remove_sandbox(&id)
                            .await
                            .map_err(|e| e.message().to_string()),
                    )
                });
            }
            Action::RemoveContainer { id } => {
                self.memory.teardown = true;
                self.ops.spawn(async move {
                    Outcome::Removed(
                        node.runtime
                            .remove_container(&id)
                            .await
                            .map_err(|e| e.message().to_string()),
                    )
                });
            }
            Action::CleanUp { keep_logs } => {
                self.memory.teardown = true;
                node.objects.follow(model::uid(&pod), &HashSet::new());
                node.tokens
                    .lock()
                    .retain(|key, _| key.0 != model::uid(&pod));
                self.ops.spawn(async move {
                    Outcome::Cleaned {
                        keep_logs,
                        result: ops::clean_up(node, pod, keep_logs).await,
                    }
                });
            }
            Action::DeleteFromApi => {
                self.memory.teardown = true;
                self.ops
                    .spawn(async move { Outcome::Deleted(publish::delete(&node, &pod).await) });
            }
            Action::ReportBackoff { name, key, image } => {
                let report = Report::container(&node, &pod, &name);
                if image {
                    let failure = self.memory.failures.get(&name);
                    let image = failure.map(|f| f.image.as_str()).unwrap_or_default();
                    report.normal("BackOff", &format!("Back-off pulling image \"{image}\""));
                    report.warning("Failed", "Error: ImagePullBackOff");
                } else {
                    let at = format!(
                        "{}_{}({})",
                        model::name(&pod),
                        model::namespace(&pod),
                        model::uid(&pod)
                    );
                    report.warning(
                        "BackOff",
                        &format!("Back-off restarting failed container {name} in pod {at}"),
                    );
                }
                self.memory.reported.insert(key);
            }
            Action::WakeAt(_) | Action::Forget => {}
        }
    }

    fn start(&mut self, name: String, attempt: u32, restart_of: Option<Timestamp>) {
        let (Some(sandbox), Some(container)) = (
            self.view.live_sandbox().cloned(),
            model::any_container(&self.granted, &name),
        ) else {
            return;
        };
        let target = model::ephemeral_containers(&self.pod)
            .iter()
            .find(|e| e.name == name)
            .and_then(|e| e.target_container_name.clone())
            .map(|target| {
                self.view
                    .latest(&target)
                    .map(|c| c.id.clone())
                    .ok_or(target)
            });
        if let Some(finished) = restart_of {
            self.memory.note_restart(&name, finished);
        }
        self.memory.setup = Some(SetupKind::Start(name.clone()));
        self.cancel = CancellationToken::new();
        let leftover = self
            .view
            .latest(&name)
            .filter(|c| c.state == RunState::Created)
            .map(|c| c.id.clone());
        let (node, pod, volumes, cancel) = (
            self.node.clone(),
            self.granted.clone(),
            self.volumes.clone(),
            self.cancel.clone(),
        );
        self.ops.spawn(async move {
            let start = super::start::Start {
                node: &node,
                pod: &pod,
                container: &container,
                attempt,
                sandbox: &sandbox,
                volumes: &volumes,
                leftover,
                target,
            };
            let cancelled = || Failure {
                reason: "Cancelled",
                ..Failure::default()
            };
            let result = tokio::select! {
                result = super::start::run(start) => result,
                () = cancel.cancelled() => Err(cancelled()),
            };
            Outcome::Started { name, result }
        });
    }

    fn refresh(&mut self) {
        if self.refreshing || self.memory.setup == Some(SetupKind::Volumes) {
            self.refresh_again = true;
            return;
        }
        if !self.memory.volumes_ready || self.memory.cleaned {
            return;
        }
        self.refreshing = true;
        self.refresh_at = None;
        let (node, pod, facts) = (
            self.node.clone(),
            self.pod.clone(),
            self.node.field_facts(&self.pod_ips()),
        );
        self.ops.spawn(async move {
            let (setup, result) = volumes::set_up(&node, &pod, &facts).await;
            Outcome::Refreshed(setup, result)
        });
    }

    fn pod_ips(&self) -> Vec<String> {
        match model::is_host_network(&self.pod) {
            true => self.node.facts.ips.clone(),
            false => self
                .view
                .live_sandbox()
                .map(|s| s.ips.clone())
                .unwrap_or_default(),
        }
    }

    fn finish(&mut self, outcome: Outcome) {
        let now = Timestamp::now();
        match outcome {
            Outcome::Volumes(setup, result) => {
                self.memory.setup = None;
                // What was missing is followed too: its appearance ends the wait.
                self.node
                    .objects
                    .follow(model::uid(&self.pod), &setup.shows);
                match result {
                    Ok(()) => {
                        self.memory.volumes_ready = true;
                        self.memory.setup_failure = None;
                        self.take_volumes(setup);
                    }
                    Err(message) => self.setup_failed("FailedMount", &message, now),
                }
                self.refresh_if_missed(now);
            }
            Outcome::Refreshed(setup, result) => {
                self.refreshing = false;
                match result {
                    Ok(()) => self.take_volumes(setup),
                    Err(message) => {
                        Report::pod(&self.node, &self.pod).warning("FailedMount", &message);
                        self.refresh_at = Some(now + SignedDuration::from_secs(60));
                    }
                }
                self.refresh_if_missed(now);
            }
            Outcome::Sandbox(result) => {
                self.stale = true;
                self.memory.setup = None;
                match result {
                    Ok(()) => self.memory.setup_failure = None,
                    Err(message) => self.setup_failed(
                        "FailedCreatePodSandBox",
                        &format!("Failed to create pod sandbox: {message}"),
                        now,
                    ),
                }
            }
            Outcome::Started { name, result } => {
                self.stale = true;
                self.memory.setup = None;
                self.started(name, result, now);
            }
            Outcome::Resized(result) => self.was_resized(result, now),
            Outcome::Killed { id } => {
                self.stale = true;
                self.memory.killing.remove(&id);
            }
            Outcome::SandboxStopped { id, result } => {
                self.torn(result, now);
                self.memory.stopped.insert(id);
            }
            Outcome::Removed(result) => self.torn(result, now),
            Outcome::Cleaned { keep_logs, result } => {
                self.memory.cleaned = result.is_ok();
                self.memory.purged = result.is_ok() && !keep_logs;
                self.memory.volumes_ready = false;
                self.torn(result, now);
            }
            Outcome::Published(result) => self.was_published(result, now),
            Outcome::Deleted(result) => {
                self.memory.teardown = false;
                // The watch tells when the object is gone; until then, or after an error, wait before asking again.
                let wait = if result.is_ok() { 10 } else { 1 };
                let (first, max) = (
                    SignedDuration::from_secs(wait),
                    SignedDuration::from_secs(60),
                );
                self.memory.delete_failure =
                    Some(Backoff::next(self.memory.delete_failure, now, first, max));
            }
        }
    }

    fn refresh_if_missed(&mut self, now: Timestamp) {
        if std::mem::take(&mut self.refresh_again) {
            self.refresh_at = Some(now);
        }
    }

    fn take_volumes(&mut self, setup: volumes::Setup) {
        self.volumes = Arc::new(setup.paths);
        self.refresh_at = setup.refresh_at;
        self.node
            .objects
            .follow(model::uid(&self.pod), &setup.shows);
    }

    fn was_resized(&mut self, result: Result<BTreeMap<String, Limits>, String>, now: Timestamp) {
        self.stale = true;
        self.memory.resizing = false;
        let report = Report::pod(&self.node, &self.pod);
        match result {
            Ok(taken) => {
                self.memory.resize_failure = None;
                self.memory.resized.extend(taken);
                report.normal("ResizeCompleted", "Pod resize completed");
            }
            Err(message) => {
                let message = format!("Pod resize failed: {message}");
                report.warning("ResizeError", &message);
                let (first, max) = (SignedDuration::from_secs(1), SignedDuration::from_secs(60));
                let before = self.memory.resize_failure.as_ref().map(|(wait, _)| *wait);
                self.memory.resize_failure =
                    Some((Backoff::next(before, now, first, max), message));
            }
        }
    }

    fn setup_failed(&mut self, reason: &str, message: &str, now: Timestamp) {
        if !self.gone {
            Report::pod(&self.node, &self.pod).warning(reason, message);
        }
        let (first, max) = (
            SignedDuration::from_millis(500),
            SignedDuration::from_secs(30),
        );
        self.memory.setup_failure = Some(Backoff::next(self.memory.setup_failure, now, first, max));
    }

    fn torn(&mut self, result: Result<(), String>, now: Timestamp) {
        self.stale = true;
        self.memory.teardown = false;
        match result {
            Ok(()) => self.memory.setup_failure = None,
            Err(message) => self.setup_failed(
                "FailedKillPod",
                &format!("error killing pod: {message}"),
                now,
            ),
        }
    }

    fn started(&mut self, name: String, result: Result<(), Failure>, now: Timestamp) {
        let failure = match result {
            Ok(()) => {
                self.memory.failures.remove(&name);
                self.memory.reported.remove(&name);
                return;
            }
            Err(failure) => failure,
        };
        // A hook that fails ends its container, whose exit says it all; a cancelled start is nobody's fault.
        if matches!(failure.reason, "Cancelled" | "PostStartHookError") {
            self.memory.failures.remove(&name);
            return;
        }
        let seconds = match failure.reason {
            "CreateContainerConfigError" => (1, 15),
            _ => (10, 300),
        };
        let previous = self
            .memory
            .failures
            .get(&name)
            .filter(|f| f.reason == failure.reason)
            .map(|f| f.backoff);
        let backoff = Backoff::next(
            previous,
            now,
            SignedDuration::from_secs(seconds.0),
            SignedDuration::from_secs(seconds.1),
        );
        self.memory.reported.remove(&name);
        self.memory.failures.insert(
            name,
            StartFailure {
                reason: failure.reason,
                message: failure.message,
                image: failure.image,
                backoff,
            },
        );
    }

    /// Sends the status if it differs from what the API has; the time to try again after a failure.
    fn publish(
        &mut self,
        status: k8s_openapi::api::core::v1::PodStatus,
        now: Timestamp,
    ) -> Option<Timestamp> {
        if self.publishing {
            return None;
        }
        if let Some(wait) = self.publish_failure.filter(|b| now < b.until()) {
            return Some(wait.until());
        }
        let patch = publish::status_patch(&self.pod, &status)?;
        // What the API server does not take as it is must not be sent over and over.
        let repeated = self
            .published
            .replace(patch.clone())
            .is_some_and(|last| last == patch);
        if repeated {
            let wait = Backoff {
                delay: SignedDuration::from_secs(10),
                since: now,
            };
            if self.publish_failure.replace(wait).is_none() {
                return Some(wait.until());
            }
        }
        tracing::debug!(pod = model::name(&self.pod), %patch, "status");
        self.publishing = true;
        let (node, pod) = (self.node.clone(), self.pod.clone());
        self.ops
            .spawn(async move { Outcome::Published(publish::send(&node, &pod, &patch).await) });
        None
    }

    fn was_published(&mut self, result: Result<Option<Box<Pod>>, kube::Error>, now: Timestamp) {
        self.publishing = false;
        match result {
            Ok(Some(pod)) if pod.metadata.uid == self.pod.metadata.uid => {
                self.publish_failure = None;
                self.adopt(Arc::new(*pod));
            }
            Ok(_) => self.gone = true,
            Err(error) => {
                tracing::warn!(pod = model::name(&self.pod), %error, "the pod's status was not taken");
                let (first, max) = (
                    SignedDuration::from_millis(200),
                    SignedDuration::from_secs(10),
                );
                self.publish_failure = Some(Backoff::next(self.publish_failure, now, first, max));
            }
        }
    }

    /// Probes run exactly for the running containers that have any.
    fn follow_probes(&mut self) {
        let ended = self.gone || model::is_finished(&self.pod);
        let running: Vec<_> = self
            .view
            .containers
            .iter()
            .filter(|c| c.state == RunState::Running && !ended)
            .cloned()
            .collect();
        self.probes
            .retain(|id, _| running.iter().any(|c| &c.id == id));
        self.memory
            .probes
            .retain(|id, _| running.iter().any(|c| &c.id == id));
        let ip = probes::address(&self.pod, &self.pod_ips(), &self.node.facts.ips);
        for c in running {
            let Some(container) = model::find_container(&self.pod, &c.name) else {
                continue;
            };
            if self.probes.contains_key(&c.id)
                || !probes::has_any(container)
                || plan::is_starting(&self.memory, &c.name)
            {
                continue;
            }
            let state = probes::initial(container, probes::known(&self.pod, &c.name, &c.id));
            let since = model::timestamp_of_nanos(c.started_at);
            let tasks = probes::start(
                &self.node,
                &self.pod,
                probes::Subject {
                    container,
                    id: &c.id,
                    ip: &ip,
                    since,
                    state,
                },
                &self.handle,
            );
            self.memory.probes.insert(c.id.clone(), state);
            self.probes.insert(c.id.clone(), tasks);
        }
    }
}
