//! Functions and operators: CEL's own, the extensions that Kubernetes turns on, and Kubernetes' libraries.
//!
//! A function is a line in one of the tables: its overloads (written as CEL's documentation writes them), what a call
//! costs, and what runs it. What `kube-cel` has is called there ([`foreign`]); the rest is in the modules below.

mod declared;
pub(super) mod foreign;
mod lists;
mod operators;
pub(super) mod regexes;
mod strings;
pub(super) mod time;

use std::collections::HashMap;
use std::sync::LazyLock;

use super::Error;
use super::types::Type;
use super::value::{Value, count};

pub(super) use declared::FUNCTIONS;
pub(super) use operators::map_of;

/// One row of a table.
pub(super) struct Declaration {
    /// As written in expressions, operators by CEL's internal names.
    pub name: &'static str,
    /// `string.(string, int) bool` for a member, `(string) int` otherwise.
    pub overloads: &'static [&'static str],
    pub cost: Cost,
    pub run: Run,
}

#[derive(Clone, Copy)]
pub(super) enum Run {
    Native(for<'a> fn(&[Value<'a>]) -> Result<Value<'a>, Error>),
    /// The function of the same name in `kube-cel`.
    Foreign,
}

/// What a call costs, in the units of Kubernetes' cost budget.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cost {
    Unit,
    Fixed(u64),
    /// Reading the first argument once, or a number of times: a tenth for every character.
    Traverse(u64),
    /// The size of the first argument.
    Elements,
    /// The size of the second argument.
    In,
    /// Reading the smaller of two.
    Smaller,
    /// Reading both.
    Both,
    /// Reading the result twice.
    Result,
    /// A regular expression (the second argument) over the first.
    Regex,
    /// A search of the second in the first.
    Search,
    /// A format over the second argument.
    Format,
    Selector,
}

fn size(value: &Value<'_>) -> u64 {
    match value {
        Value::Optional(Some(value)) => size(value),
        value => value.size().map_or(1, |size| size as u64),
    }
}

fn tenth(size: u64) -> u64 {
    size.div_ceil(10)
}

impl Cost {
    pub(super) fn of(self, arguments: &[Value<'_>], result: &Value<'_>) -> u64 {
        let at = |index: usize| arguments.get(index).map_or(1, size);
        match self {
            Self::Unit => 1,
            Self::Fixed(cost) => cost,
            Self::Traverse(times) => tenth(at(0).saturating_mul(times)),
            Self::Elements => at(0),
            Self::In => at(1),
            // Numbers and the like have no size to read.
            Self::Smaller => tenth(at(0).min(at(1))),
            Self::Both => match arguments.first() {
                Some(Value::String(_) | Value::Bytes(_)) => tenth(at(0).saturating_add(at(1))),
                _ => 1,
            },
            Self::Result => tenth(size(result).saturating_mul(2)),
            Self::Regex => tenth(at(0).saturating_add(1)).saturating_mul(at(1).div_ceil(4)),
            Self::Search => tenth(at(0)).saturating_mul(tenth(at(1))),
            Self::Format => {
                // As if every format were a long expression.
                const EXPRESSION: u64 = 30;
                tenth(at(1).saturating_add(1)).saturating_mul(EXPRESSION)
            }
            Self::Selector => 10 + tenth(at(1)) + at(1).div_ceil(2).saturating_mul(50),
        }
    }
}

/// A declaration, read.
pub(super) struct Function {
    pub name: &'static str,
    pub cost: Cost,
    pub run: Run,
    pub overloads: Vec<Overload>,
}

pub(super) struct Overload {
    pub member: bool,
    pub arguments: Vec<Type>,
    pub result: Type,
}

static TABLE: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(|| {
    FUNCTIONS
        .iter()
        .map(|declaration| {
            let function = Function {
                name: declaration.name,
                cost: declaration.cost,
                run: declaration.run,
                overloads: declaration.overloads.iter().map(|o| overload(o)).collect(),
            };
            (declaration.name, function)
        })
        .collect()
});

pub(super) fn function(name: &str) -> Option<&'static Function> {
    TABLE.get(name)
}

fn overload(text: &'static str) -> Overload {
    let mut reader = Reader(text);
    let mut arguments = Vec::new();
    let member = !reader.0.starts_with('(');
    if member {
        arguments.push(reader.read());
        reader.skip(".");
    }
    reader.skip("(");
    while !reader.0.starts_with(')') {
        arguments.push(reader.read());
        reader.skip(", ");
    }
    reader.skip(") ");
    let result = reader.read();
    debug_assert!(reader.0.is_empty(), "unread declaration: {text}");
    Overload {
        member,
        arguments,
        result,
    }
}

/// Reads types in declarations.
struct Reader(&'static str);

impl Reader {
    fn skip(&mut self, text: &str) {
        self.0 = self.0.strip_prefix(text).unwrap_or(self.0);
    }

    fn read(&mut self) -> Type {
        let end = self
            .0
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(self.0.len());
        let (name, rest) = self.0.split_at(end);
        self.0 = rest;
        match name {
            "dyn" => Type::Dyn,
            "null" => Type::Null,
            "bool" => Type::Bool,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "double" => Type::Double,
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "duration" => Type::Duration,
            "timestamp" => Type::Timestamp,
            "type" => Type::Type,
            "list" => {
                self.skip("(");
                let items = self.read();
                self.skip(")");
                Type::list(items)
            }
            "optional" => {
                self.skip("(");
                let of = self.read();
                self.skip(")");
                Type::optional(of)
            }
            "map" => {
                self.skip("(");
                let keys = self.read();
                self.skip(", ");
                let values = self.read();
                self.skip(")");
                Type::map(keys, values)
            }
            "A" | "B" => Type::Parameter(if name == "A" { 'A' } else { 'B' }),
            name => Type::Opaque(opaque(name)),
        }
    }
}

/// The full names of the libraries' types.
pub(super) fn opaque(name: &str) -> &'static str {
    match name {
        "quantity" => "kubernetes.Quantity",
        "url" => "kubernetes.URL",
        "ip" => "net.IP",
        "cidr" => "net.CIDR",
        "semver" => "kubernetes.Semver",
        "format" => "kubernetes.NamedFormat",
        "authorizer" => "kubernetes.authorization.Authorizer",
        "path_check" => "kubernetes.authorization.PathCheck",
        "group_check" => "kubernetes.authorization.GroupCheck",
        "resource_check" => "kubernetes.authorization.ResourceCheck",
        _ => "kubernetes.authorization.Decision",
    }
}

/// For what the compiler let through as `dyn` and that does not fit.
pub(super) fn no_overload<'a>() -> Result<Value<'a>, Error> {
    Err(Error::no_overload())
}

pub(super) fn length<'a>(text: &str) -> Value<'a> {
    Value::Int(i64::try_from(count(text)).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_are_whole() {
        for declaration in FUNCTIONS {
            assert!(!declaration.overloads.is_empty(), "{}", declaration.name);
            for text in declaration.overloads {
                let read = overload(text);
                let arguments: Vec<String> =
                    read.arguments.iter().map(ToString::to_string).collect();
                assert_eq!(read.member, !text.starts_with('('), "{text}: {arguments:?}");
            }
        }
        assert_eq!(TABLE.len(), FUNCTIONS.len(), "a name is declared once");
    }
}
