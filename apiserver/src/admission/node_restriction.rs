//! NodeRestriction: a kubelet writes its own node, the status of its own pods, its own lease, and tokens for them.

use apimachinery::object;
use apimachinery::resource::Resource;
use apimachinery::status::Result;
use futures::future::BoxFuture;
use serde_json::Value;

use super::{Attributes, Operation, Plugin, cached, forbidden};
use crate::authz::node::node_name;
use crate::registry::Registry;
use crate::strategy::check::{entries, flag, given, list, same, text};

const MIRROR: &str = "kubernetes.io/config.mirror";

pub struct NodeRestriction;

impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        match (&*resource.group, &*resource.plural) {
            ("", "serviceaccounts") => subresource == "token",
            ("", "pods" | "nodes" | "persistentvolumeclaims")
            | ("coordination.k8s.io", "leases")
            | ("storage.k8s.io", "csinodes") => operation != Operation::Connect,
            _ => false,
        }
    }

    fn admit<'a>(
        &'a self,
        a: &'a mut Attributes<'_>,
        registry: &'a Registry,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let Some(node) = node_name(a.user) else {
                return Ok(());
            };
            if node.is_empty() {
                return Err(forbidden(
                    a,
                    &format!("could not determine node from user {:?}", a.user.name),
                ));
            }
            match (&*a.resource.plural, a.subresource) {
                ("pods", "") => pod(a, node, registry).await,
                ("pods", "status") => pod_status(a, node),
                ("pods", "eviction") => eviction(a, node, registry).await,
                ("pods", other) => Err(forbidden(
                    a,
                    &format!(
                        "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
                    ),
                )),
                ("nodes", _) => own_node(a, node),
                ("persistentvolumeclaims", "status") => Ok(()),
                ("persistentvolumeclaims", _) => Err(forbidden(a, "may only update PVC status")),
                ("serviceaccounts", _) => token(a, node, registry).await,
                ("leases", _) => lease(a, node),
                _ => named_as_node(a, node),
            }
        })
    }
}

async fn pod(a: &Attributes<'_>, node: &str, registry: &Registry) -> Result<()> {
    match a.operation {
        Operation::Create => {
            let live = cached(registry, "", "nodes", "", node)
                .await?
                .map(|n| n.value());
            mirror_pod(a.object, node, live.as_ref()).map_err(|why| forbidden(a, &why))
        }
        Operation::Delete if text(&a.old["spec"], "nodeName") == node => Ok(()),
        Operation::Delete => {
            let why =
                format!("node {node:?} can only delete pods with spec.nodeName set to itself");
            Err(forbidden(a, &why))
        }
        _ => {
            let why = format!(
                "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
            );
            Err(forbidden(a, &why))
        }
    }
}

/// What a kubelet may create: the shadow of a pod that it runs from a file, owned by its node and using no API object.
fn mirror_pod(pod: &Value, node: &str, live: Option<&Value>) -> std::result::Result<(), String> {
    if object::annotation(pod, MIRROR).is_none() {
        return Err(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if text(&pod["spec"], "nodeName") != node {
        return Err(format!(
            "node {node:?} can only create pods with spec.nodeName set to itself"
        ));
    }
    let owner = match object::owner_references(pod) {
        [owner] => owner,
        [] => {
            return Err(format!(
                "node {node:?} can only create pods with an owner reference set to itself"
            ));
        }
        _ => {
            return Err(format!(
                "node {node:?} can only create pods with a single owner reference set to itself"
            ));
        }
    };
    if (
        text(owner, "apiVersion"),
        text(owner, "kind"),
        text(owner, "name"),
    ) != ("v1", "Node", node)
    {
        return Err(format!(
            "node {node:?} can only create pods with an owner reference set to itself"
        ));
    }
    if !flag(owner, "controller") {
        return Err(format!(
            "node {node:?} can only create pods with a controller owner reference set to itself"
        ));
    }
    if flag(owner, "blockOwnerDeletion") {
        return Err(format!(
            "node {node:?} must not set blockOwnerDeletion on an owner reference"
        ));
    }
    let uid = live.map(object::uid).unwrap_or_default();
    if text(owner, "uid") != uid {
        return Err(format!(
            "node {node} UID mismatch: expected {} got {uid}",
            text(owner, "uid")
        ));
    }
    match api_reference(&pod["spec"]) {
        Some(kind) => Err(format!(
            "node {node:?} can not create pods that reference {kind}"
        )),
        None => Ok(()),
    }
}

/// The first kind of API object that a pod refers to.
fn api_reference(spec: &Value) -> Option<&'static str> {
    if !text(spec, "serviceAccountName").is_empty() {
        return Some("serviceaccounts");
    }
    let containers = ["containers", "initContainers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|c| list(spec, c));
    let variables = containers.flat_map(|c| list(c, "env").iter().chain(list(c, "envFrom")));
    let volumes = list(spec, "volumes").iter();
    let projected = volumes
        .clone()
        .flat_map(|v| v.get("projected").map_or(&[][..], |p| list(p, "sources")));
    let mut secret = !list(spec, "imagePullSecrets").is_empty();
    let (mut config, mut claim, mut token) = (false, false, false);
    for variable in variables {
        let from = given(variable, "valueFrom").unwrap_or(variable);
        secret |= given(from, "secretKeyRef")
            .or(given(from, "secretRef"))
            .is_some();
        config |= given(from, "configMapKeyRef")
            .or(given(from, "configMapRef"))
            .is_some();
    }
    for source in volumes.chain(projected) {
        secret |= given(source, "secret").is_some();
        config |= given(source, "configMap").is_some();
        claim |= given(source, "persistentVolumeClaim")
            .or(given(source, "ephemeral"))
            .is_some();
        token |= given(source, "serviceAccountToken").is_some();
    }
    let claims = !list(spec, "resourceClaims").is_empty();
    [
        (secret, "secrets"),
        (config, "configmaps"),
        (claim, "persistentvolumeclaims"),
        (token, "serviceaccounts (via projected volumes)"),
        (claims, "resourceclaims"),
    ]
    .into_iter()
    .find_map(|(found, kind)| found.then_some(kind))
}

fn pod_status(a: &Attributes<'_>, node: &str) -> Result<()> {
    if text(&a.old["spec"], "nodeName") != node {
        let why = format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        );
        return Err(forbidden(a, &why));
    }
    if !same(
        &a.object["metadata"]["labels"],
        &a.old["metadata"]["labels"],
    ) {
        return Err(forbidden(
            a,
            &format!("node {node:?} cannot update labels through pod status"),
        ));
    }
    Ok(())
}

async fn eviction(a: &Attributes<'_>, node: &str, registry: &Registry) -> Result<()> {
    let pod = registry.get("", "pods", a.namespace, a.name).await?.value();
    if text(&pod["spec"], "nodeName") == node {
        return Ok(());
    }
    Err(forbidden(
        a,
        &format!("node {node} can only evict pods with spec.nodeName set to itself"),
    ))
}

fn own_node(a: &Attributes<'_>, node: &str) -> Result<()> {
    let name = if a.name.is_empty() {
        object::name(a.object)
    } else {
        a.name
    };
    if name != node {
        return Err(forbidden(
            a,
            &format!("node {node:?} is not allowed to modify node {name:?}"),
        ));
    }
    if a.operation == Operation::Delete {
        return Ok(());
    }
    let labels = forbidden_labels(a.object, a.old);
    if a.operation == Operation::Create {
        if !labels.is_empty() {
            let why = format!(
                "node {node:?} is not allowed to set the following labels: {}",
                labels.join(", ")
            );
            return Err(forbidden(a, &why));
        }
        return Ok(());
    }
    if !same(&a.object["spec"]["taints"], &a.old["spec"]["taints"]) {
        return Err(forbidden(
            a,
            &format!("node {node:?} is not allowed to modify taints"),
        ));
    }
    if !same(
        &a.object["metadata"]["ownerReferences"],
        &a.old["metadata"]["ownerReferences"],
    ) {
        return Err(forbidden(
            a,
            &format!("node {node:?} is not allowed to modify ownerReferences"),
        ));
    }
    if !labels.is_empty() {
        return Err(forbidden(
            a,
            &format!("is not allowed to modify labels: {}", labels.join(", ")),
        ));
    }
    Ok(())
}

/// Changed labels that a kubelet may not set: Kubernetes' own, but for those that describe a node.
fn forbidden_labels(new: &Value, old: &Value) -> Vec<String> {
    const OWN: [&str; 14] = [
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "kubernetes.io/arch",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.kubernetes.io/zone",
        "failure-domain.kubernetes.io/region",
        "node.kubernetes.io/instance-type",
        "beta.kubernetes.io/instance-type",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "node.kubernetes.io/windows-build",
    ];
    let (new, old) = (&new["metadata"], &old["metadata"]);
    let changed = entries(new, "labels")
        .filter(|(k, v)| old["labels"].get(*k) != Some(v))
        .chain(entries(old, "labels").filter(|(k, _)| new["labels"].get(*k).is_none()))
        .map(|(key, _)| key);
    let within = |namespace: &str, domain: &str| {
        namespace == domain
            || namespace
                .strip_suffix(domain)
                .is_some_and(|rest| rest.ends_with('.'))
    };
    let mut forbidden: Vec<String> = changed
        .filter(|label| {
            let namespace = label.split_once('/').map_or("", |(namespace, _)| namespace);
            let restricted = within(namespace, "node-restriction.kubernetes.io");
            let kubernetes = within(namespace, "kubernetes.io") || within(namespace, "k8s.io");
            let allowed = OWN.contains(label)
                || within(namespace, "kubelet.kubernetes.io")
                || within(namespace, "node.kubernetes.io");
            restricted || (kubernetes && !allowed)
        })
        .map(str::to_owned)
        .collect();
    forbidden.sort();
    forbidden.dedup();
    forbidden
}

/// Tokens only for pods of the node, and only for audiences that the pod mounts.
async fn token(a: &Attributes<'_>, node: &str, registry: &Registry) -> Result<()> {
    let spec = &a.object["spec"];
    let reference = &spec["boundObjectRef"];
    let (version, kind, name) = (
        text(reference, "apiVersion"),
        text(reference, "kind"),
        text(reference, "name"),
    );
    if (version, kind) != ("v1", "Pod") || name.is_empty() {
        return Err(forbidden(a, "node requested token not bound to a pod"));
    }
    let uid = text(reference, "uid");
    if uid.is_empty() {
        return Err(forbidden(
            a,
            "node requested token with a pod binding without a uid",
        ));
    }
    let pod = registry.get("", "pods", a.namespace, name).await?.value();
    if object::uid(&pod) != uid {
        return Err(forbidden(
            a,
            &format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            ),
        ));
    }
    if text(&pod["spec"], "nodeName") != node {
        return Err(forbidden(
            a,
            "node requested token bound to a pod scheduled on a different node",
        ));
    }
    let audience = match list(spec, "audiences") {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return Err(forbidden(a, "node may only request 0 or 1 audiences")),
    };
    if mounts_audience(&pod["spec"], audience) {
        return Ok(());
    }
    Err(forbidden(
        a,
        &format!(
            "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
            a.user.name
        ),
    ))
}

fn mounts_audience(spec: &Value, audience: &str) -> bool {
    list(spec, "volumes").iter().any(|volume| {
        // Which audiences a CSI driver asks for is in the driver, not in the pod.
        let driver = ["csi", "persistentVolumeClaim", "ephemeral"]
            .iter()
            .any(|f| given(volume, f).is_some());
        let sources = volume
            .get("projected")
            .map_or(&[][..], |p| list(p, "sources"));
        driver
            || sources
                .iter()
                .filter_map(|s| given(s, "serviceAccountToken"))
                .any(|t| text(t, "audience") == audience)
    })
}

fn lease(a: &Attributes<'_>, node: &str) -> Result<()> {
    if a.namespace != "kube-node-lease" {
        return Err(forbidden(
            a,
            r#"can only access leases in the "kube-node-lease" system namespace"#,
        ));
    }
    let name = if a.name.is_empty() {
        object::name(a.object)
    } else {
        a.name
    };
    if a.operation != Operation::Delete && name != node {
        return Err(forbidden(
            a,
            "can only access node lease with the same name as the requesting node",
        ));
    }
    Ok(())
}

fn named_as_node(a: &Attributes<'_>, node: &str) -> Result<()> {
    let name = if a.name.is_empty() {
        object::name(a.object)
    } else {
        a.name
    };
    if name == node {
        return Ok(());
    }
    Err(forbidden(
        a,
        "can only access CSINode with the same name as the requesting node",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_that_a_kubelet_may_change() {
        let labels = |list: &[(&str, &str)]| {
            let map: serde_json::Map<String, Value> = list
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect();
            json!({"metadata": {"labels": map}})
        };
        for (new, old, want) in [
            (
                labels(&[("kubernetes.io/hostname", "a"), ("mine", "x")]),
                labels(&[]),
                "",
            ),
            (
                labels(&[
                    ("kubelet.kubernetes.io/x", "a"),
                    ("sub.node.kubernetes.io/x", "a"),
                ]),
                labels(&[]),
                "",
            ),
            (
                labels(&[("node-restriction.kubernetes.io/x", "a")]),
                labels(&[]),
                "node-restriction.kubernetes.io/x",
            ),
            (
                labels(&[("other.k8s.io/x", "a")]),
                labels(&[("other.k8s.io/x", "a")]),
                "",
            ),
            (
                labels(&[]),
                labels(&[("node-role.kubernetes.io/x", "")]),
                "node-role.kubernetes.io/x",
            ),
            (labels(&[("notk8s.io/x", "a")]), labels(&[]), ""),
        ] {
            assert_eq!(forbidden_labels(&new, &old).join(", "), want, "{new}");
        }
    }

    #[test]
    fn mirror_pods_belong_to_their_node() {
        let node = json!({"metadata": {"uid": "u"}});
        let pod = json!({
            "metadata": {
                "annotations": {MIRROR: "x"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u", "controller": true}],
            },
            "spec": {"nodeName": "n", "containers": [{}]},
        });
        assert_eq!(mirror_pod(&pod, "n", Some(&node)), Ok(()));
        type Change = fn(&mut Value);
        let table: &[(Change, &str)] = &[
            (
                |p| p["metadata"]["annotations"] = Value::Null,
                "can only create mirror pods",
            ),
            (
                |p| p["spec"]["nodeName"] = "m".into(),
                "with spec.nodeName set to itself",
            ),
            (
                |p| p["metadata"]["ownerReferences"] = json!([]),
                "with an owner reference set to itself",
            ),
            (
                |p| p["metadata"]["ownerReferences"][0]["uid"] = "v".into(),
                "UID mismatch",
            ),
            (
                |p| p["spec"]["volumes"] = json!([{"secret": {}}]),
                "can not create pods that reference secrets",
            ),
        ];
        for (change, want) in table {
            let mut pod = pod.clone();
            change(&mut pod);
            let error = mirror_pod(&pod, "n", Some(&node)).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
