//! Approves requests for kubelets' client certificates whose requesters may have them.

use std::sync::Arc;

use client::{CancellationToken, Next};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use kube::Api;
use kube::api::PostParams;

use super::request::{KUBE_APISERVER_CLIENT_KUBELET, Parsed};
use super::{is, is_issued, put};
use crate::frame::{Context, Error, Result};

/// A permission that would do, and what the approval says then.
type Way = (&'static str, &'static str);

const SELF: Way = (
    "selfnodeclient",
    "Auto approving self kubelet client certificate after SubjectAccessReview.",
);
const NODE: Way = (
    "nodeclient",
    "Auto approving kubelet client certificate after SubjectAccessReview.",
);

/// The ways in which a request could be approved, to be tried in order.
pub fn plan(request: &CertificateSigningRequest) -> Result<Vec<Way>> {
    let decided = is(request, "Approved") || is(request, "Denied") || is_issued(request);
    if decided || request.spec.signer_name != KUBE_APISERVER_CLIENT_KUBELET {
        return Ok(Vec::new());
    }
    let parsed = Parsed::of(request).map_err(Error::Other)?;
    let usages = request.spec.usages.as_deref().unwrap_or_default();
    if parsed.check_kubelet_client(usages).is_err() {
        return Ok(Vec::new());
    }
    Ok(
        match request.spec.username.as_ref() == Some(&parsed.common_name) {
            true => vec![SELF, NODE],
            false => vec![NODE],
        },
    )
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let context = &*context;
    super::each(context, 5, &token, |request| reconcile(context, request)).await;
}

async fn reconcile(context: &Context, request: Arc<CertificateSigningRequest>) -> Result<Next> {
    let ways = plan(&request)?;
    for (subresource, message) in &ways {
        if may(context, &request, subresource).await? {
            let mut approved = (*request).clone();
            let status = approved.status.get_or_insert_default();
            let conditions = status.conditions.get_or_insert_default();
            conditions.push(CertificateSigningRequestCondition {
                type_: "Approved".into(),
                status: "True".into(),
                reason: Some("AutoApproved".into()),
                message: Some((*message).to_owned()),
                ..Default::default()
            });
            put(context, "approval", &approved).await?;
            return Ok(Next::Done);
        }
    }
    if !ways.is_empty() {
        // Roles may change; until then somebody else may decide.
        return Err(Error::Other(
            "recognized, but subject access review was not approved".into(),
        ));
    }
    Ok(Next::Done)
}

async fn may(
    context: &Context,
    request: &CertificateSigningRequest,
    subresource: &str,
) -> Result<bool> {
    let spec = &request.spec;
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: spec.username.clone(),
            uid: spec.uid.clone(),
            groups: spec.groups.clone(),
            extra: spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: Some("certificates.k8s.io".into()),
                version: Some("*".into()),
                resource: Some("certificatesigningrequests".into()),
                subresource: Some(subresource.to_owned()),
                verb: Some("create".into()),
                ..Default::default()
            }),
            ..Default::default()
        },
        ..Default::default()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(context.client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use super::super::request::KUBELET_SERVING;
    use super::super::request::tests::{NODE as SUBJECT, request};
    use super::*;
    use serde_json::json;

    #[test]
    fn who_could_be_approved() {
        let usages = ["digital signature", "client auth"];
        let node = || request(KUBE_APISERVER_CLIENT_KUBELET, &SUBJECT, &[], &usages);
        let decided = |kind: &str| {
            let mut request = node();
            let status = json!({"conditions": [{"type": kind, "status": "True"}]});
            request.status = serde_json::from_value(status).unwrap();
            request
        };
        let by = |user: &str| {
            let mut request = node();
            request.spec.username = Some(user.into());
            request
        };
        let serving = request(
            KUBELET_SERVING,
            &SUBJECT,
            &["n1"],
            &["digital signature", "server auth"],
        );
        let named = request(KUBE_APISERVER_CLIENT_KUBELET, &SUBJECT, &["n1"], &usages);
        for (request, wanted) in [
            (by("system:bootstrap:abcdef"), vec![NODE]),
            (by("system:node:n1"), vec![SELF, NODE]),
            (by("system:node:n2"), vec![NODE]),
            (decided("Approved"), vec![]),
            (decided("Denied"), vec![]),
            (serving, vec![]),
            (named, vec![]),
        ] {
            assert_eq!(plan(&request).unwrap(), wanted);
        }
    }
}
