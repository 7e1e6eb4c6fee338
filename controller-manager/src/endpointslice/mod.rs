//! EndpointSlices: who answers for a Service, in portions of at most 100.
//!
//! [`model`] says which pods stand behind a Service; [`plan`] spreads them over slices so that as few slices as
//! possible are written: an endpoint stays where it is, new ones fill the room in slices that change anyway.

pub mod model;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use client::{CancellationToken, Informer, Next, WorkQueue, key_of};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::PropagationPolicy;
use serde_json::{Value, json};

use crate::frame::{Context, Result, WORKERS, work};
use crate::informers::SERVICE;
use crate::meta::controller_ref;
use crate::pods;
use model::Port;

const MAX_ENDPOINTS: usize = 100;
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";

/// What is to be done about a Service's slices.
#[derive(Debug, PartialEq)]
pub enum Action {
    Create(Box<EndpointSlice>),
    /// The slice with new endpoints, ports and labels.
    Update(Arc<EndpointSlice>, Box<EndpointSlice>),
    Delete(Arc<EndpointSlice>),
}

/// Decides which slices a Service should have, given its pods and those it has.
pub fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    zone: &dyn Fn(&str) -> Option<String>,
    slices: &[Arc<EndpointSlice>],
) -> Vec<Action> {
    let mut actions = Vec::new();
    let types = model::address_types(service);
    for slice in slices
        .iter()
        .filter(|s| !types.contains(&s.address_type.as_str()))
    {
        actions.push(Action::Delete(slice.clone()));
    }
    for address_type in types {
        let existing: Vec<_> = slices
            .iter()
            .filter(|s| s.address_type == address_type)
            .collect();
        let mut wanted: BTreeMap<Vec<Port>, BTreeMap<String, Endpoint>> = BTreeMap::new();
        for pod in pods.iter().filter(|p| model::is_candidate(p)) {
            if let Some(endpoint) = endpoint(service, pod, address_type, zone) {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                wanted
                    .entry(model::ports(service, pod))
                    .or_default()
                    .insert(uid, endpoint);
            }
        }
        if wanted.is_empty() {
            // One empty slice says that nobody answers; without any, no one would know yet.
            let ports = existing.first().map(|s| slice_ports(s)).unwrap_or_default();
            wanted.insert(ports, BTreeMap::new());
        }
        let mut by_ports: HashMap<Vec<Port>, Vec<&Arc<EndpointSlice>>> = HashMap::new();
        for slice in existing {
            let ports = slice_ports(slice);
            if wanted.contains_key(&ports) {
                by_ports.entry(ports).or_default().push(slice);
            } else {
                actions.push(Action::Delete(slice.clone()));
            }
        }
        for (ports, endpoints) in wanted {
            let present = by_ports.remove(&ports).unwrap_or_default();
            spread(
                service,
                address_type,
                &ports,
                endpoints,
                &present,
                &mut actions,
            );
        }
    }
    let mut actions = reuse(service, actions);
    // New addresses are announced before old ones are withdrawn.
    actions.sort_by_key(|a| matches!(a, Action::Delete(_)));
    actions
}

/// Turns a creation and a deletion into one update, so that nobody sees both slices. A slice that an earlier Service of
/// the same name has left is not for this one to take.
fn reuse(service: &Service, actions: Vec<Action>) -> Vec<Action> {
    let (mut spare, mut rest): (Vec<Action>, Vec<Action>) = actions
        .into_iter()
        .partition(|a| matches!(a, Action::Delete(slice) if owned(service, slice)));
    for action in &mut rest {
        let Action::Create(next) = action else {
            continue;
        };
        let fitting =
            |a: &Action| matches!(a, Action::Delete(s) if s.address_type == next.address_type);
        if let Some(at) = spare.iter().position(fitting)
            && let Action::Delete(slice) = spare.swap_remove(at)
        {
            *action = Action::Update(slice, next.clone());
        }
    }
    rest.extend(spare);
    rest
}

fn owned(service: &Service, slice: &EndpointSlice) -> bool {
    let owners = slice.metadata.owner_references.iter().flatten();
    owners
        .into_iter()
        .any(|o| Some(&o.uid) == service.metadata.uid.as_ref())
}

/// Spreads the endpoints that have the same ports over slices.
fn spread(
    service: &Service,
    address_type: &str,
    ports: &[Port],
    mut wanted: BTreeMap<String, Endpoint>,
    present: &[&Arc<EndpointSlice>],
    actions: &mut Vec<Action>,
) {
    let mut slices: Vec<(&Arc<EndpointSlice>, Vec<Endpoint>, bool)> = Vec::new();
    for slice in present {
        let mut kept = Vec::new();
        for old in slice.endpoints.iter().flatten() {
            let uid = old
                .target_ref
                .as_ref()
                .and_then(|t| t.uid.clone())
                .unwrap_or_default();
            kept.extend(wanted.remove(&uid));
        }
        let changed = kept != slice.endpoints.as_deref().unwrap_or_default();
        slices.push((slice, kept, changed));
    }
    // Room in slices that are written anyway comes first, then the fullest.
    let mut new: Vec<Endpoint> = wanted.into_values().collect();
    let mut order: Vec<usize> = (0..slices.len()).collect();
    order.sort_by_key(|i| (!slices[*i].2, usize::MAX - slices[*i].1.len()));
    for i in order {
        let (_, kept, changed) = &mut slices[i];
        let room = MAX_ENDPOINTS.saturating_sub(kept.len()).min(new.len());
        if room > 0 {
            kept.extend(new.drain(..room));
            *changed = true;
        }
    }
    let labels = labels(service);
    let mut any_left = !new.is_empty() || slices.iter().any(|(_, kept, _)| !kept.is_empty());
    for (slice, endpoints, changed) in slices {
        let last_resort = !any_left && endpoints.is_empty();
        if endpoints.is_empty() && !last_resort {
            actions.push(Action::Delete(slice.clone()));
            continue;
        }
        any_left = true;
        if changed || slice.metadata.labels.as_ref() != Some(&labels) {
            let mut next = new_slice(service, address_type, ports, endpoints);
            next.metadata.labels = Some(labels.clone());
            actions.push(Action::Update(slice.clone(), Box::new(next)));
        }
    }
    let create =
        |endpoints| Action::Create(Box::new(new_slice(service, address_type, ports, endpoints)));
    if new.is_empty() && !any_left {
        actions.push(create(Vec::new()));
    }
    actions.extend(
        new.chunks(MAX_ENDPOINTS)
            .map(|chunk| create(chunk.to_vec())),
    );
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    address_type: &str,
    zone: &dyn Fn(&str) -> Option<String>,
) -> Option<Endpoint> {
    let addresses = model::addresses(pod, address_type);
    if addresses.is_empty() {
        return None;
    }
    let serving = pods::is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let regardless = service
        .spec
        .as_ref()
        .and_then(|s| s.publish_not_ready_addresses)
        == Some(true);
    let node_name = pod.spec.as_ref().and_then(|s| s.node_name.clone());
    Some(Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(regardless || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: model::hostname(service, pod),
        zone: node_name.as_deref().and_then(zone),
        node_name,
        target_ref: Some(model::target(pod)),
        ..Default::default()
    })
}

/// The ports of a slice, in order.
pub fn slice_ports(slice: &EndpointSlice) -> Vec<Port> {
    let convert = |p: &EndpointPort| Port {
        name: p.name.clone().unwrap_or_default(),
        port: p.port.unwrap_or(0),
        protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
        app_protocol: p.app_protocol.clone(),
    };
    let mut ports: Vec<Port> = slice.ports.iter().flatten().map(convert).collect();
    ports.sort();
    ports
}

/// Ports as a slice has them: the reverse of [`slice_ports`].
pub fn endpoint_ports(ports: &[Port]) -> Vec<EndpointPort> {
    let port = |p: &Port| EndpointPort {
        name: Some(p.name.clone()),
        port: Some(p.port),
        protocol: Some(p.protocol.clone()),
        app_protocol: p.app_protocol.clone(),
    };
    ports.iter().map(port).collect()
}

/// The Service's labels, and those that name it.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    match model::is_headless(service) {
        true => labels.insert(model::HEADLESS.into(), String::new()),
        false => labels.remove(model::HEADLESS),
    };
    labels.insert(SERVICE_NAME.into(), service.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

fn new_slice(
    service: &Service,
    address_type: &str,
    ports: &[Port],
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.name_any())),
            namespace: service.namespace(),
            labels: Some(labels(service)),
            owner_references: Some(vec![controller_ref(service)]),
            ..Default::default()
        },
        address_type: address_type.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(endpoint_ports(ports)),
    }
}

/// What of a pod matters to the Services that select it.
fn matters(pod: &Pod) -> impl PartialEq {
    let status = pod.status.clone().unwrap_or_default();
    let spec = pod.spec.as_ref();
    (
        pod.metadata.labels.clone(),
        pod.metadata.deletion_timestamp.is_some(),
        (
            pods::is_ready(pod),
            pods::is_terminated(pod),
            status.pod_ips,
        ),
        spec.map(|s| (s.node_name.clone(), s.hostname.clone(), s.subdomain.clone())),
    )
}

/// A queue of the Services that are changed or whose pods are.
pub fn queue_of_services(context: &Context) -> WorkQueue<String> {
    let queue = WorkQueue::new();
    let services: Informer<Service> = context.informers().services().informer.clone();
    let q = queue.clone();
    services.on_change(move |old, new| {
        new.or(old)
            .into_iter()
            .for_each(|s| q.add(key_of(s.as_ref())))
    });
    let q = queue.clone();
    context
        .informers()
        .pods()
        .informer
        .on_change(move |old, new| {
            if let (Some(old), Some(new)) = (old, new)
                && matters(old) == matters(new)
            {
                return;
            }
            let Some(pod) = new.or(old) else { return };
            for service in services.namespace(&pod.namespace().unwrap_or_default()) {
                if [old, new]
                    .into_iter()
                    .flatten()
                    .any(|p| model::selects(&service, p))
                {
                    q.add(key_of(service.as_ref()));
                }
            }
        });
    queue
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = queue_of_services(&context);
    let informers = context.informers();
    let q = queue.clone();
    informers
        .endpoint_slices()
        .informer
        .on_change(move |old, new| {
            let ours = new
                .or(old)
                .filter(|s| s.labels().get(MANAGED_BY).map(String::as_str) == Some(MANAGER));
            if let Some(slice) = ours {
                let service = slice
                    .labels()
                    .get(SERVICE_NAME)
                    .cloned()
                    .unwrap_or_default();
                q.add(format!(
                    "{}/{service}",
                    slice.namespace().unwrap_or_default()
                ));
            }
        });
    // Zones of nodes are known late, and may change.
    let zone = |node: Option<&Arc<Node>>| node.and_then(|n| n.labels().get(ZONE).cloned());
    let (q, services) = (queue.clone(), informers.services().informer.clone());
    informers.nodes().informer.on_change(move |old, new| {
        if zone(old) != zone(new) {
            services
                .list()
                .iter()
                .for_each(|s| q.add(key_of(s.as_ref())));
        }
    });
    informers.services().informer.synced().await;
    informers.pods().informer.synced().await;
    informers.nodes().informer.synced().await;
    informers.endpoint_slices().informer.synced().await;
    work(&queue, WORKERS, &token, |key| reconcile(&context, key)).await;
}

async fn reconcile(context: &Context, key: String) -> Result<Next> {
    let informers = context.informers();
    let Some(service) = informers.services().informer.get(&key) else {
        return Ok(Next::Done);
    };
    if !model::has_selector(&service) || service.metadata.deletion_timestamp.is_some() {
        return Ok(Next::Done);
    }
    let mut slices = informers.endpoint_slices().informer.by_index(SERVICE, &key);
    slices.retain(|s| s.labels().get(MANAGED_BY).map(String::as_str) == Some(MANAGER));
    slices.retain(|s| s.metadata.deletion_timestamp.is_none());
    let pods = model::pods_of(&service, &informers.pods().informer);
    let zone = |node: &str| {
        informers
            .nodes()
            .informer
            .get(node)
            .and_then(|n| n.labels().get(ZONE).cloned())
    };
    for action in plan(&service, &pods, &zone, &slices) {
        act(context, &action, change).await?;
    }
    Ok(Next::Done)
}

/// Does what was planned. `change` gives the patch that makes one slice say what another one does, if any.
pub async fn act(
    context: &Context,
    action: &Action,
    change: fn(&EndpointSlice, &EndpointSlice) -> Option<Value>,
) -> Result<()> {
    let slices = context.informers().endpoint_slices();
    match action {
        Action::Create(slice) => slices
            .create(&slice.namespace().unwrap_or_default(), slice)
            .await
            .map(drop),
        Action::Delete(slice) => slices.delete(slice, PropagationPolicy::Background).await,
        Action::Update(slice, next) => match change(slice, next) {
            Some(patch) => slices.patch_exact(slice, patch).await,
            None => Ok(()),
        },
    }
}

fn change(slice: &EndpointSlice, next: &EndpointSlice) -> Option<Value> {
    let wanted: HashSet<&String> = next.labels().keys().collect();
    let mut labels = json!(next.metadata.labels);
    for gone in slice.labels().keys().filter(|k| !wanted.contains(k)) {
        labels[gone] = json!(null);
    }
    Some(json!({"metadata": {"labels": labels}, "endpoints": next.endpoints, "ports": next.ports}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn service(extra: Value) -> Service {
        let mut spec = json!({"selector": {"app": "web"}, "clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 80, "targetPort": "web"}]});
        extra
            .as_object()
            .into_iter()
            .flatten()
            .for_each(|(k, v)| spec[k] = v.clone());
        serde_json::from_value(
            json!({"metadata": {"namespace": "ns", "name": "web", "uid": "s"}, "spec": spec}),
        )
        .unwrap()
    }

    fn pod(n: usize, ready: bool, deleting: bool) -> Arc<Pod> {
        let mut value = json!({
            "metadata": {"namespace": "ns", "name": format!("p{n}"), "uid": format!("u{n:04}"), "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": format!("10.0.{}.{}", n / 250, n % 250)}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}
        });
        if deleting {
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn run(service: &Service, pods: &[Arc<Pod>], slices: &[Arc<EndpointSlice>]) -> Vec<Action> {
        plan(service, pods, &|_| Some("z1".into()), slices)
    }

    fn endpoints(slice: &EndpointSlice) -> &[Endpoint] {
        slice.endpoints.as_deref().unwrap_or_default()
    }

    fn created(actions: &[Action]) -> Vec<Arc<EndpointSlice>> {
        let slice = |a: &Action| match a {
            Action::Create(s) => Some(Arc::new((**s).clone())),
            _ => None,
        };
        actions.iter().filter_map(slice).collect()
    }

    #[test]
    fn one_slice_that_settles() {
        let actions = run(
            &service(json!({})),
            &[
                pod(1, true, false),
                pod(2, false, false),
                pod(3, true, true),
            ],
            &[],
        );
        let slices = created(&actions);
        assert_eq!(slices.len(), 1);
        let conditions: Vec<_> = endpoints(&slices[0])
            .iter()
            .map(|e| {
                let c = e.conditions.clone().unwrap();
                (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())
            })
            .collect();
        assert_eq!(
            conditions,
            [
                (true, true, false),
                (false, false, false),
                (false, true, true)
            ]
        );
        assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(8080));
        assert_eq!(endpoints(&slices[0])[0].zone.as_deref(), Some("z1"));
        assert_eq!(slices[0].labels()[SERVICE_NAME], "web");
        let again = run(
            &service(json!({})),
            &[
                pod(1, true, false),
                pod(2, false, false),
                pod(3, true, true),
            ],
            &slices,
        );
        assert_eq!(again, []);
        let regardless = run(
            &service(json!({"publishNotReadyAddresses": true})),
            &[pod(2, false, false)],
            &[],
        );
        assert_eq!(
            endpoints(&created(&regardless)[0])[0]
                .conditions
                .as_ref()
                .unwrap()
                .ready,
            Some(true)
        );
    }

    #[test]
    fn slices_hold_a_hundred_and_change_little() {
        let service = service(json!({}));
        let pods: Vec<_> = (0..250).map(|n| pod(n, true, false)).collect();
        let slices = created(&run(&service, &pods, &[]));
        assert_eq!(
            slices
                .iter()
                .map(|s| endpoints(s).len())
                .collect::<Vec<_>>(),
            [100, 100, 50]
        );
        // One pod of the first slice is replaced: only that slice is written.
        let mut others: Vec<_> = pods[1..].to_vec();
        others.push(pod(999, true, false));
        let actions = run(&service, &others, &slices);
        assert_eq!(actions.len(), 1);
        assert!(
            matches!(&actions[0], Action::Update(old, new) if endpoints(old).len() == 100 && endpoints(new).len() == 100)
        );
        // All but those of the last slice are gone: two slices go.
        let actions = run(&service, &pods[200..], &slices);
        assert_eq!(
            actions
                .iter()
                .filter(|a| matches!(a, Action::Delete(_)))
                .count(),
            2
        );
        assert_eq!(actions.len(), 2);
    }

    #[test]
    fn nobody_answers() {
        let service = service(json!({}));
        let empty = created(&run(&service, &[], &[]));
        assert_eq!(empty.len(), 1, "an empty slice is made");
        assert_eq!(run(&service, &[], &empty), []);
        // The empty slice becomes the one with the first endpoint, unless it is another Service's.
        let actions = run(&service, &[pod(1, true, false)], &empty);
        assert!(
            matches!(&actions[..], [Action::Update(_, new)] if endpoints(new).len() == 1
                && new.ports.as_ref().is_some_and(|p| p.len() == 1)),
            "{actions:?}"
        );
        let mut earlier = (*empty[0]).clone();
        earlier.metadata.owner_references.as_mut().unwrap()[0].uid = "earlier".into();
        let actions = run(&service, &[pod(1, true, false)], &[Arc::new(earlier)]);
        assert!(
            matches!(&actions[..], [Action::Create(_), Action::Delete(_)]),
            "{actions:?}"
        );
        let full = created(&run(&service, &[pod(1, true, false)], &[]));
        let actions = run(&service, &[], &full);
        assert!(
            matches!(&actions[..], [Action::Update(_, new)] if endpoints(new).is_empty()),
            "{actions:?}"
        );
    }
}
