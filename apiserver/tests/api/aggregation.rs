//! Another API server behind this one: registered, asked, passed on to, merged into discovery, and missed.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use crate::common::{self, Answer, Api, PATIENCE};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::{TlsAcceptor, TlsConnector};

const GROUP: &str = "wardle.example.com";
const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    fn issue(&self, common_name: &str, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

fn roots(authority: &CertificateDer<'static>) -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.clone()).unwrap();
    roots
}

/// A server that says what it was asked and by whom, as an API server of the group.
async fn extension(clients: &Authority, own: &Authority, host: &str) -> SocketAddr {
    let (certificate, key) = own.issue("extension", &[host]);
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots(&clients.der)))
        .build()
        .unwrap();
    let mut config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = service_fn(|request| async { Ok::<_, Infallible>(answer(request)) });
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection_with_upgrades(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

fn answer(mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let group_version = format!("{GROUP}/v1alpha1");
    let whole = |value: Value| {
        Response::builder()
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(value.to_string())))
            .unwrap()
    };
    let path = request.uri().path().to_owned();
    if request.headers().contains_key("upgrade") {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            let mut four = [0; 4];
            stream.read_exact(&mut four).await.unwrap();
            stream.write_all(&four).await.unwrap();
        });
        return Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "Upgrade")
            .header("upgrade", "echo")
            .body(Full::default())
            .unwrap();
    }
    match path.as_str() {
        "/apis/wardle.example.com/v1alpha1" => whole(json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version,
            "resources": [{"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get", "list"]}],
        })),
        // From before aggregated discovery.
        "/apis" => whole(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []})),
        "/openapi/v2" => whole(json!({
            "swagger": "2.0",
            "paths": {"/apis/wardle.example.com/v1alpha1/flunders": {"get": {"schema": {"$ref": "#/definitions/Flunder"}}}, "/version": {}},
            "definitions": {"Flunder": {"type": "object"}},
        })),
        "/openapi/v3" => Response::builder()
            .status(StatusCode::NOT_FOUND)
            .body(Full::default())
            .unwrap(),
        _ => {
            let all = |name: &str| -> Vec<String> {
                let values = request.headers().get_all(name).iter();
                values.map(|v| v.to_str().unwrap().to_owned()).collect()
            };
            whole(json!({
                "path": path, "query": request.uri().query(), "method": request.method().as_str(),
                "user": all("x-remote-user"), "groups": all("x-remote-group"),
                "authorization": all("authorization"), "forged": all("x-remote-extra-forged"),
            }))
        }
    }
}

async fn start(front: &Authority, directory: &Path) -> Api {
    let (certificate, key) = front.issue("front-proxy-client", &[]);
    let path = |name: &str| directory.join(name).display().to_string();
    for (name, text) in [
        ("front-ca.crt", &front.pem),
        ("front.crt", &certificate),
        ("front.key", &key),
    ] {
        std::fs::write(directory.join(name), text).unwrap();
    }
    Api::start_with(&[
        "--requestheader-client-ca-file",
        &path("front-ca.crt"),
        "--requestheader-allowed-names",
        "front-proxy-client",
        "--proxy-client-cert-file",
        &path("front.crt"),
        "--proxy-client-key-file",
        &path("front.key"),
    ])
    .await
}

/// Waits until an APIService's Available condition has a reason, and gives the condition.
async fn condition(api: &Api, name: &str, reason: &str) -> Value {
    let wait = async {
        let mut watch = api
            .watch(&format!(
                "{SERVICES}?watch=1&fieldSelector=metadata.name%3D{name}"
            ))
            .await;
        loop {
            let event = watch.next().await.expect("the watch goes on");
            let conditions = event["object"]["status"]["conditions"].as_array().cloned();
            let found = conditions
                .unwrap_or_default()
                .into_iter()
                .find(|c| c["type"] == "Available" && c["reason"] == reason);
            if let Some(found) = found {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("{name} never got the reason {reason}"))
}

/// Gets a path until the answer is as wanted: routes follow the objects after a moment.
async fn until(api: &Api, path: &str, wanted: impl Fn(&Answer) -> bool) -> Answer {
    common::until(path, || async {
        let answer = api.get(path).await;
        wanted(&answer).then_some(answer)
    })
    .await
}

async fn register(api: &Api, own: &Authority, port: u16) {
    let service = json!({"metadata": {"name": "ext"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    api.post("/api/v1/namespaces/default/services", &service)
        .await
        .ok();
    let registration = json!({
        "metadata": {"name": format!("v1alpha1.{GROUP}")},
        "spec": {
            "group": GROUP, "version": "v1alpha1", "groupPriorityMinimum": 2000, "versionPriority": 200,
            "service": {"namespace": "default", "name": "ext", "port": port},
            "caBundle": STANDARD.encode(&own.pem),
        },
    });
    api.post(SERVICES, &registration).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_is_part_of_the_api() {
    let directory = TempDir::new().unwrap();
    let (front, own) = (
        Authority::new("front-proxy-ca"),
        Authority::new("extension-ca"),
    );
    let api = start(&front, directory.path()).await;
    let address = extension(&front, &own, "ext.default.svc").await;
    register(&api, &own, address.port()).await;
    let name = format!("v1alpha1.{GROUP}");
    let available = condition(&api, &name, "Passed").await;
    assert_eq!(available["message"], "all checks passed");
    assert_eq!(available["status"], "True");

    let path = format!("/apis/{GROUP}/v1alpha1/namespaces/default/flunders");
    until(&api, &path, |answer| answer.code == 200).await;
    let forged = [("x-remote-extra-forged", "yes"), ("x-remote-user", "root")];
    let echo = api
        .send(
            Method::GET,
            &format!("{path}?limit=5"),
            &forged,
            Bytes::new(),
        )
        .await
        .ok();
    assert_eq!(echo["path"], path);
    assert_eq!(echo["query"], "limit=5");
    assert_eq!(echo["user"], json!(["admin"]));
    assert_eq!(
        echo["groups"],
        json!(["system:masters", "system:authenticated"])
    );
    assert_eq!(
        (&echo["forged"], &echo["authorization"]),
        (&json!([]), &json!([]))
    );
    // Nobody is anonymous to the other server: authorization comes before.
    let refused = api.send_anonymously(Method::GET, &path, &[]).await;
    refused.refused(403, "Forbidden");

    let groups = api.get("/apis").await.ok();
    let names: Vec<&str> = groups["groups"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|g| g["name"].as_str())
        .collect();
    assert!(
        names.contains(&GROUP) && names.contains(&"apps"),
        "{names:?}"
    );
    let group = api.get(&format!("/apis/{GROUP}")).await.ok();
    assert_eq!(group["preferredVersion"]["version"], "v1alpha1");
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let aggregated = api
        .send(Method::GET, "/apis", &[("accept", accept)], Bytes::new())
        .await
        .ok();
    let items = aggregated["items"].as_array().unwrap();
    let item = items
        .iter()
        .find(|i| i["metadata"]["name"] == GROUP)
        .unwrap();
    assert_eq!(item["versions"][0]["resources"][0]["resource"], "flunders");
    assert_eq!(item["versions"][0]["freshness"], "Current");
    let openapi = api.get("/openapi/v2").await.ok();
    assert!(openapi["paths"][format!("/apis/{GROUP}/v1alpha1/flunders")].is_object());
    assert!(openapi["definitions"]["Flunder"].is_object());
    assert!(openapi["paths"]["/api/v1/namespaces/{namespace}/pods"].is_object());
    let accept = [("accept", crate::openapi::PROTOBUF_V2)];
    let openapi = api
        .send(Method::GET, "/openapi/v2", &accept, Bytes::new())
        .await;
    assert!(crate::openapi::definitions(&openapi.bytes).contains(&"Flunder".to_owned()));

    api.delete("/api/v1/namespaces/default/services/ext")
        .await
        .ok();
    let missing = condition(&api, &name, "ServiceNotFound").await;
    assert_eq!(
        missing["message"],
        "service/ext in \"default\" is not present"
    );
    // Until the condition has become the route's, it is tried, and that is a 503 too.
    let refused = |answer: &crate::common::Answer| {
        answer.code == 503 && answer.bytes == "service unavailable\n"
    };
    until(&api, &path, refused).await;
    api.delete(&format!("{SERVICES}/{name}")).await.ok();
    until(&api, &path, |answer| answer.code == 404).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrades_go_through() {
    let directory = TempDir::new().unwrap();
    let (front, own) = (
        Authority::new("front-proxy-ca"),
        Authority::new("extension-ca"),
    );
    let api = start(&front, directory.path()).await;
    let address = extension(&front, &own, "ext.default.svc").await;
    register(&api, &own, address.port()).await;
    let path = format!("/apis/{GROUP}/v1alpha1/namespaces/default/flunders/f/connect");
    until(&api, &path, |answer| answer.code == 200).await;
    let headers = [("connection", "Upgrade"), ("upgrade", "echo")];
    let response = api
        .open(api.admin(), Method::GET, &path, &headers, Bytes::new())
        .await;
    assert_eq!(response.status(), 101);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    stream.write_all(b"ping").await.unwrap();
    let mut four = [0; 4];
    stream.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"ping");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_another_certificate_is_not_believed() {
    let directory = TempDir::new().unwrap();
    let (front, own) = (
        Authority::new("front-proxy-ca"),
        Authority::new("extension-ca"),
    );
    let api = start(&front, directory.path()).await;
    let address = extension(&front, &own, "other.default.svc").await;
    register(&api, &own, address.port()).await;
    let failed = condition(&api, &format!("v1alpha1.{GROUP}"), "FailedDiscoveryCheck").await;
    assert_eq!(failed["status"], "False");
    let path = format!("/apis/{GROUP}/v1alpha1/namespaces/default/flunders");
    until(&api, &path, |answer| answer.code == 503).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_served_here_is_registered_too() {
    let api = Api::start().await;
    let apps = api.get(&format!("{SERVICES}/v1.apps")).await.ok();
    assert_eq!(
        apps["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"],
        "onstart"
    );
    assert_eq!(apps["status"]["conditions"][0]["reason"], "Local");
    assert_eq!(api.get(&format!("{SERVICES}/v1.")).await.code, 200);
    let invalid = json!({"metadata": {"name": "v2.other"}, "spec": {
        "group": "apps", "version": "v2", "groupPriorityMinimum": 1, "versionPriority": 1}});
    let refused = api.post(SERVICES, &invalid).await;
    let message = refused.refused(422, "Invalid");
    assert!(
        message.contains(r#"must be `spec.version+"."+spec.group`: "v2.apps""#),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn front_proxies_speak_for_their_users() {
    let directory = TempDir::new().unwrap();
    let front = Authority::new("front-proxy-ca");
    let api = start(&front, directory.path()).await;
    let published = api
        .get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication")
        .await
        .ok();
    let data = &published["data"];
    assert_eq!(data["requestheader-client-ca-file"], front.pem);
    assert_eq!(
        data["requestheader-allowed-names"],
        "[\"front-proxy-client\"]"
    );
    assert_eq!(
        data["requestheader-username-headers"],
        "[\"X-Remote-User\"]"
    );

    let own = std::fs::read_to_string(api.directory.path().join("ca.crt")).unwrap();
    let own = CertificateDer::from_pem_slice(own.as_bytes()).unwrap();
    let as_proxy = |name: &str| {
        let (certificate, key) = front.issue(name, &[]);
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(roots(&own))
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        TlsConnector::from(Arc::new(config))
    };
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let headers = [
        ("content-type", "application/json"),
        ("x-remote-user", "jane"),
        ("x-remote-uid", "42"),
        ("x-remote-group", "dev"),
        ("x-remote-extra-scopes", "view"),
    ];
    let ask = |identity: TlsConnector, headers: Vec<(&'static str, &'static str)>| {
        let (api, body) = (&api, Bytes::from(review.to_string()));
        async move {
            let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
            api.send_as(&identity, Method::POST, path, &headers, body)
                .await
        }
    };
    let told = ask(as_proxy("front-proxy-client"), headers.to_vec())
        .await
        .ok();
    assert_eq!(
        told["status"]["userInfo"],
        json!({"username": "jane", "uid": "42", "groups": ["dev", "system:authenticated"], "extra": {"scopes": ["view"]}})
    );
    // Neither a name that is not allowed nor a proxy without a user is anybody.
    let stranger = ask(as_proxy("somebody"), headers.to_vec()).await;
    stranger.refused(401, "Unauthorized");
    let nobody = ask(as_proxy("front-proxy-client"), headers[..1].to_vec()).await;
    nobody.refused(401, "Unauthorized");
}
