//! Timestamps and durations.

use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};

use super::super::Error;
use super::super::value::{Value, timestamp_of};
use super::no_overload;

type Result<'a> = std::result::Result<Value<'a>, Error>;

/// A duration as Go writes it: `1h30m`, `-1.5s`, `100ms`.
pub(in super::super) fn duration_of(text: &str) -> Option<SignedDuration> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut nanos: i128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        nanos = nanos.checked_add(amount(number, unit)?)?;
        rest = after;
    }
    let nanos = if negative { -nanos } else { nanos };
    i64::try_from(nanos).ok().map(SignedDuration::from_nanos)
}

/// A decimal number of units, exactly.
fn amount(number: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: i128 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let mut nanos = whole.checked_mul(unit)?;
    let mut scale = unit;
    for digit in fraction.bytes() {
        scale /= 10;
        nanos += i128::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?) * scale;
    }
    Some(nanos)
}

/// As JSON has it.
pub(in super::super) fn duration_text(duration: SignedDuration) -> String {
    match duration.subsec_nanos() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}s", duration.as_secs_f64()),
    }
}

pub(super) fn to_duration<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::Duration(value)] => Ok(Value::Duration(*value)),
        [Value::String(text)] => duration_of(text).map(Value::Duration).ok_or_else(|| {
            Error::new(format!(
                "type conversion error from 'string' to 'google.protobuf.Duration': time: invalid duration {:?}",
                &**text
            ))
        }),
        _ => no_overload(),
    }
}

pub(super) fn to_timestamp<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::Timestamp(value)] => Ok(Value::Timestamp(*value)),
        [Value::Int(seconds)] => Timestamp::from_second(*seconds)
            .map(Value::Timestamp)
            .map_err(|_| Error::new("timestamp overflow")),
        [Value::String(text)] => timestamp_of(text).map(Value::Timestamp).ok_or_else(|| {
            Error::new(format!(
                "type conversion error from 'string' to 'google.protobuf.Timestamp': cannot parse {:?}",
                &**text
            ))
        }),
        _ => no_overload(),
    }
}

/// The local time of a timestamp, in UTC unless a zone is named.
fn zoned(arguments: &[Value<'_>]) -> std::result::Result<Zoned, Error> {
    let (at, zone) = match arguments {
        [Value::Timestamp(at)] => (*at, TimeZone::UTC),
        [Value::Timestamp(at), Value::String(zone)] => (*at, zone_of(zone)?),
        _ => return Err(Error::no_overload()),
    };
    Ok(at.to_zoned(zone))
}

fn zone_of(name: &str) -> std::result::Result<TimeZone, Error> {
    let unknown = || Error::new(format!("unknown time zone {name}"));
    if matches!(name, "" | "UTC") {
        return Ok(TimeZone::UTC);
    }
    let Some((hours, minutes)) = name.split_once(':') else {
        return TimeZone::get(name).map_err(|_| unknown());
    };
    let negative = hours.starts_with('-');
    let hours: i32 = hours.parse().map_err(|_| unknown())?;
    let minutes: i32 = minutes.parse().map_err(|_| unknown())?;
    let seconds = hours.saturating_mul(3600) + if negative { -minutes } else { minutes } * 60;
    Offset::from_seconds(seconds)
        .map(TimeZone::fixed)
        .map_err(|_| unknown())
}

fn field<'a>(arguments: &[Value<'a>], of: impl Fn(&Zoned) -> i64) -> Result<'a> {
    zoned(arguments).map(|at| Value::Int(of(&at)))
}

pub(super) fn full_year<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    field(arguments, |at| at.year().into())
}

pub(super) fn month<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    field(arguments, |at| i64::from(at.month()) - 1)
}

pub(super) fn day_of_year<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    field(arguments, |at| i64::from(at.day_of_year()) - 1)
}

pub(super) fn day_of_month<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    field(arguments, |at| i64::from(at.day()) - 1)
}

pub(super) fn date<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    field(arguments, |at| at.day().into())
}

pub(super) fn day_of_week<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    field(arguments, |at| at.weekday().to_sunday_zero_offset().into())
}

pub(super) fn hours<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::Duration(value)] => Ok(Value::Int(value.as_hours())),
        _ => field(arguments, |at| at.hour().into()),
    }
}

pub(super) fn minutes<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::Duration(value)] => Ok(Value::Int(value.as_mins())),
        _ => field(arguments, |at| at.minute().into()),
    }
}

pub(super) fn seconds<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::Duration(value)] => Ok(Value::Int(value.as_secs())),
        _ => field(arguments, |at| at.second().into()),
    }
}

pub(super) fn milliseconds<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::Duration(value)] => Ok(Value::Int(value.subsec_millis().into())),
        _ => field(arguments, |at| at.millisecond().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_go() {
        for (text, nanos) in [
            ("1h30m", Some(5_400_000_000_000)),
            ("-1.5s", Some(-1_500_000_000)),
            ("100ms", Some(100_000_000)),
            (".5s", Some(500_000_000)),
            ("0", Some(0)),
            ("1", None),
            ("s", None),
            ("", None),
            ("-", None),
            ("1d", None),
            ("9999999999h", None),
        ] {
            assert_eq!(
                duration_of(text).map(|d| i64::try_from(d.as_nanos()).unwrap()),
                nanos,
                "{text:?}"
            );
        }
    }
}
