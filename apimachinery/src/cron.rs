//! Schedules of cron jobs: when a text such as `*/5 8-17 * * mon-fri` is due, in whichever time zone.
//!
//! Kubernetes takes what `ParseStandard` of robfig/cron takes, and users' manifests depend on its finer points: when
//! one of the two day fields starts with a star both must match, else either; `N/step` runs to the end of the range;
//! times that a change of the clocks skips are skipped, and those that it repeats come twice. The crates for cron schedules
//! differ in these (and take much more), so this follows that one. [`Schedule::parse`] also has its error messages,
//! since API clients see them.

use jiff::civil::{Date, DateTime};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp};

/// When something is due, to the minute; or every so often.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    rule: Rule,
    /// Of a `TZ=` prefix.
    zone: Option<TimeZone>,
}

#[derive(Debug, Clone, PartialEq)]
enum Rule {
    Fields(Fields),
    Every(SignedDuration),
}

/// A bit for each value that matches, and [`STAR`].
#[derive(Debug, Clone, PartialEq)]
struct Fields {
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
}

/// Set in fields that were written as a star.
const STAR: u64 = 1 << 63;

struct Bounds {
    low: u64,
    high: u64,
    /// Names for the values from `low` on.
    names: &'static [&'static str],
}

const fn bounds(low: u64, high: u64, names: &'static [&'static str]) -> Bounds {
    Bounds { low, high, names }
}

const MINUTE: Bounds = bounds(0, 59, &[]);
const HOUR: Bounds = bounds(0, 23, &[]);
const DAY: Bounds = bounds(1, 31, &[]);
const MONTH: Bounds = bounds(
    1,
    12,
    &[
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ],
);
const WEEKDAY: Bounds = bounds(0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]);

/// A time zone by its name in IANA's database, written exactly so. The database is part of the program: what one
/// component accepts every other one knows, also on a machine that has none.
pub fn time_zone(name: &str) -> Result<TimeZone, String> {
    let unknown = || format!("unknown time zone {name}");
    match name {
        "" | "UTC" => Ok(TimeZone::UTC),
        _ => TimeZoneDatabase::bundled()
            .get(name)
            .ok()
            .filter(|zone| zone.iana_name() == Some(name))
            .ok_or_else(unknown),
    }
}

impl Schedule {
    /// Reads five fields, a name (`@hourly`) or an interval (`@every 5m`), each with an optional `TZ=` or `CRON_TZ=`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("empty spec string".into());
        }
        let prefixed = text
            .strip_prefix("TZ=")
            .or_else(|| text.strip_prefix("CRON_TZ="));
        let Some(rest) = prefixed else {
            let rule = rule(text)?;
            return Ok(Self { rule, zone: None });
        };
        let Some((name, rest)) = rest.split_once(' ') else {
            return Err("invalid schedule format: nothing follows the time zone".into());
        };
        let zone = time_zone(name).map_err(|why| format!("provided bad location {name}: {why}"))?;
        Ok(Self {
            rule: rule(rest.trim())?,
            zone: Some(zone),
        })
    }

    /// The first time after `after`, in `zone` unless the schedule names one itself. `None` if there is none within
    /// five years, as for a 31st of February.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let second = Timestamp::from_second(after.as_second());
        match &self.rule {
            Rule::Every(delay) => second.ok()?.checked_add(*delay).ok(),
            Rule::Fields(fields) => Walk {
                fields,
                zone: self.zone.as_ref().unwrap_or(zone),
                at: second
                    .ok()?
                    .checked_add(SignedDuration::from_secs(1))
                    .ok()?,
                moved: false,
            }
            .find(),
        }
    }
}

/// The search for the next time: every field in turn is moved on until it matches; one that wraps around makes those
/// above it be looked at again.
struct Walk<'a> {
    fields: &'a Fields,
    zone: &'a TimeZone,
    at: Timestamp,
    /// Whether any field was moved, so that those below start from their lowest value.
    moved: bool,
}

impl Walk<'_> {
    fn find(mut self) -> Option<Timestamp> {
        let last_year = self.local().year() + 5;
        loop {
            if self.local().year() > last_year {
                return None;
            }
            if self.month()? && self.day()? && self.hour()? && self.minute()? && self.second()? {
                return Some(self.at);
            }
        }
    }

    fn local(&self) -> DateTime {
        self.zone.to_datetime(self.at)
    }

    /// Each of these returns whether its field matches now, without having wrapped around.
    fn month(&mut self) -> Option<bool> {
        while !has(self.fields.month, self.local().month()) {
            if !self.begin() {
                let local = self.local();
                self.at = instant(
                    self.zone,
                    local.date().first_of_month().to_datetime(MIDNIGHT),
                )?;
            }
            let local = self.local();
            let days = i64::from(local.date().days_in_month());
            let later = plus_days(local, days - i64::from(local.day()) + 1)?;
            self.at = instant(self.zone, later)?;
            if self.local().month() == 1 {
                return Some(false);
            }
        }
        Some(true)
    }

    fn day(&mut self) -> Option<bool> {
        while !self.fields.matches_day(self.local().date()) {
            if !self.begin() {
                let local = self.local();
                self.at = instant(self.zone, local.date().to_datetime(MIDNIGHT))?;
            }
            self.at = instant(self.zone, plus_days(self.local(), 1)?)?;
            // Clocks that change at midnight leave a day without one.
            let hour = i64::from(self.local().hour());
            if hour != 0 {
                self.forward(3600 * if hour > 12 { 24 - hour } else { -hour })?;
            }
            if self.local().day() == 1 {
                return Some(false);
            }
        }
        Some(true)
    }

    fn hour(&mut self) -> Option<bool> {
        while !has(self.fields.hour, self.local().hour()) {
            if !self.begin() {
                let local = self.local();
                let start = local.date().at(local.hour(), 0, 0, 0);
                self.at = instant(self.zone, start)?;
            }
            self.forward(3600)?;
            if self.local().hour() == 0 {
                return Some(false);
            }
        }
        Some(true)
    }

    fn minute(&mut self) -> Option<bool> {
        while !has(self.fields.minute, self.local().minute()) {
            if !self.begin() {
                self.forward(-self.at.as_second().rem_euclid(60))?;
            }
            self.forward(60)?;
            if self.local().minute() == 0 {
                return Some(false);
            }
        }
        Some(true)
    }

    fn second(&mut self) -> Option<bool> {
        while self.local().second() != 0 {
            self.begin();
            self.forward(1)?;
            if self.local().second() == 0 {
                return Some(false);
            }
        }
        Some(true)
    }

    /// Notes that a field is moved; returns whether one was before.
    fn begin(&mut self) -> bool {
        std::mem::replace(&mut self.moved, true)
    }

    fn forward(&mut self, seconds: i64) -> Option<()> {
        let by = SignedDuration::from_secs(seconds);
        self.at = self.at.checked_add(by).ok()?;
        Some(())
    }
}

const MIDNIGHT: jiff::civil::Time = jiff::civil::Time::midnight();

fn plus_days(local: DateTime, days: i64) -> Option<DateTime> {
    let by = SignedDuration::from_hours(24 * days);
    local.checked_add(by).ok()
}

/// The instant at which clocks show `local`, as Go's `time.Date` has it: one that they skip is taken by the offset on
/// one side of the change.
fn instant(zone: &TimeZone, local: DateTime) -> Option<Timestamp> {
    let as_utc = TimeZone::UTC.to_timestamp(local).ok()?;
    let minus = |offset: jiff::tz::Offset| {
        let by = SignedDuration::from_secs(-i64::from(offset.seconds()));
        as_utc.checked_add(by).ok()
    };
    let guess = zone.to_offset(as_utc);
    match guess.seconds() {
        0 => Some(as_utc),
        _ => minus(zone.to_offset(minus(guess)?)),
    }
}

fn has(bits: u64, value: i8) -> bool {
    bits & (1 << value) != 0
}

impl Fields {
    /// Both day fields must match if one of them is a star, else either.
    fn matches_day(&self, date: Date) -> bool {
        let day = has(self.day, date.day());
        let weekday = has(self.weekday, date.weekday().to_sunday_zero_offset());
        match (self.day | self.weekday) & STAR != 0 {
            true => day && weekday,
            false => day || weekday,
        }
    }
}

fn rule(text: &str) -> Result<Rule, String> {
    if let Some(duration) = text.strip_prefix("@every ") {
        let every = duration_of(duration)
            .map_err(|why| format!("failed to parse duration {text}: time: {why}"))?;
        // No more often than each second, and only in whole ones.
        return Ok(Rule::Every(SignedDuration::from_secs(
            every.as_secs().max(1),
        )));
    }
    let fields = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        _ if text.starts_with('@') => return Err(format!("unrecognized descriptor: {text}")),
        _ => text,
    };
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let [minute, hour, day, month, weekday] = fields[..] else {
        return Err(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    };
    Ok(Rule::Fields(Fields {
        minute: field(minute, &MINUTE)?,
        hour: field(hour, &HOUR)?,
        day: field(day, &DAY)?,
        month: field(month, &MONTH)?,
        weekday: field(weekday, &WEEKDAY)?,
    }))
}

fn field(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let ranges = text.split(',').filter(|r| !r.is_empty());
    ranges
        .map(|r| range(r, bounds))
        .try_fold(0, |bits, range| Ok(bits | range?))
}

/// The values of `*`, `N`, `N-M`, and each of these with a `/step`.
fn range(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let parts: Vec<&str> = text.split('/').collect();
    let ends: Vec<&str> = parts[0].split('-').collect();
    let is_star = matches!(ends[0], "*" | "?");
    let (start, mut end) = match ends[..] {
        _ if is_star => (bounds.low, bounds.high),
        [one] => {
            let value = value(one, bounds)?;
            (value, value)
        }
        [start, end] => (value(start, bounds)?, value(end, bounds)?),
        _ => {
            value(ends[0], bounds)?;
            return Err(format!("too many hyphens: {text}"));
        }
    };
    let step = match parts[..] {
        [_] => 1,
        [_, step] => {
            if ends.len() == 1 {
                end = bounds.high;
            }
            number(step)?
        }
        _ => return Err(format!("too many slashes: {text}")),
    };
    let Bounds { low, high, .. } = *bounds;
    if start < low {
        return Err(format!(
            "beginning of range ({start}) below minimum ({low}): {text}"
        ));
    }
    if end > high {
        return Err(format!(
            "end of range ({end}) above maximum ({high}): {text}"
        ));
    }
    if start > end {
        return Err(format!(
            "beginning of range ({start}) beyond end of range ({end}): {text}"
        ));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    let values = (start..=end).step_by(usize::try_from(step).unwrap_or(usize::MAX));
    let bits = values.fold(0, |bits, value| bits | 1 << value);
    Ok(if is_star && step == 1 {
        bits | STAR
    } else {
        bits
    })
}

fn value(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let mut names = (bounds.low..).zip(bounds.names);
    match names.find(|(_, name)| name.eq_ignore_ascii_case(text)) {
        Some((value, _)) => Ok(value),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let fail =
        |why| format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: {why}");
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(fail("invalid syntax"));
    }
    match text.parse::<i64>() {
        Ok(number) => u64::try_from(number)
            .map_err(|_| format!("negative number ({number}) not allowed: {text}")),
        Err(_) => Err(fail("value out of range")),
    }
}

/// A duration as Go reads it, `1h30m`.
fn duration_of(text: &str) -> Result<SignedDuration, String> {
    let invalid = || format!("invalid duration {text:?}");
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let mut rest = unsigned;
    let mut total: f64 = 0.0;
    if rest.is_empty() {
        return Err(invalid());
    }
    if rest == "0" {
        return Ok(SignedDuration::ZERO);
    }
    while !rest.is_empty() {
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let (number, after) = rest.split_at(rest.find(|c| !is_number(c)).unwrap_or(rest.len()));
        let (unit, after) = after.split_at(after.find(is_number).unwrap_or(after.len()));
        let number: f64 = match number.matches('.').count() {
            0 | 1 if number.bytes().any(|b| b.is_ascii_digit()) => {
                number.parse().map_err(|_| invalid())?
            }
            _ => return Err(invalid()),
        };
        total += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "" => return Err(format!("missing unit in duration {text:?}")),
                _ => return Err(format!("unknown unit {unit:?} in duration {text:?}")),
            };
        rest = after;
    }
    let total = if text.starts_with('-') { -total } else { total };
    // Beyond what 64 bits of nanoseconds hold.
    if total.abs() >= 9.223_372_036e9 {
        return Err(invalid());
    }
    SignedDuration::try_from_secs_f64(total).map_err(|_| invalid())
}

#[cfg(test)]
mod tests;
