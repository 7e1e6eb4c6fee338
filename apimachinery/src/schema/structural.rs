//! What the structural schema of a custom resource does to a document: pruning, defaulting, and the metadata of the
//! object and of resources embedded in it.
//!
//! These walk the OpenAPI document itself, since its rules differ from those of built-in types: nulls may be values,
//! items and map values have defaults, and an object may keep what it does not know.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::prune::REPORTED;
use super::{Schema, load};

/// Fields that every object has, whatever its schema says.
const META_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];

static OBJECT_META: LazyLock<Option<Schema>> = LazyLock::new(|| load::find("meta.v1.ObjectMeta"));

fn is_true(schema: &Value, extension: &str) -> bool {
    schema.get(extension) == Some(&Value::Bool(true))
}

fn preserves(schema: &Value) -> bool {
    is_true(schema, "x-kubernetes-preserve-unknown-fields")
}

fn embeds(schema: &Value) -> bool {
    is_true(schema, "x-kubernetes-embedded-resource")
}

/// The schema of a field, by its own name or as one of additional properties; the inner `None` means that the field
/// may exist, with anything in it.
fn of_field<'a>(schema: &'a Value, name: &str) -> Option<Option<&'a Value>> {
    if let Some(property) = schema.get("properties").and_then(|p| p.get(name)) {
        return Some(Some(property));
    }
    match schema.get("additionalProperties")? {
        values @ Value::Object(_) => Some(Some(values)),
        Value::Bool(true) => Some(None),
        _ => None,
    }
}

/// Removes fields that the schema does not know, and names them, sorted. `root`: the document is a whole resource.
pub(super) fn prune(schema: &Value, document: &mut Value, root: bool) -> Vec<String> {
    let mut pruner = Pruner {
        path: String::new(),
        unknown: Vec::new(),
    };
    pruner.visit(Some(schema), document, root || embeds(schema));
    let mut unknown = pruner.unknown;
    unknown.sort();
    unknown.truncate(REPORTED);
    unknown
}

struct Pruner {
    path: String,
    unknown: Vec<String>,
}

impl Pruner {
    fn report(&mut self, name: &str) {
        let dot = if self.path.is_empty() { "" } else { "." };
        self.unknown.push(format!("{}{dot}{name}", self.path));
    }

    fn below(&mut self, name: &str, visit: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        visit(self);
        self.path.truncate(length);
    }

    fn visit(&mut self, schema: Option<&Value>, value: &mut Value, resource: bool) {
        let keeps = schema.is_some_and(preserves);
        match value {
            Value::Object(fields) => {
                let mut drop = Vec::new();
                for (name, value) in fields.iter_mut() {
                    if resource && META_FIELDS.contains(&name.as_str()) {
                        if name == "metadata" {
                            self.metadata(value);
                        }
                        continue;
                    }
                    match schema.and_then(|schema| of_field(schema, name)) {
                        Some(Some(inner)) => {
                            self.below(name, |p| p.visit(Some(inner), value, embeds(inner)));
                        }
                        // As Kubernetes does it: nothing is specified below `additionalProperties: true`.
                        Some(None) => self.below(name, |p| p.visit(None, value, false)),
                        None if keeps => {}
                        None => drop.push(name.clone()),
                    }
                }
                for name in drop {
                    self.report(&name);
                    fields.remove(&name);
                }
            }
            Value::Array(items) => {
                let inner = schema.and_then(|schema| schema.get("items"));
                if keeps && inner.is_none() {
                    return;
                }
                for (index, item) in items.iter_mut().enumerate() {
                    let length = self.path.len();
                    self.path.push_str(&format!("[{index}]"));
                    match inner {
                        Some(inner) => self.visit(Some(inner), item, embeds(inner)),
                        None => self.visit(None, item, false),
                    }
                    self.path.truncate(length);
                }
            }
            _ => {}
        }
    }

    fn metadata(&mut self, metadata: &mut Value) {
        let Some(schema) = &*OBJECT_META else { return };
        let unknown = schema.prune(metadata);
        for name in unknown {
            self.below("metadata", |p| p.report(&name));
        }
    }
}

fn is_unwanted_null(value: &Value, schema: Option<&Value>) -> bool {
    value.is_null() && schema.is_some_and(|schema| !is_true(schema, "nullable"))
}

/// Removes nulls where the schema allows none and no default will take their place.
pub(super) fn drop_nulls(schema: &Value, document: &mut Value) {
    drop_nulls_in(Some(schema), document);
}

fn drop_nulls_in(schema: Option<&Value>, value: &mut Value) {
    match value {
        Value::Object(fields) => fields.retain(|name, value| {
            let inner = schema.and_then(|schema| of_field(schema, name)).flatten();
            let default = inner.and_then(|inner| inner.get("default"));
            if is_unwanted_null(value, inner) && default.is_none_or(Value::is_null) {
                return false;
            }
            drop_nulls_in(inner, value);
            true
        }),
        Value::Array(items) => {
            let inner = schema.and_then(|schema| schema.get("items"));
            items.iter_mut().for_each(|item| drop_nulls_in(inner, item));
        }
        _ => {}
    }
}

/// Sets what has a default and is absent, or null where it may not be.
pub(super) fn apply_defaults(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            set_fields(schema, fields);
            for (name, value) in fields.iter_mut() {
                if let Some(Some(inner)) = of_field(schema, name) {
                    replace_null(inner, value);
                    apply_defaults(inner, value);
                }
            }
        }
        Value::Array(items) => {
            if let Some(inner) = schema.get("items") {
                for item in items {
                    replace_null(inner, item);
                    apply_defaults(inner, item);
                }
            }
        }
        _ => {}
    }
}

fn set_fields(schema: &Value, fields: &mut Map<String, Value>) {
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, property) in properties.into_iter().flatten() {
        let Some(default) = property.get("default").filter(|d| !d.is_null()) else {
            continue;
        };
        let unset = fields
            .get(name)
            .is_none_or(|value| is_unwanted_null(value, Some(property)));
        if unset {
            fields.insert(name.clone(), default.clone());
        }
    }
}

fn replace_null(schema: &Value, value: &mut Value) {
    if is_unwanted_null(value, Some(schema))
        && let Some(default) = schema.get("default")
    {
        value.clone_from(default);
    }
}

/// Checks the types of the object's metadata and of that of embedded resources.
pub(super) fn conform_metadata(schema: &Value, document: &mut Value) -> Result<(), String> {
    visit_metadata(schema, document, true, &mut Vec::new())
}

fn visit_metadata<'a>(
    schema: &'a Value,
    value: &mut Value,
    resource: bool,
    path: &mut Vec<&'a str>,
) -> Result<(), String> {
    match value {
        Value::Object(fields) => {
            if resource
                && let (Some(meta), Some(metadata)) = (&*OBJECT_META, fields.get_mut("metadata"))
            {
                let at: Vec<&str> = path.iter().copied().chain(["metadata"]).collect();
                meta.conform_at(metadata, &at)?;
            }
            for (name, value) in fields.iter_mut() {
                let named = schema.get("properties").and_then(Value::as_object);
                let key = named.and_then(|p| p.get_key_value(name));
                let (shown, inner) = match (key, of_field(schema, name)) {
                    (Some((name, inner)), _) => (name.as_str(), inner),
                    (None, Some(Some(inner))) => ("*", inner),
                    _ => continue,
                };
                path.push(shown);
                visit_metadata(inner, value, embeds(inner), path)?;
                path.pop();
            }
        }
        Value::Array(items) => {
            if let Some(inner) = schema.get("items") {
                for item in items {
                    visit_metadata(inner, item, embeds(inner), path)?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nulls_and_defaults() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "string", "default": "x"},
            "b": {"type": "string", "nullable": true, "default": "x"},
            "c": {"type": "string"},
            "d": {"type": "object", "additionalProperties": {"type": "integer", "default": 1}},
            "e": {"type": "array", "items": {"type": "object", "properties": {"f": {"type": "boolean", "default": true}}}},
            "g": {"type": "object", "default": {}, "properties": {"h": {"type": "integer", "default": 2}}},
        }});
        #[rustfmt::skip]
        let table = [
            (json!({}), json!({"a": "x", "b": "x", "g": {"h": 2}})),
            (json!({"a": "", "b": null, "c": null}), json!({"a": "", "b": null, "g": {"h": 2}})),
            (json!({"a": null, "d": {"k": null}, "e": [{}], "g": null}),
                json!({"a": "x", "b": "x", "d": {"k": 1}, "e": [{"f": true}], "g": {"h": 2}})),
        ];
        for (mut given, expected) in table {
            drop_nulls(&schema, &mut given);
            apply_defaults(&schema, &mut given);
            assert_eq!(given, expected);
        }
    }

    #[test]
    fn keeping_what_is_unknown_ends_at_known_fields() {
        let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
            "known": {"type": "object", "properties": {"a": {"type": "string"}}},
            "list": {"type": "array", "items": {"type": "object"}},
            "open": {"type": "object", "additionalProperties": true},
        }});
        let mut value = json!({"x": {"y": 1}, "known": {"a": "", "b": 1}, "list": [{"z": 1}], "open": {"k": {"l": 1}, "m": 1}});
        let unknown = prune(&schema, &mut value, false);
        assert_eq!(unknown, ["known.b", "list[0].z", "open.k.l"]);
        assert_eq!(
            value,
            json!({"x": {"y": 1}, "known": {"a": ""}, "list": [{}], "open": {"k": {}, "m": 1}})
        );
    }

    #[test]
    fn embedded_metadata_is_checked() {
        let schema = json!({"type": "object", "properties": {"t": {"type": "object",
            "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}});
        let mut value = json!({"t": {"metadata": {"labels": {"a": 1}}}});
        let error = conform_metadata(&schema, &mut value).unwrap_err();
        assert!(
            error.contains("ObjectMeta.t.metadata.labels of type string"),
            "{error}"
        );
    }
}
