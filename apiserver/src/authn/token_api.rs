//! Tokens over the API: TokenRequest issues them, TokenReview checks them, SelfSubjectReview says who I am.

use apimachinery::field::Path;
use apimachinery::object;
use apimachinery::resource::{GroupKind, GroupResource};
use apimachinery::status::{Result, Status};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::keys::{PublicKey, SigningKey};
use super::service_account::{Bound, Claims, Reference, user_name};
use super::{Authenticator, UserInfo};
use crate::registry::Registry;
use crate::strategy::check::{Checks, given, integer, list, text};

/// Pods ask for exactly this lifetime by default; such tokens really live a year, so that old clients that read them
/// only once go on working, and warn instead of fail after it.
const WARN_ONLY: i64 = 60 * 60 + 7;
const EXTENDED: i64 = 365 * 24 * 60 * 60;
const HOUR: i64 = 60 * 60;

/// Signs tokens for service accounts.
pub struct Issuer {
    pub key: SigningKey,
    pub issuer: String,
    pub api_audiences: Vec<String>,
    /// All keys that tokens are checked with, for others to check them too.
    pub keys: Vec<PublicKey>,
    /// Where those are published.
    pub jwks_uri: String,
}

impl Issuer {
    /// Answers `POST .../serviceaccounts/NAME/token`.
    pub async fn request(
        &self,
        registry: &Registry,
        namespace: &str,
        name: &str,
        mut request: Value,
    ) -> Result<Value> {
        let account = registry
            .get("", "serviceaccounts", namespace, name)
            .await?
            .value();
        self.complete(&mut request, &account)?;
        let mut bound = Bound {
            namespace: namespace.to_owned(),
            serviceaccount: reference(&account),
            ..Bound::default()
        };
        let spec = &request["spec"];
        if let Some(object) = given(spec, "boundObjectRef") {
            bind(registry, namespace, name, object, &mut bound).await?;
        }
        let audiences: Vec<String> = list(spec, "audiences")
            .iter()
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect();
        let asked = integer(spec, "expirationSeconds").unwrap_or(HOUR);
        let ours = audiences.iter().all(|a| self.api_audiences.contains(a));
        let extended = asked == WARN_ONLY && bound.pod.is_some() && ours;
        let now = Timestamp::now().as_second();
        bound.warnafter = extended.then_some(now + asked);
        let claims = Claims {
            aud: audiences,
            exp: Some(now + if extended { EXTENDED } else { asked }),
            iat: Some(now),
            nbf: Some(now),
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            sub: user_name(namespace, name),
            kubernetes: bound,
        };
        let token = self
            .key
            .sign(&claims)
            .map_err(|e| Status::internal(format!("failed to generate token: {e}")))?;
        let expires = Timestamp::from_second(now + asked)
            .map(apimachinery::time::format)
            .unwrap_or_default();
        request["status"] = json!({"token": token, "expirationTimestamp": expires});
        Ok(request)
    }

    /// Defaults and validates a request against the account it is for.
    fn complete(&self, request: &mut Value, account: &Value) -> Result<()> {
        let (namespace, name) = (object::namespace(account), object::name(account));
        let kind = GroupKind::new("authentication.k8s.io", "TokenRequest");
        let mut checks = Checks::default();
        let metadata = Path::new("metadata");
        for (field, given, wanted) in [
            ("name", object::name(request), name),
            ("namespace", object::namespace(request), namespace),
        ] {
            if !given.is_empty() && given != wanted {
                let why = format!("must match the service account {field} if specified");
                checks.invalid(&metadata.child(field), given, &why);
            }
        }
        let uid = object::uid(request);
        if !uid.is_empty() && uid != object::uid(account) {
            let why = format!(
                "the UID in the token request ({uid}) does not match the UID of the service account ({})",
                object::uid(account)
            );
            return Err(Status::conflict(
                &GroupResource::new("authentication.k8s.io", "TokenRequest"),
                name,
                why,
            ));
        }
        if !request["spec"].is_object() {
            request["spec"] = json!({});
        }
        let spec = &mut request["spec"];
        if list(spec, "audiences").is_empty() {
            spec["audiences"] = json!(self.api_audiences);
        }
        crate::strategy::check::set_default(spec, "expirationSeconds", HOUR);
        let seconds = integer(spec, "expirationSeconds").unwrap_or(0);
        let path = Path::new("spec").child("expirationSeconds");
        if seconds < 600 {
            checks.invalid(
                &path,
                seconds,
                "may not specify a duration less than 10 minutes",
            );
        }
        if seconds > 1 << 32 {
            checks.invalid(
                &path,
                seconds,
                "may not specify a duration larger than 2^32 seconds",
            );
        }
        let errors = checks.done();
        if !errors.0.is_empty() {
            return Err(Status::invalid(&kind, "", errors));
        }
        object::set_name(request, name);
        object::set_namespace(request, namespace);
        object::set_uid(request, object::uid(account));
        object::set_metadata(
            request,
            "creationTimestamp",
            apimachinery::time::format(Timestamp::now()),
        );
        Ok(())
    }
}

fn reference(object: &Value) -> Reference {
    Reference {
        name: object::name(object).to_owned(),
        uid: object::uid(object).to_owned(),
    }
}

/// Binds a token to the pod, node or secret that it names.
async fn bind(
    registry: &Registry,
    namespace: &str,
    account: &str,
    wanted: &Value,
    bound: &mut Bound,
) -> Result<()> {
    let (kind, name) = (text(wanted, "kind"), text(wanted, "name"));
    let plural = match (text(wanted, "apiVersion"), kind) {
        ("v1", "Pod") => "pods",
        ("v1", "Node") => "nodes",
        ("v1", "Secret") => "secrets",
        (version, kind) => {
            let (group, version) = version.split_once('/').unwrap_or(("", version));
            let shown = format!("{group}/{version}, Kind={kind}");
            return Err(Status::bad_request(format!(
                "cannot bind token to object of type {shown}"
            )));
        }
    };
    let namespace = if plural == "nodes" { "" } else { namespace };
    let object = registry.get("", plural, namespace, name).await?.value();
    let found = reference(&object);
    let uid = text(wanted, "uid");
    if !uid.is_empty() && uid != found.uid {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(
            &GroupResource::new("", kind.to_owned()),
            name,
            why,
        ));
    }
    match plural {
        "pods" => {
            if text(&object["spec"], "serviceAccountName") != account {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                )));
            }
            let node = text(&object["spec"], "nodeName");
            if !node.is_empty() {
                let live = registry.get("", "nodes", "", node).await;
                let gone = Reference {
                    name: node.to_owned(),
                    uid: String::new(),
                };
                bound.node = Some(live.map_or(gone, |n| reference(&n.value())));
            }
            bound.pod = Some(found);
        }
        "nodes" => bound.node = Some(found),
        _ => bound.secret = Some(found),
    }
    Ok(())
}

/// Answers a TokenReview.
pub async fn review(authenticator: &Authenticator, mut review: Value) -> Result<Value> {
    let token = text(&review["spec"], "token").to_owned();
    if token.is_empty() {
        return Err(Status::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let audiences: Vec<String> = list(&review["spec"], "audiences")
        .iter()
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    review["status"] = match authenticator.review(&token, &audiences).await {
        Ok((user, audiences)) => {
            json!({"authenticated": true, "user": user.to_value(), "audiences": audiences})
        }
        Err(error) => json!({"error": error}),
    };
    Ok(review)
}

/// Answers a SelfSubjectReview.
#[must_use]
pub fn who_am_i(user: &UserInfo, mut review: Value) -> Value {
    review["status"] = json!({"userInfo": user.to_value()});
    object::set_metadata(
        &mut review,
        "creationTimestamp",
        apimachinery::time::format(Timestamp::now()),
    );
    review
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::keys::tests::ec_pem;

    fn issuer() -> Issuer {
        Issuer {
            key: SigningKey::read(ec_pem().as_bytes()).unwrap(),
            issuer: "https://issuer".into(),
            api_audiences: vec!["api".into()],
            keys: Vec::new(),
            jwks_uri: String::new(),
        }
    }

    #[test]
    fn requests_are_completed_and_checked() {
        let account = json!({"metadata": {"name": "sa", "namespace": "ns", "uid": "u"}});
        let mut request = json!({});
        issuer().complete(&mut request, &account).unwrap();
        assert_eq!(
            request["spec"],
            json!({"audiences": ["api"], "expirationSeconds": 3600})
        );
        assert_eq!(request["metadata"]["name"], "sa");
        for (request, want) in [
            (
                json!({"spec": {"expirationSeconds": 599}}),
                "may not specify a duration less than 10 minutes",
            ),
            (
                json!({"spec": {"expirationSeconds": (1_i64 << 32) + 1}}),
                "may not specify a duration larger than 2^32 seconds",
            ),
            (
                json!({"metadata": {"name": "other"}}),
                "must match the service account name if specified",
            ),
            (
                json!({"metadata": {"uid": "other"}}),
                "does not match the UID of the service account (u)",
            ),
        ] {
            let error = issuer()
                .complete(&mut request.clone(), &account)
                .unwrap_err();
            assert!(error.message.contains(want), "{request}: {}", error.message);
        }
    }
}
