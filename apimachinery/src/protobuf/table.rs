//! Reads `messages.txt`. All names borrow from that text.

use std::collections::HashMap;
use std::sync::LazyLock;

pub type MessageId = u16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    String,
    Bool,
    Int32,
    Int64,
    Double,
    Bytes,
    Time,
    MicroTime,
    Duration,
    Quantity,
    IntOrString,
    /// JSON as text.
    Raw,
    /// A JSON schema, or a list of them, a boolean, or a list of strings in its place.
    SchemaOrList(MessageId),
    SchemaOrBool(MessageId),
    SchemaOrStrings(MessageId),
    Message(MessageId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    One,
    List,
    /// A list that is a message of its own, so that nil and empty differ.
    Wrapped,
    Map,
    MapOfWrapped,
}

#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub number: u16,
    /// In JSON; `-` when inline.
    pub name: &'static str,
    pub shape: Shape,
    pub item: Item,
    pub pointer: bool,
    pub omit_empty: bool,
    pub omit_zero: bool,
    pub inline: bool,
}

#[derive(Debug)]
struct Entry {
    start: u32,
    end: u32,
}

#[derive(Debug)]
pub struct Table {
    messages: Vec<Entry>,
    fields: Vec<Field>,
    names: HashMap<&'static str, MessageId>,
}

impl Table {
    #[must_use]
    pub fn find(&self, name: &str) -> Option<MessageId> {
        self.names.get(name).copied()
    }

    /// The fields of a message, in the order of their numbers.
    #[must_use]
    pub fn fields(&self, id: MessageId) -> &[Field] {
        let entry = self.messages.get(usize::from(id));
        entry.map_or(&[], |e| &self.fields[e.start as usize..e.end as usize])
    }
}

const TEXT: &str = include_str!("messages.txt");
const SCHEMA: &str = "apiextensions.v1.JSONSchemaProps";

pub fn get() -> &'static Table {
    static TABLE: LazyLock<Table> = LazyLock::new(|| read(TEXT));
    &TABLE
}

fn read(text: &'static str) -> Table {
    let heads = text.lines().filter_map(message_name);
    let mut names: HashMap<&'static str, MessageId> = heads.zip(0..).collect();
    for (alias, name) in text.lines().filter_map(alias) {
        if let Some(id) = names.get(name) {
            names.insert(alias, *id);
        }
    }
    let mut table = Table {
        messages: Vec::with_capacity(names.len()),
        fields: Vec::new(),
        names,
    };
    let mut package = "";
    for line in text.lines().filter(|line| !line.starts_with("# ")) {
        let end = table.fields.len() as u32;
        if let Some(name) = message_name(line) {
            package = name.rsplit_once('.').map_or("", |(package, _)| package);
            table.messages.push(Entry { start: end, end });
        } else if let Some(field) = field(&table, line, package) {
            table.fields.push(field);
            if let Some(last) = table.messages.last_mut() {
                last.end = end + 1;
            }
        }
    }
    table.fields.shrink_to_fit();
    table
}

fn message_name(line: &'static str) -> Option<&'static str> {
    line.strip_prefix('#')
        .filter(|name| !name.contains([' ', '=']))
}

/// `#name=other`: both are the same message.
fn alias(line: &'static str) -> Option<(&'static str, &'static str)> {
    line.strip_prefix('#')?.split_once('=')
}

fn field(table: &Table, line: &'static str, package: &str) -> Option<Field> {
    let mut words = line.split(' ');
    let number = words.next()?.parse().ok()?;
    let (name, kind) = (words.next()?, words.next()?);
    let flags = words.next().unwrap_or_default();
    let (shape, kind) = [
        ("{w", Shape::MapOfWrapped),
        ("{", Shape::Map),
        ("[", Shape::List),
        ("w", Shape::Wrapped),
    ]
    .into_iter()
    .find_map(|(prefix, shape)| Some((shape, kind.strip_prefix(prefix)?)))
    .unwrap_or((Shape::One, kind));
    let schema = || table.find(SCHEMA);
    let item = match kind {
        "s" => Item::String,
        "b" => Item::Bool,
        "i" => Item::Int32,
        "l" => Item::Int64,
        "d" => Item::Double,
        "y" => Item::Bytes,
        "t" => Item::Time,
        "u" => Item::MicroTime,
        "D" => Item::Duration,
        "q" => Item::Quantity,
        "o" => Item::IntOrString,
        "r" => Item::Raw,
        "A" => Item::SchemaOrList(schema()?),
        "B" => Item::SchemaOrBool(schema()?),
        "S" => Item::SchemaOrStrings(schema()?),
        _ => {
            let name = kind.strip_prefix('*')?;
            let own = || table.find(&format!("{package}.{name}"));
            Item::Message(table.find(name).or_else(own)?)
        }
    };
    Some(Field {
        number,
        name,
        shape,
        item,
        pointer: flags.contains('p'),
        omit_empty: flags.contains('e'),
        omit_zero: flags.contains('z'),
        inline: flags.contains('x'),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_understood() {
        let table = get();
        let lines = TEXT.lines().filter(|line| !line.starts_with("# ")).count();
        let aliases = TEXT.lines().filter_map(alias).count();
        assert_eq!(table.messages.len() + table.fields.len() + aliases, lines);
        assert_eq!(table.messages.len() + aliases, table.names.len());
        for id in 0..table.messages.len() {
            let fields = table.fields(id as MessageId);
            assert!(fields.windows(2).all(|two| two[0].number < two[1].number));
            assert!(fields.iter().all(|f| f.inline == (f.name == "-")));
        }
    }

    #[test]
    fn every_kind_but_custom_ones_has_a_message() {
        for resource in crate::resource::builtin() {
            let version = resource.api_version();
            for kind in [&resource.kind, &resource.list_kind] {
                let found = super::super::Message::find(&version, kind);
                assert!(kind.is_empty() || found.is_some(), "{version} {kind}");
            }
        }
    }
}
