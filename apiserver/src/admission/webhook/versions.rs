//! The objects of a write as a webhook or policy gets them: in the version that it asked for, with a kind.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::admission::{Attributes, Operation};
use crate::registry::decode;
use crate::registry::table::Served;

/// A write, seen in one version of its resource.
pub struct Versioned {
    pub served: Arc<Served>,
    /// Group, version and kind of the objects: of the subresource's own type where it has one.
    pub kind: (String, String, String),
    /// The same for the version of the request itself.
    pub request_kind: (String, String, String),
    pub object: Value,
    pub old: Value,
}

impl Versioned {
    pub fn new(served: &Arc<Served>, attributes: &Attributes<'_>) -> Self {
        let kind = kind_of(&served.resource, attributes);
        let convert = |object: &Value| convert(object, served, attributes);
        let mut object = convert(attributes.object);
        if kind.2 != *served.resource.kind && object.is_object() {
            object["apiVersion"] = api_version(&kind.0, &kind.1).into();
            object["kind"] = kind.2.as_str().into();
        }
        Self {
            request_kind: kind_of(attributes.resource, attributes),
            old: convert(attributes.old),
            served: served.clone(),
            kind,
            object,
        }
    }

    /// What a mutated object is in the version of the request, with the defaults of both.
    pub fn back(&self, object: Value, own: &Arc<Served>) -> Value {
        match Arc::ptr_eq(&self.served, own) {
            true => object,
            false => decode::convert(object, &own.resource),
        }
    }
}

fn api_version(group: &str, version: &str) -> String {
    match group {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    }
}

fn convert(object: &Value, served: &Arc<Served>, attributes: &Attributes<'_>) -> Value {
    let same = served.resource.group == attributes.resource.group
        && served.resource.version == attributes.resource.version;
    match object {
        Value::Null => Value::Null,
        object if same || attributes.operation == Operation::Connect => object.clone(),
        object => decode::convert(object.clone(), &served.resource),
    }
}

/// Connections have options, and some subresources have types of their own.
fn kind_of(
    resource: &apimachinery::resource::Resource,
    attributes: &Attributes<'_>,
) -> (String, String, String) {
    let own = (
        resource.group.to_string(),
        resource.version.to_string(),
        resource.kind.to_string(),
    );
    let core = |kind: &str| (String::new(), "v1".to_owned(), kind.to_owned());
    let created_below = matches!(attributes.subresource, "binding" | "eviction" | "token");
    if attributes.operation != Operation::Connect && !created_below {
        return own;
    }
    match (&*resource.plural, attributes.subresource) {
        ("pods", "exec") => core("PodExecOptions"),
        ("pods", "attach") => core("PodAttachOptions"),
        ("pods", "portforward") => core("PodPortForwardOptions"),
        ("pods", "log") => core("PodLogOptions"),
        ("pods", "binding") => core("Binding"),
        ("pods", "eviction") => ("policy".to_owned(), "v1".to_owned(), "Eviction".to_owned()),
        ("pods", "proxy") => core("PodProxyOptions"),
        ("services", "proxy") => core("ServiceProxyOptions"),
        ("nodes", "proxy") => core("NodeProxyOptions"),
        ("serviceaccounts", "token") => (
            "authentication.k8s.io".to_owned(),
            "v1".to_owned(),
            "TokenRequest".to_owned(),
        ),
        _ => own,
    }
}

/// The options of a connection as their type has them, from a query's names and values.
#[must_use]
pub fn connect_options<'a>(query: impl Iterator<Item = (&'a str, &'a str)>) -> Value {
    let mut options = json!({});
    for (name, value) in query {
        match name {
            "stdin" | "stdout" | "stderr" | "tty" | "follow" | "previous" | "timestamps" => {
                options[name] = matches!(value, "1" | "true" | "True" | "t" | "").into();
            }
            "command" => match options[name].as_array_mut() {
                Some(command) => command.push(value.into()),
                None => options[name] = json!([value]),
            },
            "ports" => {
                let ports = value.split(',').filter_map(|port| port.parse::<i32>().ok());
                match options[name].as_array_mut() {
                    Some(known) => known.extend(ports.map(Value::from)),
                    None => options[name] = ports.map(Value::from).collect(),
                }
            }
            "tailLines" | "sinceSeconds" | "limitBytes" => {
                options[name] = value.parse::<i64>().map_or(Value::Null, Value::from);
            }
            _ => options[name] = value.into(),
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_connections() {
        let query = [
            ("stdin", "true"),
            ("command", "sh"),
            ("command", "-c"),
            ("container", "c"),
            ("ports", "1,2"),
        ];
        assert_eq!(
            connect_options(query.into_iter()),
            json!({"stdin": true, "command": ["sh", "-c"], "container": "c", "ports": [1, 2]})
        );
    }
}
