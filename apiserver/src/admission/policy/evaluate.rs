//! One policy over one write with one parameter: its variables, computed when they are first read, and its decisions.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde_json::Value as Json;

use super::compiled::{Compiled, Policy, Validation};
use crate::admission::webhook::expressions::{Scene, evaluation_error};
use crate::cel::{Bindings, Budget, Error, Fields, Map, Value};

/// Longer messages of expressions are not used.
const LONGEST_MESSAGE: usize = 5 << 10;

/// A refusal by one validation.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub message: String,
    /// A `StatusReason`; empty for `Invalid`.
    pub reason: String,
}

struct Variables<'a> {
    programs: &'a [(String, Compiled)],
    bindings: Bindings<'a>,
    known: Mutex<BTreeMap<String, Result<Value<'a>, Error>>>,
    this: Weak<Variables<'a>>,
}

impl<'a> Fields<'a> for Variables<'a> {
    fn get(&self, name: &str, budget: &mut Budget) -> Option<Result<Value<'a>, Error>> {
        if let Some(known) = self.known.lock().get(name) {
            return Some(known.clone());
        }
        let (_, compiled) = self.programs.iter().find(|(known, _)| known == name)?;
        let mut bindings = self.bindings.clone();
        if let Some(this) = self.this.upgrade() {
            bindings.bind("variables", Value::Map(Map::Lazy(this)));
        }
        let result = match &compiled.program {
            Ok(program) => program.evaluate(&bindings, budget),
            Err(error) => Err(Error::Failed(error.clone())),
        };
        let result = result.map_err(|error| match error {
            Error::Failed(why) => Error::Failed(format!(
                "composited variable {name:?} fails to evaluate: {why}"
            )),
            error => error,
        });
        self.known.lock().insert(name.to_owned(), result.clone());
        Some(result)
    }
}

/// What the expressions of a policy read: the scene's variables and the policy's own.
pub fn bindings<'a>(
    policy: &'a Policy,
    scene: &'a Scene<'a>,
    params: Option<&'a Json>,
) -> Bindings<'a> {
    let mut bindings = scene.bindings(params);
    if !policy.variables.is_empty() {
        let variables = Arc::new_cyclic(|this| Variables {
            programs: &policy.variables,
            bindings: bindings.clone(),
            known: Mutex::default(),
            this: this.clone(),
        });
        bindings.bind("variables", Value::Map(Map::Lazy(variables)));
    }
    bindings
}

/// The value of an expression, or why there is none in the words of a policy.
pub fn value<'a>(
    compiled: &Compiled,
    bindings: &Bindings<'a>,
    budget: &mut Budget,
) -> Result<Value<'a>, String> {
    match &compiled.program {
        Ok(program) => program
            .evaluate(bindings, budget)
            .map_err(|error| evaluation_error(&compiled.expression, &error)),
        Err(error) => Err(format!("compilation error: {error}")),
    }
}

/// What a policy says of a write.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Of each validation, in their order; `None` where it holds.
    pub decisions: Vec<Option<Refusal>>,
    /// For the audit trail: keys and values, or why there is none.
    pub annotations: Vec<(String, Result<String, Refusal>)>,
}

/// Runs all expressions. Failures count as the failure policy says.
pub fn validate(policy: &Policy, bindings: &Bindings<'_>) -> Verdict {
    match policy.conditions.hold(bindings) {
        Ok(true) => {}
        Ok(false) => return Verdict::default(),
        Err(why) => {
            return Verdict {
                decisions: vec![failed(policy, why)],
                annotations: Vec::new(),
            };
        }
    }
    let mut budget = Budget::for_object();
    let decisions = policy
        .validations
        .iter()
        .map(
            |validation| match value(&validation.rule, bindings, &mut budget) {
                Ok(value) if value.as_bool() == Some(true) => None,
                Ok(_) => Some(Refusal {
                    message: message(validation, bindings, &mut budget),
                    reason: validation.reason.clone(),
                }),
                Err(why) => failed(policy, why),
            },
        )
        .collect();
    let annotations = policy.annotations.iter().filter_map(|(key, compiled)| {
        let text = match annotation(compiled, bindings, &mut budget) {
            Ok(text) => Ok(text?),
            Err(why) => Err(failed(policy, why)?),
        };
        Some((key.clone(), text))
    });
    Verdict {
        decisions,
        annotations: annotations.collect(),
    }
}

/// The text that an annotation is to have; `None` for none.
fn annotation(
    compiled: &Compiled,
    bindings: &Bindings<'_>,
    budget: &mut Budget,
) -> Result<Option<String>, String> {
    let found = value(compiled, bindings, budget)?;
    if matches!(found, Value::Null) {
        return Ok(None);
    }
    let text = found.as_str().ok_or_else(|| {
        format!(
            "valueExpression '{}' resulted in unsupported return type. Return type must be either string or null.",
            compiled.expression
        )
    })?;
    let text = text.trim();
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

fn failed(policy: &Policy, message: String) -> Option<Refusal> {
    (!policy.ignore).then(|| Refusal {
        message,
        reason: String::new(),
    })
}

/// The message expression's text, if it gives a fitting one; the message; or the expression that failed.
fn message(validation: &Validation, bindings: &Bindings<'_>, budget: &mut Budget) -> String {
    let computed = validation
        .message_expression
        .as_ref()
        .and_then(|expression| value(expression, bindings, budget).ok());
    if let Some(text) = computed.as_ref().and_then(Value::as_str) {
        let text = text.trim();
        if !text.is_empty() && text.len() <= LONGEST_MESSAGE && !text.contains('\n') {
            return text.to_owned();
        }
    }
    match validation.message.as_str() {
        "" => format!("failed expression: {}", validation.rule.expression),
        message => message.to_owned(),
    }
}
