//! APIServices: who serves which group and version.

use apimachinery::field::{ErrorList, Path};
use apimachinery::names;
use serde_json::{Value, json};

use super::check::{Checks, flag, given, integer, list, text};
use super::{Context, NameRule, Strategy, common};

#[derive(Debug, Clone, Copy)]
pub struct ApiService;

impl Strategy for ApiService {
    /// What this server serves itself is available from the first moment.
    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        common::reset_status_on_create(context, object);
        if given(&object["spec"], "service").is_none() {
            object["status"] = json!({"conditions": [local_condition()]});
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let spec = &object["spec"];
        let path = Path::new("spec");
        let (group, version) = (text(spec, "group"), text(spec, "version"));
        let mut checks = Checks::default();
        let name = apimachinery::object::name(object);
        let wanted = format!("{version}.{group}");
        if !name.is_empty() && name != wanted {
            let why = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
            checks.invalid(&Path::new("metadata").child("name"), name, &why);
        }
        if group.is_empty() && version != "v1" {
            let why = "only v1 may have an empty group and it better be legacy kube";
            checks.required(&path.child("group"), why);
        }
        if !group.is_empty() {
            checks.subdomain(&path.child("group"), group);
        }
        checks.each(
            &path.child("version"),
            version,
            names::dns1035_label(version),
        );
        for (field, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
            let value = integer(spec, field).unwrap_or(0);
            if value <= 0 || value > most {
                let why = format!("must be positive and less than {most}");
                checks.invalid(&path.child(field), value, &why);
            }
        }
        service(spec, &path, &mut checks);
        checks.done()
    }

    fn validate_status_update(
        &self,
        _context: &Context<'_>,
        object: &Value,
        _old: &Value,
    ) -> ErrorList {
        let mut checks = Checks::default();
        let path = Path::new("status").child("conditions");
        for (i, condition) in list(&object["status"], "conditions").iter().enumerate() {
            let status = text(condition, "status");
            let allowed = ["True", "False", "Unknown"];
            if !allowed.contains(&status) {
                checks.push(apimachinery::field::Error::not_supported(
                    &path.index(i).child("status"),
                    status,
                    &allowed,
                ));
            }
        }
        checks.done()
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }
}

fn service(spec: &Value, path: &Path, checks: &mut Checks) {
    let bundle = text(spec, "caBundle");
    let insecure = flag(spec, "insecureSkipTLSVerify");
    let Some(service) = given(spec, "service") else {
        if !bundle.is_empty() {
            let shown = format!("{} bytes", bundle.len() / 4 * 3);
            let why = "local APIServices may not have a caBundle";
            checks.invalid(&path.child("caBundle"), shown, why);
        }
        if insecure {
            let why = "local APIServices may not have insecureSkipTLSVerify";
            checks.invalid(&path.child("insecureSkipTLSVerify"), true, why);
        }
        return;
    };
    let at = path.child("service");
    for field in ["namespace", "name"] {
        if text(service, field).is_empty() {
            checks.required(&at.child(field), "");
        }
    }
    let port = integer(service, "port").unwrap_or(443);
    if !(1..=65535).contains(&port) {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        checks.invalid(&at.child("port"), port, why);
    }
    if insecure && !bundle.is_empty() {
        let why = "may not be true if caBundle is present";
        checks.invalid(&path.child("insecureSkipTLSVerify"), true, why);
    }
}

/// The condition of an APIService that stands for this server itself.
#[must_use]
pub fn local_condition() -> Value {
    json!({
        "type": "Available", "status": "True", "reason": "Local",
        "message": "Local APIServices are always available",
        "lastTransitionTime": apimachinery::time::format(jiff::Timestamp::now()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::resource::builtin;

    fn errors(object: &Value) -> Vec<String> {
        let resource = builtin()
            .iter()
            .find(|r| r.plural == "apiservices")
            .unwrap();
        let context = Context {
            resource,
            subresource: "",
            namespace: "",
            user: None,
        };
        let errors = ApiService.validate(&context, object);
        errors.0.iter().map(|e| e.field.clone()).collect()
    }

    #[test]
    fn specs_are_checked() {
        let good = json!({"metadata": {"name": "v1.a.example.com"}, "spec": {
            "group": "a.example.com", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10,
            "service": {"namespace": "n", "name": "s", "port": 443}}});
        assert!(errors(&good).is_empty());
        let with = |change: fn(&mut Value)| {
            let mut object = good.clone();
            change(&mut object);
            errors(&object)
        };
        assert_eq!(
            with(|o| o["metadata"]["name"] = "x".into()),
            ["metadata.name"]
        );
        assert_eq!(
            with(|o| o["spec"]["versionPriority"] = 1001.into()),
            ["spec.versionPriority"]
        );
        assert_eq!(
            with(|o| o["spec"]["service"] = json!({"port": 0})),
            [
                "spec.service.namespace",
                "spec.service.name",
                "spec.service.port"
            ]
        );
        assert_eq!(
            with(|o| {
                o["spec"]["service"] = Value::Null;
                o["spec"]["caBundle"] = "AAAA".into();
            }),
            ["spec.caBundle"]
        );
        assert_eq!(
            with(|o| {
                o["spec"]["insecureSkipTLSVerify"] = true.into();
                o["spec"]["caBundle"] = "AAAA".into();
            }),
            ["spec.insecureSkipTLSVerify"]
        );
    }
}
