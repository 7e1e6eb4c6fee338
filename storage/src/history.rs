//! How much of the past is kept. Decided when something is written, so that an idle store has nothing to do.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// History may always grow to so many bytes, however little live data there is.
const FLOOR_BYTES: u64 = 4 << 20;

/// Remembers which revision was current when.
pub(crate) struct History {
    keep: Duration,
    marks: VecDeque<(Instant, u64)>,
}

impl History {
    pub fn new(keep: Duration, now: Instant, revision: u64) -> Self {
        History {
            keep,
            marks: VecDeque::from([(now, revision)]),
        }
    }

    /// Takes note of the revision that is current `now`. Returns the one to compact at, if that is due.
    pub fn advance(&mut self, now: Instant, revision: u64) -> Option<u64> {
        let due = self
            .marks
            .partition_point(|(at, _)| now.duration_since(*at) >= self.keep);
        let target = self
            .marks
            .drain(..due)
            .next_back()
            .map(|(_, revision)| revision);
        // A tenth of the time is as exact as anybody needs, and bounds the marks.
        if self
            .marks
            .back()
            .is_none_or(|(at, _)| now.duration_since(*at) >= self.keep / 10)
        {
            self.marks.push_back((now, revision));
        }
        target
    }
}

/// Where to compact when history is more than half of the live data: half-way through it.
pub(crate) fn excess(
    live_bytes: u64,
    total_bytes: u64,
    compacted: u64,
    revision: u64,
) -> Option<u64> {
    let history = total_bytes.saturating_sub(live_bytes);
    (history > (live_bytes / 2).max(FLOOR_BYTES)).then(|| compacted + (revision - compacted) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compacts_at_what_was_current_long_enough_ago() {
        let start = Instant::now();
        let mut history = History::new(Duration::from_secs(300), start, 5);
        // (seconds after the start, revision then, compact at)
        let table = [
            (1, 6, None),
            (40, 50, None),
            (299, 90, None),
            (300, 91, Some(5)),
            (339, 95, None),
            (340, 96, Some(50)),
            // The mark before: 96 came less than a tenth of the time after it.
            (2000, 100, Some(95)),
            (2001, 101, None),
        ];
        for (seconds, revision, expected) in table {
            assert_eq!(
                history.advance(start + Duration::from_secs(seconds), revision),
                expected,
                "at {seconds} s"
            );
        }
        assert!(history.marks.len() < 12);
    }

    #[test]
    fn cuts_history_that_outweighs_the_data() {
        let mb = 1 << 20;
        for (live, total, expected) in [
            (mb, 5 * mb, None),
            (mb, 6 * mb, Some(55)),
            (100 * mb, 150 * mb, None),
            (100 * mb, 151 * mb, Some(55)),
        ] {
            assert_eq!(excess(live, total, 10, 100), expected, "{live} of {total}");
        }
    }
}
