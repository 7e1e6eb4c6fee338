//! Webhook configurations and admission policies.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use apimachinery::object;
use serde_json::{Value, json};

use super::check::{Checks, given, integer, list, text};
use super::{Context, Strategy};
use crate::admission::policy::compiled::declare;
use crate::admission::webhook::expressions::{compile, environment};
use crate::cel::{Environment, Type};

const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
const ANNOTATIONS: usize = 20;
const LONGEST_ANNOTATION: usize = 5 << 10;
const MATCH_CONDITIONS: usize = 64;

/// Both kinds of webhook configurations.
#[derive(Debug, Clone, Copy)]
pub struct Webhooks;

/// Both kinds of policies.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    pub mutating: bool,
}

/// Both kinds of bindings.
#[derive(Debug, Clone, Copy)]
pub struct Binding {
    pub mutating: bool,
}

impl Strategy for Webhooks {
    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let mut seen = Vec::new();
        for (index, hook) in list(object, "webhooks").iter().enumerate() {
            let path = Path::new("webhooks").index(index);
            webhook(&mut checks, hook, &path);
            let name = text(hook, "name");
            if !name.is_empty() && seen.contains(&name) {
                checks.push(Error::duplicate(&path.child("name"), name));
            }
            seen.push(name);
        }
        checks.done()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

fn one_of(checks: &mut Checks, object: &Value, key: &str, path: &Path, allowed: &[&str]) {
    if let Some(value) = given(object, key).and_then(Value::as_str)
        && !allowed.contains(&value)
    {
        checks.push(Error::not_supported(&path.child(key), value, allowed));
    }
}

fn webhook(checks: &mut Checks, hook: &Value, path: &Path) {
    qualified(checks, text(hook, "name"), &path.child("name"));
    for (index, rule) in list(hook, "rules").iter().enumerate() {
        rule_with_operations(checks, rule, &path.child("rules").index(index));
    }
    one_of(checks, hook, "failurePolicy", path, &["Fail", "Ignore"]);
    one_of(checks, hook, "matchPolicy", path, &["Equivalent", "Exact"]);
    let effects = path.child("sideEffects");
    match given(hook, "sideEffects").and_then(Value::as_str) {
        None => checks.required(&effects, "must specify one of None, NoneOnDryRun"),
        Some(value) if !SIDE_EFFECTS.contains(&value) => {
            checks.push(Error::not_supported(&effects, value, &SIDE_EFFECTS));
        }
        Some(_) => {}
    }
    if let Some(seconds) = integer(hook, "timeoutSeconds").filter(|s| !(1..=30).contains(s)) {
        let why = "the timeout value must be between 1 and 30 seconds";
        checks.invalid(&path.child("timeoutSeconds"), seconds, why);
    }
    for selector in ["namespaceSelector", "objectSelector"] {
        if let Some(value) = given(hook, selector) {
            checks.label_selector(value, &path.child(selector));
        }
    }
    one_of(
        checks,
        hook,
        "reinvocationPolicy",
        path,
        &["IfNeeded", "Never"],
    );
    client_config(checks, &hook["clientConfig"], &path.child("clientConfig"));
    let environment = environment(false, true);
    match_conditions(checks, hook, &environment, &path.child("matchConditions"));
    review_versions(checks, hook, &path.child("admissionReviewVersions"));
}

/// A name of at least three segments.
fn qualified(checks: &mut Checks, name: &str, path: &Path) {
    if name.is_empty() {
        return checks.required(path, "");
    }
    checks.subdomain(path, name);
    if name.split('.').count() < 3 {
        checks.invalid(
            path,
            name,
            "should be a domain with at least three segments separated by dots",
        );
    }
}

fn client_config(checks: &mut Checks, config: &Value, path: &Path) {
    match (given(config, "url"), given(config, "service")) {
        (None, None) | (Some(_), Some(_)) => {
            checks.required(path, "exactly one of url or service is required");
        }
        (Some(url), None) => url_of(checks, url.as_str().unwrap_or_default(), &path.child("url")),
        (None, Some(service)) => {
            let path = path.child("service");
            for field in ["name", "namespace"] {
                if text(service, field).is_empty() {
                    checks.required(&path.child(field), "");
                }
            }
            if let Some(port) = integer(service, "port") {
                for why in names::port_number(port) {
                    let why = format!("port is not valid: {why}");
                    checks.invalid(&path.child("port"), port, &why);
                }
            }
            service_path(checks, text(service, "path"), &path.child("path"));
        }
    }
}

fn url_of(checks: &mut Checks, url: &str, path: &Path) {
    const FORM: &str = "; desired format: https://host[/path]";
    let Some((scheme, rest)) = url.split_once("://") else {
        checks.invalid(
            path,
            "",
            &format!("'https' is the only allowed URL scheme{FORM}"),
        );
        return checks.invalid(path, "", &format!("host must be specified{FORM}"));
    };
    if scheme != "https" {
        checks.invalid(
            path,
            scheme,
            &format!("'https' is the only allowed URL scheme{FORM}"),
        );
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.split('/').next().unwrap_or_default();
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() {
        checks.invalid(path, host, &format!("host must be specified{FORM}"));
    }
    for (part, what) in [
        (user, "user information is not permitted in the URL"),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ] {
        if !part.is_empty() {
            checks.invalid(path, part, what);
        }
    }
}

fn service_path(checks: &mut Checks, value: &str, path: &Path) {
    if matches!(value, "" | "/") {
        return;
    }
    if value == "//" {
        return checks.invalid(path, value, "segment[0] may not be empty");
    }
    if !value.starts_with('/') {
        checks.invalid(path, value, "must start with a '/'");
    }
    let inner = value.strip_prefix('/').unwrap_or(value);
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    for (index, segment) in inner.split('/').enumerate() {
        if segment.is_empty() {
            checks.invalid(path, value, &format!("segment[{index}] may not be empty"));
            continue;
        }
        for why in names::dns1123_subdomain(segment) {
            checks.invalid(path, value, &format!("segment[{index}]: {why}"));
        }
    }
}

fn review_versions(checks: &mut Checks, hook: &Value, path: &Path) {
    let versions: Vec<&str> = list(hook, "admissionReviewVersions")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    if versions.is_empty() {
        return checks.required(path, "must specify one of v1, v1beta1");
    }
    for (index, version) in versions.iter().enumerate() {
        if versions[..index].contains(version) {
            checks.invalid(&path.index(index), *version, "duplicate version");
            continue;
        }
        checks.each(&path.index(index), version, names::dns1035_label(version));
    }
    if !versions
        .iter()
        .any(|version| REVIEW_VERSIONS.contains(version))
    {
        checks.invalid(
            path,
            json!(versions),
            "must include at least one of v1, v1beta1",
        );
    }
}

fn texts<'a>(object: &'a Value, key: &str) -> Vec<&'a str> {
    list(object, key).iter().filter_map(Value::as_str).collect()
}

fn rule_with_operations(checks: &mut Checks, rule: &Value, path: &Path) {
    let operations = texts(rule, "operations");
    wildcard(checks, &operations, &path.child("operations"), "operations");
    for (index, operation) in operations.iter().enumerate() {
        if !OPERATIONS.contains(operation) {
            let path = path.child("operations").index(index);
            checks.push(Error::not_supported(&path, *operation, &OPERATIONS));
        }
    }
    wildcard(
        checks,
        &texts(rule, "apiGroups"),
        &path.child("apiGroups"),
        "API groups",
    );
    let versions = texts(rule, "apiVersions");
    wildcard(
        checks,
        &versions,
        &path.child("apiVersions"),
        "API versions",
    );
    for (index, version) in versions.iter().enumerate() {
        if version.is_empty() {
            checks.required(&path.child("apiVersions").index(index), "");
        }
    }
    resources(checks, &texts(rule, "resources"), &path.child("resources"));
    one_of(checks, rule, "scope", path, &["*", "Cluster", "Namespaced"]);
}

fn wildcard(checks: &mut Checks, values: &[&str], path: &Path, what: &str) {
    if values.is_empty() {
        return checks.required(path, "");
    }
    if values.len() > 1 && values.contains(&"*") {
        let why = format!("if '*' is present, must not specify other {what}");
        checks.invalid(path, json!(values), &why);
    }
}

fn resources(checks: &mut Checks, resources: &[&str], path: &Path) {
    if resources.is_empty() {
        return checks.required(path, "");
    }
    let (mut whole, mut subresources): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    let mut plain = false;
    for (index, resource) in resources.iter().enumerate() {
        if resource.is_empty() {
            checks.required(&path.index(index), "");
            continue;
        }
        let Some((name, subresource)) = resource.split_once('/') else {
            plain |= *resource != "*";
            continue;
        };
        if whole.contains(&name) {
            let why = format!("if '{name}/*' is present, must not specify {resource}");
            checks.invalid(&path.index(index), *resource, &why);
        }
        if subresources.contains(&subresource) {
            let why = format!("if '*/{subresource}' is present, must not specify {resource}");
            checks.invalid(&path.index(index), *resource, &why);
        }
        if subresource == "*" {
            whole.push(name);
        }
        if name == "*" {
            subresources.push(subresource);
        }
    }
    if resources.len() > 1 && resources.contains(&"*/*") {
        let why = "if '*/*' is present, must not specify other resources";
        checks.invalid(path, json!(resources), why);
    }
    if resources.contains(&"*") && plain {
        let why = "if '*' is present, must not specify other resources without subresources";
        checks.invalid(path, json!(resources), why);
    }
}

/// An expression that has to compile, to one of some types.
fn expression(
    checks: &mut Checks,
    source: &str,
    environment: &Environment,
    wanted: &[&str],
    path: &Path,
) {
    match compile(source, environment) {
        Err(why) => checks.invalid(path, source, &why),
        Ok(program) => {
            let found = program.output();
            let fits = matches!(found, Type::Dyn | Type::Parameter(_)) && wanted != ["bool"];
            if !fits && !wanted.iter().any(|wanted| *wanted == found.to_string()) {
                let why = match wanted {
                    [only] => format!("must evaluate to {only} but got {found}"),
                    several => format!(
                        "must evaluate to one of [{}] but got {found}",
                        several.join(" ")
                    ),
                };
                // What is only known when it runs may turn out well.
                if !matches!(found, Type::Dyn | Type::Parameter(_)) {
                    checks.invalid(path, source, &why);
                }
            }
        }
    }
}

fn match_conditions(checks: &mut Checks, object: &Value, environment: &Environment, path: &Path) {
    let conditions = list(object, "matchConditions");
    if conditions.len() > MATCH_CONDITIONS {
        checks.push(Error::too_many(path, conditions.len(), MATCH_CONDITIONS));
    }
    let mut seen = Vec::new();
    for (index, condition) in conditions.iter().enumerate() {
        let path = path.index(index);
        match text(condition, "expression").trim() {
            "" => checks.required(&path.child("expression"), ""),
            source => expression(
                checks,
                source,
                environment,
                &["bool"],
                &path.child("expression"),
            ),
        }
        let name = text(condition, "name");
        match name {
            "" => checks.required(&path.child("name"), ""),
            name => checks.qualified_name(&path.child("name"), name),
        }
        if !name.is_empty() && seen.contains(&name) {
            checks.push(Error::duplicate(&path.child("name"), name));
        }
        seen.push(name);
    }
}

fn match_resources(checks: &mut Checks, resources: &Value, path: &Path) {
    one_of(
        checks,
        resources,
        "matchPolicy",
        path,
        &["Equivalent", "Exact"],
    );
    for selector in ["namespaceSelector", "objectSelector"] {
        if let Some(value) = given(resources, selector) {
            checks.label_selector(value, &path.child(selector));
        }
    }
    for key in ["resourceRules", "excludeResourceRules"] {
        for (index, rule) in list(resources, key).iter().enumerate() {
            let path = path.child(key).index(index);
            let names_ = texts(rule, "resourceNames");
            for (index, name) in names_.iter().enumerate() {
                let path = path.child("resourceNames").index(index);
                checks.each(&path, name, names::path_segment(name));
                if names_[..index].contains(name) {
                    checks.push(Error::duplicate(&path, *name));
                }
            }
            rule_with_operations(checks, rule, &path);
        }
    }
}

impl Strategy for Policy {
    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        one_of(
            &mut checks,
            spec,
            "failurePolicy",
            &path,
            &["Fail", "Ignore"],
        );
        let kind = given(spec, "paramKind");
        if let Some(kind) = kind {
            param_kind(&mut checks, kind, &path.child("paramKind"));
        }
        let constraints = path.child("matchConstraints");
        match given(spec, "matchConstraints") {
            None => checks.required(&constraints, ""),
            Some(resources) => {
                match_resources(&mut checks, resources, &constraints);
                if list(resources, "resourceRules").is_empty() {
                    checks.required(&constraints.child("resourceRules"), "");
                }
                if self.mutating {
                    no_deletes(&mut checks, resources, &constraints);
                }
            }
        }
        let params = kind.is_some();
        let conditions = environment(params, true);
        match_conditions(
            &mut checks,
            spec,
            &conditions,
            &path.child("matchConditions"),
        );
        variables(
            &mut checks,
            spec,
            &path.child("variables"),
            params,
            self.mutating,
        );
        match self.mutating {
            true => mutations(&mut checks, spec, &path, params),
            false => validations(&mut checks, object, &path, params),
        }
        checks.done()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

fn no_deletes(checks: &mut Checks, resources: &Value, path: &Path) {
    for rule in list(resources, "resourceRules") {
        for operation in texts(rule, "operations") {
            if operation == "DELETE" {
                let path = path.child("resourceRules").child("operations");
                let allowed = ["*", "CONNECT", "CREATE", "UPDATE"];
                checks.push(Error::not_supported(&path, operation, &allowed));
            }
        }
    }
}

fn param_kind(checks: &mut Checks, kind: &Value, path: &Path) {
    let version = text(kind, "apiVersion");
    let at = path.child("apiVersion");
    match version.split('/').collect::<Vec<_>>().as_slice() {
        [""] => checks.required(&at, ""),
        [version] => checks.each(&at, version, names::dns1035_label(version)),
        [group, version] => {
            checks.each(&at, group, names::dns1123_subdomain(group));
            checks.each(&at, version, names::dns1035_label(version));
        }
        _ => checks.invalid(
            &at,
            version,
            &format!("unexpected GroupVersion string: {version}"),
        ),
    }
    let name = text(kind, "kind");
    if name.is_empty() {
        return checks.required(&path.child("kind"), "");
    }
    for why in names::dns1035_label(&name.to_lowercase()) {
        let why = format!("may have mixed case, but should otherwise match: {why}");
        checks.invalid(&path.child("kind"), name, &why);
    }
}

fn base(params: bool, authorizer: bool, mutating: bool) -> Environment {
    let mut environment = environment(params, authorizer);
    environment.builds_objects = mutating;
    environment
}

fn variables(checks: &mut Checks, spec: &Value, path: &Path, params: bool, mutating: bool) {
    let (_, compiled) = declare(spec, base(params, true, mutating));
    for (index, (name, compiled)) in compiled.iter().enumerate() {
        let path = path.index(index);
        let identifier = crate::cel::escape(name).is_some_and(|escaped| escaped == *name);
        if name.trim().is_empty() {
            checks.required(&path.child("name"), "name is not specified");
        } else if !identifier {
            checks.invalid(
                &path.child("name"),
                name.as_str(),
                "must be a valid CEL identifier",
            );
        }
        if compiled.expression.is_empty() {
            checks.required(&path.child("expression"), "expression is not specified");
        } else if let Err(why) = &compiled.program {
            checks.invalid(&path.child("expression"), compiled.expression.as_str(), why);
        }
    }
}

fn validations(checks: &mut Checks, object: &Value, path: &Path, params: bool) {
    const NOTHING: &str = "validations or auditAnnotations must contain at least one item";
    let spec = &object["spec"];
    let (all, annotations) = (list(spec, "validations"), list(spec, "auditAnnotations"));
    if all.is_empty() && annotations.is_empty() {
        checks.required(&path.child("validations"), NOTHING);
        checks.required(&path.child("auditAnnotations"), NOTHING);
        return;
    }
    let (environment, _) = declare(spec, base(params, true, false));
    let (messages, _) = declare(spec, base(params, false, false));
    for (index, validation) in all.iter().enumerate() {
        let path = path.child("validations").index(index);
        match text(validation, "expression") {
            source if source.trim().is_empty() => {
                checks.required(&path.child("expression"), "expression is not specified");
            }
            source => expression(
                checks,
                source,
                &environment,
                &["bool"],
                &path.child("expression"),
            ),
        }
        let at = path.child("messageExpression");
        match given(validation, "messageExpression").and_then(Value::as_str) {
            None | Some("") => {}
            Some(source) if source.trim().is_empty() => {
                checks.invalid(&at, source, "must be non-empty if specified");
            }
            Some(source) => expression(checks, source, &messages, &["string"], &at),
        }
        let message = text(validation, "message");
        if !message.is_empty() && message.trim().is_empty() {
            checks.invalid(
                &path.child("message"),
                message,
                "must be non-empty if specified",
            );
        } else if message.trim().contains(['\n', '\r']) {
            checks.invalid(
                &path.child("message"),
                message,
                "must not contain line breaks",
            );
        }
        let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
        one_of(checks, validation, "reason", &path, &reasons);
    }
    let path = path.child("auditAnnotations");
    if annotations.len() > ANNOTATIONS {
        let why = format!("must not have more than {ANNOTATIONS} auditAnnotations");
        checks.invalid(&path, json!(annotations), &why);
    }
    let mut seen = Vec::new();
    for (index, annotation) in annotations.iter().enumerate() {
        let path = path.index(index);
        let key = text(annotation, "key");
        let full = format!("{}/{key}", object::name(object));
        checks.each(&path.child("key"), &full, names::qualified_name(&full));
        let at = path.child("valueExpression");
        match text(annotation, "valueExpression").trim() {
            "" => checks.required(&at, "valueExpression is not specified"),
            source if source.len() > LONGEST_ANNOTATION => {
                checks.required(
                    &at,
                    &format!("must not exceed {LONGEST_ANNOTATION} bytes in length"),
                );
            }
            source => expression(checks, source, &environment, &["string", "null"], &at),
        }
        if seen.contains(&key) {
            checks.push(Error::duplicate(&path.child("key"), key));
        }
        seen.push(key);
    }
}

fn mutations(checks: &mut Checks, spec: &Value, path: &Path, params: bool) {
    let all = list(spec, "mutations");
    if all.is_empty() {
        checks.required(
            &path.child("mutations"),
            "mutations must contain at least one item",
        );
    }
    let (environment, _) = declare(spec, base(params, true, true));
    for (index, mutation) in all.iter().enumerate() {
        let path = path.child("mutations").index(index);
        let (own, other, wanted) = match text(mutation, "patchType") {
            "" => {
                checks.required(&path.child("patchType"), "");
                continue;
            }
            "JSONPatch" => ("jsonPatch", "applyConfiguration", "list(JSONPatch)"),
            "ApplyConfiguration" => ("applyConfiguration", "jsonPatch", "Object"),
            other => {
                let allowed = ["ApplyConfiguration", "JSONPatch"];
                checks.push(Error::not_supported(
                    &path.child("patchType"),
                    other,
                    &allowed,
                ));
                continue;
            }
        };
        let patch_type = text(mutation, "patchType");
        if given(mutation, other).is_some() {
            let why = format!("must not be specified when patchType is {patch_type}");
            checks.invalid(&path.child(other), format!("{{{other}}}"), &why);
        }
        let Some(inner) = given(mutation, own) else {
            let why = format!("must be specified when patchType is {patch_type}");
            checks.required(&path.child(own), &why);
            continue;
        };
        let at = path.child(own).child("expression");
        match text(inner, "expression").trim() {
            "" => checks.required(&at, ""),
            source => expression(checks, source, &environment, &[wanted], &at),
        }
    }
    match text(spec, "reinvocationPolicy") {
        "" => checks.required(&path.child("reinvocationPolicy"), ""),
        _ => one_of(
            checks,
            spec,
            "reinvocationPolicy",
            path,
            &["IfNeeded", "Never"],
        ),
    }
}

impl Strategy for Binding {
    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        match text(spec, "policyName") {
            "" => checks.required(&path.child("policyName"), ""),
            name => checks.subdomain(&path.child("policyName"), name),
        }
        if let Some(reference) = given(spec, "paramRef") {
            param_ref(&mut checks, reference, &path.child("paramRef"));
        }
        if let Some(resources) = given(spec, "matchResources") {
            match_resources(&mut checks, resources, &path.child("matchResources"));
        }
        if !self.mutating {
            actions(
                &mut checks,
                &texts(spec, "validationActions"),
                &path.child("validationActions"),
            );
        }
        checks.done()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

fn actions(checks: &mut Checks, actions: &[&str], path: &Path) {
    if actions.is_empty() {
        checks.required(path, "at least one validation action is required");
    }
    for (index, action) in actions.iter().enumerate() {
        if !["Audit", "Deny", "Warn"].contains(action) {
            let allowed = ["Audit", "Deny", "Warn"];
            checks.push(Error::not_supported(&path.index(index), *action, &allowed));
        }
        if actions[..index].contains(action) {
            checks.push(Error::duplicate(&path.index(index), *action));
        }
    }
    if actions.contains(&"Deny") && actions.contains(&"Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API \
                   response and headers serves no purpose)";
        checks.invalid(path, json!(actions), why);
    }
}

fn param_ref(checks: &mut Checks, reference: &Value, path: &Path) {
    let (name, selector) = (text(reference, "name"), given(reference, "selector"));
    if !name.is_empty() {
        checks.each(&path.child("name"), name, names::path_segment(name));
    }
    if let Some(selector) = selector {
        checks.label_selector(selector, &path.child("selector"));
        if !name.is_empty() {
            for field in ["name", "selector"] {
                checks.forbidden(
                    &path.child(field),
                    "name and selector are mutually exclusive",
                );
            }
        }
    } else if name.is_empty() {
        checks.required(path, "one of name or selector must be specified");
    }
    match text(reference, "parameterNotFoundAction") {
        "" => checks.required(&path.child("parameterNotFoundAction"), ""),
        "Allow" | "Deny" => {}
        other => {
            let path = path.child("parameterNotFoundAction");
            checks.push(Error::not_supported(&path, other, &["Deny", "Allow"]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(strategy: &dyn Strategy, object: &Value) -> Vec<String> {
        let resource = apimachinery::resource::builtin()[0].clone();
        let context = Context {
            resource: &resource,
            subresource: "",
            namespace: "",
            user: None,
        };
        strategy
            .validate(&context, object)
            .0
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    fn changed(mut object: Value, pointer: &str, value: Value) -> Value {
        *object.pointer_mut(pointer).unwrap() = value;
        object
    }

    #[test]
    fn webhooks() {
        let fine = json!({"webhooks": [{
            "name": "a.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None", "timeoutSeconds": 10,
            "clientConfig": {"url": "https://host/path"},
            "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}],
            "matchConditions": [{"name": "c", "expression": "object.metadata.name != 'x'"}],
        }]});
        assert_eq!(errors(&Webhooks, &fine), Vec::<String>::new());
        for (pointer, value, wanted) in [
            ("/webhooks/0/name", json!("a.b"), "at least three segments"),
            (
                "/webhooks/0/sideEffects",
                json!("Some"),
                "Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
            ),
            (
                "/webhooks/0/timeoutSeconds",
                json!(31),
                "must be between 1 and 30 seconds",
            ),
            (
                "/webhooks/0/clientConfig",
                json!({}),
                "exactly one of url or service is required",
            ),
            (
                "/webhooks/0/clientConfig/url",
                json!("http://h?q"),
                "'https' is the only allowed URL scheme",
            ),
            (
                "/webhooks/0/rules/0/operations",
                json!(["*", "CREATE"]),
                "must not specify other operations",
            ),
            (
                "/webhooks/0/rules/0/resources",
                json!(["*/*", "pods"]),
                "must not specify other resources",
            ),
            (
                "/webhooks/0/matchConditions/0/expression",
                json!("... [] bad expression"),
                "matchConditions[0].expression: Invalid value",
            ),
            (
                "/webhooks/0/matchConditions/0/expression",
                json!("1"),
                "must evaluate to bool but got int",
            ),
            (
                "/webhooks/0/admissionReviewVersions",
                json!(["v2"]),
                "must include at least one of v1, v1beta1",
            ),
        ] {
            let found = errors(&Webhooks, &changed(fine.clone(), pointer, value)).join("; ");
            assert!(found.contains(wanted), "{pointer}: {found}");
        }
    }

    #[test]
    fn policies() {
        let constraints = json!({"resourceRules": [
            {"operations": ["CREATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]}]});
        let policy = Policy { mutating: false };
        let fine = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": constraints,
            "variables": [{"name": "n", "expression": "object.spec.replicas"}],
            "validations": [{"expression": "variables.n > 1", "messageExpression": "'got ' + string(variables.n)"}]}});
        assert_eq!(errors(&policy, &fine), Vec::<String>::new());
        for (pointer, value, wanted) in [
            (
                "/spec/validations",
                json!([]),
                "validations or auditAnnotations must contain at least one item",
            ),
            (
                "/spec/validations/0/expression",
                json!("nothing > 1"),
                "undeclared reference to 'nothing'",
            ),
            (
                "/spec/validations/0/expression",
                json!("variables.other > 1"),
                "undefined field 'other'",
            ),
            (
                "/spec/validations/0/messageExpression",
                json!("1"),
                "must evaluate to string but got int",
            ),
            (
                "/spec/variables/0/name",
                json!("a-b"),
                "must be a valid CEL identifier",
            ),
            (
                "/spec/matchConstraints",
                json!(null),
                "spec.matchConstraints: Required value",
            ),
        ] {
            let found = errors(&policy, &changed(fine.clone(), pointer, value)).join("; ");
            assert!(found.contains(wanted), "{pointer}: {found}");
        }
        let mutating = Policy { mutating: true };
        let fine = json!({"spec": {"matchConstraints": constraints, "reinvocationPolicy": "Never", "mutations": [
            {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{spec: Object.spec{replicas: 3}}"}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'add', path: '/x', value: 1}]"}}]}});
        assert_eq!(errors(&mutating, &fine), Vec::<String>::new());
        let bad = changed(fine, "/spec/mutations/1/jsonPatch/expression", json!("'x'"));
        assert!(
            errors(&mutating, &bad)[0].contains("must evaluate to list(JSONPatch) but got string")
        );
    }

    #[test]
    fn bindings() {
        let binding = Binding { mutating: false };
        let fine = json!({"spec": {"policyName": "p", "validationActions": ["Deny"],
            "paramRef": {"name": "x", "parameterNotFoundAction": "Deny"}}});
        assert_eq!(errors(&binding, &fine), Vec::<String>::new());
        for (pointer, value, wanted) in [
            (
                "/spec/policyName",
                json!(""),
                "spec.policyName: Required value",
            ),
            (
                "/spec/validationActions",
                json!(["Deny", "Warn"]),
                "must not contain both Deny and Warn",
            ),
            (
                "/spec/validationActions",
                json!([]),
                "at least one validation action is required",
            ),
            (
                "/spec/paramRef",
                json!({"parameterNotFoundAction": "Deny"}),
                "one of name or selector must be specified",
            ),
        ] {
            let found = errors(&binding, &changed(fine.clone(), pointer, value)).join("; ");
            assert!(found.contains(wanted), "{pointer}: {found}");
        }
    }
}
