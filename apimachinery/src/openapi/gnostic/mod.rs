//! OpenAPI documents as protobuf: the messages of gnostic (`openapi.v2` and `openapi.v3`), which clients ask for where
//! reading JSON of this length takes too long.
//!
//! A document is made from its JSON text by the tables in [`v2`] and [`v3`]; no message has code of its own. The text is
//! walked where it lies, an object at a time, so that megabytes of it never become a tree.

mod v2;
mod v3;

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Error;
use serde_json::value::RawValue;

use crate::protobuf::wire;

/// A message of gnostic, as far as documents of Kubernetes fill it.
struct Message {
    /// Names in JSON, numbers, and what stands there.
    fields: &'static [(&'static str, u16, Kind)],
    /// The number of the field that lists what begins with `x-`; 0 if there is none.
    extensions: u16,
    /// For what has names that the document chose: the number of the field that lists them.
    rest: Option<(u16, Kind)>,
}

enum Kind {
    Text,
    Flag,
    Integer,
    Number,
    /// Any JSON, kept as YAML, which JSON is.
    Any,
    /// The default of a value in version 3: a number, a boolean or a string. Others leave it empty.
    Scalar,
    Message(&'static Message),
    OneOf(&'static [Choice]),
    /// The same, or a boolean in its place.
    OneOfOrFlag(&'static [Choice]),
    Repeated(&'static Kind),
    /// A message with nothing but a list, which in JSON may be one element without the list.
    Listed(&'static Kind),
}

/// One of several messages that may stand in a place.
struct Choice {
    /// It is this one when the object has the field, with this value unless that is empty.
    field: &'static str,
    value: &'static str,
    /// The fields, each in the one before it, that lead to the message.
    path: &'static [u16],
    message: &'static Message,
}

const fn otherwise(path: &'static [u16], message: &'static Message) -> Choice {
    when("", "", path, message)
}

const fn when(
    field: &'static str,
    value: &'static str,
    path: &'static [u16],
    message: &'static Message,
) -> Choice {
    Choice {
        field,
        value,
        path,
        message,
    }
}

/// A message that is a map from names to `kind`.
const fn map(kind: Kind) -> Message {
    Message {
        fields: &[],
        extensions: 0,
        rest: Some((1, kind)),
    }
}

/// A document of `/openapi/v2`, given its JSON text.
pub fn version_2(text: &str) -> Result<Vec<u8>, Error> {
    document(text, &v2::DOCUMENT)
}

/// A document below `/openapi/v3`, given its JSON text.
pub fn version_3(text: &str) -> Result<Vec<u8>, Error> {
    document(text, &v3::DOCUMENT)
}

fn document(text: &str, root: &Message) -> Result<Vec<u8>, Error> {
    let mut out = Vec::with_capacity(text.len() / 2);
    write_message(&mut out, root, &serde_json::from_str(text)?)?;
    out.shrink_to_fit();
    Ok(out)
}

/// The fields of an object, unread, in the order of the text.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl Fields<'_> {
    fn has(&self, choice: &Choice) -> bool {
        choice.field.is_empty()
            || self.0.iter().any(|(name, value)| {
                name == choice.field
                    && (choice.value.is_empty() || value.get().trim_matches('"') == choice.value)
            })
    }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(map.size_hint().unwrap_or(0));
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

fn write_message(out: &mut Vec<u8>, message: &Message, fields: &Fields) -> Result<(), Error> {
    for (name, value) in &fields.0 {
        let known = message.fields.iter().find(|(field, ..)| field == name);
        if let Some((_, number, kind)) = known {
            write(out, *number, kind, value)?;
        } else if name.starts_with("x-") && message.extensions > 0 {
            named(out, message.extensions, name, &Kind::Any, value)?;
        } else if let Some((number, kind)) = &message.rest {
            named(out, *number, name, kind, value)?;
        }
    }
    Ok(())
}

fn named(
    out: &mut Vec<u8>,
    number: u16,
    name: &str,
    kind: &Kind,
    value: &RawValue,
) -> Result<(), Error> {
    wire::nested(out, number, |out| {
        wire::text(out, 1, name);
        write(out, 2, kind, value)
    })
}

fn write(out: &mut Vec<u8>, number: u16, kind: &Kind, value: &RawValue) -> Result<(), Error> {
    let text = value.get();
    if text == "null" && !matches!(kind, Kind::Any | Kind::Scalar) {
        return Ok(());
    }
    match kind {
        Kind::Text => wire::text(out, number, &serde_json::from_str::<String>(text)?),
        Kind::Flag => wire::number(out, number, serde_json::from_str::<bool>(text)?.into()),
        Kind::Integer => {
            // A whole number may be written as a fraction.
            let value = match serde_json::from_str::<i64>(text) {
                Ok(value) => value,
                Err(_) => serde_json::from_str::<f64>(text)? as i64,
            };
            wire::number(out, number, value as u64);
        }
        Kind::Number => wire::double(out, number, serde_json::from_str(text)?),
        Kind::Any => {
            return wire::nested(out, number, |out| {
                wire::text(out, 2, text);
                Ok(())
            });
        }
        Kind::Scalar => return wire::nested(out, number, |out| scalar(out, value)),
        Kind::Message(message) => {
            let fields = serde_json::from_str(text)?;
            return wire::nested(out, number, |out| write_message(out, message, &fields));
        }
        Kind::OneOfOrFlag(_) if matches!(text, "true" | "false") => {
            return wire::nested(out, number, |out| write(out, 2, &Kind::Flag, value));
        }
        Kind::OneOf(choices) | Kind::OneOfOrFlag(choices) => {
            let fields: Fields = serde_json::from_str(text)?;
            if let Some(choice) = choices.iter().find(|choice| fields.has(choice)) {
                return wire::nested(out, number, |out| {
                    chosen(out, choice.path, choice.message, &fields)
                });
            }
        }
        Kind::Repeated(kind) => {
            for value in serde_json::from_str::<Vec<&RawValue>>(text)? {
                write(out, number, kind, value)?;
            }
        }
        Kind::Listed(kind) => {
            let list = Kind::Repeated(kind);
            let kind = if text.starts_with('[') { &list } else { *kind };
            return wire::nested(out, number, |out| write(out, 1, kind, value));
        }
    }
    Ok(())
}

fn chosen(
    out: &mut Vec<u8>,
    path: &[u16],
    message: &Message,
    fields: &Fields,
) -> Result<(), Error> {
    match path.split_first() {
        Some((number, path)) => {
            wire::nested(out, *number, |out| chosen(out, path, message, fields))
        }
        None => write_message(out, message, fields),
    }
}

fn scalar(out: &mut Vec<u8>, value: &RawValue) -> Result<(), Error> {
    match value.get().as_bytes().first() {
        Some(b't' | b'f') => write(out, 2, &Kind::Flag, value),
        Some(b'"') => write(out, 3, &Kind::Text, value),
        Some(b'{' | b'[' | b'n') | None => Ok(()),
        Some(_) => write(out, 1, &Kind::Number, value),
    }
}

#[cfg(test)]
mod tests;
