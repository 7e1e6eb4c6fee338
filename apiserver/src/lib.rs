//! The Kubernetes API over a revisioned store.
//!
//! One path serves every kind. A request is read once ([`request`]), its sender identified ([`authn`]) and
//! asked after ([`authz`]); then the [`registry`] decodes, defaults, admits ([`admission`]), applies the kind's
//! [`strategy`], and compares-and-sets in the store. Reads and watches are answered from a watch [`cache`] whose
//! objects are JSON bytes made once per revision and shared by everybody who asks.
//!
//! Start reading at [`rest`], which maps a request to one of the registry's operations, then [`registry`]. The edges are
//! [`server`] (sockets, TLS, connections), [`discovery`] and [`kubelet`] (what nodes answer); [`services`] gives Services
//! their addresses, [`store`] opens the store and backs it up, [`system`] makes the `kubernetes` Service, [`endpoints`] says who serves it, [`assemble`] puts it all together.

pub mod admission;
pub mod aggregation;
pub mod assemble;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod body;
pub mod bootstrap;
pub mod cache;
pub mod cel;
pub mod codec;
pub mod config;
pub mod crd;
pub mod discovery;
pub mod encryption;
pub mod endpoints;
pub mod fields;
pub mod flowcontrol;
pub mod identity;
pub mod kubelet;
pub mod negotiate;
pub mod node_metrics;
pub mod openapi;
pub mod outbound;
pub mod proxy;
pub mod query;
pub mod registry;
pub mod request;
pub mod rest;
pub mod server;
pub mod services;
pub mod store;
pub mod strategy;
pub mod system;
