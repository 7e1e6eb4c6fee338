//! An object of every kind that the API server takes as it stands: what the generated requests read, change and delete.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

/// The name of most of them.
pub const NAME: &str = "seed";

fn request() -> String {
    let key = KeyPair::generate().expect("a key");
    let request = CertificateParams::default().serialize_request(&key);
    let pem = request.and_then(|request| request.pem());
    STANDARD.encode(pem.expect("a request"))
}

fn template() -> Value {
    json!({"metadata": {"labels": {"app": "seed"}}, "spec": pod_spec()})
}

fn pod_spec() -> Value {
    json!({"containers": [{"name": "c", "image": "image:1", "ports": [{"containerPort": 80}]}]})
}

fn workload() -> Value {
    json!({"selector": {"matchLabels": {"app": "seed"}}, "template": template()})
}

fn job() -> Value {
    let mut template = template();
    template["spec"]["restartPolicy"] = "Never".into();
    template
}

fn webhook() -> Value {
    json!({"name": "seed.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": {"url": "https://127.0.0.1:1/"}, "failurePolicy": "Ignore",
        "rules": [{"apiGroups": ["none.example.com"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["nones"]}]})
}

fn matched() -> Value {
    json!({"resourceRules": [{"apiGroups": ["none.example.com"], "apiVersions": ["v1"], "operations": ["CREATE"],
        "resources": ["nones"]}]})
}

/// The rest of a kind's object: everything but its kind, version and name.
fn rest(kind: &str) -> Value {
    match kind {
        "Binding" => json!({"target": {"kind": "Node", "name": "seed"}}),
        "ConfigMap" => json!({"data": {"k": "v"}}),
        "Endpoints" => {
            json!({"subsets": [{"addresses": [{"ip": "10.1.1.1"}], "ports": [{"port": 80}]}]})
        }
        "LimitRange" => json!({"spec": {"limits": []}}),
        "Pod" => json!({"spec": pod_spec()}),
        "PodTemplate" => json!({"template": template()}),
        "PersistentVolume" => {
            json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": "/tmp/seed"}}})
        }
        "PersistentVolumeClaim" => json!({"spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}),
        "ReplicationController" => {
            json!({"spec": {"selector": {"app": "seed"}, "template": template()}})
        }
        "ResourceQuota" => json!({"spec": {"hard": {"count/none.example.com": "10"}}}),
        "Secret" => json!({"data": {"k": "AAEC"}}),
        "Service" => json!({"spec": {"selector": {"app": "seed"}, "ports": [{"port": 80}]}}),
        "APIService" => {
            json!({"spec": {"group": "seed.example.com", "version": "v1", "groupPriorityMinimum": 100,
            "versionPriority": 10, "insecureSkipTLSVerify": true, "service": {"namespace": "generated", "name": "none"}}})
        }
        "ControllerRevision" => json!({"revision": 1, "data": {"a": 1}}),
        "DaemonSet" | "Deployment" | "ReplicaSet" => json!({"spec": workload()}),
        "StatefulSet" => {
            let mut spec = workload();
            spec["serviceName"] = "seed".into();
            json!({ "spec": spec })
        }
        "LocalSubjectAccessReview" | "SubjectAccessReview" => {
            json!({"spec": {"user": "u", "resourceAttributes": {"namespace": "generated", "verb": "get", "resource": "pods"}}})
        }
        "SelfSubjectAccessReview" => {
            json!({"spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}})
        }
        "SelfSubjectRulesReview" => json!({"spec": {"namespace": "generated"}}),
        "TokenReview" => json!({"spec": {"token": "t"}}),
        "HorizontalPodAutoscaler" => {
            json!({"spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "seed"}, "maxReplicas": 3}})
        }
        "CronJob" => {
            json!({"spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": {"template": job()}}}})
        }
        "Job" => json!({"spec": {"template": job()}}),
        "CertificateSigningRequest" => {
            json!({"spec": {"request": request(), "signerName": "example.com/seed", "usages": ["client auth"]}})
        }
        "IngressClass" => json!({"spec": {"controller": "example.com/seed"}}),
        "Ingress" => {
            json!({"spec": {"defaultBackend": {"service": {"name": "seed", "port": {"number": 80}}}}})
        }
        "IPAddress" => {
            json!({"spec": {"parentRef": {"resource": "services", "namespace": "generated", "name": "seed"}}})
        }
        "NetworkPolicy" => json!({"spec": {"podSelector": {}}}),
        "ServiceCIDR" => json!({"spec": {"cidrs": ["10.111.0.0/24"]}}),
        "PodDisruptionBudget" => {
            json!({"spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "seed"}}}})
        }
        "ClusterRoleBinding" | "RoleBinding" => {
            json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "seed"}]})
        }
        "ClusterRole" | "Role" => {
            json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]})
        }
        "CSINode" => json!({"spec": {"drivers": []}}),
        "CSIDriver" => json!({"spec": {}}),
        "CSIStorageCapacity" => json!({"storageClassName": "seed"}),
        "StorageClass" => json!({"provisioner": "example.com/seed"}),
        "VolumeAttachment" => {
            json!({"spec": {"attacher": "example.com", "nodeName": "seed", "source": {"persistentVolumeName": "seed"}}})
        }
        "VolumeAttributesClass" => json!({"driverName": "example.com", "parameters": {"a": "b"}}),
        _ => policies(kind),
    }
}

fn policies(kind: &str) -> Value {
    match kind {
        "MutatingAdmissionPolicy" => {
            json!({"spec": {"matchConstraints": matched(), "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{}"}}]}})
        }
        "MutatingAdmissionPolicyBinding" => json!({"spec": {"policyName": "seed"}}),
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
            json!({"webhooks": [webhook()]})
        }
        "ValidatingAdmissionPolicy" => {
            json!({"spec": {"matchConstraints": matched(), "validations": [{"expression": "true"}]}})
        }
        "ValidatingAdmissionPolicyBinding" => {
            json!({"spec": {"policyName": "seed", "validationActions": ["Deny"]}})
        }
        "CustomResourceDefinition" => {
            json!({"spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "seeds", "kind": "Seed"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object"}}}}}]}})
        }
        "PriorityClass" => json!({"value": 10}),
        "Lease" => json!({"spec": {"holderIdentity": "seed"}}),
        "RuntimeClass" => json!({"handler": "seed"}),
        "EndpointSlice" => {
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.1.1.1"]}],
            "ports": [{"name": "http", "port": 80}]})
        }
        "DeviceClass" => json!({"spec": {}}),
        "ResourceClaim" => json!({"spec": {}}),
        "ResourceClaimTemplate" => json!({"spec": {"spec": {}}}),
        "ResourceSlice" => json!({"spec": {"driver": "example.com", "nodeName": "seed",
            "pool": {"name": "seed", "generation": 1, "resourceSliceCount": 1}, "devices": []}}),
        "FlowSchema" => {
            json!({"spec": {"priorityLevelConfiguration": {"name": "catch-all"}, "matchingPrecedence": 500}})
        }
        "PriorityLevelConfiguration" => {
            json!({"spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 5,
            "limitResponse": {"type": "Reject"}}}})
        }
        _ => json!({}),
    }
}

/// The name of a kind's object: some have to follow what is in it.
pub fn name(kind: &str) -> &'static str {
    match kind {
        "APIService" => "v1.seed.example.com",
        "CustomResourceDefinition" => "seeds.example.com",
        "IPAddress" => "10.111.0.9",
        _ => NAME,
    }
}

pub fn object(group: &str, version: &str, kind: &str, namespace: &str) -> Value {
    let mut object = rest(kind);
    object["kind"] = kind.into();
    object["apiVersion"] = match group {
        "" => version.into(),
        group => format!("{group}/{version}").into(),
    };
    object["metadata"] = json!({"name": name(kind), "labels": {"app": "seed"}});
    if kind == "Event" {
        event(&mut object, group, namespace);
    }
    object
}

fn event(object: &mut Value, group: &str, namespace: &str) {
    let about = json!({"kind": "Pod", "namespace": namespace, "name": "seed"});
    if group.is_empty() {
        object["involvedObject"] = about;
        object["reason"] = "Seed".into();
        return;
    }
    object["regarding"] = about;
    for (field, value) in [
        ("reason", "Seed"),
        ("action", "Seed"),
        ("type", "Normal"),
        ("reportingController", "example.com/seed"),
        ("reportingInstance", "seed"),
        ("eventTime", "2026-01-02T03:04:05.000000Z"),
    ] {
        object[field] = value.into();
    }
}

/// The body of a subresource that takes another kind.
pub fn below(kind: &str, group: &str, version: &str) -> Value {
    let mut object = match kind {
        "Scale" => json!({"spec": {"replicas": 2}}),
        "Eviction" => json!({"deleteOptions": {"gracePeriodSeconds": 0}}),
        "TokenRequest" => json!({"spec": {"audiences": ["a"], "expirationSeconds": 700}}),
        _ => rest(kind),
    };
    object["kind"] = kind.into();
    object["apiVersion"] = match group {
        "" => version.into(),
        group => format!("{group}/{version}").into(),
    };
    object["metadata"] = json!({"name": NAME});
    object
}
