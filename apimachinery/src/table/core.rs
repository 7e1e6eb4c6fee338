//! Rows of the other kinds of the core group, and of what stands beside them: events, leases, quotas.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    Cells, Printer, age, age_at, containers, count, flag, int, int_or_string, labels, list, name,
    text, text_or,
};
use crate::{object, time};

pub(super) fn printer(group: &str, kind: &str) -> Option<Printer> {
    let (columns, cells): (&[&str], Cells) = match (group, kind) {
        ("", "Node") => (
            &[
                "Name",
                "Status",
                "Roles",
                "Age",
                "Version",
                "Internal-IP+",
                "External-IP+",
                "OS-Image+",
                "Kernel-Version+",
                "Container-Runtime+",
            ],
            node,
        ),
        ("", "Namespace") => (&["Name", "Status", "Age"], namespace),
        ("", "ConfigMap") => (&["Name", "Data", "Age"], config_map),
        ("", "Secret") => (&["Name", "Type", "Data", "Age"], secret),
        ("", "ServiceAccount") => (&["Name", "Age"], |o, now| vec![name(o), age(o, now)]),
        ("", "PodTemplate") => (
            &["Name", "Containers", "Images", "Pod Labels"],
            pod_template,
        ),
        ("", "ComponentStatus") => (&["Name", "Status", "Message", "Error"], component_status),
        ("", "ResourceQuota") => (&["Name", "Request", "Limit", "Age"], resource_quota),
        ("", "PersistentVolume") => (
            &[
                "Name",
                "Capacity",
                "Access Modes",
                "Reclaim Policy",
                "Status",
                "Claim",
                "StorageClass",
                "VolumeAttributesClass",
                "Reason",
                "Age",
                "VolumeMode+",
            ],
            persistent_volume,
        ),
        ("", "PersistentVolumeClaim") => (
            &[
                "Name",
                "Status",
                "Volume",
                "Capacity",
                "Access Modes",
                "StorageClass",
                "VolumeAttributesClass",
                "Age",
                "VolumeMode+",
            ],
            persistent_volume_claim,
        ),
        ("" | "events.k8s.io", "Event") => (
            &[
                "Last Seen",
                "Type",
                "Reason",
                "Object",
                "Subobject+",
                "Source+",
                "Message",
                "First Seen+",
                "Count+",
                "Name+",
            ],
            event,
        ),
        ("coordination.k8s.io", "Lease") => (&["Name", "Holder", "Age"], |o, now| {
            vec![name(o), text(o, "/spec/holderIdentity").into(), age(o, now)]
        }),
        _ => return None,
    };
    Some(Printer { columns, cells })
}

fn node(o: &Value, now: Timestamp) -> Vec<Value> {
    let mut status = match object::condition(o, "Ready") {
        Some(c) if c["status"] == "True" => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if flag(o, "/spec/unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = Vec::new();
    for (key, value) in object::labels(o).into_iter().flatten() {
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => roles.push(role),
            None if key == "kubernetes.io/role" => {
                roles.extend(value.as_str().filter(|v| !v.is_empty()))
            }
            _ => {}
        }
    }
    roles.sort_unstable();
    roles.dedup();
    let roles = if roles.is_empty() {
        "<none>".to_owned()
    } else {
        roles.join(",")
    };
    let info =
        |field: &str| text_or(o, &format!("/status/nodeInfo/{field}"), "<unknown>").to_owned();
    let mut kernel = info("kernelVersion");
    let architecture = text(o, "/status/nodeInfo/architecture");
    if !architecture.is_empty() {
        kernel = format!("{kernel} ({architecture})");
    }
    vec![
        name(o),
        status.into(),
        roles.into(),
        age(o, now),
        text(o, "/status/nodeInfo/kubeletVersion").into(),
        address(o, "InternalIP").into(),
        address(o, "ExternalIP").into(),
        info("osImage").into(),
        kernel.into(),
        info("containerRuntimeVersion").into(),
    ]
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    let first = list(node, "/status/addresses")
        .iter()
        .find(|a| a["type"] == kind);
    first
        .and_then(|a| a["address"].as_str())
        .unwrap_or("<none>")
}

fn namespace(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(o), text(o, "/status/phase").into(), age(o, now)]
}

// The number of entries is a number, though the column says "string": so it is in Kubernetes.
fn config_map(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(o),
        (count(o, "/data") + count(o, "/binaryData")).into(),
        age(o, now),
    ]
}

fn secret(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(o),
        text(o, "/type").into(),
        count(o, "/data").into(),
        age(o, now),
    ]
}

fn pod_template(o: &Value, _: Timestamp) -> Vec<Value> {
    let [names, images] = containers(o, "/template/spec");
    vec![
        name(o),
        names,
        images,
        labels(o, "/template/metadata/labels").into(),
    ]
}

fn component_status(o: &Value, _: Timestamp) -> Vec<Value> {
    let healthy = list(o, "/conditions")
        .iter()
        .find(|c| c["type"] == "Healthy")
        .unwrap_or(&Value::Null);
    let status = match healthy["status"].as_str() {
        Some("True") => "Healthy",
        Some(_) => "Unhealthy",
        None => "Unknown",
    };
    vec![
        name(o),
        status.into(),
        text(healthy, "/message").into(),
        text(healthy, "/error").into(),
    ]
}

fn resource_quota(o: &Value, now: Timestamp) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in o["status"]["hard"].as_object().into_iter().flatten() {
        let used = o["status"]["used"][resource].as_str().unwrap_or("0");
        let column = if resource.starts_with("limits.") {
            &mut limits
        } else {
            &mut requests
        };
        column.push(format!("{resource}: {used}/{}", int_or_string(hard)));
    }
    vec![
        name(o),
        requests.join(", ").into(),
        limits.join(", ").into(),
        age(o, now),
    ]
}

fn access_modes(o: &Value, pointer: &str) -> String {
    let short = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let modes = list(o, pointer);
    let have = short
        .iter()
        .filter(|(long, _)| modes.iter().any(|m| m == long))
        .map(|(_, short)| *short);
    have.collect::<Vec<_>>().join(",")
}

fn storage_class(o: &Value) -> &str {
    object::annotation(o, "volume.beta.kubernetes.io/storage-class")
        .unwrap_or_else(|| text(o, "/spec/storageClassName"))
}

fn phase(o: &Value) -> &str {
    if object::deletion_timestamp(o).is_some() {
        "Terminating"
    } else {
        text(o, "/status/phase")
    }
}

fn persistent_volume(o: &Value, now: Timestamp) -> Vec<Value> {
    let claim = match &o["spec"]["claimRef"] {
        Value::Null => String::new(),
        claim => format!("{}/{}", text(claim, "/namespace"), text(claim, "/name")),
    };
    vec![
        name(o),
        text_or(o, "/spec/capacity/storage", "0").into(),
        access_modes(o, "/spec/accessModes").into(),
        text(o, "/spec/persistentVolumeReclaimPolicy").into(),
        phase(o).into(),
        claim.into(),
        storage_class(o).into(),
        text_or(o, "/spec/volumeAttributesClassName", "<unset>").into(),
        text(o, "/status/reason").into(),
        age(o, now),
        text_or(o, "/spec/volumeMode", "<unset>").into(),
    ]
}

fn persistent_volume_claim(o: &Value, now: Timestamp) -> Vec<Value> {
    let volume = text(o, "/spec/volumeName");
    let (capacity, modes) = match volume {
        "" => ("", String::new()),
        _ => (
            text_or(o, "/status/capacity/storage", "0"),
            access_modes(o, "/status/accessModes"),
        ),
    };
    vec![
        name(o),
        phase(o).into(),
        volume.into(),
        capacity.into(),
        modes.into(),
        storage_class(o).into(),
        text_or(o, "/spec/volumeAttributesClassName", "<unset>").into(),
        age(o, now),
        text_or(o, "/spec/volumeMode", "<unset>").into(),
    ]
}

/// Both event APIs have the same objects under other names.
fn event(o: &Value, now: Timestamp) -> Vec<Value> {
    let either = |core: &str, new: &str| text_or(o, core, text(o, new)).to_owned();
    let stamp = |pointers: [&str; 3]| {
        let found = pointers
            .into_iter()
            .map(|p| text(o, p))
            .find(|t| !t.is_empty());
        time::age(found, now)
    };
    let first = stamp(["/firstTimestamp", "/deprecatedFirstTimestamp", "/eventTime"]);
    let last = text_or(o, "/lastTimestamp", text(o, "/deprecatedLastTimestamp"));
    let mut last = if last.is_empty() {
        first.clone()
    } else {
        time::age(Some(last), now)
    };
    let mut count = int(o, "/count").max(int(o, "/deprecatedCount"));
    if o["series"].is_object() {
        last = age_at(o, "/series/lastObservedTime", now);
        count = int(o, "/series/count");
    } else if count == 0 {
        count = 1;
    }
    let object = if o["involvedObject"].is_object() {
        &o["involvedObject"]
    } else {
        &o["regarding"]
    };
    let kind = text(object, "/kind").to_lowercase();
    let target = match text(object, "/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let component = first_text(
        o,
        [
            "/source/component",
            "/deprecatedSource/component",
            "/reportingComponent",
            "/reportingController",
        ],
    );
    let host = first_text(
        o,
        [
            "/source/host",
            "/deprecatedSource/host",
            "/reportingInstance",
            "",
        ],
    );
    let source = if host.is_empty() {
        component.to_owned()
    } else {
        format!("{component}, {host}")
    };
    vec![
        last.into(),
        text(o, "/type").into(),
        text(o, "/reason").into(),
        target.into(),
        text(object, "/fieldPath").into(),
        source.into(),
        either("/message", "/note").trim().into(),
        first.into(),
        count.to_string().into(),
        name(o),
    ]
}

fn first_text<'a>(o: &'a Value, pointers: [&str; 4]) -> &'a str {
    pointers
        .into_iter()
        .map(|p| text(o, p))
        .find(|t| !t.is_empty())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nodes() {
        let o = json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": "",
            "node-role.kubernetes.io/": "", "kubernetes.io/role": "worker"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "Unknown"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.36.2", "kernelVersion": "6.1", "architecture": "amd64"}}});
        let cells = node(&o, Timestamp::UNIX_EPOCH);
        let expect = [
            "n",
            "NotReady,SchedulingDisabled",
            "control-plane,worker",
            "<unknown>",
            "v1.36.2",
            "10.0.0.1",
            "<none>",
            "<unknown>",
            "6.1 (amd64)",
            "<unknown>",
        ];
        assert_eq!(cells, expect);
    }

    #[test]
    fn events_of_both_kinds() {
        let now = time::parse("2026-01-01T00:10:00Z").unwrap();
        let old = json!({"metadata": {"name": "e"}, "type": "Normal", "reason": "R", "message": " m \n", "count": 3,
            "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec"},
            "source": {"component": "kubelet", "host": "n"},
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:09:00Z"});
        let expect = [
            "60s",
            "Normal",
            "R",
            "pod/p",
            "spec",
            "kubelet, n",
            "m",
            "10m",
            "3",
            "e",
        ];
        assert_eq!(event(&old, now), expect);
        let new = json!({"metadata": {"name": "e"}, "type": "Normal", "reason": "R", "note": "m",
            "regarding": {"kind": "Node", "name": "n"}, "reportingController": "c",
            "eventTime": "2026-01-01T00:08:00.000000Z"});
        assert_eq!(
            event(&new, now),
            ["2m", "Normal", "R", "node/n", "", "c", "m", "2m", "1", "e"]
        );
    }

    #[test]
    fn claims() {
        let o = json!({"metadata": {"name": "c"}, "spec": {"volumeName": "v", "storageClassName": "s"},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"]}});
        let cells = persistent_volume_claim(&o, Timestamp::UNIX_EPOCH);
        assert_eq!(cells[..6], ["c", "Bound", "v", "1Gi", "RWO,RWX", "s"]);
    }
}
