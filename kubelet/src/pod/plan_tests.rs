//! The plan and the status, played through as a pod would live.

use serde_json::{Value, json};

use super::*;
use crate::model::SandboxView;
use crate::pod::admission::Rejection;
use crate::pod::memory::{Backoff, ProbeState, StartFailure};
use crate::pod::status::{NodeFacts, pod_status};

/// A pod, what the runtime has of it, and the worker's memory.
struct Scene {
    pod: Pod,
    view: PodView,
    memory: Memory,
    now: Timestamp,
    gone: bool,
    network_ready: bool,
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

impl Scene {
    fn new(spec: Value) -> Self {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec});
        let memory = Memory {
            volumes_ready: true,
            ..Default::default()
        };
        Scene {
            pod: serde_json::from_value(pod).unwrap(),
            view: PodView::default(),
            memory,
            now: at(1000),
            gone: false,
            network_ready: true,
        }
    }

    fn two() -> Self {
        Scene::new(json!({"containers": [{"name": "a"}, {"name": "b"}]})).sandbox(true)
    }

    fn policy(mut self, policy: &str) -> Self {
        self.pod.spec.as_mut().unwrap().restart_policy = Some(policy.into());
        self
    }

    fn sandbox(mut self, ready: bool) -> Self {
        let attempt = self.view.sandboxes.len() as u32;
        let s = SandboxView {
            id: format!("s{attempt}"),
            attempt,
            ready,
            created_at: 900 + i64::from(attempt),
            ips: vec!["10.0.0.2".into()],
        };
        self.view.sandboxes.insert(0, s);
        self
    }

    fn container(mut self, name: &str, attempt: u32, state: RunState, code: i32) -> Self {
        let sandbox = self
            .view
            .sandboxes
            .first()
            .map(|s| s.id.clone())
            .unwrap_or_default();
        let c = ContainerView {
            id: format!("{name}{attempt}"),
            sandbox,
            name: name.into(),
            attempt,
            state,
            created_at: 900_000_000_000 + i64::from(attempt) * 1_000_000_000,
            started_at: 900_000_000_000,
            finished_at: if state == RunState::Exited {
                990_000_000_000
            } else {
                0
            },
            exit_code: code,
            reason: String::new(),
            message: String::new(),
            image: String::new(),
            image_ref: String::new(),
            log_path: String::new(),
            limits: None,
        };
        self.view.containers.push(c);
        self.view.sort();
        self
    }

    fn running(self, name: &str) -> Self {
        self.container(name, 0, RunState::Running, 0)
    }

    fn exited(self, name: &str, code: i32) -> Self {
        self.container(name, 0, RunState::Exited, code)
    }

    fn deleted(mut self, grace: i64) -> Self {
        self.pod.metadata.deletion_timestamp =
            Some(model::seconds(self.now + SignedDuration::from_secs(grace)));
        self.pod.metadata.deletion_grace_period_seconds = Some(grace);
        self
    }

    fn told(mut self) -> Self {
        self.pod.status = Some(self.status());
        self
    }

    fn observed(&self) -> Observed<'_> {
        Observed {
            pod: &self.pod,
            gone: self.gone,
            view: &self.view,
            memory: &self.memory,
            now: self.now,
            network_ready: self.network_ready,
            resize_pending: None,
        }
    }

    fn status(&self) -> k8s_openapi::api::core::v1::PodStatus {
        pod_status(
            &self.observed(),
            &NodeFacts {
                ips: vec!["10.1.0.1".into()],
                runtime: "containerd".into(),
            },
        )
    }

    fn phase(&self) -> String {
        self.status().phase.unwrap()
    }

    /// The plan in short words, without wake-ups.
    fn plan(&self) -> String {
        let words = plan(&self.observed()).into_iter().filter_map(|a| {
            Some(match a {
                Action::MountVolumes => "mount".into(),
                Action::CreateSandbox { attempt } => format!("sandbox {attempt}"),
                Action::Start { name, attempt, .. } => format!("start {name} {attempt}"),
                Action::CancelSetup => "cancel".into(),
                Action::Resize { updates } => format!("resize {}", updates.len()),
                Action::Kill { id, grace, .. } => format!("kill {id} {grace}"),
                Action::StopSandbox { id } => format!("stop {id}"),
                Action::RemoveSandbox { id } => format!("remove {id}"),
                Action::RemoveContainer { id } => format!("remove {id}"),
                Action::CleanUp { keep_logs } => format!("clean {keep_logs}"),
                Action::DeleteFromApi => "delete".into(),
                Action::Forget => "forget".into(),
                Action::ReportBackoff { name, .. } => format!("report {name}"),
                Action::WakeAt(_) => return None,
            })
        });
        words.collect::<Vec<_>>().join(", ")
    }

    fn waiting(&self, index: usize) -> Option<String> {
        self.status()
            .container_statuses?
            .get(index)?
            .state
            .as_ref()?
            .waiting
            .as_ref()?
            .reason
            .clone()
    }
}

#[test]
fn a_pod_comes_up_step_by_step() {
    let mut fresh = Scene::new(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    fresh.memory.volumes_ready = false;
    assert_eq!(fresh.plan(), "mount");
    fresh.memory.volumes_ready = true;
    assert_eq!(fresh.plan(), "sandbox 0");
    fresh.network_ready = false;
    assert_eq!(fresh.plan(), "", "no sandbox without a network");
    let up = Scene::two();
    assert_eq!(
        (up.plan().as_str(), up.phase().as_str()),
        ("start a 0", "Pending")
    );
    assert_eq!(up.waiting(0).as_deref(), Some("ContainerCreating"));
    let half = Scene::two().running("a");
    assert_eq!(
        (half.plan().as_str(), half.phase().as_str()),
        ("start b 0", "Pending")
    );
    let all = Scene::two().running("a").running("b");
    assert_eq!((all.plan().as_str(), all.phase().as_str()), ("", "Running"));
    let status = all.status();
    assert!(
        status
            .conditions
            .unwrap()
            .iter()
            .all(|c| c.status == "True")
    );
    assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.2"));
    let mut busy = Scene::two();
    busy.memory.setup = Some(Setup::Start("a".into()));
    assert_eq!(busy.plan(), "", "one start at a time");
}

#[test]
fn init_containers_run_in_order_and_sidecars_stay() {
    let spec = json!({"initContainers": [{"name": "i"}, {"name": "side", "restartPolicy": "Always"}, {"name": "j"}], "containers": [{"name": "a"}]});
    let scene = || Scene::new(spec.clone()).sandbox(true);
    assert_eq!(scene().plan(), "start i 0");
    assert_eq!(scene().waiting(0).as_deref(), Some("PodInitializing"));
    assert_eq!(scene().running("i").plan(), "");
    assert_eq!(scene().exited("i", 0).plan(), "start side 0");
    assert_eq!(scene().exited("i", 1).plan(), "start i 1");
    assert_eq!(scene().exited("i", 0).running("side").plan(), "start j 0");
    let ready = scene().exited("i", 0).running("side").exited("j", 0);
    assert_eq!(
        (ready.plan().as_str(), ready.phase().as_str()),
        ("start a 0", "Pending")
    );
    let up = scene()
        .exited("i", 0)
        .running("side")
        .exited("j", 0)
        .running("a");
    assert_eq!((up.plan().as_str(), up.phase().as_str()), ("", "Running"));
    let lost = scene()
        .exited("i", 0)
        .exited("side", 1)
        .exited("j", 0)
        .running("a");
    assert_eq!(
        lost.plan(),
        "start side 1",
        "a sidecar is restarted beside the containers"
    );
    let failed = scene().policy("Never").exited("i", 3);
    assert_eq!(
        (failed.phase().as_str(), failed.plan().as_str()),
        ("Failed", "stop s0")
    );
    let done = scene()
        .policy("Never")
        .exited("i", 0)
        .running("side")
        .exited("j", 0)
        .exited("a", 0);
    assert_eq!(
        (done.plan().as_str(), done.phase().as_str()),
        ("kill side0 30", "Running"),
        "done when the sidecar is gone too"
    );
}

#[test]
fn restart_policies_and_phases() {
    let table = [
        ("Always", 0, 0, "start a 1", "Running"),
        ("OnFailure", 0, 1, "start b 1", "Running"),
        ("OnFailure", 0, 0, "stop s0", "Succeeded"),
        ("Never", 0, 0, "stop s0", "Succeeded"),
        ("Never", 0, 1, "stop s0", "Failed"),
    ];
    for (policy, a, b, plan, phase) in table {
        let scene = Scene::two().policy(policy).exited("a", a).exited("b", b);
        assert_eq!(
            (scene.plan().as_str(), scene.phase().as_str()),
            (plan, phase),
            "{policy} {a} {b}"
        );
    }
    let half = Scene::two().policy("Never").exited("a", 1).running("b");
    assert_eq!(
        (half.plan().as_str(), half.phase().as_str()),
        ("", "Running")
    );
}

#[test]
fn crash_loops_wait_and_say_so() {
    let mut scene = Scene::new(json!({"containers": [{"name": "a"}]}))
        .sandbox(true)
        .exited("a", 1);
    scene.memory.note_restart("a", at(985));
    assert_eq!(
        scene.plan(),
        "start a 1",
        "the exit at 990 plus 10 s is now"
    );
    scene.now = at(995);
    assert_eq!(scene.plan(), "report a");
    assert!(plan(&scene.observed()).contains(&Action::WakeAt(at(1000))));
    let status = scene.status().container_statuses.unwrap().remove(0);
    let waiting = status.state.unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(
        waiting.message.as_deref(),
        Some("back-off 10s restarting failed container=a pod=p_n(u)")
    );
    assert_eq!(status.last_state.unwrap().terminated.unwrap().exit_code, 1);
    assert_eq!(scene.phase(), "Running");
}

#[test]
fn failed_pulls_back_off() {
    let mut scene = Scene::two();
    let backoff = Backoff {
        delay: SignedDuration::from_secs(10),
        since: at(1000),
    };
    scene.memory.failures.insert(
        "a".into(),
        StartFailure {
            reason: "ErrImagePull",
            message: "no".into(),
            image: "i".into(),
            backoff,
        },
    );
    assert_eq!(scene.plan(), "start b 0", "the others go on");
    assert_eq!(scene.waiting(0).as_deref(), Some("ErrImagePull"));
    scene.now = at(1002);
    assert_eq!(scene.plan(), "report a, start b 0");
    assert_eq!(scene.waiting(0).as_deref(), Some("ImagePullBackOff"));
    scene.now = at(1010);
    assert_eq!(scene.plan(), "start a 0");
}

#[test]
fn failing_probes_kill_and_gate() {
    let spec = json!({"terminationGracePeriodSeconds": 7, "containers": [{"name": "a", "readinessProbe": {}, "livenessProbe": {"terminationGracePeriodSeconds": 3}, "startupProbe": {}}]});
    let state = |started, ready, startup_failed, liveness_failed| ProbeState {
        started,
        ready,
        startup_failed,
        liveness_failed,
    };
    let table = [
        (state(false, false, false, false), "", (false, false)),
        (state(true, false, false, false), "", (true, false)),
        (state(true, true, false, false), "", (true, true)),
        (state(true, true, false, true), "kill a0 3", (true, true)),
        (
            state(false, false, true, false),
            "kill a0 7",
            (false, false),
        ),
    ];
    for (probe, plan, (started, ready)) in table {
        let mut scene = Scene::new(spec.clone()).sandbox(true).running("a");
        scene.memory.probes.insert("a0".into(), probe);
        assert_eq!(scene.plan(), plan, "{probe:?}");
        let s = scene.status().container_statuses.unwrap().remove(0);
        assert_eq!((s.started, s.ready), (Some(started), ready), "{probe:?}");
    }
}

#[test]
fn deletion_in_order() {
    let scene = Scene::two().running("a").running("b").deleted(20);
    assert_eq!(scene.plan(), "kill a0 20, kill b0 20");
    let mut killing = Scene::two().running("a").exited("b", 0).deleted(20);
    killing.memory.killing.insert("a0".into(), at(1020));
    assert_eq!(killing.plan(), "");
    let mut shorter = Scene::two().running("a").exited("b", 0).deleted(1);
    shorter.memory.killing.insert("a0".into(), at(1020));
    assert_eq!(shorter.plan(), "kill a0 1", "a shorter grace takes over");
    let mut dead = Scene::two().exited("a", 143).exited("b", 0).deleted(20);
    assert_eq!(
        (dead.plan().as_str(), dead.phase().as_str()),
        ("stop s0", "Failed")
    );
    dead.view.sandboxes[0].ready = false;
    dead.memory.stopped.insert("s0".into());
    assert_eq!(dead.plan(), "clean false");
    dead.memory.cleaned = true;
    dead.memory.purged = true;
    assert_eq!(dead.plan(), "", "not before the last status is told");
    let mut dead = dead.told();
    assert_eq!(dead.plan(), "remove s0");
    dead.view = PodView::default();
    assert_eq!(dead.plan(), "delete");
    dead.gone = true;
    assert_eq!(dead.plan(), "forget");
}

#[test]
fn deletion_before_the_start_and_during_a_pull() {
    let mut scene = Scene::two().deleted(30);
    scene.memory.setup = Some(Setup::Start("a".into()));
    assert_eq!(scene.plan(), "cancel");
    scene.memory.setup = None;
    assert_eq!(
        (scene.plan().as_str(), scene.phase().as_str()),
        ("stop s0", "Failed")
    );
}

#[test]
fn sidecars_leave_last_and_in_reverse() {
    let spec = json!({"initContainers": [{"name": "x", "restartPolicy": "Always"}, {"name": "y", "restartPolicy": "Always"}], "containers": [{"name": "a"}]});
    let scene = || {
        Scene::new(spec.clone())
            .sandbox(true)
            .running("x")
            .running("y")
            .deleted(30)
    };
    assert_eq!(scene().running("a").plan(), "kill a0 30");
    assert_eq!(scene().exited("a", 0).plan(), "kill y0 30");
    let mut late = Scene::new(spec.clone())
        .sandbox(true)
        .running("x")
        .exited("y", 0)
        .exited("a", 0)
        .deleted(30);
    late.now = at(1025);
    assert_eq!(late.plan(), "kill x0 5", "what is left of the grace");
}

#[test]
fn a_dead_sandbox_is_replaced_with_everything_in_it() {
    let dead = Scene::two().running("a").exited("b", 1);
    let mut dead = Scene {
        view: PodView {
            sandboxes: vec![SandboxView {
                ready: false,
                ..dead.view.sandboxes[0].clone()
            }],
            ..dead.view
        },
        ..dead
    };
    assert_eq!(dead.plan(), "kill a0 30");
    dead.view
        .containers
        .iter_mut()
        .for_each(|c| c.state = RunState::Exited);
    assert_eq!(dead.plan(), "stop s0");
    dead.memory.stopped.insert("s0".into());
    assert_eq!(dead.plan(), "sandbox 1");
    let again = dead.sandbox(true);
    assert_eq!(again.plan(), "remove s0");
}

#[test]
fn finished_pods_are_freed_but_keep_their_logs() {
    let mut done = Scene::two().policy("Never").exited("a", 0).exited("b", 0);
    done.memory.stopped.insert("s0".into());
    done.view.sandboxes[0].ready = false;
    assert_eq!(done.plan(), "clean true");
    done.memory.cleaned = true;
    assert_eq!(done.plan(), "");
    let status = done.status();
    let reason = |t: &str| {
        status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == t)
            .and_then(|c| c.reason.clone())
    };
    assert_eq!(reason("Ready").as_deref(), Some("PodCompleted"));
    let deleted = done.told().deleted(0);
    assert_eq!(deleted.plan(), "clean false");
}

#[test]
fn the_deadline_ends_a_pod() {
    let mut scene = Scene::new(json!({"activeDeadlineSeconds": 60, "terminationGracePeriodSeconds": 5, "containers": [{"name": "a"}]})).sandbox(true).running("a").told();
    assert_eq!(scene.plan(), "");
    assert!(plan(&scene.observed()).contains(&Action::WakeAt(at(1060))));
    scene.now = at(1061);
    assert_eq!(scene.plan(), "kill a0 5");
    let status = scene.status();
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );
}

#[test]
fn a_restarted_kubelet_believes_the_runtime_and_the_api() {
    // All containers vanished from the runtime while the API says they ran: they run again, and are counted.
    let mut scene = Scene::two().running("a").running("b").told();
    scene.view = PodView::default();
    assert_eq!(scene.plan(), "sandbox 0");
    let s = scene.status().container_statuses.unwrap().remove(0);
    assert_eq!(s.restart_count, 1);
    assert_eq!(
        s.last_state.unwrap().terminated.unwrap().reason.as_deref(),
        Some("ContainerStatusUnknown")
    );
    let scene = scene.sandbox(true);
    assert_eq!(scene.plan(), "start a 1");
    let finished = Scene::two()
        .policy("Never")
        .exited("a", 0)
        .exited("b", 0)
        .told();
    let forgotten = Scene {
        view: PodView::default(),
        ..finished
    };
    assert_eq!(forgotten.phase(), "Succeeded", "a phase never goes back");
    assert_eq!(forgotten.plan(), "clean true");
}

#[test]
fn restart_rules_of_a_container() {
    let container: Container = serde_json::from_value(json!({"name": "a", "restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}))
    .unwrap();
    let pod = Pod::default();
    assert!(should_restart(&pod, &container, 42));
    assert!(!should_restart(&pod, &container, 1));
}

#[test]
fn a_granted_resize_reaches_the_runtime() {
    use crate::model::Limits;
    let container = json!({"name": "a", "resources": {"limits": {"memory": "2Mi"}},
        "resizePolicy": [{"resourceName": "memory", "restartPolicy": "NotRequired"}]});
    let mut scene = Scene::new(json!({"restartPolicy": "OnFailure", "containers": [container]}))
        .sandbox(true)
        .running("a");
    let limits = |memory| {
        Some(Limits {
            shares: 2,
            quota: 0,
            memory,
        })
    };
    let in_progress = |scene: &Scene| {
        let conditions = scene.status().conditions.unwrap_or_default();
        conditions.iter().any(|c| c.type_ == "PodResizeInProgress")
    };
    scene.view.containers[0].limits = limits(1 << 20);
    assert_eq!(scene.plan(), "resize 1");
    assert!(in_progress(&scene));
    scene.memory.resizing = true;
    assert_eq!(scene.plan(), "");
    scene.memory.resizing = false;
    scene.view.containers[0].limits = limits(2 << 20);
    assert_eq!(scene.plan(), "");
    assert!(!in_progress(&scene));

    // Where a change needs a restart there is one, even after an end that the restart policy would leave alone.
    scene.view.containers[0].limits = limits(1 << 20);
    let spec = scene.pod.spec.as_mut().unwrap();
    spec.containers[0].resize_policy.as_mut().unwrap()[0].restart_policy =
        "RestartContainer".into();
    assert_eq!(scene.plan(), "kill a0 30");
    let mut ended = Scene {
        view: PodView {
            containers: Vec::new(),
            ..scene.view
        },
        ..scene
    }
    .exited("a", 0);
    ended.memory.resize_restarts.insert("a0".into());
    assert_eq!(
        (ended.phase().as_str(), ended.plan().as_str()),
        ("Running", "start a 1")
    );
}

#[test]
fn debug_containers_start_once_and_decide_nothing() {
    let spec = json!({"restartPolicy": "Always", "containers": [{"name": "a"}],
        "ephemeralContainers": [{"name": "debug", "image": "i"}]});
    let scene = Scene::new(spec).sandbox(true).running("a");
    assert_eq!(scene.plan(), "start debug 0");
    let scene = scene.exited("debug", 1);
    assert_eq!(
        (scene.plan().as_str(), scene.phase().as_str()),
        ("", "Running")
    );
    let s = scene
        .status()
        .ephemeral_container_statuses
        .unwrap()
        .remove(0);
    let end = s.state.unwrap().terminated.unwrap();
    assert_eq!((end.exit_code, s.ready), (1, false));
}

#[test]
fn a_preempted_pod_ends_before_it_has_failed() {
    let mut scene = Scene::two().running("a").exited("b", 0);
    scene.memory.preempted = true;
    assert_eq!(
        (scene.phase().as_str(), scene.plan().as_str()),
        ("Running", "kill a0 30")
    );
    scene.view.containers.clear();
    let scene = scene.exited("a", 137).exited("b", 0);
    let status = scene.status();
    let told = [status.phase, status.reason, status.message].map(Option::unwrap);
    let message = "Preempted in order to admit critical pod";
    assert_eq!(told, ["Failed", "Preempting", message]);
    let conditions = status.conditions.unwrap();
    let target = conditions.iter().find(|c| c.type_ == "DisruptionTarget");
    assert_eq!(
        target.unwrap().reason.as_deref(),
        Some("TerminationByKubelet")
    );
    // What has been told stays, also with a kubelet that did not see it.
    let mut told = scene.told();
    told.memory.preempted = false;
    assert_eq!(json!(told.status()), json!(told.pod.status));
}

#[test]
fn a_refused_pod_never_starts() {
    let mut scene = Scene::new(json!({"containers": [{"name": "a"}]}));
    let scheduled =
        json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]});
    scene.pod.status = serde_json::from_value(scheduled).unwrap();
    scene.memory = Memory {
        rejection: Some(Rejection {
            reason: "NodePorts".into(),
            message: "why".into(),
        }),
        ..Default::default()
    };
    assert_eq!(scene.plan(), "clean true");
    let want = json!({"phase": "Failed", "reason": "NodePorts", "message": "Pod was rejected: why",
        "qosClass": "BestEffort", "startTime": "1970-01-01T00:16:40Z",
        "conditions": [{"type": "PodScheduled", "status": "True"}]});
    assert_eq!(json!(scene.status()), want);
    scene.memory.cleaned = true;
    let mut told = scene.told();
    assert_eq!(
        (told.plan().as_str(), json!(told.status())),
        ("", want.clone())
    );

    // A restarted kubelet knows it by its status only.
    told.memory = Memory::default();
    assert_eq!(
        (told.plan().as_str(), json!(told.status())),
        ("clean true", want)
    );
    let mut deleted = told.deleted(0);
    assert_eq!(deleted.plan(), "clean false");
    (deleted.memory.cleaned, deleted.memory.purged) = (true, true);
    assert_eq!(deleted.plan(), "delete");
}
