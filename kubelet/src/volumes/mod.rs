//! A pod's volumes: made before its sandbox, refreshed while it lives, freed after it.
//! `set_up` may be called at any time and any number of times; it repairs what is missing
//! and rewrites what has changed, so a restarted kubelet simply calls it again.

pub mod atomic;
pub mod claims;
pub mod image;
pub mod local;
pub mod projected;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::container::fields::FieldFacts;
use crate::container::files::VolumePaths;
use crate::container::{files, security};
use crate::context::Node;
use crate::model;
use crate::objects::Key;

#[derive(Debug, Default)]
pub struct Setup {
    pub paths: VolumePaths,
    /// When a token in a volume has to be renewed.
    pub refresh_at: Option<Timestamp>,
    /// Objects whose change must show in a volume.
    pub shows: HashSet<Key>,
}

/// The pod's file owner, as far as all of its containers agree on one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Owner {
    pub user: Option<u32>,
    pub group: Option<u32>,
}

/// Makes every volume; the error reads as the kubelet's `FailedMount` event. The setup is of use
/// even then: it names the objects that were looked for.
pub async fn set_up(node: &Node, pod: &Pod, facts: &FieldFacts) -> (Setup, Result<(), String>) {
    let mut setup = Setup::default();
    let dir = files::pod_dir(&node.flags.root_dir, pod);
    if let Err(e) = std::fs::create_dir_all(&dir) {
        return (setup, Err(format!("{}: {e}", dir.display())));
    }
    for volume in model::spec(pod).volumes.iter().flatten() {
        match one(node, pod, volume, &dir, facts, &mut setup).await {
            Ok(place) => drop(setup.paths.insert(volume.name.clone(), place)),
            Err(e) => {
                let message = format!(
                    "MountVolume.SetUp failed for volume \"{}\" : {e}",
                    volume.name
                );
                return (setup, Err(message));
            }
        }
    }
    (setup, Ok(()))
}

async fn one(
    node: &Node,
    pod: &Pod,
    volume: &Volume,
    dir: &Path,
    facts: &FieldFacts,
    setup: &mut Setup,
) -> Result<(PathBuf, bool), String> {
    let place = |plugin: &str| {
        dir.join("volumes")
            .join(format!("kubernetes.io~{plugin}"))
            .join(&volume.name)
    };
    let owner = owner(pod);
    if let Some(source) = &volume.empty_dir {
        let path = place("empty-dir");
        local::empty_dir(&path, source, owner, node.memory).map_err(|e| e.to_string())?;
        return Ok((path, false));
    }
    if let Some(source) = &volume.host_path {
        return local::host_path(source).map(|path| (path, false));
    }
    if let Some(plugin) = projected::plugin(volume) {
        let path = place(plugin);
        let content = projected::collect(node, pod, volume, facts, owner, setup).await?;
        let in_memory = plugin != "configmap";
        atomic::write(&path, &content, owner, in_memory).map_err(|e| e.to_string())?;
        return Ok((path, true));
    }
    if volume.image.is_some() {
        // Nothing yet: it is pulled and mounted for each container that has it, when that starts.
        return Ok((image::place(dir, &volume.name), true));
    }
    if let Some(claim) = claims::claim_name(pod, volume) {
        return claims::resolve(node, pod, &claim).await;
    }
    Err("no volume plugin matched".into())
}

/// Group and user that volumes are made for.
pub fn owner(pod: &Pod) -> Owner {
    let context = security::pod_context(pod);
    let number = |v: i64| u32::try_from(v).ok();
    let of = |c: &k8s_openapi::api::core::v1::Container| {
        c.security_context
            .as_ref()
            .and_then(|s| s.run_as_user)
            .or(context.run_as_user)
    };
    let mut users = model::init_containers(pod)
        .iter()
        .chain(&model::spec(pod).containers)
        .map(of);
    let first = users.next().flatten();
    let user = if users.all(|u| u == first) {
        first.and_then(number)
    } else {
        None
    };
    Owner {
        user,
        group: context.fs_group.and_then(number),
    }
}
