//! Objects that are served in two shapes but stored in one: autoscalers of autoscaling/v1 and v2, and events of the
//! core group and of events.k8s.io. Converting there and back loses nothing. Definitions of custom resources are read in
//! the version that Kubernetes stores them in.

use serde_json::{Map, Value, json};

use crate::object;

/// Annotations in which an autoscaling/v1 object carries what v1 has no fields for.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// Converts between two versions of a kind; an object of the wanted version, or of a kind that has but one, is only
/// relabelled.
pub fn convert(mut object: Value, api_version: &str) -> Value {
    let from = object::api_version(&object).to_owned();
    match (from.as_str(), api_version) {
        ("autoscaling/v2", "autoscaling/v1") => autoscaler_to_v1(&mut object),
        ("autoscaling/v1", "autoscaling/v2") => autoscaler_to_v2(&mut object),
        ("v1", "events.k8s.io/v1") => rename(&mut object, true),
        ("events.k8s.io/v1", "v1") => rename(&mut object, false),
        ("apiextensions.k8s.io/v1beta1", "apiextensions.k8s.io/v1") => {
            definition_to_v1(&mut object)
        }
        _ => {}
    }
    if let Some(fields) = object.as_object_mut() {
        fields.insert("apiVersion".into(), api_version.into());
    }
    object
}

/// A CustomResourceDefinition as Kubernetes stores it still: what all versions share is beside them.
fn definition_to_v1(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    let version = spec.remove("version");
    let shared = [
        ("schema", spec.remove("validation")),
        ("subresources", spec.remove("subresources")),
        (
            "additionalPrinterColumns",
            spec.remove("additionalPrinterColumns"),
        ),
    ];
    let mut versions = take_list(spec, "versions");
    if let (true, Some(name)) = (versions.is_empty(), version) {
        versions.push(json!({"name": name, "served": true, "storage": true}));
    }
    for version in versions.iter_mut().filter_map(Value::as_object_mut) {
        for (field, value) in &shared {
            if let (Some(value), false) = (value, version.contains_key(*field)) {
                version.insert((*field).to_owned(), value.clone());
            }
        }
        let columns = version.get_mut("additionalPrinterColumns");
        for column in columns.and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(column) = column.as_object_mut()
                && let Some(path) = column.remove("JSONPath")
            {
                column.insert("jsonPath".into(), path);
            }
        }
    }
    spec.insert("versions".into(), versions.into());
    if spec.get("preserveUnknownFields") == Some(&Value::Bool(false)) {
        spec.remove("preserveUnknownFields");
    }
    if let Some(conversion) = spec.get_mut("conversion").and_then(Value::as_object_mut) {
        let mut webhook = Map::new();
        for (old, new) in [
            ("webhookClientConfig", "clientConfig"),
            ("conversionReviewVersions", "conversionReviewVersions"),
        ] {
            if let Some(value) = conversion.remove(old) {
                webhook.insert(new.to_owned(), value);
            }
        }
        if !webhook.is_empty() {
            conversion.insert("webhook".into(), webhook.into());
        }
    }
}

/// Core field, events.k8s.io field.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(event: &mut Value, to_new: bool) {
    let Some(fields) = event.as_object_mut() else {
        return;
    };
    for (core, new) in EVENT_FIELDS {
        let (from, to) = if to_new { (core, new) } else { (new, core) };
        if let Some(value) = fields.remove(from) {
            fields.insert(to.to_owned(), value);
        }
    }
}

/// A CPU metric with a target utilization: the one thing that v1 has fields for.
fn is_cpu(metric: &Value) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && metric["resource"]["target"]["averageUtilization"].is_i64()
}

fn autoscaler_to_v1(object: &mut Value) {
    let mut kept: Map<String, Value> = Map::new();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let mut metrics = take_list(spec, "metrics");
        if let Some(at) = metrics.iter().position(is_cpu) {
            let metric = metrics.remove(at);
            let target = metric["resource"]["target"]["averageUtilization"].clone();
            spec.insert("targetCPUUtilizationPercentage".into(), target);
        }
        let others: Vec<Value> = metrics.into_iter().map(metric_to_v1).collect();
        keep(
            &mut kept,
            METRICS,
            (!others.is_empty()).then(|| others.into()),
        );
        keep(&mut kept, BEHAVIOR, spec.remove("behavior"));
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let mut current = take_list(status, "currentMetrics");
        let utilization = |m: &Value| m["resource"]["current"]["averageUtilization"].is_i64();
        let is_cpu =
            |m: &Value| m["type"] == "Resource" && m["resource"]["name"] == "cpu" && utilization(m);
        if let Some(metric) = current.iter().find(|m| is_cpu(m)) {
            let value = metric["resource"]["current"]["averageUtilization"].clone();
            status.insert("currentCPUUtilizationPercentage".into(), value);
        }
        let all: Vec<Value> = current.drain(..).map(status_to_v1).collect();
        keep(
            &mut kept,
            CURRENT_METRICS,
            (!all.is_empty()).then(|| all.into()),
        );
        keep(&mut kept, CONDITIONS, status.remove("conditions"));
    }
    for (key, value) in kept {
        object::set_annotation(object, &key, &value.to_string());
    }
}

fn keep(kept: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    if let Some(value) = value {
        kept.insert(key.to_owned(), value);
    }
}

fn take_list(fields: &mut Map<String, Value>, name: &str) -> Vec<Value> {
    match fields.remove(name) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

/// In the annotations, targets and current values lie flat beside the source's name, with v1's field names.
fn metric_to_v1(mut metric: Value) -> Value {
    flatten(&mut metric, "target", |kind| match kind {
        "averageUtilization" => "targetAverageUtilization",
        "averageValue" => "targetAverageValue",
        _ => "targetValue",
    });
    metric
}

fn status_to_v1(mut metric: Value) -> Value {
    flatten(&mut metric, "current", |kind| match kind {
        "averageUtilization" => "currentAverageUtilization",
        "averageValue" => "currentAverageValue",
        _ => "currentValue",
    });
    metric
}

const SOURCES: [&str; 5] = [
    "resource",
    "containerResource",
    "pods",
    "object",
    "external",
];
const AMOUNTS: [&str; 3] = ["averageUtilization", "averageValue", "value"];

fn flatten(metric: &mut Value, field: &str, name: fn(&str) -> &'static str) {
    for source in SOURCES {
        let Some(source) = metric.get_mut(source).and_then(Value::as_object_mut) else {
            continue;
        };
        let amounts = source.remove(field).unwrap_or_default();
        for amount in AMOUNTS {
            if let Some(value) = amounts.get(amount) {
                source.insert(name(amount).to_owned(), value.clone());
            }
        }
        if let Some(metric) = source.remove("metric") {
            source.insert("metricName".into(), metric["name"].clone());
            if let Some(selector) = metric.get("selector") {
                source.insert("selector".into(), selector.clone());
            }
        }
        if let Some(described) = source.remove("describedObject") {
            source.insert("target".into(), described);
        }
    }
}

fn unflatten(metric: &mut Value, field: &str, names: [(&str, &str, &str); 3]) {
    for source in SOURCES {
        let Some(source) = metric.get_mut(source).and_then(Value::as_object_mut) else {
            continue;
        };
        let described = source
            .remove("target")
            .or_else(|| source.remove("describedObject"));
        let mut amounts = Map::new();
        for (flat, amount, kind) in names {
            if let Some(value) = source.remove(flat) {
                amounts.insert(amount.to_owned(), value);
                if field == "target" {
                    amounts.insert("type".into(), kind.into());
                }
            }
        }
        source.insert(field.to_owned(), amounts.into());
        if let Some(name) = source.remove("metricName") {
            let mut identifier = json!({ "name": name });
            if let Some(selector) = source.remove("selector") {
                identifier["selector"] = selector;
            }
            source.insert("metric".into(), identifier);
        }
        if let Some(described) = described {
            source.insert("describedObject".into(), described);
        }
    }
}

fn autoscaler_to_v2(object: &mut Value) {
    let mut take = |key: &str| -> Option<Value> {
        let annotations = object
            .get_mut("metadata")?
            .get_mut("annotations")?
            .as_object_mut()?;
        let text = annotations.remove(key)?;
        serde_json::from_str(text.as_str()?).ok()
    };
    let list = |value: Option<Value>| match value {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    };
    let (metrics, current) = (list(take(METRICS)), list(take(CURRENT_METRICS)));
    let (conditions, behavior) = (take(CONDITIONS), take(BEHAVIOR));
    if object["metadata"]["annotations"]
        .as_object()
        .is_some_and(Map::is_empty)
    {
        object::set_metadata(object, "annotations", Value::Null);
    }
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let mut all: Vec<Value> = metrics
            .into_iter()
            .map(|mut m| {
                let names = [
                    (
                        "targetAverageUtilization",
                        "averageUtilization",
                        "Utilization",
                    ),
                    ("targetAverageValue", "averageValue", "AverageValue"),
                    ("targetValue", "value", "Value"),
                ];
                unflatten(&mut m, "target", names);
                m
            })
            .collect();
        if let Some(target) = spec.remove("targetCPUUtilizationPercentage") {
            let target = json!({"type": "Utilization", "averageUtilization": target});
            all.insert(
                0,
                json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}),
            );
        }
        if !all.is_empty() {
            spec.insert("metrics".into(), all.into());
        }
        if let Some(behavior) = behavior {
            spec.insert("behavior".into(), behavior);
        }
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let cpu = status.remove("currentCPUUtilizationPercentage");
        let mut all: Vec<Value> = current
            .into_iter()
            .map(|mut m| {
                let names = [
                    ("currentAverageUtilization", "averageUtilization", ""),
                    ("currentAverageValue", "averageValue", ""),
                    ("currentValue", "value", ""),
                ];
                unflatten(&mut m, "current", names);
                m
            })
            .collect();
        if let Some(cpu) = cpu.filter(|_| all.is_empty()) {
            let current = json!({ "averageUtilization": cpu });
            all.push(json!({"type": "Resource", "resource": {"name": "cpu", "current": current}}));
        }
        if !all.is_empty() {
            status.insert("currentMetrics".into(), all.into());
        }
        if let Some(conditions) = conditions {
            status.insert("conditions".into(), conditions);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn autoscaler() -> Value {
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 5, "behavior": {"scaleDown": {"selectPolicy": "Min"}}, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
                {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                {"type": "Pods", "pods": {"metric": {"name": "hits", "selector": {"matchLabels": {"a": "b"}}},
                    "target": {"type": "AverageValue", "averageValue": "10"}}},
                {"type": "Object", "object": {"metric": {"name": "len"}, "describedObject": {"kind": "Queue", "name": "q"},
                    "target": {"type": "Value", "value": "3"}}}]},
            "status": {"currentReplicas": 1, "conditions": [{"type": "AbleToScale", "status": "True"}],
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu",
                    "current": {"averageUtilization": 30, "averageValue": "5m"}}}]}})
    }

    #[test]
    fn autoscalers_survive_the_round_trip() {
        let v1 = convert(autoscaler(), "autoscaling/v1");
        assert_eq!(v1["spec"]["targetCPUUtilizationPercentage"], 50);
        assert_eq!(v1["status"]["currentCPUUtilizationPercentage"], 30);
        assert_eq!(v1["spec"].get("metrics"), None);
        let others: Value =
            serde_json::from_str(object::annotation(&v1, METRICS).unwrap()).unwrap();
        assert_eq!(
            others[0]["resource"],
            json!({"name": "memory", "targetAverageValue": "1Gi"})
        );
        assert_eq!(convert(v1, "autoscaling/v2"), autoscaler());
    }

    #[test]
    fn plain_v1_autoscalers() {
        let v1 = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 80}});
        let v2 = convert(v1.clone(), "autoscaling/v2");
        assert_eq!(
            v2["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
            80
        );
        assert_eq!(convert(v2, "autoscaling/v1"), v1);
    }

    #[test]
    fn stored_definitions_become_v1() {
        let old = json!({"apiVersion": "apiextensions.k8s.io/v1beta1", "kind": "CustomResourceDefinition",
            "spec": {"group": "g", "version": "v1", "preserveUnknownFields": false,
                "validation": {"openAPIV3Schema": {"type": "object"}}, "subresources": {"status": {}},
                "additionalPrinterColumns": [{"name": "a", "type": "string", "JSONPath": ".a"}],
                "versions": [{"name": "v1", "served": true, "storage": true},
                    {"name": "v2", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "string"}}}],
                "conversion": {"strategy": "Webhook", "conversionReviewVersions": ["v1"],
                    "webhookClientConfig": {"url": "https://x"}}}});
        let new = convert(old, "apiextensions.k8s.io/v1");
        let columns = json!([{"name": "a", "type": "string", "jsonPath": ".a"}]);
        assert_eq!(
            new["spec"],
            json!({"group": "g",
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}},
                    "subresources": {"status": {}}, "additionalPrinterColumns": columns},
                {"name": "v2", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "string"}},
                    "subresources": {"status": {}}, "additionalPrinterColumns": columns}],
            "conversion": {"strategy": "Webhook",
                "webhook": {"clientConfig": {"url": "https://x"}, "conversionReviewVersions": ["v1"]}}})
        );
        let single =
            json!({"apiVersion": "apiextensions.k8s.io/v1beta1", "spec": {"version": "v1"}});
        let new = convert(single, "apiextensions.k8s.io/v1");
        assert_eq!(
            new["spec"]["versions"],
            json!([{"name": "v1", "served": true, "storage": true}])
        );
    }

    #[test]
    fn events_survive_the_round_trip() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "message": "m", "count": 2,
            "involvedObject": {"kind": "Pod"}, "source": {"component": "c"}, "firstTimestamp": "f", "lastTimestamp": "l",
            "reportingComponent": "r", "reportingInstance": "i", "type": "Normal"});
        let new = convert(core.clone(), "events.k8s.io/v1");
        assert_eq!(
            (&new["note"], &new["regarding"]["kind"]),
            (&json!("m"), &json!("Pod"))
        );
        assert_eq!(new["reportingController"], "r");
        assert_eq!(new.get("message"), None);
        assert_eq!(convert(new, "v1"), core);
    }
}
