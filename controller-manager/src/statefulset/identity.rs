//! What makes a pod of a StatefulSet that one and no other: its ordinal, its name, its claims.

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use crate::history::REVISION_HASH;
use crate::meta::controller_ref;
use crate::pods;

pub const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
pub const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The ordinal of a pod, if its name is that of a replica of `set`.
pub fn ordinal(set: &str, pod: &Pod) -> Option<i32> {
    let name = pod.metadata.name.as_deref()?;
    let digits = name.strip_prefix(set)?.strip_prefix('-')?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

pub fn start(spec: &StatefulSetSpec) -> i32 {
    spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0)
}

pub fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.name_any())
}

fn claim_name(template: &PersistentVolumeClaim, pod: &str) -> String {
    format!("{}-{pod}", template.name_any())
}

/// The names of the claims of a pod.
pub fn claim_names(spec: &StatefulSetSpec, pod: &str) -> Vec<String> {
    let templates = spec.volume_claim_templates.iter().flatten();
    templates.map(|t| claim_name(t, pod)).collect()
}

/// The claims of a pod, as its set's templates have them.
pub fn new_claims(set: &StatefulSet, pod: &str) -> Vec<PersistentVolumeClaim> {
    let spec = set.spec.clone().unwrap_or_default();
    let templates = spec.volume_claim_templates.unwrap_or_default();
    let labels = spec.selector.match_labels.unwrap_or_default();
    let claims = templates.into_iter().map(|mut claim| {
        claim.metadata.name = Some(claim_name(&claim, pod));
        claim.metadata.namespace = set.namespace();
        claim.labels_mut().extend(labels.clone());
        claim.status = None;
        claim
    });
    claims.collect()
}

/// A replica with the template of one revision.
pub fn new_pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let spec = set.spec.clone().unwrap_or_default();
    let namespace = set.namespace().unwrap_or_default();
    let mut pod = pods::from_template(template, &namespace, controller_ref(set));
    let name = pod_name(set, ordinal);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let labels = pod.labels_mut();
    labels.insert(POD_NAME.into(), name.clone());
    labels.insert(POD_INDEX.into(), ordinal.to_string());
    labels.insert(REVISION_HASH.into(), revision.into());
    if let Some(pod_spec) = &mut pod.spec {
        let templates = spec.volume_claim_templates.unwrap_or_default();
        let mut volumes: Vec<Volume> = templates
            .iter()
            .map(|template| Volume {
                name: template.name_any(),
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim_name(template, &name),
                    read_only: None,
                }),
                ..Default::default()
            })
            .collect();
        let own = pod_spec.volumes.take().unwrap_or_default();
        let taken: Vec<String> = volumes.iter().map(|v| v.name.clone()).collect();
        volumes.extend(own.into_iter().filter(|v| !taken.contains(&v.name)));
        pod_spec.volumes = (!volumes.is_empty()).then_some(volumes);
        pod_spec.hostname = Some(name);
        pod_spec.subdomain = spec.service_name.filter(|n| !n.is_empty());
    }
    pod
}

fn refers_to<K: Resource<DynamicType = ()>>(reference: &OwnerReference, object: &K) -> bool {
    reference.api_version == K::api_version(&())
        && reference.kind == K::kind(&())
        && reference.name == object.name_any()
}

/// A claim that a pod of the same name, but not this one, was given up with: it is about to be deleted.
pub fn is_stale(claim: &PersistentVolumeClaim, spec: &StatefulSetSpec, pod: &Pod) -> bool {
    deletes(spec).0
        && claim
            .owner_references()
            .iter()
            .any(|o| refers_to(o, pod) && Some(&o.uid) != pod.metadata.uid.as_ref())
}

/// Whether claims go with their pods when the set shrinks, and with the set when it is deleted.
fn deletes(spec: &StatefulSetSpec) -> (bool, bool) {
    let policy = spec.persistent_volume_claim_retention_policy.as_ref();
    let is = |value: Option<&String>| value.is_some_and(|v| v == "Delete");
    (
        is(policy.and_then(|p| p.when_scaled.as_ref())),
        is(policy.and_then(|p| p.when_deleted.as_ref())),
    )
}

/// The owners that a claim of `pod` should have by the retention policy; `None` if it has them.
pub fn wanted_owners(
    claim: &PersistentVolumeClaim,
    set: &StatefulSet,
    pod: &Pod,
    in_range: bool,
) -> Option<Vec<OwnerReference>> {
    let spec = set.spec.clone().unwrap_or_default();
    let (scaled, deleted) = deletes(&spec);
    let owners = claim.owner_references();
    let is_set = |o: &OwnerReference| refers_to(o, set);
    let is_pod = |o: &OwnerReference| refers_to(o, pod);
    let stale = owners.iter().any(|o| {
        (is_set(o) && Some(&o.uid) != set.metadata.uid.as_ref())
            || (is_pod(o) && Some(&o.uid) != pod.metadata.uid.as_ref())
    });
    // Left by a set or pod that is gone: the garbage collector's business.
    if stale {
        return None;
    }
    let foreign = owners
        .iter()
        .any(|o| o.controller == Some(true) && !is_set(o) && !is_pod(o));
    let mut wanted: Vec<OwnerReference> = owners
        .iter()
        .filter(|o| !is_set(o) && !is_pod(o))
        .cloned()
        .collect();
    if !(foreign && (scaled || deleted)) {
        if scaled && !in_range {
            wanted.push(controller_ref(pod));
        } else if deleted {
            wanted.push(controller_ref(set));
        }
    }
    let shape = |list: &[OwnerReference]| {
        let mut shape: Vec<_> = list
            .iter()
            .map(|o| (o.uid.clone(), o.controller == Some(true)))
            .collect();
        shape.sort();
        shape
    };
    (shape(owners) != shape(&wanted)).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(retention: Value) -> StatefulSet {
        serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "web", "uid": "set"}, "spec": {
            "serviceName": "svc", "selector": {"matchLabels": {"app": "web"}}, "persistentVolumeClaimRetentionPolicy": retention,
            "volumeClaimTemplates": [{"metadata": {"name": "data"}}],
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [], "volumes": [{"name": "data"}, {"name": "tmp"}]}}}}))
        .unwrap()
    }

    #[test]
    fn names() {
        let pod = |name: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
        };
        for (name, want) in [
            ("web-0", Some(0)),
            ("web-12", Some(12)),
            ("web", None),
            ("web-", None),
            ("web-a", None),
            ("web-1-2", None),
            ("webb-1", None),
            ("web-99999999999", None),
            ("web-+1", None),
        ] {
            assert_eq!(ordinal("web", &pod(name)), want, "{name}");
        }
        let set = set(json!({}));
        let pod = new_pod(&set, &set.spec.as_ref().unwrap().template, "web-abc", 3);
        assert_eq!(pod.name_any(), "web-3");
        assert_eq!(pod.labels()[POD_INDEX], "3");
        let spec = pod.spec.unwrap();
        assert_eq!(
            (spec.hostname.as_deref(), spec.subdomain.as_deref()),
            (Some("web-3"), Some("svc"))
        );
        let volumes = spec.volumes.unwrap();
        assert_eq!(volumes.len(), 2);
        assert_eq!(
            volumes[0]
                .persistent_volume_claim
                .as_ref()
                .unwrap()
                .claim_name,
            "data-web-3"
        );
        let claims = new_claims(&set, "web-3");
        assert_eq!(
            (
                claims[0].name_any().as_str(),
                claims[0].labels()["app"].as_str()
            ),
            ("data-web-3", "web")
        );
    }

    #[test]
    fn claims_belong_to_whom_the_policy_says() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "web-3", "uid": "pod"}})).unwrap();
        let of = |kind: &str, uid: &str| {
            let (version, name) = if kind == "Pod" {
                ("v1", "web-3")
            } else {
                ("apps/v1", "web")
            };
            json!({"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": true})
        };
        let other = json!({"apiVersion": "v1", "kind": "Thing", "name": "t", "uid": "t", "controller": true});
        let policy =
            |scaled: &str, deleted: &str| json!({"whenScaled": scaled, "whenDeleted": deleted});
        let (retain, delete) = ("Retain", "Delete");
        #[rustfmt::skip]
        let cases: Vec<(Value, Value, bool, Option<Vec<&str>>)> = vec![
            (policy(retain, retain), json!([]), true, None),
            (policy(retain, retain), json!([of("StatefulSet", "set")]), true, Some(vec![])),
            (policy(retain, delete), json!([]), true, Some(vec!["set"])),
            (policy(retain, delete), json!([]), false, Some(vec!["set"])),
            (policy(retain, delete), json!([of("StatefulSet", "set")]), true, None),
            (policy(delete, retain), json!([]), true, None),
            (policy(delete, retain), json!([]), false, Some(vec!["pod"])),
            (policy(delete, retain), json!([of("Pod", "pod")]), true, Some(vec![])),
            (policy(delete, delete), json!([of("StatefulSet", "set")]), false, Some(vec!["pod"])),
            (policy(delete, delete), json!([of("Pod", "pod")]), true, Some(vec!["set"])),
            (policy(delete, delete), json!([of("Pod", "earlier")]), true, None),
            (policy(delete, delete), json!([other]), true, None),
            (policy(delete, delete), json!([other, of("StatefulSet", "set")]), true, Some(vec!["t"])),
        ];
        for (policy, owners, in_range, want) in cases {
            let claim: PersistentVolumeClaim = serde_json::from_value(
                json!({"metadata": {"name": "c", "ownerReferences": owners}}),
            )
            .unwrap();
            let got = wanted_owners(&claim, &set(policy.clone()), &pod, in_range);
            let got = got.map(|list| list.into_iter().map(|o| o.uid).collect::<Vec<_>>());
            let want = want.map(|list| list.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(got, want, "{policy} {owners} {in_range}");
        }
    }
}
