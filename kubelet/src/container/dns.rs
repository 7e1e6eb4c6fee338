//! Host names, `/etc/hosts` and `resolv.conf` of a pod.

use k8s_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;

use crate::model;

/// The node's side of name resolution.
#[derive(Clone, Debug, Default)]
pub struct DnsFacts {
    pub cluster_dns: Vec<String>,
    pub cluster_domain: String,
    /// The node's own resolver configuration.
    pub host: DnsConfig,
}

pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_string)),
            Some("search" | "domain") => config.searches = words.map(str::to_string).collect(),
            Some("options") => config.options.extend(words.map(str::to_string)),
            _ => {}
        }
    }
    config
}

/// `dnsPolicy` first, then `dnsConfig` on top: servers and searches added, options replaced by name.
pub fn resolver(pod: &Pod, facts: &DnsFacts) -> DnsConfig {
    let spec = model::spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let mut config = match policy {
        "None" => DnsConfig::default(),
        "Default" => facts.host.clone(),
        "ClusterFirst" if model::is_host_network(pod) => facts.host.clone(),
        _ if facts.cluster_dns.is_empty() => facts.host.clone(),
        _ => cluster_first(model::namespace(pod), facts),
    };
    let Some(own) = &spec.dns_config else {
        return config;
    };
    for server in own.nameservers.iter().flatten() {
        push_new(&mut config.servers, server.clone());
    }
    for search in own.searches.iter().flatten() {
        push_new(&mut config.searches, search.clone());
    }
    for option in own.options.iter().flatten() {
        let Some(name) = &option.name else { continue };
        config.options.retain(|o| o.split(':').next() != Some(name));
        config.options.push(match &option.value {
            Some(value) if !value.is_empty() => format!("{name}:{value}"),
            _ => name.clone(),
        });
    }
    config
}

fn cluster_first(namespace: &str, facts: &DnsFacts) -> DnsConfig {
    let domain = &facts.cluster_domain;
    let mut searches = Vec::new();
    if !domain.is_empty() {
        searches = vec![
            format!("{namespace}.svc.{domain}"),
            format!("svc.{domain}"),
            domain.clone(),
        ];
    }
    for search in &facts.host.searches {
        push_new(&mut searches, search.clone());
    }
    DnsConfig {
        servers: facts.cluster_dns.clone(),
        searches,
        options: vec!["ndots:5".into()],
    }
}

fn push_new(list: &mut Vec<String>, item: String) {
    if !list.contains(&item) {
        list.push(item);
    }
}

/// The pod's host name, and the domain below which it stands if it has a subdomain.
pub fn names(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let spec = model::spec(pod);
    if let Some(name) = &spec.hostname_override {
        return (name.clone(), String::new());
    }
    let hostname = spec
        .hostname
        .as_deref()
        .filter(|h| !h.is_empty())
        .unwrap_or(model::name(pod));
    let mut hostname: String = hostname.chars().take(63).collect();
    hostname.truncate(hostname.trim_end_matches(['-', '.']).len());
    let domain = match spec.subdomain.as_deref().filter(|s| !s.is_empty()) {
        Some(sub) => format!("{sub}.{}.svc.{cluster_domain}", model::namespace(pod)),
        None => String::new(),
    };
    (hostname, domain)
}

/// What the kernel's host name becomes: the short name, or all of it with `setHostnameAsFQDN`.
pub fn kernel_hostname(pod: &Pod, cluster_domain: &str) -> String {
    let (name, domain) = names(pod, cluster_domain);
    match model::spec(pod).set_hostname_as_fqdn {
        Some(true) if !domain.is_empty() => format!("{name}.{domain}"),
        _ => name,
    }
}

/// The pod's `/etc/hosts`; with the host's network the node's own file comes first.
pub fn hosts_file(pod: &Pod, cluster_domain: &str, ips: &[String], node_hosts: &str) -> String {
    let mut out = String::new();
    if model::is_host_network(pod) {
        out.push_str("# Kubernetes-managed hosts file (host network).\n");
        out.push_str(node_hosts);
    } else {
        out.push_str("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        out.push_str("fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n");
        let (name, domain) = names(pod, cluster_domain);
        for ip in ips {
            match domain.is_empty() {
                true => out.push_str(&format!("{ip}\t{name}\n")),
                false => out.push_str(&format!("{ip}\t{name}.{domain}\t{name}\n")),
            }
        }
    }
    let aliases = model::spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        out.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec}),
        )
        .unwrap()
    }

    #[test]
    fn policies() {
        let facts = DnsFacts {
            cluster_dns: vec!["10.96.0.10".into()],
            cluster_domain: "cluster.local".into(),
            host: parse_resolv_conf("nameserver 1.1.1.1\nsearch lan\noptions edns0\n"),
        };
        let table = [
            (
                json!({"containers": []}),
                "10.96.0.10",
                "shop.svc.cluster.local,svc.cluster.local,cluster.local,lan",
                "ndots:5",
            ),
            (
                json!({"containers": [], "hostNetwork": true}),
                "1.1.1.1",
                "lan",
                "edns0",
            ),
            (
                json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
                "10.96.0.10",
                "shop.svc.cluster.local,svc.cluster.local,cluster.local,lan",
                "ndots:5",
            ),
            (
                json!({"containers": [], "dnsPolicy": "Default"}),
                "1.1.1.1",
                "lan",
                "edns0",
            ),
            (
                json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"], "options": [{"name": "ndots", "value": "2"}]}}),
                "9.9.9.9",
                "",
                "ndots:2",
            ),
            (
                json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}),
                "10.96.0.10",
                "shop.svc.cluster.local,svc.cluster.local,cluster.local,lan",
                "ndots:1",
            ),
        ];
        for (spec, servers, searches, options) in table {
            let got = resolver(&pod(spec.clone()), &facts);
            assert_eq!(
                (
                    got.servers.join(","),
                    got.searches.join(","),
                    got.options.join(",")
                ),
                (servers.into(), searches.into(), options.into()),
                "{spec}"
            );
        }
    }

    #[test]
    fn hosts() {
        let p = pod(
            json!({"containers": [], "subdomain": "web", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}),
        );
        let text = hosts_file(&p, "cluster.local", &["10.244.0.5".into()], "");
        assert!(text.contains("10.244.0.5\tweb-0.web.shop.svc.cluster.local\tweb-0\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
    }
}
