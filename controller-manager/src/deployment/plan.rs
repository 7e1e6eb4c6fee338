//! The decisions about a rollout: which ReplicaSet is the newest, and how large each should be now.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::annotations_value;
use super::sets::{self, DESIRED, MAX, REVISION, Set};
use super::status::{self, set_condition};
use crate::meta::{self, Claim, claim};

/// Everything a pass looks at.
pub struct Observed<'a> {
    pub deployment: &'a Deployment,
    /// The ReplicaSets that the Deployment controls, and those of its namespace that no one does.
    pub sets: &'a [Arc<ReplicaSet>],
    /// By uid of a ReplicaSet, how many of its pods may still run; looked at for Recreate only.
    pub running: &'a HashMap<String, usize>,
    pub now: Timestamp,
}

/// What is to be done about a Deployment.
#[derive(Debug, PartialEq)]
pub enum Action {
    Adopt(Arc<ReplicaSet>),
    Release(Arc<ReplicaSet>),
    Create(Box<ReplicaSet>),
    Annotate {
        set: Arc<ReplicaSet>,
        annotations: BTreeMap<String, String>,
        min_ready_seconds: Option<i32>,
    },
    Scale {
        set: Arc<ReplicaSet>,
        from: i32,
        to: i32,
        annotations: Value,
    },
    Delete(Arc<ReplicaSet>),
    SetRevision(String),
}

/// What a pass comes to: actions, the status, and when to look again without being told.
#[derive(Debug)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub status: DeploymentStatus,
    pub again: Option<Duration>,
}

pub fn is_recreate(deployment: &Deployment) -> bool {
    strategy(deployment) == "Recreate"
}

fn strategy(deployment: &Deployment) -> &str {
    let strategy = deployment
        .spec
        .as_ref()
        .and_then(|s| s.strategy.as_ref()?.type_.as_deref());
    strategy.unwrap_or("RollingUpdate")
}

pub fn wanted(deployment: &Deployment) -> i32 {
    deployment
        .spec
        .as_ref()
        .and_then(|s| s.replicas)
        .unwrap_or(1)
}

/// Pods beyond the wanted number, and pods short of it, that a rolling update may have. Percentages of the wanted
/// number are rounded up for the first and down for the second; both cannot be zero.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    if is_recreate(deployment) {
        return (0, 0);
    }
    let spec = deployment.spec.as_ref();
    let rolling = spec
        .and_then(|s| s.strategy.as_ref()?.rolling_update.clone())
        .unwrap_or_default();
    let total = wanted(deployment);
    let scaled = |value: Option<IntOrString>, up| value.map_or(0, |v| meta::scaled(&v, total, up));
    match (
        scaled(rolling.max_surge, true),
        scaled(rolling.max_unavailable, false),
    ) {
        (0, 0) => (0, 1),
        other => other,
    }
}

/// Never more than there are: of two replicas three cannot be unavailable.
pub fn max_unavailable(deployment: &Deployment) -> i32 {
    fenceposts(deployment).1.min(wanted(deployment))
}

fn max_surge(deployment: &Deployment) -> i32 {
    fenceposts(deployment).0
}

/// Decides about one Deployment.
pub fn plan(observed: &Observed) -> Plan {
    let deployment = observed.deployment;
    let (mut rollout, adopted) = Rollout::new(observed);
    let spec = deployment.spec.clone().unwrap_or_default();
    if deployment.metadata.deletion_timestamp.is_some() {
        rollout.actions.clear();
        return rollout.finish(false);
    }
    // Adopted sets are looked at in the next pass, with an owner.
    if adopted {
        return rollout.finish(false);
    }
    let selects_everything = spec.selector.match_labels.iter().flatten().next().is_none()
        && spec
            .selector
            .match_expressions
            .iter()
            .flatten()
            .next()
            .is_none();
    if selects_everything {
        let mut plan = rollout.finish(false);
        plan.actions.clear();
        return plan;
    }

    rollout.note_pause(spec.paused == Some(true));
    let scaling = rollout
        .all()
        .any(|s| s.replicas > 0 && s.number(DESIRED).is_some_and(|n| n != wanted(deployment)));
    if spec.paused == Some(true) || scaling {
        rollout.sync_newest(false);
        rollout.scale();
        if spec.paused == Some(true) {
            rollout.clean_up();
        }
        return rollout.finish(false);
    }
    match strategy(deployment) {
        "Recreate" => rollout.recreate(observed.running),
        _ => rollout.roll(),
    }
    rollout.finish(true)
}

struct Rollout<'a> {
    deployment: &'a Deployment,
    new: Option<Set>,
    /// From oldest to newest.
    old: Vec<Set>,
    /// Conditions and collision count as they change on the way.
    before: DeploymentStatus,
    actions: Vec<Action>,
    now: Timestamp,
    /// Annotations are renewed even of sets whose size stays.
    proportional: bool,
}

impl<'a> Rollout<'a> {
    /// Sorts out which sets are ours. Also says whether some have to be adopted first.
    fn new(observed: &Observed<'a>) -> (Self, bool) {
        let deployment = observed.deployment;
        let spec = deployment.spec.clone().unwrap_or_default();
        let selector = meta::selector(&spec.selector);
        let (mut actions, mut owned) = (Vec::new(), Vec::new());
        for set in observed.sets {
            match claim(&deployment.metadata, &selector, set.as_ref()) {
                Claim::Own => owned.push(Set::new(set)),
                Claim::Adopt => actions.push(Action::Adopt(set.clone())),
                Claim::Release => actions.push(Action::Release(set.clone())),
                Claim::Ignore => {}
            }
        }
        let adopting = actions.iter().any(|a| matches!(a, Action::Adopt(_)));
        owned.sort_by(|a, b| a.created.cmp(&b.created).then_with(|| a.name.cmp(&b.name)));
        // Should several have the template, the oldest one is it.
        let is_newest = |s: &Set| {
            s.object
                .as_ref()
                .is_some_and(|o| sets::same_template(sets::template(o), Some(&spec.template)))
        };
        let new = owned.iter().position(is_newest).map(|at| owned.remove(at));
        let before = deployment.status.clone().unwrap_or_default();
        let rollout = Self {
            deployment,
            new,
            old: owned,
            before,
            actions,
            now: observed.now,
            proportional: false,
        };
        (rollout, adopting)
    }

    fn all(&self) -> impl Iterator<Item = &Set> {
        self.old.iter().chain(&self.new)
    }

    fn total(&self) -> i32 {
        self.all().map(|s| s.replicas).sum()
    }

    /// A paused rollout makes no progress, and must not run out of time for that.
    fn note_pause(&mut self, paused: bool) {
        if status::progress_deadline(self.deployment).is_none() {
            return;
        }
        let reason =
            status::condition(&self.before, "Progressing").and_then(|c| c.reason.as_deref());
        let (reason, message) = match reason {
            Some("ProgressDeadlineExceeded") => return,
            Some("DeploymentPaused") if !paused => ("DeploymentResumed", "Deployment is resumed"),
            Some("DeploymentPaused") => return,
            _ if paused => ("DeploymentPaused", "Deployment is paused"),
            _ => return,
        };
        set_condition(
            &mut self.before,
            "Progressing",
            "Unknown",
            reason,
            message,
            self.now,
        );
    }

    /// Brings the newest set's annotations and the Deployment's revision up to date; makes that set if asked to.
    fn sync_newest(&mut self, create: bool) {
        let revision = self.old.iter().map(Set::revision).max().unwrap_or(0) + 1;
        let deadline = status::progress_deadline(self.deployment).is_some();
        let spec = self.deployment.spec.clone().unwrap_or_default();
        if let Some(new) = &mut self.new {
            let missing = sets::missing_annotations(self.deployment, &new.annotations, revision);
            let Some(object) = &new.object else { return };
            let has = object
                .spec
                .as_ref()
                .and_then(|s| s.min_ready_seconds)
                .unwrap_or(0);
            let seconds = spec.min_ready_seconds.unwrap_or(0);
            if !missing.is_empty() || has != seconds {
                new.annotations.extend(missing.clone());
                let min_ready_seconds = (has != seconds).then_some(seconds);
                self.actions.push(Action::Annotate {
                    set: object.clone(),
                    annotations: missing,
                    min_ready_seconds,
                });
            }
            if deadline && status::condition(&self.before, "Progressing").is_none() {
                let message = format!("Found new replica set \"{}\"", new.name);
                set_condition(
                    &mut self.before,
                    "Progressing",
                    "True",
                    "FoundNewReplicaSet",
                    &message,
                    self.now,
                );
            }
        } else if create {
            let mut object = sets::new_set(self.deployment, self.before.collision_count);
            let size = self.new_size(0);
            let mut annotations =
                sets::missing_annotations(self.deployment, &BTreeMap::new(), revision);
            annotations.extend(self.size_annotations());
            object.metadata.annotations = Some(annotations.clone());
            if let Some(spec) = &mut object.spec {
                spec.replicas = Some(size);
            }
            let name = object.metadata.name.clone().unwrap_or_default();
            if deadline {
                let message = format!("Created new replica set \"{name}\"");
                set_condition(
                    &mut self.before,
                    "Progressing",
                    "True",
                    "NewReplicaSetCreated",
                    &message,
                    self.now,
                );
            }
            self.actions.push(Action::Create(Box::new(object)));
            self.new = Some(Set {
                object: None,
                name,
                replicas: size,
                annotations,
                created: self.now,
            });
        }
        let Some(new) = &self.new else { return };
        let revision = new.annotations.get(REVISION).cloned().unwrap_or_default();
        if !revision.is_empty() && meta::annotation(self.deployment, REVISION) != Some(&revision) {
            self.actions.push(Action::SetRevision(revision));
        }
    }

    fn size_annotations(&self) -> [(String, String); 2] {
        let wanted = wanted(self.deployment);
        [
            (DESIRED.into(), wanted.to_string()),
            (
                MAX.into(),
                (wanted + max_surge(self.deployment)).to_string(),
            ),
        ]
    }

    /// The size that the newest set, now `has`, may grow to.
    fn new_size(&self, has: i32) -> i32 {
        let wanted = wanted(self.deployment);
        if is_recreate(self.deployment) {
            return wanted;
        }
        let room = wanted + max_surge(self.deployment) - self.total();
        if room <= 0 {
            has
        } else {
            has + room.min(wanted - has)
        }
    }

    fn roll(&mut self) {
        self.sync_newest(true);
        let Some(has) = self.new.as_ref().map(|n| n.replicas) else {
            return;
        };
        let wanted = wanted(self.deployment);
        let size = if has > wanted {
            wanted
        } else {
            self.new_size(has)
        };
        if size != has {
            if let Some(new) = &mut self.new {
                new.replicas = size;
            }
            return;
        }
        if !self.shrink_old() && status::is_complete(self.deployment, &self.before) {
            self.clean_up();
        }
    }

    /// Shrinks old sets as far as availability allows: first by what is not available anyway. True if any shrank.
    fn shrink_old(&mut self) -> bool {
        let Some(new) = &self.new else { return false };
        let min_available = wanted(self.deployment) - max_unavailable(self.deployment);
        let new_unavailable = new.replicas - new.available();
        let old_total: i32 = self.old.iter().map(|s| s.replicas).sum();
        let room = self.total() - min_available - new_unavailable;
        if old_total == 0 || room <= 0 {
            return false;
        }
        let mut cleaned = 0;
        for set in self.old.iter_mut().filter(|s| s.replicas > s.available()) {
            let by = (room - cleaned).min(set.replicas - set.available());
            set.replicas -= by;
            cleaned += by;
        }
        let available: i32 = self.all().map(Set::available).sum();
        let mut spare = (available - min_available).max(0);
        let mut shrunk = cleaned;
        for set in &mut self.old {
            let by = spare.min(set.replicas);
            set.replicas -= by;
            spare -= by;
            shrunk += by;
        }
        shrunk > 0
    }

    fn recreate(&mut self, running: &HashMap<String, usize>) {
        self.sync_newest(false);
        let mut shrunk = false;
        for set in self.old.iter_mut().filter(|s| s.replicas > 0) {
            set.replicas = 0;
            shrunk = true;
        }
        let pods_left = |s: &Set| {
            let uid = s.object.as_ref().and_then(|o| o.metadata.uid.as_ref());
            s.actual() > 0 || uid.is_some_and(|uid| running.get(uid).is_some_and(|n| *n > 0))
        };
        if shrunk || self.old.iter().any(pods_left) {
            return;
        }
        self.sync_newest(true);
        if let Some(new) = &mut self.new {
            new.replicas = wanted(self.deployment);
        }
        if status::is_complete(self.deployment, &self.before) {
            self.clean_up();
        }
    }

    /// Follows a changed `spec.replicas`, in proportion if several sets have pods, so that a rollout under way goes
    /// neither faster nor slower.
    fn scale(&mut self) {
        let wanted = wanted(self.deployment);
        let active = self.all().filter(|s| s.replicas > 0).count();
        if active <= 1 {
            let only = self
                .new
                .iter_mut()
                .chain(self.old.iter_mut().rev())
                .max_by_key(|s| s.replicas > 0);
            // max_by_key gives the last of equals; without an active set the newest is meant.
            let set = if active == 1 {
                only
            } else {
                self.new.as_mut().or(self.old.last_mut())
            };
            if let Some(set) = set {
                set.replicas = wanted;
            }
            return;
        }
        let saturated = |s: &Set| {
            s.replicas == wanted && s.number(DESIRED) == Some(wanted) && s.available() == wanted
        };
        if self.new.as_ref().is_some_and(saturated) {
            self.old.iter_mut().for_each(|s| s.replicas = 0);
            return;
        }
        if is_recreate(self.deployment) {
            return;
        }
        self.proportional = true;
        let surge = max_surge(self.deployment);
        let allowed = if wanted > 0 { wanted + surge } else { 0 };
        let to_add = allowed - self.total();
        let actual = self.before.replicas.unwrap_or(0);
        let mut active: Vec<&mut Set> = self
            .old
            .iter_mut()
            .chain(&mut self.new)
            .filter(|s| s.replicas > 0)
            .collect();
        // The largest first; among equals grow the newest, shrink the oldest.
        active.sort_by(|a, b| {
            let age = a.created.cmp(&b.created);
            b.replicas
                .cmp(&a.replicas)
                .then(if to_add > 0 { age.reverse() } else { age })
        });
        let mut added = 0;
        for set in &mut active {
            let part = proportion(set, wanted, wanted + surge, actual);
            let left = to_add - added;
            let part = if to_add > 0 {
                part.min(left)
            } else {
                part.max(left)
            };
            let part = if to_add == 0 { 0 } else { part };
            set.replicas += part;
            added += part;
        }
        if let Some(largest) = active.first_mut().filter(|_| to_add != 0) {
            largest.replicas = (largest.replicas + to_add - added).max(0);
        }
    }

    /// Deletes the oldest of the sets without pods that are beyond the history limit.
    fn clean_up(&mut self) {
        let limit = self
            .deployment
            .spec
            .as_ref()
            .and_then(|s| s.revision_history_limit)
            .filter(|l| *l != i32::MAX);
        let Some(limit) = limit else { return };
        let mut alive: Vec<(&Set, &Arc<ReplicaSet>)> = self
            .old
            .iter()
            .filter_map(|s| Some((s, s.object.as_ref()?)))
            .collect();
        alive.retain(|(_, o)| o.metadata.deletion_timestamp.is_none());
        alive.sort_by_key(|(s, _)| s.revision());
        let excess = alive.len().saturating_sub(limit.max(0) as usize);
        let unused = |(set, object): &&(&Set, &Arc<ReplicaSet>)| {
            let observed = object.status.as_ref().and_then(|s| s.observed_generation);
            set.actual() == 0 && set.replicas == 0 && object.metadata.generation <= observed
        };
        let doomed = alive[..excess]
            .iter()
            .filter(unused)
            .map(|(_, object)| Action::Delete((*object).clone()));
        let doomed: Vec<Action> = doomed.collect();
        self.actions.extend(doomed);
    }

    /// Adds the scaling that sizes ask for, and the status.
    fn finish(mut self, rollout: bool) -> Plan {
        let annotations = self.size_annotations();
        let mut scales = Vec::new();
        for set in self.all() {
            let Some(object) = &set.object else { continue };
            let from = sets::replicas(object);
            let outdated = annotations
                .iter()
                .any(|(k, v)| set.annotations.get(k) != Some(v));
            if from != set.replicas || (self.proportional && set.replicas > 0 && outdated) {
                let annotations =
                    annotations_value(annotations.iter().map(|(k, v)| (k.as_str(), v.clone())));
                scales.push(Action::Scale {
                    set: object.clone(),
                    from,
                    to: set.replicas,
                    annotations,
                });
            }
        }
        // Grow before shrinking, so that a pass cut short errs on the side of availability.
        scales.sort_by_key(|a| matches!(a, Action::Scale { from, to, .. } if to < from));
        self.actions.extend(scales);
        let all: Vec<&Set> = self.all().collect();
        let mut status = status::calculate(
            self.deployment,
            &all,
            self.new.as_ref(),
            &self.before,
            self.now,
        );
        let mut again = None;
        if rollout {
            status::add_progress(
                self.deployment,
                &all,
                self.new.as_ref(),
                &mut status,
                self.now,
            );
            again = status::deadline_check(self.deployment, &status, self.now);
        }
        Plan {
            actions: self.actions,
            status,
            again,
        }
    }
}

/// By how much a set grows or shrinks (negative) when the whole goes to `max`, for it to stay the same fraction.
fn proportion(set: &Set, wanted: i32, max: i32, actual: i32) -> i32 {
    if wanted == 0 {
        return -set.replicas;
    }
    let before = set.number(MAX).filter(|n| *n != 0).unwrap_or(actual);
    if before == 0 {
        return 0;
    }
    (f64::from(set.replicas) * f64::from(max) / f64::from(before)).round() as i32 - set.replicas
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
