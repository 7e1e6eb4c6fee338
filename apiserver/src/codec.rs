//! Objects as bytes: the form in the store, and the form on the wire.
//!
//! An object is serialized once per revision. What is stored begins with `apiVersion`, `kind` and `metadata`, in
//! this order and without `metadata.resourceVersion`; what is served is the same text with the resource version
//! (the store's revision, unknown until the write has happened) spliced in at a place that is known without
//! parsing.

use apimachinery::json;
use apimachinery::protobuf::{self, Message};
use apimachinery::resource::Resource;
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::strategy;

/// What is wrong with a value in the store.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("not a JSON object")]
    NotJson,
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Protobuf(#[from] protobuf::Error),
}

/// The text after which `resourceVersion` is spliced in.
const METADATA: &[u8] = b"\"metadata\":{";

/// Where an object has its managers.
const MANAGERS: &str = "managedFields";

/// The stored form: canonical key order at the top, no resource version.
#[must_use]
pub fn encode(object: &Value) -> Bytes {
    encode_with(object, &[])
}

/// The same with the text of managers that are not in the object, unless it is empty.
#[must_use]
pub fn encode_with(object: &Value, managers: &[u8]) -> Bytes {
    let empty = Map::new();
    let map = object.as_object().unwrap_or(&empty);
    // What the managers own takes about as much again.
    let mut out = Vec::with_capacity(1024 + managers.len() * 5 / 2);
    out.push(b'{');
    for key in ["apiVersion", "kind"] {
        json::write_field(&mut out, key, map.get(key).unwrap_or(&Value::Null));
        out.push(b',');
    }
    out.extend_from_slice(METADATA);
    if let Some(metadata) = map.get("metadata").and_then(Value::as_object) {
        write_metadata(&mut out, metadata, managers);
    }
    out.push(b'}');
    for (key, value) in map
        .iter()
        .filter(|(key, _)| !matches!(key.as_str(), "apiVersion" | "kind" | "metadata"))
    {
        out.push(b',');
        json::write_field(&mut out, key, value);
    }
    out.push(b'}');
    out.into()
}

/// The fields of the metadata but for the resource version, with the managers in their place among them.
fn write_metadata(out: &mut Vec<u8>, metadata: &Map<String, Value>, managers: &[u8]) {
    let beside = (!managers.is_empty()).then_some(managers);
    let own = metadata
        .iter()
        .filter(|(key, _)| *key != "resourceVersion" && (beside.is_none() || *key != MANAGERS));
    let mut fields: Vec<(&str, Option<&Value>)> = own
        .map(|(key, value)| (key.as_str(), Some(value)))
        .collect();
    if beside.is_some() {
        let at = fields.partition_point(|(key, _)| *key < MANAGERS);
        fields.insert(at, (MANAGERS, None));
    }
    for (index, (key, value)) in fields.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        match value {
            Some(value) => json::write_field(out, key, value),
            None => {
                json::write_string(out, key);
                out.push(b':');
                out.extend_from_slice(managers);
            }
        }
    }
}

/// Where the resource version goes in a stored document: right after `"metadata":{`.
fn splice_point(stored: &[u8]) -> Option<usize> {
    // apiVersion and kind are plain strings, so the first occurrence is the right one, and near.
    let head = &stored[..stored.len().min(1024)];
    if !head.starts_with(b"{\"apiVersion\":") {
        return None;
    }
    head.windows(METADATA.len())
        .position(|window| window == METADATA)
        .map(|at| at + METADATA.len())
}

/// A value of the store in the form that we would have stored: as it is if we have, else brought from what a Kubernetes
/// API server stores (protobuf, another key order, another version of the kind).
pub fn adopt(stored: &Bytes, resource: &Resource) -> Result<Bytes, Unreadable> {
    if after_type(stored, resource).is_some() {
        return Ok(stored.clone());
    }
    let version = resource.api_version();
    let foreign = protobuf::has_magic(stored);
    let mut value = match foreign {
        true => protobuf::to_json(stored, (&version, &resource.kind))?,
        false => serde_json::from_slice(stored)?,
    };
    if !value.is_object() {
        return Err(Unreadable::NotJson);
    }
    // Versions of a custom resource have no rule by which one becomes the other here.
    if Message::find(&version, &resource.kind).is_some() {
        value = apimachinery::convert::convert(value, &version);
    }
    if foreign {
        // What Go writes for nothing, such as null, is not kept.
        resource.schema.conform(&mut value).map_err(|error| {
            Unreadable::Protobuf(protobuf::Error::Field {
                field: resource.kind.to_string(),
                why: error,
            })
        })?;
        // Kubernetes fills in defaults whenever it reads: some are never stored, and others are newer than the object.
        resource.schema.apply_defaults(&mut value);
        strategy::of(&resource.group, &resource.plural).default(&mut value);
    }
    Ok(encode(&value))
}

/// An object as it stands in a list of its kind, which says for all of them what they are: without apiVersion and kind.
/// From after its opening brace on.
pub fn list_item(document: &Bytes, resource: &Resource) -> Result<Bytes, serde_json::Error> {
    if let Some(metadata) = after_type(document, resource) {
        return Ok(document.slice(metadata..));
    }
    let mut value: Map<String, Value> = serde_json::from_slice(document)?;
    value.retain(|key, _| !matches!(key.as_str(), "apiVersion" | "kind"));
    let mut out = Vec::with_capacity(document.len());
    json::write(&mut out, &Value::Object(value));
    Ok(Bytes::from(out).slice(1..))
}

/// Where the metadata begin in a stored document, if it begins as [`encode`] begins one of this kind.
fn after_type(stored: &[u8], resource: &Resource) -> Option<usize> {
    let rest = stored.strip_prefix(b"{\"apiVersion\":\"");
    let rest = match resource.group.is_empty() {
        true => rest,
        false => rest
            .and_then(|rest| rest.strip_prefix(resource.group.as_bytes()))
            .and_then(|rest| rest.strip_prefix(b"/")),
    };
    let rest = rest
        .and_then(|rest| rest.strip_prefix(resource.version.as_bytes()))
        .and_then(|rest| rest.strip_prefix(b"\",\"kind\":\""))
        .and_then(|rest| rest.strip_prefix(resource.kind.as_bytes()))
        .and_then(|rest| rest.strip_prefix(b"\","))
        .filter(|rest| rest.starts_with(METADATA))?;
    Some(stored.len() - rest.len())
}

/// The served form of a stored document at a revision. `None` if it is not JSON at all.
#[must_use]
pub fn serve(stored: &[u8], revision: u64) -> Option<Bytes> {
    let Some(at) = splice_point(stored) else {
        // Not written by us: bring it into our order first.
        let value: Value = serde_json::from_slice(stored).ok()?;
        return value
            .is_object()
            .then(|| encode(&value))
            .and_then(|canonical| serve(&canonical, revision));
    };
    let mut out = Vec::with_capacity(stored.len() + 42);
    out.extend_from_slice(&stored[..at]);
    out.extend_from_slice(b"\"resourceVersion\":\"");
    out.extend_from_slice(revision.to_string().as_bytes());
    out.push(b'"');
    if stored.get(at) != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(&stored[at..]);
    // No spare capacity stays behind: these bytes live as long as the object does.
    Some(Bytes::from(out.into_boxed_slice()))
}

/// A served document moved to another revision (a deletion, or an update that leaves a selection).
#[must_use]
pub fn reserve(served: &Bytes, revision: u64) -> Bytes {
    let moved = splice_point(served).and_then(|at| {
        let rest = served[at..].strip_prefix(b"\"resourceVersion\":\"")?;
        let end = rest.iter().position(|byte| *byte == b'"')? + 1;
        let mut out = Vec::with_capacity(served.len() + 8);
        out.extend_from_slice(&served[..at]);
        out.extend_from_slice(b"\"resourceVersion\":\"");
        out.extend_from_slice(revision.to_string().as_bytes());
        out.push(b'"');
        out.extend_from_slice(&rest[end..]);
        Some(Bytes::from(out))
    });
    moved.unwrap_or_else(|| served.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn splices_the_revision() {
        for object in [
            json!({"kind": "X", "apiVersion": "v1", "metadata": {}, "data": {"metadata": {"a": 1}}}),
            json!({"kind": "X", "apiVersion": "v1", "metadata": {"name": "n", "resourceVersion": "99"}}),
            json!({"kind": "X", "apiVersion": "v1", "binary": "\"metadata\":{"}),
        ] {
            let stored = encode(&object);
            let mut expected = object.clone();
            expected["metadata"]["resourceVersion"] = json!("7");
            let served = serve(&stored, 7).unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&served).unwrap(), expected);
            expected["metadata"]["resourceVersion"] = json!("12345");
            assert_eq!(
                serde_json::from_slice::<Value>(&reserve(&served, 12345)).unwrap(),
                expected
            );
        }
    }

    #[test]
    fn managers_beside_an_object_are_written_as_those_in_it() {
        let list = json!([{"manager": "m", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:data": {".": {}, "f:a\"": {}}}}]);
        let beside = list.to_string();
        for metadata in [
            json!({"annotations": {}, "name": "n", "uid": "u", "resourceVersion": "1"}),
            json!({"annotations": {}, "managedFields": []}),
            json!({"name": "n"}),
            json!({}),
        ] {
            let object = json!({"apiVersion": "v1", "kind": "X", "metadata": metadata, "data": {}});
            let mut whole = object.clone();
            whole["metadata"]["managedFields"] = list.clone();
            assert_eq!(encode_with(&object, beside.as_bytes()), encode(&whole));
        }
    }

    #[test]
    fn takes_foreign_documents() {
        let served = serve(
            br#"{ "metadata": {"name":"n"}, "kind":"X", "apiVersion":"v1"}"#,
            3,
        )
        .unwrap();
        assert_eq!(
            &served[..],
            br#"{"apiVersion":"v1","kind":"X","metadata":{"resourceVersion":"3","name":"n"}}"#
        );
        assert!(serve(b"k8s\0protobuf", 3).is_none());
        assert!(serve(b"[]", 3).is_none());
    }

    fn resource(group: &str, plural: &str) -> &'static Resource {
        let mut all = apimachinery::resource::builtin().iter();
        all.find(|r| r.group == group && r.plural == plural && r.storage_version)
            .unwrap()
    }

    #[test]
    fn adopts_what_kubernetes_has_stored() {
        let pods = resource("", "pods");
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let ours = encode(&pod);
        assert_eq!(adopt(&ours, pods).unwrap().as_ptr(), ours.as_ptr());
        let foreign = protobuf::from_json(pod.to_string().as_bytes()).unwrap();
        let adopted: Value =
            serde_json::from_slice(&adopt(&foreign.into(), pods).unwrap()).unwrap();
        assert_eq!(adopted["spec"]["containers"][0]["image"], "i");
        assert_eq!(adopted["metadata"], json!({"name": "p"}));
        assert_eq!(adopted["spec"]["restartPolicy"], "Always");
        let claims = resource("", "persistentvolumeclaims");
        let claim =
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}});
        let foreign = protobuf::from_json(claim.to_string().as_bytes()).unwrap();
        let adopted: Value =
            serde_json::from_slice(&adopt(&foreign.into(), claims).unwrap()).unwrap();
        assert_eq!(adopted["status"]["phase"], "Pending");
        // Another key order, in which the first metadata is not that of the object.
        let reordered = br#"{"apiVersion":"v1","data":{"metadata":{"name":"x"}},"kind":"Pod","metadata":{"name":"p"}}"#;
        let adopted = adopt(&Bytes::from_static(reordered), pods).unwrap();
        let served: Value = serde_json::from_slice(&serve(&adopted, 7).unwrap()).unwrap();
        assert_eq!(
            served["metadata"],
            json!({"name": "p", "resourceVersion": "7"})
        );
        for bad in [&b"k8s\0\x0a\x7f"[..], b"[]", b"", b"{"] {
            assert!(adopt(&Bytes::from_static(bad), pods).is_err());
        }
    }

    #[test]
    fn items_of_lists_have_no_type() {
        let pods = resource("", "pods");
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"kind": "x"}});
        let ours = encode(&pod);
        let item = list_item(&ours, pods).unwrap();
        assert_eq!(
            &item[..],
            br#""metadata":{"name":"p"},"spec":{"kind":"x"}}"#
        );
        assert_eq!(item.as_ptr_range().end, ours.as_ptr_range().end);
        // Another order, another version: the same, only not for nothing.
        for other in [
            r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"p"},"spec":{"kind":"x"}}"#,
            r#"{"apiVersion":"v2","kind":"Pod","metadata":{"name":"p"},"spec":{"kind":"x"}}"#,
            r#"{"metadata":{"name":"p"},"spec":{"kind":"x"}}"#,
        ] {
            assert_eq!(list_item(&Bytes::from(other), pods).unwrap(), item);
        }
        assert_eq!(&list_item(&Bytes::from("{}"), pods).unwrap()[..], b"}");
        assert!(list_item(&Bytes::from("[]"), pods).is_err());
    }

    #[test]
    fn adopts_other_versions() {
        let scalers = resource("autoscaling", "horizontalpodautoscalers");
        let v1 = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 3,
                "targetCPUUtilizationPercentage": 50}});
        let stored = protobuf::from_json(v1.to_string().as_bytes()).unwrap();
        let v2: Value = serde_json::from_slice(&adopt(&stored.into(), scalers).unwrap()).unwrap();
        assert_eq!(v2["apiVersion"], "autoscaling/v2");
        assert_eq!(
            v2["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
            50
        );
    }
}
