//! Revisions that go on behind a restore.
//!
//! etcd counts its revisions from 1 and cannot be told to count from elsewhere, but whoever has watched the store that a
//! backup was made of must never see a revision for the second time. So a restore writes an offset into etcd, and this
//! engine adds it to every revision that goes out and takes it from every one that comes in. What is not greater than the
//! offset is from before the restore: as compacted as it can be. An etcd that nobody has restored into has no offset, and
//! its revisions are those that any other client of it sees.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use etcd_client::{EventType, GetOptions, KvClient};

use super::{fault, revision_of};
use crate::backup::INTERNAL;
use crate::{Error, KeyValue, Result};

/// Its value is the offset as a decimal number.
pub(super) const OFFSET_KEY: &str = "/skiff/revision-offset";
/// There while a restore is under way: nobody may serve what is half of one thing and half of another.
pub(super) const RESTORE_KEY: &str = "/skiff/restore";

/// The offset, as one process knows it.
pub(super) struct Epoch(AtomicU64);

/// What etcd says of itself.
pub(super) struct Found {
    /// etcd's own.
    pub revision: u64,
    pub offset: u64,
    /// Whether a restore was begun and not finished.
    pub unfinished: bool,
}

pub(super) async fn read(mut kv: KvClient) -> Result<Found> {
    let options = GetOptions::new().with_prefix();
    let response = kv.get(INTERNAL, Some(options)).await.map_err(fault)?;
    let value = |key: &str| response.kvs().iter().find(|kv| kv.key() == key.as_bytes());
    let offset = match value(OFFSET_KEY) {
        Some(kv) => parse(kv.value()).ok_or_else(|| {
            Error::Corrupt(format!("the value of {OFFSET_KEY} in etcd is no number"))
        })?,
        None => 0,
    };
    Ok(Found {
        revision: revision_of(response.header()),
        offset,
        unfinished: value(RESTORE_KEY).is_some(),
    })
}

fn parse(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The offset that these events set, if it is another one.
pub(super) fn changed(events: &[etcd_client::Event], epoch: &Epoch) -> Option<u64> {
    let puts = events.iter().filter(|e| e.event_type() == EventType::Put);
    let mut set = puts
        .filter_map(etcd_client::Event::kv)
        .filter(|kv| kv.key() == OFFSET_KEY.as_bytes())
        .filter_map(|kv| parse(kv.value()));
    set.next_back().filter(|offset| *offset != epoch.offset())
}

impl Epoch {
    pub fn new(offset: u64) -> Self {
        Epoch(AtomicU64::new(offset))
    }

    pub fn offset(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    pub fn set(&self, offset: u64) {
        self.0.store(offset, Ordering::Release);
    }

    /// A revision of etcd's as others see it.
    pub fn outward(&self, revision: u64) -> u64 {
        revision + self.offset()
    }

    /// A revision that others have seen, as etcd knows it. `None` if it is from before.
    pub fn inward(&self, revision: u64) -> Option<i64> {
        let own = revision.checked_sub(self.offset())?;
        i64::try_from(own).ok().filter(|own| *own > 0)
    }

    /// What whoever asks for a revision from before is told.
    pub fn over(&self, requested: u64) -> Error {
        Error::Compacted {
            requested,
            oldest: self.offset() + 1,
        }
    }

    pub fn key_value(&self, kv: &etcd_client::KeyValue) -> KeyValue {
        KeyValue {
            key: String::from_utf8_lossy(kv.key()).into(),
            value: Bytes::copy_from_slice(kv.value()),
            create_revision: self.outward(kv.create_revision() as u64),
            mod_revision: self.outward(kv.mod_revision() as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_from_before_are_none() {
        // (offset, as others see it, as etcd knows it)
        for (offset, outward, inward) in [
            (0, 7, Some(7)),
            (0, 0, None),
            (100, 101, Some(1)),
            (100, 100, None),
            (100, 5, None),
            (0, u64::MAX, None),
        ] {
            let epoch = Epoch::new(offset);
            assert_eq!(epoch.inward(outward), inward, "{outward} behind {offset}");
            if let Some(own) = inward {
                assert_eq!(epoch.outward(own as u64), outward);
            }
        }
    }

    #[test]
    fn offsets_are_plain_numbers() {
        for (value, expected) in [
            (&b"1000000000"[..], Some(1_000_000_000)),
            (b"", None),
            (b"-1", None),
            (b"\xff", None),
        ] {
            assert_eq!(parse(value), expected);
        }
    }
}
