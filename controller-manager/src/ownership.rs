//! Adopting and releasing pods, for controllers whose every other decision builds on which pods are theirs.

use std::fmt::Debug;
use std::sync::Arc;

use apimachinery::selector::LabelSelector;
use client::key_of;
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::frame::{Error, Objects, Result};
use crate::informers::Informers;
use crate::meta::{self, CONTROLLER, Claim, claim, controller_ref, orphans};

/// The pods of one owner.
#[derive(Debug, Default)]
pub struct Claims {
    /// Those to be adopted are among them.
    pub own: Vec<Arc<Pod>>,
    pub adopt: Vec<Arc<Pod>>,
    pub release: Vec<Arc<Pod>>,
}

/// Sorts an owner's pods and those that no one owns.
pub fn claims<K: Resource>(
    owner: &K,
    selector: &LabelSelector,
    informers: &Informers,
    adoptable: impl Fn(&Pod) -> bool,
) -> Claims {
    let informer = &informers.pods().informer;
    let mut pods = informer.by_index(CONTROLLER, &owner.uid().unwrap_or_default());
    pods.extend(informer.by_index(CONTROLLER, &orphans(&owner.namespace().unwrap_or_default())));
    let mut claims = Claims::default();
    for pod in pods {
        match claim(owner.meta(), selector, pod.as_ref()) {
            Claim::Own => claims.own.push(pod),
            Claim::Release => claims.release.push(pod),
            Claim::Adopt if adoptable(&pod) => {
                claims.own.push(pod.clone());
                claims.adopt.push(pod);
            }
            Claim::Adopt | Claim::Ignore => {}
        }
    }
    claims
}

/// Makes it so. Adoption asks the server first: the copy may not know yet that the owner is being deleted.
pub async fn settle<K>(
    owners: &Objects<K>,
    pods: &Objects<Pod>,
    owner: &K,
    claims: &Claims,
) -> Result<()>
where
    K: Resource<DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
        + Send
        + Sync
        + 'static,
{
    if !claims.adopt.is_empty() {
        check_alive(owners, owner).await?;
    }
    for pod in &claims.adopt {
        pods.patch_strategic(pod, meta::adopt_patch(&controller_ref(owner)))
            .await?;
    }
    for pod in &claims.release {
        let patch = meta::release_patch(&owner.uid().unwrap_or_default());
        match pods.patch_strategic(pod, patch).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

async fn check_alive<K>(owners: &Objects<K>, owner: &K) -> Result<()>
where
    K: Resource<DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
        + Send
        + Sync
        + 'static,
{
    let api = owners.api(&owner.namespace().unwrap_or_default());
    let fresh = api.get_opt(&owner.name_any()).await?;
    let alive =
        fresh.is_some_and(|f| f.uid() == owner.uid() && f.meta().deletion_timestamp.is_none());
    match alive {
        true => Ok(()),
        false => Err(Error::Other(format!(
            "{} has been deleted or replaced",
            key_of(owner)
        ))),
    }
}
