//! The strategy of CustomResourceDefinitions themselves.

use apimachinery::field::ErrorList;
use apimachinery::object;
use serde_json::{Value, json};

use super::check;
use super::definition::{self, CLEANUP, Condition};
use super::formats;
use crate::registry::Registry;
use crate::strategy::check::{list, set_default, text};
use crate::strategy::{Context, Strategy};

#[derive(Debug, Clone, Copy)]
pub struct CustomResourceDefinition;

/// Formats that nothing checks.
fn unrecognized_formats(schema: &Value, unknown: &mut Vec<String>) {
    let format = text(schema, "format");
    let known = match text(schema, "type") {
        _ if format.is_empty() => true,
        "" | "string" => formats::KNOWN.contains(&formats::normalized(format).as_str()),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    };
    if !known && !unknown.iter().any(|seen| seen == format) {
        unknown.push(format.to_owned());
    }
    definition::subschemas(schema, &mut |inner| unrecognized_formats(inner, unknown));
}

/// The storage version is one of those that objects may be stored in.
fn remember_storage_version(definition: &mut Value) {
    let Some(version) = definition::storage_version(definition).map(str::to_owned) else {
        return;
    };
    let stored = list(&definition["status"], "storedVersions");
    if stored.iter().any(|stored| *stored == version) {
        return;
    }
    let mut stored = stored.to_vec();
    stored.push(version.into());
    definition["status"]["storedVersions"] = stored.into();
}

impl Strategy for CustomResourceDefinition {
    fn default(&self, definition: &mut Value) {
        if !definition["spec"].is_object() {
            return;
        }
        let spec = &mut definition["spec"];
        let kind = text(&spec["names"], "kind").to_owned();
        if spec["names"].is_object() && !kind.is_empty() {
            set_default(&mut spec["names"], "singular", kind.to_lowercase());
            set_default(&mut spec["names"], "listKind", format!("{kind}List"));
        }
        if !spec["conversion"].is_object() {
            spec["conversion"] = json!({"strategy": "None"});
        }
        let service = spec.pointer_mut("/conversion/webhook/clientConfig/service");
        if let Some(service) = service.filter(|service| service.is_object())
            && service["port"].is_null()
        {
            service["port"] = json!(443);
        }
        // Of an object that is being stored; a new one has its status set later.
        if definition["status"]["storedVersions"]
            .as_array()
            .is_some_and(Vec::is_empty)
        {
            remember_storage_version(definition);
        }
    }

    fn prepare_for_create(&self, _context: &Context<'_>, definition: &mut Value) {
        definition["status"] = json!({});
        remember_storage_version(definition);
    }

    fn prepare_for_update(&self, _context: &Context<'_>, definition: &mut Value, old: &Value) {
        definition["status"] = old["status"].clone();
        remember_storage_version(definition);
    }

    fn validate(&self, _context: &Context<'_>, definition: &Value) -> ErrorList {
        check::validate(definition, None)
    }

    fn validate_update(
        &self,
        _context: &Context<'_>,
        definition: &Value,
        old: &Value,
    ) -> ErrorList {
        check::validate_update(definition, old)
    }

    fn validate_status_update(
        &self,
        _context: &Context<'_>,
        definition: &Value,
        _old: &Value,
    ) -> ErrorList {
        check::validate_status(definition)
    }

    fn warnings(&self, _context: &Context<'_>, definition: &Value) -> Vec<String> {
        let mut unknown = Vec::new();
        for schema in definition::versions(definition)
            .iter()
            .filter_map(definition::schema_of)
        {
            unrecognized_formats(schema, &mut unknown);
        }
        unknown
            .iter()
            .map(|format| format!("unrecognized format {format:?}"))
            .collect()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    /// A definition that is not being deleted yet has instances to go first.
    fn has_finalizers(&self, definition: &Value) -> bool {
        object::deletion_timestamp(definition).is_none()
            || object::finalizers(definition).next().is_some()
    }

    fn mark_deleting(&self, definition: &mut Value) {
        if definition::is_true(definition, "Terminating") {
            return;
        }
        if !object::finalizers(definition).any(|f| f == CLEANUP) {
            let finalizers: Vec<String> = object::finalizers(definition)
                .map(str::to_owned)
                .chain([CLEANUP.to_owned()])
                .collect();
            object::set_finalizers(definition, finalizers.iter().map(String::as_str));
        }
        let pending = Condition::new(
            "Terminating",
            true,
            "InstanceDeletionPending",
            "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
        );
        definition::set_condition(definition, &pending, Registry::now());
    }
}
