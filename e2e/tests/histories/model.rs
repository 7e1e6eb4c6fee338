//! What the API promises, checked on a record.
//!
//! What all watchers together heard is taken as what happened: the *truth*, one change a revision. Every watcher must have
//! heard all of it that lies in its range, every acknowledged write must be in it, and every read must be explained by it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, anyhow, bail, ensure};

use crate::clients::{Change, History, Outcome, Read, Seen, Segment, Span, Write};

type Truth = BTreeMap<u64, Change>;

/// How much there was to check.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub writes: usize,
    pub reads: usize,
    pub heard: usize,
    /// How often a watcher had to list again, as its revision was compacted.
    pub expired: usize,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.writes += other.writes;
        self.reads += other.reads;
        self.heard += other.heard;
        self.expired += other.expired;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Counts {
            writes,
            reads,
            heard,
            expired,
        } = self;
        write!(
            f,
            "{writes} acknowledged writes, {reads} reads, {heard} changes heard, {expired} watches expired"
        )
    }
}

pub fn check(history: &History, kept: &(u64, BTreeMap<String, Seen>)) -> Result<Counts> {
    let done = |write: &&Write| matches!(write.outcome, Outcome::Done(_));
    let acknowledged = history.writes.iter().filter(done).count();
    // A run in which nothing happened would prove nothing.
    ensure!(
        acknowledged > 20,
        "only {acknowledged} writes were acknowledged"
    );
    let truth = truth(&history.segments)?;
    watchers(&history.segments, &truth)?;
    writes(&history.writes, &history.segments, &truth)?;
    for reads in &history.reads {
        client(reads, &history.writes, &history.segments, &truth)?;
    }
    end(history, kept, &truth)?;
    Ok(Counts {
        writes: acknowledged,
        reads: history.reads.iter().map(Vec::len).sum(),
        heard: history.segments.iter().map(|s| s.changes.len()).sum(),
        expired: history
            .segments
            .len()
            .saturating_sub(crate::clients::WATCHERS as usize),
    })
}

fn truth(segments: &[Segment]) -> Result<Truth> {
    let mut truth = Truth::new();
    for change in segments.iter().flat_map(|s| &s.changes) {
        if let Some(other) = truth.insert(change.revision, change.clone()) {
            ensure!(
                other == *change,
                "two watchers disagree: {other:?} and {change:?}"
            );
        }
    }
    Ok(truth)
}

/// In order, without repeats, without gaps.
fn watchers(segments: &[Segment], truth: &Truth) -> Result<()> {
    for segment in segments {
        let own: Vec<u64> = segment.changes.iter().map(|c| c.revision).collect();
        ensure!(
            own.windows(2).all(|pair| pair[0] < pair[1]),
            "a watcher heard a change twice or out of order: {own:?}"
        );
        if segment.from >= segment.to {
            ensure!(
                own.is_empty(),
                "a watcher heard of what was before its start: {own:?}"
            );
            continue;
        }
        let all: Vec<u64> = truth
            .range(segment.from + 1..=segment.to)
            .map(|(r, _)| *r)
            .collect();
        if own != all {
            let own: BTreeSet<_> = own.into_iter().collect();
            let missing: Vec<_> = all
                .iter()
                .filter(|revision| !own.contains(revision))
                .map(|revision| &truth[revision])
                .collect();
            bail!(
                "a watcher from {} to {} heard {own:?} and missed {missing:?}",
                segment.from,
                segment.to
            );
        }
    }
    Ok(())
}

fn covered(segments: &[Segment], revision: u64) -> bool {
    segments
        .iter()
        .any(|s| s.from < revision && revision <= s.to)
}

/// How far what the watchers heard reaches from a revision on without a gap, in which something could have happened that
/// nobody heard of.
fn known_until(segments: &[Segment], revision: u64) -> u64 {
    let mut until = revision;
    while let Some(further) = segments
        .iter()
        .filter(|s| s.from <= until && until < s.to)
        .map(|s| s.to)
        .max()
    {
        until = further;
    }
    until
}

fn writes(writes: &[Write], segments: &[Segment], truth: &Truth) -> Result<()> {
    let mut by_value: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (revision, change) in truth {
        if let Some(value) = &change.value {
            by_value.entry(value).or_default().push(*revision);
        }
    }
    for write in writes {
        let Some(value) = &write.value else { continue };
        let happened = by_value.get(value.as_str()).cloned().unwrap_or_default();
        ensure!(
            happened.len() <= 1,
            "{write:?} happened more than once: {happened:?}"
        );
        match write.outcome {
            Outcome::Refused => ensure!(happened.is_empty(), "{write:?} was refused, and happened"),
            Outcome::Done(revision) if covered(segments, revision) => {
                ensure!(
                    happened == [revision],
                    "{write:?} was acknowledged, and is at {happened:?}"
                );
            }
            Outcome::Done(_) | Outcome::Unknown => {}
        }
        if let (Some(base), Some(revision)) = (write.base, happened.first()) {
            let between = truth
                .range(base + 1..*revision)
                .find(|(_, c)| c.key == write.key);
            ensure!(
                between.is_none(),
                "{write:?} overwrote {between:?}, which it had not seen"
            );
        }
    }
    Ok(())
}

/// The last acknowledged revision, of one key or of all, before a moment.
fn acknowledged_before(writes: &[Write], span: &Span, key: Option<&str>) -> u64 {
    let done = writes.iter().filter_map(|w| match w.outcome {
        Outcome::Done(revision) if w.span.end < span.start && key.is_none_or(|k| k == w.key) => {
            Some(revision)
        }
        _ => None,
    });
    done.max().unwrap_or(0)
}

/// One client's reads: each at least as new as what was acknowledged before it, and never back in time.
fn client(
    reads: &[(Span, Read)],
    writes: &[Write],
    segments: &[Segment],
    truth: &Truth,
) -> Result<()> {
    let mut newest = 0;
    for (span, read) in reads {
        match read {
            Read::All { revision, seen } => {
                let floor = acknowledged_before(writes, span, None);
                ensure!(
                    *revision >= floor,
                    "a list at {revision} began after {floor} was acknowledged"
                );
                ensure!(
                    *revision >= newest,
                    "a list at {revision} came after one at {newest}"
                );
                newest = *revision;
                list_is_true(*revision, seen, segments, truth)
                    .map_err(|lie| told(&lie, span, writes, segments, truth))?;
            }
            Read::One {
                key,
                seen: Some((revision, value)),
            } => {
                let floor = acknowledged_before(writes, span, Some(key));
                ensure!(
                    *revision >= floor,
                    "{key} was read at {revision} after {floor} was acknowledged"
                );
                if covered(segments, *revision) {
                    let change = truth.get(revision);
                    ensure!(
                        change.is_some_and(|c| c.key == *key && c.value.as_deref() == Some(value)),
                        "{key} was read as {value} at {revision}, where the truth is {change:?}"
                    );
                }
            }
            Read::One { key, seen: None } => {
                let floor = acknowledged_before(writes, span, Some(key));
                let gone = truth
                    .range(floor..)
                    .any(|(_, c)| c.key == *key && c.value.is_none());
                let last = segments.iter().map(|s| s.to).max().unwrap_or(0);
                let all_known = covered(segments, floor) && known_until(segments, floor) >= last;
                ensure!(
                    floor == 0 || gone || !all_known,
                    "{key} was not found after {floor} was acknowledged, and was never deleted"
                );
            }
        }
    }
    Ok(())
}

/// The items are those that the changes since some watcher's start lead to, for the keys that changed since.
fn list_is_true(
    revision: u64,
    seen: &BTreeMap<String, Seen>,
    segments: &[Segment],
    truth: &Truth,
) -> std::result::Result<(), Lie> {
    let Some(from) = segments
        .iter()
        .filter(|s| s.from < revision && revision <= s.to)
        .map(|s| s.from)
        .min()
    else {
        return Ok(());
    };
    let mut expected: BTreeMap<&str, Option<Seen>> = BTreeMap::new();
    for (at, change) in truth.range(from + 1..=revision) {
        let now = change.value.clone().map(|value| (*at, value));
        expected.insert(&change.key, now);
    }
    for (key, now) in expected {
        if seen.get(key) != now.as_ref() {
            return Err(Lie {
                revision,
                key: key.to_owned(),
                shown: seen.get(key).cloned(),
                truth: now,
            });
        }
    }
    Ok(())
}

/// A list that shows what is not so.
struct Lie {
    revision: u64,
    key: String,
    shown: Option<Seen>,
    truth: Option<Seen>,
}

/// The lie, with all that is known of its key around that time.
fn told(
    lie: &Lie,
    read: &Span,
    writes: &[Write],
    segments: &[Segment],
    truth: &Truth,
) -> anyhow::Error {
    let Lie {
        revision,
        key,
        shown,
        truth: now,
    } = lie;
    let heard: Vec<_> = truth.values().filter(|c| c.key == *key).collect();
    let ranges: Vec<_> = segments.iter().map(|s| (s.from, s.to)).collect();
    let since = |span: &Span| {
        let ago = |at: std::time::Instant| match at.checked_duration_since(read.start) {
            Some(after) => format!("+{after:?}"),
            None => format!("-{:?}", read.start.duration_since(at)),
        };
        format!("{} to {}", ago(span.start), ago(span.end))
    };
    let written = writes.iter().filter(|w| w.key == *key);
    let written: Vec<_> = written
        .map(|w| (since(&w.span), &w.value, w.base, &w.outcome))
        .collect();
    anyhow!(
        "a list at {revision}, {}, shows {key} as {shown:?}, the truth is {now:?}\n\
         changes heard: {heard:#?}\nby watchers of {ranges:?}\nwrites: {written:#?}",
        since(read)
    )
}

/// What is there at the end: nothing acknowledged is missing, unless it was replaced or deleted later.
fn end(
    history: &History,
    (revision, kept): &(u64, BTreeMap<String, Seen>),
    truth: &Truth,
) -> Result<()> {
    for write in &history.writes {
        let Outcome::Done(at) = write.outcome else {
            continue;
        };
        ensure!(
            *revision >= at,
            "the store is at {revision}, and {write:?} was acknowledged"
        );
        let now = kept.get(&write.key).map(|(revision, _)| *revision);
        let later = now.is_some_and(|now| now >= at);
        let deleted = truth
            .range(at..)
            .any(|(_, c)| c.key == write.key && c.value.is_none());
        let unknown = history.writes.iter().any(|w| {
            w.key == write.key
                && w.value.is_none()
                && w.outcome == Outcome::Unknown
                && w.span.end >= write.span.start
        });
        ensure!(
            later || deleted || unknown,
            "{write:?} was acknowledged and is gone: {now:?}"
        );
    }
    Ok(())
}
