//! Eviction: a delete that asks the pod's disruption budget first.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::object;
use apimachinery::resource::GroupResource;
use apimachinery::selector::LabelSelector;
use apimachinery::status::{Result, Status};
use serde_json::{Map, Value, json};

use super::Exchange;
use crate::cache::Selection;
use crate::query::Query;
use crate::registry::delete::DeleteOptions;
use crate::registry::table::Served;
use crate::registry::{Call, Registry, Target};

/// How often a pod that changes meanwhile is looked at again, and after which pause.
const ATTEMPTS: usize = 20;
const PAUSE: Duration = Duration::from_millis(500);
/// How many evicted pods a budget may list whose end its controller has not seen.
const MOST_DISRUPTED: usize = 2000;

/// Evicts the pod of the URL.
pub async fn evict(exchange: &Exchange, served: &Arc<Served>, mut eviction: Value) -> Result<()> {
    let (registry, info) = (&exchange.server.registry, &exchange.info);
    let target = Target::new(served, &info.namespace, &info.name);
    let sent = eviction.get("deleteOptions").cloned().unwrap_or(json!({}));
    let mut options = DeleteOptions::read(Some(&sent), &Query::default())?;
    options.dry_run |= exchange.query.all("dryRun").any(|value| value == "All");
    let mut call = Call {
        user: &exchange.user,
        options: &sent,
        dry_run: options.dry_run,
        manager: exchange.manager().into(),
        warnings: Vec::new(),
    };
    registry
        .admit_below(target.subresource("eviction"), &mut call, &mut eviction)
        .await?;
    let mut attempt = 1;
    let pod = loop {
        let pod = registry.read(target, None).await?.value();
        if needs_budget(&pod) {
            break pod;
        }
        // A pod that may start to run meanwhile has to be looked at again.
        let starts =
            pod["status"]["phase"] == "Pending" && object::deletion_timestamp(&pod).is_none();
        let as_seen = as_it_was(&options, &pod, starts);
        match disrupt(registry, target, as_seen).await {
            Err(error)
                if error.code == 409
                    && options.resource_version.is_none()
                    && attempt < ATTEMPTS =>
            {
                attempt += 1;
                tokio::time::sleep(PAUSE).await;
            }
            result => return result,
        }
    };
    let budget = budget_of(exchange, &pod).await?;
    let free = budget.as_ref().is_some_and(|budget| is_free(budget, &pod));
    if let Some(budget) = budget.as_ref().filter(|_| !free) {
        spend(exchange, budget, &pod, options.dry_run).await?;
    }
    // It must not have become ready since it was found not to be.
    match disrupt(registry, target, as_it_was(&options, &pod, free)).await {
        Err(error) if error.code == 409 && free && options.resource_version.is_none() => {
            Err(unsettled(&budget.unwrap_or_default()))
        }
        result => result,
    }
}

/// The options, so that they hold for the pod as it has been seen only, if that is asked for.
fn as_it_was(options: &DeleteOptions, pod: &Value, asked: bool) -> DeleteOptions {
    let seen = asked.then(|| object::resource_version(pod).to_owned());
    DeleteOptions {
        resource_version: options.resource_version.clone().or(seen),
        ..options.clone()
    }
}

/// Notes in the pod why it goes, and deletes it.
async fn disrupt(
    registry: &Registry,
    target: Target<'_>,
    mut options: DeleteOptions,
) -> Result<()> {
    if !options.dry_run {
        let mark = |pod: &mut Value| {
            let (uid, version) = (object::uid(pod), object::resource_version(pod));
            let stale = |what: &str, wanted: &str, found: &str, why: &str| {
                let resource = target.group_resource();
                let message = format!(
                    "the {what} in the precondition ({wanted}) does not match the {what} in record ({found}). The object might have been {why}"
                );
                Err(Status::conflict(&resource, target.name, message))
            };
            match (&options.uid, &options.resource_version) {
                (Some(wanted), _) if wanted != uid => {
                    stale("UID", wanted, uid, "deleted and then recreated")
                }
                (_, Some(wanted)) if wanted != version => {
                    stale("ResourceVersion", wanted, version, "modified")
                }
                _ => {
                    object::set_condition(
                        pod,
                        json!({"type": "DisruptionTarget", "status": "True", "lastTransitionTime": now(),
                            "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"}),
                    );
                    Ok(())
                }
            }
        };
        let key = (target.namespace, target.name);
        let marked = registry
            .update_status_as_server("", "pods", key, mark)
            .await?;
        if let Some(version) = &mut options.resource_version {
            *version = marked.revision.to_string();
        }
    }
    registry.delete_admitted(target, &options).await.map(drop)
}

fn now() -> String {
    apimachinery::time::format(jiff::Timestamp::now())
}

/// Pods that do not run, or are going anyway, disturb nobody.
fn needs_budget(pod: &Value) -> bool {
    let ended = matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed" | "Pending")
    );
    !ended && object::deletion_timestamp(pod).is_none()
}

/// Whether a pod that is not ready may go without being counted: always, or while the budget's pods are well.
fn is_free(budget: &Value, pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    let number = |name: &str| budget["status"][name].as_i64().unwrap_or(0);
    let (healthy, desired) = (number("currentHealthy"), number("desiredHealthy"));
    let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
    !ready && (always || healthy >= desired && desired > 0)
}

async fn budget_of(exchange: &Exchange, pod: &Value) -> Result<Option<Value>> {
    let selection = Selection::namespaced(&exchange.info.namespace);
    let budgets = exchange
        .server
        .registry
        .list("policy", "poddisruptionbudgets", &selection)
        .await?;
    let mut found = budgets
        .iter()
        .map(|budget| budget.value())
        .filter(|budget| {
            LabelSelector::from_value(&budget["spec"]["selector"])
                .is_ok_and(|selector| selector.matches_object(pod))
        });
    let first = found.next();
    match found.next() {
        Some(_) => Err(Status::internal(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        )),
        None => Ok(first),
    }
}

fn refused(seconds: u32, message: String) -> Status {
    let why = "Cannot evict pod as it would violate the pod's disruption budget.";
    Status::too_many_requests(why, seconds).with_cause("DisruptionBudget", message, "")
}

fn unsettled(budget: &Value) -> Status {
    let name = object::name(budget);
    refused(
        10,
        format!("The disruption budget {name} is still being processed by the server."),
    )
}

/// Takes one disruption from the budget, or says 429.
async fn spend(exchange: &Exchange, budget: &Value, pod: &Value, dry_run: bool) -> Result<()> {
    let take = |budget: &mut Value| take(budget, object::name(pod));
    if dry_run {
        return take(&mut budget.clone());
    }
    let registry = &exchange.server.registry;
    let key = (object::namespace(budget), object::name(budget));
    registry
        .update_status_as_server("policy", "poddisruptionbudgets", key, take)
        .await
        .map(drop)
}

fn take(budget: &mut Value, pod: &str) -> Result<()> {
    let status = &budget["status"];
    let number = |name: &str| status[name].as_i64().unwrap_or(0);
    let observed = number("observedGeneration");
    if observed < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
        return Err(unsettled(budget));
    }
    let forbidden = |why: &str| {
        let resource = GroupResource::new("policy", "poddisruptionbudget");
        Err(Status::forbidden(&resource, object::name(budget), why))
    };
    let allowed = number("disruptionsAllowed");
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    let disrupted = status["disruptedPods"].as_object().map_or(0, Map::len);
    if disrupted > MOST_DISRUPTED {
        return forbidden(
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        );
    }
    if allowed == 0 {
        return Err(refused(0, why_none(budget)));
    }
    let status = &mut budget["status"];
    status["disruptionsAllowed"] = (allowed - 1).into();
    status["disruptedPods"][pod] = now().into();
    if allowed == 1 {
        let none = json!({"type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods",
            "message": "", "observedGeneration": observed, "lastTransitionTime": now()});
        object::set_condition(budget, none);
    }
    Ok(())
}

/// Why a budget allows no disruption.
fn why_none(budget: &Value) -> String {
    let (name, status) = (object::name(budget), &budget["status"]);
    let number = |name: &str| status[name].as_i64().unwrap_or(0);
    let (desired, healthy) = (number("desiredHealthy"), number("currentHealthy"));
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let condition = conditions
        .filter(|condition| condition["type"] == "DisruptionAllowed")
        .filter(|condition| condition["status"] == "False")
        .map(|condition| {
            let text = |name: &str| condition[name].as_str().unwrap_or_default();
            (text("reason"), text("message"))
        })
        .find(|(_, message)| !message.is_empty());
    match condition {
        // What it counts is not to be trusted then.
        Some(("SyncFailed", message)) => format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {message}"
        ),
        _ if healthy <= desired => format!(
            "The disruption budget {name} needs {desired} healthy pods and has {healthy} currently"
        ),
        Some((reason, message)) => format!(
            "The disruption budget {name} does not allow evicting pods currently ({reason}): {message}"
        ),
        None => format!("The disruption budget {name} does not allow evicting pods currently"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_are_not_ready_may_be_free() {
        let pod =
            |ready: &str| json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let budget = |policy: Value, healthy: i64, desired: i64| {
            json!({"spec": {"unhealthyPodEvictionPolicy": policy},
            "status": {"currentHealthy": healthy, "desiredHealthy": desired}})
        };
        for (budget, ready, expected) in [
            (budget(Value::Null, 2, 2), "False", true),
            (budget(Value::Null, 1, 2), "False", false),
            (budget(Value::Null, 0, 0), "False", false),
            (budget(Value::Null, 2, 2), "True", false),
            (budget(json!("AlwaysAllow"), 0, 2), "False", true),
            (budget(json!("AlwaysAllow"), 0, 2), "True", false),
            (budget(json!("IfHealthyBudget"), 2, 2), "False", true),
        ] {
            assert_eq!(is_free(&budget, &pod(ready)), expected, "{budget} {ready}");
        }
    }

    #[test]
    fn a_budget_says_why_not() {
        let budget =
            |status: Value| json!({"metadata": {"name": "b", "generation": 2}, "status": status});
        let none = |reason: &str, message: &str| json!([{"type": "DisruptionAllowed", "status": "False", "reason": reason, "message": message}]);
        for (status, code, why) in [
            (
                json!({"observedGeneration": 1, "disruptionsAllowed": 1}),
                429,
                "still being processed",
            ),
            (
                json!({"observedGeneration": 2, "disruptionsAllowed": -1}),
                403,
                "is negative",
            ),
            (
                json!({"observedGeneration": 2, "currentHealthy": 1, "desiredHealthy": 2}),
                429,
                "needs 2 healthy pods and has 1 currently",
            ),
            (
                json!({"observedGeneration": 2, "conditions": none("SyncFailed", "no scale")}),
                429,
                "failed sync: no scale",
            ),
            (
                json!({"observedGeneration": 2, "currentHealthy": 3, "desiredHealthy": 2, "conditions": none("Other", "so")}),
                429,
                "currently (Other): so",
            ),
        ] {
            let error = take(&mut budget(status), "p").unwrap_err();
            let cause = error.details.as_ref().map(|details| format!("{details:?}"));
            let text = format!("{} {}", error.message, cause.unwrap_or_default());
            assert!(error.code == code && text.contains(why), "{text}");
        }
        let mut last = budget(json!({"observedGeneration": 2, "disruptionsAllowed": 1}));
        take(&mut last, "p").unwrap();
        let status = &last["status"];
        assert_eq!(status["disruptionsAllowed"], 0);
        assert!(status["disruptedPods"]["p"].is_string());
        assert_eq!(status["conditions"][0]["reason"], "InsufficientPods");
    }
}
