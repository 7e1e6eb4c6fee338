//! Conversion webhooks: a ConversionReview is posted, the objects in its answer are checked and their metadata
//! restored.

use std::sync::Weak;
use std::time::Duration;

use apimachinery::field::Path;
use apimachinery::status::{Result, Status};
use apimachinery::{object, validation};
use serde_json::{Value, json};

use crate::outbound::webhook::{Clients, Place};
use crate::registry::Registry;
use crate::strategy::check::{list, text};

const TIMEOUT: Duration = Duration::from_secs(30);

/// The webhook of one definition.
pub struct Webhook {
    place: Place,
    clients: Clients,
    registry: Weak<Registry>,
    /// `v1` or `v1beta1`.
    version: &'static str,
}

impl Webhook {
    /// Reads `spec.conversion`; `None` where its strategy is another one.
    #[must_use]
    pub fn read(definition: &Value, registry: Weak<Registry>) -> Option<Self> {
        let conversion = &definition["spec"]["conversion"];
        if conversion["strategy"] != "Webhook" {
            return None;
        }
        let webhook = &conversion["webhook"];
        let known = list(webhook, "conversionReviewVersions")
            .iter()
            .find_map(|v| match v.as_str() {
                Some("v1") => Some("v1"),
                Some("v1beta1") => Some("v1beta1"),
                _ => None,
            });
        Some(Self {
            place: Place::read(&webhook["clientConfig"]),
            clients: Clients::default(),
            registry,
            version: known.unwrap_or("v1"),
        })
    }

    /// Objects of another version in the wanted one. `shown` names their kind in messages.
    pub async fn convert(&self, objects: Vec<Value>, to: &str, shown: &str) -> Result<Vec<Value>> {
        let uid = uuid::Uuid::new_v4().to_string();
        let api_version = format!("apiextensions.k8s.io/{}", self.version);
        let request = json!({"kind": "ConversionReview", "apiVersion": api_version,
            "request": {"uid": uid, "desiredAPIVersion": to, "objects": objects}});
        let failed =
            |why: String| Status::internal(format!("conversion webhook for {shown} failed: {why}"));
        let asked = self
            .clients
            .post(&self.registry, &self.place, &request, TIMEOUT);
        let answer = asked.await.map_err(failed)?;
        let response = check_answer(&answer, &api_version, &uid).map_err(failed)?;
        let converted = list(response, "convertedObjects");
        if converted.len() != objects.len() {
            return Err(Status::internal(format!(
                "conversion webhook for {shown} returned {} objects, expected {}",
                converted.len(),
                objects.len()
            )));
        }
        let pairs = objects.iter().zip(converted).enumerate();
        pairs
            .map(|(index, (original, converted))| {
                restore(original, converted, to).map_err(|why| {
                    Status::internal(format!(
                        "conversion webhook for {shown} returned invalid converted object at index {index}: {why}"
                    ))
                })
            })
            .collect()
    }
}

fn check_answer<'a>(
    answer: &'a Value,
    api_version: &str,
    uid: &str,
) -> std::result::Result<&'a Value, String> {
    let strict = api_version.ends_with("/v1");
    if strict && (answer["kind"] != "ConversionReview" || answer["apiVersion"] != api_version) {
        return Err(format!(
            "expected webhook response of {api_version}, Kind=ConversionReview, got {}, Kind={}",
            text(answer, "apiVersion"),
            text(answer, "kind")
        ));
    }
    let response = &answer["response"];
    if !response.is_object() {
        return Err("no response provided".into());
    }
    if strict && response["uid"] != uid {
        return Err(format!(
            "expected response.uid={uid:?}, got {:?}",
            text(response, "uid")
        ));
    }
    let result = &response["result"];
    match (text(result, "status"), text(result, "message")) {
        ("Success", _) => Ok(response),
        (status, "") => Err(format!(
            "response.result.status was '{status}', not 'Success'"
        )),
        (_, message) => Err(message.to_owned()),
    }
}

/// The converted object with the metadata of the original: only labels and annotations may have changed.
fn restore(original: &Value, converted: &Value, to: &str) -> std::result::Result<Value, String> {
    let found = object::api_version(converted);
    if found != to {
        return Err(format!(
            "invalid groupVersion (expected {to}, received {found})"
        ));
    }
    let kinds = (object::kind(original), object::kind(converted));
    if kinds.0 != kinds.1 {
        return Err(format!(
            "invalid kind (expected {}, received {})",
            kinds.0, kinds.1
        ));
    }
    for (what, field) in [("name", "name"), ("namespace", "namespace"), ("UID", "uid")] {
        let before = text(&original["metadata"], field);
        let after = text(&converted["metadata"], field);
        if before != after {
            return Err(format!("must have the same {what}: {before} != {after}"));
        }
    }
    let Some(metadata) = converted["metadata"].as_object() else {
        return Err("missing metadata in converted object".into());
    };
    let mut restored = converted.clone();
    restored["metadata"] = original["metadata"].clone();
    for field in ["labels", "annotations"] {
        let value = metadata.get(field).unwrap_or(&Value::Null);
        if value.is_null() {
            object::set_metadata(&mut restored, field, Value::Null);
            continue;
        }
        let Some(map) = value.as_object() else {
            return Err(format!("invalid metadata.{field} in converted object"));
        };
        if let Some((key, _)) = map.iter().find(|(_, value)| !value.is_string()) {
            return Err(format!(
                "metadata.{field}[{key}] must be a string in converted object"
            ));
        }
        if original["metadata"][field] != *value {
            let path = Path::new("metadata").child(field);
            let errors = match field {
                "labels" => validation::labels(map, &path),
                _ => validation::annotations(map, &path),
            };
            if !errors.is_empty() {
                return Err(errors.to_string());
            }
        }
        object::set_metadata(&mut restored, field, value.clone());
    }
    Ok(restored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_checked() {
        let good = json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1",
            "response": {"uid": "u", "result": {"status": "Success"}}});
        let check = |answer: &Value| check_answer(answer, "apiextensions.k8s.io/v1", "u").map(drop);
        assert_eq!(check(&good), Ok(()));
        let mut failed = good.clone();
        failed["response"]["result"] = json!({"status": "Failure", "message": "no"});
        assert_eq!(check(&failed), Err("no".into()));
        failed["response"]["uid"] = json!("x");
        assert_eq!(
            check(&failed),
            Err("expected response.uid=\"u\", got \"x\"".into())
        );
        assert_eq!(
            check(&json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1"})),
            Err("no response provided".into())
        );
    }

    #[test]
    fn metadata_is_restored() {
        let original = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "a", "uid": "u", "generation": 3,
            "labels": {"x": "y"}}});
        let mut converted = json!({"apiVersion": "g/v2", "kind": "K", "metadata": {"name": "a", "uid": "u",
            "annotations": {"new": "1"}, "generation": 9}, "spec": {}});
        let restored = restore(&original, &converted, "g/v2").unwrap();
        assert_eq!(
            restored["metadata"],
            json!({"name": "a", "uid": "u", "generation": 3, "annotations": {"new": "1"}})
        );
        assert_eq!(restored["spec"], json!({}));
        converted["metadata"]["annotations"]["bad key!"] = json!("1");
        assert!(restore(&original, &converted, "g/v2").is_err());
        converted["metadata"] = json!({"name": "b"});
        assert_eq!(
            restore(&original, &converted, "g/v2"),
            Err("must have the same name: a != b".into())
        );
        assert!(
            restore(&original, &original, "g/v2")
                .unwrap_err()
                .starts_with("invalid groupVersion")
        );
    }
}
