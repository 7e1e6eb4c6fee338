//! Reading a container's log for somebody: tail, since, timestamps, a byte limit, and
//! following until the container has ended.

use std::future::Future;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc::Sender;

use super::{parse, watch::Watch};

const CHUNK: usize = 32 << 10;

#[derive(Clone, Debug, Default)]
pub struct Options {
    pub follow: bool,
    pub tail: Option<u64>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit: Option<u64>,
    /// `Some(true)` for stderr only, `Some(false)` for stdout only.
    pub stream: Option<bool>,
}

/// Turns records into what is shown; remembers whether a line has begun.
struct Shown {
    options: Options,
    left: u64,
    /// Whether the last text of a stream was partial, so that no time stamp goes into the middle of a line.
    open: [bool; 2],
    passed: bool,
    out: Vec<u8>,
}

impl Shown {
    fn new(options: &Options) -> Self {
        Shown {
            options: options.clone(),
            left: options.limit.unwrap_or(u64::MAX),
            open: [false; 2],
            passed: options.since.is_none(),
            out: Vec::new(),
        }
    }

    fn record(&mut self, record: &[u8]) {
        let Some(line) = parse(record) else { return };
        if self
            .options
            .stream
            .is_some_and(|wanted| wanted != line.stderr)
        {
            return;
        }
        if !self.passed {
            match (line.time.parse::<Timestamp>(), self.options.since) {
                (Ok(time), Some(since)) if time < since => return,
                _ => self.passed = true,
            }
        }
        let open = &mut self.open[usize::from(line.stderr)];
        let mut text = Vec::with_capacity(line.text.len() + 36);
        if self.options.timestamps && !*open {
            text.extend_from_slice(line.time.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(line.text);
        if !line.partial {
            text.push(b'\n');
        }
        *open = line.partial;
        let take = text
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= take as u64;
        self.out.extend_from_slice(&text[..take]);
    }
}

/// Sends the log; returns at its end, when the reader has gone, or, following, when `running` says that
/// the container has ended and everything is read.
pub async fn send<F, Fut>(
    path: PathBuf,
    options: Options,
    out: Sender<io::Result<Bytes>>,
    running: F,
) -> io::Result<()>
where
    F: Fn() -> Fut,
    Fut: Future<Output = bool>,
{
    let mut shown = Shown::new(&options);
    let mut watch = if options.follow {
        Some(Watch::file(&path)?)
    } else {
        None
    };
    let mut file = BufReader::with_capacity(CHUNK, std::fs::File::open(&path)?);
    if let Some(lines) = options.tail {
        let start = tail_start(file.get_mut(), lines)?;
        file.seek(SeekFrom::Start(start))?;
    }
    let mut record = Vec::new();
    loop {
        let alive = match &watch {
            Some(_) => running().await,
            None => false,
        };
        if !drain(&mut file, &mut record, &mut shown, &out).await? || shown.left == 0 {
            return Ok(());
        }
        if !alive {
            return Ok(());
        }
        let Some(current) = &watch else { return Ok(()) };
        tokio::select! {
            changed = current.changed() => changed?,
            () = out.closed() => return Ok(()),
            // The end of a container shows in the runtime a moment after its log was closed.
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
        }
        if is_rotated(file.get_ref(), &path) {
            drain(&mut file, &mut record, &mut shown, &out).await?;
            // Between the move and the runtime's new file there is a moment with none.
            while let Err(error) = std::fs::metadata(&path) {
                if !running().await {
                    return Ok(());
                }
                tracing::debug!(%error, "waiting for a rotated log");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            watch = Some(Watch::file(&path)?);
            file = BufReader::with_capacity(CHUNK, std::fs::File::open(&path)?);
        }
    }
}

fn is_rotated(open: &std::fs::File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let number = |m: io::Result<std::fs::Metadata>| m.map(|m| (m.dev(), m.ino())).ok();
    number(open.metadata()) != number(std::fs::metadata(path))
}

/// Reads to the end of what is there; false when nobody listens any more.
async fn drain(
    file: &mut BufReader<std::fs::File>,
    record: &mut Vec<u8>,
    shown: &mut Shown,
    out: &Sender<io::Result<Bytes>>,
) -> io::Result<bool> {
    loop {
        let read = file.read_until(b'\n', record)?;
        let complete = record.last() == Some(&b'\n');
        if complete {
            record.pop();
            shown.record(record);
            record.clear();
        }
        let done = read == 0 || !complete || shown.left == 0;
        if (done && !shown.out.is_empty()) || shown.out.len() >= CHUNK {
            let chunk = Bytes::from(std::mem::take(&mut shown.out));
            if out.send(Ok(chunk)).await.is_err() {
                return Ok(false);
            }
        }
        if done {
            return Ok(true);
        }
    }
}

/// Where the last `lines` records begin.
fn tail_start(file: &mut std::fs::File, lines: u64) -> io::Result<u64> {
    let end = file.metadata()?.len();
    if lines == 0 {
        return Ok(end);
    }
    let (mut at, mut found) = (end, 0u64);
    let mut block = vec![0u8; CHUNK];
    while at > 0 {
        let size = at.min(CHUNK as u64);
        at -= size;
        file.seek(SeekFrom::Start(at))?;
        let block = &mut block[..usize::try_from(size).unwrap_or(CHUNK)];
        file.read_exact(block)?;
        for (i, _) in block.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            let position = at + i as u64;
            // The line end of the very last record does not begin another one.
            if position + 1 == end {
                continue;
            }
            found += 1;
            if found == lines {
                return Ok(position + 1);
            }
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stderr P tw\n2026-01-01T00:00:02Z stderr F o\n2026-01-01T00:00:03Z stdout F three\n";

    async fn get(name: &str, options: Options) -> String {
        let path = std::env::temp_dir().join(format!("log-{}-{name}", std::process::id()));
        std::fs::write(&path, LOG).unwrap();
        let (out, mut parts) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(16);
        let collect = async {
            let mut all = Vec::new();
            while let Some(Ok(part)) = parts.recv().await {
                all.extend_from_slice(&part);
            }
            String::from_utf8(all).unwrap()
        };
        let (sent, text) = tokio::join!(
            send(path.clone(), options, out, || async { false }),
            collect
        );
        sent.unwrap();
        std::fs::remove_file(path).unwrap();
        text
    }

    #[tokio::test]
    async fn options_apply() {
        let since = "2026-01-01T00:00:02Z".parse().ok();
        let table = [
            (Options::default(), "one\ntwo\nthree\n"),
            (
                Options {
                    tail: Some(1),
                    ..Default::default()
                },
                "three\n",
            ),
            (
                Options {
                    tail: Some(0),
                    ..Default::default()
                },
                "",
            ),
            (
                Options {
                    tail: Some(99),
                    ..Default::default()
                },
                "one\ntwo\nthree\n",
            ),
            (
                Options {
                    since,
                    ..Default::default()
                },
                "two\nthree\n",
            ),
            (
                Options {
                    limit: Some(5),
                    ..Default::default()
                },
                "one\nt",
            ),
            (
                Options {
                    stream: Some(true),
                    ..Default::default()
                },
                "two\n",
            ),
            (
                Options {
                    timestamps: true,
                    tail: Some(3),
                    ..Default::default()
                },
                "2026-01-01T00:00:02Z two\n2026-01-01T00:00:03Z three\n",
            ),
            (
                Options {
                    follow: true,
                    ..Default::default()
                },
                "one\ntwo\nthree\n",
            ),
        ];
        for (i, (options, want)) in table.into_iter().enumerate() {
            assert_eq!(
                get(&i.to_string(), options.clone()).await,
                want,
                "{options:?}"
            );
        }
    }
}
