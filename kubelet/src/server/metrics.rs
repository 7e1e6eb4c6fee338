//! Prometheus text: of the kubelet itself, of resources, and the few of cAdvisor's that dashboards are built on.

use std::fmt::Write;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;

use super::{Refused, Shared};
use crate::model;

fn text(body: String) -> Response {
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        body,
    )
        .into_response()
}

/// A family's head; writing to a string cannot fail.
fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

pub async fn own(State(server): State<Shared>) -> Response {
    let mut out = String::new();
    let pods: Vec<_> = server.node.pods.lock().values().cloned().collect();
    let running = pods
        .iter()
        .filter(|p| model::phase(p) == Some("Running"))
        .count();
    family(
        &mut out,
        "kubelet_running_pods",
        "gauge",
        "Number of pods that have a running pod sandbox",
    );
    let _ = writeln!(out, "kubelet_running_pods {running}");
    let count = |running: bool| {
        let all = pods
            .iter()
            .filter_map(|p| p.status.as_ref()?.container_statuses.as_ref())
            .flatten();
        all.filter(|s| s.state.as_ref().is_some_and(|st| st.running.is_some()) == running)
            .count()
    };
    family(
        &mut out,
        "kubelet_running_containers",
        "gauge",
        "Number of containers by state",
    );
    let _ = writeln!(
        out,
        "kubelet_running_containers{{container_state=\"running\"}} {}",
        count(true)
    );
    let _ = writeln!(
        out,
        "kubelet_running_containers{{container_state=\"exited\"}} {}",
        count(false)
    );
    family(
        &mut out,
        "kubelet_node_name",
        "gauge",
        "The node's name. The count is always 1.",
    );
    let _ = writeln!(out, "kubelet_node_name{{node=\"{}\"}} 1", server.node.name);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rss = status.lines().find_map(|l| {
        l.strip_prefix("VmRSS:")?
            .trim()
            .strip_suffix("kB")?
            .trim()
            .parse::<u64>()
            .ok()
    });
    family(
        &mut out,
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory size in bytes.",
    );
    let _ = writeln!(
        out,
        "process_resident_memory_bytes {}",
        rss.unwrap_or(0) * 1024
    );
    text(out)
}

pub async fn resource(State(server): State<Shared>) -> Result<Response, Refused> {
    let taken = server.stats.measure(&server.node).await?;
    let mut out = String::new();
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    family(
        &mut out,
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
    );
    let _ = writeln!(
        out,
        "node_cpu_usage_seconds_total {}",
        seconds(taken.node.cpu_nanos)
    );
    family(
        &mut out,
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
    );
    let _ = writeln!(
        out,
        "node_memory_working_set_bytes {}",
        taken.node.working_set
    );
    let families: [(&str, &str, bool, bool); 4] = [
        ("container_cpu_usage_seconds_total", "counter", true, true),
        ("container_memory_working_set_bytes", "gauge", true, false),
        ("pod_cpu_usage_seconds_total", "counter", false, true),
        ("pod_memory_working_set_bytes", "gauge", false, false),
    ];
    for (name, kind, per_container, cpu) in families {
        family(
            &mut out,
            name,
            kind,
            if cpu {
                "Cumulative cpu time consumed in core-seconds"
            } else {
                "Current working set in bytes"
            },
        );
        for pod in &taken.pods {
            let of_pod = format!("namespace=\"{}\",pod=\"{}\"", pod.namespace, pod.name);
            let value = |u: &crate::cgroups::Usage| {
                if cpu {
                    seconds(u.cpu_nanos).to_string()
                } else {
                    u.working_set.to_string()
                }
            };
            if per_container {
                for (container, usage) in &pod.containers {
                    let _ = writeln!(
                        out,
                        "{name}{{container=\"{container}\",{of_pod}}} {}",
                        value(usage)
                    );
                }
            } else {
                let _ = writeln!(out, "{name}{{{of_pod}}} {}", value(&pod.usage));
            }
        }
    }
    family(
        &mut out,
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
    );
    let _ = writeln!(out, "resource_scrape_error 0");
    Ok(text(out))
}

pub async fn cadvisor(State(server): State<Shared>) -> Result<Response, Refused> {
    let taken = server.stats.measure(&server.node).await?;
    let mut out = String::new();
    type Value = fn(&crate::cgroups::Usage) -> f64;
    let families: [(&str, &str, Value); 4] = [
        ("container_cpu_usage_seconds_total", "counter", |u| {
            u.cpu_nanos as f64 / 1e9
        }),
        ("container_memory_working_set_bytes", "gauge", |u| {
            u.working_set as f64
        }),
        ("container_memory_usage_bytes", "gauge", |u| {
            u.memory_usage as f64
        }),
        ("container_memory_rss", "gauge", |u| u.rss as f64),
    ];
    for (name, kind, value) in families {
        family(&mut out, name, kind, "As counted by the container's cgroup");
        for pod in &taken.pods {
            let of_pod = format!("namespace=\"{}\",pod=\"{}\"", pod.namespace, pod.name);
            let _ = writeln!(
                out,
                "{name}{{container=\"\",{of_pod}}} {}",
                value(&pod.usage)
            );
            for (container, usage) in &pod.containers {
                let _ = writeln!(
                    out,
                    "{name}{{container=\"{container}\",{of_pod}}} {}",
                    value(usage)
                );
            }
        }
    }
    Ok(text(out))
}
