//! Delete: at once, after a grace period, or after whoever holds a finalizer lets go.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::resource::{GroupKind, GroupResource};
use apimachinery::status::{Result, Status};
use apimachinery::{object, time};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::sync::Arc;
use storage::Expect;

use super::create::finished;
use super::versions::Encoded;
use super::{Call, Registry, Target};
use crate::admission::Operation;
use crate::cache::{Object, Selection, store_error};
use crate::query::Query;

/// Holds an object until its dependents no longer refer to it.
const ORPHAN: &str = "orphan";
/// Holds an object until its dependents are gone.
const FOREGROUND: &str = "foregroundDeletion";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    pub grace_period: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// From a DeleteOptions document, or from the query when there was no body.
    pub fn read(body: Option<&Value>, query: &Query) -> Result<Self> {
        let mut errors = ErrorList::new();
        let mut options = Self::default();
        let mut orphan = None;
        let mut policy = None;
        let mut dry_run: Vec<String> = Vec::new();
        if let Some(body) = body {
            options.grace_period = body["gracePeriodSeconds"].as_i64();
            let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
            options.uid = text(&body["preconditions"]["uid"]);
            options.resource_version = text(&body["preconditions"]["resourceVersion"]);
            orphan = body["orphanDependents"].as_bool();
            policy = text(&body["propagationPolicy"]);
            dry_run = body["dryRun"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(text)
                .collect();
        } else {
            options.grace_period = query.integer("gracePeriodSeconds")?;
            orphan = orphan.or(query.optional_flag("orphanDependents"));
            policy = policy.or(query.get("propagationPolicy").map(ToOwned::to_owned));
            dry_run.extend(
                query
                    .all("dryRun")
                    .filter(|value| !value.is_empty())
                    .map(ToOwned::to_owned),
            );
        }
        let path = Path::new("propagationPolicy");
        options.propagation = match policy.as_deref() {
            None | Some("") => orphan.map(|orphan| {
                if orphan {
                    Propagation::Orphan
                } else {
                    Propagation::Background
                }
            }),
            Some(_) if orphan.is_some() => {
                let why = "orphanDependents and deletionPropagation cannot be both set";
                errors.0.push(Error::invalid(
                    &path,
                    policy.as_deref().unwrap_or_default(),
                    why,
                ));
                None
            }
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                errors.0.push(Error::not_supported(
                    &path,
                    other,
                    &["Foreground", "Background", "Orphan", "nil"],
                ));
                None
            }
        };
        for value in &dry_run {
            if value != "All" {
                errors.0.push(Error::not_supported(
                    &Path::new("dryRun"),
                    value.as_str(),
                    &["All"],
                ));
            }
        }
        options.dry_run = !dry_run.is_empty();
        if errors.is_empty() {
            return Ok(options);
        }
        Err(Status::invalid(
            &GroupKind::new("meta.k8s.io", "DeleteOptions"),
            "",
            errors,
        ))
    }
}

/// What to do with an object that is to be deleted.
#[derive(Debug, PartialEq)]
enum Plan {
    /// Remove it now.
    Remove,
    /// Write this: it is marked, and somebody else has to finish.
    Mark(Value),
    /// It is marked already, and nothing changes.
    Pending,
}

/// What a delete answered: the object, and whether it is gone.
#[derive(Debug)]
pub struct Deleted {
    pub object: Arc<Object>,
    pub gone: bool,
}

impl Registry {
    /// Deletes an object, or marks it for those who have to finish something first.
    pub async fn delete(
        &self,
        target: Target<'_>,
        call: &mut Call<'_>,
        options: &DeleteOptions,
    ) -> Result<Deleted> {
        self.delete_for(target, Some(call), options).await
    }

    /// The same for what has been admitted as something else: an eviction.
    pub async fn delete_admitted(
        &self,
        target: Target<'_>,
        options: &DeleteOptions,
    ) -> Result<Deleted> {
        self.delete_for(target, None, options).await
    }

    async fn delete_for(
        &self,
        target: Target<'_>,
        mut call: Option<&mut Call<'_>>,
        options: &DeleteOptions,
    ) -> Result<Deleted> {
        let key = target.storage_key();
        loop {
            let found = self.store.get(&key).await.map_err(store_error)?;
            let Some(kv) = found else {
                return Err(target.not_found());
            };
            let corrupt = |error: serde_json::Error| Status::internal(format!("{key}: {error}"));
            let shown = target.served.storage.shown(&kv.key, &kv.value).await?;
            let current: Value = serde_json::from_slice(&shown).map_err(corrupt)?;
            check_preconditions(target, options, &current, kv.mod_revision)?;
            if let Some(call) = call.take() {
                let mut nothing = Value::Null;
                self.admit(Operation::Delete, target, call, &mut nothing, &current)
                    .await?;
                self.validate_admission(Operation::Delete, target, call, &mut nothing, &current)
                    .await?;
            }
            let expect = Expect::ModRevision(kv.mod_revision);
            let result = match plan(target, options, &current, Self::now()) {
                Plan::Pending => {
                    return Ok(Deleted {
                        object: finished(target, &shown, kv.mod_revision)?,
                        gone: false,
                    });
                }
                Plan::Remove if options.dry_run => {
                    return Ok(Deleted {
                        object: finished(target, &shown, kv.mod_revision)?,
                        gone: true,
                    });
                }
                Plan::Remove => match self.store.delete(&key, expect).await {
                    Ok(deleted) => {
                        self.after_delete(target, &current).await;
                        let object = finished(target, &shown, deleted.revision)?;
                        return Ok(Deleted { object, gone: true });
                    }
                    Err(error) => Err(error),
                },
                Plan::Mark(marked) => {
                    let Encoded { stored, shown } = match target.served.storage.versions {
                        Some(_) => self.encode(target.served, &marked).await?,
                        // What is there is in the stored version, whatever the request's.
                        None => Encoded::same(crate::codec::encode(&marked)),
                    };
                    if options.dry_run {
                        let object = finished(target, &shown, kv.mod_revision)?;
                        return Ok(Deleted {
                            object,
                            gone: false,
                        });
                    }
                    match self
                        .store
                        .put(&key, expect, stored, self.ttl(target.served))
                        .await
                    {
                        Ok(revision) => {
                            return Ok(Deleted {
                                object: finished(target, &shown, revision)?,
                                gone: false,
                            });
                        }
                        Err(error) => Err(error),
                    }
                }
            };
            match result {
                // Somebody else was faster: look again.
                Err(storage::Error::Conflict { .. }) => {}
                Err(error) => return Err(store_error(error)),
                Ok::<(), _>(()) => {}
            }
        }
    }

    /// Deletes all selected objects; those that go in between are fine. Returns what was there.
    pub async fn delete_collection(
        &self,
        target: Target<'_>,
        selection: &Selection,
        call: &mut Call<'_>,
        options: &DeleteOptions,
    ) -> Result<(u64, Vec<Arc<Object>>)> {
        let cache = self.cache(target.served);
        let reached = cache.fresh().await?;
        let snapshot = cache.list(selection, reached);
        for object in &snapshot.objects {
            let target = Target {
                namespace: object.namespace(),
                name: object.name(),
                ..target
            };
            match self.delete(target, call, options).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok((snapshot.revision, snapshot.objects))
    }
}

fn check_preconditions(
    target: Target<'_>,
    options: &DeleteOptions,
    current: &Value,
    revision: u64,
) -> Result<()> {
    let resource = &target.served.resource;
    let kind = GroupResource::new(resource.group.clone(), resource.kind.clone());
    let found = object::uid(current);
    if let Some(wanted) = options.uid.as_deref().filter(|wanted| *wanted != found) {
        let why = format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({found}). The object might have \
             been deleted and then recreated"
        );
        return Err(Status::conflict(&kind, target.name, why));
    }
    let found = revision.to_string();
    if let Some(wanted) = options
        .resource_version
        .as_deref()
        .filter(|wanted| *wanted != found)
    {
        let why = format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({found}). \
             The object might have been modified"
        );
        return Err(Status::conflict(&kind, target.name, why));
    }
    Ok(())
}

fn plan(target: Target<'_>, options: &DeleteOptions, current: &Value, now: Timestamp) -> Plan {
    let strategy = &*target.served.strategy;
    let mut marked = current.clone();
    let requested = options
        .grace_period
        .map(|seconds| if seconds < 0 { 1 } else { seconds });
    let period = match object::deletion_timestamp(current).and_then(time::parse) {
        Some(deadline) => match shorten(current, deadline, requested, now) {
            Grace::Over => None,
            Grace::Unchanged => return Plan::Pending,
            Grace::Until(deadline, seconds) => Some((deadline, seconds)),
        },
        None => strategy.grace_period(current, requested).map(|seconds| {
            (
                now.checked_add(SignedDuration::from_secs(seconds))
                    .unwrap_or(now),
                seconds,
            )
        }),
    };
    collect_garbage(&mut marked, options, strategy.orphans_by_default());
    let held = strategy.has_finalizers(&marked);
    let (deadline, seconds) = match period {
        Some((deadline, seconds)) if seconds > 0 || held => (deadline, seconds),
        _ if !held => return Plan::Remove,
        _ => (
            object::deletion_timestamp(current)
                .and_then(time::parse)
                .map_or(now, |old| old.min(now)),
            0,
        ),
    };
    if object::deletion_timestamp(current).is_none() && object::generation(current) > 0 {
        object::set_metadata(&mut marked, "generation", object::generation(current) + 1);
    }
    object::set_metadata(&mut marked, "deletionTimestamp", time::format(deadline));
    object::set_metadata(&mut marked, "deletionGracePeriodSeconds", seconds);
    strategy.mark_deleting(&mut marked);
    if marked == *current {
        Plan::Pending
    } else {
        Plan::Mark(marked)
    }
}

enum Grace {
    /// Nothing to wait for.
    Over,
    Unchanged,
    Until(Timestamp, i64),
}

/// A second delete may only shorten the grace period of the first.
fn shorten(current: &Value, deadline: Timestamp, requested: Option<i64>, now: Timestamp) -> Grace {
    let granted = object::deletion_grace_period_seconds(current).unwrap_or(0);
    match requested {
        _ if granted == 0 => Grace::Over,
        Some(seconds) if seconds < granted => {
            let earlier = deadline
                .checked_sub(SignedDuration::from_secs(granted - seconds))
                .unwrap_or(now);
            match earlier < now {
                // Time is up, but a graceful delete still leaves the end to whoever runs the object.
                true => Grace::Until(now, seconds.min(1)),
                false => Grace::Until(earlier, seconds),
            }
        }
        _ => Grace::Unchanged,
    }
}

/// Sets the finalizers that the garbage collector acts on, as the propagation policy asks.
fn collect_garbage(object: &mut Value, options: &DeleteOptions, orphans_by_default: bool) {
    let before: Vec<String> = object::finalizers(object).map(ToOwned::to_owned).collect();
    let has = |name: &str| before.iter().any(|finalizer| finalizer == name);
    let (orphan, foreground) = match options.propagation {
        Some(policy) => (
            policy == Propagation::Orphan,
            policy == Propagation::Foreground,
        ),
        None if has(ORPHAN) || has(FOREGROUND) => (has(ORPHAN), has(FOREGROUND) && !has(ORPHAN)),
        None => (orphans_by_default, false),
    };
    let mut after: Vec<&str> = before
        .iter()
        .map(String::as_str)
        .filter(|f| *f != ORPHAN && *f != FOREGROUND)
        .collect();
    after.extend(orphan.then_some(ORPHAN));
    after.extend(foreground.then_some(FOREGROUND));
    if after.len() != before.len()
        || !before
            .iter()
            .all(|finalizer| after.contains(&finalizer.as_str()))
    {
        let value = if after.is_empty() {
            Value::Null
        } else {
            json!(after)
        };
        object::set_metadata(object, "finalizers", value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_from_body_and_query() {
        let query = Query::parse("gracePeriodSeconds=3&propagationPolicy=Foreground&dryRun=All");
        let options = DeleteOptions::read(None, &query).unwrap();
        assert_eq!(
            (options.grace_period, options.propagation, options.dry_run),
            (Some(3), Some(Propagation::Foreground), true)
        );
        let body = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "u"}, "orphanDependents": true});
        let options = DeleteOptions::read(Some(&body), &query).unwrap();
        assert_eq!(
            (options.grace_period, options.propagation),
            (Some(0), Some(Propagation::Orphan))
        );
        for bad in [
            "propagationPolicy=Up",
            "dryRun=Some",
            "orphanDependents=1&propagationPolicy=Orphan",
        ] {
            assert_eq!(
                DeleteOptions::read(None, &Query::parse(bad))
                    .unwrap_err()
                    .code,
                422,
                "{bad}"
            );
        }
    }

    #[test]
    fn finalizers_follow_the_policy() {
        let with = |finalizers: Value| json!({"metadata": {"finalizers": finalizers}});
        let table = [
            (json!(["x"]), None, json!(["x"])),
            (
                json!(["x"]),
                Some(Propagation::Orphan),
                json!(["x", "orphan"]),
            ),
            (
                json!(["orphan"]),
                Some(Propagation::Foreground),
                json!(["foregroundDeletion"]),
            ),
            (
                json!(["foregroundDeletion", "x"]),
                None,
                json!(["foregroundDeletion", "x"]),
            ),
            (
                json!(["foregroundDeletion"]),
                Some(Propagation::Background),
                Value::Null,
            ),
        ];
        for (before, propagation, after) in table {
            let mut object = with(before.clone());
            let options = DeleteOptions {
                propagation,
                ..DeleteOptions::default()
            };
            collect_garbage(&mut object, &options, false);
            assert_eq!(
                object["metadata"]["finalizers"], after,
                "{before} {propagation:?}"
            );
        }
    }

    #[test]
    fn grace_periods_only_shrink() {
        let now: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
        let deadline: Timestamp = "2026-01-01T00:00:30Z".parse().unwrap();
        let pod = json!({"metadata": {"deletionGracePeriodSeconds": 30}});
        assert!(matches!(
            shorten(&pod, deadline, None, now),
            Grace::Unchanged
        ));
        assert!(matches!(
            shorten(&pod, deadline, Some(60), now),
            Grace::Unchanged
        ));
        assert!(matches!(
            shorten(&pod, deadline, Some(20), now),
            Grace::Until(_, 20)
        ));
        assert!(matches!(shorten(&pod, deadline, Some(5), now), Grace::Until(at, 1) if at == now));
        assert!(matches!(
            shorten(&pod, deadline, Some(0), now),
            Grace::Until(_, 0)
        ));
        assert!(matches!(
            shorten(&json!({"metadata": {}}), deadline, None, now),
            Grace::Over
        ));
    }
}
