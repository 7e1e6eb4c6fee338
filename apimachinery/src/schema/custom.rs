//! The shape of a custom resource, from the structural OpenAPI schema in its definition.

use std::sync::Arc;

use serde_json::Value;

use super::{
    Arena, Field, FieldDefault, List, ListType, Map, Node, NodeId, Object, PatchStrategy, Scalar,
    Schema, load,
};
use crate::resource::Text;

impl Schema {
    /// Reads `openAPIV3Schema`. The type and object metadata of the root and of embedded resources are those of the
    /// built-in kinds.
    pub fn from_open_api(schema: &Value) -> Schema {
        let mut builder = Builder {
            nodes: vec![Node::Any],
            metadata: None,
        };
        let root = match builder.node(schema) {
            id if matches!(builder.nodes[id as usize], Node::Object(_)) => id,
            // A root without fields of its own still is an object; preserving is decided there.
            _ => builder.push(Node::Object(Object {
                open: preserves(schema),
                ..Object::default()
            })),
        };
        builder.add_type_and_metadata(root);
        Schema {
            arena: Arc::new(Arena {
                nodes: builder.nodes,
                native: false,
            }),
            root,
            open_api: Some(Arc::new(schema.clone())),
        }
    }
}

fn preserves(schema: &Value) -> bool {
    schema["x-kubernetes-preserve-unknown-fields"] == true
}

struct Builder {
    nodes: Vec<Node>,
    metadata: Option<NodeId>,
}

impl Builder {
    fn push(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        (self.nodes.len() - 1) as NodeId
    }

    fn node(&mut self, schema: &Value) -> NodeId {
        if schema["x-kubernetes-int-or-string"] == true {
            return self.push(Node::Scalar(Scalar::IntOrString));
        }
        let node = match schema["type"].as_str().unwrap_or_default() {
            "object" => return self.object(schema),
            "" if schema["properties"].is_object() => return self.object(schema),
            "array" => Node::List(List {
                items: self.node(&schema["items"]),
                merge: match schema["x-kubernetes-list-type"].as_str() {
                    Some("set") => ListType::Set,
                    Some("map") => {
                        let keys = schema["x-kubernetes-list-map-keys"]
                            .as_array()
                            .into_iter()
                            .flatten();
                        ListType::Map(
                            keys.filter_map(Value::as_str)
                                .map(|k| Text::from(k.to_owned()))
                                .collect(),
                        )
                    }
                    _ => ListType::Atomic,
                },
                patch: PatchStrategy::Replace,
            }),
            "string" => Node::Scalar(Scalar::String),
            "integer" => Node::Scalar(Scalar::Int64),
            "number" => Node::Scalar(Scalar::Number),
            "boolean" => Node::Scalar(Scalar::Bool),
            _ => return 0,
        };
        self.push(node)
    }

    fn object(&mut self, schema: &Value) -> NodeId {
        let atomic = schema["x-kubernetes-map-type"] == "atomic";
        let embedded = schema["x-kubernetes-embedded-resource"] == true;
        let properties = schema["properties"].as_object();
        if properties.is_none() && !embedded {
            let values = match &schema["additionalProperties"] {
                values @ Value::Object(_) => Some(self.node(values)),
                Value::Bool(true) => Some(0),
                _ if preserves(schema) => Some(0),
                _ => None,
            };
            if let Some(values) = values {
                return self.push(Node::Map(Map { values, atomic }));
            }
        }
        let mut fields: Vec<Field> = Vec::new();
        for (name, property) in properties.into_iter().flatten() {
            let default = property.get("default").map(|d| FieldDefault {
                value: d.clone(),
                if_zero: false,
            });
            let required = schema["required"]
                .as_array()
                .is_some_and(|r| r.iter().any(|r| r == name));
            let field = Field {
                nullable: property["nullable"] == true,
                required,
                default: default.map(Box::new),
                ..field(name.clone().into(), self.node(property))
            };
            fields.push(field);
        }
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        let object = Object {
            fields: fields.into(),
            atomic,
            open: preserves(schema) || schema["additionalProperties"] == true,
            ..Object::default()
        };
        let id = self.push(Node::Object(object));
        if embedded {
            self.add_type_and_metadata(id);
        }
        id
    }

    fn add_type_and_metadata(&mut self, id: NodeId) {
        let string = self.push(Node::Scalar(Scalar::String));
        let metadata = self.metadata();
        let Node::Object(object) = &mut self.nodes[id as usize] else {
            return;
        };
        let mut fields = std::mem::take(&mut object.fields).into_vec();
        for (name, node) in [
            ("apiVersion", string),
            ("kind", string),
            ("metadata", metadata),
        ] {
            fields.retain(|f| f.name != name);
            fields.push(field(name.into(), node));
        }
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        object.fields = fields.into();
    }

    /// The built-in ObjectMeta, copied into this arena.
    fn metadata(&mut self) -> NodeId {
        if let Some(id) = self.metadata {
            return id;
        }
        let id = match load::find("meta.v1.ObjectMeta") {
            Some(meta) => self.copy(&meta.arena, meta.root),
            None => 0,
        };
        self.metadata = Some(id);
        id
    }

    fn copy(&mut self, from: &Arena, id: NodeId) -> NodeId {
        let mut node = from.node(id).clone();
        match &mut node {
            Node::Any | Node::Scalar(_) => {}
            Node::Map(map) => map.values = self.copy(from, map.values),
            Node::List(list) => list.items = self.copy(from, list.items),
            Node::Object(object) => {
                for field in &mut object.fields {
                    field.node = self.copy(from, field.node);
                }
            }
            Node::Either(object) => *object = self.copy(from, *object),
        }
        self.push(node)
    }
}

fn field(name: Text, node: NodeId) -> Field {
    Field {
        name,
        node,
        default: None,
        required: false,
        inline: false,
        nullable: false,
        retain_keys: false,
        replace: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Schema {
        Schema::from_open_api(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "required": ["size"], "properties": {
                "size": {"type": "integer", "default": 3},
                "mode": {"type": "string", "nullable": true, "default": "a"},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "tags": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "string"}}}},
                "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                    "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
                "template": {"type": "object", "x-kubernetes-embedded-resource": true,
                    "x-kubernetes-preserve-unknown-fields": true},
            }},
        }}))
    }

    #[test]
    fn prunes_and_defaults() {
        let mut object = json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "a", "bogus": 1},
            "spec": {"mode": null, "unknown": 1, "free": {"a": {"b": 1}}, "tags": {"t": {"a": "", "b": 1}},
                "parts": [{"name": "p", "z": 1}], "template": {"kind": "Y", "metadata": {"bogus": 1}, "data": 1}}});
        let schema = schema();
        let unknown = schema.prune(&mut object);
        let expect = [
            "metadata.bogus",
            "spec.unknown",
            "spec.parts[0].z",
            "spec.tags.t.b",
            "spec.template.metadata.bogus",
        ];
        assert_eq!(unknown.len(), expect.len());
        assert!(
            expect.iter().all(|e| unknown.iter().any(|u| u == e)),
            "{unknown:?}"
        );
        schema.apply_defaults(&mut object);
        assert_eq!(
            object["spec"],
            json!({"size": 3, "mode": null, "free": {"a": {"b": 1}}, "tags": {"t": {"a": ""}}, "parts": [{"name": "p"}],
                "template": {"kind": "Y", "metadata": {}, "data": 1}})
        );
    }

    #[test]
    fn knows_list_keys_and_checks_metadata() {
        let schema = schema();
        let parts = schema
            .shape()
            .field("spec")
            .and_then(|s| s.field("parts"))
            .unwrap();
        assert_eq!(
            parts.list_type(),
            Some(&ListType::Map(["name".into()].into()))
        );
        let error = schema
            .conform(&mut json!({"metadata": {"labels": {"a": 1}}, "spec": 1}))
            .unwrap_err();
        let expect = "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string";
        assert_eq!(error, expect);
        assert_eq!(schema.conform(&mut json!({"spec": {"size": "x"}})), Ok(()));
    }
}
