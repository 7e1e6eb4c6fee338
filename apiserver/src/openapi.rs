//! `/openapi/v2` and `/openapi/v3`: made when asked for, kept compressed, known by their hash. In JSON and in gnostic's
//! protobuf.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Arc;

use apimachinery::openapi::{self, gnostic};
use apimachinery::resource::Resource;
use apimachinery::status::{Result, Status};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, ETAG, EXPIRES, HeaderValue, IF_NONE_MATCH, LOCATION, VARY,
};
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::aggregation::merge;
use crate::body::{Body, Reply};
use crate::negotiate;
use crate::registry::Registry;
use crate::registry::table::Table;
use crate::rest::Exchange;
use crate::rest::respond::{reply, takes_gzip};

/// The version of OpenAPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Version {
    V2,
    V3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Form {
    Json,
    Protobuf,
}

/// A document as it is kept.
#[derive(Clone)]
struct Kept {
    gzip: Bytes,
    etag: HeaderValue,
}

/// The documents of one table of resources.
#[derive(Default)]
pub struct Documents {
    /// By path and form, with the generation of custom resources that each was made from.
    kept: Mutex<HashMap<(String, Form), (u64, Kept)>>,
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
                Some(self.document(exchange, Version::V2, (path, generation), make))
            }
            ["v3"] => {
                let generation =
                    |group_version: &str| table.fingerprint(|r| r.api_version() == group_version);
                let index = openapi::v3_index(&resources(&table), generation);
                let index = merge::openapi_v3_index(index, &aggregator.routes()).to_string();
                let kept = keep(&index, index.as_bytes());
                Some(kept.and_then(|kept| present(&exchange.headers, kept, "application/json")))
            }
            ["v3", "api", version] => self.group_version(exchange, &table, path, "", version),
            ["v3", "apis", group, version] => {
                self.group_version(exchange, &table, path, group, version)
            }
            _ => None,
        }
    }

    fn group_version(
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
        if !served {
            return None;
        }
        let generation = table.fingerprint(|r| r.group == group && r.version == version);
        let make = || openapi::v3(&resources(table), group, version).unwrap_or_default();
        let answer = self.document(exchange, Version::V3, (path, generation), make);
        let asked = exchange.query.get("hash").unwrap_or_default();
        if asked.is_empty() {
            return Some(answer);
        }
        let hash = openapi::v3_hash(path.trim_start_matches("v3/"), generation);
        Some(answer.and_then(|reply| if_current(reply, path, asked, &hash)))
    }

    fn document(
        &self,
        exchange: &Exchange,
        version: Version,
        (path, generation): (&str, u64),
        make: impl FnOnce() -> String,
    ) -> Result<Reply> {
        let Some(form) = form(&exchange.headers, version) else {
            let mut response = Reply::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
            let accept = HeaderValue::from_static("Accept");
            response.headers_mut().insert(VARY, accept);
            return Ok(response);
        };
        let key = (path.to_owned(), form);
        let known = self.kept.lock().get(&key).cloned();
        let kept = match known {
            Some((made, kept)) if made == generation => kept,
            _ => {
                let text = make();
                let made = match (form, version) {
                    (Form::Json, _) => keep(&text, text.as_bytes()),
                    (Form::Protobuf, Version::V2) => gnostic::version_2(&text)
                        .map_err(Status::internal)
                        .and_then(|message| keep(&text, &message)),
                    (Form::Protobuf, Version::V3) => gnostic::version_3(&text)
                        .map_err(Status::internal)
                        .and_then(|message| keep(&text, &message)),
                }?;
                self.kept.lock().insert(key, (generation, made.clone()));
                made
            }
        };
        let mut response = present(&exchange.headers, kept, content_type(form, version))?;
        let accept = HeaderValue::from_static("Accept");
        response.headers_mut().append(VARY, accept);
        Ok(response)
    }
}

/// A document, or that its reader has it already.
fn present(headers: &HeaderMap, kept: Kept, content_type: &'static str) -> Result<Reply> {
    let mut response = if known(headers, &kept.etag) {
        reply(StatusCode::NOT_MODIFIED, content_type, Body::empty())
    } else if takes_gzip(headers) {
        let mut response = reply(StatusCode::OK, content_type, kept.gzip);
        response
            .headers_mut()
            .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        let mut text = Vec::new();
        GzDecoder::new(&*kept.gzip)
            .read_to_end(&mut text)
            .map_err(Status::internal)?;
        reply(StatusCode::OK, content_type, text)
    };
    let headers = response.headers_mut();
    headers.insert(ETAG, kept.etag);
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    Ok(response)
}

/// Whether the reader says that it has the document of this tag.
fn known(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let tags = headers.get_all(IF_NONE_MATCH).iter();
    tags.filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"))
        .any(|tag| tag == "*" || tag.as_bytes() == etag.as_bytes())
}

/// An answer to a request that names the document's hash: under its own it may be kept for good, and another one leads
/// to it.
fn if_current(mut reply: Reply, path: &str, asked: &str, hash: &str) -> Result<Reply> {
    if reply.status() == StatusCode::NOT_ACCEPTABLE {
        return Ok(reply);
    }
    let headers = reply.headers_mut();
    if asked == hash {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        let year = jiff::SignedDuration::from_hours(365 * 24);
        let expires = jiff::Timestamp::now() + year;
        let text = expires.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        headers.insert(
            EXPIRES,
            HeaderValue::from_str(&text).map_err(Status::internal)?,
        );
        return Ok(reply);
    }
    let location = format!("/openapi/{path}?hash={hash}");
    let location = HeaderValue::from_str(&location).map_err(Status::internal)?;
    headers.insert(LOCATION, location);
    headers.remove(CONTENT_ENCODING);
    *reply.status_mut() = StatusCode::MOVED_PERMANENTLY;
    *reply.body_mut() = Body::empty();
    Ok(reply)
}

fn resources(table: &Table) -> Vec<&Resource> {
    table.all().map(|served| &*served.resource).collect()
}

/// Both forms have the tag of the JSON text: what they differ by is in `Vary`.
fn keep(text: &str, bytes: &[u8]) -> Result<Kept> {
    let hash: String = Sha256::digest(text)
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).map_err(Status::internal)?;
    let gzip = encoder.finish().map_err(Status::internal)?.into();
    let etag = HeaderValue::from_str(&format!("\"{hash}\"")).map_err(Status::internal)?;
    Ok(Kept { gzip, etag })
}

fn content_type(form: Form, version: Version) -> &'static str {
    match (form, version) {
        (Form::Json, _) => "application/json",
        (Form::Protobuf, Version::V2) => {
            "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
        }
        (Form::Protobuf, Version::V3) => {
            "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
        }
    }
}

/// The form that a reader takes first; `None` if it takes neither.
fn form(headers: &HeaderMap, version: Version) -> Option<Form> {
    let mut ranges: Vec<(u32, &str, &str)> = negotiate::ranges(headers)
        .into_iter()
        .map(|(quality, range)| {
            let media = range.split(';').next().unwrap_or_default().trim();
            let (kind, form) = media.split_once('/').unwrap_or((media, "*"));
            (quality, kind.trim(), form.trim())
        })
        .collect();
    if ranges.is_empty() {
        return Some(Form::Json);
    }
    ranges.sort_by_key(|(quality, kind, form)| {
        (std::cmp::Reverse(*quality), *kind == "*", *form == "*")
    });
    let name = match version {
        Version::V2 => "v2",
        Version::V3 => "v3",
    };
    ranges
        .iter()
        .filter(|(_, kind, _)| matches!(*kind, "application" | "*"))
        .find_map(|(_, _, form)| match *form {
            "json" | "*" => Some(Form::Json),
            other => {
                let rest = other.strip_prefix("com.github.proto-openapi.spec.")?;
                let rest = rest.strip_prefix(name)?;
                // The second is how it was spelt at first.
                matches!(rest, ".v1.0+protobuf" | "@v1.0+protobuf").then_some(Form::Protobuf)
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::ACCEPT;

    #[test]
    fn forms() {
        const V2: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
        const OLD: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
        const V3: &str = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";
        let two = format!("{OLD};q=0.9, {V2}");
        let json_first = format!("{V2};q=0.5,application/json");
        let specific_first = format!("*/*,{V2}");
        #[rustfmt::skip]
        let table = [
            ("", Version::V2, Some(Form::Json)),
            ("*/*", Version::V2, Some(Form::Json)),
            ("*", Version::V3, Some(Form::Json)),
            ("application/*", Version::V3, Some(Form::Json)),
            ("application/json;as=Table", Version::V3, Some(Form::Json)),
            (V2, Version::V2, Some(Form::Protobuf)),
            (OLD, Version::V2, Some(Form::Protobuf)),
            (two.as_str(), Version::V2, Some(Form::Protobuf)),
            (json_first.as_str(), Version::V2, Some(Form::Json)),
            (specific_first.as_str(), Version::V2, Some(Form::Protobuf)),
            (V3, Version::V3, Some(Form::Protobuf)),
            (V2, Version::V3, None),
            (V3, Version::V2, None),
            ("text/html", Version::V2, None),
            ("application/vnd.kubernetes.protobuf", Version::V2, None),
            ("text/html, */*;q=0.1", Version::V2, Some(Form::Json)),
        ];
        for (accept, version, expected) in table {
            let mut headers = HeaderMap::new();
            if !accept.is_empty() {
                headers.insert(ACCEPT, HeaderValue::from_str(accept).unwrap());
            }
            assert_eq!(form(&headers, version), expected, "{accept}");
        }
    }

    #[test]
    fn tags_that_are_known() {
        let tag = HeaderValue::from_static("\"A\"");
        for (sent, expected) in [
            ("\"A\"", true),
            ("\"B\", \"A\"", true),
            ("W/\"A\"", true),
            ("*", true),
            ("\"B\"", false),
            ("A", false),
        ] {
            let headers = HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::from_static(sent))]);
            assert_eq!(known(&headers, &tag), expected, "{sent}");
        }
    }
}
