//! Connections to what runs on a node: log, exec, attach, port-forward and the proxies.

use std::sync::Arc;

use apimachinery::status::{Result, Status};
use http::Request;
use hyper::body::Incoming;

use super::Exchange;
use crate::body::Reply;
use crate::registry::table::Served;

pub async fn handle(
    _exchange: Exchange,
    _served: Arc<Served>,
    _request: Request<Incoming>,
) -> Result<Reply> {
    Err(Status::unknown_path())
}
