//! The one process of a cluster on the host: it owns the cluster's network and the API's socket, starts the machines and
//! keeps them alive. It is this same program, in the background.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::cgroups::{self, Hierarchy};
use super::keeper::{Keeper, Report, Starter, Unit};
use super::net::{self, Namespace};
use super::spawn;
use super::spec::{self, API_PORT, Cluster, Machine, Paths};

/// The name under which the supervisor reports its own end.
pub const NAME: &str = "supervisor";

/// Runs until SIGTERM. `report` is a descriptor to tell failures to, inherited from whoever started this.
pub fn run(state: &Path, name: &str, report: Option<i32>) -> Result<()> {
    // SAFETY: the starter opened it for this process, and nothing else here takes it.
    let report = report.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let copy = report.as_ref().map(OwnedFd::try_clone).transpose()?;
    let result = supervise(state, name, report);
    if let (Err(error), Some(copy)) = (&result, copy) {
        let report = Report {
            unit: NAME.into(),
            message: format!("{error:#}"),
            failures: u32::MAX,
        };
        let mut line = serde_json::to_vec(&report)?;
        line.push(b'\n');
        let _ = File::from(copy).write_all(&line);
    }
    result
}

fn supervise(state: &Path, name: &str, report: Option<OwnedFd>) -> Result<()> {
    let paths = Paths::new(state, name);
    let cluster = paths.load()?;
    let _lock = lock(&paths)?;
    let scope = paths.scope();
    let hierarchies = cgroups::discover()?;
    record_cgroups(&paths, &hierarchies)?;
    cgroups::enter(&hierarchies, &scope, NAME)?;

    let loopback = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, cluster.api_port)))
        .with_context(|| format!("port {} of the loopback is not free", cluster.api_port))?;
    let network = Network::create(&cluster, &scope, state)?;
    let address = SocketAddr::from((cluster.control_plane_ip(), API_PORT));
    let bridge = network.control_plane.enter(|| listen(address))?;
    let sockets = [loopback, bridge];

    let fd = report.as_ref().map(AsRawFd::as_raw_fd);
    let null = File::options().write(true).open("/dev/null")?;
    let fd = fd.unwrap_or(null.as_raw_fd());
    let mut keeper = Keeper::new(report.as_ref().map(OwnedFd::try_clone).transpose()?, "")?;
    for machine in cluster.machines() {
        let mut pass = vec![network.of(machine)?.as_raw_fd(), fd];
        let stage = match machine {
            Machine::ControlPlane => {
                pass.extend(sockets.iter().map(AsRawFd::as_raw_fd));
                1
            }
            Machine::Node(_) => 0,
        };
        let log = paths.logs().join(format!("{}.log", machine.name()));
        let start = starter(state, &paths, machine, &hierarchies, pass);
        keeper.add(Unit::new(machine.name(), stage, log, start)?)?;
    }
    follow_resolv_conf(&cluster, &paths, &mut keeper)?;
    keeper.run()?;
    net::detach_host(Some(&cluster), &scope, state, false)
}

/// Locks the file that says which process supervises.
fn lock(paths: &Paths) -> Result<File> {
    let path = paths.supervisor_lock();
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)?;
    if file.try_lock().is_err() {
        bail!("cluster {} is running already", paths.name);
    }
    file.set_len(0)?;
    file.rewind()?;
    write!(file, "{}", std::process::id())?;
    Ok(file)
}

/// Where the cluster's groups are depends on who starts it: whoever cleans up must know. Groups of an earlier start stay noted
/// until they are gone.
fn record_cgroups(paths: &Paths, hierarchies: &[Hierarchy]) -> Result<()> {
    let mut dirs: Vec<PathBuf> = hierarchies
        .iter()
        .map(|h| cgroups::scope_dir(h, &paths.scope()))
        .collect();
    let earlier = fs::read(paths.cgroups()).unwrap_or_default();
    let earlier: Vec<PathBuf> = serde_json::from_slice(&earlier).unwrap_or_default();
    dirs.extend(earlier.into_iter().filter(|d| d.exists()));
    dirs.sort();
    dirs.dedup();
    spec::write_atomic(&paths.cgroups(), &serde_json::to_vec(&dirs)?, 0o600)
}

fn listen(address: SocketAddr) -> Result<OwnedFd> {
    Ok(TcpListener::bind(address)
        .with_context(|| format!("listen on {address}"))?
        .into())
}

struct Network {
    control_plane: Namespace,
    nodes: Vec<Namespace>,
}

impl Network {
    fn create(cluster: &Cluster, scope: &str, state: &Path) -> Result<Network> {
        let control_plane = Namespace::create()?;
        let nodes: Vec<Namespace> = cluster
            .nodes()
            .map(|_| Namespace::create())
            .collect::<Result<_>>()?;
        let ends: Vec<(u32, String)> = cluster
            .nodes()
            .zip(nodes.iter().map(Namespace::path))
            .collect();
        let host = format!("/proc/{}/ns/net", std::process::id());
        let host = (!cluster.isolated).then_some(host.as_str());
        control_plane.ip(&net::bridge_batch(cluster, &ends, host))?;
        if !cluster.isolated {
            net::attach_host(cluster, scope, state)?;
        }
        for (node, namespace) in cluster.nodes().zip(&nodes) {
            namespace.ip(&net::node_batch(cluster, node))?;
        }
        Ok(Network {
            control_plane,
            nodes,
        })
    }

    fn of(&self, machine: Machine) -> Result<&Namespace> {
        match machine {
            Machine::ControlPlane => Ok(&self.control_plane),
            Machine::Node(n) => self
                .nodes
                .get(n as usize - 1)
                .context("a node without a network"),
        }
    }
}

/// Starts a machine afresh: what an earlier one left in its cgroups goes first, and its id is noted for `load`.
fn starter(
    state: &Path,
    paths: &Paths,
    machine: Machine,
    hierarchies: &[Hierarchy],
    pass: Vec<RawFd>,
) -> Starter {
    let (state, paths) = (state.display().to_string(), paths.clone());
    let groups = hierarchies
        .iter()
        .map(|h| cgroups::scope_dir(h, &paths.scope()).join(machine.name()));
    let groups: Vec<PathBuf> = groups.collect();
    Box::new(move |output| {
        cgroups::destroy(&groups).map_err(std::io::Error::other)?;
        let args = [
            "cluster",
            "machine",
            "--state",
            &state,
            &paths.name,
            &machine.name(),
        ];
        let pid = spawn::first_process(&args, output, &pass)?;
        if let Machine::Node(node) = machine {
            fs::write(paths.node(node).join("pid"), pid.to_string())?;
        }
        Ok(pid)
    })
}

/// Nodes resolve as the host does, now and when that changes.
fn follow_resolv_conf(cluster: &Cluster, paths: &Paths, keeper: &mut Keeper) -> Result<()> {
    const OWN: &str = "/etc/resolv.conf";
    const SYSTEMD: &str = "/run/systemd/resolve/resolv.conf";
    let files: Vec<PathBuf> = cluster
        .nodes()
        .map(|n| paths.node_etc(n).join("upper/resolv.conf"))
        .collect();
    let isolated = cluster.isolated;
    let update = move || {
        let host = fs::read_to_string(OWN).unwrap_or_default();
        let systemd = fs::read_to_string(SYSTEMD).ok();
        let text = net::resolv_conf(isolated, &host, systemd.as_deref());
        for file in &files {
            // In place: the node has this very file mounted.
            if let Err(e) = fs::write(file, &text) {
                eprintln!("cannot write {}: {e}", file.display());
            }
        }
    };
    update();
    if isolated {
        return Ok(());
    }
    let real = fs::canonicalize(OWN).unwrap_or_else(|_| OWN.into());
    let mut watched = vec![PathBuf::from(OWN), real, PathBuf::from(SYSTEMD)];
    watched.retain(|path| path.parent().is_some_and(Path::is_dir));
    watched.dedup();
    for path in watched {
        keeper.on_change(path, Box::new(update.clone()))?;
    }
    Ok(())
}
