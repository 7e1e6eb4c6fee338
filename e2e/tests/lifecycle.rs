//! Clusters as a whole: made, stopped, broken, mended and removed without a trace.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{Cluster, Footprint, Options, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const WORKLOAD: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: sleeper}
spec:
  replicas: 2
  selector: {matchLabels: {app: sleeper}}
  template:
    metadata: {labels: {app: sleeper}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: sleeper
          image: skiff.local/busybox:1
          command: [sleep, "3600"]
"#;

fn signal_all(pids: &[i32], signal: Signal) {
    for pid in pids {
        kill(Pid::from_raw(*pid), signal).ok();
    }
}

fn kill_all(pids: &[i32]) {
    signal_all(pids, Signal::SIGKILL);
}

#[test]
fn delete_leaves_nothing_behind() -> Result<()> {
    let before = Footprint::take()?;
    let cluster = Cluster::create(
        "clean",
        &Options {
            nodes: 2,
            ..Options::default()
        },
    )?;
    cluster.kubectl().apply(WORKLOAD)?;
    cluster
        .kubectl()
        .run(&["rollout", "status", "deployment/sleeper", "--timeout=120s"])?;
    cluster.delete()?;
    let left = Footprint::take()?;
    ensure!(
        left.since(&before).is_empty(),
        "left behind: {:#?}",
        left.since(&before)
    );
    let contexts = cluster
        .kubectl()
        .output(&["config", "get-contexts", "-o", "name"], "")?;
    ensure!(
        !contexts.stdout.contains(cluster.name()),
        "the context is still there"
    );
    Ok(())
}

#[test]
fn stopped_or_killed_clusters_come_back_whole() -> Result<()> {
    let cluster = Cluster::create(
        "reboot",
        &Options {
            nodes: 2,
            ..Options::default()
        },
    )?;
    let kubectl = cluster.kubectl();
    kubectl.apply(WORKLOAD)?;
    kubectl.run(&["create", "configmap", "kept", "--from-literal=a=b"])?;
    kubectl.run(&["rollout", "status", "deployment/sleeper", "--timeout=120s"])?;

    cluster.skiff(&["cluster", "stop", cluster.name()])?;
    ensure!(
        kubectl.output(&["get", "nodes"], "")?.code != 0,
        "it still answers"
    );
    cluster.skiff(&["cluster", "start", cluster.name()])?;
    cluster.settled()?;
    kubectl.run(&["get", "configmap", "kept"])?;
    kubectl.run(&["rollout", "status", "deployment/sleeper", "--timeout=120s"])?;

    for program in [
        "skiff",
        "apiserver",
        "controller-manager",
        "scheduler",
        "containerd",
        "kubelet",
    ] {
        kill_all(&cluster.pids(program).unwrap_or_default());
    }
    cluster.skiff(&["cluster", "start", cluster.name()])?;
    cluster.settled()?;
    kubectl.run(&["get", "configmap", "kept"])?;
    kubectl.run(&["rollout", "status", "deployment/sleeper", "--timeout=120s"])?;
    Ok(())
}

#[test]
fn backups_bring_a_cluster_back() -> Result<()> {
    for store in ["embedded", "etcd"] {
        let options = Options { nodes: 1, store };
        let cluster = Cluster::create(&format!("backup-{store}"), &options)?;
        let kubectl = cluster.kubectl();
        kubectl.apply(WORKLOAD)?;
        kubectl.run(&["create", "configmap", "kept", "--from-literal=a=b"])?;
        kubectl.run(&["rollout", "status", "deployment/sleeper", "--timeout=120s"])?;
        let file = cluster.kubeconfig().with_file_name("backup");
        let file = file.to_string_lossy();
        cluster.skiff(&["cluster", "backup", &file, "--name", cluster.name()])?;
        kubectl.run(&["delete", "configmap", "kept"])?;
        kubectl.run(&["scale", "deployment/sleeper", "--replicas=3"])?;
        kubectl.run(&["create", "configmap", "later", "--from-literal=a=b"])?;

        // Half a backup stops nobody.
        let whole = std::fs::read(&*file)?;
        let half = format!("{file}.half");
        std::fs::write(&half, &whole[..whole.len() / 2])?;
        let refused = ["cluster", "restore", &half, "--name", cluster.name()];
        let refused = cluster.client().output(&refused, "")?;
        ensure!(
            refused.code != 0 && refused.stderr.contains("is damaged"),
            "{refused:?}"
        );
        kubectl.run(&["get", "configmap", "later"])?;

        cluster.skiff(&["cluster", "restore", &file, "--name", cluster.name()])?;
        kubectl.run(&["get", "configmap", "kept"])?;
        ensure!(
            kubectl.output(&["get", "configmap", "later"], "")?.code != 0,
            "it is back"
        );
        kubectl.run(&["rollout", "status", "deployment/sleeper", "--timeout=120s"])?;
        eventually("the pods of before", Duration::from_secs(120), || {
            let pods = kubectl.json(&["get", "pods", "-l", "app=sleeper"])?;
            let ready = |pod: &serde_json::Value| {
                pod["status"]["containerStatuses"][0]["ready"] == true
                    && pod["metadata"]["deletionTimestamp"].is_null()
            };
            let items = pods["items"].as_array().cloned().unwrap_or_default();
            Ok((items.len() == 2 && items.iter().all(ready)).then_some(()))
        })?;
        cluster.settled()?;
    }
    Ok(())
}

#[test]
fn components_that_die_are_restarted() -> Result<()> {
    let cluster = Cluster::create("restart", &Options::default())?;
    let kubectl = cluster.kubectl();
    kubectl.apply(WORKLOAD)?;
    kubectl.run(&["rollout", "status", "deployment/sleeper", "--timeout=120s"])?;
    let containers = |tool: &e2e::Tool| -> Result<Vec<String>> {
        let pods = tool.json(&["get", "pods", "-l", "app=sleeper"])?;
        let mut ids: Vec<String> = pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|pod| pod["status"]["containerStatuses"][0]["containerID"].to_string())
            .collect();
        ids.sort();
        Ok(ids)
    };
    let before = containers(&kubectl)?;
    for (program, signal) in [
        ("apiserver", Signal::SIGKILL),
        ("controller-manager", Signal::SIGTERM),
        ("scheduler", Signal::SIGTERM),
        ("kubelet", Signal::SIGKILL),
        ("proxy", Signal::SIGTERM),
        ("containerd", Signal::SIGKILL),
    ] {
        let old = cluster.pids(program)?;
        signal_all(&old, signal);
        eventually(&format!("a new {program}"), Duration::from_secs(60), || {
            let new = cluster.pids(program)?;
            Ok(new.iter().all(|pid| !old.contains(pid)).then_some(()))
        })?;
    }
    cluster.settled()?;
    kubectl.run(&["scale", "deployment/sleeper", "--replicas=3"])?;
    kubectl.run(&["rollout", "status", "deployment/sleeper", "--timeout=120s"])?;
    let after = containers(&kubectl)?;
    ensure!(
        before.iter().all(|id| after.contains(id)),
        "containers were disturbed: {before:?} became {after:?}"
    );
    Ok(())
}

#[test]
fn clusters_live_side_by_side() -> Result<()> {
    let one = Cluster::create("one", &Options::default())?;
    let two = Cluster::create("two", &Options::default())?;
    one.kubectl().run(&["create", "namespace", "only-in-one"])?;
    let seen = two
        .kubectl()
        .output(&["get", "namespace", "only-in-one"], "")?;
    ensure!(seen.stderr.contains("NotFound"), "{}", seen.stderr);
    let listed = one.skiff(&["cluster", "list"])?;
    ensure!(
        listed.contains(one.name()) && listed.contains(two.name()),
        "{listed}"
    );
    two.delete()?;
    one.kubectl().run(&["get", "namespace", "only-in-one"])?;
    Ok(())
}

#[test]
fn an_interrupted_create_can_be_deleted() -> Result<()> {
    let before = Footprint::take()?;
    let cluster = Cluster::named("crash")?;
    {
        let create = cluster.client().background(&[
            "cluster",
            "create",
            cluster.name(),
            "--isolated",
            "--nodes",
            "2",
        ])?;
        // Half-way: the control plane runs, the nodes are being made.
        eventually("an API server", Duration::from_secs(60), || {
            Ok(cluster.pids("apiserver").ok())
        })?;
        drop(create);
    }
    kill_all(&cluster.pids("skiff").unwrap_or_default());
    cluster.delete()?;
    let left = Footprint::take()?;
    ensure!(
        left.since(&before).is_empty(),
        "left behind: {:#?}",
        left.since(&before)
    );
    Ok(())
}
