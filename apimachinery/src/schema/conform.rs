//! Checking types as Go's decoder does, and writing values the way Kubernetes would after decoding them.

use serde_json::{Number, Value};

use super::{Arena, Field, Node, NodeId, Scalar, Schema};
use crate::quantity::{Format, Quantity};
use crate::time;

impl Schema {
    /// Checks that every known field has its type. Nulls disappear, as do empty lists and maps that Go would omit;
    /// quantities, times and base64 are written in canonical form. The error is the text of Go's decoder:
    /// `json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32`.
    ///
    /// Of a custom resource only metadata is checked, its own and that of embedded resources: its schema reports wrong
    /// types as field errors.
    pub fn conform(&self, document: &mut Value) -> Result<(), String> {
        if let Some(schema) = &self.open_api {
            return super::structural::conform_metadata(schema, document);
        }
        match self.arena.native {
            true => self.conform_native(document).map(drop),
            false => Ok(()),
        }
    }

    /// [`Self::conform`] and [`Self::prune`]: checks the types, and gives the unknown fields that are removed.
    pub fn fit(&self, document: &mut Value) -> Result<Vec<String>, String> {
        if self.open_api.is_none() && self.arena.native {
            // One walk says that there is nothing to prune, which is the rule.
            return Ok(match self.conform_native(document)? {
                true => self.prune(document),
                false => Vec::new(),
            });
        }
        self.conform(document)?;
        Ok(self.prune(document))
    }

    /// Whether there are unknown fields.
    fn conform_native(&self, document: &mut Value) -> Result<bool, String> {
        let mut conformer = Conformer {
            arena: &self.arena,
            path: Vec::new(),
            unknown: false,
        };
        conformer.visit(self.root, document, "")?;
        Ok(conformer.unknown)
    }

    /// The same for a part of a document, whose path is shown in messages.
    pub(super) fn conform_at(&self, part: &mut Value, path: &[&str]) -> Result<(), String> {
        let mut conformer = Conformer {
            arena: &self.arena,
            path: path.to_vec(),
            unknown: false,
        };
        conformer.visit(self.root, part, "ObjectMeta")
    }
}

struct Conformer<'a> {
    arena: &'a Arena,
    path: Vec<&'a str>,
    /// A field has been met that no schema knows.
    unknown: bool,
}

impl<'a> Conformer<'a> {
    /// `owner` is the type that has the field at hand.
    fn visit(&mut self, id: NodeId, value: &mut Value, owner: &str) -> Result<(), String> {
        let arena = self.arena;
        match (arena.node(id), value) {
            (Node::Any | Node::Either(_), value) if !value.is_object() && !value.is_array() => {
                Ok(())
            }
            (Node::Any, _) => Ok(()),
            (Node::Either(object), Value::Array(items)) => items
                .iter_mut()
                .try_for_each(|item| self.visit(*object, item, owner)),
            (Node::Either(object), value) => self.visit(*object, value, owner),
            (Node::Scalar(scalar), value) => self.scalar(*scalar, value, owner, id),
            (Node::Object(object), Value::Object(fields)) => {
                let mut omitted = false;
                for (name, value) in fields.iter_mut() {
                    let Some(field) = object.field(name) else {
                        self.unknown |= !object.open;
                        continue;
                    };
                    if omits(arena, field, value) {
                        omitted = true;
                        continue;
                    }
                    self.path.push(&field.name);
                    self.visit(field.node, value, &object.name)?;
                    self.path.pop();
                }
                if omitted {
                    fields.retain(|name, value| {
                        let field = object.field(name);
                        !field.is_some_and(|field| omits(arena, field, value))
                    });
                }
                Ok(())
            }
            (Node::Map(map), Value::Object(entries)) => {
                let amounts = matches!(arena.node(map.values), Node::Scalar(Scalar::Quantity));
                for value in entries.values_mut() {
                    zero_if_null(arena.node(map.values), value);
                    self.visit(map.values, value, owner)?;
                    if amounts {
                        round_to_milli(value);
                    }
                }
                Ok(())
            }
            (Node::List(list), Value::Array(items)) => {
                for item in items {
                    zero_if_null(arena.node(list.items), item);
                    self.visit(list.items, item, owner)?;
                }
                Ok(())
            }
            (_, value) => Err(self.mismatch(kind_of(value), owner, id)),
        }
    }

    fn scalar(
        &self,
        scalar: Scalar,
        value: &mut Value,
        owner: &str,
        id: NodeId,
    ) -> Result<(), String> {
        let plain = |value: &Value, go: &str| {
            format!(
                "json: cannot unmarshal {} into Go value of type {go}",
                kind_of(value)
            )
        };
        match (scalar, &*value) {
            (Scalar::String, Value::String(_))
            | (Scalar::Bool, Value::Bool(_))
            | (Scalar::Number, Value::Number(_)) => {}
            (Scalar::Int32, Value::Number(n)) if int32(n) => {}
            (Scalar::Int64, Value::Number(n)) if n.is_i64() => {}
            (Scalar::Int32 | Scalar::Int64, Value::Number(n)) => {
                return Err(self.mismatch(&format!("number {n}"), owner, id));
            }
            (Scalar::Bytes, Value::String(text)) => {
                if let Some(canonical) = base64(text)? {
                    *value = canonical.into();
                }
            }
            (Scalar::Time | Scalar::MicroTime, Value::String(text)) => {
                let at = time::parse(text).ok_or_else(|| time_error(scalar, text))?;
                let canonical = if scalar == Scalar::Time {
                    time::format(at)
                } else {
                    time::format_micro(at)
                };
                if *text != canonical {
                    *value = canonical.into();
                }
            }
            (Scalar::Time | Scalar::MicroTime, other) => return Err(plain(other, "string")),
            (Scalar::Quantity, given) => {
                let text = match given {
                    Value::String(text) => text.trim().to_owned(),
                    other => other.to_string(),
                };
                let text = text.strip_suffix(".0").unwrap_or(&text);
                let canonical = Quantity::normalize(text).map_err(|e| e.to_string())?;
                if *given != canonical {
                    *value = canonical.into();
                }
            }
            (Scalar::IntOrString, Value::String(_)) => {}
            (Scalar::IntOrString, Value::Number(n)) if int32(n) => {}
            (Scalar::IntOrString, Value::Number(n)) => {
                return Err(format!(
                    "json: cannot unmarshal number {n} into Go value of type int32"
                ));
            }
            (Scalar::IntOrString, other) => return Err(plain(other, "int32")),
            (_, other) => return Err(self.mismatch(kind_of(other), owner, id)),
        }
        Ok(())
    }

    fn mismatch(&self, found: &str, owner: &str, id: NodeId) -> String {
        let go = go_type(self.arena, id);
        match self.path.is_empty() {
            true => format!("json: cannot unmarshal {found} into Go value of type {go}"),
            false => {
                let path = self.path.join(".");
                // The Go struct, without its package.
                let owner = owner.rsplit('.').next().unwrap_or_default();
                format!(
                    "json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {go}"
                )
            }
        }
    }
}

/// Whether Go writes nothing for this value of a field.
fn omits(arena: &Arena, field: &Field, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => {
            items.is_empty() && !field.required && matches!(arena.node(field.node), Node::List(_))
        }
        Value::Object(entries) => {
            entries.is_empty() && !field.required && matches!(arena.node(field.node), Node::Map(_))
        }
        _ => false,
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The Go type, as far as the schema tells it.
fn go_type(arena: &Arena, id: NodeId) -> String {
    match arena.node(id) {
        Node::Any | Node::Either(_) => "interface {}".into(),
        Node::List(list) => format!("[]{}", go_type(arena, list.items)),
        Node::Map(map) => match arena.node(map.values) {
            Node::Scalar(Scalar::Quantity) => "v1.ResourceList".into(),
            _ => format!("map[string]{}", go_type(arena, map.values)),
        },
        Node::Object(object) => object.name.split_once('.').unwrap_or_default().1.to_owned(),
        Node::Scalar(scalar) => match scalar {
            Scalar::String => "string",
            Scalar::Int32 => "int32",
            Scalar::Int64 => "int64",
            Scalar::Number => "float64",
            Scalar::Bool => "bool",
            Scalar::Bytes => "[]uint8",
            Scalar::Time => "v1.Time",
            Scalar::MicroTime => "v1.MicroTime",
            Scalar::Quantity => "resource.Quantity",
            Scalar::IntOrString => "intstr.IntOrString",
        }
        .into(),
    }
}

fn int32(n: &Number) -> bool {
    n.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
}

/// A null among items or values is Go's zero value.
fn zero_if_null(node: &Node, value: &mut Value) {
    if value.is_null() {
        *value = match node {
            Node::Object(_) | Node::Map(_) => Value::Object(serde_json::Map::new()),
            Node::List(_) => Value::Array(Vec::new()),
            Node::Scalar(Scalar::String | Scalar::Bytes) => "".into(),
            Node::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Number | Scalar::IntOrString) => {
                0.into()
            }
            Node::Scalar(Scalar::Bool) => false.into(),
            Node::Scalar(Scalar::Quantity) => "0".into(),
            Node::Scalar(Scalar::Time | Scalar::MicroTime) | Node::Any | Node::Either(_) => return,
        };
    }
}

/// Resource lists keep nothing finer than a thousandth.
fn round_to_milli(value: &mut Value) {
    let fine = |q: &Quantity| Quantity::from_milli(q.milli_value(), Format::DecimalSi) != *q;
    if let Some(q) = value
        .as_str()
        .and_then(|t| t.parse::<Quantity>().ok())
        .filter(fine)
    {
        *value = Quantity::from_milli(q.milli_value(), q.format())
            .to_string()
            .into();
    }
}

fn time_error(scalar: Scalar, text: &str) -> String {
    let layout = if scalar == Scalar::Time {
        "2006-01-02T15:04:05Z07:00"
    } else {
        "2006-01-02T15:04:05.000000Z07:00"
    };
    format!("parsing time \"{text}\" as \"{layout}\": cannot parse \"{text}\" as \"2006\"")
}

/// Checks standard base64. Line breaks are allowed and dropped: then the text without them is given.
fn base64(text: &str) -> Result<Option<String>, String> {
    let (mut count, mut padding) = (0, 0);
    for (i, byte) in text.bytes().enumerate() {
        let illegal = || Err(format!("illegal base64 data at input byte {i}"));
        match byte {
            b'\n' | b'\r' => continue,
            b'=' if padding < 2 && count % 4 >= 2 => padding += 1,
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' if padding == 0 => {}
            _ => return illegal(),
        }
        count += 1;
    }
    if count % 4 != 0 {
        return Err(format!("illegal base64 data at input byte {}", text.len()));
    }
    Ok(text
        .contains(['\n', '\r'])
        .then(|| text.replace(['\n', '\r'], "")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn conform(group: &str, version: &str, kind: &str, mut object: Value) -> Result<Value, String> {
        Schema::builtin(group, version, kind)
            .unwrap()
            .conform(&mut object)
            .map(|()| object)
    }

    #[test]
    fn wrong_types_read_like_go() {
        let env =
            |env: Value| json!({"spec": {"template": {"spec": {"containers": [{"env": env}]}}}});
        let cases = [
            (
                json!({"spec": {"replicas": "1"}}),
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"spec": {"replicas": 1.5}}),
                "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"spec": {"replicas": 3_000_000_000u64}}),
                "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"metadata": {"labels": {"a": 1}}}),
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                json!({"metadata": "x"}),
                "json: cannot unmarshal string into Go struct field Deployment.metadata of type v1.ObjectMeta",
            ),
            (
                env(json!([{"value": 1}])),
                "json: cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string",
            ),
            (
                env(json!({})),
                "json: cannot unmarshal object into Go struct field Container.spec.template.spec.containers.env of type []v1.EnvVar",
            ),
            (
                json!([]),
                "json: cannot unmarshal array into Go value of type v1.Deployment",
            ),
        ];
        for (object, message) in cases {
            // An empty map in place of a list is still a wrong type.
            assert_eq!(
                conform("apps", "v1", "Deployment", object).unwrap_err(),
                message
            );
        }
    }

    #[test]
    fn values_are_written_as_kubernetes_writes_them() {
        let pod = conform("", "v1", "Pod", json!({
            "metadata": {"creationTimestamp": null, "labels": {}, "finalizers": [], "annotations": {"a": null},
                "deletionTimestamp": "2026-01-01T01:00:00.5+01:00"},
            "spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": 1, "memory": "1024Ki", "x": "0.1m"},
                "requests": {"cpu": 0.5}}, "ports": null, "livenessProbe": {"httpGet": {"port": "web"}}}, null],
                "nodeSelector": {}, "securityContext": {}, "volumes": [{"name": "v", "emptyDir": {}}]},
        })).unwrap();
        assert_eq!(
            pod["metadata"],
            json!({"annotations": {"a": ""}, "deletionTimestamp": "2026-01-01T00:00:00Z"})
        );
        assert_eq!(
            pod["spec"],
            json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Mi", "x": "1m"},
                "requests": {"cpu": "500m"}}, "livenessProbe": {"httpGet": {"port": "web"}}}, {}],
                "securityContext": {}, "volumes": [{"name": "v", "emptyDir": {}}]})
        );
        let empty = json!({"spec": {"containers": []}});
        assert_eq!(
            conform("", "v1", "Pod", empty.clone()).unwrap(),
            empty,
            "a required list is written even when empty"
        );
    }

    #[test]
    fn malformed_scalars() {
        let limits =
            |q: Value| json!({"spec": {"containers": [{"resources": {"limits": {"cpu": q}}}]}});
        let quantity = conform("", "v1", "Pod", limits(json!("1x"))).unwrap_err();
        assert!(
            quantity.starts_with("quantities must match the regular expression"),
            "{quantity}"
        );
        assert!(conform("", "v1", "Pod", limits(json!(true))).is_err());
        let secret = |data: &str| conform("", "v1", "Secret", json!({"data": {"a": data}}));
        assert_eq!(secret("YWJj\nYQ==").unwrap()["data"]["a"], "YWJjYQ==");
        for (bad, at) in [("YW!j", 2), ("YWJ", 3), ("Y===", 1), ("YQ==YQ==", 4)] {
            assert_eq!(
                secret(bad).unwrap_err(),
                format!("illegal base64 data at input byte {at}")
            );
        }
        let time = conform(
            "",
            "v1",
            "Pod",
            json!({"metadata": {"creationTimestamp": "soon"}}),
        )
        .unwrap_err();
        assert!(
            time.starts_with("parsing time \"soon\" as \"2006-01-02T15:04:05Z07:00\""),
            "{time}"
        );
        let port = json!({"spec": {"ports": [{"targetPort": true}]}});
        let error = conform("", "v1", "Service", port).unwrap_err();
        assert_eq!(
            error,
            "json: cannot unmarshal bool into Go value of type int32"
        );
    }
}
