//! Protobuf on the wire and in the store: the same objects as in JSON.

use crate::common::{Answer, Api};
use apimachinery::protobuf;
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use storage::Expect;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const MEDIA: (&str, &str) = ("content-type", protobuf::MEDIA_TYPE);
const ACCEPT: (&str, &str) = (
    "accept",
    "application/vnd.kubernetes.protobuf,application/json",
);

fn sealed(document: &Value) -> Bytes {
    protobuf::from_json(document.to_string().as_bytes())
        .unwrap()
        .into()
}

fn opened(answer: &Answer) -> Value {
    assert_eq!(
        answer.headers["content-type"],
        protobuf::MEDIA_TYPE,
        "{}",
        answer.body
    );
    protobuf::to_json(&answer.bytes, ("", "")).unwrap()
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"a": "b"}},
        "data": {"k": "v"}, "binaryData": {"b": "AAH/"}})
}

/// The events of a watch that has ended.
fn events(mut stream: &[u8]) -> Vec<(String, Value)> {
    let mut events = Vec::new();
    while let Some((length, rest)) = stream.split_first_chunk::<4>() {
        let (frame, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        stream = rest;
        // WatchEvent: 1 is its type, 2 a RawExtension, whose 1 is the document.
        let kind = String::from_utf8_lossy(&frame[2..2 + usize::from(frame[1])]).into_owned();
        let at = frame
            .windows(4)
            .position(|four| four == protobuf::MAGIC)
            .unwrap();
        events.push((kind, protobuf::to_json(&frame[at..], ("", "")).unwrap()));
    }
    assert!(stream.is_empty());
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_the_same_in_both_formats() {
    let api = Api::start().await;
    let created = api
        .send(Method::POST, MAPS, &[MEDIA, ACCEPT], sealed(&map("a")))
        .await;
    assert_eq!(created.code, 201);
    let created = opened(&created);
    assert_eq!(created["binaryData"], json!({"b": "AAH/"}));
    let path = format!("{MAPS}/a");
    let json = api.get(&path).await.ok();
    let got = api.send(Method::GET, &path, &[ACCEPT], Bytes::new()).await;
    assert_eq!(opened(&got), json);
    assert_eq!(created, json);
    let mut changed = json.clone();
    changed["data"]["k"] = "w".into();
    let updated = api
        .send(Method::PUT, &path, &[MEDIA, ACCEPT], sealed(&changed))
        .await;
    assert_eq!(opened(&updated)["data"]["k"], "w");
    // In one format, answered in the other.
    let updated = api.send(Method::PUT, &path, &[MEDIA], sealed(&json)).await;
    assert_eq!(
        updated.refused(409, "Conflict"),
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    let options =
        json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": "x"}});
    let refused = api
        .send(Method::DELETE, &path, &[MEDIA, ACCEPT], sealed(&options))
        .await;
    let status = opened(&refused);
    assert_eq!((refused.code, &status["reason"]), (409, &json!("Conflict")));
    let gone = api
        .send(Method::DELETE, &path, &[ACCEPT], Bytes::new())
        .await;
    assert_eq!(opened(&gone)["status"], "Success");
    let missing = api.send(Method::GET, &path, &[ACCEPT], Bytes::new()).await;
    assert_eq!(
        (missing.code, &opened(&missing)["details"]["name"]),
        (404, &json!("a"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies() {
    let api = Api::start().await;
    for body in [&b""[..], b"{}", b"k8s\0\xff\xff", b"k8s\0", b"\0\0\0\0"] {
        let answer = api
            .send(Method::POST, MAPS, &[MEDIA], Bytes::from_static(body))
            .await;
        answer.refused(400, "BadRequest");
    }
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}});
    let answer = api.send(Method::POST, MAPS, &[MEDIA], sealed(&pod)).await;
    answer.refused(400, "BadRequest");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_watches_and_metadata() {
    let api = Api::start().await;
    for name in ["a", "b"] {
        api.post(MAPS, &map(name)).await.ok();
    }
    let json = api.get(&format!("{MAPS}?limit=1")).await.ok();
    let list = api
        .send(
            Method::GET,
            &format!("{MAPS}?limit=1"),
            &[ACCEPT],
            Bytes::new(),
        )
        .await;
    let list = opened(&list);
    assert_eq!(list["items"][0]["data"], json["items"][0]["data"]);
    assert_eq!(
        list["metadata"]["remainingItemCount"],
        json["metadata"]["remainingItemCount"]
    );
    assert_eq!(list["kind"], "ConfigMapList");

    let partial =
        "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let list = api
        .send(Method::GET, MAPS, &[("accept", partial)], Bytes::new())
        .await;
    let list = opened(&list);
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    let found = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|item| item["metadata"]["name"] == "b");
    assert_eq!(
        found.unwrap(),
        &json!({"metadata": api.get(&format!("{MAPS}/b")).await.ok()["metadata"]})
    );

    let watch = format!(
        "{MAPS}?watch=1&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&labelSelector=a"
    );
    let stream = api.send(Method::GET, &watch, &[ACCEPT], Bytes::new()).await;
    assert_eq!(
        stream.headers["content-type"],
        "application/vnd.kubernetes.protobuf;stream=watch"
    );
    let seen = events(&stream.bytes);
    let summary: Vec<_> = seen
        .iter()
        .map(|(kind, object)| (kind.as_str(), object["metadata"]["name"].as_str()))
        .collect();
    assert_eq!(summary[..2], [("ADDED", Some("a")), ("ADDED", Some("b"))]);
    assert_eq!(seen[2].0, "BOOKMARK");
    assert_eq!(
        seen[2].1["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    let expired = api
        .send(
            Method::GET,
            &format!("{MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=999999"),
            &[ACCEPT],
            Bytes::new(),
        )
        .await;
    let seen = events(&expired.bytes);
    assert_eq!(
        (seen[0].0.as_str(), &seen[0].1["kind"]),
        ("ERROR", &json!("Status"))
    );

    // What has no protobuf form is answered in JSON to who takes it.
    let table = "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1";
    api.send(Method::GET, MAPS, &[("accept", table)], Bytes::new())
        .await
        .refused(406, "NotAcceptable");
    let groups = api
        .send(Method::GET, "/apis", &[ACCEPT], Bytes::new())
        .await;
    assert_eq!(
        opened(&groups)["groups"],
        api.get("/apis").await.ok()["groups"]
    );
    api.send(Method::GET, "/version", &[ACCEPT], Bytes::new())
        .await
        .ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kubernetes_has_stored_is_served_and_can_be_changed() {
    let api = Api::start().await;
    let mut stored = map("old");
    stored["metadata"]["namespace"] = "default".into();
    stored["metadata"]["uid"] = "6f1c".into();
    stored["metadata"]["creationTimestamp"] = "2026-01-02T03:04:05Z".into();
    let key = "/registry/configmaps/default/old";
    api.store()
        .put(key, Expect::Absent, sealed(&stored), None)
        .await
        .unwrap();
    let path = format!("{MAPS}/old");
    let got = api.get(&path).await.ok();
    assert_eq!(
        (&got["data"], &got["metadata"]["uid"]),
        (&stored["data"], &json!("6f1c"))
    );
    let patch = json!({"data": {"n": "1"}});
    let patched = api.patch(&path, "merge", &patch).await.ok();
    assert_eq!(patched["data"], json!({"k": "v", "n": "1"}));
    let now = api.store().get(key).await.unwrap().unwrap();
    assert!(
        now.value
            .starts_with(b"{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{")
    );

    // Another version than ours, and deleted without ever having been changed.
    let scaler = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "h", "namespace": "default", "uid": "7a"},
        "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 3, "targetCPUUtilizationPercentage": 50}});
    let key = "/registry/horizontalpodautoscalers/default/h";
    api.store()
        .put(key, Expect::Absent, sealed(&scaler), None)
        .await
        .unwrap();
    let path = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers/h";
    let got = api.get(path).await.ok();
    assert_eq!(
        got["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
        50
    );
    api.delete(path).await.ok();
    api.get(path).await.refused(404, "NotFound");
}
