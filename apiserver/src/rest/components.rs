//! `componentstatuses`: an old way to ask whether the parts of a control plane are well.
//!
//! As in Kubernetes, the scheduler and the controller manager are looked for at their ports on this machine.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use apimachinery::status::{Result, Status};
use http::StatusCode;
use serde_json::{Value, json};

use super::Exchange;
use super::respond::{Presenter, document};
use crate::body::Reply;
use crate::negotiate::{Accept, Shape};
use crate::outbound::Client;
use crate::registry::table::Served;

const STORE: &str = "etcd-0";
const SERVERS: [(&str, &str); 2] = [
    ("controller-manager", "https://127.0.0.1:10257/healthz"),
    ("scheduler", "https://127.0.0.1:10259/healthz"),
];
/// How long a component may take to say that it is well.
const PATIENCE: Duration = Duration::from_secs(20);

static CLIENT: LazyLock<Client> = LazyLock::new(Client::unverified);

pub async fn answer(exchange: &Exchange, served: &Arc<Served>) -> Result<Reply> {
    if served.resource.plural != "componentstatuses" {
        return Err(Status::method_not_allowed());
    }
    let accept = Accept::read(&exchange.headers, &exchange.query)?;
    let one = (exchange.info.verb == "get").then_some(&*exchange.info.name);
    let statuses = statuses(exchange, one).await;
    if statuses.is_empty() {
        let name = one.unwrap_or_default();
        return Err(Status::not_found(&served.resource.group_resource(), name));
    }
    if accept.shape == Shape::Table {
        let presenter = Presenter {
            served,
            accept,
            query: &exchange.query,
            gzip: false,
        };
        let table = presenter.table(&statuses, json!({}), true)?;
        return Ok(document(StatusCode::OK, &table, accept));
    }
    let answer = match one {
        Some(_) => {
            let mut status = statuses.into_iter().next().unwrap_or_default();
            status["kind"] = "ComponentStatus".into();
            status["apiVersion"] = "v1".into();
            status
        }
        None => json!({
            "kind": served.resource.list_kind, "apiVersion": "v1", "metadata": {}, "items": statuses,
        }),
    };
    Ok(document(StatusCode::OK, &answer, accept))
}

/// The status of every component, or of the one with that name.
async fn statuses(exchange: &Exchange, one: Option<&str>) -> Vec<Value> {
    let asked = |name: &str| one.is_none_or(|one| one == name);
    let servers = SERVERS.into_iter().filter(|(name, _)| asked(name));
    let servers = servers.map(async |(name, url)| status(name, CLIENT.probe(url, PATIENCE).await));
    let mut statuses = futures::future::join_all(servers).await;
    if asked(STORE) {
        let revision = exchange.server.registry.store.current_revision().await;
        let healthy = revision.map(|_| "ok".to_owned());
        statuses.push(status(STORE, healthy.map_err(|error| error.to_string())));
    }
    statuses
}

fn status(name: &str, healthy: std::result::Result<String, String>) -> Value {
    let condition = match healthy {
        Ok(said) => json!({"type": "Healthy", "status": "True", "message": said}),
        Err(why) => json!({"type": "Healthy", "status": "False", "message": why}),
    };
    json!({"metadata": {"name": name}, "conditions": [condition]})
}
