//! Certificate signing requests: approving those of kubelets, signing what is approved, and cleaning up.
//!
//! Three controllers, as in Kubernetes, all on one queue's shape: [`approve`] asks whether who requests a kubelet's client
//! certificate may have it, [`sign`] issues for the four signers of `kubernetes.io`, with the [`authority`] that the
//! flags name, and [`clean`] deletes requests that are over. [`request`] reads what was requested.

pub mod approve;
pub mod authority;
pub mod clean;
pub mod request;
pub mod sign;

use std::sync::Arc;

use client::{CancellationToken, Next, WorkQueue};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::ResourceExt;

use crate::frame::{Context, Error, Result, work};

/// Works on every request that appears or changes, one key at a time per request.
async fn each<F, Fut>(context: &Context, workers: usize, token: &CancellationToken, reconcile: F)
where
    F: Fn(Arc<CertificateSigningRequest>) -> Fut,
    Fut: Future<Output = Result<Next>>,
{
    let queue = WorkQueue::new();
    let requests = &context.informers().signing_requests().informer;
    let q = queue.clone();
    requests.on_change(move |_, new| new.into_iter().for_each(|r| q.add(r.name_any())));
    requests.synced().await;
    work(&queue, workers, token, |name: String| {
        let found = requests.get(&name);
        let work = found.map(&reconcile);
        async move {
            match work {
                Some(work) => work.await,
                None => Ok(Next::Done),
            }
        }
    })
    .await;
}

/// Whether a request has a condition that is true.
fn is(request: &CertificateSigningRequest, kind: &str) -> bool {
    let conditions = request
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .filter(|condition| condition.type_ == kind)
        .any(|condition| condition.status == "True")
}

fn is_issued(request: &CertificateSigningRequest) -> bool {
    let certificate = request.status.as_ref().and_then(|s| s.certificate.as_ref());
    certificate.is_some_and(|certificate| !certificate.0.is_empty())
}

/// Sends the request back with what has changed about it, under one of its subresources.
async fn put(
    context: &Context,
    subresource: &str,
    request: &CertificateSigningRequest,
) -> Result<()> {
    let name = request.name_any();
    let body = serde_json::to_vec(request).map_err(|e| Error::Other(e.to_string()))?;
    let path =
        format!("/apis/certificates.k8s.io/v1/certificatesigningrequests/{name}/{subresource}");
    let request = http::Request::put(path)
        .header("content-type", "application/json")
        .body(body)
        .map_err(|e| Error::Other(e.to_string()))?;
    let requests = context.informers().signing_requests();
    let mark = requests.informer.mark();
    let written = context.client.request(request).await?;
    requests.informer.observe(mark, written);
    Ok(())
}
