//! NamespaceLifecycle: nothing is created in a namespace that is missing or going away; three namespaces stay.

use apimachinery::resource::{GroupResource, Resource};
use apimachinery::status::{Result, Status};
use futures::future::BoxFuture;

use super::{Attributes, Operation, Plugin, cached};
use crate::registry::Registry;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub struct NamespaceLifecycle;

impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn changes_objects(&self) -> bool {
        false
    }

    fn handles(&self, operation: Operation, resource: &Resource, _: &str) -> bool {
        match operation {
            Operation::Delete => resource.group.is_empty() && resource.plural == "namespaces",
            // Whoever asks about permissions must not learn which namespaces exist.
            Operation::Create | Operation::Update => {
                resource.namespaced && resource.plural != "localsubjectaccessreviews"
            }
            Operation::Connect => false,
        }
    }

    fn admit<'a>(
        &'a self,
        a: &'a mut Attributes<'_>,
        registry: &'a Registry,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let namespaces = GroupResource::new("", "namespaces");
            if a.operation == Operation::Delete {
                if IMMORTAL.contains(&a.name) {
                    return Err(Status::forbidden(
                        &namespaces,
                        a.name,
                        "this namespace may not be deleted",
                    ));
                }
                return Ok(());
            }
            if a.namespace.is_empty() {
                return Ok(());
            }
            let Some(namespace) = cached(registry, "", "namespaces", "", a.namespace).await? else {
                return Err(Status::not_found(&namespaces, a.namespace));
            };
            let phase = namespace.fields.first().map_or("", |phase| &**phase);
            if a.operation == Operation::Create && phase == "Terminating" {
                let name = a.namespace;
                let why = format!(
                    "unable to create new content in namespace {name} because it is being terminated"
                );
                let cause = format!("namespace {name} is being terminated");
                return Err(super::forbidden(a, &why).with_cause(
                    "NamespaceTerminating",
                    cause,
                    "metadata.namespace",
                ));
            }
            Ok(())
        })
    }
}
