//! Fields that nobody knows and fields that are given twice: refused, told or ignored, as the client asks.

use crate::common::{Answer, Api};
use http::Method;
use serde_json::Value;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

const JSON: &str = r#"{"apiVersion": "apps/v1", "kind": "Deployment",
    "metadata": {"name": "d", "name": "d", "labels": {"a": "b"}, "unknownMeta": "x"},
    "spec": {"unknown1": "v", "unknownDupe": "v", "unknownDupe": "w", "paused": true, "paused": false,
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {
            "containers": [{"name": "c", "image": "i", "unknownNested": "v", "imagePullPolicy": "Always",
                "imagePullPolicy": "Never"}]}}}}"#;

const YAML: &str = "apiVersion: apps/v1
kind: Deployment
metadata:
  name: d
  name: d
  unknownMeta: x
spec:
  unknown1: v
  paused: true
  paused: false
  selector: {matchLabels: {a: b}}
  template:
    metadata: {labels: {a: b}}
    spec:
      containers:
      - name: c
        image: i
        imagePullPolicy: Always
        imagePullPolicy: Never
        unknownNested: v
";

const IN_JSON: [&str; 7] = [
    r#"duplicate field "metadata.name""#,
    r#"unknown field "metadata.unknownMeta""#,
    r#"unknown field "spec.unknown1""#,
    r#"unknown field "spec.unknownDupe""#,
    r#"duplicate field "spec.paused""#,
    r#"unknown field "spec.template.spec.containers[0].unknownNested""#,
    r#"duplicate field "spec.template.spec.containers[0].imagePullPolicy""#,
];

async fn send(api: &Api, method: Method, path: &str, media: &str, body: &'static str) -> Answer {
    let headers = [("content-type", media)];
    api.send(method, path, &headers, body.into()).await
}

fn warnings(answer: &Answer) -> Vec<String> {
    let texts = answer.headers.get_all("warning").iter();
    let text = |value: &http::HeaderValue| {
        let text = value.to_str().unwrap().strip_prefix("299 - \"").unwrap();
        text.strip_suffix('"').unwrap().replace("\\\"", "\"")
    };
    texts.map(text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_and_updates() {
    let api = Api::start().await;
    let media = "application/json";
    let strict = send(
        &api,
        Method::POST,
        &format!("{DEPLOYMENTS}?fieldValidation=Strict"),
        media,
        JSON,
    )
    .await;
    let message = strict.refused(400, "BadRequest");
    let expect = format!(
        "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: {}",
        IN_JSON.join(", ")
    );
    assert_eq!(message, expect);
    let ignored = send(
        &api,
        Method::POST,
        &format!("{DEPLOYMENTS}?fieldValidation=Ignore"),
        media,
        JSON,
    )
    .await;
    assert!(warnings(&ignored).is_empty());
    let created = ignored.ok();
    // The last of two values counts.
    assert_ne!(created["spec"]["paused"], true);
    let containers = &created["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers[0]["imagePullPolicy"], "Never");
    assert_eq!(created["spec"]["unknown1"], Value::Null);
    let path = format!("{DEPLOYMENTS}/d");
    let told = send(&api, Method::PUT, &path, media, JSON).await;
    assert_eq!(told.code, 200, "{}", told.body);
    assert_eq!(warnings(&told), IN_JSON);
    let strict = send(
        &api,
        Method::PUT,
        &format!("{path}?fieldValidation=Strict"),
        media,
        JSON,
    )
    .await;
    strict.refused(400, "BadRequest");
    let odd = send(
        &api,
        Method::PUT,
        &format!("{path}?fieldValidation=Odd"),
        media,
        JSON,
    )
    .await;
    odd.refused(422, "Invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn yaml() {
    let api = Api::start().await;
    let media = "application/yaml";
    let lines = [
        "line 5: key \"name\" already set in map",
        "line 10: key \"paused\" already set in map",
        "line 19: key \"imagePullPolicy\" already set in map",
    ];
    let unknown = [
        "unknown field \"metadata.unknownMeta\"",
        "unknown field \"spec.template.spec.containers[0].unknownNested\"",
        "unknown field \"spec.unknown1\"",
    ];
    let strict = send(
        &api,
        Method::POST,
        &format!("{DEPLOYMENTS}?fieldValidation=Strict"),
        media,
        YAML,
    )
    .await;
    let expect = format!(
        "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: yaml: unmarshal \
         errors:\n  {}, {}",
        lines.join("\n  "),
        unknown.join(", ")
    );
    assert_eq!(strict.refused(400, "BadRequest"), expect);
    let told = send(&api, Method::POST, DEPLOYMENTS, media, YAML).await;
    assert_eq!(told.code, 201, "{}", told.body);
    let all: Vec<&str> = lines.into_iter().chain(unknown).collect();
    assert_eq!(warnings(&told), all);
}

#[tokio::test(flavor = "multi_thread")]
async fn patches() {
    let api = Api::start().await;
    send(&api, Method::POST, DEPLOYMENTS, "application/json", JSON)
        .await
        .ok();
    let path = format!("{DEPLOYMENTS}/d");
    let strict = format!("{path}?fieldValidation=Strict");
    let merge = r#"{"spec": {"unknown1": "v", "paused": true, "paused": false, "template": {"spec": {"containers":
        [{"name": "c", "image": "i", "odd": 1, "imagePullPolicy": "Always", "imagePullPolicy": "Never"}]}}}}"#;
    let merged = [
        "duplicate field \"spec.paused\"",
        "duplicate field \"spec.template.spec.containers[0].imagePullPolicy\"",
        "unknown field \"spec.template.spec.containers[0].odd\"",
        "unknown field \"spec.unknown1\"",
    ];
    let operations = r#"[{"op": "add", "path": "/spec/unknown1", "value": "v", "foo": "bar"},
        {"op": "add", "path": "/spec/x", "path": "/spec/unknown3", "value": {"a": 1, "a": 2}}]"#;
    let operated = [
        "json patch unknown field \"[0].foo\"",
        "json patch duplicate field \"[1].path\"",
        "unknown field \"spec.unknown1\"",
        "unknown field \"spec.unknown3\"",
    ];
    for (media, body, expect) in [
        ("application/merge-patch+json", merge, merged),
        ("application/strategic-merge-patch+json", merge, merged),
        ("application/json-patch+json", operations, operated),
    ] {
        let refused = send(&api, Method::PATCH, &strict, media, body).await;
        let message = refused.refused(422, "Invalid");
        assert!(
            message.starts_with(" \"\" is invalid: patch: Invalid value: \""),
            "{message}"
        );
        let tail = format!("strict decoding error: {}", expect.join(", "));
        assert!(message.ends_with(&tail), "{message}");
        let told = send(&api, Method::PATCH, &path, media, body).await;
        assert_eq!(
            (told.code, warnings(&told)),
            (200, expect.map(str::to_owned).to_vec())
        );
        let ignored = send(
            &api,
            Method::PATCH,
            &format!("{path}?fieldValidation=Ignore"),
            media,
            body,
        )
        .await;
        assert_eq!((ignored.code, warnings(&ignored).len()), (200, 0));
    }
    let typed = send(
        &api,
        Method::PATCH,
        &path,
        "application/merge-patch+json",
        r#"{"spec": {"replicas": "x"}}"#,
    )
    .await;
    let message = typed.refused(422, "Invalid");
    assert!(
        message.ends_with(
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
        ),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn applies() {
    let api = Api::start().await;
    let media = "application/apply-patch+yaml";
    let twice = "apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec:
  paused: true
  paused: false
  selector: {matchLabels: {a: b}}
  template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}
";
    let path = format!("{DEPLOYMENTS}/d?fieldManager=me");
    let strict = send(
        &api,
        Method::PATCH,
        &format!("{path}&fieldValidation=Strict"),
        media,
        twice,
    )
    .await;
    assert_eq!(
        strict.refused(400, "BadRequest"),
        "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 6: key \"paused\" \
         already set in map"
    );
    let told = send(&api, Method::PATCH, &path, media, twice).await;
    assert_eq!(
        (told.code, warnings(&told)),
        (
            201,
            vec!["line 6: key \"paused\" already set in map".to_owned()]
        )
    );
    let ignored = send(
        &api,
        Method::PATCH,
        &format!("{path}&fieldValidation=Ignore"),
        media,
        twice,
    )
    .await;
    assert_eq!((ignored.code, warnings(&ignored).len()), (200, 0));
}
