//! Watches: a stream of events, each a line of JSON or a frame of protobuf.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use apimachinery::json;
use apimachinery::status::{Result, Status};
use bytes::Bytes;
use futures::Stream;
use http::StatusCode;
use rand::Rng;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::protobuf;
use super::respond::{Presenter, bookmark, reply};
use crate::body::{Body, Reply};
use crate::cache::{Change, ChangeKind, Receiver, Selection, Subscription, WatchCache, Wire};
use crate::negotiate::{Accept, Format, Shape};
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
                shutdown,
            );
            (Body::Stream(Box::pin(watcher)), content_type)
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

/// The stream of one watch. There may be ten thousand of them that all wake for one write, so what each waits for is
/// set up once, and a wake costs no more than it has to.
struct Watcher {
    cache: Arc<WatchCache>,
    served: Arc<Served>,
    initial: VecDeque<Arc<Change>>,
    receiver: Receiver,
    accept: Accept,
    query: Query,
    /// How events are written, if that depends on nothing else.
    wire: Option<Wire>,
    bookmarks: bool,
    /// The end of the initial objects is still to be announced.
    initial_end: bool,
    /// The revision that the client knows it has reached.
    revision: u64,
    deadline: Instant,
    next_bookmark: Instant,
    /// Goes off at the earlier of the two.
    timer: Pin<Box<Sleep>>,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    ended: bool,
    /// An event has been sent.
    begun: bool,
}

impl Watcher {
    #[allow(clippy::too_many_arguments)]
    fn new(
        cache: Arc<WatchCache>,
        served: Arc<Served>,
        subscription: Subscription,
        options: &ListOptions,
        accept: Accept,
        query: Query,
        initial_end: bool,
        shutdown: CancellationToken,
    ) -> Self {
        let seconds = match options.timeout_seconds {
            Some(seconds) if seconds > 0 => seconds.min(7 * 24 * 3600),
            _ => rand::rng().random_range(MIN_TIMEOUT..2 * MIN_TIMEOUT),
        };
        let stored = accept.shape == Shape::Plain && !served.converts();
        let wire = stored.then_some(match accept.format {
            Format::Protobuf => Wire::Protobuf,
            _ => Wire::Json,
        });
        let now = Instant::now();
        let deadline = now + Duration::from_secs(seconds);
        Self {
            cache,
            served,
            initial: subscription.initial,
            receiver: subscription.receiver,
            accept,
            query,
            wire,
            bookmarks: options.allow_bookmarks,
            initial_end,
            revision: subscription.revision,
            deadline,
            next_bookmark: now + BOOKMARK_EVERY,
            timer: Box::pin(tokio::time::sleep_until(deadline)),
            shutdown: Box::pin(shutdown.cancelled_owned()),
            ended: false,
            begun: false,
        }
    }

    /// What the watch begins with, chunk by chunk; `None` once all of it has been sent.
    fn opening(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while out.len() < CHUNK
            && let Some(change) = self.initial.pop_front()
        {
            self.write(&mut out, &change);
        }
        if self.initial.is_empty() && std::mem::take(&mut self.initial_end) {
            self.write_bookmark(&mut out, self.revision, true);
        }
        (!out.is_empty()).then(|| out.into())
    }

    /// The changes that are there, up to a chunk of them. Once none is left and none will come, the watch has ended: cut
    /// off, or the cache started over, and the client takes it up from its last version.
    fn changes(&mut self, context: &mut Context<'_>) -> Option<Bytes> {
        // Nearly always it is one, which goes out as it is.
        let first = self.next(context)?;
        let mut more = Vec::new();
        while first.len().max(more.len()) < CHUNK
            && let Some(event) = self.next(context)
        {
            if more.is_empty() {
                more.extend_from_slice(&first);
            }
            more.extend_from_slice(&event);
        }
        Some(match more.is_empty() {
            true => first,
            false => more.into(),
        })
    }

    fn next(&mut self, context: &mut Context<'_>) -> Option<Bytes> {
        match self.receiver.poll_recv(context) {
            Poll::Ready(Some(change)) => {
                self.revision = self.revision.max(change.object.revision);
                Some(self.event(&change))
            }
            Poll::Ready(None) => {
                self.ended = true;
                None
            }
            Poll::Pending => None,
        }
    }

    /// One event; watchers that see the same share its bytes.
    fn event(&mut self, change: &Change) -> Bytes {
        let mut out = Vec::new();
        match self.wire {
            Some(wire) => change.event(wire, || {
                self.write(&mut out, change);
                out
            }),
            None => {
                self.write(&mut out, change);
                out.into()
            }
        }
    }

    fn wake_at(&self) -> Instant {
        match self.bookmarks {
            true => self.deadline.min(self.next_bookmark),
            false => self.deadline,
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
        json::write(out, &object);
        out.extend_from_slice(b"}\n");
    }
}

impl Stream for Watcher {
    type Item = Bytes;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        if let Some(chunk) = this.opening().or_else(|| this.changes(context)) {
            return Poll::Ready(Some(chunk));
        }
        if this.ended || this.shutdown.as_mut().poll(context).is_ready() {
            this.ended = true;
            return Poll::Ready(None);
        }
        loop {
            let at = this.wake_at();
            if this.timer.deadline() != at {
                this.timer.as_mut().reset(at);
            }
            if this.timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            this.ended = now >= this.deadline;
            this.next_bookmark = now + BOOKMARK_EVERY;
            let progress = this.progress();
            if this.ended || progress.is_some() {
                return Poll::Ready(progress);
            }
        }
    }
}

fn frame_error(error: &Status, accept: Accept) -> Vec<u8> {
    if accept.format == Format::Protobuf {
        return protobuf::event("ERROR", &error.to_value());
    }
    let mut out = b"{\"type\":\"ERROR\",\"object\":".to_vec();
    json::write(&mut out, &error.to_value());
    out.extend_from_slice(b"}\n");
    out
}
