//! LimitRanger: default, smallest and largest requests and limits in a namespace.

use apimachinery::object;
use apimachinery::quantity::Quantity;
use apimachinery::resource::Resource;
use apimachinery::status::Result;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::usage::{self, Amounts};
use super::{Attributes, Operation, Plugin, cached_list, forbidden, is_pod};
use crate::registry::Registry;
use crate::strategy::check::{list, list_mut, text};

pub struct LimitRanger;

impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        let claim = resource.group.is_empty() && resource.plural == "persistentvolumeclaims";
        match operation {
            Operation::Create => subresource.is_empty() && (is_pod(resource) || claim),
            Operation::Update => {
                (subresource == "resize" && is_pod(resource)) || (subresource.is_empty() && claim)
            }
            _ => false,
        }
    }

    fn admit<'a>(
        &'a self,
        a: &'a mut Attributes<'_>,
        registry: &'a Registry,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if !is_pod(a.resource) {
                return Ok(());
            }
            for range in cached_list(registry, "", "limitranges", a.namespace).await? {
                default_containers(a.object, &range.value());
            }
            Ok(())
        })
    }

    fn validate<'a>(
        &'a self,
        a: &'a Attributes<'_>,
        registry: &'a Registry,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if object::deletion_timestamp(a.old).is_some() {
                return Ok(());
            }
            for range in cached_list(registry, "", "limitranges", a.namespace).await? {
                let errors = check(a.object, &a.resource.plural, &range.value());
                match errors.as_slice() {
                    [] => {}
                    [one] => return Err(forbidden(a, one)),
                    many => return Err(forbidden(a, &format!("[{}]", many.join(", ")))),
                }
            }
            Ok(())
        })
    }
}

fn limits_of<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    list(&range["spec"], "limits")
        .iter()
        .filter(move |l| text(l, "type") == kind)
}

/// Fills in what containers leave out, and notes it in an annotation.
fn default_containers(pod: &mut Value, range: &Value) {
    let (mut requests, mut limits) = (Amounts::new(), Amounts::new());
    for limit in limits_of(range, "Container") {
        requests.extend(usage::parse(limit, "defaultRequest"));
        limits.extend(usage::parse(limit, "default"));
    }
    let mut notes = Vec::new();
    let Some(spec) = pod.get_mut("spec").filter(|s| s.is_object()) else {
        return;
    };
    for (kind, shown) in [
        ("containers", "container"),
        ("initContainers", "init container"),
    ] {
        for container in list_mut(spec, kind) {
            let name = text(container, "name").to_owned();
            for (field, defaults, what) in [
                ("requests", &requests, "request"),
                ("limits", &limits, "limit"),
            ] {
                let set = merge(container, field, defaults);
                if !set.is_empty() {
                    notes.push(format!("{} {what} for {shown} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        object::set_annotation(pod, "kubernetes.io/limit-ranger", &note);
    }
}

/// The names of the resources that were set.
fn merge(container: &mut Value, field: &str, defaults: &Amounts) -> Vec<String> {
    let missing: Vec<_> = defaults
        .iter()
        .filter(|(name, _)| container["resources"][field].get(name.as_str()).is_none())
        .collect();
    for (name, amount) in &missing {
        if !container["resources"].is_object() {
            container["resources"] = json!({});
        }
        container["resources"][field][name.as_str()] = amount.to_string().into();
    }
    missing.into_iter().map(|(name, _)| name.clone()).collect()
}

/// Every violation, in words.
fn check(object: &Value, plural: &str, range: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    let spec = &object["spec"];
    if plural == "persistentvolumeclaims" {
        let requests = usage::amounts(spec, "requests");
        for limit in limits_of(range, "PersistentVolumeClaim") {
            for (name, least) in usage::parse(limit, "min") {
                errors.extend(minimum(
                    "PersistentVolumeClaim",
                    &name,
                    least,
                    &requests,
                    &Amounts::new(),
                ));
            }
            for (name, most) in usage::parse(limit, "max") {
                errors.extend(maximum_request(&name, most, &requests));
            }
        }
        return errors;
    }
    let containers = list(spec, "containers")
        .iter()
        .chain(list(spec, "initContainers"));
    for container in containers {
        let (requests, limits) = (
            usage::amounts(container, "requests"),
            usage::amounts(container, "limits"),
        );
        for limit in limits_of(range, "Container") {
            errors.extend(constrain("Container", limit, &requests, &limits));
        }
    }
    for limit in limits_of(range, "Pod") {
        errors.extend(constrain(
            "Pod",
            limit,
            &usage::of_pod(spec, "requests"),
            &usage::of_pod(spec, "limits"),
        ));
    }
    errors
}

fn constrain(kind: &str, limit: &Value, requests: &Amounts, limits: &Amounts) -> Vec<String> {
    let mut errors = Vec::new();
    for (name, least) in usage::parse(limit, "min") {
        errors.extend(minimum(kind, &name, least, requests, limits));
    }
    for (name, most) in usage::parse(limit, "max") {
        errors.extend(maximum(kind, &name, most, requests, limits));
    }
    for (name, most) in usage::parse(limit, "maxLimitRequestRatio") {
        errors.extend(ratio(kind, &name, most, requests, limits));
    }
    errors
}

fn minimum(
    kind: &str,
    name: &str,
    least: Quantity,
    requests: &Amounts,
    limits: &Amounts,
) -> Option<String> {
    let base = format!("minimum {name} usage per {kind} is {least}");
    match (requests.get(name), limits.get(name)) {
        (None, _) => Some(format!("{base}.  No request is specified")),
        (Some(request), _) if *request < least => Some(format!("{base}, but request is {request}")),
        (_, Some(limit)) if *limit < least => Some(format!("{base}, but limit is {limit}")),
        _ => None,
    }
}

fn maximum(
    kind: &str,
    name: &str,
    most: Quantity,
    requests: &Amounts,
    limits: &Amounts,
) -> Option<String> {
    let base = format!("maximum {name} usage per {kind} is {most}");
    match (requests.get(name), limits.get(name)) {
        (_, None) => Some(format!("{base}.  No limit is specified")),
        (_, Some(limit)) if *limit > most => Some(format!("{base}, but limit is {limit}")),
        (Some(request), _) if *request > most => Some(format!("{base}, but request is {request}")),
        _ => None,
    }
}

fn maximum_request(name: &str, most: Quantity, requests: &Amounts) -> Option<String> {
    let base = format!("maximum {name} usage per PersistentVolumeClaim is {most}");
    match requests.get(name) {
        None => Some(format!("{base}.  No request is specified")),
        Some(request) if *request > most => Some(format!("{base}, but request is {request}")),
        _ => None,
    }
}

fn ratio(
    kind: &str,
    name: &str,
    most: Quantity,
    requests: &Amounts,
    limits: &Amounts,
) -> Option<String> {
    let base = format!("{name} max limit to request ratio per {kind} is {most}");
    let positive = |amounts: &Amounts| {
        amounts
            .get(name)
            .filter(|q| !q.is_zero())
            .map(|q| q.as_f64())
    };
    let Some(request) = positive(requests) else {
        return Some(format!(
            "{base}, but no request is specified or request is 0"
        ));
    };
    let Some(limit) = positive(limits) else {
        return Some(format!("{base}, but no limit is specified or limit is 0"));
    };
    let ratio = limit / request;
    (ratio > most.as_f64()).then(|| format!("{base}, but provided ratio is {ratio:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_fill_what_is_missing() {
        let range = json!({"spec": {"limits": [
            {"type": "Container", "default": {"cpu": "500m", "memory": "1Gi"}, "defaultRequest": {"cpu": "100m"}}]}});
        let mut pod =
            json!({"spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}}}]}});
        default_containers(&mut pod, &range);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}})
        );
        assert_eq!(
            object::annotation(&pod, "kubernetes.io/limit-ranger"),
            Some(
                "LimitRanger plugin set: cpu request for container a; memory limit for container a"
            )
        );
    }

    #[test]
    fn violations_read_as_kubernetes_does() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"name": "a", "resources": resources}]}});
        let range = |limit: Value| json!({"spec": {"limits": [limit]}});
        for (limit, resources, want) in [
            (
                json!({"type": "Container", "max": {"cpu": "1"}}),
                json!({"limits": {"cpu": "2"}}),
                "maximum cpu usage per Container is 1, but limit is 2",
            ),
            (
                json!({"type": "Container", "max": {"cpu": "1"}}),
                json!({}),
                "maximum cpu usage per Container is 1.  No limit is specified",
            ),
            (
                json!({"type": "Pod", "min": {"memory": "1Gi"}}),
                json!({"requests": {"memory": "1Mi"}}),
                "minimum memory usage per Pod is 1Gi, but request is 1Mi",
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                json!({"requests": {"cpu": "1"}, "limits": {"cpu": "3"}}),
                "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000",
            ),
            (
                json!({"type": "Container", "max": {"cpu": "2"}}),
                json!({"limits": {"cpu": "2"}}),
                "",
            ),
        ] {
            assert_eq!(
                check(&pod(resources), "pods", &range(limit)).join("; "),
                want
            );
        }
        let claim = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
        let limit = range(json!({"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}));
        assert_eq!(
            check(&claim, "persistentvolumeclaims", &limit),
            ["maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi"]
        );
    }
}
