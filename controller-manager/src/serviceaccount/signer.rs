//! Tokens of the older kind: JWTs without an end, for no audience in particular, good while a Secret holds them.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use ring::digest::{SHA256, digest};
use rustls::SignatureScheme;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::SigningKey;
use serde_json::{Value, json};
use x509_cert::der::asn1::UintRef;
use x509_cert::der::{Decode, Reader, SliceReader};

/// What the API server knows such tokens by.
const ISSUER: &str = "kubernetes/serviceaccount";
/// Bytes of each of the two numbers that an ES256 signature is made of.
const COORDINATE: usize = 32;

/// The key that signs: RSA or EC P-256, as the API server takes them.
#[derive(Clone)]
pub struct Signer {
    key: Arc<dyn SigningKey>,
    scheme: SignatureScheme,
    /// What Kubernetes calls a key: the SHA-256 of its public half.
    id: String,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.id)
    }
}

/// Whose token it is, and where it is kept.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub namespace: &'a str,
    pub account: &'a str,
    pub account_uid: &'a str,
    pub secret: &'a str,
}

impl Signer {
    /// Reads a private key in PEM: PKCS#8, PKCS#1 for RSA, or SEC 1 for elliptic curves.
    pub fn read(pem: &[u8]) -> Result<Self, String> {
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| error.to_string())?;
        let key = any_supported_type(&key).map_err(|error| error.to_string())?;
        let schemes = [
            SignatureScheme::RSA_PKCS1_SHA256,
            SignatureScheme::ECDSA_NISTP256_SHA256,
        ];
        let (Some(signer), Some(public)) = (key.choose_scheme(&schemes), key.public_key()) else {
            return Err("neither an RSA nor an EC P-256 key".into());
        };
        Ok(Self {
            scheme: signer.scheme(),
            id: BASE64URL.encode(digest(&SHA256, public.as_ref())),
            key,
        })
    }

    /// A token for a ServiceAccount, for this one Secret.
    pub fn token(&self, subject: Subject) -> Result<String, String> {
        let Subject {
            namespace,
            account,
            account_uid,
            secret,
        } = subject;
        let claims = json!({
            "iss": ISSUER,
            "kubernetes.io/serviceaccount/namespace": namespace,
            "kubernetes.io/serviceaccount/secret.name": secret,
            "kubernetes.io/serviceaccount/service-account.name": account,
            "kubernetes.io/serviceaccount/service-account.uid": account_uid,
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
        });
        self.sign(&claims)
    }

    fn sign(&self, claims: &Value) -> Result<String, String> {
        let algorithm = match self.scheme {
            SignatureScheme::ECDSA_NISTP256_SHA256 => "ES256",
            _ => "RS256",
        };
        let header = json!({"alg": algorithm, "kid": self.id});
        let part = |value: &Value| BASE64URL.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(claims));
        let signer = self.key.choose_scheme(&[self.scheme]);
        let signer = signer.ok_or("the key does not sign any more")?;
        let mut signature = signer.sign(signed.as_bytes()).map_err(|e| e.to_string())?;
        if self.scheme == SignatureScheme::ECDSA_NISTP256_SHA256 {
            signature = fixed(&signature).map_err(|e| e.to_string())?;
        }
        Ok(format!("{signed}.{}", BASE64URL.encode(signature)))
    }
}

/// TLS has the two numbers of a signature in DER; JWTs have them one behind the other.
fn fixed(der: &[u8]) -> x509_cert::der::Result<Vec<u8>> {
    let mut reader = SliceReader::new(der)?;
    let numbers = reader.sequence(|inside| {
        let (r, s) = (UintRef::decode(inside)?, UintRef::decode(inside)?);
        x509_cert::der::Result::Ok([r, s])
    })?;
    let mut fixed = Vec::with_capacity(2 * COORDINATE);
    for number in numbers {
        let bytes = number.as_bytes();
        fixed.resize(fixed.len() + COORDINATE.saturating_sub(bytes.len()), 0);
        fixed.extend_from_slice(bytes);
    }
    Ok(fixed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    const SUBJECT: Subject = Subject {
        namespace: "ns",
        account: "robot",
        account_uid: "u",
        secret: "robot-token",
    };

    #[test]
    fn tokens_are_signed() {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let signer = Signer::read(pair.serialize_pem().as_bytes()).unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, pair.public_key_raw());
        // Numbers that happen to be short need zeros in front: one in 128 signatures has one.
        for _ in 0..600 {
            let token = signer.token(SUBJECT).unwrap();
            let (signed, signature) = token.rsplit_once('.').unwrap();
            let signature = BASE64URL.decode(signature).unwrap();
            public.verify(signed.as_bytes(), &signature).unwrap();
        }
        let token = signer.token(SUBJECT).unwrap();
        let parts: Vec<Value> = token
            .split('.')
            .take(2)
            .map(|part| serde_json::from_slice(&BASE64URL.decode(part).unwrap()).unwrap())
            .collect();
        assert_eq!(parts[0]["alg"], "ES256");
        assert_eq!(parts[0]["kid"].as_str().map(str::len), Some(43));
        let claims = json!({
            "iss": "kubernetes/serviceaccount",
            "sub": "system:serviceaccount:ns:robot",
            "kubernetes.io/serviceaccount/namespace": "ns",
            "kubernetes.io/serviceaccount/secret.name": "robot-token",
            "kubernetes.io/serviceaccount/service-account.name": "robot",
            "kubernetes.io/serviceaccount/service-account.uid": "u",
        });
        assert_eq!(parts[1], claims);
    }

    #[test]
    fn keys_that_cannot_sign() {
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        for pem in [p384.serialize_pem(), "nonsense".into(), String::new()] {
            assert!(Signer::read(pem.as_bytes()).is_err(), "{pem}");
        }
    }
}
