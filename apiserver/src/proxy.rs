//! Passing requests on: which headers go along, and upgrades, which become tunnels of bytes.
//!
//! What is spoken in a tunnel (SPDY, WebSocket) is between the client and the other end. Who is behind it, and how it
//! is reached, is decided by [`crate::kubelet`] and [`crate::aggregation`].

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::body::{Body, Error, Received, Reply};

pub type Outgoing = BoxBody<Bytes, Error>;

/// A connection to a backend, with or without TLS.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

const HOP_BY_HOP: [&str; 6] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
];

/// Whether the client asks for another protocol on its connection.
#[must_use]
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    let connection = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok());
    connection
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
        && headers.contains_key(UPGRADE)
}

/// The client's headers without those that are between it and us: its credentials first of all.
#[must_use]
pub fn forwarded_headers(headers: &HeaderMap, upgrade: bool) -> HeaderMap {
    let mut forwarded = headers.clone();
    forwarded.remove(http::header::AUTHORIZATION);
    // What the header names as only for this connection goes no further either.
    let listed: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|token| token.trim().to_ascii_lowercase())
        .filter(|token| !token.is_empty() && token != "upgrade")
        .collect();
    let private: Vec<HeaderName> = forwarded
        .keys()
        .filter(|name| {
            name.as_str().starts_with("impersonate-")
                || listed.iter().any(|token| token == name.as_str())
        })
        .cloned()
        .collect();
    for name in private {
        forwarded.remove(name);
    }
    for name in HOP_BY_HOP {
        forwarded.remove(name);
    }
    if upgrade {
        forwarded.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    } else {
        forwarded.remove(UPGRADE);
    }
    forwarded
}

/// Adds the client to the chain that `X-Forwarded-For` tells.
pub fn forwarded_for(headers: &mut HeaderMap, peer: Option<SocketAddr>) {
    let Some(peer) = peer else { return };
    let before: Vec<&str> = headers
        .get_all(FORWARDED_FOR)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    let chain = if before.is_empty() {
        peer.ip().to_string()
    } else {
        format!("{}, {}", before.join(", "), peer.ip())
    };
    if let Ok(value) = HeaderValue::from_str(&chain) {
        headers.insert(FORWARDED_FOR, value);
    }
}

/// A request on its way to a backend, and the client's end of the tunnel if it is to become one.
pub struct Passage {
    pub request: Request<Outgoing>,
    client: Option<OnUpgrade>,
}

impl Passage {
    /// Takes a client's request over for `host`, under another URI.
    #[must_use]
    pub fn new(
        mut request: Request<Received>,
        uri: Uri,
        host: &str,
        peer: Option<SocketAddr>,
    ) -> Self {
        let upgrade = is_upgrade(request.headers());
        let client = upgrade.then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let mut outgoing = Request::new(body.map_err(Into::into).boxed());
        *outgoing.method_mut() = parts.method;
        *outgoing.uri_mut() = uri;
        *outgoing.headers_mut() = forwarded_headers(&parts.headers, upgrade);
        forwarded_for(outgoing.headers_mut(), peer);
        if let Ok(host) = HeaderValue::from_str(host) {
            outgoing.headers_mut().insert(HOST, host);
        }
        Self {
            request: outgoing,
            client,
        }
    }

    #[must_use]
    pub fn is_upgrade(&self) -> bool {
        self.client.is_some()
    }

    /// Splits off the request to send; the rest waits for the answer.
    #[must_use]
    pub fn depart(self) -> (Request<Outgoing>, Return) {
        (self.request, Return(self.client))
    }
}

/// Brings a backend's answer back.
pub struct Return(Option<OnUpgrade>);

impl Return {
    /// The answer for the client. If the backend changes protocols, so does the client's connection.
    #[must_use]
    pub fn arrive(self, mut answer: Response<Incoming>) -> Reply {
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(client) = self.0
        {
            let backend = hyper::upgrade::on(&mut answer);
            tokio::spawn(tunnel(client, backend));
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            *response.headers_mut() = answer.headers().clone();
            return response;
        }
        let (mut parts, body) = answer.into_parts();
        for name in HOP_BY_HOP {
            parts.headers.remove(name);
        }
        Response::from_parts(parts, Body::Proxied(body))
    }
}

async fn tunnel(client: OnUpgrade, backend: OnUpgrade) {
    match tokio::try_join!(client, backend) {
        Ok((client, backend)) => {
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut backend).await {
                tracing::debug!(%error, "tunnel ended");
            }
        }
        Err(error) => tracing::debug!(%error, "upgrade failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stay_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("impersonate-user", "x"),
            ("connection", "keep-alive, Upgrade, X-Secret"),
            ("x-secret", "hop"),
            ("upgrade", "SPDY/3.1"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        assert!(is_upgrade(&headers));
        let forwarded = forwarded_headers(&headers, true);
        assert_eq!(forwarded.len(), 2);
        assert_eq!(forwarded["connection"], "Upgrade");
        assert!(forwarded_headers(&headers, false).is_empty());
    }

    #[test]
    fn the_chain_of_clients_grows() {
        let mut headers = HeaderMap::new();
        forwarded_for(&mut headers, Some("10.0.0.1:5".parse().unwrap()));
        forwarded_for(&mut headers, Some("10.0.0.2:5".parse().unwrap()));
        assert_eq!(headers["x-forwarded-for"], "10.0.0.1, 10.0.0.2");
    }
}
