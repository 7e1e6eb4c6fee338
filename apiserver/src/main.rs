//! The `apiserver` program: flags, logging, signals.

use anyhow::Result;
use apiserver::store::command;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    // A word of its own, as the server has no subcommands and flags that it cannot do without.
    let mut words: Vec<_> = std::env::args_os().collect();
    if words.get(1).is_some_and(|word| word == "store") {
        words.remove(0);
        let cli = command::Cli::parse_from(words);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        if let Err(error) = runtime.block_on(command::run(cli)) {
            eprintln!("error: {error:#}");
            std::process::exit(1);
        }
        return Ok(());
    }
    let config = apiserver::config::Config::parse();
    let filter =
        EnvFilter::try_from_env("SKIFF_LOG").or_else(|_| EnvFilter::try_from_default_env());
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter.unwrap_or_else(|_| EnvFilter::new("info")))
        .init();
    // Fails only if something installed a provider before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(config))
}

async fn run(config: apiserver::config::Config) -> Result<()> {
    let began = std::time::Instant::now();
    let running = apiserver::assemble::start(&config).await?;
    tracing::info!(addresses = ?running.addresses, took = ?began.elapsed(), "serving");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    running.server.shutdown.cancel();
    running.finished().await;
    Ok(())
}
