//! What the cluster's names are made from: Services, their endpoints and namespaces, each reduced to what DNS
//! needs, and found by address too.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use client::mirror::Mirror;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Event;

const SERVICE_NAME: &str = "kubernetes.io/service-name";

#[derive(Clone, Debug, PartialEq)]
pub enum Service {
    /// With addresses of its own, and its ports.
    ClusterIp(Vec<IpAddr>, Vec<Port>),
    /// Named endpoints instead of an address; whether those that are not ready count.
    Headless { not_ready: bool },
    /// Another name for something elsewhere.
    External(String),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    pub name: String,
    /// In lower case, as SRV names have it.
    pub protocol: String,
    pub number: u16,
}

impl Service {
    pub fn reduce(service: &core::Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return spec.external_name.clone().map(Self::External);
        }
        let first = spec.cluster_ip.as_deref().unwrap_or_default();
        if first == "None" {
            return Some(Self::Headless {
                not_ready: spec.publish_not_ready_addresses == Some(true),
            });
        }
        let all = spec.cluster_ips.as_deref().unwrap_or_default();
        let mut addresses: Vec<IpAddr> = all.iter().filter_map(|ip| ip.parse().ok()).collect();
        if addresses.is_empty() {
            addresses.extend(first.parse::<IpAddr>());
        }
        let ports = spec.ports.iter().flatten();
        let ports =
            ports.filter_map(|p| Port::new(p.name.as_deref(), p.protocol.as_deref(), Some(p.port)));
        // Not allocated yet: without an address there is nothing to say.
        (!addresses.is_empty()).then(|| Self::ClusterIp(addresses, ports.collect()))
    }
}

impl Port {
    fn new(name: Option<&str>, protocol: Option<&str>, number: Option<i32>) -> Option<Self> {
        Some(Self {
            name: name.unwrap_or_default().to_owned(),
            protocol: protocol.unwrap_or("TCP").to_lowercase(),
            number: u16::try_from(number?).ok()?,
        })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// `namespace/name` of the Service.
    service: String,
    ports: Vec<Port>,
    endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Its host name, or its address with dashes.
    pub label: String,
    pub address: IpAddr,
    ready: bool,
}

impl Slice {
    pub fn reduce(slice: &EndpointSlice) -> Option<Self> {
        let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
        let endpoints = slice.endpoints.iter().flatten().filter_map(|e| {
            let address: IpAddr = e.addresses.first()?.parse().ok()?;
            let hostname = e.hostname.clone().filter(|name| !name.is_empty());
            Some(Endpoint {
                label: hostname.unwrap_or_else(|| dashed(&address)),
                address,
                ready: e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true),
            })
        });
        let ports = slice.ports.iter().flatten();
        let ports =
            ports.filter_map(|p| Port::new(p.name.as_deref(), p.protocol.as_deref(), p.port));
        Some(Self {
            service: format!(
                "{}/{name}",
                slice.metadata.namespace.as_deref().unwrap_or_default()
            ),
            ports: ports.collect(),
            endpoints: endpoints.collect(),
        })
    }
}

/// An address as one label of a name.
pub fn dashed(address: &IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// Every change that the watches bring.
#[allow(clippy::large_enum_variant)] // one at a time, and taken apart at once
pub enum Change {
    Service(Event<core::Service>),
    Slice(Event<EndpointSlice>),
    Namespace(Event<core::Namespace>),
}

#[derive(Debug, Default)]
pub struct Index {
    services: Mirror<Service>,
    slices: Mirror<Slice>,
    namespaces: Mirror<()>,
    slices_of: HashMap<String, BTreeSet<String>>,
    /// Services by cluster IP, and slices by endpoint address.
    service_at: HashMap<IpAddr, String>,
    slices_at: HashMap<IpAddr, BTreeSet<String>>,
    /// Counts changes.
    pub serial: u32,
}

impl Index {
    /// Whether all that exists is known. Before that, "no such name" could be wrong.
    pub fn synced(&self) -> bool {
        self.services.synced() && self.slices.synced() && self.namespaces.synced()
    }

    pub fn apply(&mut self, change: Change) {
        let serial = &mut self.serial;
        match change {
            Change::Service(event) => {
                let at = &mut self.service_at;
                self.services
                    .apply(event, Service::reduce, |key, old, new| {
                        *serial = serial.wrapping_add(1);
                        for ip in addresses(old) {
                            if at.get(ip).is_some_and(|there| there == key) {
                                at.remove(ip);
                            }
                        }
                        addresses(new)
                            .iter()
                            .for_each(|ip| drop(at.insert(*ip, key.to_owned())));
                    });
            }
            Change::Slice(event) => {
                let (of, at) = (&mut self.slices_of, &mut self.slices_at);
                self.slices.apply(event, Slice::reduce, |key, old, new| {
                    *serial = serial.wrapping_add(1);
                    if let Some(old) = old {
                        take(of, &old.service, key);
                        old.endpoints.iter().for_each(|e| take(at, &e.address, key));
                    }
                    if let Some(new) = new {
                        of.entry(new.service.clone())
                            .or_default()
                            .insert(key.to_owned());
                        for endpoint in &new.endpoints {
                            at.entry(endpoint.address)
                                .or_default()
                                .insert(key.to_owned());
                        }
                    }
                });
            }
            Change::Namespace(event) => {
                self.namespaces.apply(
                    event,
                    |_| Some(()),
                    |_, _, _| *serial = serial.wrapping_add(1),
                );
            }
        }
    }

    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.items().get(&format!("{namespace}/{name}"))
    }

    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.items().contains_key(name)
    }

    /// Endpoints of a headless Service that have names, each with the ports it offers. The same endpoint may be in
    /// several slices for different ports.
    pub fn endpoints(&self, namespace: &str, name: &str) -> BTreeMap<&Endpoint, BTreeSet<&Port>> {
        let key = format!("{namespace}/{name}");
        let Some(Service::Headless { not_ready }) = self.services.items().get(&key) else {
            return BTreeMap::new();
        };
        let mut found: BTreeMap<&Endpoint, BTreeSet<&Port>> = BTreeMap::new();
        let slices = self.slices_of.get(&key).into_iter().flatten();
        for slice in slices.filter_map(|slice| self.slices.items().get(slice)) {
            for endpoint in slice.endpoints.iter().filter(|e| e.ready || *not_ready) {
                found.entry(endpoint).or_default().extend(&slice.ports);
            }
        }
        found
    }

    /// Names (below the cluster's domain) of an address: a Service's, or those of endpoints of headless Services.
    pub fn names_at(&self, address: &IpAddr) -> Vec<String> {
        let below = |key: &str| {
            let (namespace, name) = client::split_key(key);
            format!("{name}.{namespace}.svc")
        };
        if let Some(key) = self.service_at.get(address) {
            return vec![below(key)];
        }
        let slices = self.slices_at.get(address).into_iter().flatten();
        let mut names = BTreeSet::new();
        for slice in slices.filter_map(|slice| self.slices.items().get(slice)) {
            let (namespace, name) = client::split_key(&slice.service);
            let endpoints = self.endpoints(namespace, name);
            let here = endpoints.keys().filter(|e| e.address == *address);
            names.extend(here.map(|e| format!("{}.{}", e.label, below(&slice.service))));
        }
        names.into_iter().collect()
    }
}

fn addresses(service: Option<&Service>) -> &[IpAddr] {
    match service {
        Some(Service::ClusterIp(addresses, _)) => addresses,
        _ => &[],
    }
}

fn take<K: std::hash::Hash + Eq>(map: &mut HashMap<K, BTreeSet<String>>, key: &K, value: &str) {
    if let Some(values) = map.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            map.remove(key);
        }
    }
}
