//! What controllers ask of any object: who controls it, does a selector match it, when was it made.

use apimachinery::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{self, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

/// Index: the uid of an object's controller; for what has none, [`orphans`] of its namespace.
pub const CONTROLLER: &str = "controller";

/// The index value under which objects of a namespace without a controller are found.
pub fn orphans(namespace: &str) -> String {
    format!("/{namespace}")
}

pub fn controller_index<K: Resource>(object: &K) -> Vec<String> {
    match controller_of(object.meta()) {
        Some(owner) => vec![owner.uid.clone()],
        None => vec![orphans(
            object.meta().namespace.as_deref().unwrap_or_default(),
        )],
    }
}

/// The owner reference with `controller: true`, of which there is at most one.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .as_ref()?
        .iter()
        .find(|o| o.controller == Some(true))
}

/// A reference that makes `owner` the controller of what carries it.
pub fn controller_ref<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A compiled selector. One that cannot be compiled, like an absent one, matches nothing.
pub fn selector(selector: &v1::LabelSelector) -> LabelSelector {
    serde_json::to_value(selector)
        .ok()
        .and_then(|value| LabelSelector::from_value(&value).ok())
        .unwrap_or_else(LabelSelector::nothing)
}

pub fn matches<K: Resource>(selector: &LabelSelector, object: &K) -> bool {
    static NONE: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
    selector.matches(object.meta().labels.as_ref().unwrap_or(&NONE))
}

pub fn annotation<'a, K: Resource>(object: &'a K, key: &str) -> Option<&'a str> {
    object
        .meta()
        .annotations
        .as_ref()?
        .get(key)
        .map(String::as_str)
}

pub fn created<K: Resource>(object: &K) -> Timestamp {
    object
        .meta()
        .creation_timestamp
        .as_ref()
        .map_or(Timestamp::MIN, |t| t.0)
}

/// A number, or a share of `total` that is rounded up or down. What is neither counts as 0.
pub fn scaled(value: &IntOrString, total: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(n) => *n,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent * i64::from(total) + if up { 99 } else { 0 };
            (product / 100) as i32
        }
    }
}

/// Who belongs to whom among an owner and the objects that it could own.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    /// Ours, and still selected.
    Own,
    /// No one's, and selected: to be adopted.
    Adopt,
    /// Ours, but no longer selected: to be let go.
    Release,
    /// None of our business.
    Ignore,
}

/// The rules of Kubernetes' controller references: an owner that is being deleted adopts no one, and nobody adopts
/// what is being deleted.
pub fn claim<K: Resource>(owner: &ObjectMeta, selector: &LabelSelector, object: &K) -> Claim {
    let selected = matches(selector, object);
    match controller_of(object.meta()) {
        Some(controller) if Some(&controller.uid) == owner.uid.as_ref() => match selected {
            true => Claim::Own,
            false if owner.deletion_timestamp.is_some() => Claim::Ignore,
            false => Claim::Release,
        },
        Some(_) => Claim::Ignore,
        None => {
            let free =
                owner.deletion_timestamp.is_none() && object.meta().deletion_timestamp.is_none();
            if selected && free && owner.namespace == object.meta().namespace {
                Claim::Adopt
            } else {
                Claim::Ignore
            }
        }
    }
}

/// Strategic merge patch that adds a controller.
pub fn adopt_patch(owner: &OwnerReference) -> Value {
    json!({"metadata": {"ownerReferences": [owner]}})
}

/// Strategic merge patch that removes an owner.
pub fn release_patch(owner_uid: &str) -> Value {
    json!({"metadata": {"ownerReferences": [{"$patch": "delete", "uid": owner_uid}]}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    fn pod(value: Value) -> Pod {
        serde_json::from_value(json!({"metadata": value})).unwrap()
    }

    #[test]
    fn claims() {
        let owner: ObjectMeta =
            serde_json::from_value(json!({"namespace": "ns", "uid": "me"})).unwrap();
        let mut dying = owner.clone();
        dying.deletion_timestamp = Some(v1::Time(Timestamp::UNIX_EPOCH));
        let app = selector(&serde_json::from_value(json!({"matchLabels": {"app": "a"}})).unwrap());
        let by = |uid: &str| json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": uid, "controller": true}]);
        let labels = json!({"app": "a"});
        let gone = "2026-01-01T00:00:00Z";
        for (owner, object, want) in [
            (
                &owner,
                json!({"namespace": "ns", "labels": labels, "ownerReferences": by("me")}),
                Claim::Own,
            ),
            (
                &owner,
                json!({"namespace": "ns", "ownerReferences": by("me")}),
                Claim::Release,
            ),
            (
                &dying,
                json!({"namespace": "ns", "ownerReferences": by("me")}),
                Claim::Ignore,
            ),
            (
                &owner,
                json!({"namespace": "ns", "labels": labels, "ownerReferences": by("other")}),
                Claim::Ignore,
            ),
            (
                &owner,
                json!({"namespace": "ns", "labels": labels}),
                Claim::Adopt,
            ),
            (
                &dying,
                json!({"namespace": "ns", "labels": labels}),
                Claim::Ignore,
            ),
            (
                &owner,
                json!({"namespace": "ns", "labels": labels, "deletionTimestamp": gone}),
                Claim::Ignore,
            ),
            (&owner, json!({"namespace": "ns"}), Claim::Ignore),
            (
                &owner,
                json!({"namespace": "elsewhere", "labels": labels}),
                Claim::Ignore,
            ),
        ] {
            assert_eq!(claim(owner, &app, &pod(object.clone())), want, "{object}");
        }
    }
}
