//! Checks that hold for the metadata of every object, and the pieces that kinds share, with Kubernetes' messages.

use serde_json::{Map, Value};

use crate::field::{Error, ErrorList, Path, quote};
use crate::{names, object};

/// How a kind's names are checked.
pub type NameCheck = fn(&str) -> Vec<String>;

pub const FIELD_IMMUTABLE: &str = "field is immutable";
const ANNOTATIONS_LIMIT: usize = 256 * 1024;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// The metadata of an object to be created, once its name has been generated.
pub fn object_meta(object: &Value, namespaced: bool, check_name: NameCheck) -> ErrorList {
    let path = Path::new("metadata");
    let mut errors = ErrorList::new();
    let (name, generate_name) = (object::name(object), object::generate_name(object));
    if !generate_name.is_empty() {
        let messages = check_name(&names::mask_trailing_dash(generate_name));
        errors.invalid_each(&path.child("generateName"), generate_name, messages);
    }
    if name.is_empty() {
        errors.push(Error::required(
            &path.child("name"),
            "name or generateName is required",
        ));
    } else {
        errors.invalid_each(&path.child("name"), name, check_name(name));
    }
    errors.append(common_meta(object, namespaced, &path));
    errors
}

fn common_meta(object: &Value, namespaced: bool, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let namespace = object::namespace(object);
    match (namespaced, namespace) {
        (true, "") => errors.push(Error::required(&path.child("namespace"), "")),
        (true, _) => errors.invalid_each(
            &path.child("namespace"),
            namespace,
            names::dns1123_label(namespace),
        ),
        (false, "") => {}
        (false, _) => errors.push(Error::forbidden(
            &path.child("namespace"),
            "not allowed on this type",
        )),
    }
    let generation = object::generation(object);
    if generation < 0 {
        errors.push(non_negative(&path.child("generation"), generation));
    }
    if let Some(map) = object::labels(object) {
        errors.append(labels(map, &path.child("labels")));
    }
    if let Some(map) = object::annotations(object) {
        errors.append(annotations(map, &path.child("annotations")));
    }
    errors.append(owner_references(object, &path.child("ownerReferences")));
    errors.append(finalizers(object, &path.child("finalizers")));
    errors.append(managed_fields(object, &path.child("managedFields")));
    errors
}

/// What an update may do to the metadata.
pub fn object_meta_update(new: &Value, old: &Value) -> ErrorList {
    let path = Path::new("metadata");
    let mut errors = ErrorList::new();
    if object::deletion_timestamp(old).is_some() {
        let had: Vec<&str> = object::finalizers(old).collect();
        let mut extra: Vec<&str> = object::finalizers(new)
            .filter(|f| !had.contains(f))
            .collect();
        extra.sort_unstable();
        if !extra.is_empty() {
            let list = extra
                .iter()
                .map(|f| quote(f))
                .collect::<Vec<_>>()
                .join(", ");
            let what = "no new finalizers can be added if the object is being deleted, found new finalizers";
            errors.push(Error::forbidden(
                &path.child("finalizers"),
                format!("{what} []string{{{list}}}"),
            ));
        }
    }
    if object::resource_version(new).is_empty() {
        let detail = "must be specified for an update";
        errors.push(Error::invalid(&path.child("resourceVersion"), "", detail));
    }
    if object::generation(new) < object::generation(old) {
        let detail = "must not be decremented";
        errors.push(Error::invalid(
            &path.child("generation"),
            object::generation(new),
            detail,
        ));
    }
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        let (new, old) = (&new["metadata"][field], &old["metadata"][field]);
        errors.extend(immutable(new, old, &path.child(field)));
    }
    let text = |v: &Value| v.as_object().is_some_and(|m| !m.is_empty());
    if text(&new["metadata"]["labels"]) || text(&new["metadata"]["annotations"]) {
        errors.append(maps_of(new, &path));
    }
    errors.append(owner_references(new, &path.child("ownerReferences")));
    errors.append(managed_fields(new, &path.child("managedFields")));
    errors
}

fn maps_of(object: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if let Some(map) = object::labels(object) {
        errors.append(labels(map, &path.child("labels")));
    }
    if let Some(map) = object::annotations(object) {
        errors.append(annotations(map, &path.child("annotations")));
    }
    errors
}

/// An error unless both are equal.
pub fn immutable(new: &Value, old: &Value, path: &Path) -> Option<Error> {
    (new != old).then(|| Error::invalid(path, new.clone(), FIELD_IMMUTABLE))
}

pub fn non_negative(path: &Path, value: i64) -> Error {
    Error::invalid(path, value, "must be greater than or equal to 0")
}

pub fn labels(map: &Map<String, Value>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (key, value) in map {
        let value = value.as_str().unwrap_or_default();
        errors.invalid_each(path, key, names::qualified_name(key));
        errors.invalid_each(path, value, names::label_value(value));
    }
    errors
}

pub fn annotations(map: &Map<String, Value>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut size = 0;
    for (key, value) in map {
        // Upper case is fine in the prefix of an annotation.
        errors.invalid_each(path, key, names::qualified_name(&key.to_lowercase()));
        size += key.len() + value.as_str().unwrap_or_default().len();
    }
    if size > ANNOTATIONS_LIMIT {
        errors.push(Error::too_long(path, ANNOTATIONS_LIMIT));
    }
    errors
}

fn owner_references(object: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let references = object::owner_references(object);
    let mut controller: Option<String> = None;
    for reference in references {
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        let version = crate::resource::GroupVersion::parse(text("apiVersion"));
        if version.version.is_empty() {
            let detail = "version must not be empty";
            errors.push(Error::invalid(
                &path.child("apiVersion"),
                text("apiVersion"),
                detail,
            ));
        }
        for field in ["kind", "name", "uid"] {
            if text(field).is_empty() {
                errors.push(Error::invalid(&path.child(field), "", "must not be empty"));
            }
        }
        if text("apiVersion") == "v1" && text("kind") == "Event" {
            let detail = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(Error::invalid(path, reference.clone(), detail));
        }
        if reference["controller"] == true {
            let this = format!("{}/{}", text("kind"), text("name"));
            match &controller {
                Some(first) => {
                    let detail = format!(
                        "Only one reference can have Controller set to true. \
                         Found \"true\" in references for {first} and {this}"
                    );
                    errors.push(Error::invalid(path, references.to_vec(), detail));
                }
                None => controller = Some(this),
            }
        }
    }
    errors
}

fn finalizers(object: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let all: Vec<&str> = object::finalizers(object).collect();
    for finalizer in &all {
        errors.invalid_each(path, finalizer, names::qualified_name(finalizer));
    }
    if all.contains(&ORPHAN) && all.contains(&FOREGROUND) {
        let detail = format!("finalizer {ORPHAN} and {FOREGROUND} cannot be both set");
        errors.push(Error::invalid(path, all, detail));
    }
    errors
}

fn managed_fields(object: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let entries = object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten();
    for (i, entry) in entries.enumerate() {
        let path = path.index(i);
        let operation = entry["operation"].as_str().unwrap_or_default();
        if !matches!(operation, "Apply" | "Update") {
            errors.push(Error::invalid(
                &path.child("operation"),
                operation,
                "must be `Apply` or `Update`",
            ));
        }
        let kind = entry["fieldsType"].as_str().unwrap_or_default();
        if !matches!(kind, "" | "FieldsV1") {
            errors.push(Error::invalid(
                &path.child("fieldsType"),
                kind,
                "must be `FieldsV1`",
            ));
        }
        errors.append(field_manager(
            entry["manager"].as_str().unwrap_or_default(),
            &path.child("manager"),
        ));
    }
    errors
}

/// The name of a field manager: at most 128 printable characters.
pub fn field_manager(name: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if name.len() > 128 {
        errors.push(Error::too_long(path, 128));
    }
    if let Some((i, c)) = name.chars().enumerate().find(|(_, c)| c.is_control()) {
        let detail = format!("invalid character U+{:04X} (at position {i})", c as u32);
        errors.push(Error::invalid(
            path,
            name,
            format!("{detail}: should only contain printable characters"),
        ));
    }
    errors
}

/// A `metav1.LabelSelector`. Null is fine: it selects nothing.
pub fn label_selector(selector: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if let Some(map) = selector["matchLabels"].as_object() {
        errors.append(labels(map, &path.child("matchLabels")));
    }
    for (i, expression) in selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let path = path.child("matchExpressions").index(i);
        let values: Vec<&str> = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let operator = expression["operator"].as_str().unwrap_or_default();
        let at = path.child("values");
        match (operator, values.is_empty()) {
            ("In" | "NotIn", true) => {
                errors.push(Error::required(
                    &at,
                    "must be specified when `operator` is 'In' or 'NotIn'",
                ));
            }
            ("Exists" | "DoesNotExist", false) => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(Error::forbidden(&at, detail));
            }
            ("In" | "NotIn" | "Exists" | "DoesNotExist", _) => {}
            _ => errors.push(Error::invalid(
                &path.child("operator"),
                operator,
                "not a valid selector operator",
            )),
        }
        let key = expression["key"].as_str().unwrap_or_default();
        errors.invalid_each(&path.child("key"), key, names::qualified_name(key));
        for (i, value) in values.iter().enumerate() {
            errors.invalid_each(&at.index(i), value, names::label_value(value));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn messages(object: Value, namespaced: bool) -> Vec<String> {
        object_meta(&object, namespaced, names::dns1123_subdomain)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn good_metadata_passes() {
        let object = json!({"metadata": {"name": "web", "generateName": "w-", "namespace": "default",
            "labels": {"app": "web"}, "annotations": {"X.io/Y": "z"}, "finalizers": ["x.io/y"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "1", "controller": true}],
            "managedFields": [{"operation": "Update", "manager": "me", "fieldsType": "FieldsV1"}]}});
        assert_eq!(messages(object, true), [""; 0]);
    }

    #[test]
    fn bad_metadata_is_told_by_field() {
        let cases = [
            (
                json!({}),
                true,
                vec![
                    "metadata.name: Required value: name or generateName is required",
                    "metadata.namespace: Required value",
                ],
            ),
            (
                json!({"name": "a", "namespace": "b"}),
                false,
                vec!["metadata.namespace: Forbidden: not allowed on this type"],
            ),
            (
                json!({"name": "a", "generation": -1}),
                false,
                vec!["metadata.generation: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                json!({"name": "a", "annotations": {"a": "x".repeat(300_000)}}),
                false,
                vec!["metadata.annotations: Too long: may not be more than 262144 bytes"],
            ),
            (
                json!({"name": "a", "finalizers": ["orphan", "foregroundDeletion"]}),
                false,
                vec![
                    "metadata.finalizers: Invalid value: [\"orphan\",\"foregroundDeletion\"]: finalizer orphan and \
                      foregroundDeletion cannot be both set",
                ],
            ),
            (
                json!({"name": "a", "ownerReferences": [{}]}),
                false,
                vec![
                    "metadata.ownerReferences.apiVersion: Invalid value: \"\": version must not be empty",
                    "metadata.ownerReferences.kind: Invalid value: \"\": must not be empty",
                    "metadata.ownerReferences.name: Invalid value: \"\": must not be empty",
                    "metadata.ownerReferences.uid: Invalid value: \"\": must not be empty",
                ],
            ),
        ];
        for (metadata, namespaced, expect) in cases {
            assert_eq!(messages(json!({"metadata": metadata}), namespaced), expect);
        }
        let bad = messages(
            json!({"metadata": {"name": "A", "labels": {"a b": "-"}}}),
            false,
        );
        assert_eq!(bad.len(), 3, "{bad:?}");
        assert!(bad[0].starts_with(
            "metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain must"
        ));
    }

    #[test]
    fn updates() {
        let old = json!({"metadata": {"name": "a", "uid": "1", "resourceVersion": "1", "generation": 2,
            "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/a"]}});
        assert!(object_meta_update(&old, &old).is_empty());
        let mut new = old.clone();
        new["metadata"]["uid"] = "2".into();
        new["metadata"]["generation"] = 1.into();
        new["metadata"]["resourceVersion"] = "".into();
        new["metadata"]["finalizers"] = json!(["x.io/b"]);
        let errors: Vec<String> = object_meta_update(&new, &old)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            errors,
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new \
              finalizers []string{\"x.io/b\"}",
                "metadata.resourceVersion: Invalid value: \"\": must be specified for an update",
                "metadata.generation: Invalid value: 1: must not be decremented",
                "metadata.uid: Invalid value: \"2\": field is immutable"
            ]
        );
    }

    #[test]
    fn selectors() {
        let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "a", "operator": "In"}, {"key": "a", "operator": "Exists", "values": ["x"]},
            {"key": "", "operator": "Near"}]});
        let errors: Vec<String> = label_selector(&selector, &Path::new("spec.selector"))
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            errors[0],
            "spec.selector.matchExpressions[0].values: Required value: must be specified when \
            `operator` is 'In' or 'NotIn'"
        );
        assert!(errors[1].starts_with(
            "spec.selector.matchExpressions[1].values: Forbidden: may not be specified"
        ));
        assert_eq!(
            errors[2],
            "spec.selector.matchExpressions[2].operator: Invalid value: \"Near\": not a valid \
            selector operator"
        );
        assert!(label_selector(&Value::Null, &Path::new("a")).is_empty());
    }
}
