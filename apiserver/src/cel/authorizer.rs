//! The `authorizer` variable: may the user of a request do something else?

use std::fmt;
use std::sync::Arc;

use futures::FutureExt;

use super::Error;
use super::library::{no_overload, opaque};
use super::value::Value;
use crate::authn::UserInfo;
use crate::authz::{Attributes, Authorizer, Decision};

/// Whom to ask, about whom.
#[derive(Clone)]
pub struct Asked<'a> {
    pub authorizer: &'a dyn Authorizer,
    pub user: Arc<UserInfo>,
}

#[derive(Clone)]
pub enum Authorization<'a> {
    Authorizer(Asked<'a>),
    Path(Asked<'a>, String),
    Group(Asked<'a>, String),
    Resource(Asked<'a>, ResourceCheck),
    Decision(Decision),
}

#[derive(Clone, Debug, Default)]
pub struct ResourceCheck {
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
}

impl fmt::Debug for Authorization<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.type_name())
    }
}

impl Authorization<'_> {
    pub(super) fn type_name(&self) -> &'static str {
        opaque(match self {
            Self::Authorizer(_) => "authorizer",
            Self::Path(..) => "path_check",
            Self::Group(..) => "group_check",
            Self::Resource(..) => "resource_check",
            Self::Decision(_) => "decision",
        })
    }
}

type Result<'a> = std::result::Result<Value<'a>, Error>;

pub(super) fn path<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [
            Value::Authorization(Authorization::Authorizer(asked)),
            Value::String(path),
        ] => Ok(Value::Authorization(Authorization::Path(
            asked.clone(),
            path.to_string(),
        ))),
        _ => no_overload(),
    }
}

pub(super) fn group<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [
            Value::Authorization(Authorization::Authorizer(asked)),
            Value::String(group),
        ] => Ok(Value::Authorization(Authorization::Group(
            asked.clone(),
            group.to_string(),
        ))),
        _ => no_overload(),
    }
}

pub(super) fn service_account<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    let [
        Value::Authorization(Authorization::Authorizer(asked)),
        Value::String(namespace),
        Value::String(name),
    ] = arguments
    else {
        return no_overload();
    };
    let user = UserInfo {
        name: format!("system:serviceaccount:{}:{}", &**namespace, &**name),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{}", &**namespace),
            crate::authn::AUTHENTICATED.to_owned(),
        ],
        ..UserInfo::default()
    };
    Ok(Value::Authorization(Authorization::Authorizer(Asked {
        authorizer: asked.authorizer,
        user: Arc::new(user),
    })))
}

pub(super) fn resource<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match arguments {
        [
            Value::Authorization(Authorization::Group(asked, group)),
            Value::String(resource),
        ] => Ok(Value::Authorization(Authorization::Resource(
            asked.clone(),
            ResourceCheck {
                group: group.clone(),
                resource: resource.to_string(),
                ..ResourceCheck::default()
            },
        ))),
        _ => no_overload(),
    }
}

fn refined<'a>(arguments: &[Value<'a>], refine: impl Fn(&mut ResourceCheck, String)) -> Result<'a> {
    match arguments {
        [
            Value::Authorization(Authorization::Resource(asked, check)),
            Value::String(value),
        ] => {
            let mut check = check.clone();
            refine(&mut check, value.to_string());
            Ok(Value::Authorization(Authorization::Resource(
                asked.clone(),
                check,
            )))
        }
        _ => no_overload(),
    }
}

pub(super) fn subresource<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    refined(arguments, |check, value| check.subresource = value)
}

pub(super) fn namespace<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    refined(arguments, |check, value| check.namespace = value)
}

pub(super) fn name<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    refined(arguments, |check, value| check.name = value)
}

pub(super) fn field_selector<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    refined(arguments, |check, value| check.field_selector = value)
}

pub(super) fn label_selector<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    refined(arguments, |check, value| check.label_selector = value)
}

pub(super) fn check<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    let [Value::Authorization(subject), Value::String(verb)] = arguments else {
        return no_overload();
    };
    let none = ResourceCheck::default();
    let (asked, check, path) = match subject {
        Authorization::Path(asked, path) => (asked, &none, path.as_str()),
        Authorization::Resource(asked, check) => (asked, check, ""),
        _ => return no_overload(),
    };
    let attributes = Attributes {
        user: &asked.user,
        verb,
        namespace: &check.namespace,
        group: &check.group,
        version: "*",
        resource: &check.resource,
        subresource: &check.subresource,
        name: &check.name,
        is_resource: path.is_empty(),
        path,
        field_selector: &check.field_selector,
        label_selector: &check.label_selector,
    };
    let decision = decide(asked.authorizer, &attributes)?;
    Ok(Value::Authorization(Authorization::Decision(decision)))
}

/// Programs run without waiting. Authorizers answer from their caches at once but for the first time.
fn decide(
    authorizer: &dyn Authorizer,
    attributes: &Attributes<'_>,
) -> std::result::Result<Decision, Error> {
    if let Some(decision) = authorizer.authorize(attributes).now_or_never() {
        return Ok(decision);
    }
    let handle = tokio::runtime::Handle::try_current()
        .map_err(|_| Error::new("the authorizer is not ready"))?;
    match handle.runtime_flavor() {
        tokio::runtime::RuntimeFlavor::MultiThread => Ok(tokio::task::block_in_place(|| {
            handle.block_on(authorizer.authorize(attributes))
        })),
        _ => Err(Error::new("the authorizer is not ready")),
    }
}

fn decision<'b>(arguments: &'b [Value<'_>]) -> Option<&'b Decision> {
    match arguments {
        [Value::Authorization(Authorization::Decision(decision))] => Some(decision),
        _ => None,
    }
}

pub(super) fn allowed<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match decision(arguments) {
        Some(decision) => Ok(Value::Bool(matches!(decision, Decision::Allow(_)))),
        None => no_overload(),
    }
}

pub(super) fn reason<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match decision(arguments) {
        Some(Decision::Allow(why) | Decision::Deny(why) | Decision::NoOpinion(why)) => {
            Ok(Value::text(why.as_str()))
        }
        None => no_overload(),
    }
}

/// Authorizers here decide, they do not fail.
pub(super) fn errored<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match decision(arguments) {
        Some(_) => Ok(Value::Bool(false)),
        None => no_overload(),
    }
}

pub(super) fn error<'a>(arguments: &[Value<'a>]) -> Result<'a> {
    match decision(arguments) {
        Some(_) => Ok(Value::text("")),
        None => no_overload(),
    }
}
