//! Answers: objects and lists in the form the client takes, failures as Status documents.

use std::io::Write;

use apimachinery::json;
use apimachinery::protobuf;
use apimachinery::resource::Resource;
use apimachinery::status::{Result, Status};
use apimachinery::table::{self, Include};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER, VARY, WARNING,
};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};

use crate::body::{Body, Reply};
use crate::cache::Object;
use crate::codec;
use crate::negotiate::{Accept, Format, Shape};
use crate::query::Query;
use crate::registry::decode;
use crate::registry::read::List;
use crate::registry::table::Served;

/// Bodies from this size on are compressed when the client takes gzip, as in Kubernetes.
const GZIP_FROM: usize = 128 * 1024;
/// Lists longer than this are sent as they are put together.
pub(super) const STREAM_FROM: usize = 1 << 20;
const CHUNK: usize = 256 * 1024;

/// Everything about a request that the form of its answer depends on.
#[derive(Clone, Copy)]
pub struct Presenter<'a> {
    pub served: &'a Served,
    pub accept: Accept,
    pub query: &'a Query,
    pub gzip: bool,
}

/// Whether the client takes gzip.
#[must_use]
pub fn takes_gzip(headers: &HeaderMap) -> bool {
    let encodings = headers.get_all(http::header::ACCEPT_ENCODING).iter();
    encodings
        .filter_map(|value| value.to_str().ok())
        .any(|value| {
            value.split(',').any(|encoding| {
                encoding
                    .split(';')
                    .next()
                    .is_some_and(|name| name.trim() == "gzip")
            })
        })
}

/// A document as it is sent.
#[must_use]
pub fn render(value: &Value, format: Format) -> Vec<u8> {
    let mut out = Vec::new();
    match format {
        Format::Json => json::write(&mut out, value),
        Format::Pretty => {
            out = serde_json::to_vec_pretty(value).unwrap_or_default();
            out.push(b'\n');
        }
        Format::Yaml => {
            out = serde_saphyr::to_string(value)
                .unwrap_or_default()
                .into_bytes()
        }
        Format::Protobuf => {
            json::write(&mut out, value);
            if let Ok(message) = protobuf::from_json(&out) {
                out = message;
            }
        }
    }
    out
}

/// A whole body with its headers.
#[must_use]
pub fn reply(code: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Reply {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

#[must_use]
pub fn document(code: StatusCode, value: &Value, accept: Accept) -> Reply {
    let body = render(value, accept.format);
    // A document of a kind without a protobuf form is rendered as JSON.
    let accept = match accept.format {
        Format::Protobuf if !protobuf::has_magic(&body) => Accept::default(),
        _ => accept,
    };
    reply(code, accept.content_type(), body)
}

/// A failure, in JSON unless protobuf is what its client takes first ([`Accept::of_failure`]).
#[must_use]
pub fn failure(status: &Status, accept: Accept) -> Reply {
    failure_document(status, &status.to_value(), accept)
}

/// A failure whose document says more than its status.
#[must_use]
pub fn failure_document(status: &Status, value: &Value, accept: Accept) -> Reply {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = document(code, value, accept);
    let seconds = status
        .details
        .as_ref()
        .map_or(0, |details| details.retry_after_seconds);
    if seconds > 0 {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Adds `Warning` headers: code 299, text quoted, as RFC 7234 has it.
pub fn warn(response: &mut Reply, warnings: &[String]) {
    for warning in warnings {
        let text: String = warning.chars().filter(|c| !c.is_control()).collect();
        let quoted = format!(
            "299 - \"{}\"",
            text.replace('\\', "\\\\").replace('"', "\\\"")
        );
        if let Ok(value) = HeaderValue::from_bytes(quoted.as_bytes()) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

/// Compresses a long whole body if the client takes it.
#[must_use]
pub fn compress(mut response: Reply, gzip: bool) -> Reply {
    let Body::Whole(Some(bytes)) = response.body() else {
        return response;
    };
    if !gzip || bytes.len() < GZIP_FROM {
        return response;
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 6), Compression::new(1));
    let Ok(()) = encoder.write_all(bytes) else {
        return response;
    };
    let Ok(compressed) = encoder.finish() else {
        return response;
    };
    *response.body_mut() = compressed.into();
    mark_gzip(response.headers_mut());
    response
}

fn mark_gzip(headers: &mut HeaderMap) {
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
}

/// What stands between the items of a list, and after them.
pub(super) struct Glue {
    pub before: fn(&mut Vec<u8>, first: bool, item: &[u8]),
    pub tail: &'static [u8],
}

/// Items come without their opening brace.
const JSON_LIST: Glue = Glue {
    before: |out, first, _| out.extend_from_slice(if first { b"{" } else { b",{" }),
    tail: b"]}\n",
};

impl Presenter<'_> {
    /// The bytes of an object in the version of the request.
    pub fn bytes(&self, object: &Object) -> Result<Bytes> {
        if !self.served.converts() {
            return Ok(object.bytes.clone());
        }
        let value = decode::convert(object.value(), &self.served.resource);
        let mut out = Vec::new();
        json::write(&mut out, &value);
        Ok(out.into())
    }

    fn value(&self, object: &Object) -> Result<Value> {
        if !self.served.converts() {
            return Ok(object.value());
        }
        Ok(decode::convert(object.value(), &self.served.resource))
    }

    /// An object in the shape of the request, as JSON: also what a watch event carries. A table's columns are only
    /// in a watch's first event.
    pub fn shaped(&self, object: &Object, columns: bool) -> Result<Bytes> {
        Ok(match self.accept.shape {
            Shape::Plain | Shape::PartialList => self.bytes(object)?,
            Shape::Partial => {
                let mut out = Vec::new();
                json::write(&mut out, &partial(&self.value(object)?));
                out.into()
            }
            Shape::Table => {
                let mut out = Vec::new();
                let metadata = json!({"resourceVersion": object.revision.to_string()});
                json::write(
                    &mut out,
                    &self.table(&[self.value(object)?], metadata, columns)?,
                );
                out.into()
            }
        })
    }

    /// The answer to a get or a write.
    pub fn object(&self, code: StatusCode, object: &Object) -> Result<Reply> {
        if self.accept.format == Format::Protobuf {
            let response = reply(code, protobuf::MEDIA_TYPE, self.sealed(object)?);
            return Ok(compress(response, self.gzip));
        }
        let bytes = self.shaped(object, true)?;
        let response = match self.accept.format {
            Format::Json => reply(code, "application/json", bytes),
            format => {
                let value: Value = serde_json::from_slice(&bytes).map_err(Status::internal)?;
                reply(code, self.accept.content_type(), render(&value, format))
            }
        };
        Ok(compress(response, self.gzip))
    }

    /// The answer to a list.
    pub fn list(&self, list: &List) -> Result<Reply> {
        let mut metadata = json!({"resourceVersion": list.revision.to_string()});
        if let Some(token) = &list.continue_token {
            metadata["continue"] = token.as_str().into();
        }
        if let Some(remaining) = list.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        let (kind, version) = match self.accept.shape {
            Shape::Table => {
                let values = list
                    .objects
                    .iter()
                    .map(|object| self.value(object))
                    .collect::<Result<Vec<_>>>()?;
                let table = self.table(&values, metadata, true)?;
                return Ok(compress(
                    document(StatusCode::OK, &table, self.accept),
                    self.gzip,
                ));
            }
            Shape::Partial | Shape::PartialList => {
                ("PartialObjectMetadataList", "meta.k8s.io/v1".to_owned())
            }
            Shape::Plain => (
                &*self.served.resource.list_kind,
                self.served.resource.api_version(),
            ),
        };
        if self.accept.format == Format::Protobuf {
            return self.protobuf_list(list, &metadata, &version, kind);
        }
        let mut head = Vec::new();
        head.extend_from_slice(b"{\"kind\":");
        json::write_string(&mut head, kind);
        head.extend_from_slice(b",\"apiVersion\":");
        json::write_string(&mut head, &version);
        head.extend_from_slice(b",\"metadata\":");
        json::write(&mut head, &metadata);
        head.extend_from_slice(b",\"items\":[");
        // As Kubernetes' types have it: only what has none says of itself what it is.
        let typed = self.accept.shape == Shape::Plain && self.served.message().is_some();
        let item = |object| match typed {
            true => codec::list_item(&self.bytes(object)?, &self.served.resource)
                .map_err(Status::internal),
            false => Ok(self.item(object)?.slice(1..)),
        };
        let items = list
            .objects
            .iter()
            .map(|object| item(object))
            .collect::<Result<Vec<_>>>()?;
        let length: usize = items.iter().map(Bytes::len).sum();
        if self.accept.format != Format::Json {
            let whole = join(head, &items, length);
            let value: Value = serde_json::from_slice(&whole).map_err(Status::internal)?;
            return Ok(compress(
                document(StatusCode::OK, &value, self.accept),
                self.gzip,
            ));
        }
        if length < STREAM_FROM {
            let response = reply(
                StatusCode::OK,
                "application/json",
                join(head, &items, length),
            );
            return Ok(compress(response, self.gzip));
        }
        Ok(self.stream("application/json", head, items, &JSON_LIST))
    }

    fn item(&self, object: &Object) -> Result<Bytes> {
        match self.accept.shape {
            Shape::PartialList | Shape::Partial => {
                let mut out = Vec::new();
                json::write(&mut out, &partial(&self.value(object)?));
                Ok(out.into())
            }
            _ => self.bytes(object),
        }
    }

    /// A long list: put together, and compressed, a chunk at a time, so that it is never in memory twice.
    pub(super) fn stream(
        &self,
        content_type: &'static str,
        head: Vec<u8>,
        items: Vec<Bytes>,
        glue: &'static Glue,
    ) -> Reply {
        let mut encoder = self
            .gzip
            .then(|| GzEncoder::new(Vec::with_capacity(CHUNK / 4), Compression::new(1)));
        let mut items = items.into_iter();
        let (mut chunk, mut first, mut done) = (head, true, false);
        let chunks = std::iter::from_fn(move || {
            while !done {
                while chunk.len() < CHUNK && !done {
                    match items.next() {
                        Some(item) => {
                            (glue.before)(&mut chunk, std::mem::take(&mut first), &item);
                            chunk.extend_from_slice(&item);
                        }
                        None => {
                            chunk.extend_from_slice(glue.tail);
                            done = true;
                        }
                    }
                }
                let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK + 8192));
                let Some(gzip) = &mut encoder else {
                    return Some(Bytes::from(full));
                };
                // Writing to a Vec does not fail.
                let _ = gzip.write_all(&full);
                if done {
                    let _ = gzip.try_finish();
                }
                let compressed = std::mem::take(gzip.get_mut());
                if !compressed.is_empty() {
                    return Some(Bytes::from(compressed));
                }
            }
            None
        });
        let body = Body::Stream(futures::stream::iter(chunks).boxed());
        let mut response = reply(StatusCode::OK, content_type, body);
        if self.gzip {
            mark_gzip(response.headers_mut());
        }
        response
    }

    /// Rows with the columns of the kind. `includeObject` says what of the objects comes along.
    pub fn table(&self, objects: &[Value], metadata: Value, with_columns: bool) -> Result<Value> {
        let asked = self.query.get("includeObject").unwrap_or_default();
        let include = Include::parse(asked).ok_or_else(|| {
            Status::bad_request(format!(
                "unrecognized includeObject value: {asked:?} is not None, Metadata or Object"
            ))
        })?;
        let now = jiff::Timestamp::now();
        let rows = objects
            .iter()
            .map(|object| table::row(&self.served.resource, object, include, now))
            .collect();
        Ok(table::table(
            &self.served.resource,
            rows,
            metadata,
            with_columns,
        ))
    }
}

fn join(mut head: Vec<u8>, items: &[Bytes], length: usize) -> Vec<u8> {
    head.reserve_exact(length + 2 * items.len() + JSON_LIST.tail.len());
    for (index, item) in items.iter().enumerate() {
        (JSON_LIST.before)(&mut head, index == 0, item);
        head.extend_from_slice(item);
    }
    head.extend_from_slice(JSON_LIST.tail);
    head
}

/// The object's metadata as a document of its own.
fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// The object that a watch bookmark shows: only where the watch stands.
#[must_use]
pub fn bookmark(resource: &Resource, accept: Accept, revision: u64, initial_end: bool) -> Value {
    let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
    if initial_end {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    match accept.shape {
        Shape::Table => {
            let place = json!({"resourceVersion": revision.to_string()});
            let object = json!({"kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata});
            let rows = if initial_end {
                vec![json!({"cells": [], "object": object})]
            } else {
                Vec::new()
            };
            table::table(resource, rows, place, false)
        }
        Shape::Partial | Shape::PartialList => {
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
        }
        Shape::Plain => {
            json!({"kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata})
        }
    }
}
