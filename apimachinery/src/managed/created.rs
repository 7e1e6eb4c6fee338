//! The managers of a new object: one, who owns everything that is written in it.
//!
//! There is nothing to compare with, so the text of the list is written in one walk over the object, without a [`Set`] of all
//! its fields on the way. It is the text of what [`update`](super::update) would put into the object.

use std::ops::Range;

use serde_json::{Map, Value};

use super::compare::is_zero;
use super::entries::{Entry, Operation};
use super::set::{EMPTY, Set};
use super::walk::{Form, Place, field, form, write_item_element};
use super::{Reach, STRIPPED};
use crate::json;
use crate::schema::{ListType, Schema, Shape};

/// Where the fields of the only entry stand in an object: in the entry, in the list, in the metadata.
const LEVEL: usize = 5;

/// The managers of a new object, which are not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Created {
    /// The list as JSON; empty when nobody owns anything.
    pub text: Vec<u8>,
    /// How deep the object nests with them in it.
    pub levels: usize,
}

/// What `own` is to own of a new object. `None` when the object brings managers along, or the reach has to be looked at more
/// closely: then [`update`](super::update) has to do it. Where a list cannot be told apart by its keys, the error says why.
pub fn created(
    schema: &Schema,
    new: &Value,
    own: &Entry,
    reach: &Reach,
) -> Result<Option<Created>, String> {
    let (Some(fields), Some(excepted)) = (new.as_object(), reach.excepted()) else {
        return Ok(None);
    };
    if !new["metadata"]["managedFields"].is_null() {
        return Ok(None);
    }
    let mut writer = Writer {
        out: b"[{\"apiVersion\":".to_vec(),
        level: LEVEL,
        levels: LEVEL,
    };
    json::write_string(&mut writer.out, &own.api_version);
    let head = b",\"fieldsType\":\"FieldsV1\",\"fieldsV1\":{";
    writer.out.extend_from_slice(head);
    let start = writer.out.len();
    let nobodys = Nobodys {
        fields: &STRIPPED,
        trees: excepted,
    };
    writer.fields(Some(schema.shape()), true, fields, nobodys)?;
    if writer.out.len() == start {
        return Ok(Some(Created::default()));
    }
    let Writer {
        mut out, levels, ..
    } = writer;
    let operation = match own.operation {
        Operation::Apply => "Apply",
        Operation::Update => "Update",
    };
    let rest = [
        ("manager", own.manager.as_str()),
        ("operation", operation),
        ("subresource", &own.subresource),
        ("time", own.time.as_deref().unwrap_or_default()),
    ];
    out.push(b'}');
    for (name, text) in rest.into_iter().filter(|(_, text)| !text.is_empty()) {
        out.push(b',');
        json::write_string(&mut out, name);
        out.push(b':');
        json::write_string(&mut out, text);
    }
    out.extend_from_slice(b"}]");
    Ok(Some(Created { text: out, levels }))
}

/// What nobody comes to own, from a place on: fields alone, and fields with what is below them.
#[derive(Clone, Copy)]
struct Nobodys<'a> {
    fields: &'a Set,
    trees: &'a Set,
}

impl<'a> Nobodys<'a> {
    /// The same from an element on, and whether the element itself is among the fields. `None` when all of it is nobody's.
    #[inline]
    fn below(self, prefix: &str, name: &str) -> Option<(Nobodys<'a>, bool)> {
        match self.fields.is_empty() && self.trees.is_empty() {
            true => Some((self, false)),
            false => self.some_below(prefix, name),
        }
    }

    fn some_below(self, prefix: &str, name: &str) -> Option<(Nobodys<'a>, bool)> {
        let element = format!("{prefix}{name}");
        let (field, tree) = (self.fields.get(&element), self.trees.get(&element));
        if tree.is_some_and(|node| node.member) {
            return None;
        }
        let below = Nobodys {
            fields: field.map_or(&EMPTY, |node| &node.below),
            trees: tree.map_or(&EMPTY, |node| &node.below),
        };
        Some((below, field.is_some_and(|node| node.member)))
    }
}

struct Writer {
    out: Vec<u8>,
    /// Of the object that is open.
    level: usize,
    levels: usize,
}

impl Writer {
    /// The fields of an object. `exists`: the object is there though nobody has written it, a Go struct.
    fn fields(
        &mut self,
        place: Place<'_>,
        exists: bool,
        fields: &Map<String, Value>,
        nobodys: Nobodys<'_>,
    ) -> Result<(), String> {
        for (name, value) in fields {
            let Some((nobodys, is_nobodys)) = nobodys.below("f:", name) else {
                continue;
            };
            let exists = exists
                && place.is_some_and(|shape| shape.is_inline(name) || shape.is_required(name));
            if !value.is_object() && !value.is_array() {
                if !is_nobodys && (!exists || !is_zero(value)) {
                    self.leaf("f:", name);
                }
                continue;
            }
            let place = field(place, name);
            let member = is_written(place, exists, value) && !is_nobodys;
            self.node(("f:", name), member, |writer| {
                writer.below(place, exists, value, nobodys)
            })?;
        }
        Ok(())
    }

    fn element(&mut self, prefix: &'static str, name: &str) {
        if self.out.last() != Some(&b'{') {
            self.out.push(b',');
        }
        json::write_joined(&mut self.out, prefix, name);
        self.out.extend_from_slice(b":{");
    }

    /// An element that is owned and has nothing below.
    fn leaf(&mut self, prefix: &'static str, name: &str) {
        self.element(prefix, name);
        self.out.push(b'}');
        self.levels = self.levels.max(self.level + 1);
    }

    /// One element; nothing if neither it nor anything below it is owned.
    fn node(
        &mut self,
        (prefix, name): (&'static str, &str),
        member: bool,
        below: impl FnOnce(&mut Writer) -> Result<(), String>,
    ) -> Result<(), String> {
        let start = self.out.len();
        self.element(prefix, name);
        let inside = self.out.len();
        if member {
            self.out.extend_from_slice(b"\".\":{}");
        }
        let dotted = self.out.len();
        self.level += 1;
        below(self)?;
        let empty = self.out.len() == dotted;
        if empty && !member {
            self.out.truncate(start);
        } else {
            if empty {
                self.out.truncate(inside);
            }
            self.out.push(b'}');
            self.levels = self.levels.max(self.level);
        }
        self.level -= 1;
        Ok(())
    }

    /// What is below a place, if it is not owned as one value.
    fn below(
        &mut self,
        place: Place<'_>,
        exists: bool,
        value: &Value,
        nobodys: Nobodys<'_>,
    ) -> Result<(), String> {
        match (form(place, value), value) {
            (Form::Fields, Value::Object(fields)) => self.fields(place, exists, fields, nobodys),
            (Form::Items(shape, list), Value::Array(items)) => {
                self.items(shape, list, items, nobodys)
            }
            _ => Ok(()),
        }
    }

    fn items(
        &mut self,
        shape: Shape<'_>,
        list: &ListType,
        items: &[Value],
        nobodys: Nobodys<'_>,
    ) -> Result<(), String> {
        // The elements of all items, one after the other.
        let mut texts = String::new();
        let mut found: Vec<(Range<usize>, &Value)> = Vec::with_capacity(items.len());
        for item in items {
            let start = texts.len();
            write_item_element(&mut texts, shape, list, item)?;
            found.push((start..texts.len(), item));
        }
        let text = |range: &Range<usize>| &texts[range.clone()];
        if !found.is_sorted_by(|a, b| text(&a.0) <= text(&b.0)) {
            found.sort_by(|a, b| text(&a.0).cmp(text(&b.0)));
        }
        let place = shape.items();
        for same in found.chunk_by(|a, b| text(&a.0) == text(&b.0)) {
            let element = text(&same[0].0);
            let Some((nobodys, is_nobodys)) = nobodys.below("", element) else {
                continue;
            };
            self.node(("", element), !is_nobodys, |writer| match same {
                [(_, item)] => writer.below(place, false, item, nobodys),
                // Duplicates are owned as one value.
                _ => Ok(()),
            })?;
        }
        Ok(())
    }
}

/// Whether a value is written where there was nothing, or what Go has there by itself.
fn is_written(place: Place<'_>, exists: bool, value: &Value) -> bool {
    let as_one = match (form(place, value), value) {
        (Form::Fields, Value::Object(fields)) => fields.is_empty(),
        (Form::Items(..), Value::Array(items)) => items.is_empty(),
        _ => true,
    };
    match as_one {
        true => !exists || !is_zero(value),
        false => !exists,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::managed::{OneVersion, update};

    fn entry(subresource: &str) -> Entry {
        Entry {
            manager: "a \"manager\"".into(),
            operation: Operation::Update,
            api_version: "v1".into(),
            subresource: subresource.into(),
            time: Some("2026-01-01T00:00:00Z".into()),
            fields: Set::default(),
        }
    }

    /// Both ways lead to the same text.
    fn check(schema: &Schema, new: &Value, reach: &Reach) {
        let versions = OneVersion {
            api_version: "v1",
            schema,
        };
        let mut whole = new.clone();
        let updated = update(&versions, &Value::Null, &mut whole, entry(""), reach);
        let created = created(schema, new, &entry(""), reach);
        match (updated, created) {
            (Ok(()), Ok(Some(created))) => {
                let list = &whole["metadata"]["managedFields"];
                let expected = match list {
                    Value::Null => String::new(),
                    list => list.to_string(),
                };
                assert_eq!(String::from_utf8(created.text).unwrap(), expected, "{new}");
                if !expected.is_empty() {
                    let only = json!({"metadata": {"managedFields": list}});
                    assert_eq!(created.levels, depth(&only), "{new}");
                }
            }
            (Err(one), Err(other)) => assert_eq!(one, other),
            (updated, created) => panic!("{updated:?} but {created:?}: {new}"),
        }
    }

    fn depth(value: &Value) -> usize {
        let below = match value {
            Value::Object(fields) => fields.values().map(depth).max(),
            Value::Array(items) => items.iter().map(depth).max(),
            _ => return 0,
        };
        below.unwrap_or(0) + 1
    }

    #[test]
    fn it_says_what_an_update_of_nothing_would() {
        let pod = Schema::builtin("", "v1", "Pod").unwrap();
        let deployment = Schema::builtin("apps", "v1", "Deployment").unwrap();
        let map = Schema::builtin("", "v1", "ConfigMap").unwrap();
        let ports = json!([{"containerPort": 80}, {"containerPort": 8, "protocol": "UDP"}, {"containerPort": 80}]);
        let container = json!({"name": "c\"<", "env": [{"name": "B", "value": "1"}, {"name": "A"}, {"name": "B"}],
            "ports": ports, "resources": {"limits": {"cpu": "1"}}, "command": ["x"], "tty": false});
        let spec = json!({"containers": [container, {"name": "b"}], "volumes": [], "securityContext": {}, "nodeSelector": {},
            "hostNetwork": null, "tolerations": [{"key": "k"}]});
        let metadata = json!({"name": "n", "labels": {"a": "b", "\n": ""}, "annotations": {}, "finalizers": ["b", "a", "b"],
            "ownerReferences": [{"uid": "2", "name": "x"}, {"uid": "1"}]});
        let documents = [
            (
                &pod,
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": "x"}}),
            ),
            (
                &pod,
                json!({"metadata": {"name": "n"}, "spec": {"containers": []}}),
            ),
            (&pod, json!({"metadata": {"name": "n"}})),
            (
                &pod,
                json!({"metadata": null, "spec": {}, "unknown": {"a": [1, {}], "b": {}}}),
            ),
            (
                &deployment,
                json!({"metadata": metadata, "spec": {"selector": {"matchLabels": {"a": "b"}}, "replicas": 0,
                "strategy": {}, "template": {"metadata": {"labels": {}}, "spec": spec}}, "status": {"replicas": 1}}),
            ),
            (
                &map,
                json!({"metadata": {"name": "n"}, "data": {"a.b": "1", "": "2"}, "immutable": false}),
            ),
        ];
        let reaches = [
            Reach::All,
            Reach::Except(Set::of(&["status"])),
            Reach::Except(Set::of(&["spec", "metadata.labels"])),
        ];
        for (schema, document) in &documents {
            for reach in &reaches {
                check(schema, document, reach);
            }
        }
        let unfit = json!({"metadata": {"name": "n"}, "spec": {"containers": [null]}});
        check(&pod, &unfit, &Reach::All);
    }

    #[test]
    fn what_takes_more_is_left_to_others() {
        let pod = Schema::builtin("", "v1", "Pod").unwrap();
        let made = |new: Value, reach: &Reach| created(&pod, &new, &entry(""), reach).unwrap();
        let brings = json!({"metadata": {"managedFields": []}});
        assert_eq!(made(brings, &Reach::All), None);
        let plain = json!({"spec": {"hostNetwork": true}});
        assert_eq!(made(plain.clone(), &Reach::Only(&[&["spec"]])), None);
        let text = made(plain.clone(), &Reach::All).unwrap().text;
        let list: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            list[0]["fieldsV1"],
            json!({"f:spec": {"f:hostNetwork": {}}})
        );
        assert!(list[0].get("subresource").is_none());
        let sub = created(&pod, &plain, &entry("status"), &Reach::All);
        let list: Value = serde_json::from_slice(&sub.unwrap().unwrap().text).unwrap();
        assert_eq!(list[0]["subresource"], "status");
    }
}
