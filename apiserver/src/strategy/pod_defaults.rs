//! Defaults of pods and pod templates that depend on other fields.
//!
//! What does not depend on anything (`restartPolicy: Always`, probe periods, ...) is data beside the schema. Some
//! defaults are for pods only, so that templates stay as their author wrote them.

use apimachinery::quantity::Quantity;
use serde_json::{Map, Value, json};

use super::check::{flag, given, list_mut, set_default, text};

/// The lists of containers in a pod spec.
pub const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

const VOLUME_SOURCES_EMPTY: usize = 1; // only the name

/// Defaults of every pod spec, also inside templates.
pub fn default_spec(spec: &mut Value) {
    alias_service_account(spec);
    for list in CONTAINERS {
        for container in list_mut(spec, list) {
            let policy = pull_policy(text(container, "image"));
            set_default(container, "imagePullPolicy", policy);
            default_container_fields(container);
        }
    }
    for volume in list_mut(spec, "volumes") {
        default_volume(volume);
    }
    if let Some(overhead) = spec.get_mut("overhead") {
        canonical_quantities(overhead);
    }
    for list in ["limits", "requests"] {
        if let Some(map) = spec.get_mut("resources").and_then(|r| r.get_mut(list)) {
            canonical_quantities(map);
        }
    }
}

fn default_container_fields(container: &mut Value) {
    set_default(container, "resources", Value::Object(Map::new()));
    for list in ["limits", "requests"] {
        if let Some(map) = container.get_mut("resources").and_then(|r| r.get_mut(list)) {
            canonical_quantities(map);
        }
    }
    for env in list_mut(container, "env") {
        if let Some(reference) = env
            .get_mut("valueFrom")
            .and_then(|v| v.get_mut("resourceFieldRef"))
        {
            default_divisor(reference);
        }
    }
}

fn default_volume(volume: &mut Value) {
    let sources = volume
        .as_object()
        .map_or(0, |m| m.values().filter(|v| !v.is_null()).count());
    if sources <= VOLUME_SOURCES_EMPTY && given(volume, "name").is_some() {
        volume["emptyDir"] = json!({});
    }
    if let Some(image) = volume.get_mut("image").filter(|v| v.is_object()) {
        let policy = pull_policy(text(image, "reference"));
        set_default(image, "pullPolicy", policy);
    }
    if let Some(limit) = volume
        .get_mut("emptyDir")
        .and_then(|e| e.get_mut("sizeLimit"))
    {
        canonical_quantity(limit);
    }
    let projected = volume.get_mut("projected").map(Value::take);
    if let Some(mut projected) = projected {
        for source in list_mut(&mut projected, "sources") {
            if let Some(downward) = source.get_mut("downwardAPI") {
                default_downward_items(downward);
            }
        }
        volume["projected"] = projected;
    }
    if let Some(downward) = volume.get_mut("downwardAPI") {
        default_downward_items(downward);
    }
}

fn default_downward_items(downward: &mut Value) {
    for item in list_mut(downward, "items") {
        if let Some(reference) = item.get_mut("resourceFieldRef") {
            default_divisor(reference);
        }
    }
}

fn default_divisor(reference: &mut Value) {
    if reference.is_object() {
        set_default(reference, "divisor", "0");
        if let Some(divisor) = reference.get_mut("divisor") {
            canonical_quantity(divisor);
        }
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are always written.
fn alias_service_account(spec: &mut Value) {
    let name = match (
        text(spec, "serviceAccountName"),
        text(spec, "serviceAccount"),
    ) {
        ("", "") => return,
        ("", old) => old.to_owned(),
        (name, _) => name.to_owned(),
    };
    spec["serviceAccountName"] = name.clone().into();
    spec["serviceAccount"] = name.into();
}

/// `Always` for images whose tag is, or defaults to, `latest`.
#[must_use]
pub fn pull_policy(image: &str) -> &'static str {
    if image.is_empty() || image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

/// Defaults that only a Pod itself gets, never a template.
pub fn default_pod(pod: &mut Value) {
    let Some(spec) = pod.get_mut("spec").filter(|s| s.is_object()) else {
        return;
    };
    default_spec(spec);
    for list in ["containers", "initContainers"] {
        for container in list_mut(spec, list) {
            if let Some(resources) = container.get_mut("resources") {
                requests_from_limits(resources);
            }
        }
    }
    if let Some(resources) = spec.get_mut("resources").filter(|r| r.is_object()) {
        requests_from_limits(resources);
    }
    set_default(spec, "enableServiceLinks", true);
    if flag(spec, "hostNetwork") {
        for list in ["containers", "initContainers"] {
            for container in list_mut(spec, list) {
                for port in list_mut(container, "ports") {
                    let number = port.get("containerPort").cloned().unwrap_or_default();
                    if port
                        .get("hostPort")
                        .and_then(Value::as_i64)
                        .unwrap_or_default()
                        == 0
                    {
                        port["hostPort"] = number;
                    }
                }
            }
        }
    }
}

fn requests_from_limits(resources: &mut Value) {
    let Some(limits) = resources
        .get("limits")
        .and_then(Value::as_object)
        .filter(|l| !l.is_empty())
    else {
        return;
    };
    let limits = limits.clone();
    set_default(resources, "requests", json!({}));
    if let Some(requests) = resources.get_mut("requests").and_then(Value::as_object_mut) {
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
}

fn canonical_quantities(map: &mut Value) {
    for quantity in map.as_object_mut().into_iter().flat_map(|m| m.values_mut()) {
        canonical_quantity(quantity);
    }
}

/// Quantities are stored in canonical form: `0.5` and `500m` are one value.
pub fn canonical_quantity(value: &mut Value) {
    let text = match &*value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return,
    };
    if let Ok(quantity) = text.parse::<Quantity>() {
        *value = quantity.to_string().into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policies_follow_the_tag() {
        for (image, want) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:0123", "IfNotPresent"),
            ("nginx:latest@sha256:0123", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), want, "{image}");
        }
    }

    #[test]
    fn a_pod_gets_what_a_template_does_not() {
        let spec = json!({
            "serviceAccount": "me",
            "hostNetwork": true,
            "containers": [{
                "name": "a", "image": "a:1",
                "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}, "requests": {"cpu": "100m"}},
                "env": [{"name": "X", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
            }],
            "volumes": [{"name": "tmp"}, {"name": "c", "configMap": {"name": "c"}}],
        });
        let mut template = spec.clone();
        default_spec(&mut template);
        let container = &template["containers"][0];
        assert_eq!(template["serviceAccountName"], "me");
        assert_eq!(container["imagePullPolicy"], "IfNotPresent");
        assert_eq!(
            container["resources"],
            json!({"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "100m"}})
        );
        assert_eq!(
            container["env"][0]["valueFrom"]["resourceFieldRef"]["divisor"],
            "0"
        );
        assert_eq!(
            template["volumes"],
            json!([{"name": "tmp", "emptyDir": {}}, {"name": "c", "configMap": {"name": "c"}}])
        );
        assert!(
            template["enableServiceLinks"].is_null() && container["ports"][0]["hostPort"].is_null()
        );

        let mut pod = json!({"spec": spec});
        default_pod(&mut pod);
        let container = &pod["spec"]["containers"][0];
        assert_eq!(
            container["resources"]["requests"],
            json!({"cpu": "100m", "memory": "1Gi"})
        );
        assert_eq!(container["ports"][0]["hostPort"], 80);
        assert_eq!(pod["spec"]["enableServiceLinks"], true);
        let again = pod.clone();
        default_pod(&mut pod);
        assert_eq!(pod, again, "defaulting twice changes nothing");
    }
}
