//! How large the values of a schema can get: what estimates of costs start from.
//!
//! Where a schema sets no limit, a request's size does: so many of the smallest items fit into one.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::escape::escape;

/// The largest request that is taken.
const LARGEST: u64 = 3 * 1024 * 1024;

/// What a value is, as far as costs depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    /// Anything.
    #[default]
    Dyn,
    /// Of a fixed size.
    Scalar,
    /// Strings and bytes.
    Text,
    List,
    Map,
    Object,
    /// A type of a library.
    Other,
}

/// The limits of a value and of what is in it.
#[derive(Clone, Debug, Default)]
pub struct Extent {
    pub(super) kind: Kind,
    /// Bytes of a text, items of a list, entries of a map; 0 for everything else.
    pub(super) most: u64,
    /// The fewest bytes of JSON.
    least: u64,
    /// Of a list's items or a map's values.
    pub(super) inner: Option<Box<Extent>>,
    /// Of an object's fields, by the names that expressions use.
    pub(super) fields: BTreeMap<String, Extent>,
}

impl Extent {
    /// The limits of what a schema describes. `None` when expressions may not see it. `root` adds what every resource has.
    #[must_use]
    pub fn of(schema: &Json, root: bool) -> Option<Self> {
        let bound = |name: &str| schema[name].as_i64().map(|n| u64::try_from(n).unwrap_or(0));
        if schema["x-kubernetes-int-or-string"] == true {
            let most = bound("maxLength").map_or(LARGEST - 2, |length| length.saturating_mul(4));
            return Some(Self::simple(Kind::Dyn, most, 1));
        }
        match schema["type"].as_str()? {
            "array" => {
                let items = Self::inside(schema.get("items")?)?;
                let fit = (LARGEST - 2) / (items.least + 1);
                let most = bound("maxItems").unwrap_or(fit);
                Some(Self {
                    inner: Some(Box::new(items)),
                    ..Self::simple(Kind::List, most, 2)
                })
            }
            "object" => match schema.get("additionalProperties").filter(|v| v.is_object()) {
                Some(values) => {
                    let values = Self::inside(values)?;
                    // A key of two bytes, its quotes, colon and comma.
                    let fit = (LARGEST - 2) / (values.least + 6);
                    let most = bound("maxProperties").unwrap_or(fit);
                    Some(Self {
                        inner: Some(Box::new(values)),
                        ..Self::simple(Kind::Map, most, 2)
                    })
                }
                None => Some(Self::object(schema, root)),
            },
            "string" => Some(Self::text(schema, bound("maxLength"))),
            "boolean" => Some(Self::simple(Kind::Scalar, 0, 4)),
            "number" | "integer" => Some(Self::simple(Kind::Scalar, 0, 1)),
            _ => None,
        }
    }

    fn inside(schema: &Json) -> Option<Self> {
        Self::of(schema, schema["x-kubernetes-embedded-resource"] == true)
    }

    fn simple(kind: Kind, most: u64, least: u64) -> Self {
        Self {
            kind,
            most,
            least,
            ..Self::default()
        }
    }

    fn text(schema: &Json, length: Option<u64>) -> Self {
        let format = schema["format"].as_str();
        match format {
            Some("byte") => Self::simple(Kind::Text, length.unwrap_or(LARGEST - 2), 2),
            Some("duration") => Self::simple(Kind::Scalar, 32, 3),
            Some("date") => Self::simple(Kind::Scalar, 12, 12),
            Some("date-time") => Self::simple(Kind::Scalar, 32, 21),
            _ => {
                let choices = schema["enum"].as_array().filter(|all| !all.is_empty());
                let longest = choices.map(|all| {
                    let lengths = all.iter().filter_map(|one| one.as_str().map(str::len));
                    lengths.max().unwrap_or(0) as u64
                });
                // A character takes up to four bytes.
                let given = length.map(|length| length.saturating_mul(4));
                Self::simple(Kind::Text, given.or(longest).unwrap_or(LARGEST - 2), 2)
            }
        }
    }

    fn object(schema: &Json, root: bool) -> Self {
        let mut object = Self::simple(Kind::Object, 0, 2);
        let required = schema["required"].as_array();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let Some(field) = Self::inside(property) else {
                continue;
            };
            let must = required.is_some_and(|all| all.iter().any(|one| one == name));
            if must && property.get("default").is_none_or(Json::is_null) {
                object.least += name.len() as u64 + field.least + 4;
            }
            if let Some(name) = escape(name) {
                object.fields.insert(name, field);
            }
        }
        if root {
            object.add_root_fields();
        }
        object
    }

    fn add_root_fields(&mut self) {
        let text = || Self::simple(Kind::Text, LARGEST - 2, 2);
        for name in ["apiVersion", "kind"] {
            self.fields.entry(name.into()).or_insert_with(text);
        }
        let metadata = self.fields.entry("metadata".into()).or_default();
        metadata.kind = Kind::Object;
        for name in ["name", "generateName"] {
            metadata.fields.entry(name.into()).or_insert_with(text);
        }
    }

    /// How often a value as this one can stand in one object, where nothing else bounds it.
    #[must_use]
    pub fn cardinality(&self) -> u64 {
        LARGEST / (self.least + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn schemas_and_requests_bound_values() {
        let schema = json!({"type": "object", "required": ["a", "b"], "properties": {
            "a": {"type": "string", "maxLength": 10},
            "b": {"type": "string", "default": "x", "enum": ["x", "long"]},
            "list": {"type": "array", "items": {"type": "integer"}},
            "few": {"type": "array", "maxItems": 3, "items": {"type": "object"}},
            "map": {"type": "object", "additionalProperties": {"type": "boolean"}},
            "port": {"x-kubernetes-int-or-string": true},
            "open": {"x-kubernetes-preserve-unknown-fields": true},
        }});
        let extent = Extent::of(&schema, true).unwrap();
        let most = |name: &str| extent.fields.get(name).map(|field| field.most);
        for (name, wanted) in [
            ("a", Some(40)),
            ("b", Some(4)),
            ("list", Some((LARGEST - 2) / 2)),
            ("few", Some(3)),
            ("map", Some((LARGEST - 2) / 10)),
            ("port", Some(LARGEST - 2)),
            ("open", None),
            ("kind", Some(LARGEST - 2)),
        ] {
            assert_eq!(most(name), wanted, "{name}");
        }
        // {} and "a":"",
        assert_eq!(extent.least, 2 + 1 + 2 + 4);
        assert_eq!(extent.cardinality(), LARGEST / 10);
    }
}
