//! The FlowSchemas and PriorityLevelConfigurations of every cluster: the mandatory ones, which are kept as they are, and
//! the suggested ones, which administrators may change.

use apimachinery::object;
use apimachinery::status::Result;
use futures::future::join_all;
use serde_json::{Value, json};

use super::rules::{FlowSchemaSpec, LevelSpec};
use crate::registry::Registry;

pub const GROUP: &str = "flowcontrol.apiserver.k8s.io";
pub const LEVELS: &str = "prioritylevelconfigurations";
pub const SCHEMAS: &str = "flowschemas";
/// Whether a suggested object follows what this server suggests.
const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// Name, shares, lendable percent, and queues with hand size.
type Line = (&'static str, u32, u32, Option<(u32, u32)>);

const LIMITED: [Line; 7] = [
    ("catch-all", 5, 0, None),
    ("global-default", 20, 50, Some((128, 6))),
    ("leader-election", 10, 0, Some((16, 4))),
    ("node-high", 40, 25, Some((64, 6))),
    ("system", 30, 33, Some((64, 6))),
    ("workload-high", 40, 50, Some((128, 6))),
    ("workload-low", 100, 90, Some((128, 6))),
];

fn is_mandatory(name: &str) -> bool {
    matches!(name, "exempt" | "catch-all")
}

fn document(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": kind,
        "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}}, "spec": spec,
    })
}

fn level_objects() -> Vec<Value> {
    let exempt =
        json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let mut levels = vec![document("PriorityLevelConfiguration", "exempt", exempt)];
    for (name, shares, lendable, queues) in LIMITED {
        let response = match queues {
            None => json!({"type": "Reject"}),
            Some((queues, hand)) => json!({"type": "Queue", "queuing": {
                "queues": queues, "handSize": hand, "queueLengthLimit": 50}}),
        };
        let spec = json!({"type": "Limited", "limited": {
            "nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response}});
        levels.push(document("PriorityLevelConfiguration", name, spec));
    }
    levels
}

fn schema_objects() -> Vec<Value> {
    let user = |name: &str| json!({"kind": "User", "user": {"name": name}});
    let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
    let account = json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "kube-system", "name": "*"}});
    let resources = |verbs: &[&str], groups: &[&str], resources: &[&str], cluster: bool| {
        let mut rule = json!({"verbs": verbs, "apiGroups": groups, "resources": resources, "namespaces": ["*"]});
        if cluster {
            rule["clusterScope"] = true.into();
        }
        rule
    };
    let paths = |verbs: &[&str], urls: &[&str]| json!({"verbs": verbs, "nonResourceURLs": urls});
    let everything = |subjects: Value| {
        json!([{
            "subjects": subjects,
            "resourceRules": [resources(&["*"], &["*"], &["*"], true)],
            "nonResourceRules": [paths(&["*"], &["*"])],
        }])
    };
    let everybody = || {
        json!([
            group("system:unauthenticated"),
            group("system:authenticated")
        ])
    };
    let (by_user, by_namespace) = ("ByUser", "ByNamespace");
    let leases = |verbs: &[&str]| resources(verbs, &["coordination.k8s.io"], &["leases"], false);
    let probes = json!([{"subjects": everybody(),
        "nonResourceRules": [paths(&["get"], &["/healthz", "/readyz", "/livez"])]}]);
    let election = json!([{
        "subjects": [user("system:kube-controller-manager"), user("system:kube-scheduler"), account.clone()],
        "resourceRules": [leases(&["get", "create", "update"])]}]);
    let nodes = json!([{"subjects": [group("system:nodes")], "resourceRules": [
        resources(&["*"], &[""], &["nodes", "nodes/status"], true), leases(&["*"])]}]);
    let all: [(&str, &str, u32, &str, Value); 11] = [
        (
            "exempt",
            "exempt",
            1,
            "",
            everything(json!([group("system:masters")])),
        ),
        ("probes", "exempt", 2, "", probes),
        (
            "system-leader-election",
            "leader-election",
            100,
            by_user,
            election,
        ),
        ("system-node-high", "node-high", 400, by_user, nodes),
        (
            "system-nodes",
            "system",
            500,
            by_user,
            everything(json!([group("system:nodes")])),
        ),
        (
            "kube-controller-manager",
            "workload-high",
            800,
            by_namespace,
            everything(json!([user("system:kube-controller-manager")])),
        ),
        (
            "kube-scheduler",
            "workload-high",
            800,
            by_namespace,
            everything(json!([user("system:kube-scheduler")])),
        ),
        (
            "kube-system-service-accounts",
            "workload-high",
            900,
            by_namespace,
            everything(json!([account])),
        ),
        (
            "service-accounts",
            "workload-low",
            9000,
            by_user,
            everything(json!([group("system:serviceaccounts")])),
        ),
        (
            "global-default",
            "global-default",
            9900,
            by_user,
            everything(everybody()),
        ),
        (
            "catch-all",
            "catch-all",
            10_000,
            by_user,
            everything(everybody()),
        ),
    ];
    all.into_iter()
        .map(|(name, level, precedence, distinguisher, rules)| {
            let mut spec = json!({
                "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": rules,
            });
            if !distinguisher.is_empty() {
                spec["distinguisherMethod"] = json!({"type": distinguisher});
            }
            document("FlowSchema", name, spec)
        })
        .collect()
}

/// The objects as [`super::FlowControl`] takes them, without uids.
fn read<T: serde::de::DeserializeOwned>(objects: &[Value]) -> Vec<(String, String, T)> {
    objects
        .iter()
        .filter_map(|object| {
            let spec = serde_json::from_value(object["spec"].clone()).ok()?;
            Some((object::name(object).to_owned(), String::new(), spec))
        })
        .collect()
}

#[must_use]
pub fn levels() -> Vec<(String, String, LevelSpec)> {
    read(&level_objects())
}

#[must_use]
pub fn schemas() -> Vec<(String, String, FlowSchemaSpec)> {
    read(&schema_objects())
}

/// Makes the objects that are missing, and brings those up to date that follow the suggestions.
pub async fn ensure(registry: &Registry) -> Result<()> {
    let levels = level_objects().into_iter().map(|object| (LEVELS, object));
    let schemas = schema_objects().into_iter().map(|object| (SCHEMAS, object));
    let work = levels
        .chain(schemas)
        .map(|(plural, object)| one(registry, plural, object));
    join_all(work).await.into_iter().collect()
}

async fn one(registry: &Registry, plural: &str, wanted: Value) -> Result<()> {
    let name = object::name(&wanted).to_owned();
    let existing = match registry.get(GROUP, plural, "", &name).await {
        Ok(existing) => existing.value(),
        Err(error) if error.is_not_found() => {
            return match registry.create_as_server(GROUP, plural, wanted).await {
                Err(error) if !error.is_already_exists() => Err(error),
                _ => Ok(()),
            };
        }
        Err(error) => return Err(error),
    };
    if !follows(&name, &existing) || fits(&existing["spec"], &wanted["spec"]) {
        return Ok(());
    }
    let change = |object: &mut Value| {
        object["spec"] = wanted["spec"].clone();
        Ok(())
    };
    registry
        .update_as_server(GROUP, plural, ("", &name), change)
        .await
        .map(drop)
}

fn follows(name: &str, object: &Value) -> bool {
    is_mandatory(name) || object["metadata"]["annotations"][AUTO_UPDATE] == "true"
}

/// Whether everything wanted is there; defaults may have been added.
fn fits(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| found.get(key).is_some_and(|found| fits(found, value))),
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(f, w)| fits(f, w))
        }
        _ => found == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_defaults_can_be_read_and_fit_together() {
        let (levels, schemas) = (levels(), schemas());
        assert_eq!((levels.len(), schemas.len()), (8, 11));
        for (name, _, schema) in &schemas {
            let level = &schema.priority_level_configuration.name;
            assert!(levels.iter().any(|(known, ..)| known == level), "{name}");
        }
    }

    #[test]
    fn changed_objects_are_told_from_defaulted_ones() {
        let wanted = json!({"a": {"b": [1, {"c": 2}]}});
        assert!(fits(
            &json!({"a": {"b": [1, {"c": 2, "d": 3}]}, "e": 4}),
            &wanted
        ));
        assert!(!fits(&json!({"a": {"b": [1, {"c": 3}]}}), &wanted));
        assert!(!fits(&json!({"a": {"b": [1]}}), &wanted));
        let changed = json!({"metadata": {"annotations": {AUTO_UPDATE: "false"}}});
        assert!(!follows("system", &changed) && follows("catch-all", &changed));
    }
}
