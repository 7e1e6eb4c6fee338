//! The `scheduler` binary: flags, leader election, health.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use client::health::{Health, Transport};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Assigns pods to nodes.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// Credentials and address of the API server; without it, those of the environment or the pod.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Stand by for other instances.
    #[arg(long, default_value = "true", action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    leader_elect: bool,
    /// Address of the health and metrics port.
    #[arg(long, default_value = "0.0.0.0")]
    bind_address: IpAddr,
    /// Port for health and metrics, HTTPS; 0 for none.
    #[arg(long, default_value_t = 10259)]
    secure_port: u16,
    /// Pods with this spec.schedulerName are scheduled.
    #[arg(long, default_value = "default-scheduler")]
    scheduler_name: String,
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
    let agent = concat!("scheduler/", env!("CARGO_PKG_VERSION"));
    let api = client::connect(flags.kubeconfig.as_deref(), agent).await?;
    if flags.secure_port != 0 {
        let health = Arc::new(Health::new().authorize(api.clone()));
        let address = SocketAddr::new(flags.bind_address, flags.secure_port);
        health
            .serve(address, Transport::SelfSigned, &shutdown)
            .await?;
    }
    let work = |token| scheduler::shell::run(api.clone(), flags.scheduler_name, token);
    if flags.leader_elect {
        let election = client::leader::Election::new("kube-scheduler");
        client::leader::run(api.clone(), election, &shutdown, work).await?;
    } else {
        work(shutdown.child_token()).await;
    }
    anyhow::ensure!(shutdown.is_cancelled(), "the scheduler ended unexpectedly");
    Ok(())
}
