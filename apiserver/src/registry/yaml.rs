//! YAML bodies to documents, noticing keys that are given twice: the last one wins, and strict field validation reports
//! the others by their lines, as Kubernetes' YAML library does.

use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{DuplicateKeyPolicy, Spanned, options};

/// As many are reported.
const REPORTED: usize = 100;

/// The document, and `line N: key "K" already set in map` for every key that was set before.
pub fn decode(text: &str) -> Result<(Value, Vec<String>), String> {
    let options = options! { duplicate_keys: DuplicateKeyPolicy::PassThrough };
    let mut repeated = Vec::new();
    let value = serde_saphyr::with_deserializer_from_str_with_options(text, options, |reader| {
        Node(&mut repeated).deserialize(reader)
    })
    .map_err(|error| error.to_string())?;
    Ok((value, repeated))
}

struct Node<'a>(&'a mut Vec<String>);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
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
        while let Some(item) = items.next_element_seed(Node(self.0))? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            let line = key.referenced.line();
            let key = key.value;
            if map.contains_key(&key) && self.0.len() < REPORTED {
                let shown = apimachinery::field::quote(&key);
                self.0
                    .push(format!("line {line}: key {shown} already set in map"));
            }
            let value = entries.next_value_seed(Node(self.0))?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn repeated_keys_are_told_by_line() {
        let text = "a: 1\nb:\n- c: p\n  c: q\na: 2\n80: z\nn: null\nt: 2026-01-01T00:00:00Z\nm: |\n  two\n  lines\n";
        let (value, repeated) = decode(text).unwrap();
        assert_eq!(
            value,
            json!({"a": 2, "b": [{"c": "q"}], "80": "z", "n": null, "t": "2026-01-01T00:00:00Z", "m": "two\nlines\n"})
        );
        assert_eq!(
            repeated,
            [
                "line 4: key \"c\" already set in map",
                "line 5: key \"a\" already set in map"
            ]
        );
    }

    #[test]
    fn json_is_yaml() {
        let (value, repeated) =
            decode(r#"{"a": [1, 2.5, true, "x", {}], "a": {"b": -1}}"#).unwrap();
        assert_eq!(value, json!({"a": {"b": -1}}));
        assert_eq!(repeated.len(), 1);
    }

    #[test]
    fn what_is_no_document() {
        for bad in ["a: [", "a: b: c", "{", "a: *x"] {
            assert!(decode(bad).is_err(), "{bad}");
        }
        assert!(decode(&"[".repeat(100_000)).is_err());
    }
}
