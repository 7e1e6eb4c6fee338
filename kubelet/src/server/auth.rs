//! Who asks, and whether they may. A client certificate or a bearer token names the caller;
//! the API server decides with a SubjectAccessReview on `nodes/<subresource>`. Decisions
//! are kept for a while, as Kubernetes' kubelet keeps them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};
use parking_lot::Mutex;

use super::tls::User;
use super::{Refused, Shared, internal};
use crate::context::Node;

const ALLOWED_FOR: Duration = Duration::from_secs(300);
const DENIED_FOR: Duration = Duration::from_secs(30);
const TOKEN_FOR: Duration = Duration::from_secs(120);

type Question = (User, &'static str, String);

pub struct Auth {
    client: kube::Client,
    node: String,
    decisions: Mutex<HashMap<Question, (bool, Instant)>>,
    tokens: Mutex<HashMap<String, (User, Instant)>>,
}

/// Middleware: lets a request through or answers 401 or 403.
pub async fn check(State(server): State<Shared>, request: Request, next: Next) -> Response {
    let verb = verb(request.method());
    let subresource = subresource(request.uri().path());
    let certified = request.extensions().get::<User>().cloned();
    let header = request
        .headers()
        .get("authorization")
        .and_then(|h| h.to_str().ok());
    let token = header
        .and_then(|h| h.strip_prefix("Bearer "))
        .map(str::to_string);
    let user = match server.auth.user(certified, token).await {
        Ok(Some(user)) => user,
        Ok(None) => return (StatusCode::UNAUTHORIZED, "Unauthorized").into_response(),
        Err(refused) => return refused.into_response(),
    };
    match server.auth.allowed(&user, verb, subresource).await {
        Ok(true) => next.run(request).await,
        Ok(false) => {
            let message = format!(
                "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{subresource}])",
                user.name
            );
            (StatusCode::FORBIDDEN, message).into_response()
        }
        Err(refused) => refused.into_response(),
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// The part of `nodes` that a path stands for.
fn subresource(path: &str) -> &'static str {
    match path.split('/').nth(1) {
        Some("stats") => "stats",
        Some("metrics") => "metrics",
        Some("logs") => "log",
        Some("spec") => "spec",
        Some("pods" | "runningpods") => "pods",
        _ => "proxy",
    }
}

impl Auth {
    pub fn new(node: &Node) -> Self {
        Auth {
            client: node.client.clone(),
            node: node.name.clone(),
            decisions: Mutex::default(),
            tokens: Mutex::default(),
        }
    }

    async fn user(
        &self,
        certified: Option<User>,
        token: Option<String>,
    ) -> Result<Option<User>, Refused> {
        let (None, Some(token)) = (&certified, token) else {
            return Ok(certified);
        };
        let known = self
            .tokens
            .lock()
            .get(&token)
            .filter(|(_, until)| Instant::now() < *until)
            .map(|(user, _)| user.clone());
        if known.is_some() {
            return Ok(known);
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.clone(),
                audiences: None,
            },
            ..Default::default()
        };
        let reviewed = Api::<TokenReview>::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(internal)?;
        let status = reviewed.status.unwrap_or_default();
        let Some(found) = status.user.filter(|_| status.authenticated == Some(true)) else {
            return Ok(None);
        };
        let user = User {
            name: found.username.unwrap_or_default(),
            groups: found.groups.unwrap_or_default(),
        };
        let mut tokens = self.tokens.lock();
        tokens.retain(|_, (_, until)| Instant::now() < *until);
        tokens.insert(token, (user.clone(), Instant::now() + TOKEN_FOR));
        Ok(Some(user))
    }

    async fn allowed(
        &self,
        user: &User,
        verb: &'static str,
        subresource: &str,
    ) -> Result<bool, Refused> {
        let question = (user.clone(), verb, subresource.to_string());
        let known = self
            .decisions
            .lock()
            .get(&question)
            .filter(|(_, until)| Instant::now() < *until)
            .map(|(allowed, _)| *allowed);
        if let Some(allowed) = known {
            return Ok(allowed);
        }
        // What is allowed on all of the node is allowed on its parts.
        let mut allowed = self.ask(user, verb, subresource).await?;
        if !allowed && subresource == "pods" {
            allowed = self.ask(user, verb, "proxy").await?;
        }
        let keep = if allowed { ALLOWED_FOR } else { DENIED_FOR };
        let mut decisions = self.decisions.lock();
        decisions.retain(|_, (_, until)| Instant::now() < *until);
        decisions.insert(question, (allowed, Instant::now() + keep));
        Ok(allowed)
    }

    async fn ask(&self, user: &User, verb: &str, subresource: &str) -> Result<bool, Refused> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                groups: Some(
                    user.groups
                        .iter()
                        .cloned()
                        .chain(["system:authenticated".to_string()])
                        .collect(),
                ),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some(subresource.into()),
                    name: Some(self.node.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Default::default()
        };
        let reviews = Api::<SubjectAccessReview>::all(self.client.clone());
        let answer = reviews
            .create(&PostParams::default(), &review)
            .await
            .map_err(internal)?;
        Ok(answer.status.is_some_and(|s| s.allowed))
    }
}
