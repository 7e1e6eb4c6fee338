//! Reading a CustomResourceDefinition document, and writing its conditions.

use apimachinery::{object, time};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::strategy::check::{list, text};

pub const GROUP: &str = "apiextensions.k8s.io";
pub const PLURAL: &str = "customresourcedefinitions";
/// Holds a deleted definition until its instances are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

#[must_use]
pub fn group(definition: &Value) -> &str {
    text(&definition["spec"], "group")
}

#[must_use]
pub fn versions(definition: &Value) -> &[Value] {
    list(&definition["spec"], "versions")
}

/// The name of the version that objects are stored in.
#[must_use]
pub fn storage_version(definition: &Value) -> Option<&str> {
    let mut versions = versions(definition).iter();
    versions
        .find(|version| version["storage"] == true)
        .map(|version| text(version, "name"))
}

#[must_use]
pub fn schema_of(version: &Value) -> Option<&Value> {
    version["schema"]
        .get("openAPIV3Schema")
        .filter(|s| s.is_object())
}

#[must_use]
pub fn is_namespaced(definition: &Value) -> bool {
    definition["spec"]["scope"] == "Namespaced"
}

#[must_use]
pub fn is_true(definition: &Value, condition: &str) -> bool {
    object::condition(definition, condition).is_some_and(|c| c["status"] == "True")
}

#[must_use]
pub fn is_established(definition: &Value) -> bool {
    is_true(definition, "Established")
}

/// A condition without its times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    pub kind: &'static str,
    pub status: &'static str,
    pub reason: String,
    pub message: String,
}

impl Condition {
    #[must_use]
    pub fn new(
        kind: &'static str,
        status: bool,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            status: if status { "True" } else { "False" },
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// Sets a condition; the time of its last transition moves only with its status.
pub fn set_condition(definition: &mut Value, condition: &Condition, now: Timestamp) {
    let condition = json!({
        "type": condition.kind, "status": condition.status, "lastTransitionTime": time::format(now),
        "reason": condition.reason, "message": condition.message,
    });
    object::set_condition(definition, condition);
}

/// Removes a condition that no longer applies.
pub fn remove_condition(definition: &mut Value, kind: &str) {
    if let Some(conditions) = definition["status"]["conditions"].as_array_mut() {
        conditions.retain(|c| c["type"] != kind);
    }
}

/// Calls `visit` with every schema right inside another one.
pub fn subschemas<'a>(schema: &'a Value, visit: &mut dyn FnMut(&'a Value)) {
    for name in ["items", "additionalProperties", "not"] {
        if let Some(inner) = schema.get(name).filter(|inner| inner.is_object()) {
            visit(inner);
        }
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        list(schema, name).iter().for_each(&mut *visit);
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    properties
        .into_iter()
        .flat_map(|p| p.values())
        .for_each(visit);
}

/// The parts of a simple path: `.spec.replicas`.
#[must_use]
pub fn path(text: &str) -> Vec<String> {
    let text = text.strip_prefix('.').unwrap_or(text);
    text.split('.').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transitions_are_dated() {
        let mut definition = json!({});
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut condition = Condition::new("Established", false, "Installing", "m");
        set_condition(&mut definition, &condition, at(0));
        condition.reason = "NotAccepted".into();
        set_condition(&mut definition, &condition, at(5));
        let shown = &definition["status"]["conditions"][0];
        assert_eq!(shown["lastTransitionTime"], "1970-01-01T00:00:00Z");
        assert_eq!(shown["reason"], "NotAccepted");
        condition.status = "True";
        set_condition(&mut definition, &condition, at(5));
        assert_eq!(
            definition["status"]["conditions"][0]["lastTransitionTime"],
            "1970-01-01T00:00:05Z"
        );
        assert!(is_established(&definition));
        remove_condition(&mut definition, "Established");
        assert!(!is_established(&definition));
    }
}
