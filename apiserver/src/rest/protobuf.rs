//! Objects, lists and watch events as protobuf.
//!
//! A list is put together from the messages of its items, and an event from that of its object, which all watchers of
//! a revision share.

use apimachinery::json;
use apimachinery::protobuf::{self, Message};
use apimachinery::status::{Result, Status};
use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;

use super::respond::{Glue, Presenter, STREAM_FROM, compress, reply};
use crate::body::Reply;
use crate::cache::Object;
use crate::negotiate::Shape;
use crate::registry::read::List;

pub const WATCH_MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf;stream=watch";

const PARTIAL: (&str, &str) = ("meta.k8s.io/v1", "PartialObjectMetadata");

const GLUE: Glue = Glue {
    before: |out, _, item| protobuf::list_item(out, item.len()),
    tail: protobuf::TAIL,
};

/// An event around a document of ours.
#[must_use]
pub fn event(kind: &str, object: &Value) -> Vec<u8> {
    let mut json = Vec::new();
    json::write(&mut json, object);
    match protobuf::from_json(&json) {
        Ok(document) => protobuf::watch_event(kind, &document, &[], &[]),
        Err(error) => {
            tracing::error!(%error, kind, "event has no protobuf form");
            Vec::new()
        }
    }
}

fn unfit(error: protobuf::Error) -> Status {
    Status::internal(format!("the object has no protobuf form: {error}"))
}

impl Presenter<'_> {
    fn plain(&self) -> bool {
        matches!(self.accept.shape, Shape::Plain | Shape::Table)
    }

    /// The apiVersion, kind and message of what is sent for one object.
    fn item_kind(&self) -> Result<(String, &str, Message)> {
        let resource = &self.served.resource;
        let (version, kind) = match self.plain() {
            true => (resource.api_version(), &*resource.kind),
            false => (PARTIAL.0.to_owned(), PARTIAL.1),
        };
        // Negotiation has asked the same.
        let message = Message::find(&version, kind)
            .ok_or_else(|| Status::not_acceptable(&["application/json", "application/yaml"]))?;
        Ok((version, kind, message))
    }

    fn message(&self, object: &Object, message: Message) -> Result<Bytes> {
        if self.plain() && !self.served.converts() {
            return object.message(message).map_err(unfit);
        }
        // Of the whole document, the message of partial metadata takes just that.
        let bytes = self.bytes(object)?;
        Ok(message.encode(&bytes).map_err(unfit)?.into())
    }

    /// An object as a whole document.
    pub(super) fn sealed(&self, object: &Object) -> Result<Vec<u8>> {
        let (version, kind, message) = self.item_kind()?;
        Ok(protobuf::seal(
            &version,
            kind,
            &self.message(object, message)?,
        ))
    }

    /// A watch event.
    pub(super) fn event(&self, event: &str, object: &Object) -> Result<Vec<u8>> {
        let (version, kind, message) = self.item_kind()?;
        let made;
        let bytes = if self.plain() && !self.served.converts() {
            object.shared_message(message).map_err(unfit)?
        } else {
            made = self.message(object, message)?;
            &*made
        };
        let head = protobuf::head(&version, kind, bytes.len());
        Ok(protobuf::watch_event(event, &head, bytes, protobuf::TAIL))
    }

    /// A list of the given kind.
    pub(super) fn protobuf_list(
        &self,
        list: &List,
        metadata: &Value,
        version: &str,
        kind: &str,
    ) -> Result<Reply> {
        let (_, _, message) = self.item_kind()?;
        let items = list
            .objects
            .iter()
            .map(|object| self.message(object, message));
        let items = items.collect::<Result<Vec<_>>>()?;
        let mut json = Vec::new();
        json::write(&mut json, metadata);
        let start = protobuf::list_head(&json).map_err(unfit)?;
        let length: usize = items
            .iter()
            .map(|item| protobuf::list_item_size(item.len()))
            .sum();
        let mut out = protobuf::head(version, kind, start.len() + length);
        out.extend_from_slice(&start);
        if length >= STREAM_FROM {
            return Ok(self.stream(protobuf::MEDIA_TYPE, out, items, &GLUE));
        }
        out.reserve_exact(length + GLUE.tail.len());
        for item in &items {
            (GLUE.before)(&mut out, false, item);
            out.extend_from_slice(item);
        }
        out.extend_from_slice(GLUE.tail);
        Ok(compress(
            reply(StatusCode::OK, protobuf::MEDIA_TYPE, out),
            self.gzip,
        ))
    }
}
