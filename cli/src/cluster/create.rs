//! `skiff cluster create` and `start`: from nothing, or from a stopped cluster, to one that serves.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::mpsc;

use super::keeper::Report;
use super::lifecycle::{self, Operation};
use super::pki::{self, Authority};
use super::progress::Progress;
use super::spec::{self, Cluster, Machine, Paths, Store};
use super::supervisor;
use super::{addons, components, kubeconfig, logs, preflight, preload, rootfs};

/// So many failures of one component in a row, and it will not come up.
const HOPELESS: u32 = 6;
const FIRST_PORT: u16 = 6443;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the cluster
    #[arg(default_value = "skiff")]
    pub name: String,
    /// How many nodes it has
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(spec::MAX_NODES)))]
    pub nodes: u32,
    /// Where the API server keeps its objects
    #[arg(long, value_enum, default_value_t = Store::Embedded)]
    pub store: Store,
    /// Leave the host's network alone: nodes have no way out of the machine, and NodePorts are not reached from the host
    #[arg(long)]
    pub isolated: bool,
    /// Port of the API on the host's loopback (default: the first free one from 6443)
    #[arg(long)]
    pub api_port: Option<u16>,
    /// File that gets the context skiff-NAME (default: $KUBECONFIG, else ~/.kube/config)
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Image to load into every node, as a tar file; may be given more than once
    #[arg(long, value_name = "IMAGE.tar")]
    pub image: Vec<PathBuf>,
    /// How many seconds to wait for the cluster to serve
    #[arg(long, default_value_t = 120)]
    pub wait: u64,
    /// Keep what is there of a cluster that failed to come up
    #[arg(long)]
    pub retain: bool,
}

pub fn create(args: &Args, state: &Path) -> Result<()> {
    spec::check_name(&args.name)?;
    let bin_dir = preflight::bin_dir()?;
    preflight::check(args.store, &bin_dir)?;
    if let Some(missing) = args.image.iter().find(|tar| !tar.is_file()) {
        bail!("{}: no such file", missing.display());
    }
    let file = match &args.kubeconfig {
        Some(file) => std::path::absolute(file)?,
        None => std::path::absolute(kubeconfig::user_file()?)?,
    };
    let paths = Paths::new(state, &args.name);
    if let Some(operation) = Operation::on(&paths)? {
        if paths.load().is_ok_and(|c| c.complete) {
            bail!(
                "cluster {} exists already; `skiff cluster delete {0}` removes it",
                args.name
            );
        }
        eprintln!(
            "Removing what an interrupted create left of cluster {} ...",
            args.name
        );
        lifecycle::remove(&paths, state)?;
        drop(operation);
    }
    let mut progress = Progress::start(&format!(
        "Creating cluster {}: {} node{}, {} store",
        args.name,
        args.nodes,
        if args.nodes == 1 { "" } else { "s" },
        args.store
    ));
    progress.doing("Preparing images (the first time takes a few seconds)");
    let images = preload::ensure(&bin_dir, state)?;
    progress.done("Images");

    let cluster = reserve(args, &paths, state, file, bin_dir)?;
    let _operation = Operation::on_existing(&paths)?;
    let result = bring_up(args, cluster, &paths, state, &images, &mut progress);
    if result.is_err() {
        progress.abandon();
        if args.retain {
            eprintln!(
                "What is there of it is kept; `skiff cluster delete {}` removes it.",
                args.name
            );
        } else {
            lifecycle::remove(&paths, state).context("clean up after a failed create")?;
        }
    }
    result
}

/// Chooses addresses that are free, and writes them down before anything is made with them.
fn reserve(
    args: &Args,
    paths: &Paths,
    state: &Path,
    kubeconfig: PathBuf,
    bin_dir: PathBuf,
) -> Result<Cluster> {
    let all = state.join("clusters");
    fs::create_dir_all(&all).with_context(|| format!("create {}", all.display()))?;
    let lock = fs::File::open(&all)?;
    lock.lock()?;
    let others: Vec<Cluster> = spec::names(state)?
        .iter()
        .filter_map(|n| Paths::new(state, n).load().ok())
        .collect();
    let subnets: Vec<u8> = others.iter().map(|c| c.subnet).collect();
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let subnet = spec::free_subnet(&subnets, &routes)
        .context("no /24 of 10.89.0.0/16 is free on this host")?;
    let api_port = match args.api_port {
        Some(port) => {
            TcpListener::bind(("127.0.0.1", port))
                .with_context(|| format!("port {port} of the loopback is not free"))?;
            port
        }
        None => (FIRST_PORT..=u16::MAX)
            .filter(|port| others.iter().all(|c| c.api_port != *port))
            .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
            .context("no port of the loopback is free")?,
    };
    let cluster = Cluster {
        name: args.name.clone(),
        nodes: args.nodes,
        store: args.store,
        isolated: args.isolated,
        subnet,
        api_port,
        kubeconfig,
        bin_dir,
        created: jiff::Timestamp::now(),
        complete: false,
    };
    fs::create_dir(&paths.dir).with_context(|| format!("create {}", paths.dir.display()))?;
    paths.save(&cluster)?;
    Ok(cluster)
}

fn bring_up(
    args: &Args,
    mut cluster: Cluster,
    paths: &Paths,
    state: &Path,
    images: &Path,
    progress: &mut Progress,
) -> Result<()> {
    let admin = write_files(&cluster, paths, images)?;
    progress.done(&format!(
        "Certificates and nodes' files, network {}",
        cluster.cidr()
    ));
    serve(
        &cluster,
        paths,
        state,
        Duration::from_secs(args.wait),
        true,
        progress,
    )?;
    for tar in &args.image {
        progress.doing(&format!("Loading {}", tar.display()));
        lifecycle::load(paths, tar)?;
        progress.done(&format!("Loaded {}", tar.display()));
    }
    kubeconfig::merge_into(&cluster.kubeconfig, &admin)?;
    cluster.complete = true;
    paths.save(&cluster)?;
    eprintln!(
        "Cluster {} is ready after {}.",
        cluster.name,
        progress.total()
    );
    announce(&cluster);
    Ok(())
}

fn announce(cluster: &Cluster) {
    eprintln!("  API        {}", cluster.external_server());
    eprintln!(
        "  Context    {} in {}",
        cluster.context(),
        cluster.kubeconfig.display()
    );
    if cluster.isolated {
        eprintln!("  Network    isolated: nothing was added to the host's");
    } else {
        eprintln!(
            "  Network    host interface {} ({}), a masquerade and two FORWARD rules marked skiff:{}, IP forwarding on",
            cluster.host_interface(),
            cluster.host_ip(),
            cluster.name
        );
    }
}

/// Everything that the machines find when they start. Gives the administrator's kubeconfig.
fn write_files(cluster: &Cluster, paths: &Paths, images: &Path) -> Result<serde_json::Value> {
    let ca = pki::create(&paths.pki(), cluster)?;
    fs::create_dir_all(paths.store())?;
    let inside = cluster.internal_server();
    for (file, user) in [
        ("scheduler", "system:kube-scheduler"),
        ("controller-manager", "system:kube-controller-manager"),
        ("overlay", "system:skiff-overlay"),
    ] {
        let pair = ca.client(user, &[])?;
        let document = kubeconfig::document(user, &inside, &ca.certificate, &pair);
        kubeconfig::write(&paths.kubeconfig(file), &document)?;
    }
    let pair = ca.client(
        "kubernetes-admin",
        &["kubeadm:cluster-admins", "system:masters"],
    )?;
    let admin = kubeconfig::document(
        &cluster.context(),
        &cluster.external_server(),
        &ca.certificate,
        &pair,
    );
    kubeconfig::write(&paths.kubeconfig("admin"), &admin)?;
    std::thread::scope(|scope| {
        let ca = &ca;
        let nodes: Vec<_> = cluster
            .nodes()
            .map(|n| scope.spawn(move || write_node(cluster, paths, n, ca, images)))
            .collect();
        for node in nodes {
            node.join()
                .unwrap_or_else(|_| bail!("preparing a node panicked"))?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    for machine in cluster.machines() {
        fs::create_dir_all(paths.machine_logs(machine))?;
    }
    Ok(admin)
}

fn write_node(
    cluster: &Cluster,
    paths: &Paths,
    node: u32,
    ca: &Authority,
    images: &Path,
) -> Result<()> {
    let name = Machine::Node(node).name();
    let root = paths.node_root(node);
    rootfs::prepare(&root)?;
    preload::copy_tree(images, &root.join("var/lib/containerd")).context("copy the images")?;

    let etc = paths.node_etc(node).join("upper");
    let put = |file: &str, text: &str| -> Result<()> {
        let path = etc.join(file);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    put("hostname", &format!("{name}\n"))?;
    put("hosts", &components::hosts(cluster))?;
    put(
        "machine-id",
        &format!("{}\n", uuid::Uuid::new_v4().simple()),
    )?;
    put(
        "containerd/config.toml",
        &components::containerd_config("/var/lib/containerd", "/run/containerd", true),
    )?;
    put("kubernetes/pki/ca.crt", &ca.certificate)?;
    fs::create_dir_all(etc.join("cni/net.d"))?;
    for own in ["cni", "kubernetes"] {
        hide_lower(&etc.join(own))?;
    }
    let inside = cluster.internal_server();
    let user = format!("system:node:{name}");
    for (file, user, groups) in [
        ("kubelet", user.as_str(), &["system:nodes"][..]),
        ("proxy", "system:kube-proxy", &[]),
        ("overlay", "system:skiff-overlay", &[]),
    ] {
        let document =
            kubeconfig::document(user, &inside, &ca.certificate, &ca.client(user, groups)?);
        kubeconfig::write(&etc.join(format!("kubernetes/{file}.conf")), &document)?;
    }
    let addresses = [
        cluster.node_ip(node).into(),
        std::net::Ipv4Addr::LOCALHOST.into(),
    ];
    ca.server(&user, &["system:nodes"], &[&name, "localhost"], &addresses)?
        .write(&etc.join("kubernetes/pki"), "kubelet")
}

/// Keeps a directory of the host from showing through the node's own of the same name.
fn hide_lower(dir: &Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes())?;
    let name = c"trusted.overlay.opaque";
    // SAFETY: three valid pointers, and the value's true length.
    let done =
        unsafe { nix::libc::setxattr(path.as_ptr(), name.as_ptr(), c"y".as_ptr().cast(), 1, 0) };
    if done != 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| {
            format!("{} is on a file system without extended attributes; set SKIFF_STATE_DIR to one that has them", dir.display())
        });
    }
    Ok(())
}

pub fn start(paths: &Paths, state: &Path, wait: u64) -> Result<()> {
    let _operation = Operation::on_existing(paths)?;
    let cluster = paths.load()?;
    if !cluster.complete {
        bail!(
            "cluster {} was never completed; create it again",
            paths.name
        );
    }
    preflight::check(cluster.store, &cluster.bin_dir)?;
    if lifecycle::supervisor(paths).is_some() {
        eprintln!("Cluster {} runs already.", paths.name);
        return Ok(());
    }
    // A cluster from before there was one.
    pki::front_proxy(&paths.pki())?;
    let mut progress = Progress::start(&format!("Starting cluster {}", paths.name));
    // What a crash left of its last run goes first.
    lifecycle::halt(paths, state, false)?;
    if let Err(error) = serve(
        &cluster,
        paths,
        state,
        Duration::from_secs(wait),
        false,
        &mut progress,
    ) {
        progress.abandon();
        lifecycle::halt(paths, state, true)?;
        return Err(error);
    }
    eprintln!(
        "Cluster {} is ready after {}.",
        cluster.name,
        progress.total()
    );
    Ok(())
}

/// Starts the cluster's processes and waits until it serves; fails early when a component does not come up.
fn serve(
    cluster: &Cluster,
    paths: &Paths,
    state: &Path,
    limit: Duration,
    fresh: bool,
    progress: &mut Progress,
) -> Result<()> {
    progress.doing("Starting");
    let reports = lifecycle::launch(paths, state)?;
    let (sender, mut receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for report in reports {
            if sender.send(report).is_err() {
                return;
            }
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut missing = "the API server".to_string();
        let result = tokio::select! {
            result = wait_until_serving(cluster, paths, fresh, &mut missing, progress) => result,
            failure = first_hopeless(&mut receiver) => Err(explain(paths, &failure)),
            () = tokio::time::sleep(limit) => Err(anyhow::anyhow!("")),
        };
        match result {
            Err(error) if error.to_string().is_empty() => Err(too_late(paths, limit, &missing)),
            other => other,
        }
    })
}

async fn wait_until_serving(
    cluster: &Cluster,
    paths: &Paths,
    fresh: bool,
    missing: &mut String,
    progress: &mut Progress,
) -> Result<()> {
    let since = jiff::Timestamp::now();
    let client = addons::client(&paths.kubeconfig("admin")).await?;
    addons::api_ready(&client).await;
    progress.done(&format!("Control plane on {}", cluster.external_server()));
    *missing = "the system's add-ons".into();
    addons::apply(&client).await?;
    progress.done("Add-ons applied");
    for node in cluster.nodes() {
        let name = Machine::Node(node).name();
        progress.doing(&format!("Waiting for {name}"));
        *missing = format!("node {name}");
        addons::node_ready(&client, &name, since).await?;
    }
    progress.done(&format!("{} of {0} nodes ready", cluster.nodes));
    progress.doing("Waiting for the cluster's DNS");
    *missing = "the cluster's DNS".into();
    if fresh {
        addons::dns_ready(&client).await?;
        progress.done("DNS serving");
    }
    Ok(())
}

/// The first report of a component that fails again and again; or of everything having ended.
async fn first_hopeless(reports: &mut mpsc::UnboundedReceiver<Report>) -> Report {
    while let Some(report) = reports.recv().await {
        if report.failures >= HOPELESS {
            return report;
        }
    }
    Report {
        unit: supervisor::NAME.into(),
        message: "ended".into(),
        failures: 1,
    }
}

fn explain(paths: &Paths, report: &Report) -> anyhow::Error {
    let last = last_lines(paths, &report.unit);
    if report.unit == supervisor::NAME && report.failures == u32::MAX {
        return anyhow::anyhow!("{}", report.message);
    }
    anyhow::anyhow!(
        "{} does not come up: it {} time and again{last}",
        report.unit,
        report.message
    )
}

fn too_late(paths: &Paths, limit: Duration, missing: &str) -> anyhow::Error {
    let component = match missing.strip_prefix("node ") {
        Some(node) => format!("{node}/kubelet"),
        None if missing.contains("API") => "apiserver".into(),
        None => "controller-manager".into(),
    };
    let last = last_lines(paths, &component);
    anyhow::anyhow!("after {} s {missing} is not ready{last}", limit.as_secs())
}

fn last_lines(paths: &Paths, component: &str) -> String {
    let tail = logs::find(paths, component).and_then(|path| logs::tail(&path, 20));
    match tail {
        Ok(text) if !text.is_empty() => {
            format!("\nThe last lines of its log ({component}):\n{text}")
        }
        _ => String::new(),
    }
}
