//! Connections to what runs on a node: log, exec, attach, port-forward and the proxies.
//!
//! Each is a request to the node's kubelet, or to a pod's own address, that is passed through. What is decided here is
//! only where it goes.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use apimachinery::field::{self, Path};
use apimachinery::object;
use apimachinery::resource::GroupKind;
use apimachinery::status::{Result, Status};
use http::header::{HOST, HeaderValue, LOCATION};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use rand::Rng;
use serde_json::Value;

use super::rewrite::Place;
use super::websocket::is_websocket;
use super::{Exchange, text};
use crate::admission::webhook::versions::connect_options;
use crate::authz::{self, Attributes};
use crate::body::{Body, Received, Reply};
use crate::kubelet::{Endpoint, Kind};
use crate::proxy::is_upgrade;
use crate::query::Query;
use crate::registry::table::Served;
use crate::registry::{Call, Target};
use crate::services::resolve::endpoints;
use crate::strategy::check::{Checks, NOT_NEGATIVE};

pub async fn handle(
    exchange: Exchange,
    served: Arc<Served>,
    request: Request<Received>,
) -> Result<Reply> {
    let info = &exchange.info;
    if info.subresource != "proxy" && info.parts.len() > 3 {
        return Err(Status::unknown_path());
    }
    match (info.subresource.as_str(), &exchange.method) {
        ("proxy", _) | ("log", &Method::GET) => {}
        ("exec" | "attach" | "portforward", &Method::GET | &Method::POST) => {}
        _ => return Err(Status::method_not_allowed()),
    }
    // A WebSocket opens with a GET: that may not be enough to run something in a container.
    if info.verb == "get" && matches!(&*info.subresource, "exec" | "attach" | "portforward") {
        let attributes = Attributes {
            verb: "create",
            ..Attributes::of(&exchange.user, info)
        };
        authz::require(&*exchange.server.authorizer, &attributes).await?;
    }
    admit(&exchange, &served).await?;
    match (served.resource.plural.as_ref(), info.subresource.as_str()) {
        ("pods", "log") => log(&exchange, request).await,
        ("pods", "exec" | "attach" | "portforward") => session(&exchange, request).await,
        (_, "proxy") => proxy(&exchange, &served, request).await,
        _ => Err(Status::unknown_path()),
    }
}

async fn admit(exchange: &Exchange, served: &Arc<Served>) -> Result<()> {
    let mut options = connect_options(exchange.query.iter());
    let mut call = Call::by(&exchange.user);
    let target = Target::new(served, &exchange.info.namespace, &exchange.info.name)
        .subresource(&exchange.info.subresource);
    exchange
        .server
        .registry
        .admit_connect(target, &mut call, &mut options)
        .await
}

async fn pod(exchange: &Exchange) -> Result<Value> {
    let info = &exchange.info;
    Ok(exchange
        .server
        .registry
        .get("", "pods", &info.namespace, &info.name)
        .await?
        .value())
}

/// The container asked for, or the only one.
fn container(pod: &Value, asked: &str) -> Result<String> {
    let names = |list: &str| -> Vec<String> {
        let all = pod["spec"][list].as_array().into_iter().flatten();
        all.filter_map(|c| c["name"].as_str())
            .map(ToOwned::to_owned)
            .collect()
    };
    let (containers, init) = (names("containers"), names("initContainers"));
    let pod = object::name(pod);
    if !asked.is_empty() {
        let known = containers.iter().chain(&init).any(|name| name == asked);
        let ephemeral = || {
            names("ephemeralContainers")
                .iter()
                .any(|name| name == asked)
        };
        return match known || ephemeral() {
            true => Ok(asked.to_owned()),
            false => Err(Status::bad_request(format!(
                "container {asked} is not valid for pod {pod}"
            ))),
        };
    }
    match containers.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Status::bad_request(format!(
            "a container name must be specified for pod {pod}"
        ))),
        several => {
            let mut why = format!(
                "a container name must be specified for pod {pod}, choose one of: [{}]",
                several.join(" ")
            );
            if !init.is_empty() {
                // A String takes every write.
                let _ = write!(why, " or one of the init containers: [{}]", init.join(" "));
            }
            Err(Status::bad_request(why))
        }
    }
}

async fn log(exchange: &Exchange, request: Request<Received>) -> Result<Reply> {
    let pod = pod(exchange).await?;
    let query = &exchange.query;
    check_log_options(query, object::name(&pod))?;
    let container = container(&pod, query.get("container").unwrap_or_default())?;
    let Some(node) = pod["spec"]["nodeName"]
        .as_str()
        .filter(|node| !node.is_empty())
    else {
        // Nothing has run yet, so there is nothing to read.
        return match is_websocket(request.headers()) {
            true => super::websocket::stream(request, Body::empty()),
            false => Ok(text(StatusCode::OK, Body::empty())),
        };
    };
    let mut passed = String::new();
    for name in [
        "follow",
        "previous",
        "timestamps",
        "sinceSeconds",
        "sinceTime",
        "tailLines",
        "limitBytes",
        "stream",
    ] {
        if let Some(value) = query.get(name) {
            append(&mut passed, name, value);
        }
    }
    let path = format!(
        "/containerLogs/{}/{}/{}",
        object::namespace(&pod),
        object::name(&pod),
        container
    );
    let answer = read_from_kubelet(exchange, node, &path, &passed).await?;
    let (parts, body) = answer.into_parts();
    if !matches!(parts.status.as_u16(), 200..=206) {
        return Err(refused_by_kubelet(exchange, parts.status, body).await);
    }
    if is_websocket(request.headers()) {
        return super::websocket::stream(request, Body::Proxied(body));
    }
    Ok(text(StatusCode::OK, Body::Proxied(body)))
}

fn check_log_options(query: &Query, pod: &str) -> Result<()> {
    let mut checks = Checks::default();
    let tail = query.integer("tailLines")?;
    if let Some(lines) = tail.filter(|lines| *lines < 0) {
        checks.invalid(&Path::new("tailLines"), lines, NOT_NEGATIVE);
    }
    if let Some(bytes) = query.integer("limitBytes")?.filter(|bytes| *bytes < 1) {
        checks.invalid(&Path::new("limitBytes"), bytes, "must be greater than 0");
    }
    match (query.integer("sinceSeconds")?, query.get("sinceTime")) {
        (Some(_), Some(_)) => {
            let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            checks.forbidden(&Path::new(""), why);
        }
        (Some(seconds), None) if seconds < 1 => {
            checks.invalid(
                &Path::new("sinceSeconds"),
                seconds,
                "must be greater than 0",
            );
        }
        _ => {}
    }
    let stream = query.get("stream").unwrap_or("All");
    let streams = ["All", "Stderr", "Stdout"];
    if !streams.contains(&stream) {
        checks.push(field::Error::not_supported(
            &Path::new("stream"),
            stream,
            &streams,
        ));
    } else if stream != "All" && tail.is_some() {
        let why = "`tailLines` and specific `stream` are mutually exclusive for now";
        checks.forbidden(&Path::new(""), why);
    }
    let errors = checks.done();
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(
        &GroupKind::new("", "PodLogOptions"),
        pod,
        errors,
    ))
}

/// What a kubelet says in plain text, as a Status.
async fn refused_by_kubelet(exchange: &Exchange, code: StatusCode, body: Incoming) -> Status {
    const MAX_REASON: usize = 50_000;
    let read = Limited::new(body, MAX_REASON).collect().await;
    let why = read.map_or_else(
        |_| code.to_string(),
        |read| String::from_utf8_lossy(&read.to_bytes()).trim().to_owned(),
    );
    match code {
        StatusCode::BAD_REQUEST => Status::bad_request(why),
        StatusCode::INTERNAL_SERVER_ERROR => Status::internal(why),
        StatusCode::NOT_FOUND => {
            let message = format!(
                "the server could not find the requested resource ( pods/log {})",
                exchange.info.name
            );
            Status::new(404, "NotFound", message).with_cause("UnexpectedServerResponse", why, "")
        }
        code => Status::new(code.as_u16(), "", why),
    }
}

async fn session(exchange: &Exchange, request: Request<Received>) -> Result<Reply> {
    let pod = pod(exchange).await?;
    let name = object::name(&pod);
    let Some(node) = pod["spec"]["nodeName"]
        .as_str()
        .filter(|node| !node.is_empty())
    else {
        return Err(Status::bad_request(format!(
            "pod {name} does not have a host assigned"
        )));
    };
    if !is_upgrade(request.headers()) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let query = &exchange.query;
    let namespace = object::namespace(&pod);
    let mut passed = String::new();
    let path = if exchange.info.subresource == "portforward" {
        query
            .all("ports")
            .for_each(|ports| append(&mut passed, "ports", ports));
        format!("/portForward/{namespace}/{name}")
    } else {
        let container = container(&pod, query.get("container").unwrap_or_default())?;
        streams(query, &exchange.info.subresource, &mut passed)?;
        format!(
            "/{}/{namespace}/{name}/{container}",
            exchange.info.subresource
        )
    };
    to_kubelet(exchange, node, &path, &passed, request).await
}

/// The streams and command of an exec or attach, under the names that kubelets know.
fn streams(query: &Query, subresource: &str, passed: &mut String) -> Result<()> {
    let mut any = false;
    // Kubernetes attaches output unless told otherwise; exec starts with nothing.
    let by_default = |name: &str| subresource == "attach" && name != "stdin" && name != "tty";
    for (name, theirs) in [
        ("stdin", "input"),
        ("stdout", "output"),
        ("stderr", "error"),
        ("tty", "tty"),
    ] {
        if query
            .optional_flag(name)
            .unwrap_or_else(|| by_default(name))
        {
            any |= name != "tty";
            append(passed, theirs, "1");
        }
    }
    if !any {
        return Err(Status::bad_request(
            "you must specify at least one of stdin, stdout, stderr",
        ));
    }
    let mut commands = query.all("command").peekable();
    if subresource == "exec" && commands.peek().is_none() {
        return Err(Status::bad_request(
            "you must specify at least 1 command for exec",
        ));
    }
    commands.for_each(|command| append(passed, "command", command));
    Ok(())
}

/// A plain GET, whatever the client's own request is.
async fn read_from_kubelet(
    exchange: &Exchange,
    node: &str,
    path: &str,
    query: &str,
) -> Result<Response<Incoming>> {
    let kubelets = &exchange.server.kubelets;
    let endpoint = kubelets.endpoint(&exchange.server.registry, node).await?;
    kubelets.get(&endpoint, &format!("{path}?{query}")).await
}

async fn to_kubelet(
    exchange: &Exchange,
    node: &str,
    path: &str,
    query: &str,
    request: Request<Received>,
) -> Result<Reply> {
    let kubelets = &exchange.server.kubelets;
    let endpoint = kubelets.endpoint(&exchange.server.registry, node).await?;
    let target = if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{query}")
    };
    kubelets
        .forward(&endpoint, &target, request, exchange.peer)
        .await
}

fn append(query: &mut String, name: &str, value: &str) {
    if !query.is_empty() {
        query.push('&');
    }
    query.push_str(name);
    query.push('=');
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                query.push(char::from(byte))
            }
            // A String takes every write.
            _ => drop(write!(query, "%{byte:02X}")),
        }
    }
}

/// `[scheme:]name[:port]`, as proxy paths name their ends.
#[derive(Debug, PartialEq)]
struct Named<'a> {
    tls: bool,
    name: &'a str,
    port: &'a str,
}

fn named(text: &str) -> Option<Named<'_>> {
    let parts: Vec<&str> = text.split(':').collect();
    let (scheme, name, port) = match *parts.as_slice() {
        [name] => ("", name, ""),
        [name, port] => ("", name, port),
        [scheme, name, port] => (scheme, name, port),
        _ => return None,
    };
    (matches!(scheme, "" | "http" | "https") && !name.is_empty()).then_some(Named {
        tls: scheme == "https",
        name,
        port,
    })
}

async fn proxy(exchange: &Exchange, served: &Served, request: Request<Received>) -> Result<Reply> {
    let info = &exchange.info;
    let path = info.proxy_path();
    if path.is_empty()
        && !is_upgrade(request.headers())
        && matches!(exchange.method, Method::GET | Method::HEAD)
    {
        return Ok(with_slash(request.uri()));
    }
    let invalid =
        || Status::bad_request(format!("invalid {} request {:?}", info.resource, info.name));
    let named = named(&info.name).ok_or_else(invalid)?;
    let endpoint = match served.resource.plural.as_ref() {
        "pods" => pod_endpoint(exchange, &named).await?,
        "services" => service_endpoint(exchange, &named).await?,
        _ => {
            let endpoint = exchange
                .server
                .kubelets
                .endpoint(&exchange.server.registry, named.name)
                .await?;
            let port = match named.port {
                "" => endpoint.address.port(),
                port => port.parse().map_err(|_| invalid())?,
            };
            if port == endpoint.address.port() {
                endpoint
            } else {
                // Another server on the node: the kubelets' certificate is none of its business.
                Endpoint {
                    kind: kind(named.tls),
                    address: SocketAddr::new(allowed(endpoint.address.ip())?, port),
                }
            }
        }
    };
    let target = target(request.uri(), &info.path, &path);
    let host = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok());
    let place = Place {
        prefix: info
            .path
            .strip_suffix(&*path)
            .unwrap_or(&info.path)
            .to_owned(),
        hosts: [
            host.unwrap_or_default().to_owned(),
            endpoint.address.to_string(),
        ],
    };
    let mut request = request;
    if let Ok(uri) = HeaderValue::from_str(&format!("{}{path}", place.prefix)) {
        request.headers_mut().insert("x-forwarded-uri", uri);
    }
    let response = exchange
        .server
        .kubelets
        .forward(&endpoint, &target, request, exchange.peer)
        .await?;
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => Ok(response),
        _ => Ok(place.rewrite(response).await),
    }
}

/// Addresses that a proxy may lead to: none of this machine's own or of its links, whatever a status says.
fn allowed(ip: IpAddr) -> Result<IpAddr> {
    let refused = match ip {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6
                    .to_ipv4_mapped()
                    .is_some_and(|v4| v4.is_loopback() || v4.is_link_local())
        }
    };
    match refused {
        true => Err(Status::bad_request("address not allowed")),
        false => Ok(ip),
    }
}

/// The rest of the path as it was sent, escapes included, with its query.
fn target(uri: &http::Uri, decoded: &str, path: &str) -> String {
    let raw = uri.path();
    let rest = match raw == decoded {
        true => path.to_owned(),
        false => raw
            .split_once("/proxy")
            .map_or_else(|| path.to_owned(), |(_, rest)| rest.to_owned()),
    };
    let rest = if rest.is_empty() {
        "/".to_owned()
    } else {
        rest
    };
    uri.query()
        .map_or_else(|| rest.clone(), |query| format!("{rest}?{query}"))
}

/// Relative links of a page only work below a path that ends with a slash.
fn with_slash(uri: &http::Uri) -> Reply {
    let mut location = format!("{}/", uri.path());
    if let Some(query) = uri.query() {
        location = format!("{location}?{query}");
    }
    let mut response = text(StatusCode::MOVED_PERMANENTLY, Body::empty());
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn kind(tls: bool) -> Kind {
    if tls { Kind::Tls } else { Kind::Plain }
}

async fn pod_endpoint(exchange: &Exchange, named: &Named<'_>) -> Result<Endpoint> {
    let registry = &exchange.server.registry;
    let pod = registry
        .get("", "pods", &exchange.info.namespace, named.name)
        .await?
        .value();
    let ip: Option<IpAddr> = pod["status"]["podIP"]
        .as_str()
        .and_then(|ip| ip.parse().ok());
    let Some(ip) = ip else {
        return Err(Status::bad_request("address not allowed"));
    };
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
    let port = match named.port {
        "" => ports
            .next()
            .and_then(|port| port["containerPort"].as_u64())
            .unwrap_or(80),
        name => match name.parse() {
            Ok(number) => number,
            Err(_) => ports
                .find(|port| port["name"] == name)
                .and_then(|port| port["containerPort"].as_u64())
                .ok_or_else(|| {
                    Status::service_unavailable(format!("no port {name:?} in pod {:?}", named.name))
                })?,
        },
    };
    let port =
        u16::try_from(port).map_err(|_| Status::bad_request(format!("invalid port {port}")))?;
    Ok(Endpoint {
        kind: kind(named.tls),
        address: SocketAddr::new(allowed(ip)?, port),
    })
}

async fn service_endpoint(exchange: &Exchange, named: &Named<'_>) -> Result<Endpoint> {
    let registry = &exchange.server.registry;
    let namespace = &exchange.info.namespace;
    let mut found = endpoints(registry, namespace, named.name, named.port).await?;
    let address = found.swap_remove(rand::rng().random_range(0..found.len()));
    allowed(address.ip())?;
    Ok(Endpoint {
        kind: kind(named.tls),
        address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn containers_are_found_or_asked_for() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&pod, "b").unwrap(), "b");
        assert_eq!(container(&pod, "i").unwrap(), "i");
        assert_eq!(
            container(&pod, "x").unwrap_err().message,
            "container x is not valid for pod p"
        );
        assert_eq!(
            container(&pod, "").unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(
            container(&json!({"spec": {"containers": [{"name": "a"}]}}), "").unwrap(),
            "a"
        );
    }

    #[test]
    fn streams_get_the_kubelets_names() {
        let mut passed = String::new();
        streams(
            &Query::parse("stdin=true&stdout=1&command=sh&command=-c+x&tty=0"),
            "exec",
            &mut passed,
        )
        .unwrap();
        assert_eq!(passed, "input=1&output=1&command=sh&command=-c%20x");
        assert!(streams(&Query::parse("command=x"), "exec", &mut String::new()).is_err());
        assert!(streams(&Query::parse("stdout=1"), "exec", &mut String::new()).is_err());
    }

    #[test]
    fn log_options() {
        let refused = |query: &str| check_log_options(&Query::parse(query), "p").unwrap_err();
        assert!(check_log_options(&Query::parse("tailLines=0&sinceSeconds=1"), "p").is_ok());
        for (query, field) in [
            ("tailLines=-1", "tailLines"),
            ("limitBytes=0", "limitBytes"),
            ("sinceSeconds=0", "sinceSeconds"),
            ("stream=x", "stream"),
        ] {
            let status = refused(query);
            assert_eq!(status.code, 422, "{query}");
            assert!(status.message.contains(field), "{}", status.message);
        }
        assert_eq!(
            refused("sinceSeconds=1&sinceTime=2020-01-01T00:00:00Z").code,
            422
        );
        assert_eq!(refused("stream=Stdout&tailLines=1").code, 422);
    }

    #[test]
    fn proxies_do_not_lead_back() {
        for (ip, want) in [
            ("10.0.0.1", true),
            ("2001:db8::1", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("0.0.0.0", false),
            ("::1", false),
            ("fe80::1", false),
            ("::ffff:127.0.0.1", false),
        ] {
            assert_eq!(allowed(ip.parse().unwrap()).is_ok(), want, "{ip}");
        }
    }

    #[test]
    fn proxied_names() {
        assert_eq!(
            named("https:web:443"),
            Some(Named {
                tls: true,
                name: "web",
                port: "443"
            })
        );
        assert_eq!(
            named("web"),
            Some(Named {
                tls: false,
                name: "web",
                port: ""
            })
        );
        assert_eq!(named("a:b:c:d"), None);
        assert_eq!(named("ftp:web:1"), None);
    }
}
