//! Field selectors: the few fields that a kind can be selected by, compared with fixed values.

use std::fmt;

/// One condition on one field: equal, or (with `negated`) not equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    pub field: String,
    pub value: String,
    pub negated: bool,
}

/// A conjunction of field requirements; none at all matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    pub requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Reads the `fieldSelector` query parameter: `a=b,c!=d`, with `\` before a comma, `=` or `\` in a value.
    pub fn parse(text: &str) -> Result<FieldSelector, String> {
        let mut terms = split_terms(text);
        terms.sort_unstable();
        let mut requirements = Vec::new();
        for term in terms.into_iter().filter(|t| !t.is_empty()) {
            let at = term.char_indices().find_map(|(i, _)| {
                ["!=", "==", "="]
                    .into_iter()
                    .find(|op| term[i..].starts_with(op))
                    .map(|op| (i, op))
            });
            let Some((at, operator)) = at else {
                return Err(format!(
                    "invalid selector: '{text}'; can't understand '{term}'"
                ));
            };
            requirements.push(FieldRequirement {
                field: term[..at].to_owned(),
                value: unescape(&term[at + operator.len()..])?,
                negated: operator == "!=",
            });
        }
        Ok(FieldSelector { requirements })
    }

    /// `lookup` gives the value of a field, empty when the object has none.
    pub fn matches<'a>(&self, lookup: impl Fn(&str) -> &'a str) -> bool {
        self.requirements
            .iter()
            .all(|r| (lookup(&r.field) == r.value) != r.negated)
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The value that `field` must have, if the selector pins it.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find(|r| r.field == field && !r.negated)
            .map(|r| r.value.as_str())
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escape = |v: &str| {
            v.replace('\\', "\\\\")
                .replace(',', "\\,")
                .replace('=', "\\=")
        };
        let one = |r: &FieldRequirement| {
            format!(
                "{}{}{}",
                r.field,
                if r.negated { "!=" } else { "=" },
                escape(&r.value)
            )
        };
        f.write_str(
            &self
                .requirements
                .iter()
                .map(one)
                .collect::<Vec<_>>()
                .join(","),
        )
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let sequence: String = std::iter::once('\\').chain(other).collect();
                    return Err(format!(
                        "invalid field selector: invalid escape sequence: {sequence}"
                    ));
                }
            },
            ',' | '=' => {
                return Err(format!(
                    "invalid field selector: unescaped character in value: {}",
                    c as u32
                ));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn field_selectors() {
        let selector = FieldSelector::parse("spec.nodeName=n1,status.phase!=Failed,,a==b").unwrap();
        assert_eq!(
            selector.to_string(),
            "a=b,spec.nodeName=n1,status.phase!=Failed"
        );
        assert_eq!(selector.exact("spec.nodeName"), Some("n1"));
        assert_eq!(selector.exact("status.phase"), None);
        let have = |f: &str| match f {
            "spec.nodeName" => "n1",
            "a" => "b",
            _ => "",
        };
        assert!(selector.matches(have));
        let bad = FieldSelector::parse("nonsense").unwrap_err();
        assert_eq!(
            bad,
            "invalid selector: 'nonsense'; can't understand 'nonsense'"
        );
        assert!(FieldSelector::parse("a=b\\x").is_err());
    }

    proptest! {
        #[test]
        fn field_values_survive_escaping(value in "[a\\\\,=!]{0,8}") {
            let r = FieldRequirement { field: "f".into(), value, negated: false };
            let selector = FieldSelector { requirements: vec![r] };
            prop_assert_eq!(FieldSelector::parse(&selector.to_string()), Ok(selector));
        }
    }
}
