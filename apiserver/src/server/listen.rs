//! Sockets: accept, TLS, HTTP/1.1 or HTTP/2, and the end of it all.
//!
//! Whoever connects has to get to the point: a handshake, a first request and a request's head each have their time, and
//! there are no more connections than leave descriptors for the server's own needs.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use apimachinery::status::Status;
use futures::FutureExt;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::Server;
use super::ahead::ReadAhead;
use super::coalesce::Coalesced;
use crate::authn::x509::CertificateUser;
use crate::body::{Received, Reply};
use crate::negotiate::Accept;
use crate::rest::{self, Connection, respond};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may stand open without a request ever: TLS alone does not say who it is, and HTTP/2 clients
/// connect when they have something to ask.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long open requests may go on once the server stops.
const DRAIN: Duration = Duration::from_secs(10);
/// As many streams as a busy component with many watches may need on its one connection.
const MAX_STREAMS: u32 = 1000;

/// Accepts connections until shutdown, then lets them drain.
pub async fn serve(
    server: Arc<Server>,
    listeners: Vec<TcpListener>,
    tls: Arc<rustls::ServerConfig>,
) {
    let acceptor = TlsAcceptor::from(tls);
    let connections = TaskTracker::new();
    let room = Arc::new(Semaphore::new(most_connections()));
    for listener in listeners {
        let (server, acceptor, tracker) = (server.clone(), acceptor.clone(), connections.clone());
        let room = room.clone();
        connections.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = server.shutdown.cancelled() => return,
                };
                match accepted {
                    Ok((stream, peer)) => {
                        let Ok(place) = room.clone().try_acquire_owned() else {
                            // Closed at once: to let it wait would keep everybody behind it waiting too.
                            tracing::debug!(%peer, "too many connections");
                            continue;
                        };
                        let (server, acceptor) = (server.clone(), acceptor.clone());
                        tracker.spawn(connection(server, acceptor, stream, peer, place));
                    }
                    Err(error) => {
                        // Out of descriptors, most likely: give those that are open time to close.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        });
    }
    server.shutdown.cancelled().await;
    connections.close();
    if tokio::time::timeout(DRAIN, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!("connections were still busy at shutdown");
    }
}

/// Takes all descriptors that the system allows, and keeps a quarter for files, the store and calls to others.
fn most_connections() -> usize {
    let allowed = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() => hard,
        Ok((soft, _)) => soft,
        Err(_) => 1024,
    };
    let allowed = usize::try_from(allowed).unwrap_or(usize::MAX);
    (allowed / 4 * 3).clamp(1, Semaphore::MAX_PERMITS)
}

/// Serves one connection; its place is free again when it ends.
async fn connection(
    server: Arc<Server>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: std::net::SocketAddr,
    _place: OwnedSemaphorePermit,
) {
    // Answers are written in one piece; waiting for more only adds latency.
    let _ = stream.set_nodelay(true);
    let accepted = acceptor.accept(ReadAhead::new(stream));
    let tls = match tokio::time::timeout(HANDSHAKE_TIMEOUT, accepted).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%peer, "TLS handshake took too long"),
    };
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let roles = server.authenticator.roles(chain);
    let certificate = chain
        .first()
        .filter(|_| roles.client)
        .and_then(|certificate| CertificateUser::read(certificate));
    let connection = Arc::new(Connection {
        certificate,
        stranger: !chain.is_empty() && !roles.client,
        front_proxy: roles.front_proxy,
        peer: Some(peer),
    });
    let asked = Arc::new(AtomicBool::new(false));
    let service = {
        let (server, asked) = (server.clone(), asked.clone());
        service_fn(move |request: Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            let (server, connection) = (server.clone(), connection.clone());
            // On its own: of a watch, the connection would keep its room until the end.
            let handled = Box::pin(guarded(server, connection, request.map(Received::from)));
            async move { Ok::<_, Infallible>(handled.await) }
        })
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_header_list_size(64 * 1024);
    let multiplexed = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    let io = TokioIo::new(Coalesced::new(tls, multiplexed));
    let serving = builder.serve_connection_with_upgrades(io, service);
    tokio::pin!(serving);
    let silent = async {
        tokio::time::sleep(FIRST_REQUEST_TIMEOUT).await;
        if asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = silent => return tracing::debug!(%peer, "no request came"),
        () = server.shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN, serving).await {
                Ok(result) => result,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// A panic in a handler costs one request, never the server.
async fn guarded(
    server: Arc<Server>,
    connection: Arc<Connection>,
    request: Request<Received>,
) -> Reply {
    let began = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let handled = AssertUnwindSafe(rest::handle(server, connection, request))
        .catch_unwind()
        .await;
    let response = handled.unwrap_or_else(|_| {
        tracing::error!(%method, path, "a handler panicked");
        respond::failure(&Status::internal("a handler panicked"), Accept::default())
    });
    tracing::debug!(%method, path, code = response.status().as_u16(), took = ?began.elapsed(), "answered");
    response
}
