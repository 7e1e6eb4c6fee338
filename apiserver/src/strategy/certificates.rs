//! Certificate signing requests: who asks is written down by the server, approvals and certificates have their own
//! subresources.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{names, time};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::check::{Checks, given, integer, list, list_mut, same, text};
use super::{Context, NameRule, Strategy, common};

/// The strategy of `certificatesigningrequests`.
pub struct CertificateSigningRequest;

const APPROVAL: [&str; 2] = ["Approved", "Denied"];
const FINAL: [&str; 3] = ["Approved", "Denied", "Failed"];
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

impl Strategy for CertificateSigningRequest {
    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        object["status"] = json!({});
        let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
            return;
        };
        for field in ["username", "uid", "groups", "extra"] {
            spec.remove(field);
        }
        let Some(user) = context.user else {
            return;
        };
        let mut set = |field: &str, value: Value| {
            if !same(&value, &Value::Null) {
                spec.insert(field.to_owned(), value);
            }
        };
        set("username", user.name.as_str().into());
        set("uid", user.uid.as_str().into());
        set("groups", json!(user.groups));
        let extra: Map<String, Value> = user
            .extra
            .iter()
            .map(|(k, v)| (k.clone(), json!(v)))
            .collect();
        set("extra", extra.into());
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        common::copy(object, old, "spec");
        common::keep_status(context, object, old);
    }

    fn prepare_for_status_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        if context.subresource == "approval" {
            timestamps(object, old);
            let conditions = object["status"]["conditions"].take();
            common::keep_all_but_status(object, old);
            object["status"] = old["status"].clone();
            if !object["status"].is_object() {
                object["status"] = json!({});
            }
            object["status"]["conditions"] = conditions;
            if list(&object["status"], "conditions").is_empty()
                && let Some(status) = object["status"].as_object_mut()
            {
                status.remove("conditions");
            }
            return;
        }
        common::keep_all_but_status(object, old);
        for kind in APPROVAL {
            keep_conditions(object, old, kind);
        }
        timestamps(object, old);
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        request(&mut checks, object, &Value::Null);
        checks.done()
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        update(object, old, "")
    }

    fn validate_status_update(
        &self,
        context: &Context<'_>,
        object: &Value,
        old: &Value,
    ) -> ErrorList {
        update(object, old, context.subresource)
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }
}

fn of_kind<'a>(object: &'a Value, kind: &str) -> Vec<&'a Value> {
    let conditions = list(&object["status"], "conditions").iter();
    conditions.filter(|c| text(c, "type") == kind).collect()
}

/// Signers that send the whole status back may not touch the approval: what they send of it is ignored.
fn keep_conditions(object: &mut Value, old: &Value, kind: &str) {
    let kept: Vec<Value> = of_kind(old, kind).into_iter().cloned().collect();
    if of_kind(object, kind).len() != kept.len() {
        return;
    }
    let Some(status) = object.get_mut("status") else {
        return;
    };
    let found = list_mut(status, "conditions").filter(|c| text(c, "type") == kind);
    for (condition, kept) in found.zip(kept) {
        *condition = kept;
    }
}

fn timestamps(object: &mut Value, old: &Value) {
    let now = time::format(jiff::Timestamp::now());
    let Some(status) = object.get_mut("status") else {
        return;
    };
    for condition in list_mut(status, "conditions").filter(|c| c.is_object()) {
        if condition["lastUpdateTime"].is_null() {
            condition["lastUpdateTime"] = now.as_str().into();
        }
        if condition["lastTransitionTime"].is_null() {
            let before = of_kind(old, text(condition, "type"));
            let same = before.iter().find(|c| c["status"] == condition["status"]);
            let at = same
                .map(|c| c["lastTransitionTime"].clone())
                .filter(|t| !t.is_null());
            condition["lastTransitionTime"] = at.unwrap_or_else(|| now.as_str().into());
        }
    }
}

fn decode(object: &Value, field: &str) -> Vec<u8> {
    STANDARD.decode(text(object, field)).unwrap_or_default()
}

/// What is wrong with a PKCS#10 request in PEM.
fn check_request(pem: &[u8]) -> Result<(), String> {
    let block = x509_parser::pem::Pem::iter_from_buffer(pem)
        .next()
        .and_then(Result::ok);
    let Some(block) = block.filter(|b| b.label == "CERTIFICATE REQUEST") else {
        return Err("PEM block type must be CERTIFICATE REQUEST".into());
    };
    let (_, request) = X509CertificationRequest::from_der(&block.contents)
        .map_err(|error| format!("asn1: structure error: {error}"))?;
    request
        .verify_signature()
        .map_err(|_| "x509: certificate signature does not verify".to_owned())
}

fn check_certificate(pem: &[u8]) -> Result<(), String> {
    if pem.is_empty() {
        return Ok(());
    }
    let mut blocks = 0;
    for block in x509_parser::pem::Pem::iter_from_buffer(pem) {
        let Ok(block) = block else {
            break;
        };
        if block.label != "CERTIFICATE" {
            return Err(format!(
                "only CERTIFICATE PEM blocks are allowed, found {:?}",
                block.label
            ));
        }
        blocks += 1;
        if let Err(error) = block.parse_x509() {
            return Err(format!("x509: malformed certificate: {error}"));
        }
    }
    if blocks == 0 {
        return Err("must contain at least one CERTIFICATE PEM block".into());
    }
    Ok(())
}

fn request(checks: &mut Checks, object: &Value, old: &Value) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    if let Err(why) = check_request(&decode(spec, "request")) {
        checks.invalid(&path.child("request"), spec["request"].clone(), &why);
    }
    let (usages, at) = (list(spec, "usages"), path.child("usages"));
    if usages.is_empty() {
        checks.required(&at, "");
    }
    // What is stored may stay.
    if !same(&spec["usages"], &old["spec"]["usages"]) {
        for (i, usage) in usages.iter().enumerate() {
            if !USAGES.contains(&usage.as_str().unwrap_or_default()) {
                checks.push(Error::not_supported(&at.index(i), usage.clone(), &USAGES));
            }
            if usages[..i].contains(usage) {
                checks.push(Error::duplicate(&at.index(i), usage.clone()));
            }
        }
    }
    signer_name(
        checks,
        text(spec, "signerName"),
        text(&old["spec"], "signerName"),
        &path.child("signerName"),
    );
    if let Some(seconds) = integer(spec, "expirationSeconds").filter(|s| *s < 600) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        checks.invalid(&path.child("expirationSeconds"), seconds, why);
    }
    let path = Path::new("status");
    conditions(
        checks,
        list(&object["status"], "conditions"),
        old,
        &path.child("conditions"),
    );
    let (new, before) = (
        &object["status"]["certificate"],
        &old["status"]["certificate"],
    );
    if new != before
        && let Err(why) = check_certificate(&decode(&object["status"], "certificate"))
    {
        checks.invalid(&path.child("certificate"), "<certificate data>", &why);
    }
}

/// `example.com/signer`
fn signer_name(checks: &mut Checks, name: &str, old: &str, path: &Path) {
    const LEGACY: &str = "kubernetes.io/legacy-unknown";
    if name == LEGACY && old != LEGACY {
        let why = "the legacy signerName is not allowed via this API version";
        checks.invalid(path, name, why);
        return;
    }
    if name.is_empty() {
        checks.required(path, "");
        return;
    }
    let parts: Vec<&str> = name.split('/').collect();
    let [domain, rest] = parts[..] else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        checks.invalid(path, name, why);
        return;
    };
    if domain.len() > 253 {
        checks.push(Error::too_long(path, 253));
    }
    labels(checks, domain, names::dns1123_label, path);
    if !domain.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        checks.invalid(path, domain, why);
    }
    labels(checks, rest, names::dns1123_subdomain, path);
    const LONGEST: usize = 253 + 253 + 63 + 2;
    if name.len() > LONGEST {
        checks.push(Error::too_long(path, LONGEST));
    }
}

fn labels(checks: &mut Checks, name: &str, check: fn(&str) -> Vec<String>, path: &Path) {
    let wrong = name
        .split('.')
        .map(|label| (label, check(label)))
        .find(|(_, w)| !w.is_empty());
    if let Some((label, wrong)) = wrong {
        for why in wrong {
            checks.invalid(path, name, &format!("validating label {label:?}: {why}"));
        }
    }
}

fn conditions(checks: &mut Checks, conditions: &[Value], old: &Value, path: &Path) {
    let both = APPROVAL.iter().all(|kind| !of_kind(old, kind).is_empty());
    for (i, condition) in conditions.iter().enumerate() {
        let (kind, status, at) = (
            text(condition, "type"),
            text(condition, "status"),
            path.index(i),
        );
        if kind.is_empty() {
            checks.required(&at.child("type"), "");
        }
        let allowed: &[&str] = if FINAL.contains(&kind) {
            &["True"]
        } else {
            &["False", "True", "Unknown"]
        };
        checks.one_of(&at.child("status"), status, allowed);
        let seen = |kind: &str| conditions[..i].iter().any(|c| text(c, "type") == kind);
        let excluded = match kind {
            "Approved" => seen("Denied"),
            "Denied" => seen("Approved"),
            _ => false,
        };
        if excluded && !both {
            checks.invalid(
                path,
                kind,
                "Approved and Denied conditions are mutually exclusive",
            );
        }
        if seen(kind) {
            checks.push(Error::duplicate(&at.child("type"), kind));
        }
    }
}

fn update(object: &Value, old: &Value, subresource: &str) -> ErrorList {
    let mut checks = Checks::default();
    request(&mut checks, object, old);
    let path = Path::new("status").child("conditions");
    for kind in FINAL {
        if of_kind(object, kind).len() < of_kind(old, kind).len() {
            let why = format!("updates may not remove a condition of type {kind:?}");
            checks.forbidden(&path, &why);
        }
    }
    for kind in APPROVAL.into_iter().filter(|_| subresource != "approval") {
        let (new, before) = (of_kind(object, kind), of_kind(old, kind));
        if new.len() > before.len() {
            let why = format!("updates may not add a condition of type {kind:?}");
            checks.forbidden(&path, &why);
        } else if new.len() == before.len() && !new.iter().zip(&before).all(|(n, b)| same(n, b)) {
            let why = format!("updates may not modify a condition of type {kind:?}");
            checks.forbidden(&path, &why);
        }
    }
    let path = Path::new("status").child("certificate");
    let certificate = |o: &Value| given(&o["status"], "certificate").cloned();
    if certificate(object) != certificate(old) {
        if subresource != "status" {
            checks.forbidden(&path, "updates may not set certificate content");
        } else if certificate(old).is_some() {
            checks.forbidden(&path, "updates may not modify existing certificate content");
        }
    }
    checks.done()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::tests::refusals;

    fn csr() -> Value {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        json!({"spec": {"request": STANDARD.encode(pem), "signerName": "example.com/signer", "usages": ["client auth"]}})
    }

    #[test]
    fn requests() {
        let good = csr();
        assert!(refusals("certificatesigningrequests", &good, None).is_empty());
        let with = |field: &str, value: Value| {
            let mut object = good.clone();
            object["spec"][field] = value;
            refusals("certificatesigningrequests", &object, None)
        };
        assert_eq!(
            with("usages", json!(["client auth", "client auth"])),
            ["spec.usages[1]: Duplicate value: \"client auth\""]
        );
        assert_eq!(
            with("signerName", json!("signer")),
            [
                "spec.signerName: Invalid value: \"signer\": must be a fully qualified domain and path of the form 'example.com/signer-name'"
            ]
        );
        assert_eq!(
            with("expirationSeconds", json!(60)),
            [
                "spec.expirationSeconds: Invalid value: 60: may not specify a duration less than 600 seconds (10 minutes)"
            ]
        );
        assert_eq!(
            with("request", json!("AAAA")),
            ["spec.request: Invalid value: \"AAAA\": PEM block type must be CERTIFICATE REQUEST"]
        );
    }

    #[test]
    fn approvals_have_their_own_door() {
        let old = csr();
        let mut approved = old.clone();
        approved["status"] = json!({"conditions": [{"type": "Approved", "status": "True"}]});
        let messages = |object: &Value, old: &Value, subresource: &str| -> Vec<String> {
            update(object, old, subresource)
                .iter()
                .map(|e| e.detail.clone())
                .collect()
        };
        assert!(messages(&approved, &old, "approval").is_empty());
        assert_eq!(
            messages(&approved, &old, "status"),
            ["updates may not add a condition of type \"Approved\""]
        );
        assert_eq!(
            messages(&old, &approved, "approval"),
            ["updates may not remove a condition of type \"Approved\""]
        );
        let mut both = approved.clone();
        both["status"]["conditions"] =
            json!([{"type": "Approved", "status": "True"}, {"type": "Denied", "status": "True"}]);
        assert_eq!(
            messages(&both, &approved, "approval"),
            ["Approved and Denied conditions are mutually exclusive"]
        );
        let mut stamped = approved.clone();
        timestamps(&mut stamped, &old);
        assert!(stamped["status"]["conditions"][0]["lastTransitionTime"].is_string());
    }
}
