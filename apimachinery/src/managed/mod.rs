//! Who owns which field: `metadata.managedFields`, and server-side apply, which merges by it.
//!
//! [`update`] notes what a write changed under its manager's name, [`created`] what a new object has; [`apply`] merges a document of which every field is
//! then owned by its manager, removes what that manager had applied before and no longer does, and refuses to
//! overwrite what others own. Both are the rules of Kubernetes' structured-merge-diff and field manager, on JSON
//! documents with a [`Schema`].
//!
//! [`Set`] is a set of fields, [`compare`](compare::compare), [`merge`](merge::merge) and [`typed`] are the walks over
//! documents, [`entries`] reads and writes the list in the metadata.

mod apply;
pub mod compare;
mod created;
pub mod entries;
pub mod merge;
mod set;
#[cfg(test)]
mod stories;
pub mod typed;
mod update;
mod walk;

use std::sync::LazyLock;

use serde_json::Value;

pub use apply::{Apply, Conflict, apply};
pub use created::{Created, created};
pub use entries::{Entry, Managers, Operation};
use set::EMPTY;
pub use set::{BadElement, Set};
pub use update::update;

use crate::schema::Schema;

/// A kind in the version of the request, and in the versions that its managers used.
pub trait Versions {
    /// The request's version and schema.
    fn current(&self) -> (&str, &Schema);

    /// The document in another version, with that version's schema; `None` when there is no such version any more.
    fn convert(&self, document: &Value, to: &str) -> Option<(Value, Schema)>;

    /// A document of another version in the version of the request.
    fn restore(&self, document: Value) -> Value;
}

/// A kind of which only one version matters.
#[derive(Debug)]
pub struct OneVersion<'a> {
    pub api_version: &'a str,
    pub schema: &'a Schema,
}

impl Versions for OneVersion<'_> {
    fn current(&self) -> (&str, &Schema) {
        (self.api_version, self.schema)
    }

    fn convert(&self, document: &Value, to: &str) -> Option<(Value, Schema)> {
        (to == self.api_version).then(|| (document.clone(), self.schema.clone()))
    }

    fn restore(&self, document: Value) -> Value {
        document
    }
}

/// Which part of an object a request may change: what is outside is not owned by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    #[default]
    All,
    /// Everything but these fields and what is below them.
    Except(Set),
    /// Only these fields and what is below them; `*` stands for any element.
    Only(&'static [&'static [&'static str]]),
}

impl Reach {
    /// What is out of reach; `None` if that is said the other way round.
    fn excepted(&self) -> Option<&Set> {
        match self {
            Reach::All => Some(&EMPTY),
            Reach::Except(fields) => Some(fields),
            Reach::Only(_) => None,
        }
    }

    pub fn narrow(&self, set: &mut Set) {
        match self {
            Reach::All => {}
            Reach::Except(fields) => set.subtract_trees(fields),
            Reach::Only(paths) => keep(set, paths),
        }
    }
}

fn keep(set: &mut Set, paths: &[&[&str]]) {
    set.retain(|node| {
        let matching = paths.iter().filter_map(|path| {
            let (first, rest) = path.split_first()?;
            let fits = *first == "*" || node.element.strip_prefix("f:") == Some(*first);
            fits.then_some(rest)
        });
        let rests: Vec<&[&str]> = matching.collect();
        if rests.is_empty() {
            return false;
        }
        if !rests.iter().any(|rest| rest.is_empty()) {
            keep(&mut node.below, &rests);
        }
        true
    });
}

/// Metadata that nobody owns: the server writes it, or it names the object.
static STRIPPED: LazyLock<Set> = LazyLock::new(|| {
    Set::of(&[
        "apiVersion",
        "kind",
        "metadata",
        "metadata.name",
        "metadata.namespace",
        "metadata.creationTimestamp",
        "metadata.selfLink",
        "metadata.uid",
        "metadata.clusterName",
        "metadata.generation",
        "metadata.managedFields",
        "metadata.resourceVersion",
    ])
});

fn strip(set: &mut Set) {
    set.subtract(&STRIPPED);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reaches() {
        let set = || {
            Set::from_value(&json!({"f:metadata": {"f:labels": {"f:a": {}}}, "f:spec": {"f:containers": {
                "k:{\"name\":\"a\"}": {".": {}, "f:image": {}, "f:resources": {"f:limits": {"f:cpu": {}}}}}}, "f:status": {"f:x": {}}}))
            .unwrap()
        };
        let mut all = set();
        Reach::Except(Set::of(&["status", "metadata.labels"])).narrow(&mut all);
        let expect = json!({"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {},
            "f:resources": {"f:limits": {"f:cpu": {}}}}}}});
        assert_eq!(all.into_value(), expect);
        let mut only = set();
        Reach::Only(&[&["spec", "containers", "*", "resources"]]).narrow(&mut only);
        let expect = json!({"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {},
            "f:resources": {"f:limits": {"f:cpu": {}}}}}}});
        assert_eq!(only.into_value(), expect);
    }
}
