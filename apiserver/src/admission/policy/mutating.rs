//! MutatingAdmissionPolicy.

use std::sync::Arc;

use apimachinery::managed::merge::merge as merge_typed;
use apimachinery::object;
use apimachinery::patch::json_patch;
use apimachinery::resource::Resource;
use apimachinery::status::Result;
use futures::future::BoxFuture;
use serde_json::Value;

use super::compiled::{Binding, Mutation, Policies, Policy};
use super::validating::refused;
use super::{binds, evaluate, matches, parameters};
use crate::admission::webhook::expressions::Scene;
use crate::admission::webhook::versions::Versioned;
use crate::admission::{Attributes, Operation, Plugin};
use crate::authz::Authorizer;
use crate::cel::Budget;
use crate::registry::{Registry, decode};

pub struct Mutating {
    policies: Policies,
    authorizer: Arc<dyn Authorizer>,
}

impl Mutating {
    pub fn new(authorizer: Arc<dyn Authorizer>) -> Self {
        Self {
            policies: Policies::new(
                "mutatingadmissionpolicies",
                "mutatingadmissionpolicybindings",
            ),
            authorizer,
        }
    }

    async fn apply(
        &self,
        policy: &Policy,
        binding: &Binding,
        attributes: &mut Attributes<'_>,
        registry: &Registry,
    ) -> std::result::Result<(), String> {
        if !binds(binding, attributes, registry).await? {
            return Ok(());
        }
        for params in parameters(policy, binding, attributes, registry).await? {
            let name = params.as_ref().map_or("", object::name);
            let key = format!("{}/{}/{name}", policy.name, binding.name);
            if attributes.reinvocation.round > 0 && !attributes.reinvocation.policies.wants(&key) {
                continue;
            }
            let mut changed = false;
            for mutation in &policy.mutations {
                changed |= self
                    .mutate(policy, mutation, params.as_ref(), attributes, registry)
                    .await?;
            }
            if changed {
                attributes.reinvocation.changed_by_policy();
            }
            if policy.reinvoke {
                attributes.reinvocation.policies.invoked(key);
            }
        }
        Ok(())
    }

    /// One mutation; whether it changed the object.
    async fn mutate(
        &self,
        policy: &Policy,
        mutation: &Mutation,
        params: Option<&Value>,
        attributes: &mut Attributes<'_>,
        registry: &Registry,
    ) -> std::result::Result<bool, String> {
        let served = matches(policy, attributes, registry)
            .await
            .map_err(|error| error.message)?;
        let Some(served) = served.filter(|_| attributes.object.is_object()) else {
            return Ok(false);
        };
        let versioned = Versioned::new(&served, attributes);
        let scene = Scene::new(attributes, &versioned, &*self.authorizer, registry)
            .await
            .map_err(|error| error.message)?;
        let object = {
            let bindings = evaluate::bindings(policy, &scene, params);
            if !policy.conditions.hold(&bindings)? {
                return Ok(false);
            }
            let mut budget = Budget::for_object();
            let mut object = versioned.object.clone();
            match mutation {
                Mutation::Apply(expression) => {
                    let value = evaluate::value(expression, &bindings, &mut budget)?;
                    let patch = value.to_json().map_err(|error| error.to_string())?;
                    merge(&mut object, patch, &served.resource)?;
                }
                Mutation::Patch(expression) => {
                    let value = evaluate::value(expression, &bindings, &mut budget)?;
                    let patch = value.to_json().map_err(|error| error.to_string())?;
                    json_patch(&mut object, &patch)
                        .map_err(|error| format!("JSON Patch: {}", error.message))?;
                }
            }
            object
        };
        let schema = &served.resource.schema;
        let mut object = object;
        // A subresource's own type has no schema here.
        if versioned.kind.2 == served.resource.kind {
            schema.conform(&mut object)?;
            schema.prune(&mut object);
            object = decode::complete(&served, object);
        }
        if object == versioned.object {
            return Ok(false);
        }
        let (resource, table) = (attributes.resource, registry.table());
        let own = table.find(&resource.group, &resource.version, &resource.plural);
        *attributes.object = match own {
            Some(own) => versioned.back(object, own),
            None => object,
        };
        Ok(true)
    }
}

/// Merges what an expression built, as server-side apply merges.
fn merge(object: &mut Value, patch: Value, resource: &Resource) -> std::result::Result<(), String> {
    for field in ["apiVersion", "kind"] {
        if patch
            .get(field)
            .is_some_and(|value| *value != object[field])
        {
            return Err(format!("must not change {field}"));
        }
    }
    *object = merge_typed(&resource.schema, object, &patch)
        .map_err(|error| format!("error applying patch: {error}"))?;
    Ok(())
}

impl Plugin for Mutating {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }

    fn changes_objects(&self) -> bool {
        false
    }

    fn handles(&self, operation: Operation, resource: &Resource, _: &str) -> bool {
        resource.group != super::GROUP && operation != Operation::Delete
    }

    fn reads_managers<'a>(&'a self, registry: &'a Registry) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async { Ok(!self.policies.current(registry).await?.is_empty()) })
    }

    fn admit<'a>(
        &'a self,
        attributes: &'a mut Attributes<'_>,
        registry: &'a Registry,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let policies = self.policies.current(registry).await?;
            if policies.is_empty() {
                return Ok(());
            }
            attributes.touched = true;
            attributes
                .reinvocation
                .policies
                .begin(attributes.reinvocation.round, attributes.object);
            for policy in policies.iter() {
                if matches(policy, attributes, registry).await?.is_none() {
                    continue;
                }
                for binding in &policy.bindings {
                    let applied = self.apply(policy, binding, attributes, registry).await;
                    if let (Err(why), false) = (applied, policy.ignore) {
                        let message = format!(
                            "policy '{}' with binding '{}' denied request: {why}",
                            policy.name, binding.name
                        );
                        return Err(refused(attributes, &message, ""));
                    }
                }
            }
            attributes.reinvocation.policies.end(attributes.object);
            Ok(())
        })
    }
}
