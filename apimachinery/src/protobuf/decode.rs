//! Messages to the JSON that Go writes for them.

use serde_json::{Map, Number, Value};

use super::table::{self, Field, Item, MessageId, Shape};
use super::wire::{Reader, Value as Wire};
use super::{Error, MAX_DEPTH, scalar};

/// At most so many values come out of one message. Two bytes are enough to ask for an empty struct, whose JSON is many
/// times as large; no object comes near this.
const MAX_VALUES: usize = 2_000_000;

pub fn message(id: MessageId, bytes: &[u8]) -> Result<Map<String, Value>, Error> {
    message_within(id, bytes, MAX_DEPTH)
}

/// `depth` is how deep the JSON may nest.
pub fn message_within(
    id: MessageId,
    bytes: &[u8],
    depth: usize,
) -> Result<Map<String, Value>, Error> {
    Decoder { left: MAX_VALUES }.message(id, bytes, depth)
}

struct Decoder {
    /// How many values may still be made.
    left: usize,
}

impl Decoder {
    fn spend(&mut self, values: usize) -> Result<(), Error> {
        self.left = self.left.checked_sub(values).ok_or(Error::TooLarge)?;
        Ok(())
    }

    fn message(
        &mut self,
        id: MessageId,
        bytes: &[u8],
        depth: usize,
    ) -> Result<Map<String, Value>, Error> {
        let depth = depth.checked_sub(1).ok_or(Error::TooDeep)?;
        let fields = table::get().fields(id);
        let mut slots: Vec<Option<Value>> = vec![None; fields.len()];
        let mut reader = Reader::new(bytes);
        while let Some((number, value)) = reader.field()? {
            let found = fields.binary_search_by_key(&number, |f| u32::from(f.number));
            if let Ok(index) = found {
                let field = &fields[index];
                self.take(field, &mut slots[index], value, depth)
                    .map_err(|error| within(error, field.name))?;
            }
        }
        self.spend(fields.len())?;
        let mut object = Map::new();
        for (field, slot) in fields.iter().zip(slots) {
            self.put(field, slot, &mut object, depth)?;
        }
        Ok(object)
    }

    /// Reads one occurrence of a field.
    fn take(
        &mut self,
        field: &Field,
        slot: &mut Option<Value>,
        value: Wire<'_>,
        depth: usize,
    ) -> Result<(), Error> {
        match field.shape {
            // What is inline nests no deeper.
            Shape::One if field.inline => *slot = Some(self.item(field, value, depth + 1)?),
            Shape::One => *slot = Some(self.item(field, value, depth)?),
            Shape::List => {
                let Value::Array(list) = slot.get_or_insert_with(|| Value::Array(Vec::new()))
                else {
                    return Ok(());
                };
                self.items(field, value, list, depth)?;
            }
            Shape::Wrapped => {
                *slot = Some(self.wrapped(field, bytes(field, value)?, depth)?);
            }
            Shape::Map | Shape::MapOfWrapped => {
                let Value::Object(map) = slot.get_or_insert_with(|| Value::Object(Map::new()))
                else {
                    return Ok(());
                };
                let (key, value) = self.entry(field, bytes(field, value)?, depth)?;
                map.insert(key, value);
            }
        }
        Ok(())
    }

    fn items(
        &mut self,
        field: &Field,
        value: Wire<'_>,
        list: &mut Vec<Value>,
        depth: usize,
    ) -> Result<(), Error> {
        let depth = depth.checked_sub(1).ok_or(Error::TooDeep)?;
        let numeric = matches!(
            field.item,
            Item::Bool | Item::Int32 | Item::Int64 | Item::Double
        );
        if let (true, Wire::Bytes(packed)) = (numeric, value) {
            let mut reader = Reader::new(packed);
            while !reader.is_empty() {
                let value = match field.item {
                    Item::Double => Wire::Fixed64(reader.fixed64()?),
                    _ => Wire::Varint(reader.varint()?),
                };
                list.push(self.item(field, value, depth)?);
            }
            return Ok(());
        }
        list.push(self.item(field, value, depth)?);
        Ok(())
    }

    fn wrapped(&mut self, field: &Field, message: &[u8], depth: usize) -> Result<Value, Error> {
        let mut list = Vec::new();
        let mut reader = Reader::new(message);
        while let Some((number, value)) = reader.field()? {
            if number == 1 {
                self.items(field, value, &mut list, depth)?;
            }
        }
        Ok(list.into())
    }

    fn entry(
        &mut self,
        field: &Field,
        entry: &[u8],
        depth: usize,
    ) -> Result<(String, Value), Error> {
        let depth = depth.checked_sub(1).ok_or(Error::TooDeep)?;
        let (mut key, mut found) = (String::new(), None);
        let mut reader = Reader::new(entry);
        while let Some((number, value)) = reader.field()? {
            match number {
                1 => key = text(bytes(field, value)?),
                2 => found = Some(value),
                _ => {}
            }
        }
        let value = match (field.shape, found) {
            (Shape::MapOfWrapped, found) => {
                let message = found.map_or(Ok(&[][..]), |value| bytes(field, value))?;
                self.wrapped(field, message, depth)?
            }
            (_, Some(value)) => self.item(field, value, depth)?,
            (_, None) => self.zero(field, depth)?,
        };
        Ok((key, value))
    }

    /// One value of the field's type.
    fn item(&mut self, field: &Field, value: Wire<'_>, depth: usize) -> Result<Value, Error> {
        self.spend(1)?;
        Ok(match (field.item, value) {
            (Item::Bool, Wire::Varint(n)) => Value::Bool(n != 0),
            (Item::Int32, Wire::Varint(n)) => (n as i32).into(),
            (Item::Int64, Wire::Varint(n)) => (n as i64).into(),
            (Item::Double, Wire::Fixed64(bits)) => double(f64::from_bits(bits))?,
            (Item::String, Wire::Bytes(bytes)) => text(bytes).into(),
            (Item::Bytes, Wire::Bytes(bytes)) => scalar::write_base64(bytes).into(),
            (Item::Message(id), Wire::Bytes(bytes)) => self.message(id, bytes, depth)?.into(),
            (Item::Raw, Wire::Bytes(bytes)) => raw(bytes, depth)?,
            (
                Item::SchemaOrList(id) | Item::SchemaOrBool(id) | Item::SchemaOrStrings(id),
                Wire::Bytes(bytes),
            ) => self.schema(field.item, id, bytes, depth)?,
            (
                Item::Time | Item::MicroTime | Item::Duration | Item::Quantity | Item::IntOrString,
                Wire::Bytes(bytes),
            ) => special(field.item, bytes)?,
            (_, other) => {
                return Err(Error::WireType {
                    field: String::new(),
                    wire: other.wire_type(),
                });
            }
        })
    }

    fn schema(
        &mut self,
        item: Item,
        id: MessageId,
        message: &[u8],
        depth: usize,
    ) -> Result<Value, Error> {
        let (mut schema, mut allows, mut list) = (None, false, Vec::<Value>::new());
        let below = depth.saturating_sub(1);
        let mut reader = Reader::new(message);
        while let Some((number, value)) = reader.field()? {
            match (item, number, value) {
                (Item::SchemaOrBool(_), 1, Wire::Varint(n)) => allows = n != 0,
                (Item::SchemaOrBool(_), 2, Wire::Bytes(bytes))
                | (Item::SchemaOrList(_) | Item::SchemaOrStrings(_), 1, Wire::Bytes(bytes)) => {
                    schema = Some(self.message(id, bytes, depth)?);
                }
                (Item::SchemaOrList(_), 2, Wire::Bytes(bytes)) => {
                    list.push(self.message(id, bytes, below)?.into());
                }
                (Item::SchemaOrStrings(_), 2, Wire::Bytes(bytes)) => {
                    self.spend(1)?;
                    list.push(text(bytes).into());
                }
                _ => {}
            }
        }
        Ok(match (schema, item) {
            _ if !list.is_empty() => list.into(),
            (Some(schema), _) => schema.into(),
            (None, Item::SchemaOrBool(_)) => allows.into(),
            _ => Value::Null,
        })
    }

    /// What Go has for a field that was not sent.
    fn zero(&mut self, field: &Field, depth: usize) -> Result<Value, Error> {
        Ok(match field.item {
            Item::String => "".into(),
            Item::Bool => false.into(),
            Item::Int32 | Item::Int64 | Item::Double | Item::IntOrString => 0.into(),
            Item::Quantity => "0".into(),
            Item::Duration => "0s".into(),
            Item::Message(id) => self.message(id, &[], depth)?.into(),
            _ => Value::Null,
        })
    }

    /// Puts a field into the object, if Go would.
    fn put(
        &mut self,
        field: &Field,
        slot: Option<Value>,
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), Error> {
        if field.inline {
            let inner = match (slot, field.item) {
                (Some(Value::Object(inner)), _) => inner,
                (_, Item::Message(id)) => self.message(id, &[], depth + 1)?,
                _ => return Ok(()),
            };
            object.extend(inner);
            return Ok(());
        }
        let nil = field.pointer || field.shape != Shape::One;
        let value = match slot {
            None if field.omit_zero || (nil && field.omit_empty) => return Ok(()),
            None if nil => Value::Null,
            None if field.omit_empty && is_scalar(field.item) => return Ok(()),
            None => self.zero(field, depth)?,
            Some(value)
                if !field.pointer
                    && field.omit_empty
                    && (field.shape != Shape::One || is_scalar(field.item))
                    && is_empty(&value) =>
            {
                return Ok(());
            }
            Some(Value::Null) if field.omit_zero => return Ok(()),
            Some(value) => value,
        };
        object.insert(field.name.to_owned(), value);
        Ok(())
    }
}

/// Whether `omitempty` has an effect on a single value of this type: on structs it has none.
fn is_scalar(item: Item) -> bool {
    matches!(
        item,
        Item::String | Item::Bool | Item::Int32 | Item::Int64 | Item::Double | Item::Bytes
    )
}

/// What `omitempty` leaves out. Structs are objects here, but never empty lists or strings.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Bool(flag) => !flag,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Null | Value::Object(_) => false,
    }
}

fn within(error: Error, name: &str) -> Error {
    let path = |field: String| match field.is_empty() {
        true => name.to_owned(),
        false => format!("{name}.{field}"),
    };
    match error {
        Error::WireType { field, wire } => Error::WireType {
            field: path(field),
            wire,
        },
        Error::Field { field, why } => Error::Field {
            field: path(field),
            why,
        },
        other => other,
    }
}

fn invalid(why: &str) -> Error {
    Error::Field {
        field: String::new(),
        why: why.to_owned(),
    }
}

fn bytes<'a>(field: &Field, value: Wire<'a>) -> Result<&'a [u8], Error> {
    match value {
        Wire::Bytes(bytes) => Ok(bytes),
        other => Err(Error::WireType {
            field: field.name.to_owned(),
            wire: other.wire_type(),
        }),
    }
}

/// Go's JSON writer replaces what is not UTF-8.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whole numbers are written without a fraction.
fn double(value: f64) -> Result<Value, Error> {
    if value.fract() == 0.0 && value.abs() < 9e15 {
        return Ok((value as i64).into());
    }
    let number = Number::from_f64(value).ok_or_else(|| invalid("unsupported value"))?;
    Ok(Value::Number(number))
}

/// JSON in a message of its own; a whole document in protobuf is taken too.
fn raw(message: &[u8], depth: usize) -> Result<Value, Error> {
    let mut found: &[u8] = &[];
    let mut reader = Reader::new(message);
    while let Some((number, value)) = reader.field()? {
        if let (1, Wire::Bytes(bytes)) = (number, value) {
            found = bytes;
        }
    }
    if found.is_empty() {
        return Ok(Value::Null);
    }
    if super::has_magic(found) {
        return super::to_json_within(found, ("", ""), depth);
    }
    let value: Value = serde_json::from_slice(found).map_err(|e| invalid(&e.to_string()))?;
    if nesting(&value) > depth {
        Err(Error::TooDeep)
    } else {
        Ok(value)
    }
}

/// How deep a value nests. The reader that made it has a limit of its own.
fn nesting(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(nesting).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(nesting).max().unwrap_or(0),
        _ => 0,
    }
}

/// The types that are messages in protobuf and scalars in JSON.
fn special(item: Item, message: &[u8]) -> Result<Value, Error> {
    let (mut first, mut second, mut string) = (0_u64, 0_u64, String::new());
    let mut reader = Reader::new(message);
    while let Some((number, value)) = reader.field()? {
        match (number, value) {
            (1, Wire::Varint(n)) => first = n,
            (2, Wire::Varint(n)) => second = n,
            (1 | 3, Wire::Bytes(bytes)) => string = text(bytes),
            _ => {}
        }
    }
    let no_time = || invalid("year outside of range [0,9999]");
    Ok(match item {
        Item::Time | Item::MicroTime if message.is_empty() => Value::Null,
        Item::Time => scalar::write_time(first as i64).ok_or_else(no_time)?.into(),
        Item::MicroTime => {
            let text = scalar::write_micro_time(first as i64, second as i32);
            text.ok_or_else(no_time)?.into()
        }
        Item::Duration => scalar::write_duration(first as i64).into(),
        Item::Quantity if string.is_empty() => "0".into(),
        Item::Quantity => string.into(),
        _ if first as i64 == 1 => string.into(),
        _ => (second as i32).into(),
    })
}
