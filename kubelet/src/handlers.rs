//! The things that probes and lifecycle hooks do: run a command in a container, ask over
//! HTTP, open a TCP connection, ask a gRPC health service.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{
    Container, ExecAction, GRPCAction, HTTPGetAction, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

use crate::context::Node;

const MAX_BODY: usize = 10 << 10;
const MAX_REDIRECTS: usize = 10;

/// `Err` carries what to show: a failed check and one that could not be made are told apart by nobody.
pub type Checked = Result<String, String>;

pub async fn exec(
    node: &Node,
    container_id: &str,
    action: &ExecAction,
    timeout: Duration,
) -> Checked {
    let command = action.command.clone().unwrap_or_default();
    let result = node
        .runtime
        .exec_sync(container_id, &command, timeout)
        .await
        .map_err(|e| match e.code() {
            tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => {
                format!(
                    "command timed out: {} timed out after {}s",
                    quoted(&command),
                    timeout.as_secs()
                )
            }
            _ => e.message().to_string(),
        })?;
    let mut output = result.stdout;
    output.extend(result.stderr);
    output.truncate(MAX_BODY);
    let output = String::from_utf8_lossy(&output).into_owned();
    if result.exit_code == 0 {
        Ok(output)
    } else {
        Err(output)
    }
}

fn quoted(command: &[String]) -> String {
    format!("{:?}", command.join(" "))
}

/// A port by number, or by the name that the container gives it.
pub fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => Some(*n),
        IntOrString::String(name) => {
            let named = container
                .ports
                .iter()
                .flatten()
                .find(|p| p.name.as_deref() == Some(name))
                .map(|p| p.container_port);
            named.or_else(|| name.parse().ok())
        }
    };
    number
        .and_then(|n| u16::try_from(n).ok())
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("invalid port: {port:?}"))
}

pub async fn tcp(
    container: &Container,
    action: &TCPSocketAction,
    ip: &str,
    timeout: Duration,
) -> Checked {
    let host = action
        .host
        .as_deref()
        .filter(|h| !h.is_empty())
        .unwrap_or(ip);
    connect(host, port(container, &action.port)?, timeout)
        .await
        .map(|_| String::new())
}

async fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, String> {
    let name = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    match tokio::time::timeout(timeout, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(e)) => Err(format!("dial tcp {name}: connect: {}", plain(&e))),
        Err(_) => Err(format!("dial tcp {name}: i/o timeout")),
    }
}

fn plain(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// GET with Kubernetes' rules: 200 to 399 is fine, redirects within the host are followed, certificates are not checked.
pub async fn http_get(
    container: &Container,
    action: &HTTPGetAction,
    ip: &str,
    timeout: Duration,
) -> Checked {
    let host = action
        .host
        .as_deref()
        .filter(|h| !h.is_empty())
        .unwrap_or(ip);
    let port = port(container, &action.port)?;
    let scheme = action.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let bracketed = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_string()
    };
    let mut path = action.path.clone().unwrap_or_default();
    if !path.starts_with('/') {
        path.insert(0, '/');
    }
    let url = format!("{scheme}://{bracketed}:{port}{path}");
    let asked = async {
        let mut path = path.clone();
        for _ in 0..MAX_REDIRECTS {
            let (status, location, body) =
                request(host, port, &scheme, &path, action, timeout).await?;
            match location.filter(|_| (300..400).contains(&status)) {
                Some(next) if next.starts_with('/') => path = next,
                Some(next) => match next.strip_prefix(&format!("{scheme}://{bracketed}:{port}")) {
                    Some(rest) => {
                        path = if rest.is_empty() {
                            "/".into()
                        } else {
                            rest.to_string()
                        }
                    }
                    // Elsewhere is none of the probe's business, and no failure either.
                    None => return Ok(body),
                },
                None if (200..400).contains(&status) => return Ok(body),
                None => return Err(format!("HTTP probe failed with statuscode: {status}")),
            }
        }
        Err("stopped after 10 redirects".to_string())
    };
    match tokio::time::timeout(timeout, asked).await {
        Ok(Err(e)) if !e.starts_with("HTTP probe failed") => Err(format!("Get \"{url}\": {e}")),
        Ok(other) => other,
        Err(_) => Err(format!(
            "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

async fn request(
    host: &str,
    port: u16,
    scheme: &str,
    path: &str,
    action: &HTTPGetAction,
    timeout: Duration,
) -> Result<(u16, Option<String>, String), String> {
    let stream = connect(host, port, timeout).await?;
    let mut request = http::Request::get(path);
    let mut has = (false, false, false);
    for header in action.http_headers.iter().flatten() {
        has.0 |= header.name.eq_ignore_ascii_case("host");
        has.1 |= header.name.eq_ignore_ascii_case("user-agent");
        has.2 |= header.name.eq_ignore_ascii_case("accept");
        request = request.header(&header.name, &header.value);
    }
    if !has.0 {
        let name = if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        request = request.header("host", name);
    }
    if !has.1 {
        request = request.header("user-agent", "kube-probe/1.36");
    }
    if !has.2 {
        request = request.header("accept", "*/*");
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    if scheme == "https" {
        let tls = crate::server::tls::unverified_client();
        let name =
            rustls::pki_types::ServerName::try_from(host.to_string()).map_err(|e| e.to_string())?;
        let stream = tokio_rustls::TlsConnector::from(tls)
            .connect(name, stream)
            .await
            .map_err(|e| e.to_string())?;
        return send(stream, request).await;
    }
    send(stream, request).await
}

async fn send<S>(
    stream: S,
    request: http::Request<Empty<Bytes>>,
) -> Result<(u16, Option<String>, String), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let response = sender
        .send_request(request)
        .await
        .map_err(|e| e.to_string())?;
    let status = response.status().as_u16();
    let location = response
        .headers()
        .get("location")
        .and_then(|l| l.to_str().ok())
        .map(str::to_string);
    let body = Limited::new(response.into_body(), MAX_BODY)
        .collect()
        .await
        .map(|b| b.to_bytes())
        .unwrap_or_default();
    driver.abort();
    Ok((
        status,
        location,
        String::from_utf8_lossy(&body).into_owned(),
    ))
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

pub async fn grpc(action: &GRPCAction, ip: &str, timeout: Duration) -> Checked {
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_string()
    };
    let check = async {
        let endpoint = Endpoint::from_shared(format!("http://{host}:{}", action.port))
            .map_err(|e| e.to_string())?;
        let channel = endpoint.connect().await.map_err(|e| {
            format!(
                "timeout: failed to connect service \"{host}:{}\" within {}s: {e}",
                action.port,
                timeout.as_secs()
            )
        })?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|e| e.to_string())?;
        let request = tonic::Request::new(HealthCheckRequest {
            service: action.service.clone().unwrap_or_default(),
        });
        let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let response = client.unary(request, path, codec).await.map_err(|e| match e.code() {
            tonic::Code::Unimplemented => "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_string(),
            _ => format!("error: health rpc probe failed: {}", e.message()),
        })?;
        match response.into_inner().status {
            1 => Ok("service healthy".to_string()),
            other => Err(format!(
                "service unhealthy (responded with \"{}\")",
                ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"]
                    .get(other as usize)
                    .unwrap_or(&"UNKNOWN")
            )),
        }
    };
    match tokio::time::timeout(timeout, check).await {
        Ok(result) => result,
        Err(_) => Err(format!(
            "timeout: health rpc did not complete within {}s",
            timeout.as_secs()
        )),
    }
}
