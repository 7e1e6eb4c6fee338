//! What a pod's worker remembers between two passes and the runtime cannot tell:
//! running operations, back-offs, probe results. All of it may be lost in a
//! restart; the next passes rebuild it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::admission::Rejection;
use crate::model::Limits;

const CRASH_FIRST: SignedDuration = SignedDuration::from_secs(10);
const CRASH_MAX: SignedDuration = SignedDuration::from_secs(300);

/// A delay that doubles with each failure and is forgotten after a while without one,
/// as the kubelet's container and image back-offs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    pub delay: SignedDuration,
    pub since: Timestamp,
}

impl Backoff {
    pub fn until(&self) -> Timestamp {
        self.since + self.delay
    }

    /// The back-off after one more failure at `at`.
    pub fn next(
        previous: Option<Backoff>,
        at: Timestamp,
        first: SignedDuration,
        max: SignedDuration,
    ) -> Backoff {
        let delay = match previous {
            Some(b) if at.duration_since(b.since) <= max + max => (b.delay + b.delay).min(max),
            _ => first,
        };
        Backoff { delay, since: at }
    }
}

/// Why a container could not be started, and when to try again.
#[derive(Clone, Debug, PartialEq)]
pub struct StartFailure {
    /// A Kubernetes waiting reason: `ErrImagePull`, `CreateContainerConfigError`, ...
    pub reason: &'static str,
    pub message: String,
    /// The image that could not be had, if that is what failed.
    pub image: String,
    pub backoff: Backoff,
}

impl StartFailure {
    /// A failed pull shows as `ErrImagePull` for a moment, then as the back-off that it is.
    pub fn shown_as_backoff(&self, now: Timestamp) -> bool {
        self.reason == "ErrImagePull" && now >= self.settles_at()
    }

    pub fn settles_at(&self) -> Timestamp {
        self.backoff.since + SignedDuration::from_secs(1)
    }
}

/// What the probes of one running container have found so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeState {
    pub started: bool,
    pub ready: bool,
    pub startup_failed: bool,
    pub liveness_failed: bool,
}

/// An operation that runs beside the worker; at most one of these at a time.
#[derive(Clone, Debug, PartialEq)]
pub enum Setup {
    Volumes,
    Sandbox,
    Start(String),
}

#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Why the node has refused the pod.
    pub rejection: Option<Rejection>,
    /// It has to end for the sake of a critical pod.
    pub preempted: bool,
    pub setup: Option<Setup>,
    /// Stopping or removing sandboxes, cleaning up, or deleting from the API.
    pub teardown: bool,
    /// Containers being stopped, with the moment at which they get killed.
    pub killing: BTreeMap<String, Timestamp>,
    pub volumes_ready: bool,
    /// Volumes and cgroup are freed.
    pub cleaned: bool,
    /// Logs and directories are gone too.
    pub purged: bool,
    /// Sandboxes whose network has been torn down, though the runtime still lists them.
    pub stopped: BTreeSet<String>,
    pub setup_failure: Option<Backoff>,
    pub failures: BTreeMap<String, StartFailure>,
    pub crashes: BTreeMap<String, Backoff>,
    /// Keyed by container id.
    pub probes: BTreeMap<String, ProbeState>,
    /// Back-offs already told as events: container id, or container name for images.
    pub reported: BTreeSet<String>,
    pub delete_failure: Option<Backoff>,
    pub resizing: bool,
    pub resize_failure: Option<(Backoff, String)>,
    /// By container id, what the runtime was last told and has taken.
    pub resized: BTreeMap<String, Limits>,
    /// Ids of containers that were stopped to be started with other resources, whatever the restart policy says.
    pub resize_restarts: BTreeSet<String>,
}

impl Memory {
    /// When a container that ended at `finished` may run again; `None` means now.
    /// The first restart is immediate, the ones after it wait 10 s, doubling to 5 min, counted from the exit.
    pub fn crash_wait(&self, name: &str, finished: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let b = self.crashes.get(name)?;
        if finished.duration_since(b.since) > CRASH_MAX + CRASH_MAX {
            return None;
        }
        let until = finished + b.delay;
        (now < until).then_some(until)
    }

    /// Notes that a container which ended at `finished` is started again.
    pub fn note_restart(&mut self, name: &str, finished: Timestamp) {
        let next = Backoff::next(
            self.crashes.get(name).copied(),
            finished,
            CRASH_FIRST,
            CRASH_MAX,
        );
        self.crashes.insert(name.to_string(), next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_second(s).unwrap()
    }

    #[test]
    fn crash_back_off_doubles_to_five_minutes_and_is_forgotten() {
        let mut m = Memory::default();
        assert_eq!(
            m.crash_wait("c", at(1000), at(1000)),
            None,
            "first restart is immediate"
        );
        let mut finished = 1000;
        for delay in [10, 20, 40, 80, 160, 300, 300] {
            m.note_restart("c", at(finished));
            finished += 1;
            assert_eq!(
                m.crash_wait("c", at(finished), at(finished)),
                Some(at(finished + delay))
            );
            assert_eq!(m.crash_wait("c", at(finished), at(finished + delay)), None);
        }
        assert_eq!(
            m.crash_wait("c", at(finished + 700), at(finished + 700)),
            None,
            "ran long enough"
        );
        m.note_restart("c", at(finished + 700));
        assert_eq!(m.crashes["c"].delay, CRASH_FIRST);
    }
}
