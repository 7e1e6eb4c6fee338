//! Turns k8s-openapi's schemas and `src/schema/overlay.txt` into two artefacts:
//!
//! - `schemas.z`: the shapes of all built-in types, one line per definition or field, without descriptions. The API
//!   server keeps this one in memory, so it is made to be read without intermediate copies (see `schema/load.rs`).
//! - `openapi/*.z`: the OpenAPI definitions with their descriptions, as JSON text by package, inflated only to answer
//!   a request for an OpenAPI document (see `openapi.rs`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use flate2::{Compression, write::DeflateEncoder};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// The kinds of one package, by whether lists of them are served.
struct Package {
    group: &'static str,
    name: &'static str,
    kinds: &'static [&'static str],
    listed: bool,
}

macro_rules! packages {
    ($gen:ident: $($group:literal $name:literal $($m:ident)::+ $listed:literal { $($kind:ident)* })*) => {{
        $({
            use k8s_openapi::$($m)::+ as m;
            $($gen.subschema_for::<m::$kind>();)*
        })*
        vec![$(Package { group: $group, name: $name, kinds: &[$(stringify!($kind)),*], listed: $listed }),*]
    }};
}

fn roots(generator: &mut SchemaGenerator) -> Vec<Package> {
    packages! { generator:
        "" "core.v1" api::core::v1 true {
            ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume PersistentVolumeClaim
            Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount
        }
        "" "core.v1" api::core::v1 false { Binding }
        "admissionregistration.k8s.io" "admissionregistration.v1" api::admissionregistration::v1 true {
            MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration
            ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration
        }
        "apiextensions.k8s.io" "apiextensions.v1" apiextensions_apiserver::pkg::apis::apiextensions::v1 true {
            CustomResourceDefinition
        }
        "apiregistration.k8s.io" "apiregistration.v1" kube_aggregator::pkg::apis::apiregistration::v1 true {
            APIService
        }
        "apps" "apps.v1" api::apps::v1 true { ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet }
        "authentication.k8s.io" "authentication.v1" api::authentication::v1 false {
            SelfSubjectReview TokenRequest TokenReview
        }
        "authorization.k8s.io" "authorization.v1" api::authorization::v1 false {
            LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview
        }
        "autoscaling" "autoscaling.v1" api::autoscaling::v1 true { HorizontalPodAutoscaler }
        "autoscaling" "autoscaling.v1" api::autoscaling::v1 false { Scale }
        "autoscaling" "autoscaling.v2" api::autoscaling::v2 true { HorizontalPodAutoscaler }
        "batch" "batch.v1" api::batch::v1 true { CronJob Job }
        "certificates.k8s.io" "certificates.v1" api::certificates::v1 true { CertificateSigningRequest }
        "coordination.k8s.io" "coordination.v1" api::coordination::v1 true { Lease }
        "discovery.k8s.io" "discovery.v1" api::discovery::v1 true { EndpointSlice }
        "events.k8s.io" "events.v1" api::events::v1 true { Event }
        "flowcontrol.apiserver.k8s.io" "flowcontrol.v1" api::flowcontrol::v1 true {
            FlowSchema PriorityLevelConfiguration
        }
        "networking.k8s.io" "networking.v1" api::networking::v1 true {
            IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR
        }
        "node.k8s.io" "node.v1" api::node::v1 true { RuntimeClass }
        "policy" "policy.v1" api::policy::v1 true { PodDisruptionBudget }
        "policy" "policy.v1" api::policy::v1 false { Eviction }
        "rbac.authorization.k8s.io" "rbac.v1" api::rbac::v1 true { ClusterRole ClusterRoleBinding Role RoleBinding }
        "resource.k8s.io" "resource.v1" api::resource::v1 true {
            DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice
        }
        "scheduling.k8s.io" "scheduling.v1" api::scheduling::v1 true { PriorityClass }
        "storage.k8s.io" "storage.v1" api::storage::v1 true {
            CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass
        }
        "" "meta.v1" apimachinery::pkg::apis::meta::v1 false { DeleteOptions LabelSelector ListMeta Status }
    }
}

/// `io.k8s.api.core.v1.Pod` as this crate names it: `core.v1.Pod`.
fn short(full: &str) -> String {
    let parts: Vec<&str> = full.rsplitn(4, '.').collect();
    parts
        .iter()
        .take(3)
        .rev()
        .copied()
        .collect::<Vec<_>>()
        .join(".")
}

/// One field's line of the overlay, or with an empty name that of the definition itself.
#[derive(Default)]
struct Note {
    attributes: Vec<String>,
    /// `= JSON` or `~ JSON`.
    default: String,
}

type Overlay = BTreeMap<String, BTreeMap<String, Note>>;

fn read_overlay(text: &str) -> Overlay {
    let mut overlay = Overlay::new();
    let mut definition = String::new();
    for line in text
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        let (name, rest) = line
            .trim_start()
            .split_once(' ')
            .unwrap_or((line.trim_start(), ""));
        let split = [" = ", " ~ "]
            .iter()
            .find_map(|m| format!(" {rest}").find(m))
            .unwrap_or(rest.len() + 1);
        let rest = format!(" {rest}");
        let (attributes, default) = rest.split_at(split.min(rest.len()));
        let attributes = attributes.split_whitespace().map(str::to_owned).collect();
        let note = Note {
            attributes,
            default: default.trim().to_owned(),
        };
        if line.starts_with(' ') {
            overlay
                .entry(definition.clone())
                .or_default()
                .insert(name.to_owned(), note);
        } else {
            definition = name.to_owned();
            overlay
                .entry(definition.clone())
                .or_default()
                .insert(String::new(), note);
        }
    }
    overlay
}

/// The type of a schema in the notation of `schemas.z`.
fn token(schema: &Value, definitions: &Map<String, Value>) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        let target = &definitions[name];
        return match short(name).rsplit('.').next().unwrap_or_default() {
            "Quantity" => "q".into(),
            "IntOrString" => "o".into(),
            "MicroTime" => "u".into(),
            _ if target["oneOf"].is_array() => {
                format!("|{}", &token(&target["oneOf"][0], definitions)[1..])
            }
            _ if target["properties"].is_object() => format!("*{}", short(name)),
            _ => token(target, definitions),
        };
    }
    match (schema["type"].as_str(), schema["format"].as_str()) {
        (Some("array"), _) => format!("[{}", token(&schema["items"], definitions)),
        (Some("object"), _) if schema["additionalProperties"].is_object() => {
            format!("{{{}", token(&schema["additionalProperties"], definitions))
        }
        (Some("string"), Some("byte")) => "y".into(),
        (Some("string"), Some("date-time")) => "t".into(),
        (Some("string"), _) => "s".into(),
        (Some("integer"), Some("int32")) => "i".into(),
        (Some("integer"), _) => "l".into(),
        (Some("number"), _) => "n".into(),
        (Some("boolean"), _) => "b".into(),
        _ => "j".into(),
    }
}

/// `schemas.z` before compression: `#definition attributes`, then `field type attributes default` each.
fn shapes(definitions: &Map<String, Value>, overlay: &mut Overlay) -> String {
    let mut out = String::new();
    for (full, definition) in definitions {
        let Some(properties) = definition["properties"].as_object() else {
            continue;
        };
        let name = short(full);
        let mut notes = overlay.remove(&name).unwrap_or_default();
        let own = notes.remove("").unwrap_or_default();
        writeln!(out, "#{name} {}", own.attributes.join(" ")).unwrap();
        let required: Vec<&Value> = definition["required"]
            .as_array()
            .into_iter()
            .flatten()
            .collect();
        for (field, schema) in properties {
            let note = notes.remove(field).unwrap_or_default();
            let mut line = format!("{field} {}", token(schema, definitions));
            if required.iter().any(|r| *r == field) {
                line.push_str(" !");
            }
            for attribute in &note.attributes {
                line = format!("{line} {attribute}");
            }
            writeln!(out, "{line} {}", note.default).unwrap();
        }
        for (path, note) in notes {
            assert!(
                path.contains('.'),
                "the overlay names {name}.{path}, which does not exist"
            );
            writeln!(out, "{path} @ {}", note.default).unwrap();
        }
    }
    assert!(
        overlay.is_empty(),
        "the overlay names definitions that do not exist: {:?}",
        overlay.keys()
    );
    out
}

/// Adds what the overlay says about a field to its OpenAPI schema, as Kubernetes publishes it.
fn extend(schema: &mut Value, note: Option<&Note>) {
    if let Some(reference) = schema.as_object_mut().and_then(|s| s.remove("$ref")) {
        match schema.as_object().is_some_and(Map::is_empty) {
            true => schema["$ref"] = reference,
            false => schema["allOf"] = json!([{ "$ref": reference }]),
        }
    }
    let (mut strategies, mut list_type) = (Vec::new(), "atomic");
    for attribute in note.map(|n| n.attributes.as_slice()).unwrap_or_default() {
        match attribute.split_once('=').unwrap_or((attribute, "")) {
            ("set", _) => list_type = "set",
            ("map", keys) => {
                list_type = "map";
                schema["x-kubernetes-list-map-keys"] = json!(keys.split(',').collect::<Vec<_>>());
            }
            ("merge", key) => {
                strategies.push("merge");
                if !key.is_empty() {
                    schema["x-kubernetes-patch-merge-key"] = json!(key);
                }
            }
            ("atomic", _) => schema["x-kubernetes-map-type"] = json!("atomic"),
            ("struct", _) => schema["default"] = json!({}),
            (strategy, _) => strategies.push(strategy),
        }
    }
    if !strategies.is_empty() {
        schema["x-kubernetes-patch-strategy"] = json!(strategies.join(","));
    }
    if schema["type"] == "array" {
        schema["x-kubernetes-list-type"] = json!(list_type);
    }
}

/// The OpenAPI v3 definition of one type.
fn document(full: &str, definition: &Value, overlay: &Overlay, packages: &[Package]) -> Value {
    let name = short(full);
    let notes = overlay.get(&name);
    let mut document = definition.clone();
    // Kubernetes publishes these as strings; the scalar forms are a courtesy to writers.
    if document["x-kubernetes-int-or-string"].is_boolean() {
        let description = document["description"].clone();
        document = match name.ends_with("Quantity") {
            true => {
                json!({"description": description, "oneOf": [{"type": "string"}, {"type": "number"}]})
            }
            false => json!({"description": description, "format": "int-or-string", "oneOf":
                [{"type": "integer"}, {"type": "string"}]}),
        };
    }
    // A value that may be one thing or another is only described.
    if definition["oneOf"].is_array() {
        document = json!({ "description": definition["description"] });
    }
    let properties = document
        .get_mut("properties")
        .and_then(Value::as_object_mut);
    for (field, schema) in properties.into_iter().flatten() {
        extend(schema, notes.and_then(|n| n.get(field)));
    }
    if notes
        .and_then(|n| n.get(""))
        .is_some_and(|n| n.attributes.iter().any(|a| a == "atomic"))
    {
        document["x-kubernetes-map-type"] = json!("atomic");
    }
    let kind = name.rsplit('.').next().unwrap_or_default();
    for package in packages
        .iter()
        .filter(|p| name == format!("{}.{kind}", p.name) && p.kinds.contains(&kind))
    {
        if package.name != "meta.v1" || matches!(kind, "DeleteOptions" | "Status") {
            document["x-kubernetes-group-version-kind"] = group_version_kind(package, kind);
        }
    }
    document
}

fn group_version_kind(package: &Package, kind: &str) -> Value {
    let version = package.name.split_once('.').unwrap_or_default().1;
    json!([{"group": package.group, "kind": kind, "version": version}])
}

/// The definition of the list of a kind, which k8s-openapi has only as a generic type.
fn list_document(package: &Package, kind: &str, full: &str) -> Value {
    let reference = |name: &str| format!("#/components/schemas/{name}");
    json!({
        "description": format!("{kind}List is a collection of {kind} objects."),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"description": "APIVersion defines the versioned schema of this representation of an object.",
                "type": "string"},
            "items": {"description": format!("The {kind} objects."), "type": "array",
                "items": {"$ref": reference(full)}},
            "kind": {"description": "Kind is a string value representing the REST resource this object represents.",
                "type": "string"},
            "metadata": {"description": "Standard list metadata.",
                "allOf": [{"$ref": reference("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta")}]},
        },
        "x-kubernetes-group-version-kind": group_version_kind(package, &format!("{kind}List")),
    })
}

fn compress(path: &Path, text: &str) {
    let file = std::fs::File::create(path).unwrap();
    let mut encoder = DeflateEncoder::new(file, Compression::best());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap();
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/schema/overlay.txt");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR").unwrap());
    let mut generator = SchemaSettings::openapi3().into_generator();
    let packages = roots(&mut generator);
    let definitions = generator.take_definitions(false);
    let mut overlay = read_overlay(&std::fs::read_to_string("src/schema/overlay.txt").unwrap());

    // One line per definition, `full name` tab `JSON`, by package.
    let mut documents: BTreeMap<String, String> = BTreeMap::new();
    let mut add = |full: &str, document: Value| {
        let name = short(full);
        let package = name.rsplit_once('.').unwrap_or_default().0.to_owned();
        writeln!(documents.entry(package).or_default(), "{full}\t{document}").unwrap();
    };
    for (full, definition) in &definitions {
        add(full, document(full, definition, &overlay, &packages));
        let name = short(full);
        let kind = name.rsplit('.').next().unwrap_or_default();
        let listed = |p: &&Package| {
            p.listed && name == format!("{}.{kind}", p.name) && p.kinds.contains(&kind)
        };
        if let Some(package) = packages.iter().find(listed) {
            add(&format!("{full}List"), list_document(package, kind, full));
        }
    }

    compress(&out.join("schemas.z"), &shapes(&definitions, &mut overlay));
    std::fs::create_dir_all(out.join("openapi")).unwrap();
    let mut index = String::from("&[\n");
    for (package, text) in &documents {
        let path = out.join(format!("openapi/{package}.z"));
        compress(&path, text);
        writeln!(
            index,
            "    ({package:?}, include_bytes!({:?})),",
            path.to_str().unwrap()
        )
        .unwrap();
    }
    index.push_str("]\n");
    std::fs::write(out.join("openapi.rs"), index).unwrap();
}
