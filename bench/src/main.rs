//! The `bench` binary: which rows, with which programs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bench::plane::Make;
use bench::report;
use bench::rows::{ROWS, Row, Setting};
use clap::Parser;
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Measures Skiff, and with --peer Kubernetes in the same run.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    /// Rows to measure; without any, all of them
    rows: Vec<String>,
    /// Say which rows there are
    #[arg(long)]
    list: bool,
    /// Where Skiff's programs are; the default is where this one is
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// A folder with kube-apiserver, kube-scheduler and kube-controller-manager
    #[arg(long, value_name = "DIR")]
    peer: Option<PathBuf>,
    /// How many seconds each rate is measured
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

fn main() -> ExitCode {
    match run(Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: Flags) -> Result<()> {
    if flags.list {
        ROWS.iter()
            .for_each(|row| println!("{:<14}{}", row.name, row.about));
        return Ok(());
    }
    let rows = chosen(&flags.rows)?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let here = std::env::current_exe()?;
    let setting = Setting {
        bin_dir: match flags.bin_dir {
            Some(dir) => dir,
            None => here
                .parent()
                .context("this program lies nowhere")?
                .to_owned(),
        },
        peer: flags.peer.map(Make::Kubernetes),
        duration: Duration::from_secs(flags.seconds),
    };
    // The load must not be what is measured, but two cores are few: one thread each for client and server.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let mut figures = Vec::new();
    for row in rows {
        eprintln!("{}: {}", row.name, row.about);
        let measured = runtime.block_on((row.run)(&setting));
        figures.extend(measured.with_context(|| row.name.to_owned())?);
    }
    print!("{}", report::table(&figures));
    Ok(())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Row>> {
    if names.is_empty() {
        return Ok(ROWS.iter().collect());
    }
    names
        .iter()
        .map(|name| match ROWS.iter().find(|row| row.name == name) {
            Some(row) => Ok(row),
            None => bail!("no row is named {name:?}; --list shows them all"),
        })
        .collect()
}
