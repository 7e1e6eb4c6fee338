//! Calls into `kube-cel`: its libraries run there, on the `cel` crate's values.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use kube_cel::KubeCelExt;
use kube_cel::cel::common::ast::{CallExpr, Expr, IdedExpr};
use kube_cel::cel::objects::OptionalValue;
use kube_cel::cel::{Context, ExecutionError, Value as Theirs};

use super::super::Error;
use super::super::value::{Key, List, Map, Text, Value};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

thread_local! {
    // Functions are registered once for each thread: a context is not to be shared.
    static CONTEXT: OnceCell<Context<'static>> = const { OnceCell::new() };
}

/// Calls a function with the receiver, if it is a member, as the first argument. `namespace.name` is global.
pub(in super::super) fn call<'a>(
    name: &str,
    member: bool,
    arguments: &[Value<'a>],
) -> Result<Value<'a>, Error> {
    let (namespace, function) = match name.rsplit_once('.') {
        Some((namespace, function)) => (Some(namespace), function),
        None => (None, name),
    };
    let identifier = |name: &str| IdedExpr {
        id: 0,
        expr: Expr::Ident(name.to_owned()),
    };
    let mut names = NAMES[..arguments.len().min(NAMES.len())].iter();
    let target = match (namespace, member) {
        (Some(namespace), _) => Some(namespace),
        (None, true) => names.next().copied(),
        (None, false) => None,
    };
    let call = IdedExpr {
        id: 0,
        expr: Expr::Call(CallExpr {
            func_name: function.to_owned(),
            target: target.map(|target| Box::new(identifier(target))),
            args: names.map(|name| identifier(name)).collect(),
        }),
    };
    let arguments = arguments
        .iter()
        .map(theirs)
        .collect::<Result<Vec<_>, _>>()?;
    CONTEXT.with(|context| {
        let context = context.get_or_init(|| Context::default().with_all());
        let mut scope = context.new_inner_scope();
        for (name, argument) in NAMES.iter().zip(arguments) {
            scope.add_variable_from_value(*name, argument);
        }
        match Theirs::resolve(&call, &scope) {
            Ok(value) => ours(value),
            Err(ExecutionError::FunctionError { message, .. }) => Err(Error::new(message)),
            Err(ExecutionError::NoSuchOverload) => Err(Error::no_overload()),
            Err(error) => Err(Error::new(error.to_string())),
        }
    })
}

/// A format by its name; `kube-cel` says null for names that there are not.
pub(super) fn named_format<'a>(arguments: &[Value<'a>]) -> Result<Value<'a>, Error> {
    Ok(match call("format.named", false, arguments)? {
        Value::Null => Value::Optional(None),
        format => Value::optional(Some(format)),
    })
}

fn theirs(value: &Value<'_>) -> Result<Theirs, Error> {
    Ok(match value {
        Value::Null => Theirs::Null,
        Value::Bool(value) => Theirs::Bool(*value),
        Value::Int(value) => Theirs::Int(*value),
        Value::Uint(value) => Theirs::UInt(*value),
        Value::Double(value) => Theirs::Float(*value),
        Value::String(text) => Theirs::String(Arc::new(text.to_string())),
        Value::Bytes(bytes) => Theirs::Bytes(Arc::new(bytes.to_vec())),
        Value::List(list) => Theirs::List(Arc::new(
            list.iter()
                .map(|item| theirs(&item))
                .collect::<Result<_, _>>()?,
        )),
        Value::Foreign(value) => Theirs::Opaque(value.clone()),
        Value::Timestamp(at) => Theirs::String(Arc::new(at.to_string())),
        Value::Duration(value) => Theirs::String(Arc::new(super::time::duration_text(*value))),
        Value::Type(name) => Theirs::String(Arc::new(name.to_string())),
        Value::Map(map) => {
            let mut entries = std::collections::HashMap::new();
            for (key, value) in map.entries() {
                let Key::String(key) = key else {
                    return Err(Error::no_overload());
                };
                entries.insert(key.to_string(), theirs(&value)?);
            }
            entries.into()
        }
        Value::Optional(_) | Value::Authorization(_) | Value::Built(_) | Value::Failed(_) => {
            return Err(Error::no_overload());
        }
    })
}

fn ours<'a>(value: Theirs) -> Result<Value<'a>, Error> {
    Ok(match value {
        Theirs::Null => Value::Null,
        Theirs::Bool(value) => Value::Bool(value),
        Theirs::Int(value) => Value::Int(value),
        Theirs::UInt(value) => Value::Uint(value),
        Theirs::Float(value) => Value::Double(value),
        Theirs::String(text) => Value::text(text.as_str()),
        Theirs::Bytes(bytes) => Value::Bytes(bytes.as_slice().into()),
        Theirs::List(items) => Value::List(List::Values(Arc::new(
            items
                .iter()
                .map(|item| ours(item.clone()))
                .collect::<Result<_, _>>()?,
        ))),
        Theirs::Map(map) => {
            let mut entries = BTreeMap::new();
            for (key, value) in map.map.iter() {
                let key = Key::String(Text::Shared(key.to_string().into()));
                entries.insert(key, ours(value.clone())?);
            }
            Value::Map(Map::Values(Arc::new(entries)))
        }
        Theirs::Opaque(value) => match value.downcast_ref::<OptionalValue>() {
            Some(optional) => Value::optional(optional.value().cloned().map(ours).transpose()?),
            None => Value::Foreign(value),
        },
        other => {
            return Err(Error::new(format!(
                "unexpected value {:?}",
                other.type_of()
            )));
        }
    })
}
