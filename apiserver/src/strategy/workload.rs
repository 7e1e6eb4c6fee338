//! Deployments, replica sets, daemon sets, stateful sets, replication controllers and pod templates.
//!
//! They share their pod template and most rules; what differs is data in [`Workload`].

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use apimachinery::selector::LabelSelector;
use serde_json::{Map, Value, json};

use super::check::{Checks, given, integer, list, same, set_default, text};
use super::{Context, Strategy, common, pod_defaults, pod_spec, pod_warnings};

/// One kind that keeps pods running.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    Deployment,
    ReplicaSet,
    DaemonSet,
    StatefulSet,
    ReplicationController,
}

impl Strategy for Workload {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec").filter(|s| s.is_object()) else {
            return;
        };
        default_template(spec);
        if *self != Self::DaemonSet {
            set_default(spec, "replicas", 1);
        }
        match self {
            Self::Deployment => default_deployment(spec),
            Self::DaemonSet => default_daemon_set(spec),
            Self::StatefulSet => default_stateful_set(spec),
            Self::ReplicationController => {
                let labels = spec["template"]["metadata"]["labels"].clone();
                if labels.as_object().is_some_and(|l| !l.is_empty()) {
                    if same(&spec["selector"], &Value::Null) {
                        spec["selector"] = labels.clone();
                    }
                    if same(&object["metadata"]["labels"], &Value::Null) {
                        object["metadata"]["labels"] = labels;
                    }
                }
            }
            Self::ReplicaSet => {}
        }
    }

    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        common::reset_status_on_create(context, object);
        match self {
            // The status of these always counts replicas.
            Self::ReplicaSet | Self::ReplicationController => {
                object["status"] = json!({"replicas": 0})
            }
            Self::DaemonSet => {
                object["status"] = json!({
                    "currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0,
                });
                object["metadata"]["annotations"][TEMPLATE_GENERATION] = "1".into();
            }
            Self::StatefulSet => object["status"] = json!({"replicas": 0, "availableReplicas": 0}),
            Self::Deployment => {}
        }
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        common::keep_status(context, object, old);
        if *self == Self::DaemonSet {
            count_template(object, old);
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        self.spec(&mut checks, &object["spec"], &Path::new("spec"));
        if *self == Self::StatefulSet {
            let name = apimachinery::object::name(object);
            checks.each(
                &Path::new("metadata").child("name"),
                name,
                names::dns1123_label(name),
            );
        }
        checks.done()
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let path = Path::new("spec");
        let (new, before) = (&object["spec"], &old["spec"]);
        self.spec(&mut checks, new, &path);
        match self {
            Self::ReplicationController => {}
            Self::StatefulSet => stateful_set_update(&mut checks, new, before, &path),
            _ => checks.immutable(
                &path.child("selector"),
                &new["selector"],
                &before["selector"],
            ),
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
        let (status, before) = (&object["status"], &old["status"]);
        for (field, value) in status.as_object().into_iter().flatten() {
            if let Some(number) = value.as_i64().filter(|n| *n < 0) {
                checks.invalid(&path.child(field), number, super::check::NOT_NEGATIVE);
            }
        }
        let count = |field: &str| integer(status, field).unwrap_or(0);
        if *self != Self::DaemonSet {
            let parts = [
                "fullyLabeledReplicas",
                "updatedReplicas",
                "readyReplicas",
                "currentReplicas",
                "availableReplicas",
            ];
            for field in parts.into_iter().filter(|f| count(f) > count("replicas")) {
                checks.invalid(
                    &path.child(field),
                    count(field),
                    "cannot be greater than status.replicas",
                );
            }
            if count("availableReplicas") > count("readyReplicas") {
                let shown = if *self == Self::StatefulSet {
                    "status.readyReplicas"
                } else {
                    "readyReplicas"
                };
                let why = format!("cannot be greater than {shown}");
                checks.invalid(
                    &path.child("availableReplicas"),
                    count("availableReplicas"),
                    &why,
                );
            }
        }
        let collisions = integer(before, "collisionCount").unwrap_or(0);
        if count("collisionCount") < collisions {
            checks.invalid(
                &path.child("collisionCount"),
                count("collisionCount"),
                "cannot be decremented",
            );
        }
        checks.done()
    }

    fn warnings(&self, context: &Context<'_>, object: &Value) -> Vec<String> {
        if !context.subresource.is_empty() {
            return Vec::new();
        }
        let path = Path::new("spec").child("template");
        pod_warnings::warnings(&object["spec"]["template"], &path)
    }

    fn orphans_by_default(&self) -> bool {
        *self == Self::ReplicationController
    }
}

const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// The daemon set's count of its templates, which its v1 form carries in an annotation.
fn count_template(object: &mut Value, old: &Value) {
    let before: i64 = apimachinery::object::annotation(old, TEMPLATE_GENERATION)
        .and_then(|g| g.parse().ok())
        .unwrap_or(0);
    let changed = !same(&object["spec"]["template"], &old["spec"]["template"]);
    let now = before + i64::from(changed);
    apimachinery::object::set_annotation(object, TEMPLATE_GENERATION, &now.to_string());
}

/// The defaults of the pod spec in `spec.template`.
pub fn default_template(spec: &mut Value) {
    if let Some(pod) = spec
        .get_mut("template")
        .and_then(|t| t.get_mut("spec"))
        .filter(|s| s.is_object())
    {
        pod_defaults::default_spec(pod);
    }
}

fn child<'a>(object: &'a mut Value, field: &str) -> &'a mut Value {
    if !object[field].is_object() {
        object[field] = Value::Object(Map::new());
    }
    &mut object[field]
}

fn default_deployment(spec: &mut Value) {
    set_default(spec, "revisionHistoryLimit", 10);
    set_default(spec, "progressDeadlineSeconds", 600);
    let strategy = child(spec, "strategy");
    set_default(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        set_default(rolling, "maxUnavailable", "25%");
        set_default(rolling, "maxSurge", "25%");
    }
}

fn default_daemon_set(spec: &mut Value) {
    set_default(spec, "revisionHistoryLimit", 10);
    let strategy = child(spec, "updateStrategy");
    set_default(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        set_default(rolling, "maxUnavailable", 1);
        set_default(rolling, "maxSurge", 0);
    }
}

fn default_stateful_set(spec: &mut Value) {
    set_default(spec, "revisionHistoryLimit", 10);
    set_default(spec, "podManagementPolicy", "OrderedReady");
    let strategy = child(spec, "updateStrategy");
    if text(strategy, "type").is_empty() {
        strategy["type"] = "RollingUpdate".into();
        child(strategy, "rollingUpdate");
    }
    if text(strategy, "type") == "RollingUpdate" && given(strategy, "rollingUpdate").is_some() {
        set_default(&mut strategy["rollingUpdate"], "partition", 0);
    }
    let retention = child(spec, "persistentVolumeClaimRetentionPolicy");
    set_default(retention, "whenDeleted", "Retain");
    set_default(retention, "whenScaled", "Retain");
    for claim in super::check::list_mut(spec, "volumeClaimTemplates") {
        set_default(claim, "apiVersion", "v1");
        set_default(claim, "kind", "PersistentVolumeClaim");
        if claim["spec"].is_object() {
            set_default(&mut claim["spec"], "volumeMode", "Filesystem");
        }
        set_default(child(claim, "status"), "phase", "Pending");
    }
}

impl Workload {
    fn name(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::ReplicaSet => "ReplicaSet",
            Self::DaemonSet => "DaemonSet",
            Self::StatefulSet => "StatefulSet",
            Self::ReplicationController => "ReplicationController",
        }
    }

    fn spec(self, checks: &mut Checks, spec: &Value, path: &Path) {
        for field in [
            "replicas",
            "minReadySeconds",
            "revisionHistoryLimit",
            "progressDeadlineSeconds",
        ] {
            checks.not_negative(spec, field, path);
        }
        self.selector_and_template(checks, spec, path);
        match self {
            Self::Deployment => deployment(checks, spec, path),
            Self::DaemonSet => daemon_set(
                checks,
                &spec["updateStrategy"],
                &path.child("updateStrategy"),
            ),
            Self::StatefulSet => stateful_set(checks, spec, path),
            Self::ReplicaSet | Self::ReplicationController => {}
        }
    }

    fn selector_and_template(self, checks: &mut Checks, spec: &Value, path: &Path) {
        let at = path.child("selector");
        let template = &spec["template"];
        let template_path = path.child("template");
        let selector = &spec["selector"];
        let parsed = if self == Self::ReplicationController {
            if same(selector, &Value::Null) {
                checks.required(&at, "");
            }
            LabelSelector::from_map(selector).ok()
        } else {
            if selector.is_null() {
                checks.required(&at, "");
            } else {
                checks.label_selector(selector, &at);
                if same(selector, &json!({})) {
                    let kind = match self {
                        Self::DaemonSet => "daemonset",
                        Self::StatefulSet => "statefulset",
                        // Replica sets share the message of deployments.
                        _ => "deployment",
                    };
                    checks.invalid(
                        &at,
                        selector.clone(),
                        &format!("empty selector is invalid for {kind}"),
                    );
                }
            }
            LabelSelector::from_value(selector).ok()
        };
        if template.is_null() {
            checks.required(&template_path, "");
            return;
        }
        let labels = template["metadata"]["labels"].clone();
        let empty = Map::new();
        if parsed
            .is_some_and(|s| !s.is_nothing() && !s.matches(labels.as_object().unwrap_or(&empty)))
        {
            let path = template_path.child("metadata").child("labels");
            checks.invalid(&path, labels, "`selector` does not match template `labels`");
        }
        self.template(checks, spec, &template_path);
    }

    fn template(self, checks: &mut Checks, spec: &Value, path: &Path) {
        let template = &spec["template"];
        if self == Self::StatefulSet && !list(spec, "volumeClaimTemplates").is_empty() {
            pod_spec::validate_template(checks, &with_claims(spec), path);
        } else {
            pod_spec::validate_template(checks, template, path);
        }
        let pod = path.child("spec");
        let policy = text(&template["spec"], "restartPolicy");
        if policy != "Always" {
            checks.push(Error::not_supported(
                &pod.child("restartPolicy"),
                policy,
                &["Always"],
            ));
        }
        if given(&template["spec"], "activeDeadlineSeconds").is_some() {
            // Deployments make replica sets, and say so.
            let kind = if self == Self::Deployment {
                "ReplicaSet"
            } else {
                self.name()
            };
            let why = format!("activeDeadlineSeconds in {kind} is not Supported");
            checks.forbidden(&pod.child("activeDeadlineSeconds"), &why);
        }
    }
}

/// The template of a stateful set with the volumes that its claims become.
fn with_claims(spec: &Value) -> Value {
    let mut template = spec["template"].clone();
    let claims: Vec<&str> = list(spec, "volumeClaimTemplates")
        .iter()
        .map(apimachinery::object::name)
        .collect();
    let mut volumes: Vec<Value> = claims
        .iter()
        .map(|n| json!({"name": n, "persistentVolumeClaim": {"claimName": n}}))
        .collect();
    let others = list(&template["spec"], "volumes")
        .iter()
        .filter(|v| !claims.contains(&text(v, "name")));
    volumes.extend(others.cloned());
    template["spec"]["volumes"] = volumes.into();
    template
}

fn deployment(checks: &mut Checks, spec: &Value, path: &Path) {
    let (strategy, at) = (&spec["strategy"], path.child("strategy"));
    let rolling = given(strategy, "rollingUpdate");
    match text(strategy, "type") {
        "Recreate" if rolling.is_some() => {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            checks.forbidden(&at.child("rollingUpdate"), why);
        }
        "Recreate" => {}
        "RollingUpdate" => {
            let at = at.child("rollingUpdate");
            let none = Value::Null;
            let rolling = rolling.unwrap_or(&none);
            let unavailable = share(checks, rolling, "maxUnavailable", &at);
            let surge = share(checks, rolling, "maxSurge", &at);
            if unavailable == 0 && surge == 0 {
                let path = at.child("maxUnavailable");
                checks.invalid(
                    &path,
                    rolling["maxUnavailable"].clone(),
                    "may not be 0 when `maxSurge` is 0",
                );
            }
            at_most_all(checks, rolling, "maxUnavailable", &at);
        }
        _ => {
            checks.push(Error::not_supported(
                &at,
                strategy.clone(),
                &["Recreate", "RollingUpdate"],
            ));
        }
    }
    let deadline = integer(spec, "progressDeadlineSeconds");
    if let Some(seconds) = deadline.filter(|d| *d <= integer(spec, "minReadySeconds").unwrap_or(0))
    {
        checks.invalid(
            &path.child("progressDeadlineSeconds"),
            seconds,
            "must be greater than minReadySeconds",
        );
    }
}

/// Checks a count or percentage; gives its number.
fn share(checks: &mut Checks, object: &Value, field: &str, path: &Path) -> i64 {
    let path = path.child(field);
    match &object[field] {
        Value::String(text) => {
            checks.each(&path, text, names::percent(text));
            text.strip_suffix('%')
                .and_then(|n| n.parse().ok())
                .unwrap_or(0)
        }
        Value::Number(number) => {
            let number = number.as_i64().unwrap_or(0);
            if number < 0 {
                checks.invalid(&path, number, super::check::NOT_NEGATIVE);
            }
            number
        }
        _ => 0,
    }
}

fn at_most_all(checks: &mut Checks, object: &Value, field: &str, path: &Path) {
    let percent = object[field]
        .as_str()
        .and_then(|s| s.strip_suffix('%'))
        .and_then(|n| n.parse::<i64>().ok());
    if percent.is_some_and(|p| p > 100) {
        checks.invalid(
            &path.child(field),
            object[field].clone(),
            "must not be greater than 100%",
        );
    }
}

fn daemon_set(checks: &mut Checks, strategy: &Value, path: &Path) {
    match text(strategy, "type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let at = path.child("rollingUpdate");
            let Some(rolling) = given(strategy, "rollingUpdate") else {
                checks.required(&at, "");
                return;
            };
            let unavailable = share(checks, rolling, "maxUnavailable", &at);
            let surge = share(checks, rolling, "maxSurge", &at);
            at_most_all(checks, rolling, "maxUnavailable", &at);
            at_most_all(checks, rolling, "maxSurge", &at);
            match (unavailable != 0, surge != 0) {
                (true, true) => {
                    let why = "may not be set when maxUnavailable is non-zero";
                    checks.invalid(&at.child("maxSurge"), rolling["maxSurge"].clone(), why);
                }
                (false, false) => {
                    checks.required(
                        &at.child("maxUnavailable"),
                        "cannot be 0 when maxSurge is 0",
                    );
                }
                _ => {}
            }
        }
        _ => checks.push(Error::not_supported(
            path,
            strategy.clone(),
            &["RollingUpdate", "OnDelete"],
        )),
    }
}

fn stateful_set(checks: &mut Checks, spec: &Value, path: &Path) {
    match text(spec, "podManagementPolicy") {
        "OrderedReady" | "Parallel" => {}
        "" => checks.required(&path.child("podManagementPolicy"), ""),
        other => {
            checks.invalid(
                &path.child("podManagementPolicy"),
                other,
                "must be 'OrderedReady' or 'Parallel'",
            );
        }
    }
    let (strategy, at) = (&spec["updateStrategy"], path.child("updateStrategy"));
    let rolling = given(strategy, "rollingUpdate");
    match (text(strategy, "type"), rolling) {
        ("", _) => checks.required(&at, ""),
        ("OnDelete", Some(rolling)) => {
            let why = "only allowed for updateStrategy 'RollingUpdate'";
            checks.invalid(&at.child("rollingUpdate"), rolling.clone(), why);
        }
        ("RollingUpdate", Some(rolling)) => {
            let at = at.child("rollingUpdate");
            checks.not_negative(rolling, "partition", &at);
            if given(rolling, "maxUnavailable").is_some() {
                if share(checks, rolling, "maxUnavailable", &at) == 0 {
                    checks.invalid(
                        &at.child("maxUnavailable"),
                        rolling["maxUnavailable"].clone(),
                        "cannot be 0",
                    );
                }
                at_most_all(checks, rolling, "maxUnavailable", &at);
            }
        }
        ("OnDelete" | "RollingUpdate", None) => {}
        _ => checks.invalid(
            &at,
            strategy.clone(),
            "must be 'RollingUpdate' or 'OnDelete'",
        ),
    }
    if let Some(policy) = given(spec, "persistentVolumeClaimRetentionPolicy") {
        let at = path.child("persistentVolumeClaimRetentionPolicy");
        for field in ["whenDeleted", "whenScaled"] {
            let value = text(policy, field);
            if !["Retain", "Delete"].contains(&value) {
                checks.push(Error::not_supported(
                    &at.child(field),
                    value,
                    &["Retain", "Delete"],
                ));
            }
        }
    }
    if let Some(ordinals) = given(spec, "ordinals") {
        checks.not_negative(ordinals, "start", &path.child("ordinals"));
    }
    let service = text(spec, "serviceName");
    if !service.is_empty() {
        checks.label(&path.child("serviceName"), service);
    }
}

fn stateful_set_update(checks: &mut Checks, new: &Value, old: &Value, path: &Path) {
    const MUTABLE: [&str; 7] = [
        "replicas",
        "template",
        "updateStrategy",
        "minReadySeconds",
        "ordinals",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
    ];
    let mut munged = new.clone();
    for field in MUTABLE {
        common::copy(&mut munged, old, field);
    }
    if !same(&munged, old) {
        let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        checks.forbidden(path, why);
    }
}

/// The kind PodTemplate: a template and nothing else.
pub struct PodTemplate;

impl Strategy for PodTemplate {
    fn default(&self, object: &mut Value) {
        default_template(object);
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        pod_spec::validate_template(&mut checks, &object["template"], &Path::new("template"));
        checks.done()
    }
}

/// Controller revisions: data that never changes, under a number that only grows.
pub struct ControllerRevision;

impl Strategy for ControllerRevision {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        checks.not_negative(object, "revision", &Path::root());
        if object["data"].is_null() {
            checks.required(&Path::new("data"), "data is mandatory");
        }
        checks.done()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks(self.validate(context, object).0);
        checks.immutable(&Path::new("data"), &object["data"], &old["data"]);
        checks.done()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment_spec() -> Value {
        let mut object = json!({"spec": {
            "selector": {"matchLabels": {"app": "a"}},
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": {
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
                "containers": [{"name": "a", "image": "a", "terminationMessagePolicy": "File"}]}},
        }});
        Workload::Deployment.default(&mut object);
        object["spec"].take()
    }

    #[test]
    fn deployments_get_their_defaults() {
        let spec = deployment_spec();
        assert_eq!(
            (
                spec["replicas"].as_i64(),
                spec["revisionHistoryLimit"].as_i64()
            ),
            (Some(1), Some(10))
        );
        assert_eq!(
            spec["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(
            spec["template"]["spec"]["containers"][0]["imagePullPolicy"],
            "Always"
        );
        let mut recreate = json!({"spec": {"strategy": {"type": "Recreate"}}});
        Workload::Deployment.default(&mut recreate);
        assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));
    }

    #[test]
    fn deployments_are_checked() {
        type Change = fn(&mut Value);
        let table: &[(Change, &str)] = &[
            (|_| {}, ""),
            (
                |s| s["replicas"] = (-1).into(),
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                |s| s["selector"] = Value::Null,
                "spec.selector: Required value",
            ),
            (
                |s| s["template"]["metadata"]["labels"] = json!({"app": "b"}),
                r#"spec.template.metadata.labels: Invalid value: {"app":"b"}: `selector` does not match template `labels`"#,
            ),
            (
                |s| s["template"]["spec"]["restartPolicy"] = "Never".into(),
                r#"spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always""#,
            ),
            (
                |s| s["strategy"]["rollingUpdate"] = json!({"maxUnavailable": 0, "maxSurge": "0%"}),
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ),
            (
                |s| s["progressDeadlineSeconds"] = 0.into(),
                "spec.progressDeadlineSeconds: Invalid value: 0: must be greater than minReadySeconds",
            ),
        ];
        for (change, want) in table {
            let mut spec = deployment_spec();
            change(&mut spec);
            let mut checks = Checks::default();
            Workload::Deployment.spec(&mut checks, &spec, &Path::new("spec"));
            let got: Vec<String> = checks.done().0.iter().map(ToString::to_string).collect();
            assert_eq!(&got.join("\n"), want);
        }
    }

    #[test]
    fn stateful_sets_mount_their_claims() {
        let spec = json!({
            "volumeClaimTemplates": [{"metadata": {"name": "data"}}],
            "template": {"spec": {"volumes": [{"name": "data", "emptyDir": {}}, {"name": "other", "emptyDir": {}}]}},
        });
        let names: Vec<String> = list(&with_claims(&spec)["spec"], "volumes")
            .iter()
            .map(|v| text(v, "name").to_owned())
            .collect();
        assert_eq!(names, ["data", "other"]);
        let mut checks = Checks::default();
        stateful_set_update(
            &mut checks,
            &json!({"serviceName": "a"}),
            &json!({"serviceName": "b"}),
            &Path::new("spec"),
        );
        assert_eq!(checks.0.len(), 1);
        stateful_set_update(
            &mut checks,
            &json!({"replicas": 1}),
            &json!({"replicas": 2}),
            &Path::new("spec"),
        );
        assert_eq!(checks.0.len(), 1);
    }
}
