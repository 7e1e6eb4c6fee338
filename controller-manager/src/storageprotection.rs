//! Keeps claims and volumes in the store for as long as they are used: their finalizers are put on and taken off here.

use std::sync::Arc;

use client::{CancellationToken, Next, WorkQueue, key_of, split_key};
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use kube::api::ListParams;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::frame::{Context, Result, WORKERS, work};
use crate::pods;

pub const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
pub const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";

/// What is to be done about an object's finalizer.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    Nothing,
    Protect,
    Release,
}

/// Decides about one object.
pub fn plan<K: Resource>(object: &K, finalizer: &str, in_use: bool) -> Plan {
    let meta = object.meta();
    let protected = meta.finalizers.iter().flatten().any(|f| f == finalizer);
    match (meta.deletion_timestamp.is_some(), protected) {
        (false, false) => Plan::Protect,
        (true, true) if !in_use => Plan::Release,
        _ => Plan::Nothing,
    }
}

/// Whether a pod that has a node uses a claim. The kubelet does not let an unbound one start with a claim that goes.
pub fn uses(pod: &Pod, claim: &str) -> bool {
    if pods::node_name(pod).is_empty() {
        return false;
    }
    let gone = pods::is_terminated(pod)
        && pod.metadata.deletion_timestamp.is_some()
        && pod.metadata.deletion_grace_period_seconds == Some(0);
    claims_of(pod)
        .into_iter()
        .any(|(name, own)| name == claim && !(own && gone))
}

/// The claims of a pod, and whether each was made for it alone.
fn claims_of(pod: &Pod) -> Vec<(String, bool)> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let claim = |volume: &k8s_openapi::api::core::v1::Volume| {
        let shared = volume.persistent_volume_claim.as_ref();
        match shared {
            Some(source) => Some((source.claim_name.clone(), false)),
            None => {
                volume.ephemeral.as_ref()?;
                Some((format!("{}-{}", pod.name_any(), volume.name), true))
            }
        }
    };
    volumes.filter_map(claim).collect()
}

fn patch(finalizers: &[String], finalizer: &str, add: bool) -> Value {
    let mut left: Vec<&str> = finalizers
        .iter()
        .map(String::as_str)
        .filter(|f| *f != finalizer)
        .collect();
    if add {
        left.push(finalizer);
    }
    let left = if left.is_empty() {
        Value::Null
    } else {
        json!(left)
    };
    json!({"metadata": {"finalizers": left}})
}

fn settled(result: Result<()>) -> Result<Next> {
    match result {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(Next::Done),
    }
}

/// Runs the controller of claims.
pub async fn run_claims(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let claims = &context.informers().persistent_volume_claims().informer;
    let pods = &context.informers().pods().informer;
    let q = queue.clone();
    claims.on_change(move |_, new| {
        new.into_iter()
            .filter(|c| plan(c.as_ref(), CLAIM_FINALIZER, false) != Plan::Nothing)
            .for_each(|c| q.add(key_of(c.as_ref())));
    });
    let q = queue.clone();
    pods.on_change(move |old, new| {
        // A claim is freed when a pod goes, or ends.
        let (Some(pod), ended) = (old, new.is_none_or(|p| pods::is_terminated(p))) else {
            return;
        };
        if ended {
            let namespace = pod.namespace().unwrap_or_default();
            let claims = claims_of(pod).into_iter();
            claims.for_each(|(name, _)| q.add(format!("{namespace}/{name}")));
        }
    });
    claims.synced().await;
    pods.synced().await;
    work(&queue, WORKERS, &token, |key| claim(&context, key)).await;
}

async fn claim(context: &Context, key: String) -> Result<Next> {
    let claims = context.informers().persistent_volume_claims();
    let Some(claim) = claims.informer.get(&key) else {
        return Ok(Next::Done);
    };
    let (namespace, name) = split_key(&key);
    let pods = context.informers().pods();
    let known = pods.informer.namespace(namespace);
    let mut planned = plan(
        claim.as_ref(),
        CLAIM_FINALIZER,
        known.iter().any(|p| uses(p, name)),
    );
    if planned == Plan::Release {
        // A pod that was just made may not be in the copy.
        let live = pods.api(namespace).list(&ListParams::default()).await?;
        if live.items.iter().any(|p| uses(p, name)) {
            planned = Plan::Nothing;
        }
    }
    if planned == Plan::Nothing {
        return Ok(Next::Done);
    }
    let add = planned == Plan::Protect;
    let patch = patch(claim.finalizers(), CLAIM_FINALIZER, add);
    settled(claims.patch_exact(&claim, patch).await)
}

/// Runs the controller of volumes.
pub async fn run_volumes(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let volumes = &context.informers().persistent_volumes().informer;
    let q = queue.clone();
    volumes.on_change(move |_, new| new.into_iter().for_each(|v| q.add(v.name_any())));
    volumes.synced().await;
    work(&queue, 1, &token, |name| volume(&context, name)).await;
}

fn is_bound(volume: &PersistentVolume) -> bool {
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
    phase == Some("Bound")
}

async fn volume(context: &Context, name: String) -> Result<Next> {
    let volumes = context.informers().persistent_volumes();
    let Some(volume) = volumes.informer.get(&name) else {
        return Ok(Next::Done);
    };
    let planned = plan(volume.as_ref(), VOLUME_FINALIZER, is_bound(&volume));
    if planned == Plan::Nothing {
        return Ok(Next::Done);
    }
    let add = planned == Plan::Protect;
    let patch = patch(volume.finalizers(), VOLUME_FINALIZER, add);
    settled(volumes.patch_exact(&volume, patch).await)
}

/// Keeps of a pod's volumes only those that claims are about.
pub fn trim_volumes(pod: &mut Pod) {
    let Some(volumes) = pod.spec.as_mut().and_then(|s| s.volumes.as_mut()) else {
        return;
    };
    volumes.retain(|v| v.persistent_volume_claim.is_some() || v.ephemeral.is_some());
    for volume in volumes {
        if let Some(ephemeral) = &mut volume.ephemeral {
            ephemeral.volume_claim_template = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PersistentVolumeClaim;

    #[test]
    fn finalizers() {
        let object = |deleted: bool, finalizers: &[&str]| -> PersistentVolumeClaim {
            let deleted = deleted.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(json!({"metadata": {"name": "c", "deletionTimestamp": deleted, "finalizers": finalizers}})).unwrap()
        };
        for (deleted, finalizers, in_use, want) in [
            (false, vec![], false, Plan::Protect),
            (false, vec![CLAIM_FINALIZER], false, Plan::Nothing),
            (true, vec![CLAIM_FINALIZER, "x"], true, Plan::Nothing),
            (true, vec![CLAIM_FINALIZER, "x"], false, Plan::Release),
            (true, vec!["x"], false, Plan::Nothing),
        ] {
            assert_eq!(
                plan(&object(deleted, &finalizers), CLAIM_FINALIZER, in_use),
                want,
                "{deleted} {finalizers:?}"
            );
        }
        let list = ["x".to_owned(), CLAIM_FINALIZER.to_owned()];
        assert_eq!(
            patch(&list, CLAIM_FINALIZER, false),
            json!({"metadata": {"finalizers": ["x"]}})
        );
        assert_eq!(
            patch(&list[1..], CLAIM_FINALIZER, false),
            json!({"metadata": {"finalizers": null}})
        );
    }

    #[test]
    fn who_uses_a_claim() {
        let pod = |node: &str, phase: &str, gone: bool, volumes: Value| -> Pod {
            let (deleted, grace) = if gone {
                (Some("2026-01-01T00:00:00Z"), Some(0))
            } else {
                (None, None)
            };
            serde_json::from_value(json!({"metadata": {"name": "p", "deletionTimestamp": deleted, "deletionGracePeriodSeconds": grace},
                "spec": {"containers": [], "nodeName": node, "volumes": volumes}, "status": {"phase": phase}}))
            .unwrap()
        };
        let shared = || json!([{"name": "v", "persistentVolumeClaim": {"claimName": "p-v"}}]);
        let own = || json!([{"name": "v", "ephemeral": {}}]);
        for (pod, want) in [
            (pod("n", "Running", false, shared()), true),
            (pod("", "Pending", false, shared()), false),
            (pod("n", "Succeeded", false, shared()), true),
            (pod("n", "Running", false, own()), true),
            (pod("n", "Succeeded", true, own()), false),
            (
                pod(
                    "n",
                    "Running",
                    false,
                    json!([{"name": "v", "emptyDir": {}}]),
                ),
                false,
            ),
        ] {
            assert_eq!(uses(&pod, "p-v"), want, "{:?}", pod.spec);
            let mut trimmed = pod.clone();
            trim_volumes(&mut trimmed);
            assert_eq!(uses(&trimmed, "p-v"), want);
        }
    }
}
