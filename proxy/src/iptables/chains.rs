//! The rule model as iptables chains, with the names and the shape that kube-proxy gives them, so
//! that what operators know and what other tools look for stays true. A pure function.
//!
//! A packet to a Service enters `KUBE-SERVICES` (from PREROUTING and OUTPUT), is sent to the Service
//! port's `KUBE-SVC-*` (all endpoints) or `KUBE-SVL-*` (those of this node) directly, or by way of
//! `KUBE-EXT-*` when it came for an external address, and ends in one endpoint's `KUBE-SEP-*`, where
//! its destination is rewritten. Ports without endpoints are refused in the filter table.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::model::{Family, Model, PortRules};
use crate::objects::Protocol;

pub const SERVICES: &str = "KUBE-SERVICES";
pub const EXTERNAL: &str = "KUBE-EXTERNAL-SERVICES";
pub const NODE_PORTS: &str = "KUBE-NODEPORTS";
pub const POSTROUTING: &str = "KUBE-POSTROUTING";
pub const MARK_MASQ: &str = "KUBE-MARK-MASQ";
pub const FORWARD: &str = "KUBE-FORWARD";
pub const LB_FIREWALL: &str = "KUBE-PROXY-FIREWALL";
pub const CANARY: &str = "KUBE-PROXY-CANARY";
/// The kubelet has the same chain with the same rule; whoever comes last keeps it.
pub const LOCALNET: &str = "KUBE-FIREWALL";

/// Prefixes of the chains that come and go with Services and endpoints.
pub const DYNAMIC: [&str; 5] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-FW-",
    "KUBE-EXT-",
    "KUBE-SEP-",
];

/// Above this many endpoints, comments on their chains cost more than they explain.
const LARGE_CLUSTER: usize = 1000;

const NEW: &str = "-m conntrack --ctstate NEW ";

/// Jumps from the built-in chains: table, from, to, match, comment.
pub const JUMPS: [(&str, &str, &str, &str, &str); 14] = [
    (
        "filter",
        "INPUT",
        EXTERNAL,
        NEW,
        "kubernetes externally-visible service portals",
    ),
    (
        "filter",
        "FORWARD",
        EXTERNAL,
        NEW,
        "kubernetes externally-visible service portals",
    ),
    (
        "filter",
        "INPUT",
        NODE_PORTS,
        "",
        "kubernetes health check service ports",
    ),
    (
        "filter",
        "FORWARD",
        SERVICES,
        NEW,
        "kubernetes service portals",
    ),
    (
        "filter",
        "OUTPUT",
        SERVICES,
        NEW,
        "kubernetes service portals",
    ),
    (
        "filter",
        "FORWARD",
        FORWARD,
        "",
        "kubernetes forwarding rules",
    ),
    (
        "filter",
        "INPUT",
        LB_FIREWALL,
        NEW,
        "kubernetes load balancer firewall",
    ),
    (
        "filter",
        "OUTPUT",
        LB_FIREWALL,
        NEW,
        "kubernetes load balancer firewall",
    ),
    (
        "filter",
        "FORWARD",
        LB_FIREWALL,
        NEW,
        "kubernetes load balancer firewall",
    ),
    ("filter", "INPUT", LOCALNET, "", ""),
    ("filter", "OUTPUT", LOCALNET, "", ""),
    ("nat", "OUTPUT", SERVICES, "", "kubernetes service portals"),
    (
        "nat",
        "PREROUTING",
        SERVICES,
        "",
        "kubernetes service portals",
    ),
    (
        "nat",
        "POSTROUTING",
        POSTROUTING,
        "",
        "kubernetes postrouting rules",
    ),
];

#[derive(Clone, Debug)]
pub struct Config {
    /// Where pods live: other traffic to a cluster IP gets this node's source address.
    pub cluster_cidrs: Vec<IpNet>,
    pub masquerade_all: bool,
    pub masquerade_bit: u8,
    /// Node ports answer on local addresses in these ranges; empty means on all.
    pub node_port_addresses: Vec<IpNet>,
    /// Node ports answer on loopback too (needs the sysctl `route_localnet`).
    pub localhost_node_ports: bool,
    /// The kernel itself tolerates out-of-window packets, so there is nothing to drop.
    pub conntrack_liberal: bool,
}

/// The wanted contents of our chains. A rule is what follows `-A CHAIN `.
#[derive(Debug, Default, PartialEq)]
pub struct Ruleset {
    pub filter: BTreeMap<String, Vec<String>>,
    pub nat: BTreeMap<String, Vec<String>>,
}

impl Ruleset {
    pub fn tables(&self) -> [(&'static str, &BTreeMap<String, Vec<String>>); 2] {
        [("filter", &self.filter), ("nat", &self.nat)]
    }

    fn filter(&mut self, chain: &str, rule: String) {
        self.filter.entry(chain.to_owned()).or_default().push(rule);
    }

    fn nat(&mut self, chain: &str, rule: String) {
        self.nat.entry(chain.to_owned()).or_default().push(rule);
    }
}

pub fn build(model: &Model, family: Family, config: &Config) -> Ruleset {
    let mut out = Writer {
        rules: Ruleset::default(),
        pods: config
            .cluster_cidrs
            .iter()
            .find(|cidr| family.has(cidr))
            .copied(),
        node: &model.node_addresses,
        family,
        config,
        comments: model
            .ports
            .iter()
            .map(|p| p.reachable().len())
            .sum::<usize>()
            <= LARGE_CLUSTER,
    };
    out.fixed_chains();
    for port in &model.ports {
        out.port(port);
    }
    out.node_port_dispatch();
    out.rules
}

struct Writer<'a> {
    rules: Ruleset,
    pods: Option<IpNet>,
    node: &'a [IpAddr],
    family: Family,
    config: &'a Config,
    comments: bool,
}

impl Writer<'_> {
    fn fixed_chains(&mut self) {
        for chain in [
            SERVICES,
            EXTERNAL,
            NODE_PORTS,
            FORWARD,
            LB_FIREWALL,
            LOCALNET,
            CANARY,
        ] {
            self.rules.filter.entry(chain.to_owned()).or_default();
        }
        for chain in [SERVICES, NODE_PORTS, POSTROUTING, MARK_MASQ, CANARY] {
            self.rules.nat.entry(chain.to_owned()).or_default();
        }
        let mark = format!("{:#010x}", 1u32 << self.config.masquerade_bit);
        let rules = &mut self.rules;
        rules.nat(
            POSTROUTING,
            format!("-m mark ! --mark {mark}/{mark} -j RETURN"),
        );
        // Cleared, so that a packet which comes round again is not masqueraded twice.
        rules.nat(POSTROUTING, format!("-j MARK --xor-mark {mark}"));
        let why = comment("kubernetes service traffic requiring SNAT");
        rules.nat(POSTROUTING, format!("{why}-j MASQUERADE --random-fully"));
        rules.nat(MARK_MASQ, format!("-j MARK --or-mark {mark}"));
        if self.config.localhost_node_ports && self.family == Family::V4 {
            // With route_localnet a neighbour could reach what listens on loopback only.
            let why = comment("block incoming localnet connections");
            rules.filter(LOCALNET, format!(
                "{why}-d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
            ));
        }
        if !self.config.conntrack_liberal {
            rules.filter(FORWARD, "-m conntrack --ctstate INVALID -j DROP".into());
        }
        let why = comment("kubernetes forwarding rules");
        rules.filter(
            FORWARD,
            format!("{why}-m mark --mark {mark}/{mark} -j ACCEPT"),
        );
        let why = comment("kubernetes forwarding conntrack rule");
        rules.filter(
            FORWARD,
            format!("{why}-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        );
    }

    fn port(&mut self, port: &PortRules) {
        let names = Names::of(port);
        self.capture_cluster_ip(port, &names);
        self.capture_external(port, &names);
        self.capture_node_port(port, &names);
        self.external_chain(port, &names);
        self.firewall_chain(port, &names);
        let cluster = port
            .uses_cluster()
            .then_some((&names.cluster, &port.cluster));
        let local = port.uses_local().then_some((&names.local, &port.local));
        for (chain, targets) in [cluster, local].into_iter().flatten() {
            self.balance(port, chain, targets);
        }
        for target in port.reachable() {
            self.endpoint(port, target);
        }
    }

    fn capture_cluster_ip(&mut self, port: &PortRules, names: &Names) {
        let why = comment(&format!("{} cluster IP", port.name));
        let to = destination(port, port.cluster_ip);
        if !port.has_internal_endpoints() {
            self.rules.filter(SERVICES, refusal(port, &to));
            return;
        }
        let chain = names.internal(port);
        self.rules.nat(SERVICES, format!("{why}{to}-j {chain}"));
        // Somebody may route the Service range to any node; what comes in that way and leaves for
        // another node must come back through this one.
        match self.pods {
            _ if self.config.masquerade_all => {
                self.rules.nat(chain, format!("{why}{to}-j {MARK_MASQ}"));
            }
            Some(pods) => self
                .rules
                .nat(chain, format!("{why}{to}! -s {pods} -j {MARK_MASQ}")),
            None => {}
        }
    }

    /// External IPs and load balancer IPs. What has endpoints, but none that external traffic may use
    /// here, is dropped unless the external chain's short cut takes it.
    fn capture_external(&mut self, port: &PortRules, names: &Names) {
        for ip in &port.external_ips {
            let to = destination(port, *ip);
            if port.has_endpoints {
                let why = comment(&format!("{} external IP", port.name));
                self.rules
                    .nat(SERVICES, format!("{why}{to}-j {}", names.external));
            }
            if !port.has_external_endpoints() {
                self.rules.filter(EXTERNAL, refusal(port, &to));
            }
        }
        for ip in &port.load_balancer_ips {
            let to = destination(port, *ip);
            if port.has_endpoints {
                let why = comment(&format!("{} loadbalancer IP", port.name));
                let chain = if firewalled(port) {
                    &names.firewall
                } else {
                    &names.external
                };
                self.rules.nat(SERVICES, format!("{why}{to}-j {chain}"));
            }
            if firewalled(port) {
                let why = comment(&format!(
                    "{} traffic not accepted by {}",
                    port.name, names.firewall
                ));
                self.rules.filter(LB_FIREWALL, format!("{why}{to}-j DROP"));
            }
            if !port.has_external_endpoints() {
                self.rules.filter(EXTERNAL, refusal(port, &to));
            }
        }
    }

    fn capture_node_port(&mut self, port: &PortRules, names: &Names) {
        if let Some(number) = port.node_port {
            let to = format!("-m {0} -p {0} --dport {number} ", port.protocol);
            if port.has_endpoints {
                let why = comment(&port.name);
                self.rules
                    .nat(NODE_PORTS, format!("{why}{to}-j {}", names.external));
            }
            if !port.has_external_endpoints() {
                let to = format!("-m addrtype --dst-type LOCAL {to}");
                self.rules.filter(EXTERNAL, refusal(port, &to));
            }
        }
        if let Some(number) = port.health_check_node_port {
            let why = comment(&format!("{} health check node port", port.name));
            self.rules.filter(
                NODE_PORTS,
                format!("{why}-m tcp -p tcp --dport {number} -j ACCEPT"),
            );
        }
    }

    /// Under policy `Cluster` all external traffic is masqueraded and balanced. Under `Local` it keeps
    /// its source and stays on this node, except what pods and the node itself send: these see the
    /// whole Service, as if they had used its cluster IP.
    fn external_chain(&mut self, port: &PortRules, names: &Names) {
        if !port.has_endpoints || !port.externally_accessible() {
            return;
        }
        let chain = names.external.as_str();
        let mut rules = Vec::new();
        if port.external_local {
            let cluster = &names.cluster;
            if let Some(pods) = self.pods {
                let why = comment(&format!(
                    "pod traffic for {} external destinations",
                    port.name
                ));
                rules.push(format!("{why}-s {pods} -j {cluster}"));
            }
            let why = comment(&format!(
                "masquerade LOCAL traffic for {} external destinations",
                port.name
            ));
            rules.push(format!("{why}-m addrtype --src-type LOCAL -j {MARK_MASQ}"));
            let why = comment(&format!(
                "route LOCAL traffic for {} external destinations",
                port.name
            ));
            rules.push(format!("{why}-m addrtype --src-type LOCAL -j {cluster}"));
        } else {
            let why = comment(&format!(
                "masquerade traffic for {} external destinations",
                port.name
            ));
            rules.push(format!("{why}-j {MARK_MASQ}"));
        }
        if port.has_external_endpoints() {
            let policy = if port.external_local {
                &names.local
            } else {
                &names.cluster
            };
            rules.push(format!("-j {policy}"));
        }
        self.rules.nat.insert(chain.to_owned(), rules);
    }

    fn firewall_chain(&mut self, port: &PortRules, names: &Names) {
        if !firewalled(port) {
            return;
        }
        let why = comment(&format!("{} loadbalancer IP", port.name));
        let (chain, next) = (&names.firewall, &names.external);
        for range in &port.source_ranges {
            self.rules.nat(chain, format!("{why}-s {range} -j {next}"));
        }
        // The balancer's address is often a local one too: then this node's own requests carry it as
        // their source.
        let admits_node = |range: &IpNet| self.node.iter().any(|ip| range.contains(ip));
        if port.source_ranges.iter().any(admits_node) {
            for ip in &port.load_balancer_ips {
                self.rules.nat(chain, format!("{why}-s {ip} -j {next}"));
            }
        }
        let why = comment(&format!(
            "other traffic to {} will be dropped by {LB_FIREWALL}",
            port.name
        ));
        self.rules.nat(chain, why.trim_end().to_owned());
    }

    /// Each rule takes its share of what the rules before it left over; the last takes the rest.
    fn balance(&mut self, port: &PortRules, chain: &str, targets: &[SocketAddr]) {
        for target in port.affinity.iter().flat_map(|_| targets) {
            let why = self.endpoint_comment(&format!("{} -> {target}", port.name));
            let endpoint = endpoint_chain(port, *target);
            let seconds = port.affinity.unwrap_or_default();
            self.rules.nat(chain, format!(
                "{why}-m recent --name {endpoint} --rcheck --seconds {seconds} --reap -j {endpoint}"
            ));
        }
        for (at, target) in targets.iter().enumerate() {
            let why = self.endpoint_comment(&format!("{} -> {target}", port.name));
            let left = targets.len() - at;
            let share = match left {
                1 => String::new(),
                n => format!(
                    "-m statistic --mode random --probability {:.10} ",
                    1.0 / n as f64
                ),
            };
            self.rules.nat(
                chain,
                format!("{why}{share}-j {}", endpoint_chain(port, *target)),
            );
        }
    }

    fn endpoint(&mut self, port: &PortRules, target: SocketAddr) {
        let chain = endpoint_chain(port, target);
        let why = self.endpoint_comment(&port.name);
        // A pod that reaches itself through its Service must not see its own address as the source.
        let hairpin = format!("{why}-s {} -j {MARK_MASQ}", target.ip());
        let remember = match port.affinity {
            Some(_) => format!("-m recent --name {chain} --set "),
            None => String::new(),
        };
        let protocol = port.protocol;
        let dnat =
            format!("{why}{remember}-m {protocol} -p {protocol} -j DNAT --to-destination {target}");
        self.rules.nat.insert(chain, vec![hairpin, dnat]);
    }

    fn endpoint_comment(&self, text: &str) -> String {
        if self.comments {
            comment(text)
        } else {
            String::new()
        }
    }

    /// Comes after every other rule of `KUBE-SERVICES`: a Service address wins over a node port.
    fn node_port_dispatch(&mut self) {
        let why =
            comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain");
        let local = "-m addrtype --dst-type LOCAL ";
        let ranges: Vec<&IpNet> = self
            .config
            .node_port_addresses
            .iter()
            .filter(|net| self.family.has(net))
            .collect();
        if ranges.is_empty() || ranges.iter().any(|net| net.prefix_len() == 0) {
            let not_loopback = match self.family {
                Family::V4 if self.config.localhost_node_ports => "",
                Family::V4 => "! -d 127.0.0.0/8 ",
                Family::V6 => "! -d ::1/128 ",
            };
            self.rules.nat(
                SERVICES,
                format!("{why}{local}{not_loopback}-j {NODE_PORTS}"),
            );
            return;
        }
        for range in ranges {
            self.rules
                .nat(SERVICES, format!("{why}{local}-d {range} -j {NODE_PORTS}"));
        }
    }
}

fn firewalled(port: &PortRules) -> bool {
    port.has_endpoints && !port.load_balancer_ips.is_empty() && !port.source_ranges.is_empty()
}

fn destination(port: &PortRules, ip: IpAddr) -> String {
    format!(
        "-m {0} -p {0} -d {ip} --dport {1} ",
        port.protocol, port.port
    )
}

/// No endpoints anywhere: say so at once. None on this node, as a `Local` policy wants: drop, so
/// that clients go on to try other nodes.
fn refusal(port: &PortRules, to: &str) -> String {
    let (what, target) = match port.has_endpoints {
        false => ("has no endpoints", "REJECT"),
        true => ("has no local endpoints", "DROP"),
    };
    format!(
        "{}{to}-j {target}",
        comment(&format!("{} {what}", port.name))
    )
}

fn comment(text: &str) -> String {
    format!("-m comment --comment \"{text}\" ")
}

struct Names {
    cluster: String,
    local: String,
    firewall: String,
    external: String,
}

impl Names {
    fn of(port: &PortRules) -> Self {
        let hash = hash(&[&port.name, &port.protocol.to_string()]);
        Self {
            cluster: format!("KUBE-SVC-{hash}"),
            local: format!("KUBE-SVL-{hash}"),
            firewall: format!("KUBE-FW-{hash}"),
            external: format!("KUBE-EXT-{hash}"),
        }
    }

    fn internal(&self, port: &PortRules) -> &str {
        if port.internal_local {
            &self.local
        } else {
            &self.cluster
        }
    }
}

pub fn endpoint_chain(port: &PortRules, target: SocketAddr) -> String {
    let hash = hash(&[&port.name, &port.protocol.to_string(), &target.to_string()]);
    format!("KUBE-SEP-{hash}")
}

/// Chain names have at most 28 characters: 16 of a base32 SHA-256 tell Services apart.
fn hash(parts: &[&str]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut hasher = Sha256::new();
    parts.iter().for_each(|part| hasher.update(part.as_bytes()));
    let digest = hasher.finalize();
    // 80 bits make exactly 16 characters of 5 bits.
    let bits = digest
        .iter()
        .take(10)
        .fold(0u128, |all, byte| all << 8 | u128::from(*byte));
    (0..16)
        .rev()
        .map(|i| ALPHABET[(bits >> (5 * i)) as usize & 31] as char)
        .collect()
}

/// Whether a set of ports holds any UDP one, whose flows outlive a change of rules.
pub fn has_udp(model: &Model) -> bool {
    model
        .ports
        .iter()
        .any(|port| port.protocol == Protocol::Udp)
}
