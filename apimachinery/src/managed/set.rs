//! Sets of fields, as trees of path elements.
//!
//! An element is kept in the text that `fieldsV1` has for it: `f:NAME` a field, `k:{...}` the item of a list with these
//! keys, `v:VALUE` an item of a set, `i:N` an item by its index. Texts are canonical (keys sorted, numbers and strings as
//! Go writes them), so elements are equal exactly when their texts are.

use std::cmp::Ordering;
use std::fmt::Write as _;

use serde_json::{Map, Value};

/// The text of one path element.
pub type Element = Box<str>;

/// A set of fields. Having a field says nothing about the fields below it or above it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// Sorted by element, without nodes that hold nothing.
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub element: Element,
    /// Whether the field itself is in the set.
    pub member: bool,
    pub below: Set,
}

/// Why a `fieldsV1` document is not a set.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no path element")]
pub struct BadElement(String);

pub fn field_element(name: &str) -> Element {
    let mut text = String::with_capacity(name.len() + 2);
    text.push_str("f:");
    text.push_str(name);
    text.into()
}

/// The element of a set's item; `None` for what is no scalar.
fn value_element(value: &Value) -> Option<Element> {
    let mut text = String::new();
    write_value_element(&mut text, value).then(|| text.into())
}

/// Appends the element of a set's item; false for what is no scalar.
pub fn write_value_element(text: &mut String, value: &Value) -> bool {
    text.push_str("v:");
    write_scalar(text, value)
}

/// The element of an item that its keys identify. The keys must be sorted.
fn key_element<'a>(keys: impl IntoIterator<Item = (&'a str, &'a Value)>) -> Element {
    let mut text = String::new();
    write_key_element(&mut text, keys);
    text.into()
}

/// Appends the element of an item that its keys identify. The keys must be sorted.
pub fn write_key_element<'a>(
    text: &mut String,
    keys: impl IntoIterator<Item = (&'a str, &'a Value)>,
) {
    text.push_str("k:{");
    for (i, (name, value)) in keys.into_iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        write_string(text, name);
        text.push(':');
        if !write_scalar(text, value) {
            let _ = write!(text, "{value}");
        }
    }
    text.push('}');
}

/// Writes a scalar as Go's JSON encoder does; false for an object or a list.
fn write_scalar(text: &mut String, value: &Value) -> bool {
    match value {
        Value::String(string) => write_string(text, string),
        Value::Number(number) => match number.as_f64() {
            // A float without a fraction is the same number as the integer.
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 1e15 => {
                let _ = write!(text, "{}", float as i64);
            }
            _ => {
                let _ = write!(text, "{number}");
            }
        },
        Value::Bool(flag) => text.push_str(if *flag { "true" } else { "false" }),
        Value::Null => text.push_str("null"),
        Value::Array(_) | Value::Object(_) => return false,
    }
    true
}

/// A JSON string in which Go also escapes what HTML minds.
fn write_string(text: &mut String, string: &str) {
    text.push('"');
    // Without a way out in the middle, so that many bytes are looked at at once.
    let plain = string.bytes().fold(true, |plain, byte| {
        plain & (b' '..0x80).contains(&byte) & !matches!(byte, b'"' | b'\\' | b'<' | b'>' | b'&')
    });
    if plain {
        text.push_str(string);
        text.push('"');
        return;
    }
    for c in string.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

/// The canonical text of an element that was read: `None` for kinds of elements that are not known.
fn canonical(text: String) -> Result<Option<Element>, BadElement> {
    let parse = |json: &str| serde_json::from_str::<Value>(json).ok();
    let element = match text.split_at_checked(2) {
        Some(("f:", _)) => return Ok(Some(text.into())),
        Some(("v:", json)) => parse(json).and_then(|value| value_element(&value)),
        Some(("k:", json)) => match parse(json) {
            Some(Value::Object(keys)) => {
                Some(key_element(keys.iter().map(|(k, v)| (k.as_str(), v))))
            }
            _ => None,
        },
        Some(("i:", index)) => index
            .parse::<i64>()
            .ok()
            .map(|index| format!("i:{index}").into()),
        Some((kind, _)) if kind.ends_with(':') => return Ok(None),
        _ => None,
    };
    element.map(Some).ok_or(BadElement(text))
}

/// How messages show an element: `.spec`, `[name="a"]`, `[="v"]`, `[3]`.
fn show(element: &str, out: &mut String) {
    let plain = |value: &Value| match value {
        Value::String(string) => crate::field::quote(string),
        other => other.to_string(),
    };
    let (kind, rest) = element.split_at(2);
    let _ = match kind {
        "f:" => write!(out, ".{rest}"),
        "k:" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let keys: Vec<String> = keys
                .iter()
                .map(|(k, v)| format!("{k}={}", plain(v)))
                .collect();
            write!(out, "[{}]", keys.join(","))
        }
        "v:" => {
            let value: Value = serde_json::from_str(rest).unwrap_or_default();
            write!(out, "[={}]", plain(&value))
        }
        _ => write!(out, "[{rest}]"),
    };
}

/// One element, as messages show it.
pub fn shown(element: &str) -> String {
    let mut out = String::new();
    show(element, &mut out);
    out
}

pub static EMPTY: Set = Set { nodes: Vec::new() };

impl Set {
    /// A set of fields by their names: `metadata.labels`.
    pub fn of(paths: &[&str]) -> Set {
        let mut set = Set::default();
        for path in paths {
            let mut at = &mut set;
            let mut names = path.split('.').peekable();
            while let Some(name) = names.next() {
                let node = at.node(field_element(name));
                node.member |= names.peek().is_none();
                at = &mut node.below;
            }
        }
        set
    }

    /// The node of the element, made if absent. A node that stays without content must be dropped again.
    fn node(&mut self, element: Element) -> &mut Node {
        let at = match self
            .nodes
            .binary_search_by(|node| node.element.cmp(&element))
        {
            Ok(at) => at,
            Err(at) => {
                let below = Set::default();
                let node = Node {
                    element,
                    member: false,
                    below,
                };
                self.nodes.insert(at, node);
                at
            }
        };
        &mut self.nodes[at]
    }

    pub fn get(&self, element: &str) -> Option<&Node> {
        let at = self
            .nodes
            .binary_search_by(|node| (*node.element).cmp(element))
            .ok()?;
        Some(&self.nodes[at])
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Adds a field and what is below it. Cheap when elements come in order.
    pub fn push(&mut self, element: Element, member: bool, below: Set) {
        if !member && below.is_empty() {
            return;
        }
        if self.nodes.last().is_none_or(|last| last.element < element) {
            self.nodes.push(Node {
                element,
                member,
                below,
            });
            return;
        }
        let node = self.node(element);
        node.member |= member;
        node.below.union(below);
    }

    /// Adds all fields of the other set.
    pub fn union(&mut self, other: Set) {
        if self.nodes.is_empty() {
            *self = other;
            return;
        }
        for node in other.nodes {
            self.push(node.element, node.member, node.below);
        }
    }

    /// Whether both sets have a field in common.
    pub fn intersects(&self, other: &Set) -> bool {
        self.pairs(other)
            .any(|(a, b)| b.is_some_and(|b| (a.member && b.member) || a.below.intersects(&b.below)))
    }

    /// The fields that are in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Set) -> Set {
        let mut common = Set::default();
        for (a, b) in self.pairs(other) {
            if let Some(b) = b {
                common.push(
                    a.element.clone(),
                    a.member && b.member,
                    a.below.intersection(&b.below),
                );
            }
        }
        common
    }

    /// Takes the other set's fields away, but not what is below or above them.
    pub fn subtract(&mut self, other: &Set) {
        self.subtract_with(other, &|node, gone| {
            node.member &= !gone.member;
            node.below.subtract(&gone.below);
        });
    }

    /// Takes the other set's fields away, with all that is below them.
    pub fn subtract_trees(&mut self, other: &Set) {
        self.subtract_with(other, &|node, gone| {
            if gone.member {
                node.member = false;
                node.below = Set::default();
            } else {
                node.below.subtract_trees(&gone.below);
            }
        });
    }

    fn subtract_with(&mut self, other: &Set, take: &dyn Fn(&mut Node, &Node)) {
        if other.is_empty() {
            return;
        }
        let mut gone = other.nodes.iter().peekable();
        self.nodes.retain_mut(|node| {
            while gone.next_if(|gone| gone.element < node.element).is_some() {}
            if let Some(gone) = gone.peek().filter(|gone| gone.element == node.element) {
                take(node, gone);
            }
            node.member || !node.below.is_empty()
        });
    }

    /// This set's nodes, each with the other's node of the same element.
    fn pairs<'a>(&'a self, other: &'a Set) -> impl Iterator<Item = (&'a Node, Option<&'a Node>)> {
        let mut others = other.nodes.iter().peekable();
        self.nodes.iter().map(move |node| {
            while others
                .next_if(|other| other.element < node.element)
                .is_some()
            {}
            let same = others
                .peek()
                .filter(|other| other.element == node.element)
                .copied();
            (node, same)
        })
    }

    /// The paths of all fields as messages show them, those of an object before what is below it.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect(&mut String::new(), &mut paths);
        paths
    }

    fn collect(&self, prefix: &mut String, paths: &mut Vec<String>) {
        let length = prefix.len();
        for node in self.nodes.iter().filter(|node| node.member) {
            show(&node.element, prefix);
            paths.push(prefix.clone());
            prefix.truncate(length);
        }
        for node in self.nodes.iter().filter(|node| !node.below.is_empty()) {
            show(&node.element, prefix);
            node.below.collect(prefix, paths);
            prefix.truncate(length);
        }
    }

    /// The set as `fieldsV1` has it.
    pub fn into_value(self) -> Value {
        Value::Object(self.into_fields(false))
    }

    /// The same, with a dot if the field that these are below is in the set itself.
    fn into_fields(self, is_member: bool) -> Map<String, Value> {
        let dot =
            (is_member && !self.is_empty()).then(|| (".".to_owned(), Value::Object(Map::new())));
        let fields = self.nodes.into_iter().map(|node| {
            let below = node.below.into_fields(node.member);
            (node.element.into(), Value::Object(below))
        });
        // Both come in order, of which the map is made at once.
        dot.into_iter().chain(fields).collect()
    }

    /// Reads what `fieldsV1` has. Elements of unknown kinds are dropped.
    pub fn from_value(value: &Value) -> Result<Set, BadElement> {
        let mut set = Set::default();
        for (key, below) in value.as_object().into_iter().flatten() {
            if key == "." {
                continue;
            }
            if let Some(element) = canonical(key.clone())? {
                let member = below
                    .as_object()
                    .is_none_or(|below| below.is_empty() || below.contains_key("."));
                set.push(element, member, Set::from_value(below)?);
            }
        }
        Ok(set)
    }

    /// Keeps what the function says about each node; see [`Node`].
    pub fn retain(&mut self, mut keep: impl FnMut(&mut Node) -> bool) {
        self.nodes
            .retain_mut(|node| keep(node) && (node.member || !node.below.is_empty()));
    }
}

impl PartialOrd for Node {
    fn partial_cmp(&self, other: &Node) -> Option<Ordering> {
        Some(self.element.cmp(&other.element))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn set(value: Value) -> Set {
        Set::from_value(&value).unwrap()
    }

    #[test]
    fn texts_are_canonical() {
        let foreign = json!({"f:a": {}, "k:{\"protocol\":\"TCP\",\"containerPort\":80}": {"f:x": {}},
            "v:1.0": {}, "v:\"<\"": {}, "z:new": {}, "i:3": {".": {}, "f:y": {}}});
        let expect = json!({"f:a": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {"f:x": {}},
            "v:1": {}, "v:\"\\u003c\"": {}, "i:3": {".": {}, "f:y": {}}});
        assert_eq!(set(foreign).into_value(), expect);
        for bad in ["k:[]", "k:{", "v:{}", "f", "", "i:x", "é"] {
            assert!(Set::from_value(&json!({bad: {}})).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_read_like_kubernetes() {
        let set = set(
            json!({"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}}}, "f:replicas": {}},
            "f:metadata": {"f:finalizers": {"v:\"x\"": {}}}, "f:data": {}}),
        );
        let expect = [
            ".data",
            ".metadata.finalizers[=\"x\"]",
            ".spec.replicas",
            ".spec.containers[name=\"a\"]",
            ".spec.containers[name=\"a\"].image",
        ];
        assert_eq!(set.paths(), expect);
    }

    #[test]
    fn differences() {
        let whole = || set(json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}, "f:d": {}}));
        let gone = set(json!({"f:a": {}}));
        let mut plain = whole();
        plain.subtract(&gone);
        assert_eq!(
            plain,
            set(json!({"f:a": {"f:b": {}, "f:c": {}}, "f:d": {}}))
        );
        let mut trees = whole();
        trees.subtract_trees(&gone);
        assert_eq!(trees, set(json!({"f:d": {}})));
        assert!(whole().intersects(&gone));
        assert!(!plain.intersects(&gone));
        assert_eq!(
            Set::of(&["a.b", "d"]),
            set(json!({"f:a": {"f:b": {}}, "f:d": {}}))
        );
    }

    fn any_set() -> impl Strategy<Value = Set> {
        let leaf = Just(json!({}));
        let name = prop_oneof![
            Just("f:a"),
            Just("f:b"),
            Just("k:{\"n\":1}"),
            Just("v:2"),
            Just(".")
        ];
        leaf.prop_recursive(3, 12, 3, move |inner| {
            proptest::collection::btree_map(name.clone(), inner, 0..4)
                .prop_map(|map| map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
        })
        .prop_map(|value| {
            let mut value: Value = value;
            drop_dots(&mut value);
            set(value)
        })
    }

    /// A dot's content means nothing.
    fn drop_dots(value: &mut Value) {
        for (key, below) in value.as_object_mut().into_iter().flatten() {
            match key.as_str() {
                "." => *below = json!({}),
                _ => drop_dots(below),
            }
        }
    }

    proptest! {
        #[test]
        fn sets_obey_the_laws(a in any_set(), b in any_set()) {
            prop_assert_eq!(&set(a.clone().into_value()), &a);
            let common = a.intersection(&b);
            prop_assert_eq!(common.is_empty(), !a.intersects(&b));
            prop_assert_eq!(&common, &b.intersection(&a));
            let mut rest = a.clone();
            rest.subtract(&b);
            prop_assert!(!rest.intersects(&b));
            rest.union(common);
            prop_assert_eq!(&rest, &a);
            let mut all = a.clone();
            all.union(b.clone());
            prop_assert_eq!(&all.intersection(&b), &b);
            let mut none = a.clone();
            none.subtract_trees(&a);
            prop_assert!(none.is_empty());
        }
    }
}
