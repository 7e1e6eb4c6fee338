//! The rules of structural schemas: every field has its type outside of logical junctors, so that pruning and
//! defaulting know what they walk.

use apimachinery::field::{Error, ErrorList, Path};
use serde_json::{Value, json};

use super::definition::{Condition, schema_of, versions};
use crate::strategy::check::{flag, list, text};

/// The condition that tells what keeps schemas from being structural.
pub const NON_STRUCTURAL: &str = "NonStructuralSchema";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What keeps a schema from being structural, sorted.
#[must_use]
pub fn validate(schema: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    invariants(schema, Level::Root, path, &mut errors);
    complete(schema, schema, path, path, &mut errors);
    errors.sort_by_cached_key(ToString::to_string);
    errors
}

/// The condition of a definition from before schemas had to be structural; `None` if its schemas are.
#[must_use]
pub fn condition(definition: &Value) -> Option<Condition> {
    let mut errors = ErrorList::new();
    let spec = Path::new("spec");
    if flag(&definition["spec"], "preserveUnknownFields") {
        let at = spec.child("preserveUnknownFields");
        errors.push(Error::invalid(&at, true, "must be false"));
    }
    for (index, version) in versions(definition).iter().enumerate() {
        if let Some(schema) = schema_of(version) {
            let at = spec.child("versions").index(index);
            let at = at.child("schema").child("openAPIV3Schema");
            errors.append(validate(schema, &at));
        }
    }
    (!errors.is_empty())
        .then(|| Condition::new(NON_STRUCTURAL, true, "Violations", errors.to_string()))
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.into_iter().flatten()
}

fn object<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    schema.get(name).filter(|inner| inner.is_object())
}

fn invariants(schema: &Value, level: Level, path: &Path, errors: &mut ErrorList) {
    if text(schema, "type") == "array" && object(schema, "items").is_none() {
        errors.push(Error::required(&path.child("items"), "must be specified"));
    }
    if let Some(items) = object(schema, "items") {
        invariants(items, Level::Item, &path.child("items"), errors);
    }
    for (name, property) in properties(schema) {
        let at = path.child("properties").key(name);
        invariants(property, Level::Field, &at, errors);
    }
    if let Some(values) = schema.get("additionalProperties").filter(|v| !v.is_null()) {
        let at = path.child("additionalProperties");
        if level == Level::Root {
            errors.push(Error::forbidden(&at, "must not be used at the root"));
        }
        if values.is_object() {
            invariants(values, Level::Field, &at, errors);
        }
    }
    extensions(schema, path, errors);
    let either = json!([{"type": "integer"}, {"type": "string"}]);
    let skip_any = schema.get("anyOf") == Some(&either);
    let skip_first = list(schema, "allOf")
        .first()
        .is_some_and(|first| first.get("anyOf") == Some(&either));
    junctors(schema, skip_any, skip_first, path, errors);
    types(schema, level, path, errors);
}

fn extensions(schema: &Value, path: &Path, errors: &mut ErrorList) {
    if !flag(schema, "x-kubernetes-int-or-string") {
        return;
    }
    for name in [
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-embedded-resource",
    ] {
        if flag(schema, name) {
            let why = "must be false if x-kubernetes-int-or-string is true";
            errors.push(Error::invalid(&path.child(name), true, why));
        }
    }
}

fn types(schema: &Value, level: Level, path: &Path, errors: &mut ErrorList) {
    let kind = text(schema, "type");
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    let keeps = flag(schema, "x-kubernetes-preserve-unknown-fields");
    let at = path.child("type");
    if embedded && kind != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(match kind {
            "" => Error::required(&at, why),
            kind => Error::invalid(&at, kind, why),
        });
    } else if kind.is_empty() && !flag(schema, "x-kubernetes-int-or-string") && !keeps {
        let what = match level {
            Level::Root => "at the root",
            Level::Item => "for specified array items",
            Level::Field => "for specified object fields",
        };
        errors.push(Error::required(&at, format!("must not be empty {what}")));
    }
    if embedded
        && schema
            .get("additionalProperties")
            .is_some_and(|v| !v.is_null())
    {
        let why = "must not be used if x-kubernetes-embedded-resource is set";
        errors.push(Error::forbidden(&path.child("additionalProperties"), why));
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.push(Error::invalid(&at, kind, "must be object at the root"));
    }
    if level == Level::Root || embedded {
        for name in ["kind", "apiVersion"] {
            let property = schema.get("properties").and_then(|p| p.get(name));
            if let Some(kind) = property
                .map(|p| text(p, "type"))
                .filter(|kind| *kind != "string")
            {
                let at = path.child("properties").key(name).child("type");
                errors.push(Error::invalid(&at, kind, "must be string"));
            }
        }
    }
    if let Some(metadata) = schema.get("properties").and_then(|p| p.get("metadata")) {
        let at = path.child("properties").key("metadata");
        if (level == Level::Root || embedded) && text(metadata, "type") != "object" {
            let at = at.child("type");
            errors.push(Error::invalid(
                &at,
                text(metadata, "type"),
                "must be object",
            ));
        }
        if level == Level::Root && !names_only(metadata) {
            let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
            errors.push(Error::forbidden(&at, why));
        }
    }
    if embedded && !keeps && properties(schema).next().is_none() {
        let why = "must not be empty if x-kubernetes-embedded-resource is true without \
                   x-kubernetes-preserve-unknown-fields";
        errors.push(Error::required(&path.child("properties"), why));
    }
}

/// Metadata may be restricted in its names, nothing else.
fn names_only(metadata: &Value) -> bool {
    let fields = metadata.as_object();
    let only = |name: &String| matches!(name.as_str(), "type" | "properties" | "default");
    fields.is_some_and(|fields| fields.keys().all(only))
        && properties(metadata).all(|(name, _)| matches!(name.as_str(), "name" | "generateName"))
}

fn junctors(schema: &Value, skip_any: bool, skip_first: bool, path: &Path, errors: &mut ErrorList) {
    if !skip_any {
        for (index, inner) in list(schema, "anyOf").iter().enumerate() {
            nested(inner, false, &path.child("anyOf").index(index), errors);
        }
    }
    for (index, inner) in list(schema, "allOf").iter().enumerate() {
        nested(
            inner,
            skip_first && index == 0,
            &path.child("allOf").index(index),
            errors,
        );
    }
    for (index, inner) in list(schema, "oneOf").iter().enumerate() {
        nested(inner, false, &path.child("oneOf").index(index), errors);
    }
    if let Some(inner) = object(schema, "not") {
        nested(inner, false, &path.child("not"), errors);
    }
    let pattern = text(schema, "pattern");
    if let Err(error) = regex::Regex::new(pattern) {
        let why = format!("must be a valid regular expression, but isn't: {error}");
        errors.push(Error::invalid(&path.child("pattern"), pattern, why));
    }
}

/// Below a junctor, only values may be restricted.
fn nested(schema: &Value, skip_any: bool, path: &Path, errors: &mut ErrorList) {
    junctors(schema, skip_any, false, path, errors);
    if let Some(items) = object(schema, "items") {
        nested(items, false, &path.child("items"), errors);
    }
    for (name, property) in properties(schema) {
        nested(property, false, &path.child("properties").key(name), errors);
    }
    let is_set = |name: &str| match schema.get(name) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(_) => true,
    };
    const FORBIDDEN: [(&str, &str); 13] = [
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("nullable", "must be false to be structural"),
        (
            "x-kubernetes-preserve-unknown-fields",
            "must be false to be structural",
        ),
        (
            "x-kubernetes-embedded-resource",
            "must be false to be structural",
        ),
        (
            "x-kubernetes-int-or-string",
            "must be false to be structural",
        ),
        (
            "x-kubernetes-list-map-keys",
            "must be empty to be structural",
        ),
        (
            "x-kubernetes-list-type",
            "must be undefined to be structural",
        ),
        (
            "x-kubernetes-map-type",
            "must be undefined to be structural",
        ),
        ("x-kubernetes-validations", "must be empty to be structural"),
    ];
    for (name, why) in FORBIDDEN {
        if is_set(name) {
            errors.push(Error::forbidden(&path.child(name), why));
        }
    }
    if schema
        .get("properties")
        .is_some_and(|p| p.get("metadata").is_some())
    {
        let at = path.child("properties").key("metadata");
        errors.push(Error::forbidden(
            &at,
            "must not be specified in a nested context",
        ));
    }
}

/// Whatever a junctor at the root restricts must exist outside of it.
fn complete(
    restricting: &Value,
    structure: &Value,
    structure_path: &Path,
    path: &Path,
    errors: &mut ErrorList,
) {
    let mut below = |inner: &Value, path: Path| {
        complete_nested(inner, Some(structure), structure_path, &path, errors);
    };
    if let Some(not) = object(restricting, "not") {
        below(not, path.child("not"));
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        for (index, inner) in list(restricting, name).iter().enumerate() {
            below(inner, path.child(name).index(index));
        }
    }
}

fn complete_nested(
    restricting: &Value,
    structure: Option<&Value>,
    structure_path: &Path,
    path: &Path,
    errors: &mut ErrorList,
) {
    let Some(structure) = structure else {
        let why = format!("because it is defined in {path}");
        errors.push(Error::required(structure_path, why));
        return;
    };
    complete(restricting, structure, structure_path, path, errors);
    if let Some(items) = object(restricting, "items") {
        let (at, path) = (structure_path.child("items"), path.child("items"));
        complete_nested(items, object(structure, "items"), &at, &path, errors);
    }
    for (name, property) in properties(restricting) {
        let at = structure_path.child("properties").key(name);
        let path = path.child("properties").key(name);
        let inner = structure.get("properties").and_then(|p| p.get(name));
        complete_nested(property, inner, &at, &path, errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(schema: &Value) -> Vec<String> {
        let errors = validate(schema, &Path::new("s"));
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn structural_ones_pass() {
        let good = json!({"type": "object", "properties": {
            "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}},
            "spec": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"x-kubernetes-int-or-string": true,
                "anyOf": [{"type": "integer"}, {"type": "string"}]}, "c": {"x-kubernetes-preserve-unknown-fields": true}},
                "oneOf": [{"required": ["a"]}, {"properties": {"b": {"minimum": 1}}}]},
            "list": {"type": "array", "items": {"type": "object", "additionalProperties": {"type": "string"}}},
        }});
        assert_eq!(errors(&good), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_structural() {
        let field = |schema: Value| json!({"type": "object", "properties": {"f": schema}});
        #[rustfmt::skip]
        let table = [
            (json!({}), "s.type: Required value: must not be empty at the root"),
            (json!({"type": "array", "items": {"type": "string"}}), "s.type: Invalid value: \"array\": must be object at the root"),
            (field(json!({})), "s.properties[f].type: Required value: must not be empty for specified object fields"),
            (field(json!({"type": "array"})), "s.properties[f].items: Required value: must be specified"),
            (field(json!({"type": "string", "pattern": "("})), "s.properties[f].pattern: Invalid value: \"(\": must be a valid"),
            (field(json!({"type": "object", "x-kubernetes-embedded-resource": true})), "s.properties[f].properties: Required value: must not be empty if"),
            (field(json!({"type": "object", "anyOf": [{"type": "object"}]})), "s.properties[f].anyOf[0].type: Forbidden: must be empty to be structural"),
            (json!({"type": "object", "not": {"properties": {"x": {}}}}), "s.properties[x]: Required value: because it is defined in s.not.properties[x]"),
            (json!({"type": "object", "properties": {"metadata": {"type": "object", "minProperties": 1}}}), "s.properties[metadata]: Forbidden: must not specify anything"),
            (json!({"type": "object", "additionalProperties": true}), "s.additionalProperties: Forbidden: must not be used at the root"),
        ];
        for (schema, expected) in table {
            let errors = errors(&schema);
            assert!(
                errors.iter().any(|e| e.starts_with(expected)),
                "{schema}: {errors:?}"
            );
        }
    }
}
