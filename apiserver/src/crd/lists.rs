//! Lists that are sets or maps must not hold an item, or a key, twice.

use apimachinery::field::{Error, ErrorList, Path};
use serde_json::{Map, Value};

/// Duplicates in all such lists of a document.
#[must_use]
pub fn validate(schema: &Value, document: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    visit(schema, document, &Path::root(), &mut errors);
    errors
}

fn visit(schema: &Value, value: &Value, path: &Path, errors: &mut ErrorList) {
    match value {
        Value::Object(fields) => {
            let properties = schema.get("properties");
            let values = schema.get("additionalProperties").filter(|v| v.is_object());
            for (name, value) in fields {
                if let Some(inner) = properties.and_then(|p| p.get(name)) {
                    visit(inner, value, &path.child(name), errors);
                } else if let Some(inner) = values {
                    visit(inner, value, &path.key(name), errors);
                }
            }
        }
        Value::Array(items) => {
            match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
                Some("set") => {
                    for index in repeated(items) {
                        let item = items[index].clone();
                        errors.push(Error::duplicate(&path.index(index), item));
                    }
                }
                Some("map") => map_keys(schema, items, path, errors),
                _ => {}
            }
            if let Some(inner) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    visit(inner, item, &path.index(index), errors);
                }
            }
        }
        _ => {}
    }
}

fn map_keys(schema: &Value, items: &[Value], path: &Path, errors: &mut ErrorList) {
    for (index, item) in items.iter().enumerate() {
        if !item.is_object() && !item.is_null() {
            let why = "must be an object for an array of list-type map";
            errors.push(Error::invalid(&path.index(index), item.clone(), why));
            return;
        }
    }
    let keys: Vec<Value> = items.iter().map(|item| key(schema, item)).collect();
    for index in repeated(&keys) {
        errors.push(Error::duplicate(&path.index(index), keys[index].clone()));
    }
}

/// The fields that identify an item of a list that is a map.
pub(super) fn key(schema: &Value, item: &Value) -> Value {
    let names = schema["x-kubernetes-list-map-keys"].as_array();
    let mut key = Map::new();
    for name in names.into_iter().flatten().filter_map(Value::as_str) {
        if let Some(value) = item.get(name) {
            key.insert(name.to_owned(), value.clone());
        }
    }
    Value::Object(key)
}

/// The places where something appears for the second time.
fn repeated(items: &[Value]) -> Vec<usize> {
    let mut seen: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
    let mut again = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let times = seen.entry(item.to_string()).or_default();
        *times += 1;
        if *times == 2 {
            again.push(index);
        }
    }
    again
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn duplicates_are_named() {
        let schema = json!({"properties": {
            "set": {"x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "map": {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a", "b"],
                "items": {"properties": {"inner": {"x-kubernetes-list-type": "set"}}}},
        }});
        let value = json!({"set": ["x", "y", "x", "x"],
            "map": [{"a": 1, "b": 1}, {"a": 1}, {"a": 1, "b": 1, "inner": [1, 1]}]});
        let errors: Vec<String> = validate(&schema, &value)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            errors,
            [
                "map[2]: Duplicate value: {\"a\":1,\"b\":1}",
                "map[2].inner[1]: Duplicate value: 1",
                "set[2]: Duplicate value: \"x\"",
            ]
        );
        let wrong = json!({"map": [1]});
        assert_eq!(validate(&schema, &wrong).len(), 1);
    }
}
