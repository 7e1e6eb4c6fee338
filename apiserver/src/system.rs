//! What the API server itself makes: the `kubernetes` Service, by which pods find it ([`endpoints`](crate::endpoints) says
//! where it leads), and the range of addresses for Services.

use std::net::SocketAddr;

use apimachinery::status::{Result, Status};
use serde_json::{Value, json};

use crate::registry::Registry;
use crate::services::cidr::Cidr;

/// What somebody else was faster to make is made.
pub(crate) fn existing_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.is_already_exists() => Ok(()),
        result => result,
    }
}

/// Makes the Service `default/kubernetes`.
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
    Ok(())
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
