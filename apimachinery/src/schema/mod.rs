//! The shape of a kind: which fields it has, of what types, how its lists merge, and what its defaults are.
//!
//! All built-in types share one arena, read once from a compressed table that `build.rs` makes from k8s-openapi and
//! `overlay.txt`. A custom resource gets an arena of its own from its OpenAPI schema ([`custom`]). What is done with a
//! shape:
//!
//! - [`Schema::prune`] removes fields that it does not know and names them;
//! - [`Schema::conform`] checks the types, with the messages of Go's decoder, and writes values the way Kubernetes
//!   would write them back;
//! - [`Schema::apply_defaults`] fills in what holds unconditionally;
//! - [`Shape`] walks it, for patches and server-side apply.

mod conform;
pub mod custom;
mod defaults;
mod load;
mod prune;
mod structural;

use std::sync::Arc;

use serde_json::Value;

use crate::resource::Text;

type NodeId = u32;

/// The shape of one kind's documents. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Schema {
    arena: Arc<Arena>,
    root: NodeId,
    /// The structural OpenAPI schema that this was made from, for custom resources.
    open_api: Option<Arc<Value>>,
}

#[derive(Debug, Default)]
struct Arena {
    nodes: Vec<Node>,
    /// A built-in kind: Go's decoding rules apply to it.
    native: bool,
}

/// A type. Built-in structs are shared by all their uses, lists and maps are not.
#[derive(Clone, Debug)]
enum Node {
    /// Any JSON, kept as it is.
    Any,
    Scalar(Scalar),
    Map(Map),
    List(List),
    Object(Object),
    /// The object, or something else in its place (a boolean, a list of them): custom resource schemas have these.
    Either(NodeId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    String,
    Int32,
    Int64,
    Number,
    Bool,
    /// Base64 in a string.
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
}

#[derive(Clone, Debug)]
struct Map {
    values: NodeId,
    atomic: bool,
}

#[derive(Clone, Debug)]
struct List {
    items: NodeId,
    merge: ListType,
    /// How a strategic merge patch treats it.
    patch: PatchStrategy,
}

/// How server-side apply merges a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    /// Objects identified by these fields.
    Map(Box<[Text]>),
}

/// How a strategic merge patch treats a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum PatchStrategy {
    #[default]
    Replace,
    /// As a set of scalars.
    Merge,
    /// As objects identified by this field.
    MergeBy(Text),
}

#[derive(Clone, Debug, Default)]
struct Object {
    /// `core.v1.PodSpec`; empty for custom resources.
    name: Text,
    /// Sorted by name.
    fields: Box<[Field]>,
    /// Defaults of fields below this object's own, by path.
    nested: Box<[(Box<[Text]>, Value)]>,
    atomic: bool,
    /// Fields that are not listed are kept.
    open: bool,
}

#[derive(Clone, Debug)]
struct Field {
    name: Text,
    node: NodeId,
    default: Option<Box<FieldDefault>>,
    required: bool,
    /// A struct in Go and no pointer: it exists even when it is not written.
    inline: bool,
    /// A custom resource's field that may be null.
    nullable: bool,
    retain_keys: bool,
    /// A strategic merge patch replaces the whole value.
    replace: bool,
}

#[derive(Clone, Debug)]
struct FieldDefault {
    value: Value,
    /// Zero counts as absent, as in Go for fields that are no pointers.
    if_zero: bool,
}

impl Schema {
    /// Anything goes.
    pub fn any() -> Schema {
        Schema {
            arena: Arc::new(Arena {
                nodes: vec![Node::Any],
                native: false,
            }),
            root: 0,
            open_api: None,
        }
    }

    /// The structural OpenAPI schema of a custom resource.
    pub fn open_api(&self) -> Option<&Value> {
        self.open_api.as_deref()
    }

    /// The shape of a built-in kind.
    pub fn builtin(group: &str, version: &str, kind: &str) -> Option<Schema> {
        let package = match group {
            "" => "core",
            _ => group.split('.').next().unwrap_or_default(),
        };
        Schema::definition(&format!("{package}.{version}.{kind}"))
    }

    /// The shape of a type by its package, version and name: `core.v1.PodSpec`, `meta.v1.ObjectMeta`.
    pub fn definition(name: &str) -> Option<Schema> {
        load::find(name)
    }

    /// The root of this shape, to walk down from.
    pub fn shape(&self) -> Shape<'_> {
        Shape {
            arena: &self.arena,
            node: self.node(self.root),
        }
    }

    /// Whether this is a built-in kind, which is decoded by Go's rules.
    pub fn is_native(&self) -> bool {
        self.arena.native
    }

    fn node(&self, id: NodeId) -> &Node {
        self.arena.node(id)
    }

    /// Whether there is nothing to find below: no object, list or map.
    fn is_leaf(&self, id: NodeId) -> bool {
        matches!(self.node(id), Node::Scalar(_) | Node::Any)
    }
}

impl Arena {
    fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }
}

impl Object {
    fn field(&self, name: &str) -> Option<&Field> {
        // Of few, most are told apart by their length.
        const FEW: usize = 8;
        if self.fields.len() <= FEW {
            return self.fields.iter().find(|field| *field.name == *name);
        }
        self.fields
            .binary_search_by(|f| (*f.name).cmp(name))
            .ok()
            .map(|i| &self.fields[i])
    }
}

/// One place in a schema.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    arena: &'a Arena,
    node: &'a Node,
}

impl<'a> Shape<'a> {
    fn at(self, id: NodeId) -> Shape<'a> {
        Shape {
            arena: self.arena,
            node: self.arena.node(id),
        }
    }

    fn object_field(self, name: &str) -> Option<&'a Field> {
        match self.node {
            Node::Object(object) => object.field(name),
            Node::Either(id) => self.at(*id).object_field(name),
            _ => None,
        }
    }

    /// The shape of a field of an object, or of a map's values.
    pub fn field(self, name: &str) -> Option<Shape<'a>> {
        match self.node {
            Node::Map(map) => Some(self.at(map.values)),
            _ => self.object_field(name).map(|f| self.at(f.node)),
        }
    }

    /// The shape of a list's items.
    pub fn items(self) -> Option<Shape<'a>> {
        match self.node {
            Node::List(list) => Some(self.at(list.items)),
            _ => None,
        }
    }

    /// Whether this object itself lists the field, rather than allowing it.
    pub fn lists(self, name: &str) -> bool {
        self.object_field(name).is_some()
    }

    /// Whether a built-in kind's field is a struct that exists even when it is not written.
    pub fn is_inline(self, field: &str) -> bool {
        self.object_field(field).is_some_and(|f| f.inline)
    }

    /// Whether the field of a built-in kind has Go's zero value when it is not written.
    pub fn is_required(self, field: &str) -> bool {
        self.arena.native && self.object_field(field).is_some_and(|f| f.required)
    }

    /// Whether fields that are not listed are kept, whatever they hold.
    pub fn is_open(self) -> bool {
        match self.node {
            Node::Object(object) => object.open,
            _ => false,
        }
    }

    /// An object, or something else in its place.
    pub fn is_either(self) -> bool {
        matches!(self.node, Node::Either(_))
    }

    /// The fields that this object lists, with their shapes.
    pub fn fields(self) -> impl Iterator<Item = (&'a str, Shape<'a>)> {
        let fields: &[Field] = match self.node {
            Node::Object(object) => &object.fields,
            _ => &[],
        };
        fields
            .iter()
            .map(move |field| (&*field.name, self.at(field.node)))
    }

    /// The name of this object's type, which is not there for custom resources: `core.v1.PodSpec`.
    pub fn object_name(self) -> Option<&'a str> {
        match self.node {
            Node::Object(object) => Some(&*object.name).filter(|name| !name.is_empty()),
            _ => None,
        }
    }

    pub fn scalar(self) -> Option<Scalar> {
        match self.node {
            Node::Scalar(scalar) => Some(*scalar),
            _ => None,
        }
    }

    /// The type of a scalar as server-side apply names it; `None` for what is no scalar.
    pub fn scalar_name(self) -> Option<&'static str> {
        match self.node {
            Node::Scalar(scalar) => Some(match scalar {
                Scalar::Bool => "boolean",
                Scalar::Int32 | Scalar::Int64 | Scalar::Number => "numeric",
                Scalar::String | Scalar::Bytes | Scalar::Time | Scalar::MicroTime => "string",
                Scalar::Quantity | Scalar::IntOrString => "untyped",
            }),
            _ => None,
        }
    }

    pub fn is_object(self) -> bool {
        matches!(self.node, Node::Object(_) | Node::Either(_))
    }

    pub fn is_map(self) -> bool {
        matches!(self.node, Node::Map(_))
    }

    pub fn is_list(self) -> bool {
        matches!(self.node, Node::List(_))
    }

    /// Nothing is known about what is below.
    pub fn is_any(self) -> bool {
        matches!(self.node, Node::Any)
    }

    /// How server-side apply merges this list.
    pub fn list_type(self) -> Option<&'a ListType> {
        match self.node {
            Node::List(list) => Some(&list.merge),
            _ => None,
        }
    }

    /// Whether server-side apply takes this object or map as one value.
    pub fn is_atomic(self) -> bool {
        match self.node {
            Node::Object(object) => object.atomic,
            Node::Map(map) => map.atomic,
            _ => false,
        }
    }

    /// Whether a strategic merge patch merges this list rather than replacing it.
    pub fn patch_merges(self) -> bool {
        matches!(
            self.node,
            Node::List(List {
                patch: PatchStrategy::Merge | PatchStrategy::MergeBy(_),
                ..
            })
        )
    }

    /// The field by which a strategic merge patch tells the objects of this list apart.
    pub fn patch_merge_key(self) -> Option<&'a str> {
        match self.node {
            Node::List(List {
                patch: PatchStrategy::MergeBy(key),
                ..
            }) => Some(key),
            _ => None,
        }
    }

    /// Whether a strategic merge patch replaces the value of this object's field.
    pub fn patch_replaces(self, field: &str) -> bool {
        self.object_field(field).is_some_and(|f| f.replace)
    }

    /// Whether a strategic merge patch may drop the other keys of this object's field.
    pub fn patch_retains_keys(self, field: &str) -> bool {
        self.object_field(field).is_some_and(|f| f.retain_keys)
    }

    /// The unconditional default of this object's field.
    pub fn default_of(self, field: &str) -> Option<&'a Value> {
        self.object_field(field)?.default.as_ref().map(|d| &d.value)
    }
}
