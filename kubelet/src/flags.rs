//! The command line, with the names that Kubernetes' kubelet uses.

use std::path::PathBuf;

use clap::Parser;

/// Runs the pods that are bound to this node.
#[derive(Clone, Debug, Parser)]
#[command(name = "kubelet", version)]
pub struct Flags {
    /// How to reach the API server.
    #[arg(long)]
    pub kubeconfig: PathBuf,
    /// The node's name, instead of the machine's host name.
    #[arg(long)]
    pub hostname_override: Option<String>,
    /// The node's addresses, comma-separated; without it the one that leads to the default route.
    #[arg(long, value_delimiter = ',')]
    pub node_ip: Vec<String>,
    #[arg(long, default_value = "/var/lib/kubelet")]
    pub root_dir: PathBuf,
    /// Where containers' logs go.
    #[arg(long, default_value = "/var/log/pods")]
    pub log_dir: PathBuf,
    #[arg(long, default_value = "unix:///run/containerd/containerd.sock")]
    pub container_runtime_endpoint: String,
    #[arg(long)]
    pub tls_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub tls_private_key_file: Option<PathBuf>,
    /// Who signs the certificates of those who may call this kubelet.
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    #[arg(long, value_delimiter = ',')]
    pub cluster_dns: Vec<String>,
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Below which cgroup the pods' groups are made.
    #[arg(long, default_value = "/")]
    pub cgroup_root: String,
    /// Only `cgroupfs` is supported.
    #[arg(long, default_value = "cgroupfs")]
    pub cgroup_driver: String,
    /// Labels for a node that registers: `key=value,...`.
    #[arg(long, value_delimiter = ',')]
    pub node_labels: Vec<String>,
    /// Taints for a node that registers: `key=value:effect,...`.
    #[arg(long, value_delimiter = ',')]
    pub register_with_taints: Vec<String>,
    #[arg(long, default_value_t = 110)]
    pub max_pods: i64,
    #[arg(long, default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    #[arg(long, default_value_t = 10250)]
    pub port: u16,
    /// Where the server listens.
    #[arg(long, default_value = "0.0.0.0")]
    pub address: std::net::IpAddr,
    /// The port for plain health checks on the loopback; 0 turns it off.
    #[arg(long, default_value_t = 10248)]
    pub healthz_port: u16,
    /// A container's log is rotated when it grows beyond this many bytes.
    #[arg(long, default_value_t = 10 << 20)]
    pub container_log_max_size: u64,
    #[arg(long, default_value_t = 5)]
    pub container_log_max_files: usize,
}
