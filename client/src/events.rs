//! Recording Events as Kubernetes' components do: repeats are counted, floods are dampened, nothing blocks.
//!
//! [`Correlator`] decides, as client-go's does: an event equal to an earlier one raises that one's `count`; more than
//! ten that differ only in their message within ten minutes are combined; an object about which a source says more
//! than 25 things is cut to one in five minutes. [`Recorder`] sends what remains from one background task.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Resource};
use serde_json::json;
use tokio::sync::mpsc;

const AGGREGATE_AFTER: usize = 10;
const AGGREGATE_WITHIN: Duration = Duration::from_secs(600);
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;
/// Beyond this many remembered keys, those not heard of for [`AGGREGATE_WITHIN`] are dropped (then all).
const REMEMBER: usize = 4096;
const QUEUE: usize = 1000;

/// Events are of one of two types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Refers to `object` as events do. Objects from a list or watch carry no kind of their own, so it is taken from the type.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    object.object_ref(&())
}

/// Records events in the background. Cloning shares the queue; events are dropped when the server cannot keep up.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Event>,
    source: EventSource,
}

impl Recorder {
    /// A recorder for `component` (such as `default-scheduler`), on node `host` if it speaks for one. Must be
    /// called inside a Tokio runtime.
    pub fn new(client: kube::Client, component: &str, host: Option<&str>) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(send(client, receiver));
        Self {
            queue,
            source: EventSource {
                component: Some(component.into()),
                host: host.map(Into::into),
            },
        }
    }

    /// The same queue under another component's name.
    pub fn named(&self, component: &str) -> Self {
        let source = EventSource {
            component: Some(component.into()),
            ..self.source.clone()
        };
        Self {
            queue: self.queue.clone(),
            source,
        }
    }

    /// Says something about an object.
    pub fn event(
        &self,
        about: &ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let event = self.make(about, kind, reason, message.into(), Timestamp::now());
        if self.queue.try_send(event).is_err() {
            tracing::debug!(reason, "event dropped: the queue is full");
        }
    }

    fn make(
        &self,
        about: &ObjectReference,
        kind: EventType,
        reason: &str,
        message: String,
        now: Timestamp,
    ) -> Event {
        let namespace = about
            .namespace
            .as_deref()
            .filter(|n| !n.is_empty())
            .unwrap_or("default");
        let mut event = Event {
            involved_object: about.clone(),
            type_: Some(kind.as_str().into()),
            reason: Some(reason.into()),
            message: Some(message),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            reporting_component: self.source.component.clone(),
            reporting_instance: self.source.host.clone(),
            source: Some(self.source.clone()),
            ..Default::default()
        };
        let name = about.name.as_deref().unwrap_or_default();
        event.metadata.name = Some(format!("{name}.{:x}", now.as_nanosecond()));
        event.metadata.namespace = Some(namespace.into());
        event
    }
}

async fn send(client: kube::Client, mut receiver: mpsc::Receiver<Event>) {
    let mut correlator = Correlator::default();
    while let Some(event) = receiver.recv().await {
        let write = correlator.correlate(event, Timestamp::now());
        let Some(write) = write else { continue };
        for attempt in 0..5 {
            match write_event(&client, &write).await {
                Ok(name) => {
                    correlator.written(&write, name);
                    break;
                }
                // Refused for good: a namespace being deleted, an invalid field.
                Err(kube::Error::Api(status)) if status.code < 500 && status.code != 429 => {
                    tracing::debug!(%status, "event refused");
                    break;
                }
                Err(error) => {
                    tracing::debug!(%error, "event not written, will retry");
                    tokio::time::sleep(Duration::from_millis(500 << attempt)).await;
                }
            }
        }
    }
}

/// Creates the event, or raises the count of the one already there. Returns the name it has in the server.
async fn write_event(client: &kube::Client, write: &Write) -> kube::Result<String> {
    let event = &write.event;
    let api: Api<Event> = Api::namespaced(
        client.clone(),
        event.metadata.namespace.as_deref().unwrap_or("default"),
    );
    if let Some(name) = &write.patch {
        let patch = json!({"count": event.count, "lastTimestamp": event.last_timestamp, "message": event.message});
        match api
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return other.map(|_| name.clone()),
        }
    }
    let created = api.create(&PostParams::default(), event).await?;
    Ok(created.metadata.name.unwrap_or_default())
}

/// What to send: `event`, as a raise of the existing event `patch` if that is given.
#[derive(Debug)]
struct Write {
    key: String,
    event: Event,
    patch: Option<String>,
}

#[derive(Default)]
struct Correlator {
    spam: HashMap<String, Bucket>,
    similar: HashMap<String, Similar>,
    logged: HashMap<String, Logged>,
}

struct Bucket {
    tokens: f64,
    at: Timestamp,
}

struct Similar {
    messages: HashSet<String>,
    at: Timestamp,
}

struct Logged {
    name: String,
    count: i32,
    first: Option<Time>,
    at: Timestamp,
}

impl Correlator {
    /// What to write for `event`, if anything.
    fn correlate(&mut self, mut event: Event, now: Timestamp) -> Option<Write> {
        self.forget_old(now);
        let (spam_key, aggregate_key) = keys(&event);
        let message = event.message.clone().unwrap_or_default();
        let mut key = format!("{aggregate_key}\0{message}");

        let similar = self
            .similar
            .entry(aggregate_key.clone())
            .or_insert(Similar {
                messages: HashSet::new(),
                at: now,
            });
        if age(similar.at, now) > AGGREGATE_WITHIN.as_secs_f64() {
            similar.messages.clear();
        }
        similar.at = now;
        similar.messages.insert(message.clone());
        if similar.messages.len() >= AGGREGATE_AFTER {
            // Any one message may go: the set only has to stay at the limit.
            if let Some(one) = similar.messages.iter().next().cloned() {
                similar.messages.remove(&one);
            }
            event.message = Some(format!("(combined from similar events): {message}"));
            key = aggregate_key;
        }

        let mut patch = None;
        if let Some(logged) = self.logged.get(&key) {
            event.count = Some(logged.count + 1);
            event.first_timestamp = logged.first.clone();
            event.metadata.name = Some(logged.name.clone());
            patch = Some(logged.name.clone());
        }
        let bucket = self.spam.entry(spam_key).or_insert(Bucket {
            tokens: BURST,
            at: now,
        });
        bucket.tokens = (bucket.tokens + age(bucket.at, now) * REFILL_PER_SECOND).min(BURST);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return None;
        }
        bucket.tokens -= 1.0;
        Some(Write { key, event, patch })
    }

    fn written(&mut self, write: &Write, name: String) {
        let event = &write.event;
        let at = event
            .last_timestamp
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |t| t.0);
        let logged = Logged {
            name,
            count: event.count.unwrap_or(1),
            first: event.first_timestamp.clone(),
            at,
        };
        self.logged.insert(write.key.clone(), logged);
    }

    fn forget_old(&mut self, now: Timestamp) {
        let recent = |at: Timestamp| age(at, now) < AGGREGATE_WITHIN.as_secs_f64();
        prune(&mut self.spam, |b| recent(b.at));
        prune(&mut self.similar, |s| recent(s.at));
        prune(&mut self.logged, |l| recent(l.at));
    }
}

fn prune<V>(map: &mut HashMap<String, V>, keep: impl Fn(&V) -> bool) {
    if map.len() >= REMEMBER {
        map.retain(|_, v| keep(v));
        if map.len() >= REMEMBER {
            map.clear();
        }
        map.shrink_to_fit();
    }
}

fn age(since: Timestamp, now: Timestamp) -> f64 {
    now.duration_since(since).as_secs_f64()
}

/// What makes events spam of one kind, and what makes them similar.
fn keys(event: &Event) -> (String, String) {
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let source = event.source.clone().unwrap_or_default();
    let o = &event.involved_object;
    let about = [
        &source.component,
        &source.host,
        &o.kind,
        &o.namespace,
        &o.name,
        &o.uid,
        &o.api_version,
        &o.field_path,
    ]
    .map(text)
    .join("\0");
    let spam = format!("{about}\0{}", text(&event.type_));
    let similar = format!("{spam}\0{}", text(&event.reason));
    (spam, similar)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(reason: &str, message: &str) -> Event {
        Event {
            reason: Some(reason.into()),
            message: Some(message.into()),
            count: Some(1),
            ..Default::default()
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn repeats_are_counted() {
        let mut c = Correlator::default();
        for want in 1..=3 {
            let write = c.correlate(event("R", "m"), at(want)).unwrap();
            assert_eq!(write.event.count, Some(want as i32));
            assert_eq!(write.patch.is_some(), want > 1);
            c.written(&write, "name".into());
        }
        assert!(
            c.correlate(event("R", "other"), at(4))
                .unwrap()
                .patch
                .is_none()
        );
    }

    #[test]
    fn similar_events_are_combined_after_ten_in_ten_minutes() {
        let mut c = Correlator::default();
        let mut texts = Vec::new();
        for n in 0..12 {
            let write = c.correlate(event("R", &format!("m{n}")), at(n)).unwrap();
            texts.push(write.event.message.clone().unwrap());
            c.written(&write, format!("e{n}"));
        }
        assert_eq!(texts[8], "m8");
        assert_eq!(texts[9], "(combined from similar events): m9");
        assert_eq!(texts[11], "(combined from similar events): m11");
        let later = c.correlate(event("R", "m99"), at(12 + 601)).unwrap();
        assert_eq!(later.event.message.as_deref(), Some("m99"));
    }

    #[test]
    fn floods_are_cut_to_one_in_five_minutes() {
        let mut c = Correlator::default();
        let sent = (0..40)
            .filter(|_| c.correlate(event("R", "m"), at(0)).is_some())
            .count();
        assert_eq!(sent, 25);
        assert!(c.correlate(event("R", "m"), at(299)).is_none());
        assert!(c.correlate(event("R", "m"), at(300)).is_some());
    }
}
