//! The plugins that set one thing: priorities, tolerations, default classes, protection finalizers, overhead.

use apimachinery::object;
use apimachinery::resource::{GroupResource, Resource};
use apimachinery::status::{Result, Status};
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin, cached, cached_list, forbidden, is_pod};
use crate::registry::Registry;
use crate::strategy::check::{flag, given, integer, list, same, text};

type Future<'a> = BoxFuture<'a, Result<()>>;

/// Resolves a pod's priority from its class, or from the default class.
pub struct Priority;

impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
            && subresource.is_empty()
            && (is_pod(resource) || is_class(resource))
    }

    fn admit<'a>(&'a self, a: &'a mut Attributes<'_>, registry: &'a Registry) -> Future<'a> {
        Box::pin(async move {
            if !is_pod(a.resource) || !a.object["spec"].is_object() {
                return Ok(());
            }
            if a.operation == Operation::Update {
                for field in ["priority", "preemptionPolicy"] {
                    if given(&a.object["spec"], field).is_none()
                        && given(&a.old["spec"], field).is_some()
                    {
                        a.object["spec"][field] = a.old["spec"][field].clone();
                    }
                }
                return Ok(());
            }
            let class = class_of(a, registry).await?;
            let (priority, policy) = match &class {
                Some(class) => (
                    integer(class, "value").unwrap_or(0),
                    text(class, "preemptionPolicy"),
                ),
                None => (0, ""),
            };
            let policy = if policy.is_empty() {
                "PreemptLowerPriority"
            } else {
                policy
            };
            let spec = &a.object["spec"];
            if let Some(given) = integer(spec, "priority").filter(|p| *p != priority) {
                return Err(forbidden(
                    a,
                    &format!(
                        "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
                    ),
                ));
            }
            let given = text(spec, "preemptionPolicy");
            if !given.is_empty() && given != policy {
                return Err(forbidden(
                    a,
                    &format!(
                        "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
                    ),
                ));
            }
            let spec = &mut a.object["spec"];
            spec["priority"] = priority.into();
            spec["preemptionPolicy"] = policy.into();
            if let Some(class) = class {
                spec["priorityClassName"] = object::name(&class).into();
            }
            Ok(())
        })
    }

    fn validate<'a>(&'a self, a: &'a Attributes<'_>, registry: &'a Registry) -> Future<'a> {
        Box::pin(async move {
            if !is_class(a.resource) || !flag(a.object, "globalDefault") {
                return Ok(());
            }
            match default_class(registry).await? {
                Some(other) if object::name(&other) != object::name(a.object) => Err(forbidden(
                    a,
                    &format!(
                        "PriorityClass {} is already marked as default. Only one default can exist",
                        object::name(&other)
                    ),
                )),
                _ => Ok(()),
            }
        })
    }
}

fn is_class(resource: &Resource) -> bool {
    resource.group == "scheduling.k8s.io" && resource.plural == "priorityclasses"
}

async fn class_of(a: &Attributes<'_>, registry: &Registry) -> Result<Option<Value>> {
    let name = text(&a.object["spec"], "priorityClassName");
    if name.is_empty() {
        return default_class(registry).await;
    }
    match cached(registry, "scheduling.k8s.io", "priorityclasses", "", name).await? {
        Some(class) => Ok(Some(class.value())),
        None => Err(forbidden(
            a,
            &format!("no PriorityClass with name {name} was found"),
        )),
    }
}

/// The class marked as default; of several, the one with the lowest value.
async fn default_class(registry: &Registry) -> Result<Option<Value>> {
    let classes = cached_list(registry, "scheduling.k8s.io", "priorityclasses", "").await?;
    let defaults = classes
        .iter()
        .map(|c| c.value())
        .filter(|c| flag(c, "globalDefault"));
    Ok(defaults.min_by_key(|c| integer(c, "value").unwrap_or(0)))
}

/// Pods stay for five minutes on a node that is not ready or unreachable, unless they say otherwise.
pub struct DefaultTolerationSeconds;

impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
            && is_pod(resource)
            && subresource.is_empty()
    }

    fn admit<'a>(&'a self, a: &'a mut Attributes<'_>, _: &'a Registry) -> Future<'a> {
        if a.object["spec"].is_object() {
            tolerate(&mut a.object["spec"]);
        }
        Box::pin(async { Ok(()) })
    }
}

fn tolerate(spec: &mut Value) {
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let tolerated = list(spec, "tolerations").iter().any(|t| {
            let (k, effect) = (text(t, "key"), text(t, "effect"));
            (k == key || k.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if tolerated {
            continue;
        }
        let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
        match spec.get_mut("tolerations").and_then(Value::as_array_mut) {
            Some(list) => list.push(toleration),
            None => spec["tolerations"] = json!([toleration]),
        }
    }
}

/// Gives a claim, or an ingress, the class that is marked as default.
pub struct DefaultClass {
    name: &'static str,
    group: &'static str,
    plural: &'static str,
    classes: (&'static str, &'static str),
    annotation: &'static str,
    beta: &'static str,
    field: &'static str,
    own_annotation: &'static str,
}

/// `DefaultStorageClass`
pub const STORAGE_CLASS: DefaultClass = DefaultClass {
    name: "DefaultStorageClass",
    group: "",
    plural: "persistentvolumeclaims",
    classes: ("storage.k8s.io", "storageclasses"),
    annotation: "storageclass.kubernetes.io/is-default-class",
    beta: "storageclass.beta.kubernetes.io/is-default-class",
    field: "storageClassName",
    own_annotation: "volume.beta.kubernetes.io/storage-class",
};

/// `DefaultIngressClass`
pub const INGRESS_CLASS: DefaultClass = DefaultClass {
    name: "DefaultIngressClass",
    group: "networking.k8s.io",
    plural: "ingresses",
    classes: ("networking.k8s.io", "ingressclasses"),
    annotation: "ingressclass.kubernetes.io/is-default-class",
    beta: "ingressclass.kubernetes.io/is-default-class",
    field: "ingressClassName",
    own_annotation: "kubernetes.io/ingress.class",
};

impl Plugin for DefaultClass {
    fn name(&self) -> &'static str {
        self.name
    }

    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        operation == Operation::Create
            && subresource.is_empty()
            && resource.plural == self.plural
            && resource.group == self.group
    }

    fn admit<'a>(&'a self, a: &'a mut Attributes<'_>, registry: &'a Registry) -> Future<'a> {
        Box::pin(async move {
            let chosen = given(&a.object["spec"], self.field).is_some()
                || object::annotation(a.object, self.own_annotation).is_some();
            if chosen || !a.object["spec"].is_object() {
                return Ok(());
            }
            let classes = cached_list(registry, self.classes.0, self.classes.1, "").await?;
            let is_default = |c: &Value| {
                object::annotation(c, self.annotation) == Some("true")
                    || object::annotation(c, self.beta) == Some("true")
            };
            let defaults: Vec<Value> = classes
                .iter()
                .map(|c| c.value())
                .filter(is_default)
                .collect();
            if self.plural == "ingresses" && defaults.len() > 1 {
                return Err(forbidden(
                    a,
                    &format!(
                        "{} default IngressClasses were found, only 1 allowed",
                        defaults.len()
                    ),
                ));
            }
            // Of several default storage classes the newest is meant; among equals, the first by name.
            let age = |c: &Value| object::creation_timestamp(c).unwrap_or_default().to_owned();
            let newest = defaults.into_iter().max_by(|x, y| {
                age(x)
                    .cmp(&age(y))
                    .then_with(|| object::name(y).cmp(object::name(x)))
            });
            if let Some(class) = newest {
                a.object["spec"][self.field] = object::name(&class).into();
            }
            Ok(())
        })
    }
}

/// Volumes and claims in use are not removed under their users.
pub struct StorageObjectInUseProtection;

impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        operation == Operation::Create
            && subresource.is_empty()
            && resource.group.is_empty()
            && matches!(
                &*resource.plural,
                "persistentvolumes" | "persistentvolumeclaims"
            )
    }

    fn admit<'a>(&'a self, a: &'a mut Attributes<'_>, _: &'a Registry) -> Future<'a> {
        let wanted = if a.resource.plural == "persistentvolumes" {
            "kubernetes.io/pv-protection"
        } else {
            "kubernetes.io/pvc-protection"
        };
        let mut finalizers: Vec<String> = object::finalizers(a.object).map(str::to_owned).collect();
        if !finalizers.iter().any(|f| f == wanted) {
            finalizers.push(wanted.to_owned());
            object::set_finalizers(a.object, finalizers.iter().map(String::as_str));
        }
        Box::pin(async { Ok(()) })
    }
}

/// A new node is tainted not-ready until the node controller has seen its conditions.
pub struct TaintNodesByCondition;

impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        operation == Operation::Create
            && subresource.is_empty()
            && resource.group.is_empty()
            && resource.plural == "nodes"
    }

    fn admit<'a>(&'a self, a: &'a mut Attributes<'_>, _: &'a Registry) -> Future<'a> {
        const KEY: &str = "node.kubernetes.io/not-ready";
        if !a.object["spec"].is_object() {
            a.object["spec"] = json!({});
        }
        let spec = &mut a.object["spec"];
        let tainted = list(spec, "taints")
            .iter()
            .any(|t| text(t, "key") == KEY && text(t, "effect") == "NoSchedule");
        if !tainted {
            let taint = json!({"key": KEY, "effect": "NoSchedule"});
            match spec.get_mut("taints").and_then(Value::as_array_mut) {
                Some(list) => list.push(taint),
                None => spec["taints"] = json!([taint]),
            }
        }
        Box::pin(async { Ok(()) })
    }
}

/// A pod's runtime class adds its overhead and its scheduling constraints.
pub struct RuntimeClass;

impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        operation == Operation::Create && is_pod(resource) && subresource.is_empty()
    }

    fn admit<'a>(&'a self, a: &'a mut Attributes<'_>, registry: &'a Registry) -> Future<'a> {
        Box::pin(async move {
            let name = text(&a.object["spec"], "runtimeClassName").to_owned();
            if name.is_empty() {
                return match given(&a.object["spec"], "overhead") {
                    Some(_) => Err(forbidden(
                        a,
                        "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
                    )),
                    None => Ok(()),
                };
            }
            let Some(class) = cached(registry, "node.k8s.io", "runtimeclasses", "", &name).await?
            else {
                return Err(forbidden(
                    a,
                    &format!("pod rejected: RuntimeClass {name:?} not found"),
                ));
            };
            apply_runtime_class(&mut a.object["spec"], &class.value())
                .map_err(|why| forbidden(a, &why))
        })
    }
}

fn apply_runtime_class(spec: &mut Value, class: &Value) -> std::result::Result<(), String> {
    let overhead = class
        .get("overhead")
        .and_then(|o| given(o, "podFixed"))
        .cloned()
        .unwrap_or_default();
    match given(spec, "overhead") {
        Some(own) if !same(own, &overhead) => {
            return Err(
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".into(),
            );
        }
        _ if !overhead.is_null() => spec["overhead"] = overhead,
        _ => {}
    }
    let Some(scheduling) = given(class, "scheduling") else {
        return Ok(());
    };
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        match spec["nodeSelector"].get(key).filter(|v| *v != value) {
            Some(own) => {
                return Err(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                    value.as_str().unwrap_or_default(),
                    own.as_str().unwrap_or_default()
                ));
            }
            None => spec["nodeSelector"][key] = value.clone(),
        }
    }
    for toleration in list(scheduling, "tolerations") {
        if !list(spec, "tolerations")
            .iter()
            .any(|t| same(t, toleration))
        {
            match spec.get_mut("tolerations").and_then(Value::as_array_mut) {
                Some(list) => list.push(toleration.clone()),
                None => spec["tolerations"] = json!([toleration]),
            }
        }
    }
    Ok(())
}

/// A claim grows only if its class allows it.
pub struct PersistentVolumeClaimResize;

impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        operation == Operation::Update
            && subresource.is_empty()
            && resource.group.is_empty()
            && resource.plural == "persistentvolumeclaims"
    }

    fn validate<'a>(&'a self, a: &'a Attributes<'_>, registry: &'a Registry) -> Future<'a> {
        use apimachinery::quantity::Quantity;
        Box::pin(async move {
            let size = |o: &Value| {
                let text = o["spec"]["resources"]["requests"]["storage"]
                    .as_str()
                    .unwrap_or("0")
                    .to_owned();
                Quantity::parse(&text).unwrap_or(Quantity::ZERO)
            };
            if size(a.object) <= size(a.old) || text(&a.old["status"], "phase") != "Bound" {
                return Ok(());
            }
            let class = text(&a.object["spec"], "storageClassName");
            let class = cached(registry, "storage.k8s.io", "storageclasses", "", class).await?;
            if class.is_some_and(|c| flag(&c.value(), "allowVolumeExpansion")) {
                return Ok(());
            }
            Err(Status::forbidden(
                &GroupResource::new("", "persistentvolumeclaims"),
                a.name,
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_are_added_unless_there() {
        for (given, want) in [
            (json!([]), 2),
            (json!([{"operator": "Exists"}]), 1),
            (
                json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute", "tolerationSeconds": 5}]),
                2,
            ),
            (
                json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]),
                3,
            ),
        ] {
            let mut spec = json!({"tolerations": given});
            tolerate(&mut spec);
            assert_eq!(
                spec["tolerations"].as_array().map(Vec::len),
                Some(want),
                "{spec}"
            );
        }
    }

    #[test]
    fn runtime_classes_add_and_conflict() {
        let class = json!({
            "overhead": {"podFixed": {"cpu": "10m"}},
            "scheduling": {"nodeSelector": {"runtime": "x"}, "tolerations": [{"key": "r"}]},
        });
        let mut spec = json!({});
        apply_runtime_class(&mut spec, &class).unwrap();
        assert_eq!(
            spec,
            json!({"overhead": {"cpu": "10m"}, "nodeSelector": {"runtime": "x"}, "tolerations": [{"key": "r"}]})
        );
        assert!(apply_runtime_class(&mut json!({"overhead": {"cpu": "1"}}), &class).is_err());
        let error = apply_runtime_class(&mut json!({"nodeSelector": {"runtime": "y"}}), &class)
            .unwrap_err();
        assert_eq!(
            error,
            "conflict: runtimeClass.scheduling.nodeSelector[runtime] = x; pod.spec.nodeSelector[runtime] = y"
        );
    }
}
