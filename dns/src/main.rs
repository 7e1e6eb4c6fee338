//! `dns`: the cluster's DNS server. See the library for how it works.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use clap::Parser;
use client::health::{Health, Transport};
use client::informer::events;
use dns::forward::parse_resolv_conf;
use dns::index::Change;
use dns::server::{Metrics, Server};
use dns::zone::Zone;
use futures::{StreamExt, stream};
use kube::Api;
use kube::runtime::watcher::Config;
use tokio::net::{TcpListener, UdpSocket};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Clients still ask for a moment after they could know that this server goes.
const LINGER: Duration = Duration::from_secs(3);

/// Answers for the names of a cluster.
#[derive(Debug, Parser)]
#[command(name = "dns", version)]
struct Options {
    /// Kubeconfig file; without it, the pod's service account
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// The cluster's domain
    #[arg(long, default_value = "cluster.local")]
    domain: String,
    /// Where to serve, over UDP and TCP
    #[arg(long, default_value = "0.0.0.0:53")]
    bind_address: SocketAddr,
    /// Servers for all other names [default: those of /etc/resolv.conf]
    #[arg(long, value_delimiter = ',', value_parser = upstream)]
    upstream: Vec<SocketAddr>,
    /// Where /health is served
    #[arg(long, default_value = "0.0.0.0:8080")]
    health_bind_address: SocketAddr,
    /// Where /ready is served
    #[arg(long, default_value = "0.0.0.0:8181")]
    ready_bind_address: SocketAddr,
    /// Where /metrics is served
    #[arg(long, default_value = "0.0.0.0:9153")]
    metrics_bind_address: SocketAddr,
}

/// An address, with port 53 unless it says another.
fn upstream(text: &str) -> Result<SocketAddr, String> {
    let address = text
        .parse()
        .or_else(|_| text.parse().map(|ip| SocketAddr::new(ip, 53)));
    address.map_err(|_| format!("{text:?} is neither an address nor an address with a port"))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    client::init();
    let options = Options::parse();
    let shutdown = client::shutdown_signal();
    let zone =
        Zone::new(&options.domain).with_context(|| format!("--domain {:?}", options.domain))?;
    let upstreams = match options.upstream.is_empty() {
        true => parse_resolv_conf(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        false => options.upstream,
    };
    if upstreams.is_empty() {
        tracing::warn!(
            "no upstream server: names outside {} are refused",
            options.domain
        );
    }
    let agent = concat!("dns/", env!("CARGO_PKG_VERSION"));
    let api = client::connect(options.kubeconfig.as_deref(), agent).await?;
    let monitor = Arc::new(Health::new());
    let metrics = Metrics::register(&mut monitor.metrics.lock());
    let server = Arc::new(Server::new(zone, upstreams, metrics));

    let context = || format!("cannot serve on --bind-address {}", options.bind_address);
    let udp = UdpSocket::bind(options.bind_address)
        .await
        .with_context(context)?;
    let tcp = TcpListener::bind(options.bind_address)
        .await
        .with_context(context)?;
    tokio::spawn(server.clone().serve_udp(udp));
    tokio::spawn(server.clone().serve_tcp(tcp));
    tokio::spawn(follow(api, server.clone()));

    serve(
        options.health_bind_address,
        Router::new().route("/health", get(|| async { "OK" })),
    )
    .await?;
    let (ready, leaving) = (server.clone(), shutdown.clone());
    let ready = move || async move {
        let good = ready.index.lock().synced() && !leaving.is_cancelled();
        if good {
            (StatusCode::OK, "OK")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "kubernetes")
        }
    };
    serve(
        options.ready_bind_address,
        Router::new().route("/ready", get(ready)),
    )
    .await?;
    // Not with the same token: metrics stay to the end.
    monitor
        .serve(
            options.metrics_bind_address,
            Transport::Http,
            &client::CancellationToken::new(),
        )
        .await?;
    tracing::info!(address = %options.bind_address, domain = options.domain, "dns started");

    shutdown.cancelled().await;
    tokio::time::sleep(LINGER).await;
    Ok(())
}

async fn serve(address: SocketAddr, router: Router) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot serve on {address}"))?;
    tokio::spawn(axum::serve(listener, router).into_future());
    Ok(())
}

/// Keeps the index up to date, for ever.
async fn follow(api: kube::Client, server: Arc<Server>) {
    let default = Config::default;
    let mut changes = stream::select_all([
        events(Api::all(api.clone()), default())
            .map(Change::Service)
            .boxed(),
        events(Api::all(api.clone()), default())
            .map(Change::Slice)
            .boxed(),
        events(Api::all(api), default())
            .map(Change::Namespace)
            .boxed(),
    ]);
    while let Some(change) = changes.next().await {
        server.index.lock().apply(change);
    }
}
