//! Values from the schemas of an OpenAPI document, and what breaks them.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use serde_json::{Map, Value, json};

const REFERENCE: &str = "#/components/schemas/";
/// Deeper objects are left empty.
const DEPTH: usize = 7;

/// The definitions that a document's schemas refer to.
pub struct Schemas<'a>(pub &'a Value);

impl<'a> Schemas<'a> {
    /// What a schema says once references are followed.
    pub fn resolve(&self, schema: &'a Value) -> &'a Value {
        let mut schema = schema;
        // A chain of references longer than this is a circle.
        for _ in 0..8 {
            let inner = match schema["allOf"].as_array().map(Vec::as_slice) {
                Some([one]) => one,
                _ => schema,
            };
            let Some(name) = inner["$ref"].as_str() else {
                return inner;
            };
            schema = &self.0[name.trim_start_matches(REFERENCE)];
        }
        schema
    }

    /// A value that a schema allows, or nearly so.
    pub fn value(&self, rng: &mut StdRng, schema: &'a Value, name: &str, depth: usize) -> Value {
        let schema = self.resolve(schema);
        if let Some(one) = schema["enum"].as_array().and_then(|all| all.choose(rng)) {
            return one.clone();
        }
        match schema["type"].as_str() {
            Some("object") => self.object(rng, schema, depth),
            Some("array") => {
                let count = if depth > DEPTH {
                    0
                } else {
                    rng.random_range(0..3)
                };
                let mut item = || self.value(rng, &schema["items"], name, depth + 1);
                (0..count).map(|_| item()).collect()
            }
            Some("boolean") => rng.random_bool(0.5).into(),
            Some("integer") => (*[0, 1, 2, 5, 80, 443, 8080].choose(rng).unwrap_or(&1)).into(),
            Some("number") => json!(rng.random_range(0..100) as f64 / 4.0),
            Some("string") => text(rng, schema["format"].as_str().unwrap_or_default(), name),
            _ if schema.get("oneOf").is_some() || schema.get("anyOf").is_some() => {
                either(rng).clone()
            }
            _ => json!({"any": "thing"}),
        }
    }

    fn object(&self, rng: &mut StdRng, schema: &'a Value, depth: usize) -> Value {
        let mut object = Map::new();
        let required = schema["required"].as_array();
        let chance = if depth == 0 {
            0.7
        } else {
            0.8 / (depth as f64 + 1.0)
        };
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let needed = required.is_some_and(|all| all.iter().any(|one| one == name));
            let skipped = depth > DEPTH
                || (depth == 0 && matches!(name.as_str(), "kind" | "apiVersion" | "metadata"));
            if !skipped && (needed || rng.random_bool(chance)) {
                object.insert(name.clone(), self.value(rng, property, name, depth + 1));
            }
        }
        let more = &schema["additionalProperties"];
        if more.is_object() && depth <= DEPTH {
            for key in ["a", "example.com/b"] {
                if rng.random_bool(0.5) {
                    object.insert(key.into(), self.value(rng, more, key, depth + 1));
                }
            }
        }
        Value::Object(object)
    }

    /// Adds something that the schema knows to an object, anywhere in it.
    pub fn graft(&self, rng: &mut StdRng, schema: &'a Value, target: &mut Value) {
        let mut schema = self.resolve(schema);
        let mut target = target;
        for depth in 0..DEPTH {
            while schema["type"] == "array" {
                let items = self.resolve(&schema["items"]);
                if target.as_array().is_none_or(Vec::is_empty) {
                    *target = json!([self.value(rng, items, "", depth)]);
                }
                schema = items;
                target = &mut target[0];
            }
            let properties = schema["properties"].as_object().into_iter().flatten();
            let known = properties
                .filter(|(name, _)| depth > 0 || !matches!(name.as_str(), "kind" | "apiVersion"));
            let Some((name, property)) = known.choose(rng) else {
                break;
            };
            if !target.is_object() {
                break;
            }
            let inner = self.resolve(property);
            let deeper = matches!(inner["type"].as_str(), Some("object" | "array"));
            if !deeper || rng.random_bool(0.25) {
                target[name] = self.value(rng, property, name, depth + 1);
                break;
            }
            if target[name].is_null() {
                target[name] = match inner["type"].as_str() {
                    Some("array") => json!([]),
                    _ => json!({}),
                };
            }
            schema = inner;
            target = &mut target[name];
        }
    }
}

fn either(rng: &mut StdRng) -> Value {
    [
        json!(1),
        json!("25%"),
        json!("http"),
        json!("100m"),
        json!("1Gi"),
        json!(-3),
    ]
    .choose(rng)
    .cloned()
    .unwrap_or_default()
}

fn text(rng: &mut StdRng, format: &str, name: &str) -> Value {
    let pick = |rng: &mut StdRng, all: &[&'static str]| *all.choose(rng).unwrap_or(&"x");
    match format {
        "date-time" => "2026-01-02T03:04:05Z".into(),
        "byte" => pick(rng, &["AAEC", "", "aGVsbG8="]).into(),
        _ => match name.to_ascii_lowercase().as_str() {
            n if n.ends_with("name") => pick(rng, &["seed", "other", "a.b"]).into(),
            n if n.contains("ip") && !n.contains("script") => {
                pick(rng, &["10.0.0.7", "::1", "10.96.0.0/16"]).into()
            }
            n if n.contains("cidr") => pick(rng, &["10.0.0.0/8", "fd00::/64"]).into(),
            n if n.contains("path") => pick(rng, &["/a", ".spec.x", "a/b", "spec"]).into(),
            n if n.contains("expression") => pick(
                rng,
                &[
                    "true",
                    "object.metadata.name == 'a'",
                    "1 / 0 > 1",
                    "self.x",
                    "[",
                ],
            )
            .into(),
            n if n.contains("url") || n.contains("uri") => {
                pick(rng, &["https://127.0.0.1:1/x", "http://a"]).into()
            }
            n if n.contains("version") => pick(rng, &["v1", "1", "v1beta1"]).into(),
            n if n.contains("selector") || n == "key" => {
                pick(rng, &["a=b", "a", "a in (b)"]).into()
            }
            n if n.contains("operator") => {
                pick(rng, &["In", "Exists", "DoesNotExist", "Gt", "Equal"]).into()
            }
            n if n.contains("policy") => pick(rng, &["Always", "Never", "Retain", "Ignore"]).into(),
            _ => pick(
                rng,
                &[
                    "seed", "1", "100m", "1Gi", "a", "TCP", "True", "image:1", "80",
                ],
            )
            .into(),
        },
    }
}

/// A value that belongs nowhere, or stands at an edge.
pub fn extreme(rng: &mut StdRng) -> Value {
    let deep = |opening: fn(Value) -> Value| (0..100).fold(json!(1), |inner, _| opening(inner));
    match rng.random_range(0..40) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(0),
        3 => json!(-1),
        4 => json!(2_147_483_648_u64),
        5 => json!(i64::MAX),
        6 => json!(u64::MAX),
        7 => json!(i64::MIN),
        8 => json!(1e308),
        9 => json!(-0.5),
        10 => json!(""),
        11 => json!(" "),
        12 => json!("\u{0}"),
        13 => json!("x".repeat(300)),
        14 => json!("\u{1f4a5}\u{301}"),
        15 => json!("../../etc"),
        16 => json!("-"),
        17 => json!("*"),
        18 => json!("0x10"),
        19 => json!("1e1000"),
        20 => json!("9223372036854775808Ei"),
        21 => json!("-1Ki"),
        22 => json!("9999-12-31T23:59:60Z"),
        23 => json!([]),
        24 => json!([null]),
        25 => json!([[[]]]),
        26 => json!({}),
        27 => json!({"": null}),
        28 => json!({"$patch": "delete"}),
        29 => json!({"name": {"name": []}}),
        30 => deep(|inner| json!([inner])),
        31 => deep(|inner| json!({"a": inner})),
        32 => json!("%s%n{}{0}"),
        33 => json!("(?P<a>[["),
        34 => json!("10.0.0.0/33"),
        35 => json!("system:masters"),
        36 => json!("\u{7f}\r\n\t"),
        37 => json!(["a", "a", "a"]),
        38 => json!([{}, {}, null, 1]),
        _ => json!("é".repeat(100)),
    }
}

/// Breaks something, anywhere in a value.
pub fn mutate(rng: &mut StdRng, value: &mut Value) {
    let mut target = value;
    loop {
        let inside = match target {
            Value::Object(fields) => fields.len(),
            Value::Array(items) => items.len(),
            _ => 0,
        };
        if inside == 0 || rng.random_bool(0.2) {
            break;
        }
        let nth = rng.random_range(0..inside);
        let next = match target {
            Value::Object(fields) => fields.values_mut().nth(nth),
            Value::Array(items) => items.get_mut(nth),
            _ => None,
        };
        let Some(next) = next else { return };
        target = next;
    }
    match (rng.random_range(0..4), &mut *target) {
        (0, Value::Object(fields)) => {
            fields.insert("bogus".into(), extreme(rng));
        }
        (1, Value::Object(fields)) => {
            let first = fields.keys().choose(rng).cloned();
            first.and_then(|name| fields.remove(&name));
        }
        (0, Value::Array(items)) => items.push(extreme(rng)),
        (1, Value::Array(items)) => {
            let copy = items.choose(rng).cloned();
            items.extend(copy);
        }
        _ => *target = extreme(rng),
    }
}
