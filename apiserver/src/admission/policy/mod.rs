//! Admission policies: ValidatingAdmissionPolicy and MutatingAdmissionPolicy, which judge and change objects by
//! expressions instead of calling somebody.
//!
//! [`compiled`] keeps the policies with their bindings, read again only when one changes; [`params`] finds the objects
//! that a binding hands to its policy; [`evaluate`] runs the expressions of one. [`typecheck`] says in a policy's
//! [`status`] what its expressions will stumble over.

pub mod compiled;
mod evaluate;
mod mutating;
mod params;
pub mod status;
mod typecheck;
mod validating;

pub use mutating::Mutating;
pub use validating::Validating;

use apimachinery::status::Result;
use serde_json::Value;

use super::Attributes;
use super::webhook::matching::Matcher;
use crate::registry::Registry;
use compiled::{Binding, Policy};

const GROUP: &str = "admissionregistration.k8s.io";

/// What went wrong around a policy rather than in its expressions; its failure policy says what becomes of it.
type Misconfigured = String;

/// The version of the write that a policy asks for, if it is for this write at all.
async fn matches(
    policy: &Policy,
    attributes: &Attributes<'_>,
    registry: &Registry,
) -> Result<Option<std::sync::Arc<crate::registry::table::Served>>> {
    let Ok(matcher) = &policy.matcher else {
        return Ok(None);
    };
    let Some(served) = matcher.resource(attributes, &registry.table()) else {
        return Ok(None);
    };
    Ok(matcher
        .selects(attributes, registry)
        .await?
        .then_some(served))
}

/// Whether a binding narrows its policy to other writes.
async fn binds(
    binding: &Binding,
    attributes: &Attributes<'_>,
    registry: &Registry,
) -> std::result::Result<bool, Misconfigured> {
    let Some(matcher) = &binding.matcher else {
        return Ok(true);
    };
    let matcher: &Matcher = matcher.as_ref().map_err(Clone::clone)?;
    if matcher.has_rules() && matcher.resource(attributes, &registry.table()).is_none() {
        return Ok(false);
    }
    matcher
        .selects(attributes, registry)
        .await
        .map_err(|error| error.message)
}

/// The parameters that a binding gives its policy; one `None` if it has none.
async fn parameters(
    policy: &Policy,
    binding: &Binding,
    attributes: &Attributes<'_>,
    registry: &Registry,
) -> std::result::Result<Vec<Option<Value>>, Misconfigured> {
    match (&policy.param_kind, &binding.param_ref) {
        (Some(kind), Some(reference)) => {
            params::collect(kind, reference, attributes.namespace, registry).await
        }
        _ => Ok(vec![None]),
    }
}
