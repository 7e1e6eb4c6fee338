//! Server-side apply: merge, remove what is no longer applied, and see who else owns what changes.

use serde_json::Value;

use super::compare::compare;
use super::entries::{Entry, Managers};
use super::merge::merge;
use super::set::Set;
use super::typed::{field_set, reconcile, remove, with_parents};
use super::update::{Changes, before_first_apply, note};
use super::{Reach, Versions, strip};
use crate::schema::Schema;

/// kubectl's record of what it applied before servers could.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The manager whose records of client-side apply count as ownership.
const KUBECTL: &str = "kubectl";
/// As many bytes of annotations fit into an object.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// An apply request, apart from the documents.
#[derive(Debug)]
pub struct Apply<'a> {
    /// Name, version, subresource and time of the manager.
    pub manager: Entry,
    /// Take what others own.
    pub force: bool,
    pub reach: &'a Reach,
}

/// Why a document was not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// What changes belongs to others: managers as messages show them, and paths, in order.
    Owned(Vec<(String, String)>),
    /// A document that cannot be merged.
    Unmergeable(String),
}

impl From<String> for Conflict {
    fn from(why: String) -> Conflict {
        Conflict::Unmergeable(why)
    }
}

/// Applies a document to a live object (an empty one for a create) and gives the merged object with its managers. The
/// document has been validated.
pub fn apply(
    versions: &dyn Versions,
    live: &Value,
    applied: &Value,
    request: &Apply<'_>,
) -> Result<Value, Conflict> {
    let mut managers = Managers::read(&live["metadata"]["managedFields"])
        .map_err(|why| format!("failed to decode managed fields: {why}"))?;
    let mut bare = live.clone();
    if let Some(metadata) = bare.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    if managers.0.is_empty() {
        let nobody = before_first_apply(&request.manager);
        note(
            versions,
            &Value::Null,
            &bare,
            &mut managers,
            nobody,
            request.reach,
        )?;
    }
    let outcome = match attempt(versions, &bare, applied, managers.clone(), request) {
        Err(Conflict::Owned(conflicts)) if request.manager.manager == KUBECTL => {
            let foreign = foreign_conflicts(versions, &bare, conflicts);
            if !foreign.is_empty() {
                return Err(Conflict::Owned(foreign));
            }
            let forced = Apply {
                manager: request.manager.clone(),
                force: true,
                reach: request.reach,
            };
            attempt(versions, &bare, applied, managers, &forced)?
        }
        outcome => outcome?,
    };
    let (mut object, managers) = outcome;
    if request.manager.manager == KUBECTL {
        record_last_applied(&mut object, applied);
    }
    crate::object::set_metadata(&mut object, "managedFields", managers.into_value());
    Ok(object)
}

fn attempt(
    versions: &dyn Versions,
    live: &Value,
    applied: &Value,
    mut managers: Managers,
    request: &Apply<'_>,
) -> Result<(Value, Managers), Conflict> {
    let (_, schema) = versions.current();
    for entry in &mut managers.0 {
        reconcile(schema, &mut entry.fields);
    }
    let mut merged =
        merge(schema, live, applied).map_err(|why| format!("failed to merge config: {why}"))?;
    let mut own = request.manager.clone();
    own.fields = field_set(schema, applied);
    request.reach.narrow(&mut own.fields);
    let last = managers.take(&own);
    if let Some(last) = &last {
        managers.0.push(own.clone());
        merged = prune(versions, merged, &managers, last);
        managers.0.pop();
    }
    settle(versions, live, &merged, &mut managers, request)?;
    own.time = match *live == merged {
        // Applying what is there already is no change of this manager's entry.
        true => last.and_then(|last| last.time),
        false => own.time,
    };
    strip(&mut own.fields);
    if !own.fields.is_empty() {
        managers.0.push(own);
    }
    Ok((merged, managers))
}

/// Takes what changes from its other owners, or refuses to.
fn settle(
    versions: &dyn Versions,
    live: &Value,
    merged: &Value,
    managers: &mut Managers,
    request: &Apply<'_>,
) -> Result<(), Conflict> {
    let mut changes = Changes::between(versions, live, merged, request.reach)?;
    let mut conflicts: Vec<(String, String)> = Vec::new();
    if !request.force {
        for entry in &managers.0 {
            if let Some(change) = changes.in_version(&entry.api_version) {
                let both = entry.fields.intersection(&change.written);
                let paths = both.paths();
                conflicts.extend(paths.into_iter().map(|path| (entry.shown(), path)));
            }
        }
    }
    if !conflicts.is_empty() {
        // Stable: the paths of one manager keep their order.
        conflicts.sort_by(|a, b| a.0.cmp(&b.0));
        return Err(Conflict::Owned(conflicts));
    }
    managers.0.retain_mut(|entry| {
        let Some(change) = changes.in_version(&entry.api_version) else {
            return false;
        };
        entry.fields.subtract(&change.written);
        entry.fields.subtract(&change.removed);
        !entry.fields.is_empty()
    });
    Ok(())
}

/// Removes what the manager applied last time and not now, and nobody else owns.
fn prune(versions: &dyn Versions, merged: Value, managers: &Managers, last: &Entry) -> Value {
    if last.fields.is_empty() {
        return merged;
    }
    let Some((whole, schema)) = versions.convert(&merged, &last.api_version) else {
        return merged;
    };
    let gone = with_parents(&schema, &last.fields);
    let pruned = remove(&schema, &whole, &gone).unwrap_or_default();
    let (whole, pruned) = keep_owned(versions, (whole, pruned), managers, &last.api_version);
    // What is left to go must have been this manager's: more may have gone with it.
    let (Some((whole, schema)), Some((pruned, _))) = (
        versions.convert(&whole, &last.api_version),
        versions.convert(&pruned, &last.api_version),
    ) else {
        return merged;
    };
    let mut lost = with_parents(&schema, &field_set(&schema, &whole));
    lost.subtract(&with_parents(&schema, &field_set(&schema, &pruned)));
    let lost = lost.intersection(&gone);
    versions.restore(remove(&schema, &whole, &lost).unwrap_or_default())
}

/// Adds back what somebody owns, in the version in which it is owned: first in that of the last apply, in which all
/// that a conversion needs is present.
fn keep_owned(
    versions: &dyn Versions,
    (mut whole, mut pruned): (Value, Value),
    managers: &Managers,
    first: &str,
) -> (Value, Value) {
    let mut owned: Vec<(&str, Set)> = Vec::new();
    for entry in &managers.0 {
        match owned
            .iter_mut()
            .find(|(version, _)| *version == entry.api_version)
        {
            Some((_, set)) => set.union(entry.fields.clone()),
            None => owned.push((&entry.api_version, entry.fields.clone())),
        }
    }
    owned.sort_by_key(|(version, _)| *version != first);
    for (version, set) in owned {
        let (Some((all, schema)), Some((left, _))) = (
            versions.convert(&whole, version),
            versions.convert(&pruned, version),
        ) else {
            continue;
        };
        let mut lost = with_parents(&schema, &field_set(&schema, &all));
        let mut kept = with_parents(&schema, &field_set(&schema, &left));
        kept.union(with_parents(&schema, &set));
        lost.subtract(&kept);
        pruned = remove(&schema, &all, &lost).unwrap_or_default();
        whole = all;
    }
    (whole, pruned)
}

/// The conflicts that remain when those fields are left out that kubectl's own record says it applied, and that are
/// still as it applied them.
fn foreign_conflicts(
    versions: &dyn Versions,
    live: &Value,
    mut conflicts: Vec<(String, String)>,
) -> Vec<(String, String)> {
    if let Some(allowed) = last_applied(versions, live) {
        let allowed = allowed.paths();
        conflicts.retain(|(_, path)| !allowed.contains(path));
    }
    conflicts
}

fn last_applied(versions: &dyn Versions, live: &Value) -> Option<Set> {
    let (version, schema) = versions.current();
    let record: Value =
        serde_json::from_str(crate::object::annotation(live, LAST_APPLIED)?).ok()?;
    if crate::object::api_version(&record) != version {
        return None;
    }
    unchanged(schema, &record, live)
}

/// The fields of the record that are still so in the live object.
fn unchanged(schema: &Schema, record: &Value, live: &Value) -> Option<Set> {
    super::typed::validate(schema, record).ok()?;
    let found = compare(schema, record, live).ok()?;
    let mut set = field_set(schema, record);
    set.subtract(&found.written);
    set.subtract(&found.removed);
    Some(set)
}

/// Keeps kubectl's record in step, where there is one.
fn record_last_applied(object: &mut Value, applied: &Value) {
    if crate::object::annotation(object, LAST_APPLIED).is_none_or(str::is_empty) {
        return;
    }
    let mut record = applied.clone();
    let annotations = record
        .get_mut("metadata")
        .and_then(|metadata| metadata.get_mut("annotations"))
        .and_then(Value::as_object_mut);
    if let Some(annotations) = annotations {
        annotations.remove(LAST_APPLIED);
        if annotations.is_empty() {
            crate::object::set_metadata(&mut record, "annotations", Value::Null);
        }
    }
    crate::object::set_annotation(object, LAST_APPLIED, &format!("{record}\n"));
    let size: usize = crate::object::annotations(object)
        .into_iter()
        .flatten()
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    let metadata = crate::object::metadata_mut(object);
    if let Some(annotations) = metadata
        .filter(|_| size > MAX_ANNOTATIONS)
        .and_then(|metadata| metadata.get_mut("annotations"))
        .and_then(Value::as_object_mut)
    {
        annotations.remove(LAST_APPLIED);
    }
}
