//! What controllers share: the connection, the informers, events, and writes that are seen at once.

use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::time::Duration;

use client::events::Recorder;
use client::{CancellationToken, Informer, Next, WorkQueue};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::informers::Informers;

/// What the flags decide.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `None` when nodes' address ranges are someone else's business.
    pub cluster_cidr: Option<String>,
    pub node_cidr_mask_size: u8,
    pub root_ca: Option<String>,
    /// `None` when Secrets get no tokens.
    pub token_signer: Option<crate::serviceaccount::signer::Signer>,
    pub node_monitor_grace_period: Duration,
    pub terminated_pod_gc_threshold: usize,
    pub autoscaling: crate::podautoscaler::Options,
    /// `None` when nobody signs certificates here.
    pub signing: Option<crate::certificates::sign::Signing>,
}

/// What every controller is given.
pub struct Context {
    pub client: kube::Client,
    pub settings: Settings,
    recorder: Recorder,
    informers: Informers,
}

impl Context {
    /// Informers started from here end with `token`. Must be called inside a Tokio runtime.
    pub fn new(client: kube::Client, settings: Settings, token: &CancellationToken) -> Self {
        let recorder = Recorder::new(client.clone(), "controller-manager", None);
        Self {
            informers: Informers::new(client.clone(), token.clone()),
            client,
            settings,
            recorder,
        }
    }

    /// Events in the name of one controller.
    pub fn recorder(&self, component: &str) -> Recorder {
        self.recorder.named(component)
    }

    /// Informers, each started by whoever asks for it first.
    pub fn informers(&self) -> &Informers {
        &self.informers
    }
}

/// Why a pass did not reach its end. All of these are retried with back-off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", describe(.0))]
    Api(#[source] Box<kube::Error>),
    #[error("{0}")]
    Other(String),
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

impl Error {
    fn code(&self) -> u16 {
        match self {
            Self::Api(error) => match error.as_ref() {
                kube::Error::Api(status) => status.code,
                _ => 0,
            },
            Self::Other(_) => 0,
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    /// A precondition did not hold, or the object exists already: the next pass knows more.
    pub fn is_conflict(&self) -> bool {
        self.code() == 409
    }

    /// The object exists already (also a 409).
    pub fn already_exists(&self) -> bool {
        matches!(self, Self::Api(e) if matches!(e.as_ref(), kube::Error::Api(s) if s.reason == "AlreadyExists"))
    }

    /// The namespace is on its way out: nothing can be created there any more, and nothing should be.
    pub fn is_namespace_terminating(&self) -> bool {
        let Self::Api(error) = self else { return false };
        let kube::Error::Api(status) = error.as_ref() else {
            return false;
        };
        let causes = status
            .details
            .as_ref()
            .map(|d| d.causes.as_slice())
            .unwrap_or_default();
        causes.iter().any(|c| c.reason == "NamespaceTerminating")
    }
}

/// The API server's message alone, for it is what users see in conditions and events.
fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// One kind of object: the informer's copy to read, the API server to write, and writes put into the copy at once.
pub struct Objects<K> {
    pub informer: Informer<K>,
    pub(crate) client: kube::Client,
    pub(crate) api: fn(kube::Client, &str) -> Api<K>,
}

impl<K> Objects<K>
where
    K: Resource<DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
        + Send
        + Sync
        + 'static,
{
    pub fn api(&self, namespace: &str) -> Api<K> {
        (self.api)(self.client.clone(), namespace)
    }

    pub async fn create(&self, namespace: &str, object: &K) -> Result<K> {
        let mark = self.informer.mark();
        let created = self
            .api(namespace)
            .create(&PostParams::default(), object)
            .await?;
        self.informer.observe(mark, created.clone());
        Ok(created)
    }

    /// A merge patch of the object as it was seen: a successor with the same name is left alone.
    pub async fn patch(&self, object: &K, patch: Value) -> Result<()> {
        self.send(object, Patch::Merge(guard(object, patch, false)), false)
            .await
    }

    /// A merge patch that applies only to exactly the revision that was seen.
    pub async fn patch_exact(&self, object: &K, patch: Value) -> Result<()> {
        self.send(object, Patch::Merge(guard(object, patch, true)), false)
            .await
    }

    /// A strategic merge patch, which can add to and remove from lists with merge keys.
    pub async fn patch_strategic(&self, object: &K, patch: Value) -> Result<()> {
        self.send(object, Patch::Strategic(guard(object, patch, false)), false)
            .await
    }

    /// Changes `status` from `old` to `new` if they differ and the object is still as it was seen.
    pub async fn patch_status<S: Serialize>(
        &self,
        object: &K,
        old: Option<&S>,
        new: &S,
    ) -> Result<()> {
        let value =
            |s: Option<&S>| serde_json::to_value(s).map_err(|e| Error::Other(e.to_string()));
        match difference(&value(old)?, &value(Some(new))?) {
            None => Ok(()),
            Some(status) => {
                self.send(
                    object,
                    Patch::Merge(guard(object, json!({"status": status}), true)),
                    true,
                )
                .await
            }
        }
    }

    /// A strategic merge patch of `status`, for kinds whose status several writers share.
    pub async fn patch_status_strategic(&self, object: &K, status: Value) -> Result<()> {
        let patch = guard(object, json!({"status": status}), false);
        self.send(object, Patch::Strategic(patch), true).await
    }

    async fn send(&self, object: &K, patch: Patch<Value>, status: bool) -> Result<()> {
        let meta = object.meta();
        let (namespace, name) = (
            meta.namespace.as_deref().unwrap_or(""),
            meta.name.as_deref().unwrap_or(""),
        );
        let api = self.api(namespace);
        let mark = self.informer.mark();
        let params = PatchParams::default();
        let patched = match status {
            true => api.patch_status(name, &params, &patch).await?,
            false => api.patch(name, &params, &patch).await?,
        };
        self.informer.observe(mark, patched);
        Ok(())
    }

    /// Deletes exactly this object; that it is gone already counts as success.
    pub async fn delete(&self, object: &K, propagation: PropagationPolicy) -> Result<()> {
        self.delete_with(
            object,
            DeleteParams {
                propagation_policy: Some(propagation),
                ..Default::default()
            },
        )
        .await
    }

    /// As [`delete`](Self::delete), with the kind's own grace period and propagation unless `params` say otherwise.
    pub async fn delete_with(&self, object: &K, mut params: DeleteParams) -> Result<()> {
        let meta = object.meta();
        let (namespace, name) = (
            meta.namespace.as_deref().unwrap_or(""),
            meta.name.as_deref().unwrap_or(""),
        );
        let preconditions = Preconditions {
            uid: meta.uid.clone(),
            ..Default::default()
        };
        params.preconditions = Some(preconditions);
        let mark = self.informer.mark();
        match self.api(namespace).delete(name, &params).await {
            Ok(answer) => match answer.left() {
                // What has a deletion timestamp may linger; if it does not, the watch will say so.
                Some(left) if left.meta().deletion_timestamp.is_some() => {
                    self.informer.observe(mark, left)
                }
                _ => self.gone(object),
            },
            Err(error) => {
                let error = Error::from(error);
                if !error.is_not_found() && !error.is_conflict() {
                    return Err(error);
                }
                self.gone(object);
            }
        }
        Ok(())
    }

    fn gone(&self, object: &K) {
        self.informer.observe_gone(
            &client::key_of(object),
            object.meta().uid.as_deref().unwrap_or_default(),
        );
    }
}

/// Adds the preconditions to a patch: same uid, and if `exact` same revision.
fn guard<K: Resource>(object: &K, mut patch: Value, exact: bool) -> Value {
    let meta = object.meta();
    if !patch["metadata"].is_object() {
        patch["metadata"] = json!({});
    }
    patch["metadata"]["uid"] = json!(meta.uid);
    if exact {
        patch["metadata"]["resourceVersion"] = json!(meta.resource_version);
    }
    patch
}

/// The merge patch that makes `new` of `old`; `None` if nothing differs.
pub fn difference(old: &Value, new: &Value) -> Option<Value> {
    let (Value::Object(before), Value::Object(after)) = (old, new) else {
        return (old != new).then(|| new.clone());
    };
    let mut patch = serde_json::Map::new();
    for (key, value) in after {
        if let Some(change) = difference(before.get(key).unwrap_or(&Value::Null), value) {
            patch.insert(key.clone(), change);
        }
    }
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// Works on `queue` with `workers` workers until the token is cancelled.
pub async fn work<K, F, Fut>(
    queue: &WorkQueue<K>,
    workers: usize,
    token: &CancellationToken,
    reconcile: F,
) where
    K: Eq + Hash + Clone + Debug,
    F: Fn(K) -> Fut,
    Fut: Future<Output = Result<Next>>,
{
    queue
        .run(workers, token, |key| async {
            match reconcile(key).await {
                Err(error) if error.is_namespace_terminating() => Ok(Next::Done),
                other => other,
            }
        })
        .await;
}

/// How many objects one controller works on at a time, as Kubernetes' `--concurrent-*-syncs` default to.
pub const WORKERS: usize = 5;

/// Runs `task` for `count` items in batches of 1, 2, 4...: stops after a batch with a failure, so that what is bound
/// to fail is not tried a thousand times. Returns the first error.
pub async fn slow_start<F, Fut>(count: usize, task: F) -> Result<()>
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let (mut next, mut batch) = (0, 1);
    while next < count {
        let end = (next + batch).min(count);
        let results = futures::future::join_all((next..end).map(&task)).await;
        results.into_iter().collect::<Result<Vec<()>>>()?;
        (next, batch) = (end, batch * 2);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn merge_patches() {
        for (old, new, want) in [
            (json!({"a": 1}), json!({"a": 1}), None),
            (
                json!({"a": 1, "b": 2}),
                json!({"a": 3}),
                Some(json!({"a": 3, "b": null})),
            ),
            (
                json!(null),
                json!({"a": {"b": 1}}),
                Some(json!({"a": {"b": 1}})),
            ),
            (
                json!({"a": {"b": 1, "c": 2}}),
                json!({"a": {"b": 1, "c": 3}}),
                Some(json!({"a": {"c": 3}})),
            ),
            (
                json!({"l": [1]}),
                json!({"l": [2]}),
                Some(json!({"l": [2]})),
            ),
        ] {
            assert_eq!(difference(&old, &new), want);
        }
    }

    #[tokio::test]
    async fn slow_start_stops_at_the_first_failing_batch() {
        for (fail_at, want_tried) in [(None, 10), (Some(0), 1), (Some(1), 3), (Some(4), 7)] {
            let tried = AtomicUsize::new(0);
            let result = slow_start(10, |n| {
                tried.fetch_add(1, Ordering::Relaxed);
                async move {
                    match Some(n) == fail_at {
                        true => Err(Error::Other("quota".into())),
                        false => Ok(()),
                    }
                }
            })
            .await;
            assert_eq!(result.is_err(), fail_at.is_some());
            assert_eq!(
                tried.load(Ordering::Relaxed),
                want_tried,
                "fails at {fail_at:?}"
            );
        }
    }
}
