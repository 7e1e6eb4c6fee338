//! The embedded store under a day's worth of writes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use storage::embedded::{Embedded, Options};
use storage::{Expect, Store};
use tokio::task::JoinSet;

use super::Setting;
use crate::report::{Figure, Unit};

/// What three idle nodes with a hundred pods write in a day: leases every 10 s and some statuses, in writes.
const WRITES: u64 = 60_000;
const KEYS: u64 = 500;
const SIZE: usize = 2000;
const WRITERS: u64 = 8;

pub async fn churn(_: &Setting) -> Result<Vec<Figure>> {
    let directory = tempfile::Builder::new().prefix("skiff-bench-").tempdir()?;
    let path = directory.path().join("store.redb");
    // A day passes in about a minute, so history is kept for as much shorter.
    let options = Options {
        history: Duration::from_millis(500),
        ..Options::default()
    };
    let store: Arc<dyn Store> = Arc::new(Embedded::open(&path, options)?);
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        writers.spawn(async move {
            let mut slowest = Duration::ZERO;
            for n in 0..WRITES / WRITERS {
                let key = format!("/registry/bench/k{}", (n * WRITERS + writer) % KEYS);
                let value = Bytes::from(format!("{n:0>SIZE$}"));
                let started = Instant::now();
                store.put(&key, Expect::Any, value, None).await?;
                slowest = slowest.max(started.elapsed());
            }
            Ok::<_, storage::Error>(slowest)
        });
    }
    let mut slowest = Duration::ZERO;
    while let Some(done) = writers.join_next().await {
        slowest = slowest.max(done.context("a writer broke off")??);
    }
    // Cleaning up goes on behind the last write.
    let live = (KEYS as usize * (SIZE + 30)) as f64;
    let size = settled(&path, live).await?;
    store.close().await;
    Ok(vec![
        Figure {
            what: "embedded store after a day of churn: file over live data".into(),
            unit: Unit::Times,
            ours: size / live,
            peer: None,
            budget: "under 3x",
        },
        Figure {
            what: "embedded store in that day: a client's longest wait for a write".into(),
            unit: Unit::Seconds,
            ours: slowest.as_secs_f64(),
            peer: None,
            budget: "under 50 ms",
        },
    ])
}

/// The file's size once it is small, or after a minute.
async fn settled(path: &std::path::Path, live: f64) -> Result<f64> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let size = std::fs::metadata(path)?.len() as f64;
        if size < live * 3.0 || Instant::now() > end {
            return Ok(size);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
