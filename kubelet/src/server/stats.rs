//! `/stats/summary`: what pods and the node use, measured when somebody asks. A rate
//! needs two measurements: the one before is remembered; for the very first, a short one is made.

use std::collections::HashMap;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use jiff::Timestamp;
use k8s_cri::v1 as cri;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Refused, Shared, internal};
use crate::cgroups::Usage;
use crate::context::Node;
use crate::model::{self, keys};

/// Rates over less than this say little.
const SHORTEST: Duration = Duration::from_millis(100);
/// A measurement is used again within this time, so that several collectors see one rate.
const FRESH: Duration = Duration::from_secs(1);

/// CPU time counted so far, by what it was counted for.
#[derive(Clone, Debug)]
struct Sample {
    at: Timestamp,
    cpu: HashMap<String, u64>,
}

#[derive(Default)]
pub struct Stats {
    /// The two last measurements, older first.
    samples: Mutex<Vec<Sample>>,
}

/// Everything of one moment.
pub struct Snapshot {
    pub at: Timestamp,
    pub node: Usage,
    pub pods: Vec<PodUsage>,
    pub rates: HashMap<String, u64>,
}

pub struct PodUsage {
    pub uid: String,
    pub name: String,
    pub namespace: String,
    pub started: Option<Timestamp>,
    pub usage: Usage,
    pub containers: Vec<(String, Usage)>,
}

impl Stats {
    pub async fn measure(&self, node: &Node) -> Result<Snapshot, Refused> {
        let mut taken = take(node).await?;
        let known = self.samples.lock().clone();
        let before = known
            .into_iter()
            .rev()
            .find(|s| taken.at.duration_since(s.at).unsigned_abs() >= FRESH);
        let before = match before {
            Some(before) => before,
            None => {
                let first = sample(&taken);
                tokio::time::sleep(SHORTEST).await;
                taken = take(node).await?;
                first
            }
        };
        let now = sample(&taken);
        let elapsed = taken.at.duration_since(before.at).as_nanos().max(1);
        taken.rates = now
            .cpu
            .iter()
            .filter_map(|(key, cpu)| {
                let used = cpu.checked_sub(*before.cpu.get(key)?)?;
                Some((
                    key.clone(),
                    u64::try_from(i128::from(used) * 1_000_000_000 / elapsed).ok()?,
                ))
            })
            .collect();
        let mut samples = self.samples.lock();
        if samples
            .last()
            .is_none_or(|s| now.at.duration_since(s.at).unsigned_abs() >= FRESH)
        {
            samples.push(now);
            let surplus = samples.len().saturating_sub(2);
            samples.drain(..surplus);
        }
        Ok(taken)
    }
}

fn sample(taken: &Snapshot) -> Sample {
    let mut cpu = HashMap::from([(String::new(), taken.node.cpu_nanos)]);
    for pod in &taken.pods {
        cpu.insert(pod.uid.clone(), pod.usage.cpu_nanos);
        cpu.extend(
            pod.containers
                .iter()
                .map(|(name, usage)| (format!("{}/{name}", pod.uid), usage.cpu_nanos)),
        );
    }
    Sample { at: taken.at, cpu }
}

async fn take(node: &Node) -> Result<Snapshot, Refused> {
    let containers = node
        .runtime
        .container_stats()
        .await
        .map_err(|e| internal(e.message()))?;
    let pods: Vec<_> = node
        .pods
        .lock()
        .values()
        .filter(|p| !model::is_finished(p))
        .cloned()
        .collect();
    let pods = pods
        .iter()
        .map(|pod| PodUsage {
            uid: model::uid(pod).into(),
            name: model::name(pod).into(),
            namespace: model::namespace(pod).into(),
            started: pod
                .status
                .as_ref()
                .and_then(|s| s.start_time.as_ref())
                .map(|t| t.0),
            usage: node.cgroups.usage(&node.cgroups.pod_path(pod)),
            containers: containers
                .iter()
                .filter_map(|c| of_container(c, model::uid(pod)))
                .collect(),
        })
        .collect();
    Ok(Snapshot {
        at: Timestamp::now(),
        node: whole_node(node),
        pods,
        rates: HashMap::new(),
    })
}

fn of_container(stats: &cri::ContainerStats, uid: &str) -> Option<(String, Usage)> {
    let labels = &stats.attributes.as_ref()?.labels;
    if labels.get(keys::POD_UID)? != uid {
        return None;
    }
    let value = |v: &Option<cri::UInt64Value>| v.as_ref().map_or(0, |v| v.value);
    let memory = stats.memory.unwrap_or_default();
    let working_set = value(&memory.working_set_bytes);
    // One that has ended uses nothing, and is no longer told of.
    if working_set == 0 {
        return None;
    }
    Some((
        labels.get(keys::CONTAINER_NAME)?.clone(),
        Usage {
            cpu_nanos: stats
                .cpu
                .as_ref()
                .map_or(0, |c| value(&c.usage_core_nano_seconds)),
            working_set,
            memory_usage: value(&memory.usage_bytes).max(working_set),
            rss: value(&memory.rss_bytes),
        },
    ))
}

/// The node's own group; the root of v2 has no counters, there the machine's own do.
fn whole_node(node: &Node) -> Usage {
    let own = node.cgroups.usage(&node.flags.cgroup_root);
    if own.memory_usage > 0 {
        return own;
    }
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|v| v.parse::<u64>().ok());
    // user, nice, system, idle, iowait, irq, softirq, steal; a tick is ten milliseconds.
    let busy: u64 = fields
        .take(8)
        .enumerate()
        .filter(|(i, _)| *i != 3 && *i != 4)
        .map(|(_, v)| v)
        .sum();
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kb = |name: &str| {
        info.lines()
            .find_map(|l| {
                l.strip_prefix(name)?
                    .trim()
                    .strip_suffix("kB")?
                    .trim()
                    .parse::<u64>()
                    .ok()
            })
            .unwrap_or(0)
    };
    let used = (kb("MemTotal:") - kb("MemFree:").min(kb("MemTotal:"))) * 1024;
    let working_set = used.saturating_sub(kb("Inactive(file):") * 1024);
    Usage {
        cpu_nanos: busy * 10_000_000,
        memory_usage: used,
        working_set,
        rss: kb("AnonPages:") * 1024,
    }
}

pub async fn summary(
    State(server): State<Shared>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refused> {
    let taken = server.stats.measure(&server.node).await?;
    let brief = query.is_some_and(|q| q.contains("only_cpu_and_memory=true"));
    let time = stamp(taken.at);
    let pods: Vec<Value> = taken
        .pods
        .iter()
        .map(|pod| pod_summary(pod, &taken))
        .collect();
    let mut node = usage(&taken.node, taken.rates.get(""), &time);
    node["nodeName"] = json!(server.node.name);
    node["startTime"] = json!(time);
    if !brief && let Ok(fs) = nix::sys::statvfs::statvfs(&server.node.flags.root_dir) {
        let block = fs.fragment_size();
        node["fs"] = json!({
            "time": time,
            "availableBytes": fs.blocks_available() * block,
            "capacityBytes": fs.blocks() * block,
            "usedBytes": (fs.blocks() - fs.blocks_free()) * block,
            "inodesFree": fs.files_free(),
            "inodes": fs.files(),
        });
    }
    let available = u64::try_from(server.node.memory)
        .unwrap_or(0)
        .saturating_sub(taken.node.working_set);
    node["memory"]["availableBytes"] = json!(available);
    Ok(super::json(&json!({"node": node, "pods": pods})))
}

fn pod_summary(pod: &PodUsage, taken: &Snapshot) -> Value {
    let time = stamp(taken.at);
    let mut value = usage(&pod.usage, taken.rates.get(&pod.uid), &time);
    value["podRef"] = json!({"name": pod.name, "namespace": pod.namespace, "uid": pod.uid});
    value["startTime"] = json!(pod.started.map_or_else(|| time.clone(), stamp));
    let containers = pod.containers.iter().map(|(name, u)| {
        let mut c = usage(u, taken.rates.get(&format!("{}/{name}", pod.uid)), &time);
        c["name"] = json!(name);
        c["startTime"] = value["startTime"].clone();
        c
    });
    value["containers"] = containers.collect();
    value
}

fn usage(u: &Usage, rate: Option<&u64>, time: &str) -> Value {
    json!({
        "cpu": {"time": time, "usageNanoCores": rate.copied().unwrap_or(0), "usageCoreNanoSeconds": u.cpu_nanos},
        "memory": {"time": time, "usageBytes": u.memory_usage, "workingSetBytes": u.working_set, "rssBytes": u.rss},
    })
}

fn stamp(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
