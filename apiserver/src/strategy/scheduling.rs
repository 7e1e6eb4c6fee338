//! Validation of where a pod may run: tolerations, affinity, topology spread.

use apimachinery::field::{Error, Path};
use apimachinery::names;
use serde_json::Value;

use super::check::{Checks, given, integer, list, text};

pub const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// What to say of a node label that has had its day.
#[must_use]
pub fn deprecated_label(name: &str) -> Option<&'static str> {
    Some(match name {
        "beta.kubernetes.io/arch" => "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
        "beta.kubernetes.io/os" => "deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "failure-domain.beta.kubernetes.io/region" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"
        }
        "failure-domain.beta.kubernetes.io/zone" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
        }
        "beta.kubernetes.io/instance-type" => {
            "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"
        }
        "app.kubernetes.io/created-by" => "deprecated since v1.9",
        "scheduler.alpha.kubernetes.io/preferAvoidPods" => {
            "deprecated since v1.22; use Taints and Tolerations instead"
        }
        "node-role.kubernetes.io/master" => "use \"node-role.kubernetes.io/control-plane\" instead",
        _ => return None,
    })
}

pub fn tolerations(checks: &mut Checks, tolerations: &[Value], path: &Path) {
    for (i, toleration) in tolerations.iter().enumerate() {
        let path = path.index(i);
        let (key, operator, value) = (
            text(toleration, "key"),
            text(toleration, "operator"),
            text(toleration, "value"),
        );
        let effect = text(toleration, "effect");
        if !key.is_empty() {
            checks.qualified_name(&path.child("key"), key);
        } else if operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            checks.invalid(&path.child("operator"), operator, why);
        }
        if given(toleration, "tolerationSeconds").is_some() && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            checks.invalid(&path.child("effect"), effect, why);
        }
        match operator {
            "" | "Equal" => {
                let messages = names::label_value(value);
                if !messages.is_empty() {
                    checks.invalid(&path.child("operator"), value, &messages.join(";"));
                }
            }
            "Exists" if !value.is_empty() => {
                checks.invalid(
                    &path.child("operator"),
                    value,
                    "value must be empty when `operator` is 'Exists'",
                );
            }
            "Exists" => {}
            other => checks.push(Error::not_supported(
                &path.child("operator"),
                other,
                &["Equal", "Exists"],
            )),
        }
        if !effect.is_empty() {
            checks.one_of(&path.child("effect"), effect, &EFFECTS);
        }
    }
}

pub fn affinity(checks: &mut Checks, affinity: &Value, path: &Path) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(node) = given(affinity, "nodeAffinity") {
        let path = path.child("nodeAffinity");
        if let Some(selector) = given(node, REQUIRED) {
            node_selector(checks, selector, &path.child(REQUIRED));
        }
        for (i, term) in list(node, PREFERRED).iter().enumerate() {
            let path = path.child(PREFERRED).index(i);
            weight(checks, term, &path);
            if let Some(preference) = given(term, "preference") {
                node_selector_term(checks, preference, false, &path.child("preference"));
            }
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = given(affinity, kind) else {
            continue;
        };
        let path = path.child(kind);
        for (i, term) in list(pods, REQUIRED).iter().enumerate() {
            pod_affinity_term(checks, term, &path.child(REQUIRED).index(i));
        }
        for (i, weighted) in list(pods, PREFERRED).iter().enumerate() {
            let path = path.child(PREFERRED).index(i);
            weight(checks, weighted, &path);
            if let Some(term) = given(weighted, "podAffinityTerm") {
                pod_affinity_term(checks, term, &path.child("podAffinityTerm"));
            }
        }
    }
}

fn weight(checks: &mut Checks, term: &Value, path: &Path) {
    let weight = integer(term, "weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        checks.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

/// A NodeSelector: terms that are or-ed, each a list of requirements.
pub fn node_selector(checks: &mut Checks, selector: &Value, path: &Path) {
    let path = path.child("nodeSelectorTerms");
    let terms = list(selector, "nodeSelectorTerms");
    if terms.is_empty() {
        checks.required(&path, "must have at least one node selector term");
    }
    for (i, term) in terms.iter().enumerate() {
        node_selector_term(checks, term, true, &path.index(i));
    }
}

fn node_selector_term(checks: &mut Checks, term: &Value, check_values: bool, path: &Path) {
    for (i, requirement) in list(term, "matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(i);
        let values = list(requirement, "values");
        let at = path.child("values");
        match text(requirement, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                checks.required(&at, "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                checks.forbidden(
                    &at,
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
            "Gt" | "Lt" if values.len() != 1 => {
                checks.required(
                    &at,
                    "must be specified single value when `operator` is 'Lt' or 'Gt'",
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => checks.invalid(
                &path.child("operator"),
                other,
                "not a valid selector operator",
            ),
        }
        checks.qualified_name(&path.child("key"), text(requirement, "key"));
        if check_values {
            for (i, value) in values.iter().enumerate() {
                let value = value.as_str().unwrap_or_default();
                checks.each(&at.index(i), value, names::label_value(value));
            }
        }
    }
    for (i, requirement) in list(term, "matchFields").iter().enumerate() {
        let path = path.child("matchFields").index(i);
        let values = list(requirement, "values");
        match text(requirement, "operator") {
            "In" | "NotIn" if values.len() == 1 => {}
            "In" | "NotIn" => {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                checks.required(&path.child("values"), why);
            }
            other => checks.invalid(
                &path.child("operator"),
                other,
                "not a valid selector operator",
            ),
        }
        match text(requirement, "key") {
            "metadata.name" => {
                for (i, value) in values.iter().enumerate() {
                    checks.subdomain(
                        &path.child("values").index(i),
                        value.as_str().unwrap_or_default(),
                    );
                }
            }
            other => checks.invalid(&path.child("key"), other, "not a valid field selector key"),
        }
    }
}

fn pod_affinity_term(checks: &mut Checks, term: &Value, path: &Path) {
    for selector in ["labelSelector", "namespaceSelector"] {
        if let Some(value) = given(term, selector) {
            checks.label_selector(value, &path.child(selector));
        }
    }
    for namespace in list(term, "namespaces") {
        checks.label(
            &path.child("namespace"),
            namespace.as_str().unwrap_or_default(),
        );
    }
    let key = text(term, "topologyKey");
    if key.is_empty() {
        checks.required(&path.child("topologyKey"), "can not be empty");
    }
    checks.qualified_name(&path.child("topologyKey"), key);
}

pub fn topology_spread(checks: &mut Checks, constraints: &[Value], path: &Path) {
    for (i, constraint) in constraints.iter().enumerate() {
        let path = path.index(i);
        let skew = integer(constraint, "maxSkew").unwrap_or(0);
        if skew <= 0 {
            checks.invalid(&path.child("maxSkew"), skew, super::check::POSITIVE);
        }
        let (key, action) = (
            text(constraint, "topologyKey"),
            text(constraint, "whenUnsatisfiable"),
        );
        if key.is_empty() {
            checks.required(&path.child("topologyKey"), "can not be empty");
        }
        const ACTIONS: [&str; 2] = ["DoNotSchedule", "ScheduleAnyway"];
        if !ACTIONS.contains(&action) {
            checks.push(Error::not_supported(
                &path.child("whenUnsatisfiable"),
                action,
                &ACTIONS,
            ));
        }
        let again =
            |c: &Value| text(c, "topologyKey") == key && text(c, "whenUnsatisfiable") == action;
        if constraints[i + 1..].iter().any(again) {
            checks.push(Error::duplicate(
                &path.child("{topologyKey, whenUnsatisfiable}"),
                format!("{{{key}, {action}}}"),
            ));
        }
        if let Some(domains) = integer(constraint, "minDomains") {
            let path = path.child("minDomains");
            if domains <= 0 {
                checks.invalid(&path, domains, super::check::POSITIVE);
            }
            if action != "DoNotSchedule" {
                let why = format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"
                );
                checks.invalid(&path, domains, &why);
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            let value = text(constraint, policy);
            if !value.is_empty() {
                checks.one_of(&path.child(policy), value, &["Honor", "Ignore"]);
            }
        }
        if let Some(selector) = given(constraint, "labelSelector") {
            checks.label_selector(selector, &path.child("labelSelector"));
        }
    }
}
