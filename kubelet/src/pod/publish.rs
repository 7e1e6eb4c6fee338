//! Telling the API about a pod: the smallest status patch, and the final delete.

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Map, Value, json};

use crate::context::Node;
use crate::model;

/// A strategic merge patch with only what differs, or `None` if nothing does. The uid in it
/// makes sure that it never reaches another pod of the same name.
pub fn status_patch(pod: &Pod, status: &PodStatus) -> Option<Value> {
    let value = |s: &PodStatus| match serde_json::to_value(s) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let before = pod.status.as_ref().map(value).unwrap_or_default();
    let mut after = value(status);
    // A list with a merge key is only ever added to, unless it is replaced as a whole.
    for key in ["podIPs", "hostIPs"] {
        let old = before
            .get(key)
            .and_then(Value::as_array)
            .is_some_and(|l| !l.is_empty());
        if let Some(Value::Array(list)) = after.get_mut(key)
            && old
            && before.get(key) != Some(&Value::Array(list.clone()))
        {
            list.insert(0, json!({"$patch": "replace"}));
        }
    }
    let mut changed: Map<String, Value> = after
        .iter()
        .filter(|(k, v)| before.get(*k) != Some(v))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    if let Some(Value::Array(list)) = changed.get("conditions") {
        let list = changed_conditions(before.get("conditions"), list);
        // Conditions in another order are the same ones.
        match list.is_empty() {
            true => changed.remove("conditions"),
            false => changed.insert("conditions".into(), Value::Array(list)),
        };
    }
    for key in before.keys().filter(|k| !after.contains_key(*k)) {
        changed.insert(key.clone(), Value::Null);
    }
    (!changed.is_empty()).then(|| json!({"metadata": {"uid": model::uid(pod)}, "status": changed}))
}

/// Conditions are merged by their type, so only those that differ are sent, with a null for
/// every field that has gone, and a word for every one that has gone itself.
fn changed_conditions(before: Option<&Value>, after: &[Value]) -> Vec<Value> {
    let known = before
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let old = |c: &Value| known.iter().find(|k| k["type"] == c["type"]);
    let gone = known
        .iter()
        .filter(|k| !after.iter().any(|c| c["type"] == k["type"]))
        .map(|k| json!({"$patch": "delete", "type": k["type"]}));
    let differing = after.iter().filter(|c| old(c) != Some(*c));
    differing
        .map(|c| {
            let mut patch = c.clone();
            for key in old(c)
                .and_then(Value::as_object)
                .into_iter()
                .flat_map(|o| o.keys())
            {
                if c.get(key).is_none() {
                    patch[key.as_str()] = Value::Null;
                }
            }
            patch
        })
        .chain(gone)
        .collect()
}

/// The pod as the API has it now, or `None` if it is gone.
pub async fn send(node: &Node, pod: &Pod, patch: &Value) -> Result<Option<Box<Pod>>, kube::Error> {
    let api = Api::<Pod>::namespaced(node.client.clone(), model::namespace(pod));
    match api
        .patch_status(
            model::name(pod),
            &PatchParams::default(),
            &Patch::Strategic(patch),
        )
        .await
    {
        Ok(pod) => Ok(Some(Box::new(pod))),
        Err(kube::Error::Api(e)) if e.code == 404 => Ok(None),
        // The uid differs: another pod has taken the name.
        Err(kube::Error::Api(e)) if e.code == 409 && e.message.contains("uid") => Ok(None),
        Err(e) => Err(e),
    }
}

/// Removes the object once nothing of it is left on the node.
pub async fn delete(node: &Node, pod: &Pod) -> Result<(), kube::Error> {
    let api = Api::<Pod>::namespaced(node.client.clone(), model::namespace(pod));
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        }),
        ..Default::default()
    };
    match api.delete(model::name(pod), &params).await {
        Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => Ok(()),
        Err(e) => Err(e),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_differences_are_sent() {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"containers": []},
            "status": {"phase": "Pending", "podIPs": [{"ip": "1"}], "reason": "x"}}),
        )
        .unwrap();
        let status = |v| serde_json::from_value::<PodStatus>(v).unwrap();
        assert_eq!(
            status_patch(
                &pod,
                &status(json!({"phase": "Pending", "podIPs": [{"ip": "1"}], "reason": "x"}))
            ),
            None
        );
        let patch = status_patch(
            &pod,
            &status(json!({"phase": "Running", "podIPs": [{"ip": "2"}]})),
        )
        .unwrap();
        assert_eq!(
            patch,
            json!({"metadata": {"uid": "u"}, "status": {"phase": "Running", "podIPs": [{"$patch": "replace"}, {"ip": "2"}], "reason": null}})
        );
    }

    #[test]
    fn the_order_of_conditions_is_no_difference() {
        let conditions = |order: [&str; 2]| {
            let of = |type_: &str| json!({"type": type_, "status": "True"});
            json!({"conditions": order.map(of)})
        };
        let pod = json!({"metadata": {"name": "p"}, "status": conditions(["A", "B"])});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let status: PodStatus = serde_json::from_value(conditions(["B", "A"])).unwrap();
        assert_eq!(status_patch(&pod, &status), None);
    }

    #[test]
    fn conditions_lose_what_they_no_longer_have() {
        let before = json!([{"type": "A", "status": "False", "reason": "x"}, {"type": "B", "status": "True"},
            {"type": "C", "status": "True"}]);
        let after = [
            json!({"type": "A", "status": "True"}),
            json!({"type": "B", "status": "True"}),
        ];
        assert_eq!(
            changed_conditions(Some(&before), &after),
            [
                json!({"type": "A", "status": "True", "reason": null}),
                json!({"$patch": "delete", "type": "C"}),
            ]
        );
    }
}
