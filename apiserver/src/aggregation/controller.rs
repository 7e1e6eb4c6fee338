//! Follows the APIServices: routes, registration, and whether each server answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::object;
use apimachinery::status::{Result, Status};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::local::{self, Definitions};
use super::remote::{Remote, reach};
use super::{GROUP, PLURAL, Route, Routes};
use crate::cache::{Receiver, Selection};
use crate::registry::Registry;
use crate::server::Server;
use crate::services::resolve::{resolve, slices_of};
use crate::strategy::apiservice::local_condition;
use crate::strategy::check::{integer, list, text};

/// A server that answers is asked again after this time.
const RECHECK: Duration = Duration::from_secs(30);
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// How often a server may fail to answer before it counts as unavailable.
const ATTEMPTS: usize = 3;
const RETRY: Duration = Duration::from_secs(1);

/// Registers what is served here, then follows in the background for as long as the server runs.
pub async fn start(server: Arc<Server>) -> Result<()> {
    local::builtin(&server.registry).await?;
    let mut controller = Controller {
        server: server.clone(),
        definitions: Definitions::default(),
        checks: HashMap::new(),
    };
    controller.sync().await?;
    tokio::spawn(async move {
        tokio::select! {
            () = controller.run() => {}
            () = server.shutdown.cancelled() => {}
        }
    });
    Ok(())
}

struct Controller {
    server: Arc<Server>,
    definitions: Definitions,
    /// The check of each remote server; it ends when its guard is dropped.
    checks: HashMap<String, DropGuard>,
}

impl Controller {
    async fn run(&mut self) {
        loop {
            if let Err(error) = self.follow().await {
                tracing::warn!(%error, "following APIServices failed; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Until a watch ends, which it does when this was too slow for it.
    async fn follow(&mut self) -> Result<()> {
        let registry = self.server.registry.clone();
        let services = changes(&registry, GROUP, PLURAL, Selection::default()).await?;
        let (group, plural) = ("apiextensions.k8s.io", "customresourcedefinitions");
        let definitions = changes(&registry, group, plural, Selection::default()).await?;
        loop {
            self.sync().await?;
            tokio::select! {
                open = services.changed() => if !open { return Ok(()) },
                open = definitions.changed() => if !open { return Ok(()) },
            }
        }
    }

    async fn sync(&mut self) -> Result<()> {
        let registry = self.server.registry.clone();
        self.definitions.register(&registry).await?;
        let objects: Vec<Value> = registry
            .list(GROUP, PLURAL, &Selection::default())
            .await?
            .iter()
            .map(|object| object.value())
            .collect();
        for object in objects.iter().filter(|o| !o["spec"]["service"].is_object()) {
            let condition = local_condition();
            note(&registry, object, &condition).await?;
        }
        let aggregator = &self.server.aggregator;
        let old = aggregator.routes();
        let routes = Routes {
            all: objects
                .iter()
                .map(|object| self.route(object, &old))
                .collect(),
        };
        let current: HashMap<&str, &Arc<Remote>> = routes
            .remotes()
            .map(|(_, remote)| (remote.name.as_str(), remote))
            .collect();
        let known: HashMap<&str, &Arc<Remote>> = old
            .remotes()
            .map(|(_, remote)| (remote.name.as_str(), remote))
            .collect();
        self.checks.retain(|name, _| {
            let same =
                |a: &Arc<Remote>| known.get(name.as_str()).is_some_and(|b| Arc::ptr_eq(a, b));
            current
                .get(name.as_str())
                .is_some_and(|remote| same(remote))
        });
        for (name, remote) in current {
            if !self.checks.contains_key(name) {
                let stop = CancellationToken::new();
                let check = check(self.server.clone(), remote.clone());
                let stopped = stop.clone();
                let shutdown = self.server.shutdown.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = check => {}
                        () = stopped.cancelled() => {}
                        () = shutdown.cancelled() => {}
                    }
                });
                self.checks.insert(name.to_owned(), stop.drop_guard());
            }
        }
        aggregator.routes.store(Arc::new(routes));
        aggregator.changed();
        Ok(())
    }

    fn route(&self, object: &Value, old: &Routes) -> Route {
        let (name, spec) = (object::name(object), &object["spec"]);
        let remote = spec["service"].is_object().then(|| {
            let wanted = reach(spec);
            let known = old
                .remotes()
                .find(|(_, remote)| remote.name == name && remote.spec == wanted);
            known.map_or_else(
                || {
                    let identity = self.server.aggregator.identity.as_ref();
                    Arc::new(Remote::new(name, spec, identity))
                },
                |(_, remote)| remote.clone(),
            )
        });
        Route {
            group: text(spec, "group").to_owned(),
            version: text(spec, "version").to_owned(),
            group_priority: integer(spec, "groupPriorityMinimum").unwrap_or(0),
            version_priority: integer(spec, "versionPriority").unwrap_or(0),
            remote,
            available: list(&object["status"], "conditions")
                .iter()
                .any(|c| text(c, "type") == "Available" && text(c, "status") == "True"),
        }
    }
}

async fn changes(
    registry: &Registry,
    group: &str,
    plural: &str,
    selection: Selection,
) -> Result<Receiver> {
    let cache = registry.cache_of(group, plural)?;
    let reached = cache.loaded().await?;
    Ok(cache.subscribe(selection, false, reached).receiver)
}

/// Asks a server whether it is there: at once, when its Service or endpoints change, and every now and then.
async fn check(server: Arc<Server>, remote: Arc<Remote>) {
    let mut failures: u32 = 0;
    loop {
        match round(&server, &remote, &mut failures).await {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(name = remote.name, %error, "checking an APIService failed; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// One answer, and the wait for a reason to ask again.
async fn round(server: &Arc<Server>, remote: &Remote, failures: &mut u32) -> Result<()> {
    let registry = &server.registry;
    let mut only = Selection::namespaced(&remote.namespace);
    only.name.clone_from(&remote.service);
    let services = changes(registry, "", "services", only).await?;
    let selection = slices_of(&remote.namespace, &remote.service);
    let (group, plural) = ("discovery.k8s.io", "endpointslices");
    let slices = changes(registry, group, plural, selection).await?;
    let condition = availability(registry, remote).await;
    let available = condition["status"] == "True";
    *failures = if available {
        0
    } else {
        failures.saturating_add(1)
    };
    if available && remote.refresh(registry).await {
        server.aggregator.changed();
    }
    match registry.get(GROUP, PLURAL, "", &remote.name).await {
        Ok(object) => note(registry, &object.value(), &condition).await?,
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    let again = match *failures {
        0 => RECHECK,
        failures => RECHECK.min(FIRST_RETRY * 2u32.saturating_pow(failures - 1)),
    };
    tokio::select! {
        _ = services.changed() => {}
        _ = slices.changed() => {}
        () = tokio::time::sleep(again) => {}
    }
    Ok(())
}

async fn availability(registry: &Registry, remote: &Remote) -> Value {
    let condition = |status: &str, reason: &str, message: &str| {
        json!({
            "type": "Available", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": apimachinery::time::format(jiff::Timestamp::now()),
        })
    };
    if let Err(error) = resolve(registry, &remote.namespace, &remote.service, remote.port).await {
        let status = match error.reason {
            "ServiceAccessError" => "Unknown",
            _ => "False",
        };
        return condition(status, error.reason, &error.message);
    }
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        match remote.probe(registry).await {
            Ok(()) => return condition("True", "Passed", "all checks passed"),
            Err(error) => last = error,
        }
    }
    condition("False", "FailedDiscoveryCheck", &last)
}

/// Writes a condition where it says something new.
async fn note(registry: &Registry, object: &Value, condition: &Value) -> Result<()> {
    if noted(object, condition).is_none() {
        return Ok(());
    }
    let uid = object::uid(object).to_owned();
    let change = |object: &mut Value| {
        if object::uid(object) != uid {
            return Err(Status::not_found(
                &apimachinery::resource::GroupResource::new(GROUP, PLURAL),
                object::name(object),
            ));
        }
        if let Some(conditions) = noted(object, condition) {
            object["status"]["conditions"] = conditions;
        }
        Ok(())
    };
    let name = object::name(object);
    match registry
        .update_status_as_server(GROUP, PLURAL, ("", name), change)
        .await
    {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// The conditions with the new one in its place, its time kept if its status is the same; `None` for no change.
fn noted(service: &Value, condition: &Value) -> Option<Value> {
    let mut conditions = list(&service["status"], "conditions").to_vec();
    object::merge_condition(&mut conditions, condition.clone()).then(|| conditions.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_change_only_when_they_say_something_new() {
        let condition = |status: &str, message: &str, time: &str| json!({"type": "Available", "status": status, "message": message, "lastTransitionTime": time});
        let other = json!({"type": "Other", "status": "True"});
        let object = json!({"status": {"conditions": [other, condition("True", "m", "1")]}});
        assert_eq!(noted(&object, &condition("True", "m", "2")), None);
        assert_eq!(
            noted(&object, &condition("True", "n", "2")),
            Some(json!([other, condition("True", "n", "1")]))
        );
        assert_eq!(
            noted(&object, &condition("False", "m", "2")),
            Some(json!([other, condition("False", "m", "2")]))
        );
        assert_eq!(
            noted(&json!({}), &condition("True", "m", "1")),
            Some(json!([condition("True", "m", "1")]))
        );
    }
}
