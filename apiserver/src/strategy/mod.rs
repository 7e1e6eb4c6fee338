//! What is particular to one kind: the part of a write that schemas cannot say.
//!
//! Every kind takes the same path through [`crate::registry`]; a [`Strategy`] adds that kind's conditional
//! defaults, what a create or update resets, what an update may not change, and its validation. Most kinds need
//! none of it: [`Generic`] gives them Kubernetes' common behaviour.

use apimachinery::field::ErrorList;
use apimachinery::resource::Resource;
use serde_json::Value;

use crate::authn::UserInfo;

mod address;
mod admission_registration;
pub mod apiservice;
mod autoscaling;
mod batch;
mod certificates;
pub mod check;
mod claim;
mod classes;
mod container;
mod devices;
mod endpoints;
mod event;
mod flowcontrol;
mod namespace;
mod network;
mod node;
mod persistent_volume;
pub mod pod;
mod pod_defaults;
mod pod_parts;
mod pod_platform;
mod pod_resize;
mod pod_spec;
mod pod_warnings;
mod rbac;
mod resources;
mod scheduling;
mod secret;
mod service;
mod storage;
mod volume;
mod workload;

/// What a strategy may know about the write besides the objects.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub resource: &'a Resource,
    /// Empty for the object itself.
    pub subresource: &'a str,
    pub namespace: &'a str,
    /// Who asks, where that is known.
    pub user: Option<&'a UserInfo>,
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

    /// Whether a change of the object is one of those that the generation counts.
    fn is_new_generation(&self, object: &Value, old: &Value) -> bool {
        common::spec_changed(object, old)
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

/// The strategy of a served resource.
#[derive(Clone)]
pub enum Rules {
    Builtin(&'static dyn Strategy),
    /// Made from a CustomResourceDefinition.
    Custom(std::sync::Arc<dyn Strategy>),
}

impl std::ops::Deref for Rules {
    type Target = dyn Strategy;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Builtin(strategy) => *strategy,
            Self::Custom(strategy) => &**strategy,
        }
    }
}

/// Kubernetes' rules for `metadata.name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// DNS-1123 subdomain: most kinds.
    Subdomain,
    /// DNS-1123 label: namespaces and services.
    Label,
    /// An address in canonical form.
    IpAddress,
    /// Any path segment: RBAC kinds.
    PathSegment,
}

/// The check of [`NameRule::IpAddress`].
#[must_use]
pub fn address_name(name: &str) -> Vec<String> {
    let mut checks = check::Checks::default();
    address::ip(&mut checks, &apimachinery::field::Path::root(), name);
    checks.0.into_iter().map(|error| error.detail).collect()
}

/// The behaviour of a kind without rules of its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Generic;

impl Strategy for Generic {}

/// The strategy of a resource. One line per kind that has one.
#[must_use]
pub fn of(group: &str, plural: &str) -> &'static dyn Strategy {
    match group {
        "" => core(plural),
        "apiregistration.k8s.io" => &apiservice::ApiService,
        "apiextensions.k8s.io" => &crate::crd::strategy::CustomResourceDefinition,
        "apps" | "batch" => workloads(plural),
        "admissionregistration.k8s.io" => registration(plural),
        "autoscaling" if plural == "horizontalpodautoscalers" => {
            &autoscaling::HorizontalPodAutoscaler
        }
        "certificates.k8s.io" => &certificates::CertificateSigningRequest,
        "coordination.k8s.io" if plural == "leases" => &classes::Lease,
        "discovery.k8s.io" if plural == "endpointslices" => &endpoints::EndpointSlice,
        "events.k8s.io" => &event::Event,
        "flowcontrol.apiserver.k8s.io" => match plural {
            "flowschemas" => &flowcontrol::FlowSchema,
            _ => &flowcontrol::PriorityLevelConfiguration,
        },
        "networking.k8s.io" => networking(plural),
        "node.k8s.io" if plural == "runtimeclasses" => &classes::RuntimeClass,
        "policy" if plural == "poddisruptionbudgets" => &classes::PodDisruptionBudget,
        "rbac.authorization.k8s.io" => match plural {
            "roles" => &rbac::Role(true),
            "clusterroles" => &rbac::Role(false),
            "rolebindings" => &rbac::Binding(true),
            _ => &rbac::Binding(false),
        },
        "resource.k8s.io" => match plural {
            "deviceclasses" => &devices::DeviceClass,
            "resourceclaims" => &devices::ResourceClaim,
            "resourceclaimtemplates" => &devices::ResourceClaimTemplate,
            _ => &devices::ResourceSlice,
        },
        "scheduling.k8s.io" if plural == "priorityclasses" => &classes::PriorityClass,
        "storage.k8s.io" => storage_kind(plural),
        _ => &Generic,
    }
}

fn registration(plural: &str) -> &'static dyn Strategy {
    use admission_registration::{Binding, Policy, Webhooks};
    match plural {
        "mutatingadmissionpolicies" => &Policy { mutating: true },
        "mutatingadmissionpolicybindings" => &Binding { mutating: true },
        "validatingadmissionpolicies" => &Policy { mutating: false },
        "validatingadmissionpolicybindings" => &Binding { mutating: false },
        _ => &Webhooks,
    }
}

fn core(plural: &str) -> &'static dyn Strategy {
    match plural {
        "configmaps" => &secret::ConfigMap,
        "endpoints" => &endpoints::Endpoints,
        "events" => &event::Event,
        "limitranges" => &resources::LimitRange,
        "namespaces" => &namespace::Namespace,
        "nodes" => &node::Node,
        "persistentvolumeclaims" => &claim::PersistentVolumeClaim,
        "persistentvolumes" => &persistent_volume::PersistentVolume,
        "pods" => &pod::Pod,
        "podtemplates" => &workload::PodTemplate,
        "replicationcontrollers" => &workload::Workload::ReplicationController,
        "resourcequotas" => &resources::ResourceQuota,
        "secrets" => &secret::Secret,
        "serviceaccounts" => &classes::ServiceAccount,
        "services" => &service::Service,
        _ => &Generic,
    }
}

fn workloads(plural: &str) -> &'static dyn Strategy {
    match plural {
        "controllerrevisions" => &workload::ControllerRevision,
        "cronjobs" => &batch::CronJob,
        "daemonsets" => &workload::Workload::DaemonSet,
        "deployments" => &workload::Workload::Deployment,
        "jobs" => &batch::Job,
        "replicasets" => &workload::Workload::ReplicaSet,
        "statefulsets" => &workload::Workload::StatefulSet,
        _ => &Generic,
    }
}

fn networking(plural: &str) -> &'static dyn Strategy {
    match plural {
        "ingressclasses" => &network::IngressClass,
        "ingresses" => &network::Ingress,
        "ipaddresses" => &network::IpAddress,
        "networkpolicies" => &network::NetworkPolicy,
        "servicecidrs" => &network::ServiceCidr,
        _ => &Generic,
    }
}

fn storage_kind(plural: &str) -> &'static dyn Strategy {
    match plural {
        "csidrivers" => &storage::CsiDriver,
        "csinodes" => &storage::CsiNode,
        "csistoragecapacities" => &storage::CsiStorageCapacity,
        "storageclasses" => &storage::StorageClass,
        "volumeattachments" => &storage::VolumeAttachment,
        "volumeattributesclasses" => &storage::VolumeAttributesClass,
        _ => &Generic,
    }
}

/// What several strategies share.
pub mod common {
    use super::{Context, Value};

    /// The kinds whose registries count generations.
    pub fn counts_generation(group: &str, plural: &str) -> bool {
        match group {
            "" => matches!(plural, "pods" | "podtemplates" | "replicationcontrollers"),
            "apps" => plural != "controllerrevisions",
            "batch" => true,
            "discovery.k8s.io" => true,
            "networking.k8s.io" => {
                matches!(plural, "ingresses" | "ingressclasses" | "networkpolicies")
            }
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

    /// Anything but metadata and status.
    #[must_use]
    pub fn spec_changed(object: &Value, old: &Value) -> bool {
        let (Some(object), Some(old)) = (object.as_object(), old.as_object()) else {
            return false;
        };
        let counts =
            |key: &&String| !matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind");
        object
            .keys()
            .filter(counts)
            .any(|key| object.get(key) != old.get(key))
            || old
                .keys()
                .filter(counts)
                .any(|key| !object.contains_key(key))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with an object, or with a change of it.
    pub fn refusals(plural: &str, object: &Value, old: Option<&Value>) -> Vec<String> {
        let found = apimachinery::resource::builtin()
            .iter()
            .find(|r| r.plural == plural)
            .unwrap();
        refusals_in(&found.group, plural, object, old)
    }

    pub fn refusals_in(
        group: &str,
        plural: &str,
        object: &Value,
        old: Option<&Value>,
    ) -> Vec<String> {
        let resource = apimachinery::resource::builtin()
            .iter()
            .find(|r| r.group == group && r.plural == plural)
            .unwrap();
        let context = Context {
            resource,
            subresource: "",
            namespace: "default",
            user: None,
        };
        let strategy = of(group, plural);
        let errors = match old {
            Some(old) => strategy.validate_update(&context, object, old),
            None => strategy.validate(&context, object),
        };
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn generations() {
        let old = serde_json::json!({"metadata": {"a": 1}, "spec": {"x": 1}, "status": {"y": 1}});
        let mut new = old.clone();
        new["metadata"] = serde_json::json!({});
        new["status"] = serde_json::json!({});
        assert!(!common::spec_changed(&new, &old));
        new["data"] = 1.into();
        assert!(common::spec_changed(&new, &old) && common::spec_changed(&old, &new));
    }
}
