//! Cluster DNS: names for Services, their endpoints and pods, as the Kubernetes DNS specification says.
//!
//! [`index`] keeps what names are made from, fed by watches. [`zone`] answers a question from it: pure functions, and
//! the place to read the rules. [`server`] takes questions over UDP and TCP, and [`forward`] passes those about other
//! names on to other servers.

pub mod forward;
pub mod index;
pub mod server;
pub mod zone;
