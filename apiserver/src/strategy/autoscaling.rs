//! Horizontal pod autoscalers, in both versions: v1 is checked as the v2 object that it stands for.

use std::borrow::Cow;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{names, object};
use serde_json::{Value, json};

use super::check::{Checks, POSITIVE, given, integer, list, set_default, text};
use super::{Context, Strategy};

/// The strategy of `horizontalpodautoscalers`.
pub struct HorizontalPodAutoscaler;

const V2: &str = "autoscaling/v2";
/// In the order of Kubernetes' checks: only the first that is given is looked into.
const SOURCES: [(&str, &str); 5] = [
    ("object", "Object"),
    ("external", "External"),
    ("pods", "Pods"),
    ("resource", "Resource"),
    ("containerResource", "ContainerResource"),
];
const TYPES: [&str; 5] = [
    "ContainerResource",
    "External",
    "Object",
    "Pods",
    "Resource",
];

impl Strategy for HorizontalPodAutoscaler {
    fn default(&self, object: &mut Value) {
        let v2 = object::api_version(object) == V2;
        let extra = object::annotations(object)
            .is_some_and(|a| a.contains_key("autoscaling.alpha.kubernetes.io/metrics"));
        let Some(spec) = object.get_mut("spec").filter(|s| s.is_object()) else {
            return;
        };
        set_default(spec, "minReplicas", 1);
        if !v2 {
            if !extra {
                set_default(spec, "targetCPUUtilizationPercentage", 80);
            }
            return;
        }
        if list(spec, "metrics").is_empty() {
            spec["metrics"] = json!([{"type": "Resource", "resource": {
                "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80},
            }}]);
        }
        if spec["behavior"].is_object() {
            default_behavior(&mut spec["behavior"]);
        }
    }

    fn validate(&self, context: &Context<'_>, object: &Value) -> ErrorList {
        self.validate_update(context, object, &Value::Null)
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let (new, old) = (v2(object), v2(old));
        spec(&mut checks, &new["spec"], &old["spec"], &Path::new("spec"));
        checks.done()
    }

    fn validate_status_update(
        &self,
        _context: &Context<'_>,
        object: &Value,
        _old: &Value,
    ) -> ErrorList {
        let mut checks = Checks::default();
        for field in ["currentReplicas", "desiredReplicas"] {
            checks.not_negative(&object["status"], field, &Path::new("status"));
        }
        checks.done()
    }
}

fn v2(object: &Value) -> Cow<'_, Value> {
    if object.is_null() || object::api_version(object) == V2 {
        return Cow::Borrowed(object);
    }
    Cow::Owned(apimachinery::convert::convert(object.clone(), V2))
}

/// Rules that are left out of a behavior that is given.
fn default_behavior(behavior: &mut Value) {
    let policy =
        |kind: &str, value: i64| json!({"type": kind, "value": value, "periodSeconds": 15});
    for (rules, window, policies) in [
        (
            "scaleUp",
            Some(0),
            json!([policy("Pods", 4), policy("Percent", 100)]),
        ),
        ("scaleDown", None, json!([policy("Percent", 100)])),
    ] {
        if !behavior[rules].is_object() {
            behavior[rules] = json!({});
        }
        let rules = &mut behavior[rules];
        set_default(rules, "selectPolicy", "Max");
        set_default(rules, "policies", policies);
        if let Some(window) = window {
            set_default(rules, "stabilizationWindowSeconds", window);
        }
    }
}

fn spec(checks: &mut Checks, spec: &Value, old: &Value, path: &Path) {
    let (least, most) = (
        integer(spec, "minReplicas"),
        integer(spec, "maxReplicas").unwrap_or(0),
    );
    // Scaling to zero is behind a gate; objects that do it already may go on.
    let bound = i64::from(integer(old, "minReplicas") != Some(0));
    if let Some(least) = least.filter(|l| *l < bound) {
        let why = format!("must be greater than or equal to {bound}");
        checks.invalid(&path.child("minReplicas"), least, &why);
    }
    let at = path.child("maxReplicas");
    if most == 0 {
        checks.required(&at, "must be set and greater than 0");
    } else if most < 0 {
        checks.invalid(&at, most, "must be greater than or equal to 1");
    }
    if least.is_some_and(|l| most < l) {
        checks.invalid(&at, most, "must be greater than or equal to `minReplicas`");
    }
    let (target, before) = (&spec["scaleTargetRef"], &old["scaleTargetRef"]);
    let unchanged = !before.is_null()
        && text(target, "apiVersion") == text(before, "apiVersion")
        && text(target, "kind") == text(before, "kind");
    let core = text(target, "kind") == "ReplicationController";
    reference(
        checks,
        target,
        &path.child("scaleTargetRef"),
        unchanged,
        core,
    );
    let at = path.child("metrics");
    let metrics = list(spec, "metrics");
    let lenient = list(old, "metrics")
        .iter()
        .any(|m| api_version(&m["object"]["describedObject"], true).is_err());
    for (i, it) in metrics.iter().enumerate() {
        metric(checks, it, &at.index(i), lenient);
    }
    if least == Some(0)
        && !metrics
            .iter()
            .any(|m| matches!(text(m, "type"), "Object" | "External"))
    {
        let why = "must specify at least one Object or External metric to support scaling to zero replicas";
        checks.forbidden(&at, why);
    }
    for rules in ["scaleUp", "scaleDown"] {
        if let Some(it) = given(&spec["behavior"], rules) {
            scaling_rules(checks, it, &path.child("behavior").child(rules));
        }
    }
}

fn api_version(reference: &Value, core: bool) -> Result<(), String> {
    let version = text(reference, "apiVersion");
    match version.split('/').count() {
        1 if !core => Err("apiVersion must specify API group".into()),
        2 if !core && version.starts_with('/') => Err("apiVersion must specify API group".into()),
        1 | 2 => Ok(()),
        _ => Err(format!("unexpected GroupVersion string: {version}")),
    }
}

/// A CrossVersionObjectReference. `unchanged` ones keep a version that is not valid any more; `core` kinds have no group.
fn reference(checks: &mut Checks, reference: &Value, path: &Path, unchanged: bool, core: bool) {
    for field in ["kind", "name"] {
        checks.segment(reference, field, path);
    }
    if !unchanged && let Err(why) = api_version(reference, core) {
        checks.invalid(
            &path.child("apiVersion"),
            text(reference, "apiVersion"),
            &why,
        );
    }
}

fn scaling_rules(checks: &mut Checks, rules: &Value, path: &Path) {
    const HOUR: i64 = 3600;
    const LONGEST: i64 = 1800;
    let at = path.child("stabilizationWindowSeconds");
    if let Some(window) = integer(rules, "stabilizationWindowSeconds") {
        if window < 0 {
            checks.invalid(&at, window, "must be greater than or equal to zero");
        }
        if window > HOUR {
            checks.invalid(
                &at,
                window,
                &format!("must be less than or equal to {HOUR}"),
            );
        }
    }
    if given(rules, "selectPolicy").is_some() {
        const POLICIES: [&str; 3] = ["Disabled", "Max", "Min"];
        let (policy, path) = (text(rules, "selectPolicy"), path.child("selectPolicy"));
        if !POLICIES.contains(&policy) {
            checks.push(Error::not_supported(&path, policy, &POLICIES));
        }
    }
    let at = path.child("policies");
    if list(rules, "policies").is_empty() {
        checks.required(&at, "must specify at least one Policy");
    }
    for (i, policy) in list(rules, "policies").iter().enumerate() {
        let at = at.index(i);
        let kind = text(policy, "type");
        if !["Percent", "Pods"].contains(&kind) {
            checks.push(Error::not_supported(
                &at.child("type"),
                kind,
                &["Percent", "Pods"],
            ));
        }
        for field in ["value", "periodSeconds"] {
            if let value @ ..=0 = integer(policy, field).unwrap_or(0) {
                checks.invalid(&at.child(field), value, POSITIVE);
            }
        }
        let period = integer(policy, "periodSeconds").unwrap_or(0);
        if period > LONGEST {
            let why = format!("must be less than or equal to {LONGEST}");
            checks.invalid(&at.child("periodSeconds"), period, &why);
        }
    }
    checks.not_negative_quantity(rules, "tolerance", path);
}

fn metric(checks: &mut Checks, metric: &Value, path: &Path, lenient: bool) {
    let kind = text(metric, "type");
    let at = path.child("type");
    if kind.is_empty() {
        checks.required(&at, "must specify a metric source type");
    }
    if !TYPES.contains(&kind) {
        checks.push(Error::not_supported(&at, kind, &TYPES));
    }
    let present: Vec<&str> = SOURCES
        .iter()
        .map(|(field, _)| *field)
        .filter(|field| given(metric, field).is_some())
        .collect();
    if let Some(field) = present.first() {
        source(checks, &metric[*field], field, &path.child(field), lenient);
    }
    let expected = SOURCES
        .iter()
        .find(|(_, k)| *k == kind)
        .map(|(field, _)| *field);
    match expected {
        Some(field) if !present.contains(&field) => {
            let why = "must populate information for the given metric source";
            checks.required(&path.child(field), why);
        }
        _ => {}
    }
    if present.len() != 1 {
        for field in present.iter().filter(|f| Some(**f) != expected) {
            checks.forbidden(
                &path.child(field),
                "must populate the given metric source only",
            );
        }
    }
}

fn source(checks: &mut Checks, source: &Value, kind: &str, path: &Path, lenient: bool) {
    let target = &source["target"];
    let has = |field: &str| given(target, field).is_some();
    let resource = matches!(kind, "resource" | "containerResource");
    if kind == "object" {
        let at = path.child("describedObject");
        reference(checks, &source["describedObject"], &at, lenient, true);
    }
    if resource {
        let at = path.child("name");
        match text(source, "name") {
            "" => checks.required(&at, "must specify a resource name"),
            name if kind == "containerResource" => {
                super::resources::container_resource(checks, name, &at);
            }
            _ => {}
        }
    } else {
        identifier(checks, &source["metric"], &path.child("metric"));
    }
    if kind == "containerResource" {
        match text(source, "container") {
            "" => checks.required(&path.child("container"), "must specify a container"),
            name => checks.label(&path.child("container"), name),
        }
    }
    let path = path.child("target");
    metric_target(checks, target, &path);
    let (average, utilization, value) = ("averageValue", "averageUtilization", "value");
    match kind {
        "object" if !has(value) && !has(average) => {
            checks.required(
                &path.child(average),
                "must set either a target value or averageValue",
            );
        }
        "external" if !has(value) && !has(average) => {
            let why = "must set either a target value for metric or a per-pod target";
            checks.required(&path.child(average), why);
        }
        "external" if has(value) && has(average) => {
            let why = "may not set both a target value for metric and a per-pod target";
            checks.forbidden(&path.child(value), why);
        }
        "pods" if !has(average) => {
            checks.required(
                &path.child(average),
                "must specify a positive target averageValue",
            );
        }
        _ if resource && !has(utilization) && !has(average) => {
            let why = "must set either a target raw value or a target utilization";
            checks.required(&path.child(utilization), why);
        }
        _ if resource && has(utilization) && has(average) => {
            let why = "may not set both a target raw value and a target utilization";
            checks.forbidden(&path.child(average), why);
        }
        _ => {}
    }
}

fn identifier(checks: &mut Checks, id: &Value, path: &Path) {
    let at = path.child("name");
    match text(id, "name") {
        "" => checks.required(&at, "must specify a metric name"),
        name => checks.each(&at, name, names::path_segment(name)),
    }
}

fn metric_target(checks: &mut Checks, target: &Value, path: &Path) {
    let kind = text(target, "type");
    if kind.is_empty() {
        checks.required(&path.child("type"), "must specify a metric target type");
    }
    if !["Utilization", "Value", "AverageValue"].contains(&kind) {
        let why = "must be either Utilization, Value, or AverageValue";
        checks.invalid(&path.child("type"), kind, why);
    }
    for field in ["value", "averageValue"] {
        let amount = super::resources::quantity(target.get(field));
        if amount.is_some_and(|q| q.sign() != 1) {
            checks.invalid(
                &path.child(field),
                target[field].clone(),
                "must be positive",
            );
        }
    }
    if let Some(share) = integer(target, "averageUtilization").filter(|s| *s < 1) {
        checks.invalid(
            &path.child("averageUtilization"),
            share,
            "must be greater than 0",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(object: &Value) -> Vec<String> {
        crate::strategy::tests::refusals("horizontalpodautoscalers", object, None)
    }

    fn autoscaler(mut spec: Value) -> Value {
        super::super::check::set_default(&mut spec, "maxReplicas", 3);
        super::super::check::set_default(
            &mut spec,
            "scaleTargetRef",
            json!({"kind": "Deployment", "name": "web", "apiVersion": "apps/v1"}),
        );
        let mut object = json!({"apiVersion": V2, "metadata": {"name": "a"}, "spec": spec});
        HorizontalPodAutoscaler.default(&mut object);
        object
    }

    #[test]
    fn defaults() {
        let object = autoscaler(
            json!({"behavior": {"scaleDown": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}}}),
        );
        assert_eq!(object["spec"]["minReplicas"], 1);
        assert_eq!(
            object["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
            80
        );
        let behavior = &object["spec"]["behavior"];
        assert_eq!(behavior["scaleUp"]["stabilizationWindowSeconds"], 0);
        assert_eq!(behavior["scaleUp"]["policies"][1]["value"], 100);
        assert_eq!(behavior["scaleDown"]["selectPolicy"], "Max");
        assert!(behavior["scaleDown"]["stabilizationWindowSeconds"].is_null());
        assert!(errors(&object).is_empty());
        let mut v1 = json!({"apiVersion": "autoscaling/v1", "spec": {}});
        HorizontalPodAutoscaler.default(&mut v1);
        assert_eq!(v1["spec"]["targetCPUUtilizationPercentage"], 80);
    }

    #[test]
    fn refusals() {
        #[rustfmt::skip]
        let table: &[(Value, &[&str])] = &[
            (json!({"maxReplicas": 0}), &["spec.maxReplicas: Required value: must be set and greater than 0", "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`"]),
            (json!({"minReplicas": 0}), &["spec.minReplicas: Invalid value: 0: must be greater than or equal to 1", "spec.metrics: Forbidden: must specify at least one Object or External metric to support scaling to zero replicas"]),
            (json!({"scaleTargetRef": {"kind": "Deployment", "name": "a/b", "apiVersion": "v1"}}), &["spec.scaleTargetRef.name: Invalid value: \"a/b\": may not contain '/'", "spec.scaleTargetRef.apiVersion: Invalid value: \"v1\": apiVersion must specify API group"]),
            (json!({"metrics": [{"type": "Pods"}]}), &["spec.metrics[0].pods: Required value: must populate information for the given metric source"]),
            (json!({"metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}}]}), &["spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw value or a target utilization"]),
            (json!({"behavior": {"scaleUp": {"stabilizationWindowSeconds": 3601}}}), &["spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600"]),
        ];
        for (spec, want) in table {
            assert_eq!(errors(&autoscaler(spec.clone())), *want, "{spec}");
        }
    }
}
