//! Objects that a cluster starts with: default RBAC roles and bindings.
