//! ConfigMaps and Secrets, only those that pods of this node name: a node may read
//! nothing else. Content is fetched when needed and never kept; what a live volume shows
//! is watched object by object, and a change wakes the pods that show it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::Api;
use kube::runtime::watcher::{Config, Event};
use kube::{Client, Resource};
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    ConfigMap,
    Secret,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

pub type Payload = BTreeMap<String, Vec<u8>>;
/// Kind, namespace and name.
pub type Key = (Kind, String, String);

struct Watched {
    task: AbortHandle,
    users: HashSet<String>,
}

#[derive(Default)]
struct State {
    watched: HashMap<Key, Watched>,
    /// The resource version last handed out, so that a watch reports only what is newer.
    versions: HashMap<Key, String>,
}

pub struct Objects {
    client: Client,
    state: Arc<Mutex<State>>,
    changed: UnboundedSender<String>,
}

impl Objects {
    /// `changed` gets the uid of every pod that shows an object which has changed.
    pub fn new(client: Client, changed: UnboundedSender<String>) -> Self {
        Objects {
            client,
            state: Arc::default(),
            changed,
        }
    }

    /// The object's content as of now, or `None` if there is no such object.
    pub async fn get(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Payload>>, kube::Error> {
        let (payload, version) = match kind {
            Kind::ConfigMap => {
                let Some(map) = Api::<ConfigMap>::namespaced(self.client.clone(), namespace)
                    .get_opt(name)
                    .await?
                else {
                    return Ok(None);
                };
                let version = map.metadata.resource_version.clone();
                (config_map_payload(map), version)
            }
            Kind::Secret => {
                let Some(secret) = Api::<Secret>::namespaced(self.client.clone(), namespace)
                    .get_opt(name)
                    .await?
                else {
                    return Ok(None);
                };
                let version = secret.metadata.resource_version.clone();
                (
                    secret
                        .data
                        .unwrap_or_default()
                        .into_iter()
                        .map(|(k, v)| (k, v.0))
                        .collect(),
                    version,
                )
            }
        };
        let key = (kind, namespace.to_string(), name.to_string());
        let mut state = self.state.lock();
        if state.watched.contains_key(&key) || !state.versions.contains_key(&key) {
            state.versions.insert(key, version.unwrap_or_default());
        }
        Ok(Some(Arc::new(payload)))
    }

    /// Sets which objects the pod shows from now on; an empty set forgets the pod.
    pub fn follow(&self, uid: &str, keys: &HashSet<Key>) {
        let mut state = self.state.lock();
        for key in keys {
            if !state.watched.contains_key(key) {
                let task = self.watch(key.clone());
                state.watched.insert(
                    key.clone(),
                    Watched {
                        task,
                        users: HashSet::new(),
                    },
                );
            }
        }
        let mut unused = Vec::new();
        for (key, watched) in &mut state.watched {
            if keys.contains(key) {
                watched.users.insert(uid.to_string());
            } else {
                watched.users.remove(uid);
            }
            if watched.users.is_empty() {
                watched.task.abort();
                unused.push(key.clone());
            }
        }
        for key in unused {
            state.watched.remove(&key);
        }
        let State { watched, versions } = &mut *state;
        versions.retain(|key, _| watched.contains_key(key));
    }

    fn watch(&self, key: Key) -> AbortHandle {
        let (client, state, changed) = (
            self.client.clone(),
            self.state.clone(),
            self.changed.clone(),
        );
        tokio::spawn(async move {
            match key.0 {
                Kind::ConfigMap => watch_one::<ConfigMap>(client, key, state, changed).await,
                Kind::Secret => watch_one::<Secret>(client, key, state, changed).await,
            }
        })
        .abort_handle()
    }
}

async fn watch_one<K>(
    client: Client,
    key: Key,
    state: Arc<Mutex<State>>,
    changed: UnboundedSender<String>,
) where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug
        + Send
        + 'static,
{
    let api = Api::<K>::namespaced(client, &key.1);
    let mut events = Box::pin(client::informer::events(
        api,
        Config::default().fields(&format!("metadata.name={}", key.2)),
    ));
    while let Some(event) = events.next().await {
        let version = match event {
            Event::Apply(o) | Event::InitApply(o) => {
                o.meta().resource_version.clone().unwrap_or_default()
            }
            Event::Delete(_) => String::new(),
            Event::Init | Event::InitDone => continue,
        };
        let state = &mut *state.lock();
        if state
            .versions
            .insert(key.clone(), version.clone())
            .as_deref()
            == Some(&version)
        {
            continue;
        }
        for uid in state.watched.get(&key).iter().flat_map(|w| &w.users) {
            // The receiver lives as long as the process.
            let _ = changed.send(uid.clone());
        }
    }
}

fn config_map_payload(map: ConfigMap) -> Payload {
    let text = map
        .data
        .unwrap_or_default()
        .into_iter()
        .map(|(k, v)| (k, v.into_bytes()));
    let binary = map
        .binary_data
        .unwrap_or_default()
        .into_iter()
        .map(|(k, v)| (k, v.0));
    text.chain(binary).collect()
}
