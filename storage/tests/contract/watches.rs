//! Watches: every change once, in order, from any kept revision.

use bytes::Bytes;
use storage::{Error, Event, EventKind, Expect, Watch};

use crate::engines::Engine;
use crate::soon;

promises!(
    changes_arrive_once_and_in_order,
    watches_resume_from_any_kept_revision,
    previous_values_come_along,
    prefixes_are_kept_apart,
    a_slow_watcher_misses_nothing,
    a_watch_from_before_compaction_is_told,
    a_deletion_at_the_compacted_revision_is_not_left_out,
    compaction_does_not_disturb_a_watch_that_is_up_to_date,
    watches_may_begin_in_the_future,
    progress_reaches_what_was_written,
);

/// The next `count` events.
async fn events(watch: &mut Watch, count: usize) -> Vec<Event> {
    let mut seen = Vec::new();
    soon(async {
        while seen.len() < count {
            let batch = watch
                .next()
                .await
                .expect("the watch goes on")
                .expect("without an error");
            assert!(batch.events.iter().all(|e| e.revision() <= batch.revision));
            seen.extend(batch.events);
        }
    })
    .await;
    assert!(
        seen.windows(2)
            .all(|pair| pair[0].revision() < pair[1].revision())
    );
    seen
}

async fn changes_arrive_once_and_in_order(engine: Engine) {
    let store = &engine.store;
    let start = store.current_revision().await.unwrap();
    let mut watch = store.watch("/w/", start + 1).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..10 {
        let store = engine.store.clone();
        writers.spawn(async move {
            for n in 0..50 {
                let value = Bytes::from(n.to_string());
                store
                    .put(&format!("/w/{writer}"), Expect::Any, value, None)
                    .await
                    .unwrap();
            }
        });
    }
    let seen = events(&mut watch, 500).await;
    assert_eq!(seen.len(), 500);
    for writer in 0..10 {
        let key = format!("/w/{writer}");
        let own = seen.iter().filter(|e| *e.kv.key == key);
        assert!(
            own.map(|e| e.kv.value.clone())
                .eq((0..50).map(|n| Bytes::from(n.to_string())))
        );
    }
}

async fn watches_resume_from_any_kept_revision(engine: Engine) {
    let store = &engine.store;
    let mut revisions = Vec::new();
    for n in 0..20 {
        revisions.push(
            store
                .put("/w", Expect::Any, n.to_string().into(), None)
                .await
                .unwrap(),
        );
    }
    for (n, revision) in revisions.iter().enumerate() {
        let mut watch = store.watch("/w", *revision).await.unwrap();
        let seen = events(&mut watch, revisions.len() - n).await;
        assert!(
            seen.iter()
                .map(Event::revision)
                .eq(revisions[n..].iter().copied())
        );
    }
}

async fn previous_values_come_along(engine: Engine) {
    let store = &engine.store;
    let first = store
        .put("/w", Expect::Absent, "1".into(), None)
        .await
        .unwrap();
    let mut watch = store.watch("/w", first).await.unwrap();
    store
        .put("/w", Expect::Any, "2".into(), None)
        .await
        .unwrap();
    store.delete("/w", Expect::Any).await.unwrap();
    let seen = events(&mut watch, 3).await;
    let kinds: Vec<_> = seen.iter().map(|e| e.kind).collect();
    assert_eq!(kinds, [EventKind::Put, EventKind::Put, EventKind::Delete]);
    let before: Vec<_> = seen
        .iter()
        .map(|e| e.prev_kv.as_ref().map(|kv| kv.value.clone()))
        .collect();
    assert_eq!(before, [None, Some("1".into()), Some("2".into())]);
    assert!(seen[2].kv.value.is_empty());
}

async fn prefixes_are_kept_apart(engine: Engine) {
    let store = &engine.store;
    let start = store.current_revision().await.unwrap() + 1;
    let mut pods = store.watch("/registry/pods/", start).await.unwrap();
    store
        .put("/registry/podtemplates/a", Expect::Any, "1".into(), None)
        .await
        .unwrap();
    store
        .put("/registry/pods/a", Expect::Any, "2".into(), None)
        .await
        .unwrap();
    let seen = events(&mut pods, 1).await;
    assert_eq!(&*seen[0].kv.key, "/registry/pods/a");
}

/// Far more changes than any buffer holds, before the watcher looks for the first time.
async fn a_slow_watcher_misses_nothing(engine: Engine) {
    const CHANGES: usize = 12_000;
    let start = engine.store.current_revision().await.unwrap();
    let mut watch = engine.store.watch("/w/", start + 1).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..40 {
        let store = engine.store.clone();
        writers.spawn(async move {
            for n in 0..CHANGES / 40 {
                let value = Bytes::from(n.to_string());
                store
                    .put(&format!("/w/{writer}"), Expect::Any, value, None)
                    .await
                    .unwrap();
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    let seen = events(&mut watch, CHANGES).await;
    assert!(
        seen.iter()
            .map(Event::revision)
            .eq(start + 1..=start + CHANGES as u64)
    );
}

async fn a_watch_from_before_compaction_is_told(engine: Engine) {
    let store = &engine.store;
    let first = store
        .put("/w", Expect::Any, "1".into(), None)
        .await
        .unwrap();
    for n in 0..5 {
        store
            .put("/w", Expect::Any, n.to_string().into(), None)
            .await
            .unwrap();
    }
    let last = store
        .put("/w", Expect::Any, "last".into(), None)
        .await
        .unwrap();
    store.compact(last).await.unwrap();
    let told = async {
        match store.watch("/w", first).await {
            Err(error) => error,
            Ok(mut watch) => loop {
                match watch.next().await.expect("a reason before the end") {
                    Ok(batch) => assert!(batch.events.is_empty(), "{batch:?}"),
                    Err(error) => return error,
                }
            },
        }
    };
    match soon(told).await {
        Error::Compacted { .. } => {}
        other => panic!("{other}"),
    }
}

async fn a_deletion_at_the_compacted_revision_is_not_left_out(engine: Engine) {
    let store = &engine.store;
    let put = |key| store.put(key, Expect::Any, "1".into(), None);
    put("/a").await.unwrap();
    let deleted = store.delete("/a", Expect::Any).await.unwrap().revision;
    put("/b").await.unwrap();
    store.compact(deleted).await.unwrap();
    let first = match store.watch("/", deleted).await {
        Ok(mut watch) => soon(watch.next()).await.unwrap(),
        Err(error) => Err(error),
    };
    match first {
        Err(Error::Compacted { .. }) => {}
        Ok(batch) => {
            assert_eq!(batch.events[0].kind, EventKind::Delete);
            assert_eq!(batch.events[0].revision(), deleted);
        }
        Err(other) => panic!("{other:?}"),
    }
}

async fn compaction_does_not_disturb_a_watch_that_is_up_to_date(engine: Engine) {
    let store = &engine.store;
    let first = store
        .put("/w", Expect::Any, "1".into(), None)
        .await
        .unwrap();
    let mut watch = store.watch("/w", first).await.unwrap();
    assert_eq!(events(&mut watch, 1).await.len(), 1);
    for n in 0..50 {
        let revision = store
            .put("/w", Expect::Any, n.to_string().into(), None)
            .await
            .unwrap();
        store.compact(revision - 1).await.unwrap();
        assert_eq!(events(&mut watch, 1).await[0].revision(), revision);
    }
}

async fn watches_may_begin_in_the_future(engine: Engine) {
    let store = &engine.store;
    let now = store.current_revision().await.unwrap();
    let mut watch = store.watch("/w", now + 3).await.unwrap();
    for n in 0..4 {
        store
            .put("/w", Expect::Any, n.to_string().into(), None)
            .await
            .unwrap();
    }
    let seen = events(&mut watch, 2).await;
    assert!(seen.iter().map(Event::revision).eq([now + 3, now + 4]));
}

async fn progress_reaches_what_was_written(engine: Engine) {
    let store = &engine.store;
    let start = store.current_revision().await.unwrap();
    let mut watch = store.watch("/w/", start + 1).await.unwrap();
    let progress = watch.progress();
    let own = store
        .put("/w/a", Expect::Any, "1".into(), None)
        .await
        .unwrap();
    let other = store
        .put("/elsewhere", Expect::Any, "2".into(), None)
        .await
        .unwrap();
    let mark = soon(progress.reached(other)).await;
    assert!(mark.revision >= other);
    assert_eq!(
        mark.last_event, own,
        "only changes of the prefix are waited for"
    );
    assert_eq!(events(&mut watch, 1).await[0].revision(), own);
}
