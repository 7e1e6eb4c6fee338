//! What a local cluster *is*: the record kept on disk, its addresses and its paths. All pure but for loading and saving.
//!
//! The record is written before anything else happens, so that whatever a crash leaves behind can be found from it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

pub const SERVICE_CIDR: &str = "10.96.0.0/12";
pub const POD_CIDR: &str = "10.244.0.0/16";
pub const KUBERNETES_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
pub const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
pub const DOMAIN: &str = "cluster.local";
/// Where the API server listens inside the cluster's own network.
pub const API_PORT: u16 = 6443;
/// Nodes of all clusters live in `10.89.0.0/16`, a /24 for each cluster.
pub const NETWORK: [u8; 2] = [10, 89];
pub const MAX_NODES: u32 = 200;
pub const CONTROL_PLANE: &str = "control-plane";

/// Which engine the API server keeps its objects in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// One file beside the API server
    Embedded,
    /// A real etcd in the control plane's namespace
    Etcd,
}

impl std::fmt::Display for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Store::Embedded => "embedded",
            Store::Etcd => "etcd",
        })
    }
}

/// A machine of a cluster: the control plane or the node with this number, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    ControlPlane,
    Node(u32),
}

impl Machine {
    pub fn name(&self) -> String {
        match self {
            Machine::ControlPlane => CONTROL_PLANE.to_string(),
            Machine::Node(n) => format!("node{n}"),
        }
    }

    pub fn parse(name: &str) -> Option<Machine> {
        if name == CONTROL_PLANE {
            return Some(Machine::ControlPlane);
        }
        name.strip_prefix("node")?.parse().ok().map(Machine::Node)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    pub name: String,
    pub nodes: u32,
    pub store: Store,
    pub isolated: bool,
    /// Third octet of the cluster's /24.
    pub subnet: u8,
    /// Port of the API on the host's loopback.
    pub api_port: u16,
    /// The kubeconfig that got the context `skiff-NAME`.
    pub kubeconfig: PathBuf,
    /// Where the components' binaries are.
    pub bin_dir: PathBuf,
    pub created: jiff::Timestamp,
    /// False until `create` has gone all the way.
    pub complete: bool,
}

impl Cluster {
    fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(NETWORK[0], NETWORK[1], self.subnet, host)
    }

    /// The control plane's address on the bridge.
    pub fn control_plane_ip(&self) -> Ipv4Addr {
        self.address(1)
    }

    /// The host's own address on the bridge, where the cluster is not isolated.
    pub fn host_ip(&self) -> Ipv4Addr {
        self.address(254)
    }

    pub fn node_ip(&self, node: u32) -> Ipv4Addr {
        self.address(10 + node.min(MAX_NODES) as u8)
    }

    /// Where a node sends what is not for the cluster. An isolated one needs the route too: without one, a packet to a
    /// Service's address is refused before the Service's rules see it.
    pub fn gateway(&self) -> Ipv4Addr {
        if self.isolated {
            self.control_plane_ip()
        } else {
            self.host_ip()
        }
    }

    pub fn cidr(&self) -> String {
        format!("{}/24", self.address(0))
    }

    /// The one interface that a cluster adds to the host's network.
    pub fn host_interface(&self) -> String {
        format!("skiff{}", self.subnet)
    }

    pub fn context(&self) -> String {
        format!("skiff-{}", self.name)
    }

    /// The API as the cluster's own machines reach it.
    pub fn internal_server(&self) -> String {
        format!("https://{}:{API_PORT}", self.control_plane_ip())
    }

    /// The API as the host's users reach it.
    pub fn external_server(&self) -> String {
        format!("https://127.0.0.1:{}", self.api_port)
    }

    pub fn nodes(&self) -> impl Iterator<Item = u32> {
        1..=self.nodes
    }

    pub fn machines(&self) -> impl Iterator<Item = Machine> {
        std::iter::once(Machine::ControlPlane).chain(self.nodes().map(Machine::Node))
    }
}

/// Where everything of one cluster lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    pub name: String,
    pub dir: PathBuf,
}

impl Paths {
    pub fn new(state: &Path, name: &str) -> Self {
        Paths {
            name: name.to_string(),
            dir: state.join("clusters").join(name),
        }
    }

    pub fn record(&self) -> PathBuf {
        self.dir.join("cluster.json")
    }

    /// Held locked by the living supervisor, whose process id is its content.
    pub fn supervisor_lock(&self) -> PathBuf {
        self.dir.join("supervisor.pid")
    }

    pub fn cgroups(&self) -> PathBuf {
        self.dir.join("cgroups.json")
    }

    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    pub fn machine_logs(&self, machine: Machine) -> PathBuf {
        self.logs().join(machine.name())
    }

    pub fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    /// Kubeconfigs of the administrator and of the control plane's components.
    pub fn kubeconfig(&self, component: &str) -> PathBuf {
        self.dir
            .join("kubeconfigs")
            .join(format!("{component}.conf"))
    }

    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    pub fn node(&self, node: u32) -> PathBuf {
        self.dir.join("nodes").join(Machine::Node(node).name())
    }

    pub fn node_root(&self, node: u32) -> PathBuf {
        self.node(node).join("root")
    }

    /// What the node has of its own in /etc, laid over the host's.
    pub fn node_etc(&self, node: u32) -> PathBuf {
        self.node(node).join("etc")
    }

    /// The name that cgroups carry: the cluster's own, told apart where several state directories are in use.
    pub fn scope(&self) -> String {
        let state = self.dir.parent().and_then(Path::parent);
        match state {
            Some(dir) if dir != Path::new(DEFAULT_STATE_DIR) => {
                use sha2::Digest;
                let hash = sha2::Sha256::digest(dir.as_os_str().as_encoded_bytes());
                format!(
                    "{}-{:02x}{:02x}{:02x}",
                    self.name, hash[0], hash[1], hash[2]
                )
            }
            _ => self.name.clone(),
        }
    }

    pub fn load(&self) -> Result<Cluster> {
        let path = self.record();
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
    }

    pub fn save(&self, cluster: &Cluster) -> Result<()> {
        write_atomic(&self.record(), &serde_json::to_vec_pretty(cluster)?, 0o600)
    }
}

const DEFAULT_STATE_DIR: &str = "/var/lib/skiff";

/// `SKIFF_STATE_DIR`, or `/var/lib/skiff`; clusters are kept beneath it in `clusters/NAME`.
pub fn state_dir() -> Result<PathBuf> {
    let dir = std::env::var_os("SKIFF_STATE_DIR")
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| PathBuf::from(DEFAULT_STATE_DIR), PathBuf::from);
    std::path::absolute(&dir).with_context(|| format!("resolve {}", dir.display()))
}

/// The names of all clusters, whole or not.
pub fn names(state: &Path) -> Result<Vec<String>> {
    let dir = state.join("clusters");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("read {}", dir.display())),
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// A cluster's name ends up in host names, paths and a kubeconfig context: a DNS label, and not too long.
pub fn check_name(name: &str) -> Result<()> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edge = |c: Option<char>| c.is_some_and(|c| c != '-');
    if name.len() > 40
        || !name.chars().all(inner)
        || !edge(name.chars().next())
        || !edge(name.chars().last())
    {
        bail!(
            "cluster name {name:?} is not usable: at most 40 lower case letters, digits and '-', starting and ending with a letter or digit"
        );
    }
    Ok(())
}

/// The first /24 that neither another cluster uses nor the host has a route into.
///
/// `routes` is the text of `/proc/net/route`: destination and mask are the second and eighth column, as little-endian hex.
pub fn free_subnet(taken: &[u8], routes: &str) -> Option<u8> {
    let routes: Vec<(u32, u32)> = routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let hex = |i: usize| {
                u32::from_str_radix(fields.get(i)?, 16)
                    .ok()
                    .map(u32::swap_bytes)
            };
            Some((hex(1)?, hex(7)?))
        })
        .filter(|(_, mask)| *mask != 0)
        .collect();
    (0..=254u8).find(|octet| {
        let net = u32::from_be_bytes([NETWORK[0], NETWORK[1], *octet, 0]);
        let overlaps = |&(dest, mask): &(u32, u32)| {
            let both = mask & 0xffff_ff00;
            net & both == dest & both
        };
        !taken.contains(octet) && !routes.iter().any(overlaps)
    })
}

/// Writes a file as a whole or not at all, durably.
pub fn write_atomic(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write()
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn example() -> Cluster {
        Cluster {
            name: "demo".into(),
            nodes: 2,
            store: Store::Embedded,
            isolated: true,
            subnet: 7,
            api_port: 6443,
            kubeconfig: "/root/.kube/config".into(),
            bin_dir: "/opt/skiff/bin".into(),
            created: jiff::Timestamp::UNIX_EPOCH,
            complete: true,
        }
    }

    #[test]
    fn addresses_follow_the_plan() {
        let mut cluster = example();
        assert_eq!(cluster.control_plane_ip(), Ipv4Addr::new(10, 89, 7, 1));
        assert_eq!(cluster.node_ip(1), Ipv4Addr::new(10, 89, 7, 11));
        assert_eq!(cluster.node_ip(MAX_NODES), Ipv4Addr::new(10, 89, 7, 210));
        assert_eq!(cluster.gateway(), cluster.control_plane_ip());
        cluster.isolated = false;
        assert_eq!(cluster.gateway(), Ipv4Addr::new(10, 89, 7, 254));
        assert_eq!(cluster.host_interface(), "skiff7");
    }

    #[test]
    fn a_subnet_in_use_is_passed_over() {
        let header =
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let default = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        let first = "eth1\t0000590A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let whole = "tun0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n";
        for (taken, routes, want) in [
            (vec![], vec![], Some(0)),
            (vec![], vec![default], Some(0)),
            (vec![0, 1], vec![], Some(2)),
            (vec![1], vec![default, first], Some(2)),
            (vec![], vec![whole], None),
        ] {
            let text = format!("{header}{}", routes.concat());
            assert_eq!(
                free_subnet(&taken, &text),
                want,
                "taken {taken:?}, routes {routes:?}"
            );
        }
    }

    #[test]
    fn names_are_labels() {
        for good in ["a", "skiff", "a-1"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "..", &"x".repeat(41)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn machines_have_names_both_ways() {
        for machine in example().machines() {
            assert_eq!(Machine::parse(&machine.name()), Some(machine));
        }
        assert_eq!(Machine::parse("nodex"), None);
    }
}
