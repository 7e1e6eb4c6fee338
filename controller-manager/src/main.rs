//! The `controller-manager` binary: flags, leader election, health.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use client::health::{Health, Transport};
use controller_manager::certificates::sign::Signing;
use controller_manager::frame::{Context, Settings};
use controller_manager::serviceaccount::signer::Signer;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs the controllers of a Kubernetes cluster.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// Credentials and address of the API server; without it, those of the environment or the pod.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Which controllers run: '*' is all, 'foo' adds one, '-foo' leaves one out.
    #[arg(long, value_delimiter = ',', default_value = "*")]
    controllers: Vec<String>,
    /// Stand by for other instances.
    #[arg(long, default_value = "true", action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    leader_elect: bool,
    /// Address of the health and metrics port.
    #[arg(long, default_value = "0.0.0.0")]
    bind_address: IpAddr,
    /// Port for health and metrics, HTTPS; 0 for none.
    #[arg(long, default_value_t = 10257)]
    secure_port: u16,
    /// Give every node a range of pod addresses.
    #[arg(long, default_value = "false", action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    allocate_node_cidrs: bool,
    /// The range that pod addresses come from, as 10.244.0.0/16.
    #[arg(long)]
    cluster_cidr: Option<String>,
    /// The size of a node's range.
    #[arg(long, default_value_t = 24)]
    node_cidr_mask_size: u8,
    /// Certificate authority that pods trust the API server by; published to every namespace.
    #[arg(long)]
    root_ca_file: Option<PathBuf>,
    /// Private key, RSA or EC P-256, that signs the tokens of Secrets that ask for one.
    #[arg(long)]
    service_account_private_key_file: Option<PathBuf>,
    /// Certificate of the authority that signs certificates for the cluster.
    #[arg(long, requires = "cluster_signing_key_file")]
    cluster_signing_cert_file: Option<PathBuf>,
    /// Key of that authority.
    #[arg(long, requires = "cluster_signing_cert_file")]
    cluster_signing_key_file: Option<PathBuf>,
    /// The longest that signed certificates are valid; a request may ask for less.
    #[arg(long, default_value = "8760h", value_parser = duration)]
    cluster_signing_duration: Duration,
    /// How long a node may be silent before it counts as not ready, in seconds (as '50s').
    #[arg(long, default_value = "50s", value_parser = duration)]
    node_monitor_grace_period: Duration,
    /// Terminated pods beyond this number are deleted, oldest first; 0 keeps all.
    #[arg(long, default_value_t = 12500)]
    terminated_pod_gc_threshold: usize,
    /// How often the load of autoscaled workloads is looked at.
    #[arg(long, default_value = "15s", value_parser = duration)]
    horizontal_pod_autoscaler_sync_period: Duration,
    /// The highest recommendation of so long a time counts before replicas are removed.
    #[arg(long, default_value = "5m", value_parser = duration)]
    horizontal_pod_autoscaler_downscale_stabilization: Duration,
    /// How far usage may be from its target, as a share of it, without a change.
    #[arg(long, default_value_t = 0.1)]
    horizontal_pod_autoscaler_tolerance: f64,
    /// How long after its start a pod's CPU usage counts only while it is ready.
    #[arg(long, default_value = "5m", value_parser = duration)]
    horizontal_pod_autoscaler_cpu_initialization_period: Duration,
    /// Pods that became unready within this time of their start have never been ready.
    #[arg(long, default_value = "30s", value_parser = duration)]
    horizontal_pod_autoscaler_initial_readiness_delay: Duration,
}

/// A duration as Go writes it, `1m30s`.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<jiff::SignedDuration>();
    parsed
        .ok()
        .and_then(|d| d.try_into().ok())
        .ok_or_else(|| format!("{text:?} is no duration such as 1m30s"))
}

fn token_signer(path: &Path) -> anyhow::Result<Signer> {
    Signer::read(&std::fs::read(path)?).map_err(anyhow::Error::msg)
}

fn main() -> anyhow::Result<()> {
    client::init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(serve(Flags::parse()))
}

async fn serve(flags: Flags) -> anyhow::Result<()> {
    let shutdown = client::shutdown_signal();
    let agent = concat!("controller-manager/", env!("CARGO_PKG_VERSION"));
    let api = client::connect(flags.kubeconfig.as_deref(), agent).await?;
    let root_ca = match &flags.root_ca_file {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .with_context(|| format!("--root-ca-file {}", path.display()))?,
        ),
        None => None,
    };
    let token_signer =
        match &flags.service_account_private_key_file {
            Some(path) => Some(token_signer(path).with_context(|| {
                format!("--service-account-private-key-file {}", path.display())
            })?),
            None => None,
        };
    let signing = flags
        .cluster_signing_cert_file
        .zip(flags.cluster_signing_key_file)
        .map(|(certificate, key)| Signing {
            certificate,
            key,
            duration: flags.cluster_signing_duration,
        });
    if let Some(signing) = &signing {
        // What is wrong with it is to be known now, not with the first request.
        signing
            .authority()
            .map_err(|error| anyhow::anyhow!("--cluster-signing-cert-file: {error}"))?;
    }
    let settings = Settings {
        signing,
        cluster_cidr: flags.cluster_cidr.filter(|_| flags.allocate_node_cidrs),
        node_cidr_mask_size: flags.node_cidr_mask_size,
        root_ca,
        token_signer,
        node_monitor_grace_period: flags.node_monitor_grace_period,
        terminated_pod_gc_threshold: flags.terminated_pod_gc_threshold,
        autoscaling: controller_manager::podautoscaler::Options {
            sync_period: flags.horizontal_pod_autoscaler_sync_period,
            downscale_stabilization: flags.horizontal_pod_autoscaler_downscale_stabilization,
            tolerance: flags.horizontal_pod_autoscaler_tolerance,
            cpu_initialization_period: flags.horizontal_pod_autoscaler_cpu_initialization_period,
            initial_readiness_delay: flags.horizontal_pod_autoscaler_initial_readiness_delay,
        },
    };
    if flags.secure_port != 0 {
        let health = Arc::new(Health::new().authorize(api.clone()));
        let address = SocketAddr::new(flags.bind_address, flags.secure_port);
        health
            .serve(address, Transport::SelfSigned, &shutdown)
            .await?;
    }
    let work = |token: client::CancellationToken| {
        let context = Arc::new(Context::new(api.clone(), settings, &token));
        async move { controller_manager::run(context, &flags.controllers, token).await }
    };
    if flags.leader_elect {
        let election = client::leader::Election::new("kube-controller-manager");
        client::leader::run(api.clone(), election, &shutdown, work).await?;
    } else {
        work(shutdown.child_token()).await;
    }
    anyhow::ensure!(
        shutdown.is_cancelled(),
        "the controllers ended unexpectedly"
    );
    Ok(())
}
