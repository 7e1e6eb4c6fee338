//! Post-start hooks: what has to happen once the server serves, before it is ready.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::status::Result;
use futures::future::BoxFuture;

use super::Server;

const RETRY: Duration = Duration::from_millis(500);

/// A named piece of work. It is repeated until it succeeds; `/readyz` names it until then.
pub struct Hook {
    pub name: &'static str,
    pub run: Box<dyn Fn(Arc<Server>) -> BoxFuture<'static, Result<()>> + Send + Sync>,
}

impl Hook {
    pub fn new<F>(
        name: &'static str,
        run: impl Fn(Arc<Server>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        Self {
            name,
            run: Box::new(move |server| Box::pin(run(server))),
        }
    }
}

/// Runs the hooks, in order: later ones may need what earlier ones made.
pub async fn run(server: Arc<Server>, hooks: Vec<Hook>) {
    for hook in hooks {
        while let Err(error) = (hook.run)(server.clone()).await {
            tracing::warn!(hook = hook.name, %error, "post-start hook failed; trying again");
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = server.shutdown.cancelled() => return,
            }
        }
        server.health.hook_done(hook.name);
    }
}
