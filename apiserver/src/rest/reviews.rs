//! Objects that are answered instead of stored: access and token reviews, bindings.

use std::sync::Arc;

use apimachinery::status::{Result, Status};
use http::StatusCode;
use serde_json::{Value, json};

use super::Exchange;
use super::respond::document;
use crate::authn::{keys, token_api};
use crate::authz::review;
use crate::body::Reply;
use crate::negotiate::Accept;
use crate::registry::table::Served;
use crate::server::Server;

impl Server {
    /// Answers the create of something that is not stored.
    pub async fn answer_review(
        &self,
        exchange: &Exchange,
        served: &Arc<Served>,
        object: Value,
    ) -> Result<Reply> {
        let accept = Accept::read_plain(&exchange.headers, &exchange.query)?;
        let resource = &served.resource;
        let answer = match (&*resource.group, &*resource.plural) {
            ("authorization.k8s.io", plural) => {
                review::answer(
                    &*self.authorizer,
                    &exchange.user,
                    plural,
                    &exchange.info.namespace,
                    object,
                )
                .await?
            }
            ("authentication.k8s.io", "tokenreviews") => {
                token_api::review(&self.authenticator, object).await?
            }
            ("authentication.k8s.io", "selfsubjectreviews") => {
                token_api::who_am_i(&exchange.user, object)
            }
            ("", "bindings") => {
                super::subresources::bind(exchange, object).await?;
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
            }
            _ => return Err(Status::method_not_allowed()),
        };
        Ok(document(StatusCode::CREATED, &answer, accept))
    }

    /// The documents with which others check our tokens.
    pub fn token_keys(&self, path: &str) -> Option<Value> {
        let issuer = self.issuer.as_ref()?;
        Some(if path.contains("jwks") {
            keys::key_set(&issuer.keys)
        } else {
            keys::discovery(&issuer.issuer, &issuer.jwks_uri, &issuer.keys)
        })
    }
}
