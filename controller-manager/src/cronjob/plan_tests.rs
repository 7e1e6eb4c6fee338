use std::sync::Arc;
use std::time::Duration;

use client::events::EventType::{Normal, Warning};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use serde_json::{Value, json};

use super::plan::{Observed, Plan, SCHEDULED, plan, with_started, without};

const NOON: &str = "2026-01-01T12:00:00Z";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Due each hour, last run at eleven; `spec` and `status` are laid over that.
fn cron_job(spec: Value, status: Value) -> CronJob {
    let mut object = json!({
        "metadata": {"name": "tick", "namespace": "ns", "uid": "c", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "schedule": "0 * * * *", "successfulJobsHistoryLimit": 2, "failedJobsHistoryLimit": 1,
            "jobTemplate": {
                "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}},
                "spec": {"template": {}, "backoffLimit": 3},
            },
        },
        "status": {"lastScheduleTime": "2026-01-01T11:00:00Z"},
    });
    for (part, changes) in [("spec", spec), ("status", status)] {
        for (key, value) in changes.as_object().unwrap() {
            object[part][key] = value.clone();
        }
    }
    serde_json::from_value(object).unwrap()
}

/// A Job by its name (also its uid), with how and when it ended.
fn job(name: &str, end: Option<(&str, &str)>) -> Arc<Job> {
    let status = match end {
        None => json!({"startTime": "2026-01-01T11:00:00Z"}),
        Some((kind, when)) => json!({
            "startTime": when,
            "completionTime": (kind == "Complete").then_some(when),
            "conditions": [{"type": kind, "status": "True", "lastTransitionTime": when}],
        }),
    };
    let object =
        json!({"metadata": {"name": name, "namespace": "ns", "uid": name}, "status": status});
    Arc::new(serde_json::from_value(object).unwrap())
}

fn active(names: &[&str]) -> Value {
    let list = names.iter().map(
        |name| json!({"apiVersion": "batch/v1", "kind": "Job", "namespace": "ns", "name": name, "uid": name}),
    );
    json!({"active": list.collect::<Vec<_>>()})
}

fn planned(cron_job: &CronJob, jobs: &[Arc<Job>], now: &str) -> Plan {
    plan(&Observed {
        cron_job,
        jobs,
        now: at(now),
        local: &TimeZone::UTC,
    })
}

fn reasons(plan: &Plan) -> Vec<&'static str> {
    plan.events.iter().map(|(_, reason, _)| *reason).collect()
}

#[test]
fn whether_a_job_starts() {
    let noon = Some(NOON);
    let (running, none) = (active(&["j"]), json!({}));
    let hour = Some(3600);
    for (what, spec, status, now, start, events, again) in [
        ("due", json!({}), &none, NOON, noon, &[][..], hour),
        (
            "not yet",
            json!({}),
            &none,
            "2026-01-01T11:59:59Z",
            None,
            &[],
            Some(1),
        ),
        (
            "a little late",
            json!({}),
            &none,
            "2026-01-01T12:00:10Z",
            noon,
            &[],
            Some(3590),
        ),
        (
            "done already",
            json!({}),
            &json!({"lastScheduleTime": NOON}),
            "2026-01-01T12:30:00Z",
            None,
            &[],
            Some(1800),
        ),
        (
            "never run yet",
            json!({}),
            &json!({"lastScheduleTime": null}),
            "2026-01-01T01:00:00Z",
            Some("2026-01-01T01:00:00Z"),
            &[],
            hour,
        ),
        (
            "suspended",
            json!({"suspend": true}),
            &none,
            NOON,
            None,
            &[],
            None,
        ),
        (
            "unknown zone",
            json!({"timeZone": "Mars/Base"}),
            &none,
            NOON,
            None,
            &["UnknownTimeZone"],
            None,
        ),
        (
            "no schedule",
            json!({"schedule": "?"}),
            &none,
            NOON,
            None,
            &["UnparseableSchedule"],
            None,
        ),
        (
            "impossible",
            json!({"schedule": "0 0 31 2 *"}),
            &none,
            NOON,
            None,
            &["InvalidSchedule"],
            None,
        ),
        (
            "zone in the schedule",
            json!({"schedule": "TZ=Asia/Kolkata 30 17 * * *"}),
            &none,
            NOON,
            noon,
            &["UnsupportedSchedule"],
            Some(86400),
        ),
        (
            "zone of its own",
            json!({"schedule": "30 17 * * *", "timeZone": "Asia/Kolkata"}),
            &none,
            NOON,
            noon,
            &[],
            Some(86400),
        ),
        (
            "zone of its own, not due",
            json!({"schedule": "0 12 * * *", "timeZone": "Asia/Kolkata"}),
            &none,
            NOON,
            None,
            &[],
            Some(66600),
        ),
        (
            "too late",
            json!({"startingDeadlineSeconds": 5}),
            &none,
            "2026-01-01T12:00:06Z",
            None,
            &[],
            Some(3594),
        ),
        (
            "within the deadline",
            json!({"startingDeadlineSeconds": 15}),
            &none,
            "2026-01-01T12:00:10Z",
            noon,
            &[],
            Some(3590),
        ),
        (
            "missed a hundred",
            json!({"schedule": "* * * * *"}),
            &none,
            "2026-01-01T13:00:00Z",
            Some("2026-01-01T13:00:00Z"),
            &["TooManyMissedTimes"],
            Some(60),
        ),
        (
            "allowed beside another",
            json!({"concurrencyPolicy": "Allow"}),
            &running,
            NOON,
            noon,
            &[],
            hour,
        ),
        (
            "forbidden beside another",
            json!({"concurrencyPolicy": "Forbid"}),
            &running,
            NOON,
            None,
            &["JobAlreadyActive"],
            hour,
        ),
        (
            "alone where others are forbidden",
            json!({"concurrencyPolicy": "Forbid"}),
            &none,
            NOON,
            noon,
            &[],
            hour,
        ),
        (
            "in place of another",
            json!({"concurrencyPolicy": "Replace"}),
            &running,
            NOON,
            noon,
            &[],
            hour,
        ),
    ] {
        let cron_job = cron_job(spec.clone(), status.clone());
        let jobs = [job("j", None)];
        let jobs = if *status == running { &jobs[..] } else { &[] };
        let plan = planned(&cron_job, jobs, now);
        assert_eq!(plan.start.as_ref().map(|s| s.at), start.map(at), "{what}");
        assert_eq!(reasons(&plan), events, "{what}");
        let replaced = plan.start.map_or(0, |s| s.replaces.len());
        assert_eq!(
            replaced == 1,
            spec["concurrencyPolicy"] == "Replace",
            "{what}"
        );
        let again = again.map(|s| Duration::from_secs(s) + Duration::from_millis(100));
        assert_eq!(plan.again, again, "{what}");
    }
}

#[test]
fn what_starts() {
    for (zone, want) in [
        (Value::Null, "2026-01-01T12:00:00Z"),
        (json!("Asia/Kolkata"), "2026-01-01T17:30:00+05:30"),
        (json!("Europe/London"), "2026-01-01T12:00:00Z"),
    ] {
        let schedule = json!({"timeZone": zone, "schedule": "0,30 * * * *"});
        let plan = planned(&cron_job(schedule, json!({})), &[], NOON);
        let start = plan.start.unwrap();
        let object = serde_json::to_value(&start.job).unwrap();
        let minutes = at(NOON).as_second() / 60;
        let expected = json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {
                "name": format!("tick-{minutes}"), "namespace": "ns", "labels": {"a": "b"},
                "annotations": {"c": "d", SCHEDULED: want},
                "ownerReferences": [{
                    "apiVersion": "batch/v1", "kind": "CronJob", "name": "tick", "uid": "c",
                    "controller": true, "blockOwnerDeletion": true,
                }],
            },
            "spec": {"template": {}, "backoffLimit": 3},
        });
        assert_eq!(object, expected);
    }
}

#[test]
fn active_jobs_and_the_last_success() {
    let complete = job("j", Some(("Complete", "2026-01-01T11:10:00Z")));
    let failed = job("j", Some(("Failed", "2026-01-01T11:10:00Z")));
    let running = job("j", None);
    let listed = active(&["j"]);
    let none = json!({});
    let success = "2026-01-01T11:10:00Z";
    for (what, job, status, still, events, last) in [
        ("running", Some(&running), &listed, 1, &[][..], None),
        (
            "complete",
            Some(&complete),
            &listed,
            0,
            &[(
                Normal,
                "SawCompletedJob",
                "Saw completed job: j, condition: Complete",
            )],
            Some(success),
        ),
        (
            "complete, seen before",
            Some(&complete),
            &none,
            0,
            &[],
            Some(success),
        ),
        (
            "failed",
            Some(&failed),
            &listed,
            0,
            &[(
                Normal,
                "SawCompletedJob",
                "Saw completed job: j, condition: Failed",
            )],
            None,
        ),
        (
            "gone",
            None,
            &listed,
            0,
            &[(Normal, "MissingJob", "Active job went missing: j")],
            None,
        ),
        (
            "not ours",
            Some(&running),
            &none,
            0,
            &[(
                Warning,
                "UnexpectedJob",
                "Saw a job that the controller did not create or forgot: j",
            )],
            None,
        ),
        (
            "older than the last success",
            Some(&complete),
            &json!({"lastSuccessfulTime": NOON}),
            0,
            &[],
            Some(NOON),
        ),
    ] {
        let jobs: Vec<Arc<Job>> = job.into_iter().cloned().collect();
        let plan = planned(
            &cron_job(json!({}), status.clone()),
            &jobs,
            "2026-01-01T11:30:00Z",
        );
        let active = plan.status.active.as_ref();
        assert_eq!(active.map_or(0, Vec::len), still, "{what}");
        assert_eq!(
            active.is_some(),
            still > 0,
            "{what}: none is no list at all"
        );
        let events: Vec<_> = events
            .iter()
            .map(|(k, r, m)| (*k, *r, (*m).to_owned()))
            .collect();
        assert_eq!(plan.events, events, "{what}");
        let got = plan.status.last_successful_time.map(|t| t.0);
        assert_eq!(got, last.map(at), "{what}");
    }
}

#[test]
fn history_has_its_limits() {
    let end = |name: &str, kind: &str, hour: u32| {
        job(name, Some((kind, &format!("2026-01-01T0{hour}:00:00Z"))))
    };
    let dying = {
        let mut job = (*end("s0", "Complete", 0)).clone();
        job.metadata.deletion_timestamp = job.status.as_ref().unwrap().start_time.clone();
        Arc::new(job)
    };
    let jobs = [
        end("s3", "Complete", 3),
        end("s2b", "Complete", 2),
        end("s2a", "Complete", 2),
        end("f1", "Failed", 1),
        end("f2", "Failed", 2),
        job("running", None),
        dying,
    ];
    for (limits, want) in [
        (json!({}), &["s2a", "f1"][..]),
        (
            json!({"successfulJobsHistoryLimit": 0}),
            &["s2a", "s2b", "s3", "f1"],
        ),
        (json!({"failedJobsHistoryLimit": 0}), &["s2a", "f1", "f2"]),
        (
            json!({"successfulJobsHistoryLimit": 9, "failedJobsHistoryLimit": 9}),
            &[],
        ),
        (
            json!({"successfulJobsHistoryLimit": null, "failedJobsHistoryLimit": null}),
            &[],
        ),
    ] {
        let plan = planned(
            &cron_job(limits.clone(), active(&["running"])),
            &jobs,
            "2026-01-01T11:30:00Z",
        );
        let names: Vec<String> = plan
            .delete
            .iter()
            .filter_map(|j| j.metadata.name.clone())
            .collect();
        assert_eq!(names, want, "{limits}");
    }
}

#[test]
fn one_that_is_being_deleted_starts_nothing() {
    let mut cron_job = cron_job(json!({}), active(&["j"]));
    cron_job.metadata.deletion_timestamp = cron_job.metadata.creation_timestamp.clone();
    let plan = planned(
        &cron_job,
        &[job("j", Some(("Complete", "2026-01-01T11:10:00Z")))],
        NOON,
    );
    assert!(plan.start.is_none() && plan.again.is_none());
    assert_eq!(
        (reasons(&plan), plan.status.active),
        (vec!["SawCompletedJob"], None)
    );
}

#[test]
fn a_status_follows_what_was_done() {
    let status = cron_job(json!({}), active(&["a"])).status.unwrap();
    let (a, b) = (job("a", None), job("b", None));
    let names = |status: &k8s_openapi::api::batch::v1::CronJobStatus| -> Vec<String> {
        let list = status.active.iter().flatten();
        list.filter_map(|r| r.name.clone()).collect()
    };
    let started = with_started(status.clone(), &b, at(NOON));
    assert_eq!(names(&started), ["a", "b"]);
    assert_eq!(
        started.last_schedule_time.clone().map(|t| t.0),
        Some(at(NOON))
    );
    // Found again after its status was lost: once.
    assert_eq!(
        names(&with_started(started.clone(), &b, at(NOON))),
        ["a", "b"]
    );
    assert_eq!(names(&without(started, &a)), ["b"]);
    assert_eq!(without(status, &a).active, None);
}
