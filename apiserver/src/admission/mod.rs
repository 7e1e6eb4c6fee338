//! Admission: plugins that may change a request's object before it is validated, or refuse it.
//!
//! One module per plugin of Kubernetes that is on by default; [`small`] holds those that set one thing. [`chain`]
//! puts them in Kubernetes' order.

mod certificates;
mod limit_ranger;
mod namespace;
mod node_restriction;
mod pod_security;
pub mod policy;
mod quota;
mod reinvocation;
mod service_account;
mod small;
mod topology_labels;
mod usage;
pub mod webhook;

use std::sync::Arc;

use apimachinery::resource::Resource;
use apimachinery::status::{Result, Status};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::Value;

use crate::authn::UserInfo;
use crate::authz::Authorizer;
use crate::cache::{Object, Selection};
use crate::registry::Registry;
use reinvocation::Reinvocation;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// A write on its way into the store.
#[derive(Debug)]
pub struct Attributes<'a> {
    pub operation: Operation,
    pub resource: &'a Arc<Resource>,
    /// Empty for the object itself.
    pub subresource: &'a str,
    pub namespace: &'a str,
    /// Empty when a create leaves the name to `generateName`.
    pub name: &'a str,
    pub user: &'a UserInfo,
    /// The new object; `Null` for delete. Plugins change it in `admit` only.
    pub object: &'a mut Value,
    /// The object as stored; `Null` for create.
    pub old: &'a Value,
    /// CreateOptions, UpdateOptions, PatchOptions or DeleteOptions as sent.
    pub options: &'a Value,
    pub dry_run: bool,
    /// Sent to the client as `Warning` headers.
    pub warnings: Mutex<&'a mut Vec<String>>,
    pub reinvocation: Reinvocation,
    /// The mutating phase may have changed the object.
    pub touched: bool,
}

impl Attributes<'_> {
    /// The object as it is to be or, for a delete, as it was.
    #[must_use]
    pub fn old_or_new(&self) -> &Value {
        match &*self.object {
            Value::Null => self.old,
            object => object,
        }
    }
}

pub trait Plugin: Send + Sync {
    /// The name in `--enable-admission-plugins`.
    fn name(&self) -> &'static str;

    /// Whether this plugin has anything to say; asked first, so that others cost nothing.
    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool;

    /// Whether it may look at an object's managers as things are now; they are kept apart unless somebody does.
    fn reads_managers<'a>(&'a self, _registry: &'a Registry) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async { Ok(false) })
    }

    /// Whether its mutating phase may change what it handles without saying so in [`Attributes::touched`].
    fn changes_objects(&self) -> bool {
        true
    }

    /// Mutating phase, before defaulting is repeated and the strategy validates.
    fn admit<'a>(
        &'a self,
        _attributes: &'a mut Attributes<'_>,
        _registry: &'a Registry,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Validating phase, after the strategy: must not change the object.
    fn validate<'a>(
        &'a self,
        _attributes: &'a Attributes<'_>,
        _registry: &'a Registry,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// All enabled plugins, in order.
#[derive(Default)]
pub struct Chain {
    plugins: Vec<Box<dyn Plugin>>,
}

impl Chain {
    #[must_use]
    pub fn new(plugins: Vec<Box<dyn Plugin>>) -> Self {
        Self { plugins }
    }

    pub async fn admit(&self, attributes: &mut Attributes<'_>, registry: &Registry) -> Result<()> {
        self.round(attributes, registry).await?;
        if std::mem::take(&mut attributes.reinvocation.again) {
            attributes.reinvocation.round += 1;
            self.round(attributes, registry).await?;
        }
        Ok(())
    }

    /// Whether any plugin may look at the managers of a new object.
    pub async fn reads_managers(
        &self,
        resource: &Resource,
        subresource: &str,
        registry: &Registry,
    ) -> Result<bool> {
        for plugin in &self.plugins {
            let asked = plugin.handles(Operation::Create, resource, subresource);
            if asked && plugin.reads_managers(registry).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn round(&self, attributes: &mut Attributes<'_>, registry: &Registry) -> Result<()> {
        for plugin in &self.plugins {
            if plugin.handles(
                attributes.operation,
                attributes.resource,
                attributes.subresource,
            ) {
                attributes.touched |= plugin.changes_objects();
                plugin.admit(attributes, registry).await?;
            }
        }
        Ok(())
    }

    pub async fn validate(&self, attributes: &Attributes<'_>, registry: &Registry) -> Result<()> {
        for plugin in &self.plugins {
            if plugin.handles(
                attributes.operation,
                attributes.resource,
                attributes.subresource,
            ) {
                plugin.validate(attributes, registry).await?;
            }
        }
        Ok(())
    }
}

/// The plugins that are on unless `--disable-admission-plugins` names them, in Kubernetes' order. Names in `enable`
/// are checked, so that a typing error does not pass for protection. `guards` are always on.
pub fn chain(
    enable: &[String],
    disable: &[String],
    guards: Vec<Box<dyn Plugin>>,
    authorizer: &Arc<dyn Authorizer>,
) -> Result<Chain> {
    let mut plugins: Vec<Box<dyn Plugin>> = vec![
        Box::new(namespace::NamespaceLifecycle),
        Box::new(limit_ranger::LimitRanger),
        Box::new(service_account::ServiceAccount),
        Box::new(node_restriction::NodeRestriction),
        Box::new(small::TaintNodesByCondition),
        Box::new(pod_security::PodSecurity),
        Box::new(small::Priority),
        Box::new(small::DefaultTolerationSeconds),
        Box::new(small::STORAGE_CLASS),
        Box::new(small::StorageObjectInUseProtection),
        Box::new(small::PersistentVolumeClaimResize),
        Box::new(small::RuntimeClass),
        Box::new(certificates::Approval(authorizer.clone())),
        Box::new(certificates::Signing(authorizer.clone())),
        Box::new(certificates::SubjectRestriction),
        Box::new(small::INGRESS_CLASS),
        Box::new(topology_labels::PodTopologyLabels),
        Box::new(policy::Mutating::new(authorizer.clone())),
        Box::new(webhook::Mutating::new(authorizer.clone())),
        Box::new(policy::Validating::new(authorizer.clone())),
        Box::new(webhook::Validating::new(authorizer.clone())),
        Box::new(quota::ResourceQuota),
    ];
    for name in enable.iter().chain(disable) {
        if !plugins.iter().any(|p| p.name() == name) {
            return Err(Status::bad_request(format!(
                "unknown admission plugin: {name:?}"
            )));
        }
    }
    plugins
        .retain(|p| !disable.iter().any(|d| d == p.name()) || enable.iter().any(|e| e == p.name()));
    plugins.extend(guards);
    Ok(Chain::new(plugins))
}

fn is_pod(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.plural == "pods"
}

/// An object out of the watch cache; only if it is not there, the store is asked whether it is new.
async fn cached(
    registry: &Registry,
    group: &str,
    plural: &str,
    namespace: &str,
    name: &str,
) -> Result<Option<Arc<Object>>> {
    let cache = registry.cache_of(group, plural)?;
    cache.loaded().await?;
    let key = match namespace {
        "" => name.to_owned(),
        namespace => format!("{namespace}/{name}"),
    };
    if let Some(object) = cache.get(&key) {
        return Ok(Some(object));
    }
    cache.fresh().await?;
    Ok(cache.get(&key))
}

/// The objects of a namespace (or of the cluster) out of the watch cache.
async fn cached_list(
    registry: &Registry,
    group: &str,
    plural: &str,
    namespace: &str,
) -> Result<Vec<Arc<Object>>> {
    let cache = registry.cache_of(group, plural)?;
    let reached = cache.loaded().await?;
    Ok(cache
        .list(&Selection::namespaced(namespace), reached)
        .objects)
}

/// Five characters that cannot form words, as generated names end.
fn random_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5)
        .map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())]))
        .collect()
}

/// The 403 of a plugin, in Kubernetes' words: `pods "x" is forbidden: why`.
#[must_use]
pub fn forbidden(attributes: &Attributes<'_>, why: &str) -> Status {
    Status::forbidden(&attributes.resource.group_resource(), attributes.name, why)
}
