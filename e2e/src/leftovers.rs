//! What a cluster may leave on a machine, so that a test can prove that it left none of it.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::Result;

/// Everything on the machine that a cluster could have made: mounts, network
/// namespaces, links, firewall rules, cgroups and processes of ours.
#[derive(Debug, PartialEq, Eq)]
pub struct Footprint(BTreeSet<String>);

impl Footprint {
    /// Looks at the machine as it is now.
    pub fn take() -> Result<Self> {
        let mut seen = BTreeSet::new();
        for line in std::fs::read_to_string("/proc/self/mountinfo")?.lines() {
            if let Some(target) = line.split(' ').nth(4) {
                seen.insert(format!("mount {target}"));
            }
        }
        for (label, program, args) in [
            ("netns", "ip", &["netns", "list"][..]),
            ("link", "ip", &["-o", "-br", "link"]),
            ("rule", "iptables-save", &[]),
        ] {
            let out = Command::new(program).args(args).output()?;
            for line in String::from_utf8_lossy(&out.stdout).lines() {
                // iptables-save dates its comments and counts packets.
                if !line.starts_with('#') && !line.starts_with(':') {
                    seen.insert(format!("{label} {line}"));
                }
            }
        }
        cgroups("/sys/fs/cgroup".as_ref(), &mut seen);
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(program) = std::fs::read_link(entry.path().join("exe")) else {
                continue;
            };
            let program = program.to_string_lossy().into_owned();
            if [
                "containerd",
                "kubelet",
                "apiserver",
                "skiff",
                "proxy",
                "etcd",
                "pause",
            ]
            .iter()
            .any(|ours| {
                program
                    .rsplit('/')
                    .next()
                    .is_some_and(|p| p.starts_with(ours))
            }) {
                seen.insert(format!("process {name} {program}"));
            }
        }
        Ok(Self(seen))
    }

    /// What is there now and was not in `before`.
    pub fn since<'a>(&'a self, before: &Footprint) -> Vec<&'a str> {
        let new = self.0.iter().filter(|item| !before.0.contains(*item));
        new.map(String::as_str).collect()
    }
}

fn cgroups(dir: &std::path::Path, seen: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            seen.insert(format!("cgroup {}", entry.path().display()));
            cgroups(&entry.path(), seen);
        }
    }
}
