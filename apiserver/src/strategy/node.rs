//! Nodes: a kubelet may create one with its status; what tells nodes apart is set once.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use serde_json::{Value, json};

use super::address;
use super::check::{Checks, entries, given, list, set_default, text};
use super::{Context, Strategy, common, resources, scheduling};

/// The strategy of `nodes`.
pub struct Node;

impl Strategy for Node {
    fn default(&self, object: &mut Value) {
        let capacity = object["status"]["capacity"].clone();
        if capacity.is_object() {
            set_default(&mut object["status"], "allocatable", capacity);
        }
        let Some(spec) = object.get_mut("spec").filter(|s| s.is_object()) else {
            return;
        };
        // The older field holds the first of the newer one, and is believed where they differ.
        let first = list(spec, "podCIDRs").first().cloned().unwrap_or_default();
        let older = text(spec, "podCIDR").to_owned();
        if older.is_empty() && first.is_string() {
            spec["podCIDR"] = first;
        } else if !older.is_empty() && first != *older {
            spec["podCIDRs"] = json!([older]);
        }
    }

    /// All of a node may be set when it is created, its status too.
    fn prepare_for_create(&self, _context: &Context<'_>, object: &mut Value) {
        clear(object, "spec", "configSource");
        clear(object, "status", "config");
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        common::keep_status(context, object, old);
        if old["spec"]["configSource"].is_null() {
            clear(object, "spec", "configSource");
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        node(&mut checks, object);
        checks.done()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        node(&mut checks, object);
        checks.add(self.validate_status_update(context, object, old));
        checks.done()
    }

    fn validate_status_update(
        &self,
        _context: &Context<'_>,
        object: &Value,
        old: &Value,
    ) -> ErrorList {
        let mut checks = Checks::default();
        amounts(&mut checks, object);
        let addresses = list(&object["status"], "addresses");
        for (i, it) in addresses.iter().enumerate() {
            if addresses[..i].contains(it) {
                let path = Path::new("status").child("addresses").index(i);
                checks.push(Error::duplicate(&path, it.clone()));
            }
        }
        let (spec, before, path) = (&object["spec"], &old["spec"], Path::new("spec"));
        if !list(before, "podCIDRs").is_empty() && spec["podCIDRs"] != before["podCIDRs"] {
            let why = "node updates may not change podCIDR except from \"\" to valid";
            checks.forbidden(&path.child("podCIDRs"), why);
        }
        let provider = text(before, "providerID");
        if !provider.is_empty() && provider != text(spec, "providerID") {
            let why = "node updates may not change providerID except from \"\" to valid";
            checks.forbidden(&path.child("providerID"), why);
        }
        if text(spec, "externalID") != text(before, "externalID") {
            checks.forbidden(&path.child("externalID"), "may not be updated");
        }
        checks.done()
    }

    fn warnings(&self, context: &Context<'_>, object: &Value) -> Vec<String> {
        let mut warnings = Vec::new();
        if !context.subresource.is_empty() {
            return warnings;
        }
        let spec = &object["spec"];
        if given(spec, "configSource").is_some() {
            warnings.push("spec.configSource: the feature is removed".into());
        }
        if !text(spec, "externalID").is_empty() {
            let text = "spec.externalID: this field is deprecated, and is unused by Kubernetes";
            warnings.push(text.into());
        }
        for (i, cidr) in list(spec, "podCIDRs").iter().enumerate() {
            let path = Path::new("spec").child("podCIDRs").index(i);
            warnings.extend(address::cidr_warnings(
                &path,
                cidr.as_str().unwrap_or_default(),
            ));
        }
        warnings
    }
}

fn clear(object: &mut Value, parent: &str, field: &str) {
    if let Some(parent) = object.get_mut(parent).and_then(Value::as_object_mut) {
        parent.remove(field);
    }
}

fn node(checks: &mut Checks, object: &Value) {
    let spec = &object["spec"];
    // Kubernetes says metadata here.
    taints(
        checks,
        list(spec, "taints"),
        &Path::new("metadata").child("taints"),
    );
    amounts(checks, object);
    let (cidrs, path) = (list(spec, "podCIDRs"), Path::new("spec").child("podCIDRs"));
    for (i, cidr) in cidrs.iter().enumerate() {
        address::legacy_cidr(
            checks,
            &path.index(i),
            cidr.as_str().unwrap_or_default(),
            [],
        );
    }
    let six = cidrs
        .iter()
        .filter(|c| c.as_str().is_some_and(|c| c.contains(':')))
        .count();
    if cidrs.len() > 2 || (cidrs.len() == 2 && six != 1) {
        let why = "may specify no more than one CIDR for each IP family";
        checks.invalid(&path, spec["podCIDRs"].clone(), why);
    }
}

fn taints(checks: &mut Checks, taints: &[Value], path: &Path) {
    for (i, taint) in taints.iter().enumerate() {
        let path = path.index(i);
        checks.qualified_name(&path.child("key"), text(taint, "key"));
        let value = text(taint, "value");
        let wrong = names::label_value(value);
        if !wrong.is_empty() {
            checks.invalid(&path.child("value"), value, &wrong.join(";"));
        }
        let (effect, at) = (text(taint, "effect"), path.child("effect"));
        match effect {
            "" => checks.required(&at, ""),
            effect if !scheduling::EFFECTS.contains(&effect) => {
                checks.push(Error::not_supported(&at, effect, &scheduling::EFFECTS));
            }
            _ => {}
        }
        let taken = |t: &Value| text(t, "key") == text(taint, "key") && text(t, "effect") == effect;
        if taints[..i].iter().any(taken) {
            let mut error = Error::duplicate(&path, taint.clone());
            error.detail = "taints must be unique by key and effect pair".into();
            checks.push(error);
        }
    }
}

fn amounts(checks: &mut Checks, object: &Value) {
    for field in ["capacity", "allocatable"] {
        for (name, value) in entries(&object["status"], field) {
            let path = Path::new("status").child(field).child(name);
            if let Some(value) = resources::quantity(Some(value)) {
                resources::amount(checks, name, value, &path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::tests::refusals;

    #[test]
    fn nodes() {
        let mut node =
            json!({"spec": {"podCIDR": "10.1.0.0/24"}, "status": {"capacity": {"cpu": "2"}}});
        Node.default(&mut node);
        assert_eq!(node["spec"]["podCIDRs"], json!(["10.1.0.0/24"]));
        assert_eq!(node["status"]["allocatable"], json!({"cpu": "2"}));
        assert!(refusals("nodes", &node, None).is_empty());
        let mut moved = node.clone();
        moved["spec"] = json!({"podCIDR": "10.2.0.0/24", "podCIDRs": ["10.2.0.0/24"]});
        assert_eq!(
            refusals("nodes", &moved, Some(&node)),
            [
                "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"
            ]
        );
        let taint = json!({"key": "a", "effect": "NoSchedule"});
        let tainted = json!({"spec": {"taints": [taint, taint, {"key": "b", "effect": "Never"}]}});
        assert_eq!(
            refusals("nodes", &tainted, None),
            [
                "metadata.taints[1]: Duplicate value: {\"effect\":\"NoSchedule\",\"key\":\"a\"}: taints must be unique by key and effect pair",
                "metadata.taints[2].effect: Unsupported value: \"Never\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
            ]
        );
    }
}
