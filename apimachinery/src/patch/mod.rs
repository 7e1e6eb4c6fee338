//! The three patch formats that the API takes. A patch that fails leaves the document in an unspecified state: patch a
//! copy.

mod strategic;

use serde_json::Value;

use crate::status::{Result, Status};

pub use strategic::strategic_merge;

/// As many operations may be in one JSON patch.
pub const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;
/// As many bytes may all copies of one JSON patch come to: each could double what is there.
const MAX_COPIED: usize = 3 << 20;

/// Applies a JSON patch (RFC 6902): malformed ones are a bad request, ones that do not apply are unprocessable.
pub fn json_patch(document: &mut Value, patch: &Value) -> Result<()> {
    use serde::Deserialize;
    let operations = json_patch::Patch::deserialize(patch)
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    if operations.len() > MAX_JSON_PATCH_OPERATIONS {
        return Err(Status::too_large(format!(
            "The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut copied = 0;
    for (index, operation) in operations.iter().enumerate() {
        if let json_patch::PatchOperation::Copy(copy) = operation {
            copied += document.pointer(copy.from.as_str()).map_or(0, size);
            if copied > MAX_COPIED {
                return Err(Status::too_large(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit \
                     {MAX_COPIED}"
                )));
            }
        }
        // Nothing is undone: the library fails in that where a move has replaced the whole.
        json_patch::patch_unsafe(document, std::slice::from_ref(operation)).map_err(|mut e| {
            e.operation = index;
            unprocessable(&e.to_string())
        })?;
    }
    Ok(())
}

/// How long a value is as JSON.
fn size(value: &Value) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Counting cannot fail, nor can a value whose keys are strings.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}

/// Applies a JSON merge patch (RFC 7386).
pub fn merge_patch(document: &mut Value, patch: &Value) -> Result<()> {
    if !patch.is_object() {
        return Err(Status::bad_request(
            "error decoding patch: a merge patch must be a JSON object",
        ));
    }
    json_patch::merge(document, patch);
    Ok(())
}

/// Kubernetes' answer to a well-formed patch that cannot be applied, with our reason as its cause.
fn unprocessable(why: &str) -> Status {
    let message = "the server rejected our request due to an error in our request";
    Status::new(422, "Invalid", message).with_cause("UnexpectedServerResponse", why, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_patches() {
        let mut document = json!({"a": {"b": [1, 2]}});
        let patch = json!([{"op": "test", "path": "/a/b/0", "value": 1}, {"op": "add", "path": "/a/b/-", "value": 3},
            {"op": "remove", "path": "/a/b/0"}, {"op": "add", "path": "/a/x~1y", "value": null}]);
        json_patch(&mut document, &patch).unwrap();
        assert_eq!(document, json!({"a": {"b": [2, 3], "x/y": null}}));
        for (patch, code) in [
            (json!([{"op": "remove", "path": "/zz"}]), 422),
            (json!([{"op": "test", "path": "/a", "value": 1}]), 422),
            (json!([{"op": "frob", "path": "/a"}]), 400),
            (json!({"op": "add"}), 400),
            (json!([{"op": "add", "path": "a", "value": 1}]), 400),
        ] {
            assert_eq!(
                json_patch(&mut document.clone(), &patch).unwrap_err().code,
                code,
                "{patch}"
            );
        }
        // What the library cannot undo.
        let moved =
            json!([{"op": "move", "from": "/a/b", "path": ""}, {"op": "remove", "path": "/zz"}]);
        let refused = json_patch(&mut document.clone(), &moved).unwrap_err();
        assert_eq!(refused.code, 422);
        let why = &refused.details.unwrap().causes[0].message;
        assert!(why.contains("operation '/1'"), "{why}");
        let doubling: Vec<Value> = (0..60)
            .map(|n| json!({"op": "copy", "from": "", "path": format!("/copy{n}")}))
            .collect();
        let refused = json_patch(&mut document.clone(), &doubling.into()).unwrap_err();
        assert_eq!(refused.code, 413, "{refused}");
        let many = Value::Array(vec![
            json!({"op": "remove", "path": "/a"});
            MAX_JSON_PATCH_OPERATIONS + 1
        ]);
        assert_eq!(json_patch(&mut document, &many).unwrap_err().code, 413);
    }

    #[test]
    fn merge_patches() {
        let mut document = json!({"a": 1, "b": {"c": 2, "d": 3}, "l": [1]});
        merge_patch(
            &mut document,
            &json!({"a": null, "b": {"c": null, "e": {"x": null}}, "l": [2]}),
        )
        .unwrap();
        assert_eq!(document, json!({"b": {"d": 3, "e": {}}, "l": [2]}));
        assert_eq!(
            merge_patch(&mut document, &json!([1])).unwrap_err().code,
            400
        );
    }
}
