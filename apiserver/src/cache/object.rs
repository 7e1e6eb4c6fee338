//! One object at one revision.

use std::sync::OnceLock;

use apimachinery::protobuf::{self, Message};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::codec::{self, Unreadable};
use crate::fields::{self, Field, Labels};

/// An object as it is served: its bytes, and what selectors need of it.
#[derive(Debug)]
pub struct Object {
    /// `namespace/name`, or `name` for cluster-scoped resources.
    key: Box<str>,
    pub revision: u64,
    /// JSON in the storage version, resourceVersion included.
    pub bytes: Bytes,
    pub labels: Labels,
    /// The values of the resource's selectable fields, in their order.
    pub fields: Box<[Box<str>]>,
    /// The same object as a protobuf message, once a watcher has asked for it: the others share it.
    message: OnceLock<Box<[u8]>>,
}

impl Object {
    /// From the stored form.
    pub fn new(
        key: &str,
        stored: &[u8],
        revision: u64,
        fields: &[Field],
    ) -> Result<Self, Unreadable> {
        let bytes = codec::serve(stored, revision).ok_or(Unreadable::NotJson)?;
        let extract = fields::extract(&bytes, fields)?;
        Ok(Self {
            key: key.into(),
            revision,
            bytes,
            labels: extract.labels,
            fields: extract.fields,
            message: OnceLock::new(),
        })
    }

    /// From the stored form, as the answer to a write: nobody selects it, so nothing is extracted. A dry run has no
    /// revision (0) for a new object.
    pub fn written(key: &str, stored: &Bytes, revision: u64) -> Result<Self, Unreadable> {
        let bytes = match revision {
            0 => stored.clone(),
            _ => codec::serve(stored, revision).ok_or(Unreadable::NotJson)?,
        };
        Ok(Self {
            key: key.into(),
            revision,
            bytes,
            labels: Box::default(),
            fields: Box::default(),
            message: OnceLock::new(),
        })
    }

    /// The same object as of another revision: what a deletion event shows.
    #[must_use]
    pub fn moved_to(&self, revision: u64) -> Self {
        Self {
            key: self.key.clone(),
            revision,
            bytes: codec::reserve(&self.bytes, revision),
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            message: OnceLock::new(),
        }
    }

    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    #[must_use]
    pub fn namespace(&self) -> &str {
        self.key
            .split_once('/')
            .map_or("", |(namespace, _)| namespace)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        self.key
            .split_once('/')
            .map_or(&*self.key, |(_, name)| name)
    }

    /// The whole document. The bytes were JSON when they came in, so this is `Null` never.
    #[must_use]
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }

    /// The object as a protobuf message, which is kept: for watches, whose events go to many at once.
    pub fn shared_message(&self, message: Message) -> Result<&[u8], protobuf::Error> {
        if let Some(made) = self.message.get() {
            return Ok(made);
        }
        let made = message.encode(&self.bytes)?.into_boxed_slice();
        Ok(self.message.get_or_init(|| made))
    }

    /// The object as a protobuf message, made now unless there is one.
    pub fn message(&self, message: Message) -> Result<Bytes, protobuf::Error> {
        match self.message.get() {
            Some(made) => Ok(Bytes::copy_from_slice(made)),
            None => Ok(message.encode(&self.bytes)?.into()),
        }
    }

    /// The document as a typed struct.
    pub fn decode<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.bytes)
    }
}
