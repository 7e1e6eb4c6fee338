//! JSON bytes to a document, noticing fields that are given twice: the last one wins, as in Kubernetes, and strict
//! field validation reports the others.

use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// As many duplicates are reported, like Kubernetes does.
const REPORTED: usize = 100;

/// Reads one JSON document. Gives the paths of fields that occur more than once in the same object.
pub fn decode_json(bytes: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let mut state = State::default();
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Node(&mut state).deserialize(&mut reader)?;
    reader.end()?;
    Ok((value, state.duplicates))
}

/// Text of a strict decoding error, as Kubernetes words it, from duplicate and unknown fields.
pub fn strict_error(duplicates: &[String], unknown: &[String]) -> Option<String> {
    let all: Vec<String> = strict_warnings(duplicates, unknown);
    (!all.is_empty()).then(|| format!("strict decoding error: {}", all.join(", ")))
}

/// The same as single messages, for warnings.
pub fn strict_warnings(duplicates: &[String], unknown: &[String]) -> Vec<String> {
    let duplicates = duplicates
        .iter()
        .map(|f| format!("duplicate field {}", crate::field::quote(f)));
    let unknown = unknown
        .iter()
        .map(|f| format!("unknown field {}", crate::field::quote(f)));
    duplicates.chain(unknown).collect()
}

#[derive(Default)]
struct State {
    path: Vec<Step>,
    duplicates: Vec<String>,
}

enum Step {
    Key(String),
    Index(usize),
}

impl State {
    fn report(&mut self, key: &str) {
        let mut path = String::new();
        for step in &self.path {
            match step {
                Step::Key(k) if path.is_empty() => path.push_str(k),
                Step::Key(k) => path = format!("{path}.{k}"),
                Step::Index(i) => path = format!("{path}[{i}]"),
            }
        }
        let path = if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        };
        if self.duplicates.len() < REPORTED && !self.duplicates.contains(&path) {
            self.duplicates.push(path);
        }
    }
}

struct Node<'a>(&'a mut State);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
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

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        self.0.path.push(Step::Index(0));
        while let Some(item) = items.next_element_seed(Node(self.0))? {
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
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                self.0.report(&key);
            }
            self.0.path.push(Step::Key(key));
            let value = entries.next_value_seed(Node(self.0))?;
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
        let text = strict_error(&duplicates[..1], &["x".into()]).unwrap();
        assert_eq!(
            text,
            "strict decoding error: duplicate field \"a\", unknown field \"x\""
        );
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
