//! Calls to servers outside: webhooks of objects, webhooks that kubeconfig files name ([`kubeconfig`]), and issuers of
//! tokens. They all speak JSON over one kind of client, which keeps its connections; [`dial`] makes them.

mod dial;
mod kubeconfig;
pub mod webhook;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

pub use dial::ServicePort;

use dial::Dialer;
use kubeconfig::Credentials;

use crate::server::tls;

const MAX_ANSWER: usize = 64 << 20;
const IDLE: Duration = Duration::from_secs(90);
/// Where distributions keep the authorities that everybody trusts.
const SYSTEM_ROOTS: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// The authorities that the system trusts.
pub fn system_roots() -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let found = SYSTEM_ROOTS
        .iter()
        .map(Path::new)
        .find(|path| path.exists());
    if let Some(path) = found {
        let pem = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        // One that this library does not take is no reason to trust none.
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
    }
    Ok(roots)
}

/// Why a call gave nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The other side has said no: asking again does not help.
    #[error("the server answered {0}: {1}")]
    Refused(u16, String),
    #[error("{0}")]
    Failed(String),
}

/// A client with its connections.
pub struct Client {
    pool: Pool<HttpsConnector<Dialer>, Full<Bytes>>,
    base: Option<Uri>,
    credentials: Credentials,
}

/// What is spoken over TLS.
#[derive(Clone, Copy)]
enum Protocols {
    /// Kubernetes calls the webhooks of objects so: a connection that hangs holds up one call only.
    Http1,
    All,
}

fn pool(
    config: ClientConfig,
    server_name: Option<String>,
    dialer: Dialer,
    protocols: Protocols,
) -> Pool<HttpsConnector<Dialer>, Full<Bytes>> {
    let builder = HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http();
    let builder = match server_name.and_then(|name| name.try_into().ok()) {
        Some(name) => {
            builder.with_server_name_resolver(hyper_rustls::FixedServerNameResolver::new(name))
        }
        None => builder,
    };
    let builder = builder.enable_http1();
    let connector = match protocols {
        Protocols::Http1 => builder.wrap_connector(dialer),
        Protocols::All => builder.enable_http2().wrap_connector(dialer),
    };
    Pool::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE)
        .pool_timer(TokioTimer::new())
        .build(connector)
}

impl Client {
    /// For any URL, under these authorities.
    #[must_use]
    pub fn new(roots: RootCertStore) -> Self {
        Self::dialing(roots, Dialer::default(), Protocols::All)
    }

    fn dialing(roots: RootCertStore, dialer: Dialer, protocols: Protocols) -> Self {
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            pool: pool(config, None, dialer, protocols),
            base: None,
            credentials: Credentials::None,
        }
    }

    /// For servers whose certificates nobody vouches for.
    #[must_use]
    pub fn unverified() -> Self {
        let config = ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(tls::Unverified::default()))
            .with_no_client_auth();
        Self {
            pool: pool(config, None, Dialer::default(), Protocols::All),
            base: None,
            credentials: Credentials::None,
        }
    }

    /// What a health check says: `Ok` if the server is well, in its own words either way.
    pub async fn probe(&self, url: &'static str, timeout: Duration) -> Result<String, String> {
        let uri = Uri::from_static(url);
        match self.exchange(Method::GET, uri, Bytes::new(), timeout).await {
            Ok((code, said)) if code.is_success() || code.is_redirection() => {
                Ok(String::from_utf8_lossy(&said).into_owned())
            }
            Ok((code, _)) => Err(format!(
                "HTTP probe failed with statuscode: {}",
                code.as_u16()
            )),
            Err(Unanswered::Late) => Err(format!("Get {url:?}: no answer in time")),
            Err(Unanswered::Broken(why, _)) => Err(format!("Get {url:?}: {why}")),
        }
    }

    /// A JSON document from a URL.
    pub async fn get(&self, url: &str, timeout: Duration) -> Result<Value, CallError> {
        let uri = url
            .parse()
            .map_err(|error| CallError::Failed(format!("{url}: {error}")))?;
        self.call(Method::GET, uri, Bytes::new(), timeout).await
    }

    /// The answer to a JSON document that is sent to the kubeconfig's server.
    pub async fn post(&self, body: &Value, timeout: Duration) -> Result<Value, CallError> {
        let base = self.base.clone();
        let uri = base.ok_or_else(|| CallError::Failed("no server is configured".into()))?;
        self.call(Method::POST, uri, body.to_string().into(), timeout)
            .await
    }

    async fn call(
        &self,
        method: Method,
        uri: Uri,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Value, CallError> {
        let failed = |error: &dyn std::fmt::Display| CallError::Failed(format!("{uri}: {error}"));
        let exchanged = self.exchange(method, uri.clone(), body, timeout).await;
        let (code, bytes) = exchanged.map_err(|unanswered| match unanswered {
            Unanswered::Late => failed(&"no answer in time"),
            Unanswered::Broken(why, _) => failed(&why),
        })?;
        if code.is_success() {
            if bytes.is_empty() {
                return Ok(Value::Null);
            }
            return serde_json::from_slice(&bytes).map_err(|error| failed(&error));
        }
        let said = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).into_owned();
        match code.as_u16() {
            429 | 500.. => Err(failed(&format!("{code}: {said}"))),
            code => Err(CallError::Refused(code, said)),
        }
    }

    /// Sends one request and reads the whole answer.
    async fn exchange(
        &self,
        method: Method,
        uri: Uri,
        body: Bytes,
        timeout: Duration,
    ) -> Result<(StatusCode, Bytes), Unanswered> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        let json = HeaderValue::from_static("application/json");
        let headers = request.headers_mut();
        headers.insert(ACCEPT, json.clone());
        headers.insert(CONTENT_TYPE, json);
        let credentials = self.credentials.header();
        let credentials = credentials.map_err(|why| Unanswered::Broken(why.clone(), why))?;
        if let Some(credentials) = credentials {
            headers.insert(AUTHORIZATION, credentials);
        }
        let exchange = async {
            let response = self.pool.request(request).await;
            let response = response.map_err(|error| Unanswered::because(&error))?;
            let code = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect();
            let body = body.await;
            let body = body.map_err(|error| Unanswered::because(&*error))?;
            Ok((code, body.to_bytes()))
        };
        let answered = tokio::time::timeout(timeout, exchange).await;
        answered.unwrap_or(Err(Unanswered::Late))
    }
}

/// What comes of a request besides an answer.
enum Unanswered {
    Late,
    /// All that is known of why, and the innermost reason alone.
    Broken(String, String),
}

impl Unanswered {
    fn because(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut innermost = error;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        Self::Broken(chain(error), innermost.to_string())
    }
}

/// What went wrong, to the innermost cause.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// All certificates of a PEM text, to be trusted.
pub fn roots(pem: &[u8]) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.context("not PEM")?)?;
    }
    anyhow::ensure!(!roots.is_empty(), "no certificate");
    Ok(roots)
}
