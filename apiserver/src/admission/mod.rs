//! Admission: plugins that may change a request's object before it is validated, or refuse it.

use std::sync::Arc;

use apimachinery::resource::Resource;
use apimachinery::status::{Result, Status};
use futures::future::BoxFuture;
use serde_json::Value;

use crate::authn::UserInfo;
use crate::registry::Registry;

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
    pub warnings: &'a mut Vec<String>,
}

pub trait Plugin: Send + Sync {
    /// The name in `--enable-admission-plugins`.
    fn name(&self) -> &'static str;

    /// Whether this plugin has anything to say; asked first, so that others cost nothing.
    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool;

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
        for plugin in &self.plugins {
            if plugin.handles(
                attributes.operation,
                attributes.resource,
                attributes.subresource,
            ) {
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

/// The 403 of a plugin, in Kubernetes' words: `pods "x" is forbidden: why`.
#[must_use]
pub fn forbidden(attributes: &Attributes<'_>, why: &str) -> Status {
    Status::forbidden(&attributes.resource.group_resource(), attributes.name, why)
}
