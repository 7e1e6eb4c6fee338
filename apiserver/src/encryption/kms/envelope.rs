//! What is stored under `k8s:enc:kms:v2:NAME:`: the sealed value with the sealed source of its key, as a message.

use std::collections::BTreeMap;

use prost::Message;
use rand::RngCore;
use ring::hkdf::{HKDF_SHA256, KeyType, Prk};

use crate::encryption::provider::{gcm_open, gcm_seal};

/// Bytes of a seed, of the key that is derived from it, and of what is random about the derivation.
const LENGTH: usize = 32;
const MAX_KEY_ID: usize = 1024;
const MAX_SOURCE: usize = 1024;
const MAX_ANNOTATIONS: usize = 32 * 1024;

/// The values of `EncryptedDEKSourceType`.
const AES_GCM_KEY: i32 = 0;
pub const SEED: i32 = 1;

#[derive(Clone, PartialEq, Message)]
pub struct Envelope {
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    /// What the plugin has made of the seed or key.
    #[prost(bytes = "vec", tag = "3")]
    pub source: Vec<u8>,
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub annotations: BTreeMap<String, Vec<u8>>,
    #[prost(int32, tag = "5")]
    pub source_type: i32,
}

impl Envelope {
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let envelope = Self::decode(bytes).map_err(|error| error.to_string())?;
        if envelope.data.is_empty() {
            return Err("encrypted data is empty".to_owned());
        }
        envelope.check()?;
        Ok(envelope)
    }

    /// Checks all but the data.
    pub fn check(&self) -> Result<(), String> {
        if !matches!(self.source_type, AES_GCM_KEY | SEED) {
            return Err(format!(
                "unknown encryptedDEKSourceType: {}",
                self.source_type
            ));
        }
        let source = match self.source.len() {
            0 => Err("encrypted DEK source is empty".to_owned()),
            1..=MAX_SOURCE => Ok(()),
            size => Err(format!(
                "encrypted DEK source is {size} bytes, which exceeds the max size of {MAX_SOURCE}"
            )),
        };
        source.map_err(|error| format!("failed to validate encrypted DEK source: {error}"))?;
        check_key_id(&self.key_id)
            .map_err(|error| format!("failed to validate key id: {error}"))?;
        let size: usize = self
            .annotations
            .iter()
            .map(|(k, v)| k.len() + v.len())
            .sum();
        let bad = self.annotations.keys().find(|name| !is_qualified(name));
        match bad {
            Some(name) => Err(format!(
                "failed to validate annotations: {name:?}: should be a domain with at least two segments separated by dots"
            )),
            None if size > MAX_ANNOTATIONS => Err(format!(
                "failed to validate annotations: total size of annotations is {size}, which exceeds the max size of {MAX_ANNOTATIONS}"
            )),
            None => Ok(()),
        }
    }

    /// What tells the key of this envelope from others.
    pub fn key(&self) -> Vec<u8> {
        let source = Self {
            data: Vec::new(),
            ..self.clone()
        };
        source.encode_to_vec()
    }
}

pub fn check_key_id(key_id: &str) -> Result<(), String> {
    match key_id.len() {
        0 => Err("keyID is empty".to_owned()),
        1..=MAX_KEY_ID => Ok(()),
        size => Err(format!(
            "keyID is {size} bytes, which exceeds the max size of {MAX_KEY_ID}"
        )),
    }
}

fn is_qualified(name: &str) -> bool {
    name.contains('.') && apimachinery::names::dns1123_subdomain(name).is_empty()
}

/// An opened source of keys.
pub enum Source {
    /// Each value has a key of its own, derived from this and what is random before the value.
    Seed(Vec<u8>),
    /// The key itself, as Kubernetes wrote before there were seeds. It only opens.
    Key(Vec<u8>),
}

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        LENGTH
    }
}

impl Source {
    /// A new seed, and its bytes for the plugin.
    pub fn generate() -> (Self, Vec<u8>) {
        let mut seed = vec![0; LENGTH];
        rand::rng().fill_bytes(&mut seed);
        (Self::Seed(seed.clone()), seed)
    }

    pub fn new(source_type: i32, secret: Vec<u8>) -> Result<Self, String> {
        let length = secret.len();
        match source_type {
            SEED if length < LENGTH => Err(format!(
                "invalid seed length {length} used for key generation"
            )),
            SEED => Ok(Self::Seed(secret)),
            _ if matches!(length, 16 | 24 | 32) => Ok(Self::Key(secret)),
            _ => Err(format!("crypto/aes: invalid key size {length}")),
        }
    }

    pub fn seal(&self, key: &str, plain: &[u8]) -> Result<Vec<u8>, String> {
        let Self::Seed(seed) = self else {
            return Err("a key without a seed does not seal".to_owned());
        };
        let mut info = [0; LENGTH];
        rand::rng().fill_bytes(&mut info);
        let sealed = gcm_seal(&derive(seed, &info)?, key, plain)?;
        Ok([&info[..], &sealed].concat())
    }

    pub fn open(&self, key: &str, sealed: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Self::Key(secret) => gcm_open(secret, key, sealed),
            Self::Seed(seed) => {
                let (info, sealed) = sealed
                    .split_at_checked(LENGTH)
                    .ok_or("the stored data was shorter than the required size")?;
                gcm_open(&derive(seed, info)?, key, sealed)
            }
        }
    }
}

fn derive(seed: &[u8], info: &[u8]) -> Result<[u8; LENGTH], String> {
    let mut key = [0; LENGTH];
    Prk::new_less_safe(HKDF_SHA256, seed)
        .expand(&[info], Length)
        .and_then(|derived| derived.fill(&mut key))
        .map_err(|_| "failed to derive a key from the seed".to_owned())?;
    Ok(key)
}
