//! How results are shown: tables for people, and the formats of `-o`.

use std::io::Write;

use anyhow::{Result, bail};
use serde_json::Value;

use super::jsonpath::{Template, plain};
use super::kinds::Kind;

#[derive(Clone, Debug)]
pub enum Format {
    Table { wide: bool },
    Yaml { managed: bool },
    Json { managed: bool },
    Name,
    Template(Template),
    Columns(Vec<(String, Template)>, bool),
}

impl Format {
    pub fn parse(text: Option<&str>) -> Result<Self> {
        let text = text.unwrap_or_default();
        let (name, argument) = text.split_once('=').unwrap_or((text, ""));
        Ok(match name {
            "" => Self::Table { wide: false },
            "wide" => Self::Table { wide: true },
            "yaml" => Self::Yaml { managed: false },
            "json" => Self::Json { managed: false },
            "name" => Self::Name,
            "jsonpath" if argument.is_empty() => {
                bail!("template format specified but no template given")
            }
            "jsonpath" => Self::Template(Template::parse(argument)?),
            "jsonpath-file" => Self::Template(Template::parse(
                std::fs::read_to_string(argument)?.trim_end(),
            )?),
            "custom-columns" => Self::Columns(columns(argument)?, true),
            _ => bail!(
                "unable to match a printer suitable for the output format {name:?}, allowed formats are: custom-columns,json,jsonpath,jsonpath-file,name,wide,yaml"
            ),
        })
    }

    /// The same format with `metadata.managedFields`, which is left out otherwise.
    pub fn with_managed_fields(self) -> Self {
        match self {
            Self::Yaml { .. } => Self::Yaml { managed: true },
            Self::Json { .. } => Self::Json { managed: true },
            other => other,
        }
    }

    pub fn is_table(&self) -> bool {
        matches!(self, Self::Table { .. })
    }

    /// Prints one object, or a List of them.
    pub fn print(&self, value: &Value, kind: Option<&Kind>, out: &mut impl Write) -> Result<()> {
        match self {
            Self::Yaml { managed } => write!(out, "{}", yaml(&shown(value, *managed))?)?,
            Self::Json { managed } => writeln!(out, "{}", indented(&shown(value, *managed))?)?,
            Self::Template(template) => write!(out, "{}", template.render(value))?,
            Self::Name => each(value, |item| {
                let name = item["metadata"]["name"].as_str().unwrap_or_default();
                let title = match kind {
                    Some(kind) => kind.object(name),
                    None => title(item),
                };
                writeln!(out, "{title}")
            })?,
            Self::Columns(columns, header) => {
                let mut rows = Vec::new();
                if *header {
                    rows.push(columns.iter().map(|(name, _)| name.clone()).collect());
                }
                each(value, |item| {
                    rows.push(columns.iter().map(|(_, path)| column(path, item)).collect());
                    Ok(())
                })?;
                write!(out, "{}", align(&rows))?;
            }
            Self::Table { .. } => {}
        }
        Ok(())
    }
}

/// An object, or a List of them, as it is shown: who manages which field is of interest to few.
fn shown(value: &Value, managed: bool) -> std::borrow::Cow<'_, Value> {
    let mut value = std::borrow::Cow::Borrowed(value);
    if managed {
        return value;
    }
    let omit = |item: &mut Value| {
        if let Some(metadata) = item.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    };
    let items = value["items"].as_array().is_some();
    let list = value.to_mut();
    omit(list);
    if items {
        let items = list.get_mut("items").and_then(Value::as_array_mut);
        items.into_iter().flatten().for_each(omit);
    }
    value
}

/// `deployment.apps/web` from an object alone.
pub fn title(item: &Value) -> String {
    let api_version = item["apiVersion"].as_str().unwrap_or_default();
    let group = api_version
        .split_once('/')
        .map_or(String::new(), |(group, _)| format!(".{group}"));
    let kind = item["kind"].as_str().unwrap_or_default().to_lowercase();
    format!(
        "{kind}{group}/{}",
        item["metadata"]["name"].as_str().unwrap_or_default()
    )
}

fn each(value: &Value, mut act: impl FnMut(&Value) -> std::io::Result<()>) -> std::io::Result<()> {
    match value["items"].as_array() {
        Some(items) => items.iter().try_for_each(act),
        None => act(value),
    }
}

fn columns(spec: &str) -> Result<Vec<(String, Template)>> {
    if spec.is_empty() {
        bail!("custom-columns format specified but no custom columns given");
    }
    let parts = spec.split(',').map(|part| match part.split_once(':') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), Template::path(path)?))
        }
        _ => bail!("unexpected custom-columns spec: {part}, expected <header>:<json-path-expr>"),
    });
    parts.collect()
}

fn column(path: &Template, item: &Value) -> String {
    let values: Vec<String> = path.values(item).into_iter().map(plain).collect();
    if values.is_empty() {
        "<none>".to_owned()
    } else {
        values.join(",")
    }
}

/// JSON with four blanks, as kubectl indents it.
fn indented(value: &Value) -> Result<String> {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    serde::Serialize::serialize(
        value,
        &mut serde_json::Serializer::with_formatter(&mut bytes, formatter),
    )?;
    Ok(String::from_utf8(bytes)?)
}

pub fn yaml(value: &Value) -> Result<String> {
    let mut out = String::new();
    write_yaml(value, 0, &mut out);
    Ok(out)
}

/// YAML as Kubernetes' tools write it: sorted keys, lists not indented below their key, blocks for long text.
fn write_yaml(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(fields) if fields.is_empty() => *out += "{}\n",
        Value::Array(items) if items.is_empty() => *out += "[]\n",
        Value::Object(fields) => {
            for (at, (key, value)) in fields.iter().enumerate() {
                if at > 0 || out.ends_with('\n') {
                    *out += &pad;
                }
                *out += &format!("{}:", scalar(key, indent));
                match value {
                    Value::Object(inner) if !inner.is_empty() => {
                        out.push('\n');
                        write_yaml(value, indent + 2, out);
                    }
                    Value::Array(inner) if !inner.is_empty() => {
                        out.push('\n');
                        write_yaml(value, indent, out);
                    }
                    _ => {
                        out.push(' ');
                        write_yaml(value, indent + 2, out);
                    }
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                // The first item of a list in a list stands on the outer one's line.
                if out.is_empty() || out.ends_with('\n') {
                    *out += &pad;
                }
                *out += "- ";
                write_yaml(item, indent + 2, out);
            }
        }
        Value::String(text) => *out += &format!("{}\n", scalar(text, indent)),
        other => *out += &format!("{other}\n"),
    }
}

fn scalar(text: &str, indent: usize) -> String {
    let block = text.contains('\n')
        && !text.starts_with([' ', '\n'])
        && text
            .chars()
            .all(|c| c == '\n' || c == '\t' || !c.is_control());
    if block && text.lines().all(|line| !line.ends_with(' ')) {
        let keep = match (text.ends_with("\n\n"), text.ends_with('\n')) {
            (true, _) => "+",
            (_, true) => "",
            _ => "-",
        };
        let pad = " ".repeat(indent.max(2));
        let lines: Vec<String> = text
            .strip_suffix('\n')
            .unwrap_or(text)
            .split('\n')
            .map(|l| {
                if l.is_empty() {
                    String::new()
                } else {
                    format!("{pad}{l}")
                }
            })
            .collect();
        return format!("|{keep}\n{}", lines.join("\n"));
    }
    if needs_quotes(text) {
        serde_json::to_string(text).unwrap_or_default()
    } else {
        text.to_owned()
    }
}

/// Whether a plain scalar would be read as something else than this text.
fn needs_quotes(text: &str) -> bool {
    let lower = text.to_lowercase();
    let words = [
        "null", "~", "true", "false", "yes", "no", "on", "off", "y", "n", ".nan", ".inf", "-.inf",
        "+.inf",
    ];
    let numeric = text
        .chars()
        .all(|c| c.is_ascii_hexdigit() || "xXoO._+-:eETZ".contains(c))
        && text.chars().any(|c| c.is_ascii_digit());
    text.is_empty()
        || words.contains(&lower.as_str())
        || (numeric
            && !text.contains("::")
            && (text.parse::<f64>().is_ok()
                || text.starts_with([
                    '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', '-', '+', '.',
                ]) && is_number_like(text)))
        || text.starts_with([
            '-', '?', ':', ',', '[', ']', '{', '}', '#', '&', '*', '!', '|', '>', '\'', '"', '%',
            '@', '`', ' ', '=',
        ]) && !(text.starts_with(['-', '?', ':'])
            && text.len() > 1
            && !text[1..].starts_with(' '))
        || text.contains(": ")
        || text.contains(" #")
        || text.ends_with([':', ' '])
        || text.chars().any(char::is_control)
}

/// Numbers, dates and the sexagesimals of YAML 1.1.
fn is_number_like(text: &str) -> bool {
    let digits = |t: &str| !t.is_empty() && t.chars().all(|c| c.is_ascii_digit() || c == '_');
    let radix = |p: &str| {
        text.strip_prefix(p)
            .is_some_and(|r| !r.is_empty() && r.chars().all(|c| c.is_ascii_hexdigit()))
    };
    let date = text.len() >= 10
        && text.as_bytes().get(4) == Some(&b'-')
        && text.as_bytes().get(7) == Some(&b'-');
    digits(text.trim_start_matches(['-', '+']))
        || radix("0x")
        || radix("0o")
        || date
        || text.split(':').all(digits)
}

/// Columns with three blanks between them, as kubectl's tables.
pub fn align(rows: &[Vec<String>]) -> String {
    let mut widths = Vec::new();
    measure(&mut widths, rows);
    rows.iter().map(|row| line(row, &widths)).collect()
}

pub fn measure(widths: &mut Vec<usize>, rows: &[Vec<String>]) {
    for row in rows {
        for (at, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(at) {
                Some(known) => *known = width.max(*known),
                None => widths.push(width),
            }
        }
    }
}

pub fn line(row: &[String], widths: &[usize]) -> String {
    let mut out = String::new();
    for (at, cell) in row.iter().enumerate() {
        out += cell;
        if at + 1 < row.len() {
            let width = widths.get(at).copied().unwrap_or(0).max(3) + 3;
            out += &" ".repeat(width.saturating_sub(cell.chars().count()));
        }
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn managed_fields_and_times() {
        let pod = serde_json::json!({"metadata": {
            "creationTimestamp": "2026-01-02T03:04:05Z", "managedFields": [{"manager": "m"}], "name": "p",
        }});
        let print = |format: Format, value: &Value| {
            let mut out = Vec::new();
            format.print(value, None, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let yaml = || Format::parse(Some("yaml")).unwrap();
        let plain = "metadata:\n  creationTimestamp: \"2026-01-02T03:04:05Z\"\n  name: p\n";
        assert_eq!(print(yaml(), &pod), plain);
        assert!(print(yaml().with_managed_fields(), &pod).contains("manager: m"));
        let list = serde_json::json!({"items": [pod]});
        assert!(!print(yaml(), &list).contains("manager"));
    }

    #[test]
    fn yaml_reads_back() {
        let value = json!({
            "apiVersion": "v1", "empty": {}, "none": null, "list": [1, "two", {"a": [], "b": [{"c": 1}]}, [1, 2]],
            "quoted": ["", "true", "No", "1", "1e3", "0x1f", "12:30", "2026-01-01", "-", "- a", "a: b", "a #b", "*x", "null", "~", "10.0.0.1", "fd00::1", "-x", " lead", "tail ", "a:b"],
            "text": "first\n  second\n\nthird\n", "chomped": "a\nb", "kept": "a\n\n\n", "tabs": "a\tb", "odd": "a \nb",
            "nested": {"text": {"deep": "x\ny\n"}}, "n": 1.5, "t": true, "key: odd": 1,
        });
        let text = yaml(&value).unwrap();
        let back: Value = serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(back, value, "{text}");
        let pod = json!({"spec": {"containers": [{"name": "a", "args": ["x"]}]}});
        assert_eq!(
            yaml(&pod).unwrap(),
            "spec:\n  containers:\n  - args:\n    - x\n    name: a\n"
        );
    }

    #[test]
    fn tables() {
        let rows = [
            vec!["NAME".to_owned(), "AGE".to_owned()],
            vec!["longer-name".to_owned(), "5s".to_owned()],
        ];
        assert_eq!(align(&rows), "NAME          AGE\nlonger-name   5s\n");
    }

    #[test]
    fn formats() {
        let print = |format: &str, value: &Value| {
            let mut out = Vec::new();
            Format::parse(Some(format))
                .unwrap()
                .print(value, None, &mut out)
                .unwrap();
            String::from_utf8(out).unwrap()
        };
        let item =
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}});
        let list = json!({"items": [item, item]});
        assert_eq!(
            print("name", &list),
            "deployment.apps/web\ndeployment.apps/web\n"
        );
        assert_eq!(
            print("custom-columns=N:.metadata.name,X:.spec.x", &list),
            "N     X\nweb   <none>\nweb   <none>\n"
        );
        assert_eq!(print("jsonpath={.metadata.name}", &item), "web");
        assert!(Format::parse(Some("xml")).is_err());
    }
}
