//! Objects as bytes: the form in the store, and the form on the wire.
//!
//! An object is serialized once per revision. What is stored begins with `apiVersion`, `kind` and `metadata`, in
//! this order and without `metadata.resourceVersion`; what is served is the same text with the resource version
//! (the store's revision, unknown until the write has happened) spliced in at a place that is known without
//! parsing.

use bytes::Bytes;
use serde_json::{Map, Value};

/// The text after which `resourceVersion` is spliced in.
const METADATA: &[u8] = b"\"metadata\":{";

/// The stored form: canonical key order at the top, no resource version.
#[must_use]
pub fn encode(object: &Value) -> Bytes {
    let empty = Map::new();
    let map = object.as_object().unwrap_or(&empty);
    let mut out = Vec::with_capacity(1024);
    out.push(b'{');
    for key in ["apiVersion", "kind"] {
        write_entry(&mut out, key, map.get(key).unwrap_or(&Value::Null));
        out.push(b',');
    }
    out.extend_from_slice(METADATA);
    if let Some(metadata) = map.get("metadata").and_then(Value::as_object) {
        let mut first = true;
        for (key, value) in metadata.iter().filter(|(key, _)| *key != "resourceVersion") {
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            write_entry(&mut out, key, value);
        }
    }
    out.push(b'}');
    for (key, value) in map
        .iter()
        .filter(|(key, _)| !matches!(key.as_str(), "apiVersion" | "kind" | "metadata"))
    {
        out.push(b',');
        write_entry(&mut out, key, value);
    }
    out.push(b'}');
    out.into()
}

fn write_entry(out: &mut Vec<u8>, key: &str, value: &Value) {
    write_json(out, &key);
    out.push(b':');
    write_json(out, value);
}

/// Appends a value as JSON. A `Vec` takes every write and our values have string keys, so this cannot fail.
pub fn write_json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    if let Err(error) = serde_json::to_writer(&mut *out, value) {
        tracing::error!(%error, "value does not serialize");
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
}
