//! The embedded store under a day's worth of writes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use storage::embedded::{Embedded, Options};
use storage::{Expect, Store};
use tokio::task::JoinSet;

use super::Setting;
use crate::report::{Figure, Unit};

/// What a cluster of some nodes writes in a day: leases every 10 s and some statuses, in writes.
const WRITES: u64 = 60_000;
const KEYS: u64 = 5000;
const SIZE: usize = 2000;
const WRITERS: u64 = 8;
/// A day passes in less than half a minute, so history, which is kept for 5 minutes, is kept for as much shorter.
const HISTORY: Duration = Duration::from_millis(100);

pub async fn churn(_: &Setting) -> Result<Vec<Figure>> {
    let directory = tempfile::Builder::new().prefix("skiff-bench-").tempdir()?;
    let path = directory.path().join("store.redb");
    let options = Options {
        history: HISTORY,
        ..Options::default()
    };
    let store: Arc<dyn Store> = Arc::new(Embedded::open(&path, options)?);
    write(&store, KEYS, |n| n).await?;
    let live = (KEYS as usize * (SIZE + 30)) as f64;
    let done = Arc::new(AtomicBool::new(false));
    let sampler = tokio::spawn(sample(path.clone(), done.clone()));
    // Three of four writes go to a fortieth of the keys, as leases do.
    let slowest = write(&store, WRITES, |n| match n % 4 {
        0 => n * 7919 % KEYS,
        _ => n % (KEYS / 40),
    })
    .await?;
    done.store(true, Ordering::Relaxed);
    let largest = sampler.await.context("the sampler broke off")? as f64;
    store.close().await;
    Ok(vec![
        Figure {
            what: "embedded store in a day of churn: most on the disk over live data".into(),
            unit: Unit::Times,
            ours: largest / live,
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

/// Writes so often, each time the key that `key` says; how long the slowest took.
async fn write(store: &Arc<dyn Store>, count: u64, key: fn(u64) -> u64) -> Result<Duration> {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        writers.spawn(async move {
            let mut slowest = Duration::ZERO;
            for n in (writer..count).step_by(WRITERS as usize) {
                let key = format!("/registry/bench/k{:05}", key(n));
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
    Ok(slowest)
}

/// The most that the file takes on the disk, with the one that it is being rewritten to.
async fn sample(path: PathBuf, done: Arc<AtomicBool>) -> u64 {
    let new = PathBuf::from(format!("{}.new", path.display()));
    let on_disk = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.blocks() * 512);
    let mut largest = 0;
    while !done.load(Ordering::Relaxed) {
        largest = largest.max(on_disk(&path) + on_disk(&new));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    largest
}
