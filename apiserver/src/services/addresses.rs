//! Cluster addresses: an IPAddress object each, named after the address.

use std::collections::HashSet;
use std::net::IpAddr;

use apimachinery::object;
use apimachinery::status::Result;
use rand::Rng;
use serde_json::{Value, json};

use super::cidr::Cidr;
use crate::cache::Selection;
use crate::registry::Registry;

pub(super) const GROUP: &str = "networking.k8s.io";
pub(super) const PLURAL: &str = "ipaddresses";
/// How many free addresses are tried before the range counts as full: others may be taking them at the same time.
const TRIES: usize = 64;

pub(super) fn document(ip: IpAddr, service: &Value) -> Value {
    json!({
        "metadata": {
            "name": ip.to_string(),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": if ip.is_ipv4() { "IPv4" } else { "IPv6" },
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": {"parentRef": {
            "group": "", "resource": "services",
            "namespace": object::namespace(service), "name": object::name(service),
        }},
    })
}

/// Claims an address. False if it is taken.
pub(super) async fn take(registry: &Registry, ip: IpAddr, service: &Value) -> Result<bool> {
    match registry
        .create_as_server(GROUP, PLURAL, document(ip, service))
        .await
    {
        Ok(_) => Ok(true),
        Err(error) if error.is_already_exists() => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) async fn release(registry: &Registry, ip: IpAddr) -> Result<()> {
    registry
        .delete_as_server(GROUP, PLURAL, "", &ip.to_string())
        .await
}

/// Free addresses to try, in a random order. The lower part of the range is left to those who ask for an address by
/// name, until there is nothing else.
pub(super) async fn candidates(registry: &Registry, range: Cidr) -> Result<Vec<IpAddr>> {
    let cache = registry.cache_of(GROUP, PLURAL)?;
    let reached = cache.loaded().await?;
    let used: HashSet<String> = cache
        .list(&Selection::default(), reached)
        .objects
        .iter()
        .map(|object| object.name().to_owned())
        .collect();
    let usable = range.usable();
    let reserved = (usable / 16).clamp(16, 256).min(usable);
    let mut found = Vec::new();
    for (first, last) in [(reserved + 1, usable), (1, reserved)] {
        let count = (last + 1).saturating_sub(first);
        if count == 0 {
            continue;
        }
        let start = rand::rng().random_range(0..count);
        let numbers = (0..count).map(|step| first + (start + step) % count);
        let free = numbers
            .filter_map(|number| range.nth(number))
            .filter(|ip| !used.contains(&ip.to_string()));
        found.extend(free.take(TRIES));
        if !found.is_empty() {
            break;
        }
    }
    Ok(found)
}
