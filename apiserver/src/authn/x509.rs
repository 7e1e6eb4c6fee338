//! Client certificates: the common name is the user, the organizations are its groups.
//!
//! rustls has verified the chain against the client CA before a request exists. A connection may outlive its
//! certificate, so the time is checked again with every request.

use std::sync::Arc;
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{AUTHENTICATED, UserInfo};

/// The identity in a verified client certificate, and until when it may be used (seconds since 1970).
#[derive(Debug, Clone)]
pub struct CertificateUser {
    pub user: Arc<UserInfo>,
    not_before: i64,
    not_after: i64,
}

impl CertificateUser {
    /// Reads a certificate in DER; `None` without a common name, which is no Kubernetes identity.
    #[must_use]
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject
            .iter_common_name()
            .next()?
            .as_str()
            .ok()
            .filter(|n| !n.is_empty())?;
        let organizations = subject.iter_organization().filter_map(|o| o.as_str().ok());
        let mut groups: Vec<String> = organizations.map(str::to_owned).collect();
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        let hash: String = Sha256::digest(der)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let mut user = UserInfo {
            name: name.to_owned(),
            groups,
            ..UserInfo::default()
        };
        user.extra.insert(
            "authentication.kubernetes.io/credential-id".into(),
            vec![format!("X509SHA256={hash}")],
        );
        let validity = certificate.validity();
        Some(Self {
            user: Arc::new(user),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        })
    }

    #[must_use]
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |d| d.as_secs() as i64);
        (self.not_before..=self.not_after).contains(&now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn certificate(subject: &[(rcgen::DnType, &str)]) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in subject {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_secs(60)).into();
        params.not_after = (now + Duration::from_secs(60)).into();
        params
            .self_signed(&rcgen::KeyPair::generate().unwrap())
            .unwrap()
            .der()
            .to_vec()
    }

    #[test]
    fn subject_becomes_user_and_groups() {
        use rcgen::DnType::{CommonName, OrganizationName};
        let der = certificate(&[
            (OrganizationName, "system:nodes"),
            (CommonName, "system:node:n1"),
        ]);
        let read = CertificateUser::read(&der).unwrap();
        assert_eq!(read.user.name, "system:node:n1");
        assert_eq!(read.user.groups, ["system:nodes", AUTHENTICATED]);
        assert!(
            read.user.extra["authentication.kubernetes.io/credential-id"][0]
                .starts_with("X509SHA256=")
        );
        let now = SystemTime::now();
        for (at, want) in [
            (now, true),
            (now + Duration::from_secs(3600), false),
            (now - Duration::from_secs(3600), false),
        ] {
            assert_eq!(read.is_valid_at(at), want);
        }
        assert!(CertificateUser::read(&certificate(&[(OrganizationName, "x")])).is_none());
        assert!(CertificateUser::read(b"not a certificate").is_none());
    }
}
