//! What every engine owes its users, in code: each promise of the [`storage::Store`] trait is one function here, run
//! once on the embedded engine and once on a real etcd (the program `etcd` must be on the path).

use std::future::Future;
use std::time::Duration;

/// How long anything that is waited for may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for `what`, but not for ever.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("this should have happened by now")
}

/// The next batch of a watch that has changes in it.
pub async fn news(watch: &mut storage::Watch) -> storage::Batch {
    soon(async {
        loop {
            let batch = watch.next().await.unwrap().unwrap();
            if !batch.events.is_empty() {
                return batch;
            }
        }
    })
    .await
}

/// One test per engine for each promise.
macro_rules! promises {
    ($($promise:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise($crate::engines::Engine::embedded().await).await;
            })*
        }
        mod etcd {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise($crate::engines::Engine::etcd().await).await;
            })*
        }
    };
}

mod backups;
mod engines;
mod faults;
mod history;
mod size;
mod watches;
mod writes;
