//! What a machine must have before a cluster can run on it, and where it is found.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::spec::Store;

/// Skiff's own programs, all in one directory.
pub const BINARIES: [&str; 7] = [
    "apiserver",
    "scheduler",
    "controller-manager",
    "kubelet",
    "proxy",
    "overlay",
    "dns",
];

/// A program, and Debian's package of it.
const PROGRAMS: [(&str, &str); 8] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("mount", "mount"),
    ("busybox", "busybox-static"),
];

/// Where CNI plugins are kept: Debian's place, and the one of everyone else.
pub const CNI_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

/// Finds everything missing at once.
pub fn check(store: Store, bin_dir: &Path) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a cluster needs namespaces and mounts: run this as root, for example with sudo");
    }
    let mut missing: Vec<(&str, &str)> = PROGRAMS
        .into_iter()
        .filter(|(name, _)| find(name).is_none())
        .collect();
    if store == Store::Etcd && find("etcd").is_none() {
        missing.push(("etcd", "etcd-server"));
    }
    if !CNI_DIRS
        .iter()
        .any(|dir| Path::new(dir).join("bridge").exists())
    {
        missing.push(("CNI plugins", "containernetworking-plugins"));
    }
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|m| m.0).collect();
        let mut packages: Vec<&str> = missing.iter().map(|m| m.1).collect();
        packages.dedup();
        bail!(
            "not installed: {}\nOn Debian and Ubuntu: apt-get install --no-install-recommends {}",
            names.join(", "),
            packages.join(" ")
        );
    }
    let absent: Vec<&str> = BINARIES
        .into_iter()
        .filter(|name| !bin_dir.join(name).exists())
        .collect();
    if !absent.is_empty() {
        bail!(
            "{} not found in {}: build them with `cargo build --release`",
            absent.join(", "),
            bin_dir.display()
        );
    }
    Ok(())
}

/// The directory of the running program: its siblings are the components.
pub fn bin_dir() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program's own file")?;
    own.parent()
        .map(Path::to_path_buf)
        .context("this program has no directory")
}

pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(program))
        .find(|file| file.is_file())
}
