//! SIGKILL in the middle of a burst of writes: what was acknowledged is there, and whole.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use storage::Expect;

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
    for _ in 0..3 {
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
