//! The audit trail: who has asked for what, and what came of it.
//!
//! [`policy`] says what is recorded; a [`Trail`] follows one request and writes its events at each stage; [`sink`] takes
//! them to a file or another service. Without a policy none of it costs anything.

pub mod policy;
mod sink;

use std::cell::RefCell;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use flate2::read::GzDecoder;
use futures::StreamExt;
use http::header::{CONTENT_ENCODING, HeaderName, HeaderValue, USER_AGENT};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::authn::UserInfo;
use crate::body::{Body, Reply};
use crate::config::Config;
use crate::request::RequestInfo;
use policy::{Level, Policy, Stage, Verdict};
use sink::Sink;

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
/// Longer ids are not the client's to choose.
const MAX_ID: usize = 64;
/// Longer answers are recorded without their object.
const MAX_OBJECT: u64 = 4 << 20;

tokio::task_local! {
    /// What is found out on the way about the request that this task answers, if it is recorded.
    static NOTES: RefCell<Notes>;
}

#[derive(Default)]
struct Notes {
    body: Option<Bytes>,
    annotations: Vec<(String, String)>,
}

/// Records requests.
pub struct Auditor {
    policy: Policy,
    sinks: Arc<[Sink]>,
}

impl Auditor {
    /// From the `--audit-*` flags; none without a policy and somewhere to record to.
    pub fn new(config: &Config) -> anyhow::Result<Option<Self>> {
        let sinks = sink::of(config)?;
        let Some(path) = &config.audit_policy_file else {
            return Ok(None);
        };
        let policy = Policy::read(path)?;
        Ok((!sinks.is_empty()).then(|| Self {
            policy,
            sinks: sinks.into(),
        }))
    }

    /// Begins to follow a request, whose sender is not known yet.
    #[must_use]
    pub fn follow<B>(
        &self,
        request: &Request<B>,
        info: &RequestInfo,
        peer: Option<SocketAddr>,
    ) -> Trail {
        let header = |name: &HeaderName| {
            request
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let id = header(&AUDIT_ID)
            .filter(|id| !id.is_empty() && id.len() <= MAX_ID)
            .map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned);
        let mut event = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "auditID": id,
            "requestURI": request.uri().path_and_query().map_or("/", |p| p.as_str()),
            "verb": info.verb, "user": {}, "sourceIPs": sources(request.headers(), peer),
            "requestReceivedTimestamp": now(),
        });
        if let Some(agent) = header(&USER_AGENT) {
            event["userAgent"] = agent.into();
        }
        if info.is_resource {
            event["objectRef"] = reference(info);
        }
        Trail {
            sinks: self.sinks.clone(),
            id,
            long_running: info.is_long_running(),
            state: Mutex::new((Verdict::default(), event)),
        }
    }
}

fn now() -> String {
    apimachinery::time::format_micro(jiff::Timestamp::now())
}

/// The addresses that a request came over, the client's first.
fn sources(headers: &HeaderMap, peer: Option<SocketAddr>) -> Vec<String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let mut sources: Vec<String> = text("x-forwarded-for")
        .into_iter()
        .flat_map(|chain| chain.split(','))
        .chain(text("x-real-ip"))
        .filter_map(|ip| ip.trim().parse::<std::net::IpAddr>().ok())
        .map(|ip| ip.to_string())
        .collect();
    if let Some(peer) = peer {
        let ip = peer.ip().to_string();
        if sources.last() != Some(&ip) {
            sources.push(ip);
        }
    }
    sources
}

fn reference(info: &RequestInfo) -> Value {
    let mut reference = json!({});
    for (key, value) in [
        ("resource", &info.resource),
        ("namespace", &info.namespace),
        ("name", &info.name),
        ("apiGroup", &info.group),
        ("apiVersion", &info.version),
        ("subresource", &info.subresource),
    ] {
        if !value.is_empty() {
            reference[key] = value.as_str().into();
        }
    }
    reference
}

/// Remembers the body of the request that is being answered, if it is recorded.
pub fn note_body(bytes: &Bytes) {
    // Outside a recorded request there is no place for it, which is fine.
    let _ = NOTES.try_with(|notes| notes.borrow_mut().body = Some(bytes.clone()));
}

/// Annotates the event of the request that is being answered, if it is recorded. What stands there stays.
pub fn annotate(key: &str, value: &str) {
    let _ = NOTES.try_with(|notes| {
        let annotations = &mut notes.borrow_mut().annotations;
        if annotations.iter().all(|(known, _)| known != key) {
            annotations.push((key.to_owned(), value.to_owned()));
        }
    });
}

/// One request on its way through the server.
pub struct Trail {
    sinks: Arc<[Sink]>,
    id: String,
    long_running: bool,
    state: Mutex<(Verdict, Value)>,
}

impl Trail {
    /// The request is from this user: now the policy can be asked.
    pub async fn identified(&self, auditor: &Auditor, user: &UserInfo, info: &RequestInfo) {
        {
            let mut state = self.state.lock();
            state.0 = auditor.policy.of(user, info);
            state.1["level"] = state.0.level.name().into();
            state.1["user"] = user.to_value();
        }
        self.write(Stage::RequestReceived).await;
    }

    /// The request is from nobody: it is recorded if the policy would record it from nobody in particular.
    pub fn refused(&self, auditor: &Auditor, info: &RequestInfo) {
        let mut state = self.state.lock();
        state.0 = auditor.policy.of(&UserInfo::default(), info);
        state.1["level"] = state.0.level.name().into();
    }

    pub fn impersonated(&self, user: &UserInfo) {
        self.state.lock().1["impersonatedUser"] = user.to_value();
    }

    pub fn annotate(&self, key: &str, value: &str) {
        self.state.lock().1["annotations"][key] = value.into();
    }

    /// Runs what answers the request, with a place for what is noted of it.
    pub async fn recording<F: Future>(&self, answering: F) -> F::Output {
        NOTES
            .scope(RefCell::default(), async {
                let answer = answering.await;
                let notes = NOTES.with(|notes| notes.take());
                for (key, value) in notes.annotations {
                    self.annotate(&key, &value);
                }
                let level = self.state.lock().0.level;
                if level >= Level::Request
                    && let Some(bytes) = notes.body
                    && let Ok(object) = serde_json::from_slice(&bytes)
                {
                    self.record("requestObject", object);
                }
                answer
            })
            .await
    }

    fn record(&self, key: &str, mut object: Value) {
        let mut state = self.state.lock();
        if state.0.omit_managed_fields {
            strip_managed_fields(&mut object);
        }
        state.1[key] = object;
    }

    /// The answer is there. That of a request that takes long goes on, and is done when its body is.
    pub async fn answered(self: Arc<Self>, mut response: Reply) -> Reply {
        if let Ok(id) = HeaderValue::from_str(&self.id) {
            response.headers_mut().insert(AUDIT_ID, id);
        }
        let level = self.state.lock().0.level;
        if level == Level::None {
            return response;
        }
        let object = whole(&response);
        let code = response.status();
        self.state.lock().1["responseStatus"] = outcome(code, object.as_ref());
        if level >= Level::RequestResponse
            && let Some(object) = object
        {
            self.record("responseObject", object);
        }
        let goes_on = self.long_running && !matches!(response.body(), Body::Whole(_));
        if self.long_running {
            self.write(Stage::ResponseStarted).await;
        }
        if !goes_on {
            self.write(Stage::ResponseComplete).await;
            return response;
        }
        let (parts, body) = response.into_parts();
        let end = End(self);
        let stream = body.into_data_stream().filter_map(move |chunk| {
            let _until_dropped = &end;
            std::future::ready(chunk.ok())
        });
        Reply::from_parts(parts, Body::Stream(stream.boxed()))
    }

    async fn write(&self, stage: Stage) {
        let Some(event) = self.event(stage) else {
            return;
        };
        for sink in self.sinks.iter() {
            sink.write(event.clone()).await;
        }
    }

    fn event(&self, stage: Stage) -> Option<Value> {
        let state = self.state.lock();
        let (verdict, event) = &*state;
        if verdict.level == Level::None || verdict.omit_stages.contains(&stage) {
            return None;
        }
        let mut event = event.clone();
        event["stage"] = stage.name().into();
        event["stageTimestamp"] = now().into();
        Some(event)
    }
}

/// Writes the last event of a request that took long, however it ends.
struct End(Arc<Trail>);

impl Drop for End {
    fn drop(&mut self) {
        let Some(event) = self.0.event(Stage::ResponseComplete) else {
            return;
        };
        for sink in self.0.sinks.iter() {
            sink.write_now(event.clone());
        }
    }
}

/// The document that an answer carries whole.
fn whole(response: &Reply) -> Option<Value> {
    let Body::Whole(Some(bytes)) = response.body() else {
        return None;
    };
    if bytes.len() as u64 > MAX_OBJECT {
        return None;
    }
    let encoding = response.headers().get(CONTENT_ENCODING);
    if encoding.is_none_or(|encoding| encoding != "gzip") {
        return serde_json::from_slice(bytes).ok();
    }
    let mut text = Vec::new();
    GzDecoder::new(&bytes[..])
        .take(MAX_OBJECT)
        .read_to_end(&mut text)
        .ok()?;
    serde_json::from_slice(&text).ok()
}

fn outcome(code: StatusCode, object: Option<&Value>) -> Value {
    let mut status = json!({"metadata": {}, "code": code.as_u16()});
    let told = object.filter(|object| object["kind"] == "Status");
    for key in ["status", "message", "reason", "details"] {
        if let Some(value) = told.and_then(|told| told.get(key)) {
            status[key] = value.clone();
        }
    }
    status
}

fn strip_managed_fields(object: &mut Value) {
    let strip = |object: &mut Value| {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    };
    strip(object);
    if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) {
        items.iter_mut().for_each(strip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_over_addresses() {
        let mut headers = HeaderMap::new();
        headers.insert(
            "x-forwarded-for",
            HeaderValue::from_static("10.0.0.1, 10.0.0.2, x"),
        );
        let peer = Some("10.0.0.2:1".parse().unwrap());
        assert_eq!(sources(&headers, peer), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(sources(&HeaderMap::new(), peer), ["10.0.0.2"]);
    }

    #[test]
    fn managed_fields_are_left_out() {
        let mut list =
            json!({"items": [{"metadata": {"name": "a", "managedFields": []}}], "metadata": {}});
        strip_managed_fields(&mut list);
        assert_eq!(list["items"][0]["metadata"], json!({"name": "a"}));
    }

    #[test]
    fn outcomes_say_why() {
        let status = json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "message": "m", "code": 404});
        let told = outcome(StatusCode::NOT_FOUND, Some(&status));
        assert_eq!(
            told,
            json!({"metadata": {}, "status": "Failure", "reason": "NotFound", "message": "m", "code": 404})
        );
        let pod = json!({"kind": "Pod", "status": {"phase": "Running"}});
        assert_eq!(
            outcome(StatusCode::OK, Some(&pod)),
            json!({"metadata": {}, "code": 200})
        );
    }
}
