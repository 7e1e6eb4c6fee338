//! Persistent volume claims: what is asked for stays, but may grow.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{names, object};
use serde_json::{Value, json};

use super::check::{Checks, IMMUTABLE, entries, given, list, same, text};
use super::persistent_volume::{VOLUME_MODES, access_modes, positive};
use super::{Context, Strategy, common, resources};

/// The strategy of `persistentvolumeclaims`.
pub struct PersistentVolumeClaim;

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const STORAGE: &str = "storage";

impl Strategy for PersistentVolumeClaim {
    fn default(&self, object: &mut Value) {
        if text(&object["status"], "phase").is_empty() {
            object["status"]["phase"] = "Pending".into();
        }
    }

    fn prepare_for_create(&self, _context: &Context<'_>, object: &mut Value) {
        object["status"] = json!({"phase": "Pending"});
        normalize_sources(&mut object["spec"], &Value::Null);
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        common::keep_status(context, object, old);
        normalize_sources(&mut object["spec"], &old["spec"]);
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        spec(&mut checks, &object["spec"], &Path::new("spec"));
        checks.done()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks(self.validate(context, object).0);
        update(&mut checks, object, old);
        checks.done()
    }

    fn validate_status_update(
        &self,
        _context: &Context<'_>,
        object: &Value,
        _old: &Value,
    ) -> ErrorList {
        let mut checks = Checks::default();
        let (status, path) = (&object["status"], Path::new("status"));
        for (name, value) in entries(status, "capacity") {
            basic(&mut checks, value, &path.child("capacity").key(name));
        }
        let at = path.child("allocatedResourceStatuses");
        for (name, value) in entries(status, "allocatedResourceStatuses") {
            const STATUSES: [&str; 5] = [
                "ControllerResizeInProgress",
                "ControllerResizeInfeasible",
                "NodeResizeInProgress",
                "NodeResizeInfeasible",
                "NodeResizePending",
            ];
            resource_key(&mut checks, name, &at);
            if !STATUSES.contains(&value.as_str().unwrap_or_default()) {
                checks.push(Error::not_supported(&at, name, &STATUSES));
            }
        }
        let at = path.child("allocatedResources");
        for (name, value) in entries(status, "allocatedResources") {
            if resource_key(&mut checks, name, &at) {
                basic(&mut checks, value, &at.key(name));
            }
        }
        checks.done()
    }

    fn warnings(&self, context: &Context<'_>, object: &Value) -> Vec<String> {
        let mut warnings = Vec::new();
        if !context.subresource.is_empty() {
            return warnings;
        }
        if object::annotation(object, CLASS_ANNOTATION).is_some() {
            warnings.push(format!(
                "metadata.annotations[{CLASS_ANNOTATION}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
            ));
        }
        for field in ["requests", "limits"] {
            let amount = resources::quantity(object["spec"]["resources"][field].get(STORAGE));
            if let Some(amount) = amount.filter(|a| a.milli_value() % 1000 != 0) {
                warnings.push(format!(
                    "spec.resources.{field}[{STORAGE}]: fractional byte value \"{amount}\" is invalid, must be an integer"
                ));
            }
        }
        warnings
    }
}

/// `ValidateBasicResource`
fn basic(checks: &mut Checks, value: &Value, path: &Path) {
    if let Some(amount) = resources::quantity(Some(value))
        && amount.value() < 0
    {
        checks.invalid(path, amount.value(), "must be a valid resource quantity");
    }
}

fn resource_key(checks: &mut Checks, name: &str, path: &Path) -> bool {
    let wrong = names::qualified_name(name);
    if !wrong.is_empty() {
        checks.each(path, name, wrong);
        return false;
    }
    if resources::is_native(name) && name != STORAGE {
        checks.push(Error::not_supported(path, name, &[STORAGE]));
        return false;
    }
    true
}

/// The older field knows claims and snapshots of the same namespace only; each of the two follows the other.
fn normalize_sources(spec: &mut Value, old: &Value) {
    let in_use =
        |s: &Value| given(s, "dataSource").is_some() || given(s, "dataSourceRef").is_some();
    let Some(fields) = spec.as_object_mut() else {
        return;
    };
    let source = fields.get("dataSource").cloned().unwrap_or_default();
    let reference = fields.get("dataSourceRef").cloned().unwrap_or_default();
    let across = !text(&reference, "namespace").is_empty();
    // Across namespaces is behind a gate that is closed.
    let reference = if across && given(old, "dataSourceRef").is_none() {
        fields.remove("dataSourceRef");
        Value::Null
    } else {
        reference
    };
    let legacy = match text(&source, "apiGroup") {
        "" => text(&source, "kind") == "PersistentVolumeClaim",
        "snapshot.storage.k8s.io" => text(&source, "kind") == "VolumeSnapshot",
        _ => false,
    };
    if source.is_object() && reference.is_null() && !legacy && !in_use(old) {
        fields.remove("dataSource");
        return;
    }
    let plain = |from: &Value| {
        let mut to = json!({"kind": from["kind"], "name": from["name"]});
        if !from["apiGroup"].is_null() {
            to["apiGroup"] = from["apiGroup"].clone();
        }
        to
    };
    if source.is_object() && reference.is_null() {
        fields.insert("dataSourceRef".into(), plain(&source));
    } else if reference.is_object() && source.is_null() && !across {
        fields.insert("dataSource".into(), plain(&reference));
    }
}

/// The spec of a claim, or of a claim that a pod or stateful set makes.
pub fn spec(checks: &mut Checks, spec: &Value, path: &Path) {
    if list(spec, "accessModes").is_empty() {
        let why = "at least 1 access mode is required";
        checks.required(&path.child("accessModes"), why);
    }
    if let Some(selector) = given(spec, "selector") {
        checks.label_selector(selector, &path.child("selector"));
    }
    access_modes(checks, spec, path);
    let at = path.child("resources").key(STORAGE);
    match spec["resources"]["requests"].get(STORAGE) {
        None => checks.required(&at, ""),
        Some(size) => positive(checks, size, &at),
    }
    for field in ["storageClassName", "volumeAttributesClassName"] {
        let class = text(spec, field);
        if !class.is_empty() {
            checks.subdomain(&path.child(field), class);
        }
    }
    if given(spec, "volumeMode").is_some() {
        let mode = text(spec, "volumeMode");
        if !VOLUME_MODES.contains(&mode) {
            let path = path.child("volumeMode");
            checks.push(Error::not_supported(&path, mode, &VOLUME_MODES));
        }
    }
    data_sources(checks, spec, path);
}

fn data_sources(checks: &mut Checks, spec: &Value, path: &Path) {
    let (source, reference) = (given(spec, "dataSource"), given(spec, "dataSourceRef"));
    for (field, it) in [("dataSource", source), ("dataSourceRef", reference)] {
        let (Some(it), path) = (it, path.child(field)) else {
            continue;
        };
        for field in ["name", "kind"] {
            if text(it, field).is_empty() {
                checks.required(&path.child(field), "");
            }
        }
        let (group, kind) = (text(it, "apiGroup"), text(it, "kind"));
        if group.is_empty() && kind != "PersistentVolumeClaim" {
            let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            checks.invalid(&path, kind, why);
        } else if !group.is_empty() {
            checks.subdomain(&path.child("apiGroup"), group);
        }
        let namespace = text(it, "namespace");
        if !namespace.is_empty() {
            checks.label(&path.child("namespace"), namespace);
        }
    }
    let (Some(source), Some(reference)) = (source, reference) else {
        return;
    };
    let shown = path.child("dataSource").to_string();
    if !text(reference, "namespace").is_empty() {
        let why = "may not be specified when dataSourceRef.namespace is specified";
        checks.invalid(path, shown, why);
    } else if ["apiGroup", "kind", "name"]
        .iter()
        .any(|f| source[*f] != reference[*f])
    {
        checks.invalid(path, shown, "must match dataSourceRef");
    }
}

fn update(checks: &mut Checks, object: &Value, old: &Value) {
    let path = Path::new("spec");
    let (new, before) = (&object["spec"], &old["spec"]);
    let (mut new_spec, mut old_spec) = (new.clone(), before.clone());
    if text(before, "volumeName").is_empty() {
        common::copy(&mut old_spec, new, "volumeName");
    }
    let annotation = |o: &Value| object::annotation(o, CLASS_ANNOTATION).map(str::to_owned);
    let (now, was) = (annotation(object), annotation(old));
    let class = new.get("storageClassName").and_then(Value::as_str);
    let unset = given(before, "storageClassName").is_none();
    let moved = was.is_some() && unset && class == was.as_deref() && (now.is_none() || now == was);
    if moved {
        common::copy(&mut new_spec, before, "storageClassName");
    } else {
        if now.unwrap_or_default() != was.clone().unwrap_or_default() {
            let path = Path::new("metadata")
                .child("annotations")
                .key(CLASS_ANNOTATION);
            let shown = object::annotation(object, CLASS_ANNOTATION).unwrap_or_default();
            checks.invalid(&path, shown, IMMUTABLE);
        }
        if class.is_some() && unset && was.is_none_or(|w| class == Some(&*w)) {
            common::copy(&mut new_spec, before, "storageClassName");
        }
    }
    let size = |s: &Value| s["resources"]["requests"][STORAGE].clone();
    if text(&object["status"], "phase") == "Bound" {
        if new_spec["resources"]["requests"].is_object() {
            new_spec["resources"]["requests"][STORAGE] = size(before);
        }
        common::copy(&mut new_spec, before, "volumeAttributesClassName");
    }
    // Objects stored before both fields were kept in step.
    normalize_sources(&mut old_spec, before);
    if !same(&new_spec, &old_spec) {
        let why = format!(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{}",
            super::pod::difference(&new_spec, &old_spec)
        );
        checks.forbidden(&path, &why);
    }
    let amount =
        |v: Value| resources::quantity(Some(&v)).unwrap_or(apimachinery::quantity::Quantity::ZERO);
    let granted = amount(old["status"]["capacity"][STORAGE].clone());
    let (wanted, had) = (amount(size(new)), amount(size(before)));
    if wanted < had && wanted <= granted {
        let path = path.child("resources").child("requests").child(STORAGE);
        checks.forbidden(&path, "field can not be less than status.capacity");
    }
    checks.immutable(
        &Path::new("volumeMode"),
        &new["volumeMode"],
        &before["volumeMode"],
    );
    let field = "volumeAttributesClassName";
    if new[field] != before[field]
        && given(&old["status"], "currentVolumeAttributesClassName").is_some()
    {
        let what = match given(new, field).and_then(Value::as_str) {
            None => "nil",
            Some("") => "empty string",
            Some(_) => return,
        };
        let why = format!(
            "update to {what} is forbidden when status.currentVolumeAttributesClassName is not nil"
        );
        checks.forbidden(&path.child(field), &why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::tests::refusals;

    fn claim(size: &str) -> Value {
        json!({"spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
            "resources": {"requests": {STORAGE: size}}}, "status": {"phase": "Pending"}})
    }

    #[test]
    fn specs() {
        assert!(refusals("persistentvolumeclaims", &claim("1Gi"), None).is_empty());
        let found = refusals("persistentvolumeclaims", &json!({"spec": {}}), None);
        assert_eq!(
            found,
            [
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value",
            ]
        );
        let found = refusals("persistentvolumeclaims", &claim("0"), None);
        assert_eq!(
            found,
            ["spec.resources[storage]: Invalid value: \"0\": must be greater than zero"]
        );
    }

    #[test]
    fn sources_follow_each_other() {
        let mut spec = json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "a"}});
        normalize_sources(&mut spec, &Value::Null);
        assert_eq!(spec["dataSourceRef"], spec["dataSource"]);
        let mut spec = json!({"dataSource": {"kind": "Pod", "name": "a"}});
        normalize_sources(&mut spec, &Value::Null);
        assert_eq!(spec, json!({}));
        let mut spec =
            json!({"dataSourceRef": {"kind": "K", "name": "a", "apiGroup": "example.com"}});
        normalize_sources(&mut spec, &Value::Null);
        assert_eq!(spec["dataSourceRef"], spec["dataSource"]);
    }

    #[test]
    fn only_bound_claims_grow() {
        let (old, new) = (claim("1Gi"), claim("2Gi"));
        let found = refusals("persistentvolumeclaims", &new, Some(&old));
        assert!(
            found.len() == 1
                && found[0].starts_with("spec: Forbidden: spec is immutable after creation"),
            "{found:?}"
        );
        let bound = |size: &str| {
            let mut claim = claim(size);
            claim["status"] = json!({"phase": "Bound", "capacity": {STORAGE: "1Gi"}});
            claim
        };
        assert!(refusals("persistentvolumeclaims", &bound("2Gi"), Some(&bound("1Gi"))).is_empty());
        let found = refusals("persistentvolumeclaims", &bound("1Gi"), Some(&bound("2Gi")));
        assert_eq!(
            found,
            [
                "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"
            ]
        );
        let mut named = old.clone();
        named["spec"]["volumeName"] = "v".into();
        assert!(refusals("persistentvolumeclaims", &named, Some(&old)).is_empty());
        named["spec"]["volumeName"] = "v".into();
        let mut other = named.clone();
        other["spec"]["volumeName"] = "w".into();
        assert_eq!(
            refusals("persistentvolumeclaims", &other, Some(&named)).len(),
            1
        );
    }
}
