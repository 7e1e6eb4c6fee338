//! Volumes that are plain directories of the node: `emptyDir` and `hostPath`.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource};
use nix::mount::MsFlags;

use super::Owner;
use crate::resources;

pub fn empty_dir(
    path: &Path,
    source: &EmptyDirVolumeSource,
    owner: Owner,
    node_memory: i64,
) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    let mut mode = 0o777;
    if source.medium.as_deref() == Some("Memory") && !is_mount(path)? {
        let size = source
            .size_limit
            .as_ref()
            .map(resources::bytes)
            .filter(|s| *s > 0)
            .unwrap_or(node_memory / 2);
        tmpfs(path, &format!("size={size},mode=0777"))?;
    }
    if let Some(group) = owner.group {
        std::os::unix::fs::chown(path, None, Some(group))?;
        mode |= 0o2000;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

pub fn tmpfs(path: &Path, options: &str) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options))
        .map_err(io::Error::from)
}

/// Whether a file system is mounted exactly here.
pub fn is_mount(path: &Path) -> io::Result<bool> {
    Ok(crate::container::files::mounts_below(path)?
        .iter()
        .any(|m| m == path))
}

/// Checks, or makes, what the type asks for.
pub fn host_path(source: &HostPathVolumeSource) -> Result<PathBuf, String> {
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let made = match kind {
        "DirectoryOrCreate" if !path.exists() => {
            std::fs::create_dir_all(&path).and_then(|()| mode(&path, 0o755))
        }
        "FileOrCreate" if !path.exists() => {
            std::fs::write(&path, "").and_then(|()| mode(&path, 0o644))
        }
        _ => Ok(()),
    };
    made.map_err(|e| format!("{}: {e}", path.display()))?;
    let found = std::fs::metadata(&path).map(|m| m.file_type());
    let (right, name) = match kind {
        "" => (true, ""),
        "Directory" | "DirectoryOrCreate" => {
            (found.as_ref().is_ok_and(|t| t.is_dir()), "a directory")
        }
        "File" | "FileOrCreate" => (found.as_ref().is_ok_and(|t| t.is_file()), "a file"),
        "Socket" => (found.as_ref().is_ok_and(|t| t.is_socket()), "a socket file"),
        "CharDevice" => (
            found.as_ref().is_ok_and(|t| t.is_char_device()),
            "a character device",
        ),
        "BlockDevice" => (
            found.as_ref().is_ok_and(|t| t.is_block_device()),
            "a block device",
        ),
        other => return Err(format!("unknown hostPath type {other}")),
    };
    match right {
        true => Ok(path),
        false => Err(format!(
            "hostPath type check failed: {} is not {name}",
            path.display()
        )),
    }
}

fn mode(path: &Path, bits: u32) -> io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(bits))
}
