//! `skiff store`: backing up, restoring and moving what an API server keeps.
//!
//! A running server hands out a backup of its own store, to whom it lets have everything. All else is the work of the
//! program `apiserver` beside this one, on the store itself.

use std::io::{Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use futures::AsyncReadExt;
use sha2::{Digest, Sha256};

use crate::cluster::preflight::bin_dir;
use crate::verbs::Globals;
use crate::verbs::session::Session;

/// Where an API server hands the backup out.
const PATH: &str = "/skiff/backup";
const CHECKSUM: usize = 32;

/// Back up, restore and move what an API server keeps
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Write everything that is stored into a file, as it is at one revision: through the API server of the kubeconfig, or
    /// from the store that the flags name
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

/// As the API server has them.
#[derive(Debug, Default, clap::Args)]
pub struct StoreFlags {
    /// The API server's data directory, where the embedded store is
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// URLs of an etcd cluster
    #[arg(long)]
    pub etcd_servers: Option<String>,
    /// The authority that has signed etcd's certificates
    #[arg(long)]
    pub etcd_cafile: Option<PathBuf>,
    /// The client certificate for etcd
    #[arg(long)]
    pub etcd_certfile: Option<PathBuf>,
    /// The key of the client certificate for etcd
    #[arg(long)]
    pub etcd_keyfile: Option<PathBuf>,
}

impl StoreFlags {
    fn name_a_store(&self) -> bool {
        self.data_dir.is_some() || self.etcd_servers.is_some()
    }

    fn hand_on(&self, command: &mut Command) {
        let paths = [
            ("--data-dir", &self.data_dir),
            ("--etcd-cafile", &self.etcd_cafile),
            ("--etcd-certfile", &self.etcd_certfile),
            ("--etcd-keyfile", &self.etcd_keyfile),
        ];
        for (flag, path) in paths {
            if let Some(path) = path {
                command.arg(flag).arg(path);
            }
        }
        if let Some(urls) = &self.etcd_servers {
            command.args(["--etcd-servers", urls]);
        }
    }
}

pub fn run(args: Args, globals: &Globals) -> Result<()> {
    match args.command {
        StoreCommand::Backup { file, store } if !store.name_a_store() => back_up(globals, &file),
        StoreCommand::Backup { file, store } => done(direct("backup", Some(&file), false, &store)?),
        StoreCommand::Verify { file } => {
            let store = StoreFlags::default();
            done(direct("verify", Some(&file), false, &store)?)
        }
        StoreCommand::Restore { file, force, store } => {
            if !store.name_a_store() {
                bail!("--data-dir or --etcd-servers says which store is to be restored");
            }
            done(direct("restore", Some(&file), force, &store)?)
        }
        StoreCommand::Move { force, store } => {
            if store.data_dir.is_none() || store.etcd_servers.is_none() {
                bail!("--data-dir says from where, --etcd-servers to where");
            }
            done(direct("move", None, force, &store)?)
        }
    }
}

/// What went wrong has been said.
fn done(success: bool) -> Result<()> {
    match success {
        true => Ok(()),
        false => std::process::exit(1),
    }
}

/// Through the API server of the kubeconfig.
pub fn back_up(globals: &Globals, file: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let bytes = runtime.block_on(fetch(globals, file))?;
    println!("Backed up {bytes} bytes to {}.", file.display());
    Ok(())
}

/// Has the program `apiserver` do it, which says what went wrong. Whether it succeeded.
pub fn direct(verb: &str, file: Option<&Path>, force: bool, store: &StoreFlags) -> Result<bool> {
    let program = bin_dir()?.join("apiserver");
    let mut command = Command::new(&program);
    command.args(["store", verb]).args(file);
    if force {
        command.arg("--force");
    }
    store.hand_on(&mut command);
    let status = command
        .status()
        .with_context(|| format!("starting {}", program.display()))?;
    Ok(status.success())
}

/// Writes what the API server hands out. The file takes its name once the backup is whole; only its owner may read it, as
/// every Secret is in it.
async fn fetch(globals: &Globals, file: &Path) -> Result<u64> {
    let session = Session::connect(globals).await?;
    let mut from = session.stream(PATH, "application/octet-stream").await?;
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let receive = async {
        let mut out = std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)?;
        let (mut buffer, mut bytes) = (vec![0; 64 << 10], 0);
        loop {
            let read = from
                .read(&mut buffer)
                .await
                .context("the answer broke off")?;
            if read == 0 {
                break;
            }
            std::io::Write::write_all(&mut out, &buffer[..read])?;
            bytes += read as u64;
        }
        whole(&mut out, bytes)?;
        out.sync_all()?;
        std::fs::rename(&partial, file)?;
        Ok(bytes)
    };
    let received: Result<u64> = receive.await;
    if received.is_err() {
        // What there is of it is of no use; the error says why.
        let _ = std::fs::remove_file(&partial);
    }
    received.with_context(|| format!("writing {}", file.display()))
}

/// A backup ends with a SHA-256 checksum of all before it; one that broke off does not.
fn whole(file: &mut (impl Read + Seek), bytes: u64) -> Result<()> {
    let broken = "the backup is not whole; the log of the API server says why";
    let length = bytes.checked_sub(CHECKSUM as u64).context(broken)?;
    file.rewind()?;
    let (mut checksum, mut buffer, mut left) = (Sha256::new(), vec![0; 64 << 10], length);
    while left > 0 {
        let most = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = file.read(&mut buffer[..most])?;
        if read == 0 {
            bail!(broken);
        }
        checksum.update(&buffer[..read]);
        left -= read as u64;
    }
    let mut end = [0; CHECKSUM];
    file.read_exact(&mut end)?;
    if end[..] != checksum.finalize()[..] {
        bail!(broken);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn sees_what_is_not_whole() {
        let content = vec![7; 200_000];
        let mut backup = content.clone();
        backup.extend_from_slice(&Sha256::digest(&content));
        let check = |bytes: &[u8]| whole(&mut Cursor::new(bytes), bytes.len() as u64).is_ok();
        assert!(check(&backup));
        for end in [0, 31, 32, 100, backup.len() - 1] {
            assert!(!check(&backup[..end]), "cut off at {end}");
        }
        backup[5] = 8;
        assert!(!check(&backup));
    }

    #[test]
    fn hands_the_flags_on() {
        let store = StoreFlags {
            data_dir: Some("/d".into()),
            etcd_servers: Some("http://a,http://b".into()),
            etcd_cafile: Some("/ca".into()),
            ..StoreFlags::default()
        };
        let mut command = Command::new("apiserver");
        store.hand_on(&mut command);
        let words: Vec<_> = command
            .get_args()
            .filter_map(|word| word.to_str())
            .collect();
        assert_eq!(
            words,
            [
                "--data-dir",
                "/d",
                "--etcd-cafile",
                "/ca",
                "--etcd-servers",
                "http://a,http://b"
            ]
        );
    }
}
