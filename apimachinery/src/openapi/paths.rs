//! The paths of an OpenAPI document: which operations a resource has, on what kind, with which parameters.

use serde_json::{Map, Value, json};

use super::{V2_REF, V3_REF, definition_name};
use crate::resource::{GroupVersionKind, Resource};

const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
const CUSTOM_PATCHES: [&str; 3] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
];
const MEDIA: [&str; 2] = ["application/json", "application/yaml"];

#[derive(Clone, Copy, PartialEq)]
enum Version {
    V2,
    V3,
}

pub(super) fn v3(resources: &[&Resource]) -> Value {
    paths(resources, Version::V3)
}

pub(super) fn v2(resources: &[&Resource]) -> Value {
    paths(resources, Version::V2)
}

/// An operation's HTTP method, Kubernetes' action for it, and the verb that allows it.
type Operation = (&'static str, &'static str, &'static str);

const COLLECTION: &[Operation] = &[
    ("get", "list", "list"),
    ("post", "post", "create"),
    ("delete", "deletecollection", "deletecollection"),
];
const ITEM: &[Operation] = &[
    ("get", "get", "get"),
    ("put", "put", "update"),
    ("patch", "patch", "patch"),
    ("delete", "delete", "delete"),
];
const SUBRESOURCE: &[Operation] = &[
    ("get", "get", "get"),
    ("post", "post", "create"),
    ("put", "put", "update"),
    ("patch", "patch", "patch"),
    ("delete", "delete", "delete"),
];
/// Subresources that connect rather than hold an object.
const CONNECT: [&str; 4] = ["attach", "exec", "portforward", "proxy"];

fn paths(resources: &[&Resource], version: Version) -> Value {
    let mut paths = Map::new();
    for r in resources {
        let root = match r.group.is_empty() {
            true => format!("/api/{}", r.version),
            false => format!("/apis/{}/{}", r.group, r.version),
        };
        let collection = match r.namespaced {
            true => format!("{root}/namespaces/{{namespace}}/{}", r.plural),
            false => format!("{root}/{}", r.plural),
        };
        let kind = r.group_version_kind();
        let builder = Builder {
            resource: r,
            version,
        };
        let mut add = |path: String,
                       operations: &[Operation],
                       kind: &GroupVersionKind,
                       verbs: &[crate::resource::Text],
                       sub: &str| {
            let item = builder.path(&path, operations, kind, verbs, sub);
            if item.len() > 1 {
                paths.insert(path, Value::Object(item));
            }
        };
        add(collection.clone(), COLLECTION, &kind, &r.verbs, "");
        if r.namespaced {
            add(
                format!("{root}/{}", r.plural),
                &COLLECTION[..1],
                &kind,
                &r.verbs,
                "",
            );
        }
        add(format!("{collection}/{{name}}"), ITEM, &kind, &r.verbs, "");
        for sub in &r.subresources {
            add(
                format!("{collection}/{{name}}/{}", sub.name),
                SUBRESOURCE,
                &sub.kind,
                &sub.verbs,
                &sub.name,
            );
        }
    }
    Value::Object(paths)
}

struct Builder<'a> {
    resource: &'a Resource,
    version: Version,
}

impl Builder<'_> {
    fn path(
        &self,
        path: &str,
        operations: &[Operation],
        kind: &GroupVersionKind,
        verbs: &[crate::resource::Text],
        sub: &str,
    ) -> Map<String, Value> {
        let mut item = Map::new();
        for (method, action, verb) in operations {
            if verbs.iter().any(|v| v == verb) {
                let connect = CONNECT.contains(&sub);
                let action = if connect { "connect" } else { action };
                item.insert(
                    (*method).to_owned(),
                    self.operation(path, action, kind, sub),
                );
            }
        }
        let mut parameters = Vec::new();
        if path.contains("{name}") {
            parameters.push(self.parameter(
                "path",
                "name",
                "string",
                &format!("name of the {}", self.resource.kind),
            ));
        }
        if path.contains("{namespace}") {
            let what = "object name and auth scope, such as for teams and projects";
            parameters.push(self.parameter("path", "namespace", "string", what));
        }
        parameters.push(self.parameter(
            "query",
            "pretty",
            "string",
            "If 'true', then the output is pretty printed.",
        ));
        item.insert("parameters".into(), parameters.into());
        item
    }

    fn operation(&self, path: &str, action: &str, kind: &GroupVersionKind, sub: &str) -> Value {
        let r = self.resource;
        let all_namespaces = r.namespaced && !path.contains("{namespace}");
        let id = {
            let group = r.group.split('.').next().unwrap_or_default();
            let group = if group.is_empty() { "core" } else { group };
            let scope = match (r.namespaced, all_namespaces) {
                (true, false) => "Namespaced",
                _ => "",
            };
            let verb = match action {
                "get" => "read",
                "put" => "replace",
                "post" => "create",
                "deletecollection" => "deleteCollection",
                other => other,
            };
            let tail = if all_namespaces {
                "ForAllNamespaces"
            } else {
                ""
            };
            let version = capital(&r.version);
            format!(
                "{verb}{}{version}{scope}{}{}{tail}",
                capital(group),
                r.kind,
                capital(sub)
            )
        };
        let what = format!(
            "{action} {}{}",
            r.kind,
            if sub.is_empty() {
                String::new()
            } else {
                format!(" {sub}")
            }
        );
        let mut operation = json!({
            "description": what, "operationId": id, "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        });
        if action == "connect" {
            operation["responses"] = json!({"200": {"description": "OK"}});
            return operation;
        }
        let mut parameters = self.parameters(action);
        let name = definition_name(kind);
        let (body, answer) = match action {
            "list" => (None, Some(format!("{name}List"))),
            "post" | "put" => (Some(name.clone()), Some(name)),
            "patch" => (Some(String::new()), Some(name)),
            "delete" | "deletecollection" => (Some(meta("DeleteOptions")), Some(meta("Status"))),
            _ if sub == "log" => (None, None),
            _ => (None, Some(name)),
        };
        let custom = r.schema.open_api().is_some();
        let media: &[&str] = match action {
            // Their lists have no keys for a strategic merge.
            "patch" if custom => &CUSTOM_PATCHES,
            "patch" => &PATCHES,
            _ => &MEDIA,
        };
        if let Some(body) = body {
            self.add_body(&mut operation, &mut parameters, &body, media, action);
        }
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        operation["responses"] =
            json!({"200": self.answer(answer.as_deref()), "401": {"description": "Unauthorized"}});
        if self.version == Version::V2 {
            operation["produces"] = json!(MEDIA);
        }
        operation
    }

    fn parameters(&self, action: &str) -> Vec<Value> {
        const LIST: &[(&str, &str)] = &[
            ("labelSelector", "string"),
            ("fieldSelector", "string"),
            ("limit", "integer"),
            ("continue", "string"),
            ("watch", "boolean"),
            ("allowWatchBookmarks", "boolean"),
            ("resourceVersion", "string"),
            ("resourceVersionMatch", "string"),
            ("sendInitialEvents", "boolean"),
            ("timeoutSeconds", "integer"),
        ];
        const WRITE: &[(&str, &str)] = &[
            ("dryRun", "string"),
            ("fieldManager", "string"),
            ("fieldValidation", "string"),
        ];
        const DELETE: &[(&str, &str)] = &[
            ("dryRun", "string"),
            ("gracePeriodSeconds", "integer"),
            ("propagationPolicy", "string"),
        ];
        let names: Vec<(&str, &str)> = match action {
            "list" => LIST.to_vec(),
            "post" | "put" => WRITE.to_vec(),
            "patch" => [WRITE, &[("force", "boolean")]].concat(),
            "delete" => DELETE.to_vec(),
            "deletecollection" => [DELETE, &LIST[..4]].concat(),
            _ => Vec::new(),
        };
        names
            .iter()
            .map(|(name, kind)| self.parameter("query", name, kind, ""))
            .collect()
    }

    fn parameter(&self, place: &str, name: &str, kind: &str, description: &str) -> Value {
        let mut parameter = json!({"in": place, "name": name, "uniqueItems": true});
        if !description.is_empty() {
            parameter["description"] = description.into();
        }
        if place == "path" {
            parameter["required"] = true.into();
        }
        match self.version {
            Version::V2 => parameter["type"] = kind.into(),
            Version::V3 => {
                parameter["schema"] = json!({"type": kind, "uniqueItems": true});
                if let Some(fields) = parameter.as_object_mut() {
                    fields.remove("uniqueItems");
                }
            }
        }
        parameter
    }

    /// `name` is empty for a patch, which may be anything.
    fn schema(&self, name: &str) -> Value {
        let prefix = if self.version == Version::V2 {
            V2_REF
        } else {
            V3_REF
        };
        if name.is_empty() {
            json!({"type": "object"})
        } else {
            json!({"$ref": format!("{prefix}{name}")})
        }
    }

    fn add_body(
        &self,
        operation: &mut Value,
        parameters: &mut Vec<Value>,
        name: &str,
        media: &[&str],
        action: &str,
    ) {
        let required = !action.starts_with("delete");
        match self.version {
            Version::V2 => {
                let mut body = json!({"in": "body", "name": "body", "schema": self.schema(name)});
                if required {
                    body["required"] = true.into();
                }
                parameters.push(body);
                operation["consumes"] = json!(media);
            }
            Version::V3 => {
                let mut body = json!({"content": self.content(name, media)});
                if required {
                    body["required"] = true.into();
                }
                operation["requestBody"] = body;
            }
        }
    }

    fn content(&self, name: &str, media: &[&str]) -> Value {
        let one = |m: &&str| ((*m).to_owned(), json!({"schema": self.schema(name)}));
        Value::Object(media.iter().map(one).collect())
    }

    fn answer(&self, name: Option<&str>) -> Value {
        match (self.version, name) {
            (_, None) => json!({"description": "OK"}),
            (Version::V2, Some(name)) => json!({"description": "OK", "schema": self.schema(name)}),
            (Version::V3, Some(name)) => {
                json!({"description": "OK", "content": self.content(name, &MEDIA)})
            }
        }
    }
}

fn meta(kind: &str) -> String {
    format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars
        .next()
        .map(|c| c.to_uppercase().chain(chars).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::builtin;

    fn apps(version: Version) -> Value {
        let apps: Vec<&Resource> = builtin()
            .iter()
            .map(|r| &**r)
            .filter(|r| r.group == "apps")
            .collect();
        paths(&apps, version)
    }

    #[test]
    fn patches_take_field_validation() {
        let paths = apps(Version::V3);
        let item = &paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
        let patch = &item["patch"];
        let kind = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
        assert_eq!(patch["x-kubernetes-group-version-kind"], kind);
        assert_eq!(patch["x-kubernetes-action"], "patch");
        assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
        let validation = patch["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .find(|p| p["name"] == "fieldValidation");
        assert_eq!(validation.unwrap()["in"], "query");
        assert!(
            patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object()
        );
        assert_eq!(item["parameters"][0]["required"], true);
    }

    #[test]
    fn paths_follow_scope_and_verbs() {
        let paths = apps(Version::V3);
        assert_eq!(
            paths["/apis/apps/v1/deployments"]["get"]["operationId"],
            "listAppsV1DeploymentForAllNamespaces"
        );
        assert_eq!(paths["/apis/apps/v1/deployments"].get("post"), None);
        let scale = &paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"];
        assert_eq!(
            scale["get"]["x-kubernetes-group-version-kind"]["group"],
            "autoscaling"
        );
        assert_eq!(scale.get("delete"), None);
        let two = apps(Version::V2);
        let create = &two["/apis/apps/v1/namespaces/{namespace}/deployments"]["post"];
        assert!(
            create["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .any(|p| p["in"] == "body")
        );
        assert_eq!(create["consumes"], json!(MEDIA));
    }
}
