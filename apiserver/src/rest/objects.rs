//! The verbs on objects themselves: get, list, watch, create, update, patch, delete, deletecollection.

use std::borrow::Cow;
use std::sync::Arc;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::resource::{GroupKind, Resource};
use apimachinery::status::{Details, Result, Status};
use apimachinery::validation::field_manager;
use apimachinery::{object, status};
use http::{Request, StatusCode};
use serde_json::{Value, json};

use super::respond::{self, Presenter, document, warn};
use super::{Exchange, patch, watch};
use crate::body::{self, Received, Reply};
use crate::cache::Selection;
use crate::negotiate::{Accept, media, media_for};
use crate::registry::decode::{self, FieldValidation};
use crate::registry::delete::DeleteOptions;
use crate::registry::managed::manager_of_agent;
use crate::registry::read::{List, ListOptions, parse_version, resume};
use crate::registry::table::Served;
use crate::registry::{Call, Target};

/// The kinds whose delete answers with the object even when it is gone; the others answer with a Status.
fn answers_with_object(resource: &Resource) -> bool {
    match &*resource.group {
        "" => matches!(
            &*resource.plural,
            "namespaces"
                | "pods"
                | "persistentvolumes"
                | "persistentvolumeclaims"
                | "podtemplates"
                | "resourcequotas"
                | "serviceaccounts"
                | "services"
        ),
        "resource.k8s.io" => true,
        "storage.k8s.io" => resource.plural != "csistoragecapacities",
        _ => false,
    }
}

pub async fn handle(
    exchange: Exchange,
    served: Arc<Served>,
    request: Request<Received>,
) -> Result<Reply> {
    // Writes need room for much: each takes it when it comes, so that reads are not moved about with it.
    match exchange.info.verb.as_str() {
        "get" => get(&exchange, &served).await,
        "list" => list(&exchange, &served).await,
        "watch" => Box::pin(start_watch(&exchange, &served)).await,
        "create" => Box::pin(create(&exchange, &served, request.into_body())).await,
        "update" => Box::pin(update(&exchange, &served, request.into_body())).await,
        "patch" => Box::pin(patch::handle(&exchange, &served, request.into_body())).await,
        "delete" => Box::pin(delete(&exchange, &served, request.into_body())).await,
        "deletecollection" => {
            Box::pin(delete_collection(&exchange, &served, request.into_body())).await
        }
        _ => Err(Status::method_not_allowed()),
    }
}

impl Exchange {
    pub(super) fn target<'a>(&'a self, served: &'a Arc<Served>) -> Target<'a> {
        Target::new(served, self.namespace(), &self.info.name).subresource(&self.info.subresource)
    }

    pub(super) fn presenter<'a>(&'a self, served: &'a Served) -> Result<Presenter<'a>> {
        Ok(Presenter {
            served,
            accept: self.accept(served)?,
            query: &self.query,
            gzip: respond::takes_gzip(&self.headers),
        })
    }

    /// The manager of a write that names none.
    pub(super) fn manager(&self) -> String {
        let agent = self.headers.get(http::header::USER_AGENT);
        let agent = agent.and_then(|agent| agent.to_str().ok());
        manager_of_agent(agent.unwrap_or_default())
    }

    fn accept(&self, served: &Served) -> Result<Accept> {
        Accept::read_for(&self.headers, &self.query, served.message().is_some())
    }

    fn selection(&self, served: &Served) -> Result<Selection> {
        let (labels, fields) = ("labelSelector", "fieldSelector");
        let labels = self.query.get(labels).unwrap_or_default();
        let fields = self.query.get(fields).unwrap_or_default();
        let known = crate::fields::named(&served.resource.group, &served.storage.fields);
        let mut selection = Selection::parse(self.namespace(), labels, fields, &known)?;
        // `/watch/.../NAME` watches one object.
        if self.info.parts.len() > 1 {
            selection.name.clone_from(&self.info.name);
        }
        Ok(selection)
    }
}

async fn get(exchange: &Exchange, served: &Arc<Served>) -> Result<Reply> {
    let presenter = exchange.presenter(served)?;
    let version = parse_version(exchange.query.get("resourceVersion").unwrap_or_default())?;
    let object = exchange
        .server
        .registry
        .read(exchange.target(served), version)
        .await?;
    presenter.object(StatusCode::OK, &object)
}

async fn list(exchange: &Exchange, served: &Arc<Served>) -> Result<Reply> {
    let presenter = exchange.presenter(served)?;
    let options = ListOptions::parse(&exchange.query, false)?;
    let selection = exchange.selection(served)?;
    match exchange
        .server
        .registry
        .page(served, &selection, &options)
        .await
    {
        Ok(list) => presenter.list(&list),
        Err(error) if error.code == 410 && !options.continue_token.is_empty() => {
            let Some((message, token)) = resume(&options.continue_token) else {
                return Err(error);
            };
            let expired = Status::expired(message);
            let mut document = expired.to_value();
            document["metadata"]["continue"] = token.into();
            let accept = Accept::of_failure(&exchange.headers);
            Ok(respond::failure_document(&expired, &document, accept))
        }
        Err(error) => Err(error),
    }
}

async fn start_watch(exchange: &Exchange, served: &Arc<Served>) -> Result<Reply> {
    let accept = exchange.accept(served)?;
    let options = ListOptions::parse(&exchange.query, true)?;
    let selection = exchange.selection(served)?;
    let server = &exchange.server;
    let form = (accept, &exchange.query);
    Ok(watch::watch(
        &server.registry,
        served,
        selection,
        &options,
        form,
        server.shutdown.clone(),
    )
    .await)
}

/// The options of a write that are in its query, checked.
pub(super) struct WriteOptions {
    pub dry_run: bool,
    pub validation: FieldValidation,
    /// The name under which changed fields are owned.
    pub manager: String,
    /// As a document, for admission.
    pub document: Value,
}

impl WriteOptions {
    pub fn read(exchange: &Exchange, kind: &'static str) -> Result<Self> {
        let query = &exchange.query;
        let mut errors = ErrorList::new();
        let dry_run: Vec<&str> = query
            .all("dryRun")
            .filter(|value| !value.is_empty())
            .collect();
        for value in dry_run.iter().filter(|value| **value != "All") {
            errors
                .0
                .push(Error::not_supported(&Path::new("dryRun"), *value, &["All"]));
        }
        let validation = match query.get("fieldValidation") {
            None | Some("" | "Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some("Ignore") => FieldValidation::Ignore,
            Some(other) => {
                let path = Path::new("fieldValidation");
                errors.0.push(Error::not_supported(
                    &path,
                    other,
                    &["", "Ignore", "Strict", "Warn"],
                ));
                FieldValidation::Ignore
            }
        };
        let manager = query.get("fieldManager").unwrap_or_default();
        errors.append(field_manager(manager, &Path::new("fieldManager")));
        if !errors.is_empty() {
            return Err(Status::invalid(
                &GroupKind::new("meta.k8s.io", kind),
                "",
                errors,
            ));
        }
        let mut document = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        if !dry_run.is_empty() {
            document["dryRun"] = json!(["All"]);
        }
        if !manager.is_empty() {
            document["fieldManager"] = manager.into();
        }
        Ok(Self {
            dry_run: !dry_run.is_empty(),
            validation,
            manager: match manager {
                "" => exchange.manager(),
                manager => manager.to_owned(),
            },
            document,
        })
    }

    pub fn call<'a>(&'a self, exchange: &'a Exchange) -> Call<'a> {
        Call {
            user: &exchange.user,
            options: &self.document,
            dry_run: self.dry_run,
            manager: Cow::Borrowed(&self.manager),
            warnings: Vec::new(),
        }
    }
}

async fn create(exchange: &Exchange, served: &Arc<Served>, body: Received) -> Result<Reply> {
    let presenter = exchange.presenter(served)?;
    let options = WriteOptions::read(exchange, "CreateOptions")?;
    let media = media_for(&exchange.headers, served.message().is_some())?;
    let mut warnings = Vec::new();
    let body = body::read(body).await?;
    let object = decode::decode(
        &served.resource,
        &body,
        media,
        options.validation,
        &mut warnings,
    )?;
    drop(body);
    if !served.resource.is_stored() {
        return exchange
            .server
            .answer_review(exchange, served, object)
            .await;
    }
    let object = decode::complete(served, object);
    let mut call = options.call(exchange);
    let written = exchange
        .server
        .registry
        .create(exchange.target(served), object, &mut call)
        .await?;
    let mut response = presenter.object(StatusCode::CREATED, &written.object)?;
    warn(&mut response, &warnings);
    warn(&mut response, &call.warnings);
    Ok(response)
}

async fn update(exchange: &Exchange, served: &Arc<Served>, body: Received) -> Result<Reply> {
    let presenter = exchange.presenter(served)?;
    let options = WriteOptions::read(exchange, "UpdateOptions")?;
    let media = media_for(&exchange.headers, served.message().is_some())?;
    let mut warnings = Vec::new();
    let body = body::read(body).await?;
    let object = decode::decode(
        &served.resource,
        &body,
        media,
        options.validation,
        &mut warnings,
    )?;
    drop(body);
    let target = exchange.target(served);
    // Names are checked before anything is looked up: a body for another object is a mistake, not a miss.
    if object::name(&object).is_empty() {
        let why = "name must be provided";
        return Err(Status::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: {why}",
            target.name
        )));
    }
    let object = decode::complete(served, object);
    let mut call = options.call(exchange);
    let written = exchange
        .server
        .registry
        .replace(target, object, &mut call)
        .await?;
    let code = if written.created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let mut response = presenter.object(code, &written.object)?;
    warn(&mut response, &warnings);
    warn(&mut response, &call.warnings);
    Ok(response)
}

/// The options of a delete: its body, if it has one, else its query.
pub(super) async fn delete_options(
    exchange: &Exchange,
    body: Received,
) -> Result<(DeleteOptions, Value)> {
    let bytes = body::read(body).await?;
    if bytes.is_empty() {
        return Ok((
            DeleteOptions::read(None, &exchange.query)?,
            json!({"kind": "DeleteOptions", "apiVersion": "v1"}),
        ));
    }
    let media = media(&exchange.headers)?;
    let parsed = decode::parse(&bytes, media).map_err(Status::bad_request)?;
    let kind = parsed.value["kind"].as_str().unwrap_or("DeleteOptions");
    if !parsed.value.is_object() || kind != "DeleteOptions" {
        return Err(Status::bad_request(
            "decoded object cannot be converted to DeleteOptions",
        ));
    }
    let mut options = DeleteOptions::read(Some(&parsed.value), &exchange.query)?;
    options.dry_run |= exchange.query.all("dryRun").any(|value| value == "All");
    Ok((options, parsed.value))
}

async fn delete(exchange: &Exchange, served: &Arc<Served>, body: Received) -> Result<Reply> {
    let presenter = exchange.presenter(served)?;
    let (options, sent) = delete_options(exchange, body).await?;
    let mut call = Call {
        user: &exchange.user,
        options: &sent,
        dry_run: options.dry_run,
        manager: Cow::Owned(exchange.manager()),
        warnings: Vec::new(),
    };
    let target = exchange.target(served);
    let deleted = exchange
        .server
        .registry
        .delete(target, &mut call, &options)
        .await?;
    let mut response = if deleted.gone && !answers_with_object(&served.resource) {
        let details = Details {
            name: target.name.to_owned(),
            group: served.resource.group.to_string(),
            kind: served.resource.plural.to_string(),
            uid: object::uid(&deleted.object.value()).to_owned(),
            ..Details::default()
        };
        document(StatusCode::OK, &status::success(details), presenter.accept)
    } else {
        presenter.object(StatusCode::OK, &deleted.object)?
    };
    warn(&mut response, &call.warnings);
    Ok(response)
}

async fn delete_collection(
    exchange: &Exchange,
    served: &Arc<Served>,
    body: Received,
) -> Result<Reply> {
    let presenter = exchange.presenter(served)?;
    let selection = exchange.selection(served)?;
    let (options, sent) = delete_options(exchange, body).await?;
    let mut call = Call {
        user: &exchange.user,
        options: &sent,
        dry_run: options.dry_run,
        manager: Cow::Owned(exchange.manager()),
        warnings: Vec::new(),
    };
    let registry = &exchange.server.registry;
    let (revision, objects) = registry
        .delete_collection(exchange.target(served), &selection, &mut call, &options)
        .await?;
    presenter.list(&List {
        revision,
        objects,
        continue_token: None,
        remaining: None,
    })
}
