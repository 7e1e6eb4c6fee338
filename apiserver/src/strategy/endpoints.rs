//! Endpoints and endpoint slices: where a Service leads.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use serde_json::Value;

use super::address;
use super::check::{Checks, given, integer, list, list_mut, same, text};
use super::{Context, Strategy, common};

/// The strategy of `endpoints`.
pub struct Endpoints;

/// The strategy of `endpointslices`.
pub struct EndpointSlice;

pub const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

impl Strategy for Endpoints {
    fn validate(&self, context: &Context<'_>, object: &Value) -> ErrorList {
        self.validate_update(context, object, &Value::Null)
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        // What was stored under older rules may stay.
        if old.is_null() || !same(&object["subsets"], &old["subsets"]) {
            for (i, subset) in list(object, "subsets").iter().enumerate() {
                subset_errors(&mut checks, subset, &Path::new("subsets").index(i));
            }
        }
        checks.done()
    }

    fn warnings(&self, _context: &Context<'_>, object: &Value) -> Vec<String> {
        let mut warnings = Vec::new();
        for (i, subset) in list(object, "subsets").iter().enumerate() {
            let path = Path::new("subsets").index(i);
            for field in ["addresses", "notReadyAddresses"] {
                for (j, it) in list(subset, field).iter().enumerate() {
                    let path = path.child(field).index(j).child("ip");
                    warnings.extend(address::ip_warning(&path, text(it, "ip")));
                }
            }
        }
        warnings
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

fn subset_errors(checks: &mut Checks, subset: &Value, path: &Path) {
    let fields = ["addresses", "notReadyAddresses"];
    if fields.iter().all(|f| list(subset, f).is_empty()) {
        checks.required(path, "must specify `addresses` or `notReadyAddresses`");
    }
    for field in fields {
        for (i, it) in list(subset, field).iter().enumerate() {
            let path = path.child(field).index(i);
            let ip = text(it, "ip");
            address::legacy_ip(checks, &path.child("ip"), ip, []);
            let host = text(it, "hostname");
            if !host.is_empty() {
                checks.label(&path.child("hostname"), host);
            }
            if let Some(node) = it.get("nodeName").and_then(Value::as_str) {
                checks.subdomain(&path.child("nodeName"), node);
            }
            address::endpoint(checks, &path.child("ip"), ip);
        }
    }
    let ports = list(subset, "ports");
    for (i, port) in ports.iter().enumerate() {
        let path = path.child("ports").index(i);
        match text(port, "name") {
            "" if ports.len() > 1 => checks.required(&path.child("name"), ""),
            "" => {}
            name => checks.label(&path.child("name"), name),
        }
        checks.port(&path.child("port"), integer(port, "port").unwrap_or(0));
        checks.one_of(&path.child("protocol"), text(port, "protocol"), &PROTOCOLS);
        if let Some(protocol) = port.get("appProtocol").and_then(Value::as_str) {
            checks.qualified_name(&path.child("appProtocol"), protocol);
        }
    }
}

impl Strategy for EndpointSlice {
    fn prepare_for_create(&self, _context: &Context<'_>, object: &mut Value) {
        drop_topology(object, &Value::Null);
    }

    fn prepare_for_update(&self, _context: &Context<'_>, object: &mut Value, old: &Value) {
        drop_topology(object, old);
    }

    fn validate(&self, context: &Context<'_>, object: &Value) -> ErrorList {
        self.validate_update(context, object, &Value::Null)
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        const TYPES: [&str; 3] = ["FQDN", "IPv4", "IPv6"];
        let mut checks = Checks::default();
        let kind = text(object, "addressType");
        checks.one_of(&Path::new("addressType"), kind, &TYPES);
        slice_ports(&mut checks, list(object, "ports"), &Path::new("ports"));
        if old.is_null() || !same(&object["endpoints"], &old["endpoints"]) {
            let path = Path::new("endpoints");
            slice_endpoints(&mut checks, list(object, "endpoints"), kind, &path);
        }
        if !old.is_null() {
            let field = "addressType";
            checks.immutable(&Path::new(field), &object[field], &old[field]);
        }
        checks.done()
    }

    fn warnings(&self, _context: &Context<'_>, object: &Value) -> Vec<String> {
        let mut warnings = Vec::new();
        if text(object, "addressType") == "FQDN" {
            return vec!["spec.addressType: FQDN endpoints are deprecated".into()];
        }
        for (i, endpoint) in list(object, "endpoints").iter().enumerate() {
            for (j, ip) in list(endpoint, "addresses").iter().enumerate() {
                let path = Path::new("endpoints").index(i).child("addresses").index(j);
                warnings.extend(address::ip_warning(&path, ip.as_str().unwrap_or_default()));
            }
        }
        warnings
    }

    /// Labels count too: they say whose endpoints these are.
    fn is_new_generation(&self, object: &Value, old: &Value) -> bool {
        let labels = |o: &Value| o["metadata"]["labels"].clone();
        common::spec_changed(object, old) || !same(&labels(object), &labels(old))
    }
}

/// The deprecated topology is not written any more; what is stored with it may be written back as it is.
fn drop_topology(object: &mut Value, old: &Value) {
    if !old.is_null() && same(&object["endpoints"], &old["endpoints"]) {
        return;
    }
    for endpoint in list_mut(object, "endpoints") {
        if let Some(endpoint) = endpoint.as_object_mut() {
            endpoint.remove("deprecatedTopology");
        }
    }
}

fn slice_ports(checks: &mut Checks, ports: &[Value], path: &Path) {
    const MOST: usize = 20_000;
    if ports.len() > MOST {
        checks.push(Error::too_many(path, ports.len(), MOST));
        return;
    }
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            checks.label(&path.child("name"), name);
        }
        if ports[..i].iter().any(|p| text(p, "name") == name) {
            checks.push(Error::duplicate(&path.child("name"), name));
        }
        checks.one_of(&path.child("protocol"), text(port, "protocol"), &PROTOCOLS);
        if let Some(protocol) = port.get("appProtocol").and_then(Value::as_str) {
            checks.qualified_name(&path.child("appProtocol"), protocol);
        }
    }
}

fn slice_endpoints(checks: &mut Checks, endpoints: &[Value], kind: &str, path: &Path) {
    const MOST: usize = 1000;
    if endpoints.len() > MOST {
        checks.push(Error::too_many(path, endpoints.len(), MOST));
        return;
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let path = path.index(i);
        addresses(
            checks,
            list(endpoint, "addresses"),
            kind,
            &path.child("addresses"),
        );
        if let Some(node) = endpoint.get("nodeName").and_then(Value::as_str) {
            checks.subdomain(&path.child("nodeName"), node);
        }
        if let Some(host) = endpoint.get("hostname").and_then(Value::as_str) {
            checks.label(&path.child("hostname"), host);
        }
        if let Some(hints) = given(endpoint, "hints") {
            slice_hints(checks, hints, &path.child("hints"));
        }
    }
}

fn addresses(checks: &mut Checks, addresses: &[Value], kind: &str, path: &Path) {
    const MOST: usize = 100;
    if addresses.is_empty() {
        checks.required(path, "must contain at least 1 address");
    } else if addresses.len() > MOST {
        checks.push(Error::too_many(path, addresses.len(), MOST));
    }
    for (i, it) in addresses.iter().enumerate() {
        let (it, at) = (it.as_str().unwrap_or_default(), path.index(i));
        let six = address::sloppy_ip(it).is_some_and(address::is_ipv6);
        let (sound, wrong) = match kind {
            "IPv4" => (address::legacy_ip(checks, &at, it, []), six),
            "IPv6" => (address::ip(checks, &at, it), !six),
            "FQDN" => {
                domain_name(checks, &at, it);
                continue;
            }
            _ => continue,
        };
        if sound && wrong {
            checks.invalid(path, it, &format!("must be an {kind} address"));
        }
        if sound {
            address::endpoint(checks, &at, it);
        }
    }
}

/// At least two labels; a dot may end it.
pub fn domain_name(checks: &mut Checks, path: &Path, name: &str) {
    if name.is_empty() {
        checks.required(path, "");
        return;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let wrong = names::dns1123_subdomain(name);
    if !wrong.is_empty() {
        checks.invalid(path, name, &wrong.join(","));
        return;
    }
    if !name.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        checks.invalid(path, name, why);
        return;
    }
    for label in name.split('.') {
        let wrong = names::dns1123_label(label);
        if !wrong.is_empty() {
            checks.invalid(path, label, &wrong.join(","));
            return;
        }
    }
}

fn slice_hints(checks: &mut Checks, hints: &Value, path: &Path) {
    const MOST: usize = 8;
    for field in ["forZones", "forNodes"] {
        let (path, hints) = (path.child(field), list(hints, field));
        if hints.len() > MOST {
            checks.push(Error::too_many(&path, hints.len(), MOST));
            return;
        }
        for (i, hint) in hints.iter().enumerate() {
            let (path, name) = (path.index(i).child("name"), text(hint, "name"));
            if hints[..i].iter().any(|h| text(h, "name") == name) {
                checks.push(Error::duplicate(&path, name));
            }
            if field == "forZones" {
                checks.each(&path, name, names::label_value(name));
            } else {
                checks.subdomain(&path, name);
            }
        }
    }
}
