//! The scheduler: finds a node for every pod.
//!
//! One task owns everything that decisions rest on: the [`cluster`] (nodes, and the pods on them, assumed ones
//! included) and the [`queue`] of pods that wait. Deciding is pure: [`schedule`] runs the [`plugins`] over the
//! cluster for one pod and returns a node or the reasons why not; [`preempt`] says whom to evict for it. The
//! [`shell`] feeds watch events in, writes bindings (many in flight), conditions and events out.
//!
//! Pods and nodes are kept as [`model`] compiles them: requests as integers, selectors parsed once. Nothing is
//! allocated per node while filtering.
//!
//! Start reading at [`framework`], then [`schedule`].

pub mod cluster;
pub mod framework;
pub mod model;
pub mod plugins;
pub mod preempt;
pub mod queue;
pub mod schedule;
pub mod shell;
pub mod status;
