//! Security contexts: pod and container settings merged into what the runtime enforces.

use k8s_cri::v1 as cri;
use k8s_cri::v1::security_profile::ProfileType;
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, PodSecurityContext, SeccompProfile, SecurityContext,
};

use crate::model;

const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

static NO_POD: PodSecurityContext = PodSecurityContext {
    app_armor_profile: None,
    fs_group: None,
    fs_group_change_policy: None,
    run_as_group: None,
    run_as_non_root: None,
    run_as_user: None,
    se_linux_change_policy: None,
    se_linux_options: None,
    seccomp_profile: None,
    supplemental_groups: None,
    supplemental_groups_policy: None,
    sysctls: None,
    windows_options: None,
};

pub fn pod_context(pod: &Pod) -> &PodSecurityContext {
    model::spec(pod)
        .security_context
        .as_ref()
        .unwrap_or(&NO_POD)
}

pub fn namespaces(pod: &Pod) -> cri::NamespaceOption {
    let spec = model::spec(pod);
    let mode = |host: Option<bool>, otherwise: cri::NamespaceMode| if host == Some(true) { cri::NamespaceMode::Node } else { otherwise } as i32;
    let pid = if spec.share_process_namespace == Some(true) {
        cri::NamespaceMode::Pod
    } else {
        cri::NamespaceMode::Container
    };
    cri::NamespaceOption {
        network: mode(spec.host_network, cri::NamespaceMode::Pod),
        pid: mode(spec.host_pid, pid),
        ipc: mode(spec.host_ipc, cri::NamespaceMode::Pod),
        ..Default::default()
    }
}

pub fn seccomp(profile: Option<&SeccompProfile>, root: &str) -> cri::SecurityProfile {
    let (kind, reference) = match profile.map(|p| p.type_.as_str()) {
        Some("RuntimeDefault") => (ProfileType::RuntimeDefault, String::new()),
        Some("Localhost") => {
            let name = profile
                .and_then(|p| p.localhost_profile.as_deref())
                .unwrap_or_default();
            (ProfileType::Localhost, format!("{root}/seccomp/{name}"))
        }
        _ => (ProfileType::Unconfined, String::new()),
    };
    cri::SecurityProfile {
        profile_type: kind as i32,
        localhost_ref: reference,
    }
}

fn app_armor(profile: &AppArmorProfile) -> cri::SecurityProfile {
    let (kind, reference) = match profile.type_.as_str() {
        "Localhost" => (
            ProfileType::Localhost,
            profile.localhost_profile.clone().unwrap_or_default(),
        ),
        "Unconfined" => (ProfileType::Unconfined, String::new()),
        _ => (ProfileType::RuntimeDefault, String::new()),
    };
    cri::SecurityProfile {
        profile_type: kind as i32,
        localhost_ref: reference,
    }
}

fn groups(context: &PodSecurityContext) -> Vec<i64> {
    context
        .fs_group
        .into_iter()
        .chain(context.supplemental_groups.iter().flatten().copied())
        .collect()
}

pub fn is_privileged(container: &Container) -> bool {
    container
        .security_context
        .as_ref()
        .and_then(|s| s.privileged)
        == Some(true)
}

pub fn sandbox(pod: &Pod, root: &str) -> cri::LinuxSandboxSecurityContext {
    let context = pod_context(pod);
    let mut all = model::init_containers(pod)
        .iter()
        .chain(&model::spec(pod).containers);
    let int = |v: Option<i64>| v.map(|value| cri::Int64Value { value });
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        privileged: all.any(is_privileged),
        // A sandbox runs nothing but the pause process, which every profile must let live.
        seccomp: Some(match &context.seccomp_profile {
            Some(p) if p.type_ == "Unconfined" => seccomp(Some(p), root),
            _ => cri::SecurityProfile {
                profile_type: ProfileType::RuntimeDefault as i32,
                localhost_ref: String::new(),
            },
        }),
        run_as_user: int(context.run_as_user),
        run_as_group: int(context
            .run_as_group
            .filter(|_| context.run_as_user.is_some())),
        supplemental_groups: groups(context),
        ..Default::default()
    }
}

/// The container's context, or why the container must not run. `image` tells the user that the image names.
pub fn container(
    pod: &Pod,
    container: &Container,
    image: &cri::Image,
    root: &str,
) -> Result<cri::LinuxContainerSecurityContext, String> {
    let none = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&none);
    let of_pod = pod_context(pod);
    let user = own.run_as_user.or(of_pod.run_as_user);
    if own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
        verify_non_root(pod, container, user, image)?;
    }
    let image_uid = image.uid.as_ref().map(|u| u.value);
    let privileged = is_privileged(container);
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| {
        if unmasked {
            Vec::new()
        } else {
            list.iter().map(|p| p.to_string()).collect()
        }
    };
    let armor = own
        .app_armor_profile
        .as_ref()
        .or(of_pod.app_armor_profile.as_ref());
    let capabilities = own.capabilities.as_ref().map(|c| cri::Capability {
        add_capabilities: c.add.clone().unwrap_or_default(),
        drop_capabilities: c.drop.clone().unwrap_or_default(),
        ..Default::default()
    });
    let int = |v: Option<i64>| v.map(|value| cri::Int64Value { value });
    Ok(cri::LinuxContainerSecurityContext {
        capabilities,
        privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: int(user.or(image_uid.filter(|_| image.username.is_empty()))),
        run_as_group: int(own.run_as_group.or(of_pod.run_as_group)),
        run_as_username: if user.is_none() {
            image.username.clone()
        } else {
            String::new()
        },
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(of_pod),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(match privileged {
            true => seccomp(None, root),
            false => seccomp(
                own.seccomp_profile
                    .as_ref()
                    .or(of_pod.seccomp_profile.as_ref()),
                root,
            ),
        }),
        apparmor: armor.map(app_armor),
        ..Default::default()
    })
}

/// Puts a container among the processes of another one of its pod.
pub fn join_processes(config: &mut cri::ContainerConfig, target: String) {
    let context = config
        .linux
        .as_mut()
        .and_then(|l| l.security_context.as_mut());
    if let Some(options) = context.and_then(|c| c.namespace_options.as_mut())
        && options.pid == cri::NamespaceMode::Container as i32
    {
        options.pid = cri::NamespaceMode::Target as i32;
        options.target_id = target;
    }
}

fn verify_non_root(
    pod: &Pod,
    container: &Container,
    user: Option<i64>,
    image: &cri::Image,
) -> Result<(), String> {
    let at = format!(
        "(pod: \"{}_{}({})\", container: {})",
        model::name(pod),
        model::namespace(pod),
        model::uid(pod),
        container.name
    );
    match (
        user,
        image.uid.as_ref().map(|u| u.value),
        image.username.as_str(),
    ) {
        (Some(0), _, _) => Err(format!("container's runAsUser breaks non-root policy {at}")),
        (Some(_), _, _) => Ok(()),
        (None, _, name) if !name.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {at}"
        )),
        (None, None | Some(0), _) => Err(format!(
            "container has runAsNonRoot and image will run as root {at}"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn contexts_merge_and_non_root_is_enforced() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "securityContext": {"runAsNonRoot": true, "runAsUser": 7, "fsGroup": 9, "supplementalGroups": [3]},
            "containers": [
                {"name": "a", "securityContext": {"runAsUser": 5, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}},
                {"name": "b", "securityContext": {"runAsUser": 0}},
                {"name": "c", "securityContext": {"privileged": true, "procMount": "Unmasked", "seccompProfile": {"type": "RuntimeDefault"}}}
            ]}}))
        .unwrap();
        let image = cri::Image::default();
        let get = |i: usize| container(&pod, &model::spec(&pod).containers[i], &image, "/r");
        let a = get(0).unwrap();
        assert_eq!(a.run_as_user.unwrap().value, 5);
        assert_eq!(a.supplemental_groups, [9, 3]);
        assert!(a.no_new_privs && !a.masked_paths.is_empty());
        assert_eq!(a.capabilities.unwrap().drop_capabilities, ["ALL"]);
        assert!(get(1).unwrap_err().contains("breaks non-root policy"));
        let c = get(2).unwrap();
        assert!(c.privileged && c.masked_paths.is_empty());
        assert_eq!(
            c.seccomp.unwrap().profile_type,
            ProfileType::Unconfined as i32
        );
        assert!(sandbox(&pod, "/r").privileged);
    }
}
