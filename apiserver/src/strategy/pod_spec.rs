//! Validation of a pod spec and of pod templates: shared by pods and everything that makes pods.

use apimachinery::field::{Error, Path};
use apimachinery::names;
use serde_json::Value;

use super::check::{Checks, flag, given, integer, list, text};
use super::container::{self, profiles, user_or_group};
use super::{pod_parts, pod_platform, scheduling, volume};

/// Validates a pod spec (`ValidatePodSpec`). `is_pod` is false inside templates.
pub fn validate(checks: &mut Checks, spec: &Value, path: &Path, is_pod: bool) {
    if given(spec, "terminationGracePeriodSeconds").is_none() {
        checks.required(&path.child("terminationGracePeriodSeconds"), "");
    }
    let pod = container::Pod {
        volumes: volume::volumes(checks, spec, &path.child("volumes")),
        sources: list(spec, "volumes"),
        never: text(spec, "restartPolicy") == "Never",
        grace_period: integer(spec, "terminationGracePeriodSeconds"),
        host_users: spec.get("hostUsers") != Some(&Value::Bool(false)),
        os: given(spec, "os").map_or("", |os| text(os, "name")),
    };
    container::containers(checks, spec, &pod, &path.child("containers"));
    container::init_containers(checks, spec, &pod, &path.child("initContainers"));
    container::ephemeral_containers(checks, spec, &pod, &path.child("ephemeralContainers"));
    host_network(checks, spec, path, is_pod);
    let policy = text(spec, "restartPolicy");
    checks.one_of(
        &path.child("restartPolicy"),
        policy,
        &["Always", "OnFailure", "Never"],
    );
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    checks.one_of(&path.child("dnsPolicy"), text(spec, "dnsPolicy"), &policies);
    checks.labels(spec, "nodeSelector", path);
    security_context(checks, spec, &path.child("securityContext"));
    if let Some(affinity) = given(spec, "affinity") {
        scheduling::affinity(checks, affinity, &path.child("affinity"));
    }
    dns_config(checks, spec, &path.child("dnsConfig"));
    for (i, gate) in list(spec, "readinessGates").iter().enumerate() {
        let path = path.child("readinessGates").index(i).child("conditionType");
        checks.qualified_name(&path, text(gate, "conditionType"));
    }
    scheduling_gates(checks, spec, &path.child("schedulingGates"));
    let constraints = list(spec, "topologySpreadConstraints");
    scheduling::topology_spread(
        checks,
        constraints,
        &path.child("topologySpreadConstraints"),
    );
    host_users(checks, spec, path);
    named_fields(checks, spec, path);
    scheduling::tolerations(
        checks,
        list(spec, "tolerations"),
        &path.child("tolerations"),
    );
    host_aliases(checks, spec, &path.child("hostAliases"));
    pod_platform::validate(checks, spec, path);
    pod_parts::validate(checks, spec, path);
}

fn named_fields(checks: &mut Checks, spec: &Value, path: &Path) {
    for field in [
        "serviceAccountName",
        "nodeName",
        "priorityClassName",
        "runtimeClassName",
    ] {
        match text(spec, field) {
            "" => {}
            name => checks.subdomain(&path.child(field), name),
        }
    }
    for field in ["hostname", "subdomain"] {
        match text(spec, field) {
            "" => {}
            name => checks.label(&path.child(field), name),
        }
    }
    const MAX: i64 = i32::MAX as i64;
    if let Some(seconds) = integer(spec, "activeDeadlineSeconds").filter(|s| !(1..=MAX).contains(s))
    {
        checks.invalid(
            &path.child("activeDeadlineSeconds"),
            seconds,
            &names::inclusive_range(1, MAX),
        );
    }
    let preemption = text(spec, "preemptionPolicy");
    if !preemption.is_empty() {
        checks.one_of(
            &path.child("preemptionPolicy"),
            preemption,
            &["PreemptLowerPriority", "Never"],
        );
    }
    if let Some(os) = given(spec, "os") {
        checks.one_of(
            &path.child("os").child("name"),
            text(os, "name"),
            &["linux", "windows"],
        );
    }
    if let Some(name) = spec.get("hostnameOverride").and_then(Value::as_str) {
        let path = path.child("hostnameOverride");
        if flag(spec, "setHostnameAsFQDN") {
            checks.forbidden(&path, "may not be specified when setHostnameAsFQDN is true");
        }
        if flag(spec, "hostNetwork") {
            checks.forbidden(&path, "may not be specified when hostNetwork is true");
        }
        if name.len() > 64 {
            checks.push(Error::too_long(&path, 64));
        }
        checks.subdomain(&path, name);
    }
}

/// With host networking a container's port is the host's.
fn host_network(checks: &mut Checks, spec: &Value, path: &Path, is_pod: bool) {
    if !flag(spec, "hostNetwork") {
        return;
    }
    for (c, container) in list(spec, "containers").iter().enumerate() {
        for (p, port) in list(container, "ports").iter().enumerate() {
            let (host, inside) = (
                integer(port, "hostPort").unwrap_or(0),
                integer(port, "containerPort").unwrap_or(0),
            );
            if (is_pod || host != 0) && host != inside {
                let path = path
                    .child("containers")
                    .index(c)
                    .child("ports")
                    .index(p)
                    .child("hostPort");
                checks.invalid(
                    &path,
                    host,
                    "must match `containerPort` when `hostNetwork` is true",
                );
            }
        }
    }
}

fn security_context(checks: &mut Checks, spec: &Value, path: &Path) {
    let Some(context) = given(spec, "securityContext") else {
        return;
    };
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        user_or_group(checks, context, field, path);
    }
    const MAX: i64 = i32::MAX as i64;
    for (i, group) in list(context, "supplementalGroups").iter().enumerate() {
        if let Some(id) = group.as_i64().filter(|id| !(0..=MAX).contains(id)) {
            checks.invalid(
                &path.child("supplementalGroups").index(i),
                id,
                &names::inclusive_range(0, MAX),
            );
        }
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        checks.invalid(&path.child("shareProcessNamespace"), true, why);
    }
    for (field, allowed) in [
        ("fsGroupChangePolicy", ["OnRootMismatch", "Always"]),
        ("supplementalGroupsPolicy", ["Merge", "Strict"]),
    ] {
        let policy = text(context, field);
        if !policy.is_empty() {
            checks.one_of(&path.child(field), policy, &allowed);
        }
    }
    profiles(checks, context, path);
    sysctls(checks, context, &path.child("sysctls"));
}

fn sysctls(checks: &mut Checks, context: &Value, path: &Path) {
    let part = |p: &str| {
        let inner =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        let edge =
            |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(p.chars().next()) && edge(p.chars().last()) && p.chars().all(inner)
    };
    let mut seen = std::collections::HashSet::new();
    for (i, sysctl) in list(context, "sysctls").iter().enumerate() {
        let path = path.index(i).child("name");
        let name = text(sysctl, "name");
        if name.is_empty() {
            checks.required(&path, "");
        } else if name.len() > 253 || !name.split(['.', '/']).all(part) {
            let why = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            checks.invalid(&path, name, why);
        } else if !seen.insert(name.replace('/', ".")) {
            checks.push(Error::duplicate(&path, name));
        }
    }
}

fn dns_config(checks: &mut Checks, spec: &Value, path: &Path) {
    let config = given(spec, "dnsConfig");
    let servers = config.map_or(&[][..], |c| list(c, "nameservers"));
    if text(spec, "dnsPolicy") == "None" {
        if config.is_none() {
            checks.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if servers.is_empty() {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            checks.required(&path.child("nameservers"), why);
            return;
        }
    }
    let Some(config) = config else { return };
    if servers.len() > 3 {
        checks.invalid(
            &path.child("nameservers"),
            servers.to_vec(),
            "must not have more than 3 nameservers",
        );
    }
    for (i, server) in servers.iter().enumerate() {
        ip(checks, server, &path.child("nameservers").index(i));
    }
    let searches = list(config, "searches");
    if searches.len() > 32 {
        checks.invalid(
            &path.child("searches"),
            searches.to_vec(),
            "must not have more than 32 search paths",
        );
    }
    let length: usize = searches
        .iter()
        .filter_map(Value::as_str)
        .map(|s| s.len() + 1)
        .sum();
    if length > 2049 {
        let why = "must not have more than 2048 characters (including spaces) in the search list";
        checks.invalid(&path.child("searches"), searches.to_vec(), why);
    }
    for (i, search) in searches.iter().enumerate() {
        let search = search.as_str().unwrap_or_default();
        if search != "." {
            // Underscores are allowed in search paths: _sip._tcp and the like.
            let name = search.strip_suffix('.').unwrap_or(search).replace('_', "x");
            let path = path.child("searches").index(i);
            checks.each(&path, search, names::dns1123_subdomain(&name));
        }
    }
    for (i, option) in list(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            checks.required(&path.child("options").index(i), "must not be empty");
        }
    }
}

fn ip(checks: &mut Checks, value: &Value, path: &Path) {
    let value = value.as_str().unwrap_or_default();
    if value.parse::<std::net::IpAddr>().is_err() {
        checks.invalid(
            path,
            value,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        );
    }
}

fn scheduling_gates(checks: &mut Checks, spec: &Value, path: &Path) {
    let mut seen = std::collections::HashSet::new();
    for (i, gate) in list(spec, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        checks.qualified_name(&path.index(i), name);
        if !seen.insert(name) {
            checks.push(Error::duplicate(&path.index(i), name));
        }
    }
}

fn host_users(checks: &mut Checks, spec: &Value, path: &Path) {
    if spec.get("hostUsers") != Some(&Value::Bool(false)) {
        return;
    }
    for (field, shown) in [
        ("hostNetwork", "hostNetwork"),
        ("hostPID", "HostPID"),
        ("hostIPC", "HostIPC"),
    ] {
        if flag(spec, field) {
            checks.forbidden(&path.child(shown), "when `hostUsers` is false");
        }
    }
}

fn host_aliases(checks: &mut Checks, spec: &Value, path: &Path) {
    for (i, alias) in list(spec, "hostAliases").iter().enumerate() {
        let path = path.index(i);
        ip(
            checks,
            alias.get("ip").unwrap_or(&Value::Null),
            &path.child("ip"),
        );
        for (j, host) in list(alias, "hostnames").iter().enumerate() {
            checks.subdomain(
                &path.child("hostnames").index(j),
                host.as_str().unwrap_or_default(),
            );
        }
    }
}

/// Validates a PodTemplateSpec (`ValidatePodTemplateSpec`).
pub fn validate_template(checks: &mut Checks, template: &Value, path: &Path) {
    let empty = Value::Null;
    let metadata = template.get("metadata").unwrap_or(&empty);
    let spec = template.get("spec").unwrap_or(&empty);
    checks.labels(metadata, "labels", path);
    checks.annotations(metadata, path);
    validate(checks, spec, &path.child("spec"), false);
    if !list(spec, "ephemeralContainers").is_empty() {
        let path = path.child("spec").child("ephemeralContainers");
        checks.forbidden(&path, "ephemeral containers not allowed in pod template");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(change: impl Fn(&mut Value)) -> String {
        let mut spec = json!({
            "terminationGracePeriodSeconds": 30, "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
            "containers": [{
                "name": "a", "image": "a:1", "imagePullPolicy": "Always", "terminationMessagePolicy": "File", "resources": {},
            }],
        });
        change(&mut spec);
        let mut checks = Checks::default();
        validate(&mut checks, &spec, &Path::new("spec"), true);
        let lines: Vec<String> = checks.done().0.iter().map(ToString::to_string).collect();
        lines.join("\n")
    }

    #[test]
    fn messages_are_those_of_kubernetes() {
        type Change = fn(&mut Value);
        let table: &[(Change, &str)] = &[
            (|_| {}, ""),
            (
                |s| s["containers"] = json!([]),
                "spec.containers: Required value",
            ),
            (
                |s| s["containers"][0]["image"] = "".into(),
                "spec.containers[0].image: Required value",
            ),
            (
                |s| s["restartPolicy"] = "Sometimes".into(),
                r#"spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never""#,
            ),
            (
                |s| s["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]),
                r#"spec.containers[0].volumeMounts[0].name: Not found: "v""#,
            ),
            (
                |s| {
                    s["containers"][0]["ports"] =
                        json!([{"containerPort": 70000, "protocol": "TCP"}])
                },
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                |s| {
                    s["containers"][0]["resources"] =
                        json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}})
                },
                r#"spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1"#,
            ),
            (
                |s| {
                    s["containers"][0]["livenessProbe"] =
                        json!({"periodSeconds": 10, "successThreshold": 1})
                },
                "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            ),
            (
                |s| {
                    s["initContainers"] = json!([{
                        "name": "a", "image": "b", "imagePullPolicy": "Always", "terminationMessagePolicy": "File",
                    }])
                },
                r#"spec.initContainers[0].name: Duplicate value: "a""#,
            ),
            (
                |s| s["volumes"] = json!([{"name": "v", "secret": {"secretName": "s"}, "configMap": {"name": "c"}}]),
                "spec.volumes[0].secret: Forbidden: may not specify more than 1 volume type",
            ),
            (
                |s| s["volumes"] = json!([{"name": "v", "secret": {}}]),
                "spec.volumes[0].secret.secretName: Required value",
            ),
            (
                |s| s["tolerations"] = json!([{"operator": "Equal"}]),
                r#"spec.tolerations[0].operator: Invalid value: "Equal": operator must be Exists when `key` is empty, which means "match all values and all keys""#,
            ),
            (
                |s| {
                    s["hostNetwork"] = true.into();
                    s["containers"][0]["ports"] =
                        json!([{"containerPort": 80, "hostPort": 81, "protocol": "TCP"}]);
                },
                "spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true",
            ),
            (
                |s| s["containers"][0]["env"] = json!([{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.phase"}}}]),
                r#"spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: "status.phase": error converting fieldPath: field label not supported: status.phase"#,
            ),
            (
                |s| {
                    s["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}})
                },
                "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
            ),
        ];
        for (change, want) in table {
            assert_eq!(&errors(change), want);
        }
    }
}
