//! `Status`, the one error type of the API layer, with the constructors that Kubernetes' `apierrors` has: the same
//! code, reason, message and details for the same situation, because clients branch on them.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::field::{ErrorList, quote};
use crate::resource::{GroupKind, GroupResource};

pub type Result<T> = std::result::Result<T, Status>;

/// A failed request, as `v1.Status` describes it. `Display` is the message.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// One of Kubernetes' `StatusReason` words, such as `NotFound`; empty when unknown.
    pub reason: Cow<'static, str>,
    pub message: String,
    pub details: Option<Box<Details>>,
}

/// `v1.StatusDetails`. `kind` holds the resource for most reasons and the kind for `Invalid`, as in Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// `v1.StatusCause`: one of several things that were wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    #[serde(rename = "reason", skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

impl Status {
    pub fn new(
        code: u16,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Status {
        Status {
            code,
            reason: reason.into(),
            message: message.into(),
            details: None,
        }
    }

    pub fn with_details(mut self, details: Details) -> Status {
        self.details = Some(Box::new(details));
        self
    }

    /// Adds the cause to the details, which are made if absent.
    pub fn with_cause(mut self, reason: &str, message: impl Into<String>, field: &str) -> Status {
        let cause = Cause {
            reason: reason.into(),
            message: message.into(),
            field: field.into(),
        };
        self.details.get_or_insert_default().causes.push(cause);
        self
    }

    pub fn with_retry_after(mut self, seconds: u32) -> Status {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    fn about(self, resource: &GroupResource, name: &str) -> Status {
        self.with_details(Details {
            name: name.into(),
            group: resource.group.clone().into_owned(),
            kind: resource.resource.clone().into_owned(),
            ..Details::default()
        })
    }

    pub fn not_found(resource: &GroupResource, name: &str) -> Status {
        Status::new(
            404,
            "NotFound",
            format!("{resource} {} not found", quote(name)),
        )
        .about(resource, name)
    }

    /// The path itself names nothing that is served.
    pub fn unknown_path() -> Status {
        let details = Details::default();
        Status::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
        .with_details(details)
    }

    pub fn already_exists(resource: &GroupResource, name: &str) -> Status {
        Status::new(
            409,
            "AlreadyExists",
            format!("{resource} {} already exists", quote(name)),
        )
        .about(resource, name)
    }

    pub fn generate_name_conflict(resource: &GroupResource, name: &str) -> Status {
        let what =
            "already exists, the server was not able to generate a unique name for the object";
        Status::new(
            409,
            "AlreadyExists",
            format!("{resource} {} {what}", quote(name)),
        )
        .about(resource, name)
        .with_retry_after(1)
    }

    pub fn unauthorized(reason: &str) -> Status {
        Status::new(
            401,
            "Unauthorized",
            if reason.is_empty() {
                "not authorized"
            } else {
                reason
            },
        )
    }

    /// `resource` may be empty (a non-resource request) and so may `name` (a collection).
    pub fn forbidden(resource: &GroupResource, name: &str, why: impl fmt::Display) -> Status {
        let message = match (
            resource.resource.is_empty() && resource.group.is_empty(),
            name,
        ) {
            (true, _) => format!("forbidden: {why}"),
            (_, "") => format!("{resource} is forbidden: {why}"),
            _ => format!("{resource} {} is forbidden: {why}", quote(name)),
        };
        Status::new(403, "Forbidden", message).about(resource, name)
    }

    pub fn conflict(resource: &GroupResource, name: &str, why: impl fmt::Display) -> Status {
        let message = format!(
            "Operation cannot be fulfilled on {resource} {}: {why}",
            quote(name)
        );
        Status::new(409, "Conflict", message).about(resource, name)
    }

    /// The conflict of an update against a version that is no longer the current one.
    pub fn stale(resource: &GroupResource, name: &str) -> Status {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Status::conflict(resource, name, why)
    }

    /// Several fields are wrong; every error becomes a cause.
    pub fn invalid(kind: &GroupKind, name: &str, errors: ErrorList) -> Status {
        let mut message = format!("{kind} {} is invalid", quote(name));
        if !errors.is_empty() {
            message = format!("{message}: {errors}");
        }
        let causes = errors.iter().map(|e| Cause {
            reason: e.kind.reason().into(),
            message: e.body(),
            field: e.field.clone(),
        });
        Status::new(422, "Invalid", message).with_details(Details {
            name: name.into(),
            group: kind.group.clone().into_owned(),
            kind: kind.kind.clone().into_owned(),
            causes: causes.collect(),
            ..Details::default()
        })
    }

    pub fn bad_request(why: impl Into<String>) -> Status {
        Status::new(400, "BadRequest", why)
    }

    pub fn method_not_supported(resource: &GroupResource, action: &str) -> Status {
        let message = format!(
            "{action} is not supported on resources of kind {}",
            quote(&resource.to_string())
        );
        Status::new(405, "MethodNotAllowed", message).about(resource, "")
    }

    /// The path is served, but not with this HTTP method.
    pub fn method_not_allowed() -> Status {
        Status::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
        .with_details(Details::default())
    }

    pub fn not_acceptable(accepted: &[&str]) -> Status {
        let message = format!(
            "only the following media types are accepted: {}",
            accepted.join(", ")
        );
        Status::new(406, "NotAcceptable", message)
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Status {
        let what =
            "the body of the request was in an unknown format - accepted media types include: ";
        Status::new(
            415,
            "UnsupportedMediaType",
            format!("{what}{}", accepted.join(", ")),
        )
    }

    pub fn gone(message: impl Into<String>) -> Status {
        Status::new(410, "Gone", message)
    }

    /// The wanted resourceVersion is compacted: start again from a list.
    pub fn expired(message: impl Into<String>) -> Status {
        Status::new(410, "Expired", message)
    }

    pub fn too_large(message: impl fmt::Display) -> Status {
        Status::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: {message}"),
        )
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Status {
        Status::new(429, "TooManyRequests", message).with_retry_after(retry_after_seconds)
    }

    /// A transient failure: the client may try again.
    pub fn server_timeout(
        resource: &GroupResource,
        operation: &str,
        retry_after_seconds: u32,
    ) -> Status {
        let message = format!(
            "The {operation} operation against {resource} could not be completed at this time, please try again."
        );
        Status::new(500, "ServerTimeout", message)
            .about(resource, operation)
            .with_retry_after(retry_after_seconds)
    }

    pub fn timeout(message: impl fmt::Display, retry_after_seconds: u32) -> Status {
        Status::new(504, "Timeout", format!("Timeout: {message}"))
            .with_retry_after(retry_after_seconds)
    }

    pub fn service_unavailable(why: impl Into<String>) -> Status {
        Status::new(503, "ServiceUnavailable", why)
    }

    pub fn internal(why: impl fmt::Display) -> Status {
        Status::new(
            500,
            "InternalError",
            format!("Internal error occurred: {why}"),
        )
        .with_cause("", why.to_string(), "")
    }

    pub fn is(&self, reason: &str) -> bool {
        self.reason == reason
    }

    pub fn is_not_found(&self) -> bool {
        self.is("NotFound")
    }

    pub fn is_conflict(&self) -> bool {
        self.is("Conflict")
    }

    pub fn is_already_exists(&self) -> bool {
        self.is("AlreadyExists")
    }

    /// The `v1.Status` document of this failure.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = json!(self.reason);
        }
        if let Some(details) = &self.details {
            status["details"] = json!(details);
        }
        status
    }

    /// Reads a `v1.Status` document that reports a failure.
    pub fn from_value(value: &Value) -> Option<Status> {
        (value["kind"] == "Status" && value["status"] != "Success").then(|| Status {
            code: value["code"]
                .as_u64()
                .and_then(|c| u16::try_from(c).ok())
                .unwrap_or(500),
            reason: value["reason"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
                .into(),
            message: value["message"].as_str().unwrap_or_default().to_owned(),
            details: Details::deserialize(&value["details"]).ok().map(Box::new),
        })
    }
}

/// The `v1.Status` that answers a successful delete.
pub fn success(details: Details) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::{Error, Path};

    #[test]
    fn documents_match_kubernetes() {
        let pods = GroupResource::new("", "pods");
        assert_eq!(
            Status::not_found(&pods, "web").to_value(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404,
                "message": "pods \"web\" not found", "reason": "NotFound", "details": {"name": "web", "kind": "pods"}})
        );
        let deployments = GroupResource::new("apps", "deployments");
        let stale = Status::stale(&deployments, "web");
        assert!(stale.message.starts_with(
            "Operation cannot be fulfilled on deployments.apps \"web\": the object has"
        ));
        assert_eq!(Status::from_value(&stale.to_value()), Some(stale));
        assert_eq!(
            Status::forbidden(&GroupResource::new("", ""), "", "no").message,
            "forbidden: no"
        );
    }

    #[test]
    fn invalid_lists_every_cause_once_in_the_message() {
        let path = Path::new("spec").child("replicas");
        let errors = ErrorList(vec![
            Error::invalid(&path, -1, "must be positive"),
            Error::required(&Path::new("a"), ""),
        ]);
        let status = Status::invalid(&GroupKind::new("apps", "Deployment"), "web", errors);
        assert_eq!(
            status.message,
            "Deployment.apps \"web\" is invalid: [spec.replicas: Invalid value: -1: must be positive, a: Required value]"
        );
        let details = status.details.unwrap();
        assert_eq!(details.causes[0].reason, "FieldValueInvalid");
        assert_eq!(
            details.causes[0].message,
            "Invalid value: -1: must be positive"
        );
    }
}
