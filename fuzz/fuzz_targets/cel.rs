#![no_main]

use std::sync::Once;

/// The parser's panics are caught and told as syntax errors: only what comes out of the target ends the run.
static QUIET: Once = Once::new();

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    fuzz::run("cel", bytes);
});
