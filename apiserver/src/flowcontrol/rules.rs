//! FlowSchemas: which requests belong together, and whose they are.

use serde::Deserialize;

use crate::authn::UserInfo;
use crate::request::RequestInfo;

const ALL: &str = "*";

/// The spec of a FlowSchema.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowSchemaSpec {
    pub priority_level_configuration: Reference,
    #[serde(default = "default_precedence")]
    pub matching_precedence: i64,
    pub distinguisher_method: Option<Distinguisher>,
    #[serde(default)]
    rules: Vec<Rule>,
}

fn default_precedence() -> i64 {
    1000
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Reference {
    pub name: String,
}

/// What tells the flows of one schema apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(tag = "type")]
pub enum Distinguisher {
    ByUser,
    ByNamespace,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    subjects: Vec<Subject>,
    #[serde(default)]
    resource_rules: Vec<ResourceRule>,
    #[serde(default)]
    non_resource_rules: Vec<PathRule>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all_fields = "camelCase")]
enum Subject {
    User { user: Name },
    Group { group: Name },
    ServiceAccount { service_account: Account },
}

#[derive(Debug, Clone, Deserialize)]
struct Name {
    name: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Account {
    namespace: String,
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceRule {
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    api_groups: Vec<String>,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    cluster_scope: bool,
    #[serde(default)]
    namespaces: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct PathRule {
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    urls: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == wanted || item == ALL)
}

impl FlowSchemaSpec {
    #[must_use]
    pub fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        self.rules.iter().any(|rule| {
            let asked = match info.is_resource {
                true => rule.resource_rules.iter().any(|r| r.matches(info)),
                false => rule.non_resource_rules.iter().any(|r| r.matches(info)),
            };
            asked && rule.subjects.iter().any(|subject| subject.matches(user))
        })
    }

    /// What names the flow that a request belongs to, within the schema.
    #[must_use]
    pub fn flow<'a>(&self, user: &'a UserInfo, info: &'a RequestInfo) -> &'a str {
        match self.distinguisher_method {
            Some(Distinguisher::ByUser) => &user.name,
            Some(Distinguisher::ByNamespace) => &info.namespace,
            None => "",
        }
    }
}

impl Subject {
    fn matches(&self, user: &UserInfo) -> bool {
        match self {
            Self::User { user: wanted } => wanted.name == ALL || wanted.name == user.name,
            Self::Group { group } => group.name == ALL || user.in_group(&group.name),
            Self::ServiceAccount {
                service_account: Account { namespace, name },
            } => {
                let prefix = "system:serviceaccount:";
                let account = user
                    .name
                    .strip_prefix(prefix)
                    .and_then(|rest| rest.split_once(':'));
                account
                    .is_some_and(|(of, called)| of == namespace && (name == ALL || called == name))
            }
        }
    }
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let resource = self.resources.iter().any(|wanted| {
            wanted == ALL
                || match wanted.split_once('/') {
                    None => *wanted == info.resource && info.subresource.is_empty(),
                    Some((resource, sub)) => resource == info.resource && sub == info.subresource,
                }
        });
        resource
            && has(&self.verbs, &info.verb)
            && has(&self.api_groups, &info.group)
            && match info.namespace.as_str() {
                "" => self.cluster_scope,
                namespace => has(&self.namespaces, namespace),
            }
    }
}

impl PathRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        has(&self.verbs, &info.verb)
            && self.urls.iter().any(|url| {
                url == ALL
                    || *url == info.path
                    || url.strip_suffix('*').is_some_and(|prefix| {
                        prefix.ends_with('/') && info.path.starts_with(prefix)
                    })
            })
    }
}

/// The spec of a PriorityLevelConfiguration.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LevelSpec {
    #[serde(rename = "type")]
    kind: String,
    limited: Option<Limited>,
    exempt: Option<Exempt>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Exempt {
    nominal_concurrency_shares: Option<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Limited {
    nominal_concurrency_shares: Option<u32>,
    lendable_percent: Option<u32>,
    borrowing_limit_percent: Option<u32>,
    #[serde(default)]
    limit_response: Response,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Response {
    queuing: Option<Queuing>,
}

/// How requests wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Queuing {
    #[serde(default = "default_queues")]
    pub queues: usize,
    #[serde(default = "default_hand")]
    pub hand_size: usize,
    #[serde(default = "default_length")]
    pub queue_length_limit: usize,
}

fn default_queues() -> usize {
    64
}
fn default_hand() -> usize {
    8
}
fn default_length() -> usize {
    50
}

/// How many requests of a level run at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seats {
    /// Its share of all.
    pub nominal: usize,
    /// What it never lends.
    pub guaranteed: usize,
    /// What it may have with what it borrows.
    pub most: usize,
}

impl LevelSpec {
    #[must_use]
    pub fn is_exempt(&self) -> bool {
        self.kind == "Exempt"
    }

    #[must_use]
    pub fn shares(&self) -> u32 {
        match &self.limited {
            Some(limited) => limited.nominal_concurrency_shares.unwrap_or(30),
            None => {
                let exempt = self.exempt.as_ref();
                exempt
                    .and_then(|e| e.nominal_concurrency_shares)
                    .unwrap_or(0)
            }
        }
    }

    /// Its part of `total` seats, of which there are `shares` for all levels.
    #[must_use]
    pub fn seats(&self, total: usize, shares: u32) -> Seats {
        let limited = self.limited.clone().unwrap_or_default();
        let part = f64::from(self.shares()) / f64::from(shares.max(1));
        let nominal = (total as f64 * part).ceil() as usize;
        let percent = |of: u32| (nominal as f64 * f64::from(of) / 100.0).round() as usize;
        let lent = percent(limited.lendable_percent.unwrap_or(0).min(100));
        let most = limited
            .borrowing_limit_percent
            .map_or(total, |limit| nominal + percent(limit));
        Seats {
            nominal,
            guaranteed: nominal - lent.min(nominal),
            most,
        }
    }

    /// `None` for levels whose requests do not wait.
    #[must_use]
    pub fn queuing(&self) -> Option<Queuing> {
        self.limited.as_ref()?.limit_response.queuing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Query;
    use http::Method;
    use serde_json::json;

    fn schema() -> FlowSchemaSpec {
        serde_json::from_value(json!({
            "priorityLevelConfiguration": {"name": "x"}, "matchingPrecedence": 100,
            "distinguisherMethod": {"type": "ByUser"},
            "rules": [{
                "subjects": [
                    {"kind": "User", "user": {"name": "jane"}},
                    {"kind": "Group", "group": {"name": "dev"}},
                    {"kind": "ServiceAccount", "serviceAccount": {"namespace": "ns", "name": "*"}},
                ],
                "resourceRules": [
                    {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"], "namespaces": ["ns"]},
                    {"verbs": ["*"], "apiGroups": ["*"], "resources": ["nodes"], "clusterScope": true},
                ],
                "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/openapi/*"]}],
            }],
        }))
        .unwrap()
    }

    #[test]
    fn requests_are_matched() {
        let jane = UserInfo::new("jane", &[]);
        let dev = UserInfo::new("joe", &["dev"]);
        let account = UserInfo::new("system:serviceaccount:ns:sa", &[]);
        let other = UserInfo::new("system:serviceaccount:other:sa", &[]);
        for (user, path, wanted) in [
            (&jane, "/api/v1/namespaces/ns/pods", true),
            (&dev, "/api/v1/namespaces/ns/pods/p/log", true),
            (&account, "/api/v1/nodes/n", true),
            (&other, "/api/v1/nodes/n", false),
            (&jane, "/api/v1/namespaces/other/pods", false),
            (&jane, "/api/v1/pods", false),
            (&jane, "/api/v1/namespaces/ns/pods/p/status", false),
            (&jane, "/healthz", true),
            (&jane, "/openapi/v3", true),
            (&jane, "/version", false),
        ] {
            let info = RequestInfo::parse(&Method::GET, path, &Query::parse("")).unwrap();
            assert_eq!(
                schema().matches(user, &info),
                wanted,
                "{} {path}",
                user.name
            );
        }
        let info = RequestInfo::default();
        assert_eq!(schema().flow(&jane, &info), "jane");
    }

    #[test]
    fn shares_become_seats() {
        let level: LevelSpec = serde_json::from_value(json!({"type": "Limited", "limited": {
            "nominalConcurrencyShares": 30, "lendablePercent": 33, "borrowingLimitPercent": 50,
            "limitResponse": {"type": "Queue", "queuing": {"queues": 4, "handSize": 2, "queueLengthLimit": 5}}}}))
        .unwrap();
        let seats = level.seats(600, 245);
        assert_eq!(seats.nominal, 74);
        assert_eq!(seats.guaranteed, 50);
        assert_eq!(seats.most, 111);
        assert_eq!(level.queuing().unwrap().hand_size, 2);
        let exempt: LevelSpec = serde_json::from_value(json!({"type": "Exempt"})).unwrap();
        assert!(exempt.is_exempt() && exempt.queuing().is_none());
    }
}
