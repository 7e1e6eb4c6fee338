//! What every part of the kubelet shares: the node's identity, its clients and caches.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{EventType, Recorder};
use k8s_openapi::api::core::v1::{Node as ApiNode, ObjectReference, Pod, Service};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::cgroups::Cgroups;
use crate::container::dns::DnsFacts;
use crate::container::fields::FieldFacts;
use crate::container::sandbox::SandboxFacts;
use crate::cri::Runtime;
use crate::flags::Flags;
use crate::objects::Objects;
use crate::pod::allocation::Allocations;
use crate::pod::status::NodeFacts;
use crate::pod::worker::Message;
use crate::volumes::projected::Tokens;
use crate::{container::files, model, node};

/// What the runtime says about itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuntimeState {
    pub runtime_ready: bool,
    pub network_ready: bool,
    pub message: String,
}

/// Which worker to wake for a container id.
#[derive(Default)]
pub struct Routes {
    to: HashMap<String, mpsc::UnboundedSender<Message>>,
    /// Ends of containers that no worker knows yet: a short one may be over before its start has been told.
    early: HashMap<String, Instant>,
}

/// How long an early end waits for its container's worker.
const EARLY: Duration = Duration::from_secs(30);

impl Routes {
    /// Passes on that a container has ended.
    pub fn exited(&mut self, id: String) {
        match self.to.get(&id) {
            // A worker that has just ended needs no news.
            Some(to) => drop(to.send(Message::Exited(id))),
            None => {
                self.early.retain(|_, at| at.elapsed() < EARLY);
                self.early.insert(id, Instant::now());
            }
        }
    }

    /// Sets the ids that belong to a worker; those of them that have ended early are returned.
    pub fn set<'a>(
        &mut self,
        worker: &mpsc::UnboundedSender<Message>,
        ids: impl Iterator<Item = &'a String>,
    ) -> Vec<String> {
        self.to.retain(|_, to| !to.same_channel(worker));
        let mut early = Vec::new();
        for id in ids {
            self.to.insert(id.clone(), worker.clone());
            early.extend(self.early.remove(id).map(|_| id.clone()));
        }
        early
    }
}

pub struct Node {
    pub flags: Flags,
    pub name: String,
    pub facts: NodeFacts,
    pub client: kube::Client,
    pub runtime: Runtime,
    pub recorder: Recorder,
    pub objects: Objects,
    pub services: client::Informer<Service>,
    /// The node's own object, once it has registered.
    pub own: client::Informer<ApiNode>,
    pub cgroups: Cgroups,
    pub dns: DnsFacts,
    pub routes: Mutex<Routes>,
    pub tokens: Tokens,
    pub state: watch::Sender<RuntimeState>,
    /// Bytes of memory that the node has, and its cpu in thousandths.
    pub memory: i64,
    pub cpu_milli: i64,
    /// Pods as last seen, by uid, for the server.
    pub pods: Mutex<HashMap<String, Arc<Pod>>>,
    /// What the admitted ones hold of the node.
    pub allocations: Mutex<Allocations>,
}

impl Node {
    pub fn sandbox_facts(&self, pod: &Pod) -> SandboxFacts<'_> {
        SandboxFacts {
            dns: &self.dns,
            cgroup_parent: self.cgroups.pod_path(pod),
            log_directory: files::log_dir(&self.flags.log_dir, pod)
                .display()
                .to_string(),
            root: self.flags.root_dir.to_str().unwrap_or_default(),
        }
    }

    pub fn field_facts(&self, pod_ips: &[String]) -> FieldFacts {
        FieldFacts {
            pod_ips: pod_ips.to_vec(),
            host_ips: self.facts.ips.clone(),
            node_cpu_milli: self.cpu_milli,
            node_memory: self.memory,
        }
    }

    /// The services that the pod's environment names: those of its namespace, and the API itself.
    pub fn services_for(&self, pod: &Pod) -> Vec<Arc<Service>> {
        let namespace = model::namespace(pod);
        let mut all = match model::spec(pod).enable_service_links {
            Some(false) => Vec::new(),
            _ => self.services.namespace(namespace),
        };
        let api = self.services.get("default/kubernetes");
        all.extend(api.filter(|api| !all.iter().any(|s| s.metadata.uid == api.metadata.uid)));
        all
    }

    /// The node as the API has it, or as it will register.
    pub fn api_node(&self) -> Arc<ApiNode> {
        let registers = || Arc::new(node::status::registration(&self.name, &self.flags));
        self.own.get(&self.name).unwrap_or_else(registers)
    }

    pub fn network_ready(&self) -> bool {
        self.state.borrow().network_ready
    }
}

/// Events about a pod or one of its containers.
pub struct Report<'a> {
    node: &'a Node,
    about: ObjectReference,
}

impl<'a> Report<'a> {
    pub fn pod(node: &'a Node, pod: &Pod) -> Self {
        Report {
            node,
            about: client::events::reference(pod),
        }
    }

    pub fn container(node: &'a Node, pod: &Pod, name: &str) -> Self {
        let init = model::init_containers(pod).iter().any(|c| c.name == name);
        let ephemeral = model::ephemeral_containers(pod)
            .iter()
            .any(|c| c.name == name);
        let list = match (init, ephemeral) {
            (true, _) => "initContainers",
            (_, true) => "ephemeralContainers",
            _ => "containers",
        };
        let mut report = Report::pod(node, pod);
        report.about.field_path = Some(format!("spec.{list}{{{name}}}"));
        report
    }

    pub fn normal(&self, reason: &str, message: &str) {
        self.node
            .recorder
            .event(&self.about, EventType::Normal, reason, message);
    }

    pub fn warning(&self, reason: &str, message: &str) {
        self.node
            .recorder
            .event(&self.about, EventType::Warning, reason, message);
    }
}
