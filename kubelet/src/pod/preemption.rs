//! Room for critical pods: where one does not fit for want of resources only, others have to go. Which ones is decided as
//! in Kubernetes' kubelet: guaranteed pods only where burstable and best-effort ones are not enough, burstable ones only
//! where best-effort ones are not, and of each class as few as will do.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::allocation::one_pod;
use crate::model;
use crate::resources::{self, Amounts, Insufficient, Qos};

/// The reason of the victim's event and status, and their message.
pub const REASON: &str = "Preempting";
pub const MESSAGE: &str = "Preempted in order to admit critical pod";

const SYSTEM_CRITICAL: i32 = 2_000_000_000;

#[derive(Clone, Debug)]
struct Candidate {
    pod: Arc<Pod>,
    asks: Amounts,
}

pub fn is_critical(pod: &Pod) -> bool {
    model::spec(pod)
        .priority
        .is_some_and(|p| p >= SYSTEM_CRITICAL)
}

/// A critical pod may take the place of any that is not; among critical ones the priority decides.
fn may_preempt(pod: &Pod, other: &Pod) -> bool {
    let priority = |pod| model::spec(pod).priority;
    is_critical(pod) && !is_critical(other)
        || priority(pod)
            .zip(priority(other))
            .is_some_and(|(a, b)| a > b)
}

/// The pods among `others` that have to end for `pod` to have what it lacks; the error says what cannot be had.
pub fn victims<'a>(
    pod: &Pod,
    others: impl Iterator<Item = &'a Arc<Pod>>,
    lacking: &[Insufficient],
) -> Result<Vec<Arc<Pod>>, String> {
    let mut candidates: Vec<Candidate> = others
        .filter(|other| may_preempt(pod, other))
        .map(|other| {
            let mut asks = resources::requests(other);
            resources::add(&mut asks, &one_pod());
            Candidate {
                pod: other.clone(),
                asks,
            }
        })
        .collect();
    candidates.sort_by(|a, b| model::uid(&a.pod).cmp(model::uid(&b.pod)));
    let of = |qos: Qos| -> Vec<Candidate> {
        let these = candidates.iter().filter(|c| resources::qos(&c.pod) == qos);
        these.cloned().collect()
    };
    let lacking = lacking.iter().map(|r| {
        let amount = r.requested - r.capacity.saturating_sub(r.used);
        (r.name.clone(), amount)
    });
    let lacking: Amounts = lacking.collect();
    let (best_effort, burstable) = (of(Qos::BestEffort), of(Qos::Burstable));
    let lower = left(&left(&lacking, &best_effort), &burstable);
    let guaranteed = nearest(of(Qos::Guaranteed), lower)?;
    let upper = left(&left(&lacking, &best_effort), &guaranteed);
    let burstable = nearest(burstable, upper)?;
    let rest = left(&left(&lacking, &burstable), &guaranteed);
    let best_effort = nearest(best_effort, rest)?;
    let all = best_effort.into_iter().chain(burstable).chain(guaranteed);
    Ok(all.map(|c| c.pod).collect())
}

/// What is still lacking once these pods are gone.
fn left(lacking: &Amounts, gone: &[Candidate]) -> Amounts {
    let freed = |name: &str| -> i64 { gone.iter().filter_map(|c| c.asks.get(name)).sum() };
    lacking
        .iter()
        .map(|(name, amount)| (name.clone(), amount - freed(name)))
        .filter(|(_, amount)| *amount > 0)
        .collect()
}

/// One after the other the pod that brings the most of what is lacking, and of equals the one that asks for less.
fn nearest(mut pods: Vec<Candidate>, mut lacking: Amounts) -> Result<Vec<Candidate>, String> {
    let mut chosen = Vec::new();
    while !lacking.is_empty() {
        let better = |a: &(usize, &Candidate), b: &(usize, &Candidate)| {
            let size = |c: &Candidate| ["memory", "cpu"].map(|name| c.asks.get(name).copied());
            distance(&lacking, a.1)
                .total_cmp(&distance(&lacking, b.1))
                .then_with(|| size(a.1).cmp(&size(b.1)))
        };
        let Some((best, _)) = pods.iter().enumerate().min_by(better) else {
            let each = lacking.iter().map(|(n, a)| format!("(res: {n}, q: {a}), "));
            return Err(format!(
                "preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: [{}]",
                each.collect::<String>()
            ));
        };
        let best = pods.swap_remove(best);
        lacking = left(&lacking, std::slice::from_ref(&best));
        chosen.push(best);
    }
    Ok(chosen)
}

/// How much of each lack a pod would leave, as the sum of the squares of the shares.
fn distance(lacking: &Amounts, candidate: &Candidate) -> f64 {
    let share = |(name, amount): (&String, &i64)| {
        let asks = candidate.asks.get(name).copied().unwrap_or(0);
        ((amount - asks).max(0) as f64 / *amount as f64).powi(2)
    };
    lacking.iter().map(share).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, priority: i32, resources: Value) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "uid": name}, "spec": {"priority": priority,
            "containers": [{"name": "a", "resources": resources}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn asks(cpu: &str, memory: &str) -> Value {
        json!({"requests": {"cpu": cpu, "memory": memory}})
    }

    fn guaranteed(cpu: &str, memory: &str) -> Value {
        let same = json!({"cpu": cpu, "memory": memory});
        json!({"requests": same, "limits": same})
    }

    #[test]
    fn as_few_as_will_do_of_the_lowest_class() {
        let critical = SYSTEM_CRITICAL;
        let others = [
            pod("best", 0, json!({})),
            pod("small", 0, asks("100m", "100")),
            pod("middle", 0, asks("500m", "100")),
            pod("large", 0, asks("1", "100")),
            pod("sure", 0, guaranteed("2", "500")),
            pod("critical", critical, asks("8", "8000")),
        ];
        let cannot = "preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: [(res: cpu, q: 401), ]";
        type Row<'a> = (&'a [(&'a str, i64)], Result<Vec<&'a str>, &'a str>);
        let table: [Row; 8] = [
            (&[("pods", 1)], Ok(vec!["best"])),
            (&[("pods", 2)], Ok(vec!["best", "small"])),
            (&[("cpu", 100)], Ok(vec!["small"])),
            (&[("cpu", 101)], Ok(vec!["middle"])),
            (&[("cpu", 1100)], Ok(vec!["large", "small"])),
            (
                &[("cpu", 100), ("memory", 150)],
                Ok(vec!["small", "middle"]),
            ),
            // All burstable pods together are not enough; with the guaranteed one a single one of them is.
            (&[("cpu", 2050)], Ok(vec!["small", "sure"])),
            (&[("cpu", 4001)], Err(cannot)),
        ];
        let asking = pod("asking", critical, json!({}));
        for (lacking, want) in table {
            let lacking: Vec<Insufficient> = lacking
                .iter()
                .map(|(name, amount)| Insufficient {
                    name: name.to_string(),
                    requested: amount + 10,
                    used: 90,
                    capacity: 100,
                })
                .collect();
            let found = victims(&asking, others.iter(), &lacking);
            let names = |pods: Vec<Arc<Pod>>| -> Vec<String> {
                pods.iter().map(|p| model::name(p).to_owned()).collect()
            };
            let want = want
                .map(|names| names.into_iter().map(str::to_owned).collect())
                .map_err(str::to_owned);
            assert_eq!(found.map(names), want, "{lacking:?}");
        }
    }

    #[test]
    fn who_gives_way_to_whom() {
        let critical = SYSTEM_CRITICAL;
        for (priority, other, want) in [
            (critical, 0, true),
            (critical, critical, false),
            (critical + 1000, critical, true),
            (critical, critical + 1000, false),
        ] {
            let of = |priority| pod("p", priority, json!({}));
            assert_eq!(may_preempt(&of(priority), &of(other)), want);
        }
    }
}
