//! Connecting to an API server: one HTTP/2 connection that carries every request and watch of a component.
//!
//! kube-rs' own stack speaks HTTP/1.1, where every open watch holds a TLS connection and its buffers on both
//! sides. This stack offers HTTP/2 by ALPN and falls back to HTTP/1.1 when the server does not take it. Tokens
//! from files are read again as they are rotated (kube-rs does so), and dead connections are found by pings.

use std::path::Path;
use std::time::Duration;

use http::HeaderValue;
use http::header::USER_AGENT;
use hyper_util::client::legacy::{Builder, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use tower::{BoxError, ServiceBuilder};

/// As client-go: a connection on which nothing arrived for so long is asked whether it lives.
const PING_AFTER: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why no client could be made. None of these is about the server: connecting happens on the first request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("kubeconfig {path}: {source}")]
    Kubeconfig {
        path: String,
        source: kube::config::KubeconfigError,
    },
    #[error("neither a kubeconfig nor an in-cluster service account was found: {0}")]
    Infer(#[from] kube::config::InferConfigError),
    #[error("client certificate, key or authority: {0}")]
    Credentials(#[source] kube::Error),
    #[error("user agent {0:?} is no header value")]
    UserAgent(String),
    #[error("TLS server name {0:?}: {1}")]
    ServerName(String, String),
}

/// Reads the kubeconfig at `path`, or, without one, what kubectl would use (`$KUBECONFIG`, `~/.kube/config`) and
/// then the pod's service account.
pub async fn config(path: Option<&Path>) -> Result<Config, Error> {
    let Some(path) = path else {
        return Ok(Config::infer().await?);
    };
    let fail = |source| Error::Kubeconfig {
        path: path.display().to_string(),
        source,
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(fail)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(fail)
}

/// A client from a kubeconfig file, or from the environment without one. `user_agent` names the component to the
/// server, as in `scheduler/0.1.0`.
pub async fn connect(kubeconfig: Option<&Path>, user_agent: &str) -> Result<kube::Client, Error> {
    connect_with(config(kubeconfig).await?, user_agent)
}

/// A client from a configuration. Every client made has a connection of its own.
///
/// Upgrades (exec, attach, port-forward) need HTTP/1.1: for them use `kube::Client::try_from(config)`.
pub fn connect_with(mut config: Config, user_agent: &str) -> Result<kube::Client, Error> {
    let agent =
        HeaderValue::from_str(user_agent).map_err(|_| Error::UserAgent(user_agent.to_owned()))?;
    config.headers.retain(|(name, _)| name != USER_AGENT);
    config.headers.push((USER_AGENT, agent));

    let tls = config.rustls_client_config().map_err(Error::Credentials)?;
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(PING_AFTER));
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let https = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http();
    let https = match &config.tls_server_name {
        Some(name) => {
            let name = rustls::pki_types::ServerName::try_from(name.clone())
                .map_err(|e| Error::ServerName(name.clone(), e.to_string()))?;
            https.with_server_name_resolver(hyper_rustls::FixedServerNameResolver::new(name))
        }
        None => https,
    };
    let connector = https.enable_http1().enable_http2().wrap_connector(tcp);

    let http: hyper_util::client::legacy::Client<_, Body> = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_initial_stream_window_size(1 << 20)
        .http2_initial_connection_window_size(8 << 20)
        .http2_keep_alive_interval(PING_AFTER)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(Error::Credentials)?)
        .layer(config.extra_headers_layer().map_err(Error::Credentials)?)
        .map_err(BoxError::from)
        .service(http);
    Ok(kube::Client::new(service, config.default_namespace))
}
