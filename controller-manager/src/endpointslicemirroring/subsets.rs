//! The subsets of an Endpoints object in their canonical form: addresses that serve the same ports are together.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints};

use crate::endpointslice::model::Port;

/// Addresses are the same if their target is too: pods may share the address of their node.
type AddressKey = (String, Option<String>);

/// Addresses, each with whether it is ready, that serve the same ports.
#[derive(Debug, PartialEq)]
pub struct Subset {
    pub ports: Vec<Port>,
    pub addresses: Vec<(EndpointAddress, bool)>,
}

/// What an object says in all. An address that is not ready for a port in one place is not ready for it at all.
pub fn canonical(endpoints: &Endpoints) -> Vec<Subset> {
    let mut addresses: BTreeMap<AddressKey, EndpointAddress> = BTreeMap::new();
    let mut by_port: BTreeMap<Option<Port>, BTreeMap<AddressKey, bool>> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<Option<Port>> = match subset.ports.as_deref().unwrap_or_default() {
            // Addresses need no ports.
            [] => vec![None],
            ports => ports.iter().map(|p| Some(port(p))).collect(),
        };
        for (address, ready) in addresses_of(subset) {
            let uid = address.target_ref.as_ref().and_then(|t| t.uid.clone());
            let key = (address.ip.clone(), uid);
            addresses.entry(key.clone()).or_insert(address.clone());
            for port in &ports {
                let known = by_port.entry(port.clone()).or_default();
                *known.entry(key.clone()).or_insert(true) &= ready;
            }
        }
    }
    let mut together: BTreeMap<BTreeMap<AddressKey, bool>, Vec<Port>> = BTreeMap::new();
    for (port, keys) in by_port {
        together.entry(keys).or_default().extend(port);
    }
    let subset = |(keys, ports): (BTreeMap<AddressKey, bool>, Vec<Port>)| {
        let all = keys.into_iter();
        let all = all.filter_map(|(key, ready)| Some((addresses.get(&key)?.clone(), ready)));
        let mut addresses: Vec<_> = all.collect();
        // Where there is no room for all, those that are ready come first.
        addresses.sort_by_key(|(_, ready)| !ready);
        Subset { ports, addresses }
    };
    together.into_iter().map(subset).collect()
}

fn addresses_of(subset: &EndpointSubset) -> impl Iterator<Item = (&EndpointAddress, bool)> {
    let ready = subset.addresses.iter().flatten().map(|a| (a, true));
    let not = subset.not_ready_addresses.iter().flatten();
    ready.chain(not.map(|a| (a, false)))
}

fn port(port: &EndpointPort) -> Port {
    Port {
        name: port.name.clone().unwrap_or_default(),
        port: port.port,
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        app_protocol: port.app_protocol.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_belongs_together() {
        let list = |ips: &[&str]| -> Value { ips.iter().map(|ip| json!({"ip": ip})).collect() };
        let http = || json!([{"name": "http", "port": 80}]);
        let both = || json!([{"name": "http", "port": 80}, {"name": "https", "port": 443}]);
        let https = || json!([{"name": "https", "port": 443}]);
        for (what, subsets, want) in [
            ("nothing", json!([]), json!([])),
            (
                "two ports, written one by one",
                json!([{"addresses": list(&["10.0.0.1"]), "ports": http()}, {"addresses": list(&["10.0.0.1"]), "ports": https()}]),
                json!([[[80, 443], [["10.0.0.1", true]]]]),
            ),
            (
                "the same ports, written twice",
                json!([{"addresses": list(&["10.0.0.2"]), "ports": http()}, {"addresses": list(&["10.0.0.1"]), "ports": http()}]),
                json!([[[80], [["10.0.0.1", true], ["10.0.0.2", true]]]]),
            ),
            (
                "one of two has a port more",
                json!([{"addresses": list(&["10.0.0.1", "10.0.0.2"]), "ports": http()}, {"addresses": list(&["10.0.0.1"]), "ports": https()}]),
                json!([
                    [[443], [["10.0.0.1", true]]],
                    [[80], [["10.0.0.1", true], ["10.0.0.2", true]]]
                ]),
            ),
            (
                "not ready has the last word",
                json!([{"addresses": list(&["10.0.0.1", "10.0.0.2"]), "ports": both()}, {"notReadyAddresses": list(&["10.0.0.1"]), "ports": both()}]),
                json!([[[80, 443], [["10.0.0.2", true], ["10.0.0.1", false]]]]),
            ),
            (
                "no ports",
                json!([{"addresses": list(&["10.0.0.1"])}]),
                json!([[[], [["10.0.0.1", true]]]]),
            ),
            (
                "one address of two pods",
                json!([{"addresses": [{"ip": "10.0.0.1", "targetRef": {"uid": "a"}}, {"ip": "10.0.0.1", "targetRef": {"uid": "b"}}], "ports": http()}]),
                json!([[[80], [["10.0.0.1", true], ["10.0.0.1", true]]]]),
            ),
        ] {
            let endpoints: Endpoints = serde_json::from_value(json!({"subsets": subsets})).unwrap();
            let got = canonical(&endpoints).into_iter().map(|s| {
                let ports: Vec<i32> = s.ports.iter().map(|p| p.port).collect();
                let addresses: Vec<Value> =
                    s.addresses.iter().map(|(a, r)| json!([a.ip, r])).collect();
                json!([ports, addresses])
            });
            assert_eq!(Value::from_iter(got), want, "{what}");
        }
    }
}
