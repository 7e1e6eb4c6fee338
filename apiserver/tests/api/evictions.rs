//! Evictions: what a budget allows, and what a pod says of its end.

use crate::common::{Api, until};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1";
const MERGE: &str = "merge";

/// So that pods may be created.
async fn default_account(api: &Api) {
    let account = json!({"metadata": {"name": "default"}});
    api.post("/api/v1/namespaces/default/serviceaccounts", &account)
        .await
        .ok();
}

/// A pod that runs on a node, so that it does not go at once.
async fn running(api: &Api, name: &str) {
    let pod = json!({"metadata": {"name": name, "labels": {"app": "a"}},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    api.post(PODS, &pod).await.ok();
    let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    let path = format!("{PODS}/{name}/status");
    api.patch(&path, MERGE, &status).await.ok();
}

fn eviction(name: &str, options: Value) -> Value {
    json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}, "deleteOptions": options})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_is_asked_and_the_pod_says_why_it_goes() {
    let api = Api::start().await;
    default_account(&api).await;
    for name in ["a", "b"] {
        running(&api, name).await;
    }
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "a"}}}});
    api.post(BUDGETS, &budget).await.ok();
    let settle = async |allowed: u32| {
        let status = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": allowed,
            "currentHealthy": 2, "desiredHealthy": 2 - allowed, "expectedPods": 2}});
        let path = format!("{BUDGETS}/b/status");
        api.patch(&path, MERGE, &status).await.ok();
    };
    let evict = async |name: &str, options: Value| {
        let path = format!("{PODS}/{name}/eviction");
        api.post(&path, &eviction(name, options)).await
    };
    settle(0).await;
    let refused = evict("a", json!({})).await;
    let why = refused.refused(429, "TooManyRequests").to_owned();
    assert!(why.contains("would violate"), "{why}");
    settle(1).await;
    let tried = evict("a", json!({"dryRun": ["All"]})).await;
    assert_eq!(tried.code, 201, "{}", tried.body);
    let other = evict("a", json!({"preconditions": {"uid": "other"}})).await;
    other.refused(409, "Conflict");
    let untouched = api.get(&format!("{PODS}/a")).await.ok();
    assert!(untouched["metadata"]["deletionTimestamp"].is_null());
    let conditions = untouched["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().all(|c| c["type"] != "DisruptionTarget"));
    settle(1).await;
    assert_eq!(evict("a", json!({})).await.code, 201);
    let going = api.get(&format!("{PODS}/a")).await.ok();
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    let conditions = going["status"]["conditions"].as_array().unwrap();
    let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget");
    let target = target.unwrap_or_else(|| panic!("{going}"));
    assert_eq!(target["reason"], "EvictionByEvictionAPI");
    let spent = api.get(&format!("{BUDGETS}/b")).await.ok();
    assert_eq!(spent["status"]["disruptionsAllowed"], 0);
    assert!(spent["status"]["disruptedPods"]["a"].is_string());
    // Whoever is going already costs nothing.
    assert_eq!(evict("a", json!({})).await.code, 201);
    evict("b", json!({})).await.refused(429, "TooManyRequests");
    let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    let path = format!("{PODS}/b/status");
    api.patch(&path, MERGE, &unready).await.ok();
    let healthy = json!({"status": {"currentHealthy": 1, "desiredHealthy": 1}});
    let path = format!("{BUDGETS}/b/status");
    api.patch(&path, MERGE, &healthy).await.ok();
    assert_eq!(evict("b", json!({})).await.code, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_eviction_is_admitted_not_the_delete() {
    let api = Api::start().await;
    default_account(&api).await;
    let rules = json!([{"operations": ["DELETE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]);
    let policy = json!({"metadata": {"name": "keep"},
        "spec": {"matchConstraints": {"resourceRules": rules}, "validations": [{"expression": "false"}]}});
    api.post(&format!("{POLICIES}/validatingadmissionpolicies"), &policy)
        .await
        .ok();
    let binding = json!({"metadata": {"name": "keep"}, "spec": {"policyName": "keep", "validationActions": ["Deny"]}});
    api.post(
        &format!("{POLICIES}/validatingadmissionpolicybindings"),
        &binding,
    )
    .await
    .ok();
    running(&api, "a").await;
    let tried = format!("{PODS}/a?dryRun=All");
    until("the policy is known", || async {
        (api.delete(&tried).await.code == 422).then_some(())
    })
    .await;
    let path = format!("{PODS}/a/eviction");
    let evicted = api.post(&path, &eviction("a", json!({}))).await;
    assert_eq!(evicted.code, 201, "{}", evicted.body);
    let going = api.get(&format!("{PODS}/a")).await.ok();
    assert!(going["metadata"]["deletionTimestamp"].is_string());
}
