//! Kubernetes' three ways to write time: seconds (`metav1.Time`), microseconds (`metav1.MicroTime`) and the short
//! human duration in the AGE column.

use jiff::Timestamp;

/// `2006-01-02T15:04:05Z`: what `metav1.Time` writes.
pub fn format(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `2006-01-02T15:04:05.000000Z`: what `metav1.MicroTime` writes.
pub fn format_micro(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Reads RFC 3339, with any offset and any number of fractional digits.
pub fn parse(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    // jiff reads more of ISO 8601 than Kubernetes does; this is the RFC 3339 frame.
    let framed = bytes.len() >= 20
        && bytes[4] == b'-'
        && bytes[7] == b'-'
        && matches!(bytes[10], b'T' | b't')
        && bytes[13] == b':'
        && bytes[16] == b':'
        && !text.contains('[');
    if framed { text.parse().ok() } else { None }
}

/// The age of something in as few characters as are worth showing: `5s`, `3m20s`, `7h5m`, `2d3h`, `1y20d`.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let two = |big: i64, unit: char, small: i64, small_unit: char| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    match () {
        // Up to two seconds in the future are clock differences between machines.
        _ if seconds < -1 => "<invalid>".into(),
        _ if seconds < 0 => "0s".into(),
        _ if seconds < 120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 24 * 8 => two(hours / 24, 'd', hours % 24, 'h'),
        _ if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        _ if hours < 24 * 365 * 8 => two(hours / 24 / 365, 'y', hours / 24 % 365, 'd'),
        _ => format!("{}y", hours / 24 / 365),
    }
}

/// The age of `since` at `now`; `<unknown>` when it is absent or unreadable.
pub fn age(since: Option<&str>, now: Timestamp) -> String {
    match since.and_then(parse) {
        Some(then) => human_duration(now.as_second() - then.as_second()),
        None => "<unknown>".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes() {
        let at = parse("2026-01-02T03:04:05.678901234+01:00").unwrap();
        assert_eq!(format(at), "2026-01-02T02:04:05Z");
        assert_eq!(format_micro(at), "2026-01-02T02:04:05.678901Z");
        for bad in [
            "",
            "2026-01-02",
            "2026-01-02T03:04:05",
            "20260102T030405Z",
            "2026-13-02T03:04:05Z",
            "yesterday",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn ages() {
        let (minute, hour, day) = (60, 3600, 86400);
        let cases = [
            (-2, "<invalid>"),
            (-1, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (10 * minute + 5, "10m"),
            (179 * minute, "179m"),
            (3 * hour + 60, "3h1m"),
            (9 * hour + 60, "9h"),
            (2 * day + 3 * hour, "2d3h"),
            (9 * day, "9d"),
            (3 * 365 * day + 2 * day, "3y2d"),
            (9 * 365 * day, "9y"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human_duration(seconds), text);
        }
        assert_eq!(age(None, Timestamp::UNIX_EPOCH), "<unknown>");
    }
}
