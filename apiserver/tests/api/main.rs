//! The API as its clients see it: a server in this process, asked over TLS. One program for all areas, since each would build
//! the whole server anew.

mod common;

mod admission;
mod aggregation;
mod backups;
mod bad_input;
mod certificates;
mod custom_resources;
mod endpoints;
mod evictions;
mod field_validation;
mod generated;
mod hostile;
mod managed_fields;
mod objects;
mod openapi;
mod policies;
mod protobuf;
mod security;
mod watches;
