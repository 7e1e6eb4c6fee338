//! The strategy of a custom resource: what its definition says, applied where a built-in kind has code.

use std::sync::Arc;

use apimachinery::field::{Error, ErrorList, Kind, Path};
use apimachinery::resource::ScalePaths;
use apimachinery::{names, object, validation};
use serde_json::Value;

use super::value::{self, Patterns};
use super::{lists, rules};
use crate::strategy::{Context, Strategy, common};

/// One version of a custom resource.
pub struct CustomResource {
    pub schema: Arc<Value>,
    pub patterns: Patterns,
    pub rules: Option<rules::Rules>,
    pub has_status: bool,
    pub scale: Option<ScalePaths>,
}

impl CustomResource {
    #[must_use]
    pub fn new(schema: Arc<Value>, has_status: bool, scale: Option<ScalePaths>) -> Self {
        Self {
            patterns: Patterns::of(&schema),
            rules: rules::Rules::compile(&schema),
            schema,
            has_status,
            scale,
        }
    }

    fn check(&self, object: &Value, old: Option<&Value>) -> ErrorList {
        let root = Path::root();
        let mut errors = value::validate(&self.patterns, &self.schema, &root, object, old);
        errors.append(self.check_scale(object, true));
        errors.append(embedded(&self.schema, object));
        let had_errors = old.is_some_and(|old| !lists::validate(&self.schema, old).is_empty());
        if !had_errors {
            errors.append(lists::validate(&self.schema, object));
        }
        self.check_rules(object, old, &mut errors);
        errors
    }

    /// The rules make sense only of objects that fit the schema.
    fn check_rules(&self, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        let Some(rules) = &self.rules else { return };
        let blocks = |error: &Error| {
            matches!(
                error.kind,
                Kind::NotSupported
                    | Kind::Required
                    | Kind::TooLong
                    | Kind::TooMany
                    | Kind::TypeInvalid
            )
        };
        if errors.iter().any(blocks) {
            let why = "some validation rules were not checked because the object was invalid; correct the existing \
                       errors to complete validation";
            errors.push(Error::invalid(&Path::root(), Value::Null, why));
            return;
        }
        errors.append(rules.validate(&self.schema, object, old));
    }

    fn check_scale(&self, object: &Value, spec: bool) -> ErrorList {
        let mut errors = ErrorList::new();
        let Some(scale) = &self.scale else {
            return errors;
        };
        let mut replicas = |path: &[String]| {
            let at = Path::new(format!(".{}", path.join(".")));
            match nested(object, path) {
                None => {}
                Some(Value::Number(n)) if n.as_i64().is_some() => {
                    let count = n.as_i64().unwrap_or_default();
                    if count < 0 {
                        errors.push(Error::invalid(
                            &at,
                            count,
                            "should be a non-negative integer",
                        ));
                    } else if count > i64::from(i32::MAX) {
                        let why = "should be less than or equal to 2147483647";
                        errors.push(Error::invalid(&at, count, why));
                    }
                }
                Some(other) => {
                    let why = format!(
                        ".{} accessor error: {other} is of the wrong type, expected int64",
                        path.join(".")
                    );
                    errors.push(Error::invalid(&at, 0, why));
                }
            }
        };
        if spec {
            replicas(&scale.spec_replicas);
        }
        replicas(&scale.status_replicas);
        if let Some(path) = &scale.selector
            && let Some(value) = nested(object, path).filter(|value| !value.is_string())
        {
            let at = Path::new(format!(".{}", path.join(".")));
            let why = format!(
                ".{} accessor error: {value} is of the wrong type, expected string",
                path.join(".")
            );
            errors.push(Error::invalid(&at, "", why));
        }
        errors
    }
}

/// What is at a path, if anything.
#[must_use]
pub fn nested<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, name| value.get(name))
}

/// Resources inside the object must name their kind and have sound metadata.
fn embedded(schema: &Value, object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    visit_embedded(schema, object, &Path::root(), &mut errors);
    errors
}

fn visit_embedded(schema: &Value, value: &Value, path: &Path, errors: &mut ErrorList) {
    match value {
        Value::Object(fields) => {
            if schema.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true)) {
                check_embedded(value, path, errors);
            }
            let properties = schema.get("properties");
            let values = schema.get("additionalProperties").filter(|v| v.is_object());
            for (name, value) in fields {
                if let Some(inner) = properties.and_then(|p| p.get(name)) {
                    visit_embedded(inner, value, &path.child(name), errors);
                } else if let Some(inner) = values {
                    visit_embedded(inner, value, &path.key(name), errors);
                }
            }
        }
        Value::Array(items) => {
            if let Some(inner) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    visit_embedded(inner, item, &path.index(index), errors);
                }
            }
        }
        _ => {}
    }
}

pub(super) fn check_embedded(value: &Value, path: &Path, errors: &mut ErrorList) {
    for field in ["apiVersion", "kind"] {
        let at = path.child(field);
        match value.get(field) {
            None => errors.push(Error::required(&at, "")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(Error::invalid(&at, "", "must not be empty"));
            }
            Some(Value::String(text)) if field == "apiVersion" => {
                if text.matches('/').count() > 1 {
                    let why = format!("unexpected GroupVersion string: {text}");
                    errors.push(Error::invalid(&at, text.as_str(), why));
                }
            }
            Some(Value::String(text)) => {
                let wrong = names::dns1035_label(&text.to_lowercase());
                if !wrong.is_empty() {
                    let why = format!(
                        "may have mixed case, but should otherwise match: {}",
                        wrong.join(",")
                    );
                    errors.push(Error::invalid(&at, text.as_str(), why));
                }
            }
            Some(other) => errors.push(Error::invalid(&at, other.clone(), "must be a string")),
        }
    }
    if value.get("metadata").is_some_and(Value::is_object) {
        let mut named = value.clone();
        if object::name(&named).is_empty() {
            object::set_name(&mut named, "fakename");
        }
        let namespaced = !object::namespace(&named).is_empty();
        for mut error in validation::object_meta(&named, namespaced, names::path_segment) {
            error.field = path.child(&error.field).to_string();
            errors.push(error);
        }
    }
}

impl Strategy for CustomResource {
    fn prepare_for_create(&self, _context: &Context<'_>, object: &mut Value) {
        if self.has_status
            && let Some(fields) = object.as_object_mut()
        {
            fields.remove("status");
        }
    }

    fn prepare_for_update(&self, _context: &Context<'_>, object: &mut Value, old: &Value) {
        if self.has_status {
            common::copy(object, old, "status");
        }
    }

    /// Metadata stays as it was, unlike with most built-in kinds.
    fn prepare_for_status_update(&self, _context: &Context<'_>, object: &mut Value, old: &Value) {
        let status = object.get_mut("status").map(Value::take);
        let managers = object["metadata"]["managedFields"].take();
        object.clone_from(old);
        if !managers.is_null() {
            object::set_metadata(object, "managedFields", managers);
        }
        if let Some(fields) = object.as_object_mut() {
            match status {
                Some(status) => fields.insert("status".into(), status),
                None => fields.remove("status"),
            };
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        self.check(object, None)
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        self.check(object, Some(old))
    }

    fn validate_status_update(
        &self,
        _context: &Context<'_>,
        object: &Value,
        old: &Value,
    ) -> ErrorList {
        let mut errors = ErrorList::new();
        let schema = self.schema.get("properties").and_then(|p| p.get("status"));
        if let (Some(schema), Some(status)) = (schema, object.get("status")) {
            let path = Path::new("status");
            let old = old.get("status");
            errors.append(value::validate(&self.patterns, schema, &path, status, old));
        }
        errors.append(self.check_scale(object, false));
        if lists::validate(&self.schema, old).is_empty() {
            errors.append(lists::validate(&self.schema, object));
        }
        self.check_rules(object, Some(old), &mut errors);
        errors
    }

    fn warnings(&self, _context: &Context<'_>, object: &Value) -> Vec<String> {
        const STANDARD: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];
        let plain = |name: &&str| !name.contains('/') && !STANDARD.contains(name);
        let shown = object::finalizers(object).filter(plain).map(|name| {
            let path = if name.contains('.') { " including a path (/)" } else { "" };
            format!(
                "metadata.finalizers: {name:?}: prefer a domain-qualified finalizer name{path} to avoid accidental \
                 conflicts with other finalizer writers"
            )
        });
        shown.collect()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn has_generation(&self, _context: &Context<'_>) -> bool {
        true
    }

    /// Without a status subresource, a changed status is a change like any other.
    fn is_new_generation(&self, object: &Value, old: &Value) -> bool {
        let counts = |key: &&String| *key != "metadata" && !(self.has_status && *key == "status");
        let (Some(object), Some(old)) = (object.as_object(), old.as_object()) else {
            return false;
        };
        object
            .keys()
            .filter(counts)
            .any(|key| object.get(key) != old.get(key))
            || old
                .keys()
                .filter(counts)
                .any(|key| !object.contains_key(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn widget(has_status: bool) -> CustomResource {
        let schema = json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
            "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "text": {"type": "string"}}},
        }});
        let path = |text: &str| super::super::definition::path(text);
        let scale = ScalePaths {
            spec_replicas: path(".spec.replicas"),
            status_replicas: path(".status.replicas"),
            selector: None,
        };
        CustomResource::new(schema.into(), has_status, Some(scale))
    }

    fn context(resource: &apimachinery::resource::Resource) -> Context<'_> {
        Context {
            resource,
            subresource: "",
            namespace: "",
            user: None,
        }
    }

    #[test]
    fn generations_follow_the_status_subresource() {
        let resource = &*apimachinery::resource::builtin()[0];
        let context = context(resource);
        let old =
            json!({"metadata": {"labels": {}}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
        let mut new = old.clone();
        new["metadata"]["labels"]["a"] = json!("b");
        new["status"]["replicas"] = json!(2);
        for (has_status, expected) in [(true, false), (false, true)] {
            let widget = widget(has_status);
            let mut new = new.clone();
            widget.prepare_for_update(&context, &mut new, &old);
            assert_eq!(widget.is_new_generation(&new, &old), expected);
        }
        let mut new =
            json!({"metadata": {"labels": {"x": "y"}}, "spec": {}, "status": {"replicas": 7}});
        widget(true).prepare_for_status_update(&context, &mut new, &old);
        assert_eq!(new["spec"], old["spec"]);
        assert_eq!(new["metadata"], old["metadata"]);
        assert_eq!(new["status"]["replicas"], 7);
    }

    #[test]
    fn replicas_are_bounded() {
        let widget = widget(true);
        for (count, sound) in [(0, true), (-1, false), (1_i64 << 32, false)] {
            let errors = widget.check(&json!({"spec": {"replicas": count}}), None);
            assert_eq!(errors.is_empty(), sound, "{count}: {errors}");
        }
    }

    #[test]
    fn embedded_resources_are_whole() {
        let schema = json!({"properties": {"t": {"x-kubernetes-embedded-resource": true}}});
        let errors = embedded(
            &schema,
            &json!({"t": {"kind": "a b", "metadata": {"name": "x/y"}}}),
        );
        let fields: Vec<&str> = errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(fields, ["t.apiVersion", "t.kind", "t.metadata.name"]);
    }
}
