//! Field errors: what is wrong with which field, in the words that Kubernetes uses for it.

use std::fmt;

use serde_json::Value;

/// The path of a field, written as Kubernetes writes it: `spec.containers[0].env[1].name`, `metadata.labels[app]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Path(String);

impl Path {
    pub fn new(name: impl Into<String>) -> Path {
        Path(name.into())
    }

    /// The path of the document itself; children of it are written without a leading dot.
    pub fn root() -> Path {
        Path::default()
    }

    pub fn child(&self, name: &str) -> Path {
        let dot = if self.0.is_empty() { "" } else { "." };
        self.with(&[dot, name])
    }

    pub fn index(&self, index: usize) -> Path {
        let mut digits = [0; MOST_DIGITS];
        self.with(&["[", decimal(index, &mut digits), "]"])
    }

    pub fn key(&self, key: &str) -> Path {
        self.with(&["[", key, "]"])
    }

    /// Put together without a formatter: validation asks for the path of every field, of which few have an error.
    fn with(&self, parts: &[&str]) -> Path {
        let length = parts
            .iter()
            .fold(self.0.len(), |sum, part| sum + part.len());
        let mut path = String::with_capacity(length);
        path.push_str(&self.0);
        parts.iter().for_each(|part| path.push_str(part));
        Path(path)
    }

    pub fn as_str(&self) -> &str {
        if self.0.is_empty() { "<nil>" } else { &self.0 }
    }
}

const MOST_DIGITS: usize = 20;

fn decimal(mut number: usize, digits: &mut [u8; MOST_DIGITS]) -> &str {
    let mut at = MOST_DIGITS;
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return std::str::from_utf8(&digits[at..]).unwrap_or_default();
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a field is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooShort,
    TooMany,
    TooFew,
    Internal,
    TypeInvalid,
}

impl Kind {
    /// The cause's reason in a Status.
    pub fn reason(self) -> &'static str {
        match self {
            Kind::NotFound => "FieldValueNotFound",
            Kind::Required => "FieldValueRequired",
            Kind::Duplicate => "FieldValueDuplicate",
            Kind::Invalid => "FieldValueInvalid",
            Kind::NotSupported => "FieldValueNotSupported",
            Kind::Forbidden => "FieldValueForbidden",
            Kind::TooLong => "FieldValueTooLong",
            Kind::TooShort => "FieldValueTooShort",
            Kind::TooMany => "FieldValueTooMany",
            Kind::TooFew => "FieldValueTooFew",
            Kind::Internal => "InternalError",
            Kind::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Kind::NotFound => "Not found",
            Kind::Required => "Required value",
            Kind::Duplicate => "Duplicate value",
            Kind::Invalid | Kind::TypeInvalid => "Invalid value",
            Kind::NotSupported => "Unsupported value",
            Kind::Forbidden => "Forbidden",
            Kind::TooLong => "Too long",
            Kind::TooShort => "Too short",
            Kind::TooMany => "Too many",
            Kind::TooFew => "Too few",
            Kind::Internal => "Internal error",
        }
    }
}

/// One refused field. The value is shown for those kinds where it helps, never for `Required`, `Forbidden`,
/// `Too long` and `Too short`.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    pub kind: Kind,
    pub field: String,
    pub value: Option<Value>,
    pub detail: String,
}

impl Error {
    fn new(kind: Kind, path: &Path, value: Option<Value>, detail: impl Into<String>) -> Error {
        Error {
            kind,
            field: path.as_str().to_owned(),
            value,
            detail: detail.into(),
        }
    }

    pub fn required(path: &Path, detail: impl Into<String>) -> Error {
        Error::new(Kind::Required, path, None, detail)
    }

    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Error {
        Error::new(Kind::Invalid, path, Some(value.into()), detail)
    }

    pub fn type_invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Error {
        Error::new(Kind::TypeInvalid, path, Some(value.into()), detail)
    }

    pub fn not_found(path: &Path, value: impl Into<Value>) -> Error {
        Error::new(Kind::NotFound, path, Some(value.into()), "")
    }

    pub fn duplicate(path: &Path, value: impl Into<Value>) -> Error {
        Error::new(Kind::Duplicate, path, Some(value.into()), "")
    }

    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Error {
        Error::new(Kind::Forbidden, path, None, detail)
    }

    pub fn internal(path: &Path, detail: impl Into<String>) -> Error {
        Error::new(Kind::Internal, path, None, detail)
    }

    /// `supported` is listed in the order given: Kubernetes sorts it in most, not all, places.
    pub fn not_supported(path: &Path, value: impl Into<Value>, supported: &[&str]) -> Error {
        let detail = match supported {
            [] => String::new(),
            _ => format!(
                "supported values: {}",
                supported
                    .iter()
                    .map(|s| quote(s))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        };
        Error::new(Kind::NotSupported, path, Some(value.into()), detail)
    }

    pub fn too_long(path: &Path, max_bytes: usize) -> Error {
        Error::new(
            Kind::TooLong,
            path,
            None,
            format!("may not be more than {}", count(max_bytes, "byte")),
        )
    }

    pub fn too_long_characters(path: &Path, max: usize) -> Error {
        Error::new(
            Kind::TooLong,
            path,
            None,
            format!("may not be more than {}", count(max, "character")),
        )
    }

    pub fn too_short(path: &Path, min: usize) -> Error {
        Error::new(
            Kind::TooShort,
            path,
            None,
            format!("must be at least {}", count(min, "character")),
        )
    }

    pub fn too_many(path: &Path, actual: usize, max: usize) -> Error {
        Error::new(
            Kind::TooMany,
            path,
            Some(actual.into()),
            format!("must have at most {}", count(max, "item")),
        )
    }

    pub fn too_few(path: &Path, actual: usize, min: usize) -> Error {
        Error::new(
            Kind::TooFew,
            path,
            Some(actual.into()),
            format!("must have at least {}", count(min, "item")),
        )
    }

    /// The message without the field, as a Status cause has it.
    pub fn body(&self) -> String {
        let mut text = self.kind.text().to_owned();
        match &self.value {
            Some(Value::String(s)) => text = format!("{text}: {}", quote(s)),
            Some(value) => text = format!("{text}: {value}"),
            None => {}
        }
        if !self.detail.is_empty() {
            text = format!("{text}: {}", self.detail);
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

fn count(n: usize, what: &str) -> String {
    if n == 1 {
        format!("{n} {what}")
    } else {
        format!("{n} {what}s")
    }
}

/// All that is wrong with one object. `Display` is Kubernetes' aggregate: one message plain, several in brackets,
/// each distinct message once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ErrorList(pub Vec<Error>);

impl ErrorList {
    pub fn new() -> ErrorList {
        ErrorList::default()
    }

    /// Ok when the list is empty, else the list itself.
    pub fn into_result(self) -> Result<(), ErrorList> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }

    /// Adds `Invalid value` for each message.
    pub fn invalid_each(&mut self, path: &Path, value: &str, messages: Vec<String>) {
        self.0
            .extend(messages.into_iter().map(|m| Error::invalid(path, value, m)));
    }

    pub fn append(&mut self, mut other: ErrorList) {
        self.0.append(&mut other.0);
    }
}

impl std::ops::Deref for ErrorList {
    type Target = Vec<Error>;

    fn deref(&self) -> &Vec<Error> {
        &self.0
    }
}

impl std::ops::DerefMut for ErrorList {
    fn deref_mut(&mut self) -> &mut Vec<Error> {
        &mut self.0
    }
}

impl IntoIterator for ErrorList {
    type Item = Error;
    type IntoIter = std::vec::IntoIter<Error>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl FromIterator<Error> for ErrorList {
    fn from_iter<I: IntoIterator<Item = Error>>(iter: I) -> ErrorList {
        ErrorList(iter.into_iter().collect())
    }
}

impl fmt::Display for ErrorList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut messages: Vec<String> = Vec::with_capacity(self.0.len());
        for message in self.0.iter().map(Error::to_string) {
            if !messages.contains(&message) {
                messages.push(message);
            }
        }
        match messages.as_slice() {
            [one] => f.write_str(one),
            many => write!(f, "[{}]", many.join(", ")),
        }
    }
}

impl std::error::Error for ErrorList {}

/// Quotes as Go's `%q` does, which is what Kubernetes' messages show.
pub fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c == '\u{7f}' => {
                out.push_str(&format!("\\x{:02x}", c as u32))
            }
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_and_messages() {
        let path = Path::new("spec")
            .child("containers")
            .index(0)
            .child("env")
            .key("A b");
        assert_eq!(path.as_str(), "spec.containers[0].env[A b]");
        for index in [9, 10, 123_456, usize::MAX] {
            assert_eq!(
                Path::root().child("a").index(index).as_str(),
                format!("a[{index}]")
            );
        }
        let cases = [
            (Error::required(&path, ""), "Required value"),
            (Error::required(&path, "say why"), "Required value: say why"),
            (
                Error::invalid(&path, "a\"b", "bad"),
                "Invalid value: \"a\\\"b\": bad",
            ),
            (
                Error::invalid(&path, json!({"a": [1]}), "bad"),
                "Invalid value: {\"a\":[1]}: bad",
            ),
            (
                Error::not_supported(&path, "x", &["A", "B"]),
                "Unsupported value: \"x\": supported values: \"A\", \"B\"",
            ),
            (
                Error::too_long(&path, 1),
                "Too long: may not be more than 1 byte",
            ),
            (
                Error::too_many(&path, 3, 2),
                "Too many: 3: must have at most 2 items",
            ),
            (Error::duplicate(&path, "x"), "Duplicate value: \"x\""),
            (Error::forbidden(&path, "no"), "Forbidden: no"),
        ];
        for (error, body) in cases {
            assert_eq!(error.body(), body);
            assert_eq!(error.to_string(), format!("{}: {body}", path));
        }
    }

    #[test]
    fn aggregate_drops_repeats() {
        let error = Error::required(&Path::new("a"), "");
        assert_eq!(
            ErrorList(vec![error.clone(), error.clone()]).to_string(),
            "a: Required value"
        );
        let other = Error::required(&Path::new("b"), "");
        assert_eq!(
            ErrorList(vec![error, other]).to_string(),
            "[a: Required value, b: Required value]"
        );
    }
}
