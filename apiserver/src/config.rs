//! Command line flags, named as kube-apiserver names them.

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// The Kubernetes API server of Skiff.
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub struct Config {
    /// The address to serve on
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// The port to serve HTTPS on; 0 serves only on inherited sockets
    #[arg(long, default_value_t = 6443)]
    pub secure_port: u16,
    /// Also serve on this inherited listening socket; may be repeated
    #[arg(long, value_name = "FD")]
    pub listen_fd: Vec<RawFd>,
    /// The address that the `kubernetes` Service leads to; the default is the bind address
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    /// The certificate to serve with (PEM, with its chain)
    #[arg(long)]
    pub tls_cert_file: PathBuf,
    /// The key of that certificate (PEM)
    #[arg(long)]
    pub tls_private_key_file: PathBuf,
    /// Client certificates signed by an authority in this file name their user
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// The issuer of service account tokens
    #[arg(long, default_value = "https://kubernetes.default.svc.cluster.local")]
    pub service_account_issuer: String,
    /// Keys that service account tokens are checked with (PEM); may be repeated
    #[arg(long)]
    pub service_account_key_file: Vec<PathBuf>,
    /// The key that service account tokens are signed with (PEM)
    #[arg(long)]
    pub service_account_signing_key_file: Option<PathBuf>,
    /// Audiences that tokens for this server may name; the default is the issuer
    #[arg(long, value_delimiter = ',')]
    pub api_audiences: Vec<String>,
    /// The range that Services get their cluster addresses from
    #[arg(long, default_value = "10.96.0.0/12")]
    pub service_cluster_ip_range: String,
    /// The ports that Services may get on nodes
    #[arg(long, default_value = "30000-32767")]
    pub service_node_port_range: String,
    /// Who decides what users may do, in order
    #[arg(long, value_delimiter = ',', default_value = "Node,RBAC")]
    pub authorization_mode: Vec<String>,
    /// Whether requests without credentials are served, as system:anonymous
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub anonymous_auth: bool,
    /// The client certificate for kubelets
    #[arg(long)]
    pub kubelet_client_certificate: Option<PathBuf>,
    /// The key of the client certificate for kubelets
    #[arg(long)]
    pub kubelet_client_key: Option<PathBuf>,
    /// The authority that has signed the kubelets' certificates
    #[arg(long)]
    pub kubelet_certificate_authority: Option<PathBuf>,
    /// URLs of an etcd cluster; without, objects are kept in a file in the data directory
    #[arg(long, value_delimiter = ',')]
    pub etcd_servers: Vec<String>,
    /// The authority that has signed etcd's certificates
    #[arg(long)]
    pub etcd_cafile: Option<PathBuf>,
    /// The client certificate for etcd
    #[arg(long)]
    pub etcd_certfile: Option<PathBuf>,
    /// The key of the client certificate for etcd
    #[arg(long)]
    pub etcd_keyfile: Option<PathBuf>,
    /// Where the embedded store keeps its file
    #[arg(long, default_value = "/var/lib/skiff")]
    pub data_dir: PathBuf,
    /// Whether privileged containers are allowed
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub allow_privileged: bool,
    /// Admission plugins to enable besides the default ones
    #[arg(long, value_delimiter = ',')]
    pub enable_admission_plugins: Vec<String>,
    /// Admission plugins to disable
    #[arg(long, value_delimiter = ',')]
    pub disable_admission_plugins: Vec<String>,
    /// How long events are kept
    #[arg(long, default_value = "1h", value_parser = duration)]
    pub event_ttl: Duration,
}

/// A duration as Go writes it: `1h30m`, `45s`, `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is not a duration such as 1h30m");
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(invalid)?;
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return Err(invalid()),
        };
        total += Duration::try_from_secs_f64(number * seconds).map_err(|_| invalid())?;
        rest = &rest[unit..];
    }
    if text.is_empty() {
        Err(invalid())
    } else {
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("20ms"), Ok(Duration::from_millis(20)));
        for bad in ["", "5", "h", "1d", "-1s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
