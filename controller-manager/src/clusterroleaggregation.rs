//! Puts together the rules of ClusterRoles that are made of others.

use std::sync::Arc;

use client::{CancellationToken, Next, WorkQueue};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::ResourceExt;
use serde_json::json;

use crate::frame::{Context, Result, work};
use crate::meta;

/// The rules that an aggregated role should have; `None` if it has them, or is not aggregated.
pub fn plan(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let aggregation = role.aggregation_rule.as_ref()?;
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in aggregation.cluster_role_selectors.iter().flatten() {
        let selector = meta::selector(selector);
        // The copy is ordered by name.
        let parts = all.iter().filter(|part| {
            part.name_any() != role.name_any() && meta::matches(&selector, part.as_ref())
        });
        for rule in parts.flat_map(|part| part.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    (role.rules.as_deref().unwrap_or_default() != rules).then_some(rules)
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let roles = &context.informers().cluster_roles().informer;
    let (q, copy) = (queue.clone(), roles.clone());
    roles.on_change(move |_, _| {
        // Any role may be a part of any aggregated one, through others too. Until the first list is complete,
        // parts would be missing.
        if copy.has_synced() {
            enqueue(&q, &copy.list());
        }
    });
    roles.synced().await;
    enqueue(&queue, &roles.list());
    work(&queue, 1, &token, |name| reconcile(&context, name)).await;
}

fn enqueue(queue: &WorkQueue<String>, roles: &[Arc<ClusterRole>]) {
    let aggregated = roles.iter().filter(|r| r.aggregation_rule.is_some());
    aggregated.for_each(|r| queue.add(r.name_any()));
}

async fn reconcile(context: &Context, name: String) -> Result<Next> {
    let roles = context.informers().cluster_roles();
    let Some(role) = roles.informer.get(&name) else {
        return Ok(Next::Done);
    };
    if let Some(rules) = plan(&role, &roles.informer.list()) {
        roles.patch_exact(&role, json!({"rules": rules})).await?;
    }
    Ok(Next::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn rules_are_gathered_once_each() {
        let role = |name: &str, label: &str, more: Value| -> Arc<ClusterRole> {
            let mut value = json!({"metadata": {"name": name, "labels": {"to": label}}});
            more.as_object()
                .unwrap()
                .iter()
                .for_each(|(k, v)| value[k] = v.clone());
            Arc::new(serde_json::from_value(value).unwrap())
        };
        let rule = |verb: &str| json!({"verbs": [verb], "apiGroups": [""], "resources": ["pods"]});
        let aggregation = json!({"clusterRoleSelectors": [{"matchLabels": {"to": "view"}}]});
        let whole = |rules: Value| {
            role(
                "whole",
                "view",
                json!({"aggregationRule": aggregation, "rules": rules}),
            )
        };
        let all = [
            role("a", "view", json!({"rules": [rule("get"), rule("list")]})),
            role("b", "view", json!({"rules": [rule("list"), rule("watch")]})),
            role("c", "edit", json!({"rules": [rule("delete")]})),
            whole(json!([])),
        ];
        let verbs =
            |rules: Vec<PolicyRule>| rules.into_iter().flat_map(|r| r.verbs).collect::<Vec<_>>();
        assert_eq!(
            plan(&all[3], &all).map(verbs),
            Some(vec!["get".into(), "list".into(), "watch".into()])
        );
        let done = whole(json!([rule("get"), rule("list"), rule("watch")]));
        assert_eq!(plan(&done, &all), None);
        assert_eq!(plan(&all[0], &all), None);
    }
}
