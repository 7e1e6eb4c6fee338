//! Backups through the API, and what clients see of a restore.

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use storage::backup::{self, RestoreOptions};
use storage::embedded;

use crate::common::Api;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const BACKUP: &str = "/skiff/backup";

fn revision(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str();
    text.and_then(|text| text.parse().ok()).expect("a revision")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_only_for_those_who_may_have_everything() {
    let api = Api::start().await;
    let anonymous = api.send_anonymously(Method::GET, BACKUP, &[]).await;
    let message = anonymous.refused(403, "Forbidden");
    assert!(
        message.contains("cannot get path \"/skiff/backup\""),
        "{message}"
    );
    let post = api.send(Method::POST, BACKUP, &[], Bytes::new()).await;
    post.refused(405, "MethodNotAllowed");
    let answer = api.get(BACKUP).await;
    assert_eq!(answer.code, 200);
    assert_eq!(answer.headers["content-type"], "application/octet-stream");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_brings_back_what_was_and_moves_time_on() {
    let mut api = Api::start().await;
    let map = |value: &str| json!({"metadata": {"name": "m"}, "data": {"v": value}});
    let one = format!("{MAPS}/m");
    api.post(MAPS, &map("kept")).await.ok();
    let kept = api.get(&one).await.ok();
    let file = api.directory.path().join("backup");
    std::fs::write(&file, api.get(BACKUP).await.bytes).unwrap();
    assert!(backup::verify(&file).unwrap().keys > 10);
    let lost = api.put(&one, &map("lost")).await.ok();
    api.post(MAPS, &json!({"metadata": {"name": "later"}}))
        .await
        .ok();

    let store = api.directory.path().join("data/store.redb");
    api.restart_after(|| {
        let how = RestoreOptions {
            overwrite: true,
            ..RestoreOptions::default()
        };
        embedded::restore(&store, &file, how).unwrap();
    })
    .await;

    let now = api.get(&one).await.ok();
    assert_eq!(now["data"]["v"], "kept");
    assert_eq!(now["metadata"]["uid"], kept["metadata"]["uid"]);
    assert!(revision(&now) > revision(&lost));
    api.get(&format!("{MAPS}/later"))
        .await
        .refused(404, "NotFound");
    // A client that saw what is lost is told to look again, whatever it does.
    let mut stale = lost.clone();
    stale["data"]["v"] = json!("on top of what is lost");
    api.put(&one, &stale).await.refused(409, "Conflict");
    let path = format!("{MAPS}?watch=1&resourceVersion={}", revision(&lost));
    let told = api.get(&path).await;
    let code = match told.code {
        200 => told.body["object"]["code"].clone(),
        code => json!(code),
    };
    assert_eq!(code, 410, "{:?}", told.body);
    let mut fresh = now.clone();
    fresh["data"]["v"] = json!("new");
    api.put(&one, &fresh).await.ok();
}
