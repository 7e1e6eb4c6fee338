//! The keys that sign and check service-account tokens, and the JSON Web Key Set that publishes them.
//!
//! Every key, private or public, EC P-256 or RSA, PEM in any of the usual wrappings, becomes one JWK; its id is
//! what Kubernetes uses: the unpadded base64url of the SHA-256 of the public key in PKIX DER.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64URL;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, KeyAlgorithm};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use p256::SecretKey;
use p256::pkcs8::EncodePrivateKey;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("no EC P-256 or RSA key in PEM form")]
    NotAKey,
    #[error("{0}")]
    Jwt(#[from] jsonwebtoken::errors::Error),
}

/// A public key that tokens may be signed with.
#[derive(Clone)]
pub struct PublicKey {
    pub id: String,
    algorithm: Algorithm,
    jwk: Jwk,
    key: DecodingKey,
}

/// The private key that new tokens are signed with.
pub struct SigningKey {
    key: EncodingKey,
    pub public: PublicKey,
}

impl PublicKey {
    /// Reads every public key, or public half of a private key, in a PEM file.
    pub fn read(pem: &[u8]) -> Result<Vec<Self>, KeyError> {
        let text = String::from_utf8_lossy(pem);
        let blocks: Vec<&str> = blocks(&text).collect();
        let keys: Vec<Self> = blocks
            .iter()
            .filter_map(|block| Self::read_one(block))
            .collect();
        if keys.is_empty() {
            Err(KeyError::NotAKey)
        } else {
            Ok(keys)
        }
    }

    fn read_one(block: &str) -> Option<Self> {
        if block.contains("PRIVATE KEY") {
            return SigningKey::read_one(block).ok().map(|k| k.public);
        }
        let ec = DecodingKey::from_ec_pem(block.as_bytes()).map(|k| (k, Algorithm::ES256));
        let (key, algorithm) = ec
            .or_else(|_| DecodingKey::from_rsa_pem(block.as_bytes()).map(|k| (k, Algorithm::RS256)))
            .ok()?;
        Self::new(
            Jwk::from_decoding_key(&key, Some(algorithm)).ok()?,
            algorithm,
        )
    }

    fn new(mut jwk: Jwk, algorithm: Algorithm) -> Option<Self> {
        let id = B64URL.encode(Sha256::digest(pkix(&jwk)?));
        jwk.common.key_id = Some(id.clone());
        jwk.common.public_key_use = Some(jsonwebtoken::jwk::PublicKeyUse::Signature);
        jwk.common.key_algorithm = Some(match algorithm {
            Algorithm::ES256 => KeyAlgorithm::ES256,
            _ => KeyAlgorithm::RS256,
        });
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Self {
            id,
            algorithm,
            jwk,
            key,
        })
    }
}

impl SigningKey {
    /// Reads the first private key of a PEM file: PKCS#8, PKCS#1 for RSA, or SEC 1 for elliptic curves.
    pub fn read(pem: &[u8]) -> Result<Self, KeyError> {
        let text = String::from_utf8_lossy(pem);
        let block = blocks(&text)
            .find(|b| b.contains("PRIVATE KEY"))
            .ok_or(KeyError::NotAKey)?;
        Self::read_one(block)
    }

    fn read_one(block: &str) -> Result<Self, KeyError> {
        if let Ok(key) = SecretKey::from_sec1_pem(block) {
            let der = key.to_pkcs8_der().map_err(|_| KeyError::NotAKey)?;
            return Self::new(EncodingKey::from_ec_der(der.as_bytes()), Algorithm::ES256);
        }
        let ec = EncodingKey::from_ec_pem(block.as_bytes()).map(|k| (k, Algorithm::ES256));
        let (key, algorithm) = ec.or_else(|_| {
            EncodingKey::from_rsa_pem(block.as_bytes()).map(|k| (k, Algorithm::RS256))
        })?;
        Self::new(key, algorithm)
    }

    fn new(key: EncodingKey, algorithm: Algorithm) -> Result<Self, KeyError> {
        let public = PublicKey::new(Jwk::from_encoding_key(&key, algorithm)?, algorithm)
            .ok_or(KeyError::NotAKey)?;
        Ok(Self { key, public })
    }

    /// Signs claims as a compact JWT whose header names the key.
    pub fn sign<T: Serialize>(&self, claims: &T) -> Result<String, KeyError> {
        let header = Header {
            alg: self.public.algorithm,
            kid: Some(self.public.id.clone()),
            typ: None,
            ..Header::default()
        };
        Ok(jsonwebtoken::encode(&header, claims, &self.key)?)
    }
}

/// Checks a token's signature alone; its claims are the caller's business.
pub fn verify(keys: &[PublicKey], token: &str) -> Result<Value, KeyError> {
    let header = jsonwebtoken::decode_header(token)?;
    let mut last = KeyError::NotAKey;
    for key in keys {
        if key.algorithm != header.alg
            || header
                .kid
                .as_ref()
                .is_some_and(|kid| !kid.is_empty() && *kid != key.id)
        {
            continue;
        }
        let mut validation = Validation::new(key.algorithm);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        match jsonwebtoken::decode::<Value>(token, &key.key, &validation) {
            Ok(data) => return Ok(data.claims),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// The document behind `/openid/v1/jwks`.
pub fn key_set(keys: &[PublicKey]) -> Value {
    json!({"keys": keys.iter().map(|k| &k.jwk).collect::<Vec<_>>()})
}

/// The document behind `/.well-known/openid-configuration`.
pub fn discovery(issuer: &str, jwks_uri: &str, keys: &[PublicKey]) -> Value {
    let mut algorithms: Vec<String> = keys.iter().map(|k| format!("{:?}", k.algorithm)).collect();
    algorithms.sort();
    algorithms.dedup();
    json!({
        "issuer": issuer,
        "jwks_uri": jwks_uri,
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
    })
}

fn blocks(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("-----BEGIN ").filter_map(|(start, _)| {
        let rest = &text[start..];
        let end = rest.find("-----END ")?;
        let close = rest[end + 9..].find("-----")? + end + 9 + 5;
        Some(&rest[..close])
    })
}

/// A public key as SubjectPublicKeyInfo, in DER.
fn pkix(jwk: &Jwk) -> Option<Vec<u8>> {
    const EC_PUBLIC_KEY: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    const RSA: &[u8] = &[
        0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
    ];
    let (algorithm, key) = match &jwk.algorithm {
        AlgorithmParameters::EllipticCurve(ec) => {
            let point = [
                vec![0x04],
                B64URL.decode(&ec.x).ok()?,
                B64URL.decode(&ec.y).ok()?,
            ]
            .concat();
            ([EC_PUBLIC_KEY, P256].concat(), point)
        }
        AlgorithmParameters::RSA(rsa) => {
            let integers = [
                der_integer(&B64URL.decode(&rsa.n).ok()?),
                der_integer(&B64URL.decode(&rsa.e).ok()?),
            ];
            (RSA.to_vec(), der(0x30, &integers.concat()))
        }
        _ => return None,
    };
    let bits = [vec![0], key].concat();
    Some(der(
        0x30,
        &[der(0x30, &algorithm), der(0x03, &bits)].concat(),
    ))
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length: Vec<u8> = length.iter().copied().skip_while(|b| *b == 0).collect();
    let mut out = vec![tag];
    match length.as_slice() {
        [] => out.push(0),
        [one] if *one < 0x80 => out.push(*one),
        many => {
            out.push(0x80 | many.len() as u8);
            out.extend_from_slice(many);
        }
    }
    out.extend_from_slice(content);
    out
}

/// A positive INTEGER: no leading zeros but the one that keeps it positive.
fn der_integer(big_endian: &[u8]) -> Vec<u8> {
    let digits: Vec<u8> = big_endian.iter().copied().skip_while(|b| *b == 0).collect();
    let sign = digits.first().is_none_or(|b| *b >= 0x80);
    der(0x02, &[vec![0; usize::from(sign)], digits].concat())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A fresh P-256 key in PKCS#8 PEM, as `skiff` makes for a cluster.
    pub fn ec_pem() -> String {
        rcgen::KeyPair::generate().unwrap().serialize_pem()
    }

    #[test]
    fn signs_and_verifies_with_the_key_that_the_header_names() {
        let (one, two) = (
            SigningKey::read(ec_pem().as_bytes()).unwrap(),
            SigningKey::read(ec_pem().as_bytes()).unwrap(),
        );
        let token = one.sign(&json!({"sub": "me"})).unwrap();
        let keys = [two.public.clone(), one.public.clone()];
        assert_eq!(verify(&keys, &token).unwrap(), json!({"sub": "me"}));
        assert!(verify(std::slice::from_ref(&two.public), &token).is_err());
        let forged = token.replace('.', "x.");
        assert!(verify(&keys, &forged).is_err());
        let unsigned = format!(
            "{}.{}.",
            B64URL.encode(r#"{"alg":"none"}"#),
            B64URL.encode(r#"{"sub":"me"}"#)
        );
        assert!(verify(&keys, &unsigned).is_err());
    }

    #[test]
    fn openssl_writes_keys_of_elliptic_curves_as_sec_1() {
        use p256::pkcs8::DecodePrivateKey;
        let pkcs8 = ec_pem();
        let key = SecretKey::from_pkcs8_pem(&pkcs8).unwrap();
        let sec1 = key.to_sec1_pem(p256::pkcs8::LineEnding::LF).unwrap();
        let read = SigningKey::read(sec1.as_bytes()).unwrap();
        let token = read.sign(&json!({"sub": "me"})).unwrap();
        let same = PublicKey::read(pkcs8.as_bytes()).unwrap();
        assert_eq!(read.public.id, same[0].id);
        assert_eq!(verify(&same, &token).unwrap(), json!({"sub": "me"}));
    }

    #[test]
    fn the_key_id_is_the_hash_of_the_pkix_form() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let want = B64URL.encode(Sha256::digest(
            rcgen::PublicKeyData::subject_public_key_info(&pair),
        ));
        let private = SigningKey::read(pair.serialize_pem().as_bytes()).unwrap();
        assert_eq!(private.public.id, want);
        let public = PublicKey::read(pair.public_key_pem().as_bytes()).unwrap();
        assert_eq!(public[0].id, want);
        assert_eq!(key_set(&public)["keys"][0]["kid"], want);
        assert_eq!(key_set(&public)["keys"][0]["alg"], "ES256");
        assert!(PublicKey::read(b"nonsense").is_err());
    }

    #[test]
    fn der_lengths_and_signs() {
        assert_eq!(der(4, &[]), [4, 0]);
        assert_eq!(der(4, &[7; 200])[..3], [4, 0x81, 200]);
        assert_eq!(der(4, &[7; 300])[..4], [4, 0x82, 1, 44]);
        assert_eq!(der_integer(&[0, 0x80]), [2, 2, 0, 0x80]);
        assert_eq!(der_integer(&[1, 0, 1]), [2, 3, 1, 0, 1]);
    }
}
