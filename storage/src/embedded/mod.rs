//! The embedded engine: one file, in process.
//!
//! * [`file`] is the layout of the file: a log of every kept version, on redb.
//! * [`index`] is the map from keys to their last versions, in memory.
//! * [`writer`] is the one thread that writes: it gathers the writes that wait, commits them together with one fsync,
//!   changes the index, and tells the [`Hub`]. It also expires keys and cleans up after compactions.
//! * [`rewrite`] makes the file small again when most of it is free space, while the store goes on.
//! * [`mod@restore`] makes a file of a backup.
//!
//! Readers look a key up in the index and take its value from a redb snapshot; they wait for no write. A snapshot is
//! always taken while the index is locked for reading. The writer commits before it changes the index, and removes
//! only what the index no longer leads to, so that a snapshot has every version which the index then named.

mod file;
mod index;
mod restore;
mod rewrite;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use redb::Database;
use tokio::sync::oneshot;

use crate::hub::{Hub, Log};
use crate::{
    Batch, Deleted, Error, Event, EventKind, Expect, KeyValue, Range, RangeResult, Result, Store,
    Watch,
};
use file::{Kind, Snapshot};
use index::{Index, Slot};
pub use restore::restore;
use writer::{Change, Request, Write, Writer, Written};

/// How many events one read of the log returns at most.
const LOG_CHUNK: usize = 1000;

#[derive(Clone, Debug)]
pub struct Options {
    /// How long history is kept. It is cut earlier when it would outweigh the live data by far.
    pub history: Duration,
    /// How much of the file may be cached, in bytes. The kernel's page cache does the rest.
    pub cache_bytes: usize,
    /// How much room on the disk is left alone, in bytes: with less, nothing but deletions is written.
    pub reserve_bytes: u64,
    /// The largest value taken, in bytes.
    pub max_value_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            history: Duration::from_secs(300),
            cache_bytes: 4 << 20,
            reserve_bytes: 32 << 20,
            max_value_bytes: 3 << 20,
        }
    }
}

/// What readers, the writer and watches share.
struct Shared {
    path: PathBuf,
    options: Options,
    /// `None` while the file is closed, for good or because it is opened again after an I/O error.
    database: RwLock<Option<Database>>,
    index: RwLock<Index>,
    hub: Hub,
    closed: AtomicBool,
    /// Whose turn it is to write to the disk: the writer's, or that of the background copy.
    turn: Mutex<()>,
    /// Bytes of keys and values that have been written since the store was opened.
    written: AtomicU64,
}

/// A store in one file.
pub struct Embedded {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Embedded {
    /// Opens the store in `path`, or creates it there. Blocks while the log is read.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| {
                Error::Unavailable(format!("cannot create {}: {e}", parent.display()))
            })?;
        }
        rewrite::discard(&path);
        let database = file::open(&path, options.cache_bytes)?;
        let snapshot = Snapshot::take(&database)?;
        let (index, total_bytes) = load(&snapshot)?;
        let cleaned = snapshot.cleaned()?;
        drop(snapshot);
        let shared = Arc::new(Shared {
            path,
            options,
            database: RwLock::new(Some(database)),
            hub: Hub::new(index.revision),
            index: RwLock::new(index),
            closed: AtomicBool::new(false),
            turn: Mutex::new(()),
            written: AtomicU64::new(0),
        });
        let (requests, receiver) = mpsc::channel();
        let writer = Writer::new(
            shared.clone(),
            receiver,
            requests.clone(),
            cleaned,
            total_bytes,
        );
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run());
        let thread = thread
            .map_err(|e| Error::Unavailable(format!("cannot start the store's writer: {e}")))?;
        Ok(Embedded {
            shared,
            requests,
            thread: Mutex::new(Some(thread)),
        })
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.send(request(reply));
        match sent {
            Ok(()) => answer.await.unwrap_or_else(|_| Err(self.shared.gone())),
            Err(_) => Err(self.shared.gone()),
        }
    }

    async fn write(
        &self,
        key: &str,
        expect: Expect,
        value: Option<Bytes>,
        ttl: Option<Duration>,
    ) -> Result<Written> {
        let limit = self.shared.options.max_value_bytes;
        match value.as_ref().map(Bytes::len) {
            Some(size) if size > limit => return Err(Error::TooLarge { size, limit }),
            _ => {}
        }
        self.ask(|reply| {
            let change = Change {
                key: key.into(),
                expect,
                value,
                ttl,
            };
            Request::Write(Write { change, reply })
        })
        .await
    }
}

/// Builds the index from the log. Returns how many bytes of keys and values the log has, too.
fn load(snapshot: &Snapshot) -> Result<(Index, u64)> {
    let (mut index, mut total_bytes) = (Index::default(), 0);
    snapshot.scan(0, u64::MAX, |revision, record| {
        let key = index
            .get(record.key)
            .map_or_else(|| record.key.into(), |(key, _)| key.clone());
        index.set(key, Slot::of(revision, &record));
        index.revision = revision;
        total_bytes += u64::from(record.size());
        Ok(true)
    })?;
    index.compacted = snapshot.compacted()?;
    // Revision 0 means "any" to Kubernetes, and an empty store is at 1, as etcd is. The last record of all may have
    // been a deletion that is compacted by now.
    index.revision = index.revision.max(index.compacted).max(1);
    Ok((index, total_bytes))
}

impl Shared {
    fn gone(&self) -> Error {
        if self.closed.load(Ordering::Acquire) {
            Error::Closed
        } else {
            Error::Unavailable("the store's file is being opened again after an error".into())
        }
    }

    /// The file as of now. To be called while the index is locked, so that both agree.
    fn snapshot(&self) -> Result<Snapshot> {
        match &*self.database.read() {
            Some(database) => Snapshot::take(database),
            None => Err(self.gone()),
        }
    }

    fn get(&self, key: &str) -> Result<Option<KeyValue>> {
        let index = self.index.read();
        let Some((key, slot)) = index.get(key).filter(|(_, slot)| slot.exists()) else {
            return if self.closed.load(Ordering::Acquire) {
                Err(Error::Closed)
            } else {
                Ok(None)
            };
        };
        let (key, slot, snapshot) = (key.clone(), *slot, self.snapshot()?);
        drop(index);
        let value = snapshot.value(slot.modified)?;
        Ok(Some(KeyValue {
            key,
            value,
            create_revision: slot.created,
            mod_revision: slot.modified,
        }))
    }

    fn range(&self, range: &Range) -> Result<RangeResult> {
        let index = self.index.read();
        let revision = range.revision.unwrap_or(index.revision);
        if revision > index.revision {
            return Err(Error::FutureRevision {
                requested: revision,
                current: index.revision,
            });
        }
        if revision < index.compacted {
            return Err(Error::Compacted {
                requested: revision,
                oldest: index.compacted,
            });
        }
        let slots: Vec<(Arc<str>, Slot)> = index
            .range(&range.start, &range.end)
            .map(|(key, slot)| (key.clone(), *slot))
            .collect();
        let snapshot = self.snapshot()?;
        drop(index);

        let limit = if range.limit == 0 {
            usize::MAX
        } else {
            range.limit
        };
        let mut result = RangeResult {
            revision,
            ..RangeResult::default()
        };
        for (key, slot) in slots {
            let Some(version) = version_at(&snapshot, slot, revision)? else {
                continue;
            };
            result.count += 1;
            if range.count_only || result.kvs.len() == limit {
                continue;
            }
            let value = if range.keys_only {
                Bytes::new()
            } else {
                snapshot.value(version.modified)?
            };
            if range.lifetimes {
                result.lifetimes.push(left(version.expires));
            }
            result.kvs.push(KeyValue {
                key,
                value,
                create_revision: version.created,
                mod_revision: version.modified,
            });
        }
        result.more = !range.count_only && result.count > result.kvs.len() as u64;
        Ok(result)
    }

    fn read_log(&self, prefix: &str, from: u64, to: u64) -> Result<Batch> {
        let index = self.index.read();
        if from <= index.compacted {
            return Err(Error::Compacted {
                requested: from,
                oldest: index.compacted + 1,
            });
        }
        let snapshot = self.snapshot()?;
        drop(index);
        read_events(&snapshot, prefix, from, to)
    }
}

/// Which version of a key was there at `revision`.
fn version_at(snapshot: &Snapshot, mut slot: Slot, revision: u64) -> Result<Option<Slot>> {
    while slot.modified > revision {
        let before = snapshot
            .record(slot.modified, |record| record.previous)?
            .unwrap_or(0);
        if before == 0 {
            return Ok(None);
        }
        // A version that is gone was replaced before the oldest kept revision, and nobody may ask for that.
        match snapshot.record(before, |record| Slot::of(before, &record))? {
            Some(found) => slot = found,
            None => return Ok(None),
        }
    }
    Ok(slot.exists().then_some(slot))
}

/// How long it is until a time in milliseconds since the epoch, where 0 is never.
fn left(expires: u64) -> Option<Duration> {
    // What has expired and is not deleted yet has a moment left, not for ever.
    let millis = || expires.saturating_sub(writer::now_millis()).max(1);
    (expires != 0).then(|| Duration::from_millis(millis()))
}

fn read_events(snapshot: &Snapshot, prefix: &str, from: u64, to: u64) -> Result<Batch> {
    let mut batch = Batch {
        events: Vec::new(),
        revision: to,
    };
    snapshot.scan(from, to, |revision, record| {
        if record.key.starts_with(prefix) {
            let key: Arc<str> = record.key.into();
            let (kind, value) = match record.kind {
                Kind::Put => (EventKind::Put, snapshot.value(revision)?),
                Kind::Delete => (EventKind::Delete, Bytes::new()),
            };
            let before =
                snapshot.record(record.previous, |before| (before.kind, before.created))?;
            let prev_kv = match before {
                Some((Kind::Put, create_revision)) => Some(KeyValue {
                    key: key.clone(),
                    value: snapshot.value(record.previous)?,
                    create_revision,
                    mod_revision: record.previous,
                }),
                _ => None,
            };
            let kv = KeyValue {
                key,
                value,
                create_revision: record.created,
                mod_revision: revision,
            };
            batch.events.push(Event { kind, kv, prev_kv });
        }
        if batch.events.len() == LOG_CHUNK {
            batch.revision = revision;
        }
        Ok(batch.events.len() < LOG_CHUNK)
    })?;
    Ok(batch)
}

/// Everything from one revision to another, however much that is.
fn all_events(snapshot: &Snapshot, from: u64, to: u64) -> Result<Vec<Event>> {
    let (mut events, mut next) = (Vec::new(), from);
    while next <= to {
        let batch = read_events(snapshot, "", next, to)?;
        events.extend(batch.events);
        next = batch.revision + 1;
    }
    Ok(events)
}

/// Runs what may wait for the disk where that holds nobody up.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| {
        Err(Error::Unavailable(format!(
            "a read of the store failed: {e}"
        )))
    })
}

impl Log for Shared {
    fn read(
        self: Arc<Self>,
        prefix: Arc<str>,
        from: u64,
        to: u64,
    ) -> BoxFuture<'static, Result<Batch>> {
        blocking(move || self.read_log(&prefix, from, to)).boxed()
    }
}

impl Store for Embedded {
    fn current_revision(&self) -> BoxFuture<'_, Result<u64>> {
        std::future::ready(Ok(self.shared.hub.position())).boxed()
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<KeyValue>>> {
        // One value is a page or two from the cache: less than handing it to another thread would cost.
        async move { self.shared.get(key) }.boxed()
    }

    fn range(&self, range: Range) -> BoxFuture<'_, Result<RangeResult>> {
        let shared = self.shared.clone();
        blocking(move || shared.range(&range)).boxed()
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        expect: Expect,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> BoxFuture<'a, Result<u64>> {
        async move { Ok(self.write(key, expect, Some(value), ttl).await?.revision) }.boxed()
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<Deleted>> {
        async move {
            let Written { revision, prev } = self.write(key, expect, None, None).await?;
            // The writer deletes only what is there.
            let prev = prev.ok_or(Error::Conflict { current: None })?;
            Ok(Deleted { revision, prev })
        }
        .boxed()
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: u64) -> BoxFuture<'a, Result<Watch>> {
        let compacted = self.shared.index.read().compacted;
        let result = if from <= compacted {
            Err(Error::Compacted {
                requested: from,
                oldest: compacted + 1,
            })
        } else {
            Ok(self.shared.hub.watch(self.shared.clone(), prefix, from))
        };
        std::future::ready(result).boxed()
    }

    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<()>> {
        self.ask(move |reply| Request::Compact { revision, reply })
            .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            self.shared.closed.store(true, Ordering::Release);
            // An error means that the writer has gone already.
            let _ = self.ask(|reply| Request::Close { reply }).await;
        }
        .boxed()
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        let (reply, _) = oneshot::channel();
        let _ = self.requests.send(Request::Close { reply });
        // The file is free for the next to open it once this returns.
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use file::{Record, Tables};

    #[test]
    fn all_events_are_more_than_one_read_returns() {
        let directory = tempfile::TempDir::new().unwrap();
        let database = file::open(&directory.path().join("store"), 1 << 20).unwrap();
        let last = 2 * LOG_CHUNK as u64 + 7;
        let transaction = database.begin_write().unwrap();
        let mut tables = Tables::open(&transaction).unwrap();
        for revision in 1..=last {
            let record = Record {
                kind: Kind::Put,
                created: revision,
                previous: 0,
                expires: 0,
                value_size: 1,
                key: &format!("/k{revision}"),
            };
            tables.append(revision, &record, b"v").unwrap();
        }
        drop(tables);
        transaction.commit().unwrap();
        let snapshot = Snapshot::take(&database).unwrap();
        for from in [1, 5, last, last + 1] {
            let events = all_events(&snapshot, from, last).unwrap();
            let revisions = events.iter().map(Event::revision);
            assert!(revisions.eq(from..=last), "from {from}");
        }
    }
}
