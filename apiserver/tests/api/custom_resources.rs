//! Custom resources: defined, served, changed, redefined and deleted.

use crate::common::{Api, until};
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn schema() -> Value {
    json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "size": {"type": "integer", "default": 3, "minimum": 1},
            "color": {"type": "string", "enum": ["red", "green"]},
            "parts": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        }},
        "status": {"type": "object", "properties": {"size": {"type": "integer"}, "selector": {"type": "string"}}},
    }})
}

pub fn definition(plural: &str, kind: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.example.com")},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind, "shortNames": [format!("{}s", &plural[..1])], "categories": ["all"]},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema()},
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size",
                    "statusReplicasPath": ".status.size", "labelSelectorPath": ".status.selector"}},
                "selectableFields": [{"jsonPath": ".spec.color"}],
                "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}]}]},
    })
}

/// Creates a definition and waits until it is established.
pub async fn define(api: &Api, definition: &Value) -> Value {
    let created = api.post(DEFINITIONS, definition).await.ok();
    let path = format!(
        "{DEFINITIONS}/{}",
        created["metadata"]["name"].as_str().unwrap()
    );
    until("the definition is established", || async {
        let current = api.get(&path).await.ok();
        let mut conditions = current["status"]["conditions"].as_array()?.iter();
        let established = conditions.any(|c| c["type"] == "Established" && c["status"] == "True");
        established.then_some(current)
    })
    .await
}

const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn life_of_a_custom_resource() {
    let api = Api::start().await;
    let defined = define(&api, &definition("widgets", "Widget")).await;
    assert_eq!(defined["spec"]["names"]["listKind"], "WidgetList");
    assert_eq!(defined["status"]["storedVersions"], json!(["v1"]));

    let created = api
        .post(WIDGETS, &widget("a", json!({"color": "red", "bogus": 1})))
        .await;
    let warning = created.headers["warning"].to_str().unwrap().to_owned();
    assert!(
        warning.contains("unknown field \\\"spec.bogus\\\""),
        "{warning}"
    );
    let created = created.ok();
    assert_eq!(created["spec"], json!({"color": "red", "size": 3}));
    assert_eq!(created["metadata"]["generation"], 1);

    let strict = format!("{WIDGETS}?fieldValidation=Strict");
    let refused = api.post(&strict, &widget("b", json!({"bogus": 1}))).await;
    assert!(
        refused
            .refused(400, "BadRequest")
            .contains("strict decoding error: unknown field \"spec.bogus\"")
    );
    let refused = api
        .post(
            WIDGETS,
            &widget("b", json!({"size": "x", "parts": ["p", "p"]})),
        )
        .await;
    let message = refused.refused(422, "Invalid");
    assert!(
        message.contains("spec.size: Invalid value: \"string\""),
        "{message}"
    );
    assert!(
        message.contains("spec.parts[1]: Duplicate value: \"p\""),
        "{message}"
    );

    let item = format!("{WIDGETS}/a");
    let patched = api
        .patch(&item, "merge", &json!({"spec": {"size": 5}}))
        .await
        .ok();
    assert_eq!(patched["metadata"]["generation"], 2);
    let strategic = api
        .patch(&item, "strategic-merge", &json!({"spec": {"size": 5}}))
        .await;
    strategic.refused(415, "UnsupportedMediaType");

    let status = api.patch(&format!("{item}/status"), "merge",
        &json!({"metadata": {"labels": {"a": "b"}}, "spec": {"size": 9}, "status": {"size": 2, "selector": "a=b"}})).await.ok();
    assert_eq!(status["spec"]["size"], 5);
    assert_eq!(status["metadata"]["generation"], 2);
    assert_eq!(status["metadata"].get("labels"), None);
    let scale = api.get(&format!("{item}/scale")).await.ok();
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]),
        (&json!(5), &json!({"replicas": 2, "selector": "a=b"}))
    );
    let scaled = api
        .patch(
            &format!("{item}/scale"),
            "merge",
            &json!({"spec": {"replicas": 7}}),
        )
        .await
        .ok();
    assert_eq!(scaled["spec"]["replicas"], 7);

    api.post(WIDGETS, &widget("g", json!({"color": "green"})))
        .await
        .ok();
    let list = api
        .get("/apis/example.com/v1/widgets?fieldSelector=spec.color%3Dgreen")
        .await
        .ok();
    assert_eq!(list["kind"], "WidgetList");
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = api
        .send(http::Method::GET, WIDGETS, &accept, Default::default())
        .await
        .ok();
    assert_eq!(table["rows"][0]["cells"], json!(["a", 7]));
}

#[tokio::test]
async fn redefined_and_deleted() {
    let api = Api::start().await;
    let mut defined = define(&api, &definition("widgets", "Widget")).await;
    api.post(WIDGETS, &widget("a", json!({"color": "red"})))
        .await
        .ok();
    let mut watch = api.watch(&format!("{WIDGETS}?watch=true")).await;
    assert_eq!(watch.summary().await, ("ADDED".into(), "a".into()));

    // A second version, and a default that old objects get when they are read.
    let versions = defined["spec"]["versions"].as_array_mut().unwrap();
    let mut second = versions[0].clone();
    second["name"] = json!("v2");
    second["storage"] = json!(false);
    versions[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["fresh"] =
        json!({"type": "string", "default": "x"});
    versions.push(second);
    let path = format!("{DEFINITIONS}/widgets.example.com");
    api.put(&path, &defined).await.ok();
    until("the default appears", || async {
        let object = api.get(&format!("{WIDGETS}/a")).await.ok();
        (object["spec"]["fresh"] == "x").then_some(())
    })
    .await;
    assert_eq!(watch.next().await, None, "a changed schema ends watches");
    let other = api
        .get("/apis/example.com/v2/namespaces/default/widgets/a")
        .await
        .ok();
    assert_eq!(other["apiVersion"], "example.com/v2");
    assert_eq!(other["spec"].get("fresh"), None);

    let group = api.get("/apis/example.com").await.ok();
    assert_eq!(group["preferredVersion"]["version"], "v2");

    // Held by a finalizer, an instance holds its definition.
    let hold = json!({"metadata": {"finalizers": ["example.com/hold"]}});
    api.patch(&format!("{WIDGETS}/a"), "merge", &hold)
        .await
        .ok();
    let mut watch = api.watch(&format!("{WIDGETS}?watch=true")).await;
    watch.summary().await;
    api.delete(&path).await.ok();
    let refused = api.post(WIDGETS, &widget("b", json!({}))).await;
    assert_eq!(refused.code, 405, "{}", refused.body);
    assert_eq!(watch.summary().await.0, "MODIFIED");
    api.patch(
        &format!("{WIDGETS}/a"),
        "merge",
        &json!({"metadata": {"finalizers": null}}),
    )
    .await;
    until("the definition goes", || async {
        let gone = api.get(&path).await.code == 404 && api.get(WIDGETS).await.code == 404;
        gone.then_some(())
    })
    .await;
}

#[tokio::test]
async fn names_are_taken_once() {
    let api = Api::start().await;
    define(&api, &definition("widgets", "Widget")).await;
    let second = api
        .post(DEFINITIONS, &definition("others", "Widget"))
        .await
        .ok();
    let path = format!(
        "{DEFINITIONS}/{}",
        second["metadata"]["name"].as_str().unwrap()
    );
    let condition = until("there is a condition", || async {
        let current = api.get(&path).await.ok();
        current["status"]["conditions"].get(0).cloned()
    })
    .await;
    assert_eq!(
        (&condition["type"], &condition["status"]),
        (&json!("NamesAccepted"), &json!("False"))
    );
    api.get("/apis/example.com/v1/others")
        .await
        .refused(404, "NotFound");
    api.delete(&format!("{DEFINITIONS}/widgets.example.com"))
        .await
        .ok();
    until("the name is free again", || async {
        (api.get("/apis/example.com/v1/others").await.code == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn deep_resources_can_be_read_or_are_refused() {
    let api = Api::start().await;
    let mut open = definition("widgets", "Widget");
    open["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    open["spec"]["versions"][0]["subresources"] = json!({});
    open["spec"]["versions"][0]["selectableFields"] = json!([]);
    define(&api, &open).await;
    let (mut taken, mut refused) = (0, 0);
    for depth in 100..127 {
        let nested = (0..depth).fold(json!(1), |inner, _| json!({"a": inner}));
        let name = format!("w{depth}");
        let made = api.post(WIDGETS, &widget(&name, nested.clone())).await;
        let read = api.get(&format!("{WIDGETS}/{name}")).await;
        match made.code {
            201 => {
                assert_eq!(read.ok()["spec"], nested, "{depth}");
                taken += 1;
            }
            _ => {
                made.refused(400, "BadRequest");
                read.refused(404, "NotFound");
                refused += 1;
            }
        }
    }
    assert!(taken > 0 && refused > 0, "{taken} and {refused}");
    assert_eq!(
        api.get(WIDGETS).await.ok()["items"]
            .as_array()
            .unwrap()
            .len(),
        taken
    );
}
