//! The row of a pod. Its STATUS is Kubernetes' best short answer to "what is it doing", from the states of its
//! containers.

use jiff::Timestamp;
use serde_json::Value;

use super::{Printer, age, int, list, name, text, text_or};
use crate::{object, time};

pub(super) fn printer(group: &str, kind: &str) -> Option<Printer> {
    (group.is_empty() && kind == "Pod").then_some(Printer {
        columns: &[
            "Name",
            "Ready",
            "Status",
            "Restarts",
            "Age",
            "IP+",
            "Node+",
            "Nominated Node+",
            "Readiness Gates+",
        ],
        cells: pod,
    })
}

fn pod(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let restarts = match (summary.restarts, &summary.last_restart) {
        (0, _) | (_, None) => summary.restarts.to_string(),
        (n, Some(at)) => format!("{n} ({} ago)", time::age(Some(at), now)),
    };
    vec![
        name(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.status.into(),
        restarts.into(),
        age(pod, now),
        text_or(pod, "/status/podIPs/0/ip", "<none>").into(),
        text_or(pod, "/spec/nodeName", "<none>").into(),
        text_or(pod, "/status/nominatedNodeName", "<none>").into(),
        readiness_gates(pod).into(),
    ]
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let open = |gate: &&Value| {
        let kind = gate["conditionType"].as_str().unwrap_or_default();
        object::condition(pod, kind).is_some_and(|c| c["status"] == "True")
    };
    format!("{}/{}", gates.iter().filter(open).count(), gates.len())
}

/// What a pod's containers add up to.
#[derive(Debug, Default, PartialEq)]
struct Summary {
    status: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<String>,
}

impl Summary {
    fn add_restarts(&mut self, container: &Value) {
        self.restarts += int(container, "/restartCount");
        let at = text(container, "/lastState/terminated/finishedAt");
        // RFC 3339 in UTC sorts as text.
        if !at.is_empty() && self.last_restart.as_deref().is_none_or(|last| last < at) {
            self.last_restart = Some(at.to_owned());
        }
    }
}

fn summarize(pod: &Value) -> Summary {
    let phase = text(pod, "/status/phase");
    let reason = text(pod, "/status/reason");
    let mut summary = Summary {
        status: text_or(pod, "/status/reason", phase).to_owned(),
        ..Summary::default()
    };
    if object::condition(pod, "PodScheduled").is_some_and(|c| c["reason"] == "SchedulingGated") {
        summary.status = "SchedulingGated".into();
    }
    let sidecars: Vec<&str> = list(pod, "/spec/initContainers")
        .iter()
        .filter(|c| c["restartPolicy"] == "Always")
        .map(|c| c["name"].as_str().unwrap_or_default())
        .collect();
    summary.total = list(pod, "/spec/containers").len() + sidecars.len();

    let start = initialize(pod, &sidecars, &mut summary);
    let initialized = object::condition(pod, "Initialized").is_some_and(|c| c["status"] == "True");
    if !start.initializing || initialized {
        (summary.restarts, summary.last_restart) =
            (start.sidecars.restarts, start.sidecars.last_restart);
        run(pod, &mut summary);
    }
    if object::deletion_timestamp(pod).is_some() {
        if reason == "NodeLost" {
            summary.status = "Unknown".into();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            summary.status = "Terminating".into();
        }
    }
    summary
}

/// How far initialization is, and the restarts of sidecars, which count for as long as the pod lives.
struct Initialization {
    initializing: bool,
    sidecars: Summary,
}

fn initialize(pod: &Value, sidecars: &[&str], summary: &mut Summary) -> Initialization {
    let mut result = Initialization {
        initializing: false,
        sidecars: Summary::default(),
    };
    for (i, container) in list(pod, "/status/initContainerStatuses")
        .iter()
        .enumerate()
    {
        summary.add_restarts(container);
        let sidecar = sidecars.contains(&text(container, "/name"));
        if sidecar {
            result.sidecars.add_restarts(container);
        }
        let terminated = &container["state"]["terminated"];
        let waiting = text(container, "/state/waiting/reason");
        if terminated.is_object() && int(terminated, "/exitCode") == 0 {
            continue;
        }
        if sidecar && container["started"] == true {
            summary.ready += usize::from(container["ready"] == true);
            continue;
        }
        summary.status = if terminated.is_object() {
            format!("Init:{}", ended(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", list(pod, "/spec/initContainers").len())
        };
        result.initializing = true;
        break;
    }
    result
}

/// Why a container ended.
fn ended(terminated: &Value) -> String {
    match (text(terminated, "/reason"), int(terminated, "/signal")) {
        ("", 0) => format!("ExitCode:{}", int(terminated, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn run(pod: &Value, summary: &mut Summary) {
    let (mut running, mut error) = (false, String::new());
    // The first container has the last word.
    for container in list(pod, "/status/containerStatuses").iter().rev() {
        summary.add_restarts(container);
        let state = &container["state"];
        let waiting = text(state, "/waiting/reason");
        if !waiting.is_empty() {
            summary.status = waiting.to_owned();
        } else if state["terminated"].is_object() {
            summary.status = ended(&state["terminated"]);
            if int(state, "/terminated/exitCode") != 0 {
                error = summary.status.clone();
            }
        } else if container["ready"] == true && state["running"].is_object() {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.status == "Completed" {
        let ready = object::condition(pod, "Ready").is_some_and(|c| c["status"] == "True");
        if running && ready {
            summary.status = "Running".into();
        } else if !error.is_empty() {
            summary.status = error;
        } else if running {
            summary.status = "NotReady".into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(status: Value) -> String {
        let spec =
            json!({"containers": [{}, {}], "initContainers": [{"name": "i"}, {"name": "j"}]});
        summarize(&json!({"metadata": {}, "spec": spec, "status": status})).status
    }

    #[test]
    fn statuses() {
        let running = json!({"ready": true, "state": {"running": {}}});
        let done = |code: i64, reason: &str| json!({"state": {"terminated": {"exitCode": code, "reason": reason}}});
        let init =
            |state: Value| json!({"phase": "Pending", "initContainerStatuses": [{"state": state}]});
        let cases = [
            (json!({"phase": "Pending"}), "Pending"),
            (json!({"phase": "Failed", "reason": "Evicted"}), "Evicted"),
            (
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}),
                "SchedulingGated",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [running]}),
                "Running",
            ),
            (
                json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}),
                "ImagePullBackOff",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [done(1, "Error"), done(0, "Completed")]}),
                "Error",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [done(0, "Completed"), done(1, "Error")]}),
                "Error",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [done(0, "Completed"), running]}),
                "NotReady",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [done(0, "Completed"), running],
                "conditions": [{"type": "Ready", "status": "True"}]}),
                "Running",
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [done(3, "")]}),
                "ExitCode:3",
            ),
            (
                init(json!({"waiting": {"reason": "CrashLoopBackOff"}})),
                "Init:CrashLoopBackOff",
            ),
            (
                init(json!({"waiting": {"reason": "PodInitializing"}})),
                "Init:0/2",
            ),
            (init(json!({"running": {}})), "Init:0/2"),
            (
                init(json!({"terminated": {"exitCode": 2}})),
                "Init:ExitCode:2",
            ),
            (
                init(json!({"terminated": {"exitCode": 0, "reason": "Completed"}})),
                "Pending",
            ),
        ];
        for (given, expect) in cases {
            assert_eq!(status(given.clone()), expect, "{given}");
        }
    }

    #[test]
    fn deleted_pods_terminate() {
        let meta = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        let pod = |status: Value| summarize(&json!({"metadata": meta, "status": status})).status;
        assert_eq!(pod(json!({"phase": "Running"})), "Terminating");
        assert_eq!(
            pod(json!({"phase": "Running", "reason": "NodeLost"})),
            "Unknown"
        );
        assert_eq!(pod(json!({"phase": "Succeeded"})), "Succeeded");
    }

    #[test]
    fn a_whole_row() {
        let object = json!({"metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "n1", "containers": [{}], "initContainers": [{"name": "s", "restartPolicy": "Always"}],
                "readinessGates": [{"conditionType": "x"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}],
                "conditions": [{"type": "Initialized", "status": "True"}, {"type": "x", "status": "True"}],
                "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "restartCount": 1,
                    "state": {"running": {}}}],
                "containerStatuses": [{"ready": true, "restartCount": 2, "state": {"running": {}},
                    "lastState": {"terminated": {"finishedAt": "2026-01-01T00:09:00Z"}}}]}});
        let now = time::parse("2026-01-01T00:10:00Z").unwrap();
        let expect = [
            "web",
            "2/2",
            "Running",
            "3 (60s ago)",
            "10m",
            "10.0.0.1",
            "n1",
            "<none>",
            "1/1",
        ];
        assert_eq!(pod(&object, now), expect);
    }
}
