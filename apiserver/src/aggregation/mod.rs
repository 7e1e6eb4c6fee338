//! Other API servers behind this one, each registered by an APIService for one group and version.
//!
//! [`controller`] follows the APIServices, makes the [`Routes`] that requests are passed on by, and notes in each
//! APIService whether its server answers. [`remote`] is one such server: how it is reached and what it has told about
//! itself. [`merge`] puts that into the discovery and OpenAPI documents. [`local`] registers what this server serves
//! itself, so that clients see one list.

mod controller;
mod local;
pub mod merge;
mod remote;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use arc_swap::ArcSwap;
use http::{Request, StatusCode};

pub use controller::start;
pub use remote::{Identity, Remote};

use crate::body::{Received, Reply};
use crate::config::Config;
use crate::rest::{Exchange, text};
use crate::server::tls;

pub const GROUP: &str = "apiregistration.k8s.io";
pub const PLURAL: &str = "apiservices";

/// One APIService.
#[derive(Clone)]
pub struct Route {
    pub group: String,
    pub version: String,
    pub group_priority: i64,
    pub version_priority: i64,
    /// Absent for what this server serves itself.
    pub remote: Option<Arc<Remote>>,
    pub available: bool,
}

/// All APIServices as of one moment.
#[derive(Clone, Default)]
pub struct Routes {
    pub all: Vec<Route>,
}

impl Routes {
    pub fn remotes(&self) -> impl Iterator<Item = (&Route, &Arc<Remote>)> {
        self.all
            .iter()
            .filter_map(|route| Some((route, route.remote.as_ref()?)))
    }

    #[must_use]
    pub fn has_remotes(&self) -> bool {
        self.remotes().next().is_some()
    }

    fn find(&self, group: &str, version: &str) -> Option<&Route> {
        self.remotes()
            .map(|(route, _)| route)
            .find(|route| route.group == group && route.version == version)
    }
}

/// What requests need to know of other API servers.
pub struct Aggregator {
    routes: ArcSwap<Routes>,
    /// Counts changes of the routes and of what their servers tell, for whoever keeps merged documents.
    generation: AtomicU64,
    identity: Option<Identity>,
}

impl Aggregator {
    /// With the client certificate of the flags, by which other API servers know that the user headers are true.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let identity = match (
            &config.proxy_client_cert_file,
            &config.proxy_client_key_file,
        ) {
            (Some(certificate), Some(key)) => Some(Identity {
                chain: tls::certificates(certificate)?,
                key: Arc::new(tls::private_key(key)?),
            }),
            (None, None) => None,
            _ => anyhow::bail!(
                "--proxy-client-cert-file and --proxy-client-key-file are given together or not at all"
            ),
        };
        if let Some(identity) = &identity {
            identity
                .connector(rustls::RootCertStore::empty())
                .context("the proxy client certificate and key do not fit")?;
        }
        Ok(Self {
            routes: ArcSwap::from_pointee(Routes::default()),
            generation: AtomicU64::new(0),
            identity,
        })
    }

    #[must_use]
    pub fn routes(&self) -> Arc<Routes> {
        self.routes.load_full()
    }

    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// The server that a path belongs to, if it is another one: its resources, or its OpenAPI document.
    #[must_use]
    pub fn route(&self, path: &str) -> Option<Route> {
        let routes = self.routes.load();
        if routes.all.is_empty() {
            return None;
        }
        let path = path.strip_prefix("/openapi/v3").unwrap_or(path);
        let mut parts = path.strip_prefix("/apis/")?.split('/');
        let (group, version) = (parts.next()?, parts.next()?);
        routes.find(group, version).cloned()
    }
}

/// Passes a request on to the server of its route. What goes wrong on the way is said in plain text, as Kubernetes
/// does: clients take it for what stands between them and the API.
pub async fn serve(exchange: &Exchange, route: &Route, request: Request<Received>) -> Reply {
    let plain = |message: &str| text(StatusCode::SERVICE_UNAVAILABLE, format!("{message}\n"));
    let Some(remote) = &route.remote else {
        return text(StatusCode::NOT_FOUND, "\n");
    };
    if !route.available {
        return plain("service unavailable");
    }
    match remote.forward(exchange, request).await {
        Ok(reply) => reply,
        Err(error) => {
            tracing::info!(name = remote.name, %error, "an aggregated API server cannot be reached");
            plain(&format!("error trying to reach service: {error}"))
        }
    }
}
