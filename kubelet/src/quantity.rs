//! Just enough of Kubernetes quantities for a node: exact decimal value of what the
//! API server has already validated, scaled and rounded up to a whole number.

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Value {
    digits: i128,
    /// Power of ten to multiply by.
    ten: i32,
    /// Power of two to multiply by.
    two: u32,
}

impl Value {
    /// The value times 10^`power`, rounded up.
    pub fn scaled(self, power: i32) -> i64 {
        let exponent = self.ten + power;
        let whole = self
            .digits
            .checked_mul(1i128 << self.two)
            .unwrap_or(i128::MAX);
        let scale = 10i128.checked_pow(exponent.unsigned_abs());
        let scaled = match (exponent >= 0, scale) {
            (true, Some(s)) => whole.saturating_mul(s),
            (true, None) => i128::MAX,
            (false, Some(s)) => whole.div_euclid(s) + i128::from(whole.rem_euclid(s) != 0),
            (false, None) => i128::from(whole > 0),
        };
        i64::try_from(scaled).unwrap_or(if scaled < 0 { i64::MIN } else { i64::MAX })
    }
}

pub fn parse(text: &str) -> Option<Value> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}").parse().ok()?;
    let (ten, two) = match suffix {
        "" => (0, 0),
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        exponent => (exponent.strip_prefix(['e', 'E'])?.parse().ok()?, 0),
    };
    let ten: i32 = ten;
    Some(Value {
        digits,
        ten: ten - i32::try_from(fraction.len()).ok()?,
        two,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_up() {
        let table = [
            ("100m", 3, 100),
            ("0.1", 3, 100),
            ("1", 3, 1000),
            ("1.5Gi", 0, 3 << 29),
            ("128Mi", 0, 128 << 20),
            ("1e3", 0, 1000),
            ("1n", 3, 1),
            ("12E", 3, i64::MAX),
            ("500M", 0, 500_000_000),
        ];
        for (text, power, want) in table {
            assert_eq!(parse(text).unwrap().scaled(power), want, "{text}");
        }
        assert_eq!(parse("1x"), None);
    }
}
