//! Resizing a pod in place: only CPU and memory may change, and nothing may be taken away.

use apimachinery::field::Path;
use serde_json::{Value, json};

use super::check::{Checks, entries, given, list, same, text};
use super::{common, pod};

/// `ValidatePodResize`, after the new spec has been found sound.
pub fn validate(checks: &mut Checks, new: &Value, old: &Value, path: &Path) {
    let (spec, before) = (&new["spec"], &old["spec"]);
    if text(&before["os"], "name") == "windows" {
        checks.forbidden(&Path::root(), "windows pods cannot be resized");
        return;
    }
    if pod::qos_class(spec) != text(&old["status"], "qosClass") {
        let shown = old["status"]["qosClass"].clone();
        let why = "Pod QOS Class may not change as a result of resizing";
        checks.invalid(path, shown, why);
    }
    let running = list(&old["status"], "containerStatuses")
        .iter()
        .find(|s| s.get("state").and_then(|s| given(s, "running")).is_some());
    if running.is_some_and(|status| given(status, "resources").is_none()) {
        checks.forbidden(path, "Pod running on node without support for resize");
    }
    if !same_order(checks, spec, before, path) {
        return;
    }
    let count = checks.0.len();
    let mut munged = spec.clone();
    pod_level(checks, &mut munged, before, path);
    for (kind, sidecars) in [("initContainers", true), ("containers", false)] {
        for (i, container) in list(before, kind).iter().enumerate() {
            let at = path.child(kind).index(i);
            resized(checks, &mut munged[kind][i], container, sidecars, &at, path);
        }
    }
    if checks.0.len() == count && !same(&munged, before) {
        checks.forbidden(path, "only cpu and memory resources are mutable");
    }
}

fn same_order(checks: &mut Checks, spec: &Value, before: &Value, path: &Path) -> bool {
    let count = checks.0.len();
    for kind in ["containers", "initContainers"] {
        let (path, new, old) = (path.child(kind), list(spec, kind), list(before, kind));
        if new.len() != old.len() {
            let why = format!("{kind} may not be added or removed on resize");
            checks.forbidden(&path, &why);
            continue;
        }
        for (i, _) in new
            .iter()
            .zip(old)
            .enumerate()
            .filter(|(_, (n, o))| text(n, "name") != text(o, "name"))
        {
            let why = format!("{kind} may not be renamed or reordered on resize");
            checks.forbidden(&path.index(i).child("name"), &why);
        }
    }
    checks.0.len() == count
}

fn removed(new: &Value, old: &Value, field: &str) -> bool {
    entries(old, field).any(|(name, _)| new[field].get(name).is_none())
}

/// Puts CPU and memory back to what they were, so that everything else can be compared.
fn mask(resources: &mut Value, old: &Value) {
    for field in ["limits", "requests"] {
        for name in ["cpu", "memory"] {
            let before = old[field].get(name).cloned();
            let Some(amounts) = resources.get_mut(field).and_then(Value::as_object_mut) else {
                if let Some(before) = before {
                    resources[field] = json!({ name: before });
                }
                continue;
            };
            match before {
                Some(before) => amounts.insert(name.into(), before),
                None => amounts.remove(name),
            };
        }
    }
}

fn pod_level(checks: &mut Checks, munged: &mut Value, before: &Value, path: &Path) {
    let (new, old) = (munged["resources"].clone(), &before["resources"]);
    let path_here = path.child("resources");
    if old.is_object() && !new.is_object() {
        checks.forbidden(&path_here, "pod-level resources cannot be removed");
        return;
    }
    for (field, what) in [("requests", "requests"), ("limits", "limits")] {
        if removed(&new, old, field) {
            let why = format!("pod-level resource {what} cannot be removed");
            checks.forbidden(&path_here.child(field), &why);
        }
    }
    if !new.is_object() {
        return;
    }
    mask(&mut munged["resources"], old);
    if same(&munged["resources"], old) {
        common::copy(munged, before, "resources");
    } else {
        checks.forbidden(
            path,
            "only cpu and memory resources are mutable at pod-level",
        );
    }
}

fn resized(
    checks: &mut Checks,
    container: &mut Value,
    before: &Value,
    init: bool,
    at: &Path,
    spec_path: &Path,
) {
    let sidecar = text(container, "restartPolicy") == "Always";
    let changed = !same(container, before);
    if init && !sidecar {
        if changed {
            let why = "resources for non-sidecar init containers are immutable";
            checks.forbidden(spec_path, why);
            *container = before.clone();
        }
        return;
    }
    let (new, old) = (container["resources"].clone(), &before["resources"]);
    for (field, what) in [("requests", "requests"), ("limits", "limits")] {
        if removed(&new, old, field) {
            let why = format!("resource {what} cannot be removed");
            checks.forbidden(&at.child("resources").child(field), &why);
        }
    }
    if new.is_object() {
        mask(&mut container["resources"], old);
    }
    if !same(container, before) {
        if init {
            let why = "only cpu and memory resources for init or sidecar containers are mutable";
            checks.forbidden(at, why);
        } else {
            checks.forbidden(spec_path, "only cpu and memory resources are mutable");
        }
    }
    *container = before.clone();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(cpu: &str) -> Value {
        let resources = json!({"requests": {"cpu": cpu, "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}});
        json!({"spec": {"containers": [{"name": "a", "image": "a", "resources": resources}]}, "status": {"qosClass": "Burstable"}})
    }

    fn errors(new: &Value, old: &Value) -> Vec<String> {
        let mut checks = Checks::default();
        validate(&mut checks, new, old, &Path::new("spec"));
        checks.done().0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn resizes() {
        let old = pod("1");
        assert!(errors(&pod("500m"), &old).is_empty());
        assert_eq!(errors(&pod("1"), &old), [""; 0]);
        let change = |change: fn(&mut Value)| {
            let mut new = old.clone();
            change(&mut new);
            errors(&new, &old)
        };
        assert_eq!(
            change(|p| p["spec"]["containers"][0]["image"] = "b".into()),
            ["spec: Forbidden: only cpu and memory resources are mutable"]
        );
        assert_eq!(
            change(|p| p["spec"]["containers"][0]["name"] = "b".into()),
            [
                "spec.containers[0].name: Forbidden: containers may not be renamed or reordered on resize"
            ]
        );
        assert_eq!(
            change(|p| p["spec"]["containers"][0]["resources"] =
                json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2", "memory": "2Gi"}})),
            [
                "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed"
            ]
        );
        let found = change(|p| {
            p["spec"]["containers"][0]["resources"]["requests"] =
                json!({"cpu": "2", "memory": "2Gi"})
        });
        assert_eq!(
            found,
            [
                "spec: Invalid value: \"Burstable\": Pod QOS Class may not change as a result of resizing"
            ]
        );
    }
}
