//! Pods: what a create sets, what an update may change, how long a deletion waits.

use apimachinery::field::{ErrorList, Path};
use apimachinery::quantity::Quantity;
use serde_json::{Map, Value, json};

use super::check::{Checks, entries, given, integer, list, list_mut, same, text};
use super::{Context, Strategy, common, pod_defaults, pod_resize, pod_spec, pod_warnings};

/// The strategy of `pods`.
pub struct Pod;

const MIRROR: &str = "kubernetes.io/config.mirror";
impl Strategy for Pod {
    fn default(&self, object: &mut Value) {
        pod_defaults::default_pod(object);
    }

    fn prepare_for_create(&self, _context: &Context<'_>, object: &mut Value) {
        let mut status = json!({"phase": "Pending", "qosClass": qos_class(&object["spec"])});
        if !list(&object["spec"], "schedulingGates").is_empty() {
            status["conditions"] = json!([{
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
        object["status"] = status;
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        if context.subresource == "ephemeralcontainers" {
            let containers = object
                .get_mut("spec")
                .and_then(|s| s.get_mut("ephemeralContainers"))
                .map(Value::take);
            common::copy(object, old, "spec");
            if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
                spec.insert("ephemeralContainers".into(), containers.unwrap_or_default());
            }
        }
        common::copy(object, old, "status");
    }

    fn prepare_for_status_update(&self, _context: &Context<'_>, object: &mut Value, old: &Value) {
        common::keep_all_but_status(object, old);
        if !object["status"].is_object() {
            object["status"] = json!({});
        }
        // The class is decided at creation; kubelets may leave it out.
        let class = text(&old["status"], "qosClass");
        if !class.is_empty() {
            super::check::set_default(&mut object["status"], "qosClass", class);
        }
    }

    fn validate(&self, context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let path = Path::new("spec");
        let spec = &object["spec"];
        validate_spec(&mut checks, object, &path);
        if context.subresource.is_empty() && !list(spec, "ephemeralContainers").is_empty() {
            checks.forbidden(
                &path.child("ephemeralContainers"),
                "cannot be set on create",
            );
        }
        if !text(spec, "nodeName").is_empty() && !list(spec, "schedulingGates").is_empty() {
            checks.forbidden(
                &path.child("nodeName"),
                "cannot be set until all schedulingGates have been cleared",
            );
        }
        checks.done()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let path = Path::new("spec");
        validate_spec(&mut checks, object, &path);
        mirror_annotation(&mut checks, object, old);
        if context.subresource == "ephemeralcontainers" {
            ephemeral_update(
                &mut checks,
                &object["spec"],
                &old["spec"],
                &path.child("ephemeralContainers"),
            );
        } else if context.subresource == "resize" {
            pod_resize::validate(&mut checks, object, old, &path);
        } else {
            spec_update(&mut checks, &object["spec"], &old["spec"], &path);
        }
        checks.done()
    }

    fn validate_status_update(
        &self,
        _context: &Context<'_>,
        object: &Value,
        old: &Value,
    ) -> ErrorList {
        let mut checks = Checks::default();
        let path = Path::new("status");
        mirror_annotation(&mut checks, object, old);
        let (new, before) = (&object["status"], &old["status"]);
        if !same(&new["qosClass"], &before["qosClass"]) {
            checks.immutable(
                &path.child("qosClass"),
                &new["qosClass"],
                &before["qosClass"],
            );
        }
        for statuses in ["containerStatuses", "initContainerStatuses"] {
            state_transitions(
                &mut checks,
                new,
                before,
                statuses,
                &old["spec"],
                &path.child(statuses),
            );
        }
        for (field, item) in [("podIPs", "ip"), ("hostIPs", "ip")] {
            for (i, address) in list(new, field).iter().enumerate() {
                let value = text(address, item);
                if value.parse::<std::net::IpAddr>().is_err() {
                    let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                    checks.invalid(&path.child(field).index(i), value, why);
                }
            }
        }
        checks.done()
    }

    fn warnings(&self, context: &Context<'_>, object: &Value) -> Vec<String> {
        if context.subresource == "status" {
            return Vec::new();
        }
        pod_warnings::warnings(object, &Path::root())
    }

    /// A pod that never ran, or has stopped, goes at once; others get their grace period, at least 1 second if negative.
    fn grace_period(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        let spec = &object["spec"];
        let stopped = matches!(text(&object["status"], "phase"), "Failed" | "Succeeded");
        if text(spec, "nodeName").is_empty() || stopped {
            return Some(0);
        }
        let period = requested
            .or_else(|| integer(spec, "terminationGracePeriodSeconds"))
            .unwrap_or(0);
        Some(if period < 0 { 1 } else { period })
    }
}

fn validate_spec(checks: &mut Checks, pod: &Value, path: &Path) {
    let spec = &pod["spec"];
    pod_spec::validate(checks, spec, path, true);
    if text(spec, "serviceAccountName").is_empty() {
        for (v, volume) in list(spec, "volumes").iter().enumerate() {
            let sources = volume
                .get("projected")
                .map_or(&[][..], |p| list(p, "sources"));
            for (s, source) in sources.iter().enumerate() {
                if given(source, "serviceAccountToken").is_some() {
                    let path = path
                        .child("volumes")
                        .index(v)
                        .child("projected")
                        .child("sources")
                        .index(s);
                    let why = "must not be specified when serviceAccountName is not set";
                    checks.forbidden(&path.child("serviceAccountToken"), why);
                }
            }
        }
    }
    for kind in ["containers", "initContainers"] {
        for (i, container) in list(spec, kind).iter().enumerate() {
            let image = text(container, "image");
            if image.trim() != image {
                let path = path.child(kind).index(i).child("image");
                checks.invalid(&path, image, "must not have leading or trailing whitespace");
            }
        }
    }
}

fn mirror_annotation(checks: &mut Checks, new: &Value, old: &Value) {
    let of = |o: &Value| o["metadata"]["annotations"][MIRROR].clone();
    let path = Path::new("metadata").child("annotations").key(MIRROR);
    match (of(new), of(old)) {
        (new, old) if new == old => {}
        (_, Value::Null) => checks.forbidden(&path, "may not add mirror pod annotation"),
        _ => checks.forbidden(&path, "may not remove or update mirror pod annotation"),
    }
}

/// What an update may change: images, deadlines, more tolerations, fewer scheduling gates.
fn spec_update(checks: &mut Checks, new: &Value, old: &Value, path: &Path) {
    for kind in ["containers", "initContainers"] {
        if list(new, kind).len() != list(old, kind).len() {
            checks.forbidden(
                &path.child(kind),
                "pod updates may not add or remove containers",
            );
            return;
        }
    }
    if !deadline_update(checks, new, old, &path.child("activeDeadlineSeconds")) {
        return;
    }
    let bare = |t: &Value| {
        let mut t = t.clone();
        if let Some(map) = t.as_object_mut() {
            map.remove("tolerationSeconds");
        }
        t
    };
    let kept = |t: &Value| {
        list(new, "tolerations")
            .iter()
            .any(|n| same(&bare(n), &bare(t)))
    };
    if !list(old, "tolerations").iter().all(kept) {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        checks.forbidden(&path.child("tolerations"), why);
    }
    for (i, gate) in list(new, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        if !list(old, "schedulingGates")
            .iter()
            .any(|g| text(g, "name") == name)
        {
            let why = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            checks.forbidden(&path.child("schedulingGates").index(i).child("name"), &why);
        }
    }
    let mut munged = new.clone();
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        common::copy(&mut munged, old, field);
    }
    for kind in ["containers", "initContainers"] {
        for (container, before) in list_mut(&mut munged, kind).zip(list(old, kind)) {
            common::copy(container, before, "image");
        }
    }
    if integer(old, "terminationGracePeriodSeconds").is_some_and(|s| s < 0)
        && integer(new, "terminationGracePeriodSeconds") == Some(1)
    {
        common::copy(&mut munged, old, "terminationGracePeriodSeconds");
    }
    if !list(old, "schedulingGates").is_empty() {
        gated_update(checks, &mut munged, old, path);
    }
    if !same(&munged, old) {
        let why = format!(
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
             `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
             `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n{}",
            difference(&munged, old)
        );
        checks.forbidden(path, &why);
    }
}

/// While a pod is gated, its node selector may grow and its node affinity may change.
fn gated_update(checks: &mut Checks, munged: &mut Value, old: &Value, path: &Path) {
    let added_only =
        entries(old, "nodeSelector").all(|(k, v)| munged["nodeSelector"].get(k) == Some(v));
    if !added_only {
        checks.invalid(
            &path.child("nodeSelector"),
            munged["nodeSelector"].clone(),
            "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        );
    }
    common::copy(munged, old, "nodeSelector");
    if munged["affinity"].is_object() {
        let before = old["affinity"]
            .get("nodeAffinity")
            .cloned()
            .unwrap_or_default();
        munged["affinity"]["nodeAffinity"] = before;
    }
}

fn deadline_update(checks: &mut Checks, new: &Value, old: &Value, path: &Path) -> bool {
    match (
        integer(new, "activeDeadlineSeconds"),
        integer(old, "activeDeadlineSeconds"),
    ) {
        (Some(new), Some(old)) if old < new => {
            checks.invalid(path, new, "must be less than or equal to previous value");
            false
        }
        (None, Some(_)) => {
            checks.invalid(
                path,
                Value::Null,
                "must not update from a positive integer to nil value",
            );
            true
        }
        _ => true,
    }
}

fn ephemeral_update(checks: &mut Checks, new: &Value, old: &Value, path: &Path) {
    let after = list(new, "ephemeralContainers");
    for before in list(old, "ephemeralContainers") {
        let name = text(before, "name");
        match after.iter().find(|c| text(c, "name") == name) {
            None => checks.forbidden(
                path,
                &format!("existing ephemeral containers {name:?} may not be removed"),
            ),
            Some(now) if !same(now, before) => {
                checks.forbidden(
                    path,
                    &format!("existing ephemeral containers {name:?} may not be changed"),
                );
            }
            Some(_) => {}
        }
    }
}

fn state_transitions(
    checks: &mut Checks,
    new: &Value,
    old: &Value,
    field: &str,
    spec: &Value,
    path: &Path,
) {
    let list_of = if field == "containerStatuses" {
        "containers"
    } else {
        "initContainers"
    };
    for (i, before) in list(old, field).iter().enumerate() {
        let name = text(before, "name");
        let Some(terminated) = before.get("state").and_then(|s| given(s, "terminated")) else {
            continue;
        };
        let container = list(spec, list_of).iter().find(|c| text(c, "name") == name);
        let own = container.map_or("", |c| text(c, "restartPolicy"));
        let policy = if own.is_empty() {
            text(spec, "restartPolicy")
        } else {
            own
        };
        let failed = integer(terminated, "exitCode").unwrap_or(0) != 0;
        // Init containers run again until they succeed, unless the pod never restarts anything.
        let may_restart = policy == "Always" || (policy == "OnFailure" && failed);
        let restarted = list(new, field).iter().any(|s| {
            text(s, "name") == name
                && s.get("state")
                    .and_then(|s| given(s, "terminated"))
                    .is_none()
        });
        if restarted && !may_restart {
            checks.forbidden(
                &path.index(i).child("state"),
                "may not be transitioned to non-terminated state",
            );
        }
    }
}

/// The changed fields, one a line: shorter than Go's diff, and enough to see what was refused.
pub fn difference(new: &Value, old: &Value) -> String {
    fn walk(new: &Value, old: &Value, at: String, out: &mut Vec<String>) {
        match (new, old) {
            (Value::Object(a), Value::Object(b)) => {
                let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
                for key in keys {
                    walk(&new[key], &old[key], format!("{at}.{key}"), out);
                }
            }
            (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
                for (i, (x, y)) in a.iter().zip(b).enumerate() {
                    walk(x, y, format!("{at}[{i}]"), out);
                }
            }
            _ if same(new, old) => {}
            _ => out.push(format!("- {at}: {old}\n+ {at}: {new}")),
        }
    }
    let mut out = Vec::new();
    walk(new, old, "spec".into(), &mut out);
    out.join("\n")
}

/// BestEffort without any cpu or memory, Guaranteed when limits equal requests everywhere, Burstable between.
#[must_use]
pub fn qos_class(spec: &Value) -> &'static str {
    const COMPUTE: [&str; 2] = ["cpu", "memory"];
    let empty = Value::Object(Map::new());
    let amount = |resources: &Value, list: &str, name: &str| {
        let quantity = resources
            .get(list)
            .and_then(|l| l.get(name))
            .and_then(Value::as_str);
        quantity
            .and_then(|s| Quantity::parse(s).ok())
            .filter(|q| q.sign() > 0)
    };
    let of_pod = given(spec, "resources").filter(|r| !same(r, &empty));
    let all: Vec<&Value> = match of_pod {
        Some(resources) => vec![resources],
        None => {
            let containers = list(spec, "containers")
                .iter()
                .chain(list(spec, "initContainers"));
            containers
                .map(|c| c.get("resources").unwrap_or(&empty))
                .collect()
        }
    };
    let any = all.iter().any(|r| {
        COMPUTE.iter().any(|n| {
            amount(r, "limits", n)
                .or(amount(r, "requests", n))
                .is_some()
        })
    });
    if !any {
        return "BestEffort";
    }
    let total = |list: &str, name: &str| {
        all.iter()
            .filter_map(|r| amount(r, list, name))
            .sum::<Quantity>()
    };
    let limited = all
        .iter()
        .all(|r| COMPUTE.iter().all(|n| amount(r, "limits", n).is_some()));
    let equal = COMPUTE
        .iter()
        .all(|n| total("requests", n) == total("limits", n));
    if limited && equal {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Value {
        json!({"metadata": {"name": "p"}, "spec": {
            "nodeName": "n1", "terminationGracePeriodSeconds": 30, "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
            "containers": [{"name": "a", "image": "a:1", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}],
            "tolerations": [{"key": "k", "operator": "Exists"}],
        }})
    }

    #[test]
    fn classes_of_service() {
        let c = |limits: Value, requests: Value| json!({"resources": {"limits": limits, "requests": requests}});
        let full = json!({"cpu": "1", "memory": "1Gi"});
        for (containers, want) in [
            (vec![json!({})], "BestEffort"),
            (vec![c(full.clone(), full.clone())], "Guaranteed"),
            (vec![c(full.clone(), full.clone()), json!({})], "Burstable"),
            (vec![c(json!({}), json!({"cpu": "1"}))], "Burstable"),
            (
                vec![c(json!({"cpu": "1000m", "memory": "1024Mi"}), full.clone())],
                "Guaranteed",
            ),
            (
                vec![c(json!({"nvidia.com/gpu": "1"}), json!({}))],
                "BestEffort",
            ),
            (
                vec![c(json!({"cpu": "0"}), json!({"cpu": "0"}))],
                "BestEffort",
            ),
        ] {
            assert_eq!(
                qos_class(&json!({"containers": containers})),
                want,
                "{containers:?}"
            );
        }
    }

    #[test]
    fn grace_periods() {
        let scheduled = pod();
        let mut pending = pod();
        pending["spec"]["nodeName"] = "".into();
        let mut done = pod();
        done["status"] = json!({"phase": "Succeeded"});
        for (pod, asked, want) in [
            (&scheduled, None, 30),
            (&scheduled, Some(5), 5),
            (&scheduled, Some(0), 0),
            (&scheduled, Some(-1), 1),
            (&pending, Some(5), 0),
            (&done, None, 0),
        ] {
            assert_eq!(Pod.grace_period(pod, asked), Some(want), "{asked:?}");
        }
    }

    #[test]
    fn updates_may_change_little() {
        type Change = fn(&mut Value);
        let table: &[(Change, &str)] = &[
            (|_| {}, ""),
            (|s| s["containers"][0]["image"] = "a:2".into(), ""),
            (|s| s["activeDeadlineSeconds"] = 5.into(), ""),
            (
                |s| {
                    s["tolerations"] = json!([{"key": "k", "operator": "Exists"}, {"key": "l", "operator": "Exists"}])
                },
                "",
            ),
            (
                |s| s["tolerations"] = json!([]),
                "existing toleration can not be modified except its tolerationSeconds",
            ),
            (
                |s| s["containers"] = json!([]),
                "pod updates may not add or remove containers",
            ),
            (
                |s| s["nodeName"] = "n2".into(),
                "pod updates may not change fields other than `spec.containers[*].image`",
            ),
            (
                |s| s["schedulingGates"] = json!([{"name": "g"}]),
                "only deletion is allowed, but found new scheduling gate 'g'",
            ),
        ];
        for (change, want) in table {
            let old = pod();
            let mut new = pod();
            change(&mut new["spec"]);
            let mut checks = Checks::default();
            spec_update(&mut checks, &new["spec"], &old["spec"], &Path::new("spec"));
            let got: Vec<String> = checks.done().0.into_iter().map(|e| e.detail).collect();
            assert!(
                if want.is_empty() {
                    got.is_empty()
                } else {
                    got[0].starts_with(want)
                },
                "{want}: {got:?}"
            );
        }
    }
}
