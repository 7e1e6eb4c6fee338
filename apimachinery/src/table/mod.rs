//! Server-side tables (`meta.k8s.io/v1` Table): the columns that `kubectl get` shows, for every kind.
//!
//! A built-in kind has a [`Printer`]: its columns and a function from an object to its cells, the same as Kubernetes'
//! printers give. All cells are always made; a client hides those of columns with a priority unless asked for `-o
//! wide`. The files follow what the kinds are about. Kinds without a printer show their name and creation time;
//! custom resources have columns of their own ([`json_path`]).

mod cluster;
mod core;
mod json_path;
mod network;
mod pods;
mod workloads;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::resource::{Column, Resource, Text};
use crate::selector::LabelSelector;
use crate::{object, time};

/// What a row carries of its object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Include {
    None,
    /// The object's metadata, as a PartialObjectMetadata.
    #[default]
    Metadata,
    Object,
}

impl Include {
    /// Reads the `includeObject` query parameter.
    pub fn parse(text: &str) -> Option<Include> {
        match text {
            "" | "Metadata" => Some(Include::Metadata),
            "None" => Some(Include::None),
            "Object" => Some(Include::Object),
            _ => None,
        }
    }
}

/// From an object, and the time that it is, to its cells.
type Cells = fn(&Value, Timestamp) -> Vec<Value>;

/// How a built-in kind is printed. A column's name ends in `#` for integers, in `?` for booleans, and in `+` if it is
/// shown only with `-o wide`.
struct Printer {
    columns: &'static [&'static str],
    cells: Cells,
}

fn printer(group: &str, kind: &str) -> Option<Printer> {
    pods::printer(group, kind)
        .or_else(|| core::printer(group, kind))
        .or_else(|| workloads::printer(group, kind))
        .or_else(|| network::printer(group, kind))
        .or_else(|| cluster::printer(group, kind))
}

/// The columns of a built-in kind.
pub(crate) fn builtin_columns(group: &str, kind: &str) -> Vec<Column> {
    match printer(group, kind) {
        Some(printer) => printer.columns.iter().map(|c| column(c)).collect(),
        None => vec![column("Name"), column("Created At")],
    }
}

fn column(spec: &'static str) -> Column {
    let name = spec.trim_end_matches(['#', '?', '+']);
    let kind = match spec {
        _ if spec.contains('#') => "integer",
        _ if spec.contains('?') => "boolean",
        _ => "string",
    };
    Column {
        name: name.into(),
        kind: kind.into(),
        format: if name == "Name" {
            "name".into()
        } else {
            Text::default()
        },
        priority: i32::from(spec.ends_with('+')),
        ..Column::default()
    }
}

/// The cells of an object's row, one for each of the resource's columns.
pub fn cells(resource: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    if resource.columns.iter().any(|c| !c.json_path.is_empty()) {
        return resource
            .columns
            .iter()
            .map(|c| json_path::cell(c, object, now))
            .collect();
    }
    match printer(&resource.group, &resource.kind) {
        Some(printer) => (printer.cells)(object, now),
        None => {
            let created = object::creation_timestamp(object).unwrap_or_default();
            vec![object::name(object).into(), created.into()]
        }
    }
}

/// One row of a table.
pub fn row(resource: &Resource, object: &Value, include: Include, now: Timestamp) -> Value {
    let mut row = json!({"cells": cells(resource, object, now)});
    row["object"] = match include {
        Include::None => Value::Null,
        Include::Object => object.clone(),
        Include::Metadata => {
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"]})
        }
    };
    if resource.kind == "Pod" {
        let message = match text(object, "/status/phase") {
            "Succeeded" => "The pod has completed successfully.",
            "Failed" => "The pod failed.",
            _ => return row,
        };
        row["conditions"] = json!([{"type": "Completed", "status": "True", "message": message,
            "reason": text(object, "/status/phase")}]);
    }
    row
}

/// A whole table. `metadata` is that of the list, or of the one object. A watch sends the columns in its first event
/// only.
pub fn table(resource: &Resource, rows: Vec<Value>, metadata: Value, with_columns: bool) -> Value {
    let columns: Vec<Value> = if with_columns {
        resource.columns.iter().map(definition).collect()
    } else {
        Vec::new()
    };
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": columns, "rows": rows})
}

fn definition(column: &Column) -> Value {
    json!({"name": column.name, "type": column.kind, "format": column.format, "description": column.description,
        "priority": column.priority})
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The text there, or `instead` if there is none.
fn text_or<'a>(object: &'a Value, pointer: &str, instead: &'a str) -> &'a str {
    match text(object, pointer) {
        "" => instead,
        text => text,
    }
}

/// Absent counts as zero, as it does in Kubernetes' own types.
fn int(object: &Value, pointer: &str) -> i64 {
    object
        .pointer(pointer)
        .and_then(Value::as_i64)
        .unwrap_or_default()
}

fn flag(object: &Value, pointer: &str) -> bool {
    object
        .pointer(pointer)
        .and_then(Value::as_bool)
        .unwrap_or_default()
}

fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// How many items or entries are there.
fn count(object: &Value, pointer: &str) -> usize {
    match object.pointer(pointer) {
        Some(Value::Array(items)) => items.len(),
        Some(Value::Object(entries)) => entries.len(),
        _ => 0,
    }
}

fn joined(object: &Value, pointer: &str, separator: &str) -> String {
    list(object, pointer)
        .iter()
        .filter_map(Value::as_str)
        .collect::<Vec<_>>()
        .join(separator)
}

fn name(object: &Value) -> Value {
    object::name(object).into()
}

fn age(object: &Value, now: Timestamp) -> Value {
    time::age(object::creation_timestamp(object), now).into()
}

fn age_at(object: &Value, pointer: &str, now: Timestamp) -> String {
    time::age(object.pointer(pointer).and_then(Value::as_str), now)
}

/// An int-or-string as text.
fn int_or_string(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The names and the images of the containers of a pod spec.
fn containers(object: &Value, pod_spec: &str) -> [Value; 2] {
    let all = list(object, &format!("{pod_spec}/containers"));
    let column = |field: &str| {
        all.iter()
            .map(|c| c[field].as_str().unwrap_or_default())
            .collect::<Vec<_>>()
            .join(",")
    };
    [column("name").into(), column("image").into()]
}

/// A structured label selector as text.
fn selector(object: &Value, pointer: &str) -> String {
    let text = LabelSelector::from_value(object.pointer(pointer).unwrap_or(&Value::Null))
        .map(|s| s.to_string());
    match text.as_deref() {
        Ok("") => "<none>".into(),
        Ok(text) => text.into(),
        Err(_) => "<error>".into(),
    }
}

/// A map of labels as text.
fn labels(object: &Value, pointer: &str) -> String {
    match object.pointer(pointer).and_then(Value::as_object) {
        Some(map) if !map.is_empty() => {
            let pairs = map
                .iter()
                .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()));
            pairs.collect::<Vec<_>>().join(",")
        }
        _ => "<none>".into(),
    }
}

/// The first few of a list, and how many more there are.
fn abridged(items: &[String], most: usize, separator: &str) -> String {
    let shown = items[..items.len().min(most)].join(separator);
    match items.len() > most {
        true => format!("{shown} + {} more...", items.len() - most),
        false => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::builtin;

    #[test]
    fn every_kind_fills_its_columns() {
        let objects = [
            json!({}),
            json!({"metadata": {"name": "a"}, "spec": {}, "status": {}}),
        ];
        for resource in builtin() {
            for object in &objects {
                let cells = cells(resource, object, Timestamp::UNIX_EPOCH);
                assert_eq!(
                    cells.len(),
                    resource.columns.len(),
                    "{}",
                    resource.group_version_kind()
                );
            }
            for (column, cell) in
                resource
                    .columns
                    .iter()
                    .zip(cells(resource, &objects[1], Timestamp::UNIX_EPOCH))
            {
                let fits = match &*column.kind {
                    "integer" => cell.is_i64(),
                    "boolean" => cell.is_boolean(),
                    // The DATA of a ConfigMap is a number, as in Kubernetes.
                    _ => cell.is_string() || cell.is_number(),
                };
                assert!(fits, "{} {}: {cell}", resource.kind, column.name);
            }
        }
    }

    #[test]
    fn tables_and_rows() {
        let roles = builtin().iter().find(|r| r.kind == "Role").unwrap();
        let role = json!({"metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"}, "rules": []});
        let row = row(roles, &role, Include::Metadata, Timestamp::UNIX_EPOCH);
        assert_eq!(row["cells"], json!(["a", "2026-01-01T00:00:00Z"]));
        assert_eq!(row["object"]["kind"], "PartialObjectMetadata");
        assert_eq!(row["object"].get("rules"), None);
        let table = table(roles, vec![row], json!({"resourceVersion": "5"}), true);
        assert_eq!(table["columnDefinitions"][1]["name"], "Created At");
        assert_eq!(table["columnDefinitions"][0]["format"], "name");
        assert_eq!(table["metadata"]["resourceVersion"], "5");
    }

    #[test]
    fn finished_pods_are_marked() {
        let pods = builtin().iter().find(|r| r.kind == "Pod").unwrap();
        let row = row(
            pods,
            &json!({"status": {"phase": "Succeeded"}}),
            Include::None,
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(row["conditions"][0]["type"], "Completed");
    }
}
