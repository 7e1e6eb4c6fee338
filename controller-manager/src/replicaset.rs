//! ReplicaSets and ReplicationControllers: as many pods as asked for, no more, no fewer.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::selector::LabelSelector;
use client::events::{EventType, Recorder, reference};
use client::{CancellationToken, Next, WorkQueue, key_of};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus,
};
use k8s_openapi::api::core::v1::{
    Pod, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector as LabelSelectorFields, Time};
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::frame::{Context, Error, Objects, Result, WORKERS, slow_start, work};
use crate::informers::Informers;
use crate::meta::{self, CONTROLLER, Claim, claim, controller_of, controller_ref, orphans};
use crate::pods;

/// At most so many pods are made or removed in one pass, as in Kubernetes.
const BURST: usize = 500;

/// Everything a pass looks at.
pub struct Observed<'a> {
    pub set: &'a ReplicaSet,
    /// The pods that the set controls, and those of its namespace that no one does.
    pub pods: &'a [Arc<Pod>],
    pub now: Timestamp,
}

/// What is to be done about a ReplicaSet.
#[derive(Debug, PartialEq)]
pub enum Action {
    Adopt(Arc<Pod>),
    Release(Arc<Pod>),
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

/// What a pass comes to: actions, the status once pods are as they are, and when to look again without being told.
#[derive(Debug)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub status: ReplicaSetStatus,
    pub again: Option<Duration>,
}

/// Decides about one ReplicaSet.
pub fn plan(observed: &Observed) -> Plan {
    let set = observed.set;
    let spec = set.spec.clone().unwrap_or_default();
    let selector = meta::selector(&spec.selector);
    let mut actions = Vec::new();
    let (mut active, mut terminating) = (Vec::new(), 0);
    for pod in observed.pods {
        match claim(&set.metadata, &selector, pod.as_ref()) {
            Claim::Own => {}
            Claim::Ignore => continue,
            Claim::Release => {
                actions.push(Action::Release(pod.clone()));
                continue;
            }
            Claim::Adopt if pods::is_active(pod) => actions.push(Action::Adopt(pod.clone())),
            Claim::Adopt => continue,
        }
        if pods::is_active(pod) {
            active.push(pod.clone());
        } else if pod.metadata.deletion_timestamp.is_some() && !pods::is_terminated(pod) {
            terminating += 1;
        }
    }

    let want = spec.replicas.unwrap_or(1).max(0) as usize;
    if set.metadata.deletion_timestamp.is_none() {
        if active.len() < want {
            actions.push(Action::Create((want - active.len()).min(BURST)));
        } else if active.len() > want {
            let excess = (active.len() - want).min(BURST);
            actions.push(Action::Delete(least_loss(&active, excess, observed.now)));
        }
    }

    let mut again: Option<Duration> = None;
    let (mut labeled, mut ready, mut available) = (0, 0, 0);
    let template_labels = spec
        .template
        .as_ref()
        .and_then(|t| t.metadata.as_ref()?.labels.clone())
        .unwrap_or_default();
    for pod in &active {
        labeled += i32::from(
            template_labels
                .iter()
                .all(|(k, v)| pod.labels().get(k) == Some(v)),
        );
        ready += i32::from(pods::is_ready(pod));
        let (is, until) =
            pods::availability(pod, spec.min_ready_seconds.unwrap_or(0), observed.now);
        available += i32::from(is);
        again = [again, until].into_iter().flatten().min();
    }
    let old = set.status.clone().unwrap_or_default();
    let status = ReplicaSetStatus {
        replicas: active.len() as i32,
        // Zero counts are left out, as in Kubernetes' JSON.
        fully_labeled_replicas: (labeled > 0).then_some(labeled),
        ready_replicas: (ready > 0).then_some(ready),
        available_replicas: (available > 0).then_some(available),
        terminating_replicas: Some(terminating),
        observed_generation: set.metadata.generation,
        conditions: old.conditions,
    };
    Plan {
        actions,
        status,
        again,
    }
}

/// The `count` pods that are missed least.
fn least_loss(active: &[Arc<Pod>], count: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    if count == active.len() {
        return active.to_vec();
    }
    let mut ready_on: HashMap<&str, usize> = HashMap::new();
    for pod in active.iter().filter(|p| pods::is_ready(p)) {
        *ready_on.entry(pods::node_name(pod)).or_default() += 1;
    }
    let neighbours = |pod: &Pod| match pods::node_name(pod) {
        "" => 0,
        node => ready_on.get(node).copied().unwrap_or(0),
    };
    let mut ranked: Vec<&Arc<Pod>> = active.iter().collect();
    ranked.sort_by(|a, b| pods::by_loss((a, neighbours(a)), (b, neighbours(b)), now));
    ranked.into_iter().take(count).cloned().collect()
}

/// Sets or removes the `ReplicaFailure` condition after pods were made or removed.
fn with_failure(
    mut status: ReplicaSetStatus,
    failure: Option<(&str, String)>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let mut conditions = status.conditions.take().unwrap_or_default();
    let present = conditions.iter().any(|c| c.type_ == "ReplicaFailure");
    match failure {
        Some((reason, message)) if !present => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
        }),
        Some(_) => {}
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
    }
    status.conditions = (!conditions.is_empty()).then_some(conditions);
    status
}

/// A kind whose objects keep replicas as ReplicaSets do, and which reads and writes as one.
pub trait Replicated:
    kube::Resource<DynamicType = ()>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
    + Send
    + Sync
    + 'static
{
    const COMPONENT: &'static str;

    fn objects(informers: &Informers) -> &Objects<Self>;

    fn as_set(&self) -> Cow<'_, ReplicaSet>;

    /// Changes the status to what `status` says, if it differs.
    fn patch_status(
        &self,
        objects: &Objects<Self>,
        status: &ReplicaSetStatus,
    ) -> impl Future<Output = Result<()>> + Send;
}

impl Replicated for ReplicaSet {
    const COMPONENT: &'static str = "replicaset-controller";

    fn objects(informers: &Informers) -> &Objects<Self> {
        informers.replica_sets()
    }

    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        Cow::Borrowed(self)
    }

    async fn patch_status(&self, objects: &Objects<Self>, status: &ReplicaSetStatus) -> Result<()> {
        objects
            .patch_status(self, self.status.as_ref(), status)
            .await
    }
}

impl Replicated for ReplicationController {
    const COMPONENT: &'static str = "replication-controller";

    fn objects(informers: &Informers) -> &Objects<Self> {
        informers.replication_controllers()
    }

    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        let spec = self.spec.clone().unwrap_or_default();
        Cow::Owned(ReplicaSet {
            metadata: self.metadata.clone(),
            spec: Some(ReplicaSetSpec {
                min_ready_seconds: spec.min_ready_seconds,
                replicas: spec.replicas,
                selector: LabelSelectorFields {
                    match_labels: spec.selector,
                    match_expressions: None,
                },
                template: spec.template,
            }),
            status: self.status.clone().map(|s| ReplicaSetStatus {
                available_replicas: s.available_replicas,
                conditions: s
                    .conditions
                    .map(|list| list.into_iter().map(from_controller).collect()),
                fully_labeled_replicas: s.fully_labeled_replicas,
                observed_generation: s.observed_generation,
                ready_replicas: s.ready_replicas,
                replicas: s.replicas,
                terminating_replicas: None,
            }),
        })
    }

    async fn patch_status(&self, objects: &Objects<Self>, status: &ReplicaSetStatus) -> Result<()> {
        let status = status.clone();
        let status = ReplicationControllerStatus {
            available_replicas: status.available_replicas,
            conditions: status
                .conditions
                .map(|list| list.into_iter().map(to_controller).collect()),
            fully_labeled_replicas: status.fully_labeled_replicas,
            observed_generation: status.observed_generation,
            ready_replicas: status.ready_replicas,
            replicas: status.replicas,
        };
        objects
            .patch_status(self, self.status.as_ref(), &status)
            .await
    }
}

fn from_controller(c: ReplicationControllerCondition) -> ReplicaSetCondition {
    ReplicaSetCondition {
        last_transition_time: c.last_transition_time,
        message: c.message,
        reason: c.reason,
        status: c.status,
        type_: c.type_,
    }
}

fn to_controller(c: ReplicaSetCondition) -> ReplicationControllerCondition {
    ReplicationControllerCondition {
        last_transition_time: c.last_transition_time,
        message: c.message,
        reason: c.reason,
        status: c.status,
        type_: c.type_,
    }
}

struct Controller<K> {
    context: Arc<Context>,
    recorder: Recorder,
    kind: PhantomData<fn() -> K>,
}

/// Runs the controller of one such kind.
pub async fn run<K: Replicated>(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let (sets, pods) = (
        &K::objects(context.informers()).informer,
        &context.informers().pods().informer,
    );
    let q = queue.clone();
    sets.on_change(move |old, new| {
        new.or(old)
            .into_iter()
            .for_each(|set| q.add(key_of(set.as_ref())))
    });
    let (q, copy) = (queue.clone(), sets.clone());
    pods.on_change(move |old, new| {
        for pod in [old, new].into_iter().flatten() {
            let namespace = pod.namespace().unwrap_or_default();
            match controller_of(&pod.metadata) {
                Some(owner)
                    if owner.kind == K::kind(&()) && owner.api_version == K::api_version(&()) =>
                {
                    q.add(format!("{namespace}/{}", owner.name))
                }
                Some(_) => {}
                // No one's: whoever selects it may adopt it, or have let it go.
                None => copy
                    .namespace(&namespace)
                    .iter()
                    .filter(|s| selects(&s.as_set(), pod))
                    .for_each(|s| q.add(key_of(s.as_ref()))),
            }
        }
    });
    sets.synced().await;
    pods.synced().await;
    let controller = Controller::<K> {
        recorder: context.recorder(K::COMPONENT),
        context: context.clone(),
        kind: PhantomData,
    };
    work(&queue, WORKERS, &token, |key| controller.reconcile(key)).await;
}

fn selects(set: &ReplicaSet, pod: &Pod) -> bool {
    let selector = set
        .spec
        .as_ref()
        .map_or_else(LabelSelector::nothing, |s| meta::selector(&s.selector));
    meta::matches(&selector, pod)
}

impl<K: Replicated> Controller<K> {
    fn sets(&self) -> &Objects<K> {
        K::objects(self.context.informers())
    }

    fn pods(&self) -> &Objects<Pod> {
        self.context.informers().pods()
    }

    async fn reconcile(&self, key: String) -> Result<Next> {
        let Some(object) = self.sets().informer.get(&key) else {
            return Ok(Next::Done);
        };
        let set = object.as_set();
        let mut pods = self
            .pods()
            .informer
            .by_index(CONTROLLER, set.metadata.uid.as_deref().unwrap_or_default());
        pods.extend(self.pods().informer.by_index(
            CONTROLLER,
            &orphans(set.metadata.namespace.as_deref().unwrap_or_default()),
        ));
        let now = Timestamp::now();
        let plan = plan(&Observed {
            set: &set,
            pods: &pods,
            now,
        });

        let mut failure = None;
        for action in &plan.actions {
            if let Err((reason, error)) = self.act(&object, &set, action).await {
                if error.is_namespace_terminating() {
                    return Err(error);
                }
                failure = Some((reason, error));
                break;
            }
        }
        // The plan's status tells of the pods as they were; what was done since comes with the next pass.
        let status = with_failure(
            plan.status,
            failure.as_ref().map(|(r, e)| (*r, e.to_string())),
            now,
        );
        object.patch_status(self.sets(), &status).await?;
        match (failure, plan.again) {
            (Some((_, error)), _) => Err(error),
            (None, Some(after)) => Ok(Next::After(after + Duration::from_millis(100))),
            (None, None) => Ok(Next::Done),
        }
    }

    async fn act(
        &self,
        object: &K,
        set: &ReplicaSet,
        action: &Action,
    ) -> std::result::Result<(), (&'static str, Error)> {
        match action {
            Action::Adopt(pod) => self
                .adopt(object, pod)
                .await
                .map_err(|e| ("FailedCreate", e)),
            Action::Release(pod) => {
                let patch = meta::release_patch(set.metadata.uid.as_deref().unwrap_or_default());
                match self.pods().patch_strategic(pod, patch).await {
                    Err(error) if !error.is_not_found() => Err(("FailedDelete", error)),
                    _ => Ok(()),
                }
            }
            Action::Create(count) => slow_start(*count, |_| self.create(object, set))
                .await
                .map_err(|e| ("FailedCreate", e)),
            Action::Delete(pods) => {
                let deleted =
                    futures::future::join_all(pods.iter().map(|pod| self.delete(object, pod)))
                        .await;
                deleted
                    .into_iter()
                    .collect::<Result<Vec<()>>>()
                    .map(drop)
                    .map_err(|e| ("FailedDelete", e))
            }
        }
    }

    /// Adoption asks the server first: the copy may not know yet that the set is being deleted.
    async fn adopt(&self, set: &K, pod: &Pod) -> Result<()> {
        let fresh = self
            .sets()
            .api(&set.namespace().unwrap_or_default())
            .get_opt(&set.name_any())
            .await?;
        match fresh {
            Some(fresh)
                if fresh.meta().uid == set.meta().uid
                    && fresh.meta().deletion_timestamp.is_none() => {}
            _ => {
                return Err(Error::Other(format!(
                    "{} has been deleted or replaced",
                    key_of(set)
                )));
            }
        }
        self.pods()
            .patch_strategic(pod, meta::adopt_patch(&controller_ref(set)))
            .await
    }

    async fn create(&self, object: &K, set: &ReplicaSet) -> Result<()> {
        let namespace = set.namespace().unwrap_or_default();
        let template = set
            .spec
            .as_ref()
            .and_then(|s| s.template.clone())
            .unwrap_or_default();
        let pod = pods::from_template(&template, &namespace, controller_ref(object));
        match self.pods().create(&namespace, &pod).await {
            Ok(pod) => {
                let message = format!("Created pod: {}", pod.name_any());
                self.recorder.event(
                    &reference(object),
                    EventType::Normal,
                    "SuccessfulCreate",
                    message,
                );
                Ok(())
            }
            Err(error) => {
                if !error.is_namespace_terminating() {
                    let message = format!("Error creating: {error}");
                    self.recorder.event(
                        &reference(object),
                        EventType::Warning,
                        "FailedCreate",
                        message,
                    );
                }
                Err(error)
            }
        }
    }

    async fn delete(&self, set: &K, pod: &Pod) -> Result<()> {
        match self.pods().delete_with(pod, DeleteParams::default()).await {
            Ok(()) => {
                let message = format!("Deleted pod: {}", pod.name_any());
                self.recorder.event(
                    &reference(set),
                    EventType::Normal,
                    "SuccessfulDelete",
                    message,
                );
                Ok(())
            }
            Err(error) => {
                let message = format!("Error deleting: {error}");
                self.recorder
                    .event(&reference(set), EventType::Warning, "FailedDelete", message);
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(replicas: i32, extra: Value) -> ReplicaSet {
        let mut value = json!({
            "metadata": {"namespace": "ns", "name": "web", "uid": "set", "generation": 2},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "minReadySeconds": 5,
                     "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}}
        });
        json_merge(&mut value, extra);
        serde_json::from_value(value).unwrap()
    }

    fn json_merge(into: &mut Value, from: Value) {
        match from {
            Value::Object(map) => map
                .into_iter()
                .for_each(|(k, v)| json_merge(&mut into[k], v)),
            other => *into = other,
        }
    }

    /// `o`wned, or`p`han or `f`oreign; `r`eady, `p`ending, `d`eleting, `f`ailed; label.
    fn pod(name: &str, owner: char, state: char, label: &str) -> Arc<Pod> {
        let mut value = json!({"metadata": {"namespace": "ns", "name": name, "uid": name, "labels": {"app": label}}});
        let uid = match owner {
            'o' => Some("set"),
            'f' => Some("other"),
            _ => None,
        };
        if let Some(uid) = uid {
            value["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": uid, "controller": true}]);
        }
        value["status"] = match state {
            'r' => json!({"phase": "Running",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}),
            'f' => json!({"phase": "Failed"}),
            _ => json!({"phase": "Pending"}),
        };
        if state == 'd' {
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn show(actions: &[Action]) -> Vec<String> {
        let one = |action: &Action| match action {
            Action::Adopt(p) => format!("adopt {}", p.name_any()),
            Action::Release(p) => format!("release {}", p.name_any()),
            Action::Create(n) => format!("create {n}"),
            Action::Delete(p) => format!(
                "delete {}",
                p.iter().map(|p| p.name_any()).collect::<Vec<_>>().join(" ")
            ),
        };
        actions.iter().map(one).collect()
    }

    #[test]
    fn plans() {
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let p = pod;
        let deleting = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        #[rustfmt::skip]
        let cases: Vec<(&str, ReplicaSet, Vec<Arc<Pod>>, Vec<&str>)> = vec![
            ("from nothing", set(3, json!({})), vec![], vec!["create 3"]),
            ("enough", set(1, json!({})), vec![p("a", 'o', 'r', "web")], vec![]),
            ("too many: the one that is not ready goes", set(1, json!({})), vec![p("a", 'o', 'r', "web"), p("b", 'o', 'p', "web")], vec!["delete b"]),
            ("to none", set(0, json!({})), vec![p("a", 'o', 'r', "web"), p("b", 'o', 'p', "web")], vec!["delete a b"]),
            ("failed and deleted ones are replaced", set(2, json!({})), vec![p("a", 'o', 'f', "web"), p("b", 'o', 'd', "web")], vec!["create 2"]),
            ("an orphan is adopted and counts", set(2, json!({})), vec![p("a", ' ', 'p', "web")], vec!["adopt a", "create 1"]),
            ("an orphan with another label is not", set(1, json!({})), vec![p("a", ' ', 'p', "db")], vec!["create 1"]),
            ("a pod that is no longer selected is let go", set(1, json!({})), vec![p("a", 'o', 'r', "db")], vec!["release a", "create 1"]),
            ("others' pods do not count", set(1, json!({})), vec![p("a", 'f', 'r', "web")], vec!["create 1"]),
            ("nothing is made for a set that is being deleted", set(3, deleting), vec![p("a", ' ', 'r', "web")], vec![]),
            ("no more than a burst", set(2000, json!({})), vec![], vec!["create 500"]),
        ];
        for (why, set, pods, want) in cases {
            let plan = plan(&Observed {
                set: &set,
                pods: &pods,
                now,
            });
            assert_eq!(show(&plan.actions), want, "{why}");
        }
    }

    #[test]
    fn status_counts() {
        let now = "2026-01-01T00:00:03Z".parse().unwrap();
        let pods = [
            pod("a", 'o', 'r', "web"),
            pod("b", 'o', 'p', "web"),
            pod("c", 'o', 'd', "web"),
        ];
        let plan = plan(&Observed {
            set: &set(2, json!({})),
            pods: &pods,
            now,
        });
        let s = plan.status;
        assert_eq!(
            (s.replicas, s.ready_replicas, s.available_replicas),
            (2, Some(1), None)
        );
        assert_eq!(
            (
                s.fully_labeled_replicas,
                s.terminating_replicas,
                s.observed_generation
            ),
            (Some(2), Some(1), Some(2))
        );
        assert_eq!(
            plan.again,
            Some(Duration::from_secs(2)),
            "ready since 3 s, available after 5 s"
        );
    }

    #[test]
    fn a_failure_is_a_condition_until_it_is_over() {
        let now = Timestamp::UNIX_EPOCH;
        let failed = with_failure(
            ReplicaSetStatus::default(),
            Some(("FailedCreate", "quota".into())),
            now,
        );
        assert_eq!(
            failed.conditions.as_ref().map(|c| c[0].reason.as_deref()),
            Some(Some("FailedCreate"))
        );
        assert_eq!(
            with_failure(failed.clone(), Some(("FailedCreate", "other".into())), now),
            failed
        );
        assert_eq!(with_failure(failed, None, now).conditions, None);
    }
}
