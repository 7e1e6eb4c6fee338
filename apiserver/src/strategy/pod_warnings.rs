//! What is odd, deprecated or without effect in a pod or template that is valid nevertheless.

use std::collections::HashSet;

use apimachinery::field::Path;
use serde_json::Value;

use super::address;
use super::check::{entries, given, integer, list, text};
use super::pod_platform::visit;
use super::{resources, scheduling};

/// `GetWarningsForPodTemplate`; of a pod itself with the root as path.
#[must_use]
pub fn warnings(template: &Value, path: &Path) -> Vec<String> {
    let mut found = Warnings(Vec::new());
    let spec = &template["spec"];
    found.annotations(&template["metadata"], path);
    let path = path.child("spec");
    found.node_labels(spec, &path);
    found.volumes(spec, &path);
    found.duplicates(spec, "hostAliases", "ip", &path);
    found.duplicates(spec, "imagePullSecrets", "name", &path);
    for (i, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        if text(secret, "name").is_empty() {
            let path = path.child("imagePullSecrets").index(i).child("name");
            found.add(format!("{path}: invalid empty name \"\""));
        }
    }
    found.fractions(&spec["overhead"], &path.child("overhead"));
    found.containers(spec, &path);
    if integer(spec, "terminationGracePeriodSeconds").is_some_and(|s| s < 0) {
        let path = path.child("terminationGracePeriodSeconds");
        found.add(format!(
            "{path}: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    found.affinity(spec, &path.child("affinity"));
    for (i, server) in list(&spec["dnsConfig"], "nameservers").iter().enumerate() {
        let path = path.child("dnsConfig").child("nameservers").index(i);
        found.0.extend(address::ip_warning(
            &path,
            server.as_str().unwrap_or_default(),
        ));
    }
    for (i, alias) in list(spec, "hostAliases").iter().enumerate() {
        let path = path.child("hostAliases").index(i).child("ip");
        found
            .0
            .extend(address::ip_warning(&path, text(alias, "ip")));
    }
    found.0
}

struct Warnings(Vec<String>);

impl Warnings {
    fn add(&mut self, warning: String) {
        self.0.push(warning);
    }

    fn annotations(&mut self, metadata: &Value, path: &Path) {
        let path = path.child("metadata").child("annotations");
        for (key, why) in [
            (
                "scheduler.alpha.kubernetes.io/critical-pod",
                "non-functional in v1.16+; use the \"priorityClassName\" field instead",
            ),
            (
                "security.alpha.kubernetes.io/sysctls",
                "non-functional in v1.11+; use the \"sysctls\" field instead",
            ),
            (
                "security.alpha.kubernetes.io/unsafe-sysctls",
                "non-functional in v1.11+; use the \"sysctls\" field instead",
            ),
        ] {
            if metadata["annotations"].get(key).is_some() {
                self.add(format!("{}: {why}", path.key(key)));
            }
        }
    }

    fn node_labels(&mut self, spec: &Value, path: &Path) {
        for (label, _) in entries(spec, "nodeSelector") {
            if let Some(why) = scheduling::deprecated_label(label) {
                self.add(format!("{}: {why}", path.child("nodeSelector").key(label)));
            }
        }
        let affinity = &spec["affinity"]["nodeAffinity"];
        let at = path.child("affinity").child("nodeAffinity");
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        let terms = list(&affinity[required], "nodeSelectorTerms");
        for (i, term) in terms.iter().enumerate() {
            self.term(
                term,
                &at.child(required).child("nodeSelectorTerms").index(i),
            );
        }
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        for (i, term) in list(affinity, preferred).iter().enumerate() {
            self.term(
                &term["preference"],
                &at.child(preferred).index(i).child("preference"),
            );
        }
        for (i, constraint) in list(spec, "topologySpreadConstraints").iter().enumerate() {
            let path = path.child("topologySpreadConstraints").index(i);
            let key = text(constraint, "topologyKey");
            if let Some(why) = scheduling::deprecated_label(key) {
                self.add(format!("{}: {key} is {why}", path.child("topologyKey")));
            }
            if given(constraint, "labelSelector").is_none() {
                let path = path.child("labelSelector");
                self.add(format!(
                    "{path}: a null labelSelector results in matching no pod"
                ));
            }
        }
    }

    fn term(&mut self, term: &Value, path: &Path) {
        for (i, expression) in list(term, "matchExpressions").iter().enumerate() {
            let key = text(expression, "key");
            if let Some(why) = scheduling::deprecated_label(key) {
                let path = path.child("matchExpressions").index(i).child("key");
                self.add(format!("{path}: {key} is {why}"));
            }
        }
    }

    fn volumes(&mut self, spec: &Value, path: &Path) {
        for (i, volume) in list(spec, "volumes").iter().enumerate() {
            let path = path.child("volumes").index(i);
            for (field, shown, why) in [
                (
                    "photonPersistentDisk",
                    "photonPersistentDisk",
                    "deprecated in v1.11, non-functional in v1.16+",
                ),
                (
                    "gitRepo",
                    "gitRepo",
                    "deprecated in v1.11, and disabled by default in v1.33+",
                ),
                (
                    "scaleIO",
                    "scaleIO",
                    "deprecated in v1.16, non-functional in v1.22+",
                ),
                (
                    "flocker",
                    "flocker",
                    "deprecated in v1.22, non-functional in v1.25+",
                ),
                (
                    "storageos",
                    "storageOS",
                    "deprecated in v1.22, non-functional in v1.25+",
                ),
                (
                    "quobyte",
                    "quobyte",
                    "deprecated in v1.22, non-functional in v1.25+",
                ),
                (
                    "glusterfs",
                    "glusterfs",
                    "deprecated in v1.25, non-functional in v1.26+",
                ),
                (
                    "cephfs",
                    "cephfs",
                    "deprecated in v1.28, non-functional in v1.31+",
                ),
                (
                    "rbd",
                    "rbd",
                    "deprecated in v1.28, non-functional in v1.31+",
                ),
            ] {
                if given(volume, field).is_some() {
                    self.add(format!("{}: {why}", path.child(shown)));
                }
            }
        }
    }

    fn duplicates(&mut self, spec: &Value, field: &str, key: &str, path: &Path) {
        let mut seen = HashSet::new();
        for (i, item) in list(spec, field).iter().enumerate() {
            let value = text(item, key);
            if !seen.insert(value) {
                let path = path.child(field).index(i).child(key);
                self.add(format!("{path}: duplicate {key} {value:?}"));
            }
        }
    }

    /// Memory and storage come in whole bytes.
    fn fractions(&mut self, amounts: &Value, path: &Path) {
        for name in ["memory", "ephemeral-storage"] {
            let amount = resources::quantity(amounts.get(name));
            if let Some(amount) = amount.filter(|a| a.milli_value() % 1000 != 0) {
                let path = path.key(name);
                self.add(format!(
                    "{path}: fractional byte value \"{amount}\" is invalid, must be an integer"
                ));
            }
        }
    }

    fn containers(&mut self, spec: &Value, path: &Path) {
        let containers = visit(spec, path);
        for (container, path) in &containers {
            for field in ["limits", "requests"] {
                let path = path.child("resources").child(field);
                self.fractions(&container["resources"][field], &path);
            }
            self.variables(container, &path.child("env"));
        }
        let ports: Vec<(&Value, Path)> = containers
            .iter()
            .flat_map(|(container, path)| {
                let ports = list(container, "ports").iter().enumerate();
                ports.map(|(i, port)| (port, path.child("ports").index(i)))
            })
            .collect();
        self.ports(&ports);
        let mut names: Vec<(&str, &Path)> = Vec::new();
        for (port, path) in &ports {
            let name = text(port, "name");
            match names.iter().find(|(known, _)| *known == name) {
                _ if name.is_empty() => {}
                Some((_, other)) => self.add(format!(
                    "{path}: duplicate port name {name:?} with {other}, services and probes that select ports by name \
                     will use {other}"
                )),
                None => names.push((name, path)),
            }
        }
    }

    fn ports(&mut self, ports: &[(&Value, Path)]) {
        let number = |p: &Value, field: &str| integer(p, field).unwrap_or(0);
        for (i, (port, path)) in ports.iter().enumerate() {
            let (ip, host) = (text(port, "hostIP"), number(port, "hostPort"));
            for (other, known) in &ports[..i] {
                let inside = number(other, "containerPort") == number(port, "containerPort");
                if !inside || text(other, "protocol") != text(port, "protocol") {
                    continue;
                }
                let (other_ip, other_host) = (text(other, "hostIP"), number(other, "hostPort"));
                if ip == other_ip && host == other_host {
                    self.add(format!("{path}: duplicate port definition with {known}"));
                } else if host == 0 || other_host == 0 {
                    self.add(format!("{path}: overlapping port definition with {known}"));
                } else if host == other_host && ip.is_empty() != other_ip.is_empty() {
                    self.add(format!(
                        "{path}: dangerously ambiguous port definition with {known}"
                    ));
                }
            }
        }
    }

    fn variables(&mut self, container: &Value, path: &Path) {
        let variables = list(container, "env");
        let mut seen = HashSet::with_capacity(variables.len());
        for (i, variable) in variables.iter().enumerate() {
            let name = text(variable, "name");
            if seen.insert(name) {
                continue;
            }
            // One that builds on the value before it is meant.
            let reference = format!("$({name})");
            let value = text(variable, "value");
            let builds_on = value.contains(&reference) && value != reference;
            if given(variable, "valueFrom").is_some() || !builds_on {
                let path = path.index(i);
                self.add(format!(
                    "{path}: hides previous definition of {name:?}, which may be dropped when using apply"
                ));
            }
        }
    }

    fn affinity(&mut self, spec: &Value, path: &Path) {
        const WHY: &str = "a null labelSelector results in matching no pod";
        for kind in ["podAffinity", "podAntiAffinity"] {
            let (affinity, path) = (&spec["affinity"][kind], path.child(kind));
            let field = "requiredDuringSchedulingIgnoredDuringExecution";
            for (i, term) in list(affinity, field).iter().enumerate() {
                if given(term, "labelSelector").is_none() {
                    let path = path.child(field).index(i).child("labelSelector");
                    self.add(format!("{path}: {WHY}"));
                }
            }
            let field = "preferredDuringSchedulingIgnoredDuringExecution";
            for (i, term) in list(affinity, field).iter().enumerate() {
                if given(&term["podAffinityTerm"], "labelSelector").is_none() {
                    let path = path.child(field).index(i);
                    let path = path.child("podAffinityTerm").child("labelSelector");
                    self.add(format!("{path}: {WHY}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn oddities() {
        let with = |spec: Value| warnings(&json!({"spec": spec}), &Path::root());
        #[rustfmt::skip]
        let table: &[(Value, &[&str])] = &[
            (json!({"containers": [{"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"}]}]}), &[]),
            (json!({"containers": [{"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}]}), &["spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply"]),
            (json!({"nodeSelector": {"beta.kubernetes.io/os": "linux"}}), &["spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead"]),
            (json!({"containers": [{"ports": [{"containerPort": 80, "protocol": "TCP"}]}, {"ports": [{"containerPort": 80, "protocol": "TCP"}]}]}), &["spec.containers[1].ports[0]: duplicate port definition with spec.containers[0].ports[0]"]),
            (json!({"containers": [{"resources": {"limits": {"memory": "100m"}}}]}), &["spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer"]),
            (json!({"terminationGracePeriodSeconds": -1}), &["spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"]),
            (json!({"imagePullSecrets": [{"name": "a"}, {"name": "a"}]}), &["spec.imagePullSecrets[1].name: duplicate name \"a\""]),
            (json!({"volumes": [{"name": "v", "gitRepo": {"repository": "r"}}]}), &["spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+"]),
        ];
        for (spec, want) in table {
            assert_eq!(with(spec.clone()), *want, "{spec}");
        }
    }
}
