//! PodDisruptionBudgets: how many pods an eviction may take now.
//!
//! [`plan`] counts; the API server's eviction reads what was counted, and subtracts from it. A budget is counted again
//! when it changes, when one of its pods does, and when what controls pods in its namespace is scaled. The second
//! thing done here is to take back from pods that they are to be disrupted, if nobody does it.

pub mod plan;

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::selector::LabelSelector;
use client::events::{EventType, Recorder, reference};
use client::{CancellationToken, Informer, Next, WorkQueue, key_of};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::{Resource, ResourceExt};
use serde_json::json;

use crate::frame::{Context, Error, Result, WORKERS, work};
use crate::informers::Informers;
use crate::meta::{self, controller_of};
use crate::pods;
use crate::scale::Targets;
use plan::{Observed, Plan, Scale, needs_scale, plan, stale};

/// What is in need of work.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Budget(String),
    /// A pod that is to be disrupted.
    Pod(String),
}

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
    targets: Targets,
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let recorder = context.recorder("controllermanager");
    let informers = context.informers();
    let budgets = &informers.pod_disruption_budgets().informer;
    let q = queue.clone();
    budgets.on_change(move |_, new| {
        new.into_iter()
            .for_each(|b| q.add(Key::Budget(key_of(b.as_ref()))));
    });
    watch_pods(&queue, informers, recorder.clone());
    let (sets, deployments) = (informers.replica_sets(), informers.deployments());
    watch_scale(&queue, &sets.informer, budgets, |s: &ReplicaSet| {
        s.spec.as_ref()?.replicas
    });
    watch_scale(&queue, &deployments.informer, budgets, |d: &Deployment| {
        d.spec.as_ref()?.replicas
    });
    let (stateful, controllers) = (
        informers.stateful_sets(),
        informers.replication_controllers(),
    );
    watch_scale(&queue, &stateful.informer, budgets, |s: &StatefulSet| {
        s.spec.as_ref()?.replicas
    });
    watch_scale(
        &queue,
        &controllers.informer,
        budgets,
        |c: &ReplicationController| c.spec.as_ref()?.replicas,
    );
    budgets.synced().await;
    informers.pods().informer.synced().await;
    sets.informer.synced().await;
    deployments.informer.synced().await;
    stateful.informer.synced().await;
    controllers.informer.synced().await;
    let controller = Controller {
        targets: Targets::new(context.client.clone()),
        recorder,
        context: context.clone(),
    };
    work(&queue, WORKERS, &token, |key| controller.reconcile(key)).await;
}

/// What of a pod matters to the budgets that select it.
fn matters(pod: &Pod) -> impl PartialEq {
    (
        pod.metadata.labels.clone(),
        pod.metadata.deletion_timestamp.is_some(),
        pods::is_ready(pod),
        controller_of(&pod.metadata).map(|o| o.uid.clone()),
    )
}

fn selector(budget: &PodDisruptionBudget) -> LabelSelector {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.map_or_else(LabelSelector::nothing, meta::selector)
}

fn watch_pods(queue: &WorkQueue<Key>, informers: &Informers, recorder: Recorder) {
    let budgets = informers.pod_disruption_budgets().informer.clone();
    let q = queue.clone();
    informers.pods().informer.on_change(move |old, new| {
        if let Some(new) = new
            && let Some(wait) = stale(new, Timestamp::now())
        {
            q.add_after(Key::Pod(key_of(new.as_ref())), wait);
        }
        if let (Some(old), Some(new)) = (old, new)
            && matters(old) == matters(new)
        {
            return;
        }
        let Some(pod) = new.or(old) else { return };
        let mut selecting = Vec::new();
        for budget in budgets.namespace(&pod.namespace().unwrap_or_default()) {
            let selector = selector(&budget);
            let selects = |pod: &Arc<Pod>| meta::matches(&selector, pod.as_ref());
            if [old, new].into_iter().flatten().any(selects) {
                q.add(Key::Budget(key_of(budget.as_ref())));
            }
            if new.is_some_and(selects) {
                selecting.push(budget.name_any());
            }
        }
        let relabelled = old.is_none_or(|o| o.labels() != pod.labels());
        if let [first, _, ..] = &selecting[..]
            && relabelled
        {
            // Evictions of such a pod are refused.
            let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
            let message = format!(
                "Pod {namespace:?}/{name:?} matches multiple PodDisruptionBudgets.  Chose {first:?} arbitrarily."
            );
            let about = reference(pod.as_ref());
            let reason = "MultiplePodDisruptionBudgets";
            recorder.event(&about, EventType::Warning, reason, message);
        }
    });
}

/// Pods that are wanted and not there yet count too, so every budget of a namespace is looked at again when anything
/// in it is scaled.
fn watch_scale<K>(
    queue: &WorkQueue<Key>,
    owners: &Informer<K>,
    budgets: &Informer<PodDisruptionBudget>,
    replicas: fn(&K) -> Option<i32>,
) where
    K: Resource + Send + Sync + 'static,
{
    let (q, budgets) = (queue.clone(), budgets.clone());
    owners.on_change(move |old, new| {
        let scale = |o: Option<&Arc<K>>| o.map(|o| (o.uid(), replicas(o)));
        if scale(old) == scale(new) {
            return;
        }
        let namespace = new.or(old).and_then(|o| o.namespace());
        for budget in budgets.namespace(&namespace.unwrap_or_default()) {
            if budget.spec.as_ref().is_some_and(needs_scale) {
                q.add(Key::Budget(key_of(budget.as_ref())));
            }
        }
    });
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Next> {
        match key {
            Key::Budget(key) => self.count(&key).await,
            Key::Pod(key) => self.calm(&key).await,
        }
    }

    async fn count(&self, key: &str) -> Result<Next> {
        let informers = self.context.informers();
        let budgets = informers.pod_disruption_budgets();
        let Some(budget) = budgets.informer.get(key) else {
            return Ok(Next::Done);
        };
        let selector = selector(&budget);
        let mut pods = informers
            .pods()
            .informer
            .namespace(&budget.namespace().unwrap_or_default());
        pods.retain(|pod| meta::matches(&selector, pod.as_ref()));
        let scale = match budget.spec.as_ref().is_some_and(needs_scale) {
            true => self.scale(&pods).await,
            false => Ok(Scale::default()),
        };
        // What the server did not answer may be answered soon; anything else takes a change to be mended.
        let (scale, failure) = match scale {
            Ok(scale) => (Ok(scale), None),
            Err(error) => (
                Err(error.to_string()),
                Some(error).filter(|e| matches!(e, Error::Api(_))),
            ),
        };
        let plan = plan(&Observed {
            budget: &budget,
            pods: &pods,
            scale,
            now: Timestamp::now(),
        });
        let again = plan.again;
        self.act(&budget, plan).await?;
        match failure {
            Some(error) => Err(error),
            None => Ok(again.map_or(Next::Done, Next::After)),
        }
    }

    async fn act(&self, budget: &PodDisruptionBudget, plan: Plan) -> Result<()> {
        for (kind, reason, message) in plan.events {
            self.recorder
                .event(&reference(budget), kind, reason, message);
        }
        for pod in &plan.not_deleted {
            let message = format!(
                "Pod was expected by PDB {} to be deleted but it wasn't",
                key_of(budget)
            );
            let about = reference(pod.as_ref());
            self.recorder
                .event(&about, EventType::Warning, "NotDeleted", message);
        }
        self.context
            .informers()
            .pod_disruption_budgets()
            .patch_status(budget, budget.status.as_ref(), &plan.status)
            .await
    }

    /// How many pods the controllers of these pods want.
    async fn scale(&self, pods: &[Arc<Pod>]) -> Result<Scale> {
        let mut seen: HashMap<&str, String> = HashMap::new();
        let mut wanted: HashMap<String, i32> = HashMap::new();
        let mut unmanaged = false;
        for pod in pods {
            let Some(owner) = controller_of(&pod.metadata) else {
                unmanaged = true;
                continue;
            };
            if seen.contains_key(owner.uid.as_str()) {
                continue;
            }
            let namespace = pod.namespace().unwrap_or_default();
            let found = match scaled_by(self.context.informers(), owner, &namespace) {
                Some(found) => Some(found),
                None => self.subresource(owner, &namespace).await?,
            };
            let Some((uid, replicas)) = found else {
                let name = pod.name_any();
                return Err(Error::Other(format!(
                    "found no controllers for pod {name:?}"
                )));
            };
            seen.insert(&owner.uid, uid.clone());
            wanted.insert(uid, replicas);
        }
        Ok(Scale {
            wanted: wanted.into_values().fold(0, i32::saturating_add),
            unmanaged,
        })
    }

    /// The scale of an owner of a kind that we have no copies of.
    async fn subresource(
        &self,
        owner: &OwnerReference,
        namespace: &str,
    ) -> Result<Option<(String, i32)>> {
        let target = CrossVersionObjectReference {
            api_version: Some(owner.api_version.clone()),
            kind: owner.kind.clone(),
            name: owner.name.clone(),
        };
        let scale = self.targets.find(namespace, &target).await?;
        let scale = scale.filter(|s| s.metadata.uid.as_ref() == Some(&owner.uid));
        Ok(scale.map(|s| {
            let replicas = s.spec.and_then(|s| s.replicas).unwrap_or(0);
            (owner.uid.clone(), replicas)
        }))
    }

    /// Takes back that a pod is to be disrupted.
    async fn calm(&self, key: &str) -> Result<Next> {
        let pods = self.context.informers().pods();
        let Some(pod) = pods.informer.get(key) else {
            return Ok(Next::Done);
        };
        let now = Timestamp::now();
        match stale(&pod, now) {
            None => Ok(Next::Done),
            Some(left) if !left.is_zero() => Ok(Next::After(left)),
            Some(_) => {
                let condition = json!({
                    "type": "DisruptionTarget", "status": "False", "lastTransitionTime": Time(now),
                    "observedGeneration": pod.metadata.generation, "reason": null, "message": null,
                });
                pods.patch_status_strategic(&pod, json!({"conditions": [condition]}))
                    .await?;
                Ok(Next::Done)
            }
        }
    }
}

/// Who says how many pods an owner has, and how many: for a ReplicaSet of a Deployment, that one.
fn scaled_by(
    informers: &Informers,
    owner: &OwnerReference,
    namespace: &str,
) -> Option<(String, i32)> {
    let key = format!("{namespace}/{}", owner.name);
    let group = owner.api_version.split_once('/').map_or("", |(g, _)| g);
    let same = |uid: &Option<String>| uid.as_ref() == Some(&owner.uid);
    let replicas = match (group, owner.kind.as_str()) {
        ("", "ReplicationController") => {
            let found = informers.replication_controllers().informer.get(&key)?;
            same(&found.metadata.uid).then(|| found.spec.as_ref().and_then(|s| s.replicas))?
        }
        ("apps", "StatefulSet") => {
            let found = informers.stateful_sets().informer.get(&key)?;
            same(&found.metadata.uid).then(|| found.spec.as_ref().and_then(|s| s.replicas))?
        }
        ("apps" | "extensions", "ReplicaSet") => {
            let found = informers.replica_sets().informer.get(&key)?;
            if let Some(above) = controller_of(&found.metadata).filter(|o| o.kind == "Deployment") {
                return same(&found.metadata.uid)
                    .then(|| deployment(informers, above, namespace))
                    .flatten();
            }
            same(&found.metadata.uid).then(|| found.spec.as_ref().and_then(|s| s.replicas))?
        }
        _ => return None,
    };
    Some((owner.uid.clone(), replicas.unwrap_or(1)))
}

fn deployment(
    informers: &Informers,
    owner: &OwnerReference,
    namespace: &str,
) -> Option<(String, i32)> {
    let key = format!("{namespace}/{}", owner.name);
    let found = informers.deployments().informer.get(&key)?;
    let replicas = found.spec.as_ref().and_then(|s| s.replicas);
    (found.metadata.uid.as_ref() == Some(&owner.uid))
        .then(|| (owner.uid.clone(), replicas.unwrap_or(1)))
}
