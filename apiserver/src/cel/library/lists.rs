//! Lists and sets.

use std::cmp::Ordering;

use super::super::Error;
use super::super::value::{List, Value};
use super::{foreign, no_overload, operators};

type Result<'a> = std::result::Result<Value<'a>, Error>;

/// The longest list that a function makes out of nothing.
const LONGEST: i64 = 1_000_000;

fn position<'a>(index: Option<usize>) -> Value<'a> {
    Value::Int(index.map_or(-1, |index| i64::try_from(index).unwrap_or(i64::MAX)))
}

pub(super) fn is_sorted<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    let [Value::List(list)] = arguments else {
        return no_overload();
    };
    let mut before: Option<Value<'_>> = None;
    for item in list.iter() {
        if let Some(before) = &before {
            match before.compare(&item) {
                Some(Ordering::Greater) => return Ok(Value::Bool(false)),
                Some(_) => {}
                None => return no_overload(),
            }
        }
        before = Some(item);
    }
    Ok(Value::Bool(true))
}

pub(super) fn sum<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    let [Value::List(list)] = arguments else {
        return no_overload();
    };
    let mut sum: Option<Value<'a>> = None;
    for item in list.iter() {
        sum = Some(match sum {
            Some(sum) => operators::add(&[sum, item])?,
            None => item,
        });
    }
    Ok(sum.unwrap_or(Value::Int(0)))
}

fn extreme<'a>(arguments: &[Value<'a>], name: &str, wanted: Ordering) -> Result<'a> {
    let [Value::List(list)] = arguments else {
        return no_overload();
    };
    let mut found: Option<Value<'a>> = None;
    for item in list.iter() {
        found = match found {
            None => Some(item),
            Some(best) => match item.compare(&best) {
                Some(order) if order == wanted => Some(item),
                Some(_) => Some(best),
                None => return no_overload(),
            },
        };
    }
    found.ok_or_else(|| Error::new(format!("{name} called on empty list")))
}

pub(super) fn min<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    extreme(arguments, "min", Ordering::Less)
}

pub(super) fn max<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    extreme(arguments, "max", Ordering::Greater)
}

pub(super) fn index_of<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::List(list), item] => Ok(position(list.iter().position(|other| other == *item))),
        [Value::String(_), ..] => foreign::call("indexOf", true, arguments),
        _ => no_overload(),
    }
}

pub(super) fn last_index_of<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::List(list), item] => {
            let found = (0..list.len())
                .rev()
                .find(|index| list.get(*index).is_some_and(|other| other == *item));
            Ok(position(found))
        }
        [Value::String(_), ..] => foreign::call("lastIndexOf", true, arguments),
        _ => no_overload(),
    }
}

pub(super) fn slice<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    let [Value::List(list), Value::Int(from), Value::Int(to)] = arguments else {
        return no_overload();
    };
    let range = usize::try_from(*from).ok().zip(usize::try_from(*to).ok());
    match range {
        Some((from, to)) if from <= to && to <= list.len() => Ok(match list {
            List::Json(items, of) => Value::List(List::Json(&items[from..to], of)),
            List::Values(items) => Value::list(items[from..to].to_vec()),
        }),
        _ => Err(Error::new(format!(
            "cannot slice({from}, {to}), list is length {}",
            list.len()
        ))),
    }
}

pub(super) fn flatten<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    let (list, depth) = match arguments {
        [Value::List(list)] => (list, 1),
        [Value::List(_), Value::Int(depth)] if *depth < 0 => {
            return Err(Error::new("level must be non-negative"));
        }
        [Value::List(list), Value::Int(depth)] => (list, *depth),
        _ => return no_overload(),
    };
    let mut flat = Vec::new();
    flatten_into(list, depth, &mut flat);
    Ok(Value::list(flat))
}

fn flatten_into<'a>(list: &List<'a>, depth: i64, flat: &mut Vec<Value<'a>>) {
    for item in list.iter() {
        match item {
            Value::List(inner) if depth > 0 => flatten_into(&inner, depth - 1, flat),
            other => flat.push(other),
        }
    }
}

pub(super) fn sort<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    let [Value::List(list)] = arguments else {
        return no_overload();
    };
    let mut items: Vec<Value<'a>> = list.iter().collect();
    let mut comparable = true;
    items.sort_by(|a, b| {
        a.compare(b).unwrap_or_else(|| {
            comparable = false;
            Ordering::Equal
        })
    });
    match comparable {
        true => Ok(Value::list(items)),
        false => Err(Error::new("list elements must be comparable")),
    }
}

pub(super) fn reverse<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::List(list)] => {
            let mut items: Vec<Value<'a>> = list.iter().collect();
            items.reverse();
            Ok(Value::list(items))
        }
        _ => no_overload(),
    }
}

pub(super) fn distinct<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    let [Value::List(list)] = arguments else {
        return no_overload();
    };
    let mut kept: Vec<Value<'a>> = Vec::new();
    for item in list.iter() {
        if !kept.contains(&item) {
            kept.push(item);
        }
    }
    Ok(Value::list(kept))
}

pub(super) fn first<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::List(list)] => Ok(Value::optional(list.get(0))),
        _ => no_overload(),
    }
}

pub(super) fn last<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::List(list)] => Ok(Value::optional(
            list.len().checked_sub(1).and_then(|index| list.get(index)),
        )),
        _ => no_overload(),
    }
}

pub(super) fn range<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::Int(end)] if *end <= LONGEST => {
            Ok(Value::list((0..*end).map(Value::Int).collect()))
        }
        [Value::Int(end)] => Err(Error::new(format!(
            "lists.range({end}): the list would be too long"
        ))),
        _ => no_overload(),
    }
}

pub(super) fn unwrap_optionals<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    let [Value::List(list)] = arguments else {
        return no_overload();
    };
    let mut items = Vec::new();
    for item in list.iter() {
        match item {
            Value::Optional(Some(value)) => items.push(Value::clone(&value)),
            Value::Optional(None) => {}
            _ => return no_overload(),
        }
    }
    Ok(Value::list(items))
}

fn includes<'a>(list: &List<'a>, items: &List<'a>) -> bool {
    items
        .iter()
        .all(|item| list.iter().any(|other| other == item))
}

pub(super) fn set_contains<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::List(a), Value::List(b)] => Ok(Value::Bool(includes(a, b))),
        _ => no_overload(),
    }
}

pub(super) fn set_equivalent<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::List(a), Value::List(b)] => Ok(Value::Bool(includes(a, b) && includes(b, a))),
        _ => no_overload(),
    }
}

pub(super) fn set_intersects<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [Value::List(a), Value::List(b)] => Ok(Value::Bool(
            a.iter().any(|item| b.iter().any(|other| other == item)),
        )),
        _ => no_overload(),
    }
}
