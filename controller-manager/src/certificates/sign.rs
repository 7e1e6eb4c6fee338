//! Signs approved requests for the signers of `kubernetes.io`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use client::{CancellationToken, Next};
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::authority::{Authority, duration};
use super::request::{self, Parsed};
use super::{is, is_issued, put};
use crate::frame::{Context, Error, Result};

/// `--cluster-signing-*`.
#[derive(Debug, Clone)]
pub struct Signing {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// The longest that certificates are valid.
    pub duration: Duration,
}

impl Signing {
    /// Read anew each time: an authority may be renewed under the same name.
    pub fn authority(&self) -> std::result::Result<Authority, String> {
        Authority::read(&self.certificate, &self.key)
    }
}

/// What is to be done about a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    Nothing,
    /// Its signer does not sign such a thing; this is why.
    Fail(String),
    Sign(Parsed),
}

pub fn plan(request: &CertificateSigningRequest) -> Result<Plan> {
    if !is(request, "Approved") || is(request, "Failed") || is_issued(request) {
        return Ok(Plan::Nothing);
    }
    let spec = &request.spec;
    // Others may sign in other formats.
    if !spec.signer_name.starts_with("kubernetes.io/") {
        return Ok(Plan::Nothing);
    }
    let parsed = Parsed::of(request).map_err(Error::Other)?;
    let usages = spec.usages.as_deref().unwrap_or_default();
    Ok(match request::check(&spec.signer_name, &parsed, usages) {
        None => Plan::Nothing,
        Some(Err(why)) => Plan::Fail(why),
        Some(Ok(())) => Plan::Sign(parsed),
    })
}

/// Runs the controller, if the flags say with what.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let Some(signing) = context.settings.signing.clone() else {
        tracing::info!("no --cluster-signing-cert-file: requests for certificates are not signed");
        return;
    };
    let (context, signing) = (&*context, &signing);
    super::each(context, 5, &token, |request| {
        reconcile(context, signing, request)
    })
    .await;
}

async fn reconcile(
    context: &Context,
    signing: &Signing,
    request: Arc<CertificateSigningRequest>,
) -> Result<Next> {
    let mut changed = (*request).clone();
    let status = changed.status.get_or_insert_default();
    match plan(&request)? {
        Plan::Nothing => return Ok(Next::Done),
        Plan::Fail(why) => {
            let conditions = status.conditions.get_or_insert_default();
            conditions.push(CertificateSigningRequestCondition {
                type_: "Failed".into(),
                status: "True".into(),
                reason: Some("SignerValidationFailure".into()),
                message: Some(why),
                last_update_time: Some(Time(Timestamp::now())),
                ..Default::default()
            });
        }
        Plan::Sign(parsed) => {
            let authority = signing.authority().map_err(Error::Other)?;
            let usages = request.spec.usages.as_deref().unwrap_or_default();
            let valid = duration(request.spec.expiration_seconds, signing.duration);
            let issued = authority
                .issue(&parsed.der, usages, valid, Timestamp::now())
                .map_err(Error::Other)?;
            status.certificate = Some(k8s_openapi::ByteString(issued.into_bytes()));
        }
    }
    put(context, "status", &changed).await?;
    Ok(Next::Done)
}

#[cfg(test)]
mod tests {
    use super::super::request::tests::{NODE, request};
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn approved_requests_are_signed_or_fail() {
        let usages = ["digital signature", "client auth"];
        let with = |signer: &str, status: Value| {
            let mut request = request(signer, &NODE, &[], &usages);
            request.status = serde_json::from_value(status).unwrap();
            plan(&request).unwrap()
        };
        let approved = || json!({"conditions": [{"type": "Approved", "status": "True"}]});
        let signed = with(request::KUBE_APISERVER_CLIENT_KUBELET, approved());
        assert!(matches!(signed, Plan::Sign(parsed) if parsed.common_name == "system:node:n1"));
        let refused = with(request::KUBELET_SERVING, approved());
        assert_eq!(
            refused,
            Plan::Fail("DNS or IP subjectAltName is required".into())
        );
        let failed = json!({"conditions": [{"type": "Approved", "status": "True"}, {"type": "Failed", "status": "True"}]});
        let issued =
            json!({"conditions": [{"type": "Approved", "status": "True"}], "certificate": "eA=="});
        for (signer, status) in [
            ("example.com/mine", approved()),
            ("kubernetes.io/other", approved()),
            (request::LEGACY_UNKNOWN, json!({})),
            (request::LEGACY_UNKNOWN, failed),
            (request::LEGACY_UNKNOWN, issued),
        ] {
            assert_eq!(
                with(signer, status.clone()),
                Plan::Nothing,
                "{signer} {status}"
            );
        }
    }
}
