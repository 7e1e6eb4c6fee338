//! The rule model: what traffic for every Service port should meet on this node, without a word
//! about how the kernel is told. Backends turn it into chains, maps or virtual servers.
//!
//! `build` is a pure function of the state that the watches gathered.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use client::mirror::Mirror;

use crate::objects::{Endpoint, Node, Protocol, Service, ServicePort, Slice};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    pub fn has(self, net: &IpNet) -> bool {
        Self::of(&net.addr()) == self
    }
}

/// Everything that the watches have told.
#[derive(Debug, Default)]
pub struct State {
    pub node: Node,
    pub services: Mirror<Service>,
    pub slices: Mirror<Slice>,
}

/// All Service ports of one address family, sorted by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    pub node_addresses: Vec<IpAddr>,
    pub ports: Vec<PortRules>,
    /// Services that answer load balancers' health checks here, with the node port to do it on and
    /// how many ready endpoints this node has.
    pub health_checks: BTreeMap<String, (u16, usize)>,
}

/// One Service port and where its traffic goes on this node.
#[derive(Clone, Debug, PartialEq)]
pub struct PortRules {
    /// `namespace/name:port`, or `namespace/name` for an unnamed port.
    pub name: String,
    pub protocol: Protocol,
    pub cluster_ip: IpAddr,
    pub port: u16,
    pub node_port: Option<u16>,
    pub external_ips: Vec<IpAddr>,
    pub load_balancer_ips: Vec<IpAddr>,
    pub source_ranges: Vec<IpNet>,
    pub affinity: Option<u32>,
    pub internal_local: bool,
    pub external_local: bool,
    /// Set once per Service, on its first port.
    pub health_check_node_port: Option<u16>,
    /// Targets under traffic policy `Cluster`; empty when that policy is not in use.
    pub cluster: Vec<SocketAddr>,
    /// Targets under traffic policy `Local`; empty when that policy is not in use.
    pub local: Vec<SocketAddr>,
    /// Whether any node has a usable endpoint: decides between REJECT and DROP.
    pub has_endpoints: bool,
    /// All that still answer, whatever the policies say: flows to others are stale.
    pub serving: BTreeSet<SocketAddr>,
}

impl PortRules {
    pub fn externally_accessible(&self) -> bool {
        self.node_port.is_some()
            || !self.external_ips.is_empty()
            || !self.load_balancer_ips.is_empty()
    }

    /// External traffic under policy `Local` still needs the cluster's endpoints: what pods and the
    /// node itself send to an external address takes a short cut to them.
    pub fn uses_cluster(&self) -> bool {
        !self.internal_local || self.externally_accessible()
    }

    pub fn uses_local(&self) -> bool {
        self.internal_local || (self.external_local && self.externally_accessible())
    }

    pub fn has_internal_endpoints(&self) -> bool {
        self.has_endpoints && (!self.internal_local || !self.local.is_empty())
    }

    pub fn has_external_endpoints(&self) -> bool {
        self.has_endpoints && (!self.external_local || !self.local.is_empty())
    }

    /// Every endpoint that some rule of this port leads to.
    pub fn reachable(&self) -> BTreeSet<SocketAddr> {
        self.cluster.iter().chain(&self.local).copied().collect()
    }
}

pub fn build(state: &State, family: Family) -> Model {
    let mut slices: BTreeMap<&str, Vec<&Slice>> = BTreeMap::new();
    for slice in state.slices.items().values() {
        slices
            .entry(slice.service.as_str())
            .or_default()
            .push(slice);
    }
    let mut model = Model {
        node_addresses: of_family(&state.node.addresses, family),
        ..Model::default()
    };
    for (key, service) in state.services.items() {
        let Some(cluster_ip) = of_family(&service.cluster_ips, family).first().copied() else {
            continue;
        };
        let slices = slices
            .get(key.as_str())
            .map(Vec::as_slice)
            .unwrap_or_default();
        for (at, port) in service.ports.iter().enumerate() {
            let mut rules = skeleton(key, service, port, cluster_ip, family);
            rules.health_check_node_port = service.health_check_node_port.filter(|_| at == 0);
            let endpoints = endpoints(slices, port, family);
            categorize(&mut rules, &endpoints, &state.node);
            model.ports.push(rules);
        }
        if let Some(port) = service.health_check_node_port {
            model
                .health_checks
                .insert(key.clone(), (port, local_ready(slices, family)));
        }
    }
    model
}

fn skeleton(
    key: &str,
    service: &Service,
    port: &ServicePort,
    cluster_ip: IpAddr,
    family: Family,
) -> PortRules {
    let name = match port.name.as_str() {
        "" => key.to_owned(),
        name => format!("{key}:{name}"),
    };
    PortRules {
        name,
        protocol: port.protocol,
        cluster_ip,
        port: port.port,
        node_port: port.node_port,
        external_ips: of_family(&service.external_ips, family),
        load_balancer_ips: of_family(&service.load_balancer_ips, family),
        source_ranges: service
            .source_ranges
            .iter()
            .filter(|range| family.has(range))
            .copied()
            .collect(),
        affinity: service.affinity,
        internal_local: service.internal_local,
        external_local: service.external_local,
        health_check_node_port: None,
        cluster: Vec::new(),
        local: Vec::new(),
        has_endpoints: false,
        serving: BTreeSet::new(),
    }
}

fn of_family(addresses: &[IpAddr], family: Family) -> Vec<IpAddr> {
    addresses
        .iter()
        .filter(|ip| Family::of(ip) == family)
        .copied()
        .collect()
}

/// The endpoints of one Service port over all its slices. An address that two pods share for a
/// moment, because the network reuses that of a terminating one, belongs to the one that stays.
fn endpoints<'a>(
    slices: &[&'a Slice],
    port: &ServicePort,
    family: Family,
) -> BTreeMap<SocketAddr, &'a Endpoint> {
    let mut found: BTreeMap<SocketAddr, &Endpoint> = BTreeMap::new();
    for slice in slices {
        let offered = slice
            .ports
            .iter()
            .filter(|(name, protocol, _)| *name == port.name && *protocol == port.protocol);
        for (_, _, number) in offered {
            for endpoint in slice
                .endpoints
                .iter()
                .filter(|e| Family::of(&e.address) == family)
            {
                let at = found.entry(endpoint.at(*number)).or_insert(endpoint);
                if !endpoint.terminating {
                    *at = endpoint;
                }
            }
        }
    }
    found
}

/// Chooses the endpoints for both traffic policies: ready ones, or (per policy) those that terminate
/// but still serve when no ready one is left. Topology hints narrow the cluster's choice.
fn categorize(rules: &mut PortRules, endpoints: &BTreeMap<SocketAddr, &Endpoint>, node: &Node) {
    let draining = |e: &Endpoint| e.serving && e.terminating;
    let pick = |test: &dyn Fn(&Endpoint) -> bool| -> Vec<SocketAddr> {
        endpoints
            .iter()
            .filter(|(_, e)| test(e))
            .map(|(at, _)| *at)
            .collect()
    };
    let or_else = |first: Vec<SocketAddr>, test: &dyn Fn(&Endpoint) -> bool| {
        if first.is_empty() { pick(test) } else { first }
    };
    rules.serving = endpoints
        .iter()
        .filter(|(_, e)| e.serving)
        .map(|(at, _)| *at)
        .collect();
    if rules.uses_cluster() {
        let near = Topology::from_hints(endpoints.values().copied(), node);
        let ready = pick(&|e| e.ready && near.admits(e, node));
        rules.cluster = or_else(ready, &draining);
        rules.has_endpoints = !rules.cluster.is_empty();
    }
    if rules.uses_local() {
        rules.has_endpoints |= endpoints.values().any(|e| e.ready || draining(e));
        let ready = pick(&|e| e.local && e.ready);
        rules.local = or_else(ready, &|e| e.local && draining(e));
    }
}

/// How far topology hints narrow the choice. Hints count only when every ready endpoint has one and
/// one of them is for here; otherwise traffic would be lost or pile up.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Topology {
    Anywhere,
    SameNode,
    SameZone,
}

impl Topology {
    fn from_hints<'a>(endpoints: impl Iterator<Item = &'a Endpoint>, node: &Node) -> Self {
        let ready: Vec<&Endpoint> = endpoints.filter(|e| e.ready).collect();
        let applies = |hints: fn(&Endpoint) -> &BTreeSet<String>, here: &str| {
            ready.iter().all(|e| !hints(e).is_empty())
                && ready.iter().any(|e| hints(e).contains(here))
        };
        if applies(|e| &e.nodes, &node.name) {
            Self::SameNode
        } else if applies(|e| &e.zones, &node.zone) {
            Self::SameZone
        } else {
            Self::Anywhere
        }
    }

    fn admits(self, endpoint: &Endpoint, node: &Node) -> bool {
        match self {
            Self::Anywhere => true,
            Self::SameNode => endpoint.nodes.contains(&node.name),
            Self::SameZone => endpoint.zones.contains(&node.zone),
        }
    }
}

/// Ready endpoints on this node, each address once however many ports it has.
fn local_ready(slices: &[&Slice], family: Family) -> usize {
    let ready = slices
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .filter(|e| e.local && e.ready && Family::of(&e.address) == family);
    ready.map(|e| e.address).collect::<BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{PROXY_NAME, SERVICE_NAME};
    use client::key_of;
    use k8s_openapi::api::core::v1 as core;
    use k8s_openapi::api::discovery::v1 as discovery;
    use serde_json::{Value, json};

    fn state(service: Value, slices: &[Value]) -> State {
        let service: core::Service = serde_json::from_value(service).unwrap();
        let mut state = State {
            node: Node {
                name: "here".into(),
                zone: "z1".into(),
                ..Node::default()
            },
            ..State::default()
        };
        state
            .services
            .set(&key_of(&service), Service::reduce(&service), |_, _, _| ());
        for slice in slices {
            let slice: discovery::EndpointSlice = serde_json::from_value(slice.clone()).unwrap();
            state
                .slices
                .set(&key_of(&slice), Slice::reduce(&slice, "here"), |_, _, _| ());
        }
        state
    }

    fn service(spec: Value) -> Value {
        let mut base = json!({"clusterIP": "10.96.0.20", "ports": [{"name": "http", "port": 80}]});
        for (k, v) in spec.as_object().unwrap() {
            base[k] = v.clone();
        }
        json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": base})
    }

    fn slice(name: &str, endpoints: Value) -> Value {
        json!({
            "metadata": {"name": name, "namespace": "shop", "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints,
        })
    }

    fn endpoint(address: &str, node: &str, conditions: Value) -> Value {
        json!({"addresses": [address], "nodeName": node, "conditions": conditions})
    }

    fn only(state: &State) -> PortRules {
        let mut model = build(state, Family::V4);
        assert_eq!(model.ports.len(), 1);
        model.ports.remove(0)
    }

    fn ips(targets: &[SocketAddr]) -> Vec<String> {
        targets.iter().map(|t| t.to_string()).collect()
    }

    #[test]
    fn ready_endpoints_first_then_draining_ones() {
        let draining = json!({"ready": false, "serving": true, "terminating": true});
        let gone = json!({"ready": false, "serving": false, "terminating": true});
        let both = slice(
            "s",
            json!([
                endpoint("10.244.0.2", "here", json!({"ready": true})),
                endpoint("10.244.0.3", "here", draining.clone()),
                endpoint("10.244.0.4", "here", gone.clone()),
            ]),
        );
        let rules = only(&state(service(json!({})), &[both]));
        assert_eq!(ips(&rules.cluster), ["10.244.0.2:8080"]);
        assert_eq!(rules.serving.len(), 2);
        let left = slice(
            "s",
            json!([
                endpoint("10.244.0.3", "here", draining.clone()),
                endpoint("10.244.0.4", "here", gone.clone()),
            ]),
        );
        let rules = only(&state(service(json!({})), &[left]));
        assert_eq!(ips(&rules.cluster), ["10.244.0.3:8080"]);
        let none = slice("s", json!([endpoint("10.244.0.4", "here", gone.clone())]));
        assert!(!only(&state(service(json!({})), &[none])).has_endpoints);
    }

    #[test]
    fn local_policies() {
        let slices = [slice(
            "s",
            json!([
                endpoint("10.244.0.2", "here", json!({})),
                endpoint("10.244.1.2", "there", json!({})),
            ]),
        )];
        let both = json!({"type": "NodePort", "externalTrafficPolicy": "Local",
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
        let rules = only(&state(service(both), &slices));
        assert_eq!(ips(&rules.cluster), ["10.244.0.2:8080", "10.244.1.2:8080"]);
        assert_eq!(ips(&rules.local), ["10.244.0.2:8080"]);
        let rules = only(&state(
            service(json!({"internalTrafficPolicy": "Local"})),
            &slices,
        ));
        assert!(rules.cluster.is_empty());
        assert_eq!(ips(&rules.local), ["10.244.0.2:8080"]);
        let away = [slice(
            "s",
            json!([endpoint("10.244.1.2", "there", json!({}))]),
        )];
        let rules = only(&state(
            service(json!({"internalTrafficPolicy": "Local"})),
            &away,
        ));
        assert!(rules.has_endpoints && !rules.has_internal_endpoints());
    }

    #[test]
    fn hints_need_to_be_complete() {
        let hinted = |address: &str, zone: Option<&str>| {
            let mut e = endpoint(address, "there", json!({}));
            if let Some(zone) = zone {
                e["hints"] = json!({"forZones": [{"name": zone}]});
            }
            e
        };
        let case = |endpoints: Value| {
            ips(&only(&state(service(json!({})), &[slice("s", endpoints)])).cluster)
        };
        assert_eq!(
            case(json!([
                hinted("10.244.0.2", Some("z1")),
                hinted("10.244.0.3", Some("z2"))
            ])),
            ["10.244.0.2:8080"]
        );
        assert_eq!(
            case(json!([
                hinted("10.244.0.2", Some("z1")),
                hinted("10.244.0.3", None)
            ]))
            .len(),
            2
        );
        assert_eq!(case(json!([hinted("10.244.0.2", Some("z2"))])).len(), 1);
    }

    #[test]
    fn who_is_not_proxied() {
        for spec in [
            json!({"clusterIP": "None"}),
            json!({"clusterIP": null}),
            json!({"type": "ExternalName", "externalName": "example.com"}),
        ] {
            assert!(state(service(spec), &[]).services.items().is_empty());
        }
        let mut other = service(json!({}));
        other["metadata"]["labels"] = json!({PROXY_NAME: "cilium"});
        assert!(state(other, &[]).services.items().is_empty());
    }

    #[test]
    fn shared_address_belongs_to_who_stays() {
        let dying = json!({"ready": false, "serving": true, "terminating": true});
        let slices = [
            slice(
                "a",
                json!([endpoint("10.244.0.2", "here", json!({"ready": true}))]),
            ),
            slice("b", json!([endpoint("10.244.0.2", "here", dying)])),
        ];
        assert_eq!(
            ips(&only(&state(service(json!({})), &slices)).cluster),
            ["10.244.0.2:8080"]
        );
    }

    #[test]
    fn source_range_of_everywhere_is_none() {
        let spec = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/8", " 0.0.0.0/0 "]});
        assert!(only(&state(service(spec), &[])).source_ranges.is_empty());
        let spec = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": [" 10.0.0.0/8"]});
        assert_eq!(only(&state(service(spec), &[])).source_ranges.len(), 1);
    }

    #[test]
    fn families_are_apart() {
        let spec = json!({"clusterIPs": ["10.96.0.20", "fd00::20"]});
        let state = state(service(spec), &[]);
        assert_eq!(build(&state, Family::V4).ports.len(), 1);
        assert_eq!(
            build(&state, Family::V6).ports[0].cluster_ip,
            "fd00::20".parse::<IpAddr>().unwrap()
        );
    }

    #[test]
    fn health_checks_count_ready_local_addresses() {
        let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000});
        let slices = [slice(
            "s",
            json!([
                endpoint("10.244.0.2", "here", json!({})),
                endpoint("10.244.0.3", "here", json!({"ready": false})),
                endpoint("10.244.1.2", "there", json!({})),
            ]),
        )];
        let model = build(&state(service(spec), &slices), Family::V4);
        assert_eq!(model.health_checks.values().next(), Some(&(32000, 1)));
    }
}
