//! A change of a resource, and what of it those see who watch a selection.

use std::cell::OnceCell;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::{Object, Selection};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

/// How an event is written for those who see objects as they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    Json,
    Protobuf,
}

/// A change as a watcher sees it, shared by all that see the same.
#[derive(Debug)]
pub struct Change {
    pub kind: ChangeKind,
    /// For `Deleted`: the last state, at the revision of the change.
    pub object: Arc<Object>,
    json: OnceLock<Bytes>,
    protobuf: OnceLock<Bytes>,
}

impl Change {
    pub(super) fn new(kind: ChangeKind, object: Arc<Object>) -> Arc<Self> {
        Arc::new(Self {
            kind,
            object,
            json: OnceLock::new(),
            protobuf: OnceLock::new(),
        })
    }

    /// The event on the wire: the first watcher that sends it in this form makes it, for the others too.
    pub fn event(&self, wire: Wire, make: impl FnOnce() -> Vec<u8>) -> Bytes {
        let made = match wire {
            Wire::Json => &self.json,
            Wire::Protobuf => &self.protobuf,
        };
        made.get_or_init(|| make().into()).clone()
    }
}

/// A change before any selection.
pub(super) struct Update {
    pub revision: u64,
    pub current: Option<Arc<Object>>,
    pub previous: Option<Arc<Object>>,
}

impl Update {
    /// What it means for who watches a selection: an update that enters it is an addition, one that leaves it a
    /// deletion.
    pub fn kind_for(&self, selection: &Selection) -> Option<ChangeKind> {
        let selected = |side: &Option<Arc<Object>>| {
            side.as_ref()
                .is_some_and(|object| selection.matches(object))
        };
        match (selected(&self.current), selected(&self.previous)) {
            (true, false) => Some(ChangeKind::Added),
            (true, true) => Some(ChangeKind::Modified),
            (false, true) => Some(ChangeKind::Deleted),
            (false, false) => None,
        }
    }

    pub fn seen_by(&self, selection: &Selection) -> Option<Arc<Change>> {
        self.change(self.kind_for(selection)?)
    }

    fn change(&self, kind: ChangeKind) -> Option<Arc<Change>> {
        let object = match kind {
            ChangeKind::Added | ChangeKind::Modified => self.current.clone()?,
            ChangeKind::Deleted => Arc::new(self.previous.as_ref()?.moved_to(self.revision)),
        };
        Some(Change::new(kind, object))
    }

    pub fn bytes(&self) -> usize {
        let sides = [&self.current, &self.previous].into_iter().flatten();
        sides.map(|object| object.bytes.len()).sum()
    }
}

/// An update on its way to many watchers: each form of it is made once.
pub(super) struct Shared {
    pub update: Update,
    made: [OnceCell<Option<Arc<Change>>>; 3],
}

impl From<Update> for Shared {
    fn from(update: Update) -> Self {
        Self {
            update,
            made: Default::default(),
        }
    }
}

impl Shared {
    pub fn seen_by(&self, selection: &Selection) -> Option<&Arc<Change>> {
        let kind = self.update.kind_for(selection)?;
        self.made[kind as usize]
            .get_or_init(|| self.update.change(kind))
            .as_ref()
    }
}
