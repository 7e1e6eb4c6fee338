//! Back-up of a whole store, and what both engines' restores share.
//!
//! A backup is a file of the keys as they were at one revision, in the form that [`format`] says; [`stream`] makes it of any
//! store while that goes on. Each engine has a `restore` of its own ([`embedded::restore`](crate::embedded::restore),
//! [`etcd::restore`](crate::etcd::restore)) with the same promises:
//!
//! * Nothing is touched before the whole file has been read and its checksum is right.
//! * Nothing is overwritten unless [`RestoreOptions::overwrite`] says so.
//! * Every key is there with its value and with what was left of its time to live when the backup was made.
//! * Revisions never go back. The restored store begins [`RestoreOptions::bump`] revisions after the backup (and not before
//!   its own last one), each key counts as written then, and everything before is compacted: whoever watches from an older
//!   revision is told so and lists again, and no revision ever means two different states.

mod format;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::Stream;
use tokio::sync::mpsc;

use format::Writer;
pub use format::{Entry, Reader};

use crate::{Error, Range, Result, Store};

/// Keys that begin so are the engine's own and not part of a backup.
pub(crate) const INTERNAL: &str = "/skiff/";
/// How many keys are named at a time, and how many are read with their values.
const KEYS: usize = 10_000;
const VALUES: usize = 100;
/// How many pieces may wait for whoever takes the backup.
const AHEAD: usize = 4;

/// More revisions than any cluster makes between a backup and the loss of its store; what etcd's own restore advises.
pub const BUMP: u64 = 1_000_000_000;

/// What a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The revision that it shows.
    pub revision: u64,
    /// When it was begun, in seconds since the epoch.
    pub taken: u64,
    pub keys: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreOptions {
    /// Replace what the target holds. Without, a target that is not empty is left alone.
    pub overwrite: bool,
    /// How far after the backup's revision the restored store begins. 0 only if nothing was written after the backup.
    pub bump: u64,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        RestoreOptions {
            overwrite: false,
            bump: BUMP,
        }
    }
}

/// What a restore did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    pub keys: u64,
    /// The revision that the store is at.
    pub revision: u64,
}

/// Reads a whole backup and says what it holds, or what is wrong with it.
pub fn verify(path: &Path) -> Result<Summary> {
    let mut reader = Reader::open(path)?;
    let mut keys = 0;
    while reader.read()?.is_some() {
        keys += 1;
    }
    let (revision, taken) = (reader.revision(), reader.taken());
    Ok(Summary {
        revision,
        taken,
        keys,
    })
}

/// A backup of the store as it is now, in pieces. A failure is part of what it yields, for whoever gets no more than the
/// bytes, and then comes as an error too.
pub fn stream(store: Arc<dyn Store>) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        let mut writer = Writer::default();
        if let Err(error) = produce(&*store, &mut writer, &sender).await {
            // Whoever has gone does not want to know.
            let _ = sender.send(Ok(Writer::failure(&error.to_string()))).await;
            let _ = sender.send(Err(error)).await;
        }
    });
    futures::stream::unfold(receiver, async |mut receiver| {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    })
}

type Sender = mpsc::Sender<Result<Bytes>>;

async fn send(sender: &Sender, piece: Bytes) -> Result<()> {
    let gone = |_| Error::Unavailable("nobody takes the backup any longer".into());
    sender.send(Ok(piece)).await.map_err(gone)
}

async fn produce(store: &dyn Store, writer: &mut Writer, sender: &Sender) -> Result<()> {
    let all = Range {
        keys_only: true,
        ..Range::prefix("")
    };
    let mut names = all.clone().limit(KEYS);
    let mut begun = false;
    loop {
        // The first page says which revision the others are of.
        let page = store.range(names.clone()).await?;
        if !std::mem::replace(&mut begun, true) {
            names = names.at(page.revision);
            send(sender, writer.header(page.revision, now())).await?;
        }
        for keys in page.kvs.chunks(VALUES) {
            let [first, .., last] = keys else {
                if let [only] = keys {
                    values(store, (&only.key, &only.key), page.revision, writer, sender).await?;
                }
                continue;
            };
            values(
                store,
                (&first.key, &last.key),
                page.revision,
                writer,
                sender,
            )
            .await?;
        }
        match page.kvs.last() {
            Some(last) if page.more => names = names.after(&last.key),
            _ => return send(sender, writer.end()).await,
        }
    }
}

/// The keys from the first to the last of these.
async fn values(
    store: &dyn Store,
    (first, last): (&str, &str),
    revision: u64,
    writer: &mut Writer,
    sender: &Sender,
) -> Result<()> {
    let range = Range {
        start: first.to_owned(),
        end: format!("{last}\0"),
        revision: Some(revision),
        lifetimes: true,
        ..Range::default()
    };
    let read = store.range(range).await?;
    let mut piece = Vec::new();
    for (kv, lifetime) in read.kvs.into_iter().zip(read.lifetimes) {
        if !kv.key.starts_with(INTERNAL) {
            let (key, value) = (kv.key.to_string(), kv.value);
            writer.entry(
                &Entry {
                    key,
                    value,
                    lifetime,
                },
                &mut piece,
            );
        }
    }
    send(sender, piece.into()).await
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}

/// The refusal to overwrite.
pub(crate) fn occupied(what: &str, keys: u64) -> Error {
    Error::Occupied(format!("{what} holds {keys} keys"))
}
