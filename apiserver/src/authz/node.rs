//! The Node authorizer: a kubelet may read what the pods bound to its node need, and nothing else.
//!
//! Kubernetes keeps a graph of all pods for this. Here the question is answered when it is asked: the pods of one
//! node are few, and the watch cache finds them by `spec.nodeName`.

use std::sync::{Arc, LazyLock, Weak};

use apimachinery::status::Result;
use futures::future::BoxFuture;
use serde_json::Value;

use super::rules::Rule;
use super::{Attributes, Authorizer, Decision};
use crate::authn::UserInfo;
use crate::cache::Selection;
use crate::registry::Registry;
use crate::strategy::check::{given, list, text};

/// The rules of the ClusterRole `system:node`, for what is not decided by pods.
static NODE_RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let objects = crate::bootstrap::policy::objects();
    let role = objects
        .into_iter()
        .find(|o| o.object["metadata"]["name"] == "system:node" && o.resource == "clusterroles");
    role.and_then(|r| serde_json::from_value(r.object["rules"].clone()).ok())
        .unwrap_or_default()
});

/// The node that a user is: `system:node:NAME` in the group `system:nodes`.
#[must_use]
pub fn node_name(user: &UserInfo) -> Option<&str> {
    user.name
        .strip_prefix("system:node:")
        .filter(|_| user.in_group("system:nodes"))
}

pub struct Node {
    registry: Weak<Registry>,
}

/// What the pods decide about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Secret,
    ConfigMap,
    Claim,
    Volume,
    ServiceAccount,
    Pod,
    Attachment,
}

impl Node {
    #[must_use]
    pub fn new(registry: &Arc<Registry>) -> Self {
        Self {
            registry: Arc::downgrade(registry),
        }
    }

    async fn decide(&self, node: &str, a: &Attributes<'_>) -> Decision {
        match plan(node, a) {
            Plan::Allow => Decision::Allow(String::new()),
            Plan::No(why) => Decision::NoOpinion(why),
            Plan::Related(kind) => match self.related(node, kind, a).await {
                Ok(true) => Decision::Allow(String::new()),
                Ok(false) | Err(_) => Decision::NoOpinion(format!(
                    "no relationship found between node '{node}' and this object"
                )),
            },
        }
    }

    /// Whether some pod on the node leads to the object.
    async fn related(&self, node: &str, kind: Kind, a: &Attributes<'_>) -> Result<bool> {
        let Some(registry) = self.registry.upgrade() else {
            return Ok(false);
        };
        if kind == Kind::Attachment {
            let attachment = registry
                .get("storage.k8s.io", "volumeattachments", "", a.name)
                .await?
                .value();
            return Ok(attachment["spec"]["nodeName"] == node);
        }
        let mut namespace = a.namespace.to_owned();
        let mut name = a.name.to_owned();
        let mut kind = kind;
        if kind == Kind::Volume {
            // A volume belongs to whoever uses the claim that is bound to it.
            let volume = registry
                .get("", "persistentvolumes", "", &name)
                .await?
                .value();
            let claim = &volume["spec"]["claimRef"];
            (namespace, name) = (
                text(claim, "namespace").to_owned(),
                text(claim, "name").to_owned(),
            );
            kind = Kind::Claim;
        }
        let fields = crate::fields::of("", "pods");
        let selection = Selection::parse(&namespace, "", &format!("spec.nodeName={node}"), fields)?;
        let pods = registry.list("", "pods", &selection).await?;
        if kind == Kind::Pod {
            return Ok(pods.iter().any(|p| p.name() == name));
        }
        if pods.iter().any(|p| refers(&p.value(), kind, &name)) {
            return Ok(true);
        }
        if kind != Kind::Secret {
            return Ok(false);
        }
        // Some volumes name a secret; who may have the volume may have its secret.
        for pod in &pods {
            for claim in claims(&pod.value()) {
                let Ok(claim) = registry
                    .get("", "persistentvolumeclaims", &namespace, &claim)
                    .await
                else {
                    continue;
                };
                let volume = text(&claim.value()["spec"], "volumeName").to_owned();
                let Ok(volume) = registry.get("", "persistentvolumes", "", &volume).await else {
                    continue;
                };
                if volume_secret(&volume.value(), &namespace, &name) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

enum Plan {
    Allow,
    No(String),
    Related(Kind),
}

/// What a node may do, apart from which pods it runs.
fn plan(node: &str, a: &Attributes<'_>) -> Plan {
    let no = |why: &str| Plan::No(why.to_owned());
    if !a.is_resource {
        return rules(a);
    }
    let reads = matches!(a.verb, "get" | "list" | "watch");
    match (a.group, a.resource, a.subresource) {
        ("", "secrets" | "configmaps", sub) => match () {
            () if !reads => no("can only read resources of this type"),
            () if !sub.is_empty() => no("cannot read subresource"),
            () if a.namespace.is_empty() => no("can only read namespaced object of this type"),
            () if a.name.is_empty() => no("No Object name found"),
            () if a.resource == "secrets" => Plan::Related(Kind::Secret),
            () => Plan::Related(Kind::ConfigMap),
        },
        ("", "persistentvolumeclaims", "status") => match a.verb {
            "update" | "patch" => Plan::Related(Kind::Claim),
            _ => no("can only get/update/patch this type"),
        },
        ("", "persistentvolumeclaims", _) => get_only(a, Kind::Claim),
        ("", "persistentvolumes", _) => get_only(a, Kind::Volume),
        ("storage.k8s.io", "volumeattachments", _) => get_only(a, Kind::Attachment),
        ("", "serviceaccounts", "") if a.verb == "get" => Plan::Related(Kind::ServiceAccount),
        ("", "serviceaccounts", "token") if a.verb == "create" && !a.name.is_empty() => {
            Plan::Related(Kind::ServiceAccount)
        }
        ("", "serviceaccounts", _) => no("can only create tokens for individual service accounts"),
        ("coordination.k8s.io", "leases", _) => lease(node, a),
        ("storage.k8s.io", "csinodes", _) => own(node, a, "CSINode"),
        ("", "nodes", "") => match a.verb {
            "create" | "update" | "patch" => Plan::Allow,
            _ if reads && a.name == node => Plan::Allow,
            _ if reads && a.name.is_empty() => Plan::No(format!(
                "node '{node}' cannot read all nodes, only its own Node object"
            )),
            _ if reads => Plan::No(format!(
                "node '{node}' cannot read '{}', only its own Node object",
                a.name
            )),
            _ => no(""),
        },
        ("", "nodes" | "pods", "status") if matches!(a.verb, "update" | "patch") => Plan::Allow,
        ("", "pods", "eviction") if a.verb == "create" => Plan::Allow,
        ("", "pods", "") => match a.verb {
            "create" | "delete" => Plan::Allow,
            "get" => Plan::Related(Kind::Pod),
            "list" | "watch" if selects_node(a.field_selector, node) => Plan::Allow,
            "list" | "watch" if !a.name.is_empty() => Plan::Related(Kind::Pod),
            "list" | "watch" => no("can only list/watch pods with spec.nodeName field selector"),
            _ => no(""),
        },
        ("", "nodes" | "pods", _) => no(""),
        _ => rules(a),
    }
}

fn rules(a: &Attributes<'_>) -> Plan {
    let allowed = NODE_RULES.iter().any(|rule| match a.is_resource {
        true => rule.matches_resource(a.verb, a.group, a.resource, a.subresource),
        false => rule.matches_path(a.verb, a.path),
    });
    if allowed {
        Plan::Allow
    } else {
        Plan::No(String::new())
    }
}

fn get_only(a: &Attributes<'_>, kind: Kind) -> Plan {
    if a.verb != "get" {
        return Plan::No("can only get individual resources of this type".into());
    }
    if !a.subresource.is_empty() {
        return Plan::No("cannot get subresource".into());
    }
    Plan::Related(kind)
}

fn lease(node: &str, a: &Attributes<'_>) -> Plan {
    if !matches!(a.verb, "get" | "create" | "update" | "patch" | "delete") {
        return Plan::No("can only get, create, update, patch, or delete a node lease".into());
    }
    if a.namespace != "kube-node-lease" {
        return Plan::No(
            r#"can only access leases in the "kube-node-lease" system namespace"#.into(),
        );
    }
    if a.verb != "create" && a.name != node {
        return Plan::No(
            "can only access node lease with the same name as the requesting node".into(),
        );
    }
    Plan::Allow
}

fn own(node: &str, a: &Attributes<'_>, kind: &str) -> Plan {
    if !matches!(a.verb, "get" | "create" | "update" | "patch" | "delete") {
        return Plan::No(format!(
            "can only get, create, update, patch, or delete a {kind}"
        ));
    }
    if !a.subresource.is_empty() {
        return Plan::No(format!("cannot authorize {kind} subresources"));
    }
    if a.verb != "create" && a.name != node {
        return Plan::No(format!(
            "can only access {kind} with the same name as the requesting node"
        ));
    }
    Plan::Allow
}

fn selects_node(selector: &str, node: &str) -> bool {
    selector.split(',').any(|term| {
        let value = term.strip_prefix("spec.nodeName=");
        value.is_some_and(|v| v.strip_prefix('=').unwrap_or(v) == node)
    })
}

/// Whether a pod refers to an object. Mirror pods refer to nothing: a node made them itself.
fn refers(pod: &Value, kind: Kind, name: &str) -> bool {
    if pod["metadata"]["annotations"]
        .get("kubernetes.io/config.mirror")
        .is_some()
    {
        return false;
    }
    let spec = &pod["spec"];
    match kind {
        Kind::ServiceAccount => text(spec, "serviceAccountName") == name,
        Kind::Claim => claims(pod).any(|c| c == name),
        Kind::ConfigMap => {
            references(spec, "configMap", &["configMapRef", "configMapKeyRef"]).any(|n| n == name)
        }
        Kind::Secret => {
            list(spec, "imagePullSecrets")
                .iter()
                .any(|s| text(s, "name") == name)
                || references(spec, "secret", &["secretRef", "secretKeyRef"]).any(|n| n == name)
                || other_volume_secrets(spec).any(|n| n == name)
        }
        Kind::Volume | Kind::Pod | Kind::Attachment => false,
    }
}

/// The claims of a pod: by name, and those made for its ephemeral volumes.
fn claims(pod: &Value) -> impl Iterator<Item = String> + '_ {
    let pod_name = text(&pod["metadata"], "name");
    list(&pod["spec"], "volumes")
        .iter()
        .filter_map(move |volume| {
            if let Some(claim) = given(volume, "persistentVolumeClaim") {
                return Some(text(claim, "claimName").to_owned());
            }
            given(volume, "ephemeral").map(|_| format!("{pod_name}-{}", text(volume, "name")))
        })
}

/// Names of config maps or secrets in volumes, projections, variables and their sources.
fn references<'a>(
    spec: &'a Value,
    volume_field: &'a str,
    env_fields: &'a [&str; 2],
) -> impl Iterator<Item = &'a str> {
    let named = |source: &'a Value| match text(source, "secretName") {
        "" => text(source, "name"),
        name => name,
    };
    let volumes = list(spec, "volumes").iter().flat_map(move |volume| {
        let projected = volume
            .get("projected")
            .map_or(&[][..], |p| list(p, "sources"));
        std::iter::once(volume)
            .chain(projected)
            .filter_map(move |v| given(v, volume_field))
            .map(named)
    });
    let containers = ["containers", "initContainers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|c| list(spec, c));
    let variables = containers.flat_map(move |container| {
        let from = list(container, "envFrom")
            .iter()
            .filter_map(|e| given(e, env_fields[0]));
        let each = list(container, "env")
            .iter()
            .filter_map(|e| given(given(e, "valueFrom")?, env_fields[1]));
        from.chain(each).map(|r| text(r, "name"))
    });
    volumes.chain(variables)
}

fn other_volume_secrets(spec: &Value) -> impl Iterator<Item = &str> {
    list(spec, "volumes").iter().filter_map(|volume| {
        let (_, source) = volume
            .as_object()?
            .iter()
            .find(|(k, v)| *k != "name" && v.is_object())?;
        let reference =
            given(source, "secretRef").or_else(|| given(source, "nodePublishSecretRef"));
        match reference {
            Some(reference) => Some(text(reference, "name")),
            None => Some(text(source, "secretName")).filter(|n| !n.is_empty()),
        }
    })
}

fn volume_secret(volume: &Value, namespace: &str, name: &str) -> bool {
    let Some(csi) = given(&volume["spec"], "csi") else {
        return false;
    };
    [
        "nodePublishSecretRef",
        "nodeStageSecretRef",
        "nodeExpandSecretRef",
    ]
    .iter()
    .any(|field| {
        given(csi, field)
            .is_some_and(|r| text(r, "name") == name && text(r, "namespace") == namespace)
    })
}

impl Authorizer for Node {
    fn authorize<'a>(&'a self, attributes: &'a Attributes<'a>) -> BoxFuture<'a, Decision> {
        Box::pin(async move {
            match node_name(attributes.user) {
                None => Decision::NoOpinion(String::new()),
                Some("") => {
                    Decision::NoOpinion(format!("unknown node for user {:?}", attributes.user.name))
                }
                Some(node) => self.decide(node, attributes).await,
            }
        })
    }

    fn rules<'a>(
        &'a self,
        user: &'a UserInfo,
        _namespace: &'a str,
    ) -> BoxFuture<'a, (Vec<super::Rule>, Option<String>)> {
        let why = "node authorizer does not support user rule resolution";
        let error = node_name(user).map(|_| why.to_owned());
        Box::pin(async move { (Vec::new(), error) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_node_may_ask() {
        let user = UserInfo::new("system:node:n1", &["system:nodes"]);
        for (verb, group, resource, sub, namespace, name, selector, want) in [
            ("get", "", "secrets", "", "ns", "s", "", "related"),
            (
                "list",
                "",
                "secrets",
                "",
                "ns",
                "",
                "",
                "No Object name found",
            ),
            (
                "update",
                "",
                "secrets",
                "",
                "ns",
                "s",
                "",
                "can only read resources of this type",
            ),
            ("get", "", "nodes", "", "", "n1", "", "allow"),
            (
                "list",
                "",
                "nodes",
                "",
                "",
                "",
                "",
                "node 'n1' cannot read all nodes, only its own Node object",
            ),
            (
                "get",
                "",
                "nodes",
                "",
                "",
                "n2",
                "",
                "node 'n1' cannot read 'n2', only its own Node object",
            ),
            ("delete", "", "nodes", "", "", "n1", "", ""),
            ("list", "", "pods", "", "", "", "spec.nodeName=n1", "allow"),
            (
                "watch",
                "",
                "pods",
                "",
                "",
                "",
                "spec.nodeName=n2",
                "can only list/watch pods with spec.nodeName field selector",
            ),
            ("patch", "", "pods", "status", "ns", "p", "", "allow"),
            (
                "create",
                "",
                "serviceaccounts",
                "token",
                "ns",
                "sa",
                "",
                "related",
            ),
            (
                "update",
                "coordination.k8s.io",
                "leases",
                "",
                "kube-node-lease",
                "n1",
                "",
                "allow",
            ),
            (
                "update",
                "coordination.k8s.io",
                "leases",
                "",
                "kube-node-lease",
                "n2",
                "",
                "can only access node lease with the same name as the requesting node",
            ),
            ("list", "", "services", "", "", "", "", "allow"),
            ("list", "apps", "deployments", "", "", "", "", ""),
        ] {
            let a = Attributes {
                user: &user,
                verb,
                namespace,
                group,
                version: "v1",
                resource,
                subresource: sub,
                name,
                is_resource: true,
                path: "",
                field_selector: selector,
                label_selector: "",
            };
            let got = match plan("n1", &a) {
                Plan::Allow => "allow".to_owned(),
                Plan::Related(_) => "related".to_owned(),
                Plan::No(why) => why,
            };
            assert_eq!(got, want, "{verb} {resource}/{sub} {name}");
        }
    }

    #[test]
    fn what_a_pod_refers_to() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "serviceAccountName": "sa",
            "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "env"}}}], "envFrom": [{"configMapRef": {"name": "from"}}]}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "vol"}},
                {"name": "b", "projected": {"sources": [{"configMap": {"name": "proj"}}, {"secret": {"name": "psecret"}}]}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
                {"name": "d", "ephemeral": {}},
                {"name": "e", "csi": {"driver": "x", "nodePublishSecretRef": {"name": "csi"}}},
            ],
        }});
        for (kind, name, want) in [
            (Kind::ServiceAccount, "sa", true),
            (Kind::Secret, "pull", true),
            (Kind::Secret, "env", true),
            (Kind::Secret, "vol", true),
            (Kind::Secret, "psecret", true),
            (Kind::Secret, "csi", true),
            (Kind::Secret, "from", false),
            (Kind::ConfigMap, "from", true),
            (Kind::ConfigMap, "proj", true),
            (Kind::Claim, "claim", true),
            (Kind::Claim, "p-d", true),
            (Kind::Claim, "other", false),
        ] {
            assert_eq!(refers(&pod, kind, name), want, "{kind:?} {name}");
        }
        let mut mirror = pod;
        mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        assert!(!refers(&mirror, Kind::Secret, "vol"));
    }
}
