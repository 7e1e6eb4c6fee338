//! The heartbeat: a Lease in `kube-node-lease`, renewed every ten seconds.

use std::time::Duration;

use client::CancellationToken;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kube::api::{Api, ObjectMeta, PostParams};

const RENEW: Duration = Duration::from_secs(10);
const DURATION: i32 = 40;

pub async fn run(client: kube::Client, node: String, shutdown: CancellationToken) {
    let leases = Api::<Lease>::namespaced(client.clone(), "kube-node-lease");
    let mut held: Option<Lease> = None;
    let mut retry = Duration::from_millis(100);
    loop {
        let wait = match renew(&client, &leases, &node, held.take()).await {
            Ok(lease) => {
                held = Some(lease);
                retry = Duration::from_millis(100);
                RENEW
            }
            Err(error) => {
                tracing::debug!(%error, "the node lease was not renewed");
                retry = (retry * 2).min(Duration::from_secs(7));
                retry
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Writes with the version last seen; without one, looks first.
async fn renew(
    client: &kube::Client,
    leases: &Api<Lease>,
    node: &str,
    held: Option<Lease>,
) -> Result<Lease, kube::Error> {
    let known = match held {
        Some(lease) => Some(lease),
        None => leases.get_opt(node).await?,
    };
    let mut lease = known.clone().unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(node.into()),
            namespace: Some("kube-node-lease".into()),
            ..Default::default()
        },
        spec: None,
    });
    lease.metadata.managed_fields = None;
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(node.into());
    spec.lease_duration_seconds = Some(DURATION);
    spec.renew_time = Some(MicroTime(Timestamp::now()));
    // The owner goes in once the node exists, so that the lease goes when the node goes.
    if lease
        .metadata
        .owner_references
        .as_ref()
        .is_none_or(Vec::is_empty)
        && let Ok(Some(owner)) = Api::<Node>::all(client.clone()).get_opt(node).await
    {
        lease.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: node.into(),
            uid: owner.metadata.uid.unwrap_or_default(),
            ..Default::default()
        }]);
    }
    match known {
        Some(_) => leases.replace(node, &PostParams::default(), &lease).await,
        None => leases.create(&PostParams::default(), &lease).await,
    }
}
