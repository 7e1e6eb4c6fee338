//! Defaults must be values that the schema itself accepts.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::schema::Schema;
use serde_json::Value;

use super::value::{self, Patterns};
use crate::strategy::check::flag;

/// Errors of the defaults in a schema.
#[must_use]
pub fn validate(schema: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    visit(&Patterns::of(schema), schema, path, &mut errors);
    errors
}

fn visit(patterns: &Patterns, schema: &Value, path: &Path, errors: &mut ErrorList) {
    if let Some(default) = schema.get("default").filter(|d| !d.is_null()) {
        let at = path.child("default");
        if is_pruned(schema, default) {
            errors.append(value::validate(patterns, schema, &at, default, None));
        } else {
            let why = "must not have unknown fields";
            errors.push(Error::invalid(&at, default.clone(), why));
        }
    }
    if let Some(items) = schema.get("items").filter(|items| items.is_object()) {
        visit(patterns, items, &path.child("items"), errors);
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, property) in properties.into_iter().flatten() {
        visit(
            patterns,
            property,
            &path.child("properties").key(name),
            errors,
        );
    }
}

/// Whether nothing would be pruned from a default.
fn is_pruned(schema: &Value, default: &Value) -> bool {
    if !default.is_object() && !default.is_array() {
        return true;
    }
    let mut pruned = default.clone();
    Schema::prune_value(
        schema,
        &mut pruned,
        flag(schema, "x-kubernetes-embedded-resource"),
    )
    .is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_fit_their_schema() {
        let with = |default: Value| {
            json!({"type": "object", "properties": {"a": {"type": "object", "default": default,
                "properties": {"n": {"type": "integer", "minimum": 1}}}}})
        };
        let errors = |default: Value| validate(&with(default), &Path::new("s")).to_string();
        assert_eq!(errors(json!({"n": 1})), ErrorList::new().to_string());
        assert_eq!(
            errors(json!({"x": 1})),
            "s.properties[a].default: Invalid value: {\"x\":1}: must not have unknown fields"
        );
        assert_eq!(
            errors(json!({"n": 0})),
            "s.properties[a].default.n: Invalid value: 0: n in body should be greater than or equal to 1"
        );
    }
}
