//! The `kubernetes` Service and its endpoints: how pods find the API server.

use std::net::SocketAddr;

use apimachinery::status::{Result, Status};
use serde_json::{Value, json};

use crate::registry::Registry;
use crate::services::cidr::Cidr;

fn existing_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.is_already_exists() => Ok(()),
        result => result,
    }
}

/// Makes `default/kubernetes` lead to this server: the Service, its Endpoints and its EndpointSlice.
pub async fn kubernetes_service(
    registry: &Registry,
    range: &str,
    advertised: SocketAddr,
) -> Result<()> {
    // Of two ranges the first gives the default.
    let cidr: Cidr = range
        .split(',')
        .next()
        .unwrap_or_default()
        .trim()
        .parse()
        .map_err(|error| Status::internal(format!("service range {range}: {error}")))?;
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cidr.nth(1).map(|ip| ip.to_string()),
            "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": advertised.port()}],
        },
    });
    if registry
        .get("", "services", "default", "kubernetes")
        .await
        .is_err()
    {
        existing_is_fine(
            registry
                .create_as_server("", "services", service)
                .await
                .map(drop),
        )?;
    }
    if advertised.ip().is_loopback() {
        // No endpoint may be there, and no pod would find it.
        tracing::warn!(%advertised, "the kubernetes Service has no endpoints: advertise an address that pods can reach");
        return Ok(());
    }
    let address = advertised.ip().to_string();
    let family = if advertised.is_ipv4() { "IPv4" } else { "IPv6" };
    let skip_mirror = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
    let endpoints = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": skip_mirror},
        "subsets": [{
            "addresses": [{"ip": address}],
            "ports": [{"name": "https", "port": advertised.port(), "protocol": "TCP"}],
        }],
    });
    let slice = json!({
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": family,
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": advertised.port(), "protocol": "TCP"}],
    });
    put(registry, "", "endpoints", endpoints, &["subsets"]).await?;
    put(
        registry,
        "discovery.k8s.io",
        "endpointslices",
        slice,
        &["endpoints", "ports"],
    )
    .await
}

/// The ServiceCIDR `kubernetes`: the range of addresses that the flags say, ready for use.
pub async fn default_service_cidr(registry: &Registry, range: &str) -> Result<()> {
    const KIND: (&str, &str) = ("networking.k8s.io", "servicecidrs");
    let cidrs: Vec<&str> = range.split(',').collect();
    let cidr = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}});
    let created = registry.create_as_server(KIND.0, KIND.1, cidr).await;
    existing_is_fine(created.map(drop))?;
    let now = apimachinery::time::format(jiff::Timestamp::now());
    let ready = |object: &mut Value| {
        let conditions = object["status"]["conditions"].as_array();
        // What somebody else has said of it stands.
        if conditions.is_none_or(|all| all.iter().all(|c| c["type"] != "Ready")) {
            object["status"]["conditions"] = json!([{
                "type": "Ready", "status": "True", "lastTransitionTime": now, "reason": "",
                "message": "Kubernetes default Service CIDR is ready",
            }]);
        }
        Ok(())
    };
    registry
        .update_status_as_server(KIND.0, KIND.1, ("", "kubernetes"), ready)
        .await
        .map(drop)
}

/// Creates an object, or makes the given fields of the one that exists what they should be.
async fn put(
    registry: &Registry,
    group: &str,
    plural: &str,
    wanted: Value,
    fields: &[&str],
) -> Result<()> {
    let name = apimachinery::object::name(&wanted).to_owned();
    let created = registry
        .create_as_server(group, plural, wanted.clone())
        .await
        .map(drop);
    match created {
        Err(error) if error.is_already_exists() => {}
        result => return result,
    }
    let change = |object: &mut Value| {
        for field in fields {
            object[*field] = wanted[*field].clone();
        }
        Ok(())
    };
    registry
        .update_as_server(group, plural, ("default", &name), change)
        .await
        .map(drop)
}
