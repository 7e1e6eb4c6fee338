//! Small kinds: classes, leases, disruption budgets, and kinds whose only rules are about how they are updated.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{names, object};
use serde_json::{Value, json};

use super::check::{Checks, entries, flag, given, integer, list, list_mut, text};
use super::{Context, Strategy, resources, scheduling};

pub struct PriorityClass;
pub struct RuntimeClass;
pub struct Lease;
pub struct PodDisruptionBudget;
pub struct ServiceAccount;

const HIGHEST: i64 = 1_000_000_000;

impl Strategy for PriorityClass {
    fn has_generation(&self, _context: &Context<'_>) -> bool {
        true
    }

    /// It stays at what a create sets.
    fn is_new_generation(&self, _object: &Value, _old: &Value) -> bool {
        false
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        const PREFIX: &str = "system-";
        let mut checks = Checks::default();
        let (name, value) = (object::name(object), integer(object, "value").unwrap_or(0));
        if name.starts_with(PREFIX) {
            if let Err(why) = system_class(name, value, flag(object, "globalDefault")) {
                let why = format!(
                    "priority class names with '{PREFIX}' prefix are reserved for system use only. error: {why}"
                );
                checks.forbidden(&Path::new("metadata").child("name"), &why);
            }
        } else if value > HIGHEST {
            let why = format!("maximum allowed value of a user defined priority is {HIGHEST}");
            checks.forbidden(&Path::new("value"), &why);
        }
        if given(object, "preemptionPolicy").is_some() {
            let policy = text(object, "preemptionPolicy");
            let path = Path::new("preemptionPolicy");
            const POLICIES: [&str; 2] = ["PreemptLowerPriority", "Never"];
            checks.one_of(&path, policy, &POLICIES);
        }
        checks.done()
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        if integer(object, "value").unwrap_or(0) != integer(old, "value").unwrap_or(0) {
            checks.forbidden(&Path::new("value"), "may not be changed in an update.");
        }
        let field = "preemptionPolicy";
        checks.immutable(&Path::new(field), &object[field], &old[field]);
        checks.done()
    }
}

fn system_class(name: &str, value: i64, default: bool) -> Result<(), String> {
    let known = [
        ("system-cluster-critical", 2 * HIGHEST),
        ("system-node-critical", 2 * HIGHEST + 1000),
    ];
    let Some((_, right)) = known.into_iter().find(|(known, _)| *known == name) else {
        return Err(format!("{name} is not a known system priority class"));
    };
    if value != right {
        return Err(format!("value of {name} PriorityClass must be {right}"));
    }
    if default {
        return Err(format!(
            "globalDefault of {name} PriorityClass must be false"
        ));
    }
    Ok(())
}

impl Strategy for RuntimeClass {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let path = Path::new("handler");
        match text(object, "handler") {
            "" => checks.required(&path, ""),
            handler => checks.label(&path, handler),
        }
        if let Some(overhead) = given(object, "overhead") {
            let limits = json!({"limits": overhead["podFixed"]});
            resources::container(&mut checks, &limits, &Path::new("overhead"));
        }
        if let Some(rules) = given(object, "scheduling") {
            let path = Path::new("scheduling");
            checks.labels(rules, "nodeSelector", &path);
            let (tolerations, path) = (list(rules, "tolerations"), path.child("tolerations"));
            scheduling::tolerations(&mut checks, tolerations, &path);
            for (i, toleration) in tolerations.iter().enumerate() {
                let key = |t: &Value| {
                    ["key", "operator", "value", "effect"].map(|field| text(t, field).to_owned())
                };
                if tolerations[..i].iter().any(|t| key(t) == key(toleration)) {
                    checks.push(Error::duplicate(&path.index(i), toleration.clone()));
                }
            }
        }
        checks.done()
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        checks.immutable(&Path::new("handler"), &object["handler"], &old["handler"]);
        checks.done()
    }

    fn warnings(&self, _context: &Context<'_>, object: &Value) -> Vec<String> {
        let labels = entries(&object["scheduling"], "nodeSelector");
        labels
            .filter_map(|(name, _)| {
                let why = scheduling::deprecated_label(name)?;
                Some(format!("scheduling.nodeSelector: {why}"))
            })
            .collect()
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

impl Strategy for Lease {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        if let Some(seconds) = integer(spec, "leaseDurationSeconds").filter(|s| *s <= 0) {
            checks.invalid(
                &path.child("leaseDurationSeconds"),
                seconds,
                "must be greater than 0",
            );
        }
        checks.not_negative(spec, "leaseTransitions", &path);
        let strategy = text(spec, "strategy");
        if given(spec, "strategy").is_some() {
            // Kubernetes names the field twice here.
            lease_strategy(
                &mut checks,
                strategy,
                &path.child("strategy").child("strategy"),
            );
        }
        if !text(spec, "preferredHolder").is_empty() && strategy.is_empty() {
            let why = "may only be specified if `strategy` is defined";
            checks.forbidden(&path.child("preferredHolder"), why);
        }
        checks.done()
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

/// Kubernetes' own, or somebody's with a domain.
fn lease_strategy(checks: &mut Checks, strategy: &str, path: &Path) {
    let parts = strategy.split('/').count();
    if parts == 1 {
        if strategy != "OldestEmulationVersion" {
            checks.push(Error::not_supported(
                path,
                strategy,
                &["OldestEmulationVersion"],
            ));
        }
    } else {
        checks.each(path, strategy, names::qualified_name(strategy));
    }
}

impl Strategy for PodDisruptionBudget {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let fields = ["minAvailable", "maxUnavailable"];
        if fields.iter().all(|f| given(spec, f).is_some()) {
            let why = "minAvailable and maxUnavailable cannot be both set";
            checks.invalid(&path, spec.clone(), why);
        }
        for field in fields {
            if let Some(value) = given(spec, field) {
                checks.amount_or_percent(&path.child(field), value);
                checks.at_most_all(&path.child(field), value);
            }
        }
        checks.label_selector(&spec["selector"], &path.child("selector"));
        if given(spec, "unhealthyPodEvictionPolicy").is_some() {
            const POLICIES: [&str; 2] = ["AlwaysAllow", "IfHealthyBudget"];
            let policy = text(spec, "unhealthyPodEvictionPolicy");
            if !POLICIES.contains(&policy) {
                let path = path.child("unhealthyPodEvictionPolicy");
                checks.push(Error::not_supported(&path, policy, &POLICIES));
            }
        }
        checks.done()
    }

    fn validate_status_update(
        &self,
        _context: &Context<'_>,
        object: &Value,
        _old: &Value,
    ) -> ErrorList {
        let mut checks = Checks::default();
        let (status, path) = (&object["status"], Path::new("status"));
        checks.conditions(list(status, "conditions"), &path.child("conditions"));
        for field in [
            "disruptionsAllowed",
            "currentHealthy",
            "desiredHealthy",
            "expectedPods",
        ] {
            checks.not_negative(status, field, &path);
        }
        checks.done()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

impl Strategy for ServiceAccount {
    fn prepare_for_create(&self, _context: &Context<'_>, object: &mut Value) {
        names_only(object);
    }

    fn prepare_for_update(&self, _context: &Context<'_>, object: &mut Value, _old: &Value) {
        names_only(object);
    }
}

/// Of the secrets that an account lists, only the names count.
fn names_only(object: &mut Value) {
    for secret in list_mut(object, "secrets") {
        if let Some(secret) = secret.as_object_mut() {
            secret.retain(|field, _| field == "name");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::tests::refusals;

    #[test]
    fn small_kinds() {
        #[rustfmt::skip]
        let table: &[(&str, Value, &[&str])] = &[
            ("priorityclasses", json!({"metadata": {"name": "a"}, "value": 1}), &[]),
            ("priorityclasses", json!({"metadata": {"name": "a"}, "value": HIGHEST + 1}), &["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"]),
            ("priorityclasses", json!({"metadata": {"name": "system-x"}, "value": 1}), &["metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-x is not a known system priority class"]),
            ("runtimeclasses", json!({"handler": "runc"}), &[]),
            ("runtimeclasses", json!({"overhead": {"podFixed": {"gpu": "1"}}}), &["handler: Required value", "overhead.limits[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified", "overhead.limits[gpu]: Invalid value: \"gpu\": must be a standard resource for containers"]),
            ("leases", json!({"spec": {"leaseDurationSeconds": 0}}), &["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"]),
            ("leases", json!({"spec": {"preferredHolder": "me"}}), &["spec.preferredHolder: Forbidden: may only be specified if `strategy` is defined"]),
            ("poddisruptionbudgets", json!({"spec": {"minAvailable": "50%", "selector": {}}}), &[]),
            ("poddisruptionbudgets", json!({"spec": {"minAvailable": "150%"}}), &["spec.minAvailable: Invalid value: \"150%\": must not be greater than 100%"]),
            ("poddisruptionbudgets", json!({"spec": {"maxUnavailable": -1}}), &["spec.maxUnavailable: Invalid value: -1: must be greater than or equal to 0"]),
        ];
        for (plural, object, want) in table {
            assert_eq!(refusals(plural, object, None), *want, "{plural} {object}");
        }
        let mut account = json!({"secrets": [{"name": "a", "namespace": "b"}]});
        names_only(&mut account);
        assert_eq!(account, json!({"secrets": [{"name": "a"}]}));
        let (old, new) = (json!({"value": 1}), json!({"value": 2}));
        let found = refusals("priorityclasses", &new, Some(&old));
        assert_eq!(
            found,
            ["value: Forbidden: may not be changed in an update."]
        );
    }
}
