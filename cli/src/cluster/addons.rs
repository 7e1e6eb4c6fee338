//! What a cluster needs beyond its processes, applied through the API as a user would; and waiting, through watches, until
//! the cluster serves.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DynamicObject, GroupVersionKind, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::ApiResource;
use kube::runtime::wait::await_condition;
use kube::{Client, Config};

/// Applied in this order.
const MANIFESTS: [(&str, &str); 2] = [
    (
        "overlay.yaml",
        include_str!("../../../manifests/system/overlay.yaml"),
    ),
    (
        "dns.yaml",
        include_str!("../../../manifests/system/dns.yaml"),
    ),
];
const RETRY: Duration = Duration::from_millis(25);

pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Until the API server is ready. Its socket is open before it runs: the first request waits in line, so this
/// seldom asks twice.
pub async fn api_ready(client: &Client) {
    loop {
        let request = http::Request::get("/readyz").body(Vec::new());
        if let Ok(request) = request
            && client.request_text(request).await.is_ok()
        {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

pub async fn apply(client: &Client) -> Result<()> {
    for (name, text) in MANIFESTS {
        let objects: Vec<DynamicObject> =
            serde_saphyr::from_multiple(text).with_context(|| format!("parse {name}"))?;
        for object in objects {
            apply_one(client, object)
                .await
                .with_context(|| format!("apply {name}"))?;
        }
    }
    Ok(())
}

/// Creates the object, or replaces the one that is there.
async fn apply_one(client: &Client, mut object: DynamicObject) -> Result<()> {
    let types = object.types.clone().context("an object without a kind")?;
    let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(&types)?);
    let name = object
        .metadata
        .name
        .clone()
        .context("an object without a name")?;
    let api: Api<DynamicObject> = match &object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let what = || format!("{} {name}", types.kind);
    // Asked first: creating a Service that is there fails over its address, not over its name.
    while let Some(there) = api.get_opt(&name).await.with_context(what)? {
        object.metadata.resource_version = there.metadata.resource_version;
        match api.replace(&name, &PostParams::default(), &object).await {
            Ok(_) => return Ok(()),
            // A controller was faster: look again.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(e) => return Err(e).with_context(what),
        }
    }
    object.metadata.resource_version = None;
    loop {
        match api.create(&PostParams::default(), &object).await {
            Ok(_) => return Ok(()),
            // The API server makes the system's namespaces just after it has become ready.
            Err(kube::Error::Api(status))
                if status.is_not_found() && object.metadata.namespace.is_some() =>
            {
                tokio::time::sleep(RETRY).await;
            }
            Err(e) => return Err(e).with_context(what),
        }
    }
}

/// Until the node is ready, and its kubelet has been heard of since: of a cluster that was stopped, the API still has what was
/// so before.
pub async fn node_ready(client: &Client, name: &str, since: jiff::Timestamp) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let renewed = |lease: Option<&Lease>| {
        let spec = lease.and_then(|l| l.spec.as_ref());
        let time = spec.and_then(|s| s.renew_time.as_ref());
        time.is_some_and(|time| time.0 >= since)
    };
    await_condition(leases, name, renewed).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    await_condition(nodes, name, |node: Option<&Node>| {
        node.is_some_and(is_ready)
    })
    .await?;
    Ok(())
}

pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Until one replica of the cluster's DNS answers.
pub async fn dns_ready(client: &Client) -> Result<()> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), "kube-system");
    let available = |d: Option<&Deployment>| {
        let replicas = d
            .and_then(|d| d.status.as_ref())
            .and_then(|s| s.available_replicas);
        replicas.is_some_and(|n| n > 0)
    };
    await_condition(api, "skiff-dns", available).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_are_objects_with_names() {
        for (name, text) in MANIFESTS {
            let objects: Vec<DynamicObject> = serde_saphyr::from_multiple(text).unwrap();
            assert!(!objects.is_empty(), "{name}");
            for object in objects {
                assert!(
                    object.types.is_some() && object.metadata.name.is_some(),
                    "{name}: {object:?}"
                );
            }
        }
    }
}
