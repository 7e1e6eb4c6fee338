//! Answers over WebSocket: what is read is sent in messages, as browsers can take it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use apimachinery::status::{Result, Status};

use crate::body::{Body, Received, Reply};
use crate::proxy::is_upgrade;

const BINARY: &str = "binary.k8s.io";
const BASE64: &str = "base64.binary.k8s.io";

/// Whether the client asks for a WebSocket.
#[must_use]
pub fn is_websocket(headers: &HeaderMap) -> bool {
    is_upgrade(headers)
        && headers
            .get(UPGRADE)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The protocol to speak, of those that the client offers; `None` if it offers none, which means binary messages.
fn choose(headers: &HeaderMap) -> Result<Option<&'static str>> {
    let offered: Vec<&str> = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|protocol| !protocol.starts_with("base64url.bearer.authorization.k8s.io."))
        .collect();
    if offered.is_empty() {
        return Ok(None);
    }
    let known = [BINARY, BASE64];
    match known
        .into_iter()
        .find(|protocol| offered.contains(protocol))
    {
        Some(protocol) => Ok(Some(protocol)),
        None => Err(Status::bad_request(format!(
            "requested protocol(s) are not supported: {offered:?}; supports {known:?}"
        ))),
    }
}

/// Sends a body as messages of a WebSocket that the request opens.
pub fn stream(mut request: Request<Received>, body: Body) -> Result<Reply> {
    let protocol = choose(request.headers())?;
    let key = request.headers().get(SEC_WEBSOCKET_KEY).cloned();
    let key = key.ok_or_else(|| Status::bad_request("missing Sec-WebSocket-Key"))?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        if let Err(error) = pump(socket, body, protocol == Some(BASE64)).await {
            tracing::debug!(%error, "a WebSocket ended");
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = derive_accept_key(key.as_bytes());
    let mut set = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    };
    set(CONNECTION, "Upgrade");
    set(UPGRADE, "websocket");
    set(SEC_WEBSOCKET_ACCEPT, &accept);
    if let Some(protocol) = protocol {
        set(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(response)
}

async fn pump<S>(
    socket: WebSocketStream<S>,
    mut body: Body,
    base64: bool,
) -> std::result::Result<(), tokio_tungstenite::tungstenite::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut sink, mut source) = socket.split();
    let send = async {
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else {
                continue;
            };
            sink.send(message(data, base64)).await?;
        }
        sink.send(Message::Close(None)).await
    };
    // Reading answers pings, and notices when the client is gone.
    let receive = async {
        while let Some(received) = source.next().await {
            if received?.is_close() {
                break;
            }
        }
        Ok(())
    };
    tokio::select! { done = send => done, done = receive => done }
}

fn message(data: Bytes, base64: bool) -> Message {
    if base64 {
        Message::Text(STANDARD.encode(&data).into())
    } else {
        Message::Binary(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols() {
        let headers = |protocols: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocols));
            headers
        };
        assert_eq!(choose(&HeaderMap::new()).unwrap(), None);
        for (offered, wanted) in [
            ("binary.k8s.io", Some(BINARY)),
            ("x, base64.binary.k8s.io", Some(BASE64)),
            ("base64url.bearer.authorization.k8s.io.dA", None),
        ] {
            assert_eq!(choose(&headers(offered)).unwrap(), wanted, "{offered}");
        }
        assert_eq!(choose(&headers("x")).unwrap_err().code, 400);
    }
}
