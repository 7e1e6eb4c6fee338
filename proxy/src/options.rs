//! Flags and configuration file, named as kube-proxy's. A value in the file wins over a flag, except
//! the node's name: that is how kube-proxy does it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use ipnet::IpNet;
use serde::Deserialize;

use crate::iptables::chains;
use crate::model::Family;

/// Makes Services work on this node.
#[derive(Debug, Parser)]
#[command(name = "proxy", version)]
pub struct Options {
    /// Kubeconfig file; without it, the pod's service account
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// KubeProxyConfiguration file (kubeproxy.config.k8s.io/v1alpha1); its values win over flags
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Name of this node, when it is not the host name
    #[arg(long)]
    pub hostname_override: Option<String>,
    /// How rules are made: iptables
    #[arg(long, default_value = "iptables")]
    pub proxy_mode: String,
    /// Where pods live; other traffic to Services is masqueraded
    #[arg(long, value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNet>,
    /// Masquerade all traffic to cluster IPs
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub masquerade_all: bool,
    /// Which bit of the packet mark asks for masquerading
    #[arg(long, default_value_t = 14, value_parser = clap::value_parser!(u8).range(0..=31))]
    pub iptables_masquerade_bit: u8,
    /// Let node ports answer on 127.0.0.1 too (sets route_localnet)
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub iptables_localhost_nodeports: bool,
    /// How often to look whether the rules are still there
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub iptables_sync_period: Duration,
    /// The longest that a change waits while many come in
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub iptables_min_sync_period: Duration,
    /// Address ranges on which node ports answer; all when empty
    #[arg(long, value_delimiter = ',')]
    pub nodeport_addresses: Vec<IpNet>,
    /// Where /healthz and /livez are served; empty turns them off
    #[arg(long, default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: String,
    /// Where /metrics is served; empty turns it off
    #[arg(long, default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: String,
    /// Take all rules away and exit
    #[arg(long)]
    pub cleanup: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    kind: String,
    mode: String,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: String,
    hostname_override: String,
    client_connection: ClientConnection,
    iptables: Iptables,
    node_port_addresses: Option<Vec<String>>,
    healthz_bind_address: String,
    metrics_bind_address: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClientConnection {
    kubeconfig: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Iptables {
    #[serde(rename = "masqueradeAll")]
    masquerade_all: Option<bool>,
    masquerade_bit: Option<u8>,
    localhost_node_ports: Option<bool>,
    sync_period: String,
    min_sync_period: String,
}

impl Options {
    /// Takes the configuration file in and refuses what this proxy cannot do.
    pub fn complete(mut self) -> anyhow::Result<Self> {
        if let Some(path) = self.config.take() {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read --config {}", path.display()))?;
            self.merge(&text)
                .with_context(|| format!("--config {}", path.display()))?;
        }
        match self.proxy_mode.as_str() {
            "iptables" | "" => Ok(self),
            mode @ ("ipvs" | "nftables") => {
                bail!("proxy mode {mode:?} is not implemented yet; use --proxy-mode=iptables")
            }
            mode => bail!("unknown proxy mode {mode:?}; use --proxy-mode=iptables"),
        }
    }

    fn merge(&mut self, text: &str) -> anyhow::Result<()> {
        fn set<T: std::str::FromStr>(to: &mut T, text: String) -> Result<(), T::Err> {
            if !text.is_empty() {
                *to = text.parse()?;
            }
            Ok(())
        }
        let file: File = serde_saphyr::from_str(text)?;
        if file.kind != "KubeProxyConfiguration" {
            bail!("kind is {:?}, not KubeProxyConfiguration", file.kind);
        }
        set(&mut self.proxy_mode, file.mode)?;
        set(&mut self.healthz_bind_address, file.healthz_bind_address)?;
        set(&mut self.metrics_bind_address, file.metrics_bind_address)?;
        if !file.cluster_cidr.is_empty() {
            let cidrs = file.cluster_cidr.split(',').map(str::parse);
            self.cluster_cidr = cidrs.collect::<Result<_, _>>().context("clusterCIDR")?;
        }
        if let Some(ranges) = file.node_port_addresses {
            let ranges = ranges.iter().map(|range| range.parse());
            self.nodeport_addresses = ranges
                .collect::<Result<_, _>>()
                .context("nodePortAddresses")?;
        }
        if self.hostname_override.is_none() && !file.hostname_override.is_empty() {
            self.hostname_override = Some(file.hostname_override);
        }
        if !file.client_connection.kubeconfig.is_empty() {
            self.kubeconfig = Some(file.client_connection.kubeconfig.into());
        }
        let iptables = file.iptables;
        self.masquerade_all = iptables.masquerade_all.unwrap_or(self.masquerade_all);
        self.iptables_masquerade_bit = iptables
            .masquerade_bit
            .unwrap_or(self.iptables_masquerade_bit);
        self.iptables_localhost_nodeports = iptables
            .localhost_node_ports
            .unwrap_or(self.iptables_localhost_nodeports);
        let zero = |text: &str| text.is_empty() || text == "0s";
        if !zero(&iptables.sync_period) {
            self.iptables_sync_period =
                duration(&iptables.sync_period).map_err(anyhow::Error::msg)?;
        }
        if !zero(&iptables.min_sync_period) {
            self.iptables_min_sync_period =
                duration(&iptables.min_sync_period).map_err(anyhow::Error::msg)?;
        }
        Ok(())
    }

    /// The node's name as the kubelet gives it: lower case.
    pub fn node_name(&self) -> anyhow::Result<String> {
        let name = match &self.hostname_override {
            Some(name) => name.clone(),
            None => std::fs::read_to_string("/proc/sys/kernel/hostname")
                .context("cannot read the host name")?,
        };
        Ok(name.trim().to_lowercase())
    }

    pub fn rules(&self, family: Family) -> chains::Config {
        let of_family = |nets: &[IpNet]| {
            nets.iter()
                .filter(|net| family.has(net))
                .copied()
                .collect::<Vec<_>>()
        };
        let node_ports = of_family(&self.nodeport_addresses);
        let loopback: std::net::IpAddr = std::net::Ipv4Addr::LOCALHOST.into();
        let on_loopback =
            node_ports.is_empty() || node_ports.iter().any(|net| net.contains(&loopback));
        chains::Config {
            cluster_cidrs: of_family(&self.cluster_cidr),
            masquerade_all: self.masquerade_all,
            masquerade_bit: self.iptables_masquerade_bit,
            localhost_node_ports: self.iptables_localhost_nodeports
                && on_loopback
                && family == Family::V4,
            conntrack_liberal: sysctl_is_on(Path::new(
                "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal",
            )),
            node_port_addresses: node_ports,
        }
    }
}

fn sysctl_is_on(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
}

/// An address to listen on; a port alone means all addresses, the empty string none.
pub fn listen_address(text: &str) -> anyhow::Result<Option<SocketAddr>> {
    let full = match text.strip_prefix(':') {
        _ if text.is_empty() => return Ok(None),
        Some(port) => format!("0.0.0.0:{port}"),
        None => text.to_owned(),
    };
    Ok(Some(full.parse().with_context(|| {
        format!("{text:?} is not an address with a port")
    })?))
}

/// A duration as Go writes it.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration such as 30s or 1m30s");
    let span: jiff::SignedDuration = text.parse().map_err(|_| bad())?;
    Duration::try_from(span)
        .map_err(|_| bad())
        .and_then(|d| if d.is_zero() { Err(bad()) } else { Ok(d) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(args: &[&str]) -> Options {
        Options::try_parse_from([&["proxy"], args].concat()).unwrap()
    }

    #[test]
    fn modes_that_do_not_exist_yet_are_refused() {
        let error = options(&["--proxy-mode=ipvs"])
            .complete()
            .unwrap_err()
            .to_string();
        assert!(error.contains("not implemented yet"), "{error}");
        assert!(options(&[]).complete().is_ok());
    }

    #[test]
    fn file_wins_over_flags() {
        let mut o = options(&[
            "--masquerade-all",
            "--cluster-cidr=10.0.0.0/8",
            "--hostname-override=me",
        ]);
        o.merge(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.244.0.0/16\n\
             hostnameOverride: other\niptables: {masqueradeAll: false, minSyncPeriod: 0s, syncPeriod: 1m30s}\nmode: nftables\n",
        )
        .unwrap();
        assert_eq!(o.cluster_cidr, ["10.244.0.0/16".parse::<IpNet>().unwrap()]);
        assert!(!o.masquerade_all);
        assert_eq!(o.hostname_override.as_deref(), Some("me"));
        assert_eq!(o.iptables_sync_period, Duration::from_secs(90));
        assert_eq!(o.iptables_min_sync_period, Duration::from_secs(1));
        assert_eq!(o.proxy_mode, "nftables");
    }

    #[test]
    fn addresses() {
        assert_eq!(listen_address("").unwrap(), None);
        assert_eq!(
            listen_address(":10256").unwrap(),
            Some("0.0.0.0:10256".parse().unwrap())
        );
        assert!(listen_address("localhost").is_err());
    }
}
