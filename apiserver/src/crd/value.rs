//! Validation of a value against an OpenAPI schema, in the words of Kubernetes' validator.

use std::collections::HashMap;

use apimachinery::field::{Error, ErrorList, Path};
use regex::Regex;
use serde_json::Value;

use super::formats;
use super::lists;

/// A schema's patterns, compiled once.
#[derive(Debug, Default)]
pub struct Patterns(HashMap<String, Regex>);

impl Patterns {
    /// Of a schema and all that is in it. Patterns that do not compile match nothing.
    #[must_use]
    pub fn of(schema: &Value) -> Self {
        let mut patterns = Self::default();
        patterns.collect(schema);
        patterns
    }

    fn collect(&mut self, value: &Value) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(pattern)) = fields.get("pattern")
                    && let Ok(regex) = Regex::new(pattern)
                {
                    self.0.insert(pattern.clone(), regex);
                }
                fields.values().for_each(|value| self.collect(value));
            }
            Value::Array(items) => items.iter().for_each(|item| self.collect(item)),
            _ => {}
        }
    }
}

/// What is wrong with a value. `old` is what it was before an update: what did not change is not held against it.
#[must_use]
pub fn validate(
    patterns: &Patterns,
    schema: &Value,
    base: &Path,
    value: &Value,
    old: Option<&Value>,
) -> ErrorList {
    let validator = Validator { patterns, base };
    validator.visit(schema, value, old, "").errors
}

/// The outcome of a schema: its errors, and how many checks applied. The latter tells which of several alternatives
/// was meant.
#[derive(Default)]
struct Outcome {
    errors: ErrorList,
    checks: usize,
}

impl Outcome {
    fn merge(&mut self, other: Outcome) {
        self.errors.append(other.errors);
        self.checks += other.checks;
    }

    fn is_valid(&self) -> bool {
        self.errors.is_empty()
    }
}

struct Validator<'a> {
    patterns: &'a Patterns,
    base: &'a Path,
}

fn integer(schema: &Value, name: &str) -> Option<i64> {
    schema.get(name).and_then(Value::as_i64)
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// `spec.parts[0]` and a name below it.
fn below(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        _ => format!("{path}.{name}"),
    }
}

impl Validator<'_> {
    fn path(&self, relative: &str) -> Path {
        match relative {
            "" => self.base.clone(),
            _ => self.base.child(relative),
        }
    }

    fn visit(&self, schema: &Value, value: &Value, old: Option<&Value>, path: &str) -> Outcome {
        let mut outcome = Outcome::default();
        self.check_type(schema, value, path, &mut outcome);
        if !value.is_null() {
            self.check_alternatives(schema, value, old, path, &mut outcome);
            match value {
                Value::String(text) => self.check_text(schema, text, path, &mut outcome),
                Value::Number(_) => self.check_number(schema, value, path, &mut outcome),
                Value::Array(items) => self.check_items(schema, items, old, path, &mut outcome),
                Value::Object(_) => self.check_fields(schema, value, old, path, &mut outcome),
                _ => {}
            }
        }
        self.check_enum(schema, value, path, &mut outcome);
        if !outcome.is_valid() && old == Some(value) {
            outcome.errors = ErrorList::new();
        }
        outcome
    }

    fn check_type(&self, schema: &Value, value: &Value, path: &str, outcome: &mut Outcome) {
        let either = schema.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
        let wanted = match schema.get("type").and_then(Value::as_str) {
            _ if either => "integer,string",
            None | Some("") => return,
            Some(wanted) => wanted,
        };
        outcome.checks += 1;
        let found = kind_of(value);
        let fits = match found {
            "null" => schema.get("nullable") == Some(&Value::Bool(true)),
            "integer" => either || matches!(wanted, "integer" | "number"),
            "number" => {
                wanted == "number"
                    || (either || wanted == "integer")
                        && value.as_f64().is_some_and(|n| n.fract() == 0.0)
            }
            found => wanted == found || either && found == "string",
        };
        if !fits {
            let why = format!("{path} in body must be of type {wanted}: {found:?}");
            outcome
                .errors
                .push(Error::type_invalid(&self.path(path), found, why));
        }
    }

    fn check_alternatives(
        &self,
        schema: &Value,
        value: &Value,
        old: Option<&Value>,
        path: &str,
        outcome: &mut Outcome,
    ) {
        let of = |name: &str| schema.get(name).and_then(Value::as_array);
        let try_all = |schemas: &Vec<Value>| -> Vec<Outcome> {
            schemas
                .iter()
                .map(|s| self.visit(s, value, old, path))
                .collect()
        };
        let refuse = |outcome: &mut Outcome, why: String| {
            outcome.errors.push(Error::invalid(self.base, "", why));
        };
        if let Some(schemas) = of("anyOf").filter(|s| !s.is_empty()) {
            let tried = try_all(schemas);
            if !tried.iter().any(Outcome::is_valid) {
                let why = format!("{path:?} must validate at least one schema (anyOf)");
                refuse(outcome, why);
                outcome.merge(closest(tried));
            }
        }
        if let Some(schemas) = of("oneOf").filter(|s| !s.is_empty()) {
            let tried = try_all(schemas);
            let valid = tried.iter().filter(|t| t.is_valid()).count();
            if valid != 1 {
                let found = match valid {
                    0 => "Found none valid".to_owned(),
                    n => format!("Found {n} valid alternatives"),
                };
                let why =
                    format!("{path:?} must validate one and only one schema (oneOf). {found}");
                refuse(outcome, why);
                if valid == 0 {
                    outcome.merge(closest(tried));
                }
            }
        }
        if let Some(schemas) = of("allOf").filter(|s| !s.is_empty()) {
            let tried = try_all(schemas);
            let valid = tried.iter().filter(|t| t.is_valid()).count();
            let total = tried.len();
            tried.into_iter().for_each(|t| outcome.merge(t));
            if valid != total {
                let none = if valid == 0 { ". None validated" } else { "" };
                refuse(
                    outcome,
                    format!("{path:?} must validate all the schemas (allOf){none}"),
                );
            }
        }
        if let Some(not) = schema.get("not").filter(|not| not.is_object())
            && self.visit(not, value, None, path).is_valid()
        {
            refuse(
                outcome,
                format!("{path:?} must not validate the schema (not)"),
            );
        }
        outcome.checks += 1;
    }

    fn check_text(&self, schema: &Value, text: &str, path: &str, outcome: &mut Outcome) {
        outcome.checks += 1;
        let at = self.path(path);
        let length = || i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
        if let Some(most) = integer(schema, "maxLength")
            && length() > most
        {
            outcome
                .errors
                .push(Error::too_long(&at, usize::try_from(most).unwrap_or(0)));
        }
        if let Some(least) = integer(schema, "minLength")
            && length() < least
        {
            let why = format!("{path} in body should be at least {least} chars long");
            outcome.errors.push(Error::invalid(&at, text, why));
        }
        if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
            && !pattern.is_empty()
            && !self
                .patterns
                .0
                .get(pattern)
                .is_some_and(|regex| regex.is_match(text))
        {
            let why = format!("{path} in body should match '{pattern}'");
            outcome.errors.push(Error::invalid(&at, text, why));
        }
        let format = schema.get("format").and_then(Value::as_str);
        let textual = matches!(
            schema.get("type").and_then(Value::as_str),
            None | Some("" | "string")
        );
        if let Some(format) = format.filter(|_| textual)
            && !formats::matches(format, text)
        {
            let why = format!("{path} in body must be of type {format}: {text:?}");
            outcome.errors.push(Error::type_invalid(&at, text, why));
        }
    }

    fn check_number(&self, schema: &Value, value: &Value, path: &str, outcome: &mut Outcome) {
        outcome.checks += 1;
        let at = self.path(path);
        let kind = schema
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let format = schema
            .get("format")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let in_range = match (kind, format) {
            ("integer", "int32") => value
                .as_f64()
                .is_some_and(|n| n >= f64::from(i32::MIN) && n <= f64::from(i32::MAX)),
            ("integer", _) => value.as_i64().is_some() || value.is_f64(),
            ("number", "float") => value
                .as_f64()
                .is_some_and(|n| n.abs() <= f64::from(f32::MAX)),
            _ => true,
        };
        if !in_range {
            let format = match format {
                "" => "(default format)".to_owned(),
                format => format!("with format {format}"),
            };
            let why = format!("Checked value must be of type {kind} {format} in {path}");
            outcome.errors.push(Error::invalid(self.base, "", why));
        }
        let number = value.as_f64().unwrap_or_default();
        let mut bound =
            |name: &str, exclusive: &str, over: fn(f64, f64) -> bool, words: [&str; 2]| {
                let Some(limit) = schema.get(name).and_then(Value::as_f64) else {
                    return;
                };
                let strict = schema.get(exclusive) == Some(&Value::Bool(true));
                if over(number, limit) || (strict && number == limit) {
                    let why = format!(
                        "{path} in body should be {} {limit}",
                        words[usize::from(strict)]
                    );
                    outcome.errors.push(Error::invalid(&at, value.clone(), why));
                }
            };
        let multiple = schema.get("multipleOf").and_then(Value::as_f64);
        bound(
            "maximum",
            "exclusiveMaximum",
            |n, limit| n > limit,
            ["less than or equal to", "less than"],
        );
        bound(
            "minimum",
            "exclusiveMinimum",
            |n, limit| n < limit,
            ["greater than or equal to", "greater than"],
        );
        if let Some(factor) = multiple
            && !is_multiple(value, factor)
        {
            let why = format!("{path} in body should be a multiple of {factor}");
            outcome.errors.push(Error::invalid(&at, value.clone(), why));
        }
    }

    fn check_items(
        &self,
        schema: &Value,
        items: &[Value],
        old: Option<&Value>,
        path: &str,
        outcome: &mut Outcome,
    ) {
        outcome.checks += 1;
        if let Some(inner) = schema.get("items").filter(|inner| inner.is_object()) {
            for (index, item) in items.iter().enumerate() {
                let old = old.and_then(|old| correlated(schema, old, item));
                outcome.merge(self.visit(inner, item, old, &format!("{path}[{index}]")));
            }
        }
        let (at, size) = (self.path(path), items.len());
        if let Some(least) = integer(schema, "minItems").and_then(|n| usize::try_from(n).ok())
            && size < least
        {
            let why = format!("{path} in body should have at least {least} items");
            outcome.errors.push(Error::invalid(&at, size, why));
        }
        if let Some(most) = integer(schema, "maxItems").and_then(|n| usize::try_from(n).ok())
            && size > most
        {
            outcome.errors.push(Error::too_many(&at, size, most));
        }
    }

    fn check_fields(
        &self,
        schema: &Value,
        value: &Value,
        old: Option<&Value>,
        path: &str,
        outcome: &mut Outcome,
    ) {
        outcome.checks += 1;
        let Some(fields) = value.as_object() else {
            return;
        };
        let (at, size) = (self.path(path), fields.len());
        if let Some(least) = integer(schema, "minProperties").and_then(|n| usize::try_from(n).ok())
            && size < least
        {
            let why = format!("{path} in body should have at least {least} properties");
            outcome.errors.push(Error::invalid(&at, size, why));
        }
        if let Some(most) = integer(schema, "maxProperties").and_then(|n| usize::try_from(n).ok())
            && size > most
        {
            outcome.errors.push(Error::too_many(&at, size, most));
        }
        let properties = schema.get("properties");
        let additional = schema.get("additionalProperties");
        for (name, value) in fields {
            let inner = match properties.and_then(|p| p.get(name)) {
                Some(inner) => inner,
                None => match additional {
                    Some(Value::Bool(false)) => {
                        let why = format!("{path}.{name} in body is a forbidden property");
                        outcome.errors.push(Error::invalid(&at, name.as_str(), why));
                        continue;
                    }
                    Some(inner @ Value::Object(_)) => inner,
                    _ => continue,
                },
            };
            let old = old.and_then(|old| old.get(name));
            outcome.merge(self.visit(inner, value, old, &below(path, name)));
        }
        let required = schema.get("required").and_then(Value::as_array);
        for name in required.into_iter().flatten().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                let at = self.path(&below(path, name));
                outcome.errors.push(Error::required(&at, ""));
            }
        }
    }

    fn check_enum(&self, schema: &Value, value: &Value, path: &str, outcome: &mut Outcome) {
        let Some(allowed) = schema.get("enum").and_then(Value::as_array) else {
            return;
        };
        outcome.checks += 1;
        let same = |other: &Value| {
            other == value
                || value.is_number() && other.is_number() && value.as_f64() == other.as_f64()
        };
        if !allowed.iter().any(same) {
            let shown: Vec<String> = allowed
                .iter()
                .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
                .collect();
            let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
            outcome.errors.push(Error::not_supported(
                &self.path(path),
                value.clone(),
                &shown,
            ));
        }
    }
}

/// The alternative that got furthest.
fn closest(tried: Vec<Outcome>) -> Outcome {
    let mut best = Outcome::default();
    let mut first = true;
    for outcome in tried {
        if std::mem::take(&mut first) || outcome.checks > best.checks {
            best = outcome;
        }
    }
    best
}

fn is_multiple(value: &Value, factor: f64) -> bool {
    if factor <= 0.0 {
        return false;
    }
    if let (Some(number), true) = (value.as_i64(), factor.fract() == 0.0) {
        return number % (factor as i64) == 0;
    }
    let number = value.as_f64().unwrap_or_default();
    let times = if factor < 1.0 {
        number * (1.0 / factor)
    } else {
        number / factor
    };
    (times - times.round()).abs() < 1e-9
}

/// The item of an old list that is the same one: only lists that are maps can tell.
pub(super) fn correlated<'a>(schema: &Value, old: &'a Value, item: &Value) -> Option<&'a Value> {
    if schema.get("x-kubernetes-list-type").and_then(Value::as_str) != Some("map") {
        return None;
    }
    let key = lists::key(schema, item);
    old.as_array()?
        .iter()
        .find(|old| lists::key(schema, old) == key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(schema: &Value, value: &Value, old: Option<&Value>) -> Vec<String> {
        let patterns = Patterns::of(schema);
        let errors = validate(&patterns, schema, &Path::root(), value, old);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn words() {
        let spec = |schema: Value| json!({"type": "object", "properties": {"spec": schema}});
        #[rustfmt::skip]
        let table = [
            (json!({"type": "integer"}), json!("x"), r#"spec: Invalid value: "string": spec in body must be of type integer: "string""#),
            (json!({"type": "integer"}), json!(1.5), r#"spec: Invalid value: "number": spec in body must be of type integer: "number""#),
            (json!({"type": "integer"}), json!(1.0), ""),
            (json!({"type": "string"}), Value::Null, r#"spec: Invalid value: "null": spec in body must be of type string: "null""#),
            (json!({"type": "string", "nullable": true}), Value::Null, ""),
            (json!({"x-kubernetes-int-or-string": true}), json!(1), ""),
            (json!({"x-kubernetes-int-or-string": true}), json!(true), r#"spec: Invalid value: "boolean": spec in body must be of type integer,string: "boolean""#),
            (json!({"type": "string", "maxLength": 2}), json!("abc"), "spec: Too long: may not be more than 2 bytes"),
            (json!({"type": "string", "minLength": 2}), json!("é"), r#"spec: Invalid value: "é": spec in body should be at least 2 chars long"#),
            (json!({"type": "string", "pattern": "^a+$"}), json!("ab"), r#"spec: Invalid value: "ab": spec in body should match '^a+$'"#),
            (json!({"type": "string", "format": "ipv4"}), json!("ab"), r#"spec: Invalid value: "ab": spec in body must be of type ipv4: "ab""#),
            (json!({"type": "string", "enum": ["a", "b"]}), json!("c"), r#"spec: Unsupported value: "c": supported values: "a", "b""#),
            (json!({"type": "integer", "minimum": 1, "exclusiveMinimum": true}), json!(1), "spec: Invalid value: 1: spec in body should be greater than 1"),
            (json!({"type": "number", "maximum": 1.5}), json!(2), "spec: Invalid value: 2: spec in body should be less than or equal to 1.5"),
            (json!({"type": "integer", "multipleOf": 2}), json!(3), "spec: Invalid value: 3: spec in body should be a multiple of 2"),
            (json!({"type": "array", "maxItems": 1}), json!([1, 2]), "spec: Too many: 2: must have at most 1 item"),
            (json!({"type": "array", "minItems": 1}), json!([]), "spec: Invalid value: 0: spec in body should have at least 1 items"),
            (json!({"type": "array", "items": {"type": "object", "required": ["name"]}}), json!([{}]), "spec[0].name: Required value"),
            (json!({"type": "object", "additionalProperties": {"type": "integer"}}), json!({"a": "x"}), r#"spec.a: Invalid value: "string": spec.a in body must be of type integer: "string""#),
            (json!({"type": "integer", "format": "int32"}), json!(3_000_000_000_u64), r#"<nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec"#),
            (json!({"type": "integer", "not": {"enum": [3]}}), json!(3), r#"<nil>: Invalid value: "": "spec" must not validate the schema (not)"#),
        ];
        for (schema, value, expected) in table {
            let shown = errors(&spec(schema.clone()), &json!({"spec": value}), None).join("; ");
            assert_eq!(shown, expected, "{schema}");
        }
    }

    #[test]
    fn alternatives_show_the_closest() {
        let schema = json!({"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]});
        let both = errors(&schema, &json!({"a": 1, "b": 1}), None);
        assert_eq!(
            both,
            [
                r#"<nil>: Invalid value: "": "" must validate one and only one schema (oneOf). Found 2 valid alternatives"#
            ]
        );
        assert_eq!(errors(&schema, &json!({}), None).len(), 2);
        assert!(errors(&schema, &json!({"a": 1}), None).is_empty());
    }

    #[test]
    fn what_was_wrong_may_stay_wrong() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "string", "maxLength": 1}, "b": {"type": "string"},
            "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "string", "maxLength": 1}}}}}});
        let old = json!({"a": "long", "b": "x", "list": [{"k": "1", "v": "long"}]});
        let new = json!({"a": "long", "b": "y", "list": [{"k": "0", "v": "long"}, {"k": "1", "v": "long"}]});
        assert_eq!(errors(&schema, &old, None).len(), 2);
        assert_eq!(
            errors(&schema, &new, Some(&old)),
            ["list[0].v: Too long: may not be more than 1 byte"]
        );
    }
}
