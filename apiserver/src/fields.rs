//! Which fields a field selector may name, per kind, and how labels and fields get out of an object's bytes.
//!
//! The watch cache keeps objects as bytes. Selectors are answered from what is extracted here, once per revision,
//! in one pass over the text that builds no tree.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A selectable field: its name in selectors, where its value is read from (the first path that has one), and
/// what stands for an absent value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    pub name: Cow<'static, str>,
    /// None: the name is the path.
    paths: &'static [&'static str],
    default: &'static str,
}

/// The selectable fields of a resource.
pub type Fields = Cow<'static, [Field]>;

impl Field {
    /// A selectable field of a custom resource, named like its path.
    #[must_use]
    pub fn at(path: String) -> Self {
        Self {
            name: Cow::Owned(path),
            paths: &[],
            default: "",
        }
    }

    fn paths(&self) -> Vec<&str> {
        match self.paths {
            [] => vec![&self.name],
            paths => paths.to_vec(),
        }
    }
}

const fn field(name: &'static str, paths: &'static [&'static str], default: &'static str) -> Field {
    Field {
        name: Cow::Borrowed(name),
        paths,
        default,
    }
}

const POD: &[Field] = &[
    field("spec.nodeName", &["spec.nodeName"], ""),
    field("status.phase", &["status.phase"], ""),
    field("spec.restartPolicy", &["spec.restartPolicy"], ""),
    field("spec.schedulerName", &["spec.schedulerName"], ""),
    field("spec.serviceAccountName", &["spec.serviceAccountName"], ""),
    field("spec.hostNetwork", &["spec.hostNetwork"], "false"),
    field("status.podIP", &["status.podIP"], ""),
    field("status.podIPs", &["status.podIP"], ""),
    field(
        "status.nominatedNodeName",
        &["status.nominatedNodeName"],
        "",
    ),
];
const NODE: &[Field] = &[field(
    "spec.unschedulable",
    &["spec.unschedulable"],
    "false",
)];
const NAMESPACE: &[Field] = &[field("status.phase", &["status.phase"], "")];
const SECRET: &[Field] = &[field("type", &["type"], "")];
const SERVICE: &[Field] = &[
    field("spec.clusterIP", &["spec.clusterIP"], ""),
    field("spec.type", &["spec.type"], ""),
];
const REPLICAS: &[Field] = &[field("status.replicas", &["status.replicas"], "0")];
const JOB: &[Field] = &[field("status.successful", &["status.succeeded"], "0")];
const CSR: &[Field] = &[field("spec.signerName", &["spec.signerName"], "")];
const RESOURCE_SLICE: &[Field] = &[
    field("spec.nodeName", &["spec.nodeName"], ""),
    field("spec.driver", &["spec.driver"], ""),
];
const EVENT: &[Field] = &[
    field(
        "involvedObject.kind",
        &["involvedObject.kind", "regarding.kind"],
        "",
    ),
    field(
        "involvedObject.namespace",
        &["involvedObject.namespace", "regarding.namespace"],
        "",
    ),
    field(
        "involvedObject.name",
        &["involvedObject.name", "regarding.name"],
        "",
    ),
    field(
        "involvedObject.uid",
        &["involvedObject.uid", "regarding.uid"],
        "",
    ),
    field(
        "involvedObject.apiVersion",
        &["involvedObject.apiVersion", "regarding.apiVersion"],
        "",
    ),
    field(
        "involvedObject.resourceVersion",
        &[
            "involvedObject.resourceVersion",
            "regarding.resourceVersion",
        ],
        "",
    ),
    field(
        "involvedObject.fieldPath",
        &["involvedObject.fieldPath", "regarding.fieldPath"],
        "",
    ),
    field("reason", &["reason"], ""),
    field(
        "reportingComponent",
        &["reportingComponent", "reportingController"],
        "",
    ),
    field(
        "source",
        &[
            "source.component",
            "deprecatedSource.component",
            "reportingComponent",
            "reportingController",
        ],
        "",
    ),
    field("type", &["type"], ""),
];

/// The names that the group `events.k8s.io` has for the fields of [`EVENT`], in their order; empty for what it lacks.
const EVENT_NAMES: [&str; EVENT.len()] = [
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "",
    "type",
];

/// The fields of a kept object under the names that selectors of a group use for them.
#[must_use]
pub fn named<'a>(group: &str, kept: &'a [Field]) -> Cow<'a, [Field]> {
    if group != "events.k8s.io" || kept != EVENT {
        return kept.into();
    }
    let renamed = kept.iter().zip(EVENT_NAMES);
    renamed
        .map(|(field, name)| Field {
            name: name.into(),
            ..field.clone()
        })
        .collect()
}

/// The selectable fields of a resource besides `metadata.name` and `metadata.namespace`.
#[must_use]
pub fn of(group: &str, plural: &str) -> &'static [Field] {
    match (group, plural) {
        ("", "pods") => POD,
        ("", "nodes") => NODE,
        ("", "namespaces") => NAMESPACE,
        ("", "secrets") => SECRET,
        ("", "services") => SERVICE,
        ("", "replicationcontrollers") | ("apps", "replicasets") => REPLICAS,
        ("batch", "jobs") => JOB,
        ("certificates.k8s.io", "certificatesigningrequests") => CSR,
        ("resource.k8s.io", "resourceslices") => RESOURCE_SLICE,
        ("" | "events.k8s.io", "events") => EVENT,
        _ => &[],
    }
}

pub type Labels = Box<[(Box<str>, Box<str>)]>;

/// What selectors need of an object.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Extract {
    pub labels: Labels,
    /// In the order of the resource's [`Field`]s.
    pub fields: Box<[Box<str>]>,
}

/// Reads labels and fields from an object's JSON.
pub fn extract(json: &[u8], fields: &[Field]) -> serde_json::Result<Extract> {
    let paths: Vec<(usize, Vec<&str>)> = fields
        .iter()
        .flat_map(Field::paths)
        .enumerate()
        .map(|(slot, path)| (slot, path.split('.').collect()))
        .collect();
    let mut found = Found {
        labels: Vec::new(),
        slots: vec![None; paths.len()],
    };
    let wanted: Vec<(usize, &[&str])> = paths
        .iter()
        .map(|(slot, path)| (*slot, path.as_slice()))
        .collect();
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    Walk {
        wanted,
        at: At::Top,
        found: &mut found,
    }
    .deserialize(&mut deserializer)?;
    let mut slots = found.slots.into_iter();
    let values = fields.iter().map(|field| {
        let mut value = None;
        for candidate in slots.by_ref().take(field.paths().len()) {
            value = value.or(candidate.filter(|text| !text.is_empty()));
        }
        value.unwrap_or_else(|| field.default.into())
    });
    let fields = values.collect();
    Ok(Extract {
        labels: found.labels.into_boxed_slice(),
        fields,
    })
}

struct Found {
    labels: Vec<(Box<str>, Box<str>)>,
    slots: Vec<Option<Box<str>>>,
}

#[derive(Clone, Copy, PartialEq)]
enum At {
    Top,
    Metadata,
    Labels,
    Below,
}

/// Visits one value; `wanted` are the rests of the paths that lead into it.
struct Walk<'a> {
    wanted: Vec<(usize, &'a [&'a str])>,
    at: At,
    found: &'a mut Found,
}

impl Walk<'_> {
    fn take(self, text: &str) {
        for (slot, path) in &self.wanted {
            if path.is_empty() {
                self.found.slots[*slot] = Some(text.into());
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.take(text);
        Ok(())
    }
    fn visit_bool<E>(self, flag: bool) -> Result<(), E> {
        self.take(if flag { "true" } else { "false" });
        Ok(())
    }
    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        self.take(&number.to_string());
        Ok(())
    }
    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        self.take(&number.to_string());
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            if self.at == At::Labels {
                if let serde_json::Value::String(value) = map.next_value()? {
                    self.found.labels.push((key.into(), value.into()));
                }
                continue;
            }
            let at = match (self.at, &*key) {
                (At::Top, "metadata") => At::Metadata,
                (At::Metadata, "labels") => At::Labels,
                _ => At::Below,
            };
            let wanted: Vec<_> = self
                .wanted
                .iter()
                .filter(|(_, path)| path.first().is_some_and(|first| *first == key))
                .map(|(slot, path)| (*slot, &path[1..]))
                .collect();
            if at == At::Below && wanted.is_empty() {
                map.next_value::<IgnoredAny>()?;
            } else {
                map.next_value_seed(Walk {
                    wanted,
                    at,
                    found: self.found,
                })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_fields() {
        let json = br#"{"kind":"Pod","metadata":{"name":"a","labels":{"x":"1","y":"\u0041"},"annotations":{"labels":"no"}},
            "spec":{"nodeName":"n1","hostNetwork":true,"containers":[{"nodeName":"wrong"}]},"status":{"phase":"Running"}}"#;
        let found = extract(json, of("", "pods")).unwrap();
        assert_eq!(
            &*found.labels,
            &[("x".into(), "1".into()), ("y".into(), "A".into())]
        );
        let by_name = |name| &*found.fields[POD.iter().position(|f| f.name == name).unwrap()];
        assert_eq!(by_name("spec.nodeName"), "n1");
        assert_eq!(by_name("spec.hostNetwork"), "true");
        assert_eq!(by_name("status.phase"), "Running");
        assert_eq!(by_name("status.podIP"), "");
    }

    #[test]
    fn both_groups_of_events_name_the_same_fields() {
        let names = |group: &str| -> Vec<String> {
            named(group, EVENT)
                .iter()
                .map(|f| f.name.to_string())
                .collect()
        };
        for (core, own) in names("").into_iter().zip(names("events.k8s.io")) {
            let regarding = core.replace("involvedObject", "regarding");
            let expected = match core.as_str() {
                "reportingComponent" => "reportingController",
                // The older group's alone.
                "source" => "",
                _ => &regarding,
            };
            assert_eq!(own, expected);
        }
        assert_eq!(&*named("events.k8s.io", POD), POD);
    }

    #[test]
    fn defaults_and_fallbacks() {
        let found = extract(
            br#"{"metadata":{},"reportingController":"c","source":{"component":""}}"#,
            EVENT,
        )
        .unwrap();
        let by_name = |name| &*found.fields[EVENT.iter().position(|f| f.name == name).unwrap()];
        assert_eq!((by_name("source"), by_name("reason")), ("c", ""));
        assert_eq!(
            &*extract(br#"{"spec":[1,2],"metadata":null}"#, NODE)
                .unwrap()
                .fields[0],
            "false"
        );
        assert!(extract(b"{", NODE).is_err());
    }
}
