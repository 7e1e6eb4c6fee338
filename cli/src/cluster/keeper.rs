//! The one loop that keeps processes alive: the cluster's supervisor runs it over machines, and the first process of a
//! machine runs it over components. It starts units, reaps whatever dies, starts it again with back-off, and
//! writes what units print into files of bounded size. It sleeps in `poll` and wakes up for an event or a due restart only.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

const LOG_LIMIT: u64 = 8 << 20;
/// How long a stage of units may take to end before it is killed.
const STAGE_GRACE: Duration = Duration::from_secs(5);
/// A unit that ran for this long has recovered: its next failure counts as the first.
const STEADY: Duration = Duration::from_secs(30);

/// What a keeper tells whoever watches a cluster come up, one JSON line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// `node1/kubelet`, or a machine's name
    pub unit: String,
    pub message: String,
    /// How many times in a row it failed.
    pub failures: u32,
}

/// Starts one process that writes to the given descriptor.
pub type Starter = Box<dyn FnMut(BorrowedFd<'_>) -> io::Result<Pid>>;

pub struct Unit {
    name: String,
    stage: u8,
    start: Starter,
    after: Option<PathBuf>,
    log: Log,
    output: (OwnedFd, OwnedFd),
    state: State,
    failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Waits for the file named in `after`.
    Waiting,
    Due(Instant),
    Running(Pid, Instant),
    Stopped,
}

impl Unit {
    /// `stage` is the order of stopping: lower ones end before higher ones are asked to.
    pub fn new(
        name: impl Into<String>,
        stage: u8,
        log: PathBuf,
        start: Starter,
    ) -> io::Result<Unit> {
        let flags = nix::fcntl::OFlag::O_CLOEXEC;
        let output = nix::unistd::pipe2(flags)?;
        nonblocking(&output.0)?;
        Ok(Unit {
            name: name.into(),
            stage,
            start,
            after: None,
            log: Log::open(log)?,
            output,
            state: State::Due(Instant::now()),
            failures: 0,
        })
    }

    /// The unit is first started once this file is there.
    pub fn after(mut self, path: impl Into<PathBuf>) -> Unit {
        self.after = Some(path.into());
        self.state = State::Waiting;
        self
    }
}

type Change = (PathBuf, Box<dyn FnMut()>);

pub struct Keeper {
    units: Vec<Unit>,
    signals: SignalFd,
    inotify: Inotify,
    changes: Vec<Change>,
    report: Option<File>,
    prefix: String,
}

impl Keeper {
    /// Takes over SIGCHLD, SIGTERM and SIGINT of this process. Reports carry `prefix` before the unit's name.
    pub fn new(report: Option<OwnedFd>, prefix: &str) -> io::Result<Keeper> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
            mask.add(signal);
        }
        mask.thread_block()?;
        if let Some(fd) = &report {
            nonblocking(fd)?;
        }
        Ok(Keeper {
            units: Vec::new(),
            signals: SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?,
            inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
            changes: Vec::new(),
            report: report.map(File::from),
            prefix: prefix.to_string(),
        })
    }

    pub fn add(&mut self, unit: Unit) -> io::Result<()> {
        if let Some(path) = &unit.after {
            self.watch(path)?;
        }
        self.units.push(unit);
        Ok(())
    }

    /// Calls `then` whenever the file at `path` is written or replaced.
    pub fn on_change(&mut self, path: PathBuf, then: Box<dyn FnMut()>) -> io::Result<()> {
        self.watch(&path)?;
        self.changes.push((path, then));
        Ok(())
    }

    fn watch(&self, path: &Path) -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        let flags =
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE;
        self.inotify.add_watch(dir, flags)?;
        Ok(())
    }

    /// Runs until asked to stop, then ends every unit, stage by stage.
    pub fn run(&mut self) -> io::Result<()> {
        loop {
            self.start_due();
            let deadline = self.units.iter().filter_map(|u| match u.state {
                State::Due(at) => Some(at),
                _ => None,
            });
            let deadline = deadline.min();
            if self.wait(deadline)? {
                break;
            }
        }
        let mut stages: Vec<u8> = self.units.iter().map(|u| u.stage).collect();
        stages.sort_unstable();
        stages.dedup();
        for stage in stages {
            self.stop_stage(stage)?;
        }
        Ok(())
    }

    fn stop_stage(&mut self, stage: u8) -> io::Result<()> {
        let pids = |units: &[Unit]| -> Vec<Pid> {
            let of_stage = units.iter().filter(|u| u.stage == stage);
            of_stage
                .filter_map(|u| {
                    if let State::Running(pid, _) = u.state {
                        Some(pid)
                    } else {
                        None
                    }
                })
                .collect()
        };
        for unit in self.units.iter_mut().filter(|u| u.stage == stage) {
            if !matches!(unit.state, State::Running(..)) {
                unit.state = State::Stopped;
            }
        }
        for (signal, grace) in [
            (Signal::SIGTERM, STAGE_GRACE),
            (Signal::SIGKILL, STAGE_GRACE),
        ] {
            for pid in pids(&self.units) {
                let _ = kill(pid, signal);
            }
            let deadline = Instant::now() + grace;
            while !pids(&self.units).is_empty() && Instant::now() < deadline {
                self.wait(Some(deadline))?;
            }
        }
        Ok(())
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        for i in 0..self.units.len() {
            let unit = &mut self.units[i];
            match (unit.state, &unit.after) {
                (State::Due(at), _) if at <= now => {}
                (State::Waiting, Some(path)) if path.exists() => {}
                _ => continue,
            }
            match (unit.start)(unit.output.1.as_fd()) {
                Ok(pid) => unit.state = State::Running(pid, now),
                Err(e) => self.failed(i, &format!("cannot start: {e}"), now),
            }
        }
    }

    /// One wait and everything that it brought. True when asked to stop.
    fn wait(&mut self, deadline: Option<Instant>) -> io::Result<bool> {
        let timeout = match deadline {
            // A millisecond more: waking up before the deadline would spin.
            Some(at) => (at.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
                .try_into()
                .unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(
            self.units
                .iter()
                .map(|u| PollFd::new(u.output.0.as_fd(), PollFlags::POLLIN)),
        );
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        for (unit, _) in self
            .units
            .iter_mut()
            .zip(&ready[2..])
            .filter(|(_, ready)| **ready)
        {
            unit.log.pump(&unit.output.0);
        }
        if ready[1] {
            self.notice_changes();
        }
        let mut stop = false;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            stop |= signal.ssi_signo != Signal::SIGCHLD as u32;
        }
        self.reap();
        Ok(stop)
    }

    fn notice_changes(&mut self) {
        let mut names = Vec::new();
        while let Ok(events) = self.inotify.read_events() {
            names.extend(events.into_iter().filter_map(|e| e.name));
        }
        for (path, then) in &mut self.changes {
            if names.iter().any(|name| path.file_name() == Some(name)) {
                then();
            }
        }
    }

    /// Reaps every dead child: units, and in a machine the orphans that its first process inherits.
    fn reap(&mut self) {
        loop {
            let (pid, how) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exited with code {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid, format!("was killed by {signal}"))
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            let is = |u: &Unit| matches!(u.state, State::Running(p, _) if p == pid);
            if let Some(i) = self.units.iter().position(is) {
                self.failed(i, &how, Instant::now());
            }
        }
    }

    fn failed(&mut self, i: usize, how: &str, now: Instant) {
        let unit = &mut self.units[i];
        let started = match unit.state {
            State::Running(_, started) => started,
            _ => now,
        };
        unit.failures = if now - started >= STEADY {
            1
        } else {
            unit.failures + 1
        };
        let pause = back_off(unit.failures);
        unit.state = State::Due(now + pause);
        unit.log.pump(&unit.output.0);
        unit.log
            .write(format!("skiff: {} {how}; starts again in {pause:?}\n", unit.name).as_bytes());
        let report = Report {
            unit: format!("{}{}", self.prefix, unit.name),
            message: how.to_string(),
            failures: unit.failures,
        };
        if let (Some(file), Ok(mut line)) = (&mut self.report, serde_json::to_vec(&report)) {
            line.push(b'\n');
            // Whoever listened may have gone long ago.
            let _ = file.write_all(&line);
        }
    }
}

/// 100 ms, doubled with each failure in a row, 30 s at most.
fn back_off(failures: u32) -> Duration {
    Duration::from_millis(100 << failures.saturating_sub(1).min(12)).min(Duration::from_secs(30))
}

/// Ends what is left in this PID namespace, as its first process: asks, waits for a while, and leaves the rest to
/// the kernel, which kills a namespace with its first process.
pub fn end_everything(grace: Duration) {
    let _ = kill(Pid::from_raw(-1), Signal::SIGTERM);
    let deadline = Instant::now() + grace;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    let Ok(signals) = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
    else {
        return;
    };
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => {}
            Ok(_) => continue,
            Err(_) => return,
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let _ = poll(
            &mut fds,
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
        );
        while let Ok(Some(_)) = signals.read_signal() {}
    }
}

fn nonblocking(fd: &impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// A log file, with one older part beside it: together never more than twice the limit.
struct Log {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Log {
    fn open(path: PathBuf) -> io::Result<Log> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let file = File::options().create(true).append(true).open(&path)?;
        let size = file.metadata()?.len();
        Ok(Log { path, file, size })
    }

    fn pump(&mut self, from: &OwnedFd) {
        let mut buffer = [0u8; 16 << 10];
        let Ok(from) = from.try_clone() else { return };
        let mut from = File::from(from);
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            self.write(&buffer[..n]);
        }
    }

    /// A full disk loses log lines, never the process that wrote them.
    fn write(&mut self, bytes: &[u8]) {
        if self.size + bytes.len() as u64 > LOG_LIMIT {
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            let _ = fs::rename(&self.path, older);
            if let Ok(file) = File::options().create(true).append(true).open(&self.path) {
                self.file = file;
                self.size = 0;
            }
        }
        if self.file.write_all(bytes).is_ok() {
            self.size += bytes.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_to_a_limit() {
        let millis: Vec<u128> = [1, 2, 3, 9, 10, 40]
            .map(|n| back_off(n).as_millis())
            .to_vec();
        assert_eq!(millis, [100, 200, 400, 25_600, 30_000, 30_000]);
    }

    #[test]
    fn a_log_stays_bounded() {
        let dir = std::env::temp_dir().join(format!("skiff-log-{}", std::process::id()));
        let path = dir.join("unit.log");
        let mut log = Log::open(path.clone()).unwrap();
        let block = vec![b'x'; 1 << 20];
        for _ in 0..30 {
            log.write(&block);
        }
        let size = |p: &Path| fs::metadata(p).unwrap().len();
        assert!(size(&path) <= LOG_LIMIT && size(&path) > 0);
        assert!(size(&dir.join("unit.log.1")) <= LOG_LIMIT);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
        fs::remove_dir_all(&dir).unwrap();
    }
}
