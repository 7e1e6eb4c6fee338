//! Who is asking: from a client certificate, a bearer token or nothing to a [`UserInfo`].
//!
//! [`x509`] reads certificates that TLS has verified, [`service_account`] checks tokens against the live objects that
//! they are bound to, [`impersonation`] lets those who may act as somebody else. [`keys`] holds the signing keys,
//! [`token_api`] issues and reviews tokens.

pub mod impersonation;
pub mod keys;
pub mod service_account;
pub mod token_api;
pub mod x509;

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use apimachinery::status::{Result, Status};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use parking_lot::Mutex;

use service_account::Tokens;
use x509::CertificateUser;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anonymous {
    Nowhere,
    /// Only `/livez`, `/readyz` and `/healthz`, which load balancers and probes read.
    Health,
    Everywhere,
}

impl Anonymous {
    fn allows(self, path: &str) -> bool {
        match self {
            Self::Nowhere => false,
            Self::Everywhere => true,
            Self::Health => ["/livez", "/readyz", "/healthz"].iter().any(|health| {
                path.strip_prefix(health)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }),
        }
    }
}

/// Verified tokens are believed for so long, refused ones refused: as Kubernetes' token cache.
const TTL: Duration = Duration::from_secs(10);
const MAX_CACHED: usize = 4096;

/// Who a token is from, or what is wrong with it.
type Verdict = std::result::Result<Arc<UserInfo>, String>;

/// Finds out who a request is from.
pub struct Authenticator {
    tokens: Option<Tokens>,
    anonymous: Anonymous,
    anonymous_user: Arc<UserInfo>,
    cache: Mutex<HashMap<u128, (Instant, Verdict)>>,
    hashers: [RandomState; 2],
}

impl Authenticator {
    #[must_use]
    pub fn new(tokens: Option<Tokens>, anonymous: Anonymous) -> Self {
        Self {
            tokens,
            anonymous,
            anonymous_user: Arc::new(UserInfo::anonymous()),
            cache: Mutex::default(),
            hashers: [RandomState::new(), RandomState::new()],
        }
    }

    /// The user of a request: its certificate, its bearer token or nobody. 401 where that is not enough.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        certificate: Option<&CertificateUser>,
        path: &str,
    ) -> Result<Arc<UserInfo>> {
        if let Some(certificate) = certificate {
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
            return self.token(&token).await.map_err(|why| {
                tracing::info!(%why, "bearer token refused");
                Status::unauthorized("Unauthorized")
            });
        }
        if self.anonymous.allows(path) {
            return Ok(self.anonymous_user.clone());
        }
        Err(Status::unauthorized("Unauthorized"))
    }

    /// The user of a token for the API server itself, remembered for a moment.
    async fn token(&self, token: &str) -> std::result::Result<Arc<UserInfo>, String> {
        let tokens = self.tokens.as_ref().ok_or("no token authenticator")?;
        let [high, low] = [0, 1].map(|i: usize| u128::from(self.hashers[i].hash_one(token)));
        let key = (high << 64) | low;
        let now = Instant::now();
        if let Some((until, known)) = self.cache.lock().get(&key)
            && *until > now
        {
            return known.clone();
        }
        let answer = tokens
            .authenticate(token, &[])
            .await
            .map(|(user, _)| Arc::new(user));
        let mut cache = self.cache.lock();
        if cache.len() >= MAX_CACHED {
            cache.clear();
        }
        cache.insert(key, (now + TTL, answer.clone()));
        answer
    }

    /// The user and audiences of a token under review.
    pub async fn review(
        &self,
        token: &str,
        audiences: &[String],
    ) -> std::result::Result<(UserInfo, Vec<String>), String> {
        let tokens = self.tokens.as_ref().ok_or("no token authenticator")?;
        tokens.authenticate(token, audiences).await
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
        let authenticator = Authenticator::new(None, Anonymous::Health);
        for (path, want) in [
            ("/livez", true),
            ("/readyz/etcd", true),
            ("/healthzz", false),
            ("/api", false),
        ] {
            let user = authenticator
                .authenticate(&HeaderMap::new(), None, path)
                .await;
            assert_eq!(user.is_ok(), want, "{path}");
        }
        let bad = headers(&[("authorization", "Bearer forged".into())]);
        let refused = authenticator
            .authenticate(&bad, None, "/livez")
            .await
            .unwrap_err();
        assert_eq!(
            (refused.code, refused.message.as_str()),
            (401, "Unauthorized")
        );
    }
}
