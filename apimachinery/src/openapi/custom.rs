//! The definitions of custom resources, as Kubernetes publishes them: in version 3 with all that their schemas say, in
//! version 2 with what its clients understand.

use serde_json::{Map, Value, json};

use super::{V3_REF, kind_extension};
use crate::resource::Resource;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should \
    convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer \
    this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const METADATA: &str = "Standard object's metadata. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

/// The OpenAPI version that is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

fn preserves(schema: &Value) -> bool {
    schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true))
}

fn meta(name: &str, description: &str) -> Value {
    json!({"description": description, "allOf": [{"$ref": format!("{V3_REF}{name}")}]})
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

/// The definition of a custom resource. `None` for a built-in kind.
pub(super) fn definition(r: &Resource, dialect: Dialect) -> Option<Value> {
    let schema = r.schema.open_api()?;
    // Clients of version 2 take named fields for all that there are.
    let open = schema["type"] != "object" || (dialect == Dialect::V2 && preserves(schema));
    let mut definition = if open {
        json!({"type": "object"})
    } else {
        let mut definition = schema.clone();
        match dialect {
            Dialect::V2 => simplify(&mut definition),
            Dialect::V3 => unfold(&mut definition),
        }
        embed(&mut definition, dialect);
        if !definition["properties"].is_object() {
            definition["properties"] = json!({});
        }
        let properties = &mut definition["properties"];
        properties["apiVersion"] = text(API_VERSION);
        properties["kind"] = text(KIND);
        properties["metadata"] = meta(OBJECT_META, METADATA);
        definition
    };
    definition["x-kubernetes-group-version-kind"] = kind_extension(r, &r.kind);
    Some(definition)
}

/// The definition of its list; `name` is that of the items.
pub(super) fn list(r: &Resource, name: &str) -> Value {
    let items = format!(
        "List of {}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md",
        r.plural
    );
    let standard = "Standard list metadata. More info: \
        https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
    json!({
        "description": format!("{} is a list of {}", r.list_kind, r.kind), "type": "object", "required": ["items"],
        "properties": {
            "apiVersion": text(API_VERSION), "kind": text(KIND), "metadata": meta(LIST_META, standard),
            "items": {"type": "array", "description": items,
                "items": {"allOf": [{"$ref": format!("{V3_REF}{name}")}]}},
        },
        "x-kubernetes-group-version-kind": kind_extension(r, &r.list_kind),
    })
}

fn each_inner(schema: &mut Map<String, Value>, mut visit: impl FnMut(&mut Value)) {
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(name).filter(|inner| inner.is_object()) {
            visit(inner);
        }
    }
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.values_mut().for_each(visit);
    }
}

/// Says that a number or a string may be either.
fn unfold(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    each_inner(fields, unfold);
    let either = fields.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
    if either && !fields.contains_key("anyOf") && !fields.contains_key("allOf") {
        fields.insert(
            "anyOf".into(),
            json!([{"type": "integer"}, {"type": "string"}]),
        );
    }
}

/// Drops what version 2 does not have, and the types of what its clients would misunderstand.
fn simplify(schema: &mut Value) {
    let keeps = preserves(schema);
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    for name in ["allOf", "oneOf", "anyOf", "not"] {
        fields.remove(name);
    }
    let nullable = |value: &Value| value.get("nullable") == Some(&Value::Bool(true));
    if fields.remove("nullable") == Some(Value::Bool(true)) {
        for name in ["type", "items", "properties"] {
            fields.remove(name);
        }
    }
    if keeps {
        fields.remove("items");
        fields.remove("properties");
    }
    let kind = fields
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if (kind == "array" && !fields.contains_key("items")) || (kind == "object" && keeps) {
        fields.remove("type");
    }
    let loose: Vec<String> = fields
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(_, property)| nullable(property))
        .map(|(name, _)| name.clone())
        .collect();
    let all_loose = fields.get("additionalProperties").is_some_and(nullable);
    if let Some(Value::Array(required)) = fields.get_mut("required") {
        required.retain(|name| !all_loose && !loose.iter().any(|loose| name == loose));
        if required.is_empty() {
            fields.remove("required");
        }
    }
    each_inner(fields, simplify);
}

/// Gives embedded resources the fields of every object.
fn embed(schema: &mut Value, dialect: Dialect) {
    let keeps = preserves(schema);
    let embedded = schema.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true));
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    each_inner(fields, |inner| embed(inner, dialect));
    if !embedded || (keeps && dialect == Dialect::V2) {
        return;
    }
    let properties = fields.entry("properties").or_insert_with(|| json!({}));
    properties["apiVersion"] = text(
        "apiVersion defines the versioned schema of this representation of an object. More info: \
         https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources",
    );
    properties["kind"] = text(
        "kind is a string value representing the type of this object. In CamelCase. More info: \
         https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds",
    );
    properties["metadata"] = meta(OBJECT_META, METADATA);
    let required = fields.entry("required").or_insert_with(|| json!([]));
    if let Some(required) = required.as_array_mut() {
        for name in ["kind", "apiVersion"] {
            if !required.iter().any(|r| r == name) {
                required.push(name.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::builtin;
    use crate::schema::Schema;
    use std::sync::Arc;

    fn widget(schema: &Value) -> Resource {
        let mut widget = builtin()[0].as_ref().clone();
        widget.group = "example.com".into();
        widget.kind = "Widget".into();
        widget.schema = Arc::new(Schema::from_open_api(schema));
        widget
    }

    #[test]
    fn both_dialects() {
        let schema = json!({"type": "object", "description": "d", "properties": {
            "a": {"type": "string", "nullable": true},
            "b": {"x-kubernetes-int-or-string": true},
            "c": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"x": {"type": "string"}}},
            "d": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"y": {"type": "string"}}},
            "e": {"type": "integer", "not": {"enum": [1]}},
        }, "required": ["a", "b"]});
        let two = definition(&widget(&schema), Dialect::V2).unwrap();
        assert_eq!(two["required"], json!(["b"]));
        assert_eq!(two["properties"]["a"], json!({}));
        assert_eq!(
            two["properties"]["c"],
            json!({"x-kubernetes-preserve-unknown-fields": true})
        );
        assert_eq!(two["properties"]["e"], json!({"type": "integer"}));
        assert_eq!(
            two["properties"]["d"]["required"],
            json!(["kind", "apiVersion"])
        );
        let three = definition(&widget(&schema), Dialect::V3).unwrap();
        assert_eq!(three["properties"]["a"], schema["properties"]["a"]);
        assert_eq!(
            three["properties"]["b"]["anyOf"].as_array().unwrap().len(),
            2
        );
        assert_eq!(
            three["properties"]["c"]["properties"]["x"]["type"],
            "string"
        );
        assert_eq!(three["description"], "d");
    }

    #[test]
    fn open_ones_name_no_fields_in_version_two() {
        let open = widget(&json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
        let two = definition(&open, Dialect::V2).unwrap();
        assert_eq!(two.get("properties"), None);
        let three = definition(&open, Dialect::V3).unwrap();
        assert!(three["properties"]["metadata"].is_object());
        assert_eq!(definition(&builtin()[0], Dialect::V2), None);
    }
}
