//! Deletes what nobody owns any more, and holds or lets go what is deleted with a say in what it owns.
//!
//! Watches of all resources feed a [`graph`] of who depends on whom; a change there puts those it may concern on a
//! queue. For each of them the API server is asked how it and its owners really are, [`plan`] decides, and every
//! write is bound to the revision that was seen. Rules and names are those of Kubernetes' collector.

pub mod graph;
mod monitor;
pub mod plan;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use client::events::{EventType, Recorder};
use client::{CancellationToken, Next, WorkQueue};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{
    DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use crate::discovery;
use crate::frame::{Context, Error, Result, work};
use graph::{Effects, FOREGROUND, Graph, Kind, Misplaced, Node, ORPHAN, Owner, Task};
use plan::{Action, Dependent, Observed, OwnerState, Policy, plan};

const WORKERS: usize = 20;
/// How long a resource that cannot be listed (its conversion webhook is down, say) may hold up all others.
const PATIENCE: Duration = Duration::from_secs(30);
/// Owners known to be gone that are remembered.
const REMEMBER: usize = 500;
/// How many dependents of one owner are let go at a time.
const ORPHANED_AT_ONCE: usize = 8;

/// An owner as a reference describes it, with the namespace where it was looked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Coordinates {
    api_version: String,
    kind: String,
    namespace: String,
    name: String,
    uid: String,
}

/// The last so many owners that are gone. Uids are never used twice, so this cannot become wrong.
#[derive(Debug, Default)]
struct Absent {
    known: HashSet<Coordinates>,
    order: VecDeque<Coordinates>,
}

impl Absent {
    fn insert(&mut self, owner: Coordinates) {
        if self.known.insert(owner.clone()) {
            self.order.push_back(owner);
            if self.order.len() > REMEMBER
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }
}

/// What watches and workers share.
pub struct Collector {
    context: Arc<Context>,
    recorder: Recorder,
    graph: Mutex<Graph>,
    queue: WorkQueue<Task>,
    absent: Mutex<Absent>,
    /// Resources by `apiVersion` and kind, as far as references named them since discovery was last read.
    mapping: Mutex<HashMap<(String, String), Arc<Kind>>>,
    watched: Mutex<HashSet<Arc<Kind>>>,
    /// Watches whose first list is not in the graph yet.
    unsynced: watch::Sender<usize>,
    resources_changed: Notify,
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let collector = Arc::new(Collector {
        recorder: context.recorder("garbage-collector-controller"),
        context,
        graph: Mutex::default(),
        queue: WorkQueue::new(),
        absent: Mutex::default(),
        mapping: Mutex::default(),
        watched: Mutex::default(),
        unsynced: watch::channel(0).0,
        resources_changed: Notify::new(),
    });
    let monitor = monitor::run(collector.clone(), token.clone());
    let workers = async {
        work(&collector.queue, WORKERS, &token, |task| {
            collector.process(task)
        })
        .await
    };
    tokio::join!(monitor, workers);
}

impl Collector {
    fn api(&self, kind: &Kind, namespace: &str) -> Api<DynamicObject> {
        let client = self.context.client.clone();
        match kind.namespaced && !namespace.is_empty() {
            true => Api::namespaced_with(client, namespace, &kind.resource),
            false => Api::all_with(client, &kind.resource),
        }
    }

    /// Hands on what a change in the graph led to.
    fn report(&self, effects: Effects) {
        for misplaced in &effects.misplaced {
            self.tell(misplaced);
        }
        effects
            .tasks
            .into_iter()
            .for_each(|task| self.queue.add(task));
    }

    fn tell(&self, misplaced: &Misplaced) {
        let graph = self.graph.lock();
        let Some(dependent) = graph.get(&misplaced.dependent) else {
            return;
        };
        let Some(owner) = dependent.owners.iter().find(|o| o.uid == misplaced.owner) else {
            return;
        };
        let about = ObjectReference {
            api_version: Some(dependent.kind.resource.api_version.clone()),
            kind: Some(dependent.kind.resource.kind.clone()),
            namespace: Some(dependent.namespace.clone()),
            name: Some(dependent.name.clone()),
            uid: Some(misplaced.dependent.clone()),
            ..Default::default()
        };
        let Owner {
            api_version,
            kind,
            name,
            uid,
            ..
        } = owner;
        let namespace = &dependent.namespace;
        let message = format!(
            "ownerRef [{api_version}/{kind}, namespace: {namespace}, name: {name}, uid: {uid}] does not exist in namespace {namespace:?}"
        );
        self.recorder.event(
            &about,
            EventType::Warning,
            "OwnerRefInvalidNamespace",
            message,
        );
    }

    /// Remembers that an object is gone.
    fn absent(&self, node: &Node, uid: &str) {
        self.absent.lock().insert(Coordinates {
            api_version: node.kind.resource.api_version.clone(),
            kind: node.kind.resource.kind.clone(),
            namespace: node.namespace.clone(),
            name: node.name.clone(),
            uid: uid.to_owned(),
        });
    }

    /// The API server says that an object is gone; its watch will say so too.
    fn gone(&self, uid: &str) {
        let mut effects = Effects::default();
        if let Some(node) = self.graph.lock().remove(uid, &mut effects) {
            self.absent(&node, uid);
        }
        self.report(effects);
    }

    async fn process(&self, task: Task) -> Result<Next> {
        // What is owned may be in a list that is still on its way.
        let mut unsynced = self.unsynced.subscribe();
        let _ = tokio::time::timeout(PATIENCE, unsynced.wait_for(|n| *n == 0)).await;
        match task {
            Task::Delete(uid) => self.look_at(&uid).await,
            Task::Orphan(uid) => self.let_go(&uid).await,
        }
    }

    fn node(&self, uid: &str) -> Option<(Node, Vec<(String, Node)>)> {
        let graph = self.graph.lock();
        let node = graph.get(uid)?.clone();
        let dependents = graph
            .dependents(uid)
            .map(|(uid, node)| (uid.to_owned(), node.clone()))
            .collect();
        Some((node, dependents))
    }

    /// The metadata of an object as it is now; `None` if it is gone or replaced.
    async fn live(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<Option<ObjectMeta>> {
        let found = self
            .api(kind, namespace)
            .get_metadata_opt(name)
            .await?
            .map(|o| o.metadata);
        Ok(found.filter(|meta| meta.uid.as_deref() == Some(uid)))
    }

    async fn look_at(&self, uid: &str) -> Result<Next> {
        let Some((node, dependents)) = self.node(uid) else {
            return Ok(Next::Done);
        };
        if node.being_deleted && !node.deleting_dependents {
            return Ok(Next::Done);
        }
        let live = self
            .live(&node.kind, &node.namespace, &node.name, uid)
            .await?;
        let Some(live) = live else {
            self.gone(uid);
            return Ok(Next::Done);
        };
        let references: Vec<Owner> = live
            .owner_references
            .iter()
            .flatten()
            .map(Owner::from)
            .collect();
        let mut owners = Vec::new();
        let mut unseen = false;
        if !node.deleting_dependents {
            for owner in &references {
                let Some((state, kind)) = self.owner_state(&node, owner).await? else {
                    return Ok(Next::Done);
                };
                unseen |= state != OwnerState::Absent && self.is_unseen(owner, kind.as_deref());
                owners.push((owner.uid.clone(), state));
            }
        }
        let blocks = |d: &Node| d.owners.iter().any(|o| o.uid == uid && o.blocking);
        let observed = Observed {
            deleting_dependents: node.deleting_dependents,
            finalizers: live.finalizers.clone().unwrap_or_default(),
            owners,
            dependents: dependents
                .iter()
                .map(|(uid, d)| Dependent {
                    uid: uid.clone(),
                    blocking: blocks(d),
                    deleting_dependents: d.deleting_dependents,
                })
                .collect(),
        };
        let actions = plan(&observed);
        let mut live = live;
        for action in &actions {
            self.act(&node, uid, &mut live, action).await?;
        }
        match unseen && actions.is_empty() {
            // It may have gone again without its watch having seen it: then nobody else would ever tell.
            true => Err(Error::Other(
                "an owner is there but its watch has not seen it yet".into(),
            )),
            false => Ok(Next::Done),
        }
    }

    fn is_unseen(&self, owner: &Owner, kind: Option<&Kind>) -> bool {
        kind.is_some_and(|k| self.watched.lock().contains(k))
            && self.graph.lock().get(&owner.uid).is_none()
    }

    /// How an owner is; `None` if the reference can never be right.
    async fn owner_state(
        &self,
        node: &Node,
        owner: &Owner,
    ) -> Result<Option<(OwnerState, Option<Arc<Kind>>)>> {
        let mut place = Coordinates {
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            namespace: String::new(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
        };
        let known = |place: &Coordinates| self.absent.lock().known.contains(place);
        if known(&place) {
            return Ok(Some((OwnerState::Absent, None)));
        }
        place.namespace = node.namespace.clone();
        if known(&place) {
            return Ok(Some((OwnerState::Absent, None)));
        }
        let kind = self.resolve(&owner.api_version, &owner.kind).await?;
        if kind.namespaced && node.namespace.is_empty() {
            tracing::debug!(object = %node.name, owner = %owner.name, "an object of the whole cluster names an owner in a namespace");
            return Ok(None);
        }
        let found = self
            .live(&kind, &node.namespace, &owner.name, &owner.uid)
            .await?;
        let state = match found {
            None => {
                if !kind.namespaced {
                    place.namespace.clear();
                }
                self.absent.lock().insert(place);
                OwnerState::Absent
            }
            Some(meta) if Node::new(&kind, &meta).deleting_dependents => OwnerState::Waiting,
            Some(_) => OwnerState::Solid,
        };
        Ok(Some((state, Some(kind))))
    }

    /// The resource that a reference means, in exactly the version that it names.
    async fn resolve(&self, api_version: &str, kind: &str) -> Result<Arc<Kind>> {
        let key = (api_version.to_owned(), kind.to_owned());
        if let Some(known) = self.mapping.lock().get(&key) {
            return Ok(known.clone());
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let served = discovery::resources(&self.context.client, group, version).await?;
        let found = served.into_iter().find(|d| d.resource.kind == kind);
        let Some(found) = found else {
            return Err(Error::Other(format!(
                "no matches for kind {kind:?} in version {api_version:?}"
            )));
        };
        let kind = Arc::new(Kind {
            resource: found.resource,
            namespaced: found.namespaced,
        });
        self.mapping.lock().insert(key, kind.clone());
        Ok(kind)
    }

    async fn act(
        &self,
        node: &Node,
        uid: &str,
        live: &mut ObjectMeta,
        action: &Action,
    ) -> Result<()> {
        match action {
            Action::LookAt(uids) => {
                uids.iter()
                    .for_each(|uid| self.queue.add(Task::Delete(uid.clone())));
                Ok(())
            }
            Action::Finish => self.remove_finalizer(node, live, FOREGROUND).await,
            Action::DropOwners(uids) => {
                let left = owners_without(live, |o| uids.contains(&o.uid));
                self.patch(node, live, json!({"ownerReferences": left}))
                    .await
                    .map(drop)
            }
            Action::Unblock => {
                let mut owners = owners_without(live, |_| false);
                for owner in &mut owners {
                    owner.block_owner_deletion = Some(false);
                }
                if let Some(patched) = self
                    .patch(node, live, json!({"ownerReferences": owners}))
                    .await?
                {
                    *live = patched;
                }
                Ok(())
            }
            Action::Delete(policy) => self.delete(node, uid, live, *policy).await,
        }
    }

    async fn delete(
        &self,
        node: &Node,
        uid: &str,
        live: &ObjectMeta,
        policy: Policy,
    ) -> Result<()> {
        let params = DeleteParams {
            propagation_policy: Some(match policy {
                Policy::Background => PropagationPolicy::Background,
                Policy::Foreground => PropagationPolicy::Foreground,
                Policy::Orphan => PropagationPolicy::Orphan,
            }),
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: live.resource_version.clone(),
            }),
            ..Default::default()
        };
        tracing::debug!(kind = %node.kind.resource.kind, namespace = %node.namespace, name = %node.name, ?policy, "deleting");
        match self
            .api(&node.kind, &node.namespace)
            .delete(&node.name, &params)
            .await
            .map_err(Error::from)
        {
            Err(error) if error.is_not_found() => {
                self.gone(uid);
                Ok(())
            }
            other => other.map(drop),
        }
    }

    /// A merge patch of the metadata of exactly the revision that was seen; `None` if the object is gone.
    async fn patch(
        &self,
        node: &Node,
        live: &ObjectMeta,
        mut metadata: Value,
    ) -> Result<Option<ObjectMeta>> {
        metadata["uid"] = json!(live.uid);
        metadata["resourceVersion"] = json!(live.resource_version);
        let patch = Patch::Merge(json!({"metadata": metadata}));
        match self
            .api(&node.kind, &node.namespace)
            .patch_metadata(&node.name, &PatchParams::default(), &patch)
            .await
            .map_err(Error::from)
        {
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
            Ok(patched) => Ok(Some(patched.metadata)),
        }
    }

    async fn remove_finalizer(
        &self,
        node: &Node,
        live: &ObjectMeta,
        finalizer: &str,
    ) -> Result<()> {
        let before = live.finalizers.as_deref().unwrap_or_default();
        if !before.iter().any(|f| f == finalizer) {
            return Ok(());
        }
        let left: Vec<&String> = before.iter().filter(|f| *f != finalizer).collect();
        let left = if left.is_empty() {
            Value::Null
        } else {
            json!(left)
        };
        self.patch(node, live, json!({"finalizers": left}))
            .await
            .map(drop)
    }

    /// Takes the owner off all its dependents, then the finalizer off the owner.
    async fn let_go(&self, uid: &str) -> Result<Next> {
        let Some((node, dependents)) = self.node(uid) else {
            return Ok(Next::Done);
        };
        if !node.orphaning {
            return Ok(Next::Done);
        }
        futures::stream::iter(dependents)
            .map(|(dependent_uid, dependent)| self.orphan(uid, dependent_uid, dependent))
            .buffer_unordered(ORPHANED_AT_ONCE)
            .try_collect::<()>()
            .await?;
        match self
            .live(&node.kind, &node.namespace, &node.name, uid)
            .await?
        {
            Some(live) => self.remove_finalizer(&node, &live, ORPHAN).await?,
            None => self.gone(uid),
        }
        Ok(Next::Done)
    }

    async fn orphan(&self, owner: &str, uid: String, node: Node) -> Result<()> {
        // Whoever changes a dependent meanwhile (its kubelet, say) is waited for by trying again at once.
        for _ in 0..5 {
            let live = self
                .live(&node.kind, &node.namespace, &node.name, &uid)
                .await?;
            let Some(live) = live else { return Ok(()) };
            let left = owners_without(&live, |o| o.uid == owner);
            if left.len() == live.owner_references.as_deref().unwrap_or_default().len() {
                return Ok(());
            }
            match self
                .patch(&node, &live, json!({"ownerReferences": left}))
                .await
            {
                Err(error) if error.is_conflict() => {}
                other => return other.map(drop),
            }
        }
        Err(Error::Other(format!(
            "orphaning {}/{} failed: it changes all the time",
            node.namespace, node.name
        )))
    }
}

fn owners_without(
    meta: &ObjectMeta,
    dropped: impl Fn(&OwnerReference) -> bool,
) -> Vec<OwnerReference> {
    let owners = meta.owner_references.iter().flatten();
    owners.filter(|o| !dropped(o)).cloned().collect()
}
