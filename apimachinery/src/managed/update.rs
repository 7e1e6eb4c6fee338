//! Owning what a write changed.

use serde_json::Value;

use super::compare::{Comparison, compare};
use super::entries::{Entry, Managers, Operation};
use super::set::Set;
use super::{Reach, Versions, strip, typed};

/// Writes the managers of the new object into it. `as_manager` says who writes: its name, version, subresource and
/// time; what it owns is found out here. A create has `Null` for its live object.
pub fn update(
    versions: &dyn Versions,
    live: &Value,
    new: &mut Value,
    as_manager: Entry,
    reach: &Reach,
) -> Result<(), String> {
    let mut managers = Managers::of(live, new, &as_manager.subresource);
    if let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    // An object whose managers were never noted, or were reset, stays without until it is applied to.
    let is_create = crate::object::uid(live).is_empty();
    if !managers.0.is_empty() || is_create {
        note(versions, live, new, &mut managers, as_manager, reach)?;
        managers.cap();
    }
    crate::object::set_metadata(new, "managedFields", managers.into_value());
    Ok(())
}

/// Adds what changed between two objects to what the manager owns, and takes it from all others.
pub(super) fn note(
    versions: &dyn Versions,
    live: &Value,
    new: &Value,
    managers: &mut Managers,
    mut own: Entry,
    reach: &Reach,
) -> Result<(), String> {
    let (_, schema) = versions.current();
    let empty = Value::Object(serde_json::Map::new());
    let live = if live.is_object() { live } else { &empty };
    for entry in &mut managers.0 {
        typed::reconcile(schema, &mut entry.fields);
    }
    let mut changes = Changes::between(versions, live, new, reach)?;
    managers.0.retain_mut(|entry| {
        let Some(change) = changes.in_version(&entry.api_version) else {
            return false;
        };
        entry.fields.subtract(&change.written);
        entry.fields.subtract(&change.removed);
        !entry.fields.is_empty()
    });
    own.fields = changes.into_written();
    strip(&mut own.fields);
    if own.fields.is_empty() {
        return Ok(());
    }
    match managers.position(&own) {
        Some(at) => {
            let entry = &mut managers.0[at];
            entry.fields.union(own.fields);
            entry.api_version = own.api_version;
            entry.time = own.time;
        }
        None => managers.0.push(own),
    }
    Ok(())
}

/// What changed between two objects, in each version that somebody owns fields in.
pub(super) struct Changes<'a> {
    versions: &'a dyn Versions,
    live: &'a Value,
    new: &'a Value,
    reach: &'a Reach,
    /// The first is the request's version.
    found: Vec<(String, Option<Comparison>)>,
}

impl<'a> Changes<'a> {
    pub fn between(
        versions: &'a dyn Versions,
        live: &'a Value,
        new: &'a Value,
        reach: &'a Reach,
    ) -> Result<Changes<'a>, String> {
        let (version, schema) = versions.current();
        let mut comparison = compare(schema, live, new)?;
        reach.narrow(&mut comparison.written);
        reach.narrow(&mut comparison.removed);
        let found = vec![(version.to_owned(), Some(comparison))];
        Ok(Changes {
            versions,
            live,
            new,
            reach,
            found,
        })
    }

    /// `None` when the version is no more.
    pub fn in_version(&mut self, version: &str) -> Option<&Comparison> {
        let at = match self.found.iter().position(|(name, _)| name == version) {
            Some(at) => at,
            None => {
                let comparison = self.compare_in(version);
                self.found.push((version.to_owned(), comparison));
                self.found.len() - 1
            }
        };
        self.found[at].1.as_ref()
    }

    fn compare_in(&self, version: &str) -> Option<Comparison> {
        // Nothing changes by being looked at in another version.
        if self.found[0].1.as_ref().is_some_and(Comparison::is_empty) {
            return self
                .versions
                .convert(self.new, version)
                .map(|_| Comparison::default());
        }
        let (live, schema) = self.versions.convert(self.live, version)?;
        let (new, _) = self.versions.convert(self.new, version)?;
        let mut comparison = compare(&schema, &live, &new).ok()?;
        self.reach.narrow(&mut comparison.written);
        self.reach.narrow(&mut comparison.removed);
        Some(comparison)
    }

    /// What was written, in the request's version.
    pub fn into_written(mut self) -> Set {
        self.found
            .swap_remove(0)
            .1
            .map(|comparison| comparison.written)
            .unwrap_or_default()
    }
}

/// The manager that owns what was there before the first apply.
pub(super) fn before_first_apply(like: &Entry) -> Entry {
    Entry {
        manager: "before-first-apply".to_owned(),
        operation: Operation::Update,
        ..like.clone()
    }
}
