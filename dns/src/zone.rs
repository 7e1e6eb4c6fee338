//! Answers for the cluster's own names, as the Kubernetes DNS specification 1.1.0 says. Pure functions of a
//! question and the index.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::index::{Index, Port, Service};

/// Short, so that clients follow endpoints; nothing in the cluster is far away.
const TTL: u32 = 5;
const SPECIFICATION: &str = "1.1.0";

/// What the zone says to a question.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
    /// The answers end with an alias of a name that is not the zone's: ask upstream for the rest.
    pub follow: Option<Name>,
}

#[derive(Debug)]
pub struct Zone {
    /// The cluster's domain.
    pub domain: Name,
}

/// Names below the domain, in lower case, from the last label to the first.
type Path = Vec<String>;

/// What a name below the domain stands for.
enum Found {
    /// No such name, and nothing below it.
    Nothing,
    /// The name exists, but holds nothing of its own.
    Empty,
    Records(Vec<RData>, Vec<Record>),
}

impl Zone {
    pub fn new(domain: &str) -> Result<Self, hickory_proto::ProtoError> {
        let mut domain = Name::from_ascii(domain)?.to_lowercase();
        domain.set_fqdn(true);
        Ok(Self { domain })
    }

    /// `None` when the name is not the cluster's, so that somebody else has to be asked.
    pub fn answer(&self, index: &Index, name: &Name, kind: RecordType) -> Option<Answer> {
        if !self.domain.zone_of(name) {
            return self.reverse(index, name, kind);
        }
        if !index.synced() {
            return Some(Answer {
                code: ResponseCode::ServFail,
                ..Answer::default()
            });
        }
        let (code, mut answers, additionals) = match self.find(index, &self.path(name), kind) {
            Found::Nothing => (ResponseCode::NXDomain, vec![], vec![]),
            Found::Empty => (ResponseCode::NoError, vec![], vec![]),
            Found::Records(data, more) => (ResponseCode::NoError, data, more),
        };
        let matching = |data: &RData| {
            let have = data.record_type();
            have == kind || kind == RecordType::ANY || have == RecordType::CNAME
        };
        answers.retain(matching);
        let mut answer = Answer {
            code,
            additionals,
            ..Answer::default()
        };
        answer.answers.extend(
            answers
                .into_iter()
                .map(|data| Record::from_rdata(name.clone(), TTL, data)),
        );
        self.follow_alias(index, &mut answer, kind);
        if answer.answers.is_empty() {
            answer.authorities.push(self.soa(index));
        }
        Some(answer)
    }

    /// An alias to another name of the zone is answered here; to any other name is for upstream.
    fn follow_alias(&self, index: &Index, answer: &mut Answer, kind: RecordType) {
        if kind == RecordType::CNAME || kind == RecordType::ANY {
            return;
        }
        let alias = answer.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(CNAME(target)) => Some(target.clone()),
            _ => None,
        });
        let Some(target) = alias else { return };
        if !self.domain.zone_of(&target) {
            answer.follow = Some(target);
            return;
        }
        // One step is enough for an ExternalName of a Service; a chain of them could be a circle.
        if let Found::Records(data, _) = self.find(index, &self.path(&target), kind) {
            let data = data.into_iter().filter(|data| data.record_type() == kind);
            answer
                .answers
                .extend(data.map(|data| Record::from_rdata(target.clone(), TTL, data)));
        }
    }

    fn path(&self, name: &Name) -> Path {
        let below =
            usize::from(name.num_labels() - self.domain.num_labels().min(name.num_labels()));
        let labels = name.iter().take(below);
        let mut path: Path = labels
            .map(|label| String::from_utf8_lossy(label).to_lowercase())
            .collect();
        path.reverse();
        path
    }

    fn find(&self, index: &Index, path: &[String], kind: RecordType) -> Found {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        match path.as_slice() {
            [] => {
                let ns = RData::NS(NS(self.below("ns.dns")));
                Found::Records(vec![self.soa(index).data, ns], vec![])
            }
            ["dns-version"] => Found::Records(
                vec![RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]))],
                vec![],
            ),
            ["dns"] | ["svc"] | ["pod"] => Found::Empty,
            ["dns", "ns"] => self.service(index, "kube-system", "kube-dns", kind),
            ["svc" | "pod", namespace] if index.has_namespace(namespace) => Found::Empty,
            ["svc", namespace, name] => self.service(index, namespace, name, kind),
            ["svc", namespace, name, protocol] if protocol.starts_with('_') => {
                let ports = self.ports(index, namespace, name);
                let known = ports.iter().any(|(port, _)| port.protocol == protocol[1..]);
                if known { Found::Empty } else { Found::Nothing }
            }
            ["svc", namespace, name, protocol, port]
                if protocol.starts_with('_') && port.starts_with('_') =>
            {
                self.port(index, namespace, name, &port[1..], &protocol[1..])
            }
            ["svc", namespace, name, endpoint] => {
                let endpoints = index.endpoints(namespace, name);
                let there = endpoints
                    .keys()
                    .filter(|e| e.label == *endpoint)
                    .map(|e| address(e.address));
                some(there.collect())
            }
            // The name says the address itself.
            ["pod", _, dashed] => some(undash(dashed).map(address).into_iter().collect()),
            _ => Found::Nothing,
        }
    }

    fn service(&self, index: &Index, namespace: &str, name: &str, kind: RecordType) -> Found {
        match index.service(namespace, name) {
            None => Found::Nothing,
            Some(Service::External(target)) => match Name::from_ascii(target) {
                Ok(mut target) => {
                    target.set_fqdn(true);
                    Found::Records(vec![RData::CNAME(CNAME(target))], vec![])
                }
                Err(_) => Found::Empty,
            },
            Some(_) if kind == RecordType::SRV => {
                let ports = self.ports(index, namespace, name);
                self.srv(
                    &ports
                        .iter()
                        .map(|(port, hosts)| (port, hosts.as_slice()))
                        .collect::<Vec<_>>(),
                )
            }
            Some(Service::ClusterIp(addresses, _)) => {
                Found::Records(addresses.iter().copied().map(address).collect(), vec![])
            }
            // Without any endpoint there is no such name.
            Some(Service::Headless { .. }) => {
                let endpoints = index.endpoints(namespace, name);
                some(
                    endpoints
                        .keys()
                        .map(|endpoint| address(endpoint.address))
                        .collect(),
                )
            }
        }
    }

    /// Every port of a Service, with the hosts that offer it: the Service itself, or its named endpoints.
    fn ports(
        &self,
        index: &Index,
        namespace: &str,
        name: &str,
    ) -> Vec<(Port, Vec<(Name, IpAddr)>)> {
        let service = format!("{name}.{namespace}.svc");
        if let Some(Service::ClusterIp(addresses, ports)) = index.service(namespace, name) {
            let host = self.below(&service);
            let hosts: Vec<_> = addresses.iter().map(|ip| (host.clone(), *ip)).collect();
            return ports
                .iter()
                .map(|port| (port.clone(), hosts.clone()))
                .collect();
        }
        let mut ports: std::collections::BTreeMap<Port, Vec<(Name, IpAddr)>> = Default::default();
        for (endpoint, offered) in index.endpoints(namespace, name) {
            for port in offered {
                let host = self.below(&format!("{}.{service}", endpoint.label));
                ports
                    .entry(port.clone())
                    .or_default()
                    .push((host, endpoint.address));
            }
        }
        ports.into_iter().collect()
    }

    fn port(
        &self,
        index: &Index,
        namespace: &str,
        name: &str,
        port: &str,
        protocol: &str,
    ) -> Found {
        let ports = self.ports(index, namespace, name);
        let these = ports
            .iter()
            .filter(|(p, _)| p.name == port && p.protocol == protocol && !p.name.is_empty());
        self.srv(
            &these
                .map(|(port, hosts)| (port, hosts.as_slice()))
                .collect::<Vec<_>>(),
        )
    }

    fn srv(&self, ports: &[(&Port, &[(Name, IpAddr)])]) -> Found {
        let (mut data, mut more): (Vec<RData>, Vec<Record>) = (vec![], vec![]);
        let targets: usize = ports.iter().map(|(_, hosts)| hosts.len()).sum();
        let weight = u16::try_from(100 / targets.max(1)).unwrap_or(1).max(1);
        for (port, hosts) in ports {
            for (host, ip) in *hosts {
                let srv = RData::SRV(SRV::new(0, weight, port.number, host.clone()));
                if !data.contains(&srv) {
                    data.push(srv);
                }
                let record = Record::from_rdata(host.clone(), TTL, address(*ip));
                if !more.contains(&record) {
                    more.push(record);
                }
            }
        }
        if data.is_empty() {
            Found::Nothing
        } else {
            Found::Records(data, more)
        }
    }

    /// Addresses that the cluster gave out have names here; of others we know nothing.
    fn reverse(&self, index: &Index, name: &Name, kind: RecordType) -> Option<Answer> {
        let net = name.parse_arpa_name().ok()?;
        let names = match net.prefix_len() == net.max_prefix_len() {
            true => index.names_at(&net.addr()),
            false => vec![],
        };
        if names.is_empty() {
            return None;
        }
        let mut answer = Answer::default();
        if matches!(kind, RecordType::PTR | RecordType::ANY) {
            let data = names.iter().map(|below| RData::PTR(PTR(self.below(below))));
            answer
                .answers
                .extend(data.map(|data| Record::from_rdata(name.clone(), TTL, data)));
        } else {
            answer.authorities.push(self.soa(index));
        }
        Some(answer)
    }

    fn soa(&self, index: &Index) -> Record {
        let (server, master) = (self.below("ns.dns"), self.below("hostmaster"));
        let soa = SOA::new(server, master, index.serial, 7200, 1800, 86400, TTL);
        Record::from_rdata(self.domain.clone(), TTL, RData::SOA(soa))
    }

    /// A name below the domain. What does not fit in a name is not one: the domain itself then.
    fn below(&self, labels: &str) -> Name {
        let below = Name::from_ascii(labels).and_then(|name| name.append_domain(&self.domain));
        below.unwrap_or_else(|_| self.domain.clone())
    }
}

fn some(data: Vec<RData>) -> Found {
    if data.is_empty() {
        Found::Nothing
    } else {
        Found::Records(data, vec![])
    }
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// The address that a pod's name is made of.
fn undash(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse().map(IpAddr::V6))
        .ok()
}

#[cfg(test)]
mod tests;
