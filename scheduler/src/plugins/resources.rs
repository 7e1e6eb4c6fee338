//! Does the pod fit, and where is most left.

use crate::cluster::{Cluster, Node};
use crate::framework::{Change, Filter, MAX_SCORE, Plugin, Reason, Score, Verdict};
use crate::model::PodInfo;

/// Requests must fit into what the node has left; nodes with more left are better (LeastAllocated).
pub struct Fit;

struct Requests<'a>(&'a PodInfo);

impl Filter for Requests<'_> {
    fn check(&self, node: &Node) -> Verdict {
        let mut verdict = Verdict::fits();
        let (want, have, used) = (&self.0.requests, &node.info.allocatable, &node.requested);
        if node.pods.len() as i64 + 1 > node.info.max_pods {
            verdict.add(Reason::TooManyPods, false);
        }
        for (reason, want, have, used) in [
            (Reason::Cpu, want.milli_cpu, have.milli_cpu, used.milli_cpu),
            (Reason::Memory, want.memory, have.memory, used.memory),
            (
                Reason::Ephemeral,
                want.ephemeral,
                have.ephemeral,
                used.ephemeral,
            ),
        ] {
            if want > 0 && want > have - used {
                verdict.add(reason, want > have);
            }
        }
        for (name, want) in want.others.iter().filter(|(_, n)| *n > 0) {
            let have = have.other(name);
            if *want > have - used.other(name) {
                verdict.lacking.push(name.clone());
                verdict.unresolvable |= *want > have;
            }
        }
        verdict
    }
}

impl Score for Requests<'_> {
    fn score(&self, node: &Node) -> i64 {
        let have = &node.info.allocatable;
        let parts = [
            free_share(self.0.scored_cpu + node.scored_cpu, have.milli_cpu),
            free_share(self.0.scored_memory + node.scored_memory, have.memory),
        ];
        let counted = [have.milli_cpu, have.memory]
            .iter()
            .filter(|c| **c > 0)
            .count() as i64;
        parts.iter().sum::<i64>() / counted.max(1)
    }
}

fn free_share(used: i64, capacity: i64) -> i64 {
    if capacity <= 0 || used > capacity {
        0
    } else {
        (capacity - used) * MAX_SCORE / capacity
    }
}

impl Plugin for Fit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn filter<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Filter + 'a>> {
        Some(Box::new(Requests(pod)))
    }

    fn score<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Score + 'a>> {
        Some(Box::new(Requests(pod)))
    }

    fn helps(&self, change: &Change, _: &PodInfo) -> bool {
        matches!(
            change,
            Change::NodeAdded
                | Change::NodeUpdated {
                    allocatable: true,
                    ..
                }
                | Change::PodRemoved(_)
        )
    }
}

/// Prefers nodes on which CPU and memory are used up evenly.
pub struct BalancedAllocation;

struct Balance<'a>(&'a PodInfo);

impl Score for Balance<'_> {
    fn score(&self, node: &Node) -> i64 {
        let have = &node.info.allocatable;
        if have.milli_cpu <= 0 || have.memory <= 0 {
            return 0;
        }
        let share = |used: i64, capacity: i64| (used as f64 / capacity as f64).min(1.0);
        let cpu = share(
            self.0.requests.milli_cpu + node.requested.milli_cpu,
            have.milli_cpu,
        );
        let memory = share(self.0.requests.memory + node.requested.memory, have.memory);
        // The standard deviation of two values is half their distance.
        ((1.0 - (cpu - memory).abs() / 2.0) * MAX_SCORE as f64) as i64
    }
}

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn score<'a>(&self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Score + 'a>> {
        // Without requests a pod changes nobody's balance.
        (!pod.requests.is_zero()).then(|| Box::new(Balance(pod)) as Box<dyn Score>)
    }

    fn helps(&self, _: &Change, _: &PodInfo) -> bool {
        false
    }
}
