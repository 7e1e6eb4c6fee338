//! What the kernel says of processes: memory held and processor time used.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

/// Resident memory in bytes.
pub fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .with_context(|| format!("process {pid} has no resident memory"))?;
    let kib: u64 = line
        .split_ascii_whitespace()
        .nth(1)
        .context("no figure")?
        .parse()?;
    Ok(kib * 1024)
}

/// Processor time used so far, user and system together, in seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything, so fields are counted from behind it.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .collect();
    let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<u64>().ok());
    let used = ticks(11).zip(ticks(12)).context("no processor times")?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok((used.0 + used.1) as f64 / per_second as f64)
}

/// All processes whose cgroup lies under a group named `skiff/CLUSTER`, by id, with the names of their programs.
pub fn of_cluster(name: &str) -> Result<BTreeMap<u32, String>> {
    let group = format!("/skiff/{name}");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let cgroups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let within = |line: &str| {
            line.find(&group).is_some_and(|at| {
                let rest = &line[at + group.len()..];
                rest.is_empty() || rest.starts_with('/')
            })
        };
        if cgroups.lines().any(within)
            && let Ok(program) = fs::read_link(entry.path().join("exe"))
        {
            let program = program.file_name().unwrap_or_default().to_string_lossy();
            found.insert(pid, program.into_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_holds_memory_and_has_used_time() {
        let me = std::process::id();
        assert!(resident(me).unwrap() > 1 << 20);
        assert!(cpu_seconds(me).unwrap() >= 0.0);
        assert!(of_cluster("there is no such cluster").unwrap().is_empty());
    }
}
