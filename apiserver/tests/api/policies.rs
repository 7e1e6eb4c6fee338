//! What policies say beside yes and no: type checks in their status, and annotations of audit events.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Api, until};
use crate::custom_resources::{define, definition};

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn policy(group: &str, resource: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["matchConstraints"] = json!({"resourceRules": [
        {"operations": ["*"], "apiGroups": [group], "apiVersions": ["v1"], "resources": [resource]}]});
    json!({"metadata": {"name": "p"}, "spec": spec})
}

/// The type check of the policy as it is now.
async fn checked(api: &Api) -> Value {
    until("the policy is checked", || async {
        let policy = api.get(&format!("{POLICIES}/p")).await.ok();
        let seen = policy["status"]["observedGeneration"] == policy["metadata"]["generation"];
        seen.then(|| policy["status"]["typeChecking"].clone())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn expressions_are_checked_against_types() {
    let api = Api::start().await;
    define(&api, &definition("widgets", "Widget")).await;
    let good = json!({"validations": [{"expression": "object.spec.size > 1"}]});
    let good = policy("example.com", "widgets", good);
    api.post(POLICIES, &good).await.ok();
    assert_eq!(checked(&api).await, json!({}));
    // The next generation is looked at too.
    let mut bad = api.get(&format!("{POLICIES}/p")).await.ok();
    bad["spec"]["validations"] = json!([
        {"expression": "object.spec.size > '1'"},
        {"expression": "object.spec.maxRetries < 10 && object.metadata.name != ''"},
    ]);
    api.put(&format!("{POLICIES}/p"), &bad).await.ok();
    let found = checked(&api).await;
    let warnings = found["expressionWarnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 2, "{found}");
    for (index, wanted) in [
        "found no matching overload for '_>_' applied to '(int, string)'",
        "undefined field 'maxRetries'",
    ]
    .into_iter()
    .enumerate()
    {
        let field = format!("spec.validations[{index}].expression");
        assert_eq!(warnings[index]["fieldRef"], field);
        let warning = warnings[index]["warning"].as_str().unwrap();
        assert!(
            warning.starts_with("example.com/v1, Kind=Widget: "),
            "{warning}"
        );
        assert!(warning.contains(wanted), "{warning}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_annotate_audit_events() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let rules = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- level: Metadata\n  resources: [{group: '', resources: [configmaps]}]\n- level: None\n";
    std::fs::write(path("policy.yaml"), rules).unwrap();
    let log = path("audit.log");
    let api = Api::start_with(&[
        "--audit-policy-file",
        &path("policy.yaml"),
        "--audit-log-path",
        &log,
    ])
    .await;
    let spec = json!({
        "matchConditions": [{"name": "ours", "expression": "object != null && object.metadata.name.startsWith('test-')"}],
        "validations": [{"expression": "true"}, {"expression": "object.metadata.name != 'test-bad'", "message": "bad name"}],
        "auditAnnotations": [
            {"key": "name", "valueExpression": "'is ' + object.metadata.name"},
            {"key": "none", "valueExpression": "null"},
        ],
    });
    api.post(POLICIES, &policy("", "configmaps", spec))
        .await
        .ok();
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Audit", "Warn"]}});
    api.post(BINDINGS, &binding).await.ok();
    let bad = json!({"metadata": {"name": "test-bad"}});
    until("the policy is in force", || async {
        let answer = api.post(MAPS, &bad).await;
        let warned = answer.headers.contains_key("warning");
        if !warned {
            api.delete(&format!("{MAPS}/test-bad")).await;
        }
        warned.then_some(())
    })
    .await;
    let annotations = until("the event is written", || async {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let mut events = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let annotated = |event: &Value| !event["annotations"]["p/name"].is_null();
        events
            .find(annotated)
            .map(|event| event["annotations"].clone())
    })
    .await;
    assert_eq!(annotations["p/name"], "is test-bad");
    assert!(annotations["p/none"].is_null());
    let failure = &annotations["validation.policy.admission.k8s.io/validation_failure"];
    let failure: Value = serde_json::from_str(failure.as_str().unwrap()).unwrap();
    let wanted = json!([{"message": "bad name", "policy": "p", "binding": "b", "expressionIndex": 1,
        "validationActions": ["Audit", "Warn"]}]);
    assert_eq!(failure, wanted);
}

/// Managers are kept beside a new object unless somebody may look at them.
#[tokio::test(flavor = "multi_thread")]
async fn policies_see_the_managers_of_a_new_object() {
    let api = Api::start().await;
    let map = |name: &str| json!({"metadata": {"name": name}, "data": {"a": "b"}});
    let created = api.post(MAPS, &map("before")).await.ok();
    let owned = |object: &Value| object["metadata"]["managedFields"][0]["fieldsV1"].clone();
    let expected = json!({"f:data": {".": {}, "f:a": {}}});
    assert_eq!(owned(&created), expected);
    let rule = "!has(object.metadata.managedFields) || object.metadata.managedFields.size() != 1";
    let spec = json!({"validations": [{"expression": rule, "message": "seen"}]});
    api.post(POLICIES, &policy("", "configmaps", spec))
        .await
        .ok();
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Warn"]}});
    api.post(BINDINGS, &binding).await.ok();
    let warned = until("the policy is in force", || async {
        let answer = api.post(&format!("{MAPS}?dryRun=All"), &map("after")).await;
        let warned = answer.headers.contains_key("warning");
        warned.then_some(answer)
    })
    .await;
    assert_eq!(owned(&warned.ok()), expected);
}
