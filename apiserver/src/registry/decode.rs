//! From a request's body to a complete object: parsed, of the right kind, without unknown fields, defaulted.

use apimachinery::decode::{decode_json_whole, duplicate_field, strict_messages, unknown_field};
use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::protobuf;
use apimachinery::resource::{GroupKind, GroupVersion, Resource};
use apimachinery::status::{Result, Status};
use serde_json::{Map, Value};

use super::table::Served;

/// How deep an object can nest. What reads JSON here and in many clients stops at 127, and lists, reviews and events are a
/// few levels around the object.
const DEEPEST: usize = 120;

/// What to do with fields that the schema does not know, or that appear twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    Json,
    Yaml,
    Protobuf,
}

/// A parsed body.
#[derive(Debug)]
pub struct Parsed {
    pub value: Value,
    /// What strict validation says about fields that appeared twice.
    pub duplicates: Vec<String>,
    /// How deep it nests, where the parser has counted.
    pub levels: Option<usize>,
}

impl From<Value> for Parsed {
    fn from(value: Value) -> Self {
        Self {
            value,
            duplicates: Vec::new(),
            levels: None,
        }
    }
}

/// Parses a body. The error is the parser's, in Go's words where they are well known.
pub fn parse(body: &[u8], media: Media) -> std::result::Result<Parsed, String> {
    parse_as(body, media, ("", ""))
}

/// The same; a protobuf body that does not say its kind is taken for this one.
fn parse_as(
    body: &[u8],
    media: Media,
    expected: (&str, &str),
) -> std::result::Result<Parsed, String> {
    let (value, duplicates) = match media {
        Media::Json => {
            let decoded = decode_json_whole(body).map_err(|error| go_words(&error, body))?;
            let told = decoded.duplicates.iter().map(|path| duplicate_field(path));
            return Ok(Parsed {
                duplicates: told.collect(),
                value: decoded.value,
                levels: Some(decoded.levels),
            });
        }
        Media::Yaml => {
            let text = std::str::from_utf8(body)
                .map_err(|_| "yaml: invalid leading UTF-8 octet".to_owned())?;
            super::yaml::decode(text)
                .map_err(|error| format!("error converting YAML to JSON: yaml: {error}"))?
        }
        Media::Protobuf => {
            let value = protobuf::to_json(body, expected).map_err(|error| error.to_string())?;
            (value, Vec::new())
        }
    };
    Ok(Parsed {
        value,
        duplicates,
        levels: None,
    })
}

fn go_words(error: &serde_json::Error, body: &[u8]) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".into();
    }
    let line = error.line().saturating_sub(1);
    let row = body
        .split(|byte| *byte == b'\n')
        .nth(line)
        .unwrap_or_default();
    match row.get(error.column().saturating_sub(1)) {
        Some(byte) if error.is_syntax() => {
            format!(
                "invalid character {:?} at line {} column {}: {error}",
                char::from(*byte),
                line + 1,
                error.column()
            )
        }
        _ => error.to_string(),
    }
}

/// Decodes the body of a create or update of an object of `resource`.
pub fn decode(
    resource: &Resource,
    body: &[u8],
    media: Media,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value> {
    let expected = (&*resource.api_version(), &*resource.kind);
    let parsed = parse_as(body, media, expected).map_err(|error| {
        let why = if media == Media::Json {
            format!("couldn't get version/kind; json parse error: {error}")
        } else {
            error
        };
        unrecognized(resource, &why, body)
    })?;
    if !parsed.value.is_object() {
        return Err(unrecognized(resource, &no_object(&parsed.value), body));
    }
    let (value, mut told) = fit(resource, parsed).map_err(|why| why.refuse(resource))?;
    if !told.is_empty() && media == Media::Json && resource.schema.is_native() {
        // Typed objects are told about in the order of their text.
        told = strict_messages(body, &resource.schema);
    }
    if told.is_empty() || validation == FieldValidation::Ignore {
        return Ok(value);
    }
    if validation == FieldValidation::Warn {
        warnings.append(&mut told);
        return Ok(value);
    }
    if media == Media::Yaml {
        join_lines(&mut told);
    }
    let error = format!("strict decoding error: {}", told.join(", "));
    Err(Misfit::Type(error).refuse(resource))
}

/// The lines of a YAML document that are minded are one error of its parser.
fn join_lines(told: &mut Vec<String>) {
    let lines = told
        .iter()
        .take_while(|text| text.starts_with("line "))
        .count();
    if lines > 0 {
        let rest = told.split_off(lines);
        let all = told.join("\n  ");
        *told = vec![format!("yaml: unmarshal errors:\n  {all}")];
        told.extend(rest);
    }
}

/// Checks kind, types and fields of a document that the server has made itself.
pub fn finish(resource: &Resource, value: Value) -> Result<Value> {
    let fitted = fit(resource, value.into()).map_err(|why| why.refuse(resource))?;
    Ok(fitted.0)
}

/// The same for the outcome of a patch. `patch` holds what strict validation says about the patch itself; `shown` is the
/// value in an error.
pub fn finish_patched(
    resource: &Resource,
    patched: Parsed,
    validation: FieldValidation,
    shown: impl FnOnce() -> String,
    warnings: &mut Vec<String>,
) -> Result<Value> {
    let invalid = |why: String| {
        let error = Error::invalid(&Path::new("patch"), shown(), why);
        Status::invalid(&GroupKind::new("", ""), "", ErrorList(vec![error]))
    };
    let (value, mut told) = match fit(resource, patched) {
        Ok(fitted) => fitted,
        Err(Misfit::Refused(status)) => return Err(status),
        Err(Misfit::Type(why)) => return Err(invalid(why)),
    };
    match validation {
        FieldValidation::Strict if !told.is_empty() => {
            let all = told.join(", ");
            return Err(invalid(format!("strict decoding error: {all}")));
        }
        FieldValidation::Warn => warnings.append(&mut told),
        _ => {}
    }
    Ok(value)
}

/// Why a document is no object of its kind.
enum Misfit {
    Refused(Status),
    Type(String),
}

impl Misfit {
    fn refuse(self, resource: &Resource) -> Status {
        match self {
            Self::Refused(status) => status,
            Self::Type(error) => Status::bad_request(format!(
                "{} in version {:?} cannot be handled as a {}: {error}",
                resource.kind, resource.version, resource.kind
            )),
        }
    }
}

/// Refuses what could not be read again.
pub fn check_depth(value: &Value) -> Result<()> {
    match is_deeper(value, DEEPEST) {
        true => Err(too_deep()),
        false => Ok(()),
    }
}

/// The same, told how deep it nests.
pub fn check_levels(levels: usize) -> Result<()> {
    match levels > DEEPEST {
        true => Err(too_deep()),
        false => Ok(()),
    }
}

fn too_deep() -> Status {
    Status::bad_request("json: exceeded max depth")
}

/// Whether a value nests more deeply than that, without going there by recursion.
fn is_deeper(value: &Value, depth: usize) -> bool {
    let is_container = |value: &&Value| value.is_object() || value.is_array();
    let mut pending: Vec<(&Value, usize)> = Vec::new();
    pending.extend(Some(value).filter(is_container).map(|value| (value, 1)));
    while let Some((value, at)) = pending.pop() {
        if at > depth {
            return true;
        }
        let below = |inner| (inner, at + 1);
        match value {
            Value::Object(fields) => {
                pending.extend(fields.values().filter(is_container).map(below));
            }
            Value::Array(items) => pending.extend(items.iter().filter(is_container).map(below)),
            _ => {}
        }
    }
    false
}

/// Why a document that is none can have no kind.
fn no_object(value: &Value) -> String {
    let found = match value {
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Number(_) => "number",
        Value::Bool(_) => "bool",
        _ => "null",
    };
    format!(
        "couldn't get version/kind; json parse error: json: cannot unmarshal {found} into Go value of type struct \
         {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
    )
}

/// The document as an object of its kind, and what strict validation says about it.
fn fit(resource: &Resource, parsed: Parsed) -> std::result::Result<(Value, Vec<String>), Misfit> {
    let Parsed {
        mut value,
        duplicates: mut told,
        levels,
    } = parsed;
    // A patch can replace the whole, or nest it as deeply as it likes.
    if !value.is_object() {
        return Err(Misfit::Type(no_object(&value)));
    }
    let shallow = levels.map_or_else(|| check_depth(&value), check_levels);
    shallow.map_err(Misfit::Refused)?;
    check_kind(resource, &mut value).map_err(Misfit::Refused)?;
    keep_reset(&mut value);
    let unknown = resource.schema.fit(&mut value).map_err(Misfit::Type)?;
    told.extend(unknown.iter().map(|path| unknown_field(path)));
    Ok((value, told))
}

/// An empty list of managers resets them; typed documents drop empty lists, so it is said in the other way.
fn keep_reset(value: &mut Value) {
    let managers = value
        .get_mut("metadata")
        .and_then(|metadata| metadata.get_mut("managedFields"))
        .and_then(Value::as_array_mut);
    if let Some(managers) = managers.filter(|managers| managers.is_empty()) {
        managers.push(Value::Object(Map::new()));
    }
}

/// A body without kind or version is taken for what the URL says; another one is refused.
fn check_kind(resource: &Resource, value: &mut Value) -> Result<()> {
    let expected = resource.api_version();
    for (field, default) in [("apiVersion", expected.as_str()), ("kind", &resource.kind)] {
        if value[field].as_str().is_none_or(str::is_empty) {
            value[field] = default.into();
        }
    }
    let (found, kind) = (
        value["apiVersion"].as_str().unwrap_or_default(),
        value["kind"].as_str().unwrap_or_default(),
    );
    if kind != resource.kind {
        let version = GroupVersion::parse(found).version;
        return Err(Status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {}: no kind {kind:?} is registered for version \
             {found:?} at this path",
            resource.kind
        )));
    }
    if found != expected {
        return Err(Status::bad_request(format!(
            "the API version in the data ({found}) does not match the expected API version ({expected})"
        )));
    }
    Ok(())
}

fn unrecognized(resource: &Resource, why: &str, body: &[u8]) -> Status {
    const SHOWN: usize = 30;
    let cut = &body[..body.len().min(SHOWN)];
    let more = if body.len() > SHOWN { " ..." } else { "" };
    let summary = match cut.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(cut)),
        Some(_) => format!(
            "{}{more}",
            cut.iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        ),
    };
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {why} ({summary})",
        resource.kind
    ))
}

/// Fills in what is not given: kind and version, the schema's defaults and the strategy's.
#[must_use]
pub fn complete(served: &Served, mut object: Value) -> Value {
    let resource = &served.resource;
    if !object.is_object() {
        object = Value::Object(Map::new());
    }
    object["apiVersion"] = resource.api_version().into();
    object["kind"] = resource.kind.as_ref().into();
    // What a webhook added to a custom resource has not been checked yet.
    if resource.schema.open_api().is_some() {
        resource.schema.prune(&mut object);
    }
    resource.schema.apply_defaults(&mut object);
    served.strategy.default(&mut object);
    object
}

/// The same object in another version of its kind.
#[must_use]
pub fn convert(object: Value, to: &Resource) -> Value {
    apimachinery::convert::convert(object, &to.api_version())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read_is_not_too_deep() {
        for (depth, wanted) in [(1, true), (120, true), (128, false), (5000, false)] {
            let nested = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            let decoded = decode_json_whole(nested.as_bytes());
            assert_eq!(decoded.is_ok(), wanted, "{depth}");
            assert!(decoded.is_err() || decoded.unwrap().levels == depth);
            let value = (1..depth).fold(Value::Array(Vec::new()), |inner, _| {
                Value::Array(vec![inner])
            });
            assert_eq!(check_depth(&value).is_ok(), wanted, "{depth}");
        }
    }

    #[test]
    fn duplicates_and_errors() {
        let parsed = parse(br#"{"a":{"b":1,"b":2},"c":[{"d":1,"d":1}]}"#, Media::Json).unwrap();
        assert_eq!(
            parsed.duplicates,
            ["duplicate field \"a.b\"", "duplicate field \"c[0].d\""]
        );
        assert_eq!(parsed.value["a"]["b"], 2);
        assert_eq!(
            parse(b"", Media::Json).unwrap_err(),
            "unexpected end of JSON input"
        );
        assert!(
            parse(b"{x}", Media::Json)
                .unwrap_err()
                .starts_with("invalid character 'x'")
        );
        assert!(parse("[".repeat(10_000).as_bytes(), Media::Json).is_err());
        assert_eq!(parse(b"a: {b: 1}", Media::Yaml).unwrap().value["a"]["b"], 1);
        assert!(parse(b"a: [", Media::Yaml).is_err());
    }
}
