//! The longer operations of a pod's worker, each a plain async function.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;

use super::start;
use super::worker::Outcome;
use crate::container::{files, sandbox};
use crate::context::{Node, Report};
use crate::model::{self, Limits};
use crate::resources;
use crate::volumes::image;

/// No container gets less time than this between TERM and KILL, as with Kubernetes.
const LEAST_GRACE: i64 = 2;

pub async fn create_sandbox(node: &Node, pod: &Pod, attempt: u32) -> Result<(), String> {
    node.cgroups.create_pod(pod).map_err(|e| e.to_string())?;
    let logs = files::log_dir(&node.flags.log_dir, pod);
    std::fs::create_dir_all(&logs).map_err(|e| format!("{}: {e}", logs.display()))?;
    let config = sandbox::config(pod, attempt, &node.sandbox_facts(pod));
    let handler = model::spec(pod)
        .runtime_class_name
        .clone()
        .unwrap_or_default();
    node.runtime
        .run_sandbox(config, handler)
        .await
        .map(drop)
        .map_err(|e| e.message().to_string())
}

/// Gives running containers the resources of the pod's spec. The pod's own group is widened before and narrowed after:
/// no child may have more than its parent.
pub async fn resize(
    node: &Node,
    pod: &Pod,
    updates: Vec<(String, String)>,
) -> Result<BTreeMap<String, Limits>, String> {
    node.cgroups.widen_pod(pod).map_err(|e| e.to_string())?;
    let mut taken = BTreeMap::new();
    for (id, name) in updates {
        let Some(container) = model::find_container(pod, &name) else {
            continue;
        };
        let mut wanted = resources::container_resources(pod, container, node.memory);
        // Zero would leave the limit that is in force.
        for limit in [&mut wanted.cpu_quota, &mut wanted.memory_limit_in_bytes] {
            if *limit == 0 {
                *limit = -1;
            }
        }
        node.runtime
            .update_resources(&id, wanted)
            .await
            .map_err(|e| format!("container {name}: {}", e.message()))?;
        taken.insert(id, resources::limits(pod, container));
    }
    node.cgroups.create_pod(pod).map_err(|e| e.to_string())?;
    Ok(taken)
}

/// The pre-stop hook, then TERM, then KILL when the grace is over; both share the grace.
pub async fn kill(
    node: &Node,
    pod: &Pod,
    name: &str,
    id: String,
    grace: i64,
    ips: &[String],
    hook: bool,
) -> Outcome {
    let started = Instant::now();
    let container = model::find_container(pod, name);
    let pre_stop = container.and_then(|c| c.lifecycle.as_ref()?.pre_stop.as_ref());
    if let (Some(container), Some(pre_stop)) = (container, pre_stop.filter(|_| hook && grace > 0)) {
        let limit = Duration::from_secs(grace.unsigned_abs());
        if let Err(error) = start::run_hook(node, pod, container, &id, ips, pre_stop, limit).await {
            tracing::debug!(
                pod = model::name(pod),
                name,
                error,
                "the pre-stop hook failed"
            );
            Report::container(node, pod, name).warning("FailedPreStopHook", "PreStopHook failed");
        }
    }
    let used = i64::try_from(started.elapsed().as_secs()).unwrap_or(grace);
    if let Err(error) = node
        .runtime
        .stop_container(&id, (grace - used).max(LEAST_GRACE))
        .await
    {
        tracing::warn!(pod = model::name(pod), name, %error, "the container did not stop");
        // Long enough that a runtime in trouble is not asked without pause.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Outcome::Killed { id }
}

/// Frees what the node holds for a pod without containers: mounts and cgroup, and unless
/// logs are to be kept, every directory.
pub async fn clean_up(node: Arc<Node>, pod: Arc<Pod>, keep_logs: bool) -> Result<(), String> {
    let dir = files::pod_dir(&node.flags.root_dir, &pod);
    image::release(&node.runtime, &dir).await?;
    let work = move || -> std::io::Result<()> {
        files::remove_tree(&dir.join("volume-subpaths"))?;
        if keep_logs {
            files::remove_tree(&dir.join("volumes"))?;
        } else {
            files::remove_tree(&dir)?;
            remove_logs(&node.flags.log_dir, &pod)?;
        }
        node.cgroups.remove_pod(model::uid(&pod))
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    }
}

/// The directory is found by the uid at its end: of a pod that is long gone nothing else may be known.
fn remove_logs(logs: &Path, pod: &Pod) -> std::io::Result<()> {
    let suffix = format!("_{}", model::uid(pod));
    let links = logs
        .parent()
        .unwrap_or(Path::new("/var/log"))
        .join("containers");
    for entry in std::fs::read_dir(logs).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().ends_with(&suffix) {
            continue;
        }
        std::fs::remove_dir_all(entry.path())?;
        for link in std::fs::read_dir(&links).into_iter().flatten().flatten() {
            if std::fs::read_link(link.path()).is_ok_and(|to| to.starts_with(entry.path())) {
                std::fs::remove_file(link.path())?;
            }
        }
    }
    Ok(())
}
