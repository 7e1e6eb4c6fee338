//! Many watchers of one kind: how long until the last of them has heard of a write, and what one costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::Setting;
use crate::load::{self, Client};
use crate::objects;
use crate::plane::{Plane, Store};
use crate::report::{Figure, Unit};

const WATCHERS: usize = 10_000;
/// Streams of one HTTP/2 connection, as Go's clients share one.
const PER_CONNECTION: usize = 100;
const WRITES: usize = 300;
const PAUSE: Duration = Duration::from_millis(10);
const PATH: &str = "/api/v1/namespaces/default/configmaps";

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
    let (heard, mut hearings) = unbounded_channel();
    for _ in 0..WATCHERS / PER_CONNECTION {
        open(client, started, &heard).await?;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let each = (plane.memory()?.saturating_sub(before)) as f64 / WATCHERS as f64;
    let sent = write(client, started).await?;
    let mut last = vec![Duration::ZERO; WRITES];
    let mut missing = WRITES * WATCHERS;
    while missing > 0 {
        let next = tokio::time::timeout(Duration::from_secs(60), hearings.recv()).await;
        let Some((write, at)) = next.context("a watcher missed a write")? else {
            bail!("the watches ended");
        };
        last[write] = last[write].max(at);
        missing -= 1;
    }
    let mut waits: Vec<Duration> = last.iter().zip(&sent).map(|(l, s)| *l - *s).collect();
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

/// Opens the watches of one connection; what each hears goes to `heard` as (number of the write, when).
async fn open(
    client: &Client,
    started: Instant,
    heard: &UnboundedSender<(usize, Duration)>,
) -> Result<()> {
    let mut connection = client.multiplexed().await?;
    let path = format!("{PATH}?watch=true&resourceVersion=0");
    for _ in 0..PER_CONNECTION {
        let request = load::request(Method::GET, &path, None)?;
        let answer = connection.send_request(request).await?;
        if !answer.status().is_success() {
            bail!("a watch was refused: {}", answer.status());
        }
        tokio::spawn(listen(answer.into_body(), started, heard.clone()));
    }
    // The connection lives as long as one of its senders: the streams keep it.
    Ok(())
}

async fn listen(mut body: Incoming, started: Instant, heard: UnboundedSender<(usize, Duration)>) {
    let mut rest = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else {
            continue;
        };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            if let Some(number) = number(&rest[..end])
                && heard.send((number, started.elapsed())).is_err()
            {
                return;
            }
            rest.drain(..=end);
        }
    }
}

/// The number in the name `w-N` of an event's object.
fn number(event: &[u8]) -> Option<usize> {
    const MARK: &[u8] = b"\"name\":\"w-";
    let at = event.windows(MARK.len()).position(|w| w == MARK)? + MARK.len();
    let digits = event[at..].iter().take_while(|b| b.is_ascii_digit());
    digits.fold(None, |n, b| {
        Some(n.unwrap_or(0) * 10 + usize::from(b - b'0'))
    })
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
        assert_eq!(number(event), Some(42));
        assert_eq!(number(br#"{"type":"BOOKMARK"}"#), None);
    }
}
