//! The controllers that keep a cluster's objects in step with each other, all on one frame.
//!
//! Every controller is one module with the same shape: informers put keys on a queue; for each key the controller
//! *observes* (reads the informers' copies), *plans* (a pure function with unit tests) and *acts* (writes with
//! preconditions). What it wrote is put back into the copies at once, so the next pass builds on it; a pass that
//! plans nothing is the end. Nothing is remembered between passes.
//!
//! Start reading at [`frame`], then [`replicaset`], the model for the rest. [`run`] starts what `--controllers`
//! names, once this instance is the leader.

// Tables of cases are tuples, and read best as such.
#![cfg_attr(test, allow(clippy::type_complexity))]

pub mod discovery;
pub mod frame;
pub mod history;
pub mod informers;
pub mod meta;
pub mod ownership;
pub mod pods;
pub mod scale;

pub mod bootstrap;
pub mod certificates;
pub mod clusterroleaggregation;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod disruption;
pub mod endpoints;
pub mod endpointslice;
pub mod endpointslicemirroring;
pub mod garbagecollector;
pub mod job;
pub mod namespace;
pub mod nodeipam;
pub mod nodelifecycle;
pub mod podautoscaler;
pub mod podgc;
pub mod replicaset;
pub mod resourcequota;
pub mod serviceaccount;
pub mod servicecidr;
pub mod statefulset;
pub mod storageprotection;
pub mod tainteviction;
pub mod ttlafterfinished;

use std::sync::Arc;

use client::CancellationToken;
use frame::Context;
use futures::future::BoxFuture;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;

type Start = fn(Arc<Context>, CancellationToken) -> BoxFuture<'static, ()>;

/// Every controller by the name that `--controllers` knows it by; names are those of Kubernetes.
pub const CONTROLLERS: &[(&str, Start)] = &[
    ("bootstrap-signer-controller", |c, t| {
        Box::pin(bootstrap::sign::run(c, t))
    }),
    ("certificatesigningrequest-approving-controller", |c, t| {
        Box::pin(certificates::approve::run(c, t))
    }),
    ("certificatesigningrequest-cleaner-controller", |c, t| {
        Box::pin(certificates::clean::run(c, t))
    }),
    ("certificatesigningrequest-signing-controller", |c, t| {
        Box::pin(certificates::sign::run(c, t))
    }),
    ("clusterrole-aggregation-controller", |c, t| {
        Box::pin(clusterroleaggregation::run(c, t))
    }),
    ("cronjob-controller", |c, t| Box::pin(cronjob::run(c, t))),
    ("daemonset-controller", |c, t| {
        Box::pin(daemonset::run(c, t))
    }),
    ("deployment-controller", |c, t| {
        Box::pin(deployment::run(c, t))
    }),
    ("disruption-controller", |c, t| {
        Box::pin(disruption::run(c, t))
    }),
    ("endpoints-controller", |c, t| {
        Box::pin(endpoints::run(c, t))
    }),
    ("endpointslice-controller", |c, t| {
        Box::pin(endpointslice::run(c, t))
    }),
    ("endpointslice-mirroring-controller", |c, t| {
        Box::pin(endpointslicemirroring::run(c, t))
    }),
    ("garbage-collector-controller", |c, t| {
        Box::pin(garbagecollector::run(c, t))
    }),
    ("horizontal-pod-autoscaler-controller", |c, t| {
        Box::pin(podautoscaler::run(c, t))
    }),
    ("job-controller", |c, t| Box::pin(job::run(c, t))),
    ("namespace-controller", |c, t| {
        Box::pin(namespace::run(c, t))
    }),
    ("node-ipam-controller", |c, t| Box::pin(nodeipam::run(c, t))),
    ("node-lifecycle-controller", |c, t| {
        Box::pin(nodelifecycle::run(c, t))
    }),
    ("persistentvolume-protection-controller", |c, t| {
        Box::pin(storageprotection::run_volumes(c, t))
    }),
    ("persistentvolumeclaim-protection-controller", |c, t| {
        Box::pin(storageprotection::run_claims(c, t))
    }),
    ("pod-garbage-collector-controller", |c, t| {
        Box::pin(podgc::run(c, t))
    }),
    ("replicaset-controller", |c, t| {
        Box::pin(replicaset::run::<ReplicaSet>(c, t))
    }),
    ("replicationcontroller-controller", |c, t| {
        Box::pin(replicaset::run::<ReplicationController>(c, t))
    }),
    ("resourcequota-controller", |c, t| {
        Box::pin(resourcequota::run(c, t))
    }),
    ("root-ca-certificate-publisher-controller", |c, t| {
        Box::pin(serviceaccount::run_root_ca(c, t))
    }),
    ("service-cidr-controller", |c, t| {
        Box::pin(servicecidr::run(c, t))
    }),
    ("serviceaccount-controller", |c, t| {
        Box::pin(serviceaccount::run(c, t))
    }),
    ("serviceaccount-token-controller", |c, t| {
        Box::pin(serviceaccount::tokens::run(c, t))
    }),
    ("statefulset-controller", |c, t| {
        Box::pin(statefulset::run(c, t))
    }),
    ("taint-eviction-controller", |c, t| {
        Box::pin(tainteviction::run(c, t))
    }),
    ("token-cleaner-controller", |c, t| {
        Box::pin(bootstrap::clean::run(c, t))
    }),
    ("ttl-after-finished-controller", |c, t| {
        Box::pin(ttlafterfinished::run(c, t))
    }),
];

/// Those that `*` leaves out.
const OFF_BY_DEFAULT: [&str; 2] = ["bootstrap-signer-controller", "token-cleaner-controller"];

/// Names of earlier Kubernetes releases that are not the new ones without their ending.
const ALIASES: [(&str, &str); 6] = [
    ("bootstrapsigner", "bootstrap-signer-controller"),
    (
        "csrapproving",
        "certificatesigningrequest-approving-controller",
    ),
    ("csrcleaner", "certificatesigningrequest-cleaner-controller"),
    ("csrsigning", "certificatesigningrequest-signing-controller"),
    (
        "endpointslicemirroring",
        "endpointslice-mirroring-controller",
    ),
    ("tokencleaner", "token-cleaner-controller"),
];

/// Whether `--controllers` switches `name` on: `name`, unless `-name`, else `*`. The short names of earlier
/// Kubernetes releases (`deployment`) are understood too.
pub fn enabled(name: &str, selection: &[String]) -> bool {
    let short = name.trim_end_matches("-controller");
    let means = |given: &str| given == name || given == short || ALIASES.contains(&(given, name));
    let chosen = |prefix: &str| {
        let mut given = selection.iter().filter_map(|s| s.strip_prefix(prefix));
        given.any(means)
    };
    let all = selection.iter().any(|s| s == "*") && !OFF_BY_DEFAULT.contains(&name);
    !chosen("-") && (chosen("") || all)
}

/// Runs the selected controllers until `token` is cancelled.
pub async fn run(context: Arc<Context>, selection: &[String], token: CancellationToken) {
    let started = CONTROLLERS
        .iter()
        .filter(|(name, _)| enabled(name, selection));
    let tasks: Vec<_> = started
        .map(|(_, start)| tokio::spawn(start(context.clone(), token.clone())))
        .collect();
    for task in tasks {
        if let Err(error) = task.await {
            // A controller that panicked leaves its work undone: end, and be restarted afresh.
            tracing::error!(%error, "a controller ended unexpectedly");
            token.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_flag() {
        for (selection, name, want) in [
            (vec!["*"], "deployment-controller", true),
            (vec!["*", "-deployment"], "deployment-controller", false),
            (
                vec!["*", "-deployment-controller"],
                "deployment-controller",
                false,
            ),
            (vec!["deployment"], "deployment-controller", true),
            (vec!["deployment"], "replicaset-controller", false),
            (vec!["*"], "token-cleaner-controller", false),
            (vec!["*", "tokencleaner"], "token-cleaner-controller", true),
            (vec!["*", "token-cleaner"], "token-cleaner-controller", true),
            (
                vec!["*", "-csrsigning"],
                "certificatesigningrequest-signing-controller",
                false,
            ),
        ] {
            let selection: Vec<String> = selection.into_iter().map(str::to_owned).collect();
            assert_eq!(enabled(name, &selection), want, "{selection:?} {name}");
        }
    }
}
