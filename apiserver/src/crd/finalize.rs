//! A deleted definition goes when its last instance has gone.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::object;
use apimachinery::status::{Result, Status};
use serde_json::Value;
use storage::Range;

use super::definition::{self, CLEANUP, Condition, GROUP, PLURAL};
use crate::authn::UserInfo;
use crate::cache::store_error;
use crate::registry::delete::DeleteOptions;
use crate::registry::table::Served;
use crate::registry::{Call, Registry, Target};

/// How long to wait before looking again for instances that finalizers hold.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// After so long the definition is left to a later pass.
const PATIENCE: Duration = Duration::from_secs(60);

/// Deletes all instances of a deleted definition and, when they are gone, lets it go. Whatever fails is done again
/// by the next pass.
pub async fn run(registry: &Arc<Registry>, definition: &Value) {
    let name = object::name(definition);
    if let Err(error) = clean_up(registry, definition).await {
        tracing::warn!(definition = name, %error, "instances of a deleted definition remain");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn clean_up(registry: &Arc<Registry>, definition: &Value) -> Result<()> {
    let (name, uid) = (object::name(definition), object::uid(definition));
    let progress = Condition::new(
        "Terminating",
        true,
        "InstanceDeletionInProgress",
        "CustomResource deletion is in progress",
    );
    if !write(registry, name, uid, &progress, false).await? {
        return Ok(());
    }
    if !definition::is_established(definition) {
        let done = Condition::new(
            "Terminating",
            false,
            "NeverEstablished",
            "resource was never established",
        );
        return write(registry, name, uid, &done, true).await.map(drop);
    }
    match delete_instances(registry, definition).await {
        Ok(()) => {
            let done = Condition::new(
                "Terminating",
                false,
                "InstanceDeletionCompleted",
                "removed all instances",
            );
            write(registry, name, uid, &done, true).await.map(drop)
        }
        Err((reason, why)) => {
            let failed = Condition::new("Terminating", true, reason, why.clone());
            write(registry, name, uid, &failed, false).await?;
            Err(Status::internal(why))
        }
    }
}

async fn delete_instances(
    registry: &Arc<Registry>,
    definition: &Value,
) -> std::result::Result<(), (&'static str, String)> {
    let names = &definition["status"]["acceptedNames"];
    let (group, plural) = (
        definition::group(definition),
        names["plural"].as_str().unwrap_or_default(),
    );
    let prefix = format!("/registry/{group}/{plural}/");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let list = registry
            .store
            .range(Range::prefix(&prefix))
            .await
            .map_err(store_error);
        let list = list.map_err(|e| {
            (
                "InstanceDeletionFailed",
                format!("could not list instances: {e}"),
            )
        })?;
        if list.kvs.is_empty() {
            return Ok(());
        }
        let Some(served) = registry.table().stored(group, plural).cloned() else {
            let why = format!("unable to find a custom resource client for {plural}.{group}");
            return Err(("InstanceDeletionFailed", why));
        };
        for kv in &list.kvs {
            let key = kv.key.strip_prefix(&prefix).unwrap_or_default();
            if let Err(error) = delete(registry, &served, key).await {
                let why = format!("could not issue all deletes: {error}");
                return Err(("InstanceDeletionFailed", why));
            }
        }
        if tokio::time::Instant::now() > deadline {
            let why = "could not confirm zero CustomResources remaining: timed out waiting for the condition";
            return Err(("InstanceDeletionCheck", why.into()));
        }
        let rest = registry.store.range(Range::prefix(&prefix).limit(1)).await;
        if rest.is_ok_and(|rest| !rest.kvs.is_empty()) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

async fn delete(registry: &Registry, served: &Arc<Served>, key: &str) -> Result<()> {
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    let user = UserInfo::apiserver();
    let target = Target::new(served, namespace, name);
    let options = DeleteOptions::default();
    match registry
        .delete(target, &mut Call::by(&user), &options)
        .await
    {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// Sets the condition, and takes the finalizer away if `release`. False: the definition is gone already.
async fn write(
    registry: &Registry,
    name: &str,
    uid: &str,
    condition: &Condition,
    release: bool,
) -> Result<bool> {
    let now = Registry::now();
    let change = |current: &mut Value| {
        if object::uid(current) != uid {
            let resource = apimachinery::resource::GroupResource::new(GROUP, PLURAL);
            return Err(Status::not_found(&resource, name));
        }
        definition::set_condition(current, condition, now);
        if release {
            let kept: Vec<String> = object::finalizers(current)
                .filter(|f| *f != CLEANUP)
                .map(str::to_owned)
                .collect();
            object::set_finalizers(current, kept.iter().map(String::as_str));
        }
        Ok(())
    };
    match registry
        .update_status_as_server(GROUP, PLURAL, ("", name), change)
        .await
    {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}
