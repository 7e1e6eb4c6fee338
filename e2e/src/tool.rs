//! Running `kubectl` and `skiff`.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Where the built programs are: `SKIFF_BIN_DIR`, else the folder that holds
/// the running test's `deps/`.
pub fn bin_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("SKIFF_BIN_DIR") {
        return dir.into();
    }
    let test = std::env::current_exe().unwrap_or_default();
    test.ancestors()
        .nth(2)
        .unwrap_or(Path::new("."))
        .to_path_buf()
}

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A client program with the kubeconfig that it uses.
#[derive(Debug, Clone)]
pub struct Tool {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Tool {
    /// The machine's `kubectl`.
    pub fn kubectl(kubeconfig: &Path) -> Self {
        Self {
            program: "kubectl".into(),
            kubeconfig: kubeconfig.into(),
        }
    }

    /// Skiff's own client.
    pub fn skiff(kubeconfig: &Path) -> Self {
        Self {
            program: bin_dir().join("skiff"),
            kubeconfig: kubeconfig.into(),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args.iter().map(OsStr::new))
            .env("KUBECONFIG", &self.kubeconfig)
            .current_dir(crate::checkout());
        command
    }

    /// Runs to the end with `stdin` as input, whatever the exit code.
    pub fn output(&self, args: &[&str], stdin: &str) -> Result<Output> {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let mut input = child.stdin.take().context("no standard input")?;
        let text = stdin.to_owned();
        // A command may end without reading all of it: a broken pipe is no fault.
        let feeder = std::thread::spawn(move || drop(input.write_all(text.as_bytes())));
        let done = child.wait_with_output()?;
        feeder.join().ok();
        Ok(Output {
            code: done.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
        })
    }

    /// Runs and gives standard output; a non-zero exit is an error that shows
    /// what the command said.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        self.run_with(args, "")
    }

    /// As [`Tool::run`], with standard input.
    pub fn run_with(&self, args: &[&str], stdin: &str) -> Result<String> {
        let out = self.output(args, stdin)?;
        if out.code != 0 {
            bail!(
                "{} {} ended with {}:\n{}{}",
                self.program.display(),
                args.join(" "),
                out.code,
                out.stdout,
                out.stderr
            );
        }
        Ok(out.stdout)
    }

    /// `get ... -o json`, parsed.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        Ok(serde_json::from_str(&self.run(&all)?)?)
    }

    /// Applies manifests given as text.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.run_with(&["apply", "-f", "-"], yaml)
    }

    /// Starts the command and lets it run until the handle is dropped.
    pub fn background(&self, args: &[&str]) -> Result<Background> {
        let child = self
            .command(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Background(child))
    }
}

impl Background {
    /// Starts one of Skiff's programs, outside any cluster's care.
    pub fn program(name: &str, args: &[&str]) -> Result<Self> {
        let child = Command::new(bin_dir().join(name))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        Ok(Self(child))
    }
}

/// A command that is killed when this is dropped.
#[derive(Debug)]
pub struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
