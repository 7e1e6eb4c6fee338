//! Resources by name and amount: what containers ask for, what quotas count, what limit ranges bound.

use std::collections::{BTreeMap, BTreeSet};

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use apimachinery::quantity::{Format, Quantity};
use serde_json::Value;

use super::check::{Checks, NOT_NEGATIVE, entries, given, list, text};
use super::{Context, Strategy};

/// The strategy of `resourcequotas`.
pub struct ResourceQuota;

/// The strategy of `limitranges`.
pub struct LimitRange;

const COUNTED: [&str; 9] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
const COMPUTE: [&str; 10] = [
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
];

#[must_use]
pub fn quantity(value: Option<&Value>) -> Option<Quantity> {
    Quantity::parse(value?.as_str()?).ok()
}

fn is_huge(name: &str) -> bool {
    name.starts_with("hugepages-")
}

fn quota_huge(name: &str) -> bool {
    is_huge(name) || name.starts_with("requests.hugepages-")
}

fn is_quota(name: &str) -> bool {
    COUNTED.contains(&name) || COMPUTE.contains(&name) || quota_huge(name)
}

fn is_standard(name: &str) -> bool {
    is_quota(name) || name == "storage"
}

/// A resource of Kubernetes itself, not of somebody's device.
#[must_use]
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

#[must_use]
pub fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Whether requests may be below limits.
fn overcommits(name: &str) -> bool {
    is_native(name) && !is_huge(name)
}

/// False if the name is no name at all, and nothing else can be said of it.
fn resource(checks: &mut Checks, name: &str, path: &Path) -> bool {
    let wrong = names::qualified_name(name);
    if !wrong.is_empty() {
        checks.each(path, name, wrong);
        return false;
    }
    if !name.contains('/') && !is_standard(name) {
        let why = "must be a standard resource type or fully qualified";
        checks.invalid(path, name, why);
    }
    true
}

/// The name of something that a container may use.
pub fn container_resource(checks: &mut Checks, name: &str, path: &Path) {
    resource(checks, name, path);
    let known = matches!(name, "cpu" | "memory" | "ephemeral-storage") || is_huge(name);
    if !name.contains('/') && !known {
        checks.invalid(path, name, "must be a standard resource for containers");
    } else if !is_native(name) && !is_extended(name) {
        checks.invalid(path, name, "doesn't follow extended resource name standard");
    }
}

fn pod_resource(checks: &mut Checks, name: &str, path: &Path) {
    let before = checks.0.len();
    resource(checks, name, path);
    if checks.0.len() == before && !matches!(name, "cpu" | "memory") && !is_huge(name) {
        checks.push(Error::not_supported(
            path,
            name,
            &["cpu", "hugepages-", "memory"],
        ));
    }
}

/// The amount of a resource: not negative, and whole where the resource is counted.
pub fn amount(checks: &mut Checks, name: &str, amount: Quantity, path: &Path) {
    if amount.is_negative() {
        checks.invalid(path, amount.to_string(), NOT_NEGATIVE);
    }
    if (COUNTED.contains(&name) || is_extended(name)) && amount.milli_value() % 1000 != 0 {
        checks.invalid(path, amount.to_string(), "must be an integer");
    }
}

/// Limits and requests of a container.
pub fn container(checks: &mut Checks, requirements: &Value, path: &Path) {
    requirements_of(checks, requirements, path, container_resource);
}

/// Limits and requests of a pod as a whole.
pub fn pod(checks: &mut Checks, requirements: &Value, path: &Path) {
    requirements_of(checks, requirements, path, pod_resource);
}

fn requirements_of(
    checks: &mut Checks,
    requirements: &Value,
    path: &Path,
    check_name: fn(&mut Checks, &str, &Path),
) {
    let (mut compute, mut huge) = (false, false);
    let limits = path.child("limits");
    for field in ["limits", "requests"] {
        for (name, value) in entries(requirements, field) {
            let at = path.child(field).key(name);
            check_name(checks, name, &at);
            let Some(asked) = quantity(Some(value)) else {
                continue;
            };
            amount(checks, name, asked, &at);
            compute |= matches!(name, "cpu" | "memory");
            huge |= is_huge(name);
            if field == "requests" {
                let limit = requirements
                    .get("limits")
                    .and_then(|l| quantity(l.get(name)));
                request(checks, name, asked, limit, (&path.child(field), &limits));
            }
            whole_pages(checks, name, asked, &at);
        }
    }
    if huge && !compute {
        checks.forbidden(path, "HugePages require cpu or memory");
    }
}

fn request(
    checks: &mut Checks,
    name: &str,
    asked: Quantity,
    limit: Option<Quantity>,
    (requests, limits): (&Path, &Path),
) {
    match limit {
        Some(limit) if asked != limit && !overcommits(name) => {
            let why = format!("must be equal to {name} limit of {limit}");
            checks.invalid(requests, asked.to_string(), &why);
        }
        Some(limit) if asked > limit => {
            let why = format!("must be less than or equal to {name} limit of {limit}");
            checks.invalid(requests, asked.to_string(), &why);
        }
        None if !overcommits(name) => {
            checks.required(limits, "Limit must be set for non overcommitable resources");
        }
        _ => {}
    }
}

fn whole_pages(checks: &mut Checks, name: &str, asked: Quantity, path: &Path) {
    let Some(size) = name.strip_prefix("hugepages-") else {
        return;
    };
    let size = Quantity::parse(size)
        .ok()
        .filter(|s| s.sign() > 0 && s.is_whole());
    let divides = size.is_some_and(|s| s.value() > 0 && asked.value() % s.value() == 0);
    if !divides {
        let why = format!("{asked} is not positive integer multiple of {name}");
        checks.invalid(path, asked.to_string(), &why);
    }
}

impl Strategy for ResourceQuota {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        quota_spec(&mut checks, &object["spec"], &Path::new("spec"));
        checks.done()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks(self.validate(context, object).0);
        let scopes = |o: &Value| -> BTreeSet<String> {
            let scopes = list(&o["spec"], "scopes").iter();
            scopes
                .filter_map(|s| s.as_str().map(str::to_owned))
                .collect()
        };
        if scopes(object) != scopes(old) {
            let path = Path::new("spec").child("scopes");
            let shown = object["spec"]["scopes"].clone();
            checks.invalid(&path, shown, super::check::IMMUTABLE);
        }
        checks.done()
    }

    fn validate_status_update(
        &self,
        _context: &Context<'_>,
        object: &Value,
        _old: &Value,
    ) -> ErrorList {
        let mut checks = Checks::default();
        for field in ["hard", "used"] {
            quota_amounts(&mut checks, &object["status"], field, &Path::new("status"));
        }
        checks.done()
    }
}

fn quota_amounts(checks: &mut Checks, object: &Value, field: &str, path: &Path) {
    for (name, value) in entries(object, field) {
        let path = path.child(field).key(name);
        resource(checks, name, &path);
        if !name.contains('/') && !is_quota(name) {
            checks.invalid(&path, name, "must be a standard resource for quota");
        }
        if let Some(value) = quantity(Some(value)) {
            amount(checks, name, value, &path);
        }
    }
}

fn quota_spec(checks: &mut Checks, spec: &Value, path: &Path) {
    quota_amounts(checks, spec, "hard", path);
    let names: Vec<&str> = entries(spec, "hard").map(|(name, _)| name).collect();
    let misfits = |scope: &str| {
        names
            .iter()
            .filter(|n| is_quota(n) && !scope_fits(scope, n))
            .count()
    };
    let at = path.child("scopes");
    let scopes: Vec<&str> = list(spec, "scopes")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let shown = || spec["scopes"].clone();
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            checks.invalid(&at, shown(), "unsupported scope");
        }
        for _ in 0..misfits(scope) {
            checks.invalid(&at, shown(), "unsupported scope applied to resource");
        }
    }
    conflicts(checks, &scopes, &at, &shown());
    let Some(selector) = given(spec, "scopeSelector") else {
        return;
    };
    let at = path.child("scopeSelector").child("matchExpressions");
    let requirements = list(selector, "matchExpressions");
    for requirement in requirements {
        let scope = text(requirement, "scopeName");
        if !SCOPES.contains(&scope) {
            checks.invalid(&at.child("scopeName"), scope, "unsupported scope");
        }
        for _ in 0..misfits(scope) {
            checks.invalid(
                &at,
                selector.clone(),
                "unsupported scope applied to resource",
            );
        }
        scope_operator(checks, requirement, scope, &at);
    }
    let scopes: Vec<&str> = requirements.iter().map(|r| text(r, "scopeName")).collect();
    conflicts(checks, &scopes, &at, &shown());
}

const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

fn scope_fits(scope: &str, name: &str) -> bool {
    const POD: [&str; 7] = [
        "cpu",
        "limits.cpu",
        "limits.memory",
        "memory",
        "pods",
        "requests.cpu",
        "requests.memory",
    ];
    match scope {
        "BestEffort" => name == "pods",
        "VolumeAttributesClass" => matches!(name, "persistentvolumeclaims" | "requests.storage"),
        scope if SCOPES.contains(&scope) => POD.contains(&name),
        _ => true,
    }
}

fn conflicts(checks: &mut Checks, scopes: &[&str], path: &Path, shown: &Value) {
    for pair in [
        ["BestEffort", "NotBestEffort"],
        ["Terminating", "NotTerminating"],
    ] {
        if pair.iter().all(|s| scopes.contains(s)) {
            checks.invalid(path, shown.clone(), "conflicting scopes");
        }
    }
}

fn scope_operator(checks: &mut Checks, requirement: &Value, scope: &str, path: &Path) {
    let operator = text(requirement, "operator");
    let valued = matches!(scope, "PriorityClass" | "VolumeAttributesClass");
    if SCOPES.contains(&scope) && !valued && operator != "Exists" {
        let why = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, \
            ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or \
            ResourceQuotaScopeCrossNamespacePodAffinity";
        checks.invalid(&path.child("operator"), operator, why);
    }
    let values = list(requirement, "values");
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            let why =
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
            checks.required(&path.child("values"), why);
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let why =
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
            checks.invalid(&path.child("values"), requirement["values"].clone(), why);
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => checks.invalid(
            &path.child("operator"),
            other,
            "not a valid selector operator",
        ),
    }
}

impl Strategy for LimitRange {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec") else {
            return;
        };
        for limit in super::check::list_mut(spec, "limits") {
            if text(limit, "type") == "Container" {
                default_limit(limit);
            }
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let path = Path::new("spec").child("limits");
        let limits = list(&object["spec"], "limits");
        for (i, limit) in limits.iter().enumerate() {
            let path = path.index(i);
            let kind = text(limit, "type");
            limit_type(&mut checks, kind, &path.child("type"));
            if limits[..i].iter().any(|l| text(l, "type") == kind) {
                checks.push(Error::duplicate(&path.child("type"), kind));
            }
            limit_item(&mut checks, limit, kind, &path);
        }
        checks.done()
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

/// What a container gets by default follows from what it may have at most and at least.
fn default_limit(limit: &mut Value) {
    for (field, sources) in [
        ("default", &["max"][..]),
        ("defaultRequest", &["default", "min"][..]),
    ] {
        for source in sources {
            for (name, value) in entries(&limit.clone(), source) {
                if !limit[field].is_object() {
                    limit[field] = Value::Object(serde_json::Map::new());
                }
                if limit[field].get(name).is_none() {
                    limit[field][name] = value.clone();
                }
            }
        }
    }
}

fn limit_type(checks: &mut Checks, kind: &str, path: &Path) {
    let wrong = names::qualified_name(kind);
    if !wrong.is_empty() {
        checks.each(path, kind, wrong);
    } else if !kind.contains('/') && !["Pod", "Container", "PersistentVolumeClaim"].contains(&kind)
    {
        let why = "must be a standard limit type or fully qualified";
        checks.invalid(path, kind, why);
    }
}

type Amounts<'a> = BTreeMap<&'a str, Quantity>;

fn limit_item(checks: &mut Checks, limit: &Value, kind: &str, path: &Path) {
    let mut amounts = |field: &'static str| -> Amounts<'_> {
        let mut found = Amounts::new();
        for (name, value) in entries(limit, field) {
            let path = path.child(field).key(name);
            if matches!(kind, "Pod" | "Container") {
                container_resource(checks, name, &path);
            } else {
                resource(checks, name, &path);
            }
            if let Some(value) = quantity(Some(value)) {
                found.insert(name, value);
            }
        }
        found
    };
    let (max, min) = (amounts("max"), amounts("min"));
    let defaults = kind != "Pod";
    let [default, request] = ["default", "defaultRequest"].map(|field| {
        if defaults {
            amounts(field)
        } else {
            Amounts::new()
        }
    });
    let ratio = amounts("maxLimitRequestRatio");
    if !defaults {
        for field in ["default", "defaultRequest"] {
            if entries(limit, field).next().is_some() {
                let why = "may not be specified when `type` is 'Pod'";
                checks.forbidden(&path.child(field), why);
            }
        }
    }
    if kind == "PersistentVolumeClaim"
        && !min.contains_key("storage")
        && !max.contains_key("storage")
    {
        let why = "either minimum or maximum storage value is required, but neither was provided";
        checks.required(&path.child("limits"), why);
    }
    let all = [&max, &min, &default, &request, &ratio];
    let names: BTreeSet<&str> = all.iter().flat_map(|a| a.keys().copied()).collect();
    for name in names {
        let [max, min, default, request, ratio] = all.map(|a| a.get(name).copied());
        in_order(checks, name, [max, min, default, request], path);
        if let Some(ratio) = ratio {
            let at = path.child("maxLimitRequestRatio").key(name);
            limit_ratio(checks, ratio, min.zip(max), &at);
        }
    }
}

/// min <= default request <= default <= max
fn in_order(
    checks: &mut Checks,
    name: &str,
    [max, min, default, request]: [Option<Quantity>; 4],
    path: &Path,
) {
    let mut order = |low: (Option<Quantity>, &str),
                     high: (Option<Quantity>, &str),
                     field: &str,
                     shown: Option<Quantity>| {
        if let ((Some(a), what), (Some(b), other), Some(shown)) = (low, high, shown)
            && a > b
        {
            let why = format!("{what} value {a} is greater than {other} value {b}");
            checks.invalid(&path.child(field).key(name), shown.to_string(), &why);
        }
    };
    let (low, high) = ((min, "min"), (max, "max"));
    let asked = (request, "default request");
    order(low, high, "min", min);
    order(low, asked, "defaultRequest", request);
    order(asked, high, "defaultRequest", request);
    order(asked, (default, "default limit"), "defaultRequest", request);
    order(low, (default, "default"), "default", min);
    order((default, "default"), high, "default", max);
    if let (Some(default), Some(request)) = (default, request)
        && !overcommits(name)
        && default != request
    {
        let why = format!(
            "default value {default} must equal to defaultRequest value {request} in {name}"
        );
        checks.invalid(
            &path.child("defaultRequest").key(name),
            request.to_string(),
            &why,
        );
    }
}

fn limit_ratio(
    checks: &mut Checks,
    ratio: Quantity,
    bounds: Option<(Quantity, Quantity)>,
    path: &Path,
) {
    if ratio < Quantity::new(1, Format::DecimalSi) {
        checks.invalid(
            path,
            ratio.to_string(),
            &format!("ratio {ratio} is less than 1"),
        );
    }
    if let Some((min, max)) = bounds {
        let most = max.as_f64() / min.as_f64();
        if ratio.as_f64() > most {
            let why = format!("ratio {ratio} is greater than max/min = {most:.6}");
            checks.invalid(path, ratio.to_string(), &why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(check: impl Fn(&mut Checks)) -> Vec<String> {
        let mut checks = Checks::default();
        check(&mut checks);
        checks.done().0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn requirements() {
        #[rustfmt::skip]
        let table: &[(Value, &[&str])] = &[
            (json!({"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}}), &[]),
            (json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}), &["r.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"]),
            (json!({"requests": {"example.com/gpu": "1"}}), &["r.limits: Required value: Limit must be set for non overcommitable resources"]),
            (json!({"limits": {"example.com/gpu": "1500m"}}), &["r.limits[example.com/gpu]: Invalid value: \"1500m\": must be an integer"]),
            (json!({"limits": {"gpu": "1"}}), &["r.limits[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified", "r.limits[gpu]: Invalid value: \"gpu\": must be a standard resource for containers"]),
            (json!({"limits": {"hugepages-2Mi": "2Mi"}}), &["r: Forbidden: HugePages require cpu or memory"]),
            (json!({"limits": {"hugepages-2Mi": "3Mi", "memory": "1Gi"}}), &["r.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi"]),
            (json!({"limits": {"cpu": "-1"}}), &["r.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0"]),
        ];
        for (given, want) in table {
            assert_eq!(
                errors(|c| container(c, given, &Path::new("r"))),
                *want,
                "{given}"
            );
        }
        let found = errors(|c| {
            pod(
                c,
                &json!({"limits": {"ephemeral-storage": "1"}}),
                &Path::new("r"),
            )
        });
        assert_eq!(
            found,
            [
                "r.limits[ephemeral-storage]: Unsupported value: \"ephemeral-storage\": supported values: \"cpu\", \"hugepages-\", \"memory\""
            ]
        );
    }

    #[test]
    fn quotas() {
        #[rustfmt::skip]
        let table: &[(Value, &[&str])] = &[
            (json!({"hard": {"pods": "10", "requests.cpu": "1", "count/jobs.batch": "3"}}), &[]),
            (json!({"hard": {"pods": "-1"}}), &["spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0"]),
            (json!({"hard": {"storage": "1"}}), &["spec.hard[storage]: Invalid value: \"storage\": must be a standard resource for quota"]),
            (json!({"hard": {"services": "1"}, "scopes": ["BestEffort"]}), &["spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource"]),
            (json!({"hard": {"pods": "1"}, "scopes": ["Terminating", "NotTerminating"]}), &["spec.scopes: Invalid value: [\"Terminating\",\"NotTerminating\"]: conflicting scopes"]),
            (json!({"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In"}]}}), &["spec.scopeSelector.matchExpressions.values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"]),
        ];
        for (spec, want) in table {
            assert_eq!(
                errors(|c| quota_spec(c, spec, &Path::new("spec"))),
                *want,
                "{spec}"
            );
        }
    }

    #[test]
    fn limit_ranges() {
        let mut range = json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}});
        LimitRange.default(&mut range);
        let limit = &range["spec"]["limits"][0];
        assert_eq!(limit["default"], json!({"cpu": "2"}));
        assert_eq!(
            limit["defaultRequest"],
            json!({"cpu": "2", "memory": "1Mi"})
        );
        #[rustfmt::skip]
        let table: &[(Value, &[&str])] = &[
            (json!({"min": {"cpu": "2"}, "max": {"cpu": "1"}}), &["l.min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1"]),
            (json!({"defaultRequest": {"cpu": "2"}, "default": {"cpu": "1"}}), &["l.defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than default limit value 1"]),
            (json!({"maxLimitRequestRatio": {"cpu": "500m"}}), &["l.maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1"]),
            (json!({"min": {"cpu": "1"}, "max": {"cpu": "2"}, "maxLimitRequestRatio": {"cpu": "4"}}), &["l.maxLimitRequestRatio[cpu]: Invalid value: \"4\": ratio 4 is greater than max/min = 2.000000"]),
        ];
        for (limit, want) in table {
            assert_eq!(
                errors(|c| limit_item(c, limit, "Container", &Path::new("l"))),
                *want,
                "{limit}"
            );
        }
        let claim = errors(|c| limit_item(c, &json!({}), "PersistentVolumeClaim", &Path::new("l")));
        assert_eq!(claim.len(), 1);
    }
}
