//! Server-side apply: a PATCH that says what its manager wants of an object, which may not exist yet.

use std::sync::Arc;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::object;
use apimachinery::resource::GroupKind;
use apimachinery::status::{Result, Status};
use http::StatusCode;
use serde_json::Value;

use super::Exchange;
use super::objects::WriteOptions;
use super::respond::warn;
use crate::authz::{self, Attributes};
use crate::body::{self, Received, Reply};
use crate::registry::decode::{self, FieldValidation, Media};
use crate::registry::table::Served;
use crate::registry::{Target, Written};

pub const MEDIA_TYPE: &str = "application/apply-patch+yaml";

/// As often an apply is tried again when the object comes and goes under it.
const ATTEMPTS: usize = 5;

/// The body of an apply, and its options.
pub(super) struct Request {
    pub document: Value,
    pub force: bool,
    /// What strict validation minds about the text itself.
    duplicates: Vec<String>,
}

impl Request {
    pub async fn read(exchange: &Exchange, body: Received) -> Result<Self> {
        let force = force(exchange)?;
        if exchange.query.get("fieldManager").is_none_or(str::is_empty) {
            let path = Path::new("fieldManager");
            return Err(refused(Error::required(
                &path,
                "is required for apply patch",
            )));
        }
        let bytes = body::read(body).await?;
        let parsed = decode::parse(&bytes, Media::Yaml)
            .map_err(|why| Status::bad_request(format!("error decoding YAML: {why}")))?;
        if !parsed.value.is_object() {
            return Err(Status::bad_request(
                "error decoding YAML: json: cannot unmarshal into Go value of type map[string]interface {}",
            ));
        }
        Ok(Self {
            document: parsed.value,
            force,
            duplicates: parsed.duplicates,
        })
    }

    /// What was written twice: refused, told, or nothing.
    pub fn check(&self, validation: FieldValidation, warnings: &mut Vec<String>) -> Result<()> {
        match validation {
            FieldValidation::Strict if !self.duplicates.is_empty() => {
                Err(Status::bad_request(format!(
                    "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  {}",
                    self.duplicates.join("\n  ")
                )))
            }
            FieldValidation::Warn => {
                warnings.extend(self.duplicates.iter().cloned());
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// The `force` option, which only applies have.
pub(super) fn force(exchange: &Exchange) -> Result<bool> {
    match exchange.query.get("force") {
        None | Some("") => Ok(false),
        Some(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "t" => Ok(true),
            "false" | "0" | "f" => Ok(false),
            _ => Err(Status::bad_request(format!(
                "strconv.ParseBool: parsing {text:?}: invalid syntax"
            ))),
        },
    }
}

pub(super) fn refused(error: Error) -> Status {
    let kind = GroupKind::new("meta.k8s.io", "PatchOptions");
    Status::invalid(&kind, "", ErrorList(vec![error]))
}

pub async fn handle(exchange: &Exchange, served: &Arc<Served>, body: Received) -> Result<Reply> {
    let presenter = exchange.presenter(served)?;
    let options = WriteOptions::read(exchange, "PatchOptions")?;
    let request = Request::read(exchange, body).await?;
    let target = exchange.target(served);
    let mut call = options.call(exchange);
    let mut warnings = Vec::new();
    request.check(options.validation, &mut warnings)?;
    let registry = &exchange.server.registry;
    let mut attempt = 0;
    let written = loop {
        attempt += 1;
        let updated = registry
            .update_applied(target, &mut call, &request.document, request.force)
            .await;
        let missing = match updated {
            Err(error) if error.is_not_found() && target.subresource.is_empty() => error,
            outcome => break outcome?,
        };
        match create(exchange, target, &request, &mut call).await {
            Err(error) if error.is_already_exists() && attempt < ATTEMPTS => {}
            Err(error) if error.is_already_exists() => return Err(missing),
            outcome => break outcome?,
        }
    };
    let code = match written.created {
        true => StatusCode::CREATED,
        false => StatusCode::OK,
    };
    let mut response = presenter.object(code, &written.object)?;
    warn(&mut response, &warnings);
    warn(&mut response, &call.warnings);
    Ok(response)
}

/// Applies to nothing, which takes the right to create.
async fn create(
    exchange: &Exchange,
    target: Target<'_>,
    request: &Request,
    call: &mut crate::registry::Call<'_>,
) -> Result<Written> {
    let registry = &exchange.server.registry;
    let applied = registry.applied(target, call, &Value::Null, &request.document, request.force)?;
    let uid = object::uid(&applied);
    if !uid.is_empty() {
        let why = format!(
            "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
        );
        return Err(Status::conflict(&target.group_resource(), target.name, why));
    }
    if object::name(&applied).is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            target.name
        )));
    }
    let mut info = (*exchange.info).clone();
    info.verb = "create".into();
    authz::require(
        &*exchange.server.authorizer,
        &Attributes::of(&exchange.user, &info),
    )
    .await?;
    let mut applied = applied;
    crate::registry::meta::match_name(target, &mut applied)?;
    registry.create_applied(target, applied, call).await
}
