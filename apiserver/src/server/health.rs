//! `/livez`, `/readyz` and `/healthz`: named checks, each with a path of its own.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use storage::Store;

use crate::body::Reply;
use crate::encryption::SharedRules;
use crate::query::Query;
use crate::rest::text;

const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the checks look at.
pub struct Health {
    store: Arc<dyn Store>,
    /// Hooks that have not run yet.
    pending: Mutex<BTreeSet<&'static str>>,
    hooks: BTreeSet<&'static str>,
    /// With the key management services that seal what is stored.
    services: Option<SharedRules>,
    stopping: tokio_util::sync::CancellationToken,
}

impl Health {
    pub fn new(
        store: Arc<dyn Store>,
        hooks: impl IntoIterator<Item = &'static str>,
        services: Option<SharedRules>,
        stopping: tokio_util::sync::CancellationToken,
    ) -> Self {
        let hooks: BTreeSet<_> = hooks.into_iter().collect();
        Self {
            store,
            pending: Mutex::new(hooks.clone()),
            hooks,
            services,
            stopping,
        }
    }

    /// Whether a path is one of the three endpoints.
    #[must_use]
    pub fn is_path(path: &str) -> bool {
        matches!(path, "/livez" | "/readyz" | "/healthz")
    }

    pub fn hook_done(&self, name: &str) {
        self.pending.lock().remove(name);
    }

    /// Answers `/livez`, `/readyz`, `/healthz` and `/readyz/CHECK`.
    pub async fn answer(&self, path: &str, query: &Query) -> Option<Reply> {
        let mut parts = path.trim_start_matches('/').splitn(2, '/');
        let endpoint = parts
            .next()
            .filter(|name| matches!(*name, "livez" | "readyz" | "healthz"))?;
        let only = parts.next().filter(|name| !name.is_empty());
        let mut names: Vec<String> = vec!["ping".into(), "etcd".into()];
        names.extend(
            self.hooks
                .iter()
                .map(|hook| format!("poststarthook/{hook}")),
        );
        if self.services.is_some() {
            names.push("kms-providers".into());
        }
        if endpoint == "readyz" {
            names.push("shutdown".into());
        }
        if let Some(only) = only {
            names.retain(|name| name == only);
            if names.is_empty() {
                return Some(text(StatusCode::NOT_FOUND, "404 page not found\n"));
            }
        }
        let mut failed = false;
        let mut report = String::new();
        for name in &names {
            // A String takes every write.
            let _ = if query.all("exclude").any(|excluded| excluded == name) {
                writeln!(report, "[+]{name} excluded: ok")
            } else if self.check(name).await {
                writeln!(report, "[+]{name} ok")
            } else {
                failed = true;
                writeln!(report, "[-]{name} failed: reason withheld")
            };
        }
        Some(if failed {
            text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("{report}{endpoint} check failed\n"),
            )
        } else if query.get("verbose").is_some() && only.is_none() {
            text(StatusCode::OK, format!("{report}{endpoint} check passed\n"))
        } else {
            text(StatusCode::OK, "ok")
        })
    }

    async fn check(&self, name: &str) -> bool {
        match name {
            "ping" => true,
            "etcd" => matches!(
                tokio::time::timeout(STORE_TIMEOUT, self.store.current_revision()).await,
                Ok(Ok(_))
            ),
            "kms-providers" => match &self.services {
                Some(services) => services.check().await.is_ok(),
                None => true,
            },
            "shutdown" => !self.stopping.is_cancelled(),
            hook => hook
                .strip_prefix("poststarthook/")
                .is_none_or(|hook| !self.pending.lock().contains(hook)),
        }
    }
}
