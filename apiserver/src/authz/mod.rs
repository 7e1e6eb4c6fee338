//! May they: the question that every request puts ([`Attributes`]) and who answers it ([`Authorizer`]).
//!
//! [`rbac`] evaluates roles and bindings, [`node`] limits kubelets to their own pods, [`webhook`] asks a service; [`Union`]
//! asks them in the order that [`configuration`] reads. [`rules`] is the pure half of RBAC. [`review`] answers the access-review
//! resources, [`escalation`] keeps users from granting what they do not hold.

pub mod configuration;
pub mod escalation;
pub mod node;
pub mod rbac;
pub mod review;
pub mod rules;
pub mod webhook;

use std::sync::Arc;

use apimachinery::resource::GroupResource;
use apimachinery::status::{Result, Status};
use futures::future::BoxFuture;

use crate::authn::{MASTERS, UserInfo};
use crate::config::Config;
use crate::registry::Registry;
use crate::request::RequestInfo;
use configuration::Mode;

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
    /// A right over an object that no request asks for by itself, as `bind`, `escalate`, `approve` and `sign` are.
    #[must_use]
    pub fn special(
        user: &'a UserInfo,
        verb: &'a str,
        namespace: &'a str,
        (group, resource): (&'a str, &'a str),
        name: &'a str,
    ) -> Self {
        Self {
            user,
            verb,
            namespace,
            group,
            version: "*",
            resource,
            subresource: "",
            name,
            is_resource: true,
            path: "",
            field_selector: "",
            label_selector: "",
        }
    }

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

/// Several authorizers in order: the first opinion counts. Members of `system:masters` are never asked about.
pub struct Union {
    authorizers: Vec<Box<dyn Authorizer>>,
    always: bool,
}

impl Union {
    /// As the flags or the configuration file say.
    pub fn new(
        config: &Config,
        registry: &Arc<Registry>,
        rbac: &Arc<rbac::Rbac>,
    ) -> anyhow::Result<Self> {
        let mut union = Self {
            authorizers: Vec::new(),
            always: false,
        };
        for mode in configuration::modes(config)? {
            match mode {
                Mode::Node => union.authorizers.push(Box::new(node::Node::new(registry))),
                Mode::Rbac => union.authorizers.push(Box::new(Shared(rbac.clone()))),
                Mode::AlwaysAllow => union.always = true,
                Mode::AlwaysDeny => {}
                Mode::Webhook(path, options) => {
                    let webhook = webhook::Webhook::new(&path, options)?;
                    union.authorizers.push(Box::new(webhook));
                }
            }
        }
        Ok(union)
    }
}

struct Shared<T>(Arc<T>);

impl<T: Authorizer> Authorizer for Shared<T> {
    fn authorize<'a>(&'a self, attributes: &'a Attributes<'a>) -> BoxFuture<'a, Decision> {
        self.0.authorize(attributes)
    }
    fn rules<'a>(
        &'a self,
        user: &'a UserInfo,
        namespace: &'a str,
    ) -> BoxFuture<'a, (Vec<Rule>, Option<String>)> {
        self.0.rules(user, namespace)
    }
}

impl Authorizer for Union {
    fn authorize<'a>(&'a self, attributes: &'a Attributes<'a>) -> BoxFuture<'a, Decision> {
        Box::pin(async move {
            if self.always || attributes.user.in_group(MASTERS) {
                return Decision::Allow(String::new());
            }
            let mut reasons = Vec::new();
            for authorizer in &self.authorizers {
                match authorizer.authorize(attributes).await {
                    Decision::NoOpinion(reason) if reason.is_empty() => {}
                    Decision::NoOpinion(reason) => reasons.push(reason),
                    decided => return decided,
                }
            }
            Decision::NoOpinion(reasons.join("\n"))
        })
    }

    fn rules<'a>(
        &'a self,
        user: &'a UserInfo,
        namespace: &'a str,
    ) -> BoxFuture<'a, (Vec<Rule>, Option<String>)> {
        Box::pin(async move {
            let everything = || vec!["*".to_owned()];
            let (mut all, mut errors) = (Vec::new(), Vec::new());
            if self.always || user.in_group(MASTERS) {
                all.push(Rule::Resource {
                    verbs: everything(),
                    groups: everything(),
                    resources: everything(),
                    names: Vec::new(),
                });
                all.push(Rule::NonResource {
                    verbs: everything(),
                    urls: everything(),
                });
            }
            for authorizer in &self.authorizers {
                let (rules, error) = authorizer.rules(user, namespace).await;
                all.extend(rules);
                errors.extend(error);
            }
            (all, (!errors.is_empty()).then(|| errors.join(", ")))
        })
    }
}

/// The 403 for a request, in Kubernetes' words:
/// `pods "x" is forbidden: User "u" cannot get resource "pods" in API group "" in the namespace "n"`.
#[must_use]
pub fn forbidden(a: &Attributes<'_>, reason: &str) -> Status {
    let user = &a.user.name;
    let mut why = if !a.is_resource {
        format!("User {user:?} cannot {} path {:?}", a.verb, a.path)
    } else {
        let resource = match a.subresource {
            "" => a.resource.to_owned(),
            sub => format!("{}/{sub}", a.resource),
        };
        let scope = match a.namespace {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        format!(
            "User {user:?} cannot {} resource {resource:?} in API group {:?} {scope}",
            a.verb, a.group
        )
    };
    if !reason.is_empty() {
        why = format!("{why}: {reason}");
    }
    if !a.is_resource {
        let mut status = Status::new(403, "Forbidden", format!("forbidden: {why}"));
        status.details = Some(Box::default());
        return status;
    }
    let resource = GroupResource::new(a.group.to_owned(), a.resource.to_owned());
    Status::forbidden(&resource, a.name, why)
}

/// Asks, and turns everything but yes into the 403.
pub async fn require(authorizer: &dyn Authorizer, attributes: &Attributes<'_>) -> Result<()> {
    match authorizer.authorize(attributes).await {
        Decision::Allow(_) => Ok(()),
        Decision::Deny(reason) | Decision::NoOpinion(reason) => Err(forbidden(attributes, &reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_read_as_kubernetes_does() {
        let user = UserInfo::new("jane", &[]);
        let base = Attributes {
            user: &user,
            verb: "get",
            namespace: "ns",
            group: "",
            version: "v1",
            resource: "pods",
            subresource: "",
            name: "",
            is_resource: true,
            path: "/metrics",
            field_selector: "",
            label_selector: "",
        };
        for (a, want) in [
            (
                Attributes {
                    verb: "list",
                    ..base
                },
                r#"pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "ns""#,
            ),
            (
                Attributes {
                    name: "p",
                    subresource: "log",
                    ..base
                },
                r#"pods "p" is forbidden: User "jane" cannot get resource "pods/log" in API group "" in the namespace "ns""#,
            ),
            (
                Attributes {
                    group: "apps",
                    resource: "deployments",
                    namespace: "",
                    ..base
                },
                r#"deployments.apps is forbidden: User "jane" cannot get resource "deployments" in API group "apps" at the cluster scope"#,
            ),
            (
                Attributes {
                    is_resource: false,
                    ..base
                },
                r#"forbidden: User "jane" cannot get path "/metrics""#,
            ),
        ] {
            assert_eq!(forbidden(&a, "").message, want);
        }
        assert!(
            forbidden(&base, "RBAC: x")
                .message
                .ends_with(r#"in the namespace "ns": RBAC: x"#)
        );
    }
}
