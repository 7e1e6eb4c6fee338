//! The loop: every event of a Node, of a route or of a deadline leads to the same pass, which compares what
//! should be with what is and repairs the difference.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use client::mirror::Mirror;
use futures::{Stream, StreamExt};
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use kube::runtime::watcher::Event;
use rtnetlink::Handle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{cni, kernel, plan};

/// Kernel notifications come in swarms: one pass for each swarm.
const SETTLE: Duration = Duration::from_millis(50);
const RETRY: Duration = Duration::from_secs(5);
/// iptables has no notifications, so its rules are looked at now and then.
const CHECK: Duration = Duration::from_secs(60);

pub struct Overlay {
    pub node: String,
    pub cni_conf_dir: PathBuf,
    pub bridge_netfilter: bool,
    pub pods: Vec<IpNet>,
    pub masquerade: bool,
    pub netlink: Handle,
}

impl Overlay {
    /// Runs until `shutdown`. Routes and rules stay when it ends: pods go on.
    pub async fn run(
        &self,
        mut nodes: impl Stream<Item = Event<core::Node>> + Unpin,
        mut kernel: impl Stream<Item = ()> + Unpin,
        shutdown: &CancellationToken,
    ) {
        let mut mirror: Mirror<plan::Node> = Mirror::default();
        let mut due: Option<Instant> = None;
        let mut check = tokio::time::interval(CHECK);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Routes of nodes that are only not listed yet must not be taken for stale.
            let at = due.filter(|_| mirror.synced());
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = sleep_until(at.unwrap_or_else(Instant::now)), if at.is_some() => {
                    due = (!self.pass(mirror.items()).await).then(|| Instant::now() + RETRY);
                }
                Some(event) = nodes.next() => {
                    let first = matches!(event, Event::InitDone) && !mirror.synced();
                    mirror.apply(event, plan::Node::reduce, |_, _, _| due = Some(Instant::now()));
                    if first {
                        due = Some(Instant::now());
                    }
                }
                Some(()) = kernel.next() => {
                    let soon = Instant::now() + SETTLE;
                    due = Some(due.map_or(soon, |due| due.min(soon)));
                }
                _ = check.tick() => self.keep_rules().await,
            }
        }
    }

    /// One pass. True when nothing is left to do.
    async fn pass(&self, nodes: &BTreeMap<String, plan::Node>) -> bool {
        let mut good = true;
        let conflist = nodes
            .get(&self.node)
            .and_then(|me| plan::conflist(me, self.bridge_netfilter));
        // A node without a range keeps the configuration it had: its pods still run.
        if let Some(conflist) = conflist {
            match cni::write(&self.cni_conf_dir, &conflist) {
                Ok(true) => {
                    tracing::info!(directory = %self.cni_conf_dir.display(), "CNI configuration written")
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::error!("{error:#}");
                    good = false;
                }
            }
        }
        let existing = match kernel::routes(&self.netlink).await {
            Ok(existing) => existing,
            Err(error) => {
                tracing::error!("{error:#}");
                return false;
            }
        };
        for change in plan::changes(&plan::routes(nodes, &self.node), &existing) {
            match kernel::change_route(&self.netlink, &change).await {
                Ok(()) => tracing::info!(?change, "route changed"),
                Err(error) => {
                    tracing::warn!("{error:#}");
                    good = false;
                }
            }
        }
        good
    }

    async fn keep_rules(&self) {
        for pods in &self.pods {
            if kernel::rules_intact(pods).await {
                continue;
            }
            match kernel::write_rules(pods, self.masquerade).await {
                Ok(()) => tracing::info!(%pods, "pod traffic rules written"),
                Err(error) => tracing::error!(
                    "cannot write pod traffic rules, trying again in {CHECK:?}: {error:#}"
                ),
            }
        }
    }
}
