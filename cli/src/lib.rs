//! `skiff`: the command that people type.
//!
//! It has two halves, and [`store`] for backups. [`cluster`] makes whole clusters on this machine and looks after them; everything beneath `skiff cluster` is there.
//! [`verbs`] work on a cluster's objects, as kubectl's do. All are joined by [`Command`]
//! alone: start reading there.

pub mod cluster;
pub mod store;
pub mod verbs;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A small, fast Kubernetes
#[derive(Debug, Parser)]
#[command(name = "skiff", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    globals: verbs::Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Cluster(cluster::Args),
    Store(store::Args),
    #[command(flatten)]
    Verb(verbs::Verb),
}

/// Runs the command line. The two background processes of a cluster stay single-threaded, so each command makes
/// the runtime that it needs itself.
pub fn main() -> ExitCode {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Cluster(args) => cluster::run(args),
        Command::Store(args) => store::run(args, &cli.globals),
        Command::Verb(verb) => return verbs::run(verb, &cli.globals),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
