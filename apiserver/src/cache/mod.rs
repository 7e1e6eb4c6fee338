//! The watch cache: every object of one resource as shared bytes, and its recent changes.
//!
//! A get, a list and all watchers hand out the same [`Bytes`] for the same revision of an object; nobody decodes
//! it again. The cache follows the store through one watch, starts with the first request for its resource, and
//! says how fresh it is: a reader asks the store for its revision and waits until the cache has seen it.
//!
//! [`object`] is what is kept, [`selection`] what a reader may ask for, [`change`] what happens to an object, [`state`] the
//! data behind the lock, [`queue`] what waits for one watcher, and this module the task that follows the store.

mod change;
mod object;
mod queue;
mod selection;
mod state;

use std::sync::Arc;
use std::time::Duration;

use apimachinery::resource::Resource;
use apimachinery::status::{Result, Status};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use storage::{Event as StoreEvent, EventKind, Progress, Range, Store};
use tokio::sync::watch;

pub use change::{Change, ChangeKind, Wire};
pub use object::Object;
pub use queue::Receiver;
pub use selection::Selection;
pub use state::{Snapshot, Subscription};

use crate::codec;
use crate::fields::Fields;
use crate::registry::versions::{Versions, revive};
use change::Update;
use state::State;

/// How long a read waits for the cache to reach a revision (Kubernetes' blockTimeout).
const FRESH_TIMEOUT: Duration = Duration::from_secs(3);
/// A watch that starts before what the cache remembers replays at most so many changes from the store.
const MAX_REPLAY: usize = 100_000;
const RETRY: Duration = Duration::from_millis(250);
/// How many objects are read from the store at once when a cache fills.
const LOAD_PAGE: usize = 500;

/// The cache of one resource.
pub struct WatchCache {
    prefix: Box<str>,
    /// In the version that is stored.
    resource: Arc<Resource>,
    fields: Fields,
    versions: Option<Arc<dyn Versions>>,
    store: Arc<dyn Store>,
    state: RwLock<State>,
    /// The last revision applied; 0 until the first load.
    position: watch::Sender<u64>,
    progress: Mutex<Option<Progress>>,
    /// Why nothing can be read, while that is so: objects that no webhook converts.
    failure: Mutex<Option<Status>>,
}

impl WatchCache {
    /// Starts following the keys under `prefix` (which ends with a slash).
    pub fn start(
        store: Arc<dyn Store>,
        prefix: &str,
        resource: Arc<Resource>,
        fields: Fields,
        versions: Option<Arc<dyn Versions>>,
    ) -> Arc<Self> {
        let cache = Arc::new(Self {
            prefix: prefix.into(),
            resource,
            fields,
            versions,
            store,
            state: RwLock::default(),
            position: watch::Sender::new(0),
            progress: Mutex::new(None),
            failure: Mutex::new(None),
        });
        tokio::spawn(follow(Arc::downgrade(&cache)));
        cache
    }

    /// Waits until the cache is as new as the store is now. The result is a revision as of which it is exact.
    pub async fn fresh(&self) -> Result<u64> {
        let current = self.store.current_revision().await.map_err(store_error)?;
        self.at_least(current).await
    }

    /// Waits until the cache is at least as new as a revision, for as long as Kubernetes would.
    pub async fn at_least(&self, revision: u64) -> Result<u64> {
        let wait = async {
            loop {
                if *self.position.borrow() == 0 {
                    if let Some(failure) = self.failure.lock().clone() {
                        return Err(failure);
                    }
                    // The sender lives in `self`, so waiting cannot fail.
                    let _ = self
                        .position
                        .subscribe()
                        .wait_for(|position| *position > 0)
                        .await;
                }
                let Some(progress) = self.progress.lock().clone() else {
                    continue;
                };
                let mark = progress.reached(revision).await;
                if *self.position.borrow() < mark.last_event {
                    let _ = self
                        .position
                        .subscribe()
                        .wait_for(|position| *position >= mark.last_event)
                        .await;
                }
                return Ok(mark.revision);
            }
        };
        match tokio::time::timeout(FRESH_TIMEOUT, wait).await {
            Ok(reached) => reached,
            Err(_) => Err(Status::timeout(
                format!(
                    "Too large resource version: {revision}, current: {}",
                    *self.position.borrow()
                ),
                1,
            )
            .with_cause("ResourceVersionTooLarge", "Too large resource version", "")),
        }
    }

    /// Waits for the first load only: what `resourceVersion=0` asks for.
    pub async fn loaded(&self) -> Result<u64> {
        self.at_least(0).await
    }

    /// One object by its key below the resource: `namespace/name` or `name`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.state.read().get(key)
    }

    /// All selected objects in key order. `reached` is what one of the waiting methods returned.
    #[must_use]
    pub fn list(&self, selection: &Selection, reached: u64) -> Snapshot {
        self.state.read().list(selection, reached)
    }

    /// A revision that the cache is exact for without waiting: what a bookmark may say.
    #[must_use]
    pub fn settled(&self) -> u64 {
        let position = *self.position.borrow();
        match self.progress.lock().as_ref().map(Progress::now) {
            Some(mark) if position >= mark.last_event => mark.revision.max(position),
            _ => position,
        }
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.read().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The revision of the last change to this resource, for whoever derives something from its objects.
    #[must_use]
    pub fn last_change(&self) -> u64 {
        self.state.read().last_change()
    }

    /// Changes from now on, after the objects there are (as additions) if `initial`.
    #[must_use]
    pub fn subscribe(&self, selection: Selection, initial: bool, reached: u64) -> Subscription {
        self.state.write().subscribe(selection, initial, reached)
    }

    /// Changes after a revision: from memory if it goes back so far, from the store's history otherwise.
    pub async fn subscribe_from(
        &self,
        selection: Selection,
        revision: u64,
    ) -> Result<Subscription> {
        self.loaded().await?;
        if let Some(subscription) = self.state.write().subscribe_from(&selection, revision) {
            return Ok(subscription);
        }
        let mut replayed = Vec::new();
        let mut from = revision;
        let expired = |_| too_old(revision, *self.position.borrow());
        loop {
            let mut watch = self
                .store
                .watch(&self.prefix, from + 1)
                .await
                .map_err(expired)?;
            let position = *self.position.borrow();
            while from < position {
                let batch = watch
                    .next()
                    .await
                    .ok_or_else(|| too_old(revision, position))?
                    .map_err(expired)?;
                from = batch.revision;
                for event in &batch.events {
                    replayed.extend(self.replay(event, &selection).await?);
                }
                if replayed.len() > MAX_REPLAY {
                    return Err(too_old(revision, position));
                }
            }
            drop(watch);
            if let Some(mut subscription) = self.state.write().subscribe_from(&selection, from) {
                subscription.prepend(replayed);
                return Ok(subscription);
            }
        }
    }

    /// A change out of the store's history, as a watcher with this selection sees it. The history may be compacted while it
    /// is read, and then shows a change without what was before: nobody can tell what it means.
    async fn replay(
        &self,
        event: &StoreEvent,
        selection: &Selection,
    ) -> Result<Option<Arc<Change>>> {
        let previous = match &event.prev_kv {
            Some(kv) => {
                let value = self.revive(vec![kv.value.clone()]).await?;
                self.decode(&kv.key, &value[0], kv.mod_revision)
            }
            None if !is_creation(event) => {
                return Err(too_old(event.revision(), *self.position.borrow()));
            }
            None => None,
        };
        let current = match event.kind {
            EventKind::Put => {
                let value = self.revive(vec![event.kv.value.clone()]).await?;
                self.decode(&event.kv.key, &value[0], event.revision())
            }
            EventKind::Delete => None,
        };
        let revision = event.revision();
        let update = Update {
            revision,
            current,
            previous,
        };
        Ok(update.seen_by(selection))
    }

    async fn revive(&self, stored: Vec<Bytes>) -> Result<Vec<Bytes>> {
        revive(self.versions.as_deref(), stored).await
    }

    /// Ends all watches, and with its last user the cache: what it serves has changed its shape.
    pub fn close(&self) {
        self.state.write().close();
    }

    fn decode(&self, key: &str, value: &Bytes, revision: u64) -> Option<Arc<Object>> {
        let key = key.strip_prefix(&*self.prefix)?;
        let object = codec::adopt(value, &self.resource)
            .and_then(|value| Object::new(key, &value, revision, &self.fields));
        match object {
            Ok(object) => Some(Arc::new(object)),
            Err(error) => {
                tracing::error!(key, %error, "stored object cannot be read; it is not served");
                None
            }
        }
    }

    /// Reads everything, then follows until the watch ends. Errors mean: again, from the beginning.
    async fn load_and_follow(this: &std::sync::Weak<Self>) -> storage::Result<()> {
        let Some(cache) = this.upgrade() else {
            return Ok(());
        };
        let (objects, revision) = cache.load().await?;
        let mut watch = cache.store.watch(&cache.prefix, revision + 1).await?;
        cache.state.write().reset(objects, revision);
        *cache.progress.lock() = Some(watch.progress());
        *cache.failure.lock() = None;
        cache.position.send_replace(revision);
        drop(cache);
        while let Some(batch) = watch.next().await {
            let batch = batch?;
            let Some(cache) = this.upgrade() else {
                return Ok(());
            };
            cache
                .apply(&batch.events, batch.revision)
                .await
                .map_err(|error| cache.failed(error))?;
        }
        Ok(())
    }

    /// All objects as of one revision, page by page: what the store hands over is let go again before there is more.
    async fn load(&self) -> storage::Result<(Vec<Arc<Object>>, u64)> {
        let mut objects = Vec::new();
        let mut range = Range::prefix(&self.prefix).limit(LOAD_PAGE);
        loop {
            let page = self.store.range(range.clone()).await?;
            let values = page.kvs.iter().map(|kv| kv.value.clone()).collect();
            let values = self
                .revive(values)
                .await
                .map_err(|error| self.failed(error))?;
            objects.extend(
                page.kvs
                    .iter()
                    .zip(&values)
                    .filter_map(|(kv, value)| self.decode(&kv.key, value, kv.mod_revision)),
            );
            match page.kvs.last() {
                Some(last) if page.more => {
                    range = range.at(page.revision).after(&last.key);
                }
                _ => return Ok((objects, page.revision)),
            }
        }
    }

    /// Nothing can be read until it can be converted again.
    fn failed(&self, error: Status) -> storage::Error {
        let text = error.to_string();
        *self.failure.lock() = Some(error);
        // Whoever waits for the first load is to hear of it.
        self.position.send_replace(0);
        storage::Error::Unavailable(text)
    }

    async fn apply(&self, events: &[StoreEvent], revision: u64) -> Result<()> {
        // Decoding happens outside of the lock; readers only ever wait for the pointers to change.
        let puts = events.iter().filter(|event| event.kind == EventKind::Put);
        let values = puts.map(|event| event.kv.value.clone()).collect();
        let mut values = self.revive(values).await?.into_iter();
        let decoded: Vec<_> = events
            .iter()
            .map(|event| {
                let object = match event.kind {
                    EventKind::Put => values
                        .next()
                        .and_then(|value| self.decode(&event.kv.key, &value, event.revision())),
                    EventKind::Delete => None,
                };
                (
                    event.kv.key.strip_prefix(&*self.prefix).unwrap_or_default(),
                    object,
                    event.revision(),
                )
            })
            .collect();
        self.state.write().apply(decoded, revision);
        self.position.send_replace(revision);
        Ok(())
    }
}

fn is_creation(event: &StoreEvent) -> bool {
    event.kind == EventKind::Put && event.kv.create_revision == event.kv.mod_revision
}

/// Follows the store until the cache is dropped, whatever happens to the store in between.
async fn follow(cache: std::sync::Weak<WatchCache>) {
    while cache.strong_count() > 0 {
        match WatchCache::load_and_follow(&cache).await {
            Err(storage::Error::Closed) => return,
            Err(error) => tracing::warn!(%error, "watch cache starts over"),
            Ok(()) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The 410 that makes a client list again.
#[must_use]
pub fn too_old(requested: u64, oldest: u64) -> Status {
    Status::expired(format!("too old resource version: {requested} ({oldest})"))
}

/// A failure of the store as the API reports it.
#[must_use]
pub fn store_error(error: storage::Error) -> Status {
    use storage::Error::{Compacted, FutureRevision, TooLarge, Unavailable};
    match error {
        Compacted { .. } => {
            Status::expired("The resourceVersion for the provided list is too old.")
        }
        FutureRevision { requested, current } => Status::timeout(
            format!("Too large resource version: {requested}, current: {current}"),
            1,
        )
        .with_cause("ResourceVersionTooLarge", "Too large resource version", ""),
        TooLarge { .. } => Status::too_large(error),
        Unavailable(_) => Status::service_unavailable(error.to_string()),
        other => Status::internal(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage::KeyValue;
    use storage::embedded::{Embedded, Options};

    #[tokio::test]
    async fn a_change_whose_past_is_compacted_is_not_replayed() {
        let folder = tempfile::TempDir::new().unwrap();
        let store = Embedded::open(folder.path().join("store"), Options::default()).unwrap();
        let mut all = apimachinery::resource::builtin().iter();
        let resource = all.find(|resource| &*resource.plural == "configmaps");
        let prefix = "/registry/configmaps/";
        let cache = WatchCache::start(
            Arc::new(store),
            prefix,
            resource.unwrap().clone(),
            Fields::default(),
            None,
        );
        let at = |revision, value: &'static str| KeyValue {
            key: format!("{prefix}ns/a").into(),
            value: value.into(),
            create_revision: 3,
            mod_revision: revision,
        };
        let object = r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"}}"#;
        let (put, delete) = (EventKind::Put, EventKind::Delete);
        for (kind, kv, prev_kv, expected) in [
            (put, at(3, object), None, Some(ChangeKind::Added)),
            (put, at(4, object), None, None),
            (delete, at(5, ""), None, None),
            (
                put,
                at(4, object),
                Some(at(3, object)),
                Some(ChangeKind::Modified),
            ),
            (
                delete,
                at(5, ""),
                Some(at(4, object)),
                Some(ChangeKind::Deleted),
            ),
        ] {
            let event = StoreEvent { kind, kv, prev_kv };
            let replayed = cache.replay(&event, &Selection::default()).await;
            match (replayed, expected) {
                (Ok(change), Some(kind)) => assert_eq!(change.unwrap().kind, kind, "{event:?}"),
                (Err(error), None) => assert_eq!(error.code, 410, "{event:?}"),
                (replayed, _) => panic!("{event:?}: {replayed:?}"),
            }
        }
    }
}
