//! Label and field selectors: read from a query string or from the structured form, matched, and written back.

mod field;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde_json::{Map, Value};

use crate::field::{Error, ErrorList, Path, quote};
use crate::names;

pub use field::{FieldRequirement, FieldSelector};

/// Anything that a label can be looked up in.
pub trait Labels {
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labels for Map<String, Value> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }
}

impl Labels for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Labels for HashMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Labels for [(String, String)] {
    fn label(&self, key: &str) -> Option<&str> {
        self.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

impl<L: Labels + ?Sized> Labels for &L {
    fn label(&self, key: &str) -> Option<&str> {
        (*self).label(key)
    }
}

impl<L: Labels> Labels for Option<L> {
    fn label(&self, key: &str) -> Option<&str> {
        self.as_ref()?.label(key)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Equals,
    DoubleEquals,
    NotEquals,
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One condition on one label. The values are sorted and distinct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

impl Requirement {
    /// Checks the key, the values and that their number fits the operator.
    pub fn new(key: &str, operator: Operator, values: &[&str]) -> Result<Requirement, ErrorList> {
        Requirement::at(key, operator, values, &Path::root())
    }

    fn at(
        key: &str,
        operator: Operator,
        values: &[&str],
        path: &Path,
    ) -> Result<Requirement, ErrorList> {
        use Operator::*;
        let mut errors = ErrorList::new();
        if let Some(error) = check_key(key, &path.child("key")) {
            errors.push(error);
        }
        let values_path = path.child("values");
        let wrong = match (operator, values.len()) {
            (In | NotIn, 0) => "for 'in', 'notin' operators, values set can't be empty",
            (Equals | DoubleEquals | NotEquals, n) if n != 1 => {
                "exact-match compatibility requires one single value"
            }
            (Exists | DoesNotExist, n) if n != 0 => {
                "values set must be empty for exists and does not exist"
            }
            (GreaterThan | LessThan, n) if n != 1 => {
                "for 'Gt', 'Lt' operators, exactly one value is required"
            }
            _ => "",
        };
        if !wrong.is_empty() {
            errors.push(Error::invalid(&values_path, values, wrong));
        }
        for (i, value) in values.iter().enumerate() {
            if matches!(operator, GreaterThan | LessThan) && value.parse::<i64>().is_err() {
                let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.push(Error::invalid(&values_path.index(i), *value, detail));
            }
            let messages = names::label_value(value);
            if !messages.is_empty() {
                errors.push(Error::invalid(
                    &values_path.index(i).key(key),
                    *value,
                    messages.join("; "),
                ));
            }
        }
        errors.into_result()?;
        let mut values: Vec<String> = values.iter().map(|v| (*v).to_owned()).collect();
        values.sort();
        values.dedup();
        Ok(Requirement {
            key: key.to_owned(),
            operator,
            values,
        })
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn operator(&self) -> Operator {
        self.operator
    }

    pub fn values(&self) -> &[String] {
        &self.values
    }

    fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        use Operator::*;
        let value = labels.label(&self.key);
        let listed = |v: &str| self.values.iter().any(|w| w == v);
        match self.operator {
            In | Equals | DoubleEquals => value.is_some_and(listed),
            NotIn | NotEquals => !value.is_some_and(listed),
            Exists => value.is_some(),
            DoesNotExist => value.is_none(),
            GreaterThan | LessThan => {
                let (Some(Ok(have)), Some(Ok(want))) = (
                    value.map(str::parse::<i64>),
                    self.values.first().map(|v| v.parse::<i64>()),
                ) else {
                    return false;
                };
                if self.operator == GreaterThan {
                    have > want
                } else {
                    have < want
                }
            }
        }
    }
}

fn check_key(key: &str, path: &Path) -> Option<Error> {
    let messages = names::qualified_name(key);
    (!messages.is_empty()).then(|| Error::invalid(path, key, messages.join("; ")))
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Operator::*;
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Equals => write!(f, "{key}={values}"),
            DoubleEquals => write!(f, "{key}=={values}"),
            NotEquals => write!(f, "{key}!={values}"),
            In => write!(f, "{key} in ({values})"),
            NotIn => write!(f, "{key} notin ({values})"),
            Exists => f.write_str(key),
            DoesNotExist => write!(f, "!{key}"),
            GreaterThan => write!(f, "{key}>{values}"),
            LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// A conjunction of requirements, in the order of their keys; or the selector that matches nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Option<Vec<Requirement>>,
}

impl LabelSelector {
    pub fn everything() -> LabelSelector {
        LabelSelector {
            requirements: Some(Vec::new()),
        }
    }

    pub fn nothing() -> LabelSelector {
        LabelSelector { requirements: None }
    }

    pub fn new(mut requirements: Vec<Requirement>) -> LabelSelector {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        LabelSelector {
            requirements: Some(requirements),
        }
    }

    /// Reads the `labelSelector` query parameter: `a=b,c in (d,e),!f`.
    pub fn parse(text: &str) -> Result<LabelSelector, String> {
        Parser::new(text).selector().map(LabelSelector::new)
    }

    /// From a `metav1.LabelSelector`: `{matchLabels, matchExpressions}`. Null matches nothing, empty everything.
    pub fn from_value(selector: &Value) -> Result<LabelSelector, String> {
        let Some(selector) = selector.as_object() else {
            return Ok(LabelSelector::nothing());
        };
        let mut requirements = match selector.get("matchLabels").and_then(Value::as_object) {
            Some(labels) => exact(labels)?,
            None => Vec::new(),
        };
        for expression in selector
            .get("matchExpressions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let operator = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(format!(
                        "{} is not a valid label selector operator",
                        quote(other)
                    ));
                }
            };
            let values: Vec<&str> = expression["values"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let key = expression["key"].as_str().unwrap_or_default();
            requirements.push(Requirement::new(key, operator, &values).map_err(|e| e.to_string())?);
        }
        Ok(LabelSelector::new(requirements))
    }

    /// From a plain map of labels, as a Service's or ReplicationController's selector is. Null matches everything.
    pub fn from_map(labels: &Value) -> Result<LabelSelector, String> {
        match labels.as_object() {
            Some(labels) => exact(labels).map(LabelSelector::new),
            None => Ok(LabelSelector::everything()),
        }
    }

    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        self.requirements
            .as_ref()
            .is_some_and(|all| all.iter().all(|r| r.matches(labels)))
    }

    /// Whether the object's labels match.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(&crate::object::labels(object))
    }

    /// Whether this selector leaves nothing out.
    pub fn is_everything(&self) -> bool {
        self.requirements.as_ref().is_some_and(Vec::is_empty)
    }

    pub fn is_nothing(&self) -> bool {
        self.requirements.is_none()
    }

    pub fn requirements(&self) -> &[Requirement] {
        self.requirements.as_deref().unwrap_or_default()
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self
            .requirements()
            .iter()
            .map(Requirement::to_string)
            .collect();
        f.write_str(&all.join(","))
    }
}

fn exact(labels: &Map<String, Value>) -> Result<Vec<Requirement>, String> {
    let one = |(key, value): (&String, &Value)| {
        Requirement::new(key, Operator::Equals, &[value.as_str().unwrap_or_default()])
            .map_err(|e| e.to_string())
    };
    labels.iter().map(one).collect()
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    End,
    Symbol(&'static str),
    Word(String),
    Unknown(String),
}

impl Token {
    fn literal(&self) -> &str {
        match self {
            Token::End => "",
            Token::Symbol(s) => s,
            Token::Word(s) | Token::Unknown(s) => s,
        }
    }
}

/// Kubernetes' grammar: `in` and `notin` are words except where an operator is due.
struct Parser {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
}

impl Parser {
    fn new(text: &str) -> Parser {
        const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];
        let special = |c: char| "=!(),><".contains(c);
        let mut tokens = Vec::new();
        let mut rest = text;
        loop {
            rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
            if rest.is_empty() || rest.starts_with('\0') {
                break;
            }
            let end = rest
                .find(|c: char| special(c) || " \t\r\n\0".contains(c))
                .unwrap_or(rest.len());
            if end > 0 {
                tokens.push(Token::Word(rest[..end].to_owned()));
                rest = &rest[end..];
            } else if let Some(symbol) = SYMBOLS.into_iter().find(|s| rest.starts_with(s)) {
                tokens.push(Token::Symbol(symbol));
                rest = &rest[symbol.len()..];
            } else {
                tokens.push(Token::Unknown(rest.to_owned()));
                break;
            }
        }
        Parser {
            tokens: tokens.into_iter().peekable(),
        }
    }

    fn next(&mut self) -> Token {
        self.tokens.next().unwrap_or(Token::End)
    }

    fn peek(&mut self) -> &Token {
        self.tokens.peek().unwrap_or(&Token::End)
    }

    fn selector(&mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::Word(_) | Token::Symbol("!") => {}
                Token::End => return Ok(requirements),
                other => {
                    let found = other.literal();
                    return Err(format!(
                        "found '{found}', expected: !, identifier, or 'end of string'"
                    ));
                }
            }
            requirements.push(
                self.requirement()
                    .map_err(|e| format!("unable to parse requirement: {e}"))?,
            );
            match self.next() {
                Token::End => return Ok(requirements),
                Token::Symbol(",") => match self.peek() {
                    Token::Word(_) | Token::Symbol("!") => {}
                    other => {
                        return Err(format!(
                            "found '{}', expected: identifier after ','",
                            other.literal()
                        ));
                    }
                },
                other => {
                    return Err(format!(
                        "found '{}', expected: ',' or 'end of string'",
                        other.literal()
                    ));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut token = self.next();
        let negated = token == Token::Symbol("!");
        if negated {
            token = self.next();
        }
        let Token::Word(key) = token else {
            return Err(format!("found '{}', expected: identifier", token.literal()));
        };
        if let Some(error) = check_key(&key, &Path::root()) {
            return Err(error.to_string());
        }
        let build =
            |op, values: &[&str]| Requirement::new(&key, op, values).map_err(|e| e.to_string());
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return build(
                if negated {
                    Operator::DoesNotExist
                } else {
                    Operator::Exists
                },
                &[],
            );
        }
        if negated {
            return build(Operator::DoesNotExist, &[]);
        }
        let token = self.next();
        let operator = match token.literal() {
            "in" => Operator::In,
            "notin" => Operator::NotIn,
            "=" => Operator::Equals,
            "==" => Operator::DoubleEquals,
            "!=" => Operator::NotEquals,
            ">" => Operator::GreaterThan,
            "<" => Operator::LessThan,
            found => {
                return Err(format!(
                    "found '{found}', expected: in, notin, =, ==, !=, gt, lt"
                ));
            }
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        build(
            operator,
            &values.iter().map(String::as_str).collect::<Vec<_>>(),
        )
    }

    fn exact_value(&mut self) -> Result<String, String> {
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(String::new());
        }
        match self.next() {
            Token::Word(value) => Ok(value),
            other => Err(format!("found '{}', expected: identifier", other.literal())),
        }
    }

    /// `(a,b)`; an empty place between commas is the empty value.
    fn values(&mut self) -> Result<Vec<String>, String> {
        match self.next() {
            Token::Symbol("(") => {}
            other => return Err(format!("found '{}' expected: '('", other.literal())),
        }
        let mut values = Vec::new();
        loop {
            let value = match self.peek() {
                Token::Word(_) => self.next().literal().to_owned(),
                Token::Symbol("," | ")") => String::new(),
                other => {
                    return Err(format!(
                        "found '{}', expected: ',', ')' or identifier",
                        other.literal()
                    ));
                }
            };
            values.push(value);
            match self.next() {
                Token::Symbol(",") => {}
                Token::Symbol(")") => break,
                other => return Err(format!("found '{}', expected: ',' or ')'", other.literal())),
            }
        }
        values.sort();
        values.dedup();
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    }

    #[test]
    fn matches_labels() {
        let have = labels(&[("app", "web"), ("n", "5"), ("empty", "")]);
        let cases = [
            ("", true),
            ("app=web", true),
            ("app==web,n!=4", true),
            ("app!=web", false),
            ("missing!=x", true),
            ("app in (db, web)", true),
            ("app notin (web)", false),
            ("missing notin (web)", true),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("n>4,n<6", true),
            ("n>5", false),
            ("app>1", false),
            ("empty=", true),
            ("empty in (,x)", true),
            ("in in (in)", false),
        ];
        for (text, expect) in cases {
            let selector = LabelSelector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(selector.matches(&have), expect, "{text}");
            assert_eq!(
                LabelSelector::parse(&selector.to_string()).unwrap(),
                selector,
                "{text}"
            );
        }
    }

    #[test]
    fn refuses_what_kubernetes_refuses() {
        let cases = [
            ("a,", "found '', expected: identifier after ','"),
            (
                "=b",
                "found '=', expected: !, identifier, or 'end of string'",
            ),
            (
                "a b",
                "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
            (
                "a in b",
                "unable to parse requirement: found 'b' expected: '('",
            ),
            (
                "a in (b",
                "unable to parse requirement: found '', expected: ',' or ')'",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(LabelSelector::parse(text).unwrap_err(), message);
        }
        for bad in [
            "a=b=c",
            "-a=b",
            "a=-b",
            "a>x",
            "a in (b))",
            "!a=b",
            "a!b",
            "é=1",
        ] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn structured_form() {
        let selector = json!({"matchLabels": {"b": "1"}, "matchExpressions": [{"key": "a", "operator": "Exists"}]});
        assert_eq!(
            LabelSelector::from_value(&selector).unwrap().to_string(),
            "a,b=1"
        );
        assert!(
            LabelSelector::from_value(&Value::Null)
                .unwrap()
                .is_nothing()
        );
        assert!(
            LabelSelector::from_value(&json!({}))
                .unwrap()
                .is_everything()
        );
        let bad = json!({"matchExpressions": [{"key": "a", "operator": "Is"}]});
        assert_eq!(
            LabelSelector::from_value(&bad).unwrap_err(),
            "\"Is\" is not a valid label selector operator"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-c!=<>(), in]{0,24}") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                let again = LabelSelector::parse(&selector.to_string());
                prop_assert_eq!(again.as_ref(), Ok(&selector));
            }
        }

        #[test]
        fn in_and_notin_are_opposites(value in "[a-c]", listed in proptest::collection::vec("[a-c]", 1..3)) {
            let have = labels(&[("k", &value)]);
            let values: Vec<&str> = listed.iter().map(String::as_str).collect();
            let holds = |op| LabelSelector::new(vec![Requirement::new("k", op, &values).unwrap()]).matches(&have);
            prop_assert_ne!(holds(Operator::In), holds(Operator::NotIn));
        }
    }
}
