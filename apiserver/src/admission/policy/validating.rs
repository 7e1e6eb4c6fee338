//! ValidatingAdmissionPolicy.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::resource::Resource;
use apimachinery::status::{Result, Status};
use futures::future::BoxFuture;
use serde_json::json;

use super::compiled::{Binding, Policies, Policy};
use super::evaluate::{self, Refusal};
use super::{binds, matches, parameters};
use crate::admission::webhook::expressions::Scene;
use crate::admission::webhook::versions::Versioned;
use crate::admission::{Attributes, Operation, Plugin, forbidden};
use crate::audit;
use crate::authz::Authorizer;
use crate::registry::Registry;

const VALIDATION_FAILURE: &str = "validation.policy.admission.k8s.io/validation_failure";
const LONGEST_ANNOTATION: usize = 10 << 10;

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
        let mut annotations = Annotations::default();
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
                let verdict = evaluate::validate(policy, &bindings);
                let refusals = verdict.decisions.iter().enumerate();
                for (index, refusal) in refusals.filter_map(|(i, d)| Some((i, d.as_ref()?))) {
                    for action in &binding.actions {
                        match action.as_str() {
                            "Deny" => deny(Some(binding), refusal),
                            "Warn" => attributes.warnings.lock().push(format!(
                                "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                                policy.name, binding.name, refusal.message
                            )),
                            _ => audit_failure(policy, binding, index, refusal),
                        }
                    }
                }
                for (key, text) in verdict.annotations {
                    match text {
                        Ok(text) => annotations.add(key, text),
                        // Whatever the actions are.
                        Err(refusal) => deny(Some(binding), &refusal),
                    }
                }
            }
        }
        annotations.publish(&policy.name);
        Ok(denied)
    }
}

/// What a policy's bindings and parameters give each key: every value once.
#[derive(Default)]
struct Annotations(BTreeMap<String, Vec<String>>);

impl Annotations {
    fn add(&mut self, key: String, mut text: String) {
        text.truncate(text.floor_char_boundary(LONGEST_ANNOTATION));
        let texts = self.0.entry(key).or_default();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }

    fn publish(self, policy: &str) {
        for (key, texts) in self.0 {
            audit::annotate(&format!("{policy}/{key}"), &texts.join(", "));
        }
    }
}

/// Notes for the audit trail that a validation has failed.
fn audit_failure(policy: &Policy, binding: &Binding, index: usize, refusal: &Refusal) {
    let failure = json!([{
        "message": refusal.message, "policy": policy.name, "binding": binding.name,
        "expressionIndex": index, "validationActions": binding.actions,
    }]);
    audit::annotate(VALIDATION_FAILURE, &failure.to_string());
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

    fn changes_objects(&self) -> bool {
        false
    }

    fn handles(&self, _: Operation, resource: &Resource, _: &str) -> bool {
        resource.group != super::GROUP
    }

    fn reads_managers<'a>(&'a self, registry: &'a Registry) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async { Ok(!self.policies.current(registry).await?.is_empty()) })
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
