//! Create: the object gets its identity, is admitted and checked, and must not exist yet.

use std::sync::Arc;

use apimachinery::managed::Created;
use apimachinery::object;
use apimachinery::status::{Result, Status};
use bytes::Bytes;
use serde_json::Value;
use storage::Expect;

use super::managed::Tracking;
use super::table::Served;
use super::versions::Encoded;
use super::{Call, Registry, Reservation, Target, Written, decode, meta};
use crate::admission::Operation;
use crate::cache::{Object, store_error};
use crate::codec;

/// How often a generated name is tried again when it is taken.
const NAME_ATTEMPTS: usize = 8;
/// Objects with more bytes than this take a while to free.
const LARGE: usize = 64 << 10;

impl Registry {
    /// Creates a decoded object, which is complete (see [`decode`]).
    pub async fn create(
        &self,
        target: Target<'_>,
        object: Value,
        call: &mut Call<'_>,
    ) -> Result<Written> {
        self.create_tracked(target, object, call, Tracking::Update)
            .await
    }

    /// Creates what [`Self::applied`] made of nothing.
    pub async fn create_applied(
        &self,
        target: Target<'_>,
        object: Value,
        call: &mut Call<'_>,
    ) -> Result<Written> {
        self.create_tracked(target, object, call, Tracking::Done)
            .await
    }

    async fn create_tracked(
        &self,
        target: Target<'_>,
        mut object: Value,
        call: &mut Call<'_>,
        tracking: Tracking,
    ) -> Result<Written> {
        meta::match_namespace(target, &mut object)?;
        if !object::resource_version(&object).is_empty() {
            return Err(Status::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let given = object::name(&object).to_owned();
        let target = Target {
            name: if target.name.is_empty() {
                &given
            } else {
                target.name
            },
            ..target
        };
        // What admission adds belongs to nobody.
        let managers = match tracking {
            Tracking::Update => self.managers_of_new(target, call, &mut object).await?,
            Tracking::Done => Created::default(),
        };
        let touched = self
            .admit(Operation::Create, target, call, &mut object, &Value::Null)
            .await?;
        if touched {
            object = decode::complete(target.served, object);
        }
        meta::match_namespace(target, &mut object)?;
        meta::fill(&mut object, Self::now());
        let prefix = object::generate_name(&object).to_owned();
        let generated = object::name(&object).is_empty() && !prefix.is_empty();
        if !generated {
            return self.create_named(target, object, managers, call).await;
        }
        for _ in 0..NAME_ATTEMPTS {
            object::set_name(&mut object, &meta::generate(&prefix));
            let (object, managers) = (object.clone(), managers.clone());
            match self.create_named(target, object, managers, call).await {
                Err(error) if error.is_already_exists() => {}
                result => return result,
            }
        }
        let name = object::name(&object);
        let resource = target.group_resource();
        Err(Status::generate_name_conflict(&resource, name))
    }

    async fn create_named(
        &self,
        target: Target<'_>,
        mut object: Value,
        managers: Created,
        call: &mut Call<'_>,
    ) -> Result<Written> {
        let name = object::name(&object).to_owned();
        let target = Target {
            name: &name,
            ..target
        };
        self.prepare_create(target, &mut object, call).await?;
        let reservation = self
            .reserve(target.served, &mut object, &Value::Null, call.dry_run)
            .await?;
        let result = self.insert(target, &object, &managers, call.dry_run).await;
        self.settle(reservation, result.is_ok()).await;
        if result
            .as_ref()
            .is_ok_and(|object| object.bytes.len() > LARGE)
        {
            // Many small pieces: they are freed once the answer is on its way, but soon, for the next request to have them.
            tokio::spawn(async move { drop(object) });
        }
        Ok(Written {
            object: result?,
            created: true,
        })
    }

    /// Strategy, validation and validating admission of a new object.
    async fn prepare_create(
        &self,
        target: Target<'_>,
        object: &mut Value,
        call: &mut Call<'_>,
    ) -> Result<()> {
        let (strategy, context) = (&*target.served.strategy, target.context(call.user));
        strategy.prepare_for_create(&context, object);
        if strategy.has_generation(&context) {
            object::set_metadata(object, "generation", 1);
        }
        let mut errors = meta::validate(target, object);
        errors.append(strategy.validate(&context, object));
        if !errors.is_empty() {
            return Err(Status::invalid(
                &target.served.resource.group_kind(),
                target.name,
                errors,
            ));
        }
        call.warnings.extend(strategy.warnings(&context, object));
        self.validate_admission(Operation::Create, target, call, object, &Value::Null)
            .await
    }

    async fn insert(
        &self,
        target: Target<'_>,
        object: &Value,
        managers: &Created,
        dry_run: bool,
    ) -> Result<Arc<Object>> {
        let key = target.storage_key();
        let Encoded { stored, shown } = match managers.text.is_empty() {
            true => self.encode(target.served, object).await?,
            false => {
                decode::check_depth(object)?;
                decode::check_levels(managers.levels)?;
                Encoded::same(codec::encode_with(object, &managers.text))
            }
        };
        let exists = || Status::already_exists(&target.group_resource(), target.name);
        if dry_run {
            return match self.store.get(&key).await.map_err(store_error)? {
                Some(_) => Err(exists()),
                None => finished(target, &shown, 0),
            };
        }
        match self
            .store
            .put(&key, Expect::Absent, stored, self.ttl(target.served))
            .await
        {
            Ok(revision) => finished(target, &shown, revision),
            Err(storage::Error::Conflict { .. }) => Err(exists()),
            Err(error) => Err(store_error(error)),
        }
    }

    /// The stored form, in the version that is stored.
    pub(super) async fn encode(&self, served: &Served, object: &Value) -> Result<Encoded> {
        // Notes of who owns which field nest as deeply as what they are about, and deeper.
        decode::check_depth(object)?;
        if let Some(versions) = &served.storage.versions {
            return Ok(Encoded {
                stored: codec::encode(&versions.write(object.clone()).await?),
                shown: codec::encode(object),
            });
        }
        Ok(Encoded::same(match served.converts() {
            true => codec::encode(&decode::convert(object.clone(), &served.storage.resource)),
            false => codec::encode(object),
        }))
    }

    pub(super) async fn reserve(
        &self,
        served: &Served,
        object: &mut Value,
        old: &Value,
        dry_run: bool,
    ) -> Result<Option<Box<dyn Reservation>>> {
        match self.reserver(served) {
            Some(reserver) => reserver.reserve(self, object, old, dry_run).await.map(Some),
            None => Ok(None),
        }
    }

    pub(super) async fn settle(&self, reservation: Option<Box<dyn Reservation>>, committed: bool) {
        match reservation {
            Some(reservation) if committed => reservation.commit(self).await,
            Some(reservation) => reservation.rollback(self).await,
            None => {}
        }
    }
}

/// The object as a write answers it.
pub(super) fn finished(target: Target<'_>, stored: &Bytes, revision: u64) -> Result<Arc<Object>> {
    Object::written(&target.cache_key(), stored, revision)
        .map(Arc::new)
        .map_err(Status::internal)
}
