//! Objects that a cluster starts with: system namespaces, the default RBAC policy, the system priority classes.
//!
//! Reconciled at every start, as Kubernetes does: missing objects are created, missing rules added, what an
//! administrator added is kept.

pub mod policy;

use apimachinery::object;
use apimachinery::status::{Result, Status};
use futures::future::join_all;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::authn::legacy_token;
use crate::authz::rbac::GROUP as RBAC;
use crate::config::Config;
use crate::registry::Registry;
use policy::Reconcile;

/// Namespaces that every cluster has.
pub const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// Brings the default objects up to date. `published` is what extension API servers read.
pub async fn run(registry: &Registry, published: Option<Value>) -> Result<()> {
    let namespaces = NAMESPACES.map(|name| {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ensure(registry, "", "namespaces", object, |_, _| Reconcile::Keep)
    });
    all(namespaces).await?;
    let classes = priority_classes().map(|class| {
        ensure(
            registry,
            "scheduling.k8s.io",
            "priorityclasses",
            class,
            |_, _| Reconcile::Keep,
        )
    });
    let policy = policy::objects()
        .into_iter()
        .map(|o| ensure(registry, RBAC, o.resource, o.object, policy::reconcile));
    let published = published.map(|map| ensure(registry, "", "configmaps", map, same_data));
    let tracking = ensure(
        registry,
        "",
        "configmaps",
        token_tracking(),
        tracked_already,
    );
    let (classes, policy, published, tracking) =
        futures::join!(all(classes), all(policy), all(published), tracking);
    classes.and(policy).and(published).and(tracking)
}

/// The writes go out together: the store commits them in groups.
async fn all(work: impl IntoIterator<Item = impl Future<Output = Result<()>>>) -> Result<()> {
    join_all(work).await.into_iter().collect()
}

fn priority_classes() -> [Value; 2] {
    let class = |name: &str, value: i64, description: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
            "description": description,
        })
    };
    [
        class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ]
}

/// What an extension API server reads to check its clients' certificates, and which headers it may believe this server.
#[must_use]
pub fn authentication(config: &Config) -> Option<Value> {
    let read = |path: &Option<std::path::PathBuf>| {
        path.as_ref()
            .and_then(|path| std::fs::read_to_string(path).ok())
    };
    let words = |list: &[String]| json!(list).to_string();
    let mut data = json!({});
    if let Some(ca) = read(&config.client_ca_file) {
        data["client-ca-file"] = ca.into();
    }
    if let Some(ca) = read(&config.requestheader_client_ca_file) {
        data["requestheader-client-ca-file"] = ca.into();
        for (key, list) in [
            ("allowed-names", &config.requestheader_allowed_names),
            ("username-headers", &config.requestheader_username_headers),
            ("uid-headers", &config.requestheader_uid_headers),
            ("group-headers", &config.requestheader_group_headers),
            (
                "extra-headers-prefix",
                &config.requestheader_extra_headers_prefix,
            ),
        ] {
            data[format!("requestheader-{key}")] = words(list).into();
        }
    }
    data.as_object().is_some_and(|data| !data.is_empty()).then(|| {
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
            "data": data,
        })
    })
}

/// Says since when the last use of tokens in Secrets is recorded: from the first start on.
fn token_tracking() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "kube-apiserver-legacy-service-account-token-tracking", "namespace": "kube-system"},
        "data": {"since": legacy_token::day(Timestamp::now())},
    })
}

fn tracked_already(existing: &Value, wanted: &Value) -> Reconcile {
    let since = existing["data"]["since"].as_str();
    match since.is_some_and(|since| since.parse::<jiff::civil::Date>().is_ok()) {
        true => Reconcile::Keep,
        false => same_data(existing, wanted),
    }
}

fn same_data(existing: &Value, wanted: &Value) -> Reconcile {
    let mut object = existing.clone();
    for (key, value) in wanted["data"].as_object().into_iter().flatten() {
        object["data"][key] = value.clone();
    }
    if object == *existing {
        Reconcile::Keep
    } else {
        Reconcile::Update(object)
    }
}

async fn ensure(
    registry: &Registry,
    group: &str,
    plural: &str,
    wanted: Value,
    reconcile: fn(&Value, &Value) -> Reconcile,
) -> Result<()> {
    let (namespace, name) = (
        object::namespace(&wanted).to_owned(),
        object::name(&wanted).to_owned(),
    );
    let existing = match registry.get(group, plural, &namespace, &name).await {
        Ok(existing) => existing.value(),
        Err(error) if error.is_not_found() => return create(registry, group, plural, wanted).await,
        Err(error) => return Err(error),
    };
    match reconcile(&existing, &wanted) {
        Reconcile::Keep => Ok(()),
        Reconcile::Update(_) => {
            let change = |object: &mut Value| {
                if let Reconcile::Update(new) = reconcile(object, &wanted) {
                    *object = new;
                }
                Ok(())
            };
            registry
                .update_as_server(group, plural, (&namespace, &name), change)
                .await?;
            Ok(())
        }
        Reconcile::Recreate => {
            registry
                .delete_as_server(group, plural, &namespace, &name)
                .await?;
            create(registry, group, plural, wanted).await
        }
    }
}

/// Another API server may be quicker; then it is done.
async fn create(registry: &Registry, group: &str, plural: &str, object: Value) -> Result<()> {
    match registry.create_as_server(group, plural, object).await {
        Ok(_) => Ok(()),
        Err(error) if Status::is_already_exists(&error) => Ok(()),
        Err(error) => Err(error),
    }
}
