//! Waiting on a condition with a deadline, so that no test sleeps for a fixed time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Calls `check` until it gives a value, and returns that.
///
/// `check` answers `Ok(None)` for "not yet" and `Err` with what it saw for the
/// same; the last error is shown when the deadline passes.
pub fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut check: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match check() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(err) => Some(err),
        };
        if start.elapsed() > deadline {
            match last {
                Some(err) => bail!("{what}: not within {deadline:?}; last seen: {err:#}"),
                None => bail!("{what}: not within {deadline:?}"),
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
