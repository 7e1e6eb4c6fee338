//! What the scheduler writes: bindings, and on pods it found no node for, why.

use std::sync::Arc;

use client::events::{EventType, Recorder};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use crate::model::PodInfo;

/// Refers to a pod in events.
pub fn reference(pod: &PodInfo) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(pod.namespace.to_string()),
        name: Some(pod.name.to_string()),
        uid: Some(pod.uid.to_string()),
        ..Default::default()
    }
}

/// Binds a pod to a node. The server refuses if the pod is another one by now, or bound already.
pub async fn bind(client: &kube::Client, pod: &PodInfo, node: &str) -> kube::Result<()> {
    let body = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}/binding",
        pod.namespace, pod.name
    );
    let request = http::Request::post(path)
        .header("content-type", "application/json")
        .body(body.to_string().into_bytes());
    client
        .request_text(request.map_err(kube::Error::HttpError)?)
        .await
        .map(drop)
}

/// Says on the pod, and in an event, why it has no node; `nominated` is the node that is being cleared for it.
pub async fn report(
    client: kube::Client,
    recorder: Recorder,
    pod: Arc<PodInfo>,
    message: String,
    nominated: Option<Arc<str>>,
) {
    recorder.event(
        &reference(&pod),
        EventType::Warning,
        "FailedScheduling",
        message.clone(),
    );
    let known = pod.unschedulable_message.as_deref();
    let same_node = nominated.as_deref() == pod.nominated_node.as_deref() || nominated.is_none();
    if known == Some(&message) && same_node {
        return;
    }
    let mut condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message});
    if known.is_none() {
        condition["lastTransitionTime"] = json!(
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now())
        );
    }
    let mut status = json!({"conditions": [condition]});
    if let Some(node) = nominated {
        status["nominatedNodeName"] = json!(node);
    }
    let patch = Patch::Strategic(json!({"metadata": {"uid": pod.uid}, "status": status}));
    let api: Api<Pod> = Api::namespaced(client, &pod.namespace);
    if let Err(error) = api
        .patch_status(&pod.name, &PatchParams::default(), &patch)
        .await
    {
        tracing::debug!(pod = %pod.name, %error, "status not written");
    }
}

/// Evicts a less important pod.
pub async fn evict(
    client: kube::Client,
    recorder: Recorder,
    victim: Arc<PodInfo>,
    preemptor: Arc<PodInfo>,
    node: Arc<str>,
) {
    let api: Api<Pod> = Api::namespaced(client, &victim.namespace);
    if !victim.deleting {
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": "default-scheduler: preempting to accommodate a higher priority pod",
            "lastTransitionTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now()),
        });
        let patch = Patch::Strategic(
            json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [condition]}}),
        );
        if let Err(error) = api
            .patch_status(&victim.name, &PatchParams::default(), &patch)
            .await
        {
            tracing::debug!(pod = %victim.name, %error, "disruption not noted");
        }
    }
    let preconditions = Preconditions {
        uid: Some(victim.uid.to_string()),
        ..Default::default()
    };
    let params = DeleteParams {
        preconditions: Some(preconditions),
        ..Default::default()
    };
    match api.delete(&victim.name, &params).await {
        Ok(_) => {
            let message = format!("Preempted by pod {} on node {node}", preemptor.uid);
            recorder.event(&reference(&victim), EventType::Normal, "Preempted", message);
        }
        Err(error) => tracing::warn!(pod = %victim.name, %error, "could not evict"),
    }
}
