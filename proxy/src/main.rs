//! `proxy`: the service proxy of one node. See the library for how it works.

use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use client::health::{Health, Transport};
use parking_lot::Mutex;
use proxy::backend::Backend;
use proxy::health;
use proxy::iptables::Iptables;
use proxy::model::Family;
use proxy::options::{Options, listen_address};
use proxy::server::{self, Metrics, Plane, Proxy};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    client::init();
    let options = Options::parse().complete()?;
    let planes =
        FAMILIES.map(|family| Plane::new(family, Iptables::new(family, options.rules(family))));
    if options.cleanup {
        for mut plane in planes {
            plane.backend.cleanup().await?;
        }
        return Ok(());
    }
    run(options, planes.into()).await
}

async fn run(options: Options, planes: Vec<Plane<Iptables>>) -> anyhow::Result<()> {
    let shutdown = client::shutdown_signal();
    if options.rules(Family::V4).localhost_node_ports {
        std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1")
            .context("cannot set route_localnet for node ports on 127.0.0.1 (--iptables-localhost-nodeports=false does without)")?;
    }
    let node = options.node_name()?;
    let agent = concat!("proxy/", env!("CARGO_PKG_VERSION"));
    let api = client::connect(options.kubeconfig.as_deref(), agent).await?;
    let status = Arc::new(Mutex::new(health::Status::new(
        options.iptables_sync_period * 2,
    )));
    if let Some(address) = listen_address(&options.healthz_bind_address)? {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on --healthz-bind-address {address}"))?;
        tokio::spawn(axum::serve(listener, health::router(status.clone())).into_future());
    }
    let monitor = Arc::new(Health::new());
    let metrics = Metrics::register(&mut monitor.metrics.lock());
    if let Some(address) = listen_address(&options.metrics_bind_address)? {
        monitor.serve(address, Transport::Http, &shutdown).await?;
    }
    tracing::info!(node, mode = "iptables", "proxy started");
    let proxy = Proxy {
        planes,
        status,
        metrics,
        check_period: options.iptables_sync_period,
        max_delay: options.iptables_min_sync_period,
        node: node.clone(),
    };
    proxy.run(server::watch(&api, &node), &shutdown).await;
    Ok(())
}
