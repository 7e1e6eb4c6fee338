//! Gives every node a range of pod addresses out of the cluster's.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use client::events::{EventType, reference};
use client::{CancellationToken, Next, WorkQueue};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use serde_json::json;

use crate::frame::{Context, work};

/// A range of addresses that is cut into ranges of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    base: IpAddr,
    prefix: u8,
    node_prefix: u8,
}

impl Pool {
    pub fn parse(cidr: &str, node_prefix: u8) -> Result<Self, String> {
        let invalid =
            || format!("--cluster-cidr {cidr:?} is no address range such as 10.244.0.0/16");
        let (address, prefix) = cidr.split_once('/').ok_or_else(invalid)?;
        let base: IpAddr = address.parse().map_err(|_| invalid())?;
        let prefix: u8 = prefix.parse().map_err(|_| invalid())?;
        let bits = if base.is_ipv4() { 32 } else { 128 };
        if prefix > node_prefix || node_prefix > bits {
            return Err(format!(
                "--node-cidr-mask-size {node_prefix} does not fit into --cluster-cidr {cidr}"
            ));
        }
        Ok(Self {
            base,
            prefix,
            node_prefix,
        })
    }

    /// How many nodes it has room for.
    fn size(&self) -> u64 {
        1u64.checked_shl(u32::from(self.node_prefix - self.prefix))
            .unwrap_or(u64::MAX)
    }

    fn nth(&self, n: u64) -> String {
        let offset = |bits: u8| u128::from(n) << (bits - self.node_prefix);
        let address: IpAddr = match self.base {
            IpAddr::V4(base) => {
                Ipv4Addr::from_bits(base.to_bits() & mask4(self.prefix) | offset(32) as u32).into()
            }
            IpAddr::V6(base) => {
                Ipv6Addr::from_bits(base.to_bits() & mask6(self.prefix) | offset(128)).into()
            }
        };
        format!("{address}/{}", self.node_prefix)
    }

    /// The first range that is in nobody's use, looking on from `from`.
    pub fn free(&self, used: &HashSet<String>, from: u64) -> Option<(u64, String)> {
        // Among one more than are in use, one is free if the pool has that many.
        let tries = self.size().min(used.len() as u64 + 1);
        let candidates = (0..tries)
            .map(|i| (from + i) % self.size())
            .chain(0..tries.min(self.size()));
        candidates
            .map(|n| (n, self.nth(n)))
            .find(|(_, cidr)| !used.contains(cidr))
    }
}

fn mask4(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn mask6(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

fn cidrs(node: &Node) -> impl Iterator<Item = &String> {
    let spec = node.spec.iter();
    spec.flat_map(|s| s.pod_cidrs.iter().flatten().chain(&s.pod_cidr))
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let Some(cidr) = context.settings.cluster_cidr.clone() else {
        return;
    };
    let pool = match Pool::parse(&cidr, context.settings.node_cidr_mask_size) {
        Ok(pool) => pool,
        Err(error) => {
            tracing::error!(error, "nodes get no pod addresses");
            return;
        }
    };
    let nodes = context.informers().nodes();
    let recorder = context.recorder("cidrAllocator");
    let queue = WorkQueue::new();
    let q = queue.clone();
    // Ranges freed by a node that is gone may be what others wait for.
    let copy = nodes.informer.clone();
    nodes.informer.on_change(move |_, new| match new {
        Some(node) if cidrs(node).next().is_none() => q.add(node.name_any()),
        Some(_) => {}
        None => copy
            .list()
            .iter()
            .filter(|n| cidrs(n).next().is_none())
            .for_each(|n| q.add(n.name_any())),
    });
    nodes.informer.synced().await;
    let next = std::sync::atomic::AtomicU64::new(0);
    // One worker: no two nodes are given the same range.
    let (pool, recorder, next) = (&pool, &recorder, &next);
    work(&queue, 1, &token, |name| async move {
        let Some(node) = nodes
            .informer
            .get(&name)
            .filter(|n| cidrs(n).next().is_none())
        else {
            return Ok(Next::Done);
        };
        let used: HashSet<String> = nodes
            .informer
            .list()
            .iter()
            .flat_map(|n| cidrs(n).cloned().collect::<Vec<_>>())
            .collect();
        let from = next.load(std::sync::atomic::Ordering::Relaxed);
        let Some((n, range)) = pool.free(&used, from) else {
            let message = format!("Node {name} status is now: CIDRNotAvailable");
            recorder.event(
                &reference(node.as_ref()),
                EventType::Normal,
                "CIDRNotAvailable",
                message,
            );
            return Ok(Next::Done);
        };
        nodes
            .patch(
                &node,
                json!({"spec": {"podCIDR": range, "podCIDRs": [range]}}),
            )
            .await?;
        // A range is not given again while others are left: its last user may still be in other nodes' routes.
        next.store(n + 1, std::sync::atomic::Ordering::Relaxed);
        Ok(Next::Done)
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_and_reused() {
        let pool = Pool::parse("10.244.0.0/16", 24).unwrap();
        let mut used = HashSet::new();
        for (from, want) in [
            (0, "10.244.0.0/24"),
            (1, "10.244.1.0/24"),
            (255, "10.244.255.0/24"),
            (256, "10.244.2.0/24"),
        ] {
            let (_, got) = pool.free(&used, from).unwrap();
            assert_eq!(got, want);
            used.insert(got);
        }
        used = (0..256).map(|n| pool.nth(n)).collect();
        assert_eq!(pool.free(&used, 3), None);
        used.remove("10.244.7.0/24");
        assert_eq!(pool.free(&used, 9), Some((7, "10.244.7.0/24".into())));
    }

    #[test]
    fn v6_and_bad_input() {
        let pool = Pool::parse("fd00:10:244::/56", 64).unwrap();
        assert_eq!(pool.nth(1), "fd00:10:244:1::/64");
        for (cidr, size) in [
            ("10.244.0.0", 24),
            ("x/16", 24),
            ("10.0.0.0/16", 8),
            ("10.0.0.0/16", 33),
        ] {
            assert!(Pool::parse(cidr, size).is_err(), "{cidr} {size}");
        }
    }
}
