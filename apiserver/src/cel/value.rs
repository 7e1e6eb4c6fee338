//! Values while a program runs. Documents are not converted: lists and maps out of JSON stay where they are, and only
//! what an expression touches becomes a value.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use apimachinery::time;
use base64::Engine;
use jiff::{SignedDuration, Timestamp};
use kube_cel::cel::objects::Opaque as Foreign;
use serde_json::Value as Json;

use super::Error;
use super::authorizer::Authorization;
use super::eval::Budget;
use super::types::{DYN, ListKind, Type};

#[derive(Clone)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Arc<[u8]>),
    Duration(SignedDuration),
    Timestamp(Timestamp),
    List(List<'a>),
    Map(Map<'a>),
    Optional(Option<Arc<Value<'a>>>),
    Type(Arc<str>),
    /// A value of one of `kube-cel`'s libraries: a quantity, an address, ...
    Foreign(Arc<dyn Foreign>),
    Authorization(Authorization<'a>),
    /// An object that an expression built: `Object.spec{...}`, `JSONPatch{...}`.
    Built(Arc<Built<'a>>),
    /// What a round of a comprehension could not say; reading it fails. Programs never return it.
    Failed(Arc<str>),
}

#[derive(Clone)]
pub enum Text<'a> {
    Borrowed(&'a str),
    Shared(Arc<str>),
}

#[derive(Clone)]
pub enum List<'a> {
    /// With the type of the list.
    Json(&'a [Json], &'a Type),
    Values(Arc<Vec<Value<'a>>>),
}

#[derive(Clone)]
pub enum Map<'a> {
    /// With the type of the map or object.
    Json(&'a serde_json::Map<String, Json>, &'a Type),
    Values(Arc<BTreeMap<Key<'a>, Value<'a>>>),
    /// Fields that are computed when they are asked for.
    Lazy(Arc<dyn Fields<'a> + 'a>),
}

/// See [`Map::Lazy`].
pub trait Fields<'a>: Send + Sync {
    fn get(&self, name: &str, budget: &mut Budget) -> Option<Result<Value<'a>, Error>>;
}

pub struct Built<'a> {
    pub name: String,
    pub fields: BTreeMap<String, Value<'a>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key<'a> {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Text<'a>),
}

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Text<'_> {}

impl PartialOrd for Text<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_json() {
            Ok(json) => write!(f, "{}({json})", self.type_name()),
            Err(_) => f.write_str(&self.type_name()),
        }
    }
}

impl<'a> Key<'a> {
    pub(super) fn of(value: &Value<'a>) -> Result<Self, Error> {
        Ok(match value {
            Value::Bool(key) => Self::Bool(*key),
            Value::Int(key) => Self::Int(*key),
            Value::Uint(key) => match i64::try_from(*key) {
                // Equal numbers are the same key.
                Ok(key) => Self::Int(key),
                Err(_) => Self::Uint(*key),
            },
            Value::Double(key) if key.fract() == 0.0 && key.abs() < 9e15 =>
            {
                #[expect(clippy::cast_possible_truncation, reason = "checked to be whole")]
                Self::Int(*key as i64)
            }
            Value::String(key) => Self::String(key.clone()),
            other => {
                return Err(Error::new(format!(
                    "unsupported key type: {}",
                    other.type_name()
                )));
            }
        })
    }

    pub(super) fn value(&self) -> Value<'a> {
        match self {
            Self::Bool(key) => Value::Bool(*key),
            Self::Int(key) => Value::Int(*key),
            Self::Uint(key) => Value::Uint(*key),
            Self::String(key) => Value::String(key.clone()),
        }
    }
}

impl<'a> Value<'a> {
    /// A document (or a part of one) as a program sees it that was compiled with `of` as its type.
    #[must_use]
    pub fn json(json: &'a Json, of: &'a Type) -> Self {
        match (json, of) {
            (Json::Null, _) => Self::Null,
            (Json::Bool(value), _) => Self::Bool(*value),
            (Json::Number(number), Type::Double) => Self::Double(number.as_f64().unwrap_or(0.0)),
            (Json::Number(number), _) => match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => Self::Int(number),
                (None, Some(number)) => Self::Uint(number),
                _ => Self::Double(number.as_f64().unwrap_or(0.0)),
            },
            (Json::String(text), Type::Bytes) => {
                match base64::engine::general_purpose::STANDARD.decode(text) {
                    Ok(bytes) => Self::Bytes(bytes.into()),
                    Err(_) => Self::from(text.as_str()),
                }
            }
            (Json::String(text), Type::Duration) => super::library::time::duration_of(text)
                .map_or_else(|| Self::from(text.as_str()), Self::Duration),
            (Json::String(text), Type::Timestamp) => {
                timestamp_of(text).map_or_else(|| Self::from(text.as_str()), Self::Timestamp)
            }
            (Json::String(text), _) => Self::from(text.as_str()),
            (Json::Array(items), of) => Self::List(List::Json(items, of)),
            (Json::Object(map), of) => Self::Map(Map::Json(map, of)),
        }
    }

    /// A document without a schema.
    #[must_use]
    pub fn untyped(json: &'a Json) -> Self {
        Self::json(json, &DYN)
    }

    #[must_use]
    pub fn text(text: impl Into<Arc<str>>) -> Self {
        Self::String(Text::Shared(text.into()))
    }

    #[must_use]
    pub fn list(items: Vec<Value<'a>>) -> Self {
        Self::List(List::Values(Arc::new(items)))
    }

    #[must_use]
    pub fn optional(value: Option<Value<'a>>) -> Self {
        Self::Optional(value.map(Arc::new))
    }

    /// The name that `type(x)` prints and errors say.
    #[must_use]
    pub fn type_name(&self) -> String {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Optional(_) => "optional_type",
            Self::Type(_) => "type",
            Self::Foreign(value) => value.runtime_type_name(),
            Self::Authorization(value) => value.type_name(),
            Self::Built(value) => &value.name,
            Self::Failed(_) => "error",
        }
        .to_owned()
    }

    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// What sizes and costs are counted in.
    #[must_use]
    pub fn size(&self) -> Option<usize> {
        match self {
            Self::String(text) => Some(count(text)),
            Self::Bytes(bytes) => Some(bytes.len()),
            Self::List(list) => Some(list.len()),
            Self::Map(Map::Json(map, _)) => Some(map.len()),
            Self::Map(Map::Values(map)) => Some(map.len()),
            _ => None,
        }
    }

    /// As JSON; an error for values that have no such form.
    pub fn to_json(&self) -> Result<Json, Error> {
        Ok(match self {
            Self::Null | Self::Optional(None) => Json::Null,
            Self::Bool(value) => (*value).into(),
            Self::Int(value) => (*value).into(),
            Self::Uint(value) => (*value).into(),
            Self::Double(value) => (*value).into(),
            Self::String(text) => (**text).into(),
            Self::Bytes(bytes) => base64::engine::general_purpose::STANDARD
                .encode(bytes)
                .into(),
            Self::Duration(value) => super::library::time::duration_text(*value).into(),
            Self::Timestamp(at) => time::format(*at).into(),
            Self::List(List::Json(items, _)) => Json::Array(items.to_vec()),
            Self::Map(Map::Json(map, _)) => Json::Object((*map).clone()),
            Self::List(List::Values(items)) => {
                Json::Array(items.iter().map(Self::to_json).collect::<Result<_, _>>()?)
            }
            Self::Map(Map::Values(map)) => {
                let mut object = serde_json::Map::new();
                for (key, value) in map.iter() {
                    let Key::String(key) = key else {
                        return Err(Error::new("map keys must be strings to be JSON"));
                    };
                    object.insert(key.to_string(), value.to_json()?);
                }
                Json::Object(object)
            }
            Self::Built(built) => {
                let mut object = serde_json::Map::new();
                for (name, value) in &built.fields {
                    object.insert(name.clone(), value.to_json()?);
                }
                Json::Object(object)
            }
            Self::Optional(Some(value)) => value.to_json()?,
            other => {
                return Err(Error::new(format!(
                    "{} cannot be converted to JSON",
                    other.type_name()
                )));
            }
        })
    }
}

/// Characters, as CEL counts them.
pub(super) fn count(text: &str) -> usize {
    match text.is_ascii() {
        true => text.len(),
        false => text.chars().count(),
    }
}

pub(super) fn timestamp_of(text: &str) -> Option<Timestamp> {
    time::parse(text).or_else(|| {
        let date: jiff::civil::Date = text.parse().ok()?;
        let zoned = date.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
        Some(zoned.timestamp())
    })
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::String(Text::Borrowed(text))
    }
}

impl<'a> List<'a> {
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Json(items, _) => items.len(),
            Self::Values(items) => items.len(),
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[must_use]
    pub fn get(&self, index: usize) -> Option<Value<'a>> {
        match self {
            Self::Json(items, of) => items.get(index).map(|item| Value::json(item, items_of(of))),
            Self::Values(items) => items.get(index).cloned(),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    fn kind(&self) -> &ListKind {
        match self {
            Self::Json(_, Type::List(list)) => &list.kind,
            _ => &ListKind::Atomic,
        }
    }
}

fn items_of(of: &Type) -> &Type {
    match of {
        Type::List(list) => &list.items,
        _ => &DYN,
    }
}

impl<'a> Map<'a> {
    /// The value of a field or key, if it is there.
    pub(super) fn get(
        &self,
        key: &Key<'a>,
        budget: &mut Budget,
    ) -> Result<Option<Value<'a>>, Error> {
        match (self, key) {
            (Self::Values(map), key) => Ok(map.get(key).cloned()),
            (_, Key::String(key)) => self.field(key, budget),
            _ => Ok(None),
        }
    }

    pub(super) fn field(
        &self,
        name: &str,
        budget: &mut Budget,
    ) -> Result<Option<Value<'a>>, Error> {
        match self {
            Self::Json(map, of) => Ok(match of {
                Type::Object(object) => object.fields.get(name).and_then(|field| {
                    let value = map.get(&field.name)?;
                    // An object's field that is null is not there.
                    (!value.is_null()).then(|| Value::json(value, &field.of))
                }),
                Type::Map(_, values) => map.get(name).map(|value| Value::json(value, values)),
                _ => map.get(name).map(|value| Value::json(value, &DYN)),
            }),
            Self::Values(map) => Ok(map.get(&Key::String(Text::Shared(name.into()))).cloned()),
            Self::Lazy(fields) => fields.get(name, budget).transpose(),
        }
    }

    /// Keys and values in order; nothing for computed fields.
    pub(super) fn entries(&self) -> Vec<(Key<'a>, Value<'a>)> {
        match self {
            Self::Json(map, of) => map
                .iter()
                .map(|(key, value)| {
                    let of = match of {
                        Type::Map(_, values) => values,
                        Type::Object(object) => object
                            .fields
                            .values()
                            .find(|field| field.name == *key)
                            .map_or(&DYN, |field| &field.of),
                        _ => &DYN,
                    };
                    (Key::String(Text::Borrowed(key)), Value::json(value, of))
                })
                .collect(),
            Self::Values(map) => map.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            Self::Lazy(_) => Vec::new(),
        }
    }
}

/// Numbers are equal across their types; lists and maps by what they hold.
impl PartialEq for Value<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::String(a), Self::String(b)) => a == b,
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::Duration(a), Self::Duration(b)) => a == b,
            (Self::Timestamp(a), Self::Timestamp(b)) => a == b,
            (Self::Type(a), Self::Type(b)) => a == b,
            (Self::List(a), Self::List(b)) => equal_lists(a, b),
            (Self::Map(a), Self::Map(b)) => equal_maps(a, b),
            (Self::Optional(a), Self::Optional(b)) => a == b,
            (Self::Foreign(a), Self::Foreign(b)) => a.opaque_eq(b.as_ref()),
            (Self::Built(a), Self::Built(b)) => a.name == b.name && a.fields == b.fields,
            (a, b) => a.compare_numbers(b) == Some(Ordering::Equal),
        }
    }
}

fn equal_lists<'a>(a: &List<'a>, b: &List<'a>) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let kind = match a.kind() {
        ListKind::Atomic => b.kind(),
        kind => kind,
    };
    if *kind == ListKind::Atomic {
        return a.iter().zip(b.iter()).all(|(a, b)| a == b);
    }
    // Items are unique (or merge keys are), so that finding each of one in the other is enough.
    let others: Vec<Value<'_>> = b.iter().collect();
    a.iter().all(|item| others.contains(&item))
}

fn equal_maps<'a>(a: &Map<'a>, b: &Map<'a>) -> bool {
    if let (Map::Json(a, Type::Dyn), Map::Json(b, Type::Dyn)) = (a, b)
        && std::ptr::eq(*a, *b)
    {
        return true;
    }
    // Both are in the order of their keys.
    a.entries() == b.entries()
}

impl Value<'_> {
    /// The order of two numbers of any type.
    pub(super) fn compare_numbers(&self, other: &Self) -> Option<Ordering> {
        #[expect(clippy::cast_precision_loss, reason = "CEL compares so")]
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::Uint(a), Self::Uint(b)) => Some(a.cmp(b)),
            (Self::Double(a), Self::Double(b)) => a.partial_cmp(b),
            (Self::Int(a), Self::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Uint(a), Self::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Int(a), Self::Double(b)) => (*a as f64).partial_cmp(b),
            (Self::Double(a), Self::Int(b)) => a.partial_cmp(&(*b as f64)),
            (Self::Uint(a), Self::Double(b)) => (*a as f64).partial_cmp(b),
            (Self::Double(a), Self::Uint(b)) => a.partial_cmp(&(*b as f64)),
            _ => None,
        }
    }

    /// The order of two comparable values.
    pub(super) fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::String(a), Self::String(b)) => Some(a.cmp(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Self::Duration(b)) => Some(a.cmp(b)),
            (Self::Timestamp(a), Self::Timestamp(b)) => Some(a.cmp(b)),
            (a, b) => a.compare_numbers(b),
        }
    }
}
