//! Which pods have a worker: every pod bound to this node, and every pod that only the
//! runtime still knows, because it was deleted while the kubelet was away.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use client::CancellationToken;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kube::api::{Api, ObjectMeta};
use kube::runtime::watcher::{Config, Event};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::worker::{self, Message};
use crate::context::{Node, RuntimeState};
use crate::model::{self, keys};
use crate::runtime_events::RuntimeEvent;

/// How often everything is looked at although nothing was heard; guards against a lost event.
const SAFETY: Duration = Duration::from_secs(300);

struct Manager {
    node: Arc<Node>,
    workers: HashMap<String, UnboundedSender<Message>>,
    /// The pods of a list that is still coming in.
    listed: HashSet<String>,
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
        synced: false,
        swept: false,
        ended: tokio::task::JoinSet::new(),
    };
    manager.node.services.synced().await;
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
            Event::Init => self.listed.clear(),
            Event::InitApply(pod) => {
                self.listed.insert(model::uid(&pod).to_string());
                self.apply(trim(pod));
            }
            Event::Apply(pod) => self.apply(trim(pod)),
            Event::Delete(pod) => self.tell(model::uid(&pod), Message::Gone),
            Event::InitDone => {
                self.synced = true;
                let gone: Vec<String> = self
                    .workers
                    .keys()
                    .filter(|uid| !self.listed.contains(*uid))
                    .cloned()
                    .collect();
                for uid in gone {
                    self.tell(&uid, Message::Gone);
                }
                self.sweep().await;
            }
        }
    }

    fn apply(&mut self, pod: Pod) {
        let uid = model::uid(&pod).to_string();
        let pod = Arc::new(pod);
        match self.workers.get(&uid) {
            Some(worker) => {
                // A worker that has just ended has nothing left to do for this pod.
                let _ = worker.send(Message::Pod(pod));
            }
            None => self.start(uid, pod, false),
        }
    }

    fn start(&mut self, uid: String, pod: Arc<Pod>, gone: bool) {
        if !gone {
            self.node.pods.lock().insert(uid.clone(), pod.clone());
        }
        let (handle, task) = worker::spawn(self.node.clone(), pod, gone);
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
                self.start(uid, Arc::new(pod), true);
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

/// The kubelet never reads these, and they can be large.
fn trim(mut pod: Pod) -> Pod {
    pod.metadata.managed_fields = None;
    if let Some(spec) = &mut pod.spec {
        spec.affinity = None;
        spec.tolerations = None;
        spec.topology_spread_constraints = None;
    }
    pod
}
