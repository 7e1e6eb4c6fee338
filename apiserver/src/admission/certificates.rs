//! The plugins for certificate signing requests: who may approve and who may sign for a signer, and what nobody may ask for.

use std::sync::Arc;

use apimachinery::resource::Resource;
use apimachinery::status::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::{Attributes, Operation, Plugin, forbidden};
use crate::authn::MASTERS;
use crate::authz::{self, Authorizer, Decision};
use crate::registry::Registry;
use crate::strategy::check::{same, text};

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

fn is_request(resource: &Resource) -> bool {
    resource.group == GROUP && resource.plural == "certificatesigningrequests"
}

/// Whether the user may do this for a signer, or for all of its domain.
async fn may(authorizer: &dyn Authorizer, a: &Attributes<'_>, verb: &str, signer: &str) -> bool {
    let domain = signer.split('/').next().unwrap_or_default();
    for name in [signer, &format!("{domain}/*")] {
        let attributes = authz::Attributes::special(a.user, verb, "", (GROUP, "signers"), name);
        if matches!(authorizer.authorize(&attributes).await, Decision::Allow(_)) {
            return true;
        }
    }
    false
}

/// Approving takes the right to approve for the signer, besides that to write the subresource.
pub struct Approval(pub Arc<dyn Authorizer>);

impl Plugin for Approval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn changes_objects(&self) -> bool {
        false
    }

    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        operation == Operation::Update && subresource == "approval" && is_request(resource)
    }

    fn validate<'a>(&'a self, a: &'a Attributes<'_>, _: &'a Registry) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let signer = text(&a.old["spec"], "signerName");
            if may(&*self.0, a, "approve", signer).await {
                return Ok(());
            }
            let why = format!("user not permitted to approve requests with signerName {signer:?}");
            Err(forbidden(a, &why))
        })
    }
}

/// So does giving the certificate.
pub struct Signing(pub Arc<dyn Authorizer>);

impl Plugin for Signing {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn changes_objects(&self) -> bool {
        false
    }

    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        operation == Operation::Update && subresource == "status" && is_request(resource)
    }

    fn validate<'a>(&'a self, a: &'a Attributes<'_>, _: &'a Registry) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let signer = text(&a.old["spec"], "signerName");
            let (new, old) = (&a.object["status"], &a.old["status"]);
            let unchanged = ["certificate", "conditions"]
                .iter()
                .all(|field| same(&new[*field], &old[*field]));
            if unchanged || may(&*self.0, a, "sign", signer).await {
                return Ok(());
            }
            let why = format!("user not permitted to sign requests with signerName {signer:?}");
            Err(forbidden(a, &why))
        })
    }
}

/// The signer of ordinary clients makes no administrators.
pub struct SubjectRestriction;

impl Plugin for SubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn changes_objects(&self) -> bool {
        false
    }

    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        operation == Operation::Create && subresource.is_empty() && is_request(resource)
    }

    fn validate<'a>(&'a self, a: &'a Attributes<'_>, _: &'a Registry) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let spec = &a.object["spec"];
            if text(spec, "signerName") != CLIENT_SIGNER {
                return Ok(());
            }
            match organizations(spec) {
                Err(error) => Err(forbidden(a, &format!("failed to parse CSR: {error}"))),
                Ok(groups) if groups.iter().any(|group| group == MASTERS) => {
                    let why = format!(
                        "use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed"
                    );
                    Err(forbidden(a, &why))
                }
                Ok(_) => Ok(()),
            }
        })
    }
}

/// The groups that a request asks for.
fn organizations(spec: &Value) -> std::result::Result<Vec<String>, String> {
    let pem = STANDARD
        .decode(text(spec, "request"))
        .map_err(|error| error.to_string())?;
    let block = x509_parser::pem::Pem::iter_from_buffer(&pem)
        .next()
        .and_then(std::result::Result::ok)
        .filter(|block| block.label == "CERTIFICATE REQUEST")
        .ok_or("PEM block type must be CERTIFICATE REQUEST")?;
    let (_, request) = X509CertificationRequest::from_der(&block.contents)
        .map_err(|error| format!("asn1: structure error: {error}"))?;
    let subject = &request.certification_request_info.subject;
    // What is no text is no group that a certificate could stand for either.
    let named = subject
        .iter_organization()
        .filter_map(|name| name.as_str().ok());
    Ok(named.map(str::to_owned).collect())
}
