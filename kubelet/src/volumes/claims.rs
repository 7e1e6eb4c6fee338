//! Persistent volume claims whose volume is a directory of this node (`hostPath`, `local`).
//! Other kinds of volumes need a CSI driver, which this node does not run yet.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::api::Api;

use super::local;
use crate::context::Node;
use crate::model;

/// The claim behind a volume; a generic ephemeral volume's is named after pod and volume.
pub fn claim_name(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    if let Some(claim) = &volume.persistent_volume_claim {
        return Some((claim.claim_name.clone(), claim.read_only == Some(true)));
    }
    volume
        .ephemeral
        .as_ref()
        .map(|_| (format!("{}-{}", model::name(pod), volume.name), false))
}

pub async fn resolve(
    node: &Node,
    pod: &Pod,
    (name, read_only): &(String, bool),
) -> Result<(PathBuf, bool), String> {
    let namespace = model::namespace(pod);
    let claims = Api::<PersistentVolumeClaim>::namespaced(node.client.clone(), namespace);
    let claim = claims
        .get(name)
        .await
        .map_err(|e| format!("error fetching PVC {namespace}/{name}: {e}"))?;
    let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let volume = claim
        .spec
        .as_ref()
        .and_then(|s| s.volume_name.as_deref())
        .filter(|_| bound);
    let volume = volume.ok_or_else(|| format!("PVC {namespace}/{name} is not bound"))?;
    let pv = Api::<PersistentVolume>::all(node.client.clone())
        .get(volume)
        .await
        .map_err(|e| format!("error fetching PV {volume}: {e}"))?;
    let spec = pv.spec.unwrap_or_default();
    let owner = spec.claim_ref.as_ref().and_then(|r| r.uid.as_deref());
    if owner.is_some() && owner != claim.metadata.uid.as_deref() {
        return Err(format!("PV {volume} is bound to another claim"));
    }
    if let Some(source) = &spec.host_path {
        return local::host_path(source).map(|path| (path, *read_only));
    }
    if let Some(source) = &spec.local {
        return Ok((PathBuf::from(&source.path), *read_only));
    }
    Err(format!(
        "the volume {volume} needs a driver that this node does not have"
    ))
}
