//! The queues of one level: each flow has a few of them, and all get their turn.
//!
//! A flow is dealt a hand of queues by its hash and waits in the shortest, so that a flow that floods fills its own hand
//! and seldom all of another's (shuffle sharding). The queue that has had the least service goes next (start-time fair
//! queuing, with the time that requests really took).

use std::collections::VecDeque;

use super::rules::Queuing;

/// What a request is taken to need until it is known, in seconds.
const ESTIMATE: f64 = 0.005;

#[derive(Debug)]
struct Queue<T> {
    waiting: VecDeque<T>,
    executing: usize,
    /// Virtual time at which what it has been given so far ends.
    finish: f64,
}

#[derive(Debug)]
pub struct Queues<T> {
    shape: Queuing,
    queues: Vec<Queue<T>>,
    waiting: usize,
    /// The start of what was given last.
    now: f64,
}

/// The queue that a request has waited in, to be told when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(usize);

/// The numbers of a hand: distinct, out of `deck`, and the same for the same hash.
fn hand(mut hash: u64, deck: usize, size: usize) -> Vec<usize> {
    let mut dealt: Vec<usize> = Vec::with_capacity(size);
    let mut remainders: Vec<usize> = Vec::with_capacity(size);
    for n in 0..size.min(deck) {
        let left = (deck - n) as u64;
        let remainder = (hash % left) as usize;
        hash /= left;
        let mut card = remainder;
        for earlier in remainders.iter().rev() {
            if card >= *earlier {
                card += 1;
            }
        }
        remainders.push(remainder);
        dealt.push(card);
    }
    dealt
}

impl<T> Queues<T> {
    #[must_use]
    pub fn new(shape: Queuing) -> Self {
        let queue = || Queue {
            waiting: VecDeque::new(),
            executing: 0,
            finish: 0.0,
        };
        Self {
            shape,
            queues: (0..shape.queues.max(1)).map(|_| queue()).collect(),
            waiting: 0,
            now: 0.0,
        }
    }

    #[must_use]
    pub fn shape(&self) -> Queuing {
        self.shape
    }

    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Puts a request into the shortest queue of its flow's hand; gives it back if that is full, those aside who are
    /// `gone` and wait no more.
    pub fn push(&mut self, flow: u64, request: T, gone: impl Fn(&T) -> bool) -> Result<(), T> {
        let hand = hand(flow, self.queues.len(), self.shape.hand_size.max(1));
        let length = |n: &usize| self.queues[*n].waiting.len() + self.queues[*n].executing;
        let Some(shortest) = hand.into_iter().min_by_key(length) else {
            return Err(request);
        };
        let queue = &mut self.queues[shortest];
        if queue.waiting.len() >= self.shape.queue_length_limit {
            let before = queue.waiting.len();
            queue.waiting.retain(|request| !gone(request));
            self.waiting -= before - queue.waiting.len();
        }
        if queue.waiting.len() >= self.shape.queue_length_limit {
            return Err(request);
        }
        if queue.waiting.is_empty() && queue.executing == 0 {
            // Time in which it asked for nothing is no credit.
            queue.finish = queue.finish.max(self.now);
        }
        queue.waiting.push_back(request);
        self.waiting += 1;
        Ok(())
    }

    /// The next request, of the queue that has been given the least, if there is room for it.
    pub fn next(&mut self, has_room: impl FnOnce(&T) -> bool) -> Option<(Place, T)> {
        let (place, queue) = self
            .queues
            .iter_mut()
            .enumerate()
            .filter(|(_, queue)| !queue.waiting.is_empty())
            .min_by(|(_, a), (_, b)| a.finish.total_cmp(&b.finish))?;
        if !has_room(queue.waiting.front()?) {
            return None;
        }
        let request = queue.waiting.pop_front()?;
        self.waiting -= 1;
        self.now = self.now.max(queue.finish);
        queue.finish += ESTIMATE;
        queue.executing += 1;
        Some((Place(place), request))
    }

    /// A request of that queue has taken so many seconds, times its seats.
    pub fn done(&mut self, place: Place, seconds: f64) {
        // The queues may be other ones by now.
        if let Some(queue) = self.queues.get_mut(place.0) {
            queue.executing = queue.executing.saturating_sub(1);
            queue.finish += seconds - ESTIMATE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn queues(queues: usize, hand_size: usize, queue_length_limit: usize) -> Queues<&'static str> {
        Queues::new(Queuing {
            queues,
            hand_size,
            queue_length_limit,
        })
    }

    fn stays(_: &&'static str) -> bool {
        false
    }

    proptest! {
        #[test]
        fn hands_have_no_card_twice(hash: u64, deck in 1usize..200, size in 1usize..10) {
            let mut dealt = hand(hash, deck, size);
            prop_assert_eq!(dealt.len(), size.min(deck));
            prop_assert!(dealt.iter().all(|card| *card < deck));
            dealt.sort_unstable();
            dealt.dedup();
            prop_assert_eq!(dealt.len(), size.min(deck));
        }
    }

    #[test]
    fn a_flood_does_not_hold_up_the_others() {
        let mut queues = queues(8, 1, 100);
        for _ in 0..50 {
            queues.push(1, "flood", stays).unwrap();
        }
        queues.push(2, "quiet", stays).unwrap();
        let mut order = Vec::new();
        while let Some((place, name)) = queues.next(|_| true) {
            order.push(name);
            queues.done(place, 0.010);
        }
        let quiet = order.iter().position(|name| *name == "quiet").unwrap();
        assert!(quiet <= 1, "{quiet}");
        assert_eq!(order.len(), 51);
    }

    #[test]
    fn slow_requests_are_charged_for_their_time() {
        let mut queues = queues(2, 1, 100);
        for _ in 0..10 {
            queues.push(0, "slow", stays).unwrap();
            queues.push(1, "fast", stays).unwrap();
        }
        let mut served = Vec::new();
        for _ in 0..11 {
            let (place, name) = queues.next(|_| true).unwrap();
            served.push(name);
            queues.done(place, if name == "slow" { 0.09 } else { 0.01 });
        }
        let slow = served.iter().filter(|name| **name == "slow").count();
        assert!((1..=2).contains(&slow), "{served:?}");
    }

    #[test]
    fn full_queues_refuse() {
        let mut queues = queues(1, 1, 2);
        assert!(queues.push(0, "a", stays).is_ok());
        assert!(queues.push(0, "b", stays).is_ok());
        assert_eq!(queues.push(0, "c", stays), Err("c"));
        assert_eq!(queues.waiting(), 2);
        // Who has given up takes no place from the others.
        assert!(queues.push(0, "d", |name| *name == "a").is_ok());
        assert_eq!(queues.waiting(), 2);
        assert_eq!(queues.next(|_| false), None);
        assert_eq!(queues.next(|_| true).unwrap().1, "b");
        assert_eq!(queues.next(|_| true).unwrap().1, "d");
        assert_eq!(queues.waiting(), 0);
    }
}
