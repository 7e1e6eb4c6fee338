//! Cells of custom resources: the simple JSON paths that a definition's printer columns may use, such as
//! `.spec.replicas`, `.status.conditions[0].type`, `.metadata.labels['a\.b']` and
//! `.status.conditions[?(@.type=="Ready")].status`.

use jiff::Timestamp;
use serde_json::Value;

use crate::resource::Column;
use crate::time;

/// The cell of the column: null where the path leads nowhere or to a value of another type.
pub(super) fn cell(column: &Column, object: &Value, now: Timestamp) -> Value {
    let path = column
        .json_path
        .trim_start_matches('{')
        .trim_end_matches('}');
    let Some(steps) = parse(path) else {
        return Value::Null;
    };
    let mut found = vec![object];
    for step in &steps {
        found = found
            .into_iter()
            .flat_map(|value| step.select(value))
            .collect();
    }
    let Some(first) = found.first() else {
        return Value::Null;
    };
    match (&*column.kind, first) {
        ("integer", Value::Number(_))
        | ("number", Value::Number(_))
        | ("boolean", Value::Bool(_)) => (*first).clone(),
        ("integer" | "number" | "boolean", _) | (_, Value::Null) => Value::Null,
        ("date", Value::String(at)) => match time::parse(at) {
            Some(_) => time::age(Some(at), now).into(),
            None => "<invalid>".into(),
        },
        (_, Value::String(text)) => text.as_str().into(),
        (_, other) => other.to_string().into(),
    }
}

#[derive(Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Every,
    /// Items whose field, by its path, equals the value.
    Where(Vec<Step>, Value),
}

impl Step {
    fn select<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match (self, value) {
            (Step::Field(name), Value::Object(fields)) => fields.get(name).into_iter().collect(),
            (Step::Index(i), Value::Array(items)) => {
                let at = if *i < 0 { *i + items.len() as i64 } else { *i };
                usize::try_from(at)
                    .ok()
                    .and_then(|at| items.get(at))
                    .into_iter()
                    .collect()
            }
            (Step::Every, Value::Array(items)) => items.iter().collect(),
            (Step::Every, Value::Object(fields)) => fields.values().collect(),
            (Step::Where(path, wanted), Value::Array(items)) => {
                let matching = |item: &&Value| {
                    let start: Vec<&Value> = vec![*item];
                    let found = path.iter().fold(start, |at, step| {
                        at.into_iter().flat_map(|v| step.select(v)).collect()
                    });
                    found.first() == Some(&wanted)
                };
                items.iter().filter(matching).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Reads a path; `None` if it uses anything else than what this module knows.
fn parse(path: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    let mut rest = path.strip_prefix('$').unwrap_or(path);
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix("[?(") {
            let end = inner.find(")]")?;
            let (left, right) = inner[..end].split_once("==")?;
            let right = right.trim();
            let wanted = match right.strip_prefix('\'').and_then(|r| r.strip_suffix('\'')) {
                Some(text) => Value::from(text),
                None => serde_json::from_str(right).ok()?,
            };
            steps.push(Step::Where(parse(left.trim().strip_prefix('@')?)?, wanted));
            rest = &inner[end + 2..];
        } else if let Some(inner) = rest.strip_prefix('[') {
            let end = inner.find(']')?;
            let (inside, after) = (&inner[..end], &inner[end + 1..]);
            steps.push(match inside.trim_matches(['\'', '"']) {
                "*" => Step::Every,
                name if name.len() < inside.len() => Step::Field(name.replace("\\.", ".")),
                index => Step::Index(index.parse().ok()?),
            });
            rest = after;
        } else {
            rest = rest.strip_prefix('.')?;
            let mut name = String::new();
            let mut chars = rest.char_indices();
            let end = loop {
                match chars.next() {
                    None => break rest.len(),
                    Some((_, '\\')) => name.extend(chars.next().map(|(_, c)| c)),
                    Some((i, '.' | '[')) => break i,
                    Some((_, c)) => name.push(c),
                }
            };
            match name.as_str() {
                "" if rest.starts_with('[') => {}
                "" => return None,
                "*" => steps.push(Step::Every),
                _ => steps.push(Step::Field(name)),
            }
            rest = &rest[end..];
        }
    }
    Some(steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_of_printer_columns() {
        let object = json!({"metadata": {"labels": {"a.b/c": "l"}, "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"replicas": 3, "on": true, "tags": ["x", "y"], "map": {"k": 1}},
            "status": {"conditions": [{"type": "A", "status": "False"}, {"type": "Ready", "status": "True"}]}});
        let cases = [
            (".spec.replicas", "integer", json!(3)),
            (".spec.replicas", "string", json!("3")),
            (".spec.on", "boolean", json!(true)),
            (".spec.on", "integer", Value::Null),
            (".spec.tags[1]", "string", json!("y")),
            (".spec.tags[-1]", "string", json!("y")),
            (".spec.tags[*]", "string", json!("x")),
            (".spec.map", "string", json!("{\"k\":1}")),
            (".metadata.labels['a\\.b/c']", "string", json!("l")),
            (".metadata.labels.a\\.b/c", "string", json!("l")),
            (
                ".status.conditions[?(@.type==\"Ready\")].status",
                "string",
                json!("True"),
            ),
            (
                ".status.conditions[?(@.type=='None')].status",
                "string",
                Value::Null,
            ),
            (".metadata.creationTimestamp", "date", json!("5s")),
            (".missing.field", "string", Value::Null),
            ("{.spec.replicas}", "integer", json!(3)),
            ("spec", "string", Value::Null),
            (".a[", "string", Value::Null),
            (".a..b", "string", Value::Null),
        ];
        let now = Timestamp::from_second(5).unwrap();
        for (path, kind, expect) in cases {
            let column = Column {
                json_path: path.into(),
                kind: kind.into(),
                ..Column::default()
            };
            assert_eq!(cell(&column, &object, now), expect, "{path}");
        }
    }
}
