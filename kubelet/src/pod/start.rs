//! Starting one container: image, configuration, create, start, post-start hook; with
//! the events and the waiting reasons that Kubernetes' kubelet gives at each step.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use crate::container::config::{self, ContainerFacts};
use crate::container::env::{self, Sources};
use crate::container::files::{self, MountFacts, VolumePaths};
use crate::container::{sandbox, security};
use crate::context::{Node, Report};
use crate::handlers;
use crate::images::{self, Failure, Wanted};
use crate::model::{self, SandboxView};
use crate::volumes::image;

pub struct Start<'a> {
    pub node: &'a Node,
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub attempt: u32,
    pub sandbox: &'a SandboxView,
    pub volumes: &'a VolumePaths,
    /// A container that was made but never started, in the way of the new one.
    pub leftover: Option<String>,
    /// The id of the container whose processes a debug container sees, or the name that has no container.
    pub target: Option<Result<String, String>>,
}

pub async fn run(start: Start<'_>) -> Result<(), Failure> {
    let Start {
        node,
        pod,
        container,
        sandbox,
        ..
    } = &start;
    let report = Report::container(node, pod, &container.name);
    let sandbox_config = sandbox::config(pod, sandbox.attempt, &node.sandbox_facts(pod));
    let volumes = image_volumes(&start, &report, &sandbox_config).await?;
    let wanted = Wanted::by(container);
    let image = images::ensure(node, pod, wanted, &report, sandbox_config.clone()).await?;
    let config = configure(&start, &image, &volumes)
        .await
        .map_err(|message| {
            report.warning("Failed", &format!("Error: {message}"));
            Failure {
                reason: "CreateContainerConfigError",
                message,
                ..Failure::default()
            }
        })?;
    let failed = |reason: &'static str| {
        let report = &report;
        move |e: tonic::Status| {
            report.warning("Failed", &format!("Error: {}", e.message()));
            Failure {
                reason,
                message: e.message().to_string(),
                ..Failure::default()
            }
        }
    };
    if let Some(old) = &start.leftover {
        node.runtime
            .remove_container(old)
            .await
            .map_err(failed("CreateContainerError"))?;
    }
    // After a resize the pod's group may be too narrow for what the container gets now.
    if start.attempt > 0 {
        node.cgroups
            .widen_pod(pod)
            .map_err(|e| tonic::Status::internal(e.to_string()))
            .map_err(failed("CreateContainerError"))?;
    }
    let id = node
        .runtime
        .create_container(&sandbox.id, config, sandbox_config)
        .await
        .map_err(failed("CreateContainerError"))?;
    report.normal("Created", "Container created");
    node.runtime
        .start_container(&id)
        .await
        .map_err(failed("RunContainerError"))?;
    report.normal("Started", "Container started");
    link_log(node, pod, container, start.attempt, &id);
    if let Some(hook) = container
        .lifecycle
        .as_ref()
        .and_then(|l| l.post_start.as_ref())
        && let Err(message) = run_hook(
            node,
            pod,
            container,
            &id,
            &sandbox.ips,
            hook,
            Duration::ZERO,
        )
        .await
    {
        report.warning("FailedPostStartHook", "PostStartHook failed");
        report.normal("Killing", "FailedPostStartHook");
        let grace = model::spec(pod)
            .termination_grace_period_seconds
            .unwrap_or(30);
        // Should the stop fail too, the next pass sees a running container as it is.
        let _ = node.runtime.stop_container(&id, grace).await;
        return Err(Failure {
            reason: "PostStartHookError",
            message,
            ..Failure::default()
        });
    }
    Ok(())
}

/// The pod's volumes, with those that are images where the container has them: for each start they are pulled by their
/// policy, as its own image is.
async fn image_volumes(
    start: &Start<'_>,
    report: &Report<'_>,
    sandbox: &k8s_cri::v1::PodSandboxConfig,
) -> Result<VolumePaths, Failure> {
    let (node, pod) = (start.node, start.pod);
    let mut volumes = start.volumes.clone();
    let mounts = start.container.volume_mounts.as_deref().unwrap_or_default();
    let dir = files::pod_dir(&node.flags.root_dir, pod);
    for volume in model::spec(pod).volumes.iter().flatten() {
        let Some(source) = &volume.image else {
            continue;
        };
        if !mounts.iter().any(|m| m.name == volume.name) {
            continue;
        }
        let wanted = Wanted {
            image: source.reference.as_deref().unwrap_or_default(),
            policy: source.pull_policy.as_deref(),
        };
        let about = Report::pod(node, pod);
        let image = images::ensure(node, pod, wanted, &about, sandbox.clone()).await?;
        let at = image::mount(&node.runtime, &dir, &volume.name, &image.id)
            .await
            .map_err(|e| {
                let message = format!("failed to mount image \"{}\": {e}", wanted.image);
                report.warning("Failed", &format!("Error: {message}"));
                Failure {
                    reason: "CreateContainerError",
                    message,
                    ..Failure::default()
                }
            })?;
        volumes.insert(volume.name.clone(), (at, true));
    }
    Ok(volumes)
}

async fn configure(
    start: &Start<'_>,
    image: &k8s_cri::v1::Image,
    volumes: &VolumePaths,
) -> Result<k8s_cri::v1::ContainerConfig, String> {
    let Start {
        node,
        pod,
        container,
        ..
    } = start;
    let ips = if model::is_host_network(pod) {
        &node.facts.ips
    } else {
        &start.sandbox.ips
    };
    let mut sources = Sources::new();
    for (kind, name) in env::references(container)
        .into_iter()
        .collect::<HashSet<_>>()
    {
        let found = node
            .objects
            .get(kind, model::namespace(pod), &name)
            .await
            .map_err(|e| e.to_string())?;
        sources.insert((kind, name), found);
    }
    let vars = env::build(
        pod,
        container,
        &node.services_for(pod),
        &sources,
        &node.field_facts(ips),
    )?;
    let dir = files::pod_dir(&node.flags.root_dir, pod);
    let facts = MountFacts {
        pod_dir: &dir,
        volumes,
        cluster_domain: &node.flags.cluster_domain,
        pod_ips: ips,
        attempt: start.attempt,
    };
    let mounts = files::mounts(pod, container, &vars, &facts)?;
    let logs = files::log_dir(&node.flags.log_dir, pod).join(&container.name);
    std::fs::create_dir_all(&logs).map_err(|e| format!("{}: {e}", logs.display()))?;
    let facts = ContainerFacts {
        attempt: start.attempt,
        image,
        image_ref: &image.id,
        env: vars,
        mounts,
        node_memory: node.memory,
        root: node.flags.root_dir.to_str().unwrap_or_default(),
    };
    let mut config = config::config(pod, container, facts)?;
    if let Some(target) = &start.target {
        let target = target
            .clone()
            .map_err(|name| format!("unable to find target container {name}"))?;
        security::join_processes(&mut config, target);
    }
    Ok(config)
}

/// The link that log collectors know: `/var/log/containers/<pod>_<namespace>_<container>-<id>.log`.
fn link_log(node: &Node, pod: &Pod, container: &Container, attempt: u32, id: &str) {
    let target = files::log_dir(&node.flags.log_dir, pod)
        .join(&container.name)
        .join(format!("{attempt}.log"));
    let links = node
        .flags
        .log_dir
        .parent()
        .unwrap_or(Path::new("/var/log"))
        .join("containers");
    let name = format!(
        "{}_{}_{}-{id}.log",
        model::name(pod),
        model::namespace(pod),
        container.name
    );
    // Nothing of ours depends on the link.
    let _ = std::fs::create_dir_all(&links)
        .and_then(|()| std::os::unix::fs::symlink(target, links.join(name)));
}

/// Runs a lifecycle hook; a zero limit means none.
pub async fn run_hook(
    node: &Node,
    pod: &Pod,
    container: &Container,
    id: &str,
    ips: &[String],
    hook: &LifecycleHandler,
    limit: Duration,
) -> Result<(), String> {
    let ip = crate::probes::address(pod, ips, &node.facts.ips);
    let wait = if limit.is_zero() {
        Duration::from_secs(600)
    } else {
        limit
    };
    let run = async {
        if let Some(action) = &hook.exec {
            handlers::exec(node, id, action, limit).await.map(drop)
        } else if let Some(action) = &hook.http_get {
            handlers::http_get(container, action, &ip, wait)
                .await
                .map(drop)
        } else if let Some(sleep) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(
                u64::try_from(sleep.seconds).unwrap_or(0),
            ))
            .await;
            Ok(())
        } else {
            Ok(())
        }
    };
    match limit.is_zero() {
        true => run.await,
        false => tokio::time::timeout(limit, run)
            .await
            .unwrap_or_else(|_| Err("the hook did not end in time".into())),
    }
}
