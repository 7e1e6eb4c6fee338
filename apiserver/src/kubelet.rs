//! Connections to nodes and pods: TLS to kubelets under their authority, plain or TLS to whatever a proxy leads to.
//!
//! Every request has a connection of its own: they are logs, sessions and proxied calls, long or rare. A request that
//! is upgraded (exec, attach, port-forward, WebSockets) becomes a tunnel of bytes; what is spoken in it is between the
//! client and the other end.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use apimachinery::object;
use apimachinery::status::{Result, Status};
use http::header::{HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::body::{Received, Reply};
use crate::config::Config;
use crate::proxy::{Outgoing, Passage, Stream};
use crate::registry::Registry;
use crate::server::tls;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the other end of an ordinary request may take to begin its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const KUBELET_PORT: u16 = 10250;

/// How kubelets are reached.
pub struct Kubelets {
    tls: Option<TlsConnector>,
    /// For `https:` names in proxy paths, whose certificates nobody vouches for.
    unverified: TlsConnector,
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub kind: Kind,
    pub address: SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Kubelet,
    Plain,
    Tls,
}

impl Kubelets {
    /// With the client certificate and authority of the flags. Without an authority of their own, kubelets are
    /// expected to be under the cluster's.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let unverified = rustls::ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(tls::Unverified::default()))
            .with_no_client_auth();
        let unverified = TlsConnector::from(Arc::new(unverified));
        let authority = config
            .kubelet_certificate_authority
            .as_ref()
            .or(config.client_ca_file.as_ref());
        let (Some(authority), Some(certificate), Some(key)) = (
            authority,
            &config.kubelet_client_certificate,
            &config.kubelet_client_key,
        ) else {
            return Ok(Self {
                tls: None,
                unverified,
            });
        };
        let client = rustls::ClientConfig::builder()
            .with_root_certificates(tls::roots(authority)?)
            .with_client_auth_cert(tls::certificates(certificate)?, tls::private_key(key)?)
            .context("the kubelet client certificate and key do not fit")?;
        Ok(Self {
            tls: Some(TlsConnector::from(Arc::new(client))),
            unverified,
        })
    }

    /// The kubelet of a node, by its name.
    pub async fn endpoint(&self, registry: &Registry, node: &str) -> Result<Endpoint> {
        let node = registry.get("", "nodes", "", node).await?.value();
        let address = kubelet_address(&node).ok_or_else(|| {
            let name = object::name(&node);
            Status::service_unavailable(format!(
                "no preferred addresses found; known addresses of node {name:?}: []"
            ))
        })?;
        Ok(Endpoint {
            kind: Kind::Kubelet,
            address,
        })
    }

    /// Sends a request and gives back the answer, whatever its code.
    pub async fn send(
        &self,
        endpoint: &Endpoint,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>> {
        let unreachable = |error: String| {
            Status::service_unavailable(format!(
                "error trying to reach service: {}: {error}",
                endpoint.address
            ))
        };
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.connect(endpoint)).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(unreachable(error.to_string())),
            Err(_) => return Err(unreachable("dial tcp: i/o timeout".into())),
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to a backend ended");
            }
        });
        match tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(unreachable(error.to_string())),
            Err(_) => Err(unreachable("no answer in time".into())),
        }
    }

    async fn connect(&self, endpoint: &Endpoint) -> std::io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(endpoint.address).await?;
        stream.set_nodelay(true)?;
        let connector = match endpoint.kind {
            Kind::Plain => return Ok(Box::new(stream)),
            Kind::Tls => &self.unverified,
            Kind::Kubelet => self.tls.as_ref().ok_or_else(|| {
                std::io::Error::other("this API server has no client certificate for kubelets")
            })?,
        };
        let name = ServerName::from(endpoint.address.ip());
        Ok(Box::new(connector.connect(name, stream).await?))
    }

    /// Passes a request on and its answer back; an upgrade becomes a tunnel.
    pub async fn forward(
        &self,
        endpoint: &Endpoint,
        target: &str,
        request: Request<Received>,
        peer: Option<SocketAddr>,
    ) -> Result<Reply> {
        let uri: Uri = target
            .parse()
            .map_err(|error| Status::bad_request(format!("{target}: {error}")))?;
        let host = endpoint.address.to_string();
        let (outgoing, back) = Passage::new(request, uri, &host, peer).depart();
        Ok(back.arrive(self.send(endpoint, outgoing).await?))
    }

    /// The answer to a GET, whatever its code.
    pub async fn get(&self, endpoint: &Endpoint, target: &str) -> Result<Response<Incoming>> {
        let mut request = Request::new(Empty::new().map_err(|never| match never {}).boxed());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = target
            .parse()
            .map_err(|error| Status::bad_request(format!("{target}: {error}")))?;
        if let Ok(host) = HeaderValue::from_str(&endpoint.address.to_string()) {
            request.headers_mut().insert(HOST, host);
        }
        self.send(endpoint, request).await
    }

    /// A JSON document from a kubelet.
    pub async fn get_json(&self, endpoint: &Endpoint, path: &'static str) -> Result<Value> {
        let response = self.get(endpoint, path).await?;
        if response.status() != StatusCode::OK {
            return Err(Status::service_unavailable(format!(
                "{path}: {}",
                response.status()
            )));
        }
        let limited = http_body_util::Limited::new(response.into_body(), 16 << 20);
        let bytes = limited
            .collect()
            .await
            .map_err(|error| Status::service_unavailable(error.to_string()))?
            .to_bytes();
        serde_json::from_slice(&bytes)
            .map_err(|error| Status::service_unavailable(format!("{path}: {error}")))
    }
}

/// Where the kubelet of a node listens: its addresses in the order in which they are likely to work.
fn kubelet_address(node: &Value) -> Option<SocketAddr> {
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    let port = port
        .and_then(|port| u16::try_from(port).ok())
        .unwrap_or(KUBELET_PORT);
    let addresses = node["status"]["addresses"].as_array()?;
    let of = |kind: &str| {
        addresses
            .iter()
            .filter(|a| a["type"] == kind)
            .find_map(|a| a["address"].as_str()?.parse::<IpAddr>().ok())
    };
    let ip = ["InternalIP", "ExternalIP", "Hostname"]
        .into_iter()
        .find_map(of)?;
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses() {
        let node = json!({"status": {
            "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.5"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 1234}},
        }});
        assert_eq!(
            kubelet_address(&node),
            Some("10.0.0.5:1234".parse().unwrap())
        );
        assert_eq!(kubelet_address(&json!({"status": {}})), None);
    }
}
