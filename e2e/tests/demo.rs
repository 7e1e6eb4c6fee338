//! The application under `manifests/demo`, driven as its users would, once with
//! the real `kubectl` and once with `skiff`.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{Cluster, Options, Tool, eventually};

const CLIENT: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: client
      image: skiff.local/busybox:1
      command: [sleep, "3600"]
"#;

/// One page through the Service `web`, by its name and by a node's port.
fn page(tool: &Tool, url: &str) -> Result<String> {
    tool.run(&["exec", "client", "--", "wget", "-q", "-O", "-", url])
}

fn node_address(tool: &Tool) -> Result<String> {
    let nodes = tool.json(&["get", "nodes"])?;
    let addresses = nodes["items"][0]["status"]["addresses"].as_array().cloned();
    let internal = addresses
        .unwrap_or_default()
        .into_iter()
        .find(|a| a["type"] == "InternalIP");
    Ok(internal.map_or_else(String::new, |a| {
        a["address"].as_str().unwrap_or_default().to_owned()
    }))
}

/// Asks for the page `count` times while `change` goes on, and gives the number of failures.
fn under_load(tool: &Tool, count: u32, change: impl FnOnce() -> Result<()>) -> Result<u32> {
    let script = format!(
        "n=0; bad=0; while [ $n -lt {count} ]; do \
           wget -q -O /dev/null http://web/ || bad=$((bad+1)); n=$((n+1)); done; echo bad=$bad"
    );
    std::thread::scope(|scope| {
        let load = scope.spawn(|| tool.run(&["exec", "client", "--", "sh", "-c", &script]));
        change()?;
        let said = load
            .join()
            .map_err(|_| anyhow::anyhow!("the load thread panicked"))??;
        let bad = said.trim().rsplit("bad=").next().unwrap_or_default();
        Ok(bad.parse()?)
    })
}

/// From nothing to a served page, a rolling update under load, and back.
fn story(tool: &Tool) -> Result<()> {
    let said = tool.run(&["apply", "-f", "manifests/demo"])?;
    ensure!(said.contains("deployment.apps/web created"), "{said}");
    tool.apply(CLIENT)?;
    tool.run(&["rollout", "status", "deployment/api", "--timeout=120s"])?;
    tool.run(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
    tool.run(&[
        "wait",
        "--for=condition=Ready",
        "pod/client",
        "--timeout=60s",
    ])?;

    let shown = eventually("a page", Duration::from_secs(30), || {
        page(tool, "http://web/").map(Some)
    })?;
    ensure!(shown.contains("Hello from Skiff"), "no message in {shown}");
    ensure!(shown.contains("version 1"), "no version in {shown}");
    ensure!(shown.contains("api"), "nothing of the back end in {shown}");
    let by_port = page(tool, &format!("http://{}:30080/", node_address(tool)?))?;
    ensure!(by_port.contains("Hello from Skiff"), "no page by NodePort");

    let again = tool.run(&["apply", "-f", "manifests/demo"])?;
    ensure!(
        !again.contains("created") && !again.contains("configured"),
        "a second apply changed something: {again}"
    );

    let failed = under_load(tool, 2000, || {
        tool.run(&["set", "env", "deployment/web", "VERSION=2"])?;
        tool.run(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
        Ok(())
    })?;
    ensure!(
        failed == 0,
        "{failed} requests failed during the rolling update"
    );
    ensure!(page(tool, "http://web/")?.contains("version 2"));

    tool.run(&["rollout", "undo", "deployment/web"])?;
    tool.run(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
    eventually("version 1 again", Duration::from_secs(30), || {
        Ok(page(tool, "http://web/")?
            .contains("version 1")
            .then_some(()))
    })
}

fn replicas(tool: &Tool) -> Result<i64> {
    let web = tool.json(&["get", "deployment", "web"])?;
    Ok(web["spec"]["replicas"].as_i64().unwrap_or_default())
}

/// Up under load, down after it.
fn autoscaling(tool: &Tool) -> Result<()> {
    eventually("two front ends", Duration::from_secs(60), || {
        Ok((replicas(tool)? == 2).then_some(()))
    })?;
    {
        let busy = "while true; do wget -q -O /dev/null 'http://web/work?ms=300'; done";
        let _load: Vec<_> = (0..3)
            .map(|_| tool.background(&["exec", "client", "--", "sh", "-c", busy]))
            .collect::<Result<_>>()?;
        eventually("more than two front ends", Duration::from_secs(150), || {
            Ok((replicas(tool)? > 2).then_some(()))
        })?;
        let top = tool.run(&["top", "pods"])?;
        ensure!(top.contains("web-"), "nothing about web in {top}");
        // The loops outlive their `exec`: without the pod they end.
        tool.run(&["delete", "pod", "client", "--wait=true"])?;
    }
    eventually("two front ends again", Duration::from_secs(240), || {
        Ok((replicas(tool)? == 2).then_some(()))
    })
}

#[test]
fn with_kubectl() -> Result<()> {
    let cluster = Cluster::create(
        "kubectl",
        &Options {
            nodes: 3,
            ..Options::default()
        },
    )?;
    story(&cluster.kubectl())?;
    autoscaling(&cluster.kubectl())
}

#[test]
fn with_skiff() -> Result<()> {
    let cluster = Cluster::create(
        "skiff",
        &Options {
            nodes: 2,
            store: "etcd",
        },
    )?;
    story(&cluster.client())
}
