//! Objects to fill a cluster with, about as large as real ones.

use serde_json::{Value, json};

pub fn config_map(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"app": "bench"}},
        "data": {"text": "x".repeat(500)},
    })
}

/// A pod as a Deployment would make it. With `node`, it is bound already.
pub fn pod(name: &str, node: Option<&str>) -> Value {
    let mut spec = json!({
        "containers": [{
            "name": "main",
            "image": "registry.example/app:1",
            "ports": [{"containerPort": 8080, "name": "http"}],
            "env": [{"name": "MODE", "value": "bench"}],
            "resources": {
                "requests": {"cpu": "10m", "memory": "16Mi"},
                "limits": {"memory": "64Mi"},
            },
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}},
        }],
    });
    if let Some(node) = node {
        spec["nodeName"] = node.into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {"app": "bench", "pod-template-hash": "5575858b56"},
        },
        "spec": spec,
    })
}

/// A ready node with room for `pods`.
pub fn node(name: &str, pods: u32) -> Value {
    let room = json!({"cpu": "32", "memory": "256Gi", "pods": pods.to_string(), "ephemeral-storage": "100Gi"});
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
            },
        },
        "status": {
            "capacity": room.clone(),
            "allocatable": room,
            "conditions": [{
                "type": "Ready",
                "status": "True",
                "reason": "KubeletReady",
                "message": "kubelet is posting ready status",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
            "nodeInfo": {
                "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "6.1", "osImage": "Linux",
                "containerRuntimeVersion": "containerd://1.7.0", "kubeletVersion": "v1.36.2",
                "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": "amd64",
            },
        },
    })
}
