//! The HTTPS client of a webhook: a URL, or a Service whose endpoints are called directly.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::registry::Registry;
use crate::rest::connect::service_addresses;
use crate::strategy::check::text;

const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_ANSWER: usize = 64 << 20;

/// Where a webhook is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Url(String),
    Service {
        namespace: String,
        name: String,
        port: u16,
        path: String,
    },
}

pub struct Client {
    place: Place,
    /// PEM; empty: nobody vouches for it.
    authority: Vec<u8>,
    registry: Weak<Registry>,
}

impl Client {
    /// Reads a `clientConfig`.
    #[must_use]
    pub fn read(config: &Value, registry: Weak<Registry>) -> Self {
        let service = &config["service"];
        let place = if service.is_object() {
            Place::Service {
                namespace: text(service, "namespace").to_owned(),
                name: text(service, "name").to_owned(),
                port: service["port"]
                    .as_u64()
                    .and_then(|p| u16::try_from(p).ok())
                    .unwrap_or(443),
                path: text(service, "path").to_owned(),
            }
        } else {
            Place::Url(text(config, "url").to_owned())
        };
        Self {
            place,
            authority: STANDARD
                .decode(text(config, "caBundle"))
                .unwrap_or_default(),
            registry,
        }
    }

    /// Sends a document and gives back the one in the answer. Errors are text for a message.
    pub async fn post(&self, document: &Value) -> Result<Value, String> {
        let url = self.url();
        let shown = format!("Post {:?}", format!("{url}?timeout=30s"));
        match tokio::time::timeout(TIMEOUT, self.exchange(&url, document)).await {
            Ok(answer) => answer.map_err(|why| format!("{shown}: {why}")),
            Err(_) => Err(format!("{shown}: context deadline exceeded")),
        }
    }

    fn url(&self) -> String {
        match &self.place {
            Place::Url(url) => url.clone(),
            Place::Service {
                namespace,
                name,
                port,
                path,
            } => {
                let slash = if path.starts_with('/') { "" } else { "/" };
                format!("https://{name}.{namespace}.svc:{port}{slash}{path}")
            }
        }
    }

    async fn exchange(&self, url: &str, document: &Value) -> Result<Value, String> {
        let uri: Uri = url.parse().map_err(|error| format!("{error}"))?;
        let host = uri
            .host()
            .unwrap_or_default()
            .trim_matches(['[', ']'])
            .to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let stream = self.connect(&host, port).await?;
        let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
        let tls = TlsConnector::from(Arc::new(self.tls()?));
        let stream = tls
            .connect(name, stream)
            .await
            .map_err(|error| error.to_string())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let mark = if path.contains('?') { '&' } else { '?' };
        let request = Request::post(format!("{path}{mark}timeout=30s"))
            .header(HOST, format!("{host}:{port}"))
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json")
            .body(Full::new(Bytes::from(document.to_string())))
            .map_err(|error| error.to_string())?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        connection.abort();
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        if !status.is_success() {
            let said = String::from_utf8_lossy(&body[..body.len().min(1024)])
                .trim()
                .to_owned();
            return Err(format!("the server answered {status}: {said}"));
        }
        serde_json::from_slice(&body).map_err(|error| error.to_string())
    }

    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let addresses: Vec<SocketAddr> = match &self.place {
            Place::Url(_) => tokio::net::lookup_host((host, port))
                .await
                .map_err(|error| format!("dial tcp: lookup {host}: {error}"))?
                .collect(),
            Place::Service {
                namespace,
                name,
                port,
                ..
            } => {
                let registry = self
                    .registry
                    .upgrade()
                    .ok_or("the server is shutting down")?;
                service_addresses(&registry, namespace, name, &port.to_string())
                    .await
                    .map_err(|error| error.message)?
            }
        };
        let mut last = "no address".to_owned();
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = format!("dial tcp {address}: connect: {error}"),
            }
        }
        Err(last)
    }

    fn tls(&self) -> Result<rustls::ClientConfig, String> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&self.authority) {
            let certificate = certificate.map_err(|error| error.to_string())?;
            roots.add(certificate).map_err(|error| error.to_string())?;
        }
        Ok(rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn places() {
        let read = |config: Value| Client::read(&config, Weak::new()).url();
        assert_eq!(read(json!({"url": "https://a/b"})), "https://a/b");
        let service = json!({"service": {"namespace": "n", "name": "s", "path": "convert"}});
        assert_eq!(read(service), "https://s.n.svc:443/convert");
    }

    #[tokio::test]
    async fn failures_name_the_address() {
        let client = Client::read(&json!({"url": "https://127.0.0.1:1/x"}), Weak::new());
        let error = client.post(&json!({})).await.unwrap_err();
        assert!(
            error.starts_with("Post \"https://127.0.0.1:1/x?timeout=30s\": dial tcp 127.0.0.1:1"),
            "{error}"
        );
    }
}
