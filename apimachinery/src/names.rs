//! The formats of names, label keys and label values, with the messages that Kubernetes gives for each. A check
//! returns one message for everything that is wrong; an empty list means valid.

/// `must be between LO and HI, inclusive`.
pub fn inclusive_range(lo: i64, hi: i64) -> String {
    format!("must be between {lo} and {hi}, inclusive")
}

pub fn max_len(length: usize) -> String {
    format!("must be no more than {length} characters")
}

pub const EMPTY: &str = "must be non-empty";

/// The message of a failed pattern, with examples and the pattern itself as Kubernetes adds them.
pub fn pattern_error(message: &str, pattern: &str, examples: &[&str]) -> String {
    let examples: String = examples
        .iter()
        .enumerate()
        .map(|(i, e)| format!("{}'{e}', ", if i > 0 { " or " } else { "" }))
        .collect::<Vec<_>>()
        .concat();
    match examples.is_empty() {
        true => format!("{message} (regex used for validation is '{pattern}')"),
        false => format!("{message} (e.g. {examples}regex used for validation is '{pattern}')"),
    }
}

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const DNS1035: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_VALUE: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";

fn lower_alnum(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// `first`, then any of `middle`, ending in `last`: the shape of all these patterns.
fn shaped(s: &str, first: fn(u8) -> bool, middle: fn(u8) -> bool, last: fn(u8) -> bool) -> bool {
    match s.as_bytes() {
        [] => false,
        bytes => {
            first(bytes[0]) && last(bytes[bytes.len() - 1]) && bytes.iter().all(|c| middle(*c))
        }
    }
}

fn matches_label(s: &str) -> bool {
    shaped(s, lower_alnum, |c| lower_alnum(c) || c == b'-', lower_alnum)
}

fn matches_subdomain(s: &str) -> bool {
    s.split('.').all(matches_label)
}

fn matches_key(s: &str) -> bool {
    let alnum = |c: u8| c.is_ascii_alphanumeric();
    shaped(
        s,
        alnum,
        |c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'),
        alnum,
    )
}

/// A DNS label of at most 63 characters (RFC 1123).
pub fn dns1123_label(value: &str) -> Vec<String> {
    let mut errors = too_long(value, 63);
    if !matches_label(value) {
        if matches_subdomain(value) {
            errors.push("must not contain dots".into());
        } else {
            let message = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
                and must start and end with an alphanumeric character";
            errors.push(pattern_error(message, LABEL, &["my-name", "123-abc"]));
        }
    }
    errors
}

/// A DNS subdomain of at most 253 characters (RFC 1123): the name of most objects.
pub fn dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errors = too_long(value, 253);
    if !matches_subdomain(value) {
        let message = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
            and must start and end with an alphanumeric character";
        errors.push(pattern_error(message, SUBDOMAIN, &["example.com"]));
    }
    errors
}

/// A DNS label that starts with a letter (RFC 1035): the name of a Service.
pub fn dns1035_label(value: &str) -> Vec<String> {
    let mut errors = too_long(value, 63);
    if !shaped(
        value,
        |c| c.is_ascii_lowercase(),
        |c| lower_alnum(c) || c == b'-',
        lower_alnum,
    ) {
        let message = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', \
            start with an alphabetic character, and end with an alphanumeric character";
        errors.push(pattern_error(message, DNS1035, &["my-name", "abc-123"]));
    }
    errors
}

/// `*.` followed by a DNS subdomain: a wildcard host of an Ingress.
pub fn wildcard_dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errors = too_long(value, 253);
    if !value.strip_prefix("*.").is_some_and(matches_subdomain) {
        let message = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which \
            must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
        errors.push(pattern_error(
            message,
            &format!("\\*\\.{SUBDOMAIN}"),
            &["*.example.com"],
        ));
    }
    errors
}

/// A label key: an optional DNS subdomain and `/`, then a name of at most 63 characters. Also annotation keys,
/// finalizers, resource names and condition types.
pub fn qualified_name(value: &str) -> Vec<String> {
    let message = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
        alphanumeric character";
    let pattern = || pattern_error(message, KEY, &["MyName", "my.name", "123-abc"]);
    let mut errors = Vec::new();
    let mut parts = value.split('/');
    let name = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => name,
        (Some(prefix), Some(name), None) => {
            if prefix.is_empty() {
                errors.push(format!("prefix part {EMPTY}"));
            } else {
                errors.extend(
                    dns1123_subdomain(prefix)
                        .into_iter()
                        .map(|e| format!("prefix part {e}")),
                );
            }
            name
        }
        _ => {
            let tail = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
            return vec![format!("a valid label key {} {tail}", pattern())];
        }
    };
    if name.is_empty() {
        errors.push(format!("name part {EMPTY}"));
    } else if name.len() > 63 {
        errors.push(format!("name part {}", max_len(63)));
    }
    if !matches_key(name) {
        errors.push(format!("name part {}", pattern()));
    }
    errors
}

/// A label value: empty, or up to 63 characters like the name part of a key.
pub fn label_value(value: &str) -> Vec<String> {
    let mut errors = too_long(value, 63);
    if !value.is_empty() && !matches_key(value) {
        let message = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
            and must start and end with an alphanumeric character";
        errors.push(pattern_error(
            message,
            LABEL_VALUE,
            &["MyValue", "my_value", "12345"],
        ));
    }
    errors
}

/// A key of a ConfigMap or Secret.
pub fn config_map_key(value: &str) -> Vec<String> {
    let mut errors = too_long(value, 253);
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    if value.is_empty() || !value.bytes().all(allowed) {
        let message = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        errors.push(pattern_error(
            message,
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    errors.extend(parent_directory(value));
    errors
}

/// The name of an environment variable: any printable ASCII but `=`.
pub fn env_var_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.is_empty() {
        errors.push(format!("environment variable name {EMPTY}"));
    }
    if !value.chars().all(|c| (' '..='~').contains(&c) && c != '=') {
        errors.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='".into(),
        );
    }
    errors
}

/// The name of a port (an IANA service name).
pub fn port_name(value: &str) -> Vec<String> {
    let mut errors = too_long(value, 15);
    let mut require = |ok: bool, message: &str| {
        if !ok {
            errors.push(message.to_owned());
        }
    };
    require(
        !value.is_empty() && value.bytes().all(|c| lower_alnum(c) || c == b'-'),
        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
    );
    require(
        value.bytes().any(|c| c.is_ascii_lowercase()),
        "must contain at least one letter (a-z)",
    );
    require(
        !value.contains("--"),
        "must not contain consecutive hyphens",
    );
    require(
        !value.starts_with('-') && !value.ends_with('-'),
        "must not begin or end with a hyphen",
    );
    errors
}

pub fn port_number(value: i64) -> Vec<String> {
    if (1..=65535).contains(&value) {
        Vec::new()
    } else {
        vec![inclusive_range(1, 65535)]
    }
}

/// A percentage such as `25%`.
pub fn percent(value: &str) -> Vec<String> {
    let digits = value.strip_suffix('%').unwrap_or_default();
    if !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()) {
        return Vec::new();
    }
    let message = "a valid percent string must be a numeric string followed by an ending '%'";
    vec![pattern_error(message, "[0-9]+%", &["1%", "93%"])]
}

pub fn http_header_name(value: &str) -> Vec<String> {
    if !value.is_empty()
        && value
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || c == b'-')
    {
        return Vec::new();
    }
    let message = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![pattern_error(message, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

/// A name that is one segment of a URL path: the names of RBAC objects.
pub fn path_segment(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value == "." || value == ".." {
        errors.push(format!("may not be '{value}'"));
        return errors;
    }
    for part in ["/", "%"] {
        if value.contains(part) {
            errors.push(format!("may not contain '{part}'"));
        }
    }
    errors
}

/// What to check of a `generateName`: a trailing dash is fine, something will follow it. Kubernetes' masking drops the
/// character before the dash too, and so do we.
pub fn mask_trailing_dash(name: &str) -> String {
    match name.strip_suffix('-') {
        Some(head) if !head.is_empty() => {
            let mut masked: String = head.to_owned();
            masked.pop();
            masked.push('a');
            masked
        }
        _ => name.to_owned(),
    }
}

fn too_long(value: &str, max: usize) -> Vec<String> {
    if value.len() > max {
        vec![max_len(max)]
    } else {
        Vec::new()
    }
}

fn parent_directory(value: &str) -> Option<String> {
    match value {
        "." | ".." => Some(format!("must not be '{value}'")),
        _ if value.starts_with("..") => Some("must not start with '..'".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_and_refused() {
        let long = "a".repeat(64);
        type Check = fn(&str) -> Vec<String>;
        let cases: &[(Check, &[&str], &[&str])] = &[
            (
                dns1123_label,
                &["a", "0", "a-b", "123-abc"],
                &["", "-a", "a-", "A", "a.b", "a_b", &long],
            ),
            (
                dns1123_subdomain,
                &["a", "a.b-c.0"],
                &["", ".", "a..b", "a.", "-a.b", "A.b"],
            ),
            (dns1035_label, &["a", "a-1"], &["", "1a", "a-", "a.b"]),
            (
                qualified_name,
                &["a", "A_b.c", "x.io/A"],
                &["", "/a", "a/", "a/b/c", "X/a", "_a", "a b"],
            ),
            (
                label_value,
                &["", "a", "A_b.c-1"],
                &["-a", "a-", "a b", &long],
            ),
            (
                config_map_key,
                &["a", "A.b_c-d", ".a"],
                &["", "a/b", ".", "..", "..a"],
            ),
            (
                port_name,
                &["http", "a-1"],
                &["", "1", "A", "a--b", "-a", "abcdefghijklmnop"],
            ),
            (percent, &["0%", "250%"], &["", "%", "1", "-1%", "1.5%"]),
            (
                wildcard_dns1123_subdomain,
                &["*.a.b"],
                &["*", "a.b", "*.*.a"],
            ),
            (
                path_segment,
                &["system:node", "a"],
                &[".", "..", "a/b", "a%b"],
            ),
            (env_var_name, &["A", "a b", "1"], &["", "a=b", "é"]),
        ];
        for (check, good, bad) in cases {
            for value in *good {
                assert_eq!(check(value), Vec::<String>::new(), "{value:?}");
            }
            for value in *bad {
                assert!(!check(value).is_empty(), "{value:?}");
            }
        }
    }

    #[test]
    fn messages() {
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(
            dns1123_label("A"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
              end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert_eq!(qualified_name("/a"), ["prefix part must be non-empty"]);
        assert_eq!(mask_trailing_dash("web-"), "wea");
    }
}
