//! ControllerRevisions: the templates that a DaemonSet or StatefulSet had, so that it can go back to one.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::PropagationPolicy;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::deployment::sets::template_hash;
use crate::frame::{Error, Objects, Result};
use crate::informers::Informers;
use crate::meta::{CONTROLLER, controller_ref};

/// The label of pods (and of DaemonSets' revisions) that tells templates apart.
pub const REVISION_HASH: &str = "controller-revision-hash";
/// The label of StatefulSets' revisions with their hash.
pub const HASH: &str = "controller.kubernetes.io/hash";

/// What a revision holds: a patch that puts the template back, byte for byte as Kubernetes' controllers write it.
pub fn data_of(template: &PodTemplateSpec) -> Value {
    // Serializing these types to memory cannot fail.
    let mut template = serde_json::to_value(template).unwrap_or_default();
    if !template["metadata"].is_object() {
        template["metadata"] = json!({});
    }
    for list in ["containers", "initContainers"] {
        let containers = template["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if container.get("resources").is_none() {
                container["resources"] = json!({});
            }
        }
    }
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The template in a revision.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let data = &revision.data.as_ref()?.0;
    serde_json::from_value(data["spec"]["template"].clone()).ok()
}

fn holds(revision: &ControllerRevision, data: &Value) -> bool {
    template_of(revision).is_some_and(|template| data_of(&template) == *data)
}

/// Which revision the present template is.
#[derive(Debug, PartialEq)]
pub enum Present {
    /// The latest.
    Keep(Arc<ControllerRevision>),
    /// An earlier one, which becomes the latest with this number.
    Renumber(Arc<ControllerRevision>, i64),
    New(i64),
}

/// Finds the present template among the revisions.
pub fn find(revisions: &[Arc<ControllerRevision>], template: &PodTemplateSpec) -> Present {
    let data = data_of(template);
    let (equal, others): (Vec<_>, Vec<_>) = revisions.iter().partition(|r| holds(r, &data));
    let next = others.iter().map(|r| r.revision).max().unwrap_or(0) + 1;
    match equal.into_iter().max_by_key(|r| r.revision) {
        Some(found) if found.revision < next => Present::Renumber(found.clone(), next),
        Some(found) => Present::Keep(found.clone()),
        None => Present::New(next),
    }
}

/// The revisions beyond `limit` that nothing uses any more, oldest first.
pub fn excess(
    revisions: &[Arc<ControllerRevision>],
    is_live: impl Fn(&ControllerRevision) -> bool,
    limit: Option<i32>,
) -> Vec<&Arc<ControllerRevision>> {
    let mut idle: Vec<_> = revisions.iter().filter(|r| !is_live(r)).collect();
    idle.sort_by_key(|r| r.revision);
    let keep = limit.unwrap_or(10).max(0) as usize;
    idle.truncate(idle.len().saturating_sub(keep));
    idle
}

/// The revisions that an owner controls, oldest first.
pub fn of<K: Resource>(informers: &Informers, owner: &K) -> Vec<Arc<ControllerRevision>> {
    let informer = &informers.controller_revisions().informer;
    let mut revisions = informer.by_index(CONTROLLER, &owner.uid().unwrap_or_default());
    revisions.sort_by_key(|r| (r.revision, r.name_any()));
    revisions
}

/// What a new revision of an owner is made of.
pub struct Owner<'a, K> {
    pub object: &'a K,
    pub template: &'a PodTemplateSpec,
    pub collisions: Option<i32>,
    /// The label that carries the hash.
    pub hash_label: &'static str,
}

/// A revision, or the fact that its name is taken by another template.
pub enum Synced {
    Present(Arc<ControllerRevision>),
    Collision,
}

/// Makes the present template the latest revision.
pub async fn sync<K>(
    objects: &Objects<ControllerRevision>,
    revisions: &[Arc<ControllerRevision>],
    owner: &Owner<'_, K>,
) -> Result<Synced>
where
    K: Resource<DynamicType = ()> + Debug,
{
    match find(revisions, owner.template) {
        Present::Keep(revision) => Ok(Synced::Present(revision)),
        Present::Renumber(revision, number) => {
            objects
                .patch(&revision, json!({"revision": number}))
                .await?;
            let mut renumbered = (*revision).clone();
            renumbered.revision = number;
            Ok(Synced::Present(Arc::new(renumbered)))
        }
        Present::New(number) => create(objects, owner, number).await,
    }
}

async fn create<K>(
    objects: &Objects<ControllerRevision>,
    owner: &Owner<'_, K>,
    number: i64,
) -> Result<Synced>
where
    K: Resource<DynamicType = ()> + Debug,
{
    let hash = template_hash(owner.template, owner.collisions);
    let namespace = owner.object.namespace().unwrap_or_default();
    let mut prefix = owner.object.name_any();
    prefix.truncate(223);
    let name = format!("{prefix}-{hash}");
    let labels = owner
        .template
        .metadata
        .as_ref()
        .and_then(|m| m.labels.clone());
    let mut labels = labels.unwrap_or_default();
    labels.insert(owner.hash_label.into(), hash);
    let data = data_of(owner.template);
    let revision = ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace.clone()),
            labels: Some(labels),
            annotations: owner.object.meta().annotations.clone(),
            owner_references: Some(vec![controller_ref(owner.object)]),
            ..Default::default()
        },
        data: Some(RawExtension(data.clone())),
        revision: number,
    };
    match objects.create(&namespace, &revision).await {
        Ok(created) => Ok(Synced::Present(Arc::new(created))),
        Err(error) if error.already_exists() => {
            let there = objects.api(&namespace).get(&name).await?;
            let ours = crate::meta::controller_of(&there.metadata)
                .is_some_and(|o| Some(&o.uid) == owner.object.meta().uid.as_ref());
            match holds(&there, &data) {
                true if ours => Ok(Synced::Present(Arc::new(there))),
                // Left by an owner of the same name, and about to be collected.
                true => Err(Error::Other(format!(
                    "revision {name} belongs to another owner"
                ))),
                false => Ok(Synced::Collision),
            }
        }
        Err(error) => Err(error),
    }
}

/// Deletes what [`excess`] names.
pub async fn prune(
    objects: &Objects<ControllerRevision>,
    revisions: &[Arc<ControllerRevision>],
    live: &HashSet<String>,
    limit: Option<i32>,
) -> Result<()> {
    for revision in excess(revisions, |r| live.contains(&r.name_any()), limit) {
        objects
            .delete(revision, PropagationPolicy::Background)
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": image}]}})).unwrap()
    }

    fn revision(name: &str, number: i64, image: &str) -> Arc<ControllerRevision> {
        Arc::new(ControllerRevision {
            metadata: ObjectMeta {
                name: Some(name.into()),
                ..Default::default()
            },
            data: Some(RawExtension(data_of(&template(image)))),
            revision: number,
        })
    }

    #[test]
    fn data_reads_back() {
        let data = data_of(&template("x"));
        assert_eq!(data["spec"]["template"]["$patch"], "replace");
        assert_eq!(
            data["spec"]["template"]["spec"]["containers"][0]["resources"],
            json!({})
        );
        let stored = template_of(&revision("r", 1, "x")).unwrap();
        assert_eq!(data_of(&stored), data);
    }

    #[test]
    fn which_one_is_present() {
        let (a, b, c) = (
            revision("a", 1, "x"),
            revision("b", 2, "y"),
            revision("c", 3, "z"),
        );
        let all = [a.clone(), b, c.clone()];
        assert_eq!(find(&all, &template("z")), Present::Keep(c));
        assert_eq!(find(&all, &template("x")), Present::Renumber(a.clone(), 4));
        assert_eq!(find(&all, &template("w")), Present::New(4));
        assert_eq!(find(&[], &template("w")), Present::New(1));
        assert_eq!(find(&all[..1], &template("x")), Present::Keep(a));
    }

    #[test]
    fn old_ones_go() {
        let all: Vec<_> = (1..6).map(|n| revision(&format!("r{n}"), n, "x")).collect();
        let names = |limit| -> Vec<String> {
            let live = |r: &ControllerRevision| r.name_any() == "r1";
            excess(&all, live, limit)
                .iter()
                .map(|r| r.name_any())
                .collect()
        };
        assert_eq!(names(Some(2)), ["r2", "r3"]);
        assert_eq!(names(Some(0)), ["r2", "r3", "r4", "r5"]);
        assert!(names(None).is_empty());
    }
}
