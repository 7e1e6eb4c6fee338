//! What objects use: the amounts that limits and quotas are about.

use std::collections::BTreeMap;

use apimachinery::quantity::{Format, Quantity};
use serde_json::Value;

use crate::strategy::check::{entries, given, list, text};

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// One of the two lists of a container's or pod's resources.
#[must_use]
pub fn amounts(owner: &Value, which: &str) -> Amounts {
    let Some(resources) = given(owner, "resources") else {
        return Amounts::new();
    };
    parse(resources, which)
}

/// A map of quantities; what is none is left out.
#[must_use]
pub fn parse(object: &Value, field: &str) -> Amounts {
    entries(object, field)
        .filter_map(|(name, amount)| {
            Some((name.to_owned(), Quantity::parse(amount.as_str()?).ok()?))
        })
        .collect()
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *to.entry(name.clone()).or_insert(Quantity::ZERO) += *amount;
    }
}

fn at_least(to: &mut Amounts, floor: &Amounts) {
    for (name, amount) in floor {
        let slot = to.entry(name.clone()).or_insert(*amount);
        *slot = (*slot).max(*amount);
    }
}

/// Requests or limits of a whole pod: its containers together, or its hungriest init container if that is more; sidecars
/// count along with what runs after them; what the pod itself says goes first; overhead on top.
#[must_use]
pub fn of_pod(spec: &Value, which: &str) -> Amounts {
    let mut total = Amounts::new();
    for container in list(spec, "containers") {
        add(&mut total, &amounts(container, which));
    }
    let (mut sidecars, mut init) = (Amounts::new(), Amounts::new());
    for container in list(spec, "initContainers") {
        let mut own = amounts(container, which);
        if text(container, "restartPolicy") == "Always" {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            own = sidecars.clone();
        } else {
            add(&mut own, &sidecars);
        }
        at_least(&mut init, &own);
    }
    at_least(&mut total, &init);
    for (name, amount) in amounts(spec, which) {
        if matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-") {
            total.insert(name, amount);
        }
    }
    for (name, overhead) in parse(spec, "overhead") {
        if which == "requests" || total.contains_key(&name) {
            *total.entry(name).or_insert(Quantity::ZERO) += overhead;
        }
    }
    total
}

/// `a=1,b=2`, as quota errors show amounts.
#[must_use]
pub fn show(amounts: &Amounts) -> String {
    let parts: Vec<String> = amounts
        .iter()
        .map(|(name, amount)| format!("{name}={amount}"))
        .collect();
    parts.join(",")
}

#[must_use]
pub fn one() -> Quantity {
    Quantity::new(1, Format::DecimalSi)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_add_up() {
        let c = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = c("300m");
        sidecar["restartPolicy"] = "Always".into();
        for (spec, want) in [
            (json!({"containers": [c("1"), c("500m")]}), "cpu=1500m"),
            (
                json!({"containers": [c("1")], "initContainers": [c("2")]}),
                "cpu=2",
            ),
            (
                json!({"containers": [c("1")], "initContainers": [sidecar, c("900m")]}),
                "cpu=1300m",
            ),
            (
                json!({"containers": [c("1")], "overhead": {"cpu": "100m", "memory": "1Mi"}}),
                "cpu=1100m,memory=1Mi",
            ),
            (
                json!({"containers": [c("1")], "resources": {"requests": {"cpu": "4"}}}),
                "cpu=4",
            ),
            (json!({"containers": [{}]}), ""),
        ] {
            assert_eq!(show(&of_pod(&spec, "requests")), want, "{spec}");
        }
    }
}
