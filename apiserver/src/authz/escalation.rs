//! Keeps users from granting, through roles and bindings, what they do not hold themselves.
//!
//! A role may contain only what its writer may do, unless they may `escalate` it; a binding may give only what its
//! writer may do, unless they may `bind` that role. Members of `system:masters` are free.

use std::sync::Arc;

use apimachinery::resource::Resource;
use apimachinery::status::{Result, Status};
use futures::future::BoxFuture;
use serde_json::Value;

use super::rbac::{GROUP, Rbac};
use super::rules::Rule;
use super::{Authorizer, Decision};
use crate::admission::{Attributes, Operation, Plugin, forbidden};
use crate::authn::MASTERS;
use crate::registry::Registry;
use crate::strategy::check::{list, same, text};

pub struct Escalation {
    pub rbac: Arc<Rbac>,
    pub authorizer: Arc<dyn Authorizer>,
}

impl Escalation {
    async fn may(&self, a: &Attributes<'_>, verb: &str, plural: &str, name: &str) -> bool {
        let kind = (GROUP, plural);
        let attributes = super::Attributes::special(a.user, verb, a.namespace, kind, name);
        matches!(
            self.authorizer.authorize(&attributes).await,
            Decision::Allow(_)
        )
    }

    async fn confirm(&self, a: &Attributes<'_>, rules: &[Rule]) -> Result<()> {
        match self
            .rbac
            .confirm_no_escalation(a.user, a.namespace, rules)
            .await?
        {
            None => Ok(()),
            Some(why) => Err(forbidden(a, &why)),
        }
    }

    async fn role(&self, a: &Attributes<'_>) -> Result<()> {
        if self.may(a, "escalate", &a.resource.plural, a.name).await {
            return Ok(());
        }
        let rules: Vec<Rule> =
            serde_json::from_value(a.object["rules"].clone()).unwrap_or_default();
        self.confirm(a, &rules).await?;
        let aggregates =
            |o: &Value| !list(&o["aggregationRule"], "clusterRoleSelectors").is_empty();
        if aggregates(a.object) || aggregates(a.old) {
            let everything = || vec!["*".to_owned()];
            let full = [
                Rule {
                    verbs: everything(),
                    api_groups: everything(),
                    resources: everything(),
                    ..Rule::default()
                },
                Rule {
                    verbs: everything(),
                    non_resource_urls: everything(),
                    ..Rule::default()
                },
            ];
            if self
                .rbac
                .confirm_no_escalation(a.user, "", &full)
                .await?
                .is_some()
            {
                return Err(forbidden(
                    a,
                    "must have cluster-admin privileges to use the aggregationRule",
                ));
            }
        }
        Ok(())
    }

    async fn binding(&self, a: &Attributes<'_>) -> Result<()> {
        let reference = &a.object["roleRef"];
        let (kind, name) = (text(reference, "kind"), text(reference, "name"));
        let plural = if kind == "Role" {
            "roles"
        } else {
            "clusterroles"
        };
        if self.may(a, "bind", plural, name).await {
            return Ok(());
        }
        match self.rbac.role_rules(kind, a.namespace, name).await? {
            Some(rules) => self.confirm(a, &rules).await,
            None => Err(Status::not_found(
                &apimachinery::resource::GroupResource::new(GROUP, plural),
                name,
            )),
        }
    }
}

impl Plugin for Escalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    fn changes_objects(&self) -> bool {
        false
    }

    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        resource.group == GROUP
            && subresource.is_empty()
            && matches!(operation, Operation::Create | Operation::Update)
    }

    fn validate<'a>(&'a self, a: &'a Attributes<'_>, _: &'a Registry) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if a.user.in_group(MASTERS) || only_garbage_collection(a.object, a.old) {
                return Ok(());
            }
            match &*a.resource.plural {
                "roles" | "clusterroles" => self.role(a).await,
                "rolebindings" | "clusterrolebindings" => self.binding(a).await,
                _ => Ok(()),
            }
        })
    }
}

/// An update that touches only finalizers and owners, as the garbage collector does.
fn only_garbage_collection(new: &Value, old: &Value) -> bool {
    if old.is_null() {
        return false;
    }
    let bare = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in [
                "finalizers",
                "ownerReferences",
                "managedFields",
                "resourceVersion",
            ] {
                metadata.remove(field);
            }
        }
        object
    };
    same(&bare(new), &bare(old))
}
