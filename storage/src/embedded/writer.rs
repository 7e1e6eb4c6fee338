//! The thread that writes.
//!
//! An fsync costs milliseconds, whatever it covers, so writes that wait are committed together: while one commit is
//! under way, the next batch gathers. Nobody hears of a write, neither its caller nor a watcher nor a reader, before
//! the fsync that makes it durable.
//!
//! The thread sleeps until a request comes or the next key expires.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, atomic::Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::{MutexGuard, RwLockReadGuard};
use tokio::sync::oneshot;

use super::file::{self, Cleaned, Kind, Record, Snapshot, Tables, fault};
use super::index::{Index, Slot};
use super::rewrite::{self, Rewritten};
use super::{Shared, all_events};
use crate::history::{self, History};
use crate::{Error, Event, EventKind, Expect, KeyValue, Result};

/// How many writes, and bytes of values, one commit takes at most.
const MAX_BATCH: usize = 1024;
const MAX_BATCH_BYTES: usize = 4 << 20;
/// How long a batch may wait for as many writes as the one before had: those who were just answered tend to be back
/// at once, and an fsync for one or two of them would make all others wait for the next.
const MAX_GATHER: Duration = Duration::from_micros(500);
/// How many revisions are cleaned up after in one commit.
const CLEAN_CHUNK: usize = 256;
/// How many expired keys one commit deletes.
const EXPIRE_CHUNK: usize = 512;
/// How many commits there are between two looks at the size of the file.
const MEASURE_EVERY: u32 = 64;

pub(super) enum Request {
    Write(Write),
    Compact {
        revision: u64,
        reply: oneshot::Sender<Result<()>>,
    },
    /// The background copy is ready, or failed.
    Rewritten(Result<Rewritten>),
    Close {
        reply: oneshot::Sender<Result<()>>,
    },
}

/// What is to happen to one key.
pub(super) struct Change {
    pub key: Arc<str>,
    pub expect: Expect,
    /// `None` to delete.
    pub value: Option<Bytes>,
    pub ttl: Option<Duration>,
}

/// A change that somebody waits for.
pub(super) struct Write {
    pub change: Change,
    pub reply: oneshot::Sender<Result<Written>>,
}

pub(super) struct Written {
    pub revision: u64,
    pub prev: Option<KeyValue>,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    requests: Receiver<Request>,
    /// For the background copy to answer on.
    sender: Sender<Request>,
    history: History,
    /// Up to which revision obsolete records have been removed.
    cleaned: u64,
    /// Bytes of keys and values in the log.
    total_bytes: u64,
    last_batch: usize,
    last_commit: Duration,
    commits: u32,
    rewriting: bool,
    /// What the file took on the disk after it was rewritten last, and its bytes of keys and values then.
    last_rewrite: (u64, u64),
    closing: Option<oneshot::Sender<Result<()>>>,
}

pub(super) fn now_millis() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}

impl Writer {
    pub fn new(
        shared: Arc<Shared>,
        requests: Receiver<Request>,
        sender: Sender<Request>,
        cleaned: u64,
        total_bytes: u64,
    ) -> Self {
        let history = History::new(
            shared.options.history,
            Instant::now(),
            shared.hub.position(),
        );
        Writer {
            shared,
            requests,
            sender,
            history,
            cleaned,
            total_bytes,
            last_batch: 0,
            last_commit: Duration::ZERO,
            commits: 0,
            rewriting: false,
            last_rewrite: (0, 0),
            closing: None,
        }
    }

    pub fn run(mut self) {
        while self.closing.is_none() {
            let batch = self.gather();
            self.commit(batch);
        }
    }

    /// Waits for something to do. Returns the writes to commit now, which may be none.
    fn gather(&mut self) -> Vec<Write> {
        let mut batch = Vec::new();
        let cleaning = !self.rewriting && self.cleaned < self.shared.index.read().compacted;
        let expiry = self.shared.index.read().next_expiry();
        let first = match expiry {
            _ if cleaning => self.requests.recv_timeout(Duration::ZERO),
            Some(at) => self
                .requests
                .recv_timeout(Duration::from_millis(at.saturating_sub(now_millis()))),
            None => self
                .requests
                .recv()
                .map_err(|_| RecvTimeoutError::Disconnected),
        };
        match first {
            Ok(request) => self.take(request, &mut batch),
            Err(_) => return batch,
        }
        let deadline = Instant::now() + MAX_GATHER.min(self.last_commit / 4);
        let mut bytes = 0;
        while batch.len() < MAX_BATCH && bytes < MAX_BATCH_BYTES && self.closing.is_none() {
            let wait = if !batch.is_empty() && batch.len() < self.last_batch {
                deadline.saturating_duration_since(Instant::now())
            } else {
                Duration::ZERO
            };
            let Ok(request) = self.requests.recv_timeout(wait) else {
                break;
            };
            self.take(request, &mut batch);
            bytes += batch
                .last()
                .and_then(|write| write.change.value.as_ref())
                .map_or(0, Bytes::len);
        }
        batch
    }

    fn take(&mut self, request: Request, batch: &mut Vec<Write>) {
        match request {
            Request::Write(write) => batch.push(write),
            Request::Compact { revision, reply } => {
                let _ = reply.send(self.compact(revision));
            }
            Request::Rewritten(new) => self.adopt(new),
            Request::Close { reply } => self.closing = Some(reply),
        }
    }

    /// History up to `revision` is refused from now on. Its records are removed bit by bit, with the next commits.
    fn compact(&mut self, revision: u64) -> Result<()> {
        let mut index = self.shared.index.write();
        if revision > index.revision {
            return Err(Error::FutureRevision {
                requested: revision,
                current: index.revision,
            });
        }
        index.compacted = index.compacted.max(revision);
        Ok(())
    }

    fn commit(&mut self, writes: Vec<Write>) {
        let started = Instant::now();
        self.last_batch = writes.len();
        let (requests, replies): (Vec<_>, Vec<_>) = writes
            .into_iter()
            .map(|Write { change, reply }| (change, reply))
            .unzip();
        match self.try_commit(requests) {
            Ok(outcomes) => {
                for (reply, outcome) in replies.into_iter().zip(outcomes) {
                    // Whoever does not wait any longer does not want to know.
                    let _ = reply.send(outcome);
                }
            }
            Err(error) => {
                tracing::error!(%error, writes = replies.len(), "the store could not write");
                for reply in replies {
                    let _ = reply.send(Err(error.clone()));
                }
                self.reopen();
            }
        }
        self.last_commit = started.elapsed();
    }

    fn try_commit(&mut self, writes: Vec<Change>) -> Result<Vec<Outcome>> {
        let shared = self.shared.clone();
        let turn = shared.turn.lock();
        let database = shared.database.read();
        let Some(database) = &*database else {
            return Err(shared.gone());
        };
        let transaction = database.begin_write().map_err(fault)?;
        let index = shared.index.read();
        let mut batch = Batch::new(index, Tables::open(&transaction)?);
        batch.expire(now_millis())?;
        let room = free_bytes(&shared.path) >= shared.options.reserve_bytes;
        let mut outcomes = Vec::with_capacity(writes.len());
        for change in writes {
            outcomes.push(if change.value.is_some() && !room {
                Err(Error::Full(format!(
                    "less than {} bytes are free",
                    shared.options.reserve_bytes
                )))
            } else {
                batch.write(change)?
            });
        }
        let cleaned = match self.rewriting {
            // The copy is made bit by bit. If it had a value of before and missed the deletion that is cleaned away
            // meanwhile, the next start would find the value.
            true => None,
            false => batch.clean(self.cleaned)?,
        };
        let Done {
            events,
            slots,
            revision,
            bytes,
        } = batch.finish();
        if events.is_empty() && cleaned.is_none() {
            transaction.abort().map_err(fault)?;
            return Ok(outcomes);
        }
        transaction.commit().map_err(fault)?;
        shared.written.fetch_add(bytes, Ordering::Relaxed);
        MutexGuard::unlock_fair(turn);
        self.publish(events, slots, revision, cleaned);
        self.total_bytes += bytes;
        self.tidy(revision);
        Ok(outcomes)
    }

    /// Makes a commit known.
    fn publish(
        &mut self,
        events: Vec<Event>,
        slots: Slots,
        revision: u64,
        cleaned: Option<Cleaned>,
    ) {
        let mut index = self.shared.index.write();
        for (key, (slot, _)) in slots {
            index.set(key, slot);
        }
        if let Some(cleaned) = cleaned {
            self.cleaned = cleaned.revision;
            self.total_bytes = self.total_bytes.saturating_sub(cleaned.bytes);
            for (key, revision) in cleaned.deleted {
                index.forget(&key, revision);
            }
        }
        index.revision = revision;
        drop(index);
        if !events.is_empty() {
            self.shared.hub.publish(&events, revision);
        }
    }

    /// Compacts history that is old or large, and has the file rewritten when that pays.
    fn tidy(&mut self, revision: u64) {
        let (live_bytes, compacted) = {
            let index = self.shared.index.read();
            (index.live_bytes, index.compacted)
        };
        let old = self.history.advance(Instant::now(), revision);
        let is_clean = self.cleaned == compacted;
        let large = || history::excess(live_bytes, self.total_bytes, compacted, revision);
        if let Some(target) = old.or_else(|| is_clean.then(large).flatten()) {
            // Not in the future, so that it cannot fail.
            let _ = self.compact(target);
        }
        self.commits = self.commits.wrapping_add(1);
        // What is about to be removed is not worth copying.
        if self.rewriting || !is_clean || !self.commits.is_multiple_of(MEASURE_EVERY) {
            return;
        }
        let file_bytes = rewrite::on_disk(&self.shared.path);
        if rewrite::is_due(file_bytes, live_bytes, self.total_bytes, self.last_rewrite) {
            let (shared, sender) = (self.shared.clone(), self.sender.clone());
            self.rewriting = true;
            std::thread::spawn(move || {
                // An error means that the store is closed.
                let _ = sender.send(Request::Rewritten(rewrite::copy(&shared)));
            });
        }
    }

    fn adopt(&mut self, new: Result<Rewritten>) {
        self.rewriting = false;
        match new.and_then(|new| rewrite::adopt(&self.shared, new)) {
            Ok((cleaned, total_bytes)) => {
                (self.cleaned, self.total_bytes) = (cleaned, total_bytes);
                self.last_rewrite = (rewrite::on_disk(&self.shared.path), total_bytes);
            }
            Err(error) => {
                tracing::warn!(%error, "the store's file could not be rewritten");
                rewrite::discard(&self.shared.path);
            }
        }
    }

    /// After an I/O error, redb refuses to go on, and whether the commit happened is known only from the file.
    fn reopen(&mut self) {
        let shared = self.shared.clone();
        *shared.database.write() = None;
        let from = shared.hub.position() + 1;
        let recovered = file::open(&shared.path, shared.options.cache_bytes).and_then(|database| {
            let snapshot = Snapshot::take(&database)?;
            let mut slots = Vec::new();
            snapshot.scan(from, u64::MAX, |revision, record| {
                slots.push((record.key.into(), Slot::of(revision, &record)));
                Ok(true)
            })?;
            let last = slots.last().map_or(from - 1, |(_, slot)| slot.modified);
            let events = all_events(&snapshot, from, last)?;
            Ok((database, slots, events, last))
        });
        match recovered {
            Ok((database, slots, events, last)) => {
                *shared.database.write() = Some(database);
                let slots = slots
                    .into_iter()
                    .map(|(key, slot)| (key, (slot, Bytes::new())))
                    .collect();
                self.publish(events, slots, last, None);
            }
            Err(error) => tracing::error!(%error, "the store could not be opened again"),
        }
    }
}

impl Drop for Writer {
    /// Also when the thread panics: nobody may wait for what will never come.
    fn drop(&mut self) {
        let orderly = self.closing.is_some();
        self.shared.closed.store(true, Ordering::Release);
        *self.shared.database.write() = None;
        self.shared.hub.end(if orderly {
            Error::Closed
        } else {
            self.shared.gone()
        });
        if let Some(reply) = self.closing.take() {
            let _ = reply.send(Ok(()));
        }
    }
}

type Outcome = Result<Written>;

/// What the index will say of the keys that a batch has written, and their values.
type Slots = HashMap<Arc<str>, (Slot, Bytes)>;

/// One commit in the making.
struct Batch<'a> {
    index: RwLockReadGuard<'a, Index>,
    tables: Tables<'a>,
    done: Done,
}

/// What a commit changes.
#[derive(Default)]
struct Done {
    slots: Slots,
    events: Vec<Event>,
    /// The last revision after it.
    revision: u64,
    /// Bytes of keys and values that it added to the log.
    bytes: u64,
}

impl<'a> Batch<'a> {
    fn new(index: RwLockReadGuard<'a, Index>, tables: Tables<'a>) -> Self {
        let done = Done {
            revision: index.revision,
            ..Done::default()
        };
        Batch {
            index,
            tables,
            done,
        }
    }

    /// Lets go of the index and the tables.
    fn finish(self) -> Done {
        self.done
    }

    fn expire(&mut self, now: u64) -> Result<()> {
        let due: Vec<Arc<str>> = self
            .index
            .expired(now)
            .take(EXPIRE_CHUNK)
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            // Nothing is expected, so that the outcome cannot be a conflict.
            let _ = self.write(Change {
                key,
                expect: Expect::Any,
                value: None,
                ttl: None,
            })?;
        }
        Ok(())
    }

    /// The outer error spoils the whole commit, the inner one is the caller's answer.
    fn write(&mut self, change: Change) -> Result<Outcome> {
        let Change {
            key,
            expect,
            value,
            ttl,
        } = change;
        let (key, slot, current) = self.current(key)?;
        let as_expected = match (expect, &current) {
            (Expect::Any, Some(_)) | (Expect::Absent, None) => true,
            (Expect::Any, None) => value.is_some(),
            (Expect::ModRevision(revision), Some(kv)) => kv.mod_revision == revision,
            _ => false,
        };
        if !as_expected || (value.is_none() && current.is_none()) {
            return Ok(Err(Error::Conflict {
                current: current.map(Box::new),
            }));
        }
        self.done.revision += 1;
        let revision = self.done.revision;
        let kind = if value.is_some() {
            Kind::Put
        } else {
            Kind::Delete
        };
        let value = value.unwrap_or_default();
        let record = Record {
            kind,
            created: current.as_ref().map_or(revision, |kv| kv.create_revision),
            previous: slot.map_or(0, |slot| slot.modified),
            expires: ttl.map_or(0, |ttl| now_millis() + (ttl.as_millis() as u64).max(1)),
            value_size: value.len() as u32,
            key: &key,
        };
        self.tables.append(revision, &record, &value)?;
        self.done.bytes += u64::from(record.size());
        let slot = Slot::of(revision, &record);
        let kv = KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision: record.created,
            mod_revision: revision,
        };
        let kind = if kind == Kind::Put {
            EventKind::Put
        } else {
            EventKind::Delete
        };
        self.done.events.push(Event {
            kind,
            kv,
            prev_kv: current.clone(),
        });
        self.done.slots.insert(key, (slot, value));
        Ok(Ok(Written {
            revision,
            prev: current,
        }))
    }

    /// What is known of a key, counting what this batch has done so far: the key as the index shares it, its last
    /// version, and that with its value if the key exists.
    fn current(&self, key: Arc<str>) -> Result<(Arc<str>, Option<Slot>, Option<KeyValue>)> {
        let (key, slot, value) =
            if let Some((key, (slot, value))) = self.done.slots.get_key_value(&key) {
                (key.clone(), *slot, Some(value.clone()))
            } else if let Some((key, slot)) = self.index.get(&key) {
                (key.clone(), *slot, None)
            } else {
                return Ok((key, None, None));
            };
        if !slot.exists() {
            return Ok((key, Some(slot), None));
        }
        let value = value.map_or_else(|| self.tables.value(slot.modified), Ok)?;
        let kv = KeyValue {
            key: key.clone(),
            value,
            create_revision: slot.created,
            mod_revision: slot.modified,
        };
        Ok((key, Some(slot), Some(kv)))
    }

    /// Removes some of what compaction made obsolete, if anything is left.
    fn clean(&mut self, cleaned: u64) -> Result<Option<Cleaned>> {
        let compacted = self.index.compacted;
        if cleaned >= compacted {
            return Ok(None);
        }
        self.tables.set_compacted(compacted)?;
        self.tables.clean(cleaned, compacted, CLEAN_CHUNK).map(Some)
    }
}

/// How much room the disk has. If it does not say, that is for the write to find out.
fn free_bytes(path: &Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(u64::MAX, |disk| {
        disk.blocks_available() * disk.fragment_size()
    })
}
