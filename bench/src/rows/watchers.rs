//! Many watchers of one kind: how long until the last of them has heard of a write, and what one costs.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use http::Method;
use memchr::memmem;
use tokio::sync::Notify;

use super::Setting;
use crate::load::Client;
use crate::objects;
use crate::plane::{Plane, Store};
use crate::report::{Figure, Unit};

const WATCHERS: usize = 10_000;
/// Streams of one HTTP/2 connection, as Go's clients share one.
const PER_CONNECTION: usize = 100;
const WRITES: usize = 300;
const PAUSE: Duration = Duration::from_millis(10);
/// Stands before the number of the write, once in each event.
const MARK: &[u8] = b"\"name\":\"w-";
const PATH: &str = "/api/v1/namespaces/default/configmaps";

/// What all watchers have heard; counted with little work, for it takes place on the cores that are measured.
#[derive(Default)]
struct Heard {
    /// Of each write, when the last watcher heard of it, in microseconds.
    last: Vec<AtomicU64>,
    events: AtomicUsize,
    all: Notify,
    /// Why a connection is read no more.
    failure: Mutex<Option<anyhow::Error>>,
}

impl Heard {
    /// All watchers of a connection have heard of a write.
    fn note(&self, write: usize, at: Duration) {
        self.last[write].fetch_max(at.as_micros() as u64, Ordering::Relaxed);
        if self.events.fetch_add(PER_CONNECTION, Ordering::Relaxed) + PER_CONNECTION
            == WRITES * WATCHERS
        {
            self.all.notify_one();
        }
    }

    fn fail(&self, error: anyhow::Error) {
        if let Ok(mut failure) = self.failure.lock() {
            failure.get_or_insert(error);
        }
        self.all.notify_one();
    }
}

/// What the watchers of one connection have heard.
struct Listener {
    heard: Arc<Heard>,
    started: Instant,
    /// How many have heard of each write.
    counts: Vec<usize>,
    /// The write that each is to hear of next: all of them, in order.
    next: Vec<usize>,
    mark: memmem::Finder<'static>,
}

impl Listener {
    fn take(&mut self, watcher: usize, lines: &[u8]) {
        for start in self.mark.find_iter(lines) {
            let write = number(&lines[start + MARK.len()..]);
            if write != self.next[watcher] || write >= WRITES {
                let expected = self.next[watcher];
                self.heard
                    .fail(anyhow!("write {write} came where {expected} was due"));
                return;
            }
            self.next[watcher] += 1;
            self.counts[write] += 1;
            if self.counts[write] == PER_CONNECTION {
                self.heard.note(write, self.started.elapsed());
            }
        }
    }
}

pub async fn watchers(setting: &Setting) -> Result<Vec<Figure>> {
    let mut ours = measure(Plane::start(&setting.ours(), Store::Embedded).await?).await?;
    if let Some(peer) = &setting.peer {
        let theirs = measure(Plane::start(peer, Store::Etcd).await?).await?;
        for (figure, peer) in ours.iter_mut().zip(theirs) {
            figure.peer = Some(peer.ours);
        }
    }
    Ok(ours)
}

async fn measure(plane: Plane) -> Result<Vec<Figure>> {
    let client = &plane.client;
    client.call(Method::GET, PATH, None).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = plane.memory()?;
    let started = Instant::now();
    let heard = Arc::new(Heard {
        last: (0..WRITES).map(|_| AtomicU64::new(0)).collect(),
        ..Heard::default()
    });
    for _ in 0..WATCHERS / PER_CONNECTION {
        open(client, started, &heard).await?;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let each = (plane.memory()?.saturating_sub(before)) as f64 / WATCHERS as f64;
    let sent = write(client, started).await?;
    tokio::time::timeout(Duration::from_secs(60), heard.all.notified())
        .await
        .context("a watcher missed a write")?;
    if let Some(failure) = heard.failure.lock().ok().and_then(|mut f| f.take()) {
        return Err(failure);
    }
    let last = heard.last.iter();
    let last = last.map(|at| Duration::from_micros(at.load(Ordering::Relaxed)));
    let mut waits: Vec<Duration> = last.zip(&sent).map(|(l, s)| l.saturating_sub(*s)).collect();
    waits.sort_unstable();
    Ok(vec![
        Figure {
            what: "10,000 watchers, 100 writes a second: p99 from write to last watcher".into(),
            unit: Unit::Seconds,
            ours: waits[WRITES * 99 / 100].as_secs_f64(),
            peer: None,
            budget: "under 100 ms",
        },
        Figure {
            what: "API server: memory for each of them".into(),
            unit: Unit::Bytes,
            ours: each,
            peer: None,
            budget: "under 20 KB",
        },
    ])
}

/// Opens the watches of one connection; what each hears is noted in `heard`.
async fn open(client: &Client, started: Instant, heard: &Arc<Heard>) -> Result<()> {
    let mut watches = client.watches().await?;
    let mut listener = Listener {
        heard: heard.clone(),
        started,
        counts: vec![0; WRITES],
        next: vec![0; PER_CONNECTION],
        mark: memmem::Finder::new(MARK),
    };
    let path = format!("{PATH}?watch=true&resourceVersion=0");
    for _ in 0..PER_CONNECTION {
        let each = |watcher, lines: &[u8]| listener.take(watcher, lines);
        watches.open("localhost", &path, each).await?;
    }
    let heard = heard.clone();
    tokio::spawn(async move {
        let each = |watcher, lines: &[u8]| listener.take(watcher, lines);
        if let Err(error) = watches.listen(each).await {
            heard.fail(error);
        }
    });
    Ok(())
}

/// The digits that a text begins with.
fn number(text: &[u8]) -> usize {
    let digits = text.iter().take_while(|b| b.is_ascii_digit());
    digits.fold(0, |n, b| n * 10 + usize::from(b - b'0'))
}

/// A hundred writes a second; when each was sent.
async fn write(client: &Client, started: Instant) -> Result<Vec<Duration>> {
    let mut connection = client.connect().await?;
    let mut sent = Vec::with_capacity(WRITES);
    let mut pace = tokio::time::interval(PAUSE);
    let object = Arc::new(objects::config_map("w-NUMBER").to_string());
    for n in 0..WRITES {
        pace.tick().await;
        let body = object.replacen("NUMBER", &n.to_string(), 1);
        sent.push(started.elapsed());
        connection
            .call(Method::POST, PATH, Some(body.into()))
            .await?;
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_tell_their_number() {
        let event = br#"{"type":"ADDED","object":{"metadata":{"name":"w-42"}}}"#;
        let found: Vec<_> = memmem::find_iter(event, MARK)
            .map(|start| number(&event[start + MARK.len()..]))
            .collect();
        assert_eq!(found, [42]);
    }
}
