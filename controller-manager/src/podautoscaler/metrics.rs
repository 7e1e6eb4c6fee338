//! Reads what pods use, and what else is measured, from the three metrics APIs.

use std::time::Duration;

use apimachinery::quantity::Quantity;
use apimachinery::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIGroup;
use serde_json::Value;

use super::calculate::{Sample, Samples};
use crate::discovery;

const CUSTOM: &str = "custom.metrics.k8s.io";
const EXTERNAL: &str = "external.metrics.k8s.io";
/// What a value is over when its source does not say.
const DEFAULT_WINDOW: Duration = Duration::from_secs(60);

/// The metrics APIs, as one client sees them.
pub struct Metrics<'a> {
    pub client: &'a kube::Client,
    pub namespace: &'a str,
}

fn milli(value: &Value) -> Option<i64> {
    Quantity::parse(value.as_str()?)
        .ok()
        .map(Quantity::milli_value)
}

fn timestamp(value: &Value) -> Timestamp {
    value
        .as_str()
        .and_then(|t| t.parse().ok())
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Go's durations as the metrics API writes them, `1m30.5s`.
fn window(value: &Value) -> Duration {
    let parsed = value
        .as_str()
        .and_then(|w| w.parse::<jiff::SignedDuration>().ok());
    parsed
        .and_then(|d| d.try_into().ok())
        .unwrap_or(DEFAULT_WINDOW)
}

/// The usage of a resource in each pod, or in one container of each; pods of which it is not known are left out.
fn usage(items: &[Value], resource: &str, container: Option<&str>) -> Samples {
    let sample = |pod: &Value| {
        let name = pod["metadata"]["name"].as_str()?.to_owned();
        let containers = pod["containers"].as_array()?;
        let mut counted = containers
            .iter()
            .filter(|c| container.is_none_or(|n| c["name"] == n))
            .peekable();
        counted.peek()?;
        let value = counted
            .map(|c| milli(&c["usage"][resource]))
            .sum::<Option<i64>>()?;
        let sample = Sample {
            value,
            timestamp: timestamp(&pod["timestamp"]),
            window: window(&pod["window"]),
        };
        Some((name, sample))
    };
    items.iter().filter_map(sample).collect()
}

fn query(path: &str, pairs: &[(&str, String)]) -> String {
    let encode = |text: &str| {
        let mut out = String::new();
        for byte in text.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    out.push(char::from(byte));
                }
                _ => out.push_str(&format!("%{byte:02X}")),
            }
        }
        out
    };
    let given = pairs.iter().filter(|(_, value)| !value.is_empty());
    let pairs: Vec<String> = given
        .map(|(key, value)| format!("{key}={}", encode(value)))
        .collect();
    match pairs.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{}", pairs.join("&")),
    }
}

impl Metrics<'_> {
    async fn items(&self, path: &str) -> Result<Vec<Value>, String> {
        let request = http::Request::get(path)
            .body(Vec::new())
            .map_err(|e| e.to_string())?;
        let answer = self.client.request::<Value>(request).await;
        let answer = answer.map_err(|e| crate::frame::Error::from(e).to_string())?;
        // A list, or a single value of one object.
        Ok(match &answer["items"] {
            Value::Array(items) => items.clone(),
            _ => vec![answer],
        })
    }

    /// Usage of `cpu` or `memory` of the selected pods.
    pub async fn resource(
        &self,
        resource: &str,
        selector: &str,
        container: Option<&str>,
    ) -> Result<Samples, String> {
        let path = format!(
            "/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods",
            self.namespace
        );
        let path = query(&path, &[("labelSelector", selector.to_owned())]);
        let items = self
            .items(&path)
            .await
            .map_err(|e| format!("unable to fetch metrics from resource metrics API: {e}"));
        let failed = |e| format!("unable to get metrics for resource {resource}: {e}");
        let items = items.map_err(failed)?;
        if items.is_empty() {
            return Err(failed(
                "no metrics returned from resource metrics API".into(),
            ));
        }
        Ok(usage(&items, resource, container))
    }

    /// The version of an API group that the server prefers.
    async fn version(&self, group: &str) -> Result<String, String> {
        let request = http::Request::get(format!("/apis/{group}"))
            .body(Vec::new())
            .map_err(|e| e.to_string())?;
        let found = self.client.request::<APIGroup>(request).await;
        let found = found.map_err(|e| crate::frame::Error::from(e).to_string())?;
        let version = found
            .preferred_version
            .or(found.versions.into_iter().next());
        version
            .map(|v| v.version)
            .ok_or_else(|| format!("no version of {group} is served"))
    }

    /// A metric that pods have, for the selected ones.
    pub async fn pods(
        &self,
        metric: &str,
        selector: &str,
        metric_selector: &LabelSelector,
    ) -> Result<Samples, String> {
        let failed = |e| {
            format!(
                "unable to get metric {metric}: unable to fetch metrics from custom metrics API: {e}"
            )
        };
        let items = async {
            let version = self.version(CUSTOM).await?;
            let path = format!(
                "/apis/{CUSTOM}/{version}/namespaces/{}/pods/*/{metric}",
                self.namespace
            );
            let pairs = [
                ("labelSelector", selector.to_owned()),
                ("metricLabelSelector", metric_selector.to_string()),
            ];
            self.items(&query(&path, &pairs)).await
        };
        let items = items.await.map_err(failed)?;
        if items.is_empty() {
            return Err(failed("no metrics returned from custom metrics API".into()));
        }
        let sample = |item: &Value| {
            let seconds = item["windowSeconds"].as_u64();
            Some((
                item["describedObject"]["name"].as_str()?.to_owned(),
                Sample {
                    value: milli(&item["value"])?,
                    timestamp: timestamp(&item["timestamp"]),
                    window: seconds.map_or(DEFAULT_WINDOW, Duration::from_secs),
                },
            ))
        };
        Ok(items.iter().filter_map(sample).collect())
    }

    /// A metric of one object.
    pub async fn object(
        &self,
        metric: &str,
        (api_version, kind, name): (&str, &str, &str),
        metric_selector: &LabelSelector,
    ) -> Result<i64, String> {
        let namespace = self.namespace;
        let value = async {
            let (group, group_version) = api_version.split_once('/').unwrap_or(("", api_version));
            let served = discovery::resources(self.client, group, group_version).await;
            let served = served.map_err(|e| e.to_string())?;
            let found = served
                .iter()
                .find(|d| d.resource.kind == kind)
                .ok_or_else(|| {
                    format!("no matches for kind {kind:?} in version {api_version:?}")
                })?;
            let plural = match group {
                "" => found.resource.plural.clone(),
                _ => format!("{}.{group}", found.resource.plural),
            };
            let version = self.version(CUSTOM).await?;
            let path = match (kind, found.namespaced) {
                ("Namespace", _) => {
                    format!("/apis/{CUSTOM}/{version}/namespaces/{namespace}/metrics/{metric}")
                }
                (_, true) => format!(
                    "/apis/{CUSTOM}/{version}/namespaces/{namespace}/{plural}/{name}/{metric}"
                ),
                (_, false) => format!("/apis/{CUSTOM}/{version}/{plural}/{name}/{metric}"),
            };
            let pairs = [("metricLabelSelector", metric_selector.to_string())];
            let items = self.items(&query(&path, &pairs)).await?;
            let value = items.first().and_then(|item| milli(&item["value"]));
            value.ok_or_else(|| "no metrics returned from custom metrics API".to_owned())
        };
        let failed = |e| format!("unable to get metric {metric}: {e} on {kind} {namespace}/{name}");
        value.await.map_err(failed)
    }

    /// The sum of an external metric's values.
    pub async fn external(&self, metric: &str, selector: &LabelSelector) -> Result<i64, String> {
        let namespace = self.namespace;
        let items = async {
            let version = self.version(EXTERNAL).await?;
            let path = format!("/apis/{EXTERNAL}/{version}/namespaces/{namespace}/{metric}");
            let pairs = [("labelSelector", selector.to_string())];
            self.items(&query(&path, &pairs)).await
        };
        let failed = |e| {
            format!(
                "unable to get external metric {namespace}/{metric}/{selector}: unable to fetch metrics from external metrics API: {e}"
            )
        };
        let items = items.await.map_err(failed)?;
        if items.is_empty() {
            return Err(failed(
                "no metrics returned from external metrics API".into(),
            ));
        }
        let values = items.iter().filter_map(|item| milli(&item["value"]));
        Ok(values.fold(0i64, i64::saturating_add))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn usage_of_pods_and_containers() {
        let pod = |name: &str, containers: Value| json!({"metadata": {"name": name}, "timestamp": "2026-01-01T00:00:00Z", "window": "15s", "containers": containers});
        let items = [
            pod(
                "a",
                json!([{"name": "x", "usage": {"cpu": "150000000n", "memory": "2Ki"}}, {"name": "y", "usage": {"cpu": "50m"}}]),
            ),
            pod("b", json!([{"name": "y", "usage": {"cpu": "1"}}])),
            pod("c", json!([])),
        ];
        let values = |resource, container| -> Vec<(String, i64)> {
            let samples = usage(&items, resource, container).into_iter();
            samples.map(|(name, s)| (name, s.value)).collect()
        };
        let named = |list: &[(&str, i64)]| -> Vec<(String, i64)> {
            list.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect()
        };
        assert_eq!(values("cpu", None), named(&[("a", 200), ("b", 1000)]));
        assert_eq!(values("cpu", Some("x")), named(&[("a", 150)]));
        assert_eq!(
            values("memory", None),
            named(&[]),
            "not known of every container"
        );
        assert_eq!(values("memory", Some("x")), named(&[("a", 2_048_000)]));
        assert_eq!(
            usage(&items, "cpu", None)["a"].window,
            Duration::from_secs(15)
        );
        assert_eq!(
            query("/p", &[("l", "a=b,c in (d)".into()), ("m", String::new())]),
            "/p?l=a%3Db%2Cc%20in%20%28d%29"
        );
    }
}
