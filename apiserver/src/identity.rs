//! Which API servers there are, for everybody to see: each keeps a Lease of its own in `kube-system`.
//!
//! As in Kubernetes, a lease is named after its machine, so that a server that comes back takes the place of the one before
//! it. One that stops deletes its lease, and what others leave behind is deleted when it has expired.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::status::{Result, Status};
use apimachinery::time::format_micro;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use crate::cache::Selection;
use crate::fields;
use crate::registry::Registry;
use crate::server::Server;

const LEASES: (&str, &str) = ("coordination.k8s.io", "leases");
const NAMESPACE: &str = "kube-system";
const LABEL: &str = "apiserver.kubernetes.io/identity";
const COMPONENT: &str = "kube-apiserver";
/// Kubernetes' own: how long a lease lives, how often it is renewed, and how often expired ones are looked for.
const LIFETIME: i64 = 3600;
const RENEW: Duration = Duration::from_secs(10);
const COLLECT: Duration = Duration::from_secs(3600);
/// How long a server that stops may take to say so.
const FAREWELL: Duration = Duration::from_secs(5);

/// One server's lease.
struct Identity {
    registry: Arc<Registry>,
    hostname: String,
    name: String,
    holder: String,
}

/// Begins to keep this server's lease; whether that works is nothing to be ready by.
pub async fn start(server: Arc<Server>) -> Result<()> {
    let hostname =
        nix::unistd::gethostname().map_err(|error| Status::internal(error.to_string()))?;
    let hostname = hostname.to_string_lossy().into_owned();
    let identity = Identity::new(server.registry.clone(), hostname);
    server
        .background
        .spawn(identity.run(server.shutdown.clone()));
    Ok(())
}

impl Identity {
    fn new(registry: Arc<Registry>, hostname: String) -> Self {
        let name = name_of(&hostname);
        Self {
            holder: format!("{name}_{}", uuid::Uuid::new_v4()),
            registry,
            hostname,
            name,
        }
    }

    /// Takes the place of this machine's last server, renews the lease until shutdown, and deletes it then.
    async fn run(self, shutdown: CancellationToken) {
        let live = async {
            complain(self.delete(&self.name).await);
            complain(self.renew().await);
            let now = Instant::now();
            let mut renewals = interval_at(now + RENEW, RENEW);
            renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut collections = interval_at(now, COLLECT);
            loop {
                tokio::select! {
                    _ = renewals.tick() => complain(self.renew().await),
                    _ = collections.tick() => complain(self.collect().await),
                }
            }
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = live => {}
        }
        if let Ok(left) = tokio::time::timeout(FAREWELL, self.delete(&self.name)).await {
            complain(left);
        }
    }

    async fn renew(&self) -> Result<()> {
        let change = |lease: &mut Value| {
            self.claim(lease);
            Ok(())
        };
        let (group, plural) = LEASES;
        let key = (NAMESPACE, &*self.name);
        let renewed = self.registry.update_as_server(group, plural, key, change);
        match renewed.await {
            Err(error) if error.is_not_found() => {
                let mut lease = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": self.name, "namespace": NAMESPACE},
                });
                self.claim(&mut lease);
                let created = self.registry.create_as_server(group, plural, lease);
                created.await.map(drop)
            }
            renewed => renewed.map(drop),
        }
    }

    fn claim(&self, lease: &mut Value) {
        lease["metadata"]["labels"][LABEL] = COMPONENT.into();
        lease["metadata"]["labels"]["kubernetes.io/hostname"] = self.hostname.as_str().into();
        lease["spec"]["holderIdentity"] = self.holder.as_str().into();
        lease["spec"]["leaseDurationSeconds"] = LIFETIME.into();
        lease["spec"]["renewTime"] = format_micro(Timestamp::now()).into();
    }

    async fn delete(&self, name: &str) -> Result<()> {
        let (group, plural) = LEASES;
        self.registry
            .delete_as_server(group, plural, NAMESPACE, name)
            .await
    }

    /// Deletes the leases that nobody renews.
    async fn collect(&self) -> Result<()> {
        let (group, plural) = LEASES;
        let ours = format!("{LABEL}={COMPONENT}");
        let selection = Selection::parse(NAMESPACE, &ours, "", fields::of(group, plural))?;
        for lease in self.registry.list(group, plural, &selection).await? {
            let lease = lease.value();
            if is_expired(&lease, Timestamp::now()) {
                self.delete(apimachinery::object::name(&lease)).await?;
            }
        }
        Ok(())
    }
}

fn complain(result: Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "the leases of API servers could not be kept");
    }
}

/// `apiserver-` and what the machine's name and the component's hash to.
fn name_of(hostname: &str) -> String {
    let mut hash = Sha256::new();
    for part in [hostname, COMPONENT] {
        hash.update(u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes());
        hash.update(part);
    }
    let name = data_encoding::BASE32_NOPAD.encode(&hash.finalize()[..16]);
    format!("apiserver-{}", name.to_ascii_lowercase())
}

/// A lease that does not say how long it lives does not.
fn is_expired(lease: &Value, now: Timestamp) -> bool {
    let spec = &lease["spec"];
    let renewed = spec["renewTime"].as_str().and_then(|at| at.parse().ok());
    let lifetime = spec["leaseDurationSeconds"].as_i64();
    renewed
        .zip(lifetime)
        .and_then(|(at, seconds): (Timestamp, _)| {
            at.checked_add(SignedDuration::from_secs(seconds)).ok()
        })
        .is_none_or(|end| end < now)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected name was made with Python.
    #[test]
    fn servers_are_named_after_their_machines() {
        assert_eq!(name_of("node1"), "apiserver-hbz46noag6fulempxd2cbk6bvq");
    }

    #[test]
    fn leases_expire() {
        let now = "2026-01-01T01:00:00Z".parse().unwrap();
        for (spec, wanted) in [
            (
                json!({"renewTime": "2026-01-01T00:30:00.000000Z", "leaseDurationSeconds": 3600}),
                false,
            ),
            (
                json!({"renewTime": "2025-12-31T23:59:59.000000Z", "leaseDurationSeconds": 3600}),
                true,
            ),
            (json!({"renewTime": "2026-01-01T00:30:00.000000Z"}), true),
            (json!({"leaseDurationSeconds": 3600}), true),
        ] {
            assert_eq!(is_expired(&json!({"spec": spec}), now), wanted, "{spec}");
        }
    }
}
