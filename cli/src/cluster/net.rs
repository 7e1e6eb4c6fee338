//! The cluster's network: a namespace with a bridge for the control plane, and one for each node, joined by veth.
//!
//! What is to be done is written as batches of `ip` commands by pure functions. On the host, an isolated cluster has nothing; any
//! other has one veth onto the bridge, a masquerade, and two rules that let its traffic be forwarded.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
use serde::Deserialize;

use super::spec::Cluster;

/// A network namespace, kept alive by this descriptor: it outlives the machines started in it.
pub struct Namespace(OwnedFd);

impl Namespace {
    pub fn create() -> Result<Namespace> {
        let create = || -> Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        };
        Ok(Namespace(
            on_thread(create).context("create a network namespace")?,
        ))
    }

    /// Runs something inside, on a thread of its own: sockets that it opens stay there.
    pub fn enter<T: Send>(&self, what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET)?;
            what()
        })
    }

    /// Runs a batch of `ip` commands inside.
    pub fn ip(&self, batch: &str) -> Result<()> {
        let fd = self.0.as_raw_fd();
        let mut command = ip_command();
        // SAFETY: setns is a bare system call, on a descriptor that lives until the command has ended.
        unsafe {
            command.pre_exec(move || {
                let fd = std::os::fd::BorrowedFd::borrow_raw(fd);
                Ok(setns(fd, CloneFlags::CLONE_NEWNET)?)
            });
        }
        run_batch(command, batch)
    }

    /// A path that names this namespace to other processes while this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

impl AsRawFd for Namespace {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn on_thread<T: Send>(what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let done = std::thread::scope(|scope| scope.spawn(what).join());
    done.unwrap_or_else(|_| bail!("a helper thread panicked"))
}

/// The bridge and its ports, for the control plane's namespace. `nodes` and `host` are paths of namespaces.
pub fn bridge_batch(cluster: &Cluster, nodes: &[(u32, String)], host: Option<&str>) -> String {
    let mut batch = format!(
        "link set lo up\nlink add skiff0 type bridge\naddr add {}/24 dev skiff0\nlink set skiff0 up\n",
        cluster.control_plane_ip()
    );
    for (node, namespace) in nodes {
        batch += &format!("link add node{node} type veth peer name eth0 netns {namespace}\n");
        batch += &format!("link set node{node} master skiff0 up\n");
    }
    if let Some(namespace) = host {
        let interface = cluster.host_interface();
        batch += &format!("link add host type veth peer name {interface} netns {namespace}\n");
        batch += "link set host master skiff0 up\n";
        batch += &format!("route add default via {}\n", cluster.host_ip());
    }
    batch
}

pub fn node_batch(cluster: &Cluster, node: u32) -> String {
    format!(
        "link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\nroute add default via {}\n",
        cluster.node_ip(node),
        cluster.gateway()
    )
}

/// What the kernel must allow inside a node: forwarding between pods, replies that come back another way, and
/// NodePorts on loopback.
pub fn node_sysctls() -> Result<()> {
    let set = |name: &str, value: &str| fs::write(Path::new("/proc/sys/net").join(name), value);
    set("ipv4/ip_forward", "1").context("allow forwarding in a node")?;
    for (name, value) in [
        ("ipv4/conf/all/route_localnet", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/eth0/rp_filter", "0"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/eth0/accept_ra", "0"),
        // Only where the kernel has br_netfilter.
        ("bridge/bridge-nf-call-iptables", "1"),
        ("bridge/bridge-nf-call-ip6tables", "1"),
    ] {
        let _ = set(name, value);
    }
    Ok(())
}

/// The rules that a cluster adds on the host: table and rule, without the command.
pub fn host_rules(cluster: &Cluster, scope: &str) -> Vec<(&'static str, Vec<String>)> {
    let interface = cluster.host_interface();
    let words = |text: String| text.split(' ').map(str::to_string).collect::<Vec<_>>();
    let comment = format!("-m comment --comment {}", label(scope));
    vec![
        (
            "nat",
            words(format!(
                "POSTROUTING -s {} ! -o {interface} {comment} -j MASQUERADE",
                cluster.cidr()
            )),
        ),
        (
            "filter",
            words(format!("FORWARD -i {interface} {comment} -j ACCEPT")),
        ),
        (
            "filter",
            words(format!("FORWARD -o {interface} {comment} -j ACCEPT")),
        ),
    ]
}

/// How everything of a cluster in the host's network is marked.
fn label(scope: &str) -> String {
    format!("skiff:{scope}")
}

/// Joins the host to the bridge, whose other side has just been made.
pub fn attach_host(cluster: &Cluster, scope: &str, state: &Path) -> Result<()> {
    let interface = cluster.host_interface();
    let batch = format!(
        "addr add {}/24 dev {interface}\nlink set {interface} alias {} up\n",
        cluster.host_ip(),
        label(scope)
    );
    run_batch(ip_command(), &batch)?;
    for (table, rule) in host_rules(cluster, scope) {
        let mut words = vec!["-t", table, "-I"];
        words.extend(rule.iter().map(String::as_str));
        iptables(&words)?;
    }
    let forward = "/proc/sys/net/ipv4/ip_forward";
    if fs::read_to_string(forward).is_ok_and(|v| v.trim() == "0") {
        // Remembered before it is done, so that the last cluster to go can undo it.
        fs::write(state.join("ip_forward"), "0")?;
        fs::write(forward, "1").context("allow the host to forward")?;
    }
    Ok(())
}

/// Removes what `attach_host` added, as far as it is there. `last` says that no other cluster needs the host to forward.
pub fn detach_host(cluster: Option<&Cluster>, scope: &str, state: &Path, last: bool) -> Result<()> {
    // Not from /sys/class/net: that shows the network in which /sys was mounted, which may be another one.
    let links = output("ip", &["-json", "link", "show"])?;
    for name in own_links(&links, cluster, scope)? {
        match output("ip", &["link", "delete", &name]) {
            // Its other end may take it away at the same moment.
            Err(e) if !format!("{e:#}").contains("Cannot find device") => return Err(e),
            _ => {}
        }
    }
    if cluster.is_none_or(|c| !c.isolated) {
        for table in ["nat", "filter"] {
            let Ok(rules) = iptables(&["-t", table, "-S"]) else {
                continue;
            };
            for rule in rules
                .lines()
                .filter_map(|line| removal(line, &label(scope)))
            {
                let mut words = vec!["-t", table];
                words.extend(rule.iter().map(String::as_str));
                iptables(&words)?;
            }
        }
    }
    let memory = state.join("ip_forward");
    if last && memory.exists() {
        fs::write("/proc/sys/net/ipv4/ip_forward", "0")?;
        fs::remove_file(memory)?;
    }
    Ok(())
}

/// The names of the cluster's interfaces, marked or not marked yet, among those that `ip -json link show` gave.
fn own_links(links: &str, cluster: Option<&Cluster>, scope: &str) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Link {
        ifname: String,
        #[serde(default)]
        ifalias: String,
    }
    let unmarked = cluster.filter(|c| !c.isolated).map(Cluster::host_interface);
    let links: Vec<Link> = serde_json::from_str(links).context("read what ip printed")?;
    let ours = links.into_iter().filter(|link| match &*link.ifalias {
        "" => unmarked.as_ref() == Some(&link.ifname),
        alias => alias == label(scope),
    });
    Ok(ours.map(|link| link.ifname).collect())
}

/// The command that deletes a rule listed by `iptables -S`, if it carries the label.
fn removal(line: &str, label: &str) -> Option<Vec<String>> {
    let words: Vec<String> = line
        .split_whitespace()
        .map(|w| w.trim_matches('"').to_string())
        .collect();
    let ours = words
        .windows(2)
        .any(|w| w[0] == "--comment" && w[1] == label);
    (ours && words[0] == "-A").then(|| {
        let mut words = words;
        words[0] = "-D".into();
        words
    })
}

fn iptables(words: &[&str]) -> Result<String> {
    output("iptables", &[&["-w"], words].concat())
}

/// What a program printed; an error with its words when it failed.
fn output(program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(words)
        .output()
        .with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", words.join(" "), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn ip_command() -> Command {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]);
    command
}

fn run_batch(mut command: Command, batch: &str) -> Result<()> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("run ip")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(batch.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "set up the network: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// The resolv.conf of a node. Name servers on the host's loopback cannot be reached from inside, so where a local
/// cache listens there, what it forwards to is used instead; an isolated node has none.
pub fn resolv_conf(isolated: bool, host: &str, systemd: Option<&str>) -> String {
    if isolated {
        return "# This cluster is isolated: there is no name server to ask.\n".into();
    }
    let local = |line: &str| {
        let mut words = line.split_whitespace();
        let server = words.next() == Some("nameserver");
        server
            && words
                .next()
                .is_some_and(|a| a.starts_with("127.") || a == "::1")
    };
    let text = match systemd {
        Some(text) if host.lines().any(local) => text,
        _ => host,
    };
    text.lines()
        .filter(|line| !local(line))
        .map(|line| format!("{line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::spec;

    #[test]
    fn an_isolated_bridge_has_no_way_out() {
        let cluster = spec::tests::example();
        let batch = bridge_batch(&cluster, &[(1, "/n1".into())], None);
        let want = "link set lo up\nlink add skiff0 type bridge\naddr add 10.89.7.1/24 dev skiff0\nlink set skiff0 up\n\
            link add node1 type veth peer name eth0 netns /n1\nlink set node1 master skiff0 up\n";
        assert_eq!(batch, want);
        assert!(node_batch(&cluster, 2).contains("addr add 10.89.7.12/24 dev eth0"));
        assert!(node_batch(&cluster, 2).contains("default via 10.89.7.1\n"));
    }

    #[test]
    fn an_open_one_goes_through_the_host() {
        let mut cluster = spec::tests::example();
        cluster.isolated = false;
        let batch = bridge_batch(&cluster, &[], Some("/host"));
        assert!(batch.contains("link add host type veth peer name skiff7 netns /host\n"));
        assert!(batch.contains("route add default via 10.89.7.254\n"));
        let rules = host_rules(&cluster, "demo");
        assert_eq!(
            rules[0].1.join(" "),
            "POSTROUTING -s 10.89.7.0/24 ! -o skiff7 -m comment --comment skiff:demo -j MASQUERADE"
        );
    }

    #[test]
    fn only_own_interfaces_are_removed() {
        let links = r#"[{"ifname":"lo"},{"ifname":"skiff7","ifalias":"skiff:demo"},{"ifname":"skiff8","ifalias":"skiff:demo2"},
            {"ifname":"eth0","ifalias":"uplink"}]"#;
        let mut cluster = spec::tests::example();
        cluster.isolated = false;
        assert_eq!(own_links(links, None, "demo").unwrap(), ["skiff7"]);
        assert!(
            own_links(links, Some(&cluster), "another")
                .unwrap()
                .is_empty()
        );
        // Cut off before it was marked: it is known by its name alone, and to an isolated cluster it is a stranger's.
        let unmarked = r#"[{"ifname":"skiff7"},{"ifname":"skiff8"}]"#;
        assert_eq!(
            own_links(unmarked, Some(&cluster), "demo").unwrap(),
            ["skiff7"]
        );
        cluster.isolated = true;
        assert!(
            own_links(unmarked, Some(&cluster), "demo")
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn only_own_rules_are_removed() {
        let line = "-A FORWARD -i skiff7 -m comment --comment \"skiff:demo\" -j ACCEPT";
        let words = removal(line, "skiff:demo").unwrap();
        assert_eq!(
            words.join(" "),
            "-D FORWARD -i skiff7 -m comment --comment skiff:demo -j ACCEPT"
        );
        assert_eq!(removal(line, "skiff:dem"), None);
        assert_eq!(removal("-P FORWARD ACCEPT", "skiff:demo"), None);
    }

    #[test]
    fn name_servers_on_loopback_are_replaced() {
        let stub = "nameserver 127.0.0.53\nsearch lan\n";
        let real = "nameserver 192.0.2.1\nsearch lan\n";
        assert_eq!(resolv_conf(false, stub, Some(real)), real);
        assert_eq!(
            resolv_conf(false, real, Some("nameserver 192.0.2.9\n")),
            real
        );
        assert_eq!(resolv_conf(false, stub, None), "search lan\n");
        assert!(!resolv_conf(true, real, None).contains("\nnameserver"));
    }
}
