//! Encryption at rest: what the store holds of some resources is sealed, in Kubernetes' own envelopes.
//!
//! [`EncryptedStore`] stands between everybody and the store: values are opened as they come and sealed as they go.
//! [`config`] reads which resources are sealed and how, and [`reload`] does so again when the file changes; [`provider`]
//! has the ciphers, [`kms`] those whose keys are elsewhere. A value that would be sealed otherwise by now is written anew with the next update of its object,
//! even if that changes nothing else.

pub mod config;
mod kms;
mod provider;
pub mod reload;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::future::BoxFuture;
use storage::{Batch, Deleted, Error, Expect, KeyValue, Range, RangeResult, Result, Store, Watch};

pub use config::Rules;
use provider::Opened;

/// The rules, which may be exchanged while they are in use.
#[derive(Clone)]
pub struct SharedRules(Arc<ArcSwap<Rules>>);

impl SharedRules {
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(rules)))
    }

    /// Whether all key management services are well, and if not, why.
    pub async fn check(&self) -> std::result::Result<(), String> {
        let rules = self.load_full();
        for kms in rules.services() {
            kms.check().await?;
        }
        Ok(())
    }

    fn load(&self) -> arc_swap::Guard<Arc<Rules>> {
        self.0.load()
    }

    fn load_full(&self) -> Arc<Rules> {
        self.0.load_full()
    }

    fn store(&self, rules: Rules) {
        self.0.store(Arc::new(rules));
    }
}

/// A store whose values are sealed by the rules.
pub struct EncryptedStore {
    inner: Arc<dyn Store>,
    rules: SharedRules,
}

impl EncryptedStore {
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, rules: SharedRules) -> Self {
        Self { inner, rules }
    }

    fn seal(&self, key: &str, value: Bytes) -> Result<Bytes> {
        match self.rules.load().of(key) {
            Some(providers) => providers
                .seal(key, &value)
                .map_err(|error| Error::Corrupt(not_transformed(key, &error))),
            None => Ok(value),
        }
    }

    /// What a failed write found in its place.
    async fn open_error(&self, error: Error) -> Error {
        match error {
            Error::Conflict {
                current: Some(mut current),
            } => match open(&self.rules.load_full(), &mut current).await {
                Ok(()) => Error::Conflict {
                    current: Some(current),
                },
                Err(error) => error,
            },
            other => other,
        }
    }
}

fn not_transformed(key: &str, error: &str) -> String {
    format!("unable to transform key {key:?}: {error}")
}

async fn opened(rules: &Rules, kv: &KeyValue) -> Result<Option<Opened>> {
    match rules.of(&kv.key) {
        // A deletion has no value.
        Some(providers) if !kv.value.is_empty() => providers
            .open(&kv.key, &kv.value)
            .await
            .map(Some)
            .map_err(|error| Error::Corrupt(not_transformed(&kv.key, &error))),
        _ => Ok(None),
    }
}

async fn open(rules: &Rules, kv: &mut KeyValue) -> Result<()> {
    if let Some(opened) = opened(rules, kv).await? {
        kv.value = opened.value;
    }
    Ok(())
}

async fn open_batch(rules: Arc<Rules>, mut batch: Batch) -> Result<Batch> {
    for event in &mut batch.events {
        if let Some(previous) = &mut event.prev_kv {
            open(&rules, previous).await?;
        }
        open(&rules, &mut event.kv).await?;
    }
    Ok(batch)
}

impl Store for EncryptedStore {
    fn current_revision(&self) -> BoxFuture<'_, Result<u64>> {
        self.inner.current_revision()
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<KeyValue>>> {
        Box::pin(async move {
            let mut found = self.inner.get(key).await?;
            if let Some(kv) = &mut found {
                open(&self.rules.load_full(), kv).await?;
            }
            Ok(found)
        })
    }

    fn range(&self, range: Range) -> BoxFuture<'_, Result<RangeResult>> {
        Box::pin(async move {
            let mut found = self.inner.range(range).await?;
            let rules = self.rules.load_full();
            for kv in &mut found.kvs {
                open(&rules, kv).await?;
            }
            Ok(found)
        })
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        expect: Expect,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> BoxFuture<'a, Result<u64>> {
        Box::pin(async move {
            let sealed = self.seal(key, value)?;
            match self.inner.put(key, expect, sealed, ttl).await {
                Err(error) => Err(self.open_error(error).await),
                written => written,
            }
        })
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<Deleted>> {
        Box::pin(async move {
            let mut deleted = match self.inner.delete(key, expect).await {
                Ok(deleted) => deleted,
                Err(error) => return Err(self.open_error(error).await),
            };
            open(&self.rules.load_full(), &mut deleted.prev).await?;
            Ok(deleted)
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: u64) -> BoxFuture<'a, Result<Watch>> {
        let rules = self.rules.clone();
        Box::pin(async move {
            let watch = self.inner.watch(prefix, from).await?;
            Ok(watch.transformed(move |batch| Box::pin(open_batch(rules.load_full(), batch))))
        })
    }

    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<()>> {
        self.inner.compact(revision)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }

    fn is_stale<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            // Spares the read where nothing is ever sealed.
            if self.rules.load().of(key).is_none() {
                return Ok(false);
            }
            let Some(kv) = self.inner.get(key).await? else {
                return Ok(false);
            };
            let opened = opened(&self.rules.load_full(), &kv).await?;
            Ok(opened.is_some_and(|opened| opened.stale))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage::embedded::{Embedded, Options};

    const OLD: &str = r#"
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - aescbc: {keys: [{name: key1, secret: "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}]}
  - identity: {}
"#;
    const NEW: &str = r#"
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - secretbox: {keys: [{name: key2, secret: "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="}]}
  - aescbc: {keys: [{name: key1, secret: "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}]}
"#;

    fn sealed(inner: &Arc<dyn Store>, rules: &str) -> EncryptedStore {
        let rules = config::parse(rules).unwrap();
        EncryptedStore::new(inner.clone(), SharedRules::new(rules))
    }

    #[tokio::test]
    async fn keys_are_rotated() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        let inner: Arc<dyn Store> = Arc::new(Embedded::open(&path, Options::default()).unwrap());
        let old = sealed(&inner, OLD);
        let (secret, map) = ("/registry/secrets/ns/s", "/registry/configmaps/ns/m");
        for key in [secret, map] {
            let value = Bytes::from_static(b"plain");
            old.put(key, Expect::Absent, value, None).await.unwrap();
        }
        let raw = |key: &'static str| {
            let inner = inner.clone();
            async move { inner.get(key).await.unwrap().unwrap().value }
        };
        assert!(raw(secret).await.starts_with(b"k8s:enc:aescbc:v1:key1:"));
        assert_eq!(&*raw(map).await, b"plain");
        assert!(!old.is_stale(secret).await.unwrap());

        let new = sealed(&inner, NEW);
        let mut watch = new.watch("/registry/secrets/", 1).await.unwrap();
        let seen = watch.next().await.unwrap().unwrap();
        assert_eq!(&*seen.events[0].kv.value, b"plain");
        let found = new.get(secret).await.unwrap().unwrap();
        assert_eq!(&*found.value, b"plain");
        assert!(new.is_stale(secret).await.unwrap());
        let expect = Expect::ModRevision(found.mod_revision);
        new.put(secret, expect, found.value, None).await.unwrap();
        assert!(raw(secret).await.starts_with(b"k8s:enc:secretbox:v1:key2:"));
        assert!(!new.is_stale(secret).await.unwrap());
        // Without the key, what is sealed with it cannot be read, and is not taken for something else.
        let refused = old.get(secret).await.unwrap_err();
        assert!(matches!(refused, Error::Corrupt(_)), "{refused}");
        inner.close().await;
    }
}
