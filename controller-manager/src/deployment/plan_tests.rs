//! Rollouts, as tables.

use super::*;
use serde_json::json;

/// A deployment whose template has image `image`.
fn deployment(replicas: i32, image: &str, strategy: Value) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"namespace": "ns", "name": "web", "uid": "d", "generation": 1},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "strategy": strategy,
            "progressDeadlineSeconds": 600, "revisionHistoryLimit": 1,
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}
        }
    }))
    .unwrap()
}

fn rolling(surge: Value, unavailable: Value) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

/// A set made for the template with `image`: wants `size`, of which `available` are available.
fn set(
    d: &Deployment,
    image: &str,
    revision: i64,
    size: i32,
    available: i32,
    desired: i32,
) -> Arc<ReplicaSet> {
    let mut with_image = d.clone();
    with_image
        .spec
        .as_mut()
        .unwrap()
        .template
        .spec
        .as_mut()
        .unwrap()
        .containers[0]
        .image = Some(image.into());
    let mut set = sets::new_set(&with_image, None);
    set.metadata.name = Some(format!("web-{image}"));
    set.metadata.uid = Some(image.into());
    set.metadata.generation = Some(1);
    set.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        Timestamp::from_second(1000 * revision).unwrap(),
    ));
    let max = desired + max_surge(d);
    set.metadata.annotations = Some(
        [
            (REVISION, revision.to_string()),
            (DESIRED, desired.to_string()),
            (MAX, max.to_string()),
        ]
        .map(|(k, v)| (k.to_string(), v))
        .into(),
    );
    set.spec.as_mut().unwrap().replicas = Some(size);
    set.status = serde_json::from_value(json!({
        "replicas": size, "readyReplicas": available, "availableReplicas": available, "observedGeneration": 1
    }))
    .unwrap();
    Arc::new(set)
}

fn show(plan: &Plan) -> Vec<String> {
    let name = |s: &ReplicaSet| s.metadata.name.clone().unwrap_or_default();
    let one = |action: &Action| match action {
        Action::Adopt(s) => format!("adopt {}", name(s)),
        Action::Release(s) => format!("release {}", name(s)),
        Action::Create(s) => format!("create {}", sets::replicas(s)),
        Action::Annotate {
            set, annotations, ..
        } => format!("annotate {} {}", name(set), annotations[REVISION]),
        Action::Scale { set, from, to, .. } => format!("{} {from}>{to}", name(set)),
        Action::Delete(s) => format!("delete {}", name(s)),
        Action::SetRevision(r) => format!("revision {r}"),
    };
    plan.actions.iter().map(one).collect()
}

fn run(d: &Deployment, sets: &[Arc<ReplicaSet>], running: &[(&str, usize)]) -> Plan {
    let running = running.iter().map(|(k, v)| (k.to_string(), *v)).collect();
    plan(&Observed {
        deployment: d,
        sets,
        running: &running,
        now: Timestamp::from_second(100_000).unwrap(),
    })
}

#[test]
fn fenceposts_round_in_favour_of_progress() {
    for (replicas, surge, unavailable, want) in [
        (2, json!("0%"), json!("1%"), (0, 1)),
        (2, json!("1%"), json!("25%"), (1, 0)),
        (10, json!("25%"), json!("25%"), (3, 2)),
        (4, json!(2), json!(0), (2, 0)),
        (1, json!(0), json!(0), (0, 1)),
    ] {
        assert_eq!(
            fenceposts(&deployment(replicas, "a", rolling(surge, unavailable))),
            want
        );
    }
}

#[test]
fn rolling_updates() {
    let quarter = || rolling(json!("25%"), json!("25%"));
    let d4 = deployment(4, "b", quarter());
    let one_up = deployment(3, "b", rolling(json!(1), json!(0)));
    let mut revised = d4.clone();
    revised.metadata.annotations = Some([(REVISION.to_string(), "2".to_string())].into());
    let mut revised3 = one_up.clone();
    revised3.metadata.annotations = revised.metadata.annotations.clone();
    let s = set;
    #[rustfmt::skip]
    let cases: Vec<(&str, &Deployment, Vec<Arc<ReplicaSet>>, Vec<&str>)> = vec![
        ("first rollout", &d4, vec![], vec!["create 4", "revision 1"]),
        ("a new template starts with the surge, the rest follows in the next pass", &d4, vec![s(&d4, "a", 1, 4, 4, 4)], vec!["create 1", "revision 2", "web-a 4>3"]),
        ("surge only: nothing shrinks before something new is available", &revised3, vec![s(&one_up, "a", 1, 3, 3, 3), s(&one_up, "b", 2, 1, 0, 3)], vec![]),
        ("one available, one goes", &revised3, vec![s(&one_up, "a", 1, 3, 3, 3), s(&one_up, "b", 2, 1, 1, 3)], vec!["web-a 3>2"]),
        ("one gone, one comes", &revised3, vec![s(&one_up, "a", 1, 2, 2, 3), s(&one_up, "b", 2, 1, 1, 3)], vec!["web-b 1>2"]),
        ("unavailable old pods go first, at once", &revised, vec![s(&d4, "a", 1, 4, 2, 4), s(&d4, "b", 2, 1, 1, 4)], vec!["web-a 4>2"]),
        ("done", &revised, vec![s(&d4, "a", 1, 0, 0, 4), s(&d4, "b", 2, 4, 4, 4)], vec![]),
        ("rollback: the old set becomes the newest revision", &d4, vec![s(&d4, "b", 1, 0, 0, 4), s(&d4, "a", 2, 4, 4, 4)], vec!["annotate web-b 3", "revision 3", "web-b 0>1"]),
    ];
    for (why, d, sets, want) in cases {
        assert_eq!(show(&run(d, &sets, &[])), want, "{why}");
    }
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut d = deployment(2, "b", json!({"type": "Recreate"}));
    let template = d.clone();
    let old = |size| set(&template, "a", 1, size, size, 2);
    assert_eq!(show(&run(&d, &[old(2)], &[("a", 2)])), ["web-a 2>0"]);
    assert_eq!(show(&run(&d, &[old(0)], &[("a", 1)])), Vec::<String>::new());
    assert_eq!(show(&run(&d, &[old(0)], &[])), ["create 2", "revision 2"]);
    d.spec.as_mut().unwrap().paused = Some(true);
    assert_eq!(show(&run(&d, &[old(2)], &[])), Vec::<String>::new());
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_proportional() {
    // Kubernetes' documented example: 10 replicas, surge 3, unavailable 2; 8 old, 5 new; scaled to 15.
    let mut d = deployment(15, "b", rolling(json!(3), json!(2)));
    d.metadata.annotations = Some([(REVISION.to_string(), "2".to_string())].into());
    let sets = [set(&d, "a", 1, 8, 8, 10), set(&d, "b", 2, 5, 0, 10)];
    assert_eq!(show(&run(&d, &sets, &[])), ["web-a 8>11", "web-b 5>7"]);
    d.spec.as_mut().unwrap().replicas = Some(0);
    assert_eq!(show(&run(&d, &sets, &[])), ["web-a 8>0", "web-b 5>0"]);
    d.spec.as_mut().unwrap().replicas = Some(6);
    assert_eq!(show(&run(&d, &sets[1..], &[])), ["web-b 5>6"]);
}

#[test]
fn old_revisions_beyond_the_limit_are_deleted_once_complete() {
    let mut d = deployment(1, "c", rolling(json!(1), json!(0)));
    d.metadata.annotations = Some([(REVISION.to_string(), "3".to_string())].into());
    let sets = [
        set(&d, "a", 1, 0, 0, 1),
        set(&d, "b", 2, 0, 0, 1),
        set(&d, "c", 3, 1, 1, 1),
    ];
    assert_eq!(
        show(&run(&d, &sets, &[])),
        Vec::<String>::new(),
        "the status does not say complete yet"
    );
    d.status = serde_json::from_value(json!({
        "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1, "observedGeneration": 1
    }))
    .unwrap();
    assert_eq!(show(&run(&d, &sets, &[])), ["delete web-a"]);
}

#[test]
fn conditions_tell_the_rollouts_story() {
    let mut d = deployment(2, "a", rolling(json!(1), json!(0)));
    let reasons = |plan: &Plan| {
        let conditions = plan.status.conditions.clone().unwrap_or_default();
        conditions
            .iter()
            .map(|c| {
                format!(
                    "{}={} {}",
                    c.type_,
                    c.status,
                    c.reason.clone().unwrap_or_default()
                )
            })
            .collect::<Vec<_>>()
    };
    let first = run(&d, &[], &[]);
    assert_eq!(
        reasons(&first),
        [
            "Progressing=True NewReplicaSetCreated",
            "Available=False MinimumReplicasUnavailable"
        ]
    );
    assert_eq!(first.again, Some(Duration::from_secs(601)));

    d.status = Some(first.status);
    let second = run(&d, &[set(&d, "a", 1, 2, 1, 2)], &[]);
    assert_eq!(
        reasons(&second),
        [
            "Available=False MinimumReplicasUnavailable",
            "Progressing=True ReplicaSetUpdated"
        ]
    );

    d.status = Some(second.status.clone());
    let third = run(&d, &[set(&d, "a", 1, 2, 2, 2)], &[]);
    assert_eq!(
        reasons(&third),
        [
            "Available=True MinimumReplicasAvailable",
            "Progressing=True NewReplicaSetAvailable"
        ]
    );
    assert_eq!(third.again, None);

    d.status = Some(second.status);
    let late = plan(&Observed {
        deployment: &d,
        sets: &[set(&d, "a", 1, 2, 1, 2)],
        running: &HashMap::new(),
        now: Timestamp::from_second(100_000 + 601).unwrap(),
    });
    assert!(reasons(&late).contains(&"Progressing=False ProgressDeadlineExceeded".to_string()));
}
