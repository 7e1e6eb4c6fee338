//! OpenAPI documents, v3 by group and version and v2 as a whole: what `kubectl explain`, `kubectl apply` and client
//! generators read.
//!
//! The definitions of built-in types lie compressed in the binary as JSON text. A document is put together from that
//! text when it is asked for and nothing is kept, so the caller should cache what it sends, or its ETag. Definitions
//! of custom resources are made from their schemas ([`custom`]). [`gnostic`] makes the protobuf form of either version.

mod custom;
pub mod gnostic;
mod paths;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use serde_json::{Value, json};

use crate::resource::{GroupVersionKind, Resource};
use custom::Dialect;

/// Definitions by package (`core.v1`), each a line `full name` tab `JSON`, deflated. The references in them are those
/// of OpenAPI v3.
const PACKAGES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/openapi.rs"));

const V3_REF: &str = "#/components/schemas/";
const V2_REF: &str = "#/definitions/";

/// `/openapi/v3`: where the document of each group and version is. Clients keep a document for as long as its hash
/// stays; `generation` of a group and version must change when a custom resource's schema in it does.
pub fn v3_index(resources: &[&Resource], generation: impl Fn(&str) -> u64) -> Value {
    let mut paths = serde_json::Map::new();
    let group_versions: BTreeSet<String> = resources.iter().map(|r| r.api_version()).collect();
    for group_version in group_versions {
        let generation = generation(&group_version);
        let path = if group_version.contains('/') {
            format!("apis/{group_version}")
        } else {
            format!("api/{group_version}")
        };
        let url = format!("/openapi/v3/{path}?hash={}", v3_hash(&path, generation));
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({ "paths": paths })
}

/// The hash in the index of the document at `path` below `/openapi/v3/`.
pub fn v3_hash(path: &str, generation: u64) -> String {
    let seed = format!("{}:{generation}:{path}", env!("CARGO_PKG_VERSION"));
    format!("{:016X}", fnv(seed.as_bytes()))
}

/// FNV-1a: only to tell documents apart.
pub fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| {
        (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// `/openapi/v3/apis/GROUP/VERSION` as JSON text; `None` if nothing of it is served.
pub fn v3(resources: &[&Resource], group: &str, version: &str) -> Option<String> {
    let served: Vec<&Resource> = resources
        .iter()
        .copied()
        .filter(|r| r.group == group && r.version == version)
        .collect();
    if served.is_empty() {
        return None;
    }
    let schemas = definitions(&served, Dialect::V3);
    let paths = paths::v3(&served);
    let security = json!({"BearerToken": {"type": "apiKey", "in": "header", "name": "authorization",
        "description": "Bearer Token authentication"}});
    Some(format!(
        "{{\"openapi\":\"3.0.0\",\"info\":{},\"paths\":{paths},\"components\":{{\"schemas\":{schemas},\
         \"securitySchemes\":{security}}}}}",
        info()
    ))
}

/// `/openapi/v2` as JSON text.
pub fn v2(resources: &[&Resource]) -> String {
    let definitions = to_v2(&definitions(resources, Dialect::V2));
    let paths = paths::v2(resources);
    let security = json!({"BearerToken": {"type": "apiKey", "in": "header", "name": "authorization",
        "description": "Bearer Token authentication"}});
    format!(
        "{{\"swagger\":\"2.0\",\"info\":{},\"paths\":{paths},\"definitions\":{definitions},\
         \"securityDefinitions\":{security},\"security\":[{{\"BearerToken\":[]}}]}}",
        info()
    )
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": "v1.36.2"})
}

/// Version 2 has no `allOf` around a reference beside other keywords, and no `oneOf`.
fn to_v2(definitions: &str) -> String {
    let open = format!("\"allOf\":[{{\"$ref\":\"{V3_REF}");
    let mut pieces = definitions.split(open.as_str());
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        out.push_str("\"$ref\":\"");
        out.push_str(V2_REF);
        out.push_str(&piece.replacen("\"}]", "\"", 1));
    }
    out.replace(V3_REF, V2_REF)
        .replace(
            r#""oneOf":[{"type":"string"},{"type":"number"}]"#,
            r#""type":"string""#,
        )
        .replace(
            r#""oneOf":[{"type":"integer"},{"type":"string"}]"#,
            r#""type":"string""#,
        )
}

/// The name under which a kind is defined: `io.k8s.api.apps.v1.Deployment`, or for a custom resource its group's
/// domain reversed, `com.example.v1.Widget`.
pub fn definition_name(kind: &GroupVersionKind) -> String {
    let (group, version, kind) = (&*kind.group, &*kind.version, &*kind.kind);
    let package = match group.split('.').next().unwrap_or_default() {
        "" => "core",
        package => package,
    };
    let short = format!("{package}.{version}");
    let builtin = PACKAGES.iter().any(|(name, _)| *name == short)
        && (!group.contains('.') || group.ends_with(".k8s.io"));
    match package {
        "apiextensions" if builtin => {
            format!("io.k8s.apiextensions-apiserver.pkg.apis.{short}.{kind}")
        }
        "apiregistration" if builtin => format!("io.k8s.kube-aggregator.pkg.apis.{short}.{kind}"),
        _ if builtin => format!("io.k8s.api.{short}.{kind}"),
        _ => {
            let reversed: Vec<&str> = group.rsplit('.').collect();
            format!("{}.{version}.{kind}", reversed.join("."))
        }
    }
}

/// The definitions of these resources and all that they refer to, as one JSON object.
fn definitions(resources: &[&Resource], dialect: Dialect) -> String {
    let mut library = Library::default();
    let mut wanted: Vec<String> = ["DeleteOptions", "Status", "ListMeta", "ObjectMeta"]
        .map(|k| format!("io.k8s.apimachinery.pkg.apis.meta.v1.{k}"))
        .into();
    let mut own: BTreeMap<String, String> = BTreeMap::new();
    for r in resources {
        let name = definition_name(&r.group_version_kind());
        match custom::definition(r, dialect) {
            Some(definition) => {
                own.insert(format!("{name}List"), custom::list(r, &name).to_string());
                own.insert(name, definition.to_string());
            }
            None => wanted.extend([format!("{name}List"), name]),
        }
        wanted.extend(r.subresources.iter().map(|s| definition_name(&s.kind)));
    }
    for text in own.values() {
        wanted.extend(references(text));
    }
    let mut found: BTreeMap<String, String> = own;
    while let Some(name) = wanted.pop() {
        if found.contains_key(&name) {
            continue;
        }
        if let Some(text) = library.get(&name) {
            wanted.extend(references(text));
            found.insert(name, text.to_owned());
        }
    }
    let entries: Vec<String> = found
        .iter()
        .map(|(name, text)| format!("\"{name}\":{text}"))
        .collect();
    format!("{{{}}}", entries.join(","))
}

/// The names that the JSON text of a definition refers to.
fn references(text: &str) -> Vec<String> {
    let after = text.split(V3_REF).skip(1);
    after
        .filter_map(|rest| rest.split('"').next())
        .map(str::to_owned)
        .collect()
}

/// The packages inflated so far.
#[derive(Default)]
struct Library {
    packages: BTreeMap<&'static str, String>,
}

impl Library {
    /// The JSON text of a definition.
    fn get(&mut self, full: &str) -> Option<&str> {
        let parts: Vec<&str> = full.rsplitn(4, '.').collect();
        let short = format!("{}.{}", parts.get(2)?, parts.get(1)?);
        let (package, packed) = PACKAGES.iter().find(|(name, _)| *name == short)?;
        let text = self
            .packages
            .entry(package)
            .or_insert_with(|| inflate(packed));
        text.lines()
            .find_map(|line| line.strip_prefix(full)?.strip_prefix('\t'))
    }
}

fn inflate(packed: &[u8]) -> String {
    let mut text = String::new();
    match flate2::read::DeflateDecoder::new(packed).read_to_string(&mut text) {
        Ok(_) => text,
        // It is part of the binary, and every package is read by this module's tests.
        Err(error) => unreachable!("the OpenAPI definitions are damaged: {error}"),
    }
}

fn kind_extension(r: &Resource, kind: &str) -> Value {
    json!([{"group": r.group, "version": r.version, "kind": kind}])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::builtin;

    fn all() -> Vec<&'static Resource> {
        builtin().iter().map(|r| &**r).collect()
    }

    fn read(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    /// Every reference of a document leads to a definition in it.
    fn check_references(document: &Value, prefix: &str, definitions: &Value) {
        match document {
            Value::Object(fields) => {
                if let Some(name) = fields.get("$ref").and_then(Value::as_str) {
                    let name = name
                        .strip_prefix(prefix)
                        .unwrap_or_else(|| panic!("{name}"));
                    assert!(definitions.get(name).is_some(), "{name} is not defined");
                }
                fields
                    .values()
                    .for_each(|v| check_references(v, prefix, definitions));
            }
            Value::Array(items) => items
                .iter()
                .for_each(|v| check_references(v, prefix, definitions)),
            _ => {}
        }
    }

    #[test]
    fn every_group_version_has_a_sound_document() {
        let all = all();
        for group_version in all
            .iter()
            .map(|r| r.group_version())
            .collect::<BTreeSet<_>>()
        {
            let (group, version) = (&*group_version.group, &*group_version.version);
            let document = read(&v3(&all, group, version).unwrap());
            let schemas = &document["components"]["schemas"];
            check_references(&document, V3_REF, schemas);
            for r in all.iter().filter(|r| r.group_version() == group_version) {
                let name = definition_name(&r.group_version_kind());
                let kind = json!([{"group": group, "version": version, "kind": r.kind}]);
                assert_eq!(
                    schemas[&name]["x-kubernetes-group-version-kind"], kind,
                    "{name}"
                );
                assert!(
                    r.list_kind.is_empty() || schemas.get(format!("{name}List")).is_some(),
                    "{name}List"
                );
            }
        }
        assert_eq!(v3(&all, "nothing", "v1"), None);
    }

    #[test]
    fn definitions_carry_merge_rules_and_descriptions() {
        let document = read(&v3(&all(), "apps", "v1").unwrap());
        let pod = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"];
        let containers = &pod["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(
            pod["properties"]["volumes"]["x-kubernetes-patch-strategy"],
            "merge,retainKeys"
        );
        assert_eq!(
            pod["properties"]["tolerations"]["x-kubernetes-list-type"],
            "atomic"
        );
        assert!(containers["description"].as_str().unwrap().len() > 20);
        let strategy = &document["components"]["schemas"]["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]
            ["strategy"];
        assert_eq!(strategy["x-kubernetes-patch-strategy"], "retainKeys");
        let reference =
            json!([{"$ref": "#/components/schemas/io.k8s.api.apps.v1.DeploymentStrategy"}]);
        assert_eq!(strategy["allOf"], reference);
    }

    #[test]
    fn version_two_is_sound_as_well() {
        let document = read(&v2(&all()));
        check_references(&document, V2_REF, &document["definitions"]);
        let pod = &document["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"];
        assert_eq!(
            pod["affinity"]["$ref"],
            "#/definitions/io.k8s.api.core.v1.Affinity"
        );
        assert!(pod["affinity"]["description"].is_string());
        let quantity = &document["definitions"]["io.k8s.apimachinery.pkg.api.resource.Quantity"];
        assert_eq!(quantity["type"], "string");
        assert!(!document.to_string().contains("allOf\":[{\"$ref"));
    }

    #[test]
    fn custom_resources_have_documents() {
        let mut widget = all()[0].clone();
        widget.group = "example.com".into();
        widget.kind = "Widget".into();
        widget.list_kind = "WidgetList".into();
        widget.plural = "widgets".into();
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object"}}});
        widget.schema = std::sync::Arc::new(crate::schema::Schema::from_open_api(&schema));
        let document = v3(&[&widget], "example.com", "v1").unwrap();
        let document = read(&document);
        check_references(&document, V3_REF, &document["components"]["schemas"]);
        let definition = &document["components"]["schemas"]["com.example.v1.Widget"];
        assert_eq!(definition["properties"]["spec"]["type"], "object");
        assert_eq!(
            definition["x-kubernetes-group-version-kind"][0]["kind"],
            "Widget"
        );
    }

    #[test]
    fn the_index_names_every_document() {
        let all = all();
        let index = v3_index(&all, |_| 1);
        let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"]
            .as_str()
            .unwrap();
        assert!(url.starts_with("/openapi/v3/apis/apps/v1?hash="));
        assert!(index["paths"]["api/v1"].is_object());
        assert_ne!(v3_index(&all, |_| 2), index);
        assert_eq!(v3_index(&all, |_| 1), index);
    }
}
