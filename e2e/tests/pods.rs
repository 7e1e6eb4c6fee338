//! What a kubelet owes a pod, seen from outside: order, restarts, probes,
//! volumes, environment, limits, logs, exec, port-forward and a graceful end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, Options, Tool, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn wait_ready(tool: &Tool, pod: &str) -> Result<String> {
    tool.run(&[
        "wait",
        "--for=condition=Ready",
        &format!("pod/{pod}"),
        "--timeout=60s",
    ])
}

fn init_containers_and_volumes(tool: &Tool) -> Result<()> {
    tool.apply(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue}
---
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {word: swordfish}
---
apiVersion: v1
kind: Pod
metadata: {name: volumes, labels: {app: volumes}}
spec:
  terminationGracePeriodSeconds: 0
  initContainers:
    - name: first
      image: skiff.local/busybox:1
      command: [sh, -c, "echo first > /shared/order"]
      volumeMounts: [{name: shared, mountPath: /shared}]
    - name: second
      image: skiff.local/busybox:1
      command: [sh, -c, "echo second >> /shared/order"]
      volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
    - name: main
      image: skiff.local/busybox:1
      command: [sleep, "3600"]
      env:
        - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
        - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        - {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
        - {name: SENTENCE, value: "the $(COLOUR) one"}
      resources: {limits: {memory: 32Mi, cpu: 500m}}
      volumeMounts:
        - {name: shared, mountPath: /shared}
        - {name: settings, mountPath: /settings}
        - {name: both, mountPath: /both}
        - {name: memory, mountPath: /memory}
  volumes:
    - name: shared
      emptyDir: {}
    - name: memory
      emptyDir: {medium: Memory}
    - name: settings
      configMap: {name: settings}
    - name: both
      projected:
        sources:
          - secret: {name: key}
          - downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
"#,
    )?;
    wait_ready(tool, "volumes")?;
    let sh = |script: &str| tool.run(&["exec", "volumes", "--", "sh", "-c", script]);
    ensure!(sh("cat /shared/order")? == "first\nsecond\n");
    ensure!(sh("cat /settings/colour")? == "blue");
    ensure!(sh("cat /both/word")? == "swordfish");
    ensure!(sh("cat /both/labels")?.contains("app=\"volumes\""));
    ensure!(sh("echo $SENTENCE $LIMIT")? == "the blue one 33554432\n");
    ensure!(sh("mount | grep /memory")?.contains("tmpfs"));
    ensure!(sh("cat /var/run/secrets/kubernetes.io/serviceaccount/namespace")? == "default");
    let limit = sh(
        "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || true",
    )?;
    ensure!(
        limit.contains("33554432"),
        "the limit is not in force: {limit}"
    );
    tool.run(&[
        "patch",
        "configmap",
        "settings",
        "-p",
        r#"{"data":{"colour":"green"}}"#,
    ])?;
    eventually("the changed file", Duration::from_secs(90), || {
        Ok((sh("cat /settings/colour")? == "green").then_some(()))
    })
}

fn restarts_and_probes(tool: &Tool) -> Result<()> {
    tool.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  containers:
    - name: main
      image: skiff.local/busybox:1
      command: [sh, -c, "echo dying; exit 3"]
---
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  containers:
    - name: main
      image: skiff.local/busybox:1
      command: [sh, -c, "echo bye > /dev/termination-log; exit 7"]
---
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: skiff.local/busybox:1
      command: [sh, -c, "touch /tmp/alive; sleep 3600"]
      readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1}
      livenessProbe: {exec: {command: [test, -e, /tmp/alive]}, periodSeconds: 1, failureThreshold: 2}
"#,
    )?;
    let status = |pod: &str| -> Result<serde_json::Value> {
        Ok(tool.json(&["get", "pod", pod])?["status"].clone())
    };
    eventually("the end of once", Duration::from_secs(60), || {
        Ok((status("once")?["phase"] == "Failed").then_some(()))
    })?;
    let ended = status("once")?["containerStatuses"][0]["state"]["terminated"].clone();
    ensure!(
        ended["exitCode"] == 7 && ended["message"] == "bye\n",
        "{ended}"
    );

    eventually(
        "a container that backs off",
        Duration::from_secs(60),
        || {
            let state = &status("crash")?["containerStatuses"][0];
            let backs_off = state["state"]["waiting"]["reason"] == "CrashLoopBackOff";
            Ok((backs_off && state["lastState"]["terminated"]["exitCode"] == 3).then_some(()))
        },
    )?;
    eventually("the log of the run before", Duration::from_secs(60), || {
        Ok((tool.run(&["logs", "crash", "--previous"])? == "dying\n").then_some(()))
    })?;

    let sh = |script: &str| tool.run(&["exec", "probed", "--", "sh", "-c", script]);
    eventually("a running container", Duration::from_secs(60), || {
        sh("true").map(Some)
    })?;
    ensure!(status("probed")?["containerStatuses"][0]["ready"] == false);
    sh("touch /tmp/ready")?;
    wait_ready(tool, "probed")?;
    sh("rm /tmp/alive")?;
    eventually(
        "a restart by the liveness probe",
        Duration::from_secs(60),
        || {
            let restarts = status("probed")?["containerStatuses"][0]["restartCount"].as_i64();
            Ok((restarts >= Some(1)).then_some(()))
        },
    )?;
    let events = tool.run(&["get", "events"])?;
    for reason in [
        "Scheduled",
        "Pulled",
        "Created",
        "Started",
        "BackOff",
        "Unhealthy",
        "Killing",
    ] {
        ensure!(events.contains(reason), "no event {reason} in {events}");
    }
    Ok(())
}

fn logs_exec_and_port_forward(cluster: &Cluster, tool: &Tool, port: u16) -> Result<()> {
    tool.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: served}
spec:
  containers:
    - name: web
      image: skiff.local/web:0.1
      ports: [{containerPort: 8080}]
      readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: talker}
spec:
  terminationGracePeriodSeconds: 20
  containers:
    - name: main
      image: skiff.local/busybox:1
      command: [sh, -c, "trap 'echo going; exit 0' TERM; n=0; while true; do echo line $n; n=$((n+1)); sleep 0.2; done"]
"#,
    )?;
    wait_ready(tool, "served")?;
    wait_ready(tool, "talker")?;
    eventually("the last two lines", Duration::from_secs(30), || {
        let tail = tool.run(&["logs", "talker", "--tail=2"])?;
        Ok((tail.lines().count() == 2 && tail.starts_with("line")).then_some(()))
    })?;
    let echoed = tool.run_with(&["exec", "-i", "talker", "--", "cat"], "over and out")?;
    ensure!(echoed == "over and out", "{echoed}");
    let failed = tool.output(&["exec", "talker", "--", "sh", "-c", "exit 42"], "")?;
    ensure!(
        failed.code == 42,
        "exit code {} {}",
        failed.code,
        failed.stderr
    );

    let _forward = tool.background(&["port-forward", "pod/served", &format!("{port}:8080")])?;
    let answer = eventually(
        "an answer over port-forward",
        Duration::from_secs(30),
        || {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text).context("no answer")?;
            Ok(text.contains("200").then_some(text))
        },
    )?;
    ensure!(answer.contains("200 OK"), "{answer}");

    let follow = std::thread::scope(|scope| {
        let follow = scope.spawn(|| tool.run(&["logs", "-f", "talker", "--tail=1"]));
        let started = std::time::Instant::now();
        tool.run(&["delete", "pod", "talker"])?;
        ensure!(
            started.elapsed() < Duration::from_secs(18),
            "TERM was not heeded"
        );
        follow
            .join()
            .map_err(|_| anyhow::anyhow!("logs -f panicked"))?
    })?;
    ensure!(
        follow.contains("going"),
        "the last words are missing: {follow}"
    );
    let gone = cluster.kubectl().output(&["get", "pod", "talker"], "")?;
    ensure!(gone.stderr.contains("NotFound"), "{}", gone.stderr);
    Ok(())
}

/// Pods that name their node themselves pass no scheduler; the node refuses what does not fit, and keeps what it has.
fn admission_on_the_node(cluster: &Cluster, tool: &Tool) -> Result<()> {
    let pod = |name: &str, spec: &str| {
        format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: skiff.local/busybox:1
      command: [sleep, "3600"]
      {spec}
"#
        )
    };
    let port = "ports: [{containerPort: 21017, hostPort: 21017}]";
    let refused = |name: &str| {
        eventually("the refusal", Duration::from_secs(30), || {
            let pod = tool.json(&["get", "pod", name])?;
            let status = &pod["status"];
            let told = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
            Ok((told("phase") == "Failed").then(|| (told("reason"), told("message"))))
        })
    };
    tool.apply(&pod("port", port))?;
    wait_ready(tool, "port")?;
    tool.apply(&pod("same-port", port))?;
    let want = "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
    ensure!(refused("same-port")? == ("NodePorts".into(), want.into()));
    tool.apply(&pod("large", r#"resources: {requests: {cpu: "4000"}}"#))?;
    let (reason, message) = refused("large")?;
    ensure!(
        reason == "OutOfcpu"
            && message.starts_with(
                "Pod was rejected: Node didn't have enough resource: cpu, requested: 4000000, used: "
            ),
        "{reason}: {message}"
    );
    let events = tool.run(&[
        "get",
        "events",
        "--field-selector=involvedObject.name=large",
    ])?;
    ensure!(events.contains("Warning") && events.contains("OutOfcpu"));

    let started = tool.run(&["get", "pod", "port", "-o", "jsonpath={.status.startTime}"])?;
    for pid in cluster.pids("kubelet")? {
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    }
    // It refuses again only once it has taken in what runs.
    tool.apply(&pod("after", port))?;
    ensure!(refused("after")?.0 == "NodePorts");
    let status = tool.json(&["get", "pod", "port"])?["status"].take();
    ensure!(status["phase"] == "Running" && status["startTime"] == started.as_str());
    ensure!(status["containerStatuses"][0]["restartCount"] == 0);
    tool.run(&["delete", "pod", "port", "same-port", "large", "after"])?;
    tool.apply(&pod("same-port", port))?;
    wait_ready(tool, "same-port").map(drop)
}

fn image_volumes(tool: &Tool) -> Result<()> {
    tool.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: image-volume}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: skiff.local/busybox:1
      command: [sleep, "3600"]
      volumeMounts:
        - {name: web, mountPath: /image}
        - {name: web, mountPath: /users, subPath: etc/passwd}
    - name: without
      image: skiff.local/busybox:1
      command: [sleep, "3600"]
      volumeMounts: [{name: missing, mountPath: /image}]
  volumes:
    - name: web
      image: {reference: "skiff.local/web:0.1"}
    - name: missing
      image: {reference: "skiff.local/missing:1", pullPolicy: Never}
"#,
    )?;
    let state = |index: usize| -> Result<serde_json::Value> {
        let pod = tool.json(&["get", "pod", "image-volume"])?;
        let all = pod["status"]["containerStatuses"].as_array().cloned();
        let named = ["main", "without"][index];
        let found = all.into_iter().flatten().find(|s| s["name"] == named);
        Ok(found.unwrap_or_default()["state"].take())
    };
    eventually("the container", Duration::from_secs(30), || {
        Ok(state(0)?["running"].is_object().then_some(()))
    })?;
    let sh = |script: &str| {
        let exec = ["exec", "image-volume", "-c", "main", "--"];
        tool.run(&[&exec[..], &["sh", "-c", script]].concat())
    };
    ensure!(sh("test -x /image/web && cat /image/etc/passwd")? == sh("cat /users")?);
    ensure!(sh("touch /image/new 2>&1 || true")?.contains("Read-only file system"));
    eventually("the missing image", Duration::from_secs(30), || {
        let reason = state(1)?["waiting"]["reason"].take();
        Ok((reason == "ErrImageNeverPull").then_some(()))
    })?;
    tool.run(&["delete", "pod", "image-volume"]).map(drop)
}

#[test]
fn with_kubectl() -> Result<()> {
    let cluster = Cluster::create("pods", &Options::default())?;
    let kubectl = cluster.kubectl();
    init_containers_and_volumes(&kubectl)?;
    restarts_and_probes(&kubectl)?;
    image_volumes(&kubectl)?;
    admission_on_the_node(&cluster, &kubectl)?;
    logs_exec_and_port_forward(&cluster, &kubectl, 18080)?;
    let client = cluster.client();
    kubectl.run(&["delete", "pod", "served", "--wait=true"])?;
    logs_exec_and_port_forward(&cluster, &client, 18081)
}
