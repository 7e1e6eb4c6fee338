//! The `resource.k8s.io` kinds: claims on devices, their templates and classes, and what drivers publish.

use std::collections::{BTreeMap, BTreeSet};

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use serde_json::{Value, json};

use super::check::{
    Checks, POSITIVE, entries, flag, given, integer, list, list_mut, set_default, text,
};
use super::persistent_volume::driver_name;
use super::{Context, Strategy, common, resources, scheduling};

pub struct ResourceClaim;
pub struct ResourceClaimTemplate;
pub struct DeviceClass;
pub struct ResourceSlice;

const REQUESTS: usize = 32;
const CONSUMERS: usize = 256;
const SELECTOR: usize = 10 * 1024;

/// Defaults of the requests in a claim's `devices`.
fn default_devices(devices: &mut Value) {
    for request in list_mut(devices, "requests") {
        if let Some(exactly) = request.get_mut("exactly").filter(|e| e.is_object()) {
            default_count(exactly);
        }
        for alternative in list_mut(request, "firstAvailable") {
            default_count(alternative);
        }
    }
}

fn default_count(request: &mut Value) {
    set_default(request, "allocationMode", "ExactCount");
    if text(request, "allocationMode") == "ExactCount"
        && integer(request, "count").unwrap_or(0) == 0
    {
        request["count"] = 1.into();
    }
}

impl Strategy for ResourceClaim {
    fn default(&self, object: &mut Value) {
        if let Some(devices) = object.get_mut("spec").and_then(|s| s.get_mut("devices")) {
            default_devices(devices);
        }
    }

    fn prepare_for_create(&self, _context: &Context<'_>, object: &mut Value) {
        object["status"] = json!({});
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        claim_spec(&mut checks, &object["spec"], &Path::new("spec"));
        checks.done()
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        checks.immutable(&Path::new("spec"), &object["spec"], &old["spec"]);
        checks.done()
    }

    fn prepare_for_status_update(&self, _context: &Context<'_>, object: &mut Value, old: &Value) {
        common::keep_all_but_status(object, old);
        // Data of devices that are not allocated any more goes with them.
        if object["status"]["allocation"].is_null()
            && let Some(status) = object["status"].as_object_mut()
        {
            status.remove("devices");
        }
    }

    fn validate_status_update(
        &self,
        _context: &Context<'_>,
        object: &Value,
        old: &Value,
    ) -> ErrorList {
        let mut checks = Checks::default();
        claim_status(&mut checks, object, old);
        checks.done()
    }
}

impl Strategy for ResourceClaimTemplate {
    fn default(&self, object: &mut Value) {
        let spec = object.get_mut("spec").and_then(|s| s.get_mut("spec"));
        if let Some(devices) = spec.and_then(|s| s.get_mut("devices")) {
            default_devices(devices);
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        checks.labels(&spec["metadata"], "labels", &path.child("metadata"));
        checks.annotations(&spec["metadata"], &path.child("metadata"));
        claim_spec(&mut checks, &spec["spec"], &path.child("spec"));
        checks.done()
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        checks.immutable(&Path::new("spec"), &object["spec"], &old["spec"]);
        checks.done()
    }
}

type Names<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// The requests of a claim, and the alternatives of each.
fn request_names(devices: &Value) -> Names<'_> {
    let requests = list(devices, "requests").iter();
    requests
        .map(|request| {
            let alternatives = list(request, "firstAvailable").iter();
            (
                text(request, "name"),
                alternatives.map(|a| text(a, "name")).collect(),
            )
        })
        .collect()
}

/// False if a list is so long that nobody looks into it.
fn sized(checks: &mut Checks, items: &[Value], most: usize, path: &Path) -> bool {
    if items.len() > most {
        checks.push(Error::too_many(path, items.len(), most));
    }
    items.len() <= most
}

fn unique(checks: &mut Checks, items: &[Value], key: impl Fn(&Value) -> Value, path: &Path) {
    let keys: Vec<Value> = items.iter().map(key).collect();
    for (i, key) in keys
        .iter()
        .enumerate()
        .filter(|(i, key)| keys[..*i].contains(key))
    {
        checks.push(Error::duplicate(&path.index(i), key.clone()));
    }
}

fn claim_spec(checks: &mut Checks, spec: &Value, path: &Path) {
    let (devices, path) = (&spec["devices"], path.child("devices"));
    let names = request_names(devices);
    let (requests, at) = (list(devices, "requests"), path.child("requests"));
    if sized(checks, requests, REQUESTS, &at) {
        for (i, it) in requests.iter().enumerate() {
            request(checks, it, &at.index(i));
        }
        unique(checks, requests, |r| r["name"].clone(), &at);
    }
    let (constraints, at) = (list(devices, "constraints"), path.child("constraints"));
    if sized(checks, constraints, 32, &at) {
        for (i, constraint) in constraints.iter().enumerate() {
            let at = at.index(i);
            references(checks, constraint, &names, &at);
            let fields = ["matchAttribute", "distinctAttribute"];
            match fields
                .into_iter()
                .find_map(|f| given(constraint, f).map(|v| (f, v)))
            {
                Some((field, name)) => {
                    attribute_name(checks, name.as_str().unwrap_or_default(), &at.child(field));
                }
                None => checks.required(&at.child("matchAttribute"), ""),
            }
        }
    }
    let (config, at) = (list(devices, "config"), path.child("config"));
    if sized(checks, config, 32, &at) {
        for (i, config) in config.iter().enumerate() {
            references(checks, config, &names, &at.index(i));
            opaque(checks, config, &at.index(i));
        }
    }
}

fn request(checks: &mut Checks, request: &Value, path: &Path) {
    const ONE: &str = "exactly one of `exactly` or `firstAvailable` is required";
    checks.label(&path.child("name"), text(request, "name"));
    let alternatives = list(request, "firstAvailable");
    match given(request, "exactly") {
        None if alternatives.is_empty() => checks.required(path, ONE),
        Some(_) if !alternatives.is_empty() => {
            let why = format!("{ONE}, but multiple fields are set");
            checks.invalid(path, Value::Null, &why);
        }
        Some(exactly) => device_request(checks, exactly, &path.child("exactly")),
        None => {
            let at = path.child("firstAvailable");
            if sized(checks, alternatives, 8, &at) {
                for (i, alternative) in alternatives.iter().enumerate() {
                    let at = at.index(i);
                    checks.label(&at.child("name"), text(alternative, "name"));
                    device_request(checks, alternative, &at);
                }
                unique(checks, alternatives, |a| a["name"].clone(), &at);
            }
        }
    }
}

fn device_request(checks: &mut Checks, request: &Value, path: &Path) {
    let at = path.child("deviceClassName");
    match text(request, "deviceClassName") {
        "" => checks.required(&at, ""),
        class => checks.subdomain(&at, class),
    }
    selectors(checks, list(request, "selectors"), &path.child("selectors"));
    let (mode, count) = (
        text(request, "allocationMode"),
        integer(request, "count").unwrap_or(0),
    );
    match mode {
        "All" if count != 0 => {
            let why = "must not be specified when allocationMode is 'All'";
            checks.invalid(&path.child("count"), count, why);
        }
        "ExactCount" if count <= 0 => checks.invalid(&path.child("count"), count, POSITIVE),
        "All" | "ExactCount" => {}
        _ => {
            let path = path.child("allocationMode");
            checks.push(Error::not_supported(&path, mode, &["All", "ExactCount"]));
        }
    }
    for (i, toleration) in list(request, "tolerations").iter().enumerate() {
        device_toleration(checks, toleration, &path.child("tolerations").index(i));
    }
}

fn device_toleration(checks: &mut Checks, toleration: &Value, path: &Path) {
    let (key, value) = (text(toleration, "key"), text(toleration, "value"));
    if !key.is_empty() {
        checks.qualified_name(&path.child("key"), key);
    }
    match text(toleration, "operator") {
        "Exists" if !value.is_empty() => {
            let why = "must be empty for operator `Exists`";
            checks.invalid(&path.child("value"), value, why);
        }
        "Exists" => {}
        "Equal" => {
            if key.is_empty() {
                checks.required(&path.child("key"), "must be specified for operator `Equal`");
            }
            checks.each(&path.child("value"), value, names::label_value(value));
        }
        "" => checks.required(&path.child("operator"), ""),
        operator => {
            let path = path.child("operator");
            checks.push(Error::not_supported(&path, operator, &["Equal", "Exists"]));
        }
    }
    let effect = text(toleration, "effect");
    if !matches!(effect, "" | "NoSchedule" | "NoExecute") {
        let path = path.child("effect");
        checks.push(Error::not_supported(
            &path,
            effect,
            &["NoExecute", "NoSchedule"],
        ));
    }
}

fn selectors(checks: &mut Checks, selectors: &[Value], path: &Path) {
    if !sized(checks, selectors, 32, path) {
        return;
    }
    for (i, selector) in selectors.iter().enumerate() {
        let path = path.index(i).child("cel");
        match given(selector, "cel") {
            None => checks.required(&path, ""),
            Some(cel) if text(cel, "expression").len() > SELECTOR => {
                checks.push(Error::too_long(&path.child("expression"), SELECTOR));
            }
            Some(_) => {}
        }
    }
}

/// The requests that a constraint or configuration is about must be there.
fn references(checks: &mut Checks, object: &Value, names: &Names<'_>, path: &Path) {
    let (requests, path) = (list(object, "requests"), path.child("requests"));
    if !sized(checks, requests, REQUESTS, &path) {
        return;
    }
    for (i, name) in requests.iter().enumerate() {
        reference(
            checks,
            name.as_str().unwrap_or_default(),
            names,
            &path.index(i),
        );
    }
    unique(checks, requests, Value::clone, &path);
}

fn reference(checks: &mut Checks, name: &str, names: &Names<'_>, path: &Path) {
    const WHY: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() > 2 {
        checks.invalid(path, name, WHY);
        return;
    }
    for part in &parts {
        checks.label(path, part);
    }
    let known = names
        .get(parts[0])
        .is_some_and(|alternatives| parts.get(1).is_none_or(|a| alternatives.contains(a)));
    if !known {
        checks.invalid(path, name, WHY);
    }
}

/// `domain/identifier`
fn attribute_name(checks: &mut Checks, name: &str, path: &Path) {
    match name.split_once('/') {
        None if name.is_empty() => checks.required(path, ""),
        None => checks.invalid(path, name, "must include a domain"),
        Some((domain, id)) => {
            if domain.is_empty() {
                checks.required(path, "the domain must not be empty");
            } else {
                checks.subdomain(path, domain);
            }
            identifier(checks, id, path);
        }
    }
}

fn identifier(checks: &mut Checks, id: &str, path: &Path) {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    if id.is_empty() {
        checks.required(path, "the name must not be empty");
        return;
    }
    if id.len() > 32 {
        checks.push(Error::too_long(path, 32));
    }
    if id.as_bytes()[0].is_ascii_digit() || !id.bytes().all(word) {
        let message = "a valid C identifier must start with alphabetic character or '_', followed by a string of \
            alphanumeric characters or '_'";
        let why = names::pattern_error(
            message,
            "[A-Za-z_][A-Za-z0-9_]*",
            &["my_name", "MY_NAME", "MyName"],
        );
        checks.invalid(path, id, &why);
    }
}

fn opaque(checks: &mut Checks, config: &Value, path: &Path) {
    let path = path.child("opaque");
    let Some(opaque) = given(config, "opaque") else {
        checks.required(&path, "");
        return;
    };
    driver_name(checks, text(opaque, "driver"), &path.child("driver"));
    let at = path.child("parameters");
    match given(opaque, "parameters") {
        None => checks.required(&at, ""),
        Some(parameters) if !parameters.is_object() => {
            let why = "parameters must be a valid JSON object";
            checks.invalid(&at, "<value omitted>", why);
        }
        Some(parameters) if parameters.to_string().len() > SELECTOR => {
            checks.push(Error::too_long(&at, SELECTOR));
        }
        Some(_) => {}
    }
}

fn pool_name(checks: &mut Checks, name: &str, path: &Path) {
    if name.is_empty() {
        checks.required(path, "");
        return;
    }
    if name.len() > 253 {
        checks.push(Error::too_long(path, 253));
    }
    for part in name.split('/') {
        checks.subdomain(path, part);
    }
}

fn claim_status(checks: &mut Checks, object: &Value, old: &Value) {
    let (status, before, path) = (&object["status"], &old["status"], Path::new("status"));
    let (consumers, at) = (list(status, "reservedFor"), path.child("reservedFor"));
    if sized(checks, consumers, CONSUMERS, &at) {
        for (i, consumer) in consumers.iter().enumerate() {
            for field in ["resource", "name", "uid"] {
                if text(consumer, field).is_empty() {
                    checks.required(&at.index(i).child(field), "");
                }
            }
        }
        unique(checks, consumers, |c| c["uid"].clone(), &at);
    }
    let allocation = given(status, "allocation");
    let deleted = apimachinery::object::deletion_timestamp(object).is_some();
    let added = consumers
        .iter()
        .any(|c| !list(before, "reservedFor").contains(c));
    if !consumers.is_empty() && allocation.is_none() {
        checks.forbidden(&at, "may not be specified when `allocated` is not set");
    } else if deleted && added {
        let why = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
        checks.forbidden(&at, why);
    }
    device_statuses(checks, status, &path.child("devices"));
    let at = path.child("allocation");
    match (allocation, given(before, "allocation")) {
        (Some(new), Some(old)) => checks.immutable(&at, new, old),
        (Some(new), None) => {
            let names = request_names(&object["spec"]["devices"]);
            allocation_result(checks, new, &names, &at);
        }
        _ => {}
    }
}

fn device_key(device: &Value) -> Value {
    json!([
        device["driver"],
        device["pool"],
        device["device"],
        device["shareID"]
    ])
}

fn device_statuses(checks: &mut Checks, status: &Value, path: &Path) {
    let allocated: Vec<Value> = list(&status["allocation"]["devices"], "results")
        .iter()
        .map(device_key)
        .collect();
    let devices = list(status, "devices");
    for (i, device) in devices.iter().enumerate() {
        let path = path.index(i);
        driver_name(checks, text(device, "driver"), &path.child("driver"));
        pool_name(checks, text(device, "pool"), &path.child("pool"));
        checks.label(&path.child("device"), text(device, "device"));
        if !allocated.contains(&device_key(device)) {
            let shown = json!({"Driver": device["driver"], "Pool": device["pool"], "Device": device["device"]});
            let why = "must be an allocated device in the claim";
            checks.invalid(&path, shown, why);
        }
        checks.conditions(list(device, "conditions"), &path.child("conditions"));
    }
    unique(checks, devices, device_key, path);
}

fn allocation_result(checks: &mut Checks, allocation: &Value, names: &Names<'_>, path: &Path) {
    let (devices, at) = (&allocation["devices"], path.child("devices"));
    let results = list(devices, "results");
    if sized(checks, results, REQUESTS, &at.child("results")) {
        for (i, result) in results.iter().enumerate() {
            let at = at.child("results").index(i);
            reference(checks, text(result, "request"), names, &at.child("request"));
            driver_name(checks, text(result, "driver"), &at.child("driver"));
            pool_name(checks, text(result, "pool"), &at.child("pool"));
            checks.label(&at.child("device"), text(result, "device"));
        }
    }
    let config = list(devices, "config");
    if sized(checks, config, 64, &at.child("config")) {
        for (i, config) in config.iter().enumerate() {
            let at = at.child("config").index(i);
            let sources = ["FromClaim", "FromClass"];
            checks.one_of(&at.child("source"), text(config, "source"), &sources);
            references(checks, config, names, &at);
            opaque(checks, config, &at);
        }
    }
    if let Some(selector) = given(allocation, "nodeSelector") {
        scheduling::node_selector(checks, selector, &path.child("nodeSelector"));
    }
}

impl Strategy for DeviceClass {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        selectors(
            &mut checks,
            list(spec, "selectors"),
            &path.child("selectors"),
        );
        let (config, at) = (list(spec, "config"), path.child("config"));
        if sized(&mut checks, config, 32, &at) {
            for (i, config) in config.iter().enumerate() {
                opaque(&mut checks, config, &at.index(i));
            }
        }
        if let Some(name) = spec.get("extendedResourceName").and_then(Value::as_str)
            && !resources::is_extended(name)
        {
            let why = "must be a valid extended resource name";
            checks.invalid(&path.child("extendedResourceName"), name, why);
        }
        checks.done()
    }
}

impl Strategy for ResourceSlice {
    fn validate(&self, context: &Context<'_>, object: &Value) -> ErrorList {
        self.validate_update(context, object, &Value::Null)
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        driver_name(&mut checks, text(spec, "driver"), &path.child("driver"));
        let (pool, at) = (&spec["pool"], path.child("pool"));
        pool_name(&mut checks, text(pool, "name"), &at.child("name"));
        let count = integer(pool, "resourceSliceCount").unwrap_or(0);
        if count <= 0 {
            checks.invalid(&at.child("resourceSliceCount"), count, POSITIVE);
        }
        if let Some(generation) = integer(pool, "generation").filter(|g| *g < 0) {
            let why = "must be greater than or equal to zero";
            checks.invalid(&at.child("generation"), generation, why);
        }
        if !old.is_null() {
            let before = &old["spec"];
            checks.immutable(&at.child("name"), &pool["name"], &before["pool"]["name"]);
            for field in ["driver", "nodeName"] {
                checks.immutable(&path.child(field), &spec[field], &before[field]);
            }
        }
        slice_nodes(&mut checks, spec, &path);
        slice_devices(&mut checks, spec, &path);
        checks.done()
    }
}

fn slice_nodes(checks: &mut Checks, spec: &Value, path: &Path) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let mut set = Vec::new();
    match spec.get("nodeName").and_then(Value::as_str) {
        Some("") => {
            let why = "must be either unset or set to a non-empty string";
            checks.invalid(&path.child("nodeName"), "", why);
        }
        Some(name) => {
            set.push("`nodeName`");
            checks.subdomain(&path.child("nodeName"), name);
        }
        None => {}
    }
    if let Some(selector) = given(spec, "nodeSelector") {
        set.push("`nodeSelector`");
        let path = path.child("nodeSelector");
        scheduling::node_selector(checks, selector, &path);
        if list(selector, "nodeSelectorTerms").len() != 1 {
            let shown = selector["nodeSelectorTerms"].clone();
            let why = "must have exactly one node selector term";
            checks.invalid(&path.child("nodeSelectorTerms"), shown, why);
        }
    }
    for (field, shown) in [
        ("allNodes", "`allNodes`"),
        ("perDeviceNodeSelection", "`perDeviceNodeSelection`"),
    ] {
        match given(spec, field) {
            Some(Value::Bool(true)) => set.push(shown),
            Some(_) => {
                checks.invalid(
                    &path.child(field),
                    false,
                    "must be either unset or set to true",
                );
            }
            None => {}
        }
    }
    if set.is_empty() {
        checks.required(path, ONE);
    } else if set.len() > 1 {
        let why = format!("{ONE}, but multiple fields are set");
        checks.invalid(path, format!("{{{}}}", set.join(", ")), &why);
    }
}

fn slice_devices(checks: &mut Checks, spec: &Value, path: &Path) {
    let (devices, counters) = (list(spec, "devices"), list(spec, "sharedCounters"));
    if !devices.is_empty() && !counters.is_empty() {
        checks.invalid(
            path,
            "",
            "only one of `sharedCounters` or `devices` is allowed",
        );
    }
    let advanced = devices
        .iter()
        .any(|d| !list(d, "taints").is_empty() || !list(d, "consumesCounters").is_empty());
    let (most, at) = (if advanced { 64 } else { 128 }, path.child("devices"));
    if sized(checks, devices, most, &at) {
        for (i, it) in devices.iter().enumerate() {
            device(
                checks,
                it,
                flag(spec, "perDeviceNodeSelection"),
                &at.index(i),
            );
        }
        unique(checks, devices, |d| d["name"].clone(), &at);
    }
    let at = path.child("sharedCounters");
    if sized(checks, counters, 8, &at) {
        for (i, set) in counters.iter().enumerate() {
            counter_set(checks, set, "name", &at.index(i));
        }
        unique(checks, counters, |c| c["name"].clone(), &at);
    }
}

fn counter_set(checks: &mut Checks, set: &Value, field: &str, path: &Path) {
    match text(set, field) {
        "" => checks.required(&path.child(field), ""),
        name => checks.label(&path.child(field), name),
    }
    let path = path.child("counters");
    if entries(set, "counters").next().is_none() {
        checks.required(&path, "");
    }
    for (name, _) in entries(set, "counters") {
        checks.label(&path, name);
    }
}

fn device(checks: &mut Checks, device: &Value, selects_nodes: bool, path: &Path) {
    const MOST: usize = 32;
    checks.label(&path.child("name"), text(device, "name"));
    let count = entries(device, "attributes")
        .chain(entries(device, "capacity"))
        .count();
    if count > MOST {
        let why = format!("the total number of attributes and capacities must not exceed {MOST}");
        checks.invalid(path, count, &why);
    }
    for field in ["attributes", "capacity"] {
        for (name, value) in entries(device, field) {
            let path = path.child(field);
            match name.split_once('/') {
                Some(_) => attribute_name(checks, name, &path),
                None => identifier(checks, name, &path),
            }
            if field == "attributes" {
                attribute(checks, value, &path.key(name));
            }
        }
    }
    let sets = list(device, "consumesCounters");
    for (i, set) in sets.iter().enumerate() {
        counter_set(
            checks,
            set,
            "counterSet",
            &path.child("consumesCounters").index(i),
        );
    }
    unique(
        checks,
        sets,
        |c| c["counterSet"].clone(),
        &path.child("consumesCounters"),
    );
    let fields = ["nodeName", "nodeSelector", "allNodes"];
    let set = fields.iter().filter(|f| given(device, f).is_some()).count();
    if selects_nodes && set != 1 {
        let why = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` \
            is set to true in the ResourceSlice spec";
        if set == 0 {
            checks.required(path, why);
        } else {
            checks.invalid(path, device["name"].clone(), why);
        }
    } else if !selects_nodes && set > 0 {
        let why = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true \
            in the ResourceSlice spec";
        checks.invalid(path, Value::Null, why);
    }
}

fn attribute(checks: &mut Checks, attribute: &Value, path: &Path) {
    const LONGEST: usize = 64;
    let set = attribute
        .as_object()
        .map_or(0, |a| a.values().filter(|v| !v.is_null()).count());
    if set == 0 {
        checks.required(path, "exactly one value must be specified");
    } else if set > 1 {
        let why = "exactly one value must be specified";
        checks.invalid(path, attribute.clone(), why);
    }
    for field in ["string", "version"] {
        if text(attribute, field).len() > LONGEST {
            checks.push(Error::too_long(&path.child(field), LONGEST));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::tests::refusals;

    fn claim(devices: Value) -> Value {
        let mut claim = json!({"spec": {"devices": devices}});
        ResourceClaim.default(&mut claim);
        claim
    }

    #[test]
    fn claims() {
        let request = json!({"name": "gpu", "exactly": {"deviceClassName": "gpu.example.com"}});
        let good = claim(json!({"requests": [request]}));
        assert_eq!(
            good["spec"]["devices"]["requests"][0]["exactly"]["count"],
            1
        );
        assert!(refusals("resourceclaims", &good, None).is_empty());
        #[rustfmt::skip]
        let table: &[(Value, &[&str])] = &[
            (json!({"requests": [{"name": "a"}]}), &["spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required"]),
            (json!({"requests": [request, request]}), &["spec.devices.requests[1]: Duplicate value: \"gpu\""]),
            (json!({"requests": [{"name": "a", "exactly": {"deviceClassName": "c", "allocationMode": "All", "count": 2}}]}), &["spec.devices.requests[0].exactly.count: Invalid value: 2: must not be specified when allocationMode is 'All'"]),
            (json!({"requests": [request], "config": [{"requests": ["cpu"], "opaque": {"driver": "d", "parameters": {}}}]}), &["spec.devices.config[0].requests[0]: Invalid value: \"cpu\": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'"]),
        ];
        for (devices, want) in table {
            assert_eq!(
                refusals("resourceclaims", &claim(devices.clone()), None),
                *want,
                "{devices}"
            );
        }
        let found = refusals("resourceclaims", &claim(json!({})), Some(&good));
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn allocations_stay() {
        let mut old =
            claim(json!({"requests": [{"name": "gpu", "exactly": {"deviceClassName": "c"}}]}));
        let result = |request: &str| json!({"devices": {"results": [{"request": request, "driver": "d", "pool": "p", "device": "a"}]}});
        let mut new = old.clone();
        new["status"] = json!({"allocation": result("gpu"), "reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}]});
        let errors = |new: &Value, old: &Value| {
            let mut checks = Checks::default();
            claim_status(&mut checks, new, old);
            checks.done().0.len()
        };
        assert_eq!(errors(&new, &old), 0);
        old = new.clone();
        new["status"]["allocation"] = result("other");
        assert_eq!(errors(&new, &old), 1);
        new["status"] = json!({"reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}]});
        assert_eq!(errors(&new, &old), 1);
    }

    #[test]
    fn slices() {
        let slice = |spec: Value| {
            let mut spec = spec;
            set_default(&mut spec, "driver", "d");
            set_default(
                &mut spec,
                "pool",
                json!({"name": "p", "resourceSliceCount": 1}),
            );
            json!({"spec": spec})
        };
        #[rustfmt::skip]
        let table: &[(Value, &[&str])] = &[
            (json!({"nodeName": "n", "devices": [{"name": "a", "attributes": {"model": {"string": "x"}}}]}), &[]),
            (json!({}), &["spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"]),
            (json!({"nodeName": "n", "allNodes": true}), &["spec: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set"]),
            (json!({"nodeName": "n", "devices": [{"name": "a"}, {"name": "a"}]}), &["spec.devices[1]: Duplicate value: \"a\""]),
        ];
        for (spec, want) in table {
            assert_eq!(
                refusals("resourceslices", &slice(spec.clone()), None),
                *want,
                "{spec}"
            );
        }
    }
}
