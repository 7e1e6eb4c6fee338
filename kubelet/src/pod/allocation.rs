//! What the node's pods hold of it, as Kubernetes' allocation manager keeps it: every admitted pod, with the resources
//! that it was granted. Admission and in-place resize both ask here what is left, under one lock, so that nothing is
//! given away twice.
//!
//! Nothing of this is stored: a pod's status says after a restart that it was admitted before, and with what.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use super::admission::{self, Failure, Host, HostPort};
use super::{preemption, resize};
use crate::model;
use crate::resources::{self, Amounts};

pub struct Allocations {
    /// What pods may ask for, by what this machine has.
    allocatable: Amounts,
    /// By uid.
    pods: HashMap<String, Arc<Pod>>,
}

/// What pods hold together.
#[derive(Debug, Default, PartialEq)]
pub struct Held {
    pub amounts: Amounts,
    pub ports: Vec<HostPort>,
}

impl Held {
    pub fn by<'a>(pods: impl Iterator<Item = &'a Pod>) -> Self {
        let mut held = Held::default();
        for pod in pods {
            resources::add(&mut held.amounts, &resources::requests(pod));
            resources::add(&mut held.amounts, &one_pod());
            held.ports.extend(admission::host_ports(pod));
        }
        held
    }
}

/// A pod takes one of the places for pods, whatever else it asks for.
pub fn one_pod() -> Amounts {
    Amounts::from([("pods".to_owned(), 1)])
}

impl Allocations {
    pub fn new(allocatable: Amounts) -> Self {
        Allocations {
            allocatable,
            pods: HashMap::new(),
        }
    }

    fn others(&self, uid: &str) -> Held {
        let others = self.pods.iter().filter(|(other, _)| *other != uid);
        Held::by(others.map(|(_, pod)| pod.as_ref()))
    }

    /// Gives a new pod its part of the node, or says all that stands against it. Of what devices and their like add to
    /// the node, only the API knows: `node` has it. The pods that it gives back hold nothing any more, and have to end
    /// for the new one.
    pub fn admit(&mut self, pod: &Pod, node: &Node) -> Result<Vec<Arc<Pod>>, Vec<Failure>> {
        let host = Host::new(node, &self.allocatable);
        let failures = admission::failures(pod, &host, &self.others(model::uid(pod)));
        let victims = self.make_room(pod, failures)?;
        for victim in &victims {
            self.release(model::uid(victim));
        }
        self.pods
            .insert(model::uid(pod).to_owned(), Arc::new(pod.clone()));
        Ok(victims)
    }

    /// The pods that have to go so that nothing stands against the new one any more: none, unless it is critical and
    /// lacks nothing but resources.
    fn make_room(&self, pod: &Pod, failures: Vec<Failure>) -> Result<Vec<Arc<Pod>>, Vec<Failure>> {
        if failures.is_empty() {
            return Ok(Vec::new());
        }
        if !preemption::is_critical(pod) {
            return Err(failures);
        }
        let (mut lacking, mut others) = (Vec::new(), Vec::new());
        for failure in failures {
            match failure {
                Failure::Insufficient(r) => lacking.push(r),
                other => others.push(other),
            }
        }
        if !others.is_empty() {
            return Err(others);
        }
        let all = self
            .pods
            .values()
            .filter(|p| model::uid(p) != model::uid(pod));
        preemption::victims(pod, all, &lacking).map_err(|why| vec![Failure::NoRoom(why)])
    }

    /// Takes in a pod that had been admitted before this kubelet started, with what it was granted then.
    pub fn restore(&mut self, pod: &Pod) {
        let granted = resize::as_granted_before(pod);
        self.pods
            .insert(model::uid(pod).to_owned(), Arc::new(granted));
    }

    /// Decides on the resources that an admitted pod asks for now.
    pub fn grant(&mut self, pod: &Arc<Pod>) -> (Arc<Pod>, Option<resize::Pending>) {
        let uid = model::uid(pod);
        if !self.pods.contains_key(uid) {
            return (pod.clone(), None);
        }
        let used = || self.others(uid).amounts;
        let (granted, pending) = resize::granted(pod, &self.allocatable, used);
        self.pods.insert(uid.to_owned(), granted.clone());
        (granted, pending)
    }

    /// The pod has ended, or is no more.
    pub fn release(&mut self, uid: &str) {
        self.pods.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, cpu: &str, status: Value) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "uid": name}, "status": status,
            "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn reasons(failures: &[Failure]) -> Vec<String> {
        failures.iter().map(|f| f.rejection().reason).collect()
    }

    #[test]
    fn nothing_is_given_away_twice() {
        let node = Node::default();
        let capacity = [("cpu".to_owned(), 2000), ("pods".to_owned(), 3)];
        let mut all = Allocations::new(capacity.into());
        let admit = |all: &mut Allocations, pod: &Arc<Pod>| {
            all.admit(pod, &node)
                .map_or_else(|failures| reasons(&failures), |_| Vec::new())
        };
        let none: Vec<String> = Vec::new();
        let status = json!({"containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true,
            "restartCount": 0, "allocatedResources": {"cpu": "500m"}}]});

        // It asks for more than it was granted before the restart.
        let old = pod("old", "1", status);
        all.restore(&old);
        assert_eq!(admit(&mut all, &pod("a", "1500m", json!({}))), none);
        // Asking again changes nothing.
        assert_eq!(admit(&mut all, &pod("a", "1500m", json!({}))), none);
        assert_eq!(admit(&mut all, &pod("b", "1m", json!({}))), ["OutOfcpu"]);
        let (granted, pending) = all.grant(&old);
        assert_eq!(resources::requests(&granted)["cpu"], 500);
        assert_eq!(pending.map(|p| p.reason), Some("Deferred"));

        // The one that was refused holds nothing, and gets no grant.
        assert_eq!(all.grant(&pod("b", "1m", json!({}))).1, None);
        assert_eq!(admit(&mut all, &pod("c", "0", json!({}))), none);
        assert_eq!(admit(&mut all, &pod("d", "0", json!({}))), ["OutOfpods"]);

        all.release("a");
        let (granted, pending) = all.grant(&old);
        assert_eq!(
            (resources::requests(&granted)["cpu"], pending),
            (1000, None)
        );
        // What was granted is held before any status has told it.
        assert_eq!(admit(&mut all, &pod("e", "1001m", json!({}))), ["OutOfcpu"]);
        assert_eq!(admit(&mut all, &pod("e", "1000m", json!({}))), none);
    }

    #[test]
    fn critical_pods_make_room_for_themselves() {
        let node = Node::default();
        let capacity = [("cpu".to_owned(), 2000), ("pods".to_owned(), 9)];
        let mut all = Allocations::new(capacity.into());
        let critical = |cpu: &str, selector: Value| {
            let mut pod = Pod::clone(&pod("critical", cpu, json!({})));
            let spec = pod.spec.as_mut().unwrap();
            spec.priority = Some(2_000_000_000);
            spec.node_selector = serde_json::from_value(selector).unwrap();
            pod
        };
        for (name, cpu) in [("a", "500m"), ("b", "1500m")] {
            assert!(all.admit(&pod(name, cpu, json!({})), &node).is_ok());
        }
        let refused = all.admit(&critical("3", json!({})), &node).unwrap_err();
        assert_eq!(reasons(&refused), ["UnexpectedAdmissionError"]);
        let refused = all.admit(&critical("1", json!({"zone": "a"})), &node);
        assert_eq!(reasons(&refused.unwrap_err()), ["NodeAffinity"]);
        let victims = all.admit(&critical("1", json!({})), &node).unwrap();
        assert_eq!(
            victims.iter().map(|p| model::name(p)).collect::<Vec<_>>(),
            ["b"]
        );
        // What the victim held is gone to the critical pod but for a rest.
        assert!(all.admit(&pod("c", "500m", json!({})), &node).is_ok());
        assert!(all.admit(&pod("d", "1m", json!({})), &node).is_err());
    }
}
