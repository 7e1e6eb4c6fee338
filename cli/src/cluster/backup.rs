//! A local cluster's store in a file, and back.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::lifecycle::{self, Operation};
use super::spec::{Paths, Store};
use super::{create, preflight};
use crate::store::{self, StoreFlags};
use crate::verbs::Globals;

/// How long the cluster may take to serve again.
const WAIT: u64 = 120;

/// Through the cluster's API server, which goes on serving.
pub fn back_up(paths: &Paths, file: &Path) -> Result<()> {
    let cluster = paths.load()?;
    if lifecycle::supervisor(paths).is_none() {
        bail!(
            "cluster {} does not run; `skiff cluster start {}` first",
            paths.name,
            paths.name
        );
    }
    let globals = Globals {
        kubeconfig: Some(cluster.kubeconfig.clone()),
        context: Some(cluster.context()),
        ..Globals::default()
    };
    store::back_up(&globals, file)
}

/// Stops the cluster, makes its store what the backup holds, and starts it again.
pub fn restore(paths: &Paths, state: &Path, file: &Path) -> Result<()> {
    {
        let _operation = Operation::on_existing(paths)?;
        let cluster = paths.load()?;
        // Nobody is stopped for a file that is of no use.
        ensure!(
            store::direct("verify", Some(file), false, &StoreFlags::default())?,
            "cluster {} was left as it is",
            paths.name
        );
        lifecycle::halt(paths, state, true)?;
        let restored = match cluster.store {
            Store::Embedded => {
                let flags = StoreFlags {
                    data_dir: Some(paths.store()),
                    ..StoreFlags::default()
                };
                store::direct("restore", Some(file), true, &flags)?
            }
            Store::Etcd => {
                let etcd = Interim::start(paths)?;
                let flags = StoreFlags {
                    etcd_servers: Some(etcd.url.clone()),
                    ..StoreFlags::default()
                };
                let restored = store::direct("restore", Some(file), true, &flags)?;
                etcd.stop()?;
                restored
            }
        };
        ensure!(
            restored,
            "cluster {} is stopped and was not restored",
            paths.name
        );
    }
    create::start(paths, state, WAIT)
}

/// The cluster's etcd, for as long as the restore takes, on a port of the host's loopback that nobody knows of.
struct Interim {
    process: Child,
    url: String,
}

impl Interim {
    fn start(paths: &Paths) -> Result<Self> {
        let url = || {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
                .local_addr()?
                .port();
            anyhow::Ok(format!("http://127.0.0.1:{port}"))
        };
        let (client, peer) = (url()?, url()?);
        let program = preflight::find("etcd").context("etcd is not installed")?;
        fs::create_dir_all(paths.logs())?;
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(paths.logs().join("restore.log"))?;
        let process = Command::new(program)
            .args(["--name=skiff", "--log-level=warn"])
            .arg(format!("--data-dir={}", paths.store().display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start etcd")?;
        Ok(Interim {
            process,
            url: client,
        })
    }

    /// Lets it write what it has to.
    fn stop(mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.process.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Interim {
    fn drop(&mut self) {
        // Gone already, unless something failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
