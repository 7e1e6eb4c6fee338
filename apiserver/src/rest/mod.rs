//! From a request to an operation of the registry, and from its result to an answer.
//!
//! [`handle`] is the whole chain: read the request, who, may they, then [`objects`], [`subresources`] or one of
//! the fixed paths. Nothing here knows a kind.

pub mod apply;
pub mod components;
pub mod connect;
pub mod eviction;
pub mod objects;
pub mod patch;
mod protobuf;
pub mod respond;
pub mod reviews;
mod rewrite;
pub mod subresources;
pub mod watch;
pub mod websocket;

use std::sync::Arc;
use std::time::{Duration, Instant};

use apimachinery::status::{Result, Status};
use http::header::HeaderValue;
use http::{HeaderMap, Method, Request, StatusCode};

use crate::audit::Trail;
use crate::authn::UserInfo;
use crate::authn::impersonation::impersonate;
use crate::authn::x509::CertificateUser;
use crate::authz::{self, Attributes, Decision};
use crate::body::{Received, Reply};
use crate::flowcontrol::work;
use crate::negotiate::Accept;
use crate::query::Query;
use crate::registry::table::Served;
use crate::request::RequestInfo;
use crate::server::Server;
use crate::server::health::Health;

/// What is known about a connection: made once, used by all its requests.
#[derive(Debug, Default)]
pub struct Connection {
    pub certificate: Option<CertificateUser>,
    /// Shows a certificate that does not name a user here.
    pub stranger: bool,
    /// May say in headers who its requests are from.
    pub front_proxy: bool,
    pub peer: Option<std::net::SocketAddr>,
}

/// A request that may go on: everything about it but its body.
pub struct Exchange {
    pub server: Arc<Server>,
    pub info: Arc<RequestInfo>,
    pub query: Query,
    pub user: Arc<UserInfo>,
    pub method: Method,
    pub headers: HeaderMap,
    /// The other end of the connection.
    pub peer: Option<std::net::SocketAddr>,
}

/// How long a request that is not a watch, log or session may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Answers a request. Every failure is a Status document.
pub async fn handle(
    server: Arc<Server>,
    connection: Arc<Connection>,
    request: Request<Received>,
) -> Reply {
    let began = Instant::now();
    let is_head = request.method() == Method::HEAD;
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let accept = Accept::of_failure(request.headers());
    let info = match RequestInfo::parse(request.method(), request.uri().path(), &query) {
        Ok(info) => Arc::new(info),
        Err(status) => return respond::failure(&status, accept),
    };
    let trail = server
        .auditor
        .as_ref()
        .map(|auditor| Arc::new(auditor.follow(&request, &info, connection.peer)));
    let answering = Answering {
        server: &server,
        connection: &connection,
        info: &info,
        trail: trail.as_deref(),
    };
    let answered = answering.in_time(query, request);
    let answered = match &trail {
        Some(trail) => trail.recording(answered).await,
        None => answered.await,
    };
    let mut response = answered.unwrap_or_else(|status| respond::failure(&status, accept));
    if let Some(trail) = trail {
        response = trail.answered(response).await;
    }
    if is_head {
        *response.body_mut() = crate::body::Body::empty();
    }
    server
        .metrics
        .observe(&info, response.status().as_u16(), began.elapsed());
    response
}

/// A request that is being answered, and those around it.
struct Answering<'a> {
    server: &'a Arc<Server>,
    connection: &'a Connection,
    info: &'a Arc<RequestInfo>,
    trail: Option<&'a Trail>,
}

impl Answering<'_> {
    async fn in_time(&self, query: Query, request: Request<Received>) -> Result<Reply> {
        if self.info.is_long_running() {
            return self.answer(query, request).await;
        }
        let late = "request did not complete within the allotted timeout";
        tokio::time::timeout(TIMEOUT, self.answer(query, request))
            .await
            .unwrap_or_else(|_| Err(Status::timeout(late, 1)))
    }

    /// Who asks: 401 for those who cannot say.
    async fn user(&self, headers: &HeaderMap) -> Result<Arc<UserInfo>> {
        let authenticator = &self.server.authenticator;
        let user = authenticator
            .authenticate(headers, self.connection, &self.info.path)
            .await;
        if let (Some(trail), Some(auditor)) = (self.trail, &self.server.auditor) {
            match &user {
                Ok(user) => trail.identified(auditor, user, self.info).await,
                Err(_) => trail.refused(auditor, self.info),
            }
        }
        let user = user?;
        match impersonate(headers, &user, &*self.server.authorizer).await? {
            Some(other) => {
                if let Some(trail) = self.trail {
                    trail.impersonated(&other);
                }
                Ok(Arc::new(other))
            }
            None => Ok(user),
        }
    }

    /// Whether they may: 403 if not.
    async fn authorize(&self, user: &UserInfo) -> Result<()> {
        let attributes = Attributes::of(user, self.info);
        let decision = self.server.authorizer.authorize(&attributes).await;
        if let Some(trail) = self.trail {
            let (decided, reason) = match &decision {
                Decision::Allow(reason) => ("allow", reason),
                Decision::Deny(reason) | Decision::NoOpinion(reason) => ("forbid", reason),
            };
            trail.annotate("authorization.k8s.io/decision", decided);
            trail.annotate("authorization.k8s.io/reason", reason);
        }
        match decision {
            Decision::Allow(_) => Ok(()),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => {
                Err(authz::forbidden(&attributes, &reason))
            }
        }
    }

    async fn answer(&self, query: Query, request: Request<Received>) -> Result<Reply> {
        let (server, info) = (self.server, self.info);
        let user = self.user(request.headers()).await?;
        // What stays open for long cannot take its turn, but for a watch's beginning.
        if info.is_long_running() && info.verb != "watch" {
            return self.serve(user, query, request).await;
        }
        let width = || work::width(&server.registry, info, &query);
        let (classified, permit) = server.flow_control.turn(&user, info, width).await;
        let accept = Accept::of_failure(request.headers());
        let answered = match permit {
            Ok(_held) => self.serve(user, query, request).await,
            Err(refused) => Err(refused),
        };
        let mut reply = answered.unwrap_or_else(|status| respond::failure(&status, accept));
        classified.mark(reply.headers_mut());
        Ok(reply)
    }

    async fn serve(
        &self,
        user: Arc<UserInfo>,
        query: Query,
        request: Request<Received>,
    ) -> Result<Reply> {
        let (server, info) = (self.server, self.info);
        // As Kubernetes' --authorization-always-allow-paths: probes come before roles do.
        if info.is_resource || !Health::is_path(&info.path) {
            self.authorize(&user).await?;
        }
        let exchange = Exchange {
            server: server.clone(),
            query,
            user,
            method: request.method().clone(),
            headers: request.headers().clone(),
            peer: self.connection.peer,
            info: info.clone(),
        };
        if let Some(other) = server.aggregator.route(&exchange.info.path) {
            return Ok(Box::pin(crate::aggregation::serve(&exchange, &other, request)).await);
        }
        if exchange.info.is_resource {
            return route(exchange, request).await;
        }
        Box::pin(server.clone().fixed(&exchange)).await
    }
}

/// Resources: the kind is found by its path, then the verb decides.
async fn route(exchange: Exchange, request: Request<Received>) -> Result<Reply> {
    let info = &exchange.info;
    let registry = &exchange.server.registry;
    let find = || registry.find(&info.group, &info.version, &info.resource);
    let served = match find() {
        Some(served) => served,
        // Perhaps defined a moment ago, through another server.
        None if info.group.contains('.') => {
            exchange.server.definitions.caught_up().await?;
            find().ok_or_else(Status::unknown_path)?
        }
        None => return Err(Status::unknown_path()),
    };
    let deprecation = served.deprecation.clone();
    let mut response = dispatch(exchange, served, request).await?;
    respond::warn(&mut response, deprecation.as_slice());
    Ok(response)
}

async fn dispatch(
    exchange: Exchange,
    served: Arc<Served>,
    request: Request<Received>,
) -> Result<Reply> {
    let info = &exchange.info;
    let resource = &served.resource;
    let own_namespace = resource.plural == "namespaces" && resource.group.is_empty();
    if !resource.namespaced && !own_namespace && !info.namespace.is_empty() {
        return Err(Status::unknown_path());
    }
    if resource.namespaced && info.namespace.is_empty() && !matches!(&*info.verb, "list" | "watch")
    {
        return Err(match info.verb.as_str() {
            "create" | "deletecollection" => Status::method_not_allowed(),
            _ => Status::unknown_path(),
        });
    }
    if !info.subresource.is_empty() {
        return Box::pin(subresources::handle(exchange, served, request)).await;
    }
    let one = matches!(&*info.verb, "update" | "patch" | "delete");
    if (one && info.name.is_empty()) || (info.verb == "create" && !info.name.is_empty()) {
        return Err(Status::method_not_allowed());
    }
    if info.verb == "proxy" || info.parts.len() > 2 {
        return Err(Status::unknown_path());
    }
    // Those of a definition that is being deleted may still be changed, though discovery does not say so.
    let custom = served.storage.versions.is_some() && matches!(&*info.verb, "update" | "patch");
    if !custom && !resource.has_verb(&info.verb) {
        return Err(Status::method_not_allowed());
    }
    if resource.group == crate::node_metrics::GROUP {
        return Box::pin(crate::node_metrics::answer(&exchange, &served)).await;
    }
    if !resource.is_stored() && info.verb != "create" {
        return components::answer(&exchange, &served).await;
    }
    objects::handle(exchange, served, request).await
}

impl Exchange {
    /// The namespace of the object meant: a Namespace itself is in none.
    #[must_use]
    pub fn namespace(&self) -> &str {
        match (&*self.info.resource, &*self.info.group) {
            ("namespaces", "") => "",
            _ => &self.info.namespace,
        }
    }
}

/// A plain text answer, as the health checks give.
#[must_use]
pub fn text(code: StatusCode, body: impl Into<crate::body::Body>) -> Reply {
    let mut response = respond::reply(code, "text/plain; charset=utf-8", body);
    response.headers_mut().insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    response
}
