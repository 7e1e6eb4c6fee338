//! HorizontalPodAutoscalers: as many pods as their load asks for.
//!
//! For each autoscaler, once per sync period: read the target's `scale`, read the metrics, let [`calculate`] say how
//! many replicas they ask for and [`behavior`] how far the target may go by now, write the `scale`. Without
//! autoscalers nothing runs. What was recommended lately is remembered in memory only, as in Kubernetes.

pub mod behavior;
pub mod calculate;
pub mod metrics;
mod proposal;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::selector::LabelSelector;
use client::events::{EventType, Recorder, reference};
use client::{CancellationToken, Next, WorkQueue, key_of};
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus,
    MetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use parking_lot::Mutex;

use crate::frame::{Context, Result, WORKERS, work};
use crate::meta;
use crate::scale::Targets;
use behavior::{History, Limits, decide};
use calculate::{Startup, Tolerances};

/// What the flags decide about autoscaling.
#[derive(Debug, Clone)]
pub struct Options {
    pub sync_period: Duration,
    pub downscale_stabilization: Duration,
    pub tolerance: f64,
    pub cpu_initialization_period: Duration,
    pub initial_readiness_delay: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sync_period: Duration::from_secs(15),
            downscale_stabilization: Duration::from_secs(300),
            tolerance: 0.1,
            cpu_initialization_period: Duration::from_secs(300),
            initial_readiness_delay: Duration::from_secs(30),
        }
    }
}

/// What is remembered of an autoscaler between two passes.
#[derive(Default)]
struct Memory {
    history: History,
    selector: Option<LabelSelector>,
}

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
    targets: Targets,
    memory: Mutex<HashMap<String, Memory>>,
}

/// Runs the controller.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let autoscalers = &context.informers().horizontal_pod_autoscalers().informer;
    let pods = &context.informers().pods().informer;
    let q = queue.clone();
    autoscalers.on_change(move |old, new| {
        let unchanged = old.zip(new).is_some_and(|(o, n)| o.spec == n.spec);
        if let (false, Some(autoscaler)) = (unchanged, new.or(old)) {
            q.add(key_of(autoscaler.as_ref()));
        }
    });
    autoscalers.synced().await;
    pods.synced().await;
    let controller = Controller {
        recorder: context.recorder("horizontal-pod-autoscaler"),
        targets: Targets::new(context.client.clone()),
        memory: Mutex::default(),
        context: context.clone(),
    };
    work(&queue, WORKERS, &token, |key| controller.reconcile(key)).await;
}

/// Sets a condition; its time changes only with its status.
fn set_condition(
    status: &mut HorizontalPodAutoscalerStatus,
    kind: &str,
    value: bool,
    (reason, message): (&str, &str),
    now: Timestamp,
) {
    let value = if value { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let at = conditions.iter().position(|c| c.type_ == kind);
    let since = at
        .and_then(|at| conditions.get(at))
        .filter(|c| c.status == value);
    let condition = HorizontalPodAutoscalerCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: since
            .and_then(|c| c.last_transition_time.clone())
            .or(Some(Time(now))),
    };
    match at {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
}

/// One pass over one autoscaler.
struct Pass<'a> {
    controller: &'a Controller,
    autoscaler: &'a HorizontalPodAutoscaler,
    key: &'a str,
    status: HorizontalPodAutoscalerStatus,
    now: Timestamp,
}

impl Controller {
    fn options(&self) -> &Options {
        &self.context.settings.autoscaling
    }

    async fn reconcile(&self, key: String) -> Result<Next> {
        let autoscalers = self.context.informers().horizontal_pod_autoscalers();
        let Some(autoscaler) = autoscalers.informer.get(&key) else {
            self.memory.lock().remove(&key);
            return Ok(Next::Done);
        };
        let mut pass = Pass {
            controller: self,
            autoscaler: &autoscaler,
            key: &key,
            status: autoscaler.status.clone().unwrap_or_default(),
            now: Timestamp::now(),
        };
        if let Err(why) = pass.run().await {
            tracing::debug!(autoscaler = %key, %why, "not scaled");
        }
        let written = autoscalers
            .patch_status(&autoscaler, autoscaler.status.as_ref(), &pass.status)
            .await;
        if let Err(error) = written {
            tracing::debug!(autoscaler = %key, %error, "status not written");
        }
        Ok(Next::After(self.options().sync_period))
    }
}

impl Pass<'_> {
    fn warn(&self, reason: &str, message: &str) {
        let about = reference(self.autoscaler);
        self.controller
            .recorder
            .event(&about, EventType::Warning, reason, message);
    }

    fn set(&mut self, kind: &str, value: bool, told: (&str, &str)) {
        set_condition(&mut self.status, kind, value, told, self.now);
    }

    fn limits(&self) -> Limits {
        let spec = &self.autoscaler.spec;
        Limits::new(
            (spec.min_replicas.unwrap_or(1), spec.max_replicas),
            spec.behavior.as_ref(),
            self.controller.options().downscale_stabilization,
        )
    }

    fn tolerances(&self) -> Tolerances {
        let behavior = self.autoscaler.spec.behavior.as_ref();
        let given = |rules: Option<&k8s_openapi::api::autoscaling::v2::HPAScalingRules>| {
            let tolerance = rules.and_then(|r| r.tolerance.as_ref())?;
            let parsed = apimachinery::quantity::Quantity::parse(&tolerance.0);
            parsed.ok().map(|q| q.as_f64())
        };
        let default = self.controller.options().tolerance;
        Tolerances {
            up: given(behavior.and_then(|b| b.scale_up.as_ref())).unwrap_or(default),
            down: given(behavior.and_then(|b| b.scale_down.as_ref())).unwrap_or(default),
        }
    }

    fn startup(&self) -> Startup {
        let options = self.controller.options();
        Startup {
            cpu_initialization: options.cpu_initialization_period,
            initial_readiness: options.initial_readiness_delay,
        }
    }

    async fn run(&mut self) -> std::result::Result<(), String> {
        let namespace = self.autoscaler.namespace().unwrap_or_default();
        let target = &self.autoscaler.spec.scale_target_ref;
        let scale = self.controller.targets.get(&namespace, target).await;
        let scale = scale.map_err(|error| {
            let error = error.to_string();
            self.warn("FailedGetScale", &error);
            let message =
                format!("the HPA controller was unable to get the target's current scale: {error}");
            self.set("AbleToScale", false, ("FailedGetScale", &message));
            error
        })?;
        let message = "the HPA controller was able to get the target's current scale";
        self.set("AbleToScale", true, ("SucceededGetScale", message));
        let current = scale.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        self.status.current_replicas = Some(current);
        {
            let mut memory = self.controller.memory.lock();
            let history = &mut memory.entry(self.key.to_owned()).or_default().history;
            if history.recommendations.is_empty() {
                history.recommendations.push((self.now, current));
            }
        }
        let limits = self.limits();
        let (desired, reason) = if current == 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            self.set("ScalingActive", false, ("ScalingDisabled", message));
            (0, String::new())
        } else if current > limits.max {
            let why = "Current number of replicas above Spec.MaxReplicas";
            (limits.max, why.to_owned())
        } else if current < limits.min {
            let why = "Current number of replicas below Spec.MinReplicas";
            (limits.min, why.to_owned())
        } else {
            self.by_metrics(&scale, current, &limits).await?
        };
        if desired != current {
            self.rescale(scale, (current, desired), &reason).await?;
        }
        self.status.desired_replicas = desired;
        Ok(())
    }

    async fn by_metrics(
        &mut self,
        scale: &Scale,
        current: i32,
        limits: &Limits,
    ) -> std::result::Result<(i32, String), String> {
        let computed = self.compute(scale, current).await;
        let (desired, metric) = match computed {
            Ok(computed) => computed,
            Err(error) => {
                self.warn("FailedComputeMetricsReplicas", &error);
                return Err(error);
            }
        };
        let reason = match desired.cmp(&current) {
            std::cmp::Ordering::Greater => format!("{metric} above target"),
            std::cmp::Ordering::Less => "All metrics below target".to_owned(),
            std::cmp::Ordering::Equal => String::new(),
        };
        let decision = {
            let mut memory = self.controller.memory.lock();
            let history = &mut memory.entry(self.key.to_owned()).or_default().history;
            decide(history, limits, (current, desired), self.now)
        };
        self.set("AbleToScale", true, decision.able);
        let (limited, why, message) = decision.limited;
        self.set("ScalingLimited", limited, (why, message));
        Ok((decision.replicas, reason))
    }

    /// The highest number that any metric asks for, and which one that is.
    async fn compute(
        &mut self,
        scale: &Scale,
        current: i32,
    ) -> std::result::Result<(i32, String), String> {
        let text = scale.status.as_ref().and_then(|s| s.selector.clone());
        let text = text.unwrap_or_default();
        let pods = self.selected(&text)?;
        let specs = self.autoscaler.spec.metrics.clone().unwrap_or_default();
        let source = proposal::Source {
            client: &self.controller.context.client,
            namespace: self.autoscaler.namespace().unwrap_or_default(),
            pods: &pods,
            selector: &text,
            current,
            status_replicas: scale.status.as_ref().map_or(0, |s| s.replicas),
            tolerances: self.tolerances(),
            startup: self.startup(),
            now: self.now,
        };
        let (mut best, mut failures) = (None::<(i32, String)>, Vec::new());
        let mut statuses: Vec<MetricStatus> = Vec::new();
        for spec in &specs {
            match source.propose(spec).await {
                Ok(proposed) => {
                    statuses.push(proposed.status);
                    if best.as_ref().is_none_or(|b| proposed.replicas > b.0) {
                        best = Some((proposed.replicas, proposed.name));
                    }
                }
                Err(failure) => {
                    self.warn(failure.reason, &failure.message);
                    failures.push(failure);
                }
            }
        }
        self.status.current_metrics = (!statuses.is_empty()).then_some(statuses);
        let first = failures.first();
        match (best, first) {
            (Some((replicas, name)), failure) if failure.is_none() || replicas >= current => {
                let message = format!(
                    "the HPA was able to successfully calculate a replica count from {name}"
                );
                self.set("ScalingActive", true, ("ValidMetricFound", &message));
                Ok((replicas, name))
            }
            // What could not be read might have asked for more: never go down on half the truth.
            (_, Some(failure)) => {
                let message = format!(
                    "the HPA was unable to compute the replica count: {}",
                    failure.message
                );
                self.set("ScalingActive", false, (failure.reason, &message));
                Err(format!(
                    "invalid metrics ({} invalid out of {}), first error is: {}",
                    failures.len(),
                    specs.len(),
                    failure.message
                ))
            }
            (_, None) => Err("the autoscaler has no metrics".into()),
        }
    }

    /// The pods of the target, if they are this autoscaler's alone.
    fn selected(&mut self, text: &str) -> std::result::Result<Vec<Arc<Pod>>, String> {
        if text.is_empty() {
            self.warn("SelectorRequired", "selector is required");
            let message = "the HPA target's scale is missing a selector";
            self.set("ScalingActive", false, ("InvalidSelector", message));
            return Err("selector is required".into());
        }
        let selector = LabelSelector::parse(text).map_err(|error| {
            let message = format!(
                "couldn't convert selector into a corresponding internal selector object: {error}"
            );
            self.warn("InvalidSelector", &message);
            self.set("ScalingActive", false, ("InvalidSelector", &message));
            message
        })?;
        let namespace = self.autoscaler.namespace().unwrap_or_default();
        let informer = &self.controller.context.informers().pods().informer;
        let mut pods = informer.namespace(&namespace);
        pods.retain(|pod| meta::matches(&selector, pod.as_ref()));
        let mut rivals = self.rivals(&namespace, &pods);
        let mut memory = self.controller.memory.lock();
        memory.entry(self.key.to_owned()).or_default().selector = Some(selector);
        drop(memory);
        if rivals.is_empty() {
            return Ok(pods);
        }
        rivals.push(self.autoscaler.name_any());
        rivals.sort();
        let rivals: Vec<String> = rivals
            .iter()
            .map(|name| format!("{{{name} {namespace}}}"))
            .collect();
        let message = format!(
            "pods by selector {text} are controlled by multiple HPAs: [{}]",
            rivals.join(" ")
        );
        self.warn("AmbiguousSelector", &message);
        self.set("ScalingActive", false, ("AmbiguousSelector", &message));
        Err(message)
    }

    /// Other autoscalers of the namespace whose targets have some of these pods.
    fn rivals(&self, namespace: &str, pods: &[Arc<Pod>]) -> Vec<String> {
        let memory = self.controller.memory.lock();
        let others = memory.iter().filter_map(|(key, other)| {
            let (theirs, name) = client::split_key(key);
            (theirs == namespace && key != self.key).then_some((name, other.selector.as_ref()?))
        });
        let selecting = others
            .filter(|(_, selector)| pods.iter().any(|pod| meta::matches(selector, pod.as_ref())));
        selecting.map(|(name, _)| name.to_owned()).collect()
    }

    async fn rescale(
        &mut self,
        scale: Scale,
        (current, desired): (i32, i32),
        reason: &str,
    ) -> std::result::Result<(), String> {
        let namespace = self.autoscaler.namespace().unwrap_or_default();
        let target = &self.autoscaler.spec.scale_target_ref;
        let targets = &self.controller.targets;
        if let Err(error) = targets.set(&namespace, target, scale, desired).await {
            let error = error.to_string();
            let message = format!("New size: {desired}; reason: {reason}; error: {error}");
            self.warn("FailedRescale", &message);
            let message =
                format!("the HPA controller was unable to update the target scale: {error}");
            self.set("AbleToScale", false, ("FailedUpdateScale", &message));
            return Err(error);
        }
        let message =
            format!("the HPA controller was able to update the target scale to {desired}");
        self.set("AbleToScale", true, ("SucceededRescale", &message));
        self.controller.recorder.event(
            &reference(self.autoscaler),
            EventType::Normal,
            "SuccessfulRescale",
            format!("New size: {desired}; reason: {reason}"),
        );
        self.status.last_scale_time = Some(Time(self.now));
        let mut memory = self.controller.memory.lock();
        let history = &mut memory.entry(self.key.to_owned()).or_default().history;
        history.scaled(current, desired, self.now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let mut status = HorizontalPodAutoscalerStatus::default();
        let at = |n| Timestamp::from_second(n).unwrap();
        set_condition(&mut status, "AbleToScale", true, ("A", "a"), at(1));
        set_condition(&mut status, "AbleToScale", true, ("B", "b"), at(2));
        set_condition(&mut status, "ScalingActive", false, ("C", "c"), at(2));
        let conditions = status.conditions.clone().unwrap();
        assert_eq!(conditions.len(), 2);
        assert_eq!(conditions[0].reason.as_deref(), Some("B"));
        assert_eq!(conditions[0].last_transition_time, Some(Time(at(1))));
        set_condition(&mut status, "AbleToScale", false, ("D", "d"), at(3));
        let conditions = status.conditions.unwrap();
        assert_eq!(conditions[0].last_transition_time, Some(Time(at(3))));
    }
}
