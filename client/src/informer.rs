//! Shared informers: a list and watch kept as a local, indexed copy, with handlers told of every change.
//!
//! An [`Informer`] lists once, watches from there, resumes after a broken connection, and lists again (with
//! back-off) when the server no longer has the revision it needs. It stores each object once, trimmed by the hook
//! its owner gives. Handlers run on the informer's task: they put keys on a queue and return.
//!
//! Writers may tell the informer what the server answered ([`Informer::observe`]), so that their next pass
//! sees their own writes. This is what replaces client-go's expectations.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::ops::Bound;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

type Handler<K> = Box<dyn Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync>;
type Trim<K> = Box<dyn Fn(&mut K) + Send + Sync>;
type IndexFn<K> = Box<dyn Fn(&K) -> Vec<String> + Send + Sync>;

/// `namespace/name`, or `name` for what has no namespace: client-go's object key.
pub fn key_of<K: Resource>(object: &K) -> String {
    let meta = object.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    match meta.namespace.as_deref() {
        Some(namespace) if !namespace.is_empty() => format!("{namespace}/{name}"),
        _ => name.to_owned(),
    }
}

/// The namespace (empty if there is none) and name of a key.
pub fn split_key(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

/// Watches with back-off and without end: what an informer stores, for those that keep a state of their own.
pub fn events<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher(api, config)
        .backoff(Retry::default())
        .filter_map(|event| async { event.inspect_err(log_watch_error).ok() })
}

fn log_watch_error(error: &watcher::Error) {
    tracing::debug!(error = %chain(error), "watch interrupted, resuming");
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text = format!("{text}: {e}");
        source = e.source();
    }
    text
}

/// After so long without a failure, the next one is a first one again.
const QUIET: Duration = Duration::from_secs(60);

/// 50 ms, doubling to 10 s, with jitter; starts afresh once nothing has failed for a while.
#[derive(Default)]
struct Retry {
    failures: u32,
    last: Option<Instant>,
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let before = self.last.replace(now);
        if before.is_some_and(|last| now.duration_since(last) > QUIET) {
            self.failures = 0;
        }
        let base = (50u64 << self.failures.min(8)).min(10_000);
        self.failures += 1;
        Some(Duration::from_millis(
            base + rand::random_range(0..=base / 2),
        ))
    }
}

impl Backoff for Retry {
    /// Does nothing: a watcher says so whenever it starts to list, also when no list succeeds. A server that refuses it
    /// would be asked many times a second for ever.
    fn reset(&mut self) {}
}

/// Gathers the options of an [`Informer`].
pub struct Builder<K> {
    api: Api<K>,
    config: watcher::Config,
    trim: Option<Trim<K>>,
    indexes: Vec<(&'static str, IndexFn<K>)>,
}

impl<K> Builder<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// Only objects with these labels.
    pub fn labels(mut self, selector: &str) -> Self {
        self.config = self.config.labels(selector);
        self
    }

    /// Only objects with these fields, as far as the server can select by them.
    pub fn fields(mut self, selector: &str) -> Self {
        self.config = self.config.fields(selector);
        self
    }

    /// Drops what the owner never reads before an object is stored. `metadata.managedFields` is always dropped.
    /// Objects from a trimmed informer must never be written back as a whole.
    pub fn trim(mut self, trim: impl Fn(&mut K) + Send + Sync + 'static) -> Self {
        self.trim = Some(Box::new(trim));
        self
    }

    /// Lets [`Informer::by_index`] find objects by the values that `values` gives for them.
    pub fn index(
        mut self,
        name: &'static str,
        values: impl Fn(&K) -> Vec<String> + Send + Sync + 'static,
    ) -> Self {
        self.indexes.push((name, Box::new(values)));
        self
    }

    /// Starts listing and watching, until `shutdown`.
    pub fn start(self, shutdown: &CancellationToken) -> Informer<K> {
        let informer = Informer::new(self.trim, self.indexes);
        let (task, shutdown) = (informer.clone(), shutdown.clone());
        let stream = events(self.api, self.config);
        tokio::spawn(async move {
            tokio::select! { () = shutdown.cancelled() => {}, () = task.follow(stream) => {} }
        });
        informer
    }
}

/// A local copy of one kind of object. Cloning shares it.
pub struct Informer<K>(Arc<Inner<K>>);

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<K> {
    trim: Option<Trim<K>>,
    store: RwLock<Store<K>>,
    /// Held while an event is applied and told, so that all handlers see all changes in one order.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
    /// Lists begun so far. An answer to a request sent before a list may be older than the list.
    lists: AtomicU64,
}

struct Store<K> {
    objects: BTreeMap<String, Arc<K>>,
    indexes: Vec<Index<K>>,
    /// The highest resourceVersion that an event brought.
    revision: u64,
}

struct Index<K> {
    name: &'static str,
    values: IndexFn<K>,
    keys: HashMap<String, BTreeSet<String>>,
}

impl<K> Index<K> {
    fn remove(&mut self, key: &str, object: &K) {
        for value in (self.values)(object) {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
    }
}

impl<K> Store<K> {
    fn insert(&mut self, key: &str, object: Arc<K>) -> Option<Arc<K>> {
        let old = self.remove(key);
        for index in &mut self.indexes {
            for value in (index.values)(&object) {
                index.keys.entry(value).or_default().insert(key.to_owned());
            }
        }
        self.objects.insert(key.to_owned(), object);
        old
    }

    fn remove(&mut self, key: &str) -> Option<Arc<K>> {
        let old = self.objects.remove(key)?;
        for index in &mut self.indexes {
            index.remove(key, &old);
        }
        Some(old)
    }
}

/// A moment before a write, to be given to [`Informer::observe`] with the server's answer.
#[derive(Debug, Clone, Copy)]
pub struct Mark(u64);

fn revision_of<K: Resource>(object: &K) -> u64 {
    object
        .meta()
        .resource_version
        .as_deref()
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

impl<K> Informer<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// An informer over what `api` lists.
    pub fn builder(api: Api<K>) -> Builder<K> {
        Builder {
            api,
            config: watcher::Config::default(),
            trim: None,
            indexes: Vec::new(),
        }
    }
}

impl<K: Resource + Send + Sync + 'static> Informer<K> {
    fn new(trim: Option<Trim<K>>, indexes: Vec<(&'static str, IndexFn<K>)>) -> Self {
        let indexes = indexes
            .into_iter()
            .map(|(name, values)| Index {
                name,
                values,
                keys: HashMap::new(),
            })
            .collect();
        Self(Arc::new(Inner {
            trim,
            store: RwLock::new(Store {
                objects: BTreeMap::new(),
                indexes,
                revision: 0,
            }),
            handlers: Mutex::new(Vec::new()),
            synced: watch::channel(false).0,
            lists: AtomicU64::new(0),
        }))
    }

    /// An informer that nothing feeds but [`observe`](Self::observe): for tests of what reads from one.
    pub fn fixed(objects: impl IntoIterator<Item = K>) -> Self {
        let informer = Self::new(None, Vec::new());
        for object in objects {
            informer.apply(object, true);
        }
        informer.0.synced.send_replace(true);
        informer
    }

    /// Calls `handler` with the old and new state of everything that is there now (old is `None`) and of every
    /// change from now on (new is `None` when the object is gone). It must not block.
    pub fn on_change(
        &self,
        handler: impl Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync + 'static,
    ) {
        let mut handlers = self.0.handlers.lock();
        for object in self.list() {
            handler(None, Some(&object));
        }
        handlers.push(Box::new(handler));
    }

    /// Waits until the first list is in the store.
    pub async fn synced(&self) {
        // The sender lives in self, so this can only end by becoming true.
        let _ = self.0.synced.subscribe().wait_for(|synced| *synced).await;
    }

    pub fn has_synced(&self) -> bool {
        *self.0.synced.borrow()
    }

    /// The object with this key (see [`key_of`]).
    pub fn get(&self, key: &str) -> Option<Arc<K>> {
        self.0.store.read().objects.get(key).cloned()
    }

    pub fn list(&self) -> Vec<Arc<K>> {
        self.0.store.read().objects.values().cloned().collect()
    }

    /// What lives in one namespace.
    pub fn namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = format!("{namespace}/");
        let store = self.0.store.read();
        let range = store
            .objects
            .range::<str, _>((Bound::Included(from.as_str()), Bound::Unbounded));
        range
            .take_while(|(key, _)| key.starts_with(&from))
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// What has `value` under the index `name` that the builder was given.
    pub fn by_index(&self, name: &str, value: &str) -> Vec<Arc<K>> {
        let store = self.0.store.read();
        let Some(keys) = store
            .indexes
            .iter()
            .find(|i| i.name == name)
            .and_then(|i| i.keys.get(value))
        else {
            return Vec::new();
        };
        keys.iter()
            .filter_map(|key| store.objects.get::<str>(key.borrow()))
            .cloned()
            .collect()
    }

    pub fn len(&self) -> usize {
        self.0.store.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// To be taken before a write whose answer will be given to [`observe`](Self::observe).
    pub fn mark(&self) -> Mark {
        Mark(self.0.lists.load(Ordering::Acquire))
    }

    /// Puts the server's answer to a write into the copy, unless the watch has been at or beyond it already.
    pub fn observe(&self, mark: Mark, object: K) {
        // Relisted meanwhile: the list may know that the object is gone again, while nothing here would.
        if self.0.lists.load(Ordering::Acquire) == mark.0 {
            self.apply(object, false);
        }
    }

    /// Drops an object that a delete request removed at once. The watch says so too, a little later.
    pub fn observe_gone(&self, key: &str, uid: &str) {
        let handlers = self.0.handlers.lock();
        let mut store = self.0.store.write();
        if store
            .objects
            .get(key)
            .is_some_and(|o| o.meta().uid.as_deref() == Some(uid))
        {
            let old = store.remove(key);
            drop(store);
            handlers
                .iter()
                .for_each(|handler| handler(old.as_ref(), None));
        }
    }

    fn apply(&self, mut object: K, from_watch: bool) {
        object.meta_mut().managed_fields = None;
        if let Some(trim) = &self.0.trim {
            trim(&mut object);
        }
        let (key, revision) = (key_of(&object), revision_of(&object));
        let object = Arc::new(object);
        let handlers = self.0.handlers.lock();
        let old = {
            let mut store = self.0.store.write();
            let known = store.objects.get(&key).map(|o| revision_of(o.as_ref()));
            // An older state than the one here can only be the watch catching up with an observed write.
            if known.is_some_and(|known| known >= revision && revision > 0)
                || (!from_watch && revision <= store.revision)
            {
                store.revision = store.revision.max(if from_watch { revision } else { 0 });
                return;
            }
            if from_watch {
                store.revision = store.revision.max(revision);
            }
            store.insert(&key, object.clone())
        };
        handlers
            .iter()
            .for_each(|handler| handler(old.as_ref(), Some(&object)));
    }

    fn delete(&self, key: &str, revision: u64) {
        let handlers = self.0.handlers.lock();
        let mut store = self.0.store.write();
        store.revision = store.revision.max(revision);
        // A newer state is that of a successor with the same name, observed ahead of the watch.
        if store
            .objects
            .get(key)
            .is_some_and(|o| revision > 0 && revision_of(o.as_ref()) > revision)
        {
            return;
        }
        let Some(old) = store.remove(key) else { return };
        drop(store);
        handlers
            .iter()
            .for_each(|handler| handler(Some(&old), None));
    }

    async fn follow(&self, stream: impl Stream<Item = Event<K>>) {
        let mut stream = pin!(stream);
        let mut listed = HashSet::new();
        while let Some(event) = stream.next().await {
            match event {
                Event::Init => {
                    self.0.lists.fetch_add(1, Ordering::AcqRel);
                    listed.clear();
                }
                Event::InitApply(object) => {
                    listed.insert(key_of(&object));
                    self.apply(object, true);
                }
                Event::InitDone => {
                    let gone: Vec<String> = self
                        .0
                        .store
                        .read()
                        .objects
                        .keys()
                        .filter(|key| !listed.contains(*key))
                        .cloned()
                        .collect();
                    gone.iter().for_each(|key| self.delete(key, 0));
                    listed = HashSet::new();
                    self.0.synced.send_replace(true);
                }
                Event::Apply(object) => self.apply(object, true),
                Event::Delete(object) => self.delete(&key_of(&object), revision_of(&object)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn map(name: &str, revision: u64) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some("ns".into());
        map.metadata.name = Some(name.into());
        map.metadata.uid = Some(name.into());
        map.metadata.resource_version = Some(revision.to_string());
        map
    }

    fn names(informer: &Informer<ConfigMap>) -> Vec<String> {
        informer
            .list()
            .iter()
            .map(|o| format!("{}@{}", key_of(o.as_ref()), revision_of(o.as_ref())))
            .collect()
    }

    #[test]
    fn failures_in_a_row_wait_longer_whatever_the_watcher_says_in_between() {
        let mut retry = Retry::default();
        assert!(retry.next().unwrap() < Duration::from_millis(100));
        let mut wait = Duration::ZERO;
        for _ in 0..10 {
            retry.reset();
            wait = retry.next().unwrap();
        }
        assert!(wait >= Duration::from_secs(10));
        retry.last = Instant::now().checked_sub(2 * QUIET);
        assert!(retry.next().unwrap() < Duration::from_millis(100));
    }

    fn informer() -> (Informer<ConfigMap>, Arc<Mutex<Vec<String>>>) {
        let informer = Informer::new(
            None,
            vec![(
                "uid",
                Box::new(|m: &ConfigMap| m.metadata.uid.iter().cloned().collect()),
            )],
        );
        let log = Arc::new(Mutex::new(Vec::new()));
        let l = log.clone();
        informer.on_change(move |old, new| {
            let name = |o: Option<&Arc<ConfigMap>>| {
                o.map_or("-".into(), |o| format!("{}", revision_of(o.as_ref())))
            };
            l.lock().push(format!(
                "{} {}>{}",
                new.or(old).map_or(String::new(), |o| key_of(o.as_ref())),
                name(old),
                name(new)
            ));
        });
        (informer, log)
    }

    #[tokio::test]
    async fn a_relist_tells_only_differences() {
        let (informer, log) = informer();
        informer
            .follow(stream::iter([
                Event::Init,
                Event::InitApply(map("a", 1)),
                Event::InitApply(map("b", 2)),
                Event::InitDone,
                Event::Apply(map("b", 3)),
                Event::Init,
                Event::InitApply(map("b", 3)),
                Event::InitApply(map("c", 4)),
                Event::InitDone,
                Event::Delete(map("c", 5)),
            ]))
            .await;
        assert!(informer.has_synced());
        assert_eq!(names(&informer), ["ns/b@3"]);
        assert_eq!(
            *log.lock(),
            [
                "ns/a ->1", "ns/b ->2", "ns/b 2>3", "ns/c ->4", "ns/a 1>-", "ns/c 4>-"
            ]
        );
        assert_eq!(informer.by_index("uid", "b").len(), 1);
        assert_eq!(informer.by_index("uid", "c").len(), 0);
        assert_eq!(informer.namespace("ns").len(), 1);
        assert_eq!(informer.namespace("n").len(), 0);
    }

    #[tokio::test]
    async fn own_writes_are_seen_at_once_but_never_bring_back_the_dead() {
        let (informer, _) = informer();
        let before_list = informer.mark();
        informer
            .follow(stream::iter([
                Event::Init,
                Event::InitApply(map("a", 5)),
                Event::InitDone,
            ]))
            .await;
        informer.observe(before_list, map("old", 9));
        assert_eq!(names(&informer), ["ns/a@5"], "a list came in between");
        let mark = informer.mark();
        informer.observe(mark, map("b", 7));
        assert_eq!(names(&informer), ["ns/a@5", "ns/b@7"]);
        informer
            .follow(stream::iter([
                Event::Apply(map("b", 7)),
                Event::Delete(map("b", 8)),
            ]))
            .await;
        informer.observe(mark, map("b", 7));
        assert_eq!(
            names(&informer),
            ["ns/a@5"],
            "the watch has already been past it"
        );
        informer.observe_gone("ns/a", "other");
        assert_eq!(informer.len(), 1);
        informer.observe_gone("ns/a", "a");
        assert!(informer.is_empty());
    }

    #[test]
    fn a_late_handler_is_told_what_is_there() {
        let informer = Informer::fixed([map("a", 1)]);
        let seen = Arc::new(Mutex::new(0));
        let s = seen.clone();
        informer
            .on_change(move |old, new| *s.lock() += usize::from(old.is_none() && new.is_some()));
        assert_eq!(*seen.lock(), 1);
    }
}
