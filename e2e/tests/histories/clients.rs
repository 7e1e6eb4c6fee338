//! Clients that act at random and record what they asked, what they were told, and when.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bench::load::{Client, Connection};
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::world::World;

/// How long a caller waits for an answer: longer than most harm lasts, so that late answers are seen too.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a watcher may take to hear of the last write, once everything is well again.
const LAST_WORD: Duration = Duration::from_secs(60);
const KEYS: u32 = 12;
const WRITERS: u64 = 4;
const READERS: u64 = 3;
pub const WATCHERS: u64 = 4;

/// An object as a client saw it: its revision and its value.
pub type Seen = (u64, String);

#[derive(Debug, Clone)]
pub struct Span {
    pub start: Instant,
    pub end: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged, at this revision.
    Done(u64),
    /// The server said that it did not do it.
    Refused,
    /// No answer, or one that leaves it open.
    Unknown,
}

#[derive(Debug, Clone)]
pub struct Write {
    pub span: Span,
    pub key: String,
    /// Unique; `None` for a delete.
    pub value: Option<String>,
    /// What a compare-and-set insisted on.
    pub base: Option<u64>,
    pub outcome: Outcome,
}

#[derive(Debug, Clone)]
pub enum Read {
    One {
        key: String,
        seen: Option<Seen>,
    },
    All {
        revision: u64,
        seen: BTreeMap<String, Seen>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub revision: u64,
    pub key: String,
    pub value: Option<String>,
}

/// What one watcher heard without a break in its knowledge: everything after `from`, up to `to`.
#[derive(Debug, Clone, Default)]
pub struct Segment {
    pub from: u64,
    pub to: u64,
    pub changes: Vec<Change>,
}

#[derive(Debug, Default)]
pub struct History {
    pub writes: Vec<Write>,
    /// By client, in its order.
    pub reads: Vec<Vec<(Span, Read)>>,
    pub segments: Vec<Segment>,
}

#[derive(Clone, Default)]
pub struct Record(Arc<Mutex<History>>);

impl Record {
    pub fn acknowledged(&self) -> usize {
        let done = |write: &&Write| matches!(write.outcome, Outcome::Done(_));
        self.0.lock().writes.iter().filter(done).count()
    }

    pub fn take(&self) -> History {
        std::mem::take(&mut self.0.lock())
    }
}

/// The objects of one run: a namespace of its own, so that many runs can share their servers.
pub struct Place {
    namespace: String,
    path: String,
}

impl Place {
    pub async fn make(world: &World, seed: u64) -> Result<Self> {
        let namespace = format!("run-{seed}");
        let object = json!({"metadata": {"name": namespace}});
        let path = "/api/v1/namespaces";
        let clients = world.clients();
        let server = clients.first().context("no server")?;
        created(server, path, &namespace, &object).await?;
        let path = format!("{path}/{namespace}/configmaps");
        Ok(Place { namespace, path })
    }
}

/// Creates an object once everything is well. Connections to what was killed may break only now: then a server says that its
/// store did not answer, and whether the object is there has to be looked up.
async fn created(server: &Client, path: &str, name: &str, object: &Value) -> Result<Value> {
    let end = Instant::now() + LAST_WORD;
    let own = format!("{path}/{name}");
    loop {
        let error = match server.call(Method::POST, path, Some(object)).await {
            Ok(created) => return Ok(created),
            Err(error) => error,
        };
        match server.call(Method::GET, &own, None).await {
            Ok(found) => return Ok(found),
            Err(_) if Instant::now() > end => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.namespace)
    }
}

pub struct Clients {
    place: Arc<Place>,
    stop: Arc<AtomicBool>,
    last: Arc<AtomicU64>,
    actors: JoinSet<()>,
    watchers: JoinSet<()>,
}

async fn all(mut tasks: JoinSet<()>) -> Result<()> {
    while let Some(done) = tasks.join_next().await {
        done?;
    }
    Ok(())
}

impl Clients {
    /// Lets all come to an end, and returns what is there then. Every watcher has to hear of one last write.
    pub async fn finish(self, world: &World) -> Result<(u64, BTreeMap<String, Seen>)> {
        self.stop.store(true, Ordering::Relaxed);
        tokio::time::timeout(LAST_WORD, all(self.actors))
            .await
            .context("clients did not come to an end")??;
        let clients = world.clients();
        let server = clients.first().context("no server")?;
        let path = &self.place.path;
        let end = json!({"metadata": {"name": "end"}, "data": {"value": "end"}});
        let end = created(server, path, "end", &end).await?;
        let last = revision(&end).context("the last write has no revision")?;
        self.last.store(last, Ordering::Relaxed);
        tokio::time::timeout(LAST_WORD, all(self.watchers))
            .await
            .with_context(|| format!("a watcher does not hear of the last write, {last}"))??;
        let list = server.call(Method::GET, path, None).await?;
        kept(&list).context("the list is no list")
    }
}

/// One client's view of the servers: some connection to one of them, another one after a failure.
struct Caller {
    servers: Vec<Client>,
    random: StdRng,
    open: Option<Connection>,
    place: Arc<Place>,
    stop: Arc<AtomicBool>,
    /// The revision of the last write, once that has happened; 0 before.
    last: Arc<AtomicU64>,
}

impl Caller {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn any(&mut self) -> Client {
        let n = self.random.random_range(0..self.servers.len());
        self.servers[n].clone()
    }

    /// Status and body; `None` where there was no whole answer.
    async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Option<(StatusCode, Value)> {
        // Servers change now and then without a failure, too.
        if self.random.random_range(0..10) == 0 {
            self.open = None;
        }
        let (open, server) = (self.open.take(), self.any());
        let body = body.map(|b| Bytes::from(b.to_string()));
        let answer = async {
            let mut connection = match open {
                Some(connection) => connection,
                None => server.connect().await.ok()?,
            };
            let (status, body) = connection.send(method, path, body).await.ok()?;
            let bytes = body.collect().await.ok()?.to_bytes();
            let answer = serde_json::from_slice(&bytes).unwrap_or_default();
            Some((connection, status, answer))
        };
        let (connection, status, answer) = tokio::time::timeout(PATIENCE, answer).await.ok()??;
        self.open = Some(connection);
        Some((status, answer))
    }

    async fn pause(&mut self) {
        let millis = self.random.random_range(1..20);
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    fn key(&mut self) -> String {
        format!("k{}", self.random.random_range(0..KEYS))
    }
}

pub fn start(world: &World, place: Place, record: &Record, seed: u64) -> Clients {
    let (stop, last) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let place = Arc::new(place);
    let (mut actors, mut watchers) = (JoinSet::new(), JoinSet::new());
    let caller = |n: u64| Caller {
        servers: world.clients(),
        random: StdRng::seed_from_u64(seed.wrapping_mul(1000).wrapping_add(n)),
        open: None,
        place: place.clone(),
        stop: stop.clone(),
        last: Arc::clone(&last),
    };
    for n in 0..WRITERS {
        actors.spawn(write(caller(n), record.clone(), n));
    }
    for n in 0..READERS {
        actors.spawn(read(caller(100 + n), record.clone()));
    }
    for n in 0..WATCHERS {
        watchers.spawn(watch(caller(200 + n), record.clone()));
    }
    Clients {
        place,
        stop,
        last,
        actors,
        watchers,
    }
}

fn revision(object: &Value) -> Option<u64> {
    object["metadata"]["resourceVersion"].as_str()?.parse().ok()
}

fn seen(object: &Value) -> Option<(String, Seen)> {
    let name = object["metadata"]["name"].as_str()?;
    // Others (the certificates of the cluster) are not ours to check.
    let value = object["data"]["value"].as_str()?;
    Some((name.to_owned(), (revision(object)?, value.to_owned())))
}

async fn write(mut caller: Caller, record: Record, id: u64) {
    let mut count = 0u64;
    while !caller.stopped() {
        caller.pause().await;
        let key = caller.key();
        let all = caller.place.path.clone();
        let path = format!("{all}/{key}");
        count += 1;
        let value = format!("w{id}-{count}");
        let mut object = json!({"metadata": {"name": key}, "data": {"value": value}});
        let choice = caller.random.random_range(0..10);
        let (base, method, target, body) = match choice {
            0..3 => (None, Method::POST, all, Some(object)),
            3..9 => {
                let Some((StatusCode::OK, old)) = caller.call(Method::GET, &path, None).await
                else {
                    continue;
                };
                object["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
                (revision(&old), Method::PUT, path, Some(object))
            }
            _ => (None, Method::DELETE, path, None),
        };
        let start = Instant::now();
        let answer = caller.call(method.clone(), &target, body.as_ref()).await;
        let deletes = method == Method::DELETE;
        record.0.lock().writes.push(Write {
            span: Span {
                start,
                end: Instant::now(),
            },
            key,
            value: (!deletes).then_some(value),
            base,
            outcome: outcome(answer, deletes),
        });
    }
}

fn outcome(answer: Option<(StatusCode, Value)>, deletes: bool) -> Outcome {
    match answer {
        // A delete answers with a Status, which names no revision: the watchers tell.
        Some((status, _)) if status.is_success() && deletes => Outcome::Unknown,
        Some((status, object)) if status.is_success() => {
            revision(&object).map_or(Outcome::Unknown, Outcome::Done)
        }
        Some((status, _)) if status.is_client_error() => Outcome::Refused,
        _ => Outcome::Unknown,
    }
}

async fn read(mut caller: Caller, record: Record) {
    let mut own = Vec::new();
    let path = caller.place.path.clone();
    while !caller.stopped() {
        caller.pause().await;
        let start = Instant::now();
        let read = if caller.random.random_range(0..2) == 0 {
            let key = caller.key();
            let one = format!("{path}/{key}");
            match caller.call(Method::GET, &one, None).await {
                Some((StatusCode::OK, object)) => Read::One {
                    key,
                    seen: seen(&object).map(|s| s.1),
                },
                Some((StatusCode::NOT_FOUND, _)) => Read::One { key, seen: None },
                _ => continue,
            }
        } else {
            match caller.call(Method::GET, &path, None).await {
                Some((StatusCode::OK, list)) => match kept(&list) {
                    Some((revision, seen)) => Read::All { revision, seen },
                    None => continue,
                },
                _ => continue,
            }
        };
        own.push((
            Span {
                start,
                end: Instant::now(),
            },
            read,
        ));
    }
    record.0.lock().reads.push(own);
}

/// What a list shows, and as of when.
fn kept(list: &Value) -> Option<(u64, BTreeMap<String, Seen>)> {
    let items = list["items"].as_array()?;
    Some((revision(list)?, items.iter().filter_map(seen).collect()))
}

/// Follows the objects as client-go's reflector does: list, watch from there, and after a failure watch on from the last
/// revision heard, at any server; list again only when that is too old. Ends when it has heard of the last write.
async fn watch(mut caller: Caller, record: Record) {
    let path = caller.place.path.clone();
    let mut segment: Option<Segment> = None;
    while !heard_all(&caller.last, segment.as_ref()) {
        caller.pause().await;
        let Some(current) = &mut segment else {
            if let Some((StatusCode::OK, list)) = caller.call(Method::GET, &path, None).await
                && let Some(from) = revision(&list)
            {
                segment = Some(Segment {
                    from,
                    to: from,
                    ..Segment::default()
                });
            }
            continue;
        };
        let server = caller.any();
        let limit = Duration::from_millis(caller.random.random_range(50..1500));
        let told = follow(&server, &path, current, &caller.last);
        // Most watchers move on after a while: to go on elsewhere is what is to be seen.
        if let Ok(false) = tokio::time::timeout(limit, told).await {
            record.0.lock().segments.extend(segment.take());
        }
        if !caller.stopped() && caller.random.random_range(0..4) == 0 {
            // Away for longer than history may be kept.
            let away = caller.random.random_range(100..600);
            tokio::time::sleep(Duration::from_millis(away)).await;
        }
    }
    record.0.lock().segments.extend(segment);
}

fn heard_all(last: &AtomicU64, segment: Option<&Segment>) -> bool {
    let last = last.load(Ordering::Relaxed);
    last != 0 && segment.is_some_and(|segment| segment.to >= last)
}

/// One watch, until it ends or has told all; false if its start is no longer kept.
async fn follow(server: &Client, path: &str, segment: &mut Segment, last: &AtomicU64) -> bool {
    let path = format!(
        "{path}?watch=true&allowWatchBookmarks=true&resourceVersion={}",
        segment.to
    );
    let opened = async {
        let mut connection = server.connect().await?;
        let (status, body) = connection.send(Method::GET, &path, None).await?;
        Ok::<_, anyhow::Error>((connection, status, body))
    };
    let Ok(Ok((_connection, status, mut body))) = tokio::time::timeout(PATIENCE, opened).await
    else {
        return true;
    };
    if status == StatusCode::GONE {
        return false;
    }
    if !status.is_success() {
        return true;
    }
    let mut rest = Vec::new();
    // What says nothing for long is left for another server, as it might never speak again.
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(PATIENCE, body.frame()).await {
        let Ok(data) = frame.into_data() else {
            continue;
        };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let Ok(event) = serde_json::from_slice::<Value>(&line) else {
                return true;
            };
            match take(&event, segment) {
                Some(true) => {}
                Some(false) => return false,
                None => return true,
            }
        }
        if heard_all(last, Some(segment)) {
            return true;
        }
    }
    true
}

/// Takes an event in. `Some(false)` if it says that the watch's start is no longer kept, `None` if the watch is at its end.
fn take(event: &Value, segment: &mut Segment) -> Option<bool> {
    let object = &event["object"];
    let kind = event["type"].as_str()?;
    if kind == "ERROR" {
        return (object["code"] == 410).then_some(false);
    }
    let revision = revision(object)?;
    if kind != "BOOKMARK"
        && let Some((key, (_, value))) = seen(object)
    {
        let value = (kind != "DELETED").then_some(value);
        segment.changes.push(Change {
            revision,
            key,
            value,
        });
    }
    segment.to = segment.to.max(revision);
    Some(true)
}
