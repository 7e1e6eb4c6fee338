//! `/openapi/v2` and `/openapi/v3`: made when asked for, kept compressed, known by their hash.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Arc;

use apimachinery::openapi;
use apimachinery::resource::Resource;
use apimachinery::status::{Result, Status};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::StatusCode;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_ENCODING, ETAG, HeaderValue, IF_NONE_MATCH, VARY,
};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::aggregation::merge;
use crate::body::{Body, Reply};
use crate::registry::Registry;
use crate::registry::table::Table;
use crate::rest::Exchange;
use crate::rest::respond::{compress, document, reply, takes_gzip};

/// A document as it is kept.
#[derive(Clone)]
struct Kept {
    gzip: Bytes,
    etag: HeaderValue,
}

/// The documents of one table of resources.
#[derive(Default)]
pub struct Documents {
    /// With the generation of custom resources that each was made from.
    kept: Mutex<HashMap<String, (u64, Kept)>>,
}

impl Documents {
    /// Answers `/openapi/...`; `None` for what is not there.
    pub fn answer(&self, registry: &Registry, exchange: &Exchange) -> Option<Result<Reply>> {
        let path = exchange
            .info
            .path
            .trim_matches('/')
            .strip_prefix("openapi/")?;
        let table = registry.table();
        let aggregator = &exchange.server.aggregator;
        match path.split('/').collect::<Vec<_>>().as_slice() {
            ["v2"] => {
                let routes = aggregator.routes();
                // Merged documents change with what other servers tell, too.
                let others = match routes.has_remotes() {
                    true => aggregator.generation().wrapping_add(1),
                    false => 0,
                };
                let generation = table.fingerprint(|_| true).wrapping_add(others);
                let make = || {
                    let local = openapi::v2(&resources(&table));
                    match routes.has_remotes() {
                        true => merge::openapi_v2(&local, &routes),
                        false => local,
                    }
                };
                Some(self.document(exchange, ("v2", generation), make))
            }
            ["v3"] => {
                let generation =
                    |group_version: &str| table.fingerprint(|r| r.api_version() == group_version);
                let index = openapi::v3_index(&resources(&table), generation);
                let index = merge::openapi_v3_index(index, &aggregator.routes());
                let accept = crate::negotiate::Accept::default();
                Some(Ok(compress(
                    document(StatusCode::OK, &index, accept),
                    takes_gzip(&exchange.headers),
                )))
            }
            ["v3", "api", version] => self.version(exchange, &table, path, "", version),
            ["v3", "apis", group, version] => self.version(exchange, &table, path, group, version),
            _ => None,
        }
    }

    fn version(
        &self,
        exchange: &Exchange,
        table: &Arc<Table>,
        path: &str,
        group: &str,
        version: &str,
    ) -> Option<Result<Reply>> {
        let served = resources(table)
            .iter()
            .any(|r| r.group == group && r.version == version);
        let generation = table.fingerprint(|r| r.group == group && r.version == version);
        let make = || openapi::v3(&resources(table), group, version).unwrap_or_default();
        served.then(|| self.document(exchange, (path, generation), make))
    }

    fn document(
        &self,
        exchange: &Exchange,
        (key, generation): (&str, u64),
        make: impl FnOnce() -> String,
    ) -> Result<Reply> {
        if wants_only_protobuf(exchange) {
            return Err(Status::not_acceptable(&["application/json"]));
        }
        let known = self.kept.lock().get(key).cloned();
        let kept = match known {
            Some((made, kept)) if made == generation => kept,
            _ => {
                let made = keep(&make())?;
                let entry = (generation, made.clone());
                self.kept.lock().insert(key.to_owned(), entry);
                made
            }
        };
        let mut response = if exchange.headers.get(IF_NONE_MATCH) == Some(&kept.etag) {
            reply(StatusCode::NOT_MODIFIED, "application/json", Body::empty())
        } else if takes_gzip(&exchange.headers) {
            let mut response = reply(StatusCode::OK, "application/json", kept.gzip);
            response
                .headers_mut()
                .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response
        } else {
            let mut text = Vec::new();
            GzDecoder::new(&*kept.gzip)
                .read_to_end(&mut text)
                .map_err(Status::internal)?;
            reply(StatusCode::OK, "application/json", text)
        };
        let headers = response.headers_mut();
        headers.insert(ETAG, kept.etag);
        headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
        if exchange.query.get("hash").is_some() {
            // Under another hash it would be another URL.
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        }
        Ok(response)
    }
}

fn resources(table: &Table) -> Vec<&Resource> {
    table.all().map(|served| &*served.resource).collect()
}

fn keep(text: &str) -> Result<Kept> {
    let hash: String = Sha256::digest(text)
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder
        .write_all(text.as_bytes())
        .map_err(Status::internal)?;
    let gzip = encoder.finish().map_err(Status::internal)?.into();
    let etag = HeaderValue::from_str(&format!("\"{hash}\"")).map_err(Status::internal)?;
    Ok(Kept { gzip, etag })
}

/// The protobuf form of these documents is not served; who takes nothing else is told so.
fn wants_only_protobuf(exchange: &Exchange) -> bool {
    let accepted = exchange
        .headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut ranges = accepted.flat_map(|value| value.split(',')).peekable();
    ranges.peek().is_some() && ranges.all(|range| range.contains("protobuf"))
}
