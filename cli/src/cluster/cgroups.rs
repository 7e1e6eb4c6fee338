//! The cgroups of a cluster: `skiff/SCOPE/MACHINE` in every hierarchy, v1 or v2.
//!
//! Through them every process of a cluster is found by name, whatever became of its supervisor.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One hierarchy as this process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// `cpu,cpuacct`, `name=systemd`; empty for the unified one.
    pub controllers: String,
    /// The directory beneath which clusters get their groups.
    pub base: PathBuf,
}

impl Hierarchy {
    pub fn unified(&self) -> bool {
        self.controllers.is_empty()
    }
}

pub fn discover() -> Result<Vec<Hierarchy>> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let found = hierarchies(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?);
    if found.is_empty() {
        bail!("no cgroup hierarchy is mounted on this machine; mount cgroup2 on /sys/fs/cgroup");
    }
    Ok(found)
}

/// In v1 a cluster's groups lie under the group of their creator, which may be limited. In v2 only a group without processes
/// may hand controllers on, so there they lie under the root. The unified hierarchy of a hybrid host is left out: its
/// controllers are in v1, and container runtimes refuse to meet both.
pub fn hierarchies(cgroup: &str, mountinfo: &str) -> Vec<Hierarchy> {
    let mounts: Vec<(&str, &str, &str, &str)> = mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            Some((
                *left.get(3)?,
                *left.get(4)?,
                *right.first()?,
                *right.get(2)?,
            ))
        })
        .collect();
    let mut found = Vec::new();
    for line in cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let mount = mounts
            .iter()
            .find(|(_, _, kind, options)| match controllers {
                "" => *kind == "cgroup2",
                some => {
                    *kind == "cgroup" && some.split(',').all(|c| options.split(',').any(|o| o == c))
                }
            });
        let Some((root, point, ..)) = mount else {
            continue;
        };
        let below = if controllers.is_empty() {
            ""
        } else {
            path.strip_prefix(root.trim_end_matches('/'))
                .unwrap_or("")
                .trim_start_matches('/')
        };
        found.push(Hierarchy {
            controllers: controllers.to_string(),
            base: Path::new(point).join(below),
        });
    }
    if found
        .iter()
        .any(|h: &Hierarchy| !h.unified() && !h.controllers.starts_with("name="))
    {
        found.retain(|h| !h.unified());
    } else if found.iter().any(Hierarchy::unified) {
        found.retain(Hierarchy::unified);
    }
    found
}

pub fn scope_dir(hierarchy: &Hierarchy, scope: &str) -> PathBuf {
    hierarchy.base.join("skiff").join(scope)
}

/// Moves this process into the group of a machine in every hierarchy, making it where it is missing.
pub fn enter(hierarchies: &[Hierarchy], scope: &str, machine: &str) -> Result<()> {
    for hierarchy in hierarchies {
        let dir = scope_dir(hierarchy, scope).join(machine);
        let mut group = hierarchy.base.clone();
        for part in ["skiff", scope, machine] {
            if hierarchy.unified() {
                delegate(&group);
            }
            let parent = group.clone();
            group.push(part);
            fs::create_dir_all(&group)
                .with_context(|| format!("create cgroup {}", group.display()))?;
            if hierarchy.controllers.split(',').any(|c| c == "cpuset") {
                inherit_cpuset(&parent, &group);
            }
        }
        fs::write(dir.join("cgroup.procs"), "0")
            .with_context(|| format!("enter cgroup {}", dir.display()))?;
    }
    Ok(())
}

/// Hands every controller of a v2 group on to its children, each by itself: one that cannot be does not hold back the others.
pub fn delegate(group: &Path) {
    let available = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for controller in available.split_whitespace() {
        let _ = fs::write(
            group.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
    }
}

/// A v1 cpuset takes no process before its CPUs and memory nodes are named.
fn inherit_cpuset(parent: &Path, group: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = fs::read_to_string(group.join(file)).unwrap_or_default();
        if own.trim().is_empty()
            && let Ok(value) = fs::read_to_string(parent.join(file))
        {
            let _ = fs::write(group.join(file), value.trim());
        }
    }
}

/// Kills every process in these groups and below, and removes the groups.
pub fn destroy(dirs: &[PathBuf]) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let own = Pid::this();
    for dir in dirs.iter().filter(|d| d.is_dir()) {
        loop {
            let groups = tree(dir);
            for group in &groups {
                // A frozen v1 group does not take the signal.
                let _ = fs::write(group.join("freezer.state"), "THAWED");
                for pid in processes(group).filter(|pid| *pid != own) {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
            // Deepest first. A group is busy until the kernel has let go of its last process.
            let left = groups.iter().rev().filter(|g| {
                let gone = |e: io::Error| e.kind() == io::ErrorKind::NotFound;
                !fs::remove_dir(g).map_or_else(gone, |()| true)
            });
            if left.count() == 0 {
                break;
            }
            if Instant::now() > deadline {
                bail!(
                    "cgroup {} cannot be removed: a process in it does not die",
                    dir.display()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // The parent that all clusters share goes with the last of them; a machine's, while the cluster runs, is not empty.
        if let Some(parent) = dir.parent() {
            let _ = fs::remove_dir(parent);
        }
    }
    Ok(())
}

/// A group and all below it, parents first.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_path_buf()];
    let mut next = 0;
    while next < found.len() {
        let entries = fs::read_dir(&found[next]).into_iter().flatten().flatten();
        found.extend(
            entries
                .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
                .map(|e| e.path()),
        );
        next += 1;
    }
    found
}

fn processes(group: &Path) -> impl Iterator<Item = Pid> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let pids: Vec<Pid> = text
        .lines()
        .filter_map(|l| l.parse().ok())
        .filter(|p| *p > 0)
        .map(Pid::from_raw)
        .collect();
    pids.into_iter()
}

/// Whether any process lives in the cluster's groups.
pub fn occupied(dirs: &[PathBuf]) -> bool {
    dirs.iter()
        .any(|dir| tree(dir).iter().any(|g| processes(g).next().is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(cgroup: &str, mountinfo: &str) -> Vec<(String, String)> {
        let as_text = |h: Hierarchy| (h.controllers, h.base.display().to_string());
        hierarchies(cgroup, mountinfo)
            .into_iter()
            .map(as_text)
            .collect()
    }

    fn want(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(a, b)| (a.to_string(), b.to_string()))
            .collect()
    }

    #[test]
    fn v1_lies_under_the_creators_group() {
        let cgroup = "9:name=systemd:/\n4:memory:/box/1\n2:cpu,cpuacct:/\n0::/\n";
        let mounts = "\
            30 1 0:1 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            31 30 0:2 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            32 30 0:3 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            33 30 0:4 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            34 30 0:5 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let expected = want(&[
            ("name=systemd", "/sys/fs/cgroup/systemd/"),
            ("memory", "/sys/fs/cgroup/memory/box/1"),
            ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/"),
        ]);
        assert_eq!(found(cgroup, mounts), expected);
    }

    #[test]
    fn a_bind_mounted_group_is_taken_relative_to_its_root() {
        let cgroup = "4:memory:/docker/abc/x\n";
        let mounts = "31 30 0:2 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(
            found(cgroup, mounts),
            want(&[("memory", "/sys/fs/cgroup/memory/x")])
        );
    }

    #[test]
    fn v2_lies_under_the_root() {
        let cgroup = "0::/user.slice/user-0.slice/session-1.scope\n";
        let mounts = "30 1 0:1 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(found(cgroup, mounts), want(&[("", "/sys/fs/cgroup/")]));
    }
}
