//! The JSONPath templates of `-o jsonpath`: text with `{expressions}`, `{range}` and `{end}`.

use anyhow::{Result, bail};
use serde_json::Value;

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Path(Vec<Step>),
    Range(Vec<Step>, Vec<Part>),
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    /// All values of a list or an object.
    All,
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    /// This value and everything below.
    Descend,
    Filter(Vec<Step>, Option<(String, Value)>),
}

#[derive(Debug, Clone)]
pub struct Template(Vec<Part>);

impl Template {
    pub fn parse(text: &str) -> Result<Self> {
        let mut rest = text;
        let (parts, ended) = parse_parts(&mut rest)?;
        if ended {
            bail!("jsonpath {text:?}: {{end}} without {{range}}");
        }
        Ok(Self(parts))
    }

    /// One expression, with or without braces and the first dot.
    pub fn path(text: &str) -> Result<Self> {
        let inner = text.trim().trim_start_matches('{').trim_end_matches('}');
        let inner = inner.strip_prefix('$').unwrap_or(inner);
        let dotted = if inner.starts_with(['.', '[']) {
            inner.to_owned()
        } else {
            format!(".{inner}")
        };
        Ok(Self(vec![Part::Path(parse_path(&dotted)?)]))
    }

    pub fn render(&self, value: &Value) -> String {
        let mut out = String::new();
        render(&self.0, value, &mut out);
        out
    }

    /// The values that a single path leads to.
    pub fn values<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match self.0.as_slice() {
            [Part::Path(path)] => walk(path, value),
            _ => vec![],
        }
    }
}

fn parse_parts(rest: &mut &str) -> Result<(Vec<Part>, bool)> {
    let mut parts = Vec::new();
    while let Some(open) = rest.find('{') {
        if open > 0 {
            parts.push(Part::Text(rest[..open].to_owned()));
        }
        let Some(close) = closing(&rest[open..]) else {
            bail!("unclosed action")
        };
        let action = rest[open + 1..open + close].trim();
        *rest = &rest[open + close + 1..];
        if action == "end" {
            return Ok((parts, true));
        } else if let Some(path) = action.strip_prefix("range ") {
            let path = parse_path(path.trim())?;
            let (body, ended) = parse_parts(rest)?;
            if !ended {
                bail!("unclosed range");
            }
            parts.push(Part::Range(path, body));
        } else if let Some(text) = action.strip_prefix(['"', '\'']) {
            parts.push(Part::Text(unescape(text.trim_end_matches(['"', '\'']))));
        } else {
            parts.push(Part::Path(parse_path(action)?));
        }
    }
    if !rest.is_empty() {
        parts.push(Part::Text((*rest).to_owned()));
        *rest = "";
    }
    Ok((parts, false))
}

/// Where the brace that opens `text` closes; quotes hide braces.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '}') => return Some(at),
            _ => {}
        }
    }
    None
}

fn unescape(text: &str) -> String {
    text.replace("\\n", "\n")
        .replace("\\t", "\t")
        .replace("\\\"", "\"")
        .replace("\\\\", "\\")
}

fn parse_path(text: &str) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut rest = text.strip_prefix(['$', '@']).unwrap_or(text);
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("..") {
            steps.push(Step::Descend);
            rest = after;
            if !rest.starts_with('[') {
                rest = name(rest, &mut steps);
            }
        } else if let Some(after) = rest.strip_prefix('.') {
            rest = name(after, &mut steps);
        } else if let Some(after) = rest.strip_prefix('[') {
            let Some(close) = bracket(after) else {
                bail!("unterminated array in {text:?}")
            };
            steps.push(subscript(after[..close].trim())?);
            rest = &after[close + 1..];
        } else if steps.is_empty() {
            rest = name(rest, &mut steps);
        } else {
            bail!("unexpected {rest:?} in {text:?}");
        }
    }
    Ok(steps)
}

/// Reads a field's name; dots in it are written `\.`.
fn name<'a>(text: &'a str, steps: &mut Vec<Step>) -> &'a str {
    let (mut field, mut escaped, mut end) = (String::new(), false, text.len());
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => {
                field.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '.' | '[' => {
                end = at;
                break;
            }
            c => field.push(c),
        }
    }
    match field.as_str() {
        "" => {}
        "*" => steps.push(Step::All),
        _ => steps.push(Step::Field(field)),
    }
    &text[end..]
}

fn bracket(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn subscript(text: &str) -> Result<Step> {
    if text == "*" {
        return Ok(Step::All);
    }
    if let Some(quoted) = text.strip_prefix(['\'', '"']) {
        return Ok(Step::Field(quoted.trim_end_matches(['\'', '"']).to_owned()));
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        let operator = ["==", "!=", ">=", "<=", ">", "<"]
            .into_iter()
            .find(|o| filter.contains(o));
        let Some(operator) = operator else {
            return Ok(Step::Filter(parse_path(filter.trim())?, None));
        };
        let (path, value) = filter.split_once(operator).unwrap_or((filter, ""));
        let value = value.trim();
        let literal = match value.strip_prefix(['"', '\'']) {
            Some(text) => Value::from(text.trim_end_matches(['"', '\''])),
            None => serde_json::from_str(value).unwrap_or_else(|_| Value::from(value)),
        };
        return Ok(Step::Filter(
            parse_path(path.trim())?,
            Some((operator.to_owned(), literal)),
        ));
    }
    let number = |text: &str| -> Result<Option<i64>> {
        if text.is_empty() {
            Ok(None)
        } else {
            text.parse()
                .map(Some)
                .map_err(|_| anyhow::anyhow!("invalid array index {text}"))
        }
    };
    match text.split_once(':') {
        Some((from, to)) => Ok(Step::Slice(number(from.trim())?, number(to.trim())?)),
        None => match number(text)? {
            Some(index) => Ok(Step::Index(index)),
            None => bail!("empty array index"),
        },
    }
}

fn walk<'a>(path: &[Step], value: &'a Value) -> Vec<&'a Value> {
    let Some((step, rest)) = path.split_first() else {
        return vec![value];
    };
    let here: Vec<&Value> = match step {
        Step::Field(name) => value.get(name).into_iter().collect(),
        Step::All => match value {
            Value::Array(items) => items.iter().collect(),
            Value::Object(fields) => fields.values().collect(),
            _ => vec![],
        },
        Step::Index(index) => at(value, *index).into_iter().collect(),
        Step::Slice(from, to) => {
            let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
            let place = |n: i64| {
                if n < 0 {
                    items.len().saturating_sub(n.unsigned_abs() as usize)
                } else {
                    n as usize
                }
            };
            let (from, to) = (
                from.map_or(0, place),
                to.map_or(items.len(), place).min(items.len()),
            );
            items.get(from..to).into_iter().flatten().collect()
        }
        Step::Descend => {
            let mut all = vec![value];
            let mut next = 0;
            while let Some(value) = all.get(next).copied() {
                all.extend(walk(&[Step::All], value));
                next += 1;
            }
            all
        }
        Step::Filter(path, test) => {
            let passes = |item: &&Value| match (walk(path, item).first(), test) {
                (None, _) => false,
                (Some(_), None) => true,
                (Some(found), Some((operator, literal))) => compare(found, operator, literal),
            };
            value
                .as_array()
                .into_iter()
                .flatten()
                .filter(passes)
                .collect()
        }
    };
    here.into_iter()
        .flat_map(|value| walk(rest, value))
        .collect()
}

fn at(value: &Value, index: i64) -> Option<&Value> {
    let items = value.as_array()?;
    let index = if index < 0 {
        items.len().checked_sub(index.unsigned_abs() as usize)?
    } else {
        usize::try_from(index).ok()?
    };
    items.get(index)
}

fn compare(found: &Value, operator: &str, literal: &Value) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let order = match (found.as_f64(), literal.as_f64()) {
        (Some(a), Some(b)) => a.partial_cmp(&b),
        _ if found.is_boolean() || literal.is_boolean() => (found == literal).then_some(Equal),
        _ => Some(plain(found).cmp(&plain(literal))),
    };
    match operator {
        "==" => order == Some(Equal),
        "!=" => order != Some(Equal),
        ">" => order == Some(Greater),
        "<" => order == Some(Less),
        ">=" => matches!(order, Some(Greater | Equal)),
        _ => matches!(order, Some(Less | Equal)),
    }
}

/// A value as templates print it: strings bare, the rest as JSON.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn render(parts: &[Part], value: &Value, out: &mut String) {
    for part in parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Path(path) => {
                let values: Vec<_> = walk(path, value).into_iter().map(plain).collect();
                out.push_str(&values.join(" "));
            }
            Part::Range(path, body) => walk(path, value)
                .into_iter()
                .for_each(|item| render(body, item, out)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates() {
        let pods = json!({"kind": "List", "items": [
            {"metadata": {"name": "a", "labels": {"app.io/x": "1"}}, "spec": {"n": 1}, "c": [{"t": "R", "s": "True"}]},
            {"metadata": {"name": "b"}, "spec": {"n": 2}, "c": [{"t": "R", "s": "False"}]},
        ]});
        for (template, expected) in [
            ("{.kind}", "List"),
            ("kind={$.kind}!", "kind=List!"),
            ("{.items[*].metadata.name}", "a b"),
            ("{.items[0].metadata.name}", "a"),
            ("{.items[-1:].metadata.name}", "b"),
            ("{.items[0:1].metadata.name}", "a"),
            (
                "{range .items[*]}{.metadata.name}{\"\\t\"}{.spec.n}{\"\\n\"}{end}",
                "a\t1\nb\t2\n",
            ),
            ("{.items[?(@.spec.n==2)].metadata.name}", "b"),
            ("{.items[?(@.spec.n>1)].metadata.name}", "b"),
            ("{.items[?(@.metadata.name==\"a\")].spec.n}", "1"),
            ("{.items[?(@.metadata.labels)].metadata.name}", "a"),
            ("{.items[0].metadata.labels.app\\.io/x}", "1"),
            ("{.items[0].metadata.labels['app.io/x']}", "1"),
            ("{..name}", "a b"),
            ("{.items[0].c[?(@.t=='R')].s}", "True"),
            ("{.items[0].spec}", "{\"n\":1}"),
            ("{.nothing}", ""),
        ] {
            assert_eq!(
                Template::parse(template).unwrap().render(&pods),
                expected,
                "{template}"
            );
        }
        for bad in ["{.a", "{range .a}", "{end}", "{.a[x]}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(
            Template::path("spec.n").unwrap().values(&pods["items"][1]),
            [&json!(2)]
        );
    }
}
