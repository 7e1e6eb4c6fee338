//! Puts a server together from its configuration, and runs it.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::FromRawFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use apimachinery::resource::builtin;
use storage::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{self, Plugin};
use crate::aggregation::{self, Aggregator};
use crate::audit::Auditor;
use crate::authn::configuration;
use crate::authn::keys::{PublicKey, SigningKey};
use crate::authn::request_header::FrontProxy;
use crate::authn::service_account::ServiceAccounts;
use crate::authn::token_api::Issuer;
use crate::authn::{Anonymous, Authenticator};
use crate::authz::{Authorizer, Union, escalation::Escalation, rbac::Rbac};
use crate::config::Config;
use crate::flowcontrol::{self, FlowControl};
use crate::registry::Registry;
use crate::registry::table::Table;
use crate::server::health::Health;
use crate::server::hooks::{self, Hook};
use crate::server::metrics::Metrics;
use crate::server::{Server, listen, tls};
use crate::{discovery, encryption, endpoints, identity, kubelet};

/// A server that is listening.
pub struct Running {
    /// Where it serves.
    pub addresses: Vec<SocketAddr>,
    pub server: Arc<Server>,
    serving: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Waits for the end, which [`Server::shutdown`] asks for: connections drained, the store closed.
    pub async fn finished(self) {
        if let Err(error) = self.serving.await {
            tracing::error!(%error, "serving ended badly");
        }
        self.server.background.close();
        self.server.background.wait().await;
        self.server.registry.store.close().await;
    }
}

/// Opens the store, assembles the server and begins to serve.
pub async fn start(config: &Config) -> Result<Running> {
    let shutdown = CancellationToken::new();
    let kept = config.store.open(config.etcd_compaction_interval).await?;
    let (store, services) = sealed(config, kept.clone(), &shutdown).await?;
    let listeners = listeners(config).await?;
    let addresses = listeners
        .iter()
        .map(TcpListener::local_addr)
        .collect::<std::io::Result<Vec<_>>>()?;
    let tls = tls::server(
        &config.tls_cert_file,
        &config.tls_private_key_file,
        &client_authorities(config),
    )?;
    let table = Table::new(
        builtin()
            .iter()
            .cloned()
            .chain(crate::node_metrics::resources()),
    );
    let registry = Registry::new(store.clone(), table, config.event_ttl);
    let rbac = Arc::new(Rbac::new(&registry)?);
    let advertised = advertised(config, &addresses);
    let keys = public_keys(config)?;
    let issuer = signing(config, &keys, advertised)?;
    let accounts = service_accounts(config, keys, &registry);
    let structured = configuration::structured(config)?;
    let anonymous = match (&structured.anonymous, config.anonymous_auth) {
        (Some(anonymous), _) => anonymous.clone(),
        (None, true) => Anonymous::Everywhere,
        (None, false) => Anonymous::Nowhere,
    };
    let tokens =
        configuration::tokens(config, structured, accounts, &audiences(config), &registry)?;
    let authorizer: Arc<dyn Authorizer> = Arc::new(Union::new(config, &registry, &rbac)?);
    let guards: Vec<Box<dyn Plugin>> = vec![Box::new(Escalation {
        rbac: rbac.clone(),
        authorizer: authorizer.clone(),
    })];
    let (enabled, disabled) = (
        &config.enable_admission_plugins,
        &config.disable_admission_plugins,
    );
    let chain = admission::chain(enabled, disabled, guards, &authorizer)?;
    let hooks = post_start(config, advertised);
    registry.assemble(chain, crate::services::reservers(config)?);
    let definitions = crate::crd::Controller::new(&registry)?;
    let server = Arc::new(Server {
        authorizer,
        authenticator: Authenticator::new(tokens, anonymous)
            .with_front_proxy(FrontProxy::new(config)?),
        aggregator: Aggregator::new(config)?,
        issuer,
        auditor: Auditor::new(config)?,
        health: Health::new(
            store,
            hooks.iter().map(|hook| hook.name),
            services,
            shutdown.clone(),
        ),
        metrics: Metrics::default(),
        discovery: discovery::Documents {
            address: advertised.to_string(),
        },
        openapi: crate::openapi::Documents::default(),
        flow_control: FlowControl::new(config),
        kubelets: kubelet::Kubelets::new(config)?,
        definitions: definitions.clone(),
        registry,
        kept,
        background: TaskTracker::new(),
        shutdown,
    });
    tokio::spawn(definitions.run(server.shutdown.clone()));
    let (policies, shutdown) = (server.registry.clone(), server.shutdown.clone());
    tokio::spawn(admission::policy::status::run(policies, shutdown));
    let serving = tokio::spawn(listen::serve(server.clone(), listeners, tls));
    tokio::spawn(hooks::run(server.clone(), hooks));
    Ok(Running {
        addresses,
        server,
        serving,
    })
}

/// All authorities whose client certificates TLS lets in; what each is good for is decided later.
fn client_authorities(config: &Config) -> Vec<&std::path::Path> {
    [&config.client_ca_file, &config.requestheader_client_ca_file]
        .into_iter()
        .flatten()
        .map(std::path::PathBuf::as_path)
        .collect()
}

/// The store, sealed as the configuration says.
async fn sealed(
    config: &Config,
    store: Arc<dyn Store>,
    shutdown: &CancellationToken,
) -> Result<(Arc<dyn Store>, Option<encryption::SharedRules>)> {
    let Some(path) = &config.encryption_provider_config else {
        return Ok((store, None));
    };
    let rules = encryption::config::read(path)?;
    // It may be one of the cluster's own pods, which comes up after this server.
    if let Err(error) = rules.start().await {
        tracing::warn!(
            error = format!("{error:#}"),
            "a KMS plugin is not there yet"
        );
    }
    let services = rules.has_services() || config.encryption_provider_config_automatic_reload;
    let rules = encryption::SharedRules::new(rules);
    if config.encryption_provider_config_automatic_reload {
        encryption::reload::follow(path, rules.clone(), shutdown.clone())?;
    }
    let store = Arc::new(encryption::EncryptedStore::new(store, rules.clone()));
    Ok((store, services.then_some(rules)))
}

async fn listeners(config: &Config) -> Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for fd in &config.listen_fd {
        // SAFETY: the flag says that whoever started us passed this descriptor for us to own.
        let inherited = unsafe { std::net::TcpListener::from_raw_fd(*fd) };
        inherited
            .set_nonblocking(true)
            .with_context(|| format!("--listen-fd {fd} is no socket"))?;
        listeners.push(TcpListener::from_std(inherited)?);
    }
    // Tests bind port 0 through Config, the command line means "none" by it.
    if config.secure_port != 0 || config.listen_fd.is_empty() {
        let address = SocketAddr::new(config.bind_address, config.secure_port);
        listeners.push(
            TcpListener::bind(address)
                .await
                .with_context(|| format!("binding {address}"))?,
        );
    }
    Ok(listeners)
}

fn signing(config: &Config, keys: &[PublicKey], advertised: SocketAddr) -> Result<Option<Issuer>> {
    let Some(key) = signing_key(config)? else {
        return Ok(None);
    };
    let jwks_uri = config.service_account_jwks_uri.clone();
    Ok(Some(Issuer {
        key,
        issuer: issuers(config)[0].clone(),
        api_audiences: audiences(config),
        keys: keys.to_vec(),
        jwks_uri: jwks_uri.unwrap_or_else(|| format!("https://{advertised}/openid/v1/jwks")),
    }))
}

fn signing_key(config: &Config) -> Result<Option<SigningKey>> {
    let Some(path) = &config.service_account_signing_key_file else {
        return Ok(None);
    };
    let pem = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let key = SigningKey::read(&pem);
    key.map(Some)
        .with_context(|| format!("reading the key in {}", path.display()))
}

/// The keys that service account tokens are checked with: the one that signs, and those of the flag.
fn public_keys(config: &Config) -> Result<Vec<PublicKey>> {
    let mut keys: Vec<PublicKey> = signing_key(config)?
        .map(|key| key.public)
        .into_iter()
        .collect();
    for path in &config.service_account_key_file {
        let pem = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let read =
            PublicKey::read(&pem).with_context(|| format!("reading keys in {}", path.display()))?;
        for key in read {
            if !keys.iter().any(|known| known.id == key.id) {
                keys.push(key);
            }
        }
    }
    Ok(keys)
}

/// The issuers of service account tokens; the first one is ours. The flag has a default, so there is one.
fn issuers(config: &Config) -> &[String] {
    &config.service_account_issuer
}

fn audiences(config: &Config) -> Vec<String> {
    match config.api_audiences.is_empty() {
        true => issuers(config).to_vec(),
        false => config.api_audiences.clone(),
    }
}

fn service_accounts(
    config: &Config,
    keys: Vec<PublicKey>,
    registry: &Arc<Registry>,
) -> Option<ServiceAccounts> {
    (!keys.is_empty()).then(|| ServiceAccounts {
        keys,
        issuers: issuers(config).to_vec(),
        api_audiences: audiences(config),
        registry: Arc::downgrade(registry),
    })
}

/// Where the `kubernetes` Service leads to: as said, or the address that is served on. Pods cannot reach a loopback
/// address, so that one gives way to the address by which this machine reaches others, as in Kubernetes.
fn advertised(config: &Config, addresses: &[SocketAddr]) -> SocketAddr {
    let served = addresses
        .last()
        .copied()
        .unwrap_or_else(|| SocketAddr::new(config.bind_address, config.secure_port));
    let address: IpAddr = config.advertise_address.unwrap_or_else(|| {
        let ip = served.ip();
        match ip.is_loopback() || ip.is_unspecified() {
            true => outward().unwrap_or(ip),
            false => ip,
        }
    });
    SocketAddr::new(address, served.port())
}

/// The address of this machine on its default route. Connecting a datagram socket sends nothing.
fn outward() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // An address for documentation, which no network has.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// Makes this server an endpoint of the `kubernetes` Service, for as long as it runs.
fn reconciled(config: &Config, advertised: SocketAddr) -> Option<Hook> {
    if config.endpoint_reconciler_type == "none" {
        return None;
    }
    if advertised.ip().is_loopback() {
        // No endpoint may be there, and no pod would find it.
        tracing::warn!(%advertised, "the kubernetes Service has no endpoints: advertise an address that pods can reach");
        return None;
    }
    let alone = config.store.is_embedded();
    Some(Hook::new(
        "start-kubernetes-service-controller",
        move |server| async move {
            if alone {
                let own = [advertised.ip()].into();
                return endpoints::publish(&server.registry, &own, advertised.port()).await;
            }
            let mut reconciler = endpoints::Reconciler::new(server.registry.clone(), advertised);
            reconciler.join().await?;
            server
                .background
                .spawn(reconciler.run(server.shutdown.clone()));
            Ok(())
        },
    ))
}

fn post_start(config: &Config, advertised: SocketAddr) -> Vec<Hook> {
    let authentication = config.clone();
    let mut hooks = vec![Hook::new("rbac/bootstrap-roles", move |server| {
        let published = crate::bootstrap::authentication(&authentication);
        async move { crate::bootstrap::run(&server.registry, published).await }
    })];
    hooks.push(Hook::new("crd-informer-synced", |server| async move {
        server.definitions.synced().await;
        Ok(())
    }));
    let range = config.service_cluster_ip_range.clone();
    hooks.push(Hook::new("bootstrap-controller", move |server| {
        let range = range.clone();
        async move { crate::system::kubernetes_service(&server.registry, &range, advertised).await }
    }));
    if let Some(reconciled) = reconciled(config, advertised) {
        hooks.push(reconciled);
    }
    hooks.push(Hook::new(
        "start-kube-apiserver-identity-lease-controller",
        identity::start,
    ));
    let range = config.service_cluster_ip_range.clone();
    hooks.push(Hook::new("start-default-service-cidr", move |server| {
        let range = range.clone();
        async move { crate::system::default_service_cidr(&server.registry, &range).await }
    }));
    hooks.push(Hook::new(
        "start-service-ip-repair-controllers",
        |server| async move { crate::services::repair::repair(&server.registry).await },
    ));
    hooks.push(Hook::new(
        "priority-and-fairness-config-producer",
        flowcontrol::start,
    ));
    hooks.push(Hook::new(
        "kube-apiserver-autoregistration",
        aggregation::start,
    ));
    hooks
}
