//! Feeds the graph: a watch of the metadata of everything that can be deleted, for as long as it is served.
//!
//! Discovery is read again when a custom resource or an aggregated API comes, changes or goes, and never otherwise.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use client::CancellationToken;
use futures::StreamExt;
use kube::Api;
use kube::api::{DynamicObject, PartialObjectMeta};
use kube::runtime::watcher::{Config, Event};

use super::Collector;
use super::graph::{Effects, Graph, Kind, Node};
use crate::discovery::{Discovered, discover};

/// Changes come in groups: a definition is created, accepted, established.
const SETTLE: Duration = Duration::from_millis(300);
/// Discovery may be a little behind the objects that change it.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_secs(10);

/// Whether objects of a resource can be followed and deleted, and are worth it: events come and go by themselves.
fn is_collectable(found: &Discovered) -> bool {
    let resource = &found.resource;
    let events =
        resource.plural == "events" && matches!(resource.group.as_str(), "" | "events.k8s.io");
    !events && ["delete", "list", "watch"].iter().all(|v| found.can(v))
}

/// Kinds whose objects decide which resources there are.
fn changes_resources(kind: &Kind) -> bool {
    matches!(
        (kind.resource.group.as_str(), kind.resource.kind.as_str()),
        ("apiextensions.k8s.io", "CustomResourceDefinition")
            | ("apiregistration.k8s.io", "APIService")
    )
}

/// Which watches to start and which to end. What belongs to a group that could not be read stays.
fn difference(
    running: &HashMap<Arc<Kind>, CancellationToken>,
    found: Vec<Discovered>,
    failures: &[String],
) -> (Vec<Arc<Kind>>, Vec<Arc<Kind>>) {
    let wanted: Vec<Arc<Kind>> = found
        .into_iter()
        .filter(is_collectable)
        .map(|d| {
            Arc::new(Kind {
                resource: d.resource,
                namespaced: d.namespaced,
            })
        })
        .collect();
    let unknown = |kind: &Kind| {
        let version = format!("{}/{}: ", kind.resource.group, kind.resource.version);
        failures.iter().any(|f| f.starts_with(&version))
    };
    let ended = running
        .keys()
        .filter(|kind| !wanted.contains(kind) && !unknown(kind))
        .cloned()
        .collect();
    let started = wanted
        .into_iter()
        .filter(|kind| !running.contains_key(kind))
        .collect();
    (started, ended)
}

/// Keeps the watches in step with discovery until `token` is cancelled.
pub async fn run(collector: Arc<Collector>, token: CancellationToken) {
    let mut running: HashMap<Arc<Kind>, CancellationToken> = HashMap::new();
    let mut first = Some(Unsynced::new(&collector));
    let mut changed = false;
    loop {
        let again = match discover(&collector.context.client).await {
            Ok((found, failures)) => {
                collector.mapping.lock().clear();
                let (started, ended) = difference(&running, found, &failures);
                for kind in ended {
                    if let Some(watch) = running.remove(&kind) {
                        watch.cancel();
                    }
                    collector.graph.lock().forget(&kind);
                }
                for kind in started {
                    let watch = token.child_token();
                    running.insert(kind.clone(), watch.clone());
                    let (collector, unsynced) = (collector.clone(), Unsynced::new(&collector));
                    tokio::spawn(async move {
                        tokio::select! { () = watch.cancelled() => {}, () = follow(collector, kind, unsynced) => {} }
                    });
                }
                *collector.watched.lock() = running.keys().cloned().collect();
                first = None;
                match failures.is_empty() {
                    true => changed.then_some(LOOK_AGAIN),
                    false => Some(RETRY),
                }
            }
            Err(error) => {
                tracing::debug!(%error, "discovery failed, will retry");
                Some(if first.is_some() { SETTLE } else { RETRY })
            }
        };
        let wait = async {
            match again {
                Some(delay) => tokio::time::sleep(delay).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = token.cancelled() => return,
            () = collector.resources_changed.notified() => {
                changed = true;
                tokio::time::sleep(SETTLE).await;
            }
            () = wait => changed = false,
        }
    }
}

/// Counts as one more watch without its first list, until dropped.
pub struct Unsynced(Arc<Collector>);

impl Unsynced {
    fn new(collector: &Arc<Collector>) -> Self {
        collector.unsynced.send_modify(|n| *n += 1);
        Self(collector.clone())
    }
}

impl Drop for Unsynced {
    fn drop(&mut self) {
        self.0.unsynced.send_modify(|n| *n -= 1);
    }
}

async fn follow(collector: Arc<Collector>, kind: Arc<Kind>, unsynced: Unsynced) {
    let api: Api<PartialObjectMeta<DynamicObject>> =
        Api::all_with(collector.context.client.clone(), &kind.resource);
    let mut stream = pin!(client::informer::events(api, Config::default()));
    let mut unsynced = Some(unsynced);
    let mut listing = HashMap::new();
    while let Some(event) = stream.next().await {
        let listed = matches!(event, Event::Init | Event::InitApply(_));
        if matches!(event, Event::InitDone) {
            unsynced = None;
        }
        let mut effects = Effects::default();
        take_in(
            &mut collector.graph.lock(),
            &kind,
            event,
            &mut listing,
            &mut effects,
            |node, uid| collector.absent(node, uid),
        );
        collector.report(effects);
        if !listed && changes_resources(&kind) {
            collector.resources_changed.notify_one();
        }
    }
    drop(unsynced);
}

/// Puts one event into the graph. A list goes in as a whole, so that nothing is judged by half of it.
fn take_in(
    graph: &mut Graph,
    kind: &Arc<Kind>,
    event: Event<PartialObjectMeta<DynamicObject>>,
    listing: &mut HashMap<String, Node>,
    effects: &mut Effects,
    gone: impl Fn(&Node, &str),
) {
    let identify = |object: &PartialObjectMeta<DynamicObject>| {
        (
            object.metadata.uid.clone().unwrap_or_default(),
            Node::new(kind, &object.metadata),
        )
    };
    let remove = |graph: &mut Graph, uid: &str, effects: &mut Effects| {
        if let Some(node) = graph.remove(uid, effects) {
            gone(&node, uid);
        }
    };
    match event {
        Event::Init => listing.clear(),
        Event::InitApply(object) => {
            listing.extend([identify(&object)]);
        }
        Event::InitDone => {
            let listed = std::mem::take(listing);
            for uid in graph.of_kind(kind) {
                if !listed.contains_key(&uid) {
                    remove(graph, &uid, effects);
                }
            }
            for (uid, node) in listed {
                graph.apply(&uid, node, effects);
            }
        }
        Event::Apply(object) => {
            let (uid, node) = identify(&object);
            graph.apply(&uid, node, effects);
        }
        Event::Delete(object) => remove(graph, &identify(&object).0, effects),
    }
}

#[cfg(test)]
mod tests {
    use super::super::graph::tests::{kind, owner};
    use super::*;
    use kube::discovery::ApiResource;
    use serde_json::json;

    #[test]
    fn a_relist_removes_what_is_gone() {
        let set = kind("Set", true);
        let object = |name: &str, owners: serde_json::Value| -> PartialObjectMeta<DynamicObject> {
            serde_json::from_value(json!({"apiVersion": "v1", "kind": "Set",
                "metadata": {"namespace": "ns", "name": name, "uid": name, "ownerReferences": owners}}))
            .unwrap()
        };
        let (mut graph, mut listing) = (Graph::default(), HashMap::new());
        let gone = std::cell::RefCell::new(Vec::new());
        let mut effects = Effects::default();
        for event in [
            Event::Init,
            Event::InitApply(object("b", json!([owner("Set", "a", true)]))),
            Event::InitApply(object("a", json!([]))),
            Event::InitDone,
            Event::Apply(object("c", json!([owner("Set", "b", true)]))),
            Event::Init,
            Event::InitApply(object("c", json!([owner("Set", "b", true)]))),
            Event::InitApply(object("a", json!([]))),
        ] {
            let told = |_: &Node, uid: &str| gone.borrow_mut().push(uid.to_owned());
            take_in(&mut graph, &set, event, &mut listing, &mut effects, told);
        }
        assert!(graph.get("b").is_some(), "not before the list is complete");
        let mut effects = Effects::default();
        take_in(
            &mut graph,
            &set,
            Event::InitDone,
            &mut listing,
            &mut effects,
            |_, uid| gone.borrow_mut().push(uid.to_owned()),
        );
        assert!(graph.get("b").is_none());
        assert_eq!(*gone.borrow(), ["b"]);
        assert_eq!(
            effects.tasks,
            [super::super::graph::Task::Delete("c".into())].into()
        );
    }

    #[test]
    fn watches_follow_discovery() {
        let found = |group: &str, plural: &str, verbs: &[&str]| Discovered {
            resource: ApiResource {
                group: group.into(),
                version: "v1".into(),
                api_version: format!("{group}/v1"),
                kind: plural.to_uppercase(),
                plural: plural.into(),
            },
            namespaced: true,
            verbs: verbs.iter().map(|v| (*v).to_owned()).collect(),
        };
        let all = ["delete", "list", "watch", "get"];
        let (started, ended) = difference(
            &HashMap::new(),
            vec![
                found("apps", "sets", &all),
                found("", "events", &all),
                found("events.k8s.io", "events", &all),
                found("", "bindings", &["create"]),
                found("down.example.com", "things", &all),
            ],
            &[],
        );
        let names = |kinds: &[Arc<Kind>]| {
            kinds
                .iter()
                .map(|k| k.resource.plural.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&started), ["sets", "things"]);
        assert!(ended.is_empty());
        let running: HashMap<_, _> = started
            .into_iter()
            .map(|kind| (kind, CancellationToken::new()))
            .collect();
        let failures = ["down.example.com/v1: connection refused".to_owned()];
        let (started, ended) = difference(&running, vec![found("new", "news", &all)], &failures);
        assert_eq!(
            (names(&started), names(&ended)),
            (vec!["news".to_owned()], vec!["sets".to_owned()])
        );
    }
}
