//! Keys of a key management service (KMS v2), as Kubernetes uses them.
//!
//! The [`plugin`] on this machine seals a seed, once for each of its own keys; every value is sealed with a key derived from
//! that seed, and carries the sealed seed in its [`envelope`]. Seeds that were opened are kept, so that the plugin is
//! asked for each of them once. What it says of itself is asked for every minute: when it has another key, there is a
//! new seed. Without an answer, sealing goes on for three minutes, and opening for as long as seeds are known.

mod envelope;
mod plugin;

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;

use super::provider::Opened;
use envelope::{Envelope, SEED, Source, check_key_id};
use plugin::{DecryptRequest, Plugin, StatusResponse};

const PREFIX: &str = "k8s:enc:kms:v2:";
const VERSIONS: [&str; 2] = ["v2", "v2beta1"];
/// How often a plugin is asked for its status, while it is well and while it is not.
const WELL_INTERVAL: Duration = Duration::from_secs(60);
const ILL_INTERVAL: Duration = Duration::from_secs(10);
/// How long values are sealed after the last good status.
const SEALS_FOR: Duration = Duration::from_secs(3 * 60);
/// How long the answer to a health check stands.
const WELL_FOR: Duration = Duration::from_secs(20);
const ILL_FOR: Duration = Duration::from_secs(3);
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);

/// A provider `kms` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub name: String,
    /// The path of the plugin's socket.
    pub path: String,
    pub timeout: Duration,
}

/// What values are sealed with.
struct Current {
    source: Arc<Source>,
    /// Without data.
    envelope: Envelope,
    until: Instant,
}

/// The last answer of the plugin about itself.
#[derive(Default)]
struct Checked {
    at: Option<Instant>,
    error: Option<String>,
    version: Option<String>,
}

/// An opened source, and when it was last of use.
type Opening = (Arc<Source>, Instant);

pub struct Kms {
    settings: Settings,
    prefix: String,
    plugin: Plugin,
    current: ArcSwapOption<Current>,
    /// By what tells their envelopes apart.
    sources: Mutex<HashMap<Vec<u8>, Opening>>,
    checked: tokio::sync::Mutex<Checked>,
}

impl PartialEq for Kms {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

impl Eq for Kms {}

impl Kms {
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            prefix: format!("{PREFIX}{}:", settings.name),
            plugin: Plugin::new(settings.path.clone(), settings.timeout),
            settings,
            current: ArcSwapOption::empty(),
            sources: Mutex::default(),
            checked: tokio::sync::Mutex::default(),
        }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Asks the plugin for the first time, then again and again for as long as somebody uses it.
    pub async fn start(self: &Arc<Self>) -> Result<(), String> {
        let first = self.check().await;
        let next = interval(&first);
        tokio::spawn(follow(Arc::downgrade(self), next));
        first
    }

    /// Whether the plugin is well, by its own word or what it said a moment ago. Takes up its key.
    pub async fn check(&self) -> Result<(), String> {
        let mut checked = self.checked.lock().await;
        let stands = if checked.error.is_some() {
            ILL_FOR
        } else {
            WELL_FOR
        };
        if checked.at.is_some_and(|at| at.elapsed() < stands) {
            return checked.error.clone().map_or(Ok(()), Err);
        }
        let answer = self.probe(&mut checked).await;
        checked.at = Some(Instant::now());
        checked.error = answer.as_ref().err().cloned();
        answer
    }

    async fn probe(&self, checked: &mut Checked) -> Result<(), String> {
        let name = &self.settings.name;
        let status = self.plugin.status().await.map_err(|error| {
            format!("failed to perform status section of the healthz check for KMS Provider {name}, error: {error}")
        })?;
        let mut errors = complaints(&status, checked);
        if check_key_id(&status.key_id).is_ok()
            && let Err(error) = self.take_up(&status.key_id).await
        {
            errors.push(error);
        }
        match errors.as_slice() {
            [] => Ok(()),
            errors => Err(format!(
                "kmsv2 Provider {name} is not healthy, error: {}",
                errors.join(", ")
            )),
        }
    }

    /// Seals from now on with a seed under the plugin's present key.
    async fn take_up(&self, key_id: &str) -> Result<(), String> {
        // From before the call: the plugin may have taken its time.
        let until = Instant::now() + SEALS_FOR;
        let current = self.current.load_full();
        if let Some(current) = current.filter(|current| current.envelope.key_id == key_id) {
            self.current.store(Some(Arc::new(Current {
                source: current.source.clone(),
                envelope: current.envelope.clone(),
                until,
            })));
            return Ok(());
        }
        let (source, seed) = Source::generate();
        let uid = uuid::Uuid::new_v4().to_string();
        let sealed = self
            .plugin
            .encrypt(seed, uid)
            .await
            .map_err(|error| format!("failed to encrypt DEK, error: {error}"))?;
        let envelope = Envelope {
            data: Vec::new(),
            key_id: sealed.key_id,
            source: sealed.ciphertext,
            annotations: sealed.annotations,
            source_type: SEED,
        };
        envelope.check()?;
        if envelope.key_id != key_id {
            return Err("the key of Status is not the one that Encrypt has used".to_owned());
        }
        let source = Arc::new(source);
        self.keep(envelope.key(), source.clone());
        self.current.store(Some(Arc::new(Current {
            source,
            envelope,
            until,
        })));
        Ok(())
    }

    fn keep(&self, key: Vec<u8>, source: Arc<Source>) {
        let now = Instant::now();
        let mut sources = self.sources.lock();
        sources.retain(|_, (_, used)| now.duration_since(*used) < KEPT_FOR);
        sources.insert(key, (source, now));
    }

    /// What is stored of a value.
    pub fn seal(&self, key: &str, plain: &[u8]) -> Result<Bytes, String> {
        let current = self.current.load_full().ok_or_else(|| {
            format!(
                "KMS Provider {} has not been reached yet",
                self.settings.name
            )
        })?;
        if current.until < Instant::now() {
            return Err(format!(
                "encryptedDEKSource of KMS Provider {} has expired: its plugin does not answer",
                self.settings.name
            ));
        }
        let envelope = Envelope {
            data: current.source.seal(key, plain)?,
            ..current.envelope.clone()
        };
        let mut sealed = self.prefix.clone().into_bytes();
        envelope
            .encode(&mut sealed)
            .map_err(|error| error.to_string())?;
        Ok(sealed.into())
    }

    /// Opens what is stored; `None` if it is not of this provider.
    pub async fn open(&self, key: &str, stored: &[u8]) -> Option<Result<Opened, String>> {
        let sealed = stored.strip_prefix(self.prefix.as_bytes())?;
        Some(self.open_envelope(key, sealed).await)
    }

    async fn open_envelope(&self, key: &str, sealed: &[u8]) -> Result<Opened, String> {
        let envelope = Envelope::read(sealed)?;
        let source = self.source(&envelope).await?;
        let value = source.open(key, &envelope.data)?.into();
        let current = self.current.load();
        let stale = current.as_ref().is_some_and(|current| {
            current.envelope.key_id != envelope.key_id
                || current.envelope.source_type != envelope.source_type
        });
        Ok(Opened { value, stale })
    }

    async fn source(&self, envelope: &Envelope) -> Result<Arc<Source>, String> {
        let key = envelope.key();
        if let Some((source, used)) = self.sources.lock().get_mut(&key) {
            *used = Instant::now();
            return Ok(source.clone());
        }
        let request = DecryptRequest {
            ciphertext: envelope.source.clone(),
            uid: uuid::Uuid::new_v4().to_string(),
            key_id: envelope.key_id.clone(),
            annotations: envelope.annotations.clone(),
        };
        let opened = self.plugin.decrypt(request).await;
        let secret = opened.map_err(|error| format!("failed to decrypt DEK, error: {error}"))?;
        let source = Arc::new(Source::new(envelope.source_type, secret.plaintext)?);
        self.keep(key, source.clone());
        Ok(source)
    }
}

/// What is wrong with a status.
fn complaints(status: &StatusResponse, checked: &mut Checked) -> Vec<String> {
    let mut errors = Vec::new();
    if status.healthz != "ok" {
        errors.push(format!("got unexpected healthz status: {}", status.healthz));
    }
    if !VERSIONS.contains(&status.version.as_str()) {
        errors.push(format!(
            "expected KMSv2 API version v2, got {}",
            status.version
        ));
    } else {
        let first = checked
            .version
            .get_or_insert_with(|| status.version.clone());
        if *first != status.version {
            errors.push(format!(
                "KMSv2 API version should not change after the initial status response version {first}, got {}",
                status.version
            ));
        }
    }
    if let Err(error) = check_key_id(&status.key_id) {
        errors.push(format!("got invalid KMSv2 KeyID: {error}"));
    }
    errors
}

fn interval(answer: &Result<(), String>) -> Duration {
    match answer {
        Ok(()) => WELL_INTERVAL,
        Err(_) => ILL_INTERVAL,
    }
}

async fn follow(kms: Weak<Kms>, mut next: Duration) {
    loop {
        tokio::time::sleep(next).await;
        let Some(kms) = kms.upgrade() else { return };
        let answer = kms.check().await;
        if let Err(error) = &answer {
            tracing::warn!(
                name = kms.name(),
                error,
                "a KMS plugin failed its health check"
            );
        }
        next = interval(&answer);
    }
}

#[cfg(test)]
mod tests;
