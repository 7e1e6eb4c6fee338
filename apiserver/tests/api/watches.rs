//! Watches: what happens is seen, from any kept revision, once and in order.

use crate::common::Api;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, label: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"l": label}}})
}

fn event(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_follow_the_state() {
    let api = Api::start().await;
    api.post(MAPS, &map("a", "1")).await.ok();
    let mut watch = api.watch(&format!("{MAPS}?watch=true")).await;
    assert_eq!(watch.summary().await, event("ADDED", "a"));
    api.post(MAPS, &map("b", "1")).await.ok();
    assert_eq!(watch.summary().await, event("ADDED", "b"));
    api.put(&format!("{MAPS}/b"), &map("b", "2")).await.ok();
    assert_eq!(watch.summary().await, event("MODIFIED", "b"));
    api.delete(&format!("{MAPS}/b")).await.ok();
    let gone = watch.next().await.unwrap();
    assert_eq!(gone["type"], "DELETED");
    // The deleted object is its last state, at the revision of the deletion.
    assert_eq!(gone["object"]["metadata"]["labels"]["l"], "2");
    let list = api.get(MAPS).await.ok();
    assert_eq!(
        gone["object"]["metadata"]["resourceVersion"],
        list["metadata"]["resourceVersion"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_resume_from_any_kept_revision() {
    let api = Api::start().await;
    let start = api.get(MAPS).await.ok()["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    // More changes than a cache remembers, so that the first ones come from the store's history.
    for number in 0..1100 {
        api.patch_or_create(MAPS, number).await;
    }
    let mut watch = api
        .watch(&format!("{MAPS}?watch=1&resourceVersion={start}"))
        .await;
    assert_eq!(watch.summary().await, event("ADDED", "a"));
    let mut last = 0;
    for _ in 1..1100 {
        let event = watch.next().await.unwrap();
        assert_eq!(event["type"], "MODIFIED");
        let revision = event["object"]["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .parse::<u64>()
            .unwrap();
        assert!(revision > last);
        last = revision;
    }
    api.delete(&format!("{MAPS}/a")).await.ok();
    assert_eq!(watch.summary().await, event("DELETED", "a"));
}

impl Api {
    async fn patch_or_create(&self, all: &str, number: usize) {
        if number == 0 {
            self.post(all, &map("a", "0")).await.ok();
        } else {
            let change = json!({"data": {"n": number.to_string()}});
            self.patch(&format!("{all}/a"), "merge", &change).await.ok();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn selections_are_entered_and_left() {
    let api = Api::start().await;
    let mut watch = api
        .watch(&format!("{MAPS}?watch=1&labelSelector=l%3Dyes"))
        .await;
    api.post(MAPS, &map("a", "no")).await.ok();
    api.put(&format!("{MAPS}/a"), &map("a", "yes")).await.ok();
    assert_eq!(watch.summary().await, event("ADDED", "a"));
    let left = api.put(&format!("{MAPS}/a"), &map("a", "no")).await.ok();
    let seen = watch.next().await.unwrap();
    assert_eq!(seen["type"], "DELETED");
    assert_eq!(seen["object"]["metadata"]["labels"]["l"], "yes");
    assert_eq!(
        seen["object"]["metadata"]["resourceVersion"],
        left["metadata"]["resourceVersion"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_can_be_streamed() {
    let api = Api::start().await;
    for name in ["a", "b"] {
        api.post(MAPS, &map(name, "1")).await.ok();
    }
    let query =
        "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = api.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(watch.summary().await, event("ADDED", "a"));
    assert_eq!(watch.summary().await, event("ADDED", "b"));
    let end = watch.next().await.unwrap();
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(
        end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert_eq!(
        (&end["object"]["kind"], &end["object"]["apiVersion"]),
        (&json!("ConfigMap"), &json!("v1"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_end_with_a_bookmark() {
    let api = Api::start().await;
    let start = api.get(MAPS).await.ok()["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    let other = json!({"metadata": {"name": "other"}});
    let moved = api
        .post("/api/v1/namespaces/default/secrets", &other)
        .await
        .ok();
    let query =
        format!("watch=1&resourceVersion={start}&allowWatchBookmarks=true&timeoutSeconds=1");
    let mut watch = api.watch(&format!("{MAPS}?{query}")).await;
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(
        bookmark["object"]["metadata"]["resourceVersion"],
        moved["metadata"]["resourceVersion"]
    );
    assert_eq!(watch.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_can_be_watched() {
    let api = Api::start().await;
    let headers = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    api.post(MAPS, &map("a", "1")).await.ok();
    let table = api
        .send(http::Method::GET, MAPS, &headers, bytes::Bytes::new())
        .await
        .ok();
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
}
