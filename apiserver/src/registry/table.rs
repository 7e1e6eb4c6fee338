//! Which resources are served, and how a path finds its own.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use apimachinery::protobuf::Message;
use apimachinery::resource::Resource;
use apimachinery::status::{Result, Status};
use bytes::Bytes;
use storage::Store;

use super::versions::Versions;
use crate::cache::WatchCache;
use crate::codec;
use crate::fields::{self, Fields};
use crate::strategy::{self, Rules};

/// A resource in one version, with what serves it.
pub struct Served {
    pub resource: Arc<Resource>,
    pub strategy: Rules,
    pub storage: Arc<Kept>,
    /// What users of this version are warned of.
    pub deprecation: Option<String>,
    /// Tells documents about this resource apart, on every server alike; 0 for built-in kinds.
    pub fingerprint: u64,
}

/// Where a resource's objects are kept: shared by all versions of a built-in kind. A custom resource's versions have
/// one each, since each is converted and defaulted on its own.
pub struct Kept {
    /// `/registry/pods/`
    pub prefix: String,
    /// The version that is stored.
    pub resource: Arc<Resource>,
    pub fields: Fields,
    /// How what is stored becomes what is served, if it is not the same.
    pub versions: Option<Arc<dyn Versions>>,
    cache: OnceLock<Arc<WatchCache>>,
}

impl Kept {
    #[must_use]
    pub fn new(
        resource: &Arc<Resource>,
        fields: Fields,
        versions: Option<Arc<dyn Versions>>,
    ) -> Self {
        Self {
            prefix: match resource.is_stored() {
                true => resource.storage_range(""),
                false => String::new(),
            },
            resource: resource.clone(),
            fields,
            versions,
            cache: OnceLock::new(),
        }
    }

    /// The watch cache, started by its first user.
    pub fn cache(&self, store: &Arc<dyn Store>) -> &Arc<WatchCache> {
        self.cache.get_or_init(|| {
            WatchCache::start(
                store.clone(),
                &self.prefix,
                self.resource.clone(),
                self.fields.clone(),
                self.versions.clone(),
            )
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
    /// Whether objects have to be converted between this version and the stored one. Those of custom resources have
    /// been when they are read.
    #[must_use]
    pub fn converts(&self) -> bool {
        self.storage.versions.is_none() && !Arc::ptr_eq(&self.resource, &self.storage.resource)
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
    /// How many of them are built in; custom resources follow.
    builtin: usize,
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
                    let fields = fields::of(&resource.group, &resource.plural);
                    Arc::new(Kept::new(resource, fields.into(), None))
                });
        }
        let mut table = Self::default();
        for resource in resources {
            let storage = if resource.is_stored() {
                kept[&*resource.storage_prefix].clone()
            } else {
                // Nothing is kept, but everything has a place.
                Arc::new(Kept::new(&resource, Fields::default(), None))
            };
            let served = Arc::new(Served {
                strategy: Rules::Builtin(strategy::of(&resource.group, &resource.plural)),
                resource: resource.clone(),
                storage,
                deprecation: None,
                fingerprint: 0,
            });
            table.insert(served);
        }
        table.builtin = table.all.len();
        table
    }

    fn insert(&mut self, served: Arc<Served>) {
        let resource = &served.resource;
        let versions = self.groups.entry(resource.group.to_string()).or_default();
        let plurals = versions.entry(resource.version.to_string()).or_default();
        plurals.insert(resource.plural.to_string(), served.clone());
        self.all.push(served);
    }

    /// The same built-in kinds with these custom resources. A built-in kind is never replaced.
    #[must_use]
    pub fn with_custom(&self, custom: Vec<Arc<Served>>) -> Self {
        let mut table = Self::default();
        for served in &self.all[..self.builtin] {
            table.insert(served.clone());
        }
        table.builtin = self.builtin;
        for served in custom {
            let resource = &served.resource;
            if table
                .find(&resource.group, &resource.version, &resource.plural)
                .is_none()
            {
                table.insert(served);
            }
        }
        table
    }

    /// Changes with the custom resources that are meant.
    pub fn fingerprint(&self, meant: impl Fn(&Resource) -> bool) -> u64 {
        let custom = self.all[self.builtin..].iter();
        custom
            .filter(|served| meant(&served.resource))
            .fold(0, |sum, served| sum.wrapping_add(served.fingerprint))
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
                .find(|served| served.resource.storage_version)
                .unwrap_or(first),
        )
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.all.iter()
    }
}
