//! Filling in defaults.

use serde_json::{Map, Value};

use super::{FieldDefault, Node, NodeId, Schema};
use crate::object::object_mut;
use crate::resource::Text;

impl Schema {
    /// Sets every field that has a default and is absent, going into defaults just set. A null counts as absent, but
    /// for a custom resource's nullable field.
    pub fn apply_defaults(&self, document: &mut Value) {
        if let Some(schema) = &self.open_api {
            super::structural::drop_nulls(schema, document);
            super::structural::apply_defaults(schema, document);
            return;
        }
        self.default_node(self.root, document);
    }

    fn default_node(&self, id: NodeId, value: &mut Value) {
        match (self.node(id), value) {
            (Node::Object(object), Value::Object(fields)) => {
                for (path, default) in &object.nested {
                    set_nested(fields, path, default);
                }
                for field in &object.fields {
                    if let Some(default) = &field.default {
                        let unset = match fields.get(&*field.name) {
                            None => true,
                            Some(value) => {
                                !(field.nullable && value.is_null()) && default.replaces(value)
                            }
                        };
                        if unset {
                            fields.insert(field.name.to_string(), default.value.clone());
                        }
                    }
                }
                for (key, value) in fields
                    .iter_mut()
                    .filter(|(_, v)| v.is_object() || v.is_array())
                {
                    if let Some(field) = object.field(key) {
                        self.default_node(field.node, value);
                    }
                }
            }
            (Node::Map(map), Value::Object(entries)) if !self.is_leaf(map.values) => {
                entries
                    .values_mut()
                    .for_each(|v| self.default_node(map.values, v));
            }
            (Node::List(list), Value::Array(items)) if !self.is_leaf(list.items) => {
                items
                    .iter_mut()
                    .for_each(|v| self.default_node(list.items, v));
            }
            _ => {}
        }
    }
}

impl FieldDefault {
    fn replaces(&self, value: &Value) -> bool {
        match value {
            Value::Null => true,
            // An empty string is Go's "unset" wherever the default is another one.
            Value::String(s) => s.is_empty(),
            Value::Number(n) => self.if_zero && n.as_f64() == Some(0.0),
            Value::Array(items) => self.if_zero && items.is_empty(),
            _ => false,
        }
    }
}

/// Sets the field at the end of the path, making the objects on the way.
fn set_nested(fields: &mut Map<String, Value>, path: &[Text], default: &Value) {
    match path {
        [] => {}
        [name] => {
            if fields.get(&**name).is_none_or(|v| v.is_null() || v == "") {
                fields.insert(name.to_string(), default.clone());
            }
        }
        [name, rest @ ..] => {
            let mut parent = Value::Object(std::mem::take(fields));
            if let Some(child) = object_mut(&mut parent, name) {
                set_nested(child, rest, default);
            }
            if let Value::Object(map) = parent {
                *fields = map;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn defaulted(group: &str, version: &str, kind: &str, mut object: Value) -> Value {
        Schema::builtin(group, version, kind)
            .unwrap()
            .apply_defaults(&mut object);
        object
    }

    #[test]
    fn pods() {
        let pod = defaulted(
            "",
            "v1",
            "Pod",
            json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 1}],
                "livenessProbe": {"periodSeconds": 0, "timeoutSeconds": 7, "httpGet": {"port": 1}}}],
                "terminationGracePeriodSeconds": 0, "dnsPolicy": "",
                "volumes": [{"name": "v", "secret": {"secretName": "s"}}]}}),
        );
        let spec = &pod["spec"];
        assert_eq!(spec["enableServiceLinks"], true);
        assert_eq!(spec["dnsPolicy"], "ClusterFirst");
        assert_eq!(spec["securityContext"], json!({}));
        assert_eq!(spec["terminationGracePeriodSeconds"], 0);
        assert_eq!(spec["volumes"][0]["secret"]["defaultMode"], 420);
        let container = &spec["containers"][0];
        assert_eq!(container["ports"][0]["protocol"], "TCP");
        let probe = json!({"periodSeconds": 10, "timeoutSeconds": 7, "successThreshold": 1, "failureThreshold": 3,
            "httpGet": {"port": 1, "path": "/", "scheme": "HTTP"}});
        assert_eq!(container["livenessProbe"], probe);
    }

    #[test]
    fn defaults_inside_defaults() {
        let template = json!({"spec": {"containers": []}});
        let deployment = defaulted(
            "apps",
            "v1",
            "Deployment",
            json!({"spec": {"replicas": 0, "template": template}}),
        );
        assert_eq!(
            deployment["spec"]["strategy"],
            json!({"type": "RollingUpdate"})
        );
        assert_eq!(deployment["spec"]["replicas"], 0);
        // Only pods, not templates, get this one.
        assert_eq!(
            deployment["spec"]["template"]["spec"]["enableServiceLinks"],
            Value::Null
        );
        let set = defaulted("apps", "v1", "StatefulSet", json!({"spec": {}}));
        let expect = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}});
        assert_eq!(set["spec"]["updateStrategy"], expect);
    }

    #[test]
    fn defaulting_is_idempotent() {
        for r in crate::resource::builtin() {
            let schema = Schema::builtin(&r.group, &r.version, &r.kind).unwrap();
            let mut once = json!({"spec": {}, "metadata": {"name": "a"}});
            schema.apply_defaults(&mut once);
            let mut twice = once.clone();
            schema.apply_defaults(&mut twice);
            assert_eq!(once, twice, "{}", r.kind);
            assert_eq!(
                schema
                    .prune(&mut twice.clone())
                    .iter()
                    .filter(|f| *f != "spec")
                    .count(),
                0,
                "{}",
                r.kind
            );
        }
    }
}
