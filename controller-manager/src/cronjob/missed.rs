//! Which of a schedule's times is to be dealt with now, and when the next one comes.

use std::time::Duration;

use apimachinery::cron::{Schedule, time_zone};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec};

use crate::meta::created;

/// Added to the time of the next run, so that a clock that is a little behind does not make it come too early.
const MARGIN: Duration = Duration::from_millis(100);
/// More missed times than this hint at a wrong clock rather than at a controller that was away.
const MANY: i64 = 100;

/// How many times passed without a Job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    None,
    Few,
    Many,
}

/// The last of a schedule's times that has come.
#[derive(Debug, PartialEq)]
pub struct Recent {
    /// What was looked at from: the last run, or when the CronJob was made.
    pub since: Timestamp,
    pub time: Option<Timestamp>,
    pub missed: Missed,
}

/// A schedule with the zone that it is meant in.
#[derive(Debug)]
pub struct Due {
    schedule: Schedule,
    zone: TimeZone,
}

impl Due {
    /// That of a CronJob; without a zone of its own, it is meant in the zone of this process (`local`).
    pub fn new(spec: &CronJobSpec, local: &TimeZone) -> Result<Self, String> {
        let named = spec.time_zone.as_deref().map(time_zone);
        Ok(Self {
            schedule: Schedule::parse(&spec.schedule)?,
            zone: named.and_then(Result::ok).unwrap_or_else(|| local.clone()),
        })
    }

    fn after(&self, time: Timestamp) -> Option<Timestamp> {
        self.schedule.next(time, &self.zone)
    }

    /// The last time that has come since the last run, `within_deadline` only as far back as
    /// `startingDeadlineSeconds` reaches. Fails if the schedule never comes.
    ///
    /// Times in between are not counted one by one: there may be millions. As in Kubernetes the first two say how
    /// far they are apart, and so where the last one may be. If none is there (the schedule is not regular), it is
    /// looked for further back, where Kubernetes gives up.
    pub fn recent(
        &self,
        cron_job: &CronJob,
        now: Timestamp,
        within_deadline: bool,
    ) -> Result<Recent, String> {
        let since = since(cron_job, now, within_deadline);
        let none = |missed| Recent {
            since,
            time: None,
            missed,
        };
        let never = || "time difference between two schedules is less than 1 second".to_owned();
        let first = self.after(since).ok_or_else(never)?;
        if now < first {
            return Ok(none(Missed::None));
        }
        let second = self.after(first).ok_or_else(never)?;
        if now < second {
            return Ok(Recent {
                time: Some(first),
                ..none(Missed::None)
            });
        }
        let apart = second.duration_since(first).as_secs().max(1);
        let missed = now.duration_since(first).as_secs() / apart + 1;
        let (mut time, mut back) = (None, 2);
        while time.is_none() {
            let near = SignedDuration::from_secs((missed - back).max(0) * apart);
            let mut next = first.checked_add(near).ok().and_then(|t| self.after(t));
            while let Some(at) = next.filter(|at| *at <= now) {
                time = Some(at);
                next = self.after(at);
            }
            if back >= missed {
                // The second time at the latest has been found.
                break;
            }
            back = back.saturating_mul(2);
        }
        let missed = if missed > MANY {
            Missed::Many
        } else {
            Missed::Few
        };
        Ok(Recent {
            time,
            ..none(missed)
        })
    }

    /// How long until the next time; `None` if there is none.
    pub fn until_next(&self, cron_job: &CronJob, now: Timestamp) -> Option<Duration> {
        let from = match self.recent(cron_job, now, false) {
            Ok(Recent {
                time: Some(time), ..
            }) => time,
            Ok(Recent {
                since,
                missed: Missed::None,
                ..
            }) => since,
            _ => now,
        };
        let left = self.after(from)?.duration_since(now);
        Some(Duration::try_from(left).unwrap_or_default() + MARGIN)
    }
}

fn since(cron_job: &CronJob, now: Timestamp, within_deadline: bool) -> Timestamp {
    let last = cron_job.status.as_ref();
    let last = last.and_then(|s| s.last_schedule_time.as_ref());
    let since = last.map_or_else(|| created(cron_job), |t| t.0);
    match cron_job.spec.starting_deadline_seconds {
        Some(seconds) if within_deadline => {
            let earliest = now.checked_sub(SignedDuration::from_secs(seconds));
            since.max(earliest.unwrap_or(Timestamp::MIN))
        }
        _ => since,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// A CronJob made at midnight.
    fn cron_job(schedule: &str, zone: Value, last: Value, deadline: Value) -> CronJob {
        serde_json::from_value(json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"schedule": schedule, "timeZone": zone, "startingDeadlineSeconds": deadline, "jobTemplate": {}},
            "status": {"lastScheduleTime": last},
        }))
        .unwrap()
    }

    fn due(cron_job: &CronJob) -> Due {
        Due::new(&cron_job.spec, &TimeZone::UTC).unwrap()
    }

    #[test]
    fn the_last_time_that_came() {
        let (none, last) = (Value::Null, json!("2026-01-01T09:00:00Z"));
        for (schedule, last, deadline, now, time, missed) in [
            (
                "0 * * * *",
                &none,
                &none,
                "2026-01-01T00:59:59Z",
                None,
                Missed::None,
            ),
            (
                "0 * * * *",
                &none,
                &none,
                "2026-01-01T01:00:00Z",
                Some("2026-01-01T01:00:00Z"),
                Missed::None,
            ),
            (
                "0 * * * *",
                &none,
                &none,
                "2026-01-01T03:30:00Z",
                Some("2026-01-01T03:00:00Z"),
                Missed::Few,
            ),
            (
                "0 * * * *",
                &none,
                &none,
                "2026-01-05T03:59:00Z",
                Some("2026-01-05T03:00:00Z"),
                Missed::Few,
            ),
            (
                "0 * * * *",
                &none,
                &none,
                "2026-01-05T05:00:00Z",
                Some("2026-01-05T05:00:00Z"),
                Missed::Many,
            ),
            (
                "* * * * *",
                &none,
                &none,
                "2031-01-01T00:00:30Z",
                Some("2031-01-01T00:00:00Z"),
                Missed::Many,
            ),
            (
                "0 * * * *",
                &last,
                &none,
                "2026-01-01T09:30:00Z",
                None,
                Missed::None,
            ),
            (
                "0 * * * *",
                &last,
                &none,
                "2026-01-01T10:00:05Z",
                Some("2026-01-01T10:00:00Z"),
                Missed::None,
            ),
            // A deadline makes what is before it count for nothing.
            (
                "0 * * * *",
                &none,
                &json!(60),
                "2026-01-05T05:00:30Z",
                Some("2026-01-05T05:00:00Z"),
                Missed::None,
            ),
            (
                "0 * * * *",
                &none,
                &json!(60),
                "2026-01-05T05:30:00Z",
                None,
                Missed::None,
            ),
            (
                "0 * * * *",
                &none,
                &json!(i64::MAX),
                "2026-01-05T05:30:00Z",
                Some("2026-01-05T05:00:00Z"),
                Missed::Many,
            ),
            // Intervals count from the last run.
            (
                "@every 1h10m",
                &last,
                &none,
                "2026-01-01T12:00:00Z",
                Some("2026-01-01T11:20:00Z"),
                Missed::Few,
            ),
            // Irregular times: what the first two are apart is only where to look from.
            (
                "* 0 * * *",
                &none,
                &none,
                "2026-01-03T20:00:00Z",
                Some("2026-01-03T00:59:00Z"),
                Missed::Many,
            ),
            (
                "30 6-16/4 * * 1-5",
                &none,
                &none,
                "2026-01-06T20:00:00Z",
                Some("2026-01-06T14:30:00Z"),
                Missed::Few,
            ),
        ] {
            let cron_job = cron_job(schedule, none.clone(), last.clone(), deadline.clone());
            let got = due(&cron_job).recent(&cron_job, at(now), true).unwrap();
            assert_eq!(
                (got.time, got.missed),
                (time.map(at), missed),
                "{schedule} at {now}"
            );
        }
        let never = cron_job("59 23 31 2 *", none.clone(), none.clone(), none.clone());
        assert!(
            due(&never)
                .recent(&never, at("2026-01-01T00:00:01Z"), true)
                .is_err()
        );
    }

    #[test]
    fn until_the_next_time() {
        let none = Value::Null;
        for (schedule, zone, now, want) in [
            ("0 * * * *", &none, "2026-01-01T00:59:59Z", 1),
            ("0 * * * *", &none, "2026-01-01T01:00:00Z", 3600),
            ("0 * * * *", &none, "2026-01-05T05:30:00Z", 1800),
            (
                "0 9 * * *",
                &json!("Asia/Kolkata"),
                "2026-01-01T00:00:00Z",
                12600,
            ),
            (
                "TZ=Asia/Kolkata 0 9 * * *",
                &none,
                "2026-01-01T00:00:00Z",
                12600,
            ),
            // The clocks of Rome skip an hour on 29 March, and repeat one on 25 October.
            (
                "0 6 * * *",
                &json!("Europe/Rome"),
                "2026-03-28T05:00:00Z",
                23 * 3600,
            ),
            (
                "0 6 * * *",
                &json!("Europe/Rome"),
                "2026-10-24T04:00:00Z",
                25 * 3600,
            ),
        ] {
            let cron_job = cron_job(schedule, zone.clone(), none.clone(), none.clone());
            let got = due(&cron_job).until_next(&cron_job, at(now));
            assert_eq!(
                got,
                Some(Duration::from_secs(want) + MARGIN),
                "{schedule} at {now}"
            );
        }
        let never = cron_job("59 23 31 2 *", none.clone(), none.clone(), none);
        assert_eq!(
            due(&never).until_next(&never, at("2026-01-01T00:00:01Z")),
            None
        );
    }
}
