//! What is done with arbitrary bytes, one function for each parser that takes them from outside. None may panic, hang or
//! break what it promises.
//!
//! The programs in `fuzz_targets/` call these under libFuzzer.

use std::sync::LazyLock;

use apimachinery::decode::decode_json;
use apimachinery::managed::{Apply, Entry, OneVersion, Operation, Reach, Set};
use apimachinery::patch::{json_patch, merge_patch, strategic_merge};
use apimachinery::protobuf;
use apimachinery::quantity::Quantity;
use apimachinery::resource::{Resource, builtin};
use apimachinery::selector::{FieldSelector, LabelSelector};
use apiserver::cel::{Bindings, Budget, Environment, Extent, Program, Type, Value as Cel};
use apiserver::query::Query;
use apiserver::registry::decode::{self, FieldValidation, Media};
use apiserver::request::RequestInfo;
use serde_json::{Value, json};

type Target = fn(&[u8]);

/// All of them by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("json", json_body),
    ("yaml", yaml_body),
    ("protobuf", protobuf_body),
    ("json_patch", json_patches),
    ("merge_patch", merge_patches),
    ("strategic_merge", strategic_merges),
    ("apply", applies),
    ("label_selector", label_selectors),
    ("field_selector", field_selectors),
    ("quantity", quantities),
    ("cel", expressions),
    ("token", tokens),
    ("review", reviews),
    ("request", requests),
    ("stored", stored),
];

/// The kind whose plural the first line is, any one otherwise; and the rest.
fn kind(bytes: &[u8]) -> Option<(&'static Resource, &[u8])> {
    let at = bytes.iter().position(|byte| *byte == b'\n')?;
    let (line, rest) = (&bytes[..at], &bytes[at + 1..]);
    let all = builtin();
    let named = all.iter().find(|r| r.plural.as_bytes() == line);
    let sum: usize = line.iter().map(|byte| usize::from(*byte)).sum();
    Some((named.unwrap_or(&all[sum % all.len()]), rest))
}

/// Two documents with a zero byte between them, which no JSON text has.
fn two(bytes: &[u8]) -> Option<(Value, Value)> {
    let at = bytes.iter().position(|byte| *byte == 0)?;
    let read = |bytes: &[u8]| decode_json(bytes).ok().map(|(value, _)| value);
    Some((read(&bytes[..at])?, read(&bytes[at + 1..])?))
}

fn body(resource: &Resource, bytes: &[u8], media: Media) {
    for validation in [FieldValidation::Strict, FieldValidation::Ignore] {
        let decoded = decode::decode(resource, bytes, media, validation, &mut Vec::new());
        let Ok(mut object) = decoded else { continue };
        resource.schema.apply_defaults(&mut object);
        // What has been decoded once is sound: it is taken as it stands.
        let again = resource.schema.conform(&mut object.clone());
        assert_eq!(again, Ok(()), "{object}");
        let unknown = resource.schema.prune(&mut object.clone());
        assert!(unknown.is_empty(), "{unknown:?} in {object}");
        let stored = apiserver::codec::encode(&object);
        assert!(apiserver::codec::serve(&stored, 7).is_some());
    }
}

fn json_body(bytes: &[u8]) {
    let Some((resource, text)) = kind(bytes) else {
        return;
    };
    let ours = decode_json(text).ok().map(|(value, _)| value);
    assert_eq!(ours, serde_json::from_slice::<Value>(text).ok());
    body(resource, text, Media::Json);
}

fn yaml_body(bytes: &[u8]) {
    if let Some((resource, text)) = kind(bytes) {
        body(resource, text, Media::Yaml);
    }
}

fn protobuf_body(bytes: &[u8]) {
    let Some((resource, rest)) = kind(bytes) else {
        return;
    };
    body(resource, rest, Media::Protobuf);
    let expected = (&*resource.api_version(), &*resource.kind);
    if let Ok(document) = protobuf::to_json(rest, expected)
        && let Ok(sealed) = protobuf::from_json(document.to_string().as_bytes())
    {
        let again = protobuf::to_json(&sealed, ("", ""));
        assert_eq!(again.ok().map(without_nulls), Some(without_nulls(document)));
    }
}

/// An empty time is null in JSON, as in Kubernetes, and null is a member that is not there.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.into_iter().filter(|(_, member)| !member.is_null());
            let kept = kept.map(|(name, member)| (name, without_nulls(member)));
            Value::Object(kept.collect())
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

fn json_patches(bytes: &[u8]) {
    if let Some((mut document, patch)) = two(bytes) {
        let _ = json_patch(&mut document, &patch);
    }
}

fn merge_patches(bytes: &[u8]) {
    if let Some((mut document, patch)) = two(bytes)
        && merge_patch(&mut document, &patch).is_ok()
    {
        let mut again = document.clone();
        assert!(merge_patch(&mut again, &patch).is_ok());
        assert_eq!(again, document, "{patch} changes its own outcome");
    }
}

fn strategic_merges(bytes: &[u8]) {
    let Some((resource, rest)) = kind(bytes) else {
        return;
    };
    if let Some((mut document, patch)) = two(rest)
        && resource.schema.conform(&mut document).is_ok()
    {
        let _ = strategic_merge(&mut document, &patch, &resource.schema);
    }
}

fn applies(bytes: &[u8]) {
    let Some((resource, rest)) = kind(bytes) else {
        return;
    };
    let Some((mut live, mut applied)) = two(rest) else {
        return;
    };
    let schema = &resource.schema;
    if schema.conform(&mut live).is_err() || schema.conform(&mut applied).is_err() {
        return;
    }
    let version = resource.api_version();
    let versions = OneVersion {
        api_version: &version,
        schema,
    };
    let request = |force| Apply {
        manager: Entry {
            manager: "fuzz".into(),
            operation: Operation::Apply,
            api_version: version.clone(),
            subresource: String::new(),
            time: None,
            fields: Set::default(),
        },
        force,
        reach: &Reach::All,
    };
    let _ = apimachinery::managed::apply(&versions, &live, &applied, &request(false));
    if let Ok(merged) = apimachinery::managed::apply(&versions, &live, &applied, &request(true)) {
        let again = apimachinery::managed::apply(&versions, &merged, &applied, &request(false));
        assert!(again.is_ok(), "applied twice: {again:?}");
    }
}

fn label_selectors(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(selector) = LabelSelector::parse(text) {
        let shown = selector.to_string();
        let again = LabelSelector::parse(&shown).map(|again| again.to_string());
        assert_eq!(again, Ok(shown));
        let _ = selector.matches_object(&json!({"metadata": {"labels": {"a": "b", "c": "1"}}}));
    }
    if let Ok((value, _)) = decode_json(bytes) {
        let _ = LabelSelector::from_value(&value);
        let _ = LabelSelector::from_map(&value);
    }
}

fn field_selectors(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(selector) = FieldSelector::parse(text) {
        let shown = selector.to_string();
        // The terms are sorted as they were written, `==` and all, so only what was shown twice keeps its order.
        let show = |text: &str| FieldSelector::parse(text).map(|again| again.to_string());
        let again = show(&shown).unwrap_or_default();
        assert_eq!(again.len(), shown.len(), "{shown} is read as {again}");
        assert_eq!(show(&again), Ok(again));
        selector.matches(|_| "a");
    }
}

fn quantities(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(quantity) = Quantity::parse(text) {
        let shown = quantity.to_string();
        assert_eq!(
            Quantity::parse(&shown),
            Ok(quantity),
            "{text} is shown as {shown}"
        );
        let _ = (quantity.value(), quantity.milli_value(), quantity.as_f64());
        let _ = quantity.cmp(&Quantity::new(1, quantity.format()));
    }
    if let Ok(normal) = Quantity::normalize(text) {
        // Not the same text again: 62.5Ki is shown as 64000, which alone reads as decimal, and is 64k.
        assert_eq!(Quantity::parse(&normal), Quantity::parse(text));
    }
}

/// What expressions are about.
static ABOUT: LazyLock<(Value, Value)> = LazyLock::new(|| {
    let schema = json!({"type": "object", "properties": {
        "n": {"type": "integer"}, "d": {"type": "number"}, "s": {"type": "string"}, "b": {"type": "boolean"},
        "t": {"type": "string", "format": "date-time"}, "bytes": {"type": "string", "format": "byte"},
        "either": {"x-kubernetes-int-or-string": true},
        "list": {"type": "array", "items": {"type": "string"}},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "integer"}},
        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
        "objects": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}}}},
    }});
    let object = json!({"n": 5, "d": 1.5, "s": "a text", "b": true, "t": "2026-01-02T03:04:05Z", "bytes": "AAEC",
        "either": "50%", "list": ["a", "b", "c"], "set": [3, 1, 2], "map": {"x": 1, "y": 2},
        "objects": [{"k": "v"}, {"k": "w"}, {}]});
    (schema, object)
});

fn expressions(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let (schema, object) = &*ABOUT;
    let typed = Type::from_schema(schema, true).unwrap_or(Type::Dyn);
    for of in [typed, Type::Dyn] {
        let environment = Environment::new([("self", of.clone()), ("oldSelf", of.clone())]);
        let Ok(program) = Program::compile(text, &environment) else {
            continue;
        };
        let _ = program.cost_about(&Extent::of(schema, true).unwrap_or_default());
        let value = || Cel::json(object, &of);
        let bindings = Bindings::new([("self", value()), ("oldSelf", value())]);
        let _ = program.evaluate(&bindings, &mut Budget::for_object());
    }
}

fn tokens(bytes: &[u8]) {
    use apiserver::authn::{keys, oidc};
    static KEYS: LazyLock<Vec<keys::PublicKey>> = LazyLock::new(|| {
        let key = rcgen::KeyPair::generate().map(|key| key.serialize_pem());
        key.ok()
            .and_then(|pem| keys::PublicKey::read(pem.as_bytes()).ok())
            .unwrap_or_default()
    });
    let Ok(token) = std::str::from_utf8(bytes) else {
        return;
    };
    assert!(keys::verify(&KEYS, token).is_err(), "signed by nobody");
    let _ = oidc::unverified(token);
    let _ = keys::PublicKey::read(bytes);
}

fn reviews(bytes: &[u8]) {
    use apiserver::admission::webhook::review::Review;
    if let Ok((answer, _)) = decode_json(bytes) {
        for version in ["v1", "v1beta1"] {
            let review = Review::of(version, json!({}), "uid".into());
            for mutating in [false, true] {
                let _ = review.verdict(&answer, mutating);
            }
        }
    }
}

/// A method's letter, then a target as it stands in a request line.
fn requests(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    let methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
    let method = methods[usize::from(*first) % methods.len()];
    let (Ok(uri), Ok(method)) = (http::Uri::try_from(rest), method.parse()) else {
        return;
    };
    let query = Query::parse(uri.query().unwrap_or_default());
    if let Ok(info) = RequestInfo::parse(&method, uri.path(), &query) {
        let _ = (info.proxy_path(), info.is_long_running());
    }
    for watch in [false, true] {
        let _ = apiserver::registry::read::ListOptions::parse(&query, watch);
    }
    if let Some(token) = query.get("continue") {
        let _ = apiserver::registry::read::resume(token);
    }
}

/// A document as it may lie in a store that others have written to.
fn stored(bytes: &[u8]) {
    let Some((resource, rest)) = kind(bytes) else {
        return;
    };
    let value = bytes::Bytes::copy_from_slice(rest);
    if let Ok(adopted) = apiserver::codec::adopt(&value, resource)
        && let Some(served) = apiserver::codec::serve(&adopted, 3)
    {
        let moved = apiserver::codec::reserve(&served, 4);
        assert_eq!(Some(moved), apiserver::codec::serve(&adopted, 4));
        if let Ok(object) = serde_json::from_slice::<Value>(&served) {
            apimachinery::table::cells(resource, &object, jiff::Timestamp::UNIX_EPOCH);
        }
    }
}
