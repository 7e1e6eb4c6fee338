//! The fields that every object has, read from and written to its document. Readers take what is there: an absent
//! or mistyped field reads as empty, since [`crate::schema`] has refused wrong types before.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::resource::GroupVersionKind;

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

pub fn name(object: &Value) -> &str {
    text(object, "name")
}

pub fn generate_name(object: &Value) -> &str {
    text(object, "generateName")
}

/// Empty for an object that is not in a namespace.
pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

pub fn uid(object: &Value) -> &str {
    text(object, "uid")
}

pub fn resource_version(object: &Value) -> &str {
    text(object, "resourceVersion")
}

pub fn creation_timestamp(object: &Value) -> Option<&str> {
    object["metadata"]["creationTimestamp"].as_str()
}

/// Set once deletion has been asked for; the object lives on until its finalizers and grace period are over.
pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    object["metadata"]["deletionTimestamp"].as_str()
}

pub fn deletion_grace_period_seconds(object: &Value) -> Option<i64> {
    object["metadata"]["deletionGracePeriodSeconds"].as_i64()
}

pub fn generation(object: &Value) -> i64 {
    object["metadata"]["generation"]
        .as_i64()
        .unwrap_or_default()
}

pub fn labels(object: &Value) -> Option<&Map<String, Value>> {
    object["metadata"]["labels"].as_object()
}

pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    labels(object)?.get(key)?.as_str()
}

pub fn annotations(object: &Value) -> Option<&Map<String, Value>> {
    object["metadata"]["annotations"].as_object()
}

pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    annotations(object)?.get(key)?.as_str()
}

pub fn owner_references(object: &Value) -> &[Value] {
    object["metadata"]["ownerReferences"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}

/// The owner reference with `controller: true`.
pub fn controller_of(object: &Value) -> Option<&Value> {
    owner_references(object)
        .iter()
        .find(|r| r["controller"] == true)
}

pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

pub fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or_default()
}

pub fn api_version(object: &Value) -> &str {
    object["apiVersion"].as_str().unwrap_or_default()
}

/// The kind that the object says it is.
pub fn group_version_kind(object: &Value) -> GroupVersionKind {
    GroupVersionKind::from_api_version(api_version(object), kind(object))
}

/// `namespace/name`, or just the name outside namespaces: the key that queues and caches use.
pub fn key(object: &Value) -> Cow<'_, str> {
    match (namespace(object), name(object)) {
        ("", name) => Cow::Borrowed(name),
        (namespace, name) => Cow::Owned(format!("{namespace}/{name}")),
    }
}

/// The metadata, made if absent. `None` when the document or its metadata is not an object.
pub fn metadata_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    object_mut(object, "metadata")
}

/// The object under `field`, made if absent or null. `None` when something else is in its place.
pub fn object_mut<'a>(parent: &'a mut Value, field: &str) -> Option<&'a mut Map<String, Value>> {
    let child = parent.as_object_mut()?.entry(field).or_insert(Value::Null);
    if child.is_null() {
        *child = Value::Object(Map::new());
    }
    child.as_object_mut()
}

/// Sets one metadata field; null removes it.
pub fn set_metadata(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(metadata) = metadata_mut(object) {
        match value.into() {
            Value::Null => metadata.remove(field),
            value => metadata.insert(field.to_owned(), value),
        };
    }
}

/// Sets a label or annotation: `map` is `labels` or `annotations`.
fn set_entry(object: &mut Value, map: &str, key: &str, value: &str) {
    if metadata_mut(object).is_none() {
        return;
    }
    let entries = object_mut(&mut object["metadata"], map);
    if let Some(entries) = entries {
        entries.insert(key.to_owned(), value.into());
    }
}

pub fn set_label(object: &mut Value, key: &str, value: &str) {
    set_entry(object, "labels", key, value);
}

pub fn set_annotation(object: &mut Value, key: &str, value: &str) {
    set_entry(object, "annotations", key, value);
}

pub fn set_name(object: &mut Value, name: &str) {
    set_metadata(object, "name", name);
}

pub fn set_namespace(object: &mut Value, namespace: &str) {
    set_metadata(
        object,
        "namespace",
        if namespace.is_empty() {
            Value::Null
        } else {
            namespace.into()
        },
    );
}

pub fn set_uid(object: &mut Value, uid: &str) {
    set_metadata(object, "uid", uid);
}

pub fn set_resource_version(object: &mut Value, revision: &str) {
    set_metadata(object, "resourceVersion", revision);
}

pub fn set_generation(object: &mut Value, generation: i64) {
    set_metadata(object, "generation", generation);
}

/// Replaces the finalizers; none removes the field.
pub fn set_finalizers<'a>(object: &mut Value, finalizers: impl IntoIterator<Item = &'a str>) {
    let list: Vec<Value> = finalizers.into_iter().map(Value::from).collect();
    set_metadata(
        object,
        "finalizers",
        if list.is_empty() {
            Value::Null
        } else {
            list.into()
        },
    );
}

/// The condition of that type in `status.conditions`.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|c| c["type"] == kind)
}

/// Puts a condition in the place of the one of its type. The time of its last transition moves only with its status. Whether
/// it says anything new.
pub fn merge_condition(conditions: &mut Vec<Value>, mut condition: Value) -> bool {
    let same_type = |known: &&mut Value| known["type"] == condition["type"];
    match conditions.iter_mut().find(same_type) {
        Some(known) => {
            if known["status"] == condition["status"] && known["lastTransitionTime"].is_string() {
                condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
            }
            let news = *known != condition;
            *known = condition;
            news
        }
        None => {
            conditions.push(condition);
            true
        }
    }
}

/// The same in an object's status.
pub fn set_condition(object: &mut Value, condition: Value) -> bool {
    let conditions = &mut object["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = Value::Array(Vec::new());
    }
    conditions
        .as_array_mut()
        .is_some_and(|conditions| merge_condition(conditions, condition))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_what_is_there() {
        let object = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "a", "namespace": "b",
            "labels": {"x": "y"}, "finalizers": ["f"], "ownerReferences": [{"uid": "1"}, {"uid": "2", "controller": true}]}});
        assert_eq!(key(&object), "b/a");
        assert_eq!(label(&object, "x"), Some("y"));
        assert_eq!(controller_of(&object).unwrap()["uid"], "2");
        assert_eq!(finalizers(&object).collect::<Vec<_>>(), ["f"]);
        assert_eq!(
            group_version_kind(&object),
            GroupVersionKind::new("apps", "v1", "ReplicaSet")
        );
        assert_eq!(key(&json!({"metadata": "broken"})), "");
    }

    #[test]
    fn writes_make_what_is_missing() {
        let mut object = json!({"metadata": null});
        set_label(&mut object, "a", "b");
        set_name(&mut object, "n");
        set_finalizers(&mut object, ["x"]);
        assert_eq!(
            object,
            json!({"metadata": {"labels": {"a": "b"}, "name": "n", "finalizers": ["x"]}})
        );
        set_finalizers(&mut object, []);
        set_namespace(&mut object, "");
        assert_eq!(
            object,
            json!({"metadata": {"labels": {"a": "b"}, "name": "n"}})
        );
        let mut empty = json!({});
        set_annotation(&mut empty, "a", "b");
        assert_eq!(empty, json!({"metadata": {"annotations": {"a": "b"}}}));
    }

    #[test]
    fn the_time_of_a_condition_moves_with_its_status() {
        let condition = |status: &str, message: &str, time: &str| json!({"type": "A", "status": status, "message": message, "lastTransitionTime": time});
        let mut object = json!({});
        for (new, news, time) in [
            (condition("True", "m", "1"), true, "1"),
            (condition("True", "m", "2"), false, "1"),
            (condition("True", "n", "3"), true, "1"),
            (condition("False", "n", "4"), true, "4"),
        ] {
            assert_eq!(set_condition(&mut object, new.clone()), news, "{new}");
            let conditions = object["status"]["conditions"].as_array().unwrap();
            assert_eq!(
                (conditions.len(), &conditions[0]["lastTransitionTime"]),
                (1, &json!(time))
            );
        }
    }
}
