//! Deployments: replace one pod template by another, without the service noticing.
//!
//! A Deployment acts through ReplicaSets, one per template: [`plan`] decides their sizes, [`status`] reports. The
//! ReplicaSet controller does the rest. Rollback needs no code here: `kubectl rollout undo` writes an old template
//! back, whose ReplicaSet is still there, and becomes the newest revision again.

pub mod plan;
pub mod sets;
pub mod status;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::selector::LabelSelector;
use client::events::{EventType, Recorder, reference};
use client::{CancellationToken, Next, WorkQueue, key_of};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use kube::ResourceExt;
use kube::api::PropagationPolicy;
use serde_json::{Value, json};

use crate::frame::{Context, Error, Objects, Result, WORKERS, work};
use crate::meta::{self, CONTROLLER, controller_of, controller_ref, orphans};
use crate::pods;
use plan::{Action, Observed, plan};

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let informers = context.informers();
    let (deployments, sets) = (
        &informers.deployments().informer,
        &informers.replica_sets().informer,
    );
    let q = queue.clone();
    deployments.on_change(move |old, new| {
        new.or(old)
            .into_iter()
            .for_each(|d| q.add(key_of(d.as_ref())))
    });
    let (q, copy) = (queue.clone(), deployments.clone());
    sets.on_change(move |old, new| {
        for set in [old, new].into_iter().flatten() {
            let namespace = set.namespace().unwrap_or_default();
            match controller_of(&set.metadata) {
                Some(owner) if owner.kind == "Deployment" => {
                    q.add(format!("{namespace}/{}", owner.name))
                }
                Some(_) => {}
                None => copy
                    .namespace(&namespace)
                    .iter()
                    .filter(|d| selects(d, set))
                    .for_each(|d| q.add(key_of(d.as_ref()))),
            }
        }
    });
    // Recreate waits for the last old pod to be gone.
    let (q, copy, all_sets) = (queue.clone(), deployments.clone(), sets.clone());
    informers.pods().informer.on_change(move |old, new| {
        let Some(pod) = old.filter(|_| new.is_none_or(|p| pods::is_terminated(p))) else {
            return;
        };
        let namespace = pod.namespace().unwrap_or_default();
        let set = controller_of(&pod.metadata)
            .and_then(|owner| all_sets.get(&format!("{namespace}/{}", owner.name)));
        let owner = set.as_ref().and_then(|set| controller_of(&set.metadata));
        let key = owner
            .map(|owner| format!("{namespace}/{}", owner.name))
            .unwrap_or_default();
        if copy.get(&key).is_some_and(|d| plan::is_recreate(&d)) {
            q.add(key);
        }
    });
    deployments.synced().await;
    sets.synced().await;
    informers.pods().informer.synced().await;
    let controller = Controller {
        recorder: context.recorder("deployment-controller"),
        context: context.clone(),
    };
    work(&queue, WORKERS, &token, |key| controller.reconcile(key)).await;
}

fn selects(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let selector = deployment
        .spec
        .as_ref()
        .map_or_else(LabelSelector::nothing, |s| meta::selector(&s.selector));
    meta::matches(&selector, set)
}

impl Controller {
    fn deployments(&self) -> &Objects<Deployment> {
        self.context.informers().deployments()
    }

    fn sets(&self) -> &Objects<ReplicaSet> {
        self.context.informers().replica_sets()
    }

    /// How many pods of each ReplicaSet may still run. Only Recreate asks.
    fn running(&self, deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> HashMap<String, usize> {
        if !plan::is_recreate(deployment) {
            return HashMap::new();
        }
        let of = |uid: &str| {
            let pods = self
                .context
                .informers()
                .pods()
                .informer
                .by_index(CONTROLLER, uid);
            pods.iter().filter(|p| !pods::is_terminated(p)).count()
        };
        sets.iter()
            .filter_map(|s| s.uid())
            .map(|uid| (uid.clone(), of(&uid)))
            .collect()
    }

    async fn reconcile(&self, key: String) -> Result<Next> {
        let Some(deployment) = self.deployments().informer.get(&key) else {
            return Ok(Next::Done);
        };
        let sets = &self.sets().informer;
        let mut candidates = sets.by_index(
            CONTROLLER,
            deployment.metadata.uid.as_deref().unwrap_or_default(),
        );
        candidates.extend(sets.by_index(
            CONTROLLER,
            &orphans(deployment.metadata.namespace.as_deref().unwrap_or_default()),
        ));
        let running = self.running(&deployment, &candidates);
        let now = Timestamp::now();
        let plan = plan(&Observed {
            deployment: &deployment,
            sets: &candidates,
            running: &running,
            now,
        });

        let mut status = plan.status;
        let mut failure = None;
        for action in &plan.actions {
            if let Err(error) = self.act(&deployment, action, &mut status, now).await {
                failure = Some(error);
                break;
            }
        }
        // The revision annotation may just have been written: what the status is checked against is the newest copy.
        let newest = self
            .deployments()
            .informer
            .get(&key)
            .filter(|d| d.metadata.uid == deployment.metadata.uid);
        if let Some(newest) =
            newest.filter(|n| n.metadata.generation == deployment.metadata.generation)
        {
            self.deployments()
                .patch_status(&newest, newest.status.as_ref(), &status)
                .await?;
        }
        match (failure, plan.again) {
            (Some(error), _) => Err(error),
            (None, Some(after)) => Ok(Next::After(after.max(Duration::from_secs(1)))),
            (None, None) => Ok(Next::Done),
        }
    }

    async fn act(
        &self,
        deployment: &Deployment,
        action: &Action,
        status: &mut DeploymentStatus,
        now: Timestamp,
    ) -> Result<()> {
        match action {
            Action::Adopt(set) => self.adopt(deployment, set).await,
            Action::Release(set) => {
                let patch =
                    meta::release_patch(deployment.metadata.uid.as_deref().unwrap_or_default());
                ignore_not_found(self.sets().patch_strategic(set, patch).await)
            }
            Action::Create(set) => self.create(deployment, set, status, now).await,
            Action::Annotate {
                set,
                annotations,
                min_ready_seconds,
            } => {
                let mut patch = json!({"metadata": {"annotations": annotations}});
                if let Some(seconds) = min_ready_seconds {
                    patch["spec"] = json!({"minReadySeconds": seconds});
                }
                self.sets().patch(set, patch).await
            }
            Action::Scale {
                set,
                from,
                to,
                annotations,
            } => {
                let patch =
                    json!({"metadata": {"annotations": annotations}, "spec": {"replicas": to}});
                self.sets().patch_exact(set, patch).await?;
                if from != to {
                    let direction = if to > from { "up" } else { "down" };
                    let message = format!(
                        "Scaled {direction} replica set {} from {from} to {to}",
                        set.name_any()
                    );
                    self.recorder.event(
                        &reference(deployment),
                        EventType::Normal,
                        "ScalingReplicaSet",
                        message,
                    );
                }
                Ok(())
            }
            Action::Delete(set) => self.sets().delete(set, PropagationPolicy::Background).await,
            Action::SetRevision(revision) => {
                let patch = json!({"metadata": {"annotations": {sets::REVISION: revision}}});
                self.deployments().patch(deployment, patch).await
            }
        }
    }

    async fn adopt(&self, deployment: &Deployment, set: &ReplicaSet) -> Result<()> {
        let namespace = deployment.namespace().unwrap_or_default();
        match self
            .deployments()
            .api(&namespace)
            .get_opt(&deployment.name_any())
            .await?
        {
            Some(d)
                if d.metadata.uid == deployment.metadata.uid
                    && d.metadata.deletion_timestamp.is_none() => {}
            _ => {
                return Err(Error::Other(format!(
                    "{} has been deleted or replaced",
                    key_of(deployment)
                )));
            }
        }
        self.sets()
            .patch_strategic(set, meta::adopt_patch(&controller_ref(deployment)))
            .await
    }

    async fn create(
        &self,
        deployment: &Deployment,
        set: &ReplicaSet,
        status: &mut DeploymentStatus,
        now: Timestamp,
    ) -> Result<()> {
        let namespace = deployment.namespace().unwrap_or_default();
        let error = match self.sets().create(&namespace, set).await {
            Ok(created) => {
                let replicas = sets::replicas(&created);
                if replicas > 0 {
                    let message = format!(
                        "Scaled up replica set {} from 0 to {replicas}",
                        created.name_any()
                    );
                    self.recorder.event(
                        &reference(deployment),
                        EventType::Normal,
                        "ScalingReplicaSet",
                        message,
                    );
                }
                return Ok(());
            }
            Err(error) => error,
        };
        if error.already_exists() {
            // Made by an earlier pass that this copy has not caught up with, or a hash that two templates share.
            let there = self.sets().api(&namespace).get(&set.name_any()).await?;
            let ours =
                controller_of(&there.metadata).map(|o| &o.uid) == deployment.metadata.uid.as_ref();
            let same = sets::same_template(sets::template(&there), sets::template(set));
            if !(ours && same) {
                status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
            }
        } else if !error.is_namespace_terminating() {
            let message = format!(
                "Failed to create new replica set \"{}\": {error}",
                set.name_any()
            );
            if status::progress_deadline(deployment).is_some() {
                status::set_condition(
                    status,
                    "Progressing",
                    "False",
                    "ReplicaSetCreateError",
                    &message,
                    now,
                );
            }
            self.recorder.event(
                &reference(deployment),
                EventType::Warning,
                "ReplicaSetCreateError",
                message,
            );
        }
        Err(error)
    }
}

fn ignore_not_found(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// A map of annotations as a JSON object.
pub(crate) fn annotations_value<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> Value {
    Value::Object(
        pairs
            .into_iter()
            .map(|(k, v)| (k.to_owned(), Value::String(v)))
            .collect(),
    )
}
