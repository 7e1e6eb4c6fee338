//! Pods that wait: those to be tried now, those backing off, and those for which nothing has changed yet.
//!
//! The more important pod goes first, then the older one. A pod that fits nowhere is set aside until something
//! happens that one of the plugins which turned it away says may help; then it backs off (1 s, doubling to 10 s with
//! each attempt) and is tried again. After five minutes it is tried again in any case.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::framework::{Change, Plugin};
use crate::model::PodInfo;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(300);

#[derive(Debug, Clone)]
struct Waiting {
    pod: Arc<PodInfo>,
    attempts: u32,
    /// When the last attempt failed.
    failed: Instant,
    state: State,
    /// Tells the latest entry in a heap from outdated ones.
    ticket: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Gated,
    Active,
    BackingOff,
    /// Turned away by these plugins.
    Unschedulable(u32),
    InFlight,
}

/// Pods to be tried: the first is the greatest.
#[derive(Debug, PartialEq, Eq)]
struct Turn {
    priority: i32,
    created: Reverse<jiff::Timestamp>,
    ticket: Reverse<u64>,
    uid: Arc<str>,
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.priority, self.created, self.ticket).cmp(&(
            other.priority,
            other.created,
            other.ticket,
        ))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// All pods that have no node yet.
#[derive(Debug, Default)]
pub struct Queue {
    pods: HashMap<Arc<str>, Waiting>,
    active: BinaryHeap<Turn>,
    /// When pods are to be tried (again), with their tickets.
    due: BinaryHeap<Reverse<(Instant, u64, Arc<str>)>>,
    tickets: u64,
    /// Changes since the oldest attempt under way began: an attempt that fails may have missed them.
    changes_missed: HashMap<Arc<str>, bool>,
}

fn backoff(attempts: u32) -> Duration {
    FIRST_BACKOFF
        .saturating_mul(1 << attempts.saturating_sub(1).min(8))
        .min(MAX_BACKOFF)
}

impl Queue {
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    fn activate(&mut self, uid: &Arc<str>) {
        let ticket = self.ticket();
        let Some(waiting) = self.pods.get_mut(uid) else {
            return;
        };
        waiting.state = State::Active;
        waiting.ticket = ticket;
        self.active.push(Turn {
            priority: waiting.pod.priority,
            created: Reverse(waiting.pod.created),
            ticket: Reverse(ticket),
            uid: uid.clone(),
        });
    }

    /// Adds a pod, or takes note of how it changed. A change of the pod itself may be all that was needed.
    pub fn update(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let uid = pod.uid.clone();
        let Some(waiting) = self.pods.get_mut(&uid) else {
            let state = if pod.gated {
                State::Gated
            } else {
                State::Active
            };
            let ticket = 0;
            self.pods.insert(
                uid.clone(),
                Waiting {
                    pod,
                    attempts: 0,
                    failed: now,
                    state,
                    ticket,
                },
            );
            if state == State::Active {
                self.activate(&uid);
            }
            return;
        };
        let matters = matters(&waiting.pod, &pod);
        waiting.pod = pod;
        match waiting.state {
            State::Gated if !waiting.pod.gated => self.activate(&uid),
            State::Unschedulable(_) if matters => self.retry(&uid, now),
            State::InFlight if matters => drop(self.changes_missed.insert(uid, true)),
            _ => {}
        }
    }

    pub fn remove(&mut self, uid: &str) -> bool {
        self.changes_missed.remove(uid);
        self.pods.remove(uid).is_some()
    }

    pub fn contains(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    pub fn uids(&self) -> Vec<Arc<str>> {
        self.pods.keys().cloned().collect()
    }

    /// The next pod to try. It counts as under way until [`fail`](Self::fail) or [`remove`](Self::remove).
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        self.promote(now);
        while let Some(turn) = self.active.pop() {
            let Some(waiting) = self.pods.get_mut(&turn.uid) else {
                continue;
            };
            if waiting.state == State::Active && waiting.ticket == turn.ticket.0 {
                waiting.state = State::InFlight;
                waiting.attempts += 1;
                self.changes_missed.insert(turn.uid.clone(), false);
                return Some(waiting.pod.clone());
            }
        }
        None
    }

    /// Puts a pod back for which no node was found: the plugins in `by` turned it away. 0 means that the attempt
    /// itself failed, and is to be repeated.
    pub fn fail(&mut self, uid: &str, by: u32, now: Instant) {
        let missed = self.changes_missed.remove(uid).unwrap_or(false);
        let Some((uid, waiting)) = self.pods.get_key_value(uid).map(|(k, v)| (k.clone(), v)) else {
            return;
        };
        if waiting.state != State::InFlight {
            return;
        }
        let ticket = self.ticket();
        let Some(waiting) = self.pods.get_mut(&uid) else {
            return;
        };
        waiting.failed = now;
        if missed || by == 0 {
            return self.retry(&uid, now);
        }
        waiting.state = State::Unschedulable(by);
        waiting.ticket = ticket;
        self.due.push(Reverse((now + LONGEST_WAIT, ticket, uid)));
    }

    /// Tries a pod again once its back-off is over.
    fn retry(&mut self, uid: &Arc<str>, now: Instant) {
        let ticket = self.ticket();
        let Some(waiting) = self.pods.get_mut(uid) else {
            return;
        };
        let at = waiting.failed + backoff(waiting.attempts);
        if at <= now || waiting.attempts == 0 {
            return self.activate(uid);
        }
        waiting.state = State::BackingOff;
        waiting.ticket = ticket;
        self.due.push(Reverse((at, ticket, uid.clone())));
    }

    /// Lets pods be tried again that `change` may help.
    pub fn moved(&mut self, change: &Change, plugins: &[Box<dyn Plugin>], now: Instant) {
        let helped = |by: u32, pod: &PodInfo| {
            plugins
                .iter()
                .enumerate()
                .any(|(at, plugin)| by & (1 << at) != 0 && plugin.helps(change, pod))
        };
        let retry: Vec<Arc<str>> = self
            .pods
            .values()
            .filter(|w| matches!(w.state, State::Unschedulable(by) if helped(by, &w.pod)))
            .map(|w| w.pod.uid.clone())
            .collect();
        retry.iter().for_each(|uid| self.retry(uid, now));
        self.changes_missed
            .values_mut()
            .for_each(|missed| *missed = true);
    }

    fn promote(&mut self, now: Instant) {
        while let Some(Reverse((at, ..))) = self.due.peek() {
            if *at > now {
                return;
            }
            let Some(Reverse((_, ticket, uid))) = self.due.pop() else {
                return;
            };
            if self.pods.get(&uid).is_some_and(|w| w.ticket == ticket) {
                self.activate(&uid);
            }
        }
    }

    /// When the queue next has something to do of itself.
    pub fn next_due(&mut self) -> Option<Instant> {
        while let Some(Reverse((at, ticket, uid))) = self.due.peek() {
            if self.pods.get(uid).is_some_and(|w| w.ticket == *ticket) {
                return Some(*at);
            }
            self.due.pop();
        }
        None
    }
}

/// Whether what scheduling looks at differs.
fn matters(old: &PodInfo, new: &PodInfo) -> bool {
    old.labels != new.labels
        || old.gated != new.gated
        || old.requests != new.requests
        || old.tolerations != new.tolerations
        || old.node_selector != new.node_selector
        || old.priority != new.priority
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::default_plugins;
    use crate::schedule::tests::pod;
    use serde_json::json;

    fn prioritized(name: &str, priority: i32, created: &str) -> Arc<PodInfo> {
        pod(
            name,
            json!({"metadata": {"creationTimestamp": created}, "spec": {"priority": priority}}),
        )
    }

    fn names(queue: &mut Queue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| queue.pop(now))
            .map(|p| p.name.to_string())
            .collect()
    }

    #[test]
    fn importance_then_age() {
        let (mut q, now) = (Queue::default(), Instant::now());
        for (name, priority, created) in [
            ("new", 0, "2026-01-02T00:00:00Z"),
            ("old", 0, "2026-01-01T00:00:00Z"),
            ("vip", 9, "2026-01-03T00:00:00Z"),
        ] {
            q.update(prioritized(name, priority, created), now);
        }
        assert_eq!(names(&mut q, now), ["vip", "old", "new"]);
    }

    #[test]
    fn what_may_help_ends_the_wait() {
        let plugins = default_plugins();
        let resources = plugins
            .iter()
            .position(|p| p.name() == "NodeResourcesFit")
            .unwrap();
        let (mut q, now) = (Queue::default(), Instant::now());
        let after = |s: u64| now + Duration::from_secs(s);
        q.update(prioritized("p", 0, "2026-01-01T00:00:00Z"), now);
        q.pop(now).unwrap();
        q.fail("p", 1 << resources, now);
        q.moved(
            &Change::NodeUpdated {
                allocatable: false,
                labels: true,
                taints: false,
                unschedulable: false,
            },
            &plugins,
            after(1),
        );
        assert_eq!(q.next_due(), Some(after(300)), "labels do not make room");
        q.moved(&Change::NodeAdded, &plugins, now);
        assert_eq!(q.next_due(), Some(after(1)), "after its back-off");
        assert!(q.pop(now).is_none());
        assert!(q.pop(after(1)).is_some());
        q.fail("p", 1 << resources, after(1));
        q.moved(&Change::NodeAdded, &plugins, after(2));
        assert_eq!(
            q.next_due(),
            Some(after(3)),
            "twice as long the second time"
        );
        assert!(q.pop(after(3)).is_some());
        q.fail("p", 1 << resources, after(3));
        assert!(q.pop(after(302)).is_none());
        assert!(
            q.pop(after(303)).is_some(),
            "never longer than five minutes"
        );
    }

    #[test]
    fn changes_during_an_attempt_are_not_lost() {
        let plugins = default_plugins();
        let (mut q, now) = (Queue::default(), Instant::now());
        q.update(prioritized("p", 0, "2026-01-01T00:00:00Z"), now);
        q.pop(now).unwrap();
        q.moved(&Change::NodeAdded, &plugins, now);
        q.fail("p", 1, now);
        assert_eq!(q.next_due(), Some(now + Duration::from_secs(1)));
    }

    #[test]
    fn gated_pods_wait_for_their_gates() {
        let (mut q, now) = (Queue::default(), Instant::now());
        q.update(
            pod("p", json!({"spec": {"schedulingGates": [{"name": "g"}]}})),
            now,
        );
        assert!(q.pop(now).is_none());
        q.update(pod("p", json!({})), now);
        assert!(q.pop(now).is_some());
    }
}
