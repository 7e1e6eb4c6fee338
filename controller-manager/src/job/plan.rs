//! What is to be done about one Job, and what its status becomes.
//!
//! Pods carry a finalizer until they are counted. A pass first puts the uids of those that ended into the status,
//! then takes the finalizers off; the next pass, which finds a uid without a finalizer, adds it to the counts. So every
//! pod is counted once, whatever is deleted or restarted in between.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use client::EventType;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::indexes::Indexes;
use super::policy::{self, Verdict, judge};
use super::view::{
    self, backoff, earlier_failures, failures_after, finished_at, index, is_failed, is_indexed,
    is_suspended, is_tracked, remaining_backoff, replaces_failed_only,
};
use crate::meta::{self, Claim, claim};
use crate::pods;

/// At most so many pods are made or removed in one pass.
const BURST: usize = 500;
/// At most so many uids wait in the status to be counted.
const MAX_UNCOUNTED: usize = 500;

/// Everything a pass looks at.
pub struct Observed<'a> {
    pub job: &'a Job,
    /// The pods that the Job controls, and those of its namespace that no one does.
    pub pods: &'a [Arc<Pod>],
    pub now: Timestamp,
}

/// A pod to be made.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct NewPod {
    pub index: Option<i32>,
    /// Failures of its index so far, counted and ignored, where the Job limits them per index.
    pub failures: Option<(i32, i32)>,
}

/// What a pass comes to. It is done in the order of the fields.
#[derive(Debug, Default)]
pub struct Plan {
    pub adopt: Vec<Arc<Pod>>,
    pub release: Vec<Arc<Pod>>,
    /// Not needed any more: deleted without being counted.
    pub discard: Vec<Arc<Pod>>,
    /// Stopped, because the Job is decided: deleted, and counted.
    pub stop: Vec<Arc<Pod>>,
    pub create: Vec<NewPod>,
    /// As it is once all of the above is done.
    pub status: JobStatus,
    pub events: Vec<(EventType, String, String)>,
    /// Their uids are in the status: the finalizer can go.
    pub untrack: Vec<Arc<Pod>>,
    /// When to look again without being told.
    pub again: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    success: bool,
    reason: String,
    message: String,
}

impl Outcome {
    fn new(success: bool, reason: &str, message: &str) -> Self {
        Self {
            success,
            reason: reason.into(),
            message: message.into(),
        }
    }

    fn failure(reason: &str, message: &str) -> Option<Self> {
        Some(Self::new(false, reason, message))
    }
}

/// The condition of a type, if it is true.
fn standing(status: &JobStatus, kind: &str) -> Option<(String, String)> {
    let conditions = status.conditions.iter().flatten();
    let found = conditions
        .into_iter()
        .find(|c| c.type_ == kind && c.status == "True")?;
    Some((
        found.reason.clone().unwrap_or_default(),
        found.message.clone().unwrap_or_default(),
    ))
}

/// Sets a condition and says whether that changed it. One that is false from the start is left out.
fn set_condition(
    status: &mut JobStatus,
    kind: &str,
    value: bool,
    (reason, message): (&str, &str),
    now: Timestamp,
) -> bool {
    let new = JobCondition {
        type_: kind.into(),
        status: if value { "True" } else { "False" }.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(old)
            if old.status == new.status
                && old.reason == new.reason
                && old.message == new.message =>
        {
            return false;
        }
        Some(old) => *old = new,
        None if value => conditions.push(new),
        None => return false,
    }
    true
}

/// The state of one pass.
struct Pass<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    now: Timestamp,
    own: Vec<Arc<Pod>>,
    active: Vec<Arc<Pod>>,
    status: JobStatus,
    uncounted_succeeded: Vec<String>,
    uncounted_failed: Vec<String>,
    succeeded: i32,
    failed: i32,
    /// Indexes that the status has as succeeded, and those with what pods say now.
    counted_indexes: Indexes,
    succeeded_indexes: Indexes,
    failed_indexes: Option<Indexes>,
    /// The last failed pod of each index that has no successor yet.
    awaiting_successor: HashMap<i32, Arc<Pod>>,
    plan: Plan,
}

/// Decides about one Job that is not finished.
pub fn plan(observed: &Observed) -> Plan {
    let Some(spec) = &observed.job.spec else {
        return Plan {
            status: observed.job.status.clone().unwrap_or_default(),
            ..Default::default()
        };
    };
    let mut pass = Pass::new(observed, spec);
    pass.count();
    pass.look_at_indexes();
    let mut outcome = pass.decide();
    match &outcome {
        Some(_) => pass.plan.stop = pass.active.clone(),
        None => {
            if pass.job.metadata.deletion_timestamp.is_none() {
                pass.manage();
            }
            outcome = pass.completed();
            if outcome.is_none() && pass.job.metadata.deletion_timestamp.is_none() {
                pass.suspend_or_resume();
            }
        }
    }
    pass.track(outcome.as_ref());
    pass.finish(outcome);
    pass.plan
}

impl<'a> Pass<'a> {
    fn new(observed: &Observed<'a>, spec: &'a JobSpec) -> Self {
        let job = observed.job;
        let selector = spec.selector.as_ref().map_or_else(
            apimachinery::selector::LabelSelector::nothing,
            meta::selector,
        );
        let (mut plan, mut own) = (Plan::default(), Vec::new());
        for pod in observed.pods {
            match claim(&job.metadata, &selector, pod.as_ref()) {
                Claim::Own => own.push(pod.clone()),
                Claim::Release => plan.release.push(pod.clone()),
                Claim::Adopt if pods::is_active(pod) => {
                    plan.adopt.push(pod.clone());
                    own.push(pod.clone());
                }
                Claim::Adopt | Claim::Ignore => {}
            }
        }
        own.sort_by_key(|p| (index(p), p.name_any()));
        let active = own.iter().filter(|p| pods::is_active(p)).cloned().collect();
        Self {
            job,
            spec,
            now: observed.now,
            own,
            active,
            status: job.status.clone().unwrap_or_default(),
            uncounted_succeeded: Vec::new(),
            uncounted_failed: Vec::new(),
            succeeded: 0,
            failed: 0,
            counted_indexes: Indexes::default(),
            succeeded_indexes: Indexes::default(),
            failed_indexes: None,
            awaiting_successor: HashMap::new(),
            plan,
        }
    }

    fn completions(&self) -> i32 {
        self.spec.completions.unwrap_or(0)
    }

    /// The index of a pod, if the Job has such an index.
    fn valid_index(&self, pod: &Pod) -> Option<i32> {
        index(pod).filter(|i| *i < self.completions())
    }

    /// Not counted yet, and one that counts.
    fn is_valid(&self, pod: &Pod) -> bool {
        is_tracked(pod) && (!is_indexed(self.spec) || self.valid_index(pod).is_some())
    }

    /// Adds to the counts what has lost its finalizer, and reckons what ended since.
    fn count(&mut self) {
        let tracked: HashSet<String> = self
            .own
            .iter()
            .filter(|p| is_tracked(p))
            .filter_map(|p| p.uid())
            .collect();
        let waiting = self
            .status
            .uncounted_terminated_pods
            .take()
            .unwrap_or_default();
        let settle = |uids: Option<Vec<String>>, sum: &mut Option<i32>| -> Vec<String> {
            let (left, settled): (Vec<String>, Vec<String>) = uids
                .unwrap_or_default()
                .into_iter()
                .partition(|uid| tracked.contains(uid));
            *sum = Some(sum.unwrap_or(0) + settled.len() as i32);
            left
        };
        self.uncounted_succeeded = settle(waiting.succeeded, &mut self.status.succeeded);
        self.uncounted_failed = settle(waiting.failed, &mut self.status.failed);
        let fresh = |pod: &&Arc<Pod>, known: &[String]| {
            self.is_valid(pod) && !pod.uid().is_some_and(|uid| known.contains(&uid))
        };
        let succeeded = self
            .own
            .iter()
            .filter(|p| pods::phase(p) == "Succeeded" && fresh(p, &self.uncounted_succeeded))
            .count();
        let failed = self
            .own
            .iter()
            .filter(|p| is_failed(p, self.spec) && fresh(p, &self.uncounted_failed))
            .filter(|p| judge(self.spec.pod_failure_policy.as_ref(), p) != Verdict::Ignore)
            .count();
        self.succeeded = self.status.succeeded.unwrap_or(0)
            + (self.uncounted_succeeded.len() + succeeded) as i32;
        self.failed =
            self.status.failed.unwrap_or(0) + (self.uncounted_failed.len() + failed) as i32;
        if self.status.start_time.is_none() && !is_suspended(self.spec) {
            self.status.start_time = Some(Time(self.now));
        }
    }

    fn look_at_indexes(&mut self) {
        if !is_indexed(self.spec) {
            return;
        }
        let text = self.status.completed_indexes.clone().unwrap_or_default();
        self.counted_indexes = Indexes::parse(&text, self.completions());
        let done = self
            .own
            .iter()
            .filter(|p| is_tracked(p) && pods::phase(p) == "Succeeded");
        let done: Vec<i32> = done.filter_map(|p| self.valid_index(p)).collect();
        self.succeeded_indexes = self.counted_indexes.with(done);
        self.succeeded = self.succeeded_indexes.len();
        if self.spec.backoff_limit_per_index.is_none() {
            return;
        }
        let text = self.status.failed_indexes.clone().unwrap_or_default();
        let failed = self
            .own
            .iter()
            .filter(|p| is_tracked(p) && view::fails_index(p, self.spec));
        let failed: Vec<i32> = failed.filter_map(|p| self.valid_index(p)).collect();
        let failed = Indexes::parse(&text, self.completions()).with(failed);
        let running: HashSet<i32> = self.active.iter().filter_map(|p| index(p)).collect();
        for pod in &self.own {
            let Some(index) = self
                .valid_index(pod)
                .filter(|_| is_tracked(pod) && is_failed(pod, self.spec))
            else {
                continue;
            };
            if self.succeeded_indexes.contains(index)
                || failed.contains(index)
                || running.contains(&index)
            {
                continue;
            }
            let rank = |p: &Pod| (earlier_failures(p), finished_at(p));
            let last = self
                .awaiting_successor
                .entry(index)
                .or_insert_with(|| pod.clone());
            if rank(pod) >= rank(last) {
                *last = pod.clone();
            }
        }
        self.failed_indexes = Some(failed);
    }

    /// Whether the Job is decided, by what was decided earlier or by what its pods did since.
    fn decide(&mut self) -> Option<Outcome> {
        if let Some((reason, message)) = standing(&self.status, "SuccessCriteriaMet") {
            return Some(Outcome::new(true, &reason, &message));
        }
        if let Some((reason, message)) = standing(&self.status, "FailureTarget") {
            return Outcome::failure(&reason, &message);
        }
        if let Some(policy) = &self.spec.pod_failure_policy {
            let failed = self.own.iter().filter(|p| is_failed(p, self.spec));
            for pod in failed {
                if let Verdict::FailJob(message) = judge(Some(policy), pod) {
                    return Outcome::failure("PodFailurePolicy", &message);
                }
            }
        }
        let limit = self.spec.backoff_limit.unwrap_or(6);
        if self.failed > limit || self.restarted_too_often(limit) {
            return Outcome::failure(
                "BackoffLimitExceeded",
                "Job has reached the specified backoff limit",
            );
        }
        if let Some(left) = self.until_deadline() {
            if left.is_zero() {
                return Outcome::failure(
                    "DeadlineExceeded",
                    "Job was active longer than specified deadline",
                );
            }
            self.look_again(left);
        }
        self.decide_by_indexes()
    }

    fn decide_by_indexes(&self) -> Option<Outcome> {
        if !is_indexed(self.spec) {
            return None;
        }
        if let Some(failed) = &self.failed_indexes {
            if self
                .spec
                .max_failed_indexes
                .is_some_and(|max| failed.len() > max)
            {
                return Outcome::failure(
                    "MaxFailedIndexesExceeded",
                    "Job has exceeded the specified maximal number of failed indexes",
                );
            }
            if !failed.is_empty()
                && failed.len() + self.succeeded_indexes.len() >= self.completions()
            {
                return Outcome::failure("FailedIndexes", "Job has failed indexes");
            }
        }
        let met = policy::succeeded(
            self.spec.success_policy.as_ref(),
            self.completions(),
            &self.succeeded_indexes,
        );
        met.map(|message| Outcome::new(true, "SuccessPolicy", &message))
    }

    /// Containers that restart in their pods count towards the limit too.
    fn restarted_too_often(&self, limit: i32) -> bool {
        let template = self.spec.template.spec.as_ref();
        if template.and_then(|s| s.restart_policy.as_deref()) != Some("OnFailure") {
            return false;
        }
        let running = self
            .own
            .iter()
            .filter(|p| matches!(pods::phase(p), "Running" | "Pending"));
        let statuses = running.filter_map(|p| p.status.as_ref()).flat_map(|s| {
            s.container_statuses
                .iter()
                .chain(&s.init_container_statuses)
                .flatten()
        });
        let restarts: i32 = statuses.map(|s| s.restart_count).sum();
        match limit {
            0 => restarts > 0,
            _ => restarts >= limit,
        }
    }

    fn until_deadline(&self) -> Option<Duration> {
        let seconds = self.spec.active_deadline_seconds?;
        let start = self.status.start_time.as_ref()?;
        if is_suspended(self.spec) {
            return None;
        }
        let passed = Duration::try_from(self.now.duration_since(start.0)).unwrap_or_default();
        Some(Duration::from_secs(seconds.max(0) as u64).saturating_sub(passed))
    }

    fn look_again(&mut self, after: Duration) {
        self.plan.again = Some(self.plan.again.map_or(after, |earlier| earlier.min(after)));
    }

    /// As many pods as are wanted now, within what back-off allows.
    fn manage(&mut self) {
        let active = self.active.len();
        if is_suspended(self.spec) {
            self.plan.discard = self.least_wanted(active);
            return;
        }
        let parallelism = self.spec.parallelism.unwrap_or(1).max(0) as usize;
        let wanted = match self.spec.completions {
            // Without a number, the first success lets the others run out.
            None if self.succeeded > 0 => active,
            None => parallelism,
            Some(completions) => parallelism.min((completions - self.succeeded).max(0) as usize),
        };
        self.plan.discard = self.least_wanted(active.saturating_sub(wanted));
        self.plan.discard.truncate(BURST);
        if !self.plan.discard.is_empty() {
            return;
        }
        let leaving = match replaces_failed_only(self.spec) {
            true => self.terminating(),
            false => 0,
        };
        let missing = wanted.saturating_sub(leaving + active).min(BURST);
        if missing == 0 {
            return;
        }
        if self.spec.backoff_limit_per_index.is_none() {
            let wait = remaining_backoff(&self.own, self.spec, self.now);
            if !wait.is_zero() {
                self.look_again(wait);
                return;
            }
        }
        self.plan.create = match is_indexed(self.spec) {
            true => self.new_indexes(missing),
            false => vec![NewPod::default(); missing],
        };
    }

    fn terminating(&self) -> usize {
        let leaving = self
            .own
            .iter()
            .filter(|p| p.metadata.deletion_timestamp.is_some() && !pods::is_terminated(p));
        leaving.count()
    }

    fn new_indexes(&mut self, missing: usize) -> Vec<NewPod> {
        let busy = self.own.iter().filter(|p| {
            pods::is_active(p) || (replaces_failed_only(self.spec) && !pods::is_terminated(p))
        });
        let mut taken = self.succeeded_indexes.with(busy.filter_map(|p| index(p)));
        if let Some(failed) = &self.failed_indexes {
            taken = taken.union(failed);
        }
        let mut new = Vec::new();
        for index in taken.missing(missing, self.completions()) {
            let mut pod = NewPod {
                index: Some(index),
                failures: None,
            };
            if self.spec.backoff_limit_per_index.is_some() {
                let last = self.awaiting_successor.get(&index).cloned();
                let wait = last.as_ref().map_or(Duration::ZERO, |p| {
                    backoff(earlier_failures(p) + 1, finished_at(p), self.now)
                });
                if !wait.is_zero() {
                    self.look_again(wait);
                    continue;
                }
                pod.failures = Some(failures_after(last.as_deref(), self.spec));
            }
            new.push(pod);
        }
        new
    }

    /// Which active pods go first: those with a wrong index or one too many of it, then as ReplicaSets choose.
    fn least_wanted(&self, at_least: usize) -> Vec<Arc<Pod>> {
        let by_loss = |a: &Arc<Pod>, b: &Arc<Pod>| pods::by_loss((a, 0), (b, 0), self.now);
        let (mut gone, mut left) = (Vec::new(), Vec::new());
        if is_indexed(self.spec) {
            let mut groups: BTreeMap<i32, Vec<Arc<Pod>>> = BTreeMap::new();
            for pod in &self.active {
                match self.valid_index(pod) {
                    Some(index) => groups.entry(index).or_default().push(pod.clone()),
                    None => gone.push(pod.clone()),
                }
            }
            for (_, mut same) in groups {
                same.sort_by(by_loss);
                left.extend(same.pop());
                gone.extend(same);
            }
        } else {
            left = self.active.clone();
        }
        if gone.len() < at_least {
            left.sort_by(by_loss);
            gone.extend(left.into_iter().take(at_least - gone.len()));
        }
        gone
    }

    fn completed(&self) -> Option<Outcome> {
        let active = self.active.len() + self.plan.create.len() - self.plan.discard.len();
        let enough = match self.spec.completions {
            None => self.succeeded > 0,
            Some(completions) => self.succeeded >= completions,
        };
        (enough && active == 0).then(|| {
            let message = "Reached expected number of succeeded pods";
            Outcome::new(true, "CompletionsReached", message)
        })
    }

    fn suspend_or_resume(&mut self) {
        let suspended = is_suspended(self.spec);
        let (event, told) = match suspended {
            true => ("Suspended", ("JobSuspended", "Job suspended")),
            false => ("Resumed", ("JobResumed", "Job resumed")),
        };
        if set_condition(&mut self.status, "Suspended", suspended, told, self.now) {
            // The deadline counts from when the Job goes on.
            self.status.start_time = (!suspended).then_some(Time(self.now));
            self.plan
                .events
                .push((EventType::Normal, event.into(), told.1.into()));
        }
    }

    /// Whether a pod is done with as far as the Job goes.
    fn is_settled(&self, pod: &Arc<Pod>, outcome: Option<&Outcome>) -> bool {
        if self.job.metadata.deletion_timestamp.is_some()
            || outcome.is_some()
            || pods::phase(pod) == "Succeeded"
        {
            return true;
        }
        let waits = index(pod)
            .and_then(|i| self.awaiting_successor.get(&i))
            .is_some_and(|p| p.uid() == pod.uid());
        is_failed(pod, self.spec) && !waits
    }

    /// Puts what ended into the status, to be counted when its finalizer is gone.
    fn track(&mut self, outcome: Option<&Outcome>) {
        let failing = outcome.is_some_and(|o| !o.success);
        let mut succeeded = Vec::new();
        for pod in self.own.clone() {
            let waiting =
                succeeded.len() + self.uncounted_succeeded.len() + self.uncounted_failed.len();
            if waiting >= MAX_UNCOUNTED {
                // What is left comes with the next pass, which the changed pods bring.
                break;
            }
            if !is_tracked(&pod)
                || !self.is_settled(&pod, outcome)
                || self.plan.discard.contains(&pod)
            {
                continue;
            }
            self.plan.untrack.push(pod.clone());
            let uid = pod.uid().unwrap_or_default();
            if pods::phase(&pod) == "Succeeded" && !self.uncounted_failed.contains(&uid) {
                if is_indexed(self.spec) {
                    succeeded.extend(self.valid_index(&pod));
                } else if !self.uncounted_succeeded.contains(&uid) {
                    self.uncounted_succeeded.push(uid);
                }
            } else if (is_failed(&pod, self.spec) || failing)
                && !self.uncounted_failed.contains(&uid)
                && self.is_valid(&pod)
                && judge(self.spec.pod_failure_policy.as_ref(), &pod) != Verdict::Ignore
            {
                self.uncounted_failed.push(uid);
            }
        }
        if is_indexed(self.spec) {
            let done = self.counted_indexes.with(succeeded);
            self.status.succeeded = Some(done.len());
            self.status.completed_indexes = (!done.is_empty()).then(|| done.to_string());
            self.status.failed_indexes = self.failed_indexes.as_ref().map(ToString::to_string);
        }
    }

    fn finish(&mut self, outcome: Option<Outcome>) {
        let (stopped, discarded) = (&self.plan.stop, &self.plan.discard);
        let gone = |p: &Arc<Pod>| stopped.contains(p) || discarded.contains(p);
        let left: Vec<&Arc<Pod>> = self.active.iter().filter(|p| !gone(p)).collect();
        let ready = left.iter().filter(|p| pods::is_ready(p)).count();
        let active = left.len() + self.plan.create.len();
        let terminating = self.terminating() + stopped.len() + discarded.len();
        let some = |n: i32| (n != 0).then_some(n);
        let status = &mut self.status;
        status.active = some(active as i32);
        status.ready = Some(ready as i32);
        status.terminating = Some(terminating as i32);
        status.succeeded = some(status.succeeded.unwrap_or(0));
        status.failed = some(status.failed.unwrap_or(0));
        let list = |uids: Vec<String>| (!uids.is_empty()).then_some(uids);
        let settled = self.uncounted_succeeded.is_empty() && self.uncounted_failed.is_empty();
        status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
            succeeded: list(std::mem::take(&mut self.uncounted_succeeded)),
            failed: list(std::mem::take(&mut self.uncounted_failed)),
        });
        if let Some(outcome) = outcome {
            let told = (outcome.reason.as_str(), outcome.message.as_str());
            let (interim, last) = match outcome.success {
                true => ("SuccessCriteriaMet", "Complete"),
                false => ("FailureTarget", "Failed"),
            };
            if standing(status, interim).is_none() {
                set_condition(status, interim, true, told, self.now);
            }
            if settled && self.plan.untrack.is_empty() && terminating == 0 {
                set_condition(status, last, true, told, self.now);
                self.plan.events.extend(told_at_end(
                    &outcome,
                    status.succeeded.unwrap_or(0),
                    self.spec,
                ));
                if outcome.success {
                    status.completion_time = Some(Time(self.now));
                }
            }
        }
        if status.conditions.as_ref().is_some_and(Vec::is_empty) {
            status.conditions = None;
        }
        self.plan.status = std::mem::take(&mut self.status);
    }
}

fn told_at_end(
    outcome: &Outcome,
    succeeded: i32,
    spec: &JobSpec,
) -> Vec<(EventType, String, String)> {
    let mut events = Vec::new();
    if !outcome.success {
        events.push((
            EventType::Warning,
            outcome.reason.clone(),
            outcome.message.clone(),
        ));
        return events;
    }
    if spec
        .completions
        .is_some_and(|c| succeeded.cmp(&c) == Ordering::Greater)
    {
        let message = "Too many succeeded pods running after completion count reached";
        events.push((
            EventType::Warning,
            "TooManySucceededPods".into(),
            message.into(),
        ));
    }
    events.push((
        EventType::Normal,
        "Completed".into(),
        "Job completed".into(),
    ));
    events
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
