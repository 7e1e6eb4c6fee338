//! A cluster for one test.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::{Tool, bin_dir, eventually};

/// What a test asks of its cluster.
#[derive(Debug, Clone)]
pub struct Options {
    pub nodes: u32,
    /// `embedded` or `etcd`.
    pub store: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 1,
            store: "embedded",
        }
    }
}

/// A running local cluster, deleted when dropped.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    home: TempDir,
}

impl Cluster {
    /// Creates the cluster `e2e-STORY-PID` and waits for it to be ready.
    pub fn create(story: &str, options: &Options) -> Result<Self> {
        let cluster = Self::named(story)?;
        cluster.skiff(&[
            "cluster",
            "create",
            &cluster.name,
            "--isolated",
            "--nodes",
            &options.nodes.to_string(),
            "--store",
            options.store,
        ])?;
        Ok(cluster)
    }

    /// Only the name and a home for its kubeconfig: for tests of `create` itself.
    pub fn named(story: &str) -> Result<Self> {
        Ok(Self {
            name: format!("e2e-{story}-{}", std::process::id()),
            home: tempfile::Builder::new().prefix("skiff-e2e-").tempdir()?,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.home.path().join("kubeconfig")
    }

    /// The machine's `kubectl` on this cluster.
    pub fn kubectl(&self) -> Tool {
        Tool::kubectl(&self.kubeconfig())
    }

    /// Skiff's client on this cluster.
    pub fn client(&self) -> Tool {
        Tool::skiff(&self.kubeconfig())
    }

    /// Runs `skiff` with this cluster's kubeconfig.
    pub fn skiff(&self, args: &[&str]) -> Result<String> {
        self.client().run(args)
    }

    /// The ids of the processes of this cluster whose program is `component`: its cgroups carry its name.
    pub fn pids(&self, component: &str) -> Result<Vec<i32>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let program = std::fs::read_link(entry.path().join("exe")).unwrap_or_default();
            let named = program.file_name().is_some_and(|name| name == component);
            let cgroups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            if named && cgroups.contains(&format!("/skiff/{}", self.name)) {
                found.push(pid);
            }
        }
        if found.is_empty() {
            bail!("no {component} runs in cluster {}", self.name);
        }
        Ok(found)
    }

    /// Waits until every node is Ready and every pod in every namespace too.
    pub fn settled(&self) -> Result<()> {
        eventually("all nodes and pods ready", Duration::from_secs(120), || {
            let nodes = self.kubectl().json(&["get", "nodes"])?;
            let pods = self.kubectl().json(&["get", "pods", "-A"])?;
            let ready = |item: &serde_json::Value| {
                item["status"]["conditions"].as_array().is_some_and(|all| {
                    all.iter()
                        .any(|c| c["type"] == "Ready" && c["status"] == "True")
                })
            };
            let all = [&nodes, &pods].iter().all(|list| {
                list["items"]
                    .as_array()
                    .is_some_and(|items| items.iter().all(ready))
            });
            Ok(all.then_some(()))
        })
    }

    /// Deletes the cluster and says whether that went well.
    pub fn delete(&self) -> Result<String> {
        self.skiff(&["cluster", "delete", &self.name])
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        self.delete().ok();
    }
}

impl Cluster {
    /// The last lines of every component's log, for a test that failed.
    fn show_logs(&self) {
        let shown = Command::new(bin_dir().join("skiff"))
            .args([
                "cluster", "logs", "--all", "--tail", "40", "--name", &self.name,
            ])
            .output()
            .context("cannot show the logs");
        if let Ok(out) = shown {
            eprintln!("{}", String::from_utf8_lossy(&out.stdout));
        }
    }
}
