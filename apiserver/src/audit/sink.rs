//! Where audit events go: a file that is rotated, or another service. Each has a queue and a task of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::config::Config;
use crate::outbound::Client;

const QUEUE: usize = 10_000;
const MEGABYTE: u64 = 1 << 20;
/// What a size of 0 means, as in Kubernetes.
const DEFAULT_SIZE: u64 = 100;
const TIMEOUT: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 5;

/// A queue of events.
pub struct Sink {
    queue: mpsc::Sender<Value>,
    /// Whether requests wait while the queue is full; otherwise events are dropped.
    waits: bool,
}

impl Sink {
    pub async fn write(&self, event: Value) {
        if !self.waits {
            return self.write_now(event);
        }
        // The task ends only with the server.
        let _ = self.queue.send(event).await;
    }

    /// Without waiting, where nothing can wait.
    pub fn write_now(&self, event: Value) {
        if self.queue.try_send(event).is_err() {
            tracing::warn!("an audit event is dropped: its backend does not keep up");
        }
    }
}

/// The sinks of the flags.
pub fn of(config: &Config) -> Result<Vec<Sink>> {
    let mut sinks = Vec::new();
    if let Some(path) = &config.audit_log_path {
        ensure!(
            matches!(
                config.audit_log_mode.as_str(),
                "batch" | "blocking" | "blocking-strict"
            ),
            "invalid audit log mode {:?}, allowed modes are \"batch,blocking,blocking-strict\"",
            config.audit_log_mode
        );
        let log = Log::open(path, config)?;
        let (queue, events) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name("audit-log".into())
            .spawn(move || log.run(events))?;
        sinks.push(Sink {
            queue,
            waits: config.audit_log_mode != "batch",
        });
    }
    if let Some(path) = &config.audit_webhook_config_file {
        let client = Client::from_kubeconfig(path)?;
        let (queue, events) = mpsc::channel(config.audit_webhook_batch_buffer_size.max(1));
        let webhook = Webhook {
            client,
            size: match config.audit_webhook_mode.as_str() {
                "batch" => config.audit_webhook_batch_max_size.max(1),
                _ => 1,
            },
            wait: config.audit_webhook_batch_max_wait,
            first_wait: config.audit_webhook_initial_backoff,
        };
        tokio::spawn(webhook.run(events));
        sinks.push(Sink {
            queue,
            waits: config.audit_webhook_mode != "batch",
        });
    }
    Ok(sinks)
}

/// A file of JSON lines.
struct Log {
    /// Standard output has none.
    path: Option<PathBuf>,
    file: Option<File>,
    size: u64,
    limit: u64,
    keep: usize,
    age: Duration,
    compress: bool,
}

impl Log {
    fn open(path: &Path, config: &Config) -> Result<Self> {
        let limit = match config.audit_log_maxsize {
            0 => DEFAULT_SIZE,
            size => size,
        };
        let mut log = Self {
            path: (path != Path::new("-")).then(|| path.to_owned()),
            file: None,
            size: 0,
            limit: limit * MEGABYTE,
            keep: config.audit_log_maxbackup,
            age: Duration::from_secs(config.audit_log_maxage * 24 * 60 * 60),
            compress: config.audit_log_compress,
        };
        log.reopen()
            .with_context(|| format!("opening {}", path.display()))?;
        Ok(log)
    }

    fn reopen(&mut self) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn run(mut self, mut events: mpsc::Receiver<Value>) {
        let mut lines = Vec::new();
        while let Some(event) = events.blocking_recv() {
            lines.clear();
            append(&mut lines, &event);
            // What has come meanwhile goes out in one piece.
            while lines.len() < MEGABYTE as usize
                && let Ok(event) = events.try_recv()
            {
                append(&mut lines, &event);
            }
            if let Err(error) = self.write(&lines) {
                tracing::error!(%error, "audit events cannot be written");
            }
        }
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.path.is_none() {
            return io::stdout().write_all(lines);
        }
        if self.size > 0 && self.size + lines.len() as u64 > self.limit {
            self.rotate()?;
        }
        if self.file.is_none() {
            self.reopen()?;
        }
        if let Some(file) = &mut self.file {
            file.write_all(lines)?;
            self.size += lines.len() as u64;
        }
        Ok(())
    }

    /// Puts the file aside under its name and the time, and clears away what is too old or too much.
    fn rotate(&mut self) -> io::Result<()> {
        let Some(path) = self.path.clone() else {
            return Ok(());
        };
        self.file = None;
        let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
        let stamp = now.strftime("%Y-%m-%dT%H-%M-%S.%3f").to_string();
        let (stem, extension) = parts(&path);
        let aside = path.with_file_name(format!("{stem}-{stamp}{extension}"));
        std::fs::rename(&path, &aside)?;
        if self.compress {
            compress(&aside)?;
        }
        self.clear(&path)?;
        self.reopen()
    }

    fn clear(&self, path: &Path) -> io::Result<()> {
        let (stem, _) = parts(path);
        let directory = path.parent().unwrap_or(Path::new("."));
        let prefix = format!("{stem}-");
        let mut backups: Vec<PathBuf> = std::fs::read_dir(directory)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|file| {
                let name = file
                    .file_name()
                    .and_then(|name| name.to_str())
                    .unwrap_or_default();
                name.strip_prefix(&prefix)
                    .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
            })
            .collect();
        // Their names are in the order of their times.
        backups.sort();
        let surplus = match self.keep {
            0 => 0,
            keep => backups.len().saturating_sub(keep),
        };
        let old = |file: &PathBuf| {
            let written = file.metadata().and_then(|metadata| metadata.modified());
            let age = written
                .ok()
                .and_then(|at| SystemTime::now().duration_since(at).ok());
            !self.age.is_zero() && age.is_some_and(|age| age > self.age)
        };
        for (i, file) in backups.iter().enumerate() {
            if i < surplus || old(file) {
                std::fs::remove_file(file)?;
            }
        }
        Ok(())
    }
}

fn append(lines: &mut Vec<u8>, event: &Value) {
    // A Value is always JSON, and a Vec takes it.
    let _ = serde_json::to_writer(&mut *lines, event);
    lines.push(b'\n');
}

/// `audit` and `.log` of `audit.log`.
fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.map(|p| p.to_string_lossy().into_owned());
    let extension = text(path.extension()).map_or_else(String::new, |e| format!(".{e}"));
    (text(path.file_stem()).unwrap_or_default(), extension)
}

fn compress(path: &Path) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".gz");
    let mut encoder = GzEncoder::new(File::create(&name)?, Compression::default());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    std::fs::remove_file(path)
}

/// A service that gets events in batches.
struct Webhook {
    client: Client,
    size: usize,
    wait: Duration,
    first_wait: Duration,
}

impl Webhook {
    async fn run(self, mut events: mpsc::Receiver<Value>) {
        while let Some(first) = events.recv().await {
            let mut batch = vec![first];
            let until = Instant::now() + self.wait;
            while batch.len() < self.size {
                let rest = until.saturating_duration_since(Instant::now());
                match tokio::time::timeout(rest, events.recv()).await {
                    Ok(Some(event)) => batch.push(event),
                    _ => break,
                }
            }
            self.send(batch).await;
        }
    }

    async fn send(&self, batch: Vec<Value>) {
        let list = json!({"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": batch});
        let mut wait = self.first_wait;
        for _ in 0..ATTEMPTS {
            match self.client.post(&list, TIMEOUT).await {
                Ok(_) => return,
                Err(crate::outbound::CallError::Failed(error)) => {
                    tracing::warn!(error, "audit events are not taken; trying again");
                    tokio::time::sleep(wait).await;
                    wait = wait.mul_f64(1.5);
                }
                Err(error) => {
                    tracing::error!(%error, "audit events are refused");
                    return;
                }
            }
        }
        tracing::error!("audit events are lost: their backend does not answer");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_rotated_and_cleared() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let mut log = Log {
            path: Some(path.clone()),
            file: None,
            size: 0,
            limit: 20,
            keep: 2,
            age: Duration::ZERO,
            compress: false,
        };
        log.reopen().unwrap();
        for n in 0..5 {
            log.write(format!("{{\"line\": {n:04}}}\n").as_bytes())
                .unwrap();
            // Names of backups differ by the millisecond.
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut names: Vec<String> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\"line\": 0004}\n"
        );
        let last = std::fs::read_to_string(directory.path().join(&names[1])).unwrap();
        assert_eq!(last, "{\"line\": 0003}\n");
        log.compress = true;
        log.write(b"{\"line\": \"one more\"}\n").unwrap();
        let compressed = std::fs::read_dir(directory.path())
            .unwrap()
            .any(|entry| entry.unwrap().path().extension().is_some_and(|e| e == "gz"));
        assert!(compressed);
    }
}
