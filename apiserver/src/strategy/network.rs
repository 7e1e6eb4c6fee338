//! Ingresses, ingress classes, network policies, and the address objects of Services.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{names, object};
use serde_json::{Value, json};

use super::address::{self, Block};
use super::check::{Checks, given, integer, list, text};
use super::endpoints::PROTOCOLS;
use super::service::load_balancer_status;
use super::{Context, NameRule, Strategy};

pub struct Ingress;
pub struct IngressClass;
pub struct NetworkPolicy;
pub struct IpAddress;
pub struct ServiceCidr;

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

impl Strategy for Ingress {
    fn prepare_for_create(&self, _context: &Context<'_>, object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        ingress_spec(
            &mut checks,
            &object["spec"],
            &Value::Null,
            &Path::new("spec"),
        );
        let annotated = object::annotation(object, CLASS_ANNOTATION);
        if let (Some(annotated), Some(class)) =
            (annotated, object["spec"]["ingressClassName"].as_str())
            && annotated != class
        {
            let path = Path::new("annotations").child(CLASS_ANNOTATION);
            let why = "must match `ingressClassName` when both are specified";
            checks.invalid(&path, annotated, why);
        }
        checks.done()
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        ingress_spec(
            &mut checks,
            &object["spec"],
            &old["spec"],
            &Path::new("spec"),
        );
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
        load_balancer_status(&mut checks, &of(object), &of(old), &path, false);
        checks.done()
    }

    fn warnings(&self, context: &Context<'_>, object: &Value) -> Vec<String> {
        let class = object["metadata"]["annotations"].get(CLASS_ANNOTATION);
        if context.subresource.is_empty() && class.is_some() {
            return vec![format!(
                "annotation {CLASS_ANNOTATION:?} is deprecated, please use 'spec.ingressClassName' instead"
            )];
        }
        Vec::new()
    }
}

fn tls_secrets_sound(spec: &Value) -> bool {
    list(spec, "tls").iter().all(|tls| {
        let name = text(tls, "secretName");
        name.is_empty() || names::dns1123_subdomain(name).is_empty()
    })
}

fn ingress_spec(checks: &mut Checks, spec: &Value, old: &Value, path: &Path) {
    let rules = list(spec, "rules");
    let backend = given(spec, "defaultBackend");
    if rules.is_empty() && backend.is_none() {
        let why = "either `defaultBackend` or `rules` must be specified";
        checks.invalid(path, spec["rules"].clone(), why);
    }
    if let Some(backend) = backend {
        ingress_backend(checks, backend, &path.child("defaultBackend"));
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = path.child("rules").index(i);
        let host = text(rule, "host");
        if !host.is_empty() {
            if address::sloppy_ip(host).is_some() {
                let why = "must be a DNS name, not an IP address";
                checks.invalid(&path.child("host"), host, why);
            }
            ingress_host(checks, host, &path.child("host"));
        }
        if let Some(http) = given(rule, "http") {
            let path = path.child("http").child("paths");
            if list(http, "paths").is_empty() {
                checks.required(&path, "");
            }
            for (i, it) in list(http, "paths").iter().enumerate() {
                ingress_path(checks, it, &path.index(i));
            }
        }
    }
    let sound = tls_secrets_sound(old);
    for (i, tls) in list(spec, "tls").iter().enumerate() {
        let path = path.child("tls").index(i);
        for (i, host) in list(tls, "hosts").iter().enumerate() {
            let host = host.as_str().unwrap_or_default();
            ingress_host(checks, host, &path.child("hosts").index(i));
        }
        let secret = text(tls, "secretName");
        if sound && !secret.is_empty() {
            checks.subdomain(&path.child("secretName"), secret);
        }
    }
    if let Some(class) = spec.get("ingressClassName").and_then(Value::as_str) {
        checks.subdomain(&path.child("ingressClassName"), class);
    }
}

fn ingress_host(checks: &mut Checks, host: &str, path: &Path) {
    if host.contains('*') {
        checks.each(path, host, names::wildcard_dns1123_subdomain(host));
    } else {
        checks.subdomain(path, host);
    }
}

fn ingress_path(checks: &mut Checks, it: &Value, path: &Path) {
    const TYPES: [&str; 3] = ["Exact", "ImplementationSpecific", "Prefix"];
    let Some(kind) = it.get("pathType").and_then(Value::as_str) else {
        checks.required(&path.child("pathType"), "pathType must be specified");
        return;
    };
    let (target, at) = (text(it, "path"), path.child("path"));
    let exact = matches!(kind, "Exact" | "Prefix");
    if !TYPES.contains(&kind) {
        checks.push(Error::not_supported(&path.child("pathType"), kind, &TYPES));
    } else if !target.starts_with('/') && (exact || !target.is_empty()) {
        checks.invalid(&at, target, "must be an absolute path");
    }
    if exact {
        for part in ["//", "/./", "/../", "%2f", "%2F"] {
            if target.contains(part) {
                checks.invalid(&at, target, &format!("must not contain '{part}'"));
            }
        }
        for end in ["/..", "/."] {
            if target.ends_with(end) {
                checks.invalid(&at, target, &format!("cannot end with '{end}'"));
            }
        }
    }
    ingress_backend(checks, &it["backend"], &path.child("backend"));
}

fn ingress_backend(checks: &mut Checks, backend: &Value, path: &Path) {
    match (given(backend, "resource"), given(backend, "service")) {
        (Some(_), Some(_)) => {
            checks.invalid(path, "", "cannot set both resource and service backends");
        }
        (Some(resource), None) => object_reference(checks, resource, &path.child("resource")),
        (None, Some(service)) => {
            let at = path.child("service");
            match text(service, "name") {
                "" => checks.required(&at.child("name"), ""),
                name => checks.label(&at.child("name"), name),
            }
            let port = &service["port"];
            let at = at.child("port");
            match (text(port, "name"), integer(port, "number").unwrap_or(0)) {
                ("", 0) => checks.required(path, "port name or number is required"),
                ("", number) => checks.port(&at.child("number"), number),
                (name, 0) => checks.each(&at.child("name"), name, names::port_name(name)),
                _ => checks.invalid(path, "", "cannot set both port name & port number"),
            }
        }
        (None, None) => checks.invalid(path, "", "resource or service backend is required"),
    }
}

/// A TypedLocalObjectReference.
fn object_reference(checks: &mut Checks, reference: &Value, path: &Path) {
    if let Some(group) = reference.get("apiGroup").and_then(Value::as_str) {
        checks.subdomain(&path.child("apiGroup"), group);
    }
    for field in ["kind", "name"] {
        checks.segment(reference, field, path);
    }
}

impl Strategy for IngressClass {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        const LONGEST: usize = 250;
        let mut checks = Checks::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let (controller, at) = (text(spec, "controller"), path.child("controller"));
        if controller.len() > LONGEST {
            checks.push(Error::too_long(&at, LONGEST));
        }
        domain_prefixed_path(&mut checks, controller, &at);
        if let Some(parameters) = given(spec, "parameters") {
            class_parameters(&mut checks, parameters, &path.child("parameters"));
        }
        checks.done()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let (new, before) = (&object["spec"]["controller"], &old["spec"]["controller"]);
        checks.immutable(&Path::new("spec").child("controller"), new, before);
        checks.add(self.validate(context, object));
        checks.done()
    }
}

/// `example.com/controller`
fn domain_prefixed_path(checks: &mut Checks, value: &str, path: &Path) {
    if value.is_empty() {
        checks.required(path, "");
        return;
    }
    let Some((host, rest)) = value
        .split_once('/')
        .filter(|(h, r)| !h.is_empty() && !r.is_empty())
    else {
        let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        checks.invalid(path, value, why);
        return;
    };
    checks.each(path, host, names::dns1123_subdomain(host));
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&c);
    if !rest.bytes().all(allowed) {
        let pattern = "[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+";
        checks.invalid(
            path,
            rest,
            &names::pattern_error("Invalid path", pattern, &[]),
        );
    }
}

fn class_parameters(checks: &mut Checks, parameters: &Value, path: &Path) {
    object_reference(checks, parameters, path);
    let namespace = parameters.get("namespace").and_then(Value::as_str);
    let at = path.child("namespace");
    match (text(parameters, "scope"), namespace) {
        ("", _) => checks.required(&path.child("scope"), ""),
        ("Namespace", None) => {
            checks.required(&at, "`parameters.scope` is set to 'Namespace'");
        }
        ("Namespace", Some(namespace)) => checks.label(&at, namespace),
        ("Cluster", Some(_)) => checks.forbidden(&at, "`parameters.scope` is set to 'Cluster'"),
        ("Cluster", None) => {}
        (scope, _) => {
            let path = path.child("scope");
            checks.push(Error::not_supported(
                &path,
                scope,
                &["Cluster", "Namespace"],
            ));
        }
    }
}

impl Strategy for NetworkPolicy {
    /// A policy is about what comes in, and about what goes out when it says anything of it.
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec").filter(|s| s.is_object()) else {
            return;
        };
        if list(spec, "policyTypes").is_empty() {
            let egress = !list(spec, "egress").is_empty();
            spec["policyTypes"] = if egress {
                json!(["Ingress", "Egress"])
            } else {
                json!(["Ingress"])
            };
        }
    }

    fn validate(&self, context: &Context<'_>, object: &Value) -> ErrorList {
        self.validate_update(context, object, &Value::Null)
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let known = blocks(&old["spec"]);
        checks.label_selector(&spec["podSelector"], &path.child("podSelector"));
        for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
            for (i, rule) in list(spec, rules).iter().enumerate() {
                let path = path.child(rules).index(i);
                for (i, port) in list(rule, "ports").iter().enumerate() {
                    policy_port(&mut checks, port, &path.child("ports").index(i));
                }
                for (i, peer) in list(rule, peers).iter().enumerate() {
                    policy_peer(&mut checks, peer, &known, &path.child(peers).index(i));
                }
            }
        }
        const TYPES: [&str; 2] = ["Ingress", "Egress"];
        let (types, at) = (list(spec, "policyTypes"), path.child("policyTypes"));
        if types.len() > TYPES.len() {
            let why = "may not specify more than two policyTypes";
            checks.invalid(&at, spec["policyTypes"].clone(), why);
            return checks.done();
        }
        for (i, kind) in types.iter().enumerate() {
            let kind = kind.as_str().unwrap_or_default();
            if !TYPES.contains(&kind) {
                checks.push(Error::not_supported(&at.index(i), kind, &TYPES));
            }
        }
        checks.done()
    }

    fn warnings(&self, _context: &Context<'_>, object: &Value) -> Vec<String> {
        let mut warnings = Vec::new();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
            for (i, rule) in list(spec, rules).iter().enumerate() {
                for (j, peer) in list(rule, peers).iter().enumerate() {
                    let path = path
                        .child(rules)
                        .index(i)
                        .child(peers)
                        .index(j)
                        .child("ipBlock");
                    let block = &peer["ipBlock"];
                    warnings.extend(address::cidr_warnings(
                        &path.child("cidr"),
                        text(block, "cidr"),
                    ));
                    for (k, except) in list(block, "except").iter().enumerate() {
                        let path = path.child("except").index(k);
                        let except = except.as_str().unwrap_or_default();
                        warnings.extend(address::cidr_warnings(&path, except));
                    }
                }
            }
        }
        warnings
    }
}

/// All blocks of a policy: those that are stored may stay, however they are written.
fn blocks(spec: &Value) -> Vec<&str> {
    let mut found = Vec::new();
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for peer in list(spec, rules).iter().flat_map(|rule| list(rule, peers)) {
            let block = &peer["ipBlock"];
            found.push(text(block, "cidr"));
            found.extend(list(block, "except").iter().filter_map(Value::as_str));
        }
    }
    found
}

fn policy_port(checks: &mut Checks, port: &Value, path: &Path) {
    let protocol = text(port, "protocol");
    if !protocol.is_empty() && !PROTOCOLS.contains(&protocol) {
        let path = path.child("protocol");
        checks.push(Error::not_supported(
            &path,
            protocol,
            &["TCP", "UDP", "SCTP"],
        ));
    }
    let (end, at) = (integer(port, "endPort"), path.child("endPort"));
    match (given(port, "port"), end) {
        (Some(Value::String(name)), end) => {
            if let Some(end) = end {
                let why = "may not be specified when `port` is non-numeric";
                checks.invalid(&at, end, why);
            }
            checks.each(&path.child("port"), name, names::port_name(name));
        }
        (Some(number), end) => {
            let number = number.as_i64().unwrap_or(0);
            checks.port(&path.child("port"), number);
            if let Some(end) = end {
                if end < number {
                    let why = "must be greater than or equal to `port`";
                    checks.invalid(&at, number, why);
                }
                checks.port(&at, end);
            }
        }
        (None, Some(end)) => {
            let why = "may not be specified when `port` is not specified";
            checks.invalid(&at, end, why);
        }
        (None, None) => {}
    }
}

fn policy_peer(checks: &mut Checks, peer: &Value, known: &[&str], path: &Path) {
    let mut kinds = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = given(peer, field) {
            kinds += 1;
            checks.label_selector(selector, &path.child(field));
        }
    }
    if let Some(block) = given(peer, "ipBlock") {
        ip_block(checks, block, known, &path.child("ipBlock"));
        if kinds > 0 {
            checks.forbidden(path, "may not specify both ipBlock and another peer");
        }
    } else if kinds == 0 {
        checks.required(path, "must specify a peer");
    }
}

fn ip_block(checks: &mut Checks, block: &Value, known: &[&str], path: &Path) {
    let cidr = text(block, "cidr");
    if cidr.is_empty() {
        checks.required(&path.child("cidr"), "");
        return;
    }
    address::legacy_cidr(checks, &path.child("cidr"), cidr, known.iter().copied());
    let Some(whole) = Block::sloppy(cidr) else {
        return;
    };
    for (i, except) in list(block, "except").iter().enumerate() {
        let (except, path) = (
            except.as_str().unwrap_or_default(),
            path.child("except").index(i),
        );
        address::legacy_cidr(checks, &path, except, known.iter().copied());
        let Some(part) = Block::sloppy(except) else {
            continue;
        };
        if !whole.contains(part.network) || whole.prefix >= part.prefix {
            checks.invalid(&path, except, "must be a strict subset of `cidr`");
        }
    }
}

impl Strategy for IpAddress {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let path = Path::new("spec").child("parentRef");
        let parent = &object["spec"]["parentRef"];
        if parent.is_null() {
            checks.required(&path, "");
            return checks.done();
        }
        let group = text(parent, "group");
        if !group.is_empty() {
            checks.subdomain(&path.child("group"), group);
        }
        for field in ["resource", "name"] {
            checks.segment(parent, field, &path);
        }
        let namespace = text(parent, "namespace");
        if !namespace.is_empty() {
            let path = path.child("namespace");
            checks.each(&path, namespace, names::path_segment(namespace));
        }
        checks.done()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks(self.validate(context, object).0);
        let path = Path::new("spec").child("parentRef");
        checks.immutable(
            &path,
            &object["spec"]["parentRef"],
            &old["spec"]["parentRef"],
        );
        checks.done()
    }

    fn name_rule(&self) -> NameRule {
        NameRule::IpAddress
    }
}

impl Strategy for ServiceCidr {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        cidrs(&mut checks, object);
        checks.done()
    }

    /// A second family may be added; nothing that is there may change.
    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let path = Path::new("spec").child("cidrs");
        let (new, before) = (list(&object["spec"], "cidrs"), list(&old["spec"], "cidrs"));
        let grown = before.len() == 1 && new.len() == 2;
        if new.len() != before.len() && !grown {
            let shown = object["spec"]["cidrs"].clone();
            checks.invalid(&path, shown, super::check::IMMUTABLE);
            return checks.done();
        }
        for (i, (new, before)) in new.iter().zip(before).enumerate() {
            checks.immutable(&path.index(i), new, before);
        }
        if grown {
            cidrs(&mut checks, object);
        }
        checks.done()
    }
}

fn cidrs(checks: &mut Checks, object: &Value) {
    let path = Path::new("spec").child("cidrs");
    let cidrs = list(&object["spec"], "cidrs");
    let shown = || object["spec"]["cidrs"].clone();
    if cidrs.is_empty() {
        checks.required(&path, "at least one CIDR required");
    } else if cidrs.len() > 2 {
        checks.invalid(
            &path,
            object["spec"].clone(),
            "may only hold up to 2 values",
        );
        return;
    }
    let text = |cidr: &Value| cidr.as_str().unwrap_or_default().to_owned();
    for (i, cidr) in cidrs.iter().enumerate() {
        address::cidr(checks, &path.index(i), &text(cidr));
    }
    if let [one, two] = cidrs
        && let (Some(one), Some(two)) = (Block::sloppy(&text(one)), Block::sloppy(&text(two)))
        && one.network.is_ipv4() == two.network.is_ipv4()
    {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        checks.invalid(&path, shown(), why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::tests::refusals;

    #[test]
    fn ingresses() {
        let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
        let rule = |host: &str, path: &str| json!({"rules": [{"host": host, "http": {"paths": [{"path": path, "pathType": "Prefix", "backend": backend}]}}]});
        #[rustfmt::skip]
        let table: &[(Value, &[&str])] = &[
            (json!({"defaultBackend": backend}), &[]),
            (rule("*.example.com", "/a"), &[]),
            (json!({}), &["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"]),
            (rule("10.0.0.1", "/"), &["spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address"]),
            (rule("a.b", "a"), &["spec.rules[0].http.paths[0].path: Invalid value: \"a\": must be an absolute path"]),
            (rule("a.b", "/a//b"), &["spec.rules[0].http.paths[0].path: Invalid value: \"/a//b\": must not contain '//'"]),
            (json!({"defaultBackend": {}}), &["spec.defaultBackend: Invalid value: \"\": resource or service backend is required"]),
            (json!({"defaultBackend": {"service": {"name": "a", "port": {}}}}), &["spec.defaultBackend: Required value: port name or number is required"]),
        ];
        for (spec, want) in table {
            assert_eq!(
                refusals("ingresses", &json!({"spec": spec}), None),
                *want,
                "{spec}"
            );
        }
    }

    #[test]
    fn classes() {
        #[rustfmt::skip]
        let table: &[(Value, &[&str])] = &[
            (json!({"controller": "example.com/ingress"}), &[]),
            (json!({}), &["spec.controller: Required value"]),
            (json!({"controller": "example.com"}), &["spec.controller: Invalid value: \"example.com\": must be a domain-prefixed path (such as \"acme.io/foo\")"]),
            (json!({"controller": "a.b/c", "parameters": {"kind": "K", "name": "n", "scope": "Namespace"}}), &["spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'"]),
        ];
        for (spec, want) in table {
            assert_eq!(
                refusals("ingressclasses", &json!({"spec": spec}), None),
                *want,
                "{spec}"
            );
        }
        let (old, new) = (
            json!({"spec": {"controller": "a.b/c"}}),
            json!({"spec": {"controller": "a.b/d"}}),
        );
        let found = refusals("ingressclasses", &new, Some(&old));
        assert_eq!(
            found,
            ["spec.controller: Invalid value: \"a.b/d\": field is immutable"]
        );
    }

    #[test]
    fn policies() {
        let mut policy = json!({"spec": {"podSelector": {}, "egress": [{}]}});
        NetworkPolicy.default(&mut policy);
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        let from = |peer: Value| json!({"podSelector": {}, "ingress": [{"from": [peer]}]});
        #[rustfmt::skip]
        let table: &[(Value, &[&str])] = &[
            (from(json!({"podSelector": {}})), &[]),
            (from(json!({})), &["spec.ingress[0].from[0]: Required value: must specify a peer"]),
            (from(json!({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}})), &["spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer"]),
            (from(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}})), &["spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`"]),
            (json!({"podSelector": {}, "egress": [{"ports": [{"port": 80, "endPort": 70}]}]}), &["spec.egress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`"]),
        ];
        for (spec, want) in table {
            assert_eq!(
                refusals("networkpolicies", &json!({"spec": spec}), None),
                *want,
                "{spec}"
            );
        }
    }
}
