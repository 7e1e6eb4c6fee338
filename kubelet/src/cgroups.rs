//! Pod cgroups: `/kubepods/{burstable,besteffort}/pod<uid>` under the kubelet's own
//! root, in every v1 hierarchy or in the one of v2. The runtime puts containers below
//! them and, when a pod goes, leaves the empty directories behind for the kubelet to remove.

use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use crate::model;
use crate::resources::{self, PodLimits, Qos};

#[derive(Clone, Debug)]
struct Hierarchy {
    mount: PathBuf,
    /// Controllers of a v1 hierarchy; empty for v2.
    controllers: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    v2: bool,
    root: String,
}

/// CPU time in nanoseconds and memory in bytes, as cgroups count them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub cpu_nanos: u64,
    pub memory_usage: u64,
    pub working_set: u64,
    pub rss: u64,
}

impl Cgroups {
    /// `root` is a path inside every hierarchy, as `--cgroup-root` gives it.
    pub fn discover(root: &str) -> io::Result<Self> {
        let info = std::fs::read_to_string("/proc/self/mountinfo")?;
        let (hierarchies, v2) = parse_mounts(&info);
        if hierarchies.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no cgroup hierarchy is mounted",
            ));
        }
        let root = root.trim_matches('/');
        let root = if root.is_empty() {
            String::new()
        } else {
            format!("/{root}")
        };
        Ok(Cgroups {
            hierarchies,
            v2,
            root,
        })
    }

    pub fn is_v2(&self) -> bool {
        self.v2
    }

    fn qos_path(&self, qos: Qos) -> String {
        match qos {
            Qos::Guaranteed => format!("{}/kubepods", self.root),
            Qos::Burstable => format!("{}/kubepods/burstable", self.root),
            Qos::BestEffort => format!("{}/kubepods/besteffort", self.root),
        }
    }

    /// The parent that the runtime gets for the pod's sandbox and containers.
    pub fn pod_path(&self, pod: &Pod) -> String {
        format!(
            "{}/pod{}",
            self.qos_path(resources::qos(pod)),
            model::uid(pod)
        )
    }

    /// Makes the node's own groups; best effort gets the least weight there is.
    pub fn prepare(&self) -> io::Result<()> {
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            self.make(&self.qos_path(qos))?;
        }
        self.set_shares(&self.qos_path(Qos::BestEffort), resources::shares(0))
    }

    pub fn create_pod(&self, pod: &Pod) -> io::Result<()> {
        let path = self.pod_path(pod);
        self.make(&path)?;
        self.apply(&path, resources::pod_limits(pod))
    }

    /// Sets the limits of a pod's group where that gives it more; what gives it less waits for [`create_pod`](Self::create_pod).
    pub fn widen_pod(&self, pod: &Pod) -> io::Result<()> {
        let path = self.pod_path(pod);
        let limits = resources::pod_limits(pod);
        let (quota, memory) = if self.v2 {
            (("", "cpu.max"), ("", "memory.max"))
        } else {
            (
                ("cpu", "cpu.cfs_quota_us"),
                ("memory", "memory.limit_in_bytes"),
            )
        };
        let (no_quota, no_memory) = if self.v2 {
            ("max", "max")
        } else {
            ("-1", "-1")
        };
        for ((controller, file), wanted, none) in [
            (quota, limits.quota, no_quota),
            (memory, limits.memory, no_memory),
        ] {
            let text = match wanted {
                None => none.to_string(),
                Some(value)
                    if self
                        .limit(controller, &path, file)
                        .is_some_and(|has| has < value) =>
                {
                    value.to_string()
                }
                Some(_) => continue,
            };
            self.write(controller, &path, file, &text)?;
        }
        Ok(())
    }

    /// The limit that a file holds; none if there is none.
    fn limit(&self, controller: &str, path: &str, file: &str) -> Option<i64> {
        let has = |h: &&Hierarchy| self.v2 || h.controllers.iter().any(|c| c == controller);
        let h = self.hierarchies.iter().find(has)?;
        let text = std::fs::read_to_string(join(&h.mount, path).join(file)).ok()?;
        let value = text.split_whitespace().next()?.parse().ok()?;
        (value >= 0).then_some(value)
    }

    fn apply(&self, path: &str, limits: PodLimits) -> io::Result<()> {
        self.set_shares(path, limits.shares)?;
        if let Some(quota) = limits.quota {
            if self.v2 {
                self.write("", path, "cpu.max", &format!("{quota} 100000"))?;
            } else {
                self.write("cpu", path, "cpu.cfs_period_us", "100000")?;
                self.write("cpu", path, "cpu.cfs_quota_us", &quota.to_string())?;
            }
        }
        if let Some(memory) = limits.memory {
            let file = if self.v2 {
                "memory.max"
            } else {
                "memory.limit_in_bytes"
            };
            self.write("memory", path, file, &memory.to_string())?;
        }
        Ok(())
    }

    fn set_shares(&self, path: &str, shares: i64) -> io::Result<()> {
        if self.v2 {
            let weight = 1 + (shares.max(2) - 2) * 9999 / 262_142;
            self.write("", path, "cpu.weight", &weight.to_string())
        } else {
            self.write("cpu", path, "cpu.shares", &shares.to_string())
        }
    }

    /// A controller that is not there cannot be set; everything else is an error.
    fn write(&self, controller: &str, path: &str, file: &str, value: &str) -> io::Result<()> {
        for h in &self.hierarchies {
            if self.v2 || h.controllers.iter().any(|c| c == controller) {
                let file = join(&h.mount, path).join(file);
                match std::fs::write(&file, value) {
                    Err(e) if self.v2 && e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => {
                        return Err(io::Error::new(e.kind(), format!("{}: {e}", file.display())));
                    }
                    Ok(()) => {}
                }
            }
        }
        Ok(())
    }

    fn make(&self, path: &str) -> io::Result<()> {
        for h in &self.hierarchies {
            let mut dir = h.mount.clone();
            for part in path.split('/').filter(|p| !p.is_empty()) {
                if self.v2 {
                    enable_controllers(&dir);
                }
                dir.push(part);
                match std::fs::create_dir(&dir) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(io::Error::new(e.kind(), format!("{}: {e}", dir.display())));
                    }
                    _ => {}
                }
                if h.controllers.iter().any(|c| c == "cpuset") {
                    inherit_cpuset(&dir)?;
                }
            }
        }
        Ok(())
    }

    /// Removes the group of a pod that has no processes left, whatever its QoS class was.
    pub fn remove_pod(&self, uid: &str) -> io::Result<()> {
        for h in &self.hierarchies {
            for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
                remove_tree(&join(&h.mount, &self.qos_path(qos)).join(format!("pod{uid}")))?;
            }
        }
        Ok(())
    }

    /// The uids of all pods that have a group, to find those whose pod is gone.
    pub fn pod_uids(&self) -> Vec<String> {
        let mut uids = Vec::new();
        for h in &self.hierarchies {
            for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
                let Ok(dir) = std::fs::read_dir(join(&h.mount, &self.qos_path(qos))) else {
                    continue;
                };
                uids.extend(dir.flatten().filter_map(|e| {
                    Some(e.file_name().to_str()?.strip_prefix("pod")?.to_string())
                }));
            }
        }
        uids.sort();
        uids.dedup();
        uids
    }

    pub fn pods_usage(&self) -> Usage {
        self.usage(&self.qos_path(Qos::Guaranteed))
    }

    pub fn usage(&self, path: &str) -> Usage {
        let read = |controller: &str, file: &str| -> Option<String> {
            let h = self
                .hierarchies
                .iter()
                .find(|h| self.v2 || h.controllers.iter().any(|c| c == controller))?;
            std::fs::read_to_string(join(&h.mount, path).join(file)).ok()
        };
        let number =
            |text: Option<String>| text.and_then(|t| t.trim().parse::<u64>().ok()).unwrap_or(0);
        let stat = read("memory", "memory.stat").unwrap_or_default();
        let field = |name: &str| {
            stat.lines()
                .find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok())
                .unwrap_or(0)
        };
        let (cpu_nanos, memory_usage, inactive, rss) = if self.v2 {
            let cpu = read("", "cpu.stat").unwrap_or_default();
            let micros = cpu
                .lines()
                .find_map(|l| l.strip_prefix("usage_usec ")?.trim().parse::<u64>().ok())
                .unwrap_or(0);
            (
                micros * 1000,
                number(read("", "memory.current")),
                field("inactive_file "),
                field("anon "),
            )
        } else {
            let usage = number(read("memory", "memory.usage_in_bytes"));
            (
                number(read("cpuacct", "cpuacct.usage")),
                usage,
                field("total_inactive_file "),
                field("total_rss "),
            )
        };
        Usage {
            cpu_nanos,
            memory_usage,
            working_set: memory_usage.saturating_sub(inactive),
            rss,
        }
    }
}

fn join(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

/// Best effort: a controller that cannot be delegated shows when a limit is written.
fn enable_controllers(dir: &Path) {
    let Ok(available) = std::fs::read_to_string(dir.join("cgroup.controllers")) else {
        return;
    };
    for controller in available.split_whitespace() {
        let _ = std::fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// A v1 cpuset group takes no process before it has cpus and memory nodes.
fn inherit_cpuset(dir: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = dir.join(file);
        if std::fs::read_to_string(&own)?.trim().is_empty()
            && let Some(parent) = dir.parent()
        {
            std::fs::write(&own, std::fs::read_to_string(parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::new(e.kind(), format!("{}: {e}", dir.display())))
        }
        _ => Ok(()),
    }
}

/// Mount points from mountinfo; v2 only counts when no v1 controller is mounted beside it.
fn parse_mounts(info: &str) -> (Vec<Hierarchy>, bool) {
    let (mut v1, mut v2) = (Vec::<Hierarchy>::new(), Vec::<Hierarchy>::new());
    for line in info.lines() {
        let Some((head, tail)) = line.split_once(" - ") else {
            continue;
        };
        let (Some(mount), Some(kind)) = (head.split(' ').nth(4), tail.split(' ').next()) else {
            continue;
        };
        let options = tail.split(' ').nth(2).unwrap_or_default();
        let mount = PathBuf::from(mount.replace("\\040", " "));
        if kind == "cgroup2" {
            v2.push(Hierarchy {
                mount,
                controllers: Vec::new(),
            });
        } else if kind == "cgroup" {
            let skip = [
                "rw",
                "ro",
                "xattr",
                "clone_children",
                "none",
                "noprefix",
                "release_agent",
            ];
            let controllers: Vec<String> = options
                .split(',')
                .filter(|o| !skip.contains(o) && !o.starts_with("release_agent="))
                .map(str::to_string)
                .collect();
            if !v1.iter().any(|h| h.controllers == controllers) {
                v1.push(Hierarchy { mount, controllers });
            }
        }
    }
    if v1.is_empty() {
        v2.truncate(1);
        return (v2, true);
    }
    (v1, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_both_kinds() {
        let v1 = "30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                  31 25 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                  32 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let (h, v2) = parse_mounts(v1);
        assert!(!v2);
        assert_eq!(h.len(), 2);
        assert_eq!(h[0].controllers, ["cpu", "cpuacct"]);
        assert_eq!(h[1].controllers, ["name=systemd"]);
        let (h, v2) = parse_mounts(
            "30 25 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        assert!(v2);
        assert_eq!(h[0].mount, Path::new("/sys/fs/cgroup"));
    }
}
