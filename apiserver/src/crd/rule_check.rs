//! What is asked of validation rules when their definition is written: they compile, are conditions, see an old value
//! only where one can be told, and cannot cost more than a request may.

use apimachinery::field::{Error, ErrorList, Path};
use serde_json::Value;

use super::field_path;
use super::rules::{RULES, environment};
use crate::cel::{Extent, Program, Type};
use crate::strategy::check::{list, text};

/// The most that one rule may come to in one object.
const PER_RULE: u64 = 10_000_000;
/// The most that all rules of a schema may come to.
const PER_SCHEMA: u64 = 100_000_000;
/// As many of the most expensive rules are named.
const NAMED: usize = 4;

/// Which limits hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounded {
    /// That of every rule, and that of all.
    Each,
    /// Only that of all.
    Total,
}

/// Errors of the rules in a schema.
#[must_use]
pub fn check(schema: &Value, bounded: Bounded, path: &Path) -> ErrorList {
    let mut check = Check {
        errors: ErrorList::new(),
        bounded,
        total: 0,
        most: Vec::new(),
    };
    let place = Place {
        root: true,
        times: Some(1),
        lost: None,
    };
    check.schema(schema, path, &place);
    check.whole(path);
    check.errors
}

/// Where in a schema one is.
#[derive(Clone)]
struct Place {
    root: bool,
    /// How often a value can be here in one object; `None` if nothing bounds it.
    times: Option<u64>,
    /// The innermost place above from which on old and new values cannot be told to be the same ones.
    lost: Option<Path>,
}

impl Place {
    /// A place inside, of which there are so many.
    fn inside(&self, count: Option<u64>) -> Self {
        let times = self.times.zip(count);
        Self {
            root: false,
            times: times.map(|(outside, inside)| outside.saturating_mul(inside)),
            lost: self.lost.clone(),
        }
    }

    fn losing(mut self, lost: bool, path: &Path) -> Self {
        if lost && self.lost.is_none() {
            self.lost = Some(path.clone());
        }
        self
    }
}

struct Check {
    errors: ErrorList,
    bounded: Bounded,
    total: u64,
    /// The most expensive rules, the first of them first.
    most: Vec<(u64, Path)>,
}

impl Check {
    fn schema(&mut self, schema: &Value, path: &Path, place: &Place) {
        let rules = list(schema, RULES);
        if !rules.is_empty() {
            let resource = place.root || schema["x-kubernetes-embedded-resource"] == true;
            let of = Type::from_schema(schema, resource).unwrap_or(Type::Dyn);
            let extent = Extent::of(schema, resource).unwrap_or_default();
            for (index, rule) in rules.iter().enumerate() {
                let at = path.child(RULES).index(index);
                self.rule(rule, (&of, &extent), &at, place);
                let field = text(rule, "fieldPath");
                if !field.trim().is_empty() && field_path::parse(field, schema).is_none() {
                    let at = at.child("fieldPath");
                    self.errors
                        .push(Error::invalid(&at, field, "must be a valid path"));
                }
            }
        }
        let bound = |name: &str| schema[name].as_i64().map(|n| u64::try_from(n).unwrap_or(0));
        if let Some(items) = schema.get("items").filter(|items| items.is_object()) {
            let lost = text(schema, "x-kubernetes-list-type") != "map";
            let place = place.inside(bound("maxItems")).losing(lost, path);
            self.schema(items, &path.child("items"), &place);
        }
        let values = schema.get("additionalProperties");
        if let Some(values) = values.filter(|v| v.is_object()) {
            let place = place.inside(bound("maxProperties"));
            self.schema(values, &path.child("additionalProperties"), &place);
        }
        let lost = text(schema, "x-kubernetes-map-type") == "atomic";
        let properties = schema.get("properties").and_then(Value::as_object);
        for (name, property) in properties.into_iter().flatten() {
            let at = path.child("properties").key(name);
            let place = place.inside(Some(1)).losing(lost, path);
            self.schema(property, &at, &place);
        }
    }

    fn rule(&mut self, rule: &Value, about: (&Type, &Extent), path: &Path, place: &Place) {
        let environment = environment(about.0, rule["optionalOldSelf"] == true);
        let mut uses_old = false;
        let at = path.child("rule");
        match Program::compile(text(rule, "rule").trim(), &environment) {
            Ok(program) => {
                uses_old = program.uses("oldSelf");
                if matches!(program.output(), Type::Bool | Type::Dyn) {
                    let times = place.times.unwrap_or_else(|| about.1.cardinality());
                    let cost = program.cost_about(about.1).saturating_mul(times);
                    self.cost(cost, "estimated rule cost", &at);
                } else {
                    let why = "cel expression must evaluate to a bool";
                    self.errors.push(Error::invalid(&at, rule.clone(), why));
                }
            }
            Err(error) => {
                let why = format!("compilation failed: {error}");
                self.errors.push(Error::invalid(&at, rule.clone(), why));
            }
        }
        self.message(rule, about, path);
        if let (true, Some(lost)) = (uses_old, &place.lost) {
            let why = format!(
                "oldSelf cannot be used on the uncorrelatable portion of the schema within {lost}"
            );
            self.errors
                .push(Error::invalid(&at, text(rule, "rule"), why));
        } else if !uses_old && rule["optionalOldSelf"].is_boolean() {
            let at = path.child("optionalOldSelf");
            let why = "may not be set if oldSelf is not used in rule";
            let error = Error::invalid(&at, rule["optionalOldSelf"].clone(), why);
            self.errors.push(error);
        }
    }

    fn message(&mut self, rule: &Value, (of, extent): (&Type, &Extent), path: &Path) {
        let computed = text(rule, "messageExpression").trim();
        if computed.is_empty() {
            return;
        }
        let at = path.child("messageExpression");
        let environment = environment(of, rule["optionalOldSelf"] == true);
        match Program::compile(computed, &environment) {
            Ok(program) if !matches!(program.output(), Type::String | Type::Dyn) => {
                let why = "messageExpression must evaluate to a string";
                self.errors.push(Error::invalid(&at, rule.clone(), why));
            }
            Ok(program) => {
                let cost = program.cost_about(extent);
                self.cost(cost, "estimated messageExpression cost", &at);
            }
            Err(error) => {
                let why = format!("messageExpression compilation failed: {error}");
                self.errors.push(Error::invalid(&at, rule.clone(), why));
            }
        }
    }

    fn cost(&mut self, cost: u64, what: &str, path: &Path) {
        if self.bounded == Bounded::Each && cost > PER_RULE {
            let why = exceeds(what, cost, PER_RULE);
            self.errors.push(Error::forbidden(path, why));
        }
        self.total = self.total.saturating_add(cost);
        if cost >= PER_SCHEMA / 100 {
            self.most.push((cost, path.clone()));
            self.most.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
            self.most.truncate(NAMED);
        }
    }

    /// The limit of all rules together.
    fn whole(&mut self, path: &Path) {
        if self.total <= PER_SCHEMA {
            return;
        }
        for (_, expensive) in &self.most {
            let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            self.errors.push(Error::forbidden(expensive, why));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        let why = exceeds(what, self.total, PER_SCHEMA);
        self.errors.push(Error::forbidden(path, why));
    }
}

fn exceeds(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and \
         maxLength where arrays, maps, and strings are declared)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(schema: &Value, bounded: Bounded) -> Vec<String> {
        let errors = check(schema, bounded, &Path::new("s"));
        errors.iter().map(ToString::to_string).collect()
    }

    fn field(schema: Value) -> Value {
        json!({"type": "object", "properties": {"f": schema}})
    }

    #[test]
    fn rules_compile_and_are_conditions() {
        let check = |rule: Value| {
            let schema =
                json!({"type": "object", "properties": {"x": {"type": "integer"}}, RULES: [rule]});
            errors(&field(schema), Bounded::Each).join(" ")
        };
        #[rustfmt::skip]
        let table = [
            (json!({"rule": "self.x > 0"}), ""),
            (json!({"rule": "self.z == 100"}), "undefined field 'z'"),
            (json!({"rule": "self = 42"}), "Syntax error"),
            (json!({"rule": "self.x"}), "must evaluate to a bool"),
            (json!({"rule": "true", "optionalOldSelf": true}), "may not be set"),
            (json!({"rule": "true", "messageExpression": "1"}), "must evaluate to a string"),
            (json!({"rule": "true", "fieldPath": ".x"}), ""),
            (json!({"rule": "true", "fieldPath": ".y"}), "s.properties[f].x-kubernetes-validations[0].fieldPath: Invalid value: \".y\": must be a valid path"),
        ];
        for (rule, wanted) in table {
            let found = check(rule.clone());
            assert!(
                found.contains(wanted) && found.is_empty() == wanted.is_empty(),
                "{rule}: {found}"
            );
        }
    }

    #[test]
    fn expensive_rules_are_refused() {
        let rule = json!([{"rule": "self.all(x, self.all(y, x != y))"}]);
        let many = json!({"type": "array", "items": {"type": "string"}, RULES: rule});
        let path = "s.properties[f].x-kubernetes-validations[0].rule: Forbidden: ";
        let advice = "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)";
        let contributed = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
        let total = format!(
            "s: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of more than 100x {advice}"
        );
        assert_eq!(
            errors(&field(many.clone()), Bounded::Each),
            [
                format!(
                    "{path}estimated rule cost exceeds budget by factor of more than 100x {advice}"
                ),
                format!("{path}{contributed}"),
                total.clone()
            ]
        );
        assert_eq!(
            errors(&field(many.clone()), Bounded::Total),
            [format!("{path}{contributed}"), total]
        );
        let mut few = many;
        few["maxItems"] = json!(10);
        few["items"]["maxLength"] = json!(10);
        assert!(errors(&field(few), Bounded::Each).is_empty());
    }

    #[test]
    fn what_is_around_a_rule_counts() {
        // 2 for the rule, and 2 + "n": + a number in the smallest of the objects.
        let item = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}},
            RULES: [{"rule": "self.n > 0 && self.n < 9 && self.n != 5 && self.n != 6 && self.n != 7 && self.n != 8 && self.n != 3 \
                && self.n != 4 && self.n != 1 && self.n != 2 && self.n != 10 && self.n != 11 && self.n != 12 && self.n != 13 \
                && self.n != 14 && self.n != 15 && self.n != 16 && self.n != 17"}]});
        let list = json!({"type": "array", "items": item});
        let found = errors(&field(list.clone()), Bounded::Each);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].contains("exceeds budget by factor of 1.3"),
            "{found:?}"
        );
        let mut bounded = list;
        bounded["maxItems"] = json!(1000);
        assert!(errors(&field(bounded), Bounded::Each).is_empty());
    }

    #[test]
    fn old_values_must_be_told_from_each_other() {
        let item = json!({"type": "object", "properties": {"k": {"type": "string", "maxLength": 5}},
            RULES: [{"rule": "self == oldSelf"}]});
        let mut list = json!({"type": "array", "maxItems": 3, "items": item});
        let found = errors(&field(list.clone()), Bounded::Each);
        assert_eq!(
            found,
            [
                "s.properties[f].items.x-kubernetes-validations[0].rule: Invalid value: \"self == oldSelf\": oldSelf cannot be used \
              on the uncorrelatable portion of the schema within s.properties[f]"
            ]
        );
        list["x-kubernetes-list-type"] = json!("map");
        assert!(errors(&field(list), Bounded::Each).is_empty());
    }
}
