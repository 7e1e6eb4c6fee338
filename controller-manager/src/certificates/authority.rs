//! A certificate authority that issues by Kubernetes' rules: subject, key and names as requested, usages as the object
//! says, everything else as we say.

use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustls::SignatureScheme;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::Signer;
use signature::Keypair;
use x509_cert::Certificate;
use x509_cert::builder::{Builder, CertificateBuilder, profile::BuilderProfile};
use x509_cert::certificate::TbsCertificate;
use x509_cert::der::asn1::{BitString, OctetString};
use x509_cert::der::oid::{AssociatedOid, ObjectIdentifier};
use x509_cert::der::pem::LineEnding;
use x509_cert::der::{Any, Decode, DecodePem, Document, Encode, EncodePem, asn1::Null};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages,
    SubjectAltName, SubjectKeyIdentifier,
};
use x509_cert::name::Name;
use x509_cert::request::CertReq;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{
    AlgorithmIdentifierOwned, DynSignatureAlgorithmIdentifier, EncodePublicKey,
    SubjectPublicKeyInfoOwned, SubjectPublicKeyInfoRef,
};
use x509_cert::time::{Time, Validity};

/// Certificates begin so long ago, for clocks that are late.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);
/// Those that are shorter than this do not end earlier for it.
const SHORT: SignedDuration = SignedDuration::from_hours(8);
/// Nobody gets less than this.
const MINIMUM: Duration = Duration::from_secs(600);

const EXTENSION_REQUEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.14");

/// The key and certificate that sign.
pub struct Authority {
    certificate: Certificate,
    signer: Box<dyn Signer>,
}

impl Authority {
    /// Reads both from files, and makes sure that they belong together.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, String> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| format!("reading {}: {error}", path.display()))
        };
        Self::new(&read(certificate)?, &read(key)?)
    }

    fn new(certificate: &[u8], key: &[u8]) -> Result<Self, String> {
        let certificate = Certificate::from_pem(certificate)
            .map_err(|error| format!("the signing certificate: {error}"))?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| format!("the signing key: {error}"))?;
        let key = any_supported_type(&key).map_err(|error| format!("the signing key: {error}"))?;
        let own = certificate
            .tbs_certificate()
            .subject_public_key_info()
            .to_der()
            .map_err(|error| error.to_string())?;
        if key.public_key().is_none_or(|public| public.as_ref() != own) {
            return Err("the signing key does not belong to the signing certificate".into());
        }
        let schemes = [
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::RSA_PKCS1_SHA256,
            SignatureScheme::ED25519,
        ];
        let signer = key
            .choose_scheme(&schemes)
            .ok_or("the signing key is of no supported kind")?;
        Ok(Self {
            certificate,
            signer,
        })
    }

    /// Issues a certificate, in PEM, for a request (in DER) that has been verified.
    pub fn issue(
        &self,
        request: &[u8],
        usages: &[String],
        duration: Duration,
        now: Timestamp,
    ) -> Result<String, String> {
        let (usage, extended) = usages_of(usages)?;
        let validity = self.validity(duration, now)?;
        self.build(request, usage, extended, validity)
            .map_err(|error| format!("failed to sign certificate: {error}"))
    }

    fn validity(&self, duration: Duration, now: Timestamp) -> Result<Validity, String> {
        let last = self.certificate.tbs_certificate().validity().not_after;
        let last = Timestamp::try_from(last.to_system_time()).map_err(|e| e.to_string())?;
        if now >= last {
            return Err(format!(
                "refusing to sign a certificate that expired in the past: NotAfter={last}"
            ));
        }
        let ttl = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        let ttl = match ttl < SHORT {
            true => ttl,
            false => ttl - BACKDATE,
        };
        let until = now.checked_add(ttl).unwrap_or(last).min(last);
        let time = |at: Timestamp| {
            Time::try_from(std::time::SystemTime::from(at)).map_err(|error| error.to_string())
        };
        Ok(Validity::new(time(now - BACKDATE)?, time(until)?))
    }

    fn build(
        &self,
        request: &[u8],
        usage: KeyUsage,
        extended: Vec<ObjectIdentifier>,
        validity: Validity,
    ) -> Result<String, x509_cert::builder::Error> {
        let request = CertReq::from_der(request)?;
        let shape = Shape {
            issuer: self.certificate.tbs_certificate().subject().clone(),
            subject: request.info.subject.clone(),
        };
        let serial = SerialNumber::new(uuid::Uuid::new_v4().as_bytes())?;
        let key = request.info.public_key.clone();
        let mut builder = CertificateBuilder::new(shape, serial, validity, key)?;
        if !usage.0.is_empty() {
            builder.add_extension(&usage)?;
        }
        if !extended.is_empty() {
            builder.add_extension(&ExtendedKeyUsage(extended))?;
        }
        let constraints = BasicConstraints {
            ca: false,
            path_len_constraint: None,
        };
        builder.add_extension(&constraints)?;
        if let Some(own) = self.key_identifier() {
            builder.add_extension(&AuthorityKeyIdentifier {
                key_identifier: Some(own),
                ..Default::default()
            })?;
        }
        if let Some(mut names) = alternative_names(&request)? {
            // Whether they are critical is for the issuer to say: they are if nothing else names the subject.
            names.critical = request.info.subject.is_empty();
            builder.add_extension(names)?;
        }
        let to_sign = builder.finalize(self)?;
        let signature = self
            .signer
            .sign(&to_sign)
            .map_err(signature::Error::from_source)?;
        let certificate = builder.assemble(BitString::from_bytes(&signature)?, self)?;
        Ok(certificate.to_pem(LineEnding::LF)?)
    }

    fn key_identifier(&self) -> Option<OctetString> {
        let extensions = self.certificate.tbs_certificate().extensions()?;
        let own = extensions
            .iter()
            .find(|extension| extension.extn_id == SubjectKeyIdentifier::OID)?;
        let identifier = SubjectKeyIdentifier::from_der(own.extn_value.as_bytes()).ok()?;
        Some(identifier.0)
    }
}

/// The names that a request asks for beside its subject.
fn alternative_names(request: &CertReq) -> Result<Option<Extension>, x509_cert::der::Error> {
    for attribute in request.info.attributes.iter() {
        if attribute.oid != EXTENSION_REQUEST {
            continue;
        }
        for value in attribute.values.iter() {
            let extensions: Vec<Extension> = value.decode_as()?;
            let names = extensions
                .into_iter()
                .find(|extension| extension.extn_id == SubjectAltName::OID);
            if names.is_some() {
                return Ok(names);
            }
        }
    }
    Ok(None)
}

/// Who is named; extensions are added one by one.
struct Shape {
    issuer: Name,
    subject: Name,
}

impl BuilderProfile for Shape {
    fn get_issuer(&self, _subject: &Name) -> Name {
        self.issuer.clone()
    }

    fn get_subject(&self) -> Name {
        self.subject.clone()
    }

    fn build_extensions(
        &self,
        _key: SubjectPublicKeyInfoRef<'_>,
        _issuer_key: SubjectPublicKeyInfoRef<'_>,
        _certificate: &TbsCertificate,
    ) -> Result<Vec<Extension>, x509_cert::builder::Error> {
        Ok(Vec::new())
    }
}

#[derive(Clone)]
pub struct PublicKey(SubjectPublicKeyInfoOwned);

impl EncodePublicKey for PublicKey {
    fn to_public_key_der(&self) -> x509_cert::spki::Result<Document> {
        Ok(Document::encode_msg(&self.0)?)
    }
}

impl Keypair for Authority {
    type VerifyingKey = PublicKey;

    fn verifying_key(&self) -> PublicKey {
        let certificate = self.certificate.tbs_certificate();
        PublicKey(certificate.subject_public_key_info().clone())
    }
}

impl DynSignatureAlgorithmIdentifier for Authority {
    fn signature_algorithm_identifier(&self) -> x509_cert::spki::Result<AlgorithmIdentifierOwned> {
        let (oid, parameters) = match self.signer.scheme() {
            SignatureScheme::ECDSA_NISTP256_SHA256 => ("1.2.840.10045.4.3.2", None),
            SignatureScheme::ECDSA_NISTP384_SHA384 => ("1.2.840.10045.4.3.3", None),
            SignatureScheme::ED25519 => ("1.3.101.112", None),
            _ => ("1.2.840.113549.1.1.11", Some(Any::encode_from(&Null)?)),
        };
        Ok(AlgorithmIdentifierOwned {
            oid: ObjectIdentifier::new_unwrap(oid),
            parameters,
        })
    }
}

/// How long a certificate is valid: as long as was asked for, but no longer than `most`.
pub fn duration(asked_seconds: Option<i32>, most: Duration) -> Duration {
    let Some(asked) = asked_seconds else {
        return most;
    };
    let asked = Duration::from_secs(u64::try_from(asked).unwrap_or_default());
    asked.max(MINIMUM).min(most)
}

/// The usages of an object as X.509 has them, in its two places.
fn usages_of(usages: &[String]) -> Result<(KeyUsage, Vec<ObjectIdentifier>), String> {
    let mut plain = KeyUsage(Default::default());
    let mut extended: Vec<ObjectIdentifier> = Vec::new();
    for usage in usages {
        let bit = match usage.as_str() {
            "signing" | "digital signature" => Some(KeyUsages::DigitalSignature),
            "content commitment" => Some(KeyUsages::NonRepudiation),
            "key encipherment" => Some(KeyUsages::KeyEncipherment),
            "key agreement" => Some(KeyUsages::KeyAgreement),
            "data encipherment" => Some(KeyUsages::DataEncipherment),
            "cert sign" => Some(KeyUsages::KeyCertSign),
            "crl sign" => Some(KeyUsages::CRLSign),
            "encipher only" => Some(KeyUsages::EncipherOnly),
            "decipher only" => Some(KeyUsages::DecipherOnly),
            _ => None,
        };
        if let Some(bit) = bit {
            plain.0 |= bit;
            continue;
        }
        let oid = match usage.as_str() {
            "any" => "2.5.29.37.0",
            "server auth" => "1.3.6.1.5.5.7.3.1",
            "client auth" => "1.3.6.1.5.5.7.3.2",
            "code signing" => "1.3.6.1.5.5.7.3.3",
            "email protection" | "s/mime" => "1.3.6.1.5.5.7.3.4",
            "ipsec end system" => "1.3.6.1.5.5.7.3.5",
            "ipsec tunnel" => "1.3.6.1.5.5.7.3.6",
            "ipsec user" => "1.3.6.1.5.5.7.3.7",
            "timestamping" => "1.3.6.1.5.5.7.3.8",
            "ocsp signing" => "1.3.6.1.5.5.7.3.9",
            "microsoft sgc" => "1.3.6.1.4.1.311.10.3.3",
            "netscape sgc" => "2.16.840.1.113730.4.1",
            other => return Err(format!("unrecognized usage values: [{other:?}]")),
        };
        let oid = ObjectIdentifier::new_unwrap(oid);
        if !extended.contains(&oid) {
            extended.push(oid);
        }
    }
    Ok((plain, extended))
}

#[cfg(test)]
mod tests {
    use super::super::request::tests::{NODE, request};
    use super::super::request::{KUBELET_SERVING, Parsed};
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
    use x509_parser::prelude::FromDer;

    fn authority(algorithm: &'static rcgen::SignatureAlgorithm) -> (String, KeyPair) {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "ca");
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        (params.self_signed(&key).unwrap().pem(), key)
    }

    #[test]
    fn what_is_issued_is_what_was_asked_for() {
        let usages = ["digital signature", "server auth"];
        let request = request(KUBELET_SERVING, &NODE, &["n1", "10.0.0.1"], &usages);
        let parsed = Parsed::of(&request).unwrap();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
        ] {
            let (ca, key) = authority(algorithm);
            let authority = Authority::new(ca.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
            let usages = request.spec.usages.as_deref().unwrap_or_default();
            let hour = Duration::from_secs(3600);
            let pem = authority.issue(&parsed.der, usages, hour, now).unwrap();
            let (_, ca) = x509_parser::pem::parse_x509_pem(ca.as_bytes()).unwrap();
            let ca = ca.parse_x509().unwrap();
            let (_, issued) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
            let issued = issued.parse_x509().unwrap();
            issued.verify_signature(Some(ca.public_key())).unwrap();
            assert_eq!(issued.issuer(), ca.subject());
            let (_, asked) =
                x509_parser::certification_request::X509CertificationRequest::from_der(&parsed.der)
                    .unwrap();
            let asked = &asked.certification_request_info;
            assert_eq!(issued.subject().as_raw(), asked.subject.as_raw());
            assert_eq!(issued.public_key().raw, asked.subject_pki.raw);
            let names = issued.subject_alternative_name().unwrap().unwrap();
            assert_eq!(names.value.general_names.len(), 2);
            assert!(!names.critical && !issued.is_ca());
            let usage = issued.key_usage().unwrap().unwrap().value;
            assert!(usage.digital_signature() && !usage.key_cert_sign());
            let extended = issued.extended_key_usage().unwrap().unwrap().value;
            assert!(extended.server_auth && !extended.client_auth && !extended.any);
            let validity = issued.validity();
            let seconds = now.as_second();
            assert_eq!(validity.not_before.timestamp(), seconds - 300);
            assert_eq!(validity.not_after.timestamp(), seconds + 3600);
        }
    }

    #[test]
    fn certificates_do_not_outlive_their_authority() {
        let (ca, key) = authority(&rcgen::PKCS_ECDSA_P256_SHA256);
        let authority = Authority::new(ca.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        let year = Duration::from_secs(365 * 24 * 3600);
        let end = |now: &str| {
            let validity = authority.validity(year, now.parse().unwrap())?;
            Ok::<_, String>(validity.not_after.to_string())
        };
        assert_eq!(end("2026-01-01T00:00:00Z").unwrap(), "2026-12-31T23:55:00Z");
        assert_eq!(end("2029-06-01T00:00:00Z").unwrap(), "2030-01-01T00:00:00Z");
        assert!(end("2030-01-01T00:00:00Z").is_err());
        let other = KeyPair::generate().unwrap().serialize_pem();
        assert!(Authority::new(ca.as_bytes(), other.as_bytes()).is_err());
    }

    #[test]
    fn durations_have_bounds() {
        let most = Duration::from_secs(3600);
        for (asked, wanted) in [
            (None, 3600),
            (Some(60), 600),
            (Some(1200), 1200),
            (Some(9999), 3600),
        ] {
            assert_eq!(duration(asked, most).as_secs(), wanted, "{asked:?}");
        }
    }

    #[test]
    fn usages_have_their_places() {
        let of =
            |names: &[&str]| usages_of(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        let (plain, extended) = of(&[
            "signing",
            "cert sign",
            "client auth",
            "s/mime",
            "email protection",
        ])
        .unwrap();
        assert!(plain.digital_signature() && plain.key_cert_sign());
        assert_eq!(extended.len(), 2);
        assert!(of(&["flying"]).is_err());
    }
}
