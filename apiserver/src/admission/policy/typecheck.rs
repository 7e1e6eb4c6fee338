//! What the expressions of a policy would stumble over, told by the types of the objects that it is for.
//!
//! Policies run over objects of which nothing is known beforehand, so that what is wrong with an expression shows only when
//! it runs. Here they are compiled once more, for every kind that the policy names, and what does not fit is a warning in
//! the policy's status. It changes nothing about what the policy does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use apimachinery::schema::{Scalar, Schema, Shape};
use serde_json::{Value, json};

use super::compiled::declare;
use crate::admission::webhook::expressions;
use crate::cel::{Environment, Field, ListKind, ListType, ObjectType, Program, Type, escape};
use crate::registry::table::{Served, Table};
use crate::strategy::check::{given, list, text};

/// No more kinds of one rule are looked at.
const MOST_KINDS: usize = 10;

/// The `expressionWarnings` of a policy.
pub fn warnings(policy: &Value, table: &Table) -> Vec<Value> {
    let spec = &policy["spec"];
    let param_kind = given(spec, "paramKind");
    let params = param_kind.and_then(|kind| {
        let served = table.all().find(|served| {
            served.resource.api_version() == text(kind, "apiVersion")
                && served.resource.kind == text(kind, "kind")
        });
        served.map(|served| type_of(served))
    });
    let environments: Vec<(String, Environment)> = kinds(spec, table)
        .into_values()
        .map(|served| {
            let mut environment = expressions::environment(param_kind.is_some(), true);
            let object = type_of(&served);
            environment.declare("object", object.clone());
            environment.declare("oldObject", object);
            if let Some(params) = &params {
                environment.declare("params", params.clone());
            }
            let (group_version, kind) = (served.resource.api_version(), &served.resource.kind);
            let (environment, _) = declare(spec, environment);
            (format!("{group_version}, Kind={kind}"), environment)
        })
        .collect();
    let mut warnings = Vec::new();
    for (index, validation) in list(spec, "validations").iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            let expression = text(validation, field).trim();
            if expression.is_empty() {
                continue;
            }
            let found: Vec<String> = environments
                .iter()
                .filter_map(|(kind, environment)| {
                    let error = Program::compile(expression, environment).err()?;
                    Some(format!("{kind}: {error}\n"))
                })
                .collect();
            if !found.is_empty() {
                warnings.push(json!({
                    "fieldRef": format!("spec.validations[{index}].{field}"),
                    "warning": found.join("\n"),
                }));
            }
        }
    }
    warnings
}

/// The kinds that a policy names, in order. Rules with wildcards name none, and subresources have kinds of their own.
fn kinds(spec: &Value, table: &Table) -> BTreeMap<(String, String, String), Arc<Served>> {
    let mut kinds = BTreeMap::new();
    let constraints = spec.get("matchConstraints").unwrap_or(&Value::Null);
    for rule in list(constraints, "resourceRules") {
        let sorted = |key: &str| -> BTreeSet<&str> {
            list(rule, key).iter().filter_map(Value::as_str).collect()
        };
        let (groups, versions) = (sorted("apiGroups"), sorted("apiVersions"));
        if groups.contains("*") || versions.contains("*") {
            continue;
        }
        let resources = sorted("resources");
        let resources: Vec<&str> = resources
            .into_iter()
            .filter(|resource| !resource.contains(['*', '/']))
            .collect();
        let mut named = groups.iter().flat_map(|group| {
            versions.iter().flat_map(|version| {
                let of = |resource: &&str| table.find(group, version, resource).cloned();
                resources.iter().filter_map(of).collect::<Vec<_>>()
            })
        });
        for served in named.by_ref().take(MOST_KINDS) {
            let resource = &served.resource;
            let key = (
                resource.group.to_string(),
                resource.version.to_string(),
                resource.kind.to_string(),
            );
            kinds.insert(key, served);
        }
    }
    kinds
}

/// The type of a resource's objects.
fn type_of(served: &Served) -> Type {
    let schema = &served.resource.schema;
    let Some(open_api) = schema.open_api() else {
        return of_shape(schema.shape(), &mut Vec::new());
    };
    // The schema of a custom resource says nothing of its metadata, which is that of all objects.
    let mut of = Type::from_schema(open_api, true).unwrap_or(Type::Dyn);
    if let (Type::Object(object), Some(metadata)) =
        (&mut of, Schema::definition("meta.v1.ObjectMeta"))
    {
        let of = of_shape(metadata.shape(), &mut Vec::new());
        let name = "metadata".to_owned();
        let fields = &mut Arc::make_mut(object).fields;
        fields.insert(name.clone(), Field { name, of });
    }
    of
}

/// The type of a built-in shape. A type within itself is not looked into again.
fn of_shape<'a>(shape: Shape<'a>, around: &mut Vec<&'a str>) -> Type {
    if let Some(scalar) = shape.scalar() {
        return of_scalar(scalar);
    }
    if let Some(items) = shape.items() {
        let items = of_shape(items, around);
        let kind = ListKind::Atomic;
        return Type::List(Arc::new(ListType { items, kind }));
    }
    if shape.is_map() {
        let values = shape.field("").map(|values| of_shape(values, around));
        return Type::map(Type::String, values.unwrap_or(Type::Dyn));
    }
    let name = shape.object_name().unwrap_or_default();
    if !shape.is_object() || shape.is_either() || shape.is_open() || around.contains(&name) {
        return Type::Dyn;
    }
    around.push(name);
    let mut fields = BTreeMap::new();
    for (field, below) in shape.fields() {
        if let Some(escaped) = escape(field) {
            let of = of_shape(below, around);
            let name = field.to_owned();
            fields.insert(escaped, Field { name, of });
        }
    }
    around.pop();
    let name = name.to_owned();
    Type::Object(Arc::new(ObjectType { name, fields }))
}

fn of_scalar(scalar: Scalar) -> Type {
    match scalar {
        Scalar::String | Scalar::Quantity => Type::String,
        Scalar::Int32 | Scalar::Int64 => Type::Int,
        Scalar::Number => Type::Double,
        Scalar::Bool => Type::Bool,
        Scalar::Bytes => Type::Bytes,
        Scalar::Time | Scalar::MicroTime => Type::Timestamp,
        Scalar::IntOrString => Type::Dyn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::resource::builtin;

    fn check(resources: Value, validation: Value) -> Vec<(String, String)> {
        let table = Table::new(builtin().iter().cloned());
        let policy = json!({"spec": {
            "matchConstraints": {"resourceRules": [resources]},
            "variables": [{"name": "replicas", "expression": "object.spec.replicas"}],
            "validations": [validation],
        }});
        warnings(&policy, &table)
            .iter()
            .map(|warning| {
                (
                    text(warning, "fieldRef").to_owned(),
                    text(warning, "warning").to_owned(),
                )
            })
            .collect()
    }

    #[test]
    fn expressions_are_checked_against_the_kinds_that_are_named() {
        let deployments =
            || json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]});
        for good in [
            "object.spec.replicas > 1",
            "variables.replicas % 2 == 1",
            "object.metadata.labels['a'] == 'b'",
            "object.spec.template.spec.containers.all(c, c.image.startsWith('x'))",
            "object.metadata.creationTimestamp < timestamp('2030-01-01T00:00:00Z')",
            "object.spec.strategy.rollingUpdate.maxSurge == 1 || oldObject.metadata.name == 'x'",
        ] {
            let found = check(deployments(), json!({"expression": good}));
            assert_eq!(found, [], "{good}");
        }
        let found = check(
            deployments(),
            json!({"expression": "object.spec.replicas > '1'", "messageExpression": "'got ' + object.spec.replicas"}),
        );
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].0, "spec.validations[0].expression");
        assert!(
            found[0].1.starts_with("apps/v1, Kind=Deployment: "),
            "{}",
            found[0].1
        );
        assert!(
            found[0]
                .1
                .contains("found no matching overload for '_>_' applied to '(int, string)'"),
            "{}",
            found[0].1
        );
        assert_eq!(found[1].0, "spec.validations[0].messageExpression");
        assert!(
            found[1]
                .1
                .contains("found no matching overload for '_+_' applied to '(string, int)'"),
            "{}",
            found[1].1
        );
        let found = check(
            deployments(),
            json!({"expression": "object.spec.maxRetries < 10"}),
        );
        assert!(
            found[0].1.contains("undefined field 'maxRetries'"),
            "{found:?}"
        );
        let found = check(
            deployments(),
            json!({"expression": "variables.replicas == 'x'"}),
        );
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn wildcards_name_no_kinds() {
        let wrong = || json!({"expression": "object.spec.nothing == 1"});
        for (groups, versions, resources, wanted) in [
            (["apps"], ["v1"], ["deployments"], 1),
            (["*"], ["v1"], ["deployments"], 0),
            (["apps"], ["*"], ["deployments"], 0),
            (["apps"], ["v1"], ["*"], 0),
            (["apps"], ["v1"], ["deployments/scale"], 0),
            (["apps"], ["v1"], ["unknowns"], 0),
        ] {
            let rule =
                json!({"apiGroups": groups, "apiVersions": versions, "resources": resources});
            assert_eq!(check(rule.clone(), wrong()).len(), wanted, "{rule}");
        }
        let both = json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["statefulsets", "deployments"]});
        let found = check(both, wrong());
        let (first, second) = found[0].1.split_once("\n\n").unwrap();
        assert!(
            first.starts_with("apps/v1, Kind=Deployment")
                && second.starts_with("apps/v1, Kind=StatefulSet")
        );
    }

    /// Types hold themselves in some kinds, and none of them may send us round and round.
    #[test]
    fn every_builtin_kind_has_a_type() {
        let table = Table::new(builtin().iter().cloned());
        for served in table.all() {
            type_of(served);
        }
    }
}
