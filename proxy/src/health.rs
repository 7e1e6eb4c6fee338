//! What load balancers ask a node: `/healthz` and `/livez` of the proxy itself, and for every Service
//! with external policy `Local` a port of its own that says whether this node has endpoints for it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// How well the proxy follows the cluster. A change that waits longer than the timeout makes it unhealthy.
#[derive(Debug)]
pub struct Status {
    timeout: Duration,
    waiting_since: Option<Instant>,
    updated: Timestamp,
    /// False when the own node is unknown or about to leave: balancers should look elsewhere.
    pub node_eligible: bool,
}

pub type Shared = Arc<Mutex<Status>>;

impl Status {
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            waiting_since: None,
            updated: Timestamp::now(),
            node_eligible: false,
        }
    }

    pub fn queued(&mut self) {
        self.waiting_since.get_or_insert_with(Instant::now);
    }

    pub fn updated(&mut self) {
        self.waiting_since = None;
        self.updated = Timestamp::now();
    }

    pub fn healthy(&self) -> bool {
        self.waiting_since
            .is_none_or(|since| since.elapsed() < self.timeout)
    }

    /// As kube-proxy answers; `node` says whether the node's own state counts.
    fn answer(&self, node: bool) -> impl IntoResponse + use<> {
        let (healthy, now) = (self.healthy(), Timestamp::now());
        let good = healthy && (!node || self.node_eligible);
        let mut body = json!({
            "lastUpdated": if good { now } else { self.updated }.to_string(),
            "currentTime": now.to_string(),
            "healthy": healthy,
        });
        if node {
            body["nodeEligible"] = json!(self.node_eligible);
        }
        let code = if good {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        (
            code,
            [(header::CONTENT_TYPE, "application/json")],
            body.to_string(),
        )
    }
}

pub fn router(status: Shared) -> Router {
    let healthz = |State(status): State<Shared>| async move { status.lock().answer(true) };
    let livez = |State(status): State<Shared>| async move { status.lock().answer(false) };
    Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", get(livez))
        .with_state(status)
}

/// The ports of the Services' own health checks, opened and closed as the model says.
pub struct ServiceChecks {
    status: Shared,
    servers: BTreeMap<String, Server>,
}

struct Server {
    port: u16,
    endpoints: Arc<Mutex<usize>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ServiceChecks {
    pub fn new(status: Shared) -> Self {
        Self {
            status,
            servers: BTreeMap::new(),
        }
    }

    /// `wanted` gives for every Service its port and the number of ready endpoints on this node.
    pub async fn sync(&mut self, wanted: &BTreeMap<String, (u16, usize)>) {
        self.servers.retain(|service, server| {
            wanted
                .get(service)
                .is_some_and(|(port, _)| *port == server.port)
        });
        for (service, (port, count)) in wanted {
            if let Some(server) = self.servers.get(service) {
                *server.endpoints.lock() = *count;
                continue;
            }
            match TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port))).await {
                Ok(listener) => {
                    let endpoints = Arc::new(Mutex::new(*count));
                    let router = service_router(service, self.status.clone(), endpoints.clone());
                    let task = tokio::spawn(async move {
                        if let Err(error) = axum::serve(listener, router).await {
                            tracing::warn!(%error, "health check port closed");
                        }
                    });
                    self.servers.insert(
                        service.clone(),
                        Server {
                            port: *port,
                            endpoints,
                            task,
                        },
                    );
                }
                // Tried again with the next sync.
                Err(error) => {
                    tracing::warn!(service, port, %error, "cannot open health check port")
                }
            }
        }
    }
}

fn service_router(service: &str, status: Shared, endpoints: Arc<Mutex<usize>>) -> Router {
    let (namespace, name) = client::split_key(service);
    let service = json!({"namespace": namespace, "name": name});
    Router::new().fallback(move || {
        let (count, healthy) = (*endpoints.lock(), status.lock().healthy());
        let body = json!({
            "service": service, "localEndpoints": count, "serviceProxyHealthy": healthy,
        });
        let code = match count > 0 && healthy {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        let headers = [
            (header::CONTENT_TYPE, "application/json".to_owned()),
            (
                HeaderName::from_static("x-load-balancing-endpoint-weight"),
                count.to_string(),
            ),
        ];
        async move { (code, headers, body.to_string()) }
    })
}
