//! What one RBAC rule allows, and whether a set of rules covers another: the pure half of RBAC.
//!
//! Matching follows `rbac.authorization.k8s.io/v1` PolicyRule: `*` in any list stands for all,
//! `*/scale` for one subresource of every resource, a trailing `*` for a prefix of a URL path.

use serde::{Deserialize, Serialize};

/// One PolicyRule. A rule is about resources, or about paths that are no resources; never both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    #[serde(deserialize_with = "null_as_empty")]
    pub verbs: Vec<String>,
    #[serde(
        deserialize_with = "null_as_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub api_groups: Vec<String>,
    #[serde(
        deserialize_with = "null_as_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub resources: Vec<String>,
    #[serde(
        deserialize_with = "null_as_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub resource_names: Vec<String>,
    #[serde(
        rename = "nonResourceURLs",
        deserialize_with = "null_as_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub non_resource_urls: Vec<String>,
}

fn null_as_empty<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(d)?.unwrap_or_default())
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|x| x == wanted)
}

fn has_or_star(list: &[String], wanted: &str) -> bool {
    list.iter().any(|x| x == "*" || x == wanted)
}

impl Rule {
    /// Whether the rule speaks about this verb on this resource, for at least some object names.
    pub fn matches_resource(
        &self,
        verb: &str,
        group: &str,
        resource: &str,
        subresource: &str,
    ) -> bool {
        has_or_star(&self.verbs, verb)
            && has_or_star(&self.api_groups, group)
            && self.resources.iter().any(|r| {
                if subresource.is_empty() {
                    return r == "*" || r == resource;
                }
                r == "*"
                    || r.split_once('/').is_some_and(|(res, sub)| {
                        sub == subresource && (res == "*" || res == resource)
                    })
            })
    }

    /// Whether the rule allows the verb on a path that is no resource.
    pub fn matches_path(&self, verb: &str, path: &str) -> bool {
        has_or_star(&self.verbs, verb) && self.non_resource_urls.iter().any(|u| url_covers(u, path))
    }

    /// The single permissions that a rule consists of: one verb on one resource (and name) or path.
    fn atoms(&self) -> Vec<Rule> {
        let one = |s: &String| vec![s.clone()];
        let mut atoms = Vec::new();
        for group in &self.api_groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    let atom = Rule {
                        verbs: one(verb),
                        api_groups: one(group),
                        resources: one(resource),
                        ..Default::default()
                    };
                    if self.resource_names.is_empty() {
                        atoms.push(atom);
                        continue;
                    }
                    atoms.extend(self.resource_names.iter().map(|n| Rule {
                        resource_names: one(n),
                        ..atom.clone()
                    }));
                }
            }
        }
        for url in &self.non_resource_urls {
            atoms.extend(self.verbs.iter().map(|verb| Rule {
                verbs: one(verb),
                non_resource_urls: one(url),
                ..Default::default()
            }));
        }
        atoms
    }

    /// Whether whoever holds `self` may do all that `atom` allows.
    fn covers(&self, atom: &Rule) -> bool {
        let all =
            |own: &[String], wanted: &[String]| has(own, "*") || wanted.iter().all(|w| has(own, w));
        let resources = has(&self.resources, "*")
            || atom.resources.iter().all(|r| {
                has(&self.resources, r)
                    || r.split_once('/')
                        .is_some_and(|(_, sub)| has(&self.resources, &format!("*/{sub}")))
            });
        let names = self.resource_names.is_empty()
            || (!atom.resource_names.is_empty()
                && atom
                    .resource_names
                    .iter()
                    .all(|n| has(&self.resource_names, n)));
        let urls = atom
            .non_resource_urls
            .iter()
            .all(|u| self.non_resource_urls.iter().any(|own| url_covers(own, u)));
        all(&self.verbs, &atom.verbs)
            && all(&self.api_groups, &atom.api_groups)
            && resources
            && names
            && urls
    }

    /// As escalation errors show it: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
    pub fn compact(&self) -> String {
        let parts: Vec<String> = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ]
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name}:{}", quoted(list)))
        .collect();
        format!("{{{}}}", parts.join(", "))
    }
}

/// `["a" "b"]`, the way Go prints a list of strings with `%q`.
pub fn quoted(list: &[String]) -> String {
    let items: Vec<String> = list.iter().map(|s| format!("{s:?}")).collect();
    format!("[{}]", items.join(" "))
}

fn url_covers(own: &str, path: &str) -> bool {
    own == "*" || own == path || (own.ends_with('*') && path.starts_with(own.trim_end_matches('*')))
}

/// What of `wanted` is not covered by `held`, compacted by verb; empty when nothing would be escalated.
pub fn missing<'a>(held: impl Iterator<Item = &'a Rule> + Clone, wanted: &[Rule]) -> Vec<Rule> {
    let mut missing: Vec<Rule> = Vec::new();
    for atom in wanted.iter().flat_map(Rule::atoms) {
        if held.clone().any(|rule| rule.covers(&atom)) {
            continue;
        }
        let same = missing.iter_mut().find(|m| {
            atom.non_resource_urls.is_empty()
                && m.api_groups == atom.api_groups
                && m.resources == atom.resources
                && m.resource_names == atom.resource_names
                && m.non_resource_urls.is_empty()
        });
        match same {
            Some(rule) => rule.verbs.extend(atom.verbs),
            None => missing.push(atom),
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(s: &str) -> Vec<String> {
        s.split(',')
            .filter(|x| !x.is_empty())
            .map(|x| if x == "core" { "" } else { x }.to_owned())
            .collect()
    }

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> Rule {
        Rule {
            verbs: list(verbs),
            api_groups: list(groups),
            resources: list(resources),
            resource_names: list(names),
            ..Default::default()
        }
    }

    fn url(verbs: &str, urls: &str) -> Rule {
        Rule {
            verbs: list(verbs),
            non_resource_urls: list(urls),
            ..Default::default()
        }
    }

    #[test]
    fn resources_match_as_policy_rules_do() {
        for (r, verb, group, resource, sub, want) in [
            (rule("get", "core", "pods", ""), "get", "", "pods", "", true),
            (
                rule("get", "core", "pods", ""),
                "list",
                "",
                "pods",
                "",
                false,
            ),
            (
                rule("get", "core", "pods", ""),
                "get",
                "apps",
                "pods",
                "",
                false,
            ),
            (
                rule("get", "core", "pods", ""),
                "get",
                "",
                "pods",
                "log",
                false,
            ),
            (
                rule("get", "core", "pods/log", ""),
                "get",
                "",
                "pods",
                "log",
                true,
            ),
            (
                rule("get", "core", "pods/log", ""),
                "get",
                "",
                "pods",
                "",
                false,
            ),
            (
                rule("*", "*", "*", ""),
                "delete",
                "x.y",
                "things",
                "status",
                true,
            ),
            (
                rule("get", "*", "*/scale", ""),
                "get",
                "apps",
                "deployments",
                "scale",
                true,
            ),
            (
                rule("get", "*", "*/scale", ""),
                "get",
                "apps",
                "deployments",
                "",
                false,
            ),
            (
                rule("get", "*", "*/scale", ""),
                "get",
                "apps",
                "deployments",
                "status",
                false,
            ),
        ] {
            assert_eq!(
                r.matches_resource(verb, group, resource, sub),
                want,
                "{r:?} {verb} {group} {resource}/{sub}"
            );
        }
    }

    #[test]
    fn paths_match_exactly_or_by_prefix() {
        for (urls, path, want) in [
            ("/healthz", "/healthz", true),
            ("/healthz", "/healthz/etcd", false),
            ("/healthz/*", "/healthz/etcd", true),
            ("/api*", "/apis", true),
            ("*", "/anything", true),
            ("/version/", "/version", false),
        ] {
            assert_eq!(
                url("get", urls).matches_path("get", path),
                want,
                "{urls} {path}"
            );
        }
    }

    #[test]
    fn what_is_not_held_is_named_and_compacted_by_verb() {
        let held = [
            rule("get,list", "core", "pods", ""),
            rule("*", "apps", "*/scale", ""),
            url("get", "/api*"),
        ];
        for (wanted, want) in [
            (rule("get", "core", "pods", ""), ""),
            (rule("get", "core", "pods", "one"), ""),
            (rule("get", "apps", "deployments/scale", ""), ""),
            (url("get", "/apis"), ""),
            (
                rule("get,watch,delete", "core", "pods", ""),
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["watch" "delete"]}"#,
            ),
            (
                rule("get", "core", "secrets", "a"),
                r#"{APIGroups:[""], Resources:["secrets"], ResourceNames:["a"], Verbs:["get"]}"#,
            ),
            (
                url("post", "/apis"),
                r#"{NonResourceURLs:["/apis"], Verbs:["post"]}"#,
            ),
        ] {
            let got: Vec<String> = missing(held.iter(), &[wanted])
                .iter()
                .map(Rule::compact)
                .collect();
            assert_eq!(got.join("\n"), want);
        }
        let named = [rule("get", "core", "secrets", "a")];
        assert_eq!(
            missing(named.iter(), &[rule("get", "core", "secrets", "")]).len(),
            1,
            "a name does not cover all"
        );
    }
}
