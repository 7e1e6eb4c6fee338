//! Rows of what runs pods: replica sets and their kin, jobs, autoscalers, disruption budgets.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    Cells, Printer, abridged, age, age_at, containers, count, int, int_or_string, labels, list,
    name, selector, text, text_or,
};
use crate::selector::LabelSelector;
use crate::{object, time};

const POD: &str = "/spec/template/spec";

pub(super) fn printer(group: &str, kind: &str) -> Option<Printer> {
    let (columns, cells): (&[&str], Cells) = match (group, kind) {
        ("", "ReplicationController") => (REPLICAS, replication_controller),
        ("apps", "ReplicaSet") => (REPLICAS, replica_set),
        ("apps", "Deployment") => (
            &[
                "Name",
                "Ready",
                "Up-to-date#",
                "Available#",
                "Age",
                "Containers+",
                "Images+",
                "Selector+",
            ],
            deployment,
        ),
        ("apps", "StatefulSet") => (
            &["Name", "Ready", "Age", "Containers+", "Images+"],
            stateful_set,
        ),
        ("apps", "DaemonSet") => (
            &[
                "Name",
                "Desired#",
                "Current#",
                "Ready#",
                "Up-to-date#",
                "Available#",
                "Node Selector",
                "Age",
                "Containers+",
                "Images+",
                "Selector+",
            ],
            daemon_set,
        ),
        ("apps", "ControllerRevision") => (
            &["Name", "Controller", "Revision#", "Age"],
            controller_revision,
        ),
        ("batch", "Job") => (
            &[
                "Name",
                "Status",
                "Completions",
                "Duration",
                "Age",
                "Containers+",
                "Images+",
                "Selector+",
            ],
            job,
        ),
        ("batch", "CronJob") => (
            &[
                "Name",
                "Schedule",
                "Timezone",
                "Suspend",
                "Active#",
                "Last Schedule",
                "Age",
                "Containers+",
                "Images+",
                "Selector+",
            ],
            cron_job,
        ),
        ("autoscaling", "HorizontalPodAutoscaler") => (
            &[
                "Name",
                "Reference",
                "Targets",
                "MinPods",
                "MaxPods#",
                "Replicas#",
                "Age",
            ],
            autoscaler,
        ),
        ("autoscaling", "Scale") => (&["Name", "Desired#", "Available#", "Age"], scale),
        ("policy", "PodDisruptionBudget") => (
            &[
                "Name",
                "Min Available",
                "Max Unavailable",
                "Allowed Disruptions#",
                "Age",
            ],
            disruption_budget,
        ),
        _ => return None,
    };
    Some(Printer { columns, cells })
}

const REPLICAS: &[&str] = &[
    "Name",
    "Desired#",
    "Current#",
    "Ready#",
    "Age",
    "Containers+",
    "Images+",
    "Selector+",
];

fn replicas(o: &Value, now: Timestamp, selector: String) -> Vec<Value> {
    let [names, images] = containers(o, POD);
    vec![
        name(o),
        int(o, "/spec/replicas").into(),
        int(o, "/status/replicas").into(),
        int(o, "/status/readyReplicas").into(),
        age(o, now),
        names,
        images,
        selector.into(),
    ]
}

fn replication_controller(o: &Value, now: Timestamp) -> Vec<Value> {
    replicas(o, now, labels(o, "/spec/selector"))
}

fn replica_set(o: &Value, now: Timestamp) -> Vec<Value> {
    replicas(o, now, selector(o, "/spec/selector"))
}

fn ready(o: &Value) -> Value {
    format!(
        "{}/{}",
        int(o, "/status/readyReplicas"),
        int(o, "/spec/replicas")
    )
    .into()
}

fn deployment(o: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(o, POD);
    let selector = LabelSelector::from_value(&o["spec"]["selector"]);
    vec![
        name(o),
        ready(o),
        int(o, "/status/updatedReplicas").into(),
        int(o, "/status/availableReplicas").into(),
        age(o, now),
        names,
        images,
        selector
            .map_or("<invalid>".into(), |s| s.to_string())
            .into(),
    ]
}

fn stateful_set(o: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(o, POD);
    vec![name(o), ready(o), age(o, now), names, images]
}

fn daemon_set(o: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(o, POD);
    vec![
        name(o),
        int(o, "/status/desiredNumberScheduled").into(),
        int(o, "/status/currentNumberScheduled").into(),
        int(o, "/status/numberReady").into(),
        int(o, "/status/updatedNumberScheduled").into(),
        int(o, "/status/numberAvailable").into(),
        labels(o, "/spec/template/spec/nodeSelector").into(),
        age(o, now),
        names,
        images,
        selector(o, "/spec/selector").into(),
    ]
}

fn controller_revision(o: &Value, now: Timestamp) -> Vec<Value> {
    let controller = object::controller_of(o).map(|owner| {
        let kind = crate::resource::GroupVersionKind::from_api_version(
            text(owner, "/apiVersion"),
            text(owner, "/kind"),
        );
        format!(
            "{}/{}",
            kind.group_kind().to_string().to_lowercase(),
            text(owner, "/name")
        )
    });
    vec![
        name(o),
        controller.unwrap_or("<none>".into()).into(),
        int(o, "/revision").into(),
        age(o, now),
    ]
}

fn job(o: &Value, now: Timestamp) -> Vec<Value> {
    let succeeded = int(o, "/status/succeeded");
    let completions = match (
        o.pointer("/spec/completions").and_then(Value::as_i64),
        int(o, "/spec/parallelism"),
    ) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let start = time::parse(text(o, "/status/startTime"));
    let end = time::parse(text(o, "/status/completionTime")).unwrap_or(now);
    let duration = start.map(|start| time::human_duration(end.as_second() - start.as_second()));
    let has = |kind: &str| object::condition(o, kind).is_some_and(|c| c["status"] == "True");
    let status = match () {
        _ if has("Complete") => "Complete",
        _ if has("Failed") => "Failed",
        _ if object::deletion_timestamp(o).is_some() => "Terminating",
        _ if has("Suspended") => "Suspended",
        _ if has("FailureTarget") => "FailureTarget",
        _ if has("SuccessCriteriaMet") => "SuccessCriteriaMet",
        _ => "Running",
    };
    let [names, images] = containers(o, POD);
    vec![
        name(o),
        status.into(),
        completions.into(),
        duration.unwrap_or_default().into(),
        age(o, now),
        names,
        images,
        selector(o, "/spec/selector").into(),
    ]
}

fn cron_job(o: &Value, now: Timestamp) -> Vec<Value> {
    let last = match text(o, "/status/lastScheduleTime") {
        "" => "<none>".into(),
        _ => age_at(o, "/status/lastScheduleTime", now),
    };
    let suspend = match o.pointer("/spec/suspend") {
        Some(Value::Bool(true)) => "True",
        Some(Value::Bool(false)) => "False",
        _ => "<unset>",
    };
    let [names, images] = containers(o, "/spec/jobTemplate/spec/template/spec");
    vec![
        name(o),
        text(o, "/spec/schedule").into(),
        text_or(o, "/spec/timeZone", "<none>").into(),
        suspend.into(),
        count(o, "/status/active").into(),
        last.into(),
        age(o, now),
        names,
        images,
        selector(o, "/spec/jobTemplate/spec/selector").into(),
    ]
}

fn autoscaler(o: &Value, now: Timestamp) -> Vec<Value> {
    let target = &o["spec"]["scaleTargetRef"];
    let min = o
        .pointer("/spec/minReplicas")
        .map_or("<unset>".into(), Value::to_string);
    vec![
        name(o),
        format!("{}/{}", text(target, "/kind"), text(target, "/name")).into(),
        metrics(o).into(),
        min.into(),
        int(o, "/spec/maxReplicas").into(),
        int(o, "/status/currentReplicas").into(),
        age(o, now),
    ]
}

/// `cpu: 30%/50%`, the current value against the target of each metric. An autoscaling/v1 object has one at most.
fn metrics(o: &Value) -> String {
    let percent = |v: &Value| v.as_i64().map(|n| format!("{n}%"));
    let unknown = || "<unknown>".to_owned();
    if let Some(target) = percent(&o["spec"]["targetCPUUtilizationPercentage"]) {
        let current =
            percent(&o["status"]["currentCPUUtilizationPercentage"]).unwrap_or_else(unknown);
        return format!("cpu: {current}/{target}");
    }
    let current = list(o, "/status/currentMetrics");
    let one = |(i, spec): (usize, &Value)| {
        let kind = text(spec, "/type");
        let source = match kind {
            "Resource" => "resource",
            "ContainerResource" => "containerResource",
            "Pods" => "pods",
            "Object" => "object",
            "External" => "external",
            _ => return "<unknown type>".to_owned(),
        };
        let target = &spec[source]["target"];
        let now = current
            .get(i)
            .map_or(&Value::Null, |s| &s[source]["current"]);
        let amount = |v: &Value| v.as_str().map_or_else(unknown, str::to_owned);
        let resource = text(spec, &format!("/{source}/name"));
        let average = &target["averageValue"];
        match source {
            "resource" | "containerResource" if average.is_string() => {
                format!(
                    "{resource}: {}/{}",
                    amount(&now["averageValue"]),
                    amount(average)
                )
            }
            "resource" | "containerResource" => {
                let wanted = percent(&target["averageUtilization"]).unwrap_or("<auto>".into());
                format!(
                    "{resource}: {}/{wanted}",
                    percent(&now["averageUtilization"]).unwrap_or_else(unknown)
                )
            }
            "pods" => format!("{}/{}", amount(&now["averageValue"]), amount(average)),
            _ if average.is_string() => {
                format!("{}/{} (avg)", amount(&now["averageValue"]), amount(average))
            }
            _ => format!("{}/{}", amount(&now["value"]), amount(&target["value"])),
        }
    };
    let all: Vec<String> = list(o, "/spec/metrics")
        .iter()
        .enumerate()
        .map(one)
        .collect();
    if all.is_empty() {
        "<none>".into()
    } else {
        abridged(&all, 2, ", ")
    }
}

fn scale(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(o),
        int(o, "/spec/replicas").into(),
        int(o, "/status/replicas").into(),
        age(o, now),
    ]
}

fn disruption_budget(o: &Value, now: Timestamp) -> Vec<Value> {
    let bound = |pointer: &str| o.pointer(pointer).map_or("N/A".into(), int_or_string);
    vec![
        name(o),
        bound("/spec/minAvailable").into(),
        bound("/spec/maxUnavailable").into(),
        int(o, "/status/disruptionsAllowed").into(),
        age(o, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn deployments() {
        let o = json!({"metadata": {"name": "web", "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                "template": {"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}}},
            "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}});
        let expect = json!(["web", "2/3", 3, 2, "0s", "a,b", "x,y", "app=web"]);
        assert_eq!(Value::from(deployment(&o, Timestamp::UNIX_EPOCH)), expect);
    }

    #[test]
    fn jobs() {
        let cell = |o: Value| job(&o, time::parse("2026-01-01T00:01:00Z").unwrap())[1..4].to_vec();
        let o = json!({"spec": {"completions": 2}, "status": {"succeeded": 1, "startTime": "2026-01-01T00:00:00Z"}});
        assert_eq!(cell(o), ["Running", "1/2", "60s"]);
        let o = json!({"spec": {"parallelism": 3}, "status": {"conditions": [{"type": "Complete", "status": "True"}]}});
        assert_eq!(cell(o), ["Complete", "0/1 of 3", ""]);
    }

    #[test]
    fn autoscalers() {
        let cpu = |target: Value| json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
        let o = json!({"spec": {"metrics": [cpu(json!({"averageUtilization": 50})), cpu(json!({"averageValue": "100m"})),
                {"type": "Pods"}]},
            "status": {"currentMetrics": [{"resource": {"current": {"averageUtilization": 30, "averageValue": "5m"}}}]}});
        assert_eq!(metrics(&o), "cpu: 30%/50%, cpu: <unknown>/100m + 1 more...");
        assert_eq!(
            metrics(&json!({"spec": {"targetCPUUtilizationPercentage": 80}})),
            "cpu: <unknown>/80%"
        );
        assert_eq!(metrics(&json!({})), "<none>");
    }
}
