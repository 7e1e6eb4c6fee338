//! Policies and their bindings, compiled.

use std::sync::Arc;

use apimachinery::object;
use apimachinery::status::Result;
use parking_lot::Mutex;
use serde_json::Value;

use super::params::ParamKind;
use crate::admission::webhook::expressions::{self, Conditions};
use crate::admission::webhook::matching::Matcher;
use crate::cache::Selection;
use crate::cel::{Environment, Program, Type};
use crate::registry::Registry;
use crate::strategy::check::{given, list, text};

/// An expression with its program.
pub struct Compiled {
    pub expression: String,
    pub program: std::result::Result<Program, String>,
}

impl Compiled {
    fn new(expression: &str, environment: &Environment) -> Self {
        let expression = expression.trim().to_owned();
        Self {
            program: expressions::compile(&expression, environment),
            expression,
        }
    }
}

pub struct Policy {
    pub name: String,
    pub matcher: std::result::Result<Matcher, String>,
    /// Whether what goes wrong is passed over.
    pub ignore: bool,
    pub param_kind: Option<ParamKind>,
    pub conditions: Conditions,
    /// In their order: each may use those before it.
    pub variables: Vec<(String, Compiled)>,
    pub validations: Vec<Validation>,
    pub annotations: Vec<(String, Compiled)>,
    pub mutations: Vec<Mutation>,
    pub reinvoke: bool,
    pub bindings: Vec<Binding>,
}

pub struct Validation {
    pub rule: Compiled,
    pub message: String,
    pub message_expression: Option<Compiled>,
    /// The reason of a refusal.
    pub reason: String,
}

pub enum Mutation {
    /// An object that is merged.
    Apply(Compiled),
    /// A list of operations.
    Patch(Compiled),
}

pub struct Binding {
    pub name: String,
    pub matcher: Option<std::result::Result<Matcher, String>>,
    pub param_ref: Option<Value>,
    pub actions: Vec<String>,
}

impl Binding {
    fn read(value: &Value) -> Self {
        let spec = &value["spec"];
        let actions = list(spec, "validationActions").iter();
        Self {
            name: object::name(value).to_owned(),
            matcher: given(spec, "matchResources")
                .map(|resources| Matcher::read(resources, "resourceRules")),
            param_ref: given(spec, "paramRef").cloned(),
            actions: actions
                .filter_map(|action| action.as_str().map(ToOwned::to_owned))
                .collect(),
        }
    }
}

/// The environment of a policy's expressions, with its variables declared one after the other.
pub fn declare(
    spec: &Value,
    mut environment: Environment,
) -> (Environment, Vec<(String, Compiled)>) {
    let mut declared: Vec<(String, Type)> = Vec::new();
    let mut compiled = Vec::new();
    environment.declare("variables", variables(&declared));
    for variable in list(spec, "variables") {
        let program = Compiled::new(text(variable, "expression"), &environment);
        let name = text(variable, "name").to_owned();
        let of = program
            .program
            .as_ref()
            .map_or(Type::Dyn, |p| p.output().clone());
        declared.push((name.clone(), of));
        compiled.push((name, program));
        environment.declare("variables", variables(&declared));
    }
    (environment, compiled)
}

fn variables(declared: &[(String, Type)]) -> Type {
    let fields = declared
        .iter()
        .map(|(name, of)| (name.as_str(), of.clone()));
    Type::object("kubernetes.variables", fields)
}

impl Policy {
    pub fn read(value: &Value) -> Self {
        let spec = &value["spec"];
        let param_kind = given(spec, "paramKind").map(|kind| ParamKind {
            api_version: text(kind, "apiVersion").to_owned(),
            kind: text(kind, "kind").to_owned(),
        });
        let params = param_kind.is_some();
        let mut base = expressions::environment(params, true);
        base.builds_objects = spec["mutations"].is_array();
        let (environment, variables) = declare(spec, base);
        // Messages cannot ask the authorizer.
        let (messages, _) = declare(spec, expressions::environment(params, false));
        let validations = list(spec, "validations")
            .iter()
            .map(|validation| Validation {
                rule: Compiled::new(text(validation, "expression"), &environment),
                message: text(validation, "message").trim().to_owned(),
                message_expression: given(validation, "messageExpression")
                    .and_then(Value::as_str)
                    .map(|expression| Compiled::new(expression, &messages)),
                reason: text(validation, "reason").to_owned(),
            });
        let annotations = list(spec, "auditAnnotations").iter().map(|annotation| {
            let value = Compiled::new(text(annotation, "valueExpression"), &environment);
            (text(annotation, "key").to_owned(), value)
        });
        let mutations = list(spec, "mutations").iter().map(|mutation| {
            let compiled = |key: &str| {
                let inner = mutation.get(key).unwrap_or(&Value::Null);
                Compiled::new(text(inner, "expression"), &environment)
            };
            match text(mutation, "patchType") {
                "JSONPatch" => Mutation::Patch(compiled("jsonPatch")),
                _ => Mutation::Apply(compiled("applyConfiguration")),
            }
        });
        Self {
            name: object::name(value).to_owned(),
            matcher: Matcher::read(
                spec.get("matchConstraints").unwrap_or(&Value::Null),
                "resourceRules",
            ),
            ignore: text(spec, "failurePolicy") == "Ignore",
            param_kind,
            conditions: Conditions::read(spec, &expressions::environment(params, true)),
            validations: validations.collect(),
            annotations: annotations.collect(),
            mutations: mutations.collect(),
            variables,
            reinvoke: text(spec, "reinvocationPolicy") == "IfNeeded",
            bindings: Vec::new(),
        }
    }
}

/// The last changes of policies and bindings, and what was compiled as of them.
type Read = ((u64, u64), Arc<Vec<Policy>>);

/// Follows the policies of one kind and their bindings.
pub struct Policies {
    policies: &'static str,
    bindings: &'static str,
    read: Mutex<Read>,
}

impl Policies {
    pub fn new(policies: &'static str, bindings: &'static str) -> Self {
        Self {
            policies,
            bindings,
            read: Mutex::new(((u64::MAX, u64::MAX), Arc::default())),
        }
    }

    /// The policies that are bound, in the order of their names.
    pub async fn current(&self, registry: &Registry) -> Result<Arc<Vec<Policy>>> {
        let policies = registry.cache_of(super::GROUP, self.policies)?;
        let bindings = registry.cache_of(super::GROUP, self.bindings)?;
        let reached = (policies.loaded().await?, bindings.loaded().await?);
        let changes = (policies.last_change(), bindings.last_change());
        let (known, compiled) = self.read.lock().clone();
        if known == changes {
            return Ok(compiled);
        }
        let all = Selection::default();
        let bound: Vec<Value> = bindings
            .list(&all, reached.1)
            .objects
            .iter()
            .map(|binding| binding.value())
            .collect();
        let mut compiled = Vec::new();
        for policy in policies.list(&all, reached.0).objects {
            let own: Vec<Binding> = bound
                .iter()
                .filter(|binding| binding["spec"]["policyName"] == policy.name())
                .map(Binding::read)
                .collect();
            if !own.is_empty() {
                let mut policy = Policy::read(&policy.value());
                policy.bindings = own;
                compiled.push(policy);
            }
        }
        let compiled = Arc::new(compiled);
        *self.read.lock() = (changes, compiled.clone());
        Ok(compiled)
    }
}
