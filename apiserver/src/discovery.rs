//! What is served: groups, versions and resources, in the plain and the aggregated form.

use std::collections::BTreeSet;

use apimachinery::discovery::{aggregated, core_versions, group, group_list, resource_list};
use apimachinery::resource::Resource;
use apimachinery::status::Result;
use http::StatusCode;
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::aggregation::merge;
use crate::body::{Body, Reply};
use crate::negotiate::Accept;
use crate::registry::Registry;
use crate::rest::Exchange;
use crate::rest::respond::{compress, document, render, reply, takes_gzip};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The discovery documents.
#[derive(Debug, Default)]
pub struct Documents {
    /// `host:port` that clients of `/api` are told.
    pub address: String,
}

impl Documents {
    /// Answers `/`, `/api`, `/apis` and what is below them short of resources.
    pub fn answer(&self, registry: &Registry, exchange: &Exchange) -> Option<Result<Reply>> {
        let table = registry.table();
        let path = exchange.info.path.trim_matches('/');
        let parts: Vec<&str> = if path.is_empty() {
            Vec::new()
        } else {
            path.split('/').collect()
        };
        let all: Vec<&Resource> = table.all().map(|served| &*served.resource).collect();
        let routes = exchange.server.aggregator.routes();
        let value = match *parts.as_slice() {
            [] => {
                let mut paths = paths(&all);
                for (route, _) in routes.remotes() {
                    paths.insert(format!("/apis/{}", route.group));
                    paths.insert(format!("/apis/{}/{}", route.group, route.version));
                }
                json!({"paths": paths})
            }
            [prefix @ ("api" | "apis")] if is_aggregated(exchange) => {
                let mut document = aggregated(&all, prefix == "api");
                if prefix == "apis" && routes.has_remotes() {
                    document = merge::aggregated(document, &routes);
                }
                return Some(Ok(conditional(exchange, &document)));
            }
            ["api"] => core_versions(&self.address),
            ["apis"] if routes.has_remotes() => merge::group_list(&group_list(&all), &routes),
            ["apis"] => group_list(&all),
            ["apis", name] => {
                merge::group(&group_list(&all), name, &routes).or_else(|| group(&all, name))?
            }
            ["api", version] => resource_list(&all, "", version)?,
            ["apis", name, version] => resource_list(&all, name, version)?,
            _ => return None,
        };
        Some(
            Accept::read(&exchange.headers, &exchange.query).map(|accept| {
                compress(
                    document(StatusCode::OK, &value, accept),
                    takes_gzip(&exchange.headers),
                )
            }),
        )
    }
}

fn is_aggregated(exchange: &Exchange) -> bool {
    let mut accepted = exchange
        .headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    accepted.any(|value| {
        value.contains("as=APIGroupDiscoveryList")
            && value.contains("v=v2;") | value.contains("v=v2,") | value.ends_with("v=v2")
    })
}

/// The aggregated document, or 304 to whoever has it already.
fn conditional(exchange: &Exchange, value: &Value) -> Reply {
    let body = render(value, crate::negotiate::Format::Json);
    let hash: String = Sha256::digest(&body)
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    let etag = format!("\"{hash}\"");
    let known = exchange
        .headers
        .get(IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok());
    let mut response = if known == Some(etag.as_str()) {
        reply(StatusCode::NOT_MODIFIED, AGGREGATED, Body::empty())
    } else {
        compress(
            reply(StatusCode::OK, AGGREGATED, body),
            takes_gzip(&exchange.headers),
        )
    };
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        response.headers_mut().insert(ETAG, etag);
    }
    response
        .headers_mut()
        .append(http::header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn paths(all: &[&Resource]) -> BTreeSet<String> {
    let fixed = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ];
    let mut paths: BTreeSet<String> = fixed.map(str::to_owned).into();
    for resource in all.iter().filter(|resource| !resource.group.is_empty()) {
        paths.insert(format!("/apis/{}", resource.group));
        paths.insert(format!("/apis/{}/{}", resource.group, resource.version));
    }
    paths
}
