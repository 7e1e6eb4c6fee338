use serde_json::{Value, json};

use super::*;
use crate::openapi;
use crate::protobuf::wire::{Reader, Value as Wire};
use crate::resource::{Resource, builtin};

/// The values of one field of a message.
fn values(message: &[u8], field: u32) -> Vec<Wire<'_>> {
    let mut reader = Reader::new(message);
    let mut found = Vec::new();
    while let Some((number, value)) = reader.field().unwrap() {
        if number == field {
            found.push(value);
        }
    }
    found
}

/// The messages at the end of a path of fields, of which each may be repeated.
fn at<'a>(message: &'a [u8], path: &[u32]) -> Vec<&'a [u8]> {
    let Some((field, path)) = path.split_first() else {
        return vec![message];
    };
    let inner = values(message, *field)
        .into_iter()
        .map(|value| match value {
            Wire::Bytes(bytes) => bytes,
            other => panic!("{field} is {other:?}"),
        });
    inner.flat_map(|bytes| at(bytes, path)).collect()
}

fn texts(message: &[u8], path: &[u32]) -> Vec<String> {
    at(message, path)
        .into_iter()
        .map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
        .collect()
}

/// The named values of a map, whose field is `field`.
fn entry<'a>(map: &'a [u8], field: u32, name: &str) -> &'a [u8] {
    let found = at(map, &[field])
        .into_iter()
        .find(|entry| texts(entry, &[1]) == [name]);
    at(found.unwrap_or_else(|| panic!("no {name}")), &[2])[0]
}

fn all() -> Vec<&'static Resource> {
    builtin().iter().map(|r| &**r).collect()
}

fn keys(value: &Value) -> Vec<String> {
    let fields = value.as_object().into_iter().flatten();
    fields.map(|(name, _)| name.clone()).collect()
}

#[test]
fn all_of_version_two_is_there() {
    let text = openapi::v2(&all());
    let document: Value = serde_json::from_str(&text).unwrap();
    let message = version_2(&text).unwrap();
    assert_eq!(texts(&message, &[1]), ["2.0"]);
    assert_eq!(texts(&message, &[2, 1]), ["Kubernetes"]);
    assert_eq!(texts(&message, &[8, 2, 1]), keys(&document["paths"]));
    assert_eq!(texts(&message, &[9, 1, 1]), keys(&document["definitions"]));
    // Each schema has the properties, the types and the descriptions of its JSON.
    for definition in at(&message, &[9, 1]) {
        let name = &texts(definition, &[1])[0];
        let expected = &document["definitions"][name];
        let schema = at(definition, &[2])[0];
        assert_eq!(
            texts(schema, &[25, 1, 1]),
            keys(&expected["properties"]),
            "{name}"
        );
        let described = expected["description"].as_str().into_iter();
        assert_eq!(texts(schema, &[4]), described.collect::<Vec<_>>(), "{name}");
        for property in at(schema, &[25, 1]) {
            let field = &texts(property, &[1])[0];
            let kind = expected["properties"][field]["type"].as_str();
            let said: Vec<&str> = kind.into_iter().collect();
            assert_eq!(texts(property, &[2, 22, 1]), said, "{name}.{field}");
        }
    }
}

#[test]
fn every_document_of_version_three_is_there() {
    for group_version in ["v1", "apps/v1", "autoscaling/v2", "apiextensions.k8s.io/v1"] {
        let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
        let text = openapi::v3(&all(), group, version).unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        let message = version_3(&text).unwrap();
        assert_eq!(texts(&message, &[4, 1, 1]), keys(&document["paths"]));
        let schemas = &document["components"]["schemas"];
        assert_eq!(texts(&message, &[5, 1, 1, 1]), keys(schemas));
        for definition in at(&message, &[5, 1, 1]) {
            let name = &texts(definition, &[1])[0];
            let properties = keys(&schemas[name]["properties"]);
            assert_eq!(texts(definition, &[2, 1, 31, 1, 1]), properties, "{name}");
        }
    }
}

#[test]
fn schemas() {
    let schema = json!({
        "$ref": "#/definitions/x", "type": "object", "maximum": 1.5, "minLength": 3, "maxItems": -1, "readOnly": true,
        "enum": ["a", 1, null], "default": {"a": [1]}, "items": {"type": "string"},
        "additionalProperties": {"type": "integer"}, "description": null,
        "x-kubernetes-list-map-keys": ["name"], "unheard": {"of": 1},
    });
    let text = json!({"definitions": {"n": schema}}).to_string();
    let message = version_2(&text).unwrap();
    let schema = entry(at(&message, &[9])[0], 1, "n");
    assert_eq!(texts(schema, &[1]), ["#/definitions/x"]);
    assert_eq!(values(schema, 7), [Wire::Fixed64(1.5_f64.to_bits())]);
    assert_eq!(values(schema, 12), [Wire::Varint(3)]);
    assert_eq!(values(schema, 14), [Wire::Varint(-1_i64 as u64)]);
    assert_eq!(values(schema, 27), [Wire::Varint(1)]);
    assert_eq!(texts(schema, &[20, 2]), ["\"a\"", "1", "null"]);
    assert_eq!(texts(schema, &[5, 2]), ["{\"a\":[1]}"]);
    assert_eq!(texts(schema, &[22, 1]), ["object"]);
    assert_eq!(texts(schema, &[23, 1, 22, 1]), ["string"]);
    assert_eq!(texts(schema, &[21, 1, 22, 1]), ["integer"]);
    assert!(values(schema, 4).is_empty());
    assert_eq!(texts(schema, &[31, 1]), ["x-kubernetes-list-map-keys"]);
    assert_eq!(texts(schema, &[31, 2, 2]), ["[\"name\"]"]);
}

#[test]
fn what_may_be_one_of_several() {
    let text = json!({"paths": {
        "x-order": 1,
        "/a": {"parameters": [
            {"in": "body", "name": "b", "schema": {"type": "object"}},
            {"in": "query", "name": "q", "type": "string"},
            {"in": "path", "name": "p", "required": true},
            {"$ref": "#/parameters/r"},
        ], "get": {"responses": {
            "200": {"description": "OK", "schema": {"$ref": "#/definitions/a"}},
            "401": {"$ref": "#/responses/u"},
        }}},
    }, "security": [{"BearerToken": []}]})
    .to_string();
    let message = version_2(&text).unwrap();
    let paths = at(&message, &[8])[0];
    assert_eq!(texts(paths, &[1, 1]), ["x-order"]);
    let path = entry(paths, 2, "/a");
    assert_eq!(texts(path, &[9, 1, 1, 2]), ["b"]);
    assert_eq!(texts(path, &[9, 1, 1, 5, 22, 1]), ["object"]);
    assert_eq!(texts(path, &[9, 1, 2, 3, 4]), ["q"]);
    assert_eq!(texts(path, &[9, 1, 2, 4, 4]), ["p"]);
    assert_eq!(texts(path, &[9, 2, 1]), ["#/parameters/r"]);
    let responses = at(path, &[2, 9])[0];
    assert_eq!(
        texts(entry(responses, 1, "200"), &[1, 2, 1, 1]),
        ["#/definitions/a"]
    );
    assert_eq!(
        texts(entry(responses, 1, "401"), &[2, 1]),
        ["#/responses/u"]
    );
    assert_eq!(texts(&message, &[12, 1, 1]), ["BearerToken"]);
    assert_eq!(at(&message, &[12, 1, 2]), [b""]);
}

#[test]
fn defaults_of_version_three() {
    let properties = json!({
        "a": {"default": true, "additionalProperties": false}, "b": {"default": "x"}, "c": {"default": 2},
        "e": {"additionalProperties": {"type": "string"}},
        "d": {"default": {}, "allOf": [{"$ref": "#/components/schemas/e"}]},
    });
    let text = json!({"components": {"schemas": {"n": {"properties": properties}}}}).to_string();
    let message = version_3(&text).unwrap();
    let schema = at(entry(at(&message, &[5, 1])[0], 1, "n"), &[1])[0];
    let properties = at(schema, &[31])[0];
    let property = |name: &str| at(entry(properties, 1, name), &[1])[0];
    assert_eq!(values(at(property("a"), &[33])[0], 2), [Wire::Varint(1)]);
    assert_eq!(values(at(property("a"), &[32])[0], 2), [Wire::Varint(0)]);
    assert_eq!(texts(property("b"), &[33, 3]), ["x"]);
    assert_eq!(
        values(at(property("c"), &[33])[0], 1),
        [Wire::Fixed64(2_f64.to_bits())]
    );
    assert_eq!(texts(property("e"), &[32, 1, 1, 25]), ["string"]);
    assert_eq!(at(property("d"), &[33]), [b""]);
    assert_eq!(
        texts(property("d"), &[26, 2, 1]),
        ["#/components/schemas/e"]
    );
}

#[test]
fn what_does_not_fit_is_an_error() {
    for text in [
        "",
        "[]",
        "{",
        r#"{"info": 1}"#,
        r#"{"definitions": {"a": {"maxLength": "x"}}}"#,
    ] {
        assert!(version_2(text).is_err(), "{text}");
    }
}
