//! StatefulSets: replicas with names, an order and claims of their own.

pub mod identity;
pub mod plan;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use client::events::{EventType, Recorder, reference};
use client::{CancellationToken, Next, WorkQueue, key_of};
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::json;

use crate::frame::{Context, Error, Objects, Result, WORKERS, work};
use crate::history::{self, HASH, REVISION_HASH, Synced, template_of};
use crate::meta::{self, controller_of};
use crate::ownership;
use identity::{POD_INDEX, POD_NAME, ordinal};
use plan::{Action, Observed, in_range, plan};

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
}

/// The revision of the replicas that an update has not reached, and the present one.
struct Revisions {
    current: Arc<ControllerRevision>,
    update: Arc<ControllerRevision>,
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let informers = context.informers();
    let (sets, pods) = (
        &informers.stateful_sets().informer,
        &informers.pods().informer,
    );
    let claims = &informers.persistent_volume_claims().informer;
    let revisions = &informers.controller_revisions().informer;
    let q = queue.clone();
    sets.on_change(move |old, new| {
        new.or(old)
            .into_iter()
            .for_each(|set| q.add(key_of(set.as_ref())))
    });
    let (q, copy) = (queue.clone(), sets.clone());
    pods.on_change(move |old, new| {
        for pod in [old, new].into_iter().flatten() {
            let namespace = pod.namespace().unwrap_or_default();
            match controller_of(&pod.metadata) {
                Some(owner) if owner.kind == "StatefulSet" => {
                    q.add(format!("{namespace}/{}", owner.name));
                }
                Some(_) => {}
                None => copy
                    .namespace(&namespace)
                    .iter()
                    .filter(|s| {
                        ordinal(&s.name_any(), pod).is_some()
                            && meta::matches(&selector(s), pod.as_ref())
                    })
                    .for_each(|s| q.add(key_of(s.as_ref()))),
            }
        }
    });
    sets.synced().await;
    pods.synced().await;
    claims.synced().await;
    revisions.synced().await;
    let controller = Controller {
        recorder: context.recorder("statefulset-controller"),
        context: context.clone(),
    };
    work(&queue, WORKERS, &token, |key| controller.reconcile(key)).await;
}

fn selector(set: &StatefulSet) -> apimachinery::selector::LabelSelector {
    let spec = set.spec.as_ref();
    spec.map_or_else(apimachinery::selector::LabelSelector::nothing, |s| {
        meta::selector(&s.selector)
    })
}

impl Controller {
    fn sets(&self) -> &Objects<StatefulSet> {
        self.context.informers().stateful_sets()
    }

    fn pods(&self) -> &Objects<Pod> {
        self.context.informers().pods()
    }

    fn claims(&self) -> &Objects<PersistentVolumeClaim> {
        self.context.informers().persistent_volume_claims()
    }

    async fn reconcile(&self, key: String) -> Result<Next> {
        let Some(set) = self.sets().informer.get(&key) else {
            return Ok(Next::Done);
        };
        let (name, selector) = (set.name_any(), selector(&set));
        let informers = self.context.informers();
        let mut claimed = ownership::claims(set.as_ref(), &selector, informers, |pod| {
            ordinal(&name, pod).is_some()
        });
        ownership::settle(self.sets(), self.pods(), set.as_ref(), &claimed).await?;
        claimed.own.retain(|pod| ordinal(&name, pod).is_some());
        let Some(revisions) = self.revisions(&set, &claimed.own).await? else {
            return Ok(Next::Done);
        };
        let collisions = set.status.as_ref().and_then(|s| s.collision_count);
        let plan = plan(&Observed {
            set: &set,
            pods: &claimed.own,
            current: &revisions.current.name_any(),
            update: &revisions.update.name_any(),
            collisions: collisions.unwrap_or(0),
            now: Timestamp::now(),
        });
        let tended = match set.metadata.deletion_timestamp.is_none() {
            true => self.tend(&set, &claimed.own).await,
            false => Ok(()),
        };
        let acts = plan.actions.iter().map(|a| self.act(&set, &revisions, a));
        let acted: Result<Vec<()>> = join_all(acts).await.into_iter().collect();
        self.sets()
            .patch_status(&set, set.status.as_ref(), &plan.status)
            .await?;
        acted?;
        tended?;
        Ok(plan.again.map_or(Next::Done, |after| {
            Next::After(after + Duration::from_millis(100))
        }))
    }

    /// Makes the present template a revision; `None` if its name is taken by another one, which the status then says.
    async fn revisions(&self, set: &StatefulSet, pods: &[Arc<Pod>]) -> Result<Option<Revisions>> {
        let informers = self.context.informers();
        let objects = informers.controller_revisions();
        let known = history::of(informers, set);
        let spec = set.spec.clone().unwrap_or_default();
        let status = set.status.clone().unwrap_or_default();
        let owner = history::Owner {
            object: set,
            template: &spec.template,
            collisions: status.collision_count,
            hash_label: HASH,
        };
        let update = match history::sync(objects, &known, &owner).await? {
            Synced::Present(update) => update,
            Synced::Collision => {
                let mut status = status;
                status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
                self.sets()
                    .patch_status(set, set.status.as_ref(), &status)
                    .await?;
                return Ok(None);
            }
        };
        let name = status.current_revision.unwrap_or_default();
        let current = known.iter().find(|r| r.name_any() == name).cloned();
        let current = current.unwrap_or_else(|| update.clone());
        let mut live: HashSet<String> = pods
            .iter()
            .filter_map(|p| p.labels().get(REVISION_HASH).cloned())
            .collect();
        live.extend([current.name_any(), update.name_any()]);
        history::prune(objects, &known, &live, spec.revision_history_limit).await?;
        Ok(Some(Revisions { current, update }))
    }

    async fn act(&self, set: &StatefulSet, revisions: &Revisions, action: &Action) -> Result<()> {
        match action {
            Action::Create { ordinal, updated } => {
                let revision = match updated {
                    true => &revisions.update,
                    false => &revisions.current,
                };
                let template = template_of(revision).unwrap_or_default();
                self.create(set, &template, &revision.name_any(), *ordinal)
                    .await
            }
            Action::Delete(pod) => {
                let deleted = self.pods().delete_with(pod, DeleteParams::default()).await;
                self.tell(set, "Delete", &pod.name_any(), deleted)
            }
        }
    }

    /// Says how an action on a pod went, and passes the result on.
    fn tell(&self, set: &StatefulSet, what: &str, pod: &str, result: Result<()>) -> Result<()> {
        let verb = what.to_lowercase();
        let about = format!("{verb} Pod {pod} in StatefulSet {}", set.name_any());
        let (kind, reason, message) = match &result {
            Ok(()) => (
                EventType::Normal,
                "Successful",
                format!("{about} successful"),
            ),
            Err(error) if error.is_namespace_terminating() => return result,
            Err(error) => (
                EventType::Warning,
                "Failed",
                format!("{about} failed error: {error}"),
            ),
        };
        let reason = format!("{reason}{what}");
        self.recorder.event(&reference(set), kind, &reason, message);
        result
    }

    async fn create(
        &self,
        set: &StatefulSet,
        template: &PodTemplateSpec,
        revision: &str,
        ordinal: i32,
    ) -> Result<()> {
        let namespace = set.namespace().unwrap_or_default();
        let spec = set.spec.clone().unwrap_or_default();
        let pod = identity::new_pod(set, template, revision, ordinal);
        let name = pod.name_any();
        if self.has_stale_claim(&spec, &pod) {
            return Err(Error::Other(format!(
                "a claim of the pod that {name} was before is not gone yet"
            )));
        }
        if let Err(error) = self.make_claims(set, &name).await {
            return self.tell(set, "Create", &name, Err(error));
        }
        match self.pods().create(&namespace, &pod).await {
            // Its predecessor may not be gone from the server yet, or this is our own that the copy has not seen.
            Err(error) if error.already_exists() => Err(error),
            other => self.tell(set, "Create", &name, other.map(drop)),
        }
    }

    fn has_stale_claim(&self, spec: &StatefulSetSpec, pod: &Pod) -> bool {
        let namespace = pod.namespace().unwrap_or_default();
        let names = identity::claim_names(spec, &pod.name_any()).into_iter();
        let mut claims =
            names.filter_map(|n| self.claims().informer.get(&format!("{namespace}/{n}")));
        claims.any(|claim| identity::is_stale(&claim, spec, pod))
    }

    async fn make_claims(&self, set: &StatefulSet, pod: &str) -> Result<()> {
        let namespace = set.namespace().unwrap_or_default();
        for claim in identity::new_claims(set, pod) {
            let name = claim.name_any();
            if let Some(there) = self.claims().informer.get(&format!("{namespace}/{name}")) {
                if there.metadata.deletion_timestamp.is_some() {
                    return Err(Error::Other(format!("pvc {name} is being deleted")));
                }
                continue;
            }
            let about = format!(
                "create Claim {name} Pod {pod} in StatefulSet {}",
                set.name_any()
            );
            match self.claims().create(&namespace, &claim).await {
                Err(error) if error.already_exists() => {}
                Err(error) => {
                    let message = format!("{about} failed error: {error}");
                    self.recorder.event(
                        &reference(set),
                        EventType::Warning,
                        "FailedCreate",
                        message,
                    );
                    return Err(error);
                }
                Ok(_) => {
                    let message = format!("{about} success");
                    self.recorder.event(
                        &reference(set),
                        EventType::Normal,
                        "SuccessfulCreate",
                        message,
                    );
                }
            }
        }
        Ok(())
    }

    /// Sees that pods are labelled as whom they are, and have their claims, with the owners that the policy wants.
    async fn tend(&self, set: &StatefulSet, pods: &[Arc<Pod>]) -> Result<()> {
        let spec = set.spec.clone().unwrap_or_default();
        let namespace = set.namespace().unwrap_or_default();
        for pod in pods
            .iter()
            .filter(|p| p.metadata.deletion_timestamp.is_none())
        {
            let name = pod.name_any();
            let Some(ordinal) = ordinal(&set.name_any(), pod) else {
                continue;
            };
            if pod.labels().get(POD_NAME) != Some(&name) {
                let labels = json!({POD_NAME: name, POD_INDEX: ordinal.to_string()});
                self.pods()
                    .patch(pod, json!({"metadata": {"labels": labels}}))
                    .await?;
            }
            let in_range = in_range(&spec, ordinal);
            if in_range && crate::pods::phase(pod) == "Pending" {
                self.make_claims(set, &name).await?;
            }
            for claim in identity::claim_names(&spec, &name) {
                let Some(claim) = self.claims().informer.get(&format!("{namespace}/{claim}"))
                else {
                    continue;
                };
                if let Some(owners) = identity::wanted_owners(&claim, set, pod, in_range) {
                    self.claims()
                        .patch_exact(&claim, json!({"metadata": {"ownerReferences": owners}}))
                        .await?;
                }
            }
        }
        Ok(())
    }
}
