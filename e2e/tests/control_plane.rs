//! Scheduling, leader election, garbage collection and names, on a running cluster.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{Background, Cluster, Options, Tool, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn unschedulable_pods_say_why(tool: &Tool) -> Result<()> {
    tool.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: huge}
spec:
  containers:
    - name: main
      image: skiff.local/busybox:1
      resources: {requests: {cpu: "1000"}}
"#,
    )?;
    eventually(
        "an event that counts the nodes",
        Duration::from_secs(30),
        || {
            let events =
                tool.run(&["get", "events", "--field-selector=involvedObject.name=huge"])?;
            Ok(events
                .contains("0/2 nodes are available: 2 Insufficient cpu.")
                .then_some(()))
        },
    )?;
    tool.run(&["delete", "pod", "huge"])?;
    Ok(())
}

fn owners_take_their_dependents(tool: &Tool) -> Result<()> {
    tool.run(&[
        "create",
        "deployment",
        "owner",
        "--image=skiff.local/busybox:1",
        "--",
        "sleep",
        "3600",
    ])?;
    eventually("a pod", Duration::from_secs(30), || {
        let pods = tool.json(&["get", "pods", "-l", "app=owner"])?;
        Ok((pods["items"].as_array().map(Vec::len) == Some(1)).then_some(()))
    })?;
    tool.run(&["delete", "deployment", "owner"])?;
    eventually("no pod and no replica set", Duration::from_secs(90), || {
        let left = tool.json(&["get", "pods,replicasets", "-l", "app=owner"])?;
        Ok((left["items"].as_array().map(Vec::len) == Some(0)).then_some(()))
    })
}

fn namespaces_empty_themselves(tool: &Tool) -> Result<()> {
    tool.run(&["create", "namespace", "short"])?;
    tool.run(&["-n", "short", "create", "configmap", "a"])?;
    tool.run(&["-n", "short", "create", "secret", "generic", "b"])?;
    tool.run(&["delete", "namespace", "short", "--timeout=60s"])?;
    ensure!(
        tool.output(&["get", "namespace", "short"], "")?
            .stderr
            .contains("NotFound")
    );
    Ok(())
}

fn names_are_resolved(tool: &Tool) -> Result<()> {
    tool.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: asker}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {name: main, image: "skiff.local/busybox:1", command: [sleep, "3600"]}
"#,
    )?;
    tool.run(&[
        "wait",
        "--for=condition=Ready",
        "pod/asker",
        "--timeout=60s",
    ])?;
    let ask = |name: &str| tool.run(&["exec", "asker", "--", "nslookup", name]);
    let answer = eventually("an answer", Duration::from_secs(30), || {
        ask("kubernetes.default.svc.cluster.local").map(Some)
    })?;
    ensure!(answer.contains("10.96.0.1"), "{answer}");
    let unknown = tool.output(
        &[
            "exec",
            "asker",
            "--",
            "nslookup",
            "nobody.default.svc.cluster.local",
        ],
        "",
    )?;
    ensure!(
        unknown.stdout.contains("NXDOMAIN") || unknown.code != 0,
        "{}",
        unknown.stdout
    );
    Ok(())
}

fn components_are_well(tool: &Tool) -> Result<()> {
    let list = tool.json(&["get", "componentstatuses"])?;
    for name in ["controller-manager", "scheduler", "etcd-0"] {
        let mut all = list["items"].as_array().into_iter().flatten();
        let found = all.find(|status| status["metadata"]["name"] == name);
        let condition = found.map(|status| &status["conditions"][0]);
        ensure!(condition.is_some_and(|c| c["status"] == "True"), "{list}");
    }
    Ok(())
}

fn holder(tool: &Tool) -> Result<String> {
    let lease = tool.json(&[
        "-n",
        "kube-system",
        "get",
        "lease",
        "kube-controller-manager",
    ])?;
    Ok(lease["spec"]["holderIdentity"].to_string())
}

/// The leader is suspended, not killed: it still thinks that it leads when it goes on, and must notice that it does not.
fn another_instance_takes_over(cluster: &Cluster, tool: &Tool) -> Result<()> {
    let leader = cluster.pids("controller-manager")?;
    let before = holder(tool)?;
    let _standby = Background::program(
        "controller-manager",
        &[
            &format!("--kubeconfig={}", cluster.kubeconfig().display()),
            "--leader-elect=true",
            "--secure-port=0",
        ],
    )?;
    let signal = |signal| {
        leader
            .iter()
            .try_for_each(|pid| kill(Pid::from_raw(*pid), signal))
    };
    signal(Signal::SIGSTOP)?;
    let after = eventually("another leader", Duration::from_secs(60), || {
        Ok(Some(holder(tool)?).filter(|now| *now != before && now != "\"\""))
    })?;
    tool.run(&[
        "create",
        "deployment",
        "led",
        "--image=skiff.local/busybox:1",
        "--",
        "sleep",
        "3600",
    ])?;
    tool.run(&["rollout", "status", "deployment/led", "--timeout=60s"])?;
    signal(Signal::SIGCONT)?;
    eventually(
        "the end of the former leader",
        Duration::from_secs(60),
        || {
            let running = cluster.pids("controller-manager")?;
            Ok((!running.iter().any(|pid| leader.contains(pid))).then_some(()))
        },
    )?;
    ensure!(
        holder(tool)? == after,
        "the lease went from {after} to {}",
        holder(tool)?
    );
    tool.run(&["delete", "deployment", "led"])?;
    Ok(())
}

#[test]
fn the_plane_does_its_work() -> Result<()> {
    let cluster = Cluster::create(
        "plane",
        &Options {
            nodes: 2,
            ..Options::default()
        },
    )?;
    let kubectl = cluster.kubectl();
    components_are_well(&kubectl)?;
    unschedulable_pods_say_why(&kubectl)?;
    owners_take_their_dependents(&kubectl)?;
    namespaces_empty_themselves(&kubectl)?;
    names_are_resolved(&kubectl)?;
    another_instance_takes_over(&cluster, &kubectl)
}
