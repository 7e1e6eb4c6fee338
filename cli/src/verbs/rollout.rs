//! `rollout`: how a workload changes from one revision to the next, and back.

use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use serde_json::{Value, json};

use super::ops::{Choice, follow};
use super::session::{Session, escape};
use super::target::{self, Object};
use super::write::{MERGE, STRATEGIC, Writing};

/// Look after the rollout of a workload
#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// Wait until a rollout is finished
    Status {
        resources: Vec<String>,
        /// Do not wait
        #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
        watch: bool,
        /// How long to wait; 0 means as long as it takes
        #[arg(long, default_value = "0s", value_parser = super::duration)]
        timeout: Duration,
    },
    /// Show revisions
    History {
        resources: Vec<String>,
        /// Show what a revision looked like
        #[arg(long, default_value_t = 0)]
        revision: i64,
    },
    /// Go back to a revision
    Undo {
        resources: Vec<String>,
        /// Which; 0 means the one before
        #[arg(long, default_value_t = 0)]
        to_revision: i64,
    },
    /// Replace all pods, step by step
    Restart {
        resources: Vec<String>,
        #[command(flatten)]
        choice: Choice,
    },
    /// Stop rolling out changes
    Pause { resources: Vec<String> },
    /// Go on rolling out changes
    Resume { resources: Vec<String> },
}

fn writing() -> Writing {
    Writing {
        dry_run: "none".into(),
        output: None,
        field_manager: "skiff-rollout".into(),
    }
}

async fn chosen(session: &Session, resources: &[String]) -> Result<Vec<Object>> {
    Choice::default().objects(session, resources).await
}

pub async fn run(session: &Session, args: Args) -> Result<()> {
    match args {
        Args::Status {
            resources,
            watch,
            timeout,
        } => {
            for object in chosen(session, &resources).await? {
                let done = status(session, &object, watch);
                match timeout.is_zero() {
                    true => done.await?,
                    false => tokio::time::timeout(timeout, done)
                        .await
                        .map_err(|_| anyhow!("timed out waiting for the condition"))??,
                }
            }
        }
        Args::History {
            resources,
            revision,
        } => {
            for object in chosen(session, &resources).await? {
                history(session, &object, revision).await?;
            }
        }
        Args::Undo {
            resources,
            to_revision,
        } => {
            for object in chosen(session, &resources).await? {
                undo(session, &object, to_revision).await?;
            }
        }
        Args::Restart { resources, choice } => {
            for object in choice.objects(session, &resources).await? {
                let live = session.get(&object.path()).await?;
                if live["spec"]["paused"] == true {
                    bail!(
                        "can't restart paused {} (run rollout resume first)",
                        object.kind.singular
                    );
                }
                if !live["spec"]["template"].is_object() {
                    bail!(
                        "{} {:?}: restarting is not supported",
                        object.kind.plural,
                        object.name
                    );
                }
                let now = jiff::Timestamp::now()
                    .strftime("%Y-%m-%dT%H:%M:%SZ")
                    .to_string();
                let annotations = json!({"kubectl.kubernetes.io/restartedAt": now});
                let patch =
                    json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
                writing()
                    .patch(session, &object.path(), STRATEGIC, &patch)
                    .await?;
                println!("{} restarted", object.title());
            }
        }
        Args::Pause { resources } => pause(session, &resources, true).await?,
        Args::Resume { resources } => pause(session, &resources, false).await?,
    }
    Ok(())
}

async fn pause(session: &Session, resources: &[String], paused: bool) -> Result<()> {
    let word = if paused { "paused" } else { "resumed" };
    for object in chosen(session, resources).await? {
        let live = session.get(&object.path()).await?;
        if (live["spec"]["paused"] == true) == paused {
            let state = if paused { "paused" } else { "not paused" };
            bail!(
                "{} {:?} is already {state}",
                object.kind.type_name(),
                object.name
            );
        }
        let value = if paused { json!(true) } else { Value::Null };
        writing()
            .patch(
                session,
                &object.path(),
                MERGE,
                &json!({"spec": {"paused": value}}),
            )
            .await?;
        println!("{} {word}", object.title());
    }
    Ok(())
}

/// How far a rollout is: words for it, and whether it is finished.
fn progress(kind: &str, live: &Value) -> Result<(String, bool)> {
    let name = live["metadata"]["name"].as_str().unwrap_or_default();
    let number = |pointer: &str| live.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let waiting = |what: String| (format!("Waiting for {what}"), false);
    if number("/metadata/generation") > number("/status/observedGeneration") {
        return Ok(waiting(format!(
            "{} spec update to be observed...",
            spelled(kind)
        )));
    }
    Ok(match kind {
        "Deployment" => {
            let failed =
                |c: &Value| c["type"] == "Progressing" && c["reason"] == "ProgressDeadlineExceeded";
            if live["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(failed)
            {
                bail!("deployment {name:?} exceeded its progress deadline");
            }
            let wanted = live["spec"]["replicas"].as_i64().unwrap_or(1);
            let (updated, all, available) = (
                number("/status/updatedReplicas"),
                number("/status/replicas"),
                number("/status/availableReplicas"),
            );
            let rollout = format!("deployment {name:?} rollout to finish:");
            if updated < wanted {
                waiting(format!(
                    "{rollout} {updated} out of {wanted} new replicas have been updated..."
                ))
            } else if all > updated {
                waiting(format!(
                    "{rollout} {} old replicas are pending termination...",
                    all - updated
                ))
            } else if available < updated {
                waiting(format!(
                    "{rollout} {available} of {updated} updated replicas are available..."
                ))
            } else {
                (format!("deployment {name:?} successfully rolled out"), true)
            }
        }
        "DaemonSet" => {
            let wanted = number("/status/desiredNumberScheduled");
            let (updated, available) = (
                number("/status/updatedNumberScheduled"),
                number("/status/numberAvailable"),
            );
            let rollout = format!("daemon set {name:?} rollout to finish:");
            if updated < wanted {
                waiting(format!(
                    "{rollout} {updated} out of {wanted} new pods have been updated..."
                ))
            } else if available < wanted {
                waiting(format!(
                    "{rollout} {available} of {wanted} updated pods are available..."
                ))
            } else {
                (format!("daemon set {name:?} successfully rolled out"), true)
            }
        }
        "StatefulSet" => {
            let wanted = live["spec"]["replicas"].as_i64().unwrap_or(1);
            let (ready, updated) = (
                number("/status/readyReplicas"),
                number("/status/updatedReplicas"),
            );
            let partition = number("/spec/updateStrategy/rollingUpdate/partition");
            if ready < wanted {
                waiting(format!("{} pods to be ready...", wanted - ready))
            } else if updated < wanted - partition {
                waiting(format!(
                    "partitioned roll out to finish: {updated} out of {} new pods have been updated...",
                    wanted - partition
                ))
            } else if live["status"]["updateRevision"] != live["status"]["currentRevision"]
                && partition == 0
            {
                waiting(format!(
                    "statefulset rolling update to complete {updated} pods at revision {}...",
                    live["status"]["updateRevision"]
                        .as_str()
                        .unwrap_or_default()
                ))
            } else {
                (
                    format!(
                        "statefulset rolling update complete {ready} pods at revision {}...",
                        live["status"]["currentRevision"]
                            .as_str()
                            .unwrap_or_default()
                    ),
                    true,
                )
            }
        }
        other => bail!("no status viewer has been implemented for {other:?}"),
    })
}

fn spelled(kind: &str) -> &'static str {
    match kind {
        "DaemonSet" => "daemon set",
        "StatefulSet" => "statefulset",
        _ => "deployment",
    }
}

async fn status(session: &Session, object: &Object, watch: bool) -> Result<()> {
    let live = session.get(&object.path()).await?;
    let (mut last, mut failure) = (String::new(), None);
    let mut look = |live: &Value| match progress(&object.kind.kind, live) {
        Ok((text, done)) => {
            if text != last {
                println!("{text}");
                last = text;
            }
            done
        }
        Err(error) => {
            failure = Some(error);
            true
        }
    };
    if !look(&live) && watch {
        follow(session, object, &mut look).await?;
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

const REVISION: &str = "deployment.kubernetes.io/revision";

/// Revisions with their pod templates and causes, the oldest first.
async fn revisions(
    session: &Session,
    object: &Object,
    live: &Value,
) -> Result<Vec<(i64, Value, String)>> {
    let deployment = object.kind.kind == "Deployment";
    let store = session
        .kind(if deployment {
            "replicasets.apps"
        } else {
            "controllerrevisions.apps"
        })
        .await?;
    let query = format!("&labelSelector={}", escape(&target::selector_of(live)?));
    let list = session
        .list(
            &store.path(object.namespace.as_deref()),
            &query,
            "application/json",
        )
        .await?;
    let owned = |item: &&Value| {
        item["metadata"]["ownerReferences"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|o| o["uid"] == live["metadata"]["uid"])
    };
    let mut found: Vec<(i64, Value, String)> = Vec::new();
    for item in list["items"].as_array().into_iter().flatten().filter(owned) {
        let annotations = &item["metadata"]["annotations"];
        let cause = annotations["kubernetes.io/change-cause"]
            .as_str()
            .unwrap_or("<none>")
            .to_owned();
        let (revision, template) = match deployment {
            true => (
                annotations[REVISION].as_str().and_then(|r| r.parse().ok()),
                item["spec"]["template"].clone(),
            ),
            false => (
                item["revision"].as_i64(),
                item["data"]["spec"]["template"].clone(),
            ),
        };
        found.extend(revision.map(|revision| (revision, template, cause)));
    }
    found.sort_by_key(|(revision, ..)| *revision);
    Ok(found)
}

async fn history(session: &Session, object: &Object, wanted: i64) -> Result<()> {
    let live = session.get(&object.path()).await?;
    let all = revisions(session, object, &live).await?;
    if wanted != 0 {
        let Some((_, template, _)) = all.iter().find(|(revision, ..)| *revision == wanted) else {
            bail!("unable to find the specified revision");
        };
        println!("{} with revision #{wanted}\nPod Template:", object.title());
        for line in super::output::yaml(template)?.lines() {
            println!("  {line}");
        }
        return Ok(());
    }
    println!("{} ", object.title());
    let mut rows = vec![vec!["REVISION".to_owned(), "CHANGE-CAUSE".to_owned()]];
    rows.extend(
        all.into_iter()
            .map(|(revision, _, cause)| vec![revision.to_string(), cause]),
    );
    println!("{}", super::output::align(&rows));
    Ok(())
}

async fn undo(session: &Session, object: &Object, wanted: i64) -> Result<()> {
    let live = session.get(&object.path()).await?;
    if live["spec"]["paused"] == true {
        bail!(
            "you cannot rollback a paused {}; resume it first with 'skiff rollout resume' and try again",
            object.kind.singular
        );
    }
    let all = revisions(session, object, &live).await?;
    let found = match wanted {
        0 => all.len().checked_sub(2).and_then(|before| all.get(before)),
        wanted => all.iter().find(|(revision, ..)| *revision == wanted),
    };
    let Some((revision, template, _)) = found else {
        match wanted {
            0 => bail!(
                "no rollout history found for {} {:?}",
                object.kind.singular,
                object.name
            ),
            wanted => bail!("unable to find specified revision {wanted} in history"),
        }
    };
    let mut template = template.clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove("pod-template-hash");
    }
    if same_template(&template, &live["spec"]["template"]) {
        println!(
            "{} skipped rollback (current template already matches revision {revision})",
            object.title()
        );
        return Ok(());
    }
    let patch = json!([{"op": "replace", "path": "/spec/template", "value": template}]);
    writing()
        .patch(
            session,
            &object.path(),
            "application/json-patch+json",
            &patch,
        )
        .await?;
    println!("{} rolled back", object.title());
    Ok(())
}

fn same_template(a: &Value, b: &Value) -> bool {
    let bare = |template: &Value| {
        let mut template = template.clone();
        if let Some(meta) = template["metadata"].as_object_mut() {
            meta.remove("creationTimestamp");
        }
        template
    };
    bare(a) == bare(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deployments_on_their_way() {
        let live = |updated: i64, all: i64, available: i64| {
            json!({
                "metadata": {"name": "web", "generation": 2}, "spec": {"replicas": 3},
                "status": {"observedGeneration": 2, "updatedReplicas": updated, "replicas": all, "availableReplicas": available},
            })
        };
        for (live, expected) in [
            (
                live(1, 4, 3),
                "Waiting for deployment \"web\" rollout to finish: 1 out of 3 new replicas have been updated...",
            ),
            (
                live(3, 4, 3),
                "Waiting for deployment \"web\" rollout to finish: 1 old replicas are pending termination...",
            ),
            (
                live(3, 3, 2),
                "Waiting for deployment \"web\" rollout to finish: 2 of 3 updated replicas are available...",
            ),
            (live(3, 3, 3), "deployment \"web\" successfully rolled out"),
        ] {
            let (text, done) = progress("Deployment", &live).unwrap();
            assert_eq!(
                (text.as_str(), done),
                (expected, expected.ends_with("rolled out"))
            );
        }
        let mut stuck = live(1, 4, 3);
        stuck["status"]["conditions"] =
            json!([{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]);
        assert!(
            progress("Deployment", &stuck)
                .unwrap_err()
                .to_string()
                .contains("exceeded its progress deadline")
        );
        stuck["metadata"]["generation"] = 3.into();
        assert!(
            progress("Deployment", &stuck)
                .unwrap()
                .0
                .contains("to be observed")
        );
    }
}
