//! From what pods use to how many of them there should be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::quantity::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;

use crate::pods;

/// What one pod used, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub value: i64,
    pub timestamp: Timestamp,
    pub window: Duration,
}

/// Samples by the name of the pod.
pub type Samples = BTreeMap<String, Sample>;

/// How far usage may be off its target without a change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerances {
    pub up: f64,
    pub down: f64,
}

impl Tolerances {
    fn covers(&self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What the flags say about pods that have just started.
#[derive(Debug, Clone, Copy)]
pub struct Startup {
    /// For so long CPU usage counts only of pods that are ready.
    pub cpu_initialization: Duration,
    /// A pod that became unready within this time of its start has never been ready.
    pub initial_readiness: Duration,
}

/// What a metric comes to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    pub replicas: i32,
    /// Percent of the requests, for a target of utilization.
    pub utilization: Option<i32>,
    /// Average of a pod, in thousandths.
    pub average: i64,
}

/// What a metric is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target<'a> {
    /// Percent of what the pods (or one container in each) request of a resource.
    Utilization {
        percent: i32,
        resource: &'a str,
        container: Option<&'a str>,
    },
    /// Thousandths for each pod.
    Average(i64),
}

struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

fn group(
    pods: &[Arc<Pod>],
    samples: &Samples,
    cpu: bool,
    startup: Startup,
    now: Timestamp,
) -> Groups {
    let mut groups = Groups {
        ready: 0,
        unready: BTreeSet::new(),
        missing: BTreeSet::new(),
        ignored: BTreeSet::new(),
    };
    for pod in pods {
        let name = pod.name_any();
        if pod.metadata.deletion_timestamp.is_some() || pods::phase(pod) == "Failed" {
            groups.ignored.insert(name);
        } else if pods::phase(pod) == "Pending" {
            groups.unready.insert(name);
        } else if let Some(sample) = samples.get(&name) {
            match cpu && is_starting(pod, sample, startup, now) {
                true => drop(groups.unready.insert(name)),
                false => groups.ready += 1,
            }
        } else {
            groups.missing.insert(name);
        }
    }
    groups
}

/// Whether what a pod's CPU did says nothing yet about its work.
fn is_starting(pod: &Pod, sample: &Sample, startup: Startup, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    let (Some(ready), Some(started)) = (pods::condition(pod, "Ready"), started) else {
        return true;
    };
    let since = ready
        .last_transition_time
        .as_ref()
        .map_or(Timestamp::MIN, |t| t.0);
    let after = |t: Timestamp, d: Duration| t.checked_add(d).unwrap_or(Timestamp::MAX);
    if after(started.0, startup.cpu_initialization) > now {
        ready.status == "False" || sample.timestamp < after(since, sample.window)
    } else {
        ready.status == "False" && after(started.0, startup.initial_readiness) > since
    }
}

fn request(pod: &Pod, resource: &str, container: Option<&str>) -> Result<i64, String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let milli = |q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| {
        Quantity::parse(&q.0).map_or(0, Quantity::milli_value)
    };
    let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    if let (None, Some(requests)) = (container, whole.filter(|r| !r.is_empty())) {
        return requests.get(resource).map(milli).ok_or_else(|| {
            format!(
                "missing pod-level request for {resource} in Pod {}",
                pod.name_any()
            )
        });
    }
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let counted = spec.containers.iter().chain(sidecars);
    let counted = counted.filter(|c: &&Container| container.is_none_or(|name| c.name == name));
    let mut sum = 0;
    for c in counted {
        let requests = c.resources.as_ref().and_then(|r| r.requests.as_ref());
        let Some(request) = requests.and_then(|r| r.get(resource)) else {
            let (name, pod) = (&c.name, pod.name_any());
            return Err(format!(
                "missing request for {resource} in container {name} of Pod {pod}"
            ));
        };
        sum += milli(request);
    }
    Ok(sum)
}

/// Usage in relation to its target: the ratio, percent of requests, average.
fn measure(
    samples: &Samples,
    requests: &BTreeMap<String, i64>,
    target: Target,
) -> Result<(f64, Option<i32>, i64), String> {
    match target {
        Target::Average(wanted) => {
            let sum: i64 = samples.values().map(|s| s.value).sum();
            let average = sum / samples.len().max(1) as i64;
            Ok((average as f64 / wanted as f64, None, average))
        }
        Target::Utilization { percent, .. } => {
            let known: Vec<(i64, i64)> = samples
                .iter()
                .filter_map(|(name, s)| Some((s.value, *requests.get(name)?)))
                .collect();
            let used: i64 = known.iter().map(|k| k.0).sum();
            let requested: i64 = known.iter().map(|k| k.1).sum();
            if requested == 0 {
                return Err("no metrics returned matched known pods".into());
            }
            let utilization = (used * 100 / requested) as i32;
            Ok((
                f64::from(utilization) / f64::from(percent),
                Some(utilization),
                used / known.len() as i64,
            ))
        }
    }
}

/// How many replicas bring the average of `samples` to `target`. `current` is what there is by the scale's spec.
pub fn per_pod(
    pods: &[Arc<Pod>],
    mut samples: Samples,
    target: Target,
    (current, tolerances): (i32, Tolerances),
    (is_cpu, startup, now): (bool, Startup, Timestamp),
) -> Result<Usage, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".into());
    }
    let groups = group(pods, &samples, is_cpu, startup, now);
    samples.retain(|name, _| !groups.ignored.contains(name) && !groups.unready.contains(name));
    if samples.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".into());
    }
    let mut requests = BTreeMap::new();
    if let Target::Utilization {
        resource,
        container,
        ..
    } = target
    {
        for pod in pods {
            requests.insert(pod.name_any(), request(pod, resource, container)?);
        }
    }
    let (ratio, utilization, average) = measure(&samples, &requests, target)?;
    let usage = |replicas| Usage {
        replicas,
        utilization,
        average,
    };
    let up_with_unready = !groups.unready.is_empty() && ratio > 1.0;
    if !up_with_unready && groups.missing.is_empty() {
        return Ok(usage(match tolerances.covers(ratio) {
            true => current,
            false => (ratio * groups.ready as f64).ceil() as i32,
        }));
    }
    // What is not known is taken to be such that it dampens the change.
    let assumed = |name: &str| match target {
        Target::Average(wanted) => wanted,
        Target::Utilization { percent, .. } => {
            requests.get(name).copied().unwrap_or(0) * i64::from(percent.max(100)) / 100
        }
    };
    let sample = |value| Sample {
        value,
        timestamp: now,
        window: Duration::ZERO,
    };
    for name in &groups.missing {
        if ratio < 1.0 {
            samples.insert(name.clone(), sample(assumed(name)));
        } else if ratio > 1.0 {
            samples.insert(name.clone(), sample(0));
        }
    }
    if up_with_unready {
        samples.extend(groups.unready.iter().map(|n| (n.clone(), sample(0))));
    }
    let (dampened, ..) = measure(&samples, &requests, target)?;
    let turned = (ratio < 1.0 && dampened > 1.0) || (ratio > 1.0 && dampened < 1.0);
    if tolerances.covers(dampened) || turned {
        return Ok(usage(current));
    }
    let replicas = (dampened * samples.len() as f64).ceil() as i32;
    let turned = (dampened < 1.0 && replicas > current) || (dampened > 1.0 && replicas < current);
    Ok(usage(if turned { current } else { replicas }))
}

/// How many replicas bring one value for all pods (in thousandths) to its target.
pub fn shared(
    pods: &[Arc<Pod>],
    value: i64,
    target: i64,
    current: i32,
    tolerances: Tolerances,
) -> Result<i32, String> {
    let ratio = value as f64 / target as f64;
    if current == 0 {
        return Ok(ratio.ceil() as i32);
    }
    if tolerances.covers(ratio) {
        return Ok(current);
    }
    if pods.is_empty() {
        return Err("unable to calculate ready pods: no pods returned by selector while calculating replica count".into());
    }
    let ready = pods
        .iter()
        .filter(|p| pods::phase(p) == "Running" && pods::is_ready(p))
        .count();
    Ok((ratio * ready as f64).ceil() as i32)
}

/// How many replicas share one value so that each has its target (both in thousandths); and what each has now.
pub fn divided(value: i64, target: i64, replicas: i32, tolerances: Tolerances) -> (i32, i64) {
    let ratio = value as f64 / (target as f64 * f64::from(replicas));
    let wanted = match tolerances.covers(ratio) {
        true => replicas,
        false => (value as f64 / target as f64).ceil() as i32,
    };
    (
        wanted,
        (value as f64 / f64::from(replicas.max(1))).ceil() as i64,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: &str = "2026-01-01T01:00:00Z";
    const TOLERANCES: Tolerances = Tolerances { up: 0.1, down: 0.1 };
    const STARTUP: Startup = Startup {
        cpu_initialization: Duration::from_secs(300),
        initial_readiness: Duration::from_secs(30),
    };

    fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    /// `r`eady for long, `u`nready since its start, `n`ew and ready, `p`ending, `f`ailed, `d`eleting.
    fn pod(name: &str, state: char) -> Arc<Pod> {
        let (started, ready, since) = match state {
            'n' => ("2026-01-01T00:59:00Z", "True", "2026-01-01T00:59:55Z"),
            'u' => ("2026-01-01T00:00:00Z", "False", "2026-01-01T00:00:10Z"),
            _ => ("2026-01-01T00:00:00Z", "True", "2026-01-01T00:00:10Z"),
        };
        let phase = match state {
            'p' => "Pending",
            'f' => "Failed",
            _ => "Running",
        };
        let mut value = json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "600m"}}}, {"name": "b", "resources": {"requests": {"cpu": "400m"}}}]},
            "status": {"phase": phase, "startTime": started, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": since}]}
        });
        if state == 'd' {
            value["metadata"]["deletionTimestamp"] = json!(NOW);
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    /// One pod for each letter; `None` where there is no sample.
    fn run(states: &str, values: &[Option<i64>], target: Target) -> Result<Usage, String> {
        let pods: Vec<Arc<Pod>> = states
            .chars()
            .enumerate()
            .map(|(n, s)| pod(&format!("p{n}"), s))
            .collect();
        let sample = |value| Sample {
            value,
            timestamp: now(),
            window: Duration::from_secs(15),
        };
        let samples = values
            .iter()
            .enumerate()
            .filter_map(|(n, v)| Some((format!("p{n}"), sample((*v)?))));
        let size = states.len() as i32;
        per_pod(
            &pods,
            samples.collect(),
            target,
            (size, TOLERANCES),
            (true, STARTUP, now()),
        )
    }

    #[test]
    fn utilization() {
        let target = |percent| Target::Utilization {
            percent,
            resource: "cpu",
            container: None,
        };
        let s = Some;
        #[rustfmt::skip]
        let cases: Vec<(&str, &str, Vec<Option<i64>>, i32, i32)> = vec![
            ("up", "rrr", vec![s(300), s(500), s(700)], 30, 5),
            ("down", "rrrrr", vec![s(100), s(300), s(500), s(250), s(250)], 50, 3),
            ("within the tolerance", "rrr", vec![s(1010), s(1030), s(1020)], 100, 3),
            ("unready ones dampen the way up", "rru", vec![s(900), s(900), s(100)], 50, 4),
            ("pending ones do not count on the way down", "rrp", vec![s(100), s(100), None], 50, 1),
            ("missing ones use nothing on the way up", "rrr", vec![s(900), s(900), None], 50, 4),
            ("missing ones use everything on the way down", "rrr", vec![s(100), s(100), None], 50, 3),
            ("failed and deleted ones are no one", "rrfd", vec![s(900), s(900), s(900), s(900)], 50, 4),
            ("new ones whose window began before they were ready do not count", "rrn", vec![s(900), s(900), s(900)], 50, 4),
        ];
        for (why, states, values, percent, want) in cases {
            let usage = run(states, &values, target(percent)).unwrap();
            assert_eq!(usage.replicas, want, "{why}: {usage:?}");
        }
        let usage = run("rr", &[s(300), s(500)], target(40)).unwrap();
        assert_eq!((usage.utilization, usage.average), (Some(40), 400));
    }

    #[test]
    fn requests() {
        let p = pod("p", 'r');
        assert_eq!(request(&p, "cpu", None), Ok(1000));
        assert_eq!(request(&p, "cpu", Some("b")), Ok(400));
        let missing = "missing request for memory in container a of Pod p";
        assert_eq!(request(&p, "memory", None), Err(missing.into()));
        let mut whole: Value = serde_json::to_value(p.as_ref()).unwrap();
        whole["spec"]["resources"] = json!({"requests": {"cpu": 2}});
        let whole: Pod = serde_json::from_value(whole).unwrap();
        assert_eq!(request(&whole, "cpu", None), Ok(2000));
        assert_eq!(request(&whole, "cpu", Some("a")), Ok(600));
    }

    #[test]
    fn averages_and_failures() {
        let s = Some;
        assert_eq!(
            run("rr", &[s(900), s(900)], Target::Average(300))
                .unwrap()
                .replicas,
            6
        );
        assert_eq!(
            run("rr", &[s(310), s(310)], Target::Average(300))
                .unwrap()
                .replicas,
            2
        );
        let none = run("rr", &[None, None], Target::Average(300)).unwrap_err();
        assert!(none.contains("did not receive metrics"), "{none}");
        assert!(run("", &[], Target::Average(300)).is_err());
        let pods = [pod("a", 'r'), pod("b", 'r'), pod("c", 'p')];
        assert_eq!(shared(&pods, 3000, 1000, 3, TOLERANCES), Ok(6));
        assert_eq!(shared(&pods, 1050, 1000, 3, TOLERANCES), Ok(3));
        assert_eq!(shared(&[], 2500, 1000, 0, TOLERANCES), Ok(3));
        assert_eq!(divided(9000, 1000, 3, TOLERANCES), (9, 3000));
        assert_eq!(divided(3100, 1000, 3, TOLERANCES), (3, 1034));
    }
}
