//! Backups and restores: what was there is there again, and time does not go back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use storage::backup::{self, BUMP, RestoreOptions};
use storage::{Error, Expect, Range};

use crate::engines::Engine;
use crate::{news, soon};

promises!(
    restores_what_was_backed_up,
    backups_are_of_one_revision,
    revisions_go_on_behind_a_restore,
    times_to_live_go_on,
    restores_overwrite_only_when_told,
    damaged_backups_change_nothing,
);

const OVERWRITE: RestoreOptions = RestoreOptions {
    overwrite: true,
    bump: BUMP,
};

/// A backup of the engine, in a file beside it.
async fn back_up(engine: &Engine, name: &str) -> PathBuf {
    let path = engine.folder().join(name);
    let mut bytes = Vec::new();
    let mut pieces = std::pin::pin!(backup::stream(engine.store.clone()));
    while let Some(piece) = soon(pieces.next()).await {
        bytes.extend(piece.expect("the backup goes on"));
    }
    std::fs::write(&path, bytes).unwrap();
    path
}

async fn contents(engine: &Engine) -> BTreeMap<String, Bytes> {
    let all = engine
        .store
        .range(Range::prefix("/registry/"))
        .await
        .unwrap();
    let kvs = all.kvs.into_iter();
    kvs.map(|kv| (kv.key.to_string(), kv.value)).collect()
}

async fn put(engine: &Engine, key: &str, value: &str) -> u64 {
    let value = Bytes::copy_from_slice(value.as_bytes());
    engine
        .store
        .put(key, Expect::Any, value, None)
        .await
        .unwrap()
}

/// Enough keys for several pages, and one that exists no longer.
async fn fill(engine: &Engine) {
    for n in 0..350 {
        put(engine, &format!("/registry/a/{n:03}"), &format!("{n}")).await;
    }
    put(engine, "/registry/gone", "x").await;
    engine
        .store
        .delete("/registry/gone", Expect::Any)
        .await
        .unwrap();
    put(engine, "/registry/empty", "").await;
}

async fn restores_what_was_backed_up(engine: Engine) {
    fill(&engine).await;
    let expected = contents(&engine).await;
    let path = back_up(&engine, "backup").await;
    let summary = backup::verify(&path).unwrap();
    assert_eq!(summary.keys, expected.len() as u64);
    // Into either engine, whichever it is of.
    for mut target in [Engine::embedded().await, Engine::etcd().await] {
        let restored = target
            .restore(&path, RestoreOptions::default())
            .await
            .unwrap();
        assert_eq!(restored.keys, summary.keys);
        assert_eq!(contents(&target).await, expected);
        let now = target.store.current_revision().await.unwrap();
        assert_eq!(now, restored.revision);
        // And from there back again.
        let again = back_up(&target, "again").await;
        assert_eq!(backup::verify(&again).unwrap().keys, summary.keys);
    }
}

async fn backups_are_of_one_revision(engine: Engine) {
    fill(&engine).await;
    let expected = contents(&engine).await;
    let revision = engine.store.current_revision().await.unwrap();
    let mut pieces = Box::pin(backup::stream(engine.store.clone()));
    // The header says which revision it is of; all that happens after that is not in it.
    let mut bytes = soon(pieces.next()).await.unwrap().unwrap().to_vec();
    for n in (0..350).rev() {
        put(&engine, &format!("/registry/a/{n:03}"), "changed").await;
    }
    put(&engine, "/registry/new", "x").await;
    while let Some(piece) = soon(pieces.next()).await {
        bytes.extend(piece.unwrap());
    }
    let path = engine.folder().join("backup");
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(backup::verify(&path).unwrap().revision, revision);
    let mut target = Engine::embedded().await;
    target
        .restore(&path, RestoreOptions::default())
        .await
        .unwrap();
    assert_eq!(contents(&target).await, expected);
}

async fn revisions_go_on_behind_a_restore(mut engine: Engine) {
    let old = put(&engine, "/registry/a", "old").await;
    let path = back_up(&engine, "backup").await;
    let newest = put(&engine, "/registry/a", "lost").await;
    let restored = engine.restore(&path, OVERWRITE).await.unwrap();
    assert!(restored.revision > newest);
    let store = &engine.store;
    let kv = store.get("/registry/a").await.unwrap().unwrap();
    assert_eq!(kv.value, "old");
    assert!(kv.mod_revision > newest && kv.create_revision > newest);
    // Whoever saw the time that is lost cannot write on top of it, nor go on watching as if nothing had happened.
    for seen in [old, newest] {
        let write = store
            .put("/registry/a", Expect::ModRevision(seen), "x".into(), None)
            .await;
        assert!(matches!(write, Err(Error::Conflict { current: Some(_) })));
        let past = store.range(Range::prefix("/registry/").at(seen)).await;
        assert!(matches!(past, Err(Error::Compacted { .. })), "{past:?}");
        let told = match store.watch("/registry/", seen + 1).await {
            Err(error) => error,
            Ok(mut watch) => soon(watch.next()).await.unwrap().unwrap_err(),
        };
        assert!(matches!(told, Error::Compacted { .. }), "{told}");
    }
    // From the restored revision on all is as ever, also behind another start.
    let mut watch = store
        .watch("/registry/", restored.revision + 1)
        .await
        .unwrap();
    let next = put(&engine, "/registry/a", "new").await;
    assert!(next > restored.revision);
    let batch = news(&mut watch).await;
    assert_eq!(batch.events[0].revision(), next);
    assert_eq!(
        batch.events[0].prev_kv.as_ref().unwrap().mod_revision,
        kv.mod_revision
    );
    engine.reopen().await;
    let store = &engine.store;
    assert_eq!(store.current_revision().await.unwrap(), next);
    let past = store
        .range(Range::prefix("/registry/").at(next - 1))
        .await
        .unwrap();
    assert_eq!(past.kvs[0].value, "old");
    let update = store.put("/registry/a", Expect::ModRevision(next), "x".into(), None);
    assert_eq!(update.await.unwrap(), next + 1);
}

async fn times_to_live_go_on(mut engine: Engine) {
    let ttl = Some(Duration::from_secs(3));
    engine
        .store
        .put("/registry/event", Expect::Absent, "1".into(), ttl)
        .await
        .unwrap();
    put(&engine, "/registry/kept", "1").await;
    let path = back_up(&engine, "backup").await;
    let restored = engine.restore(&path, OVERWRITE).await.unwrap();
    let all = Range {
        lifetimes: true,
        ..Range::prefix("/registry/")
    };
    let read = engine.store.range(all).await.unwrap();
    assert_eq!(read.kvs.len(), 2);
    assert!(
        read.lifetimes[0].is_some_and(|left| Some(left) <= ttl),
        "{:?}",
        read.lifetimes
    );
    assert_eq!(read.lifetimes[1], None);
    let mut watch = engine
        .store
        .watch("/registry/", restored.revision + 1)
        .await
        .unwrap();
    let batch = news(&mut watch).await;
    assert_eq!(&*batch.events[0].kv.key, "/registry/event");
    assert_eq!(batch.events[0].kind, storage::EventKind::Delete);
}

async fn restores_overwrite_only_when_told(mut engine: Engine) {
    put(&engine, "/registry/a", "1").await;
    let path = back_up(&engine, "backup").await;
    put(&engine, "/registry/b", "2").await;
    let before = contents(&engine).await;
    let revision = engine.store.current_revision().await.unwrap();
    let refused = engine.restore(&path, RestoreOptions::default()).await;
    assert!(matches!(refused, Err(Error::Occupied(_))), "{refused:?}");
    assert_eq!(contents(&engine).await, before);
    assert_eq!(engine.store.current_revision().await.unwrap(), revision);
    engine.restore(&path, OVERWRITE).await.unwrap();
    let now = contents(&engine).await;
    assert_eq!(now.into_keys().collect::<Vec<_>>(), ["/registry/a"]);
}

async fn damaged_backups_change_nothing(mut engine: Engine) {
    fill(&engine).await;
    let path = back_up(&engine, "backup").await;
    let whole = std::fs::read(&path).unwrap();
    put(&engine, "/registry/after", "1").await;
    let before = contents(&engine).await;
    let revision = engine.store.current_revision().await.unwrap();
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    for damaged in [
        &whole[..whole.len() - 1],
        &whole[..whole.len() / 2],
        &changed,
        b"",
        b"x",
    ] {
        std::fs::write(&path, damaged).unwrap();
        let refused = engine.restore(&path, OVERWRITE).await;
        assert!(matches!(refused, Err(Error::Corrupt(_))), "{refused:?}");
        assert_eq!(contents(&engine).await, before);
        assert_eq!(engine.store.current_revision().await.unwrap(), revision);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_to_etcd_goes_on_at_the_next_revision() {
    let mut embedded = Engine::embedded().await;
    fill(&embedded).await;
    let (expected, last) = (
        contents(&embedded).await,
        embedded.store.current_revision().await.unwrap(),
    );
    let path = back_up(&embedded, "backup").await;
    embedded.release().await;
    let exact = RestoreOptions {
        bump: 0,
        ..RestoreOptions::default()
    };
    let mut etcd = Engine::etcd().await;
    let restored = etcd.restore(&path, exact).await.unwrap();
    assert_eq!(contents(&etcd).await, expected);
    assert!(restored.revision > last && restored.revision < last + 2 * restored.keys);
    let next = put(&etcd, "/registry/a/000", "new").await;
    assert_eq!(next, restored.revision + 1);
}

/// A restore that broke off leaves an etcd that nobody opens, until it is restored again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_restore_is_not_served() {
    let mut engine = Engine::etcd().await;
    fill(&engine).await;
    let expected = contents(&engine).await;
    let path = back_up(&engine, "backup").await;
    put(&engine, "/skiff/restore", "under way").await;
    let refused = engine.connect().await;
    assert!(matches!(refused, Err(Error::Corrupt(_))), "it opens");
    engine
        .restore(&path, RestoreOptions::default())
        .await
        .unwrap();
    assert_eq!(contents(&engine).await, expected);
}
