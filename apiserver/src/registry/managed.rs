//! Noting in every object who wrote which of its fields, and applying documents by it.

use apimachinery::managed::{
    self, Apply, Conflict, Created, Entry, Operation, Reach, Set, Versions, typed,
};
use apimachinery::schema::Schema;
use apimachinery::status::{Result, Status};
use apimachinery::{object, time};
use serde_json::{Value, json};

use super::table::Served;
use super::{Call, Registry, Target, decode};

/// The longest name of a manager that is taken from a user agent, in bytes.
const MAX_MANAGER: usize = 128;

/// The manager of a request that names none: what its user agent begins with.
#[must_use]
pub fn manager_of_agent(user_agent: &str) -> String {
    let mut manager = String::new();
    let product = user_agent.split('/').next().unwrap_or_default();
    for c in product.chars().filter(|c| !c.is_control()) {
        if manager.len() + c.len_utf8() > MAX_MANAGER {
            break;
        }
        manager.push(c);
    }
    manager
}

/// Whether a write notes its manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tracking {
    /// What changes is owned by the call's manager.
    Update,
    /// The object comes with its managers: it has been applied, or is changed in ways that nobody owns.
    Done,
}

impl Target<'_> {
    fn entry(&self, call: &Call<'_>, operation: Operation) -> Entry {
        let manager = match &*call.manager {
            "" => "unknown",
            manager => manager,
        };
        Entry {
            manager: manager.to_owned(),
            operation,
            api_version: self.served.resource.api_version(),
            subresource: self.subresource.to_owned(),
            time: Some(time::format(Registry::now())),
            fields: Set::default(),
        }
    }

    fn reach(&self) -> Reach {
        let resource = &self.served.resource;
        let has_status = resource.subresource("status").is_some();
        reach(
            &resource.group,
            &resource.plural,
            self.subresource,
            has_status,
        )
    }
}

impl Registry {
    /// Notes in the new object what the call changes in the old one (`Null` for a create).
    pub(super) fn note_managers(
        &self,
        target: Target<'_>,
        call: &Call<'_>,
        old: &Value,
        object: &mut Value,
    ) {
        let versions = self.versions(target.served);
        let entry = target.entry(call, Operation::Update);
        let noted = managed::update(&versions, old, object, entry, &target.reach());
        if let Err(error) = noted {
            // As Kubernetes does: a write is not refused because it cannot be told apart from others.
            tracing::warn!(%error, name = target.name, "the managers of an object are lost");
            object::set_metadata(object, "managedFields", Value::Null);
        }
    }

    /// The managers of a new object: beside it, where they cost less, unless somebody may look at them before it is
    /// written.
    pub(super) async fn managers_of_new(
        &self,
        target: Target<'_>,
        call: &Call<'_>,
        object: &mut Value,
    ) -> Result<Created> {
        let served = target.served;
        let converted = served.converts() || served.storage.versions.is_some();
        let shown = match self.admission.get() {
            Some(chain) => {
                let subresource = target.subresource;
                chain
                    .reads_managers(&served.resource, subresource, self)
                    .await?
            }
            None => false,
        };
        if !converted && !shown {
            let entry = target.entry(call, Operation::Update);
            let schema = &served.resource.schema;
            let created = managed::created(schema, object, &entry, &target.reach());
            if let Ok(Some(created)) = created {
                object::set_metadata(object, "managedFields", Value::Null);
                return Ok(created);
            }
        }
        self.note_managers(target, call, &Value::Null, object);
        Ok(Created::default())
    }

    /// The old object (`Null` when there is none) with an applied document, complete, and with its managers.
    pub fn applied(
        &self,
        target: Target<'_>,
        call: &Call<'_>,
        old: &Value,
        document: &Value,
        force: bool,
    ) -> Result<Value> {
        let resource = &target.served.resource;
        check_applied(target, document)?;
        let described = format!(
            "{}/{}; {}",
            target.namespace,
            target.name,
            resource.group_version_kind()
        );
        typed::validate(&resource.schema, document).map_err(|why| {
            Status::bad_request(format!(
                "failed to create typed patch object ({described}): {why}"
            ))
        })?;
        let empty = json!({"apiVersion": resource.api_version(), "kind": resource.kind});
        let live = if old.is_object() { old } else { &empty };
        let reach = target.reach();
        let request = Apply {
            manager: target.entry(call, Operation::Apply),
            force,
            reach: &reach,
        };
        let versions = self.versions(target.served);
        let merged = managed::apply(&versions, live, document, &request).map_err(refused)?;
        let object = decode::finish(resource, merged)?;
        Ok(decode::complete(target.served, object))
    }

    fn versions<'a>(&'a self, served: &'a Served) -> KindVersions<'a> {
        KindVersions {
            registry: self,
            served,
            api_version: served.resource.api_version(),
        }
    }
}

/// What every applied document must say, and must not.
fn check_applied(target: Target<'_>, document: &Value) -> Result<()> {
    let resource = &target.served.resource;
    let expected = resource.group_version_kind();
    let found = object::group_version_kind(document);
    if found != expected {
        return Err(Status::bad_request(format!("invalid object type: {found}")));
    }
    if !document["metadata"]["managedFields"].is_null() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    Ok(())
}

/// 409 with a cause for every field that somebody else owns.
fn refused(conflict: Conflict) -> Status {
    let owned = match conflict {
        Conflict::Owned(owned) => owned,
        Conflict::Unmergeable(why) => return Status::bad_request(why),
    };
    let message = match owned.as_slice() {
        [(manager, path)] => {
            format!("Apply failed with 1 conflict: conflict with {manager}: {path}")
        }
        owned => {
            let mut lines = Vec::new();
            let mut last = "";
            for (manager, path) in owned {
                if manager != last {
                    lines.push(format!("conflicts with {manager}:"));
                    last = manager;
                }
                lines.push(format!("- {path}"));
            }
            let count = owned.len();
            format!("Apply failed with {count} conflicts: {}", lines.join("\n"))
        }
    };
    let mut status = Status::new(409, "Conflict", message);
    for (manager, path) in &owned {
        let why = format!("conflict with {manager}");
        status = status.with_cause("FieldManagerConflict", why, path);
    }
    status
}

/// A kind's versions, from the table of what is served.
struct KindVersions<'a> {
    registry: &'a Registry,
    served: &'a Served,
    api_version: String,
}

impl Versions for KindVersions<'_> {
    fn current(&self) -> (&str, &Schema) {
        (&self.api_version, &self.served.resource.schema)
    }

    fn convert(&self, document: &Value, to: &str) -> Option<(Value, Schema)> {
        if to == self.api_version {
            let own = &self.served.resource;
            let document = match object::api_version(document) == to {
                true => document.clone(),
                false => decode::convert(document.clone(), own),
            };
            return Some((document, (*own.schema).clone()));
        }
        let table = self.registry.table();
        let other = table.all().find(|other| {
            std::sync::Arc::ptr_eq(&other.storage, &self.served.storage)
                && other.resource.api_version() == to
        })?;
        let document = decode::convert(document.clone(), &other.resource);
        Some((document, (*other.resource.schema).clone()))
    }

    fn restore(&self, document: Value) -> Value {
        match object::api_version(&document) == self.api_version {
            true => document,
            false => decode::convert(document, &self.served.resource),
        }
    }
}

/// The part of an object that a request can change: what the strategy of that kind resets belongs to nobody.
fn reach(group: &str, plural: &str, subresource: &str, has_status: bool) -> Reach {
    let except = |fields: &[&str]| Reach::Except(Set::of(fields));
    match (group, plural, subresource) {
        ("certificates.k8s.io", "certificatesigningrequests", "") => except(&["spec", "status"]),
        ("certificates.k8s.io", "certificatesigningrequests", "status") => {
            except(&["spec", "status.conditions"])
        }
        (_, _, "approval") => except(&["spec", "status.certificate"]),
        (_, _, "finalize") => except(&["status"]),
        (_, _, "ephemeralcontainers") => Reach::Only(&[&["spec", "ephemeralContainers"]]),
        (_, _, "resize") => Reach::Only(&[
            &["spec", "containers", "*", "resources"],
            &["spec", "containers", "*", "resizePolicy"],
            &["spec", "initContainers", "*", "resources"],
            &["spec", "initContainers", "*", "resizePolicy"],
        ]),
        ("apps", "deployments", "status") => except(&["spec", "metadata.labels"]),
        ("", "pods", "status") => except(&[
            "spec",
            "metadata.deletionTimestamp",
            "metadata.ownerReferences",
        ]),
        (_, _, "status") if resets_metadata(group, plural) => except(&["metadata", "spec"]),
        (_, _, "status") => except(&["spec"]),
        (_, _, "") if has_status => except(&["status"]),
        _ => Reach::All,
    }
}

/// The kinds whose metadata a status update leaves alone; custom resources are among them.
fn resets_metadata(group: &str, plural: &str) -> bool {
    match group {
        "" | "apps" | "batch" | "policy" | "autoscaling" | "apiextensions.k8s.io" => false,
        "networking.k8s.io" => plural == "servicecidrs",
        "resource.k8s.io" => plural == "resourceclaims",
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents() {
        let cases = [
            ("kubectl/v1.36.2 (linux/amd64)", "kubectl"),
            ("", ""),
            ("a\u{7}b", "ab"),
            ("Mozilla", "Mozilla"),
        ];
        for (agent, manager) in cases {
            assert_eq!(manager_of_agent(agent), manager);
        }
        let long = manager_of_agent(&"é".repeat(100));
        assert_eq!(long.len(), MAX_MANAGER);
    }

    #[test]
    fn conflicts_read_like_kubernetes() {
        let owned = |list: &[(&str, &str)]| {
            refused(Conflict::Owned(
                list.iter()
                    .map(|(a, b)| ((*a).into(), (*b).into()))
                    .collect(),
            ))
        };
        let one = owned(&[("\"a\" using v1", ".data.x")]);
        assert_eq!(
            one.message,
            "Apply failed with 1 conflict: conflict with \"a\" using v1: .data.x"
        );
        let more = owned(&[("\"a\"", ".x"), ("\"a\"", ".y"), ("\"b\"", ".x")]);
        assert_eq!(
            more.message,
            "Apply failed with 3 conflicts: conflicts with \"a\":\n- .x\n- .y\nconflicts with \"b\":\n- .x"
        );
        let causes = &more.to_value()["details"]["causes"];
        assert_eq!(
            causes[2],
            json!({"reason": "FieldManagerConflict", "message": "conflict with \"b\"", "field": ".x"})
        );
    }

    #[test]
    fn status_and_spec_are_written_apart() {
        let except = |fields: &[&str]| Reach::Except(Set::of(fields));
        assert_eq!(reach("apps", "replicasets", "", true), except(&["status"]));
        assert_eq!(
            reach("apps", "replicasets", "status", true),
            except(&["spec"])
        );
        assert_eq!(
            reach("example.com", "things", "status", true),
            except(&["metadata", "spec"])
        );
        assert_eq!(reach("", "configmaps", "", false), Reach::All);
    }
}
