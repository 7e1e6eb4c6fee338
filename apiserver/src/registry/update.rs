//! Update: read, change, check, compare-and-set, and again if somebody was faster.
//!
//! PUT, every kind of patch, status and scale are the same operation with another function from the old object to the
//! new one.

use std::sync::Arc;

use apimachinery::managed::entries::same_but_times;
use apimachinery::object;
use apimachinery::status::{Result, Status};
use serde_json::Value;
use storage::{Expect, KeyValue};

use super::create::finished;
use super::managed::Tracking;
use super::versions::Encoded;
use super::{Call, Registry, Target, Written, decode, meta};
use crate::admission::Operation;
use crate::cache::{Object, store_error};

/// How often a write that does not insist on a version is tried against the newest one.
const ATTEMPTS: usize = 10;

/// An object as it is in the store.
struct Current {
    revision: u64,
    /// In the version of the request, resource version included.
    object: Value,
    /// The stored bytes, to see whether anything changes.
    stored: bytes::Bytes,
}

impl Registry {
    /// Replaces an object by what `change` makes of it. `change` may be called several times.
    pub async fn update(
        &self,
        target: Target<'_>,
        call: &mut Call<'_>,
        change: impl FnMut(&Value) -> Result<Value>,
    ) -> Result<Written> {
        // A pod is bound by its scheduler; nobody owns that.
        let tracking = match target.subresource {
            "binding" => Tracking::Done,
            _ => Tracking::Update,
        };
        self.update_tracked(target, call, change, tracking).await
    }

    /// Applies a document to an object that exists.
    pub async fn update_applied(
        &self,
        target: Target<'_>,
        call: &mut Call<'_>,
        document: &Value,
        force: bool,
    ) -> Result<Written> {
        let request = Call {
            warnings: Vec::new(),
            manager: call.manager.clone(),
            ..*call
        };
        let change = |old: &Value| self.applied(target, &request, old, document, force);
        self.update_tracked(target, call, change, Tracking::Done)
            .await
    }

    async fn update_tracked(
        &self,
        target: Target<'_>,
        call: &mut Call<'_>,
        mut change: impl FnMut(&Value) -> Result<Value>,
        tracking: Tracking,
    ) -> Result<Written> {
        let mut found = self
            .store
            .get(&target.storage_key())
            .await
            .map_err(store_error)?;
        for _ in 0..ATTEMPTS {
            let Some(kv) = found else {
                return Err(target.not_found());
            };
            let current = self.current(target, kv).await?;
            call.warnings.clear();
            let object = change(&current.object)?;
            match self
                .try_update(target, call, &current, object, tracking)
                .await?
            {
                Ok(written) => return Ok(written),
                Err(newer) => found = newer.map(|kv| *kv),
            }
        }
        Err(Status::stale(&target.group_resource(), target.name))
    }

    /// One attempt. The inner error is a lost race, with what is there now.
    async fn try_update(
        &self,
        target: Target<'_>,
        call: &mut Call<'_>,
        current: &Current,
        mut object: Value,
        tracking: Tracking,
    ) -> Result<std::result::Result<Written, Option<Box<KeyValue>>>> {
        let old = &current.object;
        meta::match_name(target, &mut object)?;
        meta::match_namespace(target, &mut object)?;
        self.check_preconditions(target, current, &object)?;
        if tracking == Tracking::Update {
            self.note_managers(target, call, old, &mut object);
        }
        if target.subresource != "binding" {
            self.admit(Operation::Update, target, call, &mut object, old)
                .await?;
        }
        object = decode::complete(target.served, object);
        self.prepare_update(target, call, &mut object, old).await?;
        if self.ends_here(target, &object) {
            return self
                .remove_updated(target, current, &object, call.dry_run)
                .await;
        }
        let reservation = match target.subresource {
            "" => {
                self.reserve(target.served, &mut object, old, call.dry_run)
                    .await?
            }
            _ => None,
        };
        keep_times(&mut object, old);
        let written = self.put(target, current, &object, call.dry_run).await;
        let kept = matches!(written, Ok(Ok(_))) && !call.dry_run;
        self.settle(reservation, kept).await;
        written
    }

    /// Writes an object in the place of what is there.
    async fn put(
        &self,
        target: Target<'_>,
        current: &Current,
        object: &Value,
        dry_run: bool,
    ) -> Result<std::result::Result<Written, Option<Box<KeyValue>>>> {
        let Encoded { stored, shown } = self.encode(target.served, object).await?;
        let same = stored == current.stored && !self.is_stale(target).await?;
        if dry_run || same {
            // Nothing to write: the version stays what it was.
            let object = finished(target, &shown, current.revision)?;
            return Ok(Ok(Written {
                object,
                created: false,
            }));
        }
        let expect = Expect::ModRevision(current.revision);
        let put = self
            .store
            .put(
                &target.storage_key(),
                expect,
                stored,
                self.ttl(target.served),
            )
            .await;
        match put {
            Ok(revision) => Ok(Ok(Written {
                object: finished(target, &shown, revision)?,
                created: false,
            })),
            Err(storage::Error::Conflict { current }) => Ok(Err(current)),
            Err(error) => Err(store_error(error)),
        }
    }

    /// Whether the store would hold the object otherwise by now, as after a change of its encryption.
    async fn is_stale(&self, target: Target<'_>) -> Result<bool> {
        let key = target.storage_key();
        self.store.is_stale(&key).await.map_err(store_error)
    }

    async fn current(&self, target: Target<'_>, kv: KeyValue) -> Result<Current> {
        let corrupt = |error: serde_json::Error| Status::internal(format!("{}: {error}", kv.key));
        let shown = target.served.storage.shown(&kv.key, &kv.value).await?;
        let mut stored: Value = serde_json::from_slice(&shown).map_err(corrupt)?;
        object::set_metadata(&mut stored, "resourceVersion", kv.mod_revision.to_string());
        let served = target.served;
        let object = match served.converts() {
            true => decode::convert(stored, &served.resource),
            false => stored,
        };
        Ok(Current {
            revision: kv.mod_revision,
            object,
            stored: kv.value,
        })
    }

    /// The version and UID that the new object names must be those of the old one.
    fn check_preconditions(
        &self,
        target: Target<'_>,
        current: &Current,
        object: &Value,
    ) -> Result<()> {
        let (resource, name) = (target.group_resource(), target.name);
        let (wanted, found) = (object::uid(object), object::uid(&current.object));
        if !wanted.is_empty() && wanted != found {
            let why = format!(
                "Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}"
            );
            return Err(Status::conflict(&resource, name, why));
        }
        match object::resource_version(object) {
            "" | "0" if target.served.strategy.allow_unconditional_update() => Ok(()),
            "" | "0" => Err(meta::version_required(target)),
            version if version == current.revision.to_string() => Ok(()),
            version if version.parse::<u64>().is_err() => Err(Status::bad_request(format!(
                "metadata.resourceVersion: Invalid value: {version:?}: must be an unsigned integer"
            ))),
            _ => Err(Status::stale(&resource, name)),
        }
    }

    /// Strategy, validation and validating admission of a changed object.
    async fn prepare_update(
        &self,
        target: Target<'_>,
        call: &mut Call<'_>,
        object: &mut Value,
        old: &Value,
    ) -> Result<()> {
        let (strategy, context) = (&*target.served.strategy, target.context(call.user));
        meta::keep(object, old);
        if target.subresource == "binding" {
            // What a binding changes is made here, not sent: there is nothing to check.
            return Ok(());
        }
        if target.subresource.is_empty()
            && let Some(reserver) = self.reserver(target.served)
        {
            reserver.inherit(object, old);
        }
        if is_status(target.subresource) {
            strategy.prepare_for_status_update(&context, object, old);
        } else {
            strategy.prepare_for_update(&context, object, old);
        }
        meta::keep(object, old);
        if strategy.has_generation(&context) && strategy.is_new_generation(object, old) {
            object::set_metadata(object, "generation", object::generation(old) + 1);
        }
        let mut errors = meta::validate_update(target, object, old);
        errors.append(match target.subresource {
            subresource if is_status(subresource) => {
                strategy.validate_status_update(&context, object, old)
            }
            _ => strategy.validate_update(&context, object, old),
        });
        if !errors.is_empty() {
            return Err(Status::invalid(
                &target.served.resource.group_kind(),
                target.name,
                errors,
            ));
        }
        call.warnings.extend(strategy.warnings(&context, object));
        self.validate_admission(Operation::Update, target, call, object, old)
            .await
    }

    /// Whether this update took the last thing that held a deleted object.
    fn ends_here(&self, target: Target<'_>, object: &Value) -> bool {
        object::deletion_timestamp(object).is_some()
            && object::deletion_grace_period_seconds(object).unwrap_or(0) == 0
            && !target.served.strategy.has_finalizers(object)
    }

    /// The update is the object's end: it is deleted as it would have been written.
    async fn remove_updated(
        &self,
        target: Target<'_>,
        current: &Current,
        object: &Value,
        dry_run: bool,
    ) -> Result<std::result::Result<Written, Option<Box<KeyValue>>>> {
        let shown = self.encode(target.served, object).await?.shown;
        let mut revision = current.revision;
        if !dry_run {
            match self
                .store
                .delete(&target.storage_key(), Expect::ModRevision(current.revision))
                .await
            {
                Ok(deleted) => revision = deleted.revision,
                Err(storage::Error::Conflict { current }) => return Ok(Err(current)),
                Err(error) => return Err(store_error(error)),
            }
            self.after_delete(target, object).await;
        }
        Ok(Ok(Written {
            object: finished(target, &shown, revision)?,
            created: false,
        }))
    }

    /// What an object took elsewhere is given back.
    pub(super) async fn after_delete(&self, target: Target<'_>, object: &Value) {
        if let Some(reserver) = self.reserver(target.served) {
            reserver.released(self, object).await;
        }
    }

    /// PUT: the new object as decoded, or a create where the kind allows that.
    pub async fn replace(
        &self,
        target: Target<'_>,
        object: Value,
        call: &mut Call<'_>,
    ) -> Result<Written> {
        let result = self.update(target, call, |_| Ok(object.clone())).await;
        match result {
            Err(error)
                if error.is_not_found()
                    && target.subresource.is_empty()
                    && target.served.strategy.allow_create_on_update() =>
            {
                let mut object = object;
                meta::match_name(target, &mut object)?;
                if !matches!(object::resource_version(&object), "" | "0") {
                    return Err(error);
                }
                object::set_metadata(&mut object, "resourceVersion", Value::Null);
                self.create(target, object, call).await
            }
            result => result,
        }
    }

    /// The object's document in the version of the request, for callers that need more than bytes.
    pub fn document(&self, target: Target<'_>, object: &Arc<Object>) -> Result<Value> {
        let served = target.served;
        match served.converts() {
            true => Ok(decode::convert(object.value(), &served.resource)),
            false => Ok(object.value()),
        }
    }
}

/// A write that changes nothing but the time of its manager changes nothing.
fn keep_times(object: &mut Value, old: &Value) {
    let before = &old["metadata"]["managedFields"];
    if !same_but_times(&object["metadata"]["managedFields"], before) {
        return;
    }
    let newer = std::mem::replace(&mut object["metadata"]["managedFields"], before.clone());
    if *object != *old {
        object["metadata"]["managedFields"] = newer;
    }
}

/// Subresources that change the status of their object. Approving a certificate request is a condition of it.
fn is_status(subresource: &str) -> bool {
    matches!(subresource, "status" | "approval")
}
