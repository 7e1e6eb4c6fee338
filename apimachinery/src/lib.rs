//! What a Kubernetes object *is*, apart from any server, client or store.
//!
//! Objects are `serde_json::Value` documents. Everything that has to be known about a kind is data: its names, scope,
//! verbs and subresources are a [`resource::Resource`], and its shape (types, list keys, patch strategies, defaults)
//! is the [`schema::Schema`] that hangs on it. Built-in kinds and custom resources use the same two types, so no code
//! elsewhere asks which of the two it holds.
//!
//! Start reading at [`resource`] (the table of kinds), then [`schema`]. Around them:
//!
//! - [`object`] reads and writes the fields that all objects share; [`names`], [`time`], [`quantity`] and [`cron`] are
//!   the small formats inside them;
//! - [`decode`] turns JSON bytes into documents and [`json`] writes them, [`protobuf`] is the other wire format, [`patch`] changes them, [`convert`] takes the few kinds that have two
//!   shapes from one to the other, [`validation`] checks metadata;
//! - [`managed`] says who owns which field, and merges by it (server-side apply);
//! - [`status`] is the error of the whole API layer, [`field`] the list of field errors inside an "Invalid" one;
//! - [`selector`] holds label and field selectors;
//! - [`discovery`], [`openapi`] and [`table`] are the documents in which a server tells clients what it has.
//!
//! Nothing here does I/O, reads a clock or is async. The rules and messages follow Kubernetes 1.36.

pub mod convert;
pub mod cron;
pub mod decode;
pub mod discovery;
pub mod field;
pub mod json;
pub mod managed;
pub mod names;
pub mod object;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod resource;
pub mod schema;
pub mod selector;
pub mod status;
pub mod table;
pub mod time;
pub mod validation;

pub use status::{Result, Status};
