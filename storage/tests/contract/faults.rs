//! SIGKILL in the middle of a burst of writes: what was acknowledged is there, and whole. And in the middle of a rewrite of
//! the embedded file: what was deleted is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use storage::{Expect, Store};

use crate::PATIENCE;
use crate::engines::Engine;

/// So many writes are acknowledged before the kill.
const BURST: usize = 2000;

/// The example program `load`, which cargo builds beside this test.
fn load() -> PathBuf {
    let test = std::env::current_exe().expect("this program");
    let profile = test.ancestors().nth(2).expect("the target folder");
    profile.join("examples/load")
}

/// Every acknowledged write as `key -> revision`; `stop` is called while more of them go on.
fn burst(address: &str, stop: impl FnOnce(&mut std::process::Child)) -> BTreeMap<String, u64> {
    let mut writer = Command::new(load())
        .args([address, "--writers", "16", "--seconds", "120", "--print"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program load");
    let lines = BufReader::new(writer.stdout.take().expect("its output")).lines();
    let (mut acknowledged, mut stop) = (BTreeMap::new(), Some(stop));
    for line in lines.map_while(Result::ok) {
        // The last line may have been cut off.
        let Some((key, revision)) = line.split_once(' ') else {
            break;
        };
        let Ok(revision) = revision.parse() else {
            break;
        };
        acknowledged.insert(key.to_owned(), revision);
        if acknowledged.len() == BURST
            && let Some(stop) = stop.take()
        {
            stop(&mut writer);
        }
    }
    writer.kill().ok();
    writer.wait().ok();
    assert!(
        acknowledged.len() >= BURST,
        "only {} writes",
        acknowledged.len()
    );
    acknowledged
}

async fn all_there(engine: &Engine, acknowledged: &BTreeMap<String, u64>) {
    let store = &engine.store;
    for (key, revision) in acknowledged {
        let kv = store.get(key).await.unwrap();
        let kv = kv.unwrap_or_else(|| panic!("{key} was acknowledged at {revision} and is gone"));
        assert_eq!(kv.mod_revision, *revision, "{key}");
        let whole = key.as_bytes().iter().copied().cycle().take(kv.value.len());
        assert!(
            kv.value.len() >= 600 && kv.value.iter().copied().eq(whole),
            "{key} is damaged"
        );
    }
    let last = acknowledged.values().max().copied().unwrap_or_default();
    assert!(store.current_revision().await.unwrap() >= last);
    let next = store
        .put("/after", Expect::Absent, "1".into(), None)
        .await
        .unwrap();
    assert!(
        next > last,
        "revisions go on behind those that were given out"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_writer_loses_nothing_acknowledged() {
    let mut engine = Engine::embedded().await;
    for _ in 0..2 {
        engine.release().await;
        let address = engine.address();
        let acknowledged = burst(&address, |writer| {
            // The embedded engine lives in the program that writes.
            writer.kill().expect("SIGKILL");
        });
        engine.reopen().await;
        all_there(&engine, &acknowledged).await;
        empty(&engine).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_etcd_loses_nothing_acknowledged() {
    let mut engine = Engine::etcd().await;
    assert!(engine.is_etcd());
    let address = engine.address();
    let pid = engine.server_pid();
    let acknowledged = burst(&address, move |_| {
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("SIGKILL");
    });
    engine.crash().await;
    all_there(&engine, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_waits_for_an_etcd_that_cannot_be_asked() {
    let mut engine = Engine::etcd().await;
    for ttl in [None, Some(Duration::from_secs(600))] {
        let put = while_away(&mut engine, async move |store| {
            store.put("/waits", Expect::Any, "1".into(), ttl).await
        });
        let put = put.await.unwrap();
        let deleted = while_away(&mut engine, async move |store| {
            store.delete("/waits", Expect::ModRevision(put)).await
        });
        assert_eq!(deleted.await.unwrap().prev.mod_revision, put);
    }
}

/// What becomes of a call that is made when the store's server is gone, which comes back a moment later.
async fn while_away<T: Send + 'static, F>(
    engine: &mut Engine,
    call: impl FnOnce(Arc<dyn Store>) -> F,
) -> T
where
    F: Future<Output = T> + Send + 'static,
{
    engine.kill_server();
    // A read goes on asking: after that, the store's connection is known to be gone.
    let moment = Duration::from_millis(200);
    let read = tokio::time::timeout(moment, engine.store.get("/waits")).await;
    assert!(read.is_err(), "{read:?}");
    let calling = tokio::spawn(call(engine.store.clone()));
    tokio::time::sleep(moment).await;
    assert!(!calling.is_finished());
    engine.start_server();
    crate::soon(calling).await.unwrap()
}

/// For the next round: the writer creates the same keys again.
async fn empty(engine: &Engine) {
    let store = &engine.store;
    let all = storage::Range {
        keys_only: true,
        ..storage::Range::prefix("/")
    };
    for kv in store.range(all).await.unwrap().kvs {
        store.delete(&kv.key, Expect::Any).await.unwrap();
    }
}

/// Where in a rewrite of the file its writer is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// While the copy is made.
    Copying,
    /// When it has just taken the old file's place.
    Replaced,
}

/// Writes and deletes until the file is rewritten, and kills at the moment. Gives what was acknowledged last of each key:
/// its revision, or its deletion.
fn churn(address: &str, file: &Path, moment: Moment) -> BTreeMap<String, Option<u64>> {
    let mut writer = Command::new(load())
        .args([address, "--writers", "16", "--seconds", "120", "--print"])
        .args(["--size", "20000", "--keep", "8", "--history", "500"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program load");
    let lines = BufReader::new(writer.stdout.take().expect("its output")).lines();
    let (sender, receiver) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        lines
            .map_while(Result::ok)
            .try_for_each(|line| sender.send(line))
    });
    let copy = PathBuf::from(format!("{}.new", file.display()));
    // By then, history that is old enough to go is in the way of the copying.
    for _ in 0..2 {
        await_that(&mut writer, || copy.exists());
        await_that(&mut writer, || !copy.exists());
    }
    if matches!(moment, Moment::Copying) {
        await_that(&mut writer, || copy.exists());
    }
    writer.kill().expect("SIGKILL");
    writer.wait().ok();
    reader.join().expect("the lines are read").ok();
    let mut last = BTreeMap::new();
    // The last line may have been cut off.
    for line in receiver {
        if let Some((key, outcome)) = line.split_once(' ') {
            match outcome.parse() {
                Ok(revision) => last.insert(key.to_owned(), Some(revision)),
                Err(_) if outcome == "-" => last.insert(key.to_owned(), None),
                Err(_) => None,
            };
        }
    }
    last
}

/// Looks often, as a rewrite of a small file is short.
fn await_that(writer: &mut Child, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        if Instant::now() > end {
            writer.kill().ok();
            panic!("the file is not rewritten");
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewrite_that_is_cut_off_brings_nothing_deleted_back() {
    for moment in [Moment::Copying, Moment::Replaced] {
        let mut engine = Engine::embedded().await;
        engine.release().await;
        let file = engine.folder().join("store");
        let (address, path) = (engine.address(), file.clone());
        let killed = tokio::task::spawn_blocking(move || churn(&address, &path, moment));
        let acknowledged = killed.await.unwrap();
        engine.reopen().await;
        let all = storage::Range {
            keys_only: true,
            ..storage::Range::prefix("/")
        };
        let kvs = engine.store.range(all).await.unwrap().kvs;
        let there: BTreeSet<&str> = kvs.iter().map(|kv| &*kv.key).collect();
        let (mut kept, mut deleted) = (0, 0);
        for (key, outcome) in &acknowledged {
            // What the load keeps is never deleted; of the rest, a deletion may have been under way.
            let number = key.rsplit('k').next().and_then(|n| n.parse::<u64>().ok());
            let keeps = number.is_some_and(|n| n.is_multiple_of(8));
            match outcome {
                None => {
                    assert!(!there.contains(&**key), "{moment:?}: {key} is back");
                    deleted += 1;
                }
                Some(_) if keeps => {
                    assert!(there.contains(&**key), "{moment:?}: {key} is gone");
                    kept += 1;
                }
                Some(_) => {}
            }
        }
        println!("{moment:?}: {kept} kept, {deleted} deleted");
        assert!(kept > 0 && deleted > kept, "{kept} kept, {deleted} deleted");
        let copy = PathBuf::from(format!("{}.new", file.display()));
        assert!(
            !copy.exists(),
            "what an interrupted rewrite left is removed"
        );
    }
}
