//! ValidatingAdmissionPolicy.

use std::sync::Arc;

use apimachinery::resource::Resource;
use apimachinery::status::{Result, Status};
use futures::future::BoxFuture;

use super::compiled::{Binding, Policies, Policy};
use super::evaluate::{self, Refusal};
use super::{binds, matches, parameters};
use crate::admission::webhook::expressions::Scene;
use crate::admission::webhook::versions::Versioned;
use crate::admission::{Attributes, Operation, Plugin, forbidden};
use crate::authz::Authorizer;
use crate::registry::Registry;

pub struct Validating {
    policies: Policies,
    authorizer: Arc<dyn Authorizer>,
}

impl Validating {
    pub fn new(authorizer: Arc<dyn Authorizer>) -> Self {
        Self {
            policies: Policies::new(
                "validatingadmissionpolicies",
                "validatingadmissionpolicybindings",
            ),
            authorizer,
        }
    }

    /// The first refusal of a policy, as a binding of it enforces it.
    async fn judge(
        &self,
        policy: &Policy,
        attributes: &Attributes<'_>,
        registry: &Registry,
    ) -> Result<Option<Status>> {
        let mut denied = None;
        let mut deny = |binding: Option<&Binding>, refusal: &Refusal| {
            denied.get_or_insert_with(|| status(attributes, policy, binding, refusal));
        };
        let misconfigured = |message: String| Refusal {
            message,
            reason: String::new(),
        };
        if let (Err(why), false) = (&policy.matcher, policy.ignore) {
            deny(
                None,
                &misconfigured(format!("failed to configure policy: {why}")),
            );
        }
        let Some(served) = matches(policy, attributes, registry).await? else {
            return Ok(denied);
        };
        let versioned = Versioned::new(&served, attributes);
        let scene = Scene::new(attributes, &versioned, &*self.authorizer, registry).await?;
        for binding in &policy.bindings {
            let params = match binds(binding, attributes, registry).await {
                Ok(false) => continue,
                Ok(true) => parameters(policy, binding, attributes, registry).await,
                Err(why) => Err(why),
            };
            let params = match params {
                Ok(params) => params,
                Err(_) if policy.ignore => continue,
                Err(why) => {
                    let refusal = misconfigured(format!("failed to configure binding: {why}"));
                    deny(Some(binding), &refusal);
                    continue;
                }
            };
            for params in &params {
                let bindings = evaluate::bindings(policy, &scene, params.as_ref());
                for refusal in evaluate::validate(policy, &bindings).into_iter().flatten() {
                    for action in &binding.actions {
                        match action.as_str() {
                            "Deny" => deny(Some(binding), &refusal),
                            "Warn" => attributes.warnings.lock().push(format!(
                                "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                                policy.name, binding.name, refusal.message
                            )),
                            _ => {}
                        }
                    }
                }
            }
        }
        Ok(denied)
    }
}

fn status(
    attributes: &Attributes<'_>,
    policy: &Policy,
    binding: Option<&Binding>,
    refusal: &Refusal,
) -> Status {
    let with = binding.map_or_else(String::new, |b| format!(" with binding '{}'", b.name));
    let message = format!(
        "ValidatingAdmissionPolicy '{}'{with} denied request: {}",
        policy.name, refusal.message
    );
    refused(attributes, &message, &refusal.reason)
}

/// The refusal of a policy: worded as forbidden, with the reason that the policy gives.
pub fn refused(attributes: &Attributes<'_>, message: &str, reason: &str) -> Status {
    let mut status = forbidden(attributes, message).with_cause("", message, "");
    let (code, reason) = match reason {
        "Unauthorized" => (401, "Unauthorized"),
        "Forbidden" => (403, "Forbidden"),
        "RequestEntityTooLarge" => (413, "RequestEntityTooLarge"),
        _ => (422, "Invalid"),
    };
    status.code = code;
    status.reason = reason.into();
    status
}

impl Plugin for Validating {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn handles(&self, _: Operation, resource: &Resource, _: &str) -> bool {
        resource.group != super::GROUP
    }

    fn validate<'a>(
        &'a self,
        attributes: &'a Attributes<'_>,
        registry: &'a Registry,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let policies = self.policies.current(registry).await?;
            let mut denied = None;
            for policy in policies.iter() {
                let refusal = self.judge(policy, attributes, registry).await?;
                denied = denied.or(refusal);
            }
            denied.map_or(Ok(()), Err)
        })
    }
}
