//! The overlay of one node in network namespaces of the test's own: configuration, routes that come back, and what
//! pods look like from outside. Needs root and iptables.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::Event;
use nix::sched::{CloneFlags, unshare};
use overlay::server::Overlay;
use overlay::{cni, kernel};
use serde_json::json;
use tokio_util::sync::CancellationToken;

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace, which ends with it.
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

    fn sh(&self, command: String) -> String {
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

fn node(name: &str, range: &str, address: &str) -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"podCIDR": range, "podCIDRs": [range]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }))
    .unwrap()
}

/// Asks again until `done`, for what a task in another thread is about to do.
async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn story(conf: PathBuf) {
    let pods = vec!["10.244.0.0/16".parse().unwrap()];
    let bridge_netfilter = kernel::prepare(false).unwrap();
    let (netlink, notifications) = kernel::connect().unwrap();
    let overlay = Overlay {
        node: "me".into(),
        cni_conf_dir: conf.clone(),
        bridge_netfilter,
        pods,
        masquerade: true,
        netlink,
    };
    let (events, stream) = futures::channel::mpsc::unbounded();
    let shutdown = CancellationToken::new();
    let (stop, stream) = (shutdown.clone(), stream.boxed());
    let task = tokio::spawn(async move { overlay.run(stream, notifications, &stop).await });

    // A stale route of an earlier life, and one of somebody else.
    sh(
        "ip route add 10.244.9.0/24 via 192.168.78.2 proto 83; ip route add 172.31.0.0/16 via 192.168.78.2",
    );
    let send = |event| events.unbounded_send(event).unwrap();
    send(Event::Init);
    send(Event::InitApply(node(
        "me",
        "10.244.0.0/24",
        "192.168.78.1",
    )));
    send(Event::InitApply(node(
        "other",
        "10.244.1.0/24",
        "192.168.78.2",
    )));
    let begun = Instant::now();
    send(Event::InitDone);
    let file = conf.join(cni::FILE);
    eventually("the configuration", || file.exists()).await;
    assert!(begun.elapsed() < Duration::from_millis(500));
    let ours = || sh("ip route show proto 83");
    eventually("the route", || {
        ours().contains("10.244.1.0/24 via 192.168.78.2") && !ours().contains("10.244.9")
    })
    .await;
    assert!(
        sh("ip route").contains("172.31.0.0/16"),
        "routes of others stay"
    );

    sh("ip route del 10.244.1.0/24");
    eventually("the repair of a route", || ours().contains("10.244.1.0/24")).await;
    sh("ip link set out down; ip link set out up");
    eventually("the repair after a link was down", || {
        ours().contains("10.244.1.0/24")
    })
    .await;

    send(Event::Apply(node("other", "10.244.1.0/24", "192.168.78.3")));
    eventually("the move", || {
        ours().trim().starts_with("10.244.1.0/24 via 192.168.78.3")
    })
    .await;
    send(Event::Apply(node("other", "10.244.1.0/24", "192.168.78.2")));
    send(Event::Apply(node("third", "10.244.2.0/24", "192.168.78.3")));
    eventually("a new node", || ours().lines().count() == 2).await;
    send(Event::Delete(node(
        "third",
        "10.244.2.0/24",
        "192.168.78.3",
    )));
    eventually("the end of a node", || ours().lines().count() == 1).await;
    eventually("the rules", || {
        sh("iptables-save").contains("-A SKIFF-MASQ -s 10.244.0.0/16 -d")
            || sh("iptables-save").matches("SKIFF-MASQ").count() >= 4
    })
    .await;
    shutdown.cancel();
    task.await.unwrap();
}

#[test]
fn the_network_of_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let (me, outside, pod) = (Namespace::new(), Namespace::new(), Namespace::new());
    me.sh(format!(
        "ip link add out type veth peer name eth0 netns {}; ip addr add 192.168.78.1/24 dev out; ip link set out up;
         ip link add pod type veth peer name eth0 netns {}; ip addr add 10.244.0.1/24 dev pod; ip link set pod up;
         iptables -P FORWARD DROP",
        outside.thread, pod.thread
    ));
    outside.sh("ip addr add 192.168.78.2/24 dev eth0; ip link set eth0 up; ip addr add 10.244.1.5/32 dev lo; ip route add 10.244.0.0/24 via 192.168.78.1".into());
    pod.sh("ip addr add 10.244.0.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.244.0.1".into());
    let conf = dir.path().to_owned();
    me.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(story(conf));
    });

    // 192.168.78.2 is the world, 10.244.1.5 a pod of another node.
    let seen = |from: &Namespace, to: &'static str| {
        let (tell, told) = channel();
        outside.run(move || {
            let listener = TcpListener::bind(to).unwrap();
            thread::spawn(move || tell.send(listener.accept().unwrap().1.ip().to_string()));
        });
        from.run(move || {
            TcpStream::connect_timeout(&to.parse().unwrap(), Duration::from_secs(2)).unwrap()
        });
        told.recv_timeout(Duration::from_secs(2)).unwrap()
    };
    assert_eq!(
        seen(&pod, "192.168.78.2:7001"),
        "192.168.78.1",
        "masqueraded towards the world"
    );
    assert_eq!(
        seen(&pod, "10.244.1.5:7002"),
        "10.244.0.2",
        "itself towards other pods"
    );
    exists_whole(dir.path());
}

fn exists_whole(dir: &Path) {
    let conf: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join(cni::FILE)).unwrap()).unwrap();
    assert_eq!(
        conf["plugins"][0]["ipam"]["ranges"][0][0]["subnet"],
        "10.244.0.0/24"
    );
}
