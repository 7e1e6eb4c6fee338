//! The small types that are messages in protobuf and strings in JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use crate::time;

/// Seconds since 1970, rounded down, and the nanoseconds above them.
pub fn read_time(text: &str) -> Option<(i64, i32)> {
    const SECOND: i128 = 1_000_000_000;
    let nanos = time::parse(text)?.as_nanosecond();
    let seconds = i64::try_from(nanos.div_euclid(SECOND)).ok()?;
    Some((seconds, i32::try_from(nanos.rem_euclid(SECOND)).ok()?))
}

pub fn write_time(seconds: i64) -> Option<String> {
    Timestamp::from_second(seconds)
        .ok()
        .filter(|at| at.as_second() >= YEAR_0)
        .map(time::format)
}

pub fn write_micro_time(seconds: i64, nanos: i32) -> Option<String> {
    let at = Timestamp::from_second(seconds)
        .ok()
        .filter(|at| at.as_second() >= YEAR_0)?;
    let micros = i64::from(nanos / 1000);
    let at = at
        .checked_add(jiff::SignedDuration::from_micros(micros))
        .ok()?;
    Some(time::format_micro(at))
}

/// Go writes no years before this one in JSON.
const YEAR_0: i64 = -62_167_219_200;

const UNITS: [(&str, f64); 8] = [
    ("ns", 1.0),
    ("us", 1e3),
    ("\u{b5}s", 1e3),
    ("\u{3bc}s", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 6e10),
    ("h", 3.6e12),
];

/// Nanoseconds of a Go duration such as `1h15m30.5s`.
pub fn read_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let amount: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let length = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let (_, factor) = UNITS.iter().find(|(unit, _)| *unit == &rest[..length])?;
        total += amount * factor;
        rest = &rest[length..];
    }
    let total = if negative { -total } else { total };
    (total.abs() < 9.2e18).then_some(total.round() as i64)
}

/// A duration as Go prints it.
pub fn write_duration(nanos: i64) -> String {
    let size = nanos.unsigned_abs();
    let sign = if nanos < 0 { "-" } else { "" };
    let fraction = |unit: u64| {
        let part = format!("{:0width$}", size % unit, width = unit.ilog10() as usize);
        let part = part.trim_end_matches('0');
        if part.is_empty() {
            String::new()
        } else {
            format!(".{part}")
        }
    };
    match size {
        0 => "0s".into(),
        1..1_000 => format!("{sign}{size}ns"),
        1_000..1_000_000 => format!("{sign}{}{}\u{b5}s", size / 1_000, fraction(1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}{}ms", size / 1_000_000, fraction(1_000_000)),
        _ => {
            let seconds = size / 1_000_000_000;
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let head = match (hours, minutes) {
                (0, 0) => String::new(),
                (0, _) => format!("{minutes}m"),
                _ => format!("{hours}h{minutes}m"),
            };
            format!("{sign}{head}{}{}s", seconds % 60, fraction(1_000_000_000))
        }
    }
}

/// Standard base64; line breaks are allowed, as in Go.
pub fn read_base64(text: &str) -> Option<Vec<u8>> {
    if text.contains(['\n', '\r']) {
        let text: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
        return STANDARD.decode(text).ok();
    }
    STANDARD.decode(text).ok()
}

pub fn write_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_go_s() {
        let second = 1_000_000_000;
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5\u{b5}s"),
            (2_000_000, "2ms"),
            (second, "1s"),
            (90 * second, "1m30s"),
            (3600 * second, "1h0m0s"),
            (-(3661 * second + second / 2), "-1h1m1.5s"),
        ] {
            assert_eq!(write_duration(nanos), text);
            assert_eq!(read_duration(text), Some(nanos), "{text}");
        }
        for bad in ["", "-", "1", "s", "1x", "1..2s", "."] {
            assert_eq!(read_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(read_time("1969-12-31T23:59:59.5Z"), Some((-1, 500_000_000)));
        assert_eq!(
            write_micro_time(-1, 500_000_999).unwrap(),
            "1969-12-31T23:59:59.500000Z"
        );
        assert_eq!(write_time(0).unwrap(), "1970-01-01T00:00:00Z");
        assert_eq!(write_time(i64::MAX), None);
        assert_eq!(write_time(YEAR_0 - 1), None);
    }
}
