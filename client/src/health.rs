//! The small HTTP server of every component: `/healthz`, `/livez`, `/readyz` and Prometheus `/metrics`.
//!
//! Served in the clear on loopback (kubelet 10248, proxy 10256) or with a self-signed certificate, as Kubernetes'
//! controller manager (10257) and scheduler (10259) do by default. Health is for everyone; where a client to ask is
//! given, metrics are for those whom the API server knows (TokenReview) and lets read them (SubjectAccessReview).

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Answers whether one aspect of the component is well, and why not.
pub type Check = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What a component's health server serves.
#[derive(Default)]
pub struct Health {
    checks: Vec<(&'static str, Check)>,
    /// Where the component registers its metrics.
    pub metrics: Mutex<Registry>,
    authorizer: Option<kube::Client>,
}

/// How the port is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Http,
    /// HTTPS with a certificate made at start for localhost.
    SelfSigned,
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    #[error("self-signed certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("self-signed certificate: {0}")]
    Tls(#[from] rustls::Error),
}

impl Health {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check to `/healthz`, `/livez` and `/readyz`; it is also served under its own name.
    pub fn check(
        mut self,
        name: &'static str,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.checks.push((name, Box::new(check)));
        self
    }

    /// Asks the API server who may read the metrics. Without this, everyone who reaches the port may.
    pub fn authorize(mut self, client: kube::Client) -> Self {
        self.authorizer = Some(client);
        self
    }

    /// Serves in the background until `shutdown`. Returns the bound address (of interest with port 0).
    pub async fn serve(
        self: &Arc<Self>,
        address: SocketAddr,
        transport: Transport,
        shutdown: &CancellationToken,
    ) -> Result<SocketAddr, Error> {
        let tls = match transport {
            Transport::Http => None,
            Transport::SelfSigned => Some(self_signed()?),
        };
        let listener = TcpListener::bind(address)
            .await
            .map_err(|e| Error::Listen(address, e))?;
        let bound = listener
            .local_addr()
            .map_err(|e| Error::Listen(address, e))?;
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/{endpoint}", get(health))
            .route("/{endpoint}/{check}", get(one_check))
            .with_state(self.clone());
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! { () = shutdown.cancelled() => return, a = listener.accept() => a };
                match accepted {
                    Ok((stream, _)) => {
                        tokio::spawn(connection(
                            stream,
                            tls.clone(),
                            router.clone(),
                            shutdown.clone(),
                        ));
                    }
                    // Out of file descriptors, most likely: leave time for some to be closed.
                    Err(error) => {
                        tracing::warn!(%error, "health server cannot accept");
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    }
                }
            }
        });
        Ok(bound)
    }

    fn failing(&self) -> Vec<(&'static str, Result<(), String>)> {
        self.checks
            .iter()
            .map(|(name, check)| (*name, check()))
            .collect()
    }
}

async fn connection(
    stream: tokio::net::TcpStream,
    tls: Option<tokio_rustls::TlsAcceptor>,
    router: Router,
    shutdown: CancellationToken,
) {
    let server = auto::Builder::new(TokioExecutor::new());
    let service = TowerToHyperService::new(router);
    let serve = async {
        match tls {
            None => server
                .serve_connection(TokioIo::new(stream), service)
                .await
                .map_err(|e| e.to_string()),
            Some(tls) => {
                let stream = tls.accept(stream).await.map_err(|e| e.to_string())?;
                server
                    .serve_connection(TokioIo::new(stream), service)
                    .await
                    .map_err(|e| e.to_string())
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        done = serve => if let Err(error) = done { tracing::debug!(error, "health connection") },
    }
}

fn self_signed() -> Result<tokio_rustls::TlsAcceptor, Error> {
    let made =
        rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tokio_rustls::TlsAcceptor::from(Arc::new(config)))
}

async fn health(
    State(health): State<Arc<Health>>,
    Path(endpoint): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    if !["healthz", "livez", "readyz"].contains(&endpoint.as_str()) {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    }
    let results = health.failing();
    let well = results.iter().all(|(_, result)| result.is_ok());
    if well && !query.is_some_and(|q| q.split('&').any(|p| p.split('=').next() == Some("verbose")))
    {
        return "ok".into_response();
    }
    let mut text: String = results
        .iter()
        .map(|(name, result)| match result {
            Ok(()) => format!("[+]{name} ok\n"),
            Err(why) => format!("[-]{name} failed: {why}\n"),
        })
        .collect();
    text.push_str(&format!(
        "{endpoint} check {}\n",
        if well { "passed" } else { "failed" }
    ));
    let status = if well {
        StatusCode::OK
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    };
    (status, text).into_response()
}

async fn one_check(
    State(health): State<Arc<Health>>,
    Path((endpoint, check)): Path<(String, String)>,
) -> Response {
    let found = health.checks.iter().find(|(name, _)| *name == check);
    match found.filter(|_| ["healthz", "livez", "readyz"].contains(&endpoint.as_str())) {
        None => (StatusCode::NOT_FOUND, "404 page not found\n").into_response(),
        Some((_, check)) => match check() {
            Ok(()) => "ok".into_response(),
            Err(why) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("internal server error: {why}\n"),
            )
                .into_response(),
        },
    }
}

async fn metrics(State(health): State<Arc<Health>>, headers: HeaderMap) -> Response {
    if let Some(client) = &health.authorizer {
        match may_read_metrics(client, &headers).await {
            Ok(true) => {}
            Ok(false) => return (StatusCode::FORBIDDEN, "Forbidden\n").into_response(),
            Err(status) => return (status, format!("{status}\n")).into_response(),
        }
    }
    let mut text = String::new();
    if prometheus_client::encoding::text::encode_registry(&mut text, &health.metrics.lock())
        .is_err()
    {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let text = text.replace("# EOF\n", "") + &process_metrics();
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
        .into_response()
}

async fn may_read_metrics(client: &kube::Client, headers: &HeaderMap) -> Result<bool, StatusCode> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|h| h.to_str().ok())
        .and_then(|h| h.strip_prefix("Bearer "));
    let token = bearer.ok_or(StatusCode::UNAUTHORIZED)?.trim().to_owned();
    let review = TokenReview {
        spec: TokenReviewSpec {
            token,
            audiences: None,
        },
        ..Default::default()
    };
    let unavailable = |_| StatusCode::INTERNAL_SERVER_ERROR;
    let review = Api::all(client.clone())
        .create(&PostParams::default(), &review)
        .await
        .map_err(unavailable)?;
    let status = review
        .status
        .filter(|s| s.authenticated == Some(true))
        .ok_or(StatusCode::UNAUTHORIZED)?;
    let user = status.user.unwrap_or_default();
    let access = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: user.username,
            uid: user.uid,
            groups: user.groups,
            extra: user.extra,
            non_resource_attributes: Some(NonResourceAttributes {
                path: Some("/metrics".into()),
                verb: Some("get".into()),
            }),
            resource_attributes: None,
        },
        ..Default::default()
    };
    let access = Api::all(client.clone())
        .create(&PostParams::default(), &access)
        .await
        .map_err(unavailable)?;
    Ok(access.status.is_some_and(|s| s.allowed))
}

/// What Prometheus' client libraries say about every process.
fn process_metrics() -> String {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields count from after the command's closing parenthesis; the first is field 3 of proc(5).
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| {
            rest.split_whitespace()
                .map(|f| f.parse().unwrap_or(0))
                .collect()
        })
        .unwrap_or_default();
    let field = |n: usize| fields.get(n - 3).copied().unwrap_or(0);
    // Linux reports in ticks of 10 ms and in pages of 4 KiB on every machine that this is built for.
    let cpu = (field(14) + field(15)) as f64 / 100.0;
    let resident = field(24) * 4096;
    let files = std::fs::read_dir("/proc/self/fd")
        .map(|d| d.count())
        .unwrap_or(0);
    format!(
        "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total {cpu}\n\
         # TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {resident}\n\
         # TYPE process_open_fds gauge\nprocess_open_fds {files}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt;

    async fn status_of(health: Health, path: &str) -> StatusCode {
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/{endpoint}", get(super::health))
            .route("/{endpoint}/{check}", get(one_check))
            .with_state(Arc::new(health));
        router
            .oneshot(Request::get(path).body(Body::empty()).unwrap())
            .await
            .unwrap()
            .status()
    }

    #[tokio::test]
    async fn health_follows_the_checks() {
        for (path, well, want) in [
            ("/healthz", true, StatusCode::OK),
            ("/healthz", false, StatusCode::INTERNAL_SERVER_ERROR),
            ("/readyz?verbose", true, StatusCode::OK),
            ("/livez/lease", false, StatusCode::INTERNAL_SERVER_ERROR),
            ("/livez/other", true, StatusCode::NOT_FOUND),
            ("/else", true, StatusCode::NOT_FOUND),
            ("/metrics", false, StatusCode::OK),
        ] {
            let health =
                Health::new().check(
                    "lease",
                    move || if well { Ok(()) } else { Err("lost".into()) },
                );
            assert_eq!(status_of(health, path).await, want, "{path}");
        }
    }

    #[tokio::test]
    async fn serves_self_signed_tls() {
        crate::init();
        let shutdown = CancellationToken::new();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let bound = Arc::new(Health::new())
            .serve(address, Transport::SelfSigned, &shutdown)
            .await
            .unwrap();
        assert_ne!(bound.port(), 0);
        shutdown.cancel();
    }
}
