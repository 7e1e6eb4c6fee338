//! Rows of what a cluster is set up with: roles, storage, certificates, admission, priorities, devices.

use jiff::Timestamp;
use serde_json::Value;

use super::{Cells, Printer, age, count, flag, int, joined, list, name, selector, text, text_or};
use crate::{object, time};

pub(super) fn printer(group: &str, kind: &str) -> Option<Printer> {
    let (columns, cells): (&[&str], Cells) = match (group, kind) {
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => (
            &[
                "Name",
                "Role",
                "Age",
                "Users+",
                "Groups+",
                "ServiceAccounts+",
            ],
            role_binding,
        ),
        ("certificates.k8s.io", "CertificateSigningRequest") => (
            &[
                "Name",
                "Age",
                "SignerName",
                "Requestor",
                "RequestedDuration",
                "Condition",
            ],
            signing_request,
        ),
        ("storage.k8s.io", "StorageClass") => (
            &[
                "Name",
                "Provisioner",
                "ReclaimPolicy",
                "VolumeBindingMode",
                "AllowVolumeExpansion?",
                "Age",
            ],
            storage_class,
        ),
        ("storage.k8s.io", "VolumeAttributesClass") => {
            (&["Name", "DriverName", "Age"], |o, now| {
                vec![name(o), text(o, "/driverName").into(), age(o, now)]
            })
        }
        ("storage.k8s.io", "VolumeAttachment") => (
            &["Name", "Attacher", "PV", "Node", "Attached?", "Age"],
            volume_attachment,
        ),
        ("storage.k8s.io", "CSINode") => (&["Name", "Drivers#", "Age"], |o, now| {
            vec![name(o), count(o, "/spec/drivers").into(), age(o, now)]
        }),
        ("storage.k8s.io", "CSIDriver") => (
            &[
                "Name",
                "AttachRequired?",
                "PodInfoOnMount?",
                "StorageCapacity?",
                "TokenRequests",
                "RequiresRepublish?",
                "Modes",
                "Age",
            ],
            csi_driver,
        ),
        ("storage.k8s.io", "CSIStorageCapacity") => {
            (&["Name", "StorageClassName", "Capacity"], |o, _| {
                vec![
                    name(o),
                    text(o, "/storageClassName").into(),
                    text_or(o, "/capacity", "<unset>").into(),
                ]
            })
        }
        ("scheduling.k8s.io", "PriorityClass") => (
            &[
                "Name",
                "Value#",
                "Global-Default?",
                "Age",
                "PreemptionPolicy",
            ],
            priority_class,
        ),
        ("node.k8s.io", "RuntimeClass") => (&["Name", "Handler", "Age"], |o, now| {
            vec![name(o), text(o, "/handler").into(), age(o, now)]
        }),
        ("admissionregistration.k8s.io", _) => return admission(kind),
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => (
            &[
                "Name",
                "PriorityLevel",
                "MatchingPrecedence",
                "DistinguisherMethod",
                "Age",
                "MissingPL",
            ],
            flow_schema,
        ),
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => (
            &[
                "Name",
                "Type",
                "NominalConcurrencyShares",
                "Queues",
                "HandSize",
                "QueueLengthLimit",
                "Age",
            ],
            priority_level,
        ),
        ("resource.k8s.io", "DeviceClass" | "ResourceClaimTemplate") => {
            (&["Name", "Age"], |o, now| vec![name(o), age(o, now)])
        }
        ("resource.k8s.io", "ResourceClaim") => (&["Name", "State", "Age"], resource_claim),
        ("resource.k8s.io", "ResourceSlice") => {
            (&["Name", "Node", "Driver", "Pool", "Age"], |o, now| {
                let spec = ["/spec/nodeName", "/spec/driver", "/spec/pool/name"]
                    .map(|p| Value::from(text(o, p)));
                [&[name(o)][..], &spec, &[age(o, now)]].concat()
            })
        }
        ("apiregistration.k8s.io", "APIService") => {
            (&["Name", "Service", "Available", "Age"], api_service)
        }
        _ => return None,
    };
    Some(Printer { columns, cells })
}

fn admission(kind: &str) -> Option<Printer> {
    let (columns, cells): (&[&str], Cells) = match kind {
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
            (&["Name", "Webhooks#", "Age"], |o, now| {
                vec![name(o), count(o, "/webhooks").into(), age(o, now)]
            })
        }
        "ValidatingAdmissionPolicy" => (&["Name", "Validations#", "ParamKind", "Age"], |o, now| {
            policy(o, "/spec/validations", now)
        }),
        "MutatingAdmissionPolicy" => (&["Name", "Mutations#", "ParamKind", "Age"], |o, now| {
            policy(o, "/spec/mutations", now)
        }),
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => {
            (&["Name", "PolicyName", "ParamRef", "Age"], policy_binding)
        }
        _ => return None,
    };
    Some(Printer { columns, cells })
}

fn policy(o: &Value, rules: &str, now: Timestamp) -> Vec<Value> {
    let kind = match &o["spec"]["paramKind"] {
        Value::Null => "<unset>".to_owned(),
        kind => format!("{}/{}", text(kind, "/apiVersion"), text(kind, "/kind")),
    };
    vec![name(o), count(o, rules).into(), kind.into(), age(o, now)]
}

fn policy_binding(o: &Value, now: Timestamp) -> Vec<Value> {
    let reference = &o["spec"]["paramRef"];
    let parameter = match (text(reference, "/namespace"), text(reference, "/name")) {
        ("", "") if reference["selector"].is_object() => selector(reference, "/selector"),
        (_, "") => "<unset>".into(),
        ("", name) => format!("*/{name}"),
        (namespace, name) => format!("{namespace}/{name}"),
    };
    vec![
        name(o),
        text(o, "/spec/policyName").into(),
        parameter.into(),
        age(o, now),
    ]
}

fn role_binding(o: &Value, now: Timestamp) -> Vec<Value> {
    let subjects = |kind: &str| {
        let one = |s: &Value| match kind {
            "ServiceAccount" => format!("{}/{}", text(s, "/namespace"), text(s, "/name")),
            _ => text(s, "/name").to_owned(),
        };
        let all = list(o, "/subjects")
            .iter()
            .filter(|s| s["kind"] == kind)
            .map(one);
        Value::from(all.collect::<Vec<_>>().join(", "))
    };
    let role = format!("{}/{}", text(o, "/roleRef/kind"), text(o, "/roleRef/name"));
    vec![
        name(o),
        role.into(),
        age(o, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

fn signing_request(o: &Value, now: Timestamp) -> Vec<Value> {
    let has = |kind: &str| object::condition(o, kind).is_some();
    let mut status = match () {
        _ if has("Denied") => "Denied",
        _ if has("Approved") => "Approved",
        _ => "Pending",
    }
    .to_owned();
    if has("Failed") {
        status.push_str(",Failed");
    }
    if !text(o, "/status/certificate").is_empty() {
        status.push_str(",Issued");
    }
    let duration = o
        .pointer("/spec/expirationSeconds")
        .and_then(Value::as_i64)
        .map(time::human_duration);
    vec![
        name(o),
        age(o, now),
        text_or(o, "/spec/signerName", "<none>").into(),
        text(o, "/spec/username").into(),
        duration.unwrap_or("<none>".into()).into(),
        status.into(),
    ]
}

fn storage_class(o: &Value, now: Timestamp) -> Vec<Value> {
    let mut class = object::name(o).to_owned();
    let default = [
        "storageclass.kubernetes.io/is-default-class",
        "storageclass.beta.kubernetes.io/is-default-class",
    ];
    if default
        .iter()
        .any(|key| object::annotation(o, key) == Some("true"))
    {
        class.push_str(" (default)");
    }
    vec![
        class.into(),
        text(o, "/provisioner").into(),
        text_or(o, "/reclaimPolicy", "Delete").into(),
        text_or(o, "/volumeBindingMode", "Immediate").into(),
        flag(o, "/allowVolumeExpansion").into(),
        age(o, now),
    ]
}

fn volume_attachment(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(o),
        text(o, "/spec/attacher").into(),
        text(o, "/spec/source/persistentVolumeName").into(),
        text(o, "/spec/nodeName").into(),
        flag(o, "/status/attached").into(),
        age(o, now),
    ]
}

fn csi_driver(o: &Value, now: Timestamp) -> Vec<Value> {
    let tokens = match o.pointer("/spec/tokenRequests") {
        Some(Value::Array(all)) => all
            .iter()
            .map(|t| text(t, "/audience"))
            .collect::<Vec<_>>()
            .join(","),
        _ => "<unset>".into(),
    };
    let modes = joined(o, "/spec/volumeLifecycleModes", ",");
    vec![
        name(o),
        o.pointer("/spec/attachRequired")
            .and_then(Value::as_bool)
            .unwrap_or(true)
            .into(),
        flag(o, "/spec/podInfoOnMount").into(),
        flag(o, "/spec/storageCapacity").into(),
        tokens.into(),
        flag(o, "/spec/requiresRepublish").into(),
        if modes.is_empty() {
            "<none>".into()
        } else {
            modes.into()
        },
        age(o, now),
    ]
}

fn priority_class(o: &Value, now: Timestamp) -> Vec<Value> {
    let policy = text(o, "/preemptionPolicy");
    vec![
        name(o),
        int(o, "/value").into(),
        flag(o, "/globalDefault").into(),
        age(o, now),
        policy.into(),
    ]
}

fn flow_schema(o: &Value, now: Timestamp) -> Vec<Value> {
    let dangling = object::condition(o, "Dangling")
        .and_then(|c| c["status"].as_str())
        .unwrap_or("?");
    vec![
        name(o),
        text(o, "/spec/priorityLevelConfiguration/name").into(),
        int(o, "/spec/matchingPrecedence").to_string().into(),
        text_or(o, "/spec/distinguisherMethod/type", "<none>").into(),
        age(o, now),
        dangling.into(),
    ]
}

fn priority_level(o: &Value, now: Timestamp) -> Vec<Value> {
    let number =
        |pointer: &str| Value::from(o.pointer(pointer).map_or("<none>".into(), Value::to_string));
    vec![
        name(o),
        text(o, "/spec/type").into(),
        number("/spec/limited/nominalConcurrencyShares"),
        number("/spec/limited/limitResponse/queuing/queues"),
        number("/spec/limited/limitResponse/queuing/handSize"),
        number("/spec/limited/limitResponse/queuing/queueLengthLimit"),
        age(o, now),
    ]
}

fn resource_claim(o: &Value, now: Timestamp) -> Vec<Value> {
    let deleted = object::deletion_timestamp(o).is_some();
    let allocated = o
        .pointer("/status/allocation")
        .is_some_and(Value::is_object);
    let states = [
        (deleted, "deleted"),
        (!allocated && !deleted, "pending"),
        (allocated, "allocated"),
        (allocated && count(o, "/status/reservedFor") > 0, "reserved"),
    ];
    let states: Vec<&str> = states
        .iter()
        .filter(|(is, _)| *is)
        .map(|(_, state)| *state)
        .collect();
    vec![name(o), states.join(",").into(), age(o, now)]
}

fn api_service(o: &Value, now: Timestamp) -> Vec<Value> {
    let service = match &o["spec"]["service"] {
        Value::Null => "Local".to_owned(),
        service => format!("{}/{}", text(service, "/namespace"), text(service, "/name")),
    };
    let available = match object::condition(o, "Available") {
        Some(c) if c["status"] == "True" => "True".to_owned(),
        Some(c) => format!("{} ({})", text(c, "/status"), text(c, "/reason")),
        None => "Unknown".to_owned(),
    };
    vec![name(o), service.into(), available.into(), age(o, now)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bindings() {
        let o = json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [
            {"kind": "User", "name": "u"}, {"kind": "User", "name": "v"},
            {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]});
        let expect = ["b", "ClusterRole/view", "<unknown>", "u, v", "", "n/s"];
        assert_eq!(role_binding(&o, Timestamp::UNIX_EPOCH), expect);
    }

    #[test]
    fn signing_requests() {
        let o = json!({"spec": {"expirationSeconds": 3600}, "status": {"certificate": "x",
            "conditions": [{"type": "Approved"}]}});
        assert_eq!(
            signing_request(&o, Timestamp::UNIX_EPOCH)[4..],
            ["60m", "Approved,Issued"]
        );
    }

    #[test]
    fn services_of_the_api() {
        let o = json!({"spec": {"service": {"namespace": "n", "name": "s"}},
            "status": {"conditions": [{"type": "Available", "status": "False", "reason": "MissingEndpoints"}]}});
        assert_eq!(
            api_service(&o, Timestamp::UNIX_EPOCH)[1..3],
            ["n/s", "False (MissingEndpoints)"]
        );
        assert_eq!(
            api_service(&json!({}), Timestamp::UNIX_EPOCH)[1..3],
            ["Local", "Unknown"]
        );
    }
}
