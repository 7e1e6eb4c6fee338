//! What the walks over typed documents share: how a place merges, and what identifies an item of a list.

use serde_json::{Map, Value};

use super::set::{Element, write_key_element, write_value_element};
use crate::schema::{ListType, Shape};

/// A place in a document: its shape, or nothing when no schema describes it.
pub type Place<'a> = Option<Shape<'a>>;

/// How a value at a place is owned and merged.
#[derive(Clone, Copy)]
pub enum Form<'a> {
    /// As one value: a scalar, or anything atomic.
    Leaf,
    /// Field by field, or key by key.
    Fields,
    /// Item by item.
    Items(Shape<'a>, &'a ListType),
}

/// The form of a value; what a value of another type than the schema's says is for validation to refuse.
pub fn form<'a>(place: Place<'a>, value: &Value) -> Form<'a> {
    match value {
        Value::Object(_) => match place {
            Some(shape) if shape.is_atomic() || shape.scalar_name().is_some() => Form::Leaf,
            _ => Form::Fields,
        },
        Value::Array(_) => match place.and_then(|shape| Some((shape, shape.list_type()?))) {
            None | Some((_, ListType::Atomic)) => Form::Leaf,
            Some((shape, list)) => Form::Items(shape, list),
        },
        _ => Form::Leaf,
    }
}

pub fn field<'a>(place: Place<'a>, name: &str) -> Place<'a> {
    place.and_then(|shape| shape.field(name))
}

/// Whether the key is a field of a struct, not a key of a map.
pub fn is_listed(place: Place<'_>, name: &str) -> bool {
    place.is_some_and(|shape| shape.lists(name))
}

/// The element of a list's item, or why it has none.
pub fn item_element(shape: Shape<'_>, list: &ListType, item: &Value) -> Result<Element, String> {
    let mut text = String::with_capacity(64);
    write_item_element(&mut text, shape, list, item)?;
    Ok(text.into())
}

/// Appends the element of a list's item, or says why it has none.
pub fn write_item_element(
    text: &mut String,
    shape: Shape<'_>,
    list: &ListType,
    item: &Value,
) -> Result<(), String> {
    match list {
        ListType::Map(keys) => write_keyed(text, shape, keys, item),
        _ => match item {
            Value::Object(_) => {
                Err("associative list without keys has an element that's a map type".into())
            }
            Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
            Value::Null => {
                Err("associative list without keys has an element that's an explicit null".into())
            }
            scalar => match write_value_element(text, scalar) {
                true => Ok(()),
                false => Err("no scalar".into()),
            },
        },
    }
}

fn write_keyed(
    text: &mut String,
    shape: Shape<'_>,
    keys: &[crate::resource::Text],
    item: &Value,
) -> Result<(), String> {
    let fields = match item {
        Value::Object(fields) => fields,
        Value::Null => {
            return Err("associative list with keys may not have a null element".into());
        }
        _ => return Err("associative list with keys may not have non-map elements".into()),
    };
    let items = shape.items();
    if let [key] = keys
        && let Some(value) = fields.get(&**key)
    {
        write_key_element(text, [(&**key, value)]);
        return Ok(());
    }
    let mut found: Vec<(&str, &Value)> = Vec::with_capacity(keys.len());
    for key in keys {
        let default = || items.and_then(|items| items.default_of(key));
        if let Some(value) = fields.get(&**key).or_else(default) {
            found.push((key, value));
        }
    }
    if found.is_empty() {
        let keys: Vec<String> = keys.iter().map(|key| crate::field::quote(key)).collect();
        return Err(format!(
            "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values \
             for any key fields)",
            keys.join(" ")
        ));
    }
    found.sort_unstable_by_key(|(name, _)| *name);
    write_key_element(text, found);
    Ok(())
}

/// Equality as server-side apply has it: numbers are equal by their value.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        (Value::Array(x), Value::Array(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y))
        }
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|((k, x), (l, y))| k == l && same(x, y))
        }
        _ => a == b,
    }
}

/// The entries of two objects by key, in order.
pub fn zip<'a>(
    left: Option<&'a Map<String, Value>>,
    right: Option<&'a Map<String, Value>>,
) -> impl Iterator<Item = (&'a str, Option<&'a Value>, Option<&'a Value>)> {
    let mut left = left.into_iter().flatten().peekable();
    let mut right = right.into_iter().flatten().peekable();
    std::iter::from_fn(move || {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return None,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((l, _)), Some((r, _))) => l.cmp(r),
        };
        let l = if order.is_le() { left.next() } else { None };
        let r = if order.is_ge() { right.next() } else { None };
        let key = l.or(r)?.0;
        Some((key.as_str(), l.map(|(_, v)| v), r.map(|(_, v)| v)))
    })
}
