//! Identities that another server vouches for: the `X-Remote-*` headers.
//!
//! A front proxy shows a certificate of an authority that signs nothing else, and says in headers who its client is.
//! The other way round, this server tells aggregated API servers who its client is ([`set_user`]).

use std::sync::Arc;

use anyhow::Context;
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::UserInfo;
use crate::config::Config;
use crate::server::tls;

const USER: HeaderName = HeaderName::from_static("x-remote-user");
const UID: HeaderName = HeaderName::from_static("x-remote-uid");
const GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const EXTRA: &str = "x-remote-extra-";
/// What may stand in a header's name (RFC 7230), but for the percent sign that escapes begin with.
const NOT_IN_NAMES: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'*')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// What a connection's certificate makes of its requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Roles {
    /// The certificate names a user.
    pub client: bool,
    /// The certificate's holder may say who its requests are from.
    pub front_proxy: bool,
}

/// Who may vouch for others, and in which headers.
pub struct FrontProxy {
    proxies: Arc<dyn ClientCertVerifier>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    /// Common names; empty for any.
    allowed: Vec<String>,
    user: Vec<String>,
    uid: Vec<String>,
    group: Vec<String>,
    extra: Vec<String>,
}

impl FrontProxy {
    /// From the `--requestheader-*` flags; none without an authority.
    pub fn new(config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(authority) = &config.requestheader_client_ca_file else {
            return Ok(None);
        };
        let lower = |names: &[String]| names.iter().map(|n| n.to_ascii_lowercase()).collect();
        Ok(Some(Self {
            proxies: tls::verifier(&[authority.as_path()])
                .context("--requestheader-client-ca-file")?,
            clients: config
                .client_ca_file
                .as_ref()
                .map(|path| tls::verifier(&[path.as_path()]))
                .transpose()?,
            allowed: config.requestheader_allowed_names.clone(),
            user: lower(&config.requestheader_username_headers),
            uid: lower(&config.requestheader_uid_headers),
            group: lower(&config.requestheader_group_headers),
            extra: lower(&config.requestheader_extra_headers_prefix),
        }))
    }

    /// What a chain that TLS has accepted is good for: TLS takes the authorities of both.
    #[must_use]
    pub fn roles(&self, chain: &[CertificateDer<'_>]) -> Roles {
        let Some((end, intermediates)) = chain.split_first() else {
            return Roles::default();
        };
        let holds = |verifier: &Arc<dyn ClientCertVerifier>| {
            verifier
                .verify_client_cert(end, intermediates, UnixTime::now())
                .is_ok()
        };
        Roles {
            client: self.clients.as_ref().is_some_and(holds),
            front_proxy: holds(&self.proxies) && self.is_allowed(end),
        }
    }

    fn is_allowed(&self, certificate: &CertificateDer<'_>) -> bool {
        if self.allowed.is_empty() {
            return true;
        }
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
            return false;
        };
        certificate
            .subject()
            .iter_common_name()
            .filter_map(|name| name.as_str().ok())
            .any(|name| self.allowed.iter().any(|allowed| allowed == name))
    }

    /// Who the headers say; `None` when they name no user.
    #[must_use]
    pub fn user(&self, headers: &HeaderMap) -> Option<UserInfo> {
        let first = |names: &[String]| {
            let mut values = names.iter().filter_map(|name| headers.get(name.as_str()));
            values.find_map(|value| value.to_str().ok().filter(|text| !text.is_empty()))
        };
        let mut user = UserInfo {
            name: first(&self.user)?.to_owned(),
            uid: first(&self.uid).unwrap_or_default().to_owned(),
            ..UserInfo::default()
        };
        let groups = self
            .group
            .iter()
            .find(|name| headers.contains_key(name.as_str()));
        if let Some(name) = groups {
            user.groups = texts(headers, name);
        }
        for prefix in &self.extra {
            for name in headers.keys() {
                if let Some(key) = name.as_str().strip_prefix(prefix.as_str()) {
                    let key = crate::request::percent_decode(key).into_owned();
                    user.extra
                        .entry(key)
                        .or_default()
                        .extend(texts(headers, name.as_str()));
                }
            }
        }
        Some(user)
    }
}

fn texts(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .collect()
}

/// Says in headers who a request is from, and nothing else that a client may have put there. Fails for names that no
/// header can carry.
pub fn set_user(headers: &mut HeaderMap, user: &UserInfo) -> Result<(), String> {
    let ours: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with(EXTRA) || [USER, UID, GROUP].contains(name))
        .cloned()
        .collect();
    for name in ours {
        headers.remove(name);
    }
    let value = |text: &str| {
        HeaderValue::from_bytes(text.as_bytes())
            .map_err(|_| format!("{text:?} cannot be sent in a header"))
    };
    headers.insert(USER, value(&user.name)?);
    if !user.uid.is_empty() {
        headers.insert(UID, value(&user.uid)?);
    }
    for group in &user.groups {
        headers.append(GROUP, value(group)?);
    }
    for (key, values) in &user.extra {
        let key = percent_encode(key.as_bytes(), NOT_IN_NAMES);
        let name = HeaderName::try_from(format!("{EXTRA}{key}"))
            .map_err(|error| format!("{key}: {error}"))?;
        for text in values {
            headers.append(&name, value(text)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_survive_the_way_through_headers() {
        let mut user = UserInfo::new("jane", &["dev", "ops"]);
        user.uid = "42".into();
        user.extra
            .insert("example.com/a%b".into(), vec!["1".into(), "2".into()]);
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", HeaderValue::from_static("admin"));
        headers.insert("x-remote-extra-scope", HeaderValue::from_static("forged"));
        set_user(&mut headers, &user).unwrap();
        assert!(headers.contains_key("x-remote-extra-example.com%2fa%25b"));
        let _ = rustls::crypto::ring::default_provider().install_default();
        let words = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.crt");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&path, params.self_signed(&key).unwrap().pem()).unwrap();
        let proxy = FrontProxy {
            proxies: tls::verifier(&[&path]).unwrap(),
            clients: None,
            allowed: Vec::new(),
            user: words(&["x-remote-user"]),
            uid: words(&["x-remote-uid"]),
            group: words(&["x-remote-group"]),
            extra: words(&["x-remote-extra-"]),
        };
        assert_eq!(proxy.user(&headers), Some(user));
        assert_eq!(proxy.user(&HeaderMap::new()), None);
        assert!(set_user(&mut headers, &UserInfo::new("a\nb", &[])).is_err());
    }
}
