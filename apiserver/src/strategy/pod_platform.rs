//! What a pod may ask for on its operating system, and the options that only Windows has.

use apimachinery::field::Path;
use serde_json::Value;

use super::check::{Checks, flag, given, list, text};

const POD_ONLY_LINUX: [&str; 10] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "sysctls",
    "runAsUser",
    "runAsGroup",
    "supplementalGroups",
    "supplementalGroupsPolicy",
];
const SPEC_ONLY_LINUX: [&str; 4] = ["hostUsers", "hostPID", "hostIPC", "shareProcessNamespace"];
const CONTAINER_ONLY_LINUX: [&str; 10] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];
const KINDS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// All containers of a pod, with their paths.
pub fn visit<'a>(spec: &'a Value, path: &Path) -> Vec<(&'a Value, Path)> {
    KINDS
        .iter()
        .flat_map(|kind| {
            let path = path.child(kind);
            let containers = list(spec, kind).iter().enumerate();
            containers.map(move |(i, container)| (container, path.index(i)))
        })
        .collect()
}

/// What the operating system of a pod forbids.
pub fn validate(checks: &mut Checks, spec: &Value, path: &Path) {
    match text(&spec["os"], "name") {
        "linux" => linux(checks, spec, path),
        "windows" => windows(checks, spec, path),
        _ => {}
    }
    options(
        checks,
        &spec["securityContext"]["windowsOptions"],
        &path.child("securityContext").child("windowsOptions"),
    );
    for (container, path) in visit(spec, path) {
        let path = path.child("securityContext").child("windowsOptions");
        options(
            checks,
            &container["securityContext"]["windowsOptions"],
            &path,
        );
    }
    host_process(checks, spec, path);
}

fn linux(checks: &mut Checks, spec: &Value, path: &Path) {
    let mut check = |holder: &Value, path: &Path| {
        if given(&holder["securityContext"], "windowsOptions").is_some() {
            let path = path.child("securityContext").child("windowsOptions");
            checks.forbidden(&path, "windows options cannot be set for a linux pod");
        }
    };
    check(spec, path);
    for (container, path) in visit(spec, path) {
        check(container, &path);
    }
}

fn windows(checks: &mut Checks, spec: &Value, path: &Path) {
    const WHY: &str = "cannot be set for a windows pod";
    let context = path.child("securityContext");
    for field in SPEC_ONLY_LINUX {
        let set = match &spec[field] {
            Value::Null => false,
            // These two are no pointers in Go: false is as good as nothing.
            Value::Bool(false) => !matches!(field, "hostPID" | "hostIPC"),
            _ => true,
        };
        if set {
            checks.forbidden(&path.child(field), WHY);
        }
    }
    for field in POD_ONLY_LINUX.into_iter().chain(["seLinuxChangePolicy"]) {
        if given(&spec["securityContext"], field).is_some() {
            checks.forbidden(&context.child(field), WHY);
        }
    }
    for (container, path) in visit(spec, path) {
        for field in CONTAINER_ONLY_LINUX {
            if given(&container["securityContext"], field).is_some() {
                checks.forbidden(&path.child("securityContext").child(field), WHY);
            }
        }
    }
}

fn options(checks: &mut Checks, options: &Value, path: &Path) {
    const LARGEST: usize = 64 * 1024;
    let string = |field: &str| options.get(field).and_then(Value::as_str);
    if let Some(name) = string("gmsaCredentialSpecName") {
        checks.subdomain(&path.child("gmsaCredentialSpecName"), name);
    }
    let at = path.child("gmsaCredentialSpec");
    match string("gmsaCredentialSpec") {
        Some("") => checks.invalid(&at, "", "gmsaCredentialSpec cannot be an empty string"),
        Some(spec) if spec.len() > LARGEST => {
            checks.invalid(&at, spec, "gmsaCredentialSpec size must be under 64 KiB");
        }
        _ => {}
    }
    if let Some(name) = string("runAsUserName") {
        for why in user_name(name) {
            checks.invalid(&path.child("runAsUserName"), name, &why);
        }
    }
}

fn user_name(name: &str) -> Vec<String> {
    let parts: Vec<&str> = name.split('\\').collect();
    if name.is_empty() {
        return vec!["runAsUserName cannot be an empty string".into()];
    }
    if name.chars().any(char::is_control) {
        return vec!["runAsUserName cannot contain control characters".into()];
    }
    if parts.len() > 2 {
        return vec!["runAsUserName cannot contain more than one backslash".into()];
    }
    let mut wrong = Vec::new();
    let (domain, user) = match parts[..] {
        [domain, user] => (Some(domain), user),
        _ => (None, name),
    };
    if let Some(domain) = domain {
        if domain.len() >= 256 {
            wrong.push("runAsUserName's Domain length must be under 256 characters".into());
        }
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        let netbios = (1..=15).contains(&domain.len())
            && !domain.starts_with('.')
            && !domain.contains(['\\', '/', ':', '*', '?', '"', '<', '>', '|']);
        let dns = domain
            .split('.')
            .all(|label| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-'))
            && domain.chars().all(word);
        if !netbios && !dns {
            wrong
                .push("runAsUserName's Domain doesn't match the NetBios nor the DNS format".into());
        }
    }
    if user.is_empty() {
        wrong.push("runAsUserName's User cannot be empty".into());
    } else if user.len() > 104 {
        wrong.push("runAsUserName's User length must not be longer than 104 characters".into());
    }
    if !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')) {
        wrong.push("runAsUserName's User cannot contain only periods or spaces".into());
    }
    if user.contains([
        '"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']',
    ]) {
        let why =
            r#"runAsUserName's User cannot contain the following characters: "/\:;|=,+*?<>@[]"#;
        wrong.push(why.into());
    }
    wrong
}

fn host_process(checks: &mut Checks, spec: &Value, path: &Path) {
    let of = |holder: &Value| holder["securityContext"]["windowsOptions"]["hostProcess"].as_bool();
    let pod = of(spec);
    let containers = visit(spec, path);
    let mut host = 0;
    for (container, path) in &containers {
        let own = of(container);
        if let (Some(pod), Some(own)) = (pod, own)
            && pod != own
        {
            let path = path
                .child("securityContext")
                .child("windowsOptions")
                .child("hostProcess");
            let why =
                format!("pod hostProcess value must be identical if both are specified, was {pod}");
            checks.invalid(&path, own, &why);
        }
        host += usize::from(own.or(pod) == Some(true));
    }
    if host == 0 {
        return;
    }
    if host != containers.len() {
        let why = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        checks.invalid(path, "", why);
    }
    if !flag(spec, "hostNetwork") {
        let why = "hostNetwork must be true if pod contains any hostProcess containers";
        checks.invalid(&path.child("hostNetwork"), false, why);
    }
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
    fn systems() {
        #[rustfmt::skip]
        let table: &[(Value, &[&str])] = &[
            (json!({"os": {"name": "linux"}, "securityContext": {"runAsUser": 1}}), &[]),
            (json!({"os": {"name": "linux"}, "securityContext": {"windowsOptions": {}}}), &["spec.securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod"]),
            (json!({"os": {"name": "windows"}, "hostPID": false, "securityContext": {"fsGroup": 1}}), &["spec.securityContext.fsGroup: Forbidden: cannot be set for a windows pod"]),
            (json!({"os": {"name": "windows"}, "containers": [{"securityContext": {"privileged": false}}]}), &["spec.containers[0].securityContext.privileged: Forbidden: cannot be set for a windows pod"]),
            (json!({"containers": [{"securityContext": {"windowsOptions": {"hostProcess": true}}}, {}], "hostNetwork": true}), &["spec: Invalid value: \"\": If pod contains any hostProcess containers then all containers must be HostProcess containers"]),
            (json!({"securityContext": {"windowsOptions": {"runAsUserName": "a\\b\\c"}}}), &["spec.securityContext.windowsOptions.runAsUserName: Invalid value: \"a\\\\b\\\\c\": runAsUserName cannot contain more than one backslash"]),
            (json!({"securityContext": {"windowsOptions": {"runAsUserName": "NT AUTHORITY\\SYSTEM"}}}), &[]),
        ];
        for (spec, want) in table {
            assert_eq!(errors(spec), *want, "{spec}");
        }
    }
}
