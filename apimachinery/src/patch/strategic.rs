//! Strategic merge patch: a merge patch that merges the lists whose items have a key, steered by the schema and by
//! directives inside the patch.
//!
//! - `$patch: replace | delete` in an object, or in an item of a merged list;
//! - `$retainKeys: [...]` drops every field of the object that is not listed;
//! - `$deleteFromPrimitiveList/FIELD: [...]` removes values from a merged list of scalars;
//! - `$setElementOrder/FIELD: [...]` orders the items of a merged list; those it does not name keep their place.

use serde_json::{Map, Value};

use super::unprocessable;
use crate::schema::{Schema, Shape};
use crate::status::{Result, Status};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

const BAD_ORDER: &str = "invalid patch format of setElementOrder list";
const BAD_RETAIN: &str = "invalid patch format of retainKeys";
const BAD_PRIMITIVES: &str = "invalid patch format of primitive list";

/// Applies the patch to a document of that schema.
pub fn strategic_merge(document: &mut Value, patch: &Value, schema: &Schema) -> Result<()> {
    let Value::Object(patch) = patch else {
        return Err(Status::bad_request(
            "error decoding patch: a strategic merge patch must be a JSON object",
        ));
    };
    let original = match document.take() {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    *document = Value::Object(merge_object(original, patch.clone(), Some(schema.shape()))?);
    Ok(())
}

fn bad(why: impl Into<String>) -> Status {
    Status::bad_request(why)
}

fn merge_object(
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
    shape: Option<Shape<'_>>,
) -> Result<Map<String, Value>> {
    match patch.remove(PATCH) {
        None => {}
        Some(Value::String(directive)) if directive == "replace" => return Ok(patch),
        Some(Value::String(directive)) if directive == "delete" => return Ok(Map::new()),
        Some(other) => return Err(bad(format!("unknown patch type: {other}"))),
    }
    if let Some(keys) = patch.remove(RETAIN_KEYS) {
        retain_keys(&mut original, &patch, &keys)?;
    }
    apply_order(&mut original, &mut patch, shape)?;
    for (key, value) in patch {
        let (field, deleting) = match key.strip_prefix(DELETE_FROM) {
            Some(field) => (field, true),
            None if key.starts_with("$deleteFromPrimitiveList") => return Err(bad(BAD_PRIMITIVES)),
            None => (key.as_str(), false),
        };
        let sub = shape.and_then(|s| s.field(field));
        let merged = match (original.remove(field), value) {
            (old, Value::Null) if deleting => old,
            (_, Value::Null) => None,
            (Some(Value::Object(old)), Value::Object(new)) => {
                match shape.is_some_and(|s| s.patch_replaces(field)) {
                    true => clean(Value::Object(new)),
                    false => Some(Value::Object(merge_object(old, new, sub)?)),
                }
            }
            (Some(Value::Array(old)), Value::Array(new)) => match deleting {
                true => Some(Value::Array(
                    old.into_iter().filter(|v| !new.contains(v)).collect(),
                )),
                false if sub.is_some_and(Shape::patch_merges) => {
                    Some(Value::Array(merge_list(old, new, sub)?))
                }
                false => clean(Value::Array(new)),
            },
            (old, _) if deleting => old,
            (_, new) => clean(new),
        };
        if let Some(value) = merged {
            original.insert(field.to_owned(), value);
        }
    }
    Ok(original)
}

/// A value taken as it is: without nulls and without directives. `None` if it is nothing but a directive.
fn clean(value: Value) -> Option<Value> {
    match value {
        Value::Object(fields) if fields.contains_key(PATCH) => None,
        Value::Object(fields) => Some(Value::Object(
            fields
                .into_iter()
                .filter(|(k, v)| !v.is_null() && !is_directive(k))
                .filter_map(|(k, v)| Some((k, clean(v)?)))
                .collect(),
        )),
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(clean).collect())),
        other => Some(other),
    }
}

fn is_directive(key: &str) -> bool {
    key == RETAIN_KEYS || key.starts_with(ORDER) || key.starts_with(DELETE_FROM)
}

fn retain_keys(
    original: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    keys: &Value,
) -> Result<()> {
    let keys = keys.as_array().ok_or_else(|| bad(BAD_RETAIN))?;
    let kept = |name: &str| keys.iter().any(|k| k == name);
    if patch
        .iter()
        .any(|(k, v)| !v.is_null() && !is_directive(k) && !kept(k))
    {
        return Err(bad(BAD_RETAIN));
    }
    original.retain(|name, _| kept(name));
    Ok(())
}

/// Merges every list that the patch gives an order for, and puts it into that order.
fn apply_order(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    shape: Option<Shape<'_>>,
) -> Result<()> {
    let directives: Vec<String> = patch
        .keys()
        .filter(|k| k.starts_with("$setElementOrder"))
        .cloned()
        .collect();
    for directive in directives {
        let field = directive
            .strip_prefix(ORDER)
            .ok_or_else(|| bad(BAD_ORDER))?;
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(bad(BAD_ORDER));
        };
        let sub = shape.and_then(|s| s.field(field));
        let key = sub.and_then(Shape::patch_merge_key);
        let old = take_list(original, field)?;
        let new = match patch.get(field) {
            Some(Value::Null) => continue,
            _ => take_list(patch, field)?,
        };
        if let Some(new) = &new {
            check_order(new, &order, key)?;
        }
        let server = old.clone().unwrap_or_default();
        let merged = match (old, new) {
            (None, None) => continue,
            (Some(old), None) => old,
            (None, Some(new)) => new.into_iter().filter_map(clean).collect(),
            (Some(old), Some(new)) if sub.is_some_and(Shape::patch_merges) => {
                merge_list(old, new, sub)?
            }
            (Some(_), Some(new)) => new.into_iter().filter_map(clean).collect(),
        };
        original.insert(
            field.to_owned(),
            Value::Array(ordered(merged, &order, &server, key)?),
        );
    }
    Ok(())
}

fn take_list(fields: &mut Map<String, Value>, field: &str) -> Result<Option<Vec<Value>>> {
    match fields.remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items)),
        Some(_) => Err(bad(format!("expected a list in {field}"))),
    }
}

/// What tells an item from the others: its merge key, or for scalars itself.
fn identity<'a>(item: &'a Value, key: Option<&str>) -> Result<&'a Value> {
    let Some(key) = key else { return Ok(item) };
    item.get(key).ok_or_else(|| {
        bad(format!(
            "map: {item} does not contain declared merge key: {key}"
        ))
    })
}

/// The items of the patch must come in the order that it asks for.
fn check_order(patch: &[Value], order: &[Value], key: Option<&str>) -> Result<()> {
    if order.is_empty() {
        return Ok(());
    }
    let mut rest = order.iter();
    for item in patch.iter().filter(|i| i.get(PATCH).is_none()) {
        let wanted = identity(item, key)?;
        if !rest.any(|o| identity(o, key).is_ok_and(|o| o == wanted)) {
            let [patch, order] = [patch, order].map(|l| Value::Array(l.to_vec()));
            return Err(bad(format!(
                "The order in patch list:\n{patch}\n doesn't match $setElementOrder list:\n{order}\n"
            )));
        }
    }
    Ok(())
}

fn merge_list(old: Vec<Value>, new: Vec<Value>, shape: Option<Shape<'_>>) -> Result<Vec<Value>> {
    if old.iter().chain(&new).any(Value::is_array) {
        return Err(unprocessable("lists of lists are not supported"));
    }
    let objects = old.iter().chain(&new).filter(|i| i.is_object()).count();
    if objects == 0 {
        let mut merged: Vec<Value> = Vec::new();
        for item in old.iter().chain(&new) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return ordered(merged, &new, &old, None);
    }
    if objects != old.len() + new.len() {
        return Err(bad("list element types are not identical"));
    }
    let Some(key) = shape.and_then(Shape::patch_merge_key) else {
        return Err(bad("cannot merge lists without merge key"));
    };
    let (mut merged, plain) = apply_item_directives(old, new, key)?;
    let server = merged.clone();
    let items = shape.and_then(Shape::items);
    for patch in &plain {
        let wanted = identity(patch, Some(key))?;
        match merged.iter_mut().find(|item| item.get(key) == Some(wanted)) {
            Some(item) => {
                if let (Value::Object(old), Value::Object(new)) = (item.take(), patch.clone()) {
                    *item = Value::Object(merge_object(old, new, items)?);
                }
            }
            None => merged.extend(clean(patch.clone())),
        }
    }
    ordered(merged, &plain, &server, Some(key))
}

/// Carries out `$patch` in the items of a list, and gives what is left of both lists.
fn apply_item_directives(
    mut old: Vec<Value>,
    new: Vec<Value>,
    key: &str,
) -> Result<(Vec<Value>, Vec<Value>)> {
    let (mut plain, mut replace) = (Vec::new(), false);
    for item in new {
        match item.get(PATCH).map(|d| d.as_str().unwrap_or_default()) {
            None => plain.push(item),
            Some("delete") => {
                let gone = identity(&item, Some(key))?;
                old.retain(|o| o.get(key) != Some(gone));
            }
            Some("replace") => replace = true,
            Some("merge") => return Err(bad("merging lists cannot yet be specified in the patch")),
            Some(other) => return Err(bad(format!("unknown patch type: {other} in map: {item}"))),
        }
    }
    if replace {
        Ok((plain.into_iter().filter_map(clean).collect(), Vec::new()))
    } else {
        Ok((old, plain))
    }
}

/// Puts the items named in `order` into that order, and the others between them where the server had them.
fn ordered(
    items: Vec<Value>,
    order: &[Value],
    server: &[Value],
    key: Option<&str>,
) -> Result<Vec<Value>> {
    let place = |list: &[Value], item: &Value| -> Result<Option<usize>> {
        let wanted = identity(item, key)?;
        Ok(list
            .iter()
            .position(|o| identity(o, key).is_ok_and(|o| o == wanted)))
    };
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for item in items {
        let at = place(server, &item)?;
        match place(order, &item)? {
            Some(rank) => named.push((rank, at, item)),
            None => others.push((at, item)),
        }
    }
    named.sort_by_key(|(rank, ..)| *rank);
    others.sort_by_key(|(at, _)| *at);
    let mut out = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for (_, at, item) in named {
        // One of the others goes first only if the server had both, in that order.
        while let Some((other, _)) = others.peek() {
            match (other, at) {
                (Some(other), Some(at)) if *other < at => out.extend(others.next().map(|(_, v)| v)),
                _ => break,
            }
        }
        out.push(item);
    }
    out.extend(others.map(|(_, v)| v));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn pod_spec(original: Value, patch: Value) -> Result<Value> {
        let schema = Schema::definition("core.v1.PodSpec").unwrap();
        let mut document = original;
        strategic_merge(&mut document, &patch, &schema).map(|()| document)
    }

    #[test]
    fn merges_by_key() {
        let original = json!({"containers": [{"name": "a", "image": "1", "ports": [{"containerPort": 80, "name": "x"}]},
            {"name": "b", "image": "1"}], "nodeSelector": {"k": "v", "l": "w"}, "tolerations": [{"key": "a"}]});
        let patch = json!({"containers": [{"name": "a", "image": "2", "ports": [{"containerPort": 80, "name": "y"}]},
            {"name": "c", "env": null}], "nodeSelector": {"k": null}, "tolerations": [{"key": "b"}]});
        let expect = json!({"containers": [{"name": "a", "image": "2", "ports": [{"containerPort": 80, "name": "y"}]},
            {"name": "c"}, {"name": "b", "image": "1"}], "nodeSelector": {"l": "w"}, "tolerations": [{"key": "b"}]});
        assert_eq!(pod_spec(original, patch).unwrap(), expect);
    }

    #[test]
    fn directives() {
        let original = || json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}], "hostname": "h"});
        let cases = [
            (
                json!({"containers": [{"name": "b", "$patch": "delete"}]}),
                json!({"containers": [{"name": "a"}, {"name": "c"}], "hostname": "h"}),
            ),
            (
                json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}),
                json!({"containers": [{"name": "z"}], "hostname": "h"}),
            ),
            (
                json!({"$patch": "replace", "hostname": "x"}),
                json!({"hostname": "x"}),
            ),
            (json!({"$patch": "delete"}), json!({})),
            (
                json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}]}),
                json!({"containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}], "hostname": "h"}),
            ),
            (
                json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "n"}, {"name": "a"}, {"name": "b"}],
                "containers": [{"name": "n", "image": "i"}]}),
                json!({"containers": [{"name": "c"}, {"name": "n", "image": "i"}, {"name": "a"}, {"name": "b"}],
                    "hostname": "h"}),
            ),
            (
                json!({"$retainKeys": ["hostname"], "hostname": "y"}),
                json!({"hostname": "y"}),
            ),
        ];
        for (patch, expect) in cases {
            assert_eq!(
                pod_spec(original(), patch.clone()).unwrap(),
                expect,
                "{patch}"
            );
        }
        let refused = [
            json!({"$patch": "mend"}),
            json!({"$retainKeys": ["other"], "hostname": "y"}),
            json!({"$retainKeys": 1}),
            json!({"containers": [{"image": "no name"}]}),
            json!({"containers": [{"name": "a", "$patch": "merge"}]}),
            json!({"$setElementOrder": []}),
            json!({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "b"}]}),
        ];
        for patch in refused {
            assert_eq!(
                pod_spec(original(), patch.clone()).unwrap_err().code,
                400,
                "{patch}"
            );
        }
    }

    #[test]
    fn volumes_retain_only_the_named_source() {
        let original =
            json!({"volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {}}]});
        let patch = json!({"$setElementOrder/volumes": [{"name": "v"}, {"name": "w"}],
            "volumes": [{"$retainKeys": ["name", "configMap"], "name": "v", "configMap": {"name": "c"}}]});
        let expect = json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}, {"name": "w", "emptyDir": {}}]});
        assert_eq!(pod_spec(original, patch).unwrap(), expect);
    }

    #[test]
    fn lists_of_scalars() {
        let schema = Schema::builtin("", "v1", "Pod").unwrap();
        let mut pod = json!({"metadata": {"finalizers": ["a", "b"]}});
        let patch = json!({"metadata": {"finalizers": ["c", "a"]}});
        strategic_merge(&mut pod, &patch, &schema).unwrap();
        assert_eq!(pod["metadata"]["finalizers"], json!(["c", "a", "b"]));
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a", "z"],
            "$setElementOrder/finalizers": ["b", "c"]}});
        strategic_merge(&mut pod, &patch, &schema).unwrap();
        assert_eq!(pod["metadata"]["finalizers"], json!(["b", "c"]));
    }

    fn containers() -> impl Strategy<Value = Vec<Value>> {
        proptest::collection::btree_map("[a-e]", 0..4u8, 0..5).prop_shuffle_values()
    }

    trait Shuffled {
        fn prop_shuffle_values(self) -> BoxedStrategy<Vec<Value>>;
    }

    impl<S: Strategy<Value = std::collections::BTreeMap<String, u8>> + 'static> Shuffled for S {
        fn prop_shuffle_values(self) -> BoxedStrategy<Vec<Value>> {
            self.prop_map(|m| {
                m.into_iter()
                    .map(|(n, i)| json!({"name": n, "image": i.to_string()}))
                    .collect::<Vec<_>>()
            })
            .prop_shuffle()
            .boxed()
        }
    }

    proptest! {
        #[test]
        fn patching_twice_changes_nothing_more(old in containers(), new in containers()) {
            let patch = json!({"containers": new});
            let once = pod_spec(json!({"containers": old}), patch.clone()).unwrap();
            prop_assert_eq!(&pod_spec(once.clone(), patch).unwrap(), &once);
            let names: std::collections::BTreeSet<_> = old.iter().chain(&new).map(|c| c["name"].to_string()).collect();
            prop_assert_eq!(once["containers"].as_array().unwrap().len(), names.len());
            for container in &new {
                prop_assert!(once["containers"].as_array().unwrap().contains(container));
            }
        }

        #[test]
        fn the_order_asked_for_is_the_order_given(old in containers(), order in containers()) {
            let names: Vec<Value> = order.iter().map(|c| json!({"name": c["name"]})).collect();
            let patch = json!({"$setElementOrder/containers": names});
            let got = pod_spec(json!({"containers": old.clone()}), patch).unwrap();
            let got = got["containers"].as_array().unwrap();
            prop_assert_eq!(got.len(), old.len());
            let place = |c: &Value| names.iter().position(|n| n["name"] == c["name"]);
            let places: Vec<usize> = got.iter().filter_map(place).collect();
            prop_assert!(places.is_sorted(), "{:?}", places);
        }
    }
}
