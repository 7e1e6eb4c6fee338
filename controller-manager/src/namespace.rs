//! Empties namespaces that are being deleted, then lets go of them.
//!
//! A namespace with a deletion timestamp stays until its finalizer `kubernetes` is gone. Everything in it is deleted
//! kind by kind, pods first, as the API server's discovery names them; what lingers (grace periods, finalizers) is
//! told in the namespace's conditions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::{CancellationToken, Next, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, DynamicObject, ListParams, PartialObjectMeta};
use kube::{Api, ResourceExt};

use crate::discovery::{Discovered, discover};
use crate::frame::{Context, Error, Result, work};
use crate::pods;

/// How many kinds are emptied at a time.
const PARALLEL: usize = 4;

/// What is left in a namespace after a pass.
#[derive(Debug, Default, PartialEq)]
pub struct Leftovers {
    pub undiscovered: Vec<String>,
    pub failures: Vec<String>,
    /// Resources (`pods.`, `deployments.apps`) and how many are left of each.
    pub remaining: BTreeMap<String, usize>,
    pub finalizers: BTreeMap<String, usize>,
}

impl Leftovers {
    fn is_clean(&self) -> bool {
        *self == Self::default()
    }

    fn count(&mut self, kind: &Discovered, objects: &[PartialObjectMeta<DynamicObject>]) {
        let resource = format!("{}.{}", kind.resource.plural, kind.resource.group);
        self.remaining.insert(resource, objects.len());
        for finalizer in objects
            .iter()
            .flat_map(|o| o.metadata.finalizers.iter().flatten())
        {
            *self.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
    }
}

/// The conditions that tell of `left`, in Kubernetes' words.
pub fn conditions(
    old: &NamespaceStatus,
    left: &Leftovers,
    now: Timestamp,
) -> Vec<NamespaceCondition> {
    let list = |map: &BTreeMap<String, usize>, f: fn((&String, &usize)) -> String| {
        map.iter().map(f).collect::<Vec<_>>().join(", ")
    };
    let told = |bad: bool, reason: &'static str, message: String| bad.then_some((reason, message));
    let resources = list(&left.remaining, |(r, n)| {
        format!("{r} has {n} resource instances")
    });
    let finalizers = list(&left.finalizers, |(f, n)| {
        format!("{f} in {n} resource instances")
    });
    let facts = [
        (
            "NamespaceDeletionDiscoveryFailure",
            (
                "ResourcesDiscovered",
                "All resources successfully discovered",
            ),
            told(
                !left.undiscovered.is_empty(),
                "DiscoveryFailed",
                format!(
                    "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {}",
                    left.undiscovered.len(),
                    left.undiscovered.join(", ")
                ),
            ),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            (
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed",
            ),
            None,
        ),
        (
            "NamespaceDeletionContentFailure",
            (
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
            told(
                !left.failures.is_empty(),
                "ContentDeletionFailed",
                format!(
                    "Failed to delete all resource types, {} remaining: {}",
                    left.failures.len(),
                    left.failures.join(", ")
                ),
            ),
        ),
        (
            "NamespaceContentRemaining",
            ("ContentRemoved", "All content successfully removed"),
            told(
                !left.remaining.is_empty(),
                "SomeResourcesRemain",
                format!("Some resources are remaining: {resources}"),
            ),
        ),
        (
            "NamespaceFinalizersRemaining",
            (
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            ),
            told(
                !left.finalizers.is_empty(),
                "SomeFinalizersRemain",
                format!("Some content in the namespace has finalizers remaining: {finalizers}"),
            ),
        ),
    ];
    let mut conditions = old.conditions.clone().unwrap_or_default();
    for (kind, (fine, fine_message), bad) in facts {
        let status = if bad.is_some() { "True" } else { "False" };
        let (reason, message) = bad.unwrap_or((fine, fine_message.to_owned()));
        let before = conditions.iter().find(|c| c.type_ == kind);
        let since = before
            .filter(|c| c.status == status)
            .and_then(|c| c.last_transition_time.clone());
        let new = NamespaceCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: since.or(Some(Time(now))),
        };
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            Some(condition) => *condition = new,
            None => conditions.push(new),
        }
    }
    conditions
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let namespaces = context.informers().namespaces();
    let q = queue.clone();
    namespaces.informer.on_change(move |_, new| {
        new.filter(|n| n.metadata.deletion_timestamp.is_some())
            .into_iter()
            .for_each(|n| q.add(n.name_any()));
    });
    // The last pod's end is what most deletions wait for.
    let (q, copy) = (queue.clone(), namespaces.informer.clone());
    context
        .informers()
        .pods()
        .informer
        .on_change(move |old, new| {
            let Some(pod) = old.filter(|_| new.is_none()) else {
                return;
            };
            let namespace = pod.namespace().unwrap_or_default();
            if copy
                .get(&namespace)
                .is_some_and(|n| n.metadata.deletion_timestamp.is_some())
            {
                q.add(namespace);
            }
        });
    namespaces.informer.synced().await;
    work(&queue, 5, &token, |name| reconcile(&context, name)).await;
}

async fn reconcile(context: &Context, name: String) -> Result<Next> {
    let namespaces = context.informers().namespaces();
    let Some(namespace) = namespaces.informer.get(&name) else {
        return Ok(Next::Done);
    };
    if namespace.metadata.deletion_timestamp.is_none() || !has_finalizer(&namespace) {
        return Ok(Next::Done);
    }
    let left = empty(context, &name).await?;
    if left.is_clean() {
        finalize(context, &namespace).await?;
        return Ok(Next::Done);
    }
    let old = namespace.status.clone().unwrap_or_default();
    let status = NamespaceStatus {
        conditions: Some(conditions(&old, &left, Timestamp::now())),
        ..old.clone()
    };
    namespaces
        .patch_status(&namespace, Some(&old), &status)
        .await?;
    if !left.failures.is_empty() || !left.undiscovered.is_empty() {
        return Err(Error::Other(
            [left.failures, left.undiscovered].concat().join(", "),
        ));
    }
    // Pods tell when they are gone; other kinds' finalizers are looked at again.
    let pods = context.informers().pods().informer.namespace(&name);
    let grace = pods
        .iter()
        .filter(|p| !pods::is_terminated(p))
        .filter_map(|p| p.metadata.deletion_grace_period_seconds)
        .max();
    match grace {
        Some(seconds) => Ok(Next::After(Duration::from_secs(
            seconds.max(0) as u64 / 2 + 1,
        ))),
        None => Err(Error::Other(format!(
            "content of namespace {name} is waiting for finalizers"
        ))),
    }
}

fn has_finalizer(namespace: &Namespace) -> bool {
    namespace
        .spec
        .as_ref()
        .and_then(|s| s.finalizers.as_ref())
        .is_some_and(|f| f.iter().any(|f| f == "kubernetes"))
}

async fn empty(context: &Context, namespace: &str) -> Result<Leftovers> {
    let (found, undiscovered) = discover(&context.client).await?;
    let mut left = Leftovers {
        undiscovered,
        ..Default::default()
    };
    let deletable = found
        .into_iter()
        .filter(|d| d.namespaced && d.can("delete") && d.can("list"));
    // Pods go first, while what protects them (network policies, say) is still there.
    let is_pods = |d: &Discovered| d.resource.plural == "pods" && d.resource.group.is_empty();
    let (pods, others): (Vec<_>, Vec<_>) = deletable.partition(is_pods);
    empty_kinds(context, namespace, &pods, &mut left).await;
    if left.remaining.is_empty() && left.failures.is_empty() {
        empty_kinds(context, namespace, &others, &mut left).await;
    }
    Ok(left)
}

async fn empty_kinds(
    context: &Context,
    namespace: &str,
    kinds: &[Discovered],
    left: &mut Leftovers,
) {
    for kinds in kinds.chunks(PARALLEL) {
        let emptied = kinds
            .iter()
            .map(|kind| empty_kind(context, namespace, kind));
        let results = futures::future::join_all(emptied).await;
        for (kind, result) in kinds.iter().zip(results) {
            match result {
                Ok(objects) if objects.is_empty() => {}
                Ok(objects) => left.count(kind, &objects),
                // The kind went away since it was discovered.
                Err(error) if error.is_not_found() => {}
                Err(error) => left.failures.push(error.to_string()),
            }
        }
    }
    left.failures.sort();
}

/// Deletes all of one kind and returns what is still there.
async fn empty_kind(
    context: &Context,
    namespace: &str,
    kind: &Discovered,
) -> Result<Vec<PartialObjectMeta<DynamicObject>>> {
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), namespace, &kind.resource);
    let list = || async { Ok::<_, Error>(api.list_metadata(&ListParams::default()).await?.items) };
    let there = list().await?;
    if there.is_empty() {
        return Ok(there);
    }
    if kind.can("deletecollection") {
        api.delete_collection(&DeleteParams::background(), &ListParams::default())
            .await?;
    } else {
        for object in there
            .iter()
            .filter(|o| o.metadata.deletion_timestamp.is_none())
        {
            match api
                .delete(&object.name_any(), &DeleteParams::background())
                .await
                .map_err(Error::from)
            {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
    }
    list().await
}

async fn finalize(context: &Context, namespace: &Namespace) -> Result<()> {
    let mut body = namespace.clone();
    if let Some(finalizers) = body.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
        finalizers.retain(|f| f != "kubernetes");
    }
    let other = |e: &dyn std::error::Error| Error::Other(e.to_string());
    let body = serde_json::to_vec(&body).map_err(|e| other(&e))?;
    let request = http::Request::put(format!(
        "/api/v1/namespaces/{}/finalize",
        namespace.name_any()
    ))
    .header(http::header::CONTENT_TYPE, "application/json")
    .body(body)
    .map_err(|e| other(&e))?;
    match context
        .client
        .request::<serde_json::Value>(request)
        .await
        .map_err(Error::from)
    {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_told_in_conditions() {
        let now = Timestamp::UNIX_EPOCH;
        let left = Leftovers {
            remaining: [("pods.".to_owned(), 2)].into(),
            finalizers: [("example.com/f".to_owned(), 1)].into(),
            ..Default::default()
        };
        let first = conditions(&NamespaceStatus::default(), &left, now);
        let find = |list: &[NamespaceCondition], kind: &str| {
            list.iter().find(|c| c.type_ == kind).cloned().unwrap()
        };
        let remaining = find(&first, "NamespaceContentRemaining");
        assert_eq!(remaining.status, "True");
        assert_eq!(
            remaining.message.as_deref(),
            Some("Some resources are remaining: pods. has 2 resource instances")
        );
        assert_eq!(
            find(&first, "NamespaceDeletionContentFailure").status,
            "False"
        );
        let later = Timestamp::from_second(60).unwrap();
        let status = NamespaceStatus {
            conditions: Some(first.clone()),
            ..Default::default()
        };
        let second = conditions(&status, &Leftovers::default(), later);
        assert_eq!(second.len(), first.len());
        assert_eq!(
            find(&second, "NamespaceContentRemaining").last_transition_time,
            Some(Time(later))
        );
        assert_eq!(
            find(&second, "NamespaceDeletionContentFailure").last_transition_time,
            Some(Time(now))
        );
    }
}
