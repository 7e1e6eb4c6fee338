//! What every Skiff component needs to be a client of a Kubernetes API server.
//!
//! A component is a loop around watched state: *informers* keep a trimmed copy of what it cares about and put
//! keys on a *work queue* when something changes; workers take keys off, plan, and write. Around that it elects a
//! *leader*, records *events*, and answers *health* and metrics requests. Nothing here is specific to Skiff's own
//! API server.
//!
//! A typical `main`:
//!
//! ```no_run
//! # use k8s_openapi::api::core::v1::Pod;
//! # async fn reconcile(_key: &str) -> Result<(), kube::Error> { Ok(()) }
//! # async fn main_() -> Result<(), Box<dyn std::error::Error>> {
//! client::init();
//! let shutdown = client::shutdown_signal();
//! let api = client::connect(None, "my-component").await?;
//! let pods = client::Informer::builder(kube::Api::<Pod>::all(api))
//!     .trim(|pod| pod.status = None)
//!     .start(&shutdown);
//! let queue = client::WorkQueue::new();
//! let q = queue.clone();
//! pods.on_change(move |old, new| q.add(client::key_of(new.or(old).unwrap().as_ref())));
//! pods.synced().await;
//! queue
//!     .run(2, &shutdown, |key: String| async move {
//!         reconcile(&key).await?;
//!         Ok::<_, kube::Error>(client::Next::Done)
//!     })
//!     .await;
//! # Ok(()) }
//! ```
//!
//! Start reading at [`informer`], then [`workqueue`]; [`leader`], [`events`] and [`health`] stand on their own.

pub mod connect;
pub mod events;
pub mod health;
pub mod informer;
pub mod leader;
pub mod mirror;
pub mod workqueue;

pub use connect::{Error as ConnectError, config, connect, connect_with};
pub use events::{EventType, Recorder};
pub use informer::{Informer, key_of, split_key};
pub use workqueue::{Next, WorkQueue};

pub use tokio_util::sync::CancellationToken;

use std::io::IsTerminal;

/// Sets up what is global to a process: the TLS provider and logging to stderr. Call it once, first in `main`.
///
/// The level comes from `SKIFF_LOG` or `RUST_LOG` (an `EnvFilter`, such as `debug` or `info,kube=debug`), else `info`.
pub fn init() {
    // Fails only if a provider is there already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let filter = std::env::var("SKIFF_LOG")
        .or_else(|_| std::env::var("RUST_LOG"))
        .ok()
        .and_then(|s| s.parse::<tracing_subscriber::EnvFilter>().ok())
        .unwrap_or_else(|| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init();
}

/// A token that is cancelled by the first SIGTERM or SIGINT; a second one ends the process at once.
///
/// Must be called inside a Tokio runtime.
pub fn shutdown_signal() -> CancellationToken {
    use tokio::signal::unix::{SignalKind, signal};
    let token = CancellationToken::new();
    match (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) {
        (Ok(mut term), Ok(mut int)) => {
            let token = token.clone();
            tokio::spawn(async move {
                for first in [true, false] {
                    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
                    if !first {
                        std::process::exit(1);
                    }
                    tracing::info!("shutting down");
                    token.cancel();
                }
            });
        }
        (term, int) => {
            let error = term.err().or(int.err()).map(|e| e.to_string());
            tracing::error!(
                ?error,
                "cannot listen for signals; only SIGKILL will end this process"
            );
        }
    }
    token
}
