//! Metadata that the server sets, keeps and checks, whatever the kind.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::status::{Result, Status};
use apimachinery::{names, object, time};
use jiff::Timestamp;
use rand::Rng;
use serde_json::Value;

use super::Target;
use crate::strategy::NameRule;

/// Letters and digits that make no words and look like no others.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX: usize = 5;
const MAX_GENERATED: usize = 63;

/// `generateName` made a name.
#[must_use]
pub fn generate(prefix: &str) -> String {
    let mut base = prefix;
    while base.len() > MAX_GENERATED - SUFFIX {
        base = base
            .char_indices()
            .next_back()
            .map_or("", |(at, _)| &base[..at]);
    }
    let mut rng = rand::rng();
    let suffix = (0..SUFFIX).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]));
    base.chars().chain(suffix).collect()
}

/// Makes the object's namespace that of the request, or refuses another one.
pub fn match_namespace(target: Target<'_>, object: &mut Value) -> Result<()> {
    let expected = if target.served.resource.namespaced {
        target.namespace
    } else {
        ""
    };
    let found = object::namespace(object);
    if found == expected {
        return Ok(());
    }
    if !found.is_empty() && !expected.is_empty() {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let expected = expected.to_owned();
    object::set_namespace(object, &expected);
    Ok(())
}

/// The name in the body must be the one in the URL, or absent.
pub fn match_name(target: Target<'_>, object: &mut Value) -> Result<()> {
    let found = object::name(object);
    if found.is_empty() {
        object::set_name(object, target.name);
    } else if found != target.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({found}) does not match the name on the URL ({})",
            target.name
        )));
    }
    Ok(())
}

/// What only the server writes, on a new object.
pub fn fill(object: &mut Value, now: Timestamp) {
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generation",
    ] {
        object::set_metadata(object, field, Value::Null);
    }
    object::set_metadata(object, "uid", uuid::Uuid::new_v4().to_string());
    object::set_metadata(object, "creationTimestamp", time::format(now));
}

/// What an update cannot change, taken from the old object.
pub fn keep(object: &mut Value, old: &Value) {
    let kept = &old["metadata"];
    if object::uid(object).is_empty() {
        object::set_metadata(object, "uid", kept["uid"].clone());
    }
    // The version has been compared; one that was left out means the current one.
    for field in ["creationTimestamp", "generation", "resourceVersion"] {
        object::set_metadata(object, field, kept[field].clone());
    }
    object::set_metadata(object, "selfLink", Value::Null);
    // A deletion under way goes on as it was; one cannot be begun by an update.
    object::set_metadata(
        object,
        "deletionTimestamp",
        kept["deletionTimestamp"].clone(),
    );
    object::set_metadata(
        object,
        "deletionGracePeriodSeconds",
        kept["deletionGracePeriodSeconds"].clone(),
    );
    if object["metadata"]["generateName"].is_null() {
        object::set_metadata(object, "generateName", kept["generateName"].clone());
    }
}

/// How a name of this kind has to look.
#[must_use]
pub fn name_check(rule: NameRule) -> fn(&str) -> Vec<String> {
    match rule {
        NameRule::Subdomain => names::dns1123_subdomain,
        NameRule::Label => names::dns1123_label,
        NameRule::IpAddress => crate::strategy::address_name,
        NameRule::PathSegment => names::path_segment,
    }
}

/// Errors in the metadata of a new object.
#[must_use]
pub fn validate(target: Target<'_>, object: &Value) -> ErrorList {
    let namespaced = target.served.resource.namespaced;
    let check = name_check(target.served.strategy.name_rule());
    apimachinery::validation::object_meta(object, namespaced, check)
}

/// Errors in how metadata changed.
#[must_use]
pub fn validate_update(target: Target<'_>, object: &Value, old: &Value) -> ErrorList {
    let mut errors = validate(target, object);
    errors.append(apimachinery::validation::object_meta_update(object, old));
    errors
}

/// The refusal of an update without resourceVersion to kinds that demand one.
#[must_use]
pub fn version_required(target: Target<'_>) -> Status {
    let resource = &target.served.resource;
    let path = Path::new("metadata").child("resourceVersion");
    let error = Error::invalid(&path, 0, "must be specified for an update");
    let kind =
        apimachinery::resource::GroupKind::new(resource.group.clone(), resource.plural.clone());
    Status::invalid(&kind, target.name, ErrorList(vec![error]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_fit() {
        for prefix in ["web-", &"x".repeat(80), &"é".repeat(40)] {
            let name = generate(prefix);
            assert!(name.len() <= MAX_GENERATED && name.len() > SUFFIX, "{name}");
        }
        assert!(generate("web-").starts_with("web-"));
    }
}
