//! What `apply` sends: the patch that brings a live object to what the manifest says, leaves alone what others set,
//! and removes what an earlier manifest had and this one has not. A pure function.
//!
//! With the shape of a built-in kind the patch is a strategic merge patch, which knows items of lists by
//! their keys; without one (custom resources) it is a JSON merge patch.

use apimachinery::schema::Shape;
use serde_json::{Map, Value, json};

/// `None` when there is nothing to do. `original` is the manifest that was applied last.
pub fn patch(
    original: &Value,
    modified: &Value,
    current: &Value,
    shape: Option<Shape>,
) -> Option<Value> {
    object(original, modified, current, shape)
}

fn object(
    original: &Value,
    modified: &Value,
    current: &Value,
    shape: Option<Shape>,
) -> Option<Value> {
    let mut patch = Map::new();
    for (key, wanted) in modified.as_object().into_iter().flatten() {
        field(
            &mut patch,
            key,
            &original[key.as_str()],
            wanted,
            current.get(key),
            shape,
        );
    }
    for (key, _) in original.as_object().into_iter().flatten() {
        let gone = modified.get(key).is_none();
        if gone && current.get(key).is_some_and(|live| !live.is_null()) {
            patch.insert(key.clone(), Value::Null);
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

fn field(
    patch: &mut Map<String, Value>,
    key: &str,
    original: &Value,
    wanted: &Value,
    live: Option<&Value>,
    parent: Option<Shape>,
) {
    let shape = parent.and_then(|parent| parent.field(key));
    let Some(live) = live.filter(|live| !live.is_null()) else {
        if !wanted.is_null() {
            patch.insert(key.to_owned(), wanted.clone());
        }
        return;
    };
    match (wanted, live) {
        (Value::Object(_), Value::Object(_)) => {
            if parent.is_some_and(|parent| parent.patch_replaces(key)) {
                if wanted != live {
                    let mut whole = wanted.clone();
                    whole["$patch"] = "replace".into();
                    patch.insert(key.to_owned(), whole);
                }
                return;
            }
            if let Some(mut change) = object(original, wanted, live, shape) {
                if parent.is_some_and(|parent| parent.patch_retains_keys(key)) {
                    change["$retainKeys"] = keys(wanted);
                }
                patch.insert(key.to_owned(), change);
            }
        }
        (Value::Array(wanted_items), Value::Array(live_items)) => {
            let original = original.as_array().map(Vec::as_slice).unwrap_or_default();
            match shape {
                Some(shape) if shape.patch_merges() => match shape.patch_merge_key() {
                    Some(merge_key) => {
                        let retain = parent.is_some_and(|parent| parent.patch_retains_keys(key));
                        let list = Keyed {
                            merge_key,
                            retain,
                            items: shape.items(),
                        };
                        list.write(patch, key, original, wanted_items, live_items);
                    }
                    None => set(patch, key, original, wanted_items, live_items),
                },
                _ if wanted != live => drop(patch.insert(key.to_owned(), wanted.clone())),
                _ => {}
            }
        }
        _ if wanted != live => drop(patch.insert(key.to_owned(), wanted.clone())),
        _ => {}
    }
}

fn keys(object: &Value) -> Value {
    object
        .as_object()
        .map(|fields| fields.keys().cloned().collect::<Vec<_>>())
        .unwrap_or_default()
        .into()
}

/// A list whose items are known by one of their fields.
struct Keyed<'a> {
    merge_key: &'a str,
    retain: bool,
    items: Option<Shape<'a>>,
}

impl Keyed<'_> {
    fn find<'v>(&self, items: &'v [Value], id: &Value) -> Option<&'v Value> {
        items.iter().find(|item| &item[self.merge_key] == id)
    }

    fn write(
        &self,
        patch: &mut Map<String, Value>,
        key: &str,
        original: &[Value],
        wanted: &[Value],
        live: &[Value],
    ) {
        let mut changes = Vec::new();
        for item in wanted {
            let id = &item[self.merge_key];
            let Some(there) = self.find(live, id) else {
                changes.push(item.clone());
                continue;
            };
            let before = self.find(original, id).unwrap_or(&Value::Null);
            if let Some(mut change) = object(before, item, there, self.items) {
                change[self.merge_key] = id.clone();
                if self.retain {
                    change["$retainKeys"] = keys(item);
                }
                changes.push(change);
            }
        }
        for item in original {
            let id = &item[self.merge_key];
            if self.find(wanted, id).is_none() && self.find(live, id).is_some() {
                let mut gone = json!({"$patch": "delete"});
                gone[self.merge_key] = id.clone();
                changes.push(gone);
            }
        }
        let order = |items: &[Value]| -> Vec<Value> {
            let ids = items.iter().map(|item| item[self.merge_key].clone());
            ids.filter(|id| self.find(wanted, id).is_some()).collect()
        };
        let wanted_order = order(wanted);
        if changes.is_empty() && order(live) == wanted_order {
            return;
        }
        let named = wanted_order.into_iter().map(|id| {
            let mut entry = json!({});
            entry[self.merge_key] = id;
            entry
        });
        patch.insert(format!("$setElementOrder/{key}"), named.collect());
        if !changes.is_empty() {
            patch.insert(key.to_owned(), changes.into());
        }
    }
}

/// A merged list of plain values.
fn set(
    patch: &mut Map<String, Value>,
    key: &str,
    original: &[Value],
    wanted: &[Value],
    live: &[Value],
) {
    let added: Vec<Value> = wanted
        .iter()
        .filter(|v| !live.contains(v))
        .cloned()
        .collect();
    let gone: Vec<Value> = original
        .iter()
        .filter(|v| !wanted.contains(v) && live.contains(v))
        .cloned()
        .collect();
    if added.is_empty() && gone.is_empty() {
        return;
    }
    patch.insert(format!("$setElementOrder/{key}"), wanted.into());
    if !added.is_empty() {
        patch.insert(key.to_owned(), added.into());
    }
    if !gone.is_empty() {
        patch.insert(format!("$deleteFromPrimitiveList/{key}"), gone.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::patch::{merge_patch, strategic_merge};
    use apimachinery::schema::Schema;

    fn deployment(containers: Value) -> Value {
        json!({"metadata": {"name": "web"}, "spec": {"replicas": 2, "template": {"spec": {"containers": containers}}}})
    }

    /// The live object as the server keeps it: with defaults, and what others added.
    fn live(containers: Value) -> Value {
        let mut live = deployment(containers);
        live["status"] = json!({"replicas": 2});
        live["spec"]["strategy"] =
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}});
        live
    }

    fn schema() -> Schema {
        Schema::builtin("apps", "v1", "Deployment").unwrap()
    }

    fn strategic(original: &Value, modified: &Value, current: &Value) -> Option<Value> {
        patch(original, modified, current, Some(schema().shape()))
    }

    #[test]
    fn defaults_are_no_difference() {
        let manifest = deployment(json!([{"name": "a", "image": "x:1"}]));
        let current = live(
            json!([{"name": "a", "image": "x:1", "imagePullPolicy": "Always"}, {"name": "injected", "image": "i"}]),
        );
        assert_eq!(strategic(&manifest, &manifest, &current), None);
    }

    #[test]
    fn items_change_by_key() {
        let before =
            deployment(json!([{"name": "a", "image": "x:1"}, {"name": "b", "image": "y"}]));
        let after = deployment(json!([{"name": "a", "image": "x:2"}, {"name": "c", "image": "z"}]));
        let current = live(json!([
            {"name": "a", "image": "x:1", "imagePullPolicy": "Always"}, {"name": "b", "image": "y"}, {"name": "injected", "image": "i"},
        ]));
        let patch = strategic(&before, &after, &current).unwrap();
        let mut result = current.clone();
        strategic_merge(&mut result, &patch, &schema()).unwrap();
        let containers = result["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap();
        let find = |name: &str| containers.iter().find(|c| c["name"] == name);
        assert_eq!(
            find("a"),
            Some(&json!({"name": "a", "image": "x:2", "imagePullPolicy": "Always"}))
        );
        assert!(find("b").is_none() && find("c").is_some() && find("injected").is_some());
        assert_eq!(
            strategic(&after, &after, &result),
            None,
            "applied twice changes nothing"
        );
    }

    #[test]
    fn what_left_the_manifest_goes_and_the_rest_stays() {
        let before = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"replicas": 3, "paused": true}});
        let after = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"paused": true}});
        let current = json!({"metadata": {"labels": {"a": "1", "b": "2", "others": "3"}}, "spec": {"replicas": 9, "paused": true}});
        let patch = strategic(&before, &after, &current).unwrap();
        assert_eq!(
            patch,
            json!({"metadata": {"labels": {"b": null}}, "spec": {"replicas": null}})
        );
        assert_eq!(
            strategic(&after, &after, &current),
            None,
            "a field that no manifest had is not ours"
        );
    }

    #[test]
    fn plain_lists() {
        let of = |finalizers: Value| json!({"metadata": {"finalizers": finalizers}});
        let patch = strategic(
            &of(json!(["a", "b"])),
            &of(json!(["a", "c"])),
            &of(json!(["a", "b", "x"])),
        )
        .unwrap();
        let mut result = of(json!(["a", "b", "x"]));
        strategic_merge(&mut result, &patch, &schema()).unwrap();
        let mut left: Vec<_> = result["metadata"]["finalizers"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        left.sort();
        assert_eq!(left, ["a", "c", "x"]);
    }

    #[test]
    fn custom_resources_merge_as_json() {
        let before = json!({"spec": {"a": 1, "list": [1, 2]}});
        let after = json!({"spec": {"list": [2], "new": {"x": 1}}});
        let current = json!({"spec": {"a": 1, "list": [1, 2], "others": true}});
        let patch = patch(&before, &after, &current, None).unwrap();
        let mut result = current.clone();
        merge_patch(&mut result, &patch).unwrap();
        assert_eq!(
            result,
            json!({"spec": {"list": [2], "new": {"x": 1}, "others": true}})
        );
    }
}
