//! Certificate signing requests: whose they are, who may approve and sign them, and what stays as it is.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Method;
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::{Value, json};

use crate::common::{Answer, Api};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
const SIGNER: &str = "example.com/signer";

fn request(name: &str, signer: &str, group: &str) -> Value {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "jane");
    params
        .distinguished_name
        .push(DnType::OrganizationName, group);
    let key = KeyPair::generate().unwrap();
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {"request": STANDARD.encode(pem), "signerName": signer, "usages": ["client auth"]},
    })
}

fn certificate() -> String {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::default().self_signed(&key).unwrap();
    STANDARD.encode(certificate.pem())
}

fn condition(kind: &str) -> Value {
    json!({"type": kind, "status": "True", "reason": "Test", "message": "by a test"})
}

fn with_conditions(request: &Value, kinds: &[&str]) -> Value {
    let mut request = request.clone();
    request["status"]["conditions"] = kinds.iter().copied().map(condition).collect();
    request
}

async fn put_as(api: &Api, user: &str, path: &str, object: &Value) -> Answer {
    let headers = [
        ("impersonate-user", user),
        ("content-type", "application/json"),
    ];
    let body = Bytes::from(object.to_string());
    api.send(Method::PUT, path, &headers, body).await
}

/// A role with these rules, and a user who has it.
async fn grant(api: &Api, name: &str, rules: Value) {
    api.post(ROLES, &json!({"metadata": {"name": name}, "rules": rules}))
        .await
        .ok();
    let reference =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name});
    let subject = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name});
    let binding = json!({"metadata": {"name": name}, "roleRef": reference, "subjects": [subject]});
    api.post(BINDINGS, &binding).await.ok();
}

fn rules(verb: &str, signers: &[&str]) -> Value {
    json!([
        {"apiGroups": ["certificates.k8s.io"], "verbs": ["update"],
            "resources": ["certificatesigningrequests/approval", "certificatesigningrequests/status"]},
        {"apiGroups": ["certificates.k8s.io"], "verbs": [verb], "resources": ["signers"], "resourceNames": signers},
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_says_whose_a_request_is() {
    let api = Api::start().await;
    let mut forged = request("a", SIGNER, "team");
    forged["spec"]["username"] = "somebody".into();
    forged["spec"]["groups"] = json!(["system:nodes"]);
    forged["status"] = json!({"conditions": [condition("Approved")], "certificate": certificate()});
    let made = api.post(REQUESTS, &forged).await.ok();
    assert_eq!(made["spec"]["username"], "admin");
    assert_eq!(
        made["spec"]["groups"],
        json!(["system:masters", "system:authenticated"])
    );
    assert_eq!(made["status"], json!({}));

    // What was asked for is never another thing later.
    let path = format!("{REQUESTS}/a");
    let mut changed = made.clone();
    changed["spec"]["signerName"] = "example.com/other".into();
    changed["spec"]["username"] = "somebody".into();
    changed["metadata"]["labels"] = json!({"kept": "yes"});
    changed["status"] = json!({"conditions": [condition("Approved")]});
    let now = api.put(&path, &changed).await.ok();
    assert_eq!(
        (&now["spec"], &now["status"]),
        (&made["spec"], &made["status"])
    );
    assert_eq!(now["metadata"]["labels"]["kept"], "yes");

    for (field, value) in [
        ("request", json!(STANDARD.encode("no request"))),
        ("usages", json!(["everything"])),
        ("signerName", json!("kubernetes.io/legacy-unknown")),
        ("expirationSeconds", json!(599)),
    ] {
        let mut bad = request("b", SIGNER, "team");
        bad["spec"][field] = value;
        let answer = api.post(REQUESTS, &bad).await;
        let why = answer.refused(422, "Invalid");
        assert!(why.contains(&format!("spec.{field}")), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ordinary_clients_do_not_become_administrators() {
    const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
    let api = Api::start().await;
    let answer = api
        .post(REQUESTS, &request("a", CLIENT, "system:masters"))
        .await;
    let why = answer.refused(403, "Forbidden");
    assert!(
        why.ends_with("use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"),
        "{why}"
    );
    api.post(REQUESTS, &request("a", CLIENT, "team")).await.ok();
    api.post(REQUESTS, &request("b", SIGNER, "system:masters"))
        .await
        .ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn approval_takes_its_own_right_and_stays() {
    let api = Api::start().await;
    grant(&api, "writer", rules("get", &[SIGNER])).await;
    grant(&api, "approver", rules("approve", &[SIGNER])).await;
    grant(&api, "domain", rules("approve", &["example.com/*"])).await;
    let made = api.post(REQUESTS, &request("a", SIGNER, "team")).await.ok();
    let path = format!("{REQUESTS}/a/approval");
    let approved = with_conditions(&made, &["Approved"]);
    let refused = put_as(&api, "writer", &path, &approved).await;
    let why = refused.refused(403, "Forbidden");
    assert!(
        why.contains(
            "user not permitted to approve requests with signerName \"example.com/signer\""
        ),
        "{why}"
    );
    let both = with_conditions(&made, &["Approved", "Denied"]);
    put_as(&api, "approver", &path, &both)
        .await
        .refused(422, "Invalid");
    // A certificate does not come by this way.
    let mut more = approved.clone();
    more["status"]["certificate"] = certificate().into();
    let now = put_as(&api, "approver", &path, &more).await.ok();
    let status = &now["status"];
    assert_eq!(
        (&status["certificate"], &status["conditions"][0]["type"]),
        (&Value::Null, &json!("Approved"))
    );
    assert!(status["conditions"][0]["lastUpdateTime"].is_string());
    let back = put_as(&api, "approver", &path, &with_conditions(&now, &[])).await;
    let why = back.refused(422, "Invalid");
    assert!(
        why.contains("updates may not remove a condition of type \"Approved\""),
        "{why}"
    );

    // The right may be for all signers of a domain, and ends with it.
    for (name, signer, code) in [
        ("b", "example.com/another", 200),
        ("c", "example.org/signer", 403),
    ] {
        let made = api
            .post(REQUESTS, &request(name, signer, "team"))
            .await
            .ok();
        let path = format!("{REQUESTS}/{name}/approval");
        let answer = put_as(&api, "domain", &path, &with_conditions(&made, &["Denied"])).await;
        assert_eq!(answer.code, code, "{signer}: {}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_given_once_by_who_may_sign() {
    let api = Api::start().await;
    grant(&api, "approver", rules("approve", &[SIGNER])).await;
    grant(&api, "signer", rules("sign", &[SIGNER])).await;
    let made = api.post(REQUESTS, &request("a", SIGNER, "team")).await.ok();
    let path = format!("{REQUESTS}/a/status");
    // Signers do not approve.
    let answer = put_as(
        &api,
        "signer",
        &path,
        &with_conditions(&made, &["Approved"]),
    )
    .await;
    let why = answer.refused(422, "Invalid");
    assert!(
        why.contains("updates may not add a condition of type \"Approved\""),
        "{why}"
    );
    let mut signed = made.clone();
    signed["status"]["certificate"] = certificate().into();
    let answer = put_as(&api, "approver", &path, &signed).await;
    let why = answer.refused(403, "Forbidden");
    assert!(
        why.contains("user not permitted to sign requests with signerName \"example.com/signer\""),
        "{why}"
    );
    let mut bad = made.clone();
    bad["status"]["certificate"] = STANDARD.encode("no certificate").into();
    put_as(&api, "signer", &path, &bad)
        .await
        .refused(422, "Invalid");
    let now = put_as(&api, "signer", &path, &signed).await.ok();
    assert_eq!(
        now["status"]["certificate"],
        signed["status"]["certificate"]
    );
    let mut other = now.clone();
    other["status"]["certificate"] = certificate().into();
    let answer = put_as(&api, "signer", &path, &other).await;
    let why = answer.refused(422, "Invalid");
    assert!(
        why.contains("updates may not modify existing certificate content"),
        "{why}"
    );
    // Whoever changes neither needs no right to sign.
    put_as(&api, "approver", &path, &now).await.ok();
}
