//! The list in `metadata.managedFields`.

use serde_json::{Map, Value, json};

use super::set::Set;

/// As many managers of updates are kept; the oldest beyond that become one.
const MAX_UPDATERS: usize = 10;
/// The manager that the oldest become.
const ANCIENT: &str = "ancient-changes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

/// What one manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub manager: String,
    pub operation: Operation,
    pub api_version: String,
    pub subresource: String,
    /// RFC 3339, in UTC.
    pub time: Option<String>,
    pub fields: Set,
}

impl Entry {
    /// Whether a write under the other's name continues this entry. One manager applies in one version at a time.
    pub fn is(&self, other: &Entry) -> bool {
        self.operation == other.operation
            && self.manager == other.manager
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// The name in messages about conflicts.
    pub fn shown(&self) -> String {
        let mut text = crate::field::quote(&self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(
                " with subresource {}",
                crate::field::quote(&self.subresource)
            ));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }

    fn read(entry: &Value) -> Result<Entry, String> {
        let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
        let operation = match &*text("operation") {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return Err("operation must be `Apply` or `Update`".into()),
        };
        let api_version = text("apiVersion");
        if api_version.is_empty() {
            return Err("apiVersion must not be empty".into());
        }
        match &*text("fieldsType") {
            "FieldsV1" => {}
            "" => return Err("missing fieldsType in managed fields entry".into()),
            other => {
                return Err(format!(
                    "invalid fieldsType {other:?} in managed fields entry"
                ));
            }
        }
        let fields = Set::from_value(&entry["fieldsV1"]).map_err(|error| error.to_string())?;
        let (manager, subresource) = (text("manager"), text("subresource"));
        let time = entry["time"].as_str().map(str::to_owned);
        Ok(Entry {
            manager,
            operation,
            api_version,
            subresource,
            time,
            fields,
        })
    }

    fn into_value(self) -> Value {
        let mut entry = Map::new();
        let operation = match self.operation {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        };
        entry.insert("apiVersion".into(), self.api_version.into());
        entry.insert("fieldsType".into(), "FieldsV1".into());
        entry.insert("fieldsV1".into(), self.fields.into_value());
        entry.insert("operation".into(), operation.into());
        for (field, value) in [("manager", self.manager), ("subresource", self.subresource)] {
            if !value.is_empty() {
                entry.insert(field.into(), value.into());
            }
        }
        if let Some(time) = self.time {
            entry.insert("time".into(), time.into());
        }
        Value::Object(entry)
    }
}

/// All managers of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Managers(pub Vec<Entry>);

impl Managers {
    /// Reads the list; an error says which entry is malformed.
    pub fn read(list: &Value) -> Result<Managers, String> {
        let mut managers = Managers::default();
        for entry in list.as_array().into_iter().flatten() {
            let entry = Entry::read(entry)?;
            // The last of two that are the same manager counts.
            managers.take(&entry);
            managers.0.push(entry);
        }
        Ok(managers)
    }

    /// The managers of a live object as the request's object changes them: clients that do not know the field keep it,
    /// and an empty list or one empty entry resets it.
    pub fn of(live: &Value, new: &Value, subresource: &str) -> Managers {
        let live = &live["metadata"]["managedFields"];
        let asked = &new["metadata"]["managedFields"];
        if subresource.is_empty() && is_reset(asked) {
            return Managers::default();
        }
        match Managers::read(asked) {
            Ok(managers) if subresource.is_empty() && !managers.0.is_empty() => managers,
            _ => Managers::read(live).unwrap_or_default(),
        }
    }

    pub fn position(&self, like: &Entry) -> Option<usize> {
        self.0.iter().position(|entry| entry.is(like))
    }

    pub fn take(&mut self, like: &Entry) -> Option<Entry> {
        self.position(like).map(|at| self.0.remove(at))
    }

    /// The list as it is stored: appliers first, then by time, manager, version and subresource. Null when there is none.
    pub fn into_value(mut self) -> Value {
        if self.0.is_empty() {
            return Value::Null;
        }
        self.0.sort_by(|a, b| {
            let key = |entry: &Entry| (entry.operation, seconds(entry.time.as_deref()));
            key(a)
                .cmp(&key(b))
                .then_with(|| a.manager.cmp(&b.manager))
                .then_with(|| a.api_version.cmp(&b.api_version))
                .then_with(|| a.subresource.cmp(&b.subresource))
        });
        Value::Array(self.0.into_iter().map(Entry::into_value).collect())
    }

    /// Merges the oldest updates into one entry for each version, until there are few enough.
    pub fn cap(&mut self) {
        let updaters = |managers: &Managers| {
            let mut at: Vec<Entry> = managers.0.clone();
            at.retain(|entry| entry.operation == Operation::Update);
            at
        };
        if self
            .0
            .iter()
            .filter(|entry| entry.operation == Operation::Update)
            .count()
            <= MAX_UPDATERS
        {
            return;
        }
        let mut oldest = updaters(self);
        oldest.sort_by_key(|entry| {
            let name = (entry.api_version.clone(), entry.manager.clone());
            (seconds(entry.time.as_deref()), name)
        });
        let mut left = oldest.len();
        // The first manager of each version, which becomes the common one when a second follows.
        let mut first: Vec<Entry> = Vec::new();
        for entry in oldest {
            if left <= MAX_UPDATERS {
                break;
            }
            let Some(at) = first
                .iter()
                .position(|other| other.api_version == entry.api_version)
            else {
                first.push(entry);
                continue;
            };
            let bucket = Entry {
                manager: ANCIENT.to_owned(),
                operation: Operation::Update,
                api_version: entry.api_version.clone(),
                subresource: String::new(),
                time: entry.time.clone(),
                fields: Set::default(),
            };
            let mut merged = match self.take(&bucket) {
                Some(merged) => merged,
                None => Entry {
                    fields: self.take(&first[at]).map(|e| e.fields).unwrap_or_default(),
                    ..bucket
                },
            };
            if let Some(entry) = self.take(&entry) {
                merged.fields.union(entry.fields);
            }
            merged.time = entry.time;
            self.0.push(merged);
            left -= 1;
        }
    }
}

fn is_reset(list: &Value) -> bool {
    match list.as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([only]) => only.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

/// A time to sort by: none is the oldest.
fn seconds(time: Option<&str>) -> i64 {
    time.and_then(crate::time::parse)
        .map_or(0, |time| time.as_second())
}

/// Whether two lists differ in nothing but times.
#[must_use]
pub fn same_but_times(new: &Value, old: &Value) -> bool {
    let (Some(entries), Some(before)) = (new.as_array(), old.as_array()) else {
        return false;
    };
    let timeless = |entry: &Value| {
        let mut entry = entry.clone();
        entry["time"] = json!(null);
        entry
    };
    entries.len() == before.len()
        && entries
            .iter()
            .zip(before)
            .all(|(a, b)| timeless(a) == timeless(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(manager: &str, operation: &str, time: &str, fields: Value) -> Value {
        json!({"manager": manager, "operation": operation, "apiVersion": "v1", "time": time,
            "fieldsType": "FieldsV1", "fieldsV1": fields})
    }

    #[test]
    fn lists_are_sorted() {
        let list = json!([
            entry("b", "Update", "2026-01-01T00:00:00Z", json!({"f:a": {}})),
            entry("a", "Update", "2026-01-01T00:00:00Z", json!({"f:b": {}})),
            entry("z", "Update", "2025-01-01T00:00:00Z", json!({"f:c": {}})),
            entry("y", "Apply", "2026-01-02T00:00:00Z", json!({"f:d": {}}))
        ]);
        let sorted = Managers::read(&list).unwrap().into_value();
        let names: Vec<&str> = sorted
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["manager"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["y", "z", "a", "b"]);
        assert_eq!(sorted[0], list[3]);
        assert_eq!(Managers::default().into_value(), Value::Null);
    }

    #[test]
    fn requests_keep_replace_and_reset() {
        let live = json!({"metadata": {"managedFields": [entry("a", "Update", "2026-01-01T00:00:00Z", json!({"f:x": {}}))]}});
        let asked = |list: Value| json!({"metadata": {"managedFields": list}});
        let other = entry("b", "Apply", "2026-01-01T00:00:00Z", json!({}));
        let count = |new: &Value, subresource: &str| {
            let managers = Managers::of(&live, new, subresource).0;
            managers
                .iter()
                .map(|e| e.manager.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(count(&json!({}), ""), ["a"]);
        assert_eq!(count(&asked(json!([{"manager": "x"}])), ""), ["a"]);
        assert_eq!(count(&asked(json!([other])), ""), ["b"]);
        assert_eq!(count(&asked(json!([other])), "status"), ["a"]);
        assert!(count(&asked(json!([])), "").is_empty());
        assert!(count(&asked(json!([{}])), "").is_empty());
        assert_eq!(count(&asked(json!([{}])), "status"), ["a"]);
    }

    #[test]
    fn the_oldest_become_one() {
        let list: Vec<Value> = (0..13)
            .map(|i| {
                let field = format!("f:a{i}");
                entry(
                    &format!("m{i:02}"),
                    "Update",
                    &format!("2026-01-01T00:00:{i:02}Z"),
                    json!({ field: {} }),
                )
            })
            .collect();
        let mut managers = Managers::read(&list.into()).unwrap();
        managers.cap();
        assert_eq!(managers.0.len(), MAX_UPDATERS);
        let ancient = managers.0.iter().find(|e| e.manager == ANCIENT).unwrap();
        assert_eq!(ancient.time.as_deref(), Some("2026-01-01T00:00:03Z"));
        assert_eq!(
            ancient.fields.clone().into_value(),
            json!({"f:a0": {}, "f:a1": {}, "f:a2": {}, "f:a3": {}})
        );
    }

    #[test]
    fn times_alone_are_no_change() {
        let old = json!([entry(
            "a",
            "Apply",
            "2026-01-01T00:00:00Z",
            json!({"f:x": {}})
        )]);
        let new = json!([entry(
            "a",
            "Apply",
            "2026-01-02T00:00:00Z",
            json!({"f:x": {}})
        )]);
        assert!(same_but_times(&new, &old));
        let other = json!([entry(
            "b",
            "Apply",
            "2026-01-02T00:00:00Z",
            json!({"f:x": {}})
        )]);
        assert!(!same_but_times(&other, &old));
    }
}
