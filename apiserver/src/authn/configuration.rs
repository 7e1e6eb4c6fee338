//! `--authentication-config`, and the flags that say the same: who may be asked for a user.

use std::path::Path;
use std::sync::{Arc, Weak};

use anyhow::{Context, Result, bail, ensure};
use jsonwebtoken::Algorithm;
use serde_json::Value;

use super::Anonymous;
use super::bootstrap_token::BootstrapTokens;
use super::legacy_token::LegacyTokens;
use super::oidc::{Issuer, Mapping, Oidc};
use super::service_account::ServiceAccounts;
use super::token_file::TokenFile;
use super::tokens::{Tokens, Verifier};
use super::webhook::Webhook;
use crate::config::Config;
use crate::outbound::{Client, roots, system_roots};
use crate::registry::Registry;
use crate::strategy::check::{flag, given, list, text};

/// Algorithms that an AuthenticationConfiguration allows: all that OpenID Connect has for signatures.
const ALGORITHMS: [Algorithm; 8] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// The configuration file, or what stands for it.
pub struct Structured {
    pub anonymous: Option<Anonymous>,
    issuers: Vec<(Issuer, Client)>,
}

/// All who know tokens, in Kubernetes' order.
pub fn tokens(
    config: &Config,
    structured: Structured,
    accounts: Option<ServiceAccounts>,
    audiences: &[String],
    registry: &Arc<Registry>,
) -> Result<Tokens> {
    let mut verifiers: Vec<Box<dyn Verifier>> = Vec::new();
    if let Some(path) = &config.token_auth_file {
        verifiers.push(Box::new(TokenFile::read(path, audiences.to_vec())?));
    }
    if let Some(accounts) = accounts {
        let legacy = LegacyTokens {
            keys: accounts.keys.clone(),
            audiences: audiences.to_vec(),
            registry: accounts.registry.clone(),
        };
        verifiers.push(Box::new(legacy));
        verifiers.push(Box::new(accounts));
    }
    if config.enable_bootstrap_token_auth {
        let registry: Weak<Registry> = Arc::downgrade(registry);
        verifiers.push(Box::new(BootstrapTokens {
            registry,
            audiences: audiences.to_vec(),
        }));
    }
    for (issuer, client) in structured.issuers {
        verifiers.push(Box::new(Oidc::new(issuer, client, audiences.to_vec())));
    }
    if let Some(path) = &config.authentication_token_webhook_config_file {
        verifiers.push(Box::new(Webhook::new(
            path,
            &config.authentication_token_webhook_version,
            config.authentication_token_webhook_cache_ttl,
            audiences.to_vec(),
        )?));
    }
    Ok(Tokens::new(verifiers))
}

/// Reads the file, or the `--oidc-*` flags.
pub fn structured(config: &Config) -> Result<Structured> {
    let Some(path) = &config.authentication_config else {
        let issuers = config
            .oidc_issuer_url
            .as_ref()
            .map(|url| from_flags(config, url));
        return Ok(Structured {
            anonymous: None,
            issuers: issuers.transpose()?.into_iter().collect(),
        });
    };
    ensure!(
        config.oidc_issuer_url.is_none(),
        "authentication-config file and oidc-* flags are mutually exclusive"
    );
    let content =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let document: Value =
        serde_saphyr::from_str(&content).with_context(|| format!("reading {}", path.display()))?;
    from_document(&document).with_context(|| format!("in {}", path.display()))
}

fn client(authority: Option<&Path>) -> Result<Client> {
    Ok(Client::new(match authority {
        Some(path) => crate::server::tls::roots(path)?,
        None => system_roots()?,
    }))
}

fn from_flags(config: &Config, url: &str) -> Result<(Issuer, Client)> {
    let audience = config.oidc_client_id.clone();
    let audience = audience.context("oidc-client-id must be set when oidc-issuer-url is")?;
    ensure!(
        url.starts_with("https://"),
        "oidc-issuer-url {url:?} is not an https URL"
    );
    let prefix = match (
        config.oidc_username_prefix.as_deref(),
        config.oidc_username_claim.as_str(),
    ) {
        (Some("-"), _) | (None, "email") => String::new(),
        (Some(prefix), _) => prefix.to_owned(),
        // Two issuers' users of one name are two users.
        (None, _) => format!("{url}#"),
    };
    let mut issuer = Issuer {
        url: url.to_owned(),
        audiences: vec![audience],
        username: Mapping {
            claim: config.oidc_username_claim.clone(),
            prefix,
        },
        groups: config.oidc_groups_claim.clone().map(|claim| Mapping {
            claim,
            prefix: config.oidc_groups_prefix.clone(),
        }),
        ..Issuer::default()
    };
    for pair in &config.oidc_required_claim {
        let (claim, value) = pair
            .split_once('=')
            .with_context(|| format!("oidc-required-claim {pair:?} is not key=value"))?;
        issuer.required.insert(claim.to_owned(), value.to_owned());
    }
    for name in &config.oidc_signing_algs {
        let algorithm = ALGORITHMS
            .into_iter()
            .find(|known| format!("{known:?}") == *name);
        issuer.algorithms.push(
            algorithm
                .with_context(|| format!("oidc-signing-algs: unsupported algorithm {name:?}"))?,
        );
    }
    Ok((issuer, client(config.oidc_ca_file.as_deref())?))
}

fn from_document(document: &Value) -> Result<Structured> {
    let version = text(document, "apiVersion");
    ensure!(
        text(document, "kind") == "AuthenticationConfiguration"
            && version.starts_with("apiserver.config.k8s.io/v1"),
        "not an AuthenticationConfiguration of apiserver.config.k8s.io"
    );
    let mut issuers: Vec<(Issuer, Client)> = Vec::new();
    for (i, jwt) in list(document, "jwt").iter().enumerate() {
        let read = from_jwt(jwt).with_context(|| format!("jwt[{i}]"))?;
        ensure!(
            !issuers.iter().any(|(known, _)| known.url == read.0.url),
            "jwt[{i}].issuer.url: duplicate value: {:?}",
            read.0.url
        );
        issuers.push(read);
    }
    Ok(Structured {
        anonymous: given(document, "anonymous").map(anonymous),
        issuers,
    })
}

fn anonymous(value: &Value) -> Anonymous {
    let paths: Vec<String> = list(value, "conditions")
        .iter()
        .map(|condition| text(condition, "path").to_owned())
        .collect();
    match (flag(value, "enabled"), paths.is_empty()) {
        (false, _) => Anonymous::Nowhere,
        (true, true) => Anonymous::Everywhere,
        (true, false) => Anonymous::Paths(paths),
    }
}

fn from_jwt(jwt: &Value) -> Result<(Issuer, Client)> {
    let described = &jwt["issuer"];
    let url = text(described, "url").to_owned();
    ensure!(
        url.starts_with("https://"),
        "issuer.url {url:?} is not an https URL"
    );
    let audiences: Vec<String> = list(described, "audiences")
        .iter()
        .filter_map(|audience| audience.as_str().map(str::to_owned))
        .collect();
    ensure!(
        !audiences.is_empty(),
        "issuer.audiences: at least one is required"
    );
    let mappings = &jwt["claimMappings"];
    let username = mapping(&mappings["username"], "claimMappings.username")?;
    let mut issuer = Issuer {
        url,
        discovery_url: text(described, "discoveryURL").to_owned(),
        audiences,
        username: username.context("claimMappings.username: required")?,
        groups: mapping(&mappings["groups"], "claimMappings.groups")?,
        uid: mapping(&mappings["uid"], "claimMappings.uid")?.map(|uid| uid.claim),
        algorithms: ALGORITHMS.to_vec(),
        ..Issuer::default()
    };
    for rule in list(jwt, "claimValidationRules") {
        refuse_expression(rule, "claimValidationRules")?;
        let (claim, value) = (text(rule, "claim"), text(rule, "requiredValue"));
        ensure!(!claim.is_empty(), "claimValidationRules: claim is required");
        issuer.required.insert(claim.to_owned(), value.to_owned());
    }
    for (object, field) in [(jwt, "userValidationRules"), (mappings, "extra")] {
        if !list(object, field).is_empty() {
            bail!("{field}: CEL expressions are not supported");
        }
    }
    let client = match text(described, "certificateAuthority") {
        "" => client(None)?,
        pem => Client::new(roots(pem.as_bytes()).context("issuer.certificateAuthority")?),
    };
    Ok((issuer, client))
}

fn mapping(value: &Value, at: &str) -> Result<Option<Mapping>> {
    if value.is_null() {
        return Ok(None);
    }
    refuse_expression(value, at)?;
    let claim = text(value, "claim");
    Ok((!claim.is_empty()).then(|| Mapping {
        claim: claim.to_owned(),
        prefix: text(value, "prefix").to_owned(),
    }))
}

/// Leaving one out silently would let in who should stay out.
fn refuse_expression(value: &Value, at: &str) -> Result<()> {
    if !text(value, "expression").is_empty() {
        bail!("{at}: CEL expressions are not supported");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document(change: fn(&mut Value)) -> Result<Structured> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut document = json!({
            "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
            "anonymous": {"enabled": true, "conditions": [{"path": "/livez"}]},
            "jwt": [{
                "issuer": {"url": "https://issuer.example.com", "audiences": ["me"]},
                "claimMappings": {"username": {"claim": "sub", "prefix": "x:"}, "groups": {"claim": "groups", "prefix": ""}},
                "claimValidationRules": [{"claim": "hd", "requiredValue": "example.com"}],
            }],
        });
        change(&mut document);
        from_document(&document)
    }

    #[test]
    fn files_are_read() {
        let read = document(|_| {}).unwrap();
        assert_eq!(
            read.anonymous,
            Some(Anonymous::Paths(vec!["/livez".into()]))
        );
        let (issuer, _) = &read.issuers[0];
        assert_eq!(issuer.username.prefix, "x:");
        assert_eq!(issuer.required["hd"], "example.com");
        assert_eq!(
            document(|d| d["anonymous"]["enabled"] = false.into())
                .unwrap()
                .anonymous,
            Some(Anonymous::Nowhere)
        );
        let bad: [fn(&mut Value); 5] = [
            |d| d["kind"] = "Other".into(),
            |d| d["jwt"][0]["issuer"]["url"] = "http://x".into(),
            |d| d["jwt"][0]["issuer"]["audiences"] = json!([]),
            |d| d["jwt"][0]["claimMappings"]["username"] = json!({"expression": "claims.sub"}),
            |d| d["jwt"][0]["userValidationRules"] = json!([{"expression": "true"}]),
        ];
        for change in bad {
            assert!(document(change).is_err());
        }
    }
}
