//! Jobs: pods that run to their end, so and so often, with so and so many at a time.
//!
//! [`plan`] decides; this module does it in an order that loses no count: pods are made and stopped, the status with
//! the uids of what ended is written, and only then are finalizers taken off.

pub mod indexes;
pub mod plan;
pub mod policy;
pub mod view;

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use client::events::{EventType, Recorder, reference};
use client::{CancellationToken, Next, WorkQueue, key_of, split_key};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod, PodSpec};
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::json;

use crate::frame::{Context, Error, Objects, Result, WORKERS, slow_start, work};
use crate::meta::{self, CONTROLLER, controller_of, controller_ref, orphans};
use crate::pods;
use plan::{NewPod, Observed, Plan, plan};
use view::{FAILURES, FINALIZER, IGNORED_FAILURES, INDEX, is_finished, is_indexed, is_tracked};

const MANAGER: &str = "kubernetes.io/job-controller";
const INDEX_ENV: &str = "JOB_COMPLETION_INDEX";
/// The longest prefix to which the API server adds a suffix without cutting it.
const MAX_PREFIX: usize = 58;

/// What is in need of work.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Job(String),
    /// A pod with our finalizer whose Job may not exist any more.
    Pod(String),
}

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
}

/// Whether another controller was asked to look after a Job.
fn is_foreign(job: &Job) -> bool {
    let manager = job.spec.as_ref().and_then(|s| s.managed_by.as_deref());
    manager.is_some_and(|m| m != MANAGER)
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let (jobs, pods) = (
        &context.informers().jobs().informer,
        &context.informers().pods().informer,
    );
    let (q, copy) = (queue.clone(), pods.clone());
    jobs.on_change(move |old, new| {
        let Some(job) = new.or(old) else { return };
        q.add(Key::Job(key_of(job.as_ref())));
        if new.is_none() || is_finished(job) {
            let uid = job.uid().unwrap_or_default();
            let left = copy.by_index(CONTROLLER, &uid);
            left.iter()
                .filter(|p| is_tracked(p))
                .for_each(|p| q.add(Key::Pod(key_of(p.as_ref()))));
        }
    });
    let (q, copy) = (queue.clone(), jobs.clone());
    pods.on_change(move |old, new| {
        for pod in [old, new].into_iter().flatten() {
            let namespace = pod.namespace().unwrap_or_default();
            match controller_of(&pod.metadata) {
                Some(owner) if owner.kind == "Job" => {
                    let key = format!("{namespace}/{}", owner.name);
                    let ours = copy.get(&key).is_some_and(|j| {
                        j.metadata.uid.as_ref() == Some(&owner.uid) && !is_finished(&j)
                    });
                    if !ours && is_tracked(pod) {
                        q.add(Key::Pod(key_of(pod.as_ref())));
                    }
                    q.add(Key::Job(key));
                }
                Some(_) => {}
                None if is_tracked(pod) || !pods::is_terminated(pod) => copy
                    .namespace(&namespace)
                    .iter()
                    .filter(|j| selects(j, pod))
                    .for_each(|j| q.add(Key::Job(key_of(j.as_ref())))),
                None => {}
            }
        }
    });
    jobs.synced().await;
    pods.synced().await;
    let controller = Controller {
        recorder: context.recorder("job-controller"),
        context: context.clone(),
    };
    work(&queue, WORKERS, &token, |key| controller.reconcile(key)).await;
}

fn selects(job: &Job, pod: &Pod) -> bool {
    let selector = job.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_some_and(|s| meta::matches(&meta::selector(s), pod))
}

impl Controller {
    fn jobs(&self) -> &Objects<Job> {
        self.context.informers().jobs()
    }

    fn pods(&self) -> &Objects<Pod> {
        self.context.informers().pods()
    }

    async fn reconcile(&self, key: Key) -> Result<Next> {
        match key {
            Key::Job(key) => self.reconcile_job(&key).await,
            Key::Pod(key) => self.let_go(&key).await,
        }
    }

    async fn reconcile_job(&self, key: &str) -> Result<Next> {
        let Some(job) = self.jobs().informer.get(key) else {
            return Ok(Next::Done);
        };
        if is_finished(&job) || is_foreign(&job) {
            return Ok(Next::Done);
        }
        let informer = &self.pods().informer;
        let mut pods = informer.by_index(CONTROLLER, &job.uid().unwrap_or_default());
        let namespace = job.namespace().unwrap_or_default();
        pods.extend(informer.by_index(CONTROLLER, &orphans(&namespace)));
        let observed = Observed {
            job: &job,
            pods: &pods,
            now: Timestamp::now(),
        };
        let plan = plan(&observed);
        self.act(&job, plan).await
    }

    async fn act(&self, job: &Job, plan: Plan) -> Result<Next> {
        for pod in &plan.adopt {
            self.adopt(job, pod).await?;
        }
        let release = meta::release_patch(&job.uid().unwrap_or_default());
        for pod in &plan.release {
            self.untrack(pod).await?;
            ignore_missing(self.pods().patch_strategic(pod, release.clone()).await)?;
        }
        let discard = plan.discard.iter().map(|pod| async move {
            self.untrack(pod).await?;
            self.delete(job, pod).await
        });
        let discarded = futures::future::join_all(discard).await;
        let stop = plan.stop.iter().map(|pod| self.delete(job, pod));
        let stopped = futures::future::join_all(stop).await;
        discarded
            .into_iter()
            .chain(stopped)
            .collect::<Result<Vec<()>>>()?;
        let made = AtomicI32::new(0);
        let created = slow_start(plan.create.len(), |n| {
            let (new, made) = (plan.create.get(n), &made);
            async move {
                let Some(new) = new else { return Ok(()) };
                self.create(job, new).await?;
                made.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        })
        .await;
        let mut status = plan.status;
        let missing = plan.create.len() as i32 - made.into_inner();
        status.active = status.active.map(|n| n - missing).filter(|n| *n != 0);
        self.jobs()
            .patch_status(job, job.status.as_ref(), &status)
            .await?;
        for (kind, reason, message) in plan.events {
            self.recorder.event(&reference(job), kind, &reason, message);
        }
        let untrack = plan.untrack.iter().map(|pod| self.untrack(pod));
        let untracked = futures::future::join_all(untrack).await;
        untracked.into_iter().collect::<Result<Vec<()>>>()?;
        created?;
        Ok(plan.again.map_or(Next::Done, |after| {
            Next::After(after + Duration::from_millis(100))
        }))
    }

    async fn untrack(&self, pod: &Pod) -> Result<()> {
        if !is_tracked(pod) {
            return Ok(());
        }
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
        ignore_missing(self.pods().patch_strategic(pod, patch).await)
    }

    /// Frees a pod whose Job is gone, or over without it.
    async fn let_go(&self, key: &str) -> Result<Next> {
        let Some(pod) = self.pods().informer.get(key).filter(|p| is_tracked(p)) else {
            return Ok(Next::Done);
        };
        let (namespace, _) = split_key(key);
        if let Some(owner) = controller_of(&pod.metadata) {
            let live = self.jobs().api(namespace).get_opt(&owner.name).await?;
            let counts = live.is_some_and(|j| {
                j.metadata.uid.as_ref() == Some(&owner.uid) && !is_finished(&j) && !is_foreign(&j)
            });
            if owner.kind != "Job" || counts {
                return Ok(Next::Done);
            }
        }
        self.untrack(&pod).await?;
        Ok(Next::Done)
    }

    async fn adopt(&self, job: &Job, pod: &Pod) -> Result<()> {
        let api = self.jobs().api(&job.namespace().unwrap_or_default());
        let fresh = api.get_opt(&job.name_any()).await?;
        let alive = fresh.is_some_and(|f| {
            f.metadata.uid == job.metadata.uid && f.metadata.deletion_timestamp.is_none()
        });
        if !alive {
            return Err(Error::Other(format!(
                "{} has been deleted or replaced",
                key_of(job)
            )));
        }
        let mut patch = meta::adopt_patch(&controller_ref(job));
        patch["metadata"]["finalizers"] = json!([FINALIZER]);
        self.pods().patch_strategic(pod, patch).await
    }

    async fn create(&self, job: &Job, new: &NewPod) -> Result<()> {
        let namespace = job.namespace().unwrap_or_default();
        let pod = new_pod(job, new);
        match self.pods().create(&namespace, &pod).await {
            Ok(pod) => {
                let message = format!("Created pod: {}", pod.name_any());
                self.recorder.event(
                    &reference(job),
                    EventType::Normal,
                    "SuccessfulCreate",
                    message,
                );
                Ok(())
            }
            Err(error) => {
                if !error.is_namespace_terminating() {
                    let message = format!("Error creating: {error}");
                    self.recorder.event(
                        &reference(job),
                        EventType::Warning,
                        "FailedCreate",
                        message,
                    );
                }
                Err(error)
            }
        }
    }

    async fn delete(&self, job: &Job, pod: &Pod) -> Result<()> {
        let deleted = self.pods().delete_with(pod, DeleteParams::default()).await;
        let (kind, reason, message) = match &deleted {
            Ok(()) => (
                EventType::Normal,
                "SuccessfulDelete",
                format!("Deleted pod: {}", pod.name_any()),
            ),
            Err(error) => (
                EventType::Warning,
                "FailedDelete",
                format!("Error deleting: {error}"),
            ),
        };
        self.recorder.event(&reference(job), kind, reason, message);
        deleted
    }
}

fn ignore_missing(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

fn new_pod(job: &Job, new: &NewPod) -> Pod {
    let spec = job.spec.clone().unwrap_or_default();
    let namespace = job.namespace().unwrap_or_default();
    let mut pod = pods::from_template(&spec.template, &namespace, controller_ref(job));
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        finalizers.push(FINALIZER.into());
    }
    if is_indexed(&spec)
        && let Some(pod_spec) = &mut pod.spec
    {
        add_index_variable(pod_spec);
    }
    if let Some(index) = new.index {
        let name = job.name_any();
        let value = index.to_string();
        let suffix = format!("-{index}-");
        let prefix = name
            .get(..MAX_PREFIX.saturating_sub(suffix.len()))
            .unwrap_or(&name);
        pod.metadata.generate_name = Some(format!("{prefix}{suffix}"));
        if let Some(pod_spec) = &mut pod.spec {
            pod_spec.hostname = Some(format!("{name}-{index}"));
        }
        pod.labels_mut().insert(INDEX.into(), value.clone());
        let annotations = pod.annotations_mut();
        annotations.insert(INDEX.into(), value);
        if let Some((counted, ignored)) = new.failures {
            annotations.insert(FAILURES.into(), counted.to_string());
            if ignored > 0 {
                annotations.insert(IGNORED_FAILURES.into(), ignored.to_string());
            }
        }
    }
    pod
}

/// Lets every container know its index, unless the template says something else by that name.
fn add_index_variable(spec: &mut PodSpec) {
    let containers = spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten());
    for container in containers {
        let env = container.env.get_or_insert_default();
        if env.iter().any(|e| e.name == INDEX_ENV) {
            continue;
        }
        env.push(EnvVar {
            name: INDEX_ENV.into(),
            value: None,
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    api_version: None,
                    field_path: format!("metadata.labels['{INDEX}']"),
                }),
                ..Default::default()
            }),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_an_indexed_job() {
        let job: Job = serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "j".repeat(63), "uid": "u"},
            "spec": {"completionMode": "Indexed", "template": {"metadata": {"finalizers": ["x"]}, "spec": {
                "containers": [{"name": "a"}, {"name": "b", "env": [{"name": INDEX_ENV, "value": "mine"}]}]}}}
        }))
        .unwrap();
        let new = NewPod {
            index: Some(12),
            failures: Some((2, 1)),
        };
        let pod = new_pod(&job, &new);
        let prefix = pod.metadata.generate_name.clone().unwrap();
        assert!(
            prefix.len() == MAX_PREFIX && prefix.ends_with("j-12-"),
            "{prefix}"
        );
        assert_eq!(pod.finalizers(), ["x", FINALIZER]);
        assert_eq!(pod.annotations()[FAILURES], "2");
        assert_eq!(pod.annotations()[IGNORED_FAILURES], "1");
        assert_eq!(pod.labels()[INDEX], "12");
        let spec = pod.spec.unwrap();
        let env = |n: usize| spec.containers[n].env.clone().unwrap();
        assert!(env(0)[0].value_from.is_some());
        assert_eq!(
            (env(1).len(), env(1)[0].value.as_deref()),
            (1, Some("mine"))
        );
    }
}
