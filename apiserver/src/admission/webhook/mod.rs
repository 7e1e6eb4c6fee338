//! Admission webhooks: MutatingAdmissionWebhook and ValidatingAdmissionWebhook.
//!
//! [`Hooks`] keeps the configurations as they are to be used, read again only when one changes. A write goes to those
//! that [`matching`] and [`expressions`] let through: one after the other to those that may change it, at once to those
//! that may only refuse it. [`review`] is what they are asked, [`crate::outbound::webhook`] how.

pub mod expressions;
mod hooks;
pub mod matching;
pub mod review;
pub mod versions;

use std::sync::Arc;

use apimachinery::resource::Resource;
use apimachinery::status::{Result, Status};
use futures::future::{BoxFuture, join_all};
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::authz::Authorizer;
use crate::outbound::webhook::Clients;
use crate::registry::{Registry, decode};
use expressions::Scene;
use hooks::{Failure, Hook, Hooks};
use versions::Versioned;

const GROUP: &str = "admissionregistration.k8s.io";

/// What both plugins have.
struct Caller {
    hooks: Hooks,
    clients: Clients,
    authorizer: Arc<dyn Authorizer>,
}

pub struct Mutating(Caller);
pub struct Validating(Caller);

impl Mutating {
    pub fn new(authorizer: Arc<dyn Authorizer>) -> Self {
        Self(Caller::new("mutatingwebhookconfigurations", authorizer))
    }
}

impl Validating {
    pub fn new(authorizer: Arc<dyn Authorizer>) -> Self {
        Self(Caller::new("validatingwebhookconfigurations", authorizer))
    }
}

impl Caller {
    fn new(plural: &'static str, authorizer: Arc<dyn Authorizer>) -> Self {
        Self {
            hooks: Hooks::new(plural),
            clients: Clients::default(),
            authorizer,
        }
    }

    /// The write as a webhook gets it, if it is to be asked.
    async fn asked(
        &self,
        hook: &Hook,
        attributes: &Attributes<'_>,
        registry: &Registry,
    ) -> Result<Option<Versioned>> {
        let matcher = hook
            .matcher
            .as_ref()
            .map_err(|error| Status::internal(error.clone()))?;
        let Some(served) = matcher.resource(attributes, &registry.table()) else {
            return Ok(None);
        };
        if !matcher.selects(attributes, registry).await? {
            return Ok(None);
        }
        let versioned = Versioned::new(&served, attributes);
        if !hook.conditions.is_empty() {
            let authorizer = &*self.authorizer;
            let scene = Scene::new(attributes, &versioned, authorizer, registry).await?;
            match hook.conditions.hold(&scene.bindings(None)) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(_) if hook.ignore => return Ok(None),
                Err(error) => {
                    let resource = attributes.resource.group_resource();
                    return Err(Status::forbidden(&resource, attributes.name, error));
                }
            }
        }
        Ok(Some(versioned))
    }
}

impl Plugin for Mutating {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    fn changes_objects(&self) -> bool {
        false
    }

    fn handles(&self, _: Operation, resource: &Resource, _: &str) -> bool {
        resource.group != GROUP
    }

    fn reads_managers<'a>(&'a self, registry: &'a Registry) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async { Ok(!self.0.hooks.current(registry).await?.is_empty()) })
    }

    fn admit<'a>(
        &'a self,
        attributes: &'a mut Attributes<'_>,
        registry: &'a Registry,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let hooks = self.0.hooks.current(registry).await?;
            if hooks.is_empty() {
                return Ok(());
            }
            attributes.touched = true;
            attributes
                .reinvocation
                .webhooks
                .begin(attributes.reinvocation.round, attributes.object);
            for hook in hooks.iter() {
                self.mutate(hook, attributes, registry).await?;
            }
            attributes.reinvocation.webhooks.end(attributes.object);
            Ok(())
        })
    }
}

impl Mutating {
    async fn mutate(
        &self,
        hook: &Hook,
        attributes: &mut Attributes<'_>,
        registry: &Registry,
    ) -> Result<()> {
        let Some(versioned) = self.0.asked(hook, attributes, registry).await? else {
            return Ok(());
        };
        let key = format!("{}/{}", hook.configuration, hook.name);
        let round = attributes.reinvocation.round;
        if round > 0 && !attributes.reinvocation.webhooks.wants(&key) {
            return Ok(());
        }
        let outcome = hook
            .call(&self.0.clients, registry, attributes, &versioned, true)
            .await
            .and_then(|verdict| patched(hook, &versioned, verdict));
        let changed = match outcome {
            Ok(Some(object)) if object != versioned.object => {
                let resource = attributes.resource;
                let table = registry.table();
                let own = table.find(&resource.group, &resource.version, &resource.plural);
                *attributes.object = match own {
                    Some(own) => versioned.back(object, own),
                    None => object,
                };
                true
            }
            Ok(_) => false,
            Err(Failure::Call(why)) if hook.ignore => {
                tracing::warn!(webhook = hook.name, %why, "failed calling webhook, failing open");
                false
            }
            Err(failure) => return Err(failure.status(&hook.name)),
        };
        if changed {
            attributes.reinvocation.changed_by_webhook();
        }
        if hook.reinvoke {
            attributes.reinvocation.webhooks.invoked(key);
        }
        Ok(())
    }
}

/// The object as a webhook's patch makes it, complete again; none if there is no patch.
fn patched(
    hook: &Hook,
    versioned: &Versioned,
    verdict: review::Verdict,
) -> std::result::Result<Option<Value>, Failure> {
    let Some(patch) = verdict.patch else {
        return Ok(None);
    };
    let patch: Value = serde_json::from_slice(&patch).map_err(|error| {
        Failure::Call(format!(
            "received undecodable patch in webhook response: {error}"
        ))
    })?;
    if patch.as_array().is_some_and(Vec::is_empty) {
        return Ok(None);
    }
    if versioned.object.is_null() {
        return Err(Failure::Internal(format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            hook.name
        )));
    }
    if verdict.patch_type != "JSONPatch" {
        return Err(Failure::Call(format!(
            "unsupported patch type {:?}",
            verdict.patch_type
        )));
    }
    let mut object = versioned.object.clone();
    apimachinery::patch::json_patch(&mut object, &patch)
        .map_err(|error| Failure::Internal(error.message))?;
    let served = &versioned.served;
    if versioned.kind.2 == served.resource.kind {
        let schema = &served.resource.schema;
        schema.conform(&mut object).map_err(Failure::Internal)?;
        schema.prune(&mut object);
        object = decode::complete(served, object);
    }
    Ok(Some(object))
}

impl Plugin for Validating {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    fn changes_objects(&self) -> bool {
        false
    }

    fn handles(&self, _: Operation, resource: &Resource, _: &str) -> bool {
        resource.group != GROUP
    }

    fn reads_managers<'a>(&'a self, registry: &'a Registry) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async { Ok(!self.0.hooks.current(registry).await?.is_empty()) })
    }

    fn validate<'a>(
        &'a self,
        attributes: &'a Attributes<'_>,
        registry: &'a Registry,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let hooks = self.0.hooks.current(registry).await?;
            let mut asked = Vec::new();
            for hook in hooks.iter() {
                if let Some(versioned) = self.0.asked(hook, attributes, registry).await? {
                    asked.push((hook, versioned));
                }
            }
            let calls = asked.iter().map(|(hook, versioned)| async move {
                let outcome = hook
                    .call(&self.0.clients, registry, attributes, versioned, false)
                    .await;
                match outcome {
                    Ok(_) => Ok(()),
                    Err(Failure::Call(why)) if hook.ignore => {
                        tracing::warn!(webhook = hook.name, %why, "failed calling webhook, failing open");
                        Ok(())
                    }
                    Err(failure) => Err(failure.status(&hook.name)),
                }
            });
            join_all(calls).await.into_iter().collect()
        })
    }
}
