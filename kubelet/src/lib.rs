//! The kubelet: makes the containers on this machine be what the API server says.
//!
//! Every pod has a *worker* ([`pod::worker`]), a thin loop: look at the runtime over CRI
//! ([`cri`], [`model`]), ask the pure [`pod::plan`] what to do, do it, and wait for the next
//! event. What the API gets to read about the pod is pure too: [`pod::status`]. A restarted
//! kubelet reads everything back from the runtime and disturbs no container. Before a pod gets its
//! worker it is admitted ([`pod::admission`]): it must fit beside what the others hold ([`pod::allocation`]).
//!
//! Around that: [`node`] keeps the Node object and its Lease; [`runtime_events`] says when a
//! container ends; [`container`] turns a spec into what the runtime is told; [`volumes`] makes
//! volumes and keeps live ones current through [`objects`]; [`probes`] and [`handlers`] look
//! after health; [`cgroups`] and [`resources`] turn requests and limits into kernel settings;
//! [`server`] answers for logs, exec, attach, port-forward, statistics and metrics.
//!
//! Start reading at [`pod::plan`], then [`pod::worker`].

pub mod cgroups;
pub mod container;
pub mod context;
pub mod cri;
pub mod flags;
pub mod handlers;
pub mod images;
pub mod logs;
pub mod model;
pub mod node;
pub mod objects;
pub mod pod;
pub mod probes;
pub mod quantity;
pub mod resources;
pub mod runtime_events;
pub mod server;
pub mod volumes;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use client::CancellationToken;
use k8s_openapi::api::core::v1::{Node as ApiNode, NodeStatus, Service};
use kube::api::Api;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::container::dns::{DnsFacts, parse_resolv_conf};
use crate::context::{Node, RuntimeState};
use crate::flags::Flags;
use crate::pod::allocation::Allocations;
use crate::pod::status::NodeFacts;

/// Runs until a signal; containers are left running.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    anyhow::ensure!(
        flags.cgroup_driver == "cgroupfs",
        "--cgroup-driver={}: only cgroupfs is supported",
        flags.cgroup_driver
    );
    let shutdown = client::shutdown_signal();
    let name = node::facts::hostname(&flags);
    let ips = match flags.node_ip.is_empty() {
        false => flags.node_ip.clone(),
        true => vec![
            node::facts::default_ip()
                .context("this machine has no address of its own; give one with --node-ip")?,
        ],
    };
    std::fs::create_dir_all(&flags.root_dir)
        .with_context(|| format!("cannot make {}", flags.root_dir.display()))?;
    let api = client::connect(
        Some(&flags.kubeconfig),
        &format!("kubelet/{}", node::facts::VERSION),
    )
    .await?;
    let runtime = cri::Runtime::connect(&flags.container_runtime_endpoint)?;
    let Some(version) = wait_for_runtime(&runtime, &shutdown).await else {
        return Ok(());
    };
    let (changed, changes) = mpsc::unbounded_channel();
    let cgroups = cgroups::Cgroups::discover(&flags.cgroup_root)?;
    cgroups.prepare().context("cannot make the pods' cgroups")?;
    let info = info(&name, &flags, ips.clone(), &version);
    let node = Arc::new(Node {
        facts: NodeFacts {
            ips,
            runtime: version.runtime_name.clone(),
        },
        recorder: client::Recorder::new(api.clone(), "kubelet", Some(&name)),
        objects: objects::Objects::new(api.clone(), changed),
        services: services(&api, &shutdown),
        own: own(&api, &name, &shutdown),
        allocations: Mutex::new(Allocations::new(node::status::allocatable(&info))),
        client: api,
        runtime,
        cgroups,
        dns: DnsFacts {
            cluster_dns: flags.cluster_dns.clone(),
            cluster_domain: flags.cluster_domain.clone(),
            host: parse_resolv_conf(
                &std::fs::read_to_string(&flags.resolv_conf).unwrap_or_default(),
            ),
        },
        routes: Default::default(),
        tokens: Default::default(),
        state: watch::Sender::new(RuntimeState {
            message: "container runtime status check may not have completed yet".into(),
            ..Default::default()
        }),
        memory: info.memory,
        cpu_milli: i64::try_from(info.cpus).unwrap_or(1) * 1000,
        pods: Default::default(),
        name,
        flags,
    });
    run_parts(node, info, changes, shutdown).await
}

async fn run_parts(
    node: Arc<Node>,
    info: node::facts::NodeInfo,
    changes: mpsc::UnboundedReceiver<String>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (events, heard) = mpsc::unbounded_channel();
    tokio::spawn(runtime_events::follow(node.runtime.clone(), events));
    tokio::spawn(node::watch_runtime(
        node.runtime.clone(),
        node.state.clone(),
        shutdown.clone(),
    ));
    tokio::spawn(node::run(node.clone(), info, shutdown.clone()));
    tokio::spawn(node::lease::run(
        node.client.clone(),
        node.name.clone(),
        shutdown.clone(),
    ));
    tokio::spawn(logs::rotate::run(node.clone(), shutdown.clone()));
    let server = tokio::spawn(server::run(node.clone(), shutdown.clone()));
    pod::manager::run(node, heard, changes, shutdown.clone()).await;
    if !shutdown.is_cancelled() {
        server.abort();
        anyhow::bail!("the watch for pods ended");
    }
    server.await?
}

fn info(
    name: &str,
    flags: &Flags,
    ips: Vec<String>,
    version: &k8s_cri::v1::VersionResponse,
) -> node::facts::NodeInfo {
    node::facts::NodeInfo {
        name: name.to_owned(),
        ips,
        cpus: node::facts::cpus(),
        memory: node::facts::memory(),
        storage: node::facts::storage(&flags.root_dir),
        max_pods: flags.max_pods,
        port: flags.port,
        system: node::facts::system(&format!(
            "{}://{}",
            version.runtime_name, version.runtime_version
        )),
        images: Vec::new(),
    }
}

/// Only what environment variables tell of services is kept.
fn services(api: &kube::Client, shutdown: &CancellationToken) -> client::Informer<Service> {
    client::Informer::builder(Api::<Service>::all(api.clone()))
        .trim(|s: &mut Service| {
            s.status = None;
            s.metadata.managed_fields = None;
            s.metadata.annotations = None;
            s.metadata.labels = None;
        })
        .start(shutdown)
}

/// This node's object: only what decides on the admission of pods is kept.
fn own(api: &kube::Client, name: &str, shutdown: &CancellationToken) -> client::Informer<ApiNode> {
    client::Informer::builder(Api::all(api.clone()))
        .fields(&format!("metadata.name={name}"))
        .trim(|node: &mut ApiNode| {
            node.metadata.annotations = None;
            if let Some(status) = &mut node.status {
                *status = NodeStatus {
                    allocatable: status.allocatable.take(),
                    ..Default::default()
                };
            }
        })
        .start(shutdown)
}

/// The runtime may come up after the kubelet; nothing can be said about the node before.
async fn wait_for_runtime(
    runtime: &cri::Runtime,
    shutdown: &CancellationToken,
) -> Option<k8s_cri::v1::VersionResponse> {
    let mut wait = Duration::from_millis(10);
    loop {
        match runtime.version().await {
            Ok(version) => return Some(version),
            Err(error) if wait > Duration::from_millis(500) => {
                tracing::warn!(%error, "waiting for the container runtime")
            }
            Err(_) => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = tokio::time::sleep(wait) => wait = (wait * 5 / 4).min(Duration::from_secs(1)),
        }
    }
}
