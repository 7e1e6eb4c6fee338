//! Giving room back to the disk. redb reuses free pages but keeps most of them; after much was deleted, the file is
//! mostly air. Then the records that are left are copied into a new file, in the background and in small portions, each
//! between two commits of the writer, which in the end adds the little that is missing and puts the new file in the old
//! one's place.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;
use redb::Database;

use super::Shared;
use super::file::{self, Snapshot, Tables, fault};
use crate::{Error, Result};

/// A file smaller than this is left alone.
const MIN_FILE: u64 = 8 << 20;
/// How much is copied between two fsyncs: little, so that the writer's own never wait long behind them.
const PORTION: u64 = 1 << 20;
/// How much may be left for the writer to copy.
const REST: u64 = 256 << 10;
/// How often to catch up with the writer, before it has to take what is left.
const ROUNDS: usize = 16;

/// A new file that has everything before revision `next`.
pub(super) struct Rewritten {
    pub database: Database,
    pub next: u64,
    /// Bytes of keys and values in it.
    pub bytes: u64,
}

/// Whether the file is worth rewriting: too large for its live data, not because of history, and larger than a fresh one
/// would be, as the last rewrite showed (its bytes on the disk, and of keys and values): some values fill their pages badly.
pub(super) fn is_due(
    file_bytes: u64,
    live_bytes: u64,
    total_bytes: u64,
    (last_file, last_total): (u64, u64),
) -> bool {
    let fresh = last_file.saturating_mul(total_bytes) / last_total.max(1);
    file_bytes > MIN_FILE
        && file_bytes > live_bytes / 4 * 9
        && file_bytes > total_bytes / 4 * 7
        && file_bytes > fresh / 8 * 9
}

/// What a file takes on the disk. Its length says little: redb makes it longer far ahead of what it writes.
pub(super) fn on_disk(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.blocks() * 512)
}

pub(super) fn new_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Removes what an interrupted rewrite or restore left.
pub(super) fn discard(path: &Path) {
    let _ = std::fs::remove_file(new_path(path));
}

/// Copies the store into a new file. To be called outside the writer's thread, which removes no record until it has adopted
/// the copy.
pub(super) fn copy(shared: &Arc<Shared>) -> Result<Rewritten> {
    discard(&shared.path);
    let database = file::open(&new_path(&shared.path), shared.options.cache_bytes)?;
    let mut new = Rewritten {
        database,
        next: 0,
        bytes: 0,
    };
    let (mut rounds, mut seen) = (ROUNDS, shared.written.load(Ordering::Relaxed));
    loop {
        // The writer and this take turns: each fsync has the disk to itself.
        let turn = shared.turn.lock();
        let written = shared.written.load(Ordering::Relaxed);
        // More than was written meanwhile, or a busy writer would never be caught up with, and both files grow.
        let limit = PORTION.max(2 * (written - seen));
        seen = written;
        // A new one for every portion: as long as one is held, no page that the writer frees is used again, and the
        // old file would grow by everything that is written during the copying.
        let snapshot = latest(shared)?;
        let (bytes, more) = portion(&mut new, &snapshot, limit, |tables, first| match first {
            true => tables.copy_state(&snapshot),
            false => Ok(()),
        })?;
        drop(snapshot);
        MutexGuard::unlock_fair(turn);
        rounds -= usize::from(!more);
        if !more && (bytes <= REST || rounds == 0) {
            break;
        }
    }
    Ok(new)
}

fn latest(shared: &Shared) -> Result<Snapshot> {
    let _index = shared.index.read();
    shared.snapshot()
}

/// Copies some more, and lets `state` complete the transaction, which is told whether it is the first. Returns how many
/// bytes, and whether the snapshot has more still.
fn portion(
    new: &mut Rewritten,
    snapshot: &Snapshot,
    limit: u64,
    state: impl FnOnce(&mut Tables<'_>, bool) -> Result<()>,
) -> Result<(u64, bool)> {
    let transaction = new.database.begin_write().map_err(fault)?;
    let mut tables = Tables::open(&transaction)?;
    let copied = tables.copy(snapshot, new.next, limit)?;
    state(&mut tables, new.next == 0)?;
    drop(tables);
    transaction.commit().map_err(fault)?;
    new.next = copied.next;
    new.bytes += copied.bytes;
    Ok((copied.bytes, copied.more))
}

/// Completes the new file and puts it in the old one's place. To be called by the writer, between two commits. Returns
/// the revision up to which the new file is clean, and its bytes of keys and values.
pub(super) fn adopt(shared: &Arc<Shared>, mut new: Rewritten) -> Result<(u64, u64)> {
    let snapshot = latest(shared)?;
    let compacted = shared.index.read().compacted;
    portion(&mut new, &snapshot, u64::MAX, |tables, _| {
        // What is refused now stays refused, also by whoever opens the file after a crash.
        tables.set_compacted(compacted)
    })?;
    drop(snapshot);
    replace(&shared.path)?;
    let cleaned = Snapshot::take(&new.database)?.cleaned()?;
    let old = shared.database.write().replace(new.database);
    // Closing tidies the old file up, which nobody needs to wait for.
    std::thread::spawn(move || drop(old));
    Ok((cleaned, new.bytes))
}

/// Puts the new file in the old one's place, for good.
pub(super) fn replace(path: &Path) -> Result<()> {
    let moved = std::fs::rename(new_path(path), path).and_then(|()| sync_directory(path));
    moved.map_err(|e| Error::Unavailable(format!("cannot replace {}: {e}", path.display())))
}

fn sync_directory(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewrites_what_is_mostly_air() {
        let mb = 1 << 20;
        // (file, live, live and history, (file and bytes the last time), due)
        for (file, live, total, last, due) in [
            (7, 1, 1, (0, 0), false),
            (9, 1, 1, (0, 0), true),
            (30, 1, 17, (0, 0), true),
            (28, 1, 17, (0, 0), false),
            (89, 40, 40, (0, 0), false),
            (91, 40, 40, (0, 0), true),
            (91, 40, 60, (0, 0), false),
            (91, 40, 40, (85, 40), false),
            (96, 40, 40, (85, 40), true),
            (96, 40, 40, (170, 80), true),
        ] {
            let last = (last.0 * mb, last.1 * mb);
            assert_eq!(
                is_due(file * mb, live * mb, total * mb, last),
                due,
                "{file} MB for {live} of {total} MB, {last:?} before"
            );
        }
    }
}
