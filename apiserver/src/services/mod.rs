//! What a Service takes from the cluster: addresses and node ports, each given to one Service only.
//!
//! A claim is a key in the store that must not exist yet, so that any number of API servers agree: an IPAddress object
//! per cluster address, as Kubernetes has it, and a key per node port. Claims are made before a Service is written and
//! taken back if that fails; what a crash leaves behind is put right from the Services themselves ([`repair`]).

mod addresses;
pub mod cidr;
mod families;
mod ports;
pub mod repair;
pub mod resolve;

use std::ops::RangeInclusive;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::object;
use apimachinery::resource::GroupKind;
use apimachinery::status::{Result, Status};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use crate::cache::Selection;
use crate::config::Config;
use crate::registry::table::Served;
use crate::registry::{Registry, Reservation, Reserver};
use cidr::Cidr;

/// The reservers of a server.
pub fn reservers(config: &Config) -> anyhow::Result<Vec<Box<dyn Reserver>>> {
    let ranges = parse_ranges(&config.service_cluster_ip_range)?;
    let ports = parse_ports(&config.service_node_port_range);
    let ports = ports
        .ok_or_else(|| anyhow::anyhow!("{:?} is no port range", config.service_node_port_range))?;
    Ok(vec![Box::new(Services { ranges, ports })])
}

/// One range, or one of each family; the first is the default.
fn parse_ranges(text: &str) -> anyhow::Result<Vec<Cidr>> {
    let ranges: Vec<Cidr> = text
        .split(',')
        .map(|range| range.trim().parse().map_err(anyhow::Error::msg))
        .collect::<anyhow::Result<_>>()?;
    match ranges.as_slice() {
        [_] => {}
        [one, two] if one.is_ipv4() != two.is_ipv4() => {}
        _ => anyhow::bail!("{text:?}: expected one range, or one of each address family"),
    }
    Ok(ranges)
}

fn parse_ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-')?;
    let range = first.parse().ok()?..=last.parse().ok()?;
    (!range.is_empty()).then_some(range)
}

struct Services {
    /// By family, the default first.
    ranges: Vec<Cidr>,
    ports: RangeInclusive<u16>,
}

/// One thing that a Service holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Claim {
    Address(std::net::IpAddr),
    Port(u16),
}

impl Claim {
    /// False if somebody else has it.
    async fn take(&self, registry: &Registry, service: &Value) -> Result<bool> {
        match self {
            Self::Address(ip) => addresses::take(registry, *ip, service).await,
            Self::Port(port) => ports::take(registry, *port, service).await,
        }
    }

    async fn release(&self, registry: &Registry) {
        let result = match self {
            Self::Address(ip) => addresses::release(registry, *ip).await,
            Self::Port(port) => ports::release(registry, *port).await,
        };
        if let Err(error) = result {
            tracing::warn!(claim = ?self, %error, "cannot be released; the next start repairs it");
        }
    }
}

/// What a Service holds, read from its spec.
#[must_use]
pub fn claims(service: &Value) -> Vec<Claim> {
    let spec = &service["spec"];
    let mut claims = Vec::new();
    if spec["type"] != "ExternalName" {
        let given = spec["clusterIPs"]
            .as_array()
            .into_iter()
            .flatten()
            .chain([&spec["clusterIP"]]);
        claims.extend(
            given
                .filter_map(|ip| ip.as_str()?.parse().ok())
                .map(Claim::Address),
        );
    }
    claims.extend(node_ports(spec).map(Claim::Port));
    claims.sort();
    claims.dedup();
    claims
}

fn node_ports(spec: &Value) -> impl Iterator<Item = u16> {
    let ports = spec["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| &port["nodePort"]);
    ports
        .chain([&spec["healthCheckNodePort"]])
        .filter_map(|port| u16::try_from(port.as_u64()?).ok())
        .filter(|p| *p != 0)
}

fn wants_address(spec: &Value) -> bool {
    spec["type"] != "ExternalName" && spec["clusterIP"] != "None"
}

fn wants_node_ports(spec: &Value) -> bool {
    match spec["type"].as_str() {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

fn wants_health_check_port(spec: &Value) -> bool {
    spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local"
}

fn unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Clients that know only `clusterIP` leave `clusterIPs` as it was: it follows.
fn agree(spec: &mut Value, before: &Value) {
    if spec["clusterIP"] != before["clusterIP"]
        && !unset(&spec["clusterIP"])
        && spec["clusterIPs"] == before["clusterIPs"]
    {
        spec["clusterIPs"] = json!([spec["clusterIP"]]);
    }
}

/// Ports keep their node ports by name, whatever else changes about them.
fn inherit_node_ports(spec: &mut Value, before: &Value) {
    let known = before["ports"].as_array().cloned().unwrap_or_default();
    let taken: Vec<u16> = node_ports(spec).collect();
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        if port["nodePort"].as_u64().unwrap_or(0) != 0 {
            continue;
        }
        let name = |p: &Value| p["name"].as_str().unwrap_or_default().to_owned();
        let same = known.iter().rev().find(|old| name(old) == name(port));
        if let Some(number) = same.and_then(|old| old["nodePort"].as_u64())
            && !taken.iter().any(|taken| u64::from(*taken) == number)
        {
            port["nodePort"] = number.into();
        }
    }
}

impl Reserver for Services {
    fn handles(&self, served: &Served) -> bool {
        served.resource.plural == "services" && served.resource.group.is_empty()
    }

    /// What a client leaves out of an update stays as it was given.
    fn inherit(&self, object: &mut Value, old: &Value) {
        let before = &old["spec"];
        let spec = &mut object["spec"];
        let external = |s: &Value| s["type"] == "ExternalName";
        if !external(before) && !external(spec) {
            for field in ["clusterIP", "clusterIPs"] {
                if unset(&spec[field]) && !unset(&before[field]) {
                    spec[field] = before[field].clone();
                }
            }
            agree(spec, before);
        }
        if wants_node_ports(spec) && wants_node_ports(before) {
            inherit_node_ports(spec, before);
        }
        let port = "healthCheckNodePort";
        let both = wants_health_check_port(spec) && wants_health_check_port(before);
        if both && spec[port].as_u64().unwrap_or(0) == 0 && !before[port].is_null() {
            spec[port] = before[port].clone();
        }
    }

    fn reserve<'a>(
        &'a self,
        registry: &'a Registry,
        object: &'a mut Value,
        old: &'a Value,
        dry_run: bool,
    ) -> BoxFuture<'a, Result<Box<dyn Reservation>>> {
        async move {
            let held = claims(old);
            let mut taken = Taken {
                dry_run,
                ..Taken::default()
            };
            if let Err(error) = self.fill(registry, object, old, &held, &mut taken).await {
                Box::new(taken).rollback(registry).await;
                return Err(error);
            }
            let now = claims(object);
            taken.obsolete = held
                .into_iter()
                .filter(|claim| !now.contains(claim))
                .collect();
            Ok(Box::new(taken) as Box<dyn Reservation>)
        }
        .boxed()
    }

    fn released<'a>(&'a self, registry: &'a Registry, object: &'a Value) -> BoxFuture<'a, ()> {
        async move {
            for claim in claims(object) {
                claim.release(registry).await;
            }
            // Endpoints of a Service go with it, so that one of the same name does not begin with them.
            let (namespace, name) = (object::namespace(object), object::name(object));
            let gone = registry
                .delete_as_server("", "endpoints", namespace, name)
                .await;
            if let Err(error) = gone
                && !error.is_not_found()
            {
                tracing::warn!(namespace, name, %error, "endpoints of a deleted service remain");
            }
        }
        .boxed()
    }
}

impl Services {
    async fn fill(
        &self,
        registry: &Registry,
        service: &mut Value,
        old: &Value,
        held: &[Claim],
        taken: &mut Taken,
    ) -> Result<()> {
        self.fill_addresses(registry, service, old, held, taken)
            .await?;
        self.fill_ports(registry, service, held, taken).await
    }

    async fn fill_addresses(
        &self,
        registry: &Registry,
        service: &mut Value,
        old: &Value,
        held: &[Claim],
        taken: &mut Taken,
    ) -> Result<()> {
        if service["spec"]["type"] == "ExternalName" {
            return Ok(());
        }
        let configured: Vec<&'static str> =
            self.ranges.iter().map(|r| families::family(*r)).collect();
        families::complete(&mut service["spec"], &old["spec"], &configured)
            .map_err(|errors| refused(service, errors))?;
        if !wants_address(&service["spec"]) {
            service["spec"]["clusterIPs"] = json!(["None"]);
            return Ok(());
        }
        let wanted = service["spec"]["ipFamilies"].as_array().cloned();
        let given = service["spec"]["clusterIPs"].as_array().cloned();
        let given = given.unwrap_or_default();
        let mut ips: Vec<String> = Vec::new();
        for (i, wanted) in wanted.unwrap_or_default().iter().enumerate() {
            let asked = given.get(i).and_then(Value::as_str).unwrap_or_default();
            let range = self.ranges.iter().find(|r| wanted == families::family(**r));
            let ip = match range {
                Some(range) => {
                    let ranges = with_further(registry, *range).await?;
                    match asked {
                        "" => self.any_address(registry, service, &ranges, taken).await?,
                        _ => {
                            self.given_address(registry, service, (asked, &ranges), held, taken)
                                .await?
                        }
                    }
                }
                // A family that the cluster has given up: its address stays.
                None => match asked.parse() {
                    Ok(ip) => ip,
                    Err(_) => continue,
                },
            };
            ips.push(ip.to_string());
        }
        service["spec"]["clusterIP"] = ips.first().cloned().into();
        service["spec"]["clusterIPs"] = ips.into();
        Ok(())
    }

    async fn any_address(
        &self,
        registry: &Registry,
        service: &Value,
        ranges: &[Cidr],
        taken: &mut Taken,
    ) -> Result<std::net::IpAddr> {
        for range in ranges {
            for ip in addresses::candidates(registry, *range).await? {
                if taken.take(registry, Claim::Address(ip), service).await? {
                    return Ok(ip);
                }
            }
        }
        Err(Status::internal(format!(
            "failed to allocate a serviceIP for Service {:?}: range is full",
            object::name(service),
        )))
    }

    async fn given_address(
        &self,
        registry: &Registry,
        service: &Value,
        (given, ranges): (&str, &[Cidr]),
        held: &[Claim],
        taken: &mut Taken,
    ) -> Result<std::net::IpAddr> {
        let refuse = |why: String| {
            let path = Path::new("spec").child("clusterIPs");
            let detail = format!("failed to allocate IP {given}: {why}");
            let shown = service["spec"]["clusterIPs"].clone();
            Err(invalid(service, Error::invalid(&path, shown, detail)))
        };
        let Ok(ip) = given.parse() else {
            return refuse("the provided IP is not valid".into());
        };
        let claim = Claim::Address(ip);
        if held.contains(&claim) {
            return Ok(ip);
        }
        if !ranges.iter().any(|range| range.contains(ip)) {
            return refuse("the provided network does not match the current range".into());
        }
        if !taken.take(registry, claim, service).await? {
            return refuse("provided IP is already allocated".into());
        }
        Ok(ip)
    }

    async fn fill_ports(
        &self,
        registry: &Registry,
        service: &mut Value,
        held: &[Claim],
        taken: &mut Taken,
    ) -> Result<()> {
        let spec = &service["spec"];
        let (wanted, health) = (wants_node_ports(spec), wants_health_check_port(spec));
        if !wanted && !health {
            return Ok(());
        }
        let path = Path::new("spec");
        let count = spec["ports"].as_array().map_or(0, Vec::len);
        let mut mine: Vec<u16> = Vec::new();
        for index in (0..count).filter(|_| wanted) {
            let given = service["spec"]["ports"][index]["nodePort"]
                .as_u64()
                .unwrap_or(0);
            let path = path.child("ports").index(index).child("nodePort");
            let port = self
                .port(registry, service, (given, &path), held, &mine, taken)
                .await?;
            mine.push(port);
            service["spec"]["ports"][index]["nodePort"] = port.into();
        }
        if health {
            let given = service["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0);
            let path = path.child("healthCheckNodePort");
            let port = self
                .port(registry, service, (given, &path), held, &mine, taken)
                .await?;
            service["spec"]["healthCheckNodePort"] = port.into();
        }
        Ok(())
    }

    /// The port asked for, or any (0).
    async fn port(
        &self,
        registry: &Registry,
        service: &Value,
        (given, path): (u64, &Path),
        held: &[Claim],
        mine: &[u16],
        taken: &mut Taken,
    ) -> Result<u16> {
        if given == 0 {
            for port in ports::candidates(registry, &self.ports).await? {
                if taken.take(registry, Claim::Port(port), service).await? {
                    return Ok(port);
                }
            }
            let why = "failed to allocate a nodePort: range is full";
            return Err(Status::internal(why));
        }
        let number = u16::try_from(given)
            .ok()
            .filter(|port| self.ports.contains(port));
        // TCP and UDP may share a number within one Service.
        let known =
            number.is_some_and(|port| held.contains(&Claim::Port(port)) || mine.contains(&port));
        match number {
            Some(port) if known => Ok(port),
            Some(port) if taken.take(registry, Claim::Port(port), service).await? => Ok(port),
            Some(_) => Err(invalid(
                service,
                Error::invalid(path, given, "provided port is already allocated"),
            )),
            None => {
                let (first, last) = (self.ports.start(), self.ports.end());
                let why = format!(
                    "provided port is not in the valid range. The range of valid ports is {first}-{last}"
                );
                Err(invalid(service, Error::invalid(path, given, why)))
            }
        }
    }
}

/// The range that the flags give to a family, then those of the ServiceCIDRs: of which are ready, and stay.
async fn with_further(registry: &Registry, range: Cidr) -> Result<Vec<Cidr>> {
    let all = registry
        .list("networking.k8s.io", "servicecidrs", &Selection::default())
        .await?;
    let mut ranges = vec![range];
    for object in all {
        for further in ready_ranges(&object.value()) {
            if further.is_ipv4() == range.is_ipv4() && !ranges.contains(&further) {
                ranges.push(further);
            }
        }
    }
    Ok(ranges)
}

/// What a ServiceCIDR has to give.
fn ready_ranges(object: &Value) -> Vec<Cidr> {
    let mut conditions = object["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten();
    let ready = conditions.any(|c| c["type"] == "Ready" && c["status"] == "True");
    if !ready || object::deletion_timestamp(object).is_some() {
        return Vec::new();
    }
    let cidrs = object["spec"]["cidrs"].as_array().into_iter().flatten();
    cidrs
        .filter_map(|cidr| cidr.as_str()?.parse().ok())
        .collect()
}

fn invalid(service: &Value, error: Error) -> Status {
    refused(service, ErrorList(vec![error]))
}

fn refused(service: &Value, errors: ErrorList) -> Status {
    Status::invalid(
        &GroupKind::new("", "Service"),
        object::name(service),
        errors,
    )
}

/// Claims made for a write that is under way.
#[derive(Debug, Default)]
struct Taken {
    fresh: Vec<Claim>,
    /// What the Service gives up when the write succeeds.
    obsolete: Vec<Claim>,
    dry_run: bool,
}

impl Taken {
    async fn take(&mut self, registry: &Registry, claim: Claim, service: &Value) -> Result<bool> {
        let taken = claim.take(registry, service).await?;
        if taken {
            self.fresh.push(claim);
        }
        Ok(taken)
    }
}

impl Reservation for Taken {
    fn commit<'a>(self: Box<Self>, registry: &'a Registry) -> BoxFuture<'a, ()> {
        async move {
            for claim in self.obsolete.iter().filter(|_| !self.dry_run) {
                claim.release(registry).await;
            }
            // A dry run shows what it would have got, and keeps nothing.
            for claim in self.fresh.iter().filter(|_| self.dry_run) {
                claim.release(registry).await;
            }
        }
        .boxed()
    }

    fn rollback<'a>(self: Box<Self>, registry: &'a Registry) -> BoxFuture<'a, ()> {
        async move {
            for claim in &self.fresh {
                claim.release(registry).await;
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services() -> Services {
        Services {
            ranges: parse_ranges("10.96.0.0/12,fd00::/108").unwrap(),
            ports: parse_ports("30000-32767").unwrap(),
        }
    }

    #[test]
    fn claims_of_a_service() {
        let service = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "ports": [{"nodePort": 30001}, {"nodePort": 30001}, {"port": 1}]}});
        assert_eq!(
            claims(&service),
            [
                Claim::Address("10.96.0.7".parse().unwrap()),
                Claim::Port(30001)
            ]
        );
        assert!(claims(&json!({"spec": {"clusterIP": "None"}})).is_empty());
        assert!(parse_ports("5-1").is_none() && parse_ports("x").is_none());
    }

    #[test]
    fn updates_inherit_what_they_leave_out() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "ports": [{"name": "a", "port": 80, "nodePort": 30001}, {"name": "b", "port": 81, "nodePort": 30002}]}});
        let mut new = json!({"spec": {"type": "NodePort",
            "ports": [{"name": "a", "port": 8080}, {"name": "b", "port": 81, "nodePort": 30009}, {"name": "c", "port": 82}]}});
        services().inherit(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.96.0.7");
        let ports: Vec<_> = new["spec"]["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["nodePort"].as_u64())
            .collect();
        assert_eq!(ports, [Some(30001), Some(30009), None]);
        let mut external = json!({"spec": {"type": "ExternalName"}});
        services().inherit(&mut external, &old);
        assert!(external["spec"]["clusterIP"].is_null());
        let mut moved = old.clone();
        moved["spec"]["clusterIP"] = "10.96.0.8".into();
        services().inherit(&mut moved, &old);
        assert_eq!(moved["spec"]["clusterIPs"], json!(["10.96.0.8"]));
        assert!(parse_ranges("10.0.0.0/8,11.0.0.0/8").is_err() && parse_ranges("x").is_err());
    }
}
