//! What objects use of a ResourceQuota, as the admission of new ones counts it.

use std::collections::BTreeMap;

use apimachinery::quantity::{Format, Quantity};
use serde_json::Value;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

fn items<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object[field].as_array().map_or(&[], Vec::as_slice)
}

/// A map of quantities; what cannot be read is left out.
pub fn parse(map: &Value) -> Amounts {
    let entries = map.as_object().into_iter().flatten();
    let read = |(name, amount): (&String, &Value)| {
        Some((name.clone(), Quantity::parse(amount.as_str()?).ok()?))
    };
    entries.filter_map(read).collect()
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *to.entry(name.clone()).or_insert(Quantity::ZERO) += *amount;
    }
}

fn at_least(to: &mut Amounts, floor: &Amounts) {
    for (name, amount) in floor {
        let slot = to.entry(name.clone()).or_insert(*amount);
        *slot = (*slot).max(*amount);
    }
}

fn count(n: usize) -> Quantity {
    Quantity::new(n as i64, Format::DecimalSi)
}

/// Containers together, or the hungriest init container if that is more; sidecars count along with what comes after
/// them; what the pod itself says goes first; overhead on top.
fn of_pod(spec: &Value, which: &str) -> Amounts {
    let own = |container: &Value| parse(&container["resources"][which]);
    let mut total = Amounts::new();
    for container in items(spec, "containers") {
        add(&mut total, &own(container));
    }
    let (mut sidecars, mut init) = (Amounts::new(), Amounts::new());
    for container in items(spec, "initContainers") {
        let mut amounts = own(container);
        if container["restartPolicy"] == "Always" {
            add(&mut total, &amounts);
            add(&mut sidecars, &amounts);
            amounts = sidecars.clone();
        } else {
            add(&mut amounts, &sidecars);
        }
        at_least(&mut init, &amounts);
    }
    at_least(&mut total, &init);
    for (name, amount) in own(spec) {
        if matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-") {
            total.insert(name, amount);
        }
    }
    for (name, overhead) in parse(&spec["overhead"]) {
        if which == "requests" || total.contains_key(&name) {
            *total.entry(name).or_insert(Quantity::ZERO) += overhead;
        }
    }
    total
}

fn pod(spec: &Value, used: &mut Amounts) {
    let plain = |name: &str| matches!(name, "cpu" | "memory" | "ephemeral-storage");
    for (name, amount) in of_pod(spec, "requests") {
        if plain(&name) || name.starts_with("hugepages-") {
            used.insert(name.clone(), amount);
        }
        used.insert(format!("requests.{name}"), amount);
    }
    let limits = of_pod(spec, "limits").into_iter();
    let limits = limits.filter(|(name, _)| plain(name));
    used.extend(limits.map(|(name, amount)| (format!("limits.{name}"), amount)));
}

fn service(spec: &Value, used: &mut Amounts) {
    let ports = items(spec, "ports");
    let given = ports
        .iter()
        .filter(|p| p["nodePort"].as_i64().unwrap_or(0) != 0);
    let (balancers, node_ports) = match spec["type"].as_str().unwrap_or_default() {
        "NodePort" => (0, ports.len()),
        "LoadBalancer" if spec["allocateLoadBalancerNodePorts"] == false => (1, given.count()),
        "LoadBalancer" => (1, ports.len()),
        _ => (0, 0),
    };
    used.insert("services.loadbalancers".into(), count(balancers));
    used.insert("services.nodeports".into(), count(node_ports));
}

fn claim(spec: &Value, used: &mut Amounts) {
    let storage = parse(&spec["resources"]["requests"]).remove("storage");
    if let Some(storage) = storage {
        used.insert("requests.storage".into(), storage);
    }
    let class = spec["storageClassName"].as_str().unwrap_or_default();
    if !class.is_empty() {
        let of_class = format!("{class}.storageclass.storage.k8s.io");
        used.insert(format!("{of_class}/persistentvolumeclaims"), count(1));
        if let Some(storage) = storage {
            used.insert(format!("{of_class}/requests.storage"), storage);
        }
    }
}

/// What one object of a core resource uses, besides being one.
pub fn of(plural: &str, object: &Value) -> Amounts {
    let mut used = Amounts::from([
        (plural.to_owned(), count(1)),
        (format!("count/{plural}"), count(1)),
    ]);
    match plural {
        "pods" => pod(&object["spec"], &mut used),
        "services" => service(&object["spec"], &mut used),
        "persistentvolumeclaims" => claim(&object["spec"], &mut used),
        _ => {}
    }
    used
}

/// Whether a quota with these scopes counts a pod; with any scope it counts nothing but pods.
pub fn in_scopes(quota_spec: &Value, pod: &Value) -> bool {
    let plain = items(quota_spec, "scopes");
    let selected = items(&quota_spec["scopeSelector"], "matchExpressions");
    plain
        .iter()
        .all(|s| in_scope(s.as_str().unwrap_or_default(), "Exists", &[], pod))
        && selected.iter().all(|s| {
            let text = |field: &str| s[field].as_str().unwrap_or_default();
            in_scope(text("scopeName"), text("operator"), items(s, "values"), pod)
        })
}

pub fn has_scopes(quota_spec: &Value) -> bool {
    !items(quota_spec, "scopes").is_empty()
        || !items(&quota_spec["scopeSelector"], "matchExpressions").is_empty()
}

fn in_scope(scope: &str, operator: &str, values: &[Value], pod: &Value) -> bool {
    let spec = &pod["spec"];
    let best_effort = pod["status"]["qosClass"] == "BestEffort";
    match scope {
        "Terminating" => spec["activeDeadlineSeconds"].is_i64(),
        "NotTerminating" => !spec["activeDeadlineSeconds"].is_i64(),
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "PriorityClass" => {
            let class = spec["priorityClassName"].as_str().filter(|c| !c.is_empty());
            let listed = class.is_some_and(|c| values.iter().any(|v| v == c));
            match operator {
                "In" => listed,
                "NotIn" => !listed,
                "DoesNotExist" => class.is_none(),
                _ => class.is_some(),
            }
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn show(used: &Amounts) -> String {
        let parts: Vec<String> = used.iter().map(|(n, q)| format!("{n}={q}")).collect();
        parts.join(",")
    }

    #[test]
    fn what_objects_use() {
        let c =
            |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}, "limits": {"cpu": "2"}}});
        let mut sidecar = c("300m");
        sidecar["restartPolicy"] = "Always".into();
        for (plural, object, want) in [
            (
                "pods",
                json!({"spec": {"containers": [c("1"), c("500m")]}}),
                "count/pods=1,cpu=1500m,limits.cpu=4,pods=1,requests.cpu=1500m",
            ),
            (
                "pods",
                json!({"spec": {"containers": [c("1")], "initContainers": [sidecar, c("900m")]}}),
                "count/pods=1,cpu=1300m,limits.cpu=4,pods=1,requests.cpu=1300m",
            ),
            (
                "services",
                json!({"spec": {"type": "NodePort", "ports": [{}, {}]}}),
                "count/services=1,services=1,services.loadbalancers=0,services.nodeports=2",
            ),
            (
                "persistentvolumeclaims",
                json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}}),
                "count/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/requests.storage=1Gi,persistentvolumeclaims=1,requests.storage=1Gi",
            ),
            ("secrets", json!({}), "count/secrets=1,secrets=1"),
        ] {
            assert_eq!(show(&of(plural, &object)), want);
        }
    }

    #[test]
    fn scopes() {
        let pod = json!({"spec": {"activeDeadlineSeconds": 5, "priorityClassName": "high"}, "status": {"qosClass": "BestEffort"}});
        for (spec, want) in [
            (json!({}), true),
            (json!({"scopes": ["Terminating", "BestEffort"]}), true),
            (json!({"scopes": ["NotTerminating"]}), false),
            (json!({"scopes": ["NotBestEffort"]}), false),
            (
                json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}),
                true,
            ),
            (
                json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "NotIn", "values": ["high"]}]}}),
                false,
            ),
            (
                json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "DoesNotExist"}]}}),
                false,
            ),
        ] {
            assert_eq!(in_scopes(&spec, &pod), want, "{spec}");
        }
    }
}
