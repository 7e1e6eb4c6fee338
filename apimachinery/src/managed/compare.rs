//! Which fields differ between two documents of one schema.

use serde_json::{Map, Value};

use super::set::{Element, Set, field_element};
use super::walk::{Form, Place, field, form, item_element, same, zip};
use crate::schema::{ListType, Schema, Shape};

/// What a change wrote and what it removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Fields that are new, or have another value.
    pub written: Set,
    pub removed: Set,
}

impl Comparison {
    pub fn is_empty(&self) -> bool {
        self.written.is_empty() && self.removed.is_empty()
    }
}

/// Compares two documents. Where a list cannot be told apart by its keys, the error says why.
pub fn compare(schema: &Schema, old: &Value, new: &Value) -> Result<Comparison, String> {
    let mut found = Comparison::default();
    let shape = Some(schema.shape());
    node(shape, Side::Value(old), Side::Value(new), &mut found)?;
    Ok(found)
}

/// One of the two documents at a place.
#[derive(Clone, Copy)]
enum Side<'a> {
    Absent,
    /// Not written, but there all the same: a Go struct, or a field with Go's zero value.
    Zero,
    Value(&'a Value),
}

impl<'a> Side<'a> {
    /// A field of this side. What is absent with its parent has no zero value either.
    fn below(self, value: Option<&'a Value>, place: Place<'_>, name: &str) -> Side<'a> {
        match (value, place) {
            (Some(value), _) => Side::Value(value),
            (None, Some(shape))
                if !self.is_absent() && (shape.is_inline(name) || shape.is_required(name)) =>
            {
                Side::Zero
            }
            _ => Side::Absent,
        }
    }

    /// The only item that has an element, if any has.
    fn only(items: &[(Element, bool, &'a Value)]) -> Side<'a> {
        items
            .first()
            .map_or(Side::Absent, |(_, _, value)| Side::Value(value))
    }

    fn value(self) -> Option<&'a Value> {
        match self {
            Side::Value(value) if !value.is_null() => Some(value),
            _ => None,
        }
    }

    fn is_absent(self) -> bool {
        matches!(self, Side::Absent)
    }

    fn fields(self) -> Option<&'a Map<String, Value>> {
        self.value().and_then(Value::as_object)
    }

    fn items(self) -> &'a [Value] {
        self.value()
            .and_then(Value::as_array)
            .map_or(&[], Vec::as_slice)
    }
}

/// What happened to the place itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    Written,
    Removed,
}

fn node(
    place: Place<'_>,
    old: Side<'_>,
    new: Side<'_>,
    found: &mut Comparison,
) -> Result<Change, String> {
    if let (Side::Value(a), Side::Value(b)) = (old, new)
        && !matches!((a, b), (Value::Object(_), Value::Object(_)))
        && same(a, b)
    {
        return Ok(Change::None);
    }
    let (a, b) = (old.value(), new.value());
    // A change of type is a change of the value, and of what was or is below it.
    if let (Some(a), Some(b)) = (a, b)
        && (a.is_object() != b.is_object() || a.is_array() != b.is_array())
    {
        if matches!(form(place, a), Form::Fields) {
            fields(place, old, Side::Absent, found)?;
        }
        if matches!(form(place, b), Form::Fields) {
            fields(place, Side::Absent, new, found)?;
        }
        return Ok(Change::Written);
    }
    match b.or(a).map(|value| form(place, value)) {
        None | Some(Form::Leaf) => Ok(leaf(old, new)),
        Some(Form::Fields) if is_empty(old) && is_empty(new) => Ok(leaf(old, new)),
        Some(Form::Items(..)) if old.items().is_empty() && new.items().is_empty() => {
            Ok(leaf(old, new))
        }
        Some(Form::Fields) => {
            fields(place, old, new, found)?;
            Ok(presence(old, new))
        }
        Some(Form::Items(shape, list)) => {
            items(shape, list, old, new, found)?;
            Ok(presence(old, new))
        }
    }
}

fn is_empty(side: Side<'_>) -> bool {
    side.fields().is_none_or(Map::is_empty)
}

fn presence(old: Side<'_>, new: Side<'_>) -> Change {
    match (old.is_absent(), new.is_absent()) {
        (true, false) => Change::Written,
        (false, true) => Change::Removed,
        _ => Change::None,
    }
}

/// Whether Go has this value in a field that nobody has written.
pub fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

fn leaf(old: Side<'_>, new: Side<'_>) -> Change {
    let equal = match (old, new) {
        (Side::Value(a), Side::Value(b)) => same(a, b),
        (Side::Value(value), Side::Zero) | (Side::Zero, Side::Value(value)) => is_zero(value),
        (Side::Zero, Side::Zero) => true,
        _ => return presence(old, new),
    };
    if equal { Change::None } else { Change::Written }
}

fn fields(
    place: Place<'_>,
    old: Side<'_>,
    new: Side<'_>,
    found: &mut Comparison,
) -> Result<(), String> {
    for (name, a, b) in zip(old.fields(), new.fields()) {
        let mut below = Comparison::default();
        let change = node(
            field(place, name),
            old.below(a, place, name),
            new.below(b, place, name),
            &mut below,
        )?;
        record(found, || field_element(name), change, below);
    }
    Ok(())
}

fn record(
    found: &mut Comparison,
    element: impl Fn() -> Element,
    change: Change,
    below: Comparison,
) {
    let (written, removed) = (change == Change::Written, change == Change::Removed);
    if written || !below.written.is_empty() {
        found.written.push(element(), written, below.written);
    }
    if removed || !below.removed.is_empty() {
        found.removed.push(element(), removed, below.removed);
    }
}

fn items(
    shape: Shape<'_>,
    list: &ListType,
    old: Side<'_>,
    new: Side<'_>,
    found: &mut Comparison,
) -> Result<(), String> {
    // Every element with its items on both sides, in order: more than one of a side are duplicates.
    let mut all: Vec<(Element, bool, &Value)> =
        Vec::with_capacity(old.items().len() + new.items().len());
    for (is_new, values) in [(false, old.items()), (true, new.items())] {
        for item in values {
            all.push((item_element(shape, list, item)?, is_new, item));
        }
    }
    all.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    let place = shape.items();
    for same_element in all.chunk_by(|a, b| a.0 == b.0) {
        let element = &same_element[0].0;
        let (before, after) = same_element.split_at(same_element.partition_point(|item| !item.1));
        let mut below = Comparison::default();
        let change = match (before.len(), after.len()) {
            (0 | 1, 0 | 1) => node(place, Side::only(before), Side::only(after), &mut below)?,
            (2.., 2..) => {
                let equal = before.len() == after.len()
                    && before.iter().zip(after).all(|(a, b)| same(a.2, b.2));
                if equal { Change::None } else { Change::Written }
            }
            // Duplicates are owned as one value; the single item is compared with nothing.
            (2.., _) => {
                if let [(_, _, only)] = after {
                    node(place, Side::Absent, Side::Value(only), &mut below)?;
                    below.removed = Set::default();
                    found
                        .written
                        .push(element.clone(), true, std::mem::take(&mut below.written));
                }
                Change::Removed
            }
            (_, _) => {
                if let [(_, _, only)] = before {
                    node(place, Side::Value(only), Side::Absent, &mut below)?;
                    below.written = Set::default();
                    found
                        .removed
                        .push(element.clone(), true, std::mem::take(&mut below.removed));
                }
                Change::Written
            }
        };
        record(found, || element.clone(), change, below);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sets(kind: (&str, &str, &str), old: Value, new: Value) -> (Value, Value) {
        let schema = Schema::builtin(kind.0, kind.1, kind.2).unwrap();
        let found = compare(&schema, &old, &new).unwrap();
        (found.written.into_value(), found.removed.into_value())
    }

    #[test]
    fn a_new_deployment() {
        let new = json!({"metadata": {"name": "a", "labels": {"app": "x"}}, "spec": {"replicas": 1,
            "selector": {"matchLabels": {"app": "x"}}, "strategy": {"type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": "25%"}},
            "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"dnsPolicy": "ClusterFirst",
                "securityContext": {}, "containers": [{"name": "c", "image": "i", "resources": {},
                    "ports": [{"containerPort": 80, "protocol": "TCP"}]}],
                "volumes": [{"name": "v", "emptyDir": {}}]}}}});
        let (written, removed) = sets(("apps", "v1", "Deployment"), json!({}), new);
        let expect = json!({
            "f:metadata": {"f:name": {}, "f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:replicas": {}, "f:selector": {},
                "f:strategy": {"f:type": {}, "f:rollingUpdate": {".": {}, "f:maxSurge": {}}},
                "f:template": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {
                    "f:dnsPolicy": {}, "f:securityContext": {},
                    "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {}, "f:resources": {},
                        "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {},
                            "f:containerPort": {}, "f:protocol": {}}}}},
                    "f:volumes": {".": {}, "k:{\"name\":\"v\"}": {".": {}, "f:name": {}, "f:emptyDir": {}}}}}}});
        assert_eq!(written, expect);
        assert_eq!(removed, json!({}));
    }

    #[test]
    fn changes() {
        let pod = |containers: Value, labels: Value| json!({"metadata": {"labels": labels, "finalizers": ["a"]}, "spec": {"containers": containers}});
        let old = pod(
            json!([{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]),
            json!({"k": "v", "l": "w"}),
        );
        let mut new = pod(
            json!([{"name": "a", "image": "2"}, {"name": "c", "args": ["x"]}]),
            json!({"k": "v2"}),
        );
        new["metadata"]["finalizers"] = json!(["b"]);
        let (written, removed) = sets(("", "v1", "Pod"), old.clone(), new);
        assert_eq!(
            written,
            json!({"f:metadata": {"f:labels": {"f:k": {}}, "f:finalizers": {"v:\"b\"": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {"f:image": {}},
                "k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:args": {}}}}})
        );
        assert_eq!(
            removed,
            json!({"f:metadata": {"f:labels": {"f:l": {}}, "f:finalizers": {"v:\"a\"": {}}},
            "f:spec": {"f:containers": {
                "k:{\"name\":\"a\"}": {"f:env": {".": {}, "k:{\"name\":\"X\"}": {".": {}, "f:name": {}, "f:value": {}}}},
                "k:{\"name\":\"b\"}": {".": {}, "f:name": {}}}}})
        );
        assert_eq!(
            sets(("", "v1", "Pod"), old.clone(), old),
            (json!({}), json!({}))
        );
    }

    #[test]
    fn duplicates_are_one_value() {
        let pod = |env: Value| json!({"spec": {"containers": [{"name": "a", "env": env}]}});
        let (one, two) = (
            json!([{"name": "X", "value": "1"}]),
            json!([{"name": "X", "value": "1"}, {"name": "X", "value": "2"}]),
        );
        let at = |below: Value| json!({"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {"f:env": {"k:{\"name\":\"X\"}": below}}}}});
        let full = json!({".": {}, "f:name": {}, "f:value": {}});
        let (written, removed) = sets(("", "v1", "Pod"), pod(one.clone()), pod(two.clone()));
        assert_eq!(written, at(json!({})));
        assert_eq!(removed, at(full.clone()));
        let (written, removed) = sets(("", "v1", "Pod"), pod(two), pod(one));
        assert_eq!(written, at(full));
        assert_eq!(removed, at(json!({})));
    }

    #[test]
    fn zero_values_are_no_change() {
        let (written, _) = sets(
            ("rbac.authorization.k8s.io", "v1", "RoleBinding"),
            json!({}),
            json!({"roleRef": {"kind": "Role", "name": "a"}, "subjects": []}),
        );
        assert_eq!(written, json!({"f:roleRef": {}, "f:subjects": {}}));
        let (written, _) = sets(
            ("", "v1", "Service"),
            json!({}),
            json!({"spec": {}, "status": {"loadBalancer": {}}}),
        );
        assert_eq!(written, json!({}));
    }

    #[test]
    fn types_may_change_where_no_schema_forbids_it() {
        let schema = Schema::any();
        let found = compare(
            &schema,
            &json!({"a": {"b": 1}, "c": 1}),
            &json!({"a": 1, "c": {"d": 1}}),
        )
        .unwrap();
        assert_eq!(
            found.written.into_value(),
            json!({"f:a": {}, "f:c": {".": {}, "f:d": {}}})
        );
        assert_eq!(found.removed.into_value(), json!({"f:a": {"f:b": {}}}));
    }
}
