//! What is particular to one kind: the part of a write that schemas cannot say.
//!
//! Every kind takes the same path through [`crate::registry`]; a [`Strategy`] adds that kind's conditional
//! defaults, what a create or update resets, what an update may not change, and its validation. Most kinds need
//! none of it: [`Generic`] gives them Kubernetes' common behaviour.

use apimachinery::field::ErrorList;
use apimachinery::resource::Resource;
use serde_json::Value;

mod batch;
pub mod check;
mod container;
mod namespace;
pub mod pod;
mod pod_defaults;
mod pod_spec;
mod scheduling;
mod secret;
mod volume;
mod workload;

/// What a strategy may know about the write besides the objects.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub resource: &'a Resource,
    /// Empty for the object itself.
    pub subresource: &'a str,
    pub namespace: &'a str,
}

/// One kind's rules. All methods are pure; all have Kubernetes' common behaviour as default.
pub trait Strategy: Send + Sync {
    /// Defaults that depend on other fields (the unconditional ones are in the schema). Runs on every
    /// decoded body, before admission and again after it.
    fn default(&self, _object: &mut Value) {}

    /// Clears what a client may not set on create (status, ...). `metadata` is the registry's business.
    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        common::reset_status_on_create(context, object);
    }

    /// Keeps what an update to the object itself may not change (its status).
    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        common::keep_status(context, object, old);
    }

    /// Keeps what an update through `/status` may not change: everything but status.
    fn prepare_for_status_update(&self, _context: &Context<'_>, object: &mut Value, old: &Value) {
        common::keep_all_but_status(object, old);
    }

    /// Field errors of a new object. Object metadata has been validated by the registry.
    fn validate(&self, _context: &Context<'_>, _object: &Value) -> ErrorList {
        ErrorList::default()
    }

    /// Field errors of a change: those of the new object, and of the transition.
    fn validate_update(&self, context: &Context<'_>, object: &Value, _old: &Value) -> ErrorList {
        self.validate(context, object)
    }

    fn validate_status_update(
        &self,
        _context: &Context<'_>,
        _object: &Value,
        _old: &Value,
    ) -> ErrorList {
        ErrorList::default()
    }

    /// Texts for `Warning` headers.
    fn warnings(&self, _context: &Context<'_>, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// Whether PUT on a name that does not exist creates it (leases, endpoints, events, ...).
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// Whether an update without resourceVersion means "whatever is there".
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// Whether `metadata.generation` counts changes of everything but metadata and status. Kubernetes does
    /// this kind by kind.
    fn has_generation(&self, context: &Context<'_>) -> bool {
        common::counts_generation(&context.resource.group, &context.resource.plural)
    }

    /// How long an object stops gracefully, given what the delete asked for; `None` for kinds that are just
    /// removed. `Some(0)` removes at once.
    fn grace_period(&self, _object: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }

    /// Whether something still has to happen before a deleted object may go.
    fn has_finalizers(&self, object: &Value) -> bool {
        apimachinery::object::finalizers(object).next().is_some()
    }

    /// Shows in the object itself that it is being deleted (a Namespace's phase).
    fn mark_deleting(&self, _object: &mut Value) {}

    /// Whether dependents are orphaned when a delete does not say (none does in the stable APIs but
    /// ReplicationController).
    fn orphans_by_default(&self) -> bool {
        false
    }

    /// How names of this kind are checked.
    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }
}

/// Kubernetes' rules for `metadata.name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// DNS-1123 subdomain: most kinds.
    Subdomain,
    /// DNS-1123 label: namespaces.
    Label,
    /// DNS-1035 label: services (RFC 1035).
    Dns1035,
    /// Any path segment: RBAC kinds.
    PathSegment,
}

/// The behaviour of a kind without rules of its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Generic;

impl Strategy for Generic {}

/// The strategy of a resource. One line per kind that has one.
#[must_use]
pub fn of(group: &str, plural: &str) -> &'static dyn Strategy {
    match (group, plural) {
        ("", "configmaps") => &secret::ConfigMap,
        ("", "namespaces") => &namespace::Namespace,
        ("", "pods") => &pod::Pod,
        ("", "podtemplates") => &workload::PodTemplate,
        ("", "replicationcontrollers") => &workload::Workload::ReplicationController,
        ("", "secrets") => &secret::Secret,
        ("apps", "controllerrevisions") => &workload::ControllerRevision,
        ("apps", "daemonsets") => &workload::Workload::DaemonSet,
        ("apps", "deployments") => &workload::Workload::Deployment,
        ("apps", "replicasets") => &workload::Workload::ReplicaSet,
        ("apps", "statefulsets") => &workload::Workload::StatefulSet,
        ("batch", "cronjobs") => &batch::CronJob,
        ("batch", "jobs") => &batch::Job,
        ("rbac.authorization.k8s.io", _) => &PathSegmentNames,
        ("coordination.k8s.io", "leases")
        | ("", "events" | "endpoints")
        | ("events.k8s.io", "events") => &CreatedByUpdate,
        _ => &Generic,
    }
}

/// Kinds whose names may hold anything that fits into a path (`system:node`).
#[derive(Debug, Clone, Copy)]
pub struct PathSegmentNames;

impl Strategy for PathSegmentNames {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }
}

/// Kinds that PUT creates when they are absent.
#[derive(Debug, Clone, Copy)]
pub struct CreatedByUpdate;

impl Strategy for CreatedByUpdate {
    fn allow_create_on_update(&self) -> bool {
        true
    }
}

/// What several strategies share.
pub mod common {
    use super::{Context, Value};

    /// The kinds whose registries count generations.
    pub fn counts_generation(group: &str, plural: &str) -> bool {
        match group {
            "" => matches!(plural, "pods" | "replicationcontrollers"),
            "apps" => plural != "controllerrevisions",
            "batch" => true,
            "networking.k8s.io" => matches!(plural, "ingresses" | "networkpolicies"),
            "policy" => plural == "poddisruptionbudgets",
            "admissionregistration.k8s.io"
            | "flowcontrol.apiserver.k8s.io"
            | "apiextensions.k8s.io" => true,
            "resource.k8s.io" => plural == "deviceclasses" || plural == "resourceslices",
            // Custom resources do.
            _ => {
                !(group.is_empty()
                    || group.ends_with(".k8s.io")
                    || matches!(group, "autoscaling" | "events"))
            }
        }
    }

    fn has_status(context: &Context<'_>) -> bool {
        context.resource.subresource("status").is_some()
    }

    pub fn reset_status_on_create(context: &Context<'_>, object: &mut Value) {
        if has_status(context)
            && let Some(map) = object.as_object_mut()
        {
            map.remove("status");
        }
    }

    pub fn keep_status(context: &Context<'_>, object: &mut Value, old: &Value) {
        if has_status(context) {
            copy(object, old, "status");
        }
    }

    /// Everything from the old object, but the new status and the metadata that a status update may
    /// touch (Kubernetes resets spec; labels and the like stay writable for most kinds).
    pub fn keep_all_but_status(object: &mut Value, old: &Value) {
        let status = object.get_mut("status").map(Value::take);
        let mut metadata = object.get_mut("metadata").map_or(Value::Null, Value::take);
        object.clone_from(old);
        // A status update may not re-own an object.
        copy(
            &mut metadata,
            old.get("metadata").unwrap_or(&Value::Null),
            "ownerReferences",
        );
        if let Some(map) = object.as_object_mut() {
            map.insert("metadata".into(), metadata);
            match status {
                Some(status) if !status.is_null() => map.insert("status".into(), status),
                _ => map.remove("status"),
            };
        }
    }

    /// Makes `object[key]` what it is in `old`, absence included.
    pub fn copy(object: &mut Value, old: &Value, key: &str) {
        if let Some(map) = object.as_object_mut() {
            match old.get(key) {
                Some(value) => map.insert(key.into(), value.clone()),
                None => map.remove(key),
            };
        }
    }
}
