//! From etcd's watches to the hub.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use etcd_client::{EventType, WatchClient, WatchOptions, WatchResponse, WatchStream};

use super::{FIRST_KEY, Shared, back_off, fault, key_value, probe};
use crate::history::History;
use crate::{Batch, Error, Event, EventKind, Result};

/// How many events one read of the past returns before it stops.
const CHUNK: usize = 1000;

/// Publishes every change in etcd until it is aborted.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut history = shared
        .options
        .history
        .map(|keep| History::new(keep, Instant::now(), shared.hub.position()));
    let mut attempt = 0;
    while !shared.closed.load(Ordering::Acquire) {
        let before = shared.hub.position();
        let error = match follow(&shared, &mut history).await {
            Err(Error::Compacted { requested, oldest }) => match probe(shared.kv.clone()).await {
                // We were away for longer than history is kept. Nobody can be told what happened meanwhile.
                Ok(revision) => {
                    shared
                        .hub
                        .reset(Error::Compacted { requested, oldest }, revision);
                    continue;
                }
                Err(error) => error,
            },
            Err(error) => error,
            Ok(()) => Error::Unavailable("the server ended the watch".into()),
        };
        attempt = if shared.hub.position() > before {
            0
        } else {
            attempt + 1
        };
        tracing::warn!(%error, "the watch on etcd broke off, trying again");
        tokio::time::sleep(back_off(attempt)).await;
    }
}

async fn open(mut watch: WatchClient, from: u64) -> Result<WatchStream> {
    let options = WatchOptions::new()
        .with_range(FIRST_KEY)
        .with_prev_key()
        .with_start_revision(from as i64);
    watch.watch(FIRST_KEY, Some(options)).await.map_err(fault)
}

async fn follow(shared: &Arc<Shared>, history: &mut Option<History>) -> Result<()> {
    let from = shared.hub.position() + 1;
    let mut stream = open(shared.watch.clone(), from).await?;
    while let Some(response) = stream.message().await.map_err(fault)? {
        let events = events(&response, from)?;
        let Some(revision) = events.last().map(Event::revision) else {
            continue;
        };
        shared.hub.publish(&events, revision);
        if let Some(target) = history
            .as_mut()
            .and_then(|history| history.advance(Instant::now(), revision))
        {
            let mut kv = shared.kv.clone();
            // If it fails, as when another API server was faster, the next one will do.
            tokio::spawn(async move { kv.compact(target as i64, None).await.map(drop) });
        }
    }
    Ok(())
}

/// What happened between two revisions, with a watch of its own.
pub(super) async fn read(watch: WatchClient, prefix: &str, from: u64, to: u64) -> Result<Batch> {
    let mut stream = open(watch, from).await?;
    let mut batch = Batch {
        events: Vec::new(),
        revision: from - 1,
    };
    while batch.revision < to && batch.events.len() < CHUNK {
        let response = stream.message().await.map_err(fault)?;
        let response =
            response.ok_or_else(|| Error::Unavailable("the server ended the watch".into()))?;
        for event in events(&response, from)? {
            batch.revision = event.revision();
            if event.kv.key.starts_with(prefix) && event.revision() <= to {
                batch.events.push(event);
            }
        }
    }
    // What comes after is the hub's to tell.
    batch.revision = batch.revision.min(to);
    Ok(batch)
}

fn events(response: &WatchResponse, from: u64) -> Result<Vec<Event>> {
    if response.compact_revision() > 0 {
        return Err(Error::Compacted {
            requested: from,
            oldest: response.compact_revision() as u64,
        });
    }
    if response.canceled() {
        return Err(Error::Unavailable(format!(
            "the server ended the watch: {}",
            response.cancel_reason()
        )));
    }
    Ok(response.events().iter().filter_map(event).collect())
}

fn event(event: &etcd_client::Event) -> Option<Event> {
    let mut kv = key_value(event.kv()?);
    let prev_kv = event.prev_kv().map(key_value);
    let kind = match event.event_type() {
        EventType::Put => EventKind::Put,
        EventType::Delete => {
            kv.value = Bytes::new();
            kv.create_revision = prev_kv.as_ref().map_or(0, |prev| prev.create_revision);
            EventKind::Delete
        }
    };
    Some(Event { kind, kv, prev_kv })
}
