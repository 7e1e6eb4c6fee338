//! What this node's network should look like, as pure functions of what nodes there are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

/// What the overlay keeps of a Node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    pub pod_cidrs: Vec<IpNet>,
    pub addresses: Vec<IpAddr>,
}

impl Node {
    pub fn reduce(node: &core::Node) -> Option<Self> {
        let spec = node.spec.as_ref();
        let mut ranges: Vec<&String> = spec
            .and_then(|s| s.pod_cidrs.as_ref())
            .into_iter()
            .flatten()
            .collect();
        if ranges.is_empty() {
            ranges.extend(spec.and_then(|s| s.pod_cidr.as_ref()));
        }
        let addresses = node.status.as_ref().and_then(|s| s.addresses.as_ref());
        Some(Self {
            pod_cidrs: ranges
                .iter()
                .filter_map(|range| range.parse().ok())
                .collect(),
            addresses: addresses
                .into_iter()
                .flatten()
                .filter(|address| address.type_ == "InternalIP")
                .filter_map(|address| address.address.parse().ok())
                .collect(),
        })
    }
}

/// Pod ranges of other nodes, each with the address that leads there.
pub type Routes = BTreeMap<IpNet, IpAddr>;

/// A node without an address or a range is not part of the network yet. Ranges that overlap our own
/// are a mistake of whoever gave them out; a route for them would cut our own pods off.
pub fn routes(nodes: &BTreeMap<String, Node>, me: &str) -> Routes {
    let own = nodes
        .get(me)
        .map(|node| node.pod_cidrs.as_slice())
        .unwrap_or_default();
    let overlaps = |range: &IpNet| own.iter().any(|o| o.contains(range) || range.contains(o));
    let mut routes = Routes::new();
    for (_, node) in nodes.iter().filter(|(name, _)| *name != me) {
        for range in node.pod_cidrs.iter().filter(|range| !overlaps(range)) {
            let same_family = |ip: &&IpAddr| ip.is_ipv4() == range.addr().is_ipv4();
            if let Some(gateway) = node.addresses.iter().find(same_family) {
                routes.insert(range.trunc(), *gateway);
            }
        }
    }
    routes
}

#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Adds the route, or moves an existing one to this gateway.
    Set(IpNet, IpAddr),
    Remove(IpNet, IpAddr),
}

/// `existing` are the routes that carry our mark. One that leads to a wanted range the wrong way is moved, so that
/// the range is never without a route; it is removed only where the right one is there too.
pub fn changes(wanted: &Routes, existing: &[(IpNet, IpAddr)]) -> Vec<Change> {
    let there = |range: &IpNet, gateway: &IpAddr| existing.contains(&(*range, *gateway));
    let gone = existing
        .iter()
        .filter(|(range, gateway)| match wanted.get(range) {
            Some(right) => right != gateway && there(range, right),
            None => true,
        });
    let gone = gone.map(|(range, gateway)| Change::Remove(*range, *gateway));
    let missing = wanted
        .iter()
        .filter(|(range, gateway)| !there(range, gateway));
    let missing = missing.map(|(range, gateway)| Change::Set(*range, *gateway));
    gone.chain(missing).collect()
}

/// The CNI configuration list for pods of this node; `None` before it has a range.
///
/// Pods hang on a bridge. Traffic from pod to pod over a bridge passes the rules for Services only where the
/// kernel hands bridged packets to iptables; elsewhere every pod gets a link of its own, which is always routed.
pub fn conflist(node: &Node, bridge_netfilter: bool) -> Option<Value> {
    let ranges: Vec<Value> = node
        .pod_cidrs
        .iter()
        .map(|range| json!([{"subnet": range.trunc().to_string()}]))
        .collect();
    if ranges.is_empty() {
        return None;
    }
    let families: Vec<&str> = {
        let v6 = |want: bool| node.pod_cidrs.iter().any(|r| r.addr().is_ipv6() == want);
        let defaults = [(false, "0.0.0.0/0"), (true, "::/0")];
        defaults
            .iter()
            .filter(|(six, _)| v6(*six))
            .map(|(_, net)| *net)
            .collect()
    };
    let routes: Vec<Value> = families.iter().map(|net| json!({"dst": net})).collect();
    let ipam = json!({"type": "host-local", "ranges": ranges, "routes": routes});
    let link = match bridge_netfilter {
        true => json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true,
            "hairpinMode": true, "ipMasq": false, "ipam": {"type": "host-local", "ranges": ranges},
        }),
        false => json!({"type": "ptp", "ipMasq": false, "ipam": ipam}),
    };
    let ports = json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true});
    Some(json!({"cniVersion": "0.4.0", "name": "skiff", "plugins": [link, ports]}))
}

/// The plugins that a configuration needs, to be checked before pods fail one by one.
pub fn plugins(bridge_netfilter: bool) -> [&'static str; 4] {
    [
        if bridge_netfilter { "bridge" } else { "ptp" },
        "host-local",
        "portmap",
        "loopback",
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ranges: &[&str], addresses: &[&str]) -> Node {
        Node {
            pod_cidrs: ranges.iter().map(|r| r.parse().unwrap()).collect(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    fn nodes() -> BTreeMap<String, Node> {
        BTreeMap::from([
            ("me".to_owned(), node(&["10.244.0.0/24"], &["192.168.0.1"])),
            (
                "b".to_owned(),
                node(
                    &["10.244.1.0/24", "fd00:1::/64"],
                    &["192.168.0.2", "fd00::2"],
                ),
            ),
            ("no-address".to_owned(), node(&["10.244.2.0/24"], &[])),
            ("no-range".to_owned(), node(&[], &["192.168.0.4"])),
            (
                "thief".to_owned(),
                node(&["10.244.0.128/25"], &["192.168.0.5"]),
            ),
        ])
    }

    fn route(range: &str, gateway: &str) -> (IpNet, IpAddr) {
        (range.parse().unwrap(), gateway.parse().unwrap())
    }

    #[test]
    fn routes_lead_to_other_nodes() {
        let expected = Routes::from([
            route("10.244.1.0/24", "192.168.0.2"),
            route("fd00:1::/64", "fd00::2"),
        ]);
        assert_eq!(routes(&nodes(), "me"), expected);
    }

    #[test]
    fn only_differences_change() {
        let wanted = Routes::from([
            route("10.244.1.0/24", "192.168.0.2"),
            route("10.244.2.0/24", "192.168.0.3"),
        ]);
        let keep = route("10.244.1.0/24", "192.168.0.2");
        let moved = route("10.244.2.0/24", "192.168.0.9");
        let stale = route("10.244.7.0/24", "192.168.0.7");
        let (range, gateway) = route("10.244.2.0/24", "192.168.0.3");
        assert_eq!(
            changes(&wanted, &[keep, moved, stale]),
            [
                Change::Remove(stale.0, stale.1),
                Change::Set(range, gateway)
            ]
        );
        assert_eq!(changes(&wanted, &[keep, (range, gateway)]), []);
    }

    #[test]
    fn conflist_follows_the_kernel() {
        let node = node(&["10.244.3.0/24"], &[]);
        let conf = conflist(&node, true).unwrap();
        assert_eq!(conf["plugins"][0]["type"], "bridge");
        assert_eq!(
            conf["plugins"][0]["ipam"]["ranges"][0][0]["subnet"],
            "10.244.3.0/24"
        );
        assert_eq!(conf["plugins"][1]["capabilities"]["portMappings"], true);
        let conf = conflist(&node, false).unwrap();
        assert_eq!(conf["plugins"][0]["type"], "ptp");
        assert_eq!(
            conf["plugins"][0]["ipam"]["routes"],
            json!([{"dst": "0.0.0.0/0"}])
        );
        assert_eq!(conflist(&Node::default(), true), None);
    }

    #[test]
    fn old_clusters_have_one_range() {
        let node: core::Node = serde_json::from_value(json!({
            "spec": {"podCIDR": "10.244.5.0/24"},
            "status": {"addresses": [{"type": "Hostname", "address": "x"}, {"type": "InternalIP", "address": "10.0.0.5"}]},
        }))
        .unwrap();
        let reduced = Node::reduce(&node).unwrap();
        assert_eq!(
            reduced.pod_cidrs,
            ["10.244.5.0/24".parse::<IpNet>().unwrap()]
        );
        assert_eq!(reduced.addresses, ["10.0.0.5".parse::<IpAddr>().unwrap()]);
    }
}
