//! Forgets UDP flows that lead to endpoints which are gone.
//!
//! The kernel goes on sending a UDP flow where its first packet went, whatever the rules say by now, for
//! as long as packets come. TCP needs no such help: a dead endpoint resets or times out the connection.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use tokio::process::Command;

use crate::model::{Family, Model};
use crate::objects::Protocol;

/// Where UDP to Services should go: by address and port, and by node port. Services without serving
/// endpoints are left out, for nothing better could be done with their flows.
#[derive(Debug, Default, PartialEq)]
pub struct Targets {
    addresses: BTreeMap<SocketAddr, BTreeSet<SocketAddr>>,
    node_ports: BTreeMap<u16, BTreeSet<SocketAddr>>,
}

impl Targets {
    pub fn of(model: &Model) -> Self {
        let mut all = Self::default();
        let udp = model
            .ports
            .iter()
            .filter(|p| p.protocol == Protocol::Udp && !p.serving.is_empty());
        for port in udp {
            let ips = [port.cluster_ip].into_iter();
            for ip in ips
                .chain(port.load_balancer_ips.clone())
                .chain(port.external_ips.clone())
            {
                all.addresses
                    .insert(SocketAddr::new(ip, port.port), port.serving.clone());
            }
            if let Some(number) = port.node_port {
                all.node_ports.insert(number, port.serving.clone());
            }
        }
        all
    }

    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    fn is_stale(&self, flow: &Flow) -> bool {
        let targets = self
            .addresses
            .get(&flow.destination)
            .or_else(|| self.node_ports.get(&flow.destination.port()));
        targets.is_some_and(|targets| !targets.contains(&flow.answers))
    }
}

/// All flows with one original destination that are answered from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flow {
    destination: SocketAddr,
    answers: SocketAddr,
}

impl Flow {
    /// One line of `conntrack -L`: `src= dst= sport= dport=` of the first direction, then of the answer.
    fn parse(line: &str) -> Option<Self> {
        let nth = |key: &str, n: usize| {
            line.split_whitespace()
                .filter_map(|word| word.strip_prefix(key))
                .nth(n)
        };
        let address = |ip: &str, port: &str, n: usize| -> Option<SocketAddr> {
            Some(SocketAddr::new(
                nth(ip, n)?.parse::<IpAddr>().ok()?,
                nth(port, n)?.parse().ok()?,
            ))
        };
        Some(Self {
            destination: address("dst=", "dport=", 0)?,
            answers: address("src=", "sport=", 1)?,
        })
    }
}

fn plan(table: &str, targets: &Targets) -> BTreeSet<Flow> {
    table
        .lines()
        .filter_map(Flow::parse)
        .filter(|flow| targets.is_stale(flow))
        .collect()
}

/// Lists the UDP flows and deletes the stale ones. Failing is no reason to fail a sync: the flows
/// time out by themselves.
pub async fn clean(family: Family, targets: &Targets) {
    let family = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let table = match conntrack(&["-L", "-f", family, "-p", "udp"]).await {
        Ok(table) => table,
        Err(error) => return tracing::warn!(%error, "cannot list UDP flows"),
    };
    for Flow {
        destination,
        answers,
    } in plan(&table, targets)
    {
        let (ip, port) = (destination.ip().to_string(), destination.port().to_string());
        let (from, from_port) = (answers.ip().to_string(), answers.port().to_string());
        let args = [
            "-D",
            "-f",
            family,
            "-p",
            "udp",
            "--orig-dst",
            &ip,
            "--orig-port-dst",
            &port,
            "--reply-src",
            &from,
            "--reply-port-src",
            &from_port,
        ];
        match conntrack(&args).await {
            Ok(_) => tracing::debug!(%destination, %answers, "forgot stale UDP flows"),
            Err(error) => tracing::debug!(%destination, %answers, %error, "no UDP flows forgotten"),
        }
    }
}

async fn conntrack(args: &[&str]) -> std::io::Result<String> {
    let output = Command::new("conntrack")
        .args(args)
        .kill_on_drop(true)
        .output()
        .await?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(std::io::Error::other(message));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_flows_are_those_to_nobody_who_serves() {
        let dns: SocketAddr = "10.96.0.10:53".parse().unwrap();
        let pod: SocketAddr = "10.244.0.2:53".parse().unwrap();
        let targets = Targets {
            addresses: [(dns, [pod].into())].into(),
            node_ports: [(30053, [pod].into())].into(),
        };
        let line = |dst: &str, dport: u16, src: &str, sport: u16| {
            format!(
                "udp      17 29 src=10.244.0.9 dst={dst} sport=4242 dport={dport} src={src} dst=10.244.0.9 sport={sport} dport=4242 [ASSURED] mark=0 use=1\n"
            )
        };
        let table = [
            line("10.96.0.10", 53, "10.244.0.2", 53),
            line("10.96.0.10", 53, "10.244.0.3", 53),
            line("10.96.0.10", 53, "10.96.0.10", 53),
            line("10.0.0.1", 30053, "10.244.0.4", 53),
            line("10.0.0.1", 123, "10.0.0.1", 123),
            "udp 17 garbage\n".into(),
        ]
        .concat();
        let stale: Vec<_> = plan(&table, &targets)
            .into_iter()
            .map(|f| f.answers.ip().to_string())
            .collect();
        assert_eq!(stale, ["10.244.0.4", "10.96.0.10", "10.244.0.3"]);
    }
}
