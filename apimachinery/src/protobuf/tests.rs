use proptest::prelude::*;
use serde_json::json;

use super::*;

fn round_trip(document: &Value) -> Value {
    let bytes = from_json(document.to_string().as_bytes()).unwrap();
    to_json(&bytes, ("", "")).unwrap()
}

#[test]
fn a_known_document() {
    let json = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    let bytes = from_json(json.to_string().as_bytes()).unwrap();
    let mut expected = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x1b".to_vec();
    // name, then what Go always writes: four empty strings, the generation and the creation time, all zero.
    expected.extend_from_slice(b"\x0a\x11\x0a\x01a\x12\0\x1a\0\x22\0\x2a\0\x32\0\x38\0\x42\0");
    expected.extend_from_slice(b"\x12\x06\x0a\x01k\x12\x01v\x1a\0\x22\0");
    assert_eq!(bytes, expected, "{}", bytes.escape_ascii());
    assert_eq!(to_json(&bytes, ("", "")).unwrap(), json);
}

#[test]
fn special_types_survive() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p",
            "creationTimestamp": "2026-01-02T03:04:05Z", "labels": {"b": "2", "a": "1"},
            "managedFields": [{"manager": "m", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {".": {}}}}]},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "100m"}},
            "livenessProbe": {"httpGet": {"path": "/", "port": "web"}, "periodSeconds": 5},
            "ports": [{"containerPort": 80}],
            "securityContext": {"runAsUser": -1, "privileged": false}}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x"}}],
            "terminationGracePeriodSeconds": 0},
        "status": {"conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null,
            "lastTransitionTime": null}]}});
    assert_eq!(round_trip(&pod), pod);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}, "data": {"a": "AAEC", "b": ""}});
    assert_eq!(round_trip(&secret), secret);
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {},
        "spec": {"renewTime": "2026-01-02T03:04:05.123456Z"}});
    assert_eq!(round_trip(&lease), lease);
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
        "spec": {"user": "u", "extra": {"a": ["x", "y"], "b": []}}, "status": {"allowed": false}});
    assert_eq!(round_trip(&review), review);
    let metrics = json!({"apiVersion": "metrics.k8s.io/v1beta1", "kind": "NodeMetrics", "metadata": {},
        "timestamp": "2026-01-02T03:04:05Z", "window": "1m0.5s", "usage": {"cpu": "1"}});
    assert_eq!(round_trip(&metrics), metrics);
}

#[test]
fn schemas_or_something_else() {
    let schema = |schema: Value| {
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {},
            "spec": {"group": "g", "names": {"plural": "p", "kind": "K"}, "scope": "Cluster", "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]},
            "status": {"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": null}})
    };
    for part in [
        json!({"type": "object", "additionalProperties": true}),
        json!({"additionalProperties": false}),
        json!({"additionalProperties": {"type": "string"}}),
        json!({"items": {"type": "string"}, "default": [1, {"a": null}], "enum": ["a", 1.5]}),
        json!({"items": [{"type": "string"}, {"type": "integer"}]}),
        json!({"dependencies": {"a": ["b"], "c": {"type": "object"}}}),
        json!({"maximum": 10, "minimum": -0.5, "multipleOf": 1e-3}),
        json!({"x-kubernetes-preserve-unknown-fields": true}),
    ] {
        let definition = schema(part);
        assert_eq!(round_trip(&definition), definition);
    }
}

#[test]
fn kinds_are_found_by_group() {
    let found = |version: &str, kind: &str| Message::find(version, kind).is_some();
    assert!(found("v1", "Pod") && found("apps/v1", "DeploymentList"));
    assert!(found("v1", "Status") && found("apps/v1", "DeleteOptions"));
    assert!(found("meta.k8s.io/v1", "PartialObjectMetadata"));
    assert!(!found("apps/v2", "Deployment") && !found("example.com/v1", "Pod"));
    // The first label of a group is not the whole group.
    assert!(!found("apps.example.com/v1", "Deployment"));
}

#[test]
fn envelopes() {
    assert_eq!(open(b"{}"), Err(Error::NoMagic));
    assert_eq!(open(b"k8s\0"), Err(Error::Empty));
    assert_eq!(open(b"k8s\0\x0a\x05"), Err(Error::Truncated));
    assert_eq!(
        open(b"k8s\0\x1a\x04gzip"),
        Err(Error::Encoding("gzip".into()))
    );
    let sealed = seal("v1", "Pod", b"");
    let envelope = open(&sealed).unwrap();
    assert_eq!((envelope.api_version, envelope.kind), ("v1", "Pod"));
    // Without a kind of its own a document is what is expected at its place.
    let pod = to_json(&seal("", "", b""), ("v1", "Pod")).unwrap();
    assert_eq!(pod["spec"]["containers"], Value::Null);
    assert!(matches!(
        to_json(&seal("v9", "X", b""), ("", "")),
        Err(Error::UnknownKind { .. })
    ));
}

#[test]
fn watch_events_are_framed() {
    let head = head("v1", "Pod", 2);
    let event = watch_event("ADDED", &head, b"\x0a\0", TAIL);
    assert_eq!(
        u32::from_be_bytes(event[..4].try_into().unwrap()) as usize,
        event.len() - 4
    );
    let mut reader = wire::Reader::new(&event[4..]);
    assert_eq!(
        reader.field().unwrap(),
        Some((1, wire::Value::Bytes(b"ADDED")))
    );
    let Some((2, wire::Value::Bytes(raw))) = reader.field().unwrap() else {
        panic!("no object")
    };
    let Some((1, wire::Value::Bytes(object))) = wire::Reader::new(raw).field().unwrap() else {
        panic!("no raw object")
    };
    assert_eq!(object, seal("v1", "Pod", b"\x0a\0"));
}

#[test]
fn lists_are_put_together_from_messages() {
    let item = Message::find("v1", "ConfigMap")
        .unwrap()
        .encode(br#"{"metadata":{"name":"a"}}"#)
        .unwrap();
    let mut list = list_head(br#"{"resourceVersion":"7"}"#).unwrap();
    let start = list.len();
    list_item(&mut list, item.len());
    assert_eq!(list.len() - start + item.len(), list_item_size(item.len()));
    list.extend_from_slice(&item);
    let found = to_json(&seal("v1", "ConfigMapList", &list), ("", "")).unwrap();
    assert_eq!(
        found,
        json!({"apiVersion": "v1", "kind": "ConfigMapList",
        "metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": "a"}}]})
    );
}

#[test]
fn hostile_input_is_refused() {
    let definition = Message::find("apiextensions.k8s.io/v1", "JSONSchemaProps").unwrap();
    // `not` in `not` in `not` ...
    let mut deep = Vec::new();
    for _ in 0..100_000 {
        let mut outer = Vec::with_capacity(deep.len() + 8);
        wire::bytes(&mut outer, 28, &deep);
        deep = outer;
        if deep.len() > 4000 {
            break;
        }
    }
    assert_eq!(definition.decode(&deep), Err(Error::TooDeep));
    // Each of these containers is two bytes, and dozens of values.
    let pod = Message::find("v1", "PodSpec").unwrap();
    assert_eq!(pod.decode(&b"\x12\0".repeat(1 << 20)), Err(Error::TooLarge));
    // A string where a message is due, and lengths beyond the end.
    for bad in [
        &b"\x10\x01"[..],
        b"\x12\x05",
        b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0b",
        b"\x0c",
        b"\x07",
        b"\0",
    ] {
        assert!(pod.decode(bad).is_err(), "{}", bad.escape_ascii());
    }
    // Unknown fields, and groups whole, are skipped.
    let unknown = b"\xfa\x7f\x01x\xf3\x7f\x08\x01\xf4\x7f\xf8\x7f\x01\xfd\x7f1234";
    assert!(pod.decode(unknown).is_ok());
    assert!(from_json(b"[]").is_err() && from_json(b"{").is_err());
    let wrong = br#"{"apiVersion":"v1","kind":"Pod","spec":{"containers":[{"name":5}]}}"#;
    let error = from_json(wrong).unwrap_err().to_string();
    assert_eq!(error, "field spec.containers.name: string expected");
}

/// JSON of no shape in particular, under names that a Pod has.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z0-9:.-]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 32, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(
                prop_oneof![
                    Just("metadata"),
                    Just("spec"),
                    Just("containers"),
                    Just("name"),
                    Just("ports"),
                    Just("labels"),
                    Just("resources"),
                    Just("limits"),
                    Just("httpGet"),
                    Just("port"),
                ],
                inner,
                0..4
            )
            .prop_map(|map| map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for (version, kind) in [("v1", "Pod"), ("apiextensions.k8s.io/v1", "CustomResourceDefinition")] {
            let _ = Message::find(version, kind).unwrap().decode(&bytes);
        }
        let mut document = MAGIC.to_vec();
        document.extend_from_slice(&bytes);
        let _ = to_json(&document, ("v1", "Pod"));
    }

    #[test]
    fn damaged_messages_never_panic(at in 0_usize..400, byte: u8, cut in 0_usize..400) {
        let json = br#"{"metadata":{"name":"a","labels":{"a":"b"}},"spec":{"containers":[{"name":"c","ports":[{"containerPort":1}],
            "resources":{"limits":{"cpu":"1"}},"livenessProbe":{"httpGet":{"port":"x"}}}]},"status":{"startTime":"2026-01-01T00:00:00Z"}}"#;
        let pod = Message::find("v1", "Pod").unwrap();
        let mut bytes = pod.encode(json).unwrap();
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        bytes.truncate(bytes.len().saturating_sub(cut / 2));
        if let Ok(fields) = pod.decode(&bytes) {
            let _ = pod.encode(&serde_json::to_vec(&fields).unwrap());
        }
    }

    #[test]
    fn encoded_json_decodes_to_the_same_again(value in anything()) {
        let pod = Message::find("v1", "Pod").unwrap();
        if let Ok(bytes) = pod.encode(value.to_string().as_bytes()) {
            let once = pod.decode(&bytes);
            if let Ok(once) = once {
                let again = pod.encode(&serde_json::to_vec(&once).unwrap()).unwrap();
                prop_assert_eq!(&again, &bytes);
                prop_assert_eq!(pod.decode(&again).unwrap(), once);
            }
        }
    }
}
