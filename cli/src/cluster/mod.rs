//! `skiff cluster`: whole Kubernetes clusters on one machine, without Docker.
//!
//! A cluster is a *supervisor* on the host and a set of *machines*: the control plane and its nodes. A machine is a set of
//! namespaces (network, mount, PID, UTS, IPC) with a first process that keeps the machine's components alive.
//!
//! - [`spec`]: the record of a cluster, its addresses and paths. Start reading here.
//! - [`create`]: `create` and `start`, step by step; [`lifecycle`]: the other commands, and removal after any crash;
//!   [`backup`]: `backup` and `restore`.
//! - [`supervisor`] and [`machine`] are the two kinds of process in the background, both around [`keeper`]'s loop;
//!   [`spawn`] starts the one from the other.
//! - [`net`], [`rootfs`], [`cgroups`]: what a machine is made of. [`components`]: what runs in it.
//! - [`pki`], [`kubeconfig`], [`preload`] (images), [`addons`] (DNS and its kin), [`preflight`], [`progress`], [`logs`].

pub mod addons;
pub mod backup;
pub mod cgroups;
pub mod components;
pub mod create;
pub mod keeper;
pub mod kubeconfig;
pub mod lifecycle;
pub mod logs;
pub mod machine;
pub mod net;
pub mod pki;
pub mod preflight;
pub mod preload;
pub mod progress;
pub mod rootfs;
pub mod spawn;
pub mod spec;
pub mod supervisor;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;

use lifecycle::Operation;
use spec::Paths;

/// Local clusters: made, stopped, started and removed.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a cluster and start it
    Create(create::Args),
    /// Remove a cluster and everything it made
    Delete {
        #[arg(default_value = "skiff")]
        name: String,
    },
    /// Show all clusters
    List {
        /// Names only
        #[arg(long, short)]
        quiet: bool,
    },
    /// End a cluster's processes; its objects and files stay
    Stop {
        #[arg(default_value = "skiff")]
        name: String,
    },
    /// Start a stopped cluster
    Start {
        #[arg(default_value = "skiff")]
        name: String,
        /// How many seconds to wait for it to serve
        #[arg(long, default_value_t = 120)]
        wait: u64,
    },
    /// Write everything that a running cluster stores into a file
    Backup {
        file: PathBuf,
        /// The cluster
        #[arg(long, default_value = "skiff")]
        name: String,
    },
    /// Restart a cluster with what a backup holds in place of all it stores
    Restore {
        file: PathBuf,
        /// The cluster
        #[arg(long, default_value = "skiff")]
        name: String,
    },
    /// Load an image from a tar file (OCI layout or docker save) into every node
    Load {
        image: PathBuf,
        /// The cluster
        #[arg(long, default_value = "skiff")]
        name: String,
    },
    /// Show what a component printed: apiserver, scheduler, node1/kubelet, ...
    Logs(LogArgs),
    #[command(hide = true)]
    Supervise {
        #[arg(long)]
        state: PathBuf,
        #[arg(long)]
        report: Option<i32>,
        name: String,
    },
    #[command(hide = true)]
    Machine {
        #[arg(long)]
        state: PathBuf,
        name: String,
        machine: String,
    },
}

#[derive(Debug, clap::Args)]
struct LogArgs {
    /// The component; without one, all that have a log are named
    component: Option<String>,
    /// The cluster
    #[arg(long, default_value = "skiff")]
    name: String,
    /// Go on with what is printed from now on
    #[arg(long, short)]
    follow: bool,
    /// How many of the last lines to show
    #[arg(long, default_value_t = 200)]
    tail: usize,
    /// Show those of every component
    #[arg(long)]
    all: bool,
}

pub fn run(args: Args) -> Result<()> {
    let state = spec::state_dir()?;
    match args.command {
        Command::Create(args) => create::create(&args, &state),
        Command::Delete { name } => {
            let paths = named(&state, &name)?;
            let Some(_operation) = Operation::on(&paths)? else {
                eprintln!("There is no cluster {name}.");
                return Ok(());
            };
            lifecycle::remove(&paths, &state)?;
            eprintln!("Deleted cluster {name}.");
            Ok(())
        }
        Command::List { quiet } => lifecycle::list(&state, quiet),
        Command::Stop { name } => {
            let paths = named(&state, &name)?;
            let _operation = Operation::on_existing(&paths)?;
            lifecycle::halt(&paths, &state, true)?;
            eprintln!("Stopped cluster {name}.");
            Ok(())
        }
        Command::Start { name, wait } => create::start(&named(&state, &name)?, &state, wait),
        Command::Load { image, name } => {
            let paths = named(&state, &name)?;
            let _operation = Operation::on_existing(&paths)?;
            lifecycle::load(&paths, &image)?;
            eprintln!(
                "Loaded {} into every node of cluster {name}.",
                image.display()
            );
            Ok(())
        }
        Command::Backup { file, name } => backup::back_up(&named(&state, &name)?, &file),
        Command::Restore { file, name } => backup::restore(&named(&state, &name)?, &state, &file),
        Command::Logs(args) => show_logs(&named(&state, &args.name)?, &args),
        Command::Supervise {
            state,
            report,
            name,
        } => supervisor::run(&state, &name, report),
        Command::Machine {
            state,
            name,
            machine,
        } => machine::run(&state, &name, &machine),
    }
}

/// A name is checked before it becomes part of a path.
fn named(state: &std::path::Path, name: &str) -> Result<Paths> {
    spec::check_name(name)?;
    Ok(Paths::new(state, name))
}

fn show_logs(paths: &Paths, args: &LogArgs) -> Result<()> {
    if args.all {
        for (name, path) in logs::all(paths) {
            println!("==> {name} <==\n{}", logs::tail(&path, args.tail)?);
        }
        return Ok(());
    }
    let Some(component) = &args.component else {
        for (name, _) in logs::all(paths) {
            println!("{name}");
        }
        return Ok(());
    };
    let path = logs::find(paths, component).with_context(|| format!("cluster {}", paths.name))?;
    if args.follow {
        return logs::follow(&path, args.tail);
    }
    print!("{}", logs::tail(&path, args.tail)?);
    Ok(())
}
