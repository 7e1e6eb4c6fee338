//! The webhooks of all configurations, ready to be asked, and one call of one of them.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::object;
use apimachinery::status::{Details, Result, Status};
use parking_lot::Mutex;
use serde_json::Value;

use super::expressions::{Conditions, environment};
use super::matching::Matcher;
use super::review::{Review, Verdict};
use super::versions::Versioned;
use crate::admission::Attributes;
use crate::cache::Selection;
use crate::outbound::webhook::{Clients, Place};
use crate::registry::Registry;
use crate::strategy::check::{integer, list, text};

pub struct Hook {
    pub configuration: String,
    pub name: String,
    pub matcher: std::result::Result<Matcher, String>,
    pub conditions: Conditions,
    /// Whether a webhook that cannot be asked is passed over.
    pub ignore: bool,
    /// Whether it is asked again when others changed the object after it.
    pub reinvoke: bool,
    place: Place,
    versions: Vec<String>,
    timeout: Duration,
    side_effects: String,
}

/// Why a call gave no verdict, or a bad one.
#[derive(Debug)]
pub enum Failure {
    /// The failure policy says what becomes of it.
    Call(String),
    /// Refused, or not to be asked at all.
    Refused(Status),
    Internal(String),
}

impl Failure {
    pub fn status(self, webhook: &str) -> Status {
        match self {
            Self::Call(why) => {
                Status::internal(format!("failed calling webhook {webhook:?}: {why}"))
            }
            Self::Refused(status) => status,
            Self::Internal(why) => Status::internal(why),
        }
    }
}

impl Hook {
    fn read(configuration: &str, value: &Value) -> Self {
        let versions = list(value, "admissionReviewVersions").iter();
        let seconds = integer(value, "timeoutSeconds").unwrap_or(10);
        Self {
            configuration: configuration.to_owned(),
            name: text(value, "name").to_owned(),
            matcher: Matcher::read(value, "rules"),
            conditions: Conditions::read(value, &environment(false, true)),
            ignore: text(value, "failurePolicy") == "Ignore",
            reinvoke: text(value, "reinvocationPolicy") == "IfNeeded",
            place: Place::read(value.get("clientConfig").unwrap_or(&Value::Null)),
            versions: versions
                .filter_map(|version| version.as_str().map(ToOwned::to_owned))
                .collect(),
            timeout: Duration::from_secs(u64::try_from(seconds).unwrap_or(10)),
            side_effects: text(value, "sideEffects").to_owned(),
        }
    }

    /// Asks. Whoever may not run dry is not asked in a dry run.
    pub async fn call(
        &self,
        clients: &Clients,
        registry: &Registry,
        attributes: &Attributes<'_>,
        versioned: &Versioned,
        mutating: bool,
    ) -> std::result::Result<Verdict, Failure> {
        if attributes.dry_run && !matches!(self.side_effects.as_str(), "None" | "NoneOnDryRun") {
            return Err(Failure::Refused(Status::bad_request(format!(
                "admission webhook {:?} does not support dry run",
                self.name
            ))));
        }
        let review = Review::new(&self.versions, attributes, versioned)
            .map_err(|why| Failure::Call(format!("could not create admission objects: {why}")))?;
        let answer = clients
            .post(
                &registry.this(),
                &self.place,
                &review.document,
                self.timeout,
            )
            .await
            .map_err(|why| Failure::Call(format!("failed to call webhook: {why}")))?;
        let verdict = review
            .verdict(&answer, mutating)
            .map_err(|why| Failure::Call(format!("received invalid webhook response: {why}")))?;
        attributes
            .warnings
            .lock()
            .extend(verdict.warnings.iter().cloned());
        match verdict.allowed {
            true => Ok(verdict),
            false => Err(Failure::Refused(refusal(&self.name, &verdict.result))),
        }
    }
}

/// The status of a refusal: the webhook's own, as far as it is one of a failure.
fn refusal(webhook: &str, result: &Value) -> Status {
    let denied = format!("admission webhook {webhook:?} denied the request");
    let (message, reason) = (text(result, "message"), text(result, "reason"));
    let message = match (message, reason) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    let code = integer(result, "code").and_then(|code| u16::try_from(code).ok());
    let code = code.filter(|code| (400..600).contains(code)).unwrap_or(400);
    let status = Status::new(code, reason.to_owned(), message);
    match result
        .get("details")
        .map(|d| serde_json::from_value::<Details>(d.clone()))
    {
        Some(Ok(details)) => status.with_details(details),
        _ => status,
    }
}

/// Follows the configurations of one kind.
pub struct Hooks {
    plural: &'static str,
    read: Mutex<(u64, Arc<Vec<Hook>>)>,
}

impl Hooks {
    pub fn new(plural: &'static str) -> Self {
        Self {
            plural,
            read: Mutex::new((u64::MAX, Arc::default())),
        }
    }

    /// All webhooks in the order in which they are asked.
    pub async fn current(&self, registry: &Registry) -> Result<Arc<Vec<Hook>>> {
        let cache = registry.cache_of(super::GROUP, self.plural)?;
        let reached = cache.loaded().await?;
        let change = cache.last_change();
        let (known, hooks) = self.read.lock().clone();
        if known == change {
            return Ok(hooks);
        }
        let objects = cache.list(&Selection::default(), reached).objects;
        let hooks = objects.iter().flat_map(|configuration| {
            let configuration = configuration.value();
            let name = object::name(&configuration);
            let hooks = list(&configuration, "webhooks").iter();
            hooks.map(|hook| Hook::read(name, hook)).collect::<Vec<_>>()
        });
        let hooks = Arc::new(hooks.collect::<Vec<_>>());
        *self.read.lock() = (change, hooks.clone());
        Ok(hooks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn refusals() {
        for (result, code, message) in [
            (
                json!(null),
                400,
                "admission webhook \"w\" denied the request without explanation",
            ),
            (
                json!({"reason": "why"}),
                400,
                "admission webhook \"w\" denied the request: why",
            ),
            (
                json!({"message": "m", "code": 403}),
                403,
                "admission webhook \"w\" denied the request: m",
            ),
            (
                json!({"message": "m", "code": 200}),
                400,
                "admission webhook \"w\" denied the request: m",
            ),
        ] {
            let status = refusal("w", &result);
            assert_eq!((status.code, status.message.as_str()), (code, message));
        }
    }
}
