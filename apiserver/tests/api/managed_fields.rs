//! Who owns which field, and server-side apply.

use crate::common::{Answer, Api, PATIENCE};
use http::Method;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

async fn apply(api: &Api, path: &str, query: &str, document: &Value) -> Answer {
    let media = [("content-type", "application/apply-patch+yaml")];
    let path = format!("{path}?{query}");
    api.send(Method::PATCH, &path, &media, document.to_string().into())
        .await
}

fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data})
}

fn deployment(replicas: Option<u32>) -> Value {
    let mut spec = json!({"selector": {"matchLabels": {"app": "x"}}, "template": {"metadata": {"labels": {"app": "x"}},
        "spec": {"containers": [{"name": "c", "image": "i:1"}]}}});
    if let Some(replicas) = replicas {
        spec["replicas"] = replicas.into();
    }
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec})
}

/// Manager, operation and subresource of every entry.
fn managers(object: &Value) -> Vec<(String, String, String)> {
    let entries = object["metadata"]["managedFields"].as_array();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    entries
        .into_iter()
        .flatten()
        .map(|e| {
            (
                text(&e["manager"]),
                text(&e["operation"]),
                text(&e["subresource"]),
            )
        })
        .collect()
}

fn owned<'a>(object: &'a Value, manager: &str) -> &'a Value {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    let entry = entries.iter().find(|e| e["manager"] == manager);
    &entry.unwrap_or_else(|| panic!("{manager} owns nothing"))["fieldsV1"]
}

fn owned_since<'a>(object: &'a Value, manager: &str) -> &'a Value {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    let entry = entries.iter().find(|e| e["manager"] == manager);
    &entry.unwrap_or_else(|| panic!("{manager} owns nothing"))["time"]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_is_noted() {
    let api = Api::start().await;
    let agent = [
        ("content-type", "application/json"),
        ("user-agent", "tool/v1 (x)"),
    ];
    let body = deployment(Some(1)).to_string();
    let created = api
        .send(Method::POST, DEPLOYMENTS, &agent, body.into())
        .await
        .ok();
    let entry = &created["metadata"]["managedFields"][0];
    assert_eq!(
        (
            &entry["manager"],
            &entry["apiVersion"],
            &entry["fieldsType"]
        ),
        (&json!("tool"), &json!("apps/v1"), &json!("FieldsV1"))
    );
    assert_eq!(entry["time"], created["metadata"]["creationTimestamp"]);
    let expect = json!({"f:spec": {"f:progressDeadlineSeconds": {}, "f:replicas": {}, "f:revisionHistoryLimit": {},
        "f:selector": {}, "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}}, "f:type": {}},
        "f:template": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {
            "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:imagePullPolicy": {}, "f:name": {},
                "f:resources": {}, "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {}}},
            "f:dnsPolicy": {}, "f:restartPolicy": {}, "f:schedulerName": {}, "f:securityContext": {},
            "f:terminationGracePeriodSeconds": {}}}}});
    assert_eq!(owned(&created, "tool"), &expect);

    let path = format!("{DEPLOYMENTS}/d");
    let status = json!({"status": {"replicas": 1}, "spec": {"replicas": 7}});
    api.patch(&format!("{path}/status?fieldManager=ctl"), "merge", &status)
        .await
        .ok();
    let scale = json!({"spec": {"replicas": 3}});
    api.patch(
        &format!("{path}/scale?fieldManager=scaler"),
        "merge",
        &scale,
    )
    .await
    .ok();
    let found = api.get(&path).await.ok();
    assert_eq!(
        owned(&found, "ctl"),
        &json!({"f:status": {"f:replicas": {}}})
    );
    assert_eq!(
        owned(&found, "scaler"),
        &json!({"f:spec": {"f:replicas": {}}})
    );
    assert_eq!(owned(&found, "tool")["f:spec"]["f:replicas"], Value::Null);
    let all: Vec<String> = managers(&found).into_iter().map(|m| m.2).collect();
    assert!(all.contains(&"status".into()) && all.contains(&"scale".into()));
    // A write that changes nothing leaves everything as it is.
    let same = api
        .patch(&format!("{path}/scale?fieldManager=other"), "merge", &scale)
        .await;
    assert_eq!(same.code, 200);
    assert_eq!(api.get(&path).await.ok(), found);
}

/// Writes of the same fields by the same manager, as controllers and kubelets make them all day.
#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_writes_again_keeps_its_fields() {
    let api = Api::start().await;
    let path = format!("{MAPS}/a");
    api.post(MAPS, &map(json!({"k": "0"}))).await.ok();
    let first = api.put(&path, &map(json!({"k": "1"}))).await.ok();
    let begun = std::time::Instant::now();
    // Times have whole seconds: only a write in another one differs in time alone.
    for value in 2.. {
        let data = json!({"k": value.to_string()});
        let again = api.put(&path, &map(data)).await.ok();
        assert_eq!(managers(&again), managers(&first));
        assert_eq!(owned(&again, "unknown"), owned(&first, "unknown"));
        if owned_since(&again, "unknown") != owned_since(&first, "unknown") {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "times stand still");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_may_reset_managers() {
    let api = Api::start().await;
    let path = format!("{MAPS}/a");
    for reset in [json!([]), json!([{}])] {
        api.post(MAPS, &map(json!({"k": "v"}))).await.ok();
        let patch = json!([{"op": "replace", "path": "/metadata/managedFields", "value": reset}]);
        let cleared = api.patch(&path, "json", &patch).await.ok();
        assert_eq!(cleared["metadata"]["managedFields"], Value::Null);
        let changed = api
            .patch(&path, "merge", &json!({"data": {"k": "w"}}))
            .await
            .ok();
        assert_eq!(changed["metadata"]["managedFields"], Value::Null);
        let applied = apply(&api, &path, "fieldManager=me", &map(json!({"x": "y"})))
            .await
            .ok();
        let names: Vec<String> = managers(&applied).into_iter().map(|m| m.0).collect();
        assert_eq!(names, ["me", "before-first-apply"]);
        api.delete(&path).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_creates_merges_and_removes() {
    let api = Api::start().await;
    let path = format!("{MAPS}/a");
    let dry = apply(
        &api,
        &path,
        "fieldManager=one&dryRun=All",
        &map(json!({"k": "v"})),
    )
    .await;
    assert_eq!(dry.code, 201);
    api.get(&path).await.refused(404, "NotFound");
    let created = apply(
        &api,
        &path,
        "fieldManager=one",
        &map(json!({"k": "v", "l": "w"})),
    )
    .await;
    assert_eq!(created.code, 201, "{}", created.body);
    assert_eq!(
        owned(&created.body, "one"),
        &json!({"f:data": {"f:k": {}, "f:l": {}}})
    );
    let again = apply(
        &api,
        &path,
        "fieldManager=one",
        &map(json!({"k": "v", "l": "w"})),
    )
    .await;
    assert_eq!((again.code, again.ok()), (200, created.body));
    let less = apply(&api, &path, "fieldManager=one", &map(json!({"k": "v"})))
        .await
        .ok();
    assert_eq!(less["data"], json!({"k": "v"}));
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  z: \"1\"\n";
    let media = [("content-type", "application/apply-patch+yaml")];
    let two = api
        .send(
            Method::PATCH,
            &format!("{path}?fieldManager=two"),
            &media,
            yaml.into(),
        )
        .await
        .ok();
    assert_eq!(two["data"], json!({"k": "v", "z": "1"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicts() {
    let api = Api::start().await;
    let path = format!("{MAPS}/a");
    apply(
        &api,
        &path,
        "fieldManager=one",
        &map(json!({"k": "v", "l": "w"})),
    )
    .await
    .ok();
    api.patch(
        &format!("{path}?fieldManager=up"),
        "merge",
        &json!({"data": {"l": "x"}}),
    )
    .await
    .ok();
    let wanted = map(json!({"k": "2", "l": "2"}));
    let refused = apply(&api, &path, "fieldManager=two", &wanted).await;
    assert_eq!(
        refused.refused(409, "Conflict"),
        "Apply failed with 2 conflicts: conflicts with \"one\":\n- .data.k\nconflicts with \"up\" using v1:\n- .data.l"
    );
    let causes = &refused.body["details"]["causes"];
    assert_eq!(
        causes[0],
        json!({"reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".data.k"})
    );
    let forced = apply(&api, &path, "fieldManager=two&force=true", &wanted)
        .await
        .ok();
    assert_eq!(forced["data"], json!({"k": "2", "l": "2"}));
    assert_eq!(managers(&forced).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn applies_that_are_refused() {
    let api = Api::start().await;
    let path = format!("{DEPLOYMENTS}/d");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut document = deployment(None);
        change(&mut document);
        document
    };
    let unknown = with(&|d| d["spec"]["foo"] = json!(1));
    let twice = with(&|d| {
        let containers = d["spec"]["template"]["spec"]["containers"]
            .as_array_mut()
            .unwrap();
        containers.push(containers[0].clone());
    });
    let managed = with(&|d| d["metadata"]["managedFields"] = json!([]));
    let version = with(&|d| d["apiVersion"] = json!("v1"));
    let prefix = "failed to create typed patch object (default/d; apps/v1, Kind=Deployment): ";
    let cases = [
        ("fieldManager=me", unknown, 400, format!("{prefix}.spec.foo: field not declared in schema")),
        (
            "fieldManager=me",
            twice,
            400,
            format!("{prefix}.spec.template.spec.containers: duplicate entries for key [name=\"c\"]"),
        ),
        ("fieldManager=me", managed, 400, "metadata.managedFields must be nil".into()),
        ("fieldManager=me", version, 400, "invalid object type: /v1, Kind=Deployment".into()),
        (
            "",
            deployment(None),
            422,
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch".into(),
        ),
    ];
    for (query, document, code, message) in cases {
        let answer = apply(&api, &path, query, &document).await;
        assert_eq!((answer.code, answer.message()), (code, &*message));
    }
    let forced = api
        .patch(&format!("{path}?force=true"), "merge", &json!({}))
        .await;
    assert_eq!(
        forced.refused(422, "Invalid"),
        "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch"
    );
    let nameless = with(&|d| {
        d["metadata"].as_object_mut().unwrap().remove("name");
    });
    apply(&api, &path, "fieldManager=me", &nameless)
        .await
        .refused(400, "BadRequest");
    apply(
        &api,
        &format!("{path}/status"),
        "fieldManager=me",
        &deployment(None),
    )
    .await
    .refused(404, "NotFound");
    assert_eq!(api.get(&path).await.code, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn subresources_are_applied_too() {
    let api = Api::start().await;
    let path = format!("{DEPLOYMENTS}/d");
    apply(&api, &path, "fieldManager=me", &deployment(None))
        .await
        .ok();
    let mut status = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "status": {"conditions": [{"type": "Available", "status": "True"}]}});
    let applied = apply(&api, &format!("{path}/status"), "fieldManager=me", &status)
        .await
        .ok();
    assert_eq!(applied["status"]["conditions"][0]["status"], "True");
    let own = managers(&applied);
    assert!(
        own.contains(&("me".into(), "Apply".into(), "status".into())),
        "{own:?}"
    );
    assert!(
        own.contains(&("me".into(), "Apply".into(), String::new())),
        "{own:?}"
    );
    status["status"] = json!({});
    let applied = apply(&api, &format!("{path}/status"), "fieldManager=me", &status)
        .await
        .ok();
    assert_eq!(applied["status"]["conditions"], Value::Null);
    // Scale: its replicas are the object's.
    let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": 4}});
    apply(
        &api,
        &format!("{path}/scale"),
        "fieldManager=hpa&force=true",
        &scale,
    )
    .await
    .ok();
    let found = api.get(&path).await.ok();
    assert_eq!(found["spec"]["replicas"], 4);
    let mine = deployment(Some(2));
    let refused = apply(&api, &path, "fieldManager=me", &mine).await;
    assert_eq!(
        refused.refused(409, "Conflict"),
        "Apply failed with 1 conflict: conflict with \"hpa\" with subresource \"scale\": .spec.replicas"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn managers_of_other_versions_count() {
    let api = Api::start().await;
    let scalers = |version: &str| {
        format!("/apis/autoscaling/{version}/namespaces/default/horizontalpodautoscalers/h")
    };
    let document = |version: &str, spec: Value| {
        let mut spec = spec;
        spec["scaleTargetRef"] =
            json!({"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"});
        json!({"apiVersion": format!("autoscaling/{version}"), "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h"}, "spec": spec})
    };
    let first = document(
        "v1",
        json!({"maxReplicas": 3, "minReplicas": 2, "targetCPUUtilizationPercentage": 50}),
    );
    apply(&api, &scalers("v1"), "fieldManager=one", &first)
        .await
        .ok();
    let second = document("v2", json!({"maxReplicas": 5}));
    let refused = apply(&api, &scalers("v2"), "fieldManager=two", &second).await;
    assert_eq!(
        refused.refused(409, "Conflict"),
        "Apply failed with 1 conflict: conflict with \"one\": .spec.maxReplicas"
    );
    // The same manager moves to the other version, and leaves out what it applied there.
    let moved = document("v2", json!({"maxReplicas": 3}));
    let moved = apply(&api, &scalers("v2"), "fieldManager=one", &moved)
        .await
        .ok();
    let metric = &moved["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"];
    assert_ne!(metric, 50);
    assert_eq!(moved["spec"]["minReplicas"], 1);
    assert_eq!(
        moved["metadata"]["managedFields"][0]["apiVersion"],
        "autoscaling/v2"
    );
}
