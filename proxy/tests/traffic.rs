//! The rules in a real kernel, with real connections: a node, two pods and a client, each in a network
//! namespace of its own that ends with its thread. Needs root and iptables.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use proxy::backend::Backend;
use proxy::iptables::{Iptables, chains::Config};
use proxy::model::{Family, Model, PortRules};
use proxy::objects::Protocol;

const CLUSTER_IP: &str = "10.96.0.20";
const NODE: &str = "192.168.77.1";
const PODS: [&str; 2] = ["10.244.0.2:8080", "10.244.0.3:8080"];

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace that does what it is given.
struct Namespace {
    jobs: Sender<Job>,
    thread: i32,
}

impl Namespace {
    fn new() -> Self {
        let (jobs, inbox): (Sender<Job>, Receiver<Job>) = channel();
        let (tell, told) = channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
            sh("ip link set lo up");
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            inbox.into_iter().for_each(|job| job());
        });
        Self {
            jobs,
            thread: told.recv().unwrap(),
        }
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        self.jobs
            .send(Box::new(move || drop(tell.send(job()))))
            .unwrap();
        told.recv().expect("job panicked")
    }

    fn sh(&self, command: &str) -> String {
        let command = command.to_owned();
        self.run(move || sh(&command))
    }
}

fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Connects and gives what the server says: its own address and the source address it sees.
fn visit(address: &str) -> std::io::Result<(String, String)> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(700))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (server, source) = text.split_once(' ').unwrap();
    Ok((server.into(), source.into()))
}

fn serve(address: &'static str) {
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let source = stream.peer_addr().unwrap().ip();
            stream
                .write_all(format!("{address} {source}").as_bytes())
                .unwrap();
        }
    });
}

struct Lab {
    node: Namespace,
    client: Namespace,
    pods: Vec<Namespace>,
}

impl Lab {
    fn new() -> Self {
        let (node, client) = (Namespace::new(), Namespace::new());
        node.sh(&format!(
            "ip link add out type veth peer name eth0 netns {}; ip addr add {NODE}/24 dev out; ip link set out up;
             echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet",
            client.thread
        ));
        client.sh(&format!("ip addr add 192.168.77.2/24 dev eth0; ip link set eth0 up; ip route add default via {NODE}"));
        let pods = PODS.iter().enumerate().map(|(i, address)| {
            let (pod, ip) = (Namespace::new(), address.split(':').next().unwrap());
            node.sh(&format!(
                "ip link add pod{i} type veth peer name eth0 netns {}; ip link set pod{i} up;
                 ip addr add 10.244.0.1/32 dev pod{i}; ip route add {ip}/32 dev pod{i}",
                pod.thread
            ));
            pod.sh(&format!(
                "ip addr add {ip}/32 dev eth0; ip link set eth0 up;
                 ip route add 10.244.0.1/32 dev eth0; ip route add default via 10.244.0.1"
            ));
            pod.run(|| serve(address));
            pod
        });
        let pods = pods.collect();
        // What a node sends to a Service needs some route before its destination is rewritten.
        node.sh("ip route add default dev pod0");
        Self { pods, node, client }
    }

    /// Runs a backend's method on the node, and gives the backend back.
    fn backend<T: Send + 'static>(
        &self,
        mut backend: Iptables,
        job: impl AsyncFnOnce(&mut Iptables) -> T + Send + 'static,
    ) -> (Iptables, T) {
        self.node.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let result = runtime.block_on(job(&mut backend));
            (backend, result)
        })
    }

    fn sync(&self, backend: Iptables, ports: Vec<PortRules>) -> (Iptables, bool) {
        let model = Model {
            ports,
            node_addresses: vec![NODE.parse().unwrap()],
            health_checks: BTreeMap::new(),
        };
        self.backend(backend, async move |b: &mut Iptables| {
            b.sync(&model).await.unwrap()
        })
    }

    fn client_visits(&self, address: &str) -> std::io::Result<(String, String)> {
        let address = address.to_owned();
        self.client.run(move || visit(&address))
    }
}

fn iptables() -> Iptables {
    Iptables::new(
        Family::V4,
        Config {
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            masquerade_all: false,
            masquerade_bit: 14,
            node_port_addresses: vec![],
            localhost_node_ports: true,
            conntrack_liberal: false,
        },
    )
}

fn port(targets: &[&str]) -> PortRules {
    let targets: Vec<SocketAddr> = targets.iter().map(|t| t.parse().unwrap()).collect();
    PortRules {
        name: "shop/web:http".into(),
        protocol: Protocol::Tcp,
        cluster_ip: CLUSTER_IP.parse::<IpAddr>().unwrap(),
        port: 80,
        node_port: Some(30080),
        external_ips: vec![],
        load_balancer_ips: vec![],
        source_ranges: vec![],
        affinity: None,
        internal_local: false,
        external_local: false,
        health_check_node_port: None,
        has_endpoints: !targets.is_empty(),
        serving: targets.iter().copied().collect(),
        cluster: targets,
        local: vec![],
    }
}

const SERVICE: &str = "10.96.0.20:80";
const NODE_PORT: &str = "192.168.77.1:30080";

#[test]
fn services_reach_their_endpoints() {
    let lab = Lab::new();
    let (backend, changed) = lab.sync(iptables(), vec![port(&PODS)]);
    assert!(changed);

    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..40 {
        let (server, source) = lab.client_visits(SERVICE).unwrap();
        assert_eq!(
            source, "10.244.0.1",
            "what comes from outside is masqueraded"
        );
        *seen.entry(server).or_default() += 1;
    }
    assert_eq!(seen.len(), 2, "both pods get some: {seen:?}");
    assert!(lab.client_visits(NODE_PORT).is_ok());
    assert!(
        lab.node.run(|| visit(SERVICE)).is_ok(),
        "from the node itself"
    );
    assert!(
        lab.node.run(|| visit("127.0.0.1:30080")).is_ok(),
        "node ports on loopback"
    );

    let (backend, changed) = lab.sync(backend, vec![port(&PODS[..1])]);
    assert!(changed);
    let (server, source) = lab.pods[1].run(|| visit(SERVICE)).unwrap();
    assert_eq!(
        (server.as_str(), source.as_str()),
        (PODS[0], "10.244.0.3"),
        "pods keep their address"
    );
    let (_, source) = lab.pods[0].run(|| visit(SERVICE)).unwrap();
    assert_eq!(
        source, "10.244.0.1",
        "a pod that reaches itself is masqueraded"
    );

    let (backend, changed) = lab.sync(backend, vec![port(&[])]);
    assert!(changed);
    for address in [SERVICE, NODE_PORT] {
        let error = lab.client_visits(address).unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::ConnectionRefused,
            "{address} is refused at once"
        );
    }

    let (backend, _) = lab.sync(backend, vec![]);
    let rules = lab.node.sh("iptables-save");
    assert!(
        !rules.contains("KUBE-SVC-") && !rules.contains("KUBE-SEP-"),
        "{rules}"
    );
    lab.backend(backend, async |b: &mut Iptables| b.cleanup().await.unwrap());
    let rules = lab
        .node
        .sh("iptables-save | grep KUBE | grep -v KUBE-FIREWALL || true");
    assert_eq!(rules, "");
}

#[test]
fn local_policy_keeps_the_source_and_drops_when_nobody_is_home() {
    let lab = Lab::new();
    let mut local = port(&PODS);
    local.external_local = true;
    local.local = vec![PODS[1].parse().unwrap()];
    let (backend, _) = lab.sync(iptables(), vec![local.clone()]);
    for _ in 0..8 {
        let (server, source) = lab.client_visits(NODE_PORT).unwrap();
        assert_eq!(
            (server.as_str(), source.as_str()),
            (PODS[1], "192.168.77.2")
        );
    }
    local.local.clear();
    lab.sync(backend, vec![local]);
    assert_eq!(
        lab.client_visits(NODE_PORT).unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    assert!(
        lab.node.run(|| visit(NODE_PORT)).is_ok(),
        "the node itself takes the short cut"
    );
}

#[test]
fn affinity_sticks() {
    let lab = Lab::new();
    let mut sticky = port(&PODS);
    sticky.affinity = Some(60);
    lab.sync(iptables(), vec![sticky]);
    let first = lab.client_visits(SERVICE).unwrap();
    for _ in 0..15 {
        assert_eq!(lab.client_visits(SERVICE).unwrap(), first);
    }
}

#[test]
fn thrown_away_rules_come_back() {
    let lab = Lab::new();
    let (backend, _) = lab.sync(iptables(), vec![port(&PODS)]);
    let (backend, changed) = lab.sync(backend, vec![port(&PODS)]);
    assert!(!changed, "nothing changed, so nothing is run");
    let (backend, intact) = lab.backend(backend, async |b: &mut Iptables| b.verify().await);
    assert!(intact);
    lab.node
        .sh("iptables -t nat -F; iptables -t nat -X; iptables -F; iptables -X");
    assert!(lab.client_visits(SERVICE).is_err());
    let (backend, intact) = lab.backend(backend, async |b: &mut Iptables| b.verify().await);
    assert!(!intact);
    lab.sync(backend, vec![port(&PODS)]);
    assert!(lab.client_visits(SERVICE).is_ok());

    // A proxy that starts anew finds stale chains of an earlier life, and no jump twice.
    lab.node.sh("iptables -t nat -N KUBE-SEP-STALE");
    lab.sync(iptables(), vec![port(&PODS)]);
    let rules = lab.node.sh("iptables-save -t nat");
    assert!(!rules.contains("KUBE-SEP-STALE"));
    assert_eq!(rules.matches("-A PREROUTING").count(), 1, "{rules}");
    assert!(lab.client_visits(SERVICE).is_ok());
}
