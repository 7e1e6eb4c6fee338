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

type Resources = BTreeMap<String, Quantity>;

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

/// What the pod asks for as a whole: cpu in thousandths, memory in bytes.
pub fn requests(pod: &Pod) -> [i64; 2] {
    [cpu, memory].map(|get| {
        let of = |r: &ResourceRequirements| get(r.requests.as_ref()).or(get(r.limits.as_ref()));
        match model::spec(pod).resources.as_ref().and_then(of) {
            Some(value) => value,
            None => total(pod, of).0,
        }
    })
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
