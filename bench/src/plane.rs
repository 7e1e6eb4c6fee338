//! A control plane of real programs for one measurement: Skiff's or Kubernetes', on either store.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cli::cluster::{kubeconfig, pki::Authority};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;

use crate::load::Client;
use crate::process;

/// How long a program may take to serve.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whose programs, and where they are.
#[derive(Debug, Clone)]
pub enum Make {
    Skiff(PathBuf),
    /// Kubernetes' own `kube-apiserver`, `kube-scheduler`, `kube-controller-manager`.
    Kubernetes(PathBuf),
}

impl Make {
    fn program(&self, component: &str) -> PathBuf {
        match self {
            Make::Skiff(dir) => dir.join(component),
            Make::Kubernetes(dir) => dir.join(format!("kube-{component}")),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Embedded,
    Etcd,
}

/// A process that ends with its owner.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts `program` with `--flag=value` for each of `args`; what it prints is appended to `log`.
    pub fn start(program: &Path, args: &[(&str, String)], log: &Path) -> Result<Self> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)?;
        let child = Command::new(program)
            .args(args.iter().map(|(flag, value)| format!("--{flag}={value}")))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Process(child))
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it has not ended by itself.
    pub fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A running API server with its store, and whatever else was started with it.
pub struct Plane {
    pub client: Client,
    /// From the start of the API server's process to its first 200 on `/readyz`.
    pub start: Duration,
    make: Make,
    others: Vec<Process>,
    apiserver: Process,
    // Ends after the API server, which writes to it.
    etcd: Option<Process>,
    directory: TempDir,
}

impl Plane {
    /// Starts an API server on an empty store.
    pub async fn start(make: &Make, store: Store) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("skiff-bench-").tempdir()?;
        let dir = directory.path();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let client = Client {
            address,
            tls: identities(dir, address)?,
        };
        let mut flags = apiserver_flags(dir, address);
        let etcd = match store {
            Store::Embedded => {
                flags.push(("data-dir", dir.join("store").display().to_string()));
                None
            }
            Store::Etcd => {
                let (etcd, url) = start_etcd(dir)?;
                flags.push(("etcd-servers", url));
                Some(etcd)
            }
        };
        let started = Instant::now();
        let apiserver = Process::start(
            &make.program("apiserver"),
            &flags,
            &dir.join("apiserver.log"),
        )?;
        if let Err(error) = client.ready("/readyz", PATIENCE).await {
            let log = std::fs::read_to_string(dir.join("apiserver.log")).unwrap_or_default();
            return Err(error.context(log));
        }
        Ok(Plane {
            client,
            start: started.elapsed(),
            make: make.clone(),
            others: Vec::new(),
            apiserver,
            etcd,
            directory,
        })
    }

    /// Starts another component, without leader election: there is only one of it.
    pub fn run(&mut self, component: &str, flags: &[(&str, String)]) -> Result<u32> {
        let dir = self.directory.path();
        let mut all = vec![
            ("kubeconfig", dir.join("admin.conf").display().to_string()),
            ("leader-elect", "false".to_string()),
            ("secure-port", free_port()?.to_string()),
        ];
        all.extend_from_slice(flags);
        let log = dir.join(format!("{component}.log"));
        let process = Process::start(&self.make.program(component), &all, &log)?;
        let pid = process.pid();
        self.others.push(process);
        Ok(pid)
    }

    /// The flags of a controller manager.
    #[must_use]
    pub fn manager_flags(&self) -> Vec<(&'static str, String)> {
        let file = |name: &str| self.directory.path().join(name).display().to_string();
        vec![
            ("cluster-cidr", "10.244.0.0/16".into()),
            ("allocate-node-cidrs", "true".into()),
            ("root-ca-file", file("ca.crt")),
            ("service-account-private-key-file", file("sa.key")),
        ]
    }

    #[must_use]
    pub fn is_kubernetes(&self) -> bool {
        matches!(self.make, Make::Kubernetes(_))
    }

    /// The API server's resident memory in bytes.
    pub fn memory(&self) -> Result<u64> {
        process::resident(self.apiserver.pid())
    }

    /// The same of everything that runs, the store's own process included.
    pub fn memory_of_all(&self) -> Result<u64> {
        let all = self.others.iter().chain(&self.etcd);
        all.map(|p| process::resident(p.pid()))
            .sum::<Result<u64>>()
            .and_then(|others| Ok(others + self.memory()?))
    }
}

/// A port of the loopback that nobody uses now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

fn start_etcd(dir: &Path) -> Result<(Process, String)> {
    let url = format!("http://127.0.0.1:{}", free_port()?);
    let peer = format!("http://127.0.0.1:{}", free_port()?);
    let flags = [
        ("name", "bench".to_string()),
        ("data-dir", dir.join("etcd").display().to_string()),
        ("listen-client-urls", url.clone()),
        ("advertise-client-urls", url.clone()),
        ("listen-peer-urls", peer.clone()),
        ("initial-advertise-peer-urls", peer.clone()),
        ("initial-cluster", format!("bench={peer}")),
        ("quota-backend-bytes", (8u64 << 30).to_string()),
        ("log-level", "warn".into()),
    ];
    let etcd = Process::start(Path::new("etcd"), &flags, &dir.join("etcd.log"))?;
    Ok((etcd, url))
}

/// The flags of an API server at `address` whose certificates are in `dir`, but for its store.
#[must_use]
pub fn apiserver_flags(dir: &Path, address: SocketAddr) -> Vec<(&'static str, String)> {
    let file = |name: &str| dir.join(name).display().to_string();
    vec![
        ("bind-address", address.ip().to_string()),
        ("secure-port", address.port().to_string()),
        ("tls-cert-file", file("apiserver.crt")),
        ("tls-private-key-file", file("apiserver.key")),
        ("client-ca-file", file("ca.crt")),
        (
            "service-account-issuer",
            "https://kubernetes.default.svc.cluster.local".into(),
        ),
        ("service-account-key-file", file("sa.pub")),
        ("service-account-signing-key-file", file("sa.key")),
        ("service-cluster-ip-range", "10.96.0.0/12".into()),
        ("authorization-mode", "Node,RBAC".into()),
    ]
}

/// Makes the certificates and the administrator's kubeconfig in `dir`; the administrator's TLS settings.
pub fn identities(dir: &Path, address: SocketAddr) -> Result<Arc<rustls::ClientConfig>> {
    let ca = Authority::generate("kubernetes")?;
    std::fs::write(dir.join("ca.crt"), &ca.certificate)?;
    let names = ["localhost", "kubernetes", "kubernetes.default.svc"];
    ca.server("kube-apiserver", &[], &names, &[address.ip()])?
        .write(dir, "apiserver")?;
    let admin = ca.client("admin", &["system:masters"])?;
    let server = format!("https://{address}");
    kubeconfig::write(
        &dir.join("admin.conf"),
        &kubeconfig::document("bench", &server, &ca.certificate, &admin),
    )?;
    let tokens = rcgen::KeyPair::generate()?;
    std::fs::write(dir.join("sa.pub"), tokens.public_key_pem())?;
    std::fs::write(dir.join("sa.key"), tokens.serialize_pem())?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.certificate.as_bytes())?)?;
    let certificate = CertificateDer::from_pem_slice(admin.certificate.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(admin.key.as_bytes())?;
    Ok(Arc::new(
        rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)?,
    ))
}
