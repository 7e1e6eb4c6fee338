//! From requests and limits to what the kernel understands: QoS classes, cpu shares
//! and quota, memory limits, OOM scores. Pure arithmetic, with Kubernetes' constants.

use std::collections::BTreeMap;

use k8s_cri::v1::LinuxContainerResources;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::model::{self, Limits};

const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const QUOTA_PERIOD: i64 = 100_000;
const MIN_QUOTA: i64 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl std::fmt::Display for Qos {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Thousandths, rounded up.
pub fn millis(q: &Quantity) -> i64 {
    crate::quantity::parse(&q.0).map_or(0, |v| v.scaled(3))
}

/// Whole units, rounded up.
pub fn bytes(q: &Quantity) -> i64 {
    crate::quantity::parse(&q.0).map_or(0, |v| v.scaled(0))
}

pub type Resources = BTreeMap<String, Quantity>;

fn of<'a>(list: Option<&'a Resources>, name: &str) -> Option<&'a Quantity> {
    list?.get(name)
}

fn cpu(list: Option<&Resources>) -> Option<i64> {
    of(list, "cpu").map(millis)
}

fn memory(list: Option<&Resources>) -> Option<i64> {
    of(list, "memory").map(bytes)
}

fn sets(r: &ResourceRequirements) -> (Option<&Resources>, Option<&Resources>) {
    (r.requests.as_ref(), r.limits.as_ref())
}

/// Guaranteed: every container has cpu and memory limits equal to its requests;
/// best effort: nobody asks for anything; burstable: the rest. Pod-level resources decide if given.
pub fn qos(pod: &Pod) -> Qos {
    let all = model::init_containers(pod)
        .iter()
        .chain(&model::spec(pod).containers);
    let of_containers: Vec<&ResourceRequirements> = match &model::spec(pod).resources {
        Some(r) => vec![r],
        None => all.filter_map(|c| c.resources.as_ref()).collect(),
    };
    let count = match &model::spec(pod).resources {
        Some(_) => 1,
        None => model::init_containers(pod).len() + model::spec(pod).containers.len(),
    };
    let positive = |v: Option<i64>| v.filter(|v| *v > 0);
    let mut any = false;
    let mut guaranteed = of_containers.len() == count;
    for r in of_containers {
        let (requests, limits) = sets(r);
        for get in [cpu, memory] {
            let limit = positive(get(limits));
            let request = positive(get(requests)).or(limit);
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (_, true) => Qos::Guaranteed,
        _ => Qos::Burstable,
    }
}

pub fn shares(milli: i64) -> i64 {
    if milli <= 0 {
        MIN_SHARES
    } else {
        (milli * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
    }
}

pub fn quota(milli: i64) -> i64 {
    if milli <= 0 {
        0
    } else {
        (milli * QUOTA_PERIOD / 1000).max(MIN_QUOTA)
    }
}

/// What the runtime gets for one container.
pub fn container_resources(
    pod: &Pod,
    container: &Container,
    node_memory: i64,
) -> LinuxContainerResources {
    let none = ResourceRequirements::default();
    let (requests, limits) = sets(container.resources.as_ref().unwrap_or(&none));
    let limit = cpu(limits);
    let request = cpu(requests).or(limit);
    let limit_quota = quota(limit.unwrap_or(0));
    LinuxContainerResources {
        cpu_shares: shares(request.unwrap_or(0)),
        cpu_period: if limit_quota > 0 { QUOTA_PERIOD } else { 0 },
        cpu_quota: limit_quota,
        memory_limit_in_bytes: memory(limits).unwrap_or(0),
        oom_score_adj: oom_score_adj(pod, container, node_memory),
        ..Default::default()
    }
}

/// The same as the runtime tells it of a running container.
pub fn limits(pod: &Pod, container: &Container) -> Limits {
    let r = container_resources(pod, container, 1);
    Limits {
        shares: r.cpu_shares,
        quota: r.cpu_quota,
        memory: r.memory_limit_in_bytes,
    }
}

/// Amounts of resources by name: cpu in thousandths, all others in whole units.
pub type Amounts = BTreeMap<String, i64>;

pub fn amounts(list: Option<&Resources>) -> Amounts {
    let amount = |name: &str, q| if name == "cpu" { millis(q) } else { bytes(q) };
    let list = list.into_iter().flatten();
    list.map(|(name, q)| (name.clone(), amount(name, q)))
        .collect()
}

pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let have = sum.entry(name.clone()).or_default();
        *have = have.saturating_add(*amount);
    }
}

fn raise(peak: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let have = peak.entry(name.clone()).or_default();
        *have = (*have).max(*amount);
    }
}

/// What the pod asks for as a whole, counted as the scheduler does: the larger of its containers together and each init
/// container (with the sidecars started before it), or what the pod itself asks for, plus overhead.
pub fn requests(pod: &Pod) -> Amounts {
    let spec = model::spec(pod);
    let of = |c: &Container| amounts(c.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let (mut total, mut sidecars, mut peak) = (Amounts::new(), Amounts::new(), Amounts::new());
    for c in &spec.containers {
        add(&mut total, &of(c));
    }
    for c in model::init_containers(pod) {
        let mut need = of(c);
        if model::is_sidecar(c) {
            add(&mut sidecars, &need);
            need = sidecars.clone();
        } else {
            add(&mut need, &sidecars);
        }
        raise(&mut peak, &need);
    }
    add(&mut total, &sidecars);
    raise(&mut total, &peak);
    let own = amounts(spec.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let of_pods =
        |name: &String| matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-");
    total.extend(own.into_iter().filter(|(name, _)| of_pods(name)));
    add(&mut total, &amounts(spec.overhead.as_ref()));
    total
}

/// A resource of which the node has less left than is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Insufficient {
    pub name: String,
    pub requested: i64,
    pub used: i64,
    pub capacity: i64,
}

impl std::fmt::Display for Insufficient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Node didn't have enough resource: {}, requested: {}, used: {}, capacity: {}",
            self.name, self.requested, self.used, self.capacity
        )
    }
}

/// What does not fit of `asked` beside what is `used` of `capacity`, in the order in which Kubernetes looks: the number
/// of pods, cpu, memory, storage, then all others. Whoever asks for nothing of a resource fits, however much is used.
pub fn insufficient(asked: &Amounts, used: &Amounts, capacity: &Amounts) -> Vec<Insufficient> {
    const FIRST: [&str; 4] = ["pods", "cpu", "memory", "ephemeral-storage"];
    let of = |list: &Amounts, name: &str| list.get(name).copied().unwrap_or(0);
    let others = asked.keys().map(String::as_str);
    let others = others.filter(|name| !FIRST.contains(name));
    let found = FIRST
        .into_iter()
        .chain(others)
        .map(|name| Insufficient {
            name: name.to_owned(),
            requested: of(asked, name),
            used: of(used, name),
            capacity: of(capacity, name),
        })
        .filter(|r| r.requested > 0 && r.requested > r.capacity.saturating_sub(r.used));
    found.collect()
}

/// -997 for guaranteed and node-critical pods, 1000 for best effort, and in between the
/// higher the less memory was asked for.
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory: i64) -> i64 {
    const NODE_CRITICAL: i32 = 2_000_001_000;
    if model::spec(pod)
        .priority
        .is_some_and(|p| p >= NODE_CRITICAL)
    {
        return -997;
    }
    match qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let none = ResourceRequirements::default();
            let (requests, limits) = sets(container.resources.as_ref().unwrap_or(&none));
            let asked = memory(requests).or(memory(limits)).unwrap_or(0);
            let share = i128::from(asked) * 1000 / i128::from(node_memory.max(1));
            (1000 - i64::try_from(share).unwrap_or(1000)).clamp(3, 999)
        }
    }
}

/// What the pod's own cgroup gets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PodLimits {
    pub shares: i64,
    pub quota: Option<i64>,
    pub memory: Option<i64>,
}

/// Requests add up; a limit holds for the pod only if every container has one.
/// Init containers run one after the other, so the largest counts; sidecars run on beside all that follows.
pub fn pod_limits(pod: &Pod) -> PodLimits {
    let spec = model::spec(pod);
    if let Some(r) = &spec.resources {
        let (requests, limits) = sets(r);
        let request = cpu(requests).or(cpu(limits)).unwrap_or(0);
        return PodLimits {
            shares: shares(request),
            quota: cpu(limits).map(quota),
            memory: memory(limits),
        };
    }
    let request = total(pod, |r| cpu(r.requests.as_ref()).or(cpu(r.limits.as_ref()))).0;
    let (cpu_limit, cpu_all) = total(pod, |r| cpu(r.limits.as_ref()));
    let (mem_limit, mem_all) = total(pod, |r| memory(r.limits.as_ref()));
    PodLimits {
        shares: shares(request),
        quota: (cpu_all && cpu_limit > 0).then(|| quota(cpu_limit)),
        memory: (mem_all && mem_limit > 0).then_some(mem_limit),
    }
}

/// The effective sum over the pod, and whether every container names the resource.
fn total(pod: &Pod, get: impl Fn(&ResourceRequirements) -> Option<i64>) -> (i64, bool) {
    let value = |c: &Container| c.resources.as_ref().and_then(&get);
    let (mut all, mut sidecars, mut peak) = (true, 0, 0);
    for c in model::init_containers(pod) {
        all &= value(c).is_some();
        let v = value(c).unwrap_or(0);
        if model::is_sidecar(c) {
            sidecars += v;
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + v);
        }
    }
    let mut sum = sidecars;
    for c in &model::spec(pod).containers {
        all &= value(c).is_some();
        sum += value(c).unwrap_or(0);
    }
    (sum.max(peak), all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": "p"}, "spec": {"containers": containers}}),
        )
        .unwrap()
    }

    #[test]
    fn qos_classes() {
        let table = [
            (json!([{"name": "a"}]), Qos::BestEffort),
            (
                json!([{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]),
                Qos::Guaranteed,
            ),
            (
                json!([{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}, {"name": "b"}]),
                Qos::Burstable,
            ),
            (
                json!([{"name": "a", "resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": "1", "memory": "1Gi"}}}]),
                Qos::Burstable,
            ),
            (
                json!([{"name": "a", "resources": {"requests": {"cpu": "0"}}}]),
                Qos::BestEffort,
            ),
        ];
        for (containers, want) in table {
            assert_eq!(qos(&pod(containers.clone())), want, "{containers}");
        }
    }

    #[test]
    fn what_a_pod_asks_for() {
        let c = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu, "memory": "1Ki"}, "limits": {"cpu": "9"}}});
        let side = |cpu: &str| json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
        let gpu = json!({"name": "g", "resources": {"requests": {"example.com/gpu": "2", "ephemeral-storage": "1k"}}});
        let table = [
            (
                json!({"containers": [c("1"), c("500m")]}),
                json!({"cpu": 1500, "memory": 2048}),
            ),
            (
                json!({"containers": [c("1")], "initContainers": [c("2"), c("3")]}),
                json!({"cpu": 3000, "memory": 1024}),
            ),
            (
                json!({"containers": [c("1")], "initContainers": [side("2"), c("500m")]}),
                json!({"cpu": 3000, "memory": 1024}),
            ),
            (
                json!({"containers": [c("1")], "initContainers": [c("2"), side("2")]}),
                json!({"cpu": 3000, "memory": 1024}),
            ),
            (
                json!({"containers": [c("1")], "initContainers": [side("2"), c("2")]}),
                json!({"cpu": 4000, "memory": 1024}),
            ),
            (
                json!({"containers": [gpu]}),
                json!({"example.com/gpu": 2, "ephemeral-storage": 1000}),
            ),
            (
                json!({"containers": [c("1")], "resources": {"requests": {"cpu": "5", "ephemeral-storage": "7"}}, "overhead": {"cpu": "250m"}}),
                json!({"cpu": 5250, "memory": 1024}),
            ),
        ];
        for (spec, want) in table {
            let p: Pod =
                serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
            assert_eq!(json!(requests(&p)), want, "{spec}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named_in_order() {
        let amounts = |v: serde_json::Value| serde_json::from_value::<Amounts>(v).unwrap();
        let capacity = amounts(json!({"pods": 2, "cpu": 1000, "memory": 100, "x.io/a": 1}));
        let table = [
            (json!({"cpu": 1000}), json!({}), vec![]),
            (json!({"cpu": 1000}), json!({"cpu": 1}), vec!["cpu"]),
            (json!({"cpu": 0}), json!({"cpu": 2000}), vec![]),
            (json!({"pods": 1}), json!({"pods": 1}), vec![]),
            (
                json!({"memory": 101, "cpu": 1, "pods": 1}),
                json!({"pods": 2}),
                vec!["pods", "memory"],
            ),
            (
                json!({"x.io/b": 1, "x.io/a": 2, "ephemeral-storage": 1}),
                json!({}),
                vec!["ephemeral-storage", "x.io/a", "x.io/b"],
            ),
        ];
        for (asked, used, want) in table {
            let found = insufficient(&amounts(asked.clone()), &amounts(used), &capacity);
            let names: Vec<_> = found.iter().map(|r| r.name.as_str()).collect();
            assert_eq!(names, want, "{asked}");
        }
        let one = insufficient(
            &amounts(json!({"cpu": 1500})),
            &amounts(json!({"cpu": 300})),
            &capacity,
        );
        assert_eq!(
            one[0].to_string(),
            "Node didn't have enough resource: cpu, requested: 1500, used: 300, capacity: 1000"
        );
    }

    #[test]
    fn cgroup_values() {
        let p = pod(json!([
            {"name": "a", "resources": {"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}}},
            {"name": "b", "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "1Gi"}}}
        ]));
        let a = container_resources(&p, &model::spec(&p).containers[0], 1 << 33);
        assert_eq!(
            (
                a.cpu_shares,
                a.cpu_quota,
                a.cpu_period,
                a.memory_limit_in_bytes
            ),
            (256, 50_000, 100_000, 128 << 20)
        );
        assert_eq!(a.oom_score_adj, 1000 - 7);
        let limits = pod_limits(&p);
        assert_eq!(
            limits,
            PodLimits {
                shares: 358,
                quota: None,
                memory: Some((1 << 30) + (128 << 20))
            }
        );
        assert_eq!(shares(1), MIN_SHARES);
        assert_eq!(quota(1), MIN_QUOTA);
    }
}
