//! Validation of a pod's volumes, and of the references into objects that volumes and variables share.

use std::collections::HashSet;

use apimachinery::field::{Error, Path};
use apimachinery::quantity::Quantity;
use serde_json::Value;

use super::check::{Checks, given, integer, list, text};
use super::claim;
use super::persistent_volume::{self, driver_name};

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// Validates `spec.volumes`; gives the names of those that are sound, which mounts may use.
pub fn volumes<'a>(checks: &mut Checks, spec: &'a Value, path: &Path) -> HashSet<&'a str> {
    let mut sound = HashSet::new();
    for (i, volume) in list(spec, "volumes").iter().enumerate() {
        let path = path.index(i);
        let before = checks.0.len();
        source(checks, volume, &path);
        let name = text(volume, "name");
        if name.is_empty() {
            checks.required(&path.child("name"), "");
        } else {
            checks.label(&path.child("name"), name);
        }
        if sound.contains(name) {
            checks.push(Error::duplicate(&path.child("name"), name));
        }
        if checks.0.len() == before {
            sound.insert(name);
        }
    }
    sound
}

/// Exactly one source, and that one well-formed. Which fields a source has, the schema knows.
pub fn source(checks: &mut Checks, volume: &Value, path: &Path) {
    let mut sources = 0;
    let fields = volume
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(k, v)| *k != "name" && !v.is_null());
    for (kind, source) in fields {
        sources += 1;
        let path = path.child(kind);
        if sources > 1 {
            checks.forbidden(&path, "may not specify more than 1 volume type");
            continue;
        }
        match kind.as_str() {
            "emptyDir" => {
                let limit = source
                    .get("sizeLimit")
                    .and_then(Value::as_str)
                    .and_then(|s| Quantity::parse(s).ok());
                if limit.is_some_and(Quantity::is_negative) {
                    checks.forbidden(
                        &path.child("sizeLimit"),
                        "SizeLimit field must be a valid resource quantity",
                    );
                }
            }
            "hostPath" => host_path(checks, source, &path),
            "secret" => keys(checks, source, "secretName", &path),
            "configMap" => keys(checks, source, "name", &path),
            "downwardAPI" => {
                mode(checks, source, "defaultMode", &path);
                downward_items(checks, source, &path);
            }
            "projected" => projected(checks, source, &path),
            "persistentVolumeClaim" => needed(checks, source, "claimName", &path),
            "nfs" => {
                needed(checks, source, "server", &path);
                needed(checks, source, "path", &path);
                if text(source, "path").starts_with(|c| c != '/') {
                    checks.invalid(
                        &path.child("path"),
                        text(source, "path"),
                        "must be an absolute path",
                    );
                }
            }
            "csi" => {
                driver_name(checks, text(source, "driver"), &path.child("driver"));
                if let Some(secret) = given(source, "nodePublishSecretRef")
                    && text(secret, "name").is_empty()
                {
                    checks.required(&path.child("nodePublishSecretRef").child("name"), "");
                }
            }
            "ephemeral" => ephemeral(checks, source, &path.child("volumeClaimTemplate")),
            "image" => {
                let policies = ["Always", "IfNotPresent", "Never"];
                let policy = text(source, "pullPolicy");
                checks.one_of(&path.child("pullPolicy"), policy, &policies);
            }
            "gitRepo" => {
                needed(checks, source, "repository", &path);
                descending_path(checks, text(source, "directory"), &path.child("directory"));
            }
            _ => persistent_volume::legacy(checks, kind, source, &path),
        }
    }
    if sources == 0 {
        checks.required(path, "must specify a volume type");
    }
}

/// The claim that a pod brings for one of its volumes.
fn ephemeral(checks: &mut Checks, source: &Value, path: &Path) {
    let Some(template) = given(source, "volumeClaimTemplate") else {
        checks.required(path, "");
        return;
    };
    let metadata = &template["metadata"];
    checks.annotations(metadata, &path.child("metadata"));
    checks.labels(metadata, "labels", &path.child("metadata"));
    claim::spec(checks, &template["spec"], &path.child("spec"));
}

fn needed(checks: &mut Checks, source: &Value, field: &str, path: &Path) {
    if text(source, field).is_empty() {
        checks.required(&path.child(field), "");
    }
}

fn mode(checks: &mut Checks, source: &Value, field: &str, path: &Path) {
    if let Some(bits) = integer(source, field).filter(|m| !(0..=0o777).contains(m)) {
        checks.invalid(&path.child(field), bits, MODE);
    }
}

fn host_path(checks: &mut Checks, source: &Value, path: &Path) {
    if text(source, "path").is_empty() {
        checks.required(&path.child("path"), "");
        return;
    }
    host_path_details(checks, source, path);
}

/// What holds for a path that is given.
pub fn host_path_details(checks: &mut Checks, source: &Value, path: &Path) {
    const TYPES: [&str; 8] = [
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    no_backsteps(checks, text(source, "path"), &path.child("path"));
    let kind = text(source, "type");
    if !TYPES.contains(&kind) {
        checks.push(Error::not_supported(&path.child("type"), kind, &TYPES));
    }
}

fn keys(checks: &mut Checks, source: &Value, name: &str, path: &Path) {
    needed(checks, source, name, path);
    mode(checks, source, "defaultMode", path);
    for (i, item) in list(source, "items").iter().enumerate() {
        key_to_path(checks, item, &path.child("items").index(i));
    }
}

fn key_to_path(checks: &mut Checks, item: &Value, path: &Path) {
    needed(checks, item, "key", path);
    needed(checks, item, "path", path);
    local_path(checks, text(item, "path"), &path.child("path"));
    mode(checks, item, "mode", path);
}

fn downward_items(checks: &mut Checks, source: &Value, path: &Path) {
    for item in list(source, "items") {
        needed(checks, item, "path", path);
        local_path(checks, text(item, "path"), &path.child("path"));
        match (given(item, "fieldRef"), given(item, "resourceFieldRef")) {
            (Some(_), Some(_)) => {
                checks.invalid(
                    path,
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                );
            }
            (Some(reference), None) => field_ref(checks, reference, false, &path.child("fieldRef")),
            (None, Some(reference)) => {
                resource_field_ref(checks, reference, true, &path.child("resourceFieldRef"))
            }
            (None, None) => {
                checks.required(path, "one of fieldRef and resourceFieldRef is required")
            }
        }
        mode(checks, item, "mode", path);
    }
}

fn projected(checks: &mut Checks, source: &Value, path: &Path) {
    mode(checks, source, "defaultMode", path);
    let mut seen = HashSet::new();
    for (i, projection) in list(source, "sources").iter().enumerate() {
        let at = path.child("sources").index(i);
        let kinds = projection
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, v)| !v.is_null());
        let mut count = 0;
        for (kind, projection) in kinds {
            count += 1;
            let at = at.child(kind);
            match kind.as_str() {
                "secret" | "configMap" => {
                    needed(checks, projection, "name", &at);
                    for (i, item) in list(projection, "items").iter().enumerate() {
                        key_to_path(checks, item, &at.child("items").index(i));
                        once(
                            checks,
                            &mut seen,
                            text(item, "path"),
                            text(projection, "name"),
                            path,
                        );
                    }
                }
                "downwardAPI" => {
                    downward_items(checks, projection, &at);
                    for item in list(projection, "items") {
                        once(
                            checks,
                            &mut seen,
                            text(item, "path"),
                            text(item, "path"),
                            path,
                        );
                    }
                }
                "serviceAccountToken" => token(checks, projection, &at, path),
                _ => {}
            }
        }
        if count > 1 {
            checks.forbidden(&at, "may not specify more than 1 volume type per source");
        }
    }
}

fn once<'a>(
    checks: &mut Checks,
    seen: &mut HashSet<&'a str>,
    file: &'a str,
    shown: &str,
    path: &Path,
) {
    if !file.is_empty() && !seen.insert(file) {
        checks.invalid(path, shown, "conflicting duplicate paths");
    }
}

fn token(checks: &mut Checks, projection: &Value, at: &Path, volume: &Path) {
    let seconds = integer(projection, "expirationSeconds").unwrap_or(3600);
    if seconds < 600 {
        checks.invalid(
            &at.child("expirationSeconds"),
            seconds,
            "may not specify a duration less than 10 minutes",
        );
    }
    if seconds > 1 << 32 {
        checks.invalid(
            &at.child("expirationSeconds"),
            seconds,
            "may not specify a duration larger than 2^32 seconds",
        );
    }
    match text(projection, "path") {
        "" => checks.required(&volume.child("path"), ""),
        file => local_path(checks, file, &volume.child("path")),
    }
}

pub fn no_backsteps(checks: &mut Checks, target: &str, path: &Path) {
    if target.split('/').any(|part| part == "..") {
        checks.invalid(path, target, "must not contain '..'");
    }
}

/// A relative path that never leaves where it starts.
pub fn descending_path(checks: &mut Checks, target: &str, path: &Path) {
    if target.starts_with('/') {
        checks.invalid(path, target, "must be a relative path");
    }
    no_backsteps(checks, target, path);
}

/// As [`descending_path`], and not one of the `..data` names that atomic writers use.
fn local_path(checks: &mut Checks, target: &str, path: &Path) {
    descending_path(checks, target, path);
    if target.starts_with("..") && !target.starts_with("../") && target != ".." {
        checks.invalid(path, target, "must not start with '..'");
    }
}

/// A reference to a field of the pod, for the environment or for a file.
pub fn field_ref(checks: &mut Checks, reference: &Value, environment: bool, path: &Path) {
    const ENV: [&str; 9] = [
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    const FILE: [&str; 5] = [
        "metadata.annotations",
        "metadata.labels",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
    ];
    let field = text(reference, "fieldPath");
    if field.is_empty() {
        checks.required(&path.child("fieldPath"), "");
        return;
    }
    if let Some((map, key)) = field.strip_suffix("']").and_then(|f| f.split_once("['")) {
        match map {
            "metadata.annotations" => checks.qualified_name(path, &key.to_lowercase()),
            "metadata.labels" => checks.qualified_name(path, key),
            other => checks.invalid(path, other, "does not support subscript"),
        }
        return;
    }
    let known = ENV.contains(&field) || FILE.contains(&field);
    if !known {
        let why = format!("error converting fieldPath: field label not supported: {field}");
        checks.invalid(&path.child("fieldPath"), field, &why);
        return;
    }
    let allowed: &[&str] = if environment { &ENV } else { &FILE };
    if !allowed.contains(&field) {
        checks.push(Error::not_supported(
            &path.child("fieldPath"),
            field,
            allowed,
        ));
    }
}

/// A reference to a container's limit or request.
pub fn resource_field_ref(checks: &mut Checks, reference: &Value, file: bool, path: &Path) {
    const RESOURCES: [&str; 6] = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    const UNITS: [&str; 13] = [
        "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
    ];
    let resource = text(reference, "resource");
    let huge =
        resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if file && text(reference, "containerName").is_empty() {
        checks.required(&path.child("containerName"), "");
    } else if resource.is_empty() {
        checks.required(&path.child("resource"), "");
    } else if !huge && !RESOURCES.contains(&resource) {
        checks.push(Error::not_supported(
            &path.child("resource"),
            resource,
            &RESOURCES,
        ));
    }
    let divisor = text(reference, "divisor");
    let (allowed, what): (&[&str], _) = match resource.rsplit('.').next().unwrap_or_default() {
        "cpu" => (&["1m", "1"], "cpu"),
        "memory" => (&UNITS, "memory"),
        "ephemeral-storage" => (&UNITS, "local ephemeral storage"),
        _ => (&UNITS, "hugepages"),
    };
    if !matches!(divisor, "" | "0") && !allowed.contains(&divisor) {
        let list = allowed.join(if what == "cpu" { " and " } else { ", " });
        let why = format!("only divisor's values {list} are supported with the {what} resource");
        checks.invalid(&path.child("divisor"), resource, &why);
    }
}
