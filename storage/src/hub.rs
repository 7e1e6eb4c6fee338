//! How changes reach watchers: the committer publishes each batch once, and every watcher gets its part of it.
//!
//! A watcher has a bounded buffer. One that does not keep up is dropped from the fan-out and, when it has drained its
//! buffer, joins again and reads what it missed from the engine's log: it is slower, but it loses nothing, and it
//! holds nobody else up.
//!
//! Readers that must not be stale need to know whether a consumer of a watch has seen everything up to some revision,
//! although most revisions do not concern it. [`Progress`] answers that from two counters, without waking anybody.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use futures::Stream;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::{Batch, Error, Event, Result};

/// How many events may wait for a watcher before it has to read the log.
const BUFFER: usize = 4096;

/// Where a watcher that fell behind reads what it missed.
pub(crate) trait Log: Send + Sync + 'static {
    /// The changes to keys beginning with `prefix` from revision `from` on, up to `to`, which has been published. The
    /// batch may end before `to`, as its revision says, to stay small.
    fn read(
        self: Arc<Self>,
        prefix: Arc<str>,
        from: u64,
        to: u64,
    ) -> BoxFuture<'static, Result<Batch>>;
}

/// The fan-out of one store.
pub(crate) struct Hub {
    shared: Arc<Shared>,
}

struct Shared {
    /// The last revision published. Changed only under the lock of `watchers`.
    position: watch::Sender<u64>,
    watchers: Mutex<Watchers>,
}

#[derive(Default)]
struct Watchers {
    next_id: u64,
    /// By their prefix, so that an event finds its watchers without asking all of them.
    by_prefix: HashMap<Arc<str>, Vec<Live>>,
    /// Why there will be no more.
    ended: Option<Error>,
}

struct Live {
    id: u64,
    sender: mpsc::UnboundedSender<Result<Batch>>,
    state: Arc<State>,
    /// The part of the batch being published that concerns this watcher.
    pending: Vec<Event>,
}

/// What a watch, the hub and those who ask for progress share.
#[derive(Default)]
struct State {
    /// The revision of the last change that was put into the buffer.
    last_event: AtomicU64,
    /// Whether the watch has to read the log first, so that `last_event` says nothing.
    behind: AtomicBool,
    /// How many events the buffer holds.
    buffered: AtomicUsize,
}

impl Hub {
    pub(crate) fn new(position: u64) -> Self {
        let shared = Shared {
            position: watch::Sender::new(position),
            watchers: Mutex::default(),
        };
        Hub {
            shared: Arc::new(shared),
        }
    }

    /// The last revision published.
    pub(crate) fn position(&self) -> u64 {
        *self.shared.position.borrow()
    }

    /// Gives the events, which are durable and in order, to their watchers. Then the position is `revision`.
    pub(crate) fn publish(&self, events: &[Event], revision: u64) {
        let mut watchers = self.shared.watchers.lock();
        if !watchers.by_prefix.is_empty() {
            watchers.fan_out(events, revision);
        }
        self.shared.position.send_replace(revision);
    }

    /// Ends the watches there are with `error`. The position becomes `revision`, and new watches are welcome.
    pub(crate) fn reset(&self, error: Error, revision: u64) {
        let mut watchers = self.shared.watchers.lock();
        for live in watchers.by_prefix.drain().flat_map(|(_, live)| live) {
            live.state.behind.store(true, Ordering::Release);
            let _ = live.sender.send(Err(error.clone()));
        }
        self.shared.position.send_replace(revision);
    }

    /// Ends all watches, those to come too.
    pub(crate) fn end(&self, error: Error) {
        self.shared.watchers.lock().ended = Some(error.clone());
        self.reset(error, self.position());
    }

    pub(crate) fn watch(&self, log: Arc<dyn Log>, prefix: &str, from: u64) -> Watch {
        let prefix: Arc<str> = prefix.into();
        let state = Arc::new(State::default());
        let (id, buffer, position) = self.shared.join(&prefix, &state);
        let mut watch = Watch {
            shared: self.shared.clone(),
            log,
            prefix,
            state,
            id,
            buffer,
            next: from,
            reading: None,
            done: false,
            transform: None,
            transforming: None,
        };
        watch.catch_up(position);
        watch
    }
}

impl Watchers {
    fn has(&self, prefix: &str, id: u64) -> bool {
        let live = self.by_prefix.get(prefix).into_iter().flatten();
        live.into_iter().any(|live| live.id == id)
    }

    fn fan_out(&mut self, events: &[Event], revision: u64) {
        let mut concerned: Vec<Arc<str>> = Vec::new();
        for event in events {
            let key = &*event.kv.key;
            // Most prefixes are whole path segments; those that are not, and the empty one, are looked for one by one.
            let segments = key.match_indices('/').map(|(at, _)| &key[..=at]);
            for prefix in segments {
                let Some((name, live)) = self.by_prefix.get_key_value(prefix) else {
                    continue;
                };
                if live[0].pending.is_empty() {
                    concerned.push(name.clone());
                }
                let live = self.by_prefix.get_mut(prefix).into_iter().flatten();
                live.for_each(|live| live.pending.push(event.clone()));
            }
            let others = self
                .by_prefix
                .iter_mut()
                .filter(|(p, _)| !p.ends_with('/') && key.starts_with(&***p));
            for (name, live) in others {
                if live[0].pending.is_empty() {
                    concerned.push(name.clone());
                }
                live.iter_mut()
                    .for_each(|live| live.pending.push(event.clone()));
            }
        }
        for prefix in concerned {
            let Some(live) = self.by_prefix.get_mut(&prefix) else {
                continue;
            };
            live.retain_mut(|live| live.flush(revision));
            if live.is_empty() {
                self.by_prefix.remove(&prefix);
            }
        }
    }
}

impl Live {
    /// Hands the pending events over. False if the watcher is gone or has to read them from the log.
    fn flush(&mut self, revision: u64) -> bool {
        let events = std::mem::take(&mut self.pending);
        let Some(last) = events.last().map(Event::revision) else {
            return true;
        };
        let buffered = self
            .state
            .buffered
            .fetch_add(events.len(), Ordering::AcqRel);
        if buffered > 0 && buffered + events.len() > BUFFER {
            self.state.behind.store(true, Ordering::Release);
            return false;
        }
        self.state.last_event.fetch_max(last, Ordering::AcqRel);
        self.sender.send(Ok(Batch { events, revision })).is_ok()
    }
}

type Joined = (u64, mpsc::UnboundedReceiver<Result<Batch>>, u64);

impl Shared {
    /// Adds a watcher that gets everything published after the returned position.
    fn join(&self, prefix: &Arc<str>, state: &Arc<State>) -> Joined {
        let (sender, buffer) = mpsc::unbounded_channel();
        let mut watchers = self.watchers.lock();
        let id = watchers.next_id;
        watchers.next_id += 1;
        state.buffered.store(0, Ordering::Release);
        // Until the watch has found out whether it has to read the log first.
        state.behind.store(true, Ordering::Release);
        if let Some(error) = &watchers.ended {
            let _ = sender.send(Err(error.clone()));
        } else {
            let live = Live {
                id,
                sender,
                state: state.clone(),
                pending: Vec::new(),
            };
            watchers
                .by_prefix
                .entry(prefix.clone())
                .or_default()
                .push(live);
        }
        (id, buffer, *self.position.borrow())
    }
}

/// The changes of one prefix, as a stream. It ends after its first error.
pub struct Watch {
    shared: Arc<Shared>,
    log: Arc<dyn Log>,
    prefix: Arc<str>,
    state: Arc<State>,
    id: u64,
    buffer: mpsc::UnboundedReceiver<Result<Batch>>,
    /// The first revision not yet yielded.
    next: u64,
    /// The read of the log that is under way, and the position it has to reach.
    reading: Option<(BoxFuture<'static, Result<Batch>>, u64)>,
    done: bool,
    transform: Option<Transform>,
    /// The batch that is on its way through it.
    transforming: Option<BoxFuture<'static, Result<Batch>>>,
}

/// What a batch goes through before it is yielded.
type Transform = Box<dyn Fn(Batch) -> BoxFuture<'static, Result<Batch>> + Send + Sync>;

impl Watch {
    /// A handle that tells how far this watch is, to be asked from elsewhere.
    pub fn progress(&self) -> Progress {
        Progress {
            shared: self.shared.clone(),
            state: self.state.clone(),
        }
    }

    /// The same watch, every batch of which goes through `transform`; an error of it ends the watch.
    #[must_use]
    pub fn transformed(
        mut self,
        transform: impl Fn(Batch) -> BoxFuture<'static, Result<Batch>> + Send + Sync + 'static,
    ) -> Self {
        self.transform = Some(Box::new(transform));
        self
    }

    /// The next batch; `None` once the watch has ended.
    pub async fn next(&mut self) -> Option<Result<Batch>> {
        futures::StreamExt::next(self).await
    }

    fn catch_up(&mut self, to: u64) {
        if self.next <= to {
            self.state.behind.store(true, Ordering::Release);
            self.reading = Some((
                self.log.clone().read(self.prefix.clone(), self.next, to),
                to,
            ));
            return;
        }
        // Meanwhile it may have been dropped from the fan-out: then the buffer lacks what was published since.
        let watchers = self.shared.watchers.lock();
        if watchers.has(&self.prefix, self.id) {
            self.state.behind.store(false, Ordering::Release);
        }
    }

    /// Takes a batch in. `None` if it holds nothing that is to be yielded.
    fn accept(&mut self, mut batch: Batch) -> Option<Batch> {
        let next = self.next;
        self.next = next.max(batch.revision + 1);
        // Only a watch from a future revision sees revisions before its first.
        batch.events.retain(|event| event.revision() >= next);
        (batch.revision >= next).then_some(batch)
    }
}

impl Stream for Watch {
    type Item = Result<Batch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(transforming) = &mut this.transforming {
                let transformed = ready!(transforming.as_mut().poll(cx));
                this.transforming = None;
                this.done |= transformed.is_err();
                return Poll::Ready(Some(transformed));
            }
            let batch = match ready!(this.poll_batch(cx)) {
                Some(Ok(batch)) => batch,
                other => return Poll::Ready(other),
            };
            match &this.transform {
                Some(transform) => this.transforming = Some(transform(batch)),
                None => return Poll::Ready(Some(Ok(batch))),
            }
        }
    }
}

impl Watch {
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Batch>>> {
        let this = self;
        while !this.done {
            if let Some((read, to)) = &mut this.reading {
                let (result, to) = (ready!(read.as_mut().poll(cx)), *to);
                this.reading = None;
                match result {
                    Ok(batch) => {
                        let caught_up = batch.revision >= to;
                        let batch = this.accept(batch);
                        if caught_up {
                            this.state.last_event.fetch_max(to, Ordering::AcqRel);
                        }
                        this.catch_up(to);
                        if let Some(batch) =
                            batch.filter(|batch| caught_up || !batch.events.is_empty())
                        {
                            return Poll::Ready(Some(Ok(batch)));
                        }
                    }
                    Err(error) => {
                        this.done = true;
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                continue;
            }
            match ready!(this.buffer.poll_recv(cx)) {
                Some(Ok(batch)) => {
                    this.state
                        .buffered
                        .fetch_sub(batch.events.len(), Ordering::AcqRel);
                    if let Some(batch) = this.accept(batch) {
                        return Poll::Ready(Some(Ok(batch)));
                    }
                }
                Some(Err(error)) => {
                    this.done = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    let (id, buffer, position) = this.shared.join(&this.prefix, &this.state);
                    (this.id, this.buffer) = (id, buffer);
                    this.catch_up(position);
                }
            }
        }
        Poll::Ready(None)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.state.behind.store(true, Ordering::Release);
        let mut watchers = self.shared.watchers.lock();
        if let Some(live) = watchers.by_prefix.get_mut(&self.prefix) {
            live.retain(|live| live.id != self.id);
            if live.is_empty() {
                watchers.by_prefix.remove(&self.prefix);
            }
        }
    }
}

/// How far a [`Watch`] is, for readers of what its consumer has built from it.
#[derive(Clone)]
pub struct Progress {
    shared: Arc<Shared>,
    state: Arc<State>,
}

/// Whoever has taken in everything of a watch up to `last_event` knows the watch's keys as of `revision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// How far the store has published.
    pub revision: u64,
    /// A revision that the watch has yielded or is about to yield, so that waiting for it comes to an end.
    pub last_event: u64,
}

impl Progress {
    /// Where the watch stands now.
    pub fn now(&self) -> Mark {
        let revision = *self.shared.position.borrow();
        let behind = self.state.behind.load(Ordering::Acquire);
        let last_event = if behind {
            revision
        } else {
            self.state.last_event.load(Ordering::Acquire)
        };
        Mark {
            revision,
            last_event,
        }
    }

    /// Where the watch stands once the store has published `revision`: what to wait for after
    /// [`Store::current_revision`](crate::Store::current_revision). Waits as long as the store is out of reach, so give
    /// it a deadline.
    pub async fn reached(&self, revision: u64) -> Mark {
        if *self.shared.position.borrow() < revision {
            // The sender lives in what we hold, so that waiting cannot fail.
            let _ = self
                .shared
                .position
                .subscribe()
                .wait_for(|position| *position >= revision)
                .await;
        }
        self.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EventKind, KeyValue};
    use futures::FutureExt;
    use tokio::sync::oneshot;

    fn put(revision: u64) -> Event {
        let kv = KeyValue {
            key: "/a/1".into(),
            value: "x".into(),
            create_revision: 1,
            mod_revision: revision,
        };
        Event {
            kind: EventKind::Put,
            kv,
            prev_kv: None,
        }
    }

    /// A log whose one read goes on until it is let go.
    struct Slow(Mutex<Option<oneshot::Receiver<()>>>);

    impl Log for Slow {
        fn read(
            self: Arc<Self>,
            _: Arc<str>,
            from: u64,
            to: u64,
        ) -> BoxFuture<'static, Result<Batch>> {
            async move {
                let gate = self.0.lock().take();
                gate.expect("one read").await.expect("it is let go");
                let events = (from..=to).map(put).collect();
                Ok(Batch {
                    events,
                    revision: to,
                })
            }
            .boxed()
        }
    }

    /// The hub is at 5, and a watch from 3 reads the log.
    fn reading() -> (Hub, Watch, oneshot::Sender<()>) {
        let (go, gate) = oneshot::channel();
        let hub = Hub::new(5);
        let log = Arc::new(Slow(Mutex::new(Some(gate))));
        let mut watch = hub.watch(log, "/a/", 3);
        assert!(watch.next().now_or_never().is_none());
        (hub, watch, go)
    }

    #[tokio::test]
    async fn progress_counts_what_comes_while_the_log_is_read() {
        let (hub, mut watch, go) = reading();
        let progress = watch.progress();
        hub.publish(&[put(6)], 7);
        // It is not known yet which of these concern the watch.
        let everything = Mark {
            revision: 7,
            last_event: 7,
        };
        assert_eq!(progress.now(), everything);
        go.send(()).unwrap();
        assert_eq!(watch.next().await.unwrap().unwrap().revision, 5);
        let mark = Mark {
            revision: 7,
            last_event: 6,
        };
        assert_eq!(progress.now(), mark);
        assert_eq!(watch.next().await.unwrap().unwrap().revision, 7);
    }

    #[tokio::test]
    async fn a_watch_that_ends_while_it_reads_the_log_never_seems_up_to_date() {
        let (hub, mut watch, go) = reading();
        let progress = watch.progress();
        // What happened from 6 to 9 is lost, and may have concerned the watch.
        let lost = Error::Compacted {
            requested: 6,
            oldest: 9,
        };
        hub.reset(lost, 9);
        go.send(()).unwrap();
        assert_eq!(watch.next().await.unwrap().unwrap().revision, 5);
        let unknown = Mark {
            revision: 9,
            last_event: 9,
        };
        assert_eq!(progress.now(), unknown);
        assert!(watch.next().await.unwrap().is_err());
        assert_eq!(progress.now(), unknown);
        drop(watch);
        assert_eq!(progress.now(), unknown);
    }
}
