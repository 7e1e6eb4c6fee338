//! Command line flags, named as kube-apiserver names them.

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::store::StoreFlags;

/// The Kubernetes API server of Skiff.
#[derive(Debug, Clone, Parser)]
#[command(
    version,
    after_help = "`apiserver store --help` says how a store is backed up, restored and moved."
)]
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
    /// How the endpoints of the `kubernetes` Service come about: all servers that have a lease in the store, or not at all
    #[arg(long, default_value = "lease", value_parser = ["lease", "none"])]
    pub endpoint_reconciler_type: String,
    /// The certificate to serve with (PEM, with its chain)
    #[arg(long)]
    pub tls_cert_file: PathBuf,
    /// The key of that certificate (PEM)
    #[arg(long)]
    pub tls_private_key_file: PathBuf,
    /// Client certificates signed by an authority in this file name their user
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// A file of tokens: token,user,uid,"group1,group2"
    #[arg(long)]
    pub token_auth_file: Option<PathBuf>,
    /// Whether Secrets of type bootstrap.kubernetes.io/token in kube-system let machines in
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub enable_bootstrap_token_auth: bool,
    /// An AuthenticationConfiguration: issuers of tokens, and who may be anonymous where
    #[arg(long)]
    pub authentication_config: Option<PathBuf>,
    /// The https URL of an OpenID Connect issuer, whose tokens are taken
    #[arg(long)]
    pub oidc_issuer_url: Option<String>,
    /// The audience that its tokens have to be for
    #[arg(long)]
    pub oidc_client_id: Option<String>,
    /// The authority that has signed its certificate; the default is the system's
    #[arg(long)]
    pub oidc_ca_file: Option<PathBuf>,
    /// The claim that is the user's name
    #[arg(long, default_value = "sub")]
    pub oidc_username_claim: String,
    /// What is put before user names; the default is the issuer's URL and #, or nothing for emails, and - is nothing
    #[arg(long)]
    pub oidc_username_prefix: Option<String>,
    /// The claim that holds the user's groups
    #[arg(long)]
    pub oidc_groups_claim: Option<String>,
    /// What is put before groups
    #[arg(long, default_value = "")]
    pub oidc_groups_prefix: String,
    /// Algorithms that tokens may be signed with
    #[arg(long, value_delimiter = ',', default_value = "RS256")]
    pub oidc_signing_algs: Vec<String>,
    /// A claim that tokens have to have, as key=value; may be repeated
    #[arg(long, value_delimiter = ',')]
    pub oidc_required_claim: Vec<String>,
    /// A kubeconfig file that says which service is asked about tokens
    #[arg(long)]
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    /// The version of authentication.k8s.io that it speaks
    #[arg(long, default_value = "v1beta1")]
    pub authentication_token_webhook_version: String,
    /// How long its answers are believed
    #[arg(long, default_value = "2m", value_parser = duration)]
    pub authentication_token_webhook_cache_ttl: Duration,
    /// A kubeconfig file that says which service is asked what users may do, for the mode Webhook
    #[arg(long)]
    pub authorization_webhook_config_file: Option<PathBuf>,
    /// The version of authorization.k8s.io that it speaks
    #[arg(long, default_value = "v1beta1")]
    pub authorization_webhook_version: String,
    /// How long what it allows is allowed
    #[arg(long, default_value = "5m", value_parser = duration)]
    pub authorization_webhook_cache_authorized_ttl: Duration,
    /// How long what it does not allow is not
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub authorization_webhook_cache_unauthorized_ttl: Duration,
    /// An AuthorizationConfiguration: who decides, in order; instead of --authorization-mode
    #[arg(long)]
    pub authorization_config: Option<PathBuf>,
    /// What of which requests is recorded; without, nothing is
    #[arg(long)]
    pub audit_policy_file: Option<PathBuf>,
    /// The file that audit events are written to as JSON lines; - is standard output
    #[arg(long)]
    pub audit_log_path: Option<PathBuf>,
    /// Whether requests wait for a full queue (blocking) or events are dropped then (batch)
    #[arg(long, default_value = "blocking")]
    pub audit_log_mode: String,
    /// How many days rotated files are kept; 0 is for ever
    #[arg(long, default_value_t = 0)]
    pub audit_log_maxage: u64,
    /// How many rotated files are kept; 0 is all
    #[arg(long, default_value_t = 0)]
    pub audit_log_maxbackup: usize,
    /// The megabytes at which the file is rotated
    #[arg(long, default_value_t = 0)]
    pub audit_log_maxsize: u64,
    /// Whether rotated files are compressed
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub audit_log_compress: bool,
    /// A kubeconfig file that says which service gets audit events
    #[arg(long)]
    pub audit_webhook_config_file: Option<PathBuf>,
    /// Whether it gets them in batches, or each with its request waiting (blocking)
    #[arg(long, default_value = "batch")]
    pub audit_webhook_mode: String,
    /// How many events may wait for it
    #[arg(long, default_value_t = 10_000)]
    pub audit_webhook_batch_buffer_size: usize,
    /// How many events it gets at a time
    #[arg(long, default_value_t = 400)]
    pub audit_webhook_batch_max_size: usize,
    /// How long a batch waits to be full
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub audit_webhook_batch_max_wait: Duration,
    /// How long to wait before events are sent again
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub audit_webhook_initial_backoff: Duration,
    /// Client certificates signed by an authority in this file vouch for the users in their requests' headers
    #[arg(long)]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common names that such certificates may have; the default is any
    #[arg(long, value_delimiter = ',')]
    pub requestheader_allowed_names: Vec<String>,
    /// Headers that name the user
    #[arg(long, value_delimiter = ',', default_value = "X-Remote-User")]
    pub requestheader_username_headers: Vec<String>,
    /// Headers with the user's uid
    #[arg(long, value_delimiter = ',', default_value = "X-Remote-Uid")]
    pub requestheader_uid_headers: Vec<String>,
    /// Headers with the user's groups
    #[arg(long, value_delimiter = ',', default_value = "X-Remote-Group")]
    pub requestheader_group_headers: Vec<String>,
    /// What headers with more about the user begin with
    #[arg(long, value_delimiter = ',', default_value = "X-Remote-Extra-")]
    pub requestheader_extra_headers_prefix: Vec<String>,
    /// The client certificate for aggregated API servers
    #[arg(long)]
    pub proxy_client_cert_file: Option<PathBuf>,
    /// The key of the client certificate for aggregated API servers
    #[arg(long)]
    pub proxy_client_key_file: Option<PathBuf>,
    /// The issuer of service account tokens; the tokens of further ones are taken too
    #[arg(long, default_value = "https://kubernetes.default.svc.cluster.local")]
    pub service_account_issuer: Vec<String>,
    /// Where others find the keys of the issuer; the default is this server
    #[arg(long)]
    pub service_account_jwks_uri: Option<String>,
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
    #[command(flatten)]
    pub store: StoreFlags,
    /// How long what was replaced or deleted is kept for those who read or watch from before; 0 leaves compaction to others
    #[arg(long, default_value = "5m", value_parser = duration)]
    pub etcd_compaction_interval: Duration,
    /// Whether privileged containers are allowed
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub allow_privileged: bool,
    /// Admission plugins to enable besides the default ones
    #[arg(long, value_delimiter = ',')]
    pub enable_admission_plugins: Vec<String>,
    /// Admission plugins to disable
    #[arg(long, value_delimiter = ',')]
    pub disable_admission_plugins: Vec<String>,
    /// An EncryptionConfiguration: which resources are sealed in the store, and how
    #[arg(long)]
    pub encryption_provider_config: Option<PathBuf>,
    /// Take up changes of that file while running
    #[arg(long)]
    pub encryption_provider_config_automatic_reload: bool,
    /// Share out what is answered at a time by priority levels and flows
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub enable_priority_and_fairness: bool,
    /// With the next one, how many requests are answered at a time; without priority and fairness, how many that change
    /// nothing, and 0 is no limit
    #[arg(long, default_value_t = 400)]
    pub max_requests_inflight: usize,
    /// Added to the one before; without priority and fairness, how many requests that change something
    #[arg(long, default_value_t = 200)]
    pub max_mutating_requests_inflight: usize,
    /// How long events are kept
    #[arg(long, default_value = "1h", value_parser = duration)]
    pub event_ttl: Duration,
}

/// A duration as Go writes it: `1h30m`, `45s`, `500ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
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
