//! What a kind *is*, as data: names, scope, verbs, subresources, where it is stored, how it prints, what its schema is.
//! A custom resource and a built-in kind are the same type; [`builtin`] is the table of the latter.

mod table;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::schema::Schema;

pub use table::builtin;

/// Borrowed in the table of built-in kinds, owned for custom resources.
pub type Text = Cow<'static, str>;

/// `apps/v1`; the core group is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersion {
    pub group: Text,
    pub version: Text,
}

impl GroupVersion {
    pub fn new(group: impl Into<Text>, version: impl Into<Text>) -> GroupVersion {
        GroupVersion {
            group: group.into(),
            version: version.into(),
        }
    }

    /// Reads an `apiVersion`: `v1` or `apps/v1`.
    pub fn parse(api_version: &str) -> GroupVersion {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        GroupVersion::new(group.to_owned(), version.to_owned())
    }
}

/// The `apiVersion`.
impl fmt::Display for GroupVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            f.write_str(&self.version)
        } else {
            write!(f, "{}/{}", self.group, self.version)
        }
    }
}

/// `deployments.apps`, as messages show a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupResource {
    pub group: Text,
    pub resource: Text,
}

impl GroupResource {
    pub fn new(group: impl Into<Text>, resource: impl Into<Text>) -> GroupResource {
        GroupResource {
            group: group.into(),
            resource: resource.into(),
        }
    }
}

impl fmt::Display for GroupResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            f.write_str(&self.resource)
        } else {
            write!(f, "{}.{}", self.resource, self.group)
        }
    }
}

/// `Deployment.apps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKind {
    pub group: Text,
    pub kind: Text,
}

impl GroupKind {
    pub fn new(group: impl Into<Text>, kind: impl Into<Text>) -> GroupKind {
        GroupKind {
            group: group.into(),
            kind: kind.into(),
        }
    }
}

impl fmt::Display for GroupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            f.write_str(&self.kind)
        } else {
            write!(f, "{}.{}", self.kind, self.group)
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionKind {
    pub group: Text,
    pub version: Text,
    pub kind: Text,
}

impl GroupVersionKind {
    pub fn new(
        group: impl Into<Text>,
        version: impl Into<Text>,
        kind: impl Into<Text>,
    ) -> GroupVersionKind {
        GroupVersionKind {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
        }
    }

    pub fn from_api_version(api_version: &str, kind: &str) -> GroupVersionKind {
        let GroupVersion { group, version } = GroupVersion::parse(api_version);
        GroupVersionKind {
            group,
            version,
            kind: kind.to_owned().into(),
        }
    }

    pub fn group_version(&self) -> GroupVersion {
        GroupVersion {
            group: self.group.clone(),
            version: self.version.clone(),
        }
    }

    pub fn api_version(&self) -> String {
        self.group_version().to_string()
    }

    pub fn group_kind(&self) -> GroupKind {
        GroupKind {
            group: self.group.clone(),
            kind: self.kind.clone(),
        }
    }
}

/// `apps/v1, Kind=Deployment`, as Go prints it.
impl fmt::Display for GroupVersionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group.is_empty() {
            true => write!(f, "/{}, Kind={}", self.version, self.kind),
            false => write!(f, "{}/{}, Kind={}", self.group, self.version, self.kind),
        }
    }
}

/// A served resource in one version.
#[derive(Clone, Debug)]
pub struct Resource {
    pub group: Text,
    pub version: Text,
    pub kind: Text,
    /// Empty for resources that are only created (reviews, bindings).
    pub list_kind: Text,
    pub plural: Text,
    pub singular: Text,
    pub short_names: Vec<Text>,
    pub categories: Vec<Text>,
    pub namespaced: bool,
    /// Sorted, as discovery shows them.
    pub verbs: Vec<Text>,
    pub subresources: Vec<Subresource>,
    /// `/registry/deployments`, without a slash at the end. Empty when nothing is stored. Two versions, or groups, of
    /// the same objects share it.
    pub storage_prefix: Text,
    /// Whether objects are stored in this version; the others are converted ([`crate::convert`]).
    pub storage_version: bool,
    /// What `kubectl get` shows.
    pub columns: Vec<Column>,
    /// Where the scale subresource of a custom resource finds its fields.
    pub scale: Option<ScalePaths>,
    pub schema: Arc<Schema>,
}

/// Paths below the object, such as `spec` and `replicas`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScalePaths {
    pub spec_replicas: Vec<String>,
    pub status_replicas: Vec<String>,
    pub selector: Option<Vec<String>>,
}

/// A path below a resource, such as `status`, and what is sent to or read from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Subresource {
    pub name: Text,
    pub kind: GroupVersionKind,
    pub verbs: Vec<Text>,
}

/// One column of a table (`meta.k8s.io/v1` TableColumnDefinition).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Column {
    pub name: Text,
    /// The OpenAPI type of its cells.
    pub kind: Text,
    pub format: Text,
    pub description: Text,
    /// 0 is always shown, higher ones with `-o wide`.
    pub priority: i32,
    /// Where a custom resource's cell comes from; built-in kinds have printers in [`crate::table`].
    pub json_path: Text,
}

impl Resource {
    pub fn group_version(&self) -> GroupVersion {
        GroupVersion {
            group: self.group.clone(),
            version: self.version.clone(),
        }
    }

    pub fn group_resource(&self) -> GroupResource {
        GroupResource {
            group: self.group.clone(),
            resource: self.plural.clone(),
        }
    }

    pub fn group_kind(&self) -> GroupKind {
        GroupKind {
            group: self.group.clone(),
            kind: self.kind.clone(),
        }
    }

    pub fn group_version_kind(&self) -> GroupVersionKind {
        GroupVersionKind {
            group: self.group.clone(),
            version: self.version.clone(),
            kind: self.kind.clone(),
        }
    }

    pub fn api_version(&self) -> String {
        self.group_version().to_string()
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether objects of this resource are kept at all.
    pub fn is_stored(&self) -> bool {
        !self.storage_prefix.is_empty()
    }

    /// The key of one object: `/registry/pods/default/web`. `namespace` is empty outside namespaces.
    pub fn storage_key(&self, namespace: &str, name: &str) -> String {
        format!("{}{name}", self.storage_range(namespace))
    }

    /// What the keys of all objects in one namespace begin with, or with an empty `namespace` all objects.
    pub fn storage_range(&self, namespace: &str) -> String {
        match namespace {
            "" => format!("{}/", self.storage_prefix),
            _ => format!("{}/{namespace}/", self.storage_prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_print_as_in_kubernetes() {
        assert_eq!(
            GroupVersion::parse("apps/v1"),
            GroupVersion::new("apps", "v1")
        );
        assert_eq!(GroupVersion::parse("v1").to_string(), "v1");
        assert_eq!(
            GroupResource::new("apps", "deployments").to_string(),
            "deployments.apps"
        );
        assert_eq!(GroupKind::new("", "Pod").to_string(), "Pod");
        assert_eq!(
            GroupVersionKind::new("", "v1", "Pod").to_string(),
            "/v1, Kind=Pod"
        );
        assert_eq!(
            GroupVersionKind::new("apps", "v1", "Deployment").to_string(),
            "apps/v1, Kind=Deployment"
        );
    }
}
