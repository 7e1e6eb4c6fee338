//! Fuzz targets for the parsers that take bytes from outside; `README.md` says how to run them.
//! A test of the API server includes this file, and replays the folders `seeds/` and `regressions/`.

mod frames;
#[path = "../../kubelet/src/server/spdy.rs"]
#[allow(dead_code)]
mod spdy;
mod targets;

type Target = fn(&[u8]);

fn all() -> impl Iterator<Item = (&'static str, Target)> {
    let frames: (&str, Target) = ("spdy", frames::spdy);
    targets::TARGETS.iter().copied().chain([frames])
}

/// Runs a target by its name.
///
/// # Panics
/// If the input breaks what the target promises, or there is no such target.
pub fn run(name: &str, bytes: &[u8]) {
    let known = all().find(|(known, _)| *known == name);
    let (_, target) = known.expect("a target of this name");
    target(bytes);
}

/// What the targets are called.
pub fn names() -> impl Iterator<Item = &'static str> {
    all().map(|(name, _)| name)
}
