//! Takes up changes of the configuration file, as they are told by inotify.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use super::{SharedRules, config};

/// How long until a key management service that could not be reached is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// Changes in a file's directory: editors and mounted volumes put another file in its place instead of writing to it.
struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    fn of(file: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let directory = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags =
            AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE;
        inotify.add_watch(directory, flags)?;
        // SAFETY: the descriptor is owned by the `AsyncFd` and stays open as long as it does.
        let fd =
            unsafe { AsyncFd::register_with_interest(OwnedFd::from(inotify), Interest::READABLE) };
        Ok(Self(fd.map_err(|error| error.into_parts().1)?))
    }

    async fn next(&self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut buffer)?));
            // Otherwise there was nothing yet.
            if let Ok(read) = read {
                return read.map(drop);
            }
        }
    }
}

/// Follows the file until `shutdown`. What cannot be read changes nothing, and is logged.
pub fn follow(path: &Path, rules: SharedRules, shutdown: CancellationToken) -> Result<()> {
    let changes = Changes::of(path).with_context(|| format!("watching {}", path.display()))?;
    let path = path.to_owned();
    tokio::spawn(async move {
        tokio::select! {
            ended = take_up(&path, &changes, &rules) => if let Err(error) = ended {
                tracing::error!(%error, path = %path.display(), "changes of the file are followed no more");
            },
            () = shutdown.cancelled() => {}
        }
    });
    Ok(())
}

async fn take_up(path: &Path, changes: &Changes, rules: &SharedRules) -> io::Result<()> {
    loop {
        let mut again = false;
        match config::read(path) {
            Ok(new) if new == **rules.load() => {}
            // Sealing with what cannot be reached would stop all writes.
            Ok(new) => match new.start().await {
                Err(error) => {
                    again = true;
                    tracing::error!(
                        error = format!("{error:#}"),
                        "the encryption configuration stays as it was"
                    );
                }
                Ok(()) => {
                    rules.store(new);
                    tracing::info!(path = %path.display(), "the encryption configuration has changed");
                }
            },
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the encryption configuration stays as it was"
                );
            }
        }
        tokio::select! {
            changed = changes.next() => changed?,
            // The plugin may come later than the configuration.
            () = tokio::time::sleep(AGAIN), if again => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(resource: &str) -> String {
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [{resource}]\n  providers: [{{identity: {{}}}}]\n"
        )
    }

    async fn until(what: impl Fn() -> bool) {
        let wait = async {
            while !what() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .expect("the change is taken up");
    }

    #[tokio::test]
    async fn changes_are_taken_up_and_nonsense_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("encryption.yaml");
        std::fs::write(&path, content("secrets")).unwrap();
        let rules = SharedRules::new(config::read(&path).unwrap());
        let shutdown = CancellationToken::new();
        let _stop = shutdown.clone().drop_guard();
        follow(&path, rules.clone(), shutdown).unwrap();
        let sealed = |resource: &str| {
            rules
                .load()
                .of(&format!("/registry/{resource}/n/x"))
                .is_some()
        };
        assert!(sealed("secrets") && !sealed("configmaps"));
        // Written in place, then with nonsense, then replaced.
        std::fs::write(&path, content("configmaps")).unwrap();
        until(|| sealed("configmaps")).await;
        std::fs::write(&path, "nonsense").unwrap();
        let other = directory.path().join("other");
        std::fs::write(&other, content("pods")).unwrap();
        assert!(sealed("configmaps"));
        std::fs::rename(&other, &path).unwrap();
        until(|| sealed("pods")).await;
        assert!(!sealed("configmaps"));
    }
}
