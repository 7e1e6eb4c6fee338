//! Calls to servers outside: webhooks named by a kubeconfig file, and issuers of tokens.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use crate::server::tls;
use crate::strategy::check::{flag, list, text};

const MAX_ANSWER: usize = 4 << 20;
const IDLE: Duration = Duration::from_secs(90);
/// Where distributions keep the authorities that everybody trusts.
const SYSTEM_ROOTS: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// The authorities that the system trusts.
pub fn system_roots() -> Result<RootCertStore> {
    let found = SYSTEM_ROOTS
        .iter()
        .map(Path::new)
        .find(|path| path.exists());
    found.map_or_else(|| Ok(RootCertStore::empty()), tls::roots)
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
    pool: Pool<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: Option<Uri>,
    credentials: Credentials,
}

enum Credentials {
    None,
    Header(HeaderValue),
    /// Read again with every call: somebody renews it.
    TokenFile(PathBuf),
}

impl Client {
    /// For any URL, under these authorities.
    #[must_use]
    pub fn new(roots: RootCertStore) -> Self {
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self::with(config, None, None, Credentials::None)
    }

    fn with(
        config: ClientConfig,
        server_name: Option<String>,
        base: Option<Uri>,
        credentials: Credentials,
    ) -> Self {
        let builder = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http();
        let builder = match server_name.and_then(|name| name.try_into().ok()) {
            Some(name) => {
                builder.with_server_name_resolver(hyper_rustls::FixedServerNameResolver::new(name))
            }
            None => builder,
        };
        let connector = builder.enable_http1().enable_http2().build();
        let pool = Pool::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Self {
            pool,
            base,
            credentials,
        }
    }

    /// From a kubeconfig file, as Kubernetes configures its webhooks: the current context says where and as whom.
    pub fn from_kubeconfig(path: &Path) -> Result<Self> {
        let content =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let document: Value = serde_saphyr::from_str(&content)
            .with_context(|| format!("reading {}", path.display()))?;
        let directory = path.parent().unwrap_or(Path::new("."));
        Self::from_document(&document, directory).with_context(|| format!("in {}", path.display()))
    }

    fn from_document(document: &Value, directory: &Path) -> Result<Self> {
        let named = |section: &str, name: &str| {
            list(document, section)
                .iter()
                .find(|entry| text(entry, "name") == name)
        };
        let context = match text(document, "current-context") {
            "" => list(document, "contexts").first(),
            name => named("contexts", name),
        };
        let context = context.context("no current context")?;
        let cluster = named("clusters", text(&context["context"], "cluster"))
            .context("the context's cluster is missing")?;
        let cluster = &cluster["cluster"];
        let nobody = Value::Null;
        let user =
            named("users", text(&context["context"], "user")).map_or(&nobody, |user| &user["user"]);
        let base: Uri = text(cluster, "server").parse().context("server")?;
        if base.authority().is_none() || base.scheme().is_none() {
            bail!("server {:?} is no URL", text(cluster, "server"));
        }
        let builder = ClientConfig::builder();
        let authority = material(cluster, "certificate-authority", directory)?;
        let builder = if flag(cluster, "insecure-skip-tls-verify") {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(tls::Unverified::default()))
        } else {
            builder.with_root_certificates(match authority {
                Some(pem) => roots(&pem)?,
                None => system_roots()?,
            })
        };
        let certificate = material(user, "client-certificate", directory)?;
        let key = material(user, "client-key", directory)?;
        let config = match (certificate, key) {
            (Some(certificate), Some(key)) => builder.with_client_auth_cert(
                CertificateDer::pem_slice_iter(&certificate).collect::<Result<_, _>>()?,
                PrivateKeyDer::from_pem_slice(&key)?,
            )?,
            _ => builder.with_no_client_auth(),
        };
        let server_name = Some(text(cluster, "tls-server-name"))
            .filter(|name| !name.is_empty())
            .map(str::to_owned);
        Ok(Self::with(
            config,
            server_name,
            Some(base),
            credentials(user, directory)?,
        ))
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
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri.clone();
        let json = HeaderValue::from_static("application/json");
        let headers = request.headers_mut();
        headers.insert(ACCEPT, json.clone());
        headers.insert(CONTENT_TYPE, json);
        if let Some(credentials) = self.authorization().map_err(|error| failed(&error))? {
            headers.insert(AUTHORIZATION, credentials);
        }
        let exchange = async {
            let response = self
                .pool
                .request(request)
                .await
                .map_err(|error| failed(&chain(&error)))?;
            let code = response.status();
            let bytes = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await
                .map_err(|error| failed(&error))?
                .to_bytes();
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
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(failed(&"no answer in time")),
        }
    }

    fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        let token = |text: &str| HeaderValue::from_str(&format!("Bearer {}", text.trim()));
        match &self.credentials {
            Credentials::None => Ok(None),
            Credentials::Header(value) => Ok(Some(value.clone())),
            Credentials::TokenFile(path) => {
                let read = std::fs::read_to_string(path)
                    .map_err(|error| format!("{}: {error}", path.display()))?;
                token(&read).map(Some).map_err(|error| error.to_string())
            }
        }
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

/// A field's `-data` in base64, or the file that it names, relative to the kubeconfig's own place.
fn material(object: &Value, field: &str, directory: &Path) -> Result<Option<Vec<u8>>> {
    let data = text(object, &format!("{field}-data"));
    if !data.is_empty() {
        return Ok(Some(
            STANDARD
                .decode(data)
                .with_context(|| format!("{field}-data"))?,
        ));
    }
    match text(object, field) {
        "" => Ok(None),
        file => {
            let path = directory.join(file);
            let read = std::fs::read(&path);
            Ok(Some(
                read.with_context(|| format!("reading {}", path.display()))?,
            ))
        }
    }
}

fn credentials(user: &Value, directory: &Path) -> Result<Credentials> {
    let file = text(user, "tokenFile");
    if !file.is_empty() {
        return Ok(Credentials::TokenFile(directory.join(file)));
    }
    let token = text(user, "token");
    if !token.is_empty() {
        return Ok(Credentials::Header(format!("Bearer {token}").parse()?));
    }
    let name = text(user, "username");
    if name.is_empty() {
        return Ok(Credentials::None);
    }
    let pair = STANDARD.encode(format!("{name}:{}", text(user, "password")));
    Ok(Credentials::Header(format!("Basic {pair}").parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kubeconfigs_say_where_and_as_whom() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let document = json!({
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": "https://hook.example.com/review", "insecure-skip-tls-verify": true}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        });
        let client = Client::from_document(&document, Path::new(".")).unwrap();
        assert_eq!(client.base.as_ref().unwrap().path(), "/review");
        assert_eq!(client.authorization().unwrap().unwrap(), "Bearer t");
        for (pointer, bad) in [
            ("/current-context", json!("other")),
            ("/clusters/0/name", json!("other")),
            ("/clusters/0/cluster/server", json!("nonsense")),
        ] {
            let mut document = document.clone();
            *document.pointer_mut(pointer).unwrap() = bad;
            assert!(
                Client::from_document(&document, Path::new(".")).is_err(),
                "{pointer}"
            );
        }
    }
}
