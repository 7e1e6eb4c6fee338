//! A Deployment's view of ReplicaSets: names, hashes, revisions, and the annotations that carry a rollout's state.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::meta::{controller_ref, created};

pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The Deployment's size when the set was last scaled: tells scaling apart from a rollout.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// That size with its surge: the whole of which the set is a proportion.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
pub const TEMPLATE_HASH: &str = "pod-template-hash";

/// Annotations of a Deployment that its ReplicaSets do not inherit.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
const HISTORY_LIMIT: usize = 2000;

/// A ReplicaSet as a plan sees and changes it.
#[derive(Debug, Clone)]
pub struct Set {
    /// `None` for one that is being made in this very plan.
    pub object: Option<Arc<ReplicaSet>>,
    pub name: String,
    /// As planned; the object has what it was.
    pub replicas: i32,
    pub annotations: BTreeMap<String, String>,
    pub created: Timestamp,
}

impl Set {
    pub fn new(object: &Arc<ReplicaSet>) -> Self {
        Self {
            name: object.name_any(),
            replicas: replicas(object),
            annotations: object.metadata.annotations.clone().unwrap_or_default(),
            created: created(object.as_ref()),
            object: Some(object.clone()),
        }
    }

    pub fn number(&self, annotation: &str) -> Option<i32> {
        self.annotations
            .get(annotation)?
            .parse()
            .ok()
            .filter(|n| *n >= 0)
    }

    pub fn revision(&self) -> i64 {
        self.annotations
            .get(REVISION)
            .and_then(|r| r.parse().ok())
            .unwrap_or(0)
    }

    fn counts<T>(
        &self,
        read: impl Fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> T,
    ) -> Option<T> {
        self.object.as_ref()?.status.as_ref().map(read)
    }

    pub fn actual(&self) -> i32 {
        self.counts(|s| s.replicas).unwrap_or(0)
    }

    pub fn ready(&self) -> i32 {
        self.counts(|s| s.ready_replicas.unwrap_or(0)).unwrap_or(0)
    }

    pub fn available(&self) -> i32 {
        self.counts(|s| s.available_replicas.unwrap_or(0))
            .unwrap_or(0)
    }

    /// `None` if the set has been looked after by a controller that does not count them.
    pub fn terminating(&self) -> Option<i32> {
        let status = self.object.as_ref().and_then(|o| o.status.as_ref());
        match status.and_then(|s| s.terminating_replicas) {
            Some(count) => Some(count),
            None => status
                .is_none_or(|s| s.observed_generation.unwrap_or(0) == 0)
                .then_some(0),
        }
    }
}

pub fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

pub fn template(set: &ReplicaSet) -> Option<&PodTemplateSpec> {
    set.spec.as_ref()?.template.as_ref()
}

/// Whether two templates make the same pods: equal but for the hash label that this controller adds.
pub fn same_template(a: Option<&PodTemplateSpec>, b: Option<&PodTemplateSpec>) -> bool {
    let (Some(a), Some(b)) = (a, b) else {
        return false;
    };
    let meta = |t: &PodTemplateSpec| {
        let meta = t.metadata.clone().unwrap_or_default();
        let mut labels = meta.labels.unwrap_or_default();
        labels.remove(TEMPLATE_HASH);
        (
            labels,
            meta.annotations.unwrap_or_default(),
            meta.finalizers.unwrap_or_default(),
        )
    };
    a.spec == b.spec && meta(a) == meta(b)
}

/// A short name for a template: 32-bit FNV-1a of its JSON and the collision count, in letters that spell no words.
pub fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    // Serializing these types to memory cannot fail.
    let json = serde_json::to_vec(template).unwrap_or_default();
    let suffix = collisions.map(i32::to_le_bytes);
    let bytes = json.iter().chain(suffix.iter().flatten());
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    hash.to_string()
        .bytes()
        .map(|digit| char::from(SAFE[usize::from(digit) % SAFE.len()]))
        .collect()
}

/// The ReplicaSet for a Deployment's present template, without its size.
pub fn new_set(deployment: &Deployment, collisions: Option<i32>) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let mut template = spec.template;
    let hash = template_hash(&template, collisions);
    let labels = template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default();
    labels.insert(TEMPLATE_HASH.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector
        .match_labels
        .get_or_insert_default()
        .insert(TEMPLATE_HASH.into(), hash.clone());
    let mut name = deployment.name_any();
    name.truncate(253 - 1 - hash.len());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}")),
            namespace: deployment.namespace(),
            owner_references: Some(vec![controller_ref(deployment)]),
            labels: Some(labels),
            ..Default::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

/// The annotations that the newest set should have beyond those it has: the Deployment's own, its revision, and when
/// an old set becomes the newest again, the revisions it has been before.
pub fn missing_annotations(
    deployment: &Deployment,
    has: &BTreeMap<String, String>,
    revision: i64,
) -> BTreeMap<String, String> {
    let own = deployment.metadata.annotations.iter().flatten();
    let mut missing: BTreeMap<String, String> = own
        .filter(|(key, value)| !NOT_COPIED.contains(&key.as_str()) && has.get(*key) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let old = has.get(REVISION);
    if old.map_or(0, |r| r.parse().unwrap_or(0)) >= revision {
        return missing;
    }
    missing.insert(REVISION.into(), revision.to_string());
    if let Some(old) = old {
        let history = has
            .get(REVISION_HISTORY)
            .map(String::as_str)
            .unwrap_or_default();
        let mut entries: Vec<&str> = history.split(',').filter(|e| !e.is_empty()).collect();
        entries.push(old);
        while entries.join(",").len() > HISTORY_LIMIT {
            entries.remove(0);
        }
        missing.insert(REVISION_HISTORY.into(), entries.join(","));
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment() -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "web", "uid": "d",
                "annotations": {"note": "x", REVISION: "7", "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
            "spec": {"selector": {"matchLabels": {"app": "web"}},
                     "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "a"}]}}}
        }))
        .unwrap()
    }

    #[test]
    fn a_new_set_is_named_and_labelled_by_its_template() {
        let d = deployment();
        let set = new_set(&d, None);
        let hash = set.labels()[TEMPLATE_HASH].clone();
        assert_eq!(set.name_any(), format!("web-{hash}"));
        assert_eq!(
            set.spec
                .as_ref()
                .unwrap()
                .selector
                .match_labels
                .as_ref()
                .unwrap()[TEMPLATE_HASH],
            hash
        );
        assert!(same_template(
            template(&set),
            Some(&d.spec.clone().unwrap().template)
        ));
        assert_eq!(
            new_set(&d, None).name_any(),
            set.name_any(),
            "the same again"
        );
        assert_ne!(
            new_set(&d, Some(1)).name_any(),
            set.name_any(),
            "another after a collision"
        );
        let mut other = d.clone();
        other
            .spec
            .as_mut()
            .unwrap()
            .template
            .spec
            .as_mut()
            .unwrap()
            .containers[0]
            .image = Some("b".into());
        assert_ne!(new_set(&other, None).name_any(), set.name_any());
        assert!(!same_template(
            template(&new_set(&other, None)),
            template(&set)
        ));
    }

    #[test]
    fn annotations_of_the_newest_set() {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect::<BTreeMap<_, _>>()
        };
        for (has, revision, want) in [
            (map(&[]), 1, map(&[("note", "x"), (REVISION, "1")])),
            (map(&[("note", "x"), (REVISION, "3")]), 3, map(&[])),
            (map(&[("note", "x"), (REVISION, "3")]), 2, map(&[])),
            (
                map(&[("note", "x"), (REVISION, "1")]),
                3,
                map(&[(REVISION, "3"), (REVISION_HISTORY, "1")]),
            ),
            (
                map(&[("note", "x"), (REVISION, "3"), (REVISION_HISTORY, "1")]),
                5,
                map(&[(REVISION, "5"), (REVISION_HISTORY, "1,3")]),
            ),
        ] {
            assert_eq!(missing_annotations(&deployment(), &has, revision), want);
        }
    }
}
