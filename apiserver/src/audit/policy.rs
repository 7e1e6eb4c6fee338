//! The audit policy: what of which requests is recorded.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::authn::UserInfo;
use crate::request::RequestInfo;

/// How much of a request is recorded. Each level holds what the one before it holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    #[default]
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// When in a request's life an event is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Stage {
    RequestReceived,
    /// Of requests that take long: the answer has begun.
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// An `audit.k8s.io/v1` Policy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: serde_json::Value,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<Resources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

/// What the policy says of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    pub level: Level,
    pub omit_stages: Vec<Stage>,
    pub omit_managed_fields: bool,
}

impl Policy {
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("loading audit policy file {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let policy: Self = serde_saphyr::from_str(text)?;
        ensure!(
            policy.kind == "Policy" && policy.api_version == "audit.k8s.io/v1",
            "not a Policy of audit.k8s.io/v1"
        );
        ensure!(
            !policy.rules.is_empty(),
            "loaded illegal policy with 0 rules"
        );
        for (i, rule) in policy.rules.iter().enumerate() {
            rule.check().with_context(|| format!("rules[{i}]"))?;
        }
        Ok(policy)
    }

    /// The first rule that fits decides; without one, nothing is recorded.
    #[must_use]
    pub fn of(&self, user: &UserInfo, info: &RequestInfo) -> Verdict {
        let Some(rule) = self.rules.iter().find(|rule| rule.matches(user, info)) else {
            return Verdict::default();
        };
        let mut omit_stages = self.omit_stages.clone();
        omit_stages.extend(&rule.omit_stages);
        Verdict {
            level: rule.level,
            omit_stages,
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == wanted)
}

impl Rule {
    fn check(&self) -> Result<()> {
        let of_resources = !self.resources.is_empty() || !self.namespaces.is_empty();
        if of_resources && !self.non_resource_urls.is_empty() {
            bail!(
                "nonResourceURLs: rules cannot apply to both regular resources and non-resource URLs"
            );
        }
        for url in &self.non_resource_urls {
            ensure!(
                url == "*" || url.starts_with('/'),
                "nonResourceURLs: invalid value {url:?}: non-resource URL rules must begin with a '/' character"
            );
            ensure!(
                !url.trim_end_matches('*').contains('*') && !url.ends_with("**"),
                "nonResourceURLs: invalid value {url:?}: non-resource URL wildcards '*' must be the final character of the rule"
            );
        }
        Ok(())
    }

    fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        if !self.users.is_empty() && !has(&self.users, &user.name) {
            return false;
        }
        if !self.user_groups.is_empty() && !user.groups.iter().any(|g| has(&self.user_groups, g)) {
            return false;
        }
        if !self.verbs.is_empty() && !has(&self.verbs, &info.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return info.is_resource
                && (self.namespaces.is_empty() || has(&self.namespaces, &info.namespace))
                && (self.resources.is_empty() || self.resources.iter().any(|r| r.matches(info)));
        }
        if !self.non_resource_urls.is_empty() {
            return !info.is_resource
                && self
                    .non_resource_urls
                    .iter()
                    .any(|url| match url.strip_suffix('*') {
                        Some(prefix) => info.path.starts_with(prefix),
                        None => info.path == *url,
                    });
        }
        true
    }
}

impl Resources {
    fn matches(&self, info: &RequestInfo) -> bool {
        if self.group != info.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !self.resource_names.is_empty() && !has(&self.resource_names, &info.name) {
            return false;
        }
        self.resources
            .iter()
            .any(|wanted| match wanted.split_once('/') {
                None => wanted == "*" || (*wanted == info.resource && info.subresource.is_empty()),
                Some(("*", subresource)) => subresource == info.subresource,
                Some((resource, "*")) => resource == info.resource,
                Some((resource, subresource)) => {
                    resource == info.resource && subresource == info.subresource
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Query;
    use http::Method;

    const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: None
  users: ["system:kube-proxy"]
  verbs: ["watch"]
- level: Metadata
  resources:
  - group: ""
    resources: ["secrets", "pods/log", "*/token"]
  omitManagedFields: false
- level: RequestResponse
  namespaces: ["kube-system"]
- level: None
  nonResourceURLs: ["/healthz*", "/version"]
- level: Request
  userGroups: ["dev"]
  omitStages: [ResponseStarted]
"#;

    fn verdict(user: &UserInfo, method: Method, url: &str) -> Verdict {
        let policy = Policy::parse(POLICY).unwrap();
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let info = RequestInfo::parse(&method, path, &Query::parse(query)).unwrap();
        policy.of(user, &info)
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let dev = UserInfo::new("jane", &["dev"]);
        let proxy = UserInfo::new("system:kube-proxy", &[]);
        for (user, url, level) in [
            (&proxy, "/api/v1/services?watch=1", Level::None),
            (&dev, "/api/v1/namespaces/d/secrets/s", Level::Metadata),
            (&dev, "/api/v1/namespaces/d/pods/p/log", Level::Metadata),
            (
                &dev,
                "/api/v1/namespaces/d/serviceaccounts/s/token",
                Level::Metadata,
            ),
            (&dev, "/api/v1/namespaces/d/pods/p", Level::Request),
            (
                &proxy,
                "/api/v1/namespaces/kube-system/pods",
                Level::RequestResponse,
            ),
            (&dev, "/healthz/etcd", Level::None),
            (&dev, "/metrics", Level::Request),
            (&proxy, "/metrics", Level::None),
        ] {
            assert_eq!(verdict(user, Method::GET, url).level, level, "{url}");
        }
        let pods = verdict(&dev, Method::GET, "/api/v1/pods");
        assert_eq!(
            pods.omit_stages,
            [Stage::RequestReceived, Stage::ResponseStarted]
        );
        assert!(pods.omit_managed_fields);
        let secrets = verdict(&dev, Method::GET, "/api/v1/secrets");
        assert!(!secrets.omit_managed_fields);
    }

    #[test]
    fn bad_policies_are_refused() {
        for (from, to) in [
            ("kind: Policy", "kind: Other"),
            ("level: None", "level: Everything"),
            ("\"/version\"", "\"version\""),
            ("\"/healthz*\"", "\"/*/healthz\""),
            ("userGroups", "groups"),
        ] {
            assert!(Policy::parse(&POLICY.replace(from, to)).is_err(), "{to}");
        }
        assert!(Policy::parse("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: []").is_err());
    }
}
