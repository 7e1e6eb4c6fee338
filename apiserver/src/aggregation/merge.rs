//! Documents of several API servers made into one: pure functions over JSON.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::Routes;
use super::local::priority;

/// A group with its versions, the preferred one first.
type Group = (String, Vec<String>);

/// All groups in the order of discovery. `local` are the ones that this server serves itself.
fn groups(local: Vec<Group>, routes: &Routes) -> Vec<Group> {
    let mut groups = local;
    for (route, _) in routes.remotes() {
        let at = groups.iter().position(|(name, _)| *name == route.group);
        let at = at.unwrap_or_else(|| {
            groups.push((route.group.clone(), Vec::new()));
            groups.len() - 1
        });
        let versions = &mut groups[at].1;
        if !versions.contains(&route.version) {
            versions.push(route.version.clone());
        }
        let rank = |version: &String| {
            let known = routes
                .all
                .iter()
                .find(|r| r.group == route.group && r.version == *version);
            known.map_or(0, |r| r.version_priority)
        };
        versions.sort_by(|a, b| rank(b).cmp(&rank(a)).then_with(|| by_stability(a, b)));
    }
    let mut ranks: HashMap<&str, i64> = HashMap::new();
    for route in &routes.all {
        let rank = ranks.entry(&route.group).or_default();
        *rank = (*rank).max(route.group_priority);
    }
    let rank = |group: &str| {
        let registered = ranks.get(group).copied();
        registered.unwrap_or_else(|| priority(group, "").map_or(0, |(group, _)| group))
    };
    groups.sort_by_key(|(name, _)| std::cmp::Reverse(rank(name)));
    groups
}

/// Kubernetes' order of versions of equal priority: stable before beta before alpha, newer before older.
fn by_stability(a: &str, b: &str) -> Ordering {
    fn parts(version: &str) -> Option<(u8, u32, u32)> {
        let rest = version.strip_prefix('v')?;
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let major = rest[..end].parse().ok()?;
        let (level, minor) = match &rest[end..] {
            "" => (2, "0"),
            pre => match (pre.strip_prefix("beta"), pre.strip_prefix("alpha")) {
                (Some(minor), _) => (1, minor),
                (_, Some(minor)) => (0, minor),
                _ => return None,
            },
        };
        let minor = if minor.is_empty() {
            0
        } else {
            minor.parse().ok()?
        };
        Some((level, major, minor))
    }
    match (parts(a), parts(b)) {
        (Some(x), Some(y)) => y.cmp(&x),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

fn group_document((name, versions): &Group) -> Value {
    let version = |v: &String| json!({"groupVersion": format!("{name}/{v}"), "version": v});
    json!({
        "name": name,
        "versions": versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(version),
    })
}

fn local_groups(list: &Value) -> Vec<Group> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = list["groups"].as_array().into_iter().flatten();
    all.map(|group| {
        let versions = group["versions"].as_array().into_iter().flatten();
        (
            text(&group["name"]),
            versions.map(|v| text(&v["version"])).collect(),
        )
    })
    .collect()
}

/// `/apis` with the groups of other servers.
#[must_use]
pub fn group_list(local: &Value, routes: &Routes) -> Value {
    let merged = groups(local_groups(local), routes);
    let groups: Vec<Value> = merged.iter().map(group_document).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`, for a group that another server has a version of; `local` is the list of all local groups.
#[must_use]
pub fn group(local: &Value, name: &str, routes: &Routes) -> Option<Value> {
    if !routes.remotes().any(|(route, _)| route.group == name) {
        return None;
    }
    let merged = groups(local_groups(local), routes);
    let found = merged.iter().find(|(group, _)| group == name)?;
    let mut document = group_document(found);
    document["kind"] = "APIGroup".into();
    document["apiVersion"] = "v1".into();
    Some(document)
}

/// Aggregated discovery of `/apis` with the groups of other servers.
#[must_use]
pub fn aggregated(mut local: Value, routes: &Routes) -> Value {
    let items = local["items"].take();
    let mut entries: HashMap<(String, String), Value> = HashMap::new();
    let mut names: Vec<Group> = Vec::new();
    for item in items.as_array().into_iter().flatten() {
        let name = item["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let mut versions = Vec::new();
        for entry in item["versions"].as_array().into_iter().flatten() {
            let version = entry["version"].as_str().unwrap_or_default().to_owned();
            entries.insert((name.clone(), version.clone()), entry.clone());
            versions.push(version);
        }
        names.push((name, versions));
    }
    for (route, remote) in routes.remotes() {
        let mut entry = remote.documents().discovery.clone().unwrap_or_else(
            || json!({"version": route.version, "resources": [], "freshness": "Stale"}),
        );
        if !route.available {
            entry["freshness"] = "Stale".into();
        }
        entries.insert((route.group.clone(), route.version.clone()), entry);
    }
    let items: Vec<Value> = groups(names, routes)
        .into_iter()
        .map(|(name, versions)| {
            let versions: Vec<Value> = versions
                .into_iter()
                .filter_map(|version| entries.remove(&(name.clone(), version)))
                .collect();
            json!({"metadata": {"name": name, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    local["items"] = items.into();
    local
}

/// The entry of one group and version in an aggregated discovery document.
#[must_use]
pub fn version_in(document: &Value, group: &str, version: &str) -> Option<Value> {
    let items = document["items"].as_array()?;
    let item = items
        .iter()
        .find(|item| item["metadata"]["name"] == group)?;
    let versions = item["versions"].as_array()?;
    let mut entry = versions.iter().find(|v| v["version"] == version)?.clone();
    entry["freshness"] = "Current".into();
    Some(entry)
}

/// The same entry, made from an APIResourceList.
#[must_use]
pub fn from_resource_list(list: &Value, group: &str, version: &str) -> Value {
    let resources = || list["resources"].as_array().into_iter().flatten();
    let or = |value: &Value, other: &str| match value.as_str() {
        Some(text) if !text.is_empty() => text.to_owned(),
        _ => other.to_owned(),
    };
    let kind = |entry: &Value| {
        json!({
            "group": or(&entry["group"], group), "version": or(&entry["version"], version),
            "kind": entry["kind"],
        })
    };
    let mut found = Vec::new();
    for entry in resources().filter(|entry| !entry["name"].as_str().unwrap_or("/").contains('/')) {
        let name = entry["name"].as_str().unwrap_or_default();
        let scope = if entry["namespaced"] == true {
            "Namespaced"
        } else {
            "Cluster"
        };
        let mut resource = json!({
            "resource": name, "responseKind": kind(entry), "scope": scope,
            "singularResource": entry["singularName"], "verbs": entry["verbs"],
        });
        for field in ["shortNames", "categories"] {
            if entry[field].is_array() {
                resource[field] = entry[field].clone();
            }
        }
        let below: Vec<Value> = resources()
            .filter_map(|sub| {
                let (parent, subresource) = sub["name"].as_str()?.split_once('/')?;
                (parent == name).then(|| {
                    json!({"subresource": subresource, "responseKind": kind(sub), "verbs": sub["verbs"]})
                })
            })
            .collect();
        if !below.is_empty() {
            resource["subresources"] = below.into();
        }
        found.push(resource);
    }
    json!({"version": version, "resources": found, "freshness": "Current"})
}

/// The paths of an OpenAPI v2 document below one path, and the definitions that they use.
#[must_use]
pub fn part_of_v2(mut whole: Value, below: &str) -> Value {
    let mut paths = Map::new();
    if let Some(all) = whole["paths"].as_object_mut() {
        let wanted: Vec<String> = all
            .keys()
            .filter(|path| {
                path.strip_prefix(below)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
            .cloned()
            .collect();
        for path in wanted {
            if let Some(value) = all.remove(&path) {
                paths.insert(path, value);
            }
        }
    }
    let mut definitions = Map::new();
    let mut open = Vec::new();
    paths
        .values()
        .for_each(|value| references(value, &mut open));
    while let Some(name) = open.pop() {
        if definitions.contains_key(&name) {
            continue;
        }
        if let Some(definition) = whole["definitions"].get_mut(&name).map(Value::take) {
            references(&definition, &mut open);
            definitions.insert(name, definition);
        }
    }
    json!({"paths": paths, "definitions": definitions})
}

/// The names of all definitions that a document refers to.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if let Some(name) = map
                .get("$ref")
                .and_then(Value::as_str)
                .and_then(|r| r.strip_prefix("#/definitions/"))
            {
                found.push(name.to_owned());
            }
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

/// An OpenAPI v2 document with those of other servers. Where two define the same name, the first counts: shared
/// definitions (metadata, patches) are the same everywhere.
#[must_use]
pub fn openapi_v2(local: &str, routes: &Routes) -> String {
    let Ok(mut whole) = serde_json::from_str::<Value>(local) else {
        return local.to_owned();
    };
    for (_, remote) in routes.remotes() {
        let Some(part) = remote.documents().openapi_v2.clone() else {
            continue;
        };
        for section in ["paths", "definitions"] {
            if !whole[section].is_object() {
                whole[section] = json!({});
            }
            for (name, value) in part[section].as_object().into_iter().flatten() {
                if whole[section].get(name).is_none() {
                    whole[section][name] = value.clone();
                }
            }
        }
    }
    whole.to_string()
}

/// The index of OpenAPI v3 documents with those of other servers.
#[must_use]
pub fn openapi_v3_index(mut local: Value, routes: &Routes) -> Value {
    for (route, remote) in routes.remotes() {
        if let Some(url) = &remote.documents().openapi_v3 {
            let key = format!("apis/{}/{}", route.group, route.version);
            local["paths"][key] = json!({"serverRelativeURL": url});
        }
    }
    local
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregation::Route;
    use crate::aggregation::remote::Remote;
    use std::sync::Arc;

    fn route(group: &str, version: &str, priority: (i64, i64), remote: bool) -> Route {
        let spec =
            json!({"group": group, "version": version, "service": {"name": "s", "namespace": "n"}});
        Route {
            group: group.into(),
            version: version.into(),
            group_priority: priority.0,
            version_priority: priority.1,
            remote: remote.then(|| Arc::new(Remote::new("x", &spec, None))),
            available: true,
        }
    }

    #[test]
    fn other_servers_take_their_place_by_priority() {
        let routes = Routes {
            all: vec![
                route("apps", "v1", (17800, 15), false),
                route("batch", "v1", (17400, 15), false),
                route("high.example.com", "v1alpha1", (17600, 10), true),
                route("high.example.com", "v1", (17600, 10), true),
                route("batch", "v9", (100, 20), true),
            ],
        };
        let local = json!({"groups": [
            {"name": "apps", "versions": [{"version": "v1"}]},
            {"name": "batch", "versions": [{"version": "v1"}]},
        ]});
        let list = group_list(&local, &routes);
        let names: Vec<&str> = list["groups"]
            .as_array()
            .unwrap()
            .iter()
            .map(|g| g["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["apps", "high.example.com", "batch"]);
        let high = group(&local, "high.example.com", &routes).unwrap();
        assert_eq!(high["preferredVersion"]["version"], "v1");
        let batch = group(&local, "batch", &routes).unwrap();
        assert_eq!(batch["versions"][0]["version"], "v9");
        assert!(group(&local, "apps", &routes).is_none());
    }

    #[test]
    fn servers_that_have_not_answered_are_stale() {
        let routes = Routes {
            all: vec![route("a.example.com", "v1", (100, 10), true)],
        };
        let local =
            json!({"items": [{"metadata": {"name": "apps"}, "versions": [{"version": "v1"}]}]});
        let merged = aggregated(local, &routes);
        assert_eq!(merged["items"][0]["metadata"]["name"], "apps");
        assert_eq!(merged["items"][1]["versions"][0]["freshness"], "Stale");
    }

    #[test]
    fn resource_lists_become_discovery() {
        let list = json!({"resources": [
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get"], "shortNames": ["fl"]},
            {"name": "flunders/status", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
        ]});
        let entry = from_resource_list(&list, "g", "v1");
        let resource = &entry["resources"][0];
        assert_eq!(resource["scope"], "Namespaced");
        assert_eq!(
            resource["responseKind"],
            json!({"group": "g", "version": "v1", "kind": "Flunder"})
        );
        assert_eq!(resource["subresources"][0]["subresource"], "status");
        assert_eq!(entry["resources"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn openapi_parts_hold_what_they_use() {
        let whole = json!({
            "paths": {"/apis/g/v1/x": {"get": {"schema": {"$ref": "#/definitions/X"}}}, "/apis/g/v10/x": {}},
            "definitions": {"X": {"properties": {"y": {"$ref": "#/definitions/Y"}}}, "Y": {}, "Z": {}},
        });
        let part = part_of_v2(whole, "/apis/g/v1");
        assert_eq!(part["paths"].as_object().unwrap().len(), 1);
        assert_eq!(part["definitions"].as_object().unwrap().len(), 2);
    }

    #[test]
    fn versions_of_equal_priority() {
        let mut versions = ["v1alpha1", "v2", "x", "v1beta2", "v10", "v1"];
        versions.sort_by(|a, b| by_stability(a, b));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1alpha1", "x"]);
    }
}
