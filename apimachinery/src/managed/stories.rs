//! Whole stories of updates and applies.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::typed::{extract, field_set, validate};
use super::*;
use crate::schema::Schema;

fn schema(kind: &str) -> Schema {
    Schema::builtin("apps", "v1", kind).unwrap()
}

/// One object and everybody who writes it.
struct Story {
    schema: Schema,
    live: Value,
    minute: u32,
}

impl Story {
    fn new() -> Story {
        Story {
            schema: schema("Deployment"),
            live: json!({}),
            minute: 0,
        }
    }

    fn entry(&mut self, manager: &str, operation: Operation) -> Entry {
        self.minute += 1;
        Entry {
            manager: manager.to_owned(),
            operation,
            api_version: "apps/v1".into(),
            subresource: String::new(),
            time: Some(format!("2026-01-01T00:{:02}:00Z", self.minute)),
            fields: Set::default(),
        }
    }

    fn update(&mut self, manager: &str, change: impl FnOnce(&mut Value)) {
        let entry = self.entry(manager, Operation::Update);
        let mut new = self.live.clone();
        change(&mut new);
        let versions = OneVersion {
            api_version: "apps/v1",
            schema: &self.schema,
        };
        update(&versions, &self.live, &mut new, entry, &Reach::All).unwrap();
        new["metadata"]["uid"] = "u".into();
        self.live = new;
    }

    fn apply(&mut self, manager: &str, applied: &Value, force: bool) -> Result<(), Conflict> {
        let request = Apply {
            manager: self.entry(manager, Operation::Apply),
            force,
            reach: &Reach::All,
        };
        let mut applied = applied.clone();
        applied["apiVersion"] = "apps/v1".into();
        applied["kind"] = "Deployment".into();
        applied["metadata"]["name"] = "a".into();
        validate(&self.schema, &applied)?;
        let versions = OneVersion {
            api_version: "apps/v1",
            schema: &self.schema,
        };
        self.live = super::apply(&versions, &self.live, &applied, &request)?;
        self.live["metadata"]["uid"] = "u".into();
        Ok(())
    }

    fn owned(&self, manager: &str, operation: &str) -> Value {
        let entries = self.live["metadata"]["managedFields"].as_array();
        let entry = entries
            .into_iter()
            .flatten()
            .find(|e| e["manager"] == manager && e["operation"] == operation);
        entry.map_or(Value::Null, |e| e["fieldsV1"].clone())
    }
}

fn containers(list: Value) -> Value {
    json!({"spec": {"template": {"spec": {"containers": list}}}})
}

#[test]
fn fields_that_are_no_longer_applied_go() {
    let mut story = Story::new();
    let first = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"replicas": 2, "template": {"spec":
        {"containers": [{"name": "x", "image": "i", "env": [{"name": "E", "value": "1"}]}, {"name": "y", "image": "j"}]}}}});
    story.apply("me", &first, false).unwrap();
    let second = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"template": {"spec":
        {"containers": [{"name": "x", "image": "i2"}]}}}});
    story.apply("me", &second, false).unwrap();
    assert_eq!(story.live["metadata"]["labels"], json!({"a": "1"}));
    assert_eq!(
        story.live["spec"],
        json!({"template": {"spec": {"containers": [{"name": "x", "image": "i2"}]}}})
    );
    assert_eq!(
        story.owned("me", "Apply"),
        json!({"f:metadata": {"f:labels": {"f:a": {}}}, "f:spec": {"f:template": {"f:spec": {"f:containers": {
            "k:{\"name\":\"x\"}": {".": {}, "f:name": {}, "f:image": {}}}}}}})
    );
}

#[test]
fn what_others_own_stays() {
    let mut story = Story::new();
    let both = json!({"spec": {"replicas": 2, "paused": true}});
    story.apply("one", &both, false).unwrap();
    story
        .apply("two", &json!({"spec": {"replicas": 2}}), false)
        .unwrap();
    story.apply("one", &json!({}), false).unwrap();
    assert_eq!(story.live["spec"], json!({"replicas": 2}));
    assert_eq!(story.owned("one", "Apply"), Value::Null);
    // An update is an owner too, and items added by it are not the applier's.
    story
        .apply(
            "one",
            &containers(json!([{"name": "x", "image": "i"}])),
            false,
        )
        .unwrap();
    story.update("ctl", |live| {
        live["spec"]["template"]["spec"]["containers"][0]["tty"] = true.into();
        live["spec"]["template"]["spec"]["containers"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "z", "image": "k"}));
    });
    story.apply("one", &containers(json!([])), false).unwrap();
    // The item was the applier's, whatever others have put into it.
    assert_eq!(
        story.live["spec"]["template"]["spec"]["containers"],
        json!([{"name": "z", "image": "k"}])
    );
}

#[test]
fn conflicts_name_managers_and_paths() {
    let mut story = Story::new();
    story
        .apply("one", &json!({"spec": {"replicas": 1}}), false)
        .unwrap();
    story.update("ctl", |live| live["spec"]["paused"] = true.into());
    let other = json!({"spec": {"replicas": 3, "paused": false}});
    let conflict = story.apply("two", &other, false).unwrap_err();
    let owned = |list: &[(&str, &str)]| {
        Conflict::Owned(
            list.iter()
                .map(|(a, b)| ((*a).into(), (*b).into()))
                .collect(),
        )
    };
    assert_eq!(
        conflict,
        owned(&[
            ("\"ctl\" using apps/v1", ".spec.paused"),
            ("\"one\"", ".spec.replicas")
        ])
    );
    assert_eq!(story.live["spec"], json!({"replicas": 1, "paused": true}));
    story.apply("two", &other, true).unwrap();
    assert_eq!(story.live["spec"], json!({"replicas": 3, "paused": false}));
    assert_eq!(story.owned("one", "Apply"), Value::Null);
    assert_eq!(story.owned("ctl", "Update"), Value::Null);
    // The same value is shared without a conflict.
    story
        .apply("one", &json!({"spec": {"replicas": 3}}), false)
        .unwrap();
    let shared = json!({"f:spec": {"f:replicas": {}}});
    assert_eq!(story.owned("one", "Apply"), shared);
}

#[test]
fn updates_take_fields() {
    let mut story = Story::new();
    story.update("one", |live| {
        live["spec"] = json!({"replicas": 1, "paused": true});
        live["metadata"] = json!({"name": "a", "labels": {"x": "y"}});
    });
    story.update("two", |live| live["spec"]["replicas"] = 2.into());
    assert_eq!(
        story.owned("two", "Update"),
        json!({"f:spec": {"f:replicas": {}}})
    );
    assert_eq!(
        story.owned("one", "Update"),
        json!({"f:metadata": {"f:labels": {".": {}, "f:x": {}}}, "f:spec": {"f:paused": {}}})
    );
    let before = story.live.clone();
    story.update("three", |_| {});
    assert_eq!(
        story.live, before,
        "no change, no new owner and no new time"
    );
    story.update("two", |live| {
        live["metadata"].as_object_mut().unwrap().remove("labels");
    });
    assert_eq!(
        story.owned("one", "Update"),
        json!({"f:spec": {"f:paused": {}}})
    );
}

#[test]
fn the_first_apply_finds_an_owner_of_the_rest() {
    let mut story = Story::new();
    story.live = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "uid": "u"},
        "spec": {"replicas": 1, "paused": true}});
    let conflict = story
        .apply("me", &json!({"spec": {"replicas": 2}}), false)
        .unwrap_err();
    let expect = vec![(
        "\"before-first-apply\" using apps/v1".to_owned(),
        ".spec.replicas".to_owned(),
    )];
    assert_eq!(conflict, Conflict::Owned(expect));
    story
        .apply("me", &json!({"spec": {"replicas": 1}}), false)
        .unwrap();
    assert_eq!(
        story.owned("before-first-apply", "Update"),
        json!({"f:spec": {"f:paused": {}, "f:replicas": {}}})
    );
    // Updates of objects without managers note none.
    let mut bare = Story::new();
    bare.live = json!({"metadata": {"name": "a", "uid": "u"}, "spec": {"replicas": 1}});
    bare.update("x", |live| live["spec"]["replicas"] = 2.into());
    assert_eq!(bare.live["metadata"]["managedFields"], Value::Null);
}

#[test]
fn kubectl_takes_over_from_its_own_record() {
    let record = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
        "spec": {"replicas": 1, "paused": true}});
    let mut story = Story::new();
    story.update("kubectl-client-side-apply", |live| {
        *live = record.clone();
        live["metadata"]["annotations"] =
            json!({"kubectl.kubernetes.io/last-applied-configuration": record.to_string()});
    });
    story.update("scaler", |live| live["spec"]["replicas"] = 5.into());
    let next = json!({"spec": {"replicas": 2, "paused": false}});
    // Only what is still as kubectl applied it is kubectl's to change.
    let expect = vec![(
        "\"scaler\" using apps/v1".to_owned(),
        ".spec.replicas".to_owned(),
    )];
    assert_eq!(
        story.apply("kubectl", &next, false),
        Err(Conflict::Owned(expect))
    );
    assert!(
        story
            .apply("other", &json!({"spec": {"paused": false}}), false)
            .is_err()
    );
    story
        .apply("kubectl", &json!({"spec": {"paused": false}}), false)
        .unwrap();
    assert_eq!(story.live["spec"], json!({"replicas": 5, "paused": false}));
    let kept = crate::object::annotation(
        &story.live,
        "kubectl.kubernetes.io/last-applied-configuration",
    );
    let kept: Value = serde_json::from_str(kept.unwrap()).unwrap();
    assert_eq!(kept["spec"], json!({"paused": false}));
}

#[test]
fn applying_again_changes_nothing() {
    let mut story = Story::new();
    let applied = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}}});
    story.apply("me", &applied, false).unwrap();
    let before = story.live.clone();
    story.apply("me", &applied, false).unwrap();
    assert_eq!(story.live, before);
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut story = Story::new();
    let twice = containers(json!([{"name": "x"}, {"name": "x"}]));
    let error = story.apply("me", &twice, false).unwrap_err();
    let at = ".spec.template.spec.containers";
    let expect = format!("{at}: duplicate entries for key [name=\"x\"]");
    assert_eq!(error, Conflict::Unmergeable(expect));
}

/// Documents over few fields, so that they meet.
fn document() -> impl Strategy<Value = Value> {
    let labels = proptest::collection::btree_map("[ab]", "[xy]", 0..3);
    let env = proptest::collection::btree_map("[EF]", "[12]", 0..3);
    let containers =
        proptest::collection::btree_map("[cd]", (proptest::option::of("[ij]"), env), 0..3);
    let replicas = proptest::option::of(1..3_i32);
    (labels, replicas, containers).prop_map(|(labels, replicas, containers)| {
        let containers: Vec<Value> = containers
            .into_iter()
            .map(|(name, (image, env))| {
                let mut container = json!({ "name": name });
                if let Some(image) = image {
                    container["image"] = image.into();
                }
                let env: Vec<Value> = env
                    .into_iter()
                    .map(|(name, value)| json!({"name": name, "value": value}))
                    .collect();
                if !env.is_empty() {
                    container["env"] = env.into();
                }
                container
            })
            .collect();
        let mut document = json!({});
        if !labels.is_empty() {
            document["metadata"]["labels"] = json!(labels);
        }
        if let Some(replicas) = replicas {
            document["spec"]["replicas"] = replicas.into();
        }
        if !containers.is_empty() {
            document["spec"]["template"] = json!({"spec": {"containers": containers}});
        }
        document
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_new_is_owned_as_by_an_update(document in document()) {
        let mut story = Story::new();
        let entry = story.entry("m", Operation::Update);
        let created = created(&story.schema, &document, &entry, &Reach::All).unwrap().unwrap();
        story.minute = 0;
        story.update("m", |live| *live = document.clone());
        let expected = match &story.live["metadata"]["managedFields"] {
            Value::Null => String::new(),
            list => list.to_string(),
        };
        prop_assert_eq!(String::from_utf8(created.text).unwrap(), expected);
    }

    #[test]
    fn what_is_applied_is_owned_and_there(documents in proptest::collection::vec((document(), 0..3_u8), 1..6)) {
        let mut story = Story::new();
        for (applied, manager) in documents {
            let name = format!("m{manager}");
            if manager == 0 {
                // An updater among the appliers: it replaces what it is told.
                story.update(&name, |live| {
                    live["spec"] = applied.get("spec").cloned().unwrap_or_else(|| json!({}));
                });
                continue;
            }
            prop_assert_eq!(story.apply(&name, &applied, true), Ok(()));
            let owned = Set::from_value(&story.owned(&name, "Apply")).unwrap_or_default();
            // Extracting what the manager owns gives back what it applied.
            let extracted = extract(&story.schema, &story.live, &owned);
            let mut expect = field_set(&story.schema, &applied);
            strip(&mut expect);
            prop_assert_eq!(&owned, &expect);
            let mut back = field_set(&story.schema, &extracted);
            strip(&mut back);
            prop_assert_eq!(&back, &expect);
            // And applying it again is a no-op.
            let before = story.live.clone();
            prop_assert_eq!(story.apply(&name, &applied, false), Ok(()));
            prop_assert_eq!(&story.live, &before);
        }
    }

    #[test]
    fn nobody_is_left_owning_what_is_gone(documents in proptest::collection::vec((document(), 1..3_u8), 1..6)) {
        let mut story = Story::new();
        let mut mentioned = Set::default();
        for (applied, manager) in documents {
            prop_assert_eq!(story.apply(&format!("m{manager}"), &applied, true), Ok(()));
            mentioned.union(field_set(&story.schema, &applied));
        }
        prop_assert_eq!(story.apply("m1", &json!({}), true), Ok(()));
        prop_assert_eq!(story.apply("m2", &json!({}), true), Ok(()));
        let mut left = field_set(&story.schema, &story.live);
        strip(&mut left);
        prop_assert!(!left.intersects(&mentioned), "{:?}", left.paths());
    }
}
