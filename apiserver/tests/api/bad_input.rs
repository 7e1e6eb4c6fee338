//! Bad input: each gets the Status that Kubernetes gives, never a 500, and changes nothing.

use crate::common::{Answer, Api};
use bytes::Bytes;
use http::Method;
use serde_json::json;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

async fn post(api: &Api, path: &str, media: &str, body: impl Into<Bytes>) -> Answer {
    api.send(Method::POST, path, &[("content-type", media)], body.into())
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies() {
    let api = Api::start().await;
    let before = api.get(MAPS).await.ok();
    #[rustfmt::skip]
    let table: &[(&str, &str, u16, &str, &str)] = &[
        ("application/json", "", 400, "BadRequest", "the object provided is unrecognized (must be of type ConfigMap)"),
        ("application/json", "{", 400, "BadRequest", "unexpected end of JSON input"),
        ("application/json", "nonsense", 400, "BadRequest", "couldn't get version/kind; json parse error"),
        ("application/json", "[]", 400, "BadRequest", "cannot unmarshal array"),
        ("application/json", "3", 400, "BadRequest", "cannot unmarshal number"),
        ("application/json", "{\"kind\":\"Pod\",\"apiVersion\":\"v1\"}", 400, "BadRequest", "Pod in version \"v1\" cannot be handled as a ConfigMap"),
        ("application/json", "{\"kind\":\"ConfigMap\",\"apiVersion\":\"v9\"}", 400, "BadRequest", "does not match the expected API version (v1)"),
        ("application/json", "{\"metadata\":{\"name\":\"a\"},\"data\":{\"x\":1}}", 400, "BadRequest", "json: cannot unmarshal number into Go"),
        ("application/json", "{\"metadata\":{\"name\":\"a\"},\"data\":[]}", 400, "BadRequest", "json: cannot unmarshal array into Go"),
        ("application/json", "{\"metadata\":[]}", 400, "BadRequest", "json: cannot unmarshal array into Go"),
        ("application/json", "{\"metadata\":{\"name\":\"UPPER\"}}", 422, "Invalid", "metadata.name: Invalid value: \"UPPER\""),
        ("application/json", "{\"metadata\":{\"name\":\"a\",\"labels\":{\"x\":\"no spaces\"}}}", 422, "Invalid", "metadata.labels"),
        ("application/json", "{\"metadata\":{\"name\":\"a\",\"namespace\":\"other\"}}", 400, "BadRequest", "does not match the namespace sent on the request"),
        ("application/json", "{\"metadata\":{\"name\":\"a\",\"resourceVersion\":\"5\"}}", 400, "BadRequest", "resourceVersion should not be set"),
        ("application/yaml", "a: [", 400, "BadRequest", "yaml"),
        ("application/yaml", "- 1", 400, "BadRequest", "cannot unmarshal array"),
        ("application/vnd.kubernetes.protobuf", "k8s", 400, "BadRequest", "does not appear to be a protobuf message"),
        ("text/plain", "{}", 415, "UnsupportedMediaType", "accepted media types include"),
    ];
    for (media, body, code, reason, message) in table {
        let answer = post(&api, MAPS, media, *body).await;
        let found = answer.refused(*code, reason);
        assert!(found.contains(message), "{body}: {found}");
    }
    let deep = "[".repeat(100_000);
    post(&api, MAPS, "application/json", deep.clone())
        .await
        .refused(400, "BadRequest");
    post(&api, MAPS, "application/yaml", deep)
        .await
        .refused(400, "BadRequest");
    // This client looks for an answer only when all has been sent.
    for size in [4 << 20, 40 << 20] {
        let huge = format!(
            "{{\"metadata\":{{\"name\":\"a\"}},\"data\":{{\"x\":\"{}\"}}}}",
            "x".repeat(size)
        );
        let answer = post(&api, MAPS, "application/json", huge).await;
        let message = answer.refused(413, "RequestEntityTooLarge");
        assert!(message.contains("limit is 3145728"), "{message}");
    }
    assert_eq!(api.get(MAPS).await.ok()["items"], before["items"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_by_validation() {
    let api = Api::start().await;
    let body = r#"{"metadata":{"name":"a","bogus":1},"data":{"k":"1","k":"2"},"extra":true}"#;
    let strict = post(
        &api,
        &format!("{MAPS}?fieldValidation=Strict"),
        "application/json",
        body,
    )
    .await;
    let message = strict.refused(400, "BadRequest");
    for part in [
        "strict decoding error",
        "unknown field \"extra\"",
        "unknown field \"metadata.bogus\"",
        "duplicate field \"data.k\"",
    ] {
        assert!(message.contains(part), "{message}");
    }
    api.get(&format!("{MAPS}/a")).await.refused(404, "NotFound");
    let warned = post(&api, MAPS, "application/json", body).await;
    assert_eq!(warned.code, 201);
    let warnings: Vec<_> = warned
        .headers
        .get_all("warning")
        .iter()
        .map(|w| w.to_str().unwrap())
        .collect();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings[0].starts_with("299 - \""), "{warnings:?}");
    assert!(warned.body["extra"].is_null() && warned.body["data"]["k"] == "2");
    let ignored = post(
        &api,
        &format!("{MAPS}?fieldValidation=Ignore"),
        "application/json",
        body.replace("\"a\"", "\"b\""),
    )
    .await;
    assert!(ignored.code == 201 && !ignored.headers.contains_key("warning"));
    post(
        &api,
        &format!("{MAPS}?fieldValidation=Maybe"),
        "application/json",
        body,
    )
    .await
    .refused(422, "Invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn selectors_and_options() {
    let api = Api::start().await;
    #[rustfmt::skip]
    let table = [
        ("labelSelector=a+in+(", 400, "BadRequest"),
        ("labelSelector=-bad-%3D1", 400, "BadRequest"),
        ("fieldSelector=spec.bogus%3D1", 400, "BadRequest"),
        ("fieldSelector=nonsense", 400, "BadRequest"),
        ("limit=ten", 400, "BadRequest"),
        ("resourceVersion=x", 400, "BadRequest"),
        ("continue=garbage", 400, "BadRequest"),
        ("resourceVersionMatch=Exact", 422, "Invalid"),
        ("sendInitialEvents=true", 422, "Invalid"),
        ("watch=1&sendInitialEvents=true", 422, "Invalid"),
        ("watch=1&fieldSelector=spec.bogus%3D1", 400, "BadRequest"),
    ];
    for (query, code, reason) in table {
        api.get(&format!("{PODS}?{query}"))
            .await
            .refused(code, reason);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_and_methods() {
    let api = Api::start().await;
    #[rustfmt::skip]
    let table = [
        (Method::GET, "/api/v1/namespaces/default/unheardof", 404, "NotFound"),
        (Method::GET, "/apis/nope.example.com/v1/things", 404, "NotFound"),
        (Method::GET, "/apis/nope.example.com/v1", 404, "NotFound"),
        (Method::GET, "/nowhere", 404, "NotFound"),
        (Method::GET, "/api/v1/namespaces/default/nodes", 404, "NotFound"),
        (Method::GET, "/api/v1/namespaces/default/pods/x/nope", 404, "NotFound"),
        (Method::GET, "/api/v1/watch", 400, "BadRequest"),
        (Method::POST, "/api/v1/pods", 405, "MethodNotAllowed"),
        (Method::PUT, "/api/v1/namespaces/default/pods", 405, "MethodNotAllowed"),
        (Method::DELETE, "/api/v1/namespaces", 405, "MethodNotAllowed"),
        (Method::GET, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", 405, "MethodNotAllowed"),
        (Method::POST, "/version", 405, "MethodNotAllowed"),
    ];
    for (method, path, code, reason) in table {
        let answer = api.send(method, path, &[], Bytes::new()).await;
        assert!(!answer.refused(code, reason).is_empty(), "{path}");
    }
    let accept = [("accept", "application/octet-stream")];
    let answer = api.send(Method::GET, PODS, &accept, Bytes::new()).await;
    assert!(
        answer
            .refused(406, "NotAcceptable")
            .contains("application/json")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn identities() {
    let api = Api::start().await;
    let anonymous = api.send_anonymously(Method::GET, PODS, &[]).await;
    assert!(
        anonymous
            .refused(403, "Forbidden")
            .contains("User \"system:anonymous\" cannot list resource \"pods\"")
    );
    for token in ["forged", "a.b.c", "eyJhbGciOiJub25lIn0.e30."] {
        let header = format!("Bearer {token}");
        let answer = api
            .send_anonymously(Method::GET, PODS, &[("authorization", &header)])
            .await;
        assert_eq!(answer.refused(401, "Unauthorized"), "Unauthorized");
    }
    let account = json!({"metadata": {"name": "robot"}});
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    api.post(accounts, &account).await.ok();
    let token = api
        .post(&format!("{accounts}/robot/token"), &json!({"spec": {}}))
        .await
        .ok();
    let header = format!("Bearer {}", token["status"]["token"].as_str().unwrap());
    let answer = api
        .send_anonymously(Method::GET, PODS, &[("authorization", &header)])
        .await;
    assert!(
        answer
            .refused(403, "Forbidden")
            .contains("system:serviceaccount:default:robot")
    );
    assert_eq!(
        api.send_anonymously(Method::GET, "/livez", &[]).await.code,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn updates() {
    let api = Api::start().await;
    let created = api
        .post(MAPS, &json!({"metadata": {"name": "a"}}))
        .await
        .ok();
    let path = format!("{MAPS}/a");
    let mut other = created.clone();
    other["metadata"]["name"] = json!("b");
    assert!(
        api.put(&path, &other)
            .await
            .refused(400, "BadRequest")
            .contains("does not match the name on the URL")
    );
    let mut other = created.clone();
    other["metadata"]["uid"] = json!("11111111-2222-3333-4444-555555555555");
    assert!(
        api.put(&path, &other)
            .await
            .refused(409, "Conflict")
            .contains("Precondition failed: UID")
    );
    let mut other = created.clone();
    other["metadata"]["resourceVersion"] = json!("not a number");
    api.put(&path, &other).await.refused(400, "BadRequest");
    api.put(&path, &json!({})).await.refused(400, "BadRequest");
    assert_eq!(api.get(&path).await.ok(), created);
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_that_leave_no_object() {
    let api = Api::start().await;
    let path = format!("{MAPS}/a");
    let created = api
        .post(MAPS, &json!({"metadata": {"name": "a"}}))
        .await
        .ok();
    for value in [json!("x"), json!([]), json!(null), json!(1)] {
        let patch = json!([{"op": "replace", "path": "", "value": value}]);
        let refused = api.patch(&path, "json", &patch).await;
        let message = refused.refused(422, "Invalid").to_owned();
        assert!(message.contains("couldn't get version/kind"), "{message}");
    }
    assert_eq!(api.get(&path).await.ok(), created);
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_documents() {
    let api = Api::start().await;
    let nested = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    for media in ["application/json", "application/yaml"] {
        for depth in [60, 100, 120, 200, 100_000] {
            let answer = post(&api, MAPS, media, nested(depth)).await;
            answer.refused(
                if depth < 128 { 422 } else { 400 },
                if depth < 128 { "Invalid" } else { "BadRequest" },
            );
        }
    }
}
