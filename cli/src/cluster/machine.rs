//! The first process of a machine: it makes the namespaces that it was started in into a machine, and then keeps the machine's
//! components alive.

use std::fs::File;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::SigSet;
use nix::unistd::{Pid, getpid, sethostname};

use super::components::{self, Component, LISTEN_FDS, NETWORK_FD, REPORT_FD};
use super::keeper::{self, Keeper, Starter, Unit};
use super::spec::{Cluster, Machine, Paths};
use super::{cgroups, net, rootfs};

/// How long containers have to end by themselves when a cluster is stopped.
const GRACE: Duration = Duration::from_secs(2);

pub fn run(state: &Path, name: &str, machine: &str) -> Result<()> {
    let machine = Machine::parse(machine).with_context(|| format!("no such machine: {machine}"))?;
    if getpid().as_raw() != 1 {
        bail!("this command is for the supervisor of a cluster; use `skiff cluster start`");
    }
    let paths = Paths::new(state, name);
    let cluster = paths.load()?;
    let components = components::of(&cluster, &paths, machine);
    let network = inherited(NETWORK_FD)?;
    let report = inherited(REPORT_FD)?;
    let sockets = match machine {
        Machine::ControlPlane => LISTEN_FDS
            .iter()
            .map(|fd| inherited(*fd))
            .collect::<Result<Vec<_>>>()?,
        Machine::Node(_) => Vec::new(),
    };
    setns(&network, CloneFlags::CLONE_NEWNET).context("enter the machine's network")?;
    raise_file_limit();
    let logs = become_machine(&cluster, &paths, machine)?;

    let prefix = match machine {
        Machine::ControlPlane => String::new(),
        Machine::Node(_) => format!("{}/", machine.name()),
    };
    let mut keeper = Keeper::new(Some(report), &prefix)?;
    let environment = environment(&cluster);
    for component in components {
        let log = logs.join(format!("{}.log", component.name));
        let after = component.after;
        let mut unit = Unit::new(
            component.name,
            component.stage,
            log,
            starter(component, environment.clone()),
        )?;
        if let Some(path) = after {
            unit = unit.after(path);
        }
        keeper.add(unit)?;
    }
    keeper.run()?;
    drop(sockets);
    if matches!(machine, Machine::Node(_)) {
        keeper::end_everything(GRACE);
    }
    Ok(())
}

/// Enters cgroup, mounts and host name. Gives the directory for logs as it is called afterwards.
fn become_machine(cluster: &Cluster, paths: &Paths, machine: Machine) -> Result<PathBuf> {
    let hierarchies = cgroups::discover()?;
    cgroups::enter(&hierarchies, &paths.scope(), &machine.name())?;
    sethostname(machine.name()).context("set the host name")?;
    match machine {
        Machine::ControlPlane => {
            rootfs::enter_control_plane()?;
            Ok(paths.machine_logs(machine))
        }
        Machine::Node(node) => {
            unshare(CloneFlags::CLONE_NEWCGROUP).context("make a cgroup namespace")?;
            rootfs::enter(cluster, paths, node, &hierarchies)?;
            net::node_sysctls()?;
            // The kubelet's start waits for a file in here.
            if let Some(dir) = Path::new(components::CONTAINERD_SOCKET).parent() {
                std::fs::create_dir_all(dir)?;
            }
            Ok(PathBuf::from("/var/log/skiff"))
        }
    }
}

/// Takes over a descriptor that the supervisor passed; only those components that need it get it in turn.
fn inherited(fd: i32) -> Result<OwnedFd> {
    // SAFETY: only looked at, to learn whether it is open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        .with_context(|| format!("descriptor {fd} was not passed"))?;
    // SAFETY: the supervisor opened it for this process, and nothing else here takes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn starter(component: Component, environment: Vec<(String, String)>) -> Starter {
    Box::new(move |output| {
        let mut command = Command::new(&component.argv[0]);
        command
            .args(&component.argv[1..])
            .envs(environment.iter().map(|(k, v)| (k, v)));
        let log = File::from(output.try_clone_to_owned()?);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let fds = component.fds.clone();
        // SAFETY: both are bare system calls.
        unsafe {
            command.pre_exec(move || {
                // The keeper takes its signals from a descriptor and blocks them; a component must hear them.
                SigSet::empty().thread_set_mask()?;
                for fd in &fds {
                    fcntl(
                        BorrowedFd::borrow_raw(*fd),
                        FcntlArg::F_SETFD(FdFlag::empty()),
                    )?;
                }
                Ok(())
            });
        }
        Ok(Pid::from_raw(command.spawn()?.id() as i32))
    })
}

fn environment(cluster: &Cluster) -> Vec<(String, String)> {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let path = match std::env::var("PATH") {
        Ok(own) => format!("{path}:{own}"),
        Err(_) => path.to_string(),
    };
    let mut environment = vec![("PATH".to_string(), path)];
    for name in ["NO_PROXY", "no_proxy"] {
        let own = std::env::var(name)
            .map(|v| format!(",{v}"))
            .unwrap_or_default();
        environment.push((name.to_string(), components::no_proxy(cluster) + &own));
    }
    environment
}

/// Components watch and serve many things at once.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
