//! PATCH: JSON patch, merge patch and strategic merge patch, applied to the newest version of an object.

use std::sync::Arc;

use apimachinery::decode::{duplicate_field, unknown_field};
use apimachinery::field::{Error, Path};
use apimachinery::patch::{json_patch, merge_patch, strategic_merge};
use apimachinery::status::{Result, Status};
use http::StatusCode;
use serde_json::Value;

use super::objects::WriteOptions;
use super::respond::warn;
use super::{Exchange, apply};
use crate::body::{self, Received, Reply};
use crate::negotiate::content_type;
use crate::registry::decode::{self, FieldValidation, Media, Parsed};
use crate::registry::table::Served;

const ACCEPTED: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    apply::MEDIA_TYPE,
];

const STRATEGIC: &str = "application/strategic-merge-patch+json";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Json,
    Merge,
    Strategic,
}

/// A patch, parsed.
#[derive(Debug)]
pub struct Patch {
    kind: Kind,
    document: Value,
    /// What strict validation says about the patch itself.
    told: Vec<String>,
}

impl Patch {
    /// Reads the body of a PATCH; 415 if it is of no known kind.
    pub fn read(media: &str, body: &[u8]) -> Result<Self> {
        let kind = match media {
            "application/json-patch+json" => Kind::Json,
            "application/merge-patch+json" => Kind::Merge,
            "application/strategic-merge-patch+json" => Kind::Strategic,
            _ => return Err(Status::unsupported_media_type(&ACCEPTED)),
        };
        let parsed = decode::parse(body, Media::Json)
            .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
        let (document, mut told) = (parsed.value, parsed.duplicates);
        if kind == Kind::Json {
            told = operations_told(&document, &told);
        }
        let fits = if kind == Kind::Json {
            document.is_array()
        } else {
            document.is_object()
        };
        if !fits {
            let wanted = if kind == Kind::Json {
                "[]jsonpatch.Operation"
            } else {
                "map[string]interface {}"
            };
            return Err(Status::bad_request(format!(
                "error decoding patch: json: cannot unmarshal into Go value of type {wanted}"
            )));
        }
        Ok(Self {
            kind,
            document,
            told,
        })
    }

    /// The patched document.
    pub fn apply(&self, served: &Served, old: &Value) -> Result<Value> {
        let mut object = old.clone();
        match self.kind {
            Kind::Strategic => {
                strategic_merge(&mut object, &self.document, &served.resource.schema)?
            }
            _ => return self.merge(old),
        }
        Ok(object)
    }

    /// The patched document, where no schema says how lists merge.
    pub fn merge(&self, old: &Value) -> Result<Value> {
        let mut object = old.clone();
        match self.kind {
            Kind::Merge | Kind::Strategic => merge_patch(&mut object, &self.document)?,
            Kind::Json => json_patch(&mut object, &self.document)?,
        }
        Ok(object)
    }
}

/// What strict validation says about the operations of a JSON patch, in their order. Their values are any JSON.
fn operations_told(document: &Value, duplicates: &[String]) -> Vec<String> {
    let mut told = Vec::new();
    for (i, operation) in document.as_array().into_iter().flatten().enumerate() {
        for key in operation
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key)
        {
            let path = format!("[{i}].{key}");
            let own = duplicate_field(&path);
            if !matches!(key.as_str(), "op" | "path" | "from" | "value") {
                told.push(format!("json patch {}", unknown_field(&path)));
            } else if duplicates.contains(&own) {
                told.push(format!("json patch {own}"));
            }
        }
    }
    told
}

/// A value as Go prints a map of anything.
fn go_map(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(key, value)| format!("{key}:{}", go_map(value)))
                .collect();
            format!("map[{}]", fields.join(" "))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(go_map).collect();
            format!("[{}]", items.join(" "))
        }
        Value::String(text) => text.clone(),
        Value::Null => "<nil>".into(),
        other => other.to_string(),
    }
}

pub async fn handle(exchange: &Exchange, served: &Arc<Served>, body: Received) -> Result<Reply> {
    let media = content_type(&exchange.headers).to_owned();
    if media == apply::MEDIA_TYPE {
        return apply::handle(exchange, served, body).await;
    }
    let presenter = exchange.presenter(served)?;
    let options = WriteOptions::read(exchange, "PatchOptions")?;
    refuse_force(exchange)?;
    // A custom resource's schema has no patch strategies.
    if served.resource.schema.open_api().is_some() && media == STRATEGIC {
        return Err(Status::unsupported_media_type(&[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/apply-patch+yaml",
        ]));
    }
    let patch = Patch::read(&media, &body::read(body).await?)?;
    let target = exchange.target(served);
    let mut call = options.call(exchange);
    let mut warnings = Vec::new();
    let change = |old: &Value| {
        warnings.clear();
        patched(served, &patch, old, options.validation, &mut warnings)
    };
    let written = exchange
        .server
        .registry
        .update(target, &mut call, change)
        .await?;
    let mut response = presenter.object(StatusCode::OK, &written.object)?;
    warn(&mut response, &warnings);
    warn(&mut response, &call.warnings);
    Ok(response)
}

/// Only an apply can be forced.
fn refuse_force(exchange: &Exchange) -> Result<()> {
    match apply::force(exchange)? {
        true => Err(apply::refused(Error::forbidden(
            &Path::new("force"),
            "may not be specified for non-apply patch",
        ))),
        false => Ok(()),
    }
}

/// Applies a patch and decodes the result like any other body.
pub(super) fn patched(
    served: &Served,
    patch: &Patch,
    old: &Value,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value> {
    let patched = Parsed {
        value: patch.apply(served, old)?,
        duplicates: patch.told.clone(),
        levels: None,
    };
    let shown = || match patch.kind {
        Kind::Strategic => go_map(&patch.document),
        _ => patch.merge(old).unwrap_or_default().to_string(),
    };
    let object = decode::finish_patched(&served.resource, patched, validation, shown, warnings)?;
    Ok(decode::complete(served, object))
}
