//! Strings.

use super::super::Error;
use super::super::value::{Text, Value};
use super::{no_overload, regexes};

type Result<'a> = std::result::Result<Value<'a>, Error>;

pub(super) fn contains<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::String(text), Value::String(part)] => Ok(Value::Bool(text.contains(&**part))),
        _ => no_overload(),
    }
}

pub(super) fn starts_with<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::String(text), Value::String(part)] => Ok(Value::Bool(text.starts_with(&**part))),
        _ => no_overload(),
    }
}

pub(super) fn ends_with<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::String(text), Value::String(part)] => Ok(Value::Bool(text.ends_with(&**part))),
        _ => no_overload(),
    }
}

pub(super) fn lower<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::String(text)] => Ok(Value::text(text.to_ascii_lowercase())),
        _ => no_overload(),
    }
}

pub(super) fn upper<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::String(text)] => Ok(Value::text(text.to_ascii_uppercase())),
        _ => no_overload(),
    }
}

pub(super) fn matches<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::String(text), Value::String(pattern)] => {
            Ok(Value::Bool(regexes::compiled(pattern)?.is_match(text)))
        }
        _ => no_overload(),
    }
}

pub(super) fn find<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    let [Value::String(text), Value::String(pattern)] = arguments else {
        return no_overload();
    };
    let found = regexes::compiled(pattern)?
        .find(text)
        .map_or(0..0, |found| found.range());
    Ok(part(text, found))
}

pub(super) fn find_all<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    let (text, pattern, limit) = match arguments {
        [Value::String(text), Value::String(pattern)] => (text, pattern, usize::MAX),
        [
            Value::String(text),
            Value::String(pattern),
            Value::Int(limit),
        ] => {
            let limit = usize::try_from(*limit).unwrap_or(usize::MAX);
            (text, pattern, limit)
        }
        _ => return no_overload(),
    };
    let pattern = regexes::compiled(pattern)?;
    let found = pattern.find_iter(text).take(limit);
    Ok(Value::list(
        found.map(|found| part(text, found.range())).collect(),
    ))
}

fn part<'a>(text: &Text<'a>, range: std::ops::Range<usize>) -> Value<'a> {
    match text {
        Text::Borrowed(text) => Value::from(&text[range]),
        Text::Shared(text) => Value::text(&text[range]),
    }
}

/// A key as a segment of a JSON pointer.
pub(super) fn escape_key<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::String(text)] => Ok(Value::text(text.replace('~', "~0").replace('/', "~1"))),
        _ => no_overload(),
    }
}
