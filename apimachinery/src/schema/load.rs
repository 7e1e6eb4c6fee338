//! Reads the table of built-in types. It stays in memory as one text that all names borrow from.

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, LazyLock};

use super::{
    Arena, Field, FieldDefault, List, ListType, Map, Node, NodeId, Object, PatchStrategy, Scalar,
    Schema,
};
use crate::resource::Text;

struct Types {
    arena: Arc<Arena>,
    /// Definitions, by name.
    names: HashMap<&'static str, NodeId>,
}

static TYPES: LazyLock<Types> = LazyLock::new(|| {
    let mut text = String::new();
    let packed: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/schemas.z"));
    // What build.rs packed inflates and reads back; the tests of this module load it.
    if let Err(error) = flate2::read::DeflateDecoder::new(packed).read_to_string(&mut text) {
        unreachable!("the table of built-in types is damaged: {error}");
    }
    read(Box::leak(text.into_boxed_str()))
});

pub(super) fn find(name: &str) -> Option<Schema> {
    let root = *TYPES.names.get(name)?;
    Some(Schema {
        arena: TYPES.arena.clone(),
        root,
        open_api: None,
    })
}

fn read(text: &'static str) -> Types {
    let heads = text
        .lines()
        .filter_map(|l| l.strip_prefix('#'))
        .map(|l| l.split(' ').next().unwrap_or_default());
    let names: HashMap<&'static str, NodeId> = heads.zip(0..).collect();
    // Definitions come first, in order; the lists and maps of their fields follow as they are met.
    let mut reader = Reader {
        nodes: vec![Node::Any; names.len()],
        scalars: HashMap::new(),
        names,
    };
    let mut current: Option<(NodeId, Object, Vec<Field>)> = None;
    for line in text.lines() {
        if let Some(head) = line.strip_prefix('#') {
            reader.finish(current.take());
            let (name, attributes) = head.split_once(' ').unwrap_or((head, ""));
            let object = Object {
                name: name.into(),
                atomic: attributes == "atomic",
                ..Object::default()
            };
            current = reader.names.get(name).map(|id| (*id, object, Vec::new()));
        } else if let Some((_, object, fields)) = &mut current {
            reader.field(line, object, fields);
        }
    }
    reader.finish(current);
    reader.nodes.shrink_to_fit();
    Types {
        arena: Arc::new(Arena {
            nodes: reader.nodes,
            native: true,
        }),
        names: reader.names,
    }
}

struct Reader {
    nodes: Vec<Node>,
    names: HashMap<&'static str, NodeId>,
    /// Scalars and `Any` have one node each.
    scalars: HashMap<&'static str, NodeId>,
}

impl Reader {
    fn finish(&mut self, done: Option<(NodeId, Object, Vec<Field>)>) {
        if let Some((id, mut object, mut fields)) = done {
            fields.sort_by(|a, b| a.name.cmp(&b.name));
            object.fields = fields.into();
            self.nodes[id as usize] = Node::Object(object);
        }
    }

    /// `name type attributes default`, where the default is `= JSON` or `~ JSON`.
    fn field(&mut self, line: &'static str, object: &mut Object, fields: &mut Vec<Field>) {
        let (line, default) = split_default(line);
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(kind)) = (words.next(), words.next()) else {
            return;
        };
        if kind == "@" {
            if let Some(default) = default {
                let path: Box<[Text]> = name.split('.').map(Text::from).collect();
                let mut nested = std::mem::take(&mut object.nested).into_vec();
                nested.push((path, default.value));
                object.nested = nested.into();
            }
            return;
        }
        let node = self.node(kind);
        let mut field = Field {
            name: name.into(),
            node,
            default: default.map(Box::new),
            required: false,
            // Object metadata is one everywhere.
            inline: kind == "*meta.v1.ObjectMeta",
            nullable: false,
            retain_keys: false,
            replace: false,
        };
        for word in words {
            match (
                word.split_once('=').unwrap_or((word, "")),
                &mut self.nodes[node as usize],
            ) {
                (("!", _), _) => field.required = true,
                (("struct", _), _) => field.inline = true,
                (("retainKeys", _), _) => field.retain_keys = true,
                (("replace", _), _) => field.replace = true,
                (("atomic", _), Node::Map(map)) => map.atomic = true,
                (("set", _), Node::List(list)) => list.merge = ListType::Set,
                (("map", keys), Node::List(list)) => {
                    list.merge = ListType::Map(keys.split(',').map(Text::from).collect());
                }
                (("merge", ""), Node::List(list)) => list.patch = PatchStrategy::Merge,
                (("merge", key), Node::List(list)) => {
                    list.patch = PatchStrategy::MergeBy(key.into())
                }
                _ => {}
            }
        }
        fields.push(field);
    }

    fn node(&mut self, kind: &'static str) -> NodeId {
        let node = match kind.split_at(1) {
            ("*", name) => {
                return self
                    .names
                    .get(name)
                    .copied()
                    .unwrap_or_else(|| self.node("j"));
            }
            ("[", items) => {
                let (merge, patch) = (ListType::Atomic, PatchStrategy::Replace);
                Node::List(List {
                    items: self.node(items),
                    merge,
                    patch,
                })
            }
            ("{", values) => Node::Map(Map {
                values: self.node(values),
                atomic: false,
            }),
            ("|", name) => match self.names.get(name) {
                Some(id) => Node::Either(*id),
                None => Node::Any,
            },
            _ => {
                if let Some(id) = self.scalars.get(kind) {
                    return *id;
                }
                self.scalars.insert(kind, self.nodes.len() as NodeId);
                scalar(kind)
            }
        };
        self.nodes.push(node);
        (self.nodes.len() - 1) as NodeId
    }
}

fn scalar(kind: &str) -> Node {
    Node::Scalar(match kind {
        "s" => Scalar::String,
        "i" => Scalar::Int32,
        "l" => Scalar::Int64,
        "n" => Scalar::Number,
        "b" => Scalar::Bool,
        "y" => Scalar::Bytes,
        "t" => Scalar::Time,
        "u" => Scalar::MicroTime,
        "q" => Scalar::Quantity,
        "o" => Scalar::IntOrString,
        _ => return Node::Any,
    })
}

fn split_default(line: &str) -> (&str, Option<FieldDefault>) {
    let at = [" = ", " ~ "].iter().find_map(|m| line.find(m));
    let Some(at) = at else { return (line, None) };
    let value = serde_json::from_str(&line[at + 3..]).ok();
    (
        &line[..at],
        value.map(|value| FieldDefault {
            value,
            if_zero: line.as_bytes()[at + 1] == b'~',
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::super::Shape;
    use super::*;
    use crate::resource::builtin;

    #[test]
    fn every_kind_has_a_shape() {
        for r in builtin() {
            if r.plural == "bindings" || !r.kind.ends_with("Options") {
                let schema = Schema::builtin(&r.group, &r.version, &r.kind);
                let schema =
                    schema.unwrap_or_else(|| panic!("{} has no schema", r.group_version_kind()));
                assert!(
                    schema
                        .shape()
                        .field("metadata")
                        .is_some_and(Shape::is_object),
                    "{}",
                    r.kind
                );
            }
        }
        for name in [
            "autoscaling.v1.Scale",
            "policy.v1.Eviction",
            "authentication.v1.TokenRequest",
            "meta.v1.Status",
        ] {
            assert!(Schema::definition(name).is_some(), "{name}");
        }
    }

    #[test]
    fn fields_carry_the_overlay() {
        let pod = Schema::builtin("", "v1", "Pod").unwrap();
        let spec = pod.shape().field("spec").unwrap();
        let containers = spec.field("containers").unwrap();
        assert_eq!(containers.patch_merge_key(), Some("name"));
        assert_eq!(
            containers.list_type(),
            Some(&ListType::Map(["name".into()].into()))
        );
        assert!(spec.patch_retains_keys("volumes") && !spec.patch_retains_keys("containers"));
        assert!(spec.field("nodeSelector").unwrap().is_atomic());
        assert_eq!(spec.default_of("dnsPolicy"), Some(&"ClusterFirst".into()));
        let tolerations = spec.field("tolerations").unwrap();
        assert_eq!(
            (tolerations.list_type(), tolerations.patch_merges()),
            (Some(&ListType::Atomic), false)
        );
        let labels = pod
            .shape()
            .field("metadata")
            .unwrap()
            .field("labels")
            .unwrap();
        assert!(labels.is_map() && !labels.is_atomic());
        let finalizers = pod
            .shape()
            .field("metadata")
            .unwrap()
            .field("finalizers")
            .unwrap();
        assert!(finalizers.patch_merges() && finalizers.patch_merge_key().is_none());
    }

    #[test]
    fn the_table_is_small() {
        let arena = &TYPES.arena;
        let fields: usize = arena
            .nodes
            .iter()
            .map(|n| {
                if let Node::Object(o) = n {
                    o.fields.len()
                } else {
                    0
                }
            })
            .sum();
        let bytes = arena.nodes.len() * size_of::<Node>() + fields * size_of::<Field>();
        assert!(fields > 2000, "{fields} fields");
        assert!(bytes < 1 << 20, "{bytes} bytes");
    }
}
