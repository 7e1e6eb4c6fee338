//! The client: connections over TLS, each with one request at a time, as many as a measurement wants.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::watching::Watches;

/// How much of many watches is read off a socket at once.
const READ: usize = 64 << 10;

pub type Secured = TlsStream<BufReader<TcpStream>>;

/// Whom to talk to, and as whom.
#[derive(Clone)]
pub struct Client {
    pub address: SocketAddr,
    pub tls: Arc<rustls::ClientConfig>,
}

/// One HTTP/1.1 connection.
pub struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Client {
    async fn dial<T: AsyncRead + AsyncWrite + Unpin>(
        &self,
        protocol: &[u8],
        wrap: impl FnOnce(TcpStream) -> T,
    ) -> Result<TlsStream<T>> {
        let socket = TcpStream::connect(self.address).await?;
        socket.set_nodelay(true)?;
        let socket = wrap(socket);
        let mut tls = (*self.tls).clone();
        tls.alpn_protocols = vec![protocol.to_vec()];
        let name = ServerName::IpAddress(self.address.ip().into());
        let connector = TlsConnector::from(Arc::new(tls));
        Ok(connector.connect(name, socket).await?)
    }

    pub async fn connect(&self) -> Result<Connection> {
        let (sender, connection) =
            http1::handshake(TokioIo::new(self.dial(b"http/1.1", |s| s).await?)).await?;
        tokio::spawn(connection);
        Ok(Connection { sender })
    }

    /// One HTTP/2 connection, for many watches.
    pub async fn watches(&self) -> Result<Watches<Secured>> {
        // Without it, TLS asks the system for each quarter of a record.
        let ahead = |socket| BufReader::with_capacity(READ, socket);
        Ok(Watches::new(self.dial(b"h2", ahead).await?))
    }

    /// One request on a connection of its own; its answer if it went well.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(|b| Bytes::from(b.to_string()));
        let bytes = self.connect().await?.call(method, path, body).await?;
        Ok(serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// Waits until `path` answers 200.
    pub async fn ready(&self, path: &str, deadline: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            let asked = async { self.connect().await?.call(Method::GET, path, None).await };
            match asked.await {
                Ok(_) => return Ok(()),
                Err(error) if started.elapsed() > deadline => {
                    return Err(error.context(format!("{path} within {deadline:?}")));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }

    /// Calls `request(n)` for `n` from 0 to `count`, over so many connections.
    pub async fn each(
        &self,
        connections: usize,
        count: usize,
        request: impl Fn(usize) -> (Method, String, Option<Value>) + Send + Sync + 'static,
    ) -> Result<Duration> {
        let request = Arc::new(request);
        let next = Arc::new(AtomicU64::new(0));
        let open = self.open(connections).await?;
        let started = Instant::now();
        let mut workers = JoinSet::new();
        for mut connection in open {
            let (request, next) = (request.clone(), next.clone());
            workers.spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed) as usize;
                    if n >= count {
                        return Ok::<_, anyhow::Error>(());
                    }
                    let (method, path, body) = request(n);
                    let body = body.map(|b| Bytes::from(b.to_string()));
                    connection.call(method, &path, body).await?;
                }
            });
        }
        while let Some(worker) = workers.join_next().await {
            worker??;
        }
        Ok(started.elapsed())
    }

    /// Sends requests over so many connections for so long; how many were answered in a second.
    pub async fn rate(
        &self,
        connections: usize,
        duration: Duration,
        request: impl Fn(usize) -> (Method, String, Option<Bytes>) + Send + Sync + 'static,
    ) -> Result<f64> {
        let request = Arc::new(request);
        let next = Arc::new(AtomicU64::new(0));
        let open = self.open(connections).await?;
        let started = Instant::now();
        let end = started + duration;
        let mut workers = JoinSet::new();
        for mut connection in open {
            let (request, next) = (request.clone(), next.clone());
            workers.spawn(async move {
                let mut answered = 0u64;
                while Instant::now() < end {
                    let (method, path, body) =
                        request(next.fetch_add(1, Ordering::Relaxed) as usize);
                    connection.call(method, &path, body).await?;
                    answered += 1;
                }
                Ok::<_, anyhow::Error>(answered)
            });
        }
        let mut answered = 0;
        while let Some(worker) = workers.join_next().await {
            answered += worker??;
        }
        Ok(answered as f64 / started.elapsed().as_secs_f64())
    }

    async fn open(&self, connections: usize) -> Result<Vec<Connection>> {
        let mut open = Vec::with_capacity(connections);
        for _ in 0..connections {
            open.push(self.connect().await?);
        }
        Ok(open)
    }
}

pub fn request(method: Method, path: &str, body: Option<Bytes>) -> Result<Request<Full<Bytes>>> {
    Ok(Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("accept", "application/json")
        .header("content-type", "application/json")
        .body(Full::new(body.unwrap_or_default()))?)
}

impl Connection {
    /// Sends a request and reads the whole answer, which must be a success.
    pub async fn call(&mut self, method: Method, path: &str, body: Option<Bytes>) -> Result<Bytes> {
        let (status, answer) = self.send(method, path, body).await?;
        let bytes = answer.collect().await?.to_bytes();
        if !status.is_success() {
            bail!("{path}: {status}: {}", String::from_utf8_lossy(&bytes));
        }
        Ok(bytes)
    }

    /// A patch of the given media type.
    pub async fn patch(&mut self, path: &str, media: &'static str, body: Bytes) -> Result<()> {
        let mut request = request(Method::PATCH, path, Some(body))?;
        let value = http::HeaderValue::from_static(media);
        request.headers_mut().insert("content-type", value);
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("{path}: {status}: {}", String::from_utf8_lossy(&bytes));
        }
        Ok(())
    }

    /// Sends a request; the answer's body is left to the caller.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<(StatusCode, Incoming)> {
        // The connection's task may not have seen yet that the last answer is read.
        self.sender.ready().await?;
        let answer = self
            .sender
            .send_request(request(method, path, body)?)
            .await
            .with_context(|| path.to_owned())?;
        Ok((answer.status(), answer.into_body()))
    }
}
