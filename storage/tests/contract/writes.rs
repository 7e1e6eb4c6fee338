//! Single keys: compare-and-set, revisions, deletion, expiry.

use std::time::{Duration, Instant};

use bytes::Bytes;
use storage::{Error, Expect, Range};

use crate::engines::Engine;

promises!(
    revisions_count_writes,
    creates_only_what_is_absent,
    replaces_only_what_it_saw,
    deletes_only_what_it_saw,
    keys_expire,
    large_values_are_refused_or_kept_whole,
    racing_writers_lose_no_update,
    closed_stores_say_so,
);

async fn revisions_count_writes(engine: Engine) {
    let store = &engine.store;
    let first = store
        .put("/a", Expect::Absent, "1".into(), None)
        .await
        .unwrap();
    let second = store
        .put("/b", Expect::Any, "2".into(), None)
        .await
        .unwrap();
    assert_eq!(second, first + 1);
    assert_eq!(store.current_revision().await.unwrap(), second);
    let third = store
        .put("/a", Expect::ModRevision(first), "3".into(), None)
        .await
        .unwrap();
    let kv = store.get("/a").await.unwrap().unwrap();
    assert_eq!(
        (kv.create_revision, kv.mod_revision, &*kv.value),
        (first, third, &b"3"[..])
    );
    assert_eq!(store.get("/none").await.unwrap(), None);
}

async fn creates_only_what_is_absent(engine: Engine) {
    let store = &engine.store;
    let revision = store
        .put("/a", Expect::Absent, "1".into(), None)
        .await
        .unwrap();
    match store.put("/a", Expect::Absent, "2".into(), None).await {
        Err(Error::Conflict { current: Some(kv) }) => {
            assert_eq!((kv.mod_revision, &*kv.value), (revision, &b"1"[..]));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        store.current_revision().await.unwrap(),
        revision,
        "a refused write leaves no trace"
    );
}

async fn replaces_only_what_it_saw(engine: Engine) {
    let store = &engine.store;
    let old = store
        .put("/a", Expect::Absent, "1".into(), None)
        .await
        .unwrap();
    let new = store
        .put("/a", Expect::ModRevision(old), "2".into(), None)
        .await
        .unwrap();
    match store
        .put("/a", Expect::ModRevision(old), "3".into(), None)
        .await
    {
        Err(Error::Conflict { current: Some(kv) }) => assert_eq!(kv.mod_revision, new),
        other => panic!("{other:?}"),
    }
    match store
        .put("/none", Expect::ModRevision(old), "3".into(), None)
        .await
    {
        Err(Error::Conflict { current: None }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(store.get("/a").await.unwrap().unwrap().value, "2");
}

async fn deletes_only_what_it_saw(engine: Engine) {
    let store = &engine.store;
    let old = store
        .put("/a", Expect::Absent, "1".into(), None)
        .await
        .unwrap();
    let new = store
        .put("/a", Expect::Any, "2".into(), None)
        .await
        .unwrap();
    match store.delete("/a", Expect::ModRevision(old)).await {
        Err(Error::Conflict { current: Some(kv) }) => assert_eq!(kv.mod_revision, new),
        other => panic!("{other:?}"),
    }
    let deleted = store.delete("/a", Expect::ModRevision(new)).await.unwrap();
    assert_eq!(
        (deleted.revision, &*deleted.prev.value),
        (new + 1, &b"2"[..])
    );
    match store.delete("/a", Expect::Any).await {
        Err(Error::Conflict { current: None }) => {}
        other => panic!("{other:?}"),
    }
    let again = store
        .put("/a", Expect::Absent, "3".into(), None)
        .await
        .unwrap();
    assert_eq!(
        store.get("/a").await.unwrap().unwrap().create_revision,
        again
    );
}

async fn keys_expire(engine: Engine) {
    let store = &engine.store;
    let ttl = Duration::from_secs(2);
    let started = Instant::now();
    store
        .put("/short", Expect::Absent, "1".into(), Some(ttl))
        .await
        .unwrap();
    store
        .put("/kept", Expect::Absent, "1".into(), Some(ttl))
        .await
        .unwrap();
    store
        .put("/kept", Expect::Any, "2".into(), None)
        .await
        .unwrap();
    let mut watch = store
        .watch("/short", store.current_revision().await.unwrap() + 1)
        .await
        .unwrap();
    let batch = crate::news(&mut watch).await;
    assert!(
        started.elapsed() >= ttl,
        "gone after {:?}",
        started.elapsed()
    );
    assert_eq!(batch.events[0].kind, storage::EventKind::Delete);
    assert_eq!(store.get("/short").await.unwrap(), None);
    assert!(
        store.get("/kept").await.unwrap().is_some(),
        "a write without ttl ends the former one"
    );
}

async fn large_values_are_refused_or_kept_whole(engine: Engine) {
    let store = &engine.store;
    let fits = Bytes::from(vec![b'x'; 1 << 20]);
    store
        .put("/fits", Expect::Absent, fits.clone(), None)
        .await
        .unwrap();
    assert_eq!(store.get("/fits").await.unwrap().unwrap().value, fits);
    let before = store.current_revision().await.unwrap();
    let large = Bytes::from(vec![b'x'; 8 << 20]);
    match store.put("/large", Expect::Absent, large, None).await {
        Err(Error::TooLarge { .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(store.get("/large").await.unwrap(), None);
    assert_eq!(store.current_revision().await.unwrap(), before);
}

/// A counter that 8 writers raise 25 times each, each time from what they saw.
async fn racing_writers_lose_no_update(engine: Engine) {
    const WRITERS: u64 = 8;
    const TIMES: u64 = 25;
    let first = engine
        .store
        .put("/n", Expect::Absent, "0".into(), None)
        .await
        .unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let store = engine.store.clone();
        writers.spawn(async move {
            for _ in 0..TIMES {
                loop {
                    let kv = store.get("/n").await.unwrap().unwrap();
                    let n: u64 = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
                    let next = Bytes::from((n + 1).to_string());
                    match store
                        .put("/n", Expect::ModRevision(kv.mod_revision), next, None)
                        .await
                    {
                        Ok(_) => break,
                        Err(Error::Conflict { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        });
    }
    while let Some(done) = crate::soon(writers.join_next()).await {
        done.unwrap();
    }
    let kv = engine.store.get("/n").await.unwrap().unwrap();
    assert_eq!(kv.value, (WRITERS * TIMES).to_string());
    assert_eq!(
        kv.mod_revision,
        first + WRITERS * TIMES,
        "every success is one revision"
    );
}

async fn closed_stores_say_so(engine: Engine) {
    let store = &engine.store;
    store
        .put("/a", Expect::Absent, "1".into(), None)
        .await
        .unwrap();
    let mut watch = store.watch("/", 1).await.unwrap();
    store.close().await;
    assert!(matches!(
        store.put("/b", Expect::Any, "2".into(), None).await,
        Err(Error::Closed)
    ));
    assert!(matches!(store.get("/a").await, Err(Error::Closed)));
    assert!(matches!(
        store.range(Range::prefix("/")).await,
        Err(Error::Closed)
    ));
    crate::soon(async { while let Some(Ok(_)) = watch.next().await {} }).await;
}
