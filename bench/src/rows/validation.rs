//! What validation costs a write: the fields of a large object, and rules in CEL.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use super::Setting;
use crate::load::Client;
use crate::plane::Store;
use crate::report::{Figure, Unit};

const STRICT: &str =
    "/apis/apps/v1/namespaces/default/deployments?dryRun=All&fieldValidation=Strict";
const REQUESTS: usize = 50;
const THINGS: &str = "/apis/bench.example.com/v1/namespaces/default/things";
const ITEMS: usize = 1000;
const RULES: [&str; 5] = [
    "self.low <= self.high",
    "self.low >= 0",
    "self.name.startsWith('item-')",
    "self.name != self.other",
    "!has(self.absent) || self.absent > 1",
];

/// A write of 1 MB that is only checked: the median of the requests' times.
pub async fn strict(setting: &Setting) -> Result<Vec<Figure>> {
    let row = (
        "create of 1 MB, strict field validation, dry run: median",
        Unit::Seconds,
        "under 10 ms",
    );
    let figure = setting
        .compare(Store::Embedded, row, async |plane| {
            let body = Bytes::from(large().to_string());
            let mut connection = plane.client.connect().await?;
            let mut times = Vec::with_capacity(REQUESTS);
            for _ in 0..REQUESTS {
                let started = Instant::now();
                connection
                    .call(Method::POST, STRICT, Some(body.clone()))
                    .await?;
                times.push(started.elapsed());
            }
            times.sort_unstable();
            Ok(times[REQUESTS / 2].as_secs_f64())
        })
        .await?;
    Ok(vec![figure])
}

/// A Deployment of 1 MB: 20 containers with 630 variables each.
fn large() -> Value {
    let variable = |n| json!({"name": format!("VARIABLE_{n:04}"), "value": "x".repeat(46)});
    let container = |n| {
        json!({
            "name": format!("c-{n}"),
            "image": "registry.example/app:1",
            "env": (0..630).map(variable).collect::<Vec<_>>(),
        })
    };
    let labels = json!({"app": "bench"});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "large"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": (0..20).map(container).collect::<Vec<_>>()},
            },
        },
    })
}

/// Evaluations a second: creates, only checked, of custom resources whose every item has rules.
pub async fn cel(setting: &Setting) -> Result<Vec<Figure>> {
    let row = (
        "CEL rules of custom resources evaluated, 8 connections",
        Unit::PerSecond,
        "over 100 k/s",
    );
    let figure = setting
        .compare(Store::Embedded, row, async |plane| {
            define(&plane.client).await?;
            refuses(&plane.client).await?;
            let body = Bytes::from(thing().to_string());
            let create = move |_| {
                let path = format!("{THINGS}?dryRun=All");
                (Method::POST, path, Some(body.clone()))
            };
            let rate = plane.client.rate(8, setting.duration, create).await?;
            Ok(rate * (ITEMS * RULES.len()) as f64)
        })
        .await?;
    Ok(vec![figure])
}

async fn define(client: &Client) -> Result<()> {
    let text = json!({"type": "string", "maxLength": 64});
    let number = json!({"type": "integer"});
    let rules = RULES.map(|rule| json!({"rule": rule}));
    let item = json!({
        "type": "object",
        "required": ["name", "other", "low", "high"],
        "properties": {"name": text, "other": text, "low": number, "high": number, "absent": number},
        "x-kubernetes-validations": rules,
    });
    let schema = json!({"type": "object", "properties": {"spec": {
        "type": "object",
        "properties": {"items": {"type": "array", "maxItems": ITEMS, "items": item}},
    }}});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.bench.example.com"},
        "spec": {
            "group": "bench.example.com",
            "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
            "scope": "Namespaced",
            "versions": [{
                "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
            }],
        },
    });
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    client.call(Method::POST, path, Some(&definition)).await?;
    client.ready(THINGS, Duration::from_secs(20)).await
}

/// The rules do hold: one item that breaks one of them, the last, is refused.
async fn refuses(client: &Client) -> Result<()> {
    let mut broken = thing();
    broken["spec"]["items"][ITEMS - 1]["absent"] = json!(1);
    let body = Bytes::from(broken.to_string());
    let path = format!("{THINGS}?dryRun=All");
    let mut connection = client.connect().await?;
    let (status, _) = connection.send(Method::POST, &path, Some(body)).await?;
    ensure!(status == 422, "a broken rule was answered with {status}");
    Ok(())
}

fn thing() -> Value {
    let item = |n| json!({"name": format!("item-{n}"), "other": "else", "low": n, "high": n + 1});
    json!({
        "apiVersion": "bench.example.com/v1",
        "kind": "Thing",
        "metadata": {"name": "thing"},
        "spec": {"items": (0..ITEMS).map(item).collect::<Vec<_>>()},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_large_object_is_about_a_megabyte() {
        let length = large().to_string().len();
        assert!((1_000_000..1_100_000).contains(&length), "{length}");
    }
}
