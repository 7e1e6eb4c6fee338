//! `overlay`: the pod network of one node. See the library for how it works.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{ArgAction, Parser};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::runtime::watcher;
use overlay::server::Overlay;
use overlay::{cni, kernel, plan};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Connects the pods of this node with those of all others.
#[derive(Debug, Parser)]
#[command(name = "overlay", version)]
struct Options {
    /// Kubeconfig file; without it, the pod's service account
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Name of this node, when it is not the host name
    #[arg(long, visible_alias = "node-name", env = "NODE_NAME")]
    hostname_override: Option<String>,
    /// Where the container runtime looks for CNI configurations
    #[arg(long, default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Where the CNI plugins are [default: the usual place that has them]
    #[arg(long)]
    cni_bin_dir: Option<PathBuf>,
    /// How packets get to other nodes: routes
    #[arg(long, default_value = "routes")]
    backend: String,
    /// Where pods live
    #[arg(long, default_value = "10.244.0.0/16", value_delimiter = ',')]
    cluster_cidr: Vec<IpNet>,
    /// Give pod traffic that leaves the cluster the node's address
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    masquerade: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    client::init();
    let options = Options::parse();
    match options.backend.as_str() {
        "routes" => {}
        "vxlan" => bail!(
            "backend \"vxlan\" is not implemented yet; use --backend=routes on nodes that share a network"
        ),
        other => bail!("unknown backend {other:?}; use --backend=routes"),
    }
    let name = match options.hostname_override {
        Some(name) => name,
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")
            .context("cannot read the host name")?,
    };
    let shutdown = client::shutdown_signal();
    let v6 = options
        .cluster_cidr
        .iter()
        .any(|cidr| cidr.addr().is_ipv6());
    let bridge_netfilter = kernel::prepare(v6)?;
    let bin_dir = options.cni_bin_dir.unwrap_or_else(cni::default_bin_dir);
    cni::check_plugins(&bin_dir, &plan::plugins(bridge_netfilter))?;
    let (netlink, notifications) = kernel::connect()?;
    let agent = concat!("overlay/", env!("CARGO_PKG_VERSION"));
    let api = client::connect(options.kubeconfig.as_deref(), agent).await?;
    let overlay = Overlay {
        node: name.trim().to_lowercase(),
        cni_conf_dir: options.cni_conf_dir,
        bridge_netfilter,
        pods: options.cluster_cidr,
        masquerade: options.masquerade,
        netlink,
    };
    tracing::info!(
        node = overlay.node,
        backend = options.backend,
        bridge_netfilter,
        "overlay started"
    );
    let nodes = client::informer::events(Api::<Node>::all(api), watcher::Config::default());
    overlay.run(Box::pin(nodes), notifications, &shutdown).await;
    Ok(())
}
