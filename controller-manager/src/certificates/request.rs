//! What a certificate signing request asks for, and what the signers of `kubernetes.io` accept.

use std::collections::BTreeSet;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;

pub const KUBE_APISERVER_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const KUBE_APISERVER_CLIENT_KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub const LEGACY_UNKNOWN: &str = "kubernetes.io/legacy-unknown";

/// A parsed request, proven to come from who holds the key.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Parsed {
    pub der: Vec<u8>,
    pub common_name: String,
    pub organizations: Vec<String>,
    dns_names: usize,
    addresses: usize,
    emails: usize,
    uris: usize,
}

impl Parsed {
    pub fn of(request: &CertificateSigningRequest) -> Result<Self, String> {
        let unreadable = |error: &dyn std::fmt::Display| format!("unable to parse csr: {error}");
        let (_, pem) = parse_x509_pem(&request.spec.request.0).map_err(|e| unreadable(&e))?;
        if pem.label != "CERTIFICATE REQUEST" {
            return Err("PEM block type must be CERTIFICATE REQUEST".into());
        }
        let (_, csr) =
            X509CertificationRequest::from_der(&pem.contents).map_err(|e| unreadable(&e))?;
        csr.verify_signature()
            .map_err(|error| format!("unable to verify certificate request signature: {error}"))?;
        let subject = &csr.certification_request_info.subject;
        let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            value.as_str().unwrap_or_default().to_owned()
        };
        let mut parsed = Self {
            // Of several the last one counts, as in Go.
            common_name: subject
                .iter_common_name()
                .last()
                .map(text)
                .unwrap_or_default(),
            organizations: subject.iter_organization().map(text).collect(),
            ..Self::default()
        };
        for extension in csr.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else {
                continue;
            };
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(_) => parsed.dns_names += 1,
                    GeneralName::IPAddress(_) => parsed.addresses += 1,
                    GeneralName::RFC822Name(_) => parsed.emails += 1,
                    GeneralName::URI(_) => parsed.uris += 1,
                    _ => {}
                }
            }
        }
        parsed.der = pem.contents;
        Ok(parsed)
    }

    /// What a kubelet's client certificate has to be.
    pub fn check_kubelet_client(&self, usages: &[String]) -> Result<(), String> {
        self.check_organization()?;
        for (count, kind) in [
            (self.dns_names, "DNS"),
            (self.emails, "Email"),
            (self.addresses, "IP"),
            (self.uris, "URI"),
        ] {
            if count > 0 {
                return Err(format!("{kind} subjectAltNames are not allowed"));
            }
        }
        self.check_common_name()?;
        check_usages(usages, "client auth")
    }

    /// What a kubelet's serving certificate has to be.
    pub fn check_kubelet_serving(&self, usages: &[String]) -> Result<(), String> {
        self.check_organization()?;
        if self.dns_names + self.addresses == 0 {
            return Err("DNS or IP subjectAltName is required".into());
        }
        for (count, kind) in [(self.emails, "Email"), (self.uris, "URI")] {
            if count > 0 {
                return Err(format!("{kind} subjectAltNames are not allowed"));
            }
        }
        check_usages(usages, "server auth")?;
        self.check_common_name()
    }

    fn check_organization(&self) -> Result<(), String> {
        match self.organizations.as_slice() {
            [only] if only == "system:nodes" => Ok(()),
            _ => Err("subject organization is not system:nodes".into()),
        }
    }

    fn check_common_name(&self) -> Result<(), String> {
        match self.common_name.starts_with("system:node:") {
            true => Ok(()),
            false => Err("subject common name does not begin with system:node:".into()),
        }
    }
}

/// Exactly `auth` and digital signature; key encipherment, which only RSA keys can do, may be there.
fn check_usages(usages: &[String], auth: &str) -> Result<(), String> {
    let given: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let mut wanted = BTreeSet::from(["digital signature", auth]);
    if given == wanted {
        return Ok(());
    }
    wanted.insert("key encipherment");
    match given == wanted {
        true => Ok(()),
        false => {
            let wanted: Vec<&str> = wanted.into_iter().collect();
            Err(format!("usages did not match [{}]", wanted.join(" ")))
        }
    }
}

/// Whether a signer of `kubernetes.io` signs such a request, and if not why. `None` for other signers.
pub fn check(signer: &str, parsed: &Parsed, usages: &[String]) -> Option<Result<(), String>> {
    match signer {
        KUBELET_SERVING => Some(parsed.check_kubelet_serving(usages)),
        KUBE_APISERVER_CLIENT_KUBELET => Some(parsed.check_kubelet_client(usages)),
        KUBE_APISERVER_CLIENT => Some(check_client_usages(usages)),
        LEGACY_UNKNOWN => Some(Ok(())),
        _ => None,
    }
}

fn check_client_usages(usages: &[String]) -> Result<(), String> {
    let allowed = ["digital signature", "key encipherment", "client auth"];
    if let Some(other) = usages.iter().find(|u| !allowed.contains(&u.as_str())) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    match usages.iter().any(|usage| usage == "client auth") {
        true => Ok(()),
        false => Err("missing required usage for client certificate: client auth".into()),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};
    use serde_json::json;
    use x509_cert::der::pem::{LineEnding, encode_string};

    /// A request for the signer, in PEM inside of its object.
    pub fn request(
        signer: &str,
        subject: &[(DnType, &str)],
        names: &[&str],
        usages: &[&str],
    ) -> CertificateSigningRequest {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in subject {
            params.distinguished_name.push(kind.clone(), *value);
        }
        for name in names {
            let name = match (name.parse(), name.split_once('@')) {
                (Ok(address), _) => SanType::IpAddress(address),
                (_, Some(_)) => SanType::Rfc822Name((*name).try_into().unwrap()),
                _ => SanType::DnsName((*name).try_into().unwrap()),
            };
            params.subject_alt_names.push(name);
        }
        let key = KeyPair::generate().unwrap();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        let mut object: CertificateSigningRequest = serde_json::from_value(json!({
            "metadata": {"name": "csr"},
            "spec": {"signerName": signer, "usages": usages, "request": ""},
        }))
        .unwrap();
        object.spec.request.0 = pem.into_bytes();
        object
    }

    pub const NODE: [(DnType, &str); 2] = [
        (DnType::OrganizationName, "system:nodes"),
        (DnType::CommonName, "system:node:n1"),
    ];

    #[test]
    fn signers_check_what_they_are_asked_for() {
        let client = ["digital signature", "client auth"];
        let serving = ["digital signature", "key encipherment", "server auth"];
        let jane = [(DnType::CommonName, "jane")];
        let other = [
            (DnType::OrganizationName, "system:nodes"),
            (DnType::CommonName, "jane"),
        ];
        let (kubelet, any): (_, &[&str]) = (KUBE_APISERVER_CLIENT_KUBELET, &["any"]);
        let names: (&[&str], &[&str]) = (&["n1", "10.0.0.1"], &[]);
        for (signer, subject, names, usages, wanted) in [
            (kubelet, &NODE[..], names.1, &client[..], Some(Ok(()))),
            (
                kubelet,
                &jane[..],
                names.1,
                &client[..],
                Some(Err("subject organization is not system:nodes")),
            ),
            (
                kubelet,
                &other[..],
                names.1,
                &client[..],
                Some(Err("subject common name does not begin with system:node:")),
            ),
            (
                kubelet,
                &NODE[..],
                names.0,
                &client[..],
                Some(Err("DNS subjectAltNames are not allowed")),
            ),
            (
                kubelet,
                &NODE[..],
                &["10.0.0.1"],
                &client[..],
                Some(Err("IP subjectAltNames are not allowed")),
            ),
            (
                kubelet,
                &NODE[..],
                names.1,
                &serving[..],
                Some(Err(
                    "usages did not match [client auth digital signature key encipherment]",
                )),
            ),
            (
                KUBELET_SERVING,
                &NODE[..],
                names.0,
                &serving[..],
                Some(Ok(())),
            ),
            (
                KUBELET_SERVING,
                &NODE[..],
                names.1,
                &serving[..],
                Some(Err("DNS or IP subjectAltName is required")),
            ),
            (
                KUBELET_SERVING,
                &NODE[..],
                &["n1", "a@b"],
                &serving[..],
                Some(Err("Email subjectAltNames are not allowed")),
            ),
            (
                KUBELET_SERVING,
                &other[..],
                names.0,
                &serving[..],
                Some(Err("subject common name does not begin with system:node:")),
            ),
            (
                KUBE_APISERVER_CLIENT,
                &jane[..],
                names.0,
                &client[..],
                Some(Ok(())),
            ),
            (
                KUBE_APISERVER_CLIENT,
                &jane[..],
                names.1,
                &serving[..],
                Some(Err("invalid usage for client certificate: server auth")),
            ),
            (
                KUBE_APISERVER_CLIENT,
                &jane[..],
                names.1,
                &client[..1],
                Some(Err(
                    "missing required usage for client certificate: client auth",
                )),
            ),
            (LEGACY_UNKNOWN, &jane[..], names.0, any, Some(Ok(()))),
            ("example.com/mine", &jane[..], names.1, &client[..], None),
        ] {
            let request = request(signer, subject, names, usages);
            let parsed = Parsed::of(&request).unwrap();
            let usages = request.spec.usages.as_deref().unwrap_or_default();
            let found = check(signer, &parsed, usages);
            let wanted = wanted.map(|wanted| wanted.map_err(str::to_owned));
            assert_eq!(found, wanted, "{signer} {subject:?} {names:?} {usages:?}");
        }
    }

    #[test]
    fn forged_and_broken_requests_are_told() {
        let mut forged = request(LEGACY_UNKNOWN, &NODE, &[], &["any"]);
        let (_, pem) = parse_x509_pem(&forged.spec.request.0).unwrap();
        let mut der = pem.contents;
        let at = der.windows(2).position(|bytes| bytes == b"n1").unwrap();
        der[at + 1] = b'2';
        let text = encode_string("CERTIFICATE REQUEST", LineEnding::LF, &der).unwrap();
        forged.spec.request.0 = text.into_bytes();
        let error = Parsed::of(&forged).unwrap_err();
        assert!(
            error.starts_with("unable to verify certificate request signature"),
            "{error}"
        );
        forged.spec.request.0 = b"nothing".to_vec();
        assert!(
            Parsed::of(&forged)
                .unwrap_err()
                .starts_with("unable to parse csr")
        );
    }
}
