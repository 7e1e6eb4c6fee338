//! What the machine is: read once at the start.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;

use k8s_openapi::api::core::v1::{ContainerImage, NodeSystemInfo};

use crate::flags::Flags;

/// Kubernetes' version whose node API this kubelet follows.
pub const VERSION: &str = concat!("v1.36.2+skiff.", env!("CARGO_PKG_VERSION"));

#[derive(Clone, Debug)]
pub struct NodeInfo {
    pub name: String,
    pub ips: Vec<String>,
    pub cpus: usize,
    pub memory: i64,
    pub storage: i64,
    pub max_pods: i64,
    pub port: u16,
    pub system: NodeSystemInfo,
    pub images: Vec<ContainerImage>,
}

pub fn hostname(flags: &Flags) -> String {
    flags.hostname_override.clone().unwrap_or_else(|| {
        nix::unistd::gethostname()
            .ok()
            .and_then(|n| n.into_string().ok())
            .unwrap_or_default()
            .trim()
            .to_lowercase()
    })
}

/// The address of the interface that the default route leaves through.
pub fn default_ip() -> Option<String> {
    // Nothing is sent: connecting a datagram socket only asks for the route.
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified() && !matches!(ip, IpAddr::V4(v4) if v4.is_loopback()))
        .then(|| ip.to_string())
}

pub fn memory() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kb = text.lines().find_map(|l| {
        l.strip_prefix("MemTotal:")?
            .trim()
            .strip_suffix("kB")?
            .trim()
            .parse::<i64>()
            .ok()
    });
    kb.unwrap_or(0) * 1024
}

pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

pub fn storage(dir: &Path) -> i64 {
    nix::sys::statvfs::statvfs(dir).map_or(0, |s| {
        i64::try_from(s.blocks() * s.fragment_size()).unwrap_or(i64::MAX)
    })
}

pub fn system(runtime: &str) -> NodeSystemInfo {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_string()
    };
    let os = read("/etc/os-release");
    let image = os
        .lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))
        .unwrap_or_default()
        .trim_matches('"')
        .to_string();
    let machine = read("/etc/machine-id");
    let uuid = read("/sys/class/dmi/id/product_uuid");
    NodeSystemInfo {
        architecture: architecture().into(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: runtime.into(),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: VERSION.into(),
        system_uuid: if uuid.is_empty() {
            machine.clone()
        } else {
            uuid
        },
        machine_id: machine,
        operating_system: "linux".into(),
        os_image: image,
        swap: None,
    }
}

/// The name that Go, and with it Kubernetes, has for the machine's architecture.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}
