//! DaemonSets: one pod on every node that fits.

pub mod fit;
pub mod plan;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::events::{EventType, Recorder, reference};
use client::{CancellationToken, Next, WorkQueue, key_of};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::DeleteParams;
use parking_lot::Mutex;
use serde_json::json;

use crate::frame::{Context, Error, Objects, Result, WORKERS, slow_start, work};
use crate::history::{self, REVISION_HASH, Synced};
use crate::meta::{self, controller_of, controller_ref};
use crate::ownership;
use crate::pods;
use plan::{GENERATION_LABEL, Observed, Plan, plan};

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(15 * 60);

/// How long failed pods are left alone, by the uid of the set and the node: else a pod that its kubelet refuses
/// would be made and refused as fast as can be.
#[derive(Default)]
struct Backoffs(HashMap<(String, String), (Duration, Instant)>);

impl Backoffs {
    fn of(&self, uid: &str, now: Instant) -> HashMap<String, Duration> {
        let mine = self.0.iter().filter(|((set, _), _)| set == uid);
        mine.filter_map(|((_, node), (delay, since))| {
            let left = delay.saturating_sub(now.duration_since(*since));
            (!left.is_zero()).then(|| (node.clone(), left))
        })
        .collect()
    }

    fn failed(&mut self, uid: &str, node: &str, now: Instant) {
        // What has been quiet for long starts afresh.
        self.0
            .retain(|_, (delay, since)| now.duration_since(*since) < *delay + MAX_BACKOFF);
        let entry = self.0.entry((uid.to_owned(), node.to_owned()));
        entry
            .and_modify(|(delay, since)| (*delay, *since) = ((*delay * 2).min(MAX_BACKOFF), now))
            .or_insert((FIRST_BACKOFF, now));
    }
}

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
    backoffs: Mutex<Backoffs>,
}

/// Whether a change of a node can make a difference to a DaemonSet.
fn is_relevant(old: &Node, new: &Node) -> bool {
    let taints = |n: &Node| n.spec.as_ref().and_then(|s| s.taints.clone());
    old.metadata.labels != new.metadata.labels || taints(old) != taints(new)
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let informers = context.informers();
    let (sets, pods, nodes) = (
        &informers.daemon_sets().informer,
        &informers.pods().informer,
        &informers.nodes().informer,
    );
    let revisions = &informers.controller_revisions().informer;
    let q = queue.clone();
    sets.on_change(move |old, new| {
        new.or(old)
            .into_iter()
            .for_each(|set| q.add(key_of(set.as_ref())))
    });
    let (q, copy) = (queue.clone(), sets.clone());
    nodes.on_change(move |old, new| {
        if old.zip(new).is_none_or(|(o, n)| is_relevant(o, n)) {
            copy.list().iter().for_each(|s| q.add(key_of(s.as_ref())));
        }
    });
    let (q, copy) = (queue.clone(), sets.clone());
    pods.on_change(move |old, new| {
        for pod in [old, new].into_iter().flatten() {
            let namespace = pod.namespace().unwrap_or_default();
            match controller_of(&pod.metadata) {
                Some(owner) if owner.kind == "DaemonSet" => {
                    q.add(format!("{namespace}/{}", owner.name));
                }
                Some(_) => {}
                None => copy
                    .namespace(&namespace)
                    .iter()
                    .filter(|s| meta::matches(&selector(s), pod.as_ref()))
                    .for_each(|s| q.add(key_of(s.as_ref()))),
            }
        }
    });
    sets.synced().await;
    pods.synced().await;
    nodes.synced().await;
    revisions.synced().await;
    let controller = Controller {
        recorder: context.recorder("daemonset-controller"),
        context: context.clone(),
        backoffs: Mutex::default(),
    };
    work(&queue, WORKERS, &token, |key| controller.reconcile(key)).await;
}

fn selector(set: &DaemonSet) -> apimachinery::selector::LabelSelector {
    let spec = set.spec.as_ref();
    spec.map_or_else(apimachinery::selector::LabelSelector::nothing, |s| {
        meta::selector(&s.selector)
    })
}

impl Controller {
    fn sets(&self) -> &Objects<DaemonSet> {
        self.context.informers().daemon_sets()
    }

    fn pods(&self) -> &Objects<Pod> {
        self.context.informers().pods()
    }

    async fn reconcile(&self, key: String) -> Result<Next> {
        let Some(set) = self.sets().informer.get(&key) else {
            return Ok(Next::Done);
        };
        let selector = selector(&set);
        if selector.is_everything() {
            let message =
                "This daemon set is selecting all pods. A non-empty selector is required.";
            self.tell(&set, EventType::Warning, "SelectingAll", message);
            return Ok(Next::Done);
        }
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Done);
        }
        let informers = self.context.informers();
        let claims = ownership::claims(set.as_ref(), &selector, informers, pods::is_active);
        ownership::settle(self.sets(), self.pods(), set.as_ref(), &claims).await?;
        let Some(hash) = self.present(&set, &claims.own).await? else {
            return Ok(Next::Done);
        };
        let uid = set.uid().unwrap_or_default();
        let backoff = self.backoffs.lock().of(&uid, Instant::now());
        let plan = plan(&Observed {
            set: &set,
            pods: &claims.own,
            nodes: &informers.nodes().informer.list(),
            hash: &hash,
            backoff: &backoff,
            now: Timestamp::now(),
        });
        self.act(&set, &hash, plan).await
    }

    /// The hash of the present template; `None` if another template has its name, which the status then says.
    async fn present(&self, set: &DaemonSet, pods: &[Arc<Pod>]) -> Result<Option<String>> {
        let informers = self.context.informers();
        let objects = informers.controller_revisions();
        let revisions = history::of(informers, set);
        let spec = set.spec.clone().unwrap_or_default();
        let collisions = set.status.as_ref().and_then(|s| s.collision_count);
        let owner = history::Owner {
            object: set,
            template: &spec.template,
            collisions,
            hash_label: REVISION_HASH,
        };
        match history::sync(objects, &revisions, &owner).await? {
            Synced::Present(revision) => {
                let hash = revision.labels().get(REVISION_HASH).cloned();
                let hash = hash.unwrap_or_else(|| revision.name_any());
                let used: HashSet<&String> = pods
                    .iter()
                    .filter_map(|p| p.labels().get(REVISION_HASH))
                    .chain([&hash])
                    .collect();
                let live = revisions.iter().filter(|r| {
                    r.labels()
                        .get(REVISION_HASH)
                        .is_some_and(|h| used.contains(h))
                });
                let live: HashSet<String> = live.map(|r| r.name_any()).collect();
                history::prune(objects, &revisions, &live, spec.revision_history_limit).await?;
                Ok(Some(hash))
            }
            Synced::Collision => {
                let mut status = set.status.clone().unwrap_or_default();
                status.collision_count = Some(collisions.unwrap_or(0) + 1);
                self.sets()
                    .patch_status(set, set.status.as_ref(), &status)
                    .await?;
                Ok(None)
            }
        }
    }

    async fn act(&self, set: &DaemonSet, hash: &str, plan: Plan) -> Result<Next> {
        for (kind, reason, message) in &plan.events {
            self.tell(set, *kind, reason, message);
        }
        let uid = set.uid().unwrap_or_default();
        for node in &plan.failed {
            self.backoffs.lock().failed(&uid, node, Instant::now());
        }
        let created = slow_start(plan.create.len(), |n| {
            let node = plan.create.get(n);
            async move {
                match node {
                    Some(node) => self.create(set, hash, node).await,
                    None => Ok(()),
                }
            }
        })
        .await;
        let deleted = plan.delete.iter().map(|pod| self.delete(set, pod));
        let deleted = futures::future::join_all(deleted).await;
        let mut status = plan.status;
        if created.is_err() {
            // What this generation asks for has not been done.
            let old = set.status.as_ref();
            status.observed_generation = old.and_then(|s| s.observed_generation);
        }
        self.sets()
            .patch_status(set, set.status.as_ref(), &status)
            .await?;
        created?;
        deleted.into_iter().collect::<Result<Vec<()>>>()?;
        Ok(plan.again.map_or(Next::Done, |after| {
            Next::After(after + Duration::from_millis(100))
        }))
    }

    fn tell(&self, set: &DaemonSet, kind: EventType, reason: &str, message: impl Into<String>) {
        self.recorder.event(&reference(set), kind, reason, message);
    }

    async fn create(&self, set: &DaemonSet, hash: &str, node: &str) -> Result<()> {
        let namespace = set.namespace().unwrap_or_default();
        let pod = new_pod(set, hash, node);
        match self.pods().create(&namespace, &pod).await {
            Ok(pod) => {
                let message = format!("Created pod: {}", pod.name_any());
                self.tell(set, EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) => {
                if !error.is_namespace_terminating() {
                    let message = format!("Error creating: {error}");
                    self.tell(set, EventType::Warning, "FailedCreate", message);
                }
                Err(error)
            }
        }
    }

    async fn delete(&self, set: &DaemonSet, pod: &Pod) -> Result<()> {
        let deleted = self.pods().delete_with(pod, DeleteParams::default()).await;
        match &deleted {
            Ok(()) => {
                let message = format!("Deleted pod: {}", pod.name_any());
                self.tell(set, EventType::Normal, "SuccessfulDelete", message);
            }
            Err(error) => {
                let message = format!("Error deleting: {error}");
                self.tell(set, EventType::Warning, "FailedDelete", message);
            }
        }
        deleted.map_err(|error| Error::Other(error.to_string()))
    }
}

fn new_pod(set: &DaemonSet, hash: &str, node: &str) -> Pod {
    let spec = set.spec.clone().unwrap_or_default();
    let namespace = set.namespace().unwrap_or_default();
    let mut pod = pods::from_template(&spec.template, &namespace, controller_ref(set));
    if let Some(generation) = plan::generation(set) {
        pod.labels_mut()
            .insert(GENERATION_LABEL.into(), generation.to_string());
    }
    pod.labels_mut().insert(REVISION_HASH.into(), hash.into());
    if let Some(pod_spec) = &mut pod.spec {
        let own = fit::own_tolerations(pod_spec);
        let tolerations = pod_spec.tolerations.get_or_insert_default();
        let differs = |t: &k8s_openapi::api::core::v1::Toleration| json!([t.key, t.effect]);
        for toleration in own {
            match tolerations
                .iter_mut()
                .find(|t| differs(t) == differs(&toleration))
            {
                Some(same) => *same = toleration,
                None => tolerations.push(toleration),
            }
        }
        fit::tie(pod_spec, node);
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_of_failed_pods() {
        let (mut backoffs, start) = (Backoffs::default(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        backoffs.failed("u", "n", at(0));
        assert_eq!(
            backoffs.of("u", at(0)).get("n"),
            Some(&Duration::from_secs(1))
        );
        assert!(backoffs.of("u", at(1)).is_empty());
        assert!(backoffs.of("other", at(0)).is_empty());
        backoffs.failed("u", "n", at(2));
        assert_eq!(
            backoffs.of("u", at(2)).get("n"),
            Some(&Duration::from_secs(2))
        );
        backoffs.failed("u", "n", at(2000));
        assert_eq!(
            backoffs.of("u", at(2000)).get("n"),
            Some(&Duration::from_secs(1))
        );
    }

    #[test]
    fn a_pod_is_tied_to_its_node() {
        let set: DaemonSet = serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "d", "uid": "u"},
            "spec": {"selector": {}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [],
                "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]}}}}))
        .unwrap();
        let pod = new_pod(&set, "h", "n");
        assert_eq!(fit::target(&pod), Some("n"));
        assert_eq!(pod.labels()[REVISION_HASH], "h");
        let tolerations = pod.spec.unwrap().tolerations.unwrap();
        assert_eq!(tolerations.len(), 6);
        assert_eq!(tolerations[0].toleration_seconds, None);
    }
}
