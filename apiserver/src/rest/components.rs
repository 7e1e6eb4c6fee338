//! `componentstatuses`: an old way to ask whether the parts of a control plane are well.
//!
//! The API server knows that only of its store; the other components have health endpoints of their own.

use std::sync::Arc;

use apimachinery::status::{Result, Status};
use http::StatusCode;
use serde_json::{Value, json};

use super::Exchange;
use super::respond::{Presenter, document};
use crate::body::Reply;
use crate::negotiate::{Accept, Shape};
use crate::registry::table::Served;

const STORE: &str = "etcd-0";

pub async fn answer(exchange: &Exchange, served: &Arc<Served>) -> Result<Reply> {
    if served.resource.plural != "componentstatuses" {
        return Err(Status::method_not_allowed());
    }
    let name = &exchange.info.name;
    if exchange.info.verb == "get" && name != STORE {
        return Err(Status::not_found(&served.resource.group_resource(), name));
    }
    let accept = Accept::read(&exchange.headers, &exchange.query)?;
    let status = status(exchange).await;
    if exchange.info.verb == "get" && accept.shape != Shape::Table {
        return Ok(document(StatusCode::OK, &status, accept));
    }
    if accept.shape == Shape::Table {
        let presenter = Presenter {
            served,
            accept,
            query: &exchange.query,
            gzip: false,
        };
        return Ok(document(
            StatusCode::OK,
            &presenter.table(&[status], json!({}), true)?,
            accept,
        ));
    }
    let list = json!({
        "kind": served.resource.list_kind, "apiVersion": "v1", "metadata": {}, "items": [status],
    });
    Ok(document(StatusCode::OK, &list, accept))
}

async fn status(exchange: &Exchange) -> Value {
    let healthy = exchange.server.registry.store.current_revision().await;
    let condition = match healthy {
        Ok(_) => json!({"type": "Healthy", "status": "True", "message": "ok"}),
        Err(error) => json!({"type": "Healthy", "status": "False", "error": error.to_string()}),
    };
    json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": STORE}, "conditions": [condition]})
}
