//! APIServices for what this server serves itself: built-in groups from the start, custom ones with their definitions.

use std::collections::{BTreeMap, HashMap};

use apimachinery::object;
use apimachinery::status::Result;
use futures::future::join_all;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{GROUP, PLURAL};
use crate::cache::Selection;
use crate::registry::Registry;
use crate::strategy::check::{flag, list, text};

const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
const DEFINITIONS: (&str, &str) = ("apiextensions.k8s.io", "customresourcedefinitions");
/// Of a custom group and its versions, as Kubernetes has it.
const CUSTOM: (i64, i64) = (1000, 100);

/// Group and version priority of a built-in group and version, as Kubernetes has them; an empty version is any.
#[must_use]
pub fn priority(group: &str, version: &str) -> Option<(i64, i64)> {
    let rank = match group {
        "" => return Some((18_000, 1)),
        "apiregistration.k8s.io" => 20_001,
        "apps" => 17_800,
        "events.k8s.io" => 17_750,
        "authentication.k8s.io" => 17_700,
        "authorization.k8s.io" => 17_600,
        "autoscaling" => 17_500,
        "batch" => 17_400,
        "certificates.k8s.io" => 17_300,
        "networking.k8s.io" => 17_200,
        "policy" => 17_100,
        "rbac.authorization.k8s.io" => 17_000,
        "storage.k8s.io" => 16_800,
        "apiextensions.k8s.io" | "admissionregistration.k8s.io" => 16_700,
        "scheduling.k8s.io" => 16_600,
        "coordination.k8s.io" => 16_500,
        "node.k8s.io" => 16_300,
        "discovery.k8s.io" | "resource.k8s.io" => 16_200,
        "flowcontrol.apiserver.k8s.io" => 16_100,
        _ => return None,
    };
    let version = match (group, version) {
        ("autoscaling", "v2") => 30,
        ("flowcontrol.apiserver.k8s.io" | "resource.k8s.io", _) => 21,
        _ => 15,
    };
    Some((rank, version))
}

/// How an APIService came to be managed, as its label says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Managed {
    /// Made at every start.
    OnStart,
    /// Follows its definition.
    Always,
}

impl Managed {
    fn label(self) -> &'static str {
        match self {
            Self::OnStart => "onstart",
            Self::Always => "true",
        }
    }
}

fn wanted(group: &str, version: &str, priorities: (i64, i64), managed: Managed) -> Value {
    let mut spec = json!({
        "version": version, "groupPriorityMinimum": priorities.0, "versionPriority": priorities.1,
    });
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": format!("{version}.{group}"), "labels": {MANAGED: managed.label()}},
        "spec": spec,
    })
}

/// What has to happen to one APIService.
#[derive(Debug, PartialEq)]
enum Step {
    Create(Value),
    Update(Value),
    Delete(String),
}

fn label(object: &Value) -> &str {
    object::labels(object)
        .and_then(|labels| labels.get(MANAGED))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Makes `existing` what is wanted. What nobody manages belongs to whoever made it.
fn plan(existing: &[Value], wanted: BTreeMap<String, Value>, scope: Managed) -> Vec<Step> {
    let mut steps = Vec::new();
    let found: HashMap<&str, &Value> = existing.iter().map(|o| (object::name(o), o)).collect();
    for (name, object) in &wanted {
        match found.get(name.as_str()) {
            None => steps.push(Step::Create(object.clone())),
            Some(old) if label(old).is_empty() => {}
            Some(old) if old["spec"] == object["spec"] && label(old) == label(object) => {}
            // Somebody has put a server of their own in a built-in group's place.
            Some(old) if scope == Managed::OnStart && old["spec"]["service"].is_object() => {}
            Some(_) => steps.push(Step::Update(object.clone())),
        }
    }
    if scope == Managed::Always {
        let gone = existing.iter().filter(|old| {
            label(old) == Managed::Always.label() && !wanted.contains_key(object::name(old))
        });
        steps.extend(gone.map(|old| Step::Delete(object::name(old).to_owned())));
    }
    steps
}

async fn carry_out(registry: &Registry, steps: Vec<Step>) -> Result<()> {
    let work = steps.into_iter().map(|step| async move {
        match step {
            Step::Create(object) => match registry.create_as_server(GROUP, PLURAL, object).await {
                Err(error) if !error.is_already_exists() => Err(error),
                _ => Ok(()),
            },
            Step::Update(object) => {
                let name = object::name(&object).to_owned();
                let change = |old: &mut Value| {
                    old["spec"] = object["spec"].clone();
                    old["metadata"]["labels"][MANAGED] = label(&object).into();
                    Ok(())
                };
                registry
                    .update_as_server(GROUP, PLURAL, ("", &name), change)
                    .await
                    .map(drop)
            }
            Step::Delete(name) => registry.delete_as_server(GROUP, PLURAL, "", &name).await,
        }
    });
    join_all(work).await.into_iter().collect()
}

async fn existing(registry: &Registry) -> Result<Vec<Value>> {
    let all = registry.list(GROUP, PLURAL, &Selection::default()).await?;
    Ok(all.iter().map(|object| object.value()).collect())
}

/// Registers the built-in groups.
pub async fn builtin(registry: &Registry) -> Result<()> {
    let mut objects = BTreeMap::new();
    for served in registry.table().all() {
        let (group, version) = (&*served.resource.group, &*served.resource.version);
        if group == GROUP {
            continue;
        }
        if let Some(priorities) = priority(group, version) {
            let object = wanted(group, version, priorities, Managed::OnStart);
            objects.insert(object::name(&object).to_owned(), object);
        }
    }
    let steps = plan(&existing(registry).await?, objects, Managed::OnStart);
    carry_out(registry, steps).await
}

type GroupVersions = Vec<(String, String)>;

/// The groups and versions of each definition, by revision: definitions are long, and few change at a time.
#[derive(Default)]
pub struct Definitions {
    known: Mutex<HashMap<String, (u64, GroupVersions)>>,
}

impl Definitions {
    /// Registers the groups and versions of all definitions that are established, and no others.
    pub async fn register(&self, registry: &Registry) -> Result<()> {
        let definitions = registry
            .list(DEFINITIONS.0, DEFINITIONS.1, &Selection::default())
            .await?;
        let mut objects = BTreeMap::new();
        {
            let mut known = self.known.lock();
            let mut current = HashMap::new();
            for definition in &definitions {
                let versions = match known.remove(definition.key()) {
                    Some((revision, versions)) if revision == definition.revision => versions,
                    _ => versions(&definition.value()),
                };
                for (group, version) in &versions {
                    let object = wanted(group, version, CUSTOM, Managed::Always);
                    objects.insert(object::name(&object).to_owned(), object);
                }
                current.insert(definition.key().to_owned(), (definition.revision, versions));
            }
            *known = current;
        }
        let steps = plan(&existing(registry).await?, objects, Managed::Always);
        carry_out(registry, steps).await
    }
}

fn versions(definition: &Value) -> GroupVersions {
    let established = list(&definition["status"], "conditions")
        .iter()
        .any(|c| text(c, "type") == "Established" && text(c, "status") == "True");
    if !established {
        return Vec::new();
    }
    let group = text(&definition["spec"], "group");
    list(&definition["spec"], "versions")
        .iter()
        .filter(|version| flag(version, "served"))
        .map(|version| (group.to_owned(), text(version, "name").to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(objects: Vec<Value>) -> BTreeMap<String, Value> {
        objects
            .into_iter()
            .map(|o| (object::name(&o).to_owned(), o))
            .collect()
    }

    #[test]
    fn only_managed_ones_are_touched() {
        let apps = wanted("apps", "v1", (1, 1), Managed::OnStart);
        let mut changed = apps.clone();
        changed["spec"]["versionPriority"] = 7.into();
        let mut foreign = changed.clone();
        foreign["metadata"]["labels"] = Value::Null;
        let mut served_elsewhere = changed.clone();
        served_elsewhere["spec"]["service"] = json!({"name": "s"});
        let steps = |existing: &[Value]| plan(existing, map(vec![apps.clone()]), Managed::OnStart);
        assert_eq!(steps(&[]), [Step::Create(apps.clone())]);
        assert_eq!(steps(&[changed]), [Step::Update(apps.clone())]);
        for kept in [apps.clone(), foreign, served_elsewhere] {
            assert_eq!(steps(&[kept]), []);
        }
    }

    #[test]
    fn definitions_take_theirs_with_them() {
        let gone = wanted("example.com", "v1", CUSTOM, Managed::Always);
        let builtin = wanted("apps", "v1", (1, 1), Managed::OnStart);
        assert_eq!(
            plan(&[gone, builtin], BTreeMap::new(), Managed::Always),
            [Step::Delete("v1.example.com".into())]
        );
    }

    #[test]
    fn versions_count_once_they_are_served() {
        let mut definition = json!({
            "spec": {"group": "g", "versions": [{"name": "v1", "served": true}, {"name": "v2", "served": false}]},
            "status": {"conditions": [{"type": "Established", "status": "True"}]},
        });
        assert_eq!(versions(&definition), [("g".to_owned(), "v1".to_owned())]);
        definition["status"]["conditions"][0]["status"] = "False".into();
        assert!(versions(&definition).is_empty());
    }
}
