//! Files and mounts that a container gets from the node: volumes, sub-paths,
//! `/etc/hosts`, and the file for its termination message.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::mount::{MntFlags, MsFlags};

use super::{config, dns, env};
use crate::model;

/// Where the volumes of a pod lie on the node, and whether the volume itself is read-only.
pub type VolumePaths = HashMap<String, (PathBuf, bool)>;

#[derive(Debug)]
pub struct MountFacts<'a> {
    /// The pod's own directory.
    pub pod_dir: &'a Path,
    pub volumes: &'a VolumePaths,
    pub cluster_domain: &'a str,
    pub pod_ips: &'a [String],
    pub attempt: u32,
}

/// Makes what has to be there and returns the container's mounts.
pub fn mounts(
    pod: &Pod,
    container: &Container,
    vars: &[(String, String)],
    facts: &MountFacts,
) -> Result<Vec<cri::Mount>, String> {
    let mut mounts = Vec::new();
    let declared = container.volume_mounts.as_deref().unwrap_or_default();
    for (index, mount) in declared.iter().enumerate() {
        mounts.push(volume_mount(container, mount, index, vars, facts)?);
    }
    let taken = |path: &str| {
        declared
            .iter()
            .any(|m| m.mount_path.trim_end_matches('/') == path)
    };
    if !taken("/etc/hosts") {
        let file = facts.pod_dir.join("etc-hosts");
        let node_hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        write(
            &file,
            &dns::hosts_file(pod, facts.cluster_domain, facts.pod_ips, &node_hosts),
            0o644,
        )?;
        mounts.push(bind("/etc/hosts", &file, false));
    }
    let path = config::message_path(container);
    if !taken(path) {
        let dir = facts.pod_dir.join("containers").join(&container.name);
        std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let file = dir.join(facts.attempt.to_string());
        write(&file, "", 0o666)?;
        mounts.push(bind(path, &file, false));
    }
    Ok(mounts)
}

fn write(file: &Path, text: &str, mode: u32) -> Result<(), String> {
    std::fs::write(file, text)
        .and_then(|()| std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)))
        .map_err(|e| format!("{}: {e}", file.display()))
}

fn bind(container_path: &str, host: &Path, readonly: bool) -> cri::Mount {
    cri::Mount {
        container_path: container_path.into(),
        host_path: host.display().to_string(),
        readonly,
        ..Default::default()
    }
}

fn volume_mount(
    container: &Container,
    mount: &VolumeMount,
    index: usize,
    vars: &[(String, String)],
    facts: &MountFacts,
) -> Result<cri::Mount, String> {
    let (root, read_only) = facts.volumes.get(&mount.name).ok_or_else(|| {
        format!(
            "cannot find volume \"{}\" to mount into container \"{}\"",
            mount.name, container.name
        )
    })?;
    let sub = match (&mount.sub_path, &mount.sub_path_expr) {
        (_, Some(expr)) if !expr.is_empty() => {
            let lookup = |name: &str| vars.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
            Some(env::expand(expr, lookup))
        }
        (Some(path), _) if !path.is_empty() => Some(path.clone()),
        _ => None,
    };
    let host = match &sub {
        Some(sub) => {
            let at = facts
                .pod_dir
                .join("volume-subpaths")
                .join(&mount.name)
                .join(&container.name)
                .join(index.to_string());
            bind_sub_path(root, sub, &at).map_err(|e| {
                format!(
                    "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {e}",
                    mount.name, container.name
                )
            })?;
            at
        }
        None => root.clone(),
    };
    let container_path = match mount.mount_path.starts_with('/') {
        true => mount.mount_path.clone(),
        false => format!("/{}", mount.mount_path),
    };
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
        _ => cri::MountPropagation::PropagationPrivate,
    };
    let readonly = *read_only || mount.read_only == Some(true);
    Ok(cri::Mount {
        propagation: propagation as i32,
        ..bind(&container_path, &host, readonly)
    })
}

/// Binds a path inside a volume to a place of its own. The path is opened so that no symbolic
/// link, made by a container meanwhile, can lead out of the volume.
fn bind_sub_path(root: &Path, sub: &str, at: &Path) -> io::Result<()> {
    let relative = Path::new(sub);
    if !relative
        .components()
        .all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "must be a relative path without '..'",
        ));
    }
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let base = std::fs::File::open(root)?;
    let opened = match nix::fcntl::openat2(&base, relative, how) {
        Err(nix::errno::Errno::ENOENT) => {
            create_beneath(&base, relative)?;
            nix::fcntl::openat2(&base, relative, how)
        }
        other => other,
    }?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    let is_dir = std::fs::metadata(&source)?.is_dir();
    unmount(at)?;
    if let Some(parent) = at.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if is_dir {
        std::fs::create_dir_all(at)?;
    } else {
        std::fs::write(at, "")?;
    }
    nix::mount::mount(
        Some(&source),
        at,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )?;
    Ok(())
}

/// Makes the directories of a path, step by step, never leaving `base`.
fn create_beneath(base: &std::fs::File, relative: &Path) -> io::Result<()> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut done = PathBuf::new();
    let mut dir = std::os::fd::OwnedFd::from(base.try_clone()?);
    for part in relative.components() {
        let Component::Normal(name) = part else {
            continue;
        };
        match nix::sys::stat::mkdirat(&dir, name, nix::sys::stat::Mode::from_bits_truncate(0o750)) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(e) => return Err(e.into()),
        }
        done.push(name);
        dir = nix::fcntl::openat2(base, &done, how)?;
    }
    Ok(())
}

/// Takes away whatever is mounted at a path, if anything is.
pub fn unmount(at: &Path) -> io::Result<()> {
    loop {
        match nix::mount::umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Every mount point below a directory, innermost first.
pub fn mounts_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let info = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = info
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .map(|p| PathBuf::from(p.replace("\\040", " ")))
        .filter(|p| p.starts_with(dir))
        .collect();
    found.sort();
    found.reverse();
    Ok(found)
}

/// Frees a directory: everything mounted below it goes first, so that nothing behind a mount is ever deleted.
pub fn remove_tree(dir: &Path) -> io::Result<()> {
    for mount in mounts_below(dir)? {
        unmount(&mount)?;
    }
    if !mounts_below(dir)?.is_empty() {
        return Err(io::Error::other(format!(
            "something is still mounted below {}",
            dir.display()
        )));
    }
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

pub fn pod_dir(root: &Path, pod: &Pod) -> PathBuf {
    root.join("pods").join(model::uid(pod))
}

/// Where the runtime writes the pod's logs.
pub fn log_dir(logs: &Path, pod: &Pod) -> PathBuf {
    logs.join(format!(
        "{}_{}_{}",
        model::namespace(pod),
        model::name(pod),
        model::uid(pod)
    ))
}
