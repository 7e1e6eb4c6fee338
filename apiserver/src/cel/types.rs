//! Types of expressions: what variables are declared as, what the compiler infers, and how JSON is read by a program.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value as Json;

use super::escape::escape;

#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// Anything; checked when the program runs.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    List(Arc<ListType>),
    Map(Arc<Type>, Arc<Type>),
    Object(Arc<ObjectType>),
    Optional(Arc<Type>),
    /// A type as a value: `type(x)`, `int`.
    Type,
    /// A type of a library, by its full name.
    Opaque(&'static str),
    /// Stands for any one type in the declaration of a function.
    Parameter(char),
}

#[derive(Clone, Debug, PartialEq)]
pub struct ListType {
    pub items: Type,
    /// Lists of these kinds are equal in any order.
    pub kind: ListKind,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum ListKind {
    #[default]
    Atomic,
    Set,
    Map(Vec<String>),
}

#[derive(Clone, Debug, Default)]
pub struct ObjectType {
    pub name: String,
    /// By the name that expressions use (see [`super::escape`]).
    pub fields: BTreeMap<String, Field>,
}

/// Names tell object types apart: those of one environment are declared once.
impl PartialEq for ObjectType {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.fields.len() == other.fields.len()
    }
}

#[derive(Clone, Debug)]
pub struct Field {
    /// The name in JSON.
    pub name: String,
    pub of: Type,
}

pub(super) static DYN: Type = Type::Dyn;

impl Type {
    #[must_use]
    pub fn list(items: Type) -> Self {
        Self::List(Arc::new(ListType {
            items,
            kind: ListKind::Atomic,
        }))
    }

    #[must_use]
    pub fn map(keys: Type, values: Type) -> Self {
        Self::Map(Arc::new(keys), Arc::new(values))
    }

    #[must_use]
    pub fn optional(of: Type) -> Self {
        Self::Optional(Arc::new(of))
    }

    /// An object type of fields that need no escaping.
    pub fn object<'a>(
        name: impl Into<String>,
        fields: impl IntoIterator<Item = (&'a str, Type)>,
    ) -> Self {
        let fields = fields.into_iter().filter_map(|(name, of)| {
            let escaped = escape(name)?;
            let name = name.to_owned();
            Some((escaped, Field { name, of }))
        });
        Self::Object(Arc::new(ObjectType {
            name: name.into(),
            fields: fields.collect(),
        }))
    }

    #[must_use]
    pub fn is_dyn(&self) -> bool {
        matches!(self, Self::Dyn | Self::Parameter(_))
    }

    /// The type of what an OpenAPI v3 schema describes, as Kubernetes declares it for validation rules. `None` when
    /// expressions may not see it. `root` adds what every resource has: apiVersion, kind and metadata.name.
    #[must_use]
    pub fn from_schema(schema: &Json, root: bool) -> Option<Self> {
        let flag = |name: &str| schema[name].as_bool().unwrap_or(false);
        let of = |schema: &Json| {
            let embedded = schema["x-kubernetes-embedded-resource"].as_bool();
            Self::from_schema(schema, embedded.unwrap_or(false))
        };
        if flag("x-kubernetes-int-or-string") {
            return Some(Self::Dyn);
        }
        match schema["type"].as_str()? {
            "array" => {
                let kind = match schema["x-kubernetes-list-type"].as_str() {
                    Some("set") => ListKind::Set,
                    Some("map") => ListKind::Map(
                        schema["x-kubernetes-list-map-keys"]
                            .as_array()
                            .into_iter()
                            .flatten()
                            .filter_map(|key| key.as_str().map(ToOwned::to_owned))
                            .collect(),
                    ),
                    _ => ListKind::Atomic,
                };
                let items = of(schema.get("items")?)?;
                Some(Self::List(Arc::new(ListType { items, kind })))
            }
            "object" => {
                if let Some(values) = schema
                    .get("additionalProperties")
                    .filter(|values| values.is_object())
                {
                    return Some(Self::map(Self::String, of(values)?));
                }
                let mut fields = BTreeMap::new();
                let properties = schema["properties"].as_object();
                for (name, property) in properties.into_iter().flatten() {
                    if let (Some(escaped), Some(of)) = (escape(name), of(property)) {
                        let name = name.clone();
                        fields.insert(escaped, Field { name, of });
                    }
                }
                if root {
                    add_root_fields(&mut fields);
                }
                let name = "object".to_owned();
                Some(Self::Object(Arc::new(ObjectType { name, fields })))
            }
            "string" => Some(match schema["format"].as_str() {
                Some("byte") => Self::Bytes,
                Some("duration") => Self::Duration,
                Some("date" | "date-time") => Self::Timestamp,
                _ => Self::String,
            }),
            "boolean" => Some(Self::Bool),
            "number" => Some(Self::Double),
            "integer" => Some(Self::Int),
            _ => None,
        }
    }

    /// Whether a value of `self` may stand where `wanted` is declared. Parameters of `wanted` are bound.
    pub(super) fn assignable(&self, wanted: &Type, bound: &mut Vec<(char, Type)>) -> bool {
        match (self, wanted) {
            (actual, Self::Parameter(name)) => {
                match bound.iter_mut().find(|(known, _)| known == name) {
                    Some((_, known)) if known.is_dyn() => {
                        *known = actual.clone();
                        true
                    }
                    Some((_, known)) => {
                        let known = known.clone();
                        actual.is_dyn() || actual.assignable(&known, &mut Vec::new())
                    }
                    None => {
                        bound.push((*name, actual.clone()));
                        true
                    }
                }
            }
            (Self::Dyn | Self::Parameter(_), _) | (_, Self::Dyn) => true,
            (Self::List(actual), Self::List(wanted)) => {
                actual.items.assignable(&wanted.items, bound)
            }
            (Self::Map(key, value), Self::Map(wanted_key, wanted_value)) => {
                key.assignable(wanted_key, bound) && value.assignable(wanted_value, bound)
            }
            (Self::Optional(actual), Self::Optional(wanted)) => actual.assignable(wanted, bound),
            // Objects, durations and the like may be null.
            (Self::Null, Self::Object(_) | Self::Duration | Self::Timestamp | Self::Opaque(_))
            | (Self::Object(_) | Self::Duration | Self::Timestamp | Self::Opaque(_), Self::Null) => {
                true
            }
            (actual, wanted) => actual == wanted,
        }
    }

    /// With parameters replaced by what they were bound to.
    pub(super) fn substitute(&self, bound: &[(char, Type)]) -> Type {
        match self {
            Self::Parameter(name) => bound.iter().find(|(known, _)| known == name).map_or(
                Self::Dyn,
                |(_, of)| match of {
                    Self::Parameter(_) => Self::Dyn,
                    of => of.clone(),
                },
            ),
            Self::List(list) => Self::list(list.items.substitute(bound)),
            Self::Map(key, value) => Self::map(key.substitute(bound), value.substitute(bound)),
            Self::Optional(of) => Self::optional(of.substitute(bound)),
            other => other.clone(),
        }
    }

    /// The common type of two, `Dyn` if there is none.
    pub(super) fn join(&self, other: &Type) -> Type {
        match (self, other) {
            (a, b) if a == b => a.clone(),
            (Self::Null, of) | (of, Self::Null) if of.assignable(&Self::Null, &mut Vec::new()) => {
                of.clone()
            }
            (Self::List(a), Self::List(b)) => Self::list(a.items.join(&b.items)),
            (Self::Map(ak, av), Self::Map(bk, bv)) => Self::map(ak.join(bk), av.join(bv)),
            (Self::Optional(a), Self::Optional(b)) => Self::optional(a.join(b)),
            _ => Self::Dyn,
        }
    }
}

fn add_root_fields(fields: &mut BTreeMap<String, Field>) {
    for name in ["apiVersion", "kind"] {
        fields.entry(name.to_owned()).or_insert(Field {
            name: name.to_owned(),
            of: Type::String,
        });
    }
    let mut metadata = match fields.remove("metadata").map(|field| field.of) {
        Some(Type::Object(object)) => object.fields.clone(),
        _ => BTreeMap::new(),
    };
    for name in ["name", "generateName"] {
        metadata.entry(name.to_owned()).or_insert(Field {
            name: name.to_owned(),
            of: Type::String,
        });
    }
    fields.insert(
        "metadata".to_owned(),
        Field {
            name: "metadata".to_owned(),
            of: Type::Object(Arc::new(ObjectType {
                name: "object".to_owned(),
                fields: metadata,
            })),
        },
    );
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn | Self::Parameter(_) => f.write_str("dyn"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Duration => f.write_str("duration"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::List(list) => write!(f, "list({})", list.items),
            Self::Map(key, value) => write!(f, "map({key}, {value})"),
            Self::Object(object) => f.write_str(&object.name),
            Self::Optional(of) => write!(f, "optional_type({of})"),
            Self::Type => f.write_str("type"),
            Self::Opaque(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn schemas_become_types() {
        let schema = json!({"type": "object", "properties": {
            "namespace": {"type": "string"},
            "a-b": {"type": "array", "items": {"type": "integer"}, "x-kubernetes-list-type": "set"},
            "port": {"x-kubernetes-int-or-string": true},
            "at": {"type": "string", "format": "date-time"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "hidden": {"x-kubernetes-preserve-unknown-fields": true},
        }});
        let Some(Type::Object(object)) = Type::from_schema(&schema, true) else {
            panic!("an object");
        };
        let of = |name: &str| object.fields.get(name).map(|field| field.of.to_string());
        for (name, wanted) in [
            ("__namespace__", Some("string")),
            ("a__dash__b", Some("list(int)")),
            ("port", Some("dyn")),
            ("at", Some("timestamp")),
            ("labels", Some("map(string, string)")),
            ("hidden", None),
            ("kind", Some("string")),
        ] {
            assert_eq!(of(name).as_deref(), wanted, "{name}");
        }
    }

    #[test]
    fn assignability() {
        let mut bound = Vec::new();
        assert!(Type::list(Type::Int).assignable(&Type::list(Type::Parameter('A')), &mut bound));
        assert!(Type::Int.assignable(&Type::Parameter('A'), &mut bound));
        assert!(!Type::String.assignable(&Type::Parameter('A'), &mut bound));
        assert_eq!(Type::Parameter('A').substitute(&bound), Type::Int);
        assert!(!Type::Int.assignable(&Type::String, &mut Vec::new()));
        assert!(Type::Dyn.assignable(&Type::String, &mut Vec::new()));
    }
}
