//! One aggregated API server: its Service, its TLS, the connection kept to it, and its documents.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{ACCEPT, ETAG, HOST, HeaderValue, IF_NONE_MATCH};
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio_rustls::TlsConnector;

use super::merge;
use crate::authn::request_header::set_user;
use crate::authn::{MASTERS, UserInfo};
use crate::body::{Received, Reply};
use crate::outbound::{chain, roots, system_roots};
use crate::proxy::{Outgoing, Passage};
use crate::registry::Registry;
use crate::rest::Exchange;
use crate::server::tls;
use crate::services::resolve::{Backend, resolve};
use crate::strategy::check::{flag, integer, text};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a question about the server itself may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_DOCUMENT: usize = 64 << 20;
/// A connection whose other end is gone is noticed while requests wait on it.
const PING: Duration = Duration::from_secs(15);
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// The API server's client certificate for other API servers.
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: Arc<PrivateKeyDer<'static>>,
}

impl Identity {
    pub fn connector(&self, roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
        ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
    }
}

/// What an API server has told about its group and version.
#[derive(Clone, Default)]
pub struct Documents {
    /// Its entry in aggregated discovery; none until it has answered.
    pub discovery: Option<Value>,
    /// The part of its OpenAPI v2 document that is about the group and version.
    pub openapi_v2: Option<Arc<Value>>,
    /// Where its OpenAPI v3 document is, with the hash of it.
    pub openapi_v3: Option<String>,
    etags: [Option<HeaderValue>; 3],
}

pub struct Remote {
    /// Of the APIService.
    pub name: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub service: String,
    pub port: u16,
    /// What all this was made from.
    pub(super) spec: Value,
    /// For ordinary requests and for those that upgrade, which only HTTP/1.1 can.
    connectors: Result<[TlsConnector; 2], String>,
    kept: Mutex<Option<(SocketAddr, http2::SendRequest<Outgoing>)>>,
    documents: ArcSwap<Documents>,
}

/// The parts of a spec that say how the server is reached.
pub(super) fn reach(spec: &Value) -> Value {
    let mut reach = spec.clone();
    if let Some(map) = reach.as_object_mut() {
        map.remove("groupPriorityMinimum");
        map.remove("versionPriority");
    }
    reach
}

impl Remote {
    /// From an APIService's spec that names a Service.
    pub(super) fn new(name: &str, spec: &Value, identity: Option<&Identity>) -> Self {
        let service = &spec["service"];
        let port = integer(service, "port").and_then(|port| u16::try_from(port).ok());
        Self {
            name: name.to_owned(),
            group: text(spec, "group").to_owned(),
            version: text(spec, "version").to_owned(),
            namespace: text(service, "namespace").to_owned(),
            service: text(service, "name").to_owned(),
            port: port.unwrap_or(443),
            connectors: connectors(spec, identity).map_err(|error| format!("{error:#}")),
            spec: reach(spec),
            kept: Mutex::new(None),
            documents: ArcSwap::from_pointee(Documents::default()),
        }
    }

    #[must_use]
    pub fn documents(&self) -> Arc<Documents> {
        self.documents.load_full()
    }

    fn host(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }

    /// The path that every API server of a group and version has to answer.
    fn path(&self) -> String {
        format!("/apis/{}/{}", self.group, self.version)
    }

    /// Passes a client's request on under the client's identity.
    pub async fn forward(
        &self,
        exchange: &Exchange,
        request: Request<Received>,
    ) -> Result<Reply, String> {
        let uri = request.uri().clone();
        let mut passage = Passage::new(request, uri, &self.host(), exchange.peer);
        set_user(passage.request.headers_mut(), &exchange.user)?;
        let upgrade = passage.is_upgrade();
        let (request, back) = passage.depart();
        let registry = &exchange.server.registry;
        Ok(back.arrive(self.send(registry, request, upgrade).await?))
    }

    /// Asks for a path as the API server itself.
    async fn ask(
        &self,
        registry: &Registry,
        path: &str,
        headers: HeaderMap,
    ) -> Result<Response<Incoming>, String> {
        let mut request = Request::new(Empty::new().map_err(|never| match never {}).boxed());
        *request.uri_mut() = path
            .parse()
            .map_err(|error| format!("invalid path {path}: {error}"))?;
        *request.headers_mut() = headers;
        if let Ok(host) = HeaderValue::from_str(&self.host()) {
            request.headers_mut().insert(HOST, host);
        }
        let user = UserInfo::new("system:kube-aggregator", &[MASTERS]);
        set_user(request.headers_mut(), &user)?;
        let url = format!("https://{}:{}{path}", self.host(), self.port);
        match tokio::time::timeout(ASK_TIMEOUT, self.send(registry, request, false)).await {
            Ok(answer) => {
                answer.map_err(|error| format!("failing or missing response from {url}: {error}"))
            }
            Err(_) => Err(format!("timed out waiting for {url}")),
        }
    }

    /// Whether the server answers for its group and version.
    pub(super) async fn probe(&self, registry: &Registry) -> Result<(), String> {
        let path = self.path();
        let answer = self.ask(registry, &path, HeaderMap::new()).await?;
        if answer.status().is_success() {
            return Ok(());
        }
        let (host, port, code) = (self.host(), self.port, answer.status().as_u16());
        Err(format!(
            "failing or missing response from https://{host}:{port}{path}: bad status from https://{host}:{port}{path}: {code}"
        ))
    }

    async fn send(
        &self,
        registry: &Registry,
        mut request: Request<Outgoing>,
        upgrade: bool,
    ) -> Result<Response<Incoming>, String> {
        let backend = resolve(registry, &self.namespace, &self.service, self.port)
            .await
            .map_err(|error| error.message)?;
        if !upgrade && let Some(mut sender) = self.kept_sender(&backend).await {
            return sender
                .send_request(self.absolute(request)?)
                .await
                .map_err(|error| chain(&error));
        }
        let connecting = self.connect(&backend, upgrade);
        let (address, stream) = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| "dial tcp: i/o timeout".to_owned())??;
        if !upgrade && stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(PING)
                .keep_alive_timeout(PING)
                .handshake(TokioIo::new(stream))
                .await
                .map_err(|error| chain(&error))?;
            tokio::spawn(connection);
            *self.kept.lock() = Some((address, sender.clone()));
            return sender
                .send_request(self.absolute(request)?)
                .await
                .map_err(|error| chain(&error));
        }
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| chain(&error))?;
        tokio::spawn(connection.with_upgrades());
        *request.version_mut() = Version::HTTP_11;
        sender
            .send_request(request)
            .await
            .map_err(|error| chain(&error))
    }

    /// The kept connection, while it is alive and leads to an endpoint.
    async fn kept_sender(&self, backend: &Backend) -> Option<http2::SendRequest<Outgoing>> {
        let kept = self.kept.lock().clone();
        let (address, mut sender) = kept?;
        if backend.includes(address) && sender.ready().await.is_ok() {
            return Some(sender);
        }
        let mut kept = self.kept.lock();
        if kept.as_ref().is_some_and(|(other, _)| *other == address) {
            *kept = None;
        }
        None
    }

    /// HTTP/2 has no `Host`: the URI says it all.
    fn absolute(&self, mut request: Request<Outgoing>) -> Result<Request<Outgoing>, String> {
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str());
        let uri: Uri = format!("https://{}{path}", self.host())
            .parse()
            .map_err(|error| format!("invalid URI: {error}"))?;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(HOST);
        Ok(request)
    }

    async fn connect(
        &self,
        backend: &Backend,
        upgrade: bool,
    ) -> Result<
        (
            SocketAddr,
            tokio_rustls::client::TlsStream<tokio::net::TcpStream>,
        ),
        String,
    > {
        let connector = match &self.connectors {
            Ok([any, upgrading]) => {
                if upgrade {
                    upgrading
                } else {
                    any
                }
            }
            Err(error) => return Err(error.clone()),
        };
        let name = ServerName::try_from(self.host()).map_err(|error| error.to_string())?;
        let (address, stream) = backend.connect().await.map_err(|error| error.to_string())?;
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        let stream = connector
            .connect(name, stream)
            .await
            .map_err(|error| format!("tls: {error}"))?;
        Ok((address, stream))
    }

    /// Reads what the server says about its group and version. True when something is new.
    pub(super) async fn refresh(&self, registry: &Registry) -> bool {
        let mut documents = (*self.documents()).clone();
        let mut changed = false;
        match self.discovery(registry, &mut documents).await {
            Ok(news) => changed |= news,
            Err(error) => {
                tracing::info!(
                    name = self.name,
                    error,
                    "no discovery from an aggregated API server"
                );
                if let Some(discovery) = &mut documents.discovery {
                    changed |= discovery["freshness"] != "Stale";
                    discovery["freshness"] = "Stale".into();
                }
            }
        }
        for part in [
            self.openapi_v3(registry, &mut documents).await,
            self.openapi_v2(registry, &mut documents).await,
        ] {
            match part {
                Ok(news) => changed |= news,
                Err(error) => {
                    tracing::debug!(
                        name = self.name,
                        error,
                        "no OpenAPI from an aggregated API server"
                    );
                }
            }
        }
        if changed {
            self.documents.store(Arc::new(documents));
        }
        changed
    }

    async fn discovery(
        &self,
        registry: &Registry,
        documents: &mut Documents,
    ) -> Result<bool, String> {
        let known = &mut documents.etags[0];
        if let Some((headers, body)) = self.document(registry, "/apis", AGGREGATED, known).await? {
            let kind = headers
                .get(http::header::CONTENT_TYPE)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default();
            let found = kind
                .contains("as=APIGroupDiscoveryList")
                .then(|| merge::version_in(&body, &self.group, &self.version))
                .flatten();
            if let Some(found) = found {
                return Ok(replace(&mut documents.discovery, found));
            }
            // A server from before aggregated discovery: its answer was another document.
            documents.etags[0] = None;
        } else if documents.discovery.is_some() {
            return Ok(false);
        }
        let path = self.path();
        let plain = self
            .document(registry, &path, "application/json", &mut None)
            .await?
            .map(|(_, body)| merge::from_resource_list(&body, &self.group, &self.version));
        Ok(plain.is_some_and(|plain| replace(&mut documents.discovery, plain)))
    }

    async fn openapi_v3(
        &self,
        registry: &Registry,
        documents: &mut Documents,
    ) -> Result<bool, String> {
        let known = &mut documents.etags[2];
        let Some((_, index)) = self
            .document(registry, "/openapi/v3", "application/json", known)
            .await?
        else {
            return Ok(false);
        };
        let key = format!("apis/{}/{}", self.group, self.version);
        let url = text(&index["paths"][&key], "serverRelativeURL").to_owned();
        Ok(!url.is_empty() && replace(&mut documents.openapi_v3, url))
    }

    async fn openapi_v2(
        &self,
        registry: &Registry,
        documents: &mut Documents,
    ) -> Result<bool, String> {
        let known = &mut documents.etags[1];
        let Some((_, whole)) = self
            .document(registry, "/openapi/v2", "application/json", known)
            .await?
        else {
            return Ok(false);
        };
        let part = Arc::new(merge::part_of_v2(whole, &self.path()));
        Ok(replace(&mut documents.openapi_v2, part))
    }

    /// A document with its headers; `None` when it is the one that is known by its tag.
    async fn document(
        &self,
        registry: &Registry,
        path: &str,
        accept: &'static str,
        etag: &mut Option<HeaderValue>,
    ) -> Result<Option<(HeaderMap, Value)>, String> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        if let Some(etag) = etag.as_ref() {
            headers.insert(IF_NONE_MATCH, etag.clone());
        }
        let answer = self.ask(registry, path, headers).await?;
        let (parts, body) = answer.into_parts();
        match parts.status {
            StatusCode::NOT_MODIFIED => return Ok(None),
            StatusCode::OK => {}
            code => return Err(format!("{path}: {code}")),
        }
        let read = Limited::new(body, MAX_DOCUMENT).collect();
        let bytes = tokio::time::timeout(ASK_TIMEOUT, read)
            .await
            .map_err(|_| format!("{path}: no answer in time"))?
            .map_err(|error| format!("{path}: {error}"))?
            .to_bytes();
        let value = serde_json::from_slice(&bytes).map_err(|error| format!("{path}: {error}"))?;
        *etag = parts.headers.get(ETAG).cloned();
        Ok(Some((parts.headers, value)))
    }
}

fn replace<T: PartialEq>(slot: &mut Option<T>, new: T) -> bool {
    let news = slot.as_ref() != Some(&new);
    *slot = Some(new);
    news
}

fn connectors(spec: &Value, identity: Option<&Identity>) -> anyhow::Result<[TlsConnector; 2]> {
    let mut config = if flag(spec, "insecureSkipTLSVerify") {
        let builder = ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(tls::Unverified::default()));
        match identity {
            Some(identity) => {
                builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?
            }
            None => builder.with_no_client_auth(),
        }
    } else {
        let roots = trusted(text(spec, "caBundle"))?;
        match identity {
            Some(identity) => identity.connector(roots)?,
            None => ClientConfig::builder()
                .with_root_certificates(roots)
                .with_no_client_auth(),
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let upgrading = TlsConnector::from(Arc::new(config.clone()));
    config.alpn_protocols.insert(0, b"h2".to_vec());
    Ok([TlsConnector::from(Arc::new(config)), upgrading])
}

/// The authorities of a `caBundle`, or the system's where there is none.
fn trusted(bundle: &str) -> anyhow::Result<RootCertStore> {
    if bundle.is_empty() {
        return system_roots();
    }
    let pem = STANDARD.decode(bundle).context("caBundle is not base64")?;
    roots(&pem).context("caBundle")
}
