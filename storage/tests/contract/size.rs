//! The embedded file stays in proportion to what lives in it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use storage::embedded::{Embedded, Options};
use storage::{Expect, Store};
use tempfile::TempDir;

const KEYS: u64 = 4000;
const VALUE: usize = 2500;
const CHANGES: u64 = 40_000;
const WRITERS: u64 = 8;

/// What the store takes on the disk, with the file that it is being rewritten to.
fn on_disk(path: &Path) -> u64 {
    let new = PathBuf::from(format!("{}.new", path.display()));
    let blocks = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.blocks() * 512);
    blocks(path) + blocks(&new)
}

async fn write(store: &Arc<dyn Store>, count: u64, key: fn(u64) -> u64) {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        writers.spawn(async move {
            for n in (writer..count).step_by(WRITERS as usize) {
                let value = Bytes::from(format!("{n:0>VALUE$}"));
                let key = format!("/registry/k{:05}", key(n));
                store.put(&key, Expect::Any, value, None).await.unwrap();
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn churn_leaves_the_file_under_three_times_what_lives_in_it() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store");
    let options = Options {
        history: Duration::from_millis(300),
        ..Options::default()
    };
    let store: Arc<dyn Store> = Arc::new(Embedded::open(&path, options).unwrap());
    write(&store, KEYS, |n| n).await;
    let live = KEYS * (VALUE as u64 + 15);
    let done = Arc::new(AtomicBool::new(false));
    let sampler = tokio::spawn({
        let (path, done) = (path.clone(), done.clone());
        async move {
            let mut largest = 0;
            while !done.load(Ordering::Relaxed) {
                largest = largest.max(on_disk(&path));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            largest
        }
    });
    // Some keys are written often, most of them seldom, as leases and all else in a cluster.
    write(&store, CHANGES, |n| match n % 4 {
        0 => n * 7919 % KEYS,
        _ => n % (KEYS / 40),
    })
    .await;
    done.store(true, Ordering::Relaxed);
    let largest = sampler.await.unwrap();
    println!(
        "{largest} bytes at most, {live} live, {} in the end",
        on_disk(&path)
    );
    assert!(largest < 3 * live, "{largest} bytes for {live}");
}

/// The file is rewritten while writes go on, and nothing is lost by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_gives_its_room_back() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store");
    let options = Options {
        history: Duration::from_millis(100),
        ..Options::default()
    };
    let store: Arc<dyn Store> = Arc::new(Embedded::open(&path, options.clone()).unwrap());
    write(&store, 2 * KEYS, |n| n).await;
    let full = on_disk(&path);
    let mut deletions = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        deletions.spawn(async move {
            for n in (KEYS + writer..2 * KEYS).step_by(WRITERS as usize) {
                let key = format!("/registry/k{n:05}");
                store.delete(&key, Expect::Any).await.unwrap();
            }
        });
    }
    while let Some(done) = deletions.join_next().await {
        done.unwrap();
    }
    let live = KEYS * (VALUE as u64 + 15);
    let from = store.current_revision().await.unwrap() + 1;
    let mut watch = store.watch("/registry/", from).await.unwrap();
    let watcher = tokio::spawn(async move {
        let mut heard = 0;
        loop {
            let batch = watch.next().await.unwrap().unwrap();
            for event in &batch.events {
                if &*event.kv.key == "/registry/last" {
                    return heard;
                }
                heard += 1;
            }
        }
    });
    let mut rounds = 0;
    crate::soon(async {
        while on_disk(&path) >= 3 * live || rounds < 4 {
            write(&store, KEYS / 8, |n| n * 8).await;
            rounds += 1;
        }
    })
    .await;
    println!("{full} bytes became {} for {live}", on_disk(&path));
    let last = store.put("/registry/last", Expect::Absent, "x".into(), None);
    last.await.unwrap();
    // Every write was told once, across the change of the file.
    let heard = crate::soon(watcher).await.unwrap();
    assert_eq!(heard, rounds * KEYS / 8);
    let before = store
        .range(storage::Range::prefix("/registry/"))
        .await
        .unwrap();
    assert_eq!(before.count, KEYS + 1);
    store.close().await;
    drop(store);
    let store = Embedded::open(&path, options).unwrap();
    let after = store
        .range(storage::Range::prefix("/registry/"))
        .await
        .unwrap();
    assert_eq!(after.count, before.count);
    for (one, other) in before.kvs.iter().zip(&after.kvs) {
        assert!(one == other, "{one:?} became {other:?}");
    }
    assert_eq!(after.revision, before.revision);
}
