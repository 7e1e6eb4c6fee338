//! Which resources are served, and how a path finds its own.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use apimachinery::protobuf::Message;
use apimachinery::resource::Resource;
use apimachinery::status::{Result, Status};
use bytes::Bytes;
use storage::Store;

use crate::cache::WatchCache;
use crate::codec;
use crate::fields::{self, Field};
use crate::strategy::{self, Strategy};

/// A resource in one version, with what serves it.
pub struct Served {
    pub resource: Arc<Resource>,
    pub strategy: &'static dyn Strategy,
    pub storage: Arc<Kept>,
}

/// Where a resource's objects are kept: shared by all its versions.
pub struct Kept {
    /// `/registry/pods/`
    pub prefix: String,
    /// The version that is stored.
    pub resource: Arc<Resource>,
    pub fields: &'static [Field],
    cache: OnceLock<Arc<WatchCache>>,
}

impl Kept {
    /// The watch cache, started by its first user.
    pub fn cache(&self, store: &Arc<dyn Store>) -> &Arc<WatchCache> {
        self.cache.get_or_init(|| {
            let resource = self.resource.clone();
            WatchCache::start(store.clone(), &self.prefix, resource, self.fields)
        })
    }

    /// A value of the store, in the form that we would have stored.
    pub fn adopt(&self, key: &str, stored: &Bytes) -> Result<Bytes> {
        codec::adopt(stored, &self.resource)
            .map_err(|error| Status::internal(format!("{key}: {error}")))
    }

    #[must_use]
    pub fn started(&self) -> Option<&Arc<WatchCache>> {
        self.cache.get()
    }
}

impl Served {
    /// Whether objects have to be converted between this version and the stored one.
    #[must_use]
    pub fn converts(&self) -> bool {
        !Arc::ptr_eq(&self.resource, &self.storage.resource)
    }

    /// The protobuf form of this kind, which only built-in kinds have.
    #[must_use]
    pub fn message(&self) -> Option<Message> {
        Message::find(&self.resource.api_version(), &self.resource.kind)
    }
}

type ByPlural = HashMap<String, Arc<Served>>;

/// All resources, by group, version and plural.
#[derive(Default)]
pub struct Table {
    groups: HashMap<String, HashMap<String, ByPlural>>,
    all: Vec<Arc<Served>>,
}

impl Table {
    /// Lays out the table; versions of the same objects share what is kept.
    #[must_use]
    pub fn new(resources: impl IntoIterator<Item = Arc<Resource>>) -> Self {
        let resources: Vec<_> = resources.into_iter().collect();
        let mut kept: HashMap<String, Arc<Kept>> = HashMap::new();
        // Storage versions first, so that each prefix knows what it holds.
        for resource in resources
            .iter()
            .filter(|r| r.storage_version)
            .chain(&resources)
        {
            kept.entry(resource.storage_prefix.to_string())
                .or_insert_with(|| {
                    Arc::new(Kept {
                        prefix: resource.storage_range(""),
                        resource: resource.clone(),
                        fields: fields::of(&resource.group, &resource.plural),
                        cache: OnceLock::new(),
                    })
                });
        }
        let mut table = Self::default();
        for resource in resources {
            let storage = if resource.is_stored() {
                kept[&*resource.storage_prefix].clone()
            } else {
                // Nothing is kept, but everything has a place.
                Arc::new(Kept {
                    prefix: String::new(),
                    resource: resource.clone(),
                    fields: &[],
                    cache: OnceLock::new(),
                })
            };
            let served = Arc::new(Served {
                strategy: strategy::of(&resource.group, &resource.plural),
                resource: resource.clone(),
                storage,
            });
            let versions = table.groups.entry(resource.group.to_string()).or_default();
            let plurals = versions.entry(resource.version.to_string()).or_default();
            plurals.insert(resource.plural.to_string(), served.clone());
            table.all.push(served);
        }
        table
    }

    #[must_use]
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Served>> {
        self.groups.get(group)?.get(version)?.get(plural)
    }

    /// The stored version of a resource, whatever versions are served.
    #[must_use]
    pub fn stored(&self, group: &str, plural: &str) -> Option<&Arc<Served>> {
        let mut versions = self
            .groups
            .get(group)?
            .values()
            .filter_map(|plurals| plurals.get(plural));
        let first = versions.next()?;
        Some(
            std::iter::once(first)
                .chain(versions)
                .find(|served| !served.converts())
                .unwrap_or(first),
        )
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.all.iter()
    }
}
