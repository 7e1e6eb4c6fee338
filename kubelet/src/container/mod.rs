//! From a pod's spec to what the runtime is told: sandbox, container, environment,
//! security, names. Everything here is a pure function of its arguments, except
//! `files`, which writes the few files that containers get from the node.

pub mod config;
pub mod dns;
pub mod env;
pub mod fields;
pub mod files;
pub mod sandbox;
pub mod security;
