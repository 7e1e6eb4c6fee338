//! Ranges: order, pages at one revision, the past, and compaction.

use storage::{Error, Expect, Range};

use crate::engines::Engine;

promises!(
    ranges_are_ordered_and_bounded,
    ten_thousand_keys_page_at_one_revision,
    the_past_stays_as_it_was,
    compacted_revisions_are_gone,
    reopened_stores_know_everything,
);

async fn ranges_are_ordered_and_bounded(engine: Engine) {
    let store = &engine.store;
    for key in ["/p/b", "/p/a", "/p0", "/q/a", "/p/a/x"] {
        store
            .put(key, Expect::Absent, key.as_bytes().to_vec().into(), None)
            .await
            .unwrap();
    }
    let all = store.range(Range::prefix("/p/")).await.unwrap();
    let keys: Vec<_> = all.kvs.iter().map(|kv| &*kv.key).collect();
    assert_eq!(keys, ["/p/a", "/p/a/x", "/p/b"]);
    assert_eq!((all.count, all.more), (3, false));
    let one = store.range(Range::prefix("/p/").limit(1)).await.unwrap();
    assert_eq!((one.kvs.len(), one.count, one.more), (1, 3, true));
    let keys_only = Range {
        keys_only: true,
        ..Range::prefix("/p/")
    };
    assert!(
        store
            .range(keys_only)
            .await
            .unwrap()
            .kvs
            .iter()
            .all(|kv| kv.value.is_empty())
    );
    let count_only = Range {
        count_only: true,
        ..Range::prefix("/p/")
    };
    let counted = store.range(count_only).await.unwrap();
    assert_eq!((counted.kvs.len(), counted.count), (0, 3));
}

/// Pages of 500 while every page is followed by changes: they show the keys as they were at the first.
async fn ten_thousand_keys_page_at_one_revision(engine: Engine) {
    const KEYS: usize = 10_000;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..50 {
        let store = engine.store.clone();
        writers.spawn(async move {
            for n in (writer..KEYS).step_by(50) {
                let key = format!("/many/{n:05}");
                store
                    .put(&key, Expect::Absent, "old".into(), None)
                    .await
                    .unwrap();
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    let store = &engine.store;
    let (mut seen, mut next, mut at) = (0, Range::prefix("/many/").limit(500), None);
    loop {
        let page = store.range(next.clone()).await.unwrap();
        let revision = *at.get_or_insert(page.revision);
        assert_eq!(page.revision, revision);
        for kv in &page.kvs {
            assert_eq!(
                (&*kv.key, &*kv.value),
                (&*format!("/many/{seen:05}"), &b"old"[..])
            );
            seen += 1;
        }
        if !page.more {
            break;
        }
        let last = page.kvs.last().unwrap();
        let behind = format!("/many/{:05}", KEYS - seen % 100 - 1);
        store
            .put(&behind, Expect::Any, "new".into(), None)
            .await
            .unwrap();
        store
            .put(
                &format!("{}-between", last.key),
                Expect::Any,
                "new".into(),
                None,
            )
            .await
            .unwrap();
        next = Range::prefix("/many/")
            .limit(500)
            .at(revision)
            .from_key(format!("{}\0", last.key));
    }
    assert_eq!(seen, KEYS);
}

async fn the_past_stays_as_it_was(engine: Engine) {
    let store = &engine.store;
    let first = store
        .put("/a", Expect::Absent, "1".into(), None)
        .await
        .unwrap();
    let second = store
        .put("/a", Expect::Any, "2".into(), None)
        .await
        .unwrap();
    store.delete("/a", Expect::Any).await.unwrap();
    let at = async |revision| {
        store
            .range(Range::prefix("/").at(revision))
            .await
            .unwrap()
            .kvs
    };
    assert_eq!(at(first).await[0].value, "1");
    assert_eq!(at(second).await[0].value, "2");
    assert!(at(second + 1).await.is_empty());
    match store.range(Range::prefix("/").at(second + 100)).await {
        Err(Error::FutureRevision { .. }) => {}
        other => panic!("{other:?}"),
    }
}

async fn compacted_revisions_are_gone(engine: Engine) {
    let store = &engine.store;
    let first = store
        .put("/a", Expect::Absent, "1".into(), None)
        .await
        .unwrap();
    store
        .put("/a", Expect::Any, "2".into(), None)
        .await
        .unwrap();
    let last = store
        .put("/b", Expect::Any, "3".into(), None)
        .await
        .unwrap();
    store.compact(last).await.unwrap();
    match store.range(Range::prefix("/").at(first)).await {
        Err(Error::Compacted { .. }) => {}
        other => panic!("{other:?}"),
    }
    let now = store.range(Range::prefix("/").at(last)).await.unwrap();
    assert_eq!(now.kvs.len(), 2);
    assert_eq!(store.get("/a").await.unwrap().unwrap().value, "2");
}

async fn reopened_stores_know_everything(mut engine: Engine) {
    let first = engine
        .store
        .put("/a", Expect::Absent, "1".into(), None)
        .await
        .unwrap();
    let second = engine
        .store
        .put("/b", Expect::Absent, "2".into(), None)
        .await
        .unwrap();
    engine.store.delete("/b", Expect::Any).await.unwrap();
    engine.reopen().await;
    let store = &engine.store;
    assert_eq!(store.current_revision().await.unwrap(), second + 1);
    let kv = store.get("/a").await.unwrap().unwrap();
    assert_eq!((kv.mod_revision, &*kv.value), (first, &b"1"[..]));
    assert_eq!(store.get("/b").await.unwrap(), None);
    let past = store.range(Range::prefix("/").at(second)).await.unwrap();
    assert_eq!(past.kvs.len(), 2, "history outlives the process");
    let next = store
        .put("/c", Expect::Absent, "3".into(), None)
        .await
        .unwrap();
    assert_eq!(next, second + 2);
}
