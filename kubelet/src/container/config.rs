//! What the runtime is told about one container.

use std::collections::HashMap;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::json;

use super::{env, sandbox, security};
use crate::model::{self, keys};
use crate::resources;

/// Everything that had to be looked up before.
#[derive(Debug)]
pub struct ContainerFacts<'a> {
    pub attempt: u32,
    pub image: &'a cri::Image,
    pub image_ref: &'a str,
    pub env: Vec<(String, String)>,
    pub mounts: Vec<cri::Mount>,
    pub node_memory: i64,
    pub root: &'a str,
}

pub fn config(
    pod: &Pod,
    container: &Container,
    facts: ContainerFacts,
) -> Result<cri::ContainerConfig, String> {
    let lookup = |name: &str| {
        facts
            .env
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.clone())
    };
    let expand = |list: &Option<Vec<String>>| {
        list.iter()
            .flatten()
            .map(|t| env::expand(t, lookup))
            .collect()
    };
    let image = container.image.clone().unwrap_or_default();
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: container.name.clone(),
            attempt: facts.attempt,
        }),
        image: Some(cri::ImageSpec {
            image: facts.image_ref.to_string(),
            user_specified_image: image,
            ..Default::default()
        }),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        labels: labels(pod, container),
        annotations: annotations(pod, container, facts.attempt),
        log_path: format!("{}/{}.log", container.name, facts.attempt),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources::container_resources(
                pod,
                container,
                facts.node_memory,
            )),
            security_context: Some(security::container(
                pod,
                container,
                facts.image,
                facts.root,
            )?),
        }),
        envs: facts
            .env
            .into_iter()
            .map(|(key, value)| cri::KeyValue { key, value })
            .collect(),
        mounts: facts.mounts,
        ..Default::default()
    })
}

fn labels(pod: &Pod, container: &Container) -> HashMap<String, String> {
    let mut labels = sandbox::pod_labels(pod);
    labels.insert(keys::CONTAINER_NAME.into(), container.name.clone());
    labels
}

/// What must be known about the container when the pod itself is no longer at hand.
fn annotations(pod: &Pod, container: &Container, attempt: u32) -> HashMap<String, String> {
    let mut all = HashMap::from([
        (keys::HASH.to_string(), hash(container)),
        (keys::RESTART_COUNT.to_string(), attempt.to_string()),
        (
            keys::MESSAGE_PATH.to_string(),
            message_path(container).to_string(),
        ),
        (
            keys::MESSAGE_POLICY.to_string(),
            container
                .termination_message_policy
                .clone()
                .unwrap_or_else(|| "File".into()),
        ),
    ]);
    if let Some(grace) = model::spec(pod).termination_grace_period_seconds {
        all.insert(keys::GRACE.into(), grace.to_string());
    }
    all
}

/// By this Kubernetes' kubelet tells whether a container is still the one that the pod asks for: one that takes over a
/// node would restart every container with another. It is FNV-1a over how Go prints the bytes of this document.
fn hash(container: &Container) -> String {
    let fields =
        json!({"image": container.image.as_deref().unwrap_or_default(), "name": container.name});
    let bytes: Vec<String> = fields.to_string().bytes().map(|b| b.to_string()).collect();
    let printed = format!("([]uint8)[{}]", bytes.join(" "));
    let hash = printed.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("{hash:x}")
}

pub fn message_path(container: &Container) -> &str {
    container
        .termination_message_path
        .as_deref()
        .filter(|p| !p.is_empty())
        .unwrap_or("/dev/termination-log")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hashes are those that Kubernetes 1.36 computes.
    #[test]
    fn containers_carry_the_hash_that_kubernetes_kubelet_looks_for() {
        for (name, image, expected) in [
            ("web", "skiff.local/web:0.1", "9a422def"),
            ("dns", "skiff.local/dns:0.1", "57c00259"),
        ] {
            let container = Container {
                name: name.into(),
                image: Some(image.into()),
                ..Container::default()
            };
            let annotations = annotations(&Pod::default(), &container, 0);
            assert_eq!(annotations["io.kubernetes.container.hash"], expected);
        }
    }
}
