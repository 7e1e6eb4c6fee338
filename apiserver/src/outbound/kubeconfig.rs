//! The client of a server that a kubeconfig file names, as Kubernetes configures its webhooks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use http::header::HeaderValue;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

use super::dial::Dialer;
use super::{Client, Protocols, pool, roots, system_roots};
use crate::server::tls;
use crate::strategy::check::{flag, list, text};

/// What goes along with every request.
pub(super) enum Credentials {
    None,
    Header(HeaderValue),
    /// Read again with every call: somebody renews it.
    TokenFile(PathBuf),
}

impl Credentials {
    pub(super) fn header(&self) -> Result<Option<HeaderValue>, String> {
        let token = |text: &str| HeaderValue::from_str(&format!("Bearer {}", text.trim()));
        match self {
            Self::None => Ok(None),
            Self::Header(value) => Ok(Some(value.clone())),
            Self::TokenFile(path) => {
                let read = std::fs::read_to_string(path)
                    .map_err(|error| format!("{}: {error}", path.display()))?;
                token(&read).map(Some).map_err(|error| error.to_string())
            }
        }
    }
}

impl Client {
    /// From a kubeconfig file: the current context says where and as whom.
    pub fn from_kubeconfig(path: &Path) -> Result<Self> {
        let content =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let document: Value = serde_saphyr::from_str(&content)
            .with_context(|| format!("reading {}", path.display()))?;
        let directory = path.parent().unwrap_or(Path::new("."));
        Self::from_document(&document, directory).with_context(|| format!("in {}", path.display()))
    }

    fn from_document(document: &Value, directory: &Path) -> Result<Self> {
        let named = |section: &str, name: &str| {
            list(document, section)
                .iter()
                .find(|entry| text(entry, "name") == name)
        };
        let context = match text(document, "current-context") {
            "" => list(document, "contexts").first(),
            name => named("contexts", name),
        };
        let context = context.context("no current context")?;
        let cluster = named("clusters", text(&context["context"], "cluster"))
            .context("the context's cluster is missing")?;
        let cluster = &cluster["cluster"];
        let nobody = Value::Null;
        let user =
            named("users", text(&context["context"], "user")).map_or(&nobody, |user| &user["user"]);
        let base: Uri = text(cluster, "server").parse().context("server")?;
        if base.authority().is_none() || base.scheme().is_none() {
            bail!("server {:?} is no URL", text(cluster, "server"));
        }
        let builder = ClientConfig::builder();
        let authority = material(cluster, "certificate-authority", directory)?;
        let builder = if flag(cluster, "insecure-skip-tls-verify") {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(tls::Unverified::default()))
        } else {
            builder.with_root_certificates(match authority {
                Some(pem) => roots(&pem)?,
                None => system_roots()?,
            })
        };
        let certificate = material(user, "client-certificate", directory)?;
        let key = material(user, "client-key", directory)?;
        let config = match (certificate, key) {
            (Some(certificate), Some(key)) => builder.with_client_auth_cert(
                CertificateDer::pem_slice_iter(&certificate).collect::<Result<_, _>>()?,
                PrivateKeyDer::from_pem_slice(&key)?,
            )?,
            _ => builder.with_no_client_auth(),
        };
        let server_name = Some(text(cluster, "tls-server-name"))
            .filter(|name| !name.is_empty())
            .map(str::to_owned);
        Ok(Self {
            pool: pool(config, server_name, Dialer::default(), Protocols::All),
            base: Some(base),
            credentials: credentials(user, directory)?,
        })
    }
}

/// A field's `-data` in base64, or the file that it names, relative to the kubeconfig's own place.
fn material(object: &Value, field: &str, directory: &Path) -> Result<Option<Vec<u8>>> {
    let data = text(object, &format!("{field}-data"));
    if !data.is_empty() {
        return Ok(Some(
            STANDARD
                .decode(data)
                .with_context(|| format!("{field}-data"))?,
        ));
    }
    match text(object, field) {
        "" => Ok(None),
        file => {
            let path = directory.join(file);
            let read = std::fs::read(&path);
            Ok(Some(
                read.with_context(|| format!("reading {}", path.display()))?,
            ))
        }
    }
}

fn credentials(user: &Value, directory: &Path) -> Result<Credentials> {
    let file = text(user, "tokenFile");
    if !file.is_empty() {
        return Ok(Credentials::TokenFile(directory.join(file)));
    }
    let token = text(user, "token");
    if !token.is_empty() {
        return Ok(Credentials::Header(format!("Bearer {token}").parse()?));
    }
    let name = text(user, "username");
    if name.is_empty() {
        return Ok(Credentials::None);
    }
    let pair = STANDARD.encode(format!("{name}:{}", text(user, "password")));
    Ok(Credentials::Header(format!("Basic {pair}").parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kubeconfigs_say_where_and_as_whom() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let document = json!({
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": "https://hook.example.com/review", "insecure-skip-tls-verify": true}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        });
        let client = Client::from_document(&document, Path::new(".")).unwrap();
        assert_eq!(client.base.as_ref().unwrap().path(), "/review");
        assert_eq!(client.credentials.header().unwrap().unwrap(), "Bearer t");
        for (pointer, bad) in [
            ("/current-context", json!("other")),
            ("/clusters/0/name", json!("other")),
            ("/clusters/0/cluster/server", json!("nonsense")),
        ] {
            let mut document = document.clone();
            *document.pointer_mut(pointer).unwrap() = bad;
            assert!(
                Client::from_document(&document, Path::new(".")).is_err(),
                "{pointer}"
            );
        }
    }
}
