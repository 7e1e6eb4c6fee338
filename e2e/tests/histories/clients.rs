//! Clients that act at random and record what they asked, what they were told, and when.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

pub const PATH: &str = "/api/v1/namespaces/default/configmaps";
const KEYS: u32 = 12;
const WRITERS: u64 = 4;
const READERS: u64 = 3;
const WATCHERS: u64 = 4;

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
    pub fn take(&self) -> History {
        std::mem::take(&mut self.0.lock())
    }
}

pub struct Clients {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Clients {
    /// Lets all come to an end; watchers hear out what has happened.
    pub async fn finish(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let all = async {
            while let Some(done) = self.tasks.join_next().await {
                done?;
            }
            Ok(())
        };
        tokio::time::timeout(Duration::from_secs(60), all)
            .await
            .context("clients did not come to an end")?
    }
}

/// One client's view of the servers: some connection to one of them, another one after a failure.
struct Caller {
    servers: Vec<Client>,
    random: StdRng,
    open: Option<Connection>,
    stop: Arc<AtomicBool>,
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
        let mut connection = match self.open.take() {
            Some(connection) => connection,
            None => self.any().connect().await.ok()?,
        };
        let body = body.map(|b| Bytes::from(b.to_string()));
        let answer = async {
            let (status, body) = connection.send(method, path, body).await.ok()?;
            let bytes = body.collect().await.ok()?.to_bytes();
            Some((status, serde_json::from_slice(&bytes).unwrap_or_default()))
        };
        let answer = tokio::time::timeout(Duration::from_secs(15), answer)
            .await
            .ok()??;
        self.open = Some(connection);
        Some(answer)
    }

    async fn pause(&mut self) {
        let millis = self.random.random_range(1..20);
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    fn key(&mut self) -> String {
        format!("k{}", self.random.random_range(0..KEYS))
    }
}

pub fn start(world: &World, record: &Record, seed: u64) -> Clients {
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    let caller = |n: u64| Caller {
        servers: world.clients(),
        random: StdRng::seed_from_u64(seed.wrapping_mul(1000).wrapping_add(n)),
        open: None,
        stop: stop.clone(),
    };
    for n in 0..WRITERS {
        tasks.spawn(write(caller(n), record.clone(), n));
    }
    for n in 0..READERS {
        tasks.spawn(read(caller(100 + n), record.clone()));
    }
    for n in 0..WATCHERS {
        tasks.spawn(watch(caller(200 + n), record.clone()));
    }
    Clients { stop, tasks }
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
        let path = format!("{PATH}/{key}");
        count += 1;
        let value = format!("w{id}-{count}");
        let mut object = json!({"metadata": {"name": key}, "data": {"value": value}});
        let choice = caller.random.random_range(0..10);
        let (base, method, target, body) = match choice {
            0..3 => (None, Method::POST, PATH.to_owned(), Some(object)),
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
    while !caller.stopped() {
        caller.pause().await;
        let start = Instant::now();
        let read = if caller.random.random_range(0..2) == 0 {
            let key = caller.key();
            match caller
                .call(Method::GET, &format!("{PATH}/{key}"), None)
                .await
            {
                Some((StatusCode::OK, object)) => Read::One {
                    key,
                    seen: seen(&object).map(|s| s.1),
                },
                Some((StatusCode::NOT_FOUND, _)) => Read::One { key, seen: None },
                _ => continue,
            }
        } else {
            match caller.call(Method::GET, PATH, None).await {
                Some((StatusCode::OK, list)) => match all(&list) {
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

fn all(list: &Value) -> Option<(u64, BTreeMap<String, Seen>)> {
    let items = list["items"].as_array()?;
    Some((revision(list)?, items.iter().filter_map(seen).collect()))
}

/// What is there now.
pub async fn list(world: &World) -> Result<(u64, BTreeMap<String, Seen>)> {
    let servers = world.clients();
    let server = servers.first().context("no server")?;
    let list = server.call(Method::GET, PATH, None).await?;
    all(&list).context("the list is no list")
}

/// Follows the objects as client-go's reflector does: list, watch from there, and after a failure watch on from the last
/// revision heard, at any server; list again only when that is too old.
async fn watch(mut caller: Caller, record: Record) {
    let mut segment: Option<Segment> = None;
    let mut last_round = false;
    loop {
        let Some(current) = &mut segment else {
            if let Some((StatusCode::OK, list)) = caller.call(Method::GET, PATH, None).await
                && let Some(from) = revision(&list)
            {
                segment = Some(Segment {
                    from,
                    to: from,
                    ..Segment::default()
                });
            } else if caller.stopped() && last_round {
                return;
            }
            last_round = caller.stopped();
            caller.pause().await;
            continue;
        };
        let server = caller.any();
        let stop = caller.stop.clone();
        let finished = stop.load(Ordering::Relaxed);
        let fresh = follow(&server, current, &stop).await;
        if !fresh || finished {
            record.0.lock().segments.extend(segment.take());
            if finished {
                return;
            }
        }
        caller.pause().await;
    }
}

/// One watch, until it ends; false if its start is no longer kept. Once all is to stop it ends a second after the last
/// event.
async fn follow(server: &Client, segment: &mut Segment, stop: &AtomicBool) -> bool {
    let path = format!(
        "{PATH}?watch=true&allowWatchBookmarks=true&resourceVersion={}",
        segment.to
    );
    let opened = async {
        let mut connection = server.connect().await?;
        let (status, body) = connection.send(Method::GET, &path, None).await?;
        Ok::<_, anyhow::Error>((connection, status, body))
    };
    let Ok(Ok((_connection, status, mut body))) =
        tokio::time::timeout(Duration::from_secs(5), opened).await
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
    loop {
        let frame = match tokio::time::timeout(Duration::from_secs(1), body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            // Silence: go on unless this is the end.
            Err(_) if !stop.load(Ordering::Relaxed) => continue,
            _ => return true,
        };
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
    }
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
