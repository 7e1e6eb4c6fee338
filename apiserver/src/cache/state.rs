//! The data of a watch cache, and how a change reaches its watchers.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use super::change::{Change, ChangeKind, Shared, Update};
use super::queue::{Receiver, Sender, queue};
use super::{Object, Selection};

/// How many changes, and how many bytes of objects in them, are remembered for watches that resume. Older ones
/// come from the store's history.
const RECENT_CHANGES: usize = 1024;
const RECENT_BYTES: usize = 2 << 20;
/// So many watchers are never searched for those that are gone.
const FEW: usize = 64;

struct Watcher {
    selection: Selection,
    /// It knows everything up to this revision, which may be more than the cache does: it heard it from another server.
    after: u64,
    sender: Sender,
}

impl Watcher {
    /// False if the watcher is gone, or too far behind.
    fn send(&self, updates: &[Shared]) -> bool {
        let new = updates
            .iter()
            .filter(|shared| shared.update.revision > self.after);
        self.sender
            .send(new.filter_map(|shared| shared.seen_by(&self.selection)))
    }
}

/// A list at one revision.
#[derive(Debug)]
pub struct Snapshot {
    pub revision: u64,
    pub objects: Vec<Arc<Object>>,
    /// The revision of the resource's last change: the list is exact for any revision from here to `revision`.
    pub last_change: u64,
}

/// What a watcher holds: changes that it has to see first, then those that come.
#[derive(Debug)]
pub struct Subscription {
    pub initial: VecDeque<Arc<Change>>,
    pub receiver: Receiver,
    /// The revision as of which `initial` ends.
    pub revision: u64,
}

impl Subscription {
    pub(super) fn prepend(&mut self, earlier: Vec<Arc<Change>>) {
        let mut all = VecDeque::from(earlier);
        all.append(&mut self.initial);
        self.initial = all;
    }
}

#[derive(Default)]
pub(super) struct State {
    objects: BTreeMap<Box<str>, Arc<Object>>,
    recent: VecDeque<Update>,
    recent_bytes: usize,
    /// `recent` holds every change after this revision.
    recent_after: u64,
    last_change: u64,
    position: u64,
    watchers: Vec<Watcher>,
    /// Once there are so many watchers, those that are gone are looked for.
    purge_at: usize,
    /// Watches end as soon as they begin.
    closed: bool,
}

impl State {
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.objects.get(key).cloned()
    }

    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn last_change(&self) -> u64 {
        self.last_change
    }

    pub fn list(&self, selection: &Selection, reached: u64) -> Snapshot {
        Snapshot {
            revision: self.position.max(reached),
            objects: self.select(selection),
            last_change: self.last_change,
        }
    }

    fn select(&self, selection: &Selection) -> Vec<Arc<Object>> {
        if !selection.namespace.is_empty() && !selection.name.is_empty() {
            let key = format!("{}/{}", selection.namespace, selection.name);
            let found = self
                .objects
                .get(&*key)
                .filter(|object| selection.matches(object));
            return found.cloned().into_iter().collect();
        }
        if selection.is_everything() {
            return self.objects.values().cloned().collect();
        }
        if selection.namespace.is_empty() {
            return self
                .objects
                .values()
                .filter(|object| selection.matches(object))
                .cloned()
                .collect();
        }
        let prefix = format!("{}/", selection.namespace);
        self.objects
            .range::<str, _>((Bound::Included(&*prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(&prefix))
            .filter(|(_, object)| selection.matches(object))
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Ends all watches, and those that are still to come.
    pub fn close(&mut self) {
        self.closed = true;
        self.watchers.clear();
    }

    /// Starts over with what the store holds. Who watches has to list again.
    pub fn reset(&mut self, objects: Vec<Arc<Object>>, revision: u64) {
        self.watchers.clear();
        self.recent.clear();
        self.recent_bytes = 0;
        self.recent_after = revision;
        self.last_change = revision;
        self.position = revision;
        self.objects = objects
            .into_iter()
            .map(|object| (object.key().into(), object))
            .collect();
    }

    /// Applies changes in the order of their revisions and tells the watchers.
    pub fn apply(&mut self, changes: Vec<(&str, Option<Arc<Object>>, u64)>, revision: u64) {
        let mut updates = Vec::with_capacity(changes.len());
        for (key, current, revision) in changes {
            let previous = match &current {
                Some(object) => self.objects.insert(key.into(), object.clone()),
                None => self.objects.remove(key),
            };
            self.last_change = revision;
            updates.push(Shared::from(Update {
                revision,
                current,
                previous,
            }));
        }
        // All updates for one watcher after the other: it is woken once.
        self.watchers.retain(|watcher| watcher.send(&updates));
        for shared in updates {
            self.remember(shared.update);
        }
        self.position = revision;
    }

    fn remember(&mut self, update: Update) {
        self.recent_bytes += update.bytes();
        self.recent.push_back(update);
        while self.recent.len() > RECENT_CHANGES || self.recent_bytes > RECENT_BYTES {
            let Some(oldest) = self.recent.pop_front() else {
                break;
            };
            self.recent_bytes -= oldest.bytes();
            self.recent_after = oldest.revision;
        }
    }

    pub fn subscribe(&mut self, selection: Selection, initial: bool, reached: u64) -> Subscription {
        let objects = if initial {
            self.select(&selection)
        } else {
            Vec::new()
        };
        let initial = objects
            .into_iter()
            .map(|object| Change::new(ChangeKind::Added, object))
            .collect();
        self.join(selection, initial, reached, self.position)
    }

    /// `None` if the revision is older than what is remembered.
    pub fn subscribe_from(&mut self, selection: &Selection, revision: u64) -> Option<Subscription> {
        if revision < self.recent_after {
            return None;
        }
        let start = self
            .recent
            .partition_point(|change| change.revision <= revision);
        let recent = self.recent.range(start..);
        let initial = recent
            .filter_map(|update| update.seen_by(selection))
            .collect();
        Some(self.join(selection.clone(), initial, revision, revision))
    }

    fn join(
        &mut self,
        selection: Selection,
        initial: VecDeque<Arc<Change>>,
        reached: u64,
        after: u64,
    ) -> Subscription {
        let (sender, receiver) = queue();
        // Those that are gone are dropped with the next change that they would have seen, which may never come.
        if self.watchers.len() >= self.purge_at.max(FEW) {
            self.watchers
                .retain(|watcher| !watcher.sender.is_abandoned());
            self.purge_at = self.watchers.len() * 2;
        }
        if !self.closed {
            self.watchers.push(Watcher {
                selection,
                after,
                sender,
            });
        }
        Subscription {
            initial,
            receiver,
            revision: self.position.max(reached),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::queue::MOST_CHANGES;
    use crate::fields;

    fn pod(name: &str, node: &str, revision: u64) -> Option<Arc<Object>> {
        let json = format!(r#"{{"metadata":{{"name":"{name}"}},"spec":{{"nodeName":"{node}"}}}}"#);
        let key = format!("ns/{name}");
        Some(Arc::new(
            Object::new(&key, json.as_bytes(), revision, fields::of("", "pods")).unwrap(),
        ))
    }

    fn on_node(node: &str) -> Selection {
        Selection::parse(
            "",
            "",
            &format!("spec.nodeName={node}"),
            fields::of("", "pods"),
        )
        .unwrap()
    }

    fn drain(subscription: &mut Subscription) -> Vec<(ChangeKind, u64)> {
        let initial = subscription.initial.drain(..);
        let mut seen: Vec<_> = initial
            .map(|change| (change.kind, change.object.revision))
            .collect();
        while let Some(change) = subscription.receiver.try_recv() {
            seen.push((change.kind, change.object.revision));
        }
        seen
    }

    #[test]
    fn selections_are_entered_and_left() {
        let mut state = State::default();
        state.reset(vec![], 1);
        let mut watcher = state.subscribe(on_node("n1"), true, 1);
        state.apply(
            vec![("ns/a", pod("a", "", 2), 2), ("ns/a", pod("a", "n1", 3), 3)],
            3,
        );
        state.apply(
            vec![
                ("ns/a", pod("a", "n1", 4), 4),
                ("ns/a", pod("a", "n2", 5), 5),
                ("ns/a", None, 6),
            ],
            7,
        );
        let expected = [
            (ChangeKind::Added, 3),
            (ChangeKind::Modified, 4),
            (ChangeKind::Deleted, 5),
        ];
        assert_eq!(drain(&mut watcher), expected);
        // The same again for one who resumes, from anywhere.
        let mut resumed = state.subscribe_from(&on_node("n1"), 3).unwrap();
        assert_eq!(drain(&mut resumed), expected[1..]);
        assert!(state.subscribe_from(&on_node("n1"), 0).is_none());
        assert_eq!(state.list(&Selection::default(), 9).revision, 9);
    }

    #[test]
    fn a_watcher_that_is_ahead_hears_nothing_twice() {
        let mut state = State::default();
        state.reset(vec![], 1);
        // It has heard up to 3 from another server, where this one is still at 1.
        let mut ahead = state.subscribe_from(&Selection::default(), 3).unwrap();
        for revision in 2..6 {
            state.apply(vec![("ns/a", pod("a", "", revision), revision)], revision);
        }
        let expected = [(ChangeKind::Modified, 4), (ChangeKind::Modified, 5)];
        assert_eq!(drain(&mut ahead), expected);
    }

    #[test]
    fn large_objects_are_weighed_while_they_wait() {
        let mut state = State::default();
        state.reset(vec![], 1);
        let reads = state.subscribe(Selection::default(), false, 1);
        let slow = state.subscribe(Selection::default(), false, 1);
        let large = "x".repeat(1 << 20);
        let mut seen = 0;
        for revision in 2..100 {
            state.apply(
                vec![("ns/a", pod("a", &large, revision), revision)],
                revision,
            );
            while reads.receiver.try_recv().is_some() {
                seen += 1;
            }
        }
        assert_eq!((seen, state.watchers.len()), (98, 1));
        assert!(slow.receiver.is_ended());
        let waiting = std::iter::from_fn(|| slow.receiver.try_recv()).count();
        assert!((16..32).contains(&waiting), "{waiting}");
    }

    #[test]
    fn a_slow_watcher_is_cut_off_and_memory_is_bounded() {
        let mut state = State::default();
        state.reset(vec![], 1);
        let slow = state.subscribe(Selection::default(), false, 1);
        for revision in 2..MOST_CHANGES as u64 + 10 {
            state.apply(vec![("ns/a", pod("a", "", revision), revision)], revision);
        }
        assert!(state.watchers.is_empty() && slow.receiver.is_ended());
        assert_eq!(state.recent.len(), RECENT_CHANGES);
        assert!(state.subscribe_from(&Selection::default(), 2).is_none());
        assert!(
            state
                .subscribe_from(&Selection::default(), state.recent_after)
                .is_some()
        );
    }

    #[test]
    fn those_that_are_gone_are_forgotten() {
        let mut state = State::default();
        state.reset(vec![], 1);
        let stays = state.subscribe(Selection::default(), false, 1);
        for _ in 0..10 * FEW {
            // Nothing ever happens on this node, so no event would find that it is gone.
            drop(state.subscribe(on_node("idle"), false, 1));
        }
        assert!(state.watchers.len() <= 2 * FEW, "{}", state.watchers.len());
        assert!(!stays.receiver.is_ended());
    }

    #[test]
    fn watchers_share_what_they_see() {
        let mut state = State::default();
        state.reset(vec![], 1);
        let [one, other] = [1, 1].map(|at| state.subscribe(Selection::default(), false, at));
        let narrow = state.subscribe(on_node("n1"), false, 1);
        let (bound, moved) = (pod("a", "n1", 2), pod("a", "n2", 3));
        state.apply(vec![("ns/a", bound, 2), ("ns/a", moved, 3)], 3);
        let next = |subscription: &Subscription| subscription.receiver.try_recv().unwrap();
        let added = next(&one);
        assert!(Arc::ptr_eq(&added, &next(&other)) && Arc::ptr_eq(&added, &next(&narrow)));
        let modified = next(&one);
        assert!(Arc::ptr_eq(&modified, &next(&other)));
        let left = next(&narrow);
        assert_eq!(
            (modified.kind, left.kind),
            (ChangeKind::Modified, ChangeKind::Deleted)
        );
        assert_eq!(left.object.revision, 3);
        let mut made = 0;
        for _ in 0..2 {
            let event = added.event(super::super::Wire::Json, || {
                made += 1;
                b"event".to_vec()
            });
            assert_eq!(event, "event");
        }
        assert_eq!(made, 1);
    }
}
