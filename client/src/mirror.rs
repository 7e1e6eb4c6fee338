//! A reduced copy of a watched collection, for components that need a few fields of many objects.
//!
//! An [`Informer`](crate::Informer) keeps whole (if trimmed) objects and shares them between tasks. A mirror keeps
//! what a function makes of each object and belongs to one task, which feeds it from
//! [`informer::events`](crate::informer::events): less memory, no locks, and a change that the reduction
//! hides is no change.

use std::collections::BTreeMap;

use kube::Resource;
use kube::runtime::watcher::Event;

use crate::informer::key_of;

/// Reduced objects by key (`namespace/name`).
#[derive(Debug)]
pub struct Mirror<V> {
    items: BTreeMap<String, V>,
    /// Gathers a new list until it is complete, so that nothing disappears half-way through a relist.
    listing: Option<BTreeMap<String, V>>,
    synced: bool,
}

impl<V> Default for Mirror<V> {
    fn default() -> Self {
        Self {
            items: BTreeMap::new(),
            listing: None,
            synced: false,
        }
    }
}

impl<V: PartialEq> Mirror<V> {
    pub fn items(&self) -> &BTreeMap<String, V> {
        &self.items
    }

    /// Whether a first list was complete.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// Takes one event in. Objects that `reduce` answers with `None` are treated as if they were not there.
    /// `changed` is told of every difference: key, old and new.
    pub fn apply<K: Resource>(
        &mut self,
        event: Event<K>,
        reduce: impl Fn(&K) -> Option<V>,
        mut changed: impl FnMut(&str, Option<&V>, Option<&V>),
    ) {
        match event {
            Event::Init => self.listing = Some(BTreeMap::new()),
            Event::InitApply(object) => {
                if let (Some(listing), Some(value)) = (&mut self.listing, reduce(&object)) {
                    listing.insert(key_of(&object), value);
                }
            }
            Event::InitDone => {
                let new = self.listing.take().unwrap_or_default();
                let old = std::mem::replace(&mut self.items, new);
                for (key, value) in &self.items {
                    let before = old.get(key);
                    if before != Some(value) {
                        changed(key, before, Some(value));
                    }
                }
                for (key, value) in old.iter().filter(|(key, _)| !self.items.contains_key(*key)) {
                    changed(key, Some(value), None);
                }
                self.synced = true;
            }
            Event::Apply(object) => self.set(&key_of(&object), reduce(&object), changed),
            Event::Delete(object) => self.set(&key_of(&object), None, changed),
        }
    }

    /// Puts one reduced object in, or takes it out.
    pub fn set(
        &mut self,
        key: &str,
        value: Option<V>,
        mut changed: impl FnMut(&str, Option<&V>, Option<&V>),
    ) {
        let old = match value {
            Some(value) => self.items.insert(key.to_owned(), value),
            None => self.items.remove(key),
        };
        let new = self.items.get(key);
        if old.as_ref() != new {
            changed(key, old.as_ref(), new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn map(name: &str, label: &str) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some("ns".into());
        map.metadata.name = Some(name.into());
        map.metadata.labels = Some([("l".to_owned(), label.to_owned())].into());
        map
    }

    #[test]
    fn only_differences_are_told() {
        let mut mirror: Mirror<String> = Mirror::default();
        let mut feed = |event: Event<ConfigMap>| {
            let mut told = Vec::new();
            let reduce = |m: &ConfigMap| {
                m.metadata
                    .labels
                    .as_ref()?
                    .get("l")
                    .filter(|l| *l != "hidden")
                    .cloned()
            };
            mirror.apply(event, reduce, |key, old, new| {
                told.push(format!("{key} {old:?} {new:?}"))
            });
            (told.join("; "), mirror.synced())
        };
        let quiet = (String::new(), false);
        assert_eq!(feed(Event::Init), quiet);
        assert_eq!(feed(Event::InitApply(map("a", "1"))), quiet);
        assert_eq!(feed(Event::InitApply(map("b", "hidden"))), quiet);
        assert_eq!(
            feed(Event::InitDone),
            ("ns/a None Some(\"1\")".into(), true)
        );
        assert_eq!(feed(Event::Apply(map("a", "1"))).0, "");
        assert_eq!(
            feed(Event::Apply(map("a", "hidden"))).0,
            "ns/a Some(\"1\") None"
        );
        assert_eq!(feed(Event::Delete(map("b", "2"))).0, "");
        assert_eq!(feed(Event::Apply(map("a", "2"))).0, "ns/a None Some(\"2\")");
        feed(Event::Init);
        feed(Event::InitApply(map("c", "3")));
        assert_eq!(
            feed(Event::InitDone).0,
            "ns/c None Some(\"3\"); ns/a Some(\"2\") None"
        );
    }
}
