//! The file system that a node sees: a root directory of its own in the cluster's state, with the host's programs mounted into it
//! read-only and the host's /etc beneath the node's own. Nothing a node or its pods write reaches the host's files,
//! and all of it goes with the cluster's directory.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::cgroups::Hierarchy;
use super::preflight::CNI_DIRS;
use super::spec::{Cluster, Machine, Paths};

/// Where a node finds Skiff's own programs.
pub const BIN_DIR: &str = "/skiff";
const NONE: Option<&str> = None;

/// Directories that hold a host's programs, on this or that distribution; links among them stay links.
const PROGRAMS: [&str; 9] = [
    "usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix", "gnu",
];
const OWN: [(&str, u32); 14] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("opt/cni/bin", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("skiff", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var/log/skiff", 0o755),
    ("var/tmp", 0o1777),
];

/// Makes the directories that outlive the node's processes. Done once, at creation; repeating it is harmless.
pub fn prepare(root: &Path) -> Result<()> {
    for (name, mode) in OWN {
        let dir = root.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode))?;
    }
    for name in PROGRAMS {
        let (host, own) = (Path::new("/").join(name), root.join(name));
        if let Ok(target) = fs::read_link(&host) {
            match symlink(target, &own) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e.into()),
                _ => {}
            }
        } else if host.is_dir() {
            fs::create_dir_all(&own)?;
        }
    }
    if !root.join("var/run").is_symlink() {
        symlink("/run", root.join("var/run"))?;
    }
    Ok(())
}

/// Makes this process's mount namespace that of a node, and its root the node's. Called by the node's first process, in its cgroup.
pub fn enter(cluster: &Cluster, paths: &Paths, node: u32, hierarchies: &[Hierarchy]) -> Result<()> {
    let root = paths.node_root(node);
    private()?;
    bind(&root, &root, false)?;
    for name in PROGRAMS {
        let host = Path::new("/").join(name);
        if host.is_dir() && !host.is_symlink() {
            bind(&host, &root.join(name), true)?;
        }
    }
    bind(&cluster.bin_dir, &root.join(&BIN_DIR[1..]), true)?;
    bind(
        &paths.machine_logs(Machine::Node(node)),
        &root.join("var/log/skiff"),
        false,
    )?;
    overlay(Path::new("/etc"), &paths.node_etc(node), &root.join("etc"))?;
    if let Some(plugins) = CNI_DIRS
        .iter()
        .map(Path::new)
        .find(|dir| dir.join("bridge").exists())
    {
        overlay(
            plugins,
            &paths.node(node).join("cni"),
            &root.join("opt/cni/bin"),
        )?;
    }
    devices(&root)?;
    fresh("tmpfs", &root.join("run"), "mode=755")?;
    fresh("proc", &root.join("proc"), "")?;
    fresh("sysfs", &root.join("sys"), "")?;
    cgroups(&root.join("sys/fs/cgroup"), hierarchies)?;

    std::env::set_current_dir(&root)?;
    // The old root is mounted on top of the new one, and let go of at once.
    nix::unistd::pivot_root(".", ".").context("change the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("leave the host's root")?;
    std::env::set_current_dir("/")?;
    // Pods may ask for mounts that propagate both ways.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SHARED, NONE)
        .context("share mounts within the node")
}

/// The mounts of a control plane: the host's, private, with a /proc that shows its own processes.
pub fn enter_control_plane() -> Result<()> {
    private()?;
    fresh("proc", Path::new("/proc"), "")
}

fn private() -> Result<()> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .context("make mounts private")
}

fn bind(from: &Path, to: &Path, read_only: bool) -> Result<()> {
    let context = || format!("mount {} on {}", from.display(), to.display());
    mount(
        Some(from),
        to,
        NONE,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        NONE,
    )
    .with_context(context)?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(NONE, to, NONE, flags, NONE).with_context(context)?;
    }
    Ok(())
}

/// `lower` with the changes that `own` keeps in `own/upper`.
fn overlay(lower: &Path, own: &Path, to: &Path) -> Result<()> {
    let (upper, work) = (own.join("upper"), own.join("work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    mount(
        Some("overlay"),
        to,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .with_context(|| {
        format!(
            "mount an overlay of {} on {}",
            lower.display(),
            to.display()
        )
    })
}

fn fresh(kind: &str, to: &Path, options: &str) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(kind), to, Some(kind), flags, Some(options))
        .with_context(|| format!("mount {kind} on {}", to.display()))
}

/// The host's devices, with terminals and shared memory of the node's own.
fn devices(root: &Path) -> Result<()> {
    let dev = root.join("dev");
    bind(Path::new("/dev"), &dev, false)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = Some("newinstance,ptmxmode=0666,mode=0620");
    mount(
        Some("devpts"),
        &dev.join("pts"),
        Some("devpts"),
        flags,
        options,
    )
    .context("mount devpts")?;
    for (kind, name) in [("tmpfs", "shm"), ("mqueue", "mqueue")] {
        if dev.join(name).is_dir() {
            fresh(kind, &dev.join(name), "")?;
        }
    }
    Ok(())
}

/// Every hierarchy anew. The cgroup namespace makes the node's own group the root of each, so that runtime and kubelet see
/// what they would see on a machine of their own.
fn cgroups(point: &Path, hierarchies: &[Hierarchy]) -> Result<()> {
    if let [one] = hierarchies
        && one.unified()
    {
        fresh("cgroup2", point, "")?;
        // Only a group without processes may hand controllers on: they move into a child.
        let inner = point.join("init");
        fs::create_dir_all(&inner)?;
        fs::write(inner.join("cgroup.procs"), "0").context("enter the node's inner cgroup")?;
        super::cgroups::delegate(point);
        return Ok(());
    }
    fresh("tmpfs", point, "mode=755")?;
    for hierarchy in hierarchies {
        let name = hierarchy
            .controllers
            .strip_prefix("name=")
            .unwrap_or(&hierarchy.controllers);
        let dir = point.join(name);
        fs::create_dir(&dir)?;
        let options = match hierarchy.controllers.strip_prefix("name=") {
            Some(_) => format!("none,{}", hierarchy.controllers),
            None => hierarchy.controllers.clone(),
        };
        fresh("cgroup", &dir, &options)?;
        for part in name.split(',').filter(|part| *part != name) {
            symlink(name, point.join(part))?;
        }
    }
    Ok(())
}

/// Mount points of this process's namespace at or below a directory, deepest first.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape);
    let mut found: Vec<PathBuf> = points.filter(|p| p.starts_with(dir)).collect();
    found.reverse();
    found
}

/// mountinfo writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut out = text.to_string();
    for (code, plain) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        out = out.replace(code, plain);
    }
    PathBuf::from(out)
}
