//! The informers of all controllers: one copy of each kind, started by the first who asks, trimmed to what is read.

use std::sync::OnceLock;

use client::{CancellationToken, Informer};
use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet,
};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
    ReplicationController, ResourceQuota, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Api;

use crate::frame::Objects;
use crate::meta::{self, CONTROLLER};
use crate::storageprotection;

macro_rules! informers {
    ($($(#[$doc:meta])* $name:ident: $kind:ty = |$builder:ident| $options:expr, $api:expr;)*) => {
        /// One field per kind; asking for a kind starts its informer.
        pub struct Informers {
            client: kube::Client,
            token: CancellationToken,
            $($name: OnceLock<Objects<$kind>>,)*
        }

        impl Informers {
            pub fn new(client: kube::Client, token: CancellationToken) -> Self {
                Self { client, token, $($name: OnceLock::new(),)* }
            }

            $($(#[$doc])* pub fn $name(&self) -> &Objects<$kind> {
                self.$name.get_or_init(|| {
                    let $builder = Informer::<$kind>::builder(Api::all(self.client.clone()));
                    Objects { informer: $options.start(&self.token), client: self.client.clone(), api: $api }
                })
            })*
        }
    };
}

informers! {
    /// Pods, indexed by [`CONTROLLER`] and by [`NODE`].
    pods: Pod = |b| b.trim(trim_pod).index(CONTROLLER, meta::controller_index).index(NODE, node_of), |c, ns| Api::namespaced(c, ns);
    /// ReplicaSets, indexed by [`CONTROLLER`].
    replica_sets: ReplicaSet = |b| b.index(CONTROLLER, meta::controller_index), |c, ns| Api::namespaced(c, ns);
    /// Indexed by [`CONTROLLER`].
    replication_controllers: ReplicationController = |b| b.index(CONTROLLER, meta::controller_index), |c, ns| Api::namespaced(c, ns);
    daemon_sets: DaemonSet = |b| b.trim(|d| trim_applied(&mut d.metadata)), |c, ns| Api::namespaced(c, ns);
    /// Indexed by [`CONTROLLER`].
    controller_revisions: ControllerRevision = |b| b.trim(|r| trim_applied(&mut r.metadata)).index(CONTROLLER, meta::controller_index), |c, ns| Api::namespaced(c, ns);
    deployments: Deployment = |b| b.trim(|d| trim_applied(&mut d.metadata)), |c, ns| Api::namespaced(c, ns);
    horizontal_pod_autoscalers: HorizontalPodAutoscaler = |b| b.trim(|a| trim_applied(&mut a.metadata)), |c, ns| Api::namespaced(c, ns);
    cron_jobs: CronJob = |b| b.trim(|c| trim_applied(&mut c.metadata)), |c, ns| Api::namespaced(c, ns);
    jobs: Job = |b| b.trim(|j| trim_applied(&mut j.metadata)).index(CONTROLLER, meta::controller_index), |c, ns| Api::namespaced(c, ns);
    nodes: Node = |b| b.trim(trim_node), |c, _| Api::all(c);
    namespaces: Namespace = |b| b.trim(|n| trim_applied(&mut n.metadata)), |c, _| Api::all(c);
    /// Only those in `kube-node-lease`.
    node_leases: Lease = |b| b.fields("metadata.namespace=kube-node-lease"), |c, ns| Api::namespaced(c, ns);
    cluster_roles: ClusterRole = |b| b.trim(|r| trim_applied(&mut r.metadata)), |c, _| Api::all(c);
    resource_quotas: ResourceQuota = |b| b.trim(|q| trim_applied(&mut q.metadata)), |c, ns| Api::namespaced(c, ns);
    pod_disruption_budgets: PodDisruptionBudget = |b| b.trim(|p| trim_applied(&mut p.metadata)), |c, ns| Api::namespaced(c, ns);
    persistent_volumes: PersistentVolume = |b| b.trim(|v| trim_applied(&mut v.metadata)), |c, _| Api::all(c);
    persistent_volume_claims: PersistentVolumeClaim = |b| b.trim(|p| trim_applied(&mut p.metadata)), |c, ns| Api::namespaced(c, ns);
    stateful_sets: StatefulSet = |b| b.trim(|s| trim_applied(&mut s.metadata)), |c, ns| Api::namespaced(c, ns);
    services: Service = |b| b.trim(|s| trim_applied(&mut s.metadata)), |c, ns| Api::namespaced(c, ns);
    service_accounts: ServiceAccount = |b| b.trim(|a| trim_applied(&mut a.metadata)), |c, ns| Api::namespaced(c, ns);
    signing_requests: CertificateSigningRequest = |b| b, |c, _| Api::all(c);
    /// Secrets, only those of bootstrap tokens.
    bootstrap_tokens: Secret = |b| b.fields("type=bootstrap.kubernetes.io/token,metadata.namespace=kube-system"), |c, ns| Api::namespaced(c, ns);
    /// Secrets, only those that hold tokens of ServiceAccounts.
    token_secrets: Secret = |b| b.fields("type=kubernetes.io/service-account-token").trim(|s| trim_applied(&mut s.metadata)), |c, ns| Api::namespaced(c, ns);
    /// Only `kube-public/cluster-info`.
    cluster_info: ConfigMap = |b| b.fields("metadata.name=cluster-info,metadata.namespace=kube-public"), |c, ns| Api::namespaced(c, ns);
    /// Only those named `kube-root-ca.crt`.
    root_ca_maps: ConfigMap = |b| b.fields("metadata.name=kube-root-ca.crt"), |c, ns| Api::namespaced(c, ns);
    endpoints: Endpoints = |b| b.trim(|e| trim_applied(&mut e.metadata)), |c, ns| Api::namespaced(c, ns);
    service_cidrs: ServiceCIDR = |b| b, |c, _| Api::all(c);
    ip_addresses: IPAddress = |b| b, |c, _| Api::all(c);
    /// EndpointSlices, indexed by [`SERVICE`].
    endpoint_slices: EndpointSlice = |b| b.trim(|e| trim_applied(&mut e.metadata)).index(SERVICE, service_of), |c, ns| Api::namespaced(c, ns);
}

/// Index: the name of the node that a pod is bound to.
pub const NODE: &str = "node";
/// Index: `namespace/name` of the Service that an EndpointSlice belongs to.
pub const SERVICE: &str = "service";

fn node_of(pod: &Pod) -> Vec<String> {
    pod.spec
        .as_ref()
        .and_then(|s| s.node_name.clone())
        .into_iter()
        .collect()
}

fn service_of(slice: &EndpointSlice) -> Vec<String> {
    let service = slice
        .metadata
        .labels
        .as_ref()
        .and_then(|l| l.get("kubernetes.io/service-name"));
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    service
        .map(|s| format!("{namespace}/{s}"))
        .into_iter()
        .collect()
}

/// What `kubectl apply` keeps for itself is as large as the object.
fn trim_applied(meta: &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) {
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

fn trim_pod(pod: &mut Pod) {
    trim_applied(&mut pod.metadata);
    storageprotection::trim_volumes(pod);
    if let Some(spec) = &mut pod.spec {
        // A daemon's affinity says which node it waits for.
        if meta::controller_of(&pod.metadata).is_none_or(|o| o.kind != "DaemonSet") {
            spec.affinity = None;
        }
        spec.security_context = None;
        spec.topology_spread_constraints = None;
        let containers = spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten());
        containers.for_each(trim_container);
    }
    if let Some(status) = &mut pod.status {
        let statuses = status
            .container_statuses
            .iter_mut()
            .chain(&mut status.init_container_statuses)
            .flatten();
        for status in statuses {
            status.image_id = String::new();
            status.volume_mounts = None;
            status.allocated_resources = None;
            status.resources = None;
        }
    }
}

/// Names, ports and resources are all that controllers read.
fn trim_container(container: &mut Container) {
    let full = std::mem::take(container);
    container.name = full.name;
    container.ports = full.ports;
    container.resources = full.resources;
    container.restart_policy = full.restart_policy;
}

fn trim_node(node: &mut Node) {
    trim_applied(&mut node.metadata);
    if let Some(status) = &mut node.status {
        status.images = None;
        status.volumes_attached = None;
        status.volumes_in_use = None;
    }
}
