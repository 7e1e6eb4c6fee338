//! The `storage.k8s.io` kinds.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use serde_json::{Value, json};

use super::check::{Checks, IMMUTABLE, entries, given, integer, list, same, text};
use super::{Context, Strategy, common, persistent_volume};

pub struct StorageClass;
pub struct VolumeAttributesClass;
pub struct CsiDriver;
pub struct CsiNode;
pub struct CsiStorageCapacity;
pub struct VolumeAttachment;

const PARAMETERS: usize = 512;
const PARAMETERS_SIZE: usize = 256 * 1024;

impl Strategy for StorageClass {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        provisioner(&mut checks, object, "provisioner");
        parameters(&mut checks, object, true);
        let policy = text(object, "reclaimPolicy");
        if !policy.is_empty() && !["Delete", "Retain"].contains(&policy) {
            let path = Path::new("reclaimPolicy");
            checks.push(Error::not_supported(&path, policy, &["Delete", "Retain"]));
        }
        const MODES: [&str; 2] = ["Immediate", "WaitForFirstConsumer"];
        checks.one_of(
            &Path::new("volumeBindingMode"),
            text(object, "volumeBindingMode"),
            &MODES,
        );
        topologies(
            &mut checks,
            list(object, "allowedTopologies"),
            &Path::new("allowedTopologies"),
        );
        checks.done()
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        for field in [
            "parameters",
            "provisioner",
            "reclaimPolicy",
            "volumeBindingMode",
        ] {
            checks.immutable(&Path::new(field), &object[field], &old[field]);
        }
        checks.done()
    }
}

fn provisioner(checks: &mut Checks, object: &Value, field: &str) {
    let path = Path::new(field);
    match text(object, field) {
        "" => checks.required(&path, ""),
        name => checks.qualified_name(&path, &name.to_lowercase()),
    }
}

fn parameters(checks: &mut Checks, object: &Value, optional: bool) {
    let path = Path::new("parameters");
    let count = entries(object, "parameters").count();
    if count > PARAMETERS {
        checks.push(Error::too_long(&path, PARAMETERS));
        return;
    }
    let mut size = 0;
    for (name, value) in entries(object, "parameters") {
        if name.is_empty() {
            checks.invalid(&path, name, "field can not be empty.");
        }
        size += name.len() + value.as_str().map_or(0, str::len);
    }
    if size > PARAMETERS_SIZE {
        checks.push(Error::too_long(&path, PARAMETERS_SIZE));
    }
    if !optional && count == 0 {
        checks.required(&path, "must contain at least one key/value pair");
    }
}

fn topologies(checks: &mut Checks, terms: &[Value], path: &Path) {
    for (i, term) in terms.iter().enumerate() {
        let path = path.index(i).child("matchLabelExpressions");
        let expressions = list(term, "matchLabelExpressions");
        for (j, expression) in expressions.iter().enumerate() {
            let path = path.index(j);
            let (key, values) = (text(expression, "key"), list(expression, "values"));
            if values.is_empty() {
                checks.required(&path.child("values"), "");
            }
            for (k, value) in values.iter().enumerate() {
                if values[..k].contains(value) {
                    checks.push(Error::duplicate(
                        &path.child("values").index(k),
                        value.clone(),
                    ));
                }
            }
            checks.qualified_name(&path.child("key"), key);
            if expressions[..j].iter().any(|e| text(e, "key") == key) {
                checks.push(Error::duplicate(&path.child("key"), key));
            }
        }
        if terms[..i].iter().any(|t| same(t, term)) {
            checks.push(Error::duplicate(&path, ""));
        }
    }
}

impl Strategy for VolumeAttributesClass {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        provisioner(&mut checks, object, "driverName");
        parameters(&mut checks, object, false);
        checks.done()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        for field in ["driverName", "parameters"] {
            if !same(&object[field], &old[field]) {
                let why = format!("updates to {field} are forbidden.");
                checks.forbidden(&Path::new(field), &why);
            }
        }
        checks.add(self.validate(context, object));
        checks.done()
    }
}

impl Strategy for CsiDriver {
    fn has_generation(&self, _context: &Context<'_>) -> bool {
        true
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        const POLICIES: [&str; 3] = ["File", "None", "ReadWriteOnceWithFSType"];
        let policy = text(spec, "fsGroupPolicy");
        if given(spec, "fsGroupPolicy").is_some() && !POLICIES.contains(&policy) {
            let path = path.child("fsGroupPolicy");
            checks.push(Error::not_supported(&path, policy, &POLICIES));
        }
        token_requests(
            &mut checks,
            list(spec, "tokenRequests"),
            &path.child("tokenRequests"),
        );
        for mode in list(spec, "volumeLifecycleModes") {
            const MODES: [&str; 2] = ["Persistent", "Ephemeral"];
            if !MODES.contains(&mode.as_str().unwrap_or_default()) {
                let path = path.child("volumeLifecycleModes");
                checks.push(Error::not_supported(&path, mode.clone(), &MODES));
            }
        }
        let field = "nodeAllocatableUpdatePeriodSeconds";
        if let Some(seconds) = integer(spec, field).filter(|s| *s < 10) {
            let why = "must be greater than or equal to 10 seconds";
            checks.invalid(&path.child(field), seconds, why);
        }
        let field = "serviceAccountTokenInSecrets";
        if let Some(value) = given(spec, field)
            && list(spec, "tokenRequests").is_empty()
        {
            let why = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
            checks.invalid(&path.child(field), value.clone(), why);
        }
        checks.done()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks(self.validate(context, object).0);
        let path = Path::new("spec");
        for (field, shown) in [
            ("attachRequired", "attachedRequired"),
            ("volumeLifecycleModes", "volumeLifecycleModes"),
        ] {
            let (new, before) = (&object["spec"][field], &old["spec"][field]);
            if new != before {
                checks.invalid(&path.child(shown), new.clone(), IMMUTABLE);
            }
        }
        checks.done()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

fn token_requests(checks: &mut Checks, requests: &[Value], path: &Path) {
    for (i, request) in requests.iter().enumerate() {
        let path = path.index(i);
        let audience = text(request, "audience");
        if requests[..i]
            .iter()
            .any(|r| text(r, "audience") == audience)
        {
            checks.push(Error::duplicate(&path.child("audience"), audience));
            continue;
        }
        let at = path.child("expirationSeconds");
        match integer(request, "expirationSeconds") {
            Some(seconds) if seconds < 600 => {
                checks.invalid(
                    &at,
                    seconds,
                    "may not specify a duration less than 10 minutes",
                );
            }
            Some(seconds) if seconds > 1 << 32 => {
                let why = "may not specify a duration larger than 2^32 seconds";
                checks.invalid(&at, seconds, why);
            }
            _ => {}
        }
    }
}

impl Strategy for CsiNode {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        const LONGEST_ID: usize = 256;
        let mut checks = Checks::default();
        let path = Path::new("spec").child("drivers");
        let drivers = list(&object["spec"], "drivers");
        for (i, driver) in drivers.iter().enumerate() {
            let path = path.index(i);
            let (name, id) = (text(driver, "name"), text(driver, "nodeID"));
            persistent_volume::driver_name(&mut checks, name, &path.child("name"));
            if id.is_empty() {
                checks.required(&path.child("nodeID"), "");
            }
            if id.len() > LONGEST_ID {
                let why = format!("must be {LONGEST_ID} characters or less");
                checks.invalid(&path.child("nodeID"), id, &why);
            }
            checks.not_negative(&driver["allocatable"], "count", &path.child("allocatable"));
            if drivers[..i].iter().any(|d| text(d, "name") == name) {
                checks.push(Error::duplicate(&path.child("name"), name));
            }
            let keys = list(driver, "topologyKeys");
            for (k, key) in keys.iter().enumerate() {
                let name = key.as_str().unwrap_or_default();
                if name.is_empty() {
                    checks.required(&path, "");
                }
                if keys[..k].contains(key) {
                    checks.push(Error::duplicate(&path, name));
                }
                checks.qualified_name(&path, name);
            }
        }
        checks.done()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks(self.validate(context, object).0);
        let path = Path::new("spec").child("drivers");
        let fixed = |driver: &Value| {
            let mut driver = driver.clone();
            if let Some(driver) = driver.as_object_mut() {
                driver.remove("allocatable");
            }
            driver
        };
        for before in list(&old["spec"], "drivers") {
            let name = text(before, "name");
            for driver in list(&object["spec"], "drivers")
                .iter()
                .filter(|d| text(d, "name") == name)
            {
                checks.immutable(&path, &fixed(driver), &fixed(before));
            }
        }
        checks.done()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

impl Strategy for CsiStorageCapacity {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        checks.label_selector(&object["nodeTopology"], &Path::new("nodeTopology"));
        let class = text(object, "storageClassName");
        checks.subdomain(&Path::new("storageClassName"), class);
        checks.not_negative_quantity(object, "capacity", &Path::root());
        checks.done()
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        for field in ["nodeTopology", "storageClassName"] {
            checks.immutable(&Path::new(field), &object[field], &old[field]);
        }
        checks.done()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

impl Strategy for VolumeAttachment {
    fn prepare_for_create(&self, _context: &Context<'_>, object: &mut Value) {
        object["status"] = json!({"attached": false});
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        common::keep_status(context, object, old);
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        persistent_volume::driver_name(
            &mut checks,
            text(spec, "attacher"),
            &path.child("attacher"),
        );
        attachment_source(&mut checks, &spec["source"], &path.child("source"));
        checks.subdomain(&path.child("nodeName"), text(spec, "nodeName"));
        attachment_status(&mut checks, &object["status"]);
        checks.done()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks(self.validate(context, object).0);
        checks.immutable(&Path::new("spec"), &object["spec"], &old["spec"]);
        checks.done()
    }

    fn validate_status_update(
        &self,
        _context: &Context<'_>,
        object: &Value,
        _old: &Value,
    ) -> ErrorList {
        let mut checks = Checks::default();
        attachment_status(&mut checks, &object["status"]);
        checks.done()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

fn attachment_source(checks: &mut Checks, source: &Value, path: &Path) {
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    let name = source.get("persistentVolumeName").and_then(Value::as_str);
    match (given(source, "inlineVolumeSpec"), name) {
        (None, None) => checks.required(path, ONE),
        (Some(_), Some(_)) => checks.forbidden(path, ONE),
        (None, Some("")) => {
            let why = "must specify non empty persistentVolumeName";
            checks.required(&path.child("persistentVolumeName"), why);
        }
        (None, Some(name)) => {
            let path = path.child("persistentVolumeName");
            checks.each(&path, name, names::dns1123_subdomain(name));
        }
        (Some(spec), None) => {
            persistent_volume::spec(checks, spec, "", true, &path.child("inlineVolumeSpec"));
        }
    }
}

fn attachment_status(checks: &mut Checks, status: &Value) {
    const LONGEST: usize = 1024;
    let path = Path::new("status");
    let metadata = entries(status, "attachmentMetadata");
    let size: usize = metadata
        .map(|(k, v)| k.len() + v.as_str().map_or(0, str::len))
        .sum();
    if size > PARAMETERS_SIZE {
        checks.push(Error::too_long(
            &path.child("attachmentMetadata"),
            PARAMETERS_SIZE,
        ));
    }
    for field in ["attachError", "detachError"] {
        let (error, path) = (&status[field], path.child(field));
        if text(error, "message").len() > LONGEST {
            checks.push(Error::too_long(&path.child("message"), PARAMETERS_SIZE));
        }
        if let Some(code) = integer(error, "errorCode").filter(|c| *c < 0) {
            let why = names::inclusive_range(0, i32::MAX.into());
            checks.invalid(&path.child("errorCode"), code, &why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::tests::refusals;

    #[test]
    fn kinds() {
        #[rustfmt::skip]
        let table: &[(&str, Value, &[&str])] = &[
            ("storageclasses", json!({"provisioner": "example.com/p", "volumeBindingMode": "Immediate", "reclaimPolicy": "Delete"}), &[]),
            ("storageclasses", json!({"volumeBindingMode": "Later", "reclaimPolicy": "Recycle"}), &["provisioner: Required value", "reclaimPolicy: Unsupported value: \"Recycle\": supported values: \"Delete\", \"Retain\"", "volumeBindingMode: Unsupported value: \"Later\": supported values: \"Immediate\", \"WaitForFirstConsumer\""]),
            ("volumeattributesclasses", json!({"driverName": "a"}), &["parameters: Required value: must contain at least one key/value pair"]),
            ("csidrivers", json!({"spec": {"tokenRequests": [{"audience": "a"}, {"audience": "a"}, {"audience": "b", "expirationSeconds": 1}]}}), &["spec.tokenRequests[1].audience: Duplicate value: \"a\"", "spec.tokenRequests[2].expirationSeconds: Invalid value: 1: may not specify a duration less than 10 minutes"]),
            ("csinodes", json!({"spec": {"drivers": [{"name": "a", "nodeID": "n", "topologyKeys": ["k"]}]}}), &[]),
            ("csinodes", json!({"spec": {"drivers": [{"name": "a"}]}}), &["spec.drivers[0].nodeID: Required value"]),
            ("csistoragecapacities", json!({"storageClassName": "a", "capacity": "-1"}), &["capacity: Invalid value: \"-1\": must be greater than or equal to 0"]),
            ("volumeattachments", json!({"spec": {"attacher": "a", "nodeName": "n", "source": {"persistentVolumeName": "v"}}}), &[]),
            ("volumeattachments", json!({"spec": {"attacher": "a", "nodeName": "n", "source": {}}}), &["spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName"]),
        ];
        for (plural, object, want) in table {
            assert_eq!(refusals(plural, object, None), *want, "{plural} {object}");
        }
        let (old, new) = (json!({"provisioner": "a"}), json!({"provisioner": "b"}));
        let found = refusals("storageclasses", &new, Some(&old));
        assert_eq!(
            found,
            ["provisioner: Invalid value: \"b\": field is immutable"]
        );
    }
}
