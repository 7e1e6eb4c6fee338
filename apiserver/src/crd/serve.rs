//! From an accepted definition to what is served: one resource for every version.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use apimachinery::resource::{Column, GroupVersionKind, Resource, ScalePaths, Subresource, Text};
use apimachinery::schema::Schema;
use serde_json::{Value, json};

use super::convert::{Family, Version};
use super::custom::CustomResource;
use super::definition::{self, path, schema_of, versions};
use super::webhook::Webhook;
use crate::fields::{Field, Fields};
use crate::registry::Registry;
use crate::registry::table::{Kept, Served};
use crate::strategy::Rules;
use crate::strategy::check::{list, text};

/// Every served version of a definition.
#[must_use]
pub fn resources(definition: &Value, registry: &Weak<Registry>) -> Vec<Arc<Served>> {
    let group = definition::group(definition);
    let api_version = |version: &Value| format!("{group}/{}", text(version, "name"));
    let schemas: HashMap<String, Arc<Schema>> = versions(definition)
        .iter()
        .map(|version| (api_version(version), Arc::new(schema(definition, version))))
        .collect();
    let stored = definition::storage_version(definition).unwrap_or_default();
    let family = Arc::new(Family {
        kind: text(&definition["spec"]["names"], "kind").to_owned(),
        stored: format!("{group}/{stored}"),
        webhook: Webhook::read(definition, registry.clone()),
        schemas,
    });
    let served = versions(definition)
        .iter()
        .filter(|version| version["served"] == true);
    let mut served: Vec<&Value> = served.collect();
    served.sort_by(|a, b| {
        apimachinery::discovery::compare_versions(text(b, "name"), text(a, "name"))
    });
    served
        .into_iter()
        .filter_map(|version| {
            let schema = family.schemas.get(&api_version(version))?.clone();
            let resource = Arc::new(resource(definition, version, schema));
            let converter = Version {
                family: family.clone(),
                api_version: api_version(version),
            };
            let kept = Kept::new(&resource, selectable(version), Some(Arc::new(converter)));
            let strategy = CustomResource::new(
                Arc::new(open_api(version)),
                resource.subresource("status").is_some(),
                resource.scale.clone(),
            );
            Some(Arc::new(Served {
                strategy: Rules::Custom(Arc::new(strategy)),
                storage: Arc::new(kept),
                deprecation: deprecation(&resource, version),
                fingerprint: fingerprint(&resource),
                resource,
            }))
        })
        .collect()
}

fn open_api(version: &Value) -> Value {
    schema_of(version).cloned().unwrap_or_else(|| json!({}))
}

fn schema(definition: &Value, version: &Value) -> Schema {
    let mut schema = open_api(version);
    // Definitions from before structural schemas keep everything.
    if schema_of(version).is_none() || definition["spec"]["preserveUnknownFields"] == true {
        schema["x-kubernetes-preserve-unknown-fields"] = true.into();
    }
    Schema::from_open_api(&schema)
}

fn owned(text: &str) -> Text {
    Text::from(text.to_owned())
}

fn texts(list: &[Value]) -> Vec<Text> {
    list.iter().filter_map(Value::as_str).map(owned).collect()
}

fn resource(definition: &Value, version: &Value, schema: Arc<Schema>) -> Resource {
    // Names that were not accepted are served by nobody.
    let names = &definition["status"]["acceptedNames"];
    let (group, name) = (definition::group(definition), text(version, "name"));
    let (plural, kind) = (text(names, "plural"), text(names, "kind"));
    let kind_of = GroupVersionKind::new(owned(group), owned(name), owned(kind));
    let scale = scale(version);
    let mut subresources = Vec::new();
    let mut add = |name: &'static str, kind: GroupVersionKind| {
        subresources.push(Subresource {
            name: name.into(),
            kind,
            verbs: ["get", "patch", "update"].map(Text::from).into(),
        });
    };
    if scale.is_some() {
        add("scale", GroupVersionKind::new("autoscaling", "v1", "Scale"));
    }
    if version["subresources"]["status"].is_object() {
        add("status", kind_of);
    }
    Resource {
        group: owned(group),
        version: owned(name),
        kind: owned(kind),
        list_kind: owned(text(names, "listKind")),
        plural: owned(plural),
        singular: owned(text(names, "singular")),
        short_names: texts(list(names, "shortNames")),
        categories: texts(list(names, "categories")),
        namespaced: definition::is_namespaced(definition),
        verbs: verbs(definition::is_true(definition, "Terminating")),
        subresources,
        storage_prefix: format!("/registry/{group}/{plural}").into(),
        storage_version: version["storage"] == true,
        columns: columns(version),
        scale,
        schema,
    }
}

fn verbs(terminating: bool) -> Vec<Text> {
    const ALL: [&str; 8] = [
        "create",
        "delete",
        "deletecollection",
        "get",
        "list",
        "patch",
        "update",
        "watch",
    ];
    let shown = ALL.iter().filter(|verb| {
        // Nothing new is made of a definition that is being deleted.
        !terminating || !matches!(**verb, "create" | "patch" | "update")
    });
    shown.map(|verb| Text::from(*verb)).collect()
}

/// The same resources, of a definition whose deletion has begun.
#[must_use]
pub fn with_verbs(resources: Vec<Arc<Served>>, terminating: bool) -> Vec<Arc<Served>> {
    let changed = resources.into_iter().map(|served| {
        let mut resource = Resource::clone(&served.resource);
        resource.verbs = verbs(terminating);
        Arc::new(Served {
            resource: Arc::new(resource),
            strategy: served.strategy.clone(),
            storage: served.storage.clone(),
            deprecation: served.deprecation.clone(),
            fingerprint: served.fingerprint.wrapping_add(1),
        })
    });
    changed.collect()
}

fn fingerprint(resource: &Resource) -> u64 {
    let schema = resource.schema.open_api().map(Value::to_string);
    let subresources: Vec<&Text> = resource.subresources.iter().map(|s| &s.name).collect();
    let text = format!(
        "{}|{}|{}|{}|{subresources:?}|{}",
        resource.group_version_kind(),
        resource.list_kind,
        resource.plural,
        resource.namespaced,
        schema.unwrap_or_default()
    );
    apimachinery::openapi::fnv(text.as_bytes())
}

fn scale(version: &Value) -> Option<ScalePaths> {
    let scale = version["subresources"]
        .get("scale")
        .filter(|s| s.is_object())?;
    let selector = text(scale, "labelSelectorPath");
    Some(ScalePaths {
        spec_replicas: path(text(scale, "specReplicasPath")),
        status_replicas: path(text(scale, "statusReplicasPath")),
        selector: (!selector.is_empty()).then(|| path(selector)),
    })
}

fn columns(version: &Value) -> Vec<Column> {
    let mut columns = vec![Column {
        name: "Name".into(),
        kind: "string".into(),
        format: "name".into(),
        json_path: ".metadata.name".into(),
        ..Column::default()
    }];
    let own = list(version, "additionalPrinterColumns");
    if own.is_empty() {
        columns.push(Column {
            name: "Age".into(),
            kind: "date".into(),
            json_path: ".metadata.creationTimestamp".into(),
            ..Column::default()
        });
    }
    for column in own {
        let path = text(column, "jsonPath");
        let description = match text(column, "description") {
            "" => format!("Custom resource definition column (in JSONPath format): {path}"),
            description => description.to_owned(),
        };
        columns.push(Column {
            name: owned(text(column, "name")),
            kind: owned(text(column, "type")),
            format: owned(text(column, "format")),
            description: description.into(),
            priority: column["priority"]
                .as_i64()
                .and_then(|p| i32::try_from(p).ok())
                .unwrap_or(0),
            json_path: owned(path),
        });
    }
    columns
}

fn selectable(version: &Value) -> Fields {
    let fields = list(version, "selectableFields").iter();
    let fields = fields.map(|field| Field::at(path(text(field, "jsonPath")).join(".")));
    fields.collect::<Vec<_>>().into()
}

/// What users of an old version are told.
fn deprecation(resource: &Resource, version: &Value) -> Option<String> {
    if version["deprecated"] != true {
        return None;
    }
    Some(match text(version, "deprecationWarning") {
        "" => format!("{} {} is deprecated", resource.api_version(), resource.kind),
        warning => warning.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_resources() {
        let names = json!({"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList", "shortNames": ["f"]});
        let definition = json!({
            "spec": {"group": "g.io", "scope": "Namespaced", "names": names, "versions": [
                {"name": "v1beta1", "served": true, "storage": false, "deprecated": true},
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}},
                    "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"}},
                    "additionalPrinterColumns": [{"name": "N", "type": "integer", "jsonPath": ".spec.n"}],
                    "selectableFields": [{"jsonPath": ".spec.color"}]},
                {"name": "v0", "served": false, "storage": false},
            ]},
            "status": {"acceptedNames": names},
        });
        let served = resources(&definition, &Weak::new());
        let versions: Vec<&str> = served.iter().map(|s| &*s.resource.version).collect();
        assert_eq!(versions, ["v1", "v1beta1"]);
        let v1 = &served[0].resource;
        assert_eq!(v1.storage_key("ns", "a"), "/registry/g.io/foos/ns/a");
        assert!(v1.subresource("status").is_some() && v1.scale.is_some() && v1.storage_version);
        assert_eq!(v1.columns.len(), 2);
        assert_eq!(served[0].storage.fields[0].name, "spec.color");
        assert_eq!(
            served[1].deprecation.as_deref(),
            Some("g.io/v1beta1 Foo is deprecated")
        );
        assert_eq!(served[1].resource.columns[1].name, "Age");
    }
}
