//! The API server alone: start, memory, reads and writes.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;

use super::Setting;
use crate::load::Client;
use crate::objects;
use crate::plane::{Plane, Store};
use crate::report::{Figure, Unit};

const PODS: &str = "/api/v1/namespaces/default/pods";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// How long a process is left alone before its memory is read.
const REST: Duration = Duration::from_secs(10);

pub async fn start(setting: &Setting) -> Result<Vec<Figure>> {
    let row = ("API server: start to `/readyz`", Unit::Seconds, "20x");
    let figure = setting
        .compare(Store::Embedded, row, async |plane| {
            Ok(plane.start.as_secs_f64())
        })
        .await?;
    Ok(vec![figure])
}

pub async fn memory_empty(setting: &Setting) -> Result<Vec<Figure>> {
    let alone = ("API server: memory, empty cluster", Unit::Bytes, "10x");
    let whole = (
        "control plane with its store: memory, empty cluster",
        Unit::Bytes,
        "10x",
    );
    let apiserver = setting
        .compare(Store::Embedded, alone, async |plane| {
            let plane = full(plane).await?;
            Ok(plane.memory()? as f64)
        })
        .await?;
    let all = setting
        .compare(Store::Embedded, whole, async |plane| {
            let plane = full(plane).await?;
            Ok(plane.memory_of_all()? as f64)
        })
        .await?;
    Ok(vec![apiserver, all])
}

/// With scheduler and controller manager, settled.
async fn full(mut plane: Plane) -> Result<Plane> {
    plane.run("scheduler", &[])?;
    plane.run("controller-manager", &plane.manager_flags())?;
    service_account(&plane.client).await?;
    tokio::time::sleep(REST).await;
    Ok(plane)
}

/// Pods need the account that the controller manager would make.
async fn service_account(client: &Client) -> Result<()> {
    let path = "/api/v1/namespaces/default/serviceaccounts";
    let account = serde_json::json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"},
    });
    let made = client.call(Method::POST, path, Some(&account)).await;
    match made {
        Err(error) if !error.to_string().contains("already exists") => Err(error),
        _ => Ok(()),
    }
}

/// `nodes` nodes, and `pods` pods that are bound to them, or, without nodes, to nothing.
pub async fn fill(client: &Client, nodes: usize, pods: usize) -> Result<()> {
    service_account(client).await?;
    client
        .each(32, nodes, |n| {
            let node = objects::node(&format!("node-{n}"), 110);
            (Method::POST, "/api/v1/nodes".into(), Some(node))
        })
        .await?;
    client
        .each(32, pods, move |n| {
            let node = (nodes > 0).then(|| format!("node-{}", n % nodes));
            let pod = objects::pod(&format!("pod-{n}"), node.as_deref());
            (Method::POST, PODS.into(), Some(pod))
        })
        .await?;
    Ok(())
}

pub async fn memory_large(setting: &Setting) -> Result<Vec<Figure>> {
    let row = (
        "API server: memory, 1,000 nodes and 10,000 pods",
        Unit::Bytes,
        "8x",
    );
    let figure = setting
        .compare(Store::Embedded, row, async |plane| {
            fill(&plane.client, 1000, 10_000).await?;
            for path in [
                "/api/v1/pods?resourceVersion=0",
                "/api/v1/nodes?resourceVersion=0",
            ] {
                plane
                    .client
                    .connect()
                    .await?
                    .call(Method::GET, path, None)
                    .await?;
            }
            tokio::time::sleep(REST).await;
            Ok(plane.memory()? as f64)
        })
        .await?;
    Ok(vec![figure])
}

pub async fn get(setting: &Setting) -> Result<Vec<Figure>> {
    let row = ("GET one object, 16 connections", Unit::PerSecond, "8x");
    let figure = setting
        .compare(Store::Embedded, row, async |plane| {
            let object = objects::config_map("one");
            plane
                .client
                .call(Method::POST, CONFIG_MAPS, Some(&object))
                .await?;
            let get = |_| (Method::GET, format!("{CONFIG_MAPS}/one"), None);
            plane.client.rate(16, setting.duration, get).await
        })
        .await?;
    Ok(vec![figure])
}

pub async fn list(setting: &Setting) -> Result<Vec<Figure>> {
    let row = ("LIST 500 pods, 8 connections", Unit::PerSecond, "10x");
    let figure = setting
        .compare(Store::Embedded, row, async |plane| {
            fill(&plane.client, 0, 500).await?;
            let list = |_| (Method::GET, PODS.to_owned(), None);
            plane.client.rate(8, setting.duration, list).await
        })
        .await?;
    Ok(vec![figure])
}

/// What the server's memory grows by while a client reads one large list at its leisure.
pub async fn list_large(setting: &Setting) -> Result<Vec<Figure>> {
    let row = (
        "API server: extra memory while 50,000 pods are listed",
        Unit::Bytes,
        "under 50 MB",
    );
    let figure = setting
        .compare(Store::Embedded, row, async |plane| {
            fill(&plane.client, 0, 50_000).await?;
            let first = format!("{PODS}?limit=1");
            plane
                .client
                .connect()
                .await?
                .call(Method::GET, &first, None)
                .await?;
            tokio::time::sleep(REST).await;
            let before = plane.memory()?;
            let mut connection = plane.client.connect().await?;
            let (_, mut body) = connection.send(Method::GET, PODS, None).await?;
            let mut most = before;
            let mut frames = 0u32;
            while let Some(frame) = body.frame().await {
                frame?;
                frames += 1;
                if frames.is_multiple_of(16) {
                    most = most.max(plane.memory()?);
                }
            }
            Ok((most.max(plane.memory()?) - before) as f64)
        })
        .await?;
    Ok(vec![figure])
}

pub async fn create(setting: &Setting) -> Result<Vec<Figure>> {
    let embedded = (
        "create, 32 connections, embedded store",
        Unit::PerSecond,
        "5x",
    );
    let etcd = ("create, 32 connections, etcd", Unit::PerSecond, "1.5x");
    let mut figures = Vec::new();
    for (store, row) in [(Store::Embedded, embedded), (Store::Etcd, etcd)] {
        let figure = setting
            .compare(store, row, async |plane| {
                let template = objects::config_map("NAME").to_string();
                let create = move |n: usize| {
                    let body = template.replacen("NAME", &format!("c-{n}"), 1);
                    (
                        Method::POST,
                        CONFIG_MAPS.to_owned(),
                        Some(Bytes::from(body)),
                    )
                };
                let rate = plane.client.rate(32, setting.duration, create).await?;
                let kept = plane
                    .client
                    .call(Method::GET, &format!("{CONFIG_MAPS}?limit=1"), None)
                    .await?;
                kept["items"][0]
                    .as_object()
                    .context("nothing was created")?;
                Ok(rate)
            })
            .await?;
        figures.push(figure);
    }
    Ok(figures)
}
