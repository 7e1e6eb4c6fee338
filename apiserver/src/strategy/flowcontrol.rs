//! Flow schemas and priority levels: what they may say. The two that every server has may not say anything else.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{names, object};
use serde_json::{Value, json};

use super::check::{Checks, flag, given, integer, list, same, text};
use super::{Context, Strategy};

pub struct FlowSchema;
pub struct PriorityLevelConfiguration;

const EXEMPT: &str = "exempt";
const CATCH_ALL: &str = "catch-all";
const VERBS: [&str; 9] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "proxy",
    "update",
    "watch",
];

impl Strategy for FlowSchema {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        flow_schema(&mut checks, spec, object::name(object), &path);
        if let Some(fixed) = mandatory_schema(object::name(object))
            && !same(spec, &fixed)
        {
            let why = format!(
                "spec of '{}' must equal the fixed value",
                object::name(object)
            );
            checks.invalid(&path, spec.clone(), &why);
        }
        conditions(&mut checks, object);
        checks.done()
    }

    fn validate_status_update(
        &self,
        _context: &Context<'_>,
        object: &Value,
        _old: &Value,
    ) -> ErrorList {
        let mut checks = Checks::default();
        conditions(&mut checks, object);
        checks.done()
    }
}

/// The specs that are fixed, by name.
fn mandatory_schema(name: &str) -> Option<Value> {
    let rule = |groups: &[&str]| {
        let subjects: Vec<Value> = groups
            .iter()
            .map(|g| json!({"kind": "Group", "group": {"name": g}}))
            .collect();
        json!([{
            "subjects": subjects,
            "resourceRules": [{
                "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"],
            }],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        }])
    };
    match name {
        EXEMPT => Some(json!({
            "priorityLevelConfiguration": {"name": EXEMPT}, "matchingPrecedence": 1,
            "rules": rule(&["system:masters"]),
        })),
        CATCH_ALL => Some(json!({
            "priorityLevelConfiguration": {"name": CATCH_ALL}, "matchingPrecedence": 10_000,
            "distinguisherMethod": {"type": "ByUser"},
            "rules": rule(&["system:unauthenticated", "system:authenticated"]),
        })),
        _ => None,
    }
}

fn conditions(checks: &mut Checks, object: &Value) {
    let conditions = list(&object["status"], "conditions");
    for (i, condition) in conditions.iter().enumerate() {
        let path = Path::new("status")
            .child("conditions")
            .index(i)
            .child("type");
        let kind = text(condition, "type");
        if conditions[..i].iter().any(|c| text(c, "type") == kind) {
            checks.push(Error::duplicate(&path, kind));
        }
        if kind.is_empty() {
            checks.required(&path, "");
        }
    }
}

fn flow_schema(checks: &mut Checks, spec: &Value, name: &str, path: &Path) {
    const MOST: i64 = 10_000;
    let (precedence, at) = (
        integer(spec, "matchingPrecedence").unwrap_or(0),
        path.child("matchingPrecedence"),
    );
    if precedence <= 0 {
        checks.invalid(&at, precedence, "must be a positive value");
    }
    if precedence > MOST {
        checks.invalid(&at, precedence, &format!("must not be greater than {MOST}"));
    }
    if precedence == 1 && name != EXEMPT {
        let why = "only the schema named 'exempt' may have matchingPrecedence 1";
        checks.invalid(&at, precedence, why);
    }
    if let Some(method) = given(spec, "distinguisherMethod") {
        const METHODS: [&str; 2] = ["ByNamespace", "ByUser"];
        if !METHODS.contains(&text(method, "type")) {
            let path = path.child("distinguisherMethod").child("type");
            checks.push(Error::not_supported(&path, method.clone(), &METHODS));
        }
    }
    let at = path.child("priorityLevelConfiguration").child("name");
    match text(&spec["priorityLevelConfiguration"], "name") {
        "" => checks.required(&at, "must reference a priority level"),
        level => checks.subdomain(&at, level),
    }
    for (i, rule) in list(spec, "rules").iter().enumerate() {
        let path = path.child("rules").index(i);
        if list(rule, "subjects").is_empty() {
            let why = "subjects must contain at least one value";
            checks.required(&path.child("subjects"), why);
        }
        for (i, it) in list(rule, "subjects").iter().enumerate() {
            subject(checks, it, &path.child("subjects").index(i));
        }
        let (resources, others) = (list(rule, "resourceRules"), list(rule, "nonResourceRules"));
        if resources.is_empty() && others.is_empty() {
            let why = "at least one of resourceRules and nonResourceRules has to be non-empty";
            checks.required(&path, why);
        }
        for (i, rule) in resources.iter().enumerate() {
            resource_rule(checks, rule, &path.child("resourceRules").index(i));
        }
        for (i, rule) in others.iter().enumerate() {
            non_resource_rule(checks, rule, &path.child("nonResourceRules").index(i));
        }
    }
}

const SUBJECTS: [(&str, &str); 3] = [
    ("ServiceAccount", "serviceAccount"),
    ("User", "user"),
    ("Group", "group"),
];

fn subject(checks: &mut Checks, subject: &Value, path: &Path) {
    let kind = text(subject, "kind");
    let Some((_, own)) = SUBJECTS.iter().find(|(k, _)| *k == kind) else {
        let kinds = ["Group", "ServiceAccount", "User"];
        checks.push(Error::not_supported(&path.child("kind"), kind, &kinds));
        return;
    };
    let at = path.child(own);
    match given(subject, own) {
        None => checks.required(
            &at,
            &format!("{own} is required when subject kind is '{kind}'"),
        ),
        Some(it) => {
            let name = text(it, "name");
            if name.is_empty() {
                checks.required(&at.child("name"), "");
            } else if kind == "ServiceAccount" && name != "*" {
                checks.subdomain(&at.child("name"), name);
            }
            if kind == "ServiceAccount" {
                match text(it, "namespace") {
                    "" => {
                        let why = "must specify namespace for service account";
                        checks.required(&at.child("namespace"), why);
                    }
                    namespace => checks.label(&at.child("namespace"), namespace),
                }
            }
        }
    }
    for (other, field) in SUBJECTS.iter().filter(|(k, _)| *k != kind) {
        if given(subject, field).is_some() {
            let why = format!("{field} is forbidden when subject kind is not '{other}'");
            checks.forbidden(&path.child(field), &why);
        }
    }
}

fn strings<'a>(rule: &'a Value, field: &str) -> Vec<&'a str> {
    list(rule, field).iter().filter_map(Value::as_str).collect()
}

/// A list that is `*` alone or names its members. True if its members are to be looked at.
fn members(
    checks: &mut Checks,
    rule: &Value,
    field: &str,
    empty: &str,
    what: &str,
    path: &Path,
) -> bool {
    let (path, found) = (path.child(field), strings(rule, field));
    if found.is_empty() {
        if !empty.is_empty() {
            checks.required(&path, empty);
        }
        return false;
    }
    if !found.contains(&"*") {
        return true;
    }
    if found.len() > 1 {
        let why = format!("if '*' is present, must not specify other {what}");
        checks.invalid(&path, rule[field].clone(), &why);
    }
    false
}

fn verbs(checks: &mut Checks, rule: &Value, path: &Path) {
    let why = "verbs must contain at least one value";
    if members(checks, rule, "verbs", why, "verbs", path)
        && !strings(rule, "verbs")
            .iter()
            .all(|verb| VERBS.contains(verb))
    {
        let path = path.child("verbs");
        checks.push(Error::not_supported(&path, rule["verbs"].clone(), &VERBS));
    }
}

fn resource_rule(checks: &mut Checks, rule: &Value, path: &Path) {
    verbs(checks, rule, path);
    let why = "resource rules must supply at least one api group";
    members(checks, rule, "apiGroups", why, "api groups", path);
    let why = "resource rules must supply at least one resource";
    members(checks, rule, "resources", why, "resources", path);
    let why = match flag(rule, "clusterScope") {
        true => "",
        false => "resource rules that are not cluster scoped must supply at least one namespace",
    };
    if members(checks, rule, "namespaces", why, "namespaces", path) {
        for (i, namespace) in strings(rule, "namespaces").into_iter().enumerate() {
            for wrong in names::dns1123_label(namespace) {
                let why =
                    format!("each member of this list must be '*' or a DNS-1123 label; {wrong}");
                checks.invalid(&path.child("namespaces").index(i), namespace, &why);
            }
        }
    }
}

fn non_resource_rule(checks: &mut Checks, rule: &Value, path: &Path) {
    verbs(checks, rule, path);
    let (field, why) = (
        "nonResourceURLs",
        "nonResourceURLs must contain at least one value",
    );
    if !members(checks, rule, field, why, "non-resource URLs", path) {
        return;
    }
    for (i, url) in strings(rule, field).into_iter().enumerate() {
        let stars = url.matches('*').count();
        let why = match url {
            "" => "must not be empty",
            "/" => continue,
            _ if !url.starts_with('/') => "must start with slash",
            _ if url.contains(' ') => "must not contain white-space",
            _ if url.contains("//") => "must not contain double slash",
            _ if stars > 1 || (stars == 1 && !url.ends_with("/*")) => {
                "wildcard can only do suffix matching"
            }
            _ => continue,
        };
        checks.invalid(&path.child(field).index(i), url, why);
    }
}

impl Strategy for PriorityLevelConfiguration {
    /// What a level may borrow or lend, and how it queues, has defaults only where it is limited; the schema has them.
    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let name = object::name(object);
        priority_level(&mut checks, spec, name, &path);
        let exempt = name == EXEMPT;
        let fixed = match name {
            EXEMPT => Some(json!({"type": "Exempt", "exempt": spec["exempt"]})),
            CATCH_ALL => Some(json!({"type": "Limited", "limited": {
                "nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"},
            }})),
            _ => None,
        };
        if fixed.is_some_and(|fixed| !same(spec, &fixed)) {
            let but = if exempt {
                " except the 'spec.exempt' field"
            } else {
                ""
            };
            let why = format!("spec of '{name}'{but} must equal the fixed value");
            checks.invalid(&path, spec.clone(), &why);
        }
        conditions(&mut checks, object);
        checks.done()
    }

    fn validate_status_update(
        &self,
        _context: &Context<'_>,
        object: &Value,
        _old: &Value,
    ) -> ErrorList {
        let mut checks = Checks::default();
        conditions(&mut checks, object);
        checks.done()
    }
}

fn priority_level(checks: &mut Checks, spec: &Value, name: &str, path: &Path) {
    let kind = text(spec, "type");
    if (name == EXEMPT) != (kind == "Exempt") {
        let why = "must be 'Exempt' if and only if `name` is 'exempt'";
        checks.invalid(&path.child("type"), kind, why);
    }
    let (limited, exempt) = (given(spec, "limited"), given(spec, "exempt"));
    let at = path.child("limited");
    match kind {
        "Exempt" => {
            if limited.is_some() {
                checks.forbidden(&at, "must be nil if the type is not Limited");
            }
            if let Some(exempt) = exempt {
                shares(checks, exempt, &path.child("exempt"));
            }
        }
        "Limited" => {
            if exempt.is_some() {
                checks.forbidden(&path.child("exempt"), "must be nil if the type is Limited");
            }
            match limited {
                None => checks.required(&at, "must not be empty when type is Limited"),
                Some(limited) => {
                    shares(checks, limited, &at);
                    limit_response(
                        checks,
                        &limited["limitResponse"],
                        &at.child("limitResponse"),
                    );
                    let field = "borrowingLimitPercent";
                    if let Some(share) = integer(limited, field).filter(|s| *s < 0) {
                        let why = "if specified, must be a non-negative integer";
                        checks.invalid(&at.child(field), share, why);
                    }
                }
            }
        }
        _ => {
            let path = path.child("type");
            checks.push(Error::not_supported(&path, kind, &["Exempt", "Limited"]));
        }
    }
}

fn shares(checks: &mut Checks, level: &Value, path: &Path) {
    let field = "nominalConcurrencyShares";
    if let Some(shares) = integer(level, field).filter(|s| *s < 0) {
        checks.invalid(&path.child(field), shares, "must be a non-negative integer");
    }
    let field = "lendablePercent";
    if let Some(share) = integer(level, field).filter(|s| !(0..=100).contains(s)) {
        checks.invalid(
            &path.child(field),
            share,
            "must be between 0 and 100, inclusive",
        );
    }
}

fn limit_response(checks: &mut Checks, response: &Value, path: &Path) {
    let (kind, queuing, at) = (
        text(response, "type"),
        given(response, "queuing"),
        path.child("queuing"),
    );
    match (kind, queuing) {
        ("Reject", Some(_)) => {
            checks.forbidden(
                &at,
                "must be nil if limited.limitResponse.type is not Limited",
            );
        }
        ("Queue", None) => {
            checks.required(
                &at,
                "must not be empty if limited.limitResponse.type is Limited",
            );
        }
        ("Queue", Some(queuing)) => queues(checks, queuing, &at),
        ("Reject", None) => {}
        _ => checks.push(Error::not_supported(
            &path.child("type"),
            kind,
            &["Queue", "Reject"],
        )),
    }
}

fn queues(checks: &mut Checks, queuing: &Value, path: &Path) {
    const MOST: i64 = 10_000_000;
    /// How many bits of a hash choose the queues of a flow.
    const HASH_BITS: i64 = 60;
    let number = |field: &str| integer(queuing, field).unwrap_or(0);
    let (limit, count, hand) = (
        number("queueLengthLimit"),
        number("queues"),
        number("handSize"),
    );
    if limit <= 0 {
        checks.invalid(&path.child("queueLengthLimit"), limit, "must be positive");
    }
    if count <= 0 {
        checks.invalid(&path.child("queues"), count, "must be positive");
    } else if count > MOST {
        let why = format!("must not be greater than {MOST}");
        checks.invalid(&path.child("queues"), count, &why);
    }
    let at = path.child("handSize");
    // Both are int32: exact as floats.
    let bits = ((count.max(1) as f64).log2() * hand as f64).ceil() as i64;
    if hand <= 0 {
        checks.invalid(&at, hand, "must be positive");
    } else if hand > count {
        let why = format!("should not be greater than queues ({count})");
        checks.invalid(&at, hand, &why);
    } else if bits > HASH_BITS {
        let why = format!(
            "required entropy bits of deckSize {count} and handSize {hand} should not be greater than {HASH_BITS}"
        );
        checks.invalid(&at, hand, &why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::tests::refusals;

    #[test]
    fn schemas() {
        let rule = json!({"subjects": [{"kind": "User", "user": {"name": "jane"}}], "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz"]}]});
        let schema = |precedence: i64, rule: &Value| json!({"metadata": {"name": "a"}, "spec": {"matchingPrecedence": precedence, "priorityLevelConfiguration": {"name": "p"}, "rules": [rule]}});
        assert!(refusals("flowschemas", &schema(500, &rule), None).is_empty());
        assert_eq!(
            refusals("flowschemas", &schema(1, &rule), None),
            [
                "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1"
            ]
        );
        let mut bad = rule.clone();
        bad["subjects"][0]["group"] = json!({"name": "g"});
        bad["nonResourceRules"][0] = json!({"verbs": ["*", "get"], "nonResourceURLs": ["a"]});
        assert_eq!(
            refusals("flowschemas", &schema(500, &bad), None),
            [
                "spec.rules[0].subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'",
                "spec.rules[0].nonResourceRules[0].verbs: Invalid value: [\"*\",\"get\"]: if '*' is present, must not specify other verbs",
                "spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"a\": must start with slash",
            ]
        );
        for name in [EXEMPT, CATCH_ALL] {
            let object =
                json!({"metadata": {"name": name}, "spec": mandatory_schema(name).unwrap()});
            assert!(refusals("flowschemas", &object, None).is_empty(), "{name}");
        }
    }

    #[test]
    fn levels() {
        let level = |limited: Value| json!({"metadata": {"name": "a"}, "spec": {"type": "Limited", "limited": limited}});
        #[rustfmt::skip]
        let table: &[(Value, &[&str])] = &[
            (json!({"limitResponse": {"type": "Reject"}}), &[]),
            (json!({"limitResponse": {"type": "Queue"}}), &["spec.limited.limitResponse.queuing: Required value: must not be empty if limited.limitResponse.type is Limited"]),
            (json!({"limitResponse": {"type": "Queue", "queuing": {"queues": 64, "handSize": 8, "queueLengthLimit": 50}}}), &[]),
            (json!({"limitResponse": {"type": "Queue", "queuing": {"queues": 512, "handSize": 8, "queueLengthLimit": 50}}}), &["spec.limited.limitResponse.queuing.handSize: Invalid value: 8: required entropy bits of deckSize 512 and handSize 8 should not be greater than 60"]),
            (json!({"limitResponse": {"type": "Reject"}, "lendablePercent": 101}), &["spec.limited.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive"]),
        ];
        for (limited, want) in table {
            let found = refusals("prioritylevelconfigurations", &level(limited.clone()), None);
            assert_eq!(found, *want, "{limited}");
        }
    }
}
