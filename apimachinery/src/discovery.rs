//! Discovery documents: which groups, versions and resources are served. Made from a list of resources, so that
//! built-in kinds, custom resources and aggregated APIs appear alike.

use std::cmp::Ordering;

use serde_json::{Value, json};

use crate::resource::{GroupVersionKind, Resource, Text};

/// Kubernetes' order of versions: `v2` after `v1`, both after `v1beta1`, that after `v1alpha1`, and what looks like
/// none of these before all, the other way round.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    match (stability(a), stability(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_), None) => Ordering::Greater,
        (None, Some(_)) => Ordering::Less,
        (None, None) => b.cmp(a),
    }
}

/// How stable a version is, its number, and the number of its alpha or beta.
fn stability(version: &str) -> Option<(u8, u64, u64)> {
    let rest = version.strip_prefix('v')?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let major = rest[..end].parse().ok()?;
    let number = |text: &str| text.parse().ok();
    match &rest[end..] {
        "" => Some((2, major, 0)),
        rest => match (rest.strip_prefix("beta"), rest.strip_prefix("alpha")) {
            (Some(minor), _) => Some((1, major, number(minor)?)),
            (_, Some(minor)) => Some((0, major, number(minor)?)),
            _ => None,
        },
    }
}

/// `/api`: the versions of the core group.
pub fn core_versions(server_address: &str) -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}]})
}

/// The groups in the order that they first appear in, each with its versions; the first version is the preferred one.
fn groups<'a>(resources: &'a [&'a Resource]) -> Vec<(&'a str, Vec<&'a str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for resource in resources {
        let at = groups
            .iter()
            .position(|(g, _)| *g == resource.group)
            .unwrap_or_else(|| {
                groups.push((&resource.group, Vec::new()));
                groups.len() - 1
            });
        let versions = &mut groups[at].1;
        if !versions.contains(&&*resource.version) {
            versions.push(&resource.version);
        }
    }
    groups
}

fn group_document(group: &str, versions: &[&str]) -> Value {
    let version = |v: &&str| json!({"groupVersion": format!("{group}/{v}"), "version": v});
    json!({
        "name": group,
        "versions": versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(version),
    })
}

/// `/apis`: all groups but the core one.
pub fn group_list(resources: &[&Resource]) -> Value {
    let groups: Vec<Value> = groups(resources)
        .iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| group_document(group, versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`; `None` if nothing of the group is served.
pub fn group(resources: &[&Resource], name: &str) -> Option<Value> {
    let groups = groups(resources);
    let (group, versions) = groups
        .iter()
        .find(|(group, _)| *group == name && !group.is_empty())?;
    let mut document = group_document(group, versions);
    document["kind"] = json!("APIGroup");
    document["apiVersion"] = json!("v1");
    Some(document)
}

/// `/api/v1` and `/apis/GROUP/VERSION`; `None` if nothing of it is served.
pub fn resource_list(resources: &[&Resource], group: &str, version: &str) -> Option<Value> {
    let mut served: Vec<&&Resource> = resources
        .iter()
        .filter(|r| r.group == group && r.version == version)
        .collect();
    let group_version = served.first()?.api_version();
    served.sort_by(|a, b| a.plural.cmp(&b.plural));
    let mut list = Vec::new();
    for r in served {
        let mut entry = json!({"name": r.plural, "singularName": r.singular, "namespaced": r.namespaced,
            "kind": r.kind, "verbs": r.verbs});
        add_names(&mut entry, r);
        list.push(entry);
        for sub in &r.subresources {
            let mut entry = json!({"name": format!("{}/{}", r.plural, sub.name), "singularName": "",
                "namespaced": r.namespaced, "kind": sub.kind.kind, "verbs": sub.verbs});
            if sub.kind.group_version() != r.group_version() {
                entry["group"] = json!(sub.kind.group);
                entry["version"] = json!(sub.kind.version);
            }
            list.push(entry);
        }
    }
    let kind = if group.is_empty() {
        json!({"kind": "APIResourceList"})
    } else {
        json!({"kind": "APIResourceList", "apiVersion": "v1"})
    };
    let mut document = kind;
    document["groupVersion"] = json!(group_version);
    document["resources"] = json!(list);
    Some(document)
}

fn add_names(entry: &mut Value, r: &Resource) {
    let mut add = |field: &str, list: &[Text]| {
        if !list.is_empty() {
            entry[field] = json!(list);
        }
    };
    add("shortNames", &r.short_names);
    add("categories", &r.categories);
}

/// Aggregated discovery (`apidiscovery.k8s.io/v2`): of the core group for `/api`, of the others for `/apis`.
pub fn aggregated(resources: &[&Resource], core: bool) -> Value {
    let items: Vec<Value> = groups(resources)
        .iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| aggregated_version(resources, group, version))
                .collect();
            let metadata = if core {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": group, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_version(resources: &[&Resource], group: &str, version: &str) -> Value {
    let kind =
        |k: &GroupVersionKind| json!({"group": k.group, "version": k.version, "kind": k.kind});
    let mut served: Vec<&&Resource> = resources
        .iter()
        .filter(|r| r.group == group && r.version == version)
        .collect();
    served.sort_by(|a, b| a.plural.cmp(&b.plural));
    let entries: Vec<Value> = served
        .iter()
        .map(|r| {
            let mut entry = json!({"resource": r.plural, "responseKind": kind(&r.group_version_kind()),
                "scope": if r.namespaced { "Namespaced" } else { "Cluster" }, "singularResource": r.singular,
                "verbs": r.verbs});
            add_names(&mut entry, r);
            let subs: Vec<Value> = r
                .subresources
                .iter()
                .map(|s| json!({"subresource": s.name, "responseKind": kind(&s.kind), "verbs": s.verbs}))
                .collect();
            if !subs.is_empty() {
                entry["subresources"] = json!(subs);
            }
            entry
        })
        .collect();
    json!({"version": version, "resources": entries, "freshness": "Current"})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::builtin;

    fn all() -> Vec<&'static Resource> {
        builtin().iter().map(|r| &**r).collect()
    }

    #[test]
    fn versions_are_ordered_by_stability() {
        let order = [
            "foo10",
            "foo1",
            "v1alpha2",
            "v10alpha1",
            "v3beta1",
            "v11beta2",
            "v1",
            "v2",
            "v10",
        ];
        let mut sorted = order;
        sorted.reverse();
        sorted.sort_by(|a, b| compare_versions(a, b));
        assert_eq!(sorted, order);
    }

    #[test]
    fn groups_and_versions() {
        let all = all();
        let list = group_list(&all);
        assert!(
            list["groups"]
                .as_array()
                .unwrap()
                .iter()
                .all(|g| g["name"] != "")
        );
        let autoscaling = group(&all, "autoscaling").unwrap();
        assert_eq!(
            autoscaling["preferredVersion"]["groupVersion"],
            "autoscaling/v2"
        );
        assert_eq!(autoscaling["versions"].as_array().unwrap().len(), 2);
        assert_eq!(group(&all, "nothing"), None);
        assert_eq!(group(&all, ""), None);
    }

    #[test]
    fn resources_of_a_version() {
        let all = all();
        let list = resource_list(&all, "apps", "v1").unwrap();
        let find = |name: &str| {
            list["resources"]
                .as_array()
                .unwrap()
                .iter()
                .find(|r| r["name"] == name)
                .cloned()
        };
        let scale = json!({"name": "deployments/scale", "singularName": "", "namespaced": true, "group": "autoscaling",
            "version": "v1", "kind": "Scale", "verbs": ["get", "patch", "update"]});
        assert_eq!(find("deployments/scale"), Some(scale));
        assert_eq!(
            find("deployments").unwrap()["shortNames"],
            json!(["deploy"])
        );
        assert_eq!(find("deployments/status").unwrap().get("group"), None);
        assert_eq!(resource_list(&all, "apps", "v9"), None);
    }

    #[test]
    fn aggregated_documents() {
        let all = all();
        let core = aggregated(&all, true);
        assert_eq!(core["items"].as_array().unwrap().len(), 1);
        let pods = core["items"][0]["versions"][0]["resources"]
            .as_array()
            .unwrap();
        let pods = pods.iter().find(|r| r["resource"] == "pods").unwrap();
        assert_eq!(
            pods["responseKind"],
            json!({"group": "", "version": "v1", "kind": "Pod"})
        );
        let apis = aggregated(&all, false);
        assert!(
            apis["items"]
                .as_array()
                .unwrap()
                .iter()
                .any(|g| g["metadata"]["name"] == "apps")
        );
    }
}
