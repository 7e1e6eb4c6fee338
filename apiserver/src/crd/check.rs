//! Validation of CustomResourceDefinitions.
//!
//! Kubernetes validates an internal form, in which what all versions share has moved to the top of the spec: the paths
//! in its messages are of that form (`spec.validation.openAPIV3Schema`), and so are these.

use std::collections::HashSet;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use serde_json::Value;

use super::definition::{self, schema_of, versions};
use super::rule_check::Bounded;
use super::{defaults, rule_check, schema_check, structural};
use crate::strategy::check::{flag, list, text};

const MAX_SELECTABLE: usize = 8;
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 10] = [
    "byte",
    "date",
    "date-time",
    "double",
    "float",
    "int32",
    "int64",
    "name",
    "password",
    "string",
];

/// Errors of a new definition, or of the spec of a changed one.
#[must_use]
pub fn validate(definition: &Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = &definition["spec"];
    let path = Path::new("spec");
    let lenient = is_lenient(old);
    check_name(definition, &mut errors);
    check_group(spec, &path, &mut errors);
    match text(spec, "scope") {
        "" => errors.push(Error::required(&path.child("scope"), "")),
        "Cluster" | "Namespaced" => {}
        other => {
            let accepted = ["Cluster", "Namespaced"];
            errors.push(Error::not_supported(&path.child("scope"), other, &accepted));
        }
    }
    check_versions(definition, old, lenient, &path, &mut errors);
    for name in ["plural", "singular", "kind", "listKind"] {
        if text(&spec["names"], name).is_empty() {
            errors.push(Error::required(&path.child("names").child(name), ""));
        }
    }
    check_names(&spec["names"], &path.child("names"), &mut errors);
    check_conversion(&spec["conversion"], &path.child("conversion"), &mut errors);
    let was_open = old.is_some_and(|old| flag(&old["spec"], "preserveUnknownFields"));
    if flag(spec, "preserveUnknownFields") && !was_open {
        let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in \
                   spec.versions[*].schema instead";
        errors.push(Error::invalid(
            &path.child("preserveUnknownFields"),
            true,
            why,
        ));
    }
    check_approval(definition, old, &mut errors);
    check_status(definition, &mut errors);
    errors
}

/// Errors of how a definition changes.
#[must_use]
pub fn validate_update(definition: &Value, old: &Value) -> ErrorList {
    let mut errors = validate(definition, Some(old));
    let (spec, before) = (&definition["spec"], &old["spec"]);
    let path = Path::new("spec");
    let mut fixed = |now: &Value, before: &Value, path: Path| {
        if now != before {
            errors.push(Error::invalid(&path, now.clone(), "field is immutable"));
        }
    };
    if definition::is_established(old) {
        fixed(&spec["scope"], &before["scope"], path.child("scope"));
        let kind = path.child("names").child("kind");
        fixed(&spec["names"]["kind"], &before["names"]["kind"], kind);
    }
    fixed(&spec["group"], &before["group"], path.child("group"));
    let plural = path.child("names").child("plural");
    fixed(&spec["names"]["plural"], &before["names"]["plural"], plural);
    errors
}

/// Errors of a status that a client writes.
#[must_use]
pub fn validate_status(definition: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("status").child("acceptedNames");
    check_names(&definition["status"]["acceptedNames"], &path, &mut errors);
    errors
}

/// Whether a schema was not structural before: then it need not be now.
fn is_lenient(old: Option<&Value>) -> bool {
    let mut schemas = old.into_iter().flat_map(versions).filter_map(schema_of);
    schemas.any(|schema| !structural::validate(schema, &Path::root()).is_empty())
}

fn check_name(definition: &Value, errors: &mut ErrorList) {
    let name = text(&definition["metadata"], "name");
    let wanted = format!(
        "{}.{}",
        text(&definition["spec"]["names"], "plural"),
        definition::group(definition)
    );
    if !name.is_empty() && name != wanted {
        let why = "must be spec.names.plural+\".\"+spec.group";
        errors.push(Error::invalid(
            &Path::new("metadata").child("name"),
            name,
            why,
        ));
    }
}

fn check_group(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let (group, at) = (text(spec, "group"), path.child("group"));
    if group.is_empty() {
        errors.push(Error::required(&at, ""));
        return;
    }
    let wrong = names::dns1123_subdomain(group);
    if !wrong.is_empty() {
        errors.push(Error::invalid(&at, group, wrong.join(",")));
    } else if !group.contains('.') {
        errors.push(Error::invalid(
            &at,
            group,
            "should be a domain with at least one dot",
        ));
    }
}

/// Whether all versions say the same of something, and what: Kubernetes then checks it once, at the top.
fn shared<'a>(versions: &'a [Value], field: &str) -> Option<&'a Value> {
    let first = versions.first()?.get(field).filter(|value| is_set(value))?;
    versions
        .iter()
        .all(|version| version.get(field) == Some(first))
        .then_some(first)
}

fn is_set(value: &Value) -> bool {
    !value.is_null() && value.as_array().is_none_or(|items| !items.is_empty())
}

fn check_versions(
    definition: &Value,
    old: Option<&Value>,
    lenient: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    let versions = versions(definition);
    let at = path.child("versions");
    let (mut seen, mut unique) = (HashSet::new(), true);
    let had_schemas = old.is_none_or(|old| {
        let mut old = definition::versions(old).iter();
        old.all(|version| schema_of(version).is_some())
    });
    for (index, version) in versions.iter().enumerate() {
        let (name, at) = (text(version, "name"), at.index(index));
        unique &= seen.insert(name);
        let wrong = names::dns1035_label(name);
        if !wrong.is_empty() {
            errors.push(Error::invalid(&at.child("name"), name, wrong.join(",")));
        }
        if schema_of(version).is_none() && had_schemas {
            let at = at.child("schema").child("openAPIV3Schema");
            errors.push(Error::required(&at, ""));
        }
        check_deprecation(version, &at, errors);
    }
    let mut each =
        |field: &str, top: &str, check: &mut dyn FnMut(&Value, &Path, &mut ErrorList)| {
            if let Some(version) = versions
                .first()
                .filter(|_| shared(versions, field).is_some())
            {
                check(version, &path.child(top), errors);
                return;
            }
            for (index, version) in versions.iter().enumerate() {
                if version.get(field).is_some_and(is_set) {
                    check(version, &at.index(index).child(field), errors);
                }
            }
        };
    each("schema", "validation", &mut |version, path, errors| {
        // Rules that were there before may cost what they do.
        let known = old.into_iter().flat_map(definition::versions).any(|old| {
            text(old, "name") == text(version, "name") && schema_of(old) == schema_of(version)
        });
        let bounded = if known { Bounded::Total } else { Bounded::Each };
        check_schema(version, (lenient, bounded), path, errors);
    });
    each(
        "subresources",
        "subresources",
        &mut |version, path, errors| {
            check_scale(
                &version["subresources"]["scale"],
                &path.child("scale"),
                errors,
            );
        },
    );
    each(
        "additionalPrinterColumns",
        "additionalPrinterColumns",
        &mut |version, path, errors| {
            for (index, column) in list(version, "additionalPrinterColumns").iter().enumerate() {
                check_column(column, &path.index(index), errors);
            }
        },
    );
    each(
        "selectableFields",
        "selectableFields",
        &mut check_selectable,
    );
    if !unique {
        let why = "must contain unique version names";
        errors.push(Error::invalid(&at, Value::from(versions), why));
    }
    if versions.iter().filter(|v| flag(v, "storage")).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        errors.push(Error::invalid(&at, Value::from(versions), why));
    }
}

fn check_deprecation(version: &Value, path: &Path, errors: &mut ErrorList) {
    let Some(warning) = version.get("deprecationWarning").and_then(Value::as_str) else {
        return;
    };
    let at = path.child("deprecationWarning");
    let why = if !flag(version, "deprecated") {
        "can only be set for deprecated versions".to_owned()
    } else if warning.len() > 256 {
        "must be <= 256 characters long".to_owned()
    } else if warning.is_empty() {
        "must not be an empty string".to_owned()
    } else if let Some((index, _)) = warning.char_indices().find(|(_, c)| c.is_control()) {
        format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {index}"
        )
    } else {
        return;
    };
    errors.push(Error::invalid(&at, warning, why));
}

fn check_schema(
    version: &Value,
    (lenient, bounded): (bool, Bounded),
    path: &Path,
    errors: &mut ErrorList,
) {
    let Some(schema) = schema_of(version) else {
        return;
    };
    let at = path.child("openAPIV3Schema");
    let before = errors.len();
    if version["subresources"]["status"].is_object() {
        schema_check::root_with_status(schema, &at, errors);
    }
    if flag(schema, "nullable") {
        errors.push(Error::forbidden(
            &at.child("nullable"),
            "nullable cannot be true at the root",
        ));
    }
    let mut sound = false;
    if !lenient {
        let broken = structural::validate(schema, &at);
        if broken.is_empty() {
            let wrong = defaults::validate(schema, &at);
            sound = wrong.is_empty();
            errors.append(wrong);
        } else {
            errors.append(broken);
        }
    }
    errors.append(schema_check::validate(schema, &at));
    if sound && errors.len() == before {
        errors.append(rule_check::check(schema, bounded, &at));
    }
}

/// A path in dots, below one of the given fields.
fn check_path(text: &str, below: &[&str], why: &str, path: &Path, errors: &mut ErrorList) {
    if !text.starts_with('.') {
        let why = "must be a simple json path starting with .";
        errors.push(Error::invalid(path, text, why));
    } else if !below.is_empty() && !below.iter().any(|prefix| text.starts_with(prefix)) {
        errors.push(Error::invalid(path, text, why));
    }
}

fn check_scale(scale: &Value, path: &Path, errors: &mut ErrorList) {
    if !scale.is_object() {
        return;
    }
    for (name, below, why) in [
        (
            "specReplicasPath",
            ".spec.",
            "should be a json path under .spec",
        ),
        (
            "statusReplicasPath",
            ".status.",
            "should be a json path under .status",
        ),
    ] {
        match text(scale, name) {
            "" => errors.push(Error::required(&path.child(name), "")),
            given => check_path(given, &[below], why, &path.child(name), errors),
        }
    }
    let selector = text(scale, "labelSelectorPath");
    if !selector.is_empty() {
        let why = "should be a json path under either .spec or .status";
        let at = path.child("labelSelectorPath");
        check_path(selector, &[".spec.", ".status."], why, &at, errors);
    }
}

fn check_column(column: &Value, path: &Path, errors: &mut ErrorList) {
    if text(column, "name").is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    }
    let (kind, format) = (text(column, "type"), text(column, "format"));
    let why = format!("must be one of {}", COLUMN_TYPES.join(","));
    if kind.is_empty() {
        errors.push(Error::required(&path.child("type"), why));
    } else if !COLUMN_TYPES.contains(&kind) {
        errors.push(Error::invalid(&path.child("type"), kind, why));
    }
    if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
        let why = format!("must be one of {}", COLUMN_FORMATS.join(","));
        errors.push(Error::invalid(&path.child("format"), format, why));
    }
    match text(column, "jsonPath") {
        "" => errors.push(Error::required(&path.child("JSONPath"), "")),
        given => check_path(given, &[], "", &path.child("JSONPath"), errors),
    }
}

fn check_selectable(version: &Value, path: &Path, errors: &mut ErrorList) {
    let mut seen = HashSet::new();
    for (index, field) in list(version, "selectableFields").iter().enumerate() {
        let at = path.index(index).child("jsonPath");
        let given = text(field, "jsonPath");
        if given.is_empty() {
            errors.push(Error::required(&at, ""));
            continue;
        }
        let Some(found) = schema_of(version).and_then(|schema| walk(schema, given)) else {
            let why = format!("is an invalid path: does not refer to a valid field: {given}");
            errors.push(Error::invalid(&at, given, why));
            continue;
        };
        if given.starts_with(".metadata") {
            errors.push(Error::invalid(
                &at,
                given,
                "must not point to fields in metadata",
            ));
        }
        if !matches!(text(found, "type"), "string" | "boolean" | "integer") {
            let why = "must point to a field of type string, boolean or integer. Enum string fields and strings \
                       with formats are allowed.";
            errors.push(Error::invalid(&at, given, why));
        }
        if !seen.insert(given) {
            errors.push(Error::duplicate(&at, given));
        }
    }
    if seen.len() > MAX_SELECTABLE {
        errors.push(Error::too_many(path, seen.len(), MAX_SELECTABLE));
    }
}

/// The schema at a simple path.
fn walk<'a>(schema: &'a Value, path: &str) -> Option<&'a Value> {
    let names = path.strip_prefix('.')?.split('.');
    names
        .into_iter()
        .try_fold(schema, |schema, name| schema.get("properties")?.get(name))
}

fn check_names(names: &Value, path: &Path, errors: &mut ErrorList) {
    let mut label = |name: &str, shown: &str, path: &Path, mixed: bool| {
        if shown.is_empty() {
            return;
        }
        let wrong = names::dns1035_label(name);
        if !wrong.is_empty() {
            let why = match mixed {
                true => {
                    format!(
                        "may have mixed case, but should otherwise match: {}",
                        wrong.join(",")
                    )
                }
                false => wrong.join(","),
            };
            errors.push(Error::invalid(path, shown, why));
        }
    };
    for field in ["plural", "singular"] {
        let name = text(names, field);
        label(name, name, &path.child(field), false);
    }
    for field in ["kind", "listKind"] {
        let name = text(names, field);
        label(&name.to_lowercase(), name, &path.child(field), true);
    }
    for field in ["shortNames", "categories"] {
        for (index, name) in list(names, field).iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            label(name, name, &path.child(field).index(index), false);
        }
    }
    let (kind, list_kind) = (text(names, "kind"), text(names, "listKind"));
    if !kind.is_empty() && kind == list_kind {
        let why = "kind and listKind may not be the same";
        errors.push(Error::invalid(&path.child("listKind"), list_kind, why));
    }
}

fn check_conversion(conversion: &Value, path: &Path, errors: &mut ErrorList) {
    if !conversion.is_object() {
        return;
    }
    let (webhook, client) = (
        &conversion["webhook"],
        &conversion["webhook"]["clientConfig"],
    );
    let reviews = list(webhook, "conversionReviewVersions");
    let at = path.child("webhookClientConfig");
    match text(conversion, "strategy") {
        "" => errors.push(Error::required(&path.child("strategy"), "")),
        "Webhook" => {
            if !client.is_object() {
                errors.push(Error::required(
                    &at,
                    "required when strategy is set to Webhook",
                ));
            } else if client["url"].is_string() == client["service"].is_object() {
                errors.push(Error::required(
                    &at,
                    "exactly one of url or service is required",
                ));
            } else if client["service"].is_object() {
                check_service(&client["service"], &at.child("service"), errors);
            } else {
                check_url(text(client, "url"), &at.child("url"), errors);
            }
            check_reviews(reviews, &path.child("conversionReviewVersions"), errors);
        }
        "None" => {
            let why = "should not be set when strategy is not set to Webhook";
            if client.is_object() {
                errors.push(Error::forbidden(&at, why));
            }
            if !reviews.is_empty() {
                errors.push(Error::forbidden(
                    &path.child("conversionReviewVersions"),
                    why,
                ));
            }
        }
        other => {
            let at = path.child("strategy");
            errors.push(Error::not_supported(&at, other, &["None", "Webhook"]));
        }
    }
}

fn check_service(service: &Value, path: &Path, errors: &mut ErrorList) {
    for (name, why) in [
        ("name", "service name is required"),
        ("namespace", "service namespace is required"),
    ] {
        if text(service, name).is_empty() {
            errors.push(Error::required(&path.child(name), why));
        }
    }
    let port = service["port"].as_i64().unwrap_or(443);
    let wrong = names::port_number(port);
    if !wrong.is_empty() {
        let why = format!("port is not valid: {}", wrong.join(","));
        errors.push(Error::invalid(&path.child("port"), port, why));
    }
    let given = text(service, "path");
    if !given.is_empty() && !given.starts_with('/') {
        errors.push(Error::invalid(
            &path.child("path"),
            given,
            "must start with a '/'",
        ));
    }
}

fn check_url(url: &str, path: &Path, errors: &mut ErrorList) {
    const FORM: &str = "; desired format: https://host[/path]";
    let Ok(parsed) = url.parse::<http::Uri>() else {
        errors.push(Error::required(
            path,
            format!("url must be a valid URL{FORM}"),
        ));
        return;
    };
    if parsed.scheme_str() != Some("https") {
        let why = format!("'https' is the only allowed URL scheme{FORM}");
        errors.push(Error::invalid(
            path,
            parsed.scheme_str().unwrap_or_default(),
            why,
        ));
    }
    if parsed.host().unwrap_or_default().is_empty() {
        errors.push(Error::invalid(
            path,
            "",
            format!("host must be specified{FORM}"),
        ));
    }
    if parsed.query().is_some() {
        let query = parsed.query().unwrap_or_default();
        errors.push(Error::invalid(
            path,
            query,
            "query parameters are not permitted in the URL",
        ));
    }
}

fn check_reviews(reviews: &[Value], path: &Path, errors: &mut ErrorList) {
    if reviews.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    let mut seen = HashSet::new();
    for (index, version) in reviews.iter().enumerate() {
        let version = version.as_str().unwrap_or_default();
        let at = path.index(index);
        if !seen.insert(version) {
            errors.push(Error::invalid(&at, version, "duplicate version"));
            continue;
        }
        for why in names::dns1035_label(version) {
            errors.push(Error::invalid(&at, version, why));
        }
    }
    if !seen.contains("v1") && !seen.contains("v1beta1") {
        let why = "must include at least one of v1, v1beta1";
        errors.push(Error::invalid(path, Value::from(reviews), why));
    }
}

/// Groups that belong to the Kubernetes community need its approval.
fn check_approval(definition: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    const APPROVED: &str = "api-approved.kubernetes.io";
    let group = definition::group(definition);
    let is_protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group == *domain || group.ends_with(&format!(".{domain}")));
    let given = |d: &Value| text(&d["metadata"]["annotations"], APPROVED).to_owned();
    let approval = given(definition);
    if !is_protected || old.is_some_and(|old| given(old) == approval) {
        return;
    }
    let path = Path::new("metadata").child("annotations").key(APPROVED);
    if approval.is_empty() {
        let why = "protected groups must have approval annotation \"api-approved.kubernetes.io\", see \
                   https://github.com/kubernetes/enhancements/pull/1111";
        errors.push(Error::required(&path, why));
    } else if !approval.starts_with("unapproved")
        && !approval
            .parse::<http::Uri>()
            .is_ok_and(|url| url.host().is_some() && url.scheme().is_some())
    {
        let why = "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or \
                   a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111";
        errors.push(Error::invalid(&path, approval, why));
    }
}

fn check_status(definition: &Value, errors: &mut ErrorList) {
    errors.append(validate_status(definition));
    let path = Path::new("status").child("storedVersions");
    let stored = list(&definition["status"], "storedVersions");
    if stored.is_empty() {
        errors.push(Error::invalid(
            &path,
            Value::from(stored),
            "must have at least one stored version",
        ));
        return;
    }
    for version in versions(definition).iter().filter(|v| flag(v, "storage")) {
        let name = text(version, "name");
        if !stored.iter().any(|s| s == name) {
            let why = format!("must have the storage version {name}");
            errors.push(Error::invalid(&path, Value::from(stored), why));
        }
    }
    for (index, name) in stored.iter().filter_map(Value::as_str).enumerate() {
        if !versions(definition).iter().any(|v| text(v, "name") == name) {
            let why = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions \
                 until a storage migration ensures no data remains persisted in {name} and removes {name} from \
                 status.storedVersions"
            );
            errors.push(Error::invalid(&path.index(index), name, why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn definition() -> Value {
        json!({
            "metadata": {"name": "foos.g.io"},
            "spec": {"group": "g.io", "scope": "Namespaced", "conversion": {"strategy": "None"},
                "names": {"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
                    "properties": {"spec": {"type": "object", "properties": {"color": {"type": "string"}}}}}}}]},
            "status": {"storedVersions": ["v1"]},
        })
    }

    #[test]
    fn messages() {
        assert_eq!(
            validate(&definition(), None).to_string(),
            ErrorList::new().to_string()
        );
        let v = "/spec/versions/0";
        #[rustfmt::skip]
        let table: Vec<(&str, Value, &str)> = vec![
            ("/metadata/name", json!("x"), "metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group"),
            ("/spec/scope", json!("Some"), "spec.scope: Unsupported value: \"Some\": supported values: \"Cluster\", \"Namespaced\""),
            ("/spec/names/kind", json!("Foo_"), "spec.names.kind: Invalid value: \"Foo_\": may have mixed case, but should otherwise match: "),
            ("/spec/names/listKind", json!("Foo"), "spec.names.listKind: Invalid value: \"Foo\": kind and listKind may not be the same"),
            ("/spec/preserveUnknownFields", json!(true), "spec.preserveUnknownFields: Invalid value: true: cannot set to true"),
            ("/spec/conversion", json!({"strategy": "Webhook"}), "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook"),
            ("/status/storedVersions", json!(["v1", "v0"]), "status.storedVersions[1]: Invalid value: \"v0\": missing from spec.versions"),
            ("/spec/versions/0/storage", json!(false), "spec.versions: Invalid value: [{"),
            ("/spec/versions/0/schema", Value::Null, "spec.versions[0].schema.openAPIV3Schema: Required value"),
            ("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/color/type", json!("text"),
                "spec.validation.openAPIV3Schema.properties[spec].properties[color].type: Unsupported value: \"text\""),
            ("/spec/versions/0/subresources", json!({"scale": {"specReplicasPath": ".x", "statusReplicasPath": ".status.n"}}),
                "spec.subresources.scale.specReplicasPath: Invalid value: \".x\": should be a json path under .spec"),
            ("/spec/versions/0/additionalPrinterColumns", json!([{"name": "A", "type": "x", "jsonPath": ".a"}]),
                "spec.additionalPrinterColumns[0].type: Invalid value: \"x\": must be one of boolean,date,integer,number,string"),
            ("/spec/versions/0/selectableFields", json!([{"jsonPath": ".spec.size"}]), "spec.selectableFields[0].jsonPath: Invalid value: \".spec.size\": is an invalid path"),
        ];
        for (pointer, value, expected) in table {
            let mut changed = definition();
            let (parent, last) = pointer.rsplit_once('/').unwrap_or((v, ""));
            changed.pointer_mut(parent).unwrap()[last] = value;
            let errors: Vec<String> = validate(&changed, None)
                .iter()
                .map(ToString::to_string)
                .collect();
            assert!(
                errors.iter().any(|e| e.starts_with(expected)),
                "{pointer}: {errors:?}"
            );
        }
    }

    #[test]
    fn established_ones_keep_their_kind() {
        let mut old = definition();
        old["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
        let mut new = old.clone();
        new["spec"]["names"]["kind"] = json!("Bar");
        new["spec"]["scope"] = json!("Cluster");
        let errors: Vec<String> = validate_update(&new, &old)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors[0].contains("field is immutable"));
    }

    #[test]
    fn community_groups_need_approval() {
        let mut definition = definition();
        definition["metadata"]["name"] = json!("foos.x.k8s.io");
        definition["spec"]["group"] = json!("x.k8s.io");
        assert_eq!(validate(&definition, None).len(), 1);
        for (approval, count) in [
            ("unapproved, testing", 0),
            ("https://github.com/x", 0),
            ("yes", 1),
        ] {
            definition["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": approval});
            assert_eq!(validate(&definition, None).len(), count, "{approval}");
        }
    }
}
