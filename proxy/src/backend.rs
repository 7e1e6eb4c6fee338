//! What a backend has to offer: bring the kernel in line with a rule model, in one transaction.

use std::future::Future;

use crate::model::Model;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot run {program}: {source}")]
    Start {
        program: String,
        source: std::io::Error,
    },
    #[error("{program} failed ({status}): {message}")]
    Failed {
        program: String,
        status: std::process::ExitStatus,
        message: String,
    },
}

pub trait Backend: Send {
    /// Makes the kernel do as the model says. True when something had to change.
    fn sync(&mut self, model: &Model) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Whether our rules are still there. False also means that the next `sync` writes all of them.
    fn verify(&mut self) -> impl Future<Output = bool> + Send;

    /// The next `sync` takes nothing for granted.
    fn forget(&mut self);

    /// Takes every rule of ours away.
    fn cleanup(&mut self) -> impl Future<Output = Result<(), Error>> + Send;
}
