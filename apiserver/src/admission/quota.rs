//! ResourceQuota: what a namespace may use in total.
//!
//! Usage is counted in the quota's status, by compare-and-set, before the object is created; so two creates cannot both
//! take the last place. A quota that nobody has counted yet is counted here. What deletions give back, a controller
//! writes.

use std::collections::BTreeSet;

use apimachinery::object;
use apimachinery::quantity::Quantity;
use apimachinery::resource::Resource;
use apimachinery::selector::LabelSelector;
use apimachinery::status::{Result, Status};
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::usage::{self, Amounts, one, show};
use super::{Attributes, Operation, Plugin, cached_list, forbidden, is_pod};
use crate::authn::UserInfo;
use crate::registry::{Call, Registry, Target};
use crate::strategy::check::{given, list, text};
use crate::strategy::pod::qos_class;

pub struct ResourceQuota;

impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn changes_objects(&self) -> bool {
        false
    }

    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        let grows = matches!(&*resource.plural, "services" | "persistentvolumeclaims")
            && resource.group.is_empty();
        resource.namespaced
            && !resource.storage_prefix.is_empty()
            && subresource.is_empty()
            && (operation == Operation::Create || (operation == Operation::Update && grows))
    }

    fn validate<'a>(
        &'a self,
        a: &'a Attributes<'_>,
        registry: &'a Registry,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let quotas = cached_list(registry, "", "resourcequotas", a.namespace).await?;
            if quotas.is_empty() {
                return Ok(());
            }
            let delta = delta(a);
            if delta.is_empty() {
                return Ok(());
            }
            let mut charged = Vec::new();
            for quota in quotas.iter().map(|q| q.value()) {
                if !applies(&quota, a.resource, a.object) {
                    continue;
                }
                let wanted = limited(&delta, &hard(&quota));
                if is_pod(a.resource)
                    && let Some(missing) = unspecified(&hard(&quota), &a.object["spec"])
                {
                    return Err(forbidden(
                        a,
                        &format!(
                            "failed quota: {}: must specify {missing}",
                            object::name(&quota)
                        ),
                    ));
                }
                if wanted.is_empty() {
                    continue;
                }
                // All quotas are asked before the first is charged.
                exceeds(&quota, &wanted).map_or(Ok(()), |why| Err(forbidden(a, &why)))?;
                charged.push((quota, wanted));
            }
            if a.dry_run {
                return Ok(());
            }
            for (quota, wanted) in charged {
                charge(a, registry, &quota, &wanted).await?;
            }
            Ok(())
        })
    }
}

fn hard(quota: &Value) -> Amounts {
    match given(&quota["status"], "hard") {
        Some(_) => usage::parse(&quota["status"], "hard"),
        None => usage::parse(&quota["spec"], "hard"),
    }
}

fn limited(usage: &Amounts, hard: &Amounts) -> Amounts {
    usage
        .iter()
        .filter(|(name, _)| hard.contains_key(*name))
        .map(|(n, q)| (n.clone(), *q))
        .collect()
}

/// The error if the quota has no room; a quota not yet counted answers when it is charged.
fn exceeds(quota: &Value, wanted: &Amounts) -> Option<String> {
    given(&quota["status"], "used")?;
    let (hard, used) = (hard(quota), usage::parse(&quota["status"], "used"));
    let now = |name: &str| used.get(name).copied().unwrap_or(Quantity::ZERO);
    let over: BTreeSet<&String> = wanted
        .iter()
        .filter(|(name, more)| now(name) + **more > hard[*name])
        .map(|(name, _)| name)
        .collect();
    if over.is_empty() {
        return None;
    }
    let only = |of: &dyn Fn(&str) -> Quantity| -> Amounts {
        over.iter().map(|n| ((*n).clone(), of(n))).collect()
    };
    Some(format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        object::name(quota),
        show(&only(&|n| wanted[n])),
        show(&only(&now)),
        show(&only(&|n| hard[n]))
    ))
}

/// Adds to the quota's status, which must still have room when it is written.
async fn charge(
    a: &Attributes<'_>,
    registry: &Registry,
    quota: &Value,
    wanted: &Amounts,
) -> Result<()> {
    let served = registry.resource("", "resourcequotas")?;
    let name = object::name(quota).to_owned();
    let fresh = match given(&quota["status"], "used") {
        Some(_) => None,
        None => Some(count(registry, a.namespace, quota).await?),
    };
    let user = UserInfo::apiserver();
    let mut call = Call::by(&user);
    let target = Target::new(&served, a.namespace, &name).subresource("status");
    let mut refused = None;
    let written = registry
        .update(target, &mut call, |current| {
            let mut quota = current.clone();
            if let (Some(counted), None) = (&fresh, given(&quota["status"], "used")) {
                quota["status"] = json!({"hard": quota["spec"]["hard"], "used": to_value(counted)});
            }
            if let Some(why) = exceeds(&quota, wanted) {
                refused = Some(why.clone());
                return Err(Status::internal(why));
            }
            let mut used = usage::parse(&quota["status"], "used");
            for (name, more) in wanted {
                *used.entry(name.clone()).or_insert(Quantity::ZERO) += *more;
            }
            quota["status"]["used"] = to_value(&used);
            Ok(quota)
        })
        .await;
    match (refused, written) {
        (Some(why), _) => Err(forbidden(a, &why)),
        // Somebody deleted the quota: nothing limits any more.
        (None, Err(error)) if error.is_not_found() => Ok(()),
        (None, written) => written.map(|_| ()),
    }
}

fn to_value(amounts: &Amounts) -> Value {
    amounts
        .iter()
        .map(|(name, amount)| (name.clone(), Value::from(amount.to_string())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// What all objects of the namespace use of a quota's resources.
async fn count(registry: &Registry, namespace: &str, quota: &Value) -> Result<Amounts> {
    let hard = hard(quota);
    let mut used: Amounts = hard
        .keys()
        .map(|name| (name.clone(), Quantity::ZERO))
        .collect();
    let table = registry.table();
    let stored = table
        .all()
        .filter(|s| s.resource.namespaced && s.resource.storage_version && s.resource.is_stored());
    for served in stored {
        let resource = &served.resource;
        let counted = hard.keys().any(|name| concerns(name, resource));
        if !counted {
            continue;
        }
        for object in cached_list(registry, &resource.group, &resource.plural, namespace).await? {
            let object = object.value();
            let ended = is_pod(resource)
                && matches!(text(&object["status"], "phase"), "Succeeded" | "Failed");
            if !ended && applies(quota, resource, &object) {
                for (name, amount) in limited(&of(resource, &object), &hard) {
                    *used.entry(name).or_insert(Quantity::ZERO) += amount;
                }
            }
        }
    }
    Ok(used)
}

/// Whether a quota's resource is about a kind.
fn concerns(name: &str, resource: &Resource) -> bool {
    if name == count_name(resource) {
        return true;
    }
    if !resource.group.is_empty() {
        return false;
    }
    match &*resource.plural {
        "pods" => {
            name == "pods"
                || !(name.starts_with("count/")
                    || name.contains("storage") && !name.contains("ephemeral"))
        }
        "persistentvolumeclaims" => name.contains("storage") || name == "persistentvolumeclaims",
        "services" => name.starts_with("services"),
        plural => name == plural,
    }
}

fn count_name(resource: &Resource) -> String {
    match &*resource.group {
        "" => format!("count/{}", resource.plural),
        group => format!("count/{}.{group}", resource.plural),
    }
}

/// What the write adds: for an update, the difference where it grows.
fn delta(a: &Attributes<'_>) -> Amounts {
    let new = of(a.resource, a.object);
    if a.operation == Operation::Create {
        return new;
    }
    let old = of(a.resource, a.old);
    let grown = new.into_iter().map(|(name, amount)| {
        let before = old.get(&name).copied().unwrap_or(Quantity::ZERO);
        (name, amount - before)
    });
    grown.filter(|(_, amount)| amount.sign() > 0).collect()
}

/// What one object uses.
fn of(resource: &Resource, object: &Value) -> Amounts {
    const COUNTED: [&str; 7] = [
        "configmaps",
        "persistentvolumeclaims",
        "pods",
        "replicationcontrollers",
        "resourcequotas",
        "secrets",
        "services",
    ];
    let mut used = Amounts::from([(count_name(resource), one())]);
    if !resource.group.is_empty() {
        return used;
    }
    let plural = &*resource.plural;
    if COUNTED.contains(&plural) {
        used.insert(plural.to_owned(), one());
    }
    match plural {
        "pods" => pod(&object["spec"], &mut used),
        "services" => service(&object["spec"], &mut used),
        "persistentvolumeclaims" => claim(object, &mut used),
        _ => {}
    }
    used
}

fn pod(spec: &Value, used: &mut Amounts) {
    for (name, amount) in usage::of_pod(spec, "requests") {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage")
            || name.starts_with("hugepages-")
        {
            used.insert(name.clone(), amount);
        }
        used.insert(format!("requests.{name}"), amount);
    }
    for (name, amount) in usage::of_pod(spec, "limits") {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            used.insert(format!("limits.{name}"), amount);
        }
    }
}

fn service(spec: &Value, used: &mut Amounts) {
    let ports = list(spec, "ports").len() as i64;
    let count = |n: i64| Quantity::new(n, apimachinery::quantity::Format::DecimalSi);
    let (balancers, node_ports) = match text(spec, "type") {
        "NodePort" => (0, ports),
        "LoadBalancer" if spec["allocateLoadBalancerNodePorts"] == false => {
            let given = list(spec, "ports")
                .iter()
                .filter(|p| p["nodePort"].as_i64().unwrap_or(0) != 0)
                .count();
            (1, given as i64)
        }
        "LoadBalancer" => (1, ports),
        _ => (0, 0),
    };
    used.insert("services.loadbalancers".into(), count(balancers));
    used.insert("services.nodeports".into(), count(node_ports));
}

fn claim(object: &Value, used: &mut Amounts) {
    let storage = usage::amounts(&object["spec"], "requests")
        .get("storage")
        .copied();
    let class = text(&object["spec"], "storageClassName");
    if let Some(storage) = storage {
        used.insert("requests.storage".into(), storage);
    }
    if !class.is_empty() {
        let of_class = format!("{class}.storageclass.storage.k8s.io");
        used.insert(format!("{of_class}/persistentvolumeclaims"), one());
        if let Some(storage) = storage {
            used.insert(format!("{of_class}/requests.storage"), storage);
        }
    }
}

/// Limited cpu and memory have to be asked for by every container: the words after "must specify".
fn unspecified(hard: &Amounts, spec: &Value) -> Option<String> {
    const REQUIRED: [(&str, &str, &str); 6] = [
        ("cpu", "requests", "cpu"),
        ("limits.cpu", "limits", "cpu"),
        ("limits.memory", "limits", "memory"),
        ("memory", "requests", "memory"),
        ("requests.cpu", "requests", "cpu"),
        ("requests.memory", "requests", "memory"),
    ];
    if given(spec, "resources").is_some_and(|r| r.as_object().is_some_and(|r| !r.is_empty())) {
        return None;
    }
    let mut missing = Vec::new();
    for (name, which, resource) in REQUIRED
        .into_iter()
        .filter(|(name, ..)| hard.contains_key(*name))
    {
        let containers = list(spec, "containers")
            .iter()
            .chain(list(spec, "initContainers"));
        let without: BTreeSet<&str> = containers
            .filter(|c| !usage::amounts(c, which).contains_key(resource))
            .map(|c| text(c, "name"))
            .collect();
        if !without.is_empty() {
            missing.push(format!(
                "{name} for: {}",
                without.into_iter().collect::<Vec<_>>().join(",")
            ));
        }
    }
    (!missing.is_empty()).then(|| missing.join("; "))
}

/// Whether the quota's scopes select the object. Scopes are about pods (and classes of claims); others never match them.
fn applies(quota: &Value, resource: &Resource, object: &Value) -> bool {
    let scopes = list(&quota["spec"], "scopes")
        .iter()
        .filter_map(Value::as_str);
    let scopes: Vec<Value> = scopes
        .map(|s| json!({"scopeName": s, "operator": "Exists"}))
        .chain(
            list(&quota["spec"]["scopeSelector"], "matchExpressions")
                .iter()
                .cloned(),
        )
        .collect();
    if scopes.is_empty() {
        return true;
    }
    is_pod(resource) && scopes.iter().all(|scope| in_scope(scope, &object["spec"]))
}

fn in_scope(scope: &Value, spec: &Value) -> bool {
    let deadline = given(spec, "activeDeadlineSeconds").is_some();
    match text(scope, "scopeName") {
        "Terminating" => deadline,
        "NotTerminating" => !deadline,
        "BestEffort" => qos_class(spec) == "BestEffort",
        "NotBestEffort" => qos_class(spec) != "BestEffort",
        "CrossNamespacePodAffinity" => crosses_namespaces(&spec["affinity"]),
        "PriorityClass" => {
            let class = text(spec, "priorityClassName");
            if text(scope, "operator") == "Exists" {
                return !class.is_empty();
            }
            let requirement = json!({"matchExpressions": [{
                "key": "class", "operator": scope["operator"], "values": scope["values"]}]});
            let mut labels = serde_json::Map::new();
            if !class.is_empty() {
                labels.insert("class".into(), class.into());
            }
            LabelSelector::from_value(&requirement).is_ok_and(|s| s.matches(&labels))
        }
        _ => false,
    }
}

fn crosses_namespaces(affinity: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let terms = &affinity[*kind];
        let required = list(terms, "requiredDuringSchedulingIgnoredDuringExecution").iter();
        let preferred = list(terms, "preferredDuringSchedulingIgnoredDuringExecution").iter();
        required
            .chain(preferred.map(|t| &t["podAffinityTerm"]))
            .any(|t| !list(t, "namespaces").is_empty() || given(t, "namespaceSelector").is_some())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_show_only_what_is_over() {
        let quota = json!({
            "metadata": {"name": "q"},
            "status": {"hard": {"pods": "2", "requests.cpu": "1"}, "used": {"pods": "2", "requests.cpu": "100m"}},
        });
        let wanted = |cpu: &str| {
            Amounts::from([
                ("pods".into(), one()),
                ("requests.cpu".into(), Quantity::parse(cpu).unwrap()),
            ])
        };
        assert_eq!(
            exceeds(&quota, &wanted("100m")).unwrap(),
            "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"
        );
        assert_eq!(
            exceeds(&quota, &wanted("1")).unwrap(),
            "exceeded quota: q, requested: pods=1,requests.cpu=1, used: pods=2,requests.cpu=100m, limited: pods=2,requests.cpu=1"
        );
    }

    #[test]
    fn limited_resources_have_to_be_given() {
        let hard: Amounts = ["limits.cpu", "requests.memory"]
            .into_iter()
            .map(|n| (n.to_owned(), one()))
            .collect();
        let spec = json!({"containers": [{"name": "b"}, {"name": "a", "resources": {"limits": {"cpu": "1"}}}]});
        assert_eq!(
            unspecified(&hard, &spec).unwrap(),
            "limits.cpu for: b; requests.memory for: a,b"
        );
        assert_eq!(
            unspecified(&Amounts::from([("pods".into(), one())]), &spec),
            None
        );
    }

    #[test]
    fn scopes_select_pods() {
        let scope = |name: &str| json!({"scopeName": name, "operator": "Exists"});
        let class = |operator: &str| json!({"scopeName": "PriorityClass", "operator": operator, "values": ["high"]});
        let spec =
            json!({"activeDeadlineSeconds": 5, "priorityClassName": "high", "containers": [{}]});
        for (scope, want) in [
            (scope("Terminating"), true),
            (scope("NotTerminating"), false),
            (scope("BestEffort"), true),
            (class("In"), true),
            (class("NotIn"), false),
            (scope("CrossNamespacePodAffinity"), false),
        ] {
            assert_eq!(in_scope(&scope, &spec), want, "{scope}");
        }
    }

    #[test]
    fn services_and_claims() {
        let mut used = Amounts::new();
        service(&json!({"type": "NodePort", "ports": [{}, {}]}), &mut used);
        assert_eq!(show(&used), "services.loadbalancers=0,services.nodeports=2");
        let mut used = Amounts::new();
        claim(
            &json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}}}),
            &mut used,
        );
        assert_eq!(
            show(&used),
            "fast.storageclass.storage.k8s.io/persistentvolumeclaims=1,fast.storageclass.storage.k8s.io/requests.storage=1Gi,requests.storage=1Gi"
        );
    }
}
