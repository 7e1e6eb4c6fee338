//! `conformance-report TESTED JUNIT...`: the page that [`e2e::conformance`] makes of JUnit reports, on standard output.
//! TESTED is the sentence that says what was tested. Later reports win over earlier ones.

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let Some(tested) = args.next() else {
        bail!("usage: conformance-report TESTED JUNIT...");
    };
    let mut results = e2e::conformance::Results::default();
    for path in args {
        let xml = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        results.read(&xml).with_context(|| path)?;
    }
    print!("{}", results.page(&tested));
    Ok(())
}
