//! Kubernetes' second wire format: `application/vnd.kubernetes.protobuf`.
//!
//! A document is the four bytes `k8s\0`, then an envelope (`runtime.Unknown`: apiVersion, kind, and the message as
//! bytes). Which messages there are is data: `messages.txt`, read when the first of them is needed. [`encode`] and
//! [`decode`] go from JSON text to a message and back by that table alone, and no kind has code of its own.
//!
//! Encoding writes what Go writes, byte for byte: a field that is no pointer in Go is always written, fields come in the
//! order of their numbers and maps in that of their keys. Decoding yields the JSON that Go would have sent instead.
//!
//! In `messages.txt` a line `#core.v1.Pod` opens a message (`#a=b` gives one a second name); each of its fields is `NUMBER NAME TYPE FLAGS`. The name is
//! that in JSON (`-` for what JSON has inline). Types: `s` string, `b` bool, `i` int32, `l` int64, `d` double, `y` bytes
//! (base64 in JSON), `t` Time, `u` MicroTime, `D` Duration, `q` Quantity, `o` IntOrString, `r` any JSON kept as text,
//! `A` `B` `S` a JSON schema, or in its place a list of them, a boolean, or a list of strings; `*Name` a message, of the
//! same package if without dots; `[` before a type makes a list of it, `w` a list with a message of its own around it, `{` a
//! map from strings. Flags: `p` a pointer in Go (absent is not zero), `e` omitempty, `z` omitzero, `x` inline.

mod decode;
mod encode;
mod node;
mod scalar;
mod table;
pub(crate) mod wire;

use serde_json::{Map, Value};

use table::MessageId;

pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What every document begins with, in a store and on the wire.
pub const MAGIC: [u8; 4] = *b"k8s\0";

/// Nesting beyond this is refused: it stays below what JSON readers take.
const MAX_DEPTH: usize = 110;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    )]
    NoMagic,
    #[error("empty body")]
    Empty,
    #[error("unexpected EOF")]
    Truncated,
    #[error("proto: integer overflow")]
    Overflow,
    #[error("proto: wrong wireType = {wire} for field {field}")]
    WireType { field: String, wire: u8 },
    #[error("proto: illegal wireType {0}")]
    UnknownWireType(u8),
    #[error("proto: illegal tag {0}")]
    Tag(u64),
    #[error("exceeded max depth")]
    TooDeep,
    #[error("the message holds too many values")]
    TooLarge,
    #[error("field {field}: {why}")]
    Field { field: String, why: String },
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
    #[error("contentEncoding {0:?} is not supported")]
    Encoding(String),
    #[error("not a JSON object: {0}")]
    Json(String),
}

/// A kind that has a protobuf form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message(MessageId);

impl Message {
    /// The message of a kind. The kinds of meta/v1 (options, Status, lists of metadata) belong to every group.
    #[must_use]
    pub fn find(api_version: &str, kind: &str) -> Option<Self> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let package = match group {
            "" => "core",
            _ => group.split('.').next().unwrap_or_default(),
        };
        let table = table::get();
        // `meta.k8s.io/v1` itself is found this way too. A custom resource's group may share its first label with a
        // built-in one.
        let own = (group.is_empty() || !group.contains('.') || group.ends_with(".k8s.io"))
            .then(|| table.find(&format!("{package}.{version}.{kind}")))
            .flatten();
        own.or_else(|| {
            table
                .find(&format!("meta.v1.{kind}"))
                .filter(|_| is_meta(kind))
        })
        .map(Self)
    }

    /// The message of a JSON document, without envelope. Fields that the message does not have are left out.
    pub fn encode(self, json: &[u8]) -> Result<Vec<u8>, Error> {
        encode::message(self.0, json)
    }

    /// The fields of a message as JSON, without `apiVersion` and `kind`.
    pub fn decode(self, bytes: &[u8]) -> Result<Map<String, Value>, Error> {
        decode::message(self.0, bytes)
    }
}

/// Kinds that are registered in every group version.
fn is_meta(kind: &str) -> bool {
    matches!(
        kind,
        "APIGroup"
            | "APIGroupList"
            | "APIResourceList"
            | "APIVersions"
            | "CreateOptions"
            | "DeleteOptions"
            | "GetOptions"
            | "ListOptions"
            | "PartialObjectMetadata"
            | "PartialObjectMetadataList"
            | "PatchOptions"
            | "Status"
            | "UpdateOptions"
    )
}

/// The envelope of a document.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub message: &'a [u8],
    pub content_type: &'a str,
}

#[must_use]
pub fn has_magic(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// What stands after the message in a document: contentEncoding and contentType, both empty.
pub const TAIL: &[u8] = &[0x1a, 0, 0x22, 0];

/// What stands before a message of `length` bytes in a document.
#[must_use]
pub fn head(api_version: &str, kind: &str, length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(api_version.len() + kind.len() + 24);
    out.extend_from_slice(&MAGIC);
    wire::nested(&mut out, 1, |out| {
        wire::text(out, 1, api_version);
        wire::text(out, 2, kind);
        Ok::<(), Error>(())
    })
    .unwrap_or_default();
    wire::tag(&mut out, 2, wire::LENGTH);
    wire::varint(&mut out, length as u64);
    out
}

/// A document around a message.
#[must_use]
pub fn seal(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let mut out = head(api_version, kind, message.len());
    out.reserve_exact(message.len() + TAIL.len());
    out.extend_from_slice(message);
    out.extend_from_slice(TAIL);
    out
}

/// Reads the envelope of a document.
pub fn open(bytes: &[u8]) -> Result<Envelope<'_>, Error> {
    let body = bytes.strip_prefix(&MAGIC).ok_or(Error::NoMagic)?;
    if body.is_empty() {
        return Err(Error::Empty);
    }
    let mut envelope = Envelope::default();
    let mut reader = wire::Reader::new(body);
    while let Some((number, value)) = reader.field()? {
        match (number, value) {
            (1, wire::Value::Bytes(meta)) => {
                let mut reader = wire::Reader::new(meta);
                while let Some((number, value)) = reader.field()? {
                    match (number, value) {
                        (1, wire::Value::Bytes(text)) => envelope.api_version = utf8(text)?,
                        (2, wire::Value::Bytes(text)) => envelope.kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, wire::Value::Bytes(message)) => envelope.message = message,
            (3, wire::Value::Bytes(encoding)) if !encoding.is_empty() => {
                return Err(Error::Encoding(utf8(encoding)?.to_owned()));
            }
            (4, wire::Value::Bytes(text)) => envelope.content_type = utf8(text)?,
            _ => {}
        }
    }
    Ok(envelope)
}

fn utf8(bytes: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(bytes).map_err(|error| Error::Field {
        field: "typeMeta".into(),
        why: error.to_string(),
    })
}

/// A whole document as JSON. `default` is the apiVersion and kind of an envelope that names none.
pub fn to_json(bytes: &[u8], default: (&str, &str)) -> Result<Value, Error> {
    to_json_within(bytes, default, MAX_DEPTH)
}

fn to_json_within(bytes: &[u8], default: (&str, &str), depth: usize) -> Result<Value, Error> {
    let envelope = open(bytes)?;
    let pick = |given, default| if str::is_empty(given) { default } else { given };
    let (api_version, kind) = (
        pick(envelope.api_version, default.0),
        pick(envelope.kind, default.1),
    );
    if envelope.content_type == "application/json" {
        return serde_json::from_slice(envelope.message)
            .map_err(|error| Error::Json(error.to_string()));
    }
    let message = Message::find(api_version, kind).ok_or_else(|| Error::UnknownKind {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
    })?;
    let mut fields = decode::message_within(message.0, envelope.message, depth)?;
    fields.insert("apiVersion".into(), api_version.into());
    fields.insert("kind".into(), kind.into());
    Ok(Value::Object(fields))
}

/// A whole document from JSON, which says its kind.
pub fn from_json(json: &[u8]) -> Result<Vec<u8>, Error> {
    let document = node::parse(json)?;
    let text = |name| {
        document
            .get(name)
            .and_then(node::Node::text)
            .unwrap_or_default()
    };
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let message = Message::find(api_version, kind).ok_or_else(|| Error::UnknownKind {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
    })?;
    Ok(seal(
        api_version,
        kind,
        &encode::node(message.0, &document)?,
    ))
}

/// A watch event as it is in a stream: its length in four bytes, then the event, around a document that is given in up to
/// three parts.
#[must_use]
pub fn watch_event(kind: &str, head: &[u8], message: &[u8], tail: &[u8]) -> Vec<u8> {
    let length = head.len() + message.len() + tail.len();
    let mut out = Vec::with_capacity(length + kind.len() + 24);
    out.extend_from_slice(&[0; 4]);
    wire::text(&mut out, 1, kind);
    let raw = 1 + wire::varint_size(length as u64) + length;
    wire::tag(&mut out, 2, wire::LENGTH);
    wire::varint(&mut out, raw as u64);
    wire::tag(&mut out, 1, wire::LENGTH);
    wire::varint(&mut out, length as u64);
    for part in [head, message, tail] {
        out.extend_from_slice(part);
    }
    let length = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

/// The beginning of a list's message, up to its items. `metadata` is that of the list, in JSON.
pub fn list_head(metadata: &[u8]) -> Result<Vec<u8>, Error> {
    let table = table::get();
    let id = table.find("meta.v1.ListMeta").ok_or(Error::TooLarge)?;
    let metadata = encode::message(id, metadata)?;
    let mut out = Vec::new();
    wire::tag(&mut out, 1, wire::LENGTH);
    wire::varint(&mut out, metadata.len() as u64);
    out.extend_from_slice(&metadata);
    Ok(out)
}

/// Appends what stands before an item of a list.
pub fn list_item(out: &mut Vec<u8>, length: usize) {
    wire::tag(out, 2, wire::LENGTH);
    wire::varint(out, length as u64);
}

/// How long an item is in a list.
#[must_use]
pub fn list_item_size(length: usize) -> usize {
    1 + wire::varint_size(length as u64) + length
}

#[cfg(test)]
mod tests;
