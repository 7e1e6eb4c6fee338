//! Which names a definition gets: those it asks for, unless another one of its group has them already.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::definition::{self, Condition};
use super::structural;
use crate::strategy::check::{list, text};

/// The definition as its conditions should be, given the others of its group; `None` if nothing changes.
#[must_use]
pub fn plan(definition: &Value, others: &[&Value], now: Timestamp) -> Option<Value> {
    let mut planned = definition.clone();
    let (names, accepted) = accept(definition, others);
    if !names.is_null() {
        planned["status"]["acceptedNames"] = names;
    }
    let is_accepted = accepted.status == "True";
    let was_established = definition::is_established(definition);
    definition::set_condition(&mut planned, &accepted, now);
    // Once established, always: objects exist under these names.
    if !was_established {
        let established = if is_accepted {
            let why = "the initial names have been accepted";
            Condition::new("Established", true, "InitialNamesAccepted", why)
        } else {
            let why = "not all names are accepted";
            Condition::new("Established", false, "NotAccepted", why)
        };
        definition::set_condition(&mut planned, &established, now);
    }
    match structural::condition(definition) {
        Some(condition) => definition::set_condition(&mut planned, &condition, now),
        None => definition::remove_condition(&mut planned, structural::NON_STRUCTURAL),
    }
    (planned != *definition).then_some(planned)
}

struct Taken {
    resources: HashSet<String>,
    kinds: HashSet<String>,
}

fn taken(others: &[&Value]) -> Taken {
    let (mut resources, mut kinds) = (HashSet::new(), HashSet::new());
    for other in others {
        let names = &other["status"]["acceptedNames"];
        let add = |set: &mut HashSet<String>, name: &str| {
            if !name.is_empty() {
                set.insert(name.to_owned());
            }
        };
        add(&mut resources, text(names, "plural"));
        add(&mut resources, text(names, "singular"));
        for name in list(names, "shortNames").iter().filter_map(Value::as_str) {
            add(&mut resources, name);
        }
        add(&mut kinds, text(names, "kind"));
        add(&mut kinds, text(names, "listKind"));
    }
    Taken { resources, kinds }
}

fn accept(definition: &Value, others: &[&Value]) -> (Value, Condition) {
    let taken = taken(others);
    let asked = &definition["spec"]["names"];
    let held = &definition["status"]["acceptedNames"];
    let mut names = if held.is_object() {
        held.clone()
    } else {
        json!({})
    };
    let mut conflict = None;
    let fields = [
        ("plural", "PluralConflict", &taken.resources),
        ("singular", "SingularConflict", &taken.resources),
        ("shortNames", "ShortNamesConflict", &taken.resources),
        ("kind", "KindConflict", &taken.kinds),
        ("listKind", "ListKindConflict", &taken.kinds),
    ];
    for (field, reason, taken) in fields {
        let in_use = match field {
            "shortNames" => {
                let mine = list(held, field);
                let fresh = list(asked, field)
                    .iter()
                    .filter(|name| !mine.contains(name));
                let errors = fresh
                    .filter_map(Value::as_str)
                    .filter(|n| taken.contains(*n));
                errors.map(|n| format!("{n:?} is already in use")).collect()
            }
            _ => {
                let name = text(asked, field);
                let is_free = name == text(held, field) || !taken.contains(name);
                if is_free {
                    vec![]
                } else {
                    vec![format!("{name:?} is already in use")]
                }
            }
        };
        match in_use.as_slice() {
            [] => set(&mut names, field, &asked[field]),
            [one] => conflict = Some((reason, one.clone())),
            several => conflict = Some((reason, format!("[{}]", several.join(", ")))),
        }
    }
    set(&mut names, "categories", &asked["categories"]);
    let condition = match conflict {
        None => Condition::new("NamesAccepted", true, "NoConflicts", "no conflicts found"),
        Some((reason, why)) => Condition::new("NamesAccepted", false, reason, why),
    };
    (names, condition)
}

fn set(names: &mut Value, field: &str, value: &Value) {
    if let Some(map) = names.as_object_mut() {
        match value {
            Value::Null => map.remove(field),
            value => map.insert(field.to_owned(), value.clone()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(plural: &str, kind: &str, short: &[&str]) -> Value {
        json!({"spec": {"group": "g.io", "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind,
            "listKind": format!("{kind}List"), "shortNames": short}}})
    }

    #[test]
    fn the_first_comes_gets_the_names() {
        let now = Timestamp::UNIX_EPOCH;
        let first = plan(&definition("foos", "Foo", &["f"]), &[], now).unwrap();
        assert!(definition::is_established(&first));
        assert_eq!(first["status"]["acceptedNames"], first["spec"]["names"]);
        assert_eq!(plan(&first, &[], now), None, "nothing more to do");

        let second = plan(&definition("bars", "Foo", &["f", "b"]), &[&first], now).unwrap();
        assert!(!definition::is_established(&second));
        let condition = &second["status"]["conditions"][0];
        assert_eq!(condition["reason"], "ListKindConflict");
        assert_eq!(condition["message"], "\"FooList\" is already in use");
        let names = &second["status"]["acceptedNames"];
        assert_eq!(
            (&names["plural"], &names["kind"]),
            (&json!("bars"), &Value::Null)
        );
        assert_eq!(names.get("shortNames"), None);

        let later = plan(&second, &[], now).unwrap();
        assert!(definition::is_established(&later), "the first one is gone");
    }

    #[test]
    fn schemas_that_are_not_structural_are_told_of() {
        let now = Timestamp::UNIX_EPOCH;
        let mut old = definition("foos", "Foo", &[]);
        old["spec"]["preserveUnknownFields"] = json!(true);
        old["spec"]["versions"] = json!([{"name": "v1", "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"a": {}}}}}]);
        let planned = plan(&old, &[], now).unwrap();
        let told = apimachinery::object::condition(&planned, "NonStructuralSchema").unwrap();
        assert_eq!(told["reason"], "Violations");
        assert_eq!(
            told["message"],
            "[spec.preserveUnknownFields: Invalid value: true: must be false, \
             spec.versions[0].schema.openAPIV3Schema.properties[a].type: Required value: must not be empty for specified \
             object fields]"
        );
        assert_eq!(plan(&planned, &[], now), None);
        let mut mended = planned;
        mended["spec"]["preserveUnknownFields"] = json!(false);
        mended["spec"]["versions"] = json!([]);
        let mended = plan(&mended, &[], now).unwrap();
        assert!(!definition::is_true(&mended, "NonStructuralSchema"));
    }

    #[test]
    fn established_stays() {
        let now = Timestamp::UNIX_EPOCH;
        let first = plan(&definition("foos", "Foo", &[]), &[], now).unwrap();
        let other = plan(&definition("bars", "Bar", &["x"]), &[], now).unwrap();
        let mut renamed = first.clone();
        renamed["spec"]["names"]["shortNames"] = json!(["x"]);
        let planned = plan(&renamed, &[&other], now).unwrap();
        assert!(definition::is_established(&planned));
        assert!(!definition::is_true(&planned, "NamesAccepted"));
    }
}
