//! The older Endpoints objects: one per Service with a selector, named as it, with all its pods' addresses.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::{CancellationToken, Next, key_of};
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use serde_json::json;

use crate::endpointslice::model::{self, Port};
use crate::endpointslice::queue_of_services;
use crate::frame::{Context, Result, WORKERS, work};

/// More than so many addresses are cut off, and an annotation says so.
const CAPACITY: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");

/// What the Endpoints of `service` should hold.
pub fn desired(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let family = model::address_types(service)
        .first()
        .copied()
        .unwrap_or("IPv4");
    let tolerate_unready = service
        .spec
        .as_ref()
        .and_then(|s| s.publish_not_ready_addresses)
        == Some(true);
    let mut subsets: BTreeMap<Vec<Port>, EndpointSubset> = BTreeMap::new();
    let mut total = 0;
    for pod in pods {
        if !model::is_candidate(pod)
            || (pod.metadata.deletion_timestamp.is_some() && !tolerate_unready)
        {
            continue;
        }
        let Some(ip) = model::addresses(pod, family).into_iter().next() else {
            continue;
        };
        total += 1;
        if total > CAPACITY {
            break;
        }
        let address = EndpointAddress {
            ip,
            hostname: model::hostname(service, pod),
            node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
            target_ref: Some(model::target(pod)),
        };
        let subset = subsets.entry(model::ports(service, pod)).or_default();
        let list = match tolerate_unready || crate::pods::is_ready(pod) {
            true => &mut subset.addresses,
            false => &mut subset.not_ready_addresses,
        };
        list.get_or_insert_default().push(address);
    }
    let subsets = subsets.into_iter().map(|(ports, mut subset)| {
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses]
            .into_iter()
            .flatten()
        {
            list.sort_by(|a, b| a.ip.cmp(&b.ip));
        }
        let ports = ports.into_iter().map(|p| EndpointPort {
            name: (!p.name.is_empty()).then_some(p.name),
            port: p.port,
            protocol: Some(p.protocol),
            app_protocol: p.app_protocol,
        });
        subset.ports = Some(ports.collect::<Vec<_>>()).filter(|p| !p.is_empty());
        subset
    });
    (subsets.collect(), total > CAPACITY)
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    match model::is_headless(service) {
        true => labels.insert(model::HEADLESS.into(), String::new()),
        false => labels.remove(model::HEADLESS),
    };
    labels.insert(MANAGED_BY.0.into(), MANAGED_BY.1.into());
    labels
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = queue_of_services(&context);
    let endpoints = context.informers().endpoints();
    let q = queue.clone();
    endpoints.informer.on_change(move |old, new| {
        new.or(old)
            .into_iter()
            .for_each(|e| q.add(key_of(e.as_ref())))
    });
    for synced in [
        context.informers().services().informer.synced().await,
        context.informers().pods().informer.synced().await,
    ] {
        let () = synced;
    }
    endpoints.informer.synced().await;
    work(&queue, WORKERS, &token, |key| reconcile(&context, key)).await;
}

async fn reconcile(context: &Context, key: String) -> Result<Next> {
    let endpoints = context.informers().endpoints();
    let current = endpoints.informer.get(&key);
    let Some(service) = context.informers().services().informer.get(&key) else {
        // Of a Service that is gone; ours only if we made it.
        let ours = current
            .filter(|e| e.labels().get(MANAGED_BY.0).map(String::as_str) == Some(MANAGED_BY.1));
        if let Some(leftover) = ours {
            endpoints
                .delete(&leftover, kube::api::PropagationPolicy::Background)
                .await?;
        }
        return Ok(Next::Done);
    };
    if !model::has_selector(&service) || service.metadata.deletion_timestamp.is_some() {
        return Ok(Next::Done);
    }
    let pods = model::pods_of(&service, &context.informers().pods().informer);
    let (subsets, over) = desired(&service, &pods);
    let labels = labels(&service);
    let over = over.then(|| "truncated".to_owned());
    let namespace = service.namespace().unwrap_or_default();
    match current {
        Some(current) => {
            let annotation = current.annotations().get(OVER_CAPACITY).cloned();
            let same = current.subsets.as_deref().unwrap_or_default() == subsets;
            if same && current.metadata.labels.as_ref() == Some(&labels) && annotation == over {
                return Ok(Next::Done);
            }
            let mut label_patch = json!(labels);
            for gone in current.labels().keys().filter(|k| !labels.contains_key(*k)) {
                label_patch[gone] = json!(null);
            }
            let metadata = json!({"labels": label_patch, "annotations": {OVER_CAPACITY: over}});
            endpoints
                .patch_exact(&current, json!({"metadata": metadata, "subsets": subsets}))
                .await?;
        }
        None => {
            let annotations = over.map(|o| BTreeMap::from([(OVER_CAPACITY.to_owned(), o)]));
            let object = Endpoints {
                metadata: ObjectMeta {
                    name: service.metadata.name.clone(),
                    namespace: Some(namespace.clone()),
                    labels: Some(labels),
                    annotations,
                    ..Default::default()
                },
                subsets: (!subsets.is_empty()).then_some(subsets),
            };
            endpoints.create(&namespace, &object).await?;
        }
    }
    Ok(Next::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_and_unready_addresses() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "web"},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
        }))
        .unwrap();
        let pod = |name: &str, ip: &str, ready: &str| -> Arc<Pod> {
            Arc::new(serde_json::from_value(json!({
                "metadata": {"namespace": "ns", "name": name, "uid": name},
                "spec": {"containers": [], "nodeName": "n1"},
                "status": {"phase": "Running", "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": ready}]}
            })).unwrap())
        };
        let (subsets, over) = desired(
            &service,
            &[
                pod("b", "10.0.0.2", "True"),
                pod("a", "10.0.0.1", "True"),
                pod("c", "10.0.0.3", "False"),
            ],
        );
        assert!(!over);
        assert_eq!(subsets.len(), 1);
        let ips = |list: &Option<Vec<EndpointAddress>>| {
            list.iter()
                .flatten()
                .map(|a| a.ip.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(ips(&subsets[0].addresses), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(ips(&subsets[0].not_ready_addresses), ["10.0.0.3"]);
        assert_eq!(subsets[0].ports.as_ref().unwrap()[0].port, 8080);
    }
}
