//! Persistent volumes: exactly one source, which never changes.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{names, object, time};
use serde_json::{Value, json};

use super::check::{Checks, IMMUTABLE, entries, flag, given, integer, list, same, text};
use super::{Context, Strategy, common, resources, scheduling, volume};

/// The strategy of `persistentvolumes`.
pub struct PersistentVolume;

pub const ACCESS_MODES: [&str; 4] = [
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];
pub const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];

/// The kinds of sources, in the order of Kubernetes' checks, and the fields that each must have.
const SOURCES: [(&str, &[&str]); 21] = [
    ("hostPath", &["path"]),
    ("gcePersistentDisk", &["pdName"]),
    ("awsElasticBlockStore", &["volumeID"]),
    ("glusterfs", &["endpoints", "path"]),
    ("flocker", &[]),
    ("nfs", &["server", "path"]),
    ("rbd", &["monitors", "image"]),
    ("quobyte", &["registry", "volume"]),
    ("cephfs", &["monitors"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("cinder", &["volumeID"]),
    ("fc", &[]),
    ("flexVolume", &["driver"]),
    ("azureFile", &["secretName", "shareName"]),
    ("vsphereVolume", &["volumePath"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("local", &["path"]),
    ("storageos", &["volumeName"]),
];

impl Strategy for PersistentVolume {
    fn prepare_for_create(&self, _context: &Context<'_>, object: &mut Value) {
        object["status"] = json!({"phase": "Pending", "lastPhaseTransitionTime": now()});
    }

    fn prepare_for_status_update(&self, _context: &Context<'_>, object: &mut Value, old: &Value) {
        common::keep_all_but_status(object, old);
        let before = &old["status"];
        let field = "lastPhaseTransitionTime";
        let changed = object["status"]["phase"] != before["phase"];
        let untouched = object["status"][field] == before[field];
        if changed && (untouched || object["status"][field].is_null()) {
            object["status"][field] = now().into();
        } else if object["status"][field].is_null() && !before[field].is_null() {
            object["status"][field] = before[field].clone();
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        spec(
            &mut checks,
            &object["spec"],
            object::name(object),
            false,
            &Path::new("spec"),
        );
        checks.done()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks(self.validate(context, object).0);
        let path = Path::new("spec");
        let (new, before) = (&object["spec"], &old["spec"]);
        let (a, b) = (sources(new), sources(before));
        // How a volume grows may still be said later.
        let secret = "controllerExpandSecretRef";
        let mut a = a;
        if b["csi"].is_object() && b["csi"][secret].is_null() && a["csi"].is_object() {
            a["csi"][secret] = Value::Null;
        }
        if !same(&a, &b) {
            let why = format!(
                "spec.persistentvolumesource is immutable after creation\n{}",
                super::pod::difference(&a, &b)
            );
            checks.forbidden(&path.child("persistentvolumesource"), &why);
        }
        checks.immutable(
            &Path::new("volumeMode"),
            &new["volumeMode"],
            &before["volumeMode"],
        );
        if given(before, "nodeAffinity").is_some() && !same_affinity(new, before) {
            checks.invalid(
                &Path::new("nodeAffinity"),
                new["nodeAffinity"].clone(),
                IMMUTABLE,
            );
        }
        let class = "volumeAttributesClassName";
        if given(before, class).is_some() && given(new, class).is_none() {
            let why = "update from non-nil value to nil is forbidden";
            checks.forbidden(&path.child(class), why);
        }
        checks.done()
    }

    fn warnings(&self, context: &Context<'_>, object: &Value) -> Vec<String> {
        if context.subresource.is_empty() {
            return warnings(object);
        }
        Vec::new()
    }
}

fn now() -> String {
    time::format(jiff::Timestamp::now())
}

/// Node labels may be renamed where Kubernetes renamed them.
fn same_affinity(new: &Value, before: &Value) -> bool {
    fn masked(value: &Value) -> Value {
        match value {
            Value::String(text) => match &**text {
                "beta.kubernetes.io/arch" => "kubernetes.io/arch".into(),
                "beta.kubernetes.io/os" => "kubernetes.io/os".into(),
                "failure-domain.beta.kubernetes.io/region" => {
                    "topology.kubernetes.io/region".into()
                }
                "failure-domain.beta.kubernetes.io/zone" => "topology.kubernetes.io/zone".into(),
                "beta.kubernetes.io/instance-type" => "node.kubernetes.io/instance-type".into(),
                _ => value.clone(),
            },
            Value::Array(items) => items.iter().map(masked).collect(),
            Value::Object(map) => {
                let fields = map.iter().map(|(k, v)| (k.clone(), masked(v)));
                Value::Object(fields.collect())
            }
            _ => value.clone(),
        }
    }
    same(&masked(&new["nodeAffinity"]), &before["nodeAffinity"])
        || same(
            &masked(&new["nodeAffinity"]),
            &masked(&before["nodeAffinity"]),
        )
}

/// The part of a spec that says where the data is.
fn sources(spec: &Value) -> Value {
    let mut found = json!({});
    for field in SOURCES.iter().map(|(field, _)| *field).chain(["csi"]) {
        if let Some(source) = given(spec, field) {
            found[field] = source.clone();
        }
    }
    found
}

pub fn access_modes(checks: &mut Checks, spec: &Value, path: &Path) {
    let path = path.child("accessModes");
    let modes: Vec<&str> = list(spec, "accessModes")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for mode in modes.iter().filter(|m| !ACCESS_MODES.contains(m)) {
        checks.push(Error::not_supported(&path, *mode, &ACCESS_MODES));
    }
    let alone = |m: &&str| *m == "ReadWriteOncePod";
    if modes.iter().any(alone) && modes.iter().any(|m| !alone(m) && ACCESS_MODES.contains(m)) {
        checks.forbidden(
            &path,
            "may not use ReadWriteOncePod with other access modes",
        );
    }
}

/// `inline` is for the volume of an attachment, which has no object of its own.
pub fn spec(checks: &mut Checks, spec: &Value, name: &str, inline: bool, path: &Path) {
    const CONTEXT: &str = "may not be specified in the context of inline volumes";
    if inline {
        for field in ["claimRef", "capacity"] {
            if !same(&spec[field], &Value::Null) {
                checks.forbidden(&path.child(field), CONTEXT);
            }
        }
        if given(spec, "csi").is_none() {
            let why = "has to be specified in the context of inline volumes";
            checks.required(&path.child("csi"), why);
        }
    }
    if list(spec, "accessModes").is_empty() {
        checks.required(&path.child("accessModes"), "");
    }
    access_modes(checks, spec, path);
    let policy = text(spec, "persistentVolumeReclaimPolicy");
    let at = path.child("persistentVolumeReclaimPolicy");
    if inline && !matches!(policy, "" | "Retain") {
        checks.forbidden(&at, "may only be Retain in the context of inline volumes");
    } else if !inline {
        capacity(checks, spec, &path.child("capacity"));
        const POLICIES: [&str; 3] = ["Delete", "Recycle", "Retain"];
        if !policy.is_empty() && !POLICIES.contains(&policy) {
            checks.push(Error::not_supported(&at, policy, &POLICIES));
        }
    }
    if let Some(affinity) = given(spec, "nodeAffinity") {
        let at = path.child("nodeAffinity");
        match given(affinity, "required") {
            _ if inline => checks.forbidden(&at, CONTEXT),
            None => checks.required(
                &at.child("required"),
                "must specify required node constraints",
            ),
            Some(selector) => scheduling::node_selector(checks, selector, &at.child("required")),
        }
    }
    source(checks, spec, name, path);
    let root = spec["hostPath"]["path"]
        .as_str()
        .is_some_and(|p| p.trim_matches('/').is_empty());
    if root && policy == "Recycle" {
        checks.forbidden(&at, "may not be 'recycle' for a hostPath mount of '/'");
    }
    classes(checks, spec, inline, path);
}

fn classes(checks: &mut Checks, spec: &Value, inline: bool, path: &Path) {
    let class = text(spec, "storageClassName");
    if !class.is_empty() && inline {
        let why = "may not be specified in the context of inline volumes";
        checks.forbidden(&path.child("storageClassName"), why);
    } else if !class.is_empty() {
        checks.subdomain(&path.child("storageClassName"), class);
    }
    let mode = text(spec, "volumeMode");
    let at = path.child("volumeMode");
    if inline && !matches!(mode, "" | "Filesystem") {
        let why =
            "may not specify volumeMode other than Filesystem in the context of inline volumes";
        checks.forbidden(&at, why);
    } else if !mode.is_empty() && !VOLUME_MODES.contains(&mode) {
        checks.push(Error::not_supported(&at, mode, &VOLUME_MODES));
    }
    if let Some(class) = spec
        .get("volumeAttributesClassName")
        .and_then(Value::as_str)
    {
        let at = path.child("volumeAttributesClassName");
        if class.is_empty() {
            checks.required(&at, "an empty string is disallowed");
        } else {
            checks.subdomain(&at, class);
        }
        if given(spec, "csi").is_none() {
            let why = "has to be specified when using volumeAttributesClassName";
            checks.required(&path.child("csi"), why);
        }
    }
}

fn capacity(checks: &mut Checks, spec: &Value, path: &Path) {
    let count = entries(spec, "capacity").count();
    if count == 0 {
        checks.required(path, "");
    }
    if spec["capacity"].get("storage").is_none() || count > 1 {
        checks.push(Error::not_supported(
            path,
            spec["capacity"].clone(),
            &["storage"],
        ));
    }
    for (name, value) in entries(spec, "capacity") {
        positive(checks, value, &path.key(name));
    }
}

/// `ValidatePositiveQuantityValue`
pub fn positive(checks: &mut Checks, value: &Value, path: &Path) {
    if let Some(amount) = resources::quantity(Some(value))
        && amount.sign() <= 0
    {
        checks.invalid(path, amount.to_string(), super::check::POSITIVE);
    }
}

fn source(checks: &mut Checks, spec: &Value, name: &str, path: &Path) {
    let mut count = 0;
    let csi: (&str, &[&str]) = ("csi", &["volumeHandle"]);
    for (field, fields) in SOURCES.into_iter().chain([csi]) {
        let Some(source) = given(spec, field) else {
            continue;
        };
        count += 1;
        if count > 1 {
            checks.forbidden(
                &path.child(field),
                "may not specify more than 1 volume type",
            );
            continue;
        }
        let path = path.child(field);
        if field == "csi" {
            driver_name(checks, text(source, "driver"), &path.child("driver"));
        }
        for field in fields {
            if same(&source[*field], &Value::Null) {
                checks.required(&path.child(field), "");
            }
        }
        details(checks, field, source, name, &path);
    }
    if count == 0 {
        checks.required(path, "must specify a volume type");
    }
    if given(spec, "local").is_some() && given(spec, "nodeAffinity").is_none() {
        let why = "Local volume requires node affinity";
        checks.required(&path.child("nodeAffinity"), why);
    }
}

/// A source of one of the older kinds, in a pod.
pub fn legacy(checks: &mut Checks, kind: &str, source: &Value, path: &Path) {
    let Some((_, fields)) = SOURCES.iter().find(|(k, _)| *k == kind) else {
        return;
    };
    for field in *fields {
        if same(&source[*field], &Value::Null) {
            checks.required(&path.child(field), "");
        }
    }
    details(checks, kind, source, "", path);
}

/// What a source asks for beyond its required fields. Shared with the volumes of pods.
pub fn details(checks: &mut Checks, kind: &str, source: &Value, name: &str, path: &Path) {
    match kind {
        "hostPath" => volume::host_path_details(checks, source, path),
        "local" => volume::no_backsteps(checks, text(source, "path"), &path.child("path")),
        "nfs" if text(source, "path").starts_with(|c| c != '/') => {
            let target = text(source, "path");
            checks.invalid(&path.child("path"), target, "must be an absolute path");
        }
        "gcePersistentDisk" | "awsElasticBlockStore" => {
            let partition = integer(source, "partition").unwrap_or(0);
            if !(0..=255).contains(&partition) {
                let why = names::inclusive_range(1, 255);
                checks.invalid(&path.child("partition"), partition, &why);
            }
        }
        "flocker" => {
            let (name, uuid) = (text(source, "datasetName"), text(source, "datasetUUID"));
            if name.is_empty() && uuid.is_empty() {
                checks.required(path, "one of datasetName and datasetUUID is required");
            } else if !name.is_empty() && !uuid.is_empty() {
                let why = "datasetName and datasetUUID can not be specified simultaneously";
                checks.invalid(path, "resource", why);
            }
            if name.contains('/') {
                checks.invalid(&path.child("datasetName"), name, "must not contain '/'");
            }
        }
        "fc" => fibre_channel(checks, source, path),
        "iscsi" => iscsi(checks, source, name, path),
        "csi" => {
            for field in [
                "controllerPublishSecretRef",
                "controllerExpandSecretRef",
                "nodePublishSecretRef",
                "nodeExpandSecretRef",
            ] {
                if let Some(secret) = given(source, field) {
                    secret_reference(checks, secret, &path.child(field));
                }
            }
        }
        _ => {}
    }
}

fn secret_reference(checks: &mut Checks, secret: &Value, path: &Path) {
    match text(secret, "name") {
        "" => checks.required(&path.child("name"), ""),
        name => checks.subdomain(&path.child("name"), name),
    }
    match text(secret, "namespace") {
        "" => checks.required(&path.child("namespace"), ""),
        namespace => checks.label(&path.child("namespace"), namespace),
    }
}

/// `ValidateCSIDriverName`
pub fn driver_name(checks: &mut Checks, name: &str, path: &Path) {
    const LONGEST: usize = 63;
    if name.is_empty() {
        checks.required(path, "");
        return;
    }
    if name.len() > LONGEST {
        checks.push(Error::too_long(path, LONGEST));
    }
    checks.each(path, name, names::dns1123_subdomain(&name.to_lowercase()));
}

fn lun(checks: &mut Checks, source: &Value, path: &Path) {
    if let Some(lun) = integer(source, "lun").filter(|l| !(0..=255).contains(l)) {
        checks.invalid(&path.child("lun"), lun, &names::inclusive_range(0, 255));
    }
}

fn fibre_channel(checks: &mut Checks, source: &Value, path: &Path) {
    let (targets, ids) = (list(source, "targetWWNs"), list(source, "wwids"));
    let at = path.child("targetWWNs");
    if targets.is_empty() && ids.is_empty() {
        checks.required(&at, "must specify either targetWWNs or wwids, but not both");
    }
    if !targets.is_empty() && !ids.is_empty() {
        let why = "targetWWNs and wwids can not be specified simultaneously";
        checks.invalid(&at, source["targetWWNs"].clone(), why);
    }
    if !targets.is_empty() {
        if integer(source, "lun").is_none() {
            checks.required(
                &path.child("lun"),
                "lun is required if targetWWNs is specified",
            );
        }
        lun(checks, source, path);
    }
}

fn iscsi(checks: &mut Checks, source: &Value, name: &str, path: &Path) {
    let portal = text(source, "targetPortal");
    if given(source, "initiatorName").is_some() && name.len() + 1 + portal.len() > 64 {
        let why = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if \
            iscsi.initiatorName is specified.";
        checks.invalid(&path.child("targetportal"), portal, why);
    }
    for (field, shown) in [("iqn", "iqn"), ("initiatorName", "initiatorname")] {
        let value = text(source, field);
        if !value.is_empty() && !iscsi_name(value) {
            checks.invalid(&path.child(shown), value, "must be valid format");
        }
    }
    lun(checks, source, path);
    let authenticated = flag(source, "chapAuthDiscovery") || flag(source, "chapAuthSession");
    match given(source, "secretRef") {
        None if authenticated => checks.required(&path.child("secretRef"), ""),
        Some(secret) if text(secret, "name").is_empty() => {
            checks.required(&path.child("secretRef").child("name"), "");
        }
        _ => {}
    }
}

fn iscsi_name(name: &str) -> bool {
    let hex = |text: &str, lengths: &[usize]| {
        lengths.contains(&text.len()) && text.bytes().all(|c| c.is_ascii_hexdigit())
    };
    if let Some(rest) = name.strip_prefix("iqn.") {
        // iqn.YYYY-MM.domain[:anything]
        let bytes = rest.as_bytes();
        let date = bytes.len() > 8
            && bytes[..4].iter().all(u8::is_ascii_digit)
            && bytes[4] == b'-'
            && bytes[5..7].iter().all(u8::is_ascii_digit)
            && bytes[7] == b'.';
        let domain = rest
            .get(8..)
            .unwrap_or_default()
            .split(':')
            .next()
            .unwrap_or_default();
        let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.');
        return date && !domain.is_empty() && domain.bytes().all(allowed);
    }
    match name.split_once('.') {
        Some(("eui", rest)) => hex(rest, &[16]),
        Some(("naa", rest)) => hex(rest, &[16, 32]),
        _ => false,
    }
}

fn warnings(object: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    for (key, why) in [
        (
            "volume.beta.kubernetes.io/storage-class",
            "deprecated since v1.8; use \"storageClassName\" attribute instead",
        ),
        (
            "volume.beta.kubernetes.io/mount-options",
            "deprecated since v1.31; use \"mountOptions\" attribute instead",
        ),
    ] {
        if object::annotation(object, key).is_some() {
            warnings.push(format!("metadata.annotations[{key}]: {why}"));
        }
    }
    let spec = &object["spec"];
    if text(spec, "persistentVolumeReclaimPolicy") == "Recycle" {
        warnings.push(
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended \
             approach is to use dynamic provisioning."
                .into(),
        );
    }
    let terms = list(&spec["nodeAffinity"]["required"], "nodeSelectorTerms");
    for (i, term) in terms.iter().enumerate() {
        for (j, expression) in list(term, "matchExpressions").iter().enumerate() {
            let key = text(expression, "key");
            if let Some(why) = scheduling::deprecated_label(key) {
                warnings.push(format!(
                    "spec.nodeAffinity.required.nodeSelectorTerms[{i}].matchExpressions[{j}].key: {key} is {why}"
                ));
            }
        }
    }
    for (field, shown, since, gone) in [
        ("cephfs", "cephfs", "28", "31"),
        ("photonPersistentDisk", "photonPersistentDisk", "11", "16"),
        ("scaleIO", "scaleIO", "16", "22"),
        ("storageos", "storageOS", "22", "25"),
        ("glusterfs", "glusterfs", "25", "26"),
        ("rbd", "rbd", "28", "31"),
    ] {
        if given(spec, field).is_some() {
            warnings.push(format!(
                "spec.{shown}: deprecated in v1.{since}, non-functional in v1.{gone}+"
            ));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::tests::refusals;

    fn volume(extra: Value) -> Value {
        let mut spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "volumeMode": "Filesystem"});
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        json!({"metadata": {"name": "v"}, "spec": spec})
    }

    #[test]
    fn specs() {
        #[rustfmt::skip]
        let table: &[(Value, &[&str])] = &[
            (json!({"hostPath": {"path": "/data"}}), &[]),
            (json!({}), &["spec: Required value: must specify a volume type"]),
            (json!({"nfs": {}}), &["spec.nfs.server: Required value", "spec.nfs.path: Required value"]),
            (json!({"hostPath": {"path": "/data"}, "nfs": {"server": "a", "path": "/"}}), &["spec.nfs: Forbidden: may not specify more than 1 volume type"]),
            (json!({"local": {"path": "/data"}}), &["spec.nodeAffinity: Required value: Local volume requires node affinity"]),
            (json!({"csi": {"driver": "a_b", "volumeHandle": "h"}, "accessModes": ["ReadWriteOncePod", "ReadWriteMany"]}), &["spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes", "spec.csi.driver: Invalid value: \"a_b\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"]),
            (json!({"hostPath": {"path": "/"}, "persistentVolumeReclaimPolicy": "Recycle"}), &["spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'"]),
            (json!({"hostPath": {"path": "/d"}, "capacity": {"storage": "0"}}), &["spec.capacity[storage]: Invalid value: \"0\": must be greater than zero"]),
            (json!({"iscsi": {"targetPortal": "a:1", "iqn": "iqn.2015-02.example.com:test", "lun": 300}}), &["spec.iscsi.lun: Invalid value: 300: must be between 0 and 255, inclusive"]),
        ];
        for (extra, want) in table {
            assert_eq!(
                refusals("persistentvolumes", &volume(extra.clone()), None),
                *want,
                "{extra}"
            );
        }
    }

    #[test]
    fn sources_stay() {
        let old = volume(json!({"hostPath": {"path": "/data"}}));
        let mut new = volume(json!({"hostPath": {"path": "/other"}}));
        let found = refusals("persistentvolumes", &new, Some(&old));
        assert!(
            found.len() == 1 && found[0].starts_with("spec.persistentvolumesource: Forbidden: "),
            "{found:?}"
        );
        new = old.clone();
        new["spec"]["persistentVolumeReclaimPolicy"] = "Delete".into();
        assert!(refusals("persistentvolumes", &new, Some(&old)).is_empty());
    }

    #[test]
    fn iscsi_names() {
        for (name, want) in [
            ("iqn.2015-02.example.com:test", true),
            ("iqn.2015-02.example.com", true),
            ("iqn.15-02.example.com", false),
            ("eui.0123456789abcdef", true),
            ("naa.62004567BA64678D0123456789ABCDEF", true),
            ("naa.1", false),
            ("x", false),
        ] {
            assert_eq!(iscsi_name(name), want, "{name}");
        }
    }
}
