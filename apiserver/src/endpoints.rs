//! Which API servers live: the endpoints of the `kubernetes` Service.
//!
//! As in Kubernetes, every server keeps a key of its own in the store, `/registry/masterleases/ADDRESS`, that is gone soon
//! after nobody renews it, and makes the endpoints those that have a key. So all that live are there, whoever looks last,
//! one that stops takes itself away, and one that dies is taken away by the others as soon as its key expires: they watch
//! the keys. The keys are as Kubernetes' own API servers have them, so that both kinds can serve side by side.
//!
//! An embedded store has one server, which is the only endpoint and needs no key.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::status::{Result, Status};
use bytes::Bytes;
use serde_json::{Value, json};
use storage::{EventKind, Expect, Range};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cache::store_error;
use crate::registry::Registry;
use crate::system::existing_is_fine;

const PREFIX: &str = "/registry/masterleases/";
/// Kubernetes' own: how long a key lives, and how often it is renewed.
const LIFETIME: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(10);
/// How soon to try again what failed.
const RETRY: Duration = Duration::from_secs(1);
/// How long a server that stops may take to say so.
const FAREWELL: Duration = Duration::from_secs(5);

const ENDPOINTS: (&str, &str) = ("", "endpoints");
const SLICES: (&str, &str) = ("discovery.k8s.io", "endpointslices");
const KEY: (&str, &str) = ("default", "kubernetes");

/// One server's part in it.
pub struct Reconciler {
    registry: Arc<Registry>,
    own: SocketAddr,
    /// Counted up with every renewal, as Kubernetes' servers do to make each one a change.
    generation: u64,
}

impl Reconciler {
    #[must_use]
    pub fn new(registry: Arc<Registry>, own: SocketAddr) -> Self {
        Self {
            registry,
            own,
            generation: 0,
        }
    }

    /// Joins the others; returns once this server is an endpoint.
    pub async fn join(&mut self) -> Result<()> {
        self.renew().await?;
        self.reconcile(false).await.map(drop)
    }

    /// Stays one of them until shutdown, then leaves.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut due = Instant::now() + RENEW;
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = self.round(&mut due) => {}
            }
        }
        let left = tokio::time::timeout(FAREWELL, self.leave()).await;
        let late = |_| Err(Status::timeout("the store does not answer", 1));
        complain(
            left.unwrap_or_else(late),
            "this server could not leave the kubernetes Service",
        );
    }

    /// Renews the lease if that is due, puts the endpoints right, and waits for a reason to do either again.
    async fn round(&mut self, due: &mut Instant) {
        if *due <= Instant::now() {
            let renewed = self.renew().await;
            *due = Instant::now() + if renewed.is_ok() { RENEW } else { RETRY };
            complain(renewed, "this server's lease could not be renewed");
        }
        let seen = self.reconcile(false).await;
        if seen.is_err() {
            *due = (*due).min(Instant::now() + RETRY);
        }
        let from = seen.as_ref().ok().map(|revision| revision + 1);
        complain(
            seen,
            "the endpoints of the kubernetes Service could not be written",
        );
        tokio::select! {
            () = tokio::time::sleep_until(*due) => {}
            () = self.others_changed(from) => {}
        }
    }

    fn key(&self) -> String {
        format!("{PREFIX}{}", self.own.ip())
    }

    async fn renew(&mut self) -> Result<()> {
        self.generation += 1;
        let lease = json!({
            "kind": "Endpoints", "apiVersion": "v1",
            "metadata": {"generation": self.generation},
            "subsets": [{"addresses": [{"ip": self.own.ip().to_string()}]}],
        });
        let (key, value) = (self.key(), Bytes::from(lease.to_string()));
        let store = &self.registry.store;
        let put = store.put(&key, Expect::Any, value, Some(LIFETIME));
        put.await.map(drop).map_err(store_error)
    }

    async fn leave(&self) -> Result<()> {
        match self.registry.store.delete(&self.key(), Expect::Any).await {
            Ok(_) | Err(storage::Error::Conflict { .. }) => {}
            Err(error) => return Err(store_error(error)),
        }
        self.reconcile(true).await.map(drop)
    }

    /// Makes the endpoints those that have a key. Returns the revision as of which the keys were read.
    async fn reconcile(&self, leaving: bool) -> Result<u64> {
        let range = self.registry.store.range(Range::prefix(PREFIX));
        let leases = range.await.map_err(store_error)?;
        let kept = &self.registry.resource(ENDPOINTS.0, ENDPOINTS.1)?.storage;
        let mut alive = BTreeSet::new();
        for kv in &leases.kvs {
            let value = kept.adopt(&kv.key, &kv.value)?;
            alive.extend(leased(&serde_json::from_slice(&value).unwrap_or_default()));
        }
        if alive.is_empty() && !leaving {
            // Our own was written a moment ago: something is wrong, and no reason to cut everybody off.
            return Err(Status::internal("no API server has a lease in the store"));
        }
        publish(&self.registry, &alive, self.own.port()).await?;
        Ok(leases.revision)
    }

    /// Waits until another server comes or goes; mere renewals are no news.
    async fn others_changed(&self, from: Option<u64>) {
        if let Some(from) = from
            && let Ok(mut watch) = self.registry.store.watch(PREFIX, from).await
        {
            while let Some(Ok(batch)) = watch.next().await {
                let news = |event: &storage::Event| {
                    event.kind == EventKind::Delete
                        || event.kv.create_revision == event.kv.mod_revision
                };
                if batch.events.iter().any(news) {
                    return;
                }
            }
        }
        // The next renewal looks again.
        std::future::pending().await
    }
}

fn complain<T>(result: Result<T>, what: &str) {
    if let Err(error) = result {
        tracing::warn!(%error, "{what}");
    }
}

/// The address that a lease is for.
fn leased(lease: &Value) -> Option<IpAddr> {
    let ip = &lease["subsets"][0]["addresses"][0]["ip"];
    ip.as_str()?.parse().ok()
}

/// Makes the Endpoints and the EndpointSlice `default/kubernetes` lead to these servers.
pub async fn publish(registry: &Registry, alive: &BTreeSet<IpAddr>, port: u16) -> Result<()> {
    let (endpoints, slice) = documents(alive, port);
    let differs = |object: &Value, wanted: &Value, fields: &[&str]| {
        fields.iter().any(|field| object[*field] != wanted[*field])
    };
    put(registry, ENDPOINTS, &endpoints, |object| {
        differs(object, &endpoints, &["subsets"])
    })
    .await?;
    let current = registry.get(SLICES.0, SLICES.1, KEY.0, KEY.1).await;
    if current.is_ok_and(|slice_now| slice_now.value()["addressType"] != slice["addressType"]) {
        // It cannot be changed.
        registry
            .delete_as_server(SLICES.0, SLICES.1, KEY.0, KEY.1)
            .await?;
    }
    put(registry, SLICES, &slice, |object| {
        differs(object, &slice, &["endpoints", "ports"])
    })
    .await
}

/// What both objects have to say.
fn documents(alive: &BTreeSet<IpAddr>, port: u16) -> (Value, Value) {
    // A slice is of one family; Kubernetes' is of the sixth only if no address is of the fourth.
    let sixth = !alive.is_empty() && alive.iter().all(IpAddr::is_ipv6);
    let ports = json!([{"name": "https", "port": port, "protocol": "TCP"}]);
    let addresses: Vec<Value> = alive
        .iter()
        .map(|ip| json!({"ip": ip.to_string()}))
        .collect();
    let of_family = alive.iter().filter(|ip| ip.is_ipv6() == sixth);
    let endpoint =
        |ip: &IpAddr| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}});
    let mut endpoints = json!({
        "metadata": {
            "name": KEY.1, "namespace": KEY.0,
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
    });
    let mut slice = json!({
        "metadata": {
            "name": KEY.1, "namespace": KEY.0,
            "labels": {"kubernetes.io/service-name": KEY.1},
        },
        "addressType": if sixth { "IPv6" } else { "IPv4" },
        "endpoints": of_family.map(endpoint).collect::<Vec<_>>(),
    });
    if !alive.is_empty() {
        endpoints["subsets"] = json!([{"addresses": addresses, "ports": ports.clone()}]);
        slice["ports"] = ports;
    }
    (endpoints, slice)
}

/// Creates an object, or gives the one that exists what it should have, if it differs.
async fn put(
    registry: &Registry,
    (group, plural): (&str, &str),
    wanted: &Value,
    differs: impl Fn(&Value) -> bool + Send,
) -> Result<()> {
    match registry.get(group, plural, KEY.0, KEY.1).await {
        Ok(object) if !differs(&object.value()) => return Ok(()),
        Ok(_) => {}
        Err(error) if error.is_not_found() => {
            let created = registry.create_as_server(group, plural, wanted.clone());
            return existing_is_fine(created.await.map(drop));
        }
        Err(error) => return Err(error),
    }
    let change = |object: &mut Value| {
        for field in ["subsets", "endpoints", "ports"] {
            match wanted.get(field) {
                Some(value) => object[field] = value.clone(),
                None => drop(object.as_object_mut().map(|object| object.remove(field))),
            }
        }
        if let Some(labels) = wanted["metadata"]["labels"].as_object() {
            for (name, value) in labels {
                object["metadata"]["labels"][name] = value.clone();
            }
        }
        Ok(())
    };
    registry
        .update_as_server(group, plural, KEY, change)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alive(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn endpoints_are_those_that_live() {
        let (endpoints, slice) = documents(&alive(&["10.0.0.12", "10.0.0.2"]), 6443);
        let port = json!({"name": "https", "port": 6443, "protocol": "TCP"});
        assert_eq!(
            endpoints["subsets"],
            json!([{"addresses": [{"ip": "10.0.0.2"}, {"ip": "10.0.0.12"}], "ports": [port]}])
        );
        assert_eq!(slice["endpoints"][0]["addresses"], json!(["10.0.0.2"]));
        assert_eq!(slice["endpoints"].as_array().unwrap().len(), 2);
        assert_eq!(slice["ports"], json!([port]));
    }

    #[test]
    fn a_slice_is_of_one_family() {
        for (addresses, family, count) in [
            (&["10.0.0.1", "fd00::1"][..], "IPv4", 1),
            (&["fd00::1", "fd00::2"], "IPv6", 2),
            (&[], "IPv4", 0),
        ] {
            let (endpoints, slice) = documents(&alive(addresses), 6443);
            assert_eq!(slice["addressType"], family);
            assert_eq!(slice["endpoints"].as_array().unwrap().len(), count);
            assert_eq!(endpoints.get("subsets").is_some(), !addresses.is_empty());
        }
    }

    #[test]
    fn leases_name_an_address() {
        let lease = json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}]}]});
        assert_eq!(leased(&lease), "10.0.0.1".parse().ok());
        for other in [
            json!({}),
            json!({"subsets": [{"addresses": [{"ip": "x"}]}]}),
        ] {
            assert_eq!(leased(&other), None);
        }
    }
}
