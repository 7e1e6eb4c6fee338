//! ServiceAccount: every pod runs as an account that exists, and finds that account's token mounted.

use apimachinery::resource::Resource;
use apimachinery::status::Result;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin, cached, forbidden};
use crate::registry::Registry;
use crate::strategy::check::{given, list, list_mut, text};

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
const MIRROR: &str = "kubernetes.io/config.mirror";
const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";

pub struct ServiceAccount;

impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        operation == Operation::Create && super::is_pod(resource) && subresource.is_empty()
    }

    fn admit<'a>(
        &'a self,
        a: &'a mut Attributes<'_>,
        registry: &'a Registry,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if is_mirror(a.object) {
                return Ok(());
            }
            if !a.object["spec"].is_object() {
                return Ok(());
            }
            if text(&a.object["spec"], "serviceAccountName").is_empty() {
                a.object["spec"]["serviceAccountName"] = "default".into();
                a.object["spec"]["serviceAccount"] = "default".into();
            }
            let account = account(a, registry).await?;
            let spec = &mut a.object["spec"];
            let wanted = spec
                .get("automountServiceAccountToken")
                .and_then(Value::as_bool);
            let offered = account
                .get("automountServiceAccountToken")
                .and_then(Value::as_bool);
            if wanted.or(offered).unwrap_or(true) {
                mount_token(spec, &super::random_suffix());
            }
            if list(spec, "imagePullSecrets").is_empty()
                && !list(&account, "imagePullSecrets").is_empty()
            {
                let secrets = list(&account, "imagePullSecrets")
                    .iter()
                    .map(|s| json!({"name": text(s, "name")}));
                spec["imagePullSecrets"] = secrets.collect();
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
            if is_mirror(a.object) {
                return mirror_refers_to_nothing(a.object).map_err(|why| forbidden(a, why));
            }
            if text(&a.object["spec"], "serviceAccountName").is_empty() {
                let name = apimachinery::object::name(a.object);
                let why = format!(
                    "no service account specified for pod {}/{name}",
                    a.namespace
                );
                return Err(forbidden(a, &why));
            }
            let account = account(a, registry).await?;
            let enforce = apimachinery::object::annotation(&account, ENFORCE);
            if matches!(enforce, Some("true" | "True" | "TRUE" | "t" | "T" | "1")) {
                limit_secrets(&account, &a.object["spec"]).map_err(|why| forbidden(a, &why))?;
            }
            Ok(())
        })
    }
}

fn is_mirror(pod: &Value) -> bool {
    apimachinery::object::annotation(pod, MIRROR).is_some()
}

async fn account(a: &Attributes<'_>, registry: &Registry) -> Result<Value> {
    let name = text(&a.object["spec"], "serviceAccountName");
    match cached(registry, "", "serviceaccounts", a.namespace, name).await? {
        Some(account) => Ok(account.value()),
        None => {
            let namespace = a.namespace;
            let why = format!(
                "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
            );
            Err(forbidden(a, &why))
        }
    }
}

/// Adds the projected volume with token, CA and namespace, and mounts it where clients in containers look.
fn mount_token(spec: &mut Value, suffix: &str) {
    let existing = list(spec, "volumes")
        .iter()
        .map(|v| text(v, "name"))
        .find(|n| n.starts_with(VOLUME_PREFIX));
    let (name, has_volume) = match existing {
        Some(name) => (name.to_owned(), true),
        None => (format!("{VOLUME_PREFIX}{suffix}"), false),
    };
    let mut needed = false;
    for kind in ["initContainers", "containers"] {
        for container in list_mut(spec, kind) {
            if list(container, "volumeMounts")
                .iter()
                .any(|m| text(m, "mountPath") == MOUNT_PATH)
            {
                continue;
            }
            push(
                container,
                "volumeMounts",
                json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}),
            );
            needed = true;
        }
    }
    if needed && !has_volume {
        push(
            spec,
            "volumes",
            json!({"name": name, "projected": {
                "defaultMode": 0o644,
                "sources": [
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [{
                        "path": "namespace",
                        "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                    }]}},
                ],
            }}),
        );
    }
}

fn push(object: &mut Value, field: &str, item: Value) {
    match object.get_mut(field).and_then(Value::as_array_mut) {
        Some(list) => list.push(item),
        None => object[field] = json!([item]),
    }
}

/// Mirror pods stand for what a node runs by itself; they get nothing from the API.
fn mirror_refers_to_nothing(pod: &Value) -> std::result::Result<(), &'static str> {
    let spec = &pod["spec"];
    if !text(spec, "serviceAccountName").is_empty() {
        return Err("a mirror pod may not reference service accounts");
    }
    for volume in list(spec, "volumes") {
        let sources = volume
            .get("projected")
            .map_or(&[][..], |p| list(p, "sources"));
        if given(volume, "secret").is_some() || sources.iter().any(|s| given(s, "secret").is_some())
        {
            return Err("a mirror pod may not reference secrets");
        }
        if sources
            .iter()
            .any(|s| given(s, "serviceAccountToken").is_some())
        {
            return Err("a mirror pod may not use ServiceAccountToken volume projections");
        }
    }
    if secret_uses(spec).next().is_some() || !list(spec, "imagePullSecrets").is_empty() {
        return Err("a mirror pod may not reference secrets");
    }
    Ok(())
}

/// Kind of container, its name, the variable (if it is one variable) and the secret, for every use in the environment.
fn secret_uses(spec: &Value) -> impl Iterator<Item = (&'static str, &str, Option<&str>, &str)> {
    let kinds = [
        ("initContainers", "init container"),
        ("containers", "container"),
    ];
    kinds.into_iter().flat_map(|(field, kind)| {
        list(spec, field).iter().flat_map(move |container| {
            let name = text(container, "name");
            let each = list(container, "env").iter().filter_map(move |env| {
                let reference = given(given(env, "valueFrom")?, "secretKeyRef")?;
                Some((kind, name, Some(text(env, "name")), text(reference, "name")))
            });
            let from = list(container, "envFrom").iter().filter_map(move |source| {
                Some((kind, name, None, text(given(source, "secretRef")?, "name")))
            });
            each.chain(from)
        })
    })
}

/// An account may be limited to the secrets that it lists.
fn limit_secrets(account: &Value, spec: &Value) -> std::result::Result<(), String> {
    let owner = apimachinery::object::name(account);
    let listed =
        |field: &str, name: &str| list(account, field).iter().any(|s| text(s, "name") == name);
    let not_listed =
        format!("is not allowed because service account {owner} does not reference that secret");
    for volume in list(spec, "volumes") {
        let Some(secret) = given(volume, "secret").map(|s| text(s, "secretName")) else {
            continue;
        };
        if !listed("secrets", secret) {
            return Err(format!(
                "volume with secret.secretName=\"{secret}\" {not_listed}"
            ));
        }
    }
    for (kind, container, variable, secret) in secret_uses(spec) {
        if !listed("secrets", secret) {
            let what = variable.map_or("with envFrom".to_owned(), |v| format!("with envVar {v}"));
            return Err(format!(
                "{kind} {container} {what} referencing secret.secretName=\"{secret}\" {not_listed}"
            ));
        }
    }
    for (i, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        let name = text(secret, "name");
        if !listed("imagePullSecrets", name) {
            return Err(format!(
                "imagePullSecrets[{i}].name=\"{name}\" is not allowed because service account {owner} does not reference that imagePullSecret"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_once_in_every_container() {
        let mut spec = json!({
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "mine", "mountPath": MOUNT_PATH}]}],
        });
        mount_token(&mut spec, "abcde");
        let mount =
            json!([{"name": "kube-api-access-abcde", "readOnly": true, "mountPath": MOUNT_PATH}]);
        assert_eq!(spec["initContainers"][0]["volumeMounts"], mount);
        assert_eq!(spec["containers"][0]["volumeMounts"], mount);
        assert_eq!(spec["containers"][1]["volumeMounts"][0]["name"], "mine");
        let sources = &spec["volumes"][0]["projected"]["sources"];
        assert_eq!(
            sources[0]["serviceAccountToken"],
            json!({"expirationSeconds": 3607, "path": "token"})
        );
        assert_eq!(sources.as_array().map(Vec::len), Some(3));
        let once = spec.clone();
        mount_token(&mut spec, "other");
        assert_eq!(spec, once);
    }

    #[test]
    fn mirror_pods_refer_to_nothing() {
        for (spec, want) in [
            (json!({"containers": [{"name": "a"}]}), None),
            (
                json!({"serviceAccountName": "x"}),
                Some("a mirror pod may not reference service accounts"),
            ),
            (
                json!({"volumes": [{"secret": {}}]}),
                Some("a mirror pod may not reference secrets"),
            ),
            (
                json!({"volumes": [{"projected": {"sources": [{"serviceAccountToken": {}}]}}]}),
                Some("a mirror pod may not use ServiceAccountToken volume projections"),
            ),
        ] {
            assert_eq!(mirror_refers_to_nothing(&json!({"spec": spec})).err(), want);
        }
    }

    #[test]
    fn limited_accounts_name_their_secrets() {
        let account = json!({"metadata": {"name": "sa"}, "secrets": [{"name": "ok"}]});
        let env = |secret: &str| {
            json!({"containers": [{"name": "c", "env": [
            {"name": "V", "valueFrom": {"secretKeyRef": {"name": secret}}}]}]})
        };
        assert!(limit_secrets(&account, &env("ok")).is_ok());
        assert_eq!(
            limit_secrets(&account, &env("no")).unwrap_err(),
            "container c with envVar V referencing secret.secretName=\"no\" is not allowed because service account sa does not reference that secret"
        );
    }
}
