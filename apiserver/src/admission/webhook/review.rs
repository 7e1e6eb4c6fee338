//! The question that a webhook is asked (AdmissionReview), and what its answer may be.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::versions::Versioned;
use crate::admission::Attributes;

/// A request, and the ways in which its answer is read.
pub struct Review {
    pub uid: String,
    pub document: Value,
    strict: bool,
}

/// What an answer says.
#[derive(Debug, Default, PartialEq)]
pub struct Verdict {
    pub allowed: bool,
    /// The `Status` of a refusal.
    pub result: Value,
    /// A JSON patch, if there is one.
    pub patch: Option<Vec<u8>>,
    pub patch_type: String,
    pub warnings: Vec<String>,
}

/// The `request` of a review: expressions see it too, without the objects.
pub fn request(attributes: &Attributes<'_>, versioned: &Versioned) -> Value {
    let own = attributes.resource;
    let asked = &versioned.served.resource;
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let resource = |r: &apimachinery::resource::Resource| json!({"group": &*r.group, "version": &*r.version, "resource": &*r.plural});
    let (group, version, name) = &versioned.kind;
    let (own_group, own_version, own_name) = &versioned.request_kind;
    let user = attributes.user;
    let mut info = json!({"username": user.name});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    let mut request = json!({
        "kind": kind(group, version, name),
        "resource": resource(asked),
        "requestKind": kind(own_group, own_version, own_name),
        "requestResource": resource(own),
        "operation": attributes.operation.name(),
        "userInfo": info,
        "dryRun": attributes.dry_run,
        "options": attributes.options,
    });
    for (field, value) in [
        ("name", attributes.name),
        ("namespace", attributes.namespace),
        ("subResource", attributes.subresource),
        ("requestSubResource", attributes.subresource),
    ] {
        if !value.is_empty() {
            request[field] = value.into();
        }
    }
    request
}

impl Review {
    /// A review in the first version that the webhook and this server know.
    pub fn new(
        versions: &[String],
        attributes: &Attributes<'_>,
        versioned: &Versioned,
    ) -> Result<Self, String> {
        let version = versions
            .iter()
            .find(|version| matches!(version.as_str(), "v1" | "v1beta1"))
            .ok_or("webhook does not accept known AdmissionReview versions (v1, v1beta1)")?;
        let uid = uuid::Uuid::new_v4().to_string();
        let mut request = request(attributes, versioned);
        request["uid"] = uid.as_str().into();
        request["object"] = versioned.object.clone();
        request["oldObject"] = versioned.old.clone();
        Ok(Self::of(version, request, uid))
    }

    /// A review of this request, which carries the same UID.
    #[must_use]
    pub fn of(version: &str, request: Value, uid: String) -> Self {
        Self {
            document: json!({
                "kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": request,
            }),
            uid,
            strict: version == "v1",
        }
    }

    /// Reads an answer. The older version was never strict about what it repeats.
    pub fn verdict(&self, answer: &Value, mutating: bool) -> Result<Verdict, String> {
        let Some(response) = answer["response"].as_object() else {
            return Err("webhook response was absent".to_owned());
        };
        if self.strict {
            self.check(answer, response, mutating)?;
        }
        let text = |key: &str| {
            response
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let patch = match (mutating, text("patch")) {
            (true, encoded) if !encoded.is_empty() => Some(
                STANDARD
                    .decode(encoded)
                    .map_err(|e| format!("illegal base64 data: {e}"))?,
            ),
            _ => None,
        };
        let warnings = response.get("warnings").and_then(Value::as_array);
        Ok(Verdict {
            allowed: response
                .get("allowed")
                .and_then(Value::as_bool)
                .unwrap_or(false),
            result: response.get("status").cloned().unwrap_or(Value::Null),
            patch_type: match self.strict {
                true => text("patchType").to_owned(),
                false => "JSONPatch".to_owned(),
            },
            patch,
            warnings: warnings
                .into_iter()
                .flatten()
                .filter_map(|warning| warning.as_str().map(ToOwned::to_owned))
                .collect(),
        })
    }

    fn check(
        &self,
        answer: &Value,
        response: &Map<String, Value>,
        mutating: bool,
    ) -> Result<(), String> {
        let uid = response
            .get("uid")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if uid != self.uid {
            return Err(format!("expected response.uid={:?}, got {uid:?}", self.uid));
        }
        let text = |key: &str| answer[key].as_str().unwrap_or_default();
        let (version, kind) = (text("apiVersion"), text("kind"));
        if (version, kind) != ("admission.k8s.io/v1", "AdmissionReview") {
            let shown = match version.split_once('/') {
                Some((group, version)) => format!("{group}/{version}, Kind={kind}"),
                None => format!("/{version}, Kind={kind}"),
            };
            return Err(format!(
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {shown}"
            ));
        }
        let given = |key: &str| response.get(key).is_some_and(|value| !value.is_null());
        let patch = response
            .get("patch")
            .and_then(Value::as_str)
            .is_some_and(|p| !p.is_empty());
        match (mutating, patch, given("patchType")) {
            (true, true, false) => {
                Err("webhook returned response.patch but not response.patchType".to_owned())
            }
            (true, false, true) => {
                Err("webhook returned response.patchType but not response.patch".to_owned())
            }
            (false, true, _) => Err("validating webhook may not return response.patch".to_owned()),
            (false, _, true) => {
                Err("validating webhook may not return response.patchType".to_owned())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(strict: bool) -> Review {
        Review {
            uid: "u".to_owned(),
            document: Value::Null,
            strict,
        }
    }

    #[test]
    fn answers() {
        let answer = |response: Value| json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
        let fine = answer(
            json!({"uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch", "warnings": ["w"]}),
        );
        let verdict = review(true).verdict(&fine, true).unwrap();
        assert!(verdict.allowed);
        assert_eq!(
            (verdict.patch.as_deref(), verdict.warnings.len()),
            (Some(&b"[]"[..]), 1)
        );
        for (response, mutating, wanted) in [
            (json!(null), true, "webhook response was absent"),
            (
                json!({"uid": "x"}),
                true,
                "expected response.uid=\"u\", got \"x\"",
            ),
            (
                json!({"uid": "u", "patch": "W10="}),
                true,
                "webhook returned response.patch but not response.patchType",
            ),
            (
                json!({"uid": "u", "patchType": "JSONPatch"}),
                true,
                "webhook returned response.patchType but not response.patch",
            ),
            (
                json!({"uid": "u", "patch": "W10=", "patchType": "JSONPatch"}),
                false,
                "validating webhook may not return response.patch",
            ),
        ] {
            assert_eq!(
                review(true)
                    .verdict(&answer(response), mutating)
                    .unwrap_err(),
                wanted
            );
        }
        let old = json!({"response": {"allowed": true, "patch": "W10="}});
        assert!(review(true).verdict(&old, true).is_err());
        assert!(review(false).verdict(&old, true).unwrap().patch.is_some());
    }
}
