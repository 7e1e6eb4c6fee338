//! The cluster's certificates, under one CA, laid out as kubeadm does.
//!
//! A local cluster's certificates live as long as its CA: it has no one who would renew them.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

use super::spec::{self, Cluster, KUBERNETES_SERVICE};

const YEARS: i32 = 10;

/// A certificate and its key, as PEM.
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Pair {
    pub fn write(&self, dir: &Path, name: &str) -> Result<()> {
        spec::write_atomic(
            &dir.join(format!("{name}.crt")),
            self.certificate.as_bytes(),
            0o644,
        )?;
        spec::write_atomic(&dir.join(format!("{name}.key")), self.key.as_bytes(), 0o600)
    }
}

pub struct Authority {
    pub certificate: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority of that name.
    pub fn generate(name: &str) -> Result<Authority> {
        let key = KeyPair::generate()?;
        let mut params = params(name, &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        Ok(Authority {
            certificate: params.self_signed(&key)?.pem(),
            key: key.serialize_pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// A client's identity: user name and groups.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<Pair> {
        self.sign(params(user, groups)?, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A server's identity under all its names and addresses.
    pub fn server(
        &self,
        name: &str,
        groups: &[&str],
        names: &[&str],
        addresses: &[IpAddr],
    ) -> Result<Pair> {
        let mut params = params(name, groups)?;
        for name in names {
            params
                .subject_alt_names
                .push(SanType::DnsName((*name).try_into()?));
        }
        params
            .subject_alt_names
            .extend(addresses.iter().map(|ip| SanType::IpAddress(*ip)));
        self.sign(params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn sign(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Result<Pair> {
        let key = KeyPair::generate()?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![usage];
        Ok(Pair {
            certificate: params.signed_by(&key, &self.issuer)?.pem(),
            key: key.serialize_pem(),
        })
    }
}

fn params(name: &str, groups: &[&str]) -> Result<CertificateParams> {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    // A day back, for machines whose clocks disagree; day 28 exists in every month.
    let (year, month) = (i32::from(now.year()), now.month() as u8);
    let day = (now.day() as u8).min(28);
    let (before_year, before_month) = if month == 1 {
        (year - 1, 12)
    } else {
        (year, month - 1)
    };
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(before_year, before_month, day);
    params.not_after = rcgen::date_time_ymd(year + YEARS, month, day);
    params.distinguished_name = DistinguishedName::new();
    for group in groups {
        params
            .distinguished_name
            .push(DnType::OrganizationName, *group);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

/// Makes the CA, the API server's certificates and the key of service account tokens in `dir`.
pub fn create(dir: &Path, cluster: &Cluster) -> Result<Authority> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let ca = Authority::generate("kubernetes")?;
    spec::write_atomic(&dir.join("ca.crt"), ca.certificate.as_bytes(), 0o644)?;
    spec::write_atomic(&dir.join("ca.key"), ca.key.as_bytes(), 0o600)?;
    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        spec::CONTROL_PLANE,
    ];
    let addresses = [
        cluster.control_plane_ip().into(),
        KUBERNETES_SERVICE.into(),
        IpAddr::from([127, 0, 0, 1]),
        std::net::Ipv6Addr::LOCALHOST.into(),
    ];
    ca.server("kube-apiserver", &[], &names, &addresses)?
        .write(dir, "apiserver")?;
    ca.client("kube-apiserver-kubelet-client", &["kubeadm:cluster-admins"])?
        .write(dir, "apiserver-kubelet-client")?;
    front_proxy(dir)?;
    let tokens = KeyPair::generate()?;
    spec::write_atomic(
        &dir.join("sa.pub"),
        tokens.public_key_pem().as_bytes(),
        0o644,
    )?;
    spec::write_atomic(
        &dir.join("sa.key"),
        tokens.serialize_pem().as_bytes(),
        0o600,
    )?;
    Ok(ca)
}

/// The name in the certificate by which aggregated API servers know the API server.
pub const FRONT_PROXY: &str = "front-proxy-client";

/// Makes the API server's certificate for aggregated API servers, under an authority of its own: whoever it signs may
/// speak for any user. A cluster that has one keeps it.
pub fn front_proxy(dir: &Path) -> Result<()> {
    if dir.join(format!("{FRONT_PROXY}.crt")).exists() {
        return Ok(());
    }
    let ca = Authority::generate("front-proxy-ca")?;
    let files = Pair {
        certificate: ca.certificate.clone(),
        key: ca.key.clone(),
    };
    files.write(dir, "front-proxy-ca")?;
    ca.client(FRONT_PROXY, &[])?.write(dir, FRONT_PROXY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use std::sync::Arc;

    #[test]
    fn certificates_hold_under_the_ca() {
        let cluster = spec::tests::example();
        let ca = Authority::generate("kubernetes").unwrap();
        let address = IpAddr::from(cluster.control_plane_ip());
        let pair = ca
            .server("kube-apiserver", &[], &["kubernetes"], &[address])
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(ca.certificate.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().unwrap();
        let leaf = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
        let check = |name: &str| {
            let name = ServerName::try_from(name.to_string()).unwrap();
            verifier
                .verify_server_cert(&leaf, &[], &name, &[], UnixTime::now())
                .is_ok()
        };
        assert!(check("kubernetes"));
        assert!(check(&address.to_string()));
        assert!(!check("other"));
        assert!(!check("10.89.9.1"));
    }
}
