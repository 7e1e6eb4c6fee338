//! Endpoints that users write themselves, as EndpointSlices, for those who read only these.
//!
//! A Service without a selector has its addresses from an Endpoints object of the same name. [`plan`] makes slices of
//! it, one for each IP family and set of ports.

pub mod plan;
#[cfg(test)]
mod plan_tests;
pub mod subsets;

use std::sync::Arc;

use client::events::{EventType, Recorder, reference};
use client::{CancellationToken, Next, WorkQueue, key_of};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::endpointslice::{MANAGED_BY, SERVICE_NAME, act};
use crate::frame::{Context, Result, WORKERS, difference, work};
use crate::informers::SERVICE;
use plan::{MANAGER, is_custom, is_mirrored, plan};

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
}

fn is_ours(slice: &EndpointSlice) -> bool {
    slice.labels().get(MANAGED_BY).map(String::as_str) == Some(MANAGER)
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let informers = context.informers();
    let (endpoints, services, slices) = (
        &informers.endpoints().informer,
        &informers.services().informer,
        &informers.endpoint_slices().informer,
    );
    let q = queue.clone();
    endpoints.on_change(move |old, new| {
        let changed = [old, new].into_iter().flatten();
        changed
            .filter(|e| is_mirrored(e))
            .for_each(|e| q.add(key_of(e.as_ref())));
    });
    let q = queue.clone();
    services.on_change(move |old, new| {
        // What is mirrored depends on there being a Service, and on its having no selector.
        if old.map(|s| is_custom(s)) != new.map(|s| is_custom(s)) {
            new.or(old)
                .into_iter()
                .for_each(|s| q.add(key_of(s.as_ref())));
        }
    });
    let q = queue.clone();
    slices.on_change(move |old, new| {
        for slice in [old, new].into_iter().flatten().filter(|s| is_ours(s)) {
            if let Some(service) = slice.labels().get(SERVICE_NAME) {
                let namespace = slice.namespace().unwrap_or_default();
                q.add(format!("{namespace}/{service}"));
            }
        }
    });
    endpoints.synced().await;
    services.synced().await;
    slices.synced().await;
    let controller = Controller {
        recorder: context.recorder("endpoint-slice-mirroring-controller"),
        context: context.clone(),
    };
    work(&queue, WORKERS, &token, |key| controller.reconcile(key)).await;
}

impl Controller {
    async fn reconcile(&self, key: String) -> Result<Next> {
        let informers = self.context.informers();
        let service = informers.services().informer.get(&key);
        let endpoints = informers
            .endpoints()
            .informer
            .get(&key)
            .filter(|e| is_mirrored(e) && service.is_some_and(|s| is_custom(&s)));
        let mut slices = informers.endpoint_slices().informer.by_index(SERVICE, &key);
        slices.retain(|s| is_ours(s) && s.metadata.deletion_timestamp.is_none());
        let plan = plan(endpoints.as_deref(), &slices);
        for (reason, message) in plan.warnings {
            if let Some(endpoints) = &endpoints {
                let about = reference(endpoints.as_ref());
                self.recorder
                    .event(&about, EventType::Warning, reason, message);
            }
        }
        for action in &plan.actions {
            act(&self.context, action, change).await?;
        }
        Ok(Next::Done)
    }
}

fn change(slice: &EndpointSlice, next: &EndpointSlice) -> Option<Value> {
    difference(&mirrored(slice), &mirrored(next))
}

/// The part of a slice that says what its Endpoints object does.
fn mirrored(slice: &EndpointSlice) -> Value {
    json!({
        "metadata": {
            "labels": slice.labels(),
            "annotations": slice.annotations(),
            "ownerReferences": slice.owner_references(),
        },
        "endpoints": slice.endpoints,
        "ports": slice.ports,
    })
}
