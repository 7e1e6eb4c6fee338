//! The default RBAC policy as objects, and how one that exists already is brought up to date.
//!
//! `policy.txt` holds the data. Reconciliation follows Kubernetes: what is missing is added, what an
//! administrator added is kept, and the annotation `rbac.authorization.kubernetes.io/autoupdate: "false"`
//! turns it off for one object.

use serde_json::{Map, Value, json};

use crate::authz::rules::{Rule, missing};

const POLICY: &str = include_str!("policy.txt");
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const AGGREGATE: &str = "rbac.authorization.k8s.io/aggregate-to-";
const API_VERSION: &str = "rbac.authorization.k8s.io/v1";
const CONTROLLER: &str = "system:controller:";

/// One object of the default policy: the plural name of its resource, and the object.
#[derive(Debug)]
pub struct PolicyObject {
    pub resource: &'static str,
    pub object: Value,
}

/// All default roles and bindings, roles first.
pub fn objects() -> Vec<PolicyObject> {
    let (mut roles, mut bindings) = (Vec::<PolicyObject>::new(), Vec::new());
    for line in POLICY
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if line.starts_with(' ') {
            if let Some(rules) = roles
                .last_mut()
                .and_then(|r| r.object["rules"].as_array_mut())
            {
                rules.push(rule(first, words));
            }
            continue;
        }
        let name = words.next().unwrap_or_default();
        match first {
            "clusterrole" => {
                roles.push(cluster_role(name, words));
                if let Some(account) = name.strip_prefix(CONTROLLER) {
                    let account = format!("sa:kube-system/{account}");
                    let subjects = [account.as_str(), "user:system:kube-controller-manager"];
                    bindings.push(binding("ClusterRoleBinding", name, subjects.into_iter()));
                }
            }
            "role" => roles.push(PolicyObject {
                resource: "roles",
                object: with_rules(object("Role", name)),
            }),
            "clusterbinding" => bindings.push(binding("ClusterRoleBinding", name, words)),
            _ => bindings.push(binding("RoleBinding", name, words)),
        }
    }
    roles.extend(bindings);
    roles
}

fn object(kind: &str, name: &str) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {AUTOUPDATE: "true"},
    });
    if let Some((namespace, name)) = name.split_once('/') {
        metadata["name"] = name.into();
        metadata["namespace"] = namespace.into();
    }
    json!({"apiVersion": API_VERSION, "kind": kind, "metadata": metadata})
}

fn with_rules(mut object: Value) -> Value {
    object["rules"] = json!([]);
    object
}

fn cluster_role<'a>(name: &str, words: impl Iterator<Item = &'a str>) -> PolicyObject {
    let mut role = with_rules(object("ClusterRole", name));
    for word in words {
        if let Some(into) = word.strip_prefix('+') {
            role["metadata"]["labels"][format!("{AGGREGATE}{into}")] = "true".into();
        } else if let Some(from) = word.strip_prefix('=') {
            role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {format!("{AGGREGATE}{from}"): "true"}}]});
        }
    }
    PolicyObject {
        resource: "clusterroles",
        object: role,
    }
}

fn rule<'a>(verbs: &str, mut words: impl Iterator<Item = &'a str>) -> Value {
    let list = |s: &str| -> Vec<String> {
        s.split(',')
            .map(|x| if x == "core" { "" } else { x }.to_owned())
            .collect()
    };
    if verbs == "events" {
        return json!({"verbs": ["create", "patch", "update"], "apiGroups": ["", "events.k8s.io"], "resources": ["events"]});
    }
    let verbs: Vec<&str> = verbs
        .split(',')
        .flat_map(|v| match v {
            "read" => vec!["get", "list", "watch"],
            "write" => vec!["create", "delete", "deletecollection", "patch", "update"],
            "all-crud" => {
                vec![
                    "get",
                    "list",
                    "watch",
                    "create",
                    "delete",
                    "deletecollection",
                    "patch",
                    "update",
                ]
            }
            verb => vec![verb],
        })
        .collect();
    let groups = words.next().unwrap_or_default();
    let targets = words.next().unwrap_or_default();
    if groups == "url" {
        return json!({"verbs": verbs, "nonResourceURLs": list(targets)});
    }
    let mut rule = json!({"verbs": verbs, "apiGroups": list(groups), "resources": list(targets)});
    if let Some(names) = words.next() {
        rule["resourceNames"] = json!(list(names));
    }
    rule
}

fn binding<'a>(kind: &str, name: &str, words: impl Iterator<Item = &'a str>) -> PolicyObject {
    let (role_kind, resource) = match kind {
        "RoleBinding" => ("Role", "rolebindings"),
        _ => ("ClusterRole", "clusterrolebindings"),
    };
    let mut role = name.split_once('/').map_or(name, |(_, name)| name);
    let mut subjects = Vec::new();
    for word in words {
        if let Some(named) = word.strip_prefix('@') {
            role = named;
            continue;
        }
        let Some((kind, name)) = word.split_once(':') else {
            continue;
        };
        subjects.push(match (kind, name.split_once('/')) {
            ("sa", Some((ns, name))) => {
                json!({"kind": "ServiceAccount", "namespace": ns, "name": name})
            }
            ("group", _) => {
                json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": name})
            }
            _ => json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}),
        });
    }
    let mut object = object(kind, name);
    object["roleRef"] =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role});
    if !subjects.is_empty() {
        object["subjects"] = subjects.into();
    }
    PolicyObject { resource, object }
}

/// How an existing object of the policy has to change.
#[derive(Debug, PartialEq)]
pub enum Reconcile {
    Keep,
    Update(Value),
    /// A binding's roleRef cannot change: it is deleted and made anew.
    Recreate,
}

/// What to do with `existing`, given what the policy wants.
pub fn reconcile(existing: &Value, wanted: &Value) -> Reconcile {
    if existing["metadata"]["annotations"][AUTOUPDATE] == "false" {
        return Reconcile::Keep;
    }
    if !wanted["roleRef"].is_null() && existing["roleRef"] != wanted["roleRef"] {
        return Reconcile::Recreate;
    }
    let mut object = existing.clone();
    for field in ["labels", "annotations"] {
        merge_missing(&mut object["metadata"][field], &wanted["metadata"][field]);
    }
    if wanted["aggregationRule"].is_object() {
        let selectors = &wanted["aggregationRule"]["clusterRoleSelectors"];
        add_missing(
            &mut object["aggregationRule"]["clusterRoleSelectors"],
            selectors,
        );
    } else if wanted["rules"].is_array() {
        add_missing_rules(&mut object["rules"], &wanted["rules"]);
    }
    if wanted["subjects"].is_array() {
        add_missing(&mut object["subjects"], &wanted["subjects"]);
    }
    if object == *existing {
        Reconcile::Keep
    } else {
        Reconcile::Update(object)
    }
}

fn merge_missing(have: &mut Value, wanted: &Value) {
    let Some(wanted) = wanted.as_object() else {
        return;
    };
    if !have.is_object() {
        *have = Value::Object(Map::new());
    }
    for (key, value) in wanted {
        if have[key].is_null() {
            have[key] = value.clone();
        }
    }
}

fn add_missing(have: &mut Value, wanted: &Value) {
    if !have.is_array() {
        *have = json!([]);
    }
    if let (Some(have), Some(wanted)) = (have.as_array_mut(), wanted.as_array()) {
        have.extend(
            wanted
                .iter()
                .filter(|w| !have.contains(w))
                .cloned()
                .collect::<Vec<_>>(),
        );
    }
}

fn add_missing_rules(have: &mut Value, wanted: &Value) {
    let parse = |v: &Value| serde_json::from_value::<Vec<Rule>>(v.clone()).unwrap_or_default();
    let (held, wanted) = (parse(have), parse(wanted));
    let missing = missing(held.iter(), &wanted);
    if missing.is_empty() {
        return;
    }
    if !have.is_array() {
        *have = json!([]);
    }
    if let Some(have) = have.as_array_mut() {
        have.extend(missing.iter().map(|rule| json!(rule)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(resource: &str, name: &str) -> Value {
        let found = objects()
            .into_iter()
            .find(|o| o.resource == resource && o.object["metadata"]["name"] == name);
        found
            .unwrap_or_else(|| panic!("no {resource} {name}"))
            .object
    }

    #[test]
    fn the_table_reads_as_kubernetes_policy() {
        assert_eq!(
            find("clusterroles", "cluster-admin")["rules"],
            json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}, {"verbs": ["*"], "nonResourceURLs": ["*"]}])
        );
        let edit = find("clusterroles", "edit");
        assert_eq!(
            edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"],
            "true"
        );
        let selector = &edit["aggregationRule"]["clusterRoleSelectors"][0]["matchLabels"];
        assert_eq!(
            selector["rbac.authorization.k8s.io/aggregate-to-edit"],
            "true"
        );
        let scheduler = find("clusterroles", "system:kube-scheduler");
        assert_eq!(
            scheduler["rules"][2]["resourceNames"],
            json!(["kube-scheduler"])
        );
        assert_eq!(
            find("clusterrolebindings", "system:controller:job-controller")["subjects"][0],
            json!({"kind": "ServiceAccount", "namespace": "kube-system", "name": "job-controller"})
        );
        let auth = find(
            "rolebindings",
            "system::extension-apiserver-authentication-reader",
        );
        assert_eq!(auth["metadata"]["namespace"], "kube-system");
        assert_eq!(
            auth["roleRef"]["name"],
            "extension-apiserver-authentication-reader"
        );
        assert_eq!(auth["subjects"][1]["name"], "system:kube-scheduler");
    }

    #[test]
    fn every_rule_is_whole_and_every_binding_has_its_role() {
        let all = objects();
        for o in &all {
            let name = &o.object["metadata"]["name"];
            for rule in o.object["rules"].as_array().into_iter().flatten() {
                let rule: Rule = serde_json::from_value(rule.clone()).unwrap();
                assert!(!rule.verbs.is_empty(), "{name}");
                assert!(
                    rule.resources.is_empty() != rule.non_resource_urls.is_empty(),
                    "{name}: {rule:?}"
                );
            }
            if o.object["roleRef"].is_object() {
                let role = &o.object["roleRef"]["name"];
                assert!(
                    all.iter()
                        .any(|r| r.object["rules"].is_array()
                            && &r.object["metadata"]["name"] == role),
                    "{name}"
                );
            }
        }
        assert!(all.len() > 120, "{}", all.len());
    }

    #[test]
    fn reconciling_adds_what_is_missing_and_keeps_what_was_added() {
        let wanted = find("clusterroles", "system:kube-dns");
        assert_eq!(reconcile(&wanted, &wanted), Reconcile::Keep);

        let mut off = wanted.clone();
        off["rules"] = json!([]);
        off["metadata"]["annotations"][AUTOUPDATE] = "false".into();
        assert_eq!(reconcile(&off, &wanted), Reconcile::Keep);

        let mut old = wanted.clone();
        old["rules"] =
            json!([{"verbs": ["list"], "apiGroups": [""], "resources": ["services", "pods"]}]);
        old["metadata"]["labels"] = json!({"mine": "1"});
        let Reconcile::Update(new) = reconcile(&old, &wanted) else {
            panic!("no update")
        };
        assert_eq!(
            new["metadata"]["labels"],
            json!({"mine": "1", "kubernetes.io/bootstrapping": "rbac-defaults"})
        );
        assert_eq!(
            new["rules"].as_array().map(Vec::len),
            Some(3),
            "{}",
            new["rules"]
        );
        assert_eq!(reconcile(&new, &wanted), Reconcile::Keep);

        let wanted = find("clusterrolebindings", "system:kube-dns");
        let mut moved = wanted.clone();
        moved["roleRef"]["name"] = "view".into();
        assert_eq!(reconcile(&moved, &wanted), Reconcile::Recreate);
        let mut fewer = wanted.clone();
        fewer["subjects"] = json!([{"kind": "User", "name": "me"}]);
        let Reconcile::Update(new) = reconcile(&fewer, &wanted) else {
            panic!("no update")
        };
        assert_eq!(new["subjects"].as_array().map(Vec::len), Some(2));
    }
}
