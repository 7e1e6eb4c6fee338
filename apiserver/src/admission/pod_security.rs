//! PodSecurity: the Pod Security Standards, chosen per namespace by labels (`pod-security.kubernetes.io/enforce`, `warn`).
//!
//! Each check looks at a whole pod and says what is wrong and with which containers, in Kubernetes' words.

use std::collections::BTreeSet;

use apimachinery::resource::Resource;
use apimachinery::status::Result;
use futures::future::BoxFuture;
use serde_json::Value;

use super::{Attributes, Operation, Plugin, cached, forbidden, is_pod};
use crate::registry::Registry;
use crate::strategy::check::{flag, given, integer, list, same, text};

pub struct PodSecurity;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Level {
    Baseline,
    Restricted,
}

impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn changes_objects(&self) -> bool {
        false
    }

    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        let write = matches!(operation, Operation::Create | Operation::Update);
        let pod = is_pod(resource) && matches!(subresource, "" | "ephemeralcontainers");
        write && (pod || (subresource.is_empty() && template_path(resource).is_some()))
    }

    fn validate<'a>(
        &'a self,
        a: &'a Attributes<'_>,
        registry: &'a Registry,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let Some((level, version)) = policy(a, registry, "enforce").await? else {
                return Ok(());
            };
            if !is_pod(a.resource)
                || (a.operation == Operation::Update && !significant(a.object, a.old))
            {
                return Ok(());
            }
            match violations(level, &a.object["spec"]) {
                Some(why) => Err(forbidden(
                    a,
                    &format!("violates PodSecurity {:?}: {why}", shown(level, &version)),
                )),
                None => Ok(()),
            }
        })
    }

    /// Warns, for pods and for what makes pods; in this phase, because only it may add warnings.
    fn admit<'a>(
        &'a self,
        a: &'a mut Attributes<'_>,
        registry: &'a Registry,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let Some((level, version)) = policy(a, registry, "warn").await? else {
                return Ok(());
            };
            if a.operation == Operation::Update && !significant(a.object, a.old) {
                return Ok(());
            }
            let path = template_path(a.resource).unwrap_or_default();
            let spec = path.iter().fold(&*a.object, |v, key| &v[*key]);
            if let Some(why) = violations(level, &spec["spec"]) {
                a.warnings.lock().push(format!(
                    "would violate PodSecurity {:?}: {why}",
                    shown(level, &version)
                ));
            }
            Ok(())
        })
    }
}

/// Where a workload keeps its pod template.
fn template_path(resource: &Resource) -> Option<&'static [&'static str]> {
    match (&*resource.group, &*resource.plural) {
        ("", "replicationcontrollers")
        | ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => Some(&["spec", "template"]),
        ("batch", "cronjobs") => Some(&["spec", "jobTemplate", "spec", "template"]),
        ("", "podtemplates") => Some(&["template"]),
        _ => None,
    }
}

/// The level that a namespace's labels ask for, with its version; none where everything is allowed.
async fn policy(
    a: &Attributes<'_>,
    registry: &Registry,
    mode: &str,
) -> Result<Option<(Level, String)>> {
    let Some(namespace) = cached(registry, "", "namespaces", "", a.namespace).await? else {
        return Ok(None);
    };
    let label = |name: &str| {
        namespace
            .labels
            .iter()
            .find(|(k, _)| **k == *name)
            .map(|(_, v)| v.to_string())
    };
    let key = format!("pod-security.kubernetes.io/{mode}");
    let level = match label(&key).as_deref() {
        None | Some("privileged") => return Ok(None),
        Some("baseline") => Level::Baseline,
        Some("restricted") => Level::Restricted,
        // What cannot be read closes when it enforces, and opens when it only warns.
        Some(_) if mode == "enforce" => Level::Restricted,
        Some(_) => return Ok(None),
    };
    let version = label(&format!("{key}-version")).unwrap_or_else(|| "latest".into());
    Ok(Some((level, version)))
}

fn shown(level: Level, version: &str) -> String {
    let level = if level == Level::Baseline {
        "baseline"
    } else {
        "restricted"
    };
    format!("{level}:{version}")
}

/// Only updates that change containers are judged again: a label may come after the pod.
fn significant(new: &Value, old: &Value) -> bool {
    ["containers", "initContainers", "ephemeralContainers"]
        .iter()
        .any(|c| !same(&new["spec"][*c], &old["spec"][*c]))
        || !same(&new["spec"]["template"], &old["spec"]["template"])
        || !same(&new["spec"]["jobTemplate"], &old["spec"]["jobTemplate"])
}

type Finding = Option<(String, String)>;
type Check = fn(&Value) -> Finding;

/// Every finding: `privileged (container "a" must not set ...), host namespaces (hostNetwork=true)`.
fn violations(level: Level, spec: &Value) -> Option<String> {
    const BASELINE: [Check; 11] = [
        app_armor,
        capabilities_baseline,
        host_namespaces,
        host_path_volumes,
        host_ports,
        probe_hosts,
        privileged,
        proc_mount,
        selinux,
        seccomp_baseline,
        sysctls,
    ];
    const RESTRICTED: [Check; 14] = [
        app_armor,
        host_namespaces,
        host_ports,
        probe_hosts,
        privileged,
        proc_mount,
        selinux,
        sysctls,
        allow_privilege_escalation,
        capabilities_restricted,
        restricted_volumes,
        run_as_non_root,
        run_as_user,
        seccomp_restricted,
    ];
    let checks: &[Check] = if level == Level::Baseline {
        &BASELINE
    } else {
        &RESTRICTED
    };
    let findings: Vec<String> = checks
        .iter()
        .filter_map(|check| check(spec))
        .map(|(reason, detail)| {
            if detail.is_empty() {
                reason
            } else {
                format!("{reason} ({detail})")
            }
        })
        .collect();
    (!findings.is_empty()).then(|| findings.join(", "))
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|c| list(spec, c))
}

fn context(owner: &Value) -> &Value {
    owner.get("securityContext").unwrap_or(&Value::Null)
}

fn quoted<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items
        .into_iter()
        .map(|s| format!("{:?}", s.as_ref()))
        .collect();
    items.join(", ")
}

/// `container "a"` or `containers "a", "b"`
fn named(kind: &str, names: &[&str]) -> String {
    format!(
        "{kind}{} {}",
        if names.len() == 1 { "" } else { "s" },
        quoted(names)
    )
}

fn names(spec: &Value, bad: impl Fn(&Value) -> bool) -> Vec<&str> {
    containers(spec)
        .filter(|c| bad(c))
        .map(|c| text(c, "name"))
        .collect()
}

/// The pod and the containers that set something bad: `pod and containers "a", "b"`.
fn setters(spec: &Value, bad: impl Fn(&Value) -> bool) -> Option<String> {
    let mut setters = Vec::new();
    if bad(context(spec)) {
        setters.push("pod".to_owned());
    }
    let containers = names(spec, |c| bad(context(c)));
    if !containers.is_empty() {
        setters.push(named("container", &containers));
    }
    (!setters.is_empty()).then(|| setters.join(" and "))
}

fn finding(reason: &str, detail: String) -> Finding {
    Some((reason.to_owned(), detail))
}

fn added(container: &Value) -> &[Value] {
    context(container)
        .get("capabilities")
        .map_or(&[], |c| list(c, "add"))
}

fn capabilities_baseline(spec: &Value) -> Finding {
    const DEFAULT: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    forbidden_capabilities(spec, &DEFAULT)
        .and_then(|detail| finding("non-default capabilities", detail))
}

fn forbidden_capabilities(spec: &Value, allowed: &[&str]) -> Option<String> {
    let bad = |c: &&Value| !c.as_str().is_some_and(|c| allowed.contains(&c));
    let offenders = names(spec, |c| added(c).iter().any(|c| bad(&c)));
    let capabilities: BTreeSet<&str> = containers(spec)
        .flat_map(added)
        .filter(bad)
        .filter_map(Value::as_str)
        .collect();
    (!offenders.is_empty()).then(|| {
        let who = named("container", &offenders);
        format!(
            "{who} must not include {} in securityContext.capabilities.add",
            quoted(capabilities)
        )
    })
}

fn capabilities_restricted(spec: &Value) -> Finding {
    let drops_all = |c: &Value| {
        context(c)
            .get("capabilities")
            .is_some_and(|c| list(c, "drop").iter().any(|d| d == "ALL"))
    };
    let keeping = names(spec, |c| !drops_all(c));
    let mut details = Vec::new();
    if !keeping.is_empty() {
        let who = named("container", &keeping);
        details.push(format!(
            r#"{who} must set securityContext.capabilities.drop=["ALL"]"#
        ));
    }
    details.extend(forbidden_capabilities(spec, &["NET_BIND_SERVICE"]));
    if details.is_empty() {
        return None;
    }
    finding("unrestricted capabilities", details.join("; "))
}

fn host_namespaces(spec: &Value) -> Finding {
    let used: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|f| flag(spec, f))
        .map(|f| format!("{f}=true"))
        .collect();
    if used.is_empty() {
        None
    } else {
        finding("host namespaces", used.join(", "))
    }
}

fn host_path_volumes(spec: &Value) -> Finding {
    let volumes = list(spec, "volumes")
        .iter()
        .filter(|v| given(v, "hostPath").is_some());
    let volumes: Vec<&str> = volumes.map(|v| text(v, "name")).collect();
    if volumes.is_empty() {
        None
    } else {
        finding("hostPath volumes", named("volume", &volumes))
    }
}

fn host_ports(spec: &Value) -> Finding {
    let port = |p: &Value| integer(p, "hostPort").filter(|p| *p != 0);
    let offenders = names(spec, |c| list(c, "ports").iter().any(|p| port(p).is_some()));
    if offenders.is_empty() {
        return None;
    }
    let ports: BTreeSet<String> = containers(spec)
        .flat_map(|c| list(c, "ports"))
        .filter_map(port)
        .map(|p| p.to_string())
        .collect();
    let uses = if offenders.len() == 1 { "uses" } else { "use" };
    let word = if ports.len() == 1 {
        "hostPort"
    } else {
        "hostPorts"
    };
    let ports = ports.into_iter().collect::<Vec<_>>().join(", ");
    finding(
        "hostPort",
        format!("{} {uses} {word} {ports}", named("container", &offenders)),
    )
}

fn probe_hosts(spec: &Value) -> Finding {
    let hosts = |c: &Value| -> Vec<String> {
        let probes = ["livenessProbe", "readinessProbe", "startupProbe"]
            .into_iter()
            .filter_map(|p| given(c, p));
        let hooks = given(c, "lifecycle").into_iter().flat_map(|l| {
            ["postStart", "preStop"]
                .into_iter()
                .filter_map(move |h| given(l, h))
        });
        let actions = probes.chain(hooks).flat_map(|h| {
            ["httpGet", "tcpSocket"]
                .into_iter()
                .filter_map(move |a| given(h, a))
        });
        actions
            .map(|a| text(a, "host").to_owned())
            .filter(|h| !h.is_empty())
            .collect()
    };
    let offenders = names(spec, |c| !hosts(c).is_empty());
    if offenders.is_empty() {
        return None;
    }
    let all: BTreeSet<String> = containers(spec).flat_map(hosts).collect();
    let uses = if offenders.len() == 1 { "uses" } else { "use" };
    let word = if all.len() == 1 {
        "probe or lifecycle host"
    } else {
        "probe or lifecycle hosts"
    };
    finding(
        "probe or lifecycle host",
        format!(
            "{} {uses} {word} {}",
            named("container", &offenders),
            quoted(all)
        ),
    )
}

fn privileged(spec: &Value) -> Finding {
    let offenders = names(spec, |c| flag(context(c), "privileged"));
    if offenders.is_empty() {
        return None;
    }
    finding(
        "privileged",
        format!(
            "{} must not set securityContext.privileged=true",
            named("container", &offenders)
        ),
    )
}

fn proc_mount(spec: &Value) -> Finding {
    let bad = |c: &Value| !matches!(text(context(c), "procMount"), "" | "Default");
    let offenders = names(spec, bad);
    if offenders.is_empty() {
        return None;
    }
    let types: BTreeSet<&str> = containers(spec)
        .filter(|c| bad(c))
        .map(|c| text(context(c), "procMount"))
        .collect();
    let who = named("container", &offenders);
    finding(
        "procMount",
        format!(
            "{who} must not set securityContext.procMount to {}",
            quoted(types)
        ),
    )
}

fn selinux(spec: &Value) -> Finding {
    const TYPES: [&str; 5] = [
        "",
        "container_t",
        "container_init_t",
        "container_kvm_t",
        "container_engine_t",
    ];
    let options = |c: &Value| given(c, "seLinuxOptions").cloned().unwrap_or_default();
    let bad_type = |o: &Value| !TYPES.contains(&text(o, "type"));
    let bad = |c: &Value| {
        let o = options(c);
        bad_type(&o) || !text(&o, "user").is_empty() || !text(&o, "role").is_empty()
    };
    let who = setters(spec, bad)?;
    let all: Vec<Value> = std::iter::once(context(spec))
        .chain(containers(spec).map(context))
        .map(options)
        .collect();
    let types: BTreeSet<&str> = all
        .iter()
        .filter(|o| bad_type(o))
        .map(|o| text(o, "type"))
        .collect();
    let mut data = Vec::new();
    if !types.is_empty() {
        data.push(named("type", &types.into_iter().collect::<Vec<_>>()));
    }
    for field in ["user", "role"] {
        if all.iter().any(|o| !text(o, field).is_empty()) {
            data.push(format!("{field} may not be set"));
        }
    }
    finding(
        "seLinuxOptions",
        format!(
            "{who} set forbidden securityContext.seLinuxOptions: {}",
            data.join("; ")
        ),
    )
}

/// The profile type, if one is set.
fn profile<'a>(context: &'a Value, field: &str) -> Option<&'a str> {
    Some(text(given(context, field)?, "type")).filter(|t| !t.is_empty())
}

fn confined(kind: &str) -> bool {
    matches!(kind, "RuntimeDefault" | "Localhost")
}

fn app_armor(spec: &Value) -> Finding {
    let bad = |c: &Value| profile(c, "appArmorProfile").is_some_and(|t| !confined(t));
    let who = setters(spec, bad)?;
    let kinds = bad_profiles(spec, "appArmorProfile");
    let reason = if kinds.len() == 1 {
        "forbidden AppArmor profile"
    } else {
        "forbidden AppArmor profiles"
    };
    finding(
        reason,
        format!(
            "{who} must not set AppArmor profile type to {}",
            quoted(kinds)
        ),
    )
}

fn bad_profiles<'a>(spec: &'a Value, field: &str) -> BTreeSet<&'a str> {
    let all = std::iter::once(context(spec)).chain(containers(spec).map(context));
    all.filter_map(|c| profile(c, field))
        .filter(|t| !confined(t))
        .collect()
}

fn seccomp_baseline(spec: &Value) -> Finding {
    let who = setters(spec, |c| {
        profile(c, "seccompProfile").is_some_and(|t| !confined(t))
    })?;
    let kinds = quoted(bad_profiles(spec, "seccompProfile"));
    finding(
        "seccompProfile",
        format!("{who} must not set securityContext.seccompProfile.type to {kinds}"),
    )
}

fn seccomp_restricted(spec: &Value) -> Finding {
    let explicit = seccomp_baseline(spec);
    if explicit.is_some() || profile(context(spec), "seccompProfile").is_some() {
        return explicit;
    }
    let without = names(spec, |c| profile(context(c), "seccompProfile").is_none());
    if without.is_empty() {
        return None;
    }
    let who = named("container", &without);
    finding(
        "seccompProfile",
        format!(
            r#"pod or {who} must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost""#
        ),
    )
}

fn sysctls(spec: &Value) -> Finding {
    const SAFE: [&str; 12] = [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
    ];
    let all = list(context(spec), "sysctls")
        .iter()
        .map(|s| text(s, "name"));
    let forbidden: Vec<&str> = all.filter(|s| !SAFE.contains(s)).collect();
    if forbidden.is_empty() {
        None
    } else {
        finding("forbidden sysctls", forbidden.join(", "))
    }
}

fn allow_privilege_escalation(spec: &Value) -> Finding {
    let offenders = names(spec, |c| {
        context(c).get("allowPrivilegeEscalation") != Some(&Value::Bool(false))
    });
    if offenders.is_empty() {
        return None;
    }
    let who = named("container", &offenders);
    finding(
        "allowPrivilegeEscalation != false",
        format!("{who} must set securityContext.allowPrivilegeEscalation=false"),
    )
}

fn restricted_volumes(spec: &Value) -> Finding {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    fn source(volume: &Value) -> &str {
        let mut fields = volume.as_object().into_iter().flatten();
        fields
            .find(|(k, v)| *k != "name" && !v.is_null())
            .map_or("unknown", |(k, _)| k)
    }
    let bad: Vec<&Value> = list(spec, "volumes")
        .iter()
        .filter(|v| !ALLOWED.contains(&source(v)))
        .collect();
    if bad.is_empty() {
        return None;
    }
    let types: BTreeSet<&str> = bad.iter().map(|v| source(v)).collect();
    let uses = if bad.len() == 1 { "uses" } else { "use" };
    let word = if types.len() == 1 {
        "restricted volume type"
    } else {
        "restricted volume types"
    };
    let volumes: Vec<&str> = bad.iter().map(|v| text(v, "name")).collect();
    finding(
        "restricted volume types",
        format!(
            "{} {uses} {word} {}",
            named("volume", &volumes),
            quoted(types)
        ),
    )
}

/// Root inside a user namespace is nobody outside.
fn own_users(spec: &Value) -> bool {
    spec.get("hostUsers") == Some(&Value::Bool(false))
}

fn run_as_non_root(spec: &Value) -> Finding {
    const REASON: &str = "runAsNonRoot != true";
    if own_users(spec) {
        return None;
    }
    let set = |c: &Value| c.get("runAsNonRoot").and_then(Value::as_bool);
    if let Some(who) = setters(spec, |c| set(c) == Some(false)) {
        return finding(
            REASON,
            format!("{who} must not set securityContext.runAsNonRoot=false"),
        );
    }
    let without = names(spec, |c| set(context(c)).is_none());
    if set(context(spec)) == Some(true) || without.is_empty() {
        return None;
    }
    finding(
        REASON,
        format!(
            "pod or {} must set securityContext.runAsNonRoot=true",
            named("container", &without)
        ),
    )
}

fn run_as_user(spec: &Value) -> Finding {
    if own_users(spec) {
        return None;
    }
    let who = setters(spec, |c| integer(c, "runAsUser") == Some(0))?;
    finding("runAsUser=0", format!("{who} must not set runAsUser=0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn baseline() {
        let c = |context: Value| json!({"containers": [{"name": "a", "securityContext": context}]});
        for (spec, want) in [
            (json!({"containers": [{"name": "a"}]}), ""),
            (
                c(json!({"privileged": true})),
                r#"privileged (container "a" must not set securityContext.privileged=true)"#,
            ),
            (
                json!({"hostNetwork": true, "hostPID": true}),
                "host namespaces (hostNetwork=true, hostPID=true)",
            ),
            (
                json!({"volumes": [{"name": "v", "hostPath": {}}, {"name": "w", "hostPath": {}}]}),
                r#"hostPath volumes (volumes "v", "w")"#,
            ),
            (
                c(json!({"capabilities": {"add": ["NET_ADMIN", "CHOWN"]}})),
                r#"non-default capabilities (container "a" must not include "NET_ADMIN" in securityContext.capabilities.add)"#,
            ),
            (
                json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}]}, {"name": "b", "ports": [{"hostPort": 81}]}]}),
                r#"hostPort (containers "a", "b" use hostPorts 80, 81)"#,
            ),
            (
                json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
                r#"seccompProfile (pod must not set securityContext.seccompProfile.type to "Unconfined")"#,
            ),
            (
                json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}),
                "forbidden sysctls (kernel.msgmax)",
            ),
            (
                c(json!({"seLinuxOptions": {"type": "spc_t", "user": "u"}})),
                r#"seLinuxOptions (container "a" set forbidden securityContext.seLinuxOptions: type "spc_t"; user may not be set)"#,
            ),
        ] {
            assert_eq!(
                violations(Level::Baseline, &spec).unwrap_or_default(),
                want,
                "{spec}"
            );
        }
    }

    #[test]
    fn restricted() {
        let bare = json!({"containers": [{"name": "a"}]});
        assert_eq!(
            violations(Level::Restricted, &bare).unwrap(),
            r#"allowPrivilegeEscalation != false (container "a" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container "a" must set securityContext.capabilities.drop=["ALL"]), runAsNonRoot != true (pod or container "a" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container "a" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")"#
        );
        let good = json!({
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        });
        assert_eq!(violations(Level::Restricted, &good), None);
        let mut bad = good;
        bad["volumes"] = json!([{"name": "v", "hostPath": {}}]);
        bad["securityContext"]["runAsUser"] = 0.into();
        assert_eq!(
            violations(Level::Restricted, &bad).unwrap(),
            r#"restricted volume types (volume "v" uses restricted volume type "hostPath"), runAsUser=0 (pod must not set runAsUser=0)"#
        );
    }
}
