//! The scheduler: how fast pods that wait get their nodes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::Method;
use http_body_util::BodyExt;

use super::{Setting, api};
use crate::load::Client;
use crate::objects;
use crate::plane::{Plane, Store};
use crate::report::{Figure, Unit};

const NODES: usize = 1000;
const PODS: usize = 5000;
const PATIENCE: Duration = Duration::from_secs(300);

pub async fn schedule(setting: &Setting) -> Result<Vec<Figure>> {
    let row = (
        "schedule 5,000 pods on 1,000 nodes (pods bound a second)",
        Unit::PerSecond,
        "10x",
    );
    let figure = setting.compare(Store::Embedded, row, measure).await?;
    Ok(vec![figure])
}

/// The pods are there before the scheduler is: only its own work is timed, from the first binding to the last.
async fn measure(mut plane: Plane) -> Result<f64> {
    let client = plane.client.clone();
    client
        .each(32, NODES, |n| {
            let node = objects::node(&format!("node-{n}"), 110);
            (Method::POST, "/api/v1/nodes".into(), Some(node))
        })
        .await?;
    untaint(&client).await?;
    api::fill(&client, 0, PODS).await?;
    let bound = tokio::spawn(bindings(client.clone()));
    plane.run("scheduler", &unthrottled(&plane))?;
    let took = tokio::time::timeout(PATIENCE, bound)
        .await
        .context("not all pods were bound in time")???;
    Ok((PODS - 1) as f64 / took.as_secs_f64())
}

/// Kubernetes' scheduler asks 50 times a second at most unless it is told otherwise; its own speed is what is measured.
fn unthrottled(plane: &Plane) -> Vec<(&'static str, String)> {
    let limit = || "100000".to_owned();
    match plane.is_kubernetes() {
        true => vec![("kube-api-qps", limit()), ("kube-api-burst", limit())],
        false => Vec::new(),
    }
}

/// New nodes carry the taint of nodes that are not ready until a controller takes it away; none runs here.
async fn untaint(client: &Client) -> Result<()> {
    let body = bytes::Bytes::from_static(br#"{"spec":{"taints":null}}"#);
    let mut connection = client.connect().await?;
    for n in 0..NODES {
        let path = format!("/api/v1/nodes/node-{n}");
        connection
            .patch(&path, "application/merge-patch+json", body.clone())
            .await?;
    }
    Ok(())
}

/// Watches for bound pods: the time between the first and the last.
async fn bindings(client: Client) -> Result<Duration> {
    let path = "/api/v1/pods?watch=true&resourceVersion=0&fieldSelector=spec.nodeName!%3D";
    let mut connection = client.connect().await?;
    let (status, mut body) = connection.send(Method::GET, path, None).await?;
    if !status.is_success() {
        bail!("the watch was refused: {status}");
    }
    let marker: &[u8] = b"{\"type\":\"ADDED\"";
    let (mut seen, mut first, mut rest) = (0, None, Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            seen += usize::from(rest.starts_with(marker));
            rest.drain(..=end);
        }
        if seen > 0 {
            let first = *first.get_or_insert_with(Instant::now);
            if seen >= PODS {
                return Ok(first.elapsed());
            }
        }
    }
    bail!("the watch ended after {seen} bindings")
}
