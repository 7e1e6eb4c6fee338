//! Every operation of the OpenAPI documents with generated requests, most of them broken: none is answered with a server's
//! error, none hangs or kills, every refusal is a Status, and what is refused leaves the store as it was.
//!
//! `GENERATED_SEED` and `GENERATED_CASES` (requests for every operation) make other and longer runs, `GENERATED_ONLY` one
//! of the paths that contain it, and `GENERATED_TRACE` shows every request before it is sent.

mod requests;
mod seeds;
mod values;

use std::collections::BTreeSet;
use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use storage::{KeyValue, Range};
use tokio::net::TcpStream;

use crate::common::{Answer, Api};
use requests::{Maker, NAMESPACE, Operation, Request};
use values::Schemas;

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(15);

fn from_environment(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_with_generated_requests() {
    let (seed, cases) = (
        from_environment("GENERATED_SEED", 1),
        from_environment("GENERATED_CASES", 3),
    );
    let only = std::env::var("GENERATED_ONLY").unwrap_or_default();
    println!("GENERATED_SEED={seed} GENERATED_CASES={cases}");
    let api = Api::start().await;
    let namespace = json!({"metadata": {"name": NAMESPACE}});
    api.post("/api/v1/namespaces", &namespace).await.ok();
    let mut run = Run {
        api: &api,
        line: None,
        rng: StdRng::seed_from_u64(seed),
        findings: Vec::new(),
        codes: BTreeSet::new(),
        sent: 0,
        traced: std::env::var("GENERATED_TRACE").is_ok(),
    };
    for path in documents(&api).await {
        let document = api.get(&path).await.ok();
        let maker = Maker {
            schemas: Schemas(&document["components"]["schemas"]),
        };
        for operation in operations(&document) {
            if operation.path.contains(&only) {
                run.operation(&maker, &operation, cases).await;
            }
        }
    }
    println!("{} requests, answered with {:?}", run.sent, run.codes);
    assert!(api.get("/livez").await.code == 200);
    let count = run.findings.len();
    run.findings.truncate(40);
    assert!(
        run.findings.is_empty(),
        "{count} findings:\n{}",
        run.findings.join("\n\n")
    );
    assert!(!only.is_empty() || run.sent > 1000, "{}", run.sent);
}

/// The paths of all documents; those last whose objects reach into the requests for others.
async fn documents(api: &Api) -> Vec<String> {
    const LAST: [&str; 5] = [
        "flowcontrol",
        "rbac",
        "admissionregistration",
        "apiregistration",
        "apiextensions",
    ];
    let index = api.get("/openapi/v3").await.ok();
    let paths = index["paths"].as_object().expect("paths");
    let mut paths: Vec<String> = paths
        .keys()
        .map(|path| format!("/openapi/v3/{path}"))
        .collect();
    paths.sort_by_key(|path| {
        LAST.iter()
            .position(|group| path.contains(group))
            .map_or(0, |at| at + 1)
    });
    paths
}

fn operations(document: &Value) -> Vec<Operation<'_>> {
    let paths = document["paths"].as_object().expect("paths");
    let kind_of = |operation: &'_ Value| operation["x-kubernetes-group-version-kind"].clone();
    let mut all = Vec::new();
    for (path, item) in paths {
        // The object itself is at the path without its subresource, or in the collection.
        let item_path = path.split("/{name}").next().unwrap_or_default();
        let parent = &paths
            .get(item_path)
            .or(paths.get(&format!("{item_path}/{{name}}")));
        let Some(parent) = parent else { continue };
        let stored = parent.get("post").is_some() && parent.get("get").is_some();
        let parent = parent
            .as_object()
            .into_iter()
            .flatten()
            .find_map(|(_, operation)| {
                operation["x-kubernetes-group-version-kind"]["kind"].as_str()
            });
        for (method, operation) in item.as_object().into_iter().flatten() {
            if !kind_of(operation).is_object() {
                continue;
            }
            let text = |field: &str| {
                operation["x-kubernetes-group-version-kind"][field]
                    .as_str()
                    .unwrap_or_default()
            };
            all.push(Operation {
                path,
                method: method.to_ascii_uppercase().parse().expect("a method"),
                document: operation,
                group: text("group"),
                version: text("version"),
                kind: text("kind"),
                parent: parent.unwrap_or_default(),
                stored,
            });
        }
    }
    // Deletions come last: what is there is worth more.
    all.sort_by_key(|operation| {
        (
            operation.path.split("/{name}").next(),
            operation.method == Method::DELETE,
        )
    });
    all
}

struct Run<'a> {
    api: &'a Api,
    line: Option<SendRequest<Full<bytes::Bytes>>>,
    rng: StdRng,
    findings: Vec<String>,
    codes: BTreeSet<u16>,
    sent: usize,
    traced: bool,
}

impl Run<'_> {
    async fn operation(&mut self, maker: &Maker<'_>, operation: &Operation<'_>, cases: u64) {
        let collection = operation.path.split("/{name}").next().unwrap_or_default();
        let collection = collection.replace("{namespace}", NAMESPACE);
        let (group, version) = group_version(&collection);
        let seed = seeds::object(group, version, operation.parent, NAMESPACE);
        let needed = operation.path.contains("{name}") || operation.method == Method::DELETE;
        let mut present = !(needed && operation.stored);
        for _ in 0..cases {
            if !present {
                // Pods need it, and other requests may have deleted it.
                let account = json!({"metadata": {"name": "default"}});
                self.api
                    .post(
                        &format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts"),
                        &account,
                    )
                    .await;
                let made = self.api.post(&collection, &seed).await;
                if !matches!(made.code, 201 | 409) {
                    let why = format!("{collection}: the seed is refused: {}", made.body);
                    self.findings.push(why);
                }
                present = true;
            }
            let request = maker.request(&mut self.rng, operation);
            if self.traced {
                eprintln!("{}", request.shown());
            }
            let before = self.revision().await;
            let answer = self.send(&request).await;
            self.sent += 1;
            match answer {
                Ok(Some(answer)) => {
                    self.codes.insert(answer.code);
                    let wrong = self.judge(operation, &request, &answer, before).await;
                    if let Some(wrong) = wrong {
                        self.found(
                            &request,
                            &format!("{wrong}\n  answer {}: {}", answer.code, shown(&answer)),
                        );
                    }
                    present &= operation.method != Method::DELETE
                        || answer.code >= 300
                        || !operation.stored;
                }
                Ok(None) => {}
                Err(why) => self.found(&request, &why),
            }
        }
        if reaches_out(operation.parent) {
            self.sweep(&collection).await;
        }
    }

    fn found(&mut self, request: &Request, why: &str) {
        self.findings.push(format!("{why}\n  {}", request.shown()));
    }

    async fn revision(&self) -> u64 {
        self.api
            .store()
            .current_revision()
            .await
            .expect("a revision")
    }

    /// Takes away what changes the answers to other requests.
    async fn sweep(&mut self, collection: &str) {
        for item in self.api.get(collection).await.ok()["items"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let name = item["metadata"]["name"].as_str().unwrap_or_default();
            if item["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"].is_null() {
                self.api
                    .patch(
                        &format!("{collection}/{name}"),
                        "merge",
                        &json!({"metadata": {"finalizers": null}}),
                    )
                    .await;
                self.api.delete(&format!("{collection}/{name}")).await;
            }
        }
    }

    /// Sends a request; `None` for a watch or log that goes on.
    async fn send(&mut self, request: &Request) -> Result<Option<Answer>, String> {
        match tokio::time::timeout(DEADLINE, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_) => {
                self.line = None;
                Err(format!("no answer in {DEADLINE:?}"))
            }
        }
    }

    /// A connection on which a body was refused unread is closed after the answer: then it takes another one.
    async fn exchange(&mut self, request: &Request) -> Result<Option<Answer>, String> {
        if let Some(line) = self.line.take()
            && let Ok(answer) = self.exchange_on(line, request).await
        {
            return Ok(answer);
        }
        let line = connect(self.api).await?;
        self.exchange_on(line, request).await
    }

    async fn exchange_on(
        &mut self,
        mut line: SendRequest<Full<bytes::Bytes>>,
        request: &Request,
    ) -> Result<Option<Answer>, String> {
        let mut made = http::Request::builder()
            .method(request.method.clone())
            .uri(&request.uri)
            .header("host", "test");
        for (name, value) in &request.headers {
            made = made.header(*name, value);
        }
        let made = made
            .body(Full::new(request.body.clone()))
            .map_err(|error| error.to_string())?;
        line.ready()
            .await
            .map_err(|error| format!("the connection broke before: {error}"))?;
        let response = line
            .send_request(made)
            .await
            .map_err(|error| format!("the connection broke: {error}"))?;
        let (parts, body) = response.into_parts();
        let streams = request.uri.contains("watch=") || request.uri.contains("/watch/");
        if streams && parts.status.is_success() {
            return Ok(None);
        }
        let bytes = body
            .collect()
            .await
            .map_err(|error| format!("the answer broke off: {error}"))?
            .to_bytes();
        self.line = Some(line);
        Ok(Some(Answer {
            code: parts.status.as_u16(),
            body: serde_json::from_slice(&bytes).unwrap_or_default(),
            headers: parts.headers,
            bytes,
        }))
    }

    /// What is wrong with an answer.
    async fn judge(
        &self,
        operation: &Operation<'_>,
        request: &Request,
        answer: &Answer,
        before: u64,
    ) -> Option<String> {
        let code = StatusCode::from_u16(answer.code).ok()?;
        if code.is_success() || code.is_redirection() {
            return None;
        }
        let document = match document(answer) {
            Ok(document) => document,
            Err(why) => return Some(why),
        };
        if code.is_server_error() && !excused(operation, answer.code, &document) {
            return Some("a server error".into());
        }
        if request.method == Method::HEAD {
            return None;
        }
        let text = |field: &str| document[field].as_str().unwrap_or_default();
        let sound = text("kind") == "Status"
            && text("apiVersion") == "v1"
            && text("status") == "Failure"
            && document["code"] == answer.code
            && !text("reason").is_empty()
            && !text("message").is_empty();
        if !sound {
            return Some("not a sound Status".into());
        }
        self.traces(&request.uri, before).await
    }

    /// What a refused request has left in the store.
    async fn traces(&self, uri: &str, before: u64) -> Option<String> {
        if self.revision().await == before {
            return None;
        }
        // Written by loops of the server, whenever they get to it.
        let ends = |group: &str| uri.contains(group);
        let looped = [
            ("apiregistration.k8s.io", "apiregistration.k8s.io"),
            ("apiextensions.k8s.io", "apiextensions.k8s.io"),
            (
                "/registry/validatingadmissionpolicies/",
                "/validatingadmissionpolicies",
            ),
            ("/registry/flowschemas/", "flowcontrol.apiserver.k8s.io"),
            (
                "/registry/prioritylevelconfigurations/",
                "flowcontrol.apiserver.k8s.io",
            ),
        ];
        let range = Range::prefix("/registry/");
        let now = self
            .api
            .store()
            .range(range.clone())
            .await
            .expect("a range");
        let mut traces = Vec::new();
        for kv in now.kvs.iter().filter(|kv| kv.mod_revision > before) {
            let group = looped.iter().find(|(mark, _)| kv.key.contains(*mark));
            let own = match group {
                // The defaults of flow control are put back whatever was done to them.
                Some((_, "flowcontrol.apiserver.k8s.io")) if !kv.key.ends_with("/seed") => true,
                Some((_, group)) if ends(group) => self.only_status(kv, before).await,
                Some(_) => true,
                None => kv.key.starts_with("/registry/leases/"),
            };
            if own {
                continue;
            }
            traces.push(kv.key.to_string());
        }
        // An address that was taken and given back is no trace.
        let then = self.api.store().range(range.at(before)).await;
        let gone = now.count < then.expect("a range").count
            && !looped.into_iter().any(|(_, group)| ends(group));
        (gone || !traces.is_empty()).then(|| format!("refused, and yet written: {traces:?}"))
    }

    /// Whether nothing but the status of an object has changed.
    async fn only_status(&self, kv: &KeyValue, before: u64) -> bool {
        let mut range = Range::prefix(&kv.key).at(before);
        range.end = format!("{}\0", kv.key);
        let old = self.api.store().range(range).await.expect("a range");
        let rest = |value: &[u8]| {
            let mut object: Value = serde_json::from_slice(value).unwrap_or_default();
            object["status"] = Value::Null;
            object["metadata"]["managedFields"] = Value::Null;
            object
        };
        old.kvs
            .first()
            .is_none_or(|old| rest(&old.value) == rest(&kv.value))
    }
}

/// Whether an object of a kind may decide over requests that have nothing to do with it.
fn reaches_out(kind: &str) -> bool {
    kind.contains("Webhook")
        || kind.contains("Policy")
        || matches!(
            kind,
            "APIService"
                | "CustomResourceDefinition"
                | "ResourceQuota"
                | "LimitRange"
                | "ServiceCIDR"
                | "FlowSchema"
                | "PriorityLevelConfiguration"
                | "RuntimeClass"
                | "PriorityClass"
        )
}

/// Server errors that Kubernetes has as well: nobody is at the other end.
fn excused(operation: &Operation<'_>, code: u16, document: &Value) -> bool {
    match code {
        503 => operation.connects(),
        // A version that the store has not reached.
        504 => document["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge",
        _ => false,
    }
}

fn document(answer: &Answer) -> Result<Value, String> {
    let media = answer
        .headers
        .get("content-type")
        .and_then(|value| value.to_str().ok());
    match media.unwrap_or_default() {
        "application/json" => Ok(answer.body.clone()),
        apimachinery::protobuf::MEDIA_TYPE => {
            apimachinery::protobuf::to_json(&answer.bytes, ("", ""))
                .map_err(|error| format!("not protobuf: {error}"))
        }
        other => Err(format!("a refusal as {other:?}")),
    }
}

fn shown(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.bytes)
        .chars()
        .take(600)
        .collect()
}

fn group_version(path: &str) -> (&str, &str) {
    let mut parts = path.trim_matches('/').split('/');
    match parts.next() {
        Some("api") => ("", parts.next().unwrap_or_default()),
        _ => (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        ),
    }
}

async fn connect(api: &Api) -> Result<SendRequest<Full<bytes::Bytes>>, String> {
    let stream = TcpStream::connect(api.address)
        .await
        .map_err(|error| format!("the server is gone: {error}"))?;
    let name = ServerName::from(api.address.ip());
    let stream = api
        .admin()
        .connect(name, stream)
        .await
        .map_err(|error| error.to_string())?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}
