//! A fresh store of either kind, which can be broken and opened again.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use storage::backup::{RestoreOptions, Restored};
use storage::embedded::{self, Embedded};
use storage::etcd::{self, Etcd};
use storage::{Error, Store};
use tempfile::TempDir;

pub struct Engine {
    pub store: Arc<dyn Store>,
    // Before the folder, so that nothing writes there when it goes.
    server: Option<Server>,
    directory: TempDir,
}

struct Server {
    process: Child,
    url: String,
    peer: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("its address"))
}

impl Server {
    fn start(directory: &Path, url: String, peer: String) -> Self {
        let process = Command::new("etcd")
            .arg("--name=contract")
            .arg(format!("--data-dir={}", directory.join("etcd").display()))
            .args([
                format!("--listen-client-urls={url}"),
                format!("--advertise-client-urls={url}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=contract={peer}"),
                "--log-level=error".to_owned(),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is installed (Debian: etcd-server)");
        Server { process, url, peer }
    }

    /// When this returns, its ports are free.
    fn kill(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Engine {
    pub async fn embedded() -> Self {
        let directory = TempDir::new().expect("a temporary folder");
        Engine {
            store: open_embedded(directory.path()),
            server: None,
            directory,
        }
    }

    pub async fn etcd() -> Self {
        let directory = TempDir::new().expect("a temporary folder");
        let server = Server::start(directory.path(), free_url(), free_url());
        Engine {
            store: connect(&server.url).await,
            server: Some(server),
            directory,
        }
    }

    pub fn is_etcd(&self) -> bool {
        self.server.is_some()
    }

    /// The process of the store's server.
    pub fn server_pid(&self) -> i32 {
        let server = self.server.as_ref().expect("a store with a server");
        i32::try_from(server.process.id()).expect("a process id")
    }

    /// What the program `load` calls this store.
    pub fn address(&self) -> String {
        match &self.server {
            Some(server) => format!("etcd:{}", server.url),
            None => format!("embedded:{}", self.directory.path().join("store").display()),
        }
    }

    /// Closes the store and opens it anew on the same data.
    pub async fn reopen(&mut self) {
        self.store.close().await;
        match &self.server {
            Some(server) => self.store = connect(&server.url).await,
            None => {
                // The file is locked until the old engine is dropped.
                self.store = Arc::new(Gone);
                self.store = open_embedded(self.directory.path());
            }
        }
    }

    /// Kills the store's server, where it has one, and starts it again on its data; else only opens the store.
    pub async fn crash(&mut self) {
        self.kill_server();
        self.start_server();
        self.reopen().await;
    }

    /// SIGKILL for the store's server, where it has one.
    pub fn kill_server(&mut self) {
        if let Some(server) = &mut self.server {
            server.kill();
        }
    }

    /// Starts the server that was killed again, on its data.
    pub fn start_server(&mut self) {
        if let Some(server) = &mut self.server {
            *server = Server::start(
                self.directory.path(),
                server.url.clone(),
                server.peer.clone(),
            );
        }
    }

    /// Restores a backup into this store, and opens it again, however that went.
    pub async fn restore(
        &mut self,
        backup: &Path,
        how: RestoreOptions,
    ) -> storage::Result<Restored> {
        self.release().await;
        let restored = match &self.server {
            Some(server) => {
                let url = [server.url.as_str()];
                etcd::restore(&url, etcd::Options::default(), backup, how).await
            }
            None => embedded::restore(&self.directory.path().join("store"), backup, how),
        };
        self.reopen().await;
        restored
    }

    /// One attempt at opening the etcd.
    pub async fn connect(&self) -> storage::Result<Etcd> {
        let server = self.server.as_ref().expect("a store with a server");
        Etcd::connect(&[&server.url], etcd::Options::default()).await
    }

    /// The folder of this engine, for other files of a test.
    pub fn folder(&self) -> &Path {
        self.directory.path()
    }

    /// Lets go of the embedded file, so that another process can open it.
    pub async fn release(&mut self) {
        self.store.close().await;
        self.store = Arc::new(Gone);
    }
}

fn open_embedded(directory: &Path) -> Arc<dyn Store> {
    let path = directory.join("store");
    Arc::new(Embedded::open(path, embedded::Options::default()).expect("the store opens"))
}

async fn connect(url: &str) -> Arc<dyn Store> {
    let options = etcd::Options {
        timeout: Duration::from_secs(30),
        ..etcd::Options::default()
    };
    let connecting = async {
        loop {
            match Etcd::connect(&[url], options.clone()).await {
                Ok(store) => return store,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    Arc::new(crate::soon(connecting).await)
}

/// In place of a store that is being opened again.
struct Gone;

type Answer<'a, T> = futures::future::BoxFuture<'a, storage::Result<T>>;

fn closed<'a, T: Send + 'a>() -> Answer<'a, T> {
    Box::pin(async { Err(Error::Closed) })
}

impl Store for Gone {
    fn current_revision(&self) -> Answer<'_, u64> {
        closed()
    }
    fn get<'a>(&'a self, _: &'a str) -> Answer<'a, Option<storage::KeyValue>> {
        closed()
    }
    fn range(&self, _: storage::Range) -> Answer<'_, storage::RangeResult> {
        closed()
    }
    fn put<'a>(
        &'a self,
        _: &'a str,
        _: storage::Expect,
        _: bytes::Bytes,
        _: Option<Duration>,
    ) -> Answer<'a, u64> {
        closed()
    }
    fn delete<'a>(&'a self, _: &'a str, _: storage::Expect) -> Answer<'a, storage::Deleted> {
        closed()
    }
    fn watch<'a>(&'a self, _: &'a str, _: u64) -> Answer<'a, storage::Watch> {
        closed()
    }
    fn compact(&self, _: u64) -> Answer<'_, ()> {
        closed()
    }
    fn close(&self) -> futures::future::BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
