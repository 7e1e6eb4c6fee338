//! What waits for one watcher.
//!
//! There may be ten thousand that all hear of one write, so a queue costs nothing while it is empty, a change in it is a
//! pointer, and its watcher is woken once for all that it can take at a time.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::change::Change;

/// How many changes a watcher may be behind before it is cut off.
pub(super) const MOST_CHANGES: usize = 4096;
/// The same in bytes of large objects. As many small ones as the queue takes have no more, and are not weighed.
pub(super) const MOST_BYTES: usize = 32 << 20;
const LIGHT: usize = MOST_BYTES / MOST_CHANGES;
/// An empty queue with room for more than this gives it back.
const KEPT: usize = 64;

#[derive(Debug, Default)]
struct Queue {
    changes: VecDeque<Arc<Change>>,
    /// Bytes of the large objects in it.
    weight: usize,
    waker: Option<Waker>,
    /// The receiver has found nothing, and has not been woken since.
    waits: bool,
    /// Nothing more will come.
    ended: bool,
    /// Nobody takes anything any more.
    abandoned: bool,
}

impl Queue {
    /// False if the watcher is too far behind.
    fn push(&mut self, change: &Arc<Change>) -> bool {
        let weight = self.weight + weight(change);
        if self.changes.len() == MOST_CHANGES || weight > MOST_BYTES {
            return false;
        }
        self.weight = weight;
        self.changes.push_back(change.clone());
        true
    }

    fn pop(&mut self) -> Option<Arc<Change>> {
        let change = self.changes.pop_front()?;
        self.weight -= weight(&change);
        if self.changes.is_empty() && self.changes.capacity() > KEPT {
            self.changes = VecDeque::new();
        }
        Some(change)
    }

    fn wake(&mut self) {
        if std::mem::take(&mut self.waits)
            && let Some(waker) = &self.waker
        {
            waker.wake_by_ref();
        }
    }
}

/// One that is larger than all room is taken when no other large one waits.
fn weight(change: &Change) -> usize {
    match change.object.bytes.len() {
        light if light <= LIGHT => 0,
        heavy => heavy.min(MOST_BYTES),
    }
}

/// A queue that is open as long as both ends are there.
pub(super) fn queue() -> (Sender, Receiver) {
    let queue = Arc::new(Mutex::new(Queue::default()));
    (Sender(queue.clone()), Receiver(queue))
}

#[derive(Debug)]
pub(super) struct Sender(Arc<Mutex<Queue>>);

impl Sender {
    /// False if the watcher is gone, or too far behind.
    pub fn send<'a>(&self, changes: impl Iterator<Item = &'a Arc<Change>>) -> bool {
        let mut changes = changes.peekable();
        // Most updates are of no concern to most watchers with a selection.
        if changes.peek().is_none() {
            return true;
        }
        let mut queue = self.0.lock();
        if queue.abandoned {
            return false;
        }
        for change in changes {
            if !queue.push(change) {
                return false;
            }
        }
        queue.wake();
        true
    }

    pub fn is_abandoned(&self) -> bool {
        self.0.lock().abandoned
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.ended = true;
        queue.wake();
    }
}

/// Ends when the watcher is too slow or the cache had to start over.
#[derive(Debug)]
pub struct Receiver(Arc<Mutex<Queue>>);

impl Receiver {
    pub fn poll_recv(&self, context: &mut Context<'_>) -> Poll<Option<Arc<Change>>> {
        let mut queue = self.0.lock();
        if let Some(change) = queue.pop() {
            return Poll::Ready(Some(change));
        }
        if queue.ended {
            return Poll::Ready(None);
        }
        // The waker stays: it is the same one nearly always, and to copy it costs more than to compare it.
        match &mut queue.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        queue.waits = true;
        Poll::Pending
    }

    pub async fn recv(&self) -> Option<Arc<Change>> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    /// What is there already.
    pub fn try_recv(&self) -> Option<Arc<Change>> {
        self.0.lock().pop()
    }

    /// Waits for a change, and throws away all that have come with it, for whoever looks at the objects themselves. False
    /// when nothing more will come.
    pub async fn changed(&self) -> bool {
        let more = self.recv().await.is_some();
        while self.try_recv().is_some() {}
        more
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.lock().changes.is_empty()
    }

    /// Whether nothing more will come than what is there.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.0.lock().ended
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.abandoned = true;
        // The sender may not look here again for long.
        queue.changes = VecDeque::new();
        queue.waker = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{ChangeKind, Object};

    fn change(length: usize) -> Arc<Change> {
        let json = format!(r#"{{"metadata":{{"name":"{}"}}}}"#, "x".repeat(length));
        let object = Object::new("a", json.as_bytes(), 1, &[]).unwrap();
        Change::new(ChangeKind::Added, Arc::new(object))
    }

    #[tokio::test]
    async fn all_arrives_and_the_end_too() {
        let (sender, receiver) = queue();
        let both = [change(1), change(2)];
        let reading = async {
            let mut seen = Vec::new();
            while let Some(change) = receiver.recv().await {
                seen.push(change.object.bytes.len());
            }
            seen
        };
        let writing = async {
            assert!(sender.send(both.iter()));
            tokio::task::yield_now().await;
            assert!(sender.send(both[..1].iter()));
            drop(sender);
        };
        let (seen, ()) = tokio::join!(reading, writing);
        assert_eq!(seen.len(), 3);
        assert!(receiver.is_ended());
    }

    #[test]
    fn it_is_bounded() {
        let (sender, receiver) = queue();
        let light = change(1);
        for _ in 0..MOST_CHANGES {
            assert!(sender.send([&light].into_iter()));
        }
        assert!(!sender.send([&light].into_iter()));
        while receiver.try_recv().is_some() {}
        assert!(receiver.0.lock().changes.capacity() <= KEPT);
        let heavy = change(MOST_BYTES / 2 + 1);
        assert!(sender.send([&heavy, &light].into_iter()));
        assert!(!sender.send([&heavy].into_iter()));
        assert!(receiver.try_recv().is_some());
        assert!(sender.send([&heavy].into_iter()));
        drop(receiver);
        assert!(sender.is_abandoned() && !sender.send([&light].into_iter()));
    }
}
