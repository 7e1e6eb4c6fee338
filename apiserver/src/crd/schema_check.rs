//! What an OpenAPI schema in a definition may say, besides being structural.

use apimachinery::field::{Error, ErrorList, Path};
use serde_json::Value;

use crate::strategy::check::{flag, list, text};

const TYPES: [&str; 7] = [
    "array", "boolean", "integer", "null", "number", "object", "string",
];
const REASONS: [&str; 4] = [
    "FieldValueDuplicate",
    "FieldValueForbidden",
    "FieldValueInvalid",
    "FieldValueRequired",
];
/// With a status subresource, the status is validated by its own part of the schema: nothing at the root may be lost.
const AT_ROOT: [&str; 22] = [
    "description",
    "type",
    "format",
    "title",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "required",
    "items",
    "properties",
    "externalDocs",
    "example",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];

/// Where in a schema one is.
#[derive(Clone, Copy, Default)]
struct Place<'a> {
    root: bool,
    /// Inside the type or metadata of a resource.
    in_meta: bool,
    /// Why there may be no defaults.
    no_defaults: Option<&'a str>,
}

/// Errors of a schema and all that is in it.
#[must_use]
pub fn validate(schema: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let place = Place {
        root: true,
        ..Place::default()
    };
    visit(schema, path, place, &mut errors);
    errors
}

/// Errors of the root of a schema whose resource has a status subresource.
pub fn root_with_status(schema: &Value, path: &Path, errors: &mut ErrorList) {
    let kind = text(schema, "type");
    if !kind.is_empty() && kind != "object" {
        let why = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        errors.push(Error::invalid(&path.child("type"), kind, why));
    }
    let fields = schema.as_object().into_iter().flatten();
    let set = fields.filter(|(_, value)| !value.is_null() && **value != Value::Bool(false));
    if set
        .into_iter()
        .any(|(name, _)| !AT_ROOT.contains(&name.as_str()))
    {
        let why = format!(
            "only {AT_ROOT:?} fields are allowed at the root of the schema if the status subresource is enabled"
        );
        errors.push(Error::invalid(path, schema.clone(), why));
    }
}

fn visit(schema: &Value, path: &Path, place: Place<'_>, errors: &mut ErrorList) {
    standard(schema, path, place, errors);
    if flag(schema, "uniqueItems") {
        let why =
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(Error::forbidden(&path.child("uniqueItems"), why));
    }
    let inner = Place {
        root: false,
        ..place
    };
    children(schema, path, place, inner, errors);
    for name in ["allOf", "anyOf", "oneOf"] {
        for (index, each) in list(schema, name).iter().enumerate() {
            visit(each, &path.child(name).index(index), inner, errors);
        }
    }
    for name in ["not", "items"] {
        if let Some(each) = schema.get(name).filter(|each| each.is_object()) {
            visit(each, &path.child(name), inner, errors);
        }
    }
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        let at = path.child("x-kubernetes-preserve-unknown-fields");
        errors.push(Error::invalid(&at, false, "must be true or undefined"));
    }
    map_type(schema, path, errors);
    list_type(schema, path, errors);
    rules(schema, path, errors);
}

fn children(
    schema: &Value,
    path: &Path,
    place: Place<'_>,
    inner: Place<'_>,
    errors: &mut ErrorList,
) {
    let properties = schema.get("properties").and_then(Value::as_object);
    if let Some(values) = schema.get("additionalProperties").filter(|v| !v.is_null()) {
        let at = path.child("additionalProperties");
        if properties.is_some_and(|p| !p.is_empty()) && *values != Value::Bool(true) {
            let why = "additionalProperties and properties are mutual exclusive";
            errors.push(Error::forbidden(&at, why));
        }
        if values.is_object() {
            let reason = "inside additionalProperties applying to object metadata";
            let no_defaults = if place.in_meta {
                Some(reason)
            } else {
                place.no_defaults
            };
            visit(
                values,
                &at,
                Place {
                    no_defaults,
                    ..inner
                },
                errors,
            );
        }
    }
    let resource = place.root || flag(schema, "x-kubernetes-embedded-resource");
    for (name, property) in properties.into_iter().flatten() {
        let at = path.child("properties").key(name);
        let mut inner = inner;
        let reason = format!("in top-level {name}");
        if resource && matches!(name.as_str(), "metadata" | "kind" | "apiVersion") {
            inner.in_meta = true;
            if place.root {
                inner.no_defaults = Some(&reason);
            }
        }
        visit(property, &at, inner, errors);
    }
}

fn standard(schema: &Value, path: &Path, place: Place<'_>, errors: &mut ErrorList) {
    let kind = text(schema, "type");
    if !kind.is_empty() && !TYPES.contains(&kind) {
        errors.push(Error::not_supported(&path.child("type"), kind, &TYPES));
    }
    let has_default = schema.get("default").is_some_and(|d| !d.is_null());
    if let Some(reason) = place.no_defaults.filter(|_| has_default) {
        let at = path.child("default");
        errors.push(Error::forbidden(&at, format!("must not be set {reason}")));
    }
    for name in [
        "id",
        "additionalItems",
        "patternProperties",
        "definitions",
        "dependencies",
        "$ref",
    ] {
        if schema.get(name).is_some_and(|v| !v.is_null() && *v != "") {
            let why = format!("{name} is not supported");
            errors.push(Error::forbidden(&path.child(name), why));
        }
    }
    if kind == "null" {
        let why = "type cannot be set to null, use nullable as an alternative";
        errors.push(Error::forbidden(&path.child("type"), why));
    }
    if schema.get("items").is_some_and(Value::is_array) {
        let why = "items must be a schema object and not an array";
        errors.push(Error::forbidden(&path.child("items"), why));
    }
    if place.in_meta && flag(schema, "x-kubernetes-embedded-resource") {
        let at = path.child("x-kubernetes-embedded-resource");
        errors.push(Error::forbidden(
            &at,
            "must not be used inside of resource meta",
        ));
    }
}

/// An extension that only makes sense for one type.
fn needs_type(schema: &Value, path: &Path, wanted: &str, extension: &str, errors: &mut ErrorList) {
    let kind = text(schema, "type");
    if kind != wanted {
        let why = format!("must be {wanted} if {extension} is specified");
        let at = path.child("type");
        errors.push(match kind {
            "" => Error::required(&at, why),
            kind => Error::invalid(&at, kind, why),
        });
    }
}

fn map_type(schema: &Value, path: &Path, errors: &mut ErrorList) {
    const NAME: &str = "x-kubernetes-map-type";
    let Some(kind) = schema.get(NAME).and_then(Value::as_str) else {
        return;
    };
    needs_type(schema, path, "object", NAME, errors);
    if !matches!(kind, "atomic" | "granular") {
        let accepted = ["atomic", "granular"];
        errors.push(Error::not_supported(&path.child(NAME), kind, &accepted));
    }
}

fn list_type(schema: &Value, path: &Path, errors: &mut ErrorList) {
    const NAME: &str = "x-kubernetes-list-type";
    const KEYS: &str = "x-kubernetes-list-map-keys";
    let kind = schema.get(NAME).and_then(Value::as_str);
    let keys = list(schema, KEYS);
    if !keys.is_empty() && kind != Some("map") {
        let why = "must be map if x-kubernetes-list-map-keys is non-empty";
        errors.push(match kind {
            None => Error::required(&path.child(NAME), why),
            Some(kind) => Error::invalid(&path.child(NAME), kind, why),
        });
    }
    let Some(kind) = kind else { return };
    needs_type(schema, path, "array", NAME, errors);
    let (items, at) = (&schema["items"], path.child("items"));
    match kind {
        "atomic" => return,
        "set" => {
            let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
            let inner = |name: &str| items.get(name).and_then(Value::as_str);
            if text(items, "type") == "array" && inner(NAME).is_some_and(|kind| kind != "atomic") {
                errors.push(Error::invalid(
                    &at.child(NAME),
                    inner(NAME).unwrap_or_default(),
                    why,
                ));
            }
            const MAP: &str = "x-kubernetes-map-type";
            if text(items, "type") == "object" && inner(MAP) != Some("atomic") {
                errors.push(Error::invalid(
                    &at.child(MAP),
                    inner(MAP).unwrap_or_default(),
                    why,
                ));
            }
        }
        "map" => map_keys(schema, keys, path, errors),
        other => {
            let accepted = ["atomic", "set", "map"];
            errors.push(Error::not_supported(&path.child(NAME), other, &accepted));
            return;
        }
    }
    if flag(items, "nullable") {
        let why = format!("cannot be nullable when x-kubernetes-list-type is {kind}");
        errors.push(Error::forbidden(&at.child("nullable"), why));
    }
}

fn map_keys(schema: &Value, keys: &[Value], path: &Path, errors: &mut ErrorList) {
    let (items, at) = (&schema["items"], path.child("items"));
    let keys_at = path.child("x-kubernetes-list-map-keys");
    if keys.is_empty() {
        let why = "must not be empty if x-kubernetes-list-type is map";
        errors.push(Error::required(&keys_at, why));
    }
    if !items.is_object() {
        let why = "must have a schema if x-kubernetes-list-type is map";
        errors.push(Error::required(&at, why));
        return;
    }
    if text(items, "type") != "object" {
        let why = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(Error::invalid(&at.child("type"), text(items, "type"), why));
        return;
    }
    let mut seen = Vec::new();
    for key in keys.iter().filter_map(Value::as_str) {
        let at = at.child("properties").key(key);
        let shown = Value::from(keys);
        match items.get("properties").and_then(|p| p.get(key)) {
            None => {
                let why = "entries must all be names of item properties";
                errors.push(Error::invalid(&keys_at, shown.clone(), why));
            }
            Some(property) => key_property(items, key, property, &at, errors),
        }
        if seen.contains(&key) {
            errors.push(Error::invalid(
                &keys_at,
                shown,
                "must not contain duplicate entries",
            ));
        }
        seen.push(key);
    }
}

fn key_property(items: &Value, key: &str, property: &Value, at: &Path, errors: &mut ErrorList) {
    if matches!(text(property, "type"), "array" | "object") {
        let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
        errors.push(Error::invalid(
            &at.child("type"),
            text(property, "type"),
            why,
        ));
    }
    let required = list(items, "required").iter().any(|name| name == key);
    if !required && property.get("default").is_none_or(Value::is_null) {
        let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
        errors.push(Error::required(&at.child("default"), why));
    }
    if flag(property, "nullable") {
        let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
        errors.push(Error::forbidden(&at.child("nullable"), why));
    }
}

/// The form of rules; whether they compile is another matter.
fn rules(schema: &Value, path: &Path, errors: &mut ErrorList) {
    let breaks = |text: &str| text.contains(['\n', '\r']);
    for (index, rule) in list(schema, "x-kubernetes-validations").iter().enumerate() {
        let at = path.child("x-kubernetes-validations").index(index);
        let (expression, message) = (text(rule, "rule"), text(rule, "message"));
        if expression.trim().is_empty() {
            errors.push(Error::required(&at.child("rule"), "rule is not specified"));
        } else if !message.is_empty() && message.trim().is_empty() {
            let why = "must be non-empty if specified";
            errors.push(Error::invalid(&at.child("message"), message, why));
        } else if breaks(message.trim()) {
            errors.push(Error::invalid(
                &at.child("message"),
                message,
                "must not contain line breaks",
            ));
        } else if breaks(expression.trim()) && message.is_empty() {
            let why = "message must be specified if rule contains line breaks";
            errors.push(Error::required(&at.child("message"), why));
        }
        let computed = text(rule, "messageExpression");
        if !computed.is_empty() && computed.trim().is_empty() {
            let why = "messageExpression must be non-empty if specified";
            errors.push(Error::required(&at.child("messageExpression"), why));
        }
        let reason = text(rule, "reason");
        if !reason.is_empty() && !REASONS.contains(&reason) {
            errors.push(Error::not_supported(&at.child("reason"), reason, &REASONS));
        }
        let field = text(rule, "fieldPath");
        let at = at.child("fieldPath");
        if !field.is_empty() && field.trim().is_empty() {
            errors.push(Error::invalid(&at, field, "must be non-empty if specified"));
        } else if breaks(field) {
            errors.push(Error::invalid(&at, field, "must not contain line breaks"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn messages() {
        let field = |schema: Value| json!({"type": "object", "properties": {"f": schema}});
        let map = |items: Value| {
            field(
                json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": items}),
            )
        };
        #[rustfmt::skip]
        let table = [
            (field(json!({"type": "string", "uniqueItems": true})), "s.properties[f].uniqueItems: Forbidden: uniqueItems cannot"),
            (field(json!({"$ref": "x"})), "s.properties[f].$ref: Forbidden: $ref is not supported"),
            (json!({"properties": {"kind": {"type": "string", "default": "x"}}}), "s.properties[kind].default: Forbidden: must not be set in top-level kind"),
            (field(json!({"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "string"}})), "s.properties[f].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive"),
            (field(json!({"type": "string", "x-kubernetes-map-type": "atomic"})), "s.properties[f].type: Invalid value: \"string\": must be object if"),
            (field(json!({"type": "array", "x-kubernetes-list-type": "bag"})), "s.properties[f].x-kubernetes-list-type: Unsupported value: \"bag\""),
            (map(json!({"type": "object", "properties": {"k": {"type": "string"}}})), "s.properties[f].items.properties[k].default: Required value: this property is in"),
            (map(json!({"type": "object", "properties": {"x": {"type": "string"}}})), "s.properties[f].x-kubernetes-list-map-keys: Invalid value: [\"k\"]: entries must all"),
            (field(json!({"type": "string", "x-kubernetes-validations": [{"rule": " "}]})), "s.properties[f].x-kubernetes-validations[0].rule: Required value: rule is not specified"),
        ];
        for (schema, expected) in table {
            let errors = validate(&schema, &Path::new("s"));
            assert!(
                errors.iter().any(|e| e.to_string().starts_with(expected)),
                "{schema}: {errors}"
            );
        }
        let good = map(
            json!({"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}}}),
        );
        assert!(validate(&good, &Path::new("s")).is_empty());
    }
}
