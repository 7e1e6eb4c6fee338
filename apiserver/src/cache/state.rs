//! The data of a watch cache, and how a change reaches its watchers.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{Object, Selection};

/// How many changes, and how many bytes of objects in them, are remembered for watches that resume. Older ones
/// come from the store's history.
const RECENT_CHANGES: usize = 1024;
const RECENT_BYTES: usize = 2 << 20;
/// How many changes a watcher may be behind before it is cut off.
const WATCHER_BUFFER: usize = 4096;
/// The same in bytes of large objects. As many small ones as the buffer takes have no more, and are not weighed.
const WATCHER_BYTES: u32 = 32 << 20;
const LIGHT: u32 = WATCHER_BYTES / WATCHER_BUFFER as u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

/// A change as one watcher sees it.
#[derive(Debug)]
pub struct Change {
    pub kind: ChangeKind,
    /// For `Deleted`: the last state, at the revision of the change.
    pub object: Arc<Object>,
    /// What it takes of the watcher's room until it is on its way.
    weight: Option<OwnedSemaphorePermit>,
}

impl Change {
    fn new(kind: ChangeKind, object: Arc<Object>) -> Self {
        Self {
            kind,
            object,
            weight: None,
        }
    }
}

/// A change of the resource, before any selection.
struct Recent {
    revision: u64,
    current: Option<Arc<Object>>,
    previous: Option<Arc<Object>>,
}

struct Watcher {
    selection: Selection,
    /// It knows everything up to this revision, which may be more than the cache does: it heard it from another server.
    after: u64,
    sender: mpsc::Sender<Change>,
    /// Bytes of large objects that its buffer still has room for.
    room: Arc<Semaphore>,
}

impl Watcher {
    /// False if the watcher is gone, or too far behind.
    fn send(&self, mut change: Change) -> bool {
        // One that is larger than all room is sent when no other large one waits.
        let bytes = u32::try_from(change.object.bytes.len())
            .map_or(WATCHER_BYTES, |bytes| bytes.min(WATCHER_BYTES));
        if bytes > LIGHT {
            let Ok(weight) = self.room.clone().try_acquire_many_owned(bytes) else {
                return false;
            };
            change.weight = Some(weight);
        }
        self.sender.try_send(change).is_ok()
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
    pub initial: VecDeque<Change>,
    /// Ends when the watcher is too slow or the cache had to start over.
    pub receiver: mpsc::Receiver<Change>,
    /// The revision as of which `initial` ends.
    pub revision: u64,
}

impl Subscription {
    pub(super) fn prepend(&mut self, earlier: Vec<Change>) {
        let mut all = VecDeque::from(earlier);
        all.append(&mut self.initial);
        self.initial = all;
    }
}

#[derive(Default)]
pub(super) struct State {
    objects: BTreeMap<Box<str>, Arc<Object>>,
    recent: VecDeque<Recent>,
    recent_bytes: usize,
    /// `recent` holds every change after this revision.
    recent_after: u64,
    last_change: u64,
    position: u64,
    watchers: Vec<Watcher>,
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
        for (key, current, revision) in changes {
            let previous = match &current {
                Some(object) => self.objects.insert(key.into(), object.clone()),
                None => self.objects.remove(key),
            };
            self.last_change = revision;
            self.dispatch(&Recent {
                revision,
                current: current.clone(),
                previous: previous.clone(),
            });
            self.remember(Recent {
                revision,
                current,
                previous,
            });
        }
        self.position = revision;
    }

    fn dispatch(&mut self, change: &Recent) {
        self.watchers.retain(|watcher| {
            if change.revision <= watcher.after {
                return true;
            }
            let seen = transition(
                change.current.as_ref(),
                change.previous.as_ref(),
                change.revision,
                &watcher.selection,
            );
            match seen {
                Some(seen) => watcher.send(seen),
                None => true,
            }
        });
    }

    fn remember(&mut self, change: Recent) {
        let size = |change: &Recent| {
            [&change.current, &change.previous]
                .into_iter()
                .flatten()
                .map(|object| object.bytes.len())
                .sum::<usize>()
        };
        self.recent_bytes += size(&change);
        self.recent.push_back(change);
        while self.recent.len() > RECENT_CHANGES || self.recent_bytes > RECENT_BYTES {
            let Some(oldest) = self.recent.pop_front() else {
                break;
            };
            self.recent_bytes -= size(&oldest);
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
        let initial = self.recent.range(start..).filter_map(|change| {
            transition(
                change.current.as_ref(),
                change.previous.as_ref(),
                change.revision,
                selection,
            )
        });
        let initial = initial.collect();
        Some(self.join(selection.clone(), initial, revision, revision))
    }

    fn join(
        &mut self,
        selection: Selection,
        initial: VecDeque<Change>,
        reached: u64,
        after: u64,
    ) -> Subscription {
        let (sender, receiver) = mpsc::channel(WATCHER_BUFFER);
        self.watchers.retain(|watcher| !watcher.sender.is_closed());
        if !self.closed {
            self.watchers.push(Watcher {
                selection,
                after,
                sender,
                room: Arc::new(Semaphore::new(WATCHER_BYTES as usize)),
            });
        }
        Subscription {
            initial,
            receiver,
            revision: self.position.max(reached),
        }
    }
}

/// What a change means for who watches a selection: an update that enters it is an addition, one that leaves it
/// a deletion.
pub(super) fn transition(
    current: Option<&Arc<Object>>,
    previous: Option<&Arc<Object>>,
    revision: u64,
    selection: &Selection,
) -> Option<Change> {
    let now = current.filter(|object| selection.matches(object));
    let before = previous.filter(|object| selection.matches(object));
    match (now, before) {
        (Some(object), None) => Some(Change::new(ChangeKind::Added, object.clone())),
        (Some(object), Some(_)) => Some(Change::new(ChangeKind::Modified, object.clone())),
        (None, Some(object)) => {
            let last = Arc::new(object.moved_to(revision));
            Some(Change::new(ChangeKind::Deleted, last))
        }
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        while let Ok(change) = subscription.receiver.try_recv() {
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
        let mut reads = state.subscribe(Selection::default(), false, 1);
        let slow = state.subscribe(Selection::default(), false, 1);
        let large = "x".repeat(1 << 20);
        let mut seen = 0;
        for revision in 2..100 {
            state.apply(
                vec![("ns/a", pod("a", &large, revision), revision)],
                revision,
            );
            while reads.receiver.try_recv().is_ok() {
                seen += 1;
            }
        }
        assert_eq!((seen, state.watchers.len()), (98, 1));
        assert!(slow.receiver.is_closed() && slow.receiver.len() < 32);
        let room = state.watchers[0].room.available_permits();
        assert_eq!(room, WATCHER_BYTES as usize);
    }

    #[test]
    fn a_slow_watcher_is_cut_off_and_memory_is_bounded() {
        let mut state = State::default();
        state.reset(vec![], 1);
        let slow = state.subscribe(Selection::default(), false, 1);
        for revision in 2..WATCHER_BUFFER as u64 + 10 {
            state.apply(vec![("ns/a", pod("a", "", revision), revision)], revision);
        }
        assert!(state.watchers.is_empty() && slow.receiver.is_closed());
        assert_eq!(state.recent.len(), RECENT_CHANGES);
        assert!(state.subscribe_from(&Selection::default(), 2).is_none());
        assert!(
            state
                .subscribe_from(&Selection::default(), state.recent_after)
                .is_some()
        );
    }
}
