//! Tests that drive Skiff from outside, as a user does: real binaries, real
//! containers, a real `kubectl`.
//!
//! Each file in `tests/` is one story on a cluster of its own. [`Cluster`]
//! makes it with `skiff cluster create --isolated` and deletes it when
//! dropped; [`Tool`] runs `kubectl` or `skiff` against it, so that one story
//! can be told with both; [`eventually`] waits on a condition with a deadline.
//!
//! The binaries are those beside the test's own target folder, or those in
//! `SKIFF_BIN_DIR`. They need root, containerd and the programs that
//! `deploy/test` installs.

mod cluster;
pub mod conformance;
mod leftovers;
mod tool;
mod wait;

pub use cluster::{Cluster, Options};
pub use leftovers::Footprint;
pub use tool::{Background, Output, Tool, bin_dir};
pub use wait::eventually;

/// The folder of this checkout, where `manifests/` lives.
pub fn checkout() -> &'static std::path::Path {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the e2e crate lies in the checkout")
}
