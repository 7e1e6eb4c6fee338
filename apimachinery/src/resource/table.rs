//! Every stable built-in kind of Kubernetes 1.36, one line each.

use std::sync::{Arc, LazyLock};

use super::{GroupVersionKind, Resource, Subresource, Text};
use crate::schema::Schema;

/// Which verbs a resource has, and with that whether it is stored.
#[derive(Clone, Copy, PartialEq)]
enum Verbs {
    All,
    /// Everything but `deletecollection`.
    Single,
    /// Answered, never stored.
    Create,
    GetList,
}

use Scope::{Cluster, Namespaced};
use Verbs::{All, Create, GetList, Single};

#[derive(Clone, Copy, PartialEq)]
enum Scope {
    Cluster,
    Namespaced,
}

/// Plural, kind, scope, verbs, short names, categories, subresources; lists are separated by blanks.
type Line = (
    &'static str,
    &'static str,
    Scope,
    Verbs,
    &'static str,
    &'static str,
    &'static str,
);

#[rustfmt::skip]
const GROUPS: &[(&str, &str, &[Line])] = &[
    ("", "v1", &[
        ("bindings", "Binding", Namespaced, Create, "", "", ""),
        ("componentstatuses", "ComponentStatus", Cluster, GetList, "cs", "", ""),
        ("configmaps", "ConfigMap", Namespaced, All, "cm", "", ""),
        ("endpoints", "Endpoints", Namespaced, All, "ep", "", ""),
        ("events", "Event", Namespaced, All, "ev", "", ""),
        ("limitranges", "LimitRange", Namespaced, All, "limits", "", ""),
        ("namespaces", "Namespace", Cluster, Single, "ns", "", "finalize status"),
        ("nodes", "Node", Cluster, All, "no", "", "proxy status"),
        ("persistentvolumeclaims", "PersistentVolumeClaim", Namespaced, All, "pvc", "", "status"),
        ("persistentvolumes", "PersistentVolume", Cluster, All, "pv", "", "status"),
        ("pods", "Pod", Namespaced, All, "po", "all",
            "attach binding ephemeralcontainers eviction exec log portforward proxy resize status"),
        ("podtemplates", "PodTemplate", Namespaced, All, "", "", ""),
        ("replicationcontrollers", "ReplicationController", Namespaced, All, "rc", "all", "scale status"),
        ("resourcequotas", "ResourceQuota", Namespaced, All, "quota", "", "status"),
        ("secrets", "Secret", Namespaced, All, "", "", ""),
        ("serviceaccounts", "ServiceAccount", Namespaced, All, "sa", "", "token"),
        ("services", "Service", Namespaced, All, "svc", "all", "proxy status"),
    ]),
    ("apiregistration.k8s.io", "v1", &[
        ("apiservices", "APIService", Cluster, All, "", "api-extensions", "status"),
    ]),
    ("apps", "v1", &[
        ("controllerrevisions", "ControllerRevision", Namespaced, All, "", "", ""),
        ("daemonsets", "DaemonSet", Namespaced, All, "ds", "all", "status"),
        ("deployments", "Deployment", Namespaced, All, "deploy", "all", "scale status"),
        ("replicasets", "ReplicaSet", Namespaced, All, "rs", "all", "scale status"),
        ("statefulsets", "StatefulSet", Namespaced, All, "sts", "all", "scale status"),
    ]),
    ("events.k8s.io", "v1", &[
        ("events", "Event", Namespaced, All, "ev", "", ""),
    ]),
    ("authentication.k8s.io", "v1", &[
        ("selfsubjectreviews", "SelfSubjectReview", Cluster, Create, "", "", ""),
        ("tokenreviews", "TokenReview", Cluster, Create, "", "", ""),
    ]),
    ("authorization.k8s.io", "v1", &[
        ("localsubjectaccessreviews", "LocalSubjectAccessReview", Namespaced, Create, "", "", ""),
        ("selfsubjectaccessreviews", "SelfSubjectAccessReview", Cluster, Create, "", "", ""),
        ("selfsubjectrulesreviews", "SelfSubjectRulesReview", Cluster, Create, "", "", ""),
        ("subjectaccessreviews", "SubjectAccessReview", Cluster, Create, "", "", ""),
    ]),
    ("autoscaling", "v2", &[
        ("horizontalpodautoscalers", "HorizontalPodAutoscaler", Namespaced, All, "hpa", "all", "status"),
    ]),
    ("autoscaling", "v1", &[
        ("horizontalpodautoscalers", "HorizontalPodAutoscaler", Namespaced, All, "hpa", "all", "status"),
    ]),
    ("batch", "v1", &[
        ("cronjobs", "CronJob", Namespaced, All, "cj", "all", "status"),
        ("jobs", "Job", Namespaced, All, "", "all", "status"),
    ]),
    ("certificates.k8s.io", "v1", &[
        ("certificatesigningrequests", "CertificateSigningRequest", Cluster, All, "csr", "", "approval status"),
    ]),
    ("networking.k8s.io", "v1", &[
        ("ingressclasses", "IngressClass", Cluster, All, "", "", ""),
        ("ingresses", "Ingress", Namespaced, All, "ing", "", "status"),
        ("ipaddresses", "IPAddress", Cluster, All, "ip", "", ""),
        ("networkpolicies", "NetworkPolicy", Namespaced, All, "netpol", "", ""),
        ("servicecidrs", "ServiceCIDR", Cluster, All, "", "", "status"),
    ]),
    ("policy", "v1", &[
        ("poddisruptionbudgets", "PodDisruptionBudget", Namespaced, All, "pdb", "", "status"),
    ]),
    ("rbac.authorization.k8s.io", "v1", &[
        ("clusterrolebindings", "ClusterRoleBinding", Cluster, All, "", "", ""),
        ("clusterroles", "ClusterRole", Cluster, All, "", "", ""),
        ("rolebindings", "RoleBinding", Namespaced, All, "", "", ""),
        ("roles", "Role", Namespaced, All, "", "", ""),
    ]),
    ("storage.k8s.io", "v1", &[
        ("csidrivers", "CSIDriver", Cluster, All, "", "", ""),
        ("csinodes", "CSINode", Cluster, All, "", "", ""),
        ("csistoragecapacities", "CSIStorageCapacity", Namespaced, All, "", "", ""),
        ("storageclasses", "StorageClass", Cluster, All, "sc", "", ""),
        ("volumeattachments", "VolumeAttachment", Cluster, All, "", "", "status"),
        ("volumeattributesclasses", "VolumeAttributesClass", Cluster, All, "vac", "", ""),
    ]),
    ("admissionregistration.k8s.io", "v1", &[
        ("mutatingadmissionpolicies", "MutatingAdmissionPolicy", Cluster, All, "", "api-extensions", ""),
        ("mutatingadmissionpolicybindings", "MutatingAdmissionPolicyBinding", Cluster, All, "", "api-extensions", ""),
        ("mutatingwebhookconfigurations", "MutatingWebhookConfiguration", Cluster, All, "", "api-extensions", ""),
        ("validatingadmissionpolicies", "ValidatingAdmissionPolicy", Cluster, All, "", "api-extensions", "status"),
        ("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", Cluster, All, "", "api-extensions", ""),
        ("validatingwebhookconfigurations", "ValidatingWebhookConfiguration", Cluster, All, "", "api-extensions", ""),
    ]),
    ("apiextensions.k8s.io", "v1", &[
        ("customresourcedefinitions", "CustomResourceDefinition", Cluster, All, "crd crds", "api-extensions", "status"),
    ]),
    ("scheduling.k8s.io", "v1", &[
        ("priorityclasses", "PriorityClass", Cluster, All, "pc", "", ""),
    ]),
    ("coordination.k8s.io", "v1", &[
        ("leases", "Lease", Namespaced, All, "", "", ""),
    ]),
    ("node.k8s.io", "v1", &[
        ("runtimeclasses", "RuntimeClass", Cluster, All, "", "", ""),
    ]),
    ("discovery.k8s.io", "v1", &[
        ("endpointslices", "EndpointSlice", Namespaced, All, "", "", ""),
    ]),
    ("resource.k8s.io", "v1", &[
        ("deviceclasses", "DeviceClass", Cluster, All, "", "", ""),
        ("resourceclaims", "ResourceClaim", Namespaced, All, "", "", "status"),
        ("resourceclaimtemplates", "ResourceClaimTemplate", Namespaced, All, "", "", ""),
        ("resourceslices", "ResourceSlice", Cluster, All, "", "", ""),
    ]),
    ("flowcontrol.apiserver.k8s.io", "v1", &[
        ("flowschemas", "FlowSchema", Cluster, All, "", "", "status"),
        ("prioritylevelconfigurations", "PriorityLevelConfiguration", Cluster, All, "", "", "status"),
    ]),
];

/// Kubernetes' keys are `/registry/<plural>`, but for these.
fn storage_prefix(group: &str, plural: &str) -> Text {
    match (group, plural) {
        ("", "replicationcontrollers") => "/registry/controllers".into(),
        ("", "endpoints") => "/registry/services/endpoints".into(),
        ("", "nodes") => "/registry/minions".into(),
        ("", "services") => "/registry/services/specs".into(),
        ("networking.k8s.io", "ingresses") => "/registry/ingress".into(),
        // These two are served by their own API servers, which lay keys out by group.
        ("apiextensions.k8s.io" | "apiregistration.k8s.io", _) => {
            format!("/registry/{group}/{plural}").into()
        }
        _ => format!("/registry/{plural}").into(),
    }
}

/// What a subresource takes or gives, and how. Most have the kind of their parent.
fn subresource(name: &'static str, parent: &GroupVersionKind) -> Subresource {
    const CONNECT: &[&str] = &["create", "get"];
    const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
    let core = |kind: String| GroupVersionKind::new("", "v1", kind);
    let (kind, verbs): (_, &[&'static str]) = match name {
        "scale" => (
            GroupVersionKind::new("autoscaling", "v1", "Scale"),
            &["get", "patch", "update"],
        ),
        "binding" => (core("Binding".into()), &["create"]),
        "eviction" => (
            GroupVersionKind::new("policy", "v1", "Eviction"),
            &["create"],
        ),
        "token" => (
            GroupVersionKind::new("authentication.k8s.io", "v1", "TokenRequest"),
            &["create"],
        ),
        "attach" => (core("PodAttachOptions".into()), CONNECT),
        "exec" => (core("PodExecOptions".into()), CONNECT),
        "portforward" => (core("PodPortForwardOptions".into()), CONNECT),
        "proxy" => (core(format!("{}ProxyOptions", parent.kind)), PROXY),
        "log" => (parent.clone(), &["get"]),
        "finalize" => (parent.clone(), &["update"]),
        _ => (parent.clone(), &["get", "patch", "update"]),
    };
    Subresource {
        name: name.into(),
        kind,
        verbs: verbs.iter().map(|v| Text::from(*v)).collect(),
    }
}

fn words(list: &'static str) -> Vec<Text> {
    list.split_ascii_whitespace().map(Text::from).collect()
}

fn resource(group: &'static str, version: &'static str, line: &Line) -> Resource {
    let &(plural, kind, scope, verbs, short_names, categories, subresources) = line;
    let gvk = GroupVersionKind::new(group, version, kind);
    let stored = matches!(verbs, All | Single);
    // The same events are served in two groups, and the same autoscalers in two versions: the first keeps them.
    let secondary = matches!(
        (group, version, plural),
        ("events.k8s.io", ..) | ("autoscaling", "v1", _)
    );
    Resource {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        list_kind: if verbs == Create {
            Text::default()
        } else {
            format!("{kind}List").into()
        },
        plural: plural.into(),
        singular: kind.to_ascii_lowercase().into(),
        short_names: words(short_names),
        categories: words(categories),
        namespaced: scope == Namespaced,
        verbs: words(match verbs {
            All => "create delete deletecollection get list patch update watch",
            Single => "create delete get list patch update watch",
            Create => "create",
            GetList => "get list",
        }),
        subresources: words(subresources)
            .iter()
            .filter_map(|s| match s {
                Text::Borrowed(name) => Some(subresource(name, &gvk)),
                Text::Owned(_) => None,
            })
            .collect(),
        storage_prefix: if stored {
            storage_prefix(group, plural)
        } else {
            Text::default()
        },
        storage_version: stored && !secondary,
        columns: crate::table::builtin_columns(group, kind),
        scale: None,
        schema: Arc::new(Schema::builtin(group, version, kind).unwrap_or_else(Schema::any)),
    }
}

/// All built-in resources, groups in the order of discovery, the preferred version of a group first.
pub fn builtin() -> &'static [Arc<Resource>] {
    static TABLE: LazyLock<Vec<Arc<Resource>>> = LazyLock::new(|| {
        let lines = GROUPS
            .iter()
            .flat_map(|(group, version, lines)| lines.iter().map(move |l| (*group, *version, l)));
        lines
            .map(|(group, version, line)| Arc::new(resource(group, version, line)))
            .collect()
    });
    &TABLE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(group: &str, version: &str, plural: &str) -> &'static Resource {
        builtin()
            .iter()
            .find(|r| (&*r.group, &*r.version, &*r.plural) == (group, version, plural))
            .unwrap()
    }

    #[test]
    fn table_follows_kubernetes() {
        assert_eq!(builtin().len(), 68);
        let pods = find("", "v1", "pods");
        assert_eq!(
            pods.storage_key("default", "web"),
            "/registry/pods/default/web"
        );
        assert_eq!(
            pods.subresource("eviction").unwrap().kind,
            GroupVersionKind::new("policy", "v1", "Eviction")
        );
        assert_eq!(
            pods.subresource("proxy").unwrap().kind.kind,
            "PodProxyOptions"
        );
        assert_eq!(
            find("", "v1", "nodes").storage_key("", "a"),
            "/registry/minions/a"
        );
        assert!(!find("authorization.k8s.io", "v1", "subjectaccessreviews").is_stored());
        assert!(!find("", "v1", "namespaces").has_verb("deletecollection"));
    }

    #[test]
    fn every_stored_object_has_one_storage_version() {
        for r in builtin().iter().filter(|r| r.is_stored()) {
            let same = builtin()
                .iter()
                .filter(|o| o.storage_prefix == r.storage_prefix && o.storage_version);
            assert_eq!(same.count(), 1, "{}", r.group_resource());
        }
    }

    #[test]
    fn short_names_are_unique_but_for_shared_objects() {
        for r in builtin() {
            for name in &r.short_names {
                for other in builtin().iter().filter(|o| o.short_names.contains(name)) {
                    assert_eq!(other.storage_prefix, r.storage_prefix, "{name}");
                }
            }
        }
    }
}
