//! What came out, as a Markdown table.

use std::fmt::Write;

/// How a figure reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    Bytes,
    PerSecond,
    /// Of one core.
    Percent,
    /// A plain ratio.
    Times,
}

impl Unit {
    /// Whether a larger figure is the better one.
    #[must_use]
    pub fn more_is_better(self) -> bool {
        self == Unit::PerSecond
    }

    fn show(self, value: f64) -> String {
        match self {
            Unit::Seconds if value < 1.0 => format!("{:.0} ms", value * 1000.0),
            Unit::Seconds => format!("{value:.1} s"),
            Unit::Bytes if value < 1e5 => format!("{:.1} KB", value / 1000.0),
            Unit::Bytes => format!("{:.1} MB", value / 1e6),
            Unit::PerSecond if value >= 1000.0 => format!("{:.2} k/s", value / 1000.0),
            Unit::PerSecond => format!("{value:.0} /s"),
            Unit::Percent => format!("{value:.2} %"),
            Unit::Times => format!("{value:.2}x"),
        }
    }
}

/// One line: what was measured, and what ours and (where it ran too) the peer's came to.
#[derive(Debug, Clone)]
pub struct Figure {
    pub what: String,
    pub unit: Unit,
    pub ours: f64,
    pub peer: Option<f64>,
    /// What the budget asks for, in words.
    pub budget: &'static str,
}

impl Figure {
    fn ratio(&self) -> Option<f64> {
        let peer = self.peer?;
        let (better, worse) = match self.unit.more_is_better() {
            true => (self.ours, peer),
            false => (peer, self.ours),
        };
        (worse > 0.0).then(|| better / worse)
    }
}

#[must_use]
pub fn table(figures: &[Figure]) -> String {
    let mut out = String::from(
        "| what | Skiff | Kubernetes, same run | times better | budget |\n| --- | --- | --- | --- | --- |\n",
    );
    for figure in figures {
        let peer = figure
            .peer
            .map_or_else(|| "-".to_owned(), |value| figure.unit.show(value));
        let ratio = figure
            .ratio()
            .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.1}"));
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| {} | {} | {peer} | {ratio} | {} |",
            figure.what,
            figure.unit.show(figure.ours),
            figure.budget
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_point_the_right_way() {
        let figure = |unit, ours, peer| Figure {
            what: "x".into(),
            unit,
            ours,
            peer,
            budget: "2x",
        };
        let shown = table(&[
            figure(Unit::Seconds, 0.1, Some(2.0)),
            figure(Unit::PerSecond, 3000.0, Some(1000.0)),
            figure(Unit::Bytes, 25e6, None),
        ]);
        assert!(
            shown.contains("| x | 100 ms | 2.0 s | 20.0 | 2x |"),
            "{shown}"
        );
        assert!(
            shown.contains("| x | 3.00 k/s | 1.00 k/s | 3.0 | 2x |"),
            "{shown}"
        );
        assert!(shown.contains("| x | 25.0 MB | - | - | 2x |"), "{shown}");
    }
}
