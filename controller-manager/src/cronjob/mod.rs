//! CronJobs: a Job whenever their schedule says so.
//!
//! [`plan`] decides, with what [`missed`] knows of the times that have come. A CronJob is looked at when it or one of
//! its Jobs changes, and when the next of its times is due.

pub mod missed;
pub mod plan;
#[cfg(test)]
mod plan_tests;

use std::sync::Arc;
use std::time::Duration;

use client::events::{EventType, Recorder, reference};
use client::{CancellationToken, Next, WorkQueue, key_of, split_key};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::ResourceExt;
use kube::api::PropagationPolicy;

use crate::frame::{Context, Objects, Result, WORKERS, work};
use crate::job::view::is_finished;
use crate::meta::{CONTROLLER, controller_of};
use missed::Due;
use plan::{Observed, Plan, Start, plan, with_started, without};

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
    local: TimeZone,
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let (cron_jobs, jobs) = (
        &context.informers().cron_jobs().informer,
        &context.informers().jobs().informer,
    );
    let local = TimeZone::system();
    let (q, zone) = (queue.clone(), local.clone());
    cron_jobs.on_change(move |old, new| {
        let Some(cron_job) = new.or(old) else { return };
        let key = key_of(cron_job.as_ref());
        match old.and_then(|old| rescheduled(old, cron_job, &zone)) {
            Some(after) => q.add_after(key, after),
            None => q.add(key),
        }
    });
    let q = queue.clone();
    jobs.on_change(move |old, new| {
        for job in [old, new].into_iter().flatten() {
            if let Some(owner) = controller_of(&job.metadata).filter(|o| o.kind == "CronJob") {
                let namespace = job.namespace().unwrap_or_default();
                q.add(format!("{namespace}/{}", owner.name));
            }
        }
    });
    cron_jobs.synced().await;
    jobs.synced().await;
    let controller = Controller {
        recorder: context.recorder("cronjob-controller"),
        context: context.clone(),
        local,
    };
    work(&queue, WORKERS, &token, |key| controller.reconcile(key)).await;
}

/// A new schedule is for the times to come: how long until its first one.
fn rescheduled(old: &CronJob, new: &CronJob, local: &TimeZone) -> Option<Duration> {
    let (before, spec) = (&old.spec, &new.spec);
    let same = before.schedule == spec.schedule && before.time_zone == spec.time_zone;
    if same || old.metadata.uid != new.metadata.uid {
        return None;
    }
    let due = Due::new(spec, local).ok()?;
    due.until_next(new, Timestamp::now())
}

impl Controller {
    fn cron_jobs(&self) -> &Objects<CronJob> {
        self.context.informers().cron_jobs()
    }

    fn jobs(&self) -> &Objects<Job> {
        self.context.informers().jobs()
    }

    async fn reconcile(&self, key: String) -> Result<Next> {
        let Some(cron_job) = self.cron_jobs().informer.get(&key) else {
            return Ok(Next::Done);
        };
        let uid = cron_job.uid().unwrap_or_default();
        let mut jobs = self.jobs().informer.by_index(CONTROLLER, &uid);
        let Some(cron_job) = self.certain(&key, cron_job, &mut jobs).await? else {
            return Ok(Next::Done);
        };
        let plan = plan(&Observed {
            cron_job: &cron_job,
            jobs: &jobs,
            now: Timestamp::now(),
            local: &self.local,
        });
        self.act(&cron_job, plan).await
    }

    /// Asks the server where the copies of CronJobs and Jobs disagree about what is active, for they come by two
    /// watches. `None` if the CronJob is gone.
    async fn certain(
        &self,
        key: &str,
        mut cron_job: Arc<CronJob>,
        jobs: &mut Vec<Arc<Job>>,
    ) -> Result<Option<Arc<CronJob>>> {
        let (namespace, name) = split_key(key);
        let listed = |c: &CronJob, job: &Job| active(c).any(|r| r.uid == job.metadata.uid);
        if jobs
            .iter()
            .any(|j| !is_finished(j) && !listed(&cron_job, j))
        {
            let fresh = self.cron_jobs().api(namespace).get_opt(name).await?;
            match fresh.filter(|f| f.metadata.uid == cron_job.metadata.uid) {
                Some(fresh) => cron_job = Arc::new(fresh),
                None => return Ok(None),
            }
        }
        for known in active(&cron_job) {
            if jobs.iter().any(|j| j.metadata.uid == known.uid) {
                continue;
            }
            let name = known.name.as_deref().unwrap_or_default();
            let fresh = self.jobs().api(namespace).get_opt(name).await?;
            jobs.extend(fresh.filter(|j| j.metadata.uid == known.uid).map(Arc::new));
        }
        Ok(Some(cron_job))
    }

    /// The status is written whatever became of the rest: it tells of what was done.
    async fn act(&self, cron_job: &CronJob, plan: Plan) -> Result<Next> {
        for (kind, reason, message) in plan.events {
            self.event(cron_job, kind, reason, message);
        }
        let mut status = plan.status;
        let mut outcome = Ok(());
        for job in &plan.delete {
            match self.delete(cron_job, job).await {
                Ok(()) => status = without(status, job),
                Err(error) => outcome = Err(error),
            }
        }
        if let Some(start) = plan.start {
            let (reached, started) = self.start(cron_job, start, status).await;
            status = reached;
            outcome = started.and(outcome);
        }
        self.cron_jobs()
            .patch_status(cron_job, cron_job.status.as_ref(), &status)
            .await?;
        outcome?;
        Ok(plan.again.map_or(Next::Done, Next::After))
    }

    async fn start(
        &self,
        cron_job: &CronJob,
        start: Start,
        mut status: CronJobStatus,
    ) -> (CronJobStatus, Result<()>) {
        for job in &start.replaces {
            match self.delete(cron_job, job).await {
                Ok(()) => status = without(status, job),
                Err(error) => return (status, Err(error)),
            }
        }
        match self.create(cron_job, &start.job).await {
            Ok(Some(job)) => (with_started(status, &job, start.at), Ok(())),
            Ok(None) => (status, Ok(())),
            Err(error) => (status, Err(error)),
        }
    }

    /// Makes a Job, or finds that we did so before. `None` if its name is someone else's.
    async fn create(&self, cron_job: &CronJob, job: &Job) -> Result<Option<Job>> {
        let namespace = job.namespace().unwrap_or_default();
        match self.jobs().create(&namespace, job).await {
            Ok(job) => {
                let message = format!("Created job {}", job.name_any());
                self.event(cron_job, EventType::Normal, "SuccessfulCreate", message);
                Ok(Some(job))
            }
            Err(error) if error.already_exists() => {
                let there = self.jobs().api(&namespace).get_opt(&job.name_any()).await?;
                let Some(job) = there else { return Err(error) };
                let owner = controller_of(&job.metadata).map(|o| &o.uid);
                let ours = owner == cron_job.metadata.uid.as_ref();
                Ok(ours.then_some(job))
            }
            Err(error) => {
                if !error.is_namespace_terminating() {
                    let message = format!("Error creating job: {error}");
                    self.event(cron_job, EventType::Warning, "FailedCreate", message);
                }
                Err(error)
            }
        }
    }

    async fn delete(&self, cron_job: &CronJob, job: &Job) -> Result<()> {
        let deleted = self.jobs().delete(job, PropagationPolicy::Background).await;
        match &deleted {
            Ok(()) => {
                let message = format!("Deleted job {}", job.name_any());
                self.event(cron_job, EventType::Normal, "SuccessfulDelete", message);
            }
            Err(error) => {
                let message = format!("Deleted job: {error}");
                self.event(cron_job, EventType::Warning, "FailedDelete", message);
            }
        }
        deleted
    }

    fn event(&self, cron_job: &CronJob, kind: EventType, reason: &str, message: String) {
        self.recorder
            .event(&reference(cron_job), kind, reason, message);
    }
}

fn active(cron_job: &CronJob) -> impl Iterator<Item = &ObjectReference> {
    let status = cron_job.status.iter();
    status.flat_map(|s| s.active.iter().flatten())
}
