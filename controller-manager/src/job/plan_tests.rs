use super::*;
use serde_json::{Value, json};

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn job(spec: Value, status: Value) -> Job {
    let mut value = json!({
        "metadata": {"namespace": "ns", "name": "j", "uid": "job"},
        "spec": {"parallelism": 2, "completions": 3, "backoffLimit": 6, "selector": {"matchLabels": {"j": "j"}},
                 "template": {"spec": {"containers": [], "restartPolicy": "Never"}}},
        "status": status,
    });
    for (key, part) in spec.as_object().unwrap() {
        value["spec"][key] = part.clone();
    }
    serde_json::from_value(value).unwrap()
}

/// `r`unning, `s`ucceeded, `f`ailed, `d`eleting; an upper-case letter is without the finalizer. Failed ones ended
/// long ago. `index` and `failures` go into annotations.
fn pod(name: &str, state: char, index: Option<i32>, failures: i32) -> Arc<Pod> {
    let phase = match state.to_ascii_lowercase() {
        's' => "Succeeded",
        'f' => "Failed",
        _ => "Running",
    };
    let mut value = json!({"metadata": {"namespace": "ns", "name": name, "uid": name, "labels": {"j": "j"},
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "job", "controller": true}]},
        "status": {"phase": phase}});
    if state.is_ascii_lowercase() {
        value["metadata"]["finalizers"] = json!([view::FINALIZER]);
    }
    if state.eq_ignore_ascii_case(&'d') {
        value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    if let Some(index) = index {
        value["metadata"]["annotations"] =
            json!({view::INDEX: index.to_string(), view::FAILURES: failures.to_string()});
    }
    Arc::new(serde_json::from_value(value).unwrap())
}

fn p(name: &str, state: char) -> Arc<Pod> {
    pod(name, state, None, 0)
}

fn run(job: &Job, pods: &[Arc<Pod>]) -> Plan {
    plan(&Observed {
        job,
        pods,
        now: now(),
    })
}

fn show(plan: &Plan) -> String {
    let names = |what: &str, pods: &[Arc<Pod>]| {
        let names: Vec<String> = pods.iter().map(|p| p.name_any()).collect();
        (!names.is_empty()).then(|| format!("{what} {}", names.join(" ")))
    };
    let indexes: Vec<String> = plan
        .create
        .iter()
        .filter_map(|n| Some(n.index?.to_string()))
        .collect();
    let create = match (plan.create.len(), indexes.is_empty()) {
        (0, _) => None,
        (n, true) => Some(format!("create {n}")),
        _ => Some(format!("create #{}", indexes.join(" #"))),
    };
    let conditions = plan.status.conditions.iter().flatten();
    let conditions = conditions
        .filter(|c| c.status == "True")
        .map(|c| format!("{}:{}", c.type_, c.reason.clone().unwrap()));
    [
        names("discard", &plan.discard),
        names("stop", &plan.stop),
        create,
        names("untrack", &plan.untrack),
    ]
    .into_iter()
    .flatten()
    .chain(conditions)
    .collect::<Vec<_>>()
    .join(", ")
}

#[test]
fn plans() {
    let s = json!({});
    let target = |kind: &str, reason: &str| json!({"failed": 1, "conditions": [{"type": kind, "status": "True", "reason": reason, "message": "m"}]});
    #[rustfmt::skip]
    let cases: Vec<(&str, Job, Vec<Arc<Pod>>, &str)> = vec![
        ("from nothing", job(json!({}), s.clone()), vec![], "create 2"),
        ("running", job(json!({}), s.clone()), vec![p("a", 'r'), p("b", 'r')], ""),
        ("one done", job(json!({}), s.clone()), vec![p("a", 's'), p("b", 'r')], "create 1, untrack a"),
        ("two done, one to go", job(json!({}), json!({"succeeded": 2})), vec![p("a", 'r')], ""),
        ("too many", job(json!({"parallelism": 1}), s.clone()), vec![p("a", 'r'), p("b", 'r')], "discard a"),
        ("the last is done", job(json!({}), json!({"succeeded": 2})), vec![p("a", 's')], "untrack a, SuccessCriteriaMet:CompletionsReached"),
        ("the last was counted", job(json!({}), json!({"succeeded": 2, "uncountedTerminatedPods": {"succeeded": ["a"]}})), vec![p("a", 'S')],
            "SuccessCriteriaMet:CompletionsReached, Complete:CompletionsReached"),
        ("the last is on its way out", job(json!({}), json!({"succeeded": 3})), vec![p("a", 'D')], "SuccessCriteriaMet:CompletionsReached"),
        ("a failure is replaced", job(json!({}), s.clone()), vec![p("a", 'f'), p("b", 'r')], "create 1, untrack a"),
        ("one that is deleted is a failure", job(json!({}), s.clone()), vec![p("a", 'd'), p("b", 'r')], "create 1, untrack a"),
        ("but not until it has failed, if so asked", job(json!({"podReplacementPolicy": "Failed"}), s.clone()), vec![p("a", 'd'), p("b", 'r')], ""),
        ("one failure too many", job(json!({"backoffLimit": 1}), json!({"failed": 1})), vec![p("a", 'f'), p("b", 'r')],
            "stop b, untrack a b, FailureTarget:BackoffLimitExceeded"),
        ("failed, and all is counted", job(json!({}), target("FailureTarget", "X")), vec![p("a", 'F')], "FailureTarget:X, Failed:X"),
        ("suspended", job(json!({"suspend": true}), s.clone()), vec![p("a", 'r')], "discard a, Suspended:JobSuspended"),
        ("past its deadline", job(json!({"activeDeadlineSeconds": 60}), json!({"startTime": "2026-01-01T00:00:00Z"})), vec![p("a", 'r')],
            "stop a, untrack a, FailureTarget:DeadlineExceeded"),
        ("a queue ends with its first success", job(json!({"completions": null}), s.clone()), vec![p("a", 's'), p("b", 'r')], "untrack a"),
        ("and its last pod", job(json!({"completions": null}), s.clone()), vec![p("a", 's'), p("b", 's')], "untrack a b, SuccessCriteriaMet:CompletionsReached"),
        ("no pods at all", job(json!({"completions": 0}), s.clone()), vec![], "SuccessCriteriaMet:CompletionsReached, Complete:CompletionsReached"),
    ];
    for (why, job, pods, want) in cases {
        assert_eq!(show(&run(&job, &pods)), want, "{why}");
    }
}

#[test]
fn indexed() {
    let i = |name: &str, state, index| pod(name, state, Some(index), 0);
    let spec = |more: Value| {
        let mut spec = json!({"completionMode": "Indexed", "completions": 4, "parallelism": 3});
        more.as_object()
            .unwrap()
            .iter()
            .for_each(|(k, v)| spec[k] = v.clone());
        spec
    };
    let per_index = json!({"backoffLimitPerIndex": 1, "backoffLimit": 1000});
    #[rustfmt::skip]
    let cases: Vec<(&str, Value, Value, Vec<Arc<Pod>>, &str)> = vec![
        ("from nothing", json!({}), json!({}), vec![], "create #0 #1 #2"),
        ("gaps", json!({}), json!({"completedIndexes": "1", "succeeded": 1}), vec![i("a", 'r', 2)], "create #0 #3"),
        ("twice the same, and one beyond", json!({}), json!({}), vec![i("a", 'r', 0), i("b", 'r', 0), i("c", 'r', 9)], "discard c a"),
        ("all done", json!({}), json!({"completedIndexes": "0-2", "succeeded": 3}), vec![i("a", 's', 3)], "untrack a, SuccessCriteriaMet:CompletionsReached"),
        ("a success policy", json!({"successPolicy": {"rules": [{"succeededIndexes": "0"}]}}), json!({}), vec![i("a", 's', 0), i("b", 'r', 1)],
            "stop b, untrack a b, SuccessCriteriaMet:SuccessPolicy"),
        ("an index fails: its pod waits for its successor", per_index.clone(), json!({}), vec![i("a", 'f', 0), i("b", 'r', 1), i("c", 'r', 2)], "create #0"),
        ("which is there", per_index.clone(), json!({}), vec![i("a", 'f', 0), i("b", 'r', 0), i("c", 'r', 2), i("d", 'r', 1)], "untrack a"),
        ("an index fails for good", per_index.clone(), json!({}), vec![pod("a", 'f', Some(0), 1), i("b", 'r', 1), i("c", 'r', 2)], "create #3, untrack a"),
        ("all indexes are decided", per_index.clone(), json!({"completedIndexes": "1-3", "succeeded": 3}), vec![pod("a", 'f', Some(0), 1)],
            "untrack a, FailureTarget:FailedIndexes"),
    ];
    for (why, more, status, pods, want) in cases {
        let job = job(spec(more), status);
        assert_eq!(show(&run(&job, &pods)), want, "{why}");
    }
    let failing = job(spec(per_index), json!({}));
    let plan = run(&failing, &[i("a", 'f', 0), i("b", 's', 1)]);
    assert_eq!(
        plan.create[0],
        NewPod {
            index: Some(0),
            failures: Some((1, 0))
        }
    );
    assert_eq!(plan.status.completed_indexes.as_deref(), Some("1"));
}

#[test]
fn counting() {
    let waiting = json!({"succeeded": 1, "failed": 1, "uncountedTerminatedPods": {"succeeded": ["a", "b"], "failed": ["x"]}});
    let job = job(json!({"completions": 9}), waiting);
    let plan = run(&job, &[p("a", 's'), p("c", 's'), p("x", 'f'), p("r", 'r')]);
    let status = plan.status;
    let uncounted = status.uncounted_terminated_pods.unwrap();
    assert_eq!(
        (status.succeeded, status.failed),
        (Some(2), Some(1)),
        "b is counted"
    );
    assert_eq!(
        uncounted.succeeded,
        Some(vec!["a".to_owned(), "c".to_owned()])
    );
    assert_eq!(uncounted.failed, Some(vec!["x".to_owned()]));
    assert_eq!(
        (status.active, status.ready, status.terminating),
        (Some(2), Some(0), Some(0))
    );
}

#[test]
fn recent_failures_delay_the_next_pod() {
    let job = job(json!({}), json!({}));
    let failed = |name: &str, at: &str| {
        let mut failed = (*p(name, 'F')).clone();
        failed.metadata.creation_timestamp = Some(Time(at.parse().unwrap()));
        Arc::new(failed)
    };
    let plan = run(
        &job,
        &[
            failed("a", "2026-01-01T00:59:50Z"),
            failed("b", "2026-01-01T00:59:55Z"),
        ],
    );
    assert!(plan.create.is_empty());
    assert_eq!(
        plan.again,
        Some(Duration::from_secs(15)),
        "20 s after the second failure"
    );
    let deadline = super::tests::job(
        json!({"activeDeadlineSeconds": 4000}),
        json!({"startTime": "2026-01-01T00:00:00Z"}),
    );
    assert_eq!(run(&deadline, &[]).again, Some(Duration::from_secs(400)));
}
