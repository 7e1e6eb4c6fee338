//! May they: the question that every request puts ([`Attributes`]) and who answers it ([`Authorizer`]).

use futures::future::BoxFuture;

use crate::authn::UserInfo;
use crate::request::RequestInfo;

/// What is to be allowed. Borrowed from the request, so that asking allocates nothing.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    pub user: &'a UserInfo,
    pub verb: &'a str,
    pub namespace: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub name: &'a str,
    /// False for paths such as `/version`: then only `verb` and `path` count.
    pub is_resource: bool,
    pub path: &'a str,
    pub field_selector: &'a str,
    pub label_selector: &'a str,
}

impl<'a> Attributes<'a> {
    #[must_use]
    pub fn of(user: &'a UserInfo, info: &'a RequestInfo) -> Self {
        Self {
            user,
            verb: &info.verb,
            namespace: &info.namespace,
            group: &info.group,
            version: &info.version,
            resource: &info.resource,
            subresource: &info.subresource,
            name: &info.name,
            is_resource: info.is_resource,
            path: &info.path,
            field_selector: &info.field_selector,
            label_selector: &info.label_selector,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow(String),
    /// Refused at once; no later authorizer is asked.
    Deny(String),
    /// Not mine: the next authorizer decides. If all say so, the request is forbidden.
    NoOpinion(String),
}

/// One rule of `SelfSubjectRulesReview`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    Resource {
        verbs: Vec<String>,
        groups: Vec<String>,
        resources: Vec<String>,
        names: Vec<String>,
    },
    NonResource {
        verbs: Vec<String>,
        urls: Vec<String>,
    },
}

pub trait Authorizer: Send + Sync {
    fn authorize<'a>(&'a self, attributes: &'a Attributes<'a>) -> BoxFuture<'a, Decision>;

    /// What the user may do in a namespace, and whether the list is incomplete (with the reason).
    fn rules<'a>(
        &'a self,
        user: &'a UserInfo,
        namespace: &'a str,
    ) -> BoxFuture<'a, (Vec<Rule>, Option<String>)>;
}
