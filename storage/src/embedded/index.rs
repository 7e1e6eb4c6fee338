//! What the writer and every reader need to know about a key without touching the file: where its last version is.
//!
//! The index is the only part of the store that is held in memory as a whole, a hundred bytes or so per key. It is
//! built from the log when the file is opened, and changed only by the writer, after a commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::file::{Kind, Record};

/// The last version of a key. A deleted key stays in the index until its deletion is compacted, for the sake of reads
/// at revisions before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub modified: u64,
    /// 0 for a deleted key.
    pub created: u64,
    /// Milliseconds since the epoch, 0 for never.
    pub expires: u64,
    /// Of key and value.
    pub size: u32,
}

impl Slot {
    pub fn exists(&self) -> bool {
        self.created != 0
    }

    pub fn of(revision: u64, record: &Record<'_>) -> Self {
        let created = if record.kind == Kind::Put {
            record.created
        } else {
            0
        };
        Slot {
            modified: revision,
            created,
            expires: record.expires,
            size: record.size(),
        }
    }
}

#[derive(Default)]
pub(super) struct Index {
    keys: BTreeMap<Arc<str>, Slot>,
    expiry: BTreeSet<(u64, Arc<str>)>,
    /// The last committed revision.
    pub revision: u64,
    /// Reads from before this revision are refused.
    pub compacted: u64,
    /// Bytes of the keys and values that exist.
    pub live_bytes: u64,
}

impl Index {
    pub fn get(&self, key: &str) -> Option<(&Arc<str>, &Slot)> {
        self.keys.get_key_value(key)
    }

    /// The keys from `start` to before `end`, deleted ones too.
    pub fn range<'a>(
        &'a self,
        start: &'a str,
        end: &'a str,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Slot)> {
        let bounds = (
            std::ops::Bound::Included(start),
            std::ops::Bound::Excluded(end),
        );
        // An empty or inverted range is a panic to BTreeMap and no keys to everybody else.
        (start < end)
            .then(|| self.keys.range::<str, _>(bounds))
            .into_iter()
            .flatten()
    }

    pub fn set(&mut self, key: Arc<str>, slot: Slot) {
        if slot.exists() {
            self.live_bytes += u64::from(slot.size);
        }
        if slot.expires != 0 {
            self.expiry.insert((slot.expires, key.clone()));
        }
        if let Some(old) = self.keys.insert(key.clone(), slot) {
            self.retire(&key, old, slot.expires);
        }
    }

    /// Forgets a deleted key whose deletion at `revision` has been compacted.
    pub fn forget(&mut self, key: &str, revision: u64) {
        if self
            .keys
            .get(key)
            .is_some_and(|slot| slot.modified == revision && !slot.exists())
        {
            self.keys.remove(key);
        }
    }

    /// When the next key expires, in milliseconds since the epoch.
    pub fn next_expiry(&self) -> Option<u64> {
        self.expiry.first().map(|(at, _)| *at)
    }

    /// The keys that have expired at `now`.
    pub fn expired(&self, now: u64) -> impl Iterator<Item = (&Arc<str>, &Slot)> {
        let due = self.expiry.iter().take_while(move |(at, _)| *at <= now);
        due.filter_map(|(_, key)| self.get(key))
    }

    fn retire(&mut self, key: &Arc<str>, old: Slot, expires: u64) {
        if old.exists() {
            self.live_bytes -= u64::from(old.size);
        }
        if old.expires != 0 && old.expires != expires {
            self.expiry.remove(&(old.expires, key.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(modified: u64, created: u64, expires: u64) -> Slot {
        Slot {
            modified,
            created,
            expires,
            size: 10,
        }
    }

    #[test]
    fn follows_the_life_of_a_key() {
        let mut index = Index::default();
        index.set("a".into(), slot(1, 1, 50));
        index.set("b".into(), slot(2, 2, 0));
        assert_eq!((index.live_bytes, index.next_expiry()), (20, Some(50)));
        index.set("a".into(), slot(3, 1, 90));
        assert_eq!((index.live_bytes, index.next_expiry()), (20, Some(90)));
        assert_eq!(index.expired(89).count(), 0);
        assert_eq!(
            index.expired(90).map(|(key, _)| &**key).collect::<Vec<_>>(),
            ["a"]
        );
        index.set("a".into(), slot(4, 0, 0));
        assert_eq!((index.live_bytes, index.next_expiry()), (10, None));
        index.forget("b", 2);
        assert!(
            index.get("b").is_some(),
            "a key that exists is never forgotten"
        );
        index.forget("a", 3);
        assert!(
            index.get("a").is_some(),
            "a later version is not what was compacted"
        );
        index.forget("a", 4);
        assert!(index.get("a").is_none());
    }

    #[test]
    fn an_inverted_range_is_empty() {
        let mut index = Index::default();
        index.set("m".into(), slot(1, 1, 0));
        for (start, end, count) in [
            ("a", "z", 1),
            ("z", "a", 0),
            ("m", "m", 0),
            ("m", "m\0", 1),
            ("", "", 0),
        ] {
            assert_eq!(index.range(start, end).count(), count, "{start:?}..{end:?}");
        }
    }
}
