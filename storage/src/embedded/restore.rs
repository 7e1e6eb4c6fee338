//! A file from a backup. It is made beside the old one, and takes its place once it is whole.

use std::path::Path;

use redb::Database;

use super::file::{self, Kind, Record, Snapshot, Tables, fault};
use super::writer::now_millis;
use super::{Options, load, rewrite};
use crate::backup::{self, Entry, Reader, RestoreOptions, Restored};
use crate::{Error, Result};

/// How much is written in one transaction.
const PORTION: usize = 4 << 20;

/// Makes the store in `path` what `backup` holds. No server may have it open. Blocks.
pub fn restore(path: &Path, backup: &Path, options: RestoreOptions) -> Result<Restored> {
    let summary = backup::verify(backup)?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)
            .map_err(|e| Error::Unavailable(format!("cannot create {}: {e}", parent.display())))?;
    }
    // Held to the end, so that nobody else opens it meanwhile.
    let old = old(path, options)?;
    let before = old.as_ref().map_or(0, |(_, revision)| *revision);
    let base = before.max(summary.revision + options.bump);
    rewrite::discard(path);
    let written = write(path, Reader::open(backup)?, base).and_then(|restored| {
        rewrite::replace(path)?;
        Ok(restored)
    });
    if written.is_err() {
        rewrite::discard(path);
    }
    written
}

/// The store that is there, and its revision. One that cannot be read is as good as none to whoever wants it replaced.
fn old(path: &Path, options: RestoreOptions) -> Result<Option<(Database, u64)>> {
    if !path.exists() {
        return Ok(None);
    }
    let read = || {
        let database = file::open(path, Options::default().cache_bytes)?;
        let (index, _) = load(&Snapshot::take(&database)?)?;
        Ok((database, index))
    };
    match read() {
        Ok((database, index)) => {
            let keys = index
                .range("", "\u{10ffff}")
                .filter(|(_, slot)| slot.exists());
            match keys.count() as u64 {
                keys if keys > 0 && !options.overwrite => {
                    Err(backup::occupied(&path.display().to_string(), keys))
                }
                _ => Ok(Some((database, index.revision))),
            }
        }
        Err(Error::Corrupt(_)) if options.overwrite => Ok(None),
        Err(error) => Err(error),
    }
}

fn write(path: &Path, mut backup: Reader, base: u64) -> Result<Restored> {
    let database = file::open(&rewrite::new_path(path), Options::default().cache_bytes)?;
    let (mut revision, mut more) = (base, true);
    while more {
        let transaction = database.begin_write().map_err(fault)?;
        let mut tables = Tables::open(&transaction)?;
        let mut bytes = 0;
        while bytes < PORTION {
            let Some(entry) = backup.read()? else {
                more = false;
                break;
            };
            revision += 1;
            bytes += entry.value.len();
            append(&mut tables, revision, &entry)?;
        }
        tables.begin_at(revision)?;
        drop(tables);
        transaction.commit().map_err(fault)?;
    }
    Ok(Restored {
        keys: revision - base,
        revision,
    })
}

fn append(tables: &mut Tables<'_>, revision: u64, entry: &Entry) -> Result<()> {
    let millis = entry.lifetime.map(|left| left.as_millis() as u64);
    let record = Record {
        kind: Kind::Put,
        created: revision,
        previous: 0,
        expires: millis.map_or(0, |left| now_millis() + left.max(1)),
        value_size: entry.value.len() as u32,
        key: &entry.key,
    };
    tables.append(revision, &record, &entry.value)
}
