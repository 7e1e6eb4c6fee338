//! A whole local cluster: how long it takes, and what it costs when nothing happens.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Setting;
use crate::process;
use crate::report::{Figure, Unit};

const SETTLE: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(60);

/// A cluster that is deleted when dropped.
struct Local<'a> {
    skiff: &'a Path,
    name: String,
    home: tempfile::TempDir,
}

impl Local<'_> {
    fn run(&self, args: &[&str]) -> Result<()> {
        let output = Command::new(self.skiff)
            .args(["cluster", args[0], &self.name])
            .args(&args[1..])
            .env("KUBECONFIG", self.home.path().join("kubeconfig"))
            .output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

impl Drop for Local<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.run(&["delete"]) {
            eprintln!("cluster {} was not deleted: {error:#}", self.name);
        }
    }
}

pub async fn cluster(setting: &Setting) -> Result<Vec<Figure>> {
    let skiff = setting.bin_dir.join("skiff");
    let local = Local {
        skiff: &skiff,
        name: format!("bench-{}", std::process::id()),
        home: tempfile::tempdir()?,
    };
    let started = Instant::now();
    local.run(&["create", "--nodes", "3", "--isolated"])?;
    let created = started.elapsed();
    tokio::time::sleep(SETTLE).await;
    let before = used(&local.name)?;
    tokio::time::sleep(IDLE).await;
    let idle = used(&local.name)? - before;
    Ok(vec![
        Figure {
            what: "local cluster of three nodes, ready and serving".into(),
            unit: Unit::Seconds,
            ours: created.as_secs_f64(),
            peer: None,
            budget: "under 5 s",
        },
        Figure {
            what: "idle cluster of three nodes: all our processes, of one core".into(),
            unit: Unit::Percent,
            ours: idle / IDLE.as_secs_f64() * 100.0,
            peer: None,
            budget: "under 1 %",
        },
    ])
}

/// Processor time of Skiff's own processes: not containerd's, its shims' and the containers'.
fn used(cluster: &str) -> Result<f64> {
    const OURS: [&str; 8] = [
        "skiff",
        "apiserver",
        "scheduler",
        "controller-manager",
        "kubelet",
        "proxy",
        "overlay",
        "dns",
    ];
    let all = process::of_cluster(cluster)?;
    let ours = all.iter().filter(|(_, name)| OURS.contains(&name.as_str()));
    // One that has just ended has used nothing since.
    Ok(ours
        .filter_map(|(pid, _)| process::cpu_seconds(*pid).ok())
        .sum())
}
