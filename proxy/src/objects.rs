//! What the proxy keeps of each API object: only the fields that rules are made from.
//!
//! The watch hands every object over once, it is reduced here and dropped, so that the memory of a
//! large cluster is a few dozen bytes per endpoint instead of the whole documents.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

/// Label that ties an EndpointSlice to its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Services (and their slices) with this label belong to another proxy.
pub const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Set on slices of headless Services, which need no rules.
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// The node label that zone hints are compared with.
pub const ZONE: &str = "topology.kubernetes.io/zone";

const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// `None` for a protocol that no backend knows; such a port gets no rules.
    fn parse(name: Option<&str>) -> Option<Self> {
        match name.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    pub load_balancer_ips: Vec<IpAddr>,
    /// Empty means that every source is welcome.
    pub source_ranges: Vec<IpNet>,
    /// Seconds that a client sticks to its endpoint.
    pub affinity: Option<u32>,
    pub internal_local: bool,
    pub external_local: bool,
    pub health_check_node_port: Option<u16>,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

impl Service {
    /// `None` for Services that are not proxied: headless ones, ExternalName ones and those that
    /// name another proxy.
    pub fn reduce(service: &core::Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let labels = service.metadata.labels.as_ref();
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
        if kind == "ExternalName"
            || cluster_ip.is_empty()
            || cluster_ip == "None"
            || labels.is_some_and(|l| l.contains_key(PROXY_NAME))
        {
            return None;
        }
        let cluster_ips = match &spec.cluster_ips {
            Some(ips) if !ips.is_empty() => addresses(ips),
            _ => addresses(&[cluster_ip.to_owned()]),
        };
        let external_ips = addresses(spec.external_ips.as_deref().unwrap_or_default());
        let reachable = matches!(kind, "NodePort" | "LoadBalancer") || !external_ips.is_empty();
        let external_local = reachable && spec.external_traffic_policy.as_deref() == Some("Local");
        Some(Self {
            cluster_ips,
            external_ips,
            load_balancer_ips: load_balancer_ips(service),
            source_ranges: source_ranges(spec),
            affinity: affinity(spec),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local,
            health_check_node_port: (kind == "LoadBalancer" && external_local)
                .then(|| port(spec.health_check_node_port))
                .flatten(),
            ports: spec
                .ports
                .iter()
                .flatten()
                .filter_map(ServicePort::reduce)
                .collect(),
        })
    }
}

impl ServicePort {
    fn reduce(from: &core::ServicePort) -> Option<Self> {
        Some(Self {
            name: from.name.clone().unwrap_or_default(),
            protocol: Protocol::parse(from.protocol.as_deref())?,
            port: port(Some(from.port))?,
            node_port: port(from.node_port),
        })
    }
}

/// IPs of load balancers in VIP mode: in mode `Proxy` the balancer itself must see the traffic.
fn load_balancer_ips(service: &core::Service) -> Vec<IpAddr> {
    let status = service
        .status
        .as_ref()
        .and_then(|s| s.load_balancer.as_ref());
    status
        .and_then(|s| s.ingress.as_ref())
        .into_iter()
        .flatten()
        .filter(|ingress| ingress.ip_mode.as_deref().unwrap_or("VIP") == "VIP")
        .filter_map(|ingress| ingress.ip.as_deref()?.parse().ok())
        .collect()
}

/// A range of every address says the same as no range at all. Kubernetes accepts blanks around a range.
fn source_ranges(spec: &core::ServiceSpec) -> Vec<IpNet> {
    let ranges: Vec<IpNet> = spec
        .load_balancer_source_ranges
        .iter()
        .flatten()
        .filter_map(|range| range.trim().parse().ok())
        .collect();
    let everywhere =
        |family: fn(&IpNet) -> bool| ranges.iter().any(|r| family(r) && r.prefix_len() == 0);
    let (v4, v6) = (
        everywhere(|r| matches!(r, IpNet::V4(_))),
        everywhere(|r| matches!(r, IpNet::V6(_))),
    );
    ranges
        .into_iter()
        .filter(|range| match range {
            IpNet::V4(_) => !v4,
            IpNet::V6(_) => !v6,
        })
        .collect()
}

fn affinity(spec: &core::ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref();
    let seconds = config.and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
    Some(
        seconds
            .and_then(|s| u32::try_from(s).ok())
            .unwrap_or(DEFAULT_AFFINITY_SECONDS),
    )
}

fn addresses(from: &[String]) -> Vec<IpAddr> {
    from.iter().filter_map(|ip| ip.parse().ok()).collect()
}

fn port(from: Option<i32>) -> Option<u16> {
    from.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0)
}

/// One EndpointSlice: every endpoint offers every port.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// `namespace/name` of its Service.
    pub service: String,
    pub ports: Vec<(String, Protocol, u16)>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub address: IpAddr,
    /// On the proxy's own node.
    pub local: bool,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub zones: BTreeSet<String>,
    pub nodes: BTreeSet<String>,
}

impl Slice {
    /// `None` for slices without rules: of headless Services, of names instead of addresses, or
    /// without a Service.
    pub fn reduce(slice: &discovery::EndpointSlice, node: &str) -> Option<Self> {
        let labels = slice.metadata.labels.as_ref()?;
        let service = labels.get(SERVICE_NAME).filter(|name| !name.is_empty())?;
        if labels.contains_key(HEADLESS) || slice.address_type == "FQDN" {
            return None;
        }
        Some(Self {
            service: format!(
                "{}/{service}",
                slice.metadata.namespace.as_deref().unwrap_or_default()
            ),
            ports: slice
                .ports
                .iter()
                .flatten()
                .filter_map(|p| {
                    Some((
                        p.name.clone().unwrap_or_default(),
                        Protocol::parse(p.protocol.as_deref())?,
                        port(p.port)?,
                    ))
                })
                .collect(),
            endpoints: slice
                .endpoints
                .iter()
                .flatten()
                .filter_map(|endpoint| Endpoint::reduce(endpoint, node))
                .collect(),
        })
    }
}

impl Endpoint {
    /// Addresses beyond the first are not used, as the API says. An absent condition counts as
    /// ready and serving, and not terminating.
    fn reduce(from: &discovery::Endpoint, node: &str) -> Option<Self> {
        let address = from.addresses.first()?.parse().ok()?;
        let conditions = from.conditions.clone().unwrap_or_default();
        let hints = from.hints.clone().unwrap_or_default();
        Some(Self {
            address,
            local: from.node_name.as_deref() == Some(node),
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
            zones: hints
                .for_zones
                .into_iter()
                .flatten()
                .map(|z| z.name)
                .collect(),
            nodes: hints
                .for_nodes
                .into_iter()
                .flatten()
                .map(|n| n.name)
                .collect(),
        })
    }

    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }
}

/// The proxy's own node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    pub name: String,
    pub zone: String,
    pub addresses: Vec<IpAddr>,
    /// About to leave the cluster, so load balancers should look elsewhere.
    pub leaving: bool,
}

impl Node {
    pub fn reduce(node: &core::Node) -> Self {
        const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
        let labels = node.metadata.labels.as_ref();
        let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
        let addresses = node.status.as_ref().and_then(|s| s.addresses.as_ref());
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            zone: labels
                .and_then(|l| l.get(ZONE))
                .cloned()
                .unwrap_or_default(),
            addresses: addresses
                .into_iter()
                .flatten()
                .filter(|a| a.type_ == "InternalIP")
                .filter_map(|a| a.address.parse().ok())
                .collect(),
            leaving: node.metadata.deletion_timestamp.is_some()
                || taints.into_iter().flatten().any(|t| t.key == TO_BE_DELETED),
        }
    }
}
