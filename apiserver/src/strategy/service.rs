//! Services: a union by `type`, whose fields a client may leave to the server.
//!
//! Addresses and ports are given by [`crate::services`]; here is what may be asked for.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{names, object};
use serde_json::{Value, json};

use super::address;
use super::check::{Checks, entries, given, integer, list, list_mut, same, set_default, text};
use super::{Context, NameRule, Strategy, common};

/// The strategy of `services`.
pub struct Service;

const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const ONLY_LOAD_BALANCER: &str = "may only be used when `type` is 'LoadBalancer'";
const ONCE: &str = "may not change once set";
const DAY: i64 = 86_400;

impl Strategy for Service {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec").filter(|s| s.is_object()) else {
            return;
        };
        default_affinity(spec);
        for port in list_mut(spec, "ports") {
            let number = port["port"].clone();
            if matches!(&port["targetPort"], Value::Null)
                || port["targetPort"] == 0
                || port["targetPort"] == ""
            {
                port["targetPort"] = number;
            }
        }
        if externally_accessible(spec) {
            set_default(spec, "externalTrafficPolicy", "Cluster");
        }
        let kind = text(spec, "type").to_owned();
        if matches!(&*kind, "ClusterIP" | "NodePort" | "LoadBalancer") {
            set_default(spec, "internalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            set_default(spec, "allocateLoadBalancerNodePorts", true);
            let balancer = object
                .get_mut("status")
                .and_then(|s| s.get_mut("loadBalancer"));
            for ingress in balancer.into_iter().flat_map(|b| list_mut(b, "ingress")) {
                if !text(ingress, "ip").is_empty() {
                    set_default(ingress, "ipMode", "VIP");
                }
            }
        }
    }

    fn prepare_for_create(&self, _context: &Context<'_>, object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
        let spec = &mut object["spec"];
        let first = text(spec, "clusterIP").to_owned();
        if !first.is_empty() && list(spec, "clusterIPs").is_empty() {
            spec["clusterIPs"] = json!([first]);
        }
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        common::keep_status(context, object, old);
        drop_type_dependent(object, &old["spec"]);
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        service(&mut checks, object, &Value::Null);
        checks.done()
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let (spec, before) = (&object["spec"], &old["spec"]);
        let external = |s: &Value| text(s, "type") == "ExternalName";
        if !external(spec) && !external(before) {
            cluster_ips_update(&mut checks, spec, before);
            families_update(&mut checks, spec, before);
        }
        let path = Path::new("spec");
        let balanced = |s: &Value| text(s, "type") == "LoadBalancer";
        let class = &spec["loadBalancerClass"];
        if balanced(spec) && balanced(before) && !same(class, &before["loadBalancerClass"]) {
            checks.invalid(&path.child("loadBalancerClass"), class.clone(), ONCE);
        }
        let port = "healthCheckNodePort";
        if needs_health_check(spec) && needs_health_check(before) && spec[port] != before[port] {
            checks.forbidden(&path.child(port), super::check::IMMUTABLE);
        }
        service(&mut checks, object, old);
        checks.done()
    }

    fn validate_status_update(
        &self,
        _context: &Context<'_>,
        object: &Value,
        old: &Value,
    ) -> ErrorList {
        let mut checks = Checks::default();
        let of = |o: &Value| list(&o["status"]["loadBalancer"], "ingress").to_vec();
        let path = Path::new("status").child("loadBalancer").child("ingress");
        if text(&object["spec"], "type") != "LoadBalancer" && !of(object).is_empty() {
            checks.forbidden(&path, "may only be used when `spec.type` is 'LoadBalancer'");
        } else {
            load_balancer_status(&mut checks, &of(object), &of(old), &path, true);
        }
        checks.done()
    }

    fn warnings(&self, context: &Context<'_>, object: &Value) -> Vec<String> {
        if context.subresource == "status" {
            let path = Path::new("status").child("loadBalancer").child("ingress");
            let ingresses = list(&object["status"]["loadBalancer"], "ingress").iter();
            return ingresses
                .enumerate()
                .filter_map(|(i, it)| address::ip_warning(&path.index(i), text(it, "ip")))
                .collect();
        }
        warnings(object)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }
}

fn default_affinity(spec: &mut Value) {
    match text(spec, "sessionAffinity") {
        "None" => {
            spec["sessionAffinityConfig"] = Value::Null;
        }
        "ClientIP" if spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].is_null() => {
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 10_800}});
        }
        _ => {}
    }
    if let Some(spec) = spec.as_object_mut()
        && spec
            .get("sessionAffinityConfig")
            .is_some_and(Value::is_null)
    {
        spec.remove("sessionAffinityConfig");
    }
}

fn externally_accessible(spec: &Value) -> bool {
    match text(spec, "type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !list(spec, "externalIPs").is_empty(),
        _ => false,
    }
}

fn needs_health_check(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

fn needs_node_ports(spec: &Value) -> bool {
    matches!(text(spec, "type"), "NodePort" | "LoadBalancer")
}

fn headless(spec: &Value) -> bool {
    matches!(list(spec, "clusterIPs"), [one] if one == "None")
}

/// Drops what the old type needed and the new one does not, where the client did not change it.
fn drop_type_dependent(object: &mut Value, before: &Value) {
    let spec = &mut object["spec"];
    let external = |s: &Value| text(s, "type") == "ExternalName";
    let kept = |spec: &Value, field: &str| same(&spec[field], &before[field]);
    let clear = |spec: &mut Value, fields: &[&str]| {
        for field in fields {
            if let Some(spec) = spec.as_object_mut() {
                spec.remove(*field);
            }
        }
    };
    if !external(before) && external(spec) {
        if kept(spec, "clusterIP") && kept(spec, "clusterIPs") {
            clear(spec, &["clusterIP", "clusterIPs"]);
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if kept(spec, field) {
                clear(spec, &[field]);
            }
        }
    }
    let node_ports = |spec: &Value| -> Vec<i64> {
        let ports = list(spec, "ports").iter();
        ports
            .filter_map(|p| integer(p, "nodePort").filter(|n| *n != 0))
            .collect()
    };
    let known = node_ports(before);
    if needs_node_ports(before)
        && !needs_node_ports(spec)
        && node_ports(spec).iter().all(|p| known.contains(p))
    {
        for port in list_mut(spec, "ports") {
            clear(port, &["nodePort"]);
        }
    }
    let health = needs_health_check(before) && !needs_health_check(spec);
    if health && kept(spec, "healthCheckNodePort") {
        clear(spec, &["healthCheckNodePort"]);
    }
    if text(before, "type") == "LoadBalancer" && text(spec, "type") != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if kept(spec, field) {
                clear(spec, &[field]);
            }
        }
    }
    let reached = externally_accessible(before) && !externally_accessible(spec);
    if reached && kept(spec, "externalTrafficPolicy") {
        clear(spec, &["externalTrafficPolicy"]);
    }
    if text(spec, "type") != "LoadBalancer" && object["status"].is_object() {
        object["status"]["loadBalancer"] = json!({});
    }
}

fn service(checks: &mut Checks, object: &Value, old: &Value) {
    let (hints, mode) = (
        object::annotation(object, TOPOLOGY_HINTS),
        object::annotation(object, TOPOLOGY_MODE),
    );
    if let (Some(hints), Some(mode)) = (hints, mode)
        && hints != mode
    {
        let path = Path::new("metadata")
            .child("annotations")
            .key(TOPOLOGY_MODE);
        let why = format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified");
        checks.invalid(&path, mode, &why);
    }
    let path = Path::new("spec");
    let (spec, before) = (&object["spec"], &old["spec"]);
    by_type(checks, spec, &path);
    for (i, _) in list(spec, "ports").iter().enumerate() {
        port(
            checks,
            list(spec, "ports"),
            i,
            &path.child("ports").index(i),
        );
    }
    for (name, value) in entries(spec, "selector") {
        let path = path.child("selector");
        checks.qualified_name(&path, name);
        let value = value.as_str().unwrap_or_default();
        checks.each(&path, value, names::label_value(value));
    }
    session_affinity(checks, spec, &path);
    cluster_ips(checks, spec, before, &path);
    for (i, ip) in list(spec, "externalIPs").iter().enumerate() {
        let (ip, at) = (
            ip.as_str().unwrap_or_default(),
            path.child("externalIPs").index(i),
        );
        if address::legacy_ip(checks, &at, ip, strings(before, "externalIPs")) {
            address::endpoint(checks, &at, ip);
        }
    }
    const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    checks.one_of(&path.child("type"), text(spec, "type"), &TYPES);
    port_sets(checks, spec, &path.child("ports"));
    source_ranges(checks, object, old, &path);
    load_balancer(checks, spec, &path);
    traffic(checks, spec, &path);
}

fn strings<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = &'a str> {
    list(object, field).iter().filter_map(Value::as_str)
}

fn by_type(checks: &mut Checks, spec: &Value, path: &Path) {
    let kind = text(spec, "type");
    if list(spec, "ports").is_empty() && !headless(spec) && kind != "ExternalName" {
        checks.required(&path.child("ports"), "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless(spec) => {
            let why = format!("may not be set to 'None' for {kind} services");
            checks.invalid(&path.child("clusterIPs").index(0), "None", &why);
        }
        "ExternalName" => {
            for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if !same(&spec[field], &Value::Null) {
                    let why = "may not be set for ExternalName services";
                    checks.forbidden(&path.child(field), why);
                }
            }
            let name = text(spec, "externalName");
            let at = path.child("externalName");
            match name.strip_suffix('.').unwrap_or(name) {
                "" => checks.required(&at, ""),
                name => checks.subdomain(&at, name),
            }
        }
        _ => {}
    }
}

fn port(checks: &mut Checks, ports: &[Value], i: usize, path: &Path) {
    let port = &ports[i];
    match text(port, "name") {
        "" if ports.len() > 1 => checks.required(&path.child("name"), ""),
        "" => {}
        name => {
            checks.label(&path.child("name"), name);
            if ports[..i].iter().any(|p| text(p, "name") == name) {
                checks.push(Error::duplicate(&path.child("name"), name));
            }
        }
    }
    let number = integer(port, "port").unwrap_or(0);
    checks.port(&path.child("port"), number);
    let protocols = ["SCTP", "TCP", "UDP"];
    checks.one_of(&path.child("protocol"), text(port, "protocol"), &protocols);
    checks.port_or_name(&path.child("targetPort"), &port["targetPort"]);
    if let Some(protocol) = port.get("appProtocol").and_then(Value::as_str) {
        checks.qualified_name(&path.child("appProtocol"), protocol);
    }
}

/// What no two ports may share.
fn port_sets(checks: &mut Checks, spec: &Value, path: &Path) {
    let ports = list(spec, "ports");
    let node_port = |p: &Value| integer(p, "nodePort").unwrap_or(0);
    if text(spec, "type") == "ClusterIP" {
        for (i, _) in ports.iter().enumerate().filter(|(_, p)| node_port(p) != 0) {
            let why = "may not be used when `type` is 'ClusterIP'";
            checks.forbidden(&path.index(i).child("nodePort"), why);
        }
    }
    for (i, port) in ports.iter().enumerate() {
        let taken = |p: &Value| {
            node_port(p) == node_port(port) && text(p, "protocol") == text(port, "protocol")
        };
        if node_port(port) != 0 && ports[..i].iter().any(taken) {
            let path = path.index(i).child("nodePort");
            checks.push(Error::duplicate(&path, node_port(port)));
        }
    }
    for (i, port) in ports.iter().enumerate() {
        let taken =
            |p: &Value| p["port"] == port["port"] && text(p, "protocol") == text(port, "protocol");
        if ports[..i].iter().any(taken) {
            let shown = json!({
                "Name": "", "Protocol": port["protocol"], "AppProtocol": null,
                "Port": port["port"], "TargetPort": 0, "NodePort": 0,
            });
            checks.push(Error::duplicate(&path.index(i), shown));
        }
    }
}

fn session_affinity(checks: &mut Checks, spec: &Value, path: &Path) {
    let affinity = text(spec, "sessionAffinity");
    checks.one_of(
        &path.child("sessionAffinity"),
        affinity,
        &["ClientIP", "None"],
    );
    let at = path.child("sessionAffinityConfig");
    let config = given(spec, "sessionAffinityConfig");
    if affinity == "None" && config.is_some() {
        checks.forbidden(&at, "must not be set when session affinity is None");
    }
    if affinity != "ClientIP" {
        return;
    }
    let Some(config) = config else {
        checks.required(&at, "when session affinity type is ClientIP");
        return;
    };
    let Some(client) = given(config, "clientIP") else {
        checks.required(
            &at.child("clientIP"),
            "when session affinity type is ClientIP",
        );
        return;
    };
    let at = at.child("clientIP").child("timeoutSeconds");
    match integer(client, "timeoutSeconds") {
        None => checks.required(&at, "when session affinity type is ClientIP"),
        Some(seconds) if seconds <= 0 || seconds > DAY => {
            let why = format!("must be greater than 0 and less than {DAY}");
            checks.invalid(&at, seconds, &why);
        }
        Some(_) => {}
    }
}

/// The addresses, families and policy must agree with each other.
pub fn cluster_ips(checks: &mut Checks, spec: &Value, before: &Value, path: &Path) {
    if text(spec, "type") == "ExternalName" {
        return;
    }
    let at = path.child("clusterIPs");
    let ips = list(spec, "clusterIPs");
    let first = text(spec, "clusterIP");
    let shown = || spec["clusterIPs"].clone();
    match ips.first() {
        None if !first.is_empty() => checks.required(&at, ""),
        Some(_) if first.is_empty() => {
            checks.invalid(
                &at,
                shown(),
                "must be empty when `clusterIP` is not specified",
            );
        }
        Some(ip) if ip != first => {
            checks.invalid(&at, shown(), "first value must match `clusterIP`");
        }
        _ => {}
    }
    let families: Vec<&str> = strings(spec, "ipFamilies").collect();
    for (i, family) in families.iter().enumerate() {
        let path = path.child("ipFamilies").index(i);
        if !["IPv4", "IPv6"].contains(family) {
            checks.push(Error::not_supported(&path, *family, &["IPv4", "IPv6"]));
        }
        if families[..i].contains(family) {
            checks.push(Error::duplicate(&path, *family));
        }
    }
    if given(spec, "ipFamilyPolicy").is_some() {
        const POLICIES: [&str; 3] = ["PreferDualStack", "RequireDualStack", "SingleStack"];
        let policy = text(spec, "ipFamilyPolicy");
        if !POLICIES.contains(&policy) {
            let path = path.child("ipFamilyPolicy");
            checks.push(Error::not_supported(&path, policy, &POLICIES));
        }
    }
    let mut sound = true;
    let ips: Vec<&str> = ips
        .iter()
        .map(|ip| ip.as_str().unwrap_or_default())
        .collect();
    for (i, ip) in ips.iter().enumerate() {
        if i == 0 && *ip == "None" {
            if ips.len() > 1 {
                sound = false;
                checks.invalid(&at, shown(), "'None' must be the first and only value");
            }
            continue;
        }
        sound &= address::legacy_ip(checks, &at.index(i), ip, strings(before, "clusterIPs"));
    }
    if ips.len() > 2 {
        checks.invalid(&at, shown(), "may only hold up to 2 values");
    }
    if !sound {
        return;
    }
    let six = |ip: &str| address::sloppy_ip(ip).is_some_and(address::is_ipv6);
    if ips.len() > 1 {
        let count = ips.iter().filter(|ip| six(ip)).count();
        if count == 0 || count == ips.len() {
            let why = "may specify no more than one IP for each IP family";
            checks.invalid(&at, shown(), why);
        }
    }
    if !headless(spec) {
        for (i, (ip, family)) in ips.iter().zip(&families).enumerate() {
            if (*family == "IPv4" && six(ip)) || (*family == "IPv6" && !six(ip)) {
                let why = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
                checks.invalid(&at.index(i), *ip, &why);
            }
        }
    }
}

fn source_ranges(checks: &mut Checks, object: &Value, old: &Value, path: &Path) {
    let spec = &object["spec"];
    let balanced = text(spec, "type") == "LoadBalancer";
    let ranges = list(spec, "loadBalancerSourceRanges");
    if !ranges.is_empty() {
        // The capital is Kubernetes' own.
        let path = path.child("LoadBalancerSourceRanges");
        if !balanced {
            checks.forbidden(&path, ONLY_LOAD_BALANCER);
        }
        for (i, range) in ranges.iter().enumerate() {
            let range = range.as_str().unwrap_or_default().trim();
            let before = strings(&old["spec"], "loadBalancerSourceRanges").map(str::trim);
            address::legacy_cidr(checks, &path.index(i), range, before);
        }
    } else if let Some(ranges) = object::annotation(object, SOURCE_RANGES) {
        let path = Path::new("metadata")
            .child("annotations")
            .key(SOURCE_RANGES);
        if !balanced {
            checks.forbidden(&path, ONLY_LOAD_BALANCER);
        }
        let unchanged = object::annotation(old, SOURCE_RANGES) == Some(ranges);
        if !unchanged && !ranges.trim().is_empty() {
            for range in ranges.split(',') {
                address::legacy_cidr(checks, &path, range.trim(), []);
            }
        }
    }
}

fn load_balancer(checks: &mut Checks, spec: &Value, path: &Path) {
    let balanced = text(spec, "type") == "LoadBalancer";
    match given(spec, "allocateLoadBalancerNodePorts") {
        Some(_) if !balanced => {
            let path = path.child("allocateLoadBalancerNodePorts");
            checks.forbidden(&path, ONLY_LOAD_BALANCER);
        }
        None if balanced => checks.required(&Path::new("allocateLoadBalancerNodePorts"), ""),
        _ => {}
    }
    if let Some(class) = spec.get("loadBalancerClass").and_then(Value::as_str) {
        let path = path.child("loadBalancerClass");
        if balanced {
            checks.qualified_name(&path, class);
        } else {
            checks.forbidden(&path, ONLY_LOAD_BALANCER);
        }
    }
}

fn traffic(checks: &mut Checks, spec: &Value, path: &Path) {
    let at = path.child("externalTrafficPolicy");
    let policy = text(spec, "externalTrafficPolicy");
    if externally_accessible(spec) {
        checks.one_of(&at, policy, &["Cluster", "Local"]);
    } else if !policy.is_empty() {
        let why = "may only be set for externally-accessible services";
        checks.invalid(&at, policy, why);
    }
    // Where one is needed and none is asked for, the server gives it after this.
    let port = integer(spec, "healthCheckNodePort").unwrap_or(0);
    if port != 0 {
        let at = path.child("healthCheckNodePort");
        if needs_health_check(spec) {
            checks.port(&at, port);
        } else {
            let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            checks.invalid(&at, port, why);
        }
    }
    let at = path.child("internalTrafficPolicy");
    let kinds = ["NodePort", "LoadBalancer", "ClusterIP"];
    match given(spec, "internalTrafficPolicy").and_then(Value::as_str) {
        None if kinds.contains(&text(spec, "type")) => checks.required(&at, ""),
        Some(policy) if !["Cluster", "Local"].contains(&policy) => {
            checks.push(Error::not_supported(&at, policy, &["Cluster", "Local"]));
        }
        _ => {}
    }
    if let Some(wish) = spec.get("trafficDistribution").and_then(Value::as_str) {
        const WISHES: [&str; 3] = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        if !WISHES.contains(&wish) {
            let path = path.child("trafficDistribution");
            checks.push(Error::not_supported(&path, wish, &WISHES));
        }
    }
}

/// Addresses may be added and the second one dropped, but what is there stays.
fn cluster_ips_update(checks: &mut Checks, spec: &Value, before: &Value) {
    if headless(spec) && headless(before) {
        return;
    }
    let path = Path::new("spec");
    let at = path.child("clusterIPs");
    let (new, old) = (list(spec, "clusterIPs"), list(before, "clusterIPs"));
    let shown = spec["clusterIPs"].clone();
    if new.len() == old.len() {
        for (i, _) in old.iter().enumerate().filter(|(i, ip)| new[*i] != **ip) {
            checks.invalid(&at.index(i), shown.clone(), ONCE);
        }
        return;
    }
    if new.is_empty() {
        checks.invalid(&at.index(0), shown, "primary clusterIP can not be unset");
        return;
    }
    if old.first().is_some_and(|ip| *ip != new[0]) {
        checks.invalid(&at.index(0), shown, ONCE);
    }
    if old.len() > new.len() && new.len() == 1 {
        release(checks, spec, "clusterIP");
    }
}

fn families_update(checks: &mut Checks, spec: &Value, before: &Value) {
    if headless(spec) || headless(before) {
        return;
    }
    let at = Path::new("spec").child("ipFamilies").index(0);
    let (new, old) = (list(spec, "ipFamilies"), list(before, "ipFamilies"));
    let shown = spec["ipFamilies"].clone();
    if new.len() == old.len() {
        for _ in old.iter().zip(new).filter(|(o, n)| o != n) {
            checks.invalid(&at, shown.clone(), ONCE);
        }
        return;
    }
    if let (Some(new), Some(old)) = (new.first(), old.first())
        && new != old
    {
        checks.invalid(&at, spec["clusterIPs"].clone(), ONCE);
    }
    if old.len() > new.len() && new.len() == 1 {
        release(checks, spec, "ipFamily");
    }
}

fn release(checks: &mut Checks, spec: &Value, what: &str) {
    if text(spec, "ipFamilyPolicy") != "SingleStack" {
        let path = Path::new("spec").child("ipFamilyPolicy");
        let why = format!("must be set to 'SingleStack' when releasing the secondary {what}");
        checks.invalid(&path, spec["ipFamilyPolicy"].clone(), &why);
    }
}

/// The addresses that a load balancer gave, of Services (`modes`) or Ingresses.
pub fn load_balancer_status(
    checks: &mut Checks,
    ingresses: &[Value],
    old: &[Value],
    path: &Path,
    modes: bool,
) {
    for (i, ingress) in ingresses.iter().enumerate() {
        let path = path.index(i);
        let ip = text(ingress, "ip");
        if !ip.is_empty() {
            address::legacy_ip(
                checks,
                &path.child("ip"),
                ip,
                old.iter().map(|o| text(o, "ip")),
            );
        }
        let at = path.child("ipMode");
        match given(ingress, "ipMode").and_then(Value::as_str) {
            _ if !modes => {}
            None if !ip.is_empty() => checks.required(&at, "must be specified when `ip` is set"),
            Some(_) if ip.is_empty() => {
                checks.forbidden(&at, "may not be specified when `ip` is not set");
            }
            Some(mode) if !["Proxy", "VIP"].contains(&mode) => {
                checks.push(Error::not_supported(&at, mode, &["Proxy", "VIP"]));
            }
            _ => {}
        }
        let host = text(ingress, "hostname");
        if !host.is_empty() {
            let path = path.child("hostname");
            checks.subdomain(&path, host);
            if address::sloppy_ip(host).is_some() {
                checks.invalid(&path, host, "must be a DNS name, not an IP address");
            }
        }
    }
}

fn warnings(object: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    if object::annotation(object, TOPOLOGY_HINTS).is_some() {
        warnings.push(format!(
            "annotation {TOPOLOGY_HINTS} is deprecated, please use {TOPOLOGY_MODE} instead"
        ));
    }
    let spec = &object["spec"];
    let path = Path::new("spec");
    let kind = text(spec, "type");
    let ips = |field: &str| -> Vec<String> {
        let path = path.child(field);
        let ips = strings(spec, field).enumerate();
        ips.filter_map(|(i, ip)| address::ip_warning(&path.index(i), ip))
            .collect()
    };
    let headless = kind == "ClusterIP" && text(spec, "clusterIP") == "None";
    let external = !list(spec, "externalIPs").is_empty();
    if headless {
        let ignored = [
            (!text(spec, "loadBalancerIP").is_empty(), "loadBalancerIP"),
            (external, "externalIPs"),
            (text(spec, "sessionAffinity") != "None", "SessionAffinity"),
        ];
        for (_, field) in ignored.into_iter().filter(|(set, _)| *set) {
            warnings.push(format!("spec.{field} is ignored for headless services"));
        }
    } else if kind != "ExternalName" {
        warnings.extend(ips("clusterIPs"));
    }
    warnings.extend(ips("externalIPs"));
    if external && !headless && kind != "ExternalName" {
        let text =
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters";
        warnings.push(text.into());
    }
    let at = path.child("loadBalancerIP");
    warnings.extend(address::ip_warning(&at, text(spec, "loadBalancerIP")));
    for (i, range) in strings(spec, "loadBalancerSourceRanges").enumerate() {
        let path = path.child("loadBalancerSourceRanges").index(i);
        warnings.extend(address::cidr_warnings(&path, range));
    }
    if kind == "ExternalName" && external {
        warnings.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".into());
    }
    if kind != "ExternalName" && !text(spec, "externalName").is_empty() {
        warnings.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".into());
    }
    if text(spec, "trafficDistribution") == "PreferClose" {
        warnings.push(
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\""
                .into(),
        );
    }
    warnings
}
