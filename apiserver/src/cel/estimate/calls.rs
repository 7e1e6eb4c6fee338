//! What calls of functions cost at most, and how large their results get.

use super::super::compile::{Literal, Node};
use super::{Kind, Known, Span, UNKNOWN, scaled, tenth};

/// The longest expression of the named formats.
const LONGEST_FORMAT: f64 = 128.0;
/// An address in bytes, at most.
const ADDRESS: u64 = 16;

/// The cost of a call, and the size of its result if that is known better than by its type.
pub(super) fn charge(name: &str, nodes: &[Node], arguments: &[Known<'_>]) -> (u64, Option<Span>) {
    let size = |index: usize| arguments.get(index).map_or(UNKNOWN, Known::span);
    let kind = |index: usize| arguments.get(index).map_or(Kind::Dyn, |of| of.kind);
    let read = |index: usize| tenth(size(index).max);
    match name {
        "check" => (350_000, None),
        "fieldSelector" | "labelSelector" => (selector(size(1).max), None),
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
            (arguments.first().map_or(1, elements), None)
        }
        "url" | "jsonpatch.escapeKey" | "lowerAscii" | "upperAscii" | "substring" | "trim" => {
            (read(0), Some(size(0)))
        }
        "replace" => (
            scaled(size(0).max, 0.2),
            Some(replaced(size(0), size(1), size(2))),
        ),
        "split" => {
            let limit = match nodes.get(2) {
                Some(Node::Literal(Literal::Int(limit))) => u64::try_from(*limit).ok(),
                _ => None,
            };
            let most = limit.unwrap_or(size(0).max);
            (scaled(size(0).max, 0.2), Some(Span::up_to(most)))
        }
        "join" => {
            let joined = joined(&arguments[0], (arguments.len() > 1).then(|| size(1)));
            (tenth(joined.max), Some(joined))
        }
        "find" | "findAll" => (
            expression(size(0).max, size(1).max),
            Some(Span::up_to(size(0).max)),
        ),
        "matches" => (expression(size(0).max, size(1).max), None),
        "ip" if kind(0) == Kind::Other => (1, None),
        "cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver"
        | "format" => (read(0), None),
        "ip.isCanonical" => (scaled(size(0).max, 0.2), None),
        "containsIP" => (tenth(2 * ADDRESS).saturating_add(parsed(arguments)), None),
        "containsCIDR" => {
            let compared = tenth(2 * ADDRESS) + tenth(ADDRESS) + 1;
            (compared.saturating_add(parsed(arguments)), None)
        }
        "validate" => (scaled(read(1), LONGEST_FORMAT / 4.0), None),
        "bytes" if kind(0) == Kind::Text => (read(0), Some(size(0).times(Span { min: 1, max: 4 }))),
        "strings.quote" => {
            let quoted = size(0).times(Span { min: 1, max: 2 }).plus(Span::fixed(2));
            (read(0), Some(quoted))
        }
        "startsWith" | "endsWith" => (read(1), None),
        "contains" => (read(0).saturating_mul(read(1)), None),
        "@in" if kind(1) == Kind::Map => (1, None),
        "@in" => (size(1).max, None),
        "_+_" => sum(kind(0), kind(1), size(0).plus(size(1))),
        "_<_" | "_<=_" | "_>_" | "_>=_" if kind(0) == Kind::Scalar || kind(1) == Kind::Scalar => {
            (1, None)
        }
        "_==_" | "_!=_" if kind(0) == Kind::Other && kind(1) == Kind::Other => (1, None),
        "_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" => {
            (tenth(size(0).max.min(size(1).max)), None)
        }
        _ => (1, None),
    }
}

/// Reading a selector, and making its requirements: at most one for two characters.
fn selector(length: u64) -> u64 {
    const REQUIREMENT: u64 = 50;
    let requirements = scaled(length, 0.5).saturating_mul(REQUIREMENT);
    requirements
        .saturating_add(tenth(length))
        .saturating_add(10)
}

/// Comparing all items of a list, or reading a text.
fn elements(list: &Known<'_>) -> u64 {
    let size = list.span().max;
    if list.kind == Kind::Text {
        return tenth(size);
    }
    let item = list.inner();
    let each = match item.kind {
        // Only a schema tells how long they are.
        Kind::Text => {
            let longest = item.extent.map_or(u64::MAX, |extent| extent.most);
            tenth(longest).saturating_add(1)
        }
        _ => 1,
    };
    size.saturating_mul(each)
}

/// A regular expression over a text: as many steps as it has parts, about one for four characters.
fn expression(text: u64, expression: u64) -> u64 {
    tenth(text.saturating_add(1)).saturating_mul(scaled(expression, 0.25))
}

/// Addresses that are given as text are read first.
fn parsed(arguments: &[Known<'_>]) -> u64 {
    match arguments.get(1) {
        Some(address) if address.kind != Kind::Other => tenth(address.span().max),
        _ => 0,
    }
}

fn sum(left: Kind, right: Kind, size: Span) -> (u64, Option<Span>) {
    match (left, right) {
        (Kind::Scalar, _) | (_, Kind::Scalar) => (1, None),
        (Kind::List, _) | (_, Kind::List) => (1, Some(size)),
        // Either texts, or what may turn out to be texts.
        _ => (tenth(size.max).max(1), Some(size)),
    }
}

fn joined(list: &Known<'_>, separator: Option<Span>) -> Span {
    let count = list.span();
    let item = list.inner();
    let longest = item
        .extent
        .map_or(UNKNOWN, |extent| Span::up_to(extent.most));
    let all = count.times(longest);
    let between = Span {
        min: count.min.saturating_sub(1),
        max: count.max.saturating_sub(1),
    };
    separator.map_or(all, |separator| all.plus(separator.times(between)))
}

/// The size of a text in which one text is replaced by another, everywhere.
fn replaced(text: Span, old: Span, new: Span) -> Span {
    // How often, and what stays.
    let most = match old.min {
        0 => (text.max.saturating_add(1), text.max),
        shortest if new.max <= shortest => (0, text.max),
        shortest => (text.max.div_ceil(shortest), 0),
    };
    let least = match old.max {
        0 => (text.min.saturating_add(1), text.min),
        longest if longest <= new.min => (0, text.min),
        longest => (text.min.div_ceil(longest), 0),
    };
    Span {
        min: least.0.saturating_mul(new.min).saturating_add(least.1),
        max: most.0.saturating_mul(new.max).saturating_add(most.1),
    }
}
