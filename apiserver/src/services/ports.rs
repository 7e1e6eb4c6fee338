//! Node ports: a key each. There is no Kubernetes object for them.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use apimachinery::object;
use apimachinery::status::Result;
use rand::Rng;
use serde_json::{Value, json};
use storage::{Expect, Range};

use crate::cache::store_error;
use crate::registry::Registry;

pub(super) const PREFIX: &str = "/registry/ranges/servicenodeports/";
const TRIES: usize = 64;

fn key(port: u16) -> String {
    format!("{PREFIX}{port}")
}

/// Claims a port. False if it is taken.
pub(super) async fn take(registry: &Registry, port: u16, service: &Value) -> Result<bool> {
    let holder = json!({"namespace": object::namespace(service), "name": object::name(service)});
    match registry
        .store
        .put(&key(port), Expect::Absent, holder.to_string().into(), None)
        .await
    {
        Ok(_) => Ok(true),
        Err(storage::Error::Conflict { .. }) => Ok(false),
        Err(error) => Err(store_error(error)),
    }
}

pub(super) async fn release(registry: &Registry, port: u16) -> Result<()> {
    match registry.store.delete(&key(port), Expect::Any).await {
        Ok(_) | Err(storage::Error::Conflict { .. }) => Ok(()),
        Err(error) => Err(store_error(error)),
    }
}

/// The ports that are claimed.
pub(super) async fn used(registry: &Registry) -> Result<HashSet<u16>> {
    let range = Range {
        keys_only: true,
        ..Range::prefix(PREFIX)
    };
    let found = registry.store.range(range).await.map_err(store_error)?;
    Ok(found
        .kvs
        .iter()
        .filter_map(|kv| kv.key.strip_prefix(PREFIX)?.parse().ok())
        .collect())
}

/// Free ports to try, from a random one on.
pub(super) async fn candidates(
    registry: &Registry,
    range: &RangeInclusive<u16>,
) -> Result<Vec<u16>> {
    let used = used(registry).await?;
    let (first, count) = (u32::from(*range.start()), range.len() as u32);
    let start = rand::rng().random_range(0..count);
    let ports = (0..count).filter_map(|step| u16::try_from(first + (start + step) % count).ok());
    Ok(ports
        .filter(|port| !used.contains(port))
        .take(TRIES)
        .collect())
}
