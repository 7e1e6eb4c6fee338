//! Which pods have a worker: every pod bound to this node, and every pod that only the
//! runtime still knows, because it was deleted while the kubelet was away.
//!
//! A pod that is new here is admitted first. Whether it is new, its status says: one with a start time was admitted by
//! this node before, and stays whatever has changed meanwhile. Those take their part of the node before any other, and
//! the new ones of a list follow in the order of their creation, as with Kubernetes' kubelet.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use client::CancellationToken;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Container, Node as ApiNode, Pod, PodSpec};
use kube::api::{Api, ObjectMeta};
use kube::runtime::watcher::{Config, Event};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::admission::{self, Failure};
use super::worker::{self, Beginning, Message};
use super::{plan, preemption};
use crate::context::{Node, Report, RuntimeState};
use crate::model::{self, keys};
use crate::runtime_events::RuntimeEvent;

/// How often everything is looked at although nothing was heard; guards against a lost event.
const SAFETY: Duration = Duration::from_secs(300);

/// How long a pod's admission may wait for a fresh look at the node.
const FRESH: Duration = Duration::from_secs(2);

struct Manager {
    node: Arc<Node>,
    workers: HashMap<String, UnboundedSender<Message>>,
    /// The pods of a list that is still coming in, and those of them that have no worker yet.
    listed: HashSet<String>,
    unknown: Vec<Pod>,
    synced: bool,
    swept: bool,
    ended: tokio::task::JoinSet<String>,
}

/// Runs until the shutdown; leaves every container as it is.
pub async fn run(
    node: Arc<Node>,
    mut runtime: UnboundedReceiver<RuntimeEvent>,
    mut changed: UnboundedReceiver<String>,
    shutdown: CancellationToken,
) {
    let selector = format!("spec.nodeName={}", node.name);
    let mut pods = Box::pin(client::informer::events(
        Api::<Pod>::all(node.client.clone()),
        Config::default().fields(&selector),
    ));
    let mut state = node.state.subscribe();
    let mut manager = Manager {
        node,
        workers: HashMap::new(),
        listed: HashSet::new(),
        unknown: Vec::new(),
        synced: false,
        swept: false,
        ended: tokio::task::JoinSet::new(),
    };
    manager.node.services.synced().await;
    manager.node.own.synced().await;
    let mut safety = tokio::time::interval_at(tokio::time::Instant::now() + SAFETY, SAFETY);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = pods.next() => match event {
                Some(event) => manager.on_pod(event).await,
                None => return,
            },
            event = runtime.recv() => match event {
                Some(event) => manager.on_runtime(event).await,
                None => return,
            },
            Some(uid) = changed.recv() => manager.tell(&uid, Message::Refresh),
            Some(Ok(uid)) = manager.ended.join_next() => manager.forget(&uid),
            _ = state.changed() => manager.look_everywhere(),
            _ = safety.tick() => manager.look_everywhere(),
        }
    }
}

impl Manager {
    async fn on_pod(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => {
                self.listed.clear();
                self.unknown.clear();
            }
            Event::InitApply(pod) => {
                self.listed.insert(model::uid(&pod).to_string());
                let unknown = self.apply(pod);
                self.unknown.extend(unknown);
            }
            Event::Apply(pod) => {
                let unknown = self.apply(pod);
                self.add(unknown.into_iter().collect()).await;
            }
            Event::Delete(pod) => self.gone(model::uid(&pod)),
            Event::InitDone => {
                self.synced = true;
                let gone: Vec<String> = self
                    .workers
                    .keys()
                    .filter(|uid| !self.listed.contains(*uid))
                    .cloned()
                    .collect();
                for uid in gone {
                    self.gone(&uid);
                }
                let unknown = std::mem::take(&mut self.unknown);
                self.add(unknown).await;
                self.sweep().await;
            }
        }
    }

    /// Passes a pod on to its worker, or hands it back if it has none.
    fn apply(&self, pod: Pod) -> Option<Pod> {
        let uid = model::uid(&pod).to_string();
        let Some(worker) = self.workers.get(&uid) else {
            return Some(pod);
        };
        let pod = Arc::new(trim(pod));
        let mut allocations = self.node.allocations.lock();
        // Not left to the worker: what this pod gives back may be what the next one in the queue was bound for.
        if model::is_finished(&pod) {
            allocations.release(&uid);
        } else {
            allocations.grant(&pod);
        }
        // A worker that has just ended has nothing left to do for this pod.
        let _ = worker.send(Message::Pod(pod));
        None
    }

    fn gone(&self, uid: &str) {
        self.node.allocations.lock().release(uid);
        self.tell(uid, Message::Gone);
    }

    /// Starts workers for pods that have none.
    async fn add(&mut self, mut pods: Vec<Pod>) {
        let is_new = |pod: &Pod| {
            let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
            let ends = model::is_finished(pod) || pod.metadata.deletion_timestamp.is_some();
            started.is_none() && !ends
        };
        pods.sort_by_cached_key(|pod| {
            let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (is_new(pod), created)
        });
        let known = pods
            .iter()
            .filter(|pod| !is_new(pod) && !model::is_finished(pod));
        for pod in known {
            self.node.allocations.lock().restore(pod);
        }
        for pod in pods {
            let beginning = match is_new(&pod) {
                true => self.admit(&pod).await,
                false => Beginning::Admitted,
            };
            self.start(Arc::new(trim(pod)), beginning);
        }
    }

    async fn admit(&self, pod: &Pod) -> Beginning {
        let admit = |on: &ApiNode| self.node.allocations.lock().admit(pod, on);
        let mut admitted = admit(&self.node.api_node());
        if admitted
            .as_ref()
            .is_err_and(|f| *f == [admission::NODE_AFFINITY])
        {
            // A label may be newer than what has been heard of the node.
            let api = Api::<ApiNode>::all(self.node.client.clone());
            let fresh = tokio::time::timeout(FRESH, api.get(&self.node.name)).await;
            if let Ok(Ok(fresh)) = fresh {
                admitted = admit(&fresh);
            }
        }
        let failures = match admitted {
            Ok(victims) => return self.preempt(&victims),
            Err(failures) => failures,
        };
        let Some(rejection) = failures.first().map(Failure::rejection) else {
            return Beginning::Admitted;
        };
        tracing::info!(pod = model::name(pod), ?rejection, "refused");
        Report::pod(&self.node, pod).warning(&rejection.reason, &rejection.message);
        Beginning::Rejected(rejection)
    }

    /// Ends these pods; the one that they make room for begins after them.
    fn preempt(&self, victims: &[Arc<Pod>]) -> Beginning {
        if victims.is_empty() {
            return Beginning::Admitted;
        }
        let (told, ended) = unbounded_channel();
        for victim in victims {
            tracing::info!(pod = model::name(victim), "preempted for a critical pod");
            Report::pod(&self.node, victim).warning(preemption::REASON, preemption::MESSAGE);
            self.tell(model::uid(victim), Message::Preempt(told.clone()));
        }
        let grace = victims.iter().map(|v| plan::grace_of(v, None)).max();
        let grace = u64::try_from(grace.unwrap_or_default()).unwrap_or_default();
        Beginning::After(ended, Duration::from_secs((grace + grace / 2).max(10)))
    }

    fn start(&mut self, pod: Arc<Pod>, beginning: Beginning) {
        let uid = model::uid(&pod).to_string();
        if !matches!(beginning, Beginning::Gone) {
            self.node.pods.lock().insert(uid.clone(), pod.clone());
        }
        let (handle, task) = worker::spawn(self.node.clone(), pod, beginning);
        self.workers.insert(uid.clone(), handle);
        self.ended.spawn(async move {
            if let Err(error) = task.await {
                tracing::error!(uid, %error, "a pod's worker broke off");
            }
            uid
        });
    }

    fn forget(&mut self, uid: &str) {
        self.workers.remove(uid);
        self.node.pods.lock().remove(uid);
        self.node.allocations.lock().release(uid);
    }

    fn tell(&self, uid: &str, message: Message) {
        if let Some(worker) = self.workers.get(uid) {
            let _ = worker.send(message);
        }
    }

    fn look_everywhere(&self) {
        for worker in self.workers.values() {
            let _ = worker.send(Message::Look);
        }
    }

    async fn on_runtime(&mut self, event: RuntimeEvent) {
        match event {
            RuntimeEvent::Exited(id) => self.node.routes.lock().exited(id),
            RuntimeEvent::Connected | RuntimeEvent::Relist => {
                self.look_everywhere();
                self.sweep().await;
            }
            RuntimeEvent::Lost => {
                self.node.state.send_if_modified(|s| {
                    let lost = RuntimeState {
                        message: "container runtime is down".into(),
                        ..Default::default()
                    };
                    let changed = s.runtime_ready;
                    if changed {
                        *s = lost;
                    }
                    changed
                });
            }
        }
    }

    /// Once, as soon as both the API and the runtime have answered: finds what pods left behind that are no more.
    async fn sweep(&mut self) {
        if self.swept || !self.synced {
            return;
        }
        let Ok(sandboxes) = self.node.runtime.list_sandboxes(None).await else {
            return;
        };
        self.swept = true;
        let mut left: BTreeMap<String, Pod> = BTreeMap::new();
        for s in &sandboxes {
            let uid = model::label(&s.labels, keys::POD_UID);
            let name = model::label(&s.labels, keys::POD_NAME);
            let namespace = model::label(&s.labels, keys::POD_NAMESPACE);
            left.entry(uid.clone())
                .or_insert_with(|| remnant(&uid, Some(name), Some(namespace)));
        }
        for uid in self.directories() {
            left.entry(uid.clone())
                .or_insert_with(|| remnant(&uid, None, None));
        }
        for (uid, pod) in left {
            if !uid.is_empty() && !self.workers.contains_key(&uid) {
                tracing::info!(
                    uid,
                    name = model::name(&pod),
                    "cleaning up after a pod that is gone"
                );
                self.start(Arc::new(pod), Beginning::Gone);
            }
        }
    }

    /// Uids of pods with a directory or a cgroup on this node.
    fn directories(&self) -> Vec<String> {
        let dirs = std::fs::read_dir(self.node.flags.root_dir.join("pods"))
            .into_iter()
            .flatten()
            .flatten();
        let mut uids = self.node.cgroups.pod_uids();
        uids.extend(dirs.filter_map(|e| e.file_name().into_string().ok()));
        uids
    }
}

/// All that is known about a pod that the API has forgotten.
fn remnant(uid: &str, name: Option<String>, namespace: Option<String>) -> Pod {
    Pod {
        metadata: ObjectMeta {
            uid: Some(uid.to_string()),
            name,
            namespace,
            ..Default::default()
        },
        spec: Some(PodSpec {
            containers: vec![Container::default()],
            ..Default::default()
        }),
        status: None,
    }
}

/// After its admission nobody reads these of a pod, and they can be large.
fn trim(mut pod: Pod) -> Pod {
    pod.metadata.managed_fields = None;
    if let Some(spec) = &mut pod.spec {
        spec.affinity = None;
        spec.tolerations = None;
        spec.topology_spread_constraints = None;
    }
    pod
}
