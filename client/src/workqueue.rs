//! The queue between informers and workers: what is dirty, once each, with back-off for what fails.
//!
//! The rules are client-go's. A key is queued at most once however often it is added; a key being worked on is
//! not handed to a second worker, but comes back if it was added meanwhile; a failed key waits 5 ms, doubling to
//! 1000 s, until it succeeds.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const BASE_DELAY: Duration = Duration::from_millis(5);
const MAX_DELAY: Duration = Duration::from_secs(1000);

/// What a worker wants for a key that it handled without error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing, until something changes.
    Done,
    /// To be called again after this long (the back-off starts afresh).
    After(Duration),
}

/// A deduplicating queue with delays. Cloning shares it.
pub struct WorkQueue<K>(Arc<Inner<K>>);

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<K> {
    state: Mutex<State<K>>,
    wake: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// Waiting in `ready`, or to be put there when the worker that has it is done.
    dirty: HashSet<K>,
    processing: HashSet<K>,
    delayed: BinaryHeap<Reverse<Delayed<K>>>,
    /// The earliest instant each delayed key waits for; entries of `delayed` that disagree are outdated.
    due: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
    closed: bool,
}

struct Delayed<K> {
    at: Instant,
    key: K,
}

impl<K> PartialEq for Delayed<K> {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}
impl<K> Eq for Delayed<K> {}
impl<K> PartialOrd for Delayed<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Delayed<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

impl<K: Eq + Hash + Clone> State<K> {
    fn add(&mut self, key: K) -> bool {
        if self.closed || !self.dirty.insert(key.clone()) {
            return false;
        }
        if self.processing.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    /// Moves what is due to `ready`; returns when the next one will be.
    fn promote(&mut self, now: Instant) -> Option<Instant> {
        while let Some(Reverse(next)) = self.delayed.peek() {
            let current = self.due.get(&next.key) == Some(&next.at);
            if current && next.at > now {
                return Some(next.at);
            }
            let Some(Reverse(entry)) = self.delayed.pop() else {
                break;
            };
            if current {
                self.due.remove(&entry.key);
                self.add(entry.key);
            }
        }
        None
    }
}

impl<K: Eq + Hash + Clone> Default for WorkQueue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Eq + Hash + Clone> WorkQueue<K> {
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashSet::new(),
                processing: HashSet::new(),
                delayed: BinaryHeap::new(),
                due: HashMap::new(),
                failures: HashMap::new(),
                closed: false,
            }),
            wake: Notify::new(),
        }))
    }

    /// Marks `key` as in need of work.
    pub fn add(&self, key: K) {
        if self.0.state.lock().add(key) {
            self.0.wake.notify_one();
        }
    }

    /// Adds `key` once `delay` is over; of several delays for one key the earliest counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + delay;
        let mut state = self.0.state.lock();
        if state.closed || state.due.get(&key).is_some_and(|due| *due <= at) {
            return;
        }
        state.due.insert(key.clone(), at);
        state.delayed.push(Reverse(Delayed { at, key }));
        drop(state);
        self.0.wake.notify_one();
    }

    /// Adds `key` after its back-off, which grows with every call until [`forget`](Self::forget).
    pub fn add_rate_limited(&self, key: K) {
        let delay = {
            let mut state = self.0.state.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            let delay = backoff(*failures);
            *failures += 1;
            delay
        };
        self.add_after(key, delay);
    }

    /// Ends the back-off of `key`.
    pub fn forget(&self, key: &K) {
        self.0.state.lock().failures.remove(key);
    }

    /// How often `key` failed since it was last forgotten.
    pub fn failures(&self, key: &K) -> u32 {
        self.0.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// Keys ready to be worked on.
    pub fn len(&self) -> usize {
        self.0.state.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for a key; `None` once the queue is shut down. Every key got must be given to [`done`](Self::done).
    pub async fn get(&self) -> Option<K> {
        loop {
            let next = {
                let mut state = self.0.state.lock();
                if state.closed {
                    return None;
                }
                let next = state.promote(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.processing.insert(key.clone());
                    let more = !state.ready.is_empty() || next.is_some();
                    drop(state);
                    // This worker will be busy: another one takes over watching the queue and its next deadline.
                    if more {
                        self.0.wake.notify_one();
                    }
                    return Some(key);
                }
                next
            };
            match next {
                Some(at) => {
                    let _ = tokio::time::timeout_at(at, self.0.wake.notified()).await;
                }
                None => self.0.wake.notified().await,
            }
        }
    }

    /// Says that the worker is finished with `key`.
    pub fn done(&self, key: &K) {
        let mut state = self.0.state.lock();
        state.processing.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.0.wake.notify_one();
        }
    }

    /// Lets every `get` return `None` from now on.
    pub fn shut_down(&self) {
        self.0.state.lock().closed = true;
        self.0.wake.notify_waiters();
        self.0.wake.notify_one();
    }

    /// Works on the queue with `workers` concurrent workers until `shutdown`: an error puts the key back with
    /// back-off, success ends its back-off. Returns when the last worker is finished.
    pub async fn run<F, Fut, E>(&self, workers: usize, shutdown: &CancellationToken, work: F)
    where
        K: Debug,
        F: Fn(K) -> Fut,
        Fut: Future<Output = Result<Next, E>>,
        E: Display,
    {
        let worker = || async {
            while let Some(key) = tokio::select! { biased; () = shutdown.cancelled() => None, key = self.get() => key }
            {
                match work(key.clone()).await {
                    Ok(next) => {
                        self.forget(&key);
                        if let Next::After(delay) = next {
                            self.add_after(key.clone(), delay);
                        }
                    }
                    Err(error) => {
                        let failures = self.failures(&key);
                        // Conflicts and the like mend themselves on the next pass; what keeps failing is worth a line.
                        if failures >= 3 {
                            tracing::warn!(?key, failures, %error, "reconcile failed");
                        } else {
                            tracing::debug!(?key, %error, "reconcile failed, will retry");
                        }
                        self.add_rate_limited(key.clone());
                    }
                }
                self.done(&key);
            }
        };
        futures::future::join_all((0..workers.max(1)).map(|_| worker())).await;
    }
}

fn backoff(failures: u32) -> Duration {
    BASE_DELAY
        .checked_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX))
        .map_or(MAX_DELAY, |d| d.min(MAX_DELAY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_from_5ms_to_1000s() {
        let ms: Vec<u128> = (0..4).map(|n| backoff(n).as_millis()).collect();
        assert_eq!(ms, [5, 10, 20, 40]);
        assert_eq!(backoff(17), Duration::from_millis(5 << 17));
        assert_eq!(backoff(18), MAX_DELAY);
        assert_eq!(backoff(1000), MAX_DELAY);
    }

    #[tokio::test]
    async fn a_key_is_queued_once_and_returns_if_added_while_processed() {
        let q = WorkQueue::new();
        q.add("a");
        q.add("a");
        assert_eq!(q.len(), 1);
        assert_eq!(q.get().await, Some("a"));
        q.add("a");
        assert_eq!(q.len(), 0, "not given to a second worker");
        q.done(&"a");
        assert_eq!(q.get().await, Some("a"));
        q.done(&"a");
        assert!(q.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_of_several_delays_counts_once() {
        let q = WorkQueue::new();
        let start = Instant::now();
        q.add_after("a", Duration::from_secs(60));
        q.add_after("a", Duration::from_secs(10));
        q.add_after("b", Duration::from_secs(20));
        assert_eq!(q.get().await, Some("a"));
        assert_eq!(start.elapsed().as_secs(), 10);
        q.done(&"a");
        assert_eq!(q.get().await, Some("b"));
        q.done(&"b");
        let more = tokio::time::timeout(Duration::from_secs(100), q.get()).await;
        assert!(more.is_err(), "the delay of 60 s was superseded");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_and_success_forgets() {
        let q = WorkQueue::new();
        let shutdown = CancellationToken::new();
        let tries = Mutex::new(Vec::new());
        let start = Instant::now();
        q.add("a");
        q.run(2, &shutdown, |_| async {
            tries.lock().push(start.elapsed().as_millis());
            if tries.lock().len() < 4 {
                return Err("not yet");
            }
            shutdown.cancel();
            Ok(Next::Done)
        })
        .await;
        assert_eq!(*tries.lock(), [0, 5, 15, 35]);
        assert_eq!(q.failures(&"a"), 0);
    }
}
