//! The downward API: pod fields and container resources as text, for environment variables and volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use crate::model;
use crate::resources;

/// What the fields need beyond the pod itself.
#[derive(Clone, Debug, Default)]
pub struct FieldFacts {
    pub pod_ips: Vec<String>,
    pub host_ips: Vec<String>,
    /// Allocatable of the node, which stands in for a limit that is not set.
    pub node_cpu_milli: i64,
    pub node_memory: i64,
}

/// The value at a `fieldRef` path, or why there is none.
pub fn field(pod: &Pod, path: &str, facts: &FieldFacts) -> Result<String, String> {
    let meta = &pod.metadata;
    if let Some((map, key)) = subscript(path) {
        let of = |m: &Option<BTreeMap<String, String>>| {
            m.as_ref()
                .and_then(|m| m.get(key))
                .cloned()
                .unwrap_or_default()
        };
        return match map {
            "metadata.labels" => Ok(of(&meta.labels)),
            "metadata.annotations" => Ok(of(&meta.annotations)),
            _ => Err(format!("unsupported fieldPath: {path}")),
        };
    }
    let first = |ips: &[String]| ips.first().cloned().unwrap_or_default();
    Ok(match path {
        "metadata.name" => model::name(pod).to_string(),
        "metadata.namespace" => model::namespace(pod).to_string(),
        "metadata.uid" => model::uid(pod).to_string(),
        "metadata.labels" => map_text(meta.labels.as_ref()),
        "metadata.annotations" => map_text(meta.annotations.as_ref()),
        "spec.nodeName" => model::spec(pod).node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => model::spec(pod)
            .service_account_name
            .clone()
            .unwrap_or_default(),
        "status.hostIP" => first(&facts.host_ips),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => first(&facts.pod_ips),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// `metadata.labels['key']` in its two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, key) = path.strip_suffix("']")?.split_once("['")?;
    Some((map, key))
}

/// One `key="value"` a line, values quoted as Go does.
fn map_text(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", quote(v)))
        .collect();
    lines.join("\n")
}

fn quote(value: &str) -> String {
    let mut out = String::from("\"");
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A container's request or limit in units of the divisor, rounded up.
pub fn resource(
    pod: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    facts: &FieldFacts,
) -> Result<String, String> {
    let container = match selector.container_name.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => model::find_container(pod, name),
        None => own,
    };
    let container = container.ok_or_else(|| "container not found".to_string())?;
    let (kind, name) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource : {}", selector.resource))?;
    let lists = container.resources.as_ref();
    let limit = lists
        .and_then(|r| r.limits.as_ref())
        .and_then(|l| l.get(name));
    let quantity = match kind {
        "limits" => limit,
        "requests" => lists
            .and_then(|r| r.requests.as_ref())
            .and_then(|l| l.get(name)),
        _ => {
            return Err(format!(
                "unsupported container resource : {}",
                selector.resource
            ));
        }
    };
    let milli = |q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| {
        i128::from(resources::millis(q))
    };
    let fallback = match (kind, name) {
        ("limits", "cpu") => i128::from(facts.node_cpu_milli),
        ("limits", "memory") => i128::from(facts.node_memory) * 1000,
        _ => 0,
    };
    let value = quantity.map_or(fallback, milli);
    let divisor = selector
        .divisor
        .as_ref()
        .map(milli)
        .filter(|d| *d > 0)
        .unwrap_or(1000);
    Ok(((value + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_and_resources() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "1", "b": "x\"y"}},
            "spec": {"nodeName": "node", "containers": [{"name": "c", "resources": {
                "limits": {"memory": "64Mi"}, "requests": {"cpu": "250m"}}}]}
        }))
        .unwrap();
        let facts = FieldFacts {
            pod_ips: vec!["10.0.0.2".into()],
            host_ips: vec!["10.1.0.1".into()],
            node_cpu_milli: 2000,
            node_memory: 1 << 30,
        };
        let table = [
            ("metadata.name", "p"),
            ("metadata.labels['a']", "1"),
            ("metadata.labels", "a=\"1\"\nb=\"x\\\"y\""),
            ("metadata.annotations['none']", ""),
            ("spec.nodeName", "node"),
            ("status.podIP", "10.0.0.2"),
            ("status.hostIPs", "10.1.0.1"),
        ];
        for (path, want) in table {
            assert_eq!(field(&pod, path, &facts).unwrap(), want, "{path}");
        }
        assert!(field(&pod, "spec.containers", &facts).is_err());
        let own = model::spec(&pod).containers.first();
        let table = [
            ("limits.memory", Some("1Mi"), "64"),
            ("limits.memory", None, "67108864"),
            ("requests.cpu", None, "1"),
            ("requests.cpu", Some("1m"), "250"),
            ("limits.cpu", None, "2"),
        ];
        for (path, divisor, want) in table {
            let selector = ResourceFieldSelector {
                resource: path.into(),
                divisor: divisor
                    .map(|d| k8s_openapi::apimachinery::pkg::api::resource::Quantity(d.into())),
                container_name: None,
            };
            assert_eq!(
                resource(&pod, own, &selector, &facts).unwrap(),
                want,
                "{path}/{divisor:?}"
            );
        }
    }
}
