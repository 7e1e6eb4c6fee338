//! Sets of completion indexes, as `0-3,5` in a Job's status.

use std::fmt;

/// Ordered, disjoint ranges, both ends included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Reads what is below `completions`; what cannot be read is left out.
    pub fn parse(text: &str, completions: i32) -> Self {
        let ranges = text.split(',').filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.parse::<i32>().ok()?, last.parse::<i32>().ok()?);
            (0 <= first && first <= last && first < completions)
                .then(|| (first, last.min(completions - 1)))
        });
        Self::from_ranges(ranges.collect())
    }

    fn from_ranges(mut ranges: Vec<(i32, i32)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(i32, i32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(end) if first <= end.1.saturating_add(1) => end.1 = end.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    pub fn with(&self, more: impl IntoIterator<Item = i32>) -> Self {
        let more = more.into_iter().map(|index| (index, index));
        Self::from_ranges(self.0.iter().copied().chain(more).collect())
    }

    pub fn union(&self, other: &Self) -> Self {
        Self::from_ranges(self.0.iter().chain(&other.0).copied().collect())
    }

    pub fn len(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, index: i32) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(at).is_some_and(|(first, _)| *first <= index)
    }

    /// How many indexes are in both.
    pub fn overlap(&self, other: &Self) -> i32 {
        let common = |a: &(i32, i32), b: &(i32, i32)| (a.1.min(b.1) - a.0.max(b.0) + 1).max(0);
        let pairs = self
            .0
            .iter()
            .flat_map(|a| other.0.iter().map(move |b| common(a, b)));
        pairs.sum()
    }

    /// The first `count` indexes below `completions` that are not in the set.
    pub fn missing(&self, count: usize, completions: i32) -> Vec<i32> {
        let mut found = Vec::new();
        let mut next = 0;
        for (first, last) in self.0.iter().copied().chain([(completions, completions)]) {
            let free = next..first.min(completions);
            found.extend(free.take(count - found.len()));
            next = next.max(last.saturating_add(1));
        }
        found
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (first, last)) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            match last - first {
                0 => write!(f, "{first}")?,
                1 => write!(f, "{first},{last}")?,
                _ => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for (text, completions, want, len) in [
            ("", 5, "", 0),
            ("0", 5, "0", 1),
            ("0,1", 5, "0,1", 2),
            ("0-2,4", 5, "0-2,4", 4),
            ("4,0-2", 5, "0-2,4", 4),
            ("0,1,2", 5, "0-2", 3),
            ("0-9", 5, "0-4", 5),
            ("7,x,1-,3", 5, "3", 1),
        ] {
            let indexes = Indexes::parse(text, completions);
            assert_eq!(
                (indexes.to_string().as_str(), indexes.len()),
                (want, len),
                "{text}"
            );
        }
    }

    #[test]
    fn sets() {
        let indexes = Indexes::parse("1-3,6", 10);
        assert_eq!(indexes.with([4, 0]).to_string(), "0-4,6");
        assert_eq!(indexes.union(&Indexes::parse("3-5", 10)).to_string(), "1-6");
        assert_eq!(indexes.overlap(&Indexes::parse("0-2,6-9", 10)), 3);
        let has = (0..8).filter(|i| indexes.contains(*i)).collect::<Vec<_>>();
        assert_eq!(has, [1, 2, 3, 6]);
        assert_eq!(indexes.missing(3, 10), [0, 4, 5]);
        assert_eq!(indexes.missing(9, 8), [0, 4, 5, 7]);
        assert_eq!(Indexes::default().missing(2, 1), [0]);
        assert_eq!(indexes.missing(0, 8), [0; 0]);
    }
}
