//! Which pods stand behind a Service, and how: what slices and the older Endpoints have in common.

use std::net::IpAddr;
use std::sync::Arc;

use client::Informer;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::pods;

pub const HEADLESS: &str = "service.kubernetes.io/headless";

/// A port of an endpoint: the pod's number under the Service's name for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    pub name: String,
    pub port: i32,
    pub protocol: String,
    pub app_protocol: Option<String>,
}

/// Without a selector someone else looks after the Service's endpoints.
pub fn has_selector(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let selector = spec.and_then(|s| s.selector.as_ref());
    selector.is_some_and(|s| !s.is_empty())
        && spec.and_then(|s| s.type_.as_deref()) != Some("ExternalName")
}

pub fn is_headless(service: &Service) -> bool {
    matches!(
        service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()),
        None | Some("" | "None")
    )
}

pub fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_some_and(|s| !s.is_empty() && s.iter().all(|(k, v)| pod.labels().get(k) == Some(v)))
}

pub fn pods_of(service: &Service, pods: &Informer<Pod>) -> Vec<Arc<Pod>> {
    let mut pods = pods.namespace(&service.namespace().unwrap_or_default());
    pods.retain(|pod| selects(service, pod));
    pods
}

/// Has an address and may answer: not finished.
pub fn is_candidate(pod: &Pod) -> bool {
    !pods::is_terminated(pod)
        && pod
            .status
            .as_ref()
            .is_some_and(|s| s.pod_ips.as_ref().is_some_and(|ips| !ips.is_empty()))
}

/// `IPv4` and `IPv6`, as far as the Service has them.
pub fn address_types(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.as_ref();
    let known = |f: &String| match f.as_str() {
        "IPv4" => Some("IPv4"),
        "IPv6" => Some("IPv6"),
        _ => None,
    };
    let families: Vec<_> = spec
        .and_then(|s| s.ip_families.as_ref())
        .into_iter()
        .flatten()
        .filter_map(known)
        .collect();
    if !families.is_empty() {
        return families;
    }
    let v6 = spec
        .and_then(|s| s.cluster_ip.as_deref())
        .is_some_and(|ip| ip.contains(':'));
    vec![if v6 { "IPv6" } else { "IPv4" }]
}

pub fn addresses(pod: &Pod, address_type: &str) -> Vec<String> {
    let ips = pod.status.iter().flat_map(|s| s.pod_ips.iter().flatten());
    let ips = ips.filter_map(|ip| ip.ip.parse::<IpAddr>().ok());
    ips.filter(|ip| ip.is_ipv4() == (address_type == "IPv4"))
        .map(|ip| ip.to_string())
        .collect()
}

/// The name under which the pod itself is found, if it belongs to this Service.
pub fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let belongs = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    spec.hostname.clone().filter(|h| belongs && !h.is_empty())
}

pub fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

/// The Service's ports at this pod; those that name a port which the pod does not have are left out.
pub fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    let mut ports: Vec<Port> = ports
        .filter_map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let number = match &port.target_port {
                None => port.port,
                Some(IntOrString::Int(0)) => port.port,
                Some(IntOrString::Int(number)) => *number,
                Some(IntOrString::String(name)) if name.is_empty() => port.port,
                Some(IntOrString::String(name)) => named_port(pod, name, protocol)?,
            };
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                port: number,
                protocol: protocol.to_owned(),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    ports.sort();
    ports
}

fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    // Init containers that keep running (sidecars) may serve too.
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten());
    let matching = |p: &&k8s_openapi::api::core::v1::ContainerPort| {
        p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol
    };
    ports.filter(matching).map(|p| p.container_port).next()
}
