//! What an expression costs at most, before there is anything to run it on.
//!
//! The rules are those of Kubernetes: each step costs what it costs when it runs ([`super::eval`]), on values as large as
//! their schema lets them be ([`Extent`]). Expressions are accepted or refused by the outcome, so it follows Kubernetes
//! also where that is generous: objects compare for nothing, and the keys of a map have no length.

mod calls;

use super::compile::{Fold, Literal, Node};
use super::extent::{Extent, Kind};
use super::types::Type;

/// The least and the most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Span {
    min: u64,
    max: u64,
}

const UNKNOWN: Span = Span {
    min: 0,
    max: u64::MAX,
};

impl Span {
    fn fixed(size: u64) -> Self {
        Self {
            min: size,
            max: size,
        }
    }

    fn up_to(max: u64) -> Self {
        Self { min: 0, max }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            min: self.min.saturating_add(other.min),
            max: self.max.saturating_add(other.max),
        }
    }

    fn times(self, other: Self) -> Self {
        Self {
            min: self.min.saturating_mul(other.min),
            max: self.max.saturating_mul(other.max),
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }
}

/// A size times a cost for each unit, rounded up.
fn scaled(size: u64, factor: f64) -> u64 {
    // Casts from floating point saturate.
    (size as f64 * factor).ceil() as u64
}

/// Reading so many characters.
fn tenth(size: u64) -> u64 {
    scaled(size, 0.1)
}

/// What is known of a value.
#[derive(Clone, Copy, Debug, Default)]
struct Known<'e> {
    kind: Kind,
    /// What the schema says of it, if it is a part of what the expression is about.
    extent: Option<&'e Extent>,
    size: Option<Span>,
    /// Of the keys and of the values of a list or map that the expression makes.
    entries: Option<(Span, Span)>,
    /// What the items of such a list are.
    items: Kind,
}

impl<'e> Known<'e> {
    fn of(kind: Kind) -> Self {
        Self {
            kind,
            ..Self::default()
        }
    }

    fn part(extent: Option<&'e Extent>) -> Self {
        Self {
            kind: extent.map_or(Kind::Dyn, |extent| extent.kind),
            extent,
            ..Self::default()
        }
    }

    fn sized(kind: Kind, size: Span) -> Self {
        Self {
            size: Some(size),
            ..Self::of(kind)
        }
    }

    /// What is known of its size, the most reliable first.
    fn known_size(&self) -> Option<Span> {
        let by_schema = || self.extent.map(|extent| Span::up_to(extent.most));
        let fixed = || (self.kind == Kind::Scalar).then(|| Span::fixed(1));
        self.size.or_else(by_schema).or_else(fixed)
    }

    fn span(&self) -> Span {
        self.known_size().unwrap_or(UNKNOWN)
    }

    /// One of its items or values.
    fn inner(&self) -> Known<'e> {
        let extent = self.extent.and_then(|extent| extent.inner.as_deref());
        Known {
            size: self.entries.map(|(_, value)| value),
            kind: extent.map_or(self.items, |extent| extent.kind),
            extent,
            ..Known::default()
        }
    }

    /// One of its keys.
    fn key(&self) -> Known<'e> {
        // Kubernetes takes the keys of a schema's map for empty.
        let of_schema = self.extent.map(|_| Span::fixed(0));
        let kind = if self.kind == Kind::Map {
            Kind::Text
        } else {
            Kind::Scalar
        };
        match of_schema {
            Some(size) if self.kind == Kind::Map => Known::sized(kind, size),
            _ => Known {
                size: self.entries.map(|(key, _)| key),
                ..Known::of(kind)
            },
        }
    }
}

fn kind_of(of: &Type) -> Kind {
    match of {
        Type::Bool | Type::Int | Type::Uint | Type::Double | Type::Duration | Type::Timestamp => {
            Kind::Scalar
        }
        Type::String | Type::Bytes => Kind::Text,
        Type::List(_) => Kind::List,
        Type::Map(..) => Kind::Map,
        Type::Object(_) => Kind::Object,
        Type::Optional(inner) if kind_of(inner) == Kind::Scalar => Kind::Scalar,
        Type::Opaque(_) => Kind::Other,
        Type::Optional(_) | Type::Null | Type::Type | Type::Dyn | Type::Parameter(_) => Kind::Dyn,
    }
}

/// The cost of an expression about a value of this extent, which is `self` and `oldSelf`.
pub(super) fn cost(root: &Node, about: &Extent) -> u64 {
    let mut estimator = Estimator {
        about,
        locals: Vec::new(),
        counting: false,
    };
    estimator.node(root).0
}

struct Estimator<'e> {
    about: &'e Extent,
    locals: Vec<Known<'e>>,
    /// Whether the list that is being made is only counted in the end: Kubernetes counts, too.
    counting: bool,
}

type Estimated<'e> = (u64, Known<'e>);

impl<'e> Estimator<'e> {
    fn node(&mut self, node: &Node) -> Estimated<'e> {
        match node {
            Node::Literal(literal) => (0, self::literal(literal)),
            Node::Variable(name) => {
                let known = matches!(name.as_str(), "self" | "oldSelf");
                (1, Known::part(known.then_some(self.about)))
            }
            Node::Local(place) => (1, self.locals.get(*place).copied().unwrap_or_default()),
            Node::Select {
                operand,
                field,
                optional,
            } => self.select(operand, field, *optional),
            Node::Has { operand, .. } => (self.node(operand).0, Known::of(Kind::Scalar)),
            Node::Index { operand, index, .. } => {
                let (cost, of) = self.node(operand);
                let sum = cost.saturating_add(self.node(index).0);
                (sum.saturating_add(1), of.inner())
            }
            Node::All(terms) | Node::Any(terms) => {
                let cost = terms
                    .iter()
                    .fold(0_u64, |sum, term| sum.saturating_add(self.node(term).0));
                (cost, Known::of(Kind::Scalar))
            }
            Node::Conditional(nodes) => self.conditional(nodes),
            Node::NotFalse(term) => {
                let cost = self.node(term).0.saturating_add(1);
                (cost, Known::of(Kind::Scalar))
            }
            Node::Call {
                function,
                arguments,
                of,
                ..
            } => self.call(function.0.name, arguments, kind_of(of)),
            Node::List(items) => self.list(items.iter().map(|(item, _)| item), items.len()),
            Node::Map(entries) => self.map(entries),
            Node::Build { fields, .. } => {
                let cost = fields.iter().fold(40_u64, |sum, (_, value, _)| {
                    sum.saturating_add(self.node(value).0)
                });
                (cost, Known::of(Kind::Object))
            }
            Node::Fold(fold) => self.fold(fold),
            Node::Append(place, item) => self.append(*place, item),
            Node::Insert(place, key, value) => {
                let (key_cost, key) = self.node(key);
                let (value_cost, value) = self.node(value);
                let entries = Some((key.span(), value.span()));
                let made = self.made(*place, entries, value.kind);
                (key_cost.saturating_add(value_cost).saturating_add(2), made)
            }
            Node::InsertAll(place, entries) => {
                let (cost, of) = self.node(entries);
                let made = self.made(*place, of.entries, of.items);
                (cost.saturating_add(2), made)
            }
            Node::HasOne(_) => (2, Known::of(Kind::Scalar)),
            Node::OverOptional { target, body, .. } => self.over_optional(target, body),
        }
    }

    fn select(&mut self, operand: &Node, field: &str, optional: bool) -> Estimated<'e> {
        let (cost, of) = self.node(operand);
        let found = of.extent.and_then(|extent| extent.fields.get(field));
        // Fields of what can be anything are not charged for.
        let step = u64::from(optional || of.kind != Kind::Dyn);
        (cost.saturating_add(step), Known::part(found))
    }

    fn call(&mut self, name: &str, arguments: &[Node], result: Kind) -> Estimated<'e> {
        let (mut sum, mut known) = (0_u64, Vec::with_capacity(arguments.len()));
        for argument in arguments {
            let (cost, of) = self.node(argument);
            sum = sum.saturating_add(cost);
            known.push(of);
        }
        if let ("dyn", [of]) = (name, known.as_slice()) {
            let plain = Known {
                kind: Kind::Dyn,
                extent: None,
                size: of.known_size(),
                ..*of
            };
            return (sum.saturating_add(1), plain);
        }
        let (cost, size) = calls::charge(name, arguments, &known);
        let entries = match (name, known.as_slice()) {
            ("_+_", [a, b]) => a.entries.zip(b.entries),
            _ => None,
        };
        let of = Known {
            size,
            entries: entries.map(|(a, b)| (a.0.or(b.0), a.1.or(b.1))),
            items: known.first().map_or(Kind::Dyn, |of| of.items),
            ..Known::of(result)
        };
        (sum.saturating_add(cost), of)
    }

    fn conditional(&mut self, nodes: &[Node; 3]) -> Estimated<'e> {
        let (condition, _) = self.node(&nodes[0]);
        let (yes, of_yes) = self.node(&nodes[1]);
        let (no, of_no) = self.node(&nodes[2]);
        let entries = of_yes.entries.zip(of_no.entries);
        let of = Known {
            kind: if of_yes.kind == of_no.kind {
                of_yes.kind
            } else {
                Kind::Dyn
            },
            extent: None,
            size: Some(of_yes.span().or(of_no.span())),
            entries: entries.map(|(a, b)| (a.0.or(b.0), a.1.or(b.1))),
            items: of_yes.items,
        };
        (condition.saturating_add(yes.max(no)), of)
    }

    fn list<'n>(&mut self, items: impl Iterator<Item = &'n Node>, count: usize) -> Estimated<'e> {
        let (mut sum, mut inner, mut kind) = (10_u64, None, Kind::Dyn);
        for item in items {
            let (cost, of) = self.node(item);
            sum = sum.saturating_add(cost);
            inner = Some(inner.map_or(of.span(), |known: Span| known.or(of.span())));
            kind = of.kind;
        }
        let of = Known {
            entries: Some((Span::fixed(1), inner.unwrap_or_default())),
            items: kind,
            ..Known::sized(Kind::List, Span::fixed(count as u64))
        };
        (sum, of)
    }

    fn map(&mut self, entries: &[(Node, Node, bool)]) -> Estimated<'e> {
        let (mut sum, mut spans, mut kind) = (30_u64, None, Kind::Dyn);
        for (key, value, _) in entries {
            let (key_cost, key) = self.node(key);
            let (value_cost, value) = self.node(value);
            sum = sum.saturating_add(key_cost).saturating_add(value_cost);
            let (key, of_value) = (key.span(), value.span());
            spans = Some(spans.map_or((key, of_value), |known: (Span, Span)| {
                (known.0.or(key), known.1.or(of_value))
            }));
            kind = value.kind;
        }
        let of = Known {
            entries: Some(spans.unwrap_or_default()),
            items: kind,
            ..Known::sized(Kind::Map, Span::fixed(entries.len() as u64))
        };
        (sum, of)
    }

    fn fold(&mut self, fold: &Fold) -> Estimated<'e> {
        let (range_cost, range) = self.node(&fold.range);
        let (init_cost, init) = self.node(&fold.init);
        let outer = std::mem::replace(&mut self.counting, matches!(fold.result, Node::HasOne(_)));
        self.locals.truncate(fold.place);
        self.locals.push(init);
        match (fold.two, range.kind) {
            (true, _) => self.locals.extend([range.key(), range.inner()]),
            (false, Kind::Map) => self.locals.push(range.key()),
            (false, _) => self.locals.push(range.inner()),
        }
        let (condition, _) = self.node(&fold.condition);
        let (step, stepped) = self.node(&fold.step);
        self.locals.truncate(fold.place + 1);
        let (result, _) = self.node(&fold.result);
        self.locals.truncate(fold.place);
        self.counting = outer;
        let rounds = range.span();
        let loops = rounds.max.saturating_mul(condition.saturating_add(step));
        let sum = [range_cost, init_cost, result, loops];
        let made = match init.kind {
            Kind::List | Kind::Map if !matches!(fold.result, Node::HasOne(_)) => Known {
                entries: stepped.entries,
                items: stepped.items,
                ..Known::sized(init.kind, rounds)
            },
            Kind::List | Kind::Map => Known::of(Kind::Scalar),
            _ => init,
        };
        (sum.into_iter().fold(0, u64::saturating_add), made)
    }

    fn append(&mut self, place: usize, item: &Node) -> Estimated<'e> {
        let (cost, of) = self.node(item);
        if self.counting {
            return (cost.saturating_add(2), Known::of(Kind::Scalar));
        }
        let entries = Some((Span::fixed(1), of.span()));
        // What is made, a list of one, and their sum.
        (cost.saturating_add(12), self.made(place, entries, of.kind))
    }

    /// The list or map that is being made, with one more entry.
    fn made(&self, place: usize, entries: Option<(Span, Span)>, items: Kind) -> Known<'e> {
        let before = self.locals.get(place).copied().unwrap_or_default();
        let both = before.entries.zip(entries);
        Known {
            entries: both.map(|(a, b)| (a.0.or(b.0), a.1.or(b.1))),
            items,
            ..before
        }
    }

    fn over_optional(&mut self, target: &Node, body: &Node) -> Estimated<'e> {
        let (cost, _) = self.node(target);
        self.locals.push(Known::default());
        let (inside, of) = self.node(body);
        self.locals.pop();
        // Asked for its value, then bound to it: the target is read twice.
        let sum = cost.saturating_mul(2).saturating_add(inside);
        (sum.saturating_add(13), Known { extent: None, ..of })
    }
}

fn literal<'e>(literal: &Literal) -> Known<'e> {
    match literal {
        Literal::String(text) => Known::sized(Kind::Text, Span::fixed(text.chars().count() as u64)),
        Literal::Bytes(bytes) => Known::sized(Kind::Text, Span::fixed(bytes.len() as u64)),
        Literal::Type(_) => Known::default(),
        _ => Known::sized(Kind::Scalar, Span::fixed(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Environment, Extent, Program, Type};
    use serde_json::json;

    #[test]
    fn costs_follow_the_schema() {
        let schema = json!({"type": "object", "properties": {
            "n": {"type": "integer"},
            "s": {"type": "string", "maxLength": 10},
            "t": {"type": "string"},
            "few": {"type": "array", "maxItems": 5, "items": {"type": "string", "maxLength": 25}},
            "many": {"type": "array", "items": {"type": "string", "maxLength": 25}},
            "map": {"type": "object", "maxProperties": 4, "additionalProperties": {"type": "integer"}},
            "objects": {"type": "array", "maxItems": 3, "items": {"type": "object",
                "properties": {"name": {"type": "string", "maxLength": 5}}}},
        }});
        let of = Type::from_schema(&schema, true).unwrap();
        let extent = Extent::of(&schema, true).unwrap();
        let environment = Environment::new([("self", of.clone()), ("oldSelf", of)]);
        #[rustfmt::skip]
        let table: &[(&str, u64)] = &[
            ("true", 0),
            ("self.n == 1", 2),
            ("self.n > 1", 3),
            ("has(self.n)", 1),
            ("self.s == oldSelf.s", 4 + 4),
            ("self.s.startsWith('abc')", 2 + 1),
            // (40 + 1) / 10, times 4 / 4.
            ("self.s.matches('abcd')", 2 + 5),
            ("self.s.contains('abc')", 2 + 4),
            ("self.n == 1 && self.n > 1 || self.n > 2", 2 + 3 + 3),
            ("self.n > 1 ? self.s == 'a' : true", 3 + 3),
            ("size(self.few) == 3", 2 + 1 + 1),
            ("'a' in self.few", 2 + 5),
            // What is iterated over and begun with, two for the condition and one for the result; a round looks at the
            // result and compares.
            ("self.few.all(x, x == 'abc')", 2 + 5 * (2 + 1 + 1 + 1) + 1),
            ("self.objects.all(x, x.name == 'abc')", 2 + 3 * (2 + 1 + 2 + 1) + 1),
            ("self.map.all(k, self.map[k] > 0)", 2 + 4 * (2 + 1 + 2 + 1 + 1 + 1) + 1),
            ("self.s + 'abc' == self.t", 2 + 5 + 2 + 5),
            ("[1, 2].exists(x, x > self.n)", 10 + 2 * (3 + 1 + 1 + 2 + 1) + 1),
        ];
        for (text, wanted) in table {
            let program = Program::compile(text, &environment).unwrap();
            assert_eq!(program.cost_about(&extent), *wanted, "{text}");
        }
        let cost = |text: &str| {
            Program::compile(text, &environment)
                .unwrap()
                .cost_about(&extent)
        };
        // So many strings of no length fit into a request.
        assert!(cost("self.many.all(x, x != '')") > 4_000_000);
        assert!(cost("self.many.all(x, self.many.all(y, x != y))") > 1_000_000_000_000);
        assert!(cost("self.t.matches('^[a-z]+$')") > 600_000);
    }
}
