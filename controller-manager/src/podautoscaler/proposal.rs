//! What one metric of an autoscaler asks for, with how it is told in the status.

use std::sync::Arc;

use apimachinery::quantity::{Format, Quantity};
use apimachinery::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricSource, ExternalMetricStatus, MetricIdentifier,
    MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricSource,
    ObjectMetricStatus, PodsMetricSource, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::calculate::{self, Startup, Target, Tolerances, Usage};
use super::metrics::Metrics;
use crate::meta;

/// What a metric is judged on.
pub struct Source<'a> {
    pub client: &'a kube::Client,
    pub namespace: String,
    pub pods: &'a [Arc<Pod>],
    pub selector: &'a str,
    pub current: i32,
    pub status_replicas: i32,
    pub tolerances: Tolerances,
    pub startup: Startup,
    pub now: Timestamp,
}

pub struct Proposal {
    pub replicas: i32,
    pub name: String,
    pub status: MetricStatus,
}

/// Why a metric says nothing.
pub struct Failure {
    pub reason: &'static str,
    pub message: String,
}

fn milli(quantity: &ApiQuantity) -> i64 {
    Quantity::parse(&quantity.0).map_or(0, Quantity::milli_value)
}

fn quantity(milli: i64, format: Format) -> ApiQuantity {
    ApiQuantity(Quantity::from_milli(milli, format).to_string())
}

fn decimal(milli: i64) -> Option<ApiQuantity> {
    Some(quantity(milli, Format::DecimalSi))
}

fn selects(metric: &MetricIdentifier) -> LabelSelector {
    metric
        .selector
        .as_ref()
        .map_or_else(LabelSelector::everything, meta::selector)
}

impl Source<'_> {
    fn metrics(&self) -> Metrics<'_> {
        Metrics {
            client: self.client,
            namespace: &self.namespace,
        }
    }

    fn per_pod(
        &self,
        samples: calculate::Samples,
        target: Target,
        cpu: bool,
    ) -> Result<Usage, String> {
        let now = (self.current, self.tolerances);
        calculate::per_pod(
            self.pods,
            samples,
            target,
            now,
            (cpu, self.startup, self.now),
        )
    }

    pub async fn propose(&self, spec: &MetricSpec) -> Result<Proposal, Failure> {
        let fail = |reason| move |message| Failure { reason, message };
        if let Some(source) = &spec.resource {
            let proposed = self.resource(&source.name, None, &source.target).await;
            let (replicas, name, current) = proposed.map_err(fail("FailedGetResourceMetric"))?;
            let status = MetricStatus {
                type_: spec.type_.clone(),
                resource: Some(ResourceMetricStatus {
                    name: source.name.clone(),
                    current,
                }),
                ..Default::default()
            };
            return Ok(Proposal {
                replicas,
                name,
                status,
            });
        }
        if let Some(source) = &spec.container_resource {
            let container = Some(source.container.as_str());
            let proposed = self.resource(&source.name, container, &source.target).await;
            let (replicas, name, current) =
                proposed.map_err(fail("FailedGetContainerResourceMetric"))?;
            let status = MetricStatus {
                type_: spec.type_.clone(),
                container_resource: Some(ContainerResourceMetricStatus {
                    name: source.name.clone(),
                    container: source.container.clone(),
                    current,
                }),
                ..Default::default()
            };
            return Ok(Proposal {
                replicas,
                name,
                status,
            });
        }
        if let Some(source) = &spec.pods {
            return self
                .of_pods(source)
                .await
                .map_err(fail("FailedGetPodsMetric"));
        }
        if let Some(source) = &spec.object {
            return self
                .of_object(source)
                .await
                .map_err(fail("FailedGetObjectMetric"));
        }
        if let Some(source) = &spec.external {
            return self
                .external(source)
                .await
                .map_err(fail("FailedGetExternalMetric"));
        }
        Err(Failure {
            reason: "InvalidMetricSourceType",
            message: format!("unknown metric source type {:?}", spec.type_),
        })
    }

    async fn resource(
        &self,
        resource: &str,
        container: Option<&str>,
        target: &MetricTarget,
    ) -> Result<(i32, String, MetricValueStatus), String> {
        let (target, what, name) = if let Some(value) = &target.average_value {
            let name = format!("{resource} resource");
            (Target::Average(milli(value)), "usage", name)
        } else if let Some(percent) = target.average_utilization {
            let of = if container.is_some() {
                "container "
            } else {
                ""
            };
            let name = format!("{resource} {of}resource utilization (percentage of request)");
            let target = Target::Utilization {
                percent,
                resource,
                container,
            };
            (target, "utilization", name)
        } else {
            return Err("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set".into());
        };
        let failed = |e| format!("failed to get {resource} {what}: {e}");
        let samples = self
            .metrics()
            .resource(resource, self.selector, container)
            .await;
        let usage = samples.and_then(|s| self.per_pod(s, target, resource == "cpu"));
        let usage = usage.map_err(failed)?;
        let format = match resource {
            "memory" => Format::BinarySi,
            _ => Format::DecimalSi,
        };
        let status = MetricValueStatus {
            average_utilization: usage.utilization,
            average_value: Some(quantity(usage.average, format)),
            value: None,
        };
        Ok((usage.replicas, name, status))
    }

    async fn of_pods(&self, source: &PodsMetricSource) -> Result<Proposal, String> {
        let metric = &source.metric.name;
        let target = source.target.average_value.as_ref().map_or(0, milli);
        let samples = self
            .metrics()
            .pods(metric, self.selector, &selects(&source.metric))
            .await;
        let usage = samples.and_then(|s| self.per_pod(s, Target::Average(target), false));
        let usage = usage.map_err(|e| format!("failed to get pods metric value: {e}"))?;
        let current = MetricValueStatus {
            average_value: decimal(usage.average),
            ..Default::default()
        };
        Ok(Proposal {
            replicas: usage.replicas,
            name: format!("pods metric {metric}"),
            status: MetricStatus {
                type_: "Pods".into(),
                pods: Some(PodsMetricStatus {
                    metric: source.metric.clone(),
                    current,
                }),
                ..Default::default()
            },
        })
    }

    /// How many replicas a value that all share asks for, by whichever target is set.
    fn shared(
        &self,
        value: i64,
        target: &MetricTarget,
        missing: &str,
    ) -> Result<(i32, MetricValueStatus), String> {
        if let Some(wanted) = &target.average_value {
            let (replicas, each) =
                calculate::divided(value, milli(wanted), self.status_replicas, self.tolerances);
            let status = MetricValueStatus {
                average_value: decimal(each),
                ..Default::default()
            };
            Ok((replicas, status))
        } else if let Some(wanted) = &target.value {
            let replicas = calculate::shared(
                self.pods,
                value,
                milli(wanted),
                self.current,
                self.tolerances,
            )?;
            let status = MetricValueStatus {
                value: decimal(value),
                ..Default::default()
            };
            Ok((replicas, status))
        } else {
            Err(missing.to_owned())
        }
    }

    async fn of_object(&self, source: &ObjectMetricSource) -> Result<Proposal, String> {
        let (metric, object) = (&source.metric.name, &source.described_object);
        let version = object.api_version.as_deref().unwrap_or("v1");
        let about = (version, object.kind.as_str(), object.name.as_str());
        let value = self
            .metrics()
            .object(metric, about, &selects(&source.metric))
            .await;
        let missing = "invalid object metric source: neither a value target nor an average value target was set";
        let (replicas, current) = value
            .and_then(|v| self.shared(v, &source.target, missing))
            .map_err(|e| format!("failed to get object metric value: {e}"))?;
        Ok(Proposal {
            replicas,
            name: format!("{} metric {metric}", object.kind),
            status: MetricStatus {
                type_: "Object".into(),
                object: Some(ObjectMetricStatus {
                    metric: source.metric.clone(),
                    described_object: object.clone(),
                    current,
                }),
                ..Default::default()
            },
        })
    }

    async fn external(&self, source: &ExternalMetricSource) -> Result<Proposal, String> {
        let metric = &source.metric.name;
        let selector = selects(&source.metric);
        let value = self.metrics().external(metric, &selector).await;
        let missing = "invalid external metric source: neither a value target nor an average value target was set";
        let (replicas, current) = value
            .and_then(|v| self.shared(v, &source.target, missing))
            .map_err(|e| format!("failed to get {metric} external metric: {e}"))?;
        Ok(Proposal {
            replicas,
            name: format!("external metric {metric}({selector})"),
            status: MetricStatus {
                type_: "External".into(),
                external: Some(ExternalMetricStatus {
                    metric: source.metric.clone(),
                    current,
                }),
                ..Default::default()
            },
        })
    }
}
