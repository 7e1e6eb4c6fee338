//! The Common Expression Language, as Kubernetes uses it: validation rules, match conditions, admission policies.
//!
//! The crate `cel` parses ([`parse`]) and `kube-cel` brings most of Kubernetes' libraries ([`library`]). What neither
//! has is here: a compiler that knows the types of variables and refuses what cannot work ([`compile`], with
//! [`types`]), and an evaluator that reads JSON where it lies ([`value`]) and counts what it does against
//! Kubernetes' cost budget ([`eval`]); what that can come to is estimated beforehand ([`estimate`]).
//!
//! ```
//! # use apiserver::cel::{Bindings, Budget, Environment, Program, Type, Value};
//! # use serde_json::json;
//! let environment = Environment::new([("self", Type::Dyn)]);
//! let program = Program::compile("self.replicas <= 5", &environment).unwrap();
//! let object = json!({"replicas": 3});
//! let bindings = Bindings::new([("self", Value::untyped(&object))]);
//! let result = program.evaluate(&bindings, &mut Budget::for_object()).unwrap();
//! assert_eq!(result.as_bool(), Some(true));
//! ```

mod authorizer;
mod compile;
mod escape;
mod estimate;
mod eval;
mod extent;
mod issues;
mod library;
mod macros;
mod parse;
mod types;
mod value;

use std::collections::BTreeSet;
use std::fmt;

pub use authorizer::{Asked, Authorization, ResourceCheck};
pub use escape::escape;
pub use eval::{Bindings, Budget, PER_CALL_LIMIT};
pub use extent::Extent;
pub use issues::CompileError;
pub use types::{Field, ListKind, ListType, ObjectType, Type};
pub use value::{Built, Fields, Key, List, Map, Text, Value};

/// What a program may refer to.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: Vec<(String, Type)>,
    /// Whether `Object{...}` and `JSONPatch{...}` can be built.
    pub builds_objects: bool,
}

impl Environment {
    pub fn new<'a>(variables: impl IntoIterator<Item = (&'a str, Type)>) -> Self {
        Self {
            variables: variables
                .into_iter()
                .map(|(name, of)| (name.to_owned(), of))
                .collect(),
            builds_objects: false,
        }
    }

    /// Declares a variable, or declares it anew.
    pub fn declare(&mut self, name: &str, of: Type) {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), of));
    }

    pub(self) fn variable(&self, name: &str) -> Option<&Type> {
        self.variables
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, of)| of)
    }
}

/// An expression, ready to run any number of times, by any number of threads.
#[derive(Debug)]
pub struct Program {
    root: compile::Node,
    output: Type,
    /// The variables that it reads.
    uses: BTreeSet<String>,
}

impl Program {
    pub fn compile(text: &str, environment: &Environment) -> Result<Self, CompileError> {
        parse::with(text, |parsed| compile::compile(text, parsed, environment))
    }

    /// The type of what it evaluates to.
    #[must_use]
    pub fn output(&self) -> &Type {
        &self.output
    }

    #[must_use]
    pub fn uses(&self, variable: &str) -> bool {
        self.uses.contains(variable)
    }

    /// What it costs at most when `self` and `oldSelf` are of that extent.
    #[must_use]
    pub fn cost_about(&self, about: &Extent) -> u64 {
        estimate::cost(&self.root, about)
    }

    /// Runs it. Its cost is taken from the budget, also when it fails.
    pub fn evaluate<'a>(
        &self,
        bindings: &Bindings<'a>,
        budget: &mut Budget,
    ) -> Result<Value<'a>, Error> {
        eval::run(&self.root, bindings, budget)
    }
}

/// Why a program gave no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// As CEL says it: `no such key: x`.
    Failed(String),
    /// One expression cost more than one may.
    CostLimit,
    /// All expressions together cost more than they may.
    BudgetExceeded,
}

impl Error {
    pub(self) fn new(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    pub(self) fn no_overload() -> Self {
        Self::new("no such overload")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed(message) => message,
            Self::CostLimit => "operation cancelled: actual cost limit exceeded",
            Self::BudgetExceeded => {
                "validation failed due to running out of cost budget, no further validation rules will be run"
            }
        })
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests;
