//! Paths of fields as rules name them: `.spec.names['a.b']`.

use apimachinery::field::Path;
use serde_json::Value;

/// The steps of a path that leads to a field of a schema; `None` if it leads nowhere.
#[must_use]
pub fn parse(text: &str, schema: &Value) -> Option<Vec<Step>> {
    let (mut rest, mut schema, mut steps) = (text, schema, Vec::new());
    while !rest.is_empty() {
        let name;
        (name, rest) = match rest.strip_prefix('[') {
            Some(quoted) => quoted_name(quoted)?,
            None => {
                let named = rest.strip_prefix('.')?;
                let end = named.find(['.', '[', ']']).unwrap_or(named.len());
                (named[..end].to_owned(), &named[end..])
            }
        };
        let step;
        (step, schema) = match schema.get("properties").filter(|p| p.is_object()) {
            Some(properties) => {
                let inner = properties.get(&name)?;
                (Step::Field(name), inner)
            }
            None => {
                let values = schema.get("additionalProperties");
                (Step::Key(name), values.filter(|v| v.is_object())?)
            }
        };
        steps.push(step);
    }
    Some(steps)
}

#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Field(String),
    Key(String),
}

/// The same place below another one.
#[must_use]
pub fn below(path: &Path, steps: &[Step]) -> Path {
    steps.iter().fold(path.clone(), |path, step| match step {
        Step::Field(name) => path.child(name),
        Step::Key(name) => path.key(name),
    })
}

/// The text of `'...']`, and what follows.
fn quoted_name(text: &str) -> Option<(String, &str)> {
    let text = text.strip_prefix('\'')?;
    let (mut name, mut escaped) = (String::new(), false);
    for (at, character) in text.char_indices() {
        match (escaped, character) {
            (false, '\\') => escaped = true,
            (false, '\'') => return Some((name, text[at + 1..].strip_prefix(']')?)),
            (true, '\'' | '\\') | (false, _) => {
                name.push(character);
                escaped = false;
            }
            (true, other) => {
                name.push(match other {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    '"' => '"',
                    _ => return None,
                });
                escaped = false;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_lead_somewhere_or_not() {
        let schema = json!({"properties": {"spec": {"properties": {
            "a.b": {"type": "string"}, "it's": {},
            "map": {"additionalProperties": {"properties": {"x": {}}}}}}}});
        for (text, wanted) in [
            (".spec['a.b']", Some("p.spec.a.b")),
            (".spec['it\\'s']", Some("p.spec.it's")),
            (".spec.map.key.x", Some("p.spec.map[key].x")),
            (".spec.map['k.1']", Some("p.spec.map[k.1]")),
            (".spec.none", None),
            ("spec", None),
            (".spec['a.b'", None),
            (".spec[a]", None),
            (".spec.a.b", None),
            (".spec.map.k.x.y", None),
            (".", None),
            ("]", None),
        ] {
            let found =
                parse(text, &schema).map(|steps| below(&Path::new("p"), &steps).to_string());
            assert_eq!(found.as_deref(), wanted, "{text}");
        }
    }
}
