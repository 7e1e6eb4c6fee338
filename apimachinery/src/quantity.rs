//! Amounts of resources: `100m`, `1.5Gi`, `2e3`. Kubernetes keeps nothing finer than a billionth, so a quantity is a
//! whole number of nano-units, and its arithmetic is exact.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;
/// The largest amount kept; larger ones are capped, as Kubernetes caps binary ones at 2^63-1.
const MAX: i128 = i64::MAX as i128 * NANO * 1_000_000;

/// How the amount is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `12k`, `5m`
    #[default]
    DecimalSi,
    /// `12Ki`
    BinarySi,
    /// `12e3`
    DecimalExponent,
}

/// An exact amount and the way it is to be written. Comparing looks at the amount only.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// Base, exponent and format that a suffix stands for.
fn suffix(text: &str) -> Option<(u32, i32, Format)> {
    const DECIMAL: [(&str, i32); 10] = [
        ("n", -9),
        ("u", -6),
        ("m", -3),
        ("", 0),
        ("k", 3),
        ("M", 6),
        ("G", 9),
        ("T", 12),
        ("P", 15),
        ("E", 18),
    ];
    const BINARY: [(&str, i32); 6] = [
        ("Ki", 10),
        ("Mi", 20),
        ("Gi", 30),
        ("Ti", 40),
        ("Pi", 50),
        ("Ei", 60),
    ];
    if let Some((_, e)) = DECIMAL.iter().find(|(s, _)| *s == text) {
        return Some((10, *e, Format::DecimalSi));
    }
    if let Some((_, e)) = BINARY.iter().find(|(s, _)| *s == text) {
        return Some((2, *e, Format::BinarySi));
    }
    let exponent = text.strip_prefix(['e', 'E'])?;
    exponent
        .parse::<i32>()
        .ok()
        .map(|e| (10, e, Format::DecimalExponent))
}

/// The parts of a quantity's text: the sign, the digits before and after the point, and the suffix.
struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

fn split(text: &str) -> Result<Parts<'_>, ParseError> {
    if text.is_empty() {
        return Err(ParseError::Format);
    }
    let negative = text.starts_with('-');
    let rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    let digits = |s: &str| s.len() - s.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (whole, rest) = rest.split_at(digits(rest));
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    let tail = rest.trim_start_matches(|c: char| "eEinumkKMGTP".contains(c));
    let tail = tail.strip_prefix(['-', '+']).unwrap_or(tail);
    if !tail.bytes().all(|c| c.is_ascii_digit()) {
        return Err(ParseError::Format);
    }
    Ok(Parts {
        negative,
        whole: whole.trim_start_matches('0'),
        fraction,
        suffix: rest,
    })
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Quantity, ParseError> {
        let parts = split(text)?;
        let (base, exponent, mut format) = suffix(parts.suffix).ok_or(ParseError::Suffix)?;
        let mut nanos: i128 = 0;
        // Digits beyond the cap or below a nano decide nothing but the rounding.
        let (mut inexact, mut huge) = (false, false);
        let shift = if base == 10 { exponent } else { 0 };
        let points = parts.whole.len() as i64 + i64::from(shift) + 9;
        for (i, digit) in parts
            .whole
            .bytes()
            .chain(parts.fraction.bytes())
            .enumerate()
        {
            if (i as i64) < points {
                nanos = nanos
                    .saturating_mul(10)
                    .saturating_add(i128::from(digit - b'0'));
                huge |= nanos > MAX;
            } else {
                inexact |= digit != b'0';
            }
        }
        for _ in (parts.whole.len() + parts.fraction.len()) as i64..points {
            if nanos == 0 || huge {
                break;
            }
            nanos = nanos.saturating_mul(10);
            huge |= nanos > MAX;
        }
        if base == 2 {
            // Fractions of binary units keep digits below the nano until multiplied, so scale them separately.
            let (scaled, rest) = binary(parts.whole, parts.fraction, exponent as u32);
            (nanos, inexact) = (scaled, rest);
        }
        let cap = match base {
            2 => i128::from(i64::MAX) * NANO,
            _ => MAX,
        };
        // Any amount, however small, is at least the smallest that can be kept. The cap comes last: rounding would break it.
        nanos = nanos.saturating_add(i128::from(inexact)).min(cap);
        if format == Format::BinarySi && nanos > 0 && nanos < NANO {
            format = Format::DecimalSi;
        }
        Ok(Quantity {
            nanos: if parts.negative { -nanos } else { nanos },
            format,
        })
    }
}

/// `whole.fraction * 2^exponent` in nanos, and whether something below a nano was left.
fn binary(whole: &str, fraction: &str, exponent: u32) -> (i128, bool) {
    let number = |digits: &str| {
        digits.bytes().fold(0i128, |n, d| {
            n.saturating_mul(10).saturating_add(i128::from(d - b'0'))
        })
    };
    let unit = 1i128 << exponent;
    let head = number(whole).saturating_mul(unit).saturating_mul(NANO);
    // Eighteen digits are far more than a fraction of any size needs; more only round up.
    let (kept, dropped) = fraction.split_at(fraction.len().min(18));
    let scale = 10i128.pow(kept.len() as u32);
    let product = number(kept).saturating_mul(unit);
    let (whole_part, rest) = (product / scale, product % scale);
    let nanos = rest.saturating_mul(NANO);
    let inexact = nanos % scale != 0 || dropped.bytes().any(|d| d != b'0');
    (
        head.saturating_add(whole_part.saturating_mul(NANO))
            .saturating_add(nanos / scale),
        inexact,
    )
}

impl Quantity {
    pub const ZERO: Quantity = Quantity {
        nanos: 0,
        format: Format::DecimalSi,
    };

    pub fn parse(text: &str) -> Result<Quantity, ParseError> {
        text.parse()
    }

    pub fn new(value: i64, format: Format) -> Quantity {
        Quantity {
            nanos: i128::from(value) * NANO,
            format,
        }
    }

    pub fn from_milli(milli: i64, format: Format) -> Quantity {
        Quantity {
            nanos: i128::from(milli) * (NANO / 1000),
            format,
        }
    }

    pub fn from_nano(nano: i64, format: Format) -> Quantity {
        Quantity {
            nanos: i128::from(nano),
            format,
        }
    }

    pub fn format(self) -> Format {
        self.format
    }

    /// The amount in whole units, rounded away from zero.
    pub fn value(self) -> i64 {
        self.scaled(NANO)
    }

    /// The amount in thousandths, rounded away from zero.
    pub fn milli_value(self) -> i64 {
        self.scaled(NANO / 1000)
    }

    fn scaled(self, unit: i128) -> i64 {
        let magnitude = self.nanos.unsigned_abs().div_ceil(unit.unsigned_abs());
        let magnitude = i64::try_from(magnitude).unwrap_or(i64::MAX);
        if self.nanos < 0 {
            -magnitude
        } else {
            magnitude
        }
    }

    pub fn as_f64(self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// -1, 0 or 1.
    pub fn sign(self) -> i32 {
        self.nanos.signum() as i32
    }

    /// Whether the amount is a whole number of units.
    pub fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }

    fn combined(self, other: Quantity, nanos: i128) -> Quantity {
        // Zero has no format of its own worth keeping.
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        Quantity {
            nanos: nanos.clamp(-MAX, MAX),
            format,
        }
    }

    /// The string under which Kubernetes stores what a client wrote: kept as it is if it counts as canonical already,
    /// else the canonical form.
    pub fn normalize(text: &str) -> Result<String, ParseError> {
        let quantity: Quantity = text.parse()?;
        let parts = split(text)?;
        let digits = format!(
            "{}{}",
            if parts.whole.is_empty() {
                "0"
            } else {
                parts.whole
            },
            parts.fraction
        );
        let small = digits.len() <= 18;
        let keep = match suffix(parts.suffix) {
            Some((2, _, _)) => {
                small
                    && parts.fraction.is_empty()
                    && digits.parse::<i64>().is_ok_and(|v| v & 7 != 0)
                    && {
                        let precision = 15 - digits.len() as i64 - suffix_digits(parts.suffix) - 1;
                        precision >= 0
                    }
            }
            Some((_, exponent, _)) => {
                let scale = exponent - parts.fraction.len() as i32;
                small
                    && scale >= -9
                    && scale % 3 == 0
                    && !digits.ends_with("000")
                    && !digits.starts_with('0')
            }
            None => false,
        };
        Ok(if keep {
            text.to_owned()
        } else {
            quantity.to_string()
        })
    }
}

/// The decimal digits that a binary suffix is worth.
fn suffix_digits(text: &str) -> i64 {
    suffix(text).map_or(0, |(_, exponent, _)| i64::from(exponent) * 3 / 10)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANO;
        if self.format == Format::BinarySi && !small && self.is_whole() {
            let (mut value, mut power) = (self.nanos / NANO, 0);
            while value % 1024 == 0 && power < 6 {
                value /= 1024;
                power += 1;
            }
            return write!(
                f,
                "{value}{}",
                ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]
            );
        }
        let (mut value, mut exponent) = (self.nanos, -9);
        while value % 1000 == 0 && (exponent < 18 || self.format == Format::DecimalExponent) {
            value /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 {
                write!(f, "{value}")
            } else {
                write!(f, "{value}e{exponent}")
            };
        }
        write!(
            f,
            "{value}{}",
            ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][((exponent + 9) / 3) as usize]
        )
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl std::ops::Add for Quantity {
    type Output = Quantity;

    fn add(self, other: Quantity) -> Quantity {
        self.combined(other, self.nanos.saturating_add(other.nanos))
    }
}

impl std::ops::Sub for Quantity {
    type Output = Quantity;

    fn sub(self, other: Quantity) -> Quantity {
        self.combined(other, self.nanos.saturating_sub(other.nanos))
    }
}

impl std::ops::AddAssign for Quantity {
    fn add_assign(&mut self, other: Quantity) {
        *self = *self + other;
    }
}

impl std::ops::SubAssign for Quantity {
    fn sub_assign(&mut self, other: Quantity) {
        *self = *self - other;
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Quantity>>(iter: I) -> Quantity {
        iter.fold(Quantity::ZERO, |a, b| a + b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rounding_up_does_not_pass_the_cap() {
        let digits = "9".repeat(60);
        let capped = Quantity::parse(&digits).unwrap();
        for fraction in ["0000000001", "5555555555", "9999999999"] {
            let text = format!("{digits}.{fraction}");
            assert_eq!(Quantity::parse(&text), Ok(capped), "{text}");
            let below = Quantity::parse(&format!("-{text}")).unwrap();
            assert_eq!(Quantity::parse(&below.to_string()), Ok(below), "-{text}");
        }
    }

    #[test]
    fn canonical_strings() {
        let cases = [
            ("0", "0"),
            ("0Mi", "0"),
            ("1", "1"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.5", "1500m"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1000Ki", "1000Ki"),
            ("1Ei", "1Ei"),
            ("100E", "100E"),
            ("1e3", "1e3"),
            ("12e-1", "1200e-3"),
            ("1E3", "1e3"),
            ("-1.5Ki", "-1536"),
            ("+2", "2"),
            ("0.0000000001", "1n"),
            ("0.1Ki", "102400m"),
            ("9223372036854775807", "9223372036854775807"),
            ("8Ei", "9223372036854775807"),
            ("8.0000000000000000001Ei", "9223372036854775807"),
            ("1.", "1"),
            ("Mi", "0"),
        ];
        for (text, canonical) in cases {
            assert_eq!(
                text.parse::<Quantity>().unwrap().to_string(),
                canonical,
                "{text}"
            );
        }
        for bad in [
            "", "1.2.3", "1Q", "1 ", "1mm", "--1", "1e", "0x1", "1ki", "é",
        ] {
            assert!(bad.parse::<Quantity>().is_err(), "{bad}");
        }
    }

    #[test]
    fn normalizes_like_kubernetes() {
        // "1.500" is kept: its scale and digits pass Kubernetes' test of canonical form.
        let cases = [
            ("1.500", "1.500"),
            ("1.5", "1500m"),
            ("1500Mi", "1500Mi"),
            ("2048Mi", "2Gi"),
            ("8Gi", "8Gi"),
        ];
        for (text, kept) in cases {
            assert_eq!(Quantity::normalize(text).unwrap(), kept);
        }
    }

    #[test]
    fn values_round_up() {
        let q: Quantity = "1.0001".parse().unwrap();
        assert_eq!((q.value(), q.milli_value()), (2, 1001));
        let q: Quantity = "-1.5".parse().unwrap();
        assert_eq!((q.value(), q.milli_value()), (-2, -1500));
    }

    proptest! {
        #[test]
        fn canonical_form_reads_back(nanos in any::<i64>(), format in 0..3) {
            let format = [Format::DecimalSi, Format::BinarySi, Format::DecimalExponent][format as usize];
            let q = Quantity::from_nano(nanos, format);
            let read: Quantity = q.to_string().parse().unwrap();
            prop_assert_eq!(read, q);
            prop_assert_eq!(read.to_string(), q.to_string());
        }

        #[test]
        fn sums_are_exact(a in -1_000_000_000_000i64..1_000_000_000_000, b in -1_000_000_000_000i64..1_000_000_000_000) {
            let (x, y) = (Quantity::from_milli(a, Format::DecimalSi), Quantity::from_milli(b, Format::BinarySi));
            prop_assert_eq!((x + y).milli_value(), a + b);
            prop_assert_eq!((x + y) - y, x);
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
        }

        #[test]
        fn never_panics(text in "[-+]?[0-9.]{0,40}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,12}") {
            if let Ok(q) = text.parse::<Quantity>() {
                let _ = (q.to_string(), q.value(), q.milli_value(), Quantity::normalize(&text));
            }
        }
    }
}
