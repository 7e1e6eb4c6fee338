//! Puts claims right at start: what Services hold is claimed, and what is claimed is held.

use std::collections::HashSet;

use apimachinery::status::Result;
use serde_json::Value;

use super::{Claim, addresses, claims, ports};
use crate::cache::Selection;
use crate::registry::Registry;

/// Makes the claims those of the Services there are. Runs before the server is ready, so that a write which is under way
/// elsewhere is rare; it would fail to find its claim and be repaired by the next start.
pub async fn repair(registry: &Registry) -> Result<()> {
    let services: Vec<Value> = registry
        .list("", "services", &Selection::default())
        .await?
        .iter()
        .map(|object| object.value())
        .collect();
    let mut held: HashSet<Claim> = HashSet::new();
    for service in &services {
        for claim in claims(service) {
            if !held.insert(claim.clone()) {
                let name = apimachinery::object::key(service);
                tracing::error!(?claim, service = %name, "held by two services");
                continue;
            }
            claim.take(registry, service).await?;
        }
    }
    for object in registry
        .list(addresses::GROUP, addresses::PLURAL, &Selection::default())
        .await?
    {
        let Ok(ip) = object.name().parse() else {
            continue;
        };
        if !held.contains(&Claim::Address(ip)) && managed(&object.value()) {
            Claim::Address(ip).release(registry).await;
        }
    }
    for port in ports::used(registry).await? {
        if !held.contains(&Claim::Port(port)) {
            Claim::Port(port).release(registry).await;
        }
    }
    Ok(())
}

/// Whether we made this IPAddress: others may hold addresses for their own purposes.
fn managed(address: &Value) -> bool {
    apimachinery::object::label(address, "ipaddress.kubernetes.io/managed-by")
        == Some("ipallocator.k8s.io")
}
