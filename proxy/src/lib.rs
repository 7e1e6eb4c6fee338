//! The service proxy: makes every Service's addresses lead to its endpoints on this node.
//!
//! It does what kube-proxy does, with the same flags, ports and chains. The way of a change:
//!
//! 1. [`objects`] reduces each Service, EndpointSlice and the own Node to the few fields that matter;
//! 2. [`model`] makes one rule model of them: per Service port, which endpoints internal and external
//!    traffic may use on this node (a pure function, the place to read Kubernetes' rules);
//! 3. a [`backend`] turns the model into kernel rules in one transaction. Today that is [`iptables`];
//! 4. [`conntrack`] forgets UDP flows that the old rules set up, [`health`] answers load balancers.
//!
//! [`server`] is the loop around it. Start reading at [`model`].

pub mod backend;
pub mod conntrack;
pub mod health;
pub mod iptables;
pub mod model;
pub mod objects;
pub mod options;
pub mod server;
