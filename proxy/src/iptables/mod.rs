//! The iptables backend: `chains` says what our chains should hold, `restore` how to get there; here
//! the programs are run.

pub mod chains;
pub mod restore;

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::backend::{Backend, Error};
use crate::model::{Family, Model};
use chains::{CANARY, Config};
use restore::{Existing, Fingerprint};

#[derive(Debug)]
pub struct Iptables {
    family: Family,
    config: Config,
    /// `None` when the kernel's state is not known: at the start, and after any failure.
    applied: Option<Fingerprint>,
}

impl Iptables {
    pub fn new(family: Family, config: Config) -> Self {
        Self {
            family,
            config,
            applied: None,
        }
    }

    fn program(&self, suffix: &str) -> String {
        match self.family {
            Family::V4 => format!("iptables{suffix}"),
            Family::V6 => format!("ip6tables{suffix}"),
        }
    }

    async fn existing(&self) -> Result<Existing, Error> {
        Ok(Existing::parse(
            &run(&self.program("-save"), &[], "").await?,
        ))
    }

    async fn restore(&self, text: &str) -> Result<(), Error> {
        // Another program may hold the lock of the legacy backend for a moment.
        run(&self.program("-restore"), &["-w", "5", "--noflush"], text)
            .await
            .map(drop)
    }
}

impl Backend for Iptables {
    async fn sync(&mut self, model: &Model) -> Result<bool, Error> {
        if self.family == Family::V6 && self.applied.is_none() && model.ports.is_empty() {
            return Ok(false);
        }
        let wanted = chains::build(model, self.family, &self.config);
        // Taken, so that a failure leaves "not known" behind.
        let text = match self.applied.take() {
            Some(applied) => match restore::delta(&wanted, &applied) {
                Some(text) => text,
                None => {
                    self.applied = Some(applied);
                    return Ok(false);
                }
            },
            None => restore::full(&wanted, &self.existing().await?),
        };
        self.restore(&text).await?;
        self.applied = Some(restore::fingerprint(&wanted));
        Ok(true)
    }

    async fn verify(&mut self) -> bool {
        if self.applied.is_none() {
            return true;
        }
        for table in ["nat", "filter"] {
            let args = ["-w", "5", "-t", table, "-S", CANARY];
            if run(&self.program(""), &args, "").await.is_err() {
                self.applied = None;
                return false;
            }
        }
        true
    }

    fn forget(&mut self) {
        self.applied = None;
    }

    async fn cleanup(&mut self) -> Result<(), Error> {
        let text = restore::cleanup(&self.existing().await?);
        if text.is_empty() {
            Ok(())
        } else {
            self.restore(&text).await
        }
    }
}

async fn run(program: &str, args: &[&str], input: &str) -> Result<String, Error> {
    let failed = |source| Error::Start {
        program: program.to_owned(),
        source,
    };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_owned();
        // From a task, because a child that talks before it has read everything must not block us. A
        // child that stops reading has failed, and says why itself.
        tokio::spawn(async move { stdin.write_all(input.as_bytes()).await });
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Failed {
        program: program.to_owned(),
        status: output.status,
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests;
