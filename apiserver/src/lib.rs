//! The Kubernetes API over a revisioned store.
//!
//! One path serves every kind. A request is read once ([`request`]), its sender identified ([`authn`]) and
//! asked after ([`authz`]); then the [`registry`] decodes, defaults, admits ([`admission`]), applies the kind's
//! [`strategy`], and compares-and-sets in the store. Reads and watches are answered from a watch [`cache`] whose
//! objects are JSON bytes made once per revision and shared by everybody who asks.
//!
//! Start reading at [`registry`].

pub mod admission;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod cache;
pub mod codec;
pub mod fields;
pub mod query;
pub mod registry;
pub mod request;
pub mod strategy;
