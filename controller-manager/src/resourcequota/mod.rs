//! ResourceQuotas: tells in their status what is used. Admission adds what is created; this gives back what is deleted.
//!
//! Only what some quota is about is watched: pods, services and claims as they are, of everything else the metadata.

pub mod usage;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::quantity::Quantity;
use client::{CancellationToken, Informer, Next, WorkQueue, key_of, split_key};
use k8s_openapi::api::core::v1::{Pod, ResourceQuota, ResourceQuotaStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use kube::api::{DynamicObject, PartialObjectMeta};
use kube::{Api, Resource, ResourceExt};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;

use crate::discovery::discover;
use crate::frame::{Context, Error, Result, WORKERS, work};
use crate::pods;
use usage::{Amounts, has_scopes, in_scopes, parse};

/// What was charged for a create that then failed is given back at the latest after this long.
const RECOUNT: Duration = Duration::from_secs(300);
const CORE: [&str; 3] = ["pods", "services", "persistentvolumeclaims"];

type Counted = Informer<PartialObjectMeta<DynamicObject>>;

struct Controller {
    context: Arc<Context>,
    queue: WorkQueue<String>,
    token: CancellationToken,
    /// Of the kinds that are counted only, by plural and group.
    counted: Mutex<HashMap<(String, String), Counted>>,
}

/// The plural and group of the resource that a name in `hard` counts.
fn counts(name: &str) -> Option<(&str, &str)> {
    match name.strip_prefix("count/") {
        Some(counted) => Some(counted.split_once('.').unwrap_or((counted, ""))),
        None => matches!(
            name,
            "configmaps" | "replicationcontrollers" | "resourcequotas" | "secrets"
        )
        .then_some((name, "")),
    }
}

/// What is used of what `hard` limits; what nothing uses is there with zero.
pub fn total(hard: &Amounts, uses: impl IntoIterator<Item = Amounts>) -> Amounts {
    let mut used: Amounts = hard
        .keys()
        .map(|name| (name.clone(), Quantity::ZERO))
        .collect();
    for amounts in uses {
        for (name, amount) in amounts {
            if let Some(sum) = used.get_mut(&name) {
                *sum += amount;
            }
        }
    }
    used
}

fn value<T: Serialize>(object: &T) -> Value {
    // Serializing these types to memory cannot fail.
    serde_json::to_value(object).unwrap_or_default()
}

/// Enqueues the quotas of a namespace.
fn recount(quotas: &Informer<ResourceQuota>, queue: &WorkQueue<String>, namespace: &str) {
    for quota in quotas.namespace(namespace) {
        queue.add(key_of(quota.as_ref()));
    }
}

/// Enqueues the quotas of a namespace where an object came or went, or changed in what is counted.
fn follow<K>(
    informer: &Informer<K>,
    quotas: &Informer<ResourceQuota>,
    queue: &WorkQueue<String>,
    same: impl Fn(&K, &K) -> bool + Send + Sync + 'static,
) where
    K: Resource + Send + Sync + 'static,
{
    let (quotas, queue) = (quotas.clone(), queue.clone());
    informer.on_change(move |old, new| {
        if old.zip(new).is_some_and(|(o, n)| same(o, n)) {
            return;
        }
        let key = new.or(old).map(|o| key_of(o.as_ref())).unwrap_or_default();
        recount(&quotas, &queue, split_key(&key).0);
    });
}

fn same_pod(old: &Pod, new: &Pod) -> bool {
    pods::is_terminated(old) == pods::is_terminated(new) && old.spec == new.spec
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let informers = context.informers();
    let quotas = &informers.resource_quotas().informer;
    let q = queue.clone();
    quotas.on_change(move |old, new| {
        let Some(quota) = new else { return };
        let status = quota.status.clone().unwrap_or_default();
        let hard = quota.spec.as_ref().and_then(|s| s.hard.clone());
        // What admission charges is not counted again: the object may not be in any copy yet.
        if old.is_none_or(|o| o.spec != quota.spec) || status.hard != hard || status.used.is_none()
        {
            q.add(key_of(quota.as_ref()));
        }
    });
    quotas.synced().await;
    let (pods, services) = (&informers.pods().informer, &informers.services().informer);
    let claims = &informers.persistent_volume_claims().informer;
    follow(pods, quotas, &queue, same_pod);
    follow(services, quotas, &queue, |o, n| o.spec == n.spec);
    follow(claims, quotas, &queue, |o, n| o.spec == n.spec);
    pods.synced().await;
    services.synced().await;
    claims.synced().await;
    let controller = Controller {
        queue: queue.clone(),
        token: token.clone(),
        counted: Mutex::default(),
        context: context.clone(),
    };
    work(&queue, WORKERS, &token, |key| controller.reconcile(key)).await;
}

impl Controller {
    async fn reconcile(&self, key: String) -> Result<Next> {
        let quotas = self.context.informers().resource_quotas();
        let Some(quota) = quotas.informer.get(&key) else {
            return Ok(Next::Done);
        };
        let spec = value(&quota.spec);
        let used = self.used(split_key(&key).0, &spec).await?;
        let used = used
            .into_iter()
            .map(|(name, amount)| (name, ApiQuantity(amount.to_string())));
        let hard = quota.spec.as_ref().and_then(|s| s.hard.clone());
        let status = ResourceQuotaStatus {
            hard: Some(hard.unwrap_or_default()),
            used: Some(used.collect::<BTreeMap<_, _>>()),
        };
        quotas
            .patch_status(&quota, quota.status.as_ref(), &status)
            .await?;
        Ok(Next::After(RECOUNT))
    }

    async fn used(&self, namespace: &str, spec: &Value) -> Result<Amounts> {
        let (informers, hard) = (self.context.informers(), parse(&spec["hard"]));
        let mut uses: Vec<Amounts> = Vec::new();
        let living = informers.pods().informer.namespace(namespace);
        let living = living.iter().filter(|p| !pods::is_terminated(p));
        uses.extend(
            living
                .map(|p| value(p.as_ref()))
                .filter(|p| in_scopes(spec, p))
                .map(|p| usage::of("pods", &p)),
        );
        if !has_scopes(spec) {
            let services = informers.services().informer.namespace(namespace);
            uses.extend(
                services
                    .iter()
                    .map(|s| usage::of("services", &value(s.as_ref()))),
            );
            let claims = informers
                .persistent_volume_claims()
                .informer
                .namespace(namespace);
            uses.extend(
                claims
                    .iter()
                    .map(|c| usage::of("persistentvolumeclaims", &value(c.as_ref()))),
            );
            for name in hard.keys() {
                let Some((plural, group)) = counts(name) else {
                    continue;
                };
                if group.is_empty() && CORE.contains(&plural) {
                    continue;
                }
                let there = self
                    .counted(plural, group)
                    .await?
                    .map_or(0, |i| i.namespace(namespace).len());
                let there = Quantity::new(there as i64, apimachinery::quantity::Format::DecimalSi);
                uses.push(Amounts::from([(name.clone(), there)]));
            }
        }
        Ok(total(&hard, uses))
    }

    /// The metadata of a kind; `None` if there is no such kind.
    async fn counted(&self, plural: &str, group: &str) -> Result<Option<Counted>> {
        let key = (plural.to_owned(), group.to_owned());
        let known = self.counted.lock().get(&key).cloned();
        let informer = match known {
            Some(known) => known,
            None => {
                let (found, failures) = discover(&self.context.client).await?;
                let found = found.into_iter().find(|d| {
                    d.resource.plural == plural
                        && d.resource.group == group
                        && d.namespaced
                        && d.can("watch")
                });
                let Some(found) = found else {
                    return match failures.is_empty() {
                        true => Ok(None),
                        false => Err(Error::Other(failures.join(", "))),
                    };
                };
                let api = Api::all_with(self.context.client.clone(), &found.resource);
                self.start(key, api)
            }
        };
        informer.synced().await;
        Ok(Some(informer))
    }

    fn start(&self, key: (String, String), api: Api<PartialObjectMeta<DynamicObject>>) -> Counted {
        let mut counted = self.counted.lock();
        // Another worker may have been faster.
        if let Some(known) = counted.get(&key) {
            return known.clone();
        }
        let informer = Informer::builder(api)
            .trim(|object: &mut PartialObjectMeta<DynamicObject>| {
                object.metadata.annotations = None;
                object.metadata.labels = None;
            })
            .start(&self.token);
        let quotas = &self.context.informers().resource_quotas().informer;
        follow(&informer, quotas, &self.queue, |o, n| o.uid() == n.uid());
        counted.insert(key, informer.clone());
        informer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_names_count() {
        for (name, want) in [
            ("count/deployments.apps", Some(("deployments", "apps"))),
            ("count/things.example.com", Some(("things", "example.com"))),
            ("count/configmaps", Some(("configmaps", ""))),
            ("secrets", Some(("secrets", ""))),
            ("pods", None),
            ("requests.cpu", None),
            (
                "gold.storageclass.storage.k8s.io/persistentvolumeclaims",
                None,
            ),
        ] {
            assert_eq!(counts(name), want, "{name}");
        }
    }

    #[test]
    fn totals_are_of_what_is_limited() {
        let hard = parse(&json!({"pods": "5", "requests.cpu": "2", "secrets": "1"}));
        let pod = |cpu: &str| json!({"spec": {"containers": [{"resources": {"requests": {"cpu": cpu, "memory": "1Gi"}}}]}});
        let used = total(
            &hard,
            [
                usage::of("pods", &pod("500m")),
                usage::of("pods", &pod("1")),
            ],
        );
        let used: Vec<String> = used.iter().map(|(n, q)| format!("{n}={q}")).collect();
        assert_eq!(used, ["pods=2", "requests.cpu=1500m", "secrets=0"]);
    }
}
