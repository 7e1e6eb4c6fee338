//! Decides which EndpointSlices say the same as an Endpoints object.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::subsets::canonical;
use crate::endpointslice::model::Port;
use crate::endpointslice::{Action, MANAGED_BY, SERVICE_NAME, endpoint_ports, slice_ports};
use crate::meta::controller_ref;

pub const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// Of each subset, ready addresses first.
const MAX_ADDRESSES: usize = 1000;
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Older leader elections kept their record in such an annotation, and changed it every other second.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that say something about the object itself.
const NOT_MIRRORED: [&str; 2] = [
    "endpoints.kubernetes.io/last-change-trigger-time",
    "kubectl.kubernetes.io/last-applied-configuration",
];

/// What a pass comes to: changes, and warnings about the Endpoints object.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub warnings: Vec<(&'static str, String)>,
}

/// Whether an object wants to be mirrored, as far as it can say itself.
pub fn is_mirrored(endpoints: &Endpoints) -> bool {
    let skips = endpoints.labels().get(SKIP).map(String::as_str) == Some("true");
    !skips && !endpoints.annotations().contains_key(LEADER)
}

/// Whether someone other than the endpoint slice controller says who answers for a Service.
pub fn is_custom(service: &Service) -> bool {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_none_or(BTreeMap::is_empty)
}

/// Of an IP family and a set of ports there is one slice at most.
type Group = (&'static str, Vec<Port>);

/// Decides what becomes of the slices that mirror an object. Without `endpoints` (it is gone, or not to be mirrored) they go.
pub fn plan(endpoints: Option<&Endpoints>, slices: &[Arc<EndpointSlice>]) -> Plan {
    let mut plan = Plan::default();
    let mut wanted = BTreeMap::new();
    if let Some(endpoints) = endpoints {
        wanted = groups(endpoints, &mut plan.warnings);
    }
    let mut spare: Vec<Arc<EndpointSlice>> = Vec::new();
    let mut missing: Vec<EndpointSlice> = Vec::new();
    let mut present: BTreeMap<Group, Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in slices {
        match family_of(slice) {
            Some(family) => {
                let group = (family, slice_ports(slice));
                present.entry(group).or_default().push(slice);
            }
            None => spare.push(slice.clone()),
        }
    }
    for (group, list) in wanted {
        let mut there = present.remove(&group).unwrap_or_default().into_iter();
        let kept = there.next();
        spare.extend(there.cloned());
        let Some(endpoints) = endpoints else { continue };
        let next = new_slice(endpoints, &group, list);
        match kept {
            Some(slice) if same(slice, &next) => {}
            Some(slice) => plan
                .actions
                .push(Action::Update(slice.clone(), Box::new(next))),
            None => missing.push(next),
        }
    }
    spare.extend(present.into_values().flatten().cloned());
    // One that is not wanted any more becomes one that is: nobody sees both, or neither.
    for next in missing {
        let fitting = |s: &Arc<EndpointSlice>| s.address_type == next.address_type;
        let action = match spare.iter().position(fitting) {
            Some(at) => Action::Update(spare.swap_remove(at), Box::new(next)),
            None if endpoints.is_some_and(|e| e.metadata.deletion_timestamp.is_some()) => continue,
            None => Action::Create(Box::new(next)),
        };
        plan.actions.push(action);
    }
    plan.actions.extend(spare.into_iter().map(Action::Delete));
    plan
}

fn family_of(slice: &EndpointSlice) -> Option<&'static str> {
    match slice.address_type.as_str() {
        "IPv4" => Some("IPv4"),
        "IPv6" => Some("IPv6"),
        _ => None,
    }
}

/// The endpoints of each slice.
fn groups(
    endpoints: &Endpoints,
    warnings: &mut Vec<(&'static str, String)>,
) -> BTreeMap<Group, Vec<Endpoint>> {
    let mut groups: BTreeMap<Group, Vec<Endpoint>> = BTreeMap::new();
    let (mut invalid, mut skipped) = (0, 0);
    for subset in canonical(endpoints) {
        let mut ports = subset.ports;
        ports.sort();
        let mut room = MAX_ADDRESSES;
        for (address, ready) in subset.addresses {
            if room == 0 {
                skipped += 1;
            } else if let Some((family, endpoint)) = endpoint(address, ready) {
                room -= 1;
                let group = (family, ports.clone());
                groups.entry(group).or_default().push(endpoint);
            } else {
                invalid += 1;
            }
        }
    }
    if invalid > 0 {
        let message =
            format!("Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices");
        warnings.push(("InvalidIPAddress", message));
    }
    if skipped > 0 {
        let skipped = skipped + invalid;
        let message = format!(
            "A max of {MAX_ADDRESSES} addresses can be mirrored to EndpointSlices per Endpoints subset. {skipped} addresses were skipped"
        );
        warnings.push(("TooManyAddressesToMirror", message));
    }
    groups
}

fn endpoint(address: EndpointAddress, ready: bool) -> Option<(&'static str, Endpoint)> {
    let ip: IpAddr = address.ip.parse::<IpAddr>().ok()?.to_canonical();
    let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let endpoint = Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..Default::default()
        }),
        hostname: address.hostname.filter(|h| !h.is_empty()),
        node_name: address.node_name,
        target_ref: address.target_ref,
        ..Default::default()
    };
    Some((family, endpoint))
}

fn new_slice(endpoints: &Endpoints, group: &Group, list: Vec<Endpoint>) -> EndpointSlice {
    let (family, ports) = group;
    let name = endpoints.name_any();
    let mut labels = endpoints.labels().clone();
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations = endpoints.annotations().clone();
    annotations.retain(|key, _| !NOT_MIRRORED.contains(&key.as_str()));
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: endpoints.namespace(),
            labels: Some(labels),
            annotations: (!annotations.is_empty()).then_some(annotations),
            owner_references: Some(vec![controller_ref(endpoints)]),
            ..Default::default()
        },
        address_type: (*family).to_owned(),
        endpoints: Some(list),
        ports: Some(endpoint_ports(ports)),
    }
}

/// Whether a slice says what it should. The order of its endpoints says nothing.
fn same(slice: &EndpointSlice, next: &EndpointSlice) -> bool {
    let sorted = |slice: &EndpointSlice| {
        let list = slice.endpoints.iter().flatten();
        let mut list: Vec<String> = list
            .map(|e| serde_json::to_string(e).unwrap_or_default())
            .collect();
        list.sort();
        list
    };
    let owners = |slice: &EndpointSlice| {
        let owners = slice.metadata.owner_references.iter().flatten();
        owners.map(|o| o.uid.clone()).collect::<Vec<_>>()
    };
    slice.labels() == next.labels()
        && slice.annotations() == next.annotations()
        && owners(slice) == owners(next)
        && sorted(slice) == sorted(next)
}
