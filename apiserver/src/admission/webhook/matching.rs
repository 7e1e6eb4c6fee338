//! Which writes a webhook or policy is for: rules over operations and resources, and selectors over labels.

use std::sync::Arc;

use apimachinery::object;
use apimachinery::selector::LabelSelector;
use apimachinery::status::{Result, Status};
use serde_json::Value;

use crate::admission::{Attributes, Operation, cached};
use crate::registry::Registry;
use crate::registry::table::{Served, Table};
use crate::strategy::check::{list, text};

/// `matchConstraints` of a policy, or the like of a webhook.
#[derive(Debug)]
pub struct Matcher {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    /// Whether other versions of the same objects count.
    equivalent: bool,
    namespaces: LabelSelector,
    objects: LabelSelector,
}

#[derive(Debug)]
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<(String, String)>,
    scope: Scope,
    /// Only objects of these names, if there are any.
    names: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Any,
    Cluster,
    Namespaced,
}

/// What a rule looks at.
struct Subject<'a> {
    operation: Operation,
    group: &'a str,
    version: &'a str,
    resource: &'a str,
    subresource: &'a str,
    namespaced: bool,
    name: &'a str,
}

fn strings(value: &Value, key: &str) -> Vec<String> {
    let texts = list(value, key).iter().filter_map(Value::as_str);
    texts.map(ToOwned::to_owned).collect()
}

impl Operation {
    /// As admission reviews say it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

impl Rule {
    fn read(value: &Value) -> Self {
        let resources = strings(value, "resources").into_iter().map(|resource| {
            match resource.split_once('/') {
                Some((resource, subresource)) => (resource.to_owned(), subresource.to_owned()),
                None => (resource, String::new()),
            }
        });
        Self {
            operations: strings(value, "operations"),
            groups: strings(value, "apiGroups"),
            versions: strings(value, "apiVersions"),
            resources: resources.collect(),
            scope: match text(value, "scope") {
                "Cluster" => Scope::Cluster,
                "Namespaced" => Scope::Namespaced,
                _ => Scope::Any,
            },
            names: strings(value, "resourceNames"),
        }
    }

    fn matches(&self, subject: &Subject<'_>) -> bool {
        let one_of = |known: &[String], wanted: &str| known.iter().any(|k| k == "*" || k == wanted);
        let scope = match self.scope {
            Scope::Any => true,
            Scope::Cluster => !subject.namespaced,
            Scope::Namespaced => subject.namespaced,
        };
        scope
            && one_of(&self.operations, subject.operation.name())
            && one_of(&self.groups, subject.group)
            && one_of(&self.versions, subject.version)
            && self.resources.iter().any(|(resource, subresource)| {
                (resource == "*" || resource == subject.resource)
                    && (subresource == "*" || subresource == subject.subresource)
            })
            && (self.names.is_empty() || self.names.iter().any(|name| name == subject.name))
    }
}

impl Matcher {
    /// From a webhook (`rules`) or from `matchConstraints` and `matchResources` (`resourceRules`).
    pub fn read(value: &Value, rules: &str) -> std::result::Result<Self, String> {
        let selector = |key: &str| match value.get(key) {
            None | Some(Value::Null) => Ok(LabelSelector::everything()),
            Some(selector) => LabelSelector::from_value(selector),
        };
        let rules_of = |key: &str| list(value, key).iter().map(Rule::read).collect();
        Ok(Self {
            rules: rules_of(rules),
            excluded: rules_of("excludeResourceRules"),
            equivalent: text(value, "matchPolicy") != "Exact",
            namespaces: selector("namespaceSelector")?,
            objects: selector("objectSelector")?,
        })
    }

    /// Whether there are no rules: then a binding takes what its policy takes.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty()
    }

    /// The version of the resource that is asked for, if the write is one of those.
    pub fn resource(&self, attributes: &Attributes<'_>, table: &Table) -> Option<Arc<Served>> {
        let resource = attributes.resource;
        let of = |served: &Served| {
            let other = &served.resource;
            self.covers(attributes, &other.group, &other.version, &other.plural)
        };
        if self.excludes(attributes, table) {
            return None;
        }
        let own = table.find(&resource.group, &resource.version, &resource.plural)?;
        if of(own) {
            return Some(own.clone());
        }
        if !self.equivalent {
            return None;
        }
        table
            .all()
            .find(|other| equivalent(own, other) && of(other))
            .cloned()
    }

    fn excludes(&self, attributes: &Attributes<'_>, table: &Table) -> bool {
        if self.excluded.is_empty() {
            return false;
        }
        let resource = attributes.resource;
        let Some(own) = table.find(&resource.group, &resource.version, &resource.plural) else {
            return false;
        };
        let hit = |served: &Served| {
            let other = &served.resource;
            let subject = subject(attributes, &other.group, &other.version, &other.plural);
            self.excluded.iter().any(|rule| rule.matches(&subject))
        };
        hit(own)
            || self.equivalent
                && table
                    .all()
                    .any(|other| equivalent(own, other) && hit(other))
    }

    fn covers(
        &self,
        attributes: &Attributes<'_>,
        group: &str,
        version: &str,
        plural: &str,
    ) -> bool {
        let subject = subject(attributes, group, version, plural);
        self.rules.iter().any(|rule| rule.matches(&subject))
    }

    /// Whether the labels of the object and of its namespace are those that are asked for.
    pub async fn selects(&self, attributes: &Attributes<'_>, registry: &Registry) -> Result<bool> {
        let objects = self.objects.is_everything()
            || [&*attributes.object, attributes.old]
                .into_iter()
                .any(|object| {
                    object.get("metadata").is_some_and(Value::is_object)
                        && self.objects.matches_object(object)
                });
        if !objects || self.namespaces.is_everything() {
            return Ok(objects);
        }
        if is_namespace(attributes) {
            let object = match attributes.operation {
                Operation::Create | Operation::Update => &*attributes.object,
                _ => attributes.old,
            };
            return Ok(self.namespaces.matches_object(object));
        }
        if attributes.namespace.is_empty() {
            return Ok(true);
        }
        match cached(registry, "", "namespaces", "", attributes.namespace).await? {
            Some(namespace) => Ok(self.namespaces.matches_object(&namespace.value())),
            None => {
                let resource = apimachinery::resource::GroupResource::new("", "namespaces");
                Err(Status::not_found(&resource, attributes.namespace))
            }
        }
    }
}

fn subject<'a>(
    attributes: &'a Attributes<'_>,
    group: &'a str,
    version: &'a str,
    resource: &'a str,
) -> Subject<'a> {
    Subject {
        operation: attributes.operation,
        group,
        version,
        resource,
        subresource: attributes.subresource,
        namespaced: !attributes.namespace.is_empty() && !is_namespace(attributes),
        name: match attributes.name {
            "" => object::name(attributes.old_or_new()),
            name => name,
        },
    }
}

/// Another version of the same objects.
fn equivalent(own: &Arc<Served>, other: &Arc<Served>) -> bool {
    !Arc::ptr_eq(own, other)
        && Arc::ptr_eq(&own.storage, &other.storage)
        && own.resource.is_stored()
}

pub fn is_namespace(attributes: &Attributes<'_>) -> bool {
    attributes.resource.group.is_empty() && attributes.resource.plural == "namespaces"
}

/// Configurations of admission are not themselves admitted: nobody could repair what locks everybody out.
pub fn is_exempt(attributes: &Attributes<'_>) -> bool {
    attributes.resource.group == "admissionregistration.k8s.io"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules() {
        let subject = |resource, subresource, namespaced| Subject {
            operation: Operation::Create,
            group: "apps",
            version: "v1",
            resource,
            subresource,
            namespaced,
            name: "n",
        };
        let deployment = subject("deployments", "", true);
        let scale = subject("deployments", "scale", true);
        for (operations, groups, resources, scope, names, wanted) in [
            (
                "CREATE",
                "apps",
                "deployments",
                "*",
                json!(null),
                [true, false],
            ),
            ("*", "*", "*", "*", json!(null), [true, false]),
            ("*", "*", "*/*", "*", json!(null), [true, true]),
            ("*", "*", "deployments/*", "*", json!(null), [true, true]),
            ("*", "*", "*/scale", "*", json!(null), [false, true]),
            (
                "UPDATE",
                "apps",
                "deployments",
                "*",
                json!(null),
                [false, false],
            ),
            ("*", "", "deployments", "*", json!(null), [false, false]),
            ("*", "*", "*", "Cluster", json!(null), [false, false]),
            ("*", "*", "*", "Namespaced", json!(null), [true, false]),
            ("*", "*", "*", "*", json!(["other"]), [false, false]),
            ("*", "*", "*", "*", json!(["n"]), [true, false]),
        ] {
            let rule = Rule::read(&json!({
                "operations": [operations], "apiGroups": [groups], "apiVersions": ["v1"], "resources": [resources],
                "scope": scope, "resourceNames": names,
            }));
            let found = [rule.matches(&deployment), rule.matches(&scale)];
            assert_eq!(found, wanted, "{rule:?}");
        }
    }
}
