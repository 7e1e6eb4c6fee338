//! The kubelet's own HTTPS server, as the API server and metrics collectors know it:
//! logs, exec, attach, port-forward, pods, statistics, metrics. Who may ask is decided by
//! the API server (`auth`); what is streamed goes over the runtime's streaming server (`stream`).

pub mod auth;
pub mod form;
pub mod logs;
pub mod metrics;
pub mod session;
pub mod spdy;
pub mod stats;
pub mod stream;
pub mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Router, middleware};
use client::CancellationToken;
use http::StatusCode;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use crate::context::Node;
use crate::model;

pub struct Server {
    pub node: Arc<Node>,
    pub auth: auth::Auth,
    pub stats: stats::Stats,
}

pub type Shared = Arc<Server>;

/// An answer that is an error: a status and plain text, as the kubelet's are.
pub type Refused = (StatusCode, String);

pub async fn run(node: Arc<Node>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let flags = node.flags.clone();
    tokio::spawn(healthz(flags.healthz_port, shutdown.clone()));
    let (Some(cert), Some(key)) = (&flags.tls_cert_file, &flags.tls_private_key_file) else {
        tracing::warn!(
            "no --tls-cert-file and --tls-private-key-file: logs, exec and statistics are not served"
        );
        shutdown.cancelled().await;
        return Ok(());
    };
    let tls = tls::server(cert, key, flags.client_ca_file.as_deref())?;
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let address = SocketAddr::new(flags.address, flags.port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    let server = Arc::new(Server {
        auth: auth::Auth::new(&node),
        stats: stats::Stats::default(),
        node,
    });
    let router = router(server);
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(connection(acceptor.clone(), stream, router.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn router(server: Shared) -> Router {
    let pod = "/{namespace}/{pod}";
    let with_uid = "/{namespace}/{pod}/{uid}/{container}";
    let container = "/{namespace}/{pod}/{container}";
    Router::new()
        .route("/pods", get(pods))
        .route("/pods/", get(pods))
        .route("/runningpods/", get(pods))
        .route(&format!("/containerLogs{container}"), get(logs::serve))
        .route(&format!("/exec{container}"), any(stream::exec))
        .route(&format!("/exec{with_uid}"), any(stream::exec))
        .route(&format!("/attach{container}"), any(stream::attach))
        .route(&format!("/attach{with_uid}"), any(stream::attach))
        .route(&format!("/run{container}"), post(stream::run))
        .route(&format!("/run{with_uid}"), post(stream::run))
        .route(&format!("/portForward{pod}"), any(stream::port_forward))
        .route(
            &format!("/portForward{pod}/{{uid}}"),
            any(stream::port_forward),
        )
        .route("/stats/summary", get(stats::summary).post(stats::summary))
        .route("/metrics", get(metrics::own))
        .route("/metrics/resource", get(metrics::resource))
        .route("/metrics/cadvisor", get(metrics::cadvisor))
        .route_layer(middleware::from_fn_with_state(server.clone(), auth::check))
        .route("/healthz", get(|| async { "ok" }))
        .with_state(server)
}

async fn connection(acceptor: tokio_rustls::TlsAcceptor, stream: TcpStream, router: Router) {
    // What goes wrong here concerns the peer alone.
    let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_secs(10), acceptor.accept(stream)).await
    else {
        return;
    };
    let user = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|c| c.first())
        .and_then(|c| tls::identity(c));
    let router = match user {
        Some(user) => router.layer(axum::Extension(user)),
        None => router,
    };
    let service = TowerToHyperService::new(router);
    let served = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(error, "a connection ended badly");
    }
}

/// Plain and on the loopback only, for whoever supervises the process.
async fn healthz(port: u16, shutdown: CancellationToken) {
    if port == 0 {
        return;
    }
    let listener = match TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, port)).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(port, %error, "no health checks on the loopback");
            return;
        }
    };
    let router: Router = Router::new().route("/healthz", get(|| async { "ok" }));
    let service = TowerToHyperService::new(router);
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        if let Ok((stream, _)) = accepted {
            let service = service.clone();
            tokio::spawn(async move {
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    }
}

async fn pods(State(server): State<Shared>) -> Response {
    let pods: Vec<Arc<Pod>> = server.node.pods.lock().values().cloned().collect();
    let items: Vec<&Pod> = pods.iter().map(AsRef::as_ref).collect();
    json(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

pub fn json(value: &serde_json::Value) -> Response {
    (
        [(http::header::CONTENT_TYPE, "application/json")],
        value.to_string(),
    )
        .into_response()
}

impl Server {
    /// The pod by namespace, name and, if given, uid.
    pub fn pod(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<Arc<Pod>, Refused> {
        let pods = self.node.pods.lock();
        let matching = pods
            .values()
            .filter(|p| model::name(p) == name && model::namespace(p) == namespace);
        let found = matching
            .filter(|p| uid.is_none_or(|uid| model::uid(p) == uid))
            .max_by_key(|p| p.metadata.creation_timestamp.clone());
        found
            .cloned()
            .ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod \"{name}\" not found")))
    }
}

pub fn internal(error: impl std::fmt::Display) -> Refused {
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}
