//! The string formats that custom resource schemas may name.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use apimachinery::names;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use regex::Regex;

/// All that are supported, without dashes.
pub const KNOWN: [&str; 26] = [
    "bsonobjectid",
    "byte",
    "cidr",
    "creditcard",
    "date",
    "datetime",
    "duration",
    "email",
    "hexcolor",
    "hostname",
    "ipv4",
    "ipv6",
    "isbn",
    "isbn10",
    "isbn13",
    "k8slongname",
    "k8sshortname",
    "mac",
    "password",
    "rgbcolor",
    "ssn",
    "uri",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
];

struct Expressions {
    card: Regex,
    date: Regex,
    duration: Regex,
    email: Regex,
    hex: Regex,
    hexcolor: Regex,
    hostname: Regex,
    mac: Regex,
    rgbcolor: Regex,
    ssn: Regex,
    uri: Regex,
    uuids: [Regex; 4],
}

static EXPRESSIONS: LazyLock<Expressions> = LazyLock::new(|| {
    let regex = |text: &str| match Regex::new(text) {
        Ok(regex) => regex,
        Err(error) => unreachable!("a constant expression is wrong: {error}"),
    };
    Expressions {
        card: regex(concat!(
            r"^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}",
            r"|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35[0-9]{3})[0-9]{11})$"
        )),
        date: regex(r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"),
        duration: regex(
            r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)\s*[a-zµμ]+(([0-9]+(\.[0-9]*)?|\.[0-9]+)[a-zµμ]+)*$",
        ),
        email: regex(r#"^(?:.*<)?[^\s@<>]+@[^\s@<>]+>?$"#),
        hex: regex("^[0-9a-fA-F]{24}$"),
        hexcolor: regex("^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$"),
        hostname: regex(r"^(\w([\w-]{0,61}\w)?\.)*\w([\w-]{0,61}\w)?\.?$"),
        mac: regex(
            r"^([0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}(([:-][0-9a-fA-F]{2}){2}|([:-][0-9a-fA-F]{2}){14})?|[0-9a-fA-F]{4}(\.[0-9a-fA-F]{4}){2}(\.[0-9a-fA-F]{4}(\.[0-9a-fA-F]{4}){6})?)$",
        ),
        rgbcolor: regex(
            r"^rgb\(\s*(0|[1-9][0-9]?|1[0-9][0-9]?|2[0-4][0-9]|25[0-5])\s*(,\s*(0|[1-9][0-9]?|1[0-9][0-9]?|2[0-4][0-9]|25[0-5])\s*){2}\)$",
        ),
        ssn: regex("^[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}$"),
        uri: regex(r"^([a-zA-Z][a-zA-Z0-9+.-]*:[^\s\x00-\x1f]+|/[^\s\x00-\x1f]*)$"),
        uuids: ["", "3", "4", "5"].map(|version| {
            const HEX: &str = "[0-9a-fA-F]";
            let variant = match version {
                "4" | "5" => format!("[89abAB]{HEX}{{3}}"),
                _ => format!("{HEX}{{4}}"),
            };
            let third = match version {
                "" => format!("{HEX}{{4}}"),
                version => format!("{version}{HEX}{{3}}"),
            };
            regex(&format!(
                "^{HEX}{{8}}-?{HEX}{{4}}-?{third}-?{variant}-?{HEX}{{12}}$"
            ))
        }),
    }
});

/// As Kubernetes compares them.
#[must_use]
pub fn normalized(format: &str) -> String {
    format.replace('-', "")
}

/// Whether the text has the format. Formats that are not known hold for every text.
#[must_use]
pub fn matches(format: &str, text: &str) -> bool {
    let e = &*EXPRESSIONS;
    match normalized(format).as_str() {
        "bsonobjectid" => e.hex.is_match(text),
        "byte" => text.is_empty() || STANDARD.decode(text).is_ok(),
        "cidr" => is_cidr(text),
        "creditcard" => {
            let digits: String = text.chars().filter(char::is_ascii_digit).collect();
            e.card.is_match(&digits)
        }
        "date" => e.date.is_match(text) && text.parse::<jiff::civil::Date>().is_ok(),
        "datetime" => is_datetime(text),
        "duration" => text == "0" || e.duration.is_match(text),
        "email" => e.email.is_match(text),
        "hexcolor" => e.hexcolor.is_match(text),
        "hostname" => text.len() <= 255 && !text.contains('_') && e.hostname.is_match(text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "isbn" => isbn10(text) || isbn13(text),
        "isbn10" => isbn10(text),
        "isbn13" => isbn13(text),
        "k8sshortname" => names::dns1123_label(text).is_empty(),
        "k8slongname" => names::dns1123_subdomain(text).is_empty(),
        "mac" => e.mac.is_match(text),
        "rgbcolor" => e.rgbcolor.is_match(text),
        "ssn" => e.ssn.is_match(text),
        "uri" => e.uri.is_match(text),
        "uuid" => e.uuids[0].is_match(text),
        "uuid3" => e.uuids[1].is_match(text),
        "uuid4" => e.uuids[2].is_match(text),
        "uuid5" => e.uuids[3].is_match(text),
        _ => true,
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else {
        return false;
    };
    let most = match address.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    let plain = bits == "0" || !bits.starts_with(['0', '+']);
    plain && bits.parse::<u8>().is_ok_and(|bits| bits <= most)
}

fn is_datetime(text: &str) -> bool {
    let (date, _) = text.split_at_checked(10).unwrap_or(("", ""));
    let separated = text[date.len()..].starts_with(['T', 't', ' ']);
    EXPRESSIONS.date.is_match(date) && separated && {
        let zoned = text.replace(' ', "T").to_uppercase();
        zoned.parse::<jiff::Timestamp>().is_ok() || zoned.parse::<jiff::civil::DateTime>().is_ok()
    }
}

fn digits(text: &str) -> Vec<u32> {
    let plain = text.chars().filter(|c| !matches!(c, '-' | ' '));
    plain
        .map(|c| {
            if matches!(c, 'X' | 'x') {
                10
            } else {
                c.to_digit(10).unwrap_or(99)
            }
        })
        .collect()
}

fn isbn10(text: &str) -> bool {
    let digits = digits(text);
    let sound = digits.len() == 10 && digits[..9].iter().all(|d| *d < 10) && digits[9] <= 10;
    sound
        && digits
            .iter()
            .zip((1..=10).rev())
            .map(|(d, weight)| d * weight)
            .sum::<u32>()
            % 11
            == 0
}

fn isbn13(text: &str) -> bool {
    let digits = digits(text);
    let sound = digits.len() == 13 && digits.iter().all(|d| *d < 10);
    sound
        && digits
            .iter()
            .zip([1, 3].into_iter().cycle())
            .map(|(d, weight)| d * weight)
            .sum::<u32>()
            % 10
            == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        #[rustfmt::skip]
        let table = [
            ("date", &["2026-02-28"][..], &["2026-02-30", "26-1-1", ""][..]),
            ("date-time", &["2026-01-01T00:00:00Z", "2014-12-15T19:30:20.000Z", "2026-01-01T00:00:00+01:00"], &["2026-01-01", "x"]),
            ("duration", &["1h", "22 ns", "1.5h3m", "0"], &["x", "5", ""]),
            ("ipv4", &["1.2.3.4"], &["1.2.3", "::1"]),
            ("ipv6", &["::1"], &["1.2.3.4"]),
            ("cidr", &["10.0.0.0/8", "::/0"], &["10.0.0.0", "10.0.0.0/33", "10.0.0.0/08"]),
            ("mac", &["01:23:45:67:89:ab", "0123.4567.89ab"], &["01:23"]),
            ("uuid", &["123e4567-e89b-12d3-a456-426614174000", "123E4567E89B12D3A456426614174000"], &["x"]),
            ("uuid4", &["123e4567-e89b-42d3-a456-426614174000"], &["123e4567-e89b-12d3-a456-426614174000"]),
            ("isbn", &["0321751043", "978-0321751041"], &["0321751044"]),
            ("byte", &["YQ=="], &["%"]),
            ("email", &["a@b.c"], &["a"]),
            ("hostname", &["a.b-c.d"], &["-a", "a..b"]),
            ("uri", &["http://a/b", "/a", "urn:x"], &["a b", ""]),
            ("hexcolor", &["#fff", "abcdef"], &["#ff"]),
            ("rgbcolor", &["rgb(255,0,10)"], &["rgb(256,0,1)"]),
            ("ssn", &["111-22-3333"], &["1"]),
            ("creditcard", &["4111 1111 1111 1111"], &["1"]),
            ("bsonobjectid", &["507f1f77bcf86cd799439011"], &["507f"]),
            ("k8s-short-name", &["a-b"], &["A", "a.b"]),
            ("whatever", &["x"], &[]),
        ];
        for (format, good, bad) in table {
            for text in good {
                assert!(matches(format, text), "{format} {text}");
            }
            for text in bad {
                assert!(!matches(format, text), "{format} {text}");
            }
        }
    }
}
