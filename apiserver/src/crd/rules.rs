//! Validation rules in CEL (`x-kubernetes-validations`).
//!
//! A rule sees the value at its own place as `self` and, if that was there before an update, as `oldSelf`. Rules are
//! compiled with the types of the schema when a definition is created ([`super::rule_check`]), and once more when it is
//! served.

use std::collections::BTreeMap;

use apimachinery::field::{Error, ErrorList, Path};
use serde_json::Value;

use super::field_path::{self, Step};
use super::value::correlated;
use crate::cel::{self, Bindings, Budget, Environment, Program, Type, Value as Cel};
use crate::strategy::check::{list, text};

pub(super) const RULES: &str = "x-kubernetes-validations";

/// A rule, ready to run.
struct Rule {
    expression: String,
    program: Result<Program, String>,
    message: String,
    computed: Option<Program>,
    reason: String,
    /// Where its failures are shown, below its own place.
    field: Vec<Step>,
    transition: bool,
    /// Runs without an old value, too; `oldSelf` is an optional.
    optional_old: bool,
}

/// The rules of a schema and of all that is in it.
pub struct Rules {
    of: Type,
    own: Vec<Rule>,
    properties: BTreeMap<String, Rules>,
    /// Of a list's items or a map's values.
    inner: Option<Box<Rules>>,
}

impl Rules {
    /// `None` if there are none.
    #[must_use]
    pub fn compile(schema: &Value) -> Option<Self> {
        Self::at(schema, true)
    }

    fn at(schema: &Value, root: bool) -> Option<Self> {
        let properties = schema.get("properties").and_then(Value::as_object);
        let properties: BTreeMap<String, Rules> = properties
            .into_iter()
            .flatten()
            .filter_map(|(name, property)| Some((name.clone(), Self::at(property, false)?)))
            .collect();
        let inner = schema
            .get("items")
            .or_else(|| schema.get("additionalProperties"))
            .filter(|inner| inner.is_object())
            .and_then(|inner| Self::at(inner, false));
        let rules = list(schema, RULES);
        if rules.is_empty() && properties.is_empty() && inner.is_none() {
            return None;
        }
        let resource = root || schema["x-kubernetes-embedded-resource"] == true;
        let of = Type::from_schema(schema, resource).unwrap_or(Type::Dyn);
        Some(Self {
            own: rules
                .iter()
                .map(|rule| Rule::compile(rule, schema, &of))
                .collect(),
            of,
            properties,
            inner: inner.map(Box::new),
        })
    }

    /// The failures of an object's rules, within Kubernetes' budget for one object.
    #[must_use]
    pub fn validate(&self, schema: &Value, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut run = Run {
            errors: ErrorList::new(),
            budget: Budget::for_object(),
            exhausted: false,
        };
        run.visit(self, schema, object, old, &Path::root());
        run.errors
    }
}

pub(super) fn environment(of: &Type, optional_old: bool) -> Environment {
    let old = match optional_old {
        true => Type::optional(of.clone()),
        false => of.clone(),
    };
    Environment::new([("self", of.clone()), ("oldSelf", old)])
}

impl Rule {
    fn compile(rule: &Value, schema: &Value, of: &Type) -> Self {
        let optional_old = rule["optionalOldSelf"] == true;
        let environment = environment(of, optional_old);
        let expression = text(rule, "rule").trim().to_owned();
        let program = Program::compile(&expression, &environment).map_err(|e| e.to_string());
        let computed = text(rule, "messageExpression").trim();
        Self {
            transition: program
                .as_ref()
                .is_ok_and(|program| program.uses("oldSelf")),
            program,
            message: text(rule, "message").trim().to_owned(),
            computed: match computed {
                "" => None,
                computed => Program::compile(computed, &environment).ok(),
            },
            reason: text(rule, "reason").to_owned(),
            field: field_path::parse(text(rule, "fieldPath").trim(), schema).unwrap_or_default(),
            expression,
            optional_old,
        }
    }
}

/// One validation of one object.
struct Run {
    errors: ErrorList,
    budget: Budget,
    exhausted: bool,
}

impl Run {
    fn visit(
        &mut self,
        rules: &Rules,
        schema: &Value,
        value: &Value,
        old: Option<&Value>,
        path: &Path,
    ) {
        for rule in &rules.own {
            if self.exhausted {
                return;
            }
            self.check(rule, &rules.of, value, old, path);
        }
        match value {
            Value::Object(fields) => {
                let properties = schema.get("properties");
                for (name, value) in fields {
                    let old = old.and_then(|old| old.get(name));
                    if let Some(inner) = rules.properties.get(name)
                        && let Some(schema) = properties.and_then(|p| p.get(name))
                    {
                        self.visit(inner, schema, value, old, &path.child(name));
                    } else if let (Some(inner), Some(schema)) =
                        (&rules.inner, schema.get("additionalProperties"))
                    {
                        self.visit(inner, schema, value, old, &path.key(name));
                    }
                }
            }
            Value::Array(items) => {
                let (Some(inner), Some(of_items)) = (&rules.inner, schema.get("items")) else {
                    return;
                };
                for (index, item) in items.iter().enumerate() {
                    let old = old.and_then(|old| correlated(schema, old, item));
                    self.visit(inner, of_items, item, old, &path.index(index));
                }
            }
            _ => {}
        }
    }

    fn check(&mut self, rule: &Rule, of: &Type, value: &Value, old: Option<&Value>, path: &Path) {
        if rule.transition && old.is_none() && !rule.optional_old {
            return;
        }
        let program = match &rule.program {
            Ok(program) => program,
            Err(error) => {
                let why = format!("rule compile error: {error}");
                self.errors.push(Error::invalid(path, shown(value), why));
                return;
            }
        };
        let mut bindings = Bindings::new([("self", Cel::json(value, of))]);
        let before = old.map(|old| Cel::json(old, of));
        if rule.optional_old {
            bindings.bind("oldSelf", Cel::optional(before));
        } else if let Some(before) = before {
            bindings.bind("oldSelf", before);
        }
        let before = self.errors.len();
        match program.evaluate(&bindings, &mut self.budget) {
            Ok(result) if result.as_bool() == Some(true) => {}
            Ok(_) => self.failed(rule, &bindings, value, path),
            Err(error) => {
                let why = match &error {
                    cel::Error::CostLimit => format!(
                        "no further validation rules will be run due to call cost exceeds limit for rule: {}",
                        rule.expression
                    ),
                    cel::Error::BudgetExceeded => error.to_string(),
                    cel::Error::Failed(why) => {
                        format!("{why} evaluating rule: {}", rule.expression)
                    }
                };
                self.exhausted = !matches!(error, cel::Error::Failed(_));
                self.errors.push(Error::invalid(path, shown(value), why));
            }
        }
        // What a rule had against a value before an update is not held against it now.
        if old == Some(value) && !rule.transition && !self.exhausted {
            self.errors.truncate(before);
        }
    }

    fn failed(&mut self, rule: &Rule, bindings: &Bindings<'_>, value: &Value, path: &Path) {
        let computed = rule.computed.as_ref().and_then(|program| {
            let result = program.evaluate(bindings, &mut self.budget).ok()?;
            let text = result.as_str()?.trim().to_owned();
            let usable = !text.is_empty() && !text.contains('\n') && text.len() <= 5 * 1024;
            usable.then_some(text)
        });
        let message = match (computed, rule.message.as_str()) {
            (Some(computed), _) => computed,
            (None, "") => format!("failed rule: {}", rule.expression),
            (None, message) => message.to_owned(),
        };
        let at = field_path::below(path, &rule.field);
        self.errors.push(match rule.reason.as_str() {
            "FieldValueForbidden" => Error::forbidden(&at, message),
            "FieldValueRequired" => Error::required(&at, message),
            "FieldValueDuplicate" => Error {
                detail: message,
                ..Error::duplicate(&at, shown(value))
            },
            _ => Error::invalid(&at, shown(value), message),
        });
    }
}

/// Objects and lists are named, not shown whole.
fn shown(value: &Value) -> Value {
    match value {
        Value::Object(_) => "object".into(),
        Value::Array(_) => "array".into(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema(rules: Value) -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-validations": rules,
            "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}}}})
    }

    fn failures(rules: Value, spec: Value, old: Option<Value>) -> Vec<String> {
        let schema = schema(rules);
        let old = old.map(|old| json!({"spec": old}));
        let compiled = Rules::compile(&schema).unwrap();
        let errors = compiled.validate(&schema, &json!({"spec": spec}), old.as_ref());
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_hold_or_say_why() {
        let sum = json!([{"rule": "self.x + self.y > 0"}]);
        assert!(failures(sum.clone(), json!({"x": 1, "y": 0}), None).is_empty());
        assert_eq!(
            failures(sum.clone(), json!({"x": 0, "y": 0}), None),
            ["spec: Invalid value: \"object\": failed rule: self.x + self.y > 0"]
        );
        let wrong = json!({"x": 0, "y": 0});
        assert!(
            failures(sum, wrong.clone(), Some(wrong)).is_empty(),
            "it was like that before"
        );
        let told = json!([{"rule": "self.x > 1", "messageExpression": "'x is ' + string(self.x)",
            "reason": "FieldValueForbidden", "fieldPath": ".x"}]);
        assert_eq!(
            failures(told, json!({"x": 1}), None),
            ["spec.x: Forbidden: x is 1"]
        );
    }

    #[test]
    fn transitions_need_two() {
        let rule = json!([{"rule": "self.x >= oldSelf.x"}]);
        assert!(failures(rule.clone(), json!({"x": 1}), None).is_empty());
        assert_eq!(
            failures(rule.clone(), json!({"x": 1}), Some(json!({"x": 2}))).len(),
            1
        );
        assert!(failures(rule, json!({"x": 2}), Some(json!({"x": 1}))).is_empty());
        let optional =
            json!([{"rule": "oldSelf.hasValue() || self.x == 1", "optionalOldSelf": true}]);
        assert_eq!(failures(optional.clone(), json!({"x": 2}), None).len(), 1);
        assert!(failures(optional, json!({"x": 2}), Some(json!({"x": 1}))).is_empty());
    }
}
