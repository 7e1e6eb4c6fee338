//! A server in this process, on a loopback port, with certificates and a store of its own; and a client for it.

#![allow(dead_code)]

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use apiserver::assemble::{self, Running};
use apiserver::config::Config;
use bytes::Bytes;
use clap::Parser;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use storage::Store;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long anything that is waited for may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Tries until there is an answer; `what` is what was waited for in vain.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, attempt: impl Fn() -> F) -> T {
    let attempts = async {
        loop {
            if let Some(found) = attempt().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, attempts).await.expect(what)
}

pub struct Api {
    pub address: SocketAddr,
    pub directory: TempDir,
    admin: TlsConnector,
    nobody: TlsConnector,
    running: Option<Running>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub bytes: Bytes,
    pub body: Value,
}

impl Answer {
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    /// Asserts that this is a Status of that code and reason.
    #[track_caller]
    pub fn refused(&self, code: u16, reason: &str) -> &str {
        assert_eq!(
            (self.code, self.body["reason"].as_str()),
            (code, Some(reason)),
            "{}",
            self.body
        );
        assert_eq!(self.body["kind"], "Status");
        assert_eq!(self.body["status"], "Failure");
        self.message()
    }

    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(
            (200..300).contains(&self.code),
            "{} {}",
            self.code,
            self.body
        );
        self.body
    }
}

impl Api {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub async fn start_with(flags: &[&str]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = TempDir::new().unwrap();
        let pki = Pki::new(directory.path());
        let running = serve(directory.path(), flags).await;
        let api = Self {
            address: running.addresses[0],
            admin: pki.connector(Some("system:masters")),
            nobody: pki.connector(None),
            directory,
            running: Some(running),
        };
        api.until_ready().await;
        api
    }

    /// The program itself, which may open so many descriptors. It lives as long as what comes with it.
    pub async fn start_program(descriptors: usize) -> (Self, Program) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = TempDir::new().unwrap();
        let pki = Pki::new(directory.path());
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut words = arguments(directory.path(), address.port(), &[]);
        env!("CARGO_BIN_EXE_apiserver").clone_into(&mut words[0]);
        let process = std::process::Command::new("sh")
            .arg("-c")
            .arg(format!("ulimit -n {descriptors} && exec \"$0\" \"$@\""))
            .args(words)
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let program = Program(process);
        let listens = async {
            while TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, listens)
            .await
            .expect("the program listens");
        let api = Self {
            address,
            admin: pki.connector(Some("system:masters")),
            nobody: pki.connector(None),
            directory,
            running: None,
        };
        api.until_ready().await;
        (api, program)
    }

    /// The administrator's identity.
    pub fn admin(&self) -> &TlsConnector {
        &self.admin
    }

    /// No identity.
    pub fn nobody(&self) -> &TlsConnector {
        &self.nobody
    }

    /// Stops the server and starts another one on the same data.
    pub async fn restart(&mut self) {
        self.restart_after(|| {}).await;
    }

    /// The same, with something done to the data in between.
    pub async fn restart_after(&mut self, between: impl FnOnce()) {
        let running = self.running.take().unwrap();
        running.server.shutdown.cancel();
        running.finished().await;
        between();
        let running = serve(self.directory.path(), &[]).await;
        self.address = running.addresses[0];
        self.running = Some(running);
        self.until_ready().await;
    }

    /// Stops the server for good.
    pub async fn stop(mut self) {
        let running = self.running.take().unwrap();
        running.server.shutdown.cancel();
        running.finished().await;
    }

    async fn until_ready(&self) {
        let ready = async {
            while self.get("/readyz").await.code != 200 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ready)
            .await
            .expect("the server becomes ready");
    }

    /// The store beneath the server.
    pub fn store(&self) -> Arc<dyn Store> {
        self.running.as_ref().unwrap().server.registry.store.clone()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send_document(Method::POST, path, "application/json", body)
            .await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send_document(Method::PUT, path, "application/json", body)
            .await
    }

    pub async fn patch(&self, path: &str, kind: &str, body: &Value) -> Answer {
        let media = format!("application/{kind}-patch+json");
        self.send_document(Method::PATCH, path, &media, body).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], Bytes::new()).await
    }

    pub async fn delete_with(&self, path: &str, options: &Value) -> Answer {
        self.send_document(Method::DELETE, path, "application/json", options)
            .await
    }

    async fn send_document(
        &self,
        method: Method,
        path: &str,
        media: &str,
        document: &Value,
    ) -> Answer {
        let headers = [("content-type", media)];
        self.send(method, path, &headers, document.to_string().into())
            .await
    }

    /// A request as the administrator.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Answer {
        self.send_as(&self.admin, method, path, headers, body).await
    }

    /// A request without a client certificate.
    pub async fn send_anonymously(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Answer {
        self.send_as(&self.nobody, method, path, headers, Bytes::new())
            .await
    }

    pub async fn send_as(
        &self,
        identity: &TlsConnector,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Answer {
        let exchange = async {
            let response = self.open(identity, method, path, headers, body).await;
            let (parts, body) = response.into_parts();
            let bytes = body.collect().await.unwrap().to_bytes();
            let body = serde_json::from_slice(&bytes).unwrap_or_default();
            Answer {
                code: parts.status.as_u16(),
                headers: parts.headers,
                bytes,
                body,
            }
        };
        tokio::time::timeout(PATIENCE, exchange)
            .await
            .expect("an answer in time")
    }

    pub async fn open(
        &self,
        identity: &TlsConnector,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> http::Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::from(self.address.ip());
        let stream = identity.connect(name, stream).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        sender
            .send_request(request.body(Full::new(body)).unwrap())
            .await
            .unwrap()
    }

    /// Opens a watch.
    pub async fn watch(&self, path: &str) -> Watch {
        let response = self
            .open(&self.admin, Method::GET, path, &[], Bytes::new())
            .await;
        assert_eq!(response.status(), 200);
        Watch {
            body: response.into_body(),
            buffer: Vec::new(),
        }
    }
}

/// An etcd of its own (the program `etcd` must be on the path).
pub struct Etcd {
    pub url: String,
    process: std::process::Child,
    // Goes after the process.
    _directory: TempDir,
}

impl Etcd {
    pub fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let url = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            format!("http://{}", listener.local_addr().unwrap())
        };
        let (url, peer) = (url(), url());
        let process = std::process::Command::new("etcd")
            .args([
                "--name=test".to_owned(),
                format!("--data-dir={}", directory.path().display()),
                format!("--listen-client-urls={url}"),
                format!("--advertise-client-urls={url}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=test={peer}"),
                "--log-level=error".to_owned(),
            ])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("etcd is installed (Debian: etcd-server)");
        Self {
            url,
            process,
            _directory: directory,
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// An open watch.
pub struct Watch {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Watch {
    /// The next event; `None` when the server has ended the watch.
    pub async fn next(&mut self) -> Option<Value> {
        let next = async {
            loop {
                if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = self.buffer.drain(..=end).collect();
                    return Some(serde_json::from_slice(&line).unwrap());
                }
                let frame = self.body.frame().await?.ok()?;
                self.buffer.extend_from_slice(&frame.into_data().unwrap());
            }
        };
        tokio::time::timeout(PATIENCE, next)
            .await
            .expect("an event in time")
    }

    /// Type and name of the next event.
    pub async fn summary(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (
            text(&event["type"]),
            text(&event["object"]["metadata"]["name"]),
        )
    }
}

async fn serve(directory: &Path, flags: &[&str]) -> Running {
    let arguments = arguments(directory, 0, flags);
    assemble::start(&Config::parse_from(arguments))
        .await
        .expect("the server starts")
}

/// The words of the command that serves from this folder; port 0 is any.
fn arguments(directory: &Path, port: u16, flags: &[&str]) -> Vec<String> {
    let path = |name: &str| directory.join(name).display().to_string();
    let mut arguments: Vec<String> = ["apiserver", "--bind-address", "127.0.0.1"]
        .map(str::to_owned)
        .into();
    arguments.extend(["--secure-port".to_owned(), port.to_string()]);
    if !flags.contains(&"--advertise-address") {
        // Endpoints may not be loopback addresses; nobody goes there.
        arguments.extend(["--advertise-address", "192.0.2.1"].map(str::to_owned));
    }
    for (flag, file) in [
        ("--tls-cert-file", "server.crt"),
        ("--tls-private-key-file", "server.key"),
        ("--client-ca-file", "ca.crt"),
        ("--service-account-signing-key-file", "sa.key"),
        ("--data-dir", "data"),
    ] {
        arguments.extend([flag.to_owned(), path(file)]);
    }
    arguments.extend(flags.iter().map(ToString::to_string));
    arguments
}

/// The program as a process of its own.
pub struct Program(std::process::Child);

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

struct Pki {
    authority: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Pki {
    fn new(directory: &Path) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "kubernetes");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap();
        let write = |name: &str, text: String| std::fs::write(directory.join(name), text).unwrap();
        write("ca.crt", authority.pem());
        let pki = Self {
            certificate: authority.der().clone(),
            authority: Issuer::new(params, key),
        };
        let (certificate, key) = pki.issue("kube-apiserver", None);
        write("server.crt", certificate);
        write("server.key", key);
        write("sa.key", KeyPair::generate().unwrap().serialize_pem());
        pki
    }

    fn issue(&self, name: &str, group: Option<&str>) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn connector(&self, group: Option<&str>) -> TlsConnector {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
        let config = match group {
            Some(group) => {
                let (certificate, key) = self.issue("admin", Some(group));
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder
                    .with_client_auth_cert(vec![certificate], key)
                    .unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        TlsConnector::from(Arc::new(config))
    }
}
