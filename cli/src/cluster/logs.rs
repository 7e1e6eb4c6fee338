//! `skiff cluster logs`: what a component has printed, from the files that the keepers write.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::spec::{CONTROL_PLANE, Paths};

/// Every log of a cluster, by the component's name: `apiserver`, `node1/kubelet`, `supervisor`.
pub fn all(paths: &Paths) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let files = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| e.path()).collect()
    };
    let stem = |path: &Path| {
        path.file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    for path in files(&paths.logs()) {
        if path.is_dir() {
            let machine = stem(&path);
            let prefix = if machine == CONTROL_PLANE {
                String::new()
            } else {
                format!("{machine}/")
            };
            let of_machine = files(&path)
                .into_iter()
                .filter(|p| p.extension().is_some_and(|e| e == "log"));
            found.extend(of_machine.map(|p| (format!("{prefix}{}", stem(&p)), p)));
        } else if path.extension().is_some_and(|e| e == "log") {
            found.push((stem(&path), path));
        }
    }
    found.sort();
    found
}

pub fn find(paths: &Paths, component: &str) -> Result<PathBuf> {
    let logs = all(paths);
    match logs.iter().find(|(name, _)| name == component) {
        Some((_, path)) => Ok(path.clone()),
        None => {
            let names: Vec<&str> = logs.iter().map(|l| l.0.as_str()).collect();
            bail!("no log of {component:?}; there are: {}", names.join(", "))
        }
    }
}

/// The last lines of a log, its older part included where they reach back that far.
pub fn tail(path: &Path, lines: usize) -> Result<String> {
    let mut older = path.as_os_str().to_owned();
    older.push(".1");
    let read = |path: &Path| fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned());
    let mut text = read(path).with_context(|| format!("read {}", path.display()))?;
    if text.lines().count() < lines
        && let Ok(before) = read(Path::new(&older))
    {
        text = before + &text;
    }
    let skip = text.lines().count().saturating_sub(lines);
    Ok(text.lines().skip(skip).map(|l| format!("{l}\n")).collect())
}

/// Copies what is added to the log, from the end of `tail` on, until the reader goes away.
pub fn follow(path: &Path, lines: usize) -> Result<()> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let dir = path.parent().context("a log without a directory")?;
    inotify.add_watch(dir, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE)?;
    let mut file = File::open(path)?;
    let end = file.seek(SeekFrom::End(0))?;
    write_out(tail(path, lines)?.as_bytes())?;
    file.seek(SeekFrom::Start(end))?;
    loop {
        let mut new = Vec::new();
        file.read_to_end(&mut new)?;
        if write_out(&new).is_err() {
            return Ok(());
        }
        let created = inotify.read_events()?.into_iter().any(|event| {
            event.mask.contains(AddWatchFlags::IN_CREATE)
                && event.name.as_deref() == path.file_name()
        });
        if created {
            let mut rest = Vec::new();
            file.read_to_end(&mut rest)?;
            write_out(&rest)?;
            file = File::open(path)?;
        }
    }
}

fn write_out(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}
