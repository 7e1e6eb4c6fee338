//! The verbs on objects: what is created is read, changed, listed and deleted as Kubernetes does it.

use crate::common::{Answer, Api};
use crate::custom_resources::{define, definition};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn create_get_update_delete() {
    let api = Api::start().await;
    let created = api.post(MAPS, &map("a")).await;
    assert_eq!(created.code, 201);
    let created = created.body;
    assert_eq!(created["metadata"]["namespace"], "default");
    assert!(
        created["metadata"]["uid"]
            .as_str()
            .is_some_and(|uid| uid.len() == 36)
    );
    assert!(created["metadata"]["creationTimestamp"].is_string());
    assert_eq!(api.get(&format!("{MAPS}/a")).await.ok(), created);

    let message = api
        .post(MAPS, &map("a"))
        .await
        .refused(409, "AlreadyExists")
        .to_owned();
    assert_eq!(message, r#"configmaps "a" already exists"#);

    let mut changed = created.clone();
    changed["data"]["k"] = json!("w");
    let updated = api.put(&format!("{MAPS}/a"), &changed).await.ok();
    assert!(version(&updated) > version(&created));
    assert_eq!(updated["metadata"]["uid"], created["metadata"]["uid"]);
    // The same again is against an old version; without one it changes nothing, the version included.
    let stale = api.put(&format!("{MAPS}/a"), &changed).await;
    assert!(
        stale
            .refused(409, "Conflict")
            .contains("the object has been modified; please apply your changes")
    );
    changed["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("resourceVersion");
    assert_eq!(api.put(&format!("{MAPS}/a"), &changed).await.ok(), updated);

    let deleted = api.delete(&format!("{MAPS}/a")).await.ok();
    assert_eq!(
        (&deleted["kind"], &deleted["status"]),
        (&json!("Status"), &json!("Success"))
    );
    assert_eq!(deleted["details"]["uid"], created["metadata"]["uid"]);
    let gone = api.get(&format!("{MAPS}/a")).await;
    assert_eq!(gone.refused(404, "NotFound"), r#"configmaps "a" not found"#);
    api.put(&format!("{MAPS}/a"), &map("a"))
        .await
        .refused(404, "NotFound");
    api.delete(&format!("{MAPS}/a"))
        .await
        .refused(404, "NotFound");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_generated() {
    let api = Api::start().await;
    let mut object = map("");
    object["metadata"] = json!({"generateName": "web-"});
    let first = api.post(MAPS, &object).await.ok();
    let second = api.post(MAPS, &object).await.ok();
    let name = first["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    assert_ne!(first["metadata"]["name"], second["metadata"]["name"]);
    object["metadata"] = json!({});
    let refused = api.post(MAPS, &object).await;
    assert!(
        refused
            .refused(422, "Invalid")
            .contains("name or generateName is required")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn patches() {
    let api = Api::start().await;
    api.post(MAPS, &map("a")).await.ok();
    let path = format!("{MAPS}/a");
    let merged = api
        .patch(&path, "merge", &json!({"data": {"x": "y", "k": null}}))
        .await
        .ok();
    assert_eq!(merged["data"], json!({"x": "y"}));
    let operations = json!([{"op": "add", "path": "/data/z", "value": "1"}]);
    assert_eq!(
        api.patch(&path, "json", &operations).await.ok()["data"]["z"],
        "1"
    );
    let failing = json!([{"op": "test", "path": "/data/z", "value": "2"}]);
    assert_eq!(api.patch(&path, "json", &failing).await.code, 422);
    let labels = json!({"metadata": {"labels": {"a": "b"}}});
    assert_eq!(
        api.patch(&path, "strategic-merge", &labels).await.ok()["metadata"]["labels"],
        json!({"a": "b"})
    );
    api.patch(
        &path,
        "merge",
        &json!({"metadata": {"resourceVersion": "1"}}),
    )
    .await
    .refused(409, "Conflict");
    api.patch(&path, "merge", &json!([1]))
        .await
        .refused(400, "BadRequest");
    api.patch(&path, "unheard-of", &json!({}))
        .await
        .refused(415, "UnsupportedMediaType");
    api.patch(&format!("{MAPS}/none"), "merge", &json!({}))
        .await
        .refused(404, "NotFound");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_paged_at_one_revision() {
    let api = Api::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        let mut object = map(name);
        object["metadata"]["labels"] = json!({"odd": (name > "c").to_string()});
        api.post(MAPS, &object).await.ok();
    }
    let names = |list: &Value| -> Vec<String> {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|o| o["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let first = api.get(&format!("{MAPS}?limit=2")).await.ok();
    assert_eq!(
        (
            names(&first).join(""),
            &first["metadata"]["remainingItemCount"]
        ),
        ("ab".into(), &json!(3))
    );
    let token = first["metadata"]["continue"].as_str().unwrap();
    // From the cache while nothing has changed, from the store's history afterwards: the same page.
    let second = api
        .get(&format!("{MAPS}?limit=2&continue={token}"))
        .await
        .ok();
    api.delete(&format!("{MAPS}/c")).await.ok();
    let again = api
        .get(&format!("{MAPS}?limit=2&continue={token}"))
        .await
        .ok();
    assert_eq!(second, again);
    assert_eq!(names(&again).join(""), "cd");
    assert_eq!(
        again["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let last = format!(
        "{MAPS}?limit=2&continue={}",
        again["metadata"]["continue"].as_str().unwrap()
    );
    let last = api.get(&last).await.ok();
    assert_eq!(
        (names(&last).join(""), &last["metadata"]["continue"]),
        ("e".into(), &Value::Null)
    );

    let revision = first["metadata"]["resourceVersion"].as_str().unwrap();
    let exact = api
        .get(&format!(
            "{MAPS}?resourceVersion={revision}&resourceVersionMatch=Exact"
        ))
        .await
        .ok();
    assert_eq!(names(&exact).join(""), "abcde");
    assert_eq!(
        names(
            &api.get(&format!("{MAPS}?labelSelector=odd%3Dtrue"))
                .await
                .ok()
        )
        .join(""),
        "de"
    );
    assert_eq!(
        names(
            &api.get(&format!("{MAPS}?labelSelector=odd+notin+(true)"))
                .await
                .ok()
        )
        .join(""),
        "ab"
    );
    assert_eq!(
        names(
            &api.get(&format!("{MAPS}?fieldSelector=metadata.name%3De"))
                .await
                .ok()
        )
        .join(""),
        "e"
    );
    let future = api.get(&format!("{MAPS}?resourceVersion=999999")).await;
    assert!(
        future
            .refused(504, "Timeout")
            .contains("Too large resource version: 999999")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_hold_and_policies_add_them() {
    let api = Api::start().await;
    let mut object = map("held");
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    api.post(MAPS, &object).await.ok();
    let path = format!("{MAPS}/held");
    let marked = api.delete(&path).await.ok();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 0);
    let added = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}});
    assert!(
        api.patch(&path, "merge", &added)
            .await
            .refused(422, "Invalid")
            .contains("no new finalizers can be added")
    );
    api.patch(&path, "merge", &json!({"metadata": {"finalizers": null}}))
        .await
        .ok();
    api.get(&path).await.refused(404, "NotFound");

    api.post(MAPS, &map("parent")).await.ok();
    let path = format!("{MAPS}/parent");
    let marked = api
        .delete(&format!("{path}?propagationPolicy=Foreground"))
        .await
        .ok();
    assert_eq!(
        marked["metadata"]["finalizers"],
        json!(["foregroundDeletion"])
    );
    let gone =
        json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
    api.delete_with(&path, &gone).await.ok();
    api.get(&path).await.refused(404, "NotFound");
}

#[tokio::test(flavor = "multi_thread")]
async fn preconditions_and_collections() {
    let api = Api::start().await;
    let created = api.post(MAPS, &map("a")).await.ok();
    let path = format!("{MAPS}/a");
    let wrong = json!({"preconditions": {"uid": "nope"}});
    assert!(
        api.delete_with(&path, &wrong)
            .await
            .refused(409, "Conflict")
            .contains("the UID in the precondition (nope)")
    );
    let wrong = json!({"preconditions": {"resourceVersion": "1"}});
    api.delete_with(&path, &wrong)
        .await
        .refused(409, "Conflict");
    let right = json!({"preconditions": {"uid": created["metadata"]["uid"]}});
    api.delete_with(&path, &right).await.ok();

    for (name, label) in [("x", "1"), ("y", "1"), ("z", "2")] {
        let mut object = map(name);
        object["metadata"]["labels"] = json!({"l": label});
        api.post(MAPS, &object).await.ok();
    }
    api.delete(&format!("{MAPS}?labelSelector=l%3D1"))
        .await
        .ok();
    let left = api.get(MAPS).await.ok();
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_runs_change_nothing() {
    let api = Api::start().await;
    let shown = api.post(&format!("{MAPS}?dryRun=All"), &map("a")).await;
    assert_eq!(shown.code, 201);
    assert!(shown.body["metadata"]["uid"].is_string());
    api.get(&format!("{MAPS}/a")).await.refused(404, "NotFound");
    let before = api.post(MAPS, &map("a")).await.ok();
    let path = format!("{MAPS}/a?dryRun=All");
    assert_eq!(
        api.patch(&path, "merge", &json!({"data": {"k": "new"}}))
            .await
            .ok()["data"]["k"],
        "new"
    );
    api.delete(&path).await.ok();
    assert_eq!(api.get(&format!("{MAPS}/a")).await.ok(), before);
    api.post(&format!("{MAPS}?dryRun=Some"), &map("b"))
        .await
        .refused(422, "Invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_survive_a_restart() {
    let mut api = Api::start().await;
    let before = api.post(MAPS, &map("a")).await.ok();
    api.restart().await;
    assert_eq!(api.get(&format!("{MAPS}/a")).await.ok(), before);
    assert!(version(&api.post(MAPS, &map("b")).await.ok()) > version(&before));
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_end_in_two_steps() {
    let api = Api::start().await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "gone"}});
    let created = api.post("/api/v1/namespaces", &namespace).await.ok();
    assert_eq!(created["spec"]["finalizers"], json!(["kubernetes"]));
    let path = "/api/v1/namespaces/gone";
    let marked = api.delete(path).await.ok();
    assert_eq!(marked["status"]["phase"], "Terminating");
    let refused = api
        .post("/api/v1/namespaces/gone/configmaps", &map("a"))
        .await;
    assert!(
        refused
            .refused(403, "Forbidden")
            .contains("because it is being terminated")
    );
    let mut finalized = marked.clone();
    finalized["spec"]["finalizers"] = json!([]);
    api.put(&format!("{path}/finalize"), &finalized).await.ok();
    api.get(path).await.refused(404, "NotFound");
    api.post("/api/v1/namespaces/gone/configmaps", &map("a"))
        .await
        .refused(404, "NotFound");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_bound_once_and_stop_gracefully() {
    let api = Api::start().await;
    let account = json!({"metadata": {"name": "default"}});
    api.post("/api/v1/namespaces/default/serviceaccounts", &account)
        .await
        .ok();
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let pods = "/api/v1/namespaces/default/pods";
    let created = api.post(pods, &pod).await.ok();
    assert_eq!(created["status"]["phase"], "Pending");
    let binding = json!({"target": {"kind": "Node", "name": "n1"}});
    assert_eq!(
        api.post(&format!("{pods}/p/binding"), &binding).await.code,
        201
    );
    let bound = api.get(&format!("{pods}/p")).await.ok();
    assert_eq!(bound["spec"]["nodeName"], "n1");
    let again = api.post(&format!("{pods}/p/binding"), &binding).await;
    assert!(
        again
            .refused(409, "Conflict")
            .contains("already assigned to node")
    );
    let on_node = api
        .get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1")
        .await
        .ok();
    assert_eq!(on_node["items"].as_array().unwrap().len(), 1);

    let stopping = api.delete(&format!("{pods}/p")).await.ok();
    assert_eq!(stopping["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(stopping["kind"], "Pod");
    // Only a shorter period changes anything, and none at all ends it.
    let sooner = api
        .delete(&format!("{pods}/p?gracePeriodSeconds=5"))
        .await
        .ok();
    assert_eq!(sooner["metadata"]["deletionGracePeriodSeconds"], 5);
    let later = api
        .delete(&format!("{pods}/p?gracePeriodSeconds=60"))
        .await
        .ok();
    assert_eq!(
        later["metadata"]["deletionTimestamp"],
        sooner["metadata"]["deletionTimestamp"]
    );
    api.delete(&format!("{pods}/p?gracePeriodSeconds=0"))
        .await
        .ok();
    api.get(&format!("{pods}/p")).await.refused(404, "NotFound");
}

#[tokio::test(flavor = "multi_thread")]
async fn scale_and_status_change_their_part_only() {
    let api = Api::start().await;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let all = "/apis/apps/v1/namespaces/default/deployments";
    let created = api.post(all, &deployment).await.ok();
    assert_eq!(
        (
            &created["metadata"]["generation"],
            &created["spec"]["replicas"]
        ),
        (&json!(1), &json!(1))
    );
    let scale = api.get(&format!("{all}/d/scale")).await.ok();
    assert_eq!(
        (&scale["kind"], &scale["status"]["selector"]),
        (&json!("Scale"), &json!("a=b"))
    );
    let scaled = api
        .patch(
            &format!("{all}/d/scale"),
            "merge",
            &json!({"spec": {"replicas": 4}}),
        )
        .await
        .ok();
    assert_eq!(scaled["spec"]["replicas"], 4);
    let refused = api
        .patch(
            &format!("{all}/d/scale"),
            "merge",
            &json!({"spec": {"replicas": -1}}),
        )
        .await;
    assert!(
        refused
            .refused(422, "Invalid")
            .contains("must be greater than or equal to 0")
    );

    let both = json!({"spec": {"replicas": 9}, "status": {"replicas": 2}});
    let status = api
        .patch(&format!("{all}/d/status"), "merge", &both)
        .await
        .ok();
    assert_eq!(
        (&status["spec"]["replicas"], &status["status"]["replicas"]),
        (&json!(4), &json!(2))
    );
    assert_eq!(status["metadata"]["generation"], 2);
    let spec = api.patch(&format!("{all}/d"), "merge", &both).await.ok();
    assert_eq!(
        (&spec["spec"]["replicas"], &spec["status"]["replicas"]),
        (&json!(9), &json!(2))
    );
    assert_eq!(spec["metadata"]["generation"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn services_get_addresses_and_ports_of_their_own() {
    let mut api = Api::start_with(&["--service-node-port-range", "30000-30001"]).await;
    let all = "/api/v1/namespaces/default/services";
    let service = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let ports = json!([{"port": 80}]);
    let first = api
        .post(
            all,
            &service("a", json!({"type": "NodePort", "ports": ports})),
        )
        .await
        .ok();
    let ip = first["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let taken = service("b", json!({"clusterIP": ip, "ports": ports}));
    assert!(
        api.post(all, &taken)
            .await
            .refused(422, "Invalid")
            .contains("provided IP is already allocated")
    );
    let outside = service("b", json!({"clusterIP": "192.168.0.1", "ports": ports}));
    assert!(
        api.post(all, &outside)
            .await
            .refused(422, "Invalid")
            .contains("the provided network does not match the current range")
    );
    let port = first["spec"]["ports"][0]["nodePort"].clone();
    let same = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    assert!(
        api.post(all, &service("b", same))
            .await
            .refused(422, "Invalid")
            .contains("provided port is already allocated")
    );
    api.post(
        all,
        &service("b", json!({"type": "NodePort", "ports": ports})),
    )
    .await
    .ok();
    let full = api
        .post(
            all,
            &service("c", json!({"type": "NodePort", "ports": ports})),
        )
        .await;
    assert_eq!(full.code, 500, "{}", full.body);
    // What a failed create took is free again, and so is what a deleted Service had.
    let addresses = api.get("/apis/networking.k8s.io/v1/ipaddresses").await.ok();
    assert_eq!(addresses["items"].as_array().unwrap().len(), 3);
    api.delete(&format!("{all}/b")).await.ok();
    api.post(
        all,
        &service("c", json!({"type": "NodePort", "ports": ports})),
    )
    .await
    .ok();
    // An update that leaves them out keeps them; another type gives the port back.
    let kept = api
        .put(
            &format!("{all}/a"),
            &service("a", json!({"type": "NodePort", "ports": ports})),
        )
        .await
        .ok();
    assert_eq!(kept["spec"]["clusterIP"], ip);
    assert_eq!(kept["spec"]["ports"][0]["nodePort"], port);
    api.restart().await;
    let again = service("d", json!({"clusterIP": ip, "ports": ports}));
    api.post(all, &again).await.refused(422, "Invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn items_of_a_list_say_what_they_are_only_where_the_list_does_not() {
    let api = Api::start().await;
    for name in ["a", "b"] {
        api.post(MAPS, &map(name)).await.ok();
    }
    define(&api, &definition("widgets", "Widget")).await;
    let widgets = "/apis/example.com/v1/namespaces/default/widgets";
    let widget =
        json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}});
    api.post(widgets, &widget).await.ok();
    let list = api.get(MAPS).await.ok();
    assert_eq!(list["kind"], "ConfigMapList");
    for (item, name) in list["items"].as_array().unwrap().iter().zip(["a", "b"]) {
        let mut whole = api.get(&format!("{MAPS}/{name}")).await.ok();
        whole
            .as_object_mut()
            .unwrap()
            .retain(|key, _| key != "apiVersion" && key != "kind");
        assert_eq!(*item, whole);
    }
    // A custom resource has no type that others know.
    let custom = api.get(widgets).await.ok();
    assert_eq!(
        custom["items"][0],
        api.get(&format!("{widgets}/w")).await.ok()
    );
    // In a version that is not the stored one.
    let scalers = "namespaces/default/horizontalpodautoscalers";
    let scaler = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 2, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}});
    api.post(&format!("/apis/autoscaling/v2/{scalers}"), &scaler)
        .await
        .ok();
    let list = api
        .get(&format!("/apis/autoscaling/v1/{scalers}"))
        .await
        .ok();
    assert_eq!(list["apiVersion"], "autoscaling/v1");
    let item = &list["items"][0];
    assert!(
        item.get("kind").is_none() && item.get("apiVersion").is_none(),
        "{item}"
    );
    assert_eq!(item["spec"]["maxReplicas"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn further_ranges_give_addresses_while_they_are_ready() {
    // Room for one Service beside `kubernetes`.
    let api = Api::start_with(&["--service-cluster-ip-range", "10.7.0.0/30"]).await;
    let services = "/api/v1/namespaces/default/services";
    let cidrs = "/apis/networking.k8s.io/v1/servicecidrs";
    let create = async |name: &str, ip: Value| {
        let service =
            json!({"metadata": {"name": name}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
        api.post(services, &service).await
    };
    create("a", Value::Null).await.ok();
    let full = create("b", Value::Null).await;
    assert!(full.refused(500, "InternalError").contains("range is full"));
    let further = json!({"metadata": {"name": "further", "finalizers": ["example.com/kept"]}, "spec": {"cidrs": ["10.8.0.0/28"]}});
    api.post(cidrs, &further).await.ok();
    let outside = |answer: Answer| {
        let why = answer.refused(422, "Invalid").to_owned();
        assert!(why.contains("the provided network does not match"), "{why}");
    };
    outside(create("b", json!("10.8.0.5")).await);
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let path = format!("{cidrs}/further");
    api.patch(&format!("{path}/status"), "merge", &ready)
        .await
        .ok();
    create("b", json!("10.8.0.5")).await.ok();
    let other = create("c", Value::Null).await.ok();
    let ip = other["spec"]["clusterIP"].as_str().unwrap();
    assert!(ip.starts_with("10.8.0.") && ip != "10.8.0.5", "{ip}");
    // One that goes gives nothing more.
    api.delete(&path).await.ok();
    outside(create("d", json!("10.8.0.6")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn component_statuses() {
    let api = Api::start().await;
    let all = "/api/v1/componentstatuses";
    let list = api.get(all).await.ok();
    let names: Vec<_> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["metadata"]["name"].clone())
        .collect();
    assert_eq!(names, ["controller-manager", "scheduler", "etcd-0"]);
    let store = api.get(&format!("{all}/etcd-0")).await.ok();
    let well = json!([{"type": "Healthy", "status": "True", "message": "ok"}]);
    assert_eq!(
        (&store["kind"], &store["conditions"]),
        (&json!("ComponentStatus"), &well)
    );
    api.get(&format!("{all}/other"))
        .await
        .refused(404, "NotFound");
}
