//! Who is asking: from a client certificate, a bearer token or nothing to a [`UserInfo`].
//!
//! [`request_header`] believes front proxies, [`x509`] reads certificates that TLS has verified. [`tokens`] asks everyone who
//! knows bearer tokens: [`service_account`] checks them against the live objects that they are bound to, [`legacy_token`]
//! against the Secrets that they live in, [`bootstrap_token`] and [`token_file`] look them up, [`oidc`] checks an issuer's signature, [`webhook`] asks a service;
//! [`configuration`] says which. [`impersonation`] lets those who may act as somebody else. [`keys`] holds the signing
//! keys, [`token_api`] issues and reviews tokens.

pub mod bootstrap_token;
pub mod configuration;
pub mod impersonation;
pub mod keys;
pub mod legacy_token;
pub mod oidc;
pub mod request_header;
pub mod service_account;
pub mod token_api;
pub mod token_file;
pub mod tokens;
pub mod webhook;
pub mod x509;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use apimachinery::status::{Result, Status};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::HeaderMap;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};

use request_header::{FrontProxy, Roles};
use tokens::Tokens;

use crate::rest::Connection;

/// An authenticated identity, as admission, authorization and audit see it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

pub const ANONYMOUS: &str = "system:anonymous";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const AUTHENTICATED: &str = "system:authenticated";
/// May do everything, whatever the authorizers say.
pub const MASTERS: &str = "system:masters";
/// The API server's own loopback identity.
pub const APISERVER: &str = "system:apiserver";

impl UserInfo {
    #[must_use]
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        Self {
            name: name.into(),
            groups: groups.iter().map(ToString::to_string).collect(),
            ..Self::default()
        }
    }

    /// The identity of requests without credentials.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::new(ANONYMOUS, &[UNAUTHENTICATED])
    }

    /// The identity under which the API server writes for itself (bootstrap, reconcilers).
    #[must_use]
    pub fn apiserver() -> Self {
        Self::new(APISERVER, &[MASTERS])
    }

    /// The same, in the group of all who have said who they are.
    #[must_use]
    pub fn authenticated(mut self) -> Self {
        if self.name != ANONYMOUS && !self.in_group(AUTHENTICATED) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
    }

    #[must_use]
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// As `UserInfo` of `authentication.k8s.io/v1`.
    #[must_use]
    pub fn to_value(&self) -> serde_json::Value {
        let mut user = serde_json::json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            user["uid"] = self.uid.clone().into();
        }
        if !self.extra.is_empty() {
            user["extra"] = serde_json::json!(self.extra);
        }
        user
    }
}

/// Who may ask without saying who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Anonymous {
    Nowhere,
    /// Only these paths: those of the health checks, which load balancers and probes read.
    Paths(Vec<String>),
    Everywhere,
}

impl Anonymous {
    fn allows(&self, path: &str) -> bool {
        match self {
            Self::Nowhere => false,
            Self::Everywhere => true,
            Self::Paths(paths) => paths.iter().any(|allowed| allowed == path),
        }
    }
}

/// Whether two secrets are the same, in a time that does not tell how much of them is.
fn same(a: &str, b: &str) -> bool {
    let differences = a
        .bytes()
        .zip(b.bytes())
        .fold(0, |all, (x, y)| all | (x ^ y));
    a.len() == b.len() && differences == 0
}

/// A value of a Secret's `data`, if it is text.
fn decoded(data: &serde_json::Value, key: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(data[key].as_str()?).ok()?).ok()
}

/// Finds out who a request is from.
pub struct Authenticator {
    front_proxy: Option<FrontProxy>,
    tokens: Tokens,
    anonymous: Anonymous,
    anonymous_user: Arc<UserInfo>,
}

impl Authenticator {
    #[must_use]
    pub fn new(tokens: Tokens, anonymous: Anonymous) -> Self {
        Self {
            front_proxy: None,
            tokens,
            anonymous,
            anonymous_user: Arc::new(UserInfo::anonymous()),
        }
    }

    /// Also takes the word of front proxies.
    #[must_use]
    pub fn with_front_proxy(self, front_proxy: Option<FrontProxy>) -> Self {
        Self {
            front_proxy,
            ..self
        }
    }

    /// What a certificate that TLS has accepted is good for.
    #[must_use]
    pub fn roles(&self, chain: &[rustls::pki_types::CertificateDer<'_>]) -> Roles {
        let only_clients = Roles {
            client: true,
            front_proxy: false,
        };
        self.front_proxy
            .as_ref()
            .map_or(only_clients, |proxy| proxy.roles(chain))
    }

    /// The user of a request: who a front proxy says, its certificate, its bearer token or nobody. 401 where that is
    /// not enough.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        connection: &Connection,
        path: &str,
    ) -> Result<Arc<UserInfo>> {
        if connection.front_proxy
            && let Some(user) = self
                .front_proxy
                .as_ref()
                .and_then(|proxy| proxy.user(headers))
        {
            return Ok(Arc::new(user.authenticated()));
        }
        if let Some(certificate) = &connection.certificate {
            if certificate.is_valid_at(SystemTime::now()) {
                return Ok(certificate.user.clone());
            }
            tracing::info!(
                user = certificate.user.name,
                "client certificate is not valid now"
            );
            return Err(Status::unauthorized("Unauthorized"));
        }
        if let Some(token) = bearer(headers) {
            return self.tokens.user(&token).await.map_err(|why| {
                tracing::info!(%why, "bearer token refused");
                Status::unauthorized("Unauthorized")
            });
        }
        if self.anonymous.allows(path) && !connection.stranger {
            return Ok(self.anonymous_user.clone());
        }
        Err(Status::unauthorized("Unauthorized"))
    }

    /// The user and audiences of a token under review.
    pub async fn review(
        &self,
        token: &str,
        audiences: &[String],
    ) -> std::result::Result<(UserInfo, Vec<String>), String> {
        self.tokens.verify(token, audiences).await
    }
}

/// The token in `Authorization: Bearer`, or in a WebSocket's subprotocols, where browsers put it.
fn bearer(headers: &HeaderMap) -> Option<String> {
    const PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";
    if let Some(value) = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()) {
        let (scheme, token) = value.trim().split_once(' ')?;
        let token = token.trim();
        return (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
            .then(|| token.to_owned());
    }
    let protocols = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok());
    let encoded = protocols
        .flat_map(|v| v.split(','))
        .find_map(|p| p.trim().strip_prefix(PROTOCOL))?;
    let token = URL_SAFE_NO_PAD.decode(encoded).ok()?;
    String::from_utf8(token).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, String)]) -> HeaderMap {
        list.iter()
            .map(|(k, v)| (k.parse::<http::HeaderName>().unwrap(), v.parse().unwrap()))
            .collect()
    }

    #[test]
    fn tokens_are_found_where_clients_put_them() {
        let encoded = format!(
            "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.{}",
            URL_SAFE_NO_PAD.encode("t")
        );
        for (given, want) in [
            (vec![("authorization", "Bearer t".to_owned())], Some("t")),
            (vec![("authorization", "bearer  t ".to_owned())], Some("t")),
            (vec![("authorization", "Basic t".to_owned())], None),
            (vec![("authorization", "Bearer ".to_owned())], None),
            (vec![("sec-websocket-protocol", encoded)], Some("t")),
            (vec![], None),
        ] {
            assert_eq!(bearer(&headers(&given)).as_deref(), want, "{given:?}");
        }
    }

    #[tokio::test]
    async fn without_credentials_only_health_is_open() {
        let health = Anonymous::Paths(vec!["/livez".into()]);
        let authenticator = Authenticator::new(Tokens::default(), health);
        for (path, want) in [("/livez", true), ("/livezz", false), ("/api", false)] {
            let user = authenticator
                .authenticate(&HeaderMap::new(), &Connection::default(), path)
                .await;
            assert_eq!(user.is_ok(), want, "{path}");
        }
        let bad = headers(&[("authorization", "Bearer forged".into())]);
        let refused = authenticator
            .authenticate(&bad, &Connection::default(), "/livez")
            .await
            .unwrap_err();
        assert_eq!(
            (refused.code, refused.message.as_str()),
            (401, "Unauthorized")
        );
    }
}
