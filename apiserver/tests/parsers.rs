//! What the fuzz targets start from, and what they have found before, goes through the same functions on every run of the
//! tests: `fuzz/README.md` has the rest.

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

/// Folders of inputs, one for each target.
fn folders(of: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz")
        .join(of);
    let folders = fs::read_dir(root).unwrap();
    folders.map(|folder| folder.unwrap().path()).collect()
}

fn replay(of: &str) {
    let mut broken = Vec::new();
    for folder in folders(of) {
        let target = folder.file_name().unwrap().to_str().unwrap().to_owned();
        for input in fs::read_dir(&folder).unwrap() {
            let input = input.unwrap().path();
            let bytes = fs::read(&input).unwrap();
            if catch_unwind(|| fuzz::run(&target, &bytes)).is_err() {
                broken.push(input);
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn seeds_keep_what_their_targets_promise() {
    replay("seeds");
}

#[test]
fn what_broke_once_does_not_break_again() {
    replay("regressions");
}

#[test]
fn every_target_has_a_seed_and_a_program() {
    let mut seeded: Vec<_> = folders("seeds")
        .iter()
        .map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    let mut targets: Vec<_> = fuzz::names().map(str::to_owned).collect();
    seeded.sort_unstable();
    targets.sort_unstable();
    assert_eq!(seeded, targets);
    for name in targets {
        let program = format!("../fuzz/fuzz_targets/{name}.rs");
        assert!(
            Path::new(env!("CARGO_MANIFEST_DIR")).join(program).exists(),
            "{name}"
        );
    }
}
