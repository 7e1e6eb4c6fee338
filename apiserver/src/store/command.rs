//! `apiserver store`: backs a store up, restores it, and moves an embedded one to etcd. A running server's store is backed
//! up through the server ([`PATH`]), which `skiff store backup` does.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use futures::StreamExt;
use storage::backup::{self, RestoreOptions, Restored};
use storage::{Error, embedded, etcd};

use super::StoreFlags;

/// Where a running server hands a backup of its store out, to whom its authorizer allows that.
pub const PATH: &str = "/skiff/backup";

/// Backs up, restores and moves what the API server keeps.
#[derive(Debug, Parser)]
#[command(name = "apiserver store", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write everything that is stored, as it is at one revision, into a file
    Backup {
        file: PathBuf,
        #[command(flatten)]
        store: StoreFlags,
    },
    /// Say what a backup holds, or what is wrong with it
    Verify { file: PathBuf },
    /// Make a store what a backup holds; its API servers have to be stopped
    Restore {
        file: PathBuf,
        /// Replace what is in the store
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        store: StoreFlags,
    },
    /// Move everything from the embedded store in --data-dir to the etcd of --etcd-servers; the API server has to be stopped
    Move {
        /// Replace what is in etcd
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        store: StoreFlags,
    },
}

pub async fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Backup { file, store } => {
            back_up(&store, &file).await?;
            let summary = backup::verify(&file)?;
            println!(
                "Backed up {} keys at revision {} to {}.",
                summary.keys,
                summary.revision,
                file.display()
            );
        }
        Command::Verify { file } => {
            let summary = backup::verify(&file)?;
            let taken = jiff::Timestamp::from_second(summary.taken.try_into()?)?;
            println!(
                "{} is whole: {} keys at revision {}, taken at {taken}.",
                file.display(),
                summary.keys,
                summary.revision
            );
        }
        Command::Restore { file, force, store } => {
            let how = RestoreOptions {
                overwrite: force,
                ..RestoreOptions::default()
            };
            let restored = restore(&store, &file, how).await?;
            println!(
                "Restored {} keys; the store is at revision {}.",
                restored.keys, restored.revision
            );
        }
        Command::Move { force, store } => {
            let (restored, kept) = relocate(store, force).await?;
            println!(
                "Moved {} keys to etcd; the store is at revision {}. The old file is kept as {}.",
                restored.keys,
                restored.revision,
                kept.display()
            );
        }
    }
    Ok(())
}

/// A file takes its name once it is whole. Nobody else may read it: it holds every Secret.
async fn back_up(store: &StoreFlags, file: &Path) -> Result<()> {
    if store.is_embedded() && !store.file().exists() {
        bail!("there is no store {}", store.file().display());
    }
    let engine = store.open(Duration::ZERO).await.map_err(|error| {
        let locked = format!("{error:#}").contains("in use by another process");
        match locked {
            true => error.context(
                "while its API server runs, an embedded store is backed up through it, \
                 with a kubeconfig: `skiff store backup FILE`",
            ),
            false => error,
        }
    })?;
    let partial = beside(file, ".partial");
    let write = async {
        let mut out = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)?;
        let mut pieces = std::pin::pin!(backup::stream(engine.clone()));
        while let Some(piece) = pieces.next().await {
            out.write_all(&piece?)?;
        }
        out.sync_all()?;
        std::fs::rename(&partial, file)?;
        anyhow::Ok(())
    };
    let written = write.await;
    engine.close().await;
    if written.is_err() {
        // What there is of it is of no use; the error that follows says why.
        let _ = std::fs::remove_file(&partial);
    }
    written.with_context(|| format!("writing {}", file.display()))
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

async fn restore(store: &StoreFlags, file: &Path, how: RestoreOptions) -> Result<Restored> {
    let restored = match store.is_embedded() {
        true => embedded::restore(&store.file(), file, how),
        false => etcd::restore(&store.etcd_servers, store.etcd()?, file, how).await,
    };
    restored.map_err(|error| match error {
        Error::Occupied(what) => anyhow::anyhow!("{what}; --force replaces them"),
        error => error.into(),
    })
}

/// By way of a backup, which is checked like any other. Nothing was written after it, as the old store is closed to
/// everybody else, so revisions go on where they were.
async fn relocate(flags: StoreFlags, force: bool) -> Result<(Restored, PathBuf)> {
    if flags.is_embedded() {
        bail!("--etcd-servers says where to move to");
    }
    let from = StoreFlags {
        data_dir: flags.data_dir.clone(),
        ..StoreFlags::default()
    };
    let file = from.file();
    let interim = beside(&file, ".backup");
    back_up(&from, &interim).await?;
    let how = RestoreOptions {
        overwrite: force,
        bump: 0,
    };
    let restored = restore(&flags, &interim, how).await;
    std::fs::remove_file(&interim).with_context(|| format!("removing {}", interim.display()))?;
    let restored = restored?;
    // No server shall go on with it by mistake.
    let kept = beside(&file, ".moved");
    std::fs::rename(&file, &kept).with_context(|| format!("renaming {}", file.display()))?;
    Ok((restored, kept))
}
