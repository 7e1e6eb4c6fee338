//! Events of both groups. The newer API is strict, the older one takes what clients have always sent.

use apimachinery::field::{ErrorList, Path};
use apimachinery::{names, object};
use serde_json::Value;

use super::check::{Checks, given, integer, same, text};
use super::{Context, Strategy};

/// The strategy of `events`, stored in the core group's form.
pub struct Event;

impl Strategy for Event {
    fn validate(&self, context: &Context<'_>, object: &Value) -> ErrorList {
        let core = core(object);
        let mut checks = Checks::default();
        legacy(&mut checks, context, &core);
        if strict(context) {
            created(&mut checks, &core);
        }
        checks.done()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let (new, old) = (core(object), core(old));
        let mut checks = Checks::default();
        legacy(&mut checks, context, &new);
        if strict(context) {
            if !same(&new["series"], &old["series"]) {
                series(&mut checks, &new);
            }
            const FIXED: [&str; 13] = [
                "involvedObject",
                "reason",
                "message",
                "source",
                "firstTimestamp",
                "lastTimestamp",
                "count",
                "type",
                "eventTime",
                "action",
                "related",
                "reportingComponent",
                "reportingInstance",
            ];
            for field in FIXED {
                let shown = if field == "reportingComponent" {
                    "reportingController"
                } else {
                    field
                };
                checks.immutable(&Path::new(shown), &new[field], &old[field]);
            }
        }
        checks.done()
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

fn strict(context: &Context<'_>) -> bool {
    !context.resource.group.is_empty()
}

/// The event in the core group's field names.
fn core(event: &Value) -> Value {
    apimachinery::convert::convert(event.clone(), "v1")
}

fn legacy(checks: &mut Checks, context: &Context<'_>, event: &Value) {
    let namespace = object::namespace(event);
    let about = text(&event["involvedObject"], "namespace");
    let path = Path::new("involvedObject").child("namespace");
    let mismatch = "does not match event.namespace";
    if given(event, "eventTime").is_none() {
        let fits = if about.is_empty() {
            matches!(namespace, "" | "default")
        } else {
            about == namespace
        };
        if !fits {
            checks.invalid(&path, about, mismatch);
        }
    } else {
        if about.is_empty() && !matches!(namespace, "default" | "kube-system") {
            checks.invalid(&path, about, mismatch);
        }
        let field = if strict(context) {
            "reportingController"
        } else {
            "reportingComponent"
        };
        let controller = text(event, "reportingComponent");
        if controller.is_empty() {
            checks.required(&Path::new(field), "");
        }
        checks.qualified_name(&Path::new(field), controller);
        for field in ["reportingInstance", "action", "reason"] {
            let value = text(event, field);
            if value.is_empty() {
                checks.required(&Path::new(field), "");
            }
            limit(checks, value, 128, field);
        }
        limit(checks, text(event, "message"), 1024, "message");
    }
    checks.each(
        &Path::new("namespace"),
        namespace,
        names::dns1123_subdomain(namespace),
    );
}

fn limit(checks: &mut Checks, value: &str, most: usize, field: &str) {
    if value.len() > most {
        checks.invalid(
            &Path::new(field),
            "",
            &format!("can have at most {most} characters"),
        );
    }
}

fn created(checks: &mut Checks, event: &Value) {
    series(checks, event);
    if given(event, "eventTime").is_none() {
        checks.required(&Path::new("eventTime"), "");
    }
    let kind = text(event, "type");
    if !matches!(kind, "Normal" | "Warning") {
        checks.invalid(
            &Path::new("type"),
            "",
            &format!("has invalid value: {kind}"),
        );
    }
    let source = &event["source"];
    let sourced = !text(source, "component").is_empty() || !text(source, "host").is_empty();
    for (field, set) in [
        ("firstTimestamp", given(event, "firstTimestamp").is_some()),
        ("lastTimestamp", given(event, "lastTimestamp").is_some()),
        ("count", integer(event, "count").unwrap_or(0) != 0),
        ("source", sourced),
    ] {
        if set {
            checks.invalid(&Path::new(field), "", "needs to be unset");
        }
    }
}

fn series(checks: &mut Checks, event: &Value) {
    let Some(series) = given(event, "series") else {
        return;
    };
    if integer(series, "count").unwrap_or(0) < 2 {
        checks.invalid(&Path::new("series.count"), "", "should be at least 2");
    }
    if given(series, "lastObservedTime").is_none() {
        checks.required(&Path::new("series.lastObservedTime"), "");
    }
}

#[cfg(test)]
mod tests {
    use crate::strategy::tests::refusals_in;
    use serde_json::json;

    #[test]
    fn events() {
        let about = json!({"kind": "Pod", "name": "a", "namespace": "ns"});
        let old =
            json!({"apiVersion": "v1", "metadata": {"namespace": "ns"}, "involvedObject": about});
        assert!(refusals_in("", "events", &old, None).is_empty());
        let mut stray = old.clone();
        stray["involvedObject"]["namespace"] = "other".into();
        assert_eq!(
            refusals_in("", "events", &stray, None),
            ["involvedObject.namespace: Invalid value: \"other\": does not match event.namespace"]
        );
        let new = json!({"apiVersion": "events.k8s.io/v1", "metadata": {"namespace": "ns"}, "regarding": about,
            "eventTime": "2024-01-01T00:00:00.000000Z", "reportingController": "example.com/c", "reportingInstance": "i",
            "action": "Test", "reason": "Tested", "type": "Normal"});
        assert!(refusals_in("events.k8s.io", "events", &new, None).is_empty());
        let mut bad = new.clone();
        bad["type"] = "Loud".into();
        bad["deprecatedCount"] = 2.into();
        assert_eq!(
            refusals_in("events.k8s.io", "events", &bad, None),
            [
                "type: Invalid value: \"\": has invalid value: Loud",
                "count: Invalid value: \"\": needs to be unset",
            ]
        );
        let mut changed = new.clone();
        changed["reason"] = "Other".into();
        assert_eq!(
            refusals_in("events.k8s.io", "events", &changed, Some(&new)),
            ["reason: Invalid value: \"Other\": field is immutable"]
        );
    }
}
