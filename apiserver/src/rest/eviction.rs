//! Eviction: a delete that asks the pod's disruption budget first.

use std::sync::Arc;

use apimachinery::object;
use apimachinery::selector::LabelSelector;
use apimachinery::status::{Result, Status};
use serde_json::{Value, json};

use super::Exchange;
use crate::cache::Selection;
use crate::query::Query;
use crate::registry::delete::DeleteOptions;
use crate::registry::table::Served;
use crate::registry::{Call, Target};

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
    let pod = registry.read(target, None).await?.value();
    if needs_budget(&pod)
        && let Some(budget) = budget_of(exchange, &pod).await?
    {
        spend(exchange, &budget, &pod, options.dry_run).await?;
    }
    registry.delete(target, &mut call, &options).await.map(drop)
}

/// Pods that do not run, or are going anyway, disturb nobody.
fn needs_budget(pod: &Value) -> bool {
    let ended = matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed" | "Pending")
    );
    !ended && object::deletion_timestamp(pod).is_none()
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

/// Takes one disruption from the budget, or says 429.
async fn spend(exchange: &Exchange, budget: &Value, pod: &Value, dry_run: bool) -> Result<()> {
    let (namespace, name) = (
        object::namespace(budget).to_owned(),
        object::name(budget).to_owned(),
    );
    let take = |budget: &mut Value| {
        let status = &mut budget["status"];
        let refused = |message: String| {
            Err(Status::too_many_requests(
                "Cannot evict pod as it would violate the pod's disruption budget.",
                0,
            )
            .with_cause("DisruptionBudget", message, ""))
        };
        let allowed = status["disruptionsAllowed"].as_i64().unwrap_or(0);
        if status["observedGeneration"].as_i64().unwrap_or(0)
            < budget["metadata"]["generation"].as_i64().unwrap_or(0)
        {
            return Err(Status::too_many_requests(
                "Cannot evict pod as it would violate the pod's disruption budget.",
                10,
            )
            .with_cause(
                "DisruptionBudget",
                format!("The disruption budget {name} is still being processed by the server."),
                "",
            ));
        }
        let status = &mut budget["status"];
        if allowed <= 0 {
            let (needed, healthy) = (
                status["desiredHealthy"].as_i64(),
                status["currentHealthy"].as_i64(),
            );
            return refused(format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                needed.unwrap_or(0),
                healthy.unwrap_or(0)
            ));
        }
        status["disruptionsAllowed"] = (allowed - 1).into();
        status["disruptedPods"][object::name(pod)] =
            apimachinery::time::format(jiff::Timestamp::now()).into();
        Ok(())
    };
    if dry_run {
        return take(&mut budget.clone());
    }
    let registry = &exchange.server.registry;
    registry
        .update_status_as_server("policy", "poddisruptionbudgets", (&namespace, &name), take)
        .await
        .map(drop)
}
