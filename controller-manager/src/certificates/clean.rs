//! Deletes signing requests that are over: what was issued, denied or failed after an hour, what nobody has decided after
//! a day, and those whose certificates have expired.

use std::sync::Arc;
use std::time::Duration;

use client::{CancellationToken, Next};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::PropagationPolicy;
use x509_parser::pem::parse_x509_pem;

use super::is_issued;
use crate::frame::{Context, Result};

const DECIDED: SignedDuration = SignedDuration::from_hours(1);
const PENDING: SignedDuration = SignedDuration::from_hours(24);

/// How long a request stays yet; `None` if nothing ends it.
pub fn plan(request: &CertificateSigningRequest, now: Timestamp) -> Option<Duration> {
    let conditions = request
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let issued = is_issued(request);
    let mut ends: Vec<Timestamp> = Vec::new();
    let mut any = false;
    for condition in conditions {
        any = true;
        let keep = match condition.type_.as_str() {
            "Approved" if issued => DECIDED,
            "Approved" => PENDING,
            "Denied" | "Failed" => DECIDED,
            _ => continue,
        };
        let since = condition.last_update_time.as_ref();
        ends.extend(since.and_then(|since| since.0.checked_add(keep).ok()));
        if condition.type_ == "Approved" {
            ends.extend(expiry(request));
        }
    }
    if !any {
        let created = request.metadata.creation_timestamp.as_ref();
        ends.extend(created.and_then(|created| created.0.checked_add(PENDING).ok()));
    }
    let left = ends.into_iter().min()?.duration_since(now);
    Some(Duration::try_from(left).unwrap_or_default())
}

/// When the issued certificate ends.
fn expiry(request: &CertificateSigningRequest) -> Option<Timestamp> {
    let certificate = request.status.as_ref()?.certificate.as_ref()?;
    let (_, pem) = parse_x509_pem(&certificate.0).ok()?;
    let not_after = pem.parse_x509().ok()?.validity().not_after;
    Timestamp::from_second(not_after.timestamp()).ok()
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let context = &*context;
    super::each(context, 1, &token, |request| reconcile(context, request)).await;
}

async fn reconcile(context: &Context, request: Arc<CertificateSigningRequest>) -> Result<Next> {
    match plan(&request, Timestamp::now()) {
        None => {}
        Some(left) if !left.is_zero() => return Ok(Next::After(left)),
        Some(_) => {
            let requests = context.informers().signing_requests();
            requests
                .delete(&request, PropagationPolicy::Background)
                .await?;
        }
    }
    Ok(Next::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn when_requests_go() {
        let now = "2026-01-02T00:00:00Z".parse().unwrap();
        let condition =
            |kind: &str, at: &str| json!([{"type": kind, "status": "True", "lastUpdateTime": at}]);
        let expired = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::default();
            params.not_after = rcgen::date_time_ymd(2026, 1, 1);
            params.self_signed(&key).unwrap().pem()
        };
        for (created, conditions, certificate, wanted) in [
            (
                "2026-01-01T12:00:00Z",
                json!([]),
                String::new(),
                Some(12 * 3600),
            ),
            ("2026-01-01T00:00:00Z", json!([]), String::new(), Some(0)),
            (
                "2026-01-01T00:00:00Z",
                condition("Approved", "2026-01-01T23:30:00Z"),
                String::new(),
                Some(84_600),
            ),
            (
                "2026-01-01T00:00:00Z",
                condition("Approved", "2026-01-01T23:30:00Z"),
                "x".into(),
                Some(1800),
            ),
            (
                "2026-01-01T00:00:00Z",
                condition("Denied", "2026-01-01T22:30:00Z"),
                String::new(),
                Some(0),
            ),
            (
                "2026-01-01T00:00:00Z",
                condition("Failed", "2026-01-01T23:30:00Z"),
                String::new(),
                Some(1800),
            ),
            (
                "2026-01-01T00:00:00Z",
                condition("Approved", "2026-01-01T23:59:00Z"),
                expired(),
                Some(0),
            ),
            (
                "2026-01-01T00:00:00Z",
                condition("Other", "2026-01-01T22:30:00Z"),
                String::new(),
                None,
            ),
        ] {
            let mut request: CertificateSigningRequest = serde_json::from_value(json!({
                "metadata": {"creationTimestamp": created},
                "spec": {"signerName": "x/y", "request": ""},
                "status": {"conditions": conditions, "certificate": Value::Null},
            }))
            .unwrap();
            if !certificate.is_empty() {
                let bytes = k8s_openapi::ByteString(certificate.into_bytes());
                request.status.get_or_insert_default().certificate = Some(bytes);
            }
            let left = plan(&request, now).map(|left| left.as_secs());
            assert_eq!(left, wanted, "{created} {conditions}");
        }
    }
}
