//! Webhooks that objects configure: a URL, or a Service whose endpoints are called directly. One client is kept for each
//! place and the certificates it is trusted by.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Method, StatusCode, Uri};
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use super::dial::Dialer;
use super::{Client, Protocols, ServicePort, Unanswered, system_roots};
use crate::registry::Registry;
use crate::strategy::check::{integer, text};

/// Clients that are kept; configurations come and go.
const KEPT: usize = 64;

/// Where a webhook is, from its `clientConfig`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Scheme, host, port and path.
    url: String,
    service: Option<ServicePort>,
    authorities: String,
}

impl Place {
    #[must_use]
    pub fn read(config: &Value) -> Self {
        let authorities = text(config, "caBundle").to_owned();
        let Some(service) = config.get("service").filter(|service| service.is_object()) else {
            return Self {
                url: text(config, "url").to_owned(),
                service: None,
                authorities,
            };
        };
        let path = text(service, "path").trim_start_matches('/');
        let port = integer(service, "port").and_then(|port| u16::try_from(port).ok());
        let service = ServicePort {
            namespace: text(service, "namespace").to_owned(),
            name: text(service, "name").to_owned(),
            port: port.unwrap_or(443),
        };
        Self {
            url: format!(
                "https://{}.{}.svc:{}/{path}",
                service.name, service.namespace, service.port
            ),
            service: Some(service),
            authorities,
        }
    }
}

/// A Service, if it is one, and the authorities by which it is known.
type Trusted = (Option<ServicePort>, String);

/// All clients.
#[derive(Default)]
pub struct Clients {
    kept: Mutex<HashMap<Trusted, Arc<Client>>>,
}

impl Clients {
    /// Posts a document and reads the answer. The error is what follows `failed to call webhook: `.
    pub async fn post(
        &self,
        registry: &Weak<Registry>,
        place: &Place,
        document: &Value,
        timeout: Duration,
    ) -> Result<Value, String> {
        let url = format!("{}?timeout={}s", place.url, timeout.as_secs());
        let failed = |why: &str| format!("Post {url:?}: {why}");
        let uri: Uri = url.parse().map_err(|error| failed(&format!("{error}")))?;
        let client = self.client(registry, place).map_err(|why| failed(&why))?;
        let body = serde_json::to_vec(document).map_err(|error| error.to_string())?;
        let exchanged = client.exchange(Method::POST, uri, body.into(), timeout);
        match exchanged.await {
            Ok((code, bytes)) => answer(code, &bytes),
            Err(Unanswered::Late) => Err(failed("context deadline exceeded")),
            Err(Unanswered::Broken(_, why)) => Err(failed(&why)),
        }
    }

    fn client(&self, registry: &Weak<Registry>, place: &Place) -> Result<Arc<Client>, String> {
        let key = (place.service.clone(), place.authorities.clone());
        let mut kept = self.kept.lock();
        if let Some(client) = kept.get(&key) {
            return Ok(client.clone());
        }
        let dialer = match &place.service {
            Some(service) => Dialer::to(service.clone(), registry.clone()),
            None => Dialer::default(),
        };
        let client = Arc::new(Client::dialing(
            trusted(&place.authorities)?,
            dialer,
            Protocols::Http1,
        ));
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(key, client.clone());
        Ok(client)
    }
}

/// The authorities of a `caBundle`; those of the system where there is none.
fn trusted(authorities: &str) -> Result<RootCertStore, String> {
    if authorities.is_empty() {
        return system_roots().map_err(|error| format!("{error:#}"));
    }
    let invalid =
        || "unable to load root certificates: unable to parse bytes as PEM block".to_owned();
    let pem = STANDARD.decode(authorities).map_err(|_| invalid())?;
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_slice_iter(&pem).flatten();
    let (added, _) = roots.add_parsable_certificates(certificates);
    match added {
        0 => Err(invalid()),
        _ => Ok(roots),
    }
}

/// The document of an answer, or what a Kubernetes client says about its code.
fn answer(status: StatusCode, bytes: &[u8]) -> Result<Value, String> {
    if status.is_success() {
        return serde_json::from_slice(bytes)
            .map_err(|error| format!("couldn't get version/kind; json parse error: {error}"));
    }
    if let Ok(document) = serde_json::from_slice::<Value>(bytes)
        && document["kind"] == "Status"
    {
        return Err(text(&document, "message").to_owned());
    }
    Err(match status.as_u16() {
        404 => "the server could not find the requested resource".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        400 => "the server rejected our request for an unknown reason".to_owned(),
        code if code >= 500 => {
            let said = String::from_utf8_lossy(&bytes[..bytes.len().min(2048)]);
            let said = said.trim().replace('"', "'");
            format!("an error on the server (\"{said}\") has prevented the request from succeeding")
        }
        code => format!(
            "the server responded with the status code {code} but did not return more information"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn places() {
        let read = |config: Value| Place::read(&config).url;
        assert_eq!(read(json!({"url": "https://a/b"})), "https://a/b");
        let service = json!({"service": {"namespace": "n", "name": "s", "path": "convert"}});
        assert_eq!(read(service), "https://s.n.svc:443/convert");
        let service =
            json!({"service": {"namespace": "n", "name": "s", "path": "/x", "port": 8443}});
        assert_eq!(read(service), "https://s.n.svc:8443/x");
    }

    #[tokio::test]
    async fn failures_name_the_address() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let clients = Clients::default();
        let place = Place::read(&json!({"url": "https://127.0.0.1:1/x"}));
        let timeout = Duration::from_secs(30);
        let error = clients
            .post(&Weak::new(), &place, &json!({}), timeout)
            .await
            .unwrap_err();
        assert!(
            error.starts_with("Post \"https://127.0.0.1:1/x?timeout=30s\": dial tcp 127.0.0.1:1"),
            "{error}"
        );
    }

    #[test]
    fn answers_say_why_not() {
        let refused = |code: u16, body: &str| {
            answer(StatusCode::from_u16(code).unwrap(), body.as_bytes()).unwrap_err()
        };
        assert_eq!(refused(422, r#"{"kind": "Status", "message": "no"}"#), "no");
        assert!(refused(500, "oh \"no\"").contains("(\"oh 'no'\")"));
        assert!(refused(200, "x").starts_with("couldn't get version/kind"));
        assert_eq!(answer(StatusCode::OK, b"{}"), Ok(json!({})));
    }
}
