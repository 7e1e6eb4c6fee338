//! Keeps ranges of Service addresses for as long as addresses come from them: says when one may be used, and lets it go
//! once no address is left that no other range has.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use client::{CancellationToken, Next, WorkQueue};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR, ServiceCIDRStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::frame::{Context, Result, work};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// Until every API server knows that a range goes, and gives no more addresses from it.
const GRACE: SignedDuration = SignedDuration::from_secs(10);

/// What is to be done about a range.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    Nothing,
    Protect,
    /// To say that it is ready, or why it is not any more.
    Say {
        ready: bool,
    },
    /// To look again when the API servers know that it goes.
    Wait(Duration),
    Release,
}

/// Decides about one range. `others` are the ranges of all other ServiceCIDRs, `addresses` those that Services have.
pub fn plan(cidr: &ServiceCIDR, others: &[IpNet], addresses: &[IpAddr], now: Timestamp) -> Plan {
    let protected = cidr.finalizers().iter().any(|f| f == FINALIZER);
    let say = |ready: bool| match says(cidr, ready) {
        true => Plan::Nothing,
        false => Plan::Say { ready },
    };
    let Some(deleted) = &cidr.metadata.deletion_timestamp else {
        return if protected { say(true) } else { Plan::Protect };
    };
    if !protected {
        return Plan::Nothing;
    }
    let own = ranges(cidr);
    let covered = |range: &IpNet| others.iter().any(|other| other.contains(range));
    let only_here = |ip: &IpAddr| {
        own.iter().any(|range| range.contains(ip)) && !others.iter().any(|range| range.contains(ip))
    };
    if !own.iter().all(covered) && addresses.iter().any(only_here) {
        return say(false);
    }
    let known = deleted.0.checked_add(GRACE).unwrap_or(now);
    match Duration::try_from(known.duration_since(now)) {
        Ok(left) if !left.is_zero() => Plan::Wait(left),
        _ => Plan::Release,
    }
}

/// The ranges of a ServiceCIDR: one, or one of each address family.
fn ranges(cidr: &ServiceCIDR) -> Vec<IpNet> {
    let spec = cidr.spec.iter();
    let all = spec.flat_map(|spec| spec.cidrs.iter().flatten());
    all.filter_map(|range| range.parse().ok()).collect()
}

/// Reason and message of the condition Ready.
fn words(ready: bool) -> (&'static str, &'static str) {
    match ready {
        true => ("", "Kubernetes Service CIDR is ready"),
        false => (
            "Terminating",
            "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR",
        ),
    }
}

fn says(cidr: &ServiceCIDR, ready: bool) -> bool {
    let (reason, message) = words(ready);
    let status = if ready { "True" } else { "False" };
    let conditions = cidr
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    let mut own = conditions.filter(|c| c.type_ == "Ready");
    own.any(|c| c.status == status && c.reason == reason && c.message == message)
}

/// The status with what is to be said of it.
fn saying(cidr: &ServiceCIDR, ready: bool, now: Timestamp) -> ServiceCIDRStatus {
    let (reason, message) = words(ready);
    let mut status = cidr.status.clone().unwrap_or_default();
    let conditions = status.conditions.get_or_insert_default();
    let value = if ready { "True" } else { "False" };
    let before = conditions.iter().find(|c| c.type_ == "Ready");
    let since = before.filter(|c| c.status == value);
    let since = since.map_or(Time(now), |c| c.last_transition_time.clone());
    conditions.retain(|c| c.type_ != "Ready");
    conditions.push(Condition {
        type_: "Ready".into(),
        status: value.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: since,
        observed_generation: None,
    });
    status
}

/// The address of an IPAddress that an API server made for a Service.
fn address(object: &IPAddress) -> Option<IpAddr> {
    let by = object.labels().get("ipaddress.kubernetes.io/managed-by")?;
    let name = object.metadata.name.as_deref()?;
    (by == "ipallocator.k8s.io").then(|| name.parse().ok())?
}

/// The finalizers without, or with, ours.
fn finalizers(cidr: &ServiceCIDR, keep: bool) -> Value {
    let all = cidr.finalizers().iter().map(String::as_str);
    let mut left: Vec<&str> = all.filter(|f| *f != FINALIZER).collect();
    left.extend(keep.then_some(FINALIZER));
    json!({"metadata": {"finalizers": left}})
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let cidrs = context.informers().service_cidrs().informer.clone();
    let addresses = context.informers().ip_addresses().informer.clone();
    let (q, all) = (queue.clone(), cidrs.clone());
    cidrs.on_change(move |_, new| {
        new.into_iter().for_each(|c| q.add(c.name_any()));
        going(&all).for_each(|name| q.add(name));
    });
    let (q, all) = (queue.clone(), cidrs.clone());
    addresses.on_change(move |_, _| going(&all).for_each(|name| q.add(name)));
    cidrs.synced().await;
    addresses.synced().await;
    work(&queue, 1, &token, |name| reconcile(&context, name)).await;
}

/// The names of those that are being deleted, which any change of the others may set free.
fn going(cidrs: &client::Informer<ServiceCIDR>) -> impl Iterator<Item = String> + use<> {
    let all = cidrs.list().into_iter();
    all.filter(|c| c.metadata.deletion_timestamp.is_some())
        .map(|c| c.name_any())
}

async fn reconcile(context: &Context, name: String) -> Result<Next> {
    let cidrs = context.informers().service_cidrs();
    let Some(cidr) = cidrs.informer.get(&name) else {
        return Ok(Next::Done);
    };
    let all = cidrs.informer.list();
    let others = all.iter().filter(|c| c.name_any() != name);
    let others: Vec<IpNet> = others.flat_map(|c| ranges(c)).collect();
    let addresses = context.informers().ip_addresses().informer.list();
    let addresses: Vec<IpAddr> = addresses.iter().filter_map(|a| address(a)).collect();
    let now = Timestamp::now();
    match plan(&cidr, &others, &addresses, now) {
        Plan::Nothing => {}
        Plan::Wait(left) => return Ok(Next::After(left)),
        Plan::Say { ready } => {
            let status = saying(&cidr, ready, now);
            cidrs
                .patch_status(&cidr, cidr.status.as_ref(), &status)
                .await?;
        }
        keep @ (Plan::Protect | Plan::Release) => {
            let patch = finalizers(&cidr, keep == Plan::Protect);
            match cidrs.patch_exact(&cidr, patch).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
    }
    Ok(Next::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(cidrs: &[&str], deleted: Option<&str>, finalizers: &[&str]) -> ServiceCIDR {
        serde_json::from_value(json!({"spec": {"cidrs": cidrs},
            "metadata": {"name": "c", "deletionTimestamp": deleted, "finalizers": finalizers}}))
        .unwrap()
    }

    #[test]
    fn ranges_go_when_no_address_needs_them() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let (long_ago, just_now) = (Some("2026-01-01T00:00:00Z"), Some("2026-01-01T00:00:57Z"));
        let parsed =
            |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|t| t.parse().unwrap()).collect() };
        #[rustfmt::skip]
        let table: &[(&[&str], Option<&str>, &[&str], &[&str], &[&str], Plan)] = &[
            (&["10.0.0.0/24"], None, &[], &[], &[], Plan::Protect),
            (&["10.0.0.0/24"], None, &["x", FINALIZER], &[], &[], Plan::Say { ready: true }),
            (&["10.0.0.0/24"], long_ago, &["x"], &[], &["10.0.0.7"], Plan::Nothing),
            (&["10.0.0.0/24"], long_ago, &[FINALIZER], &[], &[], Plan::Release),
            (&["10.0.0.0/24"], just_now, &[FINALIZER], &[], &[], Plan::Wait(Duration::from_secs(7))),
            (&["10.0.0.0/24"], long_ago, &[FINALIZER], &[], &["10.0.0.7"], Plan::Say { ready: false }),
            (&["10.0.0.0/24"], long_ago, &[FINALIZER], &[], &["10.0.1.7", "fd00::7"], Plan::Release),
            // Another range has the address: a larger one, the same, or a part.
            (&["10.0.0.0/24"], long_ago, &[FINALIZER], &["10.0.0.0/16"], &["10.0.0.7"], Plan::Release),
            (&["10.0.0.0/24"], long_ago, &[FINALIZER], &["10.0.0.0/24"], &["10.0.0.7"], Plan::Release),
            (&["10.0.0.0/24"], long_ago, &[FINALIZER], &["10.0.0.0/29"], &["10.0.0.7"], Plan::Release),
            (&["10.0.0.0/24"], long_ago, &[FINALIZER], &["10.0.0.0/29"], &["10.0.0.7", "10.0.0.9"], Plan::Say { ready: false }),
            (&["10.0.0.0/24", "fd00::/112"], long_ago, &[FINALIZER], &["10.0.0.0/16"], &["fd00::7"], Plan::Say { ready: false }),
        ];
        for (cidrs, deleted, finalizers, others, addresses, want) in table {
            let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
            let object = cidr(cidrs, *deleted, finalizers);
            let found = plan(&object, &parsed(others), &addresses, now);
            assert_eq!(
                found, *want,
                "{cidrs:?} {deleted:?} {others:?} {addresses:?}"
            );
        }
    }

    #[test]
    fn what_is_said_once_is_not_said_again() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let mut object = cidr(&["10.0.0.0/24"], None, &[FINALIZER]);
        object.status = Some(saying(&object, true, now));
        assert_eq!(plan(&object, &[], &[], now), Plan::Nothing);
        // The same status: the same time.
        let later = now.checked_add(GRACE).unwrap();
        assert_eq!(saying(&object, true, later), saying(&object, true, now));
        let not = saying(&object, false, later).conditions.unwrap();
        assert_eq!((not.len(), &not[0].last_transition_time.0), (1, &later));
        assert_eq!(not[0].reason, "Terminating");
    }

    #[test]
    fn only_addresses_of_services_count() {
        let object = |by: &str| -> IPAddress {
            let labels = json!({"ipaddress.kubernetes.io/managed-by": by});
            serde_json::from_value(json!({"metadata": {"name": "10.0.0.7", "labels": labels}}))
                .unwrap()
        };
        assert_eq!(
            address(&object("ipallocator.k8s.io")),
            "10.0.0.7".parse().ok()
        );
        assert_eq!(address(&object("somebody")), None);
    }
}
