//! Who depends on whom, as the watches tell it. What a change means for others comes back as [`Task`]s.
//!
//! The graph only says what is worth looking at; what is done about it is decided on the API server's own answers
//! (see [`super::plan`]), because two watches may be apart by any time.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::discovery::ApiResource;

pub const ORPHAN: &str = "orphan";
pub const FOREGROUND: &str = "foregroundDeletion";

/// A kind of object, shared by all of its nodes.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    pub resource: ApiResource,
    pub namespaced: bool,
}

/// An owner reference without what the collector does not read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    pub blocking: bool,
}

impl From<&OwnerReference> for Owner {
    fn from(owner: &OwnerReference) -> Self {
        Self {
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
            blocking: owner.block_owner_deletion == Some(true),
        }
    }
}

/// What the graph keeps of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub kind: Arc<Kind>,
    pub namespace: String,
    pub name: String,
    pub owners: Vec<Owner>,
    pub being_deleted: bool,
    /// Being deleted, and waiting for those it owns to go first.
    pub deleting_dependents: bool,
    /// Being deleted, and waiting for those it owns to be let go.
    pub orphaning: bool,
}

impl Node {
    pub fn new(kind: &Arc<Kind>, meta: &ObjectMeta) -> Self {
        let being_deleted = meta.deletion_timestamp.is_some();
        let held_by = |finalizer: &str| {
            being_deleted && meta.finalizers.iter().flatten().any(|f| f == finalizer)
        };
        Self {
            kind: kind.clone(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            owners: meta
                .owner_references
                .iter()
                .flatten()
                .map(Owner::from)
                .collect(),
            being_deleted,
            deleting_dependents: held_by(FOREGROUND),
            orphaning: held_by(ORPHAN),
        }
    }

    /// Whether `reference`, found in something in `namespace`, means this object.
    fn is_meant_by(&self, reference: &Owner, namespace: &str) -> bool {
        (!self.kind.namespaced || self.namespace == namespace)
            && reference.name == self.name
            && reference.kind == self.kind.resource.kind
            && reference.api_version == self.kind.resource.api_version
    }
}

/// Something for the workers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// See whether the object with this uid should go, or may.
    Delete(String),
    /// Let go of those that the object with this uid owns.
    Orphan(String),
}

/// A namespaced owner in another namespace: the dependent and the uid of the owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Misplaced {
    pub dependent: String,
    pub owner: String,
}

/// What a change leads to.
#[derive(Debug, Default, PartialEq)]
pub struct Effects {
    pub tasks: BTreeSet<Task>,
    pub misplaced: BTreeSet<Misplaced>,
}

/// All objects by uid.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: HashMap<String, Node>,
    /// By the uid of the owner, which need not be known (yet).
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The dependents of an object, with their uids.
    pub fn dependents<'a>(&'a self, uid: &str) -> impl Iterator<Item = (&'a str, &'a Node)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| Some((uid.as_str(), self.nodes.get(uid)?)))
    }

    /// Takes in the state of an object.
    pub fn apply(&mut self, uid: &str, node: Node, effects: &mut Effects) {
        let old = self.nodes.insert(uid.to_owned(), node.clone());
        let before = old.as_ref().map_or(&[][..], |o| &o.owners);
        for owner in before {
            let now = node.owners.iter().find(|o| o.uid == owner.uid);
            if now.is_none() {
                self.unlink(uid, &owner.uid);
            }
            if owner.blocking && !now.is_some_and(|o| o.blocking) {
                self.look_at_waiting(&owner.uid, effects);
            }
        }
        for owner in &node.owners {
            let known = before.iter().any(|o| o.uid == owner.uid);
            if !known {
                self.dependents
                    .entry(owner.uid.clone())
                    .or_default()
                    .insert(uid.to_owned());
            }
            if !known || !before.contains(owner) {
                self.check(uid, &node, owner, effects);
            }
        }
        if old.is_none() {
            self.first_seen(uid, &node, effects);
        }
        self.transition(uid, old.as_ref(), &node, effects);
    }

    /// An owner that nobody has seen may be gone since long; one that is another than meant is no owner.
    fn check(&self, uid: &str, node: &Node, owner: &Owner, effects: &mut Effects) {
        let Some(known) = self.nodes.get(&owner.uid) else {
            effects.tasks.insert(Task::Delete(uid.to_owned()));
            return;
        };
        if !known.is_meant_by(owner, &node.namespace) {
            effects.tasks.insert(Task::Delete(uid.to_owned()));
            self.check_namespace(uid, node, &owner.uid, known, effects);
        } else if known.deleting_dependents {
            effects.tasks.insert(Task::Delete(uid.to_owned()));
        }
    }

    fn check_namespace(
        &self,
        uid: &str,
        node: &Node,
        owner_uid: &str,
        owner: &Node,
        effects: &mut Effects,
    ) {
        if owner.kind.namespaced && owner.namespace != node.namespace {
            effects.misplaced.insert(Misplaced {
                dependent: uid.to_owned(),
                owner: owner_uid.to_owned(),
            });
        }
    }

    /// Those that refer to an object may have come before it, with wrong ideas about it.
    fn first_seen(&self, uid: &str, node: &Node, effects: &mut Effects) {
        for (dependent_uid, dependent) in self.dependents(uid) {
            let mut references = dependent.owners.iter().filter(|o| o.uid == uid);
            if references.any(|o| !node.is_meant_by(o, &dependent.namespace)) {
                effects.tasks.insert(Task::Delete(dependent_uid.to_owned()));
                self.check_namespace(dependent_uid, dependent, uid, node, effects);
            }
        }
    }

    fn transition(&self, uid: &str, old: Option<&Node>, new: &Node, effects: &mut Effects) {
        if new.orphaning && !old.is_some_and(|o| o.orphaning) {
            effects.tasks.insert(Task::Orphan(uid.to_owned()));
        } else if new.deleting_dependents && !old.is_some_and(|o| o.deleting_dependents) {
            let dependents = self.dependents(uid);
            effects
                .tasks
                .extend(dependents.map(|(uid, _)| Task::Delete(uid.to_owned())));
            effects.tasks.insert(Task::Delete(uid.to_owned()));
        }
    }

    fn look_at_waiting(&self, uid: &str, effects: &mut Effects) {
        if self.nodes.get(uid).is_some_and(|o| o.deleting_dependents) {
            effects.tasks.insert(Task::Delete(uid.to_owned()));
        }
    }

    fn unlink(&mut self, dependent: &str, owner: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    /// Takes out an object that is gone, and returns it.
    pub fn remove(&mut self, uid: &str, effects: &mut Effects) -> Option<Node> {
        let node = self.nodes.remove(uid)?;
        for owner in &node.owners {
            self.unlink(uid, &owner.uid);
            self.look_at_waiting(&owner.uid, effects);
        }
        let dependents = self.dependents(uid);
        effects
            .tasks
            .extend(dependents.map(|(uid, _)| Task::Delete(uid.to_owned())));
        Some(node)
    }

    /// The uids of everything of a kind.
    pub fn of_kind(&self, kind: &Kind) -> Vec<String> {
        let nodes = self
            .nodes
            .iter()
            .filter(|(_, node)| node.kind.as_ref() == kind);
        nodes.map(|(uid, _)| uid.clone()).collect()
    }

    /// Forgets a kind that is no longer served, without a word about what its objects owned: whether they are gone
    /// cannot be known.
    pub fn forget(&mut self, kind: &Kind) {
        for uid in self.of_kind(kind) {
            if let Some(node) = self.nodes.remove(&uid) {
                node.owners
                    .iter()
                    .for_each(|owner| self.unlink(&uid, &owner.uid));
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    pub fn kind(name: &str, namespaced: bool) -> Arc<Kind> {
        Arc::new(Kind {
            namespaced,
            resource: ApiResource {
                group: String::new(),
                version: "v1".into(),
                api_version: "v1".into(),
                kind: name.into(),
                plural: format!("{}s", name.to_lowercase()),
            },
        })
    }

    pub fn owner(kind: &str, name: &str, blocking: bool) -> Value {
        json!({"apiVersion": "v1", "kind": kind, "name": name, "uid": name, "blockOwnerDeletion": blocking})
    }

    /// An object whose uid is its name.
    pub fn node(
        kind_name: &str,
        namespace: &str,
        name: &str,
        owners: Value,
        held: &[&str],
    ) -> Node {
        let deleted = (!held.is_empty()).then_some("2026-01-01T00:00:00Z");
        let meta = json!({"namespace": namespace, "name": name, "ownerReferences": owners, "finalizers": held, "deletionTimestamp": deleted});
        Node::new(
            &kind(kind_name, !namespace.is_empty()),
            &serde_json::from_value(meta).unwrap(),
        )
    }

    fn delete(uids: &[&str]) -> BTreeSet<Task> {
        uids.iter().map(|u| Task::Delete((*u).to_owned())).collect()
    }

    fn apply(graph: &mut Graph, node: Node) -> Effects {
        let mut effects = Effects::default();
        graph.apply(&node.name.clone(), node, &mut effects);
        effects
    }

    #[test]
    fn an_owner_that_was_never_seen_is_looked_for() {
        let mut graph = Graph::default();
        let pod = node("Pod", "ns", "p", json!([owner("Set", "s", true)]), &[]);
        assert_eq!(apply(&mut graph, pod.clone()).tasks, delete(&["p"]));
        assert_eq!(apply(&mut graph, pod).tasks, delete(&[]), "nothing changed");
        let set = node("Set", "ns", "s", json!([]), &[]);
        assert_eq!(
            apply(&mut graph, set),
            Effects::default(),
            "it was meant by the pod"
        );
        let mut effects = Effects::default();
        assert!(graph.remove("s", &mut effects).is_some());
        assert_eq!(effects.tasks, delete(&["p"]));
    }

    #[test]
    fn references_that_mean_something_else() {
        for (why, namespace, reference, tasks, misplaced) in [
            ("right", "ns", owner("Set", "s", false), delete(&[]), 0),
            (
                "wrong namespace",
                "other",
                owner("Set", "s", false),
                delete(&["p"]),
                1,
            ),
            (
                "wrong kind",
                "ns",
                json!({"apiVersion": "v1", "kind": "Map", "name": "s", "uid": "s"}),
                delete(&["p"]),
                0,
            ),
            (
                "wrong name",
                "ns",
                json!({"apiVersion": "v1", "kind": "Set", "name": "t", "uid": "s"}),
                delete(&["p"]),
                0,
            ),
        ] {
            let pod = node("Pod", namespace, "p", json!([reference]), &[]);
            let set = node("Set", "ns", "s", json!([]), &[]);
            let mut graph = Graph::default();
            apply(&mut graph, set.clone());
            let effects = apply(&mut graph, pod.clone());
            assert_eq!(
                (&effects.tasks, effects.misplaced.len()),
                (&tasks, misplaced),
                "{why}"
            );
            // The other way round: the dependent comes first, and is looked at in any case.
            let mut graph = Graph::default();
            apply(&mut graph, pod);
            let effects = apply(&mut graph, set);
            assert_eq!(
                (&effects.tasks, effects.misplaced.len()),
                (&tasks, misplaced),
                "{why}"
            );
        }
        let mut graph = Graph::default();
        apply(&mut graph, node("Node", "", "n", json!([]), &[]));
        let lease = node("Lease", "ns", "l", json!([owner("Node", "n", false)]), &[]);
        assert_eq!(
            apply(&mut graph, lease),
            Effects::default(),
            "an owner of the whole cluster"
        );
    }

    #[test]
    fn deletion_that_waits_looks_at_dependents() {
        let mut graph = Graph::default();
        apply(&mut graph, node("Set", "ns", "s", json!([]), &[]));
        let owned = |blocking| node("Pod", "ns", "p", json!([owner("Set", "s", blocking)]), &[]);
        apply(&mut graph, owned(true));
        let waiting = node("Set", "ns", "s", json!([]), &[FOREGROUND]);
        assert_eq!(
            apply(&mut graph, waiting.clone()).tasks,
            delete(&["p", "s"])
        );
        assert_eq!(apply(&mut graph, waiting).tasks, delete(&[]));
        assert_eq!(
            apply(&mut graph, owned(false)).tasks,
            delete(&["p", "s"]),
            "no longer blocks"
        );
        let mut effects = Effects::default();
        graph.remove("p", &mut effects);
        assert_eq!(effects.tasks, delete(&["s"]), "the last one is gone");
        let orphaning = node("Set", "ns", "t", json!([]), &[ORPHAN]);
        let want = [Task::Orphan("t".into())].into();
        assert_eq!(apply(&mut graph, orphaning).tasks, want);
    }

    #[test]
    fn a_kind_that_is_no_longer_served_condemns_nobody() {
        let mut graph = Graph::default();
        apply(
            &mut graph,
            node("Set", "ns", "s", json!([owner("Pod", "x", true)]), &[]),
        );
        apply(
            &mut graph,
            node("Pod", "ns", "p", json!([owner("Set", "s", true)]), &[]),
        );
        graph.forget(&kind("Set", true));
        assert!(graph.get("s").is_none());
        assert_eq!(graph.dependents("x").count(), 0);
        assert_eq!(graph.dependents("s").count(), 1);
    }
}
