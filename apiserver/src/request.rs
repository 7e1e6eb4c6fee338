//! What a request asks for, parsed once from its method and URL.
//!
//! Authorization, admission, routing, metrics and the audit trail all talk about the same request, so they
//! share one reading of it. The rules are Kubernetes' `RequestInfoFactory`: which paths name resources, how
//! `/watch/` prefixes, namespaces and subresources are told apart, and when a GET is a list or a watch.

use std::borrow::Cow;

use apimachinery::status::Status;
use http::Method;

use crate::query::Query;

/// One request in the API's own terms.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the path names an API resource (as opposed to `/version`, `/healthz`, discovery, ...).
    pub is_resource: bool,
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection` or `proxy` for
    /// resources; the lower-case HTTP method otherwise.
    pub verb: String,
    /// `api` or `apis`.
    pub prefix: String,
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    /// Empty for cluster-scoped requests and for requests over all namespaces.
    pub namespace: String,
    /// The plural, as in the path.
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// The path from the resource on: `[resource, name, subresource, rest...]`.
    pub parts: Vec<String>,
    pub field_selector: String,
    pub label_selector: String,
}

/// Path segments under a namespace that belong to the Namespace object itself.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

impl RequestInfo {
    /// Reads a request line. Fails only where Kubernetes cannot tell what is meant (`/api/v1/watch`).
    pub fn parse(method: &Method, path: &str, query: &Query) -> Result<Self, Status> {
        let mut info = Self {
            path: path.to_owned(),
            verb: method.as_str().to_ascii_lowercase(),
            ..Self::default()
        };
        let trimmed = path.trim_matches('/');
        let segments: Vec<Cow<'_, str>> = trimmed.split('/').map(percent_decode).collect();
        let mut parts = segments.as_slice();
        if parts.len() < 3 || !matches!(&*parts[0], "api" | "apis") {
            return Ok(info);
        }
        let prefix = parts[0].to_string();
        parts = &parts[1..];
        if prefix == "apis" {
            if parts.len() < 3 {
                info.prefix = prefix;
                return Ok(info);
            }
            info.group = parts[0].to_string();
            parts = &parts[1..];
        }
        info.prefix = prefix;
        info.is_resource = true;
        info.version = parts[0].to_string();
        parts = &parts[1..];

        let via_prefix = matches!(&*parts[0], "proxy" | "watch");
        if via_prefix {
            if parts.len() < 2 {
                return Err(Status::bad_request(format!(
                    "unable to determine kind and namespace from url, {path}"
                )));
            }
            info.verb = parts[0].to_string();
            parts = &parts[1..];
        } else {
            info.verb = verb_of(method).to_owned();
        }

        if parts[0] == "namespaces" && parts.len() > 1 {
            info.namespace = parts[1].to_string();
            if parts.len() > 2 && !NAMESPACE_SUBRESOURCES.contains(&&*parts[2]) {
                parts = &parts[2..];
            }
        }
        info.parts = parts.iter().map(ToString::to_string).collect();
        info.resource.clone_from(&info.parts[0]);
        if let Some(name) = info.parts.get(1) {
            info.name.clone_from(name);
        }
        if info.verb != "proxy"
            && let Some(subresource) = info.parts.get(2)
        {
            info.subresource.clone_from(subresource);
        }

        if info.name.is_empty() && info.verb == "get" {
            info.verb = if query.watch() { "watch" } else { "list" }.to_owned();
            if let Some(name) = query.get("fieldSelector").and_then(exact_name) {
                info.name = name;
            }
        }
        if info.name.is_empty() && info.verb == "delete" {
            info.verb = "deletecollection".to_owned();
        }
        if !via_prefix && matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") {
            info.field_selector = query.get("fieldSelector").unwrap_or_default().to_owned();
            info.label_selector = query.get("labelSelector").unwrap_or_default().to_owned();
        }
        Ok(info)
    }

    /// The path below the subresource, for proxies: `/a/b` of `.../proxy/a/b`, empty if there is none.
    #[must_use]
    pub fn proxy_path(&self) -> String {
        if self.parts.len() <= 3 {
            // A trailing slash asks for the backend's root, not for its parent.
            return if self.path.ends_with('/') {
                "/".into()
            } else {
                String::new()
            };
        }
        let mut path = String::new();
        for part in &self.parts[3..] {
            path.push('/');
            path.push_str(part);
        }
        if self.path.ends_with('/') {
            path.push('/');
        }
        path
    }

    /// Whether the request stays open for as long as its client likes (watches, logs, exec, proxies).
    #[must_use]
    pub fn is_long_running(&self) -> bool {
        matches!(self.verb.as_str(), "watch" | "proxy")
            || (self.is_resource
                && matches!(
                    self.subresource.as_str(),
                    "proxy" | "attach" | "exec" | "log" | "portforward"
                ))
    }
}

fn verb_of(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "GET" | "HEAD" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

/// The name in a field selector that requires `metadata.name=NAME` and could be a path segment.
fn exact_name(selector: &str) -> Option<String> {
    selector.split(',').find_map(|term| {
        let (field, value) = term.split_once('=')?;
        let value = value.strip_prefix('=').unwrap_or(value);
        let segment =
            !value.is_empty() && value != "." && value != ".." && !value.contains(['/', '%', '\\']);
        (field == "metadata.name" && segment).then(|| value.to_owned())
    })
}

/// Decodes `%XX`; what is not valid UTF-8 or not an escape stays as it is.
pub(crate) fn percent_decode(raw: &str) -> Cow<'_, str> {
    if !raw.contains('%') {
        return Cow::Borrowed(raw);
    }
    let bytes = raw.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let escaped = (bytes[i] == b'%')
            .then(|| bytes.get(i + 1..i + 3))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8(out).map_or(Cow::Borrowed(raw), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// method, URL -> verb, prefix, group, version, namespace, resource, subresource, name
    #[test]
    fn resource_requests() {
        #[rustfmt::skip]
        let table = [
            ("GET", "/api/v1/namespaces", "list", "api", "", "v1", "", "namespaces", "", ""),
            ("GET", "/api/v1/namespaces/other", "get", "api", "", "v1", "other", "namespaces", "", "other"),
            ("GET", "/api/v1/namespaces/other/pods", "list", "api", "", "v1", "other", "pods", "", ""),
            ("GET", "/api/v1/namespaces/other/pods/foo", "get", "api", "", "v1", "other", "pods", "", "foo"),
            ("HEAD", "/api/v1/namespaces/other/pods/foo", "get", "api", "", "v1", "other", "pods", "", "foo"),
            ("GET", "/api/v1/pods", "list", "api", "", "v1", "", "pods", "", ""),
            ("HEAD", "/api/v1/pods", "list", "api", "", "v1", "", "pods", "", ""),
            ("GET", "/api/v1/pods?watch=true", "watch", "api", "", "v1", "", "pods", "", ""),
            ("GET", "/api/v1/pods?watch=false", "list", "api", "", "v1", "", "pods", "", ""),
            ("GET", "/api/v1/pods?watch=bogus", "watch", "api", "", "v1", "", "pods", "", ""),
            ("GET", "/api/v1/proxy/namespaces/other/pods/foo", "proxy", "api", "", "v1", "other", "pods", "", "foo"),
            ("GET", "/api/v1/proxy/namespaces/other/pods/foo/sub/x", "proxy", "api", "", "v1", "other", "pods", "", "foo"),
            ("GET", "/api/v1/watch/pods", "watch", "api", "", "v1", "", "pods", "", ""),
            ("GET", "/api/v1/watch/namespaces/other/pods", "watch", "api", "", "v1", "other", "pods", "", ""),
            ("GET", "/api/v1/namespaces/other/pods/foo/status", "get", "api", "", "v1", "other", "pods", "status", "foo"),
            ("PUT", "/api/v1/namespaces/other/finalize", "update", "api", "", "v1", "other", "namespaces", "finalize", "other"),
            ("PUT", "/api/v1/namespaces/other/status", "update", "api", "", "v1", "other", "namespaces", "status", "other"),
            ("GET", "/api/v1/namespaces/default/pods/web/proxy/a/b", "get", "api", "", "v1", "default", "pods", "proxy", "web"),
            ("POST", "/apis/apps/v1/namespaces/x/deployments", "create", "apis", "apps", "v1", "x", "deployments", "", ""),
            ("PATCH", "/apis/apps/v1/namespaces/x/deployments/d/scale", "patch", "apis", "apps", "v1", "x", "deployments", "scale", "d"),
            ("DELETE", "/api/v1/namespaces/x/pods/p", "delete", "api", "", "v1", "x", "pods", "", "p"),
            ("DELETE", "/api/v1/namespaces/x/pods", "deletecollection", "api", "", "v1", "x", "pods", "", ""),
            ("DELETE", "/api/v1/namespaces/x", "delete", "api", "", "v1", "x", "namespaces", "", "x"),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dfoo", "list", "api", "", "v1", "", "pods", "", "foo"),
            ("GET", "/api/v1/pods?watch=1&fieldSelector=metadata.name==foo", "watch", "api", "", "v1", "", "pods", "", "foo"),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name!=foo", "list", "api", "", "v1", "", "pods", "", ""),
            ("OPTIONS", "/api/v1/pods", "", "api", "", "v1", "", "pods", "", ""),
            ("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode", "get", "apis",
             "rbac.authorization.k8s.io", "v1", "", "clusterroles", "", "system:node"),
        ];
        for (method, url, verb, prefix, group, version, namespace, resource, subresource, name) in
            table
        {
            let (path, query) = url.split_once('?').unwrap_or((url, ""));
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let info = RequestInfo::parse(&method, path, &Query::parse(query)).unwrap();
            assert!(info.is_resource, "{url}");
            let got = (
                &*info.verb,
                &*info.prefix,
                &*info.group,
                &*info.version,
                &*info.namespace,
                &*info.resource,
                &*info.subresource,
                &*info.name,
            );
            assert_eq!(
                got,
                (
                    verb,
                    prefix,
                    group,
                    version,
                    namespace,
                    resource,
                    subresource,
                    name
                ),
                "{method} {url}"
            );
        }
    }

    #[test]
    fn other_requests() {
        for path in [
            "/",
            "/version",
            "/healthz",
            "/livez/ping",
            "/api",
            "/api/v1",
            "/apis",
            "/apis/apps",
            "/apis/apps/v1",
            "/openapi/v3/apis/apps/v1",
            "//",
        ] {
            let info = RequestInfo::parse(&Method::GET, path, &Query::parse("")).unwrap();
            assert!(!info.is_resource, "{path}");
            assert_eq!(info.verb, "get");
        }
        assert!(RequestInfo::parse(&Method::GET, "/api/v1/watch", &Query::parse("")).is_err());
        assert!(RequestInfo::parse(&Method::GET, "/api/v1/proxy/", &Query::parse("")).is_err());
    }

    #[test]
    fn selectors_and_proxy_paths() {
        let query = Query::parse("labelSelector=a%3Db&fieldSelector=spec.nodeName%3Dn");
        let info = RequestInfo::parse(&Method::GET, "/api/v1/pods", &query).unwrap();
        assert_eq!(
            (&*info.label_selector, &*info.field_selector),
            ("a=b", "spec.nodeName=n")
        );
        for (path, expected) in [("", ""), ("/", "/"), ("/a/b", "/a/b"), ("/a/", "/a/")] {
            let path = format!("/api/v1/namespaces/d/services/s:80/proxy{path}");
            let info = RequestInfo::parse(&Method::GET, &path, &Query::default()).unwrap();
            assert_eq!(info.proxy_path(), expected, "{path}");
            assert!(info.is_long_running());
        }
    }
}
