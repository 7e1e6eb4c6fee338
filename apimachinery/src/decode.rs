//! Text to a document, noticing fields that are given twice: the last one wins, as in Kubernetes, and strict field
//! validation reports the others.
//!
//! [`read`] does so for any format; what is said of a field that is there already is the business of its [`Key`].

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::schema::{Schema, Shape};

/// As many duplicates are reported, like Kubernetes does.
const REPORTED: usize = 100;
/// What one level of a document may take of the stack at most.
const ENOUGH_STACK: usize = 256 << 10;
const MORE_STACK: usize = 2 << 20;

/// A document as it was read.
#[derive(Debug)]
pub struct Decoded {
    pub value: Value,
    /// What there is to say of fields that occur more than once in the same object.
    pub duplicates: Vec<String>,
    /// How deep objects and lists nest: none of them is 0.
    pub levels: usize,
}

/// Reads one JSON document. Gives the paths of fields that occur more than once in the same object.
pub fn decode_json(bytes: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    decode_json_whole(bytes).map(|decoded| (decoded.value, decoded.duplicates))
}

/// The same, with how deep it nests.
pub fn decode_json_whole(bytes: &[u8]) -> Result<Decoded, serde_json::Error> {
    // To check all of it at once takes less than to check each string.
    match std::str::from_utf8(bytes) {
        Ok(text) => read_all(serde_json::Deserializer::from_str(text)),
        Err(_) => read_all(serde_json::Deserializer::from_slice(bytes)),
    }
}

fn read_all<'de, R: serde_json::de::Read<'de>>(
    mut reader: serde_json::Deserializer<R>,
) -> Result<Decoded, serde_json::Error> {
    let read = read::<String, _>(&mut reader)?;
    reader.end()?;
    Ok(read)
}

/// Reads a document.
pub fn read<'de, K: Key, D: serde::Deserializer<'de>>(reader: D) -> Result<Decoded, D::Error> {
    let mut state = State::default();
    let node = Node(&mut state, PhantomData::<K>);
    let value = node.deserialize(reader)?;
    Ok(Decoded {
        value,
        duplicates: state.told,
        levels: state.levels,
    })
}

/// The name of a field as a format gives it.
pub trait Key: DeserializeOwned {
    /// Whether the same is said only once.
    const ONCE: bool;

    fn name(&self) -> &str;

    fn into_name(self) -> String;

    /// What is said if the object, which is at this place, has it already.
    fn repeated(&self, at: &[Step]) -> String;
}

/// Of JSON: the path is told.
impl Key for String {
    const ONCE: bool = true;

    fn name(&self) -> &str {
        self
    }

    fn into_name(self) -> String {
        self
    }

    fn repeated(&self, at: &[Step]) -> String {
        joined(at, self)
    }
}

/// What strict validation says about a field that is given twice.
pub fn duplicate_field(path: &str) -> String {
    format!("duplicate field {}", crate::field::quote(path))
}

/// What strict validation says about a field that no schema knows.
pub fn unknown_field(path: &str) -> String {
    format!("unknown field {}", crate::field::quote(path))
}

/// What strict validation minds in a JSON document, in the order in which it stands there, as Go's decoder of typed
/// objects finds it: a field that is not known is not looked into, nor a duplicate.
pub fn strict_messages(bytes: &[u8], schema: &Schema) -> Vec<String> {
    let mut state = Strict {
        path: Vec::new(),
        messages: Vec::new(),
    };
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let place = Some(schema.shape());
    // It has been parsed before: what follows an error would not be seen there either.
    let _ = StrictNode {
        state: &mut state,
        place,
    }
    .deserialize(&mut reader);
    state.messages
}

struct Strict {
    path: Vec<Step>,
    messages: Vec<String>,
}

impl Strict {
    fn tell(&mut self, message: String) {
        if self.messages.len() < REPORTED && !self.messages.contains(&message) {
            self.messages.push(message);
        }
    }
}

/// A place in a typed document that is only looked at.
struct StrictNode<'a, 's> {
    state: &'a mut Strict,
    place: Option<Shape<'s>>,
}

impl<'de> DeserializeSeed<'de> for StrictNode<'_, '_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        match self.place.filter(|shape| !shape.is_any()) {
            Some(_) => reader.deserialize_any(self),
            None => serde::de::IgnoredAny::deserialize(reader).map(drop),
        }
    }
}

impl<'de> Visitor<'de> for StrictNode<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let place = self.place.and_then(Shape::items);
        self.state.path.push(Step::Index(0));
        let mut next = |state: &mut Strict| items.next_element_seed(StrictNode { state, place });
        while next(self.state)?.is_some() {
            if let Some(Step::Index(i)) = self.state.path.last_mut() {
                *i += 1;
            }
        }
        self.state.path.pop();
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut seen = std::collections::HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            let below = self.place.and_then(|shape| shape.field(&key));
            let known = below.is_some() || self.place.is_none_or(Shape::is_open);
            let state = &mut *self.state;
            if !known {
                let path = joined(&state.path, &key);
                state.tell(unknown_field(&path));
            } else if !seen.insert(key.clone()) {
                let path = joined(&state.path, &key);
                state.tell(duplicate_field(&path));
            }
            state.path.push(Step::Key(key));
            let place = below.filter(|_| known);
            entries.next_value_seed(StrictNode { state, place })?;
            self.state.path.pop();
        }
        Ok(())
    }
}

#[derive(Default)]
struct State {
    path: Vec<Step>,
    told: Vec<String>,
    levels: usize,
}

impl State {
    /// An object or list begins.
    fn enter(&mut self) {
        self.levels = self.levels.max(self.path.len() + 1);
    }
}

/// A step of the way into a document.
#[derive(Debug)]
pub enum Step {
    Key(String),
    Index(usize),
}

fn joined(steps: &[Step], key: &str) -> String {
    let mut path = String::new();
    for step in steps {
        match step {
            Step::Key(k) if path.is_empty() => path.push_str(k),
            Step::Key(k) => path = format!("{path}.{k}"),
            Step::Index(i) => path = format!("{path}[{i}]"),
        }
    }
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

struct Node<'a, K>(&'a mut State, PhantomData<K>);

impl<'de, K: Key> DeserializeSeed<'de> for Node<'_, K> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        // Formats bound how deep a document nests, but not how much stack a level takes, nor what is taken already.
        stacker::maybe_grow(ENOUGH_STACK, MORE_STACK, || reader.deserialize_any(self))
    }
}

impl<'de, K: Key> Visitor<'de> for Node<'_, K> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }

    fn visit_newtype_struct<D: serde::Deserializer<'de>>(
        self,
        reader: D,
    ) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        self.0.enter();
        self.0.path.push(Step::Index(0));
        while let Some(item) = items.next_element_seed(Node(self.0, self.1))? {
            list.push(item);
            if let Some(Step::Index(i)) = self.0.path.last_mut() {
                *i += 1;
            }
        }
        self.0.path.pop();
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        self.0.enter();
        while let Some(key) = entries.next_key::<K>()? {
            // Many objects have one or two fields: the first cannot be there.
            let repeated = !map.is_empty() && map.contains_key(key.name());
            if repeated && self.0.told.len() < REPORTED {
                let why = key.repeated(&self.0.path);
                if !K::ONCE || !self.0.told.contains(&why) {
                    self.0.told.push(why);
                }
            }
            self.0.path.push(Step::Key(key.into_name()));
            let value = entries.next_value_seed(Node(self.0, self.1))?;
            let Some(Step::Key(key)) = self.0.path.pop() else {
                return Err(A::Error::custom("the path of fields is out of step"));
            };
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_duplicates_where_they_are() {
        let text = br#"{"a": 1, "a": 2, "b": [{"c": 1}, {"c": 1, "c": {"d": 1, "d": 2}, "c": 3}]}"#;
        let (value, duplicates) = decode_json(text).unwrap();
        assert_eq!(duplicates, ["a", "b[1].c", "b[1].c.d"]);
        assert_eq!(
            value,
            serde_json::json!({"a": 2, "b": [{"c": 1}, {"c": 3}]})
        );
    }

    #[test]
    fn strict_messages_come_in_order() {
        let text = br#"{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "name": "b", "odd": 1,
            "labels": {"x": "y", "x": "z"}}, "spec": {"new": {"x": 1, "x": 2}, "new": 1, "paused": true, "paused": false,
            "template": {"spec": {"containers": [{"name": "a"}, {"image": "i", "imagee": "j", "image": "k"}]}}}}"#;
        let schema = Schema::builtin("apps", "v1", "Deployment").unwrap();
        let expect = [
            "duplicate field \"metadata.name\"",
            "unknown field \"metadata.odd\"",
            "duplicate field \"metadata.labels.x\"",
            "unknown field \"spec.new\"",
            "duplicate field \"spec.paused\"",
            "unknown field \"spec.template.spec.containers[1].imagee\"",
            "duplicate field \"spec.template.spec.containers[1].image\"",
        ];
        assert_eq!(strict_messages(text, &schema), expect);
    }

    #[test]
    fn refuses_what_is_not_one_document() {
        for bad in [
            "",
            "{",
            "{} {}",
            "{\"a\":}",
            "[1,]",
            "nul",
            "\u{feff}{}",
            "{\"a\": 1e999}",
        ] {
            assert!(decode_json(bad.as_bytes()).is_err(), "{bad}");
        }
        let deep = "[".repeat(100_000);
        assert!(decode_json(deep.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(bytes in proptest::collection::vec(prop_oneof![
            Just(b'{'), Just(b'}'), Just(b'['), Just(b']'), Just(b'"'), Just(b','), Just(b':'), Just(b'1'), Just(b'a'),
        ], 0..16)) {
            let ours = decode_json(&bytes).ok().map(|(v, _)| v);
            prop_assert_eq!(ours, serde_json::from_slice::<Value>(&bytes).ok());
        }
    }
}
