//! Follows the FlowSchemas and PriorityLevelConfigurations, keeps the default ones, and says in each schema whether
//! its level exists.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::status::Result;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::defaults::{self, GROUP, LEVELS, SCHEMAS};
use super::rules::{FlowSchemaSpec, LevelSpec};
use super::{Fairness, FlowControl};
use crate::cache::{Object, Selection};
use crate::registry::Registry;
use crate::server::Server;
use crate::strategy::check::{list, text};

const RETRY: Duration = Duration::from_secs(1);

/// Takes the stored configuration, and follows it for as long as the server runs.
pub async fn start(server: Arc<Server>) -> Result<()> {
    let FlowControl::Fair(fairness) = &server.flow_control else {
        return Ok(());
    };
    let fairness = fairness.clone();
    sync(&server.registry, &fairness).await?;
    tokio::spawn(async move {
        let follow = async {
            loop {
                if let Err(error) = follow(&server.registry, &fairness).await {
                    tracing::warn!(%error, "following the flow control configuration failed; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        tokio::select! {
            () = follow => {}
            () = server.shutdown.cancelled() => {}
        }
    });
    Ok(())
}

async fn follow(registry: &Registry, fairness: &Arc<Fairness>) -> Result<()> {
    let changes = |plural| async move {
        let cache = registry.cache_of(GROUP, plural)?;
        let reached = cache.loaded().await?;
        let subscription = cache.subscribe(Selection::default(), false, reached);
        Result::Ok(subscription.receiver)
    };
    let levels = changes(LEVELS).await?;
    let schemas = changes(SCHEMAS).await?;
    loop {
        sync(registry, fairness).await?;
        let more = tokio::select! {
            more = levels.changed() => more,
            more = schemas.changed() => more,
        };
        // A watch ends when this was too slow for it.
        if !more {
            return Ok(());
        }
    }
}

/// What is missing is made, then what there is applies.
async fn sync(registry: &Registry, fairness: &Arc<Fairness>) -> Result<()> {
    defaults::ensure(registry).await?;
    let all = |plural| async move { registry.list(GROUP, plural, &Selection::default()).await };
    let (levels, schemas) = (all(LEVELS).await?, all(SCHEMAS).await?);
    let known: Vec<(String, String, LevelSpec)> = read(&levels);
    let used: Vec<(String, String, FlowSchemaSpec)> = read(&schemas);
    fairness.configure(&known, &used);
    let exists = |name: &str| levels.iter().any(|level| level.name() == name);
    let notes = schemas.iter().map(|schema| note(registry, schema, &exists));
    futures::future::join_all(notes).await.into_iter().collect()
}

fn read<T: DeserializeOwned>(objects: &[Arc<Object>]) -> Vec<(String, String, T)> {
    objects
        .iter()
        .filter_map(|object| {
            let value = object.value();
            match serde_json::from_value(value["spec"].clone()) {
                Ok(spec) => {
                    let uid = apimachinery::object::uid(&value).to_owned();
                    Some((object.name().to_owned(), uid, spec))
                }
                Err(error) => {
                    tracing::warn!(name = object.name(), %error, "a flow control object is not used");
                    None
                }
            }
        })
        .collect()
}

/// The Dangling condition of a schema, where it says something new.
fn dangling(schema: &Value, exists: bool) -> Option<Value> {
    let level = text(&schema["spec"]["priorityLevelConfiguration"], "name");
    let about =
        format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?}");
    let (status, reason, message) = match exists {
        true => ("False", "Found", format!("{about} and it exists")),
        false => (
            "True",
            "NotFound",
            format!("{about} but there is no such object"),
        ),
    };
    let mut conditions = list(&schema["status"], "conditions").to_vec();
    let now = apimachinery::time::format(jiff::Timestamp::now());
    let condition = json!({
        "type": "Dangling", "status": status, "reason": reason, "message": message, "lastTransitionTime": now,
    });
    apimachinery::object::merge_condition(&mut conditions, condition).then(|| conditions.into())
}

async fn note(
    registry: &Registry,
    schema: &Object,
    exists: &(dyn Fn(&str) -> bool + Sync),
) -> Result<()> {
    let value = schema.value();
    let level = text(&value["spec"]["priorityLevelConfiguration"], "name").to_owned();
    let there = exists(&level);
    if dangling(&value, there).is_none() {
        return Ok(());
    }
    let change = |object: &mut Value| {
        // It may refer to another one by now; then it comes by again.
        if text(&object["spec"]["priorityLevelConfiguration"], "name") == level
            && let Some(conditions) = dangling(object, there)
        {
            object["status"]["conditions"] = conditions;
        }
        Ok(())
    };
    match registry
        .update_status_as_server(GROUP, SCHEMAS, ("", schema.name()), change)
        .await
    {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_without_a_level_dangle() {
        let mut schema = json!({"spec": {"priorityLevelConfiguration": {"name": "x"}}});
        let conditions = dangling(&schema, true).unwrap();
        assert_eq!(
            (&conditions[0]["status"], &conditions[0]["reason"]),
            (&json!("False"), &json!("Found"))
        );
        schema["status"]["conditions"] = conditions;
        assert_eq!(dangling(&schema, true), None);
        let conditions = dangling(&schema, false).unwrap();
        assert_eq!(conditions[0]["status"], "True");
        assert_eq!(conditions.as_array().unwrap().len(), 1);
    }
}
