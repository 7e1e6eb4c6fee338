//! Paths that are no resources: health, version, metrics, discovery, OpenAPI, token keys.

use std::sync::Arc;

use apimachinery::status::{Result, Status};
use futures::StreamExt;
use http::header::{CACHE_CONTROL, HeaderValue};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::Server;
use crate::body::Reply;
use crate::negotiate::Accept;
use crate::rest::respond::{document, reply};
use crate::rest::{Exchange, text};

impl Server {
    /// Answers everything outside `/api/v1/...` and `/apis/GROUP/VERSION/...`.
    pub async fn fixed(self: Arc<Self>, exchange: &Exchange) -> Result<Reply> {
        if !matches!(exchange.method, Method::GET | Method::HEAD) {
            return Err(Status::method_not_allowed());
        }
        let path = exchange.info.path.as_str();
        if let Some(reply) = self.health.answer(path, &exchange.query).await {
            return Ok(reply);
        }
        let json = |value: &Value| {
            Ok(document(
                StatusCode::OK,
                value,
                Accept::read(&exchange.headers, &exchange.query)?,
            ))
        };
        match path.trim_end_matches('/') {
            "/version" => json(&version()),
            crate::store::command::PATH => Ok(self.backup()),
            "/metrics" => {
                let mut metrics = self.metrics.render();
                self.flow_control.render(&mut metrics);
                Ok(text(StatusCode::OK, metrics))
            }
            "/.well-known/openid-configuration" | "/openid/v1/jwks" => {
                let value = self.token_keys(path).ok_or_else(Status::unknown_path)?;
                Ok(published(path, &value))
            }
            path => {
                // Whoever has just defined a kind finds it, whichever server they asked.
                self.definitions.caught_up().await?;
                let answer = if path.starts_with("/openapi") {
                    self.openapi.answer(&self.registry, exchange)
                } else {
                    self.discovery.answer(&self.registry, exchange)
                };
                answer.unwrap_or_else(|| Err(Status::unknown_path()))
            }
        }
    }
}

impl Server {
    /// Everything that is stored, as a file from which a store can be restored. It says itself whether it is whole.
    fn backup(&self) -> Reply {
        let pieces = storage::backup::stream(self.kept.clone());
        let pieces = pieces.filter_map(async |piece| match piece {
            Ok(piece) => Some(piece),
            Err(error) => {
                tracing::error!(%error, "a backup broke off");
                None
            }
        });
        let body = crate::body::Body::Stream(pieces.boxed());
        reply(StatusCode::OK, "application/octet-stream", body)
    }
}

/// The documents by which others check our tokens: the same for everybody, and worth keeping for a while.
fn published(path: &str, value: &Value) -> Reply {
    let media = match path.contains("jwks") {
        true => "application/jwk-set+json",
        false => "application/json",
    };
    let mut reply = reply(StatusCode::OK, media, value.to_string());
    reply.headers_mut().insert(
        CACHE_CONTROL,
        HeaderValue::from_static("public, max-age=3600"),
    );
    reply
}

/// What `/version` says: the Kubernetes version whose API this is.
#[must_use]
pub fn version() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": concat!("v1.36.2+skiff", ".", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": match std::env::consts::ARCH {
            "x86_64" => "linux/amd64",
            "aarch64" => "linux/arm64",
            other => other,
        },
    })
}
