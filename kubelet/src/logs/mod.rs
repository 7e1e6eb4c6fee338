//! Containers' logs in CRI's format: one record a line, `<time> <stream> <F|P> <text>`.
//! `read` serves them, `rotate` keeps them small, and the termination message falls back to their tail.

pub mod read;
pub mod rotate;
pub mod watch;

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use k8s_cri::v1 as cri;

use crate::model::keys;

const MAX_MESSAGE: usize = 4096;
const FALLBACK_BYTES: u64 = 2048;
const FALLBACK_LINES: usize = 80;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line<'a> {
    pub time: &'a str,
    pub stderr: bool,
    /// The text goes on in the next record.
    pub partial: bool,
    pub text: &'a [u8],
}

/// One record without its line end; `None` for anything else, such as a record cut short by a crash.
pub fn parse(record: &[u8]) -> Option<Line<'_>> {
    let mut parts = record.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stderr = match parts.next()? {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    let partial = parts.next()?.split(|b| *b == b':').next() == Some(b"P");
    Some(Line {
        time,
        stderr,
        partial,
        text: parts.next().unwrap_or_default(),
    })
}

/// What an ended container left as its message: the file it was given, or with the policy
/// `FallbackToLogsOnError` the tail of its log.
pub async fn termination_message(status: &cri::ContainerStatus) -> Option<String> {
    let path = status.annotations.get(keys::MESSAGE_PATH)?;
    let file = status.mounts.iter().find(|m| &m.container_path == path)?;
    let mut message = head(Path::new(&file.host_path), MAX_MESSAGE);
    let fallback = status
        .annotations
        .get(keys::MESSAGE_POLICY)
        .is_some_and(|p| p == "FallbackToLogsOnError");
    if message.is_empty() && fallback && status.exit_code != 0 {
        message = log_tail(Path::new(&status.log_path)).unwrap_or_default();
    }
    (!message.is_empty()).then_some(message)
}

fn head(path: &Path, max: usize) -> String {
    let mut bytes = Vec::new();
    // The container owns the file and may have made anything of it.
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(max as u64).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn log_tail(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(FALLBACK_BYTES * 4);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let records: Vec<&[u8]> = bytes
        .split(|b| *b == b'\n')
        .skip(usize::from(from > 0))
        .collect();
    let mut text = Vec::new();
    for line in records.iter().filter_map(|r| parse(r)) {
        text.extend_from_slice(line.text);
        if !line.partial {
            text.push(b'\n');
        }
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let kept = lines[lines.len().saturating_sub(FALLBACK_LINES)..].concat();
    let start = kept.len().saturating_sub(FALLBACK_BYTES as usize);
    let start = (start..kept.len())
        .find(|i| kept.is_char_boundary(*i))
        .unwrap_or(start);
    Ok(kept[start..].to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_kept_as_it_was_written() {
        let log = std::env::temp_dir().join(format!("log-end-{}", std::process::id()));
        let record =
            |kind: &str, text: &str| format!("2026-11-24T04:00:00Z stdout {kind} {text}\n");
        let many: String = (0..100).map(|i| record("F", &i.to_string())).collect();
        let last: String = (20..100).map(|i| format!("{i}\n")).collect();
        for (written, want) in [
            (record("P", "DONE"), "DONE"),
            (
                record("F", "a") + &record("P", "b") + &record("F", "c"),
                "a\nbc\n",
            ),
            (many, &last),
        ] {
            std::fs::write(&log, written).unwrap();
            assert_eq!(log_tail(&log).unwrap(), want);
        }
        std::fs::remove_file(&log).unwrap();
    }

    #[test]
    fn records() {
        let line = parse(b"2026-11-24T04:00:00.123456789Z stderr P hello  world").unwrap();
        assert_eq!(
            (line.time, line.stderr, line.partial, line.text),
            (
                "2026-11-24T04:00:00.123456789Z",
                true,
                true,
                &b"hello  world"[..]
            )
        );
        assert_eq!(parse(b"2026-11-24T04:00:00Z stdout F ").unwrap().text, b"");
        assert_eq!(parse(b"2026-11-24T04:00:00Z stdout F").unwrap().text, b"");
        assert_eq!(parse(b"nonsense"), None);
    }
}
