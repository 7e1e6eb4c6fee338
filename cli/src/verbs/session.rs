//! A connection to one API server, for the length of one command: requests, and errors as kubectl words them.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use futures::{AsyncBufRead, StreamExt, TryStreamExt, stream};
use http::{Method, Request, Response, header};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use tokio::sync::OnceCell;

use super::kinds::{Kind, Kinds};

/// Flags that every verb has.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Globals {
    /// Path to the kubeconfig file
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig context to use
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// The namespace of this request
    #[arg(long, short = 'n', global = true)]
    pub namespace: Option<String>,
}

/// An answer of the server that is no success: a `Status`, or a guess at one.
#[derive(Debug, Clone)]
pub struct ApiError {
    pub code: u16,
    pub reason: String,
    pub message: String,
    pub details: Value,
}

impl std::error::Error for ApiError {}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reason == "Invalid" {
            return self.invalid(f);
        }
        match self.reason.as_str() {
            "" => write!(f, "Error from server: {}", self.message),
            reason => write!(f, "Error from server ({reason}): {}", self.message),
        }
    }
}

impl ApiError {
    fn invalid(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, name) = (text(&self.details["kind"]), text(&self.details["name"]));
        let causes: Vec<String> = self.details["causes"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|cause| format!("{}: {}", text(&cause["field"]), text(&cause["message"])))
            .collect();
        match causes.as_slice() {
            [] => write!(f, "Error from server (Invalid): {}", self.message),
            [one] => write!(f, "The {kind} {name:?} is invalid: {one}"),
            many => {
                write!(f, "The {kind} {name:?} is invalid: ")?;
                many.iter().try_for_each(|cause| write!(f, "\n* {cause}"))
            }
        }
    }

    fn parse(code: u16, body: &[u8]) -> Self {
        let status: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
        let message = match text("message") {
            message if !message.is_empty() => message,
            _ => String::from_utf8_lossy(body).trim().to_owned(),
        };
        let message = if message.is_empty() {
            format!("the server answered with code {code}")
        } else {
            message
        };
        Self {
            code,
            reason: text("reason"),
            message,
            details: status["details"].clone(),
        }
    }
}

pub fn api_error(code: u16, body: &[u8]) -> anyhow::Error {
    ApiError::parse(code, body).into()
}

/// Ends the program with a code, after everything has been said.
#[derive(Debug)]
pub struct Exit(pub i32);

impl std::error::Error for Exit {}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command terminated with exit code {}", self.0)
    }
}

pub fn is_not_found(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<ApiError>()
        .is_some_and(|e| e.code == 404)
}

pub fn is_conflict(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<ApiError>()
        .is_some_and(|e| e.code == 409)
}

pub struct Session {
    pub client: kube::Client,
    pub namespace: String,
    /// Whether `--namespace` was given.
    pub namespace_given: bool,
    pub server: String,
    kinds: OnceCell<Kinds>,
}

/// The body of a request: content type and bytes.
pub type Payload = Option<(&'static str, Vec<u8>)>;

pub fn json_payload(value: &Value) -> Payload {
    Some(("application/json", value.to_string().into_bytes()))
}

impl Session {
    pub async fn connect(globals: &Globals) -> Result<Self> {
        let options = KubeConfigOptions {
            context: globals.context.clone(),
            ..KubeConfigOptions::default()
        };
        let mut config = match &globals.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).with_context(|| format!("kubeconfig {}", path.display()))?;
                Config::from_custom_kubeconfig(file, &options).await?
            }
            None if globals.context.is_some() => Config::from_kubeconfig(&options).await?,
            None => Config::infer().await.context(
                "no cluster is configured: give --kubeconfig, set KUBECONFIG, or make a cluster with `skiff cluster create`",
            )?,
        };
        // Following logs and shells may be silent for long.
        config.read_timeout = None;
        config.write_timeout = None;
        let namespace = globals
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let server = config
            .cluster_url
            .to_string()
            .trim_end_matches('/')
            .to_owned();
        let client = kube::Client::try_from(config)?;
        let namespace_given = globals.namespace.is_some();
        Ok(Self {
            client,
            namespace,
            namespace_given,
            server,
            kinds: OnceCell::new(),
        })
    }

    /// The same connection, without what discovery said before.
    pub fn again(&self) -> Self {
        Self {
            client: self.client.clone(),
            namespace: self.namespace.clone(),
            namespace_given: self.namespace_given,
            server: self.server.clone(),
            kinds: OnceCell::new(),
        }
    }

    /// What the server serves, asked for once.
    pub async fn kinds(&self) -> Result<&Kinds> {
        self.kinds.get_or_try_init(|| Kinds::discover(self)).await
    }

    pub async fn kind(&self, name: &str) -> Result<Kind> {
        let kinds = self.kinds().await?;
        kinds
            .find(name)
            .cloned()
            .ok_or_else(|| anyhow!("the server doesn't have a resource type {name:?}"))
    }

    /// Sends a request; anything but a success becomes an [`ApiError`].
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        payload: Payload,
    ) -> Result<Response<Body>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, accept);
        request = request.header(
            header::USER_AGENT,
            concat!("skiff/", env!("CARGO_PKG_VERSION")),
        );
        let body = match payload {
            Some((kind, bytes)) => {
                request = request.header(header::CONTENT_TYPE, kind);
                Body::from(bytes)
            }
            None => Body::empty(),
        };
        let request = request
            .body(body)
            .with_context(|| format!("request for {path}"))?;
        let response = self
            .client
            .send(request)
            .await
            .map_err(|error| self.unreachable(error))?;
        for warning in response.headers().get_all(header::WARNING) {
            // 299 - "text"
            let text = warning.to_str().unwrap_or_default();
            let text = text.splitn(3, ' ').nth(2).unwrap_or(text).trim_matches('"');
            eprintln!("Warning: {text}");
        }
        if response.status().is_success() || response.status().is_informational() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        Err(ApiError::parse(code, &body).into())
    }

    fn unreachable(&self, error: kube::Error) -> anyhow::Error {
        let (mut texts, mut refused) = (Vec::new(), false);
        let mut source: Option<&dyn std::error::Error> = Some(&error);
        while let Some(e) = source {
            let io = e.downcast_ref::<std::io::Error>();
            refused |= io.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused);
            texts.push(e.to_string());
            source = e.source();
        }
        let host = self.server.split("://").last().unwrap_or_default();
        match refused {
            true => anyhow!(
                "The connection to the server {host} was refused - did you specify the right host or port?"
            ),
            false => anyhow!(
                "Unable to connect to the server: {}",
                texts.last().cloned().unwrap_or_default()
            ),
        }
    }

    pub async fn json(&self, method: Method, path: &str, payload: Payload) -> Result<Value> {
        self.json_as(method, path, "application/json", payload)
            .await
    }

    pub async fn json_as(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        payload: Payload,
    ) -> Result<Value> {
        let response = self.send(method, path, accept, payload).await?;
        let bytes = response
            .into_body()
            .collect()
            .await
            .map_err(|e| anyhow!("the answer broke off: {e}"))?
            .to_bytes();
        serde_json::from_slice(&bytes).with_context(|| format!("the answer to {path} is no JSON"))
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        self.json(Method::GET, path, None).await
    }

    pub async fn text(&self, path: &str) -> Result<String> {
        let response = self.send(Method::GET, path, "*/*", None).await?;
        Ok(String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes()).into_owned())
    }

    /// The body of an answer as it comes in.
    pub async fn stream(
        &self,
        path: &str,
        accept: &str,
    ) -> Result<impl AsyncBufRead + Unpin + use<>> {
        let response = self.send(Method::GET, path, accept, None).await?;
        let body = response
            .into_body()
            .into_data_stream()
            .map_err(std::io::Error::other);
        Ok(Box::pin(body).into_async_read())
    }

    /// Events of a watch: type and object. Ends when the server ends it.
    pub async fn watch(
        &self,
        path: &str,
        accept: &str,
    ) -> Result<impl stream::Stream<Item = Result<(String, Value)>> + Unpin + use<>> {
        use futures::AsyncBufReadExt;
        let lines = self.stream(path, accept).await?.lines();
        Ok(Box::pin(lines.map(|line| {
            let mut event: Value =
                serde_json::from_str(&line.map_err(|e| anyhow!("the watch broke off: {e}"))?)?;
            let kind = event["type"].as_str().unwrap_or_default().to_owned();
            let object = event["object"].take();
            if kind == "ERROR" {
                let code = object["code"]
                    .as_u64()
                    .and_then(|c| u16::try_from(c).ok())
                    .unwrap_or(500);
                return Err(ApiError::parse(code, object.to_string().as_bytes()).into());
            }
            Ok((kind, object))
        })))
    }

    /// The whole list, page by page. `query` holds selectors.
    pub async fn list(&self, path: &str, query: &str, accept: &str) -> Result<Value> {
        let mut whole: Option<Value> = None;
        let mut next = String::new();
        loop {
            let page = format!("{path}?limit=500{query}{next}");
            let mut page = self.json_as(Method::GET, &page, accept, None).await?;
            let token = page["metadata"]["continue"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            next = format!("&continue={}", escape(&token));
            let field = if page["kind"] == "Table" {
                "rows"
            } else {
                "items"
            };
            match &mut whole {
                None => whole = Some(page),
                Some(whole) => {
                    if let (Some(all), Some(more)) =
                        (whole[field].as_array_mut(), page[field].as_array_mut())
                    {
                        all.append(more);
                    }
                }
            }
            if token.is_empty() {
                return Ok(whole.unwrap_or_default());
            }
        }
    }
}

/// Percent-encodes a value of a query.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(byte as char)
            }
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error(status: Value) -> String {
        ApiError::parse(422, status.to_string().as_bytes()).to_string()
    }

    #[test]
    fn errors_read_as_kubectls() {
        assert_eq!(
            error(
                json!({"kind": "Status", "reason": "NotFound", "message": "pods \"x\" not found"})
            ),
            "Error from server (NotFound): pods \"x\" not found"
        );
        let cause = |field: &str| json!({"field": field, "message": "Required value"});
        let invalid = |causes: Vec<Value>| {
            error(
                json!({"reason": "Invalid", "message": "m", "details": {"kind": "Pod", "name": "x", "causes": causes}}),
            )
        };
        assert_eq!(
            invalid(vec![cause("spec.a")]),
            "The Pod \"x\" is invalid: spec.a: Required value"
        );
        assert_eq!(
            invalid(vec![cause("a"), cause("b")]),
            "The Pod \"x\" is invalid: \n* a: Required value\n* b: Required value"
        );
        assert_eq!(
            ApiError::parse(502, b"bad gateway").to_string(),
            "Error from server: bad gateway"
        );
    }

    #[test]
    fn escaping() {
        assert_eq!(escape("a=b,c!=d"), "a%3Db%2Cc%21%3Dd");
    }
}
