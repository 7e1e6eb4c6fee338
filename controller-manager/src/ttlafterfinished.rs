//! Deletes finished Jobs when their `ttlSecondsAfterFinished` is over.

use std::sync::Arc;
use std::time::Duration;

use client::{CancellationToken, Next, WorkQueue, key_of, split_key};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use kube::api::PropagationPolicy;

use crate::frame::{Context, Result, WORKERS, work};

/// How long a Job has yet; `None` if it stays.
pub fn plan(job: &Job, now: Timestamp) -> Option<Duration> {
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let mut conditions = job.status.as_ref()?.conditions.iter().flatten();
    let last = conditions
        .find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")?;
    let finished = last.last_transition_time.as_ref()?.0;
    let end = finished.checked_add(SignedDuration::from_secs(i64::from(ttl)));
    let left = end.unwrap_or(Timestamp::MAX).duration_since(now);
    Some(Duration::try_from(left).unwrap_or_default())
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let jobs = &context.informers().jobs().informer;
    let q = queue.clone();
    jobs.on_change(move |_, new| {
        new.into_iter()
            .filter(|j| plan(j, Timestamp::now()).is_some())
            .for_each(|j| q.add(key_of(j.as_ref())));
    });
    jobs.synced().await;
    work(&queue, WORKERS, &token, |key| reconcile(&context, key)).await;
}

async fn reconcile(context: &Context, key: String) -> Result<Next> {
    let jobs = context.informers().jobs();
    let Some(job) = jobs.informer.get(&key) else {
        return Ok(Next::Done);
    };
    match plan(&job, Timestamp::now()) {
        None => return Ok(Next::Done),
        Some(left) if !left.is_zero() => return Ok(Next::After(left)),
        Some(_) => {}
    }
    // Somebody may have given it more time a moment ago.
    let (namespace, name) = split_key(&key);
    let Some(fresh) = jobs.api(namespace).get_opt(name).await? else {
        return Ok(Next::Done);
    };
    match plan(&fresh, Timestamp::now()) {
        Some(left) if left.is_zero() && fresh.metadata.uid == job.metadata.uid => {
            jobs.delete(&fresh, PropagationPolicy::Foreground).await?;
            Ok(Next::Done)
        }
        Some(left) => Ok(Next::After(left)),
        None => Ok(Next::Done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn when_jobs_go() {
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let finished = |kind: &str| json!([{"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let job = |ttl: Value, conditions: Value| -> Job {
            serde_json::from_value(json!({"spec": {"ttlSecondsAfterFinished": ttl, "template": {}}, "status": {"conditions": conditions}})).unwrap()
        };
        for (ttl, conditions, want) in [
            (json!(null), finished("Complete"), None),
            (json!(100), json!([]), None),
            (json!(100), finished("Suspended"), None),
            (json!(100), finished("Complete"), Some(40)),
            (json!(100), finished("Failed"), Some(40)),
            (json!(0), finished("Failed"), Some(0)),
        ] {
            let want = want.map(Duration::from_secs);
            assert_eq!(
                plan(&job(ttl.clone(), conditions.clone()), now),
                want,
                "{ttl} {conditions}"
            );
        }
    }
}
