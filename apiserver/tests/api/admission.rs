//! Admission that users configure: webhooks over TLS on loopback, and policies.

use std::sync::{Arc, Mutex};

use crate::common::{self, Answer, Api};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Response;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";

/// A webhook that answers as told and remembers what it was asked.
struct Hook {
    url: String,
    ca: String,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Hook {
    async fn start(respond: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Self {
        let key = KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/hook", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (respond, log) = (Arc::new(respond), asked.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, respond, log) = (acceptor.clone(), respond.clone(), log.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(
                        move |request: http::Request<hyper::body::Incoming>| {
                            let (respond, log) = (respond.clone(), log.clone());
                            async move {
                                let bytes = request.into_body().collect().await?.to_bytes();
                                let review: Value = serde_json::from_slice(&bytes).unwrap();
                                let mut response = respond(&review["request"]);
                                response["uid"] = review["request"]["uid"].clone();
                                let answer = json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"],
                                "response": response});
                                log.lock().unwrap().push(review["request"].clone());
                                Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(
                                    answer.to_string(),
                                ))))
                            }
                        },
                    );
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            url,
            ca: STANDARD.encode(certificate.pem()),
            asked,
        }
    }

    /// A webhook over ConfigMaps named `test-...`.
    fn webhook(&self, name: &str) -> Value {
        json!({"name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": {"url": self.url, "caBundle": self.ca},
            "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
            "matchConditions": [{"name": "ours", "expression":
                "(object != null ? object : oldObject).metadata.name.startsWith('test-')"}]})
    }
}

async fn configure(api: &Api, kind: &str, webhook: Value) {
    let plural = format!("{}s", kind.to_lowercase());
    let object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
        "metadata": {"name": "test"}, "webhooks": [webhook]});
    api.post(&format!("{REGISTRATION}/{plural}"), &object)
        .await
        .ok();
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

/// Creates until the answer is as wanted: configurations take effect with the watch.
async fn until(api: &Api, path: &str, object: &Value, wanted: impl Fn(&Answer) -> bool) -> Answer {
    common::until("the configuration takes effect", || async {
        let answer = api.post(path, object).await;
        if !wanted(&answer) && answer.code == 201 {
            let name = object["metadata"]["name"].as_str().unwrap();
            api.delete(&format!("{path}/{name}")).await;
        }
        wanted(&answer).then_some(answer)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn validating_webhooks() {
    let api = Api::start().await;
    let hook = Hook::start(|request| {
        let bad = request["object"]["data"]["k"] == "bad" || request["operation"] == "DELETE";
        json!({"allowed": !bad, "status": {"message": "not this", "code": 403, "reason": "Forbidden"},
            "warnings": ["seen"]})
    })
    .await;
    configure(
        &api,
        "ValidatingWebhookConfiguration",
        hook.webhook("a.example.com"),
    )
    .await;
    let mut bad = map("test-bad");
    bad["data"]["k"] = json!("bad");
    let refused = until(&api, MAPS, &bad, |answer| answer.code != 201).await;
    assert_eq!(
        refused.refused(403, "Forbidden"),
        "admission webhook \"a.example.com\" denied the request: not this"
    );
    let allowed = api.post(MAPS, &map("test-good")).await;
    assert_eq!(allowed.code, 201);
    assert!(
        allowed.headers["warning"]
            .to_str()
            .unwrap()
            .contains("seen")
    );
    let request = hook.asked.lock().unwrap().last().unwrap().clone();
    assert_eq!(request["operation"], "CREATE");
    assert_eq!(
        request["kind"],
        json!({"group": "", "version": "v1", "kind": "ConfigMap"})
    );
    assert_eq!(request["resource"]["resource"], "configmaps");
    assert_eq!(request["object"]["data"]["k"], "v");
    assert_eq!(request["oldObject"], Value::Null);
    assert_eq!(request["namespace"], "default");
    // A delete shows what is to go.
    let kept = api.delete(&format!("{MAPS}/test-good")).await;
    assert!(
        kept.refused(403, "Forbidden")
            .contains("denied the request")
    );
    // Whom the conditions leave out is not asked about.
    let before = hook.asked.lock().unwrap().len();
    api.post(MAPS, &map("other")).await.ok();
    assert_eq!(hook.asked.lock().unwrap().len(), before);
    // The configuration itself can always be removed.
    api.delete(&format!(
        "{REGISTRATION}/validatingwebhookconfigurations/test"
    ))
    .await
    .ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn mutating_webhooks() {
    let api = Api::start().await;
    let hook = Hook::start(|request| {
        let patch = json!([{"op": "add", "path": "/data/added", "value": "yes"}]).to_string();
        match request["operation"].as_str() {
            Some("CREATE") => {
                json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch)})
            }
            _ => json!({"allowed": true}),
        }
    })
    .await;
    configure(
        &api,
        "MutatingWebhookConfiguration",
        hook.webhook("a.example.com"),
    )
    .await;
    let created = until(&api, MAPS, &map("test-a"), |answer| {
        answer.body["data"]["added"] == "yes"
    })
    .await;
    assert_eq!(created.body["data"]["k"], "v");
    assert_eq!(
        api.get(&format!("{MAPS}/test-a")).await.ok()["data"]["added"],
        "yes"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_that_cannot_be_asked() {
    let api = Api::start().await;
    let hook = Hook::start(|_| json!({"allowed": true})).await;
    let mut webhook = hook.webhook("a.example.com");
    webhook["clientConfig"] = json!({"url": "https://127.0.0.1:1/nobody"});
    configure(&api, "ValidatingWebhookConfiguration", webhook).await;
    let failed = until(&api, MAPS, &map("test-a"), |answer| answer.code != 201).await;
    let message = failed.refused(500, "InternalError");
    assert!(
        message.starts_with(
            "Internal error occurred: failed calling webhook \"a.example.com\": failed to call webhook: \
             Post \"https://127.0.0.1:1/nobody?timeout=10s\": "
        ),
        "{message}"
    );
    let path = format!("{REGISTRATION}/validatingwebhookconfigurations/test");
    let ignore = json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]);
    api.patch(&path, "json", &ignore).await.ok();
    until(&api, MAPS, &map("test-a"), |answer| answer.code == 201).await;
}

fn policy(spec: Value) -> Value {
    let mut spec = spec;
    spec["matchConstraints"] = json!({"resourceRules": [
        {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]});
    let kind = match spec["mutations"].is_array() {
        true => "MutatingAdmissionPolicy",
        false => "ValidatingAdmissionPolicy",
    };
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "p"}, "spec": spec})
}

async fn bind(api: &Api, policy: &Value, spec: Value) {
    let kind = policy["kind"].as_str().unwrap();
    let plural = kind.to_lowercase().replace("policy", "policies");
    api.post(&format!("{REGISTRATION}/{plural}"), policy)
        .await
        .ok();
    let mut spec = spec;
    spec["policyName"] = json!("p");
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": format!("{kind}Binding"),
        "metadata": {"name": "b"}, "spec": spec});
    let plural = format!("{}bindings", kind.to_lowercase());
    api.post(&format!("{REGISTRATION}/{plural}"), &binding)
        .await
        .ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn validating_policies() {
    let api = Api::start().await;
    api.post(MAPS, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "params"}, "data": {"max": "2"}}))
        .await
        .ok();
    let spec = json!({
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "variables": [
            {"name": "size", "expression": "object.data.size()"},
            {"name": "fits", "expression": "variables.size <= int(params.data.max)"}],
        "matchConditions": [{"name": "ours", "expression": "object.metadata.name.startsWith('test-')"}],
        "validations": [
            {"expression": "variables.fits", "messageExpression": "'too many: ' + string(variables.size)"},
            {"expression": "namespaceObject.metadata.name == 'default' && request.operation == 'CREATE'"},
            {"expression": "authorizer.group('').resource('pods').namespace('default').check('create').allowed()"}],
    });
    let reference = json!({"name": "params", "parameterNotFoundAction": "Deny"});
    bind(
        &api,
        &policy(spec),
        json!({"validationActions": ["Deny"], "paramRef": reference}),
    )
    .await;
    let mut large = map("test-large");
    large["data"] = json!({"a": "", "b": "", "c": ""});
    let refused = until(&api, MAPS, &large, |answer| answer.code != 201).await;
    assert_eq!(
        refused.refused(422, "Invalid"),
        "configmaps \"test-large\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: \
         too many: 3"
    );
    api.post(MAPS, &map("test-small")).await.ok();
    // Without its parameter the binding refuses.
    api.delete(&format!("{MAPS}/params")).await.ok();
    let refused = until(&api, MAPS, &map("test-other"), |answer| answer.code != 201).await;
    assert!(
        refused
            .refused(422, "Invalid")
            .contains("no params found for policy binding with `Deny`")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn mutating_policies() {
    let api = Api::start().await;
    let spec = json!({"reinvocationPolicy": "Never", "mutations": [
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
            "Object{metadata: Object.metadata{labels: {'by': 'policy'}}}"}},
        {"patchType": "JSONPatch", "jsonPatch": {"expression":
            "[JSONPatch{op: 'add', path: '/data/' + jsonpatch.escapeKey('new'), value: object.metadata.labels.by}]"}}]});
    bind(&api, &policy(spec), json!({})).await;
    let created = until(&api, MAPS, &map("test-a"), |answer| {
        answer.body["metadata"]["labels"]["by"] == "policy"
    })
    .await;
    assert_eq!(created.body["data"], json!({"k": "v", "new": "policy"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_configurations_are_refused() {
    let api = Api::start().await;
    let bad = policy(json!({"validations": [{"expression": "object.x >"}]}));
    let answer = api
        .post(&format!("{REGISTRATION}/validatingadmissionpolicies"), &bad)
        .await;
    let message = answer.refused(422, "Invalid");
    assert!(message.contains("spec.validations[0].expression: Invalid value: \"object.x >\": compilation failed: ERROR: <input>:1:"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_labelled_with_the_place_of_their_node() {
    const PODS: &str = "/api/v1/namespaces/default/pods";
    let api = Api::start().await;
    for (name, labels) in [
        (
            "placed",
            json!({"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r", "other": "o"}),
        ),
        ("plain", json!({"other": "o"})),
    ] {
        let node = json!({"metadata": {"name": name, "labels": labels}});
        api.post("/api/v1/nodes", &node).await.ok();
    }
    api.post(
        "/api/v1/namespaces/default/serviceaccounts",
        &json!({"metadata": {"name": "default"}}),
    )
    .await;
    let pod = |name: &str, node: &str| {
        json!({"metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "mine"}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}})
    };
    let labels = |pod: &Value| pod["metadata"]["labels"].clone();
    let placed = json!({"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r"});
    let made = api.post(PODS, &pod("made", "placed")).await.ok();
    assert_eq!(labels(&made), placed);
    for (name, node) in [("a", "plain"), ("b", "missing")] {
        let made = api.post(PODS, &pod(name, node)).await.ok();
        assert_eq!(
            labels(&made),
            json!({"topology.kubernetes.io/zone": "mine"})
        );
    }
    // A scheduler's word comes by another way, with labels of its own.
    let waiting = api.post(PODS, &pod("bound", "")).await.ok();
    assert_eq!(
        labels(&waiting),
        json!({"topology.kubernetes.io/zone": "mine"})
    );
    let binding = json!({"metadata": {"name": "bound", "labels": {"by": "test"}},
        "target": {"kind": "Node", "name": "placed"}});
    api.post(&format!("{PODS}/bound/binding"), &binding)
        .await
        .ok();
    let bound = api.get(&format!("{PODS}/bound")).await.ok();
    let mut expected = placed.clone();
    expected["by"] = "test".into();
    assert_eq!(labels(&bound), expected);
    assert_eq!(bound["spec"]["nodeName"], "placed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_created_below_an_object_is_admitted_as_what_it_is() {
    const PODS: &str = "/api/v1/namespaces/default/pods";
    let api = Api::start().await;
    let hook = Hook::start(
        |_| json!({"allowed": false, "status": {"message": "not there", "code": 403, "reason": "Forbidden"}}),
    )
    .await;
    let mut webhook = hook.webhook("a.example.com");
    webhook["rules"][0]["resources"] =
        json!(["pods/binding", "pods/eviction", "serviceaccounts/token"]);
    webhook["matchConditions"] = json!([]);
    configure(&api, "ValidatingWebhookConfiguration", webhook).await;
    api.post(
        "/api/v1/namespaces/default/serviceaccounts",
        &json!({"metadata": {"name": "default"}}),
    )
    .await;
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    api.post(PODS, &pod).await.ok();
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    // A dry run, for those that come before the configuration takes effect.
    let path = format!("{PODS}/p/binding?dryRun=All");
    let refused = until(&api, &path, &binding, |answer| answer.code == 403).await;
    assert!(refused.message().contains("not there"), "{}", refused.body);
    let request = hook.asked.lock().unwrap()[0].clone();
    assert_eq!(
        (
            &request["operation"],
            &request["kind"]["kind"],
            &request["subResource"]
        ),
        (&json!("CREATE"), &json!("Binding"), &json!("binding"))
    );
    assert_eq!(request["object"]["target"]["name"], "n");
    let pod = api.get(&format!("{PODS}/p")).await.ok();
    assert_eq!(pod["spec"].get("nodeName"), None);
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let refused = api.post(&format!("{PODS}/p/eviction"), &eviction).await;
    assert!(refused.message().contains("not there"), "{}", refused.body);
    let request = hook.asked.lock().unwrap().last().unwrap().clone();
    assert_eq!(
        (
            &request["operation"],
            &request["kind"]["kind"],
            &request["subResource"]
        ),
        (&json!("CREATE"), &json!("Eviction"), &json!("eviction"))
    );
    assert_eq!(api.get(&format!("{PODS}/p")).await.code, 200);
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let token = json!({"spec": {"audiences": ["a"]}});
    let refused = api.post(path, &token).await;
    assert!(refused.message().contains("not there"), "{}", refused.body);
    let request = hook.asked.lock().unwrap().last().unwrap().clone();
    assert_eq!(request["operation"], "CREATE");
    assert_eq!(
        request["kind"],
        json!({"group": "authentication.k8s.io", "version": "v1", "kind": "TokenRequest"})
    );
    assert_eq!(request["object"]["spec"]["audiences"], json!(["a"]));
}
