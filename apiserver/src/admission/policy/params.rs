//! The objects that a binding's `paramRef` names.

use apimachinery::resource::GroupVersion;
use apimachinery::selector::LabelSelector;
use serde_json::Value;

use super::Misconfigured;
use crate::cache::Selection;
use crate::registry::table::Served;
use crate::registry::{Registry, decode};
use crate::strategy::check::{given, text};
use std::sync::Arc;

/// `apiVersion` and `kind` of parameters.
#[derive(Debug, Clone)]
pub struct ParamKind {
    pub api_version: String,
    pub kind: String,
}

fn served(kind: &ParamKind, registry: &Registry) -> Option<Arc<Served>> {
    let version = GroupVersion::parse(&kind.api_version);
    let table = registry.table();
    table
        .all()
        .find(|served| {
            let resource = &served.resource;
            resource.group == version.group
                && resource.version == version.version
                && *resource.kind == *kind.kind
                && resource.is_stored()
        })
        .cloned()
}

pub async fn collect(
    kind: &ParamKind,
    reference: &Value,
    namespace: &str,
    registry: &Registry,
) -> Result<Vec<Option<Value>>, Misconfigured> {
    let Some(served) = served(kind, registry) else {
        return Err(format!(
            "paramKind kind `{}, Kind={}` not known",
            kind.api_version, kind.kind
        ));
    };
    let given_namespace = text(reference, "namespace");
    let namespaced = served.resource.namespaced;
    let namespace = match (namespaced, given_namespace, namespace) {
        (true, "", "") => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned(),
            );
        }
        (true, "", namespace) => namespace,
        (true, given, _) => given,
        (false, "", _) => "",
        (false, ..) => {
            return Err(
                "paramRef.namespace must not be provided for a cluster-scoped `paramKind`"
                    .to_owned(),
            );
        }
    };
    let cache = registry.cache(&served).clone();
    let reached = cache.loaded().await.map_err(|error| error.message)?;
    let found = match (text(reference, "name"), given(reference, "selector")) {
        ("", None) => return Err("one of name or selector must be provided".to_owned()),
        ("", Some(selector)) => {
            let labels = LabelSelector::from_value(selector)?;
            let selection = Selection::namespaced(namespace).with_labels(labels);
            cache.list(&selection, reached).objects
        }
        (name, _) => {
            let key = match namespace {
                "" => name.to_owned(),
                namespace => format!("{namespace}/{name}"),
            };
            cache.get(&key).into_iter().collect()
        }
    };
    if found.is_empty() && text(reference, "parameterNotFoundAction") == "Deny" {
        return Err(
            "no params found for policy binding with `Deny` parameterNotFoundAction".to_owned(),
        );
    }
    Ok(found
        .iter()
        .map(|object| match served.converts() {
            true => Some(decode::convert(object.value(), &served.resource)),
            false => Some(object.value()),
        })
        .collect())
}
