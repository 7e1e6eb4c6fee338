//! The processes of each machine: their command lines and configuration files, as pure functions of the cluster.

use std::path::Path;

use super::pki::FRONT_PROXY;
use super::rootfs;
use super::spec::{
    self, API_PORT, Cluster, DNS_SERVICE, DOMAIN, KUBERNETES_SERVICE, Machine, POD_CIDR, Paths,
    SERVICE_CIDR, Store,
};

/// Descriptors that a machine's first process is given.
pub const NETWORK_FD: i32 = 3;
pub const REPORT_FD: i32 = 4;
/// The API's sockets, on the host's loopback and on the bridge: they outlive the API server, so that clients of one that
/// starts or restarts wait in line instead of being refused.
pub const LISTEN_FDS: [i32; 2] = [5, 6];

pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
pub const SANDBOX_IMAGE: &str = "skiff.local/pause:0.1";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    pub name: &'static str,
    pub argv: Vec<String>,
    /// Order of stopping.
    pub stage: u8,
    /// Started once this file is there.
    pub after: Option<&'static str>,
    pub fds: Vec<i32>,
}

impl Component {
    fn new(name: &'static str, stage: u8, program: String, flags: &[(&str, String)]) -> Component {
        let mut argv = vec![program];
        argv.extend(
            flags
                .iter()
                .map(|(flag, value)| format!("--{flag}={value}")),
        );
        Component {
            name,
            argv,
            stage,
            after: None,
            fds: Vec::new(),
        }
    }
}

pub fn of(cluster: &Cluster, paths: &Paths, machine: Machine) -> Vec<Component> {
    match machine {
        Machine::ControlPlane => control_plane(cluster, paths),
        Machine::Node(node) => self::node(cluster, node),
    }
}

fn control_plane(cluster: &Cluster, paths: &Paths) -> Vec<Component> {
    let program = |name: &str| text(&cluster.bin_dir.join(name));
    let pki = |name: &str| text(&paths.pki().join(name));
    let mut api = vec![
        // The bridge's address is served by the second inherited socket.
        ("bind-address", "127.0.0.1".to_string()),
        ("secure-port", API_PORT.to_string()),
        ("advertise-address", cluster.control_plane_ip().to_string()),
        ("tls-cert-file", pki("apiserver.crt")),
        ("tls-private-key-file", pki("apiserver.key")),
        ("client-ca-file", pki("ca.crt")),
        (
            "service-account-issuer",
            format!("https://kubernetes.default.svc.{DOMAIN}"),
        ),
        ("service-account-key-file", pki("sa.pub")),
        ("service-account-signing-key-file", pki("sa.key")),
        ("service-cluster-ip-range", SERVICE_CIDR.to_string()),
        ("authorization-mode", "Node,RBAC".to_string()),
        (
            "kubelet-client-certificate",
            pki("apiserver-kubelet-client.crt"),
        ),
        ("kubelet-client-key", pki("apiserver-kubelet-client.key")),
        ("kubelet-certificate-authority", pki("ca.crt")),
        ("requestheader-client-ca-file", pki("front-proxy-ca.crt")),
        ("requestheader-allowed-names", FRONT_PROXY.to_string()),
        ("proxy-client-cert-file", pki("front-proxy-client.crt")),
        ("proxy-client-key-file", pki("front-proxy-client.key")),
    ];
    api.extend(LISTEN_FDS.map(|fd| ("listen-fd", fd.to_string())));
    let mut components = Vec::new();
    if cluster.store == Store::Etcd {
        const CLIENT: &str = "http://127.0.0.1:2379";
        const PEER: &str = "http://127.0.0.1:2380";
        let flags = [
            ("name", "skiff".to_string()),
            ("data-dir", text(&paths.store())),
            ("listen-client-urls", CLIENT.into()),
            ("advertise-client-urls", CLIENT.into()),
            ("listen-peer-urls", PEER.into()),
            ("initial-advertise-peer-urls", PEER.into()),
            ("initial-cluster", format!("skiff={PEER}")),
            ("log-level", "warn".into()),
        ];
        components.push(Component::new("etcd", 2, "etcd".into(), &flags));
        api.push(("etcd-servers", CLIENT.into()));
    } else {
        api.push(("data-dir", text(&paths.store())));
    }
    let mut apiserver = Component::new("apiserver", 1, program("apiserver"), &api);
    apiserver.fds = LISTEN_FDS.to_vec();
    components.push(apiserver);
    let conf = |name: &str| ("kubeconfig", text(&paths.kubeconfig(name)));
    let manager = [
        conf("controller-manager"),
        ("cluster-cidr", POD_CIDR.to_string()),
        ("allocate-node-cidrs", "true".into()),
        ("root-ca-file", pki("ca.crt")),
        ("service-account-private-key-file", pki("sa.key")),
        ("cluster-signing-cert-file", pki("ca.crt")),
        ("cluster-signing-key-file", pki("ca.key")),
        ("controllers", "*,bootstrapsigner,tokencleaner".into()),
    ];
    components.push(Component::new(
        "controller-manager",
        0,
        program("controller-manager"),
        &manager,
    ));
    components.push(Component::new(
        "scheduler",
        0,
        program("scheduler"),
        &[conf("scheduler")],
    ));
    // No pods run here, but the API server calls webhooks in pods and proxies to them: it needs the routes.
    let overlay = [
        conf("overlay"),
        ("hostname-override", spec::CONTROL_PLANE.into()),
        ("cluster-cidr", POD_CIDR.into()),
    ];
    components.push(Component::new("overlay", 0, program("overlay"), &overlay));
    components
}

fn node(cluster: &Cluster, node: u32) -> Vec<Component> {
    let name = Machine::Node(node).name();
    let program = |name: &str| format!("{}/{name}", rootfs::BIN_DIR);
    let conf = |name: &str| ("kubeconfig", format!("/etc/kubernetes/{name}.conf"));
    let containerd = [
        ("config", "/etc/containerd/config.toml".to_string()),
        ("log-level", "warn".into()),
    ];
    let kubelet = [
        conf("kubelet"),
        ("hostname-override", name.clone()),
        ("node-ip", cluster.node_ip(node).to_string()),
        (
            "container-runtime-endpoint",
            format!("unix://{CONTAINERD_SOCKET}"),
        ),
        ("client-ca-file", "/etc/kubernetes/pki/ca.crt".into()),
        ("tls-cert-file", "/etc/kubernetes/pki/kubelet.crt".into()),
        (
            "tls-private-key-file",
            "/etc/kubernetes/pki/kubelet.key".into(),
        ),
        ("cluster-dns", DNS_SERVICE.to_string()),
        ("cluster-domain", DOMAIN.into()),
    ];
    let proxy = [
        conf("proxy"),
        ("hostname-override", name.clone()),
        ("cluster-cidr", POD_CIDR.into()),
    ];
    let overlay = [
        conf("overlay"),
        ("hostname-override", name),
        ("cluster-cidr", POD_CIDR.into()),
    ];
    let mut kubelet = Component::new("kubelet", 0, program("kubelet"), &kubelet);
    kubelet.after = Some(CONTAINERD_SOCKET);
    vec![
        Component::new("containerd", 1, "containerd".into(), &containerd),
        kubelet,
        Component::new("proxy", 0, program("proxy"), &proxy),
        Component::new("overlay", 0, program("overlay"), &overlay),
    ]
}

/// containerd's configuration, for version 1.6 and newer. `cri` is off where only images are imported.
pub fn containerd_config(root: &str, state: &str, cri: bool) -> String {
    let disabled = if cri {
        ""
    } else {
        "\"io.containerd.grpc.v1.cri\", "
    };
    // No OOM score of its own, and none below it for containers: neither can be set without CAP_SYS_RESOURCE.
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
oom_score = 0
disabled_plugins = [{disabled}"io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing"]

[grpc]
  address = "{state}/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{SANDBOX_IMAGE}"
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"

  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
"#
    )
}

pub fn hosts(cluster: &Cluster) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_string();
    text += &format!(
        "{}\t{}\n",
        cluster.control_plane_ip(),
        Machine::ControlPlane.name()
    );
    for node in cluster.nodes() {
        text += &format!(
            "{}\t{}\n",
            cluster.node_ip(node),
            Machine::Node(node).name()
        );
    }
    text
}

/// Addresses that never go through a proxy that the host's environment names.
pub fn no_proxy(cluster: &Cluster) -> String {
    format!(
        "localhost,127.0.0.1,{},{SERVICE_CIDR},{POD_CIDR},{KUBERNETES_SERVICE},.svc,.{DOMAIN}",
        cluster.cidr()
    )
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(cluster: &Cluster, machine: Machine) -> Vec<&'static str> {
        let paths = Paths::new(Path::new("/state"), &cluster.name);
        of(cluster, &paths, machine)
            .iter()
            .map(|c| c.name)
            .collect()
    }

    #[test]
    fn each_machine_has_its_components() {
        let mut cluster = spec::tests::example();
        assert_eq!(
            names(&cluster, Machine::ControlPlane),
            ["apiserver", "controller-manager", "scheduler", "overlay"]
        );
        assert_eq!(
            names(&cluster, Machine::Node(1)),
            ["containerd", "kubelet", "proxy", "overlay"]
        );
        cluster.store = Store::Etcd;
        assert_eq!(names(&cluster, Machine::ControlPlane)[0], "etcd");
    }

    #[test]
    fn the_api_server_is_given_its_sockets_and_its_store() {
        let mut cluster = spec::tests::example();
        let paths = Paths::new(Path::new("/state"), &cluster.name);
        let argv = |cluster: &Cluster| {
            let components = of(cluster, &paths, Machine::ControlPlane);
            components
                .into_iter()
                .find(|c| c.name == "apiserver")
                .unwrap()
        };
        let embedded = argv(&cluster);
        assert_eq!(embedded.fds, LISTEN_FDS);
        assert!(
            embedded
                .argv
                .contains(&"--data-dir=/state/clusters/demo/store".to_string())
        );
        assert!(embedded.argv.contains(&"--listen-fd=6".to_string()));
        cluster.store = Store::Etcd;
        let etcd = argv(&cluster);
        assert!(
            etcd.argv
                .contains(&"--etcd-servers=http://127.0.0.1:2379".to_string())
        );
        assert!(!etcd.argv.iter().any(|a| a.starts_with("--data-dir")));
    }

    #[test]
    fn every_node_knows_every_machine() {
        assert!(hosts(&spec::tests::example()).ends_with("10.89.7.11\tnode1\n10.89.7.12\tnode2\n"));
    }
}
