//! Who gets in, what is noted of them, how they share the server, and what the disk shows of their secrets.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::common::{Answer, Api, PATIENCE, until};
use apiserver::authn::keys::{SigningKey, key_set};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Response};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const WHO: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

fn file(directory: &TempDir, name: &str, text: &str) -> String {
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Who a token is.
async fn who(api: &Api, token: &str) -> Answer {
    let authorization = format!("Bearer {token}");
    let headers = [
        ("authorization", authorization.as_str()),
        ("content-type", "application/json"),
    ];
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    api.send_as(
        api.nobody(),
        Method::POST,
        WHO,
        &headers,
        body.to_string().into(),
    )
    .await
}

fn user(answer: Answer) -> Value {
    let answer = answer.ok();
    answer["status"]["userInfo"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_files_and_secrets() {
    let directory = TempDir::new().unwrap();
    let tokens = file(&directory, "tokens.csv", "t0ken,jane,42,\"dev,ops\"\n");
    let api = Api::start_with(&[
        "--token-auth-file",
        &tokens,
        "--enable-bootstrap-token-auth",
    ])
    .await;
    let jane = user(who(&api, "t0ken").await);
    assert_eq!(
        jane,
        json!({"username": "jane", "uid": "42", "groups": ["dev", "ops", "system:authenticated"]})
    );
    who(&api, "other").await.refused(401, "Unauthorized");

    let token = "abcdef.0123456789abcdef";
    who(&api, token).await.refused(401, "Unauthorized");
    let secret = json!({
        "metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token",
        "stringData": {"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true"},
    });
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    api.post(secrets, &secret).await.ok();
    let machine = user(who(&api, token).await);
    assert_eq!(machine["username"], "system:bootstrap:abcdef");
    assert_eq!(
        machine["groups"],
        json!(["system:bootstrappers", "system:authenticated"])
    );
    who(&api, "abcdef.0000000000000000")
        .await
        .refused(401, "Unauthorized");
}

/// Serves JSON documents by path over TLS on the loopback; `requests` gets what is posted.
async fn documents(
    certificate: &str,
    key: &str,
    answer: impl Fn(&str, Value) -> Value + Send + Sync + 'static,
) -> SocketAddr {
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
                    let answer = answer.clone();
                    async move {
                        use http_body_util::BodyExt;
                        let path = request.uri().path().to_owned();
                        let bytes = request.into_body().collect().await.unwrap().to_bytes();
                        let posted = serde_json::from_slice(&bytes).unwrap_or_default();
                        let text = answer(&path, posted).to_string();
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                    }
                });
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

fn self_signed() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// A token that a token controller has put into a Secret, as it may be in a cluster that Kubernetes' programs have run.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_live_in_secrets() {
    const SECRETS: &str = "/api/v1/namespaces/default/secrets";
    let api = Api::start().await;
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let uid = api.post(accounts, &account).await.ok()["metadata"]["uid"].clone();
    let pem = std::fs::read(api.directory.path().join("sa.key")).unwrap();
    let signing = SigningKey::read(&pem).unwrap();
    let claims = json!({
        "iss": "kubernetes/serviceaccount",
        "sub": "system:serviceaccount:default:robot",
        "kubernetes.io/serviceaccount/namespace": "default",
        "kubernetes.io/serviceaccount/secret.name": "robot-token",
        "kubernetes.io/serviceaccount/service-account.name": "robot",
        "kubernetes.io/serviceaccount/service-account.uid": uid,
    });
    let token = signing.sign(&claims).unwrap();
    who(&api, &token).await.refused(401, "Unauthorized");
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "robot-token", "annotations": {"kubernetes.io/service-account.name": "robot"}},
        "type": "kubernetes.io/service-account-token",
        "data": {"token": STANDARD.encode(&token)},
    });
    api.post(SECRETS, &secret).await.ok();
    let robot = user(who(&api, &token).await);
    assert_eq!(robot["username"], "system:serviceaccount:default:robot");
    assert_eq!(robot["uid"], uid);
    let path = format!("{SECRETS}/robot-token");
    let labels = api.get(&path).await.ok()["metadata"]["labels"].clone();
    let day: jiff::civil::Date = labels["kubernetes.io/legacy-token-last-used"]
        .as_str()
        .and_then(|day| day.parse().ok())
        .expect("the day of the last use");
    let tracking = "/api/v1/namespaces/kube-system/configmaps/kube-apiserver-legacy-service-account-token-tracking";
    let since = api.get(tracking).await.ok()["data"]["since"].clone();
    assert!(day >= since.as_str().unwrap().parse().unwrap());

    // Who was let in is believed for a moment: these are other tokens, for the same Secret.
    for (change, token) in [
        (
            json!({"metadata": {"labels": {"kubernetes.io/legacy-token-invalid-since": "2026-01-01"}}}),
            true,
        ),
        (json!({"metadata": {"labels": null}}), false),
    ] {
        let mut claims = claims.clone();
        claims["jti"] = json!(token);
        let other = signing.sign(&claims).unwrap();
        if token {
            let data = json!({"data": {"token": STANDARD.encode(&other)}});
            api.patch(&path, "merge", &data).await.ok();
        }
        api.patch(&path, "merge", &change).await.ok();
        who(&api, &other).await.refused(401, "Unauthorized");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_an_issuer() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = TempDir::new().unwrap();
    let (certificate, key) = self_signed();
    let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let signing = SigningKey::read(pem.as_bytes()).unwrap();
    let keys = key_set(std::slice::from_ref(&signing.public));
    let url: Arc<std::sync::OnceLock<String>> = Arc::default();
    let told = url.clone();
    let address = documents(&certificate, &key, move |path, _| match path {
        "/.well-known/openid-configuration" => {
            let url = told.get().unwrap();
            json!({"issuer": url, "jwks_uri": format!("{url}/keys")})
        }
        _ => keys.clone(),
    })
    .await;
    let issuer = url.get_or_init(|| format!("https://localhost:{}", address.port()));
    let authority = file(&directory, "issuer.crt", &certificate);
    let api = Api::start_with(&[
        "--oidc-issuer-url",
        issuer,
        "--oidc-client-id",
        "skiff",
        "--oidc-ca-file",
        &authority,
        "--oidc-signing-algs",
        "ES256",
        "--oidc-groups-claim",
        "groups",
        "--oidc-groups-prefix",
        "oidc:",
    ])
    .await;
    let now = jiff::Timestamp::now().as_second();
    let claims =
        json!({"iss": issuer, "aud": "skiff", "sub": "jane", "exp": now + 60, "groups": ["dev"]});
    let sign = |change: &dyn Fn(&mut Value)| {
        let mut claims = claims.clone();
        change(&mut claims);
        signing.sign(&claims).unwrap()
    };
    let jane = user(who(&api, &sign(&|_| {})).await);
    assert_eq!(jane["username"], format!("{issuer}#jane"));
    assert_eq!(jane["groups"], json!(["oidc:dev", "system:authenticated"]));
    let changes: [&dyn Fn(&mut Value); 3] = [
        &|c| c["aud"] = "other".into(),
        &|c| c["exp"] = (now - 60).into(),
        &|c| c["sub"] = Value::Null,
    ];
    for change in changes {
        who(&api, &sign(change)).await.refused(401, "Unauthorized");
    }
    let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let forged = SigningKey::read(pem.as_bytes())
        .unwrap()
        .sign(&claims)
        .unwrap();
    who(&api, &forged).await.refused(401, "Unauthorized");
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_know_tokens_and_decide() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = TempDir::new().unwrap();
    let (certificate, key) = self_signed();
    let address = documents(&certificate, &key, |path, review| {
        let spec = &review["spec"];
        if path == "/tokens" {
            let known = spec["token"] == "t";
            return json!({"status": {"authenticated": known, "user": {"username": "hook", "groups": ["g"]}}});
        }
        let maps = spec["resourceAttributes"]["resource"] == "configmaps";
        json!({"status": {"allowed": maps && spec["user"] == "hook", "reason": "because"}})
    })
    .await;
    let hook = |name: &str| {
        let config = json!({
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://localhost:{}/{name}", address.port()),
                "certificate-authority-data": STANDARD.encode(&certificate)}}],
            "contexts": [{"name": "c", "context": {"cluster": "c"}}], "current-context": "c",
        });
        file(&directory, name, &config.to_string())
    };
    let (tokens, access) = (hook("tokens"), hook("access"));
    let api = Api::start_with(&[
        "--authentication-token-webhook-config-file",
        &tokens,
        "--authentication-token-webhook-version",
        "v1",
        "--authorization-mode",
        "RBAC,Webhook",
        "--authorization-webhook-config-file",
        &access,
        "--authorization-webhook-version",
        "v1",
    ])
    .await;
    assert_eq!(user(who(&api, "t").await)["username"], "hook");
    who(&api, "u").await.refused(401, "Unauthorized");
    let token = [("authorization", "Bearer t")];
    let get =
        |path: &'static str| api.send_as(api.nobody(), Method::GET, path, &token, Bytes::new());
    assert_eq!(get("/api/v1/namespaces/default/configmaps").await.code, 200);
    let refused = get("/api/v1/namespaces/default/secrets").await;
    assert!(refused.refused(403, "Forbidden").ends_with(": because"));
}

#[tokio::test(flavor = "multi_thread")]
async fn anonymous_requests_get_only_where_they_may() {
    let directory = TempDir::new().unwrap();
    let config = file(
        &directory,
        "authentication.yaml",
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous:\n  enabled: true\n  conditions:\n  - path: /livez\n",
    );
    let api = Api::start_with(&["--authentication-config", &config]).await;
    assert_eq!(
        api.send_anonymously(Method::GET, "/livez", &[]).await.code,
        200
    );
    let refused = api.send_anonymously(Method::GET, "/version", &[]).await;
    refused.refused(401, "Unauthorized");
    let keys = api.get("/openid/v1/jwks").await;
    assert_eq!(keys.headers["content-type"], "application/jwk-set+json");
    let configuration = api.get("/.well-known/openid-configuration").await.ok();
    assert!(
        configuration["jwks_uri"]
            .as_str()
            .unwrap()
            .ends_with("/openid/v1/jwks")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_leave_a_trail() {
    let directory = TempDir::new().unwrap();
    let policy = file(
        &directory,
        "policy.yaml",
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- level: Metadata\n  resources: [{group: '', resources: [secrets]}]\n- level: RequestResponse\n  resources: [{group: '', resources: [configmaps]}]\n- level: None\n",
    );
    let log = directory.path().join("audit.log");
    let api = Api::start_with(&[
        "--audit-policy-file",
        &policy,
        "--audit-log-path",
        &log.display().to_string(),
    ])
    .await;
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"k": "v"}});
    api.post("/api/v1/namespaces/default/secrets", &secret)
        .await
        .ok();
    let map = json!({"metadata": {"name": "audited"}, "data": {"k": "v"}});
    let answer = api
        .post("/api/v1/namespaces/default/configmaps", &map)
        .await;
    let id = answer.headers["audit-id"].to_str().unwrap().to_owned();
    answer.ok();
    let missing = "/api/v1/namespaces/default/configmaps/missing";
    let jane = [("impersonate-user", "jane")];
    api.send(Method::GET, missing, &jane, Bytes::new())
        .await
        .refused(403, "Forbidden");
    let events = until("events are written", || async {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let events: Vec<Value> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        let complete = events.iter().any(|e| e["objectRef"]["name"] == "missing");
        complete.then_some(events)
    })
    .await;
    let created = |name: &str| {
        let ours = |e: &&Value| {
            e["verb"] == "create"
                && e["user"]["username"] == "admin"
                && e["objectRef"]["resource"] == name
        };
        events.iter().find(ours).unwrap()
    };
    let map = events.iter().find(|e| e["auditID"] == id).unwrap();
    assert_eq!(
        (&map["level"], &map["stage"]),
        (&json!("RequestResponse"), &json!("ResponseComplete"))
    );
    assert_eq!(map["requestObject"]["data"], json!({"k": "v"}));
    assert!(map["responseObject"]["metadata"]["uid"].is_string());
    assert_eq!(map["responseStatus"]["code"], 201);
    assert_eq!(map["annotations"]["authorization.k8s.io/decision"], "allow");
    assert_eq!(map["sourceIPs"], json!(["127.0.0.1"]));
    let secret = created("secrets");
    assert_eq!(secret["level"], "Metadata");
    assert!(secret.get("requestObject").is_none() && secret.get("responseObject").is_none());
    let refused = events
        .iter()
        .find(|e| e["objectRef"]["name"] == "missing")
        .unwrap();
    assert_eq!(refused["impersonatedUser"]["username"], "jane");
    assert_eq!(
        refused["annotations"]["authorization.k8s.io/decision"],
        "forbid"
    );
    assert_eq!(refused["responseStatus"]["reason"], "Forbidden");
}

/// An EncryptionConfiguration for Secrets with these keys of AES-GCM.
fn sealing(keys: &[&str]) -> String {
    let keys = keys.iter().map(|name| {
        let secret = STANDARD.encode([name.len() as u8; 32]);
        json!({"name": name, "secret": secret})
    });
    let keys: Vec<Value> = keys.collect();
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
        "resources": [{"resources": ["secrets"], "providers": [{"aesgcm": {"keys": keys}}, {"identity": {}}]}],
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_does_not_show_secrets() {
    let directory = TempDir::new().unwrap();
    let config = file(&directory, "encryption.yaml", &sealing(&["k"]));
    let api = Api::start_with(&["--encryption-provider-config", &config]).await;
    for (path, name) in [("secrets", "hidden"), ("configmaps", "shown")] {
        let object = json!({"metadata": {"name": name, "annotations": {"text": format!("{name}-from-the-disk")}}});
        api.post(&format!("/api/v1/namespaces/default/{path}"), &object)
            .await
            .ok();
    }
    let secret = api
        .get("/api/v1/namespaces/default/secrets/hidden")
        .await
        .ok();
    assert_eq!(
        secret["metadata"]["annotations"]["text"],
        "hidden-from-the-disk"
    );
    let list = api.get("/api/v1/namespaces/default/secrets").await.ok();
    assert!(
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|s| s["metadata"]["name"] == "hidden")
    );
    let disk = std::fs::read(api.directory.path().join("data/store.redb")).unwrap();
    let shows = |text: &str| {
        disk.windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    assert!(shows("shown-from-the-disk"));
    assert!(!shows("hidden-from-the-disk"));
    assert!(shows("k8s:enc:aesgcm:v1:k:"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_without_a_change_seals_anew() {
    let directory = TempDir::new().unwrap();
    let config = file(&directory, "encryption.yaml", &sealing(&["old"]));
    let api = Api::start_with(&[
        "--encryption-provider-config",
        &config,
        "--encryption-provider-config-automatic-reload",
    ])
    .await;
    let (secrets, path) = (
        "/api/v1/namespaces/default/secrets",
        "/api/v1/namespaces/default/secrets/s",
    );
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"k": "v"}});
    api.post(secrets, &secret).await.ok();
    let version = |secret: &Value| secret["metadata"]["resourceVersion"].clone();
    let touch = || async {
        let secret = api.get(path).await.ok();
        let updated = api.put(path, &secret).await.ok();
        (version(&secret), version(&updated))
    };
    let (before, after) = touch().await;
    assert_eq!(before, after);
    file(&directory, "encryption.yaml", &sealing(&["newer", "old"]));
    until("the secret is written with the new key", || async {
        let (before, after) = touch().await;
        (before != after).then_some(())
    })
    .await;
    let (before, after) = touch().await;
    assert_eq!(before, after);
    assert_eq!(api.get(path).await.ok()["data"]["k"], "dg==");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_classified() {
    const FLOW: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";
    let api = Api::start().await;
    let level = json!({"metadata": {"name": "test"}, "spec": {"type": "Limited", "limited": {
        "nominalConcurrencyShares": 1, "limitResponse": {"type": "Reject"}}}});
    let level = api
        .post(&format!("{FLOW}/prioritylevelconfigurations"), &level)
        .await
        .ok();
    let schema = json!({"metadata": {"name": "test"}, "spec": {
        "matchingPrecedence": 1000, "priorityLevelConfiguration": {"name": "test"},
        "distinguisherMethod": {"type": "ByUser"},
        "rules": [{"subjects": [{"kind": "User", "user": {"name": "noxu"}}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}]}});
    let schema = api.post(&format!("{FLOW}/flowschemas"), &schema).await.ok();
    let wait = async {
        let mut watch = api
            .watch(&format!(
                "{FLOW}/flowschemas?watch=1&fieldSelector=metadata.name%3Dtest"
            ))
            .await;
        loop {
            let event = watch.next().await.unwrap();
            if event["object"]["status"]["conditions"][0]["status"] == "False" {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("the schema is taken");
    let ask = |name: &'static str| {
        let api = &api;
        async move {
            let headers = [("impersonate-user", name)];
            api.send(Method::GET, "/version", &headers, Bytes::new())
                .await
                .headers
        }
    };
    let known = ask("noxu").await;
    assert_eq!(
        known["x-kubernetes-pf-flowschema-uid"],
        schema["metadata"]["uid"].as_str().unwrap()
    );
    assert_eq!(
        known["x-kubernetes-pf-prioritylevel-uid"],
        level["metadata"]["uid"].as_str().unwrap()
    );
    let other = ask("foo").await;
    assert!(!other["x-kubernetes-pf-flowschema-uid"].is_empty());
    assert_ne!(
        other["x-kubernetes-pf-flowschema-uid"],
        known["x-kubernetes-pf-flowschema-uid"]
    );
    let metrics = String::from_utf8(api.get("/metrics").await.bytes.to_vec()).unwrap();
    assert!(metrics.contains("apiserver_flowcontrol_nominal_limit_seats{priority_level=\"test\"}"));
}
