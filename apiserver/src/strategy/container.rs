//! Validation of containers: names, ports, environment, mounts, probes, resources, security context.
//! Follows `pkg/apis/core/validation`, in its order and with its messages.

use std::collections::HashSet;

use apimachinery::field::{Error, Path};
use apimachinery::names;
use serde_json::Value;

use super::check::{Checks, flag, given, integer, list, text};
use super::volume::{descending_path, field_ref, resource_field_ref};
use super::{pod_parts, resources};

/// What validation of a container needs to know about its pod.
pub struct Pod<'a> {
    /// Names of the volumes, and whether each may be a block device.
    pub volumes: HashSet<&'a str>,
    /// The volumes themselves.
    pub sources: &'a [Value],
    /// Whether nothing in the pod restarts.
    pub never: bool,
    pub grace_period: Option<i64>,
    pub host_users: bool,
    pub os: &'a str,
}

/// The regular containers of a pod.
pub fn containers(checks: &mut Checks, spec: &Value, pod: &Pod<'_>, path: &Path) {
    let containers = list(spec, "containers");
    if containers.is_empty() {
        checks.required(path, "");
        return;
    }
    let mut seen = HashSet::new();
    for (i, container) in containers.iter().enumerate() {
        let path = path.index(i);
        common(checks, container, pod, &path);
        unique_name(checks, container, &mut seen, &path);
        lifecycle_and_probes(checks, container, pod, &path);
        pod_parts::restarts(checks, container, &path);
    }
    host_ports(checks, containers, path);
}

/// The init containers: names unique among both kinds, probes only for sidecars.
pub fn init_containers(checks: &mut Checks, spec: &Value, pod: &Pod<'_>, path: &Path) {
    let mut seen: HashSet<&str> = list(spec, "containers")
        .iter()
        .map(|c| text(c, "name"))
        .collect();
    for (i, container) in list(spec, "initContainers").iter().enumerate() {
        let at = path.index(i);
        common(checks, container, pod, &at);
        unique_name(checks, container, &mut seen, &at);
        host_ports(checks, std::slice::from_ref(container), path);
        pod_parts::restarts(checks, container, &at);
        let sidecar = text(container, "restartPolicy") == "Always";
        for (j, policy) in list(container, "resizePolicy").iter().enumerate() {
            if !sidecar && text(policy, "restartPolicy") == "RestartContainer" {
                let path = at.child("resizePolicy").index(j).child("restartPolicy");
                let why = "must not be set to 'RestartContainer' for non-sidecar initContainers";
                checks.invalid(&path, "RestartContainer", why);
            }
        }
        if text(container, "restartPolicy") == "Always" {
            lifecycle_and_probes(checks, container, pod, &at);
            continue;
        }
        for field in [
            "lifecycle",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
        ] {
            if given(container, field).is_some() {
                checks.forbidden(
                    &at.child(field),
                    "may not be set for init containers without restartPolicy=Always",
                );
            }
        }
    }
}

/// Ephemeral containers: what a debugging container may not have is refused.
pub fn ephemeral_containers(checks: &mut Checks, spec: &Value, pod: &Pod<'_>, path: &Path) {
    const FORBIDDEN: [&str; 7] = [
        "ports",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
        "resources",
        "resizePolicy",
    ];
    let others = list(spec, "containers")
        .iter()
        .chain(list(spec, "initContainers"));
    let mut seen: HashSet<&str> = others.clone().map(|c| text(c, "name")).collect();
    for (i, container) in list(spec, "ephemeralContainers").iter().enumerate() {
        let path = path.index(i);
        common(checks, container, pod, &path);
        unique_name(checks, container, &mut seen, &path);
        for field in FORBIDDEN {
            let empty = Value::Null;
            if !super::check::same(container.get(field).unwrap_or(&empty), &empty) {
                checks.forbidden(
                    &path.child(field),
                    "cannot be set for an Ephemeral Container",
                );
            }
        }
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !others.clone().any(|c| text(c, "name") == target) {
            checks.push(Error::not_found(&path.child("targetContainerName"), target));
        }
    }
}

fn unique_name<'a>(
    checks: &mut Checks,
    container: &'a Value,
    seen: &mut HashSet<&'a str>,
    path: &Path,
) {
    let name = text(container, "name");
    if !seen.insert(name) {
        checks.push(Error::duplicate(&path.child("name"), name));
    }
}

fn common(checks: &mut Checks, container: &Value, pod: &Pod<'_>, path: &Path) {
    match text(container, "name") {
        "" => checks.required(&path.child("name"), ""),
        name => checks.label(&path.child("name"), name),
    }
    if text(container, "image").is_empty() {
        checks.required(&path.child("image"), "");
    }
    let policy = text(container, "terminationMessagePolicy");
    checks.one_of(
        &path.child("terminationMessagePolicy"),
        policy,
        &["File", "FallbackToLogsOnError"],
    );
    ports(checks, container, &path.child("ports"));
    env(checks, container, &path.child("env"));
    env_from(checks, container, &path.child("envFrom"));
    mounts(checks, container, pod, &path.child("volumeMounts"));
    let at = path.child("volumeDevices");
    pod_parts::devices(checks, container, pod.sources, &at);
    let policy = text(container, "imagePullPolicy");
    checks.one_of(
        &path.child("imagePullPolicy"),
        policy,
        &["Always", "IfNotPresent", "Never"],
    );
    if let Some(requirements) = given(container, "resources") {
        resources::container(checks, requirements, &path.child("resources"));
    }
    let at = path.child("resizePolicy");
    pod_parts::resize_policies(checks, container, pod.never, &at);
    if let Some(context) = given(container, "securityContext") {
        security_context(checks, context, pod, &path.child("securityContext"));
    }
}

fn ports(checks: &mut Checks, container: &Value, path: &Path) {
    let mut seen = HashSet::new();
    for (i, port) in list(container, "ports").iter().enumerate() {
        let path = path.index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            let messages = names::port_name(name);
            if messages.is_empty() && !seen.insert(name) {
                checks.push(Error::duplicate(&path.child("name"), name));
            }
            checks.each(&path.child("name"), name, messages);
        }
        match integer(port, "containerPort").unwrap_or(0) {
            0 => checks.required(&path.child("containerPort"), ""),
            number => checks.port(&path.child("containerPort"), number),
        }
        match integer(port, "hostPort").unwrap_or(0) {
            0 => {}
            number => checks.port(&path.child("hostPort"), number),
        }
        checks.one_of(
            &path.child("protocol"),
            text(port, "protocol"),
            &["SCTP", "TCP", "UDP"],
        );
    }
}

fn host_ports(checks: &mut Checks, containers: &[Value], path: &Path) {
    let mut seen = HashSet::new();
    for (c, container) in containers.iter().enumerate() {
        for (p, port) in list(container, "ports").iter().enumerate() {
            let number = integer(port, "hostPort").unwrap_or(0);
            let key = format!(
                "{}/{}/{number}",
                text(port, "protocol"),
                text(port, "hostIP")
            );
            if number != 0 && !seen.insert(key.clone()) {
                checks.push(Error::duplicate(
                    &path.index(c).child("ports").index(p).child("hostPort"),
                    key,
                ));
            }
        }
    }
}

/// Environment variable names may be any printable ASCII but `=`.
fn env_name(name: &str) -> Vec<String> {
    let printable = |c: u8| (b' '..=b'~').contains(&c) && c != b'=';
    if name.bytes().all(printable) {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".into()]
}

fn env(checks: &mut Checks, container: &Value, path: &Path) {
    for (i, variable) in list(container, "env").iter().enumerate() {
        // There may be thousands, nearly all in order: the path is only put together for one that is not.
        let at = || path.index(i).child("name");
        match text(variable, "name") {
            "" => checks.required(&at(), ""),
            name => {
                let messages = env_name(name);
                if !messages.is_empty() {
                    checks.each(&at(), name, messages);
                }
            }
        }
        let Some(from) = given(variable, "valueFrom") else {
            continue;
        };
        let path = path.index(i).child("valueFrom");
        let mut sources = 0;
        if let Some(reference) = given(from, "fieldRef") {
            sources += 1;
            field_ref(checks, reference, true, &path.child("fieldRef"));
        }
        if let Some(reference) = given(from, "resourceFieldRef") {
            sources += 1;
            resource_field_ref(checks, reference, false, &path.child("resourceFieldRef"));
        }
        for source in ["configMapKeyRef", "secretKeyRef"] {
            let Some(reference) = given(from, source) else {
                continue;
            };
            sources += 1;
            let path = path.child(source);
            checks.subdomain(&path.child("name"), text(reference, "name"));
            match text(reference, "key") {
                "" => checks.required(&path.child("key"), ""),
                key => checks.each(&path.child("key"), key, names::config_map_key(key)),
            }
        }
        if let Some(reference) = given(from, "fileKeyRef") {
            sources += 1;
            pod_parts::file_key(checks, reference, &path.child("fileKeyRef"));
        }
        if sources == 0 {
            let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
            checks.invalid(&path, "", why);
        } else if !text(variable, "value").is_empty() {
            checks.invalid(&path, "", "may not be specified when `value` is not empty");
        } else if sources > 1 {
            checks.invalid(
                &path,
                "",
                "may not have more than one field specified at a time",
            );
        }
    }
}

fn env_from(checks: &mut Checks, container: &Value, path: &Path) {
    for (i, source) in list(container, "envFrom").iter().enumerate() {
        let at = path.index(i);
        let prefix = text(source, "prefix");
        checks.each(&at.child("prefix"), prefix, env_name(prefix));
        let mut sources = 0;
        for kind in ["configMapRef", "secretRef"] {
            let Some(reference) = given(source, kind) else {
                continue;
            };
            sources += 1;
            match text(reference, "name") {
                "" => checks.required(&at.child(kind).child("name"), ""),
                name => checks.subdomain(&at.child(kind).child("name"), name),
            }
        }
        match sources {
            0 => checks.invalid(
                path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            ),
            1 => {}
            _ => checks.invalid(
                path,
                "",
                "may not have more than one field specified at a time",
            ),
        }
    }
}

fn mounts(checks: &mut Checks, container: &Value, pod: &Pod<'_>, path: &Path) {
    let mut seen = HashSet::new();
    let devices = list(container, "volumeDevices");
    for (i, mount) in list(container, "volumeMounts").iter().enumerate() {
        let at = path.index(i);
        let (name, mount_path) = (text(mount, "name"), text(mount, "mountPath"));
        if name.is_empty() {
            checks.required(&at.child("name"), "");
        }
        if !pod.volumes.contains(name) {
            checks.push(Error::not_found(&at.child("name"), name));
        }
        if mount_path.is_empty() {
            checks.required(&at.child("mountPath"), "");
        }
        if !seen.insert(mount_path) {
            checks.invalid(&at.child("mountPath"), mount_path, "must be unique");
        }
        if devices.iter().any(|d| text(d, "name") == name) {
            checks.invalid(
                &at.child("name"),
                name,
                "must not already exist in volumeDevices",
            );
        }
        if devices.iter().any(|d| text(d, "devicePath") == mount_path) {
            checks.invalid(
                &at.child("mountPath"),
                mount_path,
                "must not already exist as a path in volumeDevices",
            );
        }
        for field in ["subPath", "subPathExpr"] {
            let sub_path = text(mount, field);
            if !sub_path.is_empty() {
                descending_path(checks, sub_path, &path.child(field));
            }
        }
        if !text(mount, "subPath").is_empty() && !text(mount, "subPathExpr").is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            checks.invalid(&at.child("subPathExpr"), text(mount, "subPathExpr"), why);
        }
        propagation(checks, container, mount, &path.child("mountPropagation"));
        pod_parts::recursive_read_only(checks, mount, &path.child("recursiveReadOnly"));
    }
}

fn propagation(checks: &mut Checks, container: &Value, mount: &Value, path: &Path) {
    let mode = text(mount, "mountPropagation");
    if mode.is_empty() {
        return;
    }
    checks.one_of(path, mode, &["Bidirectional", "HostToContainer", "None"]);
    let privileged = given(container, "securityContext").is_some_and(|c| flag(c, "privileged"));
    if mode == "Bidirectional" && !privileged {
        checks.forbidden(
            path,
            "Bidirectional mount propagation is available only to privileged containers",
        );
    }
}

fn lifecycle_and_probes(checks: &mut Checks, container: &Value, pod: &Pod<'_>, path: &Path) {
    if let Some(lifecycle) = given(container, "lifecycle") {
        let path = path.child("lifecycle");
        for hook in ["postStart", "preStop"] {
            if let Some(action) = given(lifecycle, hook) {
                handler(checks, action, pod, &path.child(hook));
            }
        }
        if let Some(signal) = lifecycle.get("stopSignal").and_then(Value::as_str) {
            pod_parts::stop_signal(checks, signal, pod.os, &path.child("stopSignal"));
        }
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = given(container, kind) {
            probe_of(checks, probe, kind, pod, &path.child(kind));
        }
    }
}

fn probe_of(checks: &mut Checks, probe: &Value, kind: &str, pod: &Pod<'_>, path: &Path) {
    handler(checks, probe, pod, path);
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        checks.not_negative(probe, field, path);
    }
    let grace = integer(probe, "terminationGracePeriodSeconds");
    if let Some(seconds) = grace.filter(|s| *s <= 0) {
        checks.invalid(
            &path.child("terminationGracePeriodSeconds"),
            seconds,
            "must be greater than 0",
        );
    }
    if kind == "readinessProbe" {
        if let Some(seconds) = grace {
            let path = path.child("terminationGracePeriodSeconds");
            checks.invalid(&path, seconds, "must not be set for readinessProbes");
        }
    } else if let Some(threshold) = integer(probe, "successThreshold").filter(|t| *t != 1) {
        checks.invalid(&path.child("successThreshold"), threshold, "must be 1");
    }
}

fn handler(checks: &mut Checks, action: &Value, pod: &Pod<'_>, path: &Path) {
    let mut handlers = 0;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let Some(handler) = given(action, kind) else {
            continue;
        };
        let path = path.child(kind);
        handlers += 1;
        if handlers > 1 {
            checks.forbidden(&path, "may not specify more than 1 handler type");
            continue;
        }
        match kind {
            "exec" if list(handler, "command").is_empty() => {
                checks.required(&path.child("command"), "")
            }
            "exec" => {}
            "httpGet" => http_get(checks, handler, &path),
            "sleep" => {
                let seconds = integer(handler, "seconds").unwrap_or(0);
                if let Some(grace) = pod.grace_period.filter(|g| seconds < 0 || seconds > *g) {
                    let why = format!(
                        "must be non-negative and less than terminationGracePeriodSeconds ({grace})"
                    );
                    checks.invalid(&path, seconds, &why);
                }
            }
            _ => checks.port_or_name(
                &path.child("port"),
                handler.get("port").unwrap_or(&Value::Null),
            ),
        }
    }
    if handlers == 0 {
        checks.required(path, "must specify a handler type");
    }
}

fn http_get(checks: &mut Checks, get: &Value, path: &Path) {
    if text(get, "path").is_empty() {
        checks.required(&path.child("path"), "");
    }
    checks.port_or_name(&path.child("port"), get.get("port").unwrap_or(&Value::Null));
    let scheme = text(get, "scheme");
    if !["HTTP", "HTTPS"].contains(&scheme) {
        checks.push(Error::not_supported(
            &path.child("scheme"),
            scheme,
            &["HTTP", "HTTPS"],
        ));
    }
    for header in list(get, "httpHeaders") {
        let name = text(header, "name");
        checks.each(
            &path.child("httpHeaders"),
            name,
            names::http_header_name(name),
        );
    }
}

fn security_context(checks: &mut Checks, context: &Value, pod: &Pod<'_>, path: &Path) {
    for field in ["runAsUser", "runAsGroup"] {
        user_or_group(checks, context, field, path);
    }
    let proc_mount = text(context, "procMount");
    if !proc_mount.is_empty() {
        checks.one_of(
            &path.child("procMount"),
            proc_mount,
            &["Default", "Unmasked"],
        );
        if pod.host_users && proc_mount == "Unmasked" {
            checks.invalid(
                &path.child("procMount"),
                proc_mount,
                "`hostUsers` must be false to use `Unmasked`",
            );
        }
    }
    profiles(checks, context, path);
    if context.get("allowPrivilegeEscalation") == Some(&Value::Bool(false)) {
        if flag(context, "privileged") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            checks.invalid(path, context.clone(), why);
        }
        let added = context
            .get("capabilities")
            .map_or(&[][..], |c| list(c, "add"));
        if added.iter().any(|c| c == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            checks.invalid(path, context.clone(), why);
        }
    }
}

/// User and group ids are 31 bits.
pub fn user_or_group(checks: &mut Checks, context: &Value, field: &str, path: &Path) {
    if let Some(id) = integer(context, field).filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        checks.invalid(
            &path.child(field),
            id,
            &names::inclusive_range(0, i64::from(i32::MAX)),
        );
    }
}

/// The seccomp and AppArmor profiles of a pod or container.
pub fn profiles(checks: &mut Checks, context: &Value, path: &Path) {
    for field in ["seccompProfile", "appArmorProfile"] {
        let Some(profile) = given(context, field) else {
            continue;
        };
        let path = path.child(field);
        let kind = text(profile, "type");
        checks.one_of(
            &path.child("type"),
            kind,
            &["Localhost", "RuntimeDefault", "Unconfined"],
        );
        let local = text(profile, "localhostProfile");
        let what = if field == "seccompProfile" {
            "seccomp"
        } else {
            "AppArmor"
        };
        if kind == "Localhost" && local.is_empty() {
            checks.required(
                &path.child("localhostProfile"),
                &format!("must be set when {what} type is Localhost"),
            );
        } else if kind != "Localhost" && !local.is_empty() {
            let why = format!("can only be set when {what} type is Localhost");
            checks.invalid(&path.child("localhostProfile"), profile.clone(), &why);
        } else if !local.is_empty() && field == "seccompProfile" {
            descending_path(checks, local, &path.child("localhostProfile"));
        }
    }
}
