//! Operators, conversions between the basic types, and optional values.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::SignedDuration;

use super::super::Error;
use super::super::value::{Key, List, Map, Text, Value};
use super::{length, no_overload};

type Result<'a> = std::result::Result<Value<'a>, Error>;

fn overflow(of: &str) -> Error {
    Error::new(format!("{of} overflow"))
}

pub(super) fn add<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    let [a, b] = arguments else {
        return no_overload();
    };
    Ok(match (a, b) {
        (Value::Int(a), Value::Int(b)) => {
            Value::Int(a.checked_add(*b).ok_or_else(|| overflow("integer"))?)
        }
        (Value::Uint(a), Value::Uint(b)) => Value::Uint(
            a.checked_add(*b)
                .ok_or_else(|| overflow("unsigned integer"))?,
        ),
        (Value::Double(a), Value::Double(b)) => Value::Double(a + b),
        (Value::String(a), Value::String(b)) => {
            let mut text = String::with_capacity(a.len() + b.len());
            text.push_str(a);
            text.push_str(b);
            Value::text(text)
        }
        (Value::Bytes(a), Value::Bytes(b)) => Value::Bytes([&a[..], &b[..]].concat().into()),
        (Value::List(a), Value::List(b)) => joined(a, b),
        (Value::Duration(a), Value::Duration(b)) => {
            Value::Duration(a.checked_add(*b).ok_or_else(|| overflow("duration"))?)
        }
        (Value::Timestamp(at), Value::Duration(by))
        | (Value::Duration(by), Value::Timestamp(at)) => {
            Value::Timestamp(at.checked_add(*by).map_err(|_| overflow("timestamp"))?)
        }
        _ => return no_overload(),
    })
}

fn joined<'a>(a: &List<'a>, b: &List<'a>) -> Value<'a> {
    match (a.is_empty(), b.is_empty()) {
        (true, _) => Value::List(b.clone()),
        (_, true) => Value::List(a.clone()),
        _ => Value::list(a.iter().chain(b.iter()).collect()),
    }
}

pub(super) fn subtract<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    let [a, b] = arguments else {
        return no_overload();
    };
    Ok(match (a, b) {
        (Value::Int(a), Value::Int(b)) => {
            Value::Int(a.checked_sub(*b).ok_or_else(|| overflow("integer"))?)
        }
        (Value::Uint(a), Value::Uint(b)) => Value::Uint(
            a.checked_sub(*b)
                .ok_or_else(|| overflow("unsigned integer"))?,
        ),
        (Value::Double(a), Value::Double(b)) => Value::Double(a - b),
        (Value::Duration(a), Value::Duration(b)) => {
            Value::Duration(a.checked_sub(*b).ok_or_else(|| overflow("duration"))?)
        }
        (Value::Timestamp(a), Value::Timestamp(b)) => Value::Duration(a.duration_since(*b)),
        (Value::Timestamp(at), Value::Duration(by)) => {
            Value::Timestamp(at.checked_sub(*by).map_err(|_| overflow("timestamp"))?)
        }
        _ => return no_overload(),
    })
}

pub(super) fn multiply<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    Ok(match arguments {
        [Value::Int(a), Value::Int(b)] => {
            Value::Int(a.checked_mul(*b).ok_or_else(|| overflow("integer"))?)
        }
        [Value::Uint(a), Value::Uint(b)] => Value::Uint(
            a.checked_mul(*b)
                .ok_or_else(|| overflow("unsigned integer"))?,
        ),
        [Value::Double(a), Value::Double(b)] => Value::Double(a * b),
        _ => return no_overload(),
    })
}

pub(super) fn divide<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    Ok(match arguments {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            return Err(Error::new("division by zero"));
        }
        [Value::Int(a), Value::Int(b)] => {
            Value::Int(a.checked_div(*b).ok_or_else(|| overflow("integer"))?)
        }
        [Value::Uint(a), Value::Uint(b)] => Value::Uint(a / b),
        [Value::Double(a), Value::Double(b)] => Value::Double(a / b),
        _ => return no_overload(),
    })
}

pub(super) fn modulo<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    Ok(match arguments {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            return Err(Error::new("modulus by zero"));
        }
        [Value::Int(a), Value::Int(b)] => {
            Value::Int(a.checked_rem(*b).ok_or_else(|| overflow("integer"))?)
        }
        [Value::Uint(a), Value::Uint(b)] => Value::Uint(a % b),
        _ => return no_overload(),
    })
}

pub(super) fn negate<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    Ok(match arguments {
        [Value::Int(a)] => Value::Int(a.checked_neg().ok_or_else(|| overflow("integer"))?),
        [Value::Double(a)] => Value::Double(-a),
        _ => return no_overload(),
    })
}

pub(super) fn not<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::Bool(a)] => Ok(Value::Bool(!a)),
        _ => no_overload(),
    }
}

pub(super) fn equal<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [a, b] => Ok(Value::Bool(a == b)),
        _ => no_overload(),
    }
}

pub(super) fn not_equal<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [a, b] => Ok(Value::Bool(a != b)),
        _ => no_overload(),
    }
}

fn compared<'a>(arguments: &[Value<'a>], holds: impl Fn(Ordering) -> bool) -> Result<'a> {
    let [a, b] = arguments else {
        return no_overload();
    };
    match a.compare(b) {
        Some(order) => Ok(Value::Bool(holds(order))),
        None if is_number(a) && is_number(b) => Err(Error::new("NaN values cannot be ordered")),
        None => no_overload(),
    }
}

fn is_number(value: &Value<'_>) -> bool {
    matches!(value, Value::Int(_) | Value::Uint(_) | Value::Double(_))
}

pub(super) fn less<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    compared(arguments, Ordering::is_lt)
}

pub(super) fn less_equal<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    compared(arguments, Ordering::is_le)
}

pub(super) fn greater<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    compared(arguments, Ordering::is_gt)
}

pub(super) fn greater_equal<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    compared(arguments, Ordering::is_ge)
}

pub(super) fn contained<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Bool(match arguments {
        [item, Value::List(list)] => list.iter().any(|other| other == *item),
        [Value::String(key), Value::Map(Map::Json(map, _))] => map.contains_key(&**key),
        [key, Value::Map(Map::Values(map))] => Key::of(key).is_ok_and(|key| map.contains_key(&key)),
        [_, Value::Map(Map::Json(..))] => false,
        _ => return no_overload(),
    }))
}

pub(super) fn size_of<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::String(text)] => Ok(length(text)),
        [value] => match value.size() {
            Some(size) => Ok(Value::Int(i64::try_from(size).unwrap_or(i64::MAX))),
            None => no_overload(),
        },
        _ => no_overload(),
    }
}

pub(super) fn type_of<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [value] => Ok(Value::Type(value.type_name().into())),
        _ => no_overload(),
    }
}

pub(super) fn identity<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [value] => Ok(value.clone()),
        _ => no_overload(),
    }
}

pub(super) fn to_bool<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::Bool(value)] => Ok(Value::Bool(*value)),
        [Value::String(text)] => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            other => Err(unconvertible("bool", other)),
        },
        _ => no_overload(),
    }
}

fn unconvertible(to: &str, text: &str) -> Error {
    Error::new(format!(
        "type conversion error from 'string' to '{to}': {text:?}: invalid syntax"
    ))
}

pub(super) fn to_int<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
    Ok(Value::Int(match arguments {
        [Value::Int(value)] => *value,
        [Value::Uint(value)] => i64::try_from(*value).map_err(|_| overflow("integer"))?,
        [Value::Double(value)] if value.abs() < 9.223_372_036_854_775e18 => *value as i64,
        [Value::Double(_)] => return Err(overflow("integer")),
        [Value::String(text)] => text.parse().map_err(|_| unconvertible("int", text))?,
        [Value::Timestamp(at)] => at.as_second(),
        [Value::Duration(value)] => {
            i64::try_from(value.as_nanos()).map_err(|_| overflow("integer"))?
        }
        _ => return no_overload(),
    }))
}

pub(super) fn to_uint<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range is checked"
    )]
    Ok(Value::Uint(match arguments {
        [Value::Uint(value)] => *value,
        [Value::Int(value)] => u64::try_from(*value).map_err(|_| overflow("unsigned integer"))?,
        [Value::Double(value)] if (0.0..1.844_674_407_370_955e19).contains(value) => *value as u64,
        [Value::Double(_)] => return Err(overflow("unsigned integer")),
        [Value::String(text)] => text.parse().map_err(|_| unconvertible("uint", text))?,
        _ => return no_overload(),
    }))
}

pub(super) fn to_double<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    #[expect(
        clippy::cast_precision_loss,
        reason = "that is what the conversion does"
    )]
    Ok(Value::Double(match arguments {
        [Value::Double(value)] => *value,
        [Value::Int(value)] => *value as f64,
        [Value::Uint(value)] => *value as f64,
        [Value::String(text)] => text.parse().map_err(|_| unconvertible("double", text))?,
        _ => return no_overload(),
    }))
}

pub(super) fn to_string<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    Ok(match arguments {
        [Value::String(text)] => Value::String(text.clone()),
        [Value::Int(value)] => Value::text(value.to_string()),
        [Value::Uint(value)] => Value::text(value.to_string()),
        [Value::Double(value)] => Value::text(value.to_string()),
        [Value::Bool(value)] => Value::text(value.to_string()),
        [Value::Bytes(bytes)] => match std::str::from_utf8(bytes) {
            Ok(text) => Value::text(text),
            Err(_) => {
                return Err(Error::new(
                    "invalid UTF-8 in bytes, cannot convert to string",
                ));
            }
        },
        [Value::Timestamp(at)] => Value::text(at.to_string()),
        [Value::Duration(value)] => Value::text(seconds(*value)),
        [Value::Foreign(_)] => return super::foreign::call("string", false, arguments),
        _ => return no_overload(),
    })
}

/// A duration as CEL prints it: `90s`.
fn seconds(duration: SignedDuration) -> String {
    match duration.subsec_nanos() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}s", duration.as_secs_f64()),
    }
}

pub(super) fn to_bytes<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    Ok(match arguments {
        [Value::Bytes(bytes)] => Value::Bytes(bytes.clone()),
        [Value::String(text)] => Value::Bytes(text.as_bytes().into()),
        _ => return no_overload(),
    })
}

pub(super) fn optional_of<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [value] => Ok(Value::optional(Some(value.clone()))),
        _ => no_overload(),
    }
}

pub(super) fn optional_of_non_zero<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    let [value] = arguments else {
        return no_overload();
    };
    let zero = match value {
        Value::Null | Value::Bool(false) | Value::Int(0) | Value::Uint(0) => true,
        Value::Double(value) => *value == 0.0,
        Value::Optional(value) => value.is_none(),
        Value::Duration(value) => value.is_zero(),
        value => value.size() == Some(0),
    };
    Ok(Value::optional((!zero).then(|| value.clone())))
}

pub(super) fn optional_none<'a>(_: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Optional(None))
}

pub(super) fn has_value<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::Optional(value)] => Ok(Value::Bool(value.is_some())),
        _ => no_overload(),
    }
}

pub(super) fn value_of<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::Optional(Some(value))] => Ok(Value::clone(value)),
        [Value::Optional(None)] => Err(Error::new("optional.none() dereference")),
        _ => no_overload(),
    }
}

pub(super) fn optional_or<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::Optional(None), Value::Optional(other)] => Ok(Value::Optional(other.clone())),
        [Value::Optional(value), _] => Ok(Value::Optional(value.clone())),
        _ => no_overload(),
    }
}

pub(super) fn optional_or_value<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::Optional(Some(value)), _] => Ok(Value::clone(value)),
        [Value::Optional(None), other] => Ok(other.clone()),
        _ => no_overload(),
    }
}

/// A map out of entries; the same key twice is an error.
pub(in super::super) fn map_of<'a>(
    entries: impl IntoIterator<Item = std::result::Result<(Value<'a>, Value<'a>), Error>>,
) -> Result<'a> {
    let mut map = BTreeMap::new();
    for entry in entries {
        let (key, value) = entry?;
        let key = Key::of(&key)?;
        if map.contains_key(&key) {
            let shown = match &key {
                Key::String(Text::Borrowed(key)) => (*key).to_owned(),
                Key::String(Text::Shared(key)) => key.to_string(),
                other => format!("{other:?}"),
            };
            return Err(Error::new(format!("Failed with repeated key: {shown}")));
        }
        map.insert(key, value);
    }
    Ok(Value::Map(Map::Values(Arc::new(map))))
}
