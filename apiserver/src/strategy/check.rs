//! Small readers and checks that validation over JSON documents is written with.
//!
//! Readers give the zero value for what is absent, as Go's structs do: validation runs on documents whose types the
//! schema has already checked.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use serde_json::Value;

pub const IMMUTABLE: &str = "field is immutable";
pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub const POSITIVE: &str = "must be greater than zero";

#[must_use]
pub fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[must_use]
pub fn list<'a>(object: &'a Value, key: &str) -> &'a [Value] {
    object
        .get(key)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

#[must_use]
pub fn integer(object: &Value, key: &str) -> Option<i64> {
    object.get(key).and_then(Value::as_i64)
}

#[must_use]
pub fn flag(object: &Value, key: &str) -> bool {
    object.get(key).and_then(Value::as_bool).unwrap_or_default()
}

/// The entries of a map; none when it is absent.
pub fn entries<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    object
        .get(key)
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(k, v)| (k.as_str(), v))
}

/// A field that is present and not null.
#[must_use]
pub fn given<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|v| !v.is_null())
}

/// Mutable access without creating anything.
pub fn list_mut<'a>(object: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    object
        .get_mut(key)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

/// Sets a field that is absent, null or the empty string.
pub fn set_default(object: &mut Value, key: &str, value: impl Into<Value>) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    let slot = map.entry(key).or_insert(Value::Null);
    if slot.is_null() || slot.as_str() == Some("") {
        *slot = value.into();
    }
}

/// Equality as Kubernetes' semantic comparison has it: absent, null and empty are the same.
#[must_use]
pub fn same(a: &Value, b: &Value) -> bool {
    fn empty(v: &Value) -> bool {
        match v {
            Value::Null => true,
            Value::String(s) => s.is_empty(),
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.values().all(empty),
            Value::Bool(b) => !b,
            Value::Number(_) => false,
        }
    }
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter()
                .all(|(k, v)| y.get(k).map_or_else(|| empty(v), |w| same(v, w)))
                && y.iter().all(|(k, w)| x.contains_key(k) || empty(w))
        }
        (Value::Array(x), Value::Array(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|(v, w)| same(v, w))
        }
        _ => a == b || (empty(a) && empty(b)),
    }
}

/// Field errors in the making.
#[derive(Default)]
pub struct Checks(pub Vec<Error>);

impl Checks {
    #[must_use]
    pub fn done(self) -> ErrorList {
        ErrorList(self.0)
    }

    pub fn push(&mut self, error: Error) {
        self.0.push(error);
    }

    pub fn add(&mut self, errors: ErrorList) {
        self.0.extend(errors.0);
    }

    pub fn invalid(&mut self, path: &Path, value: impl Into<Value>, why: &str) {
        self.push(Error::invalid(path, value, why));
    }

    pub fn required(&mut self, path: &Path, why: &str) {
        self.push(Error::required(path, why));
    }

    pub fn forbidden(&mut self, path: &Path, why: &str) {
        self.push(Error::forbidden(path, why));
    }

    /// One error for each message that a name check gave.
    pub fn each(&mut self, path: &Path, value: &str, messages: Vec<String>) {
        self.0
            .extend(messages.into_iter().map(|m| Error::invalid(path, value, m)));
    }

    pub fn label(&mut self, path: &Path, value: &str) {
        self.each(path, value, names::dns1123_label(value));
    }

    pub fn subdomain(&mut self, path: &Path, value: &str) {
        self.each(path, value, names::dns1123_subdomain(value));
    }

    pub fn qualified_name(&mut self, path: &Path, value: &str) {
        self.each(path, value, names::qualified_name(value));
    }

    /// A required enumeration.
    pub fn one_of(&mut self, path: &Path, value: &str, allowed: &[&str]) {
        if value.is_empty() {
            self.required(path, "");
        } else if !allowed.contains(&value) {
            self.push(Error::not_supported(path, value, allowed));
        }
    }

    pub fn not_negative(&mut self, object: &Value, key: &str, parent: &Path) {
        if let Some(value) = integer(object, key).filter(|v| *v < 0) {
            self.invalid(&parent.child(key), value, NOT_NEGATIVE);
        }
    }

    /// `ValidateNonnegativeQuantity`
    pub fn not_negative_quantity(&mut self, object: &Value, key: &str, parent: &Path) {
        if let Some(amount) = super::resources::quantity(object.get(key))
            && amount.is_negative()
        {
            self.invalid(&parent.child(key), amount.to_string(), NOT_NEGATIVE);
        }
    }

    pub fn port(&mut self, path: &Path, number: i64) {
        for message in names::port_number(number) {
            self.invalid(path, number, &message);
        }
    }

    /// A port of a container, by number or by name.
    pub fn port_or_name(&mut self, path: &Path, port: &Value) {
        match port {
            Value::String(name) => self.each(path, name, names::port_name(name)),
            other => self.port(path, other.as_i64().unwrap_or(0)),
        }
    }

    /// A required field that fits into a path (the kind or name of a reference).
    pub fn segment(&mut self, object: &Value, key: &str, parent: &Path) {
        let path = parent.child(key);
        match text(object, key) {
            "" => self.required(&path, ""),
            name => self.each(&path, name, names::path_segment(name)),
        }
    }

    /// A non-negative number, or a percentage (`ValidatePositiveIntOrPercent`).
    pub fn amount_or_percent(&mut self, path: &Path, value: &Value) {
        match value {
            Value::String(share) => self.each(path, share, names::percent(share)),
            other => {
                let number = other.as_i64().unwrap_or(0);
                if number < 0 {
                    self.invalid(path, number, NOT_NEGATIVE);
                }
            }
        }
    }

    /// At most everything (`IsNotMoreThan100Percent`).
    pub fn at_most_all(&mut self, path: &Path, value: &Value) {
        let share = value.as_str().and_then(|s| s.strip_suffix('%'));
        if share
            .and_then(|s| s.parse::<i64>().ok())
            .is_some_and(|s| s > 100)
        {
            self.invalid(path, value.clone(), "must not be greater than 100%");
        }
    }

    /// `metav1.Condition`s (`ValidateConditions`).
    pub fn conditions(&mut self, conditions: &[Value], path: &Path) {
        const LONGEST_REASON: usize = 1024;
        const LONGEST_MESSAGE: usize = 32 * 1024;
        for (i, condition) in conditions.iter().enumerate() {
            let path = path.index(i);
            let kind = text(condition, "type");
            if conditions[..i].iter().any(|c| text(c, "type") == kind) {
                self.push(Error::duplicate(&path.child("type"), kind));
            }
            self.qualified_name(&path.child("type"), kind);
            let status = text(condition, "status");
            if !["True", "False", "Unknown"].contains(&status) {
                let path = path.child("status");
                self.push(Error::not_supported(
                    &path,
                    status,
                    &["False", "True", "Unknown"],
                ));
            }
            let at = path.child("observedGeneration");
            if let Some(value) = integer(condition, "observedGeneration").filter(|v| *v < 0) {
                self.invalid(&at, value, "must be greater than or equal to zero");
            }
            if given(condition, "lastTransitionTime").is_none() {
                self.required(&path.child("lastTransitionTime"), "");
            }
            let (reason, at) = (text(condition, "reason"), path.child("reason"));
            if reason.is_empty() {
                self.required(&at, "");
            } else {
                self.each(&at, reason, condition_reason(reason));
                if reason.len() > LONGEST_REASON {
                    self.push(Error::too_long(&at, LONGEST_REASON));
                }
            }
            if text(condition, "message").len() > LONGEST_MESSAGE {
                self.push(Error::too_long(&path.child("message"), LONGEST_MESSAGE));
            }
        }
    }

    pub fn immutable(&mut self, path: &Path, new: &Value, old: &Value) {
        if !same(new, old) {
            self.invalid(path, new.clone(), IMMUTABLE);
        }
    }

    /// Labels: names and values (`ValidateLabels`).
    pub fn labels(&mut self, object: &Value, key: &str, parent: &Path) {
        for (name, value) in entries(object, key) {
            let path = parent.child(key);
            self.qualified_name(&path, name);
            let value = value.as_str().unwrap_or_default();
            self.each(&path, value, names::label_value(value));
        }
    }

    /// Annotations: names, and 256 KiB in total.
    pub fn annotations(&mut self, object: &Value, parent: &Path) {
        const LIMIT: usize = 256 * 1024;
        let mut size = 0;
        for (name, value) in entries(object, "annotations") {
            let path = parent.child("annotations");
            self.qualified_name(&path, &name.to_lowercase());
            size += name.len() + value.as_str().map_or(0, str::len);
        }
        if size > LIMIT {
            self.push(Error::too_long(&parent.child("annotations"), LIMIT));
        }
    }

    /// A LabelSelector in its structured form (`ValidateLabelSelector`).
    pub fn label_selector(&mut self, selector: &Value, path: &Path) {
        self.labels(selector, "matchLabels", path);
        for (i, requirement) in list(selector, "matchExpressions").iter().enumerate() {
            let path = path.child("matchExpressions").index(i);
            let values = list(requirement, "values");
            match text(requirement, "operator") {
                "In" | "NotIn" if values.is_empty() => {
                    self.required(
                        &path.child("values"),
                        "must be specified when `operator` is 'In' or 'NotIn'",
                    );
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    self.forbidden(
                        &path.child("values"),
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    );
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
                other => self.invalid(
                    &path.child("operator"),
                    other,
                    "not a valid selector operator",
                ),
            }
            self.qualified_name(&path.child("key"), text(requirement, "key"));
            for (i, value) in values.iter().enumerate() {
                let value = value.as_str().unwrap_or_default();
                self.each(
                    &path.child("values").index(i),
                    value,
                    names::label_value(value),
                );
            }
        }
    }
}

fn condition_reason(reason: &str) -> Vec<String> {
    let bytes = reason.as_bytes();
    let word = |c: &u8| c.is_ascii_alphanumeric() || *c == b'_';
    let inner = |c: &u8| word(c) || matches!(c, b',' | b':');
    let sound = bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.iter().all(inner)
        && bytes.last().is_some_and(word);
    if sound {
        return Vec::new();
    }
    let message = "a condition reason must start with alphabetic character, optionally followed by a string of \
        alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'";
    let pattern = "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?";
    let examples = [
        "my_name",
        "MY_NAME",
        "MyName",
        "ReasonA,ReasonB",
        "ReasonA:ReasonB",
    ];
    vec![names::pattern_error(message, pattern, &examples)]
}

/// An IntOrString as a share of `total`, percentages rounded up or down.
#[must_use]
pub fn scaled(value: &Value, total: i64, up: bool) -> i64 {
    match value {
        Value::Number(n) => n.as_i64().unwrap_or_default(),
        Value::String(s) => {
            let share = s
                .strip_suffix('%')
                .and_then(|p| p.parse::<i64>().ok())
                .unwrap_or_default()
                * total;
            if up {
                (share + 99).div_euclid(100)
            } else {
                share.div_euclid(100)
            }
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sameness_ignores_what_go_does_not_store() {
        for (a, b, want) in [
            (
                json!({"a": 1}),
                json!({"a": 1, "b": null, "c": [], "d": {}, "e": ""}),
                true,
            ),
            (json!({"a": 1}), json!({"a": 2}), false),
            (json!([{"a": false}]), json!([{}]), true),
            (json!([1]), json!([1, 2]), false),
            (json!({"a": 0}), json!({}), false),
        ] {
            assert_eq!(same(&a, &b), want, "{a} {b}");
        }
    }

    #[test]
    fn selectors_are_checked_field_by_field() {
        let mut checks = Checks::default();
        let selector = json!({
            "matchLabels": {"app": "a b"},
            "matchExpressions": [{"key": "k", "operator": "In"}, {"key": "k", "operator": "Exists", "values": ["x"]}, {"key": "k", "operator": "Eq"}],
        });
        checks.label_selector(&selector, &Path::new("spec").child("selector"));
        let fields: Vec<String> = checks.done().0.iter().map(|e| e.field.clone()).collect();
        assert_eq!(
            fields,
            [
                "spec.selector.matchLabels",
                "spec.selector.matchExpressions[0].values",
                "spec.selector.matchExpressions[1].values",
                "spec.selector.matchExpressions[2].operator"
            ]
        );
    }

    #[test]
    fn shares_round_as_asked() {
        assert_eq!(scaled(&json!("25%"), 10, true), 3);
        assert_eq!(scaled(&json!("25%"), 10, false), 2);
        assert_eq!(scaled(&json!(4), 10, true), 4);
    }
}
