//! What another service decides: it is sent a SubjectAccessReview.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::{Duration, Instant};

use apimachinery::selector::{FieldSelector, LabelSelector};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Attributes, Authorizer, Decision, Rule};
use crate::authn::UserInfo;
use crate::authn::webhook::ask;
use crate::outbound::Client;
use crate::strategy::check::{flag, text};

const MAX_CACHED: usize = 8192;
/// Longer requests are not remembered, so that nobody can fill the memory with them.
const MAX_KEY: usize = 10_000;

/// How a webhook is asked.
#[derive(Debug, Clone)]
pub struct Options {
    /// Of `authorization.k8s.io`.
    pub version: String,
    pub allowed_ttl: Duration,
    pub refused_ttl: Duration,
    pub timeout: Duration,
    /// Whether a service that does not answer refuses; otherwise the next authorizer decides.
    pub deny_on_failure: bool,
}

pub struct Webhook {
    client: Client,
    options: Options,
    known: Mutex<HashMap<u128, (Instant, Decision)>>,
    hashers: [RandomState; 2],
}

impl Webhook {
    /// The service that a kubeconfig file names.
    pub fn new(config: &Path, options: Options) -> anyhow::Result<Self> {
        anyhow::ensure!(
            matches!(options.version.as_str(), "v1" | "v1beta1"),
            "unsupported authorization webhook version {:?}, supported versions are \"v1\" and \"v1beta1\"",
            options.version
        );
        Ok(Self {
            client: Client::from_kubeconfig(config)?,
            options,
            known: Mutex::default(),
            hashers: [RandomState::new(), RandomState::new()],
        })
    }

    async fn decide(&self, a: &Attributes<'_>) -> Decision {
        let review = json!({
            "apiVersion": format!("authorization.k8s.io/{}", self.options.version),
            "kind": "SubjectAccessReview", "metadata": {"creationTimestamp": null},
            "spec": spec(a, &self.options.version),
        });
        let text = review["spec"].to_string();
        let [high, low] = [0, 1].map(|i: usize| u128::from(self.hashers[i].hash_one(&text)));
        let key = (high << 64) | low;
        let now = Instant::now();
        if let Some((until, known)) = self.known.lock().get(&key)
            && *until > now
        {
            return known.clone();
        }
        let decision = match ask(&self.client, &review, self.options.timeout).await {
            Ok(answer) => read(&answer["status"]),
            Err(error) => {
                tracing::warn!(%error, "the authorization webhook did not answer");
                return match self.options.deny_on_failure {
                    true => Decision::Deny(String::new()),
                    false => Decision::NoOpinion(String::new()),
                };
            }
        };
        let ttl = match decision {
            Decision::Allow(_) => self.options.allowed_ttl,
            _ => self.options.refused_ttl,
        };
        if text.len() <= MAX_KEY {
            let mut known = self.known.lock();
            if known.len() >= MAX_CACHED {
                known.clear();
            }
            known.insert(key, (now + ttl, decision.clone()));
        }
        decision
    }
}

fn read(status: &Value) -> Decision {
    let reason = text(status, "reason").to_owned();
    match (flag(status, "allowed"), flag(status, "denied")) {
        (true, true) => Decision::Deny(
            "webhook subject access review returned both allow and deny response".into(),
        ),
        (true, false) => Decision::Allow(reason),
        (false, true) => Decision::Deny(reason),
        (false, false) => Decision::NoOpinion(reason),
    }
}

fn spec(a: &Attributes<'_>, version: &str) -> Value {
    let groups = if version == "v1" { "groups" } else { "group" };
    let mut spec = json!({"user": a.user.name});
    if !a.user.groups.is_empty() {
        spec[groups] = json!(a.user.groups);
    }
    if !a.user.uid.is_empty() {
        spec["uid"] = a.user.uid.as_str().into();
    }
    if !a.user.extra.is_empty() {
        spec["extra"] = json!(a.user.extra);
    }
    if !a.is_resource {
        spec["nonResourceAttributes"] = json!({"path": a.path, "verb": a.verb});
        return spec;
    }
    let mut resource = json!({});
    for (key, value) in [
        ("namespace", a.namespace),
        ("verb", a.verb),
        ("group", a.group),
        ("version", a.version),
        ("resource", a.resource),
        ("subresource", a.subresource),
        ("name", a.name),
    ] {
        if !value.is_empty() {
            resource[key] = value.into();
        }
    }
    // Selectors that cannot be read select everything: saying nothing of them asks for more, never for less.
    if !a.label_selector.is_empty() && LabelSelector::parse(a.label_selector).is_ok() {
        resource["labelSelector"] = json!({"rawSelector": a.label_selector});
    }
    if !a.field_selector.is_empty() && FieldSelector::parse(a.field_selector).is_ok() {
        resource["fieldSelector"] = json!({"rawSelector": a.field_selector});
    }
    spec["resourceAttributes"] = resource;
    spec
}

impl Authorizer for Webhook {
    fn authorize<'a>(&'a self, attributes: &'a Attributes<'a>) -> BoxFuture<'a, Decision> {
        Box::pin(self.decide(attributes))
    }

    fn rules<'a>(
        &'a self,
        _user: &'a UserInfo,
        _namespace: &'a str,
    ) -> BoxFuture<'a, (Vec<Rule>, Option<String>)> {
        let why = "webhook authorizer does not support user rule resolution";
        Box::pin(std::future::ready((Vec::new(), Some(why.to_owned()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reviews_say_what_is_asked() {
        let user = UserInfo::new("jane", &["dev"]);
        let base = Attributes {
            user: &user,
            verb: "list",
            namespace: "ns",
            group: "apps",
            version: "v1",
            resource: "deployments",
            subresource: "",
            name: "",
            is_resource: true,
            path: "/apis/apps/v1/namespaces/ns/deployments",
            field_selector: "",
            label_selector: "a=b",
        };
        assert_eq!(
            spec(&base, "v1"),
            json!({"user": "jane", "groups": ["dev"], "resourceAttributes": {
                "namespace": "ns", "verb": "list", "group": "apps", "version": "v1", "resource": "deployments",
                "labelSelector": {"rawSelector": "a=b"}}})
        );
        let path = Attributes {
            is_resource: false,
            path: "/metrics",
            verb: "get",
            ..base
        };
        let asked = spec(&path, "v1beta1");
        assert_eq!(asked["group"], json!(["dev"]));
        assert_eq!(
            asked["nonResourceAttributes"],
            json!({"path": "/metrics", "verb": "get"})
        );
    }

    #[test]
    fn answers_are_read() {
        let decide = |status: Value| read(&status);
        assert_eq!(
            decide(json!({"allowed": true, "reason": "r"})),
            Decision::Allow("r".into())
        );
        assert_eq!(
            decide(json!({"denied": true})),
            Decision::Deny(String::new())
        );
        assert_eq!(decide(json!({})), Decision::NoOpinion(String::new()));
        assert!(matches!(
            decide(json!({"allowed": true, "denied": true})),
            Decision::Deny(_)
        ));
    }
}
