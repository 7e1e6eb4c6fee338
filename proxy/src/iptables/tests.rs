//! Text of the rules for each kind of Service, and names that other tools rely on.

use super::chains::{self, Config, Ruleset, build};
use super::restore::{Existing, full};
use crate::model::{Family, Model, PortRules};
use crate::objects::Protocol;

fn config() -> Config {
    Config {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        masquerade_all: false,
        masquerade_bit: 14,
        node_port_addresses: vec![],
        localhost_node_ports: true,
        conntrack_liberal: false,
    }
}

fn port(targets: &[&str]) -> PortRules {
    let targets: Vec<_> = targets.iter().map(|t| t.parse().unwrap()).collect();
    PortRules {
        name: "shop/web:http".into(),
        protocol: Protocol::Tcp,
        cluster_ip: "10.96.0.20".parse().unwrap(),
        port: 80,
        node_port: None,
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

fn rules(port: PortRules) -> Ruleset {
    build(
        &Model {
            ports: vec![port],
            ..Model::default()
        },
        Family::V4,
        &config(),
    )
}

/// Rules of the chains that begin with `prefix`, names cut down to it.
fn of(rules: &Ruleset, prefix: &str) -> Vec<String> {
    let chains = rules
        .nat
        .iter()
        .filter(|(name, _)| name.starts_with(prefix));
    chains
        .flat_map(|(_, rules)| rules.iter().map(|rule| shorten(rule)))
        .collect()
}

/// Hashes of chain names are noise in expectations.
fn shorten(rule: &str) -> String {
    let words = rule
        .split(' ')
        .map(|word| match word.strip_prefix("KUBE-") {
            Some(rest) if rest.len() > 19 => {
                let cut = word.len() - 17;
                word.get(..cut).unwrap_or(word).to_owned()
            }
            _ => word.to_owned(),
        });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn chain_names_are_those_of_kube_proxy() {
    let mut p = port(&["10.180.0.1:80"]);
    p.name = "ns1/svc1:p80".into();
    assert_eq!(
        chains::endpoint_chain(&p, p.cluster[0]),
        "KUBE-SEP-SXIVWICOYRO3J4NJ"
    );
    p.name = "ns4/svc4:p80".into();
    assert!(rules(p).nat.contains_key("KUBE-SVC-4SW47YFZTEDKD3PK"));
}

#[test]
fn cluster_ip_balances() {
    let all = rules(port(&[
        "10.244.0.2:8080",
        "10.244.1.2:8080",
        "10.244.2.2:8080",
    ]));
    assert_eq!(
        of(&all, "KUBE-SERVICES"),
        [
            "-m comment --comment \"shop/web:http cluster IP\" -m tcp -p tcp -d 10.96.0.20 --dport 80 -j KUBE-SVC",
            "-m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
        ]
    );
    assert_eq!(
        of(&all, "KUBE-SVC-"),
        [
            "-m comment --comment \"shop/web:http cluster IP\" -m tcp -p tcp -d 10.96.0.20 --dport 80 ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ",
            "-m comment --comment \"shop/web:http -> 10.244.0.2:8080\" -m statistic --mode random --probability 0.3333333333 -j KUBE-SEP",
            "-m comment --comment \"shop/web:http -> 10.244.1.2:8080\" -m statistic --mode random --probability 0.5000000000 -j KUBE-SEP",
            "-m comment --comment \"shop/web:http -> 10.244.2.2:8080\" -j KUBE-SEP",
        ]
    );
    assert_eq!(
        all.nat
            .keys()
            .filter(|k| k.starts_with("KUBE-SEP-"))
            .count(),
        3
    );
    assert!(of(&all, "KUBE-SEP-").contains(
        &"-m comment --comment \"shop/web:http\" -m tcp -p tcp -j DNAT --to-destination 10.244.0.2:8080".to_owned()
    ));
    assert!(of(&all, "KUBE-EXT-").is_empty());
}

#[test]
fn no_endpoints_means_reject() {
    let mut p = port(&[]);
    p.node_port = Some(30080);
    p.external_ips = vec!["192.0.2.1".parse().unwrap()];
    let all = rules(p);
    assert_eq!(
        all.filter[chains::SERVICES],
        [
            "-m comment --comment \"shop/web:http has no endpoints\" -m tcp -p tcp -d 10.96.0.20 --dport 80 -j REJECT"
        ]
    );
    assert_eq!(
        all.filter[chains::EXTERNAL],
        [
            "-m comment --comment \"shop/web:http has no endpoints\" -m tcp -p tcp -d 192.0.2.1 --dport 80 -j REJECT",
            "-m comment --comment \"shop/web:http has no endpoints\" -m addrtype --dst-type LOCAL -m tcp -p tcp --dport 30080 -j REJECT",
        ]
    );
    assert_eq!(of(&all, "KUBE-NODEPORTS"), Vec::<String>::new());
}

#[test]
fn external_traffic_under_both_policies() {
    let mut p = port(&["10.244.0.2:8080"]);
    p.node_port = Some(30080);
    let cluster = rules(p.clone());
    assert_eq!(
        of(&cluster, "KUBE-EXT-"),
        [
            "-m comment --comment \"masquerade traffic for shop/web:http external destinations\" -j KUBE-MARK-MASQ",
            "-j KUBE-SVC",
        ]
    );
    p.external_local = true;
    p.local = p.cluster.clone();
    assert_eq!(
        of(&rules(p.clone()), "KUBE-EXT-"),
        [
            "-m comment --comment \"pod traffic for shop/web:http external destinations\" -s 10.244.0.0/16 -j KUBE-SVC",
            "-m comment --comment \"masquerade LOCAL traffic for shop/web:http external destinations\" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ",
            "-m comment --comment \"route LOCAL traffic for shop/web:http external destinations\" -m addrtype --src-type LOCAL -j KUBE-SVC",
            "-j KUBE-SVL",
        ]
    );
    p.local.clear();
    let away = rules(p);
    assert!(!of(&away, "KUBE-EXT-").contains(&"-j KUBE-SVL".to_owned()));
    assert_eq!(
        away.filter[chains::EXTERNAL],
        [
            "-m comment --comment \"shop/web:http has no local endpoints\" -m addrtype --dst-type LOCAL -m tcp -p tcp --dport 30080 -j DROP"
        ]
    );
}

#[test]
fn load_balancer_with_source_ranges() {
    let mut p = port(&["10.244.0.2:8080"]);
    p.load_balancer_ips = vec!["203.0.113.9".parse().unwrap()];
    p.source_ranges = vec!["198.51.100.0/24".parse().unwrap()];
    let mut model = Model {
        ports: vec![p],
        ..Model::default()
    };
    let all = build(&model, Family::V4, &config());
    assert_eq!(
        of(&all, "KUBE-FW-"),
        [
            "-m comment --comment \"shop/web:http loadbalancer IP\" -s 198.51.100.0/24 -j KUBE-EXT",
            "-m comment --comment \"other traffic to shop/web:http will be dropped by KUBE-PROXY-FIREWALL\"",
        ]
    );
    assert_eq!(all.filter[chains::LB_FIREWALL].len(), 1);
    model.node_addresses = vec!["198.51.100.7".parse().unwrap()];
    let here = build(&model, Family::V4, &config());
    assert!(of(&here, "KUBE-FW-")[1].ends_with("-s 203.0.113.9 -j KUBE-EXT"));
}

#[test]
fn affinity_remembers_and_asks_first() {
    let mut p = port(&["10.244.0.2:8080", "10.244.1.2:8080"]);
    p.affinity = Some(600);
    let all = rules(p);
    let svc = of(&all, "KUBE-SVC-");
    assert!(
        svc[1].contains("-m recent --name KUBE-SEP --rcheck --seconds 600 --reap -j KUBE-SEP"),
        "{svc:?}"
    );
    assert!(svc[3].contains("statistic"));
    assert!(of(&all, "KUBE-SEP-")[1].contains("-m recent --name KUBE-SEP --set -m tcp"));
}

#[test]
fn node_ports_on_chosen_addresses() {
    let mut c = config();
    c.node_port_addresses = vec!["192.168.0.0/16".parse().unwrap()];
    let all = build(&Model::default(), Family::V4, &c);
    assert!(
        all.nat[chains::SERVICES][0]
            .ends_with("--dst-type LOCAL -d 192.168.0.0/16 -j KUBE-NODEPORTS")
    );
    c.node_port_addresses.clear();
    c.localhost_node_ports = false;
    let all = build(&Model::default(), Family::V4, &c);
    assert!(
        all.nat[chains::SERVICES][0]
            .ends_with("--dst-type LOCAL ! -d 127.0.0.0/8 -j KUBE-NODEPORTS")
    );
    assert!(all.filter[chains::LOCALNET].is_empty());
}

#[test]
fn every_target_of_a_jump_exists() {
    let mut p = port(&["10.244.0.2:8080"]);
    p.node_port = Some(30080);
    p.load_balancer_ips = vec!["203.0.113.9".parse().unwrap()];
    p.source_ranges = vec!["198.51.100.0/24".parse().unwrap()];
    p.external_local = true;
    p.local = p.cluster.clone();
    let all = rules(p);
    for (table, chains) in all.tables() {
        for rule in chains.values().flatten() {
            if let Some((_, to)) = rule.rsplit_once("-j KUBE-") {
                assert!(
                    chains.contains_key(&format!("KUBE-{to}")),
                    "{table}: {rule}"
                );
            }
        }
    }
    let text = full(&all, &Existing::default());
    assert_eq!(text.matches("COMMIT").count(), 2);
}
