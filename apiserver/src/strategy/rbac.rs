//! Roles and bindings.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use serde_json::{Value, json};

use super::check::{Checks, given, list, list_mut, same, set_default, text};
use super::{Context, NameRule, Strategy};

/// Roles; `true` for those of a namespace.
pub struct Role(pub bool);

/// Bindings; `true` for those of a namespace.
pub struct Binding(pub bool);

const GROUP: &str = "rbac.authorization.k8s.io";

impl Strategy for Role {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        for (i, rule) in list(object, "rules").iter().enumerate() {
            policy_rule(&mut checks, rule, self.0, &Path::new("rules").index(i));
        }
        if let Some(aggregation) = given(object, "aggregationRule") {
            let path = Path::new("aggregationRule").child("clusterRoleSelectors");
            let selectors = list(aggregation, "clusterRoleSelectors");
            if selectors.is_empty() {
                let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
                checks.required(&path, why);
            }
            for (i, selector) in selectors.iter().enumerate() {
                checks.label_selector(selector, &path.index(i));
            }
        }
        checks.done()
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }
}

fn policy_rule(checks: &mut Checks, rule: &Value, namespaced: bool, path: &Path) {
    let none = |field: &str| list(rule, field).is_empty();
    if none("verbs") {
        checks.required(
            &path.child("verbs"),
            "verbs must contain at least one value",
        );
    }
    if !none("nonResourceURLs") {
        let (at, urls) = (path.child("nonResourceURLs"), &rule["nonResourceURLs"]);
        if namespaced {
            let why = "namespaced rules cannot apply to non-resource URLs";
            checks.invalid(&at, urls.clone(), why);
        }
        if !["apiGroups", "resources", "resourceNames"]
            .into_iter()
            .all(none)
        {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            checks.invalid(&at, urls.clone(), why);
        }
        return;
    }
    if none("apiGroups") {
        let why = "resource rules must supply at least one api group";
        checks.required(&path.child("apiGroups"), why);
    }
    if none("resources") {
        let why = "resource rules must supply at least one resource";
        checks.required(&path.child("resources"), why);
    }
}

impl Strategy for Binding {
    fn default(&self, object: &mut Value) {
        for subject in list_mut(object, "subjects") {
            if matches!(text(subject, "kind"), "User" | "Group") {
                set_default(subject, "apiGroup", GROUP);
            }
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let (role, path) = (&object["roleRef"], Path::new("roleRef"));
        let group = text(role, "apiGroup");
        if group != GROUP {
            checks.push(Error::not_supported(
                &path.child("apiGroup"),
                group,
                &[GROUP],
            ));
        }
        let kinds: &[&str] = if self.0 {
            &["Role", "ClusterRole"]
        } else {
            &["ClusterRole"]
        };
        let kind = text(role, "kind");
        if !kinds.contains(&kind) {
            checks.push(Error::not_supported(&path.child("kind"), kind, kinds));
        }
        checks.segment(role, "name", &path);
        for (i, subject) in list(object, "subjects").iter().enumerate() {
            subject_errors(
                &mut checks,
                subject,
                self.0,
                &Path::new("subjects").index(i),
            );
        }
        checks.done()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks(self.validate(context, object).0);
        let role = &object["roleRef"];
        if !same(role, &old["roleRef"]) {
            let shown =
                json!({"APIGroup": role["apiGroup"], "Kind": role["kind"], "Name": role["name"]});
            checks.invalid(&Path::new("roleRef"), shown, "cannot change roleRef");
        }
        checks.done()
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }
}

fn subject_errors(checks: &mut Checks, subject: &Value, namespaced: bool, path: &Path) {
    let (kind, name, group) = (
        text(subject, "kind"),
        text(subject, "name"),
        text(subject, "apiGroup"),
    );
    if name.is_empty() {
        checks.required(&path.child("name"), "");
    }
    match kind {
        "ServiceAccount" => {
            if !name.is_empty() {
                checks.each(&path.child("name"), name, names::dns1123_subdomain(name));
            }
            if !group.is_empty() {
                checks.push(Error::not_supported(&path.child("apiGroup"), group, &[""]));
            }
            if !namespaced && text(subject, "namespace").is_empty() {
                checks.required(&path.child("namespace"), "");
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                checks.push(Error::not_supported(
                    &path.child("apiGroup"),
                    group,
                    &[GROUP],
                ));
            }
        }
        _ => {
            let kinds = ["ServiceAccount", "User", "Group"];
            checks.push(Error::not_supported(&path.child("kind"), kind, &kinds));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::tests::refusals;

    #[test]
    fn roles() {
        #[rustfmt::skip]
        let table: &[(&str, Value, &[&str])] = &[
            ("roles", json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}), &[]),
            ("roles", json!({}), &["rules[0].verbs: Required value: verbs must contain at least one value", "rules[0].apiGroups: Required value: resource rules must supply at least one api group", "rules[0].resources: Required value: resource rules must supply at least one resource"]),
            ("roles", json!({"verbs": ["get"], "nonResourceURLs": ["/a"]}), &["rules[0].nonResourceURLs: Invalid value: [\"/a\"]: namespaced rules cannot apply to non-resource URLs"]),
            ("clusterroles", json!({"verbs": ["get"], "nonResourceURLs": ["/a"]}), &[]),
        ];
        for (plural, rule, want) in table {
            assert_eq!(
                refusals(plural, &json!({"rules": [rule]}), None),
                *want,
                "{rule}"
            );
        }
    }

    #[test]
    fn bindings() {
        let role = json!({"apiGroup": GROUP, "kind": "ClusterRole", "name": "view"});
        let mut binding = json!({"roleRef": role, "subjects": [{"kind": "User", "name": "jane"}]});
        Binding(true).default(&mut binding);
        assert_eq!(binding["subjects"][0]["apiGroup"], GROUP);
        assert!(refusals("rolebindings", &binding, None).is_empty());
        let mut other = binding.clone();
        other["roleRef"]["name"] = "edit".into();
        let found = refusals("rolebindings", &other, Some(&binding));
        assert_eq!(found.len(), 1);
        assert!(found[0].ends_with("cannot change roleRef"), "{found:?}");
        binding["subjects"] =
            json!([{"kind": "ServiceAccount", "name": "a"}, {"kind": "Robot", "name": "r"}]);
        let found = refusals("clusterrolebindings", &binding, None);
        assert_eq!(
            found,
            [
                "subjects[0].namespace: Required value",
                "subjects[1].kind: Unsupported value: \"Robot\": supported values: \"ServiceAccount\", \"User\", \"Group\"",
            ]
        );
    }
}
