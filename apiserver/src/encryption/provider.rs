//! The ciphers, in the envelopes that Kubernetes writes: `k8s:enc:NAME:v1:KEY:` and what is sealed.

use std::sync::Arc;

use aes::{Aes128, Aes192, Aes256};
use aes_gcm::aead::consts::U12;
use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{AesGcm, KeyInit};
use bytes::Bytes;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit, StreamCipher};
use poly1305::Poly1305;
use rand::RngCore;
use salsa20::XSalsa20;

use super::kms::Kms;

/// What every envelope begins with.
pub const ENVELOPE: &[u8] = b"k8s:enc:";
const CBC_IV: usize = 16;
const GCM_NONCE: usize = 12;
const BOX_NONCE: usize = 24;
const BOX_TAG: usize = 16;

/// How values are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    AesCbc,
    AesGcm,
    SecretBox,
}

impl Cipher {
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Self::AesCbc => "k8s:enc:aescbc:v1:",
            Self::AesGcm => "k8s:enc:aesgcm:v1:",
            Self::SecretBox => "k8s:enc:secretbox:v1:",
        }
    }

    /// The lengths that its keys may have, in bytes.
    #[must_use]
    pub fn key_lengths(self) -> &'static [usize] {
        match self {
            Self::SecretBox => &[32],
            _ => &[16, 24, 32],
        }
    }

    fn seal(self, secret: &[u8], key: &str, plain: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Self::AesCbc => cbc_seal(secret, plain),
            Self::AesGcm => gcm_seal(secret, key, plain),
            Self::SecretBox => box_seal(secret, plain),
        }
    }

    fn open(self, secret: &[u8], key: &str, sealed: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Self::AesCbc => cbc_open(secret, sealed),
            Self::AesGcm => gcm_open(secret, key, sealed),
            Self::SecretBox => box_open(secret, sealed),
        }
    }
}

/// One key of a provider.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    pub name: String,
    pub secret: Vec<u8>,
}

/// One way to hold values.
#[derive(Clone, PartialEq, Eq)]
pub enum Provider {
    /// As they are.
    Identity,
    /// The first key seals, all of them open.
    Sealed(Cipher, Vec<Key>),
    /// With keys that a key management service looks after.
    Kms(Arc<Kms>),
}

/// All providers of a resource: the first one seals, all of them open.
#[derive(Clone, PartialEq, Eq)]
pub struct Providers(pub Vec<Provider>);

/// An opened value.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    pub value: Bytes,
    /// It would be sealed otherwise now.
    pub stale: bool,
}

impl Providers {
    /// A value as the store is to hold it under a key.
    pub fn seal(&self, key: &str, value: &Bytes) -> Result<Bytes, String> {
        match self.0.first() {
            Some(Provider::Sealed(cipher, keys)) => {
                let first = keys.first().ok_or("no key")?;
                let mut sealed = format!("{}{}:", cipher.prefix(), first.name).into_bytes();
                sealed.extend(cipher.seal(&first.secret, key, value)?);
                Ok(sealed.into())
            }
            Some(Provider::Kms(kms)) => kms.seal(key, value),
            _ => Ok(value.clone()),
        }
    }

    /// A value as it was before it was sealed.
    pub async fn open(&self, key: &str, value: &Bytes) -> Result<Opened, String> {
        let mut errors = Vec::new();
        for (place, provider) in self.0.iter().enumerate() {
            match provider {
                Provider::Identity if value.starts_with(ENVELOPE) => {}
                Provider::Identity => {
                    return Ok(Opened {
                        value: value.clone(),
                        stale: place > 0,
                    });
                }
                Provider::Kms(kms) => match kms.open(key, value).await {
                    None => {}
                    Some(Ok(mut opened)) => {
                        opened.stale |= place > 0;
                        return Ok(opened);
                    }
                    Some(Err(error)) => errors.push(error),
                },
                Provider::Sealed(cipher, keys) => {
                    let Some(rest) = value.strip_prefix(cipher.prefix().as_bytes()) else {
                        continue;
                    };
                    for (number, candidate) in keys.iter().enumerate() {
                        let name = format!("{}:", candidate.name);
                        let Some(sealed) = rest.strip_prefix(name.as_bytes()) else {
                            continue;
                        };
                        match cipher.open(&candidate.secret, key, sealed) {
                            Ok(plain) => {
                                return Ok(Opened {
                                    value: plain.into(),
                                    stale: place > 0 || number > 0,
                                });
                            }
                            Err(error) => errors.push(error),
                        }
                    }
                }
            }
        }
        Err(match errors.is_empty() {
            true => "no matching prefix found".to_owned(),
            false => errors.join(", "),
        })
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

const NOT_A_KEY: &str = "the key has no length that the cipher takes";
const NOT_SEALED: &str = "the stored data was shorter than the required size";
const NOT_OURS: &str = "message authentication failed";

/// Does the work with the AES that the key's length asks for.
macro_rules! with_aes {
    ($secret:expr, $aes:ident => $work:expr) => {{
        let length = |_| NOT_A_KEY.to_owned();
        match $secret.len() {
            16 => {
                type $aes = Aes128;
                $work.map_err(length)
            }
            24 => {
                type $aes = Aes192;
                $work.map_err(length)
            }
            _ => {
                type $aes = Aes256;
                $work.map_err(length)
            }
        }
    }};
}

fn cbc_seal(secret: &[u8], plain: &[u8]) -> Result<Vec<u8>, String> {
    let iv = random::<CBC_IV>();
    let sealed = with_aes!(secret, Aes => cbc::Encryptor::<Aes>::new_from_slices(secret, &iv)
        .map(|cipher| cipher.encrypt_padded_vec::<Pkcs7>(plain)))?;
    Ok([&iv[..], &sealed].concat())
}

fn cbc_open(secret: &[u8], sealed: &[u8]) -> Result<Vec<u8>, String> {
    let (iv, sealed) = sealed.split_at_checked(CBC_IV).ok_or(NOT_SEALED)?;
    let opened = with_aes!(secret, Aes => cbc::Decryptor::<Aes>::new_from_slices(secret, iv)
        .map(|cipher| cipher.decrypt_padded_vec::<Pkcs7>(sealed)))?;
    opened.map_err(|_| "invalid padding on input".to_owned())
}

/// The key under which a value is stored is sealed with it, so that it cannot be moved to another one.
pub(super) fn gcm_seal(secret: &[u8], key: &str, plain: &[u8]) -> Result<Vec<u8>, String> {
    let nonce = random::<GCM_NONCE>();
    let payload = Payload {
        msg: plain,
        aad: key.as_bytes(),
    };
    let sealed = with_aes!(secret, Aes => AesGcm::<Aes, U12>::new_from_slice(secret)
        .map(|cipher| cipher.encrypt(&nonce.into(), payload)))?;
    let sealed = sealed.map_err(|_| NOT_OURS.to_owned())?;
    Ok([&nonce[..], &sealed].concat())
}

pub(super) fn gcm_open(secret: &[u8], key: &str, sealed: &[u8]) -> Result<Vec<u8>, String> {
    let (nonce, sealed) = sealed.split_first_chunk::<GCM_NONCE>().ok_or(NOT_SEALED)?;
    let payload = Payload {
        msg: sealed,
        aad: key.as_bytes(),
    };
    let opened = with_aes!(secret, Aes => AesGcm::<Aes, U12>::new_from_slice(secret)
        .map(|cipher| cipher.decrypt(&(*nonce).into(), payload)))?;
    opened.map_err(|_| NOT_OURS.to_owned())
}

/// NaCl's secretbox: XSalsa20, whose first 32 bytes of key stream are the key of the Poly1305 tag.
fn box_stream(secret: &[u8], nonce: &[u8]) -> Result<(XSalsa20, Poly1305), String> {
    let mut stream = XSalsa20::new_from_slices(secret, nonce).map_err(|_| NOT_A_KEY.to_owned())?;
    let mut key = [0; 32];
    stream.apply_keystream(&mut key);
    Ok((stream, Poly1305::new(&key.into())))
}

fn box_seal(secret: &[u8], plain: &[u8]) -> Result<Vec<u8>, String> {
    let nonce = random::<BOX_NONCE>();
    box_seal_with(secret, &nonce, plain)
}

fn box_seal_with(secret: &[u8], nonce: &[u8], plain: &[u8]) -> Result<Vec<u8>, String> {
    let (mut stream, tag) = box_stream(secret, nonce)?;
    let mut sealed = plain.to_vec();
    stream.apply_keystream(&mut sealed);
    let tag = tag.compute_unpadded(&sealed);
    Ok([nonce, &tag[..], &sealed].concat())
}

fn box_open(secret: &[u8], sealed: &[u8]) -> Result<Vec<u8>, String> {
    let (nonce, rest) = sealed.split_at_checked(BOX_NONCE).ok_or(NOT_SEALED)?;
    let (told, sealed) = rest.split_at_checked(BOX_TAG).ok_or(NOT_SEALED)?;
    let (mut stream, tag) = box_stream(secret, nonce)?;
    let tag = tag.compute_unpadded(sealed);
    // In a time that does not tell how much of it is right.
    let differences = tag.iter().zip(told).fold(0, |all, (a, b)| all | (a ^ b));
    if differences != 0 {
        return Err(NOT_OURS.to_owned());
    }
    let mut plain = sealed.to_vec();
    stream.apply_keystream(&mut plain);
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
            .collect()
    }

    #[tokio::test]
    async fn what_is_sealed_opens_again_and_only_unchanged() {
        for cipher in [Cipher::AesCbc, Cipher::AesGcm, Cipher::SecretBox] {
            for length in cipher.key_lengths() {
                let key = |name: &str, byte: u8| Key {
                    name: name.into(),
                    secret: vec![byte; *length],
                };
                let providers = Providers(vec![Provider::Sealed(
                    cipher,
                    vec![key("a", 1), key("b", 2)],
                )]);
                for plain in ["", "x", "exactly 16 bytes", "somewhat longer than that"] {
                    let plain = Bytes::from(plain);
                    let sealed = providers.seal("/k", &plain).unwrap();
                    assert!(sealed.starts_with(format!("{}a:", cipher.prefix()).as_bytes()));
                    let opened = providers.open("/k", &sealed).await.unwrap();
                    assert_eq!((opened.value, opened.stale), (plain.clone(), false));
                    let turned = Providers(vec![Provider::Sealed(
                        cipher,
                        vec![key("b", 2), key("a", 1)],
                    )]);
                    assert!(turned.open("/k", &sealed).await.unwrap().stale);
                    let other = Providers(vec![Provider::Sealed(cipher, vec![key("c", 1)])]);
                    assert!(other.open("/k", &sealed).await.is_err());
                    if cipher == Cipher::AesGcm {
                        assert!(providers.open("/elsewhere", &sealed).await.is_err());
                    }
                    if cipher != Cipher::AesCbc {
                        let mut changed = sealed.to_vec();
                        *changed.last_mut().unwrap() ^= 1;
                        assert!(providers.open("/k", &changed.into()).await.is_err());
                    }
                }
                for short in [
                    "k8s:enc:aescbc:v1:a:x",
                    "k8s:enc:aesgcm:v1:a:",
                    "k8s:enc:secretbox:v1:a:y",
                ] {
                    assert!(providers.open("/k", &Bytes::from(short)).await.is_err());
                }
            }
        }
    }

    /// The example of NaCl's own tests.
    #[test]
    fn the_box_is_the_one_of_nacl() {
        let key = bytes("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389");
        let nonce = bytes("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37");
        let plain = bytes(concat!(
            "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffc",
            "e5ecbaaf33bd751a1ac728d45e6c61296cdc3c01233561f41db66cce314adb31",
            "0e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde",
            "048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f93776384864",
            "5e0705"
        ));
        let sealed = box_seal_with(&key, &nonce, &plain).unwrap();
        assert_eq!(sealed[24..40], bytes("f3ffc7703f9400e52a7dfb4b3d3305d9"));
        assert_eq!(sealed[40..48], bytes("8e993b9f48681273"));
        assert_eq!(box_open(&key, &sealed).unwrap(), plain);
    }

    #[tokio::test]
    async fn plain_values_are_not_sealed_ones() {
        let identity = Providers(vec![Provider::Identity]);
        let plain = Bytes::from("{}");
        assert_eq!(identity.seal("/k", &plain).unwrap(), plain);
        assert!(!identity.open("/k", &plain).await.unwrap().stale);
        let sealed = Bytes::from("k8s:enc:aescbc:v1:a:xyz");
        assert_eq!(
            identity.open("/k", &sealed).await.unwrap_err(),
            "no matching prefix found"
        );
    }
}
