//! The layout of the file, and the only module that speaks to redb.
//!
//! Two tables hold every kept version: `log` says what a revision did to which key, and `values` holds what it wrote.
//! Both are keyed by revision, so that writes only ever append at the right edge of two trees, and opening the file
//! reads `log` alone. A record names the revision that the key had before: following that chain answers reads at older
//! revisions, and compaction finds in it what a revision made obsolete.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::Path;

use bytes::Bytes;
use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, StorageError, Table,
    TableDefinition, TableHandle, WriteTransaction,
};

use crate::{Error, Result};

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const VALUES: TableDefinition<u64, &[u8]> = TableDefinition::new("values");
const STATE: TableDefinition<&str, u64> = TableDefinition::new("state");

/// The number that changes whenever a file written before could be misread.
const FORMAT: u64 = 1;
/// The revision up to which history is refused to readers.
const COMPACTED: &str = "compacted";
/// The revision up to which obsolete records have been removed. At most `COMPACTED`.
const CLEANED: &str = "cleaned";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Put,
    Delete,
}

/// What one revision did. Encoded as a byte for the kind, four little-endian integers, and the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub kind: Kind,
    pub created: u64,
    /// The revision before of the same key, a deletion's too; 0 if there is none or it is compacted.
    pub previous: u64,
    /// Milliseconds since the epoch, 0 for never.
    pub expires: u64,
    pub value_size: u32,
    pub key: &'a str,
}

const HEAD: usize = 1 + 8 + 8 + 8 + 4;

impl<'a> Record<'a> {
    pub fn size(&self) -> u32 {
        self.value_size.saturating_add(self.key.len() as u32)
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + self.key.len());
        bytes.push(u8::from(self.kind == Kind::Delete));
        bytes.extend_from_slice(&self.created.to_le_bytes());
        bytes.extend_from_slice(&self.previous.to_le_bytes());
        bytes.extend_from_slice(&self.expires.to_le_bytes());
        bytes.extend_from_slice(&self.value_size.to_le_bytes());
        bytes.extend_from_slice(self.key.as_bytes());
        bytes
    }

    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (head, key) = bytes.split_at_checked(HEAD)?;
        let number = |at: usize| head[at..at + 8].try_into().ok().map(u64::from_le_bytes);
        Some(Record {
            kind: if head[0] == 0 {
                Kind::Put
            } else {
                Kind::Delete
            },
            created: number(1)?,
            previous: number(9)?,
            expires: number(17)?,
            value_size: u32::from_le_bytes(head[25..29].try_into().ok()?),
            key: std::str::from_utf8(key).ok()?,
        })
    }
}

/// Any of redb's errors, in the contract's terms.
pub(super) fn fault(error: impl Into<redb::Error>) -> Error {
    match error.into() {
        redb::Error::Io(e)
            if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
        {
            Error::Full(e.to_string())
        }
        redb::Error::Corrupted(what) => {
            Error::Corrupt(format!("the store's file is corrupt: {what}"))
        }
        redb::Error::DatabaseClosed => Error::Closed,
        other => Error::Unavailable(other.to_string()),
    }
}

fn unreadable(revision: u64) -> Error {
    Error::Corrupt(format!(
        "the store's file is corrupt: the record of revision {revision} is missing or unreadable"
    ))
}

/// Opens or creates the file. Errors name the file and what to do.
pub(super) fn open(path: &Path, cache_bytes: usize) -> Result<Database> {
    let shown = path.display();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    let file = file.map_err(|e| Error::Unavailable(format!("cannot open {shown}: {e}")))?;
    let is_new = file.metadata().is_ok_and(|m| m.len() == 0);
    drop(file);
    let mut builder = Database::builder();
    // The check reads every page once. It is what makes a damaged file an error instead of a surprise later.
    builder
        .set_cache_size(cache_bytes)
        .set_check_integrity_on_open(!is_new);
    let database = builder.create(path).map_err(|e| match e {
        redb::DatabaseError::DatabaseAlreadyOpen => {
            Error::Unavailable(format!("{shown} is in use by another process"))
        }
        redb::DatabaseError::Storage(StorageError::Io(e)) if e.kind() == ErrorKind::InvalidData => {
            Error::Corrupt(format!(
                "{shown} is not a store's file, or it is damaged ({e}); restore or remove it"
            ))
        }
        redb::DatabaseError::Storage(StorageError::Corrupted(e)) => {
            Error::Corrupt(format!("{shown} is damaged ({e}); restore or remove it"))
        }
        redb::DatabaseError::UpgradeRequired(version) => Error::Corrupt(format!(
            "{shown} has file format {version}, which this version does not read"
        )),
        other => match fault(other) {
            Error::Unavailable(e) => Error::Unavailable(format!("cannot open {shown}: {e}")),
            other => other,
        },
    })?;
    let transaction = database.begin_write().map_err(fault)?;
    let ours = [LOG.name(), VALUES.name(), STATE.name()];
    if transaction
        .list_tables()
        .map_err(fault)?
        .any(|table| !ours.contains(&table.name()))
    {
        return Err(Error::Corrupt(format!(
            "{shown} is a redb file of another program"
        )));
    }
    let format = Tables::open(&transaction)?.claim()?;
    if format == 0 {
        transaction.commit().map_err(fault)?;
    } else if format != FORMAT {
        return Err(Error::Corrupt(format!(
            "{shown} has format {format}, this version reads format {FORMAT}"
        )));
    }
    Ok(database)
}

/// The tables of a write transaction.
pub(super) struct Tables<'t> {
    log: Table<'t, u64, &'static [u8]>,
    values: Table<'t, u64, &'static [u8]>,
    state: Table<'t, &'static str, u64>,
}

/// What [`Tables::clean`] did.
#[derive(Default)]
pub(super) struct Cleaned {
    /// Up to where the log is clean.
    pub revision: u64,
    /// How many bytes of keys and values were removed.
    pub bytes: u64,
    /// The keys whose deletions were removed, and the revisions of these.
    pub deleted: Vec<(String, u64)>,
}

/// What [`Tables::copy`] did.
pub(super) struct Copied {
    /// The first revision not copied.
    pub next: u64,
    /// How many bytes of keys and values were copied.
    pub bytes: u64,
    /// Whether the snapshot has more.
    pub more: bool,
}

impl<'t> Tables<'t> {
    pub fn open(transaction: &'t WriteTransaction) -> Result<Self> {
        Ok(Tables {
            log: transaction.open_table(LOG).map_err(fault)?,
            values: transaction.open_table(VALUES).map_err(fault)?,
            state: transaction.open_table(STATE).map_err(fault)?,
        })
    }

    /// The format that the file has; a new one, 0, gets ours.
    fn claim(mut self) -> Result<u64> {
        let format = self
            .state
            .get("format")
            .map_err(fault)?
            .map_or(0, |v| v.value());
        if format == 0 {
            self.state.insert("format", FORMAT).map_err(fault)?;
        }
        Ok(format)
    }

    pub fn append(&mut self, revision: u64, record: &Record<'_>, value: &[u8]) -> Result<()> {
        self.log
            .insert(revision, record.encode().as_slice())
            .map_err(fault)?;
        if record.kind == Kind::Put {
            self.values.insert(revision, value).map_err(fault)?;
        }
        Ok(())
    }

    pub fn value(&self, revision: u64) -> Result<Bytes> {
        let value = self.values.get(revision).map_err(fault)?;
        value
            .map(|v| Bytes::copy_from_slice(v.value()))
            .ok_or_else(|| unreadable(revision))
    }

    /// For a new file: there is no history up to `revision`, and nothing to clean up.
    pub fn begin_at(&mut self, revision: u64) -> Result<()> {
        self.set_compacted(revision)?;
        self.state
            .insert(CLEANED, revision)
            .map_err(fault)
            .map(drop)
    }

    pub fn set_compacted(&mut self, revision: u64) -> Result<()> {
        self.state
            .insert(COMPACTED, revision)
            .map_err(fault)
            .map(drop)
    }

    /// Removes what the revisions after `from` and up to `to` made obsolete, looking at no more than `limit` of them.
    /// Doing it again is harmless.
    pub fn clean(&mut self, from: u64, to: u64, limit: usize) -> Result<Cleaned> {
        let mut done = Cleaned {
            revision: to,
            ..Cleaned::default()
        };
        let mut obsolete = Vec::new();
        for (seen, entry) in self.log.range(from + 1..=to).map_err(fault)?.enumerate() {
            let (revision, record) = entry.map_err(fault)?;
            let revision = revision.value();
            if seen == limit {
                done.revision = revision - 1;
                break;
            }
            let record = Record::decode(record.value()).ok_or_else(|| unreadable(revision))?;
            if record.previous != 0 {
                obsolete.push(record.previous);
            }
            if record.kind == Kind::Delete {
                obsolete.push(revision);
                done.deleted.push((record.key.to_owned(), revision));
            }
        }
        for revision in obsolete {
            if let Some(record) = self.log.remove(revision).map_err(fault)? {
                done.bytes += Record::decode(record.value()).map_or(0, |r| u64::from(r.size()));
            }
            self.values.remove(revision).map_err(fault)?;
        }
        self.state.insert(CLEANED, done.revision).map_err(fault)?;
        Ok(done)
    }

    /// Copies what `snapshot` has from revision `from` on, up to about `limit` bytes.
    pub fn copy(&mut self, snapshot: &Snapshot, from: u64, limit: u64) -> Result<Copied> {
        let mut copied = Copied {
            next: from,
            bytes: 0,
            more: false,
        };
        for entry in snapshot.log.range_owned::<u64>(from..).map_err(fault)? {
            let (revision, bytes_of_record) = entry.map_err(fault)?;
            let revision = revision.value();
            if copied.bytes >= limit {
                copied.more = true;
                break;
            }
            let record =
                Record::decode(bytes_of_record.value()).ok_or_else(|| unreadable(revision))?;
            self.log
                .insert(revision, bytes_of_record.value())
                .map_err(fault)?;
            if record.kind == Kind::Put {
                let value = snapshot
                    .values
                    .get_owned(revision)
                    .map_err(fault)?
                    .ok_or_else(|| unreadable(revision))?;
                self.values.insert(revision, value.value()).map_err(fault)?;
            }
            copied.bytes += u64::from(record.size());
            copied.next = revision + 1;
        }
        Ok(copied)
    }

    pub fn copy_state(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.state
            .insert(COMPACTED, snapshot.compacted()?)
            .map_err(fault)?;
        self.state
            .insert(CLEANED, snapshot.cleaned()?)
            .map_err(fault)
            .map(drop)
    }
}

/// The file as of one commit. Holding one keeps pages from being reused, so hold it briefly.
pub(super) struct Snapshot {
    log: ReadOnlyTable<u64, &'static [u8]>,
    values: ReadOnlyTable<u64, &'static [u8]>,
    state: ReadOnlyTable<&'static str, u64>,
}

impl Snapshot {
    pub fn take(database: &Database) -> Result<Self> {
        let transaction: ReadTransaction = database.begin_read().map_err(fault)?;
        Ok(Snapshot {
            log: transaction.open_table(LOG).map_err(fault)?,
            values: transaction.open_table(VALUES).map_err(fault)?,
            state: transaction.open_table(STATE).map_err(fault)?,
        })
    }

    pub fn compacted(&self) -> Result<u64> {
        Ok(self
            .state
            .get_owned(COMPACTED)
            .map_err(fault)?
            .map_or(0, |v| v.value()))
    }

    pub fn cleaned(&self) -> Result<u64> {
        Ok(self
            .state
            .get_owned(CLEANED)
            .map_err(fault)?
            .map_or(0, |v| v.value()))
    }

    pub fn value(&self, revision: u64) -> Result<Bytes> {
        let value = self.values.get_owned(revision).map_err(fault)?;
        value
            .map(|v| Bytes::copy_from_slice(v.value()))
            .ok_or_else(|| unreadable(revision))
    }

    /// Hands `take` what it wants of a revision's record, if the log has it.
    pub fn record<T>(
        &self,
        revision: u64,
        take: impl FnOnce(Record<'_>) -> T,
    ) -> Result<Option<T>> {
        let Some(bytes) = self.log.get_owned(revision).map_err(fault)? else {
            return Ok(None);
        };
        let record = Record::decode(bytes.value()).ok_or_else(|| unreadable(revision))?;
        Ok(Some(take(record)))
    }

    /// Hands every record from one revision to another to `each`, until that returns false.
    pub fn scan(
        &self,
        from: u64,
        to: u64,
        mut each: impl FnMut(u64, Record<'_>) -> Result<bool>,
    ) -> Result<()> {
        for entry in self.log.range_owned::<u64>(from..=to).map_err(fault)? {
            let (revision, bytes) = entry.map_err(fault)?;
            let revision = revision.value();
            let record = Record::decode(bytes.value()).ok_or_else(|| unreadable(revision))?;
            if !each(revision, record)? {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_encoding() {
        for (kind, key) in [
            (Kind::Put, "/registry/pods/default/web"),
            (Kind::Delete, ""),
            (Kind::Put, "/ключ"),
        ] {
            let record = Record {
                kind,
                created: 7,
                previous: u64::MAX,
                expires: 1 << 41,
                value_size: 3,
                key,
            };
            assert_eq!(Record::decode(&record.encode()), Some(record));
        }
        for broken in [
            &b""[..],
            &[0; HEAD - 1],
            &[[0; HEAD].as_slice(), &[0xff]].concat(),
        ] {
            assert_eq!(Record::decode(broken), None);
        }
    }
}
