use super::*;
use serde_json::json;

fn level(name: &str, shares: u32, queuing: bool) -> (String, String, LevelSpec) {
    let response = match queuing {
        true => {
            json!({"type": "Queue", "queuing": {"queues": 8, "handSize": 2, "queueLengthLimit": 3}})
        }
        false => json!({"type": "Reject"}),
    };
    let spec = json!({"type": "Limited", "limited": {
        "nominalConcurrencyShares": shares, "borrowingLimitPercent": 0, "limitResponse": response}});
    (
        name.into(),
        format!("uid-{name}"),
        serde_json::from_value(spec).unwrap(),
    )
}

fn schema(name: &str, user: &str, precedence: i64) -> (String, String, FlowSchemaSpec) {
    let spec = json!({
        "priorityLevelConfiguration": {"name": name}, "matchingPrecedence": precedence,
        "rules": [{"subjects": [{"kind": "User", "user": {"name": user}}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}],
    });
    (
        name.into(),
        format!("uid-{name}"),
        serde_json::from_value(spec).unwrap(),
    )
}

fn control() -> Arc<Fairness> {
    let control = Fairness::new(4);
    control.configure(
        &[level("queue", 50, true), level("reject", 50, false)],
        &[schema("queue", "q", 10), schema("reject", "r", 20)],
    );
    control
}

async fn ask(control: &Arc<Fairness>, user: &str) -> Result<Permit<'static>> {
    wide(control, user, 1).await
}

async fn wide(control: &Arc<Fairness>, user: &str, width: usize) -> Result<Permit<'static>> {
    let (user, info) = (UserInfo::new(user, &[]), RequestInfo::default());
    control.turn(&user, &info, || width).await.1
}

fn find(control: &Fairness, name: &str) -> Arc<Level> {
    let state = control.state.load();
    state
        .levels
        .iter()
        .find(|level| level.name == name)
        .cloned()
        .unwrap()
}

#[tokio::test]
async fn answers_say_how_requests_were_classified() {
    let control = control();
    let (user, info) = (UserInfo::new("q", &[]), RequestInfo::default());
    let (classified, _) = control.turn(&user, &info, || 1).await;
    let mut headers = HeaderMap::new();
    classified.mark(&mut headers);
    assert_eq!(headers["x-kubernetes-pf-flowschema-uid"], "uid-queue");
    assert_eq!(headers["x-kubernetes-pf-prioritylevel-uid"], "uid-queue");
    let mut metrics = String::new();
    control.render(&mut metrics);
    let line = "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"queue\"} 2\n";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test]
async fn a_level_that_does_not_queue_refuses() {
    let control = control();
    let first = ask(&control, "r").await.unwrap();
    let _second = ask(&control, "r").await.unwrap();
    let refused = ask(&control, "r").await.err().unwrap();
    assert_eq!(refused.code, 429);
    assert_eq!(refused.details.unwrap().retry_after_seconds, 1);
    drop(first);
    assert!(ask(&control, "r").await.is_ok());
}

#[tokio::test]
async fn the_others_wait_for_a_seat() {
    let control = control();
    let seats = [
        ask(&control, "q").await.unwrap(),
        ask(&control, "q").await.unwrap(),
    ];
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let control = control.clone();
            tokio::spawn(async move { ask(&control, "q").await })
        })
        .collect();
    let level = find(&control, "queue");
    while level.waiting.load(SeqCst) < 3 {
        tokio::task::yield_now().await;
    }
    // The other level has its own seats.
    assert!(ask(&control, "r").await.is_ok());
    drop(seats);
    for one in waiting {
        assert!(one.await.unwrap().is_ok());
    }
    assert_eq!(level.in_use.load(SeqCst), 0);
    assert_eq!(control.in_use.load(SeqCst), 0);
}

#[tokio::test]
async fn those_who_give_up_take_no_seat() {
    let control = control();
    let seats = [
        ask(&control, "q").await.unwrap(),
        ask(&control, "q").await.unwrap(),
    ];
    let gone = {
        let control = control.clone();
        tokio::spawn(async move { ask(&control, "q").await.map(drop) })
    };
    let level = find(&control, "queue");
    while level.waiting.load(SeqCst) < 1 {
        tokio::task::yield_now().await;
    }
    gone.abort();
    let _ = gone.await;
    drop(seats);
    assert_eq!(
        (level.in_use.load(SeqCst), level.waiting.load(SeqCst)),
        (0, 0)
    );
}

#[tokio::test]
async fn unused_seats_are_lent() {
    let control = Fairness::new(4);
    let mut borrower = level("queue", 50, true);
    let mut lender = level("reject", 50, false);
    for (of, lendable) in [(&mut borrower, 0), (&mut lender, 100)] {
        of.2 = serde_json::from_value(json!({"type": "Limited", "limited": {
            "nominalConcurrencyShares": 50, "lendablePercent": lendable, "limitResponse": {"type": "Reject"}}}))
        .unwrap();
    }
    control.configure(
        &[borrower, lender],
        &[schema("queue", "q", 10), schema("reject", "r", 20)],
    );
    let mut seats = Vec::new();
    for _ in 0..4 {
        seats.push(ask(&control, "q").await.unwrap());
    }
    assert!(ask(&control, "q").await.is_err());
    assert!(ask(&control, "r").await.is_err());
    seats.pop();
    assert!(ask(&control, "r").await.is_ok());
}

#[tokio::test]
async fn wide_requests_take_many_seats() {
    let control = Fairness::new(40);
    control.configure(&[level("queue", 1, false)], &[schema("queue", "q", 10)]);
    let level = find(&control, "queue");
    // No wider than 15 % of the level's seats.
    let permit = wide(&control, "q", 10).await.unwrap();
    assert_eq!(level.in_use.load(SeqCst), 6);
    let others: Vec<_> = futures::future::join_all((0..5).map(|_| wide(&control, "q", 6))).await;
    assert!(others.iter().all(Result::is_ok));
    assert_eq!(level.in_use.load(SeqCst), 36);
    assert!(wide(&control, "q", 6).await.is_err());
    assert!(wide(&control, "q", 4).await.is_ok());
    drop((permit, others));
    assert_eq!(level.in_use.load(SeqCst), 0);
}

#[test]
fn without_levels_reads_and_writes_are_counted_apart() {
    let limits = Limits::new(1, 1);
    let user = UserInfo::new("jane", &[]);
    let of = |verb: &str| RequestInfo {
        verb: verb.into(),
        ..RequestInfo::default()
    };
    let _read = limits.turn(&user, &of("get")).unwrap();
    assert_eq!(limits.turn(&user, &of("list")).err().unwrap().code, 429);
    let write = limits.turn(&user, &of("create")).unwrap();
    assert!(limits.turn(&user, &of("delete")).is_err());
    assert!(limits.turn(&user, &of("watch")).is_ok());
    let admin = UserInfo::new("admin", &[MASTERS]);
    assert!(limits.turn(&admin, &of("update")).is_ok());
    drop(write);
    assert!(limits.turn(&user, &of("patch")).is_ok());
    let unlimited = Limits::new(0, 0);
    let permits: Vec<_> = (0..10).map(|_| unlimited.turn(&user, &of("get"))).collect();
    assert!(permits.iter().all(Result::is_ok));
}
