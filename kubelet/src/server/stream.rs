//! Exec, attach and port-forward: the runtime is asked for a streaming address, and the
//! caller's connection, WebSocket or SPDY, is joined with one to that address.

use std::future::Future;

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::session::{self, Channels, Streams};
use super::{Refused, Server, Shared, form, internal};
use crate::model::{self, RunState};

const SPDY: &str = "SPDY/3.1";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

#[derive(Debug, Deserialize)]
pub struct Target {
    namespace: String,
    pod: String,
    container: Option<String>,
    uid: Option<String>,
}

/// The query, under the kubelet's names and under those of the API server.
#[derive(Debug, Default)]
struct Options {
    streams: Streams,
    command: Vec<String>,
    ports: Vec<u16>,
}

fn options(query: &str) -> Options {
    let mut o = Options::default();
    for (key, value) in form::pairs(query) {
        let on = matches!(value.as_str(), "1" | "true" | "True");
        match key.as_str() {
            "command" | "cmd" => o.command.push(value),
            "input" | "stdin" => o.streams.stdin |= on,
            "output" | "stdout" => o.streams.stdout |= on,
            "error" | "stderr" => o.streams.stderr |= on,
            "tty" => o.streams.tty |= on,
            "ports" | "port" => o
                .ports
                .extend(value.split(',').filter_map(|p| p.parse::<u16>().ok())),
            _ => {}
        }
    }
    o
}

pub async fn exec(
    State(server): State<Shared>,
    Path(target): Path<Target>,
    request: Request,
) -> Result<Response, Refused> {
    let o = options(request.uri().query().unwrap_or_default());
    let id = server.running(&target).await?;
    let ask = cri::ExecRequest {
        container_id: id,
        cmd: o.command,
        tty: o.streams.tty,
        stdin: o.streams.stdin,
        stdout: o.streams.stdout,
        // A terminal has one output only.
        stderr: o.streams.stderr && !o.streams.tty,
    };
    let url = server
        .node
        .runtime
        .service()
        .exec(ask)
        .await
        .map_err(|e| internal(e.message()))?
        .into_inner()
        .url;
    interactive(request, url, o.streams).await
}

pub async fn attach(
    State(server): State<Shared>,
    Path(target): Path<Target>,
    request: Request,
) -> Result<Response, Refused> {
    let mut o = options(request.uri().query().unwrap_or_default());
    let id = server.running(&target).await?;
    let pod = server.pod(&target.namespace, &target.pod, target.uid.as_deref())?;
    let tty = target
        .container
        .as_deref()
        .and_then(|c| model::any_container(&pod, c))
        .is_some_and(|c| c.tty == Some(true));
    o.streams.tty = tty;
    let ask = cri::AttachRequest {
        container_id: id,
        stdin: o.streams.stdin,
        tty,
        stdout: o.streams.stdout,
        stderr: o.streams.stderr && !tty,
    };
    let url = server
        .node
        .runtime
        .service()
        .attach(ask)
        .await
        .map_err(|e| internal(e.message()))?
        .into_inner()
        .url;
    interactive(request, url, o.streams).await
}

async fn interactive(request: Request, url: String, streams: Streams) -> Result<Response, Refused> {
    match kind(request.headers()) {
        Kind::WebSocket => {
            let protocol = match request
                .headers()
                .contains_key(header::SEC_WEBSOCKET_PROTOCOL)
            {
                true => choose(request.headers(), &Channels::NAMES)?,
                false => String::new(),
            };
            let runtime = open(&url, "v4.channel.k8s.io").await?;
            let channels = Channels::of(&protocol);
            Ok(websocket(request, &protocol, move |client| {
                session::run(client, runtime, streams, channels)
            }))
        }
        Kind::Spdy => splice(request, &url).await,
        Kind::Neither => Err((
            StatusCode::BAD_REQUEST,
            "unable to upgrade: missing upgrade headers in request".into(),
        )),
    }
}

pub async fn port_forward(
    State(server): State<Shared>,
    Path(target): Path<Target>,
    request: Request,
) -> Result<Response, Refused> {
    let o = options(request.uri().query().unwrap_or_default());
    let pod = server.pod(&target.namespace, &target.pod, target.uid.as_deref())?;
    let sandboxes = server
        .node
        .runtime
        .list_sandboxes(Some(model::uid(&pod)))
        .await
        .map_err(|e| internal(e.message()))?;
    let ready = sandboxes
        .iter()
        .filter(|s| s.state == cri::PodSandboxState::SandboxReady as i32)
        .max_by_key(|s| s.created_at);
    let sandbox =
        ready.ok_or_else(|| internal(format!("pod \"{}\" has no running sandbox", target.pod)))?;
    let ask = cri::PortForwardRequest {
        pod_sandbox_id: sandbox.id.clone(),
        port: o.ports.iter().map(|p| i32::from(*p)).collect(),
    };
    let url = server
        .node
        .runtime
        .service()
        .port_forward(ask)
        .await
        .map_err(|e| internal(e.message()))?
        .into_inner()
        .url;
    match kind(request.headers()) {
        Kind::Spdy => splice(request, &url).await,
        Kind::WebSocket => {
            let protocol = choose(request.headers(), &[TUNNEL, "v4.channel.k8s.io"])?;
            let runtime = open(&url, "portforward.k8s.io").await?;
            if protocol == TUNNEL {
                return Ok(websocket(request, &protocol, move |client| {
                    session::tunnel(client, runtime)
                }));
            }
            if o.ports.is_empty() {
                return Err((
                    StatusCode::BAD_REQUEST,
                    "query parameter \"port\" is required".into(),
                ));
            }
            Ok(websocket(request, &protocol, move |client| async move {
                session::forward_ports(client, runtime, &o.ports).await
            }))
        }
        Kind::Neither => Err((
            StatusCode::BAD_REQUEST,
            "unable to upgrade: missing upgrade headers in request".into(),
        )),
    }
}

/// Runs a command to its end and answers with its output.
pub async fn run(
    State(server): State<Shared>,
    Path(target): Path<Target>,
    request: Request,
) -> Result<Response, Refused> {
    let o = options(request.uri().query().unwrap_or_default());
    let id = server.running(&target).await?;
    let result = server
        .node
        .runtime
        .exec_sync(&id, &o.command, std::time::Duration::ZERO)
        .await
        .map_err(|e| internal(e.message()))?;
    let output = [result.stdout, result.stderr].concat();
    match result.exit_code {
        0 => Ok(output.into_response()),
        code => Err(internal(format!(
            "command terminated with exit code {code}: {}",
            String::from_utf8_lossy(&output)
        ))),
    }
}

impl Server {
    /// The id of the running container that a request names; the only one there is, if it names none.
    async fn running(&self, target: &Target) -> Result<String, Refused> {
        let pod = self.pod(&target.namespace, &target.pod, target.uid.as_deref())?;
        let first = || model::spec(&pod).containers.first().map(|c| c.name.clone());
        let name = target.container.clone().or_else(first).unwrap_or_default();
        let view = self
            .node
            .runtime
            .pod_view(model::uid(&pod), &mut Default::default())
            .await
            .map_err(|e| internal(e.message()))?;
        let running = view.latest(&name).filter(|c| c.state == RunState::Running);
        running.map(|c| c.id.clone()).ok_or_else(|| {
            (
                StatusCode::NOT_FOUND,
                format!("container not found (\"{name}\")"),
            )
        })
    }
}

enum Kind {
    WebSocket,
    Spdy,
    Neither,
}

fn kind(headers: &HeaderMap) -> Kind {
    let upgrade = headers
        .get(header::UPGRADE)
        .and_then(|u| u.to_str().ok())
        .unwrap_or_default();
    if upgrade.eq_ignore_ascii_case("websocket") {
        Kind::WebSocket
    } else if upgrade.to_ascii_uppercase().starts_with("SPDY/") {
        Kind::Spdy
    } else {
        Kind::Neither
    }
}

/// The best protocol that both sides speak.
fn choose(headers: &HeaderMap, ours: &[&str]) -> Result<String, Refused> {
    let offered = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|h| h.to_str().ok());
    let offered: Vec<&str> = offered.flat_map(|h| h.split(',')).map(str::trim).collect();
    let found = ours.iter().find(|p| offered.contains(p));
    found.map(|p| p.to_string()).ok_or_else(|| {
        (
            StatusCode::FORBIDDEN,
            format!("none of the protocols {offered:?} is supported; use one of {ours:?}"),
        )
    })
}

/// Answers the handshake and runs the session once the connection is ours.
fn websocket<F, Fut>(mut request: Request, protocol: &str, run: F) -> Response
where
    F: FnOnce(WebSocketStream<TokioIo<Upgraded>>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), Box<dyn std::error::Error + Send + Sync>>> + Send,
{
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned() else {
        return (StatusCode::BAD_REQUEST, "missing Sec-WebSocket-Key").into_response();
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let client =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        if let Err(error) = run(client).await {
            tracing::debug!(%error, "a stream ended badly");
        }
    });
    let headers = [
        (header::CONNECTION, "Upgrade".to_string()),
        (header::UPGRADE, "websocket".to_string()),
        (
            header::SEC_WEBSOCKET_ACCEPT,
            derive_accept_key(key.as_bytes()),
        ),
    ];
    let mut response = (StatusCode::SWITCHING_PROTOCOLS, headers).into_response();
    if let Ok(protocol) = protocol.parse()
        && !http::HeaderValue::is_empty(&protocol)
    {
        response
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    response
}

/// A SPDY connection to the runtime's streaming server.
async fn open(url: &str, protocol: &str) -> Result<TokioIo<Upgraded>, Refused> {
    let mut headers = HeaderMap::new();
    headers.insert(
        "x-stream-protocol-version",
        protocol.parse().map_err(internal)?,
    );
    let (response, _) = upgrade(url, headers).await?;
    let upgraded = hyper::upgrade::on(response).await.map_err(internal)?;
    Ok(TokioIo::new(upgraded))
}

async fn upgrade(
    url: &str,
    headers: HeaderMap,
) -> Result<(http::Response<hyper::body::Incoming>, HeaderMap), Refused> {
    let uri: Uri = url.parse().map_err(internal)?;
    let host = uri
        .host()
        .unwrap_or("127.0.0.1")
        .trim_matches(['[', ']'])
        .to_string();
    let stream = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(80)))
        .await
        .map_err(internal)?;
    stream.set_nodelay(true).map_err(internal)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(internal)?;
    tokio::spawn(connection.with_upgrades());
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_string();
    let mut request = http::Request::post(path)
        .header(
            header::HOST,
            uri.authority().map_or(host.as_str(), |a| a.as_str()),
        )
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, SPDY);
    for (name, value) in &headers {
        request = request.header(name, value);
    }
    let response = sender
        .send_request(
            request
                .body(Empty::<bytes::Bytes>::new())
                .map_err(internal)?,
        )
        .await
        .map_err(internal)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(internal(format!(
            "the runtime's streaming server answered {}",
            response.status()
        )));
    }
    let headers = response.headers().clone();
    Ok((response, headers))
}

/// A SPDY client is joined with the runtime as it is.
async fn splice(mut request: Request, url: &str) -> Result<Response, Refused> {
    let mut headers = HeaderMap::new();
    for value in request.headers().get_all("x-stream-protocol-version") {
        headers.append("x-stream-protocol-version", value.clone());
    }
    let (response, answered) = upgrade(url, headers).await?;
    let client: OnUpgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (Ok(client), Ok(runtime)) = tokio::join!(client, hyper::upgrade::on(response)) else {
            return;
        };
        // Either side may end it at any time; both ends are closed with it.
        let _ =
            tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(runtime))
                .await;
    });
    let mut reply = (
        StatusCode::SWITCHING_PROTOCOLS,
        [(header::CONNECTION, "Upgrade"), (header::UPGRADE, SPDY)],
    )
        .into_response();
    for value in answered.get_all("x-stream-protocol-version") {
        reply
            .headers_mut()
            .append("x-stream-protocol-version", value.clone());
    }
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_under_both_names() {
        let o = options(
            "command=sh&command=-c&command=echo+a%20b%25&input=1&stdout=true&tty=false&port=80&ports=81,82",
        );
        assert_eq!(o.command, ["sh", "-c", "echo a b%"]);
        assert!(o.streams.stdin && o.streams.stdout && !o.streams.stderr && !o.streams.tty);
        assert_eq!(o.ports, [80, 81, 82]);
    }
}
