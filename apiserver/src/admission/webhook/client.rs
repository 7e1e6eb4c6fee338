//! HTTPS to webhooks. Connections are kept and used again, one pool for each place and the certificates it is trusted by.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use apimachinery::selector::LabelSelector;
use base64::Engine;
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::cache::Selection;
use crate::registry::Registry;
use crate::strategy::check::{integer, text};

/// Pools that are kept; configurations come and go.
const KEPT: usize = 64;
/// The longest answer that is read.
const LONGEST: usize = 16 << 20;
/// Where systems keep the authorities they trust, for webhooks that name none.
const SYSTEM_AUTHORITIES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Where a webhook is, from its `clientConfig`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Scheme, host, port and path.
    url: String,
    service: Option<Service>,
    authorities: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Service {
    namespace: String,
    name: String,
    port: u16,
}

impl Place {
    pub fn read(config: &Value) -> Self {
        let authorities = text(config, "caBundle").to_owned();
        let Some(service) = config.get("service").filter(|service| service.is_object()) else {
            return Self {
                url: text(config, "url").to_owned(),
                service: None,
                authorities,
            };
        };
        let service_ = Service {
            namespace: text(service, "namespace").to_owned(),
            name: text(service, "name").to_owned(),
            port: integer(service, "port")
                .and_then(|port| u16::try_from(port).ok())
                .unwrap_or(443),
        };
        let path = text(service, "path").trim_start_matches('/');
        Self {
            url: format!(
                "https://{}.{}.svc:{}/{path}",
                service_.name, service_.namespace, service_.port
            ),
            service: Some(service_),
            authorities,
        }
    }
}

type Pool = Client<Connector, Full<Bytes>>;

/// All pools.
#[derive(Default)]
pub struct Clients {
    pools: Mutex<HashMap<(Option<Service>, String), Pool>>,
}

impl Clients {
    /// Posts a document and reads the answer. The error is what follows `failed to call webhook: `.
    pub async fn post(
        &self,
        registry: &Registry,
        place: &Place,
        document: &Value,
        timeout: Duration,
    ) -> Result<Value, String> {
        let url = format!("{}?timeout={}s", place.url, timeout.as_secs());
        let failed = |why: &str| format!("Post {url:?}: {why}");
        let uri: Uri = url.parse().map_err(|error| failed(&format!("{error}")))?;
        let pool = self.pool(registry, place).map_err(|error| failed(&error))?;
        let body = serde_json::to_vec(document).map_err(|error| error.to_string())?;
        let request = Request::post(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| failed(&error.to_string()))?;
        let exchange = async {
            let response = pool
                .request(request)
                .await
                .map_err(|error| failed(&root(&error)))?;
            let status = response.status();
            let bytes = Limited::new(response.into_body(), LONGEST)
                .collect()
                .await
                .map_err(|error| failed(&error.to_string()))?
                .to_bytes();
            answer(status, &bytes)
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(failed("context deadline exceeded")),
        }
    }

    fn pool(&self, registry: &Registry, place: &Place) -> Result<Pool, String> {
        let key = (place.service.clone(), place.authorities.clone());
        let mut pools = self.pools.lock();
        if let Some(pool) = pools.get(&key) {
            return Ok(pool.clone());
        }
        let connector = Connector {
            tls: TlsConnector::from(Arc::new(tls(&place.authorities)?)),
            service: place.service.clone(),
            registry: registry.this(),
        };
        let pool = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(90))
            .build(connector);
        if pools.len() >= KEPT {
            pools.clear();
        }
        pools.insert(key, pool.clone());
        Ok(pool)
    }
}

/// The innermost reason: what went wrong on the wire.
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// The document of an answer, or what a Kubernetes client says about its code.
fn answer(status: http::StatusCode, bytes: &[u8]) -> Result<Value, String> {
    if !status.is_success() {
        let said = String::from_utf8_lossy(&bytes[..bytes.len().min(2048)]);
        if let Ok(document) = serde_json::from_slice::<Value>(bytes)
            && document["kind"] == "Status"
        {
            return Err(text(&document, "message").to_owned());
        }
        return Err(match status.as_u16() {
            404 => "the server could not find the requested resource".to_owned(),
            401 => "the server has asked for the client to provide credentials".to_owned(),
            400 => "the server rejected our request for an unknown reason".to_owned(),
            code if code >= 500 => {
                let said = said.trim().replace('"', "'");
                format!(
                    "an error on the server (\"{said}\") has prevented the request from succeeding"
                )
            }
            code => format!(
                "the server responded with the status code {code} but did not return more information"
            ),
        });
    }
    serde_json::from_slice(bytes)
        .map_err(|error| format!("couldn't get version/kind; json parse error: {error}"))
}

fn tls(authorities: &str) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    if authorities.is_empty() {
        for path in SYSTEM_AUTHORITIES {
            if let Ok(pem) = std::fs::read(path) {
                roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
                break;
            }
        }
    } else {
        let invalid =
            || "unable to load root certificates: unable to parse bytes as PEM block".to_owned();
        let pem = base64::engine::general_purpose::STANDARD
            .decode(authorities)
            .map_err(|_| invalid())?;
        let (added, _) =
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
        if added == 0 {
            return Err(invalid());
        }
    }
    let mut config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Makes connections: to the host of the URL, or to an endpoint of a Service under the Service's name.
#[derive(Clone)]
struct Connector {
    tls: TlsConnector,
    service: Option<Service>,
    registry: Weak<Registry>,
}

impl Connector {
    async fn connect(self, uri: Uri) -> std::io::Result<Stream> {
        let host = uri
            .host()
            .unwrap_or_default()
            .trim_matches(['[', ']'])
            .to_owned();
        let stream = match &self.service {
            Some(service) => {
                let address = self.resolve(service).await.map_err(std::io::Error::other)?;
                TcpStream::connect(address).await?
            }
            None => TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(443))).await?,
        };
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
        let stream = self.tls.connect(name, stream).await?;
        Ok(Stream(TokioIo::new(stream)))
    }

    /// An endpoint that is ready; the cluster IP for Services whose endpoints somebody else knows.
    async fn resolve(&self, service: &Service) -> Result<SocketAddr, String> {
        let registry = self.registry.upgrade().ok_or("the server is stopping")?;
        let Service {
            namespace,
            name,
            port,
        } = service;
        let object = registry
            .get("", "services", namespace, name)
            .await
            .map_err(|error| error.message)?
            .value();
        let ports = object["spec"]["ports"].as_array().into_iter().flatten();
        let mut ports = ports.filter(|known| known["port"].as_u64() == Some(u64::from(*port)));
        let Some(found) = ports.next() else {
            return Err(format!("no service port {port} found for service {name:?}"));
        };
        let port_name = text(found, "name").to_owned();
        let labels = LabelSelector::parse(&format!("kubernetes.io/service-name={name}"))?;
        let selection = Selection::namespaced(namespace).with_labels(labels);
        let slices = registry
            .list("discovery.k8s.io", "endpointslices", &selection)
            .await
            .map_err(|error| error.message)?;
        let mut endpoints: Vec<SocketAddr> = slices
            .iter()
            .flat_map(|slice| crate::rest::ready_endpoints(&slice.value(), &port_name))
            .collect();
        if endpoints.is_empty() {
            return Err(format!("no endpoints available for service {name:?}"));
        }
        Ok(endpoints.swap_remove(rand::random_range(0..endpoints.len())))
    }
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

struct Stream(TokioIo<TlsStream<TcpStream>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, buffer)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
