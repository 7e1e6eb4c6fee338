//! Connections of clients: to the host of a URL, or to an endpoint of a Service under the Service's name.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Weak;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::rt::TokioIo;
use rand::seq::SliceRandom;
use tokio::net::TcpStream;

use crate::registry::Registry;
use crate::services::resolve;

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    pub namespace: String,
    pub name: String,
    pub port: u16,
}

/// Connects, without TLS.
#[derive(Clone, Default)]
pub struct Dialer {
    service: Option<(ServicePort, Weak<Registry>)>,
}

impl Dialer {
    #[must_use]
    pub fn to(service: ServicePort, registry: Weak<Registry>) -> Self {
        Self {
            service: Some((service, registry)),
        }
    }

    async fn connect(self, uri: Uri) -> std::io::Result<TokioIo<TcpStream>> {
        let failed = |why: String| std::io::Error::other(why);
        let mut addresses: Vec<SocketAddr> = match &self.service {
            Some((service, registry)) => {
                let registry = registry.upgrade();
                let registry = registry.ok_or_else(|| failed("the server is stopping".into()))?;
                let ServicePort {
                    namespace,
                    name,
                    port,
                } = service;
                let found = resolve::endpoints(&registry, namespace, name, &port.to_string()).await;
                found.map_err(|error| failed(error.message))?
            }
            None => {
                let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
                let port = match uri.scheme_str() {
                    Some("http") => 80,
                    _ => 443,
                };
                let port = uri.port_u16().unwrap_or(port);
                let found = tokio::net::lookup_host((host, port)).await;
                let found =
                    found.map_err(|error| failed(format!("dial tcp: lookup {host}: {error}")))?;
                found.collect()
            }
        };
        if self.service.is_some() {
            addresses.shuffle(&mut rand::rng());
        }
        let mut last = "no address".to_owned();
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(TokioIo::new(stream));
                }
                Err(error) => last = format!("dial tcp {address}: connect: {error}"),
            }
        }
        Err(failed(last))
    }
}

impl tower::Service<Uri> for Dialer {
    type Response = TokioIo<TcpStream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}
