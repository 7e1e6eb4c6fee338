//! The revisioned key-value contract that the API server stands on, and its engines.
//!
//! A [`Store`] is what Kubernetes needs of etcd and no more: a flat, ordered space of keys; one revision counter that
//! every successful write advances by one; compare-and-set on a key's last revision; consistent reads now or at a kept
//! revision; watches that resume from a kept revision; a time to live per key; and compaction of what is older.
//!
//! Start reading here: the trait and its types are the whole contract, and `tests/contract.rs` says it in code, once
//! for every engine:
//!
//! * [`embedded`]: one file, in process, the default.
//! * [`etcd`]: an etcd cluster.
//!
//! [`backup`] makes a file of any store, from which either engine can be restored.
//!
//! Both feed their watchers through one [`hub`], which is why a [`Watch`] behaves the same over either.

pub mod backup;
pub mod embedded;
pub mod etcd;
mod history;
pub mod hub;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

pub use hub::{Mark, Progress, Watch};

/// One key at one revision. Cloning shares the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Arc<str>,
    pub value: Bytes,
    /// The revision of the write that created the key (after its last deletion).
    pub create_revision: u64,
    /// The revision of the write that gave the key this value.
    pub mod_revision: u64,
}

/// What a write demands of its key before it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key exists and was last written at this revision.
    ModRevision(u64),
    /// Whatever is there. For [`Store::delete`]: the key exists.
    Any,
}

/// Which keys to read, and as of when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The first key.
    pub start: String,
    /// The first key no longer wanted.
    pub end: String,
    /// At most so many keys; 0 means all.
    pub limit: usize,
    /// As of this revision; `None` means now.
    pub revision: Option<u64>,
    /// Leave the values empty.
    pub keys_only: bool,
    /// Return no keys at all, only their count.
    pub count_only: bool,
    /// Also say how long each key has left to live.
    pub lifetimes: bool,
}

impl Range {
    /// All keys that begin with `prefix`, now.
    pub fn prefix(prefix: &str) -> Self {
        Range {
            start: prefix.to_owned(),
            end: prefix_end(prefix),
            ..Range::default()
        }
    }

    /// The same range from `key` on.
    pub fn from_key(mut self, key: impl Into<String>) -> Self {
        self.start = key.into();
        self
    }

    /// The same range from the first key after `key` on: how the next page is asked for, with the last key of the one
    /// before.
    pub fn after(self, key: &str) -> Self {
        self.from_key(format!("{key}\0"))
    }

    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    pub fn at(mut self, revision: u64) -> Self {
        self.revision = Some(revision);
        self
    }
}

/// The first string after all those that begin with `prefix`. An empty prefix means every key.
pub fn prefix_end(prefix: &str) -> String {
    // Keys are UTF-8, so the successor of the last character is the successor of the prefix.
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        if let Some(next) = (last as u32 + 1..=char::MAX as u32).find_map(char::from_u32) {
            chars.push(next);
            return chars.into_iter().collect();
        }
    }
    char::MAX.to_string()
}

/// A consistent picture of a [`Range`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResult {
    /// In the order of the keys.
    pub kvs: Vec<KeyValue>,
    /// The revision of the picture: the one asked for, or the store's at the time of the read.
    pub revision: u64,
    /// Whether the limit cut the range short.
    pub more: bool,
    /// How many keys the whole range has, whatever the limit.
    pub count: u64,
    /// Where it was asked for: how long each of `kvs` has left to live; `None` is for ever.
    pub lifetimes: Vec<Option<Duration>>,
}

/// What [`Store::delete`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// The revision of the deletion.
    pub revision: u64,
    /// What was deleted.
    pub prev: KeyValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    /// The key as of the change: `mod_revision` is the revision of the change. Of a deletion, the value is empty.
    pub kv: KeyValue,
    /// What the change replaced or deleted. `None` for a creation, and where the log no longer has it.
    pub prev_kv: Option<KeyValue>,
}

impl Event {
    pub fn revision(&self) -> u64 {
        self.kv.mod_revision
    }
}

/// What a [`Watch`] yields: changes in the order of their revisions, without gaps or repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// May be empty: then only `revision` is news.
    pub events: Vec<Event>,
    /// Every change up to this revision has been yielded.
    pub revision: u64,
}

pub type Result<T> = std::result::Result<T, Error>;

/// Why the store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The key is not as expected; this is how it is. Nothing was written.
    #[error("the key is not as expected: {}", match current { Some(kv) => format!("it is at revision {}", kv.mod_revision), None => "it does not exist".into() })]
    Conflict { current: Option<Box<KeyValue>> },
    /// The revision asked for is older than the history that is kept.
    #[error(
        "the required revision {requested} has been compacted, the oldest kept one is {oldest}"
    )]
    Compacted { requested: u64, oldest: u64 },
    /// The revision asked for has not happened yet.
    #[error("revision {requested} is in the future, the store is at {current}")]
    FutureRevision { requested: u64, current: u64 },
    /// The key or value is larger than the store takes. Nothing was written.
    #[error("{size} bytes are more than the {limit} that the store takes in one value")]
    TooLarge { size: usize, limit: usize },
    /// There is no room to write. Nothing was written; reads go on.
    #[error("the store has no room to write: {0}")]
    Full(String),
    /// The store's data is not what this engine wrote, or a backup cannot be used. Nothing is served or restored.
    #[error("{0}")]
    Corrupt(String),
    /// A restore would overwrite what is there. Nothing was changed.
    #[error("{0}")]
    Occupied(String),
    /// The store cannot be reached or answers with errors. A write may or may not have happened.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// [`Store::close`] was called.
    #[error("the store is closed")]
    Closed,
}

/// A revisioned key-value store. See the crate's page for what the methods share.
pub trait Store: Send + Sync + 'static {
    /// The revision of the last write that was acknowledged to anybody before the call. Cheap: concurrent callers
    /// share one round trip where there is one at all.
    fn current_revision(&self) -> BoxFuture<'_, Result<u64>>;

    /// One key, now.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<KeyValue>>>;

    /// Many keys, now or at a kept revision.
    fn range(&self, range: Range) -> BoxFuture<'_, Result<RangeResult>>;

    /// Writes the key if it is as expected and returns the write's revision once it is durable. With a `ttl`, the key
    /// is deleted no earlier than so long after its last write, and soon after that; without, a former one ends.
    fn put<'a>(
        &'a self,
        key: &'a str,
        expect: Expect,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> BoxFuture<'a, Result<u64>>;

    /// Deletes the key if it is as expected. A key that is not there is [`Error::Conflict`] with nothing current.
    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<Deleted>>;

    /// Every change to keys that begin with `prefix` from revision `from` on (usually one more than a range's
    /// revision), as it becomes durable. Fails, now or later, with [`Error::Compacted`] when the history no longer
    /// has it; `from` may lie in the future.
    fn watch<'a>(&'a self, prefix: &'a str, from: u64) -> BoxFuture<'a, Result<Watch>>;

    /// Forgets what was replaced or deleted before or at `revision`: reads from before it fail from now on, and watches
    /// from it or before. The engines compact by themselves what is older than their history option says.
    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<()>>;

    /// Whether a key's value should be written anew although it has not changed, because of how it is held.
    fn is_stale<'a>(&'a self, _key: &'a str) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async { Ok(false) })
    }

    /// Finishes the writes under way, refuses new ones, ends the watches, and lets go of files and connections.
    fn close(&self) -> BoxFuture<'_, ()>;
}
