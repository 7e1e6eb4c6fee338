//! JSON to messages.

use super::node::{self, Node};
use super::table::{self, Field, Item, MessageId, Shape};
use super::{Error, scalar, wire};

/// What a field holds that is not given, or null.
const NULL: Node<'static> = Node::Null;

pub fn message(id: MessageId, json: &[u8]) -> Result<Vec<u8>, Error> {
    node(id, &node::parse(json)?)
}

pub fn node(id: MessageId, document: &Node<'_>) -> Result<Vec<u8>, Error> {
    // Numbers and names are most of JSON; without them it is about this much.
    let mut out = Vec::with_capacity(512);
    fields(&mut out, id, document)?;
    Ok(out)
}

fn fields(out: &mut Vec<u8>, id: MessageId, object: &Node<'_>) -> Result<(), Error> {
    for field in table::get().fields(id) {
        if field.inline {
            if let Item::Message(inner) = field.item {
                wire::nested(out, field.number, |out| fields(out, inner, object))?;
            }
            continue;
        }
        let value = object.get(field.name).unwrap_or(&NULL);
        if *value == Node::Null && (field.pointer || field.shape != Shape::One) {
            continue;
        }
        match field.shape {
            Shape::One => one(out, field, field.number, value),
            Shape::List => list(out, field, field.number, value),
            Shape::Wrapped => wire::nested(out, field.number, |out| list(out, field, 1, value)),
            Shape::Map | Shape::MapOfWrapped => map(out, field, value),
        }
        .map_err(|error| within(error, field.name))?;
    }
    Ok(())
}

/// The error with the name of the field that it happened in.
fn within(error: Error, name: &str) -> Error {
    match error {
        Error::Field { field, why } if field.is_empty() => Error::Field {
            field: name.to_owned(),
            why,
        },
        Error::Field { field, why } => Error::Field {
            field: format!("{name}.{field}"),
            why,
        },
        other => other,
    }
}

fn unfit(wanted: &str) -> Error {
    Error::Field {
        field: String::new(),
        why: format!("{wanted} expected"),
    }
}

fn list(out: &mut Vec<u8>, field: &Field, number: u16, value: &Node<'_>) -> Result<(), Error> {
    let Node::List(items) = value else {
        return if *value == Node::Null {
            Ok(())
        } else {
            Err(unfit("list"))
        };
    };
    items
        .iter()
        .try_for_each(|item| one(out, field, number, item))
}

fn map(out: &mut Vec<u8>, field: &Field, value: &Node<'_>) -> Result<(), Error> {
    let Node::Map(entries) = value else {
        return Err(unfit("map"));
    };
    let mut sorted: Vec<_> = entries.iter().collect();
    sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (key, value) in sorted {
        wire::nested(out, field.number, |out| {
            wire::text(out, 1, key);
            if field.shape == Shape::MapOfWrapped {
                return wire::nested(out, 2, |out| list(out, field, 1, value));
            }
            one(out, field, 2, value)
        })?;
    }
    Ok(())
}

/// One value under a field number. Null is the zero of its type.
fn one(out: &mut Vec<u8>, field: &Field, number: u16, value: &Node<'_>) -> Result<(), Error> {
    match field.item {
        Item::String => match value {
            Node::Text(text) => wire::text(out, number, text),
            Node::Null => wire::text(out, number, ""),
            _ => return Err(unfit("string")),
        },
        Item::Bool => match value {
            Node::Bool(flag) => wire::number(out, number, u64::from(*flag)),
            Node::Null => wire::number(out, number, 0),
            _ => return Err(unfit("bool")),
        },
        Item::Int32 | Item::Int64 => match value {
            // Negative numbers take all of the 64 bits, whatever their type.
            Node::Int(integer) => wire::number(out, number, *integer as u64),
            Node::Null => wire::number(out, number, 0),
            _ => return Err(unfit("integer")),
        },
        Item::Double => {
            let double = match value {
                Node::Float(double) => *double,
                Node::Int(integer) => *integer as f64,
                Node::Uint(integer) => *integer as f64,
                Node::Null => 0.0,
                _ => return Err(unfit("number")),
            };
            wire::double(out, number, double);
        }
        Item::Bytes => match value {
            Node::Text(text) => {
                let decoded = scalar::read_base64(text).ok_or_else(|| unfit("base64"))?;
                wire::bytes(out, number, &decoded);
            }
            Node::Null => {}
            _ => return Err(unfit("base64")),
        },
        Item::Raw => match value {
            Node::Null => wire::bytes(out, number, &[]),
            other => {
                let json = other.json();
                return wire::nested(out, number, |out| {
                    wire::bytes(out, 1, &json);
                    Ok(())
                });
            }
        },
        Item::Message(id) => return submessage(out, number, id, value),
        Item::SchemaOrList(_) | Item::SchemaOrBool(_) | Item::SchemaOrStrings(_) => {
            return wire::nested(out, number, |out| schema(out, field.item, value));
        }
        _ => return wire::nested(out, number, |out| special(out, field.item, value)),
    }
    Ok(())
}

fn submessage(
    out: &mut Vec<u8>,
    number: u16,
    id: MessageId,
    value: &Node<'_>,
) -> Result<(), Error> {
    match value {
        Node::Map(_) | Node::Null => wire::nested(out, number, |out| fields(out, id, value)),
        _ => Err(unfit("object")),
    }
}

/// The types that are messages in protobuf and scalars in JSON.
fn special(out: &mut Vec<u8>, item: Item, value: &Node<'_>) -> Result<(), Error> {
    let text = value.text();
    match item {
        Item::Time | Item::MicroTime => {
            if *value == Node::Null {
                return Ok(());
            }
            let time = text.and_then(scalar::read_time);
            let (seconds, nanos) = time.ok_or_else(|| unfit("time"))?;
            wire::number(out, 1, seconds as u64);
            // A Time has no fraction; a MicroTime none below the microsecond.
            let nanos = if item == Item::Time {
                0
            } else {
                nanos / 1000 * 1000
            };
            wire::number(out, 2, nanos as u64);
        }
        Item::Duration => {
            let nanos = match text {
                None if *value == Node::Null => Some(0),
                text => text.and_then(scalar::read_duration),
            };
            wire::number(out, 1, nanos.ok_or_else(|| unfit("duration"))? as u64);
        }
        Item::Quantity => match value {
            Node::Text(text) => wire::text(out, 1, text),
            Node::Int(amount) => wire::text(out, 1, &amount.to_string()),
            Node::Float(amount) => wire::text(out, 1, &amount.to_string()),
            Node::Null => wire::text(out, 1, "0"),
            _ => return Err(unfit("quantity")),
        },
        _ => {
            let (kind, integer, text) = match value {
                Node::Int(integer) => (0, *integer, ""),
                Node::Text(text) => (1, 0, &**text),
                Node::Null => (0, 0, ""),
                _ => return Err(unfit("integer or string")),
            };
            wire::number(out, 1, kind);
            wire::number(out, 2, integer as u64);
            wire::text(out, 3, text);
        }
    }
    Ok(())
}

fn schema(out: &mut Vec<u8>, item: Item, value: &Node<'_>) -> Result<(), Error> {
    match (item, value) {
        (Item::SchemaOrBool(id), _) => {
            let allows = matches!(value, Node::Map(_) | Node::Bool(true));
            wire::number(out, 1, u64::from(allows));
            match value {
                Node::Map(_) => submessage(out, 2, id, value),
                Node::Bool(_) | Node::Null => Ok(()),
                _ => Err(unfit("schema or bool")),
            }
        }
        (Item::SchemaOrList(id) | Item::SchemaOrStrings(id), Node::Map(_)) => {
            submessage(out, 1, id, value)
        }
        (Item::SchemaOrList(id), Node::List(items)) => items
            .iter()
            .try_for_each(|item| submessage(out, 2, id, item)),
        (Item::SchemaOrStrings(_), Node::List(items)) => items.iter().try_for_each(|item| {
            wire::text(out, 2, item.text().ok_or_else(|| unfit("string"))?);
            Ok(())
        }),
        (_, Node::Null) => Ok(()),
        _ => Err(unfit("schema or list")),
    }
}
