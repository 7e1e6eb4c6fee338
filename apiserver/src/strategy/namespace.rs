//! Namespaces: `spec.finalizers` holds them until their content is gone.

use serde_json::{Value, json};

use super::{Context, NameRule, Strategy, common};

#[derive(Debug, Clone, Copy)]
pub struct Namespace;

impl Namespace {
    const FINALIZER: &'static str = "kubernetes";
}

impl Strategy for Namespace {
    /// A new namespace is active, and held by the namespace controller.
    fn prepare_for_create(&self, _context: &Context<'_>, object: &mut Value) {
        object["status"] = json!({"phase": "Active"});
        let finalizers = &mut object["spec"]["finalizers"];
        if finalizers
            .as_array()
            .is_none_or(|all| !all.iter().any(|f| f == Self::FINALIZER))
        {
            match finalizers.as_array_mut() {
                Some(all) => all.push(Self::FINALIZER.into()),
                None => *finalizers = json!([Self::FINALIZER]),
            }
        }
    }

    /// Only `/finalize` changes the finalizers of the spec, and nothing else.
    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        match context.subresource {
            "finalize" => {
                let finalizers = object["spec"]["finalizers"].take();
                let metadata = object["metadata"].take();
                object.clone_from(old);
                object["metadata"] = metadata;
                object["spec"]["finalizers"] = finalizers;
                if object["spec"]["finalizers"]
                    .as_array()
                    .is_none_or(Vec::is_empty)
                {
                    object["spec"] = json!({});
                }
            }
            _ => {
                common::copy(object, old, "spec");
                common::copy(object, old, "status");
            }
        }
    }

    fn has_finalizers(&self, object: &Value) -> bool {
        apimachinery::object::finalizers(object).next().is_some()
            || object["spec"]["finalizers"]
                .as_array()
                .is_some_and(|all| !all.is_empty())
    }

    fn mark_deleting(&self, object: &mut Value) {
        object["status"]["phase"] = json!("Terminating");
        // Namespaces have no grace period.
        apimachinery::object::set_metadata(object, "deletionGracePeriodSeconds", Value::Null);
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }
}
