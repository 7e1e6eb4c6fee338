//! Custom resources: kinds that users define, served on the same path as built-in ones.
//!
//! A CustomResourceDefinition is itself a built-in kind with a [`strategy`] (its validation is in [`check`],
//! [`structural`] and [`defaults`]). [`Controller`] follows all definitions: it settles their [`names`] and conditions,
//! makes what they define into served resources ([`serve`]: [`custom`] is their strategy, [`convert`] their versions),
//! and lets deleted ones go when no instance is left ([`finalize`]). It is level-triggered and keeps nothing, so
//! several API servers over one store agree.
//!
//! What a schema says of values is in [`value`] and [`lists`]; its rules in CEL are in [`rules`], and what is
//! asked of them when a definition is written in [`rule_check`].

mod check;
mod convert;
mod custom;
mod defaults;
pub mod definition;
mod field_path;
mod finalize;
mod formats;
mod lists;
mod names;
mod rule_check;
mod rules;
mod schema_check;
mod serve;
pub mod strategy;
mod structural;
mod value;
mod webhook;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::object;
use apimachinery::status::{Result, Status};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cache::{Selection, WatchCache};
use crate::registry::Registry;
use crate::registry::table::Served;
pub use custom::nested;
use definition::{GROUP, PLURAL};

/// How long a request for something unknown waits for definitions that are new.
const CATCH_UP: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(1);

/// Follows the definitions.
pub struct Controller {
    registry: Arc<Registry>,
    cache: Arc<WatchCache>,
    /// The change up to which what is served reflects the definitions; 0 before the first pass.
    applied: watch::Sender<u64>,
    /// What is served, by definition.
    served: Mutex<HashMap<String, Defined>>,
    finalizing: Arc<Mutex<std::collections::HashSet<String>>>,
}

impl Controller {
    pub fn new(registry: &Arc<Registry>) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            registry: registry.clone(),
            cache: registry.cache_of(GROUP, PLURAL)?,
            applied: watch::Sender::new(0),
            served: Mutex::default(),
            finalizing: Arc::default(),
        }))
    }

    /// Runs until the server shuts down.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                result = self.follow() => if let Err(error) = result {
                    tracing::warn!(%error, "following custom resource definitions failed; starting over");
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    async fn follow(self: &Arc<Self>) -> Result<()> {
        let reached = self.cache.loaded().await?;
        let changes = self.cache.subscribe(Selection::default(), false, reached);
        loop {
            let again = self.pass().await;
            let next = changes.receiver.changed();
            // Something failed, or waits for somebody else: look again soon.
            let soon = async {
                match again {
                    true => tokio::time::sleep(RETRY).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                more = next => if !more { return Ok(()); },
                () = soon => {}
            }
        }
    }

    /// Brings everything in line with the definitions as they are now. Whether to come again unasked.
    async fn pass(self: &Arc<Self>) -> bool {
        let last_change = self.cache.last_change();
        let reached = self.cache.settled();
        let snapshot = self.cache.list(&Selection::default(), reached);
        let mut definitions: Vec<Value> = snapshot
            .objects
            .iter()
            .map(|object| object.value())
            .collect();
        // Whoever came first has the better claim to a name.
        definitions.sort_by_cached_key(|d| {
            let created = object::creation_timestamp(d).unwrap_or_default().to_owned();
            (created, object::name(d).to_owned())
        });
        let again = self.settle_names(&mut definitions).await;
        self.serve(&definitions);
        self.applied.send_replace(last_change.max(1));
        for definition in &definitions {
            self.finalize(definition);
        }
        again
    }

    /// Writes the conditions of those definitions whose names are not settled yet.
    async fn settle_names(&self, definitions: &mut [Value]) -> bool {
        let mut again = false;
        for index in 0..definitions.len() {
            let current = &definitions[index];
            let others: Vec<&Value> = definitions
                .iter()
                .enumerate()
                .filter(|(at, other)| {
                    *at != index && definition::group(other) == definition::group(current)
                })
                .map(|(_, other)| other)
                .collect();
            let Some(planned) = names::plan(current, &others, Registry::now()) else {
                continue;
            };
            let version = object::resource_version(current).to_owned();
            let name = object::name(current).to_owned();
            let status = planned["status"].clone();
            let change = |current: &mut Value| {
                if object::resource_version(current) != version {
                    return Err(Status::stale(
                        &apimachinery::resource::GroupResource::new(GROUP, PLURAL),
                        object::name(current),
                    ));
                }
                current["status"] = status.clone();
                Ok(())
            };
            let key = ("", name.as_str());
            match self
                .registry
                .update_status_as_server(GROUP, PLURAL, key, change)
                .await
            {
                Ok(written) => definitions[index] = written.value(),
                // Somebody else was faster, and the watch will tell what they did.
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => {
                    tracing::warn!(definition = name, %error, "conditions could not be written");
                    again = true;
                }
            }
        }
        again
    }

    /// Serves what is accepted. Definitions that say the same as before keep what they have, watches included.
    fn serve(&self, definitions: &[Value]) {
        let mut served = self.served.lock();
        let mut before = std::mem::take(&mut *served);
        let registry = Arc::downgrade(&self.registry);
        for definition in definitions {
            let accepted = definition::is_true(definition, "NamesAccepted");
            if !accepted && !definition::is_established(definition) {
                continue;
            }
            let name = object::name(definition).to_owned();
            let fresh = Defined {
                essence: essence(definition),
                terminating: definition::is_true(definition, "Terminating"),
                resources: Vec::new(),
            };
            let resources = match before.remove(&name) {
                Some(old) if old.essence == fresh.essence => {
                    if old.terminating == fresh.terminating {
                        old.resources
                    } else {
                        serve::with_verbs(old.resources, fresh.terminating)
                    }
                }
                old => {
                    retire(old);
                    serve::resources(definition, &registry)
                }
            };
            served.insert(name, Defined { resources, ..fresh });
        }
        before.into_values().for_each(|old| retire(Some(old)));
        let mut all: Vec<_> = served
            .values()
            .flat_map(|d| &d.resources)
            .cloned()
            .collect();
        // Groups by name, versions as they are (sorted by priority), kinds by name.
        all.sort_by(|a, b| {
            let (a, b) = (&a.resource, &b.resource);
            let versions = || apimachinery::discovery::compare_versions(&b.version, &a.version);
            a.group
                .cmp(&b.group)
                .then_with(versions)
                .then_with(|| a.plural.cmp(&b.plural))
        });
        self.registry.set_custom(all);
    }

    fn finalize(&self, definition: &Value) {
        let deleted = object::deletion_timestamp(definition).is_some();
        if !deleted || !object::finalizers(definition).any(|f| f == definition::CLEANUP) {
            return;
        }
        let uid = object::uid(definition).to_owned();
        if !self.finalizing.lock().insert(uid.clone()) {
            return;
        }
        let (registry, finalizing) = (self.registry.clone(), self.finalizing.clone());
        let definition = definition.clone();
        tokio::spawn(async move {
            finalize::run(&registry, &definition).await;
            finalizing.lock().remove(&uid);
        });
    }

    /// Waits for the first pass.
    pub async fn synced(&self) {
        let _ = self
            .applied
            .subscribe()
            .wait_for(|applied| *applied > 0)
            .await;
    }

    /// Waits until what is served reflects every definition written until now, on whichever server.
    pub async fn caught_up(&self) -> Result<()> {
        let wait = async {
            self.cache.fresh().await?;
            let wanted = self.cache.last_change();
            // The sender lives in `self`, so waiting cannot fail.
            let _ = self
                .applied
                .subscribe()
                .wait_for(|applied| *applied >= wanted.max(1))
                .await;
            Ok(())
        };
        tokio::time::timeout(CATCH_UP, wait).await.unwrap_or(Ok(()))
    }
}

/// What is served of one definition.
struct Defined {
    /// What it was made from: as long as this is the same, its watches go on.
    essence: Value,
    terminating: bool,
    resources: Vec<Arc<Served>>,
}

fn essence(definition: &Value) -> Value {
    serde_json::json!({
        "uid": object::uid(definition), "spec": definition["spec"], "names": definition["status"]["acceptedNames"],
    })
}

/// Ends the watches of resources that are no longer served, or not so. Events under way are seen first.
fn retire(old: Option<Defined>) {
    for served in old.into_iter().flat_map(|defined| defined.resources) {
        if let Some(cache) = served.storage.started().cloned() {
            tokio::spawn(async move {
                let _ = cache.fresh().await;
                cache.close();
            });
        }
    }
}
