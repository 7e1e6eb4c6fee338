//! From a Service to where it answers, for those parts of the API server that call Services themselves.
//!
//! The control plane runs no proxy, so addresses of Services lead nowhere from here: calls go to endpoints.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use apimachinery::selector::LabelSelector;
use apimachinery::status::Status;
use rand::seq::SliceRandom;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::cache::{Object, Selection};
use crate::registry::Registry;
use crate::strategy::check::{list, text};

/// Where a Service answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// Ready endpoints, at least one.
    Addresses(Vec<SocketAddr>),
    /// The name and port of a Service that only stands for a name.
    Name(String, u16),
}

/// Why a Service cannot be called; the reason is the one that conditions of APIServices give.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unreachable {
    pub reason: &'static str,
    pub message: String,
}

fn unreachable(reason: &'static str, message: String) -> Unreachable {
    Unreachable { reason, message }
}

impl Backend {
    /// Connects to the first that takes it, in random order.
    pub async fn connect(&self) -> io::Result<(SocketAddr, TcpStream)> {
        let addresses = match self {
            Self::Name(name, port) => {
                let stream = TcpStream::connect((name.as_str(), *port)).await?;
                return Ok((stream.peer_addr()?, stream));
            }
            Self::Addresses(addresses) => {
                let mut addresses = addresses.clone();
                addresses.shuffle(&mut rand::rng());
                addresses
            }
        };
        let mut last = io::Error::other("no endpoints");
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok((address, stream)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Whether a connection that was made to this address still leads to the Service.
    #[must_use]
    pub fn includes(&self, address: SocketAddr) -> bool {
        match self {
            Self::Addresses(addresses) => addresses.contains(&address),
            Self::Name(..) => true,
        }
    }
}

/// Where a port of a Service answers, as the caches have it.
pub async fn resolve(
    registry: &Registry,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<Backend, Unreachable> {
    let inaccessible = |error: apimachinery::status::Status| {
        let message = format!(
            "service/{name} in {namespace:?} cannot be checked due to: {}",
            error.message
        );
        unreachable("ServiceAccessError", message)
    };
    let services = registry.cache_of("", "services").map_err(inaccessible)?;
    let slices = registry
        .cache_of("discovery.k8s.io", "endpointslices")
        .map_err(inaccessible)?;
    services.loaded().await.map_err(inaccessible)?;
    slices.loaded().await.map_err(inaccessible)?;
    let service = services
        .get(&format!("{namespace}/{name}"))
        .map(|service| service.value());
    let slices: Vec<Value> = slices
        .list(&slices_of(namespace, name), 0)
        .objects
        .iter()
        .map(|slice| slice.value())
        .collect();
    plan(service.as_ref(), &slices, namespace, name, port)
}

/// The addresses behind a port (its name, its number, or empty for the only one) of a Service: at least one.
pub async fn endpoints(
    registry: &Registry,
    namespace: &str,
    name: &str,
    port: &str,
) -> Result<Vec<SocketAddr>, Status> {
    let service = registry.get("", "services", namespace, name).await?.value();
    let Some(found) = port_named(list(&service["spec"], "ports"), port) else {
        let why = format!("no service port {port:?} found for service {name:?}");
        return Err(Status::service_unavailable(why));
    };
    let port_name = text(found, "name");
    let selection = slices_of(namespace, name);
    let slices = registry
        .list("discovery.k8s.io", "endpointslices", &selection)
        .await?;
    let ready = |slice: &Arc<Object>| ready(&slice.value(), port_name);
    let addresses: Vec<SocketAddr> = slices.iter().flat_map(ready).collect();
    match addresses.is_empty() {
        true => Err(Status::service_unavailable(format!(
            "no endpoints available for service {name:?}"
        ))),
        false => Ok(addresses),
    }
}

fn port_named<'a>(ports: &'a [Value], wanted: &str) -> Option<&'a Value> {
    let number = wanted.parse::<u64>().ok();
    match (wanted, ports) {
        ("", [only]) => Some(only),
        ("", several) => several.iter().find(|port| text(port, "name").is_empty()),
        (wanted, several) => several
            .iter()
            .find(|port| port["name"] == wanted || number.is_some_and(|n| port["port"] == n)),
    }
}

/// The EndpointSlices of a Service.
#[must_use]
pub fn slices_of(namespace: &str, name: &str) -> Selection {
    let mut selection = Selection::namespaced(namespace);
    match LabelSelector::parse(&format!("kubernetes.io/service-name={name}")) {
        Ok(labels) => selection.with_labels(labels),
        // A name that is no label value has no slices either.
        Err(_) => {
            selection.name = "-".into();
            selection
        }
    }
}

fn plan(
    service: Option<&Value>,
    slices: &[Value],
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<Backend, Unreachable> {
    let Some(service) = service else {
        let message = format!("service/{name} in {namespace:?} is not present");
        return Err(unreachable("ServiceNotFound", message));
    };
    let spec = &service["spec"];
    if text(spec, "type") == "ExternalName" {
        return Ok(Backend::Name(text(spec, "externalName").to_owned(), port));
    }
    let Some(found) = list(spec, "ports").iter().find(|p| p["port"] == port) else {
        let message = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Err(unreachable("ServicePortError", message));
    };
    if slices.is_empty() {
        let message = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Err(unreachable("EndpointsNotFound", message));
    }
    let port_name = text(found, "name");
    let addresses: Vec<SocketAddr> = slices
        .iter()
        .flat_map(|slice| ready(slice, port_name))
        .collect();
    if addresses.is_empty() {
        let message = format!(
            "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
        );
        return Err(unreachable("MissingEndpoints", message));
    }
    Ok(Backend::Addresses(addresses))
}

/// The ready addresses of an EndpointSlice for a port.
fn ready(slice: &Value, port_name: &str) -> Vec<SocketAddr> {
    let port = list(slice, "ports")
        .iter()
        .filter(|port| text(port, "name") == port_name)
        .find_map(|port| u16::try_from(port["port"].as_u64()?).ok());
    let Some(port) = port else { return Vec::new() };
    list(slice, "endpoints")
        .iter()
        .filter(|endpoint| endpoint["conditions"]["ready"] != false)
        .filter_map(|endpoint| endpoint["addresses"][0].as_str()?.parse().ok())
        .map(|ip| SocketAddr::new(ip, port))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_endpoints() {
        let slice = json!({"ports": [{"name": "http", "port": 80}], "endpoints": [
            {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
            {"addresses": ["10.0.0.3"]},
        ]});
        assert_eq!(ready(&slice, "http").len(), 2);
        assert!(ready(&slice, "").is_empty());
    }

    #[test]
    fn ports_by_name_and_number() {
        let ports = [
            json!({"name": "a", "port": 80}),
            json!({"name": "b", "port": 443}),
        ];
        let found = |ports, wanted| port_named(ports, wanted).map(|port| port["port"].clone());
        assert_eq!(found(&ports, "b"), Some(json!(443)));
        assert_eq!(found(&ports, "80"), Some(json!(80)));
        assert_eq!(found(&ports, ""), None);
        assert_eq!(found(&ports[..1], ""), Some(json!(80)));
        assert_eq!(found(&ports, "81"), None);
    }

    #[test]
    fn services_are_reached_or_say_why_not() {
        let service =
            json!({"spec": {"type": "ClusterIP", "ports": [{"port": 443, "name": "https"}]}});
        let slice = json!({"ports": [{"name": "https", "port": 8443}], "endpoints": [{"addresses": ["10.0.0.1"]}]});
        let none = json!({"ports": [{"name": "https", "port": 8443}], "endpoints": []});
        let named = json!({"spec": {"type": "ExternalName", "externalName": "api.example.com"}});
        let reason = |result: Result<Backend, Unreachable>| result.unwrap_err().reason;
        let check = |service: Option<&Value>, slices: &[Value], port| {
            plan(service, slices, "ns", "s", port)
        };
        assert_eq!(
            check(Some(&service), std::slice::from_ref(&slice), 443),
            Ok(Backend::Addresses(vec!["10.0.0.1:8443".parse().unwrap()]))
        );
        assert_eq!(
            check(Some(&named), &[], 443),
            Ok(Backend::Name("api.example.com".into(), 443))
        );
        assert_eq!(reason(check(None, &[], 443)), "ServiceNotFound");
        assert_eq!(reason(check(Some(&service), &[], 80)), "ServicePortError");
        assert_eq!(reason(check(Some(&service), &[], 443)), "EndpointsNotFound");
        assert_eq!(
            reason(check(Some(&service), &[none], 443)),
            "MissingEndpoints"
        );
        let missing = check(None, &[], 443).unwrap_err();
        assert_eq!(missing.message, "service/s in \"ns\" is not present");
    }
}
