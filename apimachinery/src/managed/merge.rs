//! Merging an applied document into the live one.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::set::Element;
use super::walk::{Form, Place, field, form, item_element, zip};
use crate::schema::{ListType, Schema, Shape};

/// The live document with what is applied. Nothing is removed: that is decided by who owned it. The error says which
/// list's items cannot be told apart.
pub fn merge(schema: &Schema, live: &Value, applied: &Value) -> Result<Value, String> {
    let merged = node(Some(schema.shape()), Some(live), Some(applied))?;
    Ok(merged.unwrap_or_default())
}

fn node(
    place: Place<'_>,
    live: Option<&Value>,
    applied: Option<&Value>,
) -> Result<Option<Value>, String> {
    let (Some(left), Some(right)) = (live, applied) else {
        return Ok(applied.or(live).cloned());
    };
    // A null leaves a map or a merged list alone; it unsets everything else.
    let decisive = if right.is_null() { left } else { right };
    match (form(place, decisive), left, right) {
        (Form::Fields, _, _) => {
            let (l, r) = (left.as_object(), right.as_object());
            if l.is_none_or(Map::is_empty) && r.is_none_or(Map::is_empty) {
                return Ok(Some(right.clone()));
            }
            let mut merged = Map::new();
            for (name, l, r) in zip(l, r) {
                if let Some(value) = node(field(place, name), l, r)? {
                    merged.insert(name.to_owned(), value);
                }
            }
            Ok((!merged.is_empty()).then_some(Value::Object(merged)))
        }
        (Form::Items(shape, list), _, _) => {
            let (l, r) = (as_items(left), as_items(right));
            if l.is_empty() && r.is_empty() {
                return Ok(Some(right.clone()));
            }
            let merged = items(shape, list, l, r)?;
            Ok((!merged.is_empty()).then_some(Value::Array(merged)))
        }
        (Form::Leaf, _, _) => Ok(Some(right.clone())),
    }
}

fn as_items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// One list's items and what tells them apart.
struct Indexed<'a> {
    elements: Vec<Element>,
    /// `None` for items that occur more than once: they do not merge.
    by_element: HashMap<Element, Option<&'a Value>>,
}

fn index<'a>(
    shape: Shape<'_>,
    list: &ListType,
    items: &'a [Value],
    duplicates: bool,
) -> Result<Indexed<'a>, String> {
    let mut indexed = Indexed {
        elements: Vec::with_capacity(items.len()),
        by_element: HashMap::with_capacity(items.len()),
    };
    for (i, item) in items.iter().enumerate() {
        let element =
            item_element(shape, list, item).map_err(|why| format!("element {i}: {why}"))?;
        match indexed.by_element.get_mut(&element) {
            Some(_) if !duplicates => {
                return Err(format!(
                    "duplicate entries for key {}",
                    super::set::shown(&element)
                ));
            }
            Some(found) => *found = None,
            None => {
                indexed.by_element.insert(element.clone(), Some(item));
            }
        }
        indexed.elements.push(element);
    }
    Ok(indexed)
}

/// Items of both lists come in the applied order; those of the live list alone stay where they are among them.
fn items(
    shape: Shape<'_>,
    list: &ListType,
    live: &[Value],
    applied: &[Value],
) -> Result<Vec<Value>, String> {
    let left = index(shape, list, live, true)?;
    let right = index(shape, list, applied, false)?;
    let place = shape.items();
    let mut shared = right
        .elements
        .iter()
        .filter(|element| left.by_element.contains_key(*element));
    let mut next = shared.next();
    let mut done: HashSet<&Element> = HashSet::new();
    let mut out = Vec::with_capacity(live.len().max(applied.len()));
    let (mut l, mut r) = (0, 0);
    while l < live.len() || r < applied.len() {
        let (ours, theirs) = (left.elements.get(l), right.elements.get(r));
        let in_both = ours.is_some_and(|element| right.by_element.contains_key(element));
        if let (Some(element), Some(_)) = (ours, theirs)
            && ours != theirs
            && in_both
            && next.is_some_and(|next| next != element)
        {
            // It comes later, where the applied list has it.
            l += 1;
            continue;
        }
        if let Some(element) = ours
            && ours != theirs
        {
            if !in_both {
                out.push(live[l].clone());
                l += 1;
                continue;
            }
            if done.contains(element) {
                l += 1;
            }
        }
        let Some(element) = theirs else { continue };
        done.insert(element);
        let from = left.by_element.get(element).copied().flatten();
        out.extend(node(place, from, right.by_element[element])?);
        if ours == theirs {
            l += 1;
        }
        r += 1;
        if ours == theirs || next == Some(element) {
            next = shared.next();
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn pod(live: Value, applied: Value) -> Result<Value, String> {
        merge(
            &Schema::definition("core.v1.PodSpec").unwrap(),
            &live,
            &applied,
        )
    }

    #[test]
    fn merges_by_shape() {
        let live = json!({"containers": [{"name": "a", "image": "1", "args": ["x", "y"]}, {"name": "b"}],
            "nodeSelector": {"k": "v"}, "tolerations": [{"key": "a"}], "hostname": "h", "volumes": []});
        let applied = json!({"containers": [{"name": "a", "image": "2", "args": ["z"]}], "nodeSelector": {"l": "w"},
            "tolerations": [{"key": "b"}], "hostname": null, "securityContext": null});
        let expect = json!({"containers": [{"name": "a", "image": "2", "args": ["z"]}, {"name": "b"}],
            "nodeSelector": {"l": "w"}, "tolerations": [{"key": "b"}], "hostname": null, "securityContext": null,
            "volumes": []});
        assert_eq!(pod(live, applied).unwrap(), expect);
    }

    #[test]
    fn items_keep_their_order() {
        let names = |list: &[&str]| -> Value {
            let items: Vec<Value> = list.iter().map(|n| json!({ "name": n })).collect();
            json!({ "containers": items })
        };
        let cases: [(&[&str], &[&str], &[&str]); 8] = [
            (&["a", "b"], &["a", "b"], &["a", "b"]),
            (&["a", "b", "c"], &["b"], &["a", "b", "c"]),
            (&["a", "b", "c"], &["c", "a"], &["b", "c", "a"]),
            (&["a", "b"], &["x", "a"], &["x", "a", "b"]),
            (&["a"], &["b", "c"], &["a", "b", "c"]),
            (&[], &["a"], &["a"]),
            (&["a"], &[], &["a"]),
            (
                &["1", "2", "3", "4"],
                &["4", "9", "2"],
                &["1", "3", "4", "9", "2"],
            ),
        ];
        for (live, applied, expect) in cases {
            assert_eq!(
                pod(names(live), names(applied)).unwrap(),
                names(expect),
                "{live:?} {applied:?}"
            );
        }
    }

    #[test]
    fn duplicates() {
        let twice =
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "a", "image": "2"}]});
        let other = json!({"containers": [{"name": "b"}]});
        let error = pod(other.clone(), twice.clone()).unwrap_err();
        assert_eq!(error, "duplicate entries for key [name=\"a\"]");
        // Live duplicates are kept until they are applied to.
        let kept = json!({"containers": [{"name": "a", "image": "1"}, {"name": "a", "image": "2"}, {"name": "b"}]});
        assert_eq!(pod(twice.clone(), other).unwrap(), kept);
        let one = json!({"containers": [{"name": "a", "image": "3"}]});
        assert_eq!(pod(twice, one.clone()).unwrap(), one);
    }

    fn list() -> impl Strategy<Value = Vec<u8>> {
        proptest::sample::subsequence((0..8_u8).collect::<Vec<_>>(), 0..8).prop_shuffle()
    }

    proptest! {
        #[test]
        fn every_item_once_and_in_the_applied_order(live in list(), applied in list()) {
            let document = |list: &[u8]| {
                let items: Vec<Value> = list.iter().map(|n| json!({"name": n.to_string()})).collect();
                json!({ "containers": items })
            };
            let merged = pod(document(&live), document(&applied)).unwrap();
            let names: Vec<u8> = as_items(&merged["containers"])
                .iter().map(|i| i["name"].as_str().unwrap().parse().unwrap()).collect();
            let mut sorted = names.clone();
            sorted.sort_unstable();
            let mut all: Vec<u8> = live.iter().chain(&applied).copied().collect();
            all.sort_unstable();
            all.dedup();
            prop_assert_eq!(sorted, all);
            let kept: Vec<u8> = names.iter().filter(|n| applied.contains(n)).copied().collect();
            prop_assert_eq!(kept, applied);
        }
    }
}
