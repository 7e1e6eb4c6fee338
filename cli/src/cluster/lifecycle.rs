//! Starting, stopping, removing and listing clusters.
//!
//! Removal does not trust that anything went well before: it looks for what carries the cluster's name (processes by cgroup,
//! interfaces by alias, rules by comment), so it works after a crash at any point, and twice.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::keeper::Report;
use super::spec::{self, Cluster, Machine, Paths};
use super::{cgroups, kubeconfig, net, preload, rootfs};

/// Longer than all stages of stopping together.
const STOP_LIMIT: Duration = Duration::from_secs(40);

/// Held by whichever command works on a cluster.
pub struct Operation(#[expect(dead_code, reason = "dropping it unlocks")] File);

impl Operation {
    /// Waits for any other command on this cluster. `None` when there is no such cluster.
    pub fn on(paths: &Paths) -> Result<Option<Operation>> {
        loop {
            let dir = match File::open(&paths.dir) {
                Ok(dir) => dir,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e).with_context(|| format!("open {}", paths.dir.display())),
            };
            dir.lock()?;
            // Whoever held it may have removed the directory.
            let same = |now: fs::Metadata| dir.metadata().is_ok_and(|d| d.ino() == now.ino());
            if fs::metadata(&paths.dir).is_ok_and(same) {
                return Ok(Some(Operation(dir)));
            }
        }
    }

    pub fn on_existing(paths: &Paths) -> Result<Operation> {
        match Operation::on(paths)? {
            Some(operation) => Ok(operation),
            None => bail!(
                "there is no cluster {:?}; `skiff cluster list` shows those that are",
                paths.name
            ),
        }
    }
}

/// The process id of the living supervisor.
pub fn supervisor(paths: &Paths) -> Option<Pid> {
    let file = File::open(paths.supervisor_lock()).ok()?;
    if file.try_lock_shared().is_ok() {
        return None;
    }
    let text = fs::read_to_string(paths.supervisor_lock()).ok()?;
    text.trim().parse().ok().map(Pid::from_raw)
}

/// Starts the supervisor in the background and gives what it and its machines report.
pub fn launch(paths: &Paths, state: &Path) -> Result<impl Iterator<Item = Report> + Send + use<>> {
    fs::create_dir_all(paths.logs())?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(paths.logs().join("supervisor.log"))?;
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["cluster", "supervise", "--report", "3", "--state"])
        .arg(state)
        .arg(&paths.name);
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .current_dir("/");
    let fd = write.as_raw_fd();
    // SAFETY: bare system calls on a descriptor that lives until the process has started.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            if nix::libc::dup2(fd, 3) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            // The same number keeps the flag that closes it.
            if fd == 3 {
                nix::libc::fcntl(3, nix::libc::F_SETFD, 0);
            }
            Ok(())
        });
    }
    command.spawn().context("start the supervisor")?;
    drop(write);
    Ok(reports(read))
}

fn reports(read: OwnedFd) -> impl Iterator<Item = Report> + Send {
    let lines = BufReader::new(File::from(read)).lines();
    lines
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str(&line).ok())
}

/// Ends every process of the cluster and takes it out of the host's network; its state stays.
pub fn halt(paths: &Paths, state: &Path, gently: bool) -> Result<()> {
    if let Some(pid) = supervisor(paths) {
        let signal = if gently {
            Signal::SIGTERM
        } else {
            Signal::SIGKILL
        };
        end(pid, signal)?;
    }
    let cluster = paths.load().ok();
    let mut groups: Vec<PathBuf> = cgroups::discover()?
        .iter()
        .map(|h| cgroups::scope_dir(h, &paths.scope()))
        .collect();
    let recorded = fs::read(paths.cgroups()).unwrap_or_default();
    groups.extend(serde_json::from_slice::<Vec<PathBuf>>(&recorded).unwrap_or_default());
    groups.sort();
    groups.dedup();
    cgroups::destroy(&groups)?;
    let others = spec::names(state)?
        .into_iter()
        .filter(|name| *name != paths.name);
    let open = others
        .map(|name| Paths::new(state, &name))
        .filter(|p| supervisor(p).is_some());
    let last = !open.filter_map(|p| p.load().ok()).any(|c| !c.isolated);
    net::detach_host(cluster.as_ref(), &paths.scope(), state, last)
}

/// Signals a process and waits until it has gone, by force if need be.
fn end(pid: Pid, signal: Signal) -> Result<()> {
    // SAFETY: a bare system call that gives a new descriptor or an error.
    let fd = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid.as_raw(), 0) };
    if fd < 0 {
        return Ok(());
    }
    // SAFETY: just opened, and nothing else has it.
    let fd = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd as i32) };
    for (signal, limit) in [(signal, STOP_LIMIT), (Signal::SIGKILL, STOP_LIMIT)] {
        match kill(pid, signal) {
            Err(Errno::ESRCH) => return Ok(()),
            result => result.with_context(|| format!("signal process {pid}"))?,
        }
        let mut fds = [PollFd::new(
            std::os::fd::AsFd::as_fd(&fd),
            PollFlags::POLLIN,
        )];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        if poll(&mut fds, limit)? > 0 {
            return Ok(());
        }
    }
    bail!("process {pid} does not end")
}

/// Removes all of a cluster: processes, network, its context in the user's kubeconfig, files.
pub fn remove(paths: &Paths, state: &Path) -> Result<()> {
    halt(paths, state, false)?;
    if let Ok(cluster) = paths.load() {
        kubeconfig::remove_from(&cluster.kubeconfig, &cluster.context())?;
    }
    // No mount may lie below what is removed now: its files would go too.
    for point in rootfs::mounts_below(&paths.dir) {
        umount2(&point, MntFlags::MNT_DETACH)
            .with_context(|| format!("unmount {}", point.display()))?;
    }
    // The record goes last: until then another `delete` knows what to look for.
    for entry in fs::read_dir(&paths.dir)?.flatten() {
        let path = entry.path();
        let removed = match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(&path),
            false if path == paths.record() => Ok(()),
            false => fs::remove_file(&path),
        };
        removed.with_context(|| format!("remove {}", path.display()))?;
    }
    fs::remove_dir_all(&paths.dir).with_context(|| format!("remove {}", paths.dir.display()))?;
    for shared in [state.join("clusters"), state.to_path_buf()] {
        // Only when this was the last cluster.
        let _ = fs::remove_dir(shared);
    }
    Ok(())
}

/// What a cluster is doing.
pub fn status(paths: &Paths, cluster: Option<&Cluster>) -> &'static str {
    match cluster {
        Some(cluster) if cluster.complete => match supervisor(paths) {
            Some(_) => "Running",
            None => "Stopped",
        },
        _ => "Incomplete",
    }
}

pub fn list(state: &Path, quiet: bool) -> Result<()> {
    let mut rows = vec![["NAME", "STATUS", "NODES", "STORE", "NETWORK", "API"].map(String::from)];
    for name in spec::names(state)? {
        if quiet {
            println!("{name}");
            continue;
        }
        let paths = Paths::new(state, &name);
        let cluster = paths.load().ok();
        let status = status(&paths, cluster.as_ref()).to_string();
        rows.push(match cluster {
            Some(c) => {
                let network = format!(
                    "{}{}",
                    c.cidr(),
                    if c.isolated { " (isolated)" } else { "" }
                );
                [
                    name,
                    status,
                    c.nodes.to_string(),
                    c.store.to_string(),
                    network,
                    c.external_server(),
                ]
            }
            None => [name, status, "-".into(), "-".into(), "-".into(), "-".into()],
        });
    }
    if quiet {
        return Ok(());
    }
    if rows.len() == 1 {
        eprintln!("No clusters. `skiff cluster create` makes one.");
        return Ok(());
    }
    let widths: Vec<usize> = (0..6)
        .map(|i| rows.iter().map(|r| r[i].len()).max().unwrap_or(0))
        .collect();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        println!("{}", cells.join("   ").trim_end());
    }
    Ok(())
}

/// Imports an image into every node of a running cluster, side by side.
pub fn load(paths: &Paths, tar: &Path) -> Result<()> {
    let cluster = paths.load()?;
    if supervisor(paths).is_none() {
        bail!(
            "cluster {} does not run; `skiff cluster start {}` first",
            paths.name,
            paths.name
        );
    }
    let import = |node: u32| -> Result<()> {
        let pid =
            fs::read_to_string(paths.node(node).join("pid")).context("the node does not run")?;
        preload::import_into_node(pid.trim().parse()?, tar)
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = cluster
            .nodes()
            .map(|n| (n, scope.spawn(move || import(n))))
            .collect();
        for (node, thread) in running {
            let name = Machine::Node(node).name();
            let result = thread
                .join()
                .unwrap_or_else(|_| bail!("the import panicked"));
            result.with_context(|| format!("load {} into {name}", tar.display()))?;
        }
        Ok(())
    })
}
