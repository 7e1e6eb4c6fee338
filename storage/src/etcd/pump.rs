//! From etcd's watches to the hub.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use etcd_client::{EventType, GetOptions, WatchOptions, WatchResponse, WatchStream};

use super::epoch::{self, Epoch};
use super::{FIRST_KEY, Shared, back_off, fault};
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
            Err(Error::Compacted { requested, oldest }) => match shared.current().await {
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

async fn open(shared: &Shared, from: u64) -> Result<WatchStream> {
    let start = shared.epoch.inward(from);
    let options = WatchOptions::new()
        .with_range(FIRST_KEY)
        .with_prev_key()
        .with_start_revision(start.ok_or_else(|| shared.epoch.over(from))?);
    let mut watch = shared.watch.clone();
    watch.watch(FIRST_KEY, Some(options)).await.map_err(fault)
}

/// Fails if history has been compacted up to `from` or further. Where the compaction was at just that revision, older etcds
/// forget a deletion there and do not say so (etcd-io/etcd#18089); and changes come without what was before them. So
/// whoever reads the past asks afterwards.
async fn intact(shared: &Shared, from: u64) -> Result<()> {
    let Some(before) = shared.epoch.inward(from - 1) else {
        return Ok(());
    };
    let options = GetOptions::new().with_revision(before).with_count_only();
    let read = shared.kv.clone().get(FIRST_KEY, Some(options)).await;
    match read.map_err(fault) {
        Ok(_) => Ok(()),
        Err(Error::Compacted { .. }) => Err(Error::Compacted {
            requested: from,
            oldest: from + 1,
        }),
        Err(other) => Err(other),
    }
}

async fn follow(shared: &Arc<Shared>, history: &mut Option<History>) -> Result<()> {
    let from = shared.hub.position() + 1;
    let mut stream = open(shared, from).await?;
    // What has happened before the watch began is read from history; what follows is heard as it happens.
    let past = shared.current().await?;
    while let Some(response) = stream.message().await.map_err(fault)? {
        if let Some(offset) = epoch::changed(response.events(), &shared.epoch) {
            // Somebody restores a backup beneath us. All that was known before is of another time.
            shared.epoch.set(offset);
            return Err(shared.epoch.over(from));
        }
        let events = events(shared, &response, from)?;
        let Some(revision) = events.last().map(Event::revision) else {
            continue;
        };
        let first = shared.hub.position() + 1;
        if first <= past {
            intact(shared, first).await?;
        }
        shared.hub.publish(&events, revision);
        if let Some(target) = history
            .as_mut()
            .and_then(|history| history.advance(Instant::now(), revision))
        {
            let (mut kv, target) = (shared.kv.clone(), shared.epoch.inward(target));
            let Some(target) = target else { continue };
            // If it fails, as when another API server was faster, the next one will do.
            tokio::spawn(async move { kv.compact(target, None).await.map(drop) });
        }
    }
    Ok(())
}

/// What happened between two revisions, with a watch of its own.
pub(super) async fn read(shared: &Shared, prefix: &str, from: u64, to: u64) -> Result<Batch> {
    let mut stream = open(shared, from).await?;
    let mut batch = Batch {
        events: Vec::new(),
        revision: from - 1,
    };
    while batch.revision < to && batch.events.len() < CHUNK {
        let response = stream.message().await.map_err(fault)?;
        let response =
            response.ok_or_else(|| Error::Unavailable("the server ended the watch".into()))?;
        for event in events(shared, &response, from)? {
            batch.revision = event.revision();
            if event.kv.key.starts_with(prefix) && event.revision() <= to {
                batch.events.push(event);
            }
        }
    }
    intact(shared, from).await?;
    // What comes after is the hub's to tell.
    batch.revision = batch.revision.min(to);
    Ok(batch)
}

fn events(shared: &Shared, response: &WatchResponse, from: u64) -> Result<Vec<Event>> {
    if response.compact_revision() > 0 {
        return Err(Error::Compacted {
            requested: from,
            oldest: shared.epoch.outward(response.compact_revision() as u64),
        });
    }
    if response.canceled() {
        return Err(Error::Unavailable(format!(
            "the server ended the watch: {}",
            response.cancel_reason()
        )));
    }
    let events = response.events().iter();
    Ok(events.filter_map(|e| event(e, &shared.epoch)).collect())
}

fn event(event: &etcd_client::Event, epoch: &Epoch) -> Option<Event> {
    let mut kv = epoch.key_value(event.kv()?);
    let prev_kv = event.prev_kv().map(|kv| epoch.key_value(kv));
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
