//! The loop around the decisions: watch events in, bindings and reports out.
//!
//! Readers decode watch events on tasks of their own and send what changed. The loop applies changes to the cluster
//! and the queue, decides for one pod after the other, and lets bindings run concurrently: a pod counts as being on
//! its node from the decision on, and is taken off again if the binding fails.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use client::events::{EventType, Recorder};
use client::{CancellationToken, informer};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::runtime::watcher::{Config, Event};
use kube::{Api, Resource, ResourceExt};
use tokio::sync::mpsc;

use crate::cluster::Cluster;
use crate::framework::{Change, Plugin};
use crate::model::{Labels, NodeInfo, PodInfo};
use crate::plugins::default_plugins;
use crate::preempt::{Outcome, preempt};
use crate::queue::Queue;
use crate::schedule::{Failure, Start, schedule};
use crate::status;

/// Bindings under way at a time.
const MAX_BINDING: usize = 256;
/// Decisions between two looks at what has changed.
const BATCH: usize = 16;

/// What the readers tell.
enum Update {
    Pod(Arc<PodInfo>),
    PodGone(String),
    Node(Box<NodeInfo>),
    NodeGone(String),
    Namespace(String, Option<Labels>),
    /// A complete list ended: of this kind, only these are left (uids of pods, names of others).
    Listed(Kind, HashSet<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Pods,
    Nodes,
    Namespaces,
}

/// Runs until `token` is cancelled. Pods of `scheduler_name` are scheduled.
pub async fn run(client: kube::Client, scheduler_name: String, token: CancellationToken) {
    let (send, mut updates) = mpsc::channel(1024);
    // Finished pods take nothing of a node.
    let unfinished = Config::default().fields("status.phase!=Succeeded,status.phase!=Failed");
    tokio::spawn(read(
        Api::<Pod>::all(client.clone()),
        unfinished,
        (Kind::Pods, send.clone(), token.clone()),
        |pod| pod.uid().unwrap_or_default(),
        |pod| Update::Pod(Arc::new(PodInfo::new(&pod))),
        |pod| Update::PodGone(pod.uid().unwrap_or_default()),
    ));
    tokio::spawn(read(
        Api::<Node>::all(client.clone()),
        Config::default(),
        (Kind::Nodes, send.clone(), token.clone()),
        |node| node.name_any(),
        |node| Update::Node(Box::new(NodeInfo::new(&node))),
        |node| Update::NodeGone(node.name_any()),
    ));
    tokio::spawn(read(
        Api::<Namespace>::all(client.clone()),
        Config::default(),
        (Kind::Namespaces, send, token.clone()),
        |namespace| namespace.name_any(),
        |namespace| {
            Update::Namespace(
                namespace.name_any(),
                Some(namespace.metadata.labels.unwrap_or_default()),
            )
        },
        |namespace| Update::Namespace(namespace.name_any(), None),
    ));

    let (bound, mut bindings) = mpsc::unbounded_channel();
    let recorder = Recorder::new(client.clone(), &scheduler_name, None);
    let mut scheduler = Scheduler {
        client,
        recorder,
        scheduler_name,
        plugins: default_plugins(),
        cluster: Cluster::default(),
        queue: Queue::default(),
        start: Start::default(),
        listed: HashSet::new(),
        bound,
        binding: 0,
    };
    loop {
        while let Ok(update) = updates.try_recv() {
            scheduler.apply(update);
        }
        while let Ok(result) = bindings.try_recv() {
            scheduler.finish_binding(result);
        }
        if scheduler.decide_some() {
            // Lets the bindings begin.
            tokio::task::yield_now().await;
            continue;
        }
        let due = scheduler
            .queue
            .next_due()
            .filter(|_| scheduler.binding < MAX_BINDING);
        let wait = async {
            match due {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = token.cancelled() => break,
            update = updates.recv() => match update {
                Some(update) => scheduler.apply(update),
                None => break,
            },
            Some(result) = bindings.recv() => scheduler.finish_binding(result),
            () = wait => {}
        }
    }
}

async fn read<K>(
    api: Api<K>,
    config: Config,
    (kind, send, token): (Kind, mpsc::Sender<Update>, CancellationToken),
    id: fn(&K) -> String,
    there: fn(K) -> Update,
    gone: fn(K) -> Update,
) where
    K: Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let mut stream = pin!(informer::events(api, config));
    let mut listed = HashSet::new();
    loop {
        let event =
            tokio::select! { () = token.cancelled() => return, event = stream.next() => event };
        let update = match event {
            None => return,
            Some(Event::Init) => {
                listed.clear();
                continue;
            }
            Some(Event::InitApply(object)) => {
                listed.insert(id(&object));
                there(object)
            }
            Some(Event::InitDone) => Update::Listed(kind, std::mem::take(&mut listed)),
            Some(Event::Apply(object)) => there(object),
            Some(Event::Delete(object)) => gone(object),
        };
        if send.send(update).await.is_err() {
            return;
        }
    }
}

/// How a binding ended.
struct Bound {
    pod: Arc<PodInfo>,
    node: Arc<str>,
    result: kube::Result<()>,
}

struct Scheduler {
    client: kube::Client,
    recorder: Recorder,
    scheduler_name: String,
    plugins: Vec<Box<dyn Plugin>>,
    cluster: Cluster,
    queue: Queue,
    start: Start,
    /// Kinds that have been listed: decisions begin when all are known.
    listed: HashSet<Kind>,
    bound: mpsc::UnboundedSender<Bound>,
    binding: usize,
}

impl Scheduler {
    fn apply(&mut self, update: Update) {
        match update {
            Update::Pod(pod) => self.pod(pod),
            Update::PodGone(uid) => self.pod_gone(&uid),
            Update::Node(info) => self.node(*info),
            Update::NodeGone(name) => self.cluster.remove_node(&name),
            Update::Namespace(name, labels) => {
                self.cluster.set_namespace(&name, labels);
                self.changed(&Change::Namespace);
            }
            Update::Listed(kind, left) => {
                self.sweep(kind, &left);
                self.listed.insert(kind);
            }
        }
    }

    fn changed(&mut self, change: &Change) {
        self.queue.moved(change, &self.plugins, Instant::now());
    }

    fn pod(&mut self, pod: Arc<PodInfo>) {
        if let Some(node) = pod.node_name.clone() {
            self.queue.remove(&pod.uid);
            let known = self.cluster.remove_pod(&pod.uid);
            self.cluster.place(pod.clone(), &node, false);
            match known {
                None => self.changed(&Change::PodPlaced(pod)),
                Some(old) => {
                    if old.labels != pod.labels {
                        self.changed(&Change::PodPlaced(pod.clone()));
                    }
                    // Resources were given back in place.
                    if old.requests != pod.requests {
                        self.changed(&Change::PodRemoved(old));
                    }
                }
            }
            return;
        }
        if pod.scheduler_name != self.scheduler_name {
            return;
        }
        if pod.deleting {
            self.queue.remove(&pod.uid);
            self.cluster.clear_nomination(&pod.uid);
            return;
        }
        // Decided already: this is what the API knew before the binding.
        if self.cluster.is_placed(&pod.uid) {
            return;
        }
        if let Some(node) = &pod.nominated_node {
            self.cluster.nominate(pod.clone(), node);
        }
        self.queue.update(pod, Instant::now());
    }

    fn pod_gone(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.cluster.clear_nomination(uid);
        if let Some(pod) = self.cluster.remove_pod(uid) {
            self.changed(&Change::PodRemoved(pod));
        }
    }

    fn node(&mut self, info: NodeInfo) {
        let new = info.clone();
        let change = match self.cluster.set_node(info) {
            None => Change::NodeAdded,
            Some(old) => Change::NodeUpdated {
                allocatable: old.allocatable != new.allocatable || old.max_pods != new.max_pods,
                labels: old.labels != new.labels,
                taints: old.taints != new.taints,
                unschedulable: old.unschedulable != new.unschedulable,
            },
        };
        let news = |flags: [bool; 4]| flags.contains(&true);
        match change {
            Change::NodeUpdated {
                allocatable,
                labels,
                taints,
                unschedulable,
            } if !news([allocatable, labels, taints, unschedulable]) => {}
            change => self.changed(&change),
        }
    }

    /// After a list: what is not on it is gone, which the watch had no chance to say.
    fn sweep(&mut self, kind: Kind, left: &HashSet<String>) {
        match kind {
            Kind::Pods => {
                let placed = self
                    .cluster
                    .pods()
                    .filter(|(_, p)| !self.cluster.is_assumed(&p.uid))
                    .map(|(_, p)| p.uid.clone());
                let mut known: Vec<Arc<str>> = placed.collect();
                known.extend(self.queue.uids());
                known
                    .iter()
                    .filter(|uid| !left.contains(&***uid))
                    .for_each(|uid| self.pod_gone(uid));
            }
            Kind::Nodes => {
                let known: Vec<Arc<str>> = self
                    .cluster
                    .existing()
                    .map(|n| n.info.name.clone())
                    .collect();
                known
                    .iter()
                    .filter(|name| !left.contains(&***name))
                    .for_each(|name| self.cluster.remove_node(name));
            }
            // Labels of a namespace that is gone say nothing about pods that are gone with it.
            Kind::Namespaces => {}
        }
    }

    /// Decides for a few pods; true if there may be more to decide.
    fn decide_some(&mut self) -> bool {
        if self.listed.len() < 3 {
            return false;
        }
        for _ in 0..BATCH {
            if self.binding >= MAX_BINDING {
                return false;
            }
            let Some(pod) = self.queue.pop(Instant::now()) else {
                return false;
            };
            self.decide(pod);
        }
        true
    }

    fn decide(&mut self, pod: Arc<PodInfo>) {
        self.start.tie = self.start.tie.wrapping_add(1);
        match schedule(&self.plugins, &pod, &self.cluster, self.start) {
            Ok(placement) => {
                self.start.node = placement.next;
                self.bind(pod, placement.node);
            }
            Err(failure) => self.fail(pod, &failure),
        }
    }

    fn bind(&mut self, pod: Arc<PodInfo>, node: Arc<str>) {
        self.cluster.place(pod.clone(), &node, true);
        self.binding += 1;
        let (client, bound) = (self.client.clone(), self.bound.clone());
        tokio::spawn(async move {
            let result = status::bind(&client, &pod, &node).await;
            // The receiver is gone only when the scheduler has ended.
            let _ = bound.send(Bound { pod, node, result });
        });
    }

    fn finish_binding(&mut self, bound: Bound) {
        self.binding -= 1;
        let Bound { pod, node, result } = bound;
        let about = status::reference(&pod);
        match result {
            Ok(()) => {
                self.queue.remove(&pod.uid);
                let message = format!(
                    "Successfully assigned {}/{} to {node}",
                    pod.namespace, pod.name
                );
                self.recorder
                    .event(&about, EventType::Normal, "Scheduled", message);
            }
            Err(error) => {
                tracing::warn!(pod = %pod.name, %error, "binding failed");
                // Unless the watch has said meanwhile that the pod is on a node, or gone.
                if self.cluster.is_assumed(&pod.uid) {
                    self.cluster.remove_pod(&pod.uid);
                    self.changed(&Change::PodRemoved(pod.clone()));
                }
                self.recorder.event(
                    &about,
                    EventType::Warning,
                    "FailedScheduling",
                    format!("binding rejected: {error}"),
                );
                self.queue.fail(&pod.uid, 0, Instant::now());
            }
        }
    }

    fn fail(&mut self, pod: Arc<PodInfo>, failure: &Failure) {
        let mut message = failure.message();
        let mut nominated = None;
        if failure.nodes > 0 {
            match preempt(&self.plugins, &pod, &mut self.cluster, failure) {
                Outcome::No(why) => message = format!("{message} {why}"),
                Outcome::Evict { node, victims } => {
                    self.cluster.nominate(pod.clone(), &node);
                    for victim in victims {
                        let (client, recorder) = (self.client.clone(), self.recorder.clone());
                        tokio::spawn(status::evict(
                            client,
                            recorder,
                            victim,
                            pod.clone(),
                            node.clone(),
                        ));
                    }
                    nominated = Some(node);
                }
            }
        }
        // Without nodes nothing turned it away: a node is what it waits for.
        let by = if failure.plugins == 0 {
            u32::MAX
        } else {
            failure.plugins
        };
        self.queue.fail(&pod.uid, by, Instant::now());
        tokio::spawn(status::report(
            self.client.clone(),
            self.recorder.clone(),
            pod,
            message,
            nominated,
        ));
    }
}
