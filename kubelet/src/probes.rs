//! Startup, liveness and readiness probes. Each probe of a running container is a task
//! that sleeps until its next turn; what it finds goes through a pure threshold counter,
//! and only a changed verdict wakes the pod's worker.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use tokio::sync::{mpsc::UnboundedSender, watch};
use tokio::task::JoinSet;

use crate::context::{Node, Report};
use crate::handlers::{self, Checked};
use crate::model;
use crate::pod::memory::ProbeState;
use crate::pod::worker::Message;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

/// Counts equal results; a verdict falls when enough of them came in a row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Threshold {
    last: Option<bool>,
    run: i32,
}

impl Threshold {
    pub fn observe(&mut self, ok: bool, successes: i32, failures: i32) -> Option<bool> {
        self.run = if self.last == Some(ok) {
            self.run.saturating_add(1)
        } else {
            1
        };
        self.last = Some(ok);
        let needed = if ok { successes } else { failures };
        (self.run >= needed.max(1)).then_some(ok)
    }
}

/// The probes of one running container; dropping it stops them.
#[derive(Debug)]
pub struct Probes {
    tasks: JoinSet<()>,
}

struct Target {
    node: Arc<Node>,
    pod: Arc<Pod>,
    container: Container,
    id: String,
    ip: String,
    out: UnboundedSender<Message>,
}

/// What a container's probes say before any of them has run. After a kubelet restart
/// the API's last word stands until a probe says otherwise.
pub fn initial(container: &Container, known: Option<(bool, bool)>) -> ProbeState {
    let (started, ready) = known.unwrap_or((
        container.startup_probe.is_none(),
        container.readiness_probe.is_none(),
    ));
    ProbeState {
        started: started || container.startup_probe.is_none(),
        ready: ready || container.readiness_probe.is_none(),
        startup_failed: false,
        liveness_failed: false,
    }
}

pub fn has_any(container: &Container) -> bool {
    container.startup_probe.is_some()
        || container.liveness_probe.is_some()
        || container.readiness_probe.is_some()
}

/// A container whose probes are to start.
#[derive(Debug)]
pub struct Subject<'a> {
    pub container: &'a Container,
    pub id: &'a str,
    /// Where HTTP, TCP and gRPC probes go.
    pub ip: &'a str,
    /// When it was started.
    pub since: Timestamp,
    pub state: ProbeState,
}

/// Starts the probes of a running container.
pub fn start(
    node: &Arc<Node>,
    pod: &Arc<Pod>,
    subject: Subject<'_>,
    out: &UnboundedSender<Message>,
) -> Probes {
    let Subject {
        container,
        id,
        ip,
        since,
        state,
    } = subject;
    let target = Arc::new(Target {
        node: node.clone(),
        pod: pod.clone(),
        container: container.clone(),
        id: id.to_string(),
        ip: ip.to_string(),
        out: out.clone(),
    });
    let (started, gate) = watch::channel(state.started);
    let mut tasks = JoinSet::new();
    let kinds = [
        (
            Kind::Startup,
            container.startup_probe.clone().filter(|_| !state.started),
        ),
        (Kind::Liveness, container.liveness_probe.clone()),
        (Kind::Readiness, container.readiness_probe.clone()),
    ];
    let mut started = Some(started);
    for (kind, probe) in kinds {
        let Some(probe) = probe else { continue };
        let opens = if kind == Kind::Startup {
            started.take()
        } else {
            None
        };
        tasks.spawn(run(target.clone(), kind, probe, since, gate.clone(), opens));
    }
    // With no startup probe the sender must live on, or the others would see a closed gate.
    if let Some(started) = started {
        tasks.spawn(async move { started.closed().await });
    }
    Probes { tasks }
}

impl Probes {
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }
}

async fn run(
    target: Arc<Target>,
    kind: Kind,
    probe: Probe,
    since: Timestamp,
    mut gate: watch::Receiver<bool>,
    opens: Option<watch::Sender<bool>>,
) {
    let seconds = |v: Option<i32>, default: u64| {
        Duration::from_secs(v.and_then(|v| u64::try_from(v).ok()).unwrap_or(default))
    };
    let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
    let delay = seconds(probe.initial_delay_seconds, 0);
    let (successes, failures) = (
        probe.success_threshold.unwrap_or(1),
        probe.failure_threshold.unwrap_or(3),
    );
    let ran = Timestamp::now().duration_since(since).unsigned_abs();
    tokio::time::sleep(delay.saturating_sub(ran)).await;
    if kind != Kind::Startup && gate.wait_for(|open| *open).await.is_err() {
        return;
    }
    let mut threshold = Threshold::default();
    let mut verdict = None;
    // A fresh container is often ready within milliseconds: until the first period is over its
    // readiness is asked for more often, quietly, so that traffic need not wait for the next turn.
    let mut eager = (kind == Kind::Readiness && successes <= 1 && delay.is_zero())
        .then_some(Duration::from_millis(25));
    loop {
        let result = check(&target, &probe).await;
        if let (Some(wait), Err(_)) = (eager, &result)
            && wait * 2 < period
        {
            eager = Some(wait * 2);
            tokio::time::sleep(wait).await;
            continue;
        }
        eager = None;
        if let Err(output) = &result {
            let report = Report::container(&target.node, &target.pod, &target.container.name);
            report.warning("Unhealthy", &format!("{kind:?} probe failed: {output}"));
        }
        let fell = threshold.observe(result.is_ok(), successes, failures);
        if let Some(ok) = fell.filter(|v| Some(*v) != verdict) {
            verdict = Some(ok);
            if target
                .out
                .send(Message::Probed {
                    id: target.id.clone(),
                    kind,
                    ok,
                })
                .is_err()
            {
                return;
            }
            if kind == Kind::Startup || (kind == Kind::Liveness && !ok) {
                if let Some(open) = opens.filter(|_| ok) {
                    open.send_replace(true);
                    // The gate stays open for the others as long as they run.
                    open.closed().await;
                }
                return;
            }
        }
        tokio::time::sleep(period).await;
    }
}

async fn check(target: &Target, probe: &Probe) -> Checked {
    let timeout = Duration::from_secs(
        u64::try_from(probe.timeout_seconds.unwrap_or(1))
            .unwrap_or(1)
            .max(1),
    );
    let (container, ip) = (&target.container, target.ip.as_str());
    if let Some(action) = &probe.exec {
        handlers::exec(&target.node, &target.id, action, timeout).await
    } else if let Some(action) = &probe.http_get {
        handlers::http_get(container, action, ip, timeout).await
    } else if let Some(action) = &probe.tcp_socket {
        handlers::tcp(container, action, ip, timeout).await
    } else if let Some(action) = &probe.grpc {
        handlers::grpc(action, ip, timeout).await
    } else {
        Err("missing probe handler".into())
    }
}

/// What the API last said about a container, if it is the same container.
pub fn known(pod: &Pod, name: &str, id: &str) -> Option<(bool, bool)> {
    let status = pod.status.as_ref()?;
    let all = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .flatten();
    let s = all.into_iter().find(|s| s.name == name)?;
    s.container_id.as_deref().filter(|c| c.ends_with(id))?;
    Some((s.started == Some(true), s.ready))
}

/// The address that probes of the pod go to.
pub fn address(pod: &Pod, ips: &[String], node_ips: &[String]) -> String {
    let ips = if model::is_host_network(pod) {
        node_ips
    } else {
        ips
    };
    ips.first().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        let mut t = Threshold::default();
        let table = [
            (true, None),
            (true, Some(true)),
            (false, None),
            (false, None),
            (false, Some(false)),
            (true, None),
            (false, None),
        ];
        for (ok, want) in table {
            assert_eq!(t.observe(ok, 2, 3), want);
        }
    }
}
