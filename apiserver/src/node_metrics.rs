//! `metrics.k8s.io/v1beta1`: what nodes and pods use, asked of the kubelets when somebody wants to know.
//!
//! Nothing is collected in between. An APIService object for the group would put a real metrics server in its place.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::object;
use apimachinery::resource::{Resource, Text};
use apimachinery::schema::Schema;
use apimachinery::status::{Result, Status};
use futures::StreamExt;
use http::StatusCode;
use serde_json::{Value, json};

use crate::body::Reply;
use crate::cache::{Object, Selection};
use crate::negotiate::{Accept, Shape};
use crate::registry::table::Served;
use crate::rest::Exchange;
use crate::rest::respond::{Presenter, document};
use crate::server::Server;

pub const GROUP: &str = "metrics.k8s.io";
const VERSION: &str = "v1beta1";
/// How many kubelets are asked at a time.
const CONCURRENT: usize = 32;
const TIMEOUT: Duration = Duration::from_secs(10);
const SUMMARY: &str = "/stats/summary";
/// What rates are over, as far as the kubelets say.
const WINDOW: &str = "15s";

/// The two resources of the group.
#[must_use]
pub fn resources() -> Vec<Arc<Resource>> {
    let schema = Arc::new(Schema::any());
    let resource =
        |plural: &'static str, kind: &'static str, list_kind: &'static str, namespaced: bool| {
            Arc::new(Resource {
                group: GROUP.into(),
                version: VERSION.into(),
                kind: kind.into(),
                list_kind: list_kind.into(),
                plural: plural.into(),
                singular: Text::default(),
                short_names: Vec::new(),
                categories: Vec::new(),
                namespaced,
                verbs: vec!["get".into(), "list".into()],
                subresources: Vec::new(),
                storage_prefix: Text::default(),
                storage_version: true,
                columns: Vec::new(),
                scale: None,
                schema: schema.clone(),
            })
        };
    vec![
        resource("nodes", "NodeMetrics", "NodeMetricsList", false),
        resource("pods", "PodMetrics", "PodMetricsList", true),
    ]
}

/// Answers a get or list of the group.
pub async fn answer(exchange: &Exchange, served: &Arc<Served>) -> Result<Reply> {
    let info = &exchange.info;
    let accept = Accept::read(&exchange.headers, &exchange.query)?;
    let all = match served.resource.plural.as_ref() {
        "nodes" => nodes(exchange).await?,
        _ => pods(exchange).await?,
    };
    let presenter = Presenter {
        served,
        accept,
        query: &exchange.query,
        gzip: false,
    };
    if info.verb == "get" {
        let Some(found) = all.into_iter().next() else {
            let resource = served.resource.group_resource();
            return Err(Status::not_found(&resource, &info.name));
        };
        return Ok(document(StatusCode::OK, &found, accept));
    }
    if accept.shape == Shape::Table {
        return Ok(document(
            StatusCode::OK,
            &presenter.table(&all, json!({}), true)?,
            accept,
        ));
    }
    let list = json!({
        "kind": served.resource.list_kind, "apiVersion": served.resource.api_version(), "metadata": {}, "items": all,
    });
    Ok(document(StatusCode::OK, &list, accept))
}

fn wanted(exchange: &Exchange, fields: &'static [crate::fields::Field]) -> Result<Selection> {
    let query = &exchange.query;
    let labels = query.get("labelSelector").unwrap_or_default();
    let selected = query.get("fieldSelector").unwrap_or_default();
    let mut selection = Selection::parse(&exchange.info.namespace, labels, selected, fields)?;
    if exchange.info.verb == "get" {
        selection.name.clone_from(&exchange.info.name);
    }
    Ok(selection)
}

async fn nodes(exchange: &Exchange) -> Result<Vec<Value>> {
    let server = &exchange.server;
    let selection = wanted(exchange, crate::fields::of("", "nodes"))?;
    let nodes = server.registry.list("", "nodes", &selection).await?;
    let names = nodes.iter().map(|node| node.name().to_owned()).collect();
    let summaries = summaries(server, names).await;
    let metrics = nodes.iter().filter_map(|node| {
        let stats = &summaries.get(node.name())?["node"];
        let usage = usage(stats)?;
        Some(json!({
            "kind": "NodeMetrics", "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": metadata(node),
            "timestamp": stamp(stats), "window": WINDOW, "usage": usage,
        }))
    });
    Ok(metrics.collect())
}

async fn pods(exchange: &Exchange) -> Result<Vec<Value>> {
    let server = &exchange.server;
    let selection = wanted(exchange, crate::fields::of("", "pods"))?;
    let pods = server.registry.list("", "pods", &selection).await?;
    let node_of = |pod: &Object| {
        pod.fields
            .first()
            .map(ToString::to_string)
            .filter(|node| !node.is_empty())
    };
    let mut names: Vec<String> = pods.iter().filter_map(|pod| node_of(pod)).collect();
    names.sort();
    names.dedup();
    let summaries = summaries(server, names).await;
    let mut stats: HashMap<String, &Value> = HashMap::new();
    for pod in summaries
        .values()
        .flat_map(|summary| summary["pods"].as_array().into_iter().flatten())
    {
        let of = &pod["podRef"];
        let key = format!(
            "{}/{}",
            of["namespace"].as_str().unwrap_or(""),
            of["name"].as_str().unwrap_or("")
        );
        stats.insert(key, pod);
    }
    Ok(pods
        .iter()
        .filter_map(|pod| pod_metrics(pod, stats.get(pod.key())?))
        .collect())
}

fn pod_metrics(pod: &Object, stats: &Value) -> Option<Value> {
    let containers: Vec<Value> = stats["containers"]
        .as_array()?
        .iter()
        .filter_map(|container| {
            Some(json!({"name": container["name"], "usage": usage(container)?}))
        })
        .collect();
    (!containers.is_empty()).then(|| {
        json!({
            "kind": "PodMetrics", "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": metadata(pod),
            "timestamp": stamp(&stats["containers"][0]), "window": WINDOW, "containers": containers,
        })
    })
}

fn metadata(object: &Object) -> Value {
    let value = object.value();
    let mut metadata =
        json!({"name": object.name(), "creationTimestamp": object::creation_timestamp(&value)});
    if !object.namespace().is_empty() {
        metadata["namespace"] = object.namespace().into();
    }
    if let Some(labels) = object::labels(&value) {
        metadata["labels"] = labels.clone().into();
    }
    metadata
}

fn stamp(stats: &Value) -> Value {
    let time = stats["cpu"]["time"]
        .as_str()
        .or(stats["memory"]["time"].as_str());
    time.map_or_else(
        || apimachinery::time::format(jiff::Timestamp::now()),
        str::to_owned,
    )
    .into()
}

/// CPU and memory as quantities; `None` until the kubelet has measured both.
fn usage(stats: &Value) -> Option<Value> {
    let cpu = stats["cpu"]["usageNanoCores"].as_u64()?;
    let memory = stats["memory"]["workingSetBytes"].as_u64()?;
    Some(json!({"cpu": format!("{cpu}n"), "memory": format!("{}Ki", memory / 1024)}))
}

/// The summaries of those nodes that answer.
async fn summaries(server: &Server, nodes: Vec<String>) -> HashMap<String, Value> {
    let asked = futures::stream::iter(nodes).map(|node| async move {
        let ask = async {
            let endpoint = server.kubelets.endpoint(&server.registry, &node).await?;
            server.kubelets.get_json(&endpoint, SUMMARY).await
        };
        match tokio::time::timeout(TIMEOUT, ask).await {
            Ok(Ok(summary)) => Some((node, summary)),
            Ok(Err(error)) => {
                tracing::debug!(node, %error, "no metrics");
                None
            }
            Err(_) => None,
        }
    });
    asked
        .buffer_unordered(CONCURRENT)
        .filter_map(futures::future::ready)
        .collect()
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_a_pod() {
        let json = br#"{"metadata":{"name":"p","labels":{"a":"b"},"creationTimestamp":"2026-01-01T00:00:00Z"}}"#;
        let pod = Object::new("ns/p", json, 1, &[]).unwrap();
        let stats = json!({"containers": [
            {"name": "c", "cpu": {"time": "2026-01-02T00:00:00Z", "usageNanoCores": 5}, "memory": {"workingSetBytes": 2048}},
            {"name": "starting"},
        ]});
        let metrics = pod_metrics(&pod, &stats).unwrap();
        assert_eq!(
            metrics["containers"],
            json!([{"name": "c", "usage": {"cpu": "5n", "memory": "2Ki"}}])
        );
        assert_eq!(metrics["timestamp"], "2026-01-02T00:00:00Z");
        assert_eq!(metrics["metadata"]["labels"]["a"], "b");
        assert!(pod_metrics(&pod, &json!({"containers": [{"name": "c"}]})).is_none());
    }
}
