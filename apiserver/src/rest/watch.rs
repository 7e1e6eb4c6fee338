//! Watches: a stream of events, each a line of JSON or a frame of protobuf.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::status::{Result, Status};
use bytes::Bytes;
use futures::StreamExt;
use http::StatusCode;
use rand::Rng;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::protobuf;
use super::respond::{Presenter, bookmark, reply};
use crate::body::{Body, Reply};
use crate::cache::{Change, ChangeKind, Selection, Subscription, WatchCache};
use crate::codec::write_json;
use crate::negotiate::{Accept, Format};
use crate::query::Query;
use crate::registry::Registry;
use crate::registry::read::ListOptions;
use crate::registry::table::Served;

/// How often a watcher that takes bookmarks hears where it stands, if that has changed.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Kubernetes' --min-request-timeout: a watch without a timeout of its own lives this long to twice as long.
const MIN_TIMEOUT: u64 = 1800;
/// How many bytes of events are put into one chunk.
const CHUNK: usize = 64 * 1024;

/// Answers a watch request. Failures to start are a stream of one ERROR event, except for bad requests.
pub async fn watch(
    registry: &Registry,
    served: &Arc<Served>,
    selection: Selection,
    options: &ListOptions,
    (accept, query): (Accept, &Query),
    shutdown: CancellationToken,
) -> Reply {
    let cache = registry.cache(served).clone();
    let content_type = match accept.format {
        Format::Protobuf => protobuf::WATCH_MEDIA_TYPE,
        _ => "application/json",
    };
    let (body, content_type) = match subscribe(&cache, selection, options).await {
        Ok((subscription, initial_end)) => {
            let watcher = Watcher::new(
                cache,
                served.clone(),
                subscription,
                options,
                accept,
                query.clone(),
                initial_end,
            );
            let stream = futures::stream::unfold(
                (watcher, shutdown),
                |(mut watcher, shutdown)| async move {
                    let chunk = watcher.next(&shutdown).await?;
                    Some((chunk, (watcher, shutdown)))
                },
            );
            (Body::Stream(stream.boxed()), content_type)
        }
        Err(error) => (frame_error(&error, accept).into(), content_type),
    };
    reply(StatusCode::OK, content_type, body)
}

/// Where the watch starts; and whether the end of the initial objects is announced.
async fn subscribe(
    cache: &WatchCache,
    selection: Selection,
    options: &ListOptions,
) -> Result<(Subscription, bool)> {
    let version = options.resource_version;
    match options.send_initial_events {
        // A streamed list, as new as asked for.
        Some(true) => {
            let reached = match version {
                None => cache.fresh().await?,
                Some(revision) => cache.at_least(revision).await?,
            };
            Ok((
                cache.subscribe(selection, true, reached),
                options.allow_bookmarks,
            ))
        }
        Some(false) if version.is_none_or(|revision| revision == 0) => {
            let reached = cache.fresh().await?;
            Ok((cache.subscribe(selection, false, reached), false))
        }
        _ => match version {
            None => {
                let reached = cache.fresh().await?;
                Ok((cache.subscribe(selection, true, reached), false))
            }
            Some(0) => {
                let reached = cache.loaded().await?;
                Ok((cache.subscribe(selection, true, reached), false))
            }
            Some(revision) => Ok((cache.subscribe_from(selection, revision).await?, false)),
        },
    }
}

struct Watcher {
    cache: Arc<WatchCache>,
    served: Arc<Served>,
    initial: VecDeque<Change>,
    receiver: tokio::sync::mpsc::Receiver<Change>,
    accept: Accept,
    query: Query,
    bookmarks: bool,
    /// The end of the initial objects is still to be announced.
    initial_end: bool,
    /// The revision that the client knows it has reached.
    revision: u64,
    deadline: Instant,
    next_bookmark: Instant,
    ended: bool,
    /// An event has been sent.
    begun: bool,
}

impl Watcher {
    fn new(
        cache: Arc<WatchCache>,
        served: Arc<Served>,
        subscription: Subscription,
        options: &ListOptions,
        accept: Accept,
        query: Query,
        initial_end: bool,
    ) -> Self {
        let seconds = match options.timeout_seconds {
            Some(seconds) if seconds > 0 => seconds.min(7 * 24 * 3600),
            _ => rand::rng().random_range(MIN_TIMEOUT..2 * MIN_TIMEOUT),
        };
        let now = Instant::now();
        Self {
            cache,
            served,
            initial: subscription.initial,
            receiver: subscription.receiver,
            accept,
            query,
            bookmarks: options.allow_bookmarks,
            initial_end,
            revision: subscription.revision,
            deadline: now + Duration::from_secs(seconds),
            next_bookmark: now + BOOKMARK_EVERY,
            ended: false,
            begun: false,
        }
    }

    /// The next chunk of events; `None` once the watch is over.
    async fn next(&mut self, shutdown: &CancellationToken) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::new();
        while let Some(change) = self.initial.pop_front() {
            self.write(&mut out, &change);
            if out.len() >= CHUNK {
                return Some(out.into());
            }
        }
        if std::mem::take(&mut self.initial_end) {
            self.write_bookmark(&mut out, self.revision, true);
        }
        if !out.is_empty() {
            return Some(out.into());
        }
        let mut changes = Vec::new();
        loop {
            tokio::select! {
                biased;
                count = self.receiver.recv_many(&mut changes, 128) => {
                    // Cut off, or the cache started over: the client takes it up from its last version.
                    if count == 0 {
                        return None;
                    }
                    for change in changes.drain(..) {
                        self.revision = self.revision.max(change.object.revision);
                        self.write(&mut out, &change);
                    }
                    return Some(out.into());
                }
                () = shutdown.cancelled() => return None,
                () = tokio::time::sleep_until(self.deadline) => {
                    self.ended = true;
                    return self.progress();
                }
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                    if let Some(chunk) = self.progress() {
                        return Some(chunk);
                    }
                }
            }
        }
    }

    /// A bookmark, if the watch has got further without an event.
    fn progress(&mut self) -> Option<Bytes> {
        let position = self.cache.settled();
        // What is still in the buffer must not be skipped.
        if !self.bookmarks || position <= self.revision || !self.receiver.is_empty() {
            return None;
        }
        self.revision = position;
        let mut out = Vec::new();
        self.write_bookmark(&mut out, position, false);
        Some(out.into())
    }

    fn write(&mut self, out: &mut Vec<u8>, change: &Change) {
        let first = !std::mem::replace(&mut self.begun, true);
        let kind = match change.kind {
            ChangeKind::Added => "ADDED",
            ChangeKind::Modified => "MODIFIED",
            ChangeKind::Deleted => "DELETED",
        };
        let presenter = Presenter {
            served: &self.served,
            accept: self.accept,
            query: &self.query,
            gzip: false,
        };
        if self.accept.format == Format::Protobuf {
            match presenter.event(kind, &change.object) {
                Ok(event) => out.extend_from_slice(&event),
                Err(error) => out.extend_from_slice(&frame_error(&error, self.accept)),
            }
            return;
        }
        match presenter.shaped(&change.object, first) {
            Ok(bytes) => {
                out.reserve(bytes.len() + 40);
                out.extend_from_slice(b"{\"type\":\"");
                out.extend_from_slice(kind.as_bytes());
                out.extend_from_slice(b"\",\"object\":");
                out.extend_from_slice(&bytes);
                out.extend_from_slice(b"}\n");
            }
            Err(error) => out.extend_from_slice(&frame_error(&error, self.accept)),
        }
    }

    fn write_bookmark(&self, out: &mut Vec<u8>, revision: u64, initial_end: bool) {
        let object = bookmark(&self.served.resource, self.accept, revision, initial_end);
        if self.accept.format == Format::Protobuf {
            return out.extend_from_slice(&protobuf::event("BOOKMARK", &object));
        }
        out.extend_from_slice(b"{\"type\":\"BOOKMARK\",\"object\":");
        write_json(out, &object);
        out.extend_from_slice(b"}\n");
    }
}

fn frame_error(error: &Status, accept: Accept) -> Vec<u8> {
    if accept.format == Format::Protobuf {
        return protobuf::event("ERROR", &error.to_value());
    }
    let mut out = b"{\"type\":\"ERROR\",\"object\":".to_vec();
    write_json(&mut out, &error.to_value());
    out.extend_from_slice(b"}\n");
    out
}
