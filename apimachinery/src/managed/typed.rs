//! What is done with one typed document: which fields it has, whether it fits its schema, and taking fields out of it.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::set::{Element, Set, field_element, shown};
use super::walk::{Form, Place, field, form, is_listed, item_element};
use crate::schema::{ListType, Schema, Shape};

/// Every field and item that the document mentions.
pub fn field_set(schema: &Schema, document: &Value) -> Set {
    let mut set = Set::default();
    collect(Some(schema.shape()), document, &mut set);
    set
}

/// Collects what is below a place; true if the place itself is a field of the set.
fn collect(place: Place<'_>, value: &Value, set: &mut Set) -> bool {
    match (form(place, value), value) {
        (Form::Fields, Value::Object(fields)) => {
            for (name, value) in fields {
                let mut below = Set::default();
                let own = collect(field(place, name), value, &mut below)
                    || value.is_null()
                    || value.as_object().is_some_and(Map::is_empty)
                    || !is_listed(place, name);
                set.push(field_element(name), own, below);
            }
            false
        }
        (Form::Items(shape, list), Value::Array(items)) => {
            collect_items(shape, list, items, set);
            false
        }
        _ => true,
    }
}

fn collect_items(shape: Shape<'_>, list: &ListType, items: &[Value], set: &mut Set) {
    let elements: Vec<Option<Element>> = items
        .iter()
        .map(|item| item_element(shape, list, item).ok())
        .collect();
    for (i, element) in elements.iter().enumerate() {
        let Some(element) = element else { continue };
        let duplicate = elements
            .iter()
            .enumerate()
            .any(|(j, other)| j != i && other.as_ref() == Some(element));
        let mut below = Set::default();
        if !duplicate {
            collect(shape.items(), &items[i], &mut below);
        }
        set.push(element.clone(), true, below);
    }
}

/// Whether an applied document fits its schema, and what does not: every message begins with a path.
pub fn validate(schema: &Schema, document: &Value) -> Result<(), String> {
    let mut checker = Checker {
        path: String::new(),
        errors: Vec::new(),
    };
    checker.visit(Some(schema.shape()), document);
    match checker.errors.len() {
        0 => Ok(()),
        1 => Err(checker.errors.remove(0)),
        _ => Err(format!("errors:\n  {}", checker.errors.join("\n  "))),
    }
}

struct Checker {
    path: String,
    errors: Vec<String>,
}

impl Checker {
    fn fail(&mut self, why: &str) {
        let colon = if self.path.is_empty() { "" } else { ": " };
        self.errors.push(format!("{}{colon}{why}", self.path));
    }

    fn below(&mut self, step: &str, visit: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push_str(step);
        visit(self);
        self.path.truncate(length);
    }

    fn visit(&mut self, place: Place<'_>, value: &Value) {
        let Some(shape) = place.filter(|shape| !shape.is_any() && !value.is_null()) else {
            return;
        };
        if let Some(scalar) = shape.scalar_name() {
            return self.scalar(scalar, value);
        }
        match value {
            Value::Object(fields) if !shape.is_list() => self.fields(shape, fields),
            Value::Array(items) if shape.is_list() => self.items(shape, items),
            // A definition's field may hold a list or a boolean where others hold a schema.
            _ if shape.is_either() => {}
            value if shape.is_list() => self.fail(&format!("expected list, got {}", go(value))),
            value => self.fail(&format!("expected map, got {}", go(value))),
        }
    }

    fn scalar(&mut self, scalar: &str, value: &Value) {
        let fits = match scalar {
            "numeric" => value.is_number(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            _ => !value.is_object() && !value.is_array(),
        };
        if fits {
            return;
        }
        self.fail(&match scalar {
            "numeric" => format!("expected numeric (int or float), got {}", go_type(value)),
            "string" => format!(
                "expected string, got &value.valueUnstructured{{Value:{}}}",
                go_syntax(value)
            ),
            "boolean" => format!("expected boolean, got {}", go(value)),
            _ => format!("expected any scalar, got {}", go(value)),
        });
    }

    fn fields(&mut self, shape: Shape<'_>, fields: &Map<String, Value>) {
        for (name, value) in fields {
            let known = shape.field(name);
            let step = format!(".{name}");
            self.below(&step, |checker| match known {
                None if !shape.is_open() => checker.fail("field not declared in schema"),
                known => checker.visit(known, value),
            });
        }
    }

    fn items(&mut self, shape: Shape<'_>, items: &[Value]) {
        let list = shape.list_type().unwrap_or(&ListType::Atomic);
        let mut seen: HashSet<Element> = HashSet::new();
        for (i, item) in items.iter().enumerate() {
            let step = if *list == ListType::Atomic {
                format!("[{i}]")
            } else {
                match item_element(shape, list, item) {
                    Err(why) => return self.fail(&format!("element {i}: {why}")),
                    Ok(element) => {
                        let step = shown(&element);
                        if !seen.insert(element) {
                            self.fail(&format!("duplicate entries for key {step}"));
                        }
                        step
                    }
                }
            };
            self.below(&step, |checker| checker.visit(shape.items(), item));
        }
    }
}

/// A value as Go's `%v` shows it.
fn go(value: &Value) -> String {
    match value {
        Value::String(text) => crate::field::quote(text),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(go).collect();
            format!("[{}]", items.join(","))
        }
        Value::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(k, v)| format!("{k}={}", go(v)))
                .collect();
            format!("{{{}}}", fields.join(";"))
        }
        other => other.to_string(),
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
        Value::Null => "<nil>",
    }
}

/// A value as Go's `%#v` shows it.
fn go_syntax(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(go_syntax).collect();
            format!("[]interface {{}}{{{}}}", items.join(", "))
        }
        Value::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(k, v)| format!("{}:{}", crate::field::quote(k), go_syntax(v)))
                .collect();
            format!("map[string]interface {{}}{{{}}}", fields.join(", "))
        }
        Value::String(text) => crate::field::quote(text),
        other => other.to_string(),
    }
}

/// The document without these fields and items. `None` when nothing is left.
pub fn remove(schema: &Schema, document: &Value, fields: &Set) -> Option<Value> {
    without(Some(schema.shape()), document, fields)
}

fn without(place: Place<'_>, value: &Value, gone: &Set) -> Option<Value> {
    let mut touched = false;
    match (form(place, value), value) {
        (Form::Fields, Value::Object(fields)) => {
            let mut kept = Map::new();
            for (name, value) in fields {
                let node = gone.get(&field_element(name));
                match node {
                    Some(node) if node.member => {}
                    Some(node) => {
                        touched = true;
                        let below = without(field(place, name), value, &node.below);
                        kept.insert(name.clone(), below.unwrap_or_else(|| emptied(value)));
                    }
                    None => {
                        kept.insert(name.clone(), value.clone());
                    }
                }
            }
            (touched || !kept.is_empty()).then_some(Value::Object(kept))
        }
        (Form::Items(shape, list), Value::Array(items)) => {
            let mut kept = Vec::new();
            for item in items {
                let element = item_element(shape, list, item).ok();
                match element.and_then(|element| gone.get(&element)) {
                    Some(node) if node.member => {}
                    Some(node) => {
                        touched = true;
                        let below = without(shape.items(), item, &node.below);
                        kept.push(below.unwrap_or_else(|| emptied(item)));
                    }
                    None => kept.push(item.clone()),
                }
            }
            (touched || !kept.is_empty()).then_some(Value::Array(kept))
        }
        (_, Value::Object(_) | Value::Array(_)) => None,
        (_, scalar) => Some(scalar.clone()),
    }
}

fn emptied(value: &Value) -> Value {
    match value {
        Value::Object(_) => Value::Object(Map::new()),
        Value::Array(_) => Value::Array(Vec::new()),
        _ => Value::Null,
    }
}

/// Only these fields and items of the document, as a client extracts what it applied.
pub fn extract(schema: &Schema, document: &Value, fields: &Set) -> Value {
    only(Some(schema.shape()), document, fields).unwrap_or(Value::Null)
}

fn only(place: Place<'_>, value: &Value, wanted: &Set) -> Option<Value> {
    match (form(place, value), value) {
        (Form::Fields, Value::Object(fields)) => {
            let mut kept = Map::new();
            for (name, value) in fields {
                let Some(node) = wanted.get(&field_element(name)) else {
                    continue;
                };
                let below = only(field(place, name), value, &node.below);
                if let Some(below) = below.or_else(|| node.member.then(|| emptied(value))) {
                    kept.insert(name.clone(), below);
                }
            }
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        (Form::Items(shape, list), Value::Array(items)) => {
            let mut kept = Vec::new();
            for item in items {
                let element = item_element(shape, list, item).ok();
                let Some(node) = element.and_then(|element| wanted.get(&element)) else {
                    continue;
                };
                match (
                    node.below.is_empty(),
                    only(shape.items(), item, &node.below),
                ) {
                    (false, Some(below)) => kept.push(below),
                    _ => kept.push(item.clone()),
                }
            }
            (!kept.is_empty()).then_some(Value::Array(kept))
        }
        (_, value) => Some(value.clone()),
    }
}

/// The set with every struct field that has owned fields below it.
#[must_use]
pub fn with_parents(schema: &Schema, set: &Set) -> Set {
    parents(Some(schema.shape()), set)
}

fn parents(place: Place<'_>, set: &Set) -> Set {
    let mut out = Set::default();
    for node in set.nodes() {
        let (next, listed) = match node.element.strip_prefix("f:") {
            Some(name) => (field(place, name), is_listed(place, name)),
            None => (place.and_then(Shape::items), false),
        };
        let member = node.member || (listed && !node.below.is_empty());
        out.push(node.element.clone(), member, parents(next, &node.below));
    }
    out
}

/// Brings a set to a schema that has changed since: what has become atomic is owned as a whole.
pub fn reconcile(schema: &Schema, set: &mut Set) {
    settle(Some(schema.shape()), set);
}

fn settle(place: Place<'_>, set: &mut Set) {
    if place.is_none_or(Shape::is_any) {
        return;
    }
    set.retain(|node| {
        let next = match node.element.strip_prefix("f:") {
            Some(name) => field(place, name),
            None => place.and_then(Shape::items),
        };
        let atomic = next
            .is_some_and(|shape| shape.is_atomic() || shape.list_type() == Some(&ListType::Atomic));
        if atomic && !node.below.is_empty() {
            node.below = Set::default();
            node.member = true;
        }
        settle(next, &mut node.below);
        true
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment() -> Schema {
        Schema::builtin("apps", "v1", "Deployment").unwrap()
    }

    #[test]
    fn sets_of_applied_documents() {
        let applied = json!({"metadata": {"name": "a", "labels": {"l": "v"}}, "spec": {"replicas": 1,
            "selector": {"matchLabels": {"l": "v"}}, "template": {"spec": {"securityContext": {}, "hostname": null,
                "containers": [{"name": "c", "env": [{"name": "X"}, {"name": "X"}]}]}}}});
        let expect = json!({"f:metadata": {"f:name": {}, "f:labels": {"f:l": {}}}, "f:spec": {"f:replicas": {},
            "f:selector": {}, "f:template": {"f:spec": {"f:securityContext": {}, "f:hostname": {},
                "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:env": {"k:{\"name\":\"X\"}": {}}}}}}}});
        assert_eq!(field_set(&deployment(), &applied).into_value(), expect);
    }

    #[test]
    fn documents_that_do_not_fit() {
        let spec =
            |spec: Value| json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": spec});
        let containers = |list: Value| spec(json!({"template": {"spec": {"containers": list}}}));
        let at = ".spec.template.spec.containers";
        let cases = [
            (
                spec(json!({"foo": 1})),
                ".spec.foo: field not declared in schema".to_owned(),
            ),
            (
                spec(json!({"replicas": "1"})),
                ".spec.replicas: expected numeric (int or float), got string".into(),
            ),
            (
                spec(json!({"paused": 1})),
                ".spec.paused: expected boolean, got 1".into(),
            ),
            (
                containers(json!([{"name": "a"}, {"name": "a"}])),
                format!("{at}: duplicate entries for key [name=\"a\"]"),
            ),
            (
                containers(
                    json!([{"name": "a", "ports": [{"containerPort": 80}, {"containerPort": 80, "protocol": "TCP"}]}]),
                ),
                format!(
                    "{at}[name=\"a\"].ports: duplicate entries for key [containerPort=80,protocol=\"TCP\"]"
                ),
            ),
            (
                containers(json!([{"name": "a", "tty": "x", "bar": 1}])),
                format!(
                    "errors:\n  {at}[name=\"a\"].bar: field not declared in schema\n  {at}[name=\"a\"].tty: expected \
                     boolean, got \"x\""
                ),
            ),
            (
                containers(json!([{"image": "i"}])),
                format!(
                    "{at}: element 0: associative list with keys has an element that omits all key fields [\"name\"] \
                     (and doesn't have default values for any key fields)"
                ),
            ),
            (
                containers(json!({})),
                format!("{at}: expected list, got {{}}"),
            ),
        ];
        for (document, message) in cases {
            assert_eq!(
                validate(&deployment(), &document),
                Err(message),
                "{document}"
            );
        }
        let fine = containers(
            json!([{"name": "a", "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}]),
        );
        assert_eq!(validate(&deployment(), &fine), Ok(()));
    }

    #[test]
    fn taking_out_and_leaving_only() {
        let document = json!({"spec": {"replicas": 1, "template": {"spec": {"containers": [
            {"name": "a", "image": "i", "args": ["x"]}, {"name": "b"}], "nodeSelector": {"k": "v"}}}}});
        let fields = Set::from_value(&json!({"f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {
            "k:{\"name\":\"a\"}": {"f:image": {}, "f:args": {}}, "k:{\"name\":\"b\"}": {".": {}, "f:name": {}}}}}}}))
        .unwrap();
        let kept = json!({"spec": {"template": {"spec": {"containers": [{"name": "a"}], "nodeSelector": {"k": "v"}}}}});
        assert_eq!(remove(&deployment(), &document, &fields), Some(kept));
        let only = json!({"spec": {"replicas": 1, "template": {"spec": {"containers": [
            {"image": "i", "args": ["x"]}, {"name": "b"}]}}}});
        assert_eq!(extract(&deployment(), &document, &fields), only);
    }

    #[test]
    fn what_became_atomic_is_owned_as_one() {
        let mut set = Set::from_value(&json!({"f:spec": {"f:selector": {"f:matchLabels": {".": {}, "f:a": {}}},
            "f:template": {"f:spec": {"f:nodeSelector": {"f:x": {}}, "f:containers": {"k:{\"name\":\"c\"}": {"f:args": {}}}}}}}))
        .unwrap();
        reconcile(&deployment(), &mut set);
        let expect = json!({"f:spec": {"f:selector": {}, "f:template": {"f:spec": {"f:nodeSelector": {},
            "f:containers": {"k:{\"name\":\"c\"}": {"f:args": {}}}}}}});
        assert_eq!(set.into_value(), expect);
    }
}
