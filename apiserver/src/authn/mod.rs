//! Who is asking: from a client certificate, a bearer token or nothing to a [`UserInfo`].

use std::collections::BTreeMap;

/// An authenticated identity, as admission, authorization and audit see it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

pub const ANONYMOUS: &str = "system:anonymous";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const AUTHENTICATED: &str = "system:authenticated";
/// May do everything, whatever the authorizers say.
pub const MASTERS: &str = "system:masters";
/// The API server's own loopback identity.
pub const APISERVER: &str = "system:apiserver";

impl UserInfo {
    #[must_use]
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        Self {
            name: name.into(),
            groups: groups.iter().map(ToString::to_string).collect(),
            ..Self::default()
        }
    }

    /// The identity of requests without credentials.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::new(ANONYMOUS, &[UNAUTHENTICATED])
    }

    /// The identity under which the API server writes for itself (bootstrap, reconcilers).
    #[must_use]
    pub fn apiserver() -> Self {
        Self::new(APISERVER, &[MASTERS])
    }

    #[must_use]
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}
