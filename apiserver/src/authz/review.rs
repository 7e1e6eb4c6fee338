//! The access reviews: may somebody, may I, what may I.
//!
//! They are created and answered, never stored.

use apimachinery::field::Path;
use apimachinery::resource::GroupKind;
use apimachinery::status::{Result, Status};
use serde_json::{Value, json};

use super::{Attributes, Authorizer, Decision, Rule};
use crate::authn::UserInfo;
use crate::strategy::check::{Checks, given, list, text};

/// Answers one of the four reviews of `authorization.k8s.io`. `namespace` is that of the URL.
pub async fn answer(
    authorizer: &dyn Authorizer,
    requestor: &UserInfo,
    plural: &str,
    namespace: &str,
    mut review: Value,
) -> Result<Value> {
    if plural == "selfsubjectrulesreviews" {
        return self_rules(authorizer, requestor, review).await;
    }
    validate(plural, namespace, &review)?;
    let spec = &review["spec"];
    let user = match plural {
        "selfsubjectaccessreviews" => requestor.clone(),
        _ => subject(spec),
    };
    let (decision, reason) = match decide(authorizer, &user, spec).await {
        Decision::Allow(reason) => ("allowed", reason),
        Decision::Deny(reason) => ("denied", reason),
        Decision::NoOpinion(reason) => ("", reason),
    };
    let mut status = json!({"allowed": decision == "allowed"});
    if decision == "denied" {
        status["denied"] = true.into();
    }
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    review["status"] = status;
    Ok(review)
}

fn subject(spec: &Value) -> UserInfo {
    let strings = |v: &Value| -> Vec<String> {
        v.as_array()
            .into_iter()
            .flatten()
            .filter_map(|s| s.as_str().map(str::to_owned))
            .collect()
    };
    let extra = spec["extra"].as_object().into_iter().flatten();
    UserInfo {
        name: text(spec, "user").to_owned(),
        uid: text(spec, "uid").to_owned(),
        groups: strings(&spec["groups"]),
        extra: extra.map(|(k, v)| (k.to_lowercase(), strings(v))).collect(),
    }
}

async fn decide(authorizer: &dyn Authorizer, user: &UserInfo, spec: &Value) -> Decision {
    let (selector, none) = (field_selector(spec), Value::Null);
    let attributes = match given(spec, "resourceAttributes") {
        Some(r) => Attributes {
            user,
            verb: text(r, "verb"),
            namespace: text(r, "namespace"),
            group: text(r, "group"),
            version: text(r, "version"),
            resource: text(r, "resource"),
            subresource: text(r, "subresource"),
            name: text(r, "name"),
            is_resource: true,
            path: "",
            field_selector: &selector,
            label_selector: "",
        },
        None => {
            let path = spec.get("nonResourceAttributes").unwrap_or(&none);
            Attributes {
                user,
                verb: text(path, "verb"),
                path: text(path, "path"),
                is_resource: false,
                namespace: "",
                group: "",
                version: "",
                resource: "",
                subresource: "",
                name: "",
                field_selector: "",
                label_selector: "",
            }
        }
    };
    authorizer.authorize(&attributes).await
}

/// The field selector of a review as one string, which is how authorizers read it.
fn field_selector(spec: &Value) -> String {
    let attributes = given(spec, "resourceAttributes");
    let Some(selector) = attributes.and_then(|a| given(a, "fieldSelector")) else {
        return String::new();
    };
    let raw = text(selector, "rawSelector");
    if !raw.is_empty() {
        return raw.to_owned();
    }
    let terms = list(selector, "requirements").iter().filter_map(|r| {
        match (text(r, "operator"), list(r, "values")) {
            ("In", [value]) => Some(format!("{}={}", text(r, "key"), value.as_str()?)),
            ("NotIn", [value]) => Some(format!("{}!={}", text(r, "key"), value.as_str()?)),
            _ => None,
        }
    });
    terms.collect::<Vec<_>>().join(",")
}

fn validate(plural: &str, namespace: &str, review: &Value) -> Result<()> {
    let mut checks = Checks::default();
    let (spec, path) = (&review["spec"], Path::new("spec"));
    let (resource, other) = (
        given(spec, "resourceAttributes"),
        given(spec, "nonResourceAttributes"),
    );
    match (resource, other) {
        (Some(_), Some(other)) => {
            let path = path.child("nonResourceAttributes");
            checks.invalid(
                &path,
                other.clone(),
                "cannot be specified in combination with resourceAttributes",
            );
        }
        (None, None) => {
            let why =
                "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            checks.invalid(&path.child("resourceAttributes"), Value::Null, why);
        }
        _ => {}
    }
    let kind = match plural {
        "selfsubjectaccessreviews" => "SelfSubjectAccessReview",
        "localsubjectaccessreviews" => "LocalSubjectAccessReview",
        _ => "SubjectAccessReview",
    };
    if kind != "SelfSubjectAccessReview"
        && text(spec, "user").is_empty()
        && list(spec, "groups").is_empty()
    {
        checks.invalid(
            &path.child("user"),
            "",
            "at least one of user or group must be specified",
        );
    }
    if kind == "LocalSubjectAccessReview" {
        if let Some(resource) = resource.filter(|r| text(r, "namespace") != namespace) {
            let path = path.child("resourceAttributes").child("namespace");
            checks.invalid(
                &path,
                text(resource, "namespace"),
                "must match metadata.namespace",
            );
        }
        if let Some(other) = other {
            let path = path.child("nonResourceAttributes");
            checks.invalid(&path, other.clone(), "disallowed on this kind of request");
        }
    }
    let errors = checks.done();
    if errors.0.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(
        &GroupKind::new("authorization.k8s.io", kind),
        "",
        errors,
    ))
}

async fn self_rules(
    authorizer: &dyn Authorizer,
    requestor: &UserInfo,
    mut review: Value,
) -> Result<Value> {
    let namespace = text(&review["spec"], "namespace").to_owned();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (rules, error) = authorizer.rules(requestor, &namespace).await;
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in rules {
        match rule {
            Rule::Resource {
                verbs,
                groups,
                resources: names_of,
                names,
            } => {
                let mut rule = json!({"verbs": verbs, "apiGroups": groups, "resources": names_of});
                if !names.is_empty() {
                    rule["resourceNames"] = json!(names);
                }
                resources.push(rule);
            }
            Rule::NonResource { verbs, urls } => {
                paths.push(json!({"verbs": verbs, "nonResourceURLs": urls}))
            }
        }
    }
    review["status"] = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": error.is_some()});
    if let Some(error) = error {
        review["status"]["evaluationError"] = error.into();
    }
    Ok(review)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::BoxFuture;

    /// Lets jane read pods, and denies mallory.
    struct Fixed;
    impl Authorizer for Fixed {
        fn authorize<'a>(&'a self, a: &'a Attributes<'a>) -> BoxFuture<'a, Decision> {
            let decision = match (a.user.name.as_str(), a.resource, a.path) {
                ("jane", "pods", _) | ("jane", _, "/metrics") => Decision::Allow("yes".into()),
                ("mallory", ..) => Decision::Deny("never".into()),
                _ => Decision::NoOpinion(String::new()),
            };
            Box::pin(async { decision })
        }
        fn rules<'a>(
            &'a self,
            _: &'a UserInfo,
            _: &'a str,
        ) -> BoxFuture<'a, (Vec<Rule>, Option<String>)> {
            let rule = Rule::NonResource {
                verbs: vec!["get".into()],
                urls: vec!["/x".into()],
            };
            Box::pin(async { (vec![rule], Some("and more".into())) })
        }
    }

    async fn ask(plural: &str, spec: Value) -> std::result::Result<Value, String> {
        let jane = UserInfo::new("jane", &[]);
        let answered = answer(&Fixed, &jane, plural, "ns", json!({"spec": spec})).await;
        answered.map(|r| r["status"].clone()).map_err(|e| e.message)
    }

    #[tokio::test]
    async fn reviews_are_answered() {
        let pods = json!({"verb": "get", "resource": "pods", "namespace": "ns"});
        let of = |user: &str, r: &Value| json!({"user": user, "resourceAttributes": r});
        let yes = json!({"allowed": true, "reason": "yes"});
        for (plural, spec, want) in [
            (
                "selfsubjectaccessreviews",
                json!({"resourceAttributes": pods}),
                yes.clone(),
            ),
            (
                "selfsubjectaccessreviews",
                json!({"nonResourceAttributes": {"verb": "get", "path": "/metrics"}}),
                yes.clone(),
            ),
            (
                "subjectaccessreviews",
                of("bob", &pods),
                json!({"allowed": false}),
            ),
            (
                "subjectaccessreviews",
                of("mallory", &pods),
                json!({"allowed": false, "denied": true, "reason": "never"}),
            ),
            ("localsubjectaccessreviews", of("jane", &pods), yes),
            (
                "selfsubjectrulesreviews",
                json!({"namespace": "ns"}),
                json!({"resourceRules": [], "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}],
                    "incomplete": true, "evaluationError": "and more"}),
            ),
        ] {
            assert_eq!(ask(plural, spec.clone()).await, Ok(want), "{plural} {spec}");
        }
    }

    #[tokio::test]
    async fn reviews_are_validated() {
        for (plural, spec, want) in [
            (
                "selfsubjectaccessreviews",
                json!({}),
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ),
            (
                "subjectaccessreviews",
                json!({"resourceAttributes": {}}),
                "at least one of user or group must be specified",
            ),
            (
                "localsubjectaccessreviews",
                json!({"user": "u", "resourceAttributes": {"namespace": "x"}}),
                "must match metadata.namespace",
            ),
            (
                "selfsubjectrulesreviews",
                json!({}),
                "no namespace on request",
            ),
        ] {
            let error = ask(plural, spec).await.unwrap_err();
            assert!(error.contains(want), "{plural}: {error}");
        }
    }
}
