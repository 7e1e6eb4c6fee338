//! Which objects a list or watch is about: scope, label selector and field selector.

use apimachinery::selector::{FieldSelector, LabelSelector, Labels};
use apimachinery::status::{Result, Status};

use super::Object;
use crate::fields::Field;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Name,
    Namespace,
    Field(usize),
}

/// What is asked for. The default is everything.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Empty: all namespaces.
    pub namespace: String,
    /// Empty: all names.
    pub name: String,
    labels: Option<LabelSelector>,
    /// Where the value is, whether the term is negated, and the value wanted.
    fields: Vec<(Source, bool, String)>,
}

impl Selection {
    #[must_use]
    pub fn namespaced(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            ..Self::default()
        }
    }

    #[must_use]
    pub fn with_labels(mut self, labels: LabelSelector) -> Self {
        self.labels = Some(labels);
        self
    }

    /// Reads the two selectors of a request. `known` are the fields that the resource supports.
    pub fn parse(namespace: &str, labels: &str, fields: &str, known: &[Field]) -> Result<Self> {
        let mut selection = Self::namespaced(namespace);
        if !labels.is_empty() {
            let selector = LabelSelector::parse(labels).map_err(|error| {
                Status::bad_request(format!("unable to parse requirement: {error}"))
            })?;
            selection.labels = Some(selector);
        }
        let terms = FieldSelector::parse(fields)
            .map_err(Status::bad_request)?
            .requirements;
        for term in terms {
            let source =
                match term.field.as_str() {
                    "metadata.name" => Source::Name,
                    "metadata.namespace" => Source::Namespace,
                    other => Source::Field(known.iter().position(|f| f.name == other).ok_or_else(
                        || Status::bad_request(format!("field label not supported: {other}")),
                    )?),
                };
            if source == Source::Name && !term.negated && selection.name.is_empty() {
                selection.name.clone_from(&term.value);
            }
            selection.fields.push((source, term.negated, term.value));
        }
        Ok(selection)
    }

    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.namespace.is_empty() && !self.filters()
    }

    /// Whether anything besides the namespace narrows the selection.
    #[must_use]
    pub fn filters(&self) -> bool {
        !self.name.is_empty() || self.labels.is_some() || !self.fields.is_empty()
    }

    #[must_use]
    pub fn matches(&self, object: &Object) -> bool {
        (self.namespace.is_empty() || self.namespace == object.namespace())
            && (self.name.is_empty() || self.name == object.name())
            && self.fields.iter().all(|(source, negated, wanted)| {
                let value = match source {
                    Source::Name => object.name(),
                    Source::Namespace => object.namespace(),
                    Source::Field(index) => object.fields.get(*index).map_or("", |text| &**text),
                };
                (value == wanted) != *negated
            })
            && self
                .labels
                .as_ref()
                .is_none_or(|labels| labels.matches(object))
    }
}

/// Label selectors look labels up in the extract.
impl Labels for Object {
    fn label(&self, key: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(name, _)| &**name == key)
            .map(|(_, value)| &**value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields;

    fn pod(key: &str, json: &str) -> Object {
        Object::new(key, json.as_bytes(), 1, fields::of("", "pods")).unwrap()
    }

    #[test]
    fn selects() {
        let json = r#"{"metadata":{"labels":{"app":"web"}},"spec":{"nodeName":"n1"},"status":{"phase":"Running"}}"#;
        let object = pod("ns/a", json);
        let table = [
            ("", "", "", true),
            ("ns", "", "", true),
            ("other", "", "", false),
            ("", "app=web", "", true),
            ("", "app!=web", "", false),
            ("", "", "spec.nodeName=n1,status.phase!=Failed", true),
            ("", "", "spec.nodeName==n2", false),
            ("", "", "metadata.name=a", true),
            ("", "", "metadata.name=b", false),
            ("", "", "metadata.namespace=ns,", true),
            ("", "", "spec.nodeName=", false),
        ];
        for (namespace, labels, fields_, expected) in table {
            let selection =
                Selection::parse(namespace, labels, fields_, fields::of("", "pods")).unwrap();
            assert_eq!(
                selection.matches(&object),
                expected,
                "{namespace:?} {labels:?} {fields_:?}"
            );
        }
    }

    #[test]
    fn refuses() {
        let known = fields::of("", "pods");
        for bad in ["spec.bogus=1", "nonsense", "a=b=c=d", r"metadata.name=\x"] {
            assert_eq!(
                Selection::parse("", "", bad, known).unwrap_err().code,
                400,
                "{bad}"
            );
        }
        assert_eq!(
            Selection::parse("", "a in (", "", known).unwrap_err().code,
            400
        );
    }
}
