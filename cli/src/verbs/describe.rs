//! `describe`: everything worth knowing about an object, with its events. Pods, nodes, workloads and Services have
//! views of their own; all others are shown field by field.

use anyhow::{Result, bail};
use serde_json::Value;

use super::jsonpath::plain;
use super::manifest::Files;
use super::output::align;
use super::session::{Session, escape, is_not_found};
use super::target::{self, Object, Selectors};

/// Show all about objects
#[derive(Debug, clap::Args)]
pub struct Args {
    /// TYPE [NAME...] or TYPE/NAME...
    resources: Vec<String>,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    selectors: Selectors,
    /// With events
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    show_events: bool,
}

pub async fn run(session: &Session, args: Args) -> Result<()> {
    let mut objects =
        target::objects(session, &args.resources, &args.selectors, true, &args.files).await?;
    let mut found = Vec::new();
    for object in objects.drain(..) {
        match session.get(&object.path()).await {
            Ok(live) => found.push((object, live)),
            // The name may be only the beginning of names.
            Err(error) if is_not_found(&error) => {
                let list = session
                    .list(
                        &object.kind.path(object.namespace.as_deref()),
                        "",
                        "application/json",
                    )
                    .await?;
                let begins = |item: &&Value| {
                    item["metadata"]["name"]
                        .as_str()
                        .is_some_and(|n| n.starts_with(&object.name))
                };
                let more: Vec<_> = list["items"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(begins)
                    .cloned()
                    .collect();
                if more.is_empty() {
                    return Err(error);
                }
                found.extend(more.into_iter().map(|live| {
                    let name = plain(&live["metadata"]["name"]);
                    (
                        Object {
                            name,
                            ..object.clone()
                        },
                        live,
                    )
                }));
            }
            Err(error) => return Err(error),
        }
    }
    if found.is_empty() {
        bail!("No resources found in {} namespace.", session.namespace);
    }
    for (at, (object, live)) in found.iter().enumerate() {
        if at > 0 {
            println!("\n");
        }
        let mut page = Page::default();
        match object.kind.kind.as_str() {
            "Pod" => pod(&mut page, live),
            "Node" => node(session, &mut page, live).await?,
            "Service" => service(session, &mut page, live).await?,
            "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" => {
                workload(session, &mut page, object, live).await?
            }
            "Secret" => secret(&mut page, live),
            _ => generic(&mut page, live),
        }
        if args.show_events {
            events(session, &mut page, live).await?;
        }
        print!("{}", page.text());
    }
    Ok(())
}

/// Lines of `key: value`, whose values line up.
#[derive(Default)]
struct Page {
    lines: Vec<(usize, String, String)>,
}

impl Page {
    fn add(&mut self, depth: usize, key: &str, value: impl Into<String>) {
        self.lines.push((depth, format!("{key}:"), value.into()));
    }

    /// A line that is no pair.
    fn raw(&mut self, depth: usize, text: impl Into<String>) {
        self.lines.push((depth, text.into(), String::new()));
    }

    /// One value on the first line, the others below it.
    fn list(&mut self, depth: usize, key: &str, values: Vec<String>) {
        let mut values = values.into_iter();
        self.add(depth, key, values.next().unwrap_or_else(|| "<none>".into()));
        values.for_each(|value| self.lines.push((depth, String::new(), value)));
    }

    fn table(&mut self, depth: usize, rows: Vec<Vec<String>>) {
        align(&rows)
            .lines()
            .for_each(|line| self.raw(depth, line.trim_end()));
    }

    fn text(&self) -> String {
        let mut out = String::new();
        // Values line up among neighbours of one depth.
        let mut at = 0;
        while at < self.lines.len() {
            let depth = self.lines[at].0;
            let end = self.lines[at..]
                .iter()
                .position(|l| l.0 != depth)
                .map_or(self.lines.len(), |n| at + n);
            let pairs = self.lines[at..end]
                .iter()
                .filter(|l| !l.2.is_empty() || l.1.is_empty());
            let width = pairs.map(|l| l.1.chars().count()).max().unwrap_or(0) + 2;
            for (_, key, value) in &self.lines[at..end] {
                let pad = "  ".repeat(depth);
                match value.is_empty() {
                    true => out += &format!("{pad}{key}\n"),
                    false => out += &format!("{pad}{key:<width$}{value}\n"),
                }
            }
            at = end;
        }
        out
    }
}

fn or_none(value: &Value) -> String {
    let text = plain(value);
    if text.is_empty() {
        "<none>".into()
    } else {
        text
    }
}

fn pairs(map: &Value, between: &str) -> Vec<String> {
    map.as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}{between}{}", plain(v)))
        .collect()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn head(page: &mut Page, live: &Value) {
    let meta = &live["metadata"];
    page.add(0, "Name", plain(&meta["name"]));
    if let Some(namespace) = meta["namespace"].as_str() {
        page.add(0, "Namespace", namespace);
    }
    page.list(0, "Labels", pairs(&meta["labels"], "="));
    let mut annotations = meta["annotations"].clone();
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.remove(super::write::LAST_APPLIED);
    }
    page.list(0, "Annotations", pairs(&annotations, ": "));
}

fn pod(page: &mut Page, live: &Value) {
    let (spec, status) = (&live["spec"], &live["status"]);
    head(page, live);
    page.add(0, "Service Account", or_none(&spec["serviceAccountName"]));
    page.add(
        0,
        "Node",
        format!(
            "{}/{}",
            or_none(&spec["nodeName"]),
            plain(&status["hostIP"])
        ),
    );
    page.add(0, "Start Time", or_none(&status["startTime"]));
    let deleting = live["metadata"]["deletionTimestamp"].as_str();
    page.add(
        0,
        "Status",
        deleting.map_or_else(
            || plain(&status["phase"]),
            |since| format!("Terminating (since {since})"),
        ),
    );
    for (key, field) in [("Reason", "reason"), ("Message", "message")] {
        if !status[field].is_null() {
            page.add(0, key, plain(&status[field]));
        }
    }
    page.add(0, "IP", or_none(&status["podIP"]));
    if let Some(owner) =
        items(&live["metadata"]["ownerReferences"]).find(|o| o["controller"] == true)
    {
        page.add(
            0,
            "Controlled By",
            format!("{}/{}", plain(&owner["kind"]), plain(&owner["name"])),
        );
    }
    for (title, field, states) in [
        ("Init Containers", "initContainers", "initContainerStatuses"),
        ("Containers", "containers", "containerStatuses"),
    ] {
        if items(&spec[field]).next().is_some() {
            page.raw(0, format!("{title}:"));
        }
        for container in items(&spec[field]) {
            let state = items(&status[states]).find(|s| s["name"] == container["name"]);
            one_container(page, container, state.unwrap_or(&Value::Null));
        }
    }
    conditions(page, status);
    page.raw(0, "Volumes:");
    for volume in items(&spec["volumes"]) {
        let kind = volume
            .as_object()
            .into_iter()
            .flatten()
            .find(|(key, _)| *key != "name");
        page.add(
            1,
            &plain(&volume["name"]),
            kind.map(|(kind, what)| format!("{kind} {}", brief(what)))
                .unwrap_or_default(),
        );
    }
    page.add(0, "QoS Class", or_none(&status["qosClass"]));
    page.list(0, "Node-Selectors", pairs(&spec["nodeSelector"], "="));
    let tolerations = items(&spec["tolerations"]).map(|t| {
        let value = plain(&t["value"]);
        let seconds = t["tolerationSeconds"]
            .as_i64()
            .map(|s| format!(" for {s}s"))
            .unwrap_or_default();
        let equals = if value.is_empty() { "" } else { "=" };
        format!(
            "{}{equals}{value}:{} op={}{seconds}",
            plain(&t["key"]),
            plain(&t["effect"]),
            plain(&t["operator"])
        )
    });
    page.list(0, "Tolerations", tolerations.collect());
}

fn one_container(page: &mut Page, container: &Value, status: &Value) {
    page.raw(1, format!("{}:", plain(&container["name"])));
    page.add(2, "Container ID", or_none(&status["containerID"]));
    page.add(2, "Image", plain(&container["image"]));
    page.add(2, "Image ID", or_none(&status["imageID"]));
    let ports = items(&container["ports"]).map(|p| {
        format!(
            "{}/{}",
            p["containerPort"],
            p["protocol"].as_str().unwrap_or("TCP")
        )
    });
    page.add(
        2,
        "Ports",
        Some(ports.collect::<Vec<_>>().join(", "))
            .filter(|p| !p.is_empty())
            .unwrap_or_else(|| "<none>".into()),
    );
    for (key, field) in [("Command", "command"), ("Args", "args")] {
        if container[field].is_array() {
            page.list(2, key, items(&container[field]).map(plain).collect());
        }
    }
    for (key, field) in [("State", "state"), ("Last State", "lastState")] {
        let Some((name, state)) = status[field].as_object().and_then(|s| s.iter().next()) else {
            continue;
        };
        page.add(2, key, name[..1].to_uppercase() + &name[1..]);
        for (key, field) in [
            ("Reason", "reason"),
            ("Message", "message"),
            ("Exit Code", "exitCode"),
            ("Signal", "signal"),
            ("Started", "startedAt"),
            ("Finished", "finishedAt"),
        ] {
            if !state[field].is_null() {
                page.add(3, key, plain(&state[field]));
            }
        }
    }
    page.add(
        2,
        "Ready",
        if status["ready"] == true {
            "True"
        } else {
            "False"
        },
    );
    page.add(
        2,
        "Restart Count",
        status["restartCount"].as_i64().unwrap_or(0).to_string(),
    );
    for field in ["limits", "requests"] {
        let all = pairs(&container["resources"][field], ": ");
        if !all.is_empty() {
            page.list(2, &(field[..1].to_uppercase() + &field[1..]), all);
        }
    }
    for (key, field) in [
        ("Liveness", "livenessProbe"),
        ("Readiness", "readinessProbe"),
        ("Startup", "startupProbe"),
    ] {
        if container[field].is_object() {
            page.add(2, key, probe(&container[field]));
        }
    }
    let env = items(&container["env"]).map(|e| match e["valueFrom"].is_object() {
        true => format!("{}: <{}>", plain(&e["name"]), brief(&e["valueFrom"])),
        false => format!("{}: {}", plain(&e["name"]), plain(&e["value"])),
    });
    page.list(2, "Environment", env.collect());
    let mounts = items(&container["volumeMounts"]).map(|m| {
        let mode = if m["readOnly"] == true { "ro" } else { "rw" };
        format!(
            "{} from {} ({mode})",
            plain(&m["mountPath"]),
            plain(&m["name"])
        )
    });
    page.list(2, "Mounts", mounts.collect());
}

fn probe(probe: &Value) -> String {
    let http = &probe["httpGet"];
    let how = if http.is_object() {
        let scheme = http["scheme"].as_str().unwrap_or("HTTP").to_lowercase();
        format!(
            "http-get {scheme}://{}:{}{}",
            plain(&http["host"]),
            plain(&http["port"]),
            plain(&http["path"])
        )
    } else if probe["tcpSocket"].is_object() {
        format!(
            "tcp-socket {}:{}",
            plain(&probe["tcpSocket"]["host"]),
            plain(&probe["tcpSocket"]["port"])
        )
    } else if probe["exec"].is_object() {
        format!("exec {}", probe["exec"]["command"])
    } else {
        format!("grpc <pod>:{}", plain(&probe["grpc"]["port"]))
    };
    let number = |field: &str, otherwise: i64| probe[field].as_i64().unwrap_or(otherwise);
    format!(
        "{how} delay={}s timeout={}s period={}s #success={} #failure={}",
        number("initialDelaySeconds", 0),
        number("timeoutSeconds", 1),
        number("periodSeconds", 10),
        number("successThreshold", 1),
        number("failureThreshold", 3)
    )
}

/// A small object in one line.
fn brief(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let all = fields
                .iter()
                .map(|(k, v)| format!("{k}={}", if v.is_object() { brief(v) } else { plain(v) }));
            all.collect::<Vec<_>>().join(" ")
        }
        other => plain(other),
    }
}

fn conditions(page: &mut Page, status: &Value) {
    if items(&status["conditions"]).next().is_none() {
        return;
    }
    page.raw(0, "Conditions:");
    let mut rows = vec![
        ["Type", "Status", "Reason", "Message"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(items(&status["conditions"]).map(|c| {
        ["type", "status", "reason", "message"]
            .map(|f| plain(&c[f]))
            .to_vec()
    }));
    page.table(1, rows);
}

async fn node(session: &Session, page: &mut Page, live: &Value) -> Result<()> {
    let (spec, status) = (&live["spec"], &live["status"]);
    head(page, live);
    page.add(
        0,
        "CreationTimestamp",
        plain(&live["metadata"]["creationTimestamp"]),
    );
    let taints = items(&spec["taints"]).map(|t| {
        let value = plain(&t["value"]);
        let equals = if value.is_empty() { "" } else { "=" };
        format!(
            "{}{equals}{value}:{}",
            plain(&t["key"]),
            plain(&t["effect"])
        )
    });
    page.list(0, "Taints", taints.collect());
    page.add(
        0,
        "Unschedulable",
        (spec["unschedulable"] == true).to_string(),
    );
    conditions(page, status);
    page.raw(0, "Addresses:");
    items(&status["addresses"]).for_each(|a| page.add(1, &plain(&a["type"]), plain(&a["address"])));
    for (title, field) in [("Capacity", "capacity"), ("Allocatable", "allocatable")] {
        page.raw(0, format!("{title}:"));
        status[field]
            .as_object()
            .into_iter()
            .flatten()
            .for_each(|(k, v)| page.add(1, k, plain(v)));
    }
    page.raw(0, "System Info:");
    status["nodeInfo"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, v)| v.is_string())
        .for_each(|(k, v)| page.add(1, k, plain(v)));
    page.add(0, "PodCIDR", or_none(&spec["podCIDR"]));
    let name = plain(&live["metadata"]["name"]);
    let query = format!(
        "&fieldSelector={}",
        escape(&format!(
            "spec.nodeName={name},status.phase!=Failed,status.phase!=Succeeded"
        ))
    );
    let pods = session
        .list("/api/v1/pods", &query, "application/json")
        .await?;
    let mut rows = vec![
        [
            "Namespace",
            "Name",
            "CPU Requests",
            "CPU Limits",
            "Memory Requests",
            "Memory Limits",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for pod in items(&pods["items"]) {
        let sum = |kind: &str, what: &str| {
            let all = items(&pod["spec"]["containers"])
                .filter_map(|c| c["resources"][kind][what].as_str());
            let all = all.filter_map(|q| apimachinery::quantity::Quantity::parse(q).ok());
            match what {
                "cpu" => format!("{}m", all.map(|q| q.milli_value()).sum::<i64>()),
                _ => format!("{}Mi", all.map(|q| q.value()).sum::<i64>() >> 20),
            }
        };
        rows.push(vec![
            plain(&pod["metadata"]["namespace"]),
            plain(&pod["metadata"]["name"]),
            sum("requests", "cpu"),
            sum("limits", "cpu"),
            sum("requests", "memory"),
            sum("limits", "memory"),
        ]);
    }
    page.add(
        0,
        "Non-terminated Pods",
        format!("({} in total)", rows.len() - 1),
    );
    page.table(1, rows);
    Ok(())
}

async fn service(session: &Session, page: &mut Page, live: &Value) -> Result<()> {
    let spec = &live["spec"];
    head(page, live);
    page.add(
        0,
        "Selector",
        Some(pairs(&spec["selector"], "=").join(","))
            .filter(|s| !s.is_empty())
            .unwrap_or_else(|| "<none>".into()),
    );
    page.add(0, "Type", plain(&spec["type"]));
    page.add(0, "IP Family Policy", or_none(&spec["ipFamilyPolicy"]));
    page.add(0, "IP", or_none(&spec["clusterIP"]));
    for (key, field) in [
        ("External Name", "externalName"),
        ("Session Affinity", "sessionAffinity"),
        ("External Traffic Policy", "externalTrafficPolicy"),
        ("Internal Traffic Policy", "internalTrafficPolicy"),
    ] {
        if !spec[field].is_null() {
            page.add(0, key, plain(&spec[field]));
        }
    }
    let (namespace, name) = (
        plain(&live["metadata"]["namespace"]),
        plain(&live["metadata"]["name"]),
    );
    let query = format!(
        "&labelSelector={}",
        escape(&format!("kubernetes.io/service-name={name}"))
    );
    let slices = session
        .list(
            &format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"),
            &query,
            "application/json",
        )
        .await?;
    for port in items(&spec["ports"]) {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        page.add(
            0,
            "Port",
            format!(
                "{}  {}/{protocol}",
                port["name"].as_str().unwrap_or("<unset>"),
                port["port"]
            ),
        );
        page.add(
            0,
            "TargetPort",
            format!("{}/{protocol}", plain(&port["targetPort"])),
        );
        if !port["nodePort"].is_null() {
            page.add(0, "NodePort", format!("{}/{protocol}", port["nodePort"]));
        }
        let mut endpoints = Vec::new();
        for slice in items(&slices["items"]) {
            for number in
                items(&slice["ports"]).filter(|p| plain(&p["name"]) == plain(&port["name"]))
            {
                let ready =
                    items(&slice["endpoints"]).filter(|e| e["conditions"]["ready"] != false);
                endpoints.extend(
                    ready.map(|e| format!("{}:{}", plain(&e["addresses"][0]), number["port"])),
                );
            }
        }
        page.add(
            0,
            "Endpoints",
            if endpoints.is_empty() {
                "<none>".into()
            } else {
                endpoints.join(",")
            },
        );
    }
    Ok(())
}

async fn workload(session: &Session, page: &mut Page, object: &Object, live: &Value) -> Result<()> {
    let (spec, status) = (&live["spec"], &live["status"]);
    head(page, live);
    page.add(
        0,
        "CreationTimestamp",
        plain(&live["metadata"]["creationTimestamp"]),
    );
    page.add(
        0,
        "Selector",
        target::selector_of(live).unwrap_or_else(|_| "<none>".into()),
    );
    if let Some(owner) =
        items(&live["metadata"]["ownerReferences"]).find(|o| o["controller"] == true)
    {
        page.add(
            0,
            "Controlled By",
            format!("{}/{}", plain(&owner["kind"]), plain(&owner["name"])),
        );
    }
    let number = |field: &str| status[field].as_i64().unwrap_or(0);
    match object.kind.kind.as_str() {
        "Deployment" => {
            let wanted = spec["replicas"].as_i64().unwrap_or(1);
            page.add(
                0,
                "Replicas",
                format!(
                    "{wanted} desired | {} updated | {} total | {} available | {} unavailable",
                    number("updatedReplicas"),
                    number("replicas"),
                    number("availableReplicas"),
                    number("unavailableReplicas")
                ),
            );
            page.add(0, "StrategyType", plain(&spec["strategy"]["type"]));
            page.add(
                0,
                "MinReadySeconds",
                spec["minReadySeconds"].as_i64().unwrap_or(0).to_string(),
            );
            let rolling = &spec["strategy"]["rollingUpdate"];
            if rolling.is_object() {
                page.add(
                    0,
                    "RollingUpdateStrategy",
                    format!(
                        "{} max unavailable, {} max surge",
                        plain(&rolling["maxUnavailable"]),
                        plain(&rolling["maxSurge"])
                    ),
                );
            }
        }
        "DaemonSet" => page.add(
            0,
            "Pods",
            format!(
                "{} desired | {} ready",
                number("desiredNumberScheduled"),
                number("numberReady")
            ),
        ),
        "Job" => page.add(
            0,
            "Pods Statuses",
            format!(
                "{} Active / {} Succeeded / {} Failed",
                number("active"),
                number("succeeded"),
                number("failed")
            ),
        ),
        _ => page.add(
            0,
            "Replicas",
            format!(
                "{} current / {} desired, {} ready",
                number("replicas"),
                spec["replicas"].as_i64().unwrap_or(1),
                number("readyReplicas")
            ),
        ),
    }
    page.raw(0, "Pod Template:");
    page.list(
        1,
        "Labels",
        pairs(&spec["template"]["metadata"]["labels"], "="),
    );
    page.raw(1, "Containers:");
    for container in items(&spec["template"]["spec"]["containers"]) {
        let from = page.lines.len();
        one_container(page, container, &Value::Null);
        // A template has nothing running.
        let absent = ["Container ID:", "Image ID:", "Ready:", "Restart Count:"];
        let mut at = 0;
        page.lines.retain(|line| {
            at += 1;
            at <= from || !absent.contains(&line.1.as_str())
        });
    }
    conditions(page, status);
    if object.kind.kind == "Deployment" {
        let sets = session.kind("replicasets.apps").await?;
        let query = format!("&labelSelector={}", escape(&target::selector_of(live)?));
        let list = session
            .list(
                &sets.path(object.namespace.as_deref()),
                &query,
                "application/json",
            )
            .await?;
        let revision = &live["metadata"]["annotations"]["deployment.kubernetes.io/revision"];
        let (mut new, mut old) = ("<none>".to_owned(), Vec::new());
        for set in items(&list["items"]) {
            let line = format!(
                "{} ({}/{} replicas created)",
                plain(&set["metadata"]["name"]),
                set["status"]["replicas"].as_i64().unwrap_or(0),
                set["spec"]["replicas"].as_i64().unwrap_or(0)
            );
            if set["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == *revision {
                new = line;
            } else if set["spec"]["replicas"] != 0 {
                old.push(line);
            }
        }
        page.list(0, "OldReplicaSets", old);
        page.add(0, "NewReplicaSet", new);
    }
    Ok(())
}

fn secret(page: &mut Page, live: &Value) {
    use base64::Engine;
    head(page, live);
    page.add(0, "Type", plain(&live["type"]));
    page.raw(0, "Data");
    page.raw(0, "====");
    for (key, value) in live["data"].as_object().into_iter().flatten() {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(plain(value))
            .unwrap_or_default();
        page.add(0, key, format!("{} bytes", bytes.len()));
    }
}

fn generic(page: &mut Page, live: &Value) {
    head(page, live);
    page.add(0, "API Version", plain(&live["apiVersion"]));
    page.add(0, "Kind", plain(&live["kind"]));
    page.add(0, "Created", plain(&live["metadata"]["creationTimestamp"]));
    for (key, value) in live.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
            tree(page, 0, key, value);
        }
    }
}

fn tree(page: &mut Page, depth: usize, key: &str, value: &Value) {
    let title = spaced(key);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            page.raw(depth, format!("{title}:"));
            fields
                .iter()
                .for_each(|(key, value)| tree(page, depth + 1, key, value));
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            page.raw(depth, format!("{title}:"));
            for (at, item) in list.iter().enumerate() {
                if at > 0 {
                    page.raw(depth + 1, "---");
                }
                item.as_object()
                    .into_iter()
                    .flatten()
                    .for_each(|(key, value)| tree(page, depth + 1, key, value));
            }
        }
        Value::Array(list) => page.list(depth, &title, list.iter().map(plain).collect()),
        Value::Object(_) => page.add(depth, &title, "<none>"),
        other => page.add(depth, &title, or_none(other)),
    }
}

/// `camelCase` as `Camel Case`; keys with other signs stay.
fn spaced(key: &str) -> String {
    if !key.chars().all(char::is_alphanumeric) {
        return key.to_owned();
    }
    let mut out = String::new();
    for (at, c) in key.chars().enumerate() {
        if at == 0 {
            out.extend(c.to_uppercase());
            continue;
        }
        if c.is_uppercase() && !out.ends_with(char::is_uppercase) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

async fn events(session: &Session, page: &mut Page, live: &Value) -> Result<()> {
    let meta = &live["metadata"];
    let selector = format!(
        "involvedObject.name={},involvedObject.kind={}",
        plain(&meta["name"]),
        plain(&live["kind"])
    );
    let path = match meta["namespace"].as_str() {
        Some(namespace) => format!("/api/v1/namespaces/{namespace}/events"),
        None => "/api/v1/events".to_owned(),
    };
    // Whoever may see the object need not be allowed to see events.
    let Ok(list) = session
        .list(
            &path,
            &format!("&fieldSelector={}", escape(&selector)),
            "application/json",
        )
        .await
    else {
        return Ok(());
    };
    let mut all: Vec<&Value> = items(&list["items"]).collect();
    if all.is_empty() {
        page.add(0, "Events", "<none>");
        return Ok(());
    }
    let time = |event: &Value| {
        let known = ["lastTimestamp", "eventTime"]
            .into_iter()
            .find_map(|f| event[f].as_str())
            .or(meta["creationTimestamp"].as_str());
        known.and_then(|t| t.parse::<jiff::Timestamp>().ok())
    };
    all.sort_by_key(|event| time(event));
    let mut rows = vec![
        ["Type", "Reason", "Age", "From", "Message"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for event in all {
        let age = time(event).map_or("<unknown>".into(), |t| {
            age((jiff::Timestamp::now() - t).get_seconds_total())
        });
        let count = event["count"]
            .as_i64()
            .or(event["series"]["count"].as_i64())
            .unwrap_or(1);
        let age = if count > 1 {
            format!("{age} (x{count})")
        } else {
            age
        };
        let from = event["source"]["component"]
            .as_str()
            .filter(|s| !s.is_empty())
            .or(event["reportingComponent"].as_str());
        let message = plain(&event["message"]).trim().to_owned();
        rows.push(vec![
            plain(&event["type"]),
            plain(&event["reason"]),
            age,
            from.unwrap_or_default().to_owned(),
            message,
        ]);
    }
    page.raw(0, "Events:");
    page.table(1, rows);
    Ok(())
}

trait Seconds {
    fn get_seconds_total(&self) -> i64;
}

impl Seconds for jiff::Span {
    fn get_seconds_total(&self) -> i64 {
        self.total(jiff::Unit::Second).map_or(0, |s| s as i64)
    }
}

/// A duration as Kubernetes' tools shorten it.
pub fn age(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let with = |big: i64, unit: &str, small: i64, sub: &str| {
        if small == 0 {
            format!("{big}{unit}")
        } else {
            format!("{big}{unit}{small}{sub}")
        }
    };
    match seconds {
        s if s < 0 => "0s".into(),
        s if s < 120 => format!("{s}s"),
        s if s < 600 => with(minutes, "m", s % 60, "s"),
        s if s < 10_800 => format!("{minutes}m"),
        s if s < 28_800 => with(hours, "h", minutes % 60, "m"),
        s if s < 172_800 => format!("{hours}h"),
        s if s < 691_200 => with(days, "d", hours % 24, "h"),
        s if s < 63_072_000 => format!("{days}d"),
        _ => format!("{}y{}d", days / 365, days % 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ages() {
        for (seconds, text) in [
            (5, "5s"),
            (119, "119s"),
            (150, "2m30s"),
            (300, "5m"),
            (3600, "60m"),
            (11_000, "3h3m"),
            (90_000, "25h"),
            (200_000, "2d7h"),
            (864_000, "10d"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn any_kind_can_be_described() {
        let mut page = Page::default();
        generic(
            &mut page,
            &json!({"apiVersion": "x/v1", "kind": "Foo", "metadata": {"name": "a"}, "spec": {"someField": 1, "list": [{"x": 1}, {"x": 2}], "hostIPs": ["a", "b"]}}),
        );
        let text = page.text();
        for line in [
            "Name:         a",
            "Spec:",
            "  Some Field:  1",
            "    X:  1",
            "    ---",
        ] {
            assert!(
                text.lines().any(|l| l.trim_end() == line),
                "{line:?} not in\n{text}"
            );
        }
    }
}
