//! Runs programs, and counts what they cost.
//!
//! The units are those of Kubernetes: one for every variable, field and plain call, more where the work grows with the
//! data. An expression that costs more than [`PER_CALL_LIMIT`] is stopped, and a [`Budget`] bounds all expressions
//! over one object.

use std::sync::Arc;

use super::Error;
use super::compile::{Fold, Literal, Node};
use super::library::{Run, foreign, map_of};
use super::value::{Built, Key, List, Map, Text, Value};

/// What one expression may cost.
pub const PER_CALL_LIMIT: u64 = 1_000_000;
const PER_OBJECT: u64 = 10_000_000;
const PER_MATCH_CONDITIONS: u64 = 2_500_000;

/// What is left for expressions to cost.
#[derive(Debug, Clone)]
pub struct Budget {
    left: u64,
    per_call: u64,
}

impl Budget {
    /// For all rules over one object.
    #[must_use]
    pub fn for_object() -> Self {
        Self::of(PER_OBJECT)
    }

    /// For the match conditions of one webhook or policy.
    #[must_use]
    pub fn for_match_conditions() -> Self {
        Self::of(PER_MATCH_CONDITIONS)
    }

    #[must_use]
    pub fn of(left: u64) -> Self {
        Self {
            left,
            per_call: PER_CALL_LIMIT,
        }
    }

    #[must_use]
    pub fn left(&self) -> u64 {
        self.left
    }
}

/// The values of variables.
#[derive(Clone, Debug, Default)]
pub struct Bindings<'a> {
    values: Vec<(&'a str, Value<'a>)>,
}

impl<'a> Bindings<'a> {
    pub fn new(values: impl IntoIterator<Item = (&'a str, Value<'a>)>) -> Self {
        Self {
            values: values.into_iter().collect(),
        }
    }

    /// Binds a variable, or binds it anew.
    pub fn bind(&mut self, name: &'a str, value: Value<'a>) {
        match self.values.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.values.push((name, value)),
        }
    }

    fn get(&self, name: &str) -> Option<&Value<'a>> {
        self.values
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value)
    }
}

pub(super) fn run<'a>(
    root: &Node,
    bindings: &Bindings<'a>,
    budget: &mut Budget,
) -> Result<Value<'a>, Error> {
    let mut machine = Machine {
        bindings,
        locals: Vec::new(),
        cost: 0,
        limit: budget.per_call,
        budget,
    };
    let result = machine.eval(root);
    let cost = machine.cost;
    if cost > budget.left {
        budget.left = 0;
        return Err(Error::BudgetExceeded);
    }
    budget.left -= cost;
    result
}

struct Machine<'m, 'a> {
    bindings: &'m Bindings<'a>,
    locals: Vec<Value<'a>>,
    cost: u64,
    limit: u64,
    budget: &'m mut Budget,
}

type Evaluated<'a> = Result<Value<'a>, Error>;

impl<'a> Machine<'_, 'a> {
    fn charge(&mut self, cost: u64) -> Result<(), Error> {
        self.cost = self.cost.saturating_add(cost);
        match self.cost > self.limit {
            true => Err(Error::CostLimit),
            false => Ok(()),
        }
    }

    fn eval(&mut self, node: &Node) -> Evaluated<'a> {
        match node {
            Node::Literal(literal) => Ok(constant(literal)),
            Node::Variable(name) => {
                self.charge(1)?;
                let found = self.bindings.get(name).cloned();
                found.ok_or_else(|| Error::new(format!("no such attribute(s): {name}")))
            }
            Node::Local(place) => {
                self.charge(1)?;
                match self.local(*place) {
                    Value::Failed(message) => Err(Error::new(&*message)),
                    value => Ok(value),
                }
            }
            Node::Select {
                operand,
                field,
                optional,
            } => self.select(operand, field, *optional),
            Node::Has { operand, field } => self.has(operand, field),
            Node::Index {
                operand,
                index,
                optional,
            } => self.index(operand, index, *optional),
            Node::All(terms) => self.logic(terms, false),
            Node::Any(terms) => self.logic(terms, true),
            Node::Conditional(nodes) => match self.eval(&nodes[0])? {
                Value::Bool(true) => self.eval(&nodes[1]),
                Value::Bool(false) => self.eval(&nodes[2]),
                _ => Err(Error::no_overload()),
            },
            Node::NotFalse(term) => {
                let value = self.eval(term);
                self.charge(1)?;
                match value {
                    Ok(value) => Ok(Value::Bool(value.as_bool() != Some(false))),
                    Err(Error::Failed(_)) => Ok(Value::Bool(true)),
                    Err(error) => Err(error),
                }
            }
            Node::Call {
                function,
                member,
                arguments,
                ..
            } => self.call(function.0, *member, arguments),
            Node::List(items) => self.list(items),
            Node::Map(entries) => self.map(entries),
            Node::Build { name, fields } => self.build(name, fields),
            Node::Fold(fold) => self.fold(fold),
            Node::Append(place, item) => self.append(*place, item),
            Node::Insert(place, key, value) => {
                let entry = (self.eval(key)?, self.eval(value)?);
                self.insert(*place, vec![entry])
            }
            Node::InsertAll(place, entries) => match self.eval(entries)? {
                Value::Map(map) => {
                    let entries = map.entries().into_iter();
                    let entries = entries.map(|(key, value)| (key.value(), value));
                    self.insert(*place, entries.collect())
                }
                _ => Err(Error::no_overload()),
            },
            Node::HasOne(place) => match self.local(*place) {
                Value::List(list) => Ok(Value::Bool(list.len() == 1)),
                _ => Err(Error::no_overload()),
            },
            Node::OverOptional {
                target,
                place,
                body,
                wrap,
            } => self.over_optional(target, *place, body, *wrap),
        }
    }

    fn local(&self, place: usize) -> Value<'a> {
        self.locals.get(place).cloned().unwrap_or(Value::Null)
    }

    fn select(&mut self, operand: &Node, field: &str, optional: bool) -> Evaluated<'a> {
        let value = self.eval(operand)?;
        self.charge(1)?;
        if let Value::Optional(inner) = value {
            let Some(inner) = inner else {
                return Ok(Value::Optional(None));
            };
            return Ok(Value::optional(self.field(&inner, field)?));
        }
        let found = self.field(&value, field)?;
        match (optional, found) {
            (true, found) => Ok(Value::optional(found)),
            (false, Some(found)) => Ok(found),
            (false, None) => Err(Error::new(format!("no such key: {field}"))),
        }
    }

    fn field(&mut self, value: &Value<'a>, field: &str) -> Result<Option<Value<'a>>, Error> {
        match value {
            Value::Map(map) => map.field(field, self.budget),
            Value::Built(built) => Ok(built.fields.get(field).cloned()),
            Value::Optional(Some(inner)) => self.field(inner, field),
            Value::Optional(None) => Ok(None),
            _ => Err(Error::no_overload()),
        }
    }

    fn has(&mut self, operand: &Node, field: &str) -> Evaluated<'a> {
        let value = self.eval(operand)?;
        self.charge(0)?;
        Ok(Value::Bool(self.field(&value, field)?.is_some()))
    }

    fn index(&mut self, operand: &Node, index: &Node, optional: bool) -> Evaluated<'a> {
        let value = self.eval(operand)?;
        let index = self.eval(index)?;
        self.charge(1)?;
        let (value, chained) = match value {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => (Value::clone(&inner), true),
            value => (value, false),
        };
        let found = self.item(&value, &index)?;
        match (optional || chained, found) {
            (true, found) => Ok(Value::optional(found)),
            (false, Some(found)) => Ok(found),
            (false, None) => Err(match (&value, &index) {
                (Value::List(_), Value::Int(index)) => {
                    Error::new(format!("index out of bounds: {index}"))
                }
                (_, Value::String(key)) => Error::new(format!("no such key: {}", &**key)),
                (_, Value::Int(key)) => Error::new(format!("no such key: {key}")),
                (_, index) => Error::new(format!("no such key: {index:?}")),
            }),
        }
    }

    fn item(&mut self, value: &Value<'a>, index: &Value<'a>) -> Result<Option<Value<'a>>, Error> {
        match (value, index) {
            (Value::List(list), index) => match Key::of(index)? {
                Key::Int(index) => Ok(usize::try_from(index)
                    .ok()
                    .and_then(|index| list.get(index))),
                Key::Uint(_) => Ok(None),
                _ => Err(Error::new(format!(
                    "unsupported index type '{}' in list",
                    index.type_name()
                ))),
            },
            (Value::Map(map), key) => map.get(&Key::of(key)?, self.budget),
            _ => Err(Error::no_overload()),
        }
    }

    /// `&&` and `||`: one decisive term is enough, whatever goes wrong in the others.
    fn logic(&mut self, terms: &[Node], decisive: bool) -> Evaluated<'a> {
        let mut failed = None;
        for term in terms {
            match self.eval(term) {
                Ok(Value::Bool(value)) if value == decisive => return Ok(Value::Bool(decisive)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => failed = failed.or_else(|| Some(Error::no_overload())),
                Err(error @ Error::Failed(_)) => failed = failed.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        failed.map_or(Ok(Value::Bool(!decisive)), Err)
    }

    fn call(
        &mut self,
        function: &super::library::Function,
        member: bool,
        arguments: &[Node],
    ) -> Evaluated<'a> {
        // The usual numbers of arguments need no allocation.
        match arguments {
            [a] => {
                let values = [self.eval(a)?];
                self.finish(function, member, &values)
            }
            [a, b] => {
                let values = [self.eval(a)?, self.eval(b)?];
                self.finish(function, member, &values)
            }
            arguments => {
                let values = arguments
                    .iter()
                    .map(|argument| self.eval(argument))
                    .collect::<Result<Vec<_>, _>>()?;
                self.finish(function, member, &values)
            }
        }
    }

    fn finish(
        &mut self,
        function: &super::library::Function,
        member: bool,
        values: &[Value<'a>],
    ) -> Evaluated<'a> {
        let result = match function.run {
            Run::Native(run) => run(values)?,
            Run::Foreign => foreign::call(function.name, member, values)?,
        };
        self.charge(function.cost.of(values, &result))?;
        Ok(result)
    }

    fn list(&mut self, items: &[(Node, bool)]) -> Evaluated<'a> {
        let mut list = Vec::with_capacity(items.len());
        for (item, optional) in items {
            match (self.eval(item)?, optional) {
                (Value::Optional(value), true) => list.extend(value.as_deref().cloned()),
                (value, _) => list.push(value),
            }
        }
        self.charge(10)?;
        Ok(Value::list(list))
    }

    fn map(&mut self, entries: &[(Node, Node, bool)]) -> Evaluated<'a> {
        let mut made = Vec::with_capacity(entries.len());
        for (key, value, optional) in entries {
            let key = self.eval(key)?;
            match (self.eval(value)?, optional) {
                (Value::Optional(None), true) => {}
                (Value::Optional(Some(value)), true) => made.push(Ok((key, Value::clone(&value)))),
                (value, _) => made.push(Ok((key, value))),
            }
        }
        self.charge(30)?;
        map_of(made)
    }

    fn build(&mut self, name: &str, fields: &[(String, Node, bool)]) -> Evaluated<'a> {
        let mut built = Built {
            name: name.to_owned(),
            fields: std::collections::BTreeMap::new(),
        };
        for (field, value, optional) in fields {
            match (self.eval(value)?, optional) {
                (Value::Optional(None), true) => {}
                (Value::Optional(Some(value)), true) => {
                    built.fields.insert(field.clone(), Value::clone(&value));
                }
                (value, _) => {
                    built.fields.insert(field.clone(), value);
                }
            }
        }
        self.charge(40)?;
        Ok(Value::Built(Arc::new(built)))
    }

    fn fold(&mut self, fold: &Fold) -> Evaluated<'a> {
        let range = self.eval(&fold.range)?;
        let made = self.eval(&fold.init)?;
        debug_assert_eq!(self.locals.len(), fold.place, "places are given in order");
        self.locals.push(made);
        let result = self.iterate(fold, &range);
        let result = result.and_then(|()| {
            // Of the range nothing is left to see.
            self.locals.truncate(fold.place + 1);
            self.eval(&fold.result)
        });
        self.locals.truncate(fold.place);
        result
    }

    fn iterate(&mut self, fold: &Fold, range: &Value<'a>) -> Result<(), Error> {
        match range {
            Value::List(list) => {
                for index in 0..list.len() {
                    let item = list.get(index).unwrap_or(Value::Null);
                    let more = match fold.two {
                        true => {
                            let index = i64::try_from(index).unwrap_or(i64::MAX);
                            self.step(fold, Value::Int(index), Some(item))?
                        }
                        false => self.step(fold, item, None)?,
                    };
                    if !more {
                        break;
                    }
                }
                Ok(())
            }
            Value::Map(map) => {
                for (key, value) in map.entries() {
                    let value = fold.two.then_some(value);
                    if !self.step(fold, key.value(), value)? {
                        break;
                    }
                }
                Ok(())
            }
            _ => Err(Error::no_overload()),
        }
    }

    /// One round; whether there is to be another.
    fn step(
        &mut self,
        fold: &Fold,
        first: Value<'a>,
        second: Option<Value<'a>>,
    ) -> Result<bool, Error> {
        self.locals.truncate(fold.place + 1);
        self.locals.push(first);
        self.locals.extend(second);
        match self.eval(&fold.condition)? {
            Value::Bool(true) => {}
            _ => return Ok(false),
        }
        let made = match self.eval(&fold.step) {
            Ok(made) => made,
            // A failed round of `all` and `exists` does not matter if another one decides.
            Err(Error::Failed(message)) if matches!(fold.step, Node::All(_) | Node::Any(_)) => {
                return self.failed_round(fold, message);
            }
            Err(error) => return Err(error),
        };
        self.locals.truncate(fold.place + 1);
        self.locals[fold.place] = made;
        Ok(true)
    }

    /// Keeps going over the rest as if the failed term were undecided, and fails unless that is decided.
    fn failed_round(&mut self, fold: &Fold, message: String) -> Result<bool, Error> {
        self.locals.truncate(fold.place + 1);
        // Neither true nor false: `&&` and `||` report it unless another term decides.
        self.locals[fold.place] = Value::Failed(message.into());
        Ok(true)
    }

    fn append(&mut self, place: usize, item: &Node) -> Evaluated<'a> {
        let item = self.eval(item)?;
        // The same as for `made + [item]`.
        self.charge(12)?;
        let Some(slot) = self.locals.get_mut(place) else {
            return Err(Error::no_overload());
        };
        match std::mem::replace(slot, Value::Null) {
            Value::List(List::Values(mut items)) => {
                Arc::make_mut(&mut items).push(item);
                Ok(Value::List(List::Values(items)))
            }
            _ => Err(Error::no_overload()),
        }
    }

    fn insert(&mut self, place: usize, entries: Vec<(Value<'a>, Value<'a>)>) -> Evaluated<'a> {
        self.charge(2)?;
        let Some(slot) = self.locals.get_mut(place) else {
            return Err(Error::no_overload());
        };
        let Value::Map(Map::Values(mut map)) = std::mem::replace(slot, Value::Null) else {
            return Err(Error::no_overload());
        };
        let inner = Arc::make_mut(&mut map);
        for (key, value) in entries {
            let key = Key::of(&key)?;
            if inner.contains_key(&key) {
                return Err(Error::new(match &key {
                    Key::String(key) => format!("insert failed: key {} already exists", &**key),
                    other => format!("insert failed: key {other:?} already exists"),
                }));
            }
            inner.insert(key, value);
        }
        Ok(Value::Map(Map::Values(map)))
    }

    fn over_optional(
        &mut self,
        target: &Node,
        place: usize,
        body: &Node,
        wrap: bool,
    ) -> Evaluated<'a> {
        let value = match self.eval(target)? {
            Value::Optional(Some(value)) => Value::clone(&value),
            Value::Optional(None) => return Ok(Value::Optional(None)),
            _ => return Err(Error::no_overload()),
        };
        debug_assert_eq!(self.locals.len(), place, "places are given in order");
        self.locals.push(value);
        let result = self.eval(body);
        self.locals.truncate(place);
        match wrap {
            true => Ok(Value::optional(Some(result?))),
            false => result,
        }
    }
}

fn constant<'a>(literal: &Literal) -> Value<'a> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(value) => Value::Bool(*value),
        Literal::Int(value) => Value::Int(*value),
        Literal::Uint(value) => Value::Uint(*value),
        Literal::Double(value) => Value::Double(*value),
        Literal::String(text) => Value::String(Text::Shared(text.clone())),
        Literal::Bytes(bytes) => Value::Bytes(bytes.clone()),
        Literal::Type(name) => Value::Type(name.clone()),
    }
}
