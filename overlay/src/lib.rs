//! The pod network of a node: the job that flannel does, for nodes that share a network.
//!
//! From the Nodes' pod ranges and addresses it keeps, on its own node,
//! - the CNI configuration that the container runtime gives pods their interfaces by ([`cni`]),
//! - a plain route to every other node's pods,
//! - the rules that let pod traffic pass, and that masquerade it where it leaves the cluster ([`kernel`]).
//!
//! What should be is said by pure functions in [`plan`]: start reading there. [`server`] runs them whenever a Node or
//! a route changes, and repairs the difference. Tunnels (VXLAN) for nodes on different networks are another
//! backend, still to come.

pub mod cni;
pub mod kernel;
pub mod plan;
pub mod server;
