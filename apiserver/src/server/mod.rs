//! The server: what all requests share, and the sockets that they come in on.
//!
//! [`listen`] accepts connections and speaks TLS and HTTP, by way of [`ahead`] and [`coalesce`], which spare system calls;
//! [`tls`] reads keys and certificates, [`health`] and
//! [`fixed`] answer the paths that are no resources, [`hooks`] run once serving has begun.

mod ahead;
mod coalesce;
pub mod fixed;
pub mod health;
pub mod hooks;
pub mod listen;
pub mod metrics;
pub mod tls;

use std::sync::Arc;

use storage::Store;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::authn::Authenticator;
use crate::authn::token_api::Issuer;
use crate::authz::Authorizer;
use crate::registry::Registry;
use health::Health;
use metrics::Metrics;

/// Everything that a request may need.
pub struct Server {
    pub registry: Arc<Registry>,
    pub authenticator: Authenticator,
    pub authorizer: Arc<dyn Authorizer>,
    pub issuer: Option<Issuer>,
    pub auditor: Option<crate::audit::Auditor>,
    pub health: Health,
    pub metrics: Metrics,
    pub discovery: crate::discovery::Documents,
    pub openapi: crate::openapi::Documents,
    pub aggregator: crate::aggregation::Aggregator,
    pub kubelets: crate::kubelet::Kubelets,
    /// What users define.
    pub definitions: Arc<crate::crd::Controller>,
    /// The store as it is, which backups are made of: what is sealed stays so.
    pub kept: Arc<dyn Store>,
    /// What has something left to do in the store when the server stops.
    pub background: TaskTracker,
    /// Whose turn it is to be answered, so that a flood waits or is refused instead of filling memory.
    pub flow_control: crate::flowcontrol::FlowControl,
    /// Cancelled when the server is to stop: watches end, connections drain.
    pub shutdown: CancellationToken,
}
