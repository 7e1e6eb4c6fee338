//! Removing what a schema does not know.

use serde_json::Value;

use super::{Node, NodeId, Schema};

/// As many unknown fields are reported, like Kubernetes does; all are removed.
pub(super) const REPORTED: usize = 100;

impl Schema {
    /// Removes unknown fields and gives their paths: `spec.template.spec.containers[0].imagee`.
    pub fn prune(&self, document: &mut Value) -> Vec<String> {
        if let Some(schema) = &self.open_api {
            return super::structural::prune(schema, document, true);
        }
        let mut pruner = Pruner {
            schema: self,
            path: Vec::new(),
            unknown: Vec::new(),
        };
        pruner.visit(self.root, document);
        pruner.unknown
    }
}

impl Schema {
    /// Removes from a value what the OpenAPI schema of a custom resource does not know there. `resource`: the value is
    /// a resource with type and metadata of its own.
    pub fn prune_value(schema: &Value, value: &mut Value, resource: bool) -> Vec<String> {
        super::structural::prune(schema, value, resource)
    }
}

struct Pruner<'a> {
    schema: &'a Schema,
    path: Vec<Step<'a>>,
    unknown: Vec<String>,
}

enum Step<'a> {
    Field(&'a str),
    Key(String),
    Index(usize),
}

impl<'a> Pruner<'a> {
    fn visit(&mut self, id: NodeId, value: &mut Value) {
        let schema = self.schema;
        match (schema.node(id), value) {
            (Node::Object(object), Value::Object(fields)) => {
                let mut unknown = false;
                for (key, value) in fields.iter_mut() {
                    match object.field(key) {
                        Some(field) if value.is_object() || value.is_array() => {
                            self.descend(Step::Field(&field.name), field.node, value);
                        }
                        None if !object.open => {
                            self.report(key);
                            unknown = true;
                        }
                        _ => {}
                    }
                }
                if unknown {
                    fields.retain(|key, _| object.field(key).is_some());
                }
            }
            (Node::Map(map), Value::Object(entries)) if !schema.is_leaf(map.values) => {
                for (key, value) in entries.iter_mut() {
                    self.descend(Step::Key(key.clone()), map.values, value);
                }
            }
            (Node::List(list), Value::Array(items)) if !schema.is_leaf(list.items) => {
                for (i, item) in items.iter_mut().enumerate() {
                    self.descend(Step::Index(i), list.items, item);
                }
            }
            (Node::Either(object), Value::Array(items)) => {
                for (i, item) in items.iter_mut().enumerate() {
                    self.descend(Step::Index(i), *object, item);
                }
            }
            (Node::Either(object), value) => self.visit(*object, value),
            _ => {}
        }
    }

    fn descend(&mut self, step: Step<'a>, id: NodeId, value: &mut Value) {
        self.path.push(step);
        self.visit(id, value);
        self.path.pop();
    }

    fn report(&mut self, key: &str) {
        if self.unknown.len() >= REPORTED {
            return;
        }
        let mut path = String::new();
        for step in &self.path {
            let dot = if path.is_empty() { "" } else { "." };
            path = match step {
                Step::Field(name) => format!("{path}{dot}{name}"),
                Step::Key(name) => format!("{path}{dot}{name}"),
                Step::Index(i) => format!("{path}[{i}]"),
            };
        }
        self.unknown.push(if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_fields_are_removed_and_named() {
        let mut deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "foo": 1,
            "metadata": {"name": "a", "labels": {"any": "thing"}, "managedFields": [{"fieldsV1": {"f:x": {}}}]},
            "spec": {"replicass": 1, "template": {"spec": {"containers": [{"name": "a"}, {"imagee": "b"}]}}},
        });
        let schema = Schema::builtin("apps", "v1", "Deployment").unwrap();
        let mut fitted = deployment.clone();
        let unknown = schema.prune(&mut deployment);
        assert_eq!(schema.fit(&mut fitted).unwrap(), unknown);
        assert_eq!(fitted, deployment);
        assert!(schema.fit(&mut fitted).unwrap().is_empty());
        assert_eq!(
            unknown,
            [
                "foo",
                "spec.replicass",
                "spec.template.spec.containers[1].imagee"
            ]
        );
        assert_eq!(
            deployment["spec"],
            json!({"template": {"spec": {"containers": [{"name": "a"}, {}]}}})
        );
        assert_eq!(
            deployment["metadata"]["managedFields"][0]["fieldsV1"],
            json!({"f:x": {}})
        );
    }

    #[test]
    fn schemas_in_custom_resource_definitions_are_walked() {
        let mut definition = json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": {"properties": {
            "a": {"items": {"type": "string", "typo": 1}, "additionalProperties": true, "default": {"x": 1}}}}}}]}});
        let schema =
            Schema::builtin("apiextensions.k8s.io", "v1", "CustomResourceDefinition").unwrap();
        let unknown = schema.prune(&mut definition);
        assert_eq!(
            unknown,
            ["spec.versions[0].schema.openAPIV3Schema.properties.a.items.typo"]
        );
    }
}
