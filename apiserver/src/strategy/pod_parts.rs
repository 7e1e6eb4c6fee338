//! Parts of pods that few pods have: restart rules, resize policies, block devices, resource claims, files as
//! variables, and resources of the pod as a whole.

use std::collections::{BTreeMap, BTreeSet};

use apimachinery::field::{Error, Path};
use apimachinery::names;
use apimachinery::quantity::Quantity;
use serde_json::Value;

use super::check::{Checks, entries, given, list, text};
use super::pod_platform::visit;
use super::resources;

/// Rules after which a container restarts, and what it is sent to stop.
pub fn restarts(checks: &mut Checks, container: &Value, path: &Path) {
    const RULES: usize = 20;
    const CODES: usize = 255;
    let at = path.child("restartPolicy");
    let rules = list(container, "restartPolicyRules");
    match text(container, "restartPolicy") {
        "" if !rules.is_empty() => {
            checks.required(
                &at,
                "must specify restartPolicy when restart rules are used",
            );
        }
        "" | "Always" | "Never" | "OnFailure" => {}
        policy => {
            let policies = ["Always", "Never", "OnFailure"];
            checks.push(Error::not_supported(&at, policy, &policies));
        }
    }
    let at = path.child("restartPolicyRules");
    if rules.len() > RULES {
        checks.push(Error::too_many(&at, rules.len(), RULES));
    }
    for (i, rule) in rules.iter().enumerate() {
        let at = at.index(i);
        const ACTIONS: [&str; 2] = ["Restart", "RestartAllContainers"];
        let action = text(rule, "action");
        if !ACTIONS.contains(&action) {
            checks.push(Error::not_supported(&at.child("action"), action, &ACTIONS));
        }
        let at = at.child("exitCodes");
        let Some(codes) = given(rule, "exitCodes") else {
            checks.required(&at, "must be specified");
            continue;
        };
        let operator = text(codes, "operator");
        if !["In", "NotIn"].contains(&operator) {
            let path = at.child("operator");
            checks.push(Error::not_supported(&path, operator, &["In", "NotIn"]));
        }
        let values = list(codes, "values").len();
        if values > CODES {
            checks.push(Error::too_many(&at.child("values"), values, CODES));
        }
    }
}

/// The signals of Linux by their names, real-time ones included.
fn is_signal(name: &str) -> bool {
    const PLAIN: [&str; 36] = [
        "SIGABRT",
        "SIGALRM",
        "SIGBUS",
        "SIGCHLD",
        "SIGCLD",
        "SIGCONT",
        "SIGFPE",
        "SIGHUP",
        "SIGILL",
        "SIGINT",
        "SIGIO",
        "SIGIOT",
        "SIGKILL",
        "SIGPIPE",
        "SIGPOLL",
        "SIGPROF",
        "SIGPWR",
        "SIGQUIT",
        "SIGSEGV",
        "SIGSTKFLT",
        "SIGSTOP",
        "SIGSYS",
        "SIGTERM",
        "SIGTRAP",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGURG",
        "SIGUSR1",
        "SIGUSR2",
        "SIGVTALRM",
        "SIGWINCH",
        "SIGXCPU",
        "SIGXFSZ",
        "SIGRTMIN",
        "SIGRTMAX",
    ];
    let offset = |prefix: &str, most: u32| {
        let number = name.strip_prefix(prefix).filter(|n| !n.starts_with('0'));
        number
            .and_then(|n| n.parse::<u32>().ok())
            .is_some_and(|n| (1..=most).contains(&n))
    };
    PLAIN.contains(&name) || offset("SIGRTMIN+", 15) || offset("SIGRTMAX-", 14)
}

pub fn stop_signal(checks: &mut Checks, signal: &str, os: &str, path: &Path) {
    match os {
        "" => checks.forbidden(
            path,
            "may not be set for containers with empty `spec.os.name`",
        ),
        "windows" if !["SIGKILL", "SIGTERM"].contains(&signal) => {
            checks.push(Error::not_supported(path, signal, &["SIGKILL", "SIGTERM"]));
        }
        "linux" if !is_signal(signal) => {
            checks.push(Error::not_supported(path, signal, &[]));
        }
        _ => {}
    }
}

pub fn resize_policies(checks: &mut Checks, container: &Value, never: bool, path: &Path) {
    let policies = list(container, "resizePolicy");
    for (i, policy) in policies.iter().enumerate() {
        let (name, restart) = (text(policy, "resourceName"), text(policy, "restartPolicy"));
        if policies[..i]
            .iter()
            .any(|p| text(p, "resourceName") == name)
        {
            checks.push(Error::duplicate(&path.index(i), name));
        }
        checks.one_of(path, name, &["cpu", "memory"]);
        checks.one_of(path, restart, &["NotRequired", "RestartContainer"]);
        if never && restart != "NotRequired" {
            let why = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            checks.invalid(path, restart, why);
        }
    }
}

/// The block devices of a container. `volumes` are the sound volumes of the pod.
pub fn devices(checks: &mut Checks, container: &Value, volumes: &[Value], path: &Path) {
    let (devices, mounts) = (
        list(container, "volumeDevices"),
        list(container, "volumeMounts"),
    );
    for (i, device) in devices.iter().enumerate() {
        let at = path.index(i);
        let (name, target) = (text(device, "name"), text(device, "devicePath"));
        let volume = volumes.iter().find(|v| text(v, "name") == name);
        if name.is_empty() {
            checks.required(&at.child("name"), "");
        } else if devices[..i].iter().any(|d| text(d, "name") == name) {
            checks.invalid(&at.child("name"), name, "must be unique");
        }
        match volume {
            None => checks.push(Error::not_found(&at.child("name"), name)),
            Some(volume) => {
                let kinds = ["persistentVolumeClaim", "ephemeral"];
                if kinds.iter().all(|kind| given(volume, kind).is_none()) {
                    let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                    checks.invalid(&at.child("name"), name, why);
                }
            }
        }
        let at_path = at.child("devicePath");
        if target.is_empty() {
            checks.required(&at_path, "");
        } else if devices[..i].iter().any(|d| text(d, "devicePath") == target) {
            checks.invalid(&at_path, target, "must be unique");
        }
        if target.split('/').any(|part| part == "..") {
            checks.invalid(&at_path, target, "can not contain backsteps ('..')");
        }
        if mounts.iter().any(|m| text(m, "name") == name) {
            let why = "must not already exist in volumeMounts";
            checks.invalid(&at.child("name"), name, why);
        }
        if mounts.iter().any(|m| text(m, "mountPath") == target) {
            let why = "must not already exist as a path in volumeMounts";
            checks.invalid(&at_path, target, why);
        }
    }
}

pub fn recursive_read_only(checks: &mut Checks, mount: &Value, path: &Path) {
    match text(mount, "recursiveReadOnly") {
        "" | "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !super::check::flag(mount, "readOnly") {
                checks.forbidden(path, "may only be specified when readOnly is true");
            }
            if !matches!(text(mount, "mountPropagation"), "" | "None") {
                let why = "may only be specified when mountPropagation is None or not specified";
                checks.forbidden(path, why);
            }
        }
        other => {
            let modes = ["Disabled", "Enabled", "IfPossible"];
            checks.push(Error::not_supported(path, other, &modes));
        }
    }
}

/// A variable that a file of an emptyDir holds.
pub fn file_key(checks: &mut Checks, reference: &Value, path: &Path) {
    match text(reference, "key") {
        "" => checks.required(&path.child("key"), ""),
        key => checks.each(&path.child("key"), key, names::env_var_name(key)),
    }
    match text(reference, "volumeName") {
        "" => checks.required(&path.child("volumeName"), ""),
        name => checks.label(&path.child("volumeName"), name),
    }
    match text(reference, "path") {
        "" => checks.required(&path.child("path"), ""),
        file => super::volume::no_backsteps(checks, file, &path.child("path")),
    }
}

fn file_key_volumes(checks: &mut Checks, spec: &Value, path: &Path) {
    for (container, path) in visit(spec, path) {
        for (i, variable) in list(container, "env").iter().enumerate() {
            let Some(reference) = given(&variable["valueFrom"], "fileKeyRef") else {
                continue;
            };
            let path = path.child("env").index(i).child("valueFrom");
            let path = path.child("fileKeyRef").child("volumeName");
            let name = text(reference, "volumeName");
            match list(spec, "volumes")
                .iter()
                .find(|v| text(v, "name") == name)
            {
                None => checks.push(Error::not_found(&path, name)),
                Some(volume) if given(volume, "emptyDir").is_none() => {
                    checks.invalid(&path, name, "referenced volume must be of type emptyDir");
                }
                Some(_) => {}
            }
        }
    }
}

/// The resource claims of a pod, and those that its containers use.
fn claims(checks: &mut Checks, spec: &Value, path: &Path) {
    let claims = list(spec, "resourceClaims");
    for (i, claim) in claims.iter().enumerate() {
        let path = path.child("resourceClaims").index(i);
        let name = text(claim, "name");
        if name.is_empty() {
            checks.required(&path.child("name"), "");
        } else if claims[..i].iter().any(|c| text(c, "name") == name) {
            checks.push(Error::duplicate(&path.child("name"), name));
        } else {
            checks.label(&path.child("name"), name);
        }
        let fields = ["resourceClaimName", "resourceClaimTemplateName"];
        let set: Vec<&str> = fields
            .into_iter()
            .filter(|f| given(claim, f).is_some())
            .collect();
        if set.len() == 2 {
            let why = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
            checks.invalid(&path, claim.clone(), why);
        } else if set.is_empty() {
            let why = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
            checks.invalid(&path, claim.clone(), why);
        }
        for field in set {
            checks.subdomain(&path.child(field), text(claim, field));
        }
    }
    let known: BTreeSet<&str> = claims
        .iter()
        .map(|c| text(c, "name"))
        .filter(|n| !n.is_empty())
        .collect();
    for (container, path) in visit(spec, path) {
        let path = path.child("resources").child("claims");
        used_claims(
            checks,
            list(&container["resources"], "claims"),
            &known,
            &path,
        );
    }
}

fn used_claims(checks: &mut Checks, used: &[Value], known: &BTreeSet<&str>, path: &Path) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (i, claim) in used.iter().enumerate() {
        let path = path.index(i);
        let (name, request) = (text(claim, "name"), text(claim, "request"));
        if name.is_empty() {
            checks.required(&path, "");
            continue;
        }
        if !request.is_empty() {
            checks.label(&path.child("request"), request);
        }
        // A claim as a whole covers each of its requests.
        let overlaps = |(n, r): &&(&str, &str)| {
            *n == name && (*r == request || r.is_empty() || request.is_empty())
        };
        if seen.iter().any(|s| overlaps(&s)) {
            let shown = match request {
                "" => name.to_owned(),
                _ if seen.contains(&(name, "")) => name.to_owned(),
                _ => format!("{name}/{request}"),
            };
            checks.push(Error::duplicate(&path, shown));
        }
        seen.push((name, request));
        if !known.contains(name) {
            let mut error = Error::not_found(&path, name);
            error.detail = match known.is_empty() {
                true => "must be one of the names in pod.spec.resourceClaims which is empty".into(),
                false => {
                    let names: Vec<&str> = known.iter().copied().collect();
                    format!(
                        "must be one of the names in pod.spec.resourceClaims: {}",
                        names.join(", ")
                    )
                }
            };
            checks.push(error);
        }
    }
}

type Amounts<'a> = BTreeMap<&'a str, Quantity>;

fn amounts<'a>(container: &'a Value, field: &str) -> Amounts<'a> {
    let amounts = entries(&container["resources"], field);
    amounts
        .filter_map(|(name, v)| Some((name, resources::quantity(Some(v))?)))
        .collect()
}

/// What the containers of a pod need at the same time, sidecars included.
fn aggregate<'a>(spec: &'a Value, field: &str) -> Amounts<'a> {
    fn add<'a>(into: &mut Amounts<'a>, more: Amounts<'a>) {
        for (name, amount) in more {
            let sum = into.get(name).map_or(amount, |known| *known + amount);
            into.insert(name, sum);
        }
    }
    let mut total = Amounts::new();
    for container in list(spec, "containers") {
        add(&mut total, amounts(container, field));
    }
    let (mut sidecars, mut highest) = (Amounts::new(), Amounts::new());
    for container in list(spec, "initContainers") {
        let mut needed = amounts(container, field);
        if text(container, "restartPolicy") == "Always" {
            add(&mut total, needed.clone());
            add(&mut sidecars, needed);
            needed = sidecars.clone();
        } else {
            add(&mut needed, sidecars.clone());
        }
        for (name, amount) in needed {
            let known = highest.entry(name).or_insert(amount);
            *known = (*known).max(amount);
        }
    }
    for (name, amount) in highest {
        let known = total.entry(name).or_insert(amount);
        *known = (*known).max(amount);
    }
    total
}

/// Resources of a pod as a whole must hold those of its containers.
fn pod_level(checks: &mut Checks, spec: &Value, path: &Path) {
    let Some(whole) = given(spec, "resources") else {
        return;
    };
    let path = path.child("resources");
    if text(&spec["os"], "name") == "windows" {
        checks.forbidden(&path, "may not be set for a windows pod");
        return;
    }
    if given(whole, "claims").is_some() {
        let why = "claims may not be set for Resources at pod-level";
        checks.forbidden(&path.child("claims"), why);
    }
    resources::pod(checks, whole, &path);
    for field in ["requests", "limits"] {
        for (name, needed) in aggregate(spec, field) {
            let granted = resources::quantity(whole[field].get(name));
            let counts = field == "requests" || name.starts_with("hugepages-");
            if let Some(granted) = granted.filter(|g| counts && needed > *g) {
                let why = format!(
                    "must be greater than or equal to aggregate container {field} of {needed}"
                );
                checks.invalid(&path.child(field).key(name), granted.to_string(), &why);
            }
        }
    }
    for (i, container) in list(spec, "containers").iter().enumerate() {
        for (name, limit) in amounts(container, "limits") {
            let granted = resources::quantity(whole["limits"].get(name));
            if let Some(granted) = granted.filter(|g| limit > *g) {
                let path = path.child("containers").index(i).key(name).child("limits");
                let why = format!("must be less than or equal to pod limits of {granted}");
                checks.invalid(&path, limit.to_string(), &why);
            }
        }
    }
}

/// The rare parts of a pod spec, as a whole.
pub fn validate(checks: &mut Checks, spec: &Value, path: &Path) {
    claims(checks, spec, path);
    pod_level(checks, spec, path);
    if given(spec, "overhead").is_some() {
        let limits = serde_json::json!({"limits": spec["overhead"]});
        resources::container(checks, &limits, &path.child("overhead"));
    }
    if spec.get("hostUsers") == Some(&Value::Bool(false)) {
        for (container, path) in visit(spec, path) {
            if !list(container, "volumeDevices").is_empty() {
                checks.forbidden(&path.child("volumeDevices"), "when `hostUsers` is false");
            }
        }
    }
    let policy = text(&spec["securityContext"], "seLinuxChangePolicy");
    if !policy.is_empty() && !["MountOption", "Recursive"].contains(&policy) {
        let path = path.child("securityContext").child("seLinuxChangePolicy");
        checks.push(Error::not_supported(
            &path,
            policy,
            &["MountOption", "Recursive"],
        ));
    }
    file_key_volumes(checks, spec, path);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(spec: &Value) -> Vec<String> {
        let mut checks = Checks::default();
        validate(&mut checks, spec, &Path::new("spec"));
        checks.done().0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn parts() {
        let uses = |claim: Value| json!({"resourceClaims": [{"name": "a", "resourceClaimName": "c"}], "containers": [{"resources": {"claims": [claim]}}]});
        #[rustfmt::skip]
        let table: &[(Value, &[&str])] = &[
            (uses(json!({"name": "a"})), &[]),
            (uses(json!({"name": "b"})), &["spec.containers[0].resources.claims[0]: Not found: \"b\": must be one of the names in pod.spec.resourceClaims: a"]),
            (json!({"resourceClaims": [{"name": "a"}]}), &["spec.resourceClaims[0]: Invalid value: {\"name\":\"a\"}: must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"]),
            (json!({"resources": {"requests": {"cpu": "1"}}, "containers": [{"resources": {"requests": {"cpu": "700m"}}}, {"resources": {"requests": {"cpu": "600m"}}}]}), &["spec.resources.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate container requests of 1300m"]),
            (json!({"overhead": {"gpu": "1"}}), &["spec.overhead.limits[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified", "spec.overhead.limits[gpu]: Invalid value: \"gpu\": must be a standard resource for containers"]),
            (json!({"containers": [{"env": [{"name": "A", "valueFrom": {"fileKeyRef": {"volumeName": "v"}}}]}]}), &["spec.containers[0].env[0].valueFrom.fileKeyRef.volumeName: Not found: \"v\""]),
        ];
        for (spec, want) in table {
            assert_eq!(errors(spec), *want, "{spec}");
        }
    }

    #[test]
    fn containers() {
        let check = |check: &dyn Fn(&mut Checks)| -> Vec<String> {
            let mut checks = Checks::default();
            check(&mut checks);
            checks.done().0.iter().map(ToString::to_string).collect()
        };
        let path = Path::new("c");
        let rules = json!({"restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]});
        assert!(check(&|c| restarts(c, &rules, &path)).is_empty());
        let rules = json!({"restartPolicyRules": [{"action": "Stop"}]});
        assert_eq!(check(&|c| restarts(c, &rules, &path)).len(), 3);
        let volumes = [
            json!({"name": "v", "emptyDir": {}}),
            json!({"name": "p", "persistentVolumeClaim": {"claimName": "p"}}),
        ];
        let device =
            |name: &str| json!({"volumeDevices": [{"name": name, "devicePath": "/dev/x"}]});
        assert!(check(&|c| devices(c, &device("p"), &volumes, &path)).is_empty());
        assert_eq!(
            check(&|c| devices(c, &device("v"), &volumes, &path)).len(),
            1
        );
        assert_eq!(
            check(&|c| devices(c, &device("x"), &volumes, &path)),
            ["c[0].name: Not found: \"x\""]
        );
        for (signal, os, count) in [
            ("SIGTERM", "linux", 0),
            ("SIGRTMIN+15", "linux", 0),
            ("SIGRTMIN+16", "linux", 1),
            ("SIGHUP", "windows", 1),
            ("SIGTERM", "", 1),
        ] {
            assert_eq!(
                check(&|c| stop_signal(c, signal, os, &path)).len(),
                count,
                "{signal} {os}"
            );
        }
    }
}
