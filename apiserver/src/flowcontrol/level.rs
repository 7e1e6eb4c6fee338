//! A priority level in use: its seats, who sits in them and who waits for one.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::{Duration, Instant};

use apimachinery::status::Result;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::queues::{Place, Queues};
use super::rules::{Queuing, Seats};
use super::{Fairness, refused};

/// How long a request may wait: a quarter of what it may take, as in Kubernetes.
const MAX_WAIT: Duration = Duration::from_secs(15);
/// At most this part of a level's seats goes to one request.
const MAX_WIDTH: f64 = 0.15;

/// It outlives changes of its configuration.
pub struct Level {
    pub name: String,
    seats: ArcSwap<Seats>,
    pub in_use: AtomicUsize,
    /// As many as wait in the queues, readable without the lock.
    pub waiting: AtomicUsize,
    pub rejected: AtomicU64,
    pub dispatched: AtomicU64,
    queues: Mutex<Option<Queues<Waiter>>>,
}

/// A request that waits for its seats. Those that it does not take any more are free again.
pub struct Waiter {
    sender: oneshot::Sender<Seat>,
    width: usize,
}

/// The seats of a request, until it is dropped.
pub struct Seat {
    fairness: Arc<Fairness>,
    level: Arc<Level>,
    width: usize,
    /// The queue that it came out of, and when.
    from: Option<(Place, Instant)>,
    /// Nobody has sat in it, and whoever offered it goes on offering.
    declined: bool,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some((place, since)) = self.from
            && let Some(queues) = &mut *self.level.queues.lock()
        {
            let used = self.width as f64 * since.elapsed().as_secs_f64();
            queues.done(place, if self.declined { 0.0 } else { used });
        }
        self.fairness.vacate(&self.level, self.width);
        if !self.declined {
            self.fairness.offer(&self.level);
        }
    }
}

impl Level {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            seats: ArcSwap::default(),
            in_use: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            rejected: AtomicU64::new(0),
            dispatched: AtomicU64::new(0),
            queues: Mutex::new(None),
        }
    }

    pub fn configure(&self, seats: Seats, queuing: Option<Queuing>) {
        self.seats.store(Arc::new(seats));
        let mut queues = self.queues.lock();
        if queues.as_ref().map(Queues::shape) != queuing {
            // Dropping the senders turns away those who wait: they were promised other queues.
            *queues = queuing.map(Queues::new);
            self.waiting.store(0, SeqCst);
        }
    }

    pub fn seats(&self) -> Seats {
        **self.seats.load()
    }

    /// As wide as a request of this level may be.
    pub fn clamped(&self, width: usize) -> usize {
        let most = (self.seats().nominal as f64 * MAX_WIDTH).ceil() as usize;
        width.clamp(1, most.max(1))
    }
}

impl Fairness {
    /// Seats for a request that need not wait.
    pub(super) fn take(self: &Arc<Self>, level: &Arc<Level>, width: usize) -> Option<Seat> {
        (level.waiting.load(SeqCst) == 0 && self.enter(level, width))
            .then(|| self.sit(level, width, None))
    }

    /// Seats for a request after its turn in the queues.
    pub(super) async fn wait(
        self: &Arc<Self>,
        level: &Arc<Level>,
        flow: u64,
        width: usize,
    ) -> Result<Seat> {
        let refuse = || {
            level.rejected.fetch_add(1, SeqCst);
            refused()
        };
        let (sender, receiver) = oneshot::channel();
        let waiter = Waiter { sender, width };
        let queued = level.queues.lock().as_mut().is_some_and(|queues| {
            let gone = |waiter: &Waiter| waiter.sender.is_closed();
            let queued = queues.push(flow, waiter, gone).is_ok();
            level.waiting.store(queues.waiting(), SeqCst);
            queued
        });
        if !queued {
            return Err(refuse());
        }
        // A seat may have become free before anybody could see us wait.
        self.dispatch(level);
        match tokio::time::timeout(MAX_WAIT, receiver).await {
            Ok(Ok(seat)) => Ok(seat),
            // Told too late, or the level was laid out anew.
            Ok(Err(_)) | Err(_) => Err(refuse()),
        }
    }

    fn sit(
        self: &Arc<Self>,
        level: &Arc<Level>,
        width: usize,
        from: Option<(Place, Instant)>,
    ) -> Seat {
        level.dispatched.fetch_add(1, SeqCst);
        Seat {
            fairness: self.clone(),
            level: level.clone(),
            width,
            from,
            declined: false,
        }
    }

    /// Takes seats if there are enough for the level.
    fn enter(&self, level: &Level, width: usize) -> bool {
        let seats = level.seats();
        let more = |in_use| self.allows(seats, in_use, width).then_some(in_use + width);
        let taken = level.in_use.fetch_update(SeqCst, SeqCst, more).is_ok();
        if taken {
            self.in_use.fetch_add(width, SeqCst);
        }
        taken
    }

    fn allows(&self, seats: Seats, in_use: usize, width: usize) -> bool {
        let wanted = in_use + width;
        if wanted <= seats.guaranteed {
            return true;
        }
        let total = self.in_use.load(SeqCst) + width;
        if wanted <= seats.nominal {
            return total <= self.total;
        }
        // Others' guaranteed seats stay free for them.
        let reserved = || -> usize {
            let state = self.state.load();
            let free = |level: &Arc<Level>| {
                let used = level.in_use.load(SeqCst);
                level.seats().guaranteed.saturating_sub(used)
            };
            state.levels.iter().map(free).sum()
        };
        wanted <= seats.most && total + reserved() <= self.total
    }

    fn vacate(&self, level: &Level, width: usize) {
        level.in_use.fetch_sub(width, SeqCst);
        self.in_use.fetch_sub(width, SeqCst);
    }

    /// Gives what has become free to those who wait for it.
    fn offer(self: &Arc<Self>, left: &Arc<Level>) {
        let state = self.state.load();
        let waits = |level: &&Arc<Level>| level.waiting.load(SeqCst) > 0;
        // Who is within its own share goes before who would borrow.
        let within = |level: &&Arc<Level>| level.in_use.load(SeqCst) < level.seats().nominal;
        for level in state.levels.iter().filter(waits).filter(within) {
            self.dispatch(level);
        }
        // The last one is for a level that is configured no more and has requests yet.
        for level in state.levels.iter().chain([left]).filter(waits) {
            self.dispatch(level);
        }
    }

    /// Gives the level's seats to those who wait for one.
    pub(super) fn dispatch(self: &Arc<Self>, level: &Arc<Level>) {
        loop {
            let next = {
                let mut queues = level.queues.lock();
                let Some(queues) = &mut *queues else { return };
                let next = queues.next(|waiter| self.enter(level, waiter.width));
                level.waiting.store(queues.waiting(), SeqCst);
                next
            };
            let Some((place, waiter)) = next else { return };
            let seat = self.sit(level, waiter.width, Some((place, Instant::now())));
            // Outside the lock, which the drop of a seat takes.
            if let Err(mut seat) = waiter.sender.send(seat) {
                seat.declined = true;
            }
        }
    }
}
