//! What the server serves, from its discovery: nothing about kinds is built in here.

use anyhow::Result;
use http::Method;
use serde_json::Value;

use super::session::Session;

/// One resource in one version.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kind {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    pub subresources: Vec<String>,
    /// Whether this is the version to use when none is asked for.
    pub preferred: bool,
}

impl Kind {
    pub fn api_version(&self) -> String {
        match self.group.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// `deployments.apps`, or `pods`.
    pub fn group_resource(&self) -> String {
        dotted(&self.plural, &self.group)
    }

    /// How messages name an object: `deployment.apps/web`.
    pub fn object(&self, name: &str) -> String {
        format!("{}/{name}", self.type_name())
    }

    /// How messages name the type: `deployment.apps`.
    pub fn type_name(&self) -> String {
        dotted(&self.kind.to_lowercase(), &self.group)
    }

    /// The collection, in a namespace or over all of them.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = match self.group.as_str() {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{}", self.plural),
            None => format!("{root}/{}", self.plural),
        }
    }

    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    fn is_called(&self, name: &str) -> bool {
        self.plural == name
            || self.singular == name
            || self.kind.to_lowercase() == name
            || self.short_names.iter().any(|short| short == name)
    }
}

fn dotted(name: &str, group: &str) -> String {
    if group.is_empty() {
        name.to_owned()
    } else {
        format!("{name}.{group}")
    }
}

#[derive(Debug, Default)]
pub struct Kinds(pub Vec<Kind>);

const AGGREGATED: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

impl Kinds {
    pub async fn discover(session: &Session) -> Result<Self> {
        let mut all = Vec::new();
        for root in ["/api", "/apis"] {
            let answer = session.json_as(Method::GET, root, AGGREGATED, None).await?;
            if answer["kind"] == "APIGroupDiscoveryList" {
                all.extend(aggregated(&answer));
                continue;
            }
            for (group, version, preferred) in group_versions(&answer) {
                let path = if group.is_empty() {
                    format!("/api/{version}")
                } else {
                    format!("/apis/{group}/{version}")
                };
                // A group whose server is away hides only itself.
                if let Ok(list) = session.get(&path).await {
                    all.extend(resources(&list, &group, &version, preferred));
                }
            }
        }
        Ok(Self(all))
    }

    /// Finds `pods`, `po`, `Pod`, `deployments.apps`, `deployments.v1.apps`.
    pub fn find(&self, name: &str) -> Option<&Kind> {
        let name = name.to_lowercase();
        let preferred = || self.0.iter().filter(|kind| kind.preferred);
        if let Some(found) = preferred().find(|kind| kind.is_called(&name)) {
            return Some(found);
        }
        let (resource, rest) = name.split_once('.')?;
        preferred()
            .find(|kind| kind.group == rest && kind.is_called(resource))
            .or_else(|| {
                let (version, group) = rest.split_once('.').unwrap_or((rest, ""));
                self.0
                    .iter()
                    .find(|k| k.version == version && k.group == group && k.is_called(resource))
            })
    }

    /// Finds the resource of a manifest.
    pub fn of(&self, api_version: &str, kind: &str) -> Option<&Kind> {
        self.0
            .iter()
            .find(|k| k.kind == kind && k.api_version() == api_version)
    }

    /// The members of a category such as `all`.
    pub fn category(&self, name: &str) -> Vec<Kind> {
        let members = self
            .0
            .iter()
            .filter(|k| k.preferred && k.categories.iter().any(|c| c == name));
        members.cloned().collect()
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn aggregated(answer: &Value) -> Vec<Kind> {
    let mut all = Vec::new();
    for group in items(&answer["items"]) {
        for (at, version) in items(&group["versions"]).enumerate() {
            for resource in items(&version["resources"]) {
                let plural = text(&resource["resource"]);
                // A resource that only an older version has is preferred there.
                let group = text(&group["metadata"]["name"]);
                let preferred = at == 0
                    || !all
                        .iter()
                        .any(|k: &Kind| k.group == group && k.plural == plural);
                all.push(Kind {
                    group,
                    version: text(&version["version"]),
                    plural,
                    singular: text(&resource["singularResource"]),
                    kind: text(&resource["responseKind"]["kind"]),
                    short_names: texts(&resource["shortNames"]),
                    categories: texts(&resource["categories"]),
                    namespaced: resource["scope"] == "Namespaced",
                    verbs: texts(&resource["verbs"]),
                    subresources: items(&resource["subresources"])
                        .map(|s| text(&s["subresource"]))
                        .collect(),
                    preferred,
                });
            }
        }
    }
    all
}

/// From the older documents: an APIVersions or an APIGroupList.
fn group_versions(answer: &Value) -> Vec<(String, String, bool)> {
    if answer["kind"] == "APIVersions" {
        return texts(&answer["versions"])
            .into_iter()
            .map(|v| (String::new(), v, true))
            .collect();
    }
    let mut all = Vec::new();
    for group in items(&answer["groups"]) {
        for version in items(&group["versions"]) {
            let preferred = group["preferredVersion"]["version"] == version["version"];
            all.push((text(&group["name"]), text(&version["version"]), preferred));
        }
    }
    all
}

fn resources(list: &Value, group: &str, version: &str, preferred: bool) -> Vec<Kind> {
    let entries: Vec<&Value> = items(&list["resources"]).collect();
    let names: Vec<String> = entries.iter().map(|r| text(&r["name"])).collect();
    let whole = entries.iter().filter(|r| !text(&r["name"]).contains('/'));
    let kinds = whole.map(|r| {
        let plural = text(&r["name"]);
        let below = format!("{plural}/");
        Kind {
            group: group.to_owned(),
            version: version.to_owned(),
            singular: text(&r["singularName"]),
            kind: text(&r["kind"]),
            short_names: texts(&r["shortNames"]),
            categories: texts(&r["categories"]),
            namespaced: r["namespaced"] == true,
            verbs: texts(&r["verbs"]),
            subresources: names
                .iter()
                .filter_map(|n| n.strip_prefix(&below))
                .map(str::to_owned)
                .collect(),
            preferred,
            plural,
        }
    });
    kinds.collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    pub fn kinds() -> Kinds {
        let resource = |plural: &str,
                        singular: &str,
                        kind: &str,
                        short: &[&str],
                        namespaced: bool| {
            json!({
                "resource": plural, "singularResource": singular, "responseKind": {"kind": kind}, "shortNames": short,
                "scope": if namespaced { "Namespaced" } else { "Cluster" }, "verbs": ["get", "list"], "categories": ["all"],
            })
        };
        let group =
            |name: &str, versions: Value| json!({"metadata": {"name": name}, "versions": versions});
        Kinds(aggregated(&json!({"items": [
            group("", json!([{"version": "v1", "resources": [
                resource("pods", "pod", "Pod", &["po"], true),
                resource("nodes", "node", "Node", &["no"], false),
                resource("events", "event", "Event", &["ev"], true),
            ]}])),
            group("apps", json!([{"version": "v1", "resources": [resource("deployments", "deployment", "Deployment", &["deploy"], true)]}])),
            group("events.k8s.io", json!([{"version": "v1", "resources": [resource("events", "event", "Event", &["ev"], true)]}])),
            group("x.io", json!([
                {"version": "v2", "resources": [resource("foos", "foo", "Foo", &[], true)]},
                {"version": "v1", "resources": [resource("foos", "foo", "Foo", &[], true), resource("bars", "bar", "Bar", &[], true)]},
            ])),
        ]})))
    }

    #[test]
    fn names() {
        let kinds = kinds();
        let find = |name: &str| {
            kinds
                .find(name)
                .map(|k| format!("{} {}", k.api_version(), k.plural))
        };
        for (name, expected) in [
            ("po", "v1 pods"),
            ("Pod", "v1 pods"),
            ("deploy", "apps/v1 deployments"),
            ("deployments.apps", "apps/v1 deployments"),
            ("deployment.v1.apps", "apps/v1 deployments"),
            ("ev", "v1 events"),
            ("events.events.k8s.io", "events.k8s.io/v1 events"),
            ("foo", "x.io/v2 foos"),
            ("foos.v1.x.io", "x.io/v1 foos"),
            ("bars", "x.io/v1 bars"),
        ] {
            assert_eq!(find(name).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(find("nope"), None);
        assert_eq!(find("pods.v2"), None);
    }

    #[test]
    fn paths() {
        let kinds = kinds();
        assert_eq!(
            kinds.find("deploy").unwrap().path(Some("a")),
            "/apis/apps/v1/namespaces/a/deployments"
        );
        assert_eq!(kinds.find("node").unwrap().path(Some("a")), "/api/v1/nodes");
        assert_eq!(
            kinds.find("deploy").unwrap().object("web"),
            "deployment.apps/web"
        );
        assert_eq!(kinds.category("all").len(), 7);
    }
}
