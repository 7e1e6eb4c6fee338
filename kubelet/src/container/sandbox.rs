//! What the runtime is told about a pod's sandbox.

use std::collections::HashMap;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;

use super::dns::{self, DnsFacts};
use super::security;
use crate::model::{self, keys};

/// What every sandbox and container of the pod shares.
#[derive(Clone, Debug)]
pub struct SandboxFacts<'a> {
    pub dns: &'a DnsFacts,
    pub cgroup_parent: String,
    pub log_directory: String,
    /// Where `seccomp/` profiles lie.
    pub root: &'a str,
}

pub fn config(pod: &Pod, attempt: u32, facts: &SandboxFacts) -> cri::PodSandboxConfig {
    let meta = &pod.metadata;
    let mut labels: HashMap<String, String> = meta
        .labels
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    labels.extend(pod_labels(pod));
    let sysctls = security::pod_context(pod)
        .sysctls
        .iter()
        .flatten()
        .map(|s| (s.name.clone(), s.value.clone()));
    // With the host's network the host name is the node's own, and must not be set.
    let hostname = match model::is_host_network(pod) {
        true => String::new(),
        false => dns::kernel_hostname(pod, &facts.dns.cluster_domain),
    };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: model::name(pod).into(),
            uid: model::uid(pod).into(),
            namespace: model::namespace(pod).into(),
            attempt,
        }),
        hostname,
        log_directory: facts.log_directory.clone(),
        dns_config: Some(dns::resolver(pod, facts.dns)),
        port_mappings: port_mappings(pod),
        labels,
        annotations: meta
            .annotations
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: facts.cgroup_parent.clone(),
            security_context: Some(security::sandbox(pod, facts.root)),
            sysctls: sysctls.collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub fn pod_labels(pod: &Pod) -> HashMap<String, String> {
    HashMap::from([
        (keys::POD_NAME.to_string(), model::name(pod).to_string()),
        (
            keys::POD_NAMESPACE.to_string(),
            model::namespace(pod).to_string(),
        ),
        (keys::POD_UID.to_string(), model::uid(pod).to_string()),
    ])
}

/// Host ports, which the CNI portmap plugin makes; a pod on the host's network has them by itself.
fn port_mappings(pod: &Pod) -> Vec<cri::PortMapping> {
    if model::is_host_network(pod) {
        return Vec::new();
    }
    let sidecars = model::init_containers(pod)
        .iter()
        .filter(|c| model::is_sidecar(c));
    let ports = model::spec(pod)
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            let host_port = p.host_port.filter(|h| *h > 0)?;
            let protocol = match p.protocol.as_deref() {
                Some("UDP") => cri::Protocol::Udp,
                Some("SCTP") => cri::Protocol::Sctp,
                _ => cri::Protocol::Tcp,
            };
            let host_ip = p.host_ip.clone().unwrap_or_default();
            Some(cri::PortMapping {
                protocol: protocol as i32,
                container_port: p.container_port,
                host_port,
                host_ip,
            })
        })
        .collect()
}
