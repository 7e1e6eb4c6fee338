//! Decides about one CronJob: which of its Jobs are over, which go, and whether one starts now.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::cron::time_zone;
use client::events::EventType::{self, Normal, Warning};
use client::events::reference;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::ResourceExt;

use super::missed::{Due, Missed};
use crate::job::view::{has_condition, is_finished};
use crate::meta::controller_ref;

/// Says for which of the schedule's times a Job was made.
pub const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// Everything a pass looks at.
pub struct Observed<'a> {
    pub cron_job: &'a CronJob,
    /// Those that it controls. Every active one that exists is among them.
    pub jobs: &'a [Arc<Job>],
    pub now: Timestamp,
    /// What schedules without a time zone are meant in.
    pub local: &'a TimeZone,
}

/// A Job to be made.
#[derive(Debug, PartialEq)]
pub struct Start {
    /// To be deleted first.
    pub replaces: Vec<Arc<Job>>,
    pub job: Box<Job>,
    pub at: Timestamp,
}

/// What a pass comes to.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub events: Vec<(EventType, &'static str, String)>,
    /// Finished Jobs beyond the history's limits.
    pub delete: Vec<Arc<Job>>,
    pub start: Option<Start>,
    /// As it is without the Job that starts.
    pub status: CronJobStatus,
    /// When the next Job is due.
    pub again: Option<Duration>,
}

/// Decides about one CronJob.
pub fn plan(observed: &Observed) -> Plan {
    let mut plan = Plan {
        status: observed.cron_job.status.clone().unwrap_or_default(),
        ..Default::default()
    };
    let spec = &observed.cron_job.spec;
    history(&mut plan, spec, observed.jobs);
    look_at_jobs(&mut plan, observed.jobs);
    // `null`, not an empty list, is what the API server stores for none.
    plan.status.active = plan.status.active.take().filter(|list| !list.is_empty());
    if observed.cron_job.metadata.deletion_timestamp.is_none() {
        schedule(&mut plan, spec, observed);
    }
    plan
}

/// Picks the finished Jobs that go: of each kind of end the oldest, by start, beyond as many as may stay.
fn history(plan: &mut Plan, spec: &CronJobSpec, jobs: &[Arc<Job>]) {
    for (kind, limit) in [
        ("Complete", spec.successful_jobs_history_limit),
        ("Failed", spec.failed_jobs_history_limit),
    ] {
        let Some(limit) = limit else { continue };
        let ended = jobs.iter().filter(|j| has_condition(j, kind));
        let mut ended: Vec<&Arc<Job>> = ended.collect();
        ended.sort_by_key(|job| {
            let start = job.status.as_ref().and_then(|s| s.start_time.as_ref());
            (start.is_none(), start.map(|t| t.0), job.name_any())
        });
        let excess = ended.len().saturating_sub(limit.max(0) as usize);
        let goes = ended.into_iter().take(excess);
        plan.delete.extend(
            goes.filter(|j| j.metadata.deletion_timestamp.is_none())
                .cloned(),
        );
    }
}

/// Brings the list of active Jobs and the time of the last success up to date.
fn look_at_jobs(plan: &mut Plan, jobs: &[Arc<Job>]) {
    for job in jobs {
        let uid = job.uid();
        let active = plan.status.active.get_or_insert_default();
        let listed = active.iter().any(|r| r.uid == uid);
        if !is_finished(job) {
            if !listed && job.metadata.deletion_timestamp.is_none() {
                // Made by someone else in our name, or by us just before we ended.
                let message = format!(
                    "Saw a job that the controller did not create or forgot: {}",
                    job.name_any()
                );
                plan.events.push((Warning, "UnexpectedJob", message));
            }
            continue;
        }
        let succeeded = has_condition(job, "Complete");
        if listed {
            active.retain(|r| r.uid != uid);
            let condition = if succeeded { "Complete" } else { "Failed" };
            let message = format!(
                "Saw completed job: {}, condition: {condition}",
                job.name_any()
            );
            plan.events.push((Normal, "SawCompletedJob", message));
        }
        let end = job.status.as_ref().and_then(|s| s.completion_time.clone());
        if succeeded && end > plan.status.last_successful_time {
            plan.status.last_successful_time = end;
        }
    }
    let events = &mut plan.events;
    plan.status.active.get_or_insert_default().retain(|active| {
        let exists = jobs.iter().any(|j| j.metadata.uid == active.uid);
        if !exists {
            let name = active.name.as_deref().unwrap_or_default();
            let message = format!("Active job went missing: {name}");
            events.push((Normal, "MissingJob", message));
        }
        exists
    });
}

/// Starts the Job that is due, if any, and says when the next one will be. A time that is older than
/// `startingDeadlineSeconds` allows is none to begin with, so Kubernetes' `MissSchedule` is never said, there as here.
fn schedule(plan: &mut Plan, spec: &CronJobSpec, observed: &Observed) {
    let (cron_job, now) = (observed.cron_job, observed.now);
    let mut warn = |reason, message| plan.events.push((Warning, reason, message));
    if let Some(zone) = &spec.time_zone
        && let Err(why) = time_zone(zone)
    {
        warn(
            "UnknownTimeZone",
            format!("invalid timeZone: {zone:?}: {why}"),
        );
        return;
    }
    if spec.suspend == Some(true) {
        return;
    }
    if spec.schedule.contains("TZ") {
        let message = format!(
            "CRON_TZ or TZ used in schedule {:?} is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details",
            spec.schedule
        );
        warn("UnsupportedSchedule", message);
    }
    let due = match Due::new(spec, observed.local) {
        Ok(due) => due,
        Err(why) => {
            let message = format!("unparseable schedule: {:?} : {why}", spec.schedule);
            warn("UnparseableSchedule", message);
            return;
        }
    };
    let recent = match due.recent(cron_job, now, true) {
        Ok(recent) => recent,
        Err(why) => {
            let message = format!("invalid schedule: {} : {why}", spec.schedule);
            warn("InvalidSchedule", message);
            return;
        }
    };
    if let Some(time) = recent.time {
        if recent.missed == Missed::Many {
            let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            warn("TooManyMissedTimes", message.into());
        }
        start(plan, spec, observed, time);
    }
    plan.again = due.until_next(cron_job, now);
}

fn start(plan: &mut Plan, spec: &CronJobSpec, observed: &Observed, time: Timestamp) {
    let name = job_name(observed.cron_job, time);
    let active = plan.status.active.as_deref().unwrap_or_default();
    let last = plan.status.last_schedule_time.as_ref().map(|t| t.0);
    if last == Some(time) || active.iter().any(|r| r.name.as_ref() == Some(&name)) {
        return;
    }
    if spec.concurrency_policy.as_deref() == Some("Forbid") && !active.is_empty() {
        let message =
            "Not starting job because prior execution is running and concurrency policy is Forbid";
        plan.events
            .push((Normal, "JobAlreadyActive", message.into()));
        return;
    }
    let replaces = match spec.concurrency_policy.as_deref() {
        Some("Replace") => {
            let is_active = |job: &&Arc<Job>| active.iter().any(|r| r.uid == job.metadata.uid);
            observed.jobs.iter().filter(is_active).cloned().collect()
        }
        _ => Vec::new(),
    };
    plan.start = Some(Start {
        replaces,
        job: Box::new(new_job(observed.cron_job, spec, name, time)),
        at: time,
    });
}

/// The same for every attempt at the same time, so that no time gets two Jobs. Schedules know no seconds.
fn job_name(cron_job: &CronJob, time: Timestamp) -> String {
    format!(
        "{}-{}",
        cron_job.name_any(),
        time.as_second().div_euclid(60)
    )
}

fn new_job(cron_job: &CronJob, spec: &CronJobSpec, name: String, time: Timestamp) -> Job {
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let zone = time_zone(spec.time_zone.as_deref().unwrap_or_default());
    let offset = zone.map_or(jiff::tz::Offset::UTC, |zone| zone.to_offset(time));
    let shown = match offset.is_zero() {
        true => time.to_string(),
        false => time.display_with_offset(offset).to_string(),
    };
    let mut annotations = template.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.into(), shown);
    Job {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: cron_job.namespace(),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_ref(cron_job)]),
            ..Default::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

/// The status once `job` runs that was due at `time`.
pub fn with_started(mut status: CronJobStatus, job: &Job, time: Timestamp) -> CronJobStatus {
    let active = status.active.get_or_insert_default();
    if !active.iter().any(|r| r.uid == job.metadata.uid) {
        active.push(reference(job));
    }
    status.last_schedule_time = Some(Time(time));
    status
}

/// The status once a Job was deleted.
pub fn without(mut status: CronJobStatus, job: &Job) -> CronJobStatus {
    let gone = |r: &ObjectReference| r.uid == job.metadata.uid;
    let left = status.active.take().unwrap_or_default();
    let left: Vec<_> = left.into_iter().filter(|r| !gone(r)).collect();
    status.active = (!left.is_empty()).then_some(left);
    status
}
