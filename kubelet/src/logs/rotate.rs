//! Keeping logs small: one that has grown beyond the limit is moved aside, the runtime
//! reopens it, older ones are compressed, and the oldest go.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use client::CancellationToken;

use crate::context::Node;

/// As Kubernetes' kubelet; a look costs one `stat` per log.
const LOOK: Duration = Duration::from_secs(10);

pub async fn run(node: Arc<Node>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        for log in oversized(&node.flags.log_dir, node.flags.container_log_max_size) {
            if let Err(error) = rotate(&node, &log).await {
                tracing::warn!(log = %log.display(), error, "the log was not rotated");
            }
        }
    }
}

/// `<pod>/<container>/<n>.log` that are larger than the limit.
fn oversized(root: &Path, limit: u64) -> Vec<PathBuf> {
    let list = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let containers = list(root.to_path_buf()).flat_map(|pod| list(pod.path()));
    containers
        .flat_map(|container| list(container.path()))
        .filter(|f| {
            f.path().extension().is_some_and(|e| e == "log")
                && f.metadata().is_ok_and(|m| m.len() > limit)
        })
        .map(|f| f.path())
        .collect()
}

async fn rotate(node: &Node, log: &Path) -> Result<(), String> {
    let containers = node
        .runtime
        .list_containers(None)
        .await
        .map_err(|e| e.to_string())?;
    for c in containers
        .iter()
        .filter(|c| c.state == k8s_cri::v1::ContainerState::ContainerRunning as i32)
    {
        let status = node
            .runtime
            .container_status(&c.id)
            .await
            .map_err(|e| e.to_string())?;
        if Path::new(&status.log_path) != log {
            continue;
        }
        let moved = PathBuf::from(format!(
            "{}.{}",
            log.display(),
            jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S")
        ));
        std::fs::rename(log, &moved).map_err(|e| e.to_string())?;
        if let Err(error) = node.runtime.reopen_log(&c.id).await {
            // The runtime still writes to the old file: it gets its name back.
            std::fs::rename(&moved, log).map_err(|e| e.to_string())?;
            return Err(error.to_string());
        }
        let (log, keep) = (log.to_path_buf(), node.flags.container_log_max_files);
        let tidied = tokio::task::spawn_blocking(move || tidy(&log, &moved, keep)).await;
        return tidied
            .map_err(|e| e.to_string())?
            .map_err(|e| e.to_string());
    }
    Ok(())
}

/// Compresses all but the newest rotated log and drops the oldest beyond `keep` files in all.
fn tidy(log: &Path, newest: &Path, keep: usize) -> io::Result<()> {
    let Some(dir) = log.parent() else {
        return Ok(());
    };
    let prefix = format!("{}.", log.file_name().unwrap_or_default().to_string_lossy());
    let mut rotated: Vec<PathBuf> = std::fs::read_dir(dir)?
        .flatten()
        .filter(|f| f.file_name().to_string_lossy().starts_with(&prefix))
        .map(|f| f.path())
        .collect();
    rotated.sort();
    let surplus = (rotated.len() + 1).saturating_sub(keep.max(2));
    for old in rotated.drain(..surplus) {
        std::fs::remove_file(old)?;
    }
    for file in rotated
        .iter()
        .filter(|f| f.as_path() != newest && f.extension().is_none_or(|e| e != "gz"))
    {
        let packed = PathBuf::from(format!("{}.gz", file.display()));
        let mut encoder = flate2::write::GzEncoder::new(
            std::fs::File::create(&packed)?,
            flate2::Compression::default(),
        );
        io::copy(&mut std::fs::File::open(file)?, &mut encoder)?;
        encoder.finish()?;
        std::fs::remove_file(file)?;
    }
    Ok(())
}
