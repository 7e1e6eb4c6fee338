//! What `create` and its kin tell their user: a line for each step, with the time that it took.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

pub struct Progress {
    begun: Instant,
    last: Instant,
    terminal: bool,
}

impl Progress {
    pub fn start(title: &str) -> Progress {
        eprintln!("{title}");
        let now = Instant::now();
        Progress {
            begun: now,
            last: now,
            terminal: stderr().is_terminal(),
        }
    }

    /// Shows on a terminal what is being waited for; the step's own line takes its place.
    pub fn doing(&self, what: &str) {
        if self.terminal {
            eprint!("\r\x1b[K   {what} ...");
            let _ = stderr().flush();
        }
    }

    pub fn done(&mut self, what: &str) {
        let now = Instant::now();
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        eprintln!("{clear} \u{2713} {what:<64} {}", seconds(now - self.last));
        self.last = now;
    }

    pub fn abandon(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }

    pub fn total(&self) -> String {
        seconds(self.begun.elapsed())
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
